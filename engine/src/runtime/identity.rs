//! Processes that are not ours: opened by number, then checked by start time.

use std::os::fd::OwnedFd;

use super::plan::Identity;

/// Field 22 of /proc/PID/stat: clock ticks since boot. `None` when there is no such process.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold blanks and parentheses; the last one ends it. What follows is field 3.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

impl Identity {
    /// The process that has this number now; `None` when there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        start_time(pid).map(|start_time| Self { pid, start_time })
    }

    /// Whether that very process still exists (a zombie does).
    #[must_use]
    pub fn exists(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// A pidfd of that very process; `None` when it is gone. The start time is read after opening: the descriptor then stands for
    /// the process that was looked at, or for a dead one.
    #[must_use]
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = crate::sys::pidfd_open(self.pid).ok()?;
        self.exists().then_some(pidfd)
    }
}
