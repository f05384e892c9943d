//! A task as this node sees it: what is observed of its container, and what must be remembered between two looks.

use std::collections::{BTreeMap, BTreeSet};

use orch_engine::config::ContainerId;
use orch_spec::assignment::{
    DesiredTask, Health, NetworkName, PublishedPort, TaskAssignment, TaskId, TaskState, TaskStatus,
};
use orch_spec::model::{EffectiveRestart, RestartCondition};
use serde::{Deserialize, Serialize};

/// What the engine says of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Runs.
    Running,
    /// Runs, frozen.
    Paused,
    /// Ended.
    Exited,
}

/// A task's container as observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Its id.
    pub id: ContainerId,
    /// Its name, which no other has as long as it is there.
    pub name: String,
    /// Its state.
    pub state: ContainerState,
    /// Init process on the host while it runs.
    pub pid: Option<i32>,
    /// Code of the last run.
    pub exit_code: Option<i32>,
    /// Ended by the kernel for want of memory.
    pub oom_killed: bool,
    /// It went down with its shim or its host, and not by itself.
    pub lost: bool,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    /// See `created_at`; of the last start.
    pub started_at: Option<u64>,
    /// See `created_at`; of the last end.
    pub finished_at: Option<u64>,
    /// Image it was made from.
    pub image_id: String,
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    /// For people.
    pub message: String,
    /// Docker's code: 125, 126, 127.
    pub code: i32,
    /// When, in milliseconds since the epoch.
    pub at: u64,
}

/// What outlives the agent about a task, beside what the engine keeps of its container: one small file a task. Losing it in a power
/// failure does no harm, since every container is gone then too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskRecord {
    /// The restart generation that has been carried out.
    pub restart_generation: u64,
    /// It was stopped because somebody asked; its policy rests until it is asked to run again.
    pub stopped_by_request: bool,
    /// Starts by policy so far.
    pub restarts: u32,
    /// Failed or short runs in a row: the exponent of the back-off.
    pub short_runs: u32,
    /// Ports as published by the running sandbox.
    pub ports: Vec<PublishedPort>,
    /// Why it could not be made or started.
    pub error: Option<TaskError>,
    /// What its health probe said last: the next agent begins with it, so that nobody takes a task for unwell only because its agent was
    /// started anew.
    pub health: Option<KnownHealth>,
}

/// What a health probe said of one run of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownHealth {
    /// What it said.
    pub health: Health,
    /// When that run began; see [`ObservedContainer::started_at`].
    pub started_at: Option<u64>,
}

/// What the node is doing to a task at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Making its container.
    Creating,
    /// Making its network and starting it.
    Starting,
    /// Stopping it.
    Stopping,
    /// Freezing or thawing it, or taking it onto a network or off one.
    Pausing,
    /// Removing it.
    Removing,
}

/// Everything this node knows of one task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedTask {
    /// Its container, when there is one.
    pub container: Option<ObservedContainer>,
    /// Its network namespace exists.
    pub sandbox: bool,
    /// The networks that its namespace is on.
    pub attached: BTreeSet<NetworkName>,
    /// Networks that its namespace could not be taken onto, and why: not tried again before that is called off.
    pub unattached: BTreeMap<NetworkName, String>,
    /// How long its network took before its last start, in ns: making the namespace, attaching the name server.
    pub network_time: u64,
    /// An operation is under way: no other one is planned for it.
    pub activity: Option<Activity>,
    /// What its health probe says.
    pub health: Health,
    /// Output of the last failed probe.
    pub health_output: String,
    /// Whose control plane had it made; empty for a container of no stack.
    pub cluster: String,
    /// What is remembered.
    pub record: TaskRecord,
    /// What its file says; without one, nothing is remembered.
    pub saved: TaskRecord,
}

/// Tasks by id.
pub type ObservedTasks = BTreeMap<TaskId, ObservedTask>;

/// First wait before a restart, milliseconds: Docker's, so that what is tuned to it behaves the same.
pub const BACKOFF_FIRST_MS: u64 = 100;
/// Longest wait, milliseconds: Docker's.
pub const BACKOFF_LAST_MS: u64 = 60_000;
/// A run that lasted this long counts as good and resets the back-off, milliseconds: Docker's.
pub const GOOD_RUN_MS: u64 = 10_000;

/// What a restart policy says about a container that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It stays as it is.
    Never,
    /// It is started again at this time, milliseconds since the epoch.
    At(u64),
}

/// Decides about a container that ended.
///
/// The wait is Docker's: 100 ms, doubled with every short run, a minute at most; a `delay` of the file is taken as it is.
pub fn restart(policy: Option<EffectiveRestart>, exit_code: i32, finished_at: u64, record: &TaskRecord) -> Restart {
    let Some(policy) = policy else { return Restart::Never };
    let wanted = match policy.condition {
        RestartCondition::None => false,
        RestartCondition::OnFailure => exit_code != 0,
        RestartCondition::Any => true,
    };
    if !wanted || record.stopped_by_request || policy.max_attempts.is_some_and(|most| record.restarts >= most) {
        return Restart::Never;
    }
    let wait = match policy.delay {
        Some(delay) => u64::try_from(delay.as_millis()).unwrap_or(0),
        None => BACKOFF_FIRST_MS.saturating_mul(1 << record.short_runs.min(16)).min(BACKOFF_LAST_MS),
    };
    Restart::At(finished_at.saturating_add(wait))
}

/// Decides about a container of a task that ended. What went down with its host or its shim did not end: where its service would be one
/// short, it comes back as if its policy were `always`.
pub fn after_end(task: &TaskAssignment, container: &ObservedContainer, record: &TaskRecord, now: u64) -> Restart {
    const ALWAYS: EffectiveRestart = EffectiveRestart {
        condition: RestartCondition::Any,
        delay: None,
        max_attempts: None,
        window: None,
        unless_stopped: false,
    };
    let policy = match task.one_off {
        true => None,
        false if container.lost && task.comes_back => Some(ALWAYS),
        false => task.spec.restart_policy(),
    };
    restart(policy, container.exit_code.unwrap_or(0), container.finished_at.unwrap_or(now), record)
}

/// Decides about a container that could not be made, or not be started for the first time: as if it had run and ended then. One that belongs to
/// no stack stays as it is, and so does a one-off: somebody waits for its outcome.
pub fn retry(task: &TaskAssignment, record: &TaskRecord) -> Restart {
    match &record.error {
        Some(error) if !task.one_off && !task.stack.is_empty() => {
            restart(task.spec.restart_policy(), error.code, error.at, record)
        }
        _ => Restart::Never,
    }
}

/// The status to report for a task: a pure function of what is desired and what is seen.
pub fn status(desired: &TaskAssignment, seen: Option<&ObservedTask>, now: u64) -> TaskStatus {
    let none = ObservedTask::default();
    let seen = seen.unwrap_or(&none);
    let record = &seen.record;
    let container = seen.container.as_ref();
    let running = container.is_some_and(|c| matches!(c.state, ContainerState::Running | ContainerState::Paused));
    let error = record.error.as_ref();
    let state = state(desired, seen, now);
    let wanted = desired.desired == DesiredTask::Running;
    TaskStatus {
        task: desired.id.clone(),
        state,
        container: container.map(|c| c.id.0.clone()).unwrap_or_default(),
        pid: container.and_then(|c| c.pid).filter(|_| running),
        image_id: container.map(|c| c.image_id.clone()).unwrap_or_default(),
        exit_code: container.filter(|_| !running).and_then(|c| c.exit_code),
        oom_killed: container.is_some_and(|c| c.oom_killed),
        health: if running { seen.health } else { Health::None },
        health_output: seen.health_output.clone(),
        restarts: record.restarts,
        restart_generation: record.restart_generation,
        error: error.map(|e| e.message.clone()).unwrap_or_default(),
        error_code: error.map(|e| e.code),
        again: wanted && state == TaskState::Failed && retry(desired, record) != Restart::Never,
        note: String::new(),
        created_at: container.map(|c| c.created_at),
        started_at: container.and_then(|c| c.started_at),
        finished_at: container.and_then(|c| c.finished_at),
        ports: if running { record.ports.clone() } else { Vec::new() },
    }
}

fn state(desired: &TaskAssignment, seen: &ObservedTask, now: u64) -> TaskState {
    match seen.activity {
        Some(Activity::Creating) => return TaskState::Preparing,
        Some(Activity::Starting) => return TaskState::Starting,
        Some(Activity::Stopping | Activity::Removing) => return TaskState::Stopping,
        Some(Activity::Pausing) | None => {}
    }
    let Some(container) = &seen.container else {
        return match desired.desired {
            DesiredTask::Removed if !seen.sandbox => TaskState::Removed,
            DesiredTask::Removed => TaskState::Stopping,
            _ if seen.record.error.is_some() => TaskState::Failed,
            _ => TaskState::Assigned,
        };
    };
    match container.state {
        ContainerState::Running => TaskState::Running,
        ContainerState::Paused => TaskState::Paused,
        ContainerState::Created if seen.record.error.is_some() => TaskState::Failed,
        ContainerState::Created => TaskState::Created,
        ContainerState::Exited => {
            if desired.desired == DesiredTask::Running {
                let behind = seen.record.restart_generation < desired.restart_generation;
                if behind || after_end(desired, container, &seen.record, now) != Restart::Never {
                    return TaskState::Restarting;
                }
                if seen.record.error.is_some() {
                    return TaskState::Failed;
                }
            }
            TaskState::Exited
        }
    }
}
