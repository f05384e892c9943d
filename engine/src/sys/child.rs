//! Everything a container's first process does between clone and exec, in order.
//!
//! The child is a fork of the shim: one thread, a copy of its memory, possibly taken while a lock was held (tests launch from many
//! threads). So nothing here allocates, locks or unwinds: it walks a [`Program`] that the launcher compiled beforehand, with the
//! calls of [`super::raw`], and ends in exec or exit. It decides nothing but what only it can see (does a mask's target exist?).
//!
//! It talks over one socket that closes on exec: a [`Record`] with the terminal's master, a record of what failed, or nothing but
//! the end, which says that the user's program runs.
//!
//! The image, the volumes and (when joining) the container are hostile: targets are resolved with openat2 inside the root, never
//! through a magic link; proc files are written through a procfs of our own that is not attached anywhere; devices and terminals are
//! checked by descriptor.

mod user_namespace;

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_int};
use std::os::fd::{OwnedFd, RawFd};

use nix::errno::Errno;

use super::raw::{self, BENEATH, IN_ROOT, MountAttr, NO_MAGICLINKS, NO_SYMLINKS, NO_XDEV, Sys};

pub(crate) use super::program::{Base, Entry, IdmappedLayers, Op, OverlayOptions, Place, Program, Root, UserNamespace};
pub(crate) use super::report::{Failure, RECORD, Record, Step};
pub(crate) use user_namespace::hold_user_namespace;

/// The socket's number from [`Child::descriptors`] on: the first after the standard streams.
pub(crate) const STATUS: RawFd = 3;
const REAPER: RawFd = 4;

/// Walks the program. Never returns.
pub(crate) fn run(program: &Program) -> ! {
    let mut child = Child { program, status: program.status, root: -1, proc: -1, terminals: -1, masks: -1 };
    let Err(failure) = child.walk();
    // The launcher may be gone; then nobody is left to tell.
    let _ = raw::send_with_fd(child.status, &Record::Failed(failure).encode(), None);
    raw::exit(127)
}

struct Child<'a> {
    program: &'a Program,
    status: RawFd,
    /// The container's root, a path handle.
    root: RawFd,
    /// A procfs of the container's process namespace.
    proc: RawFd,
    /// The container's devpts.
    terminals: RawFd,
    /// A tmpfs with an empty file `f` and an empty directory `d`.
    masks: RawFd,
}

/// Shorthand: a failed call becomes a failure of this step.
trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
    fn at_index(self, step: Step, index: usize) -> Result<T, Failure>;
}

impl<T> At<T> for Sys<T> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.at_index(step, 0)
    }

    fn at_index(self, step: Step, index: usize) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step, errno, argument: index as u32 })
    }
}

impl Child<'_> {
    fn walk(&mut self) -> Result<Infallible, Failure> {
        self.leave_launcher()?;
        self.enter_cgroups()?;
        self.enter_namespaces()?;
        self.open_proc()?;
        // While that procfs is bare: later it is attached and partly covered.
        self.kernel_settings()?;
        self.make_as_owner()?;
        if let Some(root) = &self.program.root {
            self.build_root(root)?;
        } else {
            self.root = raw::openat(libc::AT_FDCWD, c"/", libc::O_PATH | libc::O_DIRECTORY).at(Step::Root)?;
        }
        self.standard_streams()?;
        if self.program.root.is_some() {
            self.enter_root()?;
        }
        self.working_directory()?;
        let user_namespace = self.descriptors()?;
        self.limits()?;
        self.verify_directory()?;
        self.enter_user_namespace(user_namespace)?;
        self.become_user()?;
        Err(self.execute())
    }

    /// Cuts what a fork inherits from the shim. Not being dumpable comes first: from here on no process that shares a namespace
    /// with us may look into our memory or descriptors (CVE-2016-9962).
    fn leave_launcher(&self) -> Result<(), Failure> {
        raw::prctl(libc::PR_SET_DUMPABLE, 0, 0).at(Step::Prepare)?;
        // A shim that dies now leaves no half-made container; cleared again before exec.
        raw::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at(Step::Prepare)?;
        raw::reset_signals();
        raw::umask(0);
        raw::setsid().at(Step::Prepare)
    }

    fn enter_cgroups(&self) -> Result<(), Failure> {
        for (index, group) in self.program.groups_to_enter.iter().enumerate() {
            // "0" is the writer itself, whatever its number is in which namespace.
            raw::write(*group, b"0").at_index(Step::Cgroup, index)?;
        }
        // What depends on the groups: they are the root of a new cgroup namespace, hence no flag of the clone, and their cpuset bounds
        // the affinity (the shim's own mask is none of the container's business).
        if self.program.new_cgroup_namespace {
            raw::unshare(libc::CLONE_NEWCGROUP).at(Step::Join)?;
        }
        raw::reset_affinity().at(Step::Cgroup)
    }

    fn enter_namespaces(&self) -> Result<(), Failure> {
        for (index, (fd, kinds)) in self.program.joins.iter().enumerate() {
            raw::setns(*fd, *kinds).at_index(Step::Join, index)?;
        }
        if let Some(name) = &self.program.hostname {
            raw::sethostname(name.to_bytes()).at(Step::Host)?;
        }
        if let Some(name) = &self.program.domainname {
            raw::setdomainname(name.to_bytes()).at(Step::Host)?;
        }
        if self.program.loopback {
            raw::loopback_up().at(Step::Loopback)?;
        }
        Ok(())
    }

    /// A procfs of the container's process namespace that is attached nowhere, so nothing can be mounted over what we write.
    fn open_proc(&mut self) -> Result<(), Failure> {
        let attrs = raw::MOUNT_ATTR_NOSUID | raw::MOUNT_ATTR_NODEV | raw::MOUNT_ATTR_NOEXEC;
        self.proc = fresh(c"proc", &[], None, attrs).at(Step::Root)?;
        Ok(())
    }

    fn build_root(&mut self, root: &Root) -> Result<(), Failure> {
        // Mounts of the host keep arriving (binds that ask for it), ours never travel back.
        raw::mount(c"none", c"/", None, libc::MS_SLAVE | libc::MS_REC, None).at(Step::Propagation)?;
        self.root = self.attach_root(root).at(Step::Root)?;
        for (index, op) in root.ops.iter().enumerate() {
            self.carry_out(op, root).at_index(Step::Mount, index)?;
        }
        Ok(())
    }

    fn attach_root(&self, root: &Root) -> Sys<RawFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match &root.base {
            Base::Tree(tree) => {
                let place = raw::openat(libc::AT_FDCWD, &root.mountpoint, flags | libc::O_NOFOLLOW)?;
                raw::move_mount(*tree, place)?;
                raw::close(place);
                Ok(*tree)
            }
            Base::Idmapped(layers) => user_namespace::mount_idmapped(layers, &root.scratch, &root.mountpoint),
            Base::Options(overlay) => {
                let directory = raw::openat(libc::AT_FDCWD, &overlay.directory, flags)?;
                raw::fchdir(directory)?;
                raw::close(directory);
                raw::mount(c"overlay", &root.mountpoint, Some(c"overlay"), 0, Some(&overlay.options))?;
                raw::openat(libc::AT_FDCWD, &root.mountpoint, flags)
            }
        }
    }

    fn carry_out(&mut self, op: &Op, root: &Root) -> Sys<()> {
        match op {
            Op::Proc { target, attrs } => {
                raw::mount_setattr(self.proc, false, &MountAttr { set: *attrs, ..MountAttr::default() })?;
                let place = self.target(target, Place::Ordinary)?;
                raw::move_mount(self.proc, place)?;
                raw::close(place);
                Ok(())
            }
            Op::Fresh { kind, options, attrs, target, place, inherit_mode, terminals } => {
                // What the image says about its own directory; one that we make ourselves says nothing.
                let covered = if *inherit_mode { self.existing(target)? } else { None };
                let mode = match covered {
                    Some(covered) => {
                        let mode = raw::fstat(covered)?.st_mode & 0o7777;
                        raw::close(covered);
                        Some(mode)
                    }
                    None => None,
                };
                let target = self.target(target, *place)?;
                let tree = fresh(kind, options, mode, *attrs)?;
                if *terminals || *kind == c"mqueue" {
                    self.give_to_owner(tree)?;
                }
                raw::move_mount(tree, target)?;
                raw::close(target);
                if *terminals {
                    self.terminals = tree;
                } else {
                    raw::close(tree);
                }
                Ok(())
            }
            Op::Tree { tree, target, place } => {
                let target = self.user_target(target, *place)?;
                raw::move_mount(*tree, target)?;
                raw::close(target);
                Ok(())
            }
            Op::Foreign { mount_namespace, source, attrs, target } => {
                self.foreign(*mount_namespace, source, *attrs, target)
            }
            Op::Populate { directory, entries } => {
                let directory = self.target(directory, Place::Directory)?;
                for entry in entries {
                    make_entry(directory, entry)?;
                }
                raw::close(directory);
                Ok(())
            }
            Op::Mask { target } => self.mask(target, root),
            Op::ReadOnly { target } => self.make_read_only(target),
        }
    }

    /// Finds a target, making what is missing. Never leaves the root, never goes through a magic link.
    fn target(&self, path: &CStr, place: Place) -> Sys<RawFd> {
        let (flags, resolve) = match place {
            Place::Ordinary => (libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW, IN_ROOT | NO_SYMLINKS),
            Place::Directory => (libc::O_PATH | libc::O_DIRECTORY, IN_ROOT | NO_MAGICLINKS),
            Place::File | Place::Replaceable => (libc::O_PATH, IN_ROOT | NO_MAGICLINKS),
        };
        match open_in(self.root, path, flags, 0, resolve) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        match place {
            Place::Ordinary | Place::Directory => make_directories(self.root, path.to_bytes(), resolve),
            Place::File => self.make_file(path),
            Place::Replaceable => match self.make_file(path) {
                Err(Errno::ENOENT | Errno::EEXIST) => {
                    let (parent, name) = self.parent(path)?;
                    let name = name.as_cstr()?;
                    raw::unlinkat(parent, name)?;
                    raw::close(parent);
                    self.make_file(path)
                }
                other => other,
            },
        }
    }

    /// As [`Self::target`] for what the user or the image names: never on procfs, where only our own mounts belong.
    fn user_target(&self, path: &CStr, place: Place) -> Sys<RawFd> {
        let target = self.target(path, place)?;
        if raw::magic(target)? == raw::PROC_MAGIC {
            raw::close(target);
            return Err(Errno::EPERM);
        }
        Ok(target)
    }

    /// The directory of `path`, made when missing, and the last component.
    fn parent(&self, path: &CStr) -> Sys<(RawFd, Name)> {
        let bytes = path.to_bytes();
        let cut = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let parent = make_directories(self.root, &bytes[..cut], IN_ROOT | NO_MAGICLINKS)?;
        Ok((parent, Name::new(bytes.get(cut + 1..).unwrap_or(b""))?))
    }

    fn make_file(&self, path: &CStr) -> Sys<RawFd> {
        let (parent, _) = self.parent(path)?;
        raw::close(parent);
        // Through the whole path again, so that a link to a file that does not exist yet is followed inside the root.
        let flags = libc::O_CREAT | libc::O_RDONLY | libc::O_NOCTTY | libc::O_NONBLOCK;
        open_in(self.root, path, flags, 0o644, IN_ROOT | NO_MAGICLINKS)
    }

    fn foreign(&self, mount_namespace: RawFd, source: &CStr, attrs: u64, target: &CStr) -> Sys<()> {
        // Joining a mount namespace moves root and working directory there, which does not matter: everything of ours is reached
        // by descriptor, and the way back restores "/" as this namespace's root.
        let here = raw::openat(libc::AT_FDCWD, c"/proc/self/ns/mnt", libc::O_RDONLY)?;
        raw::setns(mount_namespace, libc::CLONE_NEWNS)?;
        let tree = open_in(libc::AT_FDCWD, source, libc::O_PATH | libc::O_DIRECTORY, 0, NO_SYMLINKS).and_then(|fd| {
            raw::open_tree(fd, c"", raw::OPEN_TREE_CLONE | raw::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32)
        });
        raw::setns(here, libc::CLONE_NEWNS)?;
        raw::close(here);
        let tree = tree?;
        let attr = MountAttr { set: attrs, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        raw::mount_setattr(tree, true, &attr)?;
        let target = self.target(target, Place::Directory)?;
        raw::move_mount(tree, target)
    }

    /// An existing path for masking and making read-only; `None` when there is none.
    fn existing(&self, path: &CStr) -> Sys<Option<RawFd>> {
        match open_in(self.root, path, libc::O_PATH, 0, IN_ROOT | NO_MAGICLINKS) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Covers with an empty file or directory of a read-only file system of our own: nothing depends on what the image has at
    /// /dev/null (CVE-2025-31133).
    fn mask(&mut self, path: &CStr, root: &Root) -> Sys<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        if self.masks < 0 {
            self.masks = mask_source(&root.scratch)?;
        }
        let is_directory = raw::fstat(target)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let cover = raw::open_tree(
            self.masks,
            if is_directory { c"d" } else { c"f" },
            raw::OPEN_TREE_CLONE | raw::OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as u32,
        )?;
        raw::move_mount(cover, target)?;
        raw::close(cover);
        raw::close(target);
        Ok(())
    }

    fn make_read_only(&self, path: &CStr) -> Sys<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        let tree = clone_tree(target, true)?;
        raw::mount_setattr(tree, true, &MountAttr { set: raw::MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
        raw::move_mount(tree, target)?;
        raw::close(tree);
        raw::close(target);
        Ok(())
    }

    fn kernel_settings(&self) -> Result<(), Failure> {
        for (index, (path, value, optional)) in self.program.sysctls.iter().enumerate() {
            match self.write_proc(path, value) {
                Err(Errno::ENOENT) if *optional => {}
                other => other.at_index(Step::Sysctl, index)?,
            }
        }
        self.write_proc(c"self/oom_score_adj", &self.program.oom_score).at(Step::OomScore)?;
        // The host's session keys are not for containers. A kernel without keyrings, or one that is out of quota, has nothing to
        // hide behind this step that the filter does not refuse anyway.
        let _ = raw::join_session_keyring(&self.program.keyring);
        Ok(())
    }

    /// After the descriptors of the shim are gone: with hundreds of containers they are more than a container's own limit, and nothing
    /// could be opened any more. Before the user changes: raising a hard limit takes CAP_SYS_RESOURCE.
    fn limits(&self) -> Result<(), Failure> {
        for (index, (resource, soft, hard)) in self.program.limits.iter().enumerate() {
            raw::set_rlimit(*resource, *soft, *hard).at_index(Step::Limit, index)?;
        }
        Ok(())
    }

    fn write_proc(&self, path: &CStr, value: &CStr) -> Sys<()> {
        // `self` is a symbolic link of procfs; it stays beneath, and nothing can be mounted on a detached tree.
        let file = raw::openat2(self.proc, path, libc::O_WRONLY, 0, BENEATH | NO_XDEV | NO_MAGICLINKS)?;
        let genuine =
            raw::magic(file).and_then(|magic| if magic == raw::PROC_MAGIC { Ok(()) } else { Err(Errno::EPERM) });
        let written = genuine.and_then(|()| raw::write(file, value.to_bytes()).map(drop));
        raw::close(file);
        written
    }

    fn standard_streams(&mut self) -> Result<(), Failure> {
        let mut sources = self.program.streams;
        if let Some((rows, columns)) = self.program.terminal {
            let slave = self.make_terminal(rows, columns).at(Step::Terminal)?;
            sources = [slave; 3];
        }
        // Out of the way of 0, 1 and 2 first, whatever numbers they have.
        for (index, source) in sources.iter_mut().enumerate() {
            let from = if *source < 0 { self.container_null().unwrap_or(self.program.null) } else { *source };
            *source = raw::dup_above(from, 64).at_index(Step::Streams, index)?;
        }
        for (index, source) in sources.iter().enumerate() {
            raw::dup3(*source, index as RawFd, 0).at_index(Step::Streams, index)?;
            let kind = raw::fstat(*source).at_index(Step::Streams, index)?.st_mode & libc::S_IFMT;
            // So that a process of this user can open /dev/stdout again. Files and devices of others are left alone.
            if kind == libc::S_IFIFO || kind == libc::S_IFSOCK {
                raw::fchownat(*source, c"", self.outside(self.program.uid), u32::MAX).at_index(Step::Streams, index)?;
            }
        }
        if self.program.terminal.is_some() {
            raw::fchownat(0, c"", self.outside(self.program.uid), u32::MAX).at(Step::Terminal)?;
            raw::ioctl(0, libc::TIOCSCTTY, 0).at(Step::Terminal)?;
        }
        Ok(())
    }

    /// /dev/null of the container if it is the genuine device.
    fn container_null(&self) -> Option<RawFd> {
        let fd = open_in(
            self.root,
            c"/dev/null",
            libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK,
            0,
            IN_ROOT | NO_SYMLINKS,
        )
        .ok()?;
        let stat = raw::fstat(fd).ok()?;
        let genuine = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3);
        if genuine {
            return Some(fd);
        }
        raw::close(fd);
        None
    }

    /// A terminal of the container's own devpts: the slave by TIOCGPTPEER, so that no path can be swapped under it
    /// (CVE-2025-52565); the master goes to the launcher.
    fn make_terminal(&mut self, rows: u16, columns: u16) -> Sys<RawFd> {
        if self.terminals < 0 {
            self.terminals =
                open_in(self.root, c"/dev/pts", libc::O_PATH | libc::O_DIRECTORY, 0, IN_ROOT | NO_SYMLINKS)?;
        }
        if raw::magic(self.terminals)? != raw::DEVPTS_MAGIC {
            return Err(Errno::EPERM);
        }
        let master =
            raw::openat2(self.terminals, c"ptmx", libc::O_RDWR | libc::O_NOCTTY, 0, BENEATH | NO_SYMLINKS | NO_XDEV)?;
        raw::unlock_pty(master)?;
        let slave =
            raw::ioctl(master, libc::TIOCGPTPEER, (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as u64)? as RawFd;
        raw::set_window_size(slave, rows, columns)?;
        raw::send_with_fd(self.status, &Record::Terminal.encode(), Some(master))?;
        raw::close(master);
        if self.program.root.is_some() {
            let console = self.target(c"/dev/console", Place::File)?;
            let tree = clone_tree(slave, false)?;
            raw::move_mount(tree, console)?;
            raw::close(tree);
            raw::close(console);
        }
        Ok(slave)
    }

    fn enter_root(&self) -> Result<(), Failure> {
        if self.program.root.as_ref().is_some_and(|root| root.read_only) {
            // As Docker does: what the image lacks of the working directory is made while that is possible.
            raw::close(self.find_working_directory().at(Step::Directory)?);
            let attr = MountAttr { set: raw::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            raw::mount_setattr(self.root, false, &attr).at(Step::Pivot)?;
        }
        raw::fchdir(self.root).at(Step::Pivot)?;
        // pivot_root(2): with both the same directory, the old root lies on top of the new one and is taken off by detaching it.
        raw::pivot_root(c".", c".").at(Step::Pivot)?;
        raw::umount2(c".", libc::MNT_DETACH).at(Step::Pivot)?;
        raw::fchdir(self.root).at(Step::Pivot)
    }

    fn working_directory(&self) -> Result<(), Failure> {
        let directory = self.find_working_directory().at(Step::Directory)?;
        raw::fchdir(directory).at(Step::Directory)
    }

    /// The working directory; made when missing, as in Docker, for a container's first process, but not for one that joins it.
    fn find_working_directory(&self) -> Sys<RawFd> {
        let path = &self.program.directory;
        match open_in(self.root, path, libc::O_PATH | libc::O_DIRECTORY, 0, IN_ROOT | NO_MAGICLINKS) {
            Err(Errno::ENOENT) if self.program.root.is_some() => {
                make_directories(self.root, path.to_bytes(), IN_ROOT | NO_MAGICLINKS)
            }
            other => other,
        }
    }

    /// Leaves 0, 1, 2, the socket, a reaper's executable and a user namespace to enter, whose number it gives (−1: none): whatever the
    /// shim or its caller left open is gone (CVE-2024-21626).
    fn descriptors(&mut self) -> Result<RawFd, Failure> {
        let reaper = match self.program.reaper {
            Some(fd) => Some(raw::dup_above(fd, 64).at(Step::Descriptors)?),
            None => None,
        };
        let user_namespace = match &self.program.user_namespace {
            Some(namespace) => Some(raw::dup_above(namespace.descriptor, 64).at(Step::Descriptors)?),
            None => None,
        };
        if self.status != STATUS {
            raw::dup3(self.status, STATUS, libc::O_CLOEXEC).at(Step::Descriptors)?;
            self.status = STATUS;
        }
        if let Some(reaper) = reaper {
            raw::dup3(reaper, REAPER, libc::O_CLOEXEC).at(Step::Descriptors)?;
        }
        let mut first = if reaper.is_some() { REAPER + 1 } else { STATUS + 1 };
        let mut kept = -1;
        if let Some(namespace) = user_namespace {
            raw::dup3(namespace, first, libc::O_CLOEXEC).at(Step::Descriptors)?;
            kept = first;
            first += 1;
        }
        raw::close_range(first as u32).at(Step::Descriptors)?;
        (self.root, self.proc, self.terminals, self.masks) = (-1, -1, -1, -1);
        Ok(kept)
    }

    /// The kernel prefixes what the process's root does not reach.
    fn verify_directory(&self) -> Result<(), Failure> {
        let mut buffer = [0; libc::PATH_MAX as usize];
        raw::getcwd(&mut buffer).at(Step::Directory)?;
        if buffer[0] == b'/' { Ok(()) } else { Err(Errno::EXDEV).at(Step::DirectoryOutside) }
    }

    fn become_user(&self) -> Result<(), Failure> {
        let program = self.program;
        for capability in 0..=program.last_capability {
            if program.capabilities & (1 << capability) == 0 {
                raw::prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0)
                    .at_index(Step::Capabilities, capability as usize)?;
            }
        }
        // Capabilities survive the change of user until they are set explicitly below.
        raw::prctl(libc::PR_SET_KEEPCAPS, 1, 0).at(Step::Capabilities)?;
        raw::setgroups(&program.groups).at(Step::User)?;
        raw::setresgid(program.gid).at(Step::User)?;
        raw::setresuid(program.uid).at(Step::User)?;
        raw::prctl(libc::PR_SET_KEEPCAPS, 0, 0).at(Step::Capabilities)?;
        raw::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).at(Step::Capabilities)?;
        raw::prctl(libc::PR_SET_PDEATHSIG, 0, 0).at(Step::Prepare)?;
        raw::umask(0o022);
        raw::set_signal_mask(0).at(Step::Prepare)?;
        let held = if program.uid == 0 { program.capabilities } else { 0 };
        if program.no_new_privileges {
            raw::capset(held, held, 0).at(Step::Capabilities)?;
            raw::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).at(Step::Filter)?;
            self.install_filter()
        } else if program.filter.is_some() {
            // Without no_new_privs the kernel asks for CAP_SYS_ADMIN, so the filter comes before the last drop; the filter
            // must therefore let capset, execve and sendmsg pass.
            let admin = 1 << 21;
            raw::capset(held | admin, held | admin, 0).at(Step::Capabilities)?;
            self.install_filter()?;
            raw::capset(held, held, 0).at(Step::Capabilities)
        } else {
            raw::capset(held, held, 0).at(Step::Capabilities)
        }
    }

    fn install_filter(&self) -> Result<(), Failure> {
        match &self.program.filter {
            Some(filter) => raw::install_filter(filter).at(Step::Filter),
            None => Ok(()),
        }
    }

    /// execvp(3): the next candidate when there is no such file, remembering that one was refused.
    fn execute(&self) -> Failure {
        let program = self.program;
        let failure = |errno, index: usize| Failure { step: Step::Exec, errno, argument: index as u32 };
        if program.reaper.is_some() {
            // The reaper keeps the socket until its child executes, so this copy must survive its own exec.
            if let Err(errno) = raw::dup3(STATUS, REAPER + 1, 0) {
                return failure(errno, 0);
            }
            // SAFETY: the launcher built both arrays null-terminated, from strings that the program owns.
            return failure(unsafe { raw::exec_fd(REAPER, program.argv.as_ptr(), program.envp.as_ptr()) }, usize::MAX);
        }
        let mut refused = None;
        for (index, candidate) in program.candidates.iter().enumerate() {
            // SAFETY: the launcher built both arrays null-terminated, from strings that the program owns.
            match unsafe { raw::exec(candidate, program.argv.as_ptr(), program.envp.as_ptr()) } {
                Errno::ENOENT | Errno::ENOTDIR if program.candidates.len() > 1 => {}
                Errno::EACCES => {
                    refused.get_or_insert(index);
                }
                errno => return failure(errno, index),
            }
        }
        refused.map_or(failure(Errno::ENOENT, 0), |index| failure(Errno::EACCES, index))
    }
}

/// openat2 inside a root. A rename elsewhere in the tree makes the kernel give up with EAGAIN when a path has `..`: tried again a
/// bounded number of times, since whoever renames in a loop could keep us here.
fn open_in(root: RawFd, path: &CStr, flags: c_int, mode: u32, resolve: u64) -> Sys<RawFd> {
    for _ in 0..128 {
        match raw::openat2(root, path, flags, mode, resolve) {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// mkdir -p inside a root, mode 0755, and a handle of the last directory. Each new directory is made in and opened from the handle
/// of its parent, without following links, so that exchanging a component for a link makes it fail and never makes it leave.
fn make_directories(root: RawFd, path: &[u8], resolve: u64) -> Sys<RawFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let mut here = open_in(root, c".", flags, 0, resolve)?;
    let mut end = 0;
    while end < path.len() {
        let start = end + path[end..].iter().take_while(|byte| **byte == b'/').count();
        end = start + path[start..].iter().take_while(|byte| **byte != b'/').count();
        if start == end {
            break;
        }
        let prefix = Name::new(&path[..end])?;
        let next = match open_in(root, prefix.as_cstr()?, flags, 0, resolve) {
            Err(Errno::ENOENT) => {
                let name = Name::new(&path[start..end])?;
                match raw::mkdirat(here, name.as_cstr()?, 0o755) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open_in(here, name.as_cstr()?, flags | libc::O_NOFOLLOW, 0, BENEATH | NO_SYMLINKS)?
            }
            other => other?,
        };
        raw::close(here);
        here = next;
    }
    Ok(here)
}

/// Part of a path as a C string, on the stack.
struct Name([u8; libc::PATH_MAX as usize]);

impl Name {
    fn new(bytes: &[u8]) -> Sys<Self> {
        let mut buffer = [0; libc::PATH_MAX as usize];
        // One byte stays zero.
        if bytes.len() >= buffer.len() {
            return Err(Errno::ENAMETOOLONG);
        }
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(Self(buffer))
    }

    fn as_cstr(&self) -> Sys<&CStr> {
        CStr::from_bytes_until_nul(&self.0).map_err(|_| Errno::EINVAL)
    }
}

/// A new file system, detached. `mode` is passed as its option of that name.
fn fresh(kind: &CStr, options: &[(CString, CString)], mode: Option<u32>, attrs: u64) -> Sys<RawFd> {
    let context = raw::fsopen(kind)?;
    for (key, value) in options {
        if value.is_empty() { raw::fsconfig_flag(context, key)? } else { raw::fsconfig_string(context, key, value)? }
    }
    if let Some(mode) = mode {
        // Four octal digits.
        let digit = |shift: u32| b'0' + ((mode >> shift) & 7) as u8;
        let text = [digit(9), digit(6), digit(3), digit(0), 0];
        raw::fsconfig_string(context, c"mode", CStr::from_bytes_with_nul(&text).map_err(|_| Errno::EINVAL)?)?;
    }
    raw::fsconfig_create(context)?;
    let tree = raw::fsmount(context, attrs)?;
    raw::close(context);
    Ok(tree)
}

fn clone_tree(fd: RawFd, recursive: bool) -> Sys<RawFd> {
    let recursive = if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    raw::open_tree(fd, c"", raw::OPEN_TREE_CLONE | raw::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32 | recursive)
}

/// The file system that masks are cut from. It must hang in this mount namespace, since kernels before 6.15 clone from nowhere else.
fn mask_source(scratch: &CStr) -> Sys<RawFd> {
    let attrs = raw::MOUNT_ATTR_RDONLY | raw::MOUNT_ATTR_NOSUID | raw::MOUNT_ATTR_NODEV | raw::MOUNT_ATTR_NOEXEC;
    let tree = fresh(c"tmpfs", &[], Some(0o755), 0)?;
    raw::mknodat(tree, c"f", libc::S_IFREG, 0)?;
    raw::mkdirat(tree, c"d", 0)?;
    raw::mount_setattr(tree, false, &MountAttr { set: attrs, ..MountAttr::default() })?;
    let place = raw::openat(libc::AT_FDCWD, scratch, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)?;
    raw::move_mount(tree, place)?;
    raw::close(place);
    Ok(tree)
}

fn make_entry(directory: RawFd, entry: &Entry) -> Sys<()> {
    match entry {
        Entry::Directory { name, mode } => raw::mkdirat(directory, name, *mode),
        Entry::Link { name, target } => raw::symlinkat(target, directory, name),
        Entry::Node { name, mode, device, uid, gid } => {
            raw::mknodat(directory, name, *mode, *device)?;
            if (*uid, *gid) == (0, 0) { Ok(()) } else { raw::fchownat(directory, name, *uid, *gid) }
        }
    }
}

/// Clones a child that walks the program, with all signals held until it has reset them. Gives its number and pidfd.
///
/// `flags` are the new namespaces; `cgroup` is the directory of the v2 group it is born into.
pub(crate) fn spawn(program: &Program, flags: u64, cgroup: Option<RawFd>) -> Sys<(i32, OwnedFd)> {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: c_int = -1;
    let args = raw::CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | if cgroup.is_some() { INTO_CGROUP } else { 0 },
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd as u64),
        ..raw::CloneArgs::default()
    };
    // A handler of the shim must not run in the child.
    let signals = raw::set_signal_mask(u64::MAX)?;
    // SAFETY: no CLONE_VM in `flags` (callers pass CLONE_NEW* only); the child goes straight into `run`, which neither allocates
    // nor returns; `pidfd` is a live int.
    let cloned = unsafe { raw::clone3(&args) };
    if cloned == Ok(0) {
        run(program);
    }
    raw::set_signal_mask(signals)?;
    cloned.map(|pid| (pid, super::own(pidfd)))
}
