//! Decides what to do next on this node: a pure function from what is desired and what is observed to operations.
//!
//! Level-triggered: it knows no history but what [`TaskRecord`](crate::task::TaskRecord) holds, so it says the same after a crash at any
//! point, and the empty plan once everything is as desired. Executing an operation never decides anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use orch_spec::assignment::{Assignment, DesiredTask, NetworkName, TaskAssignment, TaskId, TaskNetwork};

use crate::task::{ContainerState, ObservedTask, ObservedTasks, Restart, TaskRecord, after_end, retry};

/// One act on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Make a bridge.
    CreateNetwork(NetworkName),
    /// Remove a bridge that nothing is attached to.
    RemoveNetwork(NetworkName),
    /// Make a named volume, or look that an external one is there.
    CreateVolume(String),
    /// Delete a volume and what is in it.
    RemoveVolume(String),
    /// Get an image, which is named by its id, from another node.
    FetchImage(String),
    /// Find the image and make the container.
    CreateContainer(TaskId),
    /// Make the network namespace where it is missing, and start the container.
    StartContainer {
        /// Which.
        task: TaskId,
        /// Why, and so how it counts.
        cause: StartCause,
    },
    /// Stop the container with grace.
    StopContainer {
        /// Which.
        task: TaskId,
        /// Somebody asked for it: the policy rests afterwards.
        by_request: bool,
    },
    /// Freeze.
    PauseContainer(TaskId),
    /// Thaw.
    UnpauseContainer(TaskId),
    /// Take the network namespace of a container that runs onto a further network.
    Connect(TaskId, NetworkName),
    /// Take it off a network.
    Disconnect(TaskId, NetworkName),
    /// Remove the network namespace of a container that does not run.
    RemoveSandbox(TaskId),
    /// Remove the container and its network namespace.
    RemoveContainer(TaskId),
}

/// Why a container is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartCause {
    /// It shall run.
    Desired,
    /// `restart` was asked for.
    Asked,
    /// Its policy says so.
    Policy,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateNetwork(name) => write!(f, "create network {name}"),
            Self::RemoveNetwork(name) => write!(f, "remove network {name}: no longer assigned"),
            Self::CreateVolume(name) => write!(f, "create volume {name}"),
            Self::RemoveVolume(name) => write!(f, "remove volume {name}"),
            Self::FetchImage(image) => write!(f, "fetch image {image}"),
            Self::CreateContainer(task) => write!(f, "create container of {task}"),
            Self::StartContainer { task, cause } => {
                let why = match cause {
                    StartCause::Desired => "shall run",
                    StartCause::Asked => "restart asked for",
                    StartCause::Policy => "restart policy",
                };
                write!(f, "start container of {task}: {why}")
            }
            Self::StopContainer { task, by_request: true } => write!(f, "stop container of {task}: asked for"),
            Self::StopContainer { task, by_request: false } => write!(f, "stop container of {task}: to be restarted"),
            Self::PauseContainer(task) => write!(f, "pause container of {task}"),
            Self::UnpauseContainer(task) => write!(f, "unpause container of {task}"),
            Self::Connect(task, network) => write!(f, "connect {task} to network {network}"),
            Self::Disconnect(task, network) => write!(f, "disconnect {task} from network {network}"),
            Self::RemoveSandbox(task) => write!(f, "remove network namespace of {task}: does not run"),
            Self::RemoveContainer(task) => write!(f, "remove container of {task}"),
        }
    }
}

/// An image that this node lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MissingImage {
    /// It is being fetched.
    pub busy: bool,
    /// When to try next, milliseconds since the epoch.
    pub again_at: u64,
    /// Failed tries so far.
    pub tries: u32,
    /// What is being done, or why it did not work: for people.
    pub note: String,
}

/// What is observed, beside the tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Tasks with something on this node.
    pub tasks: ObservedTasks,
    /// Bridges of ours that exist.
    pub networks: BTreeSet<NetworkName>,
    /// Bridges that are being made or removed.
    pub busy_networks: BTreeSet<NetworkName>,
    /// Volumes that exist.
    pub volumes: BTreeSet<String>,
    /// Volumes that are being made or removed.
    pub busy_volumes: BTreeSet<String>,
    /// Images by id that a task needs and this node was found to lack.
    pub images: BTreeMap<String, MissingImage>,
    /// Networks, volumes that could not be made and images that nobody can give, with the reason: their tasks fail with it.
    pub failures: BTreeMap<String, String>,
}

/// What to do now, and when to look again though nothing happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePlan {
    /// Operations that can all start now; what depends on them is planned when they are done.
    pub operations: Vec<Operation>,
    /// Milliseconds since the epoch.
    pub wake_at: Option<u64>,
}

/// Plans. `desired` are all tasks of this node, those of the assignment and those of containers that belong to no stack.
pub fn plan(assignment: &Assignment, desired: &[&TaskAssignment], observed: &Observed, now: u64) -> NodePlan {
    let mut out = NodePlan::default();
    let by_id: BTreeMap<&TaskId, &TaskAssignment> = desired.iter().map(|t| (&t.id, *t)).collect();
    networks(assignment, &by_id, observed, &mut out);
    volumes(assignment, observed, &mut out);
    images(desired, observed, now, &mut out);
    // What another control plane had made is not ours to remove: one that has lost its log comes back as another.
    let ours = |seen: &ObservedTask| {
        seen.cluster.is_empty() || assignment.cluster.is_empty() || seen.cluster == assignment.cluster
    };
    let strays: Vec<_> = observed.tasks.iter().filter(|(id, seen)| !by_id.contains_key(id) && ours(seen)).collect();
    // A stack that was taken down and brought up again while this node was away: who tells it of the new containers knows of no former ones.
    let leaving = strays.iter().filter_map(|(_, seen)| Some(seen.container.as_ref()?.name.as_str()));
    let leaving: BTreeSet<&str> = leaving.collect();
    for task in desired {
        let none = ObservedTask::default();
        let seen = observed.tasks.get(&task.id).unwrap_or(&none);
        let is_made = seen.container.is_some() || task.desired == DesiredTask::Removed;
        let waits = !is_made && leaving.contains(task.container_name.as_str());
        if seen.activity.is_none() && !waits {
            task_operation(task, seen, &by_id, observed, now, &mut out);
        }
    }
    for (id, seen) in strays {
        if seen.activity.is_none() {
            removal(id, seen, &mut out);
        }
    }
    out
}

fn networks(
    assignment: &Assignment,
    by_id: &BTreeMap<&TaskId, &TaskAssignment>,
    observed: &Observed,
    out: &mut NodePlan,
) {
    let wanted: BTreeSet<&NetworkName> = assignment.networks.iter().map(|n| &n.name).collect();
    for name in &wanted {
        let failed = observed.failures.contains_key(name.as_str());
        if !observed.networks.contains(*name) && !observed.busy_networks.contains(*name) && !failed {
            out.operations.push(Operation::CreateNetwork((*name).clone()));
        }
    }
    // A bridge goes only after the last namespace on it: its tasks are gone from `tasks` or have no sandbox any more.
    let in_use: BTreeSet<&NetworkName> = by_id
        .values()
        .filter(|t| observed.tasks.get(&t.id).is_some_and(|seen| seen.sandbox || seen.activity.is_some()))
        .flat_map(|t| networks_of(t))
        .chain(observed.tasks.values().flat_map(|seen| &seen.attached))
        .collect();
    let strays = observed.tasks.iter().any(|(id, seen)| seen.sandbox && !by_id.contains_key(id));
    for name in &observed.networks {
        let gone = !wanted.contains(name) && !in_use.contains(name) && !strays;
        if gone && !observed.busy_networks.contains(name) {
            out.operations.push(Operation::RemoveNetwork(name.clone()));
        }
    }
}

fn volumes(assignment: &Assignment, observed: &Observed, out: &mut NodePlan) {
    for volume in &assignment.volumes {
        let failed = observed.failures.contains_key(&volume.name);
        if !observed.volumes.contains(&volume.name) && !observed.busy_volumes.contains(&volume.name) && !failed {
            out.operations.push(Operation::CreateVolume(volume.name.clone()));
        }
    }
    for name in &assignment.removed_volumes {
        if !observed.busy_volumes.contains(name) {
            out.operations.push(Operation::RemoveVolume(name.clone()));
        }
    }
}

fn images(desired: &[&TaskAssignment], observed: &Observed, now: u64, out: &mut NodePlan) {
    for (id, missing) in observed.images.iter().filter(|(_, missing)| !missing.busy) {
        let needed = desired.iter().any(|task| {
            let may = !matches!(task.desired, DesiredTask::Removed | DesiredTask::Stopped);
            let seen = observed.tasks.get(&task.id);
            let tried =
                |seen: &ObservedTask| seen.container.is_none() && next_try(task, &seen.record) != Restart::Never;
            may && task.image_id == *id && seen.is_none_or(tried)
        });
        if needed && is_due(Restart::At(missing.again_at), now, out) {
            out.operations.push(Operation::FetchImage(id.clone()));
        }
    }
}

/// The networks that a task is attached to.
pub fn networks_of(task: &TaskAssignment) -> impl Iterator<Item = &NetworkName> {
    match &task.network {
        TaskNetwork::Endpoints { endpoints, .. } => endpoints.iter(),
        _ => [].iter(),
    }
    .map(|e| &e.network)
}

fn task_operation(
    task: &TaskAssignment,
    seen: &ObservedTask,
    by_id: &BTreeMap<&TaskId, &TaskAssignment>,
    observed: &Observed,
    now: u64,
    out: &mut NodePlan,
) {
    let id = || task.id.clone();
    if task.desired == DesiredTask::Removed {
        return removal(&task.id, seen, out);
    }
    let asked = is_asked(task, &seen.record);
    let Some(container) = &seen.container else {
        let may = task.desired != DesiredTask::Stopped && is_due(next_try(task, &seen.record), now, out);
        let lending = lenders(task, by_id.values().copied()).map(|(lender, _)| &lender.id);
        if may && ready(task, observed) && made(owners(task).chain(lending), observed) {
            out.operations.push(Operation::CreateContainer(id()));
        }
        return;
    };
    let runs = matches!(container.state, ContainerState::Running | ContainerState::Paused);
    match (task.desired, container.state) {
        (DesiredTask::Stopped, _) if runs => {
            out.operations.push(Operation::StopContainer { task: id(), by_request: true });
        }
        (DesiredTask::Created | DesiredTask::Stopped, _) => release(task, seen, by_id, observed, out),
        (DesiredTask::Running, ContainerState::Paused) => out.operations.push(Operation::UnpauseContainer(id())),
        (DesiredTask::Paused, ContainerState::Running) => out.operations.push(Operation::PauseContainer(id())),
        (_, ContainerState::Running | ContainerState::Paused) if asked => {
            out.operations.push(Operation::StopContainer { task: id(), by_request: false });
        }
        (_, ContainerState::Running | ContainerState::Paused) => rewire(task, seen, observed, out),
        (_, ContainerState::Created) => {
            let may = is_due(next_try(task, &seen.record), now, out);
            if may && ready(task, observed) && namespaces_run(task, observed) {
                let cause = match &seen.record.error {
                    _ if asked => StartCause::Asked,
                    Some(_) => StartCause::Policy,
                    None => StartCause::Desired,
                };
                out.operations.push(Operation::StartContainer { task: id(), cause });
            }
        }
        (_, ContainerState::Exited) => {
            let cause = if asked {
                StartCause::Asked
            } else if seen.record.stopped_by_request {
                StartCause::Desired
            } else {
                match after_end(task, container, &seen.record, now) {
                    Restart::Never => return release(task, seen, by_id, observed, out),
                    other if !is_due(other, now, out) => return,
                    _ => StartCause::Policy,
                }
            };
            if ready(task, observed) && namespaces_run(task, observed) {
                out.operations.push(Operation::StartContainer { task: id(), cause });
            }
        }
    }
}

/// Whether somebody wants it started once more.
fn is_asked(task: &TaskAssignment, record: &TaskRecord) -> bool {
    record.restart_generation < task.restart_generation
}

/// When a container that has not run yet may be made or started: at once, but after a failure only if somebody asks or its policy says so.
fn next_try(task: &TaskAssignment, record: &TaskRecord) -> Restart {
    if record.error.is_some() && !is_asked(task, record) { retry(task, record) } else { Restart::At(0) }
}

/// Whether the time for another try has come; when it comes later, it is looked at again then.
fn is_due(restart: Restart, now: u64, out: &mut NodePlan) -> bool {
    match restart {
        Restart::Never => false,
        Restart::At(at) if at > now => {
            out.wake_at = Some(out.wake_at.map_or(at, |other| other.min(at)));
            false
        }
        Restart::At(_) => true,
    }
}

/// One step towards the networks that the task shall be on: what it shall leave comes first, since that may be what is in the way.
fn rewire(task: &TaskAssignment, seen: &ObservedTask, observed: &Observed, out: &mut NodePlan) {
    if !seen.sandbox || !matches!(task.network, TaskNetwork::Endpoints { .. }) {
        return;
    }
    let wanted: BTreeSet<&NetworkName> = networks_of(task).collect();
    let there = |name: &NetworkName| observed.networks.contains(name) && !observed.busy_networks.contains(name);
    let left = seen.attached.iter().find(|name| !wanted.contains(name));
    let mut missing = wanted.into_iter().filter(|name| !seen.attached.contains(*name) && there(name));
    if let Some(network) = left {
        out.operations.push(Operation::Disconnect(task.id.clone(), network.clone()));
    } else if let Some(network) = missing.find(|name| !seen.unattached.contains_key(*name)) {
        out.operations.push(Operation::Connect(task.id.clone(), network.clone()));
    }
}

/// What does not run gives its namespace back, and so its published ports, unless another container lives in it.
fn release(
    task: &TaskAssignment,
    seen: &ObservedTask,
    by_id: &BTreeMap<&TaskId, &TaskAssignment>,
    observed: &Observed,
    out: &mut NodePlan,
) {
    let guest = by_id.values().any(|other| {
        matches!(&other.network, TaskNetwork::Task(owner) if *owner == task.id)
            && observed
                .tasks
                .get(&other.id)
                .and_then(|seen| seen.container.as_ref())
                .is_some_and(|c| matches!(c.state, ContainerState::Running | ContainerState::Paused))
    });
    if seen.sandbox && !guest {
        out.operations.push(Operation::RemoveSandbox(task.id.clone()));
    }
}

fn removal(id: &TaskId, seen: &ObservedTask, out: &mut NodePlan) {
    match &seen.container {
        Some(c) if matches!(c.state, ContainerState::Running | ContainerState::Paused) => {
            out.operations.push(Operation::StopContainer { task: id.clone(), by_request: true });
        }
        Some(_) => out.operations.push(Operation::RemoveContainer(id.clone())),
        None if seen.sandbox => out.operations.push(Operation::RemoveSandbox(id.clone())),
        None => {}
    }
}

/// Its image, networks and volumes are there as far as is known, or have failed for good (then making it fails too, with that reason).
fn ready(task: &TaskAssignment, observed: &Observed) -> bool {
    let there = |name: &str, has: bool, busy: bool| (has && !busy) || observed.failures.contains_key(name);
    !observed.images.contains_key(&task.image_id)
        && networks_of(task)
            .all(|n| there(n.as_str(), observed.networks.contains(n), observed.busy_networks.contains(n)))
        && task.volumes.values().all(|v| there(v, observed.volumes.contains(v), observed.busy_volumes.contains(v)))
}

/// The tasks whose namespaces it joins.
fn owners(task: &TaskAssignment) -> impl Iterator<Item = &TaskId> {
    let network = match &task.network {
        TaskNetwork::Task(owner) => Some(owner),
        _ => None,
    };
    [network, task.pid_of.as_ref(), task.ipc_of.as_ref()].into_iter().flatten()
}

/// The tasks whose mounts it takes over (`volumes_from`), and whether read-only: of a service the replica of the same number, else the
/// first.
pub fn lenders<'t>(
    task: &'t TaskAssignment,
    all: impl Iterator<Item = &'t TaskAssignment> + Clone,
) -> impl Iterator<Item = (&'t TaskAssignment, bool)> {
    task.spec.volumes_from.iter().filter_map(move |from| {
        let candidates = all.clone().filter(|other| other.id != task.id && other.desired != DesiredTask::Removed);
        let lender = if from.container {
            candidates.clone().find(|other| other.container_name == from.source)
        } else {
            let of_service =
                |other: &&TaskAssignment| other.stack == task.stack && other.service == from.source && !other.one_off;
            candidates.filter(of_service).min_by_key(|other| (other.slot != task.slot, other.slot))
        };
        Some((lender?, from.read_only))
    })
}

/// Their containers are made: its own is made with their names and mounts.
fn made<'t>(mut tasks: impl Iterator<Item = &'t TaskId>, observed: &Observed) -> bool {
    tasks.all(|task| observed.tasks.get(task).is_some_and(|seen| seen.container.is_some()))
}

/// Their containers run.
fn namespaces_run(task: &TaskAssignment, observed: &Observed) -> bool {
    owners(task).all(|owner| {
        observed.tasks.get(owner).is_some_and(|seen| {
            seen.activity.is_none() && seen.container.as_ref().is_some_and(|c| c.state == ContainerState::Running)
        })
    })
}

#[cfg(test)]
mod tests;
