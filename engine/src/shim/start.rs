//! Starting containers and further processes in them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::EpollFlags;

use super::launch::{self, NotStarted, Process, Streams};
use super::process::{Container, Exec, Input, Output};
use super::protocol::{self, Reply, RunRecord, Start, StartTimes};
use super::record;
use super::server::{Server, Source, now};
use crate::logs::writer::LogWriter;
use crate::runtime::LaunchTimes;

impl Server {
    /// Starts a container and answers what to reply.
    pub(super) fn start(&mut self, start: Start, descriptors: Vec<OwnedFd>) -> Reply {
        if self.is_ending() {
            return Reply::Refused { message: "the shim is being ended".to_owned() };
        }
        if self.containers.contains_key(&start.container) {
            return Reply::Refused { message: format!("container {} is running already", start.container) };
        }
        let begun = Instant::now();
        match self.try_start(start, descriptors) {
            Ok((run, times)) => Reply::Started { run, times: start_times(times, begun) },
            Err(NotStarted { code, message }) => Reply::NotStarted { code, message },
        }
    }

    fn try_start(
        &mut self,
        start: Start,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(RunRecord, LaunchTimes), NotStarted> {
        let supervise = |e: io::Error| NotStarted::new("supervise the container", &e);
        let directory = descriptors.pop().ok_or_else(|| supervise(io::ErrorKind::InvalidInput.into()))?;
        let log = LogWriter::new(directory.try_clone().map_err(supervise)?, start.log);
        let streams = match start.terminal {
            Some((rows, columns)) => Streams::Terminal(rows, columns),
            None => Streams::Pipes { stdin: start.stdin },
        };
        // Taken before there is a process, so that a full disk is found in time.
        if start.durable {
            record::reserve_exit(&directory).map_err(|e| NotStarted::new("write to the container's directory", &e))?;
        }
        let started_at = now();
        let mut process = launch::container(&mut self.launcher, &start.plan, streams)?;
        let run =
            RunRecord { pid: process.pid, start_time: process.start_time, boot_id: self.boot_id.clone(), started_at };
        match self.supervise(&start, &mut process, &directory, &run) {
            Ok((outputs, input, init_token)) => {
                let container = Container {
                    run: run.clone(),
                    init: process.pidfd,
                    init_token,
                    directory,
                    group: process.group,
                    log,
                    outputs,
                    input,
                    stdin_once: start.stdin_once,
                    durable: start.durable,
                    ending: None,
                };
                self.containers.insert(start.container, container);
                Ok((run, process.times))
            }
            Err(e) => {
                // Not even its end could be watched.
                let _ = process.group.kill();
                let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(process.pid), None);
                launch::remove_if_empty(&process.group);
                Err(supervise(e))
            }
        }
    }

    /// Takes a running process and its streams into the loop.
    fn supervise(
        &mut self,
        start: &Start,
        process: &mut Process,
        directory: &OwnedFd,
        run: &RunRecord,
    ) -> io::Result<([Option<Output>; 2], Option<Input>, u64)> {
        record::write_run(directory, run)?;
        let id = &start.container;
        let is_terminal = process.terminal.is_some();
        let first = self.output(id, 0, process.terminal.take().or(process.stdout.take()), is_terminal)?;
        let second = self.output(id, 1, process.stderr.take(), false)?;
        let input = match (process.stdin.take(), is_terminal && start.stdin) {
            (Some(pipe), _) => {
                nonblocking(&pipe)?;
                let token = self.watch(&pipe, EpollFlags::empty(), Source::Input(id.clone()))?;
                Some(Input { pipe: Some(pipe), token, pending: VecDeque::new(), closing: false })
            }
            (None, true) => {
                let token = first.as_ref().map_or(0, |output| output.token);
                Some(Input { pipe: None, token, pending: VecDeque::new(), closing: false })
            }
            (None, false) => None,
        };
        let init_token = self.watch(&process.pidfd, EpollFlags::EPOLLIN, Source::Init(id.clone()))?;
        Ok(([first, second], input, init_token))
    }

    fn output(
        &mut self,
        id: &str,
        index: usize,
        descriptor: Option<OwnedFd>,
        terminal: bool,
    ) -> io::Result<Option<Output>> {
        let Some(descriptor) = descriptor else { return Ok(None) };
        nonblocking(&descriptor)?;
        let token = self.watch(&descriptor, EpollFlags::EPOLLIN, Source::Output(id.to_owned(), index))?;
        Ok(Some(Output { descriptor, token, terminal, watched: true, look_again: None, held_until: None }))
    }

    /// Starts a further process for the client `owner`, and answers it.
    pub(super) fn exec(&mut self, owner: u64, exec: protocol::Exec) -> (Reply, Vec<OwnedFd>) {
        // One that is not known here is another shim's; the runtime looks whether it is still the process that the plan names.
        if self.containers.get(&exec.container).is_some_and(|container| container.ending.is_some()) {
            return (Reply::Refused { message: format!("container {} is not running", exec.container) }, Vec::new());
        }
        let streams = match exec.terminal {
            // A terminal that nobody holds would hang up at once.
            _ if exec.detach => Streams::Null,
            Some((rows, columns)) => Streams::Terminal(rows, columns),
            None => Streams::Pipes { stdin: exec.stdin },
        };
        let process = match launch::exec(&mut self.launcher, &exec.plan, streams) {
            Ok(process) => process,
            Err(NotStarted { code, message }) => return (Reply::NotStarted { code, message }, Vec::new()),
        };
        let Process { pid, pidfd, group, stdin, stdout, stderr, terminal, .. } = process;
        let token = match self.watch(&pidfd, EpollFlags::EPOLLIN, Source::Exec) {
            Ok(token) => token,
            Err(e) => {
                let _ = crate::sys_descriptor::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
                let NotStarted { code, message } = NotStarted::new("supervise the process", &e);
                return (Reply::NotStarted { code, message }, Vec::new());
            }
        };
        self.execs.insert(token, Exec { owner: (owner, exec.exec), group, pid, pidfd });
        (Reply::ExecStarted { pid }, [terminal, stdout, stderr, stdin].into_iter().flatten().collect())
    }
}

fn start_times(times: LaunchTimes, begun: Instant) -> StartTimes {
    let ns = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    StartTimes {
        cgroup: ns(times.cgroup),
        compile: ns(times.compile),
        clone: ns(times.clone),
        child: ns(times.child),
        whole: ns(begun.elapsed()),
    }
}

fn nonblocking(descriptor: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(descriptor.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
