//! How raft's data lies in the log, and what a log says at the start.

use orch_core::{Command, Entry as CoreEntry, Members, State};
use raft::eraftpb::{ConfState, Entry, HardState};
use serde::{Deserialize, Serialize};

use crate::log::{Kind, Record, Recovered};
use crate::replica::wire::{self, Reader};

/// Who a log belongs to: written before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The replica's number in raft.
    pub id: u64,
    /// The cluster's id.
    pub cluster: String,
}

/// The number of the first replica of a cluster. Others get theirs when they join.
pub const FIRST: u64 = 1;

/// What a log says.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) identity: Identity,
    /// Index and term of what comes before the entries: those of the snapshot.
    pub(crate) before: (u64, u64),
    pub(crate) state: State,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: HardState,
    /// The log has entries of another history than the snapshot: it must be replaced before anything follows them.
    pub(crate) is_stale: bool,
}

/// The log holds what this version does not understand.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Unreadable {
    /// What was read.
    pub what: String,
    /// Why it could not be.
    pub why: String,
}

fn unreadable(what: impl Into<String>, why: &dyn std::fmt::Display) -> Unreadable {
    Unreadable { what: what.into(), why: why.to_string() }
}

/// A snapshot, on disk and on the wire: JSON, so that a later version can read it.
#[derive(Debug, Serialize, Deserialize)]
struct Snapshot<S> {
    index: u64,
    term: u64,
    state: S,
}

/// The form of entries before there were several replicas.
#[derive(Debug, Deserialize)]
struct OldEntry {
    index: u64,
    term: u64,
    data: Option<Box<serde_json::value::RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
struct OldHardState {
    term: u64,
    vote: u64,
    commit: u64,
}

/// Our own types: they always serialise.
fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("types with text keys and finite numbers serialise")
}

/// The bytes of a snapshot.
pub fn encode_snapshot(index: u64, term: u64, state: &State) -> Vec<u8> {
    encode(&Snapshot { index, term, state })
}

/// Index, term and state of a snapshot.
///
/// # Errors
/// [`Unreadable`].
pub fn decode_snapshot(bytes: &[u8]) -> Result<(u64, u64, State), Unreadable> {
    let snapshot: Snapshot<State> = serde_json::from_slice(bytes).map_err(|e| unreadable("the snapshot", &e))?;
    let mut state = snapshot.state;
    state.complete_lists();
    Ok((snapshot.index, snapshot.term, state))
}

/// The bytes of a command as it goes into the log; see [`CoreEntry`].
///
/// # Errors
/// When something in it has no form in JSON.
pub fn encode_command(
    now_ms: u64,
    nonce: u64,
    request: Option<u64>,
    command: Command,
) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&CoreEntry { now_ms, time_ms: None, nonce, request, command })
}

/// The command of an entry.
///
/// # Errors
/// [`Unreadable`]: the entry was made by a later version.
pub(crate) fn decode_command(index: u64, data: &[u8]) -> Result<CoreEntry, Unreadable> {
    serde_json::from_slice(data).map_err(|e| unreadable(format!("entry {index}"), &e))
}

pub(crate) fn entry_record(entry: &Entry) -> (Kind, Vec<u8>) {
    let mut out = Vec::with_capacity(entry.data.len() + entry.context.len() + 16);
    wire::put_entry(entry, &mut out);
    (Kind::RaftEntry, out)
}

pub(crate) fn hard_state_record(hard_state: &HardState) -> (Kind, Vec<u8>) {
    let mut out = Vec::with_capacity(8);
    [hard_state.term, hard_state.vote, hard_state.commit].into_iter().for_each(|value| wire::number(value, &mut out));
    (Kind::RaftState, out)
}

/// The record that says whose log it is.
pub fn identity_record(identity: &Identity) -> (Kind, Vec<u8>) {
    (Kind::Identity, encode(identity))
}

/// The configuration that goes with a record of the members. One who has joined and has no state yet knows nobody.
pub(crate) fn conf_state(id: u64, members: &Members) -> ConfState {
    if members.managers.is_empty() && id != FIRST {
        return ConfState::default();
    }
    ConfState { voters: members.voters(), learners: members.learners(), ..ConfState::default() }
}

/// Whose log this is; `None` when it is new.
///
/// # Errors
/// [`Unreadable`].
pub fn identity_of(recovered: &Recovered) -> Result<Option<Identity>, Unreadable> {
    let of_kind = |kind: Kind| recovered.records.iter().find(|record| record.kind == kind);
    if let Some(record) = of_kind(Kind::Identity) {
        return serde_json::from_slice(&record.payload).map(Some).map_err(|e| unreadable("the identity", &e));
    }
    // Of before there were several replicas.
    if let Some(record) = of_kind(Kind::Cluster) {
        let cluster = String::from_utf8_lossy(&record.payload).into_owned();
        return Ok(Some(Identity { id: FIRST, cluster }));
    }
    let Some(snapshot) = &recovered.snapshot else { return Ok(None) };
    Ok(Some(Identity { id: FIRST, cluster: decode_snapshot(snapshot)?.2.cluster }))
}

/// Reads a log that belongs to somebody.
pub(crate) fn read(recovered: &Recovered, identity: Identity) -> Result<Found, Unreadable> {
    let (index, term, state) = match &recovered.snapshot {
        Some(bytes) => decode_snapshot(bytes)?,
        None => (0, 0, State::new(identity.cluster.clone())),
    };
    let Replayed { entries, hard_state, is_stale } = replay(&recovered.records, index, term)?;
    Ok(Found { identity, before: (index, term), state, entries, hard_state, is_stale })
}

/// What records say.
struct Replayed {
    entries: Vec<Entry>,
    hard_state: HardState,
    is_stale: bool,
}

/// Entries after the snapshot, and the last hard state.
///
/// A later record of the same index replaces the earlier ones from there on, as raft has it. A snapshot that came from the leader may have
/// been put in place while the log beside it was still that of before: when the entry at the snapshot's index has another term, what follows
/// it is of a history that has not come to pass. Such a log must be replaced before it goes on: what was written behind those entries would
/// be taken for a part of their history at the next start. A commit beyond what is there is taken back to it: that can only be what a torn
/// end took, since the log refuses to open when anything durable is missing. Entries that do not follow each other or the snapshot are
/// refused: something that was durable is gone.
fn replay(records: &[Record], index: u64, term: u64) -> Result<Replayed, Unreadable> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at_snapshot = None;
    let mut hard_state = HardState { term, commit: index, ..HardState::default() };
    for record in records {
        let entry = match record.kind {
            Kind::Mark | Kind::Cluster | Kind::Identity | Kind::Sealed => continue,
            Kind::HardState => {
                let old: OldHardState =
                    serde_json::from_slice(&record.payload).map_err(|e| unreadable("the hard state", &e))?;
                hard_state = HardState { term: old.term, vote: old.vote, commit: old.commit, ..HardState::default() };
                continue;
            }
            Kind::RaftState => {
                let mut input = Reader(record.payload.clone().into());
                let mut next = || input.number().map_err(|e| unreadable("the hard state", &e));
                hard_state = HardState { term: next()?, vote: next()?, commit: next()?, ..HardState::default() };
                continue;
            }
            Kind::Entry => {
                let old: OldEntry = serde_json::from_slice(&record.payload).map_err(|e| unreadable("an entry", &e))?;
                let data = old.data.map(|raw| raw.get().as_bytes().to_vec()).unwrap_or_default();
                Entry { index: old.index, term: old.term, data: data.into(), ..Entry::default() }
            }
            Kind::RaftEntry => {
                let mut input = Reader(record.payload.clone().into());
                wire::take_entry(&mut input).map_err(|e| unreadable("an entry", &e))?
            }
        };
        // Conflicting entries replace each other by index: what is kept is sorted, so that looking from the end is enough.
        while entries.last().is_some_and(|last| last.index >= entry.index) {
            entries.pop();
        }
        if entry.index <= index {
            at_snapshot = (entry.index == index).then_some(entry.term);
            continue;
        }
        let before = entries.last().map_or(index, |last| last.index);
        if entry.index != before + 1 {
            let why =
                format!("it follows entry {before}: what was between them is lost, and perhaps a snapshot with it");
            return Err(unreadable(format!("entry {}", entry.index), &why));
        }
        entries.push(entry);
    }
    let is_stale = at_snapshot.is_some_and(|found| found != term);
    if is_stale {
        entries.clear();
    }
    let last = entries.last().map_or((index, term), |entry| (entry.index, entry.term));
    hard_state.commit = hard_state.commit.clamp(index, last.0);
    if last.1 > hard_state.term {
        // The vote was given in the earlier term.
        hard_state.term = last.1;
        hard_state.vote = 0;
    }
    Ok(Replayed { entries, hard_state, is_stale })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{Job, Replica, Settings, Space};

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: format!("{index}.{term}").into(), ..Entry::default() }
    }

    fn record((kind, payload): (Kind, Vec<u8>)) -> Record {
        Record { kind, payload }
    }

    fn terms(records: &[Record], index: u64, term: u64) -> (Vec<(u64, u64)>, HardState) {
        let Replayed { entries, hard_state, .. } = replay(records, index, term).expect("readable");
        (entries.iter().map(|entry| (entry.index, entry.term)).collect(), hard_state)
    }

    #[test]
    fn a_later_record_of_an_index_replaces_the_earlier_and_all_behind_it() {
        let records: Vec<_> = [(1, 1), (2, 1), (3, 1), (2, 2)].map(|(i, t)| record(entry_record(&entry(i, t)))).into();
        assert_eq!(terms(&records, 0, 0).0, [(1, 1), (2, 2)]);
    }

    #[test]
    fn a_commit_beyond_a_torn_end_is_taken_back() {
        let hard_state = HardState { term: 3, vote: 2, commit: 9, ..HardState::default() };
        let records = [record(entry_record(&entry(1, 1))), record(hard_state_record(&hard_state))];
        let (_, found) = terms(&records, 0, 0);
        assert_eq!((found.term, found.vote, found.commit), (3, 2, 1));
    }

    #[test]
    fn a_vote_does_not_move_into_a_later_term() {
        let hard_state = HardState { term: 3, vote: 2, commit: 0, ..HardState::default() };
        let records = [record(hard_state_record(&hard_state)), record(entry_record(&entry(1, 4)))];
        let (_, found) = terms(&records, 0, 0);
        assert_eq!((found.term, found.vote), (4, 0));
    }

    #[test]
    fn entries_of_another_history_than_the_snapshot_are_dropped() {
        let records: Vec<_> = [(1, 1), (2, 1), (3, 1), (4, 1)].map(|(i, t)| record(entry_record(&entry(i, t)))).into();
        assert_eq!(terms(&records, 3, 1).0, [(4, 1)], "the same history goes on");
        assert_eq!(terms(&records, 3, 2).0, [], "the leader's snapshot says that entry 3 was another");
        assert_eq!(terms(&records, 7, 2).0, [], "all are older");
    }

    #[test]
    fn entries_that_do_not_follow_are_refused() {
        let records: Vec<_> = [(4, 1), (5, 1)].map(|(i, t)| record(entry_record(&entry(i, t)))).into();
        assert_eq!(terms(&records, 3, 1).0, [(4, 1), (5, 1)]);
        assert_eq!(terms(&records, 4, 1).0, [(5, 1)]);
        let Err(lost) = replay(&records, 0, 0) else { panic!("a snapshot that is gone is not missed") };
        assert!(lost.to_string().contains("entry 4"), "{lost}");
        let records: Vec<_> = [(1, 1), (3, 1)].map(|(i, t)| record(entry_record(&entry(i, t)))).into();
        assert!(replay(&records, 0, 0).is_err(), "an entry between others is gone");
    }

    /// The power went when the leader's snapshot had its name and the log beside it was still that of before, with another entry at its index.
    #[test]
    fn what_follows_a_snapshot_that_was_put_beside_a_stale_log_outlives_the_next_start() {
        let identity = Identity { id: 2, cluster: "c".to_owned() };
        let mut state = State::new("c".to_owned());
        state.skip(2);
        let snapshot = encode_snapshot(2, 3, &state);
        let stale = [(1, 1), (2, 1), (3, 1)].map(|(i, t)| record(entry_record(&entry(i, t))));
        let mut disk = Recovered { snapshot: Some(snapshot), records: stale.into(), dropped: 0 };
        let settings = || Settings {
            node: "n".into(),
            address: String::new(),
            election: (10, 11),
            nonce: 1,
            compact_at: 1 << 20,
            trailing: 0,
        };
        let space = Space { room: 1 << 20, size: 0 };
        for expected in [2, 3] {
            let (mut replica, _) = Replica::open(identity.clone(), &disk, space, settings()).expect("it opens");
            assert_eq!(replica.raft().raft_log.last_index(), expected);
            for write in replica.work().writes {
                match write.job {
                    Job::Append { records, .. } => disk.records.extend(records.into_iter().map(record)),
                    Job::Replace { snapshot, keep, .. } => {
                        disk.snapshot = Some(snapshot.to_vec());
                        disk.records = keep.into_iter().map(record).collect();
                    }
                    Job::Reserve(_) | Job::Condemn(_) => {}
                }
            }
            // The leader's next entry.
            disk.records.push(record(entry_record(&entry(3, 3))));
        }
    }

    #[test]
    fn entries_of_the_former_format_are_read() {
        let records = [
            Record { kind: Kind::Entry, payload: br#"{"index":1,"term":2,"data":{"a":1}}"#.to_vec() },
            Record { kind: Kind::HardState, payload: br#"{"term":2,"vote":1,"commit":1}"#.to_vec() },
        ];
        let Replayed { entries, hard_state, .. } = replay(&records, 0, 0).expect("readable");
        assert_eq!(entries[0].data.as_ref(), br#"{"a":1}"#);
        assert_eq!((hard_state.term, hard_state.vote, hard_state.commit), (2, 1, 1));
    }
}
