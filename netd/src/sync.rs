//! Observe → plan → execute: what an earlier netd left is taken over, what somebody broke is mended, what nobody wants goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::statfs::{FsType, statfs};

use crate::cluster::ClusterReport;
use crate::config::{
    DesiredNetworking, EndpointConfig, NetworkConfig, NetworkId, PortRequest, PublishedPort, SandboxConfig, SandboxId,
};
use crate::error::{NetdError, NetdErrors};
use crate::link::{LinkBatch, ObservedLink};
use crate::netd::{NetworkState, SandboxState, Shared, lock};
use crate::nft::ruleset::Set;
use crate::nft::table::{Change, TableError};
use crate::nft::{self, Element, Family};
use crate::publish::{Reach, all_elements};
use crate::record::{self, ClusterRecord, NetworkRecord, SandboxRecord};

/// `NSFS_MAGIC`: what a bound namespace file lies on.
const NAMESPACE_FILE_SYSTEM: FsType = FsType(0x6e73_6673);

/// How long the table's owner may take to die: an agent that was just killed, or a child between fork and exec that shares
/// its socket for a moment.
const OWNER_DYING: Duration = Duration::from_secs(1);
/// How often to look whether it has.
const OWNER_INTERVAL: Duration = Duration::from_millis(5);

/// One act that brings what is nearer to what shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetOp {
    /// Nobody wants the sandbox.
    RemoveSandbox(SandboxId),
    /// Nobody wants the network.
    RemoveNetwork(NetworkId),
    /// A link by one of our names that belongs to nothing.
    DeleteLink(String),
    /// A bound namespace that belongs to nothing.
    DeleteNamespace(String),
    /// A network that is not there.
    MakeNetwork(NetworkId),
    /// A bridge that somebody deleted, took down or robbed of its address.
    RepairNetwork(NetworkId),
    /// The table is gone, in whole or in part.
    WriteTable,
    /// An endpoint that a living sandbox shall no longer have.
    Disconnect(SandboxId, NetworkId),
    /// An endpoint that a living sandbox lacks.
    Connect(SandboxId, NetworkId),
    /// The host's end of an endpoint is gone.
    RepairEndpoint(SandboxId, NetworkId),
    /// The host's end of an endpoint is not on its bridge.
    ReattachEndpoint(SandboxId, NetworkId),
    /// A port that a living sandbox shall no longer have.
    Unpublish(SandboxId, PublishedPort),
    /// A port that a living sandbox lacks.
    Publish(SandboxId, PortRequest),
}

impl fmt::Display for NetOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetOp::RemoveSandbox(id) => write!(f, "remove sandbox {id}: not wanted"),
            NetOp::RemoveNetwork(id) => write!(f, "remove network {id}: not wanted"),
            NetOp::DeleteLink(name) => write!(f, "delete link {name}: left over"),
            NetOp::DeleteNamespace(name) => write!(f, "delete network namespace {name}: left over"),
            NetOp::MakeNetwork(id) => write!(f, "make network {id}: missing"),
            NetOp::RepairNetwork(id) => write!(f, "repair network {id}: its bridge is not as it should be"),
            NetOp::WriteTable => write!(f, "write the nftables table: it is missing"),
            NetOp::Disconnect(id, network) => write!(f, "disconnect sandbox {id} from network {network}: not wanted"),
            NetOp::Connect(id, network) => write!(f, "connect sandbox {id} to network {network}: missing"),
            NetOp::RepairEndpoint(id, network) => {
                write!(f, "repair the endpoint of sandbox {id} on network {network}: its link is gone")
            }
            NetOp::ReattachEndpoint(id, network) => {
                write!(f, "reattach the endpoint of sandbox {id} on network {network}: its link is off the bridge")
            }
            NetOp::Unpublish(id, port) => write!(f, "unpublish port {} of sandbox {id}: not wanted", port.host_port),
            NetOp::Publish(id, port) => write!(f, "publish port {} of sandbox {id}: missing", port.target),
        }
    }
}

/// What a [`crate::Netd::sync`] did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// What was carried out, in order.
    pub done: Vec<NetOp>,
    /// What failed, and why.
    pub failed: Vec<(NetOp, NetdError)>,
    /// What was mended, or could not be, between this node and others.
    pub wires: ClusterReport,
    /// Sandboxes that shall be and are not: [`crate::Netd::create_sandbox`] makes them.
    pub missing: Vec<SandboxId>,
}

/// What the kernel has.
#[derive(Debug, Default)]
struct Observed {
    links: BTreeMap<String, ObservedLink>,
    addresses: BTreeSet<(u32, IpAddr)>,
    /// Files in the directory of namespaces.
    namespaces: BTreeSet<String>,
    has_table: bool,
}

/// What we believe.
#[derive(Debug, Default)]
struct Known {
    networks: BTreeMap<NetworkId, NetworkRecord>,
    sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    /// Not to be touched: somebody else is at work.
    busy: BTreeSet<SandboxId>,
    leaving: BTreeSet<String>,
    bridge_prefix: String,
    veth_prefix: String,
}

fn plan(desired: &DesiredNetworking, known: &Known, observed: &Observed) -> Vec<NetOp> {
    let wanted: BTreeMap<&SandboxId, &SandboxConfig> = desired.sandboxes.iter().map(|s| (&s.id, s)).collect();
    let wanted_networks: BTreeMap<&NetworkId, &NetworkConfig> = desired.networks.iter().map(|n| (&n.id, n)).collect();
    let mut plan = Vec::new();
    let idle = |id: &&SandboxId| !known.busy.contains(*id);
    plan.extend(
        known.sandboxes.keys().filter(idle).filter(|id| !wanted.contains_key(id)).cloned().map(NetOp::RemoveSandbox),
    );
    let unwanted = known.networks.keys().filter(|id| !wanted_networks.contains_key(id));
    plan.extend(unwanted.cloned().map(NetOp::RemoveNetwork));
    plan.extend(leftovers(known, observed));
    for (id, config) in &wanted_networks {
        match known.networks.get(id) {
            Some(record) if record.config == **config => {
                if !is_whole(record, observed) {
                    plan.push(NetOp::RepairNetwork((*id).clone()));
                }
            }
            _ => plan.push(NetOp::MakeNetwork((*id).clone())),
        }
    }
    let keeps = known.networks.keys().any(|id| wanted_networks.contains_key(id));
    if keeps && !observed.has_table {
        plan.push(NetOp::WriteTable);
    }
    for (id, record) in known.sandboxes.iter().filter(|(id, _)| idle(id)) {
        if let Some(config) = wanted.get(id) {
            plan.extend(sandbox_plan(config, record, known, observed));
        }
    }
    plan
}

/// What has our names and belongs to nothing we know of.
fn leftovers(known: &Known, observed: &Observed) -> Vec<NetOp> {
    let bridges: BTreeSet<&str> = known.networks.values().map(|network| &*network.bridge).collect();
    let ends: BTreeSet<&str> = known
        .sandboxes
        .values()
        .flat_map(|sandbox| &sandbox.endpoints)
        .map(|endpoint| &*endpoint.host_interface)
        .collect();
    // While a sandbox is being made its links have no owner yet.
    let veths_are_certain = known.busy.is_empty();
    let links = observed.links.keys().filter(|name| {
        let bridge = name.starts_with(&known.bridge_prefix) && !bridges.contains(&***name);
        let veth =
            name.starts_with(&known.veth_prefix) && !ends.contains(&***name) && !known.leaving.contains(&***name);
        bridge || veth && veths_are_certain
    });
    let namespaces = observed.namespaces.iter().filter(|name| {
        let id = SandboxId((*name).clone());
        !known.sandboxes.contains_key(&id) && !known.busy.contains(&id)
    });
    links.cloned().map(NetOp::DeleteLink).chain(namespaces.cloned().map(NetOp::DeleteNamespace)).collect()
}

fn is_whole(record: &NetworkRecord, observed: &Observed) -> bool {
    let Some(link) = observed.links.get(&record.bridge) else { return false };
    let gateways = [record.config.gateway4.map(IpAddr::V4), record.config.gateway6.map(IpAddr::V6)];
    link.up && gateways.into_iter().flatten().all(|address| observed.addresses.contains(&(link.index, address)))
}

fn sandbox_plan(config: &SandboxConfig, record: &SandboxRecord, known: &Known, observed: &Observed) -> Vec<NetOp> {
    let id = &config.id;
    let mut plan = Vec::new();
    let is: BTreeSet<&NetworkId> = record.endpoints.iter().map(|endpoint| &endpoint.network).collect();
    let wanted: BTreeSet<&NetworkId> = config.endpoints.iter().map(|endpoint| &endpoint.network).collect();
    plan.extend(is.difference(&wanted).map(|network| NetOp::Disconnect(id.clone(), (*network).clone())));
    plan.extend(wanted.difference(&is).map(|network| NetOp::Connect(id.clone(), (*network).clone())));
    for endpoint in record.endpoints.iter().filter(|endpoint| wanted.contains(&endpoint.network)) {
        let bridge = known.networks.get(&endpoint.network).and_then(|network| observed.links.get(&network.bridge));
        match observed.links.get(&endpoint.host_interface) {
            None => plan.push(NetOp::RepairEndpoint(id.clone(), endpoint.network.clone())),
            Some(link) if !link.up || link.master.is_none() || link.master != bridge.map(|bridge| bridge.index) => {
                plan.push(NetOp::ReattachEndpoint(id.clone(), endpoint.network.clone()));
            }
            Some(_) => {}
        }
    }
    for request in record.config.ports.iter().filter(|request| !config.ports.contains(request)) {
        let port = record.ports.iter().find(|port| {
            let (first, last) = request.host_ports;
            port.target == request.target
                && port.protocol == request.protocol
                && port.host_ip == request.host_ip
                && (last == 0 || (first..=last).contains(&port.host_port))
        });
        plan.extend(port.map(|port| NetOp::Unpublish(id.clone(), *port)));
    }
    let lacking = config.ports.iter().filter(|request| !record.config.ports.contains(request));
    plan.extend(lacking.map(|request| NetOp::Publish(id.clone(), *request)));
    plan
}

impl Shared {
    /// Takes over what the records of an earlier netd speak of.
    pub(crate) fn adopt(&self) -> Result<(), NetdError> {
        let networks: Vec<NetworkRecord> = record::read_all(&self.run_dir.networks());
        let sandboxes: Vec<SandboxRecord> = record::read_all(&self.run_dir.sandboxes());
        let links: BTreeMap<String, u32> = {
            let links = lock(&self.links).links().map_err(NetdError::link("list links"))?;
            links.into_iter().map(|link| (link.name, link.index)).collect()
        };
        let clustered: Option<ClusterRecord> = record::read(&self.run_dir.cluster());
        if let Some(ClusterRecord { desired, numbers }) = &clustered {
            lock(&self.cluster).remember(desired, numbers);
            self.take_mesh_over(desired);
        }
        let mut broken = Vec::new();
        {
            let mut state = lock(&self.state);
            for record in networks {
                let index = links.get(&record.bridge).copied().unwrap_or(0);
                state.networks.insert(record.config.id.clone(), NetworkState { record, index });
            }
            for record in sandboxes {
                let file = self.run_dir.namespace(&record.config.id.0);
                let lives = statfs(&file).is_ok_and(|found| found.filesystem_type() == NAMESPACE_FILE_SYSTEM);
                if !(record.complete && lives) {
                    broken.push(record);
                    continue;
                }
                let id = record.config.id.clone();
                for endpoint in &record.endpoints {
                    for address in endpoint.ipv4.map(IpAddr::V4).into_iter().chain(endpoint.ipv6.map(IpAddr::V6)) {
                        state.addresses.insert((endpoint.network.clone(), address), id.clone());
                    }
                }
                state.sandboxes.insert(id, SandboxState { record, holdings: Vec::new() });
            }
        }
        let mut content = all_elements(&lock(&self.state));
        content.extend(self.cluster_elements());
        self.take_table_over(content)?;
        let mut errors = NetdErrors::default();
        self.unmake(&broken.iter().collect::<Vec<_>>(), &mut errors);
        for error in errors.0 {
            tracing::warn!(%error, "cannot remove what a killed agent left half made");
        }
        self.hold_all_again();
        self.rewire();
        match &clustered {
            Some(record) => self.tell_all(&record.desired.services),
            None => self.introduce_all(),
        }
        self.refresh_foreign();
        Ok(())
    }

    /// Makes the table ours, with this content.
    fn take_table_over(&self, content: Vec<(Set, Element)>) -> Result<(), TableError> {
        let start = Instant::now();
        loop {
            let mut table = lock(&self.table);
            let outcome = if content.is_empty() {
                // A table without networks is one that a killed agent did not get to remove.
                table.delete()
            } else {
                table.apply(Change { remove: Vec::new(), add: content.clone() })
            };
            drop(table);
            match outcome {
                Err(TableError::Owned { .. }) if start.elapsed() < OWNER_DYING => std::thread::sleep(OWNER_INTERVAL),
                outcome => return outcome,
            }
        }
    }

    fn hold_all_again(&self) {
        let networks = self.bridges();
        let records: Vec<SandboxRecord> =
            lock(&self.state).sandboxes.values().map(|sandbox| sandbox.record.clone()).collect();
        for record in records.iter().filter(|record| !record.ports.is_empty()) {
            let holdings = self.hold_again(record, &Reach::of(&record.config, &networks));
            self.change_sandbox(&record.config.id, |sandbox| sandbox.holdings = holdings);
        }
    }

    /// Makes the wires between nodes right again, by looking; and says what was mended.
    fn rewire(&self) -> ClusterReport {
        let _one_at_a_time = lock(&self.network_changes);
        let mut report = ClusterReport::default();
        self.wire(true, &mut report);
        for operation in &report.done {
            tracing::info!(%operation, "mended");
        }
        for error in &report.failed {
            tracing::warn!(%error, "a wire to other nodes cannot be mended");
        }
        report
    }

    fn known(&self) -> Known {
        let state = lock(&self.state);
        Known {
            networks: state.networks.iter().map(|(id, network)| (id.clone(), network.record.clone())).collect(),
            sandboxes: state.sandboxes.iter().map(|(id, sandbox)| (id.clone(), sandbox.record.clone())).collect(),
            busy: state.busy.clone(),
            leaving: state.leaving.clone(),
            bridge_prefix: self.names.bridge_prefix(),
            veth_prefix: self.names.veth_prefix(),
        }
    }

    fn observe(&self) -> Result<Observed, NetdError> {
        let mut links = lock(&self.links);
        let all = links.links().map_err(NetdError::link("list links"))?;
        let addresses = links.addresses().map_err(NetdError::link("list addresses"))?;
        drop(links);
        let table = self.names.table();
        let chains =
            nft::chains(lock(&self.table).socket(), Family::Inet).map_err(NetdError::link("list nftables chains"))?;
        let namespaces = std::fs::read_dir(self.run_dir.namespaces()).into_iter().flatten().flatten();
        Ok(Observed {
            links: all.into_iter().map(|link| (link.name.clone(), link)).collect(),
            addresses: addresses.into_iter().map(|(link, prefix)| (link, prefix.address)).collect(),
            namespaces: namespaces.filter_map(|entry| entry.file_name().into_string().ok()).collect(),
            has_table: chains.iter().any(|chain| chain.table == table),
        })
    }

    pub(crate) fn sync(&self, desired: &DesiredNetworking) -> Result<SyncReport, NetdError> {
        let operations = plan(desired, &self.known(), &self.observe()?);
        let mut report = SyncReport::default();
        for operation in operations {
            match self.execute(&operation, desired) {
                Ok(()) => {
                    tracing::info!(%operation, "mended");
                    report.done.push(operation);
                }
                Err(error) => report.failed.push((operation, error)),
            }
        }
        report.wires = self.rewire();
        let state = lock(&self.state);
        let is_there = |id: &SandboxId| state.sandboxes.contains_key(id) || state.busy.contains(id);
        report.missing =
            desired.sandboxes.iter().map(|sandbox| &sandbox.id).filter(|id| !is_there(id)).cloned().collect();
        Ok(report)
    }

    fn execute(&self, operation: &NetOp, desired: &DesiredNetworking) -> Result<(), NetdError> {
        let first = |mut errors: NetdErrors| errors.0.swap_remove(0);
        match operation {
            NetOp::RemoveSandbox(id) => self.remove_sandboxes(std::slice::from_ref(id)).map_err(first),
            NetOp::RemoveNetwork(id) => self.remove_networks(std::slice::from_ref(id)).map_err(first),
            NetOp::DeleteLink(name) => self.delete_links(std::slice::from_ref(name)),
            NetOp::DeleteNamespace(name) => self.remove_namespace_file(name),
            NetOp::MakeNetwork(id) | NetOp::RepairNetwork(id) => {
                let config = desired.networks.iter().find(|network| network.id == *id);
                config.map_or(Ok(()), |config| self.ensure_network(config))
            }
            NetOp::WriteTable => Ok(lock(&self.table).rewrite()?),
            NetOp::Disconnect(id, network) => self.disconnect(id, network),
            NetOp::Connect(id, network) => match endpoint_config(desired, id, network) {
                Some(config) => self.connect(id, config).map(|_| ()),
                None => Ok(()),
            },
            NetOp::RepairEndpoint(id, network) => self.repair_endpoint(id, network),
            NetOp::ReattachEndpoint(id, network) => self.reattach_endpoint(id, network),
            NetOp::Unpublish(id, port) => self.unpublish(id, std::slice::from_ref(port)),
            NetOp::Publish(id, port) => self.publish(id, std::slice::from_ref(port)).map(|_| ()),
        }
    }

    /// Makes an endpoint's links anew. Inside, it was gone with its other end, and with it the routes through it.
    fn repair_endpoint(&self, id: &SandboxId, network: &NetworkId) -> Result<(), NetdError> {
        let _busy = self.begin(id, false)?;
        let (record, networks) = self.sandbox_and_networks(id)?;
        let Some(endpoint) = record.endpoints.iter().find(|endpoint| endpoint.network == *network) else {
            return Ok(());
        };
        let mut without = record.clone();
        without.endpoints.retain(|endpoint| endpoint.network != *network);
        without.config.endpoints.retain(|config| config.network != *network);
        self.attach(&without, &record, endpoint, &networks)
    }

    /// Puts the host's end back on its bridge; the inside notices nothing.
    fn reattach_endpoint(&self, id: &SandboxId, network: &NetworkId) -> Result<(), NetdError> {
        let _busy = self.begin(id, false)?;
        let (record, networks) = self.sandbox_and_networks(id)?;
        let endpoint = record.endpoints.iter().find(|endpoint| endpoint.network == *network);
        let (Some(endpoint), Some(network)) = (endpoint, networks.get(network)) else { return Ok(()) };
        let alias = format!("orch sandbox {id} network {}", endpoint.network);
        let mut batch = LinkBatch::new();
        batch.set_controller(&endpoint.host_interface, network.index);
        batch.set_port(&endpoint.host_interface, !network.record.config.icc, &alias);
        let action = format!("put {} back on its bridge", endpoint.host_interface);
        lock(&self.links).send(batch).map_err(NetdError::first_link(action))
    }
}

fn endpoint_config<'a>(
    desired: &'a DesiredNetworking,
    id: &SandboxId,
    network: &NetworkId,
) -> Option<&'a EndpointConfig> {
    let sandbox = desired.sandboxes.iter().find(|sandbox| sandbox.id == *id)?;
    sandbox.endpoints.iter().find(|endpoint| endpoint.network == *network)
}
