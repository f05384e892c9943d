//! What clients are shown, made from the state.

use std::collections::{BTreeMap, BTreeSet};

use orch_api::control::{
    EndpointView, NetworkView, NodeView, OperationView, PlanView, ServiceView, StackSummary, StackView, TaskView,
    VolumeView, WaitView,
};
use orch_core::{Availability, Network, Node, Plan, Pool, Stack, State, Task, Volume};
use orch_spec::assignment::{Health, PortAssignment, TaskState, TaskStatus};
use orch_spec::model::{DependencyCondition, HealthTest, RestartCondition, ServiceSpec};

/// A plan for people and programs.
pub(crate) fn plan(plan: &Plan) -> PlanView {
    let operations: Vec<OperationView> = plan
        .operations()
        .into_iter()
        .map(|(id, operation, depends_on)| OperationView {
            id,
            action: operation.verb.as_str().to_owned(),
            resource: format!("{} {}", operation.kind.as_str(), operation.name),
            cause: operation.cause.clone(),
            service: operation.service.clone(),
            task: operation.task.as_ref().map_or_else(String::new, |task| task.0.clone()),
            depends_on,
        })
        .collect();
    PlanView { changes: operations.len(), operations }
}

/// A stack in a list.
pub(crate) fn summary(state: &State, stack: &Stack) -> StackSummary {
    StackSummary {
        name: stack.name.clone(),
        status: status_text(state, &stack.name),
        services: stack.services.len(),
        files: stack.files.clone(),
        removing: stack.removing.is_some(),
    }
}

/// A stack with everything.
pub(crate) fn stack(state: &State, stack: &Stack) -> StackView {
    let mut tasks: Vec<&Task> = state.stack_tasks(&stack.name).collect();
    tasks.sort_by(|a, b| a.order().cmp(&b.order()));
    let (networks, volumes) = objects(state, &stack.name);
    StackView {
        index: state.index,
        name: stack.name.clone(),
        status: status_text(state, &stack.name),
        files: stack.files.clone(),
        services: services(state, stack),
        tasks: tasks.into_iter().map(|task| self::task(state, task)).collect(),
        networks: networks.into_iter().map(|one| network(state, one)).collect(),
        volumes: volumes.into_iter().map(|one| volume(state, one)).collect(),
        removing: stack.removing.is_some(),
    }
}

/// The networks and volumes that a stack made or uses.
pub(crate) fn objects<'s>(state: &'s State, stack: &str) -> (Vec<&'s Network>, Vec<&'s Volume>) {
    let revisions: BTreeSet<_> = state
        .stack_tasks(stack)
        .map(|task| task.revision)
        .chain(
            state
                .stacks
                .get(stack)
                .into_iter()
                .flat_map(|stack| stack.services.values().map(|service| service.revision)),
        )
        .collect();
    let used = |name: &str| {
        revisions.iter().any(|id| state.revision(*id).networks.values().any(|network| network.as_str() == name))
    };
    let networks =
        state.networks.values().filter(|network| network.stack == stack || used(network.name.as_str())).collect();
    let mounted =
        |name: &String| revisions.iter().any(|id| state.revision(*id).volumes.values().any(|volume| volume == name));
    let volumes = state.volumes.values().filter(|volume| volume.stack == stack || mounted(&volume.name)).collect();
    (networks, volumes)
}

/// `exited(1), running(3)`.
fn status_text(state: &State, stack: &str) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for task in state.stack_tasks(stack).filter(|task| !task.one_off) {
        *counts.entry(word(task.status.state)).or_default() += 1;
    }
    counts.into_iter().map(|(word, count)| format!("{word}({count})")).collect::<Vec<_>>().join(", ")
}

fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Pending | TaskState::Assigned => "pending",
        TaskState::Preparing => "preparing",
        TaskState::Created => "created",
        TaskState::Starting => "starting",
        TaskState::Running => "running",
        TaskState::Paused => "paused",
        TaskState::Restarting => "restarting",
        TaskState::Stopping => "stopping",
        TaskState::Exited => "exited",
        TaskState::Failed => "failed",
        TaskState::Removed => "removed",
    }
}

/// The services of a stack.
pub(crate) fn services(state: &State, stack: &Stack) -> Vec<ServiceView> {
    let specs: BTreeMap<&String, &ServiceSpec> =
        stack.services.iter().map(|(name, service)| (name, &*state.revision(service.revision).spec)).collect();
    let awaited: BTreeSet<&String> = specs
        .values()
        .flat_map(|spec| &spec.depends_on)
        .filter(|(_, dependency)| dependency.condition == DependencyCondition::CompletedSuccessfully)
        .map(|(name, _)| name)
        .collect();
    stack
        .services
        .iter()
        .map(|(name, service)| {
            let revision = state.revision(service.revision);
            let spec = &revision.spec;
            let replicas: Vec<&Task> =
                state.service_tasks(&stack.name, name).filter(|task| task.is_replica()).collect();
            let runs = |task: &&&Task| matches!(task.status.state, TaskState::Running | TaskState::Paused);
            let is_well = |task: &&&Task| matches!(task.status.health, Health::None | Health::Healthy);
            ServiceView {
                id: format!("{}_{name}", stack.name),
                name: name.clone(),
                stack: stack.name.clone(),
                mode: if spec.deploy.mode.is_global() { "global" } else { "replicated" }.to_owned(),
                desired: service.replicas,
                running: count(replicas.iter().filter(runs).count()),
                ready: count(replicas.iter().filter(runs).filter(is_well).count()),
                image: spec.image.clone(),
                ports: ports(spec),
                update_status: String::new(),
                orphan: service.orphan,
                health_check: spec
                    .healthcheck
                    .as_ref()
                    .is_some_and(|check| matches!(check.test, HealthTest::Command(_) | HealthTest::Shell(_))),
                one_shot: awaited.contains(name),
                restart: restart_text(spec),
                hash: revision.hash.clone(),
                depends_on: spec.depends_on.keys().cloned().collect(),
            }
        })
        .collect()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn ports(spec: &ServiceSpec) -> Vec<PortAssignment> {
    let port = |port: &orch_spec::model::PortSpec| PortAssignment {
        host_ip: port.host_ip,
        host_ports: port.published.map_or((0, 0), |range| (range.start, range.end)),
        target: port.target,
        protocol: port.protocol.to_string(),
    };
    spec.ports.iter().map(port).collect()
}

fn restart_text(spec: &ServiceSpec) -> String {
    let Some(policy) = spec.restart_policy() else { return "no".to_owned() };
    match (policy.condition, policy.max_attempts) {
        (RestartCondition::None, _) => "no".to_owned(),
        (RestartCondition::OnFailure, Some(attempts)) => format!("on-failure:{attempts}"),
        (RestartCondition::OnFailure, None) => "on-failure".to_owned(),
        (RestartCondition::Any, _) if policy.unless_stopped => "unless-stopped".to_owned(),
        (RestartCondition::Any, _) => "always".to_owned(),
    }
}

/// A task.
pub(crate) fn task(state: &State, task: &Task) -> TaskView {
    let revision = state.revision(task.revision);
    let service = state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service));
    let networks = revision.networks.iter().filter_map(|(key, name)| {
        let endpoint = task.endpoints().iter().find(|endpoint| endpoint.network == *name)?;
        Some((key.clone(), EndpointView { network: name.0.clone(), ipv4: endpoint.ipv4, ipv6: endpoint.ipv6 }))
    });
    let mut status = TaskStatus { task: task.id.clone(), ..task.status.clone() };
    if status.state == TaskState::Pending && task.told.is_some() {
        status.state = TaskState::Assigned;
    }
    TaskView {
        id: task.id.0.clone(),
        stack: task.stack.clone(),
        service: task.service.clone(),
        slot: task.slot,
        one_off: task.one_off,
        node: task.node.as_ref().map_or_else(String::new, |node| node.0.clone()),
        container_name: task.container_name.clone(),
        image: revision.spec.image.clone(),
        image_id: task.image_id.clone(),
        spec_hash: revision.hash.clone(),
        up_to_date: service.is_some_and(|service| service.revision == task.revision),
        desired: task.goal,
        status,
        waiting_on: task
            .waiting
            .iter()
            .map(|wait| WaitView { kind: wait.kind.clone(), on: wait.on.clone(), text: wait.text.clone() })
            .collect(),
        blocked: task.blocked.clone(),
        networks: networks.collect(),
        ports: task.ports().to_vec(),
        created_at: task.created_at,
    }
}

/// A network.
pub(crate) fn network(state: &State, network: &Network) -> NetworkView {
    let subnet = |pool: &Option<Pool>| pool.as_ref().map(|pool| pool.subnet.to_string());
    let gateway = |pool: &Option<Pool>| pool.as_ref().map(|pool| pool.gateway);
    let mut endpoints = BTreeMap::new();
    for task in network.users.iter().filter_map(|id| state.tasks.get(id)) {
        for endpoint in task.endpoints().iter().filter(|endpoint| endpoint.network == network.name) {
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
        subnet4: subnet(&network.pool4),
        gateway4: gateway(&network.pool4)
            .and_then(|address| if let std::net::IpAddr::V4(four) = address { Some(four) } else { None }),
        subnet6: subnet(&network.pool6),
        gateway6: gateway(&network.pool6)
            .and_then(|address| if let std::net::IpAddr::V6(six) = address { Some(six) } else { None }),
        internal: network.definition.internal,
        labels: network.definition.labels.clone(),
        driver_opts: network.definition.driver_opts.clone(),
        removing: network.phase == orch_core::NetworkPhase::Removing,
        endpoints,
        created_at: network.created_at,
    }
}

/// A volume.
pub(crate) fn volume(state: &State, volume: &Volume) -> VolumeView {
    let users = volume.users.iter().filter_map(|id| state.tasks.get(id)).map(|task| task.container_name.clone());
    VolumeView {
        name: volume.name.clone(),
        stack: volume.stack.clone(),
        key: volume.key.clone(),
        driver: volume.driver.clone(),
        driver_opts: volume.driver_opts.clone(),
        labels: volume.labels.clone(),
        removing: volume.removing,
        error: volume.error.clone(),
        users: users.collect(),
        created_at: volume.created_at,
    }
}

/// A node.
pub(crate) fn node(
    state: &State,
    id: &orch_spec::assignment::NodeId,
    node: &Node,
    is_connected: bool,
    is_here: bool,
) -> NodeView {
    NodeView {
        id: id.0.clone(),
        hostname: node.facts.hostname.clone(),
        address: String::new(),
        role: if is_here { "manager" } else { "worker" }.to_owned(),
        leader: is_here,
        state: if is_connected { "ready" } else { "down" }.to_owned(),
        availability: match node.availability {
            Availability::Active => "active",
            Availability::Pause => "pause",
            Availability::Drain => "drain",
        }
        .to_owned(),
        version: node.facts.version.clone(),
        platform: node.facts.platform.clone(),
        cpus: node.facts.cpus,
        memory: node.facts.memory,
        tasks: count(state.tasks.values().filter(|task| task.node.as_ref() == Some(id)).count()),
    }
}
