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
    /// Bytes of a torn tail that were dropped.
    pub dropped: u64,
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
pub fn open(disk: impl Fn() -> Box<dyn Disk>, bootstrap: &Bootstrap, settings: Settings) -> Result<Opened, StartError> {
    let (log, recovered, identity) = match bootstrap {
        Bootstrap::Alone => {
            let (mut log, recovered) = Log::open(disk())?;
            let identity = match identity_of(&recovered).map_err(OpenError::from)? {
                Some(identity) => identity,
                None => begin(&mut log, Identity { id: FIRST, cluster: new_cluster() })?,
            };
            (log, recovered, identity)
        }
        Bootstrap::Join(invitation) => {
            let invited = Identity { id: invitation.id, cluster: invitation.cluster.clone() };
            join(&disk, invited)?
        }
    };
    let space = Space { room: log.room(), size: log.size() };
    let dropped = recovered.dropped;
    let (replica, state) = Replica::open(identity, &recovered, space, settings)?;
    Ok(Opened { log, replica, state, dropped })
}

fn begin(log: &mut Log, identity: Identity) -> Result<Identity, LogError> {
    let (kind, payload) = identity_record(&identity);
    log.append([(kind, payload.as_slice())], true)?;
    Ok(identity)
}

fn join(disk: &impl Fn() -> Box<dyn Disk>, invited: Identity) -> Result<(Log, Recovered, Identity), StartError> {
    let names = disk();
    let io = |doing: &'static str, name: &str, result: std::io::Result<()>| {
        result.map_err(|source| LogError::Io { doing, path: names.path(name), source })
    };
    let marker = names.read(JOINED).map_err(|source| LogError::Io { doing: "read", path: names.path(JOINED), source })?;
    let has_log = names.read("log").map_err(|source| LogError::Io { doing: "read", path: names.path("log"), source })?;
    let text = invited.id.to_string();
    if marker.as_deref() == Some(text.as_bytes()) {
        if has_log.is_none() {
            return Err(LogError::Lost { path: names.path("log") }.into());
        }
        let (log, recovered) = Log::open(disk())?;
        return match identity_of(&recovered).map_err(OpenError::from)? {
            Some(identity) if identity == invited => Ok((log, recovered, identity)),
            _ => Err(LogError::Foreign { path: names.path("log") }.into()),
        };
    }
    drop(has_log);
    for name in ["log", "snapshot"] {
        let there = names.read(name).map_err(|source| LogError::Io { doing: "read", path: names.path(name), source })?;
        if there.is_some() {
            tracing::warn!(file = %names.path(name).display(), "a former control log is set aside");
            io("set aside", name, names.rename(name, &format!("{name}.aside")))?;
        }
    }
    io("sync", "log", names.sync_names())?;
    let (mut log, _) = Log::open(disk())?;
    let identity = begin(&mut log, invited)?;
    let part = format!("{JOINED}.part");
    let write = || {
        let mut file = names.create(&part)?;
        file.write_at(text.as_bytes(), 0)?;
        file.sync()?;
        names.rename(&part, JOINED)?;
        names.sync_names()
    };
    io("write", JOINED, write())?;
    Ok((log, Recovered::default(), identity))
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
