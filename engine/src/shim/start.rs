//! Starting containers and further processes in them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::EpollFlags;

use super::launch::{self, Launch, NotStarted, Process, Streams};
use super::process::{Container, Exec, Input, Output};
use super::protocol::{self, Reply, RunRecord, Start, StartTimes};
use super::record;
use super::server::{Server, Source, now};
use crate::logs::writer::LogWriter;
use crate::runtime::{LAUNCH_PATIENCE, LaunchTimes};

/// A process that was made and has not executed yet. Many can be on their way at once: each builds its root by itself.
#[derive(Debug)]
pub(super) struct Starting {
    launch: Launch,
    begun: Instant,
    /// Who is to be answered: a connection, and its number of the request.
    asked: (u64, u64),
    what: What,
}

#[derive(Debug)]
enum What {
    Container(Box<NewContainer>),
    Exec { exec: u64 },
}

#[derive(Debug)]
struct NewContainer {
    /// Without its plan.
    start: Start,
    directory: OwnedFd,
    log: LogWriter,
    started_at: i64,
}

/// A start that waits until the container's former run is unmounted: two overlays must not share one layer.
#[derive(Debug)]
pub(super) struct Held {
    asked: (u64, u64),
    start: Start,
    descriptors: Vec<OwnedFd>,
}

impl Starting {
    /// When its time is over.
    pub(super) fn deadline(&self) -> Instant {
        self.begun + LAUNCH_PATIENCE
    }

    fn is_container(&self, id: &str) -> bool {
        matches!(&self.what, What::Container(new) if new.start.container == id)
    }
}

impl Server {
    /// Begins to start a container; the answer follows when it executes, or has failed.
    pub(super) fn start(&mut self, asked: (u64, u64), start: Start, descriptors: Vec<OwnedFd>) {
        let refused = if self.is_ending() {
            Some("the shim is being ended".to_owned())
        } else if self.containers.contains_key(&start.container)
            || self.starting.values().any(|other| other.is_container(&start.container))
            || self.held.iter().any(|other| other.start.container == start.container)
        {
            Some(format!("container {} is running already", start.container))
        } else {
            None
        };
        if let Some(message) = refused {
            self.answer(asked, Reply::Refused { message }, Vec::new());
            return;
        }
        if self.unmounting.values().any(|other| *other == start.container) {
            self.held.push(Held { asked, start, descriptors });
            return;
        }
        let container = start.container.clone();
        if let Err(e) = self.begin(asked, start, descriptors) {
            self.answer(asked, e.into(), Vec::new());
            self.resume_clients(&container);
        }
    }

    fn begin(&mut self, asked: (u64, u64), start: Start, mut descriptors: Vec<OwnedFd>) -> Result<(), NotStarted> {
        let begun = Instant::now();
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
        let launch = launch::container(&mut self.launcher, &start.plan, streams)?;
        let group = launch.launching.cgroup();
        if let Some((parent, _)) = group.path().rsplit_once('/')
            && !self.parents.contains_key(parent)
        {
            self.parents.insert(parent.to_owned(), group.clone());
        }
        let start = Start { plan: Vec::new(), ..start };
        let new = NewContainer { start, directory, log, started_at };
        self.await_exec(Starting { launch, begun, asked, what: What::Container(Box::new(new)) });
        Ok(())
    }

    /// Lets the loop wait for a process's execve.
    fn await_exec(&mut self, starting: Starting) {
        match self.watch(starting.launch.launching.socket(), EpollFlags::EPOLLIN, Source::Starting) {
            Ok(token) => {
                self.starting.insert(token, starting);
            }
            // No room in the loop: then it is waited for here.
            Err(_) => {
                let mut starting = starting;
                let executing = loop {
                    match starting.launch.launching.is_executing() {
                        Ok(false) => wait_for(std::iter::once(starting.launch.launching.socket())),
                        other => break other.map(drop),
                    }
                };
                self.started(starting, executing.map_err(NotStarted::from));
            }
        }
    }

    /// Looks how far a process has come; when it executes or has failed, who asked is told.
    pub(super) fn progress_start(&mut self, token: u64) {
        let Some(starting) = self.starting.get_mut(&token) else { return };
        let executing = match starting.launch.launching.is_executing() {
            Ok(false) => return,
            other => other.map(drop),
        };
        let Some(starting) = self.starting.remove(&token) else { return };
        // Before the socket is closed: a sibling on its way holds a copy, and the loop would hear of it for ever.
        self.unwatch(starting.launch.launching.socket(), token);
        self.started(starting, executing.map_err(NotStarted::from));
    }

    /// Starts what waited for this container's mounts to go.
    pub(super) fn start_held(&mut self, id: &str) {
        if let Some(at) = self.held.iter().position(|held| held.start.container == id) {
            let Held { asked, start, descriptors } = self.held.swap_remove(at);
            self.start(asked, start, descriptors);
        }
    }

    /// Waits for all that are on their way, so that what runs can be told or ended.
    pub(super) fn settle_starts(&mut self) {
        while let (Some(first), false) = (self.held.first(), self.is_ending()) {
            match self.unmounts.as_ref().filter(|_| self.unmounting.values().any(|id| *id == first.start.container)) {
                Some(unmounts) => wait_for(std::iter::once(unmounts.event())),
                None => self.start_held(&first.start.container.clone()),
            }
            self.take_synced();
        }
        for Held { asked, start, descriptors } in std::mem::take(&mut self.held) {
            // Refused: this shim is ending.
            self.start(asked, start, descriptors);
        }
        while !self.starting.is_empty() {
            wait_for(self.starting.values().map(|starting| starting.launch.launching.socket()));
            let tokens: Vec<u64> = self.starting.keys().copied().collect();
            tokens.into_iter().for_each(|token| self.progress_start(token));
        }
    }

    /// The process of this number, when it is on its way.
    pub(super) fn starting_of(&self, pid: i32) -> Option<u64> {
        self.starting.iter().find(|(_, starting)| starting.launch.launching.pid() == pid).map(|(token, _)| *token)
    }

    fn started(&mut self, starting: Starting, outcome: Result<(), NotStarted>) {
        let Starting { launch, begun, asked, what } = starting;
        match what {
            What::Container(new) => {
                let id = new.start.container.clone();
                let process = outcome.map(|()| launch.executing());
                let kept = process.and_then(|process| self.keep(*new, process));
                let reply = match kept {
                    Ok((run, times)) => Reply::Started { run, times: start_times(times, begun) },
                    Err(e) => e.into(),
                };
                self.answer(asked, reply, Vec::new());
                self.resume_clients(&id);
            }
            What::Exec { exec } => {
                let (reply, passed) = match outcome {
                    Ok(()) => self.keep_exec((asked.0, exec), launch.executing()),
                    Err(e) => (e.into(), Vec::new()),
                };
                self.answer(asked, reply, passed);
            }
        }
    }

    /// Takes a container that executes into the loop.
    fn keep(&mut self, new: NewContainer, mut process: Process) -> Result<(RunRecord, LaunchTimes), NotStarted> {
        let NewContainer { start, directory, log, started_at } = new;
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
                    mounts: File::open(format!("/proc/{}/ns/mnt", run.pid)).ok().map(OwnedFd::from),
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
                Err(NotStarted::new("supervise the container", &e))
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

    /// Begins to start a further process; the answer follows when it executes, or has failed.
    pub(super) fn exec(&mut self, asked: (u64, u64), exec: protocol::Exec) {
        // One that is not known here is another shim's; the runtime looks whether it is still the process that the plan names.
        if self.containers.get(&exec.container).is_some_and(|container| container.ending.is_some()) {
            let message = format!("container {} is not running", exec.container);
            self.answer(asked, Reply::Refused { message }, Vec::new());
            return;
        }
        let streams = match exec.terminal {
            // A terminal that nobody holds would hang up at once.
            _ if exec.detach => Streams::Null,
            Some((rows, columns)) => Streams::Terminal(rows, columns),
            None => Streams::Pipes { stdin: exec.stdin },
        };
        let begun = Instant::now();
        match launch::exec(&mut self.launcher, &exec.plan, streams) {
            Ok(launch) => self.await_exec(Starting { launch, begun, asked, what: What::Exec { exec: exec.exec } }),
            Err(e) => self.answer(asked, e.into(), Vec::new()),
        }
    }

    /// Takes a further process that executes into the loop, for its owner.
    fn keep_exec(&mut self, owner: (u64, u64), process: Process) -> (Reply, Vec<OwnedFd>) {
        let Process { pid, pidfd, group, stdin, stdout, stderr, terminal, .. } = process;
        let token = match self.watch(&pidfd, EpollFlags::EPOLLIN, Source::Exec) {
            Ok(token) => token,
            Err(e) => {
                let _ = crate::sys_descriptor::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
                return (NotStarted::new("supervise the process", &e).into(), Vec::new());
            }
        };
        self.execs.insert(token, Exec { owner, group, pid, pidfd });
        (Reply::ExecStarted { pid }, [terminal, stdout, stderr, stdin].into_iter().flatten().collect())
    }
}

impl From<NotStarted> for Reply {
    fn from(NotStarted { code, message }: NotStarted) -> Self {
        Self::NotStarted { code, message }
    }
}

/// Waits for one of these sockets; for a moment only, since a child may also run out of time.
fn wait_for<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut sockets: Vec<_> = sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
    // Whatever comes of it: they are looked at next.
    let _ = poll(&mut sockets, PollTimeout::from(1000_u16));
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
