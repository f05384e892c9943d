//! Finds the agent, or starts one.
//!
//! On a machine where no agent listens, the first command that needs one starts it in the background and waits until it is ready. Two
//! commands that do so at once start two agents; the data directory's lock lets one live, and both commands reach that one.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orch_api::client::Client;

use crate::exit::{Exit, Failure};
use crate::settings::Settings;

/// An agent that a command started goes away when nothing has run for so long: long enough that a person's next command finds it warm,
/// short enough that a machine is left as it was.
const IDLE_EXIT_SECONDS: u64 = 60;

/// How long to wait for the winner of a race of two starting agents.
const RACE: Duration = Duration::from_secs(10);

/// What an agent takes over of the environment of the command that starts it. The rest is that person's, and has secrets of stack files
/// in it: whoever may look at the agent's process would read them there as long as it lives.
const INHERITED: [&str; 7] = ["PATH", "LANG", "LC_ALL", "TZ", "RUST_BACKTRACE", "ORCH_LOG", "ORCH_CLOCK_OFFSET"];

/// The line by which an agent says that its socket answers.
pub(crate) const READY: &str = "ready\n";

/// A client of the agent, which is started when none listens.
///
/// # Errors
/// When none listens and none could be started.
pub(crate) fn connect(settings: &Settings) -> Result<Client> {
    if let Some(endpoint) = &settings.remote {
        return Ok(Client::new(endpoint.clone()));
    }
    let client = Client::unix(&settings.socket);
    match probe(&settings.socket) {
        Ok(()) => return Ok(client),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            let message = format!("no access to the agent's socket {}", settings.socket.display());
            let hint = "run the command as root, or join the group `orch` and log in again";
            return Err(Failure::new(Exit::Failed, message).hint(hint).into());
        }
        Err(_) if settings.start_agent => start(settings)?,
        Err(e) => {
            let message = format!("no agent answers at {}: {e}", settings.socket.display());
            return Err(Failure::new(Exit::Failed, message).hint("start one with `orch agent`").into());
        }
    }
    Ok(client)
}

/// A client of an agent that runs, or is started because there is something for it to look after; `None` when neither is so. For commands
/// that have nothing to show on a machine where orch never ran.
///
/// # Errors
/// When an agent is needed and cannot be reached or started.
pub(crate) fn connect_existing(settings: &Settings) -> Result<Option<Client>> {
    let never_ran =
        settings.start_agent && probe(&settings.socket).is_err() && !settings.data_dir.join("control").exists();
    if never_ran { Ok(None) } else { connect(settings).map(Some) }
}

/// A client of this machine's own agent while commands go to another host; `None` when there is none that holds anything, or it is not
/// this person's.
pub(crate) fn connect_local(settings: &Settings) -> Option<Client> {
    let holds_images = settings.data_dir.join("engine/images/refs.json").exists();
    let socket = settings.run_dir.join("orch.sock");
    let local = Settings { remote: None, socket, start_agent: holds_images, ..settings.clone() };
    match connect(&local) {
        Ok(client) => Some(client),
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "this machine's own images are not looked at");
            None
        }
    }
}

fn probe(socket: &Path) -> std::io::Result<()> {
    std::os::unix::net::UnixStream::connect(socket).map(drop)
}

fn start(settings: &Settings) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let message = "no agent runs, and only root can start one";
        return Err(Failure::new(Exit::Failed, message)
            .hint("run the command as root, or start `orch agent` as root")
            .into());
    }
    std::fs::create_dir_all(&settings.run_dir)
        .with_context(|| format!("make the run directory {}", settings.run_dir.display()))?;
    let log_path = settings.run_dir.join("agent.log");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("open the agent's log {}", log_path.display()))?;
    let log_start = log.metadata().map(|m| m.len()).unwrap_or(0);
    let mut child = Command::new("/proc/self/exe")
        .arg0("orch")
        .arg("agent")
        .args(["--idle-exit", &IDLE_EXIT_SECONDS.to_string()])
        .arg("--data-dir")
        .arg(&settings.data_dir)
        .arg("--run-dir")
        .arg(&settings.run_dir)
        .args(["--instance", &settings.instance])
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))))
        .env("ORCH_READY_STDOUT", "1")
        // A group of its own: Ctrl-C at the command must not reach the agent. It makes itself a session of its own, too.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start an agent")?;
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let mut bytes = [0u8; READY.len()];
        // The end of the stream without the line: it ended before it was ready.
        if stdout.read_exact(&mut bytes).is_ok() {
            said = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    if said == READY {
        return Ok(());
    }
    let _ = child.wait();
    let deadline = Instant::now() + RACE;
    while Instant::now() < deadline {
        if probe(&settings.socket).is_ok() {
            return Ok(());
        }
        if log_tail(&log_path, log_start).contains("another agent") {
            std::thread::sleep(Duration::from_millis(5));
        } else {
            break;
        }
    }
    let tail = log_tail(&log_path, log_start);
    let details = tail.lines().map(str::to_owned).collect();
    Err(Failure::new(Exit::Failed, "the agent could not be started")
        .details(details)
        .hint(format!("`orch system doctor` checks the machine; the log is {}", log_path.display()))
        .into())
}

/// What was logged since `from`, at most the last 4 KiB.
fn log_tail(path: &Path, from: u64) -> String {
    use std::io::{Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(4096))))?;
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
