//! Random commands, losses and returns in a cluster: the oracle looks after every entry, and in the end, when all is well, everything is as
//! wanted and a replay gives the same.
//!
//! Everything follows from a seed. One that fails prints the fewest steps that fail, and a line that runs it again; it is then added to
//! [`REGRESSIONS`].

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use orch_core::{
    Assignments, Availability, Command, Down, NodeState, RolloutState, Scale, State, Task, UpdateNode, UpdateService,
};
use orch_spec::assignment::{DesiredTask, NodeId, TaskState};
use orch_spec::model::StackSpec;

use crate::faulty::fail;
use crate::fleet::Fleet;
use crate::world::stack;

/// Files that differ in how services are placed, updated and reached.
const FILES: [&str; 4] = [
    r#"
services:
  web: {image: "web:1", ports: ["8080:80"], depends_on: {app: {condition: service_healthy}}, deploy: {replicas: 3, update_config: {order: start-first, parallelism: 2}}}
  app: {image: "app:1", healthcheck: {test: "true"}, deploy: {replicas: 4, resources: {reservations: {cpus: "1"}}}}
  db: {image: "db:1", volumes: ["data:/data"]}
volumes: {data: {}}
"#,
    r#"
services:
  web: {image: "web:2", ports: ["8080:80"], depends_on: {app: {condition: service_healthy}}, deploy: {replicas: 5, update_config: {order: start-first, failure_action: rollback}}}
  app: {image: "app:2", healthcheck: {test: "true"}, deploy: {replicas: 2, resources: {reservations: {cpus: "2"}}, placement: {max_replicas_per_node: 1}}}
  db: {image: "db:1", command: other, volumes: ["data:/data"]}
  every: {image: "every:1", deploy: {mode: global}}
volumes: {data: {}}
"#,
    r#"
services:
  app: {image: "app:1", deploy: {replicas: 3, placement: {constraints: [node.labels.disk == ssd]}}}
  side: {image: side, network_mode: "service:app", deploy: {replicas: 3}}
  every: {image: "every:2", deploy: {mode: global, update_config: {parallelism: 0}}}
"#,
    r#"
services:
  web: {image: "web:3", ports: [{target: 80, published: "8081", mode: host}], deploy: {replicas: 3, endpoint_mode: dnsrr}}
  app: {image: "app:3", networks: {net: {ipv4_address: 10.9.0.9}}}
networks: {net: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}
"#,
];

const SERVICES: [&str; 5] = ["web", "app", "db", "every", "side"];
const IMAGES: [&str; 4] = ["web:2", "app:2", "every:2", "app:3"];

#[derive(Debug, Clone)]
enum Step {
    Up(usize),
    Down { volumes: bool },
    Scale { service: usize, replicas: u32 },
    Update { service: usize, force: bool },
    RollBack(usize),
    Restart(usize),
    Cut(u8),
    See { node: u8, state: u8 },
    Welcome(u8),
    Availability { node: u8, which: u8 },
    Label { node: u8, set: bool },
    Join,
    Remove(u8),
    Break { image: usize, broken: bool },
    Mute { node: u8, mute: bool },
    Look(u8),
    Fail(u8),
    Settle,
    Pass(u16),
    Snapshot,
}

/// Numbers that follow from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    /// Below `bound`.
    fn roll(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).expect("it is below the bound")
    }

    fn coin(&mut self) -> bool {
        self.roll(2) == 1
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).expect("a byte")
    }

    fn step(&mut self) -> Step {
        let (service, image, node) = (self.roll(SERVICES.len()), self.roll(IMAGES.len()), self.byte());
        let three = u8::try_from(self.roll(3)).expect("a byte");
        match self.roll(42) {
            0..4 => Step::Up(self.roll(FILES.len())),
            4 => Step::Down { volumes: self.coin() },
            5..7 => Step::Scale { service, replicas: u32::try_from(self.roll(5)).expect("few") },
            7 => Step::Update { service, force: self.coin() },
            8 => Step::RollBack(service),
            9..11 => Step::Cut(node),
            11..14 => Step::See { node, state: three },
            14..17 => Step::Welcome(node),
            17..19 => Step::Availability { node, which: three },
            19..21 => Step::Label { node, set: self.coin() },
            21 => Step::Join,
            22 => Step::Remove(node),
            23..25 => Step::Break { image, broken: self.coin() },
            25 => Step::Mute { node, mute: self.coin() },
            26..32 => Step::Look(node),
            32..36 => Step::Settle,
            36..40 => Step::Pass(u16::try_from(self.roll(20_000)).expect("below")),
            40 => Step::Restart(service),
            _ => Step::Snapshot,
        }
    }
}

/// What happens with a seed; with `fails`, agents do not only look, but some task of theirs fails, once or more often.
fn steps(seed: u64, fails: bool) -> Vec<Step> {
    let mut dice = Dice(seed);
    let count = 1 + dice.roll(60);
    let turned = (0..count).map(|_| dice.step()).map(|step| match step {
        Step::Look(node) if fails => Step::Fail(node),
        other => other,
    });
    // Only what is well can begin to fail.
    let first = if fails { vec![Step::Up(usize::from(seed % 2 == 1)), Step::Settle] } else { Vec::new() };
    first.into_iter().chain(turned).collect()
}

/// A node of those that there are.
fn node(fleet: &Fleet, number: u8) -> Option<NodeId> {
    let nodes: Vec<&NodeId> = fleet.state.nodes.keys().collect();
    nodes.get(usize::from(number) % nodes.len().max(1)).map(|id| (*id).clone())
}

fn take(fleet: &mut Fleet, files: &[Arc<StackSpec>], step: &Step) {
    let web = || "web".to_owned();
    match step {
        Step::Up(file) => {
            let foretold = fleet.plan(&files[*file]).map(|answer| answer.plan.to_string());
            let done = fleet.up(&files[*file]).map(|answer| answer.plan.to_string());
            assert_eq!(foretold, done, "what it would do is what it does");
            if done.is_ok() {
                let again = fleet.plan(&files[*file]).expect("what was possible still is").plan;
                assert!(again.is_empty(), "planned again:\n{again}");
            }
        }
        Step::Down { volumes } => {
            let down = Down { stack: web(), volumes: *volumes, remove_orphans: true, ..Down::default() };
            let _ = fleet.apply(Command::RemoveStack(down));
        }
        Step::Scale { service, replicas } => {
            let services = BTreeMap::from([(SERVICES[*service].to_owned(), *replicas)]);
            let _ = fleet.apply(Command::Scale(Scale { stack: web(), services, ..Scale::default() }));
        }
        Step::Update { service, force } => update(fleet, SERVICES[*service], *force),
        Step::RollBack(service) => {
            let _ = fleet.apply(Command::RollbackService { stack: web(), service: SERVICES[*service].to_owned() });
        }
        Step::Restart(service) => drop(fleet.restart(SERVICES[*service])),
        Step::Cut(number) => {
            if let Some(host) = node(fleet, *number).and_then(|id| fleet.hosts.get_mut(&id)) {
                host.linked = false;
            }
        }
        Step::See { node: number, state } => {
            let state = [NodeState::Ready, NodeState::Suspect, NodeState::Down][usize::from(*state)];
            if let Some(id) = node(fleet, *number) {
                fleet.observe(id.as_str(), state);
            }
        }
        Step::Welcome(number) => welcome(fleet, *number),
        Step::Availability { node: number, which } => {
            let availability = [Availability::Active, Availability::Pause, Availability::Drain][usize::from(*which)];
            if let Some(node) = node(fleet, *number) {
                let request = UpdateNode { node, availability: Some(availability), ..UpdateNode::default() };
                let _ = fleet.apply(Command::UpdateNode(request));
            }
        }
        Step::Label { node: number, set } => {
            if let Some(node) = node(fleet, *number) {
                let (mut labels, mut remove_labels) = (BTreeMap::new(), Default::default());
                if *set {
                    labels.insert("disk".to_owned(), "ssd".to_owned());
                } else {
                    remove_labels = std::collections::BTreeSet::from(["disk".to_owned()]);
                }
                let request = UpdateNode { node, labels, remove_labels, ..UpdateNode::default() };
                let _ = fleet.apply(Command::UpdateNode(request));
            }
        }
        Step::Join => {
            if fleet.hosts.len() < 6 {
                let name = format!("x{}", fleet.log.len());
                fleet.join(&name, &BTreeMap::new());
            }
        }
        Step::Remove(number) => {
            if let Some(id) = node(fleet, *number).filter(|_| fleet.state.nodes.len() > 2) {
                let removed = fleet.apply(Command::RemoveNode { node: id.clone(), force: true });
                assert!(removed.result.is_ok());
                fleet.hosts.remove(&id);
            }
        }
        Step::Break { image, broken } => {
            if *broken {
                fleet.broken.insert(IMAGES[*image].to_owned(), 1);
            } else {
                fleet.broken.remove(IMAGES[*image]);
            }
        }
        Step::Mute { node: number, mute } => {
            if let Some(id) = node(fleet, *number) {
                if *mute {
                    fleet.mute.insert(id)
                } else {
                    fleet.mute.remove(&id)
                };
            }
        }
        Step::Look(number) => {
            if let Some(id) = node(fleet, *number) {
                fleet.step_host(&id);
            }
        }
        Step::Fail(number) => fail_some(fleet, *number),
        Step::Settle => fleet.settle(),
        Step::Pass(milliseconds) => fleet.pass(u64::from(*milliseconds)),
        Step::Snapshot => {
            let bytes = serde_json::to_vec(&fleet.state).expect("a state can be written down");
            let read: State = serde_json::from_slice(&bytes).expect("a state can be read back");
            assert_eq!(read, fleet.state);
            fleet.assignments = Assignments::new(&read);
            fleet.state = read;
        }
    }
}

/// Some task on a node fails, once or too often.
fn fail_some(fleet: &mut Fleet, number: u8) {
    let Some(home) = node(fleet, number) else { return };
    let linked = fleet.hosts.get(&home).is_some_and(|host| host.linked);
    let runs = |task: &&Task| task.told == Some(DesiredTask::Running) && task.node.as_ref() == Some(&home);
    let found = fleet.state.tasks.values().filter(runs).filter(|_| linked);
    let found = found.map(|task| task.id.clone()).nth(usize::from(number) / 3 % 3);
    if let Some(id) = found {
        fail(fleet, &id, 1 + u32::from(number) % 2 * 5);
    }
}

fn update(fleet: &mut Fleet, service: &str, force: bool) {
    let record = fleet.state.stacks.get("web").and_then(|stack| stack.services.get(service));
    let Some(record) = record else { return };
    let mut spec = (*fleet.state.revision(record.revision).spec).clone();
    spec.environment.insert("COUNT".to_owned(), Some(fleet.log.len().to_string()));
    let request = UpdateService {
        stack: "web".to_owned(),
        service: service.to_owned(),
        spec: Arc::new(spec),
        image_id: String::new(),
        replicas: None,
        force,
    };
    let _ = fleet.apply(Command::UpdateService(request));
}

fn welcome(fleet: &mut Fleet, number: u8) {
    let Some(id) = node(fleet, number) else { return };
    if let Some(host) = fleet.hosts.get_mut(&id) {
        host.linked = true;
    }
    fleet.observe(id.as_str(), NodeState::Ready);
}

/// All is well again, and stays so.
fn heal(fleet: &mut Fleet) {
    fleet.broken.clear();
    fleet.mute.clear();
    for id in fleet.state.nodes.keys().cloned().collect::<Vec<_>>() {
        if let Some(host) = fleet.hosts.get_mut(&id) {
            host.linked = true;
            // What failed is tried once more.
            for (_, status) in host.containers.values_mut().filter(|(_, status)| status.again) {
                (status.state, status.again) = (TaskState::Created, false);
            }
        }
        fleet.observe(id.as_str(), NodeState::Ready);
        let request = UpdateNode { node: id, availability: Some(Availability::Active), ..UpdateNode::default() };
        let _ = fleet.apply(Command::UpdateNode(request));
    }
    fleet.settle();
    for _ in 0..8 {
        fleet.pass(700_000);
        fleet.settle();
    }
}

/// O1, O4: everybody who can run runs, once; every update has ended; nobody waits for anybody to go.
fn converged(fleet: &Fleet) {
    for task in fleet.state.tasks.values() {
        let failed = matches!(task.status.state, TaskState::Exited | TaskState::Failed);
        let waits = task.node.is_none() || !task.blocked.is_empty() || waits_for_others(fleet, task);
        let runs = matches!(task.status.state, TaskState::Running | TaskState::Paused);
        assert!(
            task.is_retiring() || failed || waits || runs,
            "{} does not come to rest: {task:?}",
            task.container_name
        );
    }
    for (name, service) in fleet.state.stacks.values().flat_map(|stack| &stack.services) {
        let ended = service.rollout.as_ref().is_none_or(|rollout| !rollout.state.is_active());
        assert!(ended, "the update of {name} has no end: {:?}", service.rollout);
        let paused = service
            .rollout
            .as_ref()
            .is_some_and(|rollout| matches!(rollout.state, RolloutState::Paused | RolloutState::RollbackPaused));
        let running = fleet.running(name);
        let slots: std::collections::BTreeSet<u32> = running.iter().map(|(slot, _)| *slot).collect();
        assert!(paused || slots.len() == running.len(), "a slot of {name} runs twice: {running:?}");
    }
}

/// Something that will not come by itself: a dependency that failed, a parent without a node.
fn waits_for_others(fleet: &Fleet, task: &Task) -> bool {
    let stuck = |other: &Task| {
        other.node.is_none()
            || !other.is_ready()
            || other.status.state == TaskState::Exited
            || !other.waiting.is_empty()
    };
    let needed = fleet.state.revision(task.revision).spec.depends_on.keys();
    let dependencies = needed.flat_map(|service| fleet.state.service_tasks(&task.stack, service));
    let parents = task.namespace_parents().filter_map(|id| fleet.state.tasks.get(id));
    let former = task.takes_over.iter().chain(&task.after).filter_map(|id| fleet.state.tasks.get(id));
    let orphan = task.namespace_parents().any(|id| !fleet.state.tasks.contains_key(id));
    orphan || dependencies.chain(parents).any(stuck) || former.count() > 0
}

fn run(steps: &[Step]) {
    let files: Vec<Arc<StackSpec>> = FILES.iter().map(|text| Arc::new(stack("web", text))).collect();
    let mut fleet = Fleet::new(3);
    for step in steps {
        take(&mut fleet, &files, step);
    }
    heal(&mut fleet);
    converged(&fleet);
    fleet.replay();
    // Whatever has happened, everything can be taken down, and then nothing is left.
    let down = Down { stack: "web".to_owned(), volumes: true, remove_orphans: true, ..Down::default() };
    let _ = fleet.apply(Command::RemoveStack(down));
    fleet.settle();
    fleet.pass(10_000);
    let state = &fleet.state;
    assert!(state.tasks.is_empty() && state.stacks.is_empty() && state.networks.is_empty(), "left: {:?}", state.tasks);
    assert!(state.revisions.is_empty() && state.successors.is_empty() && state.unplaced.is_empty());
    assert!(state.withdrawing.is_empty() && state.names.is_empty());
    assert!(state.nodes.values().all(|node| node.tasks.is_empty() && node.usage == Default::default()));
}

/// What goes wrong with these steps, if anything does.
fn fault(steps: &[Step]) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| run(steps))).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.unwrap_or_else(|| (*panic.downcast_ref::<&str>().unwrap_or(&"no reason given")).to_owned()))
}

/// Takes out of the steps what is not needed for something to go wrong.
fn shrink(mut steps: Vec<Step>) -> Vec<Step> {
    let mut width = steps.len() / 2;
    while width > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + width).min(steps.len()));
            if fault(&fewer).is_some() { steps = fewer } else { at += width }
        }
        width /= 2;
    }
    steps
}

fn try_seed(seed: u64, fails: bool) {
    if fault(&steps(seed, fails)).is_none() {
        return;
    }
    let least = shrink(steps(seed, fails));
    let with = if fails { "fails:" } else { "" };
    let why = fault(&least).unwrap_or_default();
    let list: Vec<String> = least.iter().map(|step| format!("    {step:?}")).collect();
    panic!(
        "seed {seed}: {why}\nfewest steps:\n{}\n\
         again: ORCH_TURBULENCE={with}{seed} cargo test -p orch-core --test core one_turbulence",
        list.join("\n")
    );
}

/// Seeds in every run of the tests.
const SEEDS: u64 = 160;

/// Seeds that found something once.
const REGRESSIONS: &[u64] = &[
    // Out of balancing, then waiting for something else, then never heard when nodes let go of it.
    164,
    // An update given up at once because what it depends on was the next in the same change; the plan after it was not empty.
    312,
    // A port that every node published until now, and a node that still did when the task behind it was stopped.
    343, 556,
];

fn try_seeds(seeds: u64, fails: bool) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    match next.fetch_add(1, Ordering::Relaxed) {
                        seed if seed < seeds => try_seed(seed, fails),
                        _ => return,
                    }
                }
            });
        }
    });
}

#[test]
fn no_turbulence_breaks_what_must_hold() {
    try_seeds(SEEDS, false);
    REGRESSIONS.iter().for_each(|seed| try_seed(*seed, false));
}

#[test]
fn no_turbulence_of_nodes_that_fail_breaks_what_must_hold() {
    try_seeds(SEEDS / 4, true);
}

/// Runs what `ORCH_TURBULENCE=[fails:]<seed>[+<count>]` says; without it, nothing.
#[test]
fn one_turbulence() {
    let Ok(wish) = std::env::var("ORCH_TURBULENCE") else { return };
    let (seeds, fails) = wish.strip_prefix("fails:").map_or((wish.as_str(), false), |seeds| (seeds, true));
    let (seed, count) = seeds.split_once('+').unwrap_or((seeds, "1"));
    let number = |text: &str| text.parse::<u64>().expect("a number");
    (number(seed)..number(seed) + number(count)).for_each(|seed| try_seed(seed, fails));
}
