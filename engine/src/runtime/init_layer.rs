//! The layer between an image and a container's own: mount points and the marks by which programs know a container.
//!
//! The same for all containers, so an engine makes it once and passes it as the topmost of `lower`. With it a start makes no directory
//! in the container's own layer, `diff` shows none, and an image whose /dev or /proc is a link or a file is put right before anything
//! is mounted there.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

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
    let directory = |name: &str| fs::DirBuilder::new().mode(0o755).create(root.join(name));
    let file =
        |name: &str| fs::File::options().write(true).create_new(true).mode(0o755).open(root.join(name)).map(drop);
    for name in ["", "dev", "dev/pts", "dev/shm", "proc", "sys", "etc"] {
        directory(name)?;
    }
    for name in [".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        file(name)?;
    }
    symlink("/proc/mounts", root.join("etc/mtab"))
}
