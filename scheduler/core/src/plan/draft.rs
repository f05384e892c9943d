//! The state as it will be: what is, overlaid with what the plan has decided so far.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orch_spec::assignment::{DesiredTask, NetworkName, NodeId, TaskId};

use super::{Moment, Operation, OperationId, Plan, Planned, ResourceKind, Verb};
use crate::command::Answer;
use crate::identity;
use crate::state::{Network, Revision, RevisionId, Seats, Stack, State, Task, Tasks, Volume};

/// New and changed records of the state; executing a plan copies them in.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) task_sequence: u64,
    pub(crate) revision_sequence: u64,
    pub(crate) stack: Option<Stack>,
    pub(crate) revisions: BTreeMap<RevisionId, Arc<Revision>>,
    pub(crate) tasks: Tasks,
    pub(crate) networks: BTreeMap<NetworkName, Network>,
    pub(crate) volumes: BTreeMap<String, Volume>,
}

/// A plan in the making.
pub(crate) struct Draft<'s> {
    pub(crate) state: &'s State,
    pub(crate) moment: Moment,
    pub(crate) plan: Plan,
    pub(crate) warnings: Vec<String>,
    /// Overlay over the state's records.
    pub(crate) records: Records,
    /// The stack that is planned.
    pub(crate) stack: Stack,
    /// What brings containers of a service up, for edges between services.
    pub(crate) service_operations: BTreeMap<String, Vec<OperationId>>,
    /// Networks and volumes that this plan has dealt with.
    pub(crate) seen: BTreeSet<(ResourceKind, String)>,
    /// What makes a network or volume.
    pub(crate) object_operations: BTreeMap<(ResourceKind, String), OperationId>,
    /// What is done to a task.
    pub(crate) task_operations: BTreeMap<TaskId, OperationId>,
    /// Container name → the task that this plan gives it to.
    pub(crate) names: BTreeMap<String, TaskId>,
    /// Active node → number of its tasks; filled on first use.
    pub(crate) node_counts: BTreeMap<NodeId, usize>,
    /// Services whose namespaces others of the file join.
    pub(crate) parents: BTreeSet<String>,
    /// Grace for everything that this plan stops.
    pub(crate) timeout: Option<i64>,
}

impl<'s> Draft<'s> {
    pub(crate) fn new(state: &'s State, stack: &str, moment: Moment) -> Self {
        let stack = state.stacks.get(stack).cloned().unwrap_or_else(|| Stack {
            name: stack.to_owned(),
            created_at: moment.now_ms,
            changed: state.index + 1,
            ..Stack::default()
        });
        let records = Records {
            task_sequence: state.task_sequence,
            revision_sequence: state.revision_sequence,
            ..Records::default()
        };
        Self {
            state,
            moment,
            plan: Plan::default(),
            warnings: Vec::new(),
            records,
            stack,
            service_operations: BTreeMap::new(),
            seen: BTreeSet::new(),
            object_operations: BTreeMap::new(),
            task_operations: BTreeMap::new(),
            names: BTreeMap::new(),
            node_counts: BTreeMap::new(),
            parents: BTreeSet::new(),
            timeout: None,
        }
    }

    pub(crate) fn finish(mut self) -> Planned {
        self.records.stack = Some(self.stack);
        self.plan.break_circles();
        let answer = Answer { plan: self.plan, warnings: self.warnings, ..Answer::default() };
        Planned { answer, records: self.records }
    }

    pub(crate) fn task(&self, id: &TaskId) -> Option<&Task> {
        self.records.tasks.get(id).or_else(|| self.state.tasks.get(id))
    }

    /// The task's record, to be changed.
    pub(crate) fn task_mut(&mut self, id: &TaskId) -> &mut Task {
        let state = self.state;
        let copy = || state.tasks.get(id).cloned().expect("only tasks that exist are changed");
        self.records.tasks.get_or_insert_with(id, copy)
    }

    pub(crate) fn network(&self, name: &NetworkName) -> Option<&Network> {
        self.records.networks.get(name).or_else(|| self.state.networks.get(name))
    }

    /// The network's record, to be changed.
    pub(crate) fn network_mut(&mut self, name: &NetworkName) -> &mut Network {
        let state = self.state;
        self.records
            .networks
            .entry(name.clone())
            .or_insert_with(|| state.networks.get(name).cloned().expect("only networks that exist are changed"))
    }

    pub(crate) fn volume(&self, name: &str) -> Option<&Volume> {
        self.records.volumes.get(name).or_else(|| self.state.volumes.get(name))
    }

    /// The volume's record, to be changed.
    pub(crate) fn volume_mut(&mut self, name: &str) -> &mut Volume {
        let state = self.state;
        self.records
            .volumes
            .entry(name.to_owned())
            .or_insert_with(|| state.volumes.get(name).cloned().expect("only volumes that exist are changed"))
    }

    pub(crate) fn revision(&self, id: RevisionId) -> &Arc<Revision> {
        self.records.revisions.get(&id).unwrap_or_else(|| self.state.revision(id))
    }

    /// Tasks of a service of this stack as they will be, by number and age.
    pub(crate) fn tasks_of(&self, service: &str) -> Vec<&Task> {
        let seats = self.stack.tasks.get(service);
        seats.into_iter().flat_map(Seats::in_order).filter_map(|id| self.task(id)).collect()
    }

    /// The tasks in one slot of a service of this stack, the oldest first.
    pub(crate) fn slot_tasks<'d>(&'d self, service: &str, slot: u32) -> impl DoubleEndedIterator<Item = &'d Task> {
        let seats = self.stack.tasks.get(service);
        seats.into_iter().flat_map(move |seats| seats.of_slot(slot)).filter_map(|id| self.task(id))
    }

    /// Ids of the service's replicas that are to stay, by number.
    pub(crate) fn replicas_of(&self, service: &str) -> Vec<TaskId> {
        self.tasks_of(service).into_iter().filter(|task| task.is_replica()).map(|task| task.id.clone()).collect()
    }

    /// The youngest task whose container will have this name.
    pub(crate) fn task_named(&self, name: &str) -> Option<&Task> {
        let new = self.names.get(name).and_then(|id| self.task(id));
        new.or_else(|| self.state.task_named(name).and_then(|task| self.task(&task.id)))
    }

    pub(crate) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// A new task id, and the task's number among all.
    pub(crate) fn next_task(&mut self) -> (TaskId, u64) {
        self.records.task_sequence += 1;
        let sequence = self.records.task_sequence;
        (identity::task_id(&self.state.cluster, self.moment.nonce, sequence), sequence)
    }

    /// Puts a specification into the table; one that is equal to the present one keeps its number.
    pub(crate) fn intern(&mut self, revision: Revision, present: Option<RevisionId>) -> RevisionId {
        if let Some(present) = present
            && **self.revision(present) == revision
        {
            return present;
        }
        self.records.revision_sequence += 1;
        let id = RevisionId(self.records.revision_sequence);
        self.records.revisions.insert(id, Arc::new(revision));
        id
    }

    /// Adds an operation on a network or volume.
    pub(crate) fn object_operation(
        &mut self,
        verb: Verb,
        kind: ResourceKind,
        name: &str,
        cause: String,
    ) -> OperationId {
        let id =
            self.plan.add(Operation { verb, kind, name: name.to_owned(), cause, service: String::new(), task: None });
        self.object_operations.insert((kind, name.to_owned()), id);
        id
    }

    /// Adds an operation on a container.
    pub(crate) fn task_operation(&mut self, verb: Verb, task: &TaskId, cause: impl Into<String>) -> OperationId {
        let (name, service) = match self.task(task) {
            Some(task) => (task.container_name.clone(), task.service.clone()),
            None => (String::new(), String::new()),
        };
        let operation = Operation {
            verb,
            kind: ResourceKind::Container,
            name,
            cause: cause.into(),
            service: service.clone(),
            task: Some(task.clone()),
        };
        let id = self.plan.add(operation);
        if !matches!(verb, Verb::Remove | Verb::Stop | Verb::Kill | Verb::Pause) {
            self.service_operations.entry(service).or_default().push(id);
        }
        self.task_operations.insert(task.clone(), id);
        id
    }

    /// Sets a task on its way out: first its dependents, then itself.
    pub(crate) fn retire(&mut self, id: &TaskId) {
        let timeout = self.timeout;
        let task = self.task_mut(id);
        task.goal = DesiredTask::Removed;
        if timeout.is_some() {
            task.stop_timeout = timeout;
        }
    }
}
