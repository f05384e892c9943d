//! New tasks: their node, name, network and namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use orch_spec::assignment::{
    DesiredTask, EndpointAssignment, NetworkName, NodeId, PortAssignment, TaskId, TaskNetwork, TaskState,
};
use orch_spec::model::{
    MountSource, NamespaceMode, NetworkAttachment, NetworkMode, PortSpec, PublishMode, ServiceSpec,
};

use super::allocate::{self, Claim};
use super::draft::Draft;
use super::objects::is_name;
use crate::error::{Clash, Missing, Refusal, SpecFault};
use crate::state::{Availability, NodeState, Revision, RevisionId, Task, holder_of};

/// Digits of a task's id in a container's name that another one has.
const NAME_DIGITS: usize = 5;

/// What a new task is made from.
pub(crate) struct Blueprint<'a> {
    pub(crate) service: &'a str,
    pub(crate) slot: u32,
    pub(crate) one_off: bool,
    pub(crate) revision: RevisionId,
    pub(crate) image_id: &'a str,
    /// The service's generation that it is made for.
    pub(crate) generation: u64,
    /// The task of the same slot that it replaces, and how.
    pub(crate) former: Option<TaskId>,
    pub(crate) succession: Succession,
    /// The only node that it may have.
    pub(crate) bound: Option<NodeId>,
    pub(crate) container_name: Option<String>,
    pub(crate) goal: DesiredTask,
    pub(crate) ungated: bool,
    pub(crate) renew_anonymous_volumes: bool,
}

/// How a new task comes into the place of a former one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Succession {
    /// It is made when that one is gone.
    After,
    /// It is made beside that one, which goes then, and starts when that one is gone.
    TakesOver,
    /// It is made and started beside that one, which goes then.
    Beside,
}

/// Adds a task to the draft.
pub(crate) fn add(draft: &mut Draft<'_>, blueprint: Blueprint<'_>) -> Result<TaskId, Refusal> {
    let revision = draft.revision(blueprint.revision).clone();
    let spec = &revision.spec;
    possible(blueprint.service, spec)?;
    let (id, sequence) = draft.next_task();
    let overlapping = blueprint.succession != Succession::After;
    let container_name = match (&blueprint.container_name, &spec.container_name) {
        (Some(name), _) | (None, Some(name)) => name.clone(),
        (None, None) => default_name(draft, blueprint.service, blueprint.slot, overlapping.then_some(&id)),
    };
    if !is_name(&container_name) {
        return Err(SpecFault::Name { kind: "container", name: container_name }.into());
    }
    let beside = blueprint.succession == Succession::Beside;
    let former = blueprint.former.clone().filter(|_| !beside);
    let mut after: BTreeSet<TaskId> = former.iter().cloned().collect();
    let leftovers = slot_leftovers(draft, blueprint.service, blueprint.slot, blueprint.one_off);
    if blueprint.succession == Succession::After {
        // They would wait for the new one, and the new one waits for them. One whose node is down may be the only copy, and waits for none.
        for leftover in &leftovers {
            let answers = |node: &NodeId| draft.state.node_state(node) != NodeState::Down;
            let waits = |task: &Task| task.hand_over.is_some() && task.node.as_ref().is_some_and(answers);
            if draft.task(leftover).is_some_and(waits) {
                draft.task_mut(leftover).hand_over = None;
            }
        }
    }
    after.extend(leftovers);
    after.extend(name_holder(draft, &container_name, blueprint.service)?);

    let network =
        network(draft, &id, &container_name, &former, blueprint.slot, blueprint.service, &revision, &mut after)?;
    let (pid_of, ipc_of) = (
        namespace(draft, blueprint.service, "pid", &spec.pid, blueprint.slot)?,
        namespace(draft, blueprint.service, "ipc", &spec.ipc, blueprint.slot)?,
    );
    let former_node =
        blueprint.former.as_ref().and_then(|former| draft.task(former)).and_then(|former| former.node.clone());
    let shared = [
        &pid_of,
        &ipc_of,
        &match &network {
            TaskNetwork::Task(parent) => Some(parent.clone()),
            _ => None,
        },
    ];
    let parent = shared
        .into_iter()
        .flatten()
        .next()
        .and_then(|parent| draft.task(parent))
        .and_then(|parent| parent.node.clone());
    // A slot is as empty as it was; one that never had anybody is missed by nobody.
    let missing_since = match blueprint.former.as_ref().and_then(|former| draft.task(former)) {
        Some(former) => former.missing_since.unwrap_or(draft.state.time),
        None => 0,
    };
    let task = Task {
        id: id.clone(),
        sequence,
        stack: draft.stack.name.clone(),
        service: blueprint.service.to_owned(),
        slot: blueprint.slot,
        one_off: blueprint.one_off,
        container_name,
        revision: blueprint.revision,
        image_id: blueprint.image_id.to_owned(),
        // On a cluster placement decides, when the plan is carried out.
        node: if draft.state.is_cluster() { None } else { parent.or(former_node).or_else(|| choose_node(draft)) },
        bound: blueprint.bound,
        generation: blueprint.generation,
        takes_over: former.filter(|_| blueprint.succession == Succession::TakesOver),
        goal: blueprint.goal,
        ungated: blueprint.ungated,
        after,
        renew_anonymous_volumes: blueprint.renew_anonymous_volumes,
        network: Some(network),
        pid_of,
        ipc_of,
        missing_since: Some(missing_since),
        created_at: draft.moment.now_ms,
        ..Task::default()
    };
    register(draft, task, &revision.volumes);
    Ok(id)
}

/// What no node can carry out is refused before anything is made for it.
fn possible(service: &str, spec: &ServiceSpec) -> Result<(), Refusal> {
    let fault = |what: String, hint| SpecFault::Unsupported { of: format!("service {service}"), what, hint };
    for mount in &spec.volumes {
        let kind = match &mount.source {
            MountSource::Image { .. } => "image",
            MountSource::Other { kind, .. } => kind,
            MountSource::Volume { .. } | MountSource::Bind { .. } | MountSource::Tmpfs { .. } => continue,
        };
        let what = format!("a mount of type `{kind}` at {}", mount.target);
        return Err(fault(what, "there are mounts of type `bind`, `volume` and `tmpfs`").into());
    }
    if let Some(device) = spec.devices.iter().find(|device| device.is_cdi()) {
        let what = format!("the CDI device `{}`", device.source);
        return Err(fault(what, "give the path of a device below /dev").into());
    }
    Ok(())
}

/// The name of a slot's container. Beside another one of that name it gets a few digits of its task's id as well.
fn default_name(draft: &Draft<'_>, service: &str, slot: u32, beside: Option<&TaskId>) -> String {
    let name = format!("{}-{service}-{slot}", draft.stack.name);
    let Some(id) = beside else { return name };
    if draft.task_named(&name).is_none() {
        return name;
    }
    format!("{name}.{}", id.as_str().get(..NAME_DIGITS).unwrap_or_default())
}

/// Enters the task wherever it is listed.
fn register(draft: &mut Draft<'_>, task: Task, volumes: &BTreeMap<String, String>) {
    let networks: Vec<NetworkName> = task.networks().cloned().collect();
    for network in networks {
        draft.network_mut(&network).planned_mut().users.insert(task.id.clone());
    }
    for volume in volumes.values() {
        draft.volume_mut(volume).users.insert(task.id.clone());
    }
    draft.stack.tasks.entry(task.service.clone()).or_default().insert(&task);
    draft.names.insert(task.container_name.clone(), task.id.clone());
    draft.records.tasks.insert(task.id.clone(), task);
}

/// Tasks of the same slot that are on their way out.
fn slot_leftovers(draft: &Draft<'_>, service: &str, slot: u32, one_off: bool) -> Vec<TaskId> {
    if one_off {
        return Vec::new();
    }
    draft.slot_tasks(service, slot).filter(|task| task.is_retiring()).map(|task| task.id.clone()).collect()
}

/// The retiring task that has this container name; one that stays is a clash.
fn name_holder(draft: &Draft<'_>, name: &str, service: &str) -> Result<Option<TaskId>, Refusal> {
    let Some(holder) = draft.task_named(name) else { return Ok(None) };
    if holder.is_retiring() {
        return Ok(Some(holder.id.clone()));
    }
    let of = |stack: &str, service: &str| format!("service {service} of stack {stack}");
    let (wants, has) = (of(&draft.stack.name, service), of(&holder.stack, &holder.service));
    Err(Clash::ContainerName { name: name.to_owned(), wants, has }.into())
}

/// The active node with the fewest tasks.
fn choose_node(draft: &mut Draft<'_>) -> Option<NodeId> {
    draft.load_node_counts();
    let (node, _) = draft.node_counts.iter().min_by_key(|(id, count)| (**count, (*id).clone()))?;
    let node = node.clone();
    *draft.node_counts.entry(node.clone()).or_default() += 1;
    Some(node)
}

impl Draft<'_> {
    fn load_node_counts(&mut self) {
        if !self.node_counts.is_empty() {
            return;
        }
        let active = self.state.nodes.iter().filter(|(_, node)| node.availability == Availability::Active);
        self.node_counts = active.map(|(id, _)| (id.clone(), 0)).collect();
        for node in self.state.tasks.values().filter_map(|task| task.node.as_ref()) {
            if let Some(count) = self.node_counts.get_mut(node) {
                *count += 1;
            }
        }
    }
}

/// The container whose namespace is shared.
fn namespace(
    draft: &Draft<'_>,
    service: &str,
    kind: &'static str,
    mode: &NamespaceMode,
    slot: u32,
) -> Result<Option<TaskId>, Refusal> {
    match mode {
        NamespaceMode::Service(parent) => parent_task(draft, service, kind, parent, slot).map(Some),
        NamespaceMode::Container(name) => container(draft, service, kind, name).map(Some),
        _ => Ok(None),
    }
}

/// The replica of the same number, or the first.
fn parent_task(
    draft: &Draft<'_>,
    service: &str,
    kind: &'static str,
    parent: &str,
    slot: u32,
) -> Result<TaskId, Refusal> {
    let same = draft.slot_tasks(parent, slot).find(|task| task.is_replica());
    let found = same.or_else(|| draft.tasks_of(parent).into_iter().find(|task| task.is_replica()));
    found.map(|task| task.id.clone()).ok_or_else(|| {
        let (service, with) = (service.to_owned(), format!("service {parent}"));
        Missing::Namespace { service, namespace: kind, with }.into()
    })
}

fn container(draft: &Draft<'_>, service: &str, kind: &'static str, name: &str) -> Result<TaskId, Refusal> {
    let found = draft.state.task_named(name).filter(|task| !task.is_retiring());
    found.map(|task| task.id.clone()).ok_or_else(|| {
        let (service, with) = (service.to_owned(), format!("container {name}"));
        Missing::Namespace { service, namespace: kind, with }.into()
    })
}

#[expect(clippy::too_many_arguments, reason = "the parts of one task under construction")]
fn network(
    draft: &mut Draft<'_>,
    id: &TaskId,
    name: &str,
    former: &Option<TaskId>,
    slot: u32,
    service: &str,
    revision: &Revision,
    after: &mut BTreeSet<TaskId>,
) -> Result<TaskNetwork, Refusal> {
    let (spec, networks) = (&revision.spec, &revision.networks);
    match &spec.network_mode {
        NetworkMode::None => return Ok(TaskNetwork::None),
        NetworkMode::Host => return Ok(TaskNetwork::Host),
        NetworkMode::Service(parent) => {
            return parent_task(draft, service, "network", parent, slot).map(TaskNetwork::Task);
        }
        NetworkMode::Container(name) => return container(draft, service, "network", name).map(TaskNetwork::Task),
        NetworkMode::Stack | NetworkMode::Bridge | NetworkMode::Network(_) => {}
    }
    let mut attachments: Vec<(&String, &NetworkName, NetworkAttachment)> =
        networks.iter().map(|(key, name)| (key, name, spec.networks.get(key).cloned().unwrap_or_default())).collect();
    attachments.sort_by_key(|(key, _, attachment)| (std::cmp::Reverse(attachment.priority), *key));
    let links: BTreeMap<String, String> =
        spec.links.iter().map(|link| (link.alias.clone(), link.target.clone())).collect();
    let mut endpoints = Vec::with_capacity(attachments.len());
    for (order, (_, network, attachment)) in attachments.into_iter().enumerate() {
        let former = former.as_ref().and_then(|former| draft.task(former)).and_then(|task| {
            let endpoint = task.endpoints().iter().find(|endpoint| endpoint.network == *network)?;
            let addresses = [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)];
            Some((holder_of(&task.id), addresses))
        });
        let fixed = [attachment.ipv4_address, attachment.ipv6_address];
        let claim = Claim { holder: holder_of(id), name, fixed, former };
        let grant = allocate::addresses(draft, network, &claim)?;
        after.extend(grant.after);
        endpoints.push(EndpointAssignment {
            network: network.clone(),
            ipv4: grant.ipv4,
            ipv6: grant.ipv6,
            mac: attachment.mac_address.or_else(|| spec.mac_address.clone().filter(|_| order == 0)),
            interface_name: attachment.interface_name,
            gw_priority: attachment.gw_priority,
            links: links.clone(),
        });
    }
    Ok(TaskNetwork::Endpoints { endpoints, ports: own_ports(draft.state.is_cluster(), spec) })
}

/// The ports that a task publishes itself on its node: on a cluster only those that the file wants there and nowhere else.
pub(crate) fn own_ports(cluster: bool, spec: &orch_spec::model::ServiceSpec) -> Vec<PortAssignment> {
    let own = spec.ports.iter().filter(|port| !cluster || port.mode == PublishMode::Host);
    own.map(port).collect()
}

fn port(spec: &PortSpec) -> PortAssignment {
    PortAssignment {
        host_ip: spec.host_ip,
        host_ports: spec.published.map_or((0, 0), |range| (range.start, range.end)),
        target: spec.target,
        protocol: spec.protocol.to_string(),
    }
}

/// Who publishes ports on one node, of one protocol.
type Claims<'t> = Vec<(&'t PortAssignment, &'t Task)>;

/// Refuses ports of one node that two tasks want, and makes new tasks wait for retiring ones that still have them.
pub(crate) fn check_ports(draft: &mut Draft<'_>) -> Result<(), Refusal> {
    // On a cluster placement sees to ports: who finds no node where his is free waits.
    if draft.state.is_cluster() {
        return Ok(());
    }
    let wanting =
        |task: &&Task| matches!(task.goal, DesiredTask::Running | DesiredTask::Paused) && !task.ports().is_empty();
    if !draft.records.tasks.values().any(|task| wanting(&task)) {
        return Ok(());
    }
    let others = draft.state.tasks.values().filter(|task| !draft.records.tasks.contains_key(&task.id));
    let all: Vec<&Task> = others.chain(draft.records.tasks.values()).filter(|task| !task.ports().is_empty()).collect();
    let mut claims: BTreeMap<(Option<&NodeId>, &str), Claims<'_>> = BTreeMap::new();
    let mut leaving: BTreeMap<(Option<&NodeId>, &str, u16), Vec<&Task>> = BTreeMap::new();
    for task in &all {
        let holds = task.goal == DesiredTask::Running && task.status.state != TaskState::Exited;
        for port in task.ports().iter().filter(|port| port.host_ports != (0, 0)) {
            if task.is_retiring() {
                for number in port.host_ports.0..=port.host_ports.1 {
                    leaving.entry((task.node.as_ref(), &port.protocol, number)).or_default().push(task);
                }
            } else if holds || task.goal == DesiredTask::Paused {
                claims.entry((task.node.as_ref(), &port.protocol)).or_default().push((port, task));
            }
        }
    }
    for list in claims.values_mut() {
        settle_claims(list)?;
    }
    let mut waits: Vec<(TaskId, TaskId)> = Vec::new();
    for task in draft.records.tasks.values().filter(|task| task.told.is_none()).filter(|task| wanting(task)) {
        for port in task.ports().iter().filter(|port| port.host_ports != (0, 0)) {
            for number in port.host_ports.0..=port.host_ports.1 {
                let former = leaving.get(&(task.node.as_ref(), port.protocol.as_str(), number));
                waits.extend(former.into_iter().flatten().map(|former| (task.id.clone(), former.id.clone())));
            }
        }
    }
    for (task, former) in waits {
        draft.task_mut(&task).after.insert(former);
    }
    Ok(())
}

/// Gives every claim a port of its range, the claim whose range ends first choosing first: when that fails, nothing else works.
fn settle_claims(claims: &mut Claims<'_>) -> Result<(), Refusal> {
    claims.sort_by_key(|(port, task)| (port.host_ports.1, port.host_ports.0, task.sequence));
    let mut taken: BTreeMap<u16, Vec<(Option<IpAddr>, &Task)>> = BTreeMap::new();
    for (port, task) in claims.iter() {
        let (first, last) = port.host_ports;
        let address = port.host_ip.filter(|address| !address.is_unspecified());
        let holder = |number: u16| {
            let holders = taken.get(&number).into_iter().flatten();
            holders.clone().find(|(other, _)| overlaps(address, *other)).map(|(_, task)| *task)
        };
        let Some(number) = (first..=last).find(|number| holder(*number).is_none()) else {
            let (protocol, wants) = (port.protocol.clone(), task.container_name.clone());
            return Err(match holder(first) {
                Some(has) if first == last => {
                    let has = has.container_name.clone();
                    Clash::Port { port: first, protocol, wants, has }
                }
                _ => Clash::PortRange { first, last, protocol, wants },
            }
            .into());
        };
        taken.entry(number).or_default().push((address, task));
    }
    Ok(())
}

/// Whether two addresses of the host cannot publish the same port; none = all.
pub(crate) fn overlaps(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => canonical(a) == canonical(b),
        _ => true,
    }
}

fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, |four: Ipv4Addr| IpAddr::V4(four)),
        IpAddr::V4(_) => address,
    }
}
