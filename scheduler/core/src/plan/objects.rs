//! Networks and volumes: those that a stack needs, and those made by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;

use orch_spec::assignment::NetworkName;
use orch_spec::model::{StackSpec, VolumeSpec};

use super::allocate::{self, Claim};
use super::draft::Draft;
use super::revision::{BRIDGE, network_spec};
use super::{Moment, Planned, ResourceKind, Verb};
use crate::command::{NewNetwork, NewVolume, ReserveAddress};
use crate::error::{Clash, Missing, Refusal, SpecFault};
use crate::state::{
    Network, NetworkDefinition, NetworkPhase, Reservation, Revision, State, Volume, reservation_holder,
};

/// Longest name of a network, volume or container. Linux wants file names below 256 bytes, and other things are added to it.
const LONGEST_NAME: usize = 200;

/// Letters, digits, `.`, `-`, `_`, not beginning with a sign.
pub(crate) fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    name.len() <= LONGEST_NAME
        && letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_'))
}

/// Sees to it that the networks exist that a specification uses.
pub(crate) fn ensure_networks(
    draft: &mut Draft<'_>,
    stack: &StackSpec,
    revision: &Revision,
    endpoints: &BTreeMap<NetworkName, usize>,
) -> Result<(), Refusal> {
    for (key, name) in &revision.networks {
        if !draft.seen.insert((ResourceKind::Network, name.0.clone())) {
            continue;
        }
        if !is_name(name.as_str()) {
            return Err(SpecFault::Name { kind: "network", name: name.0.clone() }.into());
        }
        let spec = network_spec(stack, key).filter(|spec| spec.name == name.0);
        let count = endpoints.get(name).copied().unwrap_or(1);
        match spec {
            Some(spec) if spec.external => require_network(draft, key, name)?,
            Some(spec) => ensure_network(draft, key, name, NetworkDefinition::from(&spec), count)?,
            None if name.as_str() == BRIDGE => {
                if draft.network(name).is_none() {
                    add_network(draft, "", BRIDGE, name, NetworkDefinition::default(), count)?;
                }
            }
            None => require_network(draft, key, name)?,
        }
        if draft.network(name).is_some() {
            reserve_declared(draft, stack, key, name);
        }
    }
    Ok(())
}

fn require_network(draft: &Draft<'_>, key: &str, name: &NetworkName) -> Result<(), Refusal> {
    match draft.network(name) {
        Some(network) if network.phase != NetworkPhase::Removing => Ok(()),
        _ => {
            let (name, key, stack) = (name.0.clone(), key.to_owned(), draft.stack.name.clone());
            Err(Missing::External { kind: "network", name, key, stack }.into())
        }
    }
}

fn ensure_network(
    draft: &mut Draft<'_>,
    key: &str,
    name: &NetworkName,
    definition: NetworkDefinition,
    endpoints: usize,
) -> Result<(), Refusal> {
    let Some(present) = draft.network(name) else {
        let stack = draft.stack.name.clone();
        return add_network(draft, &stack, key, name, definition, endpoints);
    };
    if present.stack != draft.stack.name {
        let owner = if present.stack.is_empty() {
            "nobody (it was made by hand)".to_owned()
        } else {
            format!("stack {}", present.stack)
        };
        let (name, stack) = (name.0.clone(), draft.stack.name.clone());
        return Err(Clash::Owner { kind: "network", name, owner, stack }.into());
    }
    let removing = present.phase == NetworkPhase::Removing;
    let change = changed(&present.planned().definition, &definition);
    if change.is_empty() && !removing {
        if present.planned().definition.labels != definition.labels {
            draft.network_mut(name).planned_mut().definition.labels = definition.labels;
        }
        return Ok(());
    }
    replace_network(draft, key, name, definition, endpoints, &change)
}

/// The network goes, and another one comes under its name: possible when only this stack is on it.
fn replace_network(
    draft: &mut Draft<'_>,
    key: &str,
    name: &NetworkName,
    definition: NetworkDefinition,
    endpoints: usize,
    change: &str,
) -> Result<(), Refusal> {
    let present = draft.network(name).expect("only a network that exists is replaced");
    let strangers = present.users.iter().filter_map(|id| draft.task(id)).filter(|task| task.stack != draft.stack.name);
    let mut users: Vec<String> = strangers.map(|task| task.container_name.clone()).collect();
    users.extend(present.reservations.values().map(|reservation| reservation.name.clone()));
    if !users.is_empty() {
        return Err(Clash::NetworkShared { name: name.0.clone(), change: change.to_owned(), users }.into());
    }
    let (pool4, pool6) = allocate::pools(draft, name, &definition, endpoints)?;
    let (stack, key, created_at) = (draft.stack.name.clone(), key.to_owned(), draft.moment.now_ms);
    let successor =
        Network { name: name.clone(), stack, key, definition, pool4, pool6, created_at, ..Network::default() };
    draft.network_mut(name).phase = NetworkPhase::Replacing(Box::new(successor));
    let cause = if change.is_empty() { "it was being removed".to_owned() } else { change.to_owned() };
    draft.object_operation(Verb::Recreate, ResourceKind::Network, name.as_str(), cause);
    Ok(())
}

fn add_network(
    draft: &mut Draft<'_>,
    stack: &str,
    key: &str,
    name: &NetworkName,
    definition: NetworkDefinition,
    endpoints: usize,
) -> Result<(), Refusal> {
    let (pool4, pool6) = allocate::pools(draft, name, &definition, endpoints)?;
    let network = Network {
        name: name.clone(),
        stack: stack.to_owned(),
        key: key.to_owned(),
        definition,
        pool4,
        pool6,
        created_at: draft.moment.now_ms,
        ..Network::default()
    };
    draft.records.networks.insert(name.clone(), network);
    draft.object_operation(Verb::Create, ResourceKind::Network, name.as_str(), String::new());
    Ok(())
}

/// Addresses that services declare are kept for them, whether they run or not.
fn reserve_declared(draft: &mut Draft<'_>, stack: &StackSpec, key: &str, name: &NetworkName) {
    let prefix = format!("{}/", stack.name);
    let mut declared = BTreeMap::new();
    for (service, spec) in &stack.services {
        let Some(attachment) = spec.networks.get(key) else { continue };
        for address in [attachment.ipv4_address, attachment.ipv6_address].into_iter().flatten() {
            declared.insert(address, format!("{prefix}{service}"));
        }
    }
    let reserved_now = |network: &Network| -> BTreeMap<IpAddr, String> {
        let reserved = network.planned().pools().flat_map(|pool| pool.reserved.clone());
        reserved.filter(|(_, owner)| owner.starts_with(&prefix)).collect()
    };
    if draft.network(name).is_some_and(|network| reserved_now(network) == declared) {
        return;
    }
    let planned = draft.network_mut(name).planned_mut();
    for pool in [&mut planned.pool4, &mut planned.pool6].into_iter().flatten() {
        pool.reserved.retain(|_, owner| !owner.starts_with(&prefix));
        let inside = declared.iter().filter(|(address, _)| pool.subnet.contains(*address));
        pool.reserved.extend(inside.map(|(address, owner)| (*address, owner.clone())));
    }
}

/// What differs between two definitions so that containers feel it.
fn changed(old: &NetworkDefinition, new: &NetworkDefinition) -> String {
    let mut reasons = Vec::new();
    if old.driver != new.driver {
        reasons.push(format!("driver changed ({} → {})", old.driver, new.driver));
    }
    if old.driver_opts != new.driver_opts {
        reasons.push("driver_opts changed".to_owned());
    }
    if old.internal != new.internal {
        reasons.push(format!("internal changed ({} → {})", old.internal, new.internal));
    }
    if old.enable_ipv4 != new.enable_ipv4 {
        reasons.push(format!("enable_ipv4 changed ({} → {})", old.enable_ipv4, new.enable_ipv4));
    }
    if old.enable_ipv6 != new.enable_ipv6 {
        reasons.push(format!("enable_ipv6 changed ({} → {})", old.enable_ipv6, new.enable_ipv6));
    }
    if old.pools != new.pools {
        reasons.push("ipam changed".to_owned());
    }
    reasons.join("; ")
}

/// Sees to it that the volumes exist that a specification uses.
pub(crate) fn ensure_volumes(draft: &mut Draft<'_>, stack: &StackSpec, revision: &Revision) -> Result<(), Refusal> {
    for (key, name) in &revision.volumes {
        if !draft.seen.insert((ResourceKind::Volume, name.clone())) {
            continue;
        }
        if !is_name(name) {
            return Err(SpecFault::Name { kind: "volume", name: name.clone() }.into());
        }
        let Some(spec) = stack.volumes.get(key) else { continue };
        match draft.volume(name) {
            None if spec.external => {
                let (name, key, stack) = (name.clone(), key.clone(), stack.name.clone());
                return Err(Missing::External { kind: "volume", name, key, stack }.into());
            }
            None => {
                possible(name, spec)?;
                add_volume(draft, key, name, spec);
            }
            Some(_) if spec.external => {}
            Some(present) => {
                check_volume(present, draft, spec)?;
                if present.labels != spec.labels || present.removing {
                    let volume = draft.volume_mut(name);
                    volume.labels.clone_from(&spec.labels);
                    volume.removing = false;
                }
            }
        }
    }
    Ok(())
}

fn check_volume(present: &Volume, draft: &Draft<'_>, spec: &VolumeSpec) -> Result<(), Refusal> {
    if present.stack != draft.stack.name {
        let owner = if present.stack.is_empty() {
            "nobody (it was made by hand)".to_owned()
        } else {
            format!("stack {}", present.stack)
        };
        let (name, stack) = (present.name.clone(), draft.stack.name.clone());
        return Err(Clash::Owner { kind: "volume", name, owner, stack }.into());
    }
    let driver = crate::state::volume_driver(spec);
    let mut changes = Vec::new();
    if present.driver != driver {
        changes.push(format!("driver {} → {driver}", present.driver));
    }
    let keys: std::collections::BTreeSet<&String> = present.driver_opts.keys().chain(spec.driver_opts.keys()).collect();
    for key in keys {
        let (old, new) = (present.driver_opts.get(key), spec.driver_opts.get(key));
        if old != new {
            let show = |value: Option<&String>| value.cloned().unwrap_or_else(|| "unset".to_owned());
            changes.push(format!("driver_opts {key} {} → {}", show(old), show(new)));
        }
    }
    if changes.is_empty() {
        return Ok(());
    }
    Err(Clash::VolumeChanged { name: present.name.clone(), change: changes.join("; ") }.into())
}

/// What no node can carry out is refused before anything is made. The local driver's options are those of mount(8), and of these only a
/// path of the host under a name is carried out.
fn possible(name: &str, spec: &VolumeSpec) -> Result<(), Refusal> {
    let fault = |what, hint| SpecFault::Unsupported { of: format!("volume {name}"), what, hint };
    if let Some(driver) = spec.driver.as_deref().filter(|driver| !matches!(*driver, "" | "local")) {
        return Err(fault(format!("the driver `{driver}`"), "there is only `local`").into());
    }
    let option = |key: &str| spec.driver_opts.get(key).map_or("", String::as_str);
    let bind = option("o").split(',').any(|word| matches!(word, "bind" | "rbind")) && option("device").starts_with('/');
    if !spec.driver_opts.is_empty() && !bind {
        let kind = if option("type").is_empty() { "these".to_owned() } else { format!("`type: {}`", option("type")) };
        let hint = "of driver_opts there is only a path of the host: `type: none`, `o: bind`, `device: /path`; \
                    mount others on the host and name them so";
        return Err(fault(format!("{kind} driver_opts"), hint).into());
    }
    Ok(())
}

fn add_volume(draft: &mut Draft<'_>, key: &str, name: &str, spec: &VolumeSpec) {
    let volume = Volume {
        name: name.to_owned(),
        stack: draft.stack.name.clone(),
        key: key.to_owned(),
        driver: crate::state::volume_driver(spec),
        driver_opts: spec.driver_opts.clone(),
        labels: spec.labels.clone(),
        created_at: draft.moment.now_ms,
        ..Volume::default()
    };
    draft.records.volumes.insert(name.to_owned(), volume);
    draft.object_operation(Verb::Create, ResourceKind::Volume, name, String::new());
}

/// A network made by hand.
pub(crate) fn plan_network(state: &State, request: &NewNetwork, moment: Moment) -> Result<Planned, Refusal> {
    if !is_name(request.name.as_str()) {
        return Err(SpecFault::Name { kind: "network", name: request.name.0.clone() }.into());
    }
    if state.networks.contains_key(&request.name) {
        return Err(Clash::Exists { kind: "network", name: request.name.0.clone() }.into());
    }
    let mut draft = Draft::new(state, "", moment);
    add_network(&mut draft, "", request.name.as_str(), &request.name, request.definition.clone(), 1)?;
    // It must exist on every node at once: containers outside of stacks attach to it whenever they like.
    draft.network_mut(&request.name).nodes = state.nodes.keys().cloned().collect();
    Ok(without_stack(draft))
}

/// A volume made by hand.
pub(crate) fn plan_volume(state: &State, request: &NewVolume, moment: Moment) -> Result<Planned, Refusal> {
    if !is_name(&request.name) {
        return Err(SpecFault::Name { kind: "volume", name: request.name.clone() }.into());
    }
    if state.volumes.contains_key(&request.name) {
        return Err(Clash::Exists { kind: "volume", name: request.name.clone() }.into());
    }
    let mut draft = Draft::new(state, "", moment);
    let driver = if request.driver.is_empty() { "local".to_owned() } else { request.driver.clone() };
    let (driver_opts, labels) = (request.driver_opts.clone(), request.labels.clone());
    let spec = VolumeSpec { driver: Some(driver), driver_opts, labels, ..VolumeSpec::default() };
    add_volume(&mut draft, &request.name, &request.name, &spec);
    draft.volume_mut(&request.name).nodes = state.nodes.keys().cloned().collect();
    Ok(without_stack(draft))
}

/// Addresses for a container outside of stacks.
pub(crate) fn plan_reservation(state: &State, request: &ReserveAddress, moment: Moment) -> Result<Planned, Refusal> {
    let present = state.networks.get(&request.network).filter(|network| network.is_active());
    let Some(present) = present else { return Err(Missing::Network(request.network.0.clone()).into()) };
    let mut draft = Draft::new(state, "", moment);
    let mut fixed = [request.ipv4.map(IpAddr::V4), request.ipv6.map(IpAddr::V6)];
    if let Some(held) = present.reservations.get(&request.holder) {
        fixed = [fixed[0].or(held.ipv4.map(IpAddr::V4)), fixed[1].or(held.ipv6.map(IpAddr::V6))];
    }
    let holder = reservation_holder(&request.holder);
    let claim = Claim { holder: holder.clone(), name: &request.name, fixed, former: None };
    let grant = allocate::addresses(&mut draft, &request.network, &claim)?;
    let reservation = Reservation {
        name: request.name.clone(),
        aliases: request.aliases.clone(),
        ipv4: grant.ipv4,
        ipv6: grant.ipv6,
        mac: request.mac.clone(),
        node: request.node.clone().filter(|node| state.nodes.contains_key(node)),
    };
    let network = draft.network_mut(&request.network);
    // A stack's network is only where its tasks are.
    network.nodes.extend(reservation.node.clone());
    if let Some(former) = network.reservations.insert(request.holder.clone(), reservation) {
        // Another address than before: the former one is free again.
        for address in [former.ipv4.map(IpAddr::V4), former.ipv6.map(IpAddr::V6)].into_iter().flatten() {
            if Some(address) != grant.ipv4.map(IpAddr::V4) && Some(address) != grant.ipv6.map(IpAddr::V6) {
                for pool in [&mut network.pool4, &mut network.pool6].into_iter().flatten() {
                    pool.release(address, &holder);
                }
            }
        }
    }
    let mut planned = without_stack(draft);
    planned.answer.addresses = (grant.ipv4, grant.ipv6);
    Ok(planned)
}

fn without_stack(draft: Draft<'_>) -> Planned {
    let mut planned = draft.finish();
    planned.records.stack = None;
    planned
}
