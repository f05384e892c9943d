//! Networks that span nodes: what shall be there follows from what the caller wants and the networks that are here; what is
//! there is remembered, and looked up after a failure, at the start and at every [`crate::Netd::sync`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nix::errno::Errno;

use crate::cluster::{ClusterReport, DesiredCluster, Mesh, Overlay, Underlay};
use crate::config::NetworkId;
use crate::error::{NetdError, NetdErrors};
use crate::link::LinkBatch;
use crate::link::wire::Ours;
use crate::mesh::{self, Numbers};
use crate::netd::{Shared, lock};
use crate::nft::Element;
use crate::nft::ruleset::{self, Set};
use crate::nft::table::Change;
use crate::offload::{INNER_CHECKSUMS, Offloads};
use crate::record::{self, NewClusterRecord};
use crate::wiring::{self, Tunnel, WireOp, Wiring};

/// Bytes that a tunnel puts before a frame: Ethernet 14, VXLAN 8, UDP 8, and the outer IP header.
const OVERHEAD4: u32 = 14 + 8 + 8 + 20;
const OVERHEAD6: u32 = 14 + 8 + 8 + 40;

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterState {
    pub(crate) desired: Arc<DesiredCluster>,
    numbers: Numbers,
    /// Of what was wanted before: it is reached until nothing leads to it any more.
    leaving: Option<Mesh>,
    /// What fits through tunnels from an address of this node, as last seen.
    mtu: Option<(IpAddr, u32)>,
    /// What the kernel has; `None` when it must be looked up.
    wired: Option<Wired>,
}

/// Wires as they are, and indices of links by name.
#[derive(Debug, Clone, Default)]
struct Wired {
    wiring: Wiring,
    indices: BTreeMap<String, u32>,
}

impl ClusterState {
    pub(crate) fn overlay(&self, network: &NetworkId) -> Option<&Overlay> {
        self.desired.overlays.iter().find(|overlay| overlay.network == *network)
    }

    /// What a peer is called in marks.
    pub(crate) fn number(&self, peer: &IpAddr) -> Option<u16> {
        self.numbers.get(peer).copied()
    }

    /// Takes over what an earlier agent was told.
    pub(crate) fn remember(&mut self, desired: &DesiredCluster, numbers: &Numbers) {
        self.desired = Arc::new(desired.clone());
        self.numbers = mesh::number(&desired.peers, numbers);
    }

    /// What is remembered of the kernel is no longer sure.
    pub(crate) fn look_again(&mut self) {
        self.wired = None;
    }
}

/// How much smaller than the underlay's an overlay's MTU is.
pub(crate) fn overhead(underlay: IpAddr) -> u32 {
    if underlay.is_ipv4() { OVERHEAD4 } else { OVERHEAD6 }
}

/// What the table has for the tunnels.
fn filter_elements(desired: &DesiredCluster) -> Vec<(Set, Element)> {
    let Some(underlay) = desired.underlay else { return Vec::new() };
    let peers = desired.peers.iter().map(|peer| {
        let set = if peer.is_ipv4() { Set::Peers4 } else { Set::Peers6 };
        (set, ruleset::address(*peer))
    });
    peers.chain([(Set::TunnelPorts, ruleset::port(underlay.port))]).collect()
}

impl Shared {
    /// MTU of the link under the tunnels, less what a tunnel puts before a frame.
    pub(crate) fn overlay_mtu(&self, underlay: IpAddr) -> Result<u32, NetdError> {
        Ok(self.underlay_mtu(underlay)?.saturating_sub(overhead(underlay)))
    }

    /// MTU of the link under the tunnels.
    pub(crate) fn underlay_mtu(&self, underlay: IpAddr) -> Result<u32, NetdError> {
        let mut links = lock(&self.links);
        let addresses = links.addresses().map_err(NetdError::link("list addresses"))?;
        let holder = addresses.into_iter().find(|(_, prefix)| prefix.address == underlay).map(|(index, _)| index);
        let all = links.links().map_err(NetdError::link("list links"))?;
        let link = all.into_iter().find(|link| Some(link.index) == holder).ok_or_else(|| {
            NetdError::invalid(
                format_args!("address {underlay} of this node"),
                "no interface of this host has it: tell the cluster the address under which the others reach this host",
            )
        })?;
        Ok(link.mtu)
    }

    pub(crate) fn apply_cluster(&self, desired: &DesiredCluster) -> Result<ClusterReport, NetdError> {
        let _one_at_a_time = lock(&self.network_changes);
        crate::check::cluster(desired)?;
        let mut report = ClusterReport { version: desired.version, ..ClusterReport::default() };
        let alone = *desired == DesiredCluster::default();
        let old: BTreeSet<(Set, Element)> = self.cluster_elements().into_iter().collect();
        let before = self.note(desired)?;
        // Who may send into tunnels is known before there are any.
        self.change_table(Vec::new(), filter_elements(desired), &mut report);
        // What is led to a container comes after the way to it, and goes before.
        self.wire(false, &mut report);
        // Before others are taken: a port may have come from one address to another. The table leads it until it is changed.
        self.release_mesh_ports(desired);
        if before.mesh != desired.mesh || desired.mesh.is_some() && !self.leads_all(desired) {
            self.prepare_mesh(desired, &mut report);
        }
        let new: BTreeSet<(Set, Element)> = self.cluster_elements().into_iter().collect();
        let (going, coming) = (old.difference(&new).cloned().collect(), new.difference(&old).cloned().collect());
        self.change_table(going, coming, &mut report);
        if lock(&self.cluster).leaving.take().is_some() {
            self.wire(false, &mut report);
        }
        self.forgetting.led(mesh::lost_ways(&before, desired));
        if before.mesh.is_some() != desired.mesh.is_some() {
            self.refresh_foreign();
        }
        self.leave_checksums(before.underlay, &mut report);
        self.balance(&desired.services, &mut report);
        if alone && report.is_applied() {
            record::remove(&self.run_dir.cluster())?;
            let mut errors = NetdErrors::default();
            self.leave_nothing(&mut errors);
            report.failed.append(&mut errors.0);
        }
        Ok(report)
    }

    /// Notes what is wanted, before the kernel is touched: whoever comes after a kill knows it. Returns what was wanted before.
    fn note(&self, desired: &DesiredCluster) -> Result<Arc<DesiredCluster>, NetdError> {
        let mut cluster = lock(&self.cluster);
        let before = Arc::clone(&cluster.desired);
        if *desired == *before {
            cluster.leaving = None;
            return Ok(before);
        }
        let numbers = mesh::number(&desired.peers, &cluster.numbers);
        if *desired != DesiredCluster::default() {
            self.run_dir.create()?;
            record::write(&self.run_dir.cluster(), &NewClusterRecord { desired, numbers: &numbers })?;
        }
        cluster.leaving = before.mesh.clone().filter(|mesh| desired.mesh.as_ref() != Some(mesh));
        cluster.numbers = numbers;
        cluster.desired = Arc::new(desired.clone());
        Ok(before)
    }

    /// All that the table has for the cluster.
    pub(crate) fn cluster_elements(&self) -> Vec<(Set, Element)> {
        let led = self.led_ports();
        let cluster = lock(&self.cluster);
        let mut elements = filter_elements(&cluster.desired);
        elements.extend(mesh::elements(&cluster.desired, &cluster.numbers, &led, &self.names));
        elements
    }

    fn change_table(&self, remove: Vec<(Set, Element)>, add: Vec<(Set, Element)>, report: &mut ClusterReport) {
        if let Err(error) = lock(&self.table).apply(Change { remove, add }) {
            report.failed.push(error.into());
        }
    }

    /// Wires a network that has just come, or come back.
    pub(crate) fn wire_network(&self, network: &NetworkId) -> Result<(), NetdError> {
        {
            let mut cluster = lock(&self.cluster);
            if cluster.overlay(network).is_none() {
                return Ok(());
            }
            cluster.look_again();
        }
        let mut report = ClusterReport::default();
        self.wire(true, &mut report);
        self.leave_checksums(None, &mut report);
        if report.failed.is_empty() { Ok(()) } else { Err(report.failed.swap_remove(0)) }
    }

    /// The wires that shall be.
    fn wanted_wiring(&self, cluster: &mut ClusterState) -> Result<Wiring, NetdError> {
        let mut wiring = Wiring::default();
        let desired = &Arc::clone(&cluster.desired);
        let Some(underlay) = desired.underlay else { return Ok(wiring) };
        if desired.mesh.is_some() {
            let mtu = match cluster.mtu.filter(|(address, _)| *address == underlay.address) {
                Some((_, mtu)) => mtu,
                None => self.overlay_mtu(underlay.address)?,
            };
            cluster.mtu = Some((underlay.address, mtu));
            mesh::wire(&mut wiring, desired, cluster.leaving.as_ref(), &cluster.numbers, &self.names, mtu);
        }
        let state = lock(&self.state);
        for overlay in &desired.overlays {
            let Some(network) = state.networks.get(&overlay.network) else { continue };
            let name = self.names.tunnel(&overlay.network);
            let bridge = &network.record.bridge;
            for remote in &overlay.remote {
                let Some(mac) = remote.mac() else { continue };
                wiring.forwards.insert((name.clone(), mac), remote.node);
                for address in remote.addresses() {
                    wiring.neighbours.insert((bridge.clone(), address), mac);
                }
            }
            let tunnel = Tunnel {
                vni: overlay.vni,
                local: underlay.address,
                port: underlay.port,
                mtu: network.record.mtu,
                bridge: Some(bridge.clone()),
                mac: None,
                up: true,
            };
            wiring.tunnels.insert(name, tunnel);
        }
        Ok(wiring)
    }

    fn observe_wires(&self) -> Result<Wired, NetdError> {
        let bridges: BTreeSet<String> =
            lock(&self.state).networks.values().map(|network| network.record.bridge.clone()).collect();
        let ours = Ours {
            tunnel_prefix: &self.names.tunnel_prefix(),
            bridges: &bridges,
            tables: mesh::tables(),
            preferences: mesh::preferences(),
        };
        let observed = lock(&self.links).wiring(&ours);
        let (wiring, indices) = observed.map_err(NetdError::link("list tunnels and what is behind them"))?;
        Ok(Wired { wiring, indices })
    }

    /// Makes the wires as they shall be. `look`: what is there is looked up, and not taken from memory. The caller holds
    /// `network_changes`.
    pub(crate) fn wire(&self, look: bool, report: &mut ClusterReport) {
        let mut cluster = lock(&self.cluster);
        let remembered = cluster.wired.take().filter(|_| !look);
        if look {
            cluster.mtu = None;
        }
        let wanted = match self.wanted_wiring(&mut cluster) {
            Ok(wanted) => wanted,
            Err(error) => return report.failed.push(error),
        };
        // With memory that turns out to be wrong, a second time by looking.
        let attempts = if remembered.is_some() { 2 } else { 1 };
        let mut remembered = remembered;
        let mut failed = Vec::new();
        for _ in 0..attempts {
            let observed = match remembered.take().map_or_else(|| self.observe_wires(), Ok) {
                Ok(observed) => observed,
                Err(error) => return report.failed.push(error),
            };
            let plan = wiring::plan(&wanted, &observed.wiring);
            let mut indices = observed.indices;
            failed = self.execute_wires(&plan, &mut indices);
            if failed.is_empty() {
                report.done.extend(plan.iter().map(ToString::to_string));
                cluster.wired = Some(Wired { wiring: wanted, indices });
                return;
            }
        }
        report.failed.append(&mut failed);
    }

    /// Says of every tunnel who computes the checksums inside, where that is not the card, or was not before.
    fn leave_checksums(&self, before: Option<Underlay>, report: &mut ClusterReport) {
        let (own, tunnels) = {
            let cluster = lock(&self.cluster);
            let tunnels = cluster.wired.iter().flat_map(|wired| wired.wiring.tunnels.keys().cloned());
            (cluster.desired.underlay.is_some_and(|underlay| underlay.own_checksums), tunnels.collect::<Vec<_>>())
        };
        if tunnels.is_empty() || !own && !before.is_some_and(|underlay| underlay.own_checksums) {
            return;
        }
        let set = || {
            let mut offloads = Offloads::open()?;
            tunnels.iter().try_for_each(|tunnel| offloads.set(tunnel, INNER_CHECKSUMS, !own))
        };
        let set =
            self.in_host(set).and_then(|set| set.map_err(NetdError::link("say who computes checksums in tunnels")));
        report.failed.extend(set.err());
    }

    /// Carries a plan out: tunnels go and come one system call each, everything else in one for what goes and one for what
    /// comes.
    fn execute_wires(&self, plan: &[WireOp], indices: &mut BTreeMap<String, u32>) -> Vec<NetdError> {
        let mut failed = Vec::new();
        if plan.is_empty() {
            return failed;
        }
        let mut removals = Requests::default();
        let mut tunnels = Requests::default();
        let mut gone = Vec::new();
        let mut lacks_index = false;
        for op in plan {
            match op {
                WireOp::RemoveTunnel(name) => gone.push(name.clone()),
                WireOp::AddTunnel(name, tunnel) | WireOp::SetTunnel(name, tunnel) => {
                    let bridge = tunnel.bridge.as_ref().and_then(|bridge| self.index(bridge, indices)).unwrap_or(0);
                    let is_new = matches!(op, WireOp::AddTunnel(..));
                    tunnels.push(op, |batch| match is_new {
                        true => batch.add_tunnel(name, tunnel, bridge),
                        false => batch.set_tunnel(name, tunnel, bridge),
                    });
                    lacks_index |= is_new;
                }
                _ => removals.push_removal(op, indices),
            }
        }
        failed.extend(removals.send(self, &[Errno::ENOENT, Errno::ESRCH, Errno::ENODEV]));
        if let Err(error) = self.delete_links(&gone) {
            failed.push(error);
        }
        indices.retain(|name, _| !gone.contains(name));
        failed.extend(tunnels.send(self, &[]));
        if lacks_index {
            match lock(&self.links).links() {
                Ok(links) => *indices = links.into_iter().map(|link| (link.name, link.index)).collect(),
                Err(source) => failed.push(NetdError::Link { action: "list links".into(), source }),
            }
        }
        let mut additions = Requests::default();
        plan.iter().for_each(|op| additions.push_addition(op, indices));
        failed.extend(additions.send(self, &[Errno::EEXIST]));
        failed
    }

    /// Index of a link: of a bridge, which may be younger than the list.
    fn index(&self, name: &str, indices: &mut BTreeMap<String, u32>) -> Option<u32> {
        if let Some(index) = indices.get(name) {
            return Some(*index);
        }
        let link = lock(&self.links).link(name).ok().flatten()?;
        indices.insert(name.to_owned(), link.index);
        Some(link.index)
    }
}

/// Requests with the acts that they belong to.
#[derive(Default)]
struct Requests {
    batch: LinkBatch,
    /// The act of each request.
    acts: Vec<String>,
}

impl Requests {
    fn push(&mut self, op: &WireOp, add: impl FnOnce(&mut LinkBatch)) {
        add(&mut self.batch);
        self.acts.resize(self.batch.len(), op.to_string());
    }

    fn push_removal(&mut self, op: &WireOp, indices: &BTreeMap<String, u32>) {
        // What is on a link that is gone is gone.
        let index = |name: &str| indices.get(name).copied();
        match op {
            WireOp::RemoveRule(rule) => self.push(op, |batch| batch.delete_rule(rule)),
            WireOp::RemoveRoute(route) => {
                if let Some(link) = index(&route.link) {
                    self.push(op, |batch| batch.delete_route(route, link));
                }
            }
            WireOp::RemoveNeighbour(link, address) => {
                if let Some(link) = index(link) {
                    self.push(op, |batch| batch.delete_neighbour(link, address));
                }
            }
            WireOp::RemoveForward(tunnel, mac, _) => {
                if let Some(tunnel) = index(tunnel) {
                    self.push(op, |batch| batch.delete_forward(tunnel, *mac));
                }
            }
            _ => {}
        }
    }

    fn push_addition(&mut self, op: &WireOp, indices: &BTreeMap<String, u32>) {
        // Without an index the kernel says which link is missing.
        let index = |name: &str| indices.get(name).copied().unwrap_or(0);
        match op {
            WireOp::SetForward(tunnel, mac, node, bridged) => {
                let tunnel = index(tunnel);
                self.push(op, |batch| batch.set_forward(tunnel, *mac, node, *bridged));
            }
            WireOp::SetNeighbour(link, address, mac) => {
                let link = index(link);
                self.push(op, |batch| batch.set_neighbour(link, address, *mac));
            }
            WireOp::AddRoute(route) => {
                let link = index(&route.link);
                self.push(op, |batch| batch.add_route(route, link));
            }
            WireOp::AddRule(rule) => self.push(op, |batch| batch.add_rule(rule)),
            _ => {}
        }
    }

    /// Sends everything; errors but those that mean "it is so already" are answered.
    fn send(self, shared: &Shared, fine: &[Errno]) -> Vec<NetdError> {
        let Err(errors) = lock(&shared.links).send(self.batch) else { return Vec::new() };
        let bad = errors.into_iter().filter(|error| !fine.contains(&error.errno));
        bad.map(|source| {
            let action = self.acts.get(source.request).cloned().unwrap_or_default();
            NetdError::Link { action, source }
        })
        .collect()
    }
}
