//! Takes living namespaces onto networks, and off them.

use std::sync::Arc;

use orch_netd::{NetworkId, SandboxId};
use orch_spec::assignment::{NetworkName, TaskAssignment, TaskId, TaskNetwork};

use super::{finish, lower_endpoint};
use crate::{Shared, chain, names};

/// Takes the namespace onto a network that its task is assigned to.
pub(super) fn connect(shared: &Arc<Shared>, id: &TaskId, network: &NetworkName) {
    let task = shared.lock().task(id).cloned();
    let endpoint = task.as_ref().and_then(|task| match &task.network {
        TaskNetwork::Endpoints { endpoints, .. } => endpoints.iter().find(|endpoint| endpoint.network == *network),
        _ => None,
    });
    if let (Some(task), Some(endpoint)) = (&task, endpoint) {
        let connected = lower_endpoint(endpoint).map_err(|trouble| trouble.message).and_then(|config| {
            shared.netd.connect(&SandboxId(id.to_string()), &config).map(drop).map_err(|e| chain(&e))
        });
        if let Err(why) = &connected {
            tracing::warn!(task = %id, %network, error = why, "a container could not be taken onto a network");
        }
        note(shared, id, network, connected);
        tell_names(shared, task);
    }
    finish(shared, id);
}

/// Takes the namespace off a network that its task is not assigned to any more.
pub(super) fn disconnect(shared: &Arc<Shared>, id: &TaskId, network: &NetworkName) {
    match shared.netd.disconnect(&SandboxId(id.to_string()), &NetworkId(network.0.clone())) {
        Ok(()) => {
            if let Some(seen) = shared.lock().observed.tasks.get_mut(id) {
                seen.attached.remove(network);
            }
        }
        // Planned again by the next look.
        Err(e) => {
            tracing::warn!(task = %id, %network, error = chain(&e), "a container could not be taken off a network")
        }
    }
    let task = shared.lock().task(id).cloned();
    if let Some(task) = task {
        tell_names(shared, &task);
    }
    finish(shared, id);
}

fn note(shared: &Arc<Shared>, id: &TaskId, network: &NetworkName, connected: Result<(), String>) {
    if let Some(seen) = shared.lock().observed.tasks.get_mut(id) {
        match connected {
            Ok(()) => drop(seen.attached.insert(network.clone())),
            Err(why) => drop(seen.unattached.insert(network.clone(), why)),
        }
    }
}

/// What the namespace may ask for is what its networks have.
fn tell_names(shared: &Arc<Shared>, task: &TaskAssignment) {
    shared.dns.set_sandbox(SandboxId(task.id.to_string()), names::sandbox(task));
}
