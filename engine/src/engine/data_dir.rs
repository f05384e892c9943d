//! The data directory: one engine at a time, one format.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::container::directory::{make, remove_tree};
use crate::runtime::{create_init_layer, has_init_layer};

/// The format of what lies in a data directory. A later program may raise it; this one then refuses to touch it.
const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";

/// A data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another engine has it.
    #[error("{path} is in use by another orch (pid {holder})")]
    InUse {
        /// Which.
        path: PathBuf,
        /// What the holder wrote into the lock file.
        holder: String,
    },
    /// Not ours, or of a later version.
    #[error("{path} is not a data directory that this version of orch can use: {why}")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What is the matter.
        why: String,
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

/// A locked data directory.
#[derive(Debug)]
pub(crate) struct DataDir {
    pub(crate) containers: PathBuf,
    pub(crate) volumes: PathBuf,
    pub(crate) trash: PathBuf,
    /// The layer between each image and its containers' own.
    pub(crate) init_layer: PathBuf,
    /// Held until the engine goes.
    _lock: Flock<File>,
}

impl DataDir {
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { doing, path, source }
        };
        std::fs::create_dir_all(path).map_err(io("create", path))?;
        let lock = take_lock(path)?;
        check_format(path)?;
        // 0710 and not 0711: nobody but root walks below (CVE-2021-41091).
        make(path, 0o710).map_err(io("protect", path))?;
        let child = |name: &str| path.join(name);
        let directory = Self {
            containers: child("containers"),
            volumes: child("volumes"),
            trash: child("trash"),
            init_layer: child("init-layer"),
            _lock: lock,
        };
        // A broken one belongs to no running container: those went with the power that broke it.
        if !has_init_layer(&directory.init_layer) {
            remove_tree(&directory.init_layer).map_err(io("remove", &directory.init_layer))?;
            create_init_layer(&directory.init_layer).map_err(io("create", &directory.init_layer))?;
        }
        for child in [&directory.containers, &directory.volumes, &directory.trash] {
            make(child, 0o710).map_err(io("create", child))?;
        }
        Ok(directory)
    }
}

fn take_lock(path: &Path) -> Result<Flock<File>, DataDirError> {
    let lock_path = path.join(LOCK_FILE);
    let io = |doing| {
        let path = lock_path.clone();
        move |source| DataDirError::Io { doing, path, source }
    };
    let file =
        File::options().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(io("open"))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // The holder may be writing its pid right now: then it is not known.
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.trim().is_empty() { "unknown".to_owned() } else { holder.trim().to_owned() };
            return Err(DataDirError::InUse { path: path.to_owned(), holder });
        }
        Err((_, errno)) => return Err(io("lock")(errno.into())),
    };
    lock.set_len(0).and_then(|()| lock.rewind()).map_err(io("write"))?;
    writeln!(lock, "{}", std::process::id()).map_err(io("write"))?;
    Ok(lock)
}

/// An empty directory becomes ours; one that has something and no format file is someone else's.
fn check_format(path: &Path) -> Result<(), DataDirError> {
    let foreign = |why: String| DataDirError::Foreign { path: path.to_owned(), why };
    let format = path.join(FORMAT_FILE);
    let io = |doing| {
        let path = format.clone();
        move |source| DataDirError::Io { doing, path, source }
    };
    match std::fs::read_to_string(&format) {
        Ok(text) => match text.strip_prefix("orch ").and_then(|number| number.trim().parse::<u32>().ok()) {
            Some(FORMAT) => Ok(()),
            Some(other) => Err(foreign(format!("its format is {other}, this version knows {FORMAT}"))),
            None => {
                Err(foreign(format!("its {FORMAT_FILE} file says {:?}", text.chars().take(40).collect::<String>())))
            }
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            for entry in std::fs::read_dir(path).map_err(io("read"))? {
                let name = entry.map_err(io("read"))?.file_name();
                // `lost+found` is what an empty ext4 file system has.
                if !["lost+found", LOCK_FILE, "format.new"].iter().any(|known| name == *known) {
                    return Err(foreign(format!("it has {name:?} and no {FORMAT_FILE} file")));
                }
            }
            let new = path.join("format.new");
            let mut file = File::create(&new).map_err(io("write"))?;
            writeln!(file, "orch {FORMAT}").and_then(|()| file.sync_all()).map_err(io("write"))?;
            std::fs::rename(&new, &format).map_err(io("write"))?;
            File::open(path).and_then(|directory| directory.sync_all()).map_err(io("write"))
        }
        Err(e) => Err(io("read")(e)),
    }
}
