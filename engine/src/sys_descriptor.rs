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

/// Gives the memory that freed objects left behind back to the kernel: the shim is idle for days after a burst.
pub(crate) fn release_free_memory() {
    // SAFETY: malloc_trim only touches the allocator's own free lists, under its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Files on their way to the disk while the caller goes on: io_submit(2) of IOCB_CMD_FSYNC and IOCB_CMD_FDSYNC (Linux 4.18), which the
/// kernel carries out in threads of its own.
#[derive(Debug)]
pub(crate) struct Syncs {
    context: libc::c_ulong,
    event: OwnedFd,
}

/// As many at once; the host has 65536 for all processes (fs.aio-max-nr), and a shim that finds them taken waits for its disk instead.
const SYNCS: libc::c_long = 64;

/// `struct io_event` of include/uapi/linux/aio_abi.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct SyncEvent {
    data: u64,
    object: u64,
    result: i64,
    more: i64,
}

impl Syncs {
    /// # Errors
    /// Those of io_setup(2): a kernel without it, too many in the system.
    pub(crate) fn new() -> io::Result<Self> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is a live, zeroed aio_context_t that the kernel fills.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, SYNCS, &raw mut context) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { context, event: event.into() }) }
    }

    /// Can be read when [`Self::finished`] has something to say.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Begins to write a file, or with `data_only` what is needed to read its content again. The file may be closed meanwhile.
    ///
    /// # Errors
    /// Those of io_submit(2): too many at once, a file system that cannot.
    pub(crate) fn begin(&self, file: BorrowedFd<'_>, data_only: bool, number: u64) -> io::Result<()> {
        const FSYNC: u16 = 2;
        const FDSYNC: u16 = 3;
        const RESFD: u32 = 1;
        // SAFETY: all its fields are integers, for which zero is a value.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_data = number;
        request.aio_lio_opcode = if data_only { FDSYNC } else { FSYNC };
        request.aio_fildes = file.as_raw_fd().unsigned_abs();
        request.aio_flags = RESFD;
        request.aio_resfd = self.event.as_raw_fd().unsigned_abs();
        let mut list = [&raw mut request];
        // SAFETY: the list and what it points to live for the whole call, which copies them; no buffer is named.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) };
        if result == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What has ended, by number.
    pub(crate) fn finished(&self) -> Vec<(u64, io::Result<()>)> {
        // Read before the events, so that none that comes meanwhile is missed.
        let _ = nix::unistd::read(&self.event, &mut [0; 8]);
        let mut events = [SyncEvent::default(); SYNCS as usize];
        let no_wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `events` has room for SYNCS events and `no_wait` is live; the kernel writes whole events and says how many.
        let count = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 0, SYNCS, events.as_mut_ptr(), &raw const no_wait)
        };
        let count = usize::try_from(count).unwrap_or(0);
        let outcome = |event: &SyncEvent| {
            if event.result < 0 {
                Err(io::Error::from_raw_os_error(i32::try_from(-event.result).unwrap_or(libc::EIO)))
            } else {
                Ok(())
            }
        };
        events[..count].iter().map(|event| (event.data, outcome(event))).collect()
    }
}

impl Drop for Syncs {
    fn drop(&mut self) {
        // SAFETY: the context is ours and is not used again. The call waits for what is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
