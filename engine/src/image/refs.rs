//! Which images there are and what they are called: `refs.json`, the one file that makes anything in the store visible.
//!
//! It is replaced as a whole (write, fsync, rename, fsync of the directory): a few kilobytes for a hundred images, written only
//! when an image comes, goes or is renamed. A blob or layer that it does not lead to is garbage.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::disk::Disk;

/// Read by this version and written by it.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Refs {
    version: u32,
    /// By image id, the digest of the configuration.
    pub(crate) images: BTreeMap<Digest, Record>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) manifest: Digest,
    /// When it came here, RFC 3339.
    pub(crate) added: String,
    /// Canonical name → the name as the user wrote it.
    #[serde(default)]
    pub(crate) names: BTreeMap<String, String>,
    /// Canonical name → since when it has it, milliseconds since the epoch; of names given by older versions, `added` stands for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) since: BTreeMap<String, u64>,
}

impl Record {
    /// Since when it has a name, milliseconds since the epoch.
    pub(crate) fn since(&self, canonical: &str) -> u64 {
        let added = || self.added.parse::<jiff::Timestamp>().map_or(0, millis);
        self.since.get(canonical).copied().unwrap_or_else(added)
    }
}

fn millis(time: jiff::Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}

impl Refs {
    fn path(root: &Path) -> PathBuf {
        root.join("refs.json")
    }

    pub(crate) fn load(root: &Path) -> io::Result<Self> {
        let bytes = match std::fs::read(Self::path(root)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, images: BTreeMap::new() });
            }
            Err(error) => return Err(error),
        };
        let refs: Self = serde_json::from_slice(&bytes)?;
        if refs.version == VERSION {
            return Ok(refs);
        }
        let reason = format!("it is of version {}, this program knows version {VERSION}", refs.version);
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    pub(crate) fn save(&self, root: &Path, disk: &Disk) -> io::Result<()> {
        disk.replace(&Self::path(root), &serde_json::to_vec(self)?)
    }

    /// Gives a name to an image and takes it from any other.
    pub(crate) fn name(&mut self, id: Digest, canonical: &str, display: &str) {
        let now = millis(jiff::Timestamp::now());
        // A clock that was set back must not make this name older than the one that it takes the place of.
        let former = self.images.values().filter(|record| record.names.contains_key(canonical));
        let after = former.map(|record| record.since(canonical) + 1).max().unwrap_or(0);
        self.set(id, canonical, display, now.max(after));
    }

    /// The same for a name that the image has had elsewhere since then (0 = now), unless another image has got it later.
    pub(crate) fn name_since(&mut self, id: Digest, canonical: &str, display: &str, since: u64) {
        if since == 0 {
            return self.name(id, canonical, display);
        }
        let later =
            |(_, record): (_, &Record)| record.names.contains_key(canonical) && record.since(canonical) >= since;
        if !self.images.iter().any(later) {
            self.set(id, canonical, display, since);
        }
    }

    fn set(&mut self, id: Digest, canonical: &str, display: &str, since: u64) {
        for record in self.images.values_mut() {
            record.names.remove(canonical);
            record.since.remove(canonical);
        }
        if let Some(record) = self.images.get_mut(&id) {
            record.names.insert(canonical.to_owned(), display.to_owned());
            record.since.insert(canonical.to_owned(), since);
        }
    }
}
