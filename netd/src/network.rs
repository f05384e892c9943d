//! Networks: a bridge each, with the address that is its containers' gateway, and its elements in the table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::address::Mac;
use crate::cluster::DesiredCluster;
use crate::config::{NetworkConfig, NetworkId};
use crate::error::{NetdError, NetdErrors};
use crate::link::{LinkBatch, ObservedLink};
use crate::netd::{NetworkState, Shared, lock};
use crate::nft::Element;
use crate::nft::ruleset::{self, Set};
use crate::nft::table::Change;
use crate::overlay::overhead;
use crate::record::{self, NetworkRecord};
use crate::sysctl::{self, SysctlError};

use nix::errno::Errno;

/// The MTU where nothing else is known, in bytes: Ethernet's.
const ETHERNET_MTU: u32 = 1500;
/// The smallest MTU that IPv6 allows.
const LEAST_MTU: u32 = 1280;
/// Link groups for deleting many links in one request. Any number will do that is not zero and not in use for a moment;
/// this one reads "orch" in ASCII.
const LEAVING_GROUP: u32 = 0x6f72_6368;

/// What the table has for a network.
pub(crate) fn elements(record: &NetworkRecord) -> Vec<(Set, Element)> {
    let NetworkRecord { config, bridge, .. } = record;
    let mut elements = vec![(Set::Bridges, ruleset::interface(bridge))];
    if config.internal {
        elements.push((Set::Internal, ruleset::interface(bridge)));
    }
    if config.icc {
        elements.push((Set::Same, ruleset::interface_pair(bridge)));
    }
    let families = [
        (config.subnet4, Set::Masquerade4, Set::Subnets4, Set::Hairpin4),
        (config.subnet6, Set::Masquerade6, Set::Subnets6, Set::Hairpin6),
    ];
    for (subnet, masquerade, subnets, hairpin) in families {
        let Some(subnet) = subnet else { continue };
        elements.push((subnets, ruleset::subnet(&subnet)));
        elements.push((hairpin, ruleset::subnet_pair(&subnet)));
        if config.masquerade && !config.internal {
            elements.push((masquerade, ruleset::interface(bridge)));
        }
    }
    elements
}

/// The bridge's MAC follows from its address, so that it is the same after a repair and no container's ARP cache is wrong.
fn bridge_mac(config: &NetworkConfig) -> Mac {
    let address = config.gateway4.map(IpAddr::V4).or(config.gateway6.map(IpAddr::V6));
    let subnet = config.subnet4.or(config.subnet6).map(|subnet| subnet.first());
    address.or(subnet).map_or(Mac([0x02, 0x42, 0, 0, 0, 1]), Mac::from_address)
}

impl Shared {
    pub(crate) fn ensure_network(&self, config: &NetworkConfig) -> Result<(), NetdError> {
        let _one_at_a_time = lock(&self.network_changes);
        let present = {
            let state = lock(&self.state);
            crate::check::network(config, &state)?;
            state.networks.get(&config.id).map(|network| network.record.clone())
        };
        if let Some(record) = &present {
            if record.config == *config {
                return self.put_up(record, &Change::default()).map(|_| ());
            }
            self.refuse_when_used(record, config)?;
            self.take_down(std::slice::from_ref(record)).into_result().map_err(|mut errors| errors.0.swap_remove(0))?;
        }
        let (mtu, outward_mtu) = self.mtu(config)?;
        let bridge = config.bridge_name.clone().unwrap_or_else(|| self.names.bridge(&config.id));
        self.refuse_foreign_bridge(config, &bridge)?;
        let record = NetworkRecord { config: config.clone(), bridge, mtu, outward_mtu };
        self.run_dir.create()?;
        record::write(&self.run_dir.network(&record.bridge), &record)?;
        let change = Change { remove: Vec::new(), add: elements(&record) };
        let outcome = self.put_up(&record, &change);
        if outcome.is_err() {
            let _ = self.take_down(&[record]);
        }
        outcome.map(|_| ())
    }

    /// MTU of a network, and what of it fits outward if that is less. What is asked for is given, but not more than fits through a tunnel: it
    /// would be lost there.
    fn mtu(&self, config: &NetworkConfig) -> Result<(u32, Option<u32>), NetdError> {
        let overlay = {
            let cluster = lock(&self.cluster);
            cluster.overlay(&config.id).map(|overlay| overlay.underlay_mtu).zip(cluster.desired.underlay)
        };
        let Some((least, underlay)) = overlay else {
            if config.mtu > 0 {
                return Ok((config.mtu, None));
            }
            let outward = self.egress_mtu()?;
            return Ok((ETHERNET_MTU, Some(outward).filter(|mtu| *mtu < ETHERNET_MTU)));
        };
        let others = Some(least).filter(|mtu| *mtu > 0).map(|mtu| mtu.saturating_sub(overhead(underlay.address)));
        let own = self.overlay_mtu(underlay.address)?;
        let wanted = Some(config.mtu).filter(|mtu| *mtu > 0);
        Ok(([others, wanted].into_iter().flatten().fold(own, u32::min), None))
    }

    /// Another program's link by the very name asked for is not ours to take.
    fn refuse_foreign_bridge(&self, config: &NetworkConfig, bridge: &str) -> Result<(), NetdError> {
        if config.bridge_name.is_none() {
            return Ok(());
        }
        match lock(&self.links).link(bridge).map_err(NetdError::link(format!("look for link {bridge}")))? {
            Some(_) => Err(NetdError::invalid(
                format_args!("network {}", config.id),
                format_args!("there is a link called {bridge} already, which orch did not make"),
            )),
            None => Ok(()),
        }
    }

    fn refuse_when_used(&self, record: &NetworkRecord, wanted: &NetworkConfig) -> Result<(), NetdError> {
        let state = lock(&self.state);
        let user = state.addresses.keys().find(|(network, _)| *network == record.config.id);
        if user.is_none() {
            return Ok(());
        }
        let why =
            format!("its settings cannot change while containers are on it: {}", difference(&record.config, wanted));
        Err(NetdError::invalid(format_args!("network {}", record.config.id), why))
    }

    /// Makes bridge, addresses and settings as the record says, whatever of it is there, then the table. Returns the index
    /// of the bridge.
    fn put_up(&self, record: &NetworkRecord, change: &Change) -> Result<u32, NetdError> {
        let index = self.put_up_bridge(record)?;
        self.enable_forwarding(&record.config)?;
        lock(&self.table).apply(change.clone())?;
        let new = NetworkState { record: record.clone(), index };
        lock(&self.state).networks.insert(record.config.id.clone(), new);
        self.refresh_foreign();
        self.wire_network(&record.config.id)?;
        Ok(index)
    }

    /// Makes the bridge as it shall be and returns its index.
    pub(crate) fn put_up_bridge(&self, record: &NetworkRecord) -> Result<u32, NetdError> {
        let NetworkRecord { config, bridge, mtu, .. } = record;
        let mut links = lock(&self.links);
        let look = |links: &mut crate::link::LinkSocket| {
            links.link(bridge).map_err(NetdError::link(format!("look for bridge {bridge}")))
        };
        let mut found = look(&mut links)?;
        let is_new = found.is_none();
        if is_new {
            let mut batch = LinkBatch::new();
            batch.add_bridge(bridge, bridge_mac(config), *mtu);
            batch.set_alias(bridge, &format!("orch network {}", config.id));
            let made = links.send(batch);
            made.map_err(NetdError::first_link(format!("make bridge {bridge} of network {}", config.id)))?;
            found = look(&mut links)?;
        }
        let Some(ObservedLink { index, up, mtu: has, .. }) = found else {
            return Err(NetdError::invalid(
                format_args!("network {}", config.id),
                format_args!("bridge {bridge} went away while it was being made"),
            ));
        };
        // Before the addresses: a bridge that shall have no IPv6 must not get a link-local one.
        self.in_host(|| bridge_settings(bridge, config.subnet6.is_some()))??;
        let mut batch = LinkBatch::new();
        if !up || has != *mtu {
            batch.set_up(index, Some(*mtu));
        }
        let present: Vec<IpAddr> = if is_new {
            Vec::new()
        } else {
            let all = links.addresses().map_err(NetdError::link("list addresses"))?;
            all.into_iter().filter(|(link, _)| *link == index).map(|(_, prefix)| prefix.address).collect()
        };
        let wanted =
            [(config.gateway4.map(IpAddr::V4), config.subnet4), (config.gateway6.map(IpAddr::V6), config.subnet6)];
        for (address, subnet) in wanted {
            if let (Some(address), Some(subnet)) = (address, subnet)
                && !present.contains(&address)
            {
                batch.add_address(index, address, subnet.length);
            }
        }
        links.send(batch).map_err(NetdError::first_link(format!("give bridge {bridge} its address")))?;
        Ok(index)
    }

    /// Lets the host forward packets. It is never turned off again: by then others may count on it.
    fn enable_forwarding(&self, config: &NetworkConfig) -> Result<(), NetdError> {
        if config.subnet6.is_none() && config.subnet4.is_none() || config.internal {
            return Ok(());
        }
        let (four, six) = (config.subnet4.is_some(), config.subnet6.is_some());
        self.in_host(|| {
            if four && sysctl::read("net.ipv4.ip_forward").as_deref() == Some("0") {
                sysctl::write("net.ipv4.ip_forward", "1")?;
                tracing::info!("turned on net.ipv4.ip_forward: containers need it to reach other hosts");
            }
            if six && sysctl::read("net.ipv6.conf.all.forwarding").as_deref() == Some("0") {
                keep_router_advertisements();
                sysctl::write("net.ipv6.conf.all.forwarding", "1")?;
                tracing::info!("turned on net.ipv6.conf.all.forwarding: containers need it to reach other hosts");
            }
            Ok::<(), SysctlError>(())
        })?
        .map_err(NetdError::from)
    }

    /// MTU of the link that the default route leaves through, at most Ethernet's.
    fn egress_mtu(&self) -> Result<u32, NetdError> {
        let mut links = lock(&self.links);
        let routes = links.routes().map_err(NetdError::link("list routes"))?;
        let egress = routes.into_iter().find(|route| route.destination.is_none()).and_then(|route| route.link);
        let Some(egress) = egress else { return Ok(ETHERNET_MTU) };
        let all = links.links().map_err(NetdError::link("list links"))?;
        let mtu = all.into_iter().find(|link| link.index == egress).map_or(ETHERNET_MTU, |link| link.mtu);
        Ok(mtu.clamp(LEAST_MTU, ETHERNET_MTU))
    }

    pub(crate) fn remove_networks(&self, ids: &[NetworkId]) -> Result<(), NetdErrors> {
        let _one_at_a_time = lock(&self.network_changes);
        let mut errors = NetdErrors::default();
        let mut records = Vec::new();
        {
            let state = lock(&self.state);
            for id in ids {
                let Some(network) = state.networks.get(id) else { continue };
                match state.addresses.iter().find(|((network, _), _)| network == id) {
                    Some((_, sandbox)) => errors.0.push(NetdError::invalid(
                        format_args!("network {id}"),
                        format_args!("sandbox {sandbox} is still on it"),
                    )),
                    None => records.push(network.record.clone()),
                }
            }
        }
        errors.0.extend(self.take_down(&records).0);
        self.leave_nothing(&mut errors);
        errors.into_result()
    }

    fn take_down(&self, records: &[NetworkRecord]) -> NetdErrors {
        let mut errors = NetdErrors::default();
        let remove = records.iter().flat_map(elements).collect();
        errors.keep(lock(&self.table).apply(Change { remove, add: Vec::new() }));
        let mut links: Vec<String> = records.iter().map(|record| record.bridge.clone()).collect();
        {
            let mut cluster = lock(&self.cluster);
            let overlays = records.iter().filter(|record| cluster.overlay(&record.config.id).is_some());
            let tunnels: Vec<String> = overlays.map(|record| self.names.tunnel(&record.config.id)).collect();
            if !tunnels.is_empty() {
                cluster.look_again();
                links.extend(tunnels);
            }
        }
        errors.keep(self.delete_links(&links));
        for record in records {
            lock(&self.state).networks.remove(&record.config.id);
            errors.keep(record::remove(&self.run_dir.network(&record.bridge)));
        }
        errors
    }

    /// Deletes links by name, all at once. Those that are gone are fine.
    pub(crate) fn delete_links(&self, names: &[String]) -> Result<(), NetdError> {
        let mut batch = LinkBatch::new();
        match names {
            [] => return Ok(()),
            [one] => batch.delete(one),
            many => {
                many.iter().for_each(|name| batch.set_group(name, LEAVING_GROUP));
                batch.delete_group(LEAVING_GROUP);
            }
        }
        let errors = lock(&self.links).send(batch).err().unwrap_or_default();
        match errors.into_iter().find(|error| error.errno != Errno::ENODEV) {
            Some(source) => Err(NetdError::Link { action: format!("delete links {}", names.join(", ")), source }),
            None => Ok(()),
        }
    }

    /// When neither network nor sandbox is left, nothing else is either. The caller holds `network_changes`, and no sandbox
    /// can begin to be made while the state is locked.
    pub(crate) fn leave_nothing(&self, errors: &mut NetdErrors) {
        self.refresh_foreign();
        let alone = *lock(&self.cluster).desired == DesiredCluster::default();
        let state = lock(&self.state);
        if !(alone && state.networks.is_empty() && state.sandboxes.is_empty() && state.busy.is_empty()) {
            return;
        }
        errors.keep(lock(&self.table).delete());
        let _one_at_a_time = lock(&self.files);
        self.forget_namespace_dir();
        self.run_dir.remove();
    }

    /// Bridges by network, for making endpoints.
    pub(crate) fn bridges(&self) -> BTreeMap<NetworkId, NetworkState> {
        lock(&self.state).networks.clone()
    }
}

/// The settings of a bridge of ours, in the calling thread's namespace.
fn bridge_settings(bridge: &str, ipv6: bool) -> Result<(), SysctlError> {
    let bridge = sysctl::interface(bridge);
    // A port published on 127.0.0.1 reaches the bridge with that source address until it is rewritten. What outsiders send
    // to 127.0.0.0/8 is dropped by the table.
    sysctl::write(&format!("net.ipv4.conf.{bridge}.route_localnet"), "1")?;
    // Loose: replies of a container with two networks may come back through the other one.
    sysctl::write(&format!("net.ipv4.conf.{bridge}.rp_filter"), "2")?;
    // A container must not be able to give the host a route.
    sysctl::write_if_there(&format!("net.ipv6.conf.{bridge}.accept_ra"), "0")?;
    // To look for a container's MAC on behalf of a forwarded packet the kernel speaks from the bridge's link-local address, and
    // keeps silent while it still makes sure that nobody else has that: for longer than the packet's sender may wait.
    sysctl::write_if_there(&format!("net.ipv6.conf.{bridge}.accept_dad"), "0")?;
    sysctl::write_if_there(&format!("net.ipv6.conf.{bridge}.disable_ipv6"), if ipv6 { "0" } else { "1" })
}

/// A host that forwards IPv6 stops listening to router advertisements, and so loses its own default route, unless told to
/// go on (`accept_ra=2`).
fn keep_router_advertisements() {
    let Ok(interfaces) = std::fs::read_dir("/proc/sys/net/ipv6/conf") else { return };
    for interface in interfaces.flatten() {
        let name = sysctl::interface(&interface.file_name().to_string_lossy());
        let setting = format!("net.ipv6.conf.{name}.accept_ra");
        if sysctl::read(&setting).as_deref() == Some("1")
            && let Err(error) = sysctl::write(&setting, "2")
        {
            tracing::warn!(%error, "an interface may lose its IPv6 default route");
        }
    }
}

/// What differs, for people.
fn difference(is: &NetworkConfig, wanted: &NetworkConfig) -> String {
    let describe =
        |prefix: Option<crate::address::Prefix>| prefix.map_or("none".to_owned(), |prefix| prefix.to_string());
    let mut parts = Vec::new();
    let mut add = |name: &str, is: String, wanted: String| {
        if is != wanted {
            parts.push(format!("{name} is {is}, wanted {wanted}"));
        }
    };
    add("IPv4 subnet", describe(is.subnet4), describe(wanted.subnet4));
    add("IPv6 subnet", describe(is.subnet6), describe(wanted.subnet6));
    add("IPv4 gateway", format!("{:?}", is.gateway4), format!("{:?}", wanted.gateway4));
    add("IPv6 gateway", format!("{:?}", is.gateway6), format!("{:?}", wanted.gateway6));
    add("internal", is.internal.to_string(), wanted.internal.to_string());
    add("icc", is.icc.to_string(), wanted.icc.to_string());
    add("masquerade", is.masquerade.to_string(), wanted.masquerade.to_string());
    add("mtu", is.mtu.to_string(), wanted.mtu.to_string());
    add("bridge name", format!("{:?}", is.bridge_name), format!("{:?}", wanted.bridge_name));
    parts.join(", ")
}
