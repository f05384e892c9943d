//! What must hold of a cluster after every entry of the log. The letters are those of the design's list of properties.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orch_core::{Availability, Command, Explanation, HandOver, NodeState, State, Task, Usage};
use orch_spec::assignment::{DesiredTask, NodeId, NodeReport, TaskId, TaskState};
use serde::Serialize;

/// Former specifications that a service remembers at most.
const HISTORY: usize = 10;
/// What one record of the state takes at most, written down: bytes. The files here are small; what could grow would be a list of what happened.
const RECORD: usize = 64 << 10;

/// Looks at everything. `before` is the state before the last entry, `command` what that said.
pub(crate) fn check(before: &State, state: &State, command: &Command) {
    tasks_move_forward(before, state);
    books_are_right(state);
    nothing_is_overcommitted(state);
    placements_hold(before, state);
    nothing_waits_that_fits(state);
    addresses_are_one_holders(state);
    the_only_copy_stays(before, state, command);
    slots_run_once(state);
    lists_are_right(state);
    former_ones_go(state);
    records_stay_small(state);
    nothing_is_made_without_cause(before, state, command);
    enough_are_left(before, state);
}

/// How long one that is missing is waited for, milliseconds.
const PATIENCE: u64 = 600_000;

/// Whether a task is there for those who need it.
fn is_there(state: &State, task: &Task) -> bool {
    let answers =
        task.node.as_ref().and_then(|node| state.nodes.get(node)).is_some_and(|n| n.state == NodeState::Ready);
    let told = matches!(task.told, Some(DesiredTask::Running | DesiredTask::Paused));
    told && answers
        && task.is_ready()
        && task.withdrawn.is_none()
        && task.told_generation <= task.status.restart_generation
}

/// O2: a restart, or an update that stops first, takes a task that is there away only while no more of its service are missing with it than
/// may be; whoever has been missing for ten minutes does not count.
fn enough_are_left(before: &State, state: &State) {
    for task in state.tasks.values() {
        let since = task.missing_since;
        assert_eq!(since.is_none(), is_there(state, task), "{} is missing since {since:?}", task.container_name);
    }
    for task in state.tasks.values().filter(|task| !task.one_off && task.withdrawn.is_some()) {
        let Some(former) = before.tasks.get(&task.id).filter(|former| is_there(before, former)) else { continue };
        // Lost or ended in this very entry, it could not be taken away.
        let answers = task.node.as_ref().and_then(|node| state.nodes.get(node));
        if !task.is_ready() || answers.is_none_or(|node| node.state != NodeState::Ready) {
            continue;
        }
        let restarts = former.goal == DesiredTask::Running && task.goal == DesiredTask::Running;
        let Some(service) = state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service)) else {
            continue;
        };
        let makes_way = former.hand_over.is_some() && task.hand_over == Some(HandOver::Prepared);
        let rules = service.rollout.as_ref().map(|rollout| rollout.rules.parallelism).filter(|_| makes_way);
        let own = state.revision(task.revision).spec.deploy.update_config.and_then(|update| update.parallelism);
        let width = rules.or(own).unwrap_or(1) as usize;
        // A task that was stopped on its own way in this entry, or was told to be something else before, is another matter.
        if !(restarts || makes_way) || width == 0 || former.told_generation > former.status.restart_generation {
            continue;
        }
        let tasks = || state.service_tasks(&task.stack, &task.service).filter(|other| !other.one_off);
        let is_covered = |state: &State, slot: u32| {
            state.slot_tasks(&task.stack, &task.service, slot).any(|other| is_there(state, other))
        };
        if is_covered(state, task.slot) {
            continue;
        }
        // Who goes in the same entry for another reason (a drain, a smaller number) was there when this was decided.
        let goes_too = |slot: u32| {
            state.slot_tasks(&task.stack, &task.service, slot).any(|other| {
                let in_turn = other.goal == DesiredTask::Running || other.hand_over == Some(HandOver::Prepared);
                other.withdrawn.is_some() && in_turn
            })
        };
        let missing: BTreeSet<u32> = tasks()
            .filter(|other| other.is_replica() && matches!(other.goal, DesiredTask::Running | DesiredTask::Paused))
            .filter(|other| other.missing_since.is_some_and(|since| since + PATIENCE > state.time))
            .map(|other| other.slot)
            .filter(|slot| *slot != task.slot && !is_covered(state, *slot))
            .filter(|slot| !is_covered(before, *slot) || goes_too(*slot))
            .collect();
        let rolled = service.rollout.as_ref().map(|rollout| rollout.failed.clone()).unwrap_or_default();
        let excused = tasks().filter(|other| rolled.contains(&other.id)).map(|other| other.slot);
        let excused: BTreeSet<u32> = excused.filter(|_| !restarts).collect();
        let missing = missing.difference(&excused).count();
        assert!(missing < width, "O2: {} is taken away while {missing} others are missing", task.container_name);
    }
}

/// T9: beside the task that stays a slot has only such as a node has yet to say that they are gone, and a service remembers a few
/// specifications.
fn former_ones_go(state: &State) {
    for task in state.tasks.values().filter(|task| task.is_retiring()) {
        let has_container = task.told.is_some() && task.status.state != TaskState::Removed;
        let on_a_node = task.node.as_ref().is_some_and(|node| state.nodes.contains_key(node));
        assert!(has_container && on_a_node, "T9: {} is gone and still there: {task:?}", task.container_name);
    }
    for (name, service) in state.stacks.values().flat_map(|stack| &stack.services) {
        assert!(service.history.len() <= HISTORY, "T9: {name} remembers {} specifications", service.history.len());
    }
}

/// T10: no record grows with what happens. What grows does not shrink, so that it is enough to look now and then.
fn records_stay_small(state: &State) {
    if !state.index.is_multiple_of(64) {
        return;
    }
    fn is_small(name: &str, record: &impl Serialize) {
        let length = serde_json::to_vec(record).expect("a record serialises").len();
        assert!(length <= RECORD, "T10: {name} takes {length} bytes");
    }
    state.tasks.values().for_each(|task| is_small(&task.container_name, task));
    state.nodes.iter().for_each(|(id, node)| is_small(id.as_str(), node));
    for (name, service) in state.stacks.values().flat_map(|stack| &stack.services) {
        is_small(name, service);
    }
    let others = (&state.timers, &state.successors, &state.withdrawing, &state.removed_nodes);
    is_small("what waits", &others);
}

/// O7: the end of a container makes no new task, but after five; its node starts it again, later each time. New tasks are what people asked for, the next
/// step of an update, or in the place of what is where it cannot stay; and never two in one slot at once.
fn nothing_is_made_without_cause(before: &State, state: &State, command: &Command) {
    let fresh: Vec<&Task> = state.tasks.values().filter(|task| !before.tasks.contains_key(&task.id)).collect();
    let slots: BTreeSet<_> = fresh.iter().map(|task| (&task.stack, &task.service, task.slot)).collect();
    let one_offs = fresh.iter().any(|task| task.one_off);
    assert!(one_offs || slots.len() == fresh.len(), "O7: one entry makes two tasks in one slot");
    if !matches!(command, Command::Report { report: NodeReport::Tasks(_) | NodeReport::Applied { .. }, .. }) {
        return;
    }
    for task in fresh {
        let rolls = |state: &State| {
            let service = state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service));
            service.is_some_and(orch_core::Service::is_rolling)
        };
        let stays = |other: &&Task| other.node.as_ref().is_some_and(|node| may_stay(before, node));
        let mut former = before.slot_tasks(&task.stack, &task.service, task.slot).filter(|other| other.is_replica());
        let fails = |other: &Task| state.tasks.get(&other.id).is_some_and(|other| other.failures.len() == 5);
        let fails = before.slot_tasks(&task.stack, &task.service, task.slot).any(fails);
        let is_guest = task.namespace_parents().next().is_some();
        let cause = rolls(before) || rolls(state) || fails || is_guest || former.any(|other| !stays(&other));
        assert!(cause, "O7: {} is made anew because a container ended", task.container_name);
    }
}

/// Whether tasks of a node may go on being there.
fn may_stay(state: &State, node: &NodeId) -> bool {
    let node = state.nodes.get(node);
    node.is_some_and(|node| node.state != NodeState::Down && node.availability != Availability::Drain)
}

/// T1, T3, T4: a task's node is for good; once on its way out it goes, unless its node came back or its successor failed.
fn tasks_move_forward(before: &State, state: &State) {
    for task in state.tasks.values() {
        let Some(former) = before.tasks.get(&task.id) else { continue };
        assert!(former.node.is_none() || former.node == task.node, "{} changed its node", task.container_name);
        let back = former.goal == DesiredTask::Removed && task.goal != DesiredTask::Removed;
        assert!(!back || former.hand_over.is_some(), "{} came back from the dead", task.container_name);
        assert!(former.told.is_none() || task.told.is_some(), "{} is not told of any more", task.container_name);
        assert!(task.told.is_none() || task.node.is_some(), "{} is told to nobody", task.container_name);
    }
    for revision in state.tasks.values().map(|task| task.revision) {
        assert!(state.revisions.contains_key(&revision), "T7: a revision that is used is gone");
    }
    for service in state.stacks.values().flat_map(|stack| stack.services.values()) {
        for former in &service.history {
            assert!(state.revisions.contains_key(&former.revision), "T7: a remembered revision is gone");
        }
    }
}

fn demand(state: &State, task: &Task) -> Usage {
    let resources = state.revision(task.revision).spec.resources();
    let unsigned = |amount: i64| u64::try_from(amount).unwrap_or(0);
    Usage {
        cpus: resources.reserved_cpus.map_or(0, |cpus| cpus.0),
        memory: resources.reserved_memory.map_or(0, |memory| unsigned(memory.0)),
        pids: resources.pids.map_or(0, unsigned),
        generic: BTreeMap::new(),
    }
}

/// What nodes and the list of the unplaced say is what follows from the tasks.
fn books_are_right(state: &State) {
    for (id, node) in &state.nodes {
        let own: BTreeSet<&TaskId> =
            state.tasks.values().filter(|task| task.node.as_ref() == Some(id)).map(|task| &task.id).collect();
        assert_eq!(own, node.tasks.iter().collect(), "the tasks of {id}");
        let mut usage = Usage::default();
        for task in state.tasks.values().filter(|task| task.node.as_ref() == Some(id)) {
            let all = demand(state, task);
            let former = task.takes_over.as_ref().and_then(|former| state.tasks.get(former));
            let shared = former.filter(|former| former.node == task.node).map(|former| demand(state, former));
            let net = |all: u64, shared: Option<u64>| all - shared.map_or(0, |shared| shared.min(all));
            usage.cpus += net(all.cpus, shared.as_ref().map(|shared| shared.cpus));
            usage.memory += net(all.memory, shared.as_ref().map(|shared| shared.memory));
            usage.pids += net(all.pids, shared.as_ref().map(|shared| shared.pids));
        }
        assert_eq!((usage.cpus, usage.memory), (node.usage.cpus, node.usage.memory), "the usage of {id}");
    }
    let unplaced: BTreeSet<&TaskId> =
        state.tasks.values().filter(|task| task.node.is_none()).map(|task| &task.id).collect();
    assert_eq!(unplaced, state.unplaced.iter().collect(), "the unplaced");
    let numbers: BTreeSet<u16> = state.nodes.values().map(|node| node.number).collect();
    assert_eq!(numbers.len(), state.nodes.len(), "two nodes have one number");
}

/// S1.
fn nothing_is_overcommitted(state: &State) {
    for (id, node) in &state.nodes {
        let has = node.capacity();
        assert!(has.cpus == 0 || node.usage.cpus <= has.cpus, "{id} has promised too many processors");
        assert!(has.memory == 0 || node.usage.memory <= has.memory, "{id} has promised too much memory");
        let mut ports: BTreeMap<(u16, &str), &str> = BTreeMap::new();
        for task in node.tasks.iter().filter_map(|id| state.tasks.get(id)) {
            if task.takes_over.as_ref().is_some_and(|former| state.tasks.contains_key(former)) {
                continue;
            }
            for port in task.ports() {
                let (first, last) = port.host_ports;
                if first == last && first > 0 {
                    let other = ports.insert((first, &port.protocol), &task.container_name);
                    assert!(other.is_none(), "{id}: {} and {other:?} publish one port", task.container_name);
                }
            }
        }
    }
}

/// S2, S3: a task was placed in this entry only where it may be.
fn placements_hold(before: &State, state: &State) {
    for task in state.tasks.values() {
        let fresh = before.tasks.get(&task.id).is_none_or(|former| former.node.is_none());
        let Some(node) = task.node.as_ref().filter(|_| fresh).and_then(|node| state.nodes.get(node)) else { continue };
        assert!(node.takes_tasks(), "{} was given to a node that takes nothing", task.container_name);
        let spec = &state.revision(task.revision).spec;
        let on_node = |other: &Task| other.node == task.node;
        let most = spec.deploy.placement.max_replicas_per_node;
        let same = node
            .tasks
            .iter()
            .filter_map(|id| state.tasks.get(id))
            .filter(|other| other.service == task.service && other.stack == task.stack && other.is_replica())
            // Those of another specification may have come after it, in the same entry.
            .filter(|other| other.revision == task.revision || before.tasks.get(&other.id).is_some_and(on_node));
        assert!(most == 0 || same.count() <= most as usize, "{} is one too many there", task.container_name);
        for constraint in &spec.deploy.placement.constraints {
            let same = constraint.operator == orch_spec::model::ConstraintOperator::Equal;
            if let Some(label) = constraint.key.strip_prefix("node.labels.").filter(|_| same) {
                let value = node.labels.get(label).cloned().unwrap_or_default();
                assert!(constraint.to_string().ends_with(&format!("== {value}")), "{constraint} is not met");
            }
        }
    }
}

/// S4, S7.
fn nothing_waits_that_fits(state: &State) {
    for task in state.unplaced.iter().filter_map(|id| state.tasks.get(id)).filter(|task| !task.is_retiring()) {
        if task.namespace_parents().next().is_some() {
            continue;
        }
        let explanation = Explanation::of(state, &task.id).expect("the task is there");
        assert_eq!(explanation.fitting(), 0, "{} waits although a node would take it", task.container_name);
        let sum: usize = explanation.counts().values().sum();
        assert_eq!(sum, state.nodes.len(), "S7");
        assert!(
            state.nodes.is_empty() || !task.unplaced.is_empty(),
            "{} does not say why it waits",
            task.container_name
        );
    }
}

/// I1.
fn addresses_are_one_holders(state: &State) {
    let mut seen: BTreeMap<(String, IpAddr), String> = BTreeMap::new();
    for task in state.tasks.values().filter(|task| task.told.is_some() && !task.lost) {
        if task.takes_over.as_ref().is_some_and(|former| state.tasks.contains_key(former)) {
            continue;
        }
        for endpoint in task.endpoints() {
            let addresses = [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)];
            for address in addresses.into_iter().flatten() {
                let other = seen.insert((endpoint.network.0.clone(), address), task.container_name.clone());
                assert!(other.is_none(), "{address} is {other:?}'s and {}'s", task.container_name);
            }
        }
    }
    let mut numbers = BTreeSet::new();
    for network in state.networks.values() {
        assert!(network.vni.is_none_or(|vni| numbers.insert(vni)), "two networks have one number");
        for pool in network.pools() {
            for (address, holder) in &pool.held {
                let there = match holder.split_once(':') {
                    Some(("task", id)) => state.tasks.contains_key(&id.into()),
                    Some(("container", id)) => network.reservations.get(id).is_some_and(|container| {
                        container.node.as_ref().is_none_or(|node| state.nodes.contains_key(node))
                    }),
                    Some(("vip", key)) => {
                        network.vips.contains_key(key) && {
                            let (stack, service) = key.split_once('/').expect("stack and service");
                            state.stacks.get(stack).is_some_and(|stack| stack.services.contains_key(service))
                        }
                    }
                    _ => false,
                };
                assert!(there, "{address} is held by {holder}, who is gone");
            }
        }
    }
}

/// What hands over goes only when its slot has another one that is fit for it, or nobody wants the slot.
fn the_only_copy_stays(before: &State, state: &State, command: &Command) {
    // One that has ended by itself in this entry was not taken away.
    let said = match command {
        Command::Report { report: NodeReport::Tasks(statuses), .. } => statuses.as_slice(),
        _ => &[],
    };
    let ended: BTreeSet<&TaskId> =
        said.iter().filter(|status| status.state >= TaskState::Exited).map(|status| &status.task).collect();
    for former in before.tasks.values().filter(|task| task.hand_over.is_some() && task.may_live()) {
        let gone = state.tasks.get(&former.id).is_none_or(|task| task.told == Some(DesiredTask::Removed));
        let was_told = former.told == Some(DesiredTask::Removed);
        let removed = former.node.as_ref().is_none_or(|node| !state.nodes.contains_key(node));
        let late = former.hand_over_by.is_some_and(|by| by <= state.time);
        // A change that takes everything away at once has said so.
        let called_off = state.tasks.get(&former.id).is_some_and(|task| task.hand_over.is_none());
        if !gone || was_told || removed || late || called_off || ended.contains(&former.id) {
            continue;
        }
        let others = state.service_tasks(&former.stack, &former.service);
        let others: Vec<&Task> =
            others.filter(|task| !task.one_off && task.slot == former.slot && task.id != former.id).collect();
        // One that was ready and is replaced in its turn in the same entry is still there.
        let made = |task: &Task| task.status.state >= TaskState::Created && task.status.state < TaskState::Exited;
        let unwanted = !others.iter().any(|task| task.is_replica());
        let fit = unwanted || others.iter().any(|task| task.is_ready() || made(task));
        assert!(fit, "{} was taken away before there was another", former.container_name);
    }
}

/// Two that stay are never in one slot.
fn slots_run_once(state: &State) {
    let mut seen = BTreeSet::new();
    for task in state.tasks.values().filter(|task| task.is_replica()) {
        let slot = (&task.stack, &task.service, task.slot);
        assert!(seen.insert(slot), "two tasks stay in the slot of {}", task.container_name);
    }
}

/// Lists that are kept for quick answers say what follows from the tasks, and whoever may go on has gone on.
pub(crate) fn lists_are_right(state: &State) {
    let mut seated = 0;
    for (stack, service, seats) in
        state.stacks.values().flat_map(|stack| stack.tasks.iter().map(move |(service, seats)| (stack, service, seats)))
    {
        seated += seats.len();
        assert!(!seats.is_empty(), "an empty list of {service}");
        for id in seats.iter() {
            let task = &state.tasks[id];
            assert!(task.stack == stack.name && task.service == *service && seats.contains(task), "{task:?}");
        }
    }
    assert_eq!(seated, state.tasks.len(), "tasks in no list, or in two");
    let named: usize = state.names.values().map(BTreeSet::len).sum();
    assert_eq!(named, state.tasks.len(), "the names");
    for task in state.tasks.values() {
        assert!(
            state.names[&task.container_name].contains(&(task.sequence, task.id.clone())),
            "the name {}",
            task.container_name
        );
    }
    for stack in state.stacks.values() {
        for id in stack.restless.values().flat_map(orch_core::Seats::iter) {
            assert!(state.tasks.contains_key(id), "{id} is gone and does not rest");
        }
    }
    // What waits for a time goes on at the tick that is due.
    if state.next_timer().is_some_and(|at| at <= state.time) {
        return;
    }
    let unsettled: Vec<_> = state.unsettled().into_iter().map(|task| (&task.container_name, &task.waiting)).collect();
    assert!(unsettled.is_empty(), "these could go on: {unsettled:?}");
}
