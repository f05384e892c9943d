//! Containers as the API shows them.

use std::collections::BTreeMap;
use std::sync::Arc;

use orch_api::node::{Addresses, ContainerView};
use orch_engine::engine::ContainerInfo;
use orch_spec::assignment::{TaskAssignment, TaskId, TaskNetwork, TaskState};

use crate::lower::{CallerData, label};
use crate::reconcile::observed;
use crate::task::{ContainerState, ObservedTask, status};
use crate::{Shared, now_ms};

/// Nanoseconds since the epoch as RFC 3339; empty for none.
pub(crate) fn time(nanos: Option<i64>) -> String {
    nanos.and_then(|n| jiff::Timestamp::from_nanosecond(i128::from(n)).ok()).map(|t| t.to_string()).unwrap_or_default()
}

/// All containers, those that are still to be made included.
pub(crate) fn all(shared: &Arc<Shared>) -> Vec<ContainerView> {
    shared.engine.list().iter().map(|info| one(shared, info)).collect()
}

/// One container.
pub(crate) fn one(shared: &Arc<Shared>, info: &ContainerInfo) -> ContainerView {
    let labels = &info.config.labels;
    let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let task_id = TaskId::from(text(label::TASK));
    let caller: CallerData = serde_json::from_value(info.config.caller.clone()).unwrap_or_default();
    let state = shared.lock();
    let task = state.task(&task_id);
    let seen = state.observed.tasks.get(&task_id);
    let status = match task {
        Some(task) => status(task, seen, now_ms()),
        None => orch_spec::assignment::TaskStatus {
            state: bare_state(info),
            exit_code: info.state.exit_code,
            oom_killed: info.state.oom_killed,
            pid: (info.state.pid > 0).then_some(info.state.pid),
            error: info.state.error.clone(),
            ..Default::default()
        },
    };
    ContainerView {
        id: info.config.id.0.clone(),
        name: info.config.name.clone(),
        image: info.config.image.clone(),
        image_id: info.config.image_id.clone(),
        command: info.config.process.args.join(" "),
        stack: text(label::STACK),
        service: text(label::SERVICE),
        task: task_id.to_string(),
        slot: text(label::SLOT).parse().unwrap_or(0),
        tty: info.config.process.tty,
        state: status.state,
        health: status.health,
        exit_code: status.exit_code,
        oom_killed: status.oom_killed,
        pid: status.pid,
        restarts: status.restarts,
        error: if status.error.is_empty() { info.state.error.clone() } else { status.error },
        created_at: time(Some(caller.created_at)),
        started_at: time(info.state.started_at),
        finished_at: time(info.state.finished_at),
        ports: status.ports,
        networks: task.map(|task| networks(task, seen)).unwrap_or_default(),
        network_errors: task.map(|task| network_errors(task, seen, &state.observed.failures)).unwrap_or_default(),
        labels: labels.clone(),
    }
}

fn bare_state(info: &ContainerInfo) -> TaskState {
    match observed(info).map(|o| o.state) {
        Some(ContainerState::Created) => TaskState::Created,
        Some(ContainerState::Running) => TaskState::Running,
        Some(ContainerState::Paused) => TaskState::Paused,
        Some(ContainerState::Exited) => TaskState::Exited,
        None => TaskState::Removed,
    }
}

/// The networks that it is on; before it runs, those that it will be on. One that it is about to leave has no addresses any more.
fn networks(task: &TaskAssignment, seen: Option<&ObservedTask>) -> BTreeMap<String, Addresses> {
    let TaskNetwork::Endpoints { endpoints, .. } = &task.network else { return BTreeMap::new() };
    let text = |address: Option<String>| address.unwrap_or_default();
    let mut networks: BTreeMap<String, Addresses> = endpoints
        .iter()
        .map(|e| {
            let ipv4 = text(e.ipv4.map(|a| a.to_string()));
            let ipv6 = text(e.ipv6.map(|a| a.to_string()));
            (e.network.0.clone(), Addresses { ipv4, ipv6 })
        })
        .collect();
    if let Some(seen) = seen.filter(|seen| seen.sandbox) {
        networks.retain(|name, _| seen.attached.iter().any(|network| network.0 == *name));
        for leaving in &seen.attached {
            networks.entry(leaving.0.clone()).or_default();
        }
    }
    networks
}

/// Why it is not on networks that it should be on: it could not be taken onto them, or they could not be made.
fn network_errors(
    task: &TaskAssignment,
    seen: Option<&ObservedTask>,
    failures: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let TaskNetwork::Endpoints { endpoints, .. } = &task.network else { return BTreeMap::new() };
    let why = |network| seen.and_then(|seen| seen.unattached.get(network));
    endpoints
        .iter()
        .filter_map(|e| Some((e.network.0.clone(), why(&e.network).or_else(|| failures.get(&e.network.0))?.clone())))
        .collect()
}
