//! The entry: one [`Netd`] for one instance in one network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::address::Prefix;
use crate::cluster::{ClusterReport, DesiredCluster};
use crate::config::{
    DesiredNetworking, Endpoint, EndpointConfig, NetdConfig, NetworkConfig, NetworkId, PortRequest, PublishedPort,
    Sandbox, SandboxConfig, SandboxId,
};
use crate::conntrack::Forgetting;
use crate::error::{NetdError, NetdErrors};
use crate::foreign::Foreign;
use crate::link::LinkSocket;
use crate::mesh::PortKey;
use crate::name::Names;
use crate::namespace::Namespace;
use crate::nft::table::Table;
use crate::overlay::ClusterState;
use crate::port::{self, UsedPort};
use crate::probe::UnderlayVerdict;
use crate::publish::Holding;
use crate::record::{NetworkRecord, RunDir, SandboxRecord};
use crate::relay::Relay;
use crate::service::Balancing;
use crate::straying::Straying;
use crate::sync::SyncReport;
use crate::watch::{Hearing, Watch};

/// How often to look whether the kernel has let go of a link.
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);
/// After this long a link that should have gone with its namespace is deleted by hand: somebody holds the namespace. The
/// kernel's own cleaning takes 50 ms for one and 90 ms for four hundred.
const SETTLE_PATIENCE: Duration = Duration::from_millis(400);

/// The networks of one host. All methods may be called from many threads at once and block for as long as the kernel takes,
/// a few milliseconds at most: from async code, through `spawn_blocking`.
///
/// Dropping it changes nothing in the kernel: traffic flows on, and the next [`Netd::open`] takes over.
#[derive(Debug)]
pub struct Netd {
    shared: Arc<Shared>,
    _watch: Watch,
}

/// A network as known.
#[derive(Debug, Clone)]
pub(crate) struct NetworkState {
    pub(crate) record: NetworkRecord,
    /// Index of the bridge; 0 = not known to be there.
    pub(crate) index: u32,
}

/// A sandbox as known.
#[derive(Debug)]
pub(crate) struct SandboxState {
    pub(crate) record: SandboxRecord,
    /// What keeps its ports ours.
    pub(crate) holdings: Vec<Holding>,
}

/// All that is known. Whoever holds the lock makes no system call but on files.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) networks: BTreeMap<NetworkId, NetworkState>,
    pub(crate) sandboxes: BTreeMap<SandboxId, SandboxState>,
    /// Sandboxes that some call is at work on.
    pub(crate) busy: BTreeSet<SandboxId>,
    /// Who has an address.
    pub(crate) addresses: BTreeMap<(NetworkId, IpAddr), SandboxId>,
    /// Host ends of veth pairs that the kernel was asked to let go.
    pub(crate) leaving: BTreeSet<String>,
}

/// What all threads of a netd share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) names: Names,
    pub(crate) run_dir: RunDir,
    /// The namespace that is "the host" to us.
    pub(crate) host: Arc<Namespace>,
    pub(crate) state: Mutex<State>,
    pub(crate) table: Mutex<Table>,
    pub(crate) links: Mutex<LinkSocket>,
    pub(crate) forgetting: Forgetting,
    pub(crate) foreign: Mutex<Foreign>,
    pub(crate) hearing: Hearing,
    pub(crate) relay: Relay,
    /// Locked while wires change; whoever holds it may lock the others but `network_changes`.
    pub(crate) cluster: Mutex<ClusterState>,
    /// Ports of every node that are led here, with what holds them.
    pub(crate) mesh_ports: Mutex<BTreeMap<PortKey, Vec<Holding>>>,
    /// Locked while sandboxes are told of services.
    pub(crate) balancing: Mutex<Balancing>,
    pub(crate) straying: Straying,
    /// Makes changes of networks come one after another. Taken before any other lock.
    pub(crate) network_changes: Mutex<()>,
    /// Makes changes of the run directory's layout come one after another.
    pub(crate) files: Mutex<()>,
}

/// Locks even after a panic elsewhere: what is behind our locks is whole after every statement, and a netd that refused all
/// work for one panicked request would be worse.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Netd {
    /// Opens the instance in the calling thread's network namespace, which is the host from then on, and takes over what an
    /// earlier netd left: networks, sandboxes, ports. Traffic does not notice.
    ///
    /// # Errors
    /// Without `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`; when the run directory cannot be written; when a living process owns the
    /// instance's nftables table.
    pub fn open(config: NetdConfig) -> Result<Netd, NetdError> {
        Netd::open_with(config, true)
    }

    /// Like [`Netd::open`], but leaves the nftables table open to other programs, as it is on kernels before 6.9: what they
    /// take out of it is put back as soon as it is noticed.
    pub fn open_unowned(config: NetdConfig) -> Result<Netd, NetdError> {
        Netd::open_with(config, false)
    }

    fn open_with(config: NetdConfig, own: bool) -> Result<Netd, NetdError> {
        crate::check::instance(&config.instance)?;
        let host = Arc::new(Namespace::current().map_err(NetdError::system("open the host's network namespace"))?);
        let names = Names::new(&config.instance);
        // Here, in the host's namespace: what happens from now on is heard.
        let watching = NetdError::system("watch nf_tables for changes by other programs");
        let (hearing, ears) = Hearing::open().map_err(watching)?;
        let shared = Arc::new(Shared {
            run_dir: RunDir::new(&config.run_dir),
            table: Mutex::new(Table::new(&names.table())?),
            links: Mutex::new(LinkSocket::open().map_err(NetdError::system("open an rtnetlink socket"))?),
            forgetting: Forgetting::start().map_err(NetdError::system("open a conntrack socket"))?,
            foreign: Mutex::new(Foreign::new(&config.instance)),
            hearing,
            relay: Relay::new(Arc::clone(&host)),
            cluster: Mutex::default(),
            mesh_ports: Mutex::default(),
            balancing: Mutex::default(),
            straying: Straying::start().map_err(NetdError::system("start a thread"))?,
            state: Mutex::default(),
            network_changes: Mutex::default(),
            files: Mutex::default(),
            names,
            host,
        });
        if !own {
            lock(&shared.table).disown();
        }
        shared.adopt()?;
        let watch = Watch::start(Arc::clone(&shared), ears)?;
        Ok(Netd { shared, _watch: watch })
    }

    /// Makes a network, or repairs the one that is there. Doing it twice changes nothing.
    ///
    /// # Errors
    /// When subnet and gateway do not fit each other, when the subnet overlaps another network's, or when the network is
    /// there with other settings and in use.
    pub fn ensure_network(&self, config: &NetworkConfig) -> Result<(), NetdError> {
        self.shared.ensure_network(config)
    }

    /// Removes networks. Unknown ones are fine; one that still has endpoints stays, and is among the errors.
    pub fn remove_networks(&self, ids: &[NetworkId]) -> Result<(), NetdErrors> {
        self.shared.remove_networks(ids)
    }

    /// Makes a sandbox with all its endpoints and ports: when this returns, traffic flows. When it fails, nothing is left.
    pub fn create_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox, NetdError> {
        self.shared.create_sandbox(config)
    }

    /// Adds an endpoint to a living sandbox.
    pub fn connect(&self, id: &SandboxId, endpoint: &EndpointConfig) -> Result<Endpoint, NetdError> {
        self.shared.connect(id, endpoint)
    }

    /// Takes an endpoint away from a living sandbox. One that is not there is fine.
    pub fn disconnect(&self, id: &SandboxId, network: &NetworkId) -> Result<(), NetdError> {
        self.shared.disconnect(id, network)
    }

    /// Publishes further ports of a living sandbox.
    pub fn publish(&self, id: &SandboxId, ports: &[PortRequest]) -> Result<Vec<PublishedPort>, NetdError> {
        self.shared.publish(id, ports)
    }

    /// Withdraws ports of a living sandbox. Ports that it does not have are fine.
    pub fn unpublish(&self, id: &SandboxId, ports: &[PublishedPort]) -> Result<(), NetdError> {
        self.shared.unpublish(id, ports)
    }

    /// Removes sandboxes. When this returns none of their ports, addresses or files is there any more and no packet reaches
    /// them; the kernel dismantles their links by itself within some 50 ms ([`Netd::settle`] waits for that). Unknown ones
    /// are fine.
    pub fn remove_sandboxes(&self, ids: &[SandboxId]) -> Result<(), NetdErrors> {
        self.shared.remove_sandboxes(ids)
    }

    /// Waits until the kernel has let go of all links of removed sandboxes; false when `timeout` passes before.
    pub fn settle(&self, timeout: Duration) -> Result<bool, NetdError> {
        self.shared.settle(timeout)
    }

    /// Deletes the links of removed sandboxes that have not gone by themselves, because something holds their namespaces. One look, so that it
    /// can be taken while others come up.
    ///
    /// # Errors
    /// When links cannot be listed; what cannot be deleted is looked for again the next time.
    pub fn delete_lingering(&self) -> Result<(), NetdError> {
        let left = self.shared.lingering()?;
        if !left.is_empty() {
            self.shared.delete_by_hand(&left);
        }
        Ok(())
    }

    /// All networks.
    pub fn networks(&self) -> Vec<NetworkConfig> {
        lock(&self.shared.state).networks.values().map(|network| network.record.config.clone()).collect()
    }

    /// Name of a network's bridge.
    pub fn bridge(&self, id: &NetworkId) -> Option<String> {
        lock(&self.shared.state).networks.get(id).map(|network| network.record.bridge.clone())
    }

    /// All sandboxes.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        let state = lock(&self.shared.state);
        state.sandboxes.values().map(|sandbox| self.shared.sandbox(&sandbox.record)).collect()
    }

    /// One sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> Option<Sandbox> {
        lock(&self.shared.state).sandboxes.get(id).map(|sandbox| self.shared.sandbox(&sandbox.record))
    }

    /// Compares what shall be with what is, and mends: removes what nobody wants (also what a killed agent left half made),
    /// repairs what somebody deleted, adds and drops endpoints and ports of living sandboxes. It makes no sandbox: whose
    /// namespace is gone, its container must be started anew ([`SyncReport::missing`]).
    pub fn sync(&self, desired: &DesiredNetworking) -> Result<SyncReport, NetdError> {
        self.shared.sync(desired)
    }

    /// Makes the kernel match what this node shall know of its cluster: tunnels, who is behind them, services, ports of every
    /// node. When this returns and nothing failed, the kernel has all of it: the version can be acknowledged, and whoever is
    /// no longer in it gets no new connection from here. Doing it twice changes nothing; after a failure, or a kill at any
    /// point, doing it again goes on.
    ///
    /// To be called before networks that it speaks of are made, so that they get the right MTU.
    ///
    /// # Errors
    /// When what is asked for makes no sense, or cannot be remembered; nothing has changed then. What the kernel refuses is in
    /// the report, and everything else has been done all the same.
    pub fn apply_cluster(&self, desired: &DesiredCluster) -> Result<ClusterReport, NetdError> {
        self.shared.apply_cluster(desired)
    }

    /// Whether this node knows of others.
    pub fn is_clustered(&self) -> bool {
        *lock(&self.shared.cluster).desired != DesiredCluster::default()
    }

    /// MTU of the link that has this address: what a node says of itself to its cluster.
    ///
    /// # Errors
    /// When no link has it.
    pub fn underlay_mtu(&self, address: IpAddr) -> Result<u32, NetdError> {
        self.shared.underlay_mtu(address)
    }

    /// Whether the network under the tunnels carries them to a peer, at the size that the link here promises; to be asked when
    /// a node joins, once the mesh is up on both. It judges one direction: the other node judges its own. Takes a second or
    /// two when something is wrong.
    ///
    /// # Errors
    /// When there is no tunnel to the peer from here.
    pub fn probe_underlay(&self, peer: IpAddr) -> Result<UnderlayVerdict, NetdError> {
        self.shared.probe_underlay(peer)
    }

    /// Whether this is what [`Netd::apply_cluster`] was last asked for.
    pub fn is_wanted(&self, desired: &DesiredCluster) -> bool {
        *lock(&self.shared.cluster).desired == *desired
    }

    /// What [`Netd::apply_cluster`] was last asked for, also by an earlier netd.
    pub fn cluster(&self) -> DesiredCluster {
        DesiredCluster::clone(&lock(&self.shared.cluster).desired)
    }

    /// Prefixes that the host routes or holds outside our own bridges: address pools keep out of them.
    pub fn host_routes(&self) -> Result<Vec<Prefix>, NetdError> {
        self.shared.host_routes()
    }

    /// Ports on which something of the host receives, our own reservations included.
    pub fn used_ports(&self) -> Result<Vec<UsedPort>, NetdError> {
        self.shared.host.run(port::used).map_err(NetdError::system("enter the host's network namespace"))
    }

    /// Whether other programs are kept from changing our nftables table (kernel 6.9 and later).
    pub fn table_is_owned(&self) -> bool {
        lock(&self.shared.table).is_owned()
    }

    /// The namespace that is the host to this netd.
    pub fn host(&self) -> Arc<Namespace> {
        Arc::clone(&self.shared.host)
    }

    /// Removes everything of this instance: sandboxes, networks, table, files.
    pub fn teardown(&self) -> Result<(), NetdErrors> {
        self.shared.teardown()
    }
}

impl Shared {
    pub(crate) fn sandbox(&self, record: &SandboxRecord) -> Sandbox {
        Sandbox {
            netns: self.run_dir.namespace(&record.config.id.0),
            config: record.config.clone(),
            endpoints: record.endpoints.clone(),
            ports: record.ports.clone(),
        }
    }

    /// Runs in the host's namespace.
    pub(crate) fn in_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetdError> {
        self.host.run(work).map_err(NetdError::system("enter the host's network namespace"))
    }

    fn settle(&self, timeout: Duration) -> Result<bool, NetdError> {
        let start = Instant::now();
        let mut by_hand = false;
        loop {
            let left = self.lingering()?;
            if left.is_empty() {
                return Ok(true);
            }
            if start.elapsed() >= timeout {
                return Ok(false);
            }
            if !by_hand && start.elapsed() >= SETTLE_PATIENCE {
                by_hand = true;
                self.delete_by_hand(&left);
            }
            std::thread::sleep(SETTLE_INTERVAL);
        }
    }

    /// Links of removed sandboxes that are still there.
    fn lingering(&self) -> Result<Vec<String>, NetdError> {
        let leaving: Vec<String> = lock(&self.state).leaving.iter().cloned().collect();
        if leaving.is_empty() {
            return Ok(leaving);
        }
        let links = lock(&self.links).links().map_err(NetdError::link("list links"))?;
        let present: BTreeSet<String> = links.into_iter().map(|link| link.name).collect();
        let (left, gone): (Vec<String>, Vec<String>) = leaving.into_iter().partition(|name| present.contains(name));
        let mut state = lock(&self.state);
        for name in gone {
            state.leaving.remove(&name);
        }
        Ok(left)
    }

    fn delete_by_hand(&self, left: &[String]) {
        // A busy kernel takes that long, and so does whoever looks into a namespace from outside. Nobody needs to do anything.
        tracing::debug!(
            links = left.len(),
            "the namespaces of removed sandboxes are still there: deleting their links"
        );
        let _ = self.delete_links(left);
    }

    fn host_routes(&self) -> Result<Vec<Prefix>, NetdError> {
        let mut links = lock(&self.links);
        let ours: BTreeSet<u32> = links
            .links()
            .map_err(NetdError::link("list links"))?
            .into_iter()
            .filter(|link| self.is_ours(&link.name))
            .map(|link| link.index)
            .collect();
        let routes = links.routes().map_err(NetdError::link("list routes"))?;
        let addresses = links.addresses().map_err(NetdError::link("list addresses"))?;
        drop(links);
        let mut prefixes = BTreeSet::new();
        for route in routes.into_iter().filter(|route| route.link.is_none_or(|index| !ours.contains(&index))) {
            // A VPN that takes everything over in two halves is a default route in disguise: no pool could avoid it.
            prefixes.extend(route.destination.filter(|prefix| prefix.length > 1));
        }
        for (_, prefix) in addresses.into_iter().filter(|(index, _)| !ours.contains(index)) {
            prefixes.insert(prefix.network());
        }
        Ok(prefixes.into_iter().collect())
    }

    /// Whether a link's name says that it belongs to this instance, or a network of ours has it by special request.
    pub(crate) fn is_ours(&self, name: &str) -> bool {
        name.starts_with(&self.names.bridge_prefix())
            || name.starts_with(&self.names.veth_prefix())
            || name.starts_with(&self.names.tunnel_prefix())
            || lock(&self.state).networks.values().any(|network| network.record.bridge == name)
    }

    fn teardown(&self) -> Result<(), NetdErrors> {
        let (sandboxes, networks): (Vec<_>, Vec<_>) = {
            let state = lock(&self.state);
            (state.sandboxes.keys().cloned().collect(), state.networks.keys().cloned().collect())
        };
        let mut errors = NetdErrors::default();
        match self.apply_cluster(&DesiredCluster::default()) {
            Ok(report) => errors.0.extend(report.failed),
            Err(error) => errors.0.push(error),
        }
        if let Err(more) = self.remove_sandboxes(&sandboxes) {
            errors.0.extend(more.0);
        }
        errors.keep(self.settle(Duration::from_secs(5)));
        if let Err(more) = self.remove_networks(&networks) {
            errors.0.extend(more.0);
        }
        // Also what no record speaks of.
        errors.keep(self.sync(&DesiredNetworking::default()));
        errors.keep(self.settle(Duration::from_secs(5)));
        errors.into_result()
    }
}
