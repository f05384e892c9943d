//! The value between preparing and launching: everything decided, nothing opened. It travels from the agent to the shim, so it is
//! plain data; it is never stored, so it has no versions.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ids::IdRange;
use crate::cgroup::CgroupPlan;
use crate::config::NetworkNs;

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number in the host's namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of /proc/PID/stat.
    pub start_time: u64,
}

/// A container, ready to be launched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// The container's id.
    pub id: String,
    /// Its root file system.
    pub root: RootPlan,
    /// Its namespaces.
    pub namespaces: NamespacePlan,
    /// Its own user namespace's ids; `None`: the host's user namespace. Owners inside the plan are ids inside.
    pub ids: Option<IdRange>,
    /// Host name; `None` with the host's or another container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name.
    pub domainname: Option<String>,
    /// Mounts in the order in which they are made.
    pub mounts: Vec<PlannedMount>,
    /// Device nodes beside the default ones, by their path inside.
    pub devices: Vec<PlannedDevice>,
    /// Paths covered with nothing. Missing ones are skipped.
    pub masked: Vec<String>,
    /// Paths made read-only. Missing ones are skipped.
    pub read_only_paths: Vec<String>,
    /// Kernel parameters in dotted form, value, and whether a kernel without them is fine.
    pub sysctls: Vec<(String, String, bool)>,
    /// Its control group.
    pub cgroup: CgroupPlan,
    /// What it executes.
    pub process: ProcessPlan,
    /// A reaper is PID 1 and the process its child.
    pub init: bool,
}

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootPlan {
    /// Read-only layers, lowest first.
    pub lower: Vec<PathBuf>,
    /// The container's own layer.
    pub upper: PathBuf,
    /// Overlayfs's work directory, on the file system of `upper`.
    pub work: PathBuf,
    /// An empty directory. The root is attached to it in the container's mount namespace only; the host never sees it there.
    pub mountpoint: PathBuf,
    /// The whole root is read-only.
    pub read_only: bool,
    /// Nothing that is written to `upper` need survive a power cut: overlayfs passes no sync on, and its end does not wait until all of the
    /// host's file system is written, as it does else (`volatile`, Linux 5.10).
    #[serde(default)]
    pub volatile: bool,
}

/// How one namespace is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// A new one.
    New,
    /// The launcher's.
    Host,
    /// That of a running container's process.
    Of(Identity),
}

/// A container's namespaces. The mount namespace is always new; so is the time namespace, where the kernel has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamespacePlan {
    /// Network.
    pub network: NetworkNs,
    /// Processes.
    pub pid: Space,
    /// System V IPC and POSIX queues.
    pub ipc: Space,
    /// Host name.
    pub uts: Space,
    /// Control groups' view.
    pub cgroup: Space,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedMount {
    /// Absolute path inside.
    pub target: String,
    /// What.
    pub source: MountSource,
    /// MOUNT_ATTR_* of mount_setattr(2).
    pub attrs: u64,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum MountSource {
    /// procfs of the container's process namespace.
    Proc,
    /// The default /dev: a tmpfs with the six devices and the usual links.
    Dev,
    /// A new devpts, from which the console comes.
    DevPts,
    /// A new sysfs.
    Sys,
    /// The container's own control groups.
    Cgroup,
    /// POSIX queues of the container's IPC namespace.
    Mqueue,
    /// A new tmpfs with these options.
    Tmpfs {
        /// Option and value; an empty value is a flag.
        options: Vec<(String, String)>,
        /// Take the permission bits of the directory that it covers.
        inherit_mode: bool,
    },
    /// A path of the host.
    Bind {
        /// The path.
        source: PathBuf,
        /// A path below `source` that is the true source; resolved without leaving it.
        subpath: String,
        /// Make a directory there when it is missing.
        create: bool,
        /// Take mounts below it along.
        recursive: bool,
        /// A file in place of a dangling link: the generated files of /etc.
        replace: bool,
        /// Owners are mapped to the container's own ids, where it has such.
        mapped: bool,
        /// How mounts made later travel.
        propagation: Propagation,
    },
    /// A directory of another container: its /dev/shm.
    Foreign {
        /// Its process.
        container: Identity,
        /// The path inside it.
        path: String,
    },
}

/// How mounts made later travel between the host and the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// Into the container.
    Slave,
    /// Both ways.
    Shared,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDevice {
    /// Absolute path inside.
    pub target: String,
    /// Type and permission bits, as st_mode.
    pub mode: u32,
    /// Device number, as st_rdev.
    pub device: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What is executed, as whom, within which bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Arguments; the first is what is looked up.
    pub argv: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Paths to try in order.
    pub candidates: Vec<String>,
    /// Working directory; a container's first process finds it made when missing.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Bounding, permitted and effective set as a mask; inheritable and ambient are always empty.
    pub capabilities: u64,
    /// Set no_new_privs.
    pub no_new_privileges: bool,
    /// Seccomp filter: `struct sock_filter`s in native order.
    pub filter: Option<Vec<u8>>,
    /// Resource number, soft, hard; `u64::MAX` is unlimited.
    pub limits: Vec<(u32, u64, u64)>,
    /// −1000..1000.
    pub oom_score_adj: i32,
}

/// A process to run in a running container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The container's id.
    pub id: String,
    /// The container's first process, whose namespaces are joined.
    pub container: Identity,
    /// The ids of its own user namespace, if it has one.
    pub ids: Option<IdRange>,
    /// The container's control group.
    pub cgroup: CgroupPlan,
    /// What.
    pub process: ProcessPlan,
}
