//! One service: what a task of it runs and what surrounds it.

use super::deploy::{BlkioConfig, DeploySpec, DeviceRequest, RestartPolicy};
use super::mount::{MountSpec, TmpfsSpec, VolumesFrom};
use super::network::{NetworkAttachment, NetworkMode, PortSpec, Protocol};
use super::value::{ByteSize, Data, DataMap, Duration, NanoCpus};
use crate::scalar;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;

/// One service of a stack, merged, interpolated and resolved: nothing in it refers to the client's files or variables
/// (bind mounts' absolute source paths apart).
///
/// `None` always means "the file did not say": the image's or the engine's default applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSpec {
    /// The image reference; `<stack>-<service>` when only `build` was given. Empty only for a `provider` service.
    pub image: String,
    /// `os[/arch[/variant]]`.
    pub platform: Option<String>,
    /// When to ask the registry.
    pub pull_policy: Option<PullPolicy>,
    /// How to build the image, as data: canonical long form, paths absolute.
    pub build: Option<Data>,

    /// Replaces the image's CMD. `Some(vec![])` is "explicitly empty".
    pub command: Option<Vec<String>>,
    /// Replaces the image's ENTRYPOINT and drops its CMD. `Some(vec![])` is "explicitly empty".
    pub entrypoint: Option<Vec<String>>,
    /// Variables, env_file merged in and pass-through values resolved. `None` removes the image's variable.
    pub environment: BTreeMap<String, Option<String>>,
    /// Working directory in the container.
    pub working_dir: Option<String>,
    /// `uid[:gid]` or names of the image's `/etc/passwd` and `/etc/group`.
    pub user: Option<String>,
    /// Supplementary groups, names or numbers.
    pub group_add: Vec<String>,
    /// Fixed container name; excludes more than one replica.
    pub container_name: Option<String>,
    /// UTS host name.
    pub hostname: Option<String>,
    /// UTS (NIS) domain name.
    pub domainname: Option<String>,
    /// Container labels, label_file merged in.
    pub labels: BTreeMap<String, String>,
    /// OCI annotations.
    pub annotations: BTreeMap<String, String>,
    /// A terminal for the container.
    pub tty: bool,
    /// Keep standard input open.
    pub stdin_open: bool,
    /// A small init as process 1; `None` = engine default (none).
    pub init: Option<bool>,
    /// Whether `up` and `logs` show this service without being asked; default true.
    pub attach: Option<bool>,

    /// Published ports.
    pub ports: Vec<PortSpec>,
    /// Documented internal ports.
    pub expose: Vec<ExposeSpec>,
    /// Attachments by the stack's network key. Empty unless `network_mode` is [`NetworkMode::Stack`].
    pub networks: BTreeMap<String, NetworkAttachment>,
    /// Which network namespace the tasks live in.
    pub network_mode: NetworkMode,
    /// Deprecated service-wide MAC address; applies to the network with the highest priority.
    pub mac_address: Option<String>,
    /// Aliases for other services of the stack.
    pub links: Vec<LinkSpec>,
    /// `name[:alias]` of containers outside of the stack.
    pub external_links: Vec<LinkSpec>,
    /// Lines of `/etc/hosts`: host name to addresses (`host-gateway` is an address to be filled in by the node).
    pub extra_hosts: BTreeMap<String, Vec<String>>,
    /// Name servers behind the embedded one.
    pub dns: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Options of `resolv.conf`.
    pub dns_opt: Vec<String>,

    /// Mounts, in order.
    pub volumes: Vec<MountSpec>,
    /// Memory file systems of the `tmpfs` key.
    pub tmpfs: Vec<TmpfsSpec>,
    /// All mounts of other services or containers.
    pub volumes_from: Vec<VolumesFrom>,
    /// Granted secrets; a relative target is under `/run/secrets`.
    pub secrets: Vec<GrantSpec>,
    /// Granted configs.
    pub configs: Vec<GrantSpec>,
    /// Read-only root file system.
    pub read_only: bool,
    /// Size of `/dev/shm`; engine default 64 MiB.
    pub shm_size: Option<ByteSize>,
    /// Options of the root file system, e.g. `size`.
    pub storage_opt: BTreeMap<String, String>,

    /// What must have happened before this service starts, by service name. Links and shared namespaces included.
    pub depends_on: BTreeMap<String, Dependency>,
    /// How to tell that it works; `None` = the image's.
    pub healthcheck: Option<Healthcheck>,
    /// The `restart` key. Use [`ServiceSpec::restart_policy`], which knows that `deploy.restart_policy` wins.
    pub restart: Option<RestartPolicy>,
    /// Signal of a polite stop; `None` = the image's or SIGTERM.
    pub stop_signal: Option<String>,
    /// Time between the polite stop and the kill. See [`ServiceSpec::stop_timeout`].
    pub stop_grace_period: Option<Duration>,
    /// Containers run before the service starts.
    pub pre_start: Vec<HookSpec>,
    /// Commands run inside after the start.
    pub post_start: Vec<HookSpec>,
    /// Commands run inside before a stop.
    pub pre_stop: Vec<HookSpec>,

    /// The `scale` key. Use [`ServiceSpec::replicas`].
    pub scale: Option<u32>,
    /// The `deploy` section.
    pub deploy: DeploySpec,
    /// Profiles that turn it on; empty = always on.
    pub profiles: Vec<String>,

    /// Processor time limit. For all of these see [`ServiceSpec::resources`], which merges `deploy.resources`.
    pub cpus: Option<NanoCpus>,
    /// Relative processor weight (2..262144, default 1024).
    pub cpu_shares: Option<u64>,
    /// CFS quota in microseconds.
    pub cpu_quota: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// Real-time period in microseconds (cgroup v1 only).
    pub cpu_rt_period: Option<i64>,
    /// Real-time budget in microseconds (cgroup v1 only).
    pub cpu_rt_runtime: Option<i64>,
    /// Processors it may run on, as in `0-3,5`.
    pub cpuset: Option<String>,
    /// Number of processors (Windows only).
    pub cpu_count: Option<u64>,
    /// Percent of the processors (Windows only), in millionths of one percent.
    pub cpu_percent: Option<NanoCpus>,
    /// Memory limit.
    pub mem_limit: Option<ByteSize>,
    /// Memory kept for it under pressure.
    pub mem_reservation: Option<ByteSize>,
    /// Memory plus swap limit; -1 = unlimited, 0 = unset.
    pub memswap_limit: Option<ByteSize>,
    /// 0..100, cgroup v1 only.
    pub mem_swappiness: Option<u8>,
    /// Process limit; -1 = unlimited.
    pub pids_limit: Option<i64>,
    /// No effect on cgroup v2.
    pub oom_kill_disable: bool,
    /// -1000..1000.
    pub oom_score_adj: Option<i32>,
    /// Block input/output limits.
    pub blkio_config: Option<BlkioConfig>,
    /// Parent cgroup.
    pub cgroup_parent: Option<String>,
    /// Process limits by name.
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,

    /// Added capabilities, upper case without `CAP_`; `ALL` for all.
    pub cap_add: Vec<String>,
    /// Dropped capabilities, upper case without `CAP_`; `ALL` for all.
    pub cap_drop: Vec<String>,
    /// Everything allowed, all devices.
    pub privileged: bool,
    /// Parsed `security_opt`.
    pub security_opt: SecurityOptions,
    /// Device nodes.
    pub devices: Vec<DeviceSpec>,
    /// Rules such as `c 1:3 mr`.
    pub device_cgroup_rules: Vec<String>,
    /// Device requests of the `gpus` key.
    pub gpus: Vec<DeviceRequest>,
    /// Process namespace.
    pub pid: NamespaceMode,
    /// IPC namespace.
    pub ipc: NamespaceMode,
    /// UTS namespace.
    pub uts: NamespaceMode,
    /// Cgroup namespace.
    pub cgroup: NamespaceMode,
    /// User namespace: the host's unless it is `Private` (`auto`).
    pub userns_mode: NamespaceMode,

    /// Where output goes.
    pub logging: Option<LoggingSpec>,
    /// OCI runtime by name (kept, not used).
    pub runtime: Option<String>,
    /// Windows isolation (kept, not used).
    pub isolation: Option<String>,
    /// Mount the engine's socket.
    pub use_api_socket: bool,
    /// The service is managed by an external program, as data.
    pub provider: Option<Data>,
    /// The `develop` section, as data.
    pub develop: Option<Data>,
    /// Bound models by key, as data.
    pub models: DataMap,
    /// Windows credentials, as data.
    pub credential_spec: Option<Data>,
    /// The service's `x-*` keys.
    pub extensions: DataMap,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// Never; a missing image is an error.
    Never,
    /// When it is not there.
    #[default]
    Missing,
    /// Build it instead.
    Build,
    /// When the last fetch is longer ago than this (`daily`, `weekly`, `every_12h`, `refresh`).
    Every(Duration),
}

/// Ports that are documented, not published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposeSpec {
    /// First port.
    pub start: u16,
    /// Last port, the same as `start` for one port.
    pub end: u16,
    /// Transport.
    pub protocol: Protocol,
}

impl FromStr for ExposeSpec {
    type Err = String;

    /// Reads `3000`, `8000-8010` or `53/udp`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match scalar::protocol(protocol)?.as_str() {
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let (start, end) = scalar::port_range(ports).ok_or_else(|| {
            format!("invalid containerPort: `{text}`; write for example `3000`, `8000-8010` or `53/udp`")
        })?;
        Ok(Self { start, end, protocol })
    }
}

/// `service[:alias]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// The other service or container.
    pub target: String,
    /// The name it gets here; the target's own name when the file gave none.
    pub alias: String,
}

/// What a service waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// What must be true of the other service.
    pub condition: DependencyCondition,
    /// Restart this one when the other is restarted or recreated by a command.
    pub restart: bool,
    /// False = go on with a warning when the other is not there.
    pub required: bool,
}

impl Default for Dependency {
    fn default() -> Self {
        Self { condition: DependencyCondition::Started, restart: false, required: true }
    }
}

/// When a dependency counts as fulfilled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DependencyCondition {
    /// It runs.
    #[default]
    #[serde(rename = "service_started")]
    Started,
    /// Its health check passed.
    #[serde(rename = "service_healthy")]
    Healthy,
    /// It ended with exit code 0.
    #[serde(rename = "service_completed_successfully")]
    CompletedSuccessfully,
}

/// A health check; `None` fields come from the image's check or the engine's defaults (30 s, 30 s, 3, 0 s, 5 s).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// What to run.
    pub test: HealthTest,
    /// Time between two runs.
    pub interval: Option<Duration>,
    /// How long one run may take.
    pub timeout: Option<Duration>,
    /// Failures in a row until it is unhealthy.
    pub retries: Option<u32>,
    /// Time in which failures do not count.
    pub start_period: Option<Duration>,
    /// Time between two runs within the start period.
    pub start_interval: Option<Duration>,
}

/// The command of a health check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthTest {
    /// The image's.
    #[default]
    Inherit,
    /// None, also not the image's (`disable: true` or `NONE`).
    Disabled,
    /// Arguments to run as they are (`CMD`).
    Command(Vec<String>),
    /// A line for `/bin/sh -c` (`CMD-SHELL`).
    Shell(String),
}

/// A command around a service's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HookSpec {
    /// What to run; `None` = the image's command (pre_start only).
    pub command: Option<Vec<String>>,
    /// Image (pre_start only); `None` = the service's.
    pub image: Option<String>,
    /// User.
    pub user: Option<String>,
    /// All capabilities.
    pub privileged: bool,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Additional variables.
    pub environment: BTreeMap<String, Option<String>>,
    /// Once per replica instead of once (pre_start only).
    pub per_replica: bool,
}

/// The use of a secret or config by a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantSpec {
    /// Key in the stack's `secrets` or `configs`.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Owner; default 0.
    pub uid: Option<u32>,
    /// Group; default 0.
    pub gid: Option<u32>,
    /// Permission bits; default 0444.
    pub mode: Option<u32>,
}

/// One `ulimit`; -1 = unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The soft limit.
    pub soft: i64,
    /// The hard limit.
    pub hard: i64,
}

/// One device node or CDI device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Path on the node, or the CDI name `vendor/class=device`.
    pub source: String,
    /// Path in the container (the source when not said); meaningless for CDI.
    pub target: String,
    /// Some of `rwm`.
    pub permissions: String,
}

impl DeviceSpec {
    /// Whether the source is a CDI name instead of a path.
    pub fn is_cdi(&self) -> bool {
        !self.source.starts_with('/') && self.source.contains('=')
    }
}

/// Parsed `security_opt`; `None` = engine default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityOptions {
    /// `no-new-privileges`.
    pub no_new_privileges: Option<bool>,
    /// `seccomp=…`.
    pub seccomp: Option<SeccompProfile>,
    /// `apparmor=PROFILE`, `unconfined` included.
    pub apparmor: Option<String>,
    /// `label=…`, without the prefix.
    pub label: Vec<String>,
    /// `systempaths=unconfined`: nothing of `/proc` and `/sys` is masked.
    pub systempaths_unconfined: bool,
    /// What orch does not know, as written.
    pub other: Vec<String>,
}

/// Where the system call filter comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompProfile {
    /// No filter.
    Unconfined,
    /// The engine's own (`builtin`).
    Builtin,
    /// Docker's JSON profile, read by the client.
    Profile(String),
}

/// Whose namespace a container is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// The engine's default, which is a private one.
    #[default]
    Default,
    /// Explicitly its own.
    Private,
    /// Its own, which others may join (ipc).
    Shareable,
    /// None at all (ipc: no /dev/shm).
    None,
    /// The node's.
    Host,
    /// That of a service's task.
    Service(String),
    /// That of a container.
    Container(String),
}

/// Where output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggingSpec {
    /// Driver; `None` = the node's default.
    pub driver: Option<String>,
    /// Its options.
    pub options: BTreeMap<String, String>,
}
