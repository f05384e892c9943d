//! Everything that managers agree on.

mod event;
mod file_object;
mod network;
mod node;
mod rollout;
mod seats;
mod stack;
mod task;
mod tasks;
mod timer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orch_spec::assignment::{NetworkName, NodeId, TaskId};
use serde::{Deserialize, Serialize};

use crate::member::Members;
use crate::request::Requests;
use crate::security::Security;
pub use event::{Event, EventRing};
pub use file_object::{FileObject, ObjectKind};
pub(crate) use network::volume_driver;
pub use network::{Network, NetworkDefinition, NetworkPhase, Reservation, Vip, Volume};
pub use node::{Availability, Node, NodeRole, NodeState, Turn, Usage};
pub(crate) use rollout::HISTORY;
pub use rollout::{Former, Lane, Rollout, RolloutRules, RolloutState};
pub use seats::Seats;
pub use stack::{MeshPort, Removing, Revision, RevisionId, Service, Stack};
pub use task::{HandOver, Serving, Task, Wait, Withdrawal};
pub(crate) use task::{holder_of, reservation_holder, vip_holder};
pub use tasks::Tasks;
pub use timer::Timer;

/// The state of the cluster after a number of log entries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Index of the last entry that has been applied.
    pub index: u64,
    /// The cluster's id.
    pub cluster: String,
    /// Number of tasks ever made.
    pub task_sequence: u64,
    /// Number of revisions ever made.
    pub revision_sequence: u64,
    /// Stacks by name.
    pub stacks: BTreeMap<String, Stack>,
    /// Specifications, each once, however many tasks are made from it.
    pub revisions: BTreeMap<RevisionId, Arc<Revision>>,
    /// Tasks that are not gone.
    pub tasks: Tasks,
    /// Container name → the tasks that have it, by age. Only the youngest can be one that stays.
    #[serde(default)]
    pub names: BTreeMap<String, BTreeSet<(u64, TaskId)>>,
    /// Task on its way out → tasks that wait until it is gone.
    pub successors: BTreeMap<TaskId, BTreeSet<TaskId>>,
    /// Networks by full name.
    pub networks: BTreeMap<NetworkName, Network>,
    /// Named volumes by full name.
    pub volumes: BTreeMap<String, Volume>,
    /// Secrets that people have made, by name.
    #[serde(default)]
    pub secrets: BTreeMap<String, FileObject>,
    /// Configs that people have made, by name.
    #[serde(default)]
    pub configs: BTreeMap<String, FileObject>,
    /// What images were made for, by their ids: placing looks at it. One that is not here runs anywhere.
    #[serde(default)]
    pub platforms: BTreeMap<String, String>,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Managers.
    #[serde(default)]
    pub members: Members,
    /// Who belongs to it.
    #[serde(default)]
    pub security: Security,
    /// Nodes that were removed: what they say is not heard any more.
    #[serde(default)]
    pub removed_nodes: BTreeSet<NodeId>,
    /// What several nodes have in common; `None` = this host is alone, and everything is as on one host.
    #[serde(default)]
    pub cluster_settings: Option<ClusterSettings>,
    /// Tasks that have no node, but those that are on their way out.
    #[serde(default)]
    pub unplaced: BTreeSet<TaskId>,
    /// Tasks that are taken out of load balancing and wait until every node knows.
    #[serde(default)]
    pub withdrawing: BTreeSet<TaskId>,
    /// The number of the network that got one last; it goes round, so that a number rests before another network gets it.
    #[serde(default)]
    pub vni_cursor: u32,
    /// Index of the last change of what stands behind published ports.
    #[serde(default)]
    pub mesh_changed: u64,
    /// The highest time that an entry has carried, milliseconds since the epoch: clocks of two leaders differ, time does not go back.
    #[serde(default)]
    pub time: u64,
    /// What is to be looked at again, and when. One too many does no harm.
    #[serde(default)]
    pub timers: BTreeSet<(u64, Timer)>,
    /// Requests that were carried out lately.
    #[serde(default)]
    pub requests: Requests,
    /// What happened lately.
    pub events: EventRing,
}

/// What several nodes have in common; there is none as long as a host is alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSettings {
    /// UDP port of the VXLANs between nodes.
    pub overlay_port: u16,
}

impl Default for ClusterSettings {
    /// 4789 and 8472 are what others use, and what firewalls of virtual networks filter.
    fn default() -> Self {
        Self { overlay_port: 14_789 }
    }
}

impl State {
    /// The state of a cluster in which nothing has happened.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), ..Self::default() }
    }

    /// The tasks of a service, those on their way out and one-offs among them, by slot and age.
    pub fn service_tasks<'s>(&'s self, stack: &str, service: &str) -> impl Iterator<Item = &'s Task> {
        let ids = self.stacks.get(stack).and_then(|stack| stack.tasks.get(service));
        ids.into_iter().flat_map(Seats::iter).filter_map(|id| self.tasks.get(id))
    }

    /// The tasks in one slot of a service, those on their way out among them, the oldest first.
    pub fn slot_tasks<'s>(
        &'s self,
        stack: &str,
        service: &str,
        slot: u32,
    ) -> impl DoubleEndedIterator<Item = &'s Task> + use<'s> {
        let ids = self.stacks.get(stack).and_then(|stack| stack.tasks.get(service));
        ids.into_iter().flat_map(move |seats| seats.of_slot(slot)).filter_map(|id| self.tasks.get(id))
    }

    /// The tasks of a stack.
    pub fn stack_tasks<'s>(&'s self, stack: &str) -> impl Iterator<Item = &'s Task> {
        let services = self.stacks.get(stack).map(|stack| &stack.tasks);
        services
            .into_iter()
            .flat_map(|services| services.values().flat_map(Seats::iter))
            .filter_map(|id| self.tasks.get(id))
    }

    /// The youngest task whose container has this name.
    pub fn task_named(&self, name: &str) -> Option<&Task> {
        self.names.get(name).and_then(|tasks| tasks.last()).and_then(|(_, id)| self.tasks.get(id))
    }

    /// Makes the lists that follow from tasks anew, for a state from a snapshot that was made before there were any.
    pub fn complete_lists(&mut self) {
        if self.tasks.is_empty() || !self.names.is_empty() {
            return;
        }
        for stack in self.stacks.values_mut() {
            stack.tasks.clear();
        }
        for task in self.tasks.values() {
            self.names.entry(task.container_name.clone()).or_default().insert((task.sequence, task.id.clone()));
            if let Some(stack) = self.stacks.get_mut(&task.stack) {
                stack.tasks.entry(task.service.clone()).or_default().insert(task);
                stack.note_rest(task, false);
            }
        }
        let stacks: Vec<String> = self.stacks.keys().cloned().collect();
        stacks.iter().for_each(|stack| self.rebuild_needs(stack));
    }

    /// A task is not what it was: it passes the gate again when its service is looked at.
    pub(crate) fn unsettle(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get(id) else { return };
        if let Some(stack) = self.stacks.get_mut(&task.stack) {
            stack.note_rest(task, false);
        }
    }

    /// The specification that a task was made from.
    ///
    /// # Panics
    /// When the state is broken: a revision lives as long as a task or service refers to it.
    pub fn revision(&self, id: RevisionId) -> &Arc<Revision> {
        self.revisions.get(&id).expect("a revision lives as long as something refers to it")
    }
}
