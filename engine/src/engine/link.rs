//! The agent's end of a connection to a shim.
//!
//! One thread a shim reads what comes: replies go to the caller that waits for them, notices to the engine, the end of the stream means
//! that the shim is gone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::exec::ExecEnd;
use crate::engine::lock;
use crate::shim::frame::{FrameError, Outgoing, Reader};
use crate::shim::protocol::{Message, Notice, PLAN_FORMAT, Reply, Request, Running, VERSION};

/// A shim that has not answered for so long never will: a start waits at most 60 s for its child (runtime), and there may be a queue.
const PATIENCE: Duration = Duration::from_secs(120);
/// Stack of a reading thread: it decodes small structs and calls the engine's state changes.
const STACK: usize = 256 << 10;

/// A shim could not be reached or did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It could not be started.
    #[error("start the shim for {group:?}")]
    Spawn {
        /// Of which group.
        group: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is gone, or was never there.
    #[error("the shim of {group:?} is gone")]
    Gone {
        /// Of which group.
        group: String,
    },
    /// It is there and silent.
    #[error("the shim of {group:?} has not answered for {} s", PATIENCE.as_secs())]
    Silent {
        /// Of which group.
        group: String,
    },
    /// The connection failed.
    #[error("talk to the shim of {group:?}")]
    Frame {
        /// Of which group.
        group: String,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

type Waiting = BTreeMap<u64, SyncSender<(Reply, Vec<OwnedFd>)>>;

/// See the module.
pub(crate) struct ShimLink {
    pub(crate) group: String,
    socket: UnixStream,
    path: PathBuf,
    sending: Mutex<()>,
    /// `None` once the connection has ended.
    waiting: Mutex<Option<Waiting>>,
    next: AtomicU64,
    ended: AtomicBool,
    /// Ends of execs that are waited for.
    execs: Mutex<BTreeMap<u64, Arc<ExecEnd>>>,
    /// The connection has ended and the process, if it was ours, is reaped.
    reaped: AtomicBool,
    /// Set when this engine started it, so that it can be reaped.
    child: Mutex<Option<Child>>,
    /// Shared by those who start a container, so that the shim is not told to leave at that moment.
    pub(crate) starting: RwLock<()>,
}

impl std::fmt::Debug for ShimLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimLink").field("group", &self.group).field("path", &self.path).finish_non_exhaustive()
    }
}

/// The file name of a group's socket: short, unique, and readable where the name allows.
pub(crate) fn socket_name(group: &str) -> String {
    format!("{}@{VERSION}-{PLAN_FORMAT:08x}.sock", socket_group(group))
}

/// The part of the name that says the group; it has no `@`.
fn socket_group(group: &str) -> String {
    use sha2::Digest;
    let plain = group.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    // sockaddr_un holds 107 bytes; `/proc/self/fd/NNNNN/` takes 20 of them.
    if plain && !group.is_empty() && group.len() <= 60 {
        return group.to_owned();
    }
    let digest = sha2::Sha256::digest(group.as_bytes());
    let hex: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    format!("#{hex}")
}

/// An address below a directory that may be deeper than a socket's address can say. The descriptor must outlive its use.
fn short_path(directory: &impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()))
}

/// Connects to a shim that may be there. `None`: there is none (any more); what is left of its socket is removed.
pub(crate) fn connect(directory: &Path, name: &str) -> io::Result<Option<UnixStream>> {
    let opened = std::fs::File::open(directory)?;
    match UnixStream::connect(short_path(&opened, name)) {
        Ok(socket) => Ok(Some(socket)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            let _ = std::fs::remove_file(directory.join(name));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Starts a shim and connects to it. The socket is ours until it has been handed over, so nothing is waited for.
pub(crate) fn spawn(directory: &Path, group: &str, command: &[OsString]) -> Result<(UnixStream, Child), LinkError> {
    let fail = |source| LinkError::Spawn { group: group.to_owned(), source };
    let name = socket_name(group);
    let opened = std::fs::File::open(directory).map_err(fail)?;
    let listener = UnixListener::bind(short_path(&opened, &name)).map_err(fail)?;
    let path = directory.join(&name);
    let (program, arguments) = command.split_first().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    // Our own executable is started sealed, so that the shim need not start itself a second time. The descriptor leads to it until
    // the child has executed.
    let own = program == "/proc/self/exe";
    let sealed = if own { Some(crate::runtime::sealed_executable().map_err(fail)?) } else { None };
    let path_of_program =
        sealed.as_ref().map_or_else(|| program.clone(), |fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into());
    let child = Command::new(path_of_program)
        .arg0(if own { std::env::args_os().next().unwrap_or_default() } else { program.clone() })
        .args(arguments)
        .arg(&path)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = child.map_err(|source| {
        let _ = std::fs::remove_file(&path);
        fail(source)
    })?;
    let socket = UnixStream::connect(short_path(&opened, &name)).map_err(fail)?;
    Ok((socket, child))
}

impl ShimLink {
    /// Takes a connected socket, begins to read it, and subscribes. The engine is told of notices, and once of the end.
    pub(crate) fn open(
        group: &str,
        path: PathBuf,
        socket: UnixStream,
        child: Option<Child>,
        on_notice: impl Fn(&Arc<ShimLink>, Notice) + Send + 'static,
        on_end: impl FnOnce(&Arc<ShimLink>) + Send + 'static,
    ) -> Result<(Arc<Self>, Vec<Running>), LinkError> {
        let spawn_error = |source| LinkError::Spawn { group: group.to_owned(), source };
        let reading = socket.try_clone().map_err(spawn_error)?;
        let link = Arc::new(Self {
            group: group.to_owned(),
            socket,
            path,
            sending: Mutex::new(()),
            waiting: Mutex::new(Some(BTreeMap::new())),
            next: AtomicU64::new(1),
            ended: AtomicBool::new(false),
            execs: Mutex::default(),
            reaped: AtomicBool::new(false),
            child: Mutex::new(child),
            starting: RwLock::new(()),
        });
        let reader_link = Arc::clone(&link);
        // Notices that arrive before the reply to Subscribe has been dealt with wait in the socket: the thread starts after it.
        let mut reader = Reader::default();
        let running = link.subscribe(&reading, &mut reader)?;
        std::thread::Builder::new()
            .name("shim-link".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                reader_link.read(&reading, reader, &on_notice);
                reader_link.end();
                on_end(&reader_link);
            })
            .map_err(spawn_error)?;
        Ok((link, running))
    }

    fn subscribe(&self, socket: &UnixStream, reader: &mut Reader) -> Result<Vec<Running>, LinkError> {
        let fail = |source| LinkError::Frame { group: self.group.clone(), source };
        Outgoing::new(VERSION, &Message::Request(0, Request::Subscribe), Vec::new())
            .and_then(|mut frame| frame.send(socket.as_fd()))
            .map_err(fail)?;
        loop {
            match reader.next::<Message>(VERSION).map_err(fail)? {
                Some((Message::Reply(0, Reply::Containers(running)), _)) => return Ok(running),
                Some(_) => return Err(fail(FrameError::Malformed("the list of containers was expected".to_owned()))),
                None => {
                    reader.fill(socket).map_err(fail)?;
                }
            }
        }
    }

    fn read(self: &Arc<Self>, socket: &UnixStream, mut reader: Reader, on_notice: &impl Fn(&Arc<ShimLink>, Notice)) {
        loop {
            match reader.next::<Message>(VERSION) {
                Ok(Some((Message::Reply(number, reply), descriptors))) => {
                    if let Some(waiting) = lock(&self.waiting).as_mut().and_then(|w| w.remove(&number)) {
                        // Who asked may have given up.
                        let _ = waiting.try_send((reply, descriptors));
                    }
                }
                Ok(Some((Message::Notice(notice), _))) => on_notice(self, notice),
                Ok(Some((Message::Request(..), _))) | Err(_) => return,
                Ok(None) => {
                    if reader.fill(socket).is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        // Whoever waits is told by the dropped sender.
        *lock(&self.waiting) = None;
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if let Some(mut child) = lock(&self.child).take() {
            // It has closed its socket: it is dead, or about to be. A frame that could not be read leaves it alive, unheard; then it
            // is killed, for what it runs could be watched by nobody.
            let deadline = Instant::now() + Duration::from_secs(1);
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for end in std::mem::take(&mut *lock(&self.execs)).into_values() {
            // What the shim ran is killed: as by SIGKILL.
            end.tell(137);
        }
        self.reaped.store(true, Ordering::Release);
    }

    /// Is the connection over and the process, if it was ours, gone?
    pub(crate) fn is_reaped(&self) -> bool {
        self.reaped.load(Ordering::Acquire)
    }

    /// Makes the end of an exec known to `end`; before it is started, so that none is missed.
    pub(crate) fn expect_exec(&self, number: u64, end: Arc<ExecEnd>) {
        lock(&self.execs).insert(number, end);
        if self.is_ended() {
            self.exec_exited(number, 137);
        }
    }

    pub(crate) fn forget_exec(&self, number: u64) {
        lock(&self.execs).remove(&number);
    }

    pub(crate) fn exec_exited(&self, number: u64, code: i32) {
        if let Some(end) = lock(&self.execs).remove(&number) {
            end.tell(code);
        }
    }

    /// Is it a shim of this group, of whatever version?
    pub(crate) fn is_of(&self, group: &str) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.split_once('@').is_some_and(|(its, _)| its == socket_group(group))
    }

    /// Does it understand the plans that this program makes?
    pub(crate) fn reads_plans(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(&format!("@{VERSION}-{PLAN_FORMAT:08x}.sock"))
    }

    /// Has the connection ended?
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends the connection; the shim goes on.
    pub(crate) fn disconnect(&self) {
        // The child stays a child of this process until it ends, but nobody waits for it: it outlives us.
        drop(lock(&self.child).take());
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Asks and waits for the answer.
    pub(crate) fn call(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>), LinkError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = Outgoing::new(VERSION, &Message::Request(number, request), descriptors);
        let mut frame = frame.map_err(|source| LinkError::Frame { group: self.group.clone(), source })?;
        let (sender, receiver) = sync_channel(1);
        match lock(&self.waiting).as_mut() {
            Some(waiting) => waiting.insert(number, sender),
            None => return Err(self.gone()),
        };
        let sent = {
            let _one_at_a_time = lock(&self.sending);
            frame.send(self.socket.as_fd())
        };
        drop(frame);
        match sent {
            Ok(_) => {}
            Err(FrameError::Closed) => return Err(self.gone()),
            Err(source) => return Err(LinkError::Frame { group: self.group.clone(), source }),
        }
        match receiver.recv_timeout(PATIENCE) {
            Ok((Reply::Refused { message }, _)) => Err(LinkError::Refused(message)),
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
            Err(RecvTimeoutError::Timeout) => Err(LinkError::Silent { group: self.group.clone() }),
        }
    }

    fn gone(&self) -> LinkError {
        LinkError::Gone { group: self.group.clone() }
    }

    /// A number for an exec, unique on this connection.
    pub(crate) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A further connection to the same shim.
    pub(crate) fn connect_again(&self) -> Result<UnixStream, LinkError> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name().and_then(|n| n.to_str())) else {
            return Err(self.gone());
        };
        let opened = std::fs::File::open(directory).map_err(|_| self.gone())?;
        UnixStream::connect(short_path(&opened, name)).map_err(|_| self.gone())
    }
}
