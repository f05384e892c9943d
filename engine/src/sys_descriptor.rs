//! The system calls on descriptors that the shim and the façade need and nix does not offer safely: receiving descriptors over a
//! socket, pidfds, and a terminal's size. Every unsafe block of the supervision side is in this file.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The kernel passes at most this many descriptors in one message (SCM_MAX_FD, include/net/scm.h).
pub(crate) const MAX_PASSED: usize = 253;

/// Receives once from a stream socket: bytes into `buffer`, descriptors (close-on-exec) appended to `descriptors`. Returns the
/// number of bytes, 0 at the end of the stream.
///
/// # Errors
/// That of recvmsg(2); `InvalidData` when the kernel had to drop descriptors.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut std::collections::VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; MAX_PASSED]);
    let mut iov = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
    for control in message.cmsgs().map_err(io::Error::from)? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for descriptor in raw {
                // SAFETY: the kernel installed this descriptor in our table for this very call of recvmsg and nothing else has
                // seen its number, so the OwnedFd made here is its only owner.
                descriptors.push_back(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
    }
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors were lost on the way: MSG_CTRUNC"));
    }
    Ok(message.bytes)
}

/// Opens a pidfd of a process (pidfd_open(2), Linux 5.3).
///
/// # Errors
/// That of the call; `NotFound`-like ESRCH when there is no such process.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and reads no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = RawFd::try_from(descriptor).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the call succeeded and returned a fresh descriptor that nobody else holds.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sends a signal through a pidfd: never reaches another process that was given the same number later.
///
/// # Errors
/// That of pidfd_send_signal(2); ESRCH when the process has been reaped.
pub(crate) fn pidfd_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed and means "as kill(2) would"; no other memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the size of a terminal; the kernel tells its foreground group with SIGWINCH.
///
/// # Errors
/// That of ioctl(TIOCSWINSZ).
pub(crate) fn set_terminal_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives on this stack frame for the whole call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bounds how many arenas the threads of this process take memory from: by default glibc has eight for each processor, and what each
/// has seen at once stays with it. To be called before there is a second thread.
pub fn limit_arenas(count: u8) {
    // SAFETY: mallopt only sets a parameter of the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count.into());
    }
}

/// Gives the memory that freed objects left behind back to the kernel: agent and shim are idle for days after a burst.
pub fn release_free_memory() {
    // SAFETY: malloc_trim only touches the allocator's own free lists, under its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
