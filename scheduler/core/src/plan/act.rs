//! Start, stop, restart, pause, unpause, kill and remove what exists.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, TaskId, TaskState};

use super::draft::Draft;
use super::replicas::{self, Cascade, namespace_services, order_task};
use super::{Moment, OperationId, Planned, Verb, task, up};
use crate::command::{Act, Action, SetTaskDesired};
use crate::error::{Missing, Refusal, SpecFault};
use crate::state::{State, Task};

pub(crate) fn plan(state: &State, request: &Act, moment: Moment) -> Result<Planned, Refusal> {
    let Some(stack) = state.stacks.get(&request.stack) else {
        return Err(Missing::Stack(request.stack.clone()).into());
    };
    if stack.removing.is_some() && !matches!(request.action, Action::Kill | Action::Remove) {
        return Err(Refusal::Busy { stack: request.stack.clone() });
    }
    let mut draft = Draft::new(state, &request.stack, moment);
    draft.timeout = request.timeout;
    let tasks = selected(&draft, request)?;
    match request.action {
        Action::Start => start(&mut draft, request, tasks)?,
        Action::Restart => restart(&mut draft, request, tasks)?,
        Action::Stop | Action::Kill | Action::Remove | Action::Pause | Action::Unpause => {
            each(&mut draft, request, &tasks)
        }
    }
    task::check_ports(&mut draft)?;
    Ok(draft.finish())
}

/// The tasks that are meant, by service and number.
fn selected(draft: &Draft<'_>, request: &Act) -> Result<Vec<TaskId>, Refusal> {
    let missing = |service: &String| {
        let has = draft.stack.services.keys().chain(draft.stack.tasks.keys()).cloned().collect::<BTreeSet<_>>();
        let (stack, service) = (request.stack.clone(), service.clone());
        Refusal::from(Missing::Service { stack, service, has: has.into_iter().collect() })
    };
    let mut found = Vec::new();
    for id in &request.tasks {
        match draft.task(id).filter(|task| task.stack == request.stack) {
            Some(task) => found.push(task.id.clone()),
            None => return Err(Missing::Task(id.to_string()).into()),
        }
    }
    let all: Vec<String> = match (request.services.is_empty(), request.tasks.is_empty()) {
        (true, true) => draft.stack.tasks.keys().cloned().collect(),
        _ => request.services.clone(),
    };
    for service in &all {
        if !draft.stack.services.contains_key(service) && !draft.stack.tasks.contains_key(service) {
            return Err(missing(service));
        }
        // One-offs belong to who runs them: `stop` and the like mean them only when they are named, `kill` and `rm` mean all.
        let with_one_offs = matches!(request.action, Action::Kill | Action::Remove | Action::Stop);
        let tasks =
            draft.tasks_of(service).into_iter().filter(|task| !task.is_retiring() && (with_one_offs || !task.one_off));
        found.extend(tasks.map(|task| task.id.clone()));
    }
    let mut seen = BTreeSet::new();
    found.retain(|id| seen.insert(id.clone()));
    Ok(found)
}

/// Starts, in the order of dependencies; what they depend on is started too.
fn start(draft: &mut Draft<'_>, request: &Act, mut tasks: Vec<TaskId>) -> Result<(), Refusal> {
    let are_named = !(request.services.is_empty() && request.tasks.is_empty());
    let named: BTreeSet<TaskId> = tasks.iter().filter(|_| are_named).cloned().collect();
    if !request.no_deps {
        add_dependencies(draft, &mut tasks);
    }
    for id in in_order(draft, tasks)? {
        let Some(task) = draft.task(&id) else { continue };
        let spec = draft.revision(task.revision).spec.clone();
        // Success is an end, but not for those who ask for it by name.
        let once_more = || (named.contains(&id) && replicas::has_ended(task)).then(|| "it had exited (0)".to_owned());
        if let Some(cause) = replicas::start_cause(task, &spec, false).or_else(once_more) {
            replicas::start(draft, &id, request.no_deps);
            let operation = draft.task_operation(Verb::Start, &id, cause);
            order_task(draft, &id, operation);
        }
    }
    Ok(())
}

/// Replicas that exist of all services that the tasks' services need.
fn add_dependencies(draft: &Draft<'_>, tasks: &mut Vec<TaskId>) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut unseen: Vec<String> =
        tasks.iter().filter_map(|id| draft.task(id)).map(|task| task.service.clone()).collect();
    let named: BTreeSet<TaskId> = tasks.iter().cloned().collect();
    let chosen: BTreeSet<String> = unseen.iter().cloned().collect();
    while let Some(service) = unseen.pop() {
        if !seen.insert(service.clone()) {
            continue;
        }
        for task in draft.tasks_of(&service).into_iter().filter(|task| task.is_replica()) {
            let spec = &draft.revision(task.revision).spec;
            unseen.extend(spec.depends_on.keys().cloned());
            unseen.extend(namespace_services(spec).map(str::to_owned));
            if !chosen.contains(&service) && !named.contains(&task.id) {
                tasks.push(task.id.clone());
            }
        }
    }
}

/// Stops and starts each once, in the order of dependencies; dependents with `restart: true` follow.
fn restart(draft: &mut Draft<'_>, request: &Act, mut tasks: Vec<TaskId>) -> Result<(), Refusal> {
    let mut cascade = Cascade::default();
    cascade.restarted.extend(tasks.iter().filter_map(|id| draft.task(id)).map(|task| task.service.clone()));
    if !request.no_deps {
        add_followers(draft, &mut tasks, &mut cascade);
    }
    for id in in_order(draft, tasks)? {
        let Some(task) = draft.task(&id) else { continue };
        let operation = match task.goal {
            DesiredTask::Removed => continue,
            DesiredTask::Running if !task.released => continue,
            DesiredTask::Running | DesiredTask::Paused => {
                draft.task_mut(&id).goal = DesiredTask::Running;
                replicas::restart(draft, &id, "")
            }
            DesiredTask::Created | DesiredTask::Stopped => {
                replicas::start(draft, &id, request.no_deps);
                draft.task_operation(Verb::Start, &id, "")
            }
        };
        draft.task_mut(&id).ungated = request.no_deps;
        order_task(draft, &id, operation);
    }
    Ok(())
}

fn add_followers(draft: &Draft<'_>, tasks: &mut Vec<TaskId>, cascade: &mut Cascade) {
    loop {
        let mut grew = false;
        let services: Vec<String> = draft.stack.tasks.keys().cloned().collect();
        for service in
            services.iter().filter(|service| !cascade.restarted.contains(*service)).cloned().collect::<Vec<_>>()
        {
            let running = draft
                .tasks_of(&service)
                .into_iter()
                .filter(|task| task.is_replica() && task.goal == DesiredTask::Running);
            let followers: Vec<TaskId> = running
                .filter(|task| replicas::follows_restart(&draft.revision(task.revision).spec, cascade).is_some())
                .map(|task| task.id.clone())
                .collect();
            if !followers.is_empty() {
                tasks.extend(followers);
                cascade.restarted.insert(service);
                grew = true;
            }
        }
        if !grew {
            return;
        }
    }
}

/// The tasks, each after those of the services that it needs.
fn in_order(draft: &Draft<'_>, tasks: Vec<TaskId>) -> Result<Vec<TaskId>, Refusal> {
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for task in tasks.iter().filter_map(|id| draft.task(id)) {
        let spec = &draft.revision(task.revision).spec;
        let needed = spec.depends_on.keys().map(String::as_str).chain(namespace_services(spec));
        graph.entry(&task.service).or_default().extend(needed);
    }
    let order = up::order(&graph).map_err(|services| Refusal::from(SpecFault::Cycle { services }))?;
    let rank: BTreeMap<&str, usize> = order.iter().enumerate().map(|(rank, name)| (name.as_str(), rank)).collect();
    let mut sorted: Vec<&Task> = tasks.iter().filter_map(|id| draft.task(id)).collect();
    sorted.sort_by_key(|task| (rank.get(task.service.as_str()).copied(), task.one_off, task.slot, task.sequence));
    Ok(sorted.into_iter().map(|task| task.id.clone()).collect())
}

/// What needs no order on the way up: each task for itself, and on the way down dependents first.
fn each(draft: &mut Draft<'_>, request: &Act, tasks: &[TaskId]) {
    let mut downs: Vec<(TaskId, OperationId)> = Vec::new();
    for id in tasks {
        let Some(task) = draft.task(id) else { continue };
        let Some(verb) = fitting(task, request) else { continue };
        let task = draft.task_mut(id);
        match request.action {
            Action::Pause => task.goal = DesiredTask::Paused,
            Action::Unpause => task.goal = DesiredTask::Running,
            Action::Remove => {
                task.goal = DesiredTask::Removed;
                task.remove_volumes = request.remove_volumes;
                task.stop_timeout = request.timeout.or(task.stop_timeout);
            }
            Action::Stop | Action::Kill => stop(task, request),
            Action::Start | Action::Restart => {}
        }
        let operation = draft.task_operation(verb, id, "");
        if matches!(request.action, Action::Stop | Action::Remove) {
            downs.push((id.clone(), operation));
        }
    }
    replicas::order_downward(draft, &downs);
}

/// The operation that the action is for this task, if it is any.
fn fitting(task: &Task, request: &Act) -> Option<Verb> {
    let runs = task.goal == DesiredTask::Running && !matches!(task.status.state, TaskState::Exited | TaskState::Failed);
    match request.action {
        Action::Pause if runs && task.released => Some(Verb::Pause),
        Action::Unpause if task.goal == DesiredTask::Paused => Some(Verb::Unpause),
        Action::Stop if runs || task.goal == DesiredTask::Paused => Some(Verb::Stop),
        Action::Kill if (runs && task.released) || task.goal == DesiredTask::Paused || task.has_process() => {
            Some(Verb::Kill)
        }
        Action::Remove
            if request.stop || !(runs && task.released || task.goal == DesiredTask::Paused || task.has_process()) =>
        {
            Some(Verb::Remove)
        }
        _ => None,
    }
}

fn stop(task: &mut Task, request: &Act) {
    // What waits for its first start has nothing to stop: the start is called off.
    task.goal = if task.released || task.was_started() { DesiredTask::Stopped } else { DesiredTask::Created };
    task.stop_timeout = request.timeout;
    task.stop_signal.clone_from(&request.signal);
    if request.action == Action::Kill {
        task.unordered = true;
        let signal = request.signal.clone().unwrap_or_else(|| "SIGKILL".to_owned());
        let ends_for_sure = matches!(signal.to_ascii_uppercase().as_str(), "SIGKILL" | "KILL" | "9");
        // Without a deadline of its own another signal is waited for, for ever: it was meant instead of KILL.
        task.stop_timeout = request.timeout.or(Some(if ends_for_sure { 0 } else { -1 }));
        task.stop_signal = Some(signal);
    }
}

/// Sets what one task shall be.
pub(crate) fn plan_desired(state: &State, request: &SetTaskDesired, moment: Moment) -> Result<Planned, Refusal> {
    let Some(task) = state.tasks.get(&request.task) else { return Err(Missing::Task(request.task.to_string()).into()) };
    if task.is_retiring() && request.desired != DesiredTask::Removed {
        return Err(Missing::Task(request.task.to_string()).into());
    }
    let mut draft = Draft::new(state, &task.stack, moment);
    draft.timeout = request.timeout;
    let id = &request.task;
    match request.desired {
        DesiredTask::Running if task.goal == DesiredTask::Paused => {
            draft.task_mut(id).goal = DesiredTask::Running;
            draft.task_operation(Verb::Unpause, id, "");
        }
        DesiredTask::Running => {
            let spec = draft.revision(task.revision).spec.clone();
            if let Some(cause) = replicas::start_cause(task, &spec, false) {
                let ungated = task.ungated;
                replicas::start(&mut draft, id, ungated);
                draft.task_operation(Verb::Start, id, cause);
            }
        }
        DesiredTask::Created if task.was_started() || task.released => {
            let text = format!("container {} has been started; it can be stopped or removed", task.container_name);
            return Err(SpecFault::Options(text).into());
        }
        desired if desired == task.goal => {}
        DesiredTask::Created => draft.task_mut(id).goal = DesiredTask::Created,
        DesiredTask::Paused => {
            draft.task_mut(id).goal = DesiredTask::Paused;
            draft.task_operation(Verb::Pause, id, "");
        }
        DesiredTask::Stopped => {
            let task = draft.task_mut(id);
            task.goal = if task.released || task.was_started() { DesiredTask::Stopped } else { DesiredTask::Created };
            task.stop_timeout = request.timeout;
            task.stop_signal.clone_from(&request.signal);
            draft.task_operation(Verb::Stop, id, "");
        }
        DesiredTask::Removed => {
            let task = draft.task_mut(id);
            task.goal = DesiredTask::Removed;
            task.remove_volumes = request.remove_volumes;
            task.stop_timeout = request.timeout;
            task.stop_signal.clone_from(&request.signal);
            draft.task_operation(Verb::Remove, id, "");
        }
    }
    task::check_ports(&mut draft)?;
    Ok(draft.finish())
}
