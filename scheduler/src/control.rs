//! The handle of the control plane: proposes commands, reads the state, attaches nodes.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::time::Duration;

use bytes::Bytes;
use orch_api::clock::now_ms;
use orch_api::control::NodeLink;
use orch_core::{Answer, Command, Entry, Refusal, State};
use orch_spec::assignment::{Assignment, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::disk::{Directory, Disk};
use crate::driver::{self, INBOX, Message, Start};
use crate::link;
use crate::log::LogError;
use crate::replica::Contradiction;
use crate::request;
use crate::start::random;
use crate::stopwatch::Stopwatch;
use crate::transport::{NoTransport, Transport};

/// Proposals waiting for the raft thread: more wait in their callers.
const PROPOSALS: usize = 1024;

/// How long a change of the managers waits for its turn: a change takes a round of the log.
const TURN: Duration = Duration::from_secs(5);
/// How often it looks whether its turn has come, at the least.
const LOOK: Duration = Duration::from_millis(100);

/// How to run a control plane.
#[derive(Clone)]
pub struct ControlConfig {
    /// Directory of the log and the snapshot.
    pub data_dir: PathBuf,
    /// The node it runs on.
    pub node: NodeId,
    /// Where other managers reach it, `host:port`; empty for a host alone.
    pub address: String,
    /// What carries its messages to other managers.
    pub transport: Arc<dyn Transport>,
    /// What to do when there is no log yet.
    pub bootstrap: Bootstrap,
}

impl ControlConfig {
    /// A host alone.
    pub fn alone(data_dir: PathBuf, node: NodeId) -> Self {
        let (address, transport) = (String::new(), Arc::new(NoTransport));
        Self { data_dir, node, address, transport, bootstrap: Bootstrap::Alone }
    }
}

impl std::fmt::Debug for ControlConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { data_dir, node, address, transport: _, bootstrap } = self;
        let mut out = f.debug_struct("ControlConfig");
        out.field("data_dir", data_dir).field("node", node).field("address", address);
        out.field("bootstrap", bootstrap).finish_non_exhaustive()
    }
}

/// How a control plane without a log begins. One that has a log goes on with that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// As the first manager of a new cluster.
    Alone,
    /// Not at all: this is the first manager of the cluster with this id, and without its log it has lost what it had promised.
    Never(String),
    /// As a further manager of a cluster that has one, with the number that [`Control::add_manager`] gave. Everything else comes from the
    /// leader. A log of another number is set aside: it is that of a former membership, or damaged.
    Join(Invitation),
}

/// What a new manager must know before anybody has sent it anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Its number in raft.
    pub id: u64,
    /// The cluster's id.
    pub cluster: String,
}

/// Who leads, as one replica knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader; `None` while there is none, or its name is not known here yet.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// Whether that is this replica.
    pub is_leader: bool,
    /// What this replica is.
    pub standing: Standing,
}

/// What a replica is to its cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It gets the log and does not count.
    #[default]
    Learner,
    /// It votes.
    Voter,
    /// It was removed: its number is never used again.
    Removed,
    /// It has found a contradiction, takes nothing and votes for nobody: it must join again.
    Quarantined,
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
    /// The replica's state is not that of the others.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
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
    /// Another manager leads, which must be asked; nothing has changed here.
    #[error("{}", not_leader(leader.as_ref()))]
    NotLeader {
        /// Who leads; `None` while nobody does.
        leader: Option<NodeId>,
    },
    /// The leadership was lost while the command was under way; whether it was carried out is not known.
    #[error("the leader has changed while the change was under way; it may have been carried out or not")]
    Unknown,
    /// Another change of the managers is under way, and one follows the other; nothing has changed.
    #[error("another change of the managers is under way")]
    InTurn,
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
        matches!(
            self,
            Self::Unavailable(_) | Self::InTurn | Self::NotLeader { .. } | Self::Refused(Refusal::Busy { .. })
        )
    }
}

fn not_leader(leader: Option<&NodeId>) -> String {
    match leader {
        Some(leader) => format!("manager {leader} leads the cluster, not this one"),
        None => "the cluster has no leader now: too few of its managers reach each other".to_owned(),
    }
}

/// What the driver publishes.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Shared so that a snapshot can be made of it aside.
    pub(crate) state: RwLock<Arc<State>>,
    /// Index of the last applied entry.
    pub(crate) applied: watch::Sender<u64>,
    /// Why the driver takes nothing any more.
    pub(crate) gone: Mutex<Option<String>>,
    /// Who leads.
    pub(crate) leadership: watch::Sender<Leadership>,
    /// The log's time.
    pub(crate) time: Stopwatch,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    admission: Arc<Semaphore>,
    /// Bytes of other managers' messages that wait.
    received: Arc<AtomicUsize>,
}

/// The way to the raft thread, which ends when nobody has one any more.
#[derive(Debug)]
struct Inbox(Sender<Message>);

impl Drop for Inbox {
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        let _ = self.0.send(Message::Shutdown(done));
    }
}

impl Control {
    /// Opens the log, replays it, and takes part: alone as the leader at once, among others when they answer.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ControlConfig) -> Result<Self, StartError> {
        let path = config.data_dir.clone();
        let disk = Directory::make(path.clone()).map_err(|source| LogError::Io { doing: "make", path, source })?;
        Self::start_with(Box::new(disk), config).await
    }

    /// A host alone on a disk of the caller's.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on(disk: Box<dyn Disk>) -> Result<Self, StartError> {
        let config = ControlConfig::alone(PathBuf::new(), NodeId::from("node"));
        Self::start_with(disk, config).await
    }

    /// The same as [`Control::start`], on a disk of the caller's.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_with(disk: Box<dyn Disk>, config: ControlConfig) -> Result<Self, StartError> {
        let ControlConfig { data_dir: _, node, address, transport, bootstrap } = config;
        let (messages, inbox) = channel();
        let (ready, started) = oneshot::channel();
        let received = Arc::new(AtomicUsize::new(0));
        let inbox = (messages.clone(), inbox);
        let start = Start { disk, bootstrap, node, address, transport, inbox, received: received.clone() };
        driver::spawn("raft", move || driver::run(start, ready))?;
        let shared = started.await.map_err(|_| StartError::Raft("the thread ended".to_owned()))??;
        let admission = Arc::new(Semaphore::new(PROPOSALS));
        Ok(Self { shared, inbox: Arc::new(Inbox(messages)), admission, received })
    }

    /// Proposes a command and waits until it is applied, which is after it is on disk where that counts.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Command) -> Result<(u64, Answer), ProposeError> {
        // What a node repeats by itself needs no disk where nobody else could miss it.
        let durable =
            !matches!(command, Command::Report { .. } | Command::ReserveAddress(_) | Command::ReleaseAddress { .. });
        let (now_ms, time_ms) = (now_ms(), Some(self.log_time()));
        let entry = Entry { now_ms, time_ms, nonce: random(), request: request::next(), command };
        let data = serde_json::to_vec(&entry).map_err(|error| ProposeError::Unavailable(error.to_string()))?;
        let permit = self.admission.clone().acquire_owned().await.map_err(|_| self.gone())?;
        self.ask(|reply| Message::Propose { data, durable, reply, _permit: permit }).await?
    }

    /// The log's time now, which timers are measured by: milliseconds.
    pub fn log_time(&self) -> u64 {
        self.shared.time.read(now_ms())
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.0.send(message(reply)).map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())
    }

    /// Takes a message that another manager has sent. Never blocks: what cannot be queued is dropped.
    pub fn receive(&self, from: &NodeId, message: Bytes) {
        let waiting = self.received.fetch_add(message.len(), Ordering::Relaxed);
        if waiting > INBOX {
            self.received.fetch_sub(message.len(), Ordering::Relaxed);
            return;
        }
        let _ = self.inbox.0.send(Message::Receive { from: from.clone(), bytes: message });
    }

    /// The process of this manager is known to be gone: if it led, another is elected without waiting for its silence to be long enough.
    pub fn leader_is_gone(&self, node: NodeId) {
        let _ = self.inbox.0.send(Message::Gone(node));
    }

    /// Who leads, now and whenever that changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    /// Makes a node a manager: it learns first, and votes when it has caught up and the number of voters becomes odd by it. The answer is
    /// what the node must be started with ([`Bootstrap::Join`]). Must be asked of the leader.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn add_manager(&self, node: NodeId, address: String) -> Result<Invitation, ProposeError> {
        self.in_turn(|reply| Message::Add { node: node.clone(), address: address.clone(), reply }).await
    }

    /// Makes a node no manager any more. Must be asked of the leader; a leader that shall go itself hands its leadership over and says
    /// [`ProposeError::NotLeader`] with its successor, who must be asked then.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn remove_manager(&self, node: &NodeId) -> Result<(), ProposeError> {
        self.in_turn(|reply| Message::Remove { node: node.clone(), reply }).await.map(|_| ())
    }

    /// Changes the managers when the change before is through.
    async fn in_turn<T>(
        &self,
        change: impl Fn(oneshot::Sender<Result<T, ProposeError>>) -> Message,
    ) -> Result<T, ProposeError> {
        let until = tokio::time::Instant::now() + TURN;
        loop {
            let mut applied = self.watch();
            match self.ask(&change).await? {
                Err(ProposeError::InTurn) if tokio::time::Instant::now() < until => {
                    // It is through when the log goes on; where it does not, whoever asked is told.
                    let _ = tokio::time::timeout(LOOK, applied.changed()).await;
                }
                done => return done,
            }
        }
    }

    /// Hands the leadership to another manager that is up to date, and says to whom; `None` when there is none, or this one does not lead.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn step_aside(&self) -> Result<Option<NodeId>, ProposeError> {
        self.ask(|reply| Message::StepAside { reply }).await
    }

    /// Waits until the state here has everything that had been acknowledged anywhere when this was called, and says its index. A state that
    /// is read without is possibly stale, and is labelled with its own index.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn read_index(&self) -> Result<u64, ProposeError> {
        let mut applied = self.watch();
        let index = self.ask(|reply| Message::Read { reply }).await??;
        let reached = applied.wait_for(|applied| *applied >= index).await.map(|applied| *applied);
        reached.map_err(|_| self.gone())
    }

    fn gone(&self) -> ProposeError {
        driver::gone(&self.shared)
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

    /// The same, unless it is being changed just now: for threads that must not wait.
    pub fn try_read<T>(&self, look: impl FnOnce(&State) -> T) -> Option<T> {
        match self.shared.state.try_read() {
            Ok(state) => Some(look(&state)),
            Err(TryLockError::Poisoned(state)) => Some(look(&state.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Tells when the state has changed, by the index of the last applied entry.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Attaches the agent of this process: it is told what to run, now and whenever that changes, and what it reports goes into the log.
    /// Must be called within a tokio runtime.
    pub fn connect_node(&self, node: NodeId) -> NodeLink {
        NodeLink { assignments: self.assignments(node.clone()), reports: link::spawn(self.clone(), node) }
    }

    /// What a node shall run, now and whenever that changes, as this manager's state says it. A later call for the same node ends this
    /// one's news. Must be called within a tokio runtime.
    pub fn assignments(&self, node: NodeId) -> watch::Receiver<Arc<Assignment>> {
        let (sender, assignments) = watch::channel(Arc::default());
        // A driver that is gone tells nobody anything, which its node hears when it reports.
        let _ = self.inbox.0.send(Message::Connect { node, assignments: sender });
        assignments
    }

    /// Whether the control plane takes nothing any more.
    pub fn is_gone(&self) -> bool {
        self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Ends the driver after what it has been given; a leader hands its leadership over first.
    pub async fn shutdown(&self) {
        let (done, finished) = oneshot::channel();
        if self.inbox.0.send(Message::Shutdown(done)).is_ok() {
            let _ = finished.await;
        }
    }
}
