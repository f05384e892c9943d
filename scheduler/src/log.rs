//! The durable log: one append-only file of checked records, and a snapshot.
//!
//! A record is a length, a CRC-32C of what follows, a kind, the length of the file that was known to be durable when the record was written,
//! and a payload. The file is preallocated ahead of its end, so that an append that was admitted cannot fail for want of space, and the
//! zeros after the last record mark the end.
//!
//! At open the records are read up to the first that is not whole. Was it torn by a power cut, or damaged later? What had not been fsynced
//! may be there in any part, also with a whole record after a missing one. But a whole record anywhere behind the break which says that the
//! disk had more than the break when it was written proves damage: then the log is refused. Otherwise nothing behind the break had been
//! acknowledged, and it is dropped. So that the last batch is protected, too, an empty mark follows every fsync; only a mark that never
//! reached the disk lets damage pass for a torn end.
//!
//! Why not redb: an append here is one `write`, and only what must be durable costs an fsync; statuses survive a killed process without
//! one, which a database transaction that is not durable does not give.

use std::io;
use std::path::PathBuf;

use crate::disk::{Disk, DiskFile};
use crate::seal::Seal;

/// Length, checksum, kind, durable length.
const HEAD: usize = 17;
/// What the checksum covers begins here.
const BODY: usize = 8;
/// Space is taken ahead in pieces of this size.
const AHEAD: u64 = 1 << 20;
/// A record is never larger: commands are bounded by the API's body limit of 8 MiB, which JSON may double.
const LARGEST: usize = 32 << 20;
/// First bytes of the file; the number is the format's.
const MAGIC: &[u8; 8] = b"orchlog3";
/// The format before, which had fewer kinds. It is read, and becomes one of this by its one byte that differs: an older version must not
/// take records that it does not know for a torn end.
const FORMER_MAGIC: &[u8; 8] = b"orchlog2";
/// The log.
const LOG: &str = "log";
/// The snapshot.
const SNAPSHOT: &str = "snapshot";
/// Why the log must not be gone on with, when there is a reason.
const CONDEMNED: &str = "condemned";
/// First bytes of the snapshot, before its checksum.
const SNAPSHOT_MAGIC: &[u8; 8] = b"orchsnp1";
/// The same of one that is encrypted.
const SEALED_SNAPSHOT_MAGIC: &[u8; 8] = b"orchsnp2";
/// What a snapshot is to the seal; records have their kinds.
const SNAPSHOT_KIND: u8 = 0xff;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A raft entry, of the format before: JSON.
    Entry = 1,
    /// Raft's hard state, of the format before: JSON.
    HardState = 2,
    /// Nothing; says only how much is durable.
    Mark = 3,
    /// The cluster's id, of the format before.
    Cluster = 4,
    /// A raft entry, encrypted. Nobody but this module sees it.
    Sealed = 5,
    /// A raft entry.
    RaftEntry = 6,
    /// Raft's hard state.
    RaftState = 7,
    /// Whose log it is; in every log, the first record of a new one.
    Identity = 8,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it holds.
    pub kind: Kind,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// What was found at open.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The snapshot, when there is one.
    pub snapshot: Option<Vec<u8>>,
    /// All records, in order, without marks.
    pub records: Vec<Record>,
    /// Bytes of a torn tail that were dropped.
    pub dropped: u64,
}

/// The log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No space for more.
    #[error("the disk of {path} is full")]
    Full {
        /// The log.
        path: PathBuf,
    },
    /// Encrypted with another key.
    #[error("{path} cannot be decrypted; is `key` beside it the one that it was written with?")]
    Sealed {
        /// The file.
        path: PathBuf,
        /// What decrypting said.
        #[source]
        source: crate::seal::Broken,
    },
    /// Not a log, or one of another version.
    #[error("{path} is not a log of this version of orch")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// What had been durable is not what it was.
    #[error(
        "{path} is damaged at byte {at}: what was written later proves that the disk had it once; restore a backup or remove the file"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// This replica's state was not that of the others.
    #[error("{path} must not be gone on with: {why}")]
    Condemned {
        /// The log.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// There was a log and it is gone.
    #[error("{path} is lost: this manager must be removed from the cluster and join again")]
    Lost {
        /// The log.
        path: PathBuf,
    },
    /// An earlier write failed; after a failed fsync it is not known what the disk has (fsync(2), "Dealing with errors").
    #[error("an earlier write of {path} failed; start the agent again once its disk is well")]
    Poisoned {
        /// The log.
        path: PathBuf,
    },
}

impl LogError {
    /// Whether what was promised here is lost for good: a manager with others then takes part as another, with their state.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Condemned { .. } | Self::Lost { .. })
    }
}

/// An open log.
pub struct Log {
    disk: Box<dyn Disk>,
    file: Box<dyn DiskFile>,
    end: u64,
    durable: u64,
    allocated: u64,
    poisoned: bool,
    seal: Option<Seal>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("path", &self.disk.path(LOG)).field("end", &self.end).finish_non_exhaustive()
    }
}

fn named<T>(doing: &'static str, path: PathBuf, result: io::Result<T>) -> Result<T, LogError> {
    result.map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogError::Full { path },
        _ => LogError::Io { doing, path, source },
    })
}

/// A record as it is written: entries hold secrets, and are encrypted where there is a key.
fn sealed<'a>(seal: Option<&Seal>, kind: Kind, payload: &'a [u8]) -> (Kind, std::borrow::Cow<'a, [u8]>) {
    match (seal, kind) {
        (Some(seal), Kind::RaftEntry) => (Kind::Sealed, seal.seal(Kind::RaftEntry as u8, payload).into()),
        _ => (kind, payload.into()),
    }
}

fn encode(kind: Kind, durable: u64, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    // Payloads are bounded by LARGEST, far below 4 GiB.
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.push(kind as u8);
    out.extend_from_slice(&durable.to_le_bytes());
    out.extend_from_slice(payload);
    let checksum = checksum(&out[start..start + 4], &out[start + BODY..]);
    out[start + 4..start + BODY].copy_from_slice(&checksum.to_le_bytes());
}

/// The length belongs to what is checked: a shorter one must not make another whole record.
fn checksum(length: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(length), body)
}

/// A whole record in the file.
struct Found {
    record: Record,
    durable: u64,
    next: usize,
}

/// The record at `at`; `None` when there is no whole one.
fn decode(bytes: &[u8], at: usize) -> Option<Found> {
    let head = bytes.get(at..at + HEAD)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let expected = u32::from_le_bytes(head[4..BODY].try_into().ok()?);
    let kind = match head[8] {
        1 => Kind::Entry,
        2 => Kind::HardState,
        3 => Kind::Mark,
        4 => Kind::Cluster,
        5 => Kind::Sealed,
        6 => Kind::RaftEntry,
        7 => Kind::RaftState,
        8 => Kind::Identity,
        _ => return None,
    };
    if length > LARGEST {
        return None;
    }
    let durable = u64::from_le_bytes(head[9..HEAD].try_into().ok()?);
    let body = bytes.get(at + BODY..at + HEAD + length)?;
    let payload = body[HEAD - BODY..].to_vec();
    (checksum(&head[..4], body) == expected).then(|| Found {
        record: Record { kind, payload },
        durable,
        next: at + HEAD + length,
    })
}

impl Log {
    /// Opens the log, which is made when it is not there.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn open(disk: Box<dyn Disk>) -> Result<(Self, Recovered), LogError> {
        let path = disk.path(LOG);
        if let Some(why) = named("read", disk.path(CONDEMNED), disk.read(CONDEMNED))? {
            return Err(LogError::Condemned { path, why: String::from_utf8_lossy(&why).into_owned() });
        }
        for part in ["log.part", "snapshot.part"] {
            named("remove", disk.path(part), disk.remove(part))?;
        }
        let seal = disk.seal();
        let snapshot = read_snapshot(disk.as_ref(), seal.as_ref())?;
        let bytes = match named("read", path.clone(), disk.read(LOG))? {
            Some(bytes) => bytes,
            // A snapshot is only ever put beside a log: alone it is what is left of something.
            None if snapshot.is_some() => return Err(LogError::Damaged { path, at: 0 }),
            None => {
                write_fresh(disk.as_ref(), &[])?;
                MAGIC.to_vec()
            }
        };
        let former = bytes.get(..MAGIC.len()) == Some(FORMER_MAGIC);
        if !former && bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(LogError::Foreign { path });
        }
        let mut records = Vec::new();
        let mut at = MAGIC.len();
        let mut is_marked = true;
        while let Some(found) = decode(&bytes, at) {
            is_marked = found.record.kind == Kind::Mark;
            if !is_marked {
                records.push(opened(seal.as_ref(), found.record, &path)?);
            }
            at = found.next;
        }
        let mut file = named("open", path.clone(), disk.open(LOG))?;
        let rest = &bytes[at..];
        let dropped = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        if dropped > 0 {
            if proves_damage(&bytes, at) {
                return Err(LogError::Damaged { path, at: at as u64 });
            }
            // Zeros again, so that what is written next cannot run into what was torn.
            let zeros = vec![0_u8; rest.len()];
            named("mend", path.clone(), file.write_at(&zeros, at as u64))?;
        }
        if former {
            named("convert", path.clone(), file.write_at(MAGIC, 0))?;
        }
        // What was read may be in memory only: from here on it counts as durable, so it must be.
        named("sync", path.clone(), file.sync())?;
        let (end, allocated) = (at as u64, bytes.len() as u64);
        let mut log = Self { disk, file, end, durable: end, allocated, poisoned: false, seal };
        // The mark of the last batch may have been lost with the power. Where there is no room for it the next batch protects it.
        if !is_marked && allocated >= end + HEAD as u64 {
            named("mark", path, log.mark())?;
        }
        Ok((log, Recovered { snapshot, records, dropped }))
    }

    /// Makes sure that so many bytes more can be appended without running out of space.
    ///
    /// # Errors
    /// [`LogError::Full`]; the log is as it was.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), LogError> {
        // The mark that follows an fsync needs its room as well.
        let needed = self.end + bytes as u64 + HEAD as u64;
        if needed <= self.allocated {
            return Ok(());
        }
        let target = needed.div_ceil(AHEAD) * AHEAD;
        named("extend", self.disk.path(LOG), self.file.allocate(self.allocated, target))?;
        self.allocated = target;
        Ok(())
    }

    /// What a record of this payload takes.
    pub fn cost(payload: &[u8]) -> usize {
        HEAD + payload.len() + Seal::OVERHEAD
    }

    /// Appends records in order; with `sync` they are on disk when this returns. After a failure nothing more is accepted: what the disk
    /// has is unknown then.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn append<'a>(
        &mut self,
        records: impl IntoIterator<Item = (Kind, &'a [u8])>,
        sync: bool,
    ) -> Result<(), LogError> {
        let path = self.disk.path(LOG);
        if self.poisoned {
            return Err(LogError::Poisoned { path });
        }
        let mut out = Vec::new();
        for (kind, payload) in records {
            let (kind, payload) = sealed(self.seal.as_ref(), kind, payload);
            encode(kind, self.durable, &payload, &mut out);
        }
        self.reserve(out.len())?;
        let mut write = || -> io::Result<()> {
            self.file.write_at(&out, self.end)?;
            self.end += out.len() as u64;
            if sync {
                self.file.sync()?;
                self.durable = self.end;
                self.mark()?;
            }
            Ok(())
        };
        let written = write();
        self.poisoned = written.is_err();
        named("write", path, written)
    }

    /// Says behind what is durable that it is.
    fn mark(&mut self) -> io::Result<()> {
        let mut mark = Vec::new();
        encode(Kind::Mark, self.durable, &[], &mut mark);
        self.file.write_at(&mark, self.end)?;
        self.end += mark.len() as u64;
        Ok(())
    }

    /// Notes why this log must not be gone on with: no open takes it any more.
    ///
    /// # Errors
    /// The system's.
    pub fn condemn(&self, why: &str) -> Result<(), LogError> {
        let write = || -> io::Result<()> {
            let mut file = self.disk.create("condemned.part")?;
            file.write_at(why.as_bytes(), 0)?;
            file.sync()?;
            self.disk.rename("condemned.part", CONDEMNED)?;
            self.disk.sync_names()
        };
        named("write", self.disk.path(CONDEMNED), write())
    }

    /// Whether an append or a compaction has failed, so that the log takes nothing more.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Where it is.
    pub fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    /// Bytes that can be appended for certain.
    pub fn room(&self) -> u64 {
        self.allocated.saturating_sub(self.end + HEAD as u64)
    }

    /// Bytes of records.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Replaces everything before by a snapshot; `keep` are the records that stay. At every moment either the old or the new pair is what
    /// an open finds: the snapshot says up to which entry it counts, and older entries in the log are passed over.
    ///
    /// # Errors
    /// See [`LogError`]; the old pair stays, unless the log is poisoned.
    pub fn compact<'a>(
        &mut self,
        snapshot: &[u8],
        keep: impl IntoIterator<Item = (Kind, &'a [u8])>,
    ) -> Result<(), LogError> {
        let (magic, snapshot) = match &self.seal {
            Some(seal) => (SEALED_SNAPSHOT_MAGIC, std::borrow::Cow::Owned(seal.seal(SNAPSHOT_KIND, snapshot))),
            None => (SNAPSHOT_MAGIC, snapshot.into()),
        };
        let write = || -> io::Result<()> {
            let mut head = magic.to_vec();
            head.extend_from_slice(&crc32c::crc32c(&snapshot).to_le_bytes());
            let mut file = self.disk.create("snapshot.part")?;
            file.write_at(&head, 0)?;
            file.write_at(&snapshot, head.len() as u64)?;
            file.sync()?;
            self.disk.rename("snapshot.part", SNAPSHOT)?;
            self.disk.sync_names()
        };
        named("write", self.disk.path(SNAPSHOT), write())?;
        let mut out = Vec::new();
        for (kind, payload) in keep {
            let (kind, payload) = sealed(self.seal.as_ref(), kind, payload);
            encode(kind, 0, &payload, &mut out);
        }
        // The file gets its name when it is durable as a whole, so it may say so itself.
        let whole = (MAGIC.len() + out.len()) as u64;
        encode(Kind::Mark, whole, &[], &mut out);
        match write_fresh(self.disk.as_ref(), &out) {
            Ok(file) => self.file = file,
            Err(Unfinished { error, renamed }) => {
                // The name may be the new file's while this handle is the old one's: what is written here then is nowhere.
                self.poisoned = renamed;
                return Err(error);
            }
        }
        self.end = (MAGIC.len() + out.len()) as u64;
        self.durable = self.end;
        self.allocated = self.end;
        Ok(())
    }
}

/// Whether something behind the break shows that the bytes at the break had been durable once.
fn proves_damage(bytes: &[u8], broken: usize) -> bool {
    (broken + 1..bytes.len().saturating_sub(HEAD - 1)).any(|at| {
        // Zeros are the usual case and cannot begin a record, whose kind is never 0.
        bytes[at + 8] != 0 && decode(bytes, at).is_some_and(|found| found.durable > broken as u64)
    })
}

/// A fresh log that could not be put in place.
struct Unfinished {
    error: LogError,
    /// It may have the name already.
    renamed: bool,
}

impl From<Unfinished> for LogError {
    fn from(unfinished: Unfinished) -> Self {
        unfinished.error
    }
}

fn write_fresh(disk: &dyn Disk, records: &[u8]) -> Result<Box<dyn DiskFile>, Unfinished> {
    let path = || disk.path(LOG);
    let write = || -> io::Result<Box<dyn DiskFile>> {
        let mut file = disk.create("log.part")?;
        file.write_at(MAGIC, 0)?;
        file.write_at(records, MAGIC.len() as u64)?;
        file.sync()?;
        Ok(file)
    };
    let file = named("write", path(), write()).map_err(|error| Unfinished { error, renamed: false })?;
    let rename = disk.rename("log.part", LOG).and_then(|()| disk.sync_names());
    named("rename", path(), rename).map_err(|error| Unfinished { error, renamed: true })?;
    Ok(file)
}

/// A record as it was before it was encrypted.
fn opened(seal: Option<&Seal>, record: Record, path: &std::path::Path) -> Result<Record, LogError> {
    if record.kind != Kind::Sealed {
        return Ok(record);
    }
    let plain = seal.ok_or(crate::seal::Broken).and_then(|seal| seal.open(Kind::RaftEntry as u8, &record.payload));
    let payload = plain.map_err(|source| LogError::Sealed { path: path.to_owned(), source })?;
    Ok(Record { kind: Kind::RaftEntry, payload })
}

fn read_snapshot(disk: &dyn Disk, seal: Option<&Seal>) -> Result<Option<Vec<u8>>, LogError> {
    let path = disk.path(SNAPSHOT);
    let Some(bytes) = named("read", path.clone(), disk.read(SNAPSHOT))? else { return Ok(None) };
    let (is_sealed, rest) = match (bytes.strip_prefix(SNAPSHOT_MAGIC), bytes.strip_prefix(SEALED_SNAPSHOT_MAGIC)) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err(LogError::Foreign { path }),
    };
    match rest.split_first_chunk::<4>() {
        Some((expected, body)) if crc32c::crc32c(body) == u32::from_le_bytes(*expected) => {
            if !is_sealed {
                return Ok(Some(body.to_vec()));
            }
            let plain = seal.ok_or(crate::seal::Broken).and_then(|seal| seal.open(SNAPSHOT_KIND, body));
            plain.map(Some).map_err(|source| LogError::Sealed { path, source })
        }
        _ => Err(LogError::Damaged { path, at: 0 }),
    }
}
