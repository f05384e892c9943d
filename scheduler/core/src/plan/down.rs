//! `down`: take a stack, or some of its services, away.

use std::collections::BTreeSet;

use orch_spec::assignment::TaskId;

use super::draft::Draft;
use super::{Moment, OperationId, Planned, ResourceKind, Verb, replicas};
use crate::command::Down;
use crate::error::{Missing, Refusal};
use crate::state::{Removing, State};

pub(crate) fn plan(state: &State, request: &Down, moment: Moment) -> Result<Planned, Refusal> {
    // An earlier `down` keeps the volumes, and networks that others are on; they still bear the stack's name.
    let keeps_volumes = || state.volumes.values().any(|volume| volume.stack == request.stack);
    let keeps_networks = || state.networks.values().any(|network| network.stack == request.stack);
    let is_there = state.stacks.contains_key(&request.stack) || request.volumes && keeps_volumes() || keeps_networks();
    if !is_there {
        return Err(Missing::Stack(request.stack.clone()).into());
    }
    let mut draft = Draft::new(state, &request.stack, moment);
    draft.timeout = request.timeout;
    let whole = request.services.is_empty();
    let services = scope(&mut draft, request)?;
    let downs = remove_tasks(&mut draft, &services, request.volumes);
    if whole {
        let former = draft.stack.removing;
        let volumes = request.volumes || former.is_some_and(|removing| removing.volumes);
        draft.stack.removing = Some(Removing { volumes });
        if former.is_none() {
            remove_networks(&mut draft, &downs);
        }
        if volumes && !former.is_some_and(|removing| removing.volumes) {
            remove_volumes(&mut draft, &downs);
        }
    } else {
        for service in &services {
            draft.stack.services.remove(service);
        }
    }
    Ok(draft.finish())
}

/// The services that go.
fn scope(draft: &mut Draft<'_>, request: &Down) -> Result<BTreeSet<String>, Refusal> {
    let known: BTreeSet<String> = draft.stack.services.keys().chain(draft.stack.tasks.keys()).cloned().collect();
    for service in &request.services {
        if !known.contains(service) {
            let (stack, service) = (request.stack.clone(), service.clone());
            return Err(Missing::Service { stack, service, has: known.into_iter().collect() }.into());
        }
    }
    if !request.services.is_empty() {
        return Ok(request.services.iter().cloned().collect());
    }
    let is_orphan = |name: &String| draft.stack.services.get(name).is_some_and(|service| service.orphan);
    let orphans: Vec<String> = known.iter().filter(|name| is_orphan(name)).cloned().collect();
    if request.remove_orphans || orphans.is_empty() {
        return Ok(known);
    }
    let list = orphans.join(", ");
    draft.warn(format!("services that are not in the file any more stay: {list}; --remove-orphans removes them"));
    Ok(known.into_iter().filter(|name| !orphans.contains(name)).collect())
}

fn remove_tasks(draft: &mut Draft<'_>, services: &BTreeSet<String>, volumes: bool) -> Vec<(TaskId, OperationId)> {
    let mut downs = Vec::new();
    for service in services {
        let tasks: Vec<TaskId> = draft
            .tasks_of(service)
            .into_iter()
            .filter(|task| !task.is_retiring())
            .map(|task| task.id.clone())
            .collect();
        for id in tasks {
            draft.retire(&id);
            draft.task_mut(&id).remove_volumes |= volumes;
            downs.push((id.clone(), draft.task_operation(Verb::Remove, &id, "")));
        }
    }
    replicas::order_downward(draft, &downs);
    downs
}

fn remove_networks(draft: &mut Draft<'_>, downs: &[(TaskId, OperationId)]) {
    let own = draft.state.networks.values().filter(|network| network.stack == draft.stack.name);
    let own: Vec<_> = own.map(|network| network.name.clone()).collect();
    for name in own {
        let Some(network) = draft.network(&name) else { continue };
        let staying =
            network.all_users().into_iter().filter_map(|id| draft.task(id)).filter(|task| !task.is_retiring());
        let mut users: Vec<String> = staying.map(|task| task.container_name.clone()).collect();
        users.extend(network.reservations.values().map(|reservation| reservation.name.clone()));
        if !users.is_empty() {
            draft.warn(format!("network {name} stays: it is still in use by {}", users.join(", ")));
            continue;
        }
        let users: BTreeSet<TaskId> = network.all_users().into_iter().cloned().collect();
        let operation = draft.object_operation(Verb::Remove, ResourceKind::Network, name.as_str(), String::new());
        for (_, down) in downs.iter().filter(|(id, _)| users.contains(id)) {
            draft.plan.order(*down, operation);
        }
    }
}

fn remove_volumes(draft: &mut Draft<'_>, downs: &[(TaskId, OperationId)]) {
    let own = draft.state.volumes.values().filter(|volume| volume.stack == draft.stack.name);
    let own: Vec<_> = own.map(|volume| (volume.name.clone(), volume.users.clone())).collect();
    for (name, users) in own {
        let staying = users.iter().filter_map(|id| draft.task(id)).filter(|task| !task.is_retiring());
        let staying: Vec<String> = staying.map(|task| task.container_name.clone()).collect();
        if !staying.is_empty() {
            draft.warn(format!("volume {name} stays: it is still in use by {}", staying.join(", ")));
            continue;
        }
        // Asked again: what could not be removed then may be by now.
        if draft.volume(&name).is_some_and(|volume| !volume.error.is_empty()) {
            draft.volume_mut(&name).error.clear();
        }
        let operation = draft.object_operation(Verb::Remove, ResourceKind::Volume, &name, String::new());
        for (_, down) in downs.iter().filter(|(id, _)| users.contains(id)) {
            draft.plan.order(*down, operation);
        }
    }
}
