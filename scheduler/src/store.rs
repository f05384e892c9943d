//! The durable side of a replica: log, hard state, snapshot.
//!
//! [`LogStore`] is what the raft driver needs of it. [`RedbStore`] keeps everything in one redb database: a change is one transaction, so
//! it is there whole or not at all, and a snapshot and the compaction that it allows cannot fall apart.

mod redb;

use std::path::PathBuf;

pub use self::redb::RedbStore;

/// One entry of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Position, from 1.
    pub index: u64,
    /// Term of the leader that wrote it.
    pub term: u64,
    /// Number of the entry's type in the raft library.
    pub kind: i32,
    /// Context that the library carries along.
    pub context: Vec<u8>,
    /// Payload.
    pub data: Vec<u8>,
}

/// What a replica must not forget between two lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest term seen.
    pub term: u64,
    /// Whom it voted for in that term; 0 = nobody.
    pub vote: u64,
    /// The highest entry known to be committed.
    pub commit: u64,
}

/// The state as it was at one index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The index.
    pub index: u64,
    /// The term of the entry at that index.
    pub term: u64,
    /// Voters at that index.
    pub voters: Vec<u64>,
    /// The state.
    pub state: Vec<u8>,
}

/// Everything that a store has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Hard state; all zero in a new store.
    pub hard_state: HardState,
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// Entries, without a gap.
    pub records: Vec<Record>,
}

/// Who a store belongs to; written once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: String,
    /// The replica's number in raft, never 0.
    pub replica: u64,
}

/// Whether a change must have reached the disk before the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It must.
    Durable,
    /// It may be lost with the power, but only together with everything that came later.
    Lazy,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space left. What was to be written is not there; what was there before is.
    #[error("no space left for the control log {path}")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The disk failed. After a failed fsync nobody knows what it holds, so nothing is tried again.
    #[error("the control log {path} could not be {doing}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// `opened`, `read`, `written`.
        doing: &'static str,
        /// What the storage said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the file holds is not what was written.
    #[error("the control log {path} is damaged: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Another process has it.
    #[error("the control log {path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Made by a version that does things differently.
    #[error("the control log {path} has format {found}; this version of orch knows format {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Ours.
        known: u64,
    },
}

impl StoreError {
    /// Whether the same may succeed later, once there is space.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// The durable side of a replica.
///
/// After an error the store is unusable until [`LogStore::reopen`].
pub trait LogStore: Send {
    /// Whom it belongs to.
    fn identity(&self) -> &Identity;

    /// Reads everything.
    ///
    /// # Errors
    /// The disk, or damage.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Writes entries, replacing any from the first one's index on, and the hard state, as one change.
    ///
    /// # Errors
    /// The disk; then none of it is there.
    fn append(
        &mut self,
        records: &[Record],
        hard_state: Option<HardState>,
        durability: Durability,
    ) -> Result<(), StoreError>;

    /// Makes lazy changes durable.
    ///
    /// # Errors
    /// The disk.
    fn flush(&mut self) -> Result<(), StoreError>;

    /// Keeps a snapshot in place of the former one and drops entries below `first`, as one durable change.
    ///
    /// # Errors
    /// The disk; then the former snapshot is there still.
    fn keep_snapshot(&mut self, snapshot: &Snapshot, first: u64) -> Result<(), StoreError>;

    /// Opens the store anew after an error.
    ///
    /// # Errors
    /// The disk, or damage.
    fn reopen(&mut self) -> Result<(), StoreError>;
}
