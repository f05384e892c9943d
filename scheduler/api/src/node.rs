//! One node's containers, images and volumes: requests and views.
//!
//! The agent serves the routes, which are in [`crate::openapi`]. A container is named by its id, the beginning of one that only one has, or
//! its name.

use std::collections::BTreeMap;

use orch_spec::assignment::{Health, PublishedPort, TaskState};
use orch_spec::model::ServiceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for one container that belongs to no stack. The service's `image`, `command`, … say what; the keys about replicas and
/// dependencies are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerRequest {
    /// Name; chosen by the node when empty.
    pub name: String,
    /// What to run.
    #[schemars(with = "crate::openapi::Model")]
    pub spec: ServiceSpec,
    /// Remove it once it has exited.
    pub auto_remove: bool,
    /// Start it at once.
    pub start: bool,
    /// Initial window size (rows, columns) of its terminal.
    pub size: Option<(u16, u16)>,
    /// Attach standard input, output and error (`containers/run` only).
    pub attach_stdin: bool,
    /// Publish every port that the image and the service's `expose` name, each at a free port of the host.
    #[serde(default)]
    pub publish_all: bool,
}

/// Answer to the making of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Created {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// One container in a listing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerView {
    /// 64 hex digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// Image as the user wrote it.
    pub image: String,
    /// Image id.
    pub image_id: String,
    /// argv, joined with blanks.
    pub command: String,
    /// The stack, service, task and slot it is of, when it is of one.
    pub stack: String,
    /// See `stack`.
    pub service: String,
    /// See `stack`.
    pub task: String,
    /// See `stack`.
    pub slot: u32,
    /// It has a terminal.
    pub tty: bool,
    /// Where in its life it is.
    pub state: TaskState,
    /// See [`Health`].
    pub health: Health,
    /// Exit code of the last run.
    pub exit_code: Option<i32>,
    /// Ended by the kernel for want of memory.
    pub oom_killed: bool,
    /// Its init process on the host.
    pub pid: Option<i32>,
    /// Starts by policy so far.
    pub restarts: u32,
    /// Why it failed.
    pub error: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339, empty when it never was.
    pub started_at: String,
    /// See `started_at`.
    pub finished_at: String,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// Network → addresses.
    pub networks: BTreeMap<String, Addresses>,
    /// Networks that it could not be taken onto, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub network_errors: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Addresses on one network; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Addresses {
    /// IPv4.
    pub ipv4: String,
    /// IPv6.
    pub ipv6: String,
}

/// Asks for a command in a running container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecRequest {
    /// argv.
    pub command: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<String>,
    /// `user[:group]`; the container's when empty.
    pub user: String,
    /// Working directory; the container's when empty.
    pub workdir: String,
    /// Give it a terminal.
    pub tty: bool,
    /// Attach standard input.
    pub stdin: bool,
    /// All capabilities, no filter.
    pub privileged: bool,
    /// Do not wait for it.
    pub detach: bool,
    /// Window size (rows, columns).
    pub size: Option<(u16, u16)>,
}

/// Asks for an attachment to a running (or made, not yet started) container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachRequest {
    /// Forward standard input.
    pub stdin: bool,
    /// Window size (rows, columns).
    pub size: Option<(u16, u16)>,
    /// Start it once attached.
    pub start: bool,
}

/// How to stop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StopRequest {
    /// Seconds before SIGKILL; the container's own when absent; negative: for ever.
    #[serde(default)]
    pub timeout: Option<i64>,
    /// Signal by name or number; the container's own when absent.
    #[serde(default)]
    pub signal: Option<String>,
}

/// One line of a log, or a part of a very long one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Text, with its newline unless it is a part.
    pub log: String,
}

/// Which part of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogQuery {
    /// Go on as new lines come, until the container is gone.
    #[serde(default)]
    pub follow: bool,
    /// Only this many of the last lines.
    #[serde(default)]
    pub tail: Option<u64>,
    /// RFC 3339: not before.
    #[serde(default)]
    pub since: Option<String>,
    /// RFC 3339: not after.
    #[serde(default)]
    pub until: Option<String>,
    /// When a follower ends.
    #[serde(default)]
    pub until_end: FollowEnd,
}

/// When a follower of a log ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FollowEnd {
    /// With the container's next exit.
    #[default]
    Exit,
    /// When the container has ended for good: its policy does not start it again.
    End,
    /// When the container is gone.
    Removal,
}

/// What one container uses now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// 64 hex digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// Processor time so far in ns.
    pub cpu_ns: u64,
    /// When it was read, ns since the epoch.
    pub time_ns: u64,
    /// Bytes, page cache that can be dropped not counted.
    pub memory: u64,
    /// Bytes; 0 = the machine's.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received and sent, all interfaces but `lo`.
    pub net_rx: u64,
    /// See `net_rx`.
    pub net_tx: u64,
    /// Bytes read from and written to block devices.
    pub block_read: u64,
    /// See `block_read`.
    pub block_write: u64,
}

/// Processes of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Top {
    /// 64 hex digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// Column titles.
    pub titles: Vec<String>,
    /// One row a process.
    pub processes: Vec<Vec<String>>,
}

/// One image in a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageView {
    /// `sha256:…` of its config.
    pub id: String,
    /// Names.
    pub references: Vec<String>,
    /// Bytes unpacked, layers shared with others counted in full.
    pub size: u64,
    /// RFC 3339.
    pub created: String,
    /// Containers that use it.
    pub containers: u32,
}

/// One volume in a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "NodeVolume")]
pub struct VolumeView {
    /// Name.
    pub name: String,
    /// `local`.
    pub driver: String,
    /// Path on the node.
    pub mountpoint: String,
    /// RFC 3339.
    pub created_at: String,
    /// Nobody named it.
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Containers that mount it.
    pub used_by: Vec<String>,
}

/// What the machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Info {
    /// Version of orch.
    pub version: String,
    /// Node id.
    pub node: String,
    /// Host name.
    pub hostname: String,
    /// `uname -r`.
    pub kernel: String,
    /// `linux/amd64`.
    pub platform: String,
    /// `v2`, `v1`, `hybrid`.
    pub cgroup: String,
    /// Usable processors.
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Process id of the agent.
    pub agent_pid: u32,
    /// Where it keeps its state.
    pub data_dir: String,
    /// Containers by state.
    pub containers: BTreeMap<String, u32>,
    /// Images.
    pub images: u32,
}

/// Disk use in bytes: (total, of which nothing refers to).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskUse {
    /// Images, shared layers once.
    pub images: (u64, u64),
    /// Writable layers and logs.
    pub containers: (u64, u64),
    /// Volumes.
    pub volumes: (u64, u64),
}

/// What to clear away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PruneRequest {
    /// Stopped containers of no stack.
    pub containers: bool,
    /// Images without a name that nothing uses.
    pub images: bool,
    /// Named images that nothing uses, too.
    pub all_images: bool,
    /// Anonymous volumes that nothing uses.
    pub volumes: bool,
    /// Named volumes too.
    pub all_volumes: bool,
}

/// What was cleared away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pruned {
    /// Names or ids of what is gone.
    pub removed: Vec<String>,
    /// Bytes.
    pub reclaimed: u64,
}
