//! Services and single tasks of a cluster; see [`orch_api::service`] for the table.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State as Inject};
use orch_api::control::{ApplyResponse, ServiceView};
use orch_api::error::ErrorDetail;
use orch_api::service::{NodeVerdict, ServiceDetail, ServiceUpdate, TaskExplanation};
use orch_core::{Command, Down, Explanation, State, Task, UpdateService};
use orch_spec::assignment::TaskId;
use orch_spec::model::{Constraint, Duration, FailureAction, ServiceSpec, UpdateOrder};
use serde::Deserialize;

use super::{Asked, Body, Injected, Refused, Reply, not_found, propose, resolve, response, view};

/// The stack and name of a service that people name.
fn find(state: &State, name: &str) -> Result<(String, String), Refused> {
    let all =
        || state.stacks.values().flat_map(|stack| stack.services.keys().map(move |service| (&stack.name, service)));
    let full = all().find(|(stack, service)| format!("{stack}_{service}") == name);
    let mut alone = all().filter(|(_, service)| *service == name);
    match (full, alone.next(), alone.next()) {
        (Some((stack, service)), _, _) | (None, Some((stack, service)), None) => Ok((stack.clone(), service.clone())),
        (None, Some((first, _)), Some((second, _))) => {
            let message = format!("several stacks have a service {name}");
            let hint = format!("say which: {first}_{name} or {second}_{name}");
            Err(ErrorDetail::new("conflict", message).with_hint(hint).into())
        }
        (None, None, _) => Err(not_found("service", name)),
    }
}

/// `?stack=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceQuery {
    stack: Option<String>,
}

/// `GET /v1/services`.
pub(super) async fn services(Inject(server): Injected, query: Asked<ServiceQuery>) -> Reply<Vec<ServiceView>> {
    let Query(query) = query?;
    Ok(Json(server.control.read(|state: &State| {
        let stacks = state.stacks.keys().filter(|name| query.stack.as_ref().is_none_or(|wanted| wanted == *name));
        stacks.filter_map(|name| view::stack(state, name)).flat_map(|stack| stack.services).collect()
    })))
}

/// `GET /v1/services/{id}`.
pub(super) async fn service(Inject(server): Injected, Path(name): Path<String>) -> Reply<ServiceDetail> {
    server.control.read(|state| {
        let (stack, service) = find(state, &name)?;
        detail(state, &stack, &service).map(Json).ok_or_else(|| not_found("service", &name))
    })
}

fn detail(state: &State, stack: &str, name: &str) -> Option<ServiceDetail> {
    let record = state.stacks.get(stack)?.services.get(name)?;
    let service = view::stack(state, stack)?.services.into_iter().find(|service| service.name == name)?;
    let mut tasks: Vec<&Task> = state.service_tasks(stack, name).collect();
    tasks.sort_by(|a, b| a.order().cmp(&b.order()));
    let revision = state.revision(record.revision);
    let mut vips: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for network in revision.networks.values().filter_map(|name| state.networks.get(name)) {
        if let Some(vip) = network.vips.get(&format!("{stack}/{name}")) {
            let addresses = [vip.ipv4.map(IpAddr::V4), vip.ipv6.map(IpAddr::V6)];
            vips.insert(network.name.0.clone(), addresses.into_iter().flatten().collect());
        }
    }
    Some(ServiceDetail {
        service,
        spec: Arc::clone(&revision.spec),
        history: record.history.len(),
        vips,
        tasks: tasks.into_iter().map(|task| view::task(state, task)).collect(),
    })
}

/// `POST /v1/services/{id}/update`.
pub(super) async fn update(
    Inject(server): Injected,
    Path(name): Path<String>,
    body: Body<ServiceUpdate>,
) -> Reply<ApplyResponse> {
    let Json(request) = body?;
    let (stack, service, applied) = server.control.read(|state| {
        let (stack, service) = find(state, &name)?;
        let record = state.stacks.get(&stack).and_then(|stack| stack.services.get(&service));
        let applied = record.map(|record| Arc::clone(&state.revision(record.revision).spec));
        Ok::<_, Refused>((stack, service, applied.ok_or_else(|| not_found("service", &name))?))
    })?;
    let spec = Arc::new(changed(&applied, &request)?);
    let images = if spec.image == applied.image {
        BTreeMap::new()
    } else {
        resolve(&server, [(service.as_str(), &*spec)].into_iter()).await?
    };
    let image_id = images.get(&spec.image).cloned().unwrap_or_default();
    let command = UpdateService { stack, service, spec, image_id, replicas: request.replicas, force: request.force };
    let (index, answer) = propose(&server, Command::UpdateService(command)).await?;
    Ok(Json(response(index, answer)))
}

/// The service with what is asked for.
fn changed(applied: &ServiceSpec, request: &ServiceUpdate) -> Result<ServiceSpec, ErrorDetail> {
    let mut spec = applied.clone();
    let invalid = |what: &str, text: &str| ErrorDetail::new("invalid", format!("`{text}` is not {what}"));
    if let Some(image) = &request.image {
        spec.image.clone_from(image);
    }
    for name in &request.remove_env {
        spec.environment.remove(name);
    }
    for (name, value) in &request.env {
        spec.environment.insert(name.clone(), Some(value.clone()));
    }
    let parse = |text: &String| text.parse::<Constraint>().map_err(|()| invalid("a constraint", text));
    for text in &request.remove_constraints {
        let constraint = parse(text)?;
        spec.deploy.placement.constraints.retain(|known| *known != constraint);
    }
    for text in &request.constraints {
        spec.deploy.placement.constraints.push(parse(text)?);
    }
    let mut rules = spec.deploy.update_config.unwrap_or_default();
    rules.parallelism = request.update_parallelism.or(rules.parallelism);
    if let Some(text) = &request.update_delay {
        rules.delay = Some(text.parse::<Duration>().map_err(|_| invalid("a duration such as 10s", text))?);
    }
    rules.order = match request.update_order.as_deref() {
        None => rules.order,
        Some("stop-first") => Some(UpdateOrder::StopFirst),
        Some("start-first") => Some(UpdateOrder::StartFirst),
        Some(text) => return Err(invalid("an order (stop-first, start-first)", text)),
    };
    rules.failure_action = match request.update_failure_action.as_deref() {
        None => rules.failure_action,
        Some("pause") => Some(FailureAction::Pause),
        Some("continue") => Some(FailureAction::Continue),
        Some("rollback") => Some(FailureAction::Rollback),
        Some(text) => return Err(invalid("a failure action (pause, continue, rollback)", text)),
    };
    if rules != spec.deploy.update_config.unwrap_or_default() {
        spec.deploy.update_config = Some(rules);
    }
    Ok(spec)
}

/// `POST /v1/services/{id}/rollback`.
pub(super) async fn rollback(Inject(server): Injected, Path(name): Path<String>) -> Reply<ApplyResponse> {
    let (stack, service) = server.control.read(|state| find(state, &name))?;
    let (index, answer) = propose(&server, Command::RollbackService { stack, service }).await?;
    Ok(Json(response(index, answer)))
}

/// `DELETE /v1/services/{id}`.
pub(super) async fn remove(Inject(server): Injected, Path(name): Path<String>) -> Reply<ApplyResponse> {
    let (stack, service) = server.control.read(|state| find(state, &name))?;
    let command = Down { stack, services: vec![service], ..Down::default() };
    let (index, answer) = propose(&server, Command::RemoveStack(command)).await?;
    Ok(Json(response(index, answer)))
}

/// `GET /v1/tasks/{id}/why`: by id, the beginning of one that only one has, or the container's name.
pub(super) async fn why(Inject(server): Injected, Path(name): Path<String>) -> Reply<TaskExplanation> {
    server.control.read(|state| {
        let exact = state.tasks.get(&TaskId::from(name.as_str()));
        let named = || state.tasks.values().filter(|task| task.container_name == name).max_by_key(|task| task.sequence);
        let mut begun = state.tasks.values().filter(|task| !name.is_empty() && task.id.as_str().starts_with(&name));
        let begun = || begun.next().filter(|_| begun.next().is_none());
        let task = exact.or_else(named).or_else(begun).ok_or_else(|| not_found("task", &name))?;
        Ok(Json(explain(state, task)))
    })
}

fn explain(state: &State, task: &Task) -> TaskExplanation {
    let explanation = Explanation::of(state, &task.id).unwrap_or_default();
    let nodes = explanation.nodes.iter().map(|(id, obstacle)| NodeVerdict {
        node: id.0.clone(),
        hostname: state.nodes.get(id).map(|node| node.facts.hostname.clone()).unwrap_or_default(),
        fits: obstacle.is_none(),
        reason: obstacle.as_ref().map(|one| one.word().to_owned()).unwrap_or_default(),
        text: match obstacle {
            Some(obstacle) => obstacle.on_one(),
            None if state.is_avoided(id, task) => "would take it if no other did: tasks keep failing there".to_owned(),
            None => "would take it".to_owned(),
        },
    });
    let events = state.events.since(0).filter(|event| event.id == task.id.as_str()).map(super::tail::event);
    TaskExplanation {
        task: view::task(state, task),
        summary: summary(state, task, &explanation),
        nodes: nodes.collect(),
        events: events.collect(),
    }
}

/// What it comes to in a sentence.
fn summary(state: &State, task: &Task, explanation: &Explanation) -> String {
    let name = &task.container_name;
    if !task.blocked.is_empty() {
        return format!("{name} cannot start: {}", task.blocked);
    }
    let note = &task.status.note;
    if let Some(node) = task.node.as_ref().filter(|_| !note.is_empty()) {
        let host = state.nodes.get(node).map_or(node.as_str(), |node| node.facts.hostname.as_str());
        return format!("{name} is {} on {host}: {note}", view::state_word(task.status.state));
    }
    if let Some(host) = view::lost_on(state, task) {
        let held_by = state.held_by(task);
        let only =
            if held_by.is_empty() { String::new() } else { format!("; volume {} is nowhere else", held_by.join(", ")) };
        let was = view::state_word(task.status.state);
        return format!("{name} was {was} on {host}, which is down{only}");
    }
    if !task.waiting.is_empty() {
        let waits: Vec<&str> = task.waiting.iter().map(|wait| wait.text.as_str()).collect();
        return format!("{name} waits for {}", waits.join(" and "));
    }
    let Some(node) = &task.node else { return format!("{name} has no node: {explanation}") };
    let host = state.nodes.get(node).map_or(node.as_str(), |node| node.facts.hostname.as_str());
    let status = &task.status;
    let state_word = view::state_word(status.state);
    match (status.error.is_empty(), status.exit_code) {
        (false, _) => format!("{name} is {state_word} on {host}: {}", status.error),
        (true, Some(code)) => format!("{name} is {state_word} on {host} (exit code {code})"),
        (true, None) => format!("{name} is {state_word} on {host}"),
    }
}
