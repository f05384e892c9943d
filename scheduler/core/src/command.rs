//! What the log holds: commands, and what applying one gives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use orch_spec::assignment::{DesiredTask, NetworkName, NodeId, NodeReport, TaskId};
use orch_spec::model::{ContentBytes, ServiceSpec, StackSpec};
use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::member::MemberChange;
use crate::plan::Plan;
use crate::security::SecurityCommand;
use crate::state::{Availability, ClusterSettings, NodeState, ObjectKind, Turn};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The proposer's clock in milliseconds since the epoch: what people are told, and what tokens expire by.
    pub now_ms: u64,
    /// The log's time, which timers are measured by: it goes on from one entry to the next as the leader's stopwatch runs. `None` = as the
    /// clock says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// Random number of the proposer: the only randomness that the state knows; ids of tasks come from it.
    pub nonce: u64,
    /// The request that it is part of, which may be asked for more than once; `None` for what the control plane does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// What to do.
    pub command: Command,
}

/// A change of the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Make a stack what its file says.
    ApplyStack(ApplyStack),
    /// Take a stack, or some of its services, down.
    RemoveStack(Down),
    /// Start, stop, … what exists.
    Act(Act),
    /// Change numbers of replicas.
    Scale(Scale),
    /// Make a one-off task.
    RunOneOff(RunOneOff),
    /// Set what one task shall be.
    SetTaskDesired(SetTaskDesired),
    /// A node has something to say. Repeating it changes nothing.
    Report {
        /// The node.
        node: NodeId,
        /// When it said so.
        #[serde(default)]
        turn: Turn,
        /// What it says.
        report: NodeReport,
    },
    /// Make a network by hand.
    CreateNetwork(NewNetwork),
    /// Remove a network that nobody uses.
    RemoveNetwork {
        /// Its full name.
        name: NetworkName,
    },
    /// Make a volume by hand.
    CreateVolume(NewVolume),
    /// Remove a volume that nobody uses.
    RemoveVolume {
        /// Its full name.
        name: String,
    },
    /// Make a secret or config by hand.
    CreateObject(NewObject),
    /// Give a secret or config other content; what uses it changes with it.
    ChangeObject(ChangeObject),
    /// Remove a secret or config that nobody uses.
    RemoveObject {
        /// Which of the two.
        kind: ObjectKind,
        /// Its name.
        name: String,
    },
    /// Hold an address for a container that belongs to no stack.
    ReserveAddress(ReserveAddress),
    /// Take a task onto a further network.
    AttachTask(AttachTask),
    /// Take a task off a network.
    DetachTask(DetachTask),
    /// Let go of every address on the network that the holder has.
    ReleaseAddress {
        /// The network.
        network: NetworkName,
        /// The holder.
        holder: String,
    },
    /// Change who takes part in the log.
    Member(MemberChange),
    /// Who belongs to the cluster.
    Security(SecurityCommand),
    /// The host becomes one of several, or what these have in common is set anew.
    FormCluster(ClusterSettings),
    /// The leader sees how well a node is.
    ObserveNode {
        /// The node.
        node: NodeId,
        /// How well it is.
        state: NodeState,
    },
    /// What images were made for, by their ids: `linux/arm64`.
    NotePlatforms(BTreeMap<String, String>),
    /// People set something about a node.
    UpdateNode(UpdateNode),
    /// A node is no part of the cluster any more. Its tasks go in the same entry.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Also when it still answers.
        force: bool,
    },
    /// Change one service as it was applied.
    UpdateService(UpdateService),
    /// Make a service what it was before its last change.
    RollbackService {
        /// The stack.
        stack: String,
        /// The service.
        service: String,
    },
    /// Time has passed: what [`State::next_timer`](crate::State::next_timer) says is due.
    Tick,
}

/// See [`Command::UpdateNode`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateNode {
    /// The node.
    pub node: NodeId,
    /// Whether it takes tasks; `None` = as it is.
    pub availability: Option<Availability>,
    /// Labels to set.
    pub labels: BTreeMap<String, String>,
    /// Labels to take away.
    pub remove_labels: BTreeSet<String>,
}

/// See [`Command::CreateObject`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewObject {
    /// Secret or config.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// The bytes.
    pub content: Arc<ContentBytes>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// See [`Command::ChangeObject`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeObject {
    /// Secret or config.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// The bytes.
    pub content: Arc<ContentBytes>,
}

/// See [`Command::UpdateService`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateService {
    /// The stack.
    pub stack: String,
    /// The service.
    pub service: String,
    /// What it shall be; its networks, volumes, secrets and configs stay those of the stack as it was applied.
    pub spec: Arc<ServiceSpec>,
    /// Id of its image; empty = not known.
    pub image_id: String,
    /// How many replicas; `None` = as it is.
    pub replicas: Option<u32>,
    /// New containers although nothing changed.
    pub force: bool,
}

/// See [`Command::ApplyStack`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApplyStack {
    /// The stack.
    pub spec: Arc<StackSpec>,
    /// Paths of its files.
    pub files: Vec<String>,
    /// How.
    pub options: UpOptions,
    /// Image reference → id. A reference that is not in it has an unknown id, which never counts as changed.
    pub images: BTreeMap<String, String>,
}

/// The flags of `up`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpOptions {
    /// Only these services and what they depend on; empty = all.
    pub services: Vec<String>,
    /// With `services`: leave out what they depend on, and do not wait for it.
    pub no_deps: bool,
    /// New containers for the chosen services.
    pub force_recreate: bool,
    /// Keep containers even where something changed.
    pub no_recreate: bool,
    /// New containers for what the chosen services depend on.
    pub always_recreate_deps: bool,
    /// Anonymous volumes start empty.
    pub renew_anonymous_volumes: bool,
    /// Remove tasks of services that the file does not have any more.
    pub remove_orphans: bool,
    /// Create, do not start.
    pub no_start: bool,
    /// Replicas that override the file's.
    pub scale: BTreeMap<String, u32>,
    /// Grace for what must stop.
    pub timeout: Option<i64>,
}

/// See [`Command::RemoveStack`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Down {
    /// The stack.
    pub stack: String,
    /// Volumes too.
    pub volumes: bool,
    /// Only these services; empty = everything.
    pub services: Vec<String>,
    /// Grace for the stops.
    pub timeout: Option<i64>,
    /// Orphans too.
    pub remove_orphans: bool,
}

/// What [`Act`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Start what is created, stopped or has exited.
    Start,
    /// Stop.
    Stop,
    /// Stop and start once.
    Restart,
    /// Freeze.
    Pause,
    /// Thaw.
    Unpause,
    /// End at once, without order.
    Kill,
    /// Remove what does not run.
    Remove,
}

/// See [`Command::Act`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// The stack.
    pub stack: String,
    /// Services; empty = all, unless `tasks` names some.
    #[serde(default)]
    pub services: Vec<String>,
    /// Single tasks.
    #[serde(default)]
    pub tasks: Vec<TaskId>,
    /// What to do.
    pub action: Action,
    /// Grace for stops.
    #[serde(default)]
    pub timeout: Option<i64>,
    /// Signal for stops.
    #[serde(default)]
    pub signal: Option<String>,
    /// Leave dependencies and dependents alone.
    #[serde(default)]
    pub no_deps: bool,
    /// `Remove`: anonymous volumes too.
    #[serde(default)]
    pub remove_volumes: bool,
    /// `Remove`: stop what runs first.
    #[serde(default)]
    pub stop: bool,
}

/// See [`Command::Scale`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scale {
    /// The stack.
    pub stack: String,
    /// Service → replicas.
    pub services: BTreeMap<String, u32>,
    /// Leave what they depend on alone.
    pub no_deps: bool,
    /// Grace for those that go.
    pub timeout: Option<i64>,
}

/// See [`Command::RunOneOff`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunOneOff {
    /// The stack as its file says. `None` = as it was applied.
    pub spec: Option<Arc<StackSpec>>,
    /// The stack's name.
    pub stack: String,
    /// Paths of its files.
    pub files: Vec<String>,
    /// The service.
    pub service: String,
    /// The service with overrides.
    pub one_off: Arc<ServiceSpec>,
    /// Name of the container; `None` = made up.
    pub container_name: Option<String>,
    /// Start when its dependencies allow; else create only.
    pub start: bool,
    /// Neither bring up nor wait for its dependencies.
    pub no_deps: bool,
    /// It answers to the service's names.
    pub use_aliases: bool,
    /// Remove orphans.
    pub remove_orphans: bool,
    /// Image reference → id.
    pub images: BTreeMap<String, String>,
}

/// See [`Command::SetTaskDesired`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTaskDesired {
    /// The task.
    pub task: TaskId,
    /// What it shall be.
    pub desired: DesiredTask,
    /// Grace for a stop.
    pub timeout: Option<i64>,
    /// Signal for a stop.
    pub signal: Option<String>,
    /// With `Removed`: anonymous volumes too.
    pub remove_volumes: bool,
}

/// See [`Command::CreateNetwork`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NewNetwork {
    /// Full name.
    pub name: NetworkName,
    /// What it shall be.
    pub definition: crate::state::NetworkDefinition,
}

/// See [`Command::CreateVolume`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NewVolume {
    /// Full name.
    pub name: String,
    /// Driver; empty = local.
    pub driver: String,
    /// Options of the driver.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// See [`Command::ReserveAddress`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReserveAddress {
    /// The network.
    pub network: NetworkName,
    /// Who holds it; asking again gives the same.
    pub holder: String,
    /// Name for people.
    pub name: String,
    /// Names in DNS.
    pub aliases: Vec<String>,
    /// A certain address.
    pub ipv4: Option<Ipv4Addr>,
    /// A certain address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC address, where it is not the one that follows from the address.
    pub mac: Option<String>,
    /// The node that it runs on, where that is one of ours.
    pub node: Option<NodeId>,
}

/// See [`Command::AttachTask`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachTask {
    /// The task. One that takes its place later is only where its file says.
    pub task: TaskId,
    /// Full name of the network.
    pub network: NetworkName,
    /// Further names there.
    pub aliases: Vec<String>,
    /// A certain address.
    pub ipv4: Option<Ipv4Addr>,
    /// A certain address.
    pub ipv6: Option<Ipv6Addr>,
}

/// See [`Command::DetachTask`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DetachTask {
    /// The task.
    pub task: TaskId,
    /// Full name of the network.
    pub network: NetworkName,
}

/// What a command that was done has to say.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// What was planned, and done.
    pub plan: Plan,
    /// What the user should know though it stops nothing.
    pub warnings: Vec<String>,
    /// The task that `RunOneOff` made.
    pub task: Option<TaskId>,
    /// The addresses that `ReserveAddress` or `AttachTask` gave.
    pub addresses: (Option<Ipv4Addr>, Option<Ipv6Addr>),
}

/// What applying an entry gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The answer, or why nothing was done.
    pub result: Result<Answer, Refusal>,
    /// Which parts of the state are not what they were.
    pub changes: Changes,
}

/// Parts of the state that a command has changed, for those who keep something derived from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Stacks of which something has changed.
    pub stacks: BTreeSet<String>,
    /// Networks and volumes have changed, or nodes.
    pub objects: bool,
}

impl Changes {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty() && !self.objects
    }

    /// Takes in another command's changes.
    pub fn merge(&mut self, other: Self) {
        self.stacks.extend(other.stacks);
        self.objects |= other.objects;
    }
}
