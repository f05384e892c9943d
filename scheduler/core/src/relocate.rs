//! Tasks that are where they should not be: on a node that is lost or drained, that does not meet a constraint any more, or that fails them
//! while it is well elsewhere; and services
//! with a task on every node.
//!
//! Nothing is moved. A new task is made in the slot, and the old one goes when the new one is ready: where its node is lost, nobody knows
//! whether the old one runs, and if it does it may be the only copy.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, NodeId, TaskId, TaskState};

use crate::command::Changes;
use crate::faulty;
use crate::place::{self, Judge, Obstacle};
use crate::plan::{self, Moment, Move};
use crate::state::{Availability, Node, NodeState, State, Task};

/// How long a task on a drained node waits at most for its replacement to be ready, milliseconds.
const DRAIN_MS: u64 = 600_000;

/// Looks at one stack; says whether anything was done.
pub(crate) fn step(state: &mut State, moment: Moment, stack: &str, changes: &mut Changes) -> bool {
    if !state.is_cluster() || state.stacks.get(stack).is_none_or(|stack| stack.removing.is_some()) {
        return false;
    }
    let welcomed = welcome_back(state, stack);
    let moves: Vec<Move> = state.stack_tasks(stack).filter_map(|task| displacement(state, task)).collect();
    let (missing, surplus) = globals(state, stack);
    if moves.is_empty() && missing.is_empty() && surplus.is_empty() {
        return welcomed;
    }
    match plan::plan_moves(state, stack, &moves, &missing, &surplus, moment) {
        Ok(planned) => {
            for one in &moves {
                if let Some(by) = one.by {
                    state.set_timer(by, crate::state::Timer::Task(one.task.clone()));
                }
            }
            state.carry_out(moment, planned.records, None, changes);
            true
        }
        // Nothing has changed; what is in the way (no address left) is found again when something else changes.
        Err(_) => welcomed,
    }
}

/// Why and how a task is to be replaced elsewhere, if it is.
fn displacement(state: &State, task: &Task) -> Option<Move> {
    let lives = matches!(task.goal, DesiredTask::Running | DesiredTask::Paused)
        && (task.status.again || !matches!(task.status.state, TaskState::Exited | TaskState::Failed));
    let spec = &state.revision(task.revision).spec;
    if !task.is_replica() || !lives || spec.deploy.mode.is_global() {
        return None;
    }
    // A guest whose host was taken away goes to the one that is there now, once there is one.
    let is_bereft = task.namespace_parents().any(|parent| !state.tasks.contains_key(parent));
    let mut hosts = plan::namespace_services(spec).peekable();
    if is_bereft
        && hosts.peek().is_some()
        && hosts.all(|host| state.service_tasks(&task.stack, host).any(Task::is_replica))
    {
        return Some(Move { task: task.id.clone(), lost: false, beside: false, by: None });
    }
    let id = task.node.as_ref()?;
    let (task_id, node) = (task.id.clone(), state.nodes.get(id));
    let fixed = spec.networks.values().any(|attachment| attachment.ipv4_address.or(attachment.ipv6_address).is_some());
    let (lost, beside, by) = match node {
        None => (true, true, None),
        Some(node) if node.state == NodeState::Down => {
            // Its data is there and nowhere else: it waits for its node.
            let pinned = place::pinning(state, state.revision(task.revision))
                .any(|name| state.volumes.get(name).is_some_and(|volume| volume.pinned.as_ref() == Some(id)));
            if pinned {
                return None;
            }
            (true, true, None)
        }
        Some(node) if node.availability == Availability::Drain && node.state == NodeState::Ready => {
            // A node that is silent or lost may be back before long: until then, what it could take is the only copy here.
            let beside = !fixed && fits_somewhere(state, task, |judge, id, node| judge.unfit(id, node, None));
            (false, beside, Some(state.time.saturating_add(DRAIN_MS)))
        }
        Some(node)
            if !place::meets(spec, id, node)
                && fits_somewhere(state, task, |judge, id, node| judge.obstacle(id, node, None)) =>
        {
            (false, !fixed, None)
        }
        Some(_)
            if faulty::fails_here(state, task)
                && fits_somewhere(state, task, |judge, id, node| {
                    judge.obstacle(id, node, None).or(state.is_avoided(id, task).then_some(Obstacle::Elsewhere))
                }) =>
        {
            (false, !fixed, Some(state.time.saturating_add(DRAIN_MS)))
        }
        Some(_) => return None,
    };
    Some(Move { task: task_id, lost, beside, by })
}

/// Whether another node would take the task, by what is in the way there.
fn fits_somewhere(
    state: &State,
    task: &Task,
    obstacle: impl Fn(&Judge<'_>, &NodeId, &Node) -> Option<Obstacle>,
) -> bool {
    let judge = Judge::new(state, task);
    // A guest goes where the other one goes.
    task.namespace_parents().next().is_some()
        || state.nodes.iter().any(|(id, node)| Some(id) != task.node.as_ref() && obstacle(&judge, id, node).is_none())
}

/// Tasks of lost nodes that are back before there was another one in their place stay what they were.
fn welcome_back(state: &mut State, stack: &str) -> bool {
    let back = state.stack_tasks(stack).filter(|task| {
        task.lost
            && task.is_retiring()
            && task.hand_over.is_some()
            && task.node.as_ref().is_some_and(|node| state.node_state(node) == NodeState::Ready)
    });
    let mut restored: BTreeMap<TaskId, TaskId> = BTreeMap::new();
    for task in back {
        let next = state.slot_tasks(stack, &task.service, task.slot).rfind(|other| other.is_replica());
        if let Some(next) = next.filter(|next| next.told.is_none() && next.revision == task.revision) {
            // Of several in one slot one stays: they follow each other, and a later one is nearer to what is wanted.
            let later = |former: &TaskId| state.tasks.get(former).is_none_or(|former| former.sequence < task.sequence);
            if restored.get(&next.id).is_none_or(later) {
                restored.insert(next.id.clone(), task.id.clone());
            }
        }
    }
    let index = state.index;
    for (next, task) in &restored {
        let goal = state.tasks.get(next).map_or(DesiredTask::Running, |next| next.goal);
        if let Some(task) = state.tasks.get_mut(task) {
            (task.goal, task.hand_over, task.lost, task.changed) = (goal, None, false, index);
        }
        if let Some(next) = state.tasks.get_mut(next) {
            (next.goal, next.changed) = (DesiredTask::Removed, index);
        }
        state.unsettle(task);
        state.unsettle(next);
    }
    !restored.is_empty()
}

/// Services with a task on every node: nodes that lack one, and tasks that are where none should be.
fn globals(state: &State, stack: &str) -> (BTreeMap<String, Vec<NodeId>>, Vec<TaskId>) {
    let (mut missing, mut surplus) = (BTreeMap::new(), Vec::new());
    let Some(record) = state.stacks.get(stack) else { return (missing, surplus) };
    for (name, service) in record.services.iter().filter(|(_, service)| !service.orphan) {
        let spec = &state.revision(service.revision).spec;
        if !spec.deploy.mode.is_global() {
            continue;
        }
        let present: Vec<&Task> = state.service_tasks(stack, name).filter(|task| task.is_replica()).collect();
        if !present.is_empty() && present.iter().all(|task| task.goal != DesiredTask::Running) {
            continue;
        }
        let mut covered: BTreeSet<&NodeId> = BTreeSet::new();
        for task in present {
            let Some(home) = task.node.as_ref().or(task.bound.as_ref()) else { continue };
            let stays = state
                .nodes
                .get(home)
                .is_some_and(|node| node.availability != Availability::Drain && place::meets(spec, home, node));
            if stays && covered.insert(home) {
                continue;
            }
            surplus.push(task.id.clone());
        }
        let lacking = place::hosts(state, spec).into_iter().filter(|id| !covered.contains(id)).cloned();
        let lacking: Vec<NodeId> = lacking.collect();
        if !lacking.is_empty() {
            missing.insert(name.clone(), lacking);
        }
    }
    (missing, surplus)
}
