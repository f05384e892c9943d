//! How long it takes to place tasks, to take in what is said of them, and to update a service:
//! `cargo run --release -p orch-core --example placement -- [TASKS] [NODES]`.
//!
//! Everything goes through the log's commands, as in production: one command a stack makes its tasks, with reservations, two constraints
//! and a preference, and gives each a node in the same entry. Then every node says that its tasks run, and one service is rolled.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orch_core::{
    ApplyStack, ClusterSettings, Command, Entry, Member, MemberRole, Members, SUMMED, State, UpOptions, UpdateNode,
    UpdateService,
};
use orch_spec::assignment::{NodeFacts, NodeId, NodeReport, TaskId, TaskState, TaskStatus};
use orch_spec::model::{
    Constraint, DeployResources, DeploySpec, NanoCpus, NetworkMode, PlacementSpec, ResourceReservations, ServiceSpec,
    StackSpec,
};

/// Tasks of one stack: more than the state machine lets one service have would be refused.
const STACK: usize = 10_000;

struct Log {
    state: State,
    spent: Duration,
}

impl Log {
    fn apply(&mut self, command: Command) -> bool {
        let index = self.state.index + 1;
        let entry = Entry {
            time_ms: None,
            now_ms: index,
            nonce: index.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            request: None,
            command,
        };
        let begun = Instant::now();
        let done = self.state.apply(index, &entry).result.is_ok();
        self.spent += begun.elapsed();
        done
    }
}

fn stack(name: &str, tasks: usize) -> Arc<StackSpec> {
    let constraint = |text: &str| text.parse::<Constraint>().ok();
    let placement = PlacementSpec {
        constraints: ["node.platform.os == linux", "node.labels.kind != spare"]
            .into_iter()
            .filter_map(constraint)
            .collect(),
        spread: vec!["node.labels.zone".to_owned()],
        max_replicas_per_node: 0,
    };
    let reservations = ResourceReservations { cpus: Some(NanoCpus(10_000_000)), ..ResourceReservations::default() };
    let resources = DeployResources { reservations, ..DeployResources::default() };
    let deploy = DeploySpec { replicas: u32::try_from(tasks).ok(), placement, resources, ..DeploySpec::default() };
    let service =
        ServiceSpec { image: "app".to_owned(), network_mode: NetworkMode::None, deploy, ..ServiceSpec::default() };
    let services = BTreeMap::from([("app".to_owned(), service)]).into_iter().collect();
    Arc::new(StackSpec { name: name.to_owned(), services, ..StackSpec::default() })
}

/// What a node says of a task that runs.
fn running(task: &TaskId) -> TaskStatus {
    let state = TaskState::Running;
    TaskStatus { task: task.clone(), state, container: "c".to_owned(), started_at: Some(1), ..TaskStatus::default() }
}

/// Every node says of all its tasks that they run, each in an entry of its own; gives the number of entries.
fn run_all(log: &mut Log) -> u32 {
    let told: Vec<(NodeId, TaskStatus)> =
        log.state.tasks.values().filter_map(|task| Some((task.node.clone()?, running(&task.id)))).collect();
    let count = u32::try_from(told.len()).unwrap_or(u32::MAX);
    for (node, status) in told {
        log.apply(Command::Report { node, turn: orch_core::Turn::default(), report: NodeReport::Tasks(vec![status]) });
    }
    count
}

/// The service's environment changes, and so all of its tasks; gives how long the command and the first step after it took.
fn update(log: &mut Log) -> (Duration, Duration) {
    let stack = &log.state.stacks["s0"];
    let mut spec = (*log.state.revision(stack.services["app"].revision).spec).clone();
    spec.environment.insert("VERSION".to_owned(), Some("2".to_owned()));
    let (stack, service) = ("s0".to_owned(), "app".to_owned());
    let request =
        UpdateService { stack, service, spec: Arc::new(spec), image_id: String::new(), replicas: None, force: false };
    log.spent = Duration::ZERO;
    let done = log.apply(Command::UpdateService(request));
    assert!(done, "the update is valid");
    let command = std::mem::take(&mut log.spent);
    let rollout = log.state.stacks["s0"].services["app"].rollout.as_ref();
    let lane =
        rollout.and_then(|rollout| rollout.lanes.values().next()).and_then(|lane| log.state.tasks.get(&lane.task));
    let Some((node, id)) = lane.and_then(|task| Some((task.node.clone()?, task.id.clone()))) else {
        return (command, Duration::ZERO);
    };
    log.apply(Command::Report {
        node,
        turn: orch_core::Turn::default(),
        report: NodeReport::Tasks(vec![running(&id)]),
    });
    (command, log.spent)
}

/// What comparing the state with that of other managers takes, and what it would take to do so as a whole.
fn compare(state: &mut State, out: &mut impl Write) -> std::io::Result<()> {
    for id in 1..=2 {
        let member = Member { node: format!("m{id}").as_str().into(), address: String::new(), role: MemberRole::Voter };
        state.members.managers.insert(id, member);
    }
    let (mut most, mut all, mut count) = (Duration::ZERO, Duration::ZERO, 0);
    let index = state.index;
    for turn in 1..=512 {
        state.index = turn * SUMMED;
        let begun = Instant::now();
        let sum = state.sum();
        let spent = begun.elapsed();
        (most, all, count) = (most.max(spent), all + spent, count + u32::from(sum.is_some()));
    }
    state.index = index;
    let begun = Instant::now();
    let copy = state.clone();
    let copied = begun.elapsed();
    let begun = Instant::now();
    let bytes = serde_json::to_vec(&copy).map_err(std::io::Error::other)?;
    let written = begun.elapsed();
    state.members = Members::default();
    writeln!(out, "summed {count} times: {:?} a time, {most:?} at most", all / count.max(1))?;
    writeln!(out, "the whole copied in {copied:?}, written in {written:?}: {} MB", bytes.len() / 1_000_000)
}

fn main() -> std::io::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let (tasks, nodes) = (numbers.first().copied().unwrap_or(100_000), numbers.get(1).copied().unwrap_or(1_000));
    let mut log = Log { state: State::new("bench"), spent: Duration::ZERO };
    log.apply(Command::FormCluster(ClusterSettings::default()));
    for number in 0..nodes {
        let id = format!("node-{number:05}");
        let facts = NodeFacts {
            id: id.as_str().into(),
            hostname: id.clone(),
            cpus: 64,
            memory: 256 << 30,
            platform: "linux/amd64".to_owned(),
            ..NodeFacts::default()
        };
        log.apply(Command::Report {
            node: id.as_str().into(),
            turn: orch_core::Turn::default(),
            report: NodeReport::Facts(facts),
        });
        let labels = BTreeMap::from([("zone".to_owned(), format!("z{}", number % 5))]);
        log.apply(Command::UpdateNode(UpdateNode { node: id.as_str().into(), labels, ..UpdateNode::default() }));
    }
    let joined = std::mem::take(&mut log.spent);
    let mut left = tasks;
    let mut stacks = 0;
    while left > 0 {
        let count = left.min(STACK);
        let name = format!("s{stacks}");
        let (spec, images) = (stack(&name, count), BTreeMap::new());
        let request = ApplyStack { spec, files: Vec::new(), options: UpOptions::default(), images };
        let done = log.apply(Command::ApplyStack(request));
        assert!(done, "the stack is valid");
        left -= count;
        stacks += 1;
    }
    let placed = log.state.tasks.values().filter(|task| task.node.is_some()).count();
    let most = log.state.nodes.values().map(|node| node.tasks.len()).max().unwrap_or(0);
    let least = log.state.nodes.values().map(|node| node.tasks.len()).min().unwrap_or(0);
    let seconds = log.spent.as_secs_f64();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{nodes} nodes joined in {:.3} s", joined.as_secs_f64())?;
    writeln!(
        out,
        "{placed} of {tasks} tasks placed on {nodes} nodes in {seconds:.3} s, {:.0} a second",
        tasks as f64 / seconds
    )?;
    writeln!(out, "between {least} and {most} tasks a node")?;
    log.spent = Duration::ZERO;
    let reports = run_all(&mut log);
    writeln!(out, "{reports} reports of one task each, {:?} a report", log.spent / reports.max(1))?;
    compare(&mut log.state, &mut out)?;
    let (command, step) = update(&mut log);
    writeln!(out, "a service of {} updated in {command:?}, its next step in {step:?}", tasks.min(STACK))
}
