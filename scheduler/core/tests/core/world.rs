//! A cluster of one node without a node: the state machine, and an agent that does at once what it is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use orch_core::plan::{self, Moment};
use orch_core::{Answer, ApplyStack, Assignments, Command, Entry, Outcome, Refusal, State, Task, UpOptions};
use orch_spec::assignment::{
    Assignment, DesiredTask, Health, NodeFacts, NodeId, NodeReport, TaskAssignment, TaskState, TaskStatus,
};
use orch_spec::load::{LoadRequest, ReadError, Skip, Source, load};
use orch_spec::model::{HealthTest, StackSpec};

/// A file in memory, under the one name there is.
struct Memory<'t>(&'t str);

impl Source for Memory<'_> {
    fn read(&self, path: &str, _limit: usize) -> Result<Vec<u8>, ReadError> {
        if path == "/stack.yaml" { Ok(self.0.as_bytes().to_vec()) } else { Err(ReadError::Missing) }
    }

    fn is_file(&self, path: &str) -> bool {
        path == "/stack.yaml"
    }
}

/// A stack from its file's text, without the loader's checks across services: the state machine must stand without them.
pub(crate) fn stack(name: &str, text: &str) -> StackSpec {
    stack_with(name, text, &BTreeMap::new())
}

/// The same with variables.
pub(crate) fn stack_with(name: &str, text: &str, environment: &BTreeMap<String, String>) -> StackSpec {
    let request = LoadRequest {
        files: vec!["/stack.yaml".to_owned()],
        working_dir: "/".to_owned(),
        project_name: Some(name.to_owned()),
        environment: environment.clone(),
        skip: Skip { consistency: true, ..Skip::default() },
        ..LoadRequest::default()
    };
    let loaded = load(&request, &Memory(text));
    let problems: Vec<String> = loaded.problems.iter().map(|problem| format!("{problem:?}")).collect();
    loaded.spec.unwrap_or_else(|| panic!("the stack file is wrong: {problems:#?}"))
}

/// See the module.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) assignments: Assignments,
    pub(crate) node: NodeId,
    /// Every entry that was applied, for replays.
    pub(crate) log: Vec<Entry>,
    pub(crate) images: BTreeMap<String, String>,
    /// Exit code with which the tasks of a service end by themselves as soon as they run.
    pub(crate) ends: BTreeMap<String, i32>,
    /// Services whose health checks fail.
    pub(crate) sick: Vec<String>,
    clock: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let state = State::new("test-cluster");
        let (assignments, node) = (Assignments::new(&state), NodeId::from("node-1"));
        Self {
            state,
            assignments,
            node,
            log: Vec::new(),
            images: BTreeMap::new(),
            ends: BTreeMap::new(),
            sick: Vec::new(),
            clock: 1_000_000,
        }
    }

    /// A world whose node has said what it is.
    pub(crate) fn with_node(routes: &[&str]) -> Self {
        let mut world = Self::new();
        let routes = routes.iter().map(|route| (*route).to_owned()).collect();
        let facts = NodeFacts {
            id: world.node.clone(),
            hostname: "host-1".to_owned(),
            routes,
            cpus: 2,
            ..NodeFacts::default()
        };
        world.report(NodeReport::Facts(facts));
        world
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { now_ms: self.clock + 1000, nonce: self.clock ^ 0x9e37_79b9 }
    }

    pub(crate) fn apply(&mut self, command: Command) -> Outcome {
        let Moment { now_ms, nonce } = self.moment();
        self.clock = now_ms;
        let entry = Entry { time_ms: None, now_ms, nonce, request: None, command };
        let outcome = self.state.apply(self.state.index + 1, &entry);
        self.assignments.refresh(&self.state, &outcome.changes);
        self.log.push(entry);
        outcome
    }

    pub(crate) fn report(&mut self, report: NodeReport) {
        let outcome = self.apply(Command::Report { node: self.node.clone(), turn: orch_core::Turn::default(), report });
        assert!(outcome.result.is_ok(), "a report is never refused");
    }

    pub(crate) fn request(&self, spec: &Arc<StackSpec>, options: UpOptions) -> ApplyStack {
        let id = |image: &String| {
            let known = self.images.get(image).cloned();
            (image.clone(), known.unwrap_or_else(|| format!("sha256:{:0<12}", image.replace([':', '/'], ""))))
        };
        let images = spec.services.values().map(|service| id(&service.image)).collect();
        ApplyStack { spec: Arc::clone(spec), files: vec!["/stack.yaml".to_owned()], options, images }
    }

    pub(crate) fn up(&mut self, spec: &Arc<StackSpec>, options: UpOptions) -> Result<Answer, Refusal> {
        let request = self.request(spec, options);
        self.apply(Command::ApplyStack(request)).result
    }

    pub(crate) fn plan(&self, spec: &Arc<StackSpec>, options: UpOptions) -> Result<Answer, Refusal> {
        plan::up(&self.state, &self.request(spec, options), self.moment())
    }

    pub(crate) fn assignment(&self) -> Assignment {
        self.assignments.of(&self.state, &self.node)
    }

    pub(crate) fn task(&self, container_name: &str) -> Option<&Task> {
        let mut named: Vec<&Task> =
            self.state.tasks.values().filter(|task| task.container_name == container_name).collect();
        named.sort_by_key(|task| task.sequence);
        named.pop()
    }

    /// One look of the agent at its assignment: what it does about each task and object, one step each. Says whether it did anything.
    pub(crate) fn agent_step(&mut self) -> bool {
        let assignment = self.assignment();
        let statuses: Vec<TaskStatus> = assignment.tasks.iter().filter_map(|task| self.next_status(task)).collect();
        let networks = assignment.removed_networks;
        let volumes: Vec<(String, Option<String>)> =
            assignment.removed_volumes.into_iter().map(|name| (name, None)).collect();
        let did = !statuses.is_empty() || !networks.is_empty() || !volumes.is_empty();
        if !statuses.is_empty() {
            self.report(NodeReport::Tasks(statuses));
        }
        if !networks.is_empty() {
            self.report(NodeReport::NetworksRemoved(networks));
        }
        if !volumes.is_empty() {
            self.report(NodeReport::VolumesRemoved(volumes));
        }
        did
    }

    /// Lets the agent work until it has nothing to do.
    pub(crate) fn agent(&mut self) {
        for _ in 0..1000 {
            if !self.agent_step() {
                return;
            }
        }
        panic!("the agent never comes to rest");
    }

    fn next_status(&self, task: &TaskAssignment) -> Option<TaskStatus> {
        let now = &self.state.tasks.get(&task.id)?.status;
        let mut next = TaskStatus { task: task.id.clone(), ..now.clone() };
        let lives = matches!(now.state, TaskState::Running | TaskState::Paused);
        let behind = now.restart_generation < task.restart_generation;
        match task.desired {
            DesiredTask::Created if now.state < TaskState::Created => self.create(&mut next, task),
            DesiredTask::Running | DesiredTask::Paused if now.state < TaskState::Created => {
                self.create(&mut next, task)
            }
            DesiredTask::Running | DesiredTask::Paused if now.state == TaskState::Created || behind => {
                self.start(&mut next, task)
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
            DesiredTask::Stopped if lives => {
                next.state = TaskState::Exited;
                next.exit_code = Some(143);
                next.finished_at = Some(self.clock);
            }
            DesiredTask::Removed => next.state = TaskState::Removed,
            _ => return None,
        }
        Some(next)
    }

    fn create(&self, next: &mut TaskStatus, task: &TaskAssignment) {
        next.state = TaskState::Created;
        next.container = format!("c{}", task.id);
        next.created_at = Some(self.clock);
        next.image_id.clone_from(&task.image_id);
    }

    fn start(&self, next: &mut TaskStatus, task: &TaskAssignment) {
        next.state = TaskState::Running;
        next.restart_generation = task.restart_generation;
        next.started_at = Some(self.clock);
        next.exit_code = None;
        let checked = task.spec.healthcheck.as_ref();
        let checked = checked.is_some_and(|check| matches!(check.test, HealthTest::Command(_) | HealthTest::Shell(_)));
        next.health = if checked { Health::Starting } else { Health::None };
    }
}
