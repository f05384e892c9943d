//! PID 1 for `init: true`: hands signals on to the program, collects every orphan, ends as the program ended.
//!
//! It is a fresh image of this very program, executed by the container's first process instead of the user's command: a fork that
//! stayed would keep the shim's memory (other containers' environments) inside a container. It runs before main, from
//! `.init_array`: every program that contains the engine can be its own reaper without knowing, none of Rust's runtime is set up, and
//! PID 1 stays as small as a fresh process can be. No allocation, raw calls only, as in [`super::child`], since its second half is a
//! child between clone and exec too.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::RawFd;

use nix::errno::Errno;

use super::child::{Failure, Record, STATUS, Step};
use super::raw;

/// What precedes the program's own arguments: the name that makes this executable a reaper, and the number of the status socket.
pub(crate) const ARGUMENTS: [&CStr; 2] = [c"orch-init", c"5"];

/// The status socket's number, as in [`ARGUMENTS`].
pub(super) const SOCKET: RawFd = 5;

/// glibc calls what this section points at before main, with main's arguments.
#[used]
// SAFETY: the section holds function pointers of exactly this type on glibc, also in static programs; the function does nothing unless
// the program was started under the reaper's name.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = before_main;

extern "C" fn before_main(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    if argc < 3 {
        return;
    }
    // SAFETY: argc ≥ 3, so argv[0] and argv[1] are strings of the kernel's making that live as long as the process.
    let (name, socket) = unsafe { (CStr::from_ptr(*argv), CStr::from_ptr(*argv.add(1))) };
    // Only as PID 1: nobody else means this by it.
    if name != ARGUMENTS[0] || socket != ARGUMENTS[1] || std::process::id() != 1 {
        return;
    }
    // SAFETY: two arguments precede the program's, and the array goes on to its null pointer.
    reap(unsafe { argv.add(2) }, envp)
}

/// Signals that are about PID 1 itself: it must not hold them.
const OWN: [c_int; 9] = [
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

fn reap(argv: *const *const c_char, envp: *const *const c_char) -> ! {
    let held = OWN.iter().fold(u64::MAX, |mask, signal| mask & !(1 << (signal - 1)));
    let Ok(before) = raw::set_signal_mask(held) else { raw::exit(125) };
    // A write to the terminal from the background must not stop PID 1.
    raw::ignore_signal(libc::SIGTTIN);
    raw::ignore_signal(libc::SIGTTOU);
    let args = raw::CloneArgs { exit_signal: libc::SIGCHLD as u64, ..raw::CloneArgs::default() };
    // SAFETY: no flags; the child goes straight into `execute`, which neither allocates nor returns.
    let cloned = unsafe { raw::clone3(&args) };
    // The default filter answers clone3 with "no such call", as it does to every container without CAP_SYS_ADMIN.
    // SAFETY: as above, by the older call.
    let cloned = if cloned == Err(Errno::ENOSYS) { unsafe { raw::fork() } } else { cloned };
    match cloned {
        Ok(0) => execute(argv, envp, before),
        Ok(child) => {
            raw::close(SOCKET);
            supervise(child)
        }
        Err(errno) => {
            let failure = Failure { step: Step::Exec, errno, argument: 0 };
            let _ = raw::send_with_fd(SOCKET, &Record::Failed(failure).encode(), None);
            raw::exit(125)
        }
    }
}

/// The program's own process: its own group, in the foreground if there is a terminal, then execvp(3).
fn execute(argv: *const *const c_char, envp: *const *const c_char, signals: u64) -> ! {
    // Neither can fail in a way that matters to the program.
    let _ = raw::setpgid();
    let _ = raw::take_foreground();
    raw::reset_signals();
    let _ = raw::set_signal_mask(signals);
    let _ = raw::dup3(SOCKET, STATUS, libc::O_CLOEXEC);
    raw::close(SOCKET);
    // SAFETY: argv is the rest of the kernel's array; its first string is the command, which `before_main` found present (argc ≥ 3).
    let command = unsafe { CStr::from_ptr(*argv) };
    let errno = execute_in_path(command, argv, envp);
    let failure = Failure { step: Step::Exec, errno, argument: 0 };
    let _ = raw::send_with_fd(STATUS, &Record::Failed(failure).encode(), None);
    raw::exit(127)
}

fn execute_in_path(command: &CStr, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    if command.to_bytes().contains(&b'/') {
        // SAFETY: both arrays are the kernel's, null-terminated.
        return unsafe { raw::exec(command, argv, envp) };
    }
    let mut refused = Errno::ENOENT;
    for directory in path(envp).split(|byte| *byte == b':').filter(|directory| directory.starts_with(b"/")) {
        let mut buffer = [0u8; libc::PATH_MAX as usize];
        let length = directory.len() + 1 + command.to_bytes().len();
        if length >= buffer.len() {
            continue;
        }
        buffer[..directory.len()].copy_from_slice(directory);
        buffer[directory.len()] = b'/';
        buffer[directory.len() + 1..length].copy_from_slice(command.to_bytes());
        let Ok(candidate) = CStr::from_bytes_until_nul(&buffer) else { continue };
        // SAFETY: both arrays are the kernel's, null-terminated.
        match unsafe { raw::exec(candidate, argv, envp) } {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => refused = Errno::EACCES,
            errno => return errno,
        }
    }
    refused
}

/// PATH's value; nothing without one, since the plan always sets it.
fn path<'a>(mut envp: *const *const c_char) -> &'a [u8] {
    // SAFETY: the kernel's array of strings, ended by a null pointer, alive as long as the process.
    unsafe {
        while !(*envp).is_null() {
            if let Some(value) = CStr::from_ptr(*envp).to_bytes().strip_prefix(b"PATH=") {
                return value;
            }
            envp = envp.add(1);
        }
    }
    b""
}

/// Waits for signals for ever: collects children on SIGCHLD, hands everything else on. Ends when the program has.
fn supervise(child: i32) -> ! {
    loop {
        match raw::wait_signal() {
            Ok(libc::SIGCHLD) => {
                while let Ok(Some((pid, status))) = raw::wait_any() {
                    if pid == child {
                        // The kernel kills what is left in this process namespace.
                        raw::exit(if libc::WIFSIGNALED(status) {
                            128 + libc::WTERMSIG(status)
                        } else {
                            libc::WEXITSTATUS(status)
                        });
                    }
                }
            }
            Ok(signal) => {
                // Gone already: its SIGCHLD is on the way.
                let _ = raw::kill(child, signal);
            }
            Err(_) => {}
        }
    }
}
