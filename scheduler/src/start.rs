//! From a disk to a replica: whose log it is, whether it may go on, and what becomes of a former one.

use std::hash::{BuildHasher, Hasher, RandomState};

use orch_core::State;

use crate::control::{Bootstrap, StartError};
use crate::disk::Disk;
use crate::log::{Log, LogError, Recovered};
use crate::replica::{FIRST, Identity, OpenError, Replica, Settings, Space, identity_of, identity_record};

/// Says as which member this disk has joined: its presence without a log proves that the log was lost.
const JOINED: &str = "joined";

/// An open log, and what it says.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub log: Log,
    /// The replica.
    pub replica: Replica,
    /// The state of the last snapshot.
    pub state: State,
    /// The term of its last entry.
    pub term: u64,
    /// Bytes of a torn tail that were dropped.
    pub dropped: u64,
}

impl StartError {
    /// Whether what was promised here is lost for good: a manager with others then takes part as another, with their state.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Log(error) if error.is_loss())
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Unreadable(unreadable) => Self::Entry(unreadable.to_string()),
            OpenError::Raft(raft) => Self::Raft(raft.to_string()),
        }
    }
}

/// Opens the log of a disk and makes the replica of it.
///
/// A log that is damaged is refused: a replica that has lost what it promised must not vote again under its number. It comes back with a new
/// one ([`Bootstrap::Join`]), and then the former log is set aside.
///
/// # Errors
/// See [`StartError`].
pub fn open(disk: Box<dyn Disk>, bootstrap: &Bootstrap, settings: Settings) -> Result<Opened, StartError> {
    let (log, recovered, identity) = match bootstrap {
        Bootstrap::Alone => {
            let (mut log, recovered) = Log::open(disk)?;
            let identity = match identity_of(&recovered).map_err(OpenError::from)? {
                Some(identity) => identity,
                None => begin(&mut log, Identity { id: FIRST, cluster: new_cluster() })?,
            };
            (log, recovered, identity)
        }
        Bootstrap::Never(cluster) => go_on(disk, &Identity { id: FIRST, cluster: cluster.clone() })?,
        Bootstrap::Join(invitation) => join(disk, Identity { id: invitation.id, cluster: invitation.cluster.clone() })?,
    };
    let space = Space { room: log.room(), size: log.size() };
    let dropped = recovered.dropped;
    let (replica, state) = Replica::open(identity, &recovered, space, settings)?;
    let term = replica.applied_term();
    Ok(Opened { log, replica, state, term, dropped })
}

fn begin(log: &mut Log, identity: Identity) -> Result<Identity, LogError> {
    let (kind, payload) = identity_record(&identity);
    log.append([(kind, payload.as_slice())], true)?;
    Ok(identity)
}

fn read(disk: &dyn Disk, name: &str) -> Result<Option<Vec<u8>>, LogError> {
    disk.read(name).map_err(|source| LogError::Io { doing: "read", path: disk.path(name), source })
}

/// The log that a member must have.
fn go_on(disk: Box<dyn Disk>, expected: &Identity) -> Result<(Log, Recovered, Identity), StartError> {
    let path = disk.path("log");
    if read(disk.as_ref(), "log")?.is_none() {
        return Err(LogError::Lost { path }.into());
    }
    let (log, recovered) = Log::open(disk)?;
    match identity_of(&recovered).map_err(OpenError::from)? {
        Some(identity) if identity == *expected => Ok((log, recovered, identity)),
        _ => Err(LogError::Foreign { path }.into()),
    }
}

/// The log of a member that has joined. The marker is written when the log is there, and before anything is promised: with the marker and
/// without the log, promises were lost.
fn join(disk: Box<dyn Disk>, invited: Identity) -> Result<(Log, Recovered, Identity), StartError> {
    let number = invited.id.to_string();
    if read(disk.as_ref(), JOINED)?.as_deref() == Some(number.as_bytes()) {
        return go_on(disk, &invited);
    }
    set_aside(disk.as_ref())?;
    let (mut log, _) = Log::open(disk)?;
    let identity = begin(&mut log, invited)?;
    let disk = log.disk();
    let part = format!("{JOINED}.part");
    let write = || {
        let mut file = disk.create(&part)?;
        file.write_at(number.as_bytes(), 0)?;
        file.sync()?;
        disk.rename(&part, JOINED)?;
        disk.sync_names()
    };
    write().map_err(|source| LogError::Io { doing: "write", path: disk.path(JOINED), source })?;
    Ok((log, Recovered::default(), identity))
}

/// Gives the files of a former membership other names. The log goes first: a snapshot without a log is never taken for anything, and what
/// condemned them is believed as long as one of them is there.
fn set_aside(disk: &dyn Disk) -> Result<(), LogError> {
    for name in ["log", "snapshot", "condemned"] {
        if read(disk, name)?.is_some() {
            tracing::warn!(file = %disk.path(name).display(), "a former control log is set aside");
            let moved = disk.rename(name, &format!("{name}.aside")).and_then(|()| disk.sync_names());
            moved.map_err(|source| LogError::Io { doing: "set aside", path: disk.path(name), source })?;
        }
    }
    Ok(())
}

/// A random number: the keys of std's hasher are random, and others each time.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The id of a cluster; made with the first log. It is no property of a node: a log that was lost comes back as another cluster's, and what
/// the lost one had started is not its to remove.
fn new_cluster() -> String {
    format!("{:016x}{:016x}", random(), random())
}
