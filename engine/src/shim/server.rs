//! The shim's loop: one epoll, one thread, nothing that waits except for the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};

use super::client::{Attachment, Client};
use super::launch::ShimError;
use super::process::{Container, Exec, Got};
use super::protocol::{Message, Notice, Reply, Request, Running, Target};
use super::record;
use super::start::{Held, Starting};
use super::syncs::Syncs;
use crate::cgroup::Cgroup;
use crate::logs::Stream;
use crate::runtime::Launcher;
use crate::sys_descriptor::{pidfd_open, pidfd_signal};

/// One read of a container's output: the kernel's default size of a pipe, so that one wake-up empties it.
pub(super) const READ_STEP: usize = 64 << 10;
/// Between two looks at a cgroup that is not empty yet.
const ENDING_STEP: Duration = Duration::from_millis(2);
/// Between two looks at a terminal that nobody has open; conmon's figure.
const TERMINAL_STEP: Duration = Duration::from_millis(100);
/// How long a container waits for a patient client (an interactive session): a stalled SSH connection is shorter, a dead one longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between SIGTERM to what runs and SIGKILL, when the shim itself is told to go by SIGTERM: Docker's grace period.
const GRACE: Duration = Duration::from_secs(10);
/// A shim with no container and no agent leaves after this.
const IDLE: Duration = Duration::from_secs(5);
/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// What a descriptor in the loop is.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Listener,
    Children,
    Client,
    /// A process that has not executed yet.
    Starting,
    Init(String),
    Output(String, usize),
    Input(String),
    Exec,
    /// Something has reached the disk, or is unmounted.
    Synced,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) epoll: Epoll,
    pub(super) sources: BTreeMap<u64, Source>,
    next_token: u64,
    pub(super) launcher: Launcher,
    listener: UnixListener,
    children: SignalFd,
    pub(super) clients: BTreeMap<u64, (Client, EpollFlags)>,
    /// Processes on their way to their execve, by the token of what tells of it.
    pub(super) starting: BTreeMap<u64, Starting>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) execs: BTreeMap<u64, Exec>,
    /// A group below each parent in which we have made one: the parents stay while we do.
    pub(super) parents: BTreeMap<String, Cgroup>,
    pub(super) boot_id: String,
    buffer: Vec<u8>,
    pub(super) scratch: Vec<u8>,
    /// Ends on their way to the disk: who writes them, and by their numbers whose they are.
    pub(super) syncs: Option<Syncs>,
    pub(super) syncing: BTreeMap<u64, String>,
    /// The same for mounts that are being let go of. Others do it, so that no end waits for them.
    pub(super) unmounts: Option<Syncs>,
    pub(super) unmounting: BTreeMap<u64, String>,
    pub(super) next_sync: u64,
    /// Starts that wait for one of these.
    pub(super) held: Vec<Held>,
    idle_since: Option<Instant>,
    leaving: bool,
    /// When it was asked by a signal to go, and whether what it runs has been killed since.
    terminated: Option<(Instant, bool)>,
}

/// The wall clock in ns since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

impl Server {
    pub(super) fn new(listener: UnixListener, launcher: Launcher) -> Result<Self, ShimError> {
        let fail = |doing| move |source: io::Error| ShimError { doing, source };
        let boot_id = record::boot_id().map_err(fail("read the boot id"))?;
        listener.set_nonblocking(true).map_err(fail("prepare the socket"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| fail("make the loop")(e.into()))?;
        // The runtime gives each container an empty mask again.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.add(Signal::SIGTERM);
        // Of a terminal that we were started from, or of somebody who means the agent: ignored.
        mask.add(Signal::SIGHUP);
        mask.add(Signal::SIGINT);
        mask.thread_block().map_err(|e| fail("block SIGCHLD")(e.into()))?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|e| fail("watch for children")(e.into()))?;
        let mut server = Self {
            epoll,
            sources: BTreeMap::new(),
            next_token: 0,
            launcher,
            listener,
            children,
            clients: BTreeMap::new(),
            starting: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            parents: BTreeMap::new(),
            boot_id,
            buffer: vec![0; READ_STEP],
            scratch: Vec::new(),
            syncs: None,
            syncing: BTreeMap::new(),
            unmounts: None,
            unmounting: BTreeMap::new(),
            next_sync: 0,
            held: Vec::new(),
            idle_since: Some(Instant::now()),
            leaving: false,
            terminated: None,
        };
        let listener = server.listener.as_fd().try_clone_to_owned().map_err(fail("watch the socket"))?;
        server.watch(&listener, EpollFlags::EPOLLIN, Source::Listener).map_err(fail("watch the socket"))?;
        let children = server.children.as_fd().try_clone_to_owned().map_err(fail("watch for children"))?;
        server.watch(&children, EpollFlags::EPOLLIN, Source::Children).map_err(fail("watch for children"))?;
        Ok(server)
    }

    /// Puts a descriptor into the loop.
    pub(super) fn watch(&mut self, descriptor: impl AsFd, what: EpollFlags, source: Source) -> io::Result<u64> {
        self.next_token += 1;
        self.epoll.add(descriptor, EpollEvent::new(what, self.next_token))?;
        self.sources.insert(self.next_token, source);
        Ok(self.next_token)
    }

    /// The first process of a container is reaped: its pidfd has nothing more to say.
    pub(super) fn forget_init(&mut self, id: &str, token: u64) {
        if let Some(container) = self.containers.get(id) {
            let _ = self.epoll.delete(&container.init);
        }
        self.sources.remove(&token);
    }

    pub(super) fn unwatch(&mut self, descriptor: impl AsFd, token: u64) {
        // It may have left the loop before, or never been in it.
        let _ = self.epoll.delete(descriptor);
        self.sources.remove(&token);
    }

    /// Runs until told to leave, or until nobody needs it.
    pub(super) fn run(&mut self) -> Result<(), ShimError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(ShimError { doing: "wait for events", source: errno.into() }),
            };
            for event in &events[..count] {
                self.dispatch(event.data(), event.events());
            }
            self.tick();
            self.flush_clients();
            if self.is_done() {
                self.parents.values().for_each(Cgroup::remove_parents);
                return Ok(());
            }
        }
    }

    fn is_done(&mut self) -> bool {
        if self.runs_something() {
            self.idle_since = None;
            self.leaving = false;
            return false;
        }
        if !self.unmounting.is_empty() {
            // Who waits for this shim to be gone finds nothing mounted.
            return false;
        }
        if self.leaving || self.terminated.is_some() {
            // What was answered must have gone out.
            return self.clients.values().all(|(client, _)| !client.has_output());
        }
        if !self.clients.is_empty() {
            self.idle_since = None;
            return false;
        }
        self.idle_since.get_or_insert_with(Instant::now).elapsed() >= IDLE
    }

    fn runs_something(&self) -> bool {
        !self.containers.is_empty() || !self.execs.is_empty() || !self.starting.is_empty() || !self.held.is_empty()
    }

    fn timeout(&self) -> EpollTimeout {
        let containers = self.containers.values();
        let wait = if matches!(self.terminated, Some((_, false))) {
            Some(TERMINAL_STEP)
        } else if containers.clone().any(Container::is_being_cleared) {
            Some(ENDING_STEP)
        } else if containers
            .flat_map(|c| c.outputs.iter().flatten())
            .any(|o| o.look_again.is_some() || o.held_until.is_some())
        {
            Some(TERMINAL_STEP)
        } else if let Some(first) = self.starting.values().map(Starting::deadline).min() {
            // A little later, so that its time is over when it is looked at.
            Some(first.saturating_duration_since(Instant::now()) + ENDING_STEP)
        } else if self.idle_since.is_some() {
            Some(IDLE / 4)
        } else {
            None
        };
        wait.and_then(|wait| EpollTimeout::try_from(wait).ok()).unwrap_or(EpollTimeout::NONE)
    }

    fn dispatch(&mut self, token: u64, what: EpollFlags) {
        let Some(source) = self.sources.get(&token).cloned() else { return };
        match source {
            Source::Listener => self.accept(),
            Source::Children => self.reap_orphans(),
            Source::Client => self.client_event(token, what),
            Source::Starting => self.progress_start(token),
            Source::Init(container) => self.init_ended(&container),
            Source::Output(container, index) => {
                // A terminal's input is written through the same descriptor.
                if what.contains(EpollFlags::EPOLLOUT) {
                    self.write_input(&container);
                }
                if what.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                    self.read_output(&container, index);
                }
            }
            Source::Input(container) => {
                if what.contains(EpollFlags::EPOLLERR) {
                    self.close_input(&container, true);
                } else {
                    self.write_input(&container);
                }
            }
            Source::Exec => self.exec_ended(token),
            Source::Synced => self.take_synced(),
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            // The socket's directory is root's already; this holds if someone opens it up.
            let is_root = nix::sys::socket::getsockopt(&socket, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
            if !is_root || socket.set_nonblocking(true).is_err() {
                continue;
            }
            if let Ok(token) = self.watch(&socket, EpollFlags::EPOLLIN, Source::Client) {
                self.clients.insert(token, (Client::new(socket), EpollFlags::EPOLLIN));
            }
        }
    }

    /// The host goes down, or somebody wants this shim to go: what it runs is ended in order, for without it nobody would watch.
    fn terminate(&mut self) {
        self.terminated.get_or_insert((Instant::now(), false));
        self.settle_starts();
        for container in self.containers.values() {
            // One that ends at this moment needs no signal.
            let _ = pidfd_signal(container.init.as_fd(), libc::SIGTERM);
        }
    }

    /// Has it been asked to go?
    pub(super) fn is_ending(&self) -> bool {
        self.terminated.is_some()
    }

    /// Reaps processes that were handed to us as their subreaper. Those we started ourselves are left to their pidfds.
    fn reap_orphans(&mut self) {
        while let Ok(Some(signal)) = self.children.read_signal() {
            if signal.ssi_signo == libc::SIGTERM as u32 {
                self.terminate();
            }
        }
        let mut ours: Vec<i32> = Vec::new();
        loop {
            let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let Ok(status) = waitid(Id::All, peek) else { return };
            let Some(pid) = status.pid() else { return };
            let started = self.starting_of(pid.as_raw()).is_some()
                || self.containers.values().any(|c| c.run.pid == pid.as_raw())
                || self.execs.values().any(|e| e.pid == pid.as_raw());
            if !started {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            } else if ours.contains(&pid.as_raw()) {
                return;
            } else {
                // The kernel always shows the first of its list: take ours now, so that the next one shows.
                ours.push(pid.as_raw());
                self.reap_ours(pid.as_raw());
            }
        }
    }

    fn reap_ours(&mut self, pid: i32) {
        if let Some(token) = self.starting_of(pid) {
            // It has failed, or has ended as soon as it executed; then it is a container or an exec from here on.
            self.progress_start(token);
        }
        let container = self.containers.iter().find(|(_, c)| c.run.pid == pid).map(|(id, _)| id.clone());
        if let Some(container) = container {
            self.init_ended(&container);
        } else if let Some(token) = self.execs.iter().find(|(_, e)| e.pid == pid).map(|(token, _)| *token) {
            self.exec_ended(token);
        }
    }

    // ---- clients ----

    fn client_event(&mut self, token: u64, what: EpollFlags) {
        let Some((client, _)) = self.clients.get_mut(&token) else { return };
        if what.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
            && !client.held
            && client.fill().is_err()
        {
            // What it sent before it went counts.
            self.process(token);
            self.drop_client(token);
            return;
        }
        self.process(token);
    }

    /// Carries out what a client has asked so far.
    fn process(&mut self, token: u64) {
        loop {
            let Some((client, _)) = self.clients.get_mut(&token) else { return };
            if let Some(Attachment { container, stdin: true, .. }) = &client.attachment {
                // Its input waits for the container to start, and to read.
                let input =
                    self.containers.get(container).map(|c| c.input.as_ref().is_some_and(|input| input.is_full()));
                client.held = input.unwrap_or(true);
                if client.held {
                    return;
                }
            }
            match client.next() {
                Ok(Some((Message::Request(number, request), descriptors))) => {
                    self.request(token, number, request, descriptors);
                }
                Ok(Some(_)) | Err(_) => {
                    self.drop_client(token);
                    return;
                }
                Ok(None) => return,
            }
        }
    }

    fn request(&mut self, token: u64, number: u64, request: Request, descriptors: Vec<OwnedFd>) {
        let (reply, passed) = match request {
            Request::Start(start) => {
                self.start((token, number), start, descriptors);
                return;
            }
            Request::Exec(exec) => {
                self.exec((token, number), exec);
                return;
            }
            Request::Subscribe => {
                // A new agent must hear of all that runs, also of what the old one has just asked for.
                self.settle_starts();
                if let Some((client, _)) = self.clients.get_mut(&token) {
                    client.subscribed = true;
                }
                (Reply::Containers(self.running()), Vec::new())
            }
            Request::List => {
                self.settle_starts();
                (Reply::Containers(self.running()), Vec::new())
            }
            Request::Signal { target, signal, tree } => (self.signal(token, &target, signal, tree), Vec::new()),
            Request::Attach { container, stdin, patient } => {
                if let Some((client, _)) = self.clients.get_mut(&token) {
                    client.attachment = Some(Attachment { container, stdin, patient });
                }
                (Reply::Done, Vec::new())
            }
            Request::Input(bytes) => {
                self.input(token, &bytes);
                return;
            }
            Request::InputEnd => {
                self.input_end(token);
                return;
            }
            Request::Resize { container, rows, columns } => (self.resize(&container, rows, columns), Vec::new()),
            Request::CloseStdin { container } => {
                self.close_input(&container, false);
                (Reply::Done, Vec::new())
            }
            Request::Leave if !self.runs_something() => {
                self.leaving = true;
                (Reply::Done, Vec::new())
            }
            Request::Leave => {
                (Reply::Refused { message: format!("{} containers are running", self.containers.len()) }, Vec::new())
            }
        };
        self.answer((token, number), reply, passed);
    }

    /// Answers a request, unless who asked is gone.
    pub(super) fn answer(&mut self, (token, number): (u64, u64), reply: Reply, descriptors: Vec<OwnedFd>) {
        if let Some((client, _)) = self.clients.get_mut(&token) {
            client.reply(number, reply, descriptors);
        }
    }

    fn running(&self) -> Vec<Running> {
        self.containers.iter().map(|(id, c)| Running { container: id.clone(), run: c.run.clone() }).collect()
    }

    fn resize(&self, container: &str, rows: u16, columns: u16) -> Reply {
        let terminal =
            self.containers.get(container).and_then(|c| c.outputs[0].as_ref()).filter(|output| output.terminal);
        let Some(terminal) = terminal else {
            return Reply::Refused { message: format!("container {container} has no terminal") };
        };
        match crate::sys_descriptor::set_terminal_size(&terminal.descriptor, rows, columns) {
            Ok(()) => Reply::Done,
            Err(e) => Reply::Refused { message: format!("set the terminal's size: {e}") },
        }
    }

    fn signal(&mut self, owner: u64, target: &Target, signal: i32, tree: bool) -> Reply {
        let (pid, pidfd, group) = match target {
            Target::Container(id) => match self.containers.get(id) {
                Some(c) if c.ending.is_none() => (c.run.pid, &c.init, &c.group),
                _ => return Reply::Refused { message: format!("container {id} is not running") },
            },
            Target::Exec(number) => match self.execs.values().find(|e| e.owner == (owner, *number)) {
                Some(exec) => (exec.pid, &exec.pidfd, &exec.group),
                None => return Reply::Refused { message: "the process has ended".to_owned() },
            },
        };
        let processes = if tree { group.procs().unwrap_or_default() } else { Default::default() };
        let descendants = descendants(pid, &processes);
        let result = pidfd_signal(pidfd.as_fd(), signal);
        for process in descendants {
            // It may have ended since it was found.
            let _ = pidfd_signal(process.as_fd(), signal);
        }
        match result {
            Ok(()) => Reply::Done,
            Err(e) => Reply::Refused { message: format!("send signal {signal} to process {pid}: {e}") },
        }
    }

    fn drop_client(&mut self, token: u64) {
        let Some((client, _)) = self.clients.remove(&token) else { return };
        self.unwatch(client.socket(), token);
        if let Some(Attachment { container, stdin: true, .. }) = &client.attachment
            && self.containers.get(container).is_some_and(|c| c.stdin_once)
        {
            self.close_input(container, false);
        }
    }

    /// Sends what waits, and lets the loop watch for what is needed.
    fn flush_clients(&mut self) {
        let mut gone = Vec::new();
        for (token, (client, watched)) in &mut self.clients {
            if client.flush().is_err() || (client.closing && !client.has_output()) {
                gone.push(*token);
                continue;
            }
            let mut wanted = EpollFlags::empty();
            wanted.set(EpollFlags::EPOLLIN, !client.held && !client.closing);
            wanted.set(EpollFlags::EPOLLOUT, client.has_output());
            if wanted != *watched && self.epoll.modify(client.socket(), &mut EpollEvent::new(wanted, *token)).is_ok() {
                *watched = wanted;
            }
        }
        for token in gone {
            self.drop_client(token);
        }
    }

    pub(super) fn resume_clients(&mut self, container: &str) {
        let waiting =
            |client: &Client| client.held && client.attachment.as_ref().is_some_and(|a| a.container == container);
        let tokens: Vec<u64> = self.clients.iter().filter(|(_, (c, _))| waiting(c)).map(|(token, _)| *token).collect();
        for token in tokens {
            if let Some((client, _)) = self.clients.get_mut(&token) {
                client.held = false;
            }
            self.process(token);
        }
    }

    // ---- input ----

    fn input(&mut self, token: u64, bytes: &[u8]) {
        let Some((Client { attachment: Some(Attachment { container, stdin: true, .. }), .. }, _)) =
            self.clients.get(&token)
        else {
            return;
        };
        let container = container.clone();
        if let Some(input) = self.containers.get_mut(&container).and_then(|c| c.input.as_mut())
            && !input.closing
        {
            input.pending.extend(bytes);
            self.write_input(&container);
        }
    }

    fn input_end(&mut self, token: u64) {
        let Some((Client { attachment: Some(Attachment { container, stdin: true, .. }), .. }, _)) =
            self.clients.get(&token)
        else {
            return;
        };
        let container = container.clone();
        if self.containers.get(&container).is_some_and(|c| c.stdin_once) {
            self.close_input(&container, false);
        }
    }

    /// Closes stdin, after what is pending unless the other side reads no more. A terminal's stays open: it is its output too.
    fn close_input(&mut self, id: &str, broken: bool) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(input) = &mut container.input else { return };
        input.closing = true;
        if input.pipe.is_none() {
            container.input = None;
        } else if broken || input.pending.is_empty() {
            let token = input.token;
            let pipe = input.pipe.take();
            container.input = None;
            if let Some(pipe) = pipe {
                self.unwatch(&pipe, token);
            }
        }
        self.resume_clients(id);
    }

    fn write_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let was_full = container.input.as_ref().is_some_and(super::process::Input::is_full);
        let open = container.write_input();
        let Some(input) = &container.input else { return };
        let (pending, closing, full, token) = (!input.pending.is_empty(), input.closing, input.is_full(), input.token);
        if !open || (closing && !pending) {
            self.close_input(id, true);
            return;
        }
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLOUT, pending);
        let target = match (&input.pipe, &container.outputs[0]) {
            (Some(pipe), _) => Some(pipe),
            (None, Some(output)) => {
                wanted.set(EpollFlags::EPOLLIN, output.held_until.is_none());
                output.watched.then_some(&output.descriptor)
            }
            (None, None) => None,
        };
        if let Some(target) = target {
            let _ = self.epoll.modify(target, &mut EpollEvent::new(wanted, token));
        }
        if was_full && !full {
            self.resume_clients(id);
        }
    }

    // ---- output ----

    /// One read of a container's output, to the log and to who is attached.
    pub(super) fn read_output(&mut self, id: &str, index: usize) -> Option<usize> {
        let container = self.containers.get_mut(id)?;
        let output = container.outputs[index].as_mut()?;
        let stream = if index == 0 { Stream::Stdout } else { Stream::Stderr };
        match output.read(&mut self.buffer) {
            Got::Bytes(count) => {
                let data = &self.buffer[..count];
                container.log.take(stream, data, now(), &mut self.scratch);
                let mut behind = false;
                for (client, _) in self.clients.values_mut() {
                    if client.attachment.as_ref().is_some_and(|a| a.container == id) {
                        client.output(if index == 0 { 1 } else { 2 }, data);
                        behind |= client.is_behind();
                    }
                }
                if behind && container.ending.is_none() {
                    output.held_until = Some(Instant::now() + PATIENCE);
                    let _ =
                        self.epoll.modify(&output.descriptor, &mut EpollEvent::new(EpollFlags::empty(), output.token));
                }
                Some(count)
            }
            Got::Nothing => None,
            Got::HungUp if container.ending.is_none() => {
                // EPOLLHUP cannot be masked: out of the loop, and looked at by the clock.
                output.look_again = Some(Instant::now() + TERMINAL_STEP);
                if std::mem::take(&mut output.watched) {
                    let _ = self.epoll.delete(&output.descriptor);
                }
                None
            }
            Got::End | Got::HungUp => {
                container.log.end(stream, &mut self.scratch);
                if let Some(output) = container.outputs[index].take() {
                    self.unwatch(&output.descriptor, output.token);
                }
                None
            }
        }
    }

    /// What happens by the clock.
    fn tick(&mut self) {
        if let Some((since, killed @ false)) = &mut self.terminated
            && since.elapsed() > GRACE
        {
            *killed = true;
            for container in self.containers.values() {
                // What cannot be killed shows by its not ending.
                let _ = container.group.kill();
            }
        }
        let late = |(token, starting): (&u64, &Starting)| (starting.deadline() <= Instant::now()).then_some(*token);
        let late: Vec<u64> = self.starting.iter().filter_map(late).collect();
        late.into_iter().for_each(|token| self.progress_start(token));
        let ids: Vec<String> =
            self.containers.iter().filter(|(_, c)| c.needs_clock()).map(|(id, _)| id.clone()).collect();
        for id in ids {
            for index in 0..2 {
                self.look_at_output(&id, index);
            }
            self.progress_ending(&id);
        }
    }

    fn look_at_output(&mut self, id: &str, index: usize) {
        let now = Instant::now();
        let Some(output) = self.containers.get_mut(id).and_then(|c| c.outputs[index].as_mut()) else { return };
        if output.look_again.is_some_and(|at| at <= now) {
            output.look_again = None;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, output.token);
            output.watched = self.epoll.add(&output.descriptor, event).is_ok();
        }
        if let Some(until) = output.held_until {
            let attached = |client: &Client| client.attachment.as_ref().is_some_and(|a| a.container == id);
            let mut behind = false;
            for (client, _) in self.clients.values_mut().filter(|(client, _)| attached(client) && client.is_behind()) {
                if until <= now {
                    client.notify(Notice::TooSlow);
                    client.closing = true;
                } else {
                    behind = true;
                }
            }
            if !behind {
                output.held_until = None;
                let event = &mut EpollEvent::new(EpollFlags::EPOLLIN, output.token);
                let _ = self.epoll.modify(&output.descriptor, event);
            }
        }
    }
}

/// The processes among `candidates` (host pids of one cgroup) that `root` started, directly or not, and those of its session. Each is
/// given as a pidfd that was looked at again after it was opened, so that a number given anew is never meant.
fn descendants(root: i32, candidates: &BTreeSet<i32>) -> Vec<OwnedFd> {
    let relation = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace().skip(1).map(|field| field.parse::<i32>().ok());
        let (parent, _group, session) = (fields.next()??, fields.next()??, fields.next()??);
        Some((parent, session))
    };
    let relations: BTreeMap<i32, (i32, i32)> =
        candidates.iter().filter_map(|&pid| Some((pid, relation(pid)?))).collect();
    let mut family = vec![root];
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        next += 1;
        for (&pid, &(its_parent, session)) in &relations {
            if (its_parent == parent || session == root) && !family.contains(&pid) {
                family.push(pid);
            }
        }
    }
    family[1..]
        .iter()
        .filter_map(|&pid| {
            let process = pidfd_open(pid).ok()?;
            (relation(pid) == relations.get(&pid).copied()).then_some(process)
        })
        .collect()
}
