//! The only place with `unsafe`: system calls that neither std nor nix offers, and the code between clone and exec.
//!
//! [`raw`] holds one safe, allocation-free function per system call; [`child`] is everything a container's first process does
//! before it becomes the user's program; [`bpf`] loads device filters; [`seal`] makes this program's own executable
//! unreachable for writing; [`reaper`] is PID 1 for `init: true`.

#![allow(unsafe_code, reason = "system calls without a safe wrapper live here and nowhere else")]

pub(crate) mod bpf;
pub(crate) mod child;
pub(crate) mod program;
pub(crate) mod raw;
pub(crate) mod reaper;
pub(crate) mod report;
pub(crate) mod seal;
pub(crate) mod xattr;

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Takes charge of a descriptor that a call of [`raw`] has just returned.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    debug_assert!(fd >= 0, "only results of successful calls are owned");
    // SAFETY: every caller passes the fresh result of a call that opens, whose number nobody else holds.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A context for an overlay whose layers are named one by one with `lowerdir+`; `None` where the kernel's overlayfs still reads options
/// as mount(2) does (before Linux 6.5). There fsconfig(2) takes every key, and only the mount would fail, leaving a line in the kernel's
/// log each time; so a key that no overlayfs knows is tried once.
pub(crate) fn overlay_of_single_layers() -> Result<Option<OwnedFd>, nix::errno::Errno> {
    static READS_KEYS: OnceLock<bool> = OnceLock::new();
    let context = || raw::fsopen(c"overlay").map(own);
    let reads_keys = match READS_KEYS.get() {
        Some(known) => *known,
        None => {
            let refused = raw::fsconfig_string(context()?.as_raw_fd(), c"orch_knows_none", c"x").is_err();
            *READS_KEYS.get_or_init(|| refused)
        }
    };
    if reads_keys { context().map(Some) } else { Ok(None) }
}

/// A pidfd, closed on exec as all are.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(own(fd as RawFd)) }
}

/// One message of the child, with the descriptor it carries, or `WouldBlock`. Length 0: the other end is closed.
pub(crate) fn receive_record(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
    )?;
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptor = numbers.into_iter().map(own).next_back();
        }
    }
    Ok((message.bytes, descriptor))
}

/// An extended attribute of a path, links followed; `None` when it has none that can be read in 256 bytes.
pub(crate) fn extended_attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).ok()?, CString::new(name).ok()?);
    let mut value = vec![0u8; 256];
    // SAFETY: both strings are NUL-terminated; the buffer is live and of the length given.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

/// The calling process's own hard limit.
pub(crate) fn hard_limit(resource: u32) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live `struct rlimit` that the kernel fills.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(limit.rlim_max)
    }
}
