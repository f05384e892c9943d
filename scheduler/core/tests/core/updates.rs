//! How updates roll, and go back.

use std::collections::BTreeSet;
use std::sync::Arc;

use orch_core::{Command, RolloutState, Serving, UpdateService};

use crate::cluster::{file, images, rollout, up};
use crate::fleet::Fleet;

#[test]
fn stop_first_never_runs_two_of_a_slot_and_stops_only_when_the_new_one_is_prepared() {
    let mut fleet = Fleet::new(3);
    up(
        &mut fleet,
        "services: {app: {image: 'app:1', deploy: {replicas: 6, update_config: {parallelism: 2, delay: 1s}}}}",
    );
    let spec =
        file("services: {app: {image: 'app:2', deploy: {replicas: 6, update_config: {parallelism: 2, delay: 1s}}}}");
    fleet.up(&spec).expect("it can be updated");
    for _ in 0..200 {
        while fleet.step() {
            let running = fleet.running("app");
            let slots: BTreeSet<u32> = running.iter().map(|(slot, _)| *slot).collect();
            assert_eq!(slots.len(), running.len(), "a slot runs twice: {running:?}");
            assert!(running.len() >= 4, "more than two are missing: {running:?}");
        }
        fleet.pass(100);
    }
    assert_eq!(rollout(&fleet, "app"), (RolloutState::Completed, String::new()));
    assert!(images(&fleet, "app").iter().all(|image| image == "app:2"));
    assert!(fleet.plan(&spec).expect("it can be planned").plan.is_empty());
    fleet.replay();
}

#[test]
fn start_first_never_has_fewer_than_wanted() {
    let mut fleet = Fleet::new(3);
    let text = |tag: u8| {
        format!(
            "services: {{app: {{image: 'app:{tag}', healthcheck: {{test: 'true'}}, deploy: {{replicas: 4, update_config: {{parallelism: 2, order: start-first}}}}}}}}"
        )
    };
    up(&mut fleet, &text(1));
    fleet.up(&file(&text(2))).expect("it can be updated");
    for _ in 0..100 {
        while fleet.step() {
            let ready = fleet.tasks("app").iter().filter(|task| task.serving == Serving::Ready).count();
            assert!(ready >= 4, "only {ready} serve");
            assert!(fleet.running("app").len() <= 6, "more than two too many");
        }
        fleet.pass(200);
    }
    assert_eq!(rollout(&fleet, "app").0, RolloutState::Completed);
    assert!(images(&fleet, "app").iter().all(|image| image == "app:2"));
    assert_eq!(fleet.running("app").len(), 4);
}

#[test]
fn a_bad_image_pauses_the_update_and_says_why() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: 'app:1', deploy: {replicas: 4}}}");
    fleet.broken.insert("app:2".to_owned(), 3);
    let spec = file("services: {app: {image: 'app:2', deploy: {replicas: 4}}}");
    fleet.up(&spec).expect("it can be updated");
    fleet.settle();
    fleet.pass(60_000);
    let (state, why) = rollout(&fleet, "app");
    assert_eq!(state, RolloutState::Paused);
    assert!(why.ends_with(" exited (3)"), "{why}");
    // The next slot was begun when the first one ran; the others were not.
    assert!(images(&fleet, "app").iter().filter(|image| *image == "app:1").count() >= 2);
    // The same file again tries again; another one goes on from where this is.
    assert!(!fleet.plan(&spec).expect("it can be planned").plan.is_empty());
    up(&mut fleet, "services: {app: {image: 'app:3', deploy: {replicas: 4}}}");
    fleet.pass(60_000);
    assert_eq!(rollout(&fleet, "app").0, RolloutState::Completed);
    assert!(images(&fleet, "app").iter().all(|image| image == "app:3"));
    // What never ran well is nothing to go back to.
    let _ = fleet.apply(Command::RollbackService { stack: "web".to_owned(), service: "app".to_owned() });
    fleet.settle();
    fleet.pass(60_000);
    assert!(images(&fleet, "app").iter().all(|image| image == "app:1"));
}

#[test]
fn a_bad_image_rolls_back_by_itself_to_the_very_same() {
    for order in ["stop-first", "start-first"] {
        let mut fleet = Fleet::new(3);
        let text = |tag: u8| {
            format!(
                "services: {{app: {{image: 'app:{tag}', healthcheck: {{test: 'true'}}, deploy: {{replicas: 5, update_config: {{order: {order}, failure_action: rollback, monitor: 2s}}}}}}}}"
            )
        };
        up(&mut fleet, &text(1));
        let former = fleet.state.stacks["web"].services["app"].revision;
        fleet.broken.insert("app:2".to_owned(), 1);
        fleet.up(&file(&text(2))).expect("it can be updated");
        let mut least = 5;
        for _ in 0..100 {
            while fleet.step() {
                least = least.min(fleet.running("app").len());
            }
            fleet.pass(200);
        }
        let (state, why) = rollout(&fleet, "app");
        assert_eq!(state, RolloutState::RolledBack, "{order}: {why}");
        assert!(why.starts_with("going back because web-app-"), "{why}");
        assert_eq!(fleet.state.stacks["web"].services["app"].revision, former);
        assert!(images(&fleet, "app").iter().all(|image| image == "app:1"));
        assert_eq!(fleet.running("app").len(), 5);
        assert!(least >= if order == "start-first" { 5 } else { 4 }, "{order}: only {least} ran");
        fleet.replay();
    }
}

#[test]
fn failures_within_the_tolerated_share_do_not_stop_an_update() {
    let mut fleet = Fleet::new(2);
    let text = |tag: u8, ratio: &str| {
        format!(
            "services: {{app: {{image: 'app:{tag}', deploy: {{replicas: 4, update_config: {{parallelism: 4, max_failure_ratio: {ratio}}}}}}}}}"
        )
    };
    up(&mut fleet, &text(1, "1.0"));
    fleet.broken.insert("app:2".to_owned(), 1);
    fleet.up(&file(&text(2, "1.0"))).expect("it can be updated");
    fleet.settle();
    fleet.pass(30_000);
    assert_eq!(rollout(&fleet, "app"), (RolloutState::Completed, "4 of 4 tasks failed".to_owned()));
}

#[test]
fn an_update_that_nothing_comes_of_ends_at_its_deadline() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: 'app:1', deploy: {replicas: 2}}}");
    let spec =
        file("services: {app: {image: 'app:2', deploy: {replicas: 2, resources: {reservations: {memory: 64G}}}}}");
    fleet.up(&spec).expect("it can be updated");
    fleet.settle();
    fleet.pass(599_000);
    assert_eq!(rollout(&fleet, "app").0, RolloutState::Updating);
    assert_eq!(fleet.running("app").len(), 2, "what ran runs on");
    fleet.pass(2_000);
    let (state, why) = rollout(&fleet, "app");
    assert_eq!(state, RolloutState::Paused);
    assert!(why.contains("was not ready in time") && why.contains("too little memory left"), "{why}");
    assert_eq!(fleet.running("app").len(), 2);
}

#[test]
fn a_service_goes_back_through_its_history() {
    let mut fleet = Fleet::new(2);
    let text = |tag: u8| format!("services: {{app: {{image: 'app:{tag}', deploy: {{replicas: 2}}}}}}");
    let back = |fleet: &mut Fleet| {
        let command = Command::RollbackService { stack: "web".to_owned(), service: "app".to_owned() };
        let result = fleet.apply(command).result;
        fleet.settle();
        fleet.pass(60_000);
        result.map(drop)
    };
    for tag in 1..=3 {
        up(&mut fleet, &text(tag));
        fleet.pass(60_000);
    }
    assert_eq!(back(&mut fleet), Ok(()));
    assert_eq!(images(&fleet, "app"), ["app:2", "app:2"]);
    assert_eq!(back(&mut fleet), Ok(()));
    assert_eq!(images(&fleet, "app"), ["app:1", "app:1"]);
    let refusal = back(&mut fleet).expect_err("there is nothing before that");
    assert_eq!(refusal.to_string(), "service app of stack web has no earlier version to go back to");
}

#[test]
fn one_service_is_changed_without_its_file() {
    let mut fleet = Fleet::new(2);
    up(&mut fleet, "services: {app: {image: 'app:1', deploy: {replicas: 2}}, db: {image: db}}");
    let service = &fleet.state.stacks["web"].services["app"];
    let mut spec = (*fleet.state.revision(service.revision).spec).clone();
    spec.image = "app:2".to_owned();
    let update = UpdateService {
        stack: "web".to_owned(),
        service: "app".to_owned(),
        spec: Arc::new(spec),
        image_id: "sha256:2".to_owned(),
        replicas: Some(3),
        force: false,
    };
    let plan = fleet.apply(Command::UpdateService(update)).result.expect("it can be changed").plan;
    assert_eq!(plan.len(), 3, "two are replaced, one is new:\n{plan}");
    fleet.settle();
    fleet.pass(60_000);
    assert_eq!(images(&fleet, "app"), ["app:2", "app:2", "app:2"]);
    assert_eq!(fleet.tasks("db").len(), 1);
}
