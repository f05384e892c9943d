//! The handle of the control plane: proposes commands, reads the state, attaches nodes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use orch_api::control::NodeLink;
use orch_core::{Answer, Command, Refusal, State};
use orch_spec::assignment::NodeId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk::{Directory, Disk};
use crate::driver::{self, Message};
use crate::link;
use crate::log::LogError;

/// Proposals waiting for the driver: more wait in their callers.
const PROPOSALS: usize = 1024;

/// How to run a control plane.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Directory of the log and the snapshot.
    pub data_dir: PathBuf,
    /// The node it runs on: the first of the cluster.
    pub node: NodeId,
}

/// The control plane cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log.
    #[error("open the control log")]
    Log(#[from] LogError),
    /// The log holds what this version does not understand.
    #[error("the control log holds an entry that this version of orch does not understand: {0}")]
    Entry(String),
    /// The library.
    #[error("start raft: {0}")]
    Raft(String),
    /// The thread.
    #[error("start the control plane's thread")]
    Thread(#[source] std::io::Error),
}

/// A command was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// The state machine refused it; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be made durable; nothing has changed.
    #[error("the control plane cannot take changes now: {0}")]
    Unavailable(String),
    /// The control plane is gone; whether the command was carried out is not known.
    #[error("the control plane is gone: {0}")]
    Gone(String),
}

impl ProposeError {
    /// Whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Refused(Refusal::Busy { .. }))
    }
}

/// What the driver publishes.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    /// Index of the last applied entry.
    pub(crate) applied: watch::Sender<u64>,
    /// Why the driver takes nothing any more.
    pub(crate) gone: Mutex<Option<String>>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Arc<Shared>,
    messages: mpsc::Sender<Message>,
}

impl Control {
    /// Opens the log, replays it, and becomes leader of a cluster of one.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ControlConfig) -> Result<Self, StartError> {
        let path = config.data_dir.clone();
        let disk = Directory::make(config.data_dir).map_err(|source| LogError::Io { doing: "make", path, source })?;
        Self::start_on(Box::new(disk)).await
    }

    /// The same on a disk of the caller's.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on(disk: Box<dyn Disk>) -> Result<Self, StartError> {
        let (messages, inbox) = mpsc::channel(PROPOSALS);
        let (ready, started) = oneshot::channel();
        std::thread::Builder::new()
            .name("raft".to_owned())
            .spawn(move || driver::run(disk, inbox, ready))
            .map_err(StartError::Thread)?;
        let shared = started.await.map_err(|_| StartError::Raft("the thread ended".to_owned()))??;
        Ok(Self { shared, messages })
    }

    /// Proposes a command and waits until it is applied, which is after it is on disk.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Command) -> Result<(u64, Answer), ProposeError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Propose { command: Box::new(command), reply: Some(reply) };
        self.messages.send(message).await.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    fn gone(&self) -> ProposeError {
        let reason = self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ProposeError::Gone(reason.unwrap_or_else(|| "it has ended".to_owned()))
    }

    /// Waits until the state is as wished; says whether it was before the time was over.
    pub async fn wait_until(&self, time: Duration, mut wish: impl FnMut(&State) -> bool) -> bool {
        let mut applied = self.watch();
        let wait = async {
            loop {
                applied.mark_unchanged();
                if self.read(&mut wish) {
                    return true;
                }
                if applied.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(time, wait).await.unwrap_or(false)
    }

    /// Reads the state. The driver waits meanwhile: be quick.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells when the state has changed, by the index of the last applied entry.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Attaches the agent of this process: it is told what to run, now and whenever that changes, and what it reports goes into the log.
    /// Must be called within a tokio runtime.
    pub fn connect_node(&self, node: NodeId) -> NodeLink {
        let (sender, assignments) = watch::channel(Arc::default());
        let (messages, connected) = (self.messages.clone(), node.clone());
        tokio::spawn(async move {
            // A driver that is gone tells nobody anything, which its node hears when it reports.
            let _ = messages.send(Message::Connect { node: connected, assignments: sender }).await;
        });
        NodeLink { assignments, reports: link::spawn(self.clone(), node) }
    }

    /// Ends the driver after what it has been given.
    pub async fn shutdown(&self) {
        let (done, finished) = oneshot::channel();
        if self.messages.send(Message::Shutdown(done)).await.is_ok() {
            let _ = finished.await;
        }
    }
}
