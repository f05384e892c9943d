//! Whether the network under the tunnels carries them: a look at join time, before anybody wonders why pages half load.
//!
//! It needs nobody on the other side. A datagram to a port where nobody listens is answered by the kernel ("port
//! unreachable"), a connection with a reset, and both only when the checksum that arrived was right. Sent by a mark of the
//! mesh they go through the tunnel; the answers come back beside it, so each node judges its own direction.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, getsockopt, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::error::NetdError;
use crate::netd::{Shared, lock};
use crate::nft::ruleset::MARK_SHIFT;
use crate::overlay::overhead;

/// How long an answer may take: from the far side of the earth it takes 300 ms.
const ANSWER: Duration = Duration::from_millis(400);
/// The shortest wait once the way is known; a busy host answers late.
const LEAST_WAIT: Duration = Duration::from_millis(100);
/// How often to ask before silence counts. Packets are lost, and of the ports asked one may be in use.
const ATTEMPTS: u16 = 3;
/// The first of the ports asked, where hardly anybody listens (traceroute's).
const PORT: u16 = 33_434;
/// Bytes before a datagram's content: IP 20, UDP 8.
const HEADERS: u32 = 28;
/// The smallest packet that every link must carry (RFC 791).
const SMALL: u32 = 576;

/// What tunnels to a node can expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderlayVerdict {
    /// Packets of the wanted size arrive whole.
    Carries {
        /// MTU inside the tunnel, in bytes.
        mtu: u32,
    },
    /// Nothing arrives, in a tunnel or beside it.
    Unreachable,
    /// The node answers, but not what comes through the tunnel.
    Filtered {
        /// UDP port of the tunnels.
        port: u16,
    },
    /// Only small packets arrive.
    TooSmall {
        /// MTU inside the tunnel that the link here allows.
        mtu: u32,
        /// The largest that arrived.
        fits: u32,
        /// Bytes that the tunnel adds to either.
        overhead: u32,
    },
    /// Packets arrive, and their checksums are wrong: [`Underlay::own_checksums`](crate::cluster::Underlay) helps.
    Checksums,
}

impl fmt::Display for UnderlayVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnderlayVerdict::Carries { mtu } => write!(f, "tunnels carry packets of {mtu} bytes"),
            UnderlayVerdict::Unreachable => f.write_str("the node does not answer at all: is its address right, and is it up?"),
            UnderlayVerdict::Filtered { port } => write!(
                f,
                "the node answers, but not through a tunnel: let UDP port {port} pass between the nodes (firewall, security \
                 group), or choose another port for the cluster; or the node has no tunnel to us yet"
            ),
            UnderlayVerdict::TooSmall { mtu, fits, overhead } => write!(
                f,
                "packets of {fits} bytes pass through a tunnel and such of {mtu} do not: something between the nodes carries \
                 only {} of the {} bytes that the link here does; set the MTU of the link to that",
                fits + overhead,
                mtu + overhead
            ),
            UnderlayVerdict::Checksums => f.write_str(
                "packets arrive through a tunnel with wrong checksums: the network card or its driver miscalculates those of \
                 tunnelled packets",
            ),
        }
    }
}

impl UnderlayVerdict {
    /// Whether tunnels work as they should.
    pub fn is_good(&self) -> bool {
        matches!(self, UnderlayVerdict::Carries { .. })
    }
}

/// A way to a node.
#[derive(Debug, Clone, Copy)]
struct Way {
    from: Ipv4Addr,
    to: Ipv4Addr,
    /// By which the packets go through the tunnel; 0: beside it.
    mark: u32,
}

impl Shared {
    pub(crate) fn probe_underlay(&self, peer: IpAddr) -> Result<UnderlayVerdict, NetdError> {
        let what = format!("node {peer}");
        let (underlay, number) = {
            let cluster = lock(&self.cluster);
            let meshed = cluster.desired.mesh.as_ref().and(cluster.desired.underlay);
            (meshed, cluster.number(&peer))
        };
        let (Some(underlay), Some(number)) = (underlay, number) else {
            return Err(NetdError::invalid(what, "there is no tunnel to it: it is no peer, or the mesh is not up"));
        };
        let (IpAddr::V4(from), IpAddr::V4(to)) = (underlay.address, peer) else {
            return Err(NetdError::invalid(what, "only nodes with an IPv4 address can be probed"));
        };
        let mtu = self.overlay_mtu(underlay.address)?;
        let way = Way { from, to, mark: u32::from(number) << MARK_SHIFT };
        let judged = self.in_host(|| judge(way, mtu, underlay.port, overhead(underlay.address)))?;
        judged.map_err(NetdError::system(format!("probe the way to node {peer}")))
    }
}

fn judge(way: Way, mtu: u32, port: u16, overhead: u32) -> io::Result<UnderlayVerdict> {
    let start = Instant::now();
    if !datagram_arrives(way, SMALL)? {
        if echo_arrives(way, SMALL, ANSWER)? {
            return Ok(UnderlayVerdict::Checksums);
        }
        let beside = Way { mark: 0, ..way };
        let answers = datagram_arrives(beside, SMALL)? || echo_arrives(beside, SMALL, ANSWER)?;
        return Ok(if answers { UnderlayVerdict::Filtered { port } } else { UnderlayVerdict::Unreachable });
    }
    // A dozen times silence is waited for from here on: as long as the way takes, and some.
    let wait = (start.elapsed() * 8).clamp(LEAST_WAIT, ANSWER);
    if !datagram_arrives(way, mtu)? {
        if echo_arrives(way, mtu, ANSWER)? {
            return Ok(UnderlayVerdict::Checksums);
        }
        // By echoes: of other answers a host gives one a second.
        let (mut fits, mut too_large) = (SMALL, mtu);
        while too_large - fits > 1 {
            let middle = fits.midpoint(too_large);
            if echo_arrives(way, middle, wait)? {
                fits = middle;
            } else {
                too_large = middle;
            }
        }
        return Ok(UnderlayVerdict::TooSmall { mtu, fits, overhead });
    }
    if !connection_arrives(way)? {
        return Ok(UnderlayVerdict::Checksums);
    }
    Ok(UnderlayVerdict::Carries { mtu })
}

/// Whether a datagram that makes a packet of `size` bytes gets there whole.
fn datagram_arrives(way: Way, size: u32) -> io::Result<bool> {
    for attempt in 0..ATTEMPTS {
        let client = UdpSocket::bind((way.from, 0))?;
        setsockopt(&client, sockopt::Mark, &way.mark)?;
        client.set_read_timeout(Some(ANSWER))?;
        client.connect((way.to, PORT + attempt))?;
        // When an earlier one was refused for its size on the way, the kernel would cut this one in pieces that arrive.
        if getsockopt(&client, sockopt::IpMtu).is_ok_and(|known| u32::try_from(known).is_ok_and(|known| known < size)) {
            return Ok(false);
        }
        match client.send(&vec![0; (size - HEADERS) as usize]) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(false),
            // What an earlier attempt met, or no way at all.
            Err(_) => continue,
            Ok(_) => {}
        }
        match client.recv(&mut [0; 16]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(true),
            Ok(_) => return Ok(true),
            Err(_) => {}
        }
    }
    Ok(false)
}

/// Whether a TCP connection is answered, be it by a refusal.
fn connection_arrives(way: Way) -> io::Result<bool> {
    for attempt in 0..ATTEMPTS {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        setsockopt(&client, sockopt::Mark, &way.mark)?;
        bind(client.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(way.from, 0)))?;
        match connect(client.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(way.to, PORT + attempt))) {
            Ok(()) | Err(Errno::ECONNREFUSED) => return Ok(true),
            Err(Errno::EINPROGRESS) => {}
            Err(_) => continue,
        }
        let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(ANSWER).unwrap_or(PollTimeout::ZERO);
        if poll(&mut fds, timeout)? > 0 {
            let outcome = Errno::from_raw(getsockopt(&client, sockopt::SocketError)?);
            if matches!(outcome, Errno::UnknownErrno | Errno::ECONNREFUSED) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Whether an echo request of this size, whose checksum no card touches, is answered; each attempt waits this long.
fn echo_arrives(way: Way, size: u32, wait: Duration) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let client: OwnedFd = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
    setsockopt(&client, sockopt::Mark, &way.mark)?;
    setsockopt(&client, sockopt::ReceiveTimeout, &TimeVal::new(0, wait.as_micros() as i64))?;
    bind(client.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(way.from, 0)))?;
    let to = SockaddrIn::from(SocketAddrV4::new(way.to, 0));
    // Ours among all answers that this host gets: its identifier is that of the thread, more or less.
    let identifier = (std::process::id() as u16).to_be_bytes();
    for attempt in 0..ATTEMPTS {
        let sequence = attempt.to_be_bytes();
        let mut request = vec![8, 0, 0, 0, identifier[0], identifier[1], sequence[0], sequence[1]];
        let sum: u32 = request.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
        // Zeros change no checksum. The packet has 20 bytes before the request.
        request.resize(size as usize - 20, 0);
        if sendto(client.as_raw_fd(), &request, &to, MsgFlags::empty()).is_err() {
            continue;
        }
        let start = Instant::now();
        while start.elapsed() < wait {
            let mut packet = [0; 128];
            let Ok(length) = recv(client.as_raw_fd(), &mut packet, MsgFlags::empty()) else { break };
            let header = usize::from(packet[0] & 15) * 4;
            let from = <[u8; 4]>::try_from(&packet[12..16]).map(Ipv4Addr::from);
            let answer = packet.get(header..length).unwrap_or(&[]);
            if from.ok() == Some(way.to) && answer.first() == Some(&0) && answer.get(4..6) == Some(&identifier) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
