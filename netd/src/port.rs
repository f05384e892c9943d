//! Ports of the host: held by sockets of our own while they are published, so that nobody else takes them meanwhile, and
//! the answer to "who has it?" when somebody did.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::{fs, io};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, getsockname, listen,
    setsockopt, socket, sockopt,
};

use crate::config::{PortRequest, Protocol, PublishedPort};

/// Attempts to find a number that is free on IPv4 and IPv6 alike. Each one fails only if somebody has the number on one
/// family alone.
const ANY_PORT_ATTEMPTS: usize = 16;

/// Who holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortOwner {
    /// A process of this host.
    Process {
        /// Its number.
        pid: u32,
        /// Its name (`/proc/PID/comm`).
        name: String,
    },
    /// A sandbox of this netd.
    Sandbox(String),
    /// The socket belongs to no process that we see (another pid namespace, or it is closing).
    Unknown,
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortOwner::Process { pid, name } => write!(f, "{name} (pid {pid})"),
            PortOwner::Sandbox(id) => write!(f, "sandbox {id}"),
            PortOwner::Unknown => f.write_str("a process that cannot be seen from here"),
        }
    }
}

/// Why a port cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody has it.
    #[error("port {port}/{protocol}{} is taken by {owner}", on(.address))]
    Taken {
        /// The port of the host.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The address asked for.
        address: Option<IpAddr>,
        /// Who has it.
        owner: PortOwner,
    },
    /// Somebody has each port of the range.
    #[error("no port of {first}-{last}/{protocol}{} is free; {first} is taken by {owner}", on(.address))]
    AllTaken {
        /// The first port of the range.
        first: u16,
        /// The last one.
        last: u16,
        /// Their protocol.
        protocol: Protocol,
        /// The address asked for.
        address: Option<IpAddr>,
        /// Who has the first one.
        owner: PortOwner,
    },
    /// The address is not this host's.
    #[error("cannot publish port {port}/{protocol} on {address}: no interface of this host has that address")]
    NoSuchAddress {
        /// The port of the host.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The address.
        address: IpAddr,
    },
    /// The kernel gave no socket.
    #[error("cannot hold port {port}/{protocol}: {source}")]
    Socket {
        /// The port of the host.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn on(address: &Option<IpAddr>) -> String {
    address.map(|a| format!(" on {a}")).unwrap_or_default()
}

/// A socket that holds a port.
#[derive(Debug)]
pub(crate) enum Held {
    /// Listens, for the relay to serve.
    Tcp(TcpListener),
    Udp(UdpSocket),
    /// Holds the number and does no more: the table leads away all that would reach it.
    Led(#[expect(dead_code, reason = "it is there to be there")] OwnedFd),
}

/// A port of the host that is ours.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) port: PublishedPort,
    pub(crate) held: Vec<Held>,
}

/// Takes a port of the host of the calling thread's namespace. `led4`: the table leads all that comes over IPv4, so that
/// nobody needs to serve on the socket for it.
pub(crate) fn reserve(request: &PortRequest, led4: bool) -> Result<Reservation, PortError> {
    let (first, last) = request.host_ports;
    if (first, last) == (0, 0) {
        return reserve_any(request, led4);
    }
    for port in first..=last.max(first) {
        match hold(request, port, led4) {
            Ok((port, held)) => return Ok(reservation(request, port, held)),
            Err(Errno::EADDRINUSE) if last > first => {}
            Err(errno) => return Err(explain(request, port, errno)),
        }
    }
    let owner = owner(request.host_ip, first, request.protocol);
    Err(PortError::AllTaken { first, last, protocol: request.protocol, address: request.host_ip, owner })
}

fn reserve_any(request: &PortRequest, led4: bool) -> Result<Reservation, PortError> {
    let mut outcome = Errno::EADDRINUSE;
    for _ in 0..ANY_PORT_ATTEMPTS {
        match hold(request, 0, led4) {
            Ok((port, held)) => return Ok(reservation(request, port, held)),
            Err(errno) => outcome = errno,
        }
    }
    Err(explain(request, 0, outcome))
}

fn reservation(request: &PortRequest, host_port: u16, held: Vec<Held>) -> Reservation {
    let PortRequest { host_ip, target, protocol, .. } = *request;
    Reservation { port: PublishedPort { host_ip, host_port, target, protocol }, held }
}

fn explain(request: &PortRequest, port: u16, errno: Errno) -> PortError {
    let protocol = request.protocol;
    match (errno, request.host_ip) {
        (Errno::EADDRINUSE, address) => {
            PortError::Taken { port, protocol, address, owner: owner(address, port, protocol) }
        }
        (Errno::EADDRNOTAVAIL, Some(address)) => PortError::NoSuchAddress { port, protocol, address },
        _ => PortError::Socket { port, protocol, source: errno.into() },
    }
}

/// Binds one port on all addresses that the request means; 0 lets the kernel choose.
fn hold(request: &PortRequest, mut port: u16, led4: bool) -> Result<(u16, Vec<Held>), Errno> {
    if request.protocol == Protocol::Sctp {
        // The kernel need not know SCTP to forward it, and then has no sockets for it.
        return if port == 0 { Err(Errno::EPROTONOSUPPORT) } else { Ok((port, Vec::new())) };
    }
    let addresses = match request.host_ip {
        Some(address) => vec![address],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    let mut held = Vec::with_capacity(addresses.len());
    for address in &addresses {
        match hold_one(*address, port, request.protocol, led4 && address.is_ipv4()) {
            Ok((socket, chosen)) => {
                port = chosen;
                held.push(socket);
            }
            // A host without IPv6.
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) if request.host_ip.is_none() && address.is_ipv6() => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok((port, held))
}

fn hold_one(address: IpAddr, port: u16, protocol: Protocol, led: bool) -> Result<(Held, u16), Errno> {
    if protocol == Protocol::Udp {
        let fd = bound(address, port, SockType::Datagram, false)?;
        let port = local_port(&fd)?;
        return Ok((if led { Held::Led(fd) } else { Held::Udp(UdpSocket::from(fd)) }, port));
    }
    // Connections of an earlier holder that linger in TIME_WAIT would refuse us the port without SO_REUSEADDR. With it, a
    // socket that is merely bound would let others bind too: so all of them listen. And people find it with `ss -l`.
    let fd = bound(address, port, SockType::Stream, true)?;
    listen(&fd, Backlog::MAXALLOWABLE)?;
    let port = local_port(&fd)?;
    Ok((if led { Held::Led(fd) } else { Held::Tcp(TcpListener::from(fd)) }, port))
}

/// A bound socket. SO_REUSEADDR is for TCP alone: over UDP others could share the port with it.
fn bound(address: IpAddr, port: u16, kind: SockType, reuse: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd: OwnedFd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if family == AddressFamily::Inet6 {
        // The IPv4 addresses have a socket of their own.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    if reuse {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    match SocketAddr::new(address, port) {
        SocketAddr::V4(v4) => bind(fd.as_raw_fd(), &SockaddrIn::from(v4))?,
        SocketAddr::V6(v6) => bind(fd.as_raw_fd(), &SockaddrIn6::from(v6))?,
    }
    Ok(fd)
}

fn local_port(fd: &OwnedFd) -> Result<u16, Errno> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let v4 = address.as_sockaddr_in().map(SockaddrIn::port);
    v4.or(address.as_sockaddr_in6().map(SockaddrIn6::port)).ok_or(Errno::EAFNOSUPPORT)
}

/// A socket of this host, as `/proc/net/tcp` and its kin list it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsedPort {
    /// Local address; unspecified = all.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

#[derive(Debug, PartialEq, Eq)]
struct ListedSocket {
    local: SocketAddr,
    /// 10 = listening; for UDP 7 = not connected.
    state: u8,
    inode: u64,
}

/// Ports on which something of the calling thread's namespace receives.
pub(crate) fn used() -> Vec<UsedPort> {
    let mut used = BTreeSet::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let receiving = if protocol == Protocol::Tcp { 10 } else { 7 };
        for socket in listed(protocol).into_iter().filter(|s| s.state == receiving) {
            used.insert(UsedPort { address: socket.local.ip(), port: socket.local.port(), protocol });
        }
    }
    used.into_iter().collect()
}

fn listed(protocol: Protocol) -> Vec<ListedSocket> {
    let mut sockets = Vec::new();
    for suffix in ["", "6"] {
        // `/proc/net` would be the namespace of the process's first thread.
        let file = format!("/proc/thread-self/net/{protocol}{suffix}");
        let text = fs::read_to_string(file).unwrap_or_default();
        sockets.extend(text.lines().skip(1).filter_map(listed_socket));
    }
    sockets
}

/// One line: `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`.
fn listed_socket(line: &str) -> Option<ListedSocket> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of four bytes, each printed as a number of this machine's byte order.
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        bytes.extend_from_slice(&u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let local = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(v4) => SocketAddrV4::new(v4.into(), port).into(),
        Err(_) => SocketAddrV6::new(<[u8; 16]>::try_from(&bytes[..]).ok()?.into(), port, 0, 0).into(),
    };
    Some(ListedSocket { local, state, inode })
}

/// The process that is in the way of binding this.
fn owner(address: Option<IpAddr>, port: u16, protocol: Protocol) -> PortOwner {
    let clashes = |socket: &ListedSocket| {
        socket.local.port() == port
            && address.is_none_or(|wanted| socket.local.ip().is_unspecified() || socket.local.ip() == wanted)
    };
    let mut sockets: Vec<ListedSocket> = listed(protocol).into_iter().filter(clashes).collect();
    // A listener is the likelier culprit than one of its connections.
    sockets.sort_by_key(|socket| socket.state != 10);
    sockets
        .iter()
        .filter(|socket| socket.inode != 0)
        .find_map(|socket| process_with(socket.inode))
        .unwrap_or(PortOwner::Unknown)
}

fn process_with(inode: u64) -> Option<PortOwner> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let has =
            descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == &*wanted));
        if has {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default().trim_end().to_owned();
            return Some(PortOwner::Process { pid, name });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_tcp_is_read_in_both_families() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100";
        let socket = listed_socket(line).unwrap();
        assert_eq!((socket.local.to_string(), socket.state, socket.inode), ("127.0.0.1:8080".into(), 10, 4242));
        let line = "   0: 00000000000000000000000001000000:0050 0:0 0A 0:0 00:0 0 0 0 7 1";
        assert_eq!(listed_socket(line).unwrap().local.to_string(), "[::1]:80");
        assert_eq!(listed_socket("garbage"), None);
    }

    #[test]
    fn a_held_port_is_refused_to_others_and_named_after_its_process() {
        let loopback = |host| PortRequest::tcp(host, 80).on(Ipv4Addr::LOCALHOST.into());
        for led4 in [false, true] {
            let held = reserve(&loopback(0), led4).unwrap();
            let again = loopback(held.port.host_port);
            for led4 in [false, true] {
                let error = reserve(&again, led4).unwrap_err();
                let PortError::Taken { owner: PortOwner::Process { pid, .. }, .. } = &error else { panic!("{error}") };
                assert_eq!(*pid, std::process::id());
            }
            // The standard library says SO_REUSEADDR.
            TcpListener::bind((Ipv4Addr::LOCALHOST, held.port.host_port)).unwrap_err();
            drop(held);
            reserve(&again, led4).unwrap();
        }
    }
}
