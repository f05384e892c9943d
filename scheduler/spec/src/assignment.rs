//! What a node is told and what it says back: the seam between the control plane and the agents.
//!
//! The control plane derives an [`Assignment`] from its replicated state and pushes it, whole, whenever it changed; the agent makes the
//! host match it and answers with [`TaskStatus`] deltas. Both sides are level-triggered: an assignment is complete, so a lost one does no
//! harm, and a status repeats what is, so a repeated one changes nothing. The types live in this crate because `core` makes them and the
//! agent consumes them, and neither may know the other.

mod cluster;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use cluster::{
    Backend, MeshAssignment, MeshPeer, MeshPortAssignment, OverlayAssignment, OverlayPeer, RemoteEndpoint,
    ServiceAssignment,
};

use crate::model::{ContentBytes, ServiceSpec};
use crate::short_text::ShortText;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident($text:ident)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub $text);

        impl $name {
            /// The text of the id.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

text_id!(
    /// A node, for its whole life; independent of its address and host name.
    NodeId(String)
);
text_id!(
    /// A task: one placement of one slot of a service. 25 lower-case base-32 digits, never reused.
    TaskId(ShortText)
);
text_id!(
    /// A network by its full name (`<stack>_<key>`, or the name the file gives).
    NetworkName(String)
);

/// Everything one node shall be running, complete.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Index of the state it was derived from; grows within one connection. The first one after a connect always counts.
    pub version: u64,
    /// The cluster that speaks. A container that carries another cluster's id is never touched, also when no task of this
    /// assignment is it: a manager that lost its log comes back with a new id, and must not kill what it has forgotten.
    #[serde(default)]
    pub cluster: String,
    /// Networks that must exist here (those with a task here, and those created by hand).
    pub networks: Vec<NetworkAssignment>,
    /// Networks to delete here; the agent answers [`NodeReport::NetworksRemoved`] for each, also for one it never had.
    #[serde(default)]
    pub removed_networks: Vec<NetworkName>,
    /// Named volumes that must exist here.
    pub volumes: Vec<VolumeAssignment>,
    /// Volumes to delete here once no task uses them; answered by [`NodeReport::VolumesRemoved`], also for one it never had.
    pub removed_volumes: Vec<String>,
    /// Tasks, in the order in which they were made.
    pub tasks: Vec<TaskAssignment>,
    /// Name → addresses for the embedded DNS, per network.
    pub names: Vec<NameAssignment>,
    /// Services on this node's networks, for load balancing. Empty on a host that is alone.
    #[serde(default)]
    pub services: Vec<ServiceAssignment>,
    /// Ports that every node publishes. Empty on a host that is alone.
    #[serde(default)]
    pub mesh_ports: Vec<MeshPortAssignment>,
    /// How such ports reach other nodes; `None` on a host that is alone.
    #[serde(default)]
    pub mesh: Option<MeshAssignment>,
    /// Index of the last change of `names`, `services`, `mesh_ports` and of the networks' remote endpoints on this node; 0 on a host that
    /// is alone. The agent answers [`NodeReport::Applied`] with it as soon as name server, load balancer and forwarding have it: a task is
    /// stopped only after every node has let go of it.
    #[serde(default)]
    pub endpoints_version: u64,
}

/// One network on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkAssignment {
    /// Full name; the key.
    pub name: NetworkName,
    /// The stack it belongs to; empty for one created by hand.
    pub stack: String,
    /// The key in the file (`default`, `front`), which is its name in DNS.
    pub key: String,
    /// IPv4 subnet in CIDR form, when the network has IPv4.
    pub subnet4: Option<String>,
    /// The bridge's address in it.
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6 subnet in CIDR form, when the network has IPv6.
    pub subnet6: Option<String>,
    /// The bridge's address in it.
    pub gateway6: Option<Ipv6Addr>,
    /// No way out.
    pub internal: bool,
    /// Containers on it reach each other (Docker's enable_icc).
    pub icc: bool,
    /// Link MTU in bytes; 0 = the egress link's, at most 1500.
    pub mtu: u32,
    /// Driver options as the file gives them.
    #[serde(default)]
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How it reaches over to other nodes; `None` = it ends at this host.
    #[serde(default)]
    pub overlay: Option<OverlayAssignment>,
}

/// One named volume on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeAssignment {
    /// Full name; the key.
    pub name: String,
    /// The stack it belongs to; empty for one created by hand.
    pub stack: String,
    /// Must exist already; never made or deleted.
    pub external: bool,
    /// `local` only for now.
    pub driver: String,
    /// `type`, `o`, `device` of the local driver.
    #[serde(default)]
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What a task shall be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DesiredTask {
    /// Exist, not started (`create`, or waiting for an attach before the start).
    Created,
    /// Run; restarted by its policy.
    #[default]
    Running,
    /// Run, frozen.
    Paused,
    /// Exist, stopped by request; its restart policy rests.
    Stopped,
    /// Be gone, stopped with grace first. Answered by the state [`TaskState::Removed`], also for a task the node never had.
    Removed,
}

/// One task on a node: everything the agent needs, all names resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskAssignment {
    /// Identity.
    pub id: TaskId,
    /// Stack and service it belongs to.
    pub stack: String,
    /// See `stack`.
    pub service: String,
    /// Replica number from 1; 0 for a one-off (`orch run`).
    pub slot: u32,
    /// The container's name: `<stack>-<service>-<slot>`, or the file's `container_name`.
    pub container_name: String,
    /// The service as the file says it.
    pub spec: Arc<ServiceSpec>,
    /// Digest of what would force a new container.
    pub spec_hash: String,
    /// Image id it was planned with (`sha256:…`); empty when it was not known.
    pub image_id: String,
    /// What it shall be now.
    pub desired: DesiredTask,
    /// Grows by one for every `restart`: an agent that ran an older generation stops and starts the container once.
    pub restart_generation: u64,
    /// Overrides of the grace period (seconds, negative = for ever) and stop signal for this stop.
    pub stop_timeout: Option<i64>,
    /// See `stop_timeout`.
    pub stop_signal: Option<String>,
    /// Remove its anonymous volumes with it.
    pub remove_volumes: bool,
    /// Where its network comes from.
    pub network: TaskNetwork,
    /// Task whose PID namespace it joins (`pid: service:x`), when not private or host.
    pub pid_of: Option<TaskId>,
    /// Task whose IPC namespace it joins.
    pub ipc_of: Option<TaskId>,
    /// Named volumes by the key in the file → full name.
    pub volumes: BTreeMap<String, String>,
    /// Secrets and configs as files.
    pub files: Vec<FileAssignment>,
    /// Anonymous volumes start empty instead of being taken over from the slot's former container (`-V`).
    pub renew_anonymous_volumes: bool,
    /// Started by `orch run`: no service name in DNS, no restart.
    pub one_off: bool,
    /// Whatever its restart policy says, it is started again when it went down with its host or its shim.
    #[serde(default)]
    pub comes_back: bool,
}

/// Where a task's network comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskNetwork {
    /// Only `lo`.
    None,
    /// The host's.
    Host,
    /// That of another task (`network_mode: service:x`).
    Task(TaskId),
    /// Its own, with these endpoints (the first is eth0) and published ports.
    Endpoints {
        /// Attachments in interface order.
        endpoints: Vec<EndpointAssignment>,
        /// Ports published on this node.
        ports: Vec<PortAssignment>,
    },
}

/// One attachment of a task to a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointAssignment {
    /// The network.
    pub network: NetworkName,
    /// Address, allocated by the control plane.
    pub ipv4: Option<Ipv4Addr>,
    /// Address, where the network has IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// MAC the file asks for; else derived from the address.
    pub mac: Option<String>,
    /// Interface name the file asks for; else `ethN`.
    pub interface_name: Option<String>,
    /// The highest one gives the default route; ties go to the first name.
    pub gw_priority: i32,
    /// Names that only this container sees (`links`): alias → service.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PortAssignment {
    /// Address of the host, `None` = all.
    pub host_ip: Option<IpAddr>,
    /// First and last port of the host to choose from; (0, 0) = any free one.
    pub host_ports: (u16, u16),
    /// Port inside.
    pub target: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// A secret or config as a file in a container.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct FileAssignment {
    /// Absolute path inside.
    pub target: String,
    /// The bytes.
    pub content: Arc<ContentBytes>,
    /// sha256 of them in hex.
    pub digest: String,
    /// Owner, group and permission bits.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// See `uid`.
    pub mode: u32,
    /// Secret (content is never shown) or config.
    pub secret: bool,
    /// Its name outside of the stack.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It is not the stack's own: people have made it, and when they change it, its users change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
}

impl std::fmt::Debug for FileAssignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // By the digest of a secret somebody could try out what it is.
        let digest = (!self.secret).then_some(&self.digest);
        f.debug_struct("FileAssignment").field("target", &self.target).field("digest", &digest).finish_non_exhaustive()
    }
}

/// Addresses of one name on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameAssignment {
    /// The network.
    pub network: NetworkName,
    /// Lower-case name without the network's suffix: service, `<service>.<stack>`, alias, container name, `<slot>.<service>`.
    pub name: String,
    /// Addresses of the tasks that answer to it now; empty for a name that is declared but has nothing running.
    pub addresses: Vec<IpAddr>,
}

/// How far a task has come. Only moves forward until the container exits; a restart by policy goes back to `Starting`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waits in the control plane for what it depends on, or for the slot's former task to be gone.
    #[default]
    Pending,
    /// Given to a node, not yet taken up.
    Assigned,
    /// The node looks for its image, volumes and networks.
    Preparing,
    /// The container exists.
    Created,
    /// Being started.
    Starting,
    /// Runs.
    Running,
    /// Runs, frozen.
    Paused,
    /// Ended, waits for its next start by policy.
    Restarting,
    /// Being stopped.
    Stopping,
    /// Ended for good; see the exit code.
    Exited,
    /// Could not be prepared or started; see the error.
    Failed,
    /// Gone from the node.
    Removed,
}

/// Health as the probe of the container sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// No probe.
    #[default]
    None,
    /// Not yet decided.
    Starting,
    /// The last probe succeeded.
    Healthy,
    /// `retries` probes in a row failed.
    Unhealthy,
}

/// What a node says of one task: the whole truth about it, repeated whenever it changes and after every reconnect.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskStatus {
    /// The task.
    pub task: TaskId,
    /// How far it is.
    pub state: TaskState,
    /// The container, once it exists (64 hex digits).
    pub container: String,
    /// Its init process on the host, while it runs.
    pub pid: Option<i32>,
    /// Image it was made from.
    pub image_id: String,
    /// Exit code of the last run.
    pub exit_code: Option<i32>,
    /// The last run was ended by the kernel for want of memory.
    pub oom_killed: bool,
    /// See [`Health`].
    pub health: Health,
    /// Output of the last failed probe, cut.
    pub health_output: String,
    /// Starts by policy so far.
    pub restarts: u32,
    /// The generation of `restart` that has been carried out.
    pub restart_generation: u64,
    /// Why it failed, for people.
    pub error: String,
    /// Docker's code for that failure: 125, 126, 127.
    pub error_code: Option<i32>,
    /// It failed, and its node tries it again by its restart policy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// What its node does for it or waits for, while it is being prepared: for people. Changes with the step, never with its progress.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Milliseconds since the epoch.
    pub created_at: Option<u64>,
    /// See `created_at`.
    pub started_at: Option<u64>,
    /// See `created_at`.
    pub finished_at: Option<u64>,
    /// Ports as they are published.
    pub ports: Vec<PublishedPort>,
}

/// A port as it is published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PublishedPort {
    /// Address of the host; `0.0.0.0` or `::` for all.
    pub host_ip: String,
    /// Port of the host.
    pub published: u16,
    /// Port inside.
    pub target: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Identity, made once and kept in the data dir.
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// Subnets that the host routes or holds, in CIDR form: address pools keep out of them.
    pub routes: Vec<String>,
    /// Usable processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// `linux/amd64` and the like.
    pub platform: String,
    /// Version of its orch.
    pub version: String,
    /// Where other nodes reach its containers; `None` on a host that is alone.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// MTU of the link with that address in bytes; 0 = not known.
    #[serde(default)]
    pub mtu: u32,
    /// Labels that its own configuration gives it (`engine.labels.x` in constraints), beside those that people give in the cluster.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Processes that may exist at once; 0 = not known, and then not counted.
    #[serde(default)]
    pub pids: u64,
    /// Countable resources that its configuration says it has, by kind.
    #[serde(default)]
    pub generic_resources: BTreeMap<String, i64>,
}

/// One message from a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeReport {
    /// Facts; the first message after a connect.
    Facts(NodeFacts),
    /// Statuses that changed, coalesced.
    Tasks(Vec<TaskStatus>),
    /// Networks of an earlier assignment that are gone from the node.
    NetworksRemoved(Vec<NetworkName>),
    /// Volumes that are gone from the node, or could not be removed (with the reason).
    VolumesRemoved(Vec<(String, Option<String>)>),
    /// Name server, load balancer and forwarding have what the assignment with this [`Assignment::endpoints_version`] says.
    Applied {
        /// The version.
        version: u64,
    },
    /// To which nodes packets of containers do not get through as they should, and why; all of them each time.
    Underlay(BTreeMap<NodeId, String>),
}
