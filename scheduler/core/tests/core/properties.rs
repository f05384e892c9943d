//! Random commands and reports: what must hold after every one of them, and that a replay gives the same state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orch_core::{Act, Action, Assignments, AttachTask, Command, DetachTask, Down, Scale, State, Task, UpOptions};
use orch_spec::assignment::{DesiredTask, Health, NodeReport, TaskState, TaskStatus};
use orch_spec::model::{DependencyCondition, StackSpec};
use proptest::prelude::*;

use crate::world::{World, stack};

/// Files that differ in what matters: order, images, commands, networks, namespaces, names, ports, addresses, services that come and go.
const FILES: [&str; 5] = [
    r#"
services:
  web: {image: web, depends_on: {app: {condition: service_healthy}}, ports: ["8080:80"]}
  app: {image: app, healthcheck: {test: "true"}, depends_on: {db: {condition: service_started, restart: true}, job: {condition: service_completed_successfully}}}
  db: {image: db, volumes: ["data:/data"]}
  job: {image: job}
volumes: {data: {}}
"#,
    r#"
services:
  web: {image: web, command: other, depends_on: {app: {condition: service_healthy}}, ports: ["8080:80"]}
  app: {image: app, healthcheck: {test: "true"}, depends_on: {db: {condition: service_started, restart: true}}}
  db: {image: db, volumes: ["data:/data"], environment: {A: b}}
  side: {image: side, network_mode: "service:db"}
volumes: {data: {}}
"#,
    r#"
services:
  db: {image: db, depends_on: [web], networks: [net]}
  web: {image: web, networks: [net], container_name: fixed}
networks: {net: {}}
"#,
    r#"
services:
  web: {image: web, networks: {net: {ipv4_address: 10.9.0.9}}, container_name: fixed, ports: ["8080-8082:80"]}
  extra: {image: extra, networks: [net, more], depends_on: {web: {condition: service_started}}}
networks: {net: {ipam: {config: [{subnet: 10.9.0.0/28}]}}, more: {enable_ipv6: true}}
"#,
    r#"
services:
  app: {image: app, scale: 3, ports: ["8080-8082:80"]}
"#,
];

#[derive(Debug, Clone)]
enum Step {
    Up {
        file: usize,
        services: Vec<&'static str>,
        scale: u32,
        flags: u8,
    },
    Down {
        volumes: bool,
        orphans: bool,
        services: Vec<&'static str>,
    },
    Scale {
        service: &'static str,
        replicas: u32,
    },
    Act {
        action: Action,
        services: Vec<&'static str>,
        no_deps: bool,
    },
    /// The agent does everything it has to; or looks once.
    Agent,
    Look,
    /// Something happens to some task, whatever it was told.
    Mishap {
        task: usize,
        kind: u8,
    },
    /// People take some task onto some network, or off it.
    Wire {
        task: usize,
        network: usize,
        on: bool,
    },
    /// The log so far becomes a snapshot, and the state is read back from it.
    Snapshot,
}

const SERVICES: [&str; 6] = ["web", "app", "db", "job", "side", "extra"];

fn service() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&SERVICES[..])
}

fn step() -> impl Strategy<Value = Step> {
    let services = || prop::collection::vec(service(), 0..3);
    let action = prop::sample::select(
        &[Action::Start, Action::Stop, Action::Restart, Action::Pause, Action::Unpause, Action::Kill, Action::Remove][..],
    );
    prop_oneof![
        4 => (0..FILES.len(), services(), 0..4_u32, any::<u8>())
            .prop_map(|(file, services, scale, flags)| Step::Up { file, services, scale, flags }),
        1 => (any::<bool>(), any::<bool>(), services())
            .prop_map(|(volumes, orphans, services)| Step::Down { volumes, orphans, services }),
        1 => (service(), 0..4_u32).prop_map(|(service, replicas)| Step::Scale { service, replicas }),
        2 => (action, services(), any::<bool>()).prop_map(|(action, services, no_deps)| Step::Act { action, services, no_deps }),
        2 => Just(Step::Agent),
        4 => Just(Step::Look),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(task, kind)| Step::Mishap { task, kind }),
        2 => (any::<usize>(), any::<usize>(), any::<bool>())
            .prop_map(|(task, network, on)| Step::Wire { task, network, on }),
        1 => Just(Step::Snapshot),
    ]
}

fn take(world: &mut World, files: &[Arc<StackSpec>], step: &Step) {
    let names = |services: &[&'static str]| services.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    match step {
        Step::Up { file, services, scale, flags } => {
            let spec = &files[*file];
            let services: Vec<String> =
                names(services).into_iter().filter(|name| spec.services.contains_key(name)).collect();
            let scale = services.first().map(|name| (name.clone(), *scale)).into_iter().collect();
            let options = UpOptions {
                services,
                scale,
                no_deps: flags & 1 != 0,
                force_recreate: flags & 6 == 6,
                no_start: flags & 24 == 24,
                remove_orphans: flags & 32 != 0,
                ..UpOptions::default()
            };
            // What it would do is what it does, and doing it again does nothing.
            let foretold = world.plan(spec, options.clone());
            let done = world.up(spec, options.clone());
            assert_eq!(
                foretold.as_ref().map(|answer| answer.plan.to_string()),
                done.as_ref().map(|answer| answer.plan.to_string())
            );
            if done.is_ok() {
                let again = UpOptions { force_recreate: false, ..options };
                let plan = world.plan(spec, again).expect("what was possible still is").plan;
                assert!(plan.is_empty(), "planned again:\n{plan}");
            }
        }
        Step::Down { volumes, orphans, services } => {
            let services = names(services);
            let stack = "web".to_owned();
            let down = Down { stack, volumes: *volumes, remove_orphans: *orphans, services, timeout: None };
            let _ = world.apply(Command::RemoveStack(down));
        }
        Step::Scale { service, replicas } => {
            let services = BTreeMap::from([((*service).to_owned(), *replicas)]);
            let _ = world.apply(Command::Scale(Scale { stack: "web".to_owned(), services, ..Scale::default() }));
        }
        Step::Act { action, services, no_deps } => {
            let act = Act {
                stack: "web".to_owned(),
                services: names(services),
                tasks: Vec::new(),
                action: *action,
                timeout: None,
                signal: None,
                no_deps: *no_deps,
                remove_volumes: false,
                stop: *no_deps,
            };
            let _ = world.apply(Command::Act(act));
        }
        Step::Agent => world.agent(),
        Step::Look => drop(world.agent_step()),
        Step::Mishap { task, kind } => mishap(world, *task, *kind),
        Step::Wire { task, network, on } => wire(world, *task, *network, *on),
        Step::Snapshot => {
            let bytes = serde_json::to_vec(&world.state).expect("a state can be written down");
            let read: State = serde_json::from_slice(&bytes).expect("a state can be read back");
            assert_eq!(read, world.state);
            world.state = read;
            world.assignments = Assignments::new(&world.state);
        }
    }
}

fn wire(world: &mut World, task: usize, network: usize, on: bool) {
    let some = |count: usize, number: usize| number % count.max(1);
    let task = world.state.tasks.keys().nth(some(world.state.tasks.len(), task)).cloned();
    let network = world.state.networks.keys().nth(some(world.state.networks.len(), network)).cloned();
    let (Some(task), Some(network)) = (task, network) else { return };
    let command = if on {
        Command::AttachTask(AttachTask { task, network, ..AttachTask::default() })
    } else {
        Command::DetachTask(DetachTask { task, network })
    };
    let _ = world.apply(command);
}

fn mishap(world: &mut World, task: usize, kind: u8) {
    let Some(task) = world.state.tasks.values().nth(task % world.state.tasks.len().max(1)) else { return };
    let mut status = TaskStatus { task: task.id.clone(), again: false, ..task.status.clone() };
    match kind % 7 {
        0 => (status.state, status.exit_code) = (TaskState::Exited, Some(1)),
        1 => (status.state, status.exit_code) = (TaskState::Exited, Some(0)),
        2 => (status.state, status.health) = (TaskState::Running, Health::Unhealthy),
        3 => status.state = TaskState::Failed,
        4 => status.state = TaskState::Removed,
        5 => (status.state, status.again) = (TaskState::Failed, true),
        _ => status.state = TaskState::Restarting,
    }
    world.report(NodeReport::Tasks(vec![status]));
}

/// What must hold at every moment. `before` is the state before the last command.
fn check(before: &State, world: &World) {
    let state = &world.state;
    addresses_have_one_holder(state);
    crate::oracle::lists_are_right(state);
    slots_have_one_task(state);
    let live: BTreeSet<_> = state.tasks.values().map(|task| task.revision).collect();
    assert!(live.iter().all(|id| state.revisions.contains_key(id)));
    for task in state.tasks.values() {
        let listed = state.stacks.get(&task.stack).and_then(|stack| stack.tasks.get(&task.service));
        assert!(listed.is_some_and(|ids| ids.contains(task)), "{} is in no list", task.container_name);
        if task.told.is_some() {
            assert!(
                task.after.iter().all(|former| !state.tasks.contains_key(former)),
                "{} did not wait",
                task.container_name
            );
        }
        gate_holds(before, state, task);
    }
    let fresh = Assignments::new(state).of(state, &world.node);
    assert_eq!(fresh, world.assignment(), "what is kept is not what would be derived");
    for task in &fresh.tasks {
        let networks: BTreeSet<_> = fresh.networks.iter().map(|network| &network.name).collect();
        if let orch_spec::assignment::TaskNetwork::Endpoints { endpoints, .. } = &task.network {
            assert!(endpoints.iter().all(|endpoint| networks.contains(&endpoint.network)), "a network is missing");
        }
    }
}

fn addresses_have_one_holder(state: &State) {
    let mut seen = BTreeMap::new();
    for task in state.tasks.values() {
        for endpoint in task.endpoints() {
            for address in
                [endpoint.ipv4.map(std::net::IpAddr::V4), endpoint.ipv6.map(std::net::IpAddr::V6)].into_iter().flatten()
            {
                // A task and the one that it replaces share an address, but a node is never told of both.
                if task.told.is_some() {
                    let other = seen.insert((endpoint.network.clone(), address), task.container_name.clone());
                    assert!(
                        other.is_none(),
                        "{address} is {}'s and {}'s",
                        other.unwrap_or_default(),
                        task.container_name
                    );
                }
            }
        }
    }
    for network in state.networks.values() {
        for pool in network.pools() {
            for (address, holder) in &pool.held {
                let task = holder.strip_prefix("task:").map(|id| state.tasks.contains_key(&id.into()));
                assert_eq!(task, Some(true), "{address} is held by {holder}, who is gone");
            }
        }
    }
}

fn slots_have_one_task(state: &State) {
    let mut seen = BTreeSet::new();
    for task in state.tasks.values().filter(|task| !task.one_off) {
        let slot = (&task.stack, &task.service, task.slot);
        if !task.is_retiring() {
            assert!(seen.insert((slot, "stays")), "two tasks stay in the slot of {}", task.container_name);
        }
        if task.told.is_some() {
            assert!(seen.insert((slot, "told")), "a node was told of two tasks in the slot of {}", task.container_name);
        }
    }
}

/// A task that was started by this very command had what it depends on; one that was taken down had its dependents down.
fn gate_holds(before: &State, state: &State, task: &Task) {
    let former = before.tasks.get(&task.id);
    let spec = &state.revision(task.revision).spec;
    let runs = |told: Option<DesiredTask>| matches!(told, Some(DesiredTask::Running | DesiredTask::Paused));
    if runs(task.told) && !former.is_some_and(|former| runs(former.told)) && !task.ungated {
        for (service, dependency) in spec.depends_on.iter().filter(|(_, dependency)| dependency.required) {
            for other in state.service_tasks(&task.stack, service).filter(|other| other.is_replica()) {
                let fits = match dependency.condition {
                    DependencyCondition::Started => other.was_started(),
                    DependencyCondition::Healthy => other.status.health == Health::Healthy,
                    DependencyCondition::CompletedSuccessfully => other.status.exit_code == Some(0),
                };
                assert!(fits, "{} was started before {}", task.container_name, other.container_name);
            }
        }
    }
    let down = |told: Option<DesiredTask>| matches!(told, Some(DesiredTask::Stopped | DesiredTask::Removed));
    if down(task.told) && !former.is_some_and(|former| down(former.told)) && !task.unordered {
        for other in
            state.stack_tasks(&task.stack).filter(|other| other.service != task.service && down(Some(other.goal)))
        {
            let depends = state.revision(other.revision).spec.depends_on.contains_key(&task.service)
                && !goes_in_a_circle(before, state, &task.stack, &task.service);
            assert!(!depends || !other.may_live(), "{} went down before {}", task.container_name, other.container_name);
        }
    }
}

/// Whether tasks that were made from several versions of a file depend on each other in a circle: such have no order.
fn goes_in_a_circle(before: &State, state: &State, stack: &str, service: &str) -> bool {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut reached = vec![service];
    while let Some(at) = reached.pop() {
        for state in [before, state] {
            for task in state.service_tasks(stack, at) {
                for needed in state.revision(task.revision).spec.depends_on.keys() {
                    if needed == service {
                        return true;
                    }
                    if seen.insert(needed) {
                        reached.push(needed);
                    }
                }
            }
        }
    }
    false
}

proptest! {
    #[test]
    fn no_sequence_of_commands_breaks_what_must_hold(steps in prop::collection::vec(step(), 1..40)) {
        let files: Vec<Arc<StackSpec>> = FILES.iter().map(|text| Arc::new(stack("web", text))).collect();
        let mut world = World::with_node(&[]);
        world.ends.insert("job".to_owned(), 0);
        for step in &steps {
            let before = world.state.clone();
            take(&mut world, &files, step);
            check(&before, &world);
        }
        replay(&world);
        // Whatever has happened, everything can be taken down, and then nothing is left.
        world.agent();
        let down = Down { stack: "web".to_owned(), volumes: true, remove_orphans: true, ..Down::default() };
        let _ = world.apply(Command::RemoveStack(down));
        world.agent();
        // A volume outlives its stack unless that was taken down with its volumes.
        for name in world.state.volumes.keys().cloned().collect::<Vec<_>>() {
            let removed = world.apply(Command::RemoveVolume { name }).result.is_ok();
            prop_assert!(removed, "an unused volume can be removed");
        }
        world.agent();
        let state = &world.state;
        prop_assert!(state.tasks.is_empty() && state.stacks.is_empty() && state.networks.is_empty() && state.volumes.is_empty());
        prop_assert!(state.revisions.is_empty() && state.successors.is_empty(), "something is left: {:?}", state.successors);
    }
}

/// The log alone, and a snapshot with the rest of the log, give the state that is.
fn replay(world: &World) {
    let mut state = State::new("test-cluster");
    let half = world.log.len() / 2;
    for (place, entry) in world.log.iter().enumerate() {
        if place == half {
            let bytes = serde_json::to_vec(&state).expect("a state can be written down");
            state = serde_json::from_slice(&bytes).expect("a state can be read back");
        }
        let index = state.index + 1;
        state.apply(index, entry);
    }
    assert_eq!(state, world.state, "a replay gives another state");
}
