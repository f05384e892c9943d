//! The handle of the control plane: proposes commands, reads the state, attaches nodes.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use orch_api::control::NodeLink;
use orch_core::{Answer, Command, Refusal, State};
use orch_spec::assignment::{NodeId, NodeReport};
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::{self, Message};
use crate::log::LogError;

/// Proposals waiting for the driver: more wait in their callers.
const PROPOSALS: usize = 1024;
/// Reports waiting: a node that is faster than the log waits.
const REPORTS: usize = 64;

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
    #[error("the control plane is gone")]
    Gone,
}

/// What the driver publishes.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    /// Index of the last applied entry.
    pub(crate) applied: watch::Sender<u64>,
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
        let (messages, inbox) = mpsc::channel(PROPOSALS);
        let (ready, started) = oneshot::channel();
        std::thread::Builder::new()
            .name("raft".to_owned())
            .spawn(move || driver::run(&config, inbox, ready))
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
        self.messages.send(message).await.map_err(|_| ProposeError::Gone)?;
        answer.await.map_err(|_| ProposeError::Gone)?
    }

    /// Reads the state. The driver waits meanwhile: be quick.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells when the state has changed, by the index of the last applied entry.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Attaches the agent of this process.
    pub fn connect_node(&self, node: NodeId) -> NodeLink {
        let (sender, assignments) = watch::channel(Arc::default());
        let (reports, mut reported) = mpsc::channel::<NodeReport>(REPORTS);
        let messages = self.messages.clone();
        tokio::spawn(async move {
            let connect = Message::Connect { node: node.clone(), assignments: sender };
            if messages.send(connect).await.is_err() {
                return;
            }
            while let Some(report) = reported.recv().await {
                let command = Box::new(Command::Report { node: node.clone(), report });
                if messages.send(Message::Propose { command, reply: None }).await.is_err() {
                    return;
                }
            }
        });
        NodeLink { assignments, reports }
    }

    /// Ends the driver after what it has been given.
    pub async fn shutdown(&self) {
        let (done, finished) = oneshot::channel();
        if self.messages.send(Message::Shutdown(done)).await.is_ok() {
            let _ = finished.await;
        }
    }
}
