//! Containers that belong to no stack: each is a little assignment of its own that the same loop carries out.

use std::collections::BTreeMap;
use std::sync::Arc;

use orch_api::control::{AddressRequest, NetworkConnect};
use orch_api::error::ErrorDetail;
use orch_api::node::{ContainerRequest, Created};
use orch_engine::config::ContainerId;
use orch_engine::image::{Image, ImageError};
use orch_spec::assignment::{
    DesiredTask, EndpointAssignment, NetworkName, PortAssignment, TaskAssignment, TaskId, TaskNetwork,
};
use orch_spec::model::{ExposeSpec, MountSource, NamespaceMode, NetworkMode, PortSpec, ServiceSpec};

use crate::execute::random_id;
use crate::fetch::fetch_named;
use crate::record::LocalTask;
use crate::{Shared, chain};

/// The network of containers that name none.
pub(crate) const DEFAULT_NETWORK: &str = "bridge";

/// Makes a container of no stack known; the loop does the rest.
///
/// # Errors
/// A name that is taken, an image or network that is not there, a request that makes no sense.
pub(crate) async fn create(
    shared: &Arc<Shared>,
    mut request: ContainerRequest,
    desired: DesiredTask,
) -> Result<Created, ErrorDetail> {
    let id = random_id();
    let image = image(shared, &request.spec.image).await?;
    if request.publish_all {
        publish_all(&mut request.spec, image.config.exposed_ports.keys());
    }
    for lender in &mut request.spec.volumes_from {
        let found = find(shared, &lender.source)?;
        lender.source.clone_from(&shared.engine.inspect(&found).map_err(|e| failed(&e))?.config.name);
        lender.container = true;
    }
    let name = claim_name(shared, &request.name, &id)?;
    let made = assemble(shared, &request.spec, &id, &name).await;
    let (network, reserved) = match made {
        Ok(made) => made,
        Err(e) => {
            shared.lock().names.remove(&name);
            return Err(e);
        }
    };
    let volumes = volumes(&request.spec);
    let task = TaskAssignment {
        id: TaskId::from(id.as_str()),
        stack: String::new(),
        service: String::new(),
        slot: 0,
        container_name: name.clone(),
        spec: Arc::new(request.spec),
        spec_hash: String::new(),
        image_id: image.id.to_string(),
        desired,
        restart_generation: 0,
        stop_timeout: None,
        stop_signal: None,
        remove_volumes: request.auto_remove,
        network,
        pid_of: None,
        ipc_of: None,
        volumes,
        files: Vec::new(),
        renew_anonymous_volumes: false,
        one_off: false,
        comes_back: false,
    };
    let local = LocalTask { task, auto_remove: request.auto_remove, reserved };
    let written = shared.records.write_local(&local);
    let mut state = shared.lock();
    state.names.remove(&name);
    written.map_err(|e| ErrorDetail::new("failed", chain(&e)).with_exit_code(125))?;
    state.locals.insert(TaskId::from(id.as_str()), local);
    drop(state);
    shared.touch();
    Ok(Created { id, name })
}

/// The image of this name, fetched if only another node has it.
async fn image(shared: &Arc<Shared>, name: &str) -> Result<Image, ErrorDetail> {
    let images = shared.engine.images();
    let mut found = images.resolve(name);
    if matches!(found, Err(ImageError::NotFound(_))) {
        let text = |why| format!("image {name} could not be fetched from another node: {why}");
        let fetched = fetch_named(shared, name).await;
        if fetched.map_err(|why| ErrorDetail::new("failed", text(why)).with_exit_code(125))? {
            found = images.resolve(name);
        }
    }
    found.map_err(|e| {
        let detail = ErrorDetail::new("image_missing", chain(&e));
        ErrorDetail { subjects: [name.to_owned()].into(), ..detail }
            .with_exit_code(125)
            .with_hint("`orch image ls` shows what there is; `orch image load` and `orch image import` bring more")
    })
}

fn failed(error: &dyn std::error::Error) -> ErrorDetail {
    ErrorDetail::new("failed", chain(error)).with_exit_code(125)
}

/// Adds the ports that the image and `expose` name and that are not published otherwise: `80/tcp`, `8000-8010/udp`.
fn publish_all<'i>(spec: &mut ServiceSpec, exposed: impl Iterator<Item = &'i String>) {
    // What an image calls a port may be none.
    let mut wanted: Vec<ExposeSpec> = exposed.filter_map(|text| text.parse().ok()).collect();
    wanted.extend(spec.expose.iter().cloned());
    for ExposeSpec { start, end, protocol } in wanted {
        for target in start..=end {
            if !spec.ports.iter().any(|port| port.target == target && port.protocol == protocol) {
                spec.ports.push(PortSpec { target, protocol, ..PortSpec::default() });
            }
        }
    }
}

/// Takes a name, or makes one up.
fn claim_name(shared: &Arc<Shared>, wanted: &str, id: &str) -> Result<String, ErrorDetail> {
    let valid = |name: &str| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    let name = if wanted.is_empty() { made_up(id) } else { wanted.to_owned() };
    if !valid(&name) {
        let message = format!(
            "`{name}` is not a name for a container: letters, digits, `_`, `.` and `-`, a letter or digit first"
        );
        return Err(ErrorDetail::new("invalid", message).with_exit_code(125));
    }
    let taken = shared.engine.list().iter().any(|i| i.config.name == name);
    let mut state = shared.lock();
    // One that is removed has its name until its container is gone, which is when whoever removed it is told.
    let there = |id: &TaskId| state.observed.tasks.get(id).is_some_and(|seen| seen.container.is_some());
    let holds = |t: &&TaskAssignment| t.container_name == name && (t.desired != DesiredTask::Removed || there(&t.id));
    let desired = state.desired().iter().any(holds);
    if taken || desired || !state.names.insert(name.clone()) {
        return Err(ErrorDetail::new("conflict", format!("a container named {name} exists already"))
            .with_exit_code(125)
            .with_hint(format!("choose another --name, or remove it with `orch container rm {name}`")));
    }
    Ok(name)
}

/// Two words and the beginning of the id: easy to say, and unique enough to be claimed at the first try.
fn made_up(id: &str) -> String {
    const FIRST: [&str; 16] = [
        "brisk", "calm", "clear", "deft", "eager", "fair", "fleet", "glad", "keen", "light", "neat", "prompt", "quick",
        "sharp", "spry", "swift",
    ];
    const SECOND: [&str; 16] = [
        "badger", "crane", "dolphin", "falcon", "finch", "gecko", "heron", "ibis", "lynx", "marten", "otter", "plover",
        "raven", "seal", "swan", "wren",
    ];
    let digit = |at: usize| id.as_bytes().get(at).and_then(|b| char::from(*b).to_digit(16)).unwrap_or(0) as usize;
    format!("{}-{}-{}", FIRST[digit(0)], SECOND[digit(1)], &id[2..8])
}

/// Named volumes by the name in the request; they are global, so the key is the name.
fn volumes(spec: &ServiceSpec) -> BTreeMap<String, String> {
    spec.volumes
        .iter()
        .filter_map(|mount| match &mount.source {
            MountSource::Volume { name: Some(name), .. } => Some((name.clone(), name.clone())),
            _ => None,
        })
        .collect()
}

async fn assemble(
    shared: &Arc<Shared>,
    spec: &ServiceSpec,
    id: &str,
    name: &str,
) -> Result<(TaskNetwork, Vec<String>), ErrorDetail> {
    for volume in volumes(spec).keys() {
        ensure_volume(shared, volume)?;
    }
    for mode in [&spec.pid, &spec.ipc] {
        if let NamespaceMode::Container(other) = mode {
            find(shared, other)?;
        }
    }
    let names: Vec<String> = match &spec.network_mode {
        NetworkMode::None => return Ok((TaskNetwork::None, Vec::new())),
        NetworkMode::Host => {
            if !spec.ports.is_empty() {
                let message = "ports cannot be published by a container on the host's network";
                return Err(ErrorDetail::new("invalid", message)
                    .with_exit_code(125)
                    .with_hint("it has the host's ports already"));
            }
            return Ok((TaskNetwork::Host, Vec::new()));
        }
        NetworkMode::Container(other) | NetworkMode::Service(other) => {
            let owner = find(shared, other)?;
            let state = shared.lock();
            let task = state.task_of(&owner).cloned().unwrap_or_else(|| TaskId::from(owner.0.as_str()));
            return Ok((TaskNetwork::Task(task), Vec::new()));
        }
        NetworkMode::Bridge => vec![DEFAULT_NETWORK.to_owned()],
        NetworkMode::Network(network) => vec![network.clone()],
        NetworkMode::Stack => spec.networks.keys().cloned().collect(),
    };
    let mut endpoints = Vec::new();
    let mut reserved = Vec::new();
    for (order, network) in names.into_iter().enumerate() {
        let attachment = spec.networks.get(&network);
        let v4 = |a: std::net::IpAddr| if let std::net::IpAddr::V4(a) = a { Some(a) } else { None };
        let v6 = |a: std::net::IpAddr| if let std::net::IpAddr::V6(a) = a { Some(a) } else { None };
        let mac = attachment.and_then(|a| a.mac_address.clone());
        let mac = mac.or_else(|| spec.mac_address.clone().filter(|_| order == 0));
        let request = AddressRequest {
            holder: id.to_owned(),
            name: name.to_owned(),
            aliases: attachment.map(|a| a.aliases.clone()).unwrap_or_default(),
            ipv4: attachment.and_then(|a| a.ipv4_address).and_then(v4),
            ipv6: attachment.and_then(|a| a.ipv6_address).and_then(v6),
            mac: mac.clone(),
        };
        let address = shared.control.reserve_address(network.clone(), request).await.map_err(|e| e.with_exit_code(125));
        let address = match address {
            Ok(address) => address,
            Err(e) => {
                release(shared.clone(), id.to_owned(), reserved);
                return Err(e);
            }
        };
        reserved.push(network.clone());
        endpoints.push(EndpointAssignment {
            network: NetworkName(network),
            ipv4: address.ipv4,
            ipv6: address.ipv6,
            mac,
            interface_name: attachment.and_then(|a| a.interface_name.clone()),
            gw_priority: attachment.map_or(0, |a| a.gw_priority),
            links: BTreeMap::new(),
        });
    }
    let ports = spec
        .ports
        .iter()
        .map(|port| PortAssignment {
            host_ip: port.host_ip,
            host_ports: port.published.map_or((0, 0), |p| (p.start, p.end)),
            target: port.target,
            protocol: port.protocol.to_string(),
        })
        .collect();
    Ok((TaskNetwork::Endpoints { endpoints, ports }, reserved))
}

/// Takes a container of no stack onto a further network; the loop wires it.
///
/// # Errors
/// When there is no such container or network, it has no network of its own, is on this one already, or the address is taken.
pub(crate) async fn connect(shared: &Arc<Shared>, id: &TaskId, request: NetworkConnect) -> Result<(), ErrorDetail> {
    let name = on_networks(shared, id, |endpoints, name| {
        let there = endpoints.iter().any(|endpoint| endpoint.network.0 == request.network);
        let message = format!("network {}: {name} is on it already", request.network);
        if there { Err(ErrorDetail::new("conflict", message)) } else { Ok(name.to_owned()) }
    })?;
    let asked = AddressRequest {
        holder: id.to_string(),
        name,
        aliases: request.aliases,
        ipv4: request.ipv4,
        ipv6: request.ipv6,
        mac: None,
    };
    let network = request.network;
    let address = shared.control.reserve_address(network.clone(), asked).await?;
    let endpoint = EndpointAssignment {
        network: NetworkName(network.clone()),
        ipv4: address.ipv4,
        ipv6: address.ipv6,
        mac: None,
        interface_name: None,
        gw_priority: 0,
        links: BTreeMap::new(),
    };
    let added = rewire(shared, id, |local, endpoints| {
        endpoints.push(endpoint);
        if !local.reserved.contains(&network) {
            local.reserved.push(network.clone());
        }
    });
    if added.is_err() {
        // It went meanwhile.
        release(shared.clone(), id.to_string(), vec![network]);
    }
    added
}

/// Takes a container of no stack off a network; the loop unwires it, and then its address is free.
///
/// # Errors
/// When there is no such container, or it is not on the network.
pub(crate) async fn disconnect(shared: &Arc<Shared>, id: &TaskId, network: &str) -> Result<(), ErrorDetail> {
    on_networks(shared, id, |endpoints, name| {
        let there = endpoints.iter().any(|endpoint| endpoint.network.0 == network);
        let message = format!("network {network}: {name} is not on it");
        if there { Ok(()) } else { Err(ErrorDetail::new("not_found", message)) }
    })?;
    rewire(shared, id, |_, endpoints| endpoints.retain(|endpoint| endpoint.network.0 != network))?;
    let mut version = shared.version.subscribe();
    let attached = |id: &TaskId| {
        let state = shared.lock();
        state.observed.tasks.get(id).is_some_and(|seen| seen.attached.iter().any(|name| name.0 == network))
    };
    while attached(id) && version.changed().await.is_ok() {}
    shared.control.release_address(network.to_owned(), id.to_string()).await?;
    // Only now: else an agent that dies in between would never give it back.
    rewire(shared, id, |local, _| local.reserved.retain(|reserved| reserved != network))
}

/// Looks at the endpoints of a container of no stack that has a network of its own, and at its name.
fn on_networks<T>(
    shared: &Arc<Shared>,
    id: &TaskId,
    look: impl FnOnce(&[EndpointAssignment], &str) -> Result<T, ErrorDetail>,
) -> Result<T, ErrorDetail> {
    let state = shared.lock();
    let Some(local) = state.locals.get(id) else {
        return Err(ErrorDetail::new("conflict", format!("container {id} belongs to a stack"))
            .with_hint("its networks are the control plane's: ask for them by its task"));
    };
    let name = &local.task.container_name;
    let has = match &local.task.network {
        TaskNetwork::Endpoints { endpoints, .. } => return look(endpoints, name),
        TaskNetwork::Host => "the host's network",
        TaskNetwork::Task(_) => "the network of another container",
        TaskNetwork::None => "no network",
    };
    Err(ErrorDetail::new("conflict", format!("container {name} has {has}, so it cannot be on further ones")))
}

/// Changes the endpoints of a container of no stack, and writes that down.
fn rewire(
    shared: &Arc<Shared>,
    id: &TaskId,
    change: impl FnOnce(&mut LocalTask, &mut Vec<EndpointAssignment>),
) -> Result<(), ErrorDetail> {
    let mut state = shared.lock();
    let gone = || ErrorDetail::new("not_found", format!("no such container: {id}"));
    let local = state.locals.get_mut(id).filter(|local| local.task.desired != DesiredTask::Removed).ok_or_else(gone)?;
    let TaskNetwork::Endpoints { mut endpoints, ports } = std::mem::replace(&mut local.task.network, TaskNetwork::None)
    else {
        return Err(gone());
    };
    change(local, &mut endpoints);
    local.task.network = TaskNetwork::Endpoints { endpoints, ports };
    let local = local.clone();
    if let Some(seen) = state.observed.tasks.get_mut(id) {
        seen.unattached.clear();
    }
    let written = shared.records.write_local(&local);
    drop(state);
    shared.touch();
    written.map_err(|e| ErrorDetail::new("failed", chain(&e)))
}

fn ensure_volume(shared: &Arc<Shared>, name: &str) -> Result<(), ErrorDetail> {
    let volumes = shared.engine.volumes();
    if volumes.inspect(name).is_err()
        && let Err(e) = volumes.create(name, BTreeMap::new())
        && volumes.inspect(name).is_err()
    {
        return Err(ErrorDetail::new("failed", chain(&e)).with_exit_code(125));
    }
    shared.lock().observed.volumes.insert(name.to_owned());
    Ok(())
}

fn find(shared: &Arc<Shared>, reference: &str) -> Result<ContainerId, ErrorDetail> {
    shared.engine.find(reference).map_err(|e| ErrorDetail::new("not_found", chain(&e)).with_exit_code(125))
}

/// A container of no stack is gone for good: gives its addresses back.
pub(crate) fn forgotten(shared: &Arc<Shared>, id: &TaskId) {
    let local = shared.lock().locals.remove(id);
    if let Some(local) = local {
        // Whoever waits for it to be gone looks again.
        shared.touch();
        let (inner, id) = (shared.clone(), id.clone());
        release(shared.clone(), id.to_string(), local.reserved);
        // Nobody waits for that: no id is used twice.
        tokio::task::spawn_blocking(move || inner.records.remove_local(&id));
    }
}

fn release(shared: Arc<Shared>, holder: String, networks: Vec<String>) {
    if networks.is_empty() {
        return;
    }
    tokio::spawn(async move {
        for network in networks {
            if let Err(e) = shared.control.release_address(network, holder.clone()).await {
                tracing::warn!(container = holder, error = %e, "an address could not be given back");
            }
        }
    });
}

/// Changes what a container of no stack shall be.
///
/// # Errors
/// When there is none of this id.
pub(crate) fn change(
    shared: &Arc<Shared>,
    id: &TaskId,
    change: impl FnOnce(&mut TaskAssignment),
) -> Result<(), ErrorDetail> {
    let mut state = shared.lock();
    let Some(local) = state.locals.get_mut(id) else {
        return Err(ErrorDetail::new("conflict", format!("container {id} belongs to a stack"))
            .with_hint("use the verbs of the stack: `orch stop`, `orch start`, `orch rm`"));
    };
    change(&mut local.task);
    let local = local.clone();
    // What went wrong before is answered by what is asked now.
    state.errors.remove(id);
    let written = shared.records.write_local(&local);
    drop(state);
    shared.touch();
    written.map_err(|e| ErrorDetail::new("failed", chain(&e)))
}
