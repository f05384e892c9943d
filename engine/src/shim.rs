//! `orch shim`: one small process for the containers of one stack on this host.
//!
//! It starts them, is their parent and subreaper, holds their pipes, terminals and pidfds, writes their logs and records their ends.
//! It outlives the agent: a new agent connects to its socket, is told what runs, and finds in the containers' directories what ended
//! meanwhile. It reads nothing that a stranger wrote except the bytes it copies to a log. It has no async runtime and one thread;
//! others exist only while ends are written to the disk and mounts are let go of (`syncs`).
//!
//! If a shim is killed its containers lose their output and their parent. The agent sees the connection close, kills what is left
//! through the cgroups and records those containers as ended; nothing is ever started twice. PR_SET_PDEATHSIG is not used for that:
//! the kernel sends it when the parent *thread* ends and forgets it across set-user-id execs, so it would be a second, weaker rule.
//!
//! Absent on purpose: restart policies, health checks, images, networks. A shim decides nothing.

mod client;
mod end;
pub mod frame;
mod launch;
mod process;
pub mod protocol;
mod record;
mod server;
mod start;
mod syncs;

pub use launch::ShimError;
pub(crate) use record::{EXIT_FILE, RUN_FILE, boot_id, read_json, write_exit};

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;

use crate::runtime::{self, Launcher};

/// The program of `orch shim`. The listening socket is descriptor 0: the agent binds it, so that it can connect at once and so that
/// two agents in a row can never have two shims behind one name. The only argument is the socket's path: shown in a process list, and
/// removed when the shim leaves.
pub fn main(arguments: &[OsString]) -> ExitCode {
    // Threads that come and go would leave one behind each.
    crate::sys_descriptor::limit_arenas(1);
    let result = seal().and_then(|launcher| server::Server::new(detach()?, launcher)).and_then(|mut server| {
        server.run()?;
        // Before the listener closes: who finds the name still can connect, who does not makes a new one.
        if let Some(path) = arguments.first() {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    });
    // Nobody reads our stderr: the agent sees the closed connection and says so.
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Makes sure that no container can write to this program's executable (CVE-2019-5736): where the agent has not started us from a
/// sealed one, we start ourselves again from one.
fn seal() -> Result<Launcher, ShimError> {
    use std::os::unix::process::CommandExt;
    let fail = |doing| move |source| ShimError { doing, source };
    if !runtime::is_sealed() {
        let sealed = runtime::sealed_executable().map_err(fail("seal the executable"))?;
        let mut command = std::process::Command::new(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
        let mut line = std::env::args_os();
        if let Some(name) = line.next() {
            command.arg0(name);
        }
        let e = command.args(line).exec();
        return Err(fail("execute the sealed executable")(e));
    }
    Launcher::new().map_err(|e| fail("prepare for launching")(std::io::Error::other(e)))
}

/// Makes this process a shim: own session, parent of orphans, last to be killed for memory; the socket out of the way of descriptor 0.
fn detach() -> Result<std::os::unix::net::UnixListener, ShimError> {
    use nix::sys::prctl;
    let fail = |doing| move |e: nix::errno::Errno| ShimError { doing, source: e.into() };
    let listener = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| ShimError { doing: "take the socket", source })?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|source| ShimError { doing: "open /dev/null", source })?;
    nix::unistd::dup2_stdin(&null).map_err(fail("replace stdin"))?;
    nix::unistd::dup2_stdout(&null).map_err(fail("replace stdout"))?;
    nix::unistd::dup2_stderr(&null).map_err(fail("replace stderr"))?;
    // EPERM: we lead a group already, when a shell started us; then the session is our own too.
    let _ = nix::unistd::setsid();
    let _ = nix::unistd::chdir("/");
    prctl::set_child_subreaper(true).map_err(fail("become a subreaper"))?;
    prctl::set_name(c"orch-shim").map_err(fail("set the name"))?;
    // Without CAP_SYS_RESOURCE it stays as it is, which only makes us less safe.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    // A container takes six descriptors. The runtime sets its own limit in each container.
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most);
    Ok(listener.into())
}
