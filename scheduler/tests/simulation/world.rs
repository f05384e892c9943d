//! The simulation: hosts, a network between them, clients, an operator, and everything that goes wrong, in the order of a virtual clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use orch_core::{Command, NewVolume};
use orch_scheduler::replica::wire::{self, Frame};
use orch_scheduler::replica::{ELECTION, Failure, Settings, TICK_MS, Work, encode_command};
use orch_scheduler::{Invitation, Standing};
use orch_spec::assignment::NodeId;
use raft::StateRole;

use crate::network::{Network, Weather};
use crate::node::{Done, Node};
use crate::oracle::{Oracle, hash};
use crate::simulated_disk::{Loss, Random, SimulatedDisk};
use crate::summary::Summary;

#[path = "fleet.rs"]
mod fleet;
pub(crate) use fleet::Desk;
use fleet::Fleet;
#[path = "twist.rs"]
mod twist;
#[path = "watch.rs"]
mod watch;
pub(crate) use watch::Happened;
use watch::Watchers;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// How long things go wrong.
const TROUBLE: u64 = 12 * SECOND;
/// How long the cluster may take to be quiet and whole when everything is well again.
const PEACE: u64 = 14 * SECOND;
/// Operations on the disk that it takes to replace a log by a snapshot and a new one, and one more.
const REPLACING: usize = 13;
/// A healthy majority has so long to accept a change: five election timeouts of the slowest, and a second for the change.
const PROGRESS: u64 = (5 * 2 * ELECTION as u64 * TICK_MS + 1_000) * MS;

/// What a run shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing untrue ever happens, and everything is whole when the trouble is over.
    Safety,
    /// A majority that is well makes progress.
    Liveness,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick(usize, u64),
    Deliver(usize, usize, Vec<u8>),
    Write(usize, u64),
    Apply(usize, u64),
    Built(usize, u64, u64, u64, Vec<u8>),
    Start(usize),
    Client(usize),
    Operator,
    Trouble,
    Heal,
    Recover(usize),
    Look(usize),
    Beat(usize),
    Told(usize, u64, Vec<u8>),
    Steward(usize, u64),
    User,
    Accident,
    Mend(usize),
}

/// See the module.
pub(crate) struct World {
    mode: Mode,
    random: Random,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    nodes: Vec<Node>,
    network: Network,
    oracle: Oracle,
    fleet: Fleet,
    watchers: Watchers,
    summary: Summary,
    next_command: u64,
    trouble: bool,
    /// Nobody changes the members any more.
    settled: bool,
    compact_at: u64,
    trailing: u64,
    /// There is something large in the state.
    large: bool,
    /// Members that the operator is about to remove because their disk is damaged.
    broken: BTreeSet<usize>,
    /// The power goes by preference while a log is being replaced, and managers do not notice that a node's connection is dead. So it is in
    /// every fourth run; the others are as they were before there was this.
    harsh: bool,
    /// Everything that happens is told.
    trace: bool,
}

/// One message, for people.
fn trace(now: u64, from: &NodeId, to: &NodeId, bytes: &Bytes) {
    match wire::decode(bytes.clone()) {
        Ok((envelope, Frame::Messages(messages))) => {
            for message in messages {
                println!(
                    "{now:>9} {from}#{} -> {to}#{} {:?} term {} log {}.{} entries {} commit {} reject {}",
                    envelope.from,
                    envelope.to,
                    message.get_msg_type(),
                    message.term,
                    message.log_term,
                    message.index,
                    message.entries.len(),
                    message.commit,
                    message.reject
                );
            }
        }
        Ok((envelope, frame)) => {
            let text: String = format!("{frame:?}").chars().take(80).collect();
            println!("{now:>9} {from}#{} -> {to}#{} {text}", envelope.from, envelope.to);
        }
        Err(error) => println!("{now:>9} {from} -> {to} {error}"),
    }
}

impl World {
    /// `with_nodes`: whether there are nodes with agents beside the managers.
    pub(crate) fn new(mode: Mode, seed: u64, with_nodes: bool) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9) ^ if mode == Mode::Safety { 1 } else { 2 });
        let count = [1, 2, 3, 3, 3, 4, 5, 5][random.below(8)];
        let weather = match random.below(3) {
            0 => Weather::FAIR,
            1 => Weather { loss: 20, double: 20, delay: (200, 20 * MS) },
            _ => Weather { loss: 150, double: 100, delay: (200, 200 * MS) },
        };
        let nodes = (0..count + 1)
            .map(|place| Node {
                name: NodeId(format!("host-{place}")),
                disk: SimulatedDisk::default(),
                invitation: None,
                life: 0,
                up: None,
                damaged: false,
                // Clocks differ by a few per cent.
                tick: TICK_MS * MS * (96 + random.below(9) as u64) / 100,
                slowness: [500, 5 * MS, 40 * MS][random.below(3)],
            })
            .collect();
        let (compact_at, trailing) = ([3_000, 20_000, 1 << 20][random.below(3)], [0, 5, 50][random.below(3)]);
        let large = random.below(20) == 0;
        Self {
            mode,
            random,
            large,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            nodes,
            network: Network::new(weather),
            oracle: Oracle::default(),
            fleet: Fleet::new(with_nodes),
            watchers: Watchers::new(seed),
            summary: Summary::default(),
            next_command: 0,
            trouble: true,
            settled: false,
            compact_at,
            trailing,
            broken: BTreeSet::new(),
            harsh: seed % 4 == 3,
            trace: std::env::var_os("ORCH_SIM_TRACE").is_some(),
        }
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((self.now + delay, self.order, event)));
    }

    /// Runs everything, and says what happened.
    pub(crate) fn run(mut self) -> Summary {
        // The first is a cluster of its own; its id is fixed so that runs are the same.
        self.nodes[0].invitation = Some(Invitation { id: 1, cluster: "simulated".to_owned() });
        self.at(0, Event::Start(0));
        (0..3).for_each(|client| self.at(100 * MS, Event::Client(client)));
        self.at(300 * MS, Event::Operator);
        self.at(SECOND, Event::Trouble);
        if self.fleet.wanted {
            self.begin_fleet();
        }
        self.run_until(TROUBLE);
        match self.mode {
            Mode::Safety => self.make_peace(),
            Mode::Liveness => self.require_progress(),
        }
        self.summary.leaders = self.oracle.leaders.len() as u64;
        self.summary
    }

    fn run_until(&mut self, end: u64) {
        while let Some(Reverse((time, _, _))) = self.queue.peek() {
            if *time > end {
                break;
            }
            let Some(Reverse((time, _, event))) = self.queue.pop() else { break };
            self.now = time;
            self.summary.events += 1;
            if self.trace
                && !matches!(
                    event,
                    Event::Tick(..) | Event::Deliver(..) | Event::Client(_) | Event::Beat(_) | Event::Steward(..)
                )
            {
                println!("{time:>9} {event:.200?}");
            }
            self.take(event);
            if self.summary.events.is_multiple_of(64) {
                self.compare();
            }
        }
        self.now = end;
    }

    fn compare(&self) {
        let up: Vec<_> = self.nodes.iter().filter_map(|node| node.up.as_ref()).collect();
        for pair in up.windows(2) {
            Oracle::compare_logs(&pair[0].replica, &pair[1].replica);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick(place, life) => {
                if let Some(up) = self.nodes[place].living(life) {
                    up.replica.tick();
                    let mut delay = self.nodes[place].tick;
                    // A process that is not scheduled for a while, or a machine that sleeps.
                    if self.trouble && self.random.below(2_000) == 0 {
                        delay += self.random.below(5_000) as u64 * MS;
                    }
                    self.at(delay, Event::Tick(place, life));
                    self.pump(place);
                }
            }
            Event::Deliver(from, to, bytes) => {
                let name = self.nodes[from].name.clone();
                if let Some(up) = &mut self.nodes[to].up {
                    up.replica.receive(&name, bytes.into());
                    self.pump(to);
                }
            }
            Event::Write(place, life) => self.write(place, life),
            Event::Apply(place, life) => self.apply(place, life),
            Event::Built(place, life, index, term, bytes) => {
                if let Some(up) = self.nodes[place].living(life) {
                    let (_, _, state) = orch_scheduler::replica::decode_snapshot(&bytes).expect("our own");
                    up.replica.built(index, term, &state.members, bytes.into());
                    self.summary.stored += 1;
                    self.pump(place);
                }
            }
            Event::Start(place) => self.start(place),
            Event::Client(client) => self.client(client),
            Event::Operator => self.operate(),
            Event::Trouble => self.make_trouble(),
            Event::Heal => self.network.heal(),
            Event::Recover(place) => {
                self.nodes[place].disk.set_room(None);
                self.nodes[place].disk.set_fails_to_sync(false);
            }
            Event::Look(place) => self.look(place),
            Event::Beat(place) => self.beat(place),
            Event::Told(place, session, bytes) => self.told(place, session, &bytes),
            Event::Steward(place, life) => self.observe(place, life),
            Event::User => self.use_cluster(),
            Event::Accident => self.accident(),
            Event::Mend(place) => self.mend(place),
        }
    }

    /// Carries out what a replica wants.
    fn pump(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        let Some(up) = &mut node.up else { return };
        let Work { messages, writes, tasks, failed, reads, leadership } = up.replica.work();
        let role = up.replica.raft().state;
        if role == StateRole::Leader && up.replica.identity().id != 0 {
            self.oracle.leads(&up.replica);
        }
        match leadership.map(|leadership| leadership.standing) {
            // It has nothing to do any more: its process ends.
            Some(Standing::Removed) => {
                node.up = None;
                return;
            }
            Some(Standing::Quarantined) => return self.quarantine(place, writes),
            _ => {}
        }
        for (to, bytes) in &messages {
            self.oracle.sent(&up.replica, bytes);
            if self.trace {
                trace(self.now, &node.name, to, bytes);
            }
        }
        up.writes.extend(writes);
        up.tasks.extend(tasks);
        for (number, failure) in failed {
            if let Some(data) = up.proposed.remove(&number)
                && failure != Failure::Unknown
            {
                self.oracle.refused(&data);
            }
            up.adding.remove(&number);
            up.removing.remove(&number);
            up.desk.came_of(number, false);
        }
        for (number, result) in reads {
            if let (Some(floor), Ok(index)) = (up.reads.remove(&number), result) {
                self.oracle.read(floor, index);
                self.summary.reads += 1;
            }
        }
        let (write, work) = (!up.writing && !up.writes.is_empty(), !up.working && !up.tasks.is_empty());
        up.writing |= write;
        up.working |= work;
        let (life, slowness) = (node.life, node.slowness);
        if write {
            let mut delay = 50 + self.random.below(slowness as usize) as u64;
            if self.trouble && self.random.below(500) == 0 {
                delay += self.random.below(5_000) as u64 * MS;
            }
            self.at(delay, Event::Write(place, life));
        }
        if work {
            let delay = 10 + self.random.below(3_000) as u64;
            self.at(delay, Event::Apply(place, life));
        }
        for (to, bytes) in messages {
            let to = self.nodes.iter().position(|node| node.name == to).expect("messages go to hosts that there are");
            let arrivals = self.network.arrivals(place, to, &mut self.random);
            self.summary.lost_messages += u64::from(arrivals.is_empty());
            for delay in arrivals {
                self.at(delay, Event::Deliver(place, to, bytes.to_vec()));
            }
        }
    }

    fn write(&mut self, place: usize, life: u64) {
        let replaces = self.harsh && self.trouble && self.nodes[place].living(life).is_some_and(|up| up.replaces());
        if replaces && self.random.below(3) == 0 {
            self.stop(place, true);
            return self.at(100 * MS, Event::Start(place));
        }
        let together = self.random.below(4);
        let node = &mut self.nodes[place];
        let Some(up) = node.living(life) else { return };
        up.writing = false;
        let before = up.writes.len();
        match up.write(together) {
            Ok(()) if up.writes.len() < before || before == 0 => self.pump(place),
            Ok(()) => {
                // The disk is full: again in a while.
                up.writing = true;
                self.summary.full += 1;
                self.pump(place);
                self.at(250 * MS, Event::Write(place, life));
            }
            Err(_) => {
                // What the disk has is not known: the process ends, and the machine is started anew. What was not synced is gone.
                self.summary.failed_syncs += 1;
                self.stop(place, true);
                self.at(SECOND, Event::Start(place));
            }
        }
    }

    fn apply(&mut self, place: usize, life: u64) {
        let node = &mut self.nodes[place];
        let Some(up) = node.living(life) else { return };
        up.working = false;
        let mut restored = false;
        match up.apply(&mut self.oracle) {
            Some(Done::Applied(batch)) => {
                for (_, change) in &batch.applied.changes {
                    match change {
                        orch_core::MemberChange::Promote { .. } => self.summary.promoted += 1,
                        orch_core::MemberChange::Add { .. } => self.summary.added += 1,
                        orch_core::MemberChange::Remove { .. } => self.summary.removed += 1,
                        _ => {}
                    }
                }
                self.summary.sums += batch.applied.sums.len() as u64;
                for (number, result) in batch.answers {
                    // What the state refuses is done with as well.
                    up.desk.came_of(number, true);
                    if let (Some(data), Ok((index, _))) = (up.proposed.remove(&number), &result) {
                        self.oracle.acknowledged(*index, &data);
                        self.summary.acknowledged += 1;
                    }
                    let (added, removed) = (up.adding.remove(&number), up.removing.remove(&number));
                    if let (Some((id, name)), Ok(_)) = (added, &result) {
                        self.invite(&name, id);
                        return self.pump(place);
                    }
                    if let (Some(name), Ok(_)) = (removed, &result) {
                        self.broken.retain(|broken| self.nodes[*broken].name != name);
                        return self.pump(place);
                    }
                }
            }
            Some(Done::Built { index, term, bytes }) => {
                let delay = self.random.below(50_000) as u64;
                self.at(delay, Event::Built(place, life, index, term, bytes.to_vec()));
            }
            Some(Done::Restored) => {
                self.summary.restored += 1;
                restored = true;
            }
            Some(Done::Checked) | None => {}
        }
        self.pump(place);
        self.tell(place);
        self.watch(place, restored);
    }

    fn invite(&mut self, name: &NodeId, id: u64) {
        let place = self.nodes.iter().position(|node| node.name == *name).expect("only hosts are invited");
        if self.nodes[place].up.is_some() {
            self.stop(place, false);
        }
        self.nodes[place].invitation = Some(Invitation { id, cluster: "simulated".to_owned() });
        self.nodes[place].damaged = false;
        let delay = self.random.below(500) as u64 * MS;
        self.at(delay, Event::Start(place));
    }

    fn start(&mut self, place: usize) {
        let (nonce, timeout) = (self.random.below(usize::MAX) as u64, ELECTION + self.random.below(ELECTION));
        let node = &mut self.nodes[place];
        if node.up.is_some() || node.invitation.is_none() {
            return;
        }
        node.disk.set_room(None);
        node.disk.set_fails_to_sync(false);
        let settings = Settings {
            node: node.name.clone(),
            address: format!("{}:1", node.name.0),
            election: (timeout, timeout + 1),
            nonce,
            compact_at: self.compact_at,
            trailing: self.trailing,
        };
        match node.start(settings, &mut self.oracle) {
            Ok(()) => {
                if self.trace
                    && let Some(up) = &node.up
                {
                    let log = &up.replica.raft().raft_log;
                    let last = (log.last_term(), log.last_index());
                    println!(
                        "{:>9} {} starts: {:?} {last:?} {:?}",
                        self.now,
                        node.name,
                        up.replica,
                        up.replica.configuration()
                    );
                }
                let (life, delay) = (node.life, node.tick);
                self.at(delay, Event::Tick(place, life));
                self.at(delay, Event::Steward(place, life));
                self.pump(place);
                self.watch(place, false);
            }
            Err(error) if node.damaged => {
                let _ = error;
                self.broken.insert(place);
            }
            Err(error) => panic!("R11: {} does not start after a crash: {error}", node.name),
        }
    }

    /// A host stops: its process is killed, or its power goes.
    fn stop(&mut self, place: usize, power: bool) {
        let node = &mut self.nodes[place];
        let Some(mut up) = node.up.take() else { return };
        if self.trace {
            println!("{:>9} {} stops, power {power}: {:?}", self.now, node.name, up.replica);
        }
        if power {
            if up.writing {
                // In the middle of a write, at any operation of it.
                let operations = if self.harsh && up.replaces() { REPLACING } else { 5 };
                node.disk.stop_after(self.random.below(operations));
                let _ = up.write(self.random.below(3));
            }
            drop(up);
            let loss = match self.random.below(3) {
                0 => Loss::Everything,
                _ => Loss::Sectors(self.random.below(usize::MAX) as u64),
            };
            node.disk = node.disk.after_power_loss(loss);
            self.summary.power_losses += 1;
        } else {
            if up.writing && self.random.below(2) == 0 {
                let _ = up.write(0);
            }
            drop(up);
            node.disk = node.disk.copy();
            self.summary.kills += 1;
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |node: &Node| {
            node.up.as_ref().filter(|up| up.replica.raft().state == StateRole::Leader).map(|up| up.replica.raft().term)
        };
        let leaders = self.nodes.iter().enumerate().filter_map(|(place, node)| Some((leads(node)?, place)));
        leaders.max().map(|(_, place)| place)
    }

    fn client(&mut self, client: usize) {
        let pause = 10 + self.random.below(120) as u64;
        self.at(pause * MS, Event::Client(client));
        let somewhere = self.random.below(self.nodes.len());
        let place = match self.leader() {
            Some(leader) if self.random.below(4) > 0 => leader,
            _ => somewhere,
        };
        if self.random.below(5) == 0 {
            self.read(somewhere);
        } else {
            self.propose(place);
        }
    }

    fn read(&mut self, place: usize) {
        let floor = self.oracle.last_acknowledged;
        let Some(up) = &mut self.nodes[place].up else { return };
        let number = up.number();
        up.reads.insert(number, floor);
        up.replica.read(number);
        self.pump(place);
    }

    fn propose(&mut self, place: usize) {
        if self.nodes[place].up.is_none() {
            return;
        }
        self.next_command += 1;
        let nonce = self.next_command;
        let name = format!("volume-{}", self.random.below(12));
        let command = if self.large && nonce.is_multiple_of(8) {
            // So that a snapshot has several pieces, and a full disk is felt.
            let labels = BTreeMap::from([("filler".to_owned(), "x".repeat(300_000))]);
            Command::CreateVolume(NewVolume { name: "large".to_owned(), labels, ..NewVolume::default() })
        } else if self.large && nonce % 8 == 4 {
            Command::RemoveVolume { name: "large".to_owned() }
        } else if self.random.below(3) == 0 {
            Command::RemoveVolume { name }
        } else {
            let length = self.random.below(200);
            let labels = BTreeMap::from([("filler".to_owned(), "x".repeat(length))]);
            Command::CreateVolume(NewVolume { name, labels, ..NewVolume::default() })
        };
        let durable = self.random.below(4) > 0;
        let data = encode_command(self.now / MS, nonce, None, command).expect("a command serialises");
        let Some(up) = &mut self.nodes[place].up else { return };
        let number = up.number();
        // What needs no disk alone may be forgotten by a host alone: nobody was promised anything.
        if durable {
            up.proposed.insert(number, Bytes::from(data.clone()));
        }
        up.replica.propose(number, data, durable);
        self.pump(place);
    }

    /// Somebody adds and removes managers.
    fn operate(&mut self) {
        let pause = 300 + self.random.below(2_000) as u64;
        self.at(pause * MS, Event::Operator);
        let Some(leader) = self.leader() else { return };
        let Some(up) = &self.nodes[leader].up else { return };
        let members = up.state.members.clone();
        let is_member = |place: usize| members.id_of(&self.nodes[place].name).is_some();
        let outside: Vec<usize> = (0..self.nodes.len()).filter(|place| !is_member(*place)).collect();
        let inside: Vec<usize> = (0..self.nodes.len()).filter(|place| is_member(*place)).collect();
        // One whose invitation was lost with the answer can only be removed and invited again.
        let is_lost = |place: usize| {
            let invited = self.nodes[place].invitation.as_ref().map(|invitation| invitation.id);
            let member = members.id_of(&self.nodes[place].name);
            member.is_some() && member != invited
        };
        let broken = inside.iter().copied().find(|place| self.broken.contains(place) || is_lost(*place));
        let is_damaged = inside.iter().any(|place| self.nodes[*place].damaged);
        if (self.settled || is_damaged) && broken.is_none() {
            return;
        }
        // One host stays out, for the next to come.
        let add = broken.is_none() && outside.len() > 1 && (inside.len() < 2 || self.random.below(4) > 0);
        if add {
            let place = outside[self.random.below(outside.len())];
            let name = self.nodes[place].name.clone();
            let Some(up) = &mut self.nodes[leader].up else { return };
            let number = up.number();
            let id = up.replica.add_member(number, name.clone(), format!("{}:1", name.0));
            up.adding.insert(number, (id, name));
        } else if let Some(place) =
            broken.or_else(|| (inside.len() > 1).then(|| inside[self.random.below(inside.len())]))
        {
            let name = self.nodes[place].name.clone();
            let Some(up) = &mut self.nodes[leader].up else { return };
            let number = up.number();
            up.removing.insert(number, name.clone());
            up.replica.remove_member(number, &name);
        }
        self.pump(leader);
    }

    /// Something goes wrong.
    fn make_trouble(&mut self) {
        if !self.trouble {
            return;
        }
        let pause = 100 + self.random.below(2_500) as u64;
        self.at(pause * MS, Event::Trouble);
        let place = match self.leader() {
            Some(leader) if self.random.below(2) == 0 => leader,
            _ => self.random.below(self.nodes.len()),
        };
        let back = self.random.below(3_000) as u64 * MS;
        match self.random.below(12) {
            0..=3 => {
                self.stop(place, true);
                self.at(back, Event::Start(place));
            }
            4 | 5 => {
                self.stop(place, false);
                self.at(back, Event::Start(place));
            }
            6..=8 => {
                let mut some = BTreeSet::from([place]);
                some.extend((0..self.nodes.len()).filter(|_| self.random.below(3) == 0));
                self.network.cut_off(&some, self.nodes.len(), &mut self.random);
                self.at(back * 2, Event::Heal);
            }
            9 => {
                let room = self.nodes[place].disk.used() + self.random.below(2_000);
                self.nodes[place].disk.set_room(Some(room));
                self.at(back, Event::Recover(place));
            }
            10 => {
                self.nodes[place].disk.set_fails_to_sync(true);
                self.at(back, Event::Recover(place));
            }
            _ => self.damage(place),
        }
    }

    /// A bit of a disk turns over. One disk at a time: a majority of them must survive.
    fn damage(&mut self, place: usize) {
        let voters = self.oracle.latest.voters().len();
        let is_whole = self.broken.is_empty() && self.nodes.iter().all(|node| !node.damaged);
        // Nor while a voter is on its way out: with it the majority may be gone.
        let leader = self.leader().and_then(|leader| self.nodes[leader].up.as_ref()).map(|up| up.replica.raft());
        let is_still = leader.is_some_and(|raft| raft.pending_conf_index <= raft.raft_log.applied);
        if voters < 3 || !is_whole || !is_still || self.nodes[place].up.is_none() {
            return;
        }
        self.stop(place, false);
        let disk = &self.nodes[place].disk;
        let file = if self.harsh && disk.has("snapshot") { "snapshot" } else { "log" };
        let length = disk.content(file).iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if length > 0 {
            disk.flip(file, self.random.below(length), u8::try_from(self.random.below(8)).expect("below 8"));
            self.summary.damaged_snapshots += u64::from(file == "snapshot");
            self.nodes[place].damaged = true;
            self.summary.damaged += 1;
        }
        self.at(SECOND, Event::Start(place));
    }

    fn end_trouble(&mut self) {
        self.trouble = false;
        self.calm_fleet();
        self.network.heal();
        self.network.weather = Weather::FAIR;
        for place in 0..self.nodes.len() {
            self.nodes[place].slowness = 2 * MS;
            self.nodes[place].disk.set_room(None);
            self.nodes[place].disk.set_fails_to_sync(false);
            self.at(10 * MS, Event::Start(place));
        }
    }

    /// Everything is well again: after a while all have the same state, and nothing is missing in it.
    fn make_peace(&mut self) {
        self.end_trouble();
        let end = self.now + PEACE;
        self.run_until(end - 8 * SECOND);
        self.settled = true;
        self.run_until(end - SECOND);
        if self.fleet.wanted {
            self.require_rest();
            self.cut_shortly();
            self.change_leader();
            self.require_rest();
        }
        // All who speak are quiet for the last moment.
        let speaks = |event: &Event| matches!(event, Event::Client(_) | Event::Look(_) | Event::Steward(..));
        let quiet = std::mem::take(&mut self.queue);
        self.queue = quiet.into_iter().filter(|Reverse((_, _, event))| !speaks(event)).collect();
        let end = self.now + SECOND;
        self.run_until(end);
        let leader = self.leader().expect("R14: there is a leader when everything is well");
        self.watch_to_the_end(leader);
        let up = self.nodes[leader].up.as_ref().expect("a leader is up");
        self.oracle.settle(&up.state, up.replica.identity().id);
        let (index, sum, members) = (up.state.index, hash(&up.state), up.state.members.clone());
        for node in self.nodes.iter().filter(|node| members.id_of(&node.name).is_some() && !node.damaged) {
            let up = node.up.as_ref().unwrap_or_else(|| panic!("{} is not up", node.name));
            assert_eq!((up.state.index, hash(&up.state)), (index, sum), "{} is not where the leader is", node.name);
        }
    }

    /// A majority is well, and all others are as bad as they can be for ever: changes are accepted.
    fn require_progress(&mut self) {
        self.end_trouble();
        self.settled = true;
        let calm = self.now + 6 * SECOND;
        self.run_until(calm);
        // Learners that are about to vote do so before others are taken away: a majority is one of all who vote by then.
        let awaited = |world: &Self| world.oracle.latest.learners().len() + world.oracle.latest.voters().len() % 2 > 1;
        while awaited(self) && self.now < calm + 6 * SECOND {
            let next = self.now + 100 * MS;
            self.run_until(next);
        }
        let voters = self.oracle.latest.voters();
        let named: Vec<usize> = voters
            .iter()
            .filter_map(|id| self.oracle.latest.managers.get(id))
            .filter_map(|member| self.nodes.iter().position(|node| node.name == member.node))
            .collect();
        let mut well: Vec<usize> = named.iter().copied().filter(|place| self.nodes[*place].up.is_some()).collect();
        assert!(well.len() > voters.len() / 2, "the calm has brought a majority back");
        while well.len() > voters.len() / 2 + 1 {
            well.remove(self.random.below(well.len()));
        }
        for place in (0..self.nodes.len()).filter(|place| !well.contains(place)) {
            match self.random.below(4) {
                0 => self.stop(place, true),
                // It speaks and hears nothing: its calls for elections must not disturb.
                1 => self.network.deafen(place, self.nodes.len()),
                2 => self.network.cut_off(&BTreeSet::from([place]), self.nodes.len(), &mut self.random),
                _ => self.nodes[place].slowness = 30 * SECOND,
            }
        }
        let before = self.summary.acknowledged;
        let end = self.now + PROGRESS;
        while self.now < end && self.summary.acknowledged == before {
            let next = self.now + 10 * MS;
            self.run_until(next);
        }
        assert!(
            self.summary.acknowledged > before,
            "R14: {} of {} voters are well and accept nothing",
            well.len(),
            voters.len()
        );
        // And it goes on.
        let (then, next) = (self.summary.acknowledged, self.now + 5 * SECOND);
        self.run_until(next);
        assert!(self.summary.acknowledged > then + 10, "R14: progress does not last");
        // Nodes that reach those managers run what is wanted.
        self.fleet.reachable = Some(well);
        self.require_rest();
        self.summary.live = 1;
    }
}
