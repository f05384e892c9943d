//! The engine: containers, images, volumes and logs of one host, behind one thread-safe, synchronous type.
//!
//! What runs is owned by the shims, what is known lies on disk, and the engine itself holds nothing that it could not find again: it may
//! be killed at any moment. At its start it takes the lock of its data directory, reads the containers' records, connects to the shims
//! that are alive, and settles what is left: a run that no shim knows and no exit record ends was lost, and its cgroup is killed.
//!
//! Threads: one that reads each shim's connection, one that empties the trash. Callers block in their own.
//! Absent on purpose: restart policies, health checks, networks, services. Those are the agent's.

mod adopt;
mod allot;
mod attach;
mod data_dir;
mod event;
mod exec;
mod files;
mod lifecycle;
mod link;
mod observe;
mod prepare;
mod usage;

pub(crate) use lifecycle::check_name;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

pub use attach::{AttachError, AttachEvent, AttachInput, AttachOptions, AttachSession};
pub use data_dir::DataDirError;
pub use event::{Event, EventKind, EventReceiver};
pub use exec::{ExecOptions, ExecSession};
pub use files::FilesError;
pub use link::LinkError;
pub use observe::ProcessInfo;
pub use usage::{ContainerUsage, DiskUsage, Pruned};

use crate::cgroup::{CgroupError, Layout};
use crate::config::{ContainerConfig, ContainerId};
use crate::container::{ContainerState, Phase};
use crate::image::{ImageError, ImageStore};
use crate::logs::reader::{LogError, LogQuery, LogReader};
use crate::runtime::PrepareError;
use crate::shim::protocol::{self, ExitRecord};
use crate::volume::{VolumeError, VolumeStore};
use data_dir::DataDir;
use link::ShimLink;

/// Where an engine lives and how it starts its shims.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What must survive a restart of the host.
    pub data_dir: PathBuf,
    /// What need not: sockets, generated files, secrets. Best on a tmpfs.
    pub run_dir: PathBuf,
    /// Names the engine's kernel objects; empty for the host's own engine.
    pub instance: String,
    /// The command of a shim: a program that calls [`crate::shim::main`] with the arguments that follow these.
    pub shim_command: Vec<OsString>,
    /// Groups whose shim stays while it has no container, because the next one comes soon: one-off containers.
    pub resident_groups: Vec<String>,
}

/// An operation of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such thing.
    #[error("no such {kind}: {name}")]
    NotFound {
        /// Of what kind.
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// A name or number that is taken, or something that is in use.
    #[error("{0}")]
    Conflict(String),
    /// The container is not in a state for it.
    #[error("container {name} is {phase}: cannot {wanted}")]
    Phase {
        /// Which.
        name: String,
        /// How it is.
        phase: Phase,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A request that is wrong by itself.
    #[error("{0}")]
    Invalid(String),
    /// The process did not start.
    #[error("{message}")]
    NotStarted {
        /// 125, 126 or 127: what a client should exit with.
        code: i32,
        /// What, where and why.
        message: String,
    },
    /// A process that does not die.
    #[error("container {name} does not end: process {pid} hangs in the kernel ({wchan})")]
    Stuck {
        /// Which.
        name: String,
        /// Its process.
        pid: i32,
        /// Where in the kernel it sleeps.
        wchan: String,
    },
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A part of the engine.
    #[error(transparent)]
    Part(#[from] PartError),
    /// The file system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Failures of the engine's parts, as they are.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// Images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The configuration cannot be carried out.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Generated files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The shim.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Logs.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Attached sessions.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Copying.
    #[error(transparent)]
    Copy(#[from] crate::copy::CopyError),
}

macro_rules! part_into_engine_error {
    ($($part:ty),*) => {
        $(impl From<$part> for EngineError {
            fn from(error: $part) -> Self {
                Self::Part(error.into())
            }
        })*
    };
}
part_into_engine_error!(
    ImageError,
    VolumeError,
    PrepareError,
    CgroupError,
    FilesError,
    LinkError,
    LogError,
    AttachError,
    crate::copy::CopyError
);

/// A container and its state.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// What was asked for.
    pub config: Arc<ContainerConfig>,
    /// Where it is.
    pub state: ContainerState,
}

/// One host's containers. Cheap to share: `Arc<Engine>`, or clones of it.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: EngineConfig,
    pub(crate) data: DataDir,
    layout: Layout,
    boot_id: String,
    pub(crate) images: DebugLess<ImageStore>,
    volumes: VolumeStore,
    containers: Mutex<Containers>,
    /// Open connections by the file name of the shim's socket.
    links: Mutex<BTreeMap<String, Arc<ShimLink>>>,
    /// Held while a shim is started, so that a group gets one.
    spawning: Mutex<()>,
    /// Held while the tmpfs of secrets comes, goes, or gets a container's directory.
    injecting: Mutex<()>,
    events: event::EventHub,
    /// Directories for the thread that empties the trash.
    trash: SyncSender<PathBuf>,
}

/// Something that has no `Debug` and needs none.
pub(crate) struct DebugLess<T>(pub(crate) T);

impl<T> std::fmt::Debug for DebugLess<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

#[derive(Debug, Default)]
struct Containers {
    by_id: BTreeMap<ContainerId, Arc<Container>>,
    names: BTreeMap<String, ContainerId>,
    /// The first of the ids that a container has for its own.
    ids: BTreeMap<u32, ContainerId>,
}

/// A container in memory.
#[derive(Debug)]
pub(crate) struct Container {
    id: ContainerId,
    pub(crate) directory: PathBuf,
    config: Mutex<Arc<ContainerConfig>>,
    state: Mutex<State>,
    changed: Condvar,
    /// Read while a process is being started inside, written while it is frozen: a process that is frozen before its execve would hold
    /// the shim up.
    freezing: RwLock<()>,
    /// One start or removal at a time. Taken before every other lock.
    pub(crate) operation: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    public: ContainerState,
    /// The shim that runs it.
    link: Option<Arc<ShimLink>>,
    /// The end that its shim told last. It may be told before the answer to its start has been dealt with.
    told_exit: Option<ExitRecord>,
    /// How many runs have ended, and how the last one did: who waits for an end sees it even if the next run has begun.
    ends: u64,
    last_end: Option<ContainerState>,
    /// How long the parts of the last start took.
    start_times: Option<StartTimes>,
}

impl State {
    /// A run has ended.
    fn end(&mut self, exit: &ExitRecord) {
        self.public.exit(exit);
        self.link = None;
        self.ends += 1;
        self.last_end = Some(self.public.clone());
    }
}

/// How long the parts of a start took, in ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartTimes {
    /// Reading the image, filling volumes, generating files, compiling the plan.
    pub prepare: u64,
    /// Finding or starting the shim, asking it, and its answer.
    pub ask: u64,
    /// What the shim did in that time.
    pub shim: protocol::StartTimes,
}

/// Locks, also after another thread panicked: every state behind these locks is changed in one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wall clock in ns since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

impl Container {
    fn new(directory: PathBuf, config: ContainerConfig) -> Self {
        Self {
            id: config.id.clone(),
            directory,
            config: Mutex::new(Arc::new(config)),
            state: Mutex::default(),
            changed: Condvar::new(),
            freezing: RwLock::new(()),
            operation: Mutex::new(()),
        }
    }

    pub(crate) fn config(&self) -> Arc<ContainerConfig> {
        Arc::clone(&lock(&self.config))
    }

    pub(crate) fn name(&self) -> String {
        lock(&self.config).name.clone()
    }

    pub(crate) fn state(&self) -> ContainerState {
        lock(&self.state).public.clone()
    }

    /// The shim that runs it, if it is alive.
    fn running_link(&self, wanted: &'static str) -> Result<Arc<ShimLink>, EngineError> {
        let state = lock(&self.state);
        match &state.link {
            Some(link) if state.public.phase.is_alive() => Ok(Arc::clone(link)),
            _ => Err(EngineError::Phase { name: self.name(), phase: state.public.phase, wanted }),
        }
    }
}

impl Engine {
    /// Opens a data directory, finds its containers again and takes over what runs.
    ///
    /// # Errors
    /// [`EngineError::DataDir`] when another engine has the directory, or it is not one of ours; failures to read it.
    pub fn open(config: EngineConfig) -> Result<Self, EngineError> {
        adopt::open(config).map(|inner| Self { inner })
    }

    /// The images of this host.
    pub fn images(&self) -> &ImageStore {
        &self.inner.images.0
    }

    /// The volumes of this host. Removing one goes through [`Engine::remove_volume`], which knows who uses it.
    pub fn volumes(&self) -> &VolumeStore {
        &self.inner.volumes
    }

    /// Where it lives.
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    /// All containers, by id.
    pub fn list(&self) -> Vec<ContainerInfo> {
        let containers: Vec<_> = lock(&self.inner.containers).by_id.values().cloned().collect();
        containers.iter().map(|c| ContainerInfo { config: c.config(), state: c.state() }).collect()
    }

    /// Finds a container by id, by name, or by the beginning of an id that only one has.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when several ids begin so.
    pub fn find(&self, reference: &str) -> Result<ContainerId, EngineError> {
        let containers = lock(&self.inner.containers);
        if let Some(id) = containers.names.get(reference) {
            return Ok(id.clone());
        }
        let mut matching = containers.by_id.keys().filter(|id| !reference.is_empty() && id.0.starts_with(reference));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Ok(id.clone()),
            (Some(_), Some(_)) => {
                Err(EngineError::Conflict(format!("several containers' ids begin with {reference:?}")))
            }
            (None, _) => Err(EngineError::NotFound { kind: "container", name: reference.to_owned() }),
        }
    }

    /// One container.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inspect(&self, id: &ContainerId) -> Result<ContainerInfo, EngineError> {
        let container = self.inner.container(id)?;
        Ok(ContainerInfo { config: container.config(), state: container.state() })
    }

    /// How long the parts of a container's last start took; `None` if this engine did not start it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn start_times(&self, id: &ContainerId) -> Result<Option<StartTimes>, EngineError> {
        Ok(lock(&self.inner.container(id)?.state).start_times)
    }

    /// What happens from now on.
    pub fn events(&self) -> EventReceiver {
        self.inner.events.listen()
    }

    /// A container's log. Following, it ends with the container's run or its removal.
    ///
    /// # Errors
    /// `NotFound`, or when the log cannot be read.
    pub fn logs(&self, id: &ContainerId, query: LogQuery) -> Result<LogReader, EngineError> {
        let container = self.inner.container(id)?;
        let directory = container.directory.clone();
        let ended = move || matches!(container.state().phase, Phase::Exited | Phase::Removing);
        Ok(LogReader::open(&directory, query, ended)?)
    }

    /// The directory of a container's log files, for those who read them by themselves.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn log_directory(&self, id: &ContainerId) -> Result<PathBuf, EngineError> {
        Ok(self.inner.container(id)?.directory.clone())
    }
}

impl Inner {
    pub(crate) fn container(&self, id: &ContainerId) -> Result<Arc<Container>, EngineError> {
        let found = lock(&self.containers).by_id.get(id).cloned();
        found.ok_or_else(|| EngineError::NotFound { kind: "container", name: id.to_string() })
    }

    fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).by_id.values().cloned().collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for link in lock(&self.links).values() {
            link.disconnect();
        }
    }
}
