//! What stands for a service towards others on a cluster: its virtual addresses, and the ports that every node publishes for it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use orch_spec::assignment::NetworkName;
use orch_spec::model::{EndpointMode, PublishMode, ServiceSpec};

use super::allocate::{self, Claim};
use super::draft::Draft;
use super::task::overlaps;
use crate::endpoint::vip_key;
use crate::error::{Clash, Refusal};
use crate::state::{MeshPort, Revision, Service, Vip, vip_holder};

/// Ports for services that ask for any: Swarm's and Kubernetes' range, which systems do not take for outgoing connections.
const ANY_PORT: (u16, u16) = (30_000, 32_767);

/// Sees to it that a service has what stands for it. Nothing of it on a host that is alone.
pub(crate) fn ensure(draft: &mut Draft<'_>, service: &str, revision: &Revision) -> Result<(), Refusal> {
    if !draft.state.is_cluster() {
        return Ok(());
    }
    let wanted = revision.spec.deploy.endpoint_mode != Some(EndpointMode::Dnsrr);
    for network in revision.networks.values() {
        if wanted {
            ensure_vip(draft, service, network)?;
        }
    }
    check_own(draft, service, &revision.spec)?;
    let ports = ports(draft, service, &revision.spec)?;
    if let Some(record) = draft.stack.services.get_mut(service) {
        record.mesh_ports = ports;
    }
    Ok(())
}

fn ensure_vip(draft: &mut Draft<'_>, service: &str, name: &NetworkName) -> Result<(), Refusal> {
    let key = vip_key(&draft.stack.name, service);
    let present = draft.network(name).map(crate::state::Network::planned);
    // A network that ends at each host has nobody elsewhere to stand for.
    if present.is_none_or(|network| !network.reaches_over() || network.vips.contains_key(&key)) {
        return Ok(());
    }
    let person = format!("the virtual address of service {service}");
    let claim = Claim { holder: vip_holder(&key), name: &person, fixed: [None, None], former: None };
    let grant = allocate::addresses(draft, name, &claim)?;
    let vip = Vip { ipv4: grant.ipv4, ipv6: grant.ipv6 };
    draft.network_mut(name).planned_mut().vips.insert(key, vip);
    Ok(())
}

/// The ports that every node publishes for the service; those that it has already stay.
fn ports(draft: &Draft<'_>, service: &str, spec: &ServiceSpec) -> Result<Vec<MeshPort>, Refusal> {
    let wanted: Vec<_> = spec.ports.iter().filter(|port| port.mode == PublishMode::Ingress).collect();
    let mut given: Vec<MeshPort> = Vec::new();
    if wanted.is_empty() {
        return Ok(given);
    }
    let own = draft.stack.services.get(service).map(|record| record.mesh_ports.clone()).unwrap_or_default();
    let others = others(draft, service);
    for port in wanted {
        let (protocol, host_ip) = (port.protocol.to_string(), port.host_ip.filter(|address| !address.is_unspecified()));
        let holder = |number: u16, given: &[MeshPort]| -> Option<String> {
            let clashes = |other: &MeshPort| {
                other.published == number && other.protocol == protocol && overlaps(host_ip, other.host_ip)
            };
            let found = others.iter().find(|(_, other)| clashes(other)).map(|(name, _)| name.clone());
            found.or_else(|| given.iter().any(clashes).then(|| format!("service {service} itself")))
        };
        let (first, last) = port.published.map_or(ANY_PORT, |range| (range.start, range.end));
        let former = own.iter().find(|had| {
            had.target == port.target
                && had.protocol == protocol
                && had.host_ip == host_ip
                && (first..=last).contains(&had.published)
                && holder(had.published, &given).is_none()
        });
        let free =
            former.map(|had| had.published).or_else(|| (first..=last).find(|number| holder(*number, &given).is_none()));
        let Some(published) = free else {
            let wants = format!("service {service}");
            return Err(match holder(first, &given) {
                Some(has) if first == last => Clash::Port { port: first, protocol, wants, has },
                _ => Clash::PortRange { first, last, protocol, wants },
            }
            .into());
        };
        given.push(MeshPort { host_ip, published, target: port.target, protocol });
    }
    Ok(given)
}

/// Refuses a port that the service wants on the nodes of its tasks and that every node publishes for another one: it would fail there.
fn check_own(draft: &Draft<'_>, service: &str, spec: &ServiceSpec) -> Result<(), Refusal> {
    for port in spec.ports.iter().filter(|port| port.mode == PublishMode::Host) {
        // Of several each node takes one that is free.
        let Some(range) = port.published.filter(|range| range.start == range.end) else { continue };
        let (protocol, host_ip) = (port.protocol.to_string(), port.host_ip.filter(|address| !address.is_unspecified()));
        for (name, stack, record) in other_services(draft, service) {
            let clashes = |other: &MeshPort| {
                other.published == range.start && other.protocol == protocol && overlaps(host_ip, other.host_ip)
            };
            if record.mesh_ports.iter().any(clashes) {
                let (wants, has) = (format!("service {service}"), format!("service {name} of stack {stack}"));
                return Err(Clash::Port { port: range.start, protocol, wants, has }.into());
            }
        }
    }
    Ok(())
}

/// All other services, each with its name and its stack's.
fn other_services<'d>(draft: &'d Draft<'_>, service: &'d str) -> impl Iterator<Item = (&'d str, &'d str, &'d Service)> {
    let stacks = draft.state.stacks.values().filter(|stack| stack.name != draft.stack.name).chain([&draft.stack]);
    stacks.flat_map(move |stack| {
        let is_other = move |name: &str| stack.name != draft.stack.name || name != service;
        let others = stack.services.iter().filter(move |(name, _)| is_other(name));
        others.map(move |(name, record)| (name.as_str(), stack.name.as_str(), record))
    })
}

/// Ports that other services have on nodes, with the service's name for people.
fn others(draft: &Draft<'_>, service: &str) -> Vec<(String, MeshPort)> {
    let mut found = Vec::new();
    for (name, stack, record) in other_services(draft, service) {
        let person = format!("service {name} of stack {stack}");
        found.extend(record.mesh_ports.iter().map(|port| (person.clone(), port.clone())));
        let spec = &draft.revision(record.revision).spec;
        for port in spec.ports.iter().filter(|port| port.mode == PublishMode::Host) {
            let range = port.published.filter(|range| range.start == range.end);
            found.extend(range.map(|range| {
                let host_ip: Option<IpAddr> = port.host_ip;
                let (published, protocol) = (range.start, port.protocol.to_string());
                (person.clone(), MeshPort { host_ip, published, target: port.target, protocol })
            }));
        }
    }
    found
}

/// Services of a stack that have virtual addresses by right.
pub(crate) fn entitled(stack: &crate::state::Stack) -> BTreeSet<String> {
    stack.services.keys().map(|service| vip_key(&stack.name, service)).collect()
}
