//! `orch agent`: control plane and node in one process, their API on one unix socket, and for other hosts on one port.
//!
//! Order: directories and the node's identity, then what [`composition`] makes of it (the control plane's log, the agent, which takes over
//! what runs), the socket, "ready". Ends on SIGTERM or SIGINT, or when idle long enough if it was started for that; what it ran goes on.

mod composition;
mod plane;
mod supervisor;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use orch_scheduler::peer::entry;
use orch_spec::assignment::NodeId;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tower::Service;

use crate::args;
use crate::connect::READY;
use crate::exit::Exit;
use composition::Composition;
use supervisor::Supervisor;

/// Connections at once. More wait in the socket's queue: descriptors are kept for containers.
const CONNECTIONS: usize = 1024;
/// Time for a client to send its header.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// Largest header.
const HEADER: usize = 32 * 1024;
/// How long the agent before us may take to die of the signal that has killed it.
const DYING: Duration = Duration::from_secs(5);
/// How long an answer may take to reach whoever has asked on this host, before the process starts again.
const ANSWERING: Duration = Duration::from_millis(100);
/// How long requests of this host that have no answer yet are waited for then: one of them may be what makes the process start again.
const ASKED: Duration = Duration::from_secs(3);
/// As many as there are threads that compute. Those that wait for the kernel need little and only for moments.
const ARENAS: u8 = 2;
/// How often to look whether the agent may go.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to go.
pub(crate) fn run(args: &args::Agent) -> Result<Exit> {
    orch_engine::memory::limit_arenas(ARENAS);
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("ORCH_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    // A command starts it by /proc/self/exe, and `ps`, `ss` and who looks for a port's owner would know it as "exe".
    let _ = nix::sys::prctl::set_name(c"orch");
    // A session of its own: no terminal's signals, and no terminal to lose. Fails for a process that leads one already, which is as good.
    let _ = nix::unistd::setsid();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Threads for what blocks: bounded well above the operations and streams at once, and they go when unused.
        .max_blocking_threads(512)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_stack_size(512 * 1024)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(args));
    runtime.shutdown_timeout(Duration::from_secs(2));
    match result? {
        End::Gone => Ok(Exit::Done),
        End::Again => Err(again()),
    }
}

/// Why the process has ended its work.
enum End {
    /// It goes.
    Gone,
    /// It starts again as something else: the node has joined or left a cluster, or has another role there.
    Again,
}

async fn serve(args: &args::Agent) -> Result<End> {
    for (dir, mode) in [(&args.data_dir, 0o700), (&args.run_dir, 0o755)] {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
            .with_context(|| format!("set the permissions of {}", dir.display()))?;
    }
    refuse_foreign(&args.data_dir)?;
    let lock = lock(&args.data_dir)?;
    if entry::has_left(&args.data_dir) {
        entry::finish_leaving(&args.data_dir).context("forget the cluster that was left")?;
    }
    let node = node_id(&args.data_dir)?;
    let composition = Composition::start(args, node).await?;
    let socket = args.run_dir.join("orch.sock");
    let listener = listen(&socket)?;
    tracing::info!(socket = %socket.display(), pid = std::process::id(), "ready");
    ready();
    let supervisor = Supervisor::from_environment();
    supervisor.ready();
    let activity = Arc::new(Activity::default());
    let end = tokio::select! {
        () = accept(listener, composition.router.clone(), activity.clone()) => End::Gone,
        never = supervisor.watch(&composition.router, &composition.agent) => match never {},
        reason = ending(args.idle_exit, &composition, &activity) => {
            tracing::info!(reason, "going");
            supervisor.stopping();
            End::Gone
        }
        () = composition.restart.notified() => {
            // The answer to whoever asked for it is on its way, or about to be.
            let _ = tokio::time::timeout(ASKED, activity.answered()).await;
            tokio::time::sleep(ANSWERING).await;
            End::Again
        }
    };
    // Refuse new clients first; what they asked for is in the log already.
    let _ = std::fs::remove_file(&socket);
    if entry::has_left(&args.data_dir) {
        composition.evict().await;
    }
    let releasing = composition.agent.clone();
    let _ = tokio::task::spawn_blocking(move || releasing.release()).await;
    if let Some(control) = &composition.control {
        control.shutdown().await;
    }
    drop(lock);
    Ok(end)
}

/// Starts this program again in this very process: whoever supervises it sees one that goes on.
fn again() -> anyhow::Error {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("orch").args(std::env::args_os().skip(1));
    // Whoever waited for the first start has heard of it.
    command.env_remove("ORCH_READY_STDOUT");
    anyhow::Error::new(command.exec()).context("start the agent again")
}

/// Refuses a directory that holds somebody else's things, before anything is made in it.
fn refuse_foreign(data_dir: &Path) -> Result<()> {
    if data_dir.join("node-id").exists() || entry::has_left(data_dir) {
        return Ok(());
    }
    let ours = ["agent.lock", "node-id.part", "left"];
    let foreign = std::fs::read_dir(data_dir)
        .with_context(|| format!("read {}", data_dir.display()))?
        .flatten()
        .find(|entry| !ours.iter().any(|name| entry.file_name() == *name));
    if let Some(entry) = foreign {
        anyhow::bail!(
            "{} is not a data directory of orch: it has {:?} and no node-id; name an empty one with ORCH_DATA_DIR",
            data_dir.display(),
            entry.file_name()
        );
    }
    Ok(())
}

/// The node's identity, made once.
fn node_id(data_dir: &Path) -> Result<NodeId> {
    let path = data_dir.join("node-id");
    if let Ok(text) = std::fs::read_to_string(&path)
        && !text.trim().is_empty()
    {
        return Ok(NodeId(text.trim().to_owned()));
    }
    let mut bytes = [0u8; 10];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    let id: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let part = data_dir.join("node-id.part");
    let mut file = std::fs::File::create(&part).with_context(|| format!("make {}", part.display()))?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&part, &path).with_context(|| format!("make {}", path.display()))?;
    Ok(NodeId(id))
}

/// One agent a data directory: the second one says who has it.
fn lock(data_dir: &Path) -> Result<nix::fcntl::Flock<std::fs::File>> {
    let path = data_dir.join("agent.lock");
    let file = std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + DYING;
    let mut file = file;
    loop {
        match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.write_all(std::process::id().to_string().as_bytes())?;
                return Ok(lock);
            }
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = std::fs::read_to_string(&path).unwrap_or_default();
                if lives(pid.trim()) || Instant::now() > deadline {
                    anyhow::bail!("another agent (pid {}) has the data directory {}", pid.trim(), data_dir.display());
                }
                file = back;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((_, e)) => return Err(anyhow::Error::new(e).context(format!("lock {}", path.display()))),
        }
    }
}

/// Whether a process is more than what the kernel has yet to clear away: one that was killed holds its locks until its last thread is gone.
fn lives(pid: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // proc(5): the state follows the name, which may hold anything but ends with the last parenthesis.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn listen(socket: &Path) -> Result<UnixListener> {
    // What an agent that was killed left; the lock says that nobody listens there.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))?;
    if let Some(group) = group_id("orch") {
        nix::unistd::chown(socket, None, Some(group))
            .with_context(|| format!("give {} to the group orch", socket.display()))?;
    }
    Ok(listener)
}

/// Number of a group of this host, from /etc/group: a static program must not load the C library's name services.
fn group_id(name: &str) -> Option<nix::unistd::Gid> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok().map(nix::unistd::Gid::from_raw)
}

/// Tells the command that started us that the socket answers.
fn ready() {
    if std::env::var_os("ORCH_READY_STDOUT").is_some() {
        let mut stdout = std::io::stdout();
        let _ = stdout.write_all(READY.as_bytes());
        let _ = stdout.flush();
        // The command waits for no more; a pipe without a reader must not be written to by anything.
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdout(null);
        }
    }
}

/// What clients are doing.
#[derive(Default)]
struct Activity {
    connections: AtomicUsize,
    /// Requests that have no answer yet. One whose answer goes on for as long as somebody listens has one.
    unanswered: watch::Sender<usize>,
}

impl Activity {
    /// Waits until every request has an answer.
    async fn answered(&self) {
        let _ = self.unanswered.subscribe().wait_for(|unanswered| *unanswered == 0).await;
    }
}

/// A request, until its answer begins or nobody waits for it any more.
struct Unanswered(Arc<Activity>);

impl Unanswered {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.unanswered.send_modify(|unanswered| *unanswered += 1);
        Self(activity.clone())
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.unanswered.send_modify(|unanswered| *unanswered -= 1);
    }
}

async fn accept(listener: UnixListener, router: Router, activity: Arc<Activity>) {
    let permits = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors: wait for some to come back instead of spinning.
                tracing::warn!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, activity) = (router.clone(), activity.clone());
        tokio::spawn(async move {
            activity.connections.fetch_add(1, Ordering::Relaxed);
            let requests = activity.clone();
            let service = hyper::service::service_fn(move |request| {
                let (unanswered, answer) = (Unanswered::begin(&requests), router.clone().call(request));
                async move {
                    let answer = answer.await;
                    drop(unanswered);
                    answer
                }
            });
            let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
            builder
                .http1()
                .max_buf_size(HEADER.max(64 * 1024))
                .header_read_timeout(HEADER_TIME)
                .timer(hyper_util::rt::TokioTimer::new());
            let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            if let Err(e) = served {
                tracing::debug!(error = %e, "a connection ended");
            }
            activity.connections.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
        });
    }
}

/// Waits for a reason to end.
async fn ending(idle_exit: u64, composition: &Composition, activity: &Activity) -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    let mut idle_since = Instant::now();
    let look = IDLE_LOOK.max(Duration::from_secs(idle_exit) / 20);
    loop {
        tokio::select! {
            _ = terminate.recv() => return "SIGTERM",
            _ = interrupt.recv() => return "SIGINT",
            () = tokio::time::sleep(look), if idle_exit > 0 => {
                // A member of a cluster is there for the others.
                let is_alone = composition.peers.membership().borrow().is_none();
                if !is_alone || !composition.agent.is_idle() || activity.connections.load(Ordering::Relaxed) > 0 {
                    idle_since = Instant::now();
                } else if idle_since.elapsed() >= Duration::from_secs(idle_exit) {
                    return "idle";
                }
            }
        }
    }
}
