//! The handle on a manager.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use orch_api::control::NodeLink;
use orch_core::{Answer, Assignments, Command, Entry, Refusal, State};
use orch_spec::assignment::NodeId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::link;
use crate::replica::{Core, QUEUE, Replica, Request, Shared, chain, restore};
use crate::store::{Identity, LogStore, RedbStore, StoreError};

/// How to run a manager.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Where its log lies; made when missing, readable by nobody else.
    pub data_dir: PathBuf,
    /// The node it runs on.
    pub node: NodeId,
}

/// A manager could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory cannot be made.
    #[error("cannot make the control plane's directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Its log cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The raft library refused its log.
    #[error("the control plane could not take up its log: {reason}")]
    Raft {
        /// Why.
        reason: String,
    },
    /// No thread could be made.
    #[error("the control plane's thread could not be started")]
    Thread(#[source] std::io::Error),
}

/// A command that was applied.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Index of the state that has it.
    pub index: u64,
    /// What it said.
    pub answer: Answer,
}

/// A command that was not applied, or of which that is not known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// The state machine refused it.
    #[error(transparent)]
    Refused(Refusal),
    /// Too much is under way.
    #[error("the control plane has too much to do")]
    Busy,
    /// No space; nothing was changed.
    #[error("the change could not be stored: {reason}")]
    DiskFull {
        /// What the store said.
        reason: String,
    },
    /// The replica does nothing any more.
    #[error("the control plane is quarantined: {reason}")]
    Quarantined {
        /// Why.
        reason: String,
    },
    /// The command is larger than an entry may be.
    #[error("the change takes {size} bytes; at most {limit} are possible")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The bound.
        limit: usize,
    },
    /// The command cannot be written down.
    #[error("the change cannot be encoded: {reason}")]
    Encode {
        /// Why.
        reason: String,
    },
    /// The manager has ended; whether the command was applied shows when it is back.
    #[error("the control plane has ended")]
    Stopped,
}

impl ProposeError {
    /// Whether the same may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Busy | Self::DiskFull { .. }) || matches!(self, Self::Refused(Refusal::Busy { .. }))
    }
}

/// A handle on a manager; the manager ends with its last handle.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    node: NodeId,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Control {
    /// Opens the log, applies it and begins to lead.
    ///
    /// # Errors
    /// The directory, the log, or a log that contradicts itself.
    pub async fn start(config: ControlConfig) -> Result<Self, StartError> {
        let opened = tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::DirBuilderExt;
            let path = config.data_dir;
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| StartError::Directory { path: path.clone(), source })?;
            let store = RedbStore::open(&path.join("control.redb"), new_identity)?;
            Ok::<_, StartError>((store, config.node))
        });
        let (store, node) = opened.await.map_err(|e| StartError::Raft { reason: e.to_string() })??;
        Self::with_store(Box::new(store), node).await
    }

    /// The same on a store of the caller's.
    ///
    /// # Errors
    /// See [`Control::start`].
    pub async fn with_store(mut store: Box<dyn LogStore>, node: NodeId) -> Result<Self, StartError> {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let outbox = requests.downgrade();
        let runtime = tokio::runtime::Handle::current();
        let (started, starting) = oneshot::channel();
        let thread = move || {
            let built = start(&mut store).and_then(|(shared, storage, loaded)| {
                let replica = Replica::new(Arc::clone(&shared), store, storage, &loaded, inbox, outbox);
                let mut replica = replica.map_err(|e| StartError::Raft { reason: e.to_string() })?;
                replica.lead().map_err(|reason| StartError::Raft { reason })?;
                Ok((shared, replica))
            });
            match built {
                Ok((shared, replica)) => {
                    if started.send(Ok(Arc::clone(&shared))).is_ok() {
                        guard(&shared, move || replica.run(&runtime));
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            }
        };
        let caught = move || {
            if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(thread)) {
                tracing::error!(reason = panic_text(&*panic), "the control plane's start failed");
            }
        };
        std::thread::Builder::new().name("orch-replica".to_owned()).spawn(caught).map_err(StartError::Thread)?;
        let gone =
            || StartError::Raft { reason: "the raft library contradicts the log; see the agent's log".to_owned() };
        let shared = starting.await.map_err(|_| gone())??;
        Ok(Self { shared, requests, node })
    }

    /// The node this manager runs on.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Appends a command to the log and applies it. When this returns `Ok`, it is durable (but for reports of nodes).
    ///
    /// # Errors
    /// Nothing has changed, except with [`ProposeError::Stopped`] and [`ProposeError::Quarantined`], which leave it open.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let entry = Box::new(Entry { now_ms: now_ms(), nonce: random(), command });
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Propose { entry, reply }).await.is_err() {
            return Err(self.ended());
        }
        answer.await.unwrap_or_else(|_| Err(self.ended()))
    }

    fn ended(&self) -> ProposeError {
        let quarantine = self.shared.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
        quarantine.clone().map_or(ProposeError::Stopped, |reason| ProposeError::Quarantined { reason })
    }

    /// Looks at the state. Changes wait meanwhile, so it should be quick.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.core.read().unwrap_or_else(PoisonError::into_inner).state)
    }

    /// The applied index, as it grows.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.index.subscribe()
    }

    /// Waits until the state is as wished; says whether it was before the time was over.
    pub async fn wait_until(&self, time: std::time::Duration, mut wish: impl FnMut(&State) -> bool) -> bool {
        let mut applied = self.watch();
        let wait = async {
            loop {
                applied.borrow_and_update();
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

    /// Whether the node is connected to this manager.
    pub fn is_connected(&self, node: &NodeId) -> bool {
        let nodes = self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(node).is_some_and(|sender| !sender.is_closed())
    }

    /// Connects a node: it gets its assignment at once and whenever it changes, and what it reports goes into the log. A second
    /// connection of the same node takes the place of the first. Must be called within a tokio runtime.
    pub fn connect_node(&self, node: NodeId) -> NodeLink {
        let core = self.shared.core.read().unwrap_or_else(PoisonError::into_inner);
        let now = Arc::new(core.assignments.of(&core.state, &node));
        let (sender, assignments) = watch::channel(now);
        self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), sender);
        drop(core);
        let reports = link::spawn(self.clone(), node);
        NodeLink { assignments, reports }
    }

    /// Ends the manager: what is in the queue is done first. Other handles see [`ProposeError::Stopped`] from then on.
    pub async fn shutdown(self) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(Request::Stop(reply)).await.is_ok() {
            let _ = done.await;
        }
    }
}

type Started = (Arc<Shared>, raft::storage::MemStorage, crate::store::Loaded);

/// What the store holds, shared.
fn start(store: &mut Box<dyn LogStore>) -> Result<Started, StartError> {
    let (state, storage, loaded) = restore(store.as_mut())?;
    let assignments = Assignments::new(&state);
    let shared = Shared {
        index: watch::Sender::new(state.index),
        core: RwLock::new(Core { state, assignments }),
        nodes: Mutex::default(),
        quarantine: Mutex::default(),
    };
    Ok((Arc::new(shared), storage, loaded))
}

/// Runs the replica; a panic of the library quarantines it instead of taking the agent along.
fn guard(shared: &Shared, run: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        shared.set_quarantine(panic_text(&*panic));
        // The requests' channel went with the replica; whoever proposes now is told the reason.
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
}

fn new_identity() -> Identity {
    let cluster = format!("{:016x}{:016x}", random(), random());
    Identity { cluster, replica: random().max(1) }
}

/// A random number. `RandomState` is seeded by the system; nothing here needs to be unguessable.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// An error and its causes in one line, for logs.
pub(crate) fn chain_text(error: &dyn std::error::Error) -> String {
    chain(error)
}
