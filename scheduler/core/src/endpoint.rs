//! Who can be reached: what stands behind names, virtual addresses and published ports, and who has been told so.
//!
//! Everything here follows from tasks and nodes. The state remembers only the outcome for each task, so that the index of its last change
//! is known: a node that has applied that index sends nobody to a task that was taken out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orch_spec::assignment::{
    Backend, DesiredTask, Health, MeshAssignment, MeshPeer, MeshPortAssignment, NetworkName, NodeId, OverlayAssignment,
    OverlayPeer, RemoteEndpoint, ServiceAssignment, TaskId, TaskState,
};
use orch_spec::model::EndpointMode;

use crate::identity;
use crate::state::{Network, Node, NodeState, Reservation, Serving, State, Task, holder_of};

/// How long a task that is to be stopped waits at most for nodes to let go of it, milliseconds: as long as it takes until a node that
/// does not answer is suspect, and then it counts no more; and half of that again.
pub(crate) const WITHDRAWAL_MS: u64 = 3_000;
/// How long a task that nobody is sent to any more is left alone, milliseconds: who was sent there in the last moment is being answered. What
/// takes longer is up to the program's own end.
pub(crate) const LAST_ANSWERS_MS: u64 = 200;
/// First number of VXLANs: the low ones are what people give by hand.
const FIRST_VNI: u32 = 4096;
/// Numbers of one cluster: its range begins at a place that follows from its id, so that two clusters on one link do not meet.
const VNI_RANGE: u32 = 1 << 16;

/// Whether others may reach a task.
pub(crate) fn serving(state: &State, task: &Task) -> Serving {
    let runs = matches!(task.status.state, TaskState::Running | TaskState::Paused)
        && matches!(task.told, Some(DesiredTask::Running | DesiredTask::Paused))
        && task.withdrawn.is_none();
    let node = task.node.as_ref().map_or(NodeState::Down, |node| state.node_state(node));
    let has_run = matches!(task.status.state, TaskState::Running | TaskState::Paused | TaskState::Stopping);
    if node == NodeState::Down || !runs {
        let leaves = task.withdrawn.is_some() && has_run && node != NodeState::Down;
        return if leaves { Serving::Leaving } else { Serving::No };
    }
    if is_well(task) && node == NodeState::Ready { Serving::Ready } else { Serving::Unready }
}

fn is_well(task: &Task) -> bool {
    task.status.state == TaskState::Running && matches!(task.status.health, Health::None | Health::Healthy)
}

/// Whether a task must be taken out of load balancing before it is stopped.
pub(crate) fn must_withdraw(state: &State, task: &Task) -> bool {
    state.is_cluster() && !task.unordered && !task.endpoints().is_empty() && task.has_process()
}

/// Whether a task may be stopped: everybody who could send somebody there has known for a moment that it is out, or the time for that is
/// over.
pub(crate) fn is_withdrawn(state: &State, task: &Task) -> bool {
    task.withdrawn.is_some_and(|withdrawal| withdrawal.deadline <= state.time)
}

/// Whether everybody who could send somebody to a task knows that it is out.
pub(crate) fn is_let_go(state: &State, task: &Task) -> bool {
    let Some(withdrawal) = task.withdrawn else { return false };
    let meshed = is_meshed(state, task);
    let networks: Vec<&Network> = task.networks().filter_map(|name| state.networks.get(name)).collect();
    state.nodes.iter().all(|(id, node)| {
        // Also one that may still publish a port that the service had until now.
        let sends =
            meshed || node.applied < state.mesh_changed || networks.iter().any(|network| network.nodes.contains(id));
        node.state != NodeState::Ready || node.applied >= withdrawal.index || !sends
    })
}

/// Whether a task stands behind ports that every node publishes.
fn is_meshed(state: &State, task: &Task) -> bool {
    let service = state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service));
    !task.one_off && service.is_some_and(|service| !service.mesh_ports.is_empty())
}

/// The key of a service's virtual addresses.
pub(crate) fn vip_key(stack: &str, service: &str) -> String {
    format!("{stack}/{service}")
}

impl State {
    /// Remembers whether a task can be reached now; says whether that is something else than before.
    pub(crate) fn refresh_serving(&mut self, id: &TaskId) -> bool {
        let index = self.index;
        let Some(task) = self.tasks.get(id) else { return false };
        let now = serving(self, task);
        if now == task.serving {
            return false;
        }
        self.touch_endpoints(id);
        if let Some(task) = self.tasks.get_mut(id) {
            task.serving = now;
            task.changed = index;
        }
        true
    }

    /// What can be reached on the task's networks is not what it was.
    pub(crate) fn touch_endpoints(&mut self, id: &TaskId) {
        let index = self.index;
        let Some(task) = self.tasks.get(id) else { return };
        let names: Vec<NetworkName> = task.networks().cloned().collect();
        if is_meshed(self, task) {
            self.mesh_changed = index;
        }
        for name in names {
            if let Some(network) = self.networks.get_mut(&name) {
                network.endpoints_changed = index;
            }
        }
    }

    /// Each node that leads callers to a stack's tasks, with the version of endpoints that it needs to lead them as the state says now. None
    /// does on a host that is alone: there a task's own node knows all.
    #[must_use]
    pub fn leading(&self, stack: &str) -> BTreeMap<NodeId, u64> {
        let mut wanted: BTreeMap<NodeId, u64> = BTreeMap::new();
        if !self.is_cluster() {
            return wanted;
        }
        let mut want = |node: &NodeId, version: u64| {
            let known = wanted.entry(node.clone()).or_default();
            *known = version.max(*known);
        };
        let names: BTreeSet<&NetworkName> = self.stack_tasks(stack).flat_map(Task::networks).collect();
        for network in names.into_iter().filter_map(|name| self.networks.get(name)) {
            network.nodes.iter().for_each(|node| want(node, network.endpoints_changed));
        }
        let services = self.stacks.get(stack).into_iter().flat_map(|stack| stack.services.values());
        if services.into_iter().any(|service| !service.mesh_ports.is_empty()) {
            self.nodes.keys().for_each(|node| want(node, self.mesh_changed));
        }
        wanted
    }

    /// Which nodes of [`State::leading`] answer and do not have their version yet.
    pub fn behind<'s>(&'s self, wanted: &BTreeMap<NodeId, u64>) -> impl Iterator<Item = &'s Node> {
        self.nodes.iter().filter_map(|(id, node)| {
            let lags = wanted.get(id).is_some_and(|version| node.applied < *version);
            (lags && node.state == NodeState::Ready).then_some(node)
        })
    }

    /// The next number for a network's VXLAN. It goes round: a number rests as long as possible before another network gets it.
    pub(crate) fn next_vni(&mut self) -> u32 {
        let base = self.vni_base();
        let taken: BTreeSet<u32> =
            self.networks.values().flat_map(|network| [network.vni, network.planned().vni]).flatten().collect();
        // The first is the mesh's.
        let found = (1..VNI_RANGE)
            .map(|step| 1 + (self.vni_cursor + step - 1) % (VNI_RANGE - 1))
            .find(|offset| !taken.contains(&(base + offset)))
            .unwrap_or(1);
        self.vni_cursor = found % (VNI_RANGE - 1);
        base + found
    }

    fn vni_base(&self) -> u32 {
        let id = identity::global_id(&self.cluster);
        let ranges = ((1 << 24) - FIRST_VNI) / VNI_RANGE;
        FIRST_VNI + u32::from_le_bytes([id[0], id[1], id[2], 0]) % ranges * VNI_RANGE
    }
}

/// One stack's share of what load balancers are told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Endpoints {
    services: BTreeMap<NetworkName, Vec<ServiceAssignment>>,
    ports: Vec<MeshPortAssignment>,
    remotes: BTreeMap<NetworkName, Vec<RemoteEndpoint>>,
}

/// Derives one stack's share.
pub(crate) fn of_stack(state: &State, stack: &str) -> Endpoints {
    let mut made = Endpoints::default();
    if !state.is_cluster() {
        return made;
    }
    for task in state.stack_tasks(stack) {
        remotes(state, task, &mut made.remotes);
    }
    let Some(record) = state.stacks.get(stack) else { return made };
    for (name, service) in &record.services {
        let mut tasks: Vec<&Task> = state.service_tasks(stack, name).filter(|task| !task.one_off).collect();
        tasks.retain(|task| task.serving != Serving::No);
        tasks.sort_by_key(|task| (task.slot, task.sequence));
        // Silence makes a node suspect, a busy one too: where there is nobody else, what was well there is better than nobody.
        let is_last = tasks.iter().all(|task| task.serving != Serving::Ready);
        let revision = state.revision(service.revision);
        let mode = revision.spec.deploy.endpoint_mode.unwrap_or(EndpointMode::Vip);
        for network in revision.networks.values() {
            let vip = state.networks.get(network).and_then(|network| network.vips.get(&vip_key(stack, name)));
            let vips = vip.into_iter().flat_map(|vip| [vip.ipv4.map(IpAddr::V4), vip.ipv6.map(IpAddr::V6)]).flatten();
            let vips: Vec<IpAddr> = vips.filter(|_| mode == EndpointMode::Vip).collect();
            let backends = tasks.iter().flat_map(|task| backends(task, Some(network), is_last)).collect();
            made.services.entry(network.clone()).or_default().push(ServiceAssignment {
                network: network.clone(),
                stack: stack.to_owned(),
                service: name.clone(),
                endpoint_mode: if vips.is_empty() { EndpointMode::Dnsrr } else { mode },
                vips,
                backends,
            });
        }
        made.ports.extend(service.mesh_ports.iter().map(|port| MeshPortAssignment {
            stack: stack.to_owned(),
            service: name.clone(),
            host_ip: port.host_ip,
            published: port.published,
            target: port.target,
            protocol: port.protocol.clone(),
            backends: tasks.iter().flat_map(|task| backends(task, None, is_last)).collect(),
        }));
    }
    made
}

/// A task as load balancers see it, on one network or on its first. `is_last`: no task of the service is ready.
fn backends(task: &Task, network: Option<&NetworkName>, is_last: bool) -> Vec<Backend> {
    let Some(node) = &task.node else { return Vec::new() };
    let mut endpoints = task.endpoints().iter();
    let endpoint = match network {
        Some(network) => endpoints.find(|endpoint| endpoint.network == *network),
        None => endpoints.next(),
    };
    let addresses = endpoint.into_iter().flat_map(|one| [one.ipv4.map(IpAddr::V4), one.ipv6.map(IpAddr::V6)]).flatten();
    let ready = task.serving == Serving::Ready || is_last && task.serving == Serving::Unready && is_well(task);
    addresses.map(|address| Backend { address, node: node.clone(), ready }).collect()
}

/// The task's endpoints as other nodes see them: where it is told to be, and only addresses that are its own by now.
fn remotes(state: &State, task: &Task, remotes: &mut BTreeMap<NetworkName, Vec<RemoteEndpoint>>) {
    let (Some(node), Some(_)) = (&task.node, task.told) else { return };
    // What takes another's place has that one's addresses, and is nowhere before that one is gone.
    if task.takes_over.as_ref().is_some_and(|former| state.tasks.contains_key(former)) {
        return;
    }
    let holder = holder_of(&task.id);
    for endpoint in task.endpoints() {
        let Some(network) = state.networks.get(&endpoint.network) else { continue };
        let addresses = [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)];
        let successor = |present: &String| {
            present
                .strip_prefix("task:")
                .and_then(|id| state.tasks.get(&TaskId::from(id)))
                .is_some_and(|other| other.takes_over.as_ref() == Some(&task.id))
        };
        let is_own = |address: &IpAddr| {
            let present = network.pools().find_map(|pool| pool.held.get(address));
            present.is_some_and(|present| *present == holder || successor(present))
        };
        let Some(first) = addresses.iter().flatten().next() else { continue };
        let mac = endpoint.mac.clone().unwrap_or_else(|| mac_of(*first));
        let list = remotes.entry(endpoint.network.clone()).or_default();
        for ip in addresses.into_iter().flatten().filter(is_own) {
            list.push(RemoteEndpoint { ip, mac: mac.clone(), node: node.clone() });
        }
    }
}

/// The endpoints of a container outside of stacks as other nodes see them.
fn reserved(container: &Reservation) -> impl Iterator<Item = RemoteEndpoint> {
    let addresses = [container.ipv4.map(IpAddr::V4), container.ipv6.map(IpAddr::V6)].into_iter().flatten();
    let first = addresses.clone().next();
    let mac = container.mac.clone().or_else(|| first.map(mac_of)).unwrap_or_default();
    let node = container.node.clone();
    addresses.filter_map(move |ip| Some(RemoteEndpoint { ip, mac: mac.clone(), node: node.clone()? }))
}

/// The MAC that every node makes for an address.
fn mac_of(address: IpAddr) -> String {
    let bytes = match address {
        IpAddr::V4(four) => four.octets(),
        IpAddr::V6(six) => {
            let bytes = six.octets();
            [bytes[12], bytes[13], bytes[14], bytes[15]]
        }
    };
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("02:42:{}", digits.join(":"))
}

/// The services on a node's networks.
pub(crate) fn services<'p>(
    parts: impl Iterator<Item = &'p Endpoints>,
    networks: &[&Network],
) -> Vec<ServiceAssignment> {
    let here: BTreeSet<&NetworkName> = networks.iter().map(|network| &network.name).collect();
    let mut all: Vec<ServiceAssignment> = parts
        .flat_map(|part| part.services.iter().filter(|(network, _)| here.contains(network)))
        .flat_map(|(_, services)| services.iter().cloned())
        .collect();
    all.sort_by(|a, b| (&a.network, &a.stack, &a.service).cmp(&(&b.network, &b.stack, &b.service)));
    all
}

/// The ports that every node publishes.
pub(crate) fn ports<'p>(parts: impl Iterator<Item = &'p Endpoints>) -> Vec<MeshPortAssignment> {
    parts.flat_map(|part| part.ports.iter().cloned()).collect()
}

/// Where a node is reached by another; `None` when it has not said so, or when it is lost and its address is somebody else's by now: a host that
/// was set up anew is another node, and its former one stands in the records until it is removed.
fn underlay(state: &State, id: &NodeId, node: &crate::state::Node, asks: &NodeId) -> Option<IpAddr> {
    let address = node.facts.address?;
    let has_it = |other: &crate::state::Node| other.facts.address == Some(address);
    let is_taken =
        || state.nodes.iter().any(|(other, node)| other != id && node.state != NodeState::Down && has_it(node));
    let is_own = id != asks && state.nodes.get(asks).is_some_and(has_it);
    let is_gone = is_own || node.state == NodeState::Down && is_taken();
    (!is_gone).then_some(address)
}

/// The part of a network that reaches over to other nodes.
pub(crate) fn overlay<'p>(
    state: &State,
    parts: impl Iterator<Item = &'p Endpoints>,
    network: &Network,
    own: &NodeId,
) -> Option<OverlayAssignment> {
    let (vni, settings) = (network.vni?, state.cluster_settings.as_ref()?);
    let members = network.nodes.iter().filter_map(|id| Some((id, state.nodes.get(id)?)));
    let mtu = members.clone().map(|(_, node)| node.facts.mtu).filter(|mtu| *mtu > 0).min();
    let peers = members
        .filter(|(id, _)| *id != own)
        .filter_map(|(id, node)| Some(OverlayPeer { node: id.clone(), underlay: underlay(state, id, node, own)? }));
    let peers: Vec<OverlayPeer> = peers.collect();
    let known: BTreeSet<&NodeId> = peers.iter().map(|peer| &peer.node).collect();
    let of_tasks = parts.filter_map(|part| part.remotes.get(&network.name)).flatten().cloned();
    let all = of_tasks.chain(network.reservations.values().flat_map(reserved));
    let mut endpoints: Vec<RemoteEndpoint> = all.filter(|endpoint| known.contains(&endpoint.node)).collect();
    endpoints.sort();
    Some(OverlayAssignment {
        vni,
        udp_port: settings.overlay_port,
        underlay: state.nodes.get(own).and_then(|node| node.facts.address),
        underlay_mtu: mtu.unwrap_or(0),
        peers,
        endpoints,
    })
}

/// How published ports reach tasks on other nodes.
pub(crate) fn mesh(state: &State, own: &NodeId) -> Option<MeshAssignment> {
    let settings = state.cluster_settings.as_ref()?;
    let peer = |(id, node): (&NodeId, &crate::state::Node)| {
        let [high, low] = node.number.to_be_bytes();
        // 198.18.0.0/15 is for tests of devices (RFC 2544): no host routes it, and containers of ours never have it.
        let address = std::net::Ipv4Addr::new(198, 19, high, low);
        Some(MeshPeer { node: id.clone(), underlay: underlay(state, id, node, own)?, number: node.number, address })
    };
    Some(MeshAssignment {
        vni: state.vni_base(),
        udp_port: settings.overlay_port,
        own: state.nodes.get_key_value(own).and_then(peer),
        peers: state.nodes.iter().filter(|(id, _)| *id != own).filter_map(peer).collect(),
    })
}

/// The version of all that, for one node.
pub(crate) fn version(state: &State, networks: &[&Network]) -> u64 {
    if !state.is_cluster() {
        return 0;
    }
    let changed = networks.iter().map(|network| network.endpoints_changed);
    changed.chain([state.mesh_changed]).max().unwrap_or(0)
}
