//! What netd remembers of networks and sandboxes from one agent to the next: a file each, in the run directory, which a
//! reboot empties just as it empties the kernel. A record is written before the kernel is touched and removed after, so what
//! a killed agent left half made or half gone has one.
//!
//! Nothing is fsynced: a crash that loses the file loses the kernel's objects too.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::DesiredCluster;
use crate::config::{Endpoint, NetworkConfig, PublishedPort, SandboxConfig};
use crate::error::NetdError;
use crate::mesh::Numbers;

/// A network as remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub(crate) config: NetworkConfig,
    /// Name of its bridge.
    pub(crate) bridge: String,
    /// MTU in bytes, found out when the network was made.
    pub(crate) mtu: u32,
    /// What is less than that and fits through the host's own default route, bytes. Only what leaves the network must be as small.
    #[serde(default)]
    pub(crate) outward_mtu: Option<u32>,
}

/// What a node shall know of its cluster, as remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterRecord {
    pub(crate) desired: DesiredCluster,
    /// What this node calls its peers in marks and tables.
    pub(crate) numbers: Numbers,
}

/// The same, to be written.
#[derive(Debug, Serialize)]
pub(crate) struct NewClusterRecord<'a> {
    pub(crate) desired: &'a DesiredCluster,
    pub(crate) numbers: &'a Numbers,
}

/// A sandbox as remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) config: SandboxConfig,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) ports: Vec<PublishedPort>,
    /// False while it is being made: its maker was killed, and whoever asked for it never heard that it exists.
    pub(crate) complete: bool,
}

impl SandboxRecord {
    /// Its addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.iter().flat_map(|e| e.ipv4.map(IpAddr::V4).into_iter().chain(e.ipv6.map(IpAddr::V6)))
    }
}

/// The run directory.
#[derive(Debug)]
pub(crate) struct RunDir {
    root: PathBuf,
}

impl RunDir {
    pub(crate) fn new(root: &Path) -> RunDir {
        RunDir { root: root.to_owned() }
    }

    /// Where namespaces are bound.
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.root.join("netns")
    }

    pub(crate) fn namespace(&self, sandbox: &str) -> PathBuf {
        self.namespaces().join(sandbox)
    }

    pub(crate) fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// Network ids may hold any character, bridge names none that a file name cannot.
    pub(crate) fn network(&self, bridge: &str) -> PathBuf {
        self.networks().join(format!("{bridge}.json"))
    }

    /// What was last asked for of the cluster.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, sandbox: &str) -> PathBuf {
        self.sandboxes().join(format!("{sandbox}.json"))
    }

    /// Makes the directories.
    pub(crate) fn create(&self) -> Result<(), NetdError> {
        for path in [self.namespaces(), self.networks(), self.sandboxes()] {
            std::fs::create_dir_all(&path).map_err(|source| NetdError::Record { path, source })?;
        }
        Ok(())
    }

    /// Removes the directories that are empty, and the root if it then is.
    pub(crate) fn remove(&self) {
        for path in [self.namespaces(), self.networks(), self.sandboxes(), self.root.clone()] {
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Replaces a record in one step.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), NetdError> {
    let fail = |source| NetdError::Record { path: path.to_owned(), source };
    let text = serde_json::to_vec(record).map_err(|error| fail(error.into()))?;
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path)).map_err(fail)
}

/// Removes a record; one that is gone is fine.
pub(crate) fn remove(path: &Path) -> Result<(), NetdError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NetdError::Record { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// One record; `None` when there is none, or none that can be read.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = std::fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a record cannot be read: what it stands for is taken as left over");
            let _ = std::fs::remove_file(path);
            None
        }
    }
}

/// All records of a directory. One that cannot be read (a killed agent's temporary file, foreign things) is said and left
/// out: what it stood for is then a leftover.
pub(crate) fn read_all<T: DeserializeOwned>(directory: &Path) -> Vec<T> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut records = Vec::new();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        let read = std::fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from));
        match read {
            Ok(record) => records.push(record),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a record cannot be read: what it stands for is taken as left over");
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    records
}
