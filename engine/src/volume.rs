//! Volumes: `volumes/<name>/data` with `volume.json` beside it. Made by one rename, removed by one rename into the trash.

mod copy_up;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::container::directory::{discard, make, remove_tree};

const INFO_FILE: &str = "volume.json";
const DATA: &str = "data";
const NEW_PREFIX: &str = ".new-";

/// A volume operation failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such volume.
    #[error("no such volume: {name}")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// It exists.
    #[error("volume {name:?} exists already")]
    Exists {
        /// Which.
        name: String,
    },
    /// Not a name.
    #[error("{name:?} is not a valid volume name: letters, digits, `_`, `.` and `-`, the first a letter or digit")]
    Name {
        /// What was given.
        name: String,
    },
    /// The image has a file where the volume shall be.
    #[error("cannot mount a volume over the existing file {path} of the image")]
    OverFile {
        /// Path in the image.
        path: String,
    },
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
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { doing, path, source }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    created: i64,
    #[serde(default)]
    anonymous: bool,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// The directory that is mounted.
    pub data: PathBuf,
    /// When it was made, ns since 1970.
    pub created: i64,
    /// Made for one container, without a name of its own.
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// The volumes of a data directory.
#[derive(Debug)]
pub struct VolumeStore {
    root: PathBuf,
    trash: PathBuf,
    /// One change at a time; a copy-up among them, so that two containers do not fill a volume both.
    changing: Mutex<()>,
}

impl VolumeStore {
    pub(crate) fn open(root: &Path, trash: &Path) -> Result<Self, VolumeError> {
        for entry in std::fs::read_dir(root).map_err(failed("read", root))? {
            let entry = entry.map_err(failed("read", root))?;
            if entry.file_name().to_string_lossy().starts_with(NEW_PREFIX) {
                remove_tree(&entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(Self { root: root.to_owned(), trash: trash.to_owned(), changing: Mutex::new(()) })
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// `Name`, `Exists`, a full disk.
    pub fn create(&self, name: &str, labels: BTreeMap<String, String>) -> Result<VolumeInfo, VolumeError> {
        check(name)?;
        let _changing = crate::engine::lock(&self.changing);
        if self.root.join(name).exists() {
            return Err(VolumeError::Exists { name: name.to_owned() });
        }
        self.make(name, Stored { created: crate::engine::now(), anonymous: false, labels })?;
        self.inspect(name)
    }

    /// The data directory of a volume, made when missing.
    pub(crate) fn ensure(&self, name: &str, anonymous: bool) -> Result<PathBuf, VolumeError> {
        check(name)?;
        let _changing = crate::engine::lock(&self.changing);
        let data = self.root.join(name).join(DATA);
        if !data.is_dir() {
            self.make(name, Stored { created: crate::engine::now(), anonymous, labels: BTreeMap::new() })?;
        }
        Ok(data)
    }

    fn make(&self, name: &str, stored: Stored) -> Result<(), VolumeError> {
        let new = self.root.join(format!("{NEW_PREFIX}{name}"));
        let made = || -> io::Result<()> {
            remove_tree(&new)?;
            make(&new, 0o710)?;
            make(&new.join(DATA), 0o755)?;
            let mut file = File::create(new.join(INFO_FILE))?;
            io::Write::write_all(&mut file, &serde_json::to_vec(&stored)?)?;
            file.sync_all()?;
            File::open(&new)?.sync_all()?;
            std::fs::rename(&new, self.root.join(name))?;
            File::open(&self.root)?.sync_all()
        };
        made().map_err(|source| {
            let _ = remove_tree(&new);
            VolumeError::Io { doing: "make volume", path: self.root.join(name), source }
        })
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError> {
        let mut volumes = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed("read", &self.root))? {
            let name = entry.map_err(failed("read", &self.root))?.file_name();
            match name.to_str().map(|name| self.inspect(name)) {
                Some(Ok(volume)) => volumes.push(volume),
                // Being made or removed, or not ours.
                Some(Err(VolumeError::NotFound { .. } | VolumeError::Name { .. })) | None => {}
                Some(Err(e)) => return Err(e),
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inspect(&self, name: &str) -> Result<VolumeInfo, VolumeError> {
        check(name)?;
        let directory = self.root.join(name);
        let data = directory.join(DATA);
        if !data.is_dir() {
            return Err(VolumeError::NotFound { name: name.to_owned() });
        }
        let stored: Stored =
            crate::shim::read_json(&directory.join(INFO_FILE)).map_err(failed("read", &directory))?.unwrap_or_default();
        Ok(VolumeInfo {
            name: name.to_owned(),
            data,
            created: stored.created,
            anonymous: stored.anonymous,
            labels: stored.labels,
        })
    }

    pub(crate) fn is_anonymous(&self, name: &str) -> bool {
        self.inspect(name).is_ok_and(|volume| volume.anonymous)
    }

    /// Takes a volume away; what it held is in the trash, at the path given.
    pub(crate) fn remove(&self, name: &str) -> Result<PathBuf, VolumeError> {
        check(name)?;
        let _changing = crate::engine::lock(&self.changing);
        let directory = self.root.join(name);
        match discard(&directory, &self.trash) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(VolumeError::NotFound { name: name.to_owned() }),
            other => other.map_err(failed("remove", &directory)),
        }
    }

    /// Fills an empty volume with what the image has at `target`.
    pub(crate) fn copy_up(&self, name: &str, layers: &[PathBuf], target: &str) -> Result<(), VolumeError> {
        let _changing = crate::engine::lock(&self.changing);
        let directory = self.root.join(name);
        let data = directory.join(DATA);
        let mut entries = std::fs::read_dir(&data).map_err(failed("read", &data))?;
        if entries.next().is_some() {
            return Ok(());
        }
        copy_up::copy_up(layers, target, &data)
    }
}

/// A volume's name becomes a directory's (ADV-36).
fn check(name: &str) -> Result<(), VolumeError> {
    crate::engine::check_name("volume", name).map_err(|_| VolumeError::Name { name: name.to_owned() })
}
