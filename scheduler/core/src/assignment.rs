//! What each node is told, derived from the state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use orch_spec::assignment::{
    Assignment, DesiredTask, Health, NameAssignment, NetworkAssignment, NetworkName, NodeId, TaskAssignment,
    TaskNetwork, TaskState, VolumeAssignment,
};
use orch_spec::model::EndpointMode;

use crate::address::Pool;
use crate::command::Changes;
use crate::endpoint::{self, Endpoints};
use crate::settle::is_leaving;
use crate::state::{Network, Serving, State, Task, Volume};

/// Options of a network's driver that change what its assignment says.
const OPTION_ICC: &str = "com.docker.network.bridge.enable_icc";
/// See [`OPTION_ICC`].
const OPTION_MTU: &str = "com.docker.network.driver.mtu";

/// What every node is told, kept by stack so that a change in one stack costs nothing in the others.
#[derive(Debug, Clone, Default)]
pub struct Assignments {
    parts: BTreeMap<String, Part>,
}

/// One stack's share.
#[derive(Debug, Clone, Default)]
struct Part {
    /// By node, with each task's number in the order in which tasks were made.
    tasks: BTreeMap<NodeId, Vec<(u64, TaskAssignment)>>,
    names: Names,
    endpoints: Endpoints,
}

/// Network → name → addresses.
type Names = BTreeMap<NetworkName, BTreeMap<String, BTreeSet<IpAddr>>>;

impl Assignments {
    /// Derives everything.
    pub fn new(state: &State) -> Self {
        let mut made = Self::default();
        let changes = Changes { stacks: state.stacks.keys().cloned().collect(), objects: true };
        made.refresh(state, &changes);
        made
    }

    /// Derives again what has changed.
    pub fn refresh(&mut self, state: &State, changes: &Changes) {
        for name in &changes.stacks {
            if state.stacks.contains_key(name) {
                self.parts.insert(name.clone(), part(state, name));
            } else {
                self.parts.remove(name);
            }
        }
    }

    /// Everything that one node shall be running.
    pub fn of(&self, state: &State, node: &NodeId) -> Assignment {
        let mut tasks: Vec<(u64, &TaskAssignment)> = self
            .parts
            .values()
            .filter_map(|part| part.tasks.get(node))
            .flatten()
            .map(|(sequence, task)| (*sequence, task))
            .collect();
        tasks.sort_by_key(|(sequence, _)| *sequence);
        let here = state.networks.values().filter(|network| network.nodes.contains(node));
        let (leaving, staying): (Vec<&Network>, Vec<&Network>) = here.partition(|network| is_leaving(network));
        let volumes = state.volumes.values().filter(|volume| volume.nodes.contains(node));
        let (removed, kept): (Vec<&Volume>, Vec<&Volume>) =
            volumes.partition(|volume| volume.removing && volume.users.is_empty());
        Assignment {
            version: state.index,
            cluster: state.cluster.clone(),
            names: self.names(&staying),
            services: endpoint::services(self.endpoints(), &staying),
            mesh_ports: endpoint::ports(self.endpoints()),
            mesh: endpoint::mesh(state, node),
            endpoints_version: endpoint::version(state, &staying),
            networks: staying
                .into_iter()
                .map(|one| NetworkAssignment {
                    overlay: endpoint::overlay(state, self.endpoints(), one, node),
                    ..network(one)
                })
                .collect(),
            removed_networks: leaving.into_iter().map(|network| network.name.clone()).collect(),
            volumes: kept.into_iter().map(volume).collect(),
            removed_volumes: removed.into_iter().map(|volume| volume.name.clone()).collect(),
            tasks: tasks.into_iter().map(|(_, task)| task.clone()).collect(),
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoints> {
        self.parts.values().map(|part| &part.endpoints)
    }

    fn names(&self, networks: &[&Network]) -> Vec<NameAssignment> {
        let mut all = Vec::new();
        for network in networks {
            let mut names: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
            for part in self.parts.values() {
                for (name, addresses) in part.names.get(&network.name).into_iter().flatten() {
                    names.entry(name).or_default().extend(addresses);
                }
            }
            let reserved: Vec<(String, [Option<IpAddr>; 2])> = network
                .reservations
                .values()
                .flat_map(|reservation| {
                    let addresses = [reservation.ipv4.map(IpAddr::V4), reservation.ipv6.map(IpAddr::V6)];
                    let names = reservation.aliases.iter().chain([&reservation.name]).filter(|name| !name.is_empty());
                    names.map(move |name| (name.to_ascii_lowercase(), addresses)).collect::<Vec<_>>()
                })
                .collect();
            for (name, addresses) in &reserved {
                names.entry(name).or_default().extend(addresses.iter().flatten());
            }
            all.extend(names.into_iter().map(|(name, addresses)| NameAssignment {
                network: network.name.clone(),
                name: name.to_owned(),
                addresses: addresses.into_iter().collect(),
            }));
        }
        all
    }
}

fn part(state: &State, stack: &str) -> Part {
    let mut made = Part { names: names(state, stack), endpoints: endpoint::of_stack(state, stack), ..Part::default() };
    for task in state.stack_tasks(stack) {
        let (Some(node), Some(told)) = (&task.node, task.told) else { continue };
        made.tasks.entry(node.clone()).or_default().push((task.sequence, task_assignment(state, task, told)));
    }
    made
}

fn task_assignment(state: &State, task: &Task, told: DesiredTask) -> TaskAssignment {
    let revision = state.revision(task.revision);
    TaskAssignment {
        id: task.id.clone(),
        stack: task.stack.clone(),
        service: task.service.clone(),
        slot: task.slot,
        container_name: task.container_name.clone(),
        spec: Arc::clone(&revision.spec),
        spec_hash: revision.hash.clone(),
        image_id: task.image_id.clone(),
        desired: told,
        restart_generation: task.told_generation,
        stop_timeout: task.stop_timeout,
        stop_signal: task.stop_signal.clone(),
        remove_volumes: task.remove_volumes,
        network: task.network.clone().unwrap_or(TaskNetwork::None),
        pid_of: task.pid_of.clone(),
        ipc_of: task.ipc_of.clone(),
        volumes: revision.volumes.clone(),
        files: revision.files.clone(),
        renew_anonymous_volumes: task.renew_anonymous_volumes,
        one_off: task.one_off,
        // One host alone does as Docker does there.
        comes_back: state.is_cluster() && !task.one_off,
    }
}

fn network(network: &Network) -> NetworkAssignment {
    let subnet = |pool: &Option<Pool>| pool.as_ref().map(|pool| pool.subnet.to_string());
    let gateway = |pool: &Option<Pool>| pool.as_ref().map(|pool| pool.gateway);
    let option = |key: &str| network.definition.driver_opts.get(key).map(String::as_str);
    NetworkAssignment {
        name: network.name.clone(),
        stack: network.stack.clone(),
        key: network.key.clone(),
        subnet4: subnet(&network.pool4),
        gateway4: gateway(&network.pool4)
            .and_then(|address| if let IpAddr::V4(four) = address { Some(four) } else { None }),
        subnet6: subnet(&network.pool6),
        gateway6: gateway(&network.pool6)
            .and_then(|address| if let IpAddr::V6(six) = address { Some(six) } else { None }),
        internal: network.definition.internal,
        icc: option(OPTION_ICC).is_none_or(|value| value != "false"),
        mtu: option(OPTION_MTU).and_then(|value| value.parse().ok()).unwrap_or(0),
        driver_opts: network.definition.driver_opts.clone(),
        labels: network.definition.labels.clone(),
        overlay: None,
    }
}

fn volume(volume: &Volume) -> VolumeAssignment {
    VolumeAssignment {
        name: volume.name.clone(),
        stack: volume.stack.clone(),
        external: false,
        driver: volume.driver.clone(),
        driver_opts: volume.driver_opts.clone(),
        labels: volume.labels.clone(),
    }
}

/// Tasks that answer to one name on one network: those that are well, or, when none is, all that run.
#[derive(Default)]
struct Candidates {
    well: BTreeSet<IpAddr>,
    all: BTreeSet<IpAddr>,
    /// The addresses that stand for them all.
    vips: BTreeSet<IpAddr>,
}

impl Candidates {
    fn add(&mut self, standing: Standing, addresses: &[Option<IpAddr>]) {
        if standing != Standing::Away {
            self.all.extend(addresses.iter().flatten());
        }
        if standing == Standing::Well {
            self.well.extend(addresses.iter().flatten());
        }
    }

    fn chosen(self) -> BTreeSet<IpAddr> {
        match (self.vips.is_empty(), self.well.is_empty()) {
            (false, _) => self.vips,
            (true, true) => self.all,
            (true, false) => self.well,
        }
    }
}

/// How a task stands to its names.
#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Away,
    Runs,
    Well,
}

fn standing(state: &State, task: &Task) -> Standing {
    if state.is_cluster() {
        return match task.serving {
            Serving::No | Serving::Leaving => Standing::Away,
            Serving::Unready => Standing::Runs,
            Serving::Ready => Standing::Well,
        };
    }
    let runs = matches!(task.status.state, TaskState::Running | TaskState::Paused)
        && matches!(task.told, Some(DesiredTask::Running | DesiredTask::Paused));
    match (runs, task.status.health) {
        (false, _) => Standing::Away,
        (true, Health::Unhealthy) => Standing::Runs,
        (true, _) => Standing::Well,
    }
}

fn names(state: &State, stack: &str) -> Names {
    let mut shared: BTreeMap<NetworkName, BTreeMap<String, Candidates>> = BTreeMap::new();
    for task in state.stack_tasks(stack) {
        let spec = &state.revision(task.revision).spec;
        let standing = standing(state, task);
        for endpoint in task.endpoints() {
            let mut own = vec![task.container_name.clone()];
            let mut common = Vec::new();
            let revision = state.revision(task.revision);
            let key = revision.networks.iter().find(|(_, name)| **name == endpoint.network).map(|(key, _)| key);
            // On a network that only people took it onto, it has its own name and those that they gave it (Docker's rule).
            let by_hand = task.attached.get(&endpoint.network);
            common.extend(by_hand.into_iter().flatten().cloned());
            let of_service = key.is_some() || by_hand.is_none();
            if of_service && (!task.one_off || task.use_aliases) {
                common.push(task.service.clone());
                common.push(format!("{}.{stack}", task.service));
                let attachment = key.and_then(|key| spec.networks.get(key));
                common.extend(attachment.into_iter().flat_map(|attachment| attachment.aliases.iter().cloned()));
            }
            if of_service && !task.one_off {
                own.push(format!("{}.{}", task.slot, task.service));
                if state.is_cluster() {
                    own.push(format!("{stack}-{}-{}", task.service, task.slot));
                    own.push(format!("tasks.{}", task.service));
                    own.push(format!("tasks.{}.{stack}", task.service));
                }
            }
            let addresses = [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)];
            let names = shared.entry(endpoint.network.clone()).or_default();
            for name in &own {
                names.entry(name.to_ascii_lowercase()).or_default().add(standing, &addresses);
            }
            let vips = vips(state, task, &endpoint.network);
            for name in common {
                let candidates = names.entry(name.to_ascii_lowercase()).or_default();
                candidates.add(standing, &addresses);
                candidates.vips.extend(&vips);
            }
        }
    }
    shared
        .into_iter()
        .map(|(network, names)| (network, names.into_iter().map(|(name, found)| (name, found.chosen())).collect()))
        .collect()
}

/// The addresses that stand for the task's service on a network, where its file wants such.
fn vips(state: &State, task: &Task, network: &NetworkName) -> Vec<IpAddr> {
    let service = state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service));
    let mode = service.and_then(|service| state.revision(service.revision).spec.deploy.endpoint_mode);
    let vip = state
        .networks
        .get(network)
        .and_then(|network| network.vips.get(&endpoint::vip_key(&task.stack, &task.service)));
    let vip = vip.filter(|_| mode != Some(EndpointMode::Dnsrr));
    vip.into_iter().flat_map(|vip| [vip.ipv4.map(IpAddr::V4), vip.ipv6.map(IpAddr::V6)]).flatten().collect()
}
