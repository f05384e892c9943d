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
        for record in self.images.values_mut() {
            record.names.remove(canonical);
        }
        if let Some(record) = self.images.get_mut(&id) {
            record.names.insert(canonical.to_owned(), display.to_owned());
        }
    }
}
