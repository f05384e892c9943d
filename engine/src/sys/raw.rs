//! One function per system call: safe to call with any argument, no allocation, no lock, errors as a bare number.
//! Both the launcher and the child between clone and exec use them; only [`clone3`] is `unsafe`, because it returns twice.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::os::fd::RawFd;

use nix::errno::Errno;

// The mount API's numbers, from include/uapi/linux/mount.h; the libc crate has none of them.
pub(crate) const OPEN_TREE_CLONE: c_uint = 1;
pub(crate) const OPEN_TREE_CLOEXEC: c_uint = libc::O_CLOEXEC as c_uint;
pub(crate) const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x04;
pub(crate) const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
pub(crate) const FSOPEN_CLOEXEC: c_uint = 1;
pub(crate) const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x01;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x02;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x04;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x08;
pub(crate) const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub(crate) const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
pub(crate) const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// `openat2`: every link is resolved as if the directory were the root.
pub(crate) const IN_ROOT: u64 = 0x10;
/// `openat2`: the result must lie below the directory.
pub(crate) const BENEATH: u64 = 0x08;
/// `openat2`: no mount point is crossed.
pub(crate) const NO_XDEV: u64 = 0x01;
/// `openat2`: `/proc/*/fd/N` and its like are refused.
pub(crate) const NO_MAGICLINKS: u64 = 0x02;
/// `openat2`: no symbolic link in any component.
pub(crate) const NO_SYMLINKS: u64 = 0x04;
/// File system magic of procfs (`PROC_SUPER_MAGIC`).
pub(crate) const PROC_MAGIC: i64 = 0x9fa0;
/// File system magic of devpts (`DEVPTS_SUPER_MAGIC`).
pub(crate) const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Result of a bare system call.
pub(crate) type Sys<T> = Result<T, Errno>;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// One of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, or 0 to leave it.
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

fn check(ret: c_long) -> Sys<c_long> {
    // The calls below return −1 and nothing else on failure; no address is returned by any of them.
    if ret == -1 { Err(Errno::last()) } else { Ok(ret) }
}

fn fd(ret: c_long) -> Sys<RawFd> {
    check(ret).map(|value| value as RawFd)
}

fn done(ret: c_long) -> Sys<()> {
    check(ret).map(drop)
}

pub(crate) fn open_tree(dir: RawFd, path: &CStr, flags: c_uint) -> Sys<RawFd> {
    // SAFETY: the path is NUL-terminated and outlives the call; the kernel only reads it.
    fd(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

pub(crate) fn move_mount(from: RawFd, to: RawFd) -> Sys<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are the same static empty string; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) })
}

pub(crate) fn mount_setattr(tree: RawFd, recursive: bool, attr: &MountAttr) -> Sys<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is a live `struct mount_attr` of exactly the size given; the kernel only reads it.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            flags,
            attr as *const MountAttr,
            size_of::<MountAttr>(),
        )
    })
}

pub(crate) fn fsopen(kind: &CStr) -> Sys<RawFd> {
    // SAFETY: the name is NUL-terminated; the kernel only reads it.
    fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })
}

pub(crate) fn fsconfig_string(context: RawFd, key: &CStr, value: &CStr) -> Sys<()> {
    // SAFETY: key and value are NUL-terminated; the kernel copies them.
    done(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0) })
}

pub(crate) fn fsconfig_flag(context: RawFd, key: &CStr) -> Sys<()> {
    // SAFETY: the key is NUL-terminated; a flag takes no value, for which the kernel wants a null pointer.
    done(unsafe {
        libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_SET_FLAG, key.as_ptr(), std::ptr::null::<c_char>(), 0)
    })
}

pub(crate) fn fsconfig_create(context: RawFd) -> Sys<()> {
    let none = std::ptr::null::<c_char>();
    // SAFETY: the command takes neither key nor value, for which the kernel wants null pointers.
    done(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, none, none, 0) })
}

pub(crate) fn fsmount(context: RawFd, attrs: u64) -> Sys<RawFd> {
    // SAFETY: integers only.
    fd(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, attrs as c_uint) })
}

pub(crate) fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: c_ulong, data: Option<&CStr>) -> Sys<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    let data = data.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a NUL-terminated string that outlives the call; the kernel copies them.
    done(unsafe { libc::syscall(libc::SYS_mount, source.as_ptr(), target.as_ptr(), kind, flags, data) })
}

pub(crate) fn umount2(target: &CStr, flags: c_int) -> Sys<()> {
    // SAFETY: the path is NUL-terminated; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_umount2, target.as_ptr(), flags) })
}

pub(crate) fn pivot_root(new: &CStr, old: &CStr) -> Sys<()> {
    // SAFETY: both paths are NUL-terminated; the kernel only reads them.
    done(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) })
}

/// `flags` gains O_CLOEXEC; `mode` matters with O_CREAT only (the kernel refuses it otherwise).
pub(crate) fn openat2(dir: RawFd, path: &CStr, flags: c_int, mode: u32, resolve: u64) -> Sys<RawFd> {
    #[repr(C)]
    struct How {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let how = How { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve };
    // SAFETY: path and `how` are live for the call, `how` has the size given; the kernel only reads them.
    fd(unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<How>()) })
}

pub(crate) fn openat(dir: RawFd, path: &CStr, flags: c_int) -> Sys<RawFd> {
    // SAFETY: the path is NUL-terminated; the kernel only reads it.
    fd(unsafe { libc::syscall(libc::SYS_openat, dir, path.as_ptr(), flags | libc::O_CLOEXEC, 0) })
}

/// Closing never has a meaningful error for what is closed here: path handles, mounts, sockets.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: callers pass descriptors that they opened and do not use again; a wrong number is EBADF, harmless.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

pub(crate) fn close_range(first: c_uint) -> Sys<()> {
    // SAFETY: integers only. Whoever holds a closed number gets EBADF; the child that calls this holds none.
    done(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0) })
}

pub(crate) fn dup3(old: RawFd, new: RawFd, flags: c_int) -> Sys<()> {
    // SAFETY: integers only.
    done(unsafe { libc::syscall(libc::SYS_dup3, old, new, flags) })
}

/// A copy of `old` with a number of at least `least`, closed on exec.
pub(crate) fn dup_above(old: RawFd, least: RawFd) -> Sys<RawFd> {
    // SAFETY: integers only.
    fd(unsafe { libc::syscall(libc::SYS_fcntl, old, libc::F_DUPFD_CLOEXEC, least) })
}

pub(crate) fn write(fd: RawFd, bytes: &[u8]) -> Sys<usize> {
    // SAFETY: pointer and length are one slice; the kernel only reads it.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) }).map(|n| n as usize)
}

pub(crate) fn mkdirat(dir: RawFd, name: &CStr, mode: u32) -> Sys<()> {
    // SAFETY: the name is NUL-terminated; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_mkdirat, dir, name.as_ptr(), mode) })
}

pub(crate) fn mknodat(dir: RawFd, name: &CStr, mode: u32, device: u64) -> Sys<()> {
    // SAFETY: the name is NUL-terminated; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_mknodat, dir, name.as_ptr(), mode, device) })
}

pub(crate) fn symlinkat(target: &CStr, dir: RawFd, name: &CStr) -> Sys<()> {
    // SAFETY: both strings are NUL-terminated; the kernel only reads them.
    done(unsafe { libc::syscall(libc::SYS_symlinkat, target.as_ptr(), dir, name.as_ptr()) })
}

pub(crate) fn unlinkat(dir: RawFd, name: &CStr) -> Sys<()> {
    // SAFETY: the name is NUL-terminated; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_unlinkat, dir, name.as_ptr(), 0) })
}

pub(crate) fn fchownat(dir: RawFd, name: &CStr, uid: u32, gid: u32) -> Sys<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: the name is NUL-terminated; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_fchownat, dir, name.as_ptr(), uid, gid, flags) })
}

/// fstat(2), for path handles too.
pub(crate) fn fstat(fd: RawFd) -> Sys<libc::stat> {
    // SAFETY: `struct stat` is plain integers, for which all zeroes is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is a live `struct stat`, which is what the kernel fills on this architecture.
    done(unsafe { libc::syscall(libc::SYS_fstat, fd, &raw mut stat) })?;
    Ok(stat)
}

/// The magic number of the file system a handle lies on.
pub(crate) fn magic(fd: RawFd) -> Sys<i64> {
    // SAFETY: `struct statfs` is plain integers, for which all zeroes is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is a live `struct statfs`, which is what the kernel fills on a 64-bit architecture.
    done(unsafe { libc::syscall(libc::SYS_fstatfs, fd, &raw mut stat) })?;
    Ok(stat.f_type)
}

pub(crate) fn fchdir(fd: RawFd) -> Sys<()> {
    // SAFETY: integers only.
    done(unsafe { libc::syscall(libc::SYS_fchdir, fd) })
}

/// The length of the working directory's path written into `buffer`, its NUL included.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Sys<usize> {
    // SAFETY: pointer and length are one mutable slice.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) }).map(|n| n as usize)
}

pub(crate) fn setns(fd: RawFd, kinds: c_int) -> Sys<()> {
    // SAFETY: integers only; the caller's threads are not affected, only the calling one.
    done(unsafe { libc::syscall(libc::SYS_setns, fd, kinds) })
}

pub(crate) fn unshare(kinds: c_int) -> Sys<()> {
    // SAFETY: integers only; never called with CLONE_VM or CLONE_FILES, so no memory or descriptor is affected.
    done(unsafe { libc::syscall(libc::SYS_unshare, kinds) })
}

pub(crate) fn setsid() -> Sys<()> {
    // SAFETY: no arguments.
    done(unsafe { libc::syscall(libc::SYS_setsid) })
}

pub(crate) fn sethostname(name: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length are one slice; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) })
}

pub(crate) fn setdomainname(name: &[u8]) -> Sys<()> {
    // SAFETY: pointer and length are one slice; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) })
}

pub(crate) fn umask(mask: u32) {
    // SAFETY: integers only; cannot fail.
    unsafe { libc::syscall(libc::SYS_umask, mask) };
}

/// prctl(2) with integer arguments.
pub(crate) fn prctl(option: c_int, arg2: c_ulong, arg3: c_ulong) -> Sys<c_long> {
    // SAFETY: only options whose arguments are integers are passed by this crate; unused ones are zero as the kernel asks.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, arg2, arg3, 0, 0) })
}

pub(crate) fn setgroups(groups: &[u32]) -> Sys<()> {
    // SAFETY: length and pointer are one slice of gid_t; the kernel only reads it. The bare call changes this thread only,
    // unlike glibc's, which signals every thread.
    done(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

pub(crate) fn setresgid(gid: u32) -> Sys<()> {
    // SAFETY: integers only.
    done(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
}

pub(crate) fn setresuid(uid: u32) -> Sys<()> {
    // SAFETY: integers only.
    done(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// The ids that the calling thread makes and reaches files with. The kernel gives the former ones and no error, so they are asked for
/// again.
pub(crate) fn setfsids(id: u32) -> Sys<()> {
    for call in [libc::SYS_setfsgid, libc::SYS_setfsuid] {
        // SAFETY: integers only. The bare call changes this thread only.
        unsafe { libc::syscall(call, id) };
        // SAFETY: as above; the last value is no id, so nothing changes.
        if unsafe { libc::syscall(call, u32::MAX) } as u32 != id {
            return Err(Errno::EPERM);
        }
    }
    Ok(())
}

/// Sets the three capability sets of the calling thread.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Sys<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two 32-bit halves.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Half {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let halves = [half(0), half(32)];
    // SAFETY: header and both halves are live and laid out as version 3 asks.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })
}

/// `(soft, hard)`, `u64::MAX` is unlimited.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Sys<()> {
    let limit = [soft, hard];
    // SAFETY: `struct rlimit64` is two 64-bit integers; a null old limit asks for none.
    done(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, limit.as_ptr(), std::ptr::null_mut::<c_void>()) })
}

/// Lets the calling thread run on every processor that exists (the kernel intersects with the cpuset).
pub(crate) fn reset_affinity() -> Sys<()> {
    // 8192 processors: the largest NR_CPUS that distributions build with.
    let all = [u8::MAX; 1024];
    // SAFETY: length and pointer are one array; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, all.len(), all.as_ptr()) })
}

/// Gives every signal its default disposition. SIGKILL and SIGSTOP refuse, which is right.
pub(crate) fn reset_signals() {
    // The kernel's own sigaction: handler, flags, restorer, mask; all zeroes is SIG_DFL.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the new action is live and as large as the kernel reads; no old one is asked for.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<c_void>(), 8) };
    }
}

/// Replaces the calling thread's blocked signals by `mask` (bit n−1 is signal n) and gives the former ones.
pub(crate) fn set_signal_mask(mask: u64) -> Sys<u64> {
    let mut old = 0u64;
    // SAFETY: both masks are live 64-bit integers, the kernel's sigset size.
    done(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, 8) })?;
    Ok(old)
}

/// Joins a new, empty session keyring of this name.
pub(crate) fn join_session_keyring(name: &CStr) -> Sys<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: the name is NUL-terminated; the kernel only reads it.
    done(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Installs a seccomp filter: `program` is `struct sock_filter`s, eight bytes each.
pub(crate) fn install_filter(program: &[u8]) -> Sys<()> {
    const SECCOMP_SET_MODE_FILTER: c_int = 1;
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const u8,
    }
    let length = u16::try_from(program.len() / 8).map_err(|_| Errno::E2BIG)?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: `program` describes a live slice of `length` 8-byte instructions, which the kernel copies and verifies; it reads
    // them with copy_from_user, so alignment does not matter.
    done(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// ioctl(2) whose argument is an integer or ignored.
pub(crate) fn ioctl(fd: RawFd, request: c_ulong, value: c_ulong) -> Sys<c_long> {
    // SAFETY: used only with requests that take an integer or nothing (TIOCSCTTY, TIOCGPTPEER).
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd, request, value) })
}

/// Unlocks the slave of a pseudo-terminal master.
pub(crate) fn unlock_pty(master: RawFd) -> Sys<()> {
    let zero: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    done(unsafe { libc::syscall(libc::SYS_ioctl, master, libc::TIOCSPTLCK, &raw const zero) })
}

/// Sets a terminal's size.
pub(crate) fn set_window_size(tty: RawFd, rows: u16, columns: u16) -> Sys<()> {
    let size = [rows, columns, 0, 0];
    // SAFETY: TIOCSWINSZ reads one `struct winsize`, four 16-bit integers.
    done(unsafe { libc::syscall(libc::SYS_ioctl, tty, libc::TIOCSWINSZ, size.as_ptr()) })
}

/// Raises the loopback device of the calling thread's network namespace.
pub(crate) fn loopback_up() -> Sys<()> {
    // SAFETY: integers only.
    let socket =
        fd(unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `struct ifreq` is a name and a union of plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads one live `struct ifreq`.
    let up = done(unsafe { libc::syscall(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS, &raw const request) });
    close(socket);
    up
}

/// Sends `bytes` and, if given, one descriptor over a connected unix socket.
pub(crate) fn send_with_fd(socket: RawFd, bytes: &[u8], carried: Option<RawFd>) -> Sys<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut c_void, iov_len: bytes.len() };
    // CMSG_SPACE(sizeof(int)) is 24 on 64-bit; u64 gives the alignment of a cmsghdr.
    let mut control = [0u64; 3];
    // SAFETY: `struct msghdr` is pointers and integers, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if let Some(carried) = carried {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the control buffer is live, aligned and has room for one header with one int, so CMSG_FIRSTHDR is inside
        // it and CMSG_DATA points at four bytes inside it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as c_uint) as usize;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(carried);
        }
    }
    // SAFETY: message, its one part and its control buffer are live; the kernel only reads them.
    done(unsafe { libc::syscall(libc::SYS_sendmsg, socket, &raw const message, libc::MSG_NOSIGNAL) })
}

/// `struct clone_args` of clone3(2), the fields used here.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// clone3(2) without a stack: both sides return, the child with 0.
///
/// # Safety
/// In the child only the calling thread exists: it must not allocate, lock, or return into code that does, and must end in
/// [`exec`] or [`exit`]. `flags` must not hold CLONE_VM. `args.pidfd`, when asked for, must point at a live int.
pub(crate) unsafe fn clone3(args: &CloneArgs) -> Sys<i32> {
    // SAFETY: `args` is live and of the size given; the rest is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_clone3, args as *const CloneArgs, size_of::<CloneArgs>()) })
        .map(|pid| pid as i32)
}

/// execve(2); returns only the error.
///
/// # Safety
/// `argv` and `envp` must be arrays of pointers to NUL-terminated strings, each array ended by a null pointer.
pub(crate) unsafe fn exec(path: &CStr, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv, envp) };
    Errno::last()
}

/// execveat(2) of an open file; returns only the error.
///
/// # Safety
/// As [`exec`].
pub(crate) unsafe fn exec_fd(file: RawFd, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    // SAFETY: the caller's promise; the path is the static empty string.
    unsafe { libc::syscall(libc::SYS_execveat, file, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH) };
    Errno::last()
}

/// Ends the calling process without running anything of the parent's (no atexit, no flush).
pub(crate) fn exit(code: c_int) -> ! {
    loop {
        // SAFETY: integers only; does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

/// fork(2) by clone(2), for where a filter refuses clone3.
///
/// # Safety
/// As [`clone3`].
pub(crate) unsafe fn fork() -> Sys<i32> {
    // SAFETY: no stack, no pointers; the rest is the caller's promise.
    check(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }).map(|pid| pid as i32)
}

/// Makes the calling process the leader of a group of its own.
pub(crate) fn setpgid() -> Sys<()> {
    // SAFETY: integers only.
    done(unsafe { libc::syscall(libc::SYS_setpgid, 0, 0) })
}

/// Makes the calling process's group the foreground of the terminal on descriptor 0, if that is one.
pub(crate) fn take_foreground() -> Sys<()> {
    // SAFETY: no arguments.
    let group = check(unsafe { libc::syscall(libc::SYS_getpid) })? as c_int;
    // SAFETY: TIOCSPGRP reads one int.
    done(unsafe { libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSPGRP, &raw const group) })
}

/// Makes the calling process ignore a signal.
pub(crate) fn ignore_signal(signal: c_int) {
    let ignore = [libc::SIG_IGN as u64, 0, 0, 0];
    // SAFETY: the new action is live and as large as the kernel reads; no old one is asked for.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, ignore.as_ptr(), std::ptr::null_mut::<c_void>(), 8) };
}

/// Waits for one of the blocked signals.
pub(crate) fn wait_signal() -> Sys<c_int> {
    let all = u64::MAX;
    let none = std::ptr::null::<c_void>();
    // SAFETY: the mask is a live 64-bit integer, the kernel's sigset size; null pointers ask for no details and no time limit.
    check(unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const all, none, none, 8) })
        .map(|signal| signal as c_int)
}

/// Collects one child that has ended, if any: its number and status.
pub(crate) fn wait_any() -> Sys<Option<(i32, c_int)>> {
    let mut status: c_int = 0;
    // SAFETY: the status is a live int; no usage is asked for.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_wait4, -1, &raw mut status, libc::WNOHANG, std::ptr::null::<c_void>())
    })?;
    Ok(if pid == 0 { None } else { Some((pid as i32, status)) })
}

/// kill(2).
pub(crate) fn kill(pid: i32, signal: c_int) -> Sys<()> {
    // SAFETY: integers only.
    done(unsafe { libc::syscall(libc::SYS_kill, pid, signal) })
}
