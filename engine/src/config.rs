//! What the caller of the engine asks for: one container, complete. Nothing here knows a service, a stack file or a network plan;
//! the agent lowers a task to these types. Everything is plain data: a config is written to the container's directory as JSON and
//! read back after a restart of the agent, so fields are only ever added, with a default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::runtime::IdRange;

/// A container's identity: 64 lower-case hex digits, as users of Docker expect. Random, never reused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub String);

impl ContainerId {
    /// The first twelve digits: what listings show and what the default hostname is.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One container, complete: the defaults of the image are already merged in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Identity; also the directory name.
    pub id: ContainerId,
    /// Name for people, unique on this host; `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
    pub name: String,
    /// Whose shim runs it: the stack's name, or the engine's own group for containers that belong to no stack.
    pub group: String,
    /// The image reference as the user wrote it, for display.
    pub image: String,
    /// The image's id (`sha256:…` of its config), which decides the layers.
    pub image_id: String,
    /// What to execute and as whom.
    pub process: ProcessConfig,
    /// Host name inside; empty means the short id.
    pub hostname: String,
    /// NIS domain name; empty means none.
    #[serde(default)]
    pub domainname: String,
    /// Which namespaces are its own.
    pub namespaces: Namespaces,
    /// Whose ids its users are.
    #[serde(default)]
    pub user_namespace: UserNamespace,
    /// Mounts beyond the runtime's defaults, in any order; the runtime sorts them by depth.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Secrets and configs: files on a tmpfs, bind-mounted read-only.
    #[serde(default)]
    pub files: Vec<InjectedFile>,
    /// Content of /etc/hosts, /etc/resolv.conf. `None`: the runtime writes a minimal one (hosts), or none (resolv.conf).
    #[serde(default)]
    pub etc_hosts: Option<String>,
    /// See `etc_hosts`.
    #[serde(default)]
    pub etc_resolv_conf: Option<String>,
    /// Limits, lowered to cgroup v1 or v2 files.
    #[serde(default)]
    pub resources: Resources,
    /// Device nodes to add.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Raw device cgroup rules, `c 1:3 rwm`.
    #[serde(default)]
    pub device_cgroup_rules: Vec<String>,
    /// Namespaced kernel parameters.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// All capabilities, all devices, no seccomp, no masked paths.
    #[serde(default)]
    pub privileged: bool,
    /// `security_opt: systempaths=unconfined` clears the masked and read-only paths.
    #[serde(default)]
    pub systempaths_unconfined: bool,
    /// Root file system mounted read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Size of /dev/shm in bytes; 0 means 64 MiB.
    #[serde(default)]
    pub shm_size: u64,
    /// Run a reaper as PID 1 in front of the process.
    #[serde(default)]
    pub init: bool,
    /// Signal that asks it to stop, by number. SIGTERM (15) unless image or user say otherwise.
    pub stop_signal: i32,
    /// Seconds between that signal and SIGKILL. Negative: wait for ever.
    pub stop_timeout: i64,
    /// Where its output goes.
    #[serde(default)]
    pub logging: Logging,
    /// Labels: what the caller finds its containers by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// OCI annotations, kept and shown.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Remove the container once it has exited.
    #[serde(default)]
    pub auto_remove: bool,
    /// Its end is also its removal (`run --rm`, carried out by the caller): neither its configuration nor what it writes to its own layer
    /// nor its end need survive a power cut.
    #[serde(default)]
    pub ephemeral: bool,
    /// Opaque to the engine: whatever the caller must find again after a restart (restart policy, network request, health check).
    #[serde(default)]
    pub caller: serde_json::Value,
}

impl ContainerConfig {
    /// A container that runs a command and has nothing else: no image, no network, namespaces of its own, no limits.
    #[must_use]
    pub fn new(id: ContainerId, name: impl Into<String>, args: &[&str]) -> Self {
        Self {
            id,
            name: name.into(),
            group: String::new(),
            image: String::new(),
            image_id: String::new(),
            process: ProcessConfig { args: args.iter().map(|&word| word.to_owned()).collect(), ..Default::default() },
            hostname: String::new(),
            domainname: String::new(),
            namespaces: Namespaces {
                network: NetworkNs::None,
                pid: Share::Private,
                ipc: Share::Private,
                uts: Share::Private,
                cgroup: Share::Private,
            },
            user_namespace: UserNamespace::Host,
            mounts: Vec::new(),
            files: Vec::new(),
            etc_hosts: None,
            etc_resolv_conf: None,
            resources: Resources::default(),
            devices: Vec::new(),
            device_cgroup_rules: Vec::new(),
            sysctls: BTreeMap::new(),
            privileged: false,
            systempaths_unconfined: false,
            read_only: false,
            shm_size: 0,
            init: false,
            stop_signal: 15,
            stop_timeout: 10,
            logging: Logging::default(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            auto_remove: false,
            ephemeral: false,
            caller: serde_json::Value::Null,
        }
    }

    /// Whether a power cut must leave what is known of it.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !self.auto_remove && !self.ephemeral
    }
}

/// What to execute, where and as whom.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessConfig {
    /// argv; the first is looked up in the container's PATH when it has no slash.
    pub args: Vec<String>,
    /// `KEY=value`, already merged, last wins.
    pub env: Vec<String>,
    /// Working directory inside; created when missing. Empty means `/`.
    #[serde(default)]
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved inside the image. Empty means root.
    #[serde(default)]
    pub user: String,
    /// Supplementary groups, names or numbers.
    #[serde(default)]
    pub group_add: Vec<String>,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Keep stdin open.
    #[serde(default)]
    pub stdin_open: bool,
    /// Close stdin when the first attached client goes away (`run -i`).
    #[serde(default)]
    pub stdin_once: bool,
    /// Capabilities added to and dropped from the default fourteen; names with or without `CAP_`, or `ALL`.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// See `cap_add`.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// Set no_new_privs.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// System-call filter.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// Resource limits by their short name (`nofile`): soft, hard; −1 is unlimited.
    #[serde(default)]
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// −1000..1000.
    #[serde(default)]
    pub oom_score_adj: i32,
}

/// System-call filter of a process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// The default profile.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// A profile in Docker's JSON schema, its text.
    Profile(String),
}

/// Which namespaces a container shares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network.
    pub network: NetworkNs,
    /// Processes.
    pub pid: Share,
    /// System V IPC and POSIX queues, with /dev/shm.
    pub ipc: Share,
    /// Host name.
    pub uts: Share,
    /// Control groups' view.
    pub cgroup: Share,
}

/// Where a container's network comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkNs {
    /// A new one with only `lo`.
    None,
    /// The host's.
    Host,
    /// A namespace that netd made: a path to open (`/run/…/netns/…`).
    Path(PathBuf),
}

/// How one namespace is shared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// Its own.
    #[default]
    Private,
    /// The host's.
    Host,
    /// That of another container of this engine, which must be running.
    Container(ContainerId),
    /// IPC only: no /dev/shm, no queues.
    None,
}

/// Whose ids the users of a container are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserNamespace {
    /// The host's: root inside is root outside, held by capabilities, filter, masks and device rules.
    #[default]
    Host,
    /// Its own, with ids that the engine allots when it makes the container, and no other container has.
    Auto,
    /// Its own, with these ids: what the engine makes of `Auto`.
    Own(IdRange),
}

impl UserNamespace {
    /// The ids allotted.
    #[must_use]
    pub fn ids(self) -> Option<IdRange> {
        if let Self::Own(ids) = self { Some(ids) } else { None }
    }
}

/// A mount beyond the defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside.
    pub target: String,
    /// What is mounted.
    pub kind: MountKind,
    /// Read-only, recursively for binds.
    #[serde(default)]
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A path of the host.
    Bind {
        /// Host path.
        source: PathBuf,
        /// Make the directory when it is missing.
        create_host_path: bool,
        /// `rprivate` (default), `private`, `rshared`, `shared`, `rslave`, `slave`.
        #[serde(default)]
        propagation: String,
        /// Take the mounts below the source along.
        #[serde(default = "yes")]
        recursive: bool,
    },
    /// A named or anonymous volume of this engine; copied up from the image when empty.
    Volume {
        /// The volume's name.
        name: String,
        /// Do not copy the image's content into an empty volume.
        #[serde(default)]
        nocopy: bool,
        /// A path below the volume's root.
        #[serde(default)]
        subpath: String,
    },
    /// A tmpfs; options as of mount(8): `size=…,mode=…,uid=…,gid=…,exec`.
    Tmpfs {
        /// Comma-separated options.
        options: String,
    },
}

fn yes() -> bool {
    true
}

/// A secret or config: content held by the caller, shown inside as a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InjectedFile {
    /// Absolute path inside.
    pub target: String,
    /// The bytes. Never written to disk by the engine: they live on a tmpfs; the stored config keeps only `digest`.
    #[serde(skip)]
    pub content: Vec<u8>,
    /// sha256 of the content in hex, so that a change is seen.
    pub digest: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Secrets may be read by the container only; configs are shown in `inspect`.
    pub secret: bool,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Path on the host.
    pub source: String,
    /// Path inside.
    pub target: String,
    /// Some of `rwm`.
    pub permissions: String,
}

/// Limits. `None` means the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time in billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// CFS period in µs.
    pub cpu_period: Option<u64>,
    /// CFS quota in µs, −1 unlimited.
    pub cpu_quota: Option<i64>,
    /// Relative weight in Docker's shares, 2..262144.
    pub cpu_shares: Option<u64>,
    /// `0-3,5`.
    pub cpuset: Option<String>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Memory plus swap in bytes, −1 unlimited. `None` with a memory limit: twice the memory.
    pub memory_swap: Option<i64>,
    /// Bytes protected (v2 memory.low) or the soft limit (v1).
    pub memory_reservation: Option<u64>,
    /// 0..100, v1 only.
    pub memory_swappiness: Option<u64>,
    /// v1 only.
    pub oom_kill_disable: bool,
    /// Processes; −1 unlimited.
    pub pids: Option<i64>,
    /// Relative block weight 10..1000.
    pub blkio_weight: Option<u16>,
    /// Raw (device path, rate) limits, bytes or operations a second.
    pub blkio: Vec<BlkioLimit>,
    /// Parent group below the engine's own root; cleaned, never above it.
    pub cgroup_parent: Option<String>,
}

/// One block device's throttle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlkioLimit {
    /// Path of a block device.
    pub path: String,
    /// Which counter: `read_bps`, `write_bps`, `read_iops`, `write_iops`, `weight`.
    pub kind: String,
    /// The rate or weight.
    pub value: u64,
}

/// The log of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logging {
    /// Bytes after which a file is rotated; 0 = never.
    pub max_size: u64,
    /// Files kept, at least 1.
    pub max_file: u32,
    /// Keep nothing.
    pub none: bool,
}

impl Default for Logging {
    /// 10 MiB × 3: a log never fills the disk by default (Docker's does).
    fn default() -> Self {
        Self { max_size: 10 << 20, max_file: 3, none: false }
    }
}
