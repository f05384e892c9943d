//! A container's directory, `containers/<id>/`: `config.json`, `upper/` and `work/` of its overlay, `run.json` and `exit.json` of the
//! shim, `log.json*`. It appears by one rename when it is complete and goes by one rename into the trash.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::{ContainerConfig, ContainerId};

pub(crate) const CONFIG_FILE: &str = "config.json";
/// Directories being made; a crash leaves them, the next start removes them.
const NEW_PREFIX: &str = ".new-";

/// Makes a container's directory. When this returns it is on disk, whole; until then it does not exist. Only a container that is removed
/// at its end need not survive a power cut: it would be removed then, and three waits for the disk are most of what a short run takes.
pub(crate) fn create(containers: &Path, config: &ContainerConfig) -> io::Result<PathBuf> {
    let new = containers.join(format!("{NEW_PREFIX}{}", config.id));
    let directory = containers.join(&config.id.0);
    remove_tree(&new)?;
    make(&new, 0o710)?;
    let result = (|| {
        // Docker's root directory of a container is 0755: processes of any user must be able to pass it.
        make(&new.join("upper"), 0o755)?;
        make(&new.join("work"), 0o700)?;
        let durable = config.is_durable();
        write_new(&new.join(CONFIG_FILE), &serde_json::to_vec_pretty(config)?, durable)?;
        if durable {
            File::open(&new)?.sync_all()?;
        }
        nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            &new,
            nix::fcntl::AT_FDCWD,
            &directory,
            nix::fcntl::RenameFlags::RENAME_NOREPLACE,
        )?;
        if durable { File::open(containers)?.sync_all() } else { Ok(()) }
    })();
    match result {
        Ok(()) => Ok(directory),
        Err(e) => {
            // What is left of it is removed at the next start at the latest.
            let _ = remove_tree(&new);
            Err(e)
        }
    }
}

/// Replaces the configuration (rename, update), durably.
pub(crate) fn rewrite(directory: &Path, config: &ContainerConfig) -> io::Result<()> {
    let new = directory.join("config.json.new");
    let _ = std::fs::remove_file(&new);
    write_new(&new, &serde_json::to_vec_pretty(config)?, true)?;
    std::fs::rename(&new, directory.join(CONFIG_FILE))?;
    File::open(directory)?.sync_all()
}

/// Reads all containers. Half-made directories are removed; one that cannot be read is given as its name and why.
#[expect(clippy::type_complexity, reason = "two lists, named in the line above")]
pub(crate) fn scan(containers: &Path) -> io::Result<(Vec<(PathBuf, ContainerConfig)>, Vec<(PathBuf, String)>)> {
    let (mut whole, mut broken) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(containers)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str() else { continue };
        // No configuration, or one without a byte: a container that was not to survive the power cut which it met.
        let empty = std::fs::metadata(path.join(CONFIG_FILE))
            .map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |m| m.len() == 0);
        if name.starts_with(NEW_PREFIX) || empty {
            remove_tree(&path)?;
            continue;
        }
        let read = std::fs::read(path.join(CONFIG_FILE)).map_err(|e| e.to_string());
        let config = read.and_then(|text| serde_json::from_slice::<ContainerConfig>(&text).map_err(|e| e.to_string()));
        match config {
            Ok(config) if config.id == ContainerId(name.to_owned()) => whole.push((path, config)),
            Ok(config) => broken.push((path, format!("its configuration is that of {}", config.id))),
            Err(why) => broken.push((path, why)),
        }
    }
    whole.sort_by(|a, b| a.1.id.cmp(&b.1.id));
    Ok((whole, broken))
}

/// Moves a directory into the trash under a name not used there yet.
pub(crate) fn discard(directory: &Path, trash: &Path) -> io::Result<PathBuf> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for attempt in 0..u32::MAX {
        let target = trash.join(format!("{name}.{attempt}"));
        if target.symlink_metadata().is_ok() {
            continue;
        }
        std::fs::rename(directory, &target)?;
        return Ok(target);
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Removes a tree if it is there. `std::fs::remove_dir_all` goes by descriptors and follows no link (CVE-2022-21658 is mended).
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes one directory with this mode whatever the umask; one that exists gets the mode.
pub(crate) fn make(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn write_new(path: &Path, text: &[u8], durable: bool) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    if durable { file.sync_all() } else { Ok(()) }
}
