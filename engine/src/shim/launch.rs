//! The shim's view of the runtime: a compiled plan goes in, a process with its streams comes out; and what becomes of its cgroup.

use std::io;
use std::os::fd::OwnedFd;

use crate::cgroup::Cgroup;
use crate::chain;
use crate::runtime::{ExecPlan, LaunchError, LaunchPlan, LaunchTimes, Launched, Launcher, Launching, PipeEnds, Stdio};

/// A shim cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct ShimError {
    /// What it was doing.
    pub doing: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// What a new process gets as its standard streams.
#[derive(Debug, Clone, Copy)]
pub(super) enum Streams {
    /// A terminal of this many lines and columns.
    Terminal(u16, u16),
    /// Pipes; without `stdin` it reads /dev/null.
    Pipes { stdin: bool },
    /// /dev/null.
    Null,
}

/// A process on its way to its execve, and our ends of its pipes.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) launching: Launching,
    ends: Option<PipeEnds>,
}

/// A process whose execve has succeeded.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) pidfd: OwnedFd,
    pub(super) group: Cgroup,
    pub(super) times: LaunchTimes,
    /// Our ends.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
}

/// A process that did not start.
#[derive(Debug)]
pub(super) struct NotStarted {
    /// 125, 126 or 127.
    pub(super) code: i32,
    pub(super) message: String,
}

impl NotStarted {
    pub(super) fn new(doing: &str, e: &dyn std::error::Error) -> Self {
        Self { code: 125, message: format!("{doing}: {}", chain(e)) }
    }
}

impl From<LaunchError> for NotStarted {
    fn from(e: LaunchError) -> Self {
        Self { code: e.exit_code(), message: chain(&e) }
    }
}

/// Makes the first process of a container.
pub(super) fn container(launcher: &mut Launcher, plan: &[u8], streams: Streams) -> Result<Launch, NotStarted> {
    let plan: LaunchPlan = postcard::from_bytes(plan).map_err(|e| NotStarted::new("read the start plan", &e))?;
    with_streams(streams, |stdio| launcher.begin(&plan, stdio))
}

/// Makes a further process.
pub(super) fn exec(launcher: &mut Launcher, plan: &[u8], streams: Streams) -> Result<Launch, NotStarted> {
    let plan: ExecPlan = postcard::from_bytes(plan).map_err(|e| NotStarted::new("read the plan", &e))?;
    with_streams(streams, |stdio| launcher.begin_exec(&plan, stdio))
}

fn with_streams(
    streams: Streams,
    launch: impl FnOnce(Stdio) -> Result<Launching, LaunchError>,
) -> Result<Launch, NotStarted> {
    let (stdio, ends) = match streams {
        Streams::Null => (Stdio::null(), None),
        Streams::Terminal(rows, columns) => (Stdio::terminal(rows, columns), None),
        Streams::Pipes { stdin } => {
            let (stdio, ends) = Stdio::pipes(stdin).map_err(|e| NotStarted::new("make its pipes", &e))?;
            (stdio, Some(ends))
        }
    };
    let launching = launch(stdio)?;
    Ok(Launch { launching, ends })
}

impl Launch {
    /// The process that executes, as its launching has said.
    pub(super) fn executing(self) -> Process {
        let Launched { pid, pidfd, start_time, terminal, cgroup, times } = self.launching.executing();
        let (stdin, stdout, stderr) =
            self.ends.map_or((None, None, None), |ends| (ends.stdin, Some(ends.stdout), Some(ends.stderr)));
        Process { pid, start_time, pidfd, group: cgroup, times, stdin, stdout, stderr, terminal }
    }
}

/// Removes a container's group if nothing lives in it; never waits. The parents stay until the shim leaves.
pub(super) fn remove_if_empty(group: &Cgroup) -> bool {
    // Mostly everything is gone already, and this is all there is to do.
    if group.remove_at_once() {
        return true;
    }
    match group.procs() {
        Ok(processes) if !processes.is_empty() => false,
        // Unreadable: gone already, which removing says.
        _ => group.remove_itself().is_ok(),
    }
}
