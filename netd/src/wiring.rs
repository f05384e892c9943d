//! The wires between nodes, as values: tunnels, who is behind them, and the routes that lead into them. What shall be and
//! what is have the same type, and the plan is the difference.
//!
//! Nothing is learnt and nothing is flooded. A tunnel is a port of its network's bridge, and for every container on another
//! node there are three entries: the bridge knows that its MAC is behind the tunnel, the tunnel knows which node that is, and
//! the bridge knows its MAC by its address, so that it answers for it when somebody here asks (`neigh_suppress`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::address::Mac;

/// A VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tunnel {
    pub(crate) vni: u32,
    /// Our address under it.
    pub(crate) local: IpAddr,
    /// UDP port of all nodes.
    pub(crate) port: u16,
    pub(crate) mtu: u32,
    /// The bridge that it is a port of; `None` for the mesh's, which is routed.
    pub(crate) bridge: Option<String>,
    /// Its own MAC, where that matters: others send to it by this.
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
}

impl Tunnel {
    /// Whether the one can become the other without being made anew.
    fn is_kin(&self, other: &Tunnel) -> bool {
        let fixed = |tunnel: &Tunnel| (tunnel.vni, tunnel.local, tunnel.port);
        fixed(self) == fixed(other)
    }
}

/// A route of a table of ours: to one address, or to all, through a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) table: u32,
    /// `None`: all.
    pub(crate) to: Option<Ipv4Addr>,
    /// The node, by its address on the mesh's wire.
    pub(crate) node: Ipv4Addr,
    pub(crate) link: String,
}

/// A rule that sends packets to a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RouteRule {
    pub(crate) preference: u32,
    /// Value and mask of the packet's mark; `None`: all packets.
    pub(crate) mark: Option<(u32, u32)>,
    pub(crate) action: RouteAction,
}

/// What a [`RouteRule`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteAction {
    /// Looks into a table, and goes on when it says nothing.
    Table(u32),
    /// Goes on at the rule of this preference.
    Goto(u32),
}

/// All wires of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wiring {
    /// By name.
    pub(crate) tunnels: BTreeMap<String, Tunnel>,
    /// Tunnel and MAC → node that has it. As observed, one of which only half is there leads to the unspecified address.
    pub(crate) forwards: BTreeMap<(String, Mac), IpAddr>,
    /// Link and address → MAC.
    pub(crate) neighbours: BTreeMap<(String, IpAddr), Mac>,
    pub(crate) routes: BTreeSet<Route>,
    pub(crate) rules: BTreeSet<RouteRule>,
}

/// One act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WireOp {
    RemoveRule(RouteRule),
    RemoveRoute(Route),
    RemoveNeighbour(String, IpAddr),
    RemoveForward(String, Mac, IpAddr),
    RemoveTunnel(String),
    AddTunnel(String, Tunnel),
    /// MTU, bridge or being up.
    SetTunnel(String, Tunnel),
    SetForward(String, Mac, IpAddr, bool),
    SetNeighbour(String, IpAddr, Mac),
    AddRoute(Route),
    AddRule(RouteRule),
}

impl fmt::Display for WireOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireOp::RemoveRule(rule) => write!(f, "remove the routing rule {}", rule.preference),
            WireOp::RemoveRoute(route) => write!(f, "remove the route {route}"),
            WireOp::RemoveNeighbour(link, address) => write!(f, "forget {address} on {link}"),
            WireOp::RemoveForward(tunnel, mac, node) => write!(f, "lead {mac} no more through {tunnel} to {node}"),
            WireOp::RemoveTunnel(name) => write!(f, "remove tunnel {name}"),
            WireOp::AddTunnel(name, tunnel) => {
                write!(f, "make tunnel {name}: vni {}, mtu {}, from {}", tunnel.vni, tunnel.mtu, tunnel.local)
            }
            WireOp::SetTunnel(name, _) => write!(f, "mend tunnel {name}"),
            WireOp::SetForward(tunnel, mac, node, _) => write!(f, "lead {mac} through {tunnel} to {node}"),
            WireOp::SetNeighbour(link, address, mac) => write!(f, "know {address} on {link} as {mac}"),
            WireOp::AddRoute(route) => write!(f, "add the route {route}"),
            WireOp::AddRule(rule) => write!(f, "add the routing rule {}", rule.preference),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Some(to) => write!(f, "{to}")?,
            None => write!(f, "default")?,
        }
        write!(f, " via {} dev {} table {}", self.node, self.link, self.table)
    }
}

/// What makes `observed` become `wanted`: takes away first, from the routes down to the tunnels, then adds upwards, so that
/// nothing leads into what is not there.
pub(crate) fn plan(wanted: &Wiring, observed: &Wiring) -> Vec<WireOp> {
    let stays = |name: &String| {
        let pair = wanted.tunnels.get(name).zip(observed.tunnels.get(name));
        pair.is_some_and(|(wanted, observed)| wanted.is_kin(observed))
    };
    let is_routed = |name: &str| observed.tunnels.get(name).is_some_and(|tunnel| tunnel.bridge.is_none());
    let mut plan = Vec::new();
    plan.extend(observed.rules.difference(&wanted.rules).cloned().map(WireOp::RemoveRule));
    // With a link the kernel removes what leads through it.
    let lost = |link: &String| observed.tunnels.contains_key(link) && !stays(link);
    let routes = observed.routes.difference(&wanted.routes).filter(|route| !lost(&route.link));
    plan.extend(routes.cloned().map(WireOp::RemoveRoute));
    for (link, address) in observed.neighbours.keys().filter(|key| !wanted.neighbours.contains_key(key)) {
        if !lost(link) {
            plan.push(WireOp::RemoveNeighbour(link.clone(), *address));
        }
    }
    for ((tunnel, mac), node) in observed.forwards.iter().filter(|(key, _)| !wanted.forwards.contains_key(key)) {
        if stays(tunnel) {
            plan.push(WireOp::RemoveForward(tunnel.clone(), *mac, *node));
        }
    }
    plan.extend(observed.tunnels.keys().filter(|name| !stays(name)).cloned().map(WireOp::RemoveTunnel));

    for (name, tunnel) in &wanted.tunnels {
        match observed.tunnels.get(name) {
            Some(present) if stays(name) => {
                if present != tunnel {
                    plan.push(WireOp::SetTunnel(name.clone(), tunnel.clone()));
                }
            }
            _ => plan.push(WireOp::AddTunnel(name.clone(), tunnel.clone())),
        }
    }
    for ((tunnel, mac), node) in &wanted.forwards {
        let present = observed.forwards.get(&(tunnel.clone(), *mac)).filter(|_| stays(tunnel));
        // A tunnel that was off its bridge has lost what the bridge knew.
        let whole = observed.tunnels.get(tunnel).map(|t| &t.bridge) == wanted.tunnels.get(tunnel).map(|t| &t.bridge);
        if present != Some(node) || !whole {
            let bridged = wanted.tunnels.get(tunnel).map_or(!is_routed(tunnel), |tunnel| tunnel.bridge.is_some());
            plan.push(WireOp::SetForward(tunnel.clone(), *mac, *node, bridged));
        }
    }
    for ((link, address), mac) in &wanted.neighbours {
        let present = observed.neighbours.get(&(link.clone(), *address)).filter(|_| !lost(link));
        if present != Some(mac) {
            plan.push(WireOp::SetNeighbour(link.clone(), *address, *mac));
        }
    }
    let routes = wanted.routes.iter().filter(|route| !observed.routes.contains(route) || lost(&route.link));
    plan.extend(routes.cloned().map(WireOp::AddRoute));
    plan.extend(wanted.rules.difference(&observed.rules).cloned().map(WireOp::AddRule));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));

    fn wired(vni: u32, node: IpAddr) -> Wiring {
        let tunnel = Tunnel {
            vni,
            local: Ipv4Addr::new(192, 0, 2, 1).into(),
            port: 14_789,
            mtu: 1450,
            bridge: Some("b".into()),
            mac: None,
            up: true,
        };
        let address: IpAddr = Ipv4Addr::new(10, 1, 0, 2).into();
        let mac = Mac::from_address(address);
        Wiring {
            tunnels: [("t".to_owned(), tunnel)].into(),
            forwards: [(("t".to_owned(), mac), node)].into(),
            neighbours: [(("b".to_owned(), address), mac)].into(),
            ..Wiring::default()
        }
    }

    fn text(wanted: &Wiring, observed: &Wiring) -> String {
        plan(wanted, observed).iter().map(|op| format!("{op}\n")).collect()
    }

    #[test]
    fn a_wire_is_made_from_below_and_taken_away_from_above() {
        let wired = wired(7, NODE);
        assert_eq!(
            text(&wired, &Wiring::default()),
            "make tunnel t: vni 7, mtu 1450, from 192.0.2.1\n\
             lead 02:42:0a:01:00:02 through t to 192.0.2.2\n\
             know 10.1.0.2 on b as 02:42:0a:01:00:02\n"
        );
        assert_eq!(text(&Wiring::default(), &wired), "forget 10.1.0.2 on b\nremove tunnel t\n");
        assert_eq!(text(&wired, &wired), "");
    }

    #[test]
    fn a_container_that_moves_costs_one_entry() {
        assert_eq!(text(&wired(7, OTHER), &wired(7, NODE)), "lead 02:42:0a:01:00:02 through t to 192.0.2.3\n");
    }

    #[test]
    fn a_tunnel_that_must_be_made_anew_gets_all_that_leads_through_it_again() {
        assert_eq!(
            text(&wired(8, NODE), &wired(7, NODE)),
            "remove tunnel t\nmake tunnel t: vni 8, mtu 1450, from 192.0.2.1\n\
             lead 02:42:0a:01:00:02 through t to 192.0.2.2\n"
        );
    }

    #[test]
    fn a_tunnel_off_its_bridge_is_put_back_with_what_the_bridge_knew() {
        let mut broken = wired(7, NODE);
        broken.tunnels.get_mut("t").unwrap().bridge = None;
        assert_eq!(text(&wired(7, NODE), &broken), "mend tunnel t\nlead 02:42:0a:01:00:02 through t to 192.0.2.2\n");
    }
}
