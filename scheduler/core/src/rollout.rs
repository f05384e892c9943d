//! Rolling updates: some slots at a time, watched, and with an end in any case.
//!
//! One step looks at what the state says and does what is due: it never remembers more than the record in the state, and all its times
//! are times of the log. So it goes on where it was under any leader.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, Health, TaskId, TaskState};
use orch_spec::model::FailureAction;

use crate::command::Changes;
use crate::plan::{self, Moment, ends_by_itself};
use crate::presence;
use crate::state::{Former, Lane, NodeState, Rollout, RolloutRules, RolloutState, Service, State, Task, Timer};

/// Looks at one service; says whether anything was done.
pub(crate) fn step(state: &mut State, moment: Moment, stack: &str, name: &str, changes: &mut Changes) -> bool {
    let Some(service) = state.stacks.get(stack).and_then(|stack| stack.services.get(name)) else { return false };
    let Some(mut rollout) = service.rollout.clone().filter(|rollout| rollout.state.is_active()) else { return false };
    let before = rollout.clone();
    judge_lanes(state, stack, name, &mut rollout);
    judge_watched(state, &mut rollout);
    let (mut acted, mut again_at) = (false, None);
    if let Some(why) = too_many_failures(state, &rollout) {
        acted = give_up(state, moment, stack, name, &mut rollout, &why);
    }
    if rollout.state.is_active() {
        let slots = next_slots(state, stack, name, &mut rollout, &mut again_at);
        acted |= start_slots(state, moment, stack, name, &mut rollout, &slots, changes);
        finish(state, moment, stack, name, &mut rollout);
    }
    let wake = rollout.lanes.values().map(|lane| lane.deadline).chain(rollout.resting.iter().copied());
    let wake = wake.chain(rollout.watched.values().copied()).chain(again_at).min();
    if let Some(at) = wake.filter(|_| rollout.state.is_active()) {
        state.set_timer(at, Timer::Rollout { stack: stack.to_owned(), service: name.to_owned() });
    }
    if rollout != before {
        enter(state, moment, stack, name, rollout, changes);
    }
    acted
}

/// Puts the record back, and says what it has come to.
fn enter(state: &mut State, moment: Moment, stack: &str, name: &str, rollout: Rollout, changes: &mut Changes) {
    let index = state.index;
    let Some(record) = state.stacks.get_mut(stack) else { return };
    let Some(service) = record.services.get_mut(name) else { return };
    let former = service.rollout.as_ref().map(|rollout| rollout.state);
    let (now, message) = (rollout.state, rollout.message.clone());
    service.rollout = Some(rollout);
    record.changed = index;
    changes.stacks.insert(stack.to_owned());
    if former != Some(now) {
        let attributes = [("state", now.as_str().to_owned()), ("message", message)];
        state.event(moment, "service", "update", &format!("{stack}_{name}"), name, stack, &attributes);
    }
}

/// Slots whose new task is ready, or has failed, are done.
fn judge_lanes(state: &State, stack: &str, name: &str, rollout: &mut Rollout) {
    let now = state.time;
    for (slot, lane) in std::mem::take(&mut rollout.lanes) {
        let rests = now.saturating_add(rollout.rules.delay);
        let Some(task) = state.tasks.get(&lane.task).filter(|task| !task.is_retiring()) else {
            // Scaled away, or replaced by somebody: it is not ours to wait for any more.
            rollout.done += 1;
            continue;
        };
        if failure(state, task).is_some() || lane.deadline <= now {
            rollout.failed.insert(lane.task);
        } else if task.is_ready() && !has_former(state, stack, name, task) {
            rollout.watched.insert(lane.task, now.saturating_add(rollout.rules.monitor));
        } else {
            rollout.lanes.insert(slot, lane);
            continue;
        }
        rollout.done += 1;
        if rests > now {
            rollout.resting.push(rests);
        }
    }
    rollout.resting.retain(|at| *at > now);
}

/// Whether somebody who was in the slot before still runs, as far as anybody knows.
fn has_former(state: &State, stack: &str, name: &str, task: &Task) -> bool {
    state.slot_tasks(stack, name, task.slot).any(|other| {
        let known = other.node.as_ref().is_some_and(|node| state.node_state(node) == NodeState::Ready);
        other.id != task.id && !other.one_off && other.may_live() && known
    })
}

/// New tasks that were ready are watched for a while.
fn judge_watched(state: &State, rollout: &mut Rollout) {
    for (id, until) in std::mem::take(&mut rollout.watched) {
        let Some(task) = state.tasks.get(&id).filter(|task| !task.is_retiring()) else { continue };
        if failure(state, task).is_some() {
            rollout.failed.insert(id);
        } else if until > state.time {
            rollout.watched.insert(id, until);
        }
    }
}

/// Why a new task counts as failed, if it does. One that waits for another service that failed has not: that one may be mended, and may be
/// the next in this very change; the deadline ends it if not.
fn failure(state: &State, task: &Task) -> Option<String> {
    let status = &task.status;
    let code = status.exit_code.map_or_else(String::new, |code| format!(" ({code})"));
    let ends = ends_by_itself(&state.revision(task.revision).spec);
    match status.state {
        TaskState::Failed if status.error.is_empty() => Some("could not be started".to_owned()),
        TaskState::Failed => Some(format!("could not be started: {}", status.error)),
        TaskState::Exited if ends && status.exit_code == Some(0) => None,
        TaskState::Exited => Some(format!("exited{code}")),
        TaskState::Restarting => Some(format!("exited{code} and is started again")),
        _ if status.restarts > 0 => Some("was started again by its policy".to_owned()),
        _ if status.health == Health::Unhealthy && status.health_output.is_empty() => Some("is unhealthy".to_owned()),
        _ if status.health == Health::Unhealthy => Some(format!("is unhealthy: {}", status.health_output.trim())),
        _ => None,
    }
}

/// Why the update does not go on, if more failed than is tolerated.
fn too_many_failures(state: &State, rollout: &Rollout) -> Option<String> {
    let failed = rollout.failed.len() as u64;
    if failed * 1_000_000 <= rollout.rules.max_failures * u64::from(rollout.total) {
        return None;
    }
    let task = rollout.failed.iter().filter_map(|id| state.tasks.get(id)).max_by_key(|task| task.changed);
    let why = task.map(|task| {
        let waits = task.waiting.first().map(|wait| format!(": it waits for {}", wait.text)).unwrap_or_default();
        let why = failure(state, task).unwrap_or_else(|| format!("was not ready in time{waits}"));
        format!("{} {why}", task.container_name)
    });
    Some(why.unwrap_or_else(|| format!("{failed} of {} tasks failed", rollout.total)))
}

/// Does what the file wants when too many failed; says whether the service is another one now.
fn give_up(state: &mut State, moment: Moment, stack: &str, name: &str, rollout: &mut Rollout, why: &str) -> bool {
    let back = rollout.former.clone().filter(|_| rollout.state == RolloutState::Updating);
    match (rollout.rules.failure_action, back) {
        (FailureAction::Continue, _) => false,
        (FailureAction::Rollback, Some(former)) => {
            let message = format!("going back because {why}");
            go_back(state, moment, stack, name, &former, message, rollout)
        }
        _ => {
            let going_back = rollout.state == RolloutState::RollingBack;
            rollout.state = if going_back { RolloutState::RollbackPaused } else { RolloutState::Paused };
            rollout.message = why.to_owned();
            rollout.finished_at = Some(moment.now_ms);
            rollout.lanes.clear();
            rollout.watched.clear();
            false
        }
    }
}

/// Makes a former specification the service's present one, and begins to roll towards it. Tasks of it that still run stay.
fn go_back(
    state: &mut State,
    moment: Moment,
    stack: &str,
    name: &str,
    former: &Former,
    message: String,
    rollout: &mut Rollout,
) -> bool {
    let Some(service) = state.stacks.get_mut(stack).and_then(|stack| stack.services.get_mut(name)) else {
        return false;
    };
    service.revision = former.revision;
    service.image_id.clone_from(&former.image_id);
    service.generation += 1;
    if service.history.last() == Some(former) {
        service.history.pop();
    }
    let generation = service.generation;
    let rules = RolloutRules::new(state.revision(former.revision).spec.deploy.rollback_config.as_ref());
    state.rebuild_needs(stack);
    keep_alive(state, stack, name, former, generation);
    let total = u32::try_from(dirty(state, stack, name).len()).unwrap_or(u32::MAX);
    *rollout = Rollout {
        state: RolloutState::RollingBack,
        message,
        begun: state.index,
        started_at: moment.now_ms,
        rules,
        total,
        ..Rollout::default()
    };
    true
}

/// What is of the former specification stays: what has not been replaced yet, and what was to hand over to a task that failed.
fn keep_alive(state: &mut State, stack: &str, name: &str, former: &Former, generation: u64) {
    let index = state.index;
    let same = state
        .service_tasks(stack, name)
        .filter(|task| task.is_replica() && task.revision == former.revision && task.image_id == former.image_id);
    let same: Vec<TaskId> = same.map(|task| task.id.clone()).collect();
    for id in same {
        if let Some(task) = state.tasks.get_mut(&id) {
            (task.generation, task.changed) = (generation, index);
        }
    }
    let alive = state.service_tasks(stack, name).filter(|task| {
        task.is_retiring()
            && task.hand_over.is_some()
            && task.withdrawn.is_none()
            && task.has_process()
            && task.revision == former.revision
            && task.image_id == former.image_id
    });
    // Of several in one slot, which one after the other were to hand over, the best stays; the others hand over to it.
    let mut best: BTreeMap<u32, &Task> = BTreeMap::new();
    for task in alive {
        let worth = |task: &Task| (!task.lost, task.is_ready(), task.sequence);
        let present = best.entry(task.slot).or_insert(task);
        if worth(present) < worth(task) {
            *present = task;
        }
    }
    let alive: Vec<(TaskId, u32)> = best.into_iter().map(|(slot, task)| (task.id.clone(), slot)).collect();
    let failed = state.service_tasks(stack, name).filter(|task| task.is_replica());
    let failed: Vec<(TaskId, u32)> = failed.map(|task| (task.id.clone(), task.slot)).collect();
    for (id, slot) in alive {
        for (next, _) in failed.iter().filter(|(_, other)| *other == slot) {
            if let Some(next) = state.tasks.get_mut(next) {
                next.goal = DesiredTask::Removed;
                next.changed = index;
            }
            state.unsettle(next);
        }
        if let Some(task) = state.tasks.get_mut(&id) {
            (task.goal, task.hand_over, task.hand_over_by) = (DesiredTask::Running, None, None);
            (task.generation, task.lost, task.changed) = (generation, false, index);
        }
        state.unsettle(&id);
    }
}

/// Slots whose task is out of date: what is not there first, then by number.
fn dirty(state: &State, stack: &str, name: &str) -> Vec<u32> {
    let generation =
        state.stacks.get(stack).and_then(|stack| stack.services.get(name)).map_or(0, |service| service.generation);
    let out_of_date = state.service_tasks(stack, name).filter(|task| task.is_replica() && task.generation < generation);
    let mut slots: Vec<(bool, u32)> = out_of_date.map(|task| (presence::is_there(state, task), task.slot)).collect();
    slots.sort_unstable();
    slots.into_iter().map(|(_, slot)| slot).collect()
}

/// The slots that may be replaced now: no more at a time than the file wants, and none in which somebody is there while that many others
/// are missing. `again_at` says when to look again.
fn next_slots(state: &State, stack: &str, name: &str, rollout: &mut Rollout, again_at: &mut Option<u64>) -> Vec<u32> {
    if rollout.state == RolloutState::Updating {
        rollout.message.clear();
    }
    let mut slots = dirty(state, stack, name);
    slots.retain(|slot| !rollout.lanes.contains_key(slot));
    if rollout.rules.parallelism == 0 || slots.is_empty() {
        return slots;
    }
    let width = rollout.rules.parallelism as usize;
    let free = width.saturating_sub(rollout.lanes.len() + rollout.resting.len());
    let takes_away = !plan::replaces_beside(state, stack, name, rollout.rules.order);
    if free == 0 || !takes_away {
        slots.truncate(free);
        return slots;
    }
    let mut missing = presence::missing(state, stack, name);
    missing.tolerate(state, &rollout.failed);
    let mut away: BTreeSet<u32> = rollout.lanes.keys().chain(missing.slots.keys()).copied().collect();
    let mut chosen = Vec::new();
    for slot in slots {
        if chosen.len() == free {
            break;
        }
        let is_there = state.slot_tasks(stack, name, slot).any(|task| presence::is_there(state, task));
        if !is_there || away.len() < width {
            away.insert(slot);
            chosen.push(slot);
        } else if let Some(whom) = missing.slots.values().next() {
            *again_at = missing.until;
            if rollout.state == RolloutState::Updating {
                rollout.message = format!("waits for others of the service to be well: {whom}");
            }
            break;
        }
    }
    chosen
}

/// Begins with slots.
fn start_slots(
    state: &mut State,
    moment: Moment,
    stack: &str,
    name: &str,
    rollout: &mut Rollout,
    slots: &[u32],
    changes: &mut Changes,
) -> bool {
    if slots.is_empty() {
        return false;
    }
    let deadline = state.time.saturating_add(rollout.rules.deadline);
    match plan::plan_slots(state, stack, name, slots, rollout.rules.order, moment) {
        Ok((planned, tasks)) => {
            state.carry_out(moment, planned.records, None, changes);
            rollout.lanes.extend(tasks.into_iter().map(|(slot, task)| (slot, Lane { task, deadline })));
            true
        }
        Err(refusal) => {
            rollout.state = match rollout.state {
                RolloutState::RollingBack => RolloutState::RollbackPaused,
                _ => RolloutState::Paused,
            };
            rollout.message = refusal.to_string();
            rollout.finished_at = Some(moment.now_ms);
            false
        }
    }
}

/// Whether everything is done.
fn finish(state: &State, moment: Moment, stack: &str, name: &str, rollout: &mut Rollout) {
    if !rollout.state.is_active() || !rollout.lanes.is_empty() || !rollout.watched.is_empty() {
        return;
    }
    if !dirty(state, stack, name).is_empty() {
        return;
    }
    rollout.state = match rollout.state {
        RolloutState::RollingBack => RolloutState::RolledBack,
        _ => RolloutState::Completed,
    };
    rollout.finished_at = Some(moment.now_ms);
    rollout.resting.clear();
    if rollout.state == RolloutState::Completed {
        rollout.message = match rollout.failed.len() {
            0 => String::new(),
            failed => format!("{failed} of {} tasks failed", rollout.total),
        };
    }
}

/// Begins to go back because somebody asked for it.
pub(crate) fn roll_back(
    state: &mut State,
    moment: Moment,
    stack: &str,
    name: &str,
    changes: &mut Changes,
) -> Result<(), crate::error::Refusal> {
    use crate::error::Missing;
    let Some(record) = state.stacks.get(stack) else { return Err(Missing::Stack(stack.to_owned()).into()) };
    let missing = || Missing::Service {
        stack: stack.to_owned(),
        service: name.to_owned(),
        has: record.services.keys().cloned().collect(),
    };
    let service: &Service = record.services.get(name).ok_or_else(missing)?;
    let Some(former) = service.history.last().cloned() else {
        return Err(Missing::Version { stack: stack.to_owned(), service: name.to_owned() }.into());
    };
    let mut rollout = Rollout::default();
    go_back(state, moment, stack, name, &former, "asked for".to_owned(), &mut rollout);
    rollout.asked = true;
    enter(state, moment, stack, name, rollout, changes);
    Ok(())
}
