//! Nodes on which a service's tasks keep failing though they are well elsewhere: a full disk, a broken runtime.
//!
//! Such a task gets another one in its slot on another node, and for a while the node gets tasks of that service only when no other takes
//! them. A service that fails wherever it runs is not sent round: for that, somebody of the very same specification must be well on
//! another node, or the node fail several services that fail nowhere else; and from a second node on which it fails too, it does not go
//! on as long as the first one counts. Everything is counted by the log's time and bounded.

use orch_spec::assignment::{NodeId, TaskId, TaskState, TaskStatus};

use crate::plan::Moment;
use crate::state::{Node, State, Task};
use crate::{endpoint, presence};

/// So many failures of one task within the window make its node faulty for its service: Swarm's number.
pub(crate) const FAILURES: usize = 5;
/// Swarm's window, milliseconds.
const WINDOW_MS: u64 = 300_000;
/// How long a node counts as faulty for a service after the last failure, milliseconds: longer than a task that is to hand over stays, so
/// that there are never more than two of a slot.
const FAULTY_MS: u64 = 900_000;
/// Services for which one node is remembered as faulty.
const SERVICES: usize = 64;

/// Whether a task has failed since its node spoke of it last: it could not be made or started, or ended and is to be started again.
fn has_failed(old: &TaskStatus, new: &TaskStatus) -> bool {
    let fails = matches!(new.state, TaskState::Failed | TaskState::Restarting) && new.state != old.state;
    fails || new.restarts > old.restarts
}

/// Whether a node counts as faulty for a service.
fn is_faulty(state: &State, node: &Node, service: &str) -> bool {
    node.faulty.get(service).is_some_and(|until| *until > state.time)
}

/// Whether no other node is faulty for a service too.
fn is_only_here(state: &State, id: &NodeId, service: &str) -> bool {
    !state.nodes.iter().any(|(other, node)| other != id && is_faulty(state, node, service))
}

/// Whether a node fails several services that fail nowhere else.
fn fails_several(state: &State, id: &NodeId, node: &Node) -> bool {
    let services = node.faulty.keys().filter(|service| is_faulty(state, node, service));
    services.filter(|service| is_only_here(state, id, service)).count() > 1
}

impl State {
    /// Takes in that a node speaks of a task. Says whether it has failed there so often that it may have to go elsewhere.
    pub(crate) fn note_failure(&mut self, moment: Moment, id: &TaskId, old: &TaskStatus) -> bool {
        let (now, is_cluster) = (self.time, self.is_cluster());
        let Some(task) = self.tasks.get_mut(id).filter(|task| is_cluster && has_failed(old, &task.status)) else {
            return false;
        };
        task.failures.retain(|at| at.saturating_add(WINDOW_MS) > now);
        task.failures.push(now);
        if task.failures.len() < FAILURES {
            return false;
        }
        let surplus = task.failures.len() - FAILURES;
        task.failures.drain(..surplus);
        let service = endpoint::vip_key(&task.stack, &task.service);
        let Some(home) = task.node.clone() else { return false };
        let Some(node) = self.nodes.get_mut(&home) else { return false };
        node.faulty.retain(|_, until| *until > now);
        let is_new = node.faulty.insert(service.clone(), now.saturating_add(FAULTY_MS)).is_none();
        if node.faulty.len() > SERVICES {
            let first = node.faulty.iter().min_by_key(|(_, until)| **until).map(|(service, _)| service.clone());
            first.map(|first| node.faulty.remove(&first));
        }
        if is_new {
            let name = node.facts.hostname.clone();
            self.event(moment, "node", "faulty", &home.0, &name, "", &[("service", service)]);
        }
        true
    }

    /// Whether a node gets a task like this one only when no other takes it, because it fails there.
    pub fn is_avoided(&self, id: &NodeId, task: &Task) -> bool {
        let Some(node) = self.nodes.get(id).filter(|node| !node.faulty.is_empty()) else { return false };
        is_faulty(self, node, &endpoint::vip_key(&task.stack, &task.service)) || fails_several(self, id, node)
    }
}

/// Whether a task is to go to another node because this one fails it. Who may be tried only so often (`max_attempts`) has one count, which
/// stays where it is.
pub(crate) fn fails_here(state: &State, task: &Task) -> bool {
    let recent = task.failures.first().is_some_and(|first| first.saturating_add(WINDOW_MS) > state.time);
    if task.failures.len() < FAILURES || !recent || task.namespace_parents().next().is_some() {
        return false;
    }
    let Some((id, node)) = task.node.as_ref().and_then(|node| state.nodes.get_key_value(node)) else { return false };
    let service = endpoint::vip_key(&task.stack, &task.service);
    let record = state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service));
    let policy = state.revision(task.revision).spec.restart_policy();
    if record.is_none_or(crate::state::Service::is_rolling)
        || policy.is_some_and(|policy| policy.max_attempts.is_some())
        || !is_faulty(state, node, &service)
        || !is_only_here(state, id, &service)
    {
        return false;
    }
    let same = |other: &Task| other.revision == task.revision && other.image_id == task.image_id;
    let mut others = state.service_tasks(&task.stack, &task.service).filter(|other| !other.one_off);
    let well_elsewhere = others.any(|other| other.node != task.node && same(other) && presence::is_there(state, other));
    well_elsewhere || fails_several(state, id, node)
}
