//! A network namespace held by a descriptor, and how code is run inside one.
//!
//! A thread's namespace is part of its identity: nothing here moves a thread that somebody else owns. Work in another
//! namespace runs on a thread made for it, which ends there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

/// The link through which a thread sees its own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    /// Device and inode of the nsfs file: two descriptors with the same pair mean the same namespace.
    identity: (u64, u64),
}

impl Namespace {
    /// That of the calling thread.
    pub fn current() -> io::Result<Namespace> {
        Namespace::open(Path::new(OWN))
    }

    /// That which a file (`/proc/PID/ns/net`, or a bound one) stands for.
    pub fn open(path: &Path) -> io::Result<Namespace> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Namespace { file, identity: (metadata.dev(), metadata.ino()) })
    }

    /// Whether the calling thread is in it.
    pub fn is_current(&self) -> bool {
        std::fs::metadata(OWN).is_ok_and(|m| (m.dev(), m.ino()) == self.identity)
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Namespace) -> bool {
        self.identity == other.identity
    }

    /// Moves the calling thread into it, for good. Only for a thread that was made for this.
    pub fn enter(&self) -> io::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// Runs `work` inside: on this thread when it is there already, else on a new one.
    ///
    /// # Errors
    /// When the thread cannot be made or may not enter (`CAP_SYS_ADMIN` is needed).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if self.is_current() {
            return Ok(work());
        }
        thread::scope(|scope| {
            let inside = thread::Builder::new().name("netd-netns".into()).spawn_scoped(scope, || {
                self.enter()?;
                Ok(work())
            })?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
