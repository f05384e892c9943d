//! What a node of several shall know of the others, handed to netd: wires to their containers, services, ports of every node.
//!
//! [`lower`] is pure. [`apply`] blocks shortly and says afterwards, through the reporter, which version is in effect: the control plane
//! stops a task only after every node has let go of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orch_netd::{
    Backend, DesiredCluster, Mesh, MeshBackend, MeshPort, NetworkId, Overlay, Protocol, RemoteEndpoint, Service,
    Underlay,
};
use orch_spec::assignment::{Assignment, MeshPortAssignment, NodeId, OverlayAssignment, ServiceAssignment};

use tokio::sync::Notify;

use crate::{Shared, chain, underlay};

/// Longest pause after an attempt, in which changes gather.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How many times as long as an attempt took is the pause after it: while many tasks start, every one of them changes what every sandbox
/// knows, and telling it each time would take more time than starting them.
const PAUSE_FACTOR: u32 = 3;

/// The last attempt.
#[derive(Debug, Default)]
pub(crate) struct Applying {
    /// The version with which nothing is left to try again. Locked while an attempt is made, from before it is read what is wanted: two
    /// threads would undo each other's.
    complete: Mutex<Option<u64>>,
    /// Networks that netd knows to span nodes, with what their MTU follows from.
    spanning: Mutex<Vec<(NetworkId, u32)>>,
    /// Something changed that can wait for its turn.
    changed: Notify,
}

/// What the assignment says about other nodes, as netd wants it. On a host that is alone: nothing. Through the card of `spared`, this host's
/// address, checksums of containers' packets come wrong.
pub(crate) fn lower(assignment: &Assignment, own: &NodeId, spared: Option<IpAddr>) -> DesiredCluster {
    let overlays: Vec<(NetworkId, &OverlayAssignment)> = assignment
        .networks
        .iter()
        .filter_map(|network| Some((NetworkId(network.name.0.clone()), network.overlay.as_ref()?)))
        .collect();
    let underlay = underlay(assignment, &overlays, spared);
    if underlay.is_none() && assignment.services.is_empty() {
        return DesiredCluster::default();
    }
    let nodes = addresses(assignment, &overlays);
    let peers: BTreeSet<IpAddr> = nodes.iter().filter(|(node, _)| **node != own).map(|(_, address)| *address).collect();
    DesiredCluster {
        version: assignment.endpoints_version,
        underlay,
        peers: peers.into_iter().collect(),
        overlays: overlays.iter().map(|(network, overlay)| lower_overlay(network, overlay)).collect(),
        services: assignment.services.iter().flat_map(lower_service).collect(),
        // Without an address of its own this node is on no wire, and publishes nothing for others.
        mesh: underlay.and(assignment.mesh.as_ref()).map(|mesh| Mesh {
            vni: mesh.vni,
            ports: assignment.mesh_ports.iter().filter_map(|port| lower_port(port, own, &nodes)).collect(),
        }),
    }
}

/// Where this node is reached by the others.
fn underlay(
    assignment: &Assignment,
    overlays: &[(NetworkId, &OverlayAssignment)],
    spared: Option<IpAddr>,
) -> Option<Underlay> {
    let meshed = assignment.mesh.as_ref().and_then(|mesh| Some((mesh.own.as_ref()?.underlay, mesh.udp_port)));
    let (address, port) =
        meshed.or_else(|| overlays.iter().find_map(|(_, overlay)| Some((overlay.underlay?, overlay.udp_port))))?;
    Some(Underlay { address, port, own_checksums: spared == Some(address) })
}

/// Addresses of all nodes that are spoken of.
fn addresses<'a>(
    assignment: &'a Assignment,
    overlays: &[(NetworkId, &'a OverlayAssignment)],
) -> BTreeMap<&'a NodeId, IpAddr> {
    let meshed = assignment.mesh.iter().flat_map(|mesh| mesh.own.iter().chain(&mesh.peers));
    let meshed = meshed.map(|peer| (&peer.node, peer.underlay));
    let members = overlays.iter().flat_map(|(_, overlay)| &overlay.peers).map(|peer| (&peer.node, peer.underlay));
    members.chain(meshed).collect()
}

fn lower_overlay(network: &NetworkId, overlay: &OverlayAssignment) -> Overlay {
    let nodes: BTreeMap<&NodeId, IpAddr> = overlay.peers.iter().map(|peer| (&peer.node, peer.underlay)).collect();
    let remote = overlay.endpoints.iter().filter_map(|endpoint| {
        let (ipv4, ipv6) = match endpoint.ip {
            IpAddr::V4(v4) => (Some(v4), None),
            IpAddr::V6(v6) => (None, Some(v6)),
        };
        // A MAC that is none is the control plane's mistake; the one that follows from the address is the best guess.
        let mac = endpoint.mac.parse().ok();
        Some(RemoteEndpoint { ipv4, ipv6, mac, node: *nodes.get(&endpoint.node)? })
    });
    Overlay { network: network.clone(), vni: overlay.vni, underlay_mtu: overlay.underlay_mtu, remote: remote.collect() }
}

/// A service for each of its addresses. One that is told apart by names alone (`dnsrr`) has none.
fn lower_service(service: &ServiceAssignment) -> impl Iterator<Item = Service> {
    service.vips.iter().map(|vip| Service {
        vip: *vip,
        networks: vec![NetworkId(service.network.0.clone())],
        backends: service
            .backends
            .iter()
            .filter(|backend| backend.address.is_ipv4() == vip.is_ipv4())
            .map(|backend| Backend { address: backend.address, weight: u16::from(backend.ready) })
            .collect(),
    })
}

fn lower_port(port: &MeshPortAssignment, own: &NodeId, nodes: &BTreeMap<&NodeId, IpAddr>) -> Option<MeshPort> {
    let protocol = match port.protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let backends = port.backends.iter().filter_map(|backend| {
        let IpAddr::V4(address) = backend.address else { return None };
        let node = match backend.node == *own {
            true => None,
            false => Some(*nodes.get(&backend.node)?),
        };
        Some(MeshBackend { address, target: port.target, weight: u16::from(backend.ready), node })
    });
    Some(MeshPort {
        protocol,
        host_ip: port.host_ip.filter(|address| !address.is_unspecified()),
        port: port.published,
        backends: backends.collect(),
    })
}

/// Whether there is anything to apply, or to take back.
pub(crate) fn concerns(shared: &Shared, assignment: &Assignment) -> bool {
    assignment.endpoints_version > 0
        || assignment.mesh.is_some()
        || assignment.networks.iter().any(|network| network.overlay.is_some())
        || shared.netd.is_clustered()
}

/// Takes a new assignment in. A network that comes to span nodes must be known to do so before it is made, because it takes its MTU from
/// what is under it: then this returns when it is. Everything else is done soon, and not for each change by itself.
pub(crate) async fn take_in(shared: &Arc<Shared>, assignment: &Assignment) {
    let spanning = |(network, mtu): &(NetworkId, u32)| {
        let known = shared.applying.spanning.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(other, known)| other == network && known == mtu)
    };
    if networks_that_span(assignment).iter().all(spanning) {
        shared.applying.changed.notify_one();
    } else {
        apply_aside(shared).await;
    }
}

/// Networks that span nodes, with what their MTU follows from.
fn networks_that_span(assignment: &Assignment) -> Vec<(NetworkId, u32)> {
    let networks = assignment.networks.iter();
    let spanning = networks.filter_map(|n| Some((NetworkId(n.name.0.clone()), n.overlay.as_ref()?.underlay_mtu)));
    spanning.collect()
}

/// What follows from other things than the assignment has changed.
pub(crate) fn changed(shared: &Shared) {
    shared.applying.changed.notify_one();
}

/// Applies what has changed, for ever.
pub(crate) async fn follow(shared: Arc<Shared>) {
    loop {
        shared.applying.changed.notified().await;
        let began = Instant::now();
        apply_aside(&shared).await;
        shared.touch();
        tokio::time::sleep((began.elapsed() * PAUSE_FACTOR).min(LONGEST_PAUSE)).await;
    }
}

async fn apply_aside(shared: &Arc<Shared>) {
    let inner = shared.clone();
    if let Err(e) = tokio::task::spawn_blocking(move || apply(&inner)).await {
        tracing::error!(error = %e, "what was told about other nodes was not carried out");
    }
}

/// Makes netd's part match the assignment. Nothing is done when it does already, unless the last attempt failed.
pub(crate) fn apply(shared: &Arc<Shared>) {
    let mut complete = shared.applying.complete.lock().unwrap_or_else(PoisonError::into_inner);
    let (assignment, assigned) = {
        let state = shared.lock();
        (state.assignment.clone(), state.assigned)
    };
    if !assigned || !concerns(shared, &assignment) {
        return;
    }
    let desired = lower(&assignment, &shared.config.node, underlay::spared(shared));
    let done = *complete == Some(desired.version) && shared.netd.is_wanted(&desired);
    if !done {
        *complete = None;
        match shared.netd.apply_cluster(&desired) {
            Ok(report) => {
                for error in &report.refused {
                    tracing::warn!(error = chain(error), "a port is not published on this node");
                }
                for error in &report.failed {
                    tracing::warn!(error = chain(error), "this node does not reach others as it should");
                }
                if !report.done.is_empty() {
                    tracing::debug!(version = report.version, changes = report.done.len(), "reaching other nodes");
                }
                if !report.is_applied() {
                    return;
                }
                if report.refused.is_empty() {
                    *complete = Some(desired.version);
                }
            }
            Err(e) => {
                return tracing::warn!(error = chain(&e), "what was told about other nodes cannot be carried out");
            }
        }
    }
    *shared.applying.spanning.lock().unwrap_or_else(PoisonError::into_inner) = networks_that_span(&assignment);
    shared.lock().endpoints_applied = assignment.endpoints_version;
}

#[cfg(test)]
mod tests {
    use orch_spec::assignment::{MeshAssignment, MeshPeer, NetworkAssignment, NetworkName, OverlayPeer};
    use orch_spec::model::EndpointMode;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn peer(node: &str, number: u16) -> MeshPeer {
        let underlay = ip(&format!("192.0.2.{number}"));
        MeshPeer { node: node.into(), underlay, number, address: [198, 19, 0, number as u8].into() }
    }

    fn network(overlay: Option<OverlayAssignment>) -> NetworkAssignment {
        NetworkAssignment {
            name: "shop_default".into(),
            stack: "shop".into(),
            key: "default".into(),
            subnet4: Some("10.1.0.0/24".into()),
            gateway4: Some([10, 1, 0, 1].into()),
            subnet6: None,
            gateway6: None,
            internal: false,
            icc: true,
            mtu: 0,
            driver_opts: BTreeMap::new(),
            labels: BTreeMap::new(),
            overlay,
        }
    }

    fn backend(address: &str, node: &str, ready: bool) -> orch_spec::assignment::Backend {
        orch_spec::assignment::Backend { address: ip(address), node: node.into(), ready }
    }

    #[test]
    fn a_host_that_is_alone_has_nothing_to_reach() {
        let alone = Assignment { version: 7, networks: vec![network(None)], ..Assignment::default() };
        assert_eq!(lower(&alone, &"a".into(), None), DesiredCluster::default());
    }

    #[test]
    fn one_of_several_reaches_the_others_and_leaves_out_what_is_not_ready() {
        let overlay = OverlayAssignment {
            vni: 70_001,
            udp_port: 14_789,
            underlay: Some(ip("192.0.2.1")),
            underlay_mtu: 1400,
            peers: vec![OverlayPeer { node: "b".into(), underlay: ip("192.0.2.2") }],
            endpoints: vec![orch_spec::assignment::RemoteEndpoint {
                ip: ip("10.1.0.3"),
                mac: "02:42:0a:01:00:03".into(),
                node: "b".into(),
            }],
        };
        let backends = vec![backend("10.1.0.2", "a", true), backend("10.1.0.3", "b", false)];
        let assignment = Assignment {
            version: 9,
            endpoints_version: 8,
            networks: vec![network(Some(overlay))],
            services: vec![ServiceAssignment {
                network: NetworkName("shop_default".into()),
                stack: "shop".into(),
                service: "web".into(),
                endpoint_mode: EndpointMode::Vip,
                vips: vec![ip("10.1.0.9"), ip("fd00::9")],
                backends: backends.clone(),
            }],
            mesh_ports: vec![MeshPortAssignment {
                stack: "shop".into(),
                service: "web".into(),
                host_ip: None,
                published: 8080,
                target: 80,
                protocol: "tcp".into(),
                backends,
            }],
            mesh: Some(MeshAssignment {
                vni: 70_000,
                udp_port: 14_789,
                own: Some(peer("a", 1)),
                peers: vec![peer("b", 2), peer("c", 3)],
            }),
            ..Assignment::default()
        };
        let lowered = lower(&assignment, &"a".into(), None);
        assert_eq!(lowered.version, 8);
        assert_eq!(lowered.underlay, Some(Underlay { address: ip("192.0.2.1"), port: 14_789, own_checksums: false }));
        assert_eq!(lowered.peers, [ip("192.0.2.2"), ip("192.0.2.3")]);
        assert_eq!(lowered.overlays[0].remote[0].node, ip("192.0.2.2"));
        assert_eq!(lowered.overlays[0].underlay_mtu, 1400);
        let weights: Vec<(String, u16)> =
            lowered.services[0].backends.iter().map(|b| (b.address.to_string(), b.weight)).collect();
        assert_eq!(weights, [("10.1.0.2".to_owned(), 1), ("10.1.0.3".to_owned(), 0)]);
        assert_eq!(lowered.services[1].backends, [], "an address of IPv6 leads to nobody who has none");
        let nodes: Vec<Option<IpAddr>> = lowered.mesh.unwrap().ports[0].backends.iter().map(|b| b.node).collect();
        assert_eq!(nodes, [None, Some(ip("192.0.2.2"))]);
    }
}
