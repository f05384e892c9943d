//! What a shim holds of a running container.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;

use super::end::Recording;
use super::protocol::RunRecord;
use crate::cgroup::Cgroup;
use crate::logs::writer::LogWriter;

/// Input for a container that does not read it. Beyond this the client that sends it is not read either.
const INPUT_LIMIT: usize = 64 << 10;

/// A container's stdin: a pipe, or its terminal.
#[derive(Debug)]
pub(super) struct Input {
    /// `None` where the terminal's descriptor is shared with the output.
    pub(super) pipe: Option<OwnedFd>,
    pub(super) token: u64,
    pub(super) pending: VecDeque<u8>,
    /// Close it when everything pending is written.
    pub(super) closing: bool,
}

impl Input {
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= INPUT_LIMIT
    }

    /// Writes what the other side takes. False when it reads no more.
    pub(super) fn write(&mut self, to: impl AsFd) -> bool {
        while !self.pending.is_empty() {
            match nix::unistd::write(to.as_fd(), self.pending.as_slices().0) {
                Ok(written) => {
                    self.pending.drain(..written);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return true,
                Err(_) => return false,
            }
        }
        if self.pending.capacity() > 4096 {
            self.pending = VecDeque::new();
        }
        true
    }
}

/// One of a container's outputs.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) descriptor: OwnedFd,
    pub(super) token: u64,
    pub(super) terminal: bool,
    /// Is the loop told when it can be read?
    pub(super) watched: bool,
    /// A terminal that nobody has open is looked at again at this time: it may be opened again, and the kernel's hang-up does not end.
    pub(super) look_again: Option<Instant>,
    /// A patient client holds it back until then.
    pub(super) held_until: Option<Instant>,
}

/// What one read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    End,
    /// No slave of the terminal is open.
    HungUp,
}

impl Output {
    pub(super) fn read(&self, buffer: &mut [u8]) -> Got {
        loop {
            match nix::unistd::read(&self.descriptor, buffer) {
                Ok(0) => return Got::End,
                Ok(count) => return Got::Bytes(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Got::Nothing,
                Err(Errno::EIO) if self.terminal => return Got::HungUp,
                Err(_) => return Got::End,
            }
        }
    }
}

/// The first process has ended; what it leaves is being cleared away.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) code: i32,
    pub(super) signal: i32,
    pub(super) oom: bool,
    pub(super) since: Instant,
    pub(super) finished_at: i64,
    /// Everything is cleared away, and the record is on its way to the disk.
    pub(super) recording: Option<Recording>,
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) run: RunRecord,
    pub(super) init: OwnedFd,
    pub(super) init_token: u64,
    pub(super) directory: OwnedFd,
    pub(super) group: Cgroup,
    pub(super) log: LogWriter,
    /// stdout or the terminal, then stderr.
    pub(super) outputs: [Option<Output>; 2],
    pub(super) input: Option<Input>,
    pub(super) stdin_once: bool,
    pub(super) durable: bool,
    /// Its mount namespace, which so outlives its processes: the last of these would else unmount all of it before its end shows. `None`
    /// where it ended before this could be opened.
    pub(super) mounts: Option<OwnedFd>,
    pub(super) ending: Option<Ending>,
}

impl Container {
    /// The descriptor to write input to.
    pub(super) fn write_input(&mut self) -> bool {
        let Some(input) = &mut self.input else { return false };
        match (input.pipe.take(), &self.outputs[0]) {
            (Some(pipe), _) => {
                let open = input.write(&pipe);
                input.pipe = Some(pipe);
                open
            }
            (None, Some(terminal)) => input.write(&terminal.descriptor),
            (None, None) => false,
        }
    }
}

/// A further process in a container. Its streams are with the agent.
#[derive(Debug)]
pub(super) struct Exec {
    /// The connection that asked for it and that connection's number for it.
    pub(super) owner: (u64, u64),
    /// Its container's.
    pub(super) group: Cgroup,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// Reaps a process that has ended: exit code (128+N) and signal. `None` while it runs.
pub(super) fn reap(pidfd: &OwnedFd) -> io::Result<Option<(i32, i32)>> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    loop {
        match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some((code, 0))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some((128 + signal as i32, signal as i32))),
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
