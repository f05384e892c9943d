//! Agents in the simulated cluster: their conversations with managers, their heartbeats, what the leader sees of them, and somebody who
//! uses the cluster.
//!
//! | property | where |
//! |---|---|
//! | T1–T5, T7, S1–S4, S7, I1, O2, O3 in every state | [`crate::tasks`], after every entry |
//! | O1 as desired in the end, O4 every update ends | [`World::require_rest`] |
//! | N1 nobody is told anything older, or with a gap | [`crate::agent::Agent::hear`] |
//! | T8, N1 nothing that a node said is followed by what it said before | [`crate::oracle::Oracle::heard`] |
//! | T9, T10, O7 nothing piles up, and nothing is made because a container ended | [`crate::tasks`], after every entry |
//! | I3, I6 what nodes are told of others | [`crate::endpoints`], and [`World::untold`] at rest |
//! | N3 suspect within two seconds, and back without anybody's doing | [`World::cut_shortly`] |
//! | N4 nothing is replaced when a node was away for a moment | [`World::cut_shortly`] |
//! | N5 a new leader restarts nothing and marks nobody | [`World::change_leader`], [`World::observe`] |

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use orch_api::session::{AssignmentChange, Said, Told};
use orch_core::{
    ApplyStack, Assignments, Availability, ClusterSettings, Command, NodeState, Scale, Serving, State, Turn, UpOptions,
    UpdateNode, UpdateService,
};
use orch_scheduler::peer::heartbeat::{PERIOD, Pulse, SUSPECT_AFTER, Seen};
use orch_scheduler::peer::session::LEADERLESS;
use orch_scheduler::replica::encode_command;
use orch_scheduler::steward::{self, Sight};
use orch_spec::assignment::{Assignment, NodeId, TaskId, TaskState};
use orch_spec::load::{LoadRequest, ReadError, Skip, Source, load};
use orch_spec::model::StackSpec;
use raft::StateRole;

use super::{Event, MS, SECOND, World};
use crate::agent::{Agent, Luck, Session};

/// How often an agent looks at what it has.
const LOOK: u64 = 60 * MS;
/// How often the leader looks at nodes.
const STEWARD: u64 = 200 * MS;
/// How long a proposal of a manager may take before it is repeated.
const PATIENCE: u64 = 1_500 * MS;
/// All is as desired after this, at the latest: the rollouts of all services one after the other, with their dependencies.
const REST: u64 = 120 * SECOND;

const FILES: [&str; 3] = [
    r#"
services:
  web: {image: "web:1", ports: ["8080:80"], depends_on: {app: {condition: service_healthy}}, deploy: {replicas: 3, update_config: {order: start-first, parallelism: 2, monitor: 1s}}}
  app: {image: "app:1", healthcheck: {test: "true"}, deploy: {replicas: 2, update_config: {monitor: 1s}, resources: {reservations: {cpus: "0.5"}}}}
"#,
    r#"
services:
  web: {image: "web:2", ports: ["8080:80"], deploy: {replicas: 4, update_config: {order: start-first, failure_action: rollback, monitor: 1s}}}
  app: {image: "app:2", healthcheck: {test: "true"}, deploy: {replicas: 3, update_config: {monitor: 1s}, placement: {max_replicas_per_node: 2}}}
  every: {image: "every:1", deploy: {mode: global}}
"#,
    r#"
services:
  app: {image: "app:1", networks: {net: {ipv4_address: 10.9.0.9}}}
  side: {image: side, network_mode: "service:app"}
networks: {net: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}
"#,
];
const SERVICES: [&str; 4] = ["web", "app", "every", "side"];
const IMAGES: [&str; 3] = ["web:2", "app:2", "every:1"];

/// All agents, and what may happen to their containers.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// There are agents in this run.
    pub(super) wanted: bool,
    pub(super) agents: Vec<Agent>,
    pub(super) luck: Luck,
    sessions: u64,
    /// The only managers that nodes still reach; `None` = all.
    pub(super) reachable: Option<Vec<usize>>,
}

/// A manager's end of an agent's connection.
#[derive(Debug, Default)]
pub(crate) struct Served {
    number: u64,
    told: Option<Assignment>,
    changes: u64,
    /// When the last message arrives: they stay in order.
    arrival: u64,
    queue: VecDeque<Said>,
    under_way: Option<UnderWay>,
}

/// A report on its way into the log.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    leader: usize,
    life: u64,
    number: u64,
    began: u64,
}

/// What a manager's process knows of agents.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pub(crate) served: BTreeMap<usize, Served>,
    /// Number of a proposal → what came of it, once that is known.
    pub(crate) outcomes: BTreeMap<u64, Option<bool>>,
    pulse: Pulse,
    /// Since when it knows no leader.
    lonely_since: Option<u64>,
    /// Since when it leads without a break.
    leads_since: Option<u64>,
    observing: Option<(u64, u64)>,
}

impl Fleet {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }
}

impl Desk {
    /// A proposal of this manager's own was taken, or was not.
    pub(crate) fn came_of(&mut self, number: u64, taken: bool) {
        if let Some(outcome) = self.outcomes.get_mut(&number) {
            *outcome = Some(taken);
        }
    }
}

/// The virtual clock as those see it who ask for a steady one.
fn instant(now: u64) -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(Instant::now) + Duration::from_micros(now)
}

fn files() -> &'static [Arc<StackSpec>] {
    struct Memory(&'static str);
    impl Source for Memory {
        fn read(&self, path: &str, _limit: usize) -> Result<Vec<u8>, ReadError> {
            if self.is_file(path) { Ok(self.0.as_bytes().to_vec()) } else { Err(ReadError::Missing) }
        }
        fn is_file(&self, path: &str) -> bool {
            path == "/stack.yaml"
        }
    }
    static FILE: OnceLock<Vec<Arc<StackSpec>>> = OnceLock::new();
    FILE.get_or_init(|| {
        let spec = |text: &&'static str| {
            let request = LoadRequest {
                files: vec!["/stack.yaml".to_owned()],
                working_dir: "/".to_owned(),
                project_name: Some("web".to_owned()),
                skip: Skip { consistency: true, ..Skip::default() },
                ..LoadRequest::default()
            };
            let loaded = load(&request, &Memory(text));
            Arc::new(loaded.spec.unwrap_or_else(|| panic!("the stack file is wrong: {:?}", loaded.problems)))
        };
        FILES.iter().map(spec).collect()
    })
}

fn up(file: usize) -> Command {
    let spec = Arc::clone(&files()[file]);
    let images = spec.services.values().map(|one| (one.image.clone(), format!("sha256:{}", one.image)));
    let images = images.collect();
    Command::ApplyStack(ApplyStack { spec, files: Vec::new(), options: UpOptions::default(), images })
}

impl World {
    /// Some agents come, each with its clocks.
    pub(super) fn begin_fleet(&mut self) {
        let count = 1 + self.random.below(4);
        self.fleet.luck.accidents = true;
        for place in 0..count {
            self.fleet.agents.push(Agent::new(u8::try_from(place + 1).expect("a handful")));
            let phase = self.random.below(300) as u64 * MS;
            self.at(400 * MS + phase, Event::Look(place));
            self.at(400 * MS + phase, Event::Beat(place));
        }
        self.at(600 * MS, Event::User);
        self.at(2 * SECOND, Event::Accident);
    }

    /// Proposes at the leader; gives the number, and whose.
    fn say(&mut self, command: Command, client: bool) -> Option<(usize, u64, u64)> {
        let leader = self.leader()?;
        let number = self.say_at(leader, command, client)?;
        Some((leader, self.nodes[leader].life, number))
    }

    fn say_at(&mut self, place: usize, command: Command, client: bool) -> Option<u64> {
        self.next_command += 1;
        let data = encode_command(self.now / MS, self.next_command, None, command).expect("a command serialises");
        let up = self.nodes[place].up.as_mut()?;
        let number = up.number();
        if client {
            up.proposed.insert(number, bytes::Bytes::from(data.clone()));
        } else {
            up.desk.outcomes.insert(number, None);
        }
        up.replica.propose(number, data, true);
        self.pump(place);
        Some(number)
    }

    /// An agent looks, speaks, and looks for a manager when it has none.
    pub(super) fn look(&mut self, place: usize) {
        let delay = LOOK / 2 + self.random.below(LOOK as usize) as u64;
        self.at(delay, Event::Look(place));
        let agent = &mut self.fleet.agents[place];
        if !agent.up {
            return;
        }
        let said = agent.look(self.now, &self.fleet.luck, &mut self.random);
        said.iter().for_each(|said| self.oracle.said(&said.report));
        let stands = agent.session.as_ref().is_some_and(|session| {
            let served =
                self.nodes[session.place].up.as_ref().filter(|_| self.nodes[session.place].life == session.life);
            served.and_then(|up| up.desk.served.get(&place)).is_some_and(|served| served.number == session.number)
        });
        let reaches = |session: &Session| self.fleet.reachable.as_ref().is_none_or(|all| all.contains(&session.place));
        let stands = stands && agent.session.as_ref().is_some_and(reaches);
        if !(stands && agent.linked) {
            agent.session = None;
            // Both ends of a connection see its end; or the manager does not, and goes on with what it has heard.
            if !self.harsh {
                self.nodes
                    .iter_mut()
                    .filter_map(|node| node.up.as_mut())
                    .for_each(|up| drop(up.desk.served.remove(&place)));
            }
        }
        match &agent.session {
            Some(session) => {
                let (manager, number) = (session.place, session.number);
                self.hear(manager, place, number, said);
            }
            None if agent.linked => self.connect(place),
            None => {}
        }
    }

    /// An agent tries the next manager.
    fn connect(&mut self, place: usize) {
        let agent = &mut self.fleet.agents[place];
        agent.turn += 1;
        let all: Vec<usize> = self.fleet.reachable.clone().unwrap_or_else(|| (0..self.nodes.len()).collect());
        let manager = all[agent.turn % all.len()];
        let node = &mut self.nodes[manager];
        let Some(up) = node.up.as_mut().filter(|up| up.state.index >= agent.told.version) else { return };
        self.fleet.sessions += 1;
        let number = self.fleet.sessions;
        let said = agent.connect(number, manager, node.life);
        up.desk.served.insert(place, Served { number, ..Served::default() });
        self.summary.sessions += 1;
        self.hear(manager, place, number, said);
        self.tell(manager);
    }

    /// A manager hears a node.
    fn hear(&mut self, manager: usize, place: usize, session: u64, said: Vec<Said>) {
        let Some(up) = &mut self.nodes[manager].up else { return };
        let Some(served) = up.desk.served.get_mut(&place).filter(|served| served.number == session) else { return };
        served.queue.extend(said);
        self.deliver(manager, place);
    }

    /// A manager puts what a node says into the log, one after the other, and says so.
    fn deliver(&mut self, manager: usize, place: usize) {
        let served = |world: &Self| -> Option<(Option<UnderWay>, Option<Said>)> {
            let served = world.nodes[manager].up.as_ref()?.desk.served.get(&place)?;
            Some((served.under_way, served.queue.front().cloned()))
        };
        let Some((under_way, Some(said))) = served(self) else { return };
        let outcome = under_way.map(|way| {
            let node = &self.nodes[way.leader];
            let up = node.up.as_ref().filter(|_| node.life == way.life);
            up.map_or(Some(false), |up| up.desk.outcomes.get(&way.number).copied().flatten())
                .or((self.now > way.began + PATIENCE).then_some(false))
        });
        match outcome {
            // On its way.
            Some(None) => return,
            Some(Some(true)) => {
                let number = said.number;
                if let Some(served) = self.nodes[manager].up.as_mut().and_then(|up| up.desk.served.get_mut(&place)) {
                    served.queue.pop_front();
                    served.under_way = None;
                }
                self.send(manager, place, &Told::Taken(number));
                self.summary.reports += 1;
                return self.deliver(manager, place);
            }
            Some(Some(false)) | None => {}
        }
        let reaches = self.leader().is_some_and(|leader| leader == manager || self.network.passes(manager, leader));
        if !reaches {
            return;
        }
        let session = self.nodes[manager].up.as_ref().and_then(|up| up.desk.served.get(&place)).map_or(0, |s| s.number);
        let turn = Turn { session, number: said.number };
        let command = Command::Report { node: self.fleet.agents[place].name.clone(), turn, report: said.report };
        let Some((leader, life, number)) = self.say(command, false) else { return };
        let began = self.now;
        if let Some(served) = self.nodes[manager].up.as_mut().and_then(|up| up.desk.served.get_mut(&place)) {
            served.under_way = Some(UnderWay { leader, life, number, began });
        }
    }

    fn send(&mut self, manager: usize, place: usize, told: &Told) {
        let delay = (200 + self.random.below(4_000)) as u64;
        let Some(served) = self.nodes[manager].up.as_mut().and_then(|up| up.desk.served.get_mut(&place)) else {
            return;
        };
        let arrival = (self.now + delay).max(served.arrival + 1);
        served.arrival = arrival;
        let number = served.number;
        let bytes = serde_json::to_vec(told).expect("a message serialises");
        self.at(arrival - self.now, Event::Told(place, number, bytes));
    }

    /// A node hears a manager.
    pub(super) fn told(&mut self, place: usize, session: u64, bytes: &[u8]) {
        let agent = &mut self.fleet.agents[place];
        if !agent.is_well() || agent.session.as_ref().is_none_or(|present| present.number != session) {
            return;
        }
        let told = serde_json::from_slice(bytes).expect("a message of ours");
        agent.hear(told);
        if agent.told.version > 0 {
            self.oracle.assigned.has(&agent.name, &agent.told);
        }
    }

    /// A manager's state is another one: it tells its nodes what that is for them, and what of theirs is in the log.
    pub(super) fn tell(&mut self, manager: usize) {
        let Some(up) = &mut self.nodes[manager].up else { return };
        let places: Vec<usize> = up.desk.served.keys().copied().collect();
        for place in places {
            let name = &self.fleet.agents[place].name;
            let Some(up) = &mut self.nodes[manager].up else { return };
            if up.state.nodes.contains_key(name) {
                let mut new = up.assignments.of(&up.state, name);
                let Some(served) = up.desk.served.get_mut(&place) else { continue };
                let message = match &served.told {
                    None => Some(Told::Complete(Box::new(new.clone()))),
                    Some(old) => {
                        let version = std::mem::replace(&mut new.version, old.version);
                        let same = *old == new;
                        new.version = version;
                        (!same).then(|| {
                            served.changes += 1;
                            let change = Box::new(AssignmentChange::between(old, &new));
                            Told::Change { number: served.changes, change }
                        })
                    }
                };
                if let Some(message) = message {
                    if !up.twisted {
                        crate::endpoints::names_are_right(&up.state, &new);
                        self.oracle.assigned.tells(name, &new);
                    }
                    served.told = Some(new);
                    self.send(manager, place, &message);
                }
            }
            self.deliver(manager, place);
        }
    }

    /// A node says that it lives.
    pub(super) fn beat(&mut self, place: usize) {
        self.at(PERIOD.as_micros() as u64, Event::Beat(place));
        let now = instant(self.now);
        let Some(leader) = self.leader() else { return };
        let agent = &self.fleet.agents[place];
        if agent.is_well()
            && let Some(up) = &self.nodes[leader].up
        {
            up.desk.pulse.heard(&agent.name, now);
        }
    }

    /// A manager that leads looks after nodes and timers.
    pub(super) fn observe(&mut self, place: usize, life: u64) {
        let now = self.now;
        let Some(up) = self.nodes[place].living(life) else { return };
        let lonely = up.replica.raft().leader_id == raft::INVALID_ID;
        up.desk.lonely_since = lonely.then(|| up.desk.lonely_since.unwrap_or(now));
        if up.desk.lonely_since.is_some_and(|since| now > since + LEADERLESS.as_micros() as u64) {
            // Its nodes go to another manager.
            up.desk.served.clear();
        }
        if up.replica.raft().state != StateRole::Leader {
            up.desk.leads_since = None;
            return self.at(STEWARD, Event::Steward(place, life));
        }
        let from = *up.desk.leads_since.get_or_insert(now);
        let done = up.desk.observing.is_none_or(|(number, began)| {
            up.desk.outcomes.get(&number).is_some_and(Option::is_some) || now > began + PATIENCE
        });
        let commands = if done {
            let seen = |node: &NodeId| {
                let state = match up.desk.pulse.seen(node, instant(from), instant(now)) {
                    Seen::Ready => NodeState::Ready,
                    Seen::Suspect => NodeState::Suspect,
                    Seen::Down => NodeState::Down,
                };
                Sight { state, heard: up.desk.pulse.heard_since(node, instant(from)) }
            };
            steward::due(&up.state, now / MS, seen)
        } else {
            Vec::new()
        };
        let leads = self.leader() == Some(place);
        for command in commands {
            if let (Command::ObserveNode { node, state: NodeState::Suspect | NodeState::Down }, true) =
                (&command, leads)
            {
                self.summary.marked += 1;
                let agent = self.fleet.agents.iter().find(|agent| agent.name == *node).expect("only agents are nodes");
                let well = if agent.is_well() { now - agent.well_since } else { 0 };
                let limit = (SUSPECT_AFTER + PERIOD).as_micros() as u64;
                assert!(well < limit, "N5: {node} is given up though it has been well for {} ms", well / MS);
            }
            let number = self.say_at(place, command, false);
            if let Some(up) = self.nodes[place].living(life) {
                up.desk.observing = number.map(|number| (number, now));
            }
        }
        self.at(STEWARD, Event::Steward(place, life));
    }

    /// Something happens to an agent.
    pub(super) fn accident(&mut self) {
        if !self.trouble {
            return;
        }
        let pause = (200 + self.random.below(2_500)) as u64;
        self.at(pause * MS, Event::Accident);
        let place = self.random.below(self.fleet.agents.len());
        let back = (100 + self.random.below(7_000)) as u64;
        let agent = &mut self.fleet.agents[place];
        match self.random.below(3) {
            0 => agent.kill(),
            _ => (agent.linked, agent.session) = (false, None),
        }
        self.summary.accidents += 1;
        self.at(back * MS, Event::Mend(place));
    }

    /// An agent is well again.
    pub(super) fn mend(&mut self, place: usize) {
        let agent = &mut self.fleet.agents[place];
        if !agent.is_well() {
            agent.well_since = self.now;
        }
        (agent.up, agent.linked) = (true, true);
    }

    /// Somebody uses the cluster.
    pub(super) fn use_cluster(&mut self) {
        let pause = (100 + self.random.below(900)) as u64;
        self.at(pause * MS, Event::User);
        if !self.trouble {
            return;
        }
        let Some(state) = self.leader().and_then(|leader| Some(&self.nodes[leader].up.as_ref()?.state)) else { return };
        if !state.is_cluster() {
            self.say(Command::FormCluster(ClusterSettings::default()), true);
            return;
        }
        let service = SERVICES[self.random.below(SERVICES.len())].to_owned();
        let stack = "web".to_owned();
        let command = match self.random.below(12) {
            0..=4 => up(self.random.below(FILES.len())),
            5 => {
                let services = BTreeMap::from([(service, u32::try_from(self.random.below(5)).expect("few"))]);
                Command::Scale(Scale { stack, services, ..Scale::default() })
            }
            6 => match changed(state, &service, self.next_command) {
                Some(command) => command,
                None => return,
            },
            7 => Command::RollbackService { stack, service },
            8 | 9 => {
                let node = self.fleet.agents[self.random.below(self.fleet.agents.len())].name.clone();
                let which = [Availability::Active, Availability::Active, Availability::Pause, Availability::Drain];
                let availability = Some(which[self.random.below(4)]);
                Command::UpdateNode(UpdateNode { node, availability, ..UpdateNode::default() })
            }
            _ => {
                let image = IMAGES[self.random.below(IMAGES.len())].to_owned();
                if !self.fleet.luck.broken.remove(&image) {
                    self.fleet.luck.broken.insert(image);
                }
                return;
            }
        };
        self.summary.used += 1;
        self.say(command, true);
    }

    /// Everything is well for agents too, and somebody wants a file.
    pub(super) fn calm_fleet(&mut self) {
        self.fleet.luck = Luck::default();
        (0..self.fleet.agents.len()).for_each(|place| self.mend(place));
    }

    /// O1, O4: after a while everything is as wanted.
    pub(super) fn require_rest(&mut self) {
        if !self.fleet.wanted {
            return;
        }
        let nodes: Vec<NodeId> = self.fleet.agents.iter().map(|agent| agent.name.clone()).collect();
        let mut commands = vec![Command::FormCluster(ClusterSettings::default())];
        commands.extend(nodes.into_iter().map(|node| {
            Command::UpdateNode(UpdateNode { node, availability: Some(Availability::Active), ..UpdateNode::default() })
        }));
        commands.push(up(0));
        for command in commands {
            self.insist(&command);
        }
        let end = self.now + REST;
        let mut missing = String::new();
        while self.now < end {
            let next = self.now + 500 * MS;
            self.run_until(next);
            match self.unrest() {
                None => {
                    self.summary.rested += 1;
                    return;
                }
                Some(what) => missing = what,
            }
        }
        panic!("O1: everything is well for {} s, and still {missing}", REST / SECOND);
    }

    /// Proposes until it is accepted.
    fn insist(&mut self, command: &Command) {
        for _ in 0..40 {
            let said = self.say(command.clone(), false);
            let next = self.now + 300 * MS;
            self.run_until(next);
            let Some((leader, life, number)) = said else { continue };
            let taken = self.nodes[leader].living(life).and_then(|up| up.desk.outcomes.get(&number).copied().flatten());
            if taken == Some(true) {
                return;
            }
        }
        panic!("R14: nobody takes {command:?}");
    }

    fn leading(&self) -> Option<&State> {
        Some(&self.nodes[self.leader()?].up.as_ref()?.state)
    }

    /// What is not as wanted.
    fn unrest(&self) -> Option<String> {
        let Some(state) = self.leading() else { return Some("nobody leads".to_owned()) };
        for (name, service) in state.stacks.values().flat_map(|stack| &stack.services) {
            if service.is_rolling() {
                return Some(format!("{name} is updated: {:?}", service.rollout));
            }
            let there = state.service_tasks("web", name).filter(|task| task.is_replica()).count();
            if there != service.replicas as usize && !service.orphan {
                return Some(format!("{name} has {there} of {}", service.replicas));
            }
        }
        for task in state.tasks.values() {
            let name = &task.container_name;
            if task.is_retiring() {
                return Some(format!("{name} is not gone: {:?}", task.waiting));
            }
            let agent = self.fleet.agents.iter().find(|agent| Some(&agent.name) == task.node.as_ref());
            let container = agent.and_then(|agent| agent.containers.get(&task.id));
            if container.is_none_or(|one| one.status.state != TaskState::Running || one.status != task.status) {
                return Some(format!("{name} does not run: {container:?} {task:?}"));
            }
        }
        let extra = self.fleet.agents.iter().find_map(|agent| {
            let id = agent.containers.keys().find(|id| !state.tasks.contains_key(id))?;
            Some(format!("{} has {id}, which nobody wants", agent.name))
        });
        let unready = state.nodes.values().find(|node| node.state != NodeState::Ready);
        let unready = unready.map(|node| format!("{} is {:?}", node.facts.hostname, node.state));
        extra.or(unready).or_else(|| self.untold(state))
    }

    /// I3: whom nodes lack that they should know of, or know of though he is gone.
    fn untold(&self, state: &State) -> Option<String> {
        let derived = Assignments::new(state);
        self.fleet.agents.iter().find_map(|agent| {
            let due = Assignment { version: agent.told.version, ..derived.of(state, &agent.name) };
            (agent.told != due).then(|| format!("{} has {:?} and not {due:?}", agent.name, agent.told))
        })
    }

    /// Every task with its starts, as its node has it.
    fn containers(&self) -> BTreeMap<TaskId, (NodeId, Option<u64>, u32)> {
        let all = self.fleet.agents.iter().flat_map(|agent| agent.containers.iter().map(move |one| (agent, one)));
        all.map(|(agent, (id, one))| (id.clone(), (agent.name.clone(), one.status.started_at, one.status.restarts)))
            .collect()
    }

    /// Whether anybody sends connections to a node, as every other node was told.
    fn sends_to(&self, name: &NodeId) -> bool {
        let others = self.fleet.agents.iter().filter(|agent| agent.name != *name);
        let services = others.clone().flat_map(|agent| &agent.told.services).flat_map(|service| &service.backends);
        let ports = others.flat_map(|agent| &agent.told.mesh_ports).flat_map(|port| &port.backends);
        services.chain(ports).any(|backend| backend.ready && backend.node == *name)
    }

    /// The same where they could go to another node: to what is on a suspect node alone they still go.
    fn sends_needlessly_to(&self, name: &NodeId) -> bool {
        let others = self.fleet.agents.iter().filter(|agent| agent.name != *name);
        let services = others.clone().flat_map(|agent| &agent.told.services).map(|service| &service.backends);
        let ports = others.flat_map(|agent| &agent.told.mesh_ports).map(|port| &port.backends);
        services.chain(ports).any(|backends| {
            let ready = |here: bool| backends.iter().any(|b| b.ready && (b.node == *name) == here);
            ready(true) && ready(false)
        })
    }

    /// N3, N4: a node is away for a moment.
    pub(super) fn cut_shortly(&mut self) {
        let Some(state) = self.leading() else { return };
        // One that has left often must wait before it counts again.
        let calm = |name: &NodeId| state.nodes.get(name).is_some_and(|node| node.departures.is_empty());
        let place = self.fleet.agents.iter().position(|agent| calm(&agent.name) && !agent.containers.is_empty());
        let Some(place) = place else { return };
        let name = self.fleet.agents[place].name.clone();
        let before = self.containers();
        let sent = self.sends_to(&name);
        (self.fleet.agents[place].linked, self.fleet.agents[place].session) = (false, None);
        let next = self.now + 2 * SECOND;
        self.run_until(next);
        let state = self.leading().expect("N3: a leader is there");
        assert_eq!(state.nodes[&name].state, NodeState::Suspect, "N3: {name} has been cut off for two seconds");
        let serves =
            state.tasks.values().any(|task| task.node.as_ref() == Some(&name) && task.serving == Serving::Ready);
        assert!(!serves && !self.sends_needlessly_to(&name), "N3: connections go to {name}, which is cut off");
        let next = self.now + 700 * MS;
        self.run_until(next);
        self.mend(place);
        let next = self.now + 4 * SECOND;
        self.run_until(next);
        let state = self.leading().expect("N3: a leader is there");
        assert_eq!(state.nodes[&name].state, NodeState::Ready, "N3: {name} is back");
        // Also what was not healthy yet when it began may be by now.
        assert!(self.sends_to(&name) || !sent, "N3: {name} is back, and so is who sends there");
        assert_eq!(self.containers(), before, "N4: something was replaced or started again");
        self.summary.returned += 1;
    }

    /// N5: another manager leads.
    pub(super) fn change_leader(&mut self) {
        let Some(leader) = self.leader().filter(|_| self.oracle.latest.voters().len() > 2) else { return };
        let before = self.containers();
        let since = |world: &Self| -> Option<Vec<(NodeState, u64)>> {
            Some(world.leading()?.nodes.values().map(|node| (node.state, node.since)).collect())
        };
        let nodes = since(self);
        self.stop(leader, true);
        self.at(3 * SECOND, Event::Start(leader));
        let next = self.now + 8 * SECOND;
        self.run_until(next);
        assert!(self.leader().is_some(), "R14: nobody leads");
        assert_eq!(since(self), nodes, "N5: a new leader has marked a node");
        assert_eq!(self.containers(), before, "N5: a new leader has replaced or started something");
        self.summary.led_on += 1;
    }
}

/// A service with another environment.
fn changed(state: &State, service: &str, number: u64) -> Option<Command> {
    let record = state.stacks.get("web")?.services.get(service)?;
    let mut spec = (*state.revision(record.revision).spec).clone();
    spec.environment.insert("COUNT".to_owned(), Some(number.to_string()));
    Some(Command::UpdateService(UpdateService {
        stack: "web".to_owned(),
        service: service.to_owned(),
        spec: Arc::new(spec),
        image_id: String::new(),
        replicas: None,
        force: false,
    }))
}
