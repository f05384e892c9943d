//! Nodes that fail what others run.

use std::collections::BTreeSet;

use orch_core::{NodeState, Task};
use orch_spec::assignment::{NodeId, NodeReport, TaskId, TaskState, TaskStatus};

use crate::cluster::{file, up};
use crate::fleet::Fleet;

/// The task cannot be made on its node, so many times, and its node goes on trying.
pub(crate) fn fail(fleet: &mut Fleet, id: &TaskId, times: u32) {
    let node = fleet.state.tasks[id].node.clone().expect("it is placed");
    for _ in 0..times {
        fleet.clock += 1_000;
        let Some(task) = fleet.state.tasks.get(id) else { return };
        let (service, before) = (task.service.clone(), task.status.clone());
        let tries = TaskStatus { task: id.clone(), state: TaskState::Preparing, again: true, ..before };
        let fails = TaskStatus { state: TaskState::Failed, error: "no space left".to_owned(), ..tries.clone() };
        let host = fleet.hosts.get_mut(&node).expect("it is there");
        host.containers.insert(id.clone(), (service, fails.clone()));
        for status in [tries, fails] {
            fleet.report(&node, NodeReport::Tasks(vec![status]));
        }
    }
}

fn on<'f>(fleet: &'f Fleet, service: &str, node: &str) -> Vec<&'f Task> {
    let stay = fleet.tasks(service).into_iter().filter(|task| task.is_replica());
    stay.filter(|task| task.node.as_ref().is_some_and(|home| home.as_str() == node)).collect()
}

fn homes(fleet: &Fleet, service: &str) -> BTreeSet<NodeId> {
    fleet.tasks(service).into_iter().filter(|task| task.is_replica()).filter_map(|task| task.node.clone()).collect()
}

const THREE: &str =
    "services: {app: {image: app, deploy: {replicas: 3}}, other: {image: other, deploy: {replicas: 3}}}";

#[test]
fn a_task_that_keeps_failing_where_others_are_well_elsewhere_goes_to_another_node() {
    let mut fleet = Fleet::new(3);
    up(&mut fleet, THREE);
    let bad = on(&fleet, "app", "n2")[0].id.clone();
    fail(&mut fleet, &bad, 4);
    fleet.settle();
    assert!(!fleet.state.tasks[&bad].is_retiring(), "a few times is no habit");
    fail(&mut fleet, &bad, 1);
    fleet.settle();
    assert_eq!((on(&fleet, "app", "n2").len(), fleet.running("app").len()), (0, 3));
    assert!(!fleet.state.tasks.contains_key(&bad));
    // More of it go elsewhere too, others do not; and after a while all is forgotten.
    up(&mut fleet, &THREE.replace("app, deploy: {replicas: 3}", "app, deploy: {replicas: 6}"));
    assert_eq!((on(&fleet, "app", "n2").len(), on(&fleet, "other", "n2").len()), (0, 1));
    fleet.pass(900_000);
    up(&mut fleet, &THREE.replace("app, deploy: {replicas: 3}", "app, deploy: {replicas: 8}"));
    assert_eq!(on(&fleet, "app", "n2").len(), 2);
    fleet.replay();
}

#[test]
fn a_node_that_fails_everything_is_left_and_used_again_when_no_other_is_there() {
    let mut fleet = Fleet::new(2);
    up(
        &mut fleet,
        "services: {app: {image: app}, other: {image: other}, third: {image: third, deploy: {replicas: 2}}}",
    );
    let home = homes(&fleet, "app").first().expect("it runs").clone();
    // Whoever is alone may be at fault itself.
    let app = fleet.tasks("app")[0].id.clone();
    fail(&mut fleet, &app, 6);
    fleet.settle();
    assert_eq!(homes(&fleet, "app"), [home.clone()].into());
    let third = on(&fleet, "third", home.as_str())[0].id.clone();
    fail(&mut fleet, &third, 5);
    fail(&mut fleet, &app, 1);
    fleet.settle();
    assert!(!homes(&fleet, "app").contains(&home) && !homes(&fleet, "third").contains(&home));
    // No other is left: work goes on there.
    let other = homes(&fleet, "app").first().expect("it runs").clone();
    fleet.hosts.get_mut(&other).expect("it is there").linked = false;
    fleet.observe(other.as_str(), NodeState::Down);
    fleet.settle();
    assert_eq!(homes(&fleet, "app"), [home].into());
}

#[test]
fn what_fails_wherever_it_runs_is_moved_once() {
    let mut fleet = Fleet::new(4);
    up(&mut fleet, "services: {app: {image: app, deploy: {replicas: 2}}}");
    let mut made = 0;
    for _ in 0..20 {
        let slot = fleet.tasks("app").into_iter().rfind(|task| task.slot == 2).expect("it is wanted").id.clone();
        let before = fleet.state.task_sequence;
        fail(&mut fleet, &slot, 5);
        fleet.settle();
        made += fleet.state.task_sequence - before;
    }
    assert_eq!(made, 1);
    // All of a service that fail at once stay where they are.
    let mut fleet = Fleet::new(3);
    up(&mut fleet, THREE);
    let all: Vec<TaskId> = fleet.tasks("app").iter().map(|task| task.id.clone()).collect();
    for _ in 0..10 {
        all.iter().for_each(|id| fail(&mut fleet, id, 1));
    }
    fleet.settle();
    assert_eq!(fleet.tasks("app").iter().map(|task| task.id.clone()).collect::<Vec<_>>(), all);
}

#[test]
fn what_is_bound_to_its_node_or_counts_its_attempts_stays_however_often_it_fails() {
    let mut fleet = Fleet::new(3);
    let text = "services: {every: {image: every, deploy: {mode: global}}, data: {image: data, volumes: ['d:/d'], deploy: {replicas: 2}}, few: {image: few, deploy: {replicas: 3, restart_policy: {max_attempts: 9}}}}\nvolumes: {d: {}}";
    fleet.up(&file(text)).expect("it can be brought up");
    fleet.settle();
    for service in ["every", "data", "few"] {
        let task = fleet.tasks(service)[0].id.clone();
        fail(&mut fleet, &task, 12);
        fleet.settle();
        assert!(!fleet.state.tasks[&task].is_retiring(), "{service}");
    }
}
