//! Taking images away: untag, remove, prune, and sweeping what nothing leads to.
//!
//! `refs.json` is replaced first and files are removed after: a crash in between leaves garbage, which opening the store removes,
//! and never an image without its files.

use std::collections::BTreeSet;
use std::io;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::layers::Layers;
use super::{ImageError, ImageStore, Reference, State, find, store};

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Removed {
    /// Names taken away, as the user wrote them.
    pub untagged: Vec<String>,
    /// The image that is gone with its last name.
    pub deleted: Option<Digest>,
    /// Bytes of disk freed.
    pub bytes: u64,
}

/// What [`ImageStore::prune`] did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// The images that are gone.
    pub deleted: Vec<Digest>,
    /// The names they had.
    pub untagged: Vec<String>,
    /// Bytes of disk freed.
    pub bytes: u64,
}

/// What the store takes of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Images.
    pub images: usize,
    /// Bytes of blobs as they lie on disk.
    pub blobs: u64,
    /// Bytes of unpacked files.
    pub layers: u64,
    /// Unpacked layers; one shared by several images counts once.
    pub layer_count: usize,
    /// Of both, bytes that only images outside `used` need.
    pub reclaimable: u64,
}

/// Blobs and layers that some images need.
#[derive(Default)]
struct Needed {
    blobs: BTreeSet<Digest>,
    chains: BTreeSet<Digest>,
}

impl ImageStore {
    /// Removes a name; with its last name, or by id, the image. `used` are the ids of images that containers use: removing one
    /// is refused. `force` takes all names of an image given by id, and all names of a used one: what the containers need stays
    /// until [`ImageStore::prune`] finds it unused.
    pub fn remove(&self, reference: &str, used: &BTreeSet<Digest>, force: bool) -> Result<Removed, ImageError> {
        let _turn = self.turn();
        let mut state = self.state();
        let id = find(&state.refs, reference)?;
        let mut refs = state.refs.clone();
        let Some(record) = refs.images.get_mut(&id) else { return Err(ImageError::NotFound(reference.to_owned())) };
        let named =
            Reference::parse(reference).ok().filter(|name| name.digest().is_none()).map(|name| name.canonical());
        let named = named.filter(|canonical| record.names.contains_key(canonical));
        let in_use = used.contains(&id);
        let mut removed = Removed::default();
        match named {
            Some(canonical) if record.names.len() > 1 => {
                record.since.remove(&canonical);
                removed.untagged.extend(record.names.remove(&canonical));
            }
            _ if in_use && !force => return Err(ImageError::InUse(reference.to_owned())),
            None if record.names.len() > 1 && !force => {
                return Err(ImageError::SeveralNames { id, names: record.names.values().cloned().collect() });
            }
            _ => {
                record.since.clear();
                removed.untagged.extend(std::mem::take(&mut record.names).into_values());
                if !in_use {
                    refs.images.remove(&id);
                    removed.deleted = Some(id);
                }
            }
        }
        self.write_refs(&mut state, refs)?;
        if removed.deleted.is_some() {
            removed.bytes = self.sweep(&mut state)?;
        }
        Ok(removed)
    }

    /// Removes images that no container uses: those without a name, or all.
    pub fn prune(&self, used: &BTreeSet<Digest>, all: bool) -> Result<Pruned, ImageError> {
        let _turn = self.turn();
        let mut state = self.state();
        let mut refs = state.refs.clone();
        let mut pruned = Pruned::default();
        refs.images.retain(|id, record| {
            let stays = used.contains(id) || !(all || record.names.is_empty());
            if !stays {
                pruned.deleted.push(*id);
                pruned.untagged.extend(record.names.values().cloned());
            }
            stays
        });
        if !pruned.deleted.is_empty() {
            self.write_refs(&mut state, refs)?;
        }
        pruned.bytes = self.sweep(&mut state)?;
        Ok(pruned)
    }

    /// What the store takes of the disk, and what pruning everything but `used` would give back.
    pub fn disk_usage(&self, used: &BTreeSet<Digest>) -> Result<DiskUsage, ImageError> {
        let mut state = self.state();
        let failed = |source| store("measure the image store", source);
        let mut usage = DiskUsage { images: state.refs.images.len(), ..DiskUsage::default() };
        let kept: Vec<Digest> = state.refs.images.keys().filter(|id| used.contains(id)).copied().collect();
        let needed = self.needed(&mut state, kept)?;
        for (_, digest, bytes) in self.blobs.list().map_err(failed)? {
            usage.blobs += bytes;
            if digest.is_none_or(|digest| !needed.blobs.contains(&digest)) {
                usage.reclaimable += bytes;
            }
        }
        for (_, record) in self.layers.list().map_err(failed)? {
            let Some(record) = record else { continue };
            usage.layers += record.bytes;
            usage.layer_count += 1;
            if !needed.chains.contains(&record.chain_id) {
                usage.reclaimable += record.bytes;
            }
        }
        Ok(usage)
    }

    /// At opening, when nobody else is at work: what a crash left half-made, then what nothing leads to.
    pub(super) fn clean(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.root.join("ingest"))? {
            self.disk.remove_file(&entry?.path())?;
        }
        for (path, record) in self.layers.list()? {
            if Layers::is_temporary(&path) {
                self.disk.remove_tree(&path)?;
            } else if record.is_none() {
                self.layers.remove(&path)?;
            }
        }
        let mut state = self.state();
        match self.sweep(&mut state) {
            Ok(bytes) if bytes > 0 => tracing::info!(bytes, "removed what an interrupted import left"),
            Ok(_) => {}
            // Without reading every image it is unknown what they need: then nothing is removed.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "not cleaning the image store"),
        }
        Ok(())
    }

    /// Removes blobs and layers that no image leads to; bytes freed.
    pub(super) fn sweep(&self, state: &mut State) -> Result<u64, ImageError> {
        let ids = state.refs.images.keys().copied().collect();
        let needed = self.needed(state, ids)?;
        let failed = |source| store("remove what no image needs", source);
        let mut freed = 0;
        for (path, digest, bytes) in self.blobs.list().map_err(failed)? {
            if digest.is_none_or(|digest| !needed.blobs.contains(&digest)) {
                self.disk.remove_file(&path).map_err(failed)?;
                freed += bytes;
            }
        }
        for (path, record) in self.layers.list().map_err(failed)? {
            match record {
                Some(record) if needed.chains.contains(&record.chain_id) => {}
                // Another thread's draft.
                None if Layers::is_temporary(&path) => {}
                record => {
                    self.layers.remove(&path).map_err(failed)?;
                    freed += record.map_or(0, |record| record.bytes);
                }
            }
        }
        Ok(freed)
    }

    fn needed(&self, state: &mut State, ids: Vec<Digest>) -> Result<Needed, ImageError> {
        let mut needed = Needed::default();
        for id in ids {
            let documents = self.documents(state, id)?;
            needed.blobs.insert(id);
            needed.blobs.extend(state.refs.images.get(&id).map(|record| record.manifest));
            needed.blobs.extend(documents.manifest.layers.iter().map(|layer| layer.digest));
            needed.chains.extend(&documents.chains);
        }
        Ok(needed)
    }
}
