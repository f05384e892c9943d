//! The layer between an image and a container's own: mount points and the marks by which programs know a container.
//!
//! The same for all containers, so an engine makes it once and passes it as the topmost of `lower`. With it a start makes no directory
//! in the container's own layer, `diff` shows none, and an image whose /dev or /proc is a link or a file is put right before anything
//! is mounted there.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

const DIRECTORIES: [&str; 7] = ["", "dev", "dev/pts", "dev/shm", "proc", "sys", "etc"];
const FILES: [&str; 5] = [".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
const LINK: &str = "etc/mtab";

/// Whether the layer is there, and whole: one that a power cut has met may not be.
#[must_use]
pub fn has_init_layer(directory: &Path) -> bool {
    DIRECTORIES.iter().chain(&FILES).chain([&LINK]).all(|name| directory.join(name).symlink_metadata().is_ok())
}

/// Makes the layer in `directory`, which must not exist; it appears whole or not at all.
///
/// # Errors
/// Those of making files there.
pub fn create_init_layer(directory: &Path) -> io::Result<()> {
    let mut unfinished = directory.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let unfinished = Path::new(&unfinished);
    let made = fill(unfinished).and_then(|()| fs::rename(unfinished, directory));
    if made.is_err() {
        // What is left has a name that nobody looks for; removing it is a courtesy.
        let _ = fs::remove_dir_all(unfinished);
    }
    made
}

fn fill(root: &Path) -> io::Result<()> {
    // Whatever our umask: containers' users must be able to pass.
    let mode = || fs::Permissions::from_mode(0o755);
    for name in DIRECTORIES {
        fs::create_dir(root.join(name))?;
        fs::set_permissions(root.join(name), mode())?;
    }
    for name in FILES {
        fs::File::create_new(root.join(name))?.set_permissions(mode())?;
    }
    symlink("/proc/mounts", root.join(LINK))
}
