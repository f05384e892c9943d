//! The entries in memory: what raft reads.
//!
//! Everything that is in the log on disk and not yet compacted is here too, so that the library, to which any error of its storage is
//! fatal, never meets one. Why not the library's `MemStorage`: that has no room for a snapshot that is built elsewhere, keeps its entries in a
//! vector from which compaction moves every entry, and shares everything behind a lock that nobody here needs.

use std::cell::Cell;
use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::storage::{GetEntriesContext, RaftState, Storage};
use raft::{Error, StorageError};

/// What an entry takes beside its data, bytes.
const OVERHEAD: usize = 64;

/// A snapshot that followers can have.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) conf: ConfState,
    pub(crate) bytes: Bytes,
    /// Checksum of the bytes.
    pub(crate) check: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    /// Index and term of what comes before the first entry.
    before: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// What was found at the start; raft asks for it once.
    initial: (HardState, ConfState),
    pub(crate) offer: Option<Offer>,
    /// Raft wanted a snapshot for somebody, and there was none that fits.
    wanted: Cell<bool>,
}

impl Entries {
    pub(crate) fn new(before: (u64, u64), found: Vec<Entry>, hard_state: HardState, conf: ConfState) -> Self {
        let bytes = found.iter().map(size).sum();
        Self { before, entries: found.into(), bytes, initial: (hard_state, conf), ..Self::default() }
    }

    pub(crate) fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// What the entries take, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn place(&self, index: u64) -> usize {
        usize::try_from(index - self.first()).expect("entries in memory are fewer than an address space")
    }

    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        if index < self.before.0 || index > self.last() {
            return None;
        }
        Some(self.entries[self.place(index)].term)
    }

    /// All from an index on.
    pub(crate) fn from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let skip = self.place(index.clamp(self.first(), self.last() + 1));
        self.entries.iter().skip(skip)
    }

    /// Puts entries at their place; what was there and later is gone.
    pub(crate) fn append(&mut self, new: &[Entry]) {
        let Some(first) = new.first() else { return };
        assert!(
            first.index >= self.first() && first.index <= self.last() + 1,
            "entry {} neither follows {} nor replaces one since {}",
            first.index,
            self.last(),
            self.first()
        );
        let keep = self.place(first.index);
        self.bytes -= self.entries.iter().skip(keep).map(size).sum::<usize>();
        self.entries.truncate(keep);
        self.bytes += new.iter().map(size).sum::<usize>();
        self.entries.extend(new.iter().cloned());
    }

    /// Forgets everything up to an index.
    pub(crate) fn compact(&mut self, index: u64) {
        while self.before.0 < index {
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= size(&entry);
            self.before = (entry.index, entry.term);
        }
    }

    /// Begins anew behind a snapshot.
    pub(crate) fn restart(&mut self, index: u64, term: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.before = (index, term);
        self.offer = None;
    }

    /// Whether raft wanted a snapshot since this was last asked.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.replace(false)
    }
}

fn size(entry: &Entry) -> usize {
    OVERHEAD + entry.data.len() + entry.context.len()
}

impl Storage for Entries {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.initial.0.clone(), self.initial.1.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} are wanted and the last is {}", self.last());
        let most = max_size.into().unwrap_or(u64::MAX);
        let (from, count) = (self.place(low), usize::try_from(high - low).expect("see place"));
        let mut taken = 0_u64;
        let mut found = Vec::new();
        for entry in self.entries.iter().skip(from).take(count) {
            taken += size(entry) as u64;
            if taken > most && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_of(index) {
            Some(term) => Ok(term),
            None if index < self.before.0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// A snapshot as raft sends it around: only what it is, its bytes are fetched by whoever wants them. It must be one that knows its
    /// receiver, which would not take it otherwise, and one from which our entries lead on.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |offer: &&Offer| {
            offer.index >= request_index
                && offer.index >= self.before.0
                && (offer.conf.voters.contains(&to) || offer.conf.learners.contains(&to))
        };
        let Some(offer) = self.offer.as_ref().filter(fits) else {
            self.wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = offer.index;
        snapshot.mut_metadata().term = offer.term;
        snapshot.mut_metadata().set_conf_state(offer.conf.clone());
        let mut data = (offer.bytes.len() as u64).to_le_bytes().to_vec();
        data.extend_from_slice(&offer.check.to_le_bytes());
        snapshot.data = data.into();
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 10].into(), ..Entry::default() }
    }

    fn filled() -> Entries {
        let mut entries = Entries::new((10, 1), Vec::new(), HardState::default(), ConfState::default());
        entries.append(&[entry(11, 1), entry(12, 1), entry(13, 2)]);
        entries
    }

    #[test]
    fn an_entry_that_conflicts_replaces_everything_from_there_on() {
        let mut entries = filled();
        entries.append(&[entry(12, 3)]);
        assert_eq!(entries.last(), 12);
        assert_eq!(entries.term_of(12), Some(3));
        assert_eq!(entries.term_of(13), None);
        assert_eq!(entries.bytes(), 2 * (OVERHEAD + 10));
    }

    #[test]
    fn what_is_compacted_is_gone_but_its_last_term_is_known() {
        let mut entries = filled();
        entries.compact(12);
        assert_eq!((entries.first(), entries.term_of(12), entries.term_of(11)), (13, Some(1), None));
        let context = || GetEntriesContext::empty(false);
        assert!(matches!(entries.entries(12, 14, None, context()), Err(Error::Store(StorageError::Compacted))));
        assert_eq!(entries.entries(13, 14, 0, context()).expect("one at least").len(), 1);
    }

    #[test]
    fn a_snapshot_that_does_not_know_its_receiver_is_not_sent() {
        let mut entries = filled();
        let conf = ConfState { voters: vec![1, 2], ..ConfState::default() };
        entries.offer = Some(Offer { index: 12, term: 1, conf, bytes: Bytes::from_static(b"state"), check: 1 });
        assert!(entries.snapshot(0, 2).is_ok());
        assert!(!entries.take_wanted());
        assert!(entries.snapshot(0, 3).is_err());
        assert!(entries.take_wanted(), "another must be built");
        assert!(entries.snapshot(13, 2).is_err(), "it is older than what is asked for");
    }
}
