//! What a container's first process is to do, compiled beforehand by the launcher: plain values that [`super::child`] walks without
//! allocating.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::RawFd;

/// How a mount's target is found and, if missing, made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory reached without any symbolic link: /proc, /sys, /dev, whose place other steps rely on (CVE-2019-19921).
    Ordinary,
    /// A directory; links are followed inside the root.
    Directory,
    /// Anything but a directory; links are followed inside the root.
    File,
    /// As `File`, but a dangling link in its place is replaced, as Docker's init layer does for /etc/resolv.conf.
    Replaceable,
}

/// An entry made in a directory.
#[derive(Debug)]
pub(crate) enum Entry {
    Directory { name: CString, mode: u32 },
    Link { name: CString, target: CString },
    Node { name: CString, mode: u32, device: u64, uid: u32, gid: u32 },
}

/// One change to the mount tree. Targets are absolute paths inside.
#[derive(Debug)]
pub(crate) enum Op {
    /// Attaches the procfs that was made first.
    Proc { target: CString, attrs: u64 },
    /// A new file system. `inherit_mode`: an existing target directory's permission bits become the root's.
    Fresh {
        kind: &'static CStr,
        options: Vec<(CString, CString)>,
        attrs: u64,
        target: CString,
        place: Place,
        inherit_mode: bool,
        /// This is the devpts that the console comes from.
        terminals: bool,
    },
    /// A tree that the launcher cloned.
    Tree { tree: RawFd, target: CString, place: Place },
    /// A tree cloned from another container's mount namespace (its /dev/shm).
    Foreign { mount_namespace: RawFd, source: CString, attrs: u64, target: CString },
    /// Entries in a directory, which is made when missing.
    Populate { directory: CString, entries: Vec<Entry> },
    /// Covers a path with nothing; a missing path is fine.
    Mask { target: CString },
    /// Makes what lies at a path read-only; a missing path is fine.
    ReadOnly { target: CString },
}

/// The root file system.
#[derive(Debug)]
pub(crate) struct Root {
    /// The layers.
    pub(crate) base: Base,
    /// Where it is attached, in this mount namespace only.
    pub(crate) mountpoint: CString,
    /// A directory of the host to hang the masks' file system on while building; hidden in this namespace only.
    pub(crate) scratch: CString,
    pub(crate) read_only: bool,
    pub(crate) ops: Vec<Op>,
}

/// How the layers become a tree.
#[derive(Debug)]
pub(crate) enum Base {
    /// They are one: a detached overlay.
    Tree(RawFd),
    /// By mount(2), where the kernel's fsconfig cannot take them.
    Options(OverlayOptions),
    /// By mount(2), from mounts that map their owners to the container's ids.
    Idmapped(IdmappedLayers),
}

/// Idmapped layers.
#[derive(Debug)]
pub(crate) struct IdmappedLayers {
    /// Detached mounts and the names that the options call them by.
    pub(crate) trees: Vec<(RawFd, CString)>,
    pub(crate) options: CString,
}

/// A user namespace of the container's own.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    /// It, or a pidfd of a process in it.
    pub(crate) descriptor: RawFd,
    /// The host's id of root inside.
    pub(crate) first: u32,
}

/// What mount(2) gets where fsconfig(2) does not do.
#[derive(Debug)]
pub(crate) struct OverlayOptions {
    /// Where the relative paths of the options begin.
    pub(crate) directory: CString,
    pub(crate) options: CString,
}

/// What the child walks.
#[derive(Debug)]
pub(crate) struct Program {
    /// The socket to the launcher.
    pub(crate) status: RawFd,
    /// Where the child writes itself into the groups that the clone did not place it in: `tasks` of each v1 hierarchy, or v2's
    /// `cgroup.procs`. A thread that moves itself alone (`tasks`) spares the kernel the lock against forks, whose first taker waits
    /// for an RCU grace period: milliseconds on a busy host (cgroup_procs_write_start, since 5.5).
    pub(crate) groups_to_enter: Vec<RawFd>,
    /// Namespaces to join: descriptor and kinds (a pidfd may stand for several).
    pub(crate) joins: Vec<(RawFd, c_int)>,
    pub(crate) new_cgroup_namespace: bool,
    /// `None`: the launcher's.
    pub(crate) user_namespace: Option<UserNamespace>,
    pub(crate) hostname: Option<CString>,
    pub(crate) domainname: Option<CString>,
    pub(crate) loopback: bool,
    /// `None`: the namespaces joined bring their root.
    pub(crate) root: Option<Root>,
    /// Path below /proc/sys, value, and whether a kernel without it is fine.
    pub(crate) sysctls: Vec<(CString, CString, bool)>,
    pub(crate) oom_score: CString,
    pub(crate) keyring: CString,
    /// Resource, soft, hard.
    pub(crate) limits: Vec<(u32, u64, u64)>,
    /// Rows and columns of the terminal to make.
    pub(crate) terminal: Option<(u16, u16)>,
    /// stdin, stdout, stderr; −1: /dev/null of the container.
    pub(crate) streams: [RawFd; 3],
    /// The host's /dev/null, for when the container has none that is genuine.
    pub(crate) null: RawFd,
    pub(crate) directory: CString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) capabilities: u64,
    pub(crate) last_capability: u32,
    pub(crate) no_new_privileges: bool,
    pub(crate) filter: Option<Vec<u8>>,
    /// This program's own executable, which becomes PID 1 as the reaper and gets `argv` and `envp`.
    pub(crate) reaper: Option<RawFd>,
    /// Paths to try in order, as execvp(3).
    pub(crate) candidates: Vec<CString>,
    /// Null-terminated; point into strings that live as long as the program.
    pub(crate) argv: Vec<*const c_char>,
    pub(crate) envp: Vec<*const c_char>,
}
