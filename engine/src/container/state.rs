//! Where a container is in its life.

use serde::{Deserialize, Serialize};

use crate::shim::protocol::{ExitRecord, RunRecord};

/// A container's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Never started.
    Created,
    /// Its first process runs.
    Running,
    /// Runs, frozen.
    Paused,
    /// Its first process has ended, or could not be started.
    Exited,
    /// Being removed.
    Removing,
}

impl Phase {
    /// Is there a process?
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
            Self::Removing => "removing",
        })
    }
}

/// A container's state. Times are ns since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Where it is in its life.
    pub phase: Phase,
    /// Host pid of its first process; 0 without one.
    pub pid: i32,
    /// When that process was started, in clock ticks after boot: with the pid, which process it is.
    pub start_time: u64,
    /// When it was last started.
    pub started_at: Option<i64>,
    /// When it last ended.
    pub finished_at: Option<i64>,
    /// How it last ended: its exit code, 128+N for signal N, 125–127 when it could not be started.
    pub exit_code: Option<i32>,
    /// The kernel killed one of its processes for lack of memory.
    pub oom_killed: bool,
    /// Why it could not be started, or ended without its own doing.
    pub error: String,
    /// It went down with its shim or its host.
    pub lost: bool,
}

impl Default for ContainerState {
    fn default() -> Self {
        Self {
            phase: Phase::Created,
            pid: 0,
            start_time: 0,
            started_at: None,
            finished_at: None,
            exit_code: None,
            oom_killed: false,
            error: String::new(),
            lost: false,
        }
    }
}

impl ContainerState {
    pub(crate) fn run(&mut self, run: &RunRecord) {
        *self = Self {
            phase: Phase::Running,
            pid: run.pid,
            start_time: run.start_time,
            started_at: Some(run.started_at),
            ..Self::default()
        };
    }

    pub(crate) fn exit(&mut self, exit: &ExitRecord) {
        self.phase = Phase::Exited;
        self.pid = 0;
        self.start_time = 0;
        self.finished_at = Some(exit.finished_at);
        self.exit_code = Some(exit.code);
        self.oom_killed = exit.oom;
        self.error.clone_from(&exit.error);
        self.lost = exit.is_loss();
    }
}
