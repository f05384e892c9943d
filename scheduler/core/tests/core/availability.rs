//! How many of a service may be missing at once: whoever is lost counts, and who takes others away waits for them, but not for ever.

use orch_core::{Availability, Command, NodeState, RolloutState, Serving, UpdateNode};

use crate::cluster::{file, rollout, up};
use crate::fleet::Fleet;

/// Ten minutes: how long one that is missing is waited for.
const PATIENCE: u64 = 600_000;

fn serving(fleet: &Fleet) -> usize {
    fleet.tasks("app").iter().filter(|task| task.serving == Serving::Ready).count()
}

fn cut(fleet: &mut Fleet, node: &str) {
    fleet.hosts.get_mut(&node.into()).expect("it is there").linked = false;
    fleet.observe(node, NodeState::Suspect);
    fleet.settle();
}

fn restarted(fleet: &Fleet) -> Vec<bool> {
    let stay = fleet.tasks("app").into_iter().filter(|task| task.is_replica());
    stay.map(|task| task.goal_generation == task.status.restart_generation).collect()
}

const TWO: &str = "services: {app: {image: app, deploy: {replicas: 2}}}";

#[test]
fn a_restart_leaves_the_last_one_alone_while_the_others_host_is_silent_lost_and_replaced() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, TWO);
    cut(&mut fleet, "n2");
    assert!(fleet.restart("app").result.is_ok());
    let look = |fleet: &mut Fleet| {
        while fleet.advance() {
            assert!(serving(fleet) >= 1, "the last one was taken away: {:?}", fleet.tasks("app"));
        }
    };
    look(&mut fleet);
    let here = fleet.tasks("app").into_iter().find(|task| task.node == Some("n1".into())).expect("one is there");
    let other = fleet.tasks("app").into_iter().find(|task| task.node == Some("n2".into())).expect("one is there");
    let why = format!("others of its service to be well again: {} is on a node that is suspect", other.container_name);
    assert_eq!(here.waiting.iter().map(|wait| wait.text.as_str()).collect::<Vec<_>>(), [why]);
    fleet.observe("n2", NodeState::Down);
    assert!(serving(&fleet) >= 1, "its replacement is still being made");
    look(&mut fleet);
    fleet.pass(5_000);
    look(&mut fleet);
    assert_eq!((restarted(&fleet), serving(&fleet)), (vec![true, true], 2));
    fleet.replay();
}

#[test]
fn a_restart_goes_on_when_a_host_that_was_silent_is_back() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, TWO);
    cut(&mut fleet, "n2");
    assert!(fleet.restart("app").result.is_ok());
    fleet.settle();
    fleet.pass(4_000);
    fleet.hosts.get_mut(&"n2".into()).expect("it is there").linked = true;
    fleet.observe("n2", NodeState::Ready);
    while fleet.advance() {
        assert!(serving(&fleet) >= 1);
    }
    fleet.pass(5_000);
    assert_eq!((restarted(&fleet), serving(&fleet)), (vec![true, true], 2));
}

#[test]
fn a_restart_that_makes_them_ill_goes_on_with_one_at_a_time_and_has_an_end() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: app, healthcheck: {test: 'true'}, deploy: {replicas: 3}}}");
    fleet.sick.insert("app".to_owned());
    assert!(fleet.restart("app").result.is_ok());
    for round in 1..=3 {
        fleet.settle();
        fleet.pass(5_000);
        let done = restarted(&fleet).into_iter().filter(|done| *done).count();
        assert_eq!((done, serving(&fleet)), (round, 3 - round), "one is ill, and the others are left alone");
        fleet.pass(PATIENCE);
    }
}

#[test]
fn whoever_has_been_missing_for_long_is_not_waited_for() {
    let mut fleet = Fleet::new(3);
    up(&mut fleet, "services: {app: {image: app, deploy: {mode: global}}}");
    cut(&mut fleet, "n2");
    fleet.observe("n2", NodeState::Down);
    fleet.settle();
    fleet.pass(PATIENCE + 1_000);
    assert!(fleet.restart("app").result.is_ok());
    let mut least = 2;
    for _ in 0..2 {
        while fleet.advance() {
            least = least.min(serving(&fleet));
        }
        fleet.pass(5_000);
    }
    let started = fleet.tasks("app").iter().filter(|task| task.status.restart_generation == 1).count();
    assert_eq!((started, least), (2, 1), "one after the other, and at once");
}

#[test]
fn an_update_counts_whoever_is_lost() {
    let mut fleet = Fleet::new(2);
    let text = |tag: u8| format!("services: {{app: {{image: 'app:{tag}', deploy: {{replicas: 2}}}}}}");
    up(&mut fleet, &text(1));
    let second = fleet.tasks("app")[1].node.clone().expect("it is placed").0;
    cut(&mut fleet, &second);
    fleet.up(&file(&text(2))).expect("it can be updated");
    for round in 0..40 {
        while fleet.advance() {
            assert!(serving(&fleet) >= 1, "the last one was taken away: {:?}", fleet.tasks("app"));
        }
        if round == 10 {
            let (state, why) = rollout(&fleet, "app");
            assert_eq!(state, RolloutState::Updating);
            assert!(why.is_empty() || why.starts_with("waits for web-app-"), "{why}");
            fleet.observe(&second, NodeState::Down);
        }
        fleet.pass(1_000);
    }
    assert_eq!((rollout(&fleet, "app").0, serving(&fleet)), (RolloutState::Completed, 2));
}

#[test]
fn an_update_that_has_turned_to_one_waits_when_another_is_lost_meanwhile() {
    let mut fleet = Fleet::new(2);
    let text = |tag: u8| format!("services: {{app: {{image: 'app:{tag}', deploy: {{replicas: 2}}}}}}");
    up(&mut fleet, &text(1));
    let (first, second) = (fleet.tasks("app")[0].clone(), fleet.tasks("app")[1].clone());
    fleet.up(&file(&text(2))).expect("it can be updated");
    assert!(fleet.tasks("app")[0].is_retiring(), "its successor is being made");
    let second = second.node.expect("it is placed").0;
    fleet.hosts.get_mut(&second.as_str().into()).expect("it is there").linked = false;
    fleet.observe(&second, NodeState::Suspect);
    while fleet.advance() {
        assert!(serving(&fleet) >= 1, "the last one was taken away");
    }
    let why = "others of its service to be well again: web-app-2 is on a node that is suspect";
    assert_eq!(fleet.state.tasks[&first.id].waiting[0].text, why);
    fleet.hosts.get_mut(&second.as_str().into()).expect("it is there").linked = true;
    fleet.observe(&second, NodeState::Ready);
    fleet.settle();
    fleet.pass(60_000);
    assert_eq!((rollout(&fleet, "app").0, serving(&fleet)), (RolloutState::Completed, 2));
}

#[test]
fn a_drain_does_not_take_the_last_one_while_the_node_that_could_take_it_is_silent() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, TWO);
    cut(&mut fleet, "n2");
    let drain = |fleet: &mut Fleet| {
        let availability = Some(Availability::Drain);
        let request = UpdateNode { node: "n1".into(), availability, ..UpdateNode::default() };
        assert!(fleet.apply(Command::UpdateNode(request)).result.is_ok());
        fleet.settle();
    };
    drain(&mut fleet);
    assert_eq!(serving(&fleet), 1, "who could take it may be back in a moment");
    fleet.hosts.get_mut(&"n2".into()).expect("it is there").linked = true;
    fleet.observe("n2", NodeState::Ready);
    while fleet.advance() {
        assert!(serving(&fleet) >= 2);
    }
    assert_eq!(fleet.running("app").iter().map(|(_, node)| node.0.as_str()).collect::<Vec<_>>(), ["n2", "n2"]);
    // Where nobody comes back it goes in the end.
    let mut fleet = Fleet::new(2);
    up(&mut fleet, TWO);
    cut(&mut fleet, "n2");
    drain(&mut fleet);
    fleet.observe("n2", NodeState::Down);
    fleet.settle();
    fleet.pass(PATIENCE + 10_000);
    assert_eq!(fleet.running("app").iter().map(|(_, node)| node.0.as_str()).collect::<Vec<_>>(), ["n2"]);
}
