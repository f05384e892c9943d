//! The thread that drives raft: proposals in, durable entries, applied state out.
//!
//! The order is the one that the library demands: everything that is waiting is proposed in one batch; then for each `Ready` the entries
//! and the hard state are written (with an fsync when something in it must be durable), then `advance`, then what is committed is applied,
//! then `advance_apply`. Reports of nodes are written without fsync: a node repeats the truth when it connects, and a process that is
//! killed loses none of what it has written.
//!
//! One voter for now: it campaigns at once, and needs no ticks. A panic of the library means that this disk or this driver is wrong; the
//! thread ends, every caller hears that the control plane is gone, and nothing is written any more.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use orch_core::{Answer, Assignments, Changes, Command, Entry as CoreEntry, State};
use orch_spec::assignment::{Assignment, NodeId};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::control::{ProposeError, Shared, StartError};
use crate::disk::Disk;
use crate::log::{Kind, Log, LogError, Record, Recovered};
use crate::slog_bridge;

/// The only voter's number. Others get theirs when they join.
const FIRST: u64 = 1;
/// Taken into one batch.
const BATCH: usize = 256;
/// The log is replaced by a snapshot when it is larger, bytes: replaying so much takes a fraction of a second.
const COMPACT_AT: u64 = 8 << 20;
/// Room that is kept for entries and hard states which raft writes by itself, bytes.
const SPARE: usize = 4096;

type Reply = oneshot::Sender<Result<(u64, Answer), ProposeError>>;

/// What the driver is asked.
#[derive(Debug)]
pub(crate) enum Message {
    /// Carry a command out.
    Propose {
        /// The command.
        command: Box<Command>,
        /// Who waits for it.
        reply: Option<Reply>,
    },
    /// Tell a node what it shall run, from now on.
    Connect {
        /// The node.
        node: NodeId,
        /// Where to.
        assignments: watch::Sender<Arc<Assignment>>,
    },
    /// End.
    Shutdown(oneshot::Sender<()>),
}

/// The head of a snapshot; the state follows in the same JSON object.
#[derive(Debug, Serialize, Deserialize)]
struct Snapshot {
    index: u64,
    term: u64,
    state: State,
}

/// What an entry looks like on disk: raft's own fields, and ours as JSON, so that a later version can read it.
#[derive(Debug, Serialize, Deserialize)]
struct StoredEntry {
    index: u64,
    term: u64,
    /// Empty for raft's own.
    data: Option<Box<serde_json::value::RawValue>>,
}

#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct StoredHardState {
    term: u64,
    vote: u64,
    commit: u64,
}

/// Runs until told to end. `ready` hears how the start went.
pub(crate) fn run(
    disk: Box<dyn Disk>,
    mut inbox: mpsc::Receiver<Message>,
    ready: oneshot::Sender<Result<Arc<Shared>, StartError>>,
) {
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Driver::open(disk)));
    let mut driver = match opened.unwrap_or_else(|panic| Err(StartError::Raft(panic_text(&*panic)))) {
        Ok(driver) => driver,
        Err(e) => {
            let _ = ready.send(Err(e));
            return;
        }
    };
    let shared = driver.shared.clone();
    let _ = ready.send(Ok(shared.clone()));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| driver.serve(&mut inbox)));
    let reason = match outcome {
        Ok(Ok(done)) => {
            // The log is closed when this is heard: whoever waited may take the directory away.
            drop(driver);
            if let Some(done) = done {
                let _ = done.send(());
            }
            return;
        }
        Ok(Err(error)) => chain(&error),
        Err(panic) => panic_text(&*panic),
    };
    tracing::error!(reason, "the control plane takes no more changes: containers go on, the log is left as it is");
    // Said before those who wait are let go, so that they can pass it on.
    *shared.gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    drop(driver);
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".to_owned());
    format!("the raft library found a contradiction: {text}")
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

struct Driver {
    raw: RawNode<MemStorage>,
    storage: MemStorage,
    log: Log,
    shared: Arc<Shared>,
    assignments: Assignments,
    nodes: HashMap<NodeId, watch::Sender<Arc<Assignment>>>,
    /// Who waits for which proposal, by the number in the entry's context.
    waiting: HashMap<u64, Reply>,
    next_proposal: u64,
    /// Index and term of the last applied entry, for the snapshot.
    applied: (u64, u64),
    hard_state: StoredHardState,
    /// Size of the log at which the next snapshot is taken, bytes.
    compact_at: u64,
    random: RandomState,
}

impl Driver {
    fn open(disk: Box<dyn Disk>) -> Result<Self, StartError> {
        let (mut log, recovered) = Log::open(disk)?;
        let raft = |e: raft::Error| StartError::Raft(e.to_string());
        let decode = |e: serde_json::Error| StartError::Entry(e.to_string());
        let Recovered { snapshot, records, dropped } = recovered;
        if dropped > 0 {
            tracing::warn!(
                bytes = dropped,
                "the torn end of the control log was dropped; nothing of it had been acknowledged"
            );
        }
        let (index, term, state) = match snapshot {
            Some(bytes) => {
                let snapshot: Snapshot = serde_json::from_slice(&bytes).map_err(decode)?;
                (snapshot.index, snapshot.term, snapshot.state)
            }
            None => (0, 0, State::new(cluster_id(&mut log, &records)?)),
        };
        let voters = ConfState { voters: vec![FIRST], ..ConfState::default() };
        let storage = MemStorage::new_with_conf_state(voters.clone());
        if index > 0 {
            let mut meta = raft::eraftpb::Snapshot::default();
            meta.mut_metadata().index = index;
            meta.mut_metadata().term = term;
            *meta.mut_metadata().mut_conf_state() = voters;
            storage.wl().apply_snapshot(meta).map_err(raft)?;
        }
        let (entries, hard_state) = replay(&records, index, term).map_err(decode)?;
        storage.wl().append(&entries).map_err(raft)?;
        storage.wl().set_hardstate(HardState {
            term: hard_state.term,
            vote: hard_state.vote,
            commit: hard_state.commit,
            ..HardState::default()
        });
        let settings = Config {
            id: FIRST,
            election_tick: 20,
            heartbeat_tick: 2,
            check_quorum: true,
            pre_vote: true,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 4 << 20,
            applied: index,
            ..Config::default()
        };
        let raw = RawNode::new(&settings, storage.clone(), &slog_bridge::logger()).map_err(raft)?;
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            applied: watch::Sender::new(index),
            gone: Mutex::default(),
            leadership: watch::Sender::default(),
        });
        let mut driver = Self {
            raw,
            storage,
            log,
            shared,
            assignments: Assignments::default(),
            nodes: HashMap::new(),
            waiting: HashMap::new(),
            next_proposal: 0,
            applied: (index, term),
            hard_state,
            compact_at: COMPACT_AT,
            random: RandomState::new(),
        };
        driver.raw.campaign().map_err(raft)?;
        while driver.raw.has_ready() {
            driver.handle_ready(true)?;
        }
        if driver.raw.raft.state != StateRole::Leader {
            return Err(StartError::Raft("the only voter did not win its election".to_owned()));
        }
        let state = driver.shared.state.read().unwrap_or_else(PoisonError::into_inner).clone();
        driver.assignments = Assignments::new(&state);
        Ok(driver)
    }

    /// Works until it is told to end, and says who waits for that.
    fn serve(&mut self, inbox: &mut mpsc::Receiver<Message>) -> Result<Option<oneshot::Sender<()>>, StartError> {
        while let Some(first) = inbox.blocking_recv() {
            let mut durable = false;
            let mut end = None;
            let mut next = Some(first);
            for _ in 0..BATCH {
                match next {
                    Some(Message::Propose { command, reply }) => durable |= self.propose(*command, reply),
                    Some(Message::Connect { node, assignments }) => {
                        self.nodes.insert(node.clone(), assignments);
                        self.publish_to(&node);
                    }
                    Some(Message::Shutdown(done)) => {
                        end = Some(done);
                        break;
                    }
                    None => break,
                }
                next = inbox.try_recv().ok();
            }
            while self.raw.has_ready() {
                self.handle_ready(durable)?;
            }
            self.compact_when_large();
            if self.log.is_poisoned() {
                self.log.append(std::iter::empty(), false)?;
            }
            if let Some(done) = end {
                if let Err(e) = self.log.append(std::iter::empty(), true) {
                    tracing::warn!(
                        error = chain(&e),
                        "the end of the control log may be lost with the power; nodes repeat what was in it"
                    );
                }
                return Ok(Some(done));
            }
        }
        Ok(None)
    }

    /// Proposes a command; returns whether it must be durable. What cannot be written is refused before raft hears of it.
    fn propose(&mut self, command: Command, reply: Option<Reply>) -> bool {
        let durable =
            !matches!(command, Command::Report { .. } | Command::ReserveAddress(_) | Command::ReleaseAddress { .. });
        let entry = CoreEntry {
            now_ms: now_ms(),
            nonce: self.random.build_hasher().finish().rotate_left(17) ^ self.nonce(),
            command,
        };
        let refuse = |reply: Option<Reply>, why: String| {
            tracing::warn!(why, "a command was not taken");
            if let Some(reply) = reply {
                let _ = reply.send(Err(ProposeError::Unavailable(why)));
            }
        };
        let data = match serde_json::to_vec(&entry) {
            Ok(data) => data,
            Err(e) => {
                refuse(reply, e.to_string());
                return false;
            }
        };
        // The stored form adds index, term and a hard state; the spare is for those of raft itself.
        if let Err(e) = self.log.reserve(Log::cost(&data) + SPARE) {
            refuse(reply, e.to_string());
            return false;
        }
        self.next_proposal += 1;
        let number = self.next_proposal;
        match self.raw.propose(number.to_le_bytes().to_vec(), data) {
            Ok(()) => {
                if let Some(reply) = reply {
                    self.waiting.insert(number, reply);
                }
                durable
            }
            Err(e) => {
                refuse(reply, e.to_string());
                false
            }
        }
    }

    /// A fresh random number: std's hasher keys are random, and a counter makes each hash another.
    fn nonce(&mut self) -> u64 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.next_proposal);
        hasher.write_u128(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()));
        hasher.finish()
    }

    fn handle_ready(&mut self, durable: bool) -> Result<(), StartError> {
        let raft = |e: raft::Error| StartError::Raft(e.to_string());
        let mut ready = self.raw.ready();
        // There is nobody to send to, and no snapshot can come.
        let _ = ready.take_messages();
        let committed = ready.take_committed_entries();
        self.apply(committed)?;
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        self.persist(&entries, hard_state.as_ref(), durable && ready.must_sync())?;
        if !entries.is_empty() {
            self.storage.wl().append(&entries).map_err(raft)?;
        }
        if let Some(hard_state) = hard_state {
            self.storage.wl().set_hardstate(hard_state);
        }
        let mut light = self.raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.storage.wl().mut_hard_state().set_commit(commit);
            self.hard_state.commit = commit;
        }
        let _ = light.take_messages();
        let committed = light.take_committed_entries();
        self.apply(committed)?;
        self.raw.advance_apply();
        Ok(())
    }

    fn persist(&mut self, entries: &[Entry], hard_state: Option<&HardState>, sync: bool) -> Result<(), LogError> {
        let mut records: Vec<(Kind, Vec<u8>)> = entries.iter().map(|e| (Kind::Entry, stored(e))).collect();
        if let Some(hs) = hard_state {
            self.hard_state = StoredHardState { term: hs.term, vote: hs.vote, commit: hs.commit };
            records.push((Kind::HardState, encode(&self.hard_state)));
        }
        if records.is_empty() {
            return Ok(());
        }
        self.log.append(records.iter().map(|(kind, payload)| (*kind, payload.as_slice())), sync)
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), StartError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut changes = Changes::default();
        let mut replies = Vec::new();
        {
            let shared = self.shared.clone();
            let mut state = shared.state.write().unwrap_or_else(PoisonError::into_inner);
            for entry in entries {
                self.applied = (entry.index, entry.term);
                if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
                    state.skip(entry.index);
                    continue;
                }
                let command: CoreEntry = serde_json::from_slice(&entry.data)
                    .map_err(|e| StartError::Entry(format!("entry {}: {e}", entry.index)))?;
                let outcome = state.apply(entry.index, &command);
                changes.merge(outcome.changes);
                let number = entry.context.as_ref().try_into().map(u64::from_le_bytes).ok();
                if let Some(reply) = number.and_then(|number| self.waiting.remove(&number)) {
                    replies
                        .push((reply, outcome.result.map(|answer| (entry.index, answer)).map_err(ProposeError::from)));
                }
            }
            if !changes.is_empty() {
                self.assignments.refresh(&state, &changes);
            }
        }
        if !changes.is_empty() {
            let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
            nodes.iter().for_each(|node| self.publish_to(node));
        }
        self.shared.applied.send_replace(self.applied.0);
        for (reply, result) in replies {
            let _ = reply.send(result);
        }
        Ok(())
    }

    fn publish_to(&mut self, node: &NodeId) {
        let Some(sender) = self.nodes.get(node) else { return };
        let assignment = {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            // A node that has never said what it is has nothing to run.
            if !state.nodes.contains_key(node) {
                return;
            }
            self.assignments.of(&state, node)
        };
        // Most reports of a node change nothing for it: it is not woken for them.
        sender.send_if_modified(|told| {
            let same = told.version > 0 && Assignment { version: assignment.version, ..(**told).clone() } == assignment;
            if !same {
                *told = Arc::new(assignment);
            }
            !same
        });
    }

    fn compact_when_large(&mut self) {
        if self.log.size() < self.compact_at {
            return;
        }
        let (index, term) = self.applied;
        let snapshot = {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            encode(&Snapshot { index, term, state: state.clone() })
        };
        let hard_state = encode(&self.hard_state);
        match self.log.compact(&snapshot, [(Kind::HardState, hard_state.as_slice())]) {
            Ok(()) => {
                // A state that is large by itself must not be written again and again.
                self.compact_at = COMPACT_AT.max(4 * snapshot.len() as u64);
                if let Err(e) = self.storage.wl().compact(index) {
                    tracing::warn!(error = %e, "entries in memory stay until the next snapshot");
                }
                tracing::info!(index, bytes = snapshot.len(), "snapshot taken");
            }
            // The old log goes on. Tried again when it has grown by as much again, not with every batch: the disk may be full.
            Err(e) => {
                self.compact_at = self.log.size() + COMPACT_AT;
                tracing::warn!(error = chain(&e), "no snapshot could be taken");
            }
        }
    }
}

/// The id of the cluster whose log this is; made with the log. It is no property of the node: a log that was lost comes back as another
/// cluster's, and what the lost one had started is not its to remove.
fn cluster_id(log: &mut Log, records: &[Record]) -> Result<String, LogError> {
    if let Some(record) = records.iter().find(|record| record.kind == Kind::Cluster) {
        return Ok(String::from_utf8_lossy(&record.payload).into_owned());
    }
    let random = || RandomState::new().build_hasher().finish();
    let id = format!("{:016x}{:016x}", random(), random());
    log.append([(Kind::Cluster, id.as_bytes())], true)?;
    Ok(id)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Our own types: they always serialise.
fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("types with text keys and finite numbers serialise")
}

fn stored(entry: &Entry) -> Vec<u8> {
    let data = std::str::from_utf8(&entry.data).ok().filter(|text| !text.is_empty());
    let data = data.and_then(|text| serde_json::value::RawValue::from_string(text.to_owned()).ok());
    encode(&StoredEntry { index: entry.index, term: entry.term, data })
}

/// Entries after the snapshot, and the last hard state. A later record of the same index replaces the earlier ones from there on, as raft
/// has it; a commit beyond what is there is taken back to it.
fn replay(records: &[Record], index: u64, term: u64) -> Result<(Vec<Entry>, StoredHardState), serde_json::Error> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut hard_state = StoredHardState { term, vote: 0, commit: index };
    for record in records {
        match record.kind {
            Kind::HardState => hard_state = serde_json::from_slice(&record.payload)?,
            Kind::Mark | Kind::Cluster | Kind::Sealed => {}
            Kind::Entry => {
                let stored: StoredEntry = serde_json::from_slice(&record.payload)?;
                if stored.index <= index {
                    continue;
                }
                entries.retain(|e| e.index < stored.index);
                let data = stored.data.map(|raw| raw.get().as_bytes().to_vec()).unwrap_or_default();
                entries.push(Entry { index: stored.index, term: stored.term, data: data.into(), ..Entry::default() });
            }
        }
    }
    let last = entries.last().map_or(index, |e| e.index);
    hard_state.commit = hard_state.commit.clamp(index, last);
    hard_state.term = entries.last().map_or(hard_state.term, |e| hard_state.term.max(e.term));
    Ok((entries, hard_state))
}
