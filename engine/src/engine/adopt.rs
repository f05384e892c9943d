//! Opening an engine: what is on disk, what runs, and what was lost meanwhile.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::data_dir::DataDir;
use super::link::{self, LinkError, ShimLink};
use super::{Container, Containers, DebugLess, EngineConfig, EngineError, EventKind, Inner, event, lock, now};
use crate::cgroup::{Cgroup, Layout};
use crate::container::{Phase, directory};
use crate::image::ImageStore;
use crate::runtime::{Identity, cgroup_root};
use crate::shim::protocol::{ExitRecord, Loss, Notice, Request, RunRecord, Running, Target};
use crate::shim::{EXIT_FILE, RUN_FILE, boot_id, read_json, write_exit};
use crate::volume::VolumeStore;

/// Directories waiting to be deleted; whoever removes more at once waits.
const TRASH_QUEUE: usize = 1024;
/// How long the processes of a lost run may take to die before it is recorded as ended all the same.
const DEATH: Duration = Duration::from_secs(5);

pub(super) fn open(config: EngineConfig) -> Result<Arc<Inner>, EngineError> {
    let io = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Io { doing, path, source }
    };
    let data = DataDir::open(&config.data_dir)?;
    std::fs::create_dir_all(&config.run_dir).map_err(io("create", &config.run_dir))?;
    for child in ["", "shim", "containers", "root"] {
        let path = config.run_dir.join(child);
        directory::make(&path, 0o710).map_err(io("create", &path))?;
    }
    let images = ImageStore::open(config.data_dir.join("images"))?;
    let volumes = VolumeStore::open(&data.volumes, &data.trash)?;
    let boot_id = boot_id().map_err(io("read", Path::new("/proc/sys/kernel/random/boot_id")))?;
    let (trash, to_delete) = sync_channel(TRASH_QUEUE);
    let (whole, broken) = directory::scan(&data.containers).map_err(io("read", &data.containers))?;
    for (path, why) in broken {
        tracing::error!(path = %path.display(), why, "a container's directory cannot be read; it is left alone");
    }
    let mut containers = Containers::default();
    for (path, config) in whole {
        if let Some(other) = containers.names.insert(config.name.clone(), config.id.clone()) {
            tracing::error!(name = config.name, %other, id = %config.id, "two containers have the same name");
        }
        if let Some(ids) = config.user_namespace.ids()
            && let Err(e) = containers.take(ids, &config)
        {
            tracing::error!(id = %config.id, error = %e, "two containers have the same ids");
        }
        containers.by_id.insert(config.id.clone(), Arc::new(Container::new(path, config)));
    }
    let mut layout = Layout::detect()?;
    // Groups cannot be moved: an agent that was started elsewhere than the last one, as a unit after by hand, goes on where they are.
    let running = containers.by_id.values().filter_map(|container| records(container).0);
    let mut running = running.filter(|run| run.boot_id == boot_id).map(|run| (run.pid, run.start_time));
    if let Some((pid, _)) = running.find(|(pid, start_time)| Identity { pid: *pid, start_time: *start_time }.exists()) {
        layout.go_on_where(pid, &cgroup_root(&config.instance))?;
    }
    let inner = Arc::new(Inner {
        config,
        data,
        layout,
        boot_id,
        images: DebugLess(images),
        volumes,
        containers: Mutex::new(containers),
        links: Mutex::default(),
        spawning: Mutex::new(()),
        injecting: Mutex::new(()),
        events: event::EventHub::default(),
        trash,
    });
    start_trash(&inner.data.trash, to_delete).map_err(io("start a thread to empty", &inner.data.trash))?;
    inner.adopt()?;
    inner.sweep_run_dir();
    Ok(inner)
}

/// Deletes what was moved to the trash, now and before the last end of an engine.
fn start_trash(trash: &Path, to_delete: Receiver<PathBuf>) -> std::io::Result<()> {
    let left: Vec<PathBuf> = std::fs::read_dir(trash)?.flatten().map(|entry| entry.path()).collect();
    std::thread::Builder::new().name("engine-trash".to_owned()).stack_size(256 << 10).spawn(move || {
        for path in left.into_iter().chain(to_delete) {
            if let Err(e) = directory::remove_tree(&path) {
                // It is tried again at the next start.
                tracing::warn!(path = %path.display(), error = %e, "cannot delete from the trash");
            }
        }
    })?;
    Ok(())
}

impl Inner {
    /// Brings every container's state up to date with what is on disk and what runs.
    fn adopt(self: &Arc<Self>) -> Result<(), EngineError> {
        for container in self.all() {
            let (run, exit) = records(&container);
            let mut state = lock(&container.state);
            if let Some(run) = &run {
                state.public.run(run);
            }
            if let Some(exit) = exit.filter(|exit| is_end(exit, run.as_ref())) {
                state.public.exit(&exit);
            }
        }
        let directory = self.config.run_dir.join("shim");
        let io = |source| EngineError::Io { doing: "read", path: directory.clone(), source };
        for entry in std::fs::read_dir(&directory).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Err(error) = self.adopt_shim(&directory, name) {
                tracing::error!(socket = name, error = &error as &dyn std::error::Error, "a shim cannot be taken over");
            }
        }
        for container in self.all() {
            let ended = container.state().phase == Phase::Exited;
            if ended && container.config().auto_remove {
                self.remove_later(&container);
                continue;
            }
            let adopted = lock(&container.state).link.is_some();
            if !adopted && container.state().phase.is_alive() {
                self.lose(&container, Loss::ShimGone);
            }
        }
        Ok(())
    }

    fn adopt_shim(self: &Arc<Self>, directory: &Path, name: &str) -> Result<(), EngineError> {
        let path = directory.join(name);
        let connected = link::connect(directory, name);
        let Some(socket) = connected.map_err(|source| EngineError::Io { doing: "connect to", path, source })? else {
            return Ok(());
        };
        // Only for messages; a hashed name does not say its group.
        let group = name.rsplit_once('@').map_or(name, |(group, _)| group);
        let (link, running) = self.open_link(group, name, socket, None)?;
        for Running { container: id, run } in running {
            let known = lock(&self.containers).by_id.get(&crate::config::ContainerId(id.clone())).cloned();
            let Some(container) = known else {
                tracing::warn!(container = id, "a shim runs a container that has no directory; it is killed");
                let target = Target::Container(id);
                let _ = link.call(Request::Signal { target, signal: libc::SIGKILL, tree: false }, Vec::new());
                continue;
            };
            let frozen = self.cgroup(&container).is_ok_and(|group| group.is_frozen());
            let mut state = lock(&container.state);
            // It may have ended since the shim answered: then the notice was there first.
            if state.told_exit.as_ref().is_some_and(|exit| exit.ends(&run)) {
                continue;
            }
            state.public.run(&run);
            if frozen {
                state.public.phase = Phase::Paused;
            }
            state.link = Some(Arc::clone(&link));
        }
        Ok(())
    }

    /// Connects the engine's side of a shim's socket.
    fn open_link(
        self: &Arc<Self>,
        group: &str,
        name: &str,
        socket: std::os::unix::net::UnixStream,
        child: Option<std::process::Child>,
    ) -> Result<(Arc<ShimLink>, Vec<Running>), LinkError> {
        let path = self.config.run_dir.join("shim").join(name);
        let (noticed, ended): (Weak<Self>, Weak<Self>) = (Arc::downgrade(self), Arc::downgrade(self));
        let on_notice = move |link: &Arc<ShimLink>, notice: Notice| match notice {
            Notice::Exited { container, exit } => {
                if let Some(inner) = noticed.upgrade() {
                    inner.exited(&crate::config::ContainerId(container), &exit);
                }
            }
            Notice::ExecExited { exec, code } => link.exec_exited(exec, code),
            Notice::Output { .. } | Notice::AttachEnded | Notice::TooSlow => {}
        };
        let on_end = move |link: &Arc<ShimLink>| {
            if let Some(inner) = ended.upgrade() {
                inner.link_ended(link);
            }
        };
        let (link, running) = ShimLink::open(group, path, socket, child, on_notice, on_end)?;
        lock(&self.links).insert(name.to_owned(), Arc::clone(&link));
        Ok((link, running))
    }

    /// The shim of a group: the one that is there, or a new one.
    pub(super) fn link(self: &Arc<Self>, group: &str) -> Result<Arc<ShimLink>, LinkError> {
        let name = link::socket_name(group);
        if let Some(link) = lock(&self.links).get(&name).filter(|link| !link.is_ended()) {
            return Ok(Arc::clone(link));
        }
        let _one_at_a_time = lock(&self.spawning);
        if let Some(link) = lock(&self.links).get(&name).filter(|link| !link.is_ended()) {
            return Ok(Arc::clone(link));
        }
        let directory = self.config.run_dir.join("shim");
        let connected = link::connect(&directory, &name);
        let connected = connected.map_err(|source| LinkError::Spawn { group: group.to_owned(), source })?;
        let (socket, child) = match connected {
            Some(socket) => (socket, None),
            None => {
                let (socket, child) = link::spawn(&directory, group, &self.config.shim_command)?;
                (socket, Some(child))
            }
        };
        self.open_link(group, &name, socket, child).map(|(link, _)| link)
    }

    /// A container has ended, says its shim; the record is on disk.
    fn exited(self: &Arc<Self>, id: &crate::config::ContainerId, exit: &ExitRecord) {
        let Ok(container) = self.container(id) else { return };
        {
            let mut state = lock(&container.state);
            state.told_exit = Some(exit.clone());
            if (state.public.pid, state.public.start_time) != (exit.pid, exit.start_time) {
                // The answer to its start is still on its way to the thread that asked.
                return;
            }
            state.end(exit);
        }
        self.tell_exit(&container, exit);
    }

    /// Tells an end that is already in the container's state.
    pub(super) fn tell_exit(self: &Arc<Self>, container: &Arc<Container>, exit: &ExitRecord) {
        container.changed.notify_all();
        let kind = EventKind::Exited { code: exit.code, oom: exit.oom, error: exit.error.clone() };
        self.events.send(&container.id, &container.name(), kind);
        if container.config().auto_remove {
            self.remove_later(container);
        }
    }

    /// Removes a container in a thread: the caller may be the one that reads what the removal waits for.
    fn remove_later(self: &Arc<Self>, container: &Container) {
        let (inner, id) = (Arc::clone(self), container.id.clone());
        let work = move || {
            if let Err(error) = inner.remove(&id, false, true) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(container = %id, error, "cannot remove a container that asked for it");
            }
        };
        let thread = std::thread::Builder::new().name("engine-remove".to_owned()).stack_size(512 << 10).spawn(work);
        if let Err(e) = thread {
            tracing::warn!(container = %container.id, error = %e, "cannot start a thread to remove a container");
        }
    }

    /// A shim is gone. What it ran is over, whether it was told to leave or was killed.
    fn link_ended(self: &Arc<Self>, link: &Arc<ShimLink>) {
        lock(&self.links).retain(|_, known| !Arc::ptr_eq(known, link));
        for container in self.all() {
            let mine = lock(&container.state).link.as_ref().is_some_and(|its| Arc::ptr_eq(its, link));
            if mine {
                self.lose(&container, Loss::ShimKilled);
            }
        }
        // One that was killed with nothing running has left them; with anything else below them they stay.
        let path = crate::runtime::cgroup_below(&self.config.instance, &link.group, "any");
        if let Ok(group) = Cgroup::open(&self.layout, &path) {
            group.remove_parents();
        }
    }

    /// Ends a run that nobody watches any more: everything in its cgroup is killed, and its end recorded, unless the shim still did.
    pub(super) fn lose(self: &Arc<Self>, container: &Arc<Container>, loss: Loss) {
        let (run, exit) = records(container);
        let exit = match (run, exit) {
            (run, Some(exit)) if is_end(&exit, run.as_ref()) => exit,
            (run, _) => {
                let run =
                    run.unwrap_or(RunRecord { pid: 0, start_time: 0, boot_id: self.boot_id.clone(), started_at: 0 });
                let same_boot = run.boot_id == self.boot_id;
                let loss = if same_boot { loss } else { Loss::HostRestarted };
                if same_boot {
                    self.kill_group(container);
                }
                let exit = ExitRecord {
                    // As of a process killed by SIGKILL, which it was if it was still there.
                    code: 137,
                    signal: libc::SIGKILL,
                    oom: false,
                    finished_at: now(),
                    pid: run.pid,
                    start_time: run.start_time,
                    boot_id: run.boot_id,
                    error: loss.text().to_owned(),
                };
                let written =
                    std::fs::File::open(&container.directory).and_then(|directory| write_exit(directory, &exit, true));
                if let Err(e) = written {
                    tracing::error!(container = %container.id, error = %e, "cannot record a container's end");
                }
                exit
            }
        };
        self.remove_group(container);
        {
            let mut state = lock(&container.state);
            if !state.public.phase.is_alive() {
                return;
            }
            state.end(&exit);
        }
        self.tell_exit(container, &exit);
    }

    pub(super) fn cgroup(&self, container: &Container) -> Result<Cgroup, EngineError> {
        let path = crate::runtime::cgroup_path(&self.config.instance, &container.config());
        Ok(Cgroup::open(&self.layout, &path)?)
    }

    /// Kills everything in a container's cgroup and waits for it to be gone.
    pub(super) fn kill_group(&self, container: &Container) {
        let Ok(group) = self.cgroup(container) else { return };
        let deadline = Instant::now() + DEATH;
        while group.procs().is_ok_and(|procs| !procs.is_empty()) && Instant::now() < deadline {
            if let Err(error) = group.kill() {
                tracing::warn!(container = %container.id, error = &error as &dyn std::error::Error, "cannot kill a cgroup");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes a container's cgroup. Its parents are its shim's business while there is one.
    pub(super) fn remove_group(&self, container: &Container) {
        let group = container.config().group.clone();
        let watched = lock(&self.links).values().any(|link| link.is_of(&group) && !link.is_ended());
        let remove = |cgroup: Cgroup| if watched { cgroup.remove_itself() } else { cgroup.remove() };
        let removed = self.cgroup(container).and_then(|cgroup| Ok(remove(cgroup)?));
        if let Err(error) = removed {
            tracing::warn!(container = %container.id, error = &error as &dyn std::error::Error, "a cgroup stays behind");
        }
    }
}

/// The last start and the last end that a container's directory tells of.
fn records(container: &Container) -> (Option<RunRecord>, Option<ExitRecord>) {
    let read = |e: std::io::Error| tracing::error!(container = %container.id, error = %e, "cannot read a record");
    let run = read_json(&container.directory.join(RUN_FILE)).map_err(read).unwrap_or_default();
    let exit = read_json(&container.directory.join(EXIT_FILE)).map_err(read).unwrap_or_default();
    (run, exit)
}

/// Is this end the end of that start, or of a later attempt that did not come to run?
fn is_end(exit: &ExitRecord, run: Option<&RunRecord>) -> bool {
    run.is_none_or(|run| exit.ends(run) || (exit.pid == 0 && exit.finished_at >= run.started_at))
}
