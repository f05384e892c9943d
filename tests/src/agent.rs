//! The agent of a [`Host`]: started, killed, looked at.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, RUN};
use crate::machine::Place;
use crate::process::Identity;
use crate::wait::{PATIENCE, eventually, until};

impl Host {
    /// Starts `orch agent` as a supervisor would, and waits until it answers.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn start_agent(&self) {
        self.start_agent_with(&[]);
    }

    /// Starts `orch agent arguments…` and waits until it answers.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn start_agent_with(&self, arguments: &[&str]) {
        self.start_agent_without_waiting(arguments);
        eventually(
            PATIENCE,
            "the agent answers",
            || {
                if self.agent().is_some() { Ok(()) } else { Err(self.agent_log()) }
            },
        );
    }

    /// Starts `orch agent arguments…`, whatever becomes of it.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub fn start_agent_without_waiting(&self, arguments: &[&str]) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log can be opened");
        let child = self.inside(Place::Host, || {
            let mut command = Command::new(self.program());
            self.prepare(&mut command);
            command
                .arg("agent")
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("orch can be started")
        });
        // Its end is seen in the machine's procfs; the zombie is taken in by this thread.
        std::thread::spawn(move || {
            let mut child = child;
            child.wait()
        });
    }

    /// The agent that answers, if one does.
    #[must_use]
    pub fn agent(&self) -> Option<Identity> {
        if !self.path(format!("{RUN}/orch.sock")).exists() {
            return None;
        }
        let socket = format!("unix://{RUN}/orch.sock");
        let info = self.orch(&["--host", &socket, "system", "info", "--format", "json"]);
        if info.code != 0 {
            return None;
        }
        let pid = info.json()["agent_pid"].as_i64()?;
        self.processes().identity(i32::try_from(pid).ok()?)
    }

    /// The processes of agents, also of those that do not answer.
    #[must_use]
    pub fn agents(&self) -> Vec<Identity> {
        let all = self.processes().all().into_iter();
        let agents = all.filter(|pid| self.processes().command(*pid).contains("orch agent"));
        agents.filter_map(|pid| self.processes().identity(pid)).collect()
    }

    /// Ends the agent at once, as a crash would.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    pub fn kill_agent(&self) {
        let agent = self.agent().expect("an agent runs");
        self.kill(agent, Signal::SIGKILL);
    }

    /// Asks the agent to end, as a supervisor would, and waits until it has; nothing when none runs.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop_agent(&self) {
        if let Some(agent) = self.agent() {
            self.kill(agent, Signal::SIGTERM);
        }
    }

    /// Signals a process of the machine and waits until it is gone.
    ///
    /// # Panics
    /// When it does not go.
    #[track_caller]
    pub fn kill(&self, process: Identity, signal: Signal) {
        self.signal(process, signal);
        until(Duration::from_secs(20), &format!("process {} ends by {signal}", process.pid), || {
            self.processes().has_ended(process)
        });
    }

    /// Signals a process of the machine.
    ///
    /// # Panics
    /// When there is no such process.
    #[track_caller]
    pub fn signal(&self, process: Identity, signal: Signal) {
        let outer = self.outer(process.pid).unwrap_or_else(|| panic!("there is no process {}", process.pid));
        // It may have ended by itself just now.
        let _ = kill(Pid::from_raw(outer), signal);
    }

    /// What agents have said so far.
    #[must_use]
    pub fn agent_log(&self) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        read(self.log_path()) + &read(self.path(format!("{RUN}/agent.log")))
    }

    /// The shims that run.
    #[must_use]
    pub fn shims(&self) -> Vec<Identity> {
        let processes = self.processes();
        let shim = |pid: &i32| {
            let command = processes.command(*pid);
            let mut words = command.split(' ');
            words.next().is_some_and(|w| w.ends_with("orch")) && words.next() == Some("shim")
                || command.starts_with("orch-shim")
        };
        processes.all().into_iter().filter(shim).filter_map(|pid| processes.identity(pid)).collect()
    }
}
