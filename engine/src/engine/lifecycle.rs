//! A container's life: made, started, stopped, removed.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::link::{LinkError, ShimLink};
use super::{Container, ContainerInfo, Engine, EngineError, EventKind, Inner, StartTimes, lock, now};
use crate::chain;
use crate::config::{ContainerConfig, ContainerId, InjectedFile, MountKind, NetworkNs, UserNamespace};
use crate::container::{ContainerState, Phase, directory};
use crate::runtime;
use crate::shim::protocol::{ExitRecord, LogPlan, Loss, Reply, Request, Start, Target};
use crate::shim::write_exit;

/// After SIGKILL a process is gone in milliseconds, or hangs in the kernel. Docker waits ten seconds before it gives up; reliability
/// wants an answer within five.
const AFTER_KILL: Duration = Duration::from_secs(5);
/// How long a shim that has been told to leave is waited for, so that whoever looks right after a removal sees no process.
const LEAVING: Duration = Duration::from_secs(2);

impl Engine {
    /// Makes a container, with its volumes. When this returns it survives a power cut; until then it does not exist.
    ///
    /// # Errors
    /// A name or id that is taken, an image that is not there, a configuration that is wrong, a full disk.
    pub fn create(&self, config: ContainerConfig) -> Result<(), EngineError> {
        self.inner.create(config)
    }

    /// Gives a container its secrets and configs again: their contents are never on disk, so after a restart of the host they are
    /// missing, and a start says so.
    ///
    /// # Errors
    /// `NotFound`, or a tmpfs that cannot be written.
    pub fn supply_files(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<(), EngineError> {
        let container = self.inner.container(id)?;
        self.inner.write_injected(&container.config(), files)?;
        Ok(())
    }

    /// Starts a container. `network` replaces the configured network namespace for this run. Returns once its program executes; the
    /// state may already be that of its end.
    ///
    /// # Errors
    /// [`EngineError::NotStarted`] with the code a client should exit with; `Phase` when it runs already.
    pub fn start(&self, id: &ContainerId, network: Option<NetworkNs>) -> Result<ContainerState, EngineError> {
        self.inner.start(id, network)
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// `Phase` when it does not run.
    pub fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), EngineError> {
        self.inner.kill(id, signal)
    }

    /// Stops a container: its stop signal (or `signal`), its grace period (or `timeout` seconds; negative waits for ever), SIGKILL. A
    /// container that does not run is stopped already.
    ///
    /// # Errors
    /// [`EngineError::Stuck`] when it does not even die of SIGKILL.
    pub fn stop(
        &self,
        id: &ContainerId,
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<ContainerState, EngineError> {
        self.inner.stop(id, signal, timeout)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// `Phase` when it does not run.
    pub fn pause(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.inner.set_paused(id, true)
    }

    /// Lets a frozen container go on.
    ///
    /// # Errors
    /// `Phase` when it is not frozen.
    pub fn unpause(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.inner.set_paused(id, false)
    }

    /// Waits until a container does not run (or for `limit`) and gives its state. One that was never started is waited for too.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn wait(&self, id: &ContainerId, limit: Option<Duration>) -> Result<ContainerState, EngineError> {
        let container = self.inner.container(id)?;
        Ok(container.wait(limit, |phase| matches!(phase, Phase::Exited | Phase::Removing)))
    }

    /// Removes a container: its process (with `force`), its directory, its anonymous volumes (with `volumes`).
    ///
    /// # Errors
    /// `Phase` when it runs and `force` is not given.
    pub fn remove(&self, id: &ContainerId, force: bool, volumes: bool) -> Result<(), EngineError> {
        self.inner.remove(id, force, volumes)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// `Conflict` when the name is taken.
    pub fn rename(&self, id: &ContainerId, name: &str) -> Result<(), EngineError> {
        check_name("container", name)?;
        let container = self.inner.container(id)?;
        let _operation = lock(&container.operation);
        let old = {
            let mut containers = lock(&self.inner.containers);
            if containers.names.get(name).is_some_and(|owner| owner != id) {
                return Err(EngineError::Conflict(format!("the container name {name:?} is already in use")));
            }
            containers.names.insert(name.to_owned(), id.clone());
            container.config()
        };
        let config = Arc::new(ContainerConfig { name: name.to_owned(), ..(*old).clone() });
        let written = directory::rewrite(&container.directory, &config);
        let mut containers = lock(&self.inner.containers);
        if let Err(source) = written {
            if old.name != name {
                containers.names.remove(name);
            }
            return Err(EngineError::Io {
                doing: "write the configuration in",
                path: container.directory.clone(),
                source,
            });
        }
        if old.name != name {
            containers.names.remove(&old.name);
        }
        *lock(&container.config) = config;
        Ok(())
    }

    /// Tells shims that run nothing to leave: when the agent goes because it is idle.
    pub fn retire(&self) {
        let links: Vec<Arc<ShimLink>> = lock(&self.inner.links).values().cloned().collect();
        for link in links {
            self.inner.dismiss(&link);
        }
    }
}

impl Container {
    /// Waits until the phase is as wanted, for at most `limit`.
    fn wait(&self, limit: Option<Duration>, wanted: impl Fn(Phase) -> bool) -> ContainerState {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut state = lock(&self.state);
        let ends = state.ends;
        while !wanted(state.public.phase) {
            if state.ends != ends
                && let Some(end) = &state.last_end
            {
                return end.clone();
            }
            let left = deadline.map_or(Duration::from_secs(3600), |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.public.clone()
    }

    fn wait_for_end(&self, limit: Option<Duration>) -> Option<ContainerState> {
        let state = self.wait(limit, |phase| !phase.is_alive());
        (!state.phase.is_alive()).then_some(state)
    }
}

impl Inner {
    fn create(self: &Arc<Self>, mut config: ContainerConfig) -> Result<(), EngineError> {
        check_config(&config)?;
        // Healed if need be now, so that a start does not wait for it; and an error comes where it can be dealt with.
        self.images.0.resolve(&config.image_id)?;
        let (id, name) = (config.id.clone(), config.name.clone());
        {
            let mut containers = lock(&self.containers);
            if containers.by_id.contains_key(&id) {
                return Err(EngineError::Conflict(format!("the container id {id} is already in use")));
            }
            if containers.names.contains_key(&name) {
                return Err(EngineError::Conflict(format!("the container name {name:?} is already in use")));
            }
            // Taken before the disk is touched, so that two of one name, or with the same ids, cannot both be made.
            containers.allot(&mut config, &self.config.instance)?;
            containers.names.insert(name.clone(), id.clone());
        }
        let result = self.create_on_disk(config.clone());
        match result {
            Ok(container) => {
                lock(&self.containers).by_id.insert(id.clone(), container);
                self.events.send(&id, &name, EventKind::Created);
                Ok(())
            }
            Err(e) => {
                let mut containers = lock(&self.containers);
                containers.names.remove(&name);
                containers.give_back(&config);
                Err(e)
            }
        }
    }

    fn create_on_disk(&self, config: ContainerConfig) -> Result<Arc<Container>, EngineError> {
        for mount in &config.mounts {
            if let MountKind::Volume { name, .. } = &mount.kind {
                self.volumes.ensure(name, is_anonymous(name))?;
            }
        }
        if !config.files.is_empty() {
            self.write_injected(&config, &config.files).inspect_err(|_| self.remove_generated(&config.id))?;
        }
        let containers = &self.data.containers;
        let path = directory::create(containers, &config).map_err(|source| {
            self.remove_generated(&config.id);
            EngineError::Io { doing: "make the container's directory in", path: containers.clone(), source }
        })?;
        Ok(Arc::new(Container::new(path, config)))
    }

    fn start(self: &Arc<Self>, id: &ContainerId, network: Option<NetworkNs>) -> Result<ContainerState, EngineError> {
        let container = self.container(id)?;
        let _operation = lock(&container.operation);
        let phase = container.state().phase;
        if !matches!(phase, Phase::Created | Phase::Exited) {
            return Err(EngineError::Phase { name: container.name(), phase, wanted: "start it" });
        }
        let mut config = (*container.config()).clone();
        if let Some(network) = network {
            config.namespaces.network = network;
        }
        let result = self.try_start(&container, &config);
        if let Err(e) = &result {
            self.record_failure(&container, e);
        }
        result
    }

    fn try_start(
        self: &Arc<Self>,
        container: &Arc<Container>,
        config: &ContainerConfig,
    ) -> Result<ContainerState, EngineError> {
        let begun = Instant::now();
        let plan = self.prepare(container, config)?;
        let prepared = Instant::now();
        // Once more when the shim leaves, idle, at this very moment.
        for last in [false, true] {
            let link = self.link(&config.group)?;
            let _starting = link.starting.read().unwrap_or_else(PoisonError::into_inner);
            let directory = std::fs::File::open(&container.directory).map_err(|source| EngineError::Io {
                doing: "open",
                path: container.directory.clone(),
                source,
            })?;
            lock(&container.state).told_exit = None;
            let start = Request::Start(start_request(config, plan.clone()));
            match link.call(start, vec![directory.into()]) {
                Ok((Reply::Started { run, times }, _)) => {
                    let exit = {
                        let mut state = lock(&container.state);
                        state.public.run(&run);
                        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                        let (prepare, ask) = (ns(prepared - begun), ns(prepared.elapsed()));
                        state.start_times = Some(StartTimes { prepare, ask, shim: times });
                        match state.told_exit.clone().filter(|exit| exit.ends(&run)) {
                            Some(exit) => {
                                state.end(&exit);
                                Some(exit)
                            }
                            None => {
                                state.link = Some(Arc::clone(&link));
                                None
                            }
                        }
                    };
                    container.changed.notify_all();
                    self.events.send(&container.id, &config.name, EventKind::Started { pid: run.pid });
                    if let Some(exit) = exit {
                        self.tell_exit(container, &exit);
                    } else if link.is_ended() {
                        // It died between its answer and now; whoever saw that did not yet find this container.
                        self.lose(container, Loss::ShimKilled);
                    }
                    return Ok(container.state());
                }
                Ok((Reply::NotStarted { code, message }, _)) => return Err(EngineError::NotStarted { code, message }),
                Ok(_) => {
                    return Err(LinkError::Refused("the shim gave an answer to another question".to_owned()).into());
                }
                Err(e) => {
                    // Whatever it had done: nothing runs unwatched.
                    self.kill_group(container);
                    self.remove_group(container);
                    if last || !matches!(e, LinkError::Gone { .. }) {
                        return Err(e.into());
                    }
                }
            }
        }
        unreachable!("the second round returns")
    }

    /// A start that failed shows in the container's state, also after a restart.
    fn record_failure(&self, container: &Container, error: &EngineError) {
        let (code, message) = match error {
            EngineError::NotStarted { code, message } => (*code, message.clone()),
            other => (125, chain(other)),
        };
        let exit = ExitRecord {
            code,
            signal: 0,
            oom: false,
            finished_at: now(),
            pid: 0,
            start_time: 0,
            boot_id: self.boot_id.clone(),
            error: message,
        };
        let written =
            std::fs::File::open(&container.directory).and_then(|directory| write_exit(directory, &exit, true));
        if let Err(e) = written {
            tracing::warn!(container = %container.id, error = %e, "cannot record that a container did not start");
        }
        let mut state = lock(&container.state);
        let was_created = state.public.phase == Phase::Created;
        state.public.exit(&exit);
        if was_created {
            // Docker's word for it: it never ran.
            state.public.phase = Phase::Created;
            state.public.finished_at = None;
        }
        drop(state);
        container.changed.notify_all();
    }

    fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), EngineError> {
        let container = self.container(id)?;
        self.signal(&container, signal)?;
        if signal == libc::SIGKILL && container.state().phase == Phase::Paused {
            // v1's freezer holds even SIGKILL back.
            self.thaw(&container)?;
        }
        Ok(())
    }

    fn signal(&self, container: &Container, signal: i32) -> Result<(), EngineError> {
        let link = container.running_link("send it a signal")?;
        let target = Target::Container(container.id.0.clone());
        match link.call(Request::Signal { target, signal, tree: false }, Vec::new()) {
            Ok(_) => Ok(()),
            // It ended, or its shim did; the state is about to say so.
            Err(LinkError::Refused(message)) => Err(EngineError::Conflict(message)),
            Err(e) => Err(e.into()),
        }
    }

    fn thaw(&self, container: &Container) -> Result<(), EngineError> {
        self.cgroup(container)?.thaw()?;
        let mut state = lock(&container.state);
        if state.public.phase == Phase::Paused {
            state.public.phase = Phase::Running;
            drop(state);
            self.events.send(&container.id, &container.name(), EventKind::Unpaused);
        }
        Ok(())
    }

    fn stop(&self, id: &ContainerId, signal: Option<i32>, timeout: Option<i64>) -> Result<ContainerState, EngineError> {
        let container = self.container(id)?;
        if !container.state().phase.is_alive() {
            return Ok(container.state());
        }
        let config = container.config();
        let signal = signal.unwrap_or(config.stop_signal);
        let grace = timeout.unwrap_or(config.stop_timeout);
        let sent = self.signal(&container, signal);
        if container.state().phase == Phase::Paused {
            self.thaw(&container)?;
        }
        if let Err(e) = sent {
            // Ended meanwhile, or a signal that the kernel does not know: then the grace period is over at once.
            tracing::debug!(container = %id, error = &e as &dyn std::error::Error, "the stop signal was not delivered");
        } else {
            let grace = u64::try_from(grace).ok().map(Duration::from_secs);
            if let Some(state) = container.wait_for_end(grace) {
                return Ok(state);
            }
        }
        self.end_by_force(&container)
    }

    /// SIGKILL to the first process, then to the whole cgroup, then the truth.
    fn end_by_force(&self, container: &Container) -> Result<ContainerState, EngineError> {
        if let Err(e) = self.signal(container, libc::SIGKILL) {
            tracing::debug!(container = %container.id, error = &e as &dyn std::error::Error, "SIGKILL was not delivered");
        }
        if container.state().phase == Phase::Paused {
            self.thaw(container)?;
        }
        if let Some(state) = container.wait_for_end(Some(AFTER_KILL / 2)) {
            return Ok(state);
        }
        if let Ok(group) = self.cgroup(container) {
            // Its failure shows below.
            let _ = group.kill();
        }
        if let Some(state) = container.wait_for_end(Some(AFTER_KILL / 2)) {
            return Ok(state);
        }
        let pid = container.state().pid;
        let wchan = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        let wchan = if wchan.is_empty() || wchan == "0" { "unknown".to_owned() } else { wchan };
        Err(EngineError::Stuck { name: container.name(), pid, wchan })
    }

    fn set_paused(&self, id: &ContainerId, paused: bool) -> Result<(), EngineError> {
        let container = self.container(id)?;
        let _operation = lock(&container.operation);
        let phase = container.state().phase;
        let (from, to, wanted) = if paused {
            (Phase::Running, Phase::Paused, "pause it")
        } else {
            (Phase::Paused, Phase::Running, "unpause it")
        };
        if phase != from {
            return Err(EngineError::Phase { name: container.name(), phase, wanted });
        }
        let group = self.cgroup(&container)?;
        let freezing = container.freezing.write().unwrap_or_else(PoisonError::into_inner);
        if paused { group.freeze() } else { group.thaw() }?;
        let mut state = lock(&container.state);
        if state.public.phase != from {
            return Err(EngineError::Phase { name: container.name(), phase: state.public.phase, wanted });
        }
        state.public.phase = to;
        drop(state);
        drop(freezing);
        let kind = if paused { EventKind::Paused } else { EventKind::Unpaused };
        self.events.send(&container.id, &container.name(), kind);
        Ok(())
    }

    pub(super) fn remove(self: &Arc<Self>, id: &ContainerId, force: bool, volumes: bool) -> Result<(), EngineError> {
        let container = self.container(id)?;
        // Before the lock, so that a start that hangs can be ended.
        if force && container.state().phase.is_alive() {
            self.end_by_force(&container)?;
        }
        let _operation = lock(&container.operation);
        if force && container.state().phase.is_alive() {
            self.end_by_force(&container)?;
        }
        {
            let mut state = lock(&container.state);
            match state.public.phase {
                Phase::Created | Phase::Exited => state.public.phase = Phase::Removing,
                // Somebody else was faster: it is gone.
                Phase::Removing => return Ok(()),
                phase => return Err(EngineError::Phase { name: container.name(), phase, wanted: "remove it" }),
            }
        }
        container.changed.notify_all();
        let config = container.config();
        // A start that was cut off by a crash may have left one.
        self.remove_group(&container);
        self.remove_generated(id);
        let discarded = directory::discard(&container.directory, &self.data.trash);
        let discarded = match discarded {
            Ok(path) => path,
            Err(source) => {
                lock(&container.state).public.phase = Phase::Exited;
                return Err(EngineError::Io { doing: "remove", path: container.directory.clone(), source });
            }
        };
        {
            let mut containers = lock(&self.containers);
            containers.by_id.remove(id);
            containers.give_back(&config);
            if containers.names.get(&config.name) == Some(id) {
                containers.names.remove(&config.name);
            }
        }
        // Deleted at the next start if the thread is gone.
        let _ = self.trash.send(discarded);
        if volumes {
            self.remove_anonymous_volumes(&config);
        }
        self.events.send(id, &config.name, EventKind::Removed);
        if !self.config.resident_groups.contains(&config.group) {
            self.leave_group(&config.group);
        }
        Ok(())
    }

    /// The last container of a group is gone: its shim may go too.
    fn leave_group(&self, group: &str) {
        if self.all().iter().any(|other| other.config().group == *group) {
            return;
        }
        let links: Vec<Arc<ShimLink>> = lock(&self.links).values().filter(|link| link.is_of(group)).cloned().collect();
        for link in links {
            self.dismiss(&link);
        }
    }

    fn dismiss(&self, link: &Arc<ShimLink>) {
        let _not_while_starting = link.starting.write().unwrap_or_else(PoisonError::into_inner);
        if link.call(Request::Leave, Vec::new()).is_ok() {
            let deadline = Instant::now() + LEAVING;
            while !link.is_reaped() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn remove_anonymous_volumes(&self, config: &ContainerConfig) {
        for mount in &config.mounts {
            if let MountKind::Volume { name, .. } = &mount.kind
                && self.volumes.is_anonymous(name)
                && self.volume_users(name).is_empty()
                && let Err(error) = self.discard_volume(name)
            {
                tracing::warn!(
                    volume = name,
                    error = &error as &dyn std::error::Error,
                    "cannot remove an anonymous volume"
                );
            }
        }
    }

    /// The containers that mount a volume.
    pub(super) fn volume_users(&self, name: &str) -> Vec<ContainerInfo> {
        let uses = |config: &ContainerConfig| {
            config.mounts.iter().any(|mount| matches!(&mount.kind, MountKind::Volume { name: its, .. } if its == name))
        };
        let infos = self.all().into_iter().map(|c| ContainerInfo { config: c.config(), state: c.state() });
        infos.filter(|info| uses(&info.config)).collect()
    }
}

fn start_request(config: &ContainerConfig, plan: Vec<u8>) -> Start {
    Start {
        container: config.id.0.clone(),
        plan,
        // Docker's size until the first client says its own.
        terminal: config.process.tty.then_some((24, 80)),
        stdin: config.process.stdin_open,
        stdin_once: config.process.stdin_once,
        durable: config.is_durable(),
        log: LogPlan {
            none: config.logging.none,
            max_size: config.logging.max_size,
            max_file: config.logging.max_file,
        },
    }
}

fn is_anonymous(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What would become a path or a kernel object's name is checked before anything is made (ADV-36).
fn check_config(config: &ContainerConfig) -> Result<(), EngineError> {
    let id = &config.id.0;
    if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(EngineError::Invalid(format!("{id:?} is not a container id: 64 lower-case hex digits")));
    }
    check_name("container", &config.name)?;
    if config.process.args.first().is_none_or(String::is_empty) {
        return Err(EngineError::Invalid("no command specified".to_owned()));
    }
    if config.logging.max_file == 0 {
        return Err(EngineError::Invalid("logging: max_file must be at least 1".to_owned()));
    }
    if config.user_namespace != UserNamespace::Host {
        runtime::check_user_namespace(config)?;
        if let Some(why) = runtime::user_namespaces_missing() {
            return Err(EngineError::Invalid(format!("`userns_mode: auto` is not possible here: {why}")));
        }
    }
    for mount in &config.mounts {
        if !Path::new(&mount.target).is_absolute() {
            return Err(EngineError::Invalid(format!("mount target {:?} is not an absolute path", mount.target)));
        }
    }
    Ok(())
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 255 bytes: a file name that needs no escaping anywhere.
pub(crate) fn check_name(kind: &str, name: &str) -> Result<(), EngineError> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let fine =
        name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(letter) && name.len() <= 255;
    if fine {
        return Ok(());
    }
    Err(EngineError::Invalid(format!(
        "{name:?} is not a valid {kind} name: letters, digits, `_`, `.` and `-`, the first a letter or digit"
    )))
}
