//! Requests and answers of the control plane, and the link between it and one node.
//!
//! Everything here is JSON under `/v1` (the routes are in [`crate::openapi`]), but [`NodeLink`], which is how the agent of the same
//! process is attached.
//!
//! An error is an [`ErrorBody`](crate::error::ErrorBody) whose `code` decides the status.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use orch_spec::assignment::{Assignment, DesiredTask, NodeReport, PortAssignment, TaskStatus};
use orch_spec::model::{ServiceSpec, StackSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

/// The two ends of one node's conversation with the control plane, within one process. Dropping it disconnects the node.
#[derive(Debug)]
pub struct NodeLink {
    /// What the node shall be running; the newest one only, so a slow reader skips what is outdated.
    pub assignments: watch::Receiver<Arc<Assignment>>,
    /// What the node has to say. Bounded: a sender that is faster than the log waits.
    pub reports: mpsc::Sender<NodeReport>,
}

/// Finds out which images a host holds, so that the control plane plans with image ids and never with tags.
pub trait ImageResolver: Send + Sync + 'static {
    /// Each reference with the id (`sha256:…`) of the image it names now, or `None` when there is none. Every reference that was
    /// asked for is a key of the answer.
    fn resolve<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, BTreeMap<String, Option<String>>>;
}

/// `up`, `create` and `plan`: make a stack what its file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyRequest {
    /// The stack; its name must be the one in the path.
    #[schemars(with = "crate::openapi::Model")]
    pub spec: Arc<StackSpec>,
    /// Absolute paths of the files it was read from, for `ls`.
    #[serde(default)]
    pub files: Vec<String>,
    /// How.
    #[serde(default)]
    pub options: ApplyOptions,
}

/// The flags of `up` that the plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ApplyOptions {
    /// Only these services and what they depend on; empty = all.
    pub services: Vec<String>,
    /// With `services`: leave out what they depend on.
    pub no_deps: bool,
    /// New containers for the chosen services even where nothing changed.
    pub force_recreate: bool,
    /// Old containers stay even where something changed.
    pub no_recreate: bool,
    /// `force_recreate` for what the chosen services depend on, too.
    pub always_recreate_deps: bool,
    /// Anonymous volumes start empty instead of being taken over from the slot's former container.
    pub renew_anonymous_volumes: bool,
    /// Remove tasks of services that the file does not have any more.
    pub remove_orphans: bool,
    /// Create, do not start (`create`, `up --no-start`).
    pub no_start: bool,
    /// Numbers of replicas that override the file's.
    pub scale: BTreeMap<String, u32>,
    /// Grace in seconds for containers that must stop; negative = for ever; `None` = what the service says.
    pub timeout: Option<i64>,
}

/// What a change did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyResponse {
    /// Index of the state that has the change in it (for `plan`: that it was planned against).
    pub index: u64,
    /// One operation for each act on the world.
    pub plan: PlanView,
    /// What the user should know though it stops nothing: orphans, optional dependencies that are missing.
    pub warnings: Vec<String>,
}

/// A plan as data; [`OperationView`]'s `Display` is its line for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlanView {
    /// The operations; each comes after all that it waits for.
    pub operations: Vec<OperationView>,
    /// How many there are; 0 = nothing to do.
    pub changes: usize,
}

/// One act on one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OperationView {
    /// Number within the plan, from 1.
    pub id: u32,
    /// `create`, `recreate`, `start`, `stop`, `restart`, `pause`, `unpause`, `kill`, `remove`.
    pub action: String,
    /// Kind and name: `container web-app-1`, `network web_default`, `volume web_data`.
    pub resource: String,
    /// Why; empty when the action says it all.
    pub cause: String,
    /// The service it is part of, for containers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// The task it makes or changes, for containers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub task: String,
    /// Operations that come first.
    pub depends_on: Vec<u32>,
}

impl std::fmt::Display for OperationView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.action, self.resource)?;
        if self.cause.is_empty() { Ok(()) } else { write!(f, ": {}", self.cause) }
    }
}

/// `down`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DownRequest {
    /// Named volumes that the stack made, and anonymous ones, go too.
    pub volumes: bool,
    /// Only these services (networks and volumes stay); empty = everything.
    pub services: Vec<String>,
    /// Grace in seconds; negative = for ever; `None` = what the service says.
    pub timeout: Option<i64>,
    /// Also tasks of services that the file did not have any more. Without it they stay, and so do the networks they use.
    pub remove_orphans: bool,
}

/// What `act` does to tasks that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Start what is created, stopped or has exited, in the order of dependencies.
    Start,
    /// Stop, in reverse order.
    Stop,
    /// Stop and start once each, without applying another configuration; dependents with `restart: true` follow.
    Restart,
    /// Freeze.
    Pause,
    /// Thaw.
    Unpause,
    /// End at once with `signal` (default KILL), without grace and without order. For a signal that shall not end it
    /// (`kill -s HUP`), ask the node itself.
    Kill,
    /// Remove what does not run; with a stop first where `stop` says so.
    Remove,
}

/// `start`, `stop`, `restart`, `pause`, `unpause`, `kill`, `rm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActRequest {
    /// Services; empty = all of the stack.
    #[serde(default)]
    pub services: Vec<String>,
    /// Single tasks instead of services, by id.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// What to do.
    pub action: Action,
    /// Grace in seconds; negative = for ever.
    #[serde(default)]
    pub timeout: Option<i64>,
    /// Signal instead of the service's stop signal.
    #[serde(default)]
    pub signal: Option<String>,
    /// `restart`, `start`: leave dependents and dependencies alone.
    #[serde(default)]
    pub no_deps: bool,
    /// `remove`: anonymous volumes too.
    #[serde(default)]
    pub remove_volumes: bool,
    /// `remove`: stop first what runs (`rm -s`); otherwise what runs is skipped.
    #[serde(default)]
    pub stop: bool,
}

/// `scale`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScaleRequest {
    /// Service → number of replicas.
    pub services: BTreeMap<String, u32>,
    /// Do not start what they depend on.
    #[serde(default)]
    pub no_deps: bool,
    /// Grace in seconds for those that go.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// `run`: a one-off task beside a service's replicas. What it depends on is brought up in the same change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunRequest {
    /// The stack as its file says; `None` = as it was applied last.
    #[serde(default)]
    #[schemars(with = "Option<crate::openapi::Model>")]
    pub stack: Option<Arc<StackSpec>>,
    /// Absolute paths of the files it was read from.
    #[serde(default)]
    pub files: Vec<String>,
    /// The service it is made from.
    pub service: String,
    /// The service with the overrides of the command line in it (no ports unless asked for).
    #[schemars(with = "crate::openapi::Model")]
    pub spec: Arc<ServiceSpec>,
    /// Name of the container; `None` = `<stack>-<service>-run-<digits>`.
    #[serde(default)]
    pub container_name: Option<String>,
    /// Start as soon as what it depends on allows; `false` = create only, so that the caller can attach and then ask for `running`.
    #[serde(default)]
    pub start: bool,
    /// Neither bring up nor wait for what it depends on.
    #[serde(default)]
    pub no_deps: bool,
    /// It answers to the service's names in DNS.
    #[serde(default)]
    pub use_aliases: bool,
    /// Remove tasks of services that the file does not have any more.
    #[serde(default)]
    pub remove_orphans: bool,
}

/// The task that `run` made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunResponse {
    /// Index of the state that has it.
    pub index: u64,
    /// The task.
    pub task: String,
    /// Its container's name.
    pub container_name: String,
    /// What else was done for it.
    pub plan: PlanView,
    /// See [`ApplyResponse::warnings`].
    pub warnings: Vec<String>,
}

/// Sets what one task shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DesiredRequest {
    /// What.
    pub desired: DesiredTask,
    /// Grace in seconds for a stop.
    #[serde(default)]
    pub timeout: Option<i64>,
    /// Signal for a stop.
    #[serde(default)]
    pub signal: Option<String>,
    /// With `removed`: its anonymous volumes too.
    #[serde(default)]
    pub remove_volumes: bool,
}

/// The answer to a change that has nothing else to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexResponse {
    /// Index of the state that has it.
    pub index: u64,
}

/// A stack in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StackSummary {
    /// Its name.
    pub name: String,
    /// `running(4)`, `exited(1), running(3)`.
    pub status: String,
    /// Number of its services.
    pub services: usize,
    /// Absolute paths of its files.
    pub files: Vec<String>,
    /// It is on its way out.
    pub removing: bool,
}

/// A stack with all that belongs to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StackView {
    /// Index of the state it was read from.
    pub index: u64,
    /// Its name.
    pub name: String,
    /// `running(4)`, `exited(1), running(3)`.
    pub status: String,
    /// Absolute paths of its files.
    pub files: Vec<String>,
    /// Its services by name, orphans among them.
    pub services: Vec<ServiceView>,
    /// Its tasks by service and slot, one-offs last.
    pub tasks: Vec<TaskView>,
    /// The networks that it uses.
    pub networks: Vec<NetworkView>,
    /// The named volumes that it uses.
    pub volumes: Vec<VolumeView>,
    /// `down` is under way.
    pub removing: bool,
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    /// `<stack>_<name>`.
    pub id: String,
    /// Its key in the file.
    pub name: String,
    /// Its stack.
    pub stack: String,
    /// `replicated` or `global`.
    pub mode: String,
    /// Replicas it shall have.
    pub desired: u32,
    /// Tasks that run, paused ones included.
    pub running: u32,
    /// Tasks that run and are healthy, or run and have no health check.
    pub ready: u32,
    /// Image reference of the file.
    pub image: String,
    /// Published ports as the file says them.
    pub ports: Vec<PortAssignment>,
    /// The word for how far a rolling update is, or how the last one ended; empty when there was none.
    pub update_status: String,
    /// The same in full.
    #[serde(default)]
    pub update: Option<crate::service::UpdateView>,
    /// The file has it no more.
    pub orphan: bool,
    /// It has a health check of its own in the file.
    pub health_check: bool,
    /// Another service waits for it to complete: exit 0 is its success.
    pub one_shot: bool,
    /// `restart` of the file: `no`, `always`, `on-failure:3`, `unless-stopped`.
    pub restart: String,
    /// Digest of what would force new containers.
    pub hash: String,
    /// Services it depends on.
    pub depends_on: Vec<String>,
}

/// A task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// Its stack.
    pub stack: String,
    /// Its service.
    pub service: String,
    /// Replica number from 1; 0 = one-off.
    pub slot: u32,
    /// Made by `run`.
    pub one_off: bool,
    /// The node it is on; empty while it has none.
    pub node: String,
    /// Name of its container.
    pub container_name: String,
    /// Image as the file names it.
    pub image: String,
    /// Image it was planned with.
    pub image_id: String,
    /// Digest of the specification it was made from.
    pub spec_hash: String,
    /// It was made from the service's present specification.
    pub up_to_date: bool,
    /// What it shall be.
    pub desired: DesiredTask,
    /// It was asked to be started once more, and its node has not done it yet: how it is now is past.
    #[serde(default)]
    pub again: bool,
    /// What its node says of it. While it waits: state `pending`.
    pub status: TaskStatus,
    /// Everything it waits for; empty when it waits for nothing.
    pub waiting_on: Vec<WaitView>,
    /// Why it never will start: a dependency that failed for good. Empty otherwise.
    pub blocked: String,
    /// Its addresses by the network's key in the file.
    pub networks: BTreeMap<String, EndpointView>,
    /// Ports it asks for; what is really published stands in `status.ports`.
    pub ports: Vec<PortAssignment>,
    /// When it was made, in milliseconds since the epoch.
    pub created_at: u64,
}

/// One thing that a task waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitView {
    /// `dependency` (to start, become healthy, complete), `former` (the slot's old container to be gone), `dependent` (a dependent to
    /// be down first), `namespace` (the task whose namespace it joins), `network` (to be made anew), `node` (a node to run on).
    pub kind: String,
    /// The task, container, service or node it waits for.
    pub on: String,
    /// The sentence for people: `service db to become healthy (db-1 is starting)`.
    pub text: String,
}

/// A task's place on one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointView {
    /// The network's full name.
    pub network: String,
    /// Its address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address, where the network has IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

/// How far a stack can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reachability {
    /// Hostnames of nodes that answer and have not heard yet where callers are to be led.
    pub behind: Vec<String>,
}

/// One line of `GET /v1/stacks/{name}/watch`. The first is always `stack`, whole, or `removed` when there is no such stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StackChange {
    /// The stack as it is, whole. Also sent when its services or files changed.
    Stack {
        /// The stack.
        stack: Box<StackView>,
    },
    /// A task is new or has changed.
    Task {
        /// Index of the state.
        index: u64,
        /// The task.
        task: Box<TaskView>,
    },
    /// A task is gone.
    TaskRemoved {
        /// Index of the state.
        index: u64,
        /// The task's id.
        id: String,
        /// Its container's name.
        container_name: String,
    },
    /// A network is new or has changed.
    Network {
        /// Index of the state.
        index: u64,
        /// The network.
        network: NetworkView,
    },
    /// A network is gone.
    NetworkRemoved {
        /// Index of the state.
        index: u64,
        /// Its full name.
        name: String,
        /// Whether the network exists still, and only has nothing to do with the stack any more.
        #[serde(default)]
        kept: bool,
    },
    /// A volume is new or has changed.
    Volume {
        /// Index of the state.
        index: u64,
        /// The volume.
        volume: VolumeView,
    },
    /// A volume is gone.
    VolumeRemoved {
        /// Index of the state.
        index: u64,
        /// Its full name.
        name: String,
        /// Whether the volume exists still, and only has nothing to do with the stack any more.
        #[serde(default)]
        kept: bool,
    },
    /// The stack is gone; the stream ends here.
    Removed {
        /// Index of the state.
        index: u64,
    },
}

/// Something that happened, for `events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Milliseconds since the epoch.
    pub time: u64,
    /// Position in the log; several events may share one.
    pub index: u64,
    /// `stack`, `service`, `container`, `network`, `volume`, `node`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `create`, `start`, `stop`, `die`, `oom`, `health_status`, `destroy`, `apply` …
    pub action: String,
    /// Task id, network name and the like.
    pub id: String,
    /// The name people use.
    pub name: String,
    /// Everything else: `stack`, `service`, `exit_code`, `health` …
    pub attributes: BTreeMap<String, String>,
}

/// A network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkView {
    /// Full name.
    pub name: String,
    /// Its stack; empty when made by hand.
    pub stack: String,
    /// Its key in the file.
    pub key: String,
    /// `bridge`.
    pub driver: String,
    /// IPv4 subnet in CIDR form.
    pub subnet4: Option<String>,
    /// The bridge's address in it.
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6 subnet in CIDR form.
    pub subnet6: Option<String>,
    /// The bridge's address in it.
    pub gateway6: Option<Ipv6Addr>,
    /// No way out.
    pub internal: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// It is on its way out.
    pub removing: bool,
    /// Who has an address on it: container name → address.
    pub endpoints: BTreeMap<String, EndpointView>,
    /// When it was made, in milliseconds since the epoch.
    pub created_at: u64,
}

/// A network to make by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NetworkCreate {
    /// Full name.
    pub name: String,
    /// `bridge`, or empty for it: each node's containers for themselves. `overlay`: reaches over to other nodes, for containers of stacks.
    pub driver: String,
    /// IPv4 subnet in CIDR form; `None` = from the pool.
    pub subnet4: Option<String>,
    /// Part of it that addresses are taken from.
    pub ip_range4: Option<String>,
    /// The bridge's address; `None` = the first of the subnet.
    pub gateway4: Option<Ipv4Addr>,
    /// Has IPv6.
    pub enable_ipv6: bool,
    /// IPv6 subnet in CIDR form; `None` = from the pool, when IPv6 is on.
    pub subnet6: Option<String>,
    /// The bridge's address in it.
    pub gateway6: Option<Ipv6Addr>,
    /// No way out.
    pub internal: bool,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Asks for an address for a container that belongs to no stack. Repeating it with the same holder gives the same address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AddressRequest {
    /// Who holds it: the container's id.
    pub holder: String,
    /// The container's name, for listings.
    pub name: String,
    /// Names it answers to in DNS on this network.
    pub aliases: Vec<String>,
    /// A certain address.
    pub ipv4: Option<Ipv4Addr>,
    /// A certain address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC address, where it is not the one that follows from the address.
    pub mac: Option<String>,
}

/// Takes a container onto a further network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NetworkConnect {
    /// Full name of the network.
    pub network: String,
    /// Names it answers to in DNS there, beside its own.
    pub aliases: Vec<String>,
    /// A certain address.
    pub ipv4: Option<Ipv4Addr>,
    /// A certain address.
    pub ipv6: Option<Ipv6Addr>,
}

/// The address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressResponse {
    /// Index of the state that has it; the assignment of this version knows the network.
    pub index: u64,
    /// The address.
    pub ipv4: Option<Ipv4Addr>,
    /// The address, where the network has IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

/// A named volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeView {
    /// Full name.
    pub name: String,
    /// Its stack; empty when made by hand.
    pub stack: String,
    /// Its key in the file.
    pub key: String,
    /// `local`.
    pub driver: String,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// It is on its way out.
    pub removing: bool,
    /// Why a node could not remove it; empty when nothing is wrong.
    pub error: String,
    /// Containers that use it.
    pub users: Vec<String>,
    /// When it was made, in milliseconds since the epoch.
    pub created_at: u64,
}

/// A volume to make by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VolumeCreate {
    /// Full name.
    pub name: String,
    /// `local`, or empty for it.
    pub driver: String,
    /// Driver options.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    /// Its id.
    pub id: String,
    /// Its host name.
    pub hostname: String,
    /// Where other nodes reach it; empty on one host.
    pub address: String,
    /// `manager` or `worker`.
    pub role: String,
    /// It leads.
    pub leader: bool,
    /// `ready`, `suspect`, `down`.
    pub state: String,
    /// `active`, `pause`, `drain`.
    pub availability: String,
    /// Version of its orch.
    pub version: String,
    /// `linux/amd64` and the like.
    pub platform: String,
    /// Usable processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Tasks placed on it that are not gone.
    pub tasks: u32,
    /// Labels that people gave it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Labels that its own configuration gives it.
    #[serde(default)]
    pub engine_labels: BTreeMap<String, String>,
    /// Processor time that its tasks are promised, in billionths of a processor.
    #[serde(default)]
    pub reserved_cpus: u64,
    /// Memory that its tasks are promised, bytes.
    #[serde(default)]
    pub reserved_memory: u64,
    /// Since when its state is what it is, milliseconds since the epoch.
    #[serde(default)]
    pub since: u64,
    /// To which nodes packets of its containers do not get through as they should, by host name, and why.
    #[serde(default)]
    pub underlay: BTreeMap<String, String>,
    /// Services whose tasks have kept failing on it lately (`stack/service`): others get them first.
    #[serde(default)]
    pub faulty: Vec<String>,
}
