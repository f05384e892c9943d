//! Who of a service is there for those who need it, and who is not: what may be taken out of it for a while depends on that.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, Health, TaskId, TaskState};

use crate::gate;
use crate::state::{NodeState, State, Task};

/// How long one that is not there is waited for before others are taken away all the same, milliseconds: as long as a slot of an update may
/// take. Every restart and every update ends because of it.
pub(crate) const PATIENCE_MS: u64 = 600_000;

/// Whether a task runs and is well (or has done its work), on a node that answers, and neither leaves nor is about to be started again.
pub(crate) fn is_there(state: &State, task: &Task) -> bool {
    let answers = || task.node.as_ref().is_some_and(|node| state.node_state(node) == NodeState::Ready);
    matches!(task.told, Some(DesiredTask::Running | DesiredTask::Paused))
        && task.is_ready()
        && task.withdrawn.is_none()
        && task.told_generation <= task.status.restart_generation
        && answers()
}

/// Slots of a service in which nobody is there, though that is to be expected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Slot → whom it misses, and what that one does instead.
    pub(crate) slots: BTreeMap<u32, String>,
    /// When the first of them is not waited for any more, by the log's time.
    pub(crate) until: Option<u64>,
}

/// Looks at all slots of a service. Whoever has been missing for too long is not: the service is what it is without it.
pub(crate) fn missing(state: &State, stack: &str, service: &str) -> Missing {
    let mut missing = Missing::default();
    let mut covered = None;
    // By slot and age: who stays is the last of its slot.
    for task in state.service_tasks(stack, service).filter(|task| !task.one_off) {
        if is_there(state, task) {
            covered = Some(task.slot);
            missing.slots.remove(&task.slot);
        } else if covered != Some(task.slot)
            && !task.is_retiring()
            && matches!(task.goal, DesiredTask::Running | DesiredTask::Paused)
        {
            let until = task.missing_since.map_or(0, |since| since.saturating_add(PATIENCE_MS));
            if until > state.time {
                missing.slots.insert(task.slot, describe(state, task));
                missing.until = Some(missing.until.map_or(until, |first| first.min(until)));
            }
        }
    }
    missing
}

impl Missing {
    /// Takes out the slots of these tasks: failures that an update tolerates do not hold it up.
    pub(crate) fn tolerate(&mut self, state: &State, failed: &BTreeSet<TaskId>) {
        let failed = failed.iter().filter_map(|id| state.tasks.get(id)).filter(|task| task.is_replica());
        failed.for_each(|task| drop(self.slots.remove(&task.slot)));
    }
}

/// A task that is not there, and what it does instead, for people.
pub(crate) fn describe(state: &State, task: &Task) -> String {
    format!("{} {}", task.container_name, instead(state, task))
}

fn instead(state: &State, task: &Task) -> String {
    let Some(node) = &task.node else { return "has no node".to_owned() };
    match state.node_state(node) {
        NodeState::Ready => {}
        silent => return format!("is on a node that is {}", silent.as_str()),
    }
    match (task.status.state, task.status.health) {
        _ if task.withdrawn.is_some() || task.told_generation > task.status.restart_generation => {
            "is being started again".to_owned()
        }
        (TaskState::Running, Health::Unhealthy) => "is unhealthy".to_owned(),
        (TaskState::Running, _) => "is running, its health is not known yet".to_owned(),
        (state, _) => format!("is {}", gate::word(state)),
    }
}

impl State {
    /// Remembers since when a task has not been there; as soon as that may have changed, before others look at it.
    pub(crate) fn refresh_presence(&mut self, id: &TaskId) {
        let time = self.time;
        let Some(task) = self.tasks.get(id) else { return };
        let since = if is_there(self, task) { None } else { Some(task.missing_since.unwrap_or(time)) };
        if since != task.missing_since
            && let Some(task) = self.tasks.get_mut(id)
        {
            task.missing_since = since;
        }
    }
}
