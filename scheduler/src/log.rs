//! The durable log: one append-only file of checked records, and a snapshot.
//!
//! A record is a length, a CRC-32C of what follows, a kind and a payload. The file is preallocated ahead of its end, so that an append that
//! was admitted cannot fail for want of space, and the zeros after the last record mark the end. At open the records are read up to the
//! first that is not whole: a tail that was torn by a power cut is dropped, which loses nothing that was acknowledged, since that was
//! fsynced. A damaged record *before* the last fsynced one cannot be told from a torn tail by its own bytes; what can be told is that whole
//! records follow it, and then the log is refused instead of silently shortened.
//!
//! Why not redb: an append here is one `write`, and only what must be durable costs an fsync; statuses survive a killed process without
//! one, which a database transaction that is not durable does not give.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Length, checksum and kind.
const HEAD: usize = 9;
/// Space is taken ahead in pieces of this size.
const AHEAD: u64 = 1 << 20;
/// A record is never larger: commands are bounded by the API's body limit of 8 MiB, which JSON may double.
const LARGEST: usize = 32 << 20;
/// First bytes of the file; the number is the format's.
const MAGIC: &[u8; 8] = b"orchlog1";

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A raft entry.
    Entry = 1,
    /// Raft's hard state.
    HardState = 2,
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
    /// All records, in order.
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
    /// Not a log, or one of another version.
    #[error("{path} is not a log of this version of orch")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Records in the middle are damaged.
    #[error("{path} is damaged at byte {at}: whole records follow, so this is no torn end; restore a backup or remove the file")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// An earlier fsync failed: what is on disk is not known any more (fsync(2), "Dealing with errors").
    #[error("an earlier write of {path} failed; restart the agent once its disk is well")]
    Poisoned {
        /// The log.
        path: PathBuf,
    },
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    end: u64,
    allocated: u64,
    poisoned: bool,
}

fn io<T>(doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T, LogError> {
    result.map_err(|source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogError::Full { path: path.to_owned() },
        _ => LogError::Io { doing, path: path.to_owned(), source },
    })
}

fn sync_dir(dir: &Path) -> Result<(), LogError> {
    io("sync", dir, File::open(dir).and_then(|d| d.sync_all()))
}

fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(1 + payload.len());
    body.push(kind as u8);
    body.extend_from_slice(payload);
    // Payloads are bounded by LARGEST, far below 4 GiB.
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
}

/// The record at `at`, and where the next begins; `None` when there is no whole one.
fn decode(bytes: &[u8], at: usize) -> Option<(Record, usize)> {
    let head = bytes.get(at..at + HEAD)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let checksum = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let kind = match head[8] {
        1 => Kind::Entry,
        2 => Kind::HardState,
        _ => return None,
    };
    if length > LARGEST {
        return None;
    }
    let body = bytes.get(at + 8..at + HEAD + length)?;
    (crc32c::crc32c(body) == checksum).then(|| (Record { kind, payload: body[1..].to_vec() }, at + HEAD + length))
}

impl Log {
    /// Opens the log in a directory, which is made when it is not there.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn open(dir: &Path) -> Result<(Self, Recovered), LogError> {
        io("make", dir, std::fs::create_dir_all(dir))?;
        for part in ["log.part", "snapshot.part"] {
            let _ = std::fs::remove_file(dir.join(part));
        }
        let snapshot = read_snapshot(dir)?;
        let path = dir.join("log");
        if !path.exists() {
            write_fresh(dir, &path, &[])?;
        }
        let mut file = io("open", &path, OpenOptions::new().read(true).write(true).open(&path))?;
        let mut bytes = Vec::new();
        io("read", &path, file.read_to_end(&mut bytes))?;
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(LogError::Foreign { path });
        }
        let mut records = Vec::new();
        let mut at = MAGIC.len();
        while let Some((record, next)) = decode(&bytes, at) {
            records.push(record);
            at = next;
        }
        let rest = &bytes[at..];
        let dropped = rest.iter().rposition(|b| *b != 0).map_or(0, |last| last as u64 + 1);
        if dropped > 0 {
            if let Some(found) = whole_record_after(&bytes, at) {
                tracing::error!(damaged = at, next = found, "the log is damaged");
                return Err(LogError::Damaged { path, at: at as u64 });
            }
            // Zeros again, so that what is written next cannot run into what was torn.
            let zeros = vec![0u8; rest.len()];
            io("mend", &path, file.write_all_at(&zeros, at as u64).and_then(|()| file.sync_data()))?;
        }
        io("seek", &path, file.seek(SeekFrom::Start(at as u64)))?;
        let allocated = bytes.len() as u64;
        let log = Self { dir: dir.to_owned(), path, file, end: at as u64, allocated, poisoned: false };
        Ok((log, Recovered { snapshot, records, dropped }))
    }

    /// Makes sure that so many bytes more can be appended without running out of space.
    ///
    /// # Errors
    /// [`LogError::Full`]; the log is as it was.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), LogError> {
        let needed = self.end + bytes as u64;
        if needed <= self.allocated {
            return Ok(());
        }
        let target = needed.div_ceil(AHEAD) * AHEAD;
        let length = i64::try_from(target - self.allocated).unwrap_or(i64::MAX);
        let offset = i64::try_from(self.allocated).unwrap_or(i64::MAX);
        let result = nix::fcntl::posix_fallocate(&self.file, offset, length);
        io("extend", &self.path, result.map_err(io::Error::from))?;
        self.allocated = target;
        Ok(())
    }

    /// What a record of this payload takes.
    pub fn cost(payload: &[u8]) -> usize {
        HEAD + payload.len()
    }

    /// Appends records in order; with `sync` they are on disk when this returns. After a failure nothing more is accepted: what the disk
    /// has is unknown then.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn append<'a>(&mut self, records: impl IntoIterator<Item = (Kind, &'a [u8])>, sync: bool) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned { path: self.path.clone() });
        }
        let mut out = Vec::new();
        for (kind, payload) in records {
            encode(kind, payload, &mut out);
        }
        self.reserve(out.len())?;
        let written = self.file.write_all_at(&out, self.end).and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        if written.is_err() {
            self.poisoned = true;
        }
        io("write", &self.path, written)?;
        self.end += out.len() as u64;
        Ok(())
    }

    /// Bytes of records.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Replaces everything before by a snapshot; `keep` are the records that stay. At every moment either the old or the new pair is what
    /// an open finds: the snapshot says up to which entry it counts, and older entries in the log are passed over.
    ///
    /// # Errors
    /// See [`LogError`]; the old pair stays.
    pub fn compact<'a>(&mut self, snapshot: &[u8], keep: impl IntoIterator<Item = (Kind, &'a [u8])>) -> Result<(), LogError> {
        let part = self.dir.join("snapshot.part");
        let target = self.dir.join("snapshot");
        let write = || -> io::Result<()> {
            let mut file = File::create(&part)?;
            file.write_all(&crc32c::crc32c(snapshot).to_le_bytes())?;
            file.write_all(snapshot)?;
            file.sync_all()?;
            std::fs::rename(&part, &target)
        };
        io("write", &target, write())?;
        sync_dir(&self.dir)?;
        let mut out = Vec::new();
        for (kind, payload) in keep {
            encode(kind, payload, &mut out);
        }
        let file = write_fresh(&self.dir, &self.path, &out)?;
        self.file = file;
        self.end = (MAGIC.len() + out.len()) as u64;
        self.allocated = self.end;
        Ok(())
    }
}

/// Whether a whole record begins anywhere after the break: the sign of damage, not of a torn end. Bounded by the size of the file, which
/// compaction keeps small.
fn whole_record_after(bytes: &[u8], broken: usize) -> Option<usize> {
    (broken + 1..bytes.len().saturating_sub(HEAD)).find(|at| {
        // Zeros are the usual case and cannot begin a record, whose kind is never 0.
        bytes[at + 8] != 0 && decode(bytes, *at).is_some_and(|(record, _)| !record.payload.is_empty())
    })
}

fn write_fresh(dir: &Path, path: &Path, records: &[u8]) -> Result<File, LogError> {
    let part = dir.join("log.part");
    let write = || -> io::Result<File> {
        let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&part)?;
        file.write_all(MAGIC)?;
        file.write_all(records)?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        Ok(file)
    };
    let file = io("write", path, write())?;
    sync_dir(dir)?;
    Ok(file)
}

fn read_snapshot(dir: &Path) -> Result<Option<Vec<u8>>, LogError> {
    let path = dir.join("snapshot");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return io("read", &path, Err(e)),
    };
    let Some((checksum, body)) = bytes.split_first_chunk::<4>() else { return Err(LogError::Damaged { path, at: 0 }) };
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(LogError::Damaged { path, at: 0 });
    }
    Ok(Some(body.to_vec()))
}
