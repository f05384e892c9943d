//! The agent's memory: what is desired, what is observed, what has been reported. One lock, held for microseconds and never across a
//! system call that can block.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use orch_engine::config::ContainerId;
use orch_spec::assignment::{Assignment, DesiredTask, NetworkName, TaskAssignment, TaskId, TaskState, TaskStatus};

use crate::plan::{NodePlan, Observed, Operation, plan};
use crate::record::LocalTask;
use crate::task::{Activity, ContainerState, ObservedTask, TaskError, status};

/// How many ends are remembered for those who wait for a container that is removed with its end.
const ENDS: usize = 4096;

/// Everything in memory.
#[derive(Debug, Default)]
pub struct State {
    /// What the control plane wants.
    pub assignment: Arc<Assignment>,
    /// Whether an assignment has come yet: before, nothing is removed.
    pub assigned: bool,
    /// Containers of no stack.
    pub locals: BTreeMap<TaskId, LocalTask>,
    /// What is there.
    pub observed: Observed,
    /// Statuses as last sent.
    pub reported: BTreeMap<TaskId, TaskStatus>,
    /// [`Assignment::endpoints_version`] that netd and the name server have.
    pub endpoints_applied: u64,
    /// The same as last reported.
    pub endpoints_reported: u64,
    /// Networks that are gone and not yet reported.
    pub networks_removed: Vec<NetworkName>,
    /// Volumes that are gone (or could not be removed, with the reason) and not yet reported.
    pub volumes_removed: Vec<(String, Option<String>)>,
    /// Exit codes of the last containers that ended.
    pub ends: VecDeque<(ContainerId, i32)>,
    /// Why containers of no stack could not be made or started, for those who asked and may look after they are gone.
    pub errors: BTreeMap<TaskId, TaskError>,
    /// Names of containers that are being made, so that two requests cannot take one name.
    pub names: BTreeSet<String>,
}

impl State {
    /// All tasks of this node: those of the assignment, then those of no stack.
    pub fn desired(&self) -> Vec<&TaskAssignment> {
        self.assignment.tasks.iter().chain(self.locals.values().map(|l| &l.task)).collect()
    }

    /// A task by id.
    pub fn task(&self, id: &TaskId) -> Option<&TaskAssignment> {
        self.locals.get(id).map(|l| &l.task).or_else(|| self.assignment.tasks.iter().find(|t| t.id == *id))
    }

    /// Plans, and marks what is planned as under way, so that no second look plans it again.
    pub fn plan(&mut self, now: u64) -> NodePlan {
        if !self.assigned {
            return NodePlan::default();
        }
        self.auto_remove(now);
        let needed: BTreeSet<&String> = self.assignment.tasks.iter().map(|task| &task.image_id).collect();
        self.observed.images.retain(|image, missing| missing.busy || needed.contains(image));
        if !self.observed.failures.is_empty() {
            // Of what nobody wants any more: another one of that name may work.
            let assignment = self.assignment.clone();
            let networks = assignment.networks.iter().map(|network| network.name.as_str());
            let volumes = assignment.volumes.iter().map(|volume| volume.name.as_str());
            let images = assignment.tasks.iter().map(|task| task.image_id.as_str());
            let wanted: BTreeSet<&str> = networks.chain(volumes).chain(images).collect();
            self.observed.failures.retain(|name, _| wanted.contains(name.as_str()));
        }
        let plan = plan(&self.assignment, &self.desired(), &self.observed, now);
        for operation in &plan.operations {
            self.begin(operation);
        }
        plan
    }

    /// What was run with `--rm` and has ended for good shall be gone.
    fn auto_remove(&mut self, now: u64) {
        for local in self.locals.values_mut().filter(|l| l.auto_remove && l.task.desired != DesiredTask::Removed) {
            let seen = self.observed.tasks.get(&local.task.id);
            let over = matches!(status(&local.task, seen, now).state, TaskState::Exited | TaskState::Failed);
            if over && local.task.desired == DesiredTask::Running {
                local.task.desired = DesiredTask::Removed;
                local.task.remove_volumes = true;
            }
        }
    }

    fn begin(&mut self, operation: &Operation) {
        let mut activity = |id: &TaskId, activity| {
            self.observed.tasks.entry(id.clone()).or_default().activity = Some(activity);
        };
        match operation {
            Operation::CreateNetwork(name) | Operation::RemoveNetwork(name) => {
                self.observed.busy_networks.insert(name.clone());
            }
            Operation::CreateVolume(name) | Operation::RemoveVolume(name) => {
                self.observed.busy_volumes.insert(name.clone());
            }
            Operation::FetchImage(image) => {
                if let Some(missing) = self.observed.images.get_mut(image) {
                    missing.busy = true;
                }
            }
            Operation::CreateContainer(id) => activity(id, Activity::Creating),
            Operation::StartContainer { task, .. } => activity(task, Activity::Starting),
            Operation::StopContainer { task, .. } => activity(task, Activity::Stopping),
            Operation::PauseContainer(id) | Operation::UnpauseContainer(id) => activity(id, Activity::Pausing),
            Operation::RemoveSandbox(id) => activity(id, Activity::Pausing),
            Operation::Connect(id, _) | Operation::Disconnect(id, _) => activity(id, Activity::Pausing),
            Operation::RemoveContainer(id) => activity(id, Activity::Removing),
        }
    }

    /// Networks that shall go and could never be made are gone already; somebody waits to hear it.
    pub fn answer_for_networks_never_made(&mut self) {
        let assignment = self.assignment.clone();
        for name in &assignment.removed_networks {
            if !self.observed.networks.contains(name) && !self.observed.busy_networks.contains(name) {
                self.observed.failures.remove(name.as_str());
                self.networks_removed.push(name.clone());
            }
        }
    }

    /// Containers that are being stopped with grace and shall now end at once: a second Ctrl-C, `kill`.
    pub fn impatient_stops(&self) -> Vec<ContainerId> {
        let at_once = |t: &&TaskAssignment| {
            let kill = t
                .stop_signal
                .as_deref()
                .is_some_and(|s| matches!(s.to_ascii_uppercase().as_str(), "KILL" | "SIGKILL" | "9"));
            kill && matches!(t.desired, DesiredTask::Stopped | DesiredTask::Removed)
        };
        self.assignment
            .tasks
            .iter()
            .filter(at_once)
            .filter_map(|t| self.observed.tasks.get(&t.id))
            .filter(|seen| seen.activity == Some(Activity::Stopping))
            .filter_map(|seen| seen.container.as_ref().map(|c| c.id.clone()))
            .collect()
    }

    /// Statuses that differ from what was reported last; they count as reported from now on.
    pub fn changed_statuses(&mut self, now: u64) -> Vec<TaskStatus> {
        let mut changed = Vec::new();
        let mut present = BTreeSet::new();
        for task in &self.assignment.tasks {
            present.insert(task.id.clone());
            let mut status = status(task, self.observed.tasks.get(&task.id), now);
            if let Some(missing) = self.observed.images.get(&task.image_id)
                && matches!(status.state, TaskState::Assigned | TaskState::Preparing)
            {
                (status.state, status.note) = (TaskState::Preparing, missing.note.clone());
            }
            if self.reported.get(&task.id) != Some(&status) {
                self.reported.insert(task.id.clone(), status.clone());
                changed.push(status);
            }
        }
        self.reported.retain(|id, _| present.contains(id));
        changed
    }

    /// Forgets tasks that are neither desired nor have anything here. Returns them, so that their records go too. Before the first
    /// assignment nobody knows what is desired.
    pub fn forget_gone(&mut self) -> Vec<TaskId> {
        if !self.assigned {
            return Vec::new();
        }
        let assigned: BTreeSet<&TaskId> = self.assignment.tasks.iter().map(|t| &t.id).collect();
        let empty = |seen: &ObservedTask| seen.container.is_none() && !seen.sandbox && seen.activity.is_none();
        let gone: Vec<TaskId> = self
            .observed
            .tasks
            .iter()
            .filter(|(id, seen)| {
                let local = self.locals.get(*id).is_some_and(|l| l.task.desired != DesiredTask::Removed);
                empty(seen) && !assigned.contains(id) && !local
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.observed.tasks.remove(id);
        }
        gone
    }

    /// Remembers the end of a container.
    pub fn ended(&mut self, container: &ContainerId, code: i32) {
        if self.ends.len() == ENDS {
            self.ends.pop_front();
        }
        self.ends.push_back((container.clone(), code));
    }

    /// Remembers why a container of no stack failed.
    pub fn failed(&mut self, id: &TaskId, error: TaskError) {
        if self.errors.len() == ENDS {
            self.errors.pop_first();
        }
        self.errors.insert(id.clone(), error);
    }

    /// The exit code of a container that has ended, also when it is gone already.
    pub fn end_of(&self, container: &ContainerId) -> Option<i32> {
        self.ends.iter().rev().find(|(id, _)| id == container).map(|(_, code)| *code)
    }

    /// The task whose container this is.
    pub fn task_of(&self, container: &ContainerId) -> Option<&TaskId> {
        self.observed
            .tasks
            .iter()
            .find(|(_, t)| t.container.as_ref().is_some_and(|c| c.id == *container))
            .map(|(id, _)| id)
    }

    /// Whether anything is here or wanted here.
    pub fn is_idle(&self) -> bool {
        self.assignment.tasks.is_empty()
            && self.locals.is_empty()
            && self.observed.tasks.values().all(|t| t.container.is_none() && t.activity.is_none())
            && self.assignment.networks.iter().all(|n| n.stack.is_empty())
    }

    /// Containers of tasks, for joining their namespaces.
    pub fn containers_of<'a>(&self, tasks: impl Iterator<Item = &'a TaskId>) -> BTreeMap<TaskId, ContainerId> {
        let of = |id: &TaskId| Some((id.clone(), self.observed.tasks.get(id)?.container.as_ref()?.id.clone()));
        tasks.filter_map(of).collect()
    }

    /// Whether this container runs, as far as is known.
    pub fn runs(&self, container: &ContainerId) -> bool {
        self.observed
            .tasks
            .values()
            .filter_map(|t| t.container.as_ref())
            .any(|c| c.id == *container && matches!(c.state, ContainerState::Running | ContainerState::Paused))
    }
}
