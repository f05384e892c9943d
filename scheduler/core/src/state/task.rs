//! Tasks.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, Health, NetworkName, NodeId, TaskId, TaskNetwork, TaskState, TaskStatus};
use serde::{Deserialize, Serialize};

use super::stack::RevisionId;

/// One container of a slot of a service.
///
/// `goal` is what commands want, `told` what its node has been told; the gate decides when the second follows the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Identity.
    pub id: TaskId,
    /// Number in the order in which tasks were made.
    pub sequence: u64,
    /// Its stack.
    pub stack: String,
    /// Its service.
    pub service: String,
    /// Replica number from 1; 0 = one-off.
    pub slot: u32,
    /// Made by `run`.
    pub one_off: bool,
    /// A one-off that answers to the service's names.
    pub use_aliases: bool,
    /// Name of its container.
    pub container_name: String,
    /// Its specification.
    pub revision: RevisionId,
    /// Image it was planned with; empty = not known.
    pub image_id: String,
    /// Its node; `None` until there is one for it.
    pub node: Option<NodeId>,
    /// The only node that it may have: one of a service with a task on every node.
    #[serde(default)]
    pub bound: Option<NodeId>,

    /// What it shall be in the end.
    pub goal: DesiredTask,
    /// Grows with every order to start (again).
    pub goal_generation: u64,
    /// What its node has been told; `None` = nothing yet. Stays `Some` until the task is gone.
    pub told: Option<DesiredTask>,
    /// The generation that its node has been told.
    pub told_generation: u64,
    /// What it depends on has allowed its start; holds until it is stopped by request.
    pub released: bool,
    /// It does not wait for what it depends on (`--no-deps`).
    pub ungated: bool,
    /// It goes down without waiting for its dependents (`kill`).
    pub unordered: bool,
    /// Former tasks that hold its slot, name, port or address: it waits until they are gone.
    pub after: BTreeSet<TaskId>,
    /// Grace in seconds for this stop.
    pub stop_timeout: Option<i64>,
    /// Signal for this stop.
    pub stop_signal: Option<String>,
    /// Its anonymous volumes go with it.
    pub remove_volumes: bool,
    /// Its anonymous volumes start empty.
    pub renew_anonymous_volumes: bool,

    /// Its network.
    pub network: Option<TaskNetwork>,
    /// Networks that people took it onto, with its further names there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attached: BTreeMap<NetworkName, Vec<String>>,
    /// Task whose PID namespace it joins.
    pub pid_of: Option<TaskId>,
    /// Task whose IPC namespace it joins.
    pub ipc_of: Option<TaskId>,

    /// What its node says of it.
    pub status: TaskStatus,
    /// What it waits for now.
    pub waiting: Vec<Wait>,
    /// Why it cannot start; goes away when the cause does.
    pub blocked: String,
    /// The service's generation that it was made for.
    #[serde(default)]
    pub generation: u64,
    /// The former task of its slot whose place it takes: it may be made beside that one, and starts when that one is gone.
    #[serde(default)]
    pub takes_over: Option<TaskId>,
    /// It is on its way out, but not before its slot has another one.
    #[serde(default)]
    pub hand_over: Option<HandOver>,
    /// Until when it waits for that at most, milliseconds since the epoch; `None` = without end.
    #[serde(default)]
    pub hand_over_by: Option<u64>,
    /// It is on its way out because its node was lost. When that comes back before there is another one, it stays.
    #[serde(default)]
    pub lost: bool,
    /// Why no node can take it.
    #[serde(default)]
    pub unplaced: String,
    /// Whether others may reach it.
    #[serde(default)]
    pub serving: Serving,
    /// It is taken out of load balancing, because it is about to be stopped.
    #[serde(default)]
    pub withdrawn: Option<Withdrawal>,
    /// Since when nobody has been there in its slot for those who need it: running, well, and on a node that answers. By the log's time;
    /// `None` = it is there, 0 = the slot is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<u64>,
    /// When it failed on its node lately: the last few, by the log's time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<u64>,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    /// Index of the last entry that changed it.
    pub changed: u64,
}

/// What the next task of a slot must have come to before the former one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandOver {
    /// It is made: its image, volumes and networks are there.
    Prepared,
    /// It runs and is not unhealthy, or has done its work.
    Ready,
}

/// Whether others may reach a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serving {
    /// It does not run.
    #[default]
    No,
    /// It is being stopped: nobody is sent there any more, who is there is answered until it ends.
    Leaving,
    /// It runs, but is not well, or not known to be, or its node is suspect.
    Unready,
    /// New connections may go there.
    Ready,
}

/// A task taken out of load balancing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// Index of the entry since which it is out: nodes that have said to have applied this know.
    pub index: u64,
    /// It is stopped then even if a node has said nothing, milliseconds since the epoch.
    pub deadline: u64,
}

/// Something that a task waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Wait {
    /// `dependency`, `former`, `dependent`, `namespace`, `network`, `node`.
    pub kind: String,
    /// The service, container, network it waits for.
    pub on: String,
    /// The sentence for people.
    pub text: String,
}

impl Task {
    /// Whether it is on its way out.
    pub fn is_retiring(&self) -> bool {
        self.goal == DesiredTask::Removed
    }

    /// A replica of its service that is to stay.
    pub fn is_replica(&self) -> bool {
        !self.one_off && !self.is_retiring()
    }

    /// Whether its process may live, or be about to.
    pub fn may_live(&self) -> bool {
        match self.told {
            None => false,
            Some(DesiredTask::Running | DesiredTask::Paused) => {
                self.status.again
                    || !matches!(self.status.state, TaskState::Exited | TaskState::Failed | TaskState::Removed)
            }
            // It was never started, or has been told to end: only what its node has seen counts, or is about to try.
            Some(DesiredTask::Created | DesiredTask::Stopped | DesiredTask::Removed) => {
                self.has_process() || self.status.again
            }
        }
    }

    /// Whether its node says that it has a process, or will have one by policy.
    pub fn has_process(&self) -> bool {
        matches!(
            self.status.state,
            TaskState::Starting | TaskState::Running | TaskState::Paused | TaskState::Restarting | TaskState::Stopping
        )
    }

    /// Whether it has been started since it was made.
    pub fn was_started(&self) -> bool {
        self.status.started_at.is_some() || self.has_process() || self.status.state == TaskState::Exited
    }

    /// Its endpoints, when its network is its own.
    pub fn endpoints(&self) -> &[orch_spec::assignment::EndpointAssignment] {
        match &self.network {
            Some(TaskNetwork::Endpoints { endpoints, .. }) => endpoints,
            _ => &[],
        }
    }

    /// Ports it publishes.
    pub fn ports(&self) -> &[orch_spec::assignment::PortAssignment] {
        match &self.network {
            Some(TaskNetwork::Endpoints { ports, .. }) => ports,
            _ => &[],
        }
    }

    /// The networks it is on.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkName> {
        self.endpoints().iter().map(|endpoint| &endpoint.network)
    }

    /// Whether it runs and is well, or has done its work: what a task must come to when it replaces another.
    pub fn is_ready(&self) -> bool {
        match self.status.state {
            TaskState::Running | TaskState::Paused => matches!(self.status.health, Health::None | Health::Healthy),
            TaskState::Exited => self.status.exit_code == Some(0),
            _ => false,
        }
    }

    /// Tasks whose namespaces it joins: network, PID, IPC; each once.
    pub fn namespace_parents(&self) -> impl Iterator<Item = &TaskId> {
        let network = match &self.network {
            Some(TaskNetwork::Task(id)) => Some(id),
            _ => None,
        };
        let all: BTreeSet<&TaskId> = network.into_iter().chain(&self.pid_of).chain(&self.ipc_of).collect();
        all.into_iter()
    }

    /// The key that the service's tasks are sorted by for people: replicas by number, one-offs last.
    pub fn order(&self) -> (&str, bool, u32, u64) {
        (&self.service, self.one_off, self.slot, self.sequence)
    }
}

/// Holders of a task's addresses are named like this in pools.
pub(crate) fn holder_of(task: &TaskId) -> String {
    format!("task:{task}")
}

/// Holders of addresses that containers outside of stacks have are named like this in pools.
pub(crate) fn reservation_holder(holder: &str) -> String {
    format!("container:{holder}")
}

/// Holders of services' virtual addresses are named like this in pools.
pub(crate) fn vip_holder(service: &str) -> String {
    format!("vip:{service}")
}
