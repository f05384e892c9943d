//! Whether what callers ask for makes sense, before the kernel is touched.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cluster::DesiredCluster;
use crate::config::{EndpointConfig, NetworkConfig, SandboxConfig};
use crate::error::NetdError;
use crate::mesh::MOST_PEERS;
use crate::netd::State;
use crate::sysctl;

/// What a Linux bridge takes (`BR_MAX_PORTS`, 10 bits), its number 0 being none.
pub(crate) const BRIDGE_PORTS: usize = 1023;
/// The longest interface name (`IFNAMSIZ` less its NUL).
const INTERFACE_NAME: usize = 15;
/// The longest name of a sandbox or instance: it becomes a file name with a suffix.
const NAME: usize = 128;

fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= NAME && !name.starts_with('.') && name.chars().all(plain)
}

/// An instance's name becomes part of a table's.
pub(crate) fn instance(name: &str) -> Result<(), NetdError> {
    if is_file_name(name) {
        return Ok(());
    }
    Err(NetdError::invalid(
        format_args!("instance `{name}`"),
        "a name of letters, digits, `-`, `_` and `.`, not beginning with `.`, is wanted",
    ))
}

fn interface(what: &str, name: &str) -> Result<(), NetdError> {
    let wrong = name.is_empty()
        || name.len() > INTERFACE_NAME
        || matches!(name, "." | ".." | "all" | "default" | "lo")
        || name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if wrong {
        let why = format!(
            "`{name}` cannot be the name of an interface: 1 to {INTERFACE_NAME} bytes without `/`, `:` and spaces, and not `lo`"
        );
        return Err(NetdError::invalid(what, why));
    }
    Ok(())
}

/// A network by itself, and beside the others.
pub(crate) fn network(config: &NetworkConfig, state: &State) -> Result<(), NetdError> {
    let what = format!("network {}", config.id);
    let wrong = |why: String| Err(NetdError::invalid(&what, why));
    if let Some(name) = &config.bridge_name {
        interface(&what, name)?;
    }
    let gateways =
        [(config.subnet4, config.gateway4.map(IpAddr::V4)), (config.subnet6, config.gateway6.map(IpAddr::V6))];
    for (family, (subnet, gateway)) in ["IPv4", "IPv6"].into_iter().zip(gateways) {
        let Some(subnet) = subnet else {
            if let Some(gateway) = gateway {
                return wrong(format!("gateway {gateway} without an {family} subnet"));
            }
            continue;
        };
        if subnet.address.is_ipv4() != (family == "IPv4") {
            return wrong(format!("{subnet} is no {family} subnet"));
        }
        if let Some(gateway) = gateway.filter(|gateway| !subnet.contains(*gateway)) {
            return wrong(format!("gateway {gateway} is not in subnet {subnet}"));
        }
        for other in state.networks.values().map(|network| &network.record.config).filter(|other| other.id != config.id)
        {
            let clash = [other.subnet4, other.subnet6].into_iter().flatten().find(|theirs| theirs.overlaps(&subnet));
            if let Some(theirs) = clash {
                return wrong(format!("subnet {subnet} overlaps {theirs} of network {}", other.id));
            }
        }
    }
    Ok(())
}

/// What a node shall know of its cluster.
pub(crate) fn cluster(desired: &DesiredCluster) -> Result<(), NetdError> {
    /// The largest number that fits a VXLAN header.
    const LAST_VNI: u32 = (1 << 24) - 1;
    let mut numbers = BTreeSet::new();
    let mesh = desired.mesh.iter().map(|mesh| ("the mesh".to_owned(), mesh.vni));
    for (what, vni) in desired.overlays.iter().map(|o| (format!("network {}", o.network), o.vni)).chain(mesh) {
        if vni == 0 || vni > LAST_VNI {
            return Err(NetdError::invalid(what, format_args!("{vni} is no VNI: 1 to {LAST_VNI} are")));
        }
        if !numbers.insert(vni) {
            return Err(NetdError::invalid(what, format_args!("VNI {vni} belongs to another network already")));
        }
    }
    if desired.peers.len() > usize::from(MOST_PEERS) {
        let why = format!("{} nodes beside this one are too many: {MOST_PEERS} can be told apart", desired.peers.len());
        return Err(NetdError::invalid("the cluster", why));
    }
    let Some(underlay) = desired.underlay else { return Ok(()) };
    if underlay.port == 0 {
        return Err(NetdError::invalid("the tunnels' UDP port", "0 is none"));
    }
    let foreign = |peer: &&IpAddr| peer.is_ipv4() != underlay.address.is_ipv4();
    match desired.peers.iter().find(foreign) {
        Some(peer) => Err(NetdError::invalid(
            format_args!("node {peer}"),
            format_args!("it is not of the same IP family as this node's address {}", underlay.address),
        )),
        None => Ok(()),
    }
}

/// A sandbox by itself and beside the others.
pub(crate) fn sandbox(config: &SandboxConfig, state: &State) -> Result<(), NetdError> {
    let what = format!("sandbox {}", config.id);
    if !is_file_name(&config.id.0) {
        return Err(NetdError::invalid(
            what,
            "a name of letters, digits, `-`, `_` and `.`, not beginning with `.`, is wanted",
        ));
    }
    if let Some((name, _)) = config.sysctls.iter().find(|(name, _)| !sysctl::is_network(name)) {
        return Err(NetdError::invalid(what, format_args!("`{name}` is no setting of a network namespace (net.*)")));
    }
    let mut networks = BTreeSet::new();
    let mut interfaces = BTreeSet::new();
    for config in &config.endpoints {
        endpoint(&what, config, state)?;
        if !networks.insert(&config.network) {
            return Err(NetdError::invalid(what, format_args!("two endpoints on network {}", config.network)));
        }
        if let Some(name) = config.interface.as_ref().filter(|name| !interfaces.insert(*name)) {
            return Err(NetdError::invalid(what, format_args!("two interfaces called `{name}`")));
        }
    }
    Ok(())
}

/// An endpoint beside the others of its network.
pub(crate) fn endpoint(what: &str, config: &EndpointConfig, state: &State) -> Result<(), NetdError> {
    let network = state.networks.get(&config.network).ok_or(NetdError::UnknownNetwork(config.network.clone()))?;
    let network = &network.record.config;
    if let Some(name) = &config.interface {
        interface(what, name)?;
    }
    let wanted = [
        (config.ipv4.map(IpAddr::V4), network.subnet4, network.gateway4.map(IpAddr::V4)),
        (config.ipv6.map(IpAddr::V6), network.subnet6, network.gateway6.map(IpAddr::V6)),
    ];
    for (address, subnet, gateway) in wanted {
        let Some(address) = address else { continue };
        let Some(subnet) = subnet.filter(|subnet| subnet.contains(address)) else {
            let why = format!("address {address} is not in network {}{}", network.id, of(subnet));
            return Err(NetdError::invalid(what, why));
        };
        if gateway == Some(address) {
            return Err(NetdError::invalid(
                what,
                format_args!("address {address} is the gateway of network {}", network.id),
            ));
        }
        // The first and the last address of an IPv4 subnet mean the subnet and everyone in it; /31 has neither.
        if address.is_ipv4() && subnet.length < 31 && (address == subnet.first() || address == subnet.last()) {
            return Err(NetdError::invalid(what, format_args!("address {address} is reserved in {subnet}")));
        }
        if let Some(other) = state.addresses.get(&(network.id.clone(), address)) {
            return Err(NetdError::invalid(
                what,
                format_args!("address {address} of network {} belongs to sandbox {other}", network.id),
            ));
        }
    }
    let on_it = state
        .sandboxes
        .values()
        .flat_map(|sandbox| &sandbox.record.endpoints)
        .filter(|endpoint| endpoint.network == network.id)
        .count();
    if on_it >= BRIDGE_PORTS {
        return Err(NetdError::invalid(
            what,
            format_args!("network {} is full: a Linux bridge takes {BRIDGE_PORTS} ports", network.id),
        ));
    }
    Ok(())
}

fn of(subnet: Option<crate::address::Prefix>) -> String {
    subnet.map(|subnet| format!(" ({subnet})")).unwrap_or_default()
}
