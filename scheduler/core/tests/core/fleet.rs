//! A cluster of several nodes without nodes: the state machine, and agents that have a memory of their own, can be cut off and lose it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use orch_core::plan::{self, Moment};
use orch_core::{
    Act, Action, Answer, ApplyStack, Assignments, ClusterSettings, Command, Entry, NodeState, Outcome, Refusal, State,
    Task, UpOptions,
};
use orch_spec::assignment::{
    Assignment, DesiredTask, Health, NodeFacts, NodeId, NodeReport, TaskAssignment, TaskId, TaskState, TaskStatus,
};
use orch_spec::model::{HealthTest, StackSpec};

use crate::oracle;

/// A host with its agent.
#[derive(Default)]
pub(crate) struct Host {
    /// The agent and the control plane hear each other.
    pub(crate) linked: bool,
    /// What it was told last.
    pub(crate) told: Assignment,
    /// Containers as they are.
    pub(crate) containers: BTreeMap<TaskId, (String, TaskStatus)>,
}

/// See the module.
pub(crate) struct Fleet {
    pub(crate) state: State,
    pub(crate) assignments: Assignments,
    pub(crate) log: Vec<Entry>,
    pub(crate) hosts: BTreeMap<NodeId, Host>,
    /// Services whose tasks end by themselves as soon as they run, with their exit code.
    pub(crate) ends: BTreeMap<String, i32>,
    /// Images whose containers end at once with this code.
    pub(crate) broken: BTreeMap<String, i32>,
    /// Services whose health checks fail.
    pub(crate) sick: BTreeSet<String>,
    /// Nodes that do not acknowledge what they were told of endpoints.
    pub(crate) mute: BTreeSet<NodeId>,
    pub(crate) clock: u64,
}

impl Fleet {
    /// A cluster with so many nodes, `n1` and so on, of 4 processors and 8 GiB each.
    pub(crate) fn new(nodes: usize) -> Self {
        let state = State::new("test-cluster");
        let mut fleet = Self {
            assignments: Assignments::new(&state),
            state,
            log: Vec::new(),
            hosts: BTreeMap::new(),
            ends: BTreeMap::new(),
            broken: BTreeMap::new(),
            sick: BTreeSet::new(),
            mute: BTreeSet::new(),
            clock: 1_000_000,
        };
        let _ = fleet.apply(Command::FormCluster(ClusterSettings::default()));
        for number in 1..=nodes {
            fleet.join(&format!("n{number}"), &BTreeMap::new());
        }
        fleet
    }

    /// A node more.
    pub(crate) fn join(&mut self, name: &str, words: &BTreeMap<&str, &str>) {
        let number = u8::try_from(self.hosts.len() + 1).expect("a handful of nodes");
        let amount = |key: &str, default: u64| words.get(key).map_or(default, |text| text.parse().expect("a number"));
        let facts = NodeFacts {
            id: name.into(),
            hostname: format!("host-{name}"),
            cpus: u32::try_from(amount("cpus", 4)).expect("few processors"),
            memory: amount("memory", 8 << 30),
            platform: words.get("platform").copied().unwrap_or("linux/amd64").to_owned(),
            address: Some(
                words
                    .get("address")
                    .map_or(IpAddr::from([192, 168, 7, number]), |text| text.parse().expect("an address")),
            ),
            ..NodeFacts::default()
        };
        let host = self.hosts.entry(name.into()).or_default();
        host.linked = true;
        self.report(&name.into(), NodeReport::Facts(facts));
    }

    /// Restarts all tasks of a service of the stack `web`.
    pub(crate) fn restart(&mut self, service: &str) -> Outcome {
        self.apply(Command::Act(Act {
            stack: "web".to_owned(),
            services: vec![service.to_owned()],
            tasks: Vec::new(),
            action: Action::Restart,
            timeout: None,
            signal: None,
            no_deps: false,
            remove_volumes: false,
            stop: false,
        }))
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { now_ms: self.clock, nonce: self.clock ^ (self.log.len() as u64).wrapping_mul(0x9e37_79b9) }
    }

    /// Applies a command, and looks whether everything holds that must.
    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        self.clock += 1;
        let Moment { now_ms, nonce } = self.moment();
        let entry = Entry { time_ms: None, now_ms, nonce, request: None, command };
        let before = self.state.clone();
        let outcome = self.state.apply(self.state.index + 1, &entry);
        self.assignments.refresh(&self.state, &outcome.changes);
        oracle::check(&before, &self.state, &entry.command);
        stops_come_after_withdrawal(&before, self);
        for node in self.state.nodes.keys() {
            let fresh = Assignments::new(&self.state).of(&self.state, node);
            assert_eq!(
                fresh,
                self.assignments.of(&self.state, node),
                "what is kept for {node} is not what would be derived"
            );
        }
        self.log.push(entry);
        outcome
    }

    pub(crate) fn report(&mut self, node: &NodeId, report: NodeReport) {
        let outcome = self.apply(Command::Report { node: node.clone(), turn: orch_core::Turn::default(), report });
        assert!(outcome.result.is_ok(), "a report is never refused");
    }

    pub(crate) fn observe(&mut self, node: &str, state: NodeState) {
        let _ = self.apply(Command::ObserveNode { node: node.into(), state });
    }

    /// Lets time pass, and does what is due.
    pub(crate) fn pass(&mut self, milliseconds: u64) {
        let end = self.clock + milliseconds;
        while self.state.next_timer().is_some_and(|at| at <= end) {
            let at = self.state.next_timer().expect("just looked");
            self.clock = self.clock.max(at);
            let _ = self.apply(Command::Tick);
            self.settle();
        }
        self.clock = self.clock.max(end);
    }

    pub(crate) fn request(&self, spec: &Arc<StackSpec>, options: UpOptions) -> ApplyStack {
        let id = |image: &String| (image.clone(), format!("sha256:{:0<12}", image.replace([':', '/'], "")));
        let images = spec.services.values().map(|service| id(&service.image)).collect();
        ApplyStack { spec: Arc::clone(spec), files: vec!["/stack.yaml".to_owned()], options, images }
    }

    pub(crate) fn up(&mut self, spec: &Arc<StackSpec>) -> Result<Answer, Refusal> {
        let request = self.request(spec, UpOptions::default());
        self.apply(Command::ApplyStack(request)).result
    }

    pub(crate) fn plan(&self, spec: &Arc<StackSpec>) -> Result<Answer, Refusal> {
        plan::up(&self.state, &self.request(spec, UpOptions::default()), self.moment())
    }

    /// The tasks of a service, by slot and age.
    pub(crate) fn tasks(&self, service: &str) -> Vec<&Task> {
        let mut tasks: Vec<&Task> = self.state.tasks.values().filter(|task| task.service == service).collect();
        tasks.sort_by_key(|task| (task.slot, task.sequence));
        tasks
    }

    /// Containers of a service that really run, by slot.
    pub(crate) fn running(&self, service: &str) -> Vec<(u32, NodeId)> {
        let mut found = Vec::new();
        for (node, host) in &self.hosts {
            for (id, (of, status)) in &host.containers {
                let slot = self.state.tasks.get(id).map_or(0, |task| task.slot);
                if of == service && matches!(status.state, TaskState::Running | TaskState::Paused) {
                    found.push((slot, node.clone()));
                }
            }
        }
        found.sort();
        found
    }

    /// Every agent that is linked looks once. Says whether anybody did anything.
    pub(crate) fn step(&mut self) -> bool {
        let nodes: Vec<NodeId> = self.hosts.keys().cloned().collect();
        let mut did = false;
        for node in nodes {
            did |= self.step_host(&node);
        }
        did
    }

    /// Until nobody has anything to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..4000 {
            if !self.advance() {
                return;
            }
        }
        panic!("the agents never come to rest");
    }

    /// One look of one agent, or when none has anything to do, the next moment that something waits for.
    pub(crate) fn advance(&mut self) -> bool {
        self.step() || self.last_answers_went()
    }

    /// Lets the moment pass for which what nobody is sent to any more is left alone.
    fn last_answers_went(&mut self) -> bool {
        let soon = self.clock + 200;
        let deadlines = self.state.tasks.values().filter_map(|task| Some(task.withdrawn?.deadline));
        let Some(at) = deadlines.filter(|at| (self.clock + 1..=soon).contains(at)).min() else { return false };
        self.clock = at;
        let _ = self.apply(Command::Tick);
        true
    }

    /// One look of one agent.
    pub(crate) fn step_host(&mut self, node: &NodeId) -> bool {
        let Some(mut host) = self.hosts.remove(node) else { return false };
        let mut reports = Vec::new();
        let mut applied = None;
        if host.linked && self.state.nodes.contains_key(node) {
            let told = self.assignments.of(&self.state, node);
            let known = self.state.nodes.get(node).map_or(0, |node| node.applied);
            if told.endpoints_version > known && !self.mute.contains(node) {
                applied = Some(told.endpoints_version);
            }
            host.told = told;
        }
        let mut statuses = Vec::new();
        for task in host.told.tasks.clone() {
            let status = self.next_status(&host, &task);
            if status.state == TaskState::Removed {
                host.containers.remove(&task.id);
            } else {
                host.containers.insert(task.id.clone(), (task.service.clone(), status.clone()));
            }
            let known = self.state.tasks.get(&task.id).map(|task| &task.status);
            if host.linked && known.is_some_and(|known| *known != status) {
                statuses.push(status);
            }
        }
        // What it is not told of goes.
        let wanted: BTreeSet<TaskId> = host.told.tasks.iter().map(|task| task.id.clone()).collect();
        host.containers.retain(|id, _| wanted.contains(id));
        if !statuses.is_empty() {
            reports.push(NodeReport::Tasks(statuses));
        }
        if host.linked && !host.told.removed_networks.is_empty() {
            reports.push(NodeReport::NetworksRemoved(host.told.removed_networks.clone()));
        }
        if host.linked && !host.told.removed_volumes.is_empty() {
            let gone = host.told.removed_volumes.iter().map(|name| (name.clone(), None));
            reports.push(NodeReport::VolumesRemoved(gone.collect()));
        }
        self.hosts.insert(node.clone(), host);
        let did = !reports.is_empty() || applied.is_some();
        for report in reports {
            self.report(node, report);
        }
        if let Some(version) = applied {
            self.report(node, NodeReport::Applied { version });
        }
        did
    }

    /// What becomes of a task in one step.
    fn next_status(&self, host: &Host, task: &TaskAssignment) -> TaskStatus {
        let none = (String::new(), TaskStatus { task: task.id.clone(), ..TaskStatus::default() });
        let now = &host.containers.get(&task.id).unwrap_or(&none).1;
        let mut next = now.clone();
        let lives = matches!(now.state, TaskState::Running | TaskState::Paused);
        let behind = now.restart_generation < task.restart_generation;
        match task.desired {
            DesiredTask::Removed if lives => (next.state, next.exit_code) = (TaskState::Exited, Some(143)),
            DesiredTask::Removed => next.state = TaskState::Removed,
            DesiredTask::Stopped if lives => (next.state, next.exit_code) = (TaskState::Exited, Some(143)),
            DesiredTask::Created | DesiredTask::Running | DesiredTask::Paused if now.state < TaskState::Created => {
                next.state = TaskState::Created;
                next.container = format!("c{}", task.id);
                next.created_at = Some(self.clock);
            }
            DesiredTask::Running | DesiredTask::Paused if now.state == TaskState::Created || behind => {
                next.state = TaskState::Running;
                next.restart_generation = task.restart_generation;
                next.started_at = Some(self.clock);
                let checked = task.spec.healthcheck.as_ref();
                let checked = checked.is_some_and(|c| matches!(c.test, HealthTest::Command(_) | HealthTest::Shell(_)));
                next.health = if checked { Health::Starting } else { Health::None };
            }
            DesiredTask::Running if lives && self.broken.contains_key(&task.spec.image) => {
                next.state = TaskState::Exited;
                next.exit_code = self.broken.get(&task.spec.image).copied();
                next.finished_at = Some(self.clock);
            }
            DesiredTask::Running if lives && self.ends.contains_key(&task.service) => {
                next.state = TaskState::Exited;
                next.exit_code = self.ends.get(&task.service).copied();
                next.finished_at = Some(self.clock);
            }
            DesiredTask::Running if lives && now.health == Health::Starting => {
                let sick = self.sick.contains(&task.service);
                next.health = if sick { Health::Unhealthy } else { Health::Healthy };
            }
            DesiredTask::Paused if now.state == TaskState::Running => next.state = TaskState::Paused,
            DesiredTask::Running if now.state == TaskState::Paused => next.state = TaskState::Running,
            _ => {}
        }
        next
    }

    /// The log alone, and a snapshot with the rest of the log, give the state that is.
    pub(crate) fn replay(&self) {
        let mut state = State::new("test-cluster");
        let half = self.log.len() / 2;
        for (place, entry) in self.log.iter().enumerate() {
            if place == half {
                let bytes = serde_json::to_vec(&state).expect("a state can be written down");
                state = serde_json::from_slice(&bytes).expect("a state can be read back");
            }
            let index = state.index + 1;
            state.apply(index, entry);
        }
        assert_eq!(state, self.state, "a replay gives another state");
    }
}

/// I4: when a node is told to stop a task that served, no node that counts still sends anybody there, unless the time was over.
fn stops_come_after_withdrawal(before: &State, fleet: &Fleet) {
    let state = &fleet.state;
    for task in state.tasks.values() {
        let Some(former) = before.tasks.get(&task.id) else { continue };
        let runs = matches!(former.told, Some(DesiredTask::Running | DesiredTask::Paused));
        let stops = matches!(task.told, Some(DesiredTask::Stopped | DesiredTask::Removed))
            || task.told_generation > former.told_generation;
        let ended = !former.has_process() || !task.has_process();
        if !runs || !stops || task.unordered || ended || task.endpoints().is_empty() {
            continue;
        }
        let withdrawal =
            task.withdrawn.unwrap_or_else(|| panic!("{} was stopped while it served", task.container_name));
        assert!(withdrawal.deadline <= state.time, "{} is stopped at once", task.container_name);
        let since = usize::try_from(withdrawal.index).ok().and_then(|index| fleet.log.get(index - 1));
        if since.is_none_or(|entry| entry.now_ms + 3_000 <= state.time) {
            continue;
        }
        let addresses: Vec<IpAddr> =
            task.endpoints().iter().filter_map(|endpoint| endpoint.ipv4.map(IpAddr::V4)).collect();
        for (id, host) in &fleet.hosts {
            if state.nodes.get(id).is_none_or(|node| node.state != NodeState::Ready) {
                continue;
            }
            let services = host.told.services.iter().flat_map(|service| &service.backends);
            let ports = host.told.mesh_ports.iter().flat_map(|port| &port.backends);
            let sends = services.chain(ports).any(|backend| {
                // Whom a task takes over from has its address, on another node.
                backend.ready && addresses.contains(&backend.address) && Some(&backend.node) == task.node.as_ref()
            });
            assert!(!sends, "I4: {} is stopped while {id} still sends connections to it", task.container_name);
        }
    }
}
