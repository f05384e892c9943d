//! The sockets of one sandbox, made inside its namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};

use super::nat::{self, NatError};
use crate::config::SandboxId;
use crate::namespace::Namespace;

/// Where clients inside a sandbox find the DNS (port 53). Docker's address, because configurations have it written in them.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Where netd listens. Always the same, so that the rules hold when another agent takes over.
pub(crate) const PORT: u16 = 35353;
/// Connections that wait to be accepted; DNS over TCP is rare.
const BACKLOG: i32 = 16;
/// Queries of one sandbox that wait for an upstream server. A resolver with a slow upstream gets by with tens; beyond this
/// somebody floods, and the others' queries come first.
const MOST_IN_FLIGHT: usize = 256;
/// TCP connections of one sandbox.
const MOST_CONNECTIONS: usize = 32;

/// Why a sandbox could not be given a DNS.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The namespace could not be opened or entered.
    #[error("enter the network namespace {path}")]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The listening sockets could not be made.
    #[error("listen on {ADDRESS}:{PORT} ({protocol}) inside sandbox {sandbox}")]
    Listen {
        /// Whose namespace.
        sandbox: SandboxId,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// The reason; `EADDRINUSE` when a process inside has taken the port.
        #[source]
        source: io::Error,
    },
    /// The rules could not be made.
    #[error("lead port 53 to the DNS inside sandbox {sandbox}")]
    Nat {
        /// Whose namespace.
        sandbox: SandboxId,
        /// The reason.
        #[source]
        source: NatError,
    },
    /// The sockets could not be served.
    #[error("serve the DNS sockets of sandbox {sandbox}")]
    Serve {
        /// Whose.
        sandbox: SandboxId,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Who asks on a socket, and how much of the service it uses at the moment.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) sandbox: SandboxId,
    pub(crate) namespace: Arc<Namespace>,
    in_flight: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

/// A use of something bounded, over when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(counter: &Arc<AtomicUsize>, most: usize) -> Option<Slot> {
        // The slot exists before the check, so that a refused one gives its count back by being dropped.
        let taken = counter.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(counter.clone());
        (taken < most).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Asker {
    /// Room for one more query upstream.
    pub(crate) fn forward(&self) -> Option<Slot> {
        Slot::take(&self.in_flight, MOST_IN_FLIGHT)
    }

    /// Room for one more connection.
    pub(crate) fn connect(&self) -> Option<Slot> {
        Slot::take(&self.connections, MOST_CONNECTIONS)
    }
}

/// A sandbox's sockets and who is behind them.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) asker: Arc<Asker>,
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

/// Makes the sockets and the rules inside the namespace.
pub(crate) fn open(sandbox: &SandboxId, path: &Path) -> Result<Sockets, AttachError> {
    let enter = |source| AttachError::Namespace { path: path.to_owned(), source };
    let namespace = Namespace::open(path).map_err(enter)?;
    let (udp, tcp) = namespace.run(|| open_here(sandbox)).map_err(enter)??;
    let asker = Asker {
        sandbox: sandbox.clone(),
        namespace: Arc::new(namespace),
        in_flight: Arc::default(),
        connections: Arc::default(),
    };
    Ok(Sockets { asker: Arc::new(asker), udp, tcp })
}

fn open_here(sandbox: &SandboxId) -> Result<(UdpSocket, TcpListener), AttachError> {
    reserve();
    let listening = |protocol| move |source| AttachError::Listen { sandbox: sandbox.clone(), protocol, source };
    let udp = bound(SockType::Datagram).map_err(listening("udp"))?;
    let tcp = bound(SockType::Stream).map_err(listening("tcp"))?;
    nat::install().map_err(|source| AttachError::Nat { sandbox: sandbox.clone(), source })?;
    Ok((udp.into(), tcp.into()))
}

fn bound(kind: SockType) -> io::Result<std::os::fd::OwnedFd> {
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // The loopback interface may still be down, and its addresses unknown: links and DNS are set up in any order.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    if kind == SockType::Stream {
        // Connections of a former agent may linger in TIME_WAIT. Not for UDP, where it would let a process inside steal the port.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::from(SocketAddrV4::new(ADDRESS, PORT)))?;
    if kind == SockType::Stream {
        listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    Ok(socket)
}

/// Keeps the kernel from giving our port, which lies in the ephemeral range, to an outgoing socket while no agent runs: the
/// next agent could not listen. Best effort; what the user has reserved stays.
fn reserve() {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let Ok(reserved) = std::fs::read_to_string(FILE) else { return };
    let reserved = reserved.trim();
    if reserved.split(',').any(|range| range == "35353") {
        return;
    }
    let wanted = if reserved.is_empty() { PORT.to_string() } else { format!("{reserved},{PORT}") };
    if let Err(error) = std::fs::write(FILE, wanted) {
        tracing::debug!(%error, "cannot reserve the DNS port");
    }
}
