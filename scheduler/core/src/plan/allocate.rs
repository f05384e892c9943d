//! Subnets for networks and addresses for tasks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use orch_spec::assignment::{NetworkName, TaskId};

use super::draft::Draft;
use crate::address::Pool;
use crate::error::{Clash, Refusal, SpecFault};
use crate::identity;
use crate::state::NetworkDefinition;

/// Where IPv4 subnets come from, in this order. Docker takes 172.17–31 and 192.168, Kubernetes distributions 10.42–43, 10.96 and 10.244,
/// home routers and clouds the low ends of 10, 172.16 and 192.168; the middle of 10/8 is where a clash is least likely. The other two are
/// for hosts that route all of 10/8 into a VPN.
const POOLS4: [(Ipv4Addr, u8); 3] =
    [(Ipv4Addr::new(10, 210, 0, 0), 15), (Ipv4Addr::new(172, 28, 0, 0), 14), (Ipv4Addr::new(192, 168, 160, 0), 19)];
/// Smallest network: 253 containers, as many as people expect of a /24.
const LONGEST_PREFIX4: u8 = 24;
/// Largest network: 4093 containers. A Linux bridge has 1023 ports, so more would serve nobody.
const SHORTEST_PREFIX4: u8 = 20;
/// The same of a cluster, where each node has a bridge of its own: 65 533 containers.
const SHORTEST_CLUSTER_PREFIX4: u8 = 16;
/// A network gets room for this many times the containers it is planned with, so that scaling up and replacing need no new subnet.
const HEADROOM: usize = 2;
/// A route shorter than this is a default route in disguise (`0.0.0.0/1` of VPNs): everything would overlap with it.
const SHORTEST_ROUTE: u8 = 8;

/// The address pools of a network that is planned with so many endpoints.
pub(crate) fn pools(
    draft: &Draft<'_>,
    network: &NetworkName,
    definition: &NetworkDefinition,
    endpoints: usize,
) -> Result<(Option<Pool>, Option<Pool>), Refusal> {
    let taken = Taken::of(draft, network);
    let pool4 = match declared(network, definition, true)? {
        Some(pool) => Some(taken.check(network, pool)?),
        None if definition.enable_ipv4 => Some(taken.free4(network, endpoints, draft.state.is_cluster())?),
        None => None,
    };
    let pool6 = match declared(network, definition, false)? {
        Some(pool) => Some(taken.check(network, pool)?),
        None if definition.enable_ipv6 => Some(taken.free6(network, &draft.state.cluster)?),
        None => None,
    };
    Ok((pool4.filter(|_| definition.enable_ipv4), pool6.filter(|_| definition.enable_ipv6)))
}

/// The pool that the file asks for in one address family.
fn declared(network: &NetworkName, definition: &NetworkDefinition, ipv4: bool) -> Result<Option<Pool>, Refusal> {
    let fault = |problem: String| SpecFault::Network { network: network.clone(), problem };
    let mut found = None;
    for pool in &definition.pools {
        let Some(text) = &pool.subnet else { continue };
        let subnet: IpNet =
            text.parse().map_err(|_| fault(format!("`{text}` is not a subnet; write for example 10.20.0.0/16")))?;
        if matches!(subnet, IpNet::V4(_)) != ipv4 {
            continue;
        }
        let subnet = subnet.trunc();
        let (shortest, longest) = if ipv4 { (8, 30) } else { (16, 126) };
        if subnet.prefix_len() < shortest || subnet.prefix_len() > longest {
            return Err(fault(format!(
                "the subnet {subnet} is too large or too small; use a prefix from /{shortest} to /{longest}"
            ))
            .into());
        }
        let range = match &pool.ip_range {
            Some(text) => {
                let range: IpNet = text.parse().map_err(|_| fault(format!("`{text}` is not an address range")))?;
                if !subnet.contains(&range.network()) || !subnet.contains(&range.broadcast()) {
                    return Err(fault(format!("the ip_range {range} is not inside of the subnet {subnet}")).into());
                }
                Some(range.trunc())
            }
            None => None,
        };
        let gateway = pool.gateway.unwrap_or_else(|| Pool::first_of(subnet));
        if !subnet.contains(&gateway) {
            return Err(fault(format!("the gateway {gateway} is not inside of the subnet {subnet}")).into());
        }
        let mut made = Pool::new(subnet, range, gateway);
        for (name, address) in &pool.aux_addresses {
            made.reserved.insert(*address, format!("aux:{name}"));
        }
        if found.is_some() {
            return Err(fault("it has more than one subnet of a family; one is possible".to_owned()).into());
        }
        found = Some(made);
    }
    Ok(found)
}

/// Subnets that a new one must not overlap with.
struct Taken {
    subnets: Vec<(IpNet, String)>,
}

impl Taken {
    fn of(draft: &Draft<'_>, except: &NetworkName) -> Self {
        let mut subnets = Vec::new();
        let names = draft.state.networks.keys().chain(draft.records.networks.keys());
        for network in names.filter(|name| *name != except).filter_map(|name| draft.network(name)) {
            for pool in network.pools().chain(network.planned().pools()) {
                subnets.push((pool.subnet, format!("network {} ({})", network.name, pool.subnet)));
            }
        }
        for node in draft.state.nodes.values() {
            for route in node.facts.routes.iter().filter_map(|route| route.parse::<IpNet>().ok()) {
                if route.prefix_len() >= SHORTEST_ROUTE {
                    subnets.push((route, format!("the route {route} of host {}", node.facts.hostname)));
                }
            }
        }
        Self { subnets }
    }

    fn find(&self, subnet: IpNet) -> Option<&str> {
        let overlaps = |other: &IpNet| other.contains(&subnet.network()) || subnet.contains(&other.network());
        self.subnets.iter().find(|(other, _)| overlaps(other)).map(|(_, owner)| owner.as_str())
    }

    fn check(&self, network: &NetworkName, pool: Pool) -> Result<Pool, Refusal> {
        // The very same subnet as a route may be this network's own bridge, seen before it went: the node will tell if it is not.
        let own = |owner: &str| owner.starts_with(&format!("the route {} ", pool.subnet));
        match self.find(pool.subnet) {
            Some(other) if !own(other) => {
                let (network, subnet, other) = (network.clone(), pool.subnet.to_string(), other.to_owned());
                Err(Clash::Subnet { network, subnet, other }.into())
            }
            _ => Ok(pool),
        }
    }

    fn free4(&self, network: &NetworkName, endpoints: usize, cluster: bool) -> Result<Pool, Refusal> {
        let shortest = if cluster { SHORTEST_CLUSTER_PREFIX4 } else { SHORTEST_PREFIX4 };
        let wanted = endpoints.saturating_mul(HEADROOM);
        let fits = |prefix: &u8| (1_usize << (32 - prefix)).saturating_sub(3) >= wanted;
        let prefix = (shortest..=LONGEST_PREFIX4).rev().find(fits).unwrap_or(shortest);
        for (base, length) in POOLS4 {
            let pool = Ipv4Net::new(base, length).expect("the pools' prefixes are valid");
            let free =
                pool.subnets(prefix).into_iter().flatten().map(IpNet::V4).find(|subnet| self.find(*subnet).is_none());
            if let Some(subnet) = free {
                return Ok(Pool::new(subnet, None, Pool::first_of(subnet)));
            }
        }
        let pools = POOLS4.iter().map(|(base, length)| format!("{base}/{length}")).collect::<Vec<_>>().join(", ");
        Err(Clash::NoSubnet { network: network.clone(), pools }.into())
    }

    /// A /64 of the cluster's own unique local prefix (RFC 4193): `fd`, 40 bits that follow from the cluster's id, a number.
    fn free6(&self, network: &NetworkName, cluster: &str) -> Result<Pool, Refusal> {
        let id = identity::global_id(cluster);
        let prefix = (0..=u16::MAX).map(|number| {
            let high = |a: u8, b: u8| u16::from_be_bytes([a, b]);
            let base = Ipv6Addr::new(high(0xfd, id[0]), high(id[1], id[2]), high(id[3], id[4]), number, 0, 0, 0, 0);
            IpNet::V6(Ipv6Net::new(base, 64).expect("64 is a valid prefix"))
        });
        match prefix.into_iter().find(|subnet| self.find(*subnet).is_none()) {
            Some(subnet) => Ok(Pool::new(subnet, None, Pool::first_of(subnet))),
            None => {
                Err(Clash::NoSubnet { network: network.clone(), pools: "the cluster's IPv6 prefix".to_owned() }.into())
            }
        }
    }
}

/// Who asks for addresses on a network.
pub(crate) struct Claim<'a> {
    /// The holder's name in pools.
    pub(crate) holder: String,
    /// Its name for people.
    pub(crate) name: &'a str,
    /// Addresses that it must have.
    pub(crate) fixed: [Option<IpAddr>; 2],
    /// Addresses of the former task of its slot, with its holder name.
    pub(crate) former: Option<(String, [Option<IpAddr>; 2])>,
}

/// Addresses for one claim, and retiring tasks that had them before.
pub(crate) struct Grant {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
    pub(crate) after: Vec<TaskId>,
}

/// Gives addresses of both families.
pub(crate) fn addresses(draft: &mut Draft<'_>, network: &NetworkName, claim: &Claim<'_>) -> Result<Grant, Refusal> {
    let mut after = Vec::new();
    let mut given: [Option<IpAddr>; 2] = [None, None];
    for (family, slot) in given.iter_mut().enumerate() {
        let decision = decide(draft, network, claim, family)?;
        let Some(pool) = pool_mut(draft, network, family) else { continue };
        let address = match decision {
            Decision::Certain(address, former) => {
                pool.held.insert(address, claim.holder.clone());
                after.extend(former);
                Some(address)
            }
            Decision::Any => pool.take_next(&claim.holder),
        };
        if address.is_none() {
            let (network, subnet, wants) = (network.clone(), pool.subnet.to_string(), claim.name.to_owned());
            return Err(Clash::Exhausted { network, subnet, wants }.into());
        }
        *slot = address;
    }
    let ipv4 = given[0].and_then(|address| if let IpAddr::V4(address) = address { Some(address) } else { None });
    let ipv6 = given[1].and_then(|address| if let IpAddr::V6(address) = address { Some(address) } else { None });
    Ok(Grant { ipv4, ipv6, after })
}

fn pool_mut<'d>(draft: &'d mut Draft<'_>, network: &NetworkName, family: usize) -> Option<&'d mut Pool> {
    let planned = draft.network_mut(network).planned_mut();
    if family == 0 { planned.pool4.as_mut() } else { planned.pool6.as_mut() }
}

/// Which address a claim gets.
enum Decision {
    /// This one; the retiring task has it still.
    Certain(IpAddr, Option<TaskId>),
    /// The next free one.
    Any,
}

fn decide(draft: &Draft<'_>, network: &NetworkName, claim: &Claim<'_>, family: usize) -> Result<Decision, Refusal> {
    let planned = draft.network(network).map(|network| network.planned());
    let pool = planned.and_then(|planned| if family == 0 { planned.pool4.as_ref() } else { planned.pool6.as_ref() });
    let fault = |problem: String| SpecFault::Network { network: network.clone(), problem };
    let Some(pool) = pool else {
        return match claim.fixed[family] {
            None => Ok(Decision::Any),
            Some(address) => Err(fault(format!(
                "{} asks for {address}, but the network has no addresses of that family",
                claim.name
            ))
            .into()),
        };
    };
    if let Some(address) = claim.fixed[family] {
        if !pool.is_usable(address) {
            return Err(fault(format!(
                "the address {address} of {} cannot be a container's in {}",
                claim.name, pool.subnet
            ))
            .into());
        }
        let present = pool.held.get(&address).filter(|present| **present != claim.holder);
        let retiring = present.and_then(|holder| retiring_task(draft, holder));
        return match (present, retiring) {
            (Some(present), None) => {
                let has = holder_name(draft, network, present);
                let (network, wants) = (network.clone(), claim.name.to_owned());
                Err(Clash::Address { address, network, wants, has }.into())
            }
            (_, retiring) => Ok(Decision::Certain(address, retiring)),
        };
    }
    if let Some((former, addresses)) = &claim.former
        && let Some(address) = addresses[family]
        && pool.held.get(&address) == Some(former)
        && !pool.reserved.contains_key(&address)
    {
        return Ok(Decision::Certain(address, None));
    }
    Ok(Decision::Any)
}

fn retiring_task(draft: &Draft<'_>, holder: &str) -> Option<TaskId> {
    let id = TaskId::from(holder.strip_prefix("task:")?);
    draft.task(&id).filter(|task| task.is_retiring()).map(|task| task.id.clone())
}

fn holder_name(draft: &Draft<'_>, network: &NetworkName, holder: &str) -> String {
    match holder.strip_prefix("task:") {
        Some(id) => draft.task(&TaskId::from(id)).map_or_else(|| id.to_owned(), |task| task.container_name.clone()),
        None => {
            let id = holder.strip_prefix("container:").unwrap_or(holder);
            let reservation = draft.network(network).and_then(|network| network.reservations.get(id));
            reservation.map_or_else(|| holder.to_owned(), |reservation| reservation.name.clone())
        }
    }
}
