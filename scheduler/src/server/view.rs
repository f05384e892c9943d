//! The state as the API shows it.

use std::collections::{BTreeMap, BTreeSet};

use orch_api::control::{
    EndpointView, NetworkView, NodeView, OperationView, PlanView, ServiceView, StackSummary, StackView, TaskView,
    VolumeView, WaitView,
};
use orch_api::service::UpdateView;
use orch_core::{Network, NetworkPhase, Node, NodeState, Plan, RevisionId, Rollout, Service, State, Task, Volume};
use orch_spec::assignment::{DesiredTask, Health, NodeId, PortAssignment, TaskState, TaskStatus};
use orch_spec::model::{DependencyCondition, HealthTest, RestartPolicy, ServiceSpec};

use crate::control::Control;

/// A plan as data.
pub(crate) fn plan(plan: &Plan) -> PlanView {
    let operations: Vec<OperationView> = plan
        .operations()
        .into_iter()
        .map(|(id, op, depends_on)| OperationView {
            id,
            action: op.verb.as_str().to_owned(),
            resource: format!("{} {}", op.kind.as_str(), op.name),
            cause: op.cause.clone(),
            service: op.service.clone(),
            task: op.task.as_ref().map(|t| t.to_string()).unwrap_or_default(),
            depends_on,
        })
        .collect();
    PlanView { changes: operations.len(), operations }
}

/// `running(4)`, `exited(1), running(3)`: by state, in the order of the alphabet, as Compose prints it.
fn status(state: &State, name: &str) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for task in state.stack_tasks(name).filter(|t| !t.one_off) {
        let word = serde_json::to_value(task.status.state).ok().and_then(|v| v.as_str().map(str::to_owned));
        *counts.entry(word.unwrap_or_default()).or_default() += 1;
    }
    let parts: Vec<String> = counts.into_iter().map(|(word, count)| format!("{word}({count})")).collect();
    parts.join(", ")
}

/// A stack in a list.
pub(crate) fn summary(state: &State, name: &str) -> Option<StackSummary> {
    let stack = state.stacks.get(name)?;
    Some(StackSummary {
        name: stack.name.clone(),
        status: status(state, name),
        services: stack.services.len(),
        files: stack.files.clone(),
        removing: stack.removing.is_some(),
    })
}

/// The networks and volumes that a stack made or uses.
pub(crate) fn objects<'s>(state: &'s State, name: &str) -> (Vec<&'s Network>, Vec<&'s Volume>) {
    let services =
        state.stacks.get(name).into_iter().flat_map(|stack| stack.services.values().map(|service| service.revision));
    let revisions: BTreeSet<RevisionId> = services.chain(state.stack_tasks(name).map(|task| task.revision)).collect();
    let revisions: Vec<_> = revisions.into_iter().map(|id| state.revision(id)).collect();
    let networks: BTreeSet<&str> =
        revisions.iter().flat_map(|r| r.networks.values().map(|name| name.as_str())).collect();
    let volumes: BTreeSet<&String> = revisions.iter().flat_map(|r| r.volumes.values()).collect();
    let uses = |network: &&Network| network.stack == name || networks.contains(network.name.as_str());
    let mounts = |volume: &&Volume| volume.stack == name || volumes.contains(&volume.name);
    (state.networks.values().filter(uses).collect(), state.volumes.values().filter(mounts).collect())
}

/// A stack with all that belongs to it.
pub(crate) fn stack(state: &State, name: &str) -> Option<StackView> {
    let stack = state.stacks.get(name)?;
    let mut tasks: Vec<&Task> = state.stack_tasks(name).collect();
    tasks.sort_by(|a, b| a.order().cmp(&b.order()));
    let (networks, volumes) = objects(state, name);
    let specs = stack.services.values().map(|service| &state.revision(service.revision).spec);
    let waited = specs.flat_map(|spec| &spec.depends_on);
    let awaited: BTreeSet<&String> = waited
        .filter(|(_, d)| d.condition == DependencyCondition::CompletedSuccessfully)
        .map(|(name, _)| name)
        .collect();
    let services =
        stack.services.keys().filter_map(|service| self::service(state, name, service, awaited.contains(service)));
    Some(StackView {
        index: state.index,
        name: stack.name.clone(),
        status: status(state, name),
        files: stack.files.clone(),
        services: services.collect(),
        networks: networks.into_iter().map(|n| network(state, n)).collect(),
        volumes: volumes.into_iter().map(|v| volume(state, v)).collect(),
        tasks: tasks.into_iter().map(|t| task(state, t)).collect(),
        removing: stack.removing.is_some(),
    })
}

fn restart(spec: &ServiceSpec) -> String {
    match spec.restart {
        None | Some(RestartPolicy::No) => "no".to_owned(),
        Some(RestartPolicy::Always) => "always".to_owned(),
        Some(RestartPolicy::UnlessStopped) => "unless-stopped".to_owned(),
        Some(RestartPolicy::OnFailure { max_attempts: None }) => "on-failure".to_owned(),
        Some(RestartPolicy::OnFailure { max_attempts: Some(most) }) => format!("on-failure:{most}"),
    }
}

/// A service of a stack.
fn service(state: &State, stack: &str, name: &str, one_shot: bool) -> Option<ServiceView> {
    let service = state.stacks.get(stack)?.services.get(name)?;
    let revision = state.revision(service.revision);
    let spec = &revision.spec;
    let tasks: Vec<&Task> = state.service_tasks(stack, name).filter(|t| t.is_replica()).collect();
    let is_there = |t: &Task| lost_on(state, t).is_none();
    let runs = |t: &&&Task| matches!(t.status.state, TaskState::Running | TaskState::Paused) && is_there(t);
    let is_well = |t: &Task| matches!(t.status.health, Health::None | Health::Healthy);
    let ready = |t: &&&Task| t.status.state == TaskState::Running && is_well(t) && is_there(t);
    Some(ServiceView {
        id: format!("{stack}_{name}"),
        name: name.to_owned(),
        stack: stack.to_owned(),
        mode: if spec.deploy.mode.is_global() { "global" } else { "replicated" }.to_owned(),
        desired: service.replicas,
        running: count(tasks.iter().filter(runs).count()),
        ready: count(tasks.iter().filter(ready).count()),
        image: spec.image.clone(),
        ports: ports(service, tasks.first().copied()),
        update_status: service.rollout.as_ref().map(|r| r.state.as_str().to_owned()).unwrap_or_default(),
        update: service.rollout.as_ref().map(update),
        orphan: service.orphan,
        health_check: spec
            .healthcheck
            .as_ref()
            .is_some_and(|check| matches!(check.test, HealthTest::Command(_) | HealthTest::Shell(_))),
        one_shot,
        restart: restart(spec),
        hash: revision.hash.clone(),
        depends_on: spec.depends_on.keys().cloned().collect(),
    })
}

/// Ports that every node publishes, and those that tasks publish where they are.
fn ports(service: &Service, task: Option<&Task>) -> Vec<PortAssignment> {
    let everywhere = service.mesh_ports.iter().map(|port| PortAssignment {
        host_ip: port.host_ip,
        host_ports: (port.published, port.published),
        target: port.target,
        protocol: port.protocol.clone(),
    });
    everywhere.chain(task.into_iter().flat_map(|task| task.ports().iter().cloned())).collect()
}

/// A rolling update.
fn update(rollout: &Rollout) -> UpdateView {
    UpdateView {
        state: rollout.state.as_str().to_owned(),
        message: rollout.message.clone(),
        total: rollout.total,
        done: rollout.done,
        failed: rollout.failed.len(),
        asked: rollout.asked,
        begun: rollout.begun,
        started_at: rollout.started_at,
        finished_at: rollout.finished_at,
    }
}

/// The word of a state.
pub(crate) fn state_word(state: TaskState) -> String {
    serde_json::to_value(state).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Whether it is to be started once more than it was.
fn again(task: &Task) -> bool {
    task.goal == DesiredTask::Running && task.goal_generation > task.status.restart_generation
}

/// A task's status as it counts now: how an earlier run ended is past once the task is to be started again.
fn present(task: &Task) -> TaskStatus {
    let mut status = TaskStatus { task: task.id.clone(), ..task.status.clone() };
    if status.state == TaskState::Pending && task.told.is_some() {
        status.state = TaskState::Assigned;
    }
    if again(task) && matches!(status.state, TaskState::Exited | TaskState::Failed | TaskState::Created) {
        status.state = if task.waiting.is_empty() { TaskState::Assigned } else { TaskState::Pending };
        status.error.clear();
        status.error_code = None;
        status.exit_code = None;
    }
    status
}

/// The host name of the task's node when that is lost: how the task is nobody knows then.
pub(crate) fn lost_on<'s>(state: &'s State, task: &Task) -> Option<&'s str> {
    let node = state.nodes.get(task.node.as_ref()?)?;
    let ended = matches!(task.status.state, TaskState::Exited | TaskState::Failed | TaskState::Removed);
    (node.state == NodeState::Down && !ended).then_some(node.facts.hostname.as_str())
}

/// That a task waits for its lost node, which it does when no other takes its place: its data is there, or no other may have it. Of a service
/// with a task on every node nobody waits for those of lost ones.
fn waits_for_node(state: &State, task: &Task, spec: &ServiceSpec) -> Option<WaitView> {
    let host = lost_on(state, task)?;
    if spec.deploy.mode.is_global() || task.goal == DesiredTask::Removed {
        return None;
    }
    let text = format!("its node {host}, which is down");
    Some(WaitView { kind: "node".to_owned(), on: host.to_owned(), text })
}

/// A task.
pub(crate) fn task(state: &State, task: &Task) -> TaskView {
    let revision = state.revision(task.revision);
    let current = state.stacks.get(&task.stack).and_then(|s| s.services.get(&task.service)).map(|s| s.revision);
    let networks = task
        .endpoints()
        .iter()
        .map(|endpoint| {
            let key = revision.networks.iter().find(|(_, name)| **name == endpoint.network).map(|(key, _)| key.clone());
            let view = EndpointView { network: endpoint.network.0.clone(), ipv4: endpoint.ipv4, ipv6: endpoint.ipv6 };
            (key.unwrap_or_else(|| endpoint.network.0.clone()), view)
        })
        .collect();
    TaskView {
        id: task.id.to_string(),
        stack: task.stack.clone(),
        service: task.service.clone(),
        slot: task.slot,
        one_off: task.one_off,
        node: task.node.as_ref().map(|n| n.0.clone()).unwrap_or_default(),
        container_name: task.container_name.clone(),
        image: revision.spec.image.clone(),
        image_id: task.image_id.clone(),
        spec_hash: revision.hash.clone(),
        up_to_date: current == Some(task.revision),
        desired: task.goal,
        again: again(task),
        status: present(task),
        waiting_on: task
            .waiting
            .iter()
            .map(|w| WaitView { kind: w.kind.clone(), on: w.on.clone(), text: w.text.clone() })
            .chain(waits_for_node(state, task, &revision.spec))
            .collect(),
        blocked: task.blocked.clone(),
        networks,
        ports: task.ports().to_vec(),
        created_at: task.created_at,
    }
}

/// A network.
pub(crate) fn network(state: &State, network: &Network) -> NetworkView {
    let pool = |pool: &Option<orch_core::Pool>| pool.as_ref().map(|p| (p.subnet.to_string(), p.gateway));
    let (pool4, pool6) = (pool(&network.pool4), pool(&network.pool6));
    let mut endpoints: BTreeMap<String, EndpointView> = BTreeMap::new();
    for task in network.users.iter().filter_map(|id| state.tasks.get(id)) {
        for endpoint in task.endpoints().iter().filter(|e| e.network == network.name) {
            let view = EndpointView { network: network.name.0.clone(), ipv4: endpoint.ipv4, ipv6: endpoint.ipv6 };
            endpoints.insert(task.container_name.clone(), view);
        }
    }
    for reservation in network.reservations.values() {
        let view = EndpointView { network: network.name.0.clone(), ipv4: reservation.ipv4, ipv6: reservation.ipv6 };
        endpoints.insert(reservation.name.clone(), view);
    }
    NetworkView {
        name: network.name.0.clone(),
        stack: network.stack.clone(),
        key: network.key.clone(),
        driver: network.definition.driver.clone(),
        subnet4: pool4.as_ref().map(|p| p.0.clone()),
        gateway4: pool4.and_then(|p| if let std::net::IpAddr::V4(a) = p.1 { Some(a) } else { None }),
        subnet6: pool6.as_ref().map(|p| p.0.clone()),
        gateway6: pool6.and_then(|p| if let std::net::IpAddr::V6(a) = p.1 { Some(a) } else { None }),
        internal: network.definition.internal,
        labels: network.definition.labels.clone(),
        driver_opts: network.definition.driver_opts.clone(),
        removing: network.phase == NetworkPhase::Removing,
        endpoints,
        created_at: network.created_at,
    }
}

/// A volume.
pub(crate) fn volume(state: &State, volume: &Volume) -> VolumeView {
    VolumeView {
        name: volume.name.clone(),
        stack: volume.stack.clone(),
        key: volume.key.clone(),
        driver: volume.driver.clone(),
        driver_opts: volume.driver_opts.clone(),
        labels: volume.labels.clone(),
        removing: volume.removing,
        error: volume.error.clone(),
        users: volume.users.iter().filter_map(|id| state.tasks.get(id)).map(|t| t.container_name.clone()).collect(),
        created_at: volume.created_at,
    }
}

/// A node. Who leads is not in the state: see [`led`].
pub(crate) fn node(state: &State, id: &NodeId, node: &Node) -> NodeView {
    let alone = !state.is_cluster();
    NodeView {
        id: id.0.clone(),
        hostname: node.facts.hostname.clone(),
        address: node.facts.address.map(|address| address.to_string()).unwrap_or_default(),
        role: if alone { "manager" } else { node.role.as_str() }.to_owned(),
        leader: alone,
        state: node.state.as_str().to_owned(),
        availability: node.availability.as_str().to_owned(),
        version: node.facts.version.clone(),
        platform: node.facts.platform.clone(),
        cpus: node.facts.cpus,
        memory: node.facts.memory,
        tasks: count(node.tasks.len()),
        labels: node.labels.clone(),
        engine_labels: node.facts.labels.clone(),
        reserved_cpus: node.usage.cpus,
        reserved_memory: node.usage.memory,
        since: node.since,
        underlay: node
            .underlay
            .iter()
            .filter_map(|(peer, why)| Some((state.nodes.get(peer)?.facts.hostname.clone(), why.clone())))
            .collect(),
        faulty: node.faulty.iter().filter(|(_, until)| **until > state.time).map(|(name, _)| name.clone()).collect(),
    }
}

/// Whether the node leads, as this manager knows it.
pub(crate) fn led(view: NodeView, control: &Control) -> NodeView {
    let leader = control.leadership().borrow().leader.as_ref().is_some_and(|leader| leader.0 == view.id);
    NodeView { leader: view.leader || leader, ..view }
}
