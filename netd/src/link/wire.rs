//! Requests on tunnels, forwarding and neighbour entries, routes of own tables and routing rules; and what the kernel has of
//! them.
//!
//! Entries come in thousands, so they are written by hand: three messages of some fifty bytes for a container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
    VxlanDf,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, packet_route::RouteNetlinkMessage};

use super::{LinkBatch, LinkSocket, ObservedLink, observed_link};
use crate::address::Mac;
use crate::netlink::{Batch, CREATE, DUMP, EXCL, NetlinkError, REPLACE, attribute, attributes};
use crate::wiring::{Route, RouteAction, RouteRule, Tunnel, Wiring};

/// `RTM_NEWNEIGH` and its kin.
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;
/// `AF_BRIDGE`.
const BRIDGE: u8 = 7;
/// `NTF_SELF`: the link's own table; `NTF_MASTER`: that of the bridge it belongs to.
const OF_LINK: u8 = 1 << 1;
const OF_BRIDGE: u8 = 1 << 2;
/// `NUD_REACHABLE | NUD_NOARP`: to the bridge an entry that neither ages nor means the host itself; the tunnel wants the former.
const STATIC: u16 = 0x02 | 0x40;
const NO_ARP: u16 = 0x40;
/// `NUD_PERMANENT`.
const PERMANENT: u16 = 0x80;
/// `RTPROT_STATIC`; and ours, by which people tell our routes (any free number will do).
const PROTOCOL: u8 = 0x6f;
/// `RTNH_F_ONLINK`: the next hop is on the link, whatever addresses say.
const ONLINK: u32 = 4;
/// `FR_ACT_TO_TBL`, `FR_ACT_GOTO`.
const TO_TABLE: u8 = 1;
const GO_TO: u8 = 2;

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn address_in(value: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    four.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

/// `struct ndmsg`.
fn neighbour_header(bytes: &mut Vec<u8>, family: u8, link: u32, state: u16, flags: u8) {
    bytes.extend_from_slice(&[family, 0, 0, 0]);
    bytes.extend_from_slice(&link.to_ne_bytes());
    bytes.extend_from_slice(&state.to_ne_bytes());
    bytes.extend_from_slice(&[flags, 0]);
}

impl LinkBatch {
    /// A tunnel, up and on its bridge (index 0: on none).
    pub(crate) fn add_tunnel(&mut self, name: &str, tunnel: &Tunnel, bridge: u32) {
        let mut info = vec![
            InfoVxlan::Id(tunnel.vni),
            InfoVxlan::Port(tunnel.port),
            // Who is where is told, never learnt: a frame must not be able to say so.
            InfoVxlan::Learning(false),
            // What does not fit is refused here, with word to the sender, and not cut in pieces that may never arrive.
            InfoVxlan::Df(VxlanDf::Set),
        ];
        match tunnel.local {
            // The frame inside has checksums of its own, and cards that cannot do both at once are many. IPv6 insists.
            IpAddr::V4(v4) => info.extend([InfoVxlan::Local(v4), InfoVxlan::UDPCsum(false)]),
            IpAddr::V6(v6) => info.push(InfoVxlan::Local6(v6)),
        }
        let mut message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Vxlan)
            .name(name)
            .mtu(tunnel.mtu)
            .up()
            .set_info_data(InfoData::Vxlan(info));
        if let Some(mac) = tunnel.mac {
            message = message.address(mac.0.to_vec());
        }
        if bridge != 0 {
            message = message.controller(bridge);
        }
        self.push(&RouteNetlinkMessage::NewLink(message.build()), CREATE | EXCL);
        if bridge != 0 {
            self.set_tunnel_port(name);
        }
    }

    /// Makes a tunnel that is there as it shall be.
    pub(crate) fn set_tunnel(&mut self, name: &str, tunnel: &Tunnel, bridge: u32) {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new().name(name).mtu(tunnel.mtu).up().controller(bridge);
        if let Some(mac) = tunnel.mac {
            message = message.address(mac.0.to_vec());
        }
        self.push(&RouteNetlinkMessage::SetLink(message.build()), 0);
        if bridge != 0 {
            self.set_tunnel_port(name);
        }
    }

    /// A port that learns nothing, is flooded with nothing, and whose far side the bridge answers ARP for.
    fn set_tunnel_port(&mut self, name: &str) {
        let port = vec![
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(false),
            InfoBridgePort::BroadcastFlood(false),
            InfoBridgePort::NeighSupress(true),
        ];
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .name(name)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(port))
            .build();
        self.push(&RouteNetlinkMessage::NewLink(message), 0);
    }

    /// A MAC behind a tunnel: at which node, and (`bridged`) for the bridge, at which port.
    pub(crate) fn set_forward(&mut self, tunnel: u32, mac: Mac, node: &IpAddr, bridged: bool) {
        let flags = if bridged { OF_LINK | OF_BRIDGE } else { OF_LINK };
        self.batch.push(NEW_NEIGHBOUR, CREATE | REPLACE, |b| {
            neighbour_header(b, BRIDGE, tunnel, STATIC, flags);
            attribute(b, 1, &octets(node));
            attribute(b, 2, &mac.0);
        });
    }

    /// Takes one away. Two requests: one would stop at the half that is not there.
    pub(crate) fn delete_forward(&mut self, tunnel: u32, mac: Mac) {
        for flags in [OF_BRIDGE, OF_LINK] {
            self.batch.push(DELETE_NEIGHBOUR, 0, |b| {
                neighbour_header(b, BRIDGE, tunnel, STATIC, flags);
                attribute(b, 2, &mac.0);
            });
        }
    }

    /// The MAC of an address on a link, for good.
    pub(crate) fn set_neighbour(&mut self, link: u32, address: &IpAddr, mac: Mac) {
        self.batch.push(NEW_NEIGHBOUR, CREATE | REPLACE, |b| {
            neighbour_header(b, family(address), link, PERMANENT, 0);
            attribute(b, 1, &octets(address));
            attribute(b, 2, &mac.0);
        });
    }

    pub(crate) fn delete_neighbour(&mut self, link: u32, address: &IpAddr) {
        self.batch.push(DELETE_NEIGHBOUR, 0, |b| {
            neighbour_header(b, family(address), link, 0, 0);
            attribute(b, 1, &octets(address));
        });
    }

    /// A route of a table of ours.
    pub(crate) fn add_route(&mut self, route: &Route, link: u32) {
        self.batch.push(NEW_ROUTE, CREATE | REPLACE, |b| route_body(b, route, link));
    }

    pub(crate) fn delete_route(&mut self, route: &Route, link: u32) {
        self.batch.push(DELETE_ROUTE, 0, |b| route_body(b, route, link));
    }

    pub(crate) fn add_rule(&mut self, rule: &RouteRule) {
        self.batch.push(NEW_RULE, CREATE | EXCL, |b| rule_body(b, rule));
    }

    pub(crate) fn delete_rule(&mut self, rule: &RouteRule) {
        self.batch.push(DELETE_RULE, 0, |b| rule_body(b, rule));
    }
}

/// `struct rtmsg` and attributes.
fn route_body(bytes: &mut Vec<u8>, route: &Route, link: u32) {
    let length = if route.to.is_some() { 32 } else { 0 };
    // Family, lengths of destination and source, TOS; table (in full among the attributes), protocol, scope: everywhere,
    // kind: unicast; flags.
    bytes.extend_from_slice(&[libc::AF_INET as u8, length, 0, 0, 0, PROTOCOL, 0, 1]);
    bytes.extend_from_slice(&ONLINK.to_ne_bytes());
    if let Some(to) = route.to {
        attribute(bytes, 1, &to.octets());
    }
    attribute(bytes, 4, &link.to_ne_bytes());
    attribute(bytes, 5, &route.node.octets());
    attribute(bytes, 15, &route.table.to_ne_bytes());
}

/// `struct fib_rule_hdr` and attributes.
fn rule_body(bytes: &mut Vec<u8>, rule: &RouteRule) {
    let (action, kind, value) = match rule.action {
        RouteAction::Table(table) => (TO_TABLE, 15, table),
        RouteAction::Goto(preference) => (GO_TO, 4, preference),
    };
    bytes.extend_from_slice(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, action]);
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    attribute(bytes, 6, &rule.preference.to_ne_bytes());
    if let Some((mark, mask)) = rule.mark {
        attribute(bytes, 10, &mark.to_ne_bytes());
        attribute(bytes, 16, &mask.to_ne_bytes());
    }
    attribute(bytes, kind, &value.to_ne_bytes());
    attribute(bytes, 21, &[PROTOCOL]);
}

/// What of the kernel's is ours.
#[derive(Debug)]
pub(crate) struct Ours<'a> {
    /// What tunnels' names begin with.
    pub(crate) tunnel_prefix: &'a str,
    /// Bridges whose neighbours we set.
    pub(crate) bridges: &'a BTreeSet<String>,
    /// Our tables, from the first one up to and without the last.
    pub(crate) tables: std::ops::Range<u32>,
    /// Preferences of our rules, likewise.
    pub(crate) preferences: std::ops::Range<u32>,
}

impl LinkSocket {
    /// All wires, and indices of all links by name.
    pub(crate) fn wiring(&mut self, ours: &Ours<'_>) -> Result<(Wiring, BTreeMap<String, u32>), NetlinkError> {
        let mut wiring = Wiring::default();
        let mut links: Vec<(ObservedLink, Option<Tunnel>)> = Vec::new();
        self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), DUMP, |_, body| {
            let Ok(message) = LinkMessage::parse(body) else { return };
            let tunnel = tunnel_of(&message);
            links.push((observed_link(message), tunnel));
        })?;
        let names: BTreeMap<u32, &str> = links.iter().map(|(link, _)| (link.index, &*link.name)).collect();
        for (link, tunnel) in links.iter().filter(|(link, _)| link.name.starts_with(ours.tunnel_prefix)) {
            // Something else by a tunnel's name is like no tunnel, and so is made anew.
            let mut tunnel = tunnel.clone().unwrap_or_else(not_a_tunnel);
            tunnel.mtu = link.mtu;
            tunnel.up = link.up;
            tunnel.bridge = link.master.and_then(|index| names.get(&index)).map(|name| (*name).to_owned());
            if tunnel.bridge.is_some() {
                tunnel.mac = None;
            }
            wiring.tunnels.insert(link.name.clone(), tunnel);
        }
        if !wiring.tunnels.is_empty() {
            self.observe_forwards(&mut wiring, &names)?;
        }
        self.observe_neighbours(&mut wiring, &names, ours)?;
        self.observe_routes(&mut wiring, &names, ours)?;
        self.observe_rules(&mut wiring, ours)?;
        let indices = links.iter().map(|(link, _)| (link.name.clone(), link.index)).collect();
        Ok((wiring, indices))
    }

    fn observe_forwards(&mut self, wiring: &mut Wiring, names: &BTreeMap<u32, &str>) -> Result<(), NetlinkError> {
        let mut nodes: BTreeMap<(String, Mac), IpAddr> = BTreeMap::new();
        let mut ports: BTreeSet<(String, Mac)> = BTreeSet::new();
        let tunnels = &wiring.tunnels;
        self.socket.dump(get(GET_NEIGHBOUR, |b| neighbour_header(b, BRIDGE, 0, 0, 0)), |_, body| {
            let Some(entry) = Entry::read(body) else { return };
            let Some(name) = names.get(&entry.link).filter(|name| tunnels.contains_key(**name)) else { return };
            let Some(mac) = entry.mac.filter(|mac| *mac != Mac([0; 6])) else { return };
            let key = ((*name).to_owned(), mac);
            match entry.address {
                Some(node) if entry.flags & OF_LINK != 0 => drop(nodes.insert(key, node)),
                // The bridge's own entries come without either flag.
                _ if entry.flags & OF_LINK == 0 && entry.state & NO_ARP != 0 => drop(ports.insert(key)),
                _ => {}
            }
        })?;
        for (key, node) in nodes {
            let bridged = tunnels.get(&key.0).is_some_and(|tunnel| tunnel.bridge.is_some());
            let whole = ports.remove(&key) || !bridged;
            wiring.forwards.insert(key, if whole { node } else { Ipv4Addr::UNSPECIFIED.into() });
        }
        wiring.forwards.extend(ports.into_iter().map(|key| (key, Ipv4Addr::UNSPECIFIED.into())));
        Ok(())
    }

    fn observe_neighbours(
        &mut self,
        wiring: &mut Wiring,
        names: &BTreeMap<u32, &str>,
        ours: &Ours<'_>,
    ) -> Result<(), NetlinkError> {
        let Wiring { tunnels, neighbours, .. } = wiring;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let request = get(GET_NEIGHBOUR, |b| neighbour_header(b, family as u8, 0, 0, 0));
            self.socket.dump(request, |_, body| {
                let Some(entry) = Entry::read(body).filter(|entry| entry.state & PERMANENT != 0) else { return };
                let Some(name) = names.get(&entry.link) else { return };
                let is_ours = ours.bridges.contains(*name) || tunnels.contains_key(*name);
                if let (true, Some(address), Some(mac)) = (is_ours, entry.address, entry.mac) {
                    neighbours.insert(((*name).to_owned(), address), mac);
                }
            })?;
        }
        Ok(())
    }

    fn observe_routes(
        &mut self,
        wiring: &mut Wiring,
        names: &BTreeMap<u32, &str>,
        ours: &Ours<'_>,
    ) -> Result<(), NetlinkError> {
        let request = get(GET_ROUTE, |b| b.extend_from_slice(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        self.socket.dump(request, |_, body| {
            let (mut table, mut to, mut node, mut link) = (0, None, None, None);
            for (kind, value) in attributes(body.get(12..).unwrap_or(&[])) {
                match kind {
                    1 => to = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from),
                    4 => link = word(value, 0).and_then(|index| names.get(&index)),
                    5 => node = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from),
                    15 => table = word(value, 0).unwrap_or(0),
                    _ => {}
                }
            }
            if let (true, Some(node), Some(link)) = (ours.tables.contains(&table), node, link) {
                wiring.routes.insert(Route { table, to, node, link: (*link).to_owned() });
            }
        })
    }

    fn observe_rules(&mut self, wiring: &mut Wiring, ours: &Ours<'_>) -> Result<(), NetlinkError> {
        let request = get(GET_RULE, |b| b.extend_from_slice(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        self.socket.dump(request, |_, body| {
            let (mut preference, mut mark, mut mask, mut table, mut goto) = (0, None, None, None, None);
            for (kind, value) in attributes(body.get(12..).unwrap_or(&[])) {
                match kind {
                    4 => goto = word(value, 0),
                    6 => preference = word(value, 0).unwrap_or(0),
                    10 => mark = word(value, 0),
                    15 => table = word(value, 0),
                    16 => mask = word(value, 0),
                    _ => {}
                }
            }
            let action = match body.get(7) {
                Some(&TO_TABLE) => table.map(RouteAction::Table),
                Some(&GO_TO) => goto.map(RouteAction::Goto),
                _ => None,
            };
            if let (true, Some(action)) = (ours.preferences.contains(&preference), action) {
                let mark = mask.filter(|mask| *mask != 0).map(|mask| (mark.unwrap_or(0), mask));
                wiring.rules.insert(RouteRule { preference, mark, action });
            }
        })
    }
}

fn get(kind: u16, body: impl FnOnce(&mut Vec<u8>)) -> Batch {
    let mut batch = Batch::new();
    batch.push(kind, DUMP, body);
    batch
}

/// A forwarding or neighbour entry.
struct Entry {
    link: u32,
    state: u16,
    flags: u8,
    address: Option<IpAddr>,
    mac: Option<Mac>,
}

impl Entry {
    fn read(body: &[u8]) -> Option<Entry> {
        let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
        let mut entry = Entry { link: word(body, 4)?, state, flags: *body.get(10)?, address: None, mac: None };
        for (kind, value) in attributes(body.get(12..)?) {
            match kind {
                1 => entry.address = address_in(value),
                2 => entry.mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(entry)
    }
}

fn not_a_tunnel() -> Tunnel {
    let local = Ipv4Addr::UNSPECIFIED.into();
    Tunnel { vni: 0, local, port: 0, mtu: 0, bridge: None, mac: None, up: false }
}

fn tunnel_of(message: &LinkMessage) -> Option<Tunnel> {
    let mut mac = None;
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac),
            LinkAttribute::LinkInfo(info) => {
                found = info.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(info)) => Some(info),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let mut tunnel = Tunnel { mac, ..not_a_tunnel() };
    for info in found? {
        match info {
            InfoVxlan::Id(vni) => tunnel.vni = *vni,
            InfoVxlan::Port(port) => tunnel.port = *port,
            InfoVxlan::Local(v4) => tunnel.local = (*v4).into(),
            InfoVxlan::Local6(v6) => tunnel.local = (*v6).into(),
            _ => {}
        }
    }
    Some(tunnel)
}
