//! A replica of the control plane, without input and output.
//!
//! [`Replica`] is raft, the entries in memory, and everything around them that must be right at every crash: what is written in which order,
//! which message may leave before what is on disk, who waits for which entry, who is a member. It touches no disk, socket, clock or thread.
//! Whoever drives it calls it with what has happened, and then carries out the [`Work`] that comes of it: the real driver with threads, the
//! simulator of the tests with a virtual clock. Applying to the state is work too ([`machine`]), so that a slow change delays no heartbeat.
//!
//! The order in [`Replica::take_ready`] is the library's: a leader's messages leave at once, everybody's promises (votes, acknowledged
//! entries) only when the write that they rest on is reported as done. Deliberately absent: forwarding of proposals (a forwarded one could be
//! carried out twice), joint configurations (members change one at a time), leases (they would trust clocks).

mod admission;
mod audit;
mod entries;
mod job;
pub mod machine;
mod members;
mod peers;
mod proposals;
mod reads;
mod record;
mod transfer;
pub mod wire;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use orch_core::{Member, MemberChange, Members, State};
use orch_spec::assignment::NodeId;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType};
use raft::{Config, RawNode, Ready, SnapshotStatus, StateRole};

pub use crate::control::{Leadership, Standing};
use crate::log::Recovered;
pub use audit::Contradiction;
pub use job::{Job, Records, Space, Write};
pub use record::{
    FIRST, Identity, Unreadable, decode_snapshot, encode_command, encode_snapshot, identity_of, identity_record,
};
pub use transfer::PIECE;

use audit::Audit;
use entries::{Entries, Offer};
use machine::{Applied, Committed, Content};
use proposals::{Proposal, Proposals};
use reads::Reads;
use transfer::{Assembly, Download, Progress};
use wire::{Envelope, Frame};

/// A tick stands for so many milliseconds (cluster.md §d.4).
pub const TICK_MS: u64 = 50;
/// Heartbeats, ticks.
const HEARTBEAT: usize = 2;
/// An election begins when nothing was heard for so many ticks at least: five heartbeats.
pub const ELECTION: usize = 10;
/// A leader whose disk has not answered for so many ticks hands its leadership over.
const STALLED: u64 = 15;
/// After a handover was tried, it is not tried again for so many ticks.
const HANDOVER: u64 = 2 * ELECTION as u64;
/// What a deposed leader had under way is given up after so many ticks.
const HOPE: u64 = 2 * ELECTION as u64;
/// A snapshot of whose pieces none was asked for in so many ticks has failed.
const UPLOAD: u64 = 120;
/// An offered snapshot that nobody fetches is forgotten after so many ticks.
const OFFER: u64 = 1200;
/// Room that is kept for entries and hard states which raft writes by itself, bytes.
const SPARE: u64 = 4096;
/// What one proposal adds to its data in the log at most, bytes: head, numbers, a hard state.
const FRAME: u64 = 96;
/// Entries that a slow follower still needs stay up to this size, bytes; then it gets a snapshot.
const FOR_SLOW: usize = 32 << 20;
/// A larger frame is sent in parts of this size, bytes.
const PART: usize = 2 << 20;
/// Entries are gathered into one frame up to this size, bytes.
const FRAME_BYTES: usize = 1 << 20;

/// How a replica is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node it runs on.
    pub node: NodeId,
    /// Where others reach it; empty when that is not known.
    pub address: String,
    /// The shortest and the longest election timeout, ticks: from the first to before the second.
    pub election: (usize, usize),
    /// A random number of this life of the replica.
    pub nonce: u64,
    /// The log is replaced by a snapshot when it is larger, bytes.
    pub compact_at: u64,
    /// Entries that stay in memory behind a snapshot, so that a follower that is a little late needs none.
    pub trailing: u64,
}

/// A replica cannot start from what it found.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Of a later version.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The library.
    #[error("start raft: {0}")]
    Raft(#[from] raft::Error),
}

/// Why a proposal or a read came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Another change of the managers is under way, and one follows the other; nothing was changed.
    InTurn,
    /// Somebody else leads, if anybody does; nothing was changed.
    NotLeader(Option<NodeId>),
    /// It cannot be taken now; nothing was changed.
    Busy(String),
    /// Another leader's entry took its place; it was not carried out and never will be.
    Lost,
    /// Nobody can say whether it was or will be carried out.
    Unknown,
}

/// What the state machine is to do, in order.
#[derive(Debug)]
pub enum Task {
    /// Apply these and report with [`Replica::applied`].
    Apply(Vec<Committed>),
    /// Make a snapshot of the state as it is then, aside, and report with [`Replica::built`].
    Build,
    /// See whether this snapshot can be read, keep its state aside, and report with [`Replica::checked`].
    Check(Bytes),
    /// The state that was kept aside is the state from now on; report with [`Replica::applied`].
    Restore(u64),
}

/// What is to be done now.
#[derive(Debug, Default)]
pub struct Work {
    /// To be sent, in order; may be lost.
    pub messages: Vec<(NodeId, Bytes)>,
    /// For the log, in order; each is reported with [`Replica::written`].
    pub writes: Vec<Write>,
    /// For the state machine, in order.
    pub tasks: Vec<Task>,
    /// Proposals that come to nothing.
    pub failed: Vec<(u64, Failure)>,
    /// Reads: the index that the state must have reached, or why not.
    pub reads: Vec<(u64, Result<u64, Failure>)>,
    /// The leadership, when it has changed.
    pub leadership: Option<Leadership>,
}

/// A write whose end has not been reported.
#[derive(Debug, Default)]
struct Unwritten {
    number: u64,
    /// The `Ready` that it belongs to; 0 for none.
    ready: u64,
    /// What may be sent when it is done.
    messages: Vec<Message>,
    cost: u64,
    since: u64,
    /// The term that is durable when it is done; 0 for one that says nothing about it.
    term: u64,
    /// The index of the snapshot that it installs.
    installs: Option<u64>,
    /// It only asks for room.
    wish: bool,
    /// The commit that is durable when it is done; 0 for one that says nothing about it.
    commit: u64,
    /// Entries that may be applied when it is done.
    applies: Vec<Committed>,
}

/// See the module.
pub struct Replica {
    identity: Identity,
    cluster: u32,
    settings: Settings,
    raw: RawNode<Entries>,
    members: Members,
    /// Nodes of numbers that the members do not name: those of whom a replica that has just joined heard.
    heard: BTreeMap<u64, NodeId>,
    removed: bool,
    departure: members::Departure,
    audit: Audit,
    /// Why this replica takes part in nothing any more, when it was not removed.
    contradiction: Option<Contradiction>,
    ticks: u64,
    /// Index and term that the state has reached.
    applied: (u64, u64),
    /// Changes of the configuration up to here are in the snapshot that was installed.
    configured: u64,
    hard_state: HardState,
    /// Term and vote, and commit, as they were last written.
    hard_written: (u64, u64, u64),
    durable_term: u64,
    durable_commit: u64,
    next_write: u64,
    unwritten: VecDeque<Unwritten>,
    space: Space,
    full: Option<String>,
    admitted: u64,
    reserving: bool,
    compact_at: u64,
    building: bool,
    proposals: Proposals,
    /// Proposals of this batch.
    gathered: Vec<Proposal>,
    reads: Reads,
    download: Option<Download>,
    /// A snapshot that is whole and whose state is being looked at, or that raft is about to install.
    received: Option<(Message, Bytes)>,
    /// Raft id → tick of its last question for pieces.
    uploads: BTreeMap<u64, u64>,
    assemblies: BTreeMap<NodeId, Option<Assembly>>,
    next_frame: u64,
    offered: u64,
    handover: Option<u64>,
    /// The first of all has proposed to say who it is.
    founding: bool,
    out: Work,
    told: Leadership,
    /// Whether it led when this was last looked at.
    led: bool,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let raft = &self.raw.raft;
        f.debug_struct("Replica")
            .field("id", &self.identity.id)
            .field("role", &raft.state)
            .field("term", &raft.term)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl Replica {
    /// A replica from what its log says, and the state that it begins with. `space` is that of the log.
    ///
    /// # Errors
    /// See [`OpenError`].
    ///
    /// # Panics
    /// The library panics when what it is given contradicts itself.
    pub fn open(
        identity: Identity,
        recovered: &Recovered,
        space: Space,
        settings: Settings,
    ) -> Result<(Self, State), OpenError> {
        let found = record::read(recovered, identity)?;
        let record::Found { identity, before, state, entries, hard_state, is_stale } = found;
        let conf = record::conf_state(identity.id, &state.members);
        let config = Config {
            id: identity.id,
            election_tick: ELECTION,
            heartbeat_tick: HEARTBEAT,
            min_election_tick: settings.election.0,
            max_election_tick: settings.election.1,
            check_quorum: true,
            pre_vote: true,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 4 << 20,
            // Not `batch_append`: the library then puts entries into a waiting message that they do not follow (raft 0.7.0, `is_continuous_ents` of an
            // empty message), and the follower acknowledges what it does not have. Proposals are gathered by `propose_gathered` instead.
            applied: before.0,
            ..Config::default()
        };
        let entries = Entries::new(before, entries, hard_state.clone(), conf);
        let raw = RawNode::new(&config, entries, &crate::slog_bridge::logger())?;
        let mut replica = Self {
            cluster: crc32c::crc32c(identity.cluster.as_bytes()),
            members: state.members.clone(),
            applied: before,
            configured: before.0,
            hard_written: (hard_state.term, hard_state.vote, hard_state.commit),
            durable_term: hard_state.term,
            durable_commit: hard_state.commit,
            hard_state,
            compact_at: settings.compact_at,
            identity,
            settings,
            raw,
            space,
            heard: BTreeMap::new(),
            removed: false,
            departure: members::Departure::default(),
            audit: Audit::default(),
            contradiction: None,
            ticks: 0,
            next_write: 0,
            unwritten: VecDeque::new(),
            full: None,
            admitted: 0,
            reserving: false,
            building: false,
            proposals: Proposals::default(),
            gathered: Vec::new(),
            reads: Reads::default(),
            download: None,
            received: None,
            uploads: BTreeMap::new(),
            assemblies: BTreeMap::new(),
            next_frame: 0,
            offered: 0,
            handover: None,
            founding: false,
            out: Work::default(),
            told: Leadership::default(),
            led: false,
        };
        if let Some(snapshot) = recovered.snapshot.as_ref().filter(|_| is_stale) {
            // The replacement that was interrupted is done again, before anything else is written.
            let keep = vec![identity_record(&replica.identity), record::hard_state_record(&replica.hard_state)];
            let job = Job::Replace { snapshot: Bytes::copy_from_slice(snapshot), keep, own: false };
            replica.push_write(job, Unwritten::default());
        }
        replica.campaign_alone();
        Ok((replica, state))
    }

    /// Begins to lead at once when nobody else can: there is nothing to wait for. The library refuses while there are changes of the
    /// configuration that it knows to be committed and that are not applied: it is tried again behind them.
    fn campaign_alone(&mut self) {
        let raft = &self.raw.raft;
        let only = raft.prs().conf().voters().ids().iter().eq([self.identity.id]);
        if only
            && raft.state == StateRole::Follower
            && self.is_written()
            && let Err(error) = self.raw.campaign()
        {
            tracing::debug!(%error, "no election yet");
        }
    }

    /// Who this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The library's view, for tests and for status.
    pub fn raft(&self) -> &raft::Raft<impl raft::Storage> {
        &self.raw.raft
    }

    /// The configuration that raft has now: voters and learners, sorted.
    pub fn configuration(&self) -> (Vec<u64>, Vec<u64>) {
        let conf: ConfState = self.raw.raft.prs().conf().to_conf_state();
        let sorted = |mut ids: Vec<u64>| {
            ids.sort_unstable();
            ids
        };
        (sorted(conf.voters), sorted(conf.learners))
    }

    /// The members, as far as the state is applied.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Whether nobody else takes part: then there is nobody to tick for, and nobody who could miss what only this disk had.
    pub fn is_alone(&self) -> bool {
        let id = self.identity.id;
        let raft = &self.raw.raft;
        let only = raft.prs().get(id).is_some() && raft.prs().iter().count() == 1;
        // A change that is in the log and not applied yet may say that there are others.
        only && raft.state == StateRole::Leader && raft.pending_conf_index <= raft.raft_log.applied
    }

    fn is_written(&self) -> bool {
        self.raw.raft.raft_log.persisted == self.raw.raft.raft_log.last_index()
    }

    /// Whether it could not lead without others.
    pub fn has_others(&self) -> bool {
        !self.raw.raft.prs().conf().voters().ids().iter().eq([self.identity.id])
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn leader(&self) -> Option<NodeId> {
        self.node_of(self.raw.raft.leader_id)
    }

    fn node_of(&self, id: u64) -> Option<NodeId> {
        if id == self.identity.id {
            return Some(self.settings.node.clone());
        }
        self.members.managers.get(&id).map(|member| &member.node).or_else(|| self.heard.get(&id)).cloned()
    }

    /// A tick of [`TICK_MS`] has passed.
    pub fn tick(&mut self) {
        if self.removed {
            return;
        }
        self.ticks += 1;
        // One who votes alone wins its election at once, and the library wants everything on disk by then.
        if self.has_others() || self.is_leader() || self.is_written() {
            self.raw.tick();
        }
        self.proposals.expire(self.ticks, &mut self.out.failed);
        for number in self.reads.tick(self.ticks) {
            let leader = self.leader();
            self.out.reads.push((number, Err(Failure::NotLeader(leader))));
        }
        self.tick_transfers();
        if self.is_leader() {
            self.promote();
            self.hand_over_when_stalled();
        }
        self.depart();
        self.tell_address();
    }

    /// Proposes a command that must be on disk before it counts, unless `durable` says otherwise and nobody else takes part. What comes of it
    /// is either in [`Work::failed`] or among the answers of the state machine, by its number.
    pub fn propose(&mut self, number: u64, data: Vec<u8>, durable: bool) {
        self.admit(Proposal { number, data, durable, change: None });
    }

    fn fail(&mut self, number: u64, failure: Failure) {
        self.out.failed.push((number, failure));
    }

    /// Begins a read that sees everything that was acknowledged anywhere before; the answer is in [`Work::reads`].
    pub fn read(&mut self, number: u64) {
        if self.removed {
            return self.out.reads.push((number, Err(Failure::NotLeader(None))));
        }
        self.reads.begin(number, self.ticks);
    }

    /// A write is done, and with it all before it.
    pub fn written(&mut self, number: u64, space: Space) {
        self.space = space;
        self.full = None;
        while self.unwritten.front().is_some_and(|write| write.number <= number) {
            let Some(write) = self.unwritten.pop_front() else { break };
            if self.removed {
                continue;
            }
            self.durable_term = self.durable_term.max(write.term);
            if write.ready > 0 {
                self.raw.on_persist_ready(write.ready);
            }
            self.send(write.messages);
            self.durable_commit = self.durable_commit.max(write.commit);
            if let Some(index) = write.installs {
                self.out.tasks.push(Task::Restore(index));
            }
            if !write.applies.is_empty() {
                self.out.tasks.push(Task::Apply(write.applies));
            }
            if write.wish {
                self.reserving = false;
                self.release_parked();
            }
        }
        if !self.removed {
            self.campaign_alone();
        }
        if self.space.size > self.compact_at {
            self.build();
        }
    }

    /// A write cannot be done now for want of space; whoever has the disk tries it again. A wish for space alone is over with that.
    pub fn full(&mut self, number: u64, why: String) {
        if self.unwritten.front().is_some_and(|write| write.number == number && write.wish) {
            self.unwritten.pop_front();
            self.reserving = false;
            let successor = self.hand_over_for_space();
            for proposal in std::mem::take(&mut self.proposals.parked) {
                let failure = match &successor {
                    Some(successor) => Failure::NotLeader(Some(successor.clone())),
                    None => Failure::Busy(why.clone()),
                };
                self.fail(proposal.number, failure);
            }
            return;
        }
        self.full = Some(why);
    }

    /// The state machine has come so far.
    ///
    /// # Panics
    /// When raft's configuration is not the one that the state says: the replicas would disagree on who decides.
    pub fn applied(&mut self, applied: Applied) {
        if self.removed {
            return;
        }
        self.applied = (applied.index, applied.term);
        for (index, change) in &applied.changes {
            // A snapshot that was installed meanwhile has its configuration in it.
            if *index <= self.configured {
                continue;
            }
            if let Some(change) = members::configuration_change(change) {
                self.raw.apply_conf_change(&change).expect("the state has accepted the change, so it is possible");
            }
        }
        if let Some(members) = applied.members
            && applied.index >= self.configured
        {
            self.take_members(members);
        }
        self.summed(&applied.sums);
        if self.removed {
            return;
        }
        self.raw.advance_apply_to(applied.index);
        self.campaign_alone();
        if self.raw.store().first() == 1 {
            // A new member must begin with a snapshot: it would not know the first one's configuration from the entries.
            self.raw.mut_store().compact(1);
        }
        self.found();
    }

    /// The term of the last entry that the state has.
    pub fn applied_term(&self) -> u64 {
        self.applied.1
    }

    /// Whether everything that was given is done.
    pub fn is_idle(&self) -> bool {
        self.removed || self.unwritten.is_empty() && self.applied.0 == self.raw.raft.raft_log.committed
    }

    /// A snapshot of the state was made; see [`Task::Build`].
    pub fn built(&mut self, index: u64, term: u64, members: &Members, bytes: Bytes) {
        self.building = false;
        if self.removed || index < self.raw.store().first().saturating_sub(1) {
            return;
        }
        let conf = record::conf_state(self.identity.id, members);
        let length = bytes.len() as u64;
        if self.space.size > self.compact_at {
            let mut keep = vec![identity_record(&self.identity), record::hard_state_record(&self.hard_state)];
            keep.extend(self.raw.store().from(index + 1).map(record::entry_record));
            self.push_write(Job::Replace { snapshot: bytes.clone(), keep, own: true }, Unwritten::default());
            // A state that is large by itself must not be written again and again, and a disk that is full not be asked with every change.
            self.compact_at = self.settings.compact_at.max(4 * length);
            if self.space.size > self.compact_at {
                self.compact_at = self.space.size + self.settings.compact_at;
            }
        }
        if !self.is_alone() {
            let check = crc32c::crc32c(&bytes);
            self.raw.mut_store().offer = Some(Offer { index, term, conf, bytes, check });
            self.offered = self.ticks;
        }
        self.compact_memory(index);
    }

    /// Forgets entries that are in a snapshot, but not those that a follower is likely to need.
    fn compact_memory(&mut self, snapshot: u64) {
        let mut target = snapshot.min(self.applied.0);
        if !self.is_alone() {
            target = target.saturating_sub(self.settings.trailing);
            if self.raw.store().bytes() < FOR_SLOW && self.is_leader() {
                let slow = self.raw.raft.prs().iter().filter(|(_, progress)| progress.recent_active);
                target = slow.map(|(_, progress)| progress.matched).fold(target, u64::min);
            }
        }
        self.raw.mut_store().compact(target);
    }

    fn build(&mut self) {
        if !self.building {
            self.building = true;
            self.out.tasks.push(Task::Build);
        }
    }

    /// What is to be done now.
    pub fn work(&mut self) -> Work {
        self.propose_gathered();
        while !self.removed && self.raw.has_ready() {
            self.take_ready();
        }
        self.admitted = 0;
        if !self.removed {
            if self.raw.raft.leader_id != 0
                && let Some(question) = self.reads.question(self.settings.nonce, self.identity.id, self.ticks)
            {
                self.raw.read_index(question);
                while self.raw.has_ready() {
                    self.take_ready();
                }
            }
            if self.raw.store().take_wanted() {
                self.build();
            }
            self.note_role();
        }
        let leadership = self.leadership();
        if leadership != self.told {
            self.told = leadership.clone();
            self.out.leadership = Some(leadership);
        }
        std::mem::take(&mut self.out)
    }

    fn note_role(&mut self) {
        let leads = self.is_leader();
        if self.led && !leads {
            self.proposals.deposed(self.ticks + HOPE);
            let leader = self.leader();
            for proposal in std::mem::take(&mut self.proposals.parked) {
                self.out.failed.push((proposal.number, Failure::NotLeader(leader.clone())));
            }
            self.uploads.clear();
        }
        self.led = leads;
    }

    fn leadership(&self) -> Leadership {
        if self.removed {
            let standing = if self.contradiction.is_some() { Standing::Quarantined } else { Standing::Removed };
            return Leadership { term: self.raw.raft.term, standing, ..Leadership::default() };
        }
        let raft = &self.raw.raft;
        let votes = raft.prs().conf().voters().contains(self.identity.id);
        Leadership {
            leader: self.leader(),
            term: raft.term,
            // Not before it has applied everything that its predecessors committed.
            is_leader: self.is_leader() && self.applied.1 == raft.term,
            standing: if votes { Standing::Voter } else { Standing::Learner },
        }
    }

    fn push_write(&mut self, job: Job, unwritten: Unwritten) {
        self.next_write += 1;
        let (number, since, cost) = (self.next_write, self.ticks, job.cost());
        self.unwritten.push_back(Unwritten { number, since, cost, ..unwritten });
        self.out.writes.push(Write { number, job });
    }

    /// Turns one `Ready` of the library into work. Nothing that promises durability leaves before the write that it rests on is done.
    fn take_ready(&mut self) {
        let mut ready = self.raw.ready();
        let mut leading = ready.take_messages();
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let mut held = ready.take_persisted_messages();
        let read_states = ready.take_read_states();
        if let Some(hard_state) = ready.hs() {
            self.hard_state = hard_state.clone();
        }
        let number = ready.number();
        let written = self.write_ready(&ready, &entries, number);
        self.raw.advance_append_async(ready);
        // Who is elected by others has its term on disk by then. Who votes alone leads at once, and after a crash would lead again in the same
        // term with other entries, while a learner has those of before.
        if self.durable_term < self.raw.raft.term {
            leading.append(&mut held);
            held = std::mem::take(&mut leading);
        }
        self.send(leading);
        self.hold(held, number, written);
        for state in read_states {
            for read in self.reads.answered(&state.request_ctx) {
                self.out.reads.push((read, Ok(state.index)));
            }
        }
        self.commit(committed);
    }

    /// Writes what a `Ready` has for the log; says whether that was anything.
    fn write_ready(&mut self, ready: &Ready, entries: &[Entry], number: u64) -> bool {
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().get_metadata().clone());
        let voted = (self.hard_state.term, self.hard_state.vote) != (self.hard_written.0, self.hard_written.1);
        if snapshot.is_none() && entries.is_empty() && !voted {
            // A commit alone needs no write: it is found again by the next leader.
            return false;
        }
        let mut records: Records = entries.iter().map(record::entry_record).collect();
        if voted || self.hard_state.commit != self.hard_written.2 {
            records.push(record::hard_state_record(&self.hard_state));
            self.hard_written = (self.hard_state.term, self.hard_state.vote, self.hard_state.commit);
        }
        let alone = self.is_alone();
        // All are asked, not only up to the first: each note is taken once.
        let needing = entries.iter().filter(|entry| !self.proposals.take_lazy(entry.index)).count();
        let sync = voted || !alone || needing > 0;
        let mut unwritten = Unwritten { ready: number, term: self.hard_state.term, ..Unwritten::default() };
        let job = match snapshot {
            None => {
                self.raw.mut_store().append(entries);
                Job::Append { records, sync }
            }
            Some(meta) => {
                let (_, bytes) = self.received.take().expect("raft installs only what it was given");
                self.raw.mut_store().restart(meta.index, meta.term);
                self.raw.mut_store().append(entries);
                self.configured = meta.index;
                self.audit = Audit::default();
                self.proposals.covered(meta.index, &mut self.out.failed);
                unwritten.installs = Some(meta.index);
                let mut keep = vec![identity_record(&self.identity), record::hard_state_record(&self.hard_state)];
                keep.extend(entries.iter().map(record::entry_record));
                Job::Replace { snapshot: bytes, keep, own: false }
            }
        };
        self.push_write(job, unwritten);
        true
    }

    /// Keeps messages back until what they rest on is written.
    fn hold(&mut self, messages: Vec<Message>, number: u64, written: bool) {
        // That somebody is alive promises nothing that a crash could break, once its term is on disk: a slow disk is no dead replica.
        let term_is_durable = self.durable_term == self.raw.raft.term;
        let is_free = |message: &Message| {
            term_is_durable
                && matches!(
                    message.get_msg_type(),
                    MessageType::MsgHeartbeatResponse
                        | MessageType::MsgRequestPreVote
                        | MessageType::MsgRequestPreVoteResponse
                        | MessageType::MsgReadIndex
                )
        };
        let (free, held): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_free);
        self.send(free);
        let last = self.unwritten.iter_mut().rev().find(|write| write.ready > 0);
        match last {
            Some(write) => {
                write.ready = number;
                write.messages.extend(held);
            }
            None => {
                debug_assert!(!written, "a write was just made");
                self.raw.on_persist_ready(number);
                self.send(held);
            }
        }
    }

    fn commit(&mut self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            let number = self.proposals.committed(entry.index, entry.term, &mut self.out.failed);
            let content = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => Content::Nothing,
                EntryType::EntryNormal => Content::Command(entry.data),
                _ if entry.context.is_empty() => Content::Nothing,
                _ => Content::Members(entry.context),
            };
            committed.push(Committed { index: entry.index, term: entry.term, content, number });
        }
        self.release(committed);
    }

    /// Gives committed entries to the state machine.
    ///
    /// Before a change of the configuration is applied, it must be durable that it is committed. A replica that came back with an older
    /// configuration than it had acted upon would decide with those who were enough once: one that had been alone would decide alone. (A
    /// replica that knows of a committed change does not call an election before it has applied it.)
    fn release(&mut self, committed: Vec<Committed>) {
        let configures = committed.iter().any(|entry| matches!(entry.content, Content::Members(_)));
        let last = committed.last().map_or(0, |entry| entry.index);
        if configures && last > self.durable_commit {
            let record = record::hard_state_record(&self.hard_state);
            self.hard_written = (self.hard_state.term, self.hard_state.vote, self.hard_state.commit);
            let unwritten = Unwritten { applies: committed, commit: self.hard_state.commit, ..Unwritten::default() };
            return self.push_write(Job::Append { records: vec![record], sync: true }, unwritten);
        }
        // What is committed later is applied later.
        match self.unwritten.iter_mut().rev().find(|write| !write.applies.is_empty()) {
            Some(write) => write.applies.extend(committed),
            None => self.out.tasks.push(Task::Apply(committed)),
        }
    }
}
