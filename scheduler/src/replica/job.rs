//! What the log is to do, as values: whoever owns the disk carries them out, one after the other.

use bytes::Bytes;

use crate::log::{Kind, Log, LogError};

/// Records, as the log takes them.
pub type Records = Vec<(Kind, Vec<u8>)>;

/// A job with its number. They are done in order, and each is reported by its number.
#[derive(Debug)]
pub struct Write {
    /// Grows by one with every job.
    pub number: u64,
    /// What to do.
    pub job: Job,
}

/// One thing to do.
#[derive(Debug)]
pub enum Job {
    /// Append records.
    Append {
        /// The records.
        records: Records,
        /// Whether they must be on disk before this counts as done.
        sync: bool,
    },
    /// Make sure that so many bytes can be appended.
    Reserve(usize),
    /// Note for ever why this log must not be gone on with.
    Condemn(String),
    /// Replace everything by a snapshot and the records that follow it. `own` says that it only saves space: when it fails, the log goes on as it was.
    Replace {
        /// The snapshot.
        snapshot: Bytes,
        /// What stays.
        keep: Records,
        /// Whether it was built here rather than received.
        own: bool,
    },
}

/// How the log is after a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can be appended for certain.
    pub room: u64,
    /// Bytes of records.
    pub size: u64,
}

impl Write {
    /// Takes another append into this one: both are done with one fsync, and reported by the later number. Gives back what does not fit.
    ///
    /// # Errors
    /// The other, when one of them is no append.
    pub fn merge(&mut self, other: Self) -> Result<(), Self> {
        match (&mut self.job, other) {
            (Job::Append { records, sync }, Self { number, job: Job::Append { records: more, sync: also } }) => {
                records.extend(more);
                *sync |= also;
                self.number = number;
                Ok(())
            }
            (_, other) => Err(other),
        }
    }

    /// Whether it is only a wish, which is over when it cannot be fulfilled.
    pub fn is_wish(&self) -> bool {
        matches!(self.job, Job::Reserve(_))
    }
}

impl Job {
    /// Does it.
    ///
    /// # Errors
    /// See [`LogError`]. After [`LogError::Full`] the same job can be done again later.
    pub fn run(&self, log: &mut Log) -> Result<Space, LogError> {
        match self {
            Self::Append { records, sync } => log.append(borrowed(records), *sync)?,
            Self::Reserve(bytes) => log.reserve(*bytes)?,
            Self::Condemn(why) => log.condemn(why)?,
            Self::Replace { snapshot, keep, own } => match log.compact(snapshot, borrowed(keep)) {
                Err(error) if *own && !log.is_poisoned() => {
                    tracing::warn!(%error, "no snapshot could be stored: the control log goes on as it was");
                }
                done => done?,
            },
        }
        Ok(Space { room: log.room(), size: log.size() })
    }

    /// Bytes that it takes from the log's room.
    pub(crate) fn cost(&self) -> u64 {
        match self {
            Self::Append { records, .. } => records.iter().map(|(_, payload)| Log::cost(payload) as u64).sum(),
            Self::Reserve(_) | Self::Condemn(_) | Self::Replace { .. } => 0,
        }
    }
}

fn borrowed(records: &Records) -> impl Iterator<Item = (Kind, &[u8])> {
    records.iter().map(|(kind, payload)| (*kind, payload.as_slice()))
}
