//! Taking a task onto a further network, and off one, while it runs.

use std::net::IpAddr;

use orch_spec::assignment::{EndpointAssignment, NetworkName, TaskId, TaskNetwork};

use super::allocate::{self, Claim};
use super::draft::Draft;
use super::{Moment, Planned};
use crate::command::{AttachTask, DetachTask};
use crate::error::{Missing, Refusal, SpecFault};
use crate::settle::leave_network;
use crate::state::{State, Task, holder_of};

pub(crate) fn plan_attach(state: &State, request: &AttachTask, moment: Moment) -> Result<Planned, Refusal> {
    let task = present(state, &request.task)?;
    let network = state.networks.get(&request.network).filter(|network| network.is_active());
    let Some(network) = network else { return Err(Missing::Network(request.network.0.clone()).into()) };
    let fault = |problem: String| SpecFault::Network { network: network.name.clone(), problem };
    if task.networks().any(|name| *name == network.name) {
        return Err(fault(format!("{} is on it already", task.container_name)).into());
    }
    let mut draft = Draft::new(state, &task.stack, moment);
    let claim = Claim {
        holder: holder_of(&task.id),
        name: &task.container_name,
        fixed: [request.ipv4.map(IpAddr::V4), request.ipv6.map(IpAddr::V6)],
        former: None,
    };
    let grant = allocate::addresses(&mut draft, &network.name, &claim)?;
    if let Some(former) = grant.after.iter().find_map(|id| state.tasks.get(id)) {
        let problem = format!("the address is still that of {}, which is being removed", former.container_name);
        return Err(fault(problem).into());
    }
    let record = draft.network_mut(&network.name);
    record.users.insert(task.id.clone());
    if task.told.is_some() {
        record.nodes.extend(task.node.clone());
    }
    let endpoint = EndpointAssignment {
        network: network.name.clone(),
        ipv4: grant.ipv4,
        ipv6: grant.ipv6,
        mac: None,
        interface_name: None,
        gw_priority: 0,
        links: Default::default(),
    };
    let task = draft.task_mut(&request.task);
    task.attached.insert(endpoint.network.clone(), request.aliases.clone());
    if let Some(TaskNetwork::Endpoints { endpoints, .. }) = &mut task.network {
        endpoints.push(endpoint);
    }
    let mut planned = draft.finish();
    planned.answer.addresses = (grant.ipv4, grant.ipv6);
    Ok(planned)
}

pub(crate) fn plan_detach(state: &State, request: &DetachTask, moment: Moment) -> Result<Planned, Refusal> {
    let task = present(state, &request.task)?;
    let name: &NetworkName = &request.network;
    if !task.networks().any(|network| network == name) {
        let problem = format!("{} is not on it", task.container_name);
        return Err(SpecFault::Network { network: name.clone(), problem }.into());
    }
    let mut draft = Draft::new(state, &task.stack, moment);
    if draft.network(name).is_some() {
        leave_network(draft.network_mut(name), &task.id, task);
    }
    let task = draft.task_mut(&request.task);
    task.attached.remove(name);
    if let Some(TaskNetwork::Endpoints { endpoints, .. }) = &mut task.network {
        endpoints.retain(|endpoint| endpoint.network != *name);
    }
    Ok(draft.finish())
}

/// The task, when it is there to stay and has a network of its own.
fn present<'s>(state: &'s State, id: &TaskId) -> Result<&'s Task, Refusal> {
    let task = state.tasks.get(id).filter(|task| !task.is_retiring());
    let Some(task) = task else { return Err(Missing::Task(id.to_string()).into()) };
    let has = match &task.network {
        Some(TaskNetwork::Endpoints { .. }) => return Ok(task),
        Some(TaskNetwork::Host) => "the host's network".to_owned(),
        Some(TaskNetwork::Task(owner)) => {
            let owner = state.tasks.get(owner).map_or(owner.as_str(), |owner| owner.container_name.as_str());
            format!("the network of {owner}")
        }
        Some(TaskNetwork::None) | None => "no network (network_mode: none)".to_owned(),
    };
    let text = format!("container {} has {has}, so it cannot be on further ones", task.container_name);
    Err(SpecFault::Options(text).into())
}
