//! Everything that managers agree on.

mod event;
mod network;
mod stack;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orch_spec::assignment::{NetworkName, NodeFacts, NodeId, TaskId};
use serde::{Deserialize, Serialize};

use crate::member::Members;
use crate::security::Security;
pub use event::{Event, EventRing};
pub(crate) use network::volume_driver;
pub use network::{Network, NetworkDefinition, NetworkPhase, Reservation, Volume};
pub use stack::{Removing, Revision, RevisionId, Service, Stack};
pub use task::{Task, Wait};
pub(crate) use task::{holder_of, reservation_holder};

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
    pub tasks: BTreeMap<TaskId, Task>,
    /// Task on its way out → tasks that wait until it is gone.
    pub successors: BTreeMap<TaskId, BTreeSet<TaskId>>,
    /// Networks by full name.
    pub networks: BTreeMap<NetworkName, Network>,
    /// Named volumes by full name.
    pub volumes: BTreeMap<String, Volume>,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Managers.
    #[serde(default)]
    pub members: Members,
    /// Who belongs to it.
    #[serde(default)]
    pub security: Security,
    /// What happened lately.
    pub events: EventRing,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What it says of itself.
    pub facts: NodeFacts,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Labels that people gave it.
    pub labels: BTreeMap<String, String>,
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It does.
    #[default]
    Active,
    /// No new ones.
    Pause,
    /// None; those that it has go elsewhere.
    Drain,
}

impl State {
    /// The state of a cluster in which nothing has happened.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), ..Self::default() }
    }

    /// The tasks of a service, those on their way out and one-offs among them, in the order of their ids.
    pub fn service_tasks<'s>(&'s self, stack: &str, service: &str) -> impl Iterator<Item = &'s Task> {
        let ids = self.stacks.get(stack).and_then(|stack| stack.tasks.get(service));
        ids.into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// The tasks of a stack.
    pub fn stack_tasks<'s>(&'s self, stack: &str) -> impl Iterator<Item = &'s Task> {
        let services = self.stacks.get(stack).map(|stack| &stack.tasks);
        services.into_iter().flat_map(|services| services.values().flatten()).filter_map(|id| self.tasks.get(id))
    }

    /// The specification that a task was made from.
    ///
    /// # Panics
    /// When the state is broken: a revision lives as long as a task or service refers to it.
    pub fn revision(&self, id: RevisionId) -> &Arc<Revision> {
        self.revisions.get(&id).expect("a revision lives as long as something refers to it")
    }
}
