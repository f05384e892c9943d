//! Ports that every node publishes, wherever the containers are, with the client's own address all the way.
//!
//! The node that a client comes to chooses a container. When that one is on another node, the packet goes there over the
//! mesh's wire: a tunnel of its own which is routed, not bridged, so that both nodes' connection tracking sees it. That node
//! knows by the sender's MAC on the wire which node it came by, and keeps that as the flow's mark; the answers of the
//! container are routed by the mark back to where the client is waited for, and there get the address that it asked.
//!
//! ```text
//! client → node A: port 8080 → dnat to 10.1.0.5:80 → route table of the mesh: via B on the wire
//!          node B: from A's MAC → ct mark A; → 10.1.0.5, which sees the client
//!          10.1.0.5 → B: a reply with ct mark A → packet mark A → rule → table A: via A on the wire
//!          node A: undoes the dnat → client
//! ```
//!
//! A client that comes by several nodes may use the same port of its own towards each, and then its connections look all alike where the
//! container is. So what comes by a node begins in a zone of connection tracking of its own, and meets no other there; answers come in
//! one zone for all, for which the kernel gives the later flow another source port.
//!
//! Nodes have no addresses of their own on the wire: next hops are their underlay addresses, reached by entries that are
//! told, like everything on tunnels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::address::Mac;
use crate::cluster::{ClusterReport, DesiredCluster, Mesh, MeshBackend, MeshPort};
use crate::config::{PortRequest, Protocol};
use crate::conntrack::Led;
use crate::error::NetdError;
use crate::name::Names;
use crate::netd::{Shared, lock};
use crate::nft::Element;
use crate::nft::ruleset::{self, MARK_SHIFT, MESH_MARKS, Set};
use crate::port::{self, PortError};
use crate::publish::{self, Holding, Reach};
use crate::slots;
use crate::sysctl::{self, SysctlError};
use crate::wiring::{Route, RouteAction, RouteRule, Tunnel, Wiring};

/// Our routing tables: the first says where containers are, the others lead to one node each. A number that nobody else is
/// likely to have chosen ("or" in ASCII, times 65 536).
const TABLES: u32 = 0x6f72_0000;
/// Preference of our first routing rule; after the kernel's own table (0), before the main one (32 766).
const PREFERENCES: u32 = 14_000;
/// The most nodes that a mark can tell apart, which are also the most that a cluster can have beside this one.
pub(crate) const MOST_PEERS: u16 = 4095;

/// What tells a port from others.
pub(crate) type PortKey = (Option<IpAddr>, Protocol, u16);

pub(crate) fn key(port: &MeshPort) -> PortKey {
    (port.host_ip, port.protocol, port.port)
}

/// All tables that may be ours.
pub(crate) fn tables() -> std::ops::Range<u32> {
    TABLES..TABLES + u32::from(MOST_PEERS) + 1
}

/// All preferences of rules that may be ours.
pub(crate) fn preferences() -> std::ops::Range<u32> {
    PREFERENCES..PREFERENCES + u32::from(MOST_PEERS) + 2
}

/// What nodes are to each other here: small numbers, which marks and tables are made of. They mean nothing elsewhere, and
/// stay with a node while it is a peer.
pub(crate) type Numbers = BTreeMap<IpAddr, u16>;

/// Numbers for these peers: those that they have, and the lowest free ones.
pub(crate) fn number(peers: &[IpAddr], before: &Numbers) -> Numbers {
    let mut numbers: Numbers = peers.iter().filter_map(|peer| Some((*peer, *before.get(peer)?))).collect();
    let mut taken: BTreeSet<u16> = numbers.values().copied().collect();
    for peer in peers {
        if !numbers.contains_key(peer)
            && let Some(free) = (1..=MOST_PEERS).find(|number| !taken.contains(number))
        {
            taken.insert(free);
            numbers.insert(*peer, free);
        }
    }
    numbers
}

/// A node's next-hop address on the wire. Only this host uses it.
fn wire_address(node: IpAddr, number: u16) -> Ipv4Addr {
    match node {
        IpAddr::V4(v4) => v4,
        // Routes for IPv4 want a next hop of IPv4: one of the link's own, which nobody else sees.
        IpAddr::V6(_) => Ipv4Addr::from_bits(Ipv4Addr::new(169, 254, 0, 0).to_bits() + u32::from(number)),
    }
}

/// Its MAC there, which all nodes must derive alike.
pub(crate) fn wire_mac(node: IpAddr) -> Mac {
    match node {
        IpAddr::V4(_) => Mac::from_address(node),
        IpAddr::V6(_) => {
            let [a, b, c, d, ..] = crate::hash::hash(&[&node.to_string()]).to_be_bytes();
            Mac([0x02, 0x4f, a, b, c, d])
        }
    }
}

/// A backend that can be reached: here, or on a node that is a peer.
fn reachable<'a>(port: &'a MeshPort, desired: &'a DesiredCluster) -> impl Iterator<Item = &'a MeshBackend> {
    port.backends.iter().filter(|backend| match remote_node(backend, desired) {
        Some(node) => desired.peers.contains(&node),
        None => true,
    })
}

/// The other node that has it.
fn remote_node(backend: &MeshBackend, desired: &DesiredCluster) -> Option<IpAddr> {
    backend.node.filter(|node| desired.underlay.is_none_or(|underlay| underlay.address != *node))
}

/// The wire and what leads to it. `leaving` is a mesh that is about to be replaced: containers of it are reached until nothing
/// sends to them any more.
pub(crate) fn wire(
    wiring: &mut Wiring,
    desired: &DesiredCluster,
    leaving: Option<&Mesh>,
    numbers: &Numbers,
    names: &Names,
    mtu: u32,
) {
    let (Some(mesh), Some(underlay)) = (&desired.mesh, desired.underlay) else { return };
    let link = names.mesh();
    let tunnel = Tunnel {
        vni: mesh.vni,
        local: underlay.address,
        port: underlay.port,
        mtu,
        bridge: None,
        mac: Some(wire_mac(underlay.address)),
        up: true,
    };
    wiring.tunnels.insert(link.clone(), tunnel);
    for (peer, number) in numbers {
        let (address, mac) = (wire_address(*peer, *number), wire_mac(*peer));
        wiring.forwards.insert((link.clone(), mac), *peer);
        wiring.neighbours.insert((link.clone(), address.into()), mac);
        let table = TABLES + u32::from(*number);
        wiring.routes.insert(Route { table, to: None, node: address, link: link.clone() });
        wiring.rules.insert(RouteRule {
            preference: PREFERENCES + u32::from(*number),
            mark: Some((u32::from(*number) << MARK_SHIFT, MESH_MARKS)),
            action: RouteAction::Table(table),
        });
    }
    let last = PREFERENCES + u32::from(MOST_PEERS) + 1;
    // What has no mark of ours, which is nearly everything, is not compared with each of them.
    let skip = RouteRule { preference: PREFERENCES, mark: Some((0, MESH_MARKS)), action: RouteAction::Goto(last) };
    wiring.rules.extend([skip, RouteRule { preference: last, mark: None, action: RouteAction::Table(TABLES) }]);
    let ports = leaving.into_iter().chain([mesh]).flat_map(|mesh| &mesh.ports);
    for backend in ports.flat_map(|port| reachable(port, desired)) {
        let Some((node, number)) = remote_node(backend, desired).and_then(|node| Some((node, numbers.get(&node)?)))
        else {
            continue;
        };
        let node = wire_address(node, *number);
        // Of two that claim an address the later one has it.
        wiring.routes.retain(|route| route.to != Some(backend.address));
        wiring.routes.insert(Route { table: TABLES, to: Some(backend.address), node, link: link.clone() });
    }
}

/// What the table has for the mesh; of its ports those that are `led`.
pub(crate) fn elements(
    desired: &DesiredCluster,
    numbers: &Numbers,
    led: &BTreeSet<PortKey>,
    names: &Names,
) -> Vec<(Set, Element)> {
    let (Some(mesh), Some(underlay)) = (&desired.mesh, desired.underlay) else { return Vec::new() };
    let link = names.mesh();
    let mut elements = vec![(Set::MeshLinks, ruleset::interface(&link))];
    if let IpAddr::V4(source) = underlay.address {
        elements.push((Set::MeshSource, ruleset::interface_source(&link, source)));
    }
    for (peer, number) in numbers {
        let mark = u32::from(*number) << MARK_SHIFT;
        elements.push((Set::Ingress, ruleset::ingress(wire_mac(*peer), mark)));
        elements.push((Set::Zones, ruleset::zone(wire_mac(*peer), *number)));
    }
    for port in mesh.ports.iter().filter(|port| led.contains(&key(port))) {
        let host = match port.host_ip {
            Some(IpAddr::V4(host)) => Some(host),
            None => None,
            // Nothing but the relay leads from IPv6, and that to a port on 127.0.0.1.
            Some(IpAddr::V6(_)) => Some(Ipv4Addr::LOCALHOST),
        };
        let element = ruleset::protocol_port(host, port.protocol, port.port);
        elements.push((if host.is_some() { Set::MeshPortsAt } else { Set::MeshPorts }, element.clone()));
        let mut backends: Vec<&MeshBackend> = reachable(port, desired).collect();
        backends.sort();
        let weights: Vec<(IpAddr, u16)> =
            backends.iter().map(|backend| (backend.address.into(), backend.weight)).collect();
        let dealt = slots::deal(&weights, &slots::COUNTS);
        let set = Set::mesh(dealt.len(), host.is_some());
        for (slot, place) in (0u32..).zip(dealt) {
            let target = (backends[place].address, backends[place].target);
            elements.push((set, ruleset::mesh_slot(element.clone(), slot, target)));
        }
        for backend in &backends {
            if let Some(IpAddr::V4(node)) = remote_node(backend, desired) {
                elements.push((Set::MeshOwn, ruleset::address_pair(node, backend.address)));
            }
        }
    }
    elements
}

/// Ways by which flows came that are to be forgotten: to containers that are behind a port no more.
pub(crate) fn lost_ways(before: &DesiredCluster, after: &DesiredCluster) -> Vec<Led> {
    let ways = |desired: &DesiredCluster| -> BTreeSet<Led> {
        let ports = desired.mesh.iter().flat_map(|mesh| &mesh.ports);
        let led = |port: &MeshPort| {
            let (protocol, host_port) = (port.protocol.number(), port.port);
            port.backends
                .iter()
                .map(move |backend| Led { target: backend.address.into(), protocol, host_port })
                .collect::<Vec<_>>()
        };
        ports.flat_map(led).collect()
    };
    ways(before).difference(&ways(after)).copied().collect()
}

/// Settings of the wire, in the calling thread's namespace.
fn wire_settings(link: &str) -> Result<(), SysctlError> {
    let name = sysctl::interface(link);
    // Clients come from anywhere. The stricter one of this and the setting for all counts, and loose is laxer than strict.
    let all = sysctl::read("net.ipv4.conf.all.rp_filter");
    let filter = if all.as_deref() == Some("0") { "0" } else { "2" };
    sysctl::write(&format!("net.ipv4.conf.{name}.rp_filter"), filter)?;
    // A client on this very host that came by another node; and the host itself by 127.0.0.1, whose answers come by the wire.
    sysctl::write(&format!("net.ipv4.conf.{name}.accept_local"), "1")?;
    sysctl::write(&format!("net.ipv4.conf.{name}.route_localnet"), "1")?;
    sysctl::write(&format!("net.ipv4.conf.{name}.forwarding"), "1")?;
    sysctl::write_if_there(&format!("net.ipv6.conf.{name}.disable_ipv6"), "1")
}

impl Shared {
    /// Takes the ports that are new, and lets the wire and the host forward. What somebody else has is said, and is not led.
    pub(crate) fn prepare_mesh(&self, desired: &DesiredCluster, report: &mut ClusterReport) {
        let Some(mesh) = &desired.mesh else { return };
        let link = self.names.mesh();
        let forward = !mesh.ports.is_empty();
        let settings = self.in_host(|| {
            if forward && sysctl::read("net.ipv4.ip_forward").as_deref() == Some("0") {
                sysctl::write("net.ipv4.ip_forward", "1")?;
                tracing::info!("turned on net.ipv4.ip_forward: published ports need it to reach other nodes");
            }
            wire_settings(&link)
        });
        match settings {
            Ok(Ok(())) => {}
            Ok(Err(error)) => report.failed.push(error.into()),
            Err(error) => report.failed.push(error),
        }
        for port in &mesh.ports {
            if lock(&self.mesh_ports).contains_key(&key(port)) {
                continue;
            }
            match self.reserve_mesh_port(port) {
                Ok(holdings) => drop(lock(&self.mesh_ports).insert(key(port), holdings)),
                // Another node's.
                Err(NetdError::Port(PortError::NoSuchAddress { .. })) => {}
                Err(NetdError::Port(error)) => report.refused.push(error),
                Err(error) => report.failed.push(error),
            }
        }
    }

    fn reserve_mesh_port(&self, port: &MeshPort) -> Result<Vec<Holding>, NetdError> {
        let request = PortRequest {
            host_ip: port.host_ip,
            host_ports: (port.port, port.port),
            target: port.port,
            protocol: port.protocol,
        };
        let reservation = self.in_host(|| port::reserve(&request, true))?.map_err(|error| self.name_sandbox(error))?;
        // What comes over IPv6 is handed to the same port of IPv4, and balanced there.
        Ok(vec![self.hold(reservation, &Reach::of_ipv4(Ipv4Addr::LOCALHOST))?])
    }

    /// Takes the ports over that an earlier agent led. Also those that somebody took meanwhile: they are led still.
    pub(crate) fn take_mesh_over(&self, desired: &DesiredCluster) {
        for port in desired.mesh.iter().flat_map(|mesh| &mesh.ports) {
            let holdings = self.reserve_mesh_port(port).unwrap_or_else(|error| {
                tracing::warn!(%error, "a published port cannot be held any more; it is served all the same");
                Vec::new()
            });
            lock(&self.mesh_ports).insert(key(port), holdings);
        }
    }

    /// Gives back the ports that nobody wants.
    pub(crate) fn release_mesh_ports(&self, desired: &DesiredCluster) {
        let wanted: BTreeSet<PortKey> = desired.mesh.iter().flat_map(|mesh| &mesh.ports).map(key).collect();
        let mut ports = lock(&self.mesh_ports);
        let going: Vec<PortKey> = ports.keys().filter(|key| !wanted.contains(key)).copied().collect();
        let released: Vec<Holding> = going.iter().filter_map(|key| ports.remove(key)).flatten().collect();
        drop(ports);
        publish::close(released);
    }

    /// Whether none of its ports is missing.
    pub(crate) fn leads_all(&self, desired: &DesiredCluster) -> bool {
        let led = lock(&self.mesh_ports);
        desired.mesh.iter().flat_map(|mesh| &mesh.ports).all(|port| led.contains_key(&key(port)))
    }

    /// Ports that are led.
    pub(crate) fn led_ports(&self) -> BTreeSet<PortKey> {
        lock(&self.mesh_ports).keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|last| Ipv4Addr::new(192, 0, 2, *last).into()).collect()
    }

    #[test]
    fn a_peer_keeps_its_number_and_a_new_one_gets_the_lowest_free() {
        let first = number(&peers(&[1, 2, 3]), &Numbers::new());
        let second = number(&peers(&[3, 4, 1, 5]), &first);
        let text: Vec<String> = second.iter().map(|(peer, number)| format!("{peer}={number}")).collect();
        assert_eq!(text, ["192.0.2.1=1", "192.0.2.3=3", "192.0.2.4=2", "192.0.2.5=4"]);
    }

    #[test]
    fn nodes_whose_ipv6_addresses_end_alike_have_different_macs_on_the_wire() {
        let mac = |text: &str| wire_mac(text.parse().unwrap());
        assert_ne!(mac("fd00:1::1"), mac("fd00:2::1"));
        assert_eq!(mac("fd00:1::1"), mac("fd00:1:0::1"));
    }
}
