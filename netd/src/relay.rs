//! The one relay in user space, for what the kernel cannot rewrite: `[::1]` (which it never routes off the loopback link),
//! and one family in front of a sandbox that has only the other. It serves on the very sockets that hold the ports.
//!
//! One thread for all ports, started with the first one. It loses the client's address; what the kernel does keeps it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::namespace::Namespace;
use crate::port::Held;

/// Connections relayed at once for one listener; further ones wait in its backlog. Each costs two descriptors.
const CONNECTIONS: usize = 512;
/// Clients of one UDP port that are remembered at once; datagrams of further ones are dropped.
const DATAGRAM_CLIENTS: usize = 512;
/// A UDP client that was silent this long is forgotten: the kernel's own time for a flow with answers (120 s) is twice it.
const DATAGRAM_IDLE: Duration = Duration::from_secs(60);
/// How long a connection to the sandbox may take. It is on this machine.
const CONNECT: Duration = Duration::from_secs(5);
/// After a failed accept (no descriptors left), so that it does not fail a million times a second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The longest wait for a listener to be closed; it takes microseconds unless the machine hangs.
const CLOSING: Duration = Duration::from_secs(2);

/// The relay of one host.
#[derive(Debug)]
pub(crate) struct Relay {
    host: Arc<Namespace>,
    runtime: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    handle: Handle,
    /// Dropping it ends the thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// A port being served. Dropped, it is closed when the drop returns.
#[derive(Debug)]
pub(crate) struct Served {
    task: AbortHandle,
    closed: mpsc::Receiver<()>,
}

impl Served {
    /// Begins to close; the drop waits for the end. For closing many at once.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
        // The sender goes away with the task, after its sockets.
        let _ = self.closed.recv_timeout(CLOSING);
    }
}

impl Relay {
    pub(crate) fn new(host: Arc<Namespace>) -> Relay {
        Relay { host, runtime: Mutex::new(None) }
    }

    /// Serves a held port: what arrives goes to `target`, an address of this host's networks.
    pub(crate) fn serve(&self, held: Held, target: SocketAddr) -> io::Result<Served> {
        let handle = self.handle()?;
        let _inside = handle.enter();
        let (alive, closed) = mpsc::channel();
        let task = match held {
            Held::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                handle.spawn(serve_stream(listener, target, alive)).abort_handle()
            }
            Held::Udp(socket) => {
                let socket = UdpSocket::from_std(socket)?;
                handle.spawn(serve_datagrams(socket, target, alive)).abort_handle()
            }
            Held::Led(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Served { task, closed })
    }

    fn handle(&self) -> io::Result<Handle> {
        let mut runtime = self.runtime.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(running) = &*runtime {
            return Ok(running.handle.clone());
        }
        let new = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = new.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let host = Arc::clone(&self.host);
        std::thread::Builder::new().name("netd-relay".into()).spawn(move || {
            // Its connections to sandboxes start here: they must leave from the host's namespace.
            if let Err(error) = host.enter() {
                tracing::error!(%error, "the relay cannot enter the host's network namespace");
                return;
            }
            let _ = new.block_on(stopped);
        })?;
        *runtime = Some(Running { handle: handle.clone(), _stop: stop });
        Ok(handle)
    }
}

/// Dropping `alive` says that the port is closed. It is declared before everything that holds a socket, so that it is
/// dropped after.
async fn serve_stream(listener: TcpListener, target: SocketAddr, alive: mpsc::Sender<()>) {
    let _alive = alive;
    let listener = listener;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // Ends its connections when the port is closed.
    let mut connections = JoinSet::new();
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, %target, "cannot accept a connection to relay");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let _permit = permit;
            relay_stream(client, target).await;
        });
    }
}

async fn relay_stream(mut client: TcpStream, target: SocketAddr) {
    let Ok(Ok(mut server)) = tokio::time::timeout(CONNECT, TcpStream::connect(target)).await else {
        // Closing with data unread, or this, makes the kernel say so to the client: a refused connection stays one.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

async fn serve_datagrams(socket: UdpSocket, target: SocketAddr, alive: mpsc::Sender<()>) {
    let _alive = alive;
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut datagram = vec![0; 64 << 10];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut datagram).await else { continue };
        while let Some(ended) = answers.try_join_next() {
            if let Ok(ended) = ended {
                clients.remove(&ended);
            }
        }
        if !clients.contains_key(&client) {
            if clients.len() >= DATAGRAM_CLIENTS {
                continue;
            }
            let Ok(server) = connect_datagrams(target).await else { continue };
            let server = Arc::new(server);
            clients.insert(client, Arc::clone(&server));
            answers.spawn(relay_answers(Arc::clone(&socket), server, client));
        }
        let _ = clients[&client].send(&datagram[..length]).await;
    }
}

async fn connect_datagrams(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let server = UdpSocket::bind(any).await?;
    server.connect(target).await?;
    Ok(server)
}

/// Hands answers back until there are none for a while; tells whose they were.
async fn relay_answers(socket: Arc<UdpSocket>, server: Arc<UdpSocket>, client: SocketAddr) -> SocketAddr {
    let mut datagram = vec![0; 64 << 10];
    while let Ok(Ok(length)) = tokio::time::timeout(DATAGRAM_IDLE, server.recv(&mut datagram)).await {
        if socket.send_to(&datagram[..length], client).await.is_err() {
            break;
        }
    }
    client
}
