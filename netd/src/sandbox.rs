//! Sandboxes: a network namespace, bound to a file so that it outlives every process, with its endpoints.
//!
//! Making one takes a thread of its own, which leaves the host's namespace for the new one and ends there. On the way it
//! makes all veth pairs in one system call from the host's side, their far ends being born in the new namespace, and
//! everything inside in a second one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::address::Mac;
use crate::config::{Endpoint, EndpointConfig, NetworkId, Sandbox, SandboxConfig, SandboxId};
use crate::error::{NetdError, NetdErrors};
use crate::link::{LinkBatch, LinkSocket, VethPair};
use crate::namespace::Namespace;
use crate::netd::{NetworkState, SandboxState, Shared, lock};
use crate::nft::table::Change;
use crate::publish::{self, Reach, sandbox_elements};
use crate::record::{self, SandboxRecord};
use crate::sysctl::{self, SysctlError};

/// Threads that unmount, all but idle: as many as operations of an agent at once.
const UNMOUNTS_AT_ONCE: usize = 16;
/// `lo` in every namespace.
const LOOPBACK: u32 = 1;

/// Marks a sandbox as being worked on for as long as it lives.
pub(crate) struct Busy<'a> {
    shared: &'a Shared,
    id: SandboxId,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.shared.state).busy.remove(&self.id);
    }
}

/// Names, MACs and host ends of the endpoints asked for. `taken` are interface names that are there already.
fn plan_endpoints(
    shared: &Shared,
    id: &SandboxId,
    configs: &[EndpointConfig],
    taken: &mut BTreeSet<String>,
) -> Vec<Endpoint> {
    taken.extend(configs.iter().filter_map(|config| config.interface.clone()));
    let mut endpoints = Vec::with_capacity(configs.len());
    for config in configs {
        let interface = config.interface.clone().unwrap_or_else(|| {
            let free = (0..).map(|n| format!("eth{n}")).find(|name| !taken.contains(name));
            let name = free.expect("there are more numbers than interfaces");
            taken.insert(name.clone());
            name
        });
        let address = config.ipv4.map(IpAddr::V4).or(config.ipv6.map(IpAddr::V6));
        // Without any address the host's name for the link is as good a seed as any.
        let host_interface = shared.names.veth(id, &config.network);
        let mac = config.mac.or(address.map(Mac::from_address)).unwrap_or_else(|| seeded_mac(&host_interface));
        endpoints.push(Endpoint {
            network: config.network.clone(),
            interface,
            host_interface,
            mac,
            ipv4: config.ipv4,
            ipv6: config.ipv6,
        });
    }
    endpoints
}

fn seeded_mac(seed: &str) -> Mac {
    let bytes = seed.as_bytes();
    let at = |from_end: usize| bytes[bytes.len() - from_end];
    Mac([0x02, 0x42, at(4), at(3), at(2), at(1)])
}

/// A default route of a sandbox.
struct WayOut<'a> {
    config: &'a EndpointConfig,
    gateway: IpAddr,
    /// Bytes that fit through it, where that is less than the link takes.
    mtu: Option<u32>,
}

/// The default routes of a sandbox: of each family by the endpoint with the highest priority that has a gateway, the first of equal ones.
fn ways_out<'a>(configs: &'a [EndpointConfig], networks: &BTreeMap<NetworkId, NetworkState>) -> Vec<WayOut<'a>> {
    let way_out = |config: &'a EndpointConfig, ipv4: bool| {
        let record = &networks.get(&config.network)?.record;
        if record.config.internal {
            return None;
        }
        let gateway = if ipv4 {
            config.ipv4.and(record.config.gateway4).map(IpAddr::V4)
        } else {
            config.ipv6.and(record.config.gateway6).map(IpAddr::V6)
        };
        Some(WayOut { config, gateway: gateway?, mtu: record.outward_mtu })
    };
    let best = |ipv4: bool| {
        let candidates = configs.iter().rev().filter_map(|config| way_out(config, ipv4));
        candidates.max_by_key(|way| way.config.gateway_priority)
    };
    [best(true), best(false)].into_iter().flatten().collect()
}

impl Shared {
    /// Claims a sandbox for a change. `new`: it must not be there yet; else it must.
    pub(crate) fn begin(&self, id: &SandboxId, new: bool) -> Result<Busy<'_>, NetdError> {
        let mut state = lock(&self.state);
        if state.busy.contains(id) || new && state.sandboxes.contains_key(id) {
            return Err(NetdError::Exists(id.clone()));
        }
        if !new && !state.sandboxes.contains_key(id) {
            return Err(NetdError::UnknownSandbox(id.clone()));
        }
        state.busy.insert(id.clone());
        Ok(Busy { shared: self, id: id.clone() })
    }

    pub(crate) fn sandbox_and_networks(
        &self,
        id: &SandboxId,
    ) -> Result<(SandboxRecord, BTreeMap<NetworkId, NetworkState>), NetdError> {
        let state = lock(&self.state);
        let sandbox = state.sandboxes.get(id).ok_or_else(|| NetdError::UnknownSandbox(id.clone()))?;
        Ok((sandbox.record.clone(), state.networks.clone()))
    }

    pub(crate) fn change_sandbox(&self, id: &SandboxId, change: impl FnOnce(&mut SandboxState)) {
        if let Some(sandbox) = lock(&self.state).sandboxes.get_mut(id) {
            change(sandbox);
        }
    }

    /// Notes who has an endpoint's addresses, or that nobody has.
    fn note_addresses(&self, id: &SandboxId, endpoints: &[Endpoint], has: bool) {
        let mut state = lock(&self.state);
        for endpoint in endpoints {
            for address in endpoint.ipv4.map(IpAddr::V4).into_iter().chain(endpoint.ipv6.map(IpAddr::V6)) {
                let key = (endpoint.network.clone(), address);
                if has {
                    state.addresses.insert(key, id.clone());
                } else {
                    state.addresses.remove(&key);
                }
            }
        }
    }

    pub(crate) fn create_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox, NetdError> {
        let id = &config.id;
        let _busy = self.begin(id, true)?;
        let endpoints = plan_endpoints(self, id, &config.endpoints, &mut BTreeSet::new());
        let networks = {
            let mut state = lock(&self.state);
            crate::check::sandbox(config, &state)?;
            for endpoint in &endpoints {
                // The link of an earlier sandbox of this name is not waited for any more: it is replaced.
                state.leaving.remove(&endpoint.host_interface);
            }
            state.networks.clone()
        };
        self.note_addresses(id, &endpoints, true);
        let outcome = self.make(config, &endpoints, &networks);
        if outcome.is_err() {
            self.note_addresses(id, &endpoints, false);
        }
        outcome
    }

    fn make(
        &self,
        config: &SandboxConfig,
        endpoints: &[Endpoint],
        networks: &BTreeMap<NetworkId, NetworkState>,
    ) -> Result<Sandbox, NetdError> {
        let id = &config.id;
        // Ports first: they are what fails, and it costs nothing to give them back.
        let reach = Reach::of(config, networks);
        let holdings = self.reserve(id, &config.ports, &reach)?;
        let ports = holdings.iter().map(|holding| holding.port).collect();
        let mut record =
            SandboxRecord { config: config.clone(), endpoints: endpoints.to_vec(), ports, complete: false };
        self.prepare_namespace_dir()?;
        record::write(&self.run_dir.sandbox(&id.0), &record)?;
        let add = sandbox_elements(&record, networks);
        let made = self
            .make_namespace(&record, networks)
            .and_then(|()| {
                // Flows to an earlier owner of the address may be about to be forgotten.
                self.forgetting.wait_for(&publish::ways(&record.ports, &reach));
                Ok(lock(&self.table).apply(Change { remove: Vec::new(), add })?)
            })
            .and_then(|()| self.tell_sandbox(&record, false))
            .and_then(|()| {
                record.complete = true;
                record::write(&self.run_dir.sandbox(&id.0), &record)
            });
        if let Err(error) = made {
            let mut ignored = NetdErrors::default();
            self.unmake(&[&record], &mut ignored);
            publish::close(holdings);
            return Err(error);
        }
        self.forget_flows_to(&record.ports);
        let sandbox = self.sandbox(&record);
        lock(&self.state).sandboxes.insert(id.clone(), SandboxState { record, holdings });
        Ok(sandbox)
    }

    /// Makes the namespace and all in it.
    fn make_namespace(
        &self,
        record: &SandboxRecord,
        networks: &BTreeMap<NetworkId, NetworkState>,
    ) -> Result<(), NetdError> {
        let path = self.run_dir.namespace(&record.config.id.0);
        std::thread::scope(|scope| {
            let work = || {
                if !self.host.is_current() {
                    self.host.enter().map_err(NetdError::system("enter the host's network namespace"))?;
                }
                let mut outside = LinkSocket::open().map_err(NetdError::system("open an rtnetlink socket"))?;
                unshare(CloneFlags::CLONE_NEWNET)
                    .map_err(io::Error::from)
                    .map_err(NetdError::system("make a network namespace"))?;
                let namespace = bind_own(&path)
                    .map_err(NetdError::system(format!("bind a network namespace to {}", path.display())))?;
                default_settings(record.config.endpoints.iter().any(|endpoint| endpoint.ipv6.is_some()))?;
                let mut inside = LinkSocket::open().map_err(NetdError::system("open an rtnetlink socket"))?;
                self.make_pairs(&mut outside, &namespace, record, &record.endpoints, networks)?;
                let indices = indices_of(&mut inside, &record.endpoints)?;
                let mut batch = LinkBatch::new();
                batch.set_up(LOOPBACK, None);
                for (endpoint, index) in record.endpoints.iter().zip(&indices) {
                    furnish(&mut batch, endpoint, *index, networks)?;
                }
                for WayOut { config, gateway, mtu } in ways_out(&record.config.endpoints, networks) {
                    let at = record.endpoints.iter().position(|endpoint| endpoint.network == config.network);
                    batch.add_default_route(gateway, indices[at.expect("every endpoint asked for is planned")], mtu);
                }
                let action = format!("configure the interfaces of sandbox {}", record.config.id);
                inside.send(batch).map_err(NetdError::first_link(action))?;
                await_carriers(&mut outside, &record.endpoints, networks);
                for (name, value) in &record.config.sysctls {
                    sysctl::write(name, value)?;
                }
                Ok(())
            };
            let thread = std::thread::Builder::new().name("netd-sandbox".into()).spawn_scoped(scope, work);
            let thread = thread.map_err(NetdError::system("start a thread"))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes veth pairs into `namespace`. Two things may be in the way and are mended once: the link of an earlier sandbox
    /// of the same name that the kernel has not dismantled yet, and a bridge that somebody deleted.
    fn make_pairs(
        &self,
        outside: &mut LinkSocket,
        namespace: &Namespace,
        record: &SandboxRecord,
        endpoints: &[Endpoint],
        networks: &BTreeMap<NetworkId, NetworkState>,
    ) -> Result<(), NetdError> {
        let mut bridges: BTreeMap<&NetworkId, u32> = networks.iter().map(|(id, network)| (id, network.index)).collect();
        let mut left: Vec<usize> = (0..endpoints.len()).collect();
        for mended in [false, true] {
            let mut batch = LinkBatch::new();
            for at in &left {
                let endpoint = &endpoints[*at];
                let network = network_of(endpoint, networks)?;
                batch.add_veth(&VethPair {
                    host_name: &endpoint.host_interface,
                    bridge: bridges.get(&endpoint.network).copied().unwrap_or(0),
                    namespace,
                    name: &endpoint.interface,
                    mac: endpoint.mac,
                    mtu: network.record.mtu,
                    isolated: !network.record.config.icc,
                    alias: format!("orch sandbox {} network {}", record.config.id, endpoint.network),
                });
            }
            let Err(errors) = outside.send(batch) else { return Ok(()) };
            // Two requests for each pair: what failed is found by its place.
            let failed: BTreeSet<usize> = errors.iter().map(|error| left[error.request / 2]).collect();
            let mendable = errors
                .iter()
                .filter(|error| error.request % 2 == 0)
                .all(|error| matches!(error.errno, Errno::EEXIST | Errno::ENODEV | Errno::EINVAL));
            if mended || !mendable {
                let names: Vec<&str> = failed.iter().map(|at| endpoints[*at].interface.as_str()).collect();
                let action = format!("make {} of sandbox {}", names.join(", "), record.config.id);
                return Err(NetdError::first_link(action)(errors));
            }
            let stale: Vec<String> = failed.iter().map(|at| endpoints[*at].host_interface.clone()).collect();
            self.delete_links(&stale)?;
            for at in &failed {
                let network = network_of(&endpoints[*at], networks)?;
                let index = self.put_up_bridge(&network.record)?;
                if let Some(state) = lock(&self.state).networks.get_mut(&network.record.config.id) {
                    state.index = index;
                }
                bridges.insert(&endpoints[*at].network, index);
            }
            left = failed.into_iter().collect();
        }
        Ok(())
    }

    pub(crate) fn connect(&self, id: &SandboxId, config: &EndpointConfig) -> Result<Endpoint, NetdError> {
        let _busy = self.begin(id, false)?;
        let (mut record, networks) = self.sandbox_and_networks(id)?;
        let what = format!("sandbox {id}");
        crate::check::endpoint(&what, config, &lock(&self.state))?;
        if record.endpoints.iter().any(|endpoint| endpoint.network == config.network) {
            return Err(NetdError::invalid(what, format_args!("it is on network {} already", config.network)));
        }
        let mut taken: BTreeSet<String> = record.endpoints.iter().map(|endpoint| endpoint.interface.clone()).collect();
        if let Some(name) = config.interface.as_ref().filter(|name| taken.contains(*name)) {
            return Err(NetdError::invalid(what, format_args!("it has an interface called `{name}` already")));
        }
        let endpoint = plan_endpoints(self, id, std::slice::from_ref(config), &mut taken).swap_remove(0);
        let before = record.clone();
        record.config.endpoints.push(config.clone());
        record.endpoints.push(endpoint.clone());
        record::write(&self.run_dir.sandbox(&id.0), &record)?;
        self.note_addresses(id, std::slice::from_ref(&endpoint), true);
        let outcome = self.attach(&before, &record, &endpoint, &networks);
        let outcome = outcome.and_then(|()| self.move_ports(&before, &record, &networks));
        if let Err(error) = outcome {
            let _ = self.delete_links(std::slice::from_ref(&endpoint.host_interface));
            self.note_addresses(id, std::slice::from_ref(&endpoint), false);
            let _ = record::write(&self.run_dir.sandbox(&id.0), &before);
            return Err(error);
        }
        self.tell_sandbox(&record, false)?;
        self.change_sandbox(id, |sandbox| sandbox.record = record);
        Ok(endpoint)
    }

    /// Puts one endpoint into a living namespace.
    pub(crate) fn attach(
        &self,
        before: &SandboxRecord,
        record: &SandboxRecord,
        endpoint: &Endpoint,
        networks: &BTreeMap<NetworkId, NetworkState>,
    ) -> Result<(), NetdError> {
        let namespace = self.open_namespace(record)?;
        let mut outside = self.in_host(LinkSocket::open)?.map_err(NetdError::system("open an rtnetlink socket"))?;
        self.make_pairs(&mut outside, &namespace, record, std::slice::from_ref(endpoint), networks)?;
        let work = || {
            let name = sysctl::interface(&endpoint.interface);
            if endpoint.ipv6.is_some() {
                allow_ipv6(&name)?;
            }
            let mut inside = LinkSocket::open().map_err(NetdError::system("open an rtnetlink socket"))?;
            let index = index_of(&mut inside, &endpoint.interface)?;
            let mut batch = LinkBatch::new();
            furnish(&mut batch, endpoint, index, networks)?;
            let action = format!("configure {} of sandbox {}", endpoint.interface, record.config.id);
            inside.send(batch).map_err(NetdError::first_link(action))?;
            await_carriers(&mut outside, std::slice::from_ref(endpoint), networks);
            change_routes(&mut inside, before, record, networks)
        };
        namespace.run(work).map_err(NetdError::system("enter a sandbox's network namespace"))?
    }

    fn open_namespace(&self, record: &SandboxRecord) -> Result<Namespace, NetdError> {
        let path = self.run_dir.namespace(&record.config.id.0);
        Namespace::open(&path).map_err(NetdError::system(format!("open the network namespace {}", path.display())))
    }

    pub(crate) fn disconnect(&self, id: &SandboxId, network: &NetworkId) -> Result<(), NetdError> {
        let _busy = self.begin(id, false)?;
        let (mut record, networks) = self.sandbox_and_networks(id)?;
        let Some(at) = record.endpoints.iter().position(|endpoint| endpoint.network == *network) else { return Ok(()) };
        let before = record.clone();
        let endpoint = record.endpoints.remove(at);
        record.config.endpoints.retain(|config| config.network != *network);
        self.move_ports(&before, &record, &networks)?;
        // Its routes go with the link; a default route through another one may have to come.
        self.delete_links(std::slice::from_ref(&endpoint.host_interface))?;
        record::write(&self.run_dir.sandbox(&id.0), &record)?;
        self.note_addresses(id, std::slice::from_ref(&endpoint), false);
        let namespace = self.open_namespace(&record)?;
        let work = || {
            let mut inside = LinkSocket::open().map_err(NetdError::system("open an rtnetlink socket"))?;
            change_routes(&mut inside, &before, &record, &networks)
        };
        namespace.run(work).map_err(NetdError::system("enter a sandbox's network namespace"))??;
        self.change_sandbox(id, |sandbox| sandbox.record = record.clone());
        self.tell_sandbox(&record, false)
    }

    /// Leads the ports to where the sandbox is reached now.
    fn move_ports(
        &self,
        before: &SandboxRecord,
        record: &SandboxRecord,
        networks: &BTreeMap<NetworkId, NetworkState>,
    ) -> Result<(), NetdError> {
        let (remove, add) = (sandbox_elements(before, networks), sandbox_elements(record, networks));
        if remove == add {
            return Ok(());
        }
        let (old, reach) = (Reach::of(&before.config, networks), Reach::of(&record.config, networks));
        self.forgetting.wait_for(&publish::ways(&record.ports, &reach));
        lock(&self.table).apply(Change { remove, add })?;
        // What led to an address that still serves goes on.
        let gone =
            publish::ways(&before.ports, &old).into_iter().filter(|way| !reach.addresses().contains(&way.target));
        self.forgetting.led(gone);
        let id = &record.config.id;
        let mut old = Vec::new();
        self.change_sandbox(id, |sandbox| old = std::mem::take(&mut sandbox.holdings));
        publish::close(old);
        let holdings = self.hold_again(record, &reach);
        self.change_sandbox(id, |sandbox| sandbox.holdings = holdings);
        Ok(())
    }

    pub(crate) fn remove_sandboxes(&self, ids: &[SandboxId]) -> Result<(), NetdErrors> {
        let mut errors = NetdErrors::default();
        let mut removed: Vec<SandboxState> = Vec::new();
        let mut busy = Vec::new();
        for id in ids {
            match self.begin(id, false) {
                Ok(guard) => busy.push(guard),
                Err(NetdError::UnknownSandbox(_)) => continue,
                Err(error) => {
                    errors.0.push(error);
                    continue;
                }
            }
            removed.extend(lock(&self.state).sandboxes.remove(id));
        }
        if removed.is_empty() {
            return errors.into_result();
        }
        let mut holdings = Vec::new();
        for sandbox in &mut removed {
            holdings.append(&mut sandbox.holdings);
        }
        let records: Vec<&SandboxRecord> = removed.iter().map(|sandbox| &sandbox.record).collect();
        self.unmake(&records, &mut errors);
        publish::close(holdings);
        for record in records {
            self.note_addresses(&record.config.id, &record.endpoints, false);
        }
        drop(busy);
        if lock(&self.state).networks.is_empty() {
            let _no_network_comes = lock(&self.network_changes);
            self.leave_nothing(&mut errors);
        }
        errors.into_result()
    }

    /// Takes sandboxes out of the kernel, also ones that are only half there. Their links follow by themselves.
    pub(crate) fn unmake(&self, records: &[&SandboxRecord], errors: &mut NetdErrors) {
        let networks = self.bridges();
        // New flows stop first, then the wire.
        let remove = records.iter().flat_map(|record| sandbox_elements(record, &networks)).collect();
        errors.keep(lock(&self.table).apply(Change { remove, add: Vec::new() }));
        let mut batch = LinkBatch::new();
        let mut leaving = Vec::new();
        for endpoint in records.iter().flat_map(|record| &record.endpoints) {
            batch.stop_port(&endpoint.host_interface);
            leaving.push(endpoint.host_interface.clone());
        }
        // What is not there needs no stopping.
        let _ = lock(&self.links).send(batch);
        self.tell_no_more(records.iter().map(|record| &record.config.id));
        lock(&self.state).leaving.extend(leaving);
        self.remove_files(records, errors);
        // Last: while the kernel walks its flows, whatever waits for RCU waits too, such as unmounting.
        let published = records.iter().filter(|record| !record.ports.is_empty());
        self.forget_flows_of(published.flat_map(|record| record.addresses()));
    }

    /// Lets go of the namespaces and forgets the sandboxes. The kernel waits for a grace period in each unmount, and waits that
    /// overlap are one.
    fn remove_files(&self, records: &[&SandboxRecord], errors: &mut NetdErrors) {
        let remove = |records: &[&SandboxRecord]| {
            let mut errors = NetdErrors::default();
            for record in records {
                errors.keep(self.remove_namespace_file(&record.config.id.0));
                errors.keep(record::remove(&self.run_dir.sandbox(&record.config.id.0)));
            }
            errors
        };
        let mut shares = records.chunks(records.len().div_ceil(UNMOUNTS_AT_ONCE).max(1));
        let first = shares.next().unwrap_or_default();
        let failed = std::thread::scope(|scope| {
            let others: Vec<_> = shares.map(|share| scope.spawn(|| remove(share))).collect();
            let own = remove(first);
            let others = others.into_iter().filter_map(|thread| thread.join().ok());
            others.chain([own]).flat_map(|errors| errors.0).collect::<Vec<_>>()
        });
        errors.0.extend(failed);
    }

    /// Lets go of a namespace: without the file, and without processes, it ends.
    pub(crate) fn remove_namespace_file(&self, name: &str) -> Result<(), NetdError> {
        let path = self.run_dir.namespace(name);
        let fail = |error| NetdError::system(format!("remove the network namespace {}", path.display()))(error);
        loop {
            match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Bound twice by a netd that was killed between.
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(fail(errno.into())),
            }
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
            _ => Ok(()),
        }
    }

    /// Makes the directory that namespaces are bound in a shared mount of its own. Else every mount namespace made while a
    /// sandbox lives would hold a copy of its mount, and with it the network namespace, after we let go of it.
    fn prepare_namespace_dir(&self) -> Result<(), NetdError> {
        let _one_at_a_time = lock(&self.files);
        self.run_dir.create()?;
        let path = self.run_dir.namespaces();
        let fail = |error: Errno| NetdError::system(format!("mount {}", path.display()))(error.into());
        // Changing the propagation of what is no mount point is refused, and tells us so cheaply.
        match mount(None::<&str>, &path, None::<&str>, MsFlags::MS_SHARED, None::<&str>) {
            Ok(()) => return Ok(()),
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(fail(errno)),
        }
        mount(Some(&path), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(fail)?;
        mount(None::<&str>, &path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).map_err(fail)
    }

    pub(crate) fn forget_namespace_dir(&self) {
        let _ = umount2(&self.run_dir.namespaces(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

fn network_of<'a>(
    endpoint: &Endpoint,
    networks: &'a BTreeMap<NetworkId, NetworkState>,
) -> Result<&'a NetworkState, NetdError> {
    networks.get(&endpoint.network).ok_or_else(|| NetdError::UnknownNetwork(endpoint.network.clone()))
}

/// Lets the kernel notice now that both ends of the pairs are up. By itself it may take a second until a new bridge counts
/// as operational, and IPv6 begins to work there. To be asked about one link makes a newer kernel look (seen on 6.18; for
/// veth ends all kernels hurry).
fn await_carriers(outside: &mut LinkSocket, endpoints: &[Endpoint], networks: &BTreeMap<NetworkId, NetworkState>) {
    for endpoint in endpoints {
        let bridge = networks.get(&endpoint.network).map(|network| &network.record.bridge);
        for name in [Some(&endpoint.host_interface), bridge].into_iter().flatten() {
            // Nothing depends on the answer.
            let _ = outside.link(name);
        }
    }
}

/// Binds the calling thread's namespace to a file.
fn bind_own(path: &Path) -> io::Result<Namespace> {
    let _: File = OpenOptions::new().create(true).append(true).open(path)?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Namespace::current()
}

/// Settings that links born in this namespace take over.
fn default_settings(ipv6: bool) -> Result<(), SysctlError> {
    if !ipv6 {
        // Not for `lo`: programs expect [::1] to be there.
        return sysctl::write_if_there("net.ipv6.conf.default.disable_ipv6", "1");
    }
    // Addresses come from us alone, and nobody else has them.
    sysctl::write_if_there("net.ipv6.conf.default.accept_ra", "0")?;
    sysctl::write_if_there("net.ipv6.conf.default.autoconf", "0")?;
    sysctl::write_if_there("net.ipv6.conf.default.accept_dad", "0")
}

fn allow_ipv6(interface: &str) -> Result<(), SysctlError> {
    sysctl::write(&format!("net.ipv6.conf.{interface}.accept_ra"), "0")?;
    sysctl::write(&format!("net.ipv6.conf.{interface}.accept_dad"), "0")?;
    sysctl::write(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "0")
}

/// Indices inside. They are the kernel's choice: a veth pair's far end gets the one asked for only when the near end asks
/// for one too.
fn indices_of(inside: &mut LinkSocket, endpoints: &[Endpoint]) -> Result<Vec<u32>, NetdError> {
    let links = inside.links().map_err(NetdError::link("list a sandbox's interfaces"))?;
    let index = |endpoint: &Endpoint| links.iter().find(|link| link.name == endpoint.interface).map(|link| link.index);
    endpoints.iter().map(|endpoint| index(endpoint).ok_or_else(|| vanished(&endpoint.interface))).collect()
}

fn vanished(interface: &str) -> NetdError {
    NetdError::invalid(format_args!("interface {interface}"), "it is not in its sandbox: something took it away")
}

fn index_of(inside: &mut LinkSocket, interface: &str) -> Result<u32, NetdError> {
    let found = inside.link(interface).map_err(NetdError::link(format!("look for interface {interface}")))?;
    found.map(|link| link.index).ok_or_else(|| vanished(interface))
}

/// Requests that bring an endpoint up with its addresses.
fn furnish(
    batch: &mut LinkBatch,
    endpoint: &Endpoint,
    index: u32,
    networks: &BTreeMap<NetworkId, NetworkState>,
) -> Result<(), NetdError> {
    let network = &network_of(endpoint, networks)?.record.config;
    batch.set_up(index, None);
    let addresses =
        [(endpoint.ipv4.map(IpAddr::V4), network.subnet4), (endpoint.ipv6.map(IpAddr::V6), network.subnet6)];
    for (address, subnet) in addresses {
        if let (Some(address), Some(subnet)) = (address, subnet) {
            batch.add_address(index, address, subnet.length);
        }
    }
    Ok(())
}

/// Replaces the default routes where they change.
fn change_routes(
    inside: &mut LinkSocket,
    before: &SandboxRecord,
    record: &SandboxRecord,
    networks: &BTreeMap<NetworkId, NetworkState>,
) -> Result<(), NetdError> {
    let routes = |record: &SandboxRecord| -> Vec<(String, IpAddr, Option<u32>)> {
        let interface = |config: &EndpointConfig| {
            let endpoint = record.endpoints.iter().find(|endpoint| endpoint.network == config.network);
            endpoint.map(|endpoint| endpoint.interface.clone()).unwrap_or_default()
        };
        let ways = ways_out(&record.config.endpoints, networks).into_iter();
        ways.map(|way| (interface(way.config), way.gateway, way.mtu)).collect()
    };
    let (old, new) = (routes(before), routes(record));
    let mut removal = LinkBatch::new();
    for (interface, gateway, _) in old.iter().filter(|route| !new.contains(route)) {
        // With its link, the route has gone too.
        if let Ok(index) = index_of(inside, interface) {
            removal.delete_default_route(*gateway, index);
        }
    }
    let _ = inside.send(removal);
    let mut addition = LinkBatch::new();
    for (interface, gateway, mtu) in new.iter().filter(|route| !old.contains(route)) {
        addition.add_default_route(*gateway, index_of(inside, interface)?, *mtu);
    }
    if addition.is_empty() {
        return Ok(());
    }
    inside
        .send(addition)
        .map_err(NetdError::first_link(format!("set the default route of sandbox {}", record.config.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetworkConfig;
    use crate::record::NetworkRecord;

    fn networks(configs: &[NetworkConfig]) -> BTreeMap<NetworkId, NetworkState> {
        let state = |config: &NetworkConfig| NetworkState {
            record: NetworkRecord { config: config.clone(), bridge: "b".into(), mtu: 1500, outward_mtu: None },
            index: 1,
        };
        configs.iter().map(|config| (config.id.clone(), state(config))).collect()
    }

    #[test]
    fn the_highest_priority_gives_the_gateway_and_internal_networks_none() {
        let net =
            |id: &str, n: u8| NetworkConfig::new(id, format!("10.0.{n}.0/24").parse().unwrap(), [10, 0, n, 1].into());
        let internal = NetworkConfig { internal: true, ..net("c", 3) };
        let networks = networks(&[net("a", 1), net("b", 2), internal]);
        let endpoint = |id: &str, n: u8, gateway_priority: i32| EndpointConfig {
            gateway_priority,
            ..EndpointConfig::new(id, [10, 0, n, 9].into())
        };
        let chosen =
            |configs: &[EndpointConfig]| ways_out(configs, &networks).first().map(|way| way.gateway.to_string());
        assert_eq!(chosen(&[endpoint("a", 1, 0), endpoint("b", 2, 0)]), Some("10.0.1.1".into()));
        assert_eq!(chosen(&[endpoint("a", 1, 0), endpoint("b", 2, 5)]), Some("10.0.2.1".into()));
        assert_eq!(chosen(&[endpoint("c", 3, 9), endpoint("b", 2, -1)]), Some("10.0.2.1".into()));
        assert_eq!(chosen(&[endpoint("c", 3, 0)]), None);
    }
}
