//! Carries one operation out: thin acts on engine and netd. Decides nothing; what it finds goes into the memory, and the loop plans again.

mod wiring;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use orch_engine::config::{ContainerId, NetworkNs};
use orch_engine::container::merge::parse_signal;
use orch_engine::engine::EngineError;
use orch_engine::image::ImageError;
use orch_netd::dns::resolv_conf::{self, ResolvOverrides};
use orch_netd::{EndpointConfig, NetdError, NetworkConfig, NetworkId, PortRequest, Protocol, SandboxConfig, SandboxId};
use orch_spec::assignment::{
    DesiredTask, EndpointAssignment, Health, NetworkAssignment, NetworkName, PortAssignment, PublishedPort,
    TaskAssignment, TaskId, TaskNetwork, VolumeAssignment,
};

use crate::local::DEFAULT_NETWORK;
use crate::lower::{HostNames, LowerContext, lower};
use crate::plan::{Operation, StartCause};
use crate::reconcile::{observed, refresh};
use crate::task::{ContainerState, ObservedTask, TaskError};
use crate::{Shared, chain, names, now_ms};

/// Why an operation on a task failed.
#[derive(Debug)]
struct Trouble {
    message: String,
    code: i32,
}

impl Trouble {
    fn new(error: &dyn std::error::Error) -> Self {
        Self { message: chain(error), code: 125 }
    }
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NotStarted { code, message } => Self { message, code },
            other => Self::new(&other),
        }
    }
}

impl From<NetdError> for Trouble {
    fn from(error: NetdError) -> Self {
        Self::new(&error)
    }
}

/// Carries an operation out and takes its outcome into the memory.
pub(crate) fn execute(shared: &Arc<Shared>, operation: &Operation) {
    match operation {
        Operation::CreateNetwork(name) => create_network(shared, name),
        Operation::RemoveNetwork(name) => remove_network(shared, name),
        Operation::CreateVolume(name) => create_volume(shared, name),
        Operation::RemoveVolume(name) => remove_volume(shared, name),
        // Waits for other hosts, and so is not for a thread: see `fetch`.
        Operation::FetchImage(_) => {}
        Operation::CreateContainer(id) => on_task(shared, id, create_container),
        Operation::StartContainer { task, cause } => {
            let cause = *cause;
            on_task(shared, task, |shared, task| start_container(shared, task, cause));
        }
        Operation::StopContainer { task, by_request } => stop_container(shared, task, *by_request),
        Operation::PauseContainer(id) => on_container(shared, id, |shared, container| shared.engine.pause(container)),
        Operation::UnpauseContainer(id) => {
            on_container(shared, id, |shared, container| shared.engine.unpause(container))
        }
        Operation::Connect(id, network) => wiring::connect(shared, id, network),
        Operation::Disconnect(id, network) => wiring::disconnect(shared, id, network),
        Operation::RemoveSandbox(id) => {
            remove_sandbox(shared, id);
            finish(shared, id);
        }
        Operation::RemoveContainer(id) => remove_container(shared, id),
    }
}

/// The operation on this task is over.
fn finish(shared: &Arc<Shared>, id: &TaskId) {
    if let Some(seen) = shared.lock().observed.tasks.get_mut(id) {
        seen.activity = None;
    }
}

fn on_task(shared: &Arc<Shared>, id: &TaskId, act: impl FnOnce(&Arc<Shared>, &TaskAssignment) -> Result<(), Trouble>) {
    let task = shared.lock().task(id).cloned();
    if let Some(task) = task {
        let outcome = act(shared, &task);
        if let Err(trouble) = &outcome {
            tracing::info!(task = %id, container = task.container_name, error = trouble.message, "failed");
        }
        let error = outcome.err().map(|t| TaskError { message: t.message, code: t.code, at: now_ms() });
        let mut state = shared.lock();
        if let Some(error) = error.clone().filter(|_| state.locals.contains_key(id)) {
            state.failed(id, error);
        }
        if let Some(seen) = state.observed.tasks.get_mut(id) {
            let record = &mut seen.record;
            if error.is_some() && seen.container.is_none() {
                // Whoever asked for another try has had it; where there is a container, its start counts.
                record.restart_generation = task.restart_generation;
                record.restarts = record.restarts.saturating_add(record.error.is_some().into());
            }
            if error.is_some() && seen.container.as_ref().is_none_or(|c| c.state == ContainerState::Created) {
                record.short_runs = record.short_runs.saturating_add(1);
            }
            seen.record.error = error;
        }
        drop(state);
        save(shared, id);
    }
    finish(shared, id);
}

fn on_container(
    shared: &Arc<Shared>,
    id: &TaskId,
    act: impl FnOnce(&Arc<Shared>, &ContainerId) -> Result<(), EngineError>,
) {
    if let Some(container) = container_of(shared, id) {
        if let Err(e) = act(shared, &container) {
            tracing::warn!(task = %id, error = chain(&e), "failed");
        }
        refresh(shared, &container);
    }
    finish(shared, id);
}

fn container_of(shared: &Arc<Shared>, id: &TaskId) -> Option<ContainerId> {
    shared.lock().observed.tasks.get(id)?.container.as_ref().map(|c| c.id.clone())
}

/// Writes the task's record down, where its file says something else: for most tasks nothing is worth a file.
pub(crate) fn save(shared: &Arc<Shared>, id: &TaskId) {
    let changed = |t: &ObservedTask| (t.record != t.saved).then(|| t.record.clone());
    let Some(record) = shared.lock().observed.tasks.get(id).and_then(changed) else { return };
    match shared.records.write_task(id, &record) {
        Ok(()) => match shared.lock().observed.tasks.get_mut(id) {
            Some(seen) => seen.saved = record,
            // It has gone meanwhile, and its record before this.
            None => shared.records.remove_task(id),
        },
        Err(e) => tracing::warn!(task = %id, error = chain(&e), "what is known of a task could not be written down"),
    }
}

/// The network as netd wants it.
///
/// # Errors
/// When a subnet is none.
pub(crate) fn lower_network(network: &NetworkAssignment) -> Result<NetworkConfig, String> {
    let prefix = |text: &Option<String>| {
        text.as_deref()
            .map(|t| t.parse().map_err(|_| format!("network {}: `{t}` is not a subnet", network.name)))
            .transpose()
    };
    let option = |key: &str| network.driver_opts.get(key).map(String::as_str);
    let mtu = option("com.docker.network.driver.mtu").and_then(|t| t.parse().ok()).unwrap_or(network.mtu);
    Ok(NetworkConfig {
        id: NetworkId(network.name.0.clone()),
        subnet4: prefix(&network.subnet4)?,
        gateway4: network.gateway4,
        subnet6: prefix(&network.subnet6)?,
        gateway6: network.gateway6,
        internal: network.internal,
        icc: network.icc,
        masquerade: option("com.docker.network.bridge.enable_ip_masquerade") != Some("false"),
        mtu,
        bridge_name: option("com.docker.network.bridge.name").map(str::to_owned),
    })
}

fn create_network(shared: &Arc<Shared>, name: &NetworkName) {
    let network = shared.lock().assignment.networks.iter().find(|n| n.name == *name).cloned();
    let made = match network {
        Some(network) => lower_network(&network)
            .and_then(|config| refuse_the_hosts_subnet(shared, &config).map(|()| config))
            .and_then(|config| shared.netd.ensure_network(&config).map_err(|e| chain(&e))),
        None => Ok(()),
    };
    let mut state = shared.lock();
    state.observed.busy_networks.remove(name);
    match made {
        Ok(()) => {
            state.observed.networks.insert(name.clone());
            state.observed.failures.remove(name.as_str());
        }
        Err(why) => {
            tracing::warn!(network = %name, error = why, "a network could not be made");
            state.observed.failures.insert(name.0.clone(), why);
        }
    }
}

/// A subnet that the host reaches otherwise would cut the host off from it.
fn refuse_the_hosts_subnet(shared: &Arc<Shared>, config: &NetworkConfig) -> Result<(), String> {
    if shared.netd.networks().iter().any(|known| known.id == config.id) {
        return Ok(());
    }
    let routes = shared.netd.host_routes().map_err(|e| chain(&e))?;
    for subnet in [config.subnet4, config.subnet6].into_iter().flatten() {
        if let Some(route) = routes.iter().find(|route| route.overlaps(&subnet)) {
            let device = device_of(route).unwrap_or_else(|| "another way".to_owned());
            let whose = if device.starts_with(orch_netd::BRIDGE_PREFIX) { ", a network of another orch" } else { "" };
            let way = if config.id.0 == DEFAULT_NETWORK {
                "`orch network rm bridge` has another one chosen"
            } else {
                "choose another one under `ipam`, or have one chosen by `orch down` and `orch up`"
            };
            return Err(format!(
                "network {}: its subnet {subnet} overlaps {route}, which this host reaches by {device}{whose}; {way}",
                config.id
            ));
        }
    }
    Ok(())
}

/// The interface that a route of the host leads to, from /proc/net/route (proc(5): hexadecimal, in the machine's byte order).
fn device_of(route: &orch_netd::Prefix) -> Option<String> {
    let IpAddr::V4(first) = route.first() else { return None };
    let wanted = format!("{:08X}", u32::from_ne_bytes(first.octets()));
    let text = std::fs::read_to_string("/proc/net/route").ok()?;
    let line = text.lines().skip(1).find(|line| line.split_whitespace().nth(1) == Some(wanted.as_str()))?;
    line.split_whitespace().next().map(str::to_owned)
}

fn remove_network(shared: &Arc<Shared>, name: &NetworkName) {
    let removed = shared.netd.remove_networks(&[NetworkId(name.0.clone())]);
    let mut state = shared.lock();
    state.observed.busy_networks.remove(name);
    match removed {
        Ok(()) => {
            state.observed.networks.remove(name);
            state.networks_removed.push(name.clone());
        }
        Err(e) => tracing::warn!(network = %name, error = chain(&e), "a network could not be removed"),
    }
}

fn create_volume(shared: &Arc<Shared>, name: &str) {
    let volume = shared.lock().assignment.volumes.iter().find(|v| v.name == *name).cloned();
    let made = match volume {
        Some(volume) if volume.external => match shared.engine.volumes().inspect(name) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "volume {name} is declared external and does not exist; make it with `orch volume create {name}`"
            )),
        },
        Some(volume) if !matches!(volume.driver.as_str(), "" | "local") => {
            Err(format!("volume {name}: there is no volume driver `{}`, only `local`", volume.driver))
        }
        Some(volume) if bound_path(&volume).is_some() => Ok(()),
        Some(volume) if !volume.driver_opts.is_empty() => Err(format!(
            "volume {name}: of the local driver's options only `type: none`, `o: bind`, `device: /path` is supported"
        )),
        Some(volume) => match shared.engine.volumes().inspect(name) {
            Ok(_) => Ok(()),
            Err(_) => shared.engine.volumes().create(name, volume.labels).map(drop).map_err(|e| chain(&e)),
        },
        None => Ok(()),
    };
    let mut state = shared.lock();
    state.observed.busy_volumes.remove(name);
    match made {
        Ok(()) => {
            state.observed.volumes.insert(name.to_owned());
            state.observed.failures.remove(name);
        }
        Err(why) => {
            state.observed.failures.insert(name.to_owned(), why);
        }
    }
}

/// The host's path that a volume of the local driver is, if it is one.
fn bound_path(volume: &VolumeAssignment) -> Option<PathBuf> {
    let bind = volume.driver_opts.get("o").is_some_and(|o| o.split(',').any(|o| matches!(o, "bind" | "rbind")));
    volume.driver_opts.get("device").filter(|device| bind && device.starts_with('/')).map(PathBuf::from)
}

fn remove_volume(shared: &Arc<Shared>, name: &str) {
    let removed = match shared.engine.remove_volume(name) {
        Ok(()) | Err(EngineError::NotFound { .. }) => None,
        Err(e) => Some(chain(&e)),
    };
    let mut state = shared.lock();
    state.observed.busy_volumes.remove(name);
    state.observed.volumes.remove(name);
    state.volumes_removed.push((name.to_owned(), removed));
}

fn failure(shared: &Arc<Shared>, task: &TaskAssignment) -> Option<String> {
    let state = shared.lock();
    let networks = crate::plan::networks_of(task).map(NetworkName::as_str);
    let names = networks.chain(task.volumes.values().map(String::as_str)).chain([task.image_id.as_str()]);
    names.filter_map(|name| state.observed.failures.get(name)).next().cloned()
}

fn create_container(shared: &Arc<Shared>, task: &TaskAssignment) -> Result<(), Trouble> {
    if let Some(why) = failure(shared, task) {
        // The next attempt looks anew: somebody may have mended it.
        let mut state = shared.lock();
        let names: Vec<String> =
            crate::plan::networks_of(task).map(|n| n.0.clone()).chain(task.volumes.values().cloned()).collect();
        for name in names.into_iter().chain([task.image_id.clone()]) {
            state.observed.failures.remove(&name);
        }
        return Err(Trouble { message: why, code: 125 });
    }
    let reference = if task.image_id.is_empty() { &task.spec.image } else { &task.image_id };
    let image = match shared.engine.images().resolve(reference) {
        // Somebody else may have it: the loop fetches it, for all tasks that need it.
        Err(ImageError::NotFound(_)) if !task.image_id.is_empty() && !task.stack.is_empty() => {
            shared.lock().observed.images.entry(task.image_id.clone()).or_default();
            return Ok(());
        }
        found => found.map_err(|e| Trouble::new(&e))?,
    };
    let (containers, bound_volumes, cluster, owner, lenders, ephemeral) = {
        let state = shared.lock();
        let bound = |v: &VolumeAssignment| Some((v.name.clone(), bound_path(v)?));
        let lenders: Vec<_> = crate::plan::lenders(task, state.desired().into_iter())
            .map(|(lender, read_only)| (lender.id.clone(), read_only))
            .collect();
        let joined = [&task.pid_of, &task.ipc_of].into_iter().flatten();
        (
            state.containers_of(joined.chain(lenders.iter().map(|(lender, _)| lender))),
            state.assignment.volumes.iter().filter_map(bound).collect(),
            state.assignment.cluster.clone(),
            match &task.network {
                TaskNetwork::Task(owner) => state.task(owner).cloned(),
                _ => None,
            },
            lenders,
            state.locals.get(&task.id).is_some_and(|local| local.auto_remove),
        )
    };
    let mut lent = Vec::new();
    for (lender, read_only) in lenders {
        let Some(container) = containers.get(&lender) else { continue };
        let config = shared.engine.inspect(container)?.config;
        lent.extend(crate::lower::lent(&config.mounts, read_only));
    }
    let gateway = gateway(shared, owner.as_ref().unwrap_or(task));
    let resolv_conf = resolv_conf(shared, task, owner.as_ref());
    let id = if task.stack.is_empty() { ContainerId(task.id.to_string()) } else { ContainerId(random_id()) };
    let image_id = image.id.to_string();
    let context = LowerContext {
        id: id.clone(),
        image_id: &image_id,
        image: &image.config,
        containers: &containers,
        host: host_names(),
        lent,
        network_owner: owner.as_ref().and_then(|owner| Some((owner, containers.get(&owner.id)?.clone()))),
        host_gateway: gateway,
        resolv_conf,
        bound_volumes: &bound_volumes,
        cluster: &cluster,
        now: i64::try_from(now_ms().saturating_mul(1_000_000)).unwrap_or(i64::MAX),
        ephemeral,
    };
    let config = lower(task, &context).map_err(|e| Trouble::new(&e))?;
    shared.engine.create(config)?;
    refresh(shared, &id);
    Ok(())
}

/// What `host-gateway` means: the bridge's address of the network with the default route.
fn gateway(shared: &Arc<Shared>, task: &TaskAssignment) -> Option<IpAddr> {
    let TaskNetwork::Endpoints { endpoints, .. } = &task.network else { return Some(IpAddr::from([127, 0, 0, 1])) };
    let best = endpoints.iter().max_by(|a, b| a.gw_priority.cmp(&b.gw_priority).then(b.network.cmp(&a.network)))?;
    let state = shared.lock();
    state.assignment.networks.iter().find(|n| n.name == best.network)?.gateway4.map(IpAddr::V4)
}

/// What the host calls itself and others; empty where it does not say.
fn host_names() -> HostNames {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    HostNames { hostname: read("/proc/sys/kernel/hostname").trim().to_owned(), hosts: read("/etc/hosts") }
}

/// /etc/resolv.conf. A guest of another task's network asks as that one does, unless it says otherwise itself.
fn resolv_conf(shared: &Arc<Shared>, task: &TaskAssignment, owner: Option<&TaskAssignment>) -> String {
    let host = shared.dns.host_resolv_conf();
    let said = |task: &&TaskAssignment| {
        !(task.spec.dns.is_empty() && task.spec.dns_search.is_empty() && task.spec.dns_opt.is_empty())
    };
    let spec = &[Some(task), owner].into_iter().flatten().find(said).unwrap_or(task).spec;
    let overrides = ResolvOverrides {
        dns: spec.dns.iter().filter_map(|text| text.parse().ok()).collect(),
        dns_search: spec.dns_search.clone(),
        dns_opt: spec.dns_opt.clone(),
    };
    match &owner.unwrap_or(task).network {
        TaskNetwork::Endpoints { .. } | TaskNetwork::Task(_) => resolv_conf::embedded(&host, &overrides),
        TaskNetwork::None | TaskNetwork::Host => resolv_conf::host(&host, &overrides),
    }
}

/// 64 random hexadecimal digits.
pub(crate) fn random_id() -> String {
    let mut bytes = [0u8; 32];
    // getrandom(2) does not fail for so few bytes once the pool is initialised, which it is before any agent runs.
    if let Ok(mut file) = std::fs::File::open("/dev/urandom") {
        use std::io::Read;
        let _ = file.read_exact(&mut bytes);
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn start_container(shared: &Arc<Shared>, task: &TaskAssignment, cause: StartCause) -> Result<(), Trouble> {
    let Some(container) = container_of(shared, &task.id) else { return Ok(()) };
    count_start(shared, task, cause);
    let begun = Instant::now();
    let network = match &task.network {
        TaskNetwork::None => NetworkNs::None,
        TaskNetwork::Host => NetworkNs::Host,
        TaskNetwork::Task(owner) => {
            let path = owner_namespace(shared, owner).ok_or_else(|| Trouble {
                message: format!("the network namespace of task {owner}, which it shares, is not there"),
                code: 125,
            })?;
            NetworkNs::Path(path)
        }
        TaskNetwork::Endpoints { endpoints, ports } => NetworkNs::Path(sandbox(shared, task, endpoints, ports)?),
    };
    if let Some(seen) = shared.lock().observed.tasks.get_mut(&task.id) {
        seen.network_time = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    }
    if !task.files.is_empty() {
        shared.engine.supply_files(&container, &crate::lower::files(task))?;
    }
    let started = shared.engine.start(&container, Some(network));
    refresh(shared, &container);
    started?;
    Ok(())
}

/// The namespace that a guest of this task joins; a task on the host's network lends that.
fn owner_namespace(shared: &Arc<Shared>, owner: &TaskId) -> Option<PathBuf> {
    if let Some(sandbox) = shared.netd.sandbox(&SandboxId(owner.to_string())) {
        return Some(sandbox.netns);
    }
    let pid = shared.lock().observed.tasks.get(owner)?.container.as_ref()?.pid?;
    Some(PathBuf::from(format!("/proc/{pid}/ns/net")))
}

fn count_start(shared: &Arc<Shared>, task: &TaskAssignment, cause: StartCause) {
    let mut state = shared.lock();
    let Some(seen) = state.observed.tasks.get_mut(&task.id) else { return };
    let record = &mut seen.record;
    record.stopped_by_request = false;
    record.error = None;
    match cause {
        StartCause::Policy => record.restarts = record.restarts.saturating_add(1),
        StartCause::Asked | StartCause::Desired => record.short_runs = 0,
    }
    record.restart_generation = task.restart_generation;
    seen.health = Health::None;
    seen.health_output.clear();
    drop(state);
    save(shared, &task.id);
}

/// The task's namespace: made when it is missing, with its ports published and its name server listening.
fn sandbox(
    shared: &Arc<Shared>,
    task: &TaskAssignment,
    endpoints: &[EndpointAssignment],
    ports: &[PortAssignment],
) -> Result<PathBuf, Trouble> {
    let id = SandboxId(task.id.to_string());
    let sandbox = match shared.netd.sandbox(&id) {
        Some(sandbox) => sandbox,
        None => shared.netd.create_sandbox(&SandboxConfig {
            id: id.clone(),
            endpoints: endpoints.iter().map(lower_endpoint).collect::<Result<_, _>>()?,
            ports: ports.iter().map(lower_port).collect::<Result<_, _>>()?,
            // Docker's defaults of a namespace of its own: low ports and ping need no capability.
            sysctls: vec![
                ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
                ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()),
            ],
        })?,
    };
    let published = sandbox
        .ports
        .iter()
        .map(|p| PublishedPort {
            host_ip: p.host_ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string()),
            published: p.host_port,
            target: p.target,
            protocol: p.protocol.to_string(),
        })
        .collect();
    if let Some(seen) = shared.lock().observed.tasks.get_mut(&task.id) {
        seen.sandbox = true;
        seen.attached = sandbox.endpoints.iter().map(|endpoint| NetworkName(endpoint.network.0.clone())).collect();
        seen.unattached.clear();
        seen.record.ports = published;
    }
    shared.dns.set_sandbox(id.clone(), names::sandbox(task));
    shared.dns.attach(id, &sandbox.netns).map_err(|e| Trouble::new(&e))?;
    Ok(sandbox.netns)
}

fn lower_endpoint(endpoint: &EndpointAssignment) -> Result<EndpointConfig, Trouble> {
    let mac = endpoint
        .mac
        .as_deref()
        .map(|text| text.parse().map_err(|_| Trouble { message: format!("`{text}` is not a MAC address"), code: 125 }));
    Ok(EndpointConfig {
        network: NetworkId(endpoint.network.0.clone()),
        ipv4: endpoint.ipv4,
        ipv6: endpoint.ipv6,
        mac: mac.transpose()?,
        interface: endpoint.interface_name.clone(),
        gateway_priority: endpoint.gw_priority,
    })
}

fn lower_port(port: &PortAssignment) -> Result<PortRequest, Trouble> {
    let protocol = match port.protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => {
            return Err(Trouble { message: format!("`{other}` is not a protocol that can be published"), code: 125 });
        }
    };
    Ok(PortRequest { host_ip: port.host_ip, host_ports: port.host_ports, target: port.target, protocol })
}

fn stop_container(shared: &Arc<Shared>, id: &TaskId, by_request: bool) {
    let task = shared.lock().task(id).cloned();
    if let Some(container) = container_of(shared, id) {
        if by_request {
            if let Some(seen) = shared.lock().observed.tasks.get_mut(id) {
                seen.record.stopped_by_request = true;
            }
            // Of a task that goes nothing need be remembered.
            if task.as_ref().is_some_and(|task| task.desired != DesiredTask::Removed) {
                save(shared, id);
            }
        }
        let signal = task.as_ref().and_then(|t| t.stop_signal.as_deref()).and_then(parse_signal);
        let timeout = task.as_ref().and_then(|t| t.stop_timeout);
        if let Err(e) = shared.engine.stop(&container, signal, timeout) {
            tracing::warn!(task = %id, error = chain(&e), "stopping failed");
        }
        refresh(shared, &container);
    }
    finish(shared, id);
}

fn remove_sandbox(shared: &Arc<Shared>, id: &TaskId) {
    let sandbox = SandboxId(id.to_string());
    shared.dns.detach(&sandbox);
    shared.dns.remove_sandbox(&sandbox);
    shared.removals.remove(&shared.netd, sandbox.clone());
    if let Some(seen) = shared.lock().observed.tasks.get_mut(id) {
        seen.sandbox = shared.netd.sandbox(&sandbox).is_some();
        if !seen.sandbox {
            seen.attached.clear();
        }
        seen.unattached.clear();
        seen.record.ports.clear();
    }
}

fn remove_container(shared: &Arc<Shared>, id: &TaskId) {
    let (container, volumes) = {
        let state = shared.lock();
        let volumes = state.task(id).is_some_and(|t| t.remove_volumes || t.one_off);
        (state.observed.tasks.get(id).and_then(|t| t.container.as_ref()).map(|c| c.id.clone()), volumes)
    };
    remove_sandbox(shared, id);
    if let Some(container) = container {
        match shared.engine.remove(&container, true, volumes) {
            Ok(()) | Err(EngineError::NotFound { .. }) => {
                if let Some(seen) = shared.lock().observed.tasks.get_mut(id) {
                    seen.container = None;
                }
            }
            Err(e) => {
                tracing::warn!(task = %id, error = chain(&e), "a container could not be removed");
                let info = shared.engine.inspect(&container).ok();
                if let Some(seen) = shared.lock().observed.tasks.get_mut(id) {
                    seen.container = info.as_ref().and_then(observed);
                }
            }
        }
    }
    finish(shared, id);
}

/// Compares what netd has with what shall be, and mends what somebody meddled with.
pub(crate) fn repair_networks(shared: &Arc<Shared>) {
    let desired = {
        let state = shared.lock();
        if !state.assigned || !state.observed.busy_networks.is_empty() {
            return;
        }
        if state.observed.tasks.values().any(|t| t.activity.is_some()) {
            return;
        }
        let by_name: BTreeMap<&NetworkName, &NetworkAssignment> =
            state.assignment.networks.iter().map(|n| (&n.name, n)).collect();
        let networks = state.observed.networks.iter().filter_map(|n| lower_network(by_name.get(n)?).ok()).collect();
        let sandboxes = shared.netd.sandboxes().into_iter().map(|s| s.config).collect();
        orch_netd::config::DesiredNetworking { networks, sandboxes }
    };
    match shared.netd.sync(&desired) {
        Ok(report) if !report.done.is_empty() => {
            tracing::warn!(repaired = report.done.len(), "networks had been changed by others and were mended");
        }
        Ok(_) => {}
        Err(e) => tracing::warn!(error = chain(&e), "networks could not be looked after"),
    }
}
