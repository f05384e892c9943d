//! Unpacked layers: `layers/<id>/fs` is an overlayfs lower directory, `layers/<id>/layer.json` says what it is.
//!
//! A layer is unpacked once for each chain (it and all below it), not for each diff: implied parents, links below and hard links
//! to lower files make the result depend on what is below. Images with a common base share its chain.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::disk::Disk;
use super::unpack::Unpacked;

/// Hex digits of the chain in a directory's name. Short names keep a mount's option string below one page for a hundred layers;
/// the whole chain is in `layer.json` and compared, so that two chains made to agree in 128 bits are told apart.
const NAME_DIGITS: usize = 32;

/// What begins the name of a directory that is being made or removed.
const TEMPORARY: &str = "tmp-";

pub(crate) struct Layers {
    directory: PathBuf,
    next: AtomicU64,
    disk: Disk,
}

/// `layer.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Entries of its archive.
    pub(crate) entries: u64,
}

/// A layer being unpacked. Dropped, it is gone.
pub(crate) struct LayerDraft {
    directory: PathBuf,
    disk: Disk,
}

impl Layers {
    /// `root` holds `layers` already.
    pub(crate) fn new(root: &Path, disk: Disk) -> Self {
        Self { directory: root.join("layers"), next: AtomicU64::new(0), disk }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The lower directory of a chain, whether or not it exists.
    pub(crate) fn path(&self, chain: Digest) -> PathBuf {
        self.home(chain).join("fs")
    }

    fn home(&self, chain: Digest) -> PathBuf {
        self.directory.join(&chain.hex()[..NAME_DIGITS])
    }

    /// What is known of a chain; `None` when it is not unpacked.
    pub(crate) fn record(&self, chain: Digest) -> Option<LayerRecord> {
        let record = read_record(&self.home(chain))?;
        (record.chain_id == chain).then_some(record)
    }

    fn temporary(&self) -> PathBuf {
        self.directory.join(format!("{TEMPORARY}{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn begin(&self) -> io::Result<LayerDraft> {
        let directory = self.temporary();
        self.disk.make_dir(&directory)?;
        let draft = LayerDraft { directory, disk: self.disk.clone() };
        self.disk.make_dir(&draft.root())?;
        Ok(draft)
    }

    /// Makes a durable layer visible; one that is there already stays. The caller syncs the directory.
    pub(crate) fn publish(&self, draft: &LayerDraft, chain: Digest) -> io::Result<()> {
        if self.record(chain).is_some() {
            return Ok(());
        }
        let home = self.home(chain);
        if home.exists() {
            self.remove(&home)?;
        }
        self.disk.rename(&draft.directory, &home)
    }

    /// Removes a layer's directory: out of sight at once, then piece by piece.
    pub(crate) fn remove(&self, home: &Path) -> io::Result<()> {
        let trash = self.temporary();
        self.disk.rename(home, &trash)?;
        self.disk.remove_tree(&trash)
    }

    /// Every directory, with its record when it is a whole layer.
    pub(crate) fn list(&self) -> io::Result<Vec<(PathBuf, Option<LayerRecord>)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let temporary = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY));
            let record = if temporary { None } else { read_record(&path) };
            found.push((path.clone(), record.filter(|record| self.home(record.chain_id) == path)));
        }
        Ok(found)
    }

    /// Whether a path of [`Layers::list`] is one being made or removed right now.
    pub(crate) fn is_temporary(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY))
    }
}

fn read_record(home: &Path) -> Option<LayerRecord> {
    serde_json::from_slice(&std::fs::read(home.join("layer.json")).ok()?).ok()
}

impl LayerDraft {
    /// The empty directory to unpack into.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("fs")
    }

    /// Says what was unpacked.
    pub(crate) fn describe(&self, chain_id: Digest, diff_id: Digest, unpacked: Unpacked) -> io::Result<()> {
        let record = LayerRecord { chain_id, diff_id, bytes: unpacked.bytes, entries: unpacked.entries };
        let mut file = self.disk.create(self.directory.join("layer.json"))?;
        io::Write::write_all(&mut file, &serde_json::to_vec(&record)?)
    }
}

impl Drop for LayerDraft {
    fn drop(&mut self) {
        // Published, the name is gone already; what cannot be removed now is removed when the store is next opened.
        if self.directory.exists() {
            self.disk.remove_tree(&self.directory).ok();
        }
    }
}
