//! The gate: how much of its goal a task's node may be told now, and what the rest waits for.
//!
//! A task is told of only after the former holder of its slot, name, ports and addresses is gone. It is created at once, so that its
//! image and mounts are ready, and started when what it depends on allows it; that permission holds until it is stopped by request.
//! It is told to go down only after those that depend on it and go down too are down.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, Health, TaskState};
use orch_spec::model::{DependencyCondition, NamespaceMode, NetworkMode, ServiceSpec};

use crate::presence::{self, Missing};
use crate::state::{HandOver, NodeState, Stack, State, Task, Wait};
use crate::{endpoint, place};

/// What a task's node may be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) told: Option<DesiredTask>,
    pub(crate) told_generation: u64,
    pub(crate) released: bool,
    pub(crate) waiting: Vec<Wait>,
    pub(crate) blocked: String,
    /// No node has ever been told of it and it is on its way out, or its node is lost: it is gone.
    pub(crate) gone: bool,
    /// It is to be taken out of load balancing now.
    pub(crate) withdraw: bool,
    /// When it is to be looked at again, whatever happens, by the log's time.
    pub(crate) again_at: Option<u64>,
}

/// How far a service is, as one that depends on it sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Not yet, with the reason.
    Waiting(String),
    /// It will not be without somebody's doing, with the reason.
    Failed(String),
}

/// Readiness and liveness of services, kept while many tasks of one pass ask for the same.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    readiness: BTreeMap<(String, String, DependencyCondition), Readiness>,
    siblings: BTreeMap<(String, String), Siblings>,
    leaving: BTreeMap<(String, String), Vec<String>>,
}

impl Memory {
    /// A task of the service is not what it was.
    pub(crate) fn forget(&mut self, stack: &str, service: &str) {
        if self.readiness.is_empty() && self.siblings.is_empty() && self.leaving.is_empty() {
            return;
        }
        let conditions =
            [DependencyCondition::Started, DependencyCondition::Healthy, DependencyCondition::CompletedSuccessfully];
        for condition in conditions {
            self.readiness.remove(&(stack.to_owned(), service.to_owned(), condition));
        }
        self.siblings.remove(&(stack.to_owned(), service.to_owned()));
        // Whose dependents are leaving is asked by what they depend on: too fine to follow, cheap to ask again.
        self.leaving.clear();
    }
}

/// Services that must be there for a service: what it depends on, and whose namespaces it joins.
pub(crate) fn needs(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    let network = match &spec.network_mode {
        NetworkMode::Service(service) => Some(service.as_str()),
        _ => None,
    };
    let namespaces = [&spec.pid, &spec.ipc].into_iter().filter_map(|mode| match mode {
        NamespaceMode::Service(service) => Some(service.as_str()),
        _ => None,
    });
    spec.depends_on.keys().map(String::as_str).chain(network).chain(namespaces)
}

/// Whether the order downwards passes through a task: it has run and ended by itself.
pub(crate) fn passes_through(task: &Task) -> bool {
    task.told.is_some() && task.status.state == TaskState::Exited
}

/// What the task's node may be told now.
pub(crate) fn evaluate(state: &State, task: &Task, memory: &mut Memory) -> Gate {
    match task.goal {
        DesiredTask::Removed | DesiredTask::Stopped => downward(state, task, memory),
        DesiredTask::Created | DesiredTask::Running | DesiredTask::Paused => upward(state, task, memory),
    }
}

/// Whether a task that has just passed the gate has been told all of its goal, and waits for nothing: what happens to others does not
/// concern it any more, only what its node says or people want.
pub(crate) fn rests(task: &Task) -> bool {
    let goes = matches!(task.goal, DesiredTask::Removed | DesiredTask::Stopped);
    task.told == Some(task.goal) && task.waiting.is_empty() && (goes || task.goal_generation == task.told_generation)
}

impl State {
    /// Tasks that would be told something else, or would wait for something else, if the gate looked at all of them: none, unless
    /// settling has missed one. For tests of every kind.
    pub fn unsettled(&self) -> Vec<&Task> {
        let mut memory = Memory::default();
        let differs = |task: &&Task| {
            let gate = evaluate(self, task, &mut memory);
            let same = (gate.told, gate.released, &gate.waiting) == (task.told, task.released, &task.waiting);
            gate.gone || !same
        };
        self.tasks.values().filter(differs).collect()
    }
}

/// What a task waits for that is taken out of load balancing.
const LETTING_GO: &str = "load balancers to let go of it";

fn unchanged(task: &Task) -> Gate {
    Gate { told: task.told, told_generation: task.told_generation, released: task.released, ..Gate::default() }
}

fn downward(state: &State, task: &Task, memory: &mut Memory) -> Gate {
    let mut gate = unchanged(task);
    if task.told.is_none() {
        gate.gone = task.goal == DesiredTask::Removed;
        return gate;
    }
    let lost = task.goal == DesiredTask::Removed
        && task.node.as_ref().is_none_or(|node| state.node_state(node) == NodeState::Down);
    if task.told == Some(task.goal) {
        gate.gone = lost;
        return gate;
    }
    if let Some(wait) = before_hand_over(state, task) {
        gate.waiting.push(wait);
        return gate;
    }
    if lost {
        // Its node removes by itself what it is not told of any more.
        gate.gone = true;
        return gate;
    }
    if task.hand_over == Some(HandOver::Prepared) && too_few_would_be_left(state, task, &mut gate) {
        return gate;
    }
    // A step from stopped to removed needs no more waiting than the stop did.
    let leaving =
        if task.unordered || task.hand_over.is_some() { Vec::new() } else { leaving_dependents(state, task, memory) };
    if leaving.is_empty() {
        if endpoint::must_withdraw(state, task) && !endpoint::is_withdrawn(state, task) {
            gate.withdraw = true;
            let text = LETTING_GO.to_owned();
            gate.waiting.push(Wait { kind: "endpoint".to_owned(), on: task.container_name.clone(), text });
        } else {
            gate.told = Some(task.goal);
        }
    } else {
        gate.waiting = leaving
            .into_iter()
            .map(|name| Wait {
                kind: "dependent".to_owned(),
                text: format!("container {name} to be down first"),
                on: name,
            })
            .collect();
    }
    gate
}

/// How a task of a service that depends on another holds that other one up.
#[derive(PartialEq)]
enum Hold {
    /// It goes down too, and may still live or has not been told yet.
    Itself,
    /// It has ended by itself: those that depend on it hold up what it depended on.
    Through,
}

fn hold(state: &State, other: &Task, needed: &str) -> Option<Hold> {
    // One that is replaced leaves its service as it is.
    let goes = matches!(other.goal, DesiredTask::Stopped | DesiredTask::Removed) && other.hand_over.is_none();
    let hold = if goes && (other.may_live() || other.told.is_some_and(|told| told != other.goal)) {
        Hold::Itself
    } else if passes_through(other) {
        Hold::Through
    } else {
        return None;
    };
    needs(&state.revision(other.revision).spec).any(|name| name == needed).then_some(hold)
}

/// Containers that go down too, depend on this task's service and may still live, or have not been told to go yet. The order passes
/// through containers that have ended by themselves: what depends on a finished migration depends on its database as well.
fn leaving_dependents(state: &State, task: &Task, memory: &mut Memory) -> Vec<String> {
    let key = (task.stack.clone(), task.service.clone());
    if let Some(known) = memory.leaving.get(&key) {
        return known.clone();
    }
    let Some(stack) = state.stacks.get(&task.stack) else { return Vec::new() };
    let dependents = |of: &String| stack.dependents.get(of).into_iter().flatten();
    let mut names = Vec::new();
    let mut seen = BTreeSet::from([&task.service]);
    let mut passed = vec![&task.service];
    while let Some(needed) = passed.pop() {
        for service in dependents(needed).filter(|service| seen.insert(service)) {
            let mut through = false;
            for other in state.service_tasks(&task.stack, service) {
                match hold(state, other, needed) {
                    Some(Hold::Itself) => names.push(other.container_name.clone()),
                    Some(Hold::Through) => through = true,
                    None => {}
                }
            }
            if through {
                passed.push(service);
            }
        }
    }
    if !names.is_empty() && waits_for_itself(state, stack, &task.service) {
        names.clear();
    }
    memory.leaving.insert(key, names.clone());
    names
}

/// Whether the order downwards goes round in a circle. No file has one, but tasks that were made from several versions of a file may;
/// they go without order rather than never.
fn waits_for_itself(state: &State, stack: &Stack, service: &String) -> bool {
    let mut seen = BTreeSet::new();
    let mut reached = vec![service];
    while let Some(needed) = reached.pop() {
        for dependent in stack.dependents.get(needed).into_iter().flatten() {
            let mut tasks = state.service_tasks(&stack.name, dependent);
            if !seen.contains(dependent) && tasks.any(|other| hold(state, other, needed).is_some()) {
                if dependent == service {
                    return true;
                }
                seen.insert(dependent);
                reached.push(dependent);
            }
        }
    }
    false
}

/// What a task that is to go waits for in its slot: the only copy is never taken away.
fn before_hand_over(state: &State, task: &Task) -> Option<Wait> {
    let hand_over = task.hand_over?;
    if !task.may_live() || task.hand_over_by.is_some_and(|deadline| deadline <= state.time) {
        return None;
    }
    // Without one, the slot is not wanted any more.
    let next = state.slot_tasks(&task.stack, &task.service, task.slot).rfind(|other| other.is_replica())?;
    let (there, text) = match hand_over {
        HandOver::Prepared => (is_prepared(next), "to be prepared"),
        HandOver::Ready => (next.is_ready(), "to be ready"),
    };
    let on = next.container_name.clone();
    let text = format!("its replacement {on} {text}");
    (!there).then(|| Wait { kind: "successor".to_owned(), on, text })
}

/// Whether a task's container is made and can be started at once.
fn is_prepared(task: &Task) -> bool {
    task.told.is_some()
        && !matches!(
            task.status.state,
            TaskState::Pending | TaskState::Assigned | TaskState::Preparing | TaskState::Failed | TaskState::Removed
        )
}

fn upward(state: &State, task: &Task, memory: &mut Memory) -> Gate {
    let mut gate = unchanged(task);
    if task.told.is_none() {
        gate.waiting = before_creation(state, task);
        if !gate.waiting.is_empty() {
            return gate;
        }
    }
    if task.goal == DesiredTask::Created {
        gate.told = Some(task.told.unwrap_or(DesiredTask::Created));
        return gate;
    }
    if task.released {
        gate.told = Some(task.goal);
        if task.goal_generation == task.told_generation {
            return gate;
        }
    }
    dependencies(state, task, memory, &mut gate);
    if gate.waiting.is_empty() && task.released {
        before_restart(state, task, memory, &mut gate);
    }
    if gate.waiting.is_empty() {
        gate.released = true;
        gate.told = Some(task.goal);
        gate.told_generation = task.goal_generation;
    } else if !task.released {
        gate.told = Some(task.told.unwrap_or(DesiredTask::Created));
    }
    gate
}

/// What must be true on a cluster before a container that runs is stopped to be started again: no more of its service are missing with it
/// than an update may replace at a time, and nobody is sent there any more. One that is not there itself takes nothing away, and waits
/// for those only that are being started again.
fn before_restart(state: &State, task: &Task, memory: &mut Memory, gate: &mut Gate) {
    if !endpoint::must_withdraw(state, task) || endpoint::is_withdrawn(state, task) {
        return;
    }
    let update = state.revision(task.revision).spec.deploy.update_config.unwrap_or_default();
    let width = update.parallelism.unwrap_or(1) as usize;
    let mut wait = |kind: &str, text: String| {
        gate.waiting.push(Wait { kind: kind.to_owned(), on: task.container_name.clone(), text });
    };
    if task.withdrawn.is_none() && width > 0 {
        let others = siblings(state, task, memory);
        let too_many = others.under_way + others.missing.slots.len() >= width && presence::is_there(state, task);
        if too_many || others.under_way >= width {
            let whom = others.under_way_first.as_ref().or_else(|| others.missing.slots.values().next());
            wait("sibling", format!("others of its service to be well again: {}", whom.map_or("", String::as_str)));
            gate.again_at = others.missing.until;
            return;
        }
    }
    wait("endpoint", LETTING_GO.to_owned());
    gate.withdraw = true;
}

/// Whether an update that stops a task before it starts the next one must wait with that, because too many others have been lost since it
/// turned to this one.
fn too_few_would_be_left(state: &State, task: &Task, gate: &mut Gate) -> bool {
    let service = state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service));
    let Some(rollout) = service.and_then(|service| service.rollout.as_ref()) else { return false };
    let width = rollout.rules.parallelism as usize;
    let mut others = state.slot_tasks(&task.stack, &task.service, task.slot).filter(|other| other.id != task.id);
    // One that is not there takes nothing away, nor does one whose slot has another.
    if width == 0 || !presence::is_there(state, task) || others.any(|other| presence::is_there(state, other)) {
        return false;
    }
    let mut missing = presence::missing(state, &task.stack, &task.service);
    missing.tolerate(state, &rollout.failed);
    let Some(whom) = missing.slots.values().next().filter(|_| missing.slots.len() >= width) else { return false };
    let text = format!("others of its service to be well again: {whom}");
    gate.waiting.push(Wait { kind: "sibling".to_owned(), on: task.container_name.clone(), text });
    gate.again_at = missing.until;
    true
}

/// Of a service: those on their way down and up again, and slots in which nobody is there though nobody is being started again there.
#[derive(Debug, Clone, Default)]
struct Siblings {
    under_way: usize,
    /// The first of these, and what it does.
    under_way_first: Option<String>,
    missing: Missing,
}

fn siblings<'m>(state: &State, task: &Task, memory: &'m mut Memory) -> &'m Siblings {
    memory.siblings.entry((task.stack.clone(), task.service.clone())).or_insert_with(|| {
        let missing = presence::missing(state, &task.stack, &task.service);
        let mut found = Siblings { missing, ..Siblings::default() };
        for other in state.service_tasks(&task.stack, &task.service).filter(|other| is_under_way(state, other)) {
            found.under_way += 1;
            found.under_way_first.get_or_insert_with(|| presence::describe(state, other));
            if !other.one_off {
                found.missing.slots.remove(&other.slot);
            }
        }
        found
    })
}

/// Whether a task is on its way down and up again, or not yet well. Who has failed, or is on a node that is lost, is not.
fn is_under_way(state: &State, task: &Task) -> bool {
    let goes = matches!(task.goal, DesiredTask::Stopped | DesiredTask::Removed);
    let is_here = task.node.as_ref().is_some_and(|node| state.node_state(node) != NodeState::Down);
    let is_behind = task.told.is_some() && task.told_generation > task.status.restart_generation;
    let comes_up = match task.status.state {
        TaskState::Starting => true,
        TaskState::Running => task.status.health == Health::Starting,
        _ => false,
    };
    let is_moving = task.withdrawn.is_some() || is_behind || comes_up && task.goal_generation == task.told_generation;
    !goes && is_here && is_moving
}

/// What must be gone, or there, before the container can be made.
fn before_creation(state: &State, task: &Task) -> Vec<Wait> {
    let mut waits = Vec::new();
    let mut wait =
        |kind: &str, on: &str, text: String| waits.push(Wait { kind: kind.to_owned(), on: on.to_owned(), text });
    // One that hands over goes after its successor is there, not before.
    for former in task.after.iter().filter_map(|id| state.tasks.get(id)).filter(|former| former.hand_over.is_none()) {
        let name = &former.container_name;
        wait("former", name, format!("the former container {name} to be removed"));
    }
    for network in task.networks() {
        if state.networks.get(network).is_none_or(|network| !network.is_active()) {
            wait("network", network.as_str(), format!("network {network} to be made anew"));
        }
    }
    for parent in task.namespace_parents() {
        match state.tasks.get(parent) {
            Some(parent) if parent.told.is_some() => {}
            Some(parent) => {
                let name = &parent.container_name;
                wait("namespace", name, format!("container {name}, whose namespace it shares"));
            }
            None => {
                wait("namespace", parent.as_str(), "a container whose namespace it shares, which is gone".to_owned())
            }
        }
    }
    // Made before them, it would be made without their mounts: its node knows only of those that it has been told of.
    for from in state.revision(task.revision).spec.volumes_from.iter().filter(|from| !from.container) {
        let comes = |other: &&Task| other.is_replica() && other.told.is_none() && other.goal != DesiredTask::Removed;
        if let Some(lender) = state.service_tasks(&task.stack, &from.source).find(comes) {
            let name = &lender.container_name;
            wait("mounts", name, format!("container {name}, whose mounts it takes over"));
        }
    }
    if task.node.is_none() {
        let text = if task.unplaced.is_empty() {
            "a node to run on".to_owned()
        } else {
            format!("a node to run on ({})", task.unplaced)
        };
        wait("node", "", text);
    }
    waits
}

/// What must be true before the container may start.
fn dependencies(state: &State, task: &Task, memory: &mut Memory, gate: &mut Gate) {
    if let Some(former) = place::former(state, task) {
        let name = &former.container_name;
        let text = format!("the former container {name} to be removed");
        gate.waiting.push(Wait { kind: "former".to_owned(), on: name.clone(), text });
    }
    for parent in task.namespace_parents() {
        let alive = state.tasks.get(parent).is_some_and(Task::has_process);
        if !alive {
            let name = state.tasks.get(parent).map_or(parent.as_str(), |parent| parent.container_name.as_str());
            let text = format!("container {name}, whose namespace it shares, to run");
            gate.waiting.push(Wait { kind: "namespace".to_owned(), on: name.to_owned(), text });
        }
    }
    if task.ungated {
        return;
    }
    let spec = &state.revision(task.revision).spec;
    for (service, dependency) in &spec.depends_on {
        let verb = match dependency.condition {
            DependencyCondition::Started => "start",
            DependencyCondition::Healthy => "become healthy",
            DependencyCondition::CompletedSuccessfully => "complete",
        };
        let text = match readiness(state, &task.stack, service, dependency.condition, memory) {
            Readiness::Ready => continue,
            Readiness::Failed(_) if !dependency.required => continue,
            Readiness::Waiting(why) => format!("service {service} to {verb} ({why})"),
            Readiness::Failed(why) => {
                if gate.blocked.is_empty() {
                    gate.blocked.clone_from(&why);
                }
                format!("service {service} to {verb} ({})", why.trim_start_matches(FAILURE))
            }
        };
        gate.waiting.push(Wait { kind: "dependency".to_owned(), on: service.clone(), text });
    }
}

/// How every reason begins that goes from a failed container to all that hang on it; Compose's words.
const FAILURE: &str = "dependency failed to start: ";

fn readiness(
    state: &State,
    stack: &str,
    service: &str,
    condition: DependencyCondition,
    memory: &mut Memory,
) -> Readiness {
    let key = (stack.to_owned(), service.to_owned(), condition);
    if let Some(known) = memory.readiness.get(&key) {
        return known.clone();
    }
    let mut found = Readiness::Ready;
    for task in state.service_tasks(stack, service).filter(|task| task.is_replica()) {
        match of_task(task, condition) {
            Readiness::Ready => {}
            Readiness::Waiting(why) => {
                if found == Readiness::Ready {
                    found = Readiness::Waiting(why);
                }
            }
            failed @ Readiness::Failed(_) => {
                found = failed;
                break;
            }
        }
    }
    memory.readiness.insert(key, found.clone());
    found
}

fn of_task(task: &Task, condition: DependencyCondition) -> Readiness {
    let name = &task.container_name;
    let waiting = |what: &str| Readiness::Waiting(format!("{name} {what}"));
    let failed = |what: String| Readiness::Failed(format!("{FAILURE}container {name} {what}"));
    if !task.blocked.is_empty() && !task.released {
        return Readiness::Failed(task.blocked.clone());
    }
    if task.goal == DesiredTask::Running && task.goal_generation > task.status.restart_generation {
        return waiting("is being started again");
    }
    let (state, code) = (task.status.state, task.status.exit_code);
    if state == TaskState::Exited && condition == DependencyCondition::CompletedSuccessfully {
        return match code {
            Some(0) => Readiness::Ready,
            Some(code) => failed(format!("exited ({code})")),
            None => failed("ended without an exit code".to_owned()),
        };
    }
    if task.goal == DesiredTask::Created {
        return waiting("is not to be started");
    }
    if task.goal == DesiredTask::Stopped {
        return waiting("is stopped");
    }
    if state == TaskState::Failed {
        let why = if task.status.error.is_empty() { "no reason given" } else { &task.status.error };
        return failed(format!("could not be started: {why}"));
    }
    match condition {
        DependencyCondition::Started if task.was_started() => Readiness::Ready,
        DependencyCondition::Healthy => match (state, task.status.health) {
            (TaskState::Exited, _) => failed(code.map_or("ended".to_owned(), |code| format!("exited ({code})"))),
            (_, Health::Unhealthy) => failed("is unhealthy".to_owned()),
            (TaskState::Running | TaskState::Paused, Health::Healthy) => Readiness::Ready,
            (TaskState::Running, Health::None) => failed("has no health check".to_owned()),
            (TaskState::Running, Health::Starting) => waiting("is running, its health is not known yet"),
            _ => waiting(&format!("is {}", word(state))),
        },
        DependencyCondition::Started | DependencyCondition::CompletedSuccessfully => {
            waiting(&format!("is {}", word(state)))
        }
    }
}

/// The state in a sentence.
pub(crate) fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Pending => "waiting",
        TaskState::Assigned => "assigned",
        TaskState::Preparing => "being prepared",
        TaskState::Created => "created",
        TaskState::Starting => "starting",
        TaskState::Running => "running",
        TaskState::Paused => "paused",
        TaskState::Restarting => "restarting",
        TaskState::Stopping => "stopping",
        TaskState::Exited => "ended",
        TaskState::Failed => "failed",
        TaskState::Removed => "removed",
    }
}
