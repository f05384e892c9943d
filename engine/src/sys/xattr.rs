//! Extended attributes by file descriptor. nix does not wrap these calls.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `fsetxattr(2)` without flags: creates or replaces.
pub(crate) fn set(fd: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` ends in NUL by its type; the kernel reads exactly `value.len()` bytes of the borrowed `value` and keeps
    // no pointer after the call; the descriptor is open for as long as `fd` is borrowed.
    let result =
        unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `fgetxattr(2)`; `None` when there is no such attribute or the file system has none at all.
pub(crate) fn get(fd: impl AsFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let result = read(|buffer| {
        // SAFETY: `name` ends in NUL by its type; the kernel writes at most `buffer.len()` bytes into the exclusively borrowed
        // buffer; the descriptor is open for as long as `fd` is borrowed.
        unsafe { libc::fgetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `flistxattr(2)`: the names; empty when the file system has none.
pub(crate) fn list(fd: impl AsFd) -> io::Result<Vec<std::ffi::CString>> {
    let result = read(|buffer| {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into the exclusively borrowed buffer; the descriptor is open
        // for as long as `fd` is borrowed.
        unsafe { libc::flistxattr(fd.as_fd().as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    match result {
        Ok(names) => Ok(names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .filter_map(|name| std::ffi::CString::new(name).ok())
            .collect()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Calls with a growing buffer: the kernel's limit for a value and for a list of names is 64 KiB (XATTR_SIZE_MAX, XATTR_LIST_MAX).
fn read(call: impl Fn(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    for size in [256, 64 << 10] {
        let mut buffer = vec![0_u8; size];
        let length = call(&mut buffer);
        if let Ok(length) = usize::try_from(length) {
            buffer.truncate(length);
            return Ok(buffer);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::E2BIG))
}
