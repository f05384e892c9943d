//! Processes, as a machine's own procfs shows them.

use std::path::{Path, PathBuf};

/// What makes a process the same one: its id and the time it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Process id on the machine it belongs to.
    pub pid: i32,
    /// When it began, in clock ticks since the boot.
    pub began: u64,
}

/// A machine's procfs.
#[derive(Debug, Clone)]
pub struct Processes {
    proc: PathBuf,
}

impl Processes {
    /// The procfs that is mounted at `proc`.
    #[must_use]
    pub fn at(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into() }
    }

    /// The folder of a process.
    #[must_use]
    pub fn path(&self, pid: i32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    /// Ids of all processes.
    #[must_use]
    pub fn all(&self) -> Vec<i32> {
        let entries = std::fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let mut pids: Vec<i32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        pids
    }

    /// The process, unless there is none, or only a zombie.
    #[must_use]
    pub fn identity(&self, pid: i32) -> Option<Identity> {
        let (state, began) = self.stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(Identity { pid, began })
    }

    /// Its state, and when it began.
    fn stat(&self, pid: i32) -> Option<(char, u64)> {
        let stat = std::fs::read_to_string(self.path(pid).join("stat")).ok()?;
        // proc_pid_stat(5): the name in brackets may hold anything; the state follows it, `starttime` is 19 fields later.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
    }

    /// Whether anything of this very process is left. Its first thread can be a zombie while others still hold its files and locks;
    /// only when it has been waited for has it let go of everything.
    #[must_use]
    pub fn remains(&self, identity: Identity) -> bool {
        self.stat(identity.pid).is_some_and(|(_, began)| began == identity.began)
    }

    /// Whether this very process still runs.
    #[must_use]
    pub fn alive(&self, identity: Identity) -> bool {
        self.identity(identity.pid) == Some(identity)
    }

    /// Whether this very process has let go of all that it held: it is gone, or a zombie without further threads.
    #[must_use]
    pub fn has_ended(&self, identity: Identity) -> bool {
        let has_threads = || self.status(identity.pid, "Threads").is_some_and(|threads| threads != "1");
        !(self.alive(identity) || self.remains(identity) && has_threads())
    }

    /// argv, joined with blanks.
    #[must_use]
    pub fn command(&self, pid: i32) -> String {
        let bytes = std::fs::read(self.path(pid).join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        let name = || std::fs::read_to_string(self.path(pid).join("comm")).unwrap_or_default();
        if text.trim().is_empty() { format!("[{}]", name().trim()) } else { text.trim().to_owned() }
    }

    /// A number of `/proc/PID/status`, such as `VmRSS` in KiB.
    #[must_use]
    pub fn status(&self, pid: i32, field: &str) -> Option<String> {
        let status = std::fs::read_to_string(self.path(pid).join("status")).ok()?;
        let value = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
        Some(value.trim().to_owned())
    }

    /// Where a process stands in the tree.
    #[must_use]
    pub fn parent(&self, pid: i32) -> Option<i32> {
        self.status(pid, "PPid")?.parse().ok()
    }

    /// The program that a process runs.
    #[must_use]
    pub fn program(&self, pid: i32) -> Option<PathBuf> {
        std::fs::read_link(self.path(pid).join("exe")).ok()
    }

    /// Its procfs.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.proc
    }
}
