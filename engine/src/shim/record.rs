//! What a shim leaves on disk about a container's run, and the identity of a process.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;

use super::protocol::{ExitRecord, RunRecord};

/// Written when a container has started.
pub(crate) const RUN_FILE: &str = "run.json";
/// Written when it has ended.
pub(crate) const EXIT_FILE: &str = "exit.json";

/// The kernel's name of this boot: pids and start times of another boot mean nothing.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Room kept for an exit record, so that the end of a container can be recorded on a full disk. An error longer than fits is cut.
const EXIT_ROOM: usize = 1024;

/// Takes the room for recording an end.
pub(super) fn reserve_exit(directory: impl AsFd) -> io::Result<()> {
    create(directory.as_fd(), EXIT_FILE, OFlag::O_TRUNC)?.write_all(&[b' '; EXIT_ROOM])
}

/// Records a start. Not synced: after a power cut the container is not running whatever the file says.
pub(super) fn write_run(directory: impl AsFd, run: &RunRecord) -> io::Result<()> {
    let directory = directory.as_fd();
    create(directory, RUN_FILE, OFlag::O_TRUNC)?.write_all(&serde_json::to_vec(run)?)?;
    renameat(directory, temporary(RUN_FILE).as_str(), directory, RUN_FILE)?;
    Ok(())
}

/// Records an end; with `durable`, no power cut takes it back when this has returned.
pub(crate) fn write_exit(directory: impl AsFd, exit: &ExitRecord, durable: bool) -> io::Result<()> {
    let file = write_unnamed_exit(directory.as_fd(), exit)?;
    if durable {
        file.sync_data()?;
    }
    name_exit(directory.as_fd())?;
    if durable {
        nix::unistd::fsync(directory.as_fd())?;
    }
    Ok(())
}

/// Writes the record of an end, which nobody finds yet. Must be on disk before [`name_exit`] where it has to survive a power cut.
pub(super) fn write_unnamed_exit(directory: impl AsFd, exit: &ExitRecord) -> io::Result<std::fs::File> {
    let mut text = serde_json::to_vec(exit)?;
    if text.len() > EXIT_ROOM {
        let error = exit.error.chars().take(EXIT_ROOM / 12).collect();
        text = serde_json::to_vec(&ExitRecord { error, ..exit.clone() })?;
    }
    text.resize(text.len().max(EXIT_ROOM), b' ');
    // Not truncated: the blocks are those taken at the start.
    let mut file = create(directory.as_fd(), EXIT_FILE, OFlag::empty())?;
    file.write_all(&text)?;
    Ok(file)
}

/// Gives the record of an end its name.
pub(super) fn name_exit(directory: impl AsFd) -> io::Result<()> {
    let directory = directory.as_fd();
    Ok(renameat(directory, temporary(EXIT_FILE).as_str(), directory, EXIT_FILE)?)
}

fn temporary(name: &str) -> String {
    format!("{name}.new")
}

fn create(directory: std::os::fd::BorrowedFd<'_>, name: &str, how: OFlag) -> io::Result<std::fs::File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | how;
    Ok(openat(directory, temporary(name).as_str(), flags, Mode::from_bits_truncate(0o600))?.into())
}

/// Reads a record. One that is missing, empty or torn is no record: each is written whole or not at all, except by a power cut.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
