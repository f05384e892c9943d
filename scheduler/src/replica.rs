//! The replica: one thread that owns the raft library, the log store and the right to change the state.
//!
//! Order of one round (cluster.md §d.3, the synchronous form): take what is in the queue; `ready`; write entries and hard state, durable
//! where that matters; let the library see them; apply what is committed; answer. A proposal is answered only after its entry is applied,
//! and its entry is applied only after it is on the disk; reports of nodes may skip the disk's flush, since nodes repeat them.
//!
//! When the disk is full nothing is acknowledged; the replica goes back to what it has applied and tries again when asked. When the disk
//! fails, or the library finds itself contradicted (it panics), the replica is quarantined: it answers everything with the reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use orch_core::{Assignments, Changes, Command, Entry, Outcome, State};
use orch_spec::assignment::{Assignment, NodeId};
use raft::eraftpb;
use raft::storage::MemStorage;
use raft::{RawNode, StateRole};
use tokio::sync::{mpsc, oneshot, watch};

use crate::control::{Applied, ProposeError};
use crate::slog_bridge;
use crate::store::{Durability, HardState, Loaded, LogStore, Record, Snapshot, StoreError};

/// Proposals in the queue. One `up` is one proposal and a node has one report under way, so a full queue means a disk that stands still.
pub(crate) const QUEUE: usize = 1024;
/// Proposals that go to the disk together.
const BATCH: usize = 256;
/// Entries between two snapshots. Replaying that many takes well below a second.
const SNAPSHOT_ENTRIES: u64 = 4096;
/// Bytes of entries between two snapshots.
const SNAPSHOT_BYTES: usize = 16 << 20;
/// Entries that stay behind a snapshot, so that a member that is a little late needs no snapshot (cluster.md §d.1).
const TRAILING: u64 = 1024;
/// How long lazily written reports may wait for the next flush.
const LAZY: Duration = Duration::from_millis(200);
/// Largest entry. The API takes bodies up to 8 MiB; escaped into the log they stay below this.
const LARGEST_ENTRY: usize = 64 << 20;
/// First byte of every payload: how the rest is to be read.
const PAYLOAD_JSON: u8 = 1;

/// What the replica is asked for.
pub(crate) enum Request {
    /// Append and apply a command.
    Propose { entry: Box<Entry>, reply: oneshot::Sender<Result<Applied, ProposeError>> },
    /// A snapshot has been put into bytes.
    Snapshot(Snapshot),
    /// End.
    Stop(oneshot::Sender<()>),
}

/// What the replica shares with its handles.
pub(crate) struct Shared {
    pub(crate) core: RwLock<Core>,
    pub(crate) index: watch::Sender<u64>,
    pub(crate) nodes: Mutex<BTreeMap<NodeId, watch::Sender<Arc<Assignment>>>>,
    /// Why the replica does nothing any more.
    pub(crate) quarantine: Mutex<Option<String>>,
}

/// The state and what is derived from it.
#[derive(Default)]
pub(crate) struct Core {
    pub(crate) state: State,
    pub(crate) assignments: Assignments,
}

/// See the module.
pub(crate) struct Replica {
    shared: Arc<Shared>,
    store: Box<dyn LogStore>,
    id: u64,
    node: RawNode<MemStorage>,
    inbox: mpsc::Receiver<Request>,
    /// For the thread that makes a snapshot.
    outbox: mpsc::WeakSender<Request>,
    pending: BTreeMap<(u64, u64), oneshot::Sender<Result<Applied, ProposeError>>>,
    /// Something has been written without a flush.
    unflushed: bool,
    snapshot: Meta,
    snapshot_bytes: usize,
    is_building: bool,
    /// Index of the last entry that the state has.
    applied: u64,
}

/// Where a snapshot stands.
#[derive(Debug, Clone, Default)]
struct Meta {
    index: u64,
    term: u64,
}

/// Why a round could not be finished.
enum Halt {
    /// The disk is full: go back, and on when there is space.
    Full(StoreError),
    /// Nothing can go on.
    Fatal(String),
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        if error.is_transient() { Self::Full(error) } else { Self::Fatal(chain(&error)) }
    }
}

impl From<raft::Error> for Halt {
    fn from(error: raft::Error) -> Self {
        Self::Fatal(format!("the raft library failed: {error}"))
    }
}

/// An error and everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The state that a store holds, and the library's view of its log.
pub(crate) fn restore(store: &mut dyn LogStore) -> Result<(State, MemStorage, Loaded), StoreError> {
    let mut loaded = store.load()?;
    let damaged = |what: String| StoreError::Corrupt { path: "control log".into(), what };
    let identity = store.identity().clone();
    let state = match &loaded.snapshot {
        Some(snapshot) => serde_json::from_slice(&snapshot.state)
            .map_err(|e| damaged(format!("the snapshot is not understood: {e}")))?,
        None => State::new(identity.cluster.clone()),
    };
    let base = loaded.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
    if let Some(first) = loaded.records.first()
        && first.index > base + 1
    {
        return Err(damaged(format!("entries {} to {} are missing", base + 1, first.index - 1)));
    }
    let last = loaded.records.last().map_or(base, |record| record.index).max(base);
    if loaded.hard_state.commit > last {
        // What was lazily written has gone with the power, and the note that it was committed has not: it was the same change, so this
        // is damage, unless there is one voter, whose log is what it has.
        return Err(damaged(format!("entries {} to {} are missing at its end", last + 1, loaded.hard_state.commit)));
    }
    loaded.hard_state.commit = loaded.hard_state.commit.max(base);
    let storage = storage(&loaded, identity.replica)?;
    Ok((state, storage, loaded))
}

/// The library's view of a log.
fn storage(loaded: &Loaded, replica: u64) -> Result<MemStorage, StoreError> {
    let failed = |e: raft::Error| StoreError::Corrupt { path: "control log".into(), what: e.to_string() };
    let voters = loaded.snapshot.as_ref().map_or_else(|| vec![replica], |snapshot| snapshot.voters.clone());
    let storage = MemStorage::new();
    if let Some(snapshot) = &loaded.snapshot {
        let mut message = eraftpb::Snapshot::default();
        message.mut_metadata().index = snapshot.index;
        message.mut_metadata().term = snapshot.term;
        message.mut_metadata().mut_conf_state().voters = voters.clone();
        storage.wl().apply_snapshot(message).map_err(failed)?;
    } else {
        storage.wl().set_conf_state(eraftpb::ConfState { voters, ..Default::default() });
    }
    let base = loaded.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
    let entries: Vec<eraftpb::Entry> =
        loaded.records.iter().filter(|record| record.index > base).map(entry_of).collect::<Result<_, _>>()?;
    storage.wl().append(&entries).map_err(failed)?;
    let mut hard = eraftpb::HardState::default();
    hard.term = loaded.hard_state.term.max(loaded.snapshot.as_ref().map_or(0, |snapshot| snapshot.term));
    hard.vote = loaded.hard_state.vote;
    hard.commit = loaded.hard_state.commit;
    storage.wl().set_hardstate(hard);
    Ok(storage)
}

fn entry_of(record: &Record) -> Result<eraftpb::Entry, StoreError> {
    use raft::eraftpb::EntryType::{EntryConfChange, EntryConfChangeV2, EntryNormal};
    let kind = [EntryNormal, EntryConfChange, EntryConfChangeV2].into_iter().find(|kind| *kind as i32 == record.kind);
    let Some(kind) = kind else {
        let what = format!("entry {} is of an unknown type {}", record.index, record.kind);
        return Err(StoreError::Corrupt { path: "control log".into(), what });
    };
    let mut entry = eraftpb::Entry::default();
    entry.set_entry_type(kind);
    entry.index = record.index;
    entry.term = record.term;
    entry.context = record.context.clone().into();
    entry.data = record.data.clone().into();
    Ok(entry)
}

fn record_of(entry: &eraftpb::Entry) -> Record {
    Record {
        index: entry.index,
        term: entry.term,
        kind: entry.get_entry_type() as i32,
        context: entry.context.to_vec(),
        data: entry.data.to_vec(),
    }
}

/// The library's settings (cluster.md §d.4): 50 ms ticks, so heartbeats every 100 ms and elections after 1–2 s.
fn config(id: u64, applied: u64) -> raft::Config {
    raft::Config {
        id,
        applied,
        election_tick: 20,
        heartbeat_tick: 2,
        check_quorum: true,
        pre_vote: true,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        max_uncommitted_size: 64 << 20,
        max_committed_size_per_ready: 4 << 20,
        batch_append: true,
        ..raft::Config::default()
    }
}

impl Replica {
    /// A replica on what the store holds. The state that `shared` has must be the one that [`restore`] gave.
    pub(crate) fn new(
        shared: Arc<Shared>,
        store: Box<dyn LogStore>,
        storage: MemStorage,
        loaded: &Loaded,
        inbox: mpsc::Receiver<Request>,
        outbox: mpsc::WeakSender<Request>,
    ) -> Result<Self, raft::Error> {
        let id = store.identity().replica;
        let base = loaded
            .snapshot
            .as_ref()
            .map_or_else(Meta::default, |snapshot| Meta { index: snapshot.index, term: snapshot.term });
        let node = RawNode::new(&config(id, base.index), storage, &slog_bridge::logger())?;
        Ok(Self {
            shared,
            store,
            id,
            node,
            inbox,
            outbox,
            pending: BTreeMap::new(),
            unflushed: false,
            applied: base.index,
            snapshot: base,
            snapshot_bytes: 0,
            is_building: false,
        })
    }

    /// Becomes leader and applies the whole log.
    pub(crate) fn lead(&mut self) -> Result<(), String> {
        let led = self.node.campaign().map_err(Halt::from).and_then(|()| self.work());
        match led {
            Ok(()) if self.node.raft.state == StateRole::Leader => Ok(()),
            Ok(()) => Err("the only voter did not become leader".to_owned()),
            Err(Halt::Full(error)) => Err(chain(&error)),
            Err(Halt::Fatal(reason)) => Err(reason),
        }
    }

    /// The replica's thread. Ends with the last handle, or when asked.
    pub(crate) fn run(mut self, runtime: &tokio::runtime::Handle) {
        loop {
            let wait = if self.unflushed {
                let next = runtime.block_on(async { tokio::time::timeout(LAZY, self.inbox.recv()).await });
                next.map_or(Wait::Idle, |next| next.map_or(Wait::Over, Wait::Next))
            } else {
                self.inbox.blocking_recv().map_or(Wait::Over, Wait::Next)
            };
            let first = match wait {
                Wait::Next(request) => request,
                Wait::Over => break,
                Wait::Idle => {
                    match self.store.flush() {
                        Ok(()) => self.unflushed = false,
                        Err(error) => self.halt(error.into()),
                    }
                    continue;
                }
            };
            let mut stopped = None;
            self.take(first, &mut stopped);
            for _ in 1..BATCH {
                match self.inbox.try_recv() {
                    Ok(request) => self.take(request, &mut stopped),
                    Err(_) => break,
                }
            }
            if let Err(halt) = self.work() {
                self.halt(halt);
            }
            self.maybe_snapshot();
            if let Some(reply) = stopped {
                self.finish();
                let _ = reply.send(());
                return;
            }
        }
        self.finish();
    }

    fn finish(&mut self) {
        if self.unflushed
            && let Err(error) = self.store.flush()
        {
            tracing::warn!(
                error = chain(&error),
                "the control log's end could not be written; nodes will repeat what was in it"
            );
        }
    }

    fn take(&mut self, request: Request, stopped: &mut Option<oneshot::Sender<()>>) {
        match request {
            Request::Propose { entry, reply } => self.propose(&entry, reply),
            Request::Snapshot(snapshot) => self.keep_snapshot(&snapshot),
            Request::Stop(reply) => *stopped = Some(reply),
        }
    }

    fn propose(&mut self, entry: &Entry, reply: oneshot::Sender<Result<Applied, ProposeError>>) {
        if let Some(reason) = self.quarantined() {
            let _ = reply.send(Err(ProposeError::Quarantined { reason }));
            return;
        }
        if self.node.raft.state != StateRole::Leader
            && let Err(error) = self.recover()
        {
            let _ = reply.send(Err(error));
            return;
        }
        let mut data = vec![PAYLOAD_JSON];
        if let Err(error) = serde_json::to_writer(&mut data, entry) {
            let _ = reply.send(Err(ProposeError::Encode { reason: error.to_string() }));
            return;
        }
        if data.len() > LARGEST_ENTRY {
            let _ = reply.send(Err(ProposeError::TooLarge { size: data.len(), limit: LARGEST_ENTRY }));
            return;
        }
        // The context says whether the entry must be flushed; the library carries it along unread.
        let context =
            if matches!(entry.command, Command::Report { .. } | Command::Tick) { b"lazy".to_vec() } else { Vec::new() };
        match self.node.propose(context, data) {
            Ok(()) => {
                let place = (self.node.raft.term, self.node.raft.raft_log.last_index());
                self.pending.insert(place, reply);
            }
            Err(_) => {
                let _ = reply.send(Err(ProposeError::Busy));
            }
        }
    }

    /// Does what the library has ready, until it has nothing.
    fn work(&mut self) -> Result<(), Halt> {
        let mut changes = Changes::default();
        let result = self.rounds(&mut changes);
        self.publish(&changes);
        result
    }

    fn rounds(&mut self, changes: &mut Changes) -> Result<(), Halt> {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            if !ready.snapshot().is_empty() {
                return Err(Halt::Fatal("a snapshot came, and there is nobody to send one".to_owned()));
            }
            self.persist(ready.entries(), ready.hs())?;
            let storage = self.node.store().clone();
            storage.wl().append(ready.entries())?;
            if let Some(hard) = ready.hs() {
                storage.wl().set_hardstate(hard.clone());
            }
            let committed = ready.take_committed_entries();
            self.apply(committed, changes)?;
            let mut light = self.node.advance(ready);
            if let Some(commit) = light.commit_index() {
                // Not written by itself: a voter that is alone has committed whatever its log holds.
                storage.wl().mut_hard_state().commit = commit;
            }
            let committed = light.take_committed_entries();
            self.apply(committed, changes)?;
            self.node.advance_apply();
        }
        Ok(())
    }

    fn persist(&mut self, entries: &[eraftpb::Entry], hard: Option<&eraftpb::HardState>) -> Result<(), Halt> {
        if entries.is_empty() && hard.is_none() {
            return Ok(());
        }
        let records: Vec<Record> = entries.iter().map(record_of).collect();
        let stored = self.node.store().rl().hard_state().clone();
        // Only the commit index has moved: an alone voter finds it again.
        let is_vote = hard.is_some_and(|hard| hard.term != stored.term || hard.vote != stored.vote);
        let hard_state = hard.map(|hard| HardState {
            term: hard.term,
            vote: hard.vote,
            // Never beyond what is written with it or before it.
            commit: hard.commit.min(records.last().map_or(hard.commit, |last| last.index)),
        });
        let is_lazy = !is_vote && records.iter().all(|record| record.context == b"lazy");
        let durability = if is_lazy { Durability::Lazy } else { Durability::Durable };
        self.store.append(&records, hard_state, durability)?;
        self.unflushed = match durability {
            Durability::Lazy => true,
            // A durable change takes along everything before it.
            Durability::Durable => false,
        };
        Ok(())
    }

    fn apply(&mut self, entries: Vec<eraftpb::Entry>, changes: &mut Changes) -> Result<(), Halt> {
        if entries.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let mut core = shared.core.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            if entry.index <= core.state.index {
                continue;
            }
            self.applied = entry.index;
            self.snapshot_bytes += entry.data.len();
            if entry.get_entry_type() != eraftpb::EntryType::EntryNormal || entry.data.is_empty() {
                core.state.skip(entry.index);
                continue;
            }
            let decoded = decode(&entry.data)
                .map_err(|e| Halt::Fatal(format!("entry {} is not understood: {e}", entry.index)))?;
            let Outcome { result, changes: touched } = core.state.apply(entry.index, &decoded);
            changes.merge(touched);
            if let Some(reply) = self.pending.remove(&(entry.term, entry.index)) {
                let index = entry.index;
                let answer = result.map(|answer| Applied { index, answer }).map_err(ProposeError::Refused);
                let _ = reply.send(answer);
            }
        }
        Ok(())
    }

    /// Tells nodes and readers what has changed; once for a whole batch.
    fn publish(&self, changes: &Changes) {
        let index = {
            let mut core = self.shared.core.write().unwrap_or_else(PoisonError::into_inner);
            let Core { state, assignments } = &mut *core;
            assignments.refresh(state, changes);
            state.index
        };
        if !changes.is_empty() {
            self.shared.push_assignments();
        }
        self.shared.index.send_if_modified(|known| std::mem::replace(known, index) != index);
    }

    fn quarantined(&self) -> Option<String> {
        self.shared.quarantine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A round failed: nothing that was not applied is acknowledged.
    fn halt(&mut self, halt: Halt) {
        let error = |halt: &Halt| match halt {
            Halt::Full(error) => ProposeError::DiskFull { reason: chain(error) },
            Halt::Fatal(reason) => ProposeError::Quarantined { reason: reason.clone() },
        };
        for (_, reply) in std::mem::take(&mut self.pending) {
            let _ = reply.send(Err(error(&halt)));
        }
        match halt {
            Halt::Full(error) => {
                tracing::error!(
                    error = chain(&error),
                    "the control log cannot be written; changes are refused until there is space"
                );
                if let Err(reason) = self.go_back() {
                    self.shared.set_quarantine(reason);
                }
            }
            Halt::Fatal(reason) => self.shared.set_quarantine(reason),
        }
    }

    /// A library that knows exactly what has been applied, and is no leader.
    fn go_back(&mut self) -> Result<(), String> {
        let (applied, base) = (self.applied, self.node.store().rl().hard_state().clone());
        let kept: Vec<Record> = self.memory_log().into_iter().filter(|record| record.index <= applied).collect();
        let snapshot =
            Snapshot { index: self.snapshot.index, term: self.snapshot.term, voters: vec![self.id], state: Vec::new() };
        let loaded = Loaded {
            hard_state: HardState { term: base.term, vote: base.vote, commit: applied },
            snapshot: Some(snapshot).filter(|snapshot| snapshot.index > 0),
            records: kept,
        };
        let storage = storage(&loaded, self.id).map_err(|e| chain(&e))?;
        self.node =
            RawNode::new(&config(self.id, applied), storage, &slog_bridge::logger()).map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Entries that the library's storage has.
    fn memory_log(&self) -> Vec<Record> {
        use raft::Storage;
        let storage = self.node.store();
        let (first, last) = (storage.first_index().unwrap_or(1), storage.last_index().unwrap_or(0));
        let context = raft::GetEntriesContext::empty(false);
        let entries = storage.entries(first, last + 1, None, context).unwrap_or_default();
        entries.iter().map(record_of).collect()
    }

    /// After the disk was full: opens the store anew, writes again what is applied but may be lost, and leads.
    fn recover(&mut self) -> Result<(), ProposeError> {
        let full = |error: StoreError| match error.is_transient() {
            true => ProposeError::DiskFull { reason: chain(&error) },
            false => ProposeError::Quarantined { reason: chain(&error) },
        };
        self.store.reopen().map_err(full)?;
        let stored = self.store.load().map_err(full)?;
        let last = stored.records.last().map_or(self.snapshot.index, |record| record.index);
        let missing: Vec<Record> = self.memory_log().into_iter().filter(|record| record.index > last).collect();
        self.store.append(&missing, None, Durability::Durable).map_err(full)?;
        self.unflushed = false;
        match self.node.campaign().map_err(Halt::from).and_then(|()| self.work()) {
            Ok(()) => {
                tracing::info!("the control log can be written again");
                Ok(())
            }
            Err(Halt::Full(error)) => {
                let refused = ProposeError::DiskFull { reason: chain(&error) };
                self.halt(Halt::Full(error));
                Err(refused)
            }
            Err(Halt::Fatal(reason)) => {
                self.halt(Halt::Fatal(reason.clone()));
                Err(ProposeError::Quarantined { reason })
            }
        }
    }

    /// Starts a snapshot when the log has grown enough; its bytes are made on a thread of their own.
    fn maybe_snapshot(&mut self) {
        let grown = self.applied - self.snapshot.index;
        if self.is_building
            || (grown < SNAPSHOT_ENTRIES && self.snapshot_bytes < SNAPSHOT_BYTES)
            || self.quarantined().is_some()
        {
            return;
        }
        use raft::Storage;
        let Ok(term) = self.node.store().term(self.applied) else { return };
        let Some(outbox) = self.outbox.upgrade() else { return };
        let state = self.shared.core.read().unwrap_or_else(PoisonError::into_inner).state.clone();
        let (index, voters) = (self.applied, vec![self.id]);
        let build = move || match serde_json::to_vec(&state) {
            Ok(state) => drop(outbox.blocking_send(Request::Snapshot(Snapshot { index, term, voters, state }))),
            Err(error) => tracing::error!(%error, "the state could not be put into a snapshot"),
        };
        self.is_building = std::thread::Builder::new().name("orch-snapshot".to_owned()).spawn(build).is_ok();
    }

    fn keep_snapshot(&mut self, snapshot: &Snapshot) {
        self.is_building = false;
        let first = snapshot.index.saturating_sub(TRAILING).max(1);
        match self.store.keep_snapshot(snapshot, first) {
            Ok(()) => {
                self.unflushed = false;
                // The library's storage keeps its trailing entries, too.
                if let Err(error) = self.node.store().clone().wl().compact(first) {
                    tracing::debug!(%error, "nothing to compact");
                }
                self.snapshot = Meta { index: snapshot.index, term: snapshot.term };
                self.snapshot_bytes = 0;
            }
            Err(error) => self.halt(error.into()),
        }
    }
}

enum Wait {
    Next(Request),
    Idle,
    Over,
}

fn decode(data: &[u8]) -> Result<Entry, String> {
    match data.split_first() {
        Some((&PAYLOAD_JSON, rest)) => serde_json::from_slice(rest).map_err(|e| e.to_string()),
        Some((other, _)) => Err(format!("unknown encoding {other}; was it written by a newer orch?")),
        None => Err("it is empty".to_owned()),
    }
}

impl Shared {
    /// Sends every connected node what it shall be running, if that is not what it was told last.
    pub(crate) fn push_assignments(&self) {
        let core = self.core.read().unwrap_or_else(PoisonError::into_inner);
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|node, sender| {
            if sender.is_closed() {
                return false;
            }
            let next = core.assignments.of(&core.state, node);
            sender.send_if_modified(|known| {
                let same = Assignment { version: next.version, ..(**known).clone() } == next;
                if !same {
                    *known = Arc::new(next);
                }
                !same
            });
            true
        });
    }

    pub(crate) fn set_quarantine(&self, reason: String) {
        tracing::error!(reason, "the control plane is quarantined: containers go on, changes are refused");
        *self.quarantine.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        // Wakes those who wait for an index that never comes.
        self.index.send_modify(|_| {});
    }
}
