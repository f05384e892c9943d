//! The one table of an instance. Its rules are constant; whatever varies (bridges, subnets, published ports) is an element
//! of a set or map, so that a change never touches a rule and costs the same at one port and at ten thousand.
//!
//! As `nft list` would show it, for IPv4 (the IPv6 twins stand beside):
//!
//! ```text
//! chain raw-pre  { type filter hook prerouting priority raw
//!   udp dport @tunnel iifname @br drop            # no container speaks to tunnels, ours or others'
//!   udp dport @tunnel fib daddr type local ip saddr != @peers4 drop
//!   udp dport @tunnel notrack
//!   iifname "lo" accept
//!   ip daddr 127.0.0.0/8 drop                     # nobody outside reaches what is published on loopback alone
//!   iifname @mesh ct original zone set ether saddr map @zones    # see `mesh`
//!   iifname @mesh accept                          # from another node's published port
//!   ip daddr @sub4 iifname != @br drop }          # nor a container's address itself
//! chain raw-out  { type filter hook output priority raw; udp dport @tunnel notrack }
//! chain do-dnat  {
//!   ip6 daddr ::1 return                          # the kernel routes ::1 nowhere else: the relay serves it
//!   dnat ip to ip daddr . meta l4proto . th dport map @pub4
//!   dnat ip to meta l4proto . th dport map @pub4any
//!   dnat ip to meta l4proto . th dport . numgen random mod 1 map @mesh1 }    # ports of every node; also 12, 60, 840;
//!                                                                                # before them the same with ip daddr: @meshat
//! chain nat-pre  { type nat hook prerouting priority -100; fib daddr type local jump do-dnat }
//! chain nat-out  { type nat hook output     priority -100; fib daddr type local jump do-dnat }
//! chain mark-in  { type filter hook prerouting priority mangle        # what the mesh is: see `mesh`
//!   iifname @mesh ct state new ct mark set ether saddr map @ingress
//!   iifname @br ct direction reply meta mark set ct mark & MASK }
//! chain mark-out { type filter hook postrouting priority mangle; oifname @mesh meta mark set 0 }
//! chain refuse   { type filter hook input priority 0
//!   ip meta l4proto . th dport @meshports reject }                    # nobody is behind the port: it was led nowhere
//! chain nat-post { type nat hook postrouting priority 100
//!   oifname @mesh ct status dnat fib saddr type local snat ip to oifname map @meshsrc
//!   oifname @mesh ip saddr . ip daddr @hair4 snat ip to oifname map @meshsrc       # else answers would take the short way,
//!   oifname @mesh ip saddr . ip daddr @meshown snat ip to oifname map @meshsrc     # past who must undo the dnat
//!   oifname @mesh accept
//!   oifname @br ct status dnat fib saddr type local masquerade   # the host itself, also from 127.0.0.1
//!   ct status dnat ip saddr . ip daddr @hair4 masquerade         # a container that reaches its own network this way
//!   iifname @masq4 oifname != @br masquerade }                   # the way out
//! chain forward  { type filter hook forward priority 0
//!   iifname @internal iifname . oifname != @same ct state new drop
//!   oifname @br goto fwd-in
//!   iifname @br goto fwd-out }
//! chain fwd-in   { ct state established,related accept; ct status dnat accept; iifname . oifname @same accept;
//!                  iifname @mesh accept; counter drop }
//! chain fwd-out  { iifname @internal drop; ct state invalid drop; accept }
//! ```
//!
//! Hairpin is matched by the pair of subnets and not by interface, because with br_netfilter on `iifname` is empty in
//! postrouting for a frame that is bridged after its destination was rewritten. The `internal` rule stands before
//! everything else, or a container of an internal network would reach other networks' published ports through the host.
//!
//! A packet that leaves into the mesh loses its mark, for the tunnel's own packet takes it over, and would be routed into the
//! tunnel again.

use std::net::{IpAddr, Ipv4Addr};

use super::expression::{Fib, Meta, Reject, Verdict, state};
use super::{Element, Family, Field, Hook, Rule, SetLayout, Transaction};
use crate::address::{Mac, Prefix};
use crate::config::Protocol;
use crate::slots;

/// The sets and maps of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Set {
    /// All our bridges.
    Bridges,
    /// Bridges of internal networks.
    Internal,
    /// Pairs of the same bridge, where its containers may reach each other.
    Same,
    /// Bridges whose IPv4 leaves with the host's address.
    Masquerade4,
    /// Bridges whose IPv6 leaves with the host's address.
    Masquerade6,
    /// All our subnets.
    Subnets4,
    /// All our subnets.
    Subnets6,
    /// Pairs of the same subnet.
    Hairpin4,
    /// Pairs of the same subnet.
    Hairpin6,
    /// Ports published on one address of the host.
    Published4,
    /// Ports published on one address of the host.
    Published6,
    /// Ports published on every address of the host.
    PublishedAny4,
    /// Ports published on every address of the host.
    PublishedAny6,
    /// The mesh's wire.
    MeshLinks,
    /// The mesh's wire → this node's address, for clients that are this node.
    MeshSource,
    /// MAC of a node on the mesh's wire → its mark.
    Ingress,
    /// MAC of a node on the mesh's wire → the zone of what comes by it.
    Zones,
    /// Ports that every node publishes.
    MeshPorts,
    /// A node and a container on it.
    MeshOwn,
    /// Port of every node and slot → container, for each count of slots.
    Mesh1,
    /// See `Mesh1`.
    Mesh12,
    /// See `Mesh1`.
    Mesh60,
    /// See `Mesh1`.
    Mesh840,
    /// The same for ports on one address of the host.
    MeshAt1,
    /// See `MeshAt1`.
    MeshAt12,
    /// See `MeshAt1`.
    MeshAt60,
    /// See `MeshAt1`.
    MeshAt840,
    /// Ports that every node publishes, on one address.
    MeshPortsAt,
    /// UDP ports of tunnels between nodes.
    TunnelPorts,
    /// The other nodes.
    Peers4,
    /// The other nodes.
    Peers6,
}

use Field::{Interface, Ipv4, Ipv6, Service};

/// What a packet for a port of every node is looked up by.
const MESH_KEY: &[Field] = &[Field::Protocol, Service, Field::Slot];
/// The same with the address that it is for.
const MESH_KEY_AT: &[Field] = &[Ipv4, Field::Protocol, Service, Field::Slot];
/// The bits of marks that are ours: the number of a node. High ones, since people and other programs begin with low ones;
/// overlaps are harmless as long as nobody else marks the answers of our containers.
pub(crate) const MESH_MARKS: u32 = 0xfff0_0000;
/// Place of the lowest of them.
pub(crate) const MARK_SHIFT: u32 = 20;

impl Set {
    /// All of them, in the order in which they are made.
    pub(crate) const ALL: [Set; 31] = [
        Set::Bridges,
        Set::Internal,
        Set::Same,
        Set::Masquerade4,
        Set::Masquerade6,
        Set::Subnets4,
        Set::Subnets6,
        Set::Hairpin4,
        Set::Hairpin6,
        Set::Published4,
        Set::Published6,
        Set::PublishedAny4,
        Set::PublishedAny6,
        Set::MeshLinks,
        Set::MeshSource,
        Set::Ingress,
        Set::Zones,
        Set::MeshPorts,
        Set::MeshOwn,
        Set::Mesh1,
        Set::Mesh12,
        Set::Mesh60,
        Set::Mesh840,
        Set::MeshAt1,
        Set::MeshAt12,
        Set::MeshAt60,
        Set::MeshAt840,
        Set::MeshPortsAt,
        Set::TunnelPorts,
        Set::Peers4,
        Set::Peers6,
    ];

    /// The map for a count of slots, of ports on every address or (`at`) on one.
    pub(crate) fn mesh(slots: usize, at: bool) -> Set {
        match (slots, at) {
            (0 | 1, false) => Set::Mesh1,
            (2..=12, false) => Set::Mesh12,
            (13..=60, false) => Set::Mesh60,
            (_, false) => Set::Mesh840,
            (0 | 1, true) => Set::MeshAt1,
            (2..=12, true) => Set::MeshAt12,
            (13..=60, true) => Set::MeshAt60,
            (_, true) => Set::MeshAt840,
        }
    }

    /// What it looks like in the kernel.
    pub(crate) fn layout(self) -> SetLayout {
        let set = |name, key, interval| SetLayout { name, key, value: &[], interval };
        let map = |name, key, value| SetLayout { name, key, value, interval: false };
        match self {
            Set::Bridges => set("br", &[Interface], false),
            Set::Internal => set("internal", &[Interface], false),
            Set::Same => set("same", &[Interface, Interface], false),
            Set::Masquerade4 => set("masq4", &[Interface], false),
            Set::Masquerade6 => set("masq6", &[Interface], false),
            Set::Subnets4 => set("sub4", &[Ipv4], true),
            Set::Subnets6 => set("sub6", &[Ipv6], true),
            Set::Hairpin4 => set("hair4", &[Ipv4, Ipv4], true),
            Set::Hairpin6 => set("hair6", &[Ipv6, Ipv6], true),
            Set::MeshLinks => set("mesh", &[Interface], false),
            Set::MeshSource => map("meshsrc", &[Interface], &[Ipv4]),
            Set::Ingress => map("ingress", &[Field::Ether], &[Field::Slot]),
            Set::Zones => map("zones", &[Field::Ether], &[Field::Slot]),
            Set::MeshPorts => set("meshports", &[Field::Protocol, Service], false),
            Set::MeshOwn => set("meshown", &[Ipv4, Ipv4], false),
            Set::Mesh1 => map("mesh1", MESH_KEY, &[Ipv4, Service]),
            Set::Mesh12 => map("mesh12", MESH_KEY, &[Ipv4, Service]),
            Set::Mesh60 => map("mesh60", MESH_KEY, &[Ipv4, Service]),
            Set::Mesh840 => map("mesh840", MESH_KEY, &[Ipv4, Service]),
            Set::MeshAt1 => map("meshat1", MESH_KEY_AT, &[Ipv4, Service]),
            Set::MeshAt12 => map("meshat12", MESH_KEY_AT, &[Ipv4, Service]),
            Set::MeshAt60 => map("meshat60", MESH_KEY_AT, &[Ipv4, Service]),
            Set::MeshAt840 => map("meshat840", MESH_KEY_AT, &[Ipv4, Service]),
            Set::MeshPortsAt => set("meshportsat", &[Ipv4, Field::Protocol, Service], false),
            Set::TunnelPorts => set("tunnel", &[Service], false),
            Set::Peers4 => set("peers4", &[Ipv4], false),
            Set::Peers6 => set("peers6", &[Ipv6], false),
            Set::Published4 => map("pub4", &[Ipv4, Field::Protocol, Service], &[Ipv4, Service]),
            Set::Published6 => map("pub6", &[Ipv6, Field::Protocol, Service], &[Ipv6, Service]),
            Set::PublishedAny4 => map("pub4any", &[Field::Protocol, Service], &[Ipv4, Service]),
            Set::PublishedAny6 => map("pub6any", &[Field::Protocol, Service], &[Ipv6, Service]),
        }
    }
}

/// An interface name as the kernel compares it.
fn interface_key(name: &str) -> [u8; 16] {
    let mut key = [0; 16];
    let length = name.len().min(15);
    key[..length].copy_from_slice(&name.as_bytes()[..length]);
    key
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The element for one interface.
pub(crate) fn interface(name: &str) -> Element {
    Element { key: interface_key(name).to_vec(), last: None, value: None }
}

/// The element for a pair of the same interface.
pub(crate) fn interface_pair(name: &str) -> Element {
    Element { key: [interface_key(name), interface_key(name)].concat(), last: None, value: None }
}

/// The element for one address.
pub(crate) fn address(address: IpAddr) -> Element {
    Element { key: octets(address), last: None, value: None }
}

/// The element that gives an interface an address.
pub(crate) fn interface_source(name: &str, source: Ipv4Addr) -> Element {
    Element { key: interface_key(name).to_vec(), last: None, value: Some(source.octets().to_vec()) }
}

/// The element that gives a MAC a mark.
pub(crate) fn ingress(mac: Mac, mark: u32) -> Element {
    Element { key: mac.0.to_vec(), last: None, value: Some(mark.to_ne_bytes().to_vec()) }
}

/// The element that gives a MAC a zone.
pub(crate) fn zone(mac: Mac, zone: u16) -> Element {
    let [one, other] = zone.to_ne_bytes();
    Element { key: mac.0.to_vec(), last: None, value: Some(vec![one, other, 0, 0]) }
}

/// The element for a port of a protocol, on one address or on all.
pub(crate) fn protocol_port(host: Option<Ipv4Addr>, protocol: Protocol, port: u16) -> Element {
    let mut key = host.map(|host| host.octets().to_vec()).unwrap_or_default();
    key.extend_from_slice(&[protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&padded(port));
    Element { key, last: None, value: None }
}

/// The element for two addresses.
pub(crate) fn address_pair(one: Ipv4Addr, other: Ipv4Addr) -> Element {
    Element { key: [one.octets(), other.octets()].concat(), last: None, value: None }
}

/// The element for one slot of a port of every node, made of that of the port.
pub(crate) fn mesh_slot(mut element: Element, slot: u32, target: (Ipv4Addr, u16)) -> Element {
    element.key.extend_from_slice(&slot.to_ne_bytes());
    element.value = Some([&target.0.octets()[..], &padded(target.1)].concat());
    element
}

/// The element for a port.
pub(crate) fn port(port: u16) -> Element {
    Element { key: port.to_be_bytes().to_vec(), last: None, value: None }
}

/// Fields narrower than a register are padded behind.
fn padded(port: u16) -> Vec<u8> {
    [port.to_be_bytes(), [0, 0]].concat()
}

/// The element for a subnet.
pub(crate) fn subnet(prefix: &Prefix) -> Element {
    Element { key: octets(prefix.first()), last: Some(octets(prefix.last())), value: None }
}

/// The element for a pair of the same subnet.
pub(crate) fn subnet_pair(prefix: &Prefix) -> Element {
    let (first, last) = (octets(prefix.first()), octets(prefix.last()));
    Element { key: [first.clone(), first].concat(), last: Some([last.clone(), last].concat()), value: None }
}

/// Map and element for a published port: `host` (`None`: every address) leads to `target`.
pub(crate) fn published(host: Option<IpAddr>, port: u16, protocol: Protocol, target: (IpAddr, u16)) -> (Set, Element) {
    let set = match (host.is_some(), target.0.is_ipv4()) {
        (true, true) => Set::Published4,
        (true, false) => Set::Published6,
        (false, true) => Set::PublishedAny4,
        (false, false) => Set::PublishedAny6,
    };
    let mut key = host.map(octets).unwrap_or_default();
    key.extend_from_slice(&[protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&padded(port));
    let mut value = octets(target.0);
    value.extend_from_slice(&padded(target.1));
    (set, Element { key, last: None, value: Some(value) })
}

/// Writes chains, sets and rules of the table, which must exist and be empty.
///
/// `zoned`: the kernel knows zones of connection tracking (`CONFIG_NF_CONNTRACK_ZONES`).
pub(crate) fn write(transaction: &mut Transaction, table: &str, zoned: bool) {
    const PREROUTING: u32 = 0;
    const INPUT: u32 = 1;
    const FORWARD: u32 = 2;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    let hook = |kind, number, priority| Some(Hook { kind, number, priority });
    for (id, set) in Set::ALL.iter().enumerate() {
        transaction.set(Family::Inet, table, &set.layout(), id as u32 + 1);
    }
    let chains = [
        ("raw-pre", hook("filter", PREROUTING, -300), raw_prerouting(zoned)),
        ("raw-out", hook("filter", OUTPUT, -300), vec![to_tunnel().notrack()]),
        ("mark-in", hook("filter", PREROUTING, -150), marks()),
        ("mark-out", hook("filter", POSTROUTING, -150), vec![into_mesh().load(0, &[0; 4]).set_mark()]),
        ("refuse", hook("filter", INPUT, 0), refusals()),
        ("do-dnat", None, destinations()),
        ("nat-pre", hook("nat", PREROUTING, -100), local_destinations()),
        ("nat-out", hook("nat", OUTPUT, -100), local_destinations()),
        ("nat-post", hook("nat", POSTROUTING, 100), sources()),
        ("fwd-in", None, into_bridges()),
        ("fwd-out", None, out_of_bridges()),
        ("forward", hook("filter", FORWARD, 0), forward()),
    ];
    // All chains before any rule: rules jump to chains.
    for (name, hook, _) in &chains {
        transaction.chain(Family::Inet, table, name, *hook);
    }
    for (name, _, rules) in &chains {
        for rule in rules {
            transaction.rule(Family::Inet, table, name, rule);
        }
    }
}

/// What is sent to a tunnel's port.
fn to_tunnel() -> Rule {
    Rule::new()
        .meta(Meta::Transport, 0)
        .equal(0, &[Protocol::Udp.number()])
        .destination_port(0)
        .lookup("tunnel", 0, false)
}

/// A frame in a tunnel says of itself which network it belongs to, and nothing proves it: only the other nodes may send any.
/// A container could pose as its node (what it sends leaves with the node's address), so none may send to a tunnel at all.
fn tunnels() -> Vec<Rule> {
    let local = || to_tunnel().when_local(Fib::Destination);
    vec![
        to_tunnel().meta(Meta::InputName, 0).lookup("br", 0, false).verdict(Verdict::Drop),
        local().family(Family::Ipv4).source4(0).lookup("peers4", 0, true).verdict(Verdict::Drop),
        local().family(Family::Ipv6).source6(0).lookup("peers6", 0, true).verdict(Verdict::Drop),
        // A tunnel's packets are no flow: each inner one has an outer port of its own.
        to_tunnel().notrack(),
    ]
}

fn raw_prerouting(zoned: bool) -> Vec<Rule> {
    let from_outside = |rule: Rule| rule.meta(Meta::InputName, 0).lookup("br", 0, true).verdict(Verdict::Drop);
    let mut rules = tunnels();
    rules.extend([
        Rule::new().meta(Meta::InputName, 0).equal(0, &interface_key("lo")).verdict(Verdict::Accept),
        // The first byte decides: 127.0.0.0/8.
        Rule::new().family(Family::Ipv4).destination4(0).first_byte(0, 127).verdict(Verdict::Drop),
    ]);
    rules.extend(zoned.then(|| from_mesh().ether_source(0).map("zones", 0, 0).set_zone_of_origin()));
    rules.extend([
        from_mesh().verdict(Verdict::Accept),
        from_outside(Rule::new().family(Family::Ipv4).destination4(0).lookup("sub4", 0, false)),
        from_outside(Rule::new().family(Family::Ipv6).destination6(0).lookup("sub6", 0, false)),
    ]);
    rules
}

fn from_mesh() -> Rule {
    Rule::new().meta(Meta::InputName, 0).lookup("mesh", 0, false)
}

fn into_mesh() -> Rule {
    Rule::new().meta(Meta::OutputName, 0).lookup("mesh", 0, false)
}

/// Which node a flow came by is kept with it, and leads its answers back.
fn marks() -> Vec<Rule> {
    vec![
        from_mesh().state(state::NEW).ether_source(0).map("ingress", 0, 0).set_flow_mark(),
        Rule::new().meta(Meta::InputName, 0).lookup("br", 0, false).when_reply().flow_mark(MESH_MARKS).set_mark(),
    ]
}

/// A socket of ours listens on every published port, only to hold it. What gets that far was led nowhere.
fn refusals() -> Vec<Rule> {
    let unled = [
        Rule::new().family(Family::Ipv4).meta(Meta::Transport, 0).destination_port(1).lookup("meshports", 0, false),
        Rule::new().family(Family::Ipv4).destination4(0).meta(Meta::Transport, 1).destination_port(2).lookup(
            "meshportsat",
            0,
            false,
        ),
    ];
    let refused = |unled: Rule| {
        let tcp = unled.clone().meta(Meta::Transport, 0).equal(0, &[Protocol::Tcp.number()]);
        [tcp.reject(Reject::TcpReset), unled.reject(Reject::PortUnreachable)]
    };
    unled.into_iter().flat_map(refused).collect()
}

/// One of the containers behind a port of every node.
fn mesh_destination(slots: u32, at: bool) -> Rule {
    let rule = Rule::new().family(Family::Ipv4);
    let (rule, next) = if at { (rule.destination4(0), 1) } else { (rule, 0) };
    let rule = rule.meta(Meta::Transport, next).destination_port(next + 1).random(slots, next + 2);
    rule.map(Set::mesh(slots as usize, at).layout().name, 0, 0).dnat(Family::Ipv4, 0, 1)
}

fn destinations() -> Vec<Rule> {
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
    let one = |family: Family, map: &str| {
        let rule = Rule::new().family(family);
        let (rule, next) = match family {
            Family::Ipv6 => (rule.destination6(0), 4),
            _ => (rule.destination4(0), 1),
        };
        let port = if family == Family::Ipv6 { 4 } else { 1 };
        rule.meta(Meta::Transport, next).destination_port(next + 1).map(map, 0, 0).dnat(family, 0, port)
    };
    let any = |family: Family, map: &str| {
        let port = if family == Family::Ipv6 { 4 } else { 1 };
        Rule::new().family(family).meta(Meta::Transport, 0).destination_port(1).map(map, 0, 0).dnat(family, 0, port)
    };
    let mut rules = vec![
        Rule::new().family(Family::Ipv6).destination6(0).equal(0, &loopback).verdict(Verdict::Return),
        one(Family::Ipv4, "pub4"),
        any(Family::Ipv4, "pub4any"),
        one(Family::Ipv6, "pub6"),
        any(Family::Ipv6, "pub6any"),
    ];
    for at in [true, false] {
        rules.extend(slots::COUNTS.map(|slots| mesh_destination(slots, at)));
    }
    rules
}

fn local_destinations() -> Vec<Rule> {
    vec![Rule::new().when_local(Fib::Destination).verdict(Verdict::Jump("do-dnat"))]
}

fn sources() -> Vec<Rule> {
    let outward = |family: Family, set: &str| {
        Rule::new()
            .family(family)
            .meta(Meta::InputName, 0)
            .lookup(set, 0, false)
            .meta(Meta::OutputName, 0)
            .lookup("br", 0, true)
            .masquerade()
    };
    let as_this_node = |rule: Rule| rule.meta(Meta::OutputName, 0).map("meshsrc", 0, 0).snat_address(Family::Ipv4, 0);
    let of_pair = |set: &str| into_mesh().family(Family::Ipv4).source4(0).destination4(1).lookup(set, 0, false);
    vec![
        as_this_node(into_mesh().family(Family::Ipv4).when_dnat().when_local(Fib::Source)),
        as_this_node(of_pair("hair4")),
        as_this_node(of_pair("meshown")),
        into_mesh().verdict(Verdict::Accept),
        Rule::new().meta(Meta::OutputName, 0).lookup("br", 0, false).when_dnat().when_local(Fib::Source).masquerade(),
        Rule::new().family(Family::Ipv4).when_dnat().source4(0).destination4(1).lookup("hair4", 0, false).masquerade(),
        Rule::new().family(Family::Ipv6).when_dnat().source6(0).destination6(4).lookup("hair6", 0, false).masquerade(),
        outward(Family::Ipv4, "masq4"),
        outward(Family::Ipv6, "masq6"),
    ]
}

fn forward() -> Vec<Rule> {
    let to = |meta, chain| Rule::new().meta(meta, 0).lookup("br", 0, false).verdict(Verdict::Goto(chain));
    vec![
        Rule::new()
            .meta(Meta::InputName, 0)
            .lookup("internal", 0, false)
            .meta(Meta::OutputName, 4)
            .lookup("same", 0, true)
            .state(state::NEW)
            .verdict(Verdict::Drop),
        to(Meta::OutputName, "fwd-in"),
        to(Meta::InputName, "fwd-out"),
    ]
}

fn into_bridges() -> Vec<Rule> {
    vec![
        Rule::new().state(state::ESTABLISHED | state::RELATED).verdict(Verdict::Accept),
        Rule::new().when_dnat().verdict(Verdict::Accept),
        Rule::new()
            .meta(Meta::InputName, 0)
            .meta(Meta::OutputName, 4)
            .lookup("same", 0, false)
            .verdict(Verdict::Accept),
        from_mesh().verdict(Verdict::Accept),
        Rule::new().counter().verdict(Verdict::Drop),
    ]
}

fn out_of_bridges() -> Vec<Rule> {
    vec![
        Rule::new().meta(Meta::InputName, 0).lookup("internal", 0, false).verdict(Verdict::Drop),
        Rule::new().state(state::INVALID).verdict(Verdict::Drop),
        Rule::new().verdict(Verdict::Accept),
    ]
}
