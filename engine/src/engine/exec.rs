//! Further processes in a running container.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::link::{LinkError, ShimLink};
use super::{Engine, EngineError, lock};
use crate::config::{ContainerId, ProcessConfig};
use crate::container::Phase;
use crate::runtime::{self, Identity, RunningContainer};
use crate::shim::protocol::{self, Reply, Request, Target};

/// What to execute in a container, and how to be connected with it.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// The process. Environment and limits come on top of the container's; an empty user or directory is the container's. `tty` gives
    /// it a terminal.
    pub process: ProcessConfig,
    /// All capabilities and no filter.
    pub privileged: bool,
    /// Do not be connected: output goes to /dev/null.
    pub detach: bool,
    /// Lines and columns of its terminal.
    pub size: Option<(u16, u16)>,
}

/// How an exec's end becomes known: shared with the link's reading thread.
#[derive(Debug, Default)]
pub(super) struct ExecEnd {
    code: Mutex<Option<i32>>,
    told: Condvar,
}

impl ExecEnd {
    pub(super) fn tell(&self, code: i32) {
        lock(&self.code).get_or_insert(code);
        self.told.notify_all();
    }
}

/// A process in a container. Its streams are taken out and used directly; nobody is between.
#[derive(Debug)]
pub struct ExecSession {
    /// Host pid.
    pub pid: i32,
    /// The terminal's master: read, write, resize. Only with a terminal.
    pub terminal: Option<OwnedFd>,
    /// Write end of its stdin. Without a terminal, and only when `stdin_open` was asked for.
    pub stdin: Option<OwnedFd>,
    /// Read end of its stdout. Without a terminal.
    pub stdout: Option<OwnedFd>,
    /// Read end of its stderr. Without a terminal.
    pub stderr: Option<OwnedFd>,
    /// End it, with all it started, when this session is dropped.
    pub kill_on_drop: bool,
    number: u64,
    link: Arc<ShimLink>,
    end: Arc<ExecEnd>,
}

impl ExecSession {
    /// Its exit code, 128+N for a signal; waits, at most for `limit`. 137 when its shim was lost: it was killed then.
    pub fn wait(&self, limit: Option<Duration>) -> Option<i32> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut code = lock(&self.end.code);
        while code.is_none() {
            let left = deadline.map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            code = self.end.told.wait_timeout(code, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        *code
    }

    /// Sends it a signal; with `tree`, also to the processes it started (a probe whose time is over, with its children).
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: i32, tree: bool) -> Result<(), EngineError> {
        self.link.call(Request::Signal { target: Target::Exec(self.number), signal, tree }, Vec::new())?;
        Ok(())
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// `Invalid` when it has none (any more).
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), EngineError> {
        let terminal =
            self.terminal.as_ref().ok_or_else(|| EngineError::Invalid("the process has no terminal".to_owned()))?;
        crate::sys_descriptor::set_terminal_size(terminal, rows, columns)
            .map_err(|e| EngineError::Invalid(format!("cannot set the terminal's size: {e}")))
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        if self.kill_on_drop && lock(&self.end.code).is_none() {
            // It may have ended by now, or the shim: both are what is wanted.
            let _ = self.signal(libc::SIGKILL, true);
        }
        self.link.forget_exec(self.number);
    }
}

impl Engine {
    /// Starts a further process in a running container. It lives in the container's namespaces and cgroup and ends with it.
    ///
    /// # Errors
    /// `Phase` when the container does not run or is paused; [`EngineError::NotStarted`] with 126 or 127 when the command cannot be
    /// executed.
    pub fn exec(&self, id: &ContainerId, options: &ExecOptions) -> Result<ExecSession, EngineError> {
        let container = self.inner.container(id)?;
        let _not_while_freezing = container.freezing.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let state = container.state();
        if state.phase != Phase::Running {
            let name = container.name();
            return Err(EngineError::Phase { name, phase: state.phase, wanted: "execute a command in it" });
        }
        let mut link = container.running_link("execute a command in it")?;
        if !link.reads_plans() {
            // Of an older version of this program. Any shim can enter the container.
            link = self.inner.link(&container.config().group)?;
        }
        let config = runtime::ExecConfig { process: options.process.clone(), privileged: options.privileged };
        let running = RunningContainer {
            init: Identity { pid: state.pid, start_time: state.start_time },
            config: (*container.config()).clone(),
            instance: self.inner.config.instance.clone(),
            layout: self.inner.layout.clone(),
        };
        let plan = runtime::prepare_exec(&config, &running)?;
        let plan =
            postcard::to_stdvec(&plan).map_err(|e| EngineError::Invalid(format!("the plan cannot be encoded: {e}")))?;
        let number = link.next_number();
        let end = Arc::new(ExecEnd::default());
        link.expect_exec(number, Arc::clone(&end));
        let terminal = options.process.tty.then(|| options.size.unwrap_or((24, 80)));
        let request = protocol::Exec {
            container: id.0.clone(),
            exec: number,
            plan,
            terminal,
            stdin: options.process.stdin_open,
            detach: options.detach,
        };
        let answer = link.call(Request::Exec(request), Vec::new());
        let (pid, descriptors) = match answer {
            Ok((Reply::ExecStarted { pid }, descriptors)) => (pid, descriptors),
            other => {
                link.forget_exec(number);
                return Err(match other {
                    Ok((Reply::NotStarted { code, message }, _)) => EngineError::NotStarted { code, message },
                    Ok(_) => LinkError::Refused("the shim gave an answer to another question".to_owned()).into(),
                    Err(LinkError::Refused(message)) => EngineError::Conflict(message),
                    Err(e) => e.into(),
                });
            }
        };
        let mut descriptors = descriptors.into_iter();
        let mut session = ExecSession {
            pid,
            terminal: None,
            stdin: None,
            stdout: None,
            stderr: None,
            kill_on_drop: false,
            number,
            link,
            end,
        };
        if terminal.is_some() {
            session.terminal = descriptors.next();
        } else {
            session.stdout = descriptors.next();
            session.stderr = descriptors.next();
            session.stdin = descriptors.next();
        }
        Ok(session)
    }
}
