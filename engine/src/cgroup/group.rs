//! One container's control group, in every hierarchy of the host.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::layout::{CgroupError, Hierarchy, LEAF, Layout};
use super::{CgroupPlan, DeviceRule, Setting};
use crate::sys::bpf;

/// How long freezing, and dying after SIGKILL, may take. Only a process stuck in the kernel takes longer than milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// v2 controllers that we pass down where the host has them.
const PASSED_DOWN: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// How often a group's parents may vanish while it is made; each time somebody else's group has gone at that very moment.
const PARENT_LOSSES: u32 = 100;

/// One container's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    layout: Layout,
    path: String,
}

/// What a group has used, now or so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes of memory without the inactive page cache, as Docker's client shows it.
    pub memory: u64,
    /// Limit of memory in bytes, `None` without one.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Limit of them.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read: u64,
    /// Bytes written to block devices.
    pub io_write: u64,
}

impl Cgroup {
    /// Makes the group, its parents where missing, and writes its limits and device rules. On failure it is removed again.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn create(plan: &CgroupPlan) -> Result<Self, CgroupError> {
        let group = Self::open(&plan.layout, &plan.path)?;
        let made = group.make().and_then(|()| {
            group.apply(&plan.settings)?;
            match &plan.devices {
                Some(rules) => group.allow_devices(rules),
                None => Ok(()),
            }
        });
        match made {
            Ok(()) => Ok(group),
            Err(error) => {
                // The first error is the one that matters; what stays behind is found by its name later.
                let _ = group.remove();
                Err(error)
            }
        }
    }

    /// A group that exists already, by name; nothing is looked at.
    ///
    /// # Errors
    /// When the path would leave our tree.
    pub fn open(layout: &Layout, path: &str) -> Result<Self, CgroupError> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if !path.split('/').all(plain) {
            return Err(CgroupError::Path { path: path.to_owned() });
        }
        Ok(Self { layout: layout.clone(), path: path.to_owned() })
    }

    /// The path below each hierarchy's base.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.layout.v2.iter().chain(&self.layout.v1).map(|hierarchy| hierarchy.directory(&self.path))
    }

    /// Whether the group exists in any hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directories().any(|directory| directory.exists())
    }

    fn make(&self) -> Result<(), CgroupError> {
        for hierarchy in self.layout.v2.iter().chain(&self.layout.v1) {
            let mut tries = 0;
            loop {
                match self.make_in(hierarchy) {
                    // The shims of other groups take away the parents that they leave empty.
                    Err(error) if error.is_gone() && tries < PARENT_LOSSES => tries += 1,
                    made => break made?,
                }
            }
        }
        Ok(())
    }

    fn make_in(&self, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
        let directory = hierarchy.directory(&self.path);
        let create = || match fs::create_dir(&directory) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(CgroupError::Create { path: directory.clone(), source })
            }
            _ => Ok(()),
        };
        // Usually the parents are there: one call.
        match create() {
            Err(error) if error.is_gone() => {
                self.make_parents(hierarchy)?;
                create()?;
            }
            made => made?,
        }
        if hierarchy.controllers.contains("cpuset") && self.layout.v1.contains(hierarchy) {
            inherit_cpuset(&directory)?;
        }
        Ok(())
    }

    /// Makes the levels between the base and the group; v2 passes the controllers down at each, v1 copies the cpuset.
    fn make_parents(&self, hierarchy: &Hierarchy) -> Result<(), CgroupError> {
        let v2 = self.layout.v2.as_ref() == Some(hierarchy);
        let mut directory = hierarchy.directory("");
        if v2 {
            pass_down(&directory, &hierarchy.controllers)?;
        }
        let Some((parents, _)) = self.path.rsplit_once('/') else { return Ok(()) };
        for part in parents.split('/') {
            directory.push(part);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Create { path: directory, source: error });
                }
                _ => {}
            }
            if v2 {
                pass_down(&directory, &hierarchy.controllers)?;
            } else if hierarchy.controllers.contains("cpuset") {
                inherit_cpuset(&directory)?;
            }
        }
        Ok(())
    }

    /// The directory that holds a controller's files; `""` is v2.
    fn directory_of(&self, controller: &str) -> Option<PathBuf> {
        let hierarchy = if controller.is_empty() { self.layout.v2.as_ref() } else { self.layout.v1_of(controller) };
        hierarchy.map(|hierarchy| hierarchy.directory(&self.path))
    }

    /// Writes limits, also to a group in use.
    ///
    /// # Errors
    /// The first file that refuses.
    pub fn apply(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        let mut refused: Option<(&Setting, CgroupError)> = None;
        for setting in settings {
            let Some(directory) = self.directory_of(&setting.controller) else { continue };
            let path = directory.join(&setting.file);
            if setting.optional && !path.exists() {
                continue;
            }
            match write(&path, &setting.value) {
                // v1 keeps memory ≤ memory + swap: when both are raised, the second must be written first.
                Err(error) if setting.file == "memory.limit_in_bytes" && refused.is_none() => {
                    refused = Some((setting, error))
                }
                other => other?,
            }
        }
        if let Some((setting, error)) = refused {
            let directory = self.directory_of(&setting.controller).ok_or(CgroupError::NotMounted)?;
            write(&directory.join(&setting.file), &setting.value).map_err(|_| error)?;
        }
        Ok(())
    }

    /// Allows exactly these devices: by the v1 controller where it is mounted, else by a BPF program on the v2 group.
    fn allow_devices(&self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        if let Some(directory) = self.directory_of("devices") {
            write(&directory.join("devices.deny"), "a")?;
            let mut allow = File::from(open_to_write(&directory, "devices.allow")?);
            return rules.iter().map(ToString::to_string).try_for_each(|value| {
                // Each write(2) is a command of its own.
                let written = allow.write_all(value.as_bytes());
                written.map_err(|source| CgroupError::Write { path: directory.join("devices.allow"), value, source })
            });
        }
        let Some(v2) = &self.layout.v2 else {
            return Err(CgroupError::NoController { what: "the device filter".to_owned(), controller: "devices" });
        };
        let directory = v2.directory(&self.path);
        let opened = File::open(&directory).map_err(|source| CgroupError::Read { path: directory, source })?;
        let program =
            bpf::device_program(rules).map_err(|source| CgroupError::DeviceFilter { action: "load", source })?;
        bpf::attach_device_program(&program, opened.as_raw_fd())
            .map_err(|source| CgroupError::DeviceFilter { action: "attach", source })
    }

    /// The v2 directory, for cloning into it.
    pub(crate) fn v2_directory(&self) -> Option<OwnedFd> {
        let directory = self.layout.v2.as_ref()?.directory(&self.path);
        File::open(directory).ok().map(OwnedFd::from)
    }

    /// `cgroup.procs` of the v2 group, open for writing.
    pub(crate) fn v2_procs(&self) -> Result<OwnedFd, CgroupError> {
        let hierarchy = self.layout.v2.as_ref().ok_or(CgroupError::NotMounted)?;
        open_to_write(&hierarchy.directory(&self.path), "cgroup.procs")
    }

    /// `tasks` of every v1 group, open for writing.
    pub(crate) fn v1_tasks(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        self.layout.v1.iter().map(|hierarchy| open_to_write(&hierarchy.directory(&self.path), "tasks")).collect()
    }

    /// The v1 directories and their controllers, for showing them inside.
    pub(crate) fn v1_views(&self) -> Vec<(PathBuf, Vec<String>)> {
        let view =
            |hierarchy: &Hierarchy| (hierarchy.directory(&self.path), hierarchy.controllers.iter().cloned().collect());
        self.layout.v1.iter().map(view).collect()
    }

    /// Moves a process in.
    ///
    /// # Errors
    /// When a hierarchy refuses it.
    pub fn add(&self, pid: i32) -> Result<(), CgroupError> {
        self.directories().try_for_each(|directory| write(&directory.join("cgroup.procs"), &pid.to_string()))
    }

    /// Every process in the group and below it.
    ///
    /// # Errors
    /// When a file cannot be read; a group that does not exist has no processes.
    pub fn procs(&self) -> Result<BTreeSet<i32>, CgroupError> {
        let mut found = BTreeSet::new();
        for directory in self.directories() {
            collect_procs(&directory, &mut found)?;
        }
        Ok(found)
    }

    /// Stops every process until [`Self::thaw`]; returns when all are stopped. When that fails they run again.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] when a process does not stop.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true).inspect_err(|_| {
            let _ = self.set_frozen(false);
        })
    }

    /// Lets every process run again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        // The v2 freezer needs no controller, so it also serves hybrid hosts; it lets SIGKILL through, v1's does not.
        if let Some(directory) = self.directory_of("").filter(|directory| directory.join("cgroup.freeze").exists()) {
            write(&directory.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
            let wanted = if frozen { "1" } else { "0" };
            return wait_until(&directory, if frozen { "freeze" } else { "thaw" }, || {
                Ok(keyed(&directory.join("cgroup.events"), "frozen")?.is_none_or(|value| value.to_string() == wanted))
            });
        }
        let Some(directory) = self.directory_of("freezer") else {
            return Err(CgroupError::NoController { what: "pausing".to_owned(), controller: "freezer" });
        };
        let (state, what) = if frozen { ("FROZEN", "freeze") } else { ("THAWED", "thaw") };
        wait_until(&directory, what, || {
            // Written again each time: a process that was being made may have slipped by.
            write(&directory.join("freezer.state"), state)?;
            Ok(read(&directory.join("freezer.state"))?.trim() == state)
        })
    }

    /// Whether the group is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        if let Some(directory) = self.directory_of("") {
            return read(&directory.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1");
        }
        let Some(directory) = self.directory_of("freezer") else { return false };
        read(&directory.join("freezer.state")).is_ok_and(|text| text.trim() != "THAWED")
    }

    /// Kills every process, also those being born meanwhile, and thaws the group so that they can die. Does not wait for them.
    ///
    /// # Errors
    /// When a process could not be killed; the group is thawed all the same.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let one_shot =
            self.directory_of("").map(|directory| directory.join("cgroup.kill")).filter(|file| file.exists());
        let killed = match one_shot {
            Some(file) => write(&file, "1"),
            None => self.kill_one_by_one(),
        };
        let thawed = if self.is_frozen() { self.thaw() } else { Ok(()) };
        killed.and(thawed)
    }

    /// Before `cgroup.kill` (5.14): frozen, so that none forks away; killed; thawed by the caller.
    fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        // Killing goes on if freezing fails: repeated until a round finds nobody new.
        let _ = self.freeze();
        let mut known = BTreeSet::new();
        for _ in 0..100 {
            let procs = self.procs()?;
            if procs.is_subset(&known) {
                break;
            }
            for pid in &procs {
                // Gone already is as good.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            known.extend(procs);
        }
        Ok(())
    }

    /// What the group has used. Files that this kernel lacks count as zero.
    #[must_use]
    pub fn stats(&self) -> Stats {
        if self.layout.v1_of("memory").is_some() || self.layout.v1_of("cpuacct").is_some() {
            self.stats_v1()
        } else {
            self.stats_v2()
        }
    }

    fn stats_v2(&self) -> Stats {
        let Some(directory) = self.directory_of("") else { return Stats::default() };
        let file = |name: &str| directory.join(name);
        let inactive = keyed(&file("memory.stat"), "inactive_file").ok().flatten().unwrap_or(0);
        let io = read(&file("io.stat")).unwrap_or_default();
        Stats {
            cpu_ns: keyed(&file("cpu.stat"), "usage_usec").ok().flatten().unwrap_or(0).saturating_mul(1000),
            memory: number(&file("memory.current")).unwrap_or(0).saturating_sub(inactive),
            memory_limit: number(&file("memory.max")),
            pids: number(&file("pids.current")).unwrap_or_else(|| self.procs().map_or(0, |procs| procs.len() as u64)),
            pids_limit: number(&file("pids.max")),
            io_read: sum_fields(&io, "rbytes="),
            io_write: sum_fields(&io, "wbytes="),
        }
    }

    fn stats_v1(&self) -> Stats {
        let file = |controller: &str, name: &str| self.directory_of(controller).map(|directory| directory.join(name));
        let value = |controller, name| file(controller, name).and_then(|path| number(&path));
        let inactive = file("memory", "memory.stat")
            .and_then(|path| keyed(&path, "total_inactive_file").ok().flatten())
            .unwrap_or(0);
        let io = file("blkio", "blkio.throttle.io_service_bytes_recursive")
            .filter(|path| path.exists())
            .or_else(|| file("blkio", "blkio.throttle.io_service_bytes"));
        let io = io.and_then(|path| read(&path).ok()).unwrap_or_default();
        Stats {
            cpu_ns: value("cpuacct", "cpuacct.usage").unwrap_or(0),
            memory: value("memory", "memory.usage_in_bytes").unwrap_or(0).saturating_sub(inactive),
            // Without a limit the file holds the largest multiple of a page, some 9.2 exabytes.
            memory_limit: value("memory", "memory.limit_in_bytes").filter(|limit| *limit < 1 << 62),
            pids: value("pids", "pids.current").unwrap_or_else(|| self.procs().map_or(0, |procs| procs.len() as u64)),
            pids_limit: value("pids", "pids.max"),
            io_read: sum_operation(&io, "Read"),
            io_write: sum_operation(&io, "Write"),
        }
    }

    /// How many processes of the group were killed for want of memory. Read it once more before [`Self::remove`].
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let path = match self.directory_of("memory") {
            Some(directory) => directory.join("memory.oom_control"),
            None => match self.directory_of("") {
                Some(directory) => directory.join("memory.events"),
                None => return 0,
            },
        };
        keyed(&path, "oom_kill").ok().flatten().unwrap_or(0)
    }

    /// Removes the group, what the container made below it, and parents of ours that are empty then. Processes that are still
    /// dying are waited for; a group that does not exist is fine.
    ///
    /// # Errors
    /// [`CgroupError::Remove`] when processes stay.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let result = self.remove_itself();
        self.remove_parents();
        result
    }

    /// As [`Self::remove`], but the parents stay: the next group below them is made in a third of the time.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_itself(&self) -> Result<(), CgroupError> {
        // Go on with the others: the first error is told, as much as possible is gone.
        let removed: Vec<_> = self.directories().map(|directory| remove_tree(&directory)).collect();
        removed.into_iter().collect()
    }

    /// As [`Self::remove_itself`] where nothing lives in the group nor has been made below it; else false, and what is in use stays.
    pub fn remove_at_once(&self) -> bool {
        // v2 first: it knows every process, so that it is kept while there is one.
        self.directories().all(|directory| match fs::remove_dir(directory) {
            Ok(()) => true,
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        })
    }

    /// Removes the parents of ours that are empty.
    pub fn remove_parents(&self) {
        for hierarchy in self.layout.v2.iter().chain(&self.layout.v1) {
            let mut parent = self.path.as_str();
            while let Some((above, _)) = parent.rsplit_once('/') {
                if fs::remove_dir(hierarchy.directory(above)).is_err_and(|e| e.kind() != io::ErrorKind::NotFound) {
                    break;
                }
                parent = above;
            }
        }
    }
}

/// Removes from the leaves up; EBUSY while a process is on its way out.
fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path())?;
            }
        }
    }
    let mut pause = Duration::from_millis(1);
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // 1 + 2 + … + 512 ms: a process that was killed is gone long before.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && pause < Duration::from_secs(1) => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(source) => return Err(CgroupError::Remove { path: directory.to_owned(), source }),
        }
    }
}

/// Enables for the children what the group has itself; one by one, since one refusal must not cost the others.
fn pass_down(directory: &Path, controllers: &BTreeSet<String>) -> Result<(), CgroupError> {
    let file = directory.join("cgroup.subtree_control");
    let enabled = read(&file)?;
    let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
    let missing = || PASSED_DOWN.iter().filter(|name| controllers.contains(**name) && !enabled.contains(**name));
    if missing().next().is_none() {
        return Ok(());
    }
    // Processes and controllers cannot share a group that is not the root, which alone has no type. Waiting for the kernel to refuse
    // is not enough: it takes `cpu` and `cpuset`, which can be had by threads, turns the group into a root of such, and then takes
    // no other one.
    if directory.join("cgroup.type").exists() && !read(&directory.join("cgroup.procs"))?.trim().is_empty() {
        move_to_leaf(directory)?;
    }
    missing().try_for_each(|controller| write(&file, &format!("+{controller}")))
}

/// Moves every process of a group into its child [`LEAF`].
fn move_to_leaf(directory: &Path) -> Result<(), CgroupError> {
    let leaf = directory.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(CgroupError::Create { path: leaf, source: error });
        }
        _ => {}
    }
    for pid in read(&directory.join("cgroup.procs"))?.split_whitespace() {
        match write(&leaf.join("cgroup.procs"), pid) {
            // Ended meanwhile.
            Err(CgroupError::Write { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

/// A new v1 cpuset is empty and refuses processes until it has processors and memory nodes.
fn inherit_cpuset(directory: &Path) -> Result<(), CgroupError> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(&directory.join(file))?.trim().is_empty() {
            write(&directory.join(file), read(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn collect_procs(directory: &Path, found: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
    let path = directory.join("cgroup.procs");
    match fs::read_to_string(&path) {
        Ok(text) => found.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok())),
        // Removed, or a threaded child, whose processes its domain lists.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => {}
        Err(source) => return Err(CgroupError::Read { path, source }),
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_procs(&entry.path(), found)?;
        }
    }
    Ok(())
}

fn open_to_write(directory: &Path, file: &str) -> Result<OwnedFd, CgroupError> {
    let path = directory.join(file);
    File::options().write(true).open(&path).map(OwnedFd::from).map_err(|source| CgroupError::Read { path, source })
}

/// Asks until it is so: first at once, then at growing intervals up to 10 ms.
fn wait_until(
    directory: &Path,
    what: &'static str,
    mut so: impl FnMut() -> Result<bool, CgroupError>,
) -> Result<(), CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(50);
    while !so()? {
        if Instant::now() > deadline {
            return Err(CgroupError::Timeout { path: directory.to_owned(), what, seconds: PATIENCE.as_secs() });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(())
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // One write(2): the kernel takes each as a whole command. No O_CREAT, no O_TRUNC.
    let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

/// A file with one number; `None` for `max`, nonsense or no file.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A number by its key from a file of `key value` lines.
fn keyed(path: &Path, key: &str) -> Result<Option<u64>, CgroupError> {
    let text = read(path)?;
    Ok(text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()))
}

/// v2's io.stat: `8:0 rbytes=… wbytes=…` a line.
fn sum_fields(text: &str, field: &str) -> u64 {
    text.split_whitespace().filter_map(|word| word.strip_prefix(field)?.parse::<u64>().ok()).sum()
}

/// v1's blkio files: `8:0 Read 4096` a line.
fn sum_operation(text: &str, operation: &str) -> u64 {
    let value = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == operation).then(|| words.next()?.parse::<u64>().ok()).flatten()
    };
    text.lines().filter_map(value).sum()
}
