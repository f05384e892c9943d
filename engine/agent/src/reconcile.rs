//! The loop: plan, execute, report; and the taking over of what an earlier agent left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orch_api::control::NodeLink;
use orch_engine::config::ContainerId;
use orch_engine::container::Phase;
use orch_engine::engine::{ContainerInfo, Engine, EventKind};
use orch_netd::Netd;
use orch_spec::assignment::{DesiredTask, Health, NetworkName, NodeReport, TaskId};
use tokio::sync::{Semaphore, mpsc};

use crate::health::{self, Probe};
use crate::lower::{CallerData, label};
use crate::plan::Operation;
use crate::record::Records;
use crate::state::State;
use crate::task::{ContainerState, GOOD_RUN_MS, ObservedContainer};
use crate::{Shared, cluster, execute, fetch, names, now_ms, removal, underlay};

/// After so long without a change a burst is over.
const MEMORY_REST: Duration = Duration::from_secs(2);
/// So long between two looks for memory to give back: it takes the allocator's locks.
const MEMORY_PAUSE: Duration = Duration::from_secs(20);
/// Operations at once. Most of an operation is waiting: for the kernel's network lock, for a file system, for a grace period to end.
const OPERATIONS_AT_ONCE: usize = 16;
/// Stops and removals at once: each only waits, for a process to end or for the network namespaces that go together with its own.
const STOPS_AT_ONCE: usize = 64;
/// How many times as long as a plan and what follows from it took the next ones wait for: each looks at every task, and two hundred that
/// start at once make a thousand changes.
const PLAN_REST: u32 = 4;
/// A shorter rest than this, the resolution of timers, is put together with the next ones: a single container never waits for a plan.
const LEAST_REST: Duration = Duration::from_millis(1);
/// Between two reports in a burst of changes: each looks at every task and costs a log entry, and what follows from it. The first change
/// is reported without delay.
const REPORT_STEP: Duration = Duration::from_millis(3);
/// A look at everything though nothing happened: what an event missed is found then.
const SWEEP: Duration = Duration::from_secs(10);

/// Builds the memory from what is there.
pub(crate) fn adopt(engine: &Engine, netd: &Netd, records: &Records) -> State {
    let mut state = State::default();
    let (task_records, locals, bad) = records.read();
    for path in bad {
        tracing::warn!(path = %path.display(), "a record cannot be read and is ignored");
    }
    state.locals = locals;
    // A task without a container is tried anew; but it is known, so that the record of one whose container was removed just before
    // the agent ended goes with the first look.
    for id in task_records.keys() {
        state.observed.tasks.entry(id.clone()).or_default();
    }
    for info in engine.list() {
        if let Some(id) = info.config.labels.get(label::TASK).cloned().map(TaskId::from) {
            let seen = state.observed.tasks.entry(id.clone()).or_default();
            seen.record = task_records.get(&id).cloned().unwrap_or_default();
            seen.saved = seen.record.clone();
            seen.container = observed(&info);
            seen.cluster = info.config.labels.get(label::CLUSTER).cloned().unwrap_or_default();
            if probe(&info).is_some() {
                let started_at = seen.container.as_ref().and_then(|container| container.started_at);
                let known = seen.record.health.filter(|known| known.started_at == started_at);
                seen.health = known.map_or(Health::Starting, |known| known.health);
            }
        }
    }
    // What was run with `--rm` runs once: if there is no container, it has ended and only its record stayed.
    for (id, local) in &mut state.locals {
        let seen = state.observed.tasks.entry(id.clone()).or_default();
        if local.auto_remove && seen.container.is_none() {
            local.task.desired = DesiredTask::Removed;
        }
    }
    for sandbox in netd.sandboxes() {
        let seen = state.observed.tasks.entry(TaskId::from(sandbox.config.id.0.clone())).or_default();
        seen.sandbox = true;
        seen.attached = sandbox.endpoints.into_iter().map(|endpoint| NetworkName(endpoint.network.0)).collect();
    }
    state.observed.networks = netd.networks().into_iter().map(|n| NetworkName(n.id.0)).collect();
    state.observed.volumes = engine.volumes().list().unwrap_or_default().into_iter().map(|v| v.name).collect();
    state
}

/// A container as the loop sees it; `None` for one that is being removed.
pub(crate) fn observed(info: &ContainerInfo) -> Option<ObservedContainer> {
    let state = match info.state.phase {
        Phase::Created => ContainerState::Created,
        Phase::Running => ContainerState::Running,
        Phase::Paused => ContainerState::Paused,
        Phase::Exited => ContainerState::Exited,
        Phase::Removing => return None,
    };
    let created = serde_json::from_value::<CallerData>(info.config.caller.clone()).unwrap_or_default().created_at;
    let millis = |nanos: Option<i64>| nanos.and_then(|n| u64::try_from(n / 1_000_000).ok());
    Some(ObservedContainer {
        id: info.config.id.clone(),
        name: info.config.name.clone(),
        state,
        pid: (info.state.pid > 0).then_some(info.state.pid),
        exit_code: info.state.exit_code,
        oom_killed: info.state.oom_killed,
        lost: info.state.lost,
        created_at: millis(Some(created)).unwrap_or(0),
        started_at: millis(info.state.started_at),
        finished_at: millis(info.state.finished_at),
        image_id: info.config.image_id.clone(),
    })
}

/// The probe of a container, if it has one.
fn probe(info: &ContainerInfo) -> Option<Probe> {
    let data: CallerData = serde_json::from_value(info.config.caller.clone()).unwrap_or_default();
    Probe::new(data.healthcheck.as_ref()?)
}

/// Starts the tasks of the agent.
pub(crate) fn spawn(shared: &Arc<Shared>, link: NodeLink) {
    let NodeLink { mut assignments, reports } = link;
    // Taking assignments in.
    let to = shared.clone();
    tokio::spawn(async move {
        loop {
            let assignment = assignments.borrow_and_update().clone();
            // Version 0 is "nothing said yet".
            if assignment.version > 0 {
                let (current, impatient) = {
                    let mut state = to.lock();
                    if !state.assigned || assignment.version >= state.assignment.version {
                        state.assignment = assignment;
                        state.assigned = true;
                    }
                    state.answer_for_networks_never_made();
                    (state.assignment.clone(), state.impatient_stops())
                };
                names::update(&to);
                // Before anything is planned.
                if cluster::concerns(&to, &current) {
                    cluster::take_in(&to, &current).await;
                }
                to.touch();
                for container in impatient {
                    let to = to.clone();
                    tokio::task::spawn_blocking(move || {
                        // It may have ended meanwhile, which is what was wanted.
                        let _ = to.engine.kill(&container, nix::libc::SIGKILL);
                    });
                }
            }
            if assignments.changed().await.is_err() {
                return;
            }
        }
    });
    // The engine's events come on a thread that blocks.
    let to = shared.clone();
    let events = shared.engine.events();
    std::thread::Builder::new()
        .name("engine-events".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            while let Some(event) = events.receive() {
                match event.kind {
                    EventKind::Lagged => refresh_all(&to),
                    _ => refresh(&to, &event.container),
                }
            }
        })
        .map(drop)
        .unwrap_or_else(
            |e| tracing::error!(error = %e, "no thread for the engine's events; the sweep has to find them"),
        );
    tokio::spawn(reporter(shared.clone(), reports));
    tokio::spawn(cluster::follow(shared.clone()));
    tokio::spawn(underlay::watch(shared.clone()));
    tokio::spawn(removal::see_off(shared.clone()));
    tokio::spawn(run(shared.clone()));
    tokio::spawn(give_memory_back(shared.clone()));
    shared.touch();
}

/// What a burst left free goes back to the kernel, once nothing has changed for a moment.
async fn give_memory_back(shared: Arc<Shared>) {
    let mut version = shared.version.subscribe();
    while version.changed().await.is_ok() {
        while let Ok(Ok(())) = tokio::time::timeout(MEMORY_REST, version.changed()).await {}
        let _ = tokio::task::spawn_blocking(orch_engine::memory::release_free_memory).await;
        tokio::time::sleep(MEMORY_PAUSE).await;
    }
}

/// Reads one container's state anew.
pub(crate) fn refresh(shared: &Arc<Shared>, container: &ContainerId) {
    let turn = shared.look();
    let info = shared.engine.inspect(container).ok();
    let mut state = shared.lock();
    let task = match &info {
        Some(info) => info.config.labels.get(label::TASK).cloned().map(TaskId::from),
        None => state.task_of(container).cloned(),
    };
    if let Some(task) = task {
        take_in(&mut state, &task, container, info.as_ref());
    }
    drop(state);
    drop(turn);
    shared.touch();
}

fn refresh_all(shared: &Arc<Shared>) {
    let turn = shared.look();
    let infos: BTreeMap<ContainerId, ContainerInfo> =
        shared.engine.list().into_iter().map(|i| (i.config.id.clone(), i)).collect();
    let mut state = shared.lock();
    let known: Vec<(TaskId, ContainerId)> = state
        .observed
        .tasks
        .iter()
        .filter_map(|(id, t)| Some((id.clone(), t.container.as_ref()?.id.clone())))
        .collect();
    for (task, container) in known {
        take_in(&mut state, &task, &container, infos.get(&container));
    }
    for info in infos.values() {
        if let Some(task) = info.config.labels.get(label::TASK).cloned().map(TaskId::from) {
            take_in(&mut state, &task, &info.config.id, Some(info));
        }
    }
    drop(state);
    drop(turn);
    shared.touch();
}

/// Takes a look at a container into the memory. An end counts for the back-off and is remembered for those who wait.
fn take_in(state: &mut State, task: &TaskId, container: &ContainerId, info: Option<&ContainerInfo>) {
    let Some(info) = info else {
        if let Some(seen) = state.observed.tasks.get_mut(task)
            && seen.container.as_ref().is_some_and(|c| c.id == *container)
        {
            seen.container = None;
            seen.health = Health::None;
        }
        return;
    };
    let new = observed(info);
    let seen = state.observed.tasks.entry(task.clone()).or_default();
    seen.cluster = info.config.labels.get(label::CLUSTER).cloned().unwrap_or_default();
    let old = seen.container.take();
    let ended = new.as_ref().is_some_and(|new| {
        new.state == ContainerState::Exited
            && old.as_ref().is_none_or(|old| old.state != ContainerState::Exited || old.finished_at != new.finished_at)
    });
    if ended && let Some(new) = &new {
        let lived = new.finished_at.unwrap_or(0).saturating_sub(new.started_at.unwrap_or(0));
        seen.record.short_runs = if lived >= GOOD_RUN_MS { 0 } else { seen.record.short_runs.saturating_add(1) };
        seen.health = Health::None;
        let code = new.exit_code.unwrap_or(0);
        let id = new.id.clone();
        seen.container = Some(new.clone());
        state.ended(&id, code);
        return;
    }
    // From the first moment on: "runs and has no probe" would be an answer to those who wait for its health.
    let runs = new.as_ref().is_some_and(|c| c.state == ContainerState::Running);
    if runs && seen.health == Health::None && probe(info).is_some() {
        seen.health = Health::Starting;
    }
    seen.container = new;
}

async fn reporter(shared: Arc<Shared>, reports: mpsc::Sender<NodeReport>) {
    let mut version = shared.version.subscribe();
    let facts = crate::facts(&shared.config, &shared.netd);
    if reports.send(NodeReport::Facts(facts)).await.is_err() {
        return;
    }
    loop {
        let (changed, networks, volumes, applied) = {
            let mut state = shared.lock();
            let changed = state.changed_statuses(now_ms());
            let applied = (state.endpoints_applied != state.endpoints_reported).then_some(state.endpoints_applied);
            state.endpoints_reported = state.endpoints_applied;
            let networks = std::mem::take(&mut state.networks_removed);
            (changed, networks, std::mem::take(&mut state.volumes_removed), applied)
        };
        let mut batch = Vec::new();
        if !changed.is_empty() {
            batch.push(NodeReport::Tasks(changed));
        }
        if !networks.is_empty() {
            batch.push(NodeReport::NetworksRemoved(networks));
        }
        if !volumes.is_empty() {
            batch.push(NodeReport::VolumesRemoved(volumes));
        }
        if let Some(version) = applied {
            batch.push(NodeReport::Applied { version });
        }
        batch.extend(underlay::news(&shared).map(NodeReport::Underlay));
        for report in batch {
            if reports.send(report).await.is_err() {
                return;
            }
        }
        let reported = Instant::now();
        if version.changed().await.is_err() {
            return;
        }
        tokio::time::sleep_until((reported + REPORT_STEP).into()).await;
    }
}

async fn run(shared: Arc<Shared>) {
    let operations = Arc::new(Semaphore::new(OPERATIONS_AT_ONCE));
    let stops = Arc::new(Semaphore::new(STOPS_AT_ONCE));
    let probes = Arc::new(Semaphore::new(health::PROBES_AT_ONCE));
    let mut watched: BTreeMap<TaskId, (ContainerId, Option<u64>, tokio::task::JoinHandle<()>)> = BTreeMap::new();
    let mut wake_at: Option<u64> = None;
    let mut rested = Instant::now();
    loop {
        let wait = wake_at.map_or(SWEEP, |at| Duration::from_millis(at.saturating_sub(now_ms()))).min(SWEEP);
        tokio::select! {
            () = shared.dirty.notified() => if rested >= Instant::now() + LEAST_REST {
                tokio::time::sleep_until(rested.into()).await;
            },
            () = tokio::time::sleep(wait) => {
                if wake_at.is_none_or(|at| at > now_ms()) {
                    sweep(&shared).await;
                }
            }
        }
        let began = Instant::now();
        let (plan, gone) = {
            let mut state = shared.lock();
            let plan = state.plan(now_ms());
            (plan, state.forget_gone())
        };
        for id in gone {
            shared.records.remove_task(&id);
            crate::local::forgotten(&shared, &id);
        }
        wake_at = plan.wake_at;
        for operation in plan.operations {
            tracing::debug!(%operation, "plan");
            if let Operation::FetchImage(image) = operation {
                tokio::spawn(fetch::fetch(shared.clone(), image));
                continue;
            }
            let waits = matches!(
                operation,
                Operation::StopContainer { .. } | Operation::RemoveContainer(_) | Operation::RemoveSandbox(_)
            );
            let turn = if waits { stops.clone() } else { operations.clone() };
            let shared = shared.clone();
            tokio::spawn(async move {
                let Ok(_turn) = turn.acquire_owned().await else { return };
                let inner = shared.clone();
                let done = tokio::task::spawn_blocking(move || execute::execute(&inner, &operation)).await;
                if let Err(e) = done {
                    tracing::error!(error = %e, "an operation ended unexpectedly");
                }
                shared.touch();
            });
        }
        watch_health(&shared, &probes, &mut watched);
        rested = rested.max(began) + began.elapsed() * PLAN_REST;
    }
}

/// Looks at all containers, and repairs networks that somebody meddled with.
async fn sweep(shared: &Arc<Shared>) {
    let inner = shared.clone();
    let swept = tokio::task::spawn_blocking(move || {
        refresh_all(&inner);
        cluster::apply(&inner);
        execute::repair_networks(&inner);
        // The shim of containers of no stack waits for the next one, but not for ever.
        if inner.lock().locals.is_empty() {
            inner.engine.retire();
        }
    })
    .await;
    if let Err(e) = swept {
        tracing::error!(error = %e, "a sweep ended unexpectedly");
    }
}

/// Starts a probe for each container that runs and has none yet, ends those of containers that do not run.
fn watch_health(
    shared: &Arc<Shared>,
    probes: &Arc<Semaphore>,
    watched: &mut BTreeMap<TaskId, (ContainerId, Option<u64>, tokio::task::JoinHandle<()>)>,
) {
    let mut fresh = Vec::new();
    {
        let state = shared.lock();
        let current = |id: &TaskId, container: &ContainerId, started: Option<u64>| {
            state
                .observed
                .tasks
                .get(id)
                .and_then(|t| t.container.as_ref())
                .is_some_and(|c| c.id == *container && c.started_at == started && c.state != ContainerState::Exited)
        };
        watched.retain(|id, (container, started, handle)| {
            let keep = current(id, container, *started);
            if !keep {
                handle.abort();
            }
            keep
        });
        for (id, seen) in &state.observed.tasks {
            if let Some(c) = seen.container.as_ref().filter(|c| c.state == ContainerState::Running)
                && !watched.contains_key(id)
            {
                fresh.push((id.clone(), c.id.clone(), c.started_at));
            }
        }
    }
    for (id, container, started) in fresh {
        let probe = shared.engine.inspect(&container).ok().as_ref().and_then(probe);
        let handle = match probe {
            Some(probe) => {
                let mut known = Health::Starting;
                if let Some(seen) = shared.lock().observed.tasks.get_mut(&id) {
                    if seen.health == Health::None {
                        seen.health = Health::Starting;
                    }
                    known = seen.health;
                }
                let age = Duration::from_millis(now_ms().saturating_sub(started.unwrap_or_else(now_ms)));
                let run =
                    health::Run { task: id.clone(), container: container.clone(), started_at: started, age, known };
                tokio::spawn(health::watch(shared.clone(), probes.clone(), run, probe))
            }
            None => tokio::spawn(std::future::ready(())),
        };
        watched.insert(id, (container, started, handle));
    }
}
