//! Carrying out a plan: everything is opened and compiled here, in the shim; the child only walks it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::compile::{Compiled, Compiler};
use super::plan::{ExecPlan, Identity, LaunchPlan};
use super::stdio::Stdio;
use crate::cgroup::{Cgroup, CgroupError};
use crate::sys::child::{self, Failure, Record, Step};
use crate::sys::seal;

/// A child that has neither executed nor failed by now hangs in the kernel, on a dead network file system for instance.
pub const LAUNCH_PATIENCE: Duration = Duration::from_secs(60);

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The control group.
    #[error("cannot set up the control group")]
    Cgroup(#[from] CgroupError),
    /// Something that the plan names.
    #[error("cannot {action} {}", path.display())]
    Open {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The layers could not be put together.
    #[error("cannot mount the layers as a root file system ({what})")]
    Overlay {
        /// The option that was refused.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Its own user namespace.
    #[error("cannot {doing}: the container's user namespace")]
    UserNamespace {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A mount whose owners cannot be mapped to the container's own ids.
    #[error("cannot map the owners of {} to the container's own ids (`userns_mode: auto`); its file system must know idmapped mounts (a tmpfs since Linux 6.3), or it must be mounted read-only", path.display())]
    Unmapped {
        /// What is mounted.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An id that the container does not have.
    #[error("{what} is {id}, which is not among the {length} ids of a container with `userns_mode: auto`")]
    ForeignId {
        /// What it is for.
        what: String,
        /// The id.
        id: String,
        /// How many it has.
        length: u32,
    },
    /// A container whose namespaces are to be joined is gone.
    #[error("the container's process {pid} is not running any more")]
    Gone {
        /// Its first process's number.
        pid: i32,
    },
    /// A plan that cannot be expressed to the kernel.
    #[error("{what} holds a NUL byte")]
    Nul {
        /// Which part.
        what: String,
    },
    /// No process could be made.
    #[error("cannot make a process")]
    Clone {
        /// Why.
        source: io::Error,
    },
    /// The new process failed before it executed.
    #[error("{doing}")]
    Child {
        /// What it was doing, on what.
        doing: String,
        /// What the caller's client exits with: 127 not found, 126 not executable, else 125.
        exit_code: i32,
        /// Why.
        source: io::Error,
    },
    /// The new process fell silent.
    #[error("the new process neither started nor said why")]
    Silent,
    /// This program's own executable could be overwritten from a container.
    #[error("this program does not run from a sealed copy of its executable; start it through `sealed_executable`")]
    Unsealed,
    /// A host facility the launcher itself needs.
    #[error("cannot open {what}")]
    Host {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl LaunchError {
    /// What Docker's client exits with: 127 when there is no such command, 126 when it cannot be executed, else 125.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        if let Self::Child { exit_code, .. } = self { *exit_code } else { 125 }
    }
}

/// A process that executes the user's program.
#[derive(Debug)]
pub struct Launched {
    /// Number in the launcher's process namespace. It is the launcher's child and must be waited for.
    pub pid: i32,
    /// Its pidfd, closed on exec.
    pub pidfd: OwnedFd,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// The terminal's master, with [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// Its control group.
    pub cgroup: Cgroup,
    /// How long the start took.
    pub times: LaunchTimes,
}

/// A process that was made and is on its way to its execve. It needs nothing of the launcher any more but to be asked
/// ([`Self::is_executing`]) when [`Self::socket`] can be read, so that the next one can be made meanwhile.
#[derive(Debug)]
pub struct Launching {
    pid: i32,
    pidfd: OwnedFd,
    start_time: u64,
    socket: OwnedFd,
    terminal: Option<OwnedFd>,
    cgroup: Cgroup,
    /// The group was made for it, and goes with it when it fails.
    owns_cgroup: bool,
    /// What its failure is explained with.
    compiled: Box<Compiled>,
    times: LaunchTimes,
    cloned_at: Instant,
}

/// How long each part of a start took, from the request to the kernel's word that the user's program is executing.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaunchTimes {
    /// Making and limiting the control group.
    pub cgroup: Duration,
    /// Opening and mounting what the plan names.
    pub compile: Duration,
    /// The clone, seen from the launcher.
    pub clone: Duration,
    /// What the child did, execve included.
    pub child: Duration,
}

impl Launched {
    /// The pair that names the process for ever.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity { pid: self.pid, start_time: self.start_time }
    }
}

/// Starts processes. One a shim; keeps what all launches share.
#[derive(Debug)]
pub struct Launcher {
    pub(super) null: OwnedFd,
    pub(super) executable: OwnedFd,
    own_processes: OwnedFd,
    pub(super) last_capability: u32,
    time: Time,
    /// Use only what Linux 6.1 has.
    pub(super) old_kernel: bool,
}

/// How a new time namespace is had.
#[derive(Debug)]
enum Time {
    /// As a flag of clone3 (since 6.4 or so).
    Clone,
    /// By unsharing in the launcher, whose own is kept to return to.
    Unshare(OwnedFd),
    /// The kernel has none.
    None,
}

impl Launcher {
    /// A launcher for a process that runs from a sealed executable ([`sealed_executable`](super::sealed_executable)): a container
    /// that executes `/proc/self/exe` or opens `/proc/1/exe` reaches this program's file, and must not be able to write to it
    /// (CVE-2019-5736).
    ///
    /// # Errors
    /// [`LaunchError::Unsealed`], or when /proc or /dev/null cannot be opened.
    pub fn new() -> Result<Self, LaunchError> {
        if seal::is_sealed() { Self::unsealed() } else { Err(LaunchError::Unsealed) }
    }

    /// As [`Self::new`] without the check: for tests and measurements, whose executable is worth nothing.
    ///
    /// # Errors
    /// When /proc or /dev/null cannot be opened.
    pub fn unsealed() -> Result<Self, LaunchError> {
        let open = |what: &'static str| {
            File::open(what).map(OwnedFd::from).map_err(|source| LaunchError::Host { what, source })
        };
        let null = File::options().read(true).write(true).open("/dev/null");
        let last =
            std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
        Ok(Self {
            null: null.map_err(|source| LaunchError::Host { what: "/dev/null", source })?.into(),
            executable: open("/proc/self/exe")?,
            own_processes: open("/proc/thread-self/ns/pid")?,
            // 40 is CAP_CHECKPOINT_RESTORE, the last since 5.9.
            last_capability: last.unwrap_or(40).min(63),
            time: if std::path::Path::new("/proc/self/ns/time").exists() { Time::Clone } else { Time::None },
            old_kernel: false,
        })
    }

    /// Takes the paths that kernels before 6.8 need, so that tests on newer ones cover them.
    #[must_use]
    pub fn as_on_an_old_kernel(mut self) -> Self {
        self.old_kernel = true;
        if matches!(self.time, Time::Clone) {
            self.time = File::open("/proc/thread-self/ns/time").map_or(Time::None, |own| Time::Unshare(own.into()));
        }
        self
    }

    /// Starts a container and waits for its execve. The control group is made and limited first; on any failure nothing of it is left.
    ///
    /// # Errors
    /// [`LaunchError`]; [`LaunchError::exit_code`] is what the client should exit with.
    pub fn launch(&mut self, plan: &LaunchPlan, stdio: Stdio) -> Result<Launched, LaunchError> {
        self.begin(plan, stdio)?.wait()
    }

    /// As [`Self::launch`], up to the moment when the process is there.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub fn begin(&mut self, plan: &LaunchPlan, stdio: Stdio) -> Result<Launching, LaunchError> {
        let begin = Instant::now();
        let cgroup = Cgroup::create(&plan.cgroup)?;
        let made = begin.elapsed();
        match self.start(&cgroup, |launcher| Compiler::new(launcher).container(plan, &cgroup, stdio)) {
            Ok(mut launching) => {
                launching.owns_cgroup = true;
                launching.times.cgroup = made;
                Ok(launching)
            }
            Err(error) => {
                discard(&cgroup);
                Err(error)
            }
        }
    }

    /// Starts a process in a running container and waits for its execve.
    ///
    /// # Errors
    /// As [`Self::launch`]; [`LaunchError::Gone`] when the container's first process is not that of the plan any more.
    pub fn launch_exec(&mut self, plan: &ExecPlan, stdio: Stdio) -> Result<Launched, LaunchError> {
        self.begin_exec(plan, stdio)?.wait()
    }

    /// As [`Self::launch_exec`], up to the moment when the process is there.
    ///
    /// # Errors
    /// As [`Self::launch_exec`].
    pub fn begin_exec(&mut self, plan: &ExecPlan, stdio: Stdio) -> Result<Launching, LaunchError> {
        let cgroup = Cgroup::open(&plan.cgroup.layout, &plan.cgroup.path)?;
        self.start(&cgroup, |launcher| Compiler::new(launcher).exec(plan, &cgroup, stdio))
    }

    fn start(
        &mut self,
        cgroup: &Cgroup,
        compile: impl FnOnce(&Self) -> Result<Compiled, LaunchError>,
    ) -> Result<Launching, LaunchError> {
        let begin = Instant::now();
        let mut compiled = Box::new(compile(self)?);
        let compiled_at = Instant::now();
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (socket, theirs) = pair.map_err(|errno| LaunchError::Clone { source: errno.into() })?;
        compiled.program.status = theirs.as_raw_fd();
        let clone = self.clone(cgroup, &mut compiled);
        // The child holds copies; ours must go, or the end of the status socket and of its streams would never be seen.
        drop(theirs);
        compiled.keep.clear();
        let (pid, pidfd) = clone.map_err(|errno| LaunchError::Clone { source: errno.into() })?;
        let cloned_at = Instant::now();
        Ok(Launching {
            pid,
            pidfd,
            start_time: super::identity::start_time(pid).unwrap_or(0),
            socket,
            terminal: None,
            cgroup: cgroup.clone(),
            owns_cgroup: false,
            compiled,
            times: LaunchTimes {
                compile: compiled_at - begin,
                clone: cloned_at - compiled_at,
                ..LaunchTimes::default()
            },
            cloned_at,
        })
    }

    /// One clone3; the namespaces that apply to children only are entered around it.
    fn clone(&mut self, cgroup: &Cgroup, compiled: &mut Compiled) -> Result<(i32, OwnedFd), Errno> {
        use crate::sys::raw;
        if let Some(target) = &compiled.process_namespace {
            raw::setns(target.as_raw_fd(), libc::CLONE_NEWPID)?;
        }
        let result = self.clone_with_time(cgroup, compiled);
        if compiled.process_namespace.is_some() {
            // Cannot fail: returning to one's own namespace is always allowed. If it did, the next launch would say so.
            raw::setns(self.own_processes.as_raw_fd(), libc::CLONE_NEWPID)?;
        }
        result
    }

    fn clone_with_time(&mut self, cgroup: &Cgroup, compiled: &mut Compiled) -> Result<(i32, OwnedFd), Errno> {
        use crate::sys::raw;
        if !compiled.new_time_namespace {
            return clone_into(cgroup, compiled, 0);
        }
        if matches!(self.time, Time::Clone) {
            match clone_into(cgroup, compiled, libc::CLONE_NEWTIME as u64) {
                // Kernels before 6.4 take the bit for part of the exit signal.
                Err(Errno::EINVAL) => {
                    self.time =
                        File::open("/proc/thread-self/ns/time").map_or(Time::None, |own| Time::Unshare(own.into()))
                }
                other => return other,
            }
        }
        if let Time::Unshare(own) = &self.time
            && raw::unshare(libc::CLONE_NEWTIME).is_ok()
        {
            let result = clone_into(cgroup, compiled, 0);
            // Only refused with several threads (tests): their later children then share that namespace, which has no offsets.
            let _ = raw::setns(own.as_raw_fd(), libc::CLONE_NEWTIME);
            return result;
        }
        clone_into(cgroup, compiled, 0)
    }
}

/// Places the child at birth where cgroup v2 allows, else lets it write itself there.
fn clone_into(cgroup: &Cgroup, compiled: &mut Compiled, flags: u64) -> Result<(i32, OwnedFd), Errno> {
    let flags = compiled.flags | flags;
    if let Some(directory) = cgroup.v2_directory() {
        match child::spawn(&compiled.program, flags, Some(directory.as_raw_fd())) {
            // Frozen, threaded, or not allowed by that way.
            Err(Errno::EBUSY | Errno::EOPNOTSUPP | Errno::EACCES | Errno::EPERM) => {
                if let Ok(procs) = cgroup.v2_procs() {
                    compiled.program.groups_to_enter.push(procs.as_raw_fd());
                    compiled.keep.push(procs);
                }
            }
            other => return other,
        }
    }
    child::spawn(&compiled.program, flags, None)
}

impl Launching {
    /// Its number in the launcher's process namespace. It is the launcher's child.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its control group.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Can be read when [`Self::is_executing`] has something new to say.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the program is executing. Never waits for a child that is on its way; one that has failed is reaped, and its group
    /// removed where it was made for it.
    ///
    /// # Errors
    /// What kept the child from executing, or [`LaunchError::Silent`] when it has had time enough.
    pub fn is_executing(&mut self) -> Result<bool, LaunchError> {
        loop {
            let mut bytes = [0; child::RECORD];
            match (crate::sys::receive_record(self.socket.as_fd(), &mut bytes), Record::decode(&bytes)) {
                (Ok((0, _)), _) => {
                    self.times.child = self.cloned_at.elapsed();
                    return Ok(true);
                }
                (Ok((child::RECORD, descriptor)), Some(Record::Terminal)) => self.terminal = descriptor,
                (Ok((child::RECORD, _)), Some(Record::Failed(failure))) => {
                    self.end();
                    // It exits right after its word. It is our child, so its number is its own until it is waited for.
                    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid), None);
                    if self.owns_cgroup {
                        discard(&self.cgroup);
                    }
                    return Err(self.compiled.explain(failure));
                }
                (Err(e), _) if e.kind() == io::ErrorKind::WouldBlock && self.cloned_at.elapsed() < LAUNCH_PATIENCE => {
                    return Ok(false);
                }
                (Err(e), _) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    // It hangs in the kernel, perhaps for long: it is not waited for. Its group is found by its name later.
                    self.end();
                    return Err(LaunchError::Silent);
                }
            }
        }
    }

    fn end(&self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
    }

    /// Waits until it executes.
    ///
    /// # Errors
    /// As [`Self::is_executing`].
    pub fn wait(mut self) -> Result<Launched, LaunchError> {
        while !self.is_executing()? {
            // Its result is looked at by the next round, also when it is the end of our patience.
            let _ = poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(1000_u16));
        }
        Ok(self.executing())
    }

    /// The process, once [`Self::is_executing`] has said that it executes.
    #[must_use]
    pub fn executing(self) -> Launched {
        let Self { pid, pidfd, start_time, terminal, cgroup, times, .. } = self;
        Launched { pid, pidfd, start_time, terminal, cgroup, times }
    }
}

/// Removes the group of a start that failed.
fn discard(cgroup: &Cgroup) {
    if let Err(leftover) = cgroup.remove() {
        tracing::warn!(error = %leftover, "control group of a failed start stays behind");
    }
}

impl Compiled {
    /// The child's record as a sentence.
    fn explain(&self, failure: Failure) -> LaunchError {
        let index = failure.argument as usize;
        let named = |list: &[String]| list.get(index).cloned().unwrap_or_default();
        let argv0 = self.command.as_str();
        let doing = match failure.step {
            Step::Prepare => "cannot detach from the launcher".to_owned(),
            Step::Cgroup => "cannot enter the control group".to_owned(),
            Step::Join => "cannot enter a namespace".to_owned(),
            Step::Host => "cannot set the host name".to_owned(),
            Step::Loopback => "cannot raise the loopback device".to_owned(),
            Step::Propagation => "cannot separate the mounts from the host's".to_owned(),
            Step::Root => "cannot attach the root file system".to_owned(),
            Step::Mount => match failure.errno {
                Errno::ELOOP | Errno::ENOTDIR => {
                    format!(
                        "cannot mount {}: it must be mounted on an ordinary directory, without links on the way",
                        named(&self.op_names)
                    )
                }
                Errno::EPERM => format!(
                    "cannot mount {}: not allowed there (nothing may be mounted inside /proc)",
                    named(&self.op_names)
                ),
                Errno::EINVAL => format!(
                    "cannot mount {}: the kernel refuses its options, or one of source and target is a file and the other a folder",
                    named(&self.op_names)
                ),
                _ => format!("cannot mount {}", named(&self.op_names)),
            },
            Step::Sysctl => format!("cannot set the kernel parameter {}", named(&self.sysctl_names)),
            Step::OomScore => "cannot set oom_score_adj".to_owned(),
            Step::Limit => format!("cannot set the resource limit {}", named(&self.limit_names)),
            Step::Terminal => "cannot make a terminal: /dev/pts or /dev/console is not what it should be".to_owned(),
            Step::Streams => "cannot connect the standard streams".to_owned(),
            Step::Pivot => "cannot make the root file system the root".to_owned(),
            Step::Directory => format!("cannot enter the working directory {:?}", self.directory),
            Step::DirectoryOutside => {
                format!("the working directory {:?} lies outside of the container's root", self.directory)
            }
            Step::Descriptors => "cannot close the launcher's descriptors".to_owned(),
            Step::Capabilities => "cannot set the capabilities".to_owned(),
            Step::User => "cannot change the user".to_owned(),
            Step::UserNamespace => "cannot enter the container's user namespace".to_owned(),
            Step::Filter => "cannot install the system-call filter".to_owned(),
            Step::Exec => match failure.errno {
                Errno::ENOENT if !argv0.contains('/') => format!("cannot execute {argv0:?}: not found in PATH"),
                Errno::ENOENT => {
                    format!("cannot execute {argv0:?}: no such file in the container, or its interpreter is missing")
                }
                Errno::ENOEXEC => format!(
                    "cannot execute {argv0:?}: exec format error (built for another processor, or a script without #!)"
                ),
                _ => format!("cannot execute {argv0:?}"),
            },
        };
        let exit_code = match (failure.step, failure.errno) {
            (Step::Exec, Errno::ENOENT | Errno::ENOTDIR) => 127,
            (Step::Exec, _) => 126,
            // A working directory that cannot be entered is Docker's "cannot be invoked".
            (Step::Directory, Errno::EACCES | Errno::ENOTDIR | Errno::ENOENT) => 126,
            _ => 125,
        };
        LaunchError::Child { doing, exit_code, source: failure.errno.into() }
    }
}
