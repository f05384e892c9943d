//! What a cluster of several nodes does: where tasks go, what happens when nodes are lost, drained or come back, what is told of whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use orch_core::{
    Availability, Command, Down, Explanation, Hint, NodeState, Refusal, ReserveAddress, RolloutState, Scale, Serving,
    Turn, UpdateNode,
};
use orch_spec::assignment::{
    Backend, DesiredTask, NetworkName, NodeId, NodeReport, RemoteEndpoint, TaskState, TaskStatus,
};
use orch_spec::model::StackSpec;

use crate::fleet::Fleet;
use crate::world::stack;

pub(crate) fn file(text: &str) -> Arc<StackSpec> {
    Arc::new(stack("web", text))
}

pub(crate) fn up(fleet: &mut Fleet, text: &str) {
    let spec = file(text);
    fleet.up(&spec).expect("it can be brought up");
    fleet.settle();
    let again = fleet.plan(&spec).expect("what was possible still is").plan;
    assert!(again.is_empty(), "planned again:\n{again}");
}

fn label(fleet: &mut Fleet, node: &str, name: &str, value: &str) {
    let labels = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let _ = fleet.apply(Command::UpdateNode(UpdateNode { node: node.into(), labels, ..UpdateNode::default() }));
}

fn availability(fleet: &mut Fleet, node: &str, availability: Availability) {
    let request = UpdateNode { node: node.into(), availability: Some(availability), ..UpdateNode::default() };
    assert!(fleet.apply(Command::UpdateNode(request)).result.is_ok());
}

/// How many tasks of a service each node really runs.
fn counts(fleet: &Fleet, service: &str) -> Vec<usize> {
    let running = fleet.running(service);
    fleet.hosts.keys().map(|node| running.iter().filter(|(_, on)| on == node).count()).collect()
}

pub(crate) fn rollout(fleet: &Fleet, service: &str) -> (RolloutState, String) {
    let service = &fleet.state.stacks["web"].services[service];
    let rollout = service.rollout.as_ref().expect("there was an update");
    (rollout.state, rollout.message.clone())
}

pub(crate) fn images(fleet: &Fleet, service: &str) -> Vec<String> {
    let stay = fleet.tasks(service).into_iter().filter(|task| task.is_replica());
    stay.map(|task| fleet.state.revision(task.revision).spec.image.clone()).collect()
}

#[test]
fn replicas_are_spread_evenly_and_each_slot_runs_once() {
    let mut fleet = Fleet::new(3);
    up(&mut fleet, "services: {app: {image: app, deploy: {replicas: 8}}}");
    let mut counts = counts(&fleet, "app");
    counts.sort_unstable();
    assert_eq!(counts, [2, 3, 3]);
    let slots: BTreeSet<u32> = fleet.running("app").into_iter().map(|(slot, _)| slot).collect();
    assert_eq!(slots.len(), 8);
    fleet.replay();
}

#[test]
fn tasks_are_spread_over_zones_before_nodes() {
    let mut fleet = Fleet::new(4);
    for (node, zone) in [("n1", "a"), ("n2", "a"), ("n3", "a"), ("n4", "b")] {
        label(&mut fleet, node, "zone", zone);
    }
    up(
        &mut fleet,
        "services: {app: {image: app, deploy: {replicas: 6, placement: {preferences: [{spread: node.labels.zone}]}}}}",
    );
    assert_eq!(counts(&fleet, "app"), [1, 1, 1, 3]);
}

#[test]
fn constraints_hold_and_what_no_node_meets_waits_and_says_why() {
    let mut fleet = Fleet::new(3);
    label(&mut fleet, "n2", "disk", "ssd");
    let text = "services: {app: {image: app, deploy: {replicas: 2, placement: {constraints: [node.labels.disk == ssd], max_replicas_per_node: 1}}}}";
    up(&mut fleet, text);
    assert_eq!(counts(&fleet, "app"), [0, 1, 0]);
    let waiting = fleet.tasks("app").into_iter().find(|task| task.node.is_none()).expect("one waits").clone();
    assert_eq!(
        waiting.unplaced,
        "no suitable node: 2 nodes do not meet `node.labels.disk == ssd`; 1 node has 1 of it already (max_replicas_per_node)"
    );
    let explanation = Explanation::of(&fleet.state, &waiting.id).expect("it is there");
    assert_eq!((explanation.fitting(), explanation.nodes.len()), (0, 3));
    // The label comes to another node, and the task with it, by itself.
    label(&mut fleet, "n3", "disk", "ssd");
    fleet.settle();
    assert_eq!(counts(&fleet, "app"), [0, 1, 1]);
}

#[test]
fn a_constraint_on_what_no_node_can_have_is_refused() {
    let mut fleet = Fleet::new(1);
    let spec = file("services: {app: {image: app, deploy: {placement: {constraints: [node.lables.disk == ssd]}}}}");
    let refusal = fleet.up(&spec).expect_err("it is a slip of the keyboard");
    assert_eq!(refusal.to_string(), "service app is to be placed by `node.lables.disk`, which no node can have");
    let hint = refusal.hint().expect("what was meant");
    assert!(hint.starts_with("did you mean `node.labels.disk`? there are node.id, "), "{hint}");
}

#[test]
fn an_image_for_another_platform_waits_for_a_node_that_runs_it() {
    let mut fleet = Fleet::new(2);
    let made_for = |platform: &str| BTreeMap::from([("sha256:app000000000".to_owned(), platform.to_owned())]);
    let _ = fleet.apply(Command::NotePlatforms(made_for("linux/arm64")));
    up(&mut fleet, "services: {app: {image: app}, other: {image: other}}");
    let waiting = fleet.tasks("app")[0].clone();
    assert_eq!(waiting.image_id, "sha256:app000000000");
    let text = "no suitable node: 2 nodes do not run linux/arm64, which the image was made for";
    assert_eq!((waiting.node, waiting.unplaced.as_str()), (None, text));
    assert_eq!(counts(&fleet, "other").iter().sum::<usize>(), 1, "an image of which nothing is known runs anywhere");
    // uname's word for it.
    fleet.join("n3", &BTreeMap::from([("platform", "linux/aarch64")]));
    fleet.settle();
    assert_eq!(counts(&fleet, "app"), [0, 0, 1]);
}

#[test]
fn what_reads_in_and_exists_is_understood() {
    let mut fleet = Fleet::new(3);
    label(&mut fleet, "n1", "zone", "a");
    label(&mut fleet, "n2", "zone", "b");
    let place = |constraint: &str| {
        format!(
            "services: {{app: {{image: app, deploy: {{replicas: 2, placement: {{constraints: ['{constraint}']}}}}}}}}"
        )
    };
    up(&mut fleet, &place("node.labels.zone in (a, c)"));
    assert_eq!(counts(&fleet, "app"), [2, 0, 0]);
    // Other wishes: the tasks go where they are met, and are there before they are gone here. The plan says so.
    let planned = fleet.plan(&file(&place("node.labels.zone !exists"))).expect("it can be planned").plan;
    let said = "1 recreate container web-app-1: host-n1 does not meet `node.labels.zone !exists`\n\
                2 recreate container web-app-2: host-n1 does not meet `node.labels.zone !exists`\n";
    assert_eq!(planned.to_string(), said);
    up(&mut fleet, &place("node.labels.zone !exists"));
    fleet.pass(60_000);
    assert_eq!(counts(&fleet, "app"), [0, 0, 2]);
    assert!(fleet.plan(&file(&place("node.labels.zone !exists"))).expect("it can be planned").plan.is_empty());
    // What nobody can have moves nothing, and is not passed over in silence.
    let answer = fleet.plan(&file(&place("node.labels.zone == nowhere"))).expect("it can be planned");
    assert!(answer.plan.is_empty(), "{}", answer.plan);
    let warning =
        "service app: no other node meets `node.labels.zone == nowhere` and has room, so what runs stays where it is";
    assert_eq!(answer.warnings, [warning]);
    up(&mut fleet, &place("node.labels.zone notin (a)"));
    fleet.pass(60_000);
    assert_eq!(counts(&fleet, "app")[0], 0);
}

#[test]
fn reservations_are_never_promised_twice_and_freed_ones_are_used() {
    let mut fleet = Fleet::new(2);
    let text = |replicas: u32| {
        format!(
            "services: {{app: {{image: app, deploy: {{replicas: {replicas}, resources: {{reservations: {{cpus: '1.5', memory: 1G}}}}}}}}}}"
        )
    };
    up(&mut fleet, &text(5));
    // Two fit on four processors.
    assert_eq!(counts(&fleet, "app"), [2, 2]);
    let waiting = fleet.tasks("app").into_iter().filter(|task| task.node.is_none()).collect::<Vec<_>>();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].unplaced, "no suitable node: 2 nodes have too little processor time left");
    fleet.join("n3", &BTreeMap::new());
    fleet.settle();
    assert_eq!(counts(&fleet, "app"), [2, 2, 1]);
    // A full node is no obstacle to replacing what is on it.
    up(&mut fleet, &text(5).replace("image: app", "image: app, command: other"));
    fleet.pass(120_000);
    assert_eq!(rollout(&fleet, "app").0, RolloutState::Completed);
    assert_eq!(counts(&fleet, "app").iter().sum::<usize>(), 5);
}

#[test]
fn one_host_port_is_given_once_a_node() {
    let mut fleet = Fleet::new(2);
    up(
        &mut fleet,
        "services: {app: {image: app, ports: [{target: 80, published: '8080', mode: host}], deploy: {replicas: 3}}}",
    );
    assert_eq!(counts(&fleet, "app"), [1, 1]);
    let waiting = fleet.tasks("app").into_iter().find(|task| task.node.is_none()).expect("one waits");
    assert_eq!(waiting.unplaced, "no suitable node: 2 nodes have port 8080 taken");
}

#[test]
fn a_task_goes_where_its_data_is_and_waits_for_it() {
    let mut fleet = Fleet::new(3);
    let text = "services: {db: {image: db, volumes: ['data:/data']}}\nvolumes: {data: {}}";
    up(&mut fleet, text);
    let home = fleet.running("db")[0].1.clone();
    let pinned = fleet.state.volumes["web_data"].pinned.clone();
    assert_eq!(pinned.as_ref(), Some(&home));
    // Lost: there is no other place for it, and its only copy is left alone.
    fleet.hosts.get_mut(&home).expect("it is there").linked = false;
    fleet.observe(home.as_str(), NodeState::Down);
    fleet.settle();
    assert_eq!(fleet.tasks("db").len(), 1);
    assert_eq!(fleet.running("db"), [(1, home.clone())]);
    assert_eq!(fleet.state.only_copies(&home), ["web_data"]);
    // Drained by hand it stops, and its replacement says what it waits for.
    fleet.hosts.get_mut(&home).expect("it is there").linked = true;
    fleet.observe(home.as_str(), NodeState::Ready);
    availability(&mut fleet, home.as_str(), Availability::Drain);
    fleet.settle();
    assert_eq!(fleet.running("db"), []);
    let waiting = fleet.tasks("db").into_iter().find(|task| task.is_replica()).expect("it is to run again");
    assert_eq!(waiting.unplaced, "no suitable node: 2 nodes do not have volume web_data; 1 node is drained");
    availability(&mut fleet, home.as_str(), Availability::Active);
    fleet.settle();
    assert_eq!(fleet.running("db"), [(1, home)]);
}

#[test]
fn where_nobody_else_is_left_a_suspect_node_is_still_asked() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: app, ports: ['8080:80'], deploy: {mode: global}}}");
    let asked = |fleet: &Fleet| {
        let told = &fleet.hosts[&"n1".into()].told;
        let of =
            |backends: &[Backend]| backends.iter().filter(|b| b.ready).map(|b| b.node.0.clone()).collect::<Vec<_>>();
        (of(&told.services[0].backends), of(&told.mesh_ports[0].backends))
    };
    let both = |nodes: &[&str]| {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        (nodes.clone(), nodes)
    };
    fleet.observe("n2", NodeState::Suspect);
    fleet.settle();
    assert_eq!(asked(&fleet), both(&["n1"]));
    fleet.observe("n1", NodeState::Suspect);
    fleet.settle();
    assert_eq!(asked(&fleet), both(&["n1", "n2"]), "one that is silent may only be busy");
    fleet.observe("n1", NodeState::Ready);
    fleet.settle();
    assert_eq!(asked(&fleet), both(&["n1"]));
}

#[test]
fn what_a_lost_node_had_is_made_elsewhere_and_it_is_welcome_back() {
    let mut fleet = Fleet::new(3);
    up(&mut fleet, "services: {app: {image: app, deploy: {replicas: 6}}}");
    let lost: NodeId = "n2".into();
    fleet.hosts.get_mut(&lost).expect("it is there").linked = false;
    fleet.observe("n2", NodeState::Suspect);
    fleet.settle();
    // No new connections go there, but nothing is replaced yet.
    assert!(
        fleet
            .tasks("app")
            .iter()
            .filter(|task| task.node.as_ref() == Some(&lost))
            .all(|task| task.serving == Serving::Unready)
    );
    assert_eq!(fleet.tasks("app").len(), 6);
    fleet.observe("n2", NodeState::Down);
    // Nobody has started anything yet: what ran there is still the only copy, and is still kept in the books.
    assert_eq!(fleet.tasks("app").len(), 8);
    fleet.settle();
    let elsewhere = fleet.running("app").into_iter().filter(|(_, node)| *node != lost).count();
    assert_eq!(elsewhere, 6);
    let addresses: usize = fleet.state.networks.values().flat_map(|n| n.pools()).map(|pool| pool.held.len()).sum();
    assert_eq!(addresses, 7, "six tasks and the service");
    // It comes back with what it had: that goes, the replacements stay.
    fleet.hosts.get_mut(&lost).expect("it is there").linked = true;
    fleet.observe("n2", NodeState::Ready);
    fleet.settle();
    assert_eq!(counts(&fleet, "app"), [3, 0, 3]);
    fleet.replay();
}

#[test]
fn the_only_copy_on_a_node_that_comes_back_stays_until_there_is_another() {
    let mut fleet = Fleet::new(2);
    let text = "services: {app: {image: app, deploy: {placement: {constraints: [node.labels.gpu == yes]}}}}";
    label(&mut fleet, "n1", "gpu", "yes");
    up(&mut fleet, text);
    fleet.hosts.get_mut(&"n1".into()).expect("it is there").linked = false;
    fleet.observe("n1", NodeState::Down);
    fleet.settle();
    assert_eq!(fleet.tasks("app").len(), 2, "one that is lost, one that waits for a node");
    fleet.hosts.get_mut(&"n1".into()).expect("it is there").linked = true;
    fleet.observe("n1", NodeState::Ready);
    fleet.settle();
    // It was never stopped, and nothing waits any more.
    let tasks = fleet.tasks("app");
    assert_eq!((tasks.len(), tasks[0].goal), (1, DesiredTask::Running));
    assert_eq!(tasks[0].status.restart_generation, 0);
    assert_eq!(counts(&fleet, "app"), [1, 0]);
}

#[test]
fn a_drained_node_is_empty_and_nobody_was_missing_meanwhile() {
    let mut fleet = Fleet::new(3);
    up(&mut fleet, "services: {app: {image: app, healthcheck: {test: 'true'}, deploy: {replicas: 6}}}");
    availability(&mut fleet, "n1", Availability::Drain);
    while fleet.advance() {
        let ready = fleet.tasks("app").iter().filter(|task| task.serving == Serving::Ready).count();
        assert!(ready >= 6, "only {ready} serve");
    }
    assert_eq!(counts(&fleet, "app"), [0, 3, 3]);
}

#[test]
fn a_paused_node_keeps_what_it_has_and_gets_no_more() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: app, deploy: {replicas: 2}}}");
    availability(&mut fleet, "n1", Availability::Pause);
    up(&mut fleet, "services: {app: {image: app, deploy: {replicas: 6}}}");
    assert_eq!(counts(&fleet, "app"), [1, 5]);
}

#[test]
fn a_removed_node_takes_its_tasks_along_in_the_same_entry() {
    let mut fleet = Fleet::new(3);
    up(&mut fleet, "services: {app: {image: app, deploy: {replicas: 3}}}");
    let refused = fleet.apply(Command::RemoveNode { node: "n3".into(), force: false }).result;
    assert_eq!(refused.expect_err("it answers").to_string(), "node host-n3 still answers");
    fleet.hosts.get_mut(&"n3".into()).expect("it is there").linked = false;
    fleet.apply(Command::RemoveNode { node: "n3".into(), force: true }).result.expect("it is forced");
    assert!(fleet.state.tasks.values().all(|task| task.node.as_ref() != Some(&"n3".into())));
    fleet.hosts.remove(&"n3".into());
    fleet.settle();
    assert_eq!(counts(&fleet, "app").iter().sum::<usize>(), 3);
    // What it still says is not heard.
    let facts = orch_spec::assignment::NodeFacts { id: "n3".into(), ..Default::default() };
    fleet.report(&"n3".into(), orch_spec::assignment::NodeReport::Facts(facts));
    assert_eq!(fleet.state.nodes.len(), 2);
}

#[test]
fn a_global_service_has_one_task_on_every_node_that_fits() {
    let mut fleet = Fleet::new(2);
    label(&mut fleet, "n2", "edge", "yes");
    up(
        &mut fleet,
        "services: {agent: {image: agent, deploy: {mode: global}}, edge: {image: edge, deploy: {mode: global, placement: {constraints: [node.labels.edge == yes]}}}}",
    );
    assert_eq!((counts(&fleet, "agent"), counts(&fleet, "edge")), (vec![1, 1], vec![0, 1]));
    fleet.join("n3", &BTreeMap::new());
    label(&mut fleet, "n3", "edge", "yes");
    fleet.settle();
    assert_eq!((counts(&fleet, "agent"), counts(&fleet, "edge")), (vec![1, 1, 1], vec![0, 1, 1]));
    availability(&mut fleet, "n2", Availability::Drain);
    fleet.settle();
    assert_eq!((counts(&fleet, "agent"), counts(&fleet, "edge")), (vec![1, 0, 1], vec![0, 0, 1]));
    // One that is lost is not made elsewhere, and has its task when it comes back.
    fleet.hosts.get_mut(&"n3".into()).expect("it is there").linked = false;
    fleet.observe("n3", NodeState::Down);
    fleet.settle();
    assert_eq!(fleet.tasks("agent").len(), 2);
    availability(&mut fleet, "n2", Availability::Active);
    fleet.settle();
    assert_eq!(counts(&fleet, "agent"), [1, 1, 1]);
}

#[test]
fn dependencies_hold_across_nodes() {
    let mut fleet = Fleet::new(3);
    let spec = file(
        "services: {web: {image: web, deploy: {replicas: 3}, depends_on: {db: {condition: service_healthy}}}, db: {image: db, healthcheck: {test: 'true'}, deploy: {replicas: 3}}}",
    );
    fleet.up(&spec).expect("it can be brought up");
    while fleet.step() {
        let healthy = fleet.tasks("db").iter().filter(|task| task.is_ready()).count();
        assert!(healthy == 3 || fleet.running("web").is_empty(), "web runs before all of db are healthy");
    }
    assert_eq!(fleet.running("web").len(), 3);
}

#[test]
fn a_task_is_stopped_when_every_node_has_let_go_of_it_or_the_time_is_over() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: app, ports: ['8080:80'], deploy: {replicas: 2}}}");
    fleet.mute.insert("n2".into());
    let _ = fleet.apply(Command::Scale(orch_core::Scale {
        stack: "web".to_owned(),
        services: BTreeMap::from([("app".to_owned(), 1)]),
        ..Default::default()
    }));
    fleet.settle();
    let going = fleet.tasks("app").into_iter().find(|task| task.is_retiring()).expect("one goes").clone();
    assert_eq!((going.told, going.serving), (Some(DesiredTask::Running), Serving::Leaving));
    assert_eq!(going.waiting[0].text, "load balancers to let go of it");
    // Who is there is not cut off: it stands behind the service until it has ended.
    let behind = |fleet: &Fleet| {
        let backends = &fleet.hosts[&"n1".into()].told.mesh_ports[0].backends;
        backends.iter().map(|backend| backend.ready).collect::<Vec<_>>()
    };
    assert_eq!(behind(&fleet).iter().filter(|ready| **ready).count(), 1);
    assert_eq!(behind(&fleet).len(), 2);
    fleet.mute.clear();
    fleet.settle();
    assert_eq!(fleet.tasks("app").len(), 1);
    assert_eq!(behind(&fleet), [true]);
    // One that says nothing is waited for only so long.
    fleet.mute.insert("n1".into());
    fleet.mute.insert("n2".into());
    let _ = fleet.apply(Command::RemoveStack(Down { stack: "web".to_owned(), ..Down::default() }));
    fleet.settle();
    assert_eq!(fleet.running("app").len(), 1);
    fleet.pass(3_100);
    assert_eq!(fleet.running("app").len(), 0);
    assert!(fleet.state.stacks.is_empty() && fleet.state.networks.is_empty());
}

#[test]
fn a_stack_is_reachable_when_every_node_that_answers_leads_callers_to_it() {
    let mut fleet = Fleet::new(3);
    let behind = |fleet: &Fleet, wanted: &BTreeMap<NodeId, u64>| -> Vec<String> {
        fleet.state.behind(wanted).map(|node| node.facts.hostname.clone()).collect()
    };
    let text = "services: {app: {image: app, ports: ['8080:80'], deploy: {replicas: 2}}, back: {image: back, deploy: {placement: {constraints: ['node.id == n1']}}}}";
    fleet.mute.insert("n3".into());
    up(&mut fleet, text);
    let wanted = fleet.state.leading("web");
    assert_eq!(wanted.len(), 3, "a published port is led to by all nodes");
    let name = fleet.state.nodes[&"n3".into()].facts.hostname.clone();
    assert_eq!(behind(&fleet, &wanted), [name]);
    // Another stack that comes meanwhile does not make this one unreachable again.
    let other = Arc::new(stack("other", "services: {x: {image: x, ports: ['9090:80']}}"));
    fleet.up(&other).expect("it can be brought up");
    fleet.mute.clear();
    fleet.settle();
    assert!(behind(&fleet, &wanted).is_empty() && behind(&fleet, &fleet.state.leading("web")).is_empty());
    // One that says nothing at all is not waited for.
    fleet.mute.insert("n3".into());
    up(&mut fleet, &text.replace("replicas: 2", "replicas: 3"));
    let wanted = fleet.state.leading("web");
    assert_eq!(behind(&fleet, &wanted).len(), 1);
    fleet.observe("n3", NodeState::Suspect);
    assert!(behind(&fleet, &wanted).is_empty());
    assert!(fleet.state.leading("none").is_empty());
}

#[test]
fn a_restart_takes_one_task_after_the_other_out_of_load_balancing_and_back_in() {
    let mut fleet = Fleet::new(3);
    up(
        &mut fleet,
        "services: {app: {image: app, ports: ['8080:80'], deploy: {replicas: 5}, healthcheck: {test: 'true'}}}",
    );
    fleet.pass(1_000);
    assert!(fleet.restart("app").result.is_ok());
    let mut out_at_once = 0;
    while fleet.advance() {
        let tasks = fleet.tasks("app");
        out_at_once = out_at_once.max(tasks.iter().filter(|task| task.serving != Serving::Ready).count());
    }
    assert_eq!(out_at_once, 1, "the others serve meanwhile");
    let started = |fleet: &Fleet| -> Vec<bool> {
        let tasks = fleet.tasks("app");
        tasks.iter().map(|task| task.status.restart_generation == 1 && task.serving == Serving::Ready).collect()
    };
    assert_eq!(started(&fleet), [true; 5]);
    // Who never gets well does not hold others up for ever, nor does one whose node is lost, nor nodes that say nothing.
    fleet.sick.insert("app".to_owned());
    assert!(fleet.restart("app").result.is_ok());
    fleet.settle();
    fleet.pass(5 * 610_000);
    assert!(fleet.tasks("app").iter().all(|task| task.status.restart_generation == 2));
    fleet.sick.clear();
    assert!(fleet.restart("app").result.is_ok());
    fleet.hosts.get_mut(&"n2".into()).expect("it is there").linked = false;
    fleet.settle();
    fleet.pass(3_100);
    fleet.observe("n2", NodeState::Down);
    fleet.settle();
    fleet.pass(60_000);
    assert!(fleet.tasks("app").iter().all(|task| task.goal_generation == task.status.restart_generation));
    assert_eq!(fleet.running("app").iter().filter(|(_, node)| node.as_str() != "n2").count(), 5);
}

#[test]
fn names_virtual_addresses_and_ports_lead_to_what_serves() {
    let mut fleet = Fleet::new(2);
    up(
        &mut fleet,
        "services: {app: {image: app, ports: ['8080:80', '9000-9010:90', '70'], deploy: {replicas: 2}}, rr: {image: rr, deploy: {endpoint_mode: dnsrr, replicas: 2}}}",
    );
    let told = fleet.assignments.of(&fleet.state, &"n1".into());
    assert!(
        told.tasks.iter().all(|task| task.comes_back),
        "with several nodes it shall be there again when its node is"
    );
    let app = told.services.iter().find(|service| service.service == "app").expect("it is there");
    let rr = told.services.iter().find(|service| service.service == "rr").expect("it is there");
    assert_eq!((app.vips.len(), app.backends.len(), rr.vips.len(), rr.backends.len()), (1, 2, 0, 2));
    let name = |name: &str| {
        let found = told.names.iter().find(|known| known.name == name);
        found.unwrap_or_else(|| panic!("{name} is not known")).addresses.clone()
    };
    assert_eq!(name("app"), app.vips);
    assert_eq!((name("tasks.app").len(), name("rr").len(), name("web-app-1").len(), name("1.app").len()), (2, 2, 1, 1));
    let ports: Vec<(u16, u16)> = told.mesh_ports.iter().map(|port| (port.published, port.target)).collect();
    assert_eq!(ports, [(8080, 80), (9000, 90), (30000, 70)]);
    let overlay = told.networks[0].overlay.clone().expect("it reaches over");
    assert_eq!((overlay.peers.len(), overlay.endpoints.len()), (1, 2));
    let mesh = told.mesh.expect("there are several");
    assert!(mesh.vni != overlay.vni && mesh.own.is_some() && mesh.peers.len() == 1);
    // Another service cannot have a port that is taken on every node.
    let other = Arc::new(stack("other", "services: {x: {image: x, ports: ['8080:80']}}"));
    let refusal = fleet.up(&other).expect_err("it is taken");
    assert_eq!(refusal.to_string(), "port 8080/tcp is wanted by service x but published by service app of stack web");
    let text = "services: {x: {image: x, ports: [{target: 80, published: 8080, mode: host}]}}";
    let refusal = fleet.up(&Arc::new(stack("other", text))).expect_err("it would fail on every node");
    assert_eq!(refusal.to_string(), "port 8080/tcp is wanted by service x but published by service app of stack web");
    // Taken down, nothing is left of it.
    let _ = fleet.apply(Command::RemoveStack(Down { stack: "web".to_owned(), ..Down::default() }));
    fleet.settle();
    assert!(fleet.state.networks.is_empty() && fleet.state.tasks.is_empty() && fleet.state.revisions.is_empty());
}

#[test]
fn a_container_of_no_stack_is_led_to_from_other_nodes_until_it_or_its_node_goes() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: app, deploy: {placement: {constraints: ['node.id == n1']}}}}");
    let network: NetworkName = "web_default".into();
    let told = |fleet: &Fleet, node: &str| {
        let told = fleet.assignments.of(&fleet.state, &node.into());
        let found = told.networks.iter().find(|known| known.name == network).and_then(|known| known.overlay.clone());
        (found.map(|overlay| overlay.endpoints).unwrap_or_default(), told.endpoints_version)
    };
    let names = |fleet: &Fleet| fleet.assignments.of(&fleet.state, &"n1".into()).names;
    assert!(fleet.state.networks[&network].nodes == BTreeSet::from(["n1".into()]));
    let reserve = |fleet: &mut Fleet, container: &str, mac: Option<&str>| {
        let (network, holder, name) = (network.clone(), container.to_owned(), container.to_owned());
        let (mac, node) = (mac.map(str::to_owned), Some("n2".into()));
        let request = ReserveAddress { network, holder, name, mac, node, ..ReserveAddress::default() };
        let answer = fleet.apply(Command::ReserveAddress(request)).result.expect("there is room");
        IpAddr::V4(answer.addresses.0.expect("it has IPv4"))
    };
    let (_, before) = told(&fleet, "n1");
    let ip = reserve(&mut fleet, "probe", Some("02:00:00:00:00:07"));
    let (there, version) = told(&fleet, "n1");
    assert_eq!(there, [RemoteEndpoint { ip, mac: "02:00:00:00:00:07".to_owned(), node: "n2".into() }]);
    assert!(version > before, "who waits until all know of it waits for this");
    assert!(names(&fleet).iter().any(|name| name.name == "probe" && name.addresses == [ip]));
    // Its node is given the network, and the way to what runs elsewhere.
    assert_eq!(told(&fleet, "n2").0.iter().map(|endpoint| endpoint.node.as_str()).collect::<Vec<_>>(), ["n1"]);

    let release = Command::ReleaseAddress { network: network.clone(), holder: "probe".to_owned() };
    assert!(fleet.apply(release).result.is_ok());
    let (there, later) = told(&fleet, "n1");
    assert!(there.is_empty() && later > version);

    reserve(&mut fleet, "other", None);
    assert_eq!(told(&fleet, "n1").0.len(), 1);
    assert!(fleet.apply(Command::RemoveNode { node: "n2".into(), force: true }).result.is_ok());
    assert!(fleet.state.networks[&network].reservations.is_empty() && told(&fleet, "n1").0.is_empty());
    let _ = fleet.apply(Command::RemoveStack(Down { stack: "web".to_owned(), ..Down::default() }));
    fleet.settle();
    assert!(fleet.state.networks.is_empty(), "nothing is in its way");
}

#[test]
fn what_its_node_would_have_tried_again_is_tried_elsewhere_when_that_node_is_lost() {
    for again in [true, false] {
        let mut fleet = Fleet::new(2);
        up(&mut fleet, "services: {app: {image: app}}");
        let task = fleet.tasks("app")[0];
        let node = task.node.clone().expect("it is placed");
        let status = TaskStatus { task: task.id.clone(), state: TaskState::Failed, again, ..task.status.clone() };
        fleet.report(&node, NodeReport::Tasks(vec![status]));
        fleet.hosts.get_mut(&node).expect("it is there").linked = false;
        fleet.observe(node.as_str(), NodeState::Down);
        fleet.settle();
        let elsewhere = fleet.running("app").iter().any(|(_, other)| *other != node);
        assert_eq!(elsewhere, again);
    }
}

#[test]
fn a_stack_is_taken_down_although_a_node_is_lost() {
    let mut fleet = Fleet::new(2);
    up(
        &mut fleet,
        "services: {app: {image: app, deploy: {replicas: 4}, depends_on: [db]}, db: {image: db, deploy: {replicas: 2}}}",
    );
    fleet.hosts.get_mut(&"n2".into()).expect("it is there").linked = false;
    fleet.observe("n2", NodeState::Down);
    let _ = fleet.apply(Command::RemoveStack(Down { stack: "web".to_owned(), ..Down::default() }));
    fleet.settle();
    assert!(fleet.state.stacks.is_empty(), "{:?}", fleet.state.tasks);
    assert!(!fleet.running("app").is_empty(), "nobody could tell the lost node");
    fleet.hosts.get_mut(&"n2".into()).expect("it is there").linked = true;
    fleet.observe("n2", NodeState::Ready);
    fleet.settle();
    assert!(fleet.running("app").is_empty() && fleet.running("db").is_empty());
}

#[test]
fn a_way_between_nodes_that_fails_is_told_once_and_moves_nothing() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: app, deploy: {replicas: 2}}}");
    let before = fleet.running("app");
    let trouble = BTreeMap::from([("n2".into(), "nothing gets through".to_owned())]);
    for trouble in [trouble.clone(), trouble, BTreeMap::new()] {
        fleet.report(&"n1".into(), NodeReport::Underlay(trouble));
    }
    fleet.settle();
    assert_eq!(fleet.running("app"), before);
    let told = fleet.state.events.since(0).filter(|event| event.action.starts_with("underlay"));
    let told: Vec<_> = told
        .map(|e| (e.name.as_str(), e.action.as_ref(), e.attributes[0].1.as_str(), e.attributes[1].1.as_str()))
        .collect();
    let there = "host-n2";
    let expected =
        [("host-n1", "underlay_fails", there, "nothing gets through"), ("host-n1", "underlay_works", there, "")];
    assert_eq!(told, expected);
}

#[test]
fn guests_of_a_namespace_go_and_stay_together() {
    let mut fleet = Fleet::new(3);
    up(
        &mut fleet,
        "services: {app: {image: app, deploy: {replicas: 3}}, side: {image: side, network_mode: 'service:app', deploy: {replicas: 3}}}",
    );
    let places = |fleet: &Fleet, service: &str| fleet.running(service);
    assert_eq!(places(&fleet, "app"), places(&fleet, "side"));
    fleet.hosts.get_mut(&"n1".into()).expect("it is there").linked = false;
    fleet.observe("n1", NodeState::Down);
    fleet.settle();
    let of = |fleet: &Fleet, service: &str| {
        let stay = fleet.tasks(service).into_iter().filter(|task| task.is_replica());
        stay.map(|task| (task.slot, task.node.clone(), task.status.state)).collect::<Vec<_>>()
    };
    assert_eq!(of(&fleet, "app"), of(&fleet, "side"));
    assert!(of(&fleet, "app").iter().all(|(_, _, state)| *state == TaskState::Running));
}

/// Simulator, Safety+Nodes:26 and 100.
#[test]
fn a_guest_whose_host_was_scaled_away_goes_to_the_one_that_comes_back() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: app}, side: {image: side, network_mode: 'service:app'}}");
    for replicas in [0, 1] {
        let services = BTreeMap::from([("app".to_owned(), replicas)]);
        let scale = Scale { stack: "web".to_owned(), services, ..Scale::default() };
        assert!(fleet.apply(Command::Scale(scale)).result.is_ok());
        fleet.settle();
    }
    let host = fleet.tasks("app")[0].id.clone();
    let guests: Vec<_> = fleet.tasks("side").iter().flat_map(|task| task.namespace_parents().cloned()).collect();
    assert_eq!(guests, [host]);
    assert_eq!(fleet.running("app"), fleet.running("side"));
}

/// Simulator, Safety+Nodes:224.
#[test]
fn going_back_keeps_one_task_a_slot_where_several_were_to_hand_over() {
    let mut fleet = Fleet::new(2);
    let text = |tag: u8| {
        let rest = "healthcheck: {test: 'true'}, deploy: {update_config: {order: start-first}}";
        format!("services: {{app: {{image: 'app:{tag}', {rest}}}}}")
    };
    up(&mut fleet, &text(1));
    let place = fleet.tasks("app")[0].node.clone().expect("it runs");
    availability(&mut fleet, &place.0, Availability::Drain);
    let second = |fleet: &Fleet| fleet.tasks("app").into_iter().any(|t| t.is_replica() && t.has_process());
    while !second(&fleet) {
        assert!(fleet.step(), "a second task comes");
    }
    fleet.up(&file(&text(2))).expect("it can be brought up");
    assert_eq!(fleet.tasks("app").len(), 3, "two that hand over, and the newest");
    let back = Command::RollbackService { stack: "web".to_owned(), service: "app".to_owned() };
    assert!(fleet.apply(back).result.is_ok());
    fleet.settle();
    fleet.pass(60_000);
    assert_eq!(images(&fleet, "app"), ["app:1"]);
    assert_eq!(fleet.running("app").len(), 1);
}

/// A connection that is dead on the node's side only, or a proposal that was given up, brings it late.
#[test]
fn what_a_node_said_before_what_is_known_of_it_is_refused() {
    let mut fleet = Fleet::new(1);
    up(&mut fleet, "services: {app: {image: app}}");
    let before = fleet.tasks("app")[0].status.clone();
    let mut say = |session, number, state| {
        let turn = Turn { session, number };
        let report = NodeReport::Tasks(vec![TaskStatus { state, ..before.clone() }]);
        let outcome = fleet.apply(Command::Report { node: "n1".into(), turn, report });
        (outcome.result.map(|_| ()), fleet.tasks("app")[0].status.state)
    };
    assert_eq!(say(7, 3, TaskState::Running), (Ok(()), TaskState::Running));
    let refused = Refusal::Superseded { node: "n1".to_owned(), session: 7 };
    assert_eq!(say(6, 9, TaskState::Starting), (Err(refused.clone()), TaskState::Running), "of an earlier session");
    assert_eq!(say(7, 2, TaskState::Starting), (Err(refused), TaskState::Running), "earlier in the same session");
    assert_eq!(say(7, 3, TaskState::Running).0, Ok(()), "repeated because nobody answered");
    assert_eq!(say(8, 1, TaskState::Stopping), (Ok(()), TaskState::Stopping));
}

#[test]
fn a_snapshot_of_before_there_were_lists_is_read() {
    let spec = Arc::new(stack("web", "services: {app: {image: app, deploy: {replicas: 3}}}"));
    let mut fleet = Fleet::new(2);
    fleet.up(&spec).expect("it is valid");
    let mut written = serde_json::to_value(&fleet.state).expect("a state can be written down");
    written.as_object_mut().expect("a state").remove("names");
    let record = written["stacks"]["web"].as_object_mut().expect("a stack");
    record.remove("restless");
    record.remove("needs");
    let ids: Vec<&str> = fleet.state.tasks.keys().map(|id| id.as_str()).collect();
    record["tasks"]["app"] = serde_json::to_value(ids).expect("a list of ids");
    let mut read: orch_core::State = serde_json::from_value(written).expect("an earlier state can be read");
    read.complete_lists();
    fleet.assignments = orch_core::Assignments::new(&read);
    fleet.state = read;
    fleet.settle();
    assert_eq!(fleet.running("app").len(), 3);
}

#[test]
fn a_host_that_was_set_up_anew_is_reached_and_its_former_record_is_in_nobodys_way() {
    let mut fleet = Fleet::new(3);
    let text = "services: {app: {image: app, ports: ['8080:80'], deploy: {mode: global}}}";
    up(&mut fleet, text);
    fleet.hosts.get_mut(&"n3".into()).expect("it is there").linked = false;
    fleet.observe("n3", NodeState::Down);
    fleet.join("n4", &BTreeMap::from([("address", "192.168.7.3")]));
    fleet.settle();
    let peers = |fleet: &Fleet, of: &str| {
        let told = fleet.assignments.of(&fleet.state, &of.into());
        let mesh: Vec<String> = told.mesh.iter().flat_map(|mesh| &mesh.peers).map(|peer| peer.node.0.clone()).collect();
        let overlay = told.networks[0].overlay.iter().flat_map(|overlay| &overlay.peers);
        let overlay: Vec<String> = overlay.map(|peer| peer.node.0.clone()).collect();
        assert_eq!(mesh, overlay);
        mesh
    };
    assert_eq!(peers(&fleet, "n4"), ["n1", "n2"]);
    assert_eq!(peers(&fleet, "n1"), ["n2", "n4"]);
    // Whoever is lost and whose address nobody else has stays known: it may be back in a moment.
    fleet.observe("n2", NodeState::Down);
    assert_eq!(peers(&fleet, "n1"), ["n2", "n4"]);
    fleet.observe("n4", NodeState::Down);
    fleet.observe("n4", NodeState::Ready);
    assert_eq!(peers(&fleet, "n1"), ["n2", "n4"]);
}
