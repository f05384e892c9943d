//! The planner as text: a made-up host, and the operations that it plans; then what it plans once those are done, down to nothing.

use std::sync::Arc;

use orch_engine::config::ContainerId;
use orch_spec::assignment::{
    Assignment, DesiredTask, EndpointAssignment, NetworkAssignment, NetworkName, TaskAssignment, TaskId, TaskNetwork,
    TaskState, VolumeAssignment,
};
use orch_spec::model::{RestartPolicy, ServiceSpec};

use super::{MissingImage, Observed, Operation, plan};
use crate::task::{BACKOFF_FIRST_MS, ContainerState, ObservedContainer, TaskError, status};

const NOW: u64 = 1_000_000;

fn task(id: &str, desired: DesiredTask) -> TaskAssignment {
    TaskAssignment {
        id: TaskId::from(id),
        stack: "s".into(),
        service: id.into(),
        slot: 1,
        container_name: format!("s-{id}-1"),
        spec: Arc::new(ServiceSpec { restart: Some(RestartPolicy::Always), ..ServiceSpec::default() }),
        spec_hash: String::new(),
        image_id: String::new(),
        desired,
        restart_generation: 0,
        stop_timeout: None,
        stop_signal: None,
        remove_volumes: false,
        network: TaskNetwork::Endpoints {
            endpoints: vec![EndpointAssignment {
                network: NetworkName::from("s_default"),
                ipv4: None,
                ipv6: None,
                mac: None,
                interface_name: None,
                gw_priority: 0,
                links: Default::default(),
            }],
            ports: vec![],
        },
        pid_of: None,
        ipc_of: None,
        volumes: [("data".to_owned(), "s_data".to_owned())].into(),
        files: vec![],
        renew_anonymous_volumes: false,
        one_off: false,
        comes_back: false,
    }
}

fn assignment(tasks: Vec<TaskAssignment>) -> Assignment {
    let network = NetworkAssignment {
        name: NetworkName::from("s_default"),
        stack: "s".into(),
        key: "default".into(),
        subnet4: None,
        gateway4: None,
        subnet6: None,
        gateway6: None,
        internal: false,
        icc: true,
        mtu: 0,
        driver_opts: Default::default(),
        labels: Default::default(),
        overlay: None,
    };
    let volume = VolumeAssignment {
        name: "s_data".into(),
        stack: "s".into(),
        external: false,
        driver: String::new(),
        driver_opts: Default::default(),
        labels: Default::default(),
    };
    Assignment { version: 1, networks: vec![network], volumes: vec![volume], tasks, ..Assignment::default() }
}

/// A host that carries out what is planned, at once and without fail.
struct Host {
    assignment: Assignment,
    observed: Observed,
    now: u64,
}

impl Host {
    fn new(tasks: Vec<TaskAssignment>) -> Self {
        Self { assignment: assignment(tasks), observed: Observed::default(), now: NOW }
    }

    fn plan(&self) -> Vec<Operation> {
        let desired: Vec<&TaskAssignment> = self.assignment.tasks.iter().collect();
        plan(&self.assignment, &desired, &self.observed, self.now).operations
    }

    fn execute(&mut self, operation: &Operation) {
        let now = self.now;
        let tasks = &self.assignment.tasks;
        let name = |id: &TaskId| tasks.iter().find(|task| task.id == *id).map(|task| task.container_name.clone());
        let mut container = |id: &TaskId, state: ContainerState| {
            let seen = self.observed.tasks.entry(id.clone()).or_default();
            let made = ObservedContainer {
                id: ContainerId(format!("c-{id}")),
                name: seen
                    .container
                    .as_ref()
                    .map(|former| former.name.clone())
                    .or_else(|| name(id))
                    .unwrap_or_default(),
                state,
                pid: None,
                exit_code: Some(0),
                oom_killed: false,
                lost: false,
                created_at: now,
                started_at: Some(now),
                finished_at: Some(now),
                image_id: String::new(),
            };
            seen.container = Some(made);
        };
        match operation {
            Operation::CreateNetwork(name) => {
                self.observed.networks.insert(name.clone());
            }
            Operation::RemoveNetwork(name) => {
                self.observed.networks.remove(name);
            }
            Operation::CreateVolume(name) => {
                self.observed.volumes.insert(name.clone());
            }
            Operation::RemoveVolume(name) => {
                self.observed.volumes.remove(name);
                self.assignment.removed_volumes.retain(|v| v != name);
            }
            Operation::FetchImage(image) => drop(self.observed.images.remove(image)),
            Operation::CreateContainer(id) => {
                container(id, ContainerState::Created);
                self.observed.tasks.entry(id.clone()).or_default().record.error = None;
            }
            Operation::StartContainer { task, .. } => {
                container(task, ContainerState::Running);
                let desired = self.assignment.tasks.iter().find(|t| t.id == *task);
                let own = desired.is_some_and(|t| matches!(t.network, TaskNetwork::Endpoints { .. }));
                let generation = desired.map_or(0, |t| t.restart_generation);
                let seen = self.observed.tasks.entry(task.clone()).or_default();
                seen.sandbox = own;
                seen.attached = desired.into_iter().flat_map(super::networks_of).cloned().collect();
                seen.record.restart_generation = generation;
                seen.record.stopped_by_request = false;
            }
            Operation::StopContainer { task, by_request } => {
                container(task, ContainerState::Exited);
                self.observed.tasks.entry(task.clone()).or_default().record.stopped_by_request = *by_request;
            }
            Operation::PauseContainer(id) => container(id, ContainerState::Paused),
            Operation::UnpauseContainer(id) => container(id, ContainerState::Running),
            Operation::RemoveSandbox(id) => {
                let seen = self.observed.tasks.entry(id.clone()).or_default();
                (seen.sandbox, seen.attached) = (false, Default::default());
            }
            Operation::Connect(id, network) => {
                self.observed.tasks.entry(id.clone()).or_default().attached.insert(network.clone());
            }
            Operation::Disconnect(id, network) => {
                self.observed.tasks.entry(id.clone()).or_default().attached.remove(network);
            }
            Operation::RemoveContainer(id) => {
                self.observed.tasks.remove(id);
            }
        }
    }

    /// Plans and executes until nothing is left; one line an operation.
    fn settle(&mut self) -> String {
        let mut text = String::new();
        for _ in 0..20 {
            let operations = self.plan();
            if operations.is_empty() {
                return text;
            }
            for operation in operations {
                text.push_str(&format!("{operation}\n"));
                self.execute(&operation);
            }
        }
        panic!("planning again never gives the empty plan:\n{text}");
    }

    fn desire(&mut self, id: &str, desired: DesiredTask) {
        self.assignment.tasks.iter_mut().filter(|t| t.id.to_string() == id).for_each(|t| t.desired = desired);
    }

    fn ended(&mut self, id: &str, code: i32) {
        if let Some(c) = self.observed.tasks.get_mut(&TaskId::from(id)).and_then(|t| t.container.as_mut()) {
            c.state = ContainerState::Exited;
            c.exit_code = Some(code);
            c.finished_at = Some(self.now);
        }
    }
}

#[test]
fn networks_and_volumes_come_before_the_container_that_uses_them() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    assert_eq!(
        host.settle(),
        "create network s_default\ncreate volume s_data\ncreate container of db\nstart container of db: shall run\n"
    );
}

#[test]
fn a_removed_task_is_stopped_before_it_is_removed_and_its_network_goes_last() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    host.desire("db", DesiredTask::Removed);
    assert_eq!(host.settle(), "stop container of db: asked for\nremove container of db\n");
    host.assignment.tasks.clear();
    host.assignment.networks.clear();
    assert_eq!(host.settle(), "remove network s_default: no longer assigned\n");
}

#[test]
fn a_container_of_no_known_task_is_removed() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    host.assignment.tasks.clear();
    host.assignment.networks.clear();
    assert_eq!(
        host.settle(),
        "stop container of db: asked for\nremove container of db\nremove network s_default: no longer assigned\n"
    );
}

#[test]
fn a_container_is_made_when_the_one_that_had_its_name_is_gone() {
    // `down` and `up` while the node is away: it still has the former one, and nobody tells it to remove that first.
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    let again = TaskAssignment { container_name: "s-db-1".into(), ..task("db2", DesiredTask::Running) };
    host.assignment.tasks = vec![again];
    assert_eq!(
        host.settle(),
        "stop container of db: asked for\nremove container of db\ncreate container of db2\nstart container of db2: shall run\n"
    );
    // What stays has its name for good, and who wants it is told so.
    let other = TaskAssignment { container_name: "s-db-1".into(), ..task("db3", DesiredTask::Running) };
    host.assignment.tasks.push(other);
    assert!(host.plan().contains(&Operation::CreateContainer("db3".into())));
}

#[test]
fn a_container_of_another_control_plane_is_left_alone() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.assignment.cluster = "old".into();
    host.settle();
    host.observed.tasks.values_mut().for_each(|t| t.cluster = "old".into());
    host.assignment = Assignment { version: 1, cluster: "new".into(), ..Assignment::default() };
    assert_eq!(host.settle(), "");
}

#[test]
fn what_exits_is_started_again_when_its_back_off_is_over() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    host.ended("db", 1);
    assert_eq!(host.settle(), "");
    host.now += 100;
    assert_eq!(host.settle(), "start container of db: restart policy\n");
}

#[test]
fn what_went_down_with_its_host_comes_back_where_its_service_would_be_one_short() {
    for (lost, comes_back, expected) in
        [(true, true, "start container of db: restart policy\n"), (true, false, ""), (false, true, "")]
    {
        let db = TaskAssignment { spec: Arc::default(), comes_back, ..task("db", DesiredTask::Running) };
        let mut host = Host::new(vec![db]);
        host.settle();
        host.ended("db", 137);
        let seen = host.observed.tasks.get_mut(&TaskId::from("db")).expect("it is there");
        seen.container.as_mut().expect("it was made").lost = lost;
        seen.sandbox = false;
        host.now += BACKOFF_FIRST_MS;
        assert_eq!(host.settle(), expected);
        host.desire("db", DesiredTask::Stopped);
        host.settle();
    }
}

#[test]
fn what_was_stopped_by_request_stays_down_and_gives_its_ports_back() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    host.desire("db", DesiredTask::Stopped);
    assert_eq!(host.settle(), "stop container of db: asked for\nremove network namespace of db: does not run\n");
    host.now += 1_000_000;
    assert_eq!(host.settle(), "");
    host.desire("db", DesiredTask::Running);
    assert_eq!(host.settle(), "start container of db: shall run\n");
}

#[test]
fn a_restart_is_carried_out_once() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    host.assignment.tasks[0].restart_generation = 3;
    assert_eq!(host.settle(), "stop container of db: to be restarted\nstart container of db: restart asked for\n");
}

#[test]
fn a_guest_waits_for_the_namespace_it_joins_and_the_owner_keeps_it_while_it_runs() {
    let mut guest = task("guest", DesiredTask::Running);
    guest.network = TaskNetwork::Task(TaskId::from("owner"));
    let mut host = Host::new(vec![guest, task("owner", DesiredTask::Running)]);
    assert_eq!(
        host.settle(),
        "create network s_default\ncreate volume s_data\ncreate container of owner\ncreate container of guest\n\
         start container of owner: shall run\nstart container of guest: shall run\n"
    );
    host.desire("owner", DesiredTask::Stopped);
    assert_eq!(host.settle(), "stop container of owner: asked for\n");
    host.desire("guest", DesiredTask::Stopped);
    assert_eq!(host.settle(), "stop container of guest: asked for\nremove network namespace of owner: does not run\n");
}

#[test]
fn a_guest_is_made_after_the_container_whose_processes_it_sees() {
    let mut guest = task("guest", DesiredTask::Running);
    guest.pid_of = Some(TaskId::from("owner"));
    let mut host = Host::new(vec![guest, task("owner", DesiredTask::Running)]);
    assert_eq!(
        host.settle(),
        "create network s_default\ncreate volume s_data\ncreate container of owner\ncreate container of guest\n\
         start container of owner: shall run\nstart container of guest: shall run\n"
    );
}

#[test]
fn pausing_and_thawing_follow_what_is_desired() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    host.desire("db", DesiredTask::Paused);
    assert_eq!(host.settle(), "pause container of db\n");
    host.desire("db", DesiredTask::Running);
    assert_eq!(host.settle(), "unpause container of db\n");
}

/// A task that could not be made just now.
fn failing(spec: ServiceSpec) -> Host {
    let db = TaskAssignment { spec: Arc::new(spec), ..task("db", DesiredTask::Running) };
    let mut host = Host::new(vec![db]);
    host.execute(&Operation::CreateNetwork(NetworkName::from("s_default")));
    host.execute(&Operation::CreateVolume("s_data".into()));
    let error = TaskError { message: "no space left".into(), code: 125, at: NOW };
    host.observed.tasks.entry(TaskId::from("db")).or_default().record.error = Some(error);
    host
}

#[test]
fn what_could_not_be_made_or_started_is_tried_again_by_its_policy() {
    for policy in [RestartPolicy::Always, RestartPolicy::OnFailure { max_attempts: Some(3) }] {
        let mut host = failing(ServiceSpec { restart: Some(policy), ..ServiceSpec::default() });
        let failed = || status(&host.assignment.tasks[0], host.observed.tasks.get(&TaskId::from("db")), host.now);
        assert_eq!((failed().state, failed().again), (TaskState::Failed, true));
        assert_eq!(host.settle(), "", "after a while");
        host.now += BACKOFF_FIRST_MS;
        assert_eq!(host.settle(), "create container of db\nstart container of db: shall run\n");

        // As if that start had failed, for the third time.
        let seen = host.observed.tasks.get_mut(&TaskId::from("db")).expect("it is there");
        seen.container.as_mut().expect("it was made").state = ContainerState::Created;
        seen.record.error = Some(TaskError { message: "port 80 is taken".into(), code: 125, at: host.now });
        (seen.record.restarts, seen.record.short_runs) = (2, 3);
        assert_eq!(host.settle(), "");
        host.now += BACKOFF_FIRST_MS << 3;
        assert_eq!(host.settle(), "start container of db: restart policy\n");
    }
    let mut host = failing(ServiceSpec { restart: Some(RestartPolicy::Always), ..ServiceSpec::default() });
    host.now += BACKOFF_FIRST_MS;
    for other in [
        TaskAssignment { one_off: true, ..host.assignment.tasks[0].clone() },
        TaskAssignment { stack: String::new(), ..host.assignment.tasks[0].clone() },
        TaskAssignment { desired: DesiredTask::Stopped, ..host.assignment.tasks[0].clone() },
    ] {
        host.assignment.tasks[0] = other;
        assert_eq!(host.settle(), "");
        assert!(!status(&host.assignment.tasks[0], host.observed.tasks.get(&TaskId::from("db")), host.now).again);
    }
}

#[test]
fn what_could_not_be_made_is_tried_again_when_somebody_asks_and_not_by_itself() {
    let mut host = failing(ServiceSpec::default());
    host.now += 3_600_000;
    assert_eq!(host.settle(), "");
    host.assignment.tasks[0].restart_generation = 1;
    assert_eq!(host.settle(), "create container of db\nstart container of db: restart asked for\n");
}

#[test]
fn tasks_that_lack_one_image_wait_for_one_fetch_of_it() {
    let of = |id: &str| TaskAssignment { image_id: "sha256:a".into(), ..task(id, DesiredTask::Running) };
    let mut host = Host::new(vec![of("a"), of("b")]);
    host.observed.images.insert("sha256:a".into(), MissingImage::default());
    assert_eq!(
        host.settle(),
        "create network s_default\ncreate volume s_data\nfetch image sha256:a\n\
         create container of a\ncreate container of b\nstart container of a: shall run\nstart container of b: shall run\n"
    );
}

#[test]
fn an_image_that_could_not_be_had_is_tried_again_at_its_time_and_for_nobody_never() {
    let mut host = Host::new(vec![TaskAssignment { image_id: "sha256:a".into(), ..task("a", DesiredTask::Running) }]);
    host.settle();
    host.observed.tasks.clear();
    host.observed.images.insert("sha256:a".into(), MissingImage { again_at: NOW + 500, ..MissingImage::default() });
    let desired: Vec<&TaskAssignment> = host.assignment.tasks.iter().collect();
    let waits = plan(&host.assignment, &desired, &host.observed, NOW);
    assert_eq!((waits.operations.len(), waits.wake_at), (0, Some(NOW + 500)));
    assert_eq!(plan(&host.assignment, &desired, &host.observed, NOW + 500).operations.len(), 1);
    host.desire("a", DesiredTask::Removed);
    assert_eq!(host.settle(), "");
}

#[test]
fn a_container_that_runs_follows_its_networks_and_one_that_does_not_work_is_not_tried_again() {
    let mut host = Host::new(vec![task("db", DesiredTask::Running)]);
    host.settle();
    let other = NetworkAssignment { name: "other".into(), ..host.assignment.networks[0].clone() };
    host.assignment.networks.push(other);
    let TaskNetwork::Endpoints { endpoints, .. } = host.assignment.tasks[0].network.clone() else {
        panic!("it has endpoints")
    };
    let first = endpoints[0].clone();
    let wire = |host: &mut Host, names: &[&str]| {
        let TaskNetwork::Endpoints { endpoints, .. } = &mut host.assignment.tasks[0].network else {
            panic!("it has endpoints")
        };
        endpoints.clear();
        endpoints.extend(names.iter().map(|name| EndpointAssignment { network: (*name).into(), ..first.clone() }));
    };
    wire(&mut host, &["s_default", "other"]);
    assert_eq!(host.settle(), "create network other\nconnect db to network other\n");
    wire(&mut host, &["other"]);
    assert_eq!(host.settle(), "disconnect db from network s_default\n");
    // The bridge goes after the last namespace has left it.
    wire(&mut host, &[]);
    host.assignment.networks.pop();
    assert_eq!(host.settle(), "disconnect db from network other\nremove network other: no longer assigned\n");
    wire(&mut host, &["s_default"]);
    let seen = host.observed.tasks.entry(TaskId::from("db")).or_default();
    seen.unattached.insert("s_default".into(), "its address is taken".into());
    assert_eq!(host.settle(), "");
    host.desire("db", DesiredTask::Stopped);
    assert_eq!(host.settle(), "stop container of db: asked for\nremove network namespace of db: does not run\n");
}
