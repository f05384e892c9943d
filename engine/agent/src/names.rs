//! Feeds the embedded name server from the assignment.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use orch_netd::dns::{Dial, NetworkRecords, RecordKind, SandboxDns};
use orch_netd::{NetworkId, SandboxId};
use orch_spec::assignment::{Assignment, NameAssignment, NetworkAssignment, TaskAssignment, TaskNetwork};

use crate::{Shared, chain};

/// Makes the name server know what the assignment says. Networks whose names did not change keep their table.
pub(crate) fn update(shared: &Arc<Shared>) {
    let (assignment, sandboxes) = {
        let state = shared.lock();
        let sandboxes: Vec<(SandboxId, SandboxDns)> = state
            .desired()
            .into_iter()
            .filter(|t| state.observed.tasks.get(&t.id).is_some_and(|seen| seen.sandbox))
            .map(|t| (SandboxId(t.id.to_string()), sandbox(t)))
            .collect();
        (state.assignment.clone(), sandboxes)
    };
    let mut digests = shared.name_digests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for network in &assignment.networks {
        let names: Vec<&NameAssignment> = assignment.names.iter().filter(|n| n.network == network.name).collect();
        let reverse = reverse(&assignment, network);
        let digest = digest(&names, &reverse);
        if digests.insert(network.name.clone(), digest) != Some(digest) {
            shared.dns.set_network(NetworkId(network.name.0.clone()), records(network, &names, &reverse));
        }
    }
    let gone: Vec<_> = digests.keys().filter(|n| !assignment.networks.iter().any(|a| a.name == **n)).cloned().collect();
    for name in gone {
        digests.remove(&name);
        shared.dns.remove_network(&NetworkId(name.0));
    }
    for (id, dns) in sandboxes {
        shared.dns.set_sandbox(id, dns);
    }
}

/// What a task's namespace may see.
pub(crate) fn sandbox(task: &TaskAssignment) -> SandboxDns {
    let TaskNetwork::Endpoints { endpoints, .. } = &task.network else { return SandboxDns::default() };
    SandboxDns {
        networks: endpoints.iter().map(|e| NetworkId(e.network.0.clone())).collect(),
        links: endpoints
            .iter()
            .flat_map(|e| &e.links)
            .map(|(a, s)| (a.to_lowercase(), s.clone()))
            .collect::<HashMap<_, _>>(),
        upstreams: task.spec.dns.iter().filter_map(|text| text.parse().ok()).collect(),
        dial: Dial::Auto,
    }
}

/// Listens again in all namespaces that an earlier agent left.
pub(crate) fn attach_all(shared: &Arc<Shared>) {
    for sandbox in shared.netd.sandboxes() {
        let dns = SandboxDns {
            networks: sandbox.endpoints.iter().map(|e| e.network.clone()).collect(),
            ..SandboxDns::default()
        };
        shared.dns.set_sandbox(sandbox.config.id.clone(), dns);
        if let Err(e) = shared.dns.attach(sandbox.config.id.clone(), &sandbox.netns) {
            tracing::warn!(sandbox = %sandbox.config.id, error = chain(&e), "no name server in this namespace");
        }
    }
}

/// Address → container name, for reverse look-ups.
fn reverse<'a>(assignment: &'a Assignment, network: &NetworkAssignment) -> Vec<(IpAddr, &'a str)> {
    let mut list = Vec::new();
    for task in &assignment.tasks {
        if let TaskNetwork::Endpoints { endpoints, .. } = &task.network {
            for endpoint in endpoints.iter().filter(|e| e.network == network.name) {
                for address in [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)].into_iter().flatten() {
                    list.push((address, task.container_name.as_str()));
                }
            }
        }
    }
    list
}

fn digest(names: &[&NameAssignment], reverse: &[(IpAddr, &str)]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in names {
        name.name.hash(&mut hasher);
        name.addresses.hash(&mut hasher);
    }
    reverse.hash(&mut hasher);
    hasher.finish()
}

fn records(network: &NetworkAssignment, names: &[&NameAssignment], reverse: &[(IpAddr, &str)]) -> NetworkRecords {
    let mut records = NetworkRecords::new(network.name.as_str()).unwrap_or_default();
    let warn = |name: &str, e: &dyn std::error::Error| tracing::warn!(%name, error = %e, "a name cannot be served");
    if !network.key.is_empty()
        && network.key != network.name.0
        && let Err(e) = records.suffix(&network.key)
    {
        warn(&network.key, &e);
    }
    for subnet in [&network.subnet4, &network.subnet6].into_iter().flatten() {
        if let Ok(prefix) = subnet.parse() {
            records.subnet(prefix);
        }
    }
    records.set_internal(network.internal);
    for name in names {
        let mut result = records.declare(&name.name, RecordKind::Service);
        for address in &name.addresses {
            result = result.and_then(|()| records.add(&name.name, RecordKind::Service, *address));
        }
        if let Err(e) = result {
            warn(&name.name, &e);
        }
    }
    for (address, container) in reverse {
        if let Err(e) = records.set_reverse(*address, &format!("{container}.{}", network.name)) {
            warn(container, &e);
        }
    }
    records
}
