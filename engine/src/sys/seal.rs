//! This program's executable, unreachable for writing.
use std::io;
use std::os::fd::OwnedFd;

/// Whether this process runs from a file that no one can write to through it.
#[must_use]
pub fn is_sealed() -> bool {
    false
}

/// An executable descriptor of this program that cannot be written through.
///
/// # Errors
/// When neither an overlay nor a memory file can be made.
pub fn sealed_executable() -> io::Result<OwnedFd> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
