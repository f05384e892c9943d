//! What lies on disk, and taking away what nobody needs.

use std::collections::BTreeSet;
use std::path::Path;

use super::{ContainerInfo, Engine, EngineError, Inner};
use crate::config::ContainerId;
use crate::image::{self, Digest};
use crate::volume::{self, VolumeInfo};

/// Bytes of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Which.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Does it run?
    pub running: bool,
    /// What it has written over its image.
    pub layer: u64,
    /// Its log.
    pub log: u64,
}

/// What lies in the data directory.
#[derive(Debug, Clone)]
pub struct DiskUsage {
    /// Images.
    pub images: image::DiskUsage,
    /// Containers.
    pub containers: Vec<ContainerUsage>,
    /// Volumes, with bytes and users.
    pub volumes: Vec<(VolumeInfo, u64, Vec<ContainerId>)>,
}

/// What was taken away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Volumes.
    pub volumes: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
}

impl Engine {
    /// The images that containers were made from: they are not removed.
    pub fn used_images(&self) -> BTreeSet<Digest> {
        let containers = self.inner.all();
        containers.iter().filter_map(|container| Digest::parse(&container.config().image_id).ok()).collect()
    }

    /// Removes an image, or one of its names, unless a container needs it.
    ///
    /// # Errors
    /// Those of [`crate::image::ImageStore::remove`].
    pub fn remove_image(&self, reference: &str, force: bool) -> Result<image::Removed, EngineError> {
        Ok(self.images().remove(reference, &self.used_images(), force)?)
    }

    /// Removes images that no container needs: those without a name, or `all`.
    ///
    /// # Errors
    /// Those of [`crate::image::ImageStore::prune`].
    pub fn prune_images(&self, all: bool) -> Result<image::Pruned, EngineError> {
        Ok(self.images().prune(&self.used_images(), all)?)
    }

    /// Removes a volume and what it holds.
    ///
    /// # Errors
    /// `Conflict` while a container, running or not, mounts it.
    pub fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        let users = self.inner.volume_users(name);
        if let Some(user) = users.first() {
            let others = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
            return Err(EngineError::Conflict(format!(
                "volume {name:?} is in use by container {}{others}",
                user.config.name
            )));
        }
        self.inner.discard_volume(name)
    }

    /// The containers that mount a volume.
    pub fn volume_users(&self, name: &str) -> Vec<ContainerInfo> {
        self.inner.volume_users(name)
    }

    /// Removes volumes that no container mounts: anonymous ones, or `all`.
    ///
    /// # Errors
    /// When the volumes cannot be read.
    pub fn prune_volumes(&self, all: bool) -> Result<Pruned, EngineError> {
        let mut pruned = Pruned::default();
        for volume in self.volumes().list()? {
            if (all || volume.anonymous) && self.inner.volume_users(&volume.name).is_empty() {
                let bytes = tree_bytes(&volume.data);
                self.inner.discard_volume(&volume.name)?;
                pruned.bytes += bytes;
                pruned.volumes.push(volume.name);
            }
        }
        Ok(pruned)
    }

    /// Measures everything; reads every directory.
    ///
    /// # Errors
    /// When images or volumes cannot be listed.
    pub fn disk_usage(&self) -> Result<DiskUsage, EngineError> {
        let images = self.images().disk_usage(&self.used_images())?;
        let containers = self.inner.all().into_iter().map(|container| ContainerUsage {
            id: container.id.clone(),
            name: container.name(),
            running: container.state().phase.is_alive(),
            layer: tree_bytes(&container.directory.join("upper")),
            log: log_bytes(&container.directory),
        });
        let containers = containers.collect();
        let volumes = self.volumes().list()?.into_iter().map(|volume| {
            let users = self.inner.volume_users(&volume.name).iter().map(|info| info.config.id.clone()).collect();
            let bytes = tree_bytes(&volume.data);
            (volume, bytes, users)
        });
        let volumes = volumes.collect();
        Ok(DiskUsage { images, containers, volumes })
    }
}

impl Inner {
    /// Moves a volume into the trash.
    pub(super) fn discard_volume(&self, name: &str) -> Result<(), EngineError> {
        let discarded = self.volumes.remove(name).map_err(|error| match error {
            volume::VolumeError::NotFound { name } => EngineError::NotFound { kind: "volume", name },
            other => other.into(),
        })?;
        // Deleted at the next start if the thread is gone.
        let _ = self.trash.send(discarded);
        Ok(())
    }
}

fn log_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let logs =
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(crate::logs::FILE_NAME));
    logs.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

/// Bytes that a tree takes on disk; hard links count once, what vanishes meanwhile does not count.
fn tree_bytes(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() <= 1 || meta.is_dir() || seen.insert((meta.dev(), meta.ino())) {
                bytes += meta.blocks() * 512;
            }
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}
