//! The log store in one redb database.
//!
//! redb verifies the checksums of its pages only when it is asked to, so opening asks; every value carries a checksum of its own besides.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Durability, HardState, Identity, Loaded, LogStore, Record, Snapshot, StoreError};

/// Index → checksum and entry.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Name → checksum and value: `identity`, `hard_state`, `snapshot`.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Changes with every incompatible change of what the values mean.
const FORMAT: u64 = 1;
/// Memory for pages. The log is read at start only; what is written is small.
const CACHE: usize = 4 << 20;

/// Opens the database; again after an error.
type Opener = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send>;

/// See the module.
pub struct RedbStore {
    path: PathBuf,
    open: Opener,
    database: Option<Database>,
    identity: Identity,
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RedbStore {
    /// Opens the store in this file, or makes it with the identity that `make` gives.
    ///
    /// # Errors
    /// The disk, damage, or another process that has it.
    pub fn open(path: &Path, make: impl FnOnce() -> Identity) -> Result<Self, StoreError> {
        // It holds secrets: nobody else may read it, from the first byte on.
        let made = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
        made.map_err(|source| disk(path, "opened", source))?;
        let file = path.to_owned();
        let opener = move || redb::Builder::new().set_cache_size(CACHE).create(&file);
        Self::with_opener(path, Box::new(opener), make)
    }

    /// The same on storage of the caller's.
    ///
    /// # Errors
    /// See [`RedbStore::open`].
    pub fn open_with<B: redb::StorageBackend>(
        name: &Path,
        backend: impl Fn() -> B + Send + 'static,
        make: impl FnOnce() -> Identity,
    ) -> Result<Self, StoreError> {
        let opener = move || redb::Builder::new().set_cache_size(CACHE).create_with_backend(backend());
        Self::with_opener(name, Box::new(opener), make)
    }

    fn with_opener(path: &Path, open: Opener, make: impl FnOnce() -> Identity) -> Result<Self, StoreError> {
        let mut store = Self { path: path.to_owned(), open, database: None, identity: Identity::default() };
        store.reopen()?;
        match store.read_identity()? {
            Some(identity) => store.identity = identity,
            None => {
                store.identity = make();
                store.write_identity()?;
            }
        }
        Ok(store)
    }

    fn database(&self) -> Result<&Database, StoreError> {
        self.database
            .as_ref()
            .ok_or_else(|| disk(&self.path, "used", std::io::Error::other("it was closed after an error")))
    }

    fn read_identity(&self) -> Result<Option<Identity>, StoreError> {
        let read = self.database()?.begin_read().map_err(|e| self.error("read", e.into()))?;
        let table = match read.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(self.error("read", e.into())),
        };
        let Some(bytes) = self.get(&table, "identity")? else { return Ok(None) };
        let mut reader = Reader { path: &self.path, what: "identity", bytes: &bytes };
        let found = reader.u64()?;
        if found != FORMAT {
            return Err(StoreError::Format { path: self.path.clone(), found, known: FORMAT });
        }
        let replica = reader.u64()?;
        let cluster = String::from_utf8_lossy(reader.bytes).into_owned();
        Ok(Some(Identity { cluster, replica }))
    }

    fn write_identity(&self) -> Result<(), StoreError> {
        let mut bytes = FORMAT.to_le_bytes().to_vec();
        bytes.extend(self.identity.replica.to_le_bytes());
        bytes.extend(self.identity.cluster.as_bytes());
        self.change(Durability::Durable, |change| {
            change.open_table(LOG)?;
            change.open_table(META)?.insert("identity", sealed(&bytes).as_slice())?;
            Ok(())
        })
    }

    /// One transaction.
    fn change(
        &self,
        durability: Durability,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || -> Result<(), redb::Error> {
            let database = self.database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
            let mut change = database.begin_write()?;
            if durability == Durability::Lazy {
                change.set_durability(redb::Durability::None).map_err(redb::Error::from)?;
            }
            work(&change)?;
            change.commit()?;
            Ok(())
        };
        run().map_err(|e| self.error("written", e))
    }

    fn get(
        &self,
        table: &impl ReadableTable<&'static str, &'static [u8]>,
        name: &'static str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let found = table.get(name).map_err(|e| self.error("read", e.into()))?;
        found.map(|value| self.unsealed(name, value.value()).map(<[u8]>::to_vec)).transpose()
    }

    fn unsealed<'v>(&self, what: &str, value: &'v [u8]) -> Result<&'v [u8], StoreError> {
        let corrupt =
            || StoreError::Corrupt { path: self.path.clone(), what: format!("the checksum of {what} does not match") };
        let (sum, bytes) = value.split_at_checked(4).ok_or_else(corrupt)?;
        if sum == crc32c::crc32c(bytes).to_le_bytes() { Ok(bytes) } else { Err(corrupt()) }
    }

    fn error(&self, doing: &'static str, error: redb::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            redb::Error::Io(source) if is_full(&source) => StoreError::Full { path },
            redb::Error::Corrupted(what) => StoreError::Corrupt { path, what },
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path },
            other => disk(&path, doing, other),
        }
    }
}

impl LogStore for RedbStore {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let read = self.database()?.begin_read().map_err(|e| self.error("read", e.into()))?;
        let meta = read.open_table(META).map_err(|e| self.error("read", e.into()))?;
        let log = read.open_table(LOG).map_err(|e| self.error("read", e.into()))?;
        let mut loaded = Loaded::default();
        if let Some(bytes) = self.get(&meta, "hard_state")? {
            let mut reader = Reader { path: &self.path, what: "hard state", bytes: &bytes };
            loaded.hard_state = HardState { term: reader.u64()?, vote: reader.u64()?, commit: reader.u64()? };
        }
        if let Some(bytes) = self.get(&meta, "snapshot")? {
            loaded.snapshot = Some(snapshot_of(&self.path, &bytes)?);
        }
        for row in log.iter().map_err(|e| self.error("read", e.into()))? {
            let (index, value) = row.map_err(|e| self.error("read", e.into()))?;
            let index = index.value();
            let bytes = self.unsealed(&format!("entry {index}"), value.value())?;
            loaded.records.push(record_of(&self.path, index, bytes)?);
        }
        let gap = loaded.records.windows(2).find(|pair| pair[1].index != pair[0].index + 1);
        if let Some(pair) = gap {
            let what = format!("entry {} is followed by entry {}", pair[0].index, pair[1].index);
            return Err(StoreError::Corrupt { path: self.path.clone(), what });
        }
        Ok(loaded)
    }

    fn append(
        &mut self,
        records: &[Record],
        hard_state: Option<HardState>,
        durability: Durability,
    ) -> Result<(), StoreError> {
        self.change(durability, |change| {
            if let Some(first) = records.first() {
                let mut log = change.open_table(LOG)?;
                // A new leader's entries replace what an old one wrote and could not commit.
                log.retain_in(first.index.., |_, _| false)?;
                for record in records {
                    log.insert(record.index, bytes_of(record).as_slice())?;
                }
            }
            if let Some(state) = hard_state {
                let mut bytes = state.term.to_le_bytes().to_vec();
                bytes.extend(state.vote.to_le_bytes());
                bytes.extend(state.commit.to_le_bytes());
                change.open_table(META)?.insert("hard_state", sealed(&bytes).as_slice())?;
            }
            Ok(())
        })
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.change(Durability::Durable, |_| Ok(()))
    }

    fn keep_snapshot(&mut self, snapshot: &Snapshot, first: u64) -> Result<(), StoreError> {
        self.change(Durability::Durable, |change| {
            let mut bytes = snapshot.index.to_le_bytes().to_vec();
            bytes.extend(snapshot.term.to_le_bytes());
            bytes.extend((snapshot.voters.len() as u64).to_le_bytes());
            for voter in &snapshot.voters {
                bytes.extend(voter.to_le_bytes());
            }
            bytes.extend(&snapshot.state);
            change.open_table(META)?.insert("snapshot", sealed(&bytes).as_slice())?;
            change.open_table(LOG)?.retain_in(..first, |_, _| false)?;
            Ok(())
        })
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        // The lock on the file goes with the old one.
        self.database = None;
        let marker = self.path.with_extension("damaged");
        if marker.exists() {
            let what = format!("it was found damaged before; see {}", marker.display());
            return Err(StoreError::Corrupt { path: self.path.clone(), what });
        }
        let mut database = (self.open)().map_err(|e| self.error("opened", e.into()))?;
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => {
                // redb has gone back to an older state that is whole. What came after may have been acknowledged: never go on as if not.
                let what = "pages do not match their checksums".to_owned();
                let text = format!("{what}; restore a backup, or remove this file to go on with what is left\n");
                let _ = std::fs::write(&marker, text);
                return Err(StoreError::Corrupt { path: self.path.clone(), what });
            }
            Err(e) => return Err(self.error("checked", e.into())),
        }
        self.database = Some(database);
        Ok(())
    }
}

fn disk(path: &Path, doing: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Disk { path: path.to_owned(), doing, source: source.into() }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut value = crc32c::crc32c(bytes).to_le_bytes().to_vec();
    value.extend(bytes);
    value
}

/// Term, kind, length of the context, context, payload.
fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = record.term.to_le_bytes().to_vec();
    bytes.extend(record.kind.to_le_bytes());
    bytes.extend((record.context.len() as u64).to_le_bytes());
    bytes.extend(&record.context);
    bytes.extend(&record.data);
    sealed(&bytes)
}

fn record_of(path: &Path, index: u64, bytes: &[u8]) -> Result<Record, StoreError> {
    let mut reader = Reader { path, what: "entry", bytes };
    let term = reader.u64()?;
    let kind = i32::from_le_bytes(reader.take::<4>()?);
    let context = reader.u64()?;
    let context = reader.slice(context)?.to_vec();
    Ok(Record { index, term, kind, context, data: reader.bytes.to_vec() })
}

fn snapshot_of(path: &Path, bytes: &[u8]) -> Result<Snapshot, StoreError> {
    let mut reader = Reader { path, what: "snapshot", bytes };
    let (index, term, count) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let voters = (0..count).map(|_| reader.u64()).collect::<Result<_, _>>()?;
    Ok(Snapshot { index, term, voters, state: reader.bytes.to_vec() })
}

/// Takes a value apart; one that is too short is damaged.
struct Reader<'b> {
    path: &'b Path,
    what: &'static str,
    bytes: &'b [u8],
}

impl<'b> Reader<'b> {
    fn short(&self) -> StoreError {
        StoreError::Corrupt { path: self.path.to_owned(), what: format!("the {} is too short", self.what) }
    }

    fn slice(&mut self, length: u64) -> Result<&'b [u8], StoreError> {
        let length = usize::try_from(length).map_err(|_| self.short())?;
        let (head, rest) = self.bytes.split_at_checked(length).ok_or_else(|| self.short())?;
        self.bytes = rest;
        Ok(head)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let head = self.slice(N as u64)?;
        head.try_into().map_err(|_| self.short())
    }

    fn u64(&mut self) -> Result<u64, StoreError> {
        self.take::<8>().map(u64::from_le_bytes)
    }
}
