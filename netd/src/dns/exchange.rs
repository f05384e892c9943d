//! One question to the upstream servers: raced, repeated, validated, within five seconds.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::cache::Question;
use super::reply::{NoReply, UpstreamQuery, UpstreamReply};
use super::table::Server;
use crate::namespace::Namespace;

/// All attempts together. glibc gives up on a server after 5 s; an answer must be out before.
const TOTAL: Duration = Duration::from_millis(4500);
/// Head start of a server over the next one. Longer than most answers take, and short enough that nobody notices.
const HEAD_START: Duration = Duration::from_millis(300);
/// A datagram may be lost: after this long without an answer a server is asked once more.
const REPEAT: Duration = Duration::from_secs(1);
/// A server that let another one win is asked last for this long.
const SET_BACK: Duration = Duration::from_secs(10);
/// Servers remembered as slow. There are three on a host and few more in all stacks together.
const MOST_SLOW: usize = 256;
/// Datagrams on a socket that are not the answer. The socket is connected, so more means that somebody forges.
const MOST_FORGED: usize = 16;
/// Questions sent through one socket before it is replaced: its port is not to be learned and used.
const MOST_USES: u8 = 16;
/// Idle sockets kept for a server.
const MOST_IDLE: usize = 16;
/// Idle sockets are kept for this long.
const IDLE: Duration = Duration::from_secs(10);

/// What attempts have in common.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    idle: Mutex<HashMap<SocketAddr, Vec<Idle>>>,
    slow: Mutex<HashMap<SocketAddr, Instant>>,
}

#[derive(Debug)]
struct Idle {
    socket: UdpSocket,
    uses: u8,
    since: Instant,
}

/// How an attempt ended.
#[derive(Debug)]
enum Attempt {
    /// With records, or the word that there are none.
    Settled(Server, UpstreamReply),
    /// The server will not or cannot; asking it again is useless.
    Failed(Server, Option<UpstreamReply>),
}

/// One question on its way.
#[derive(Debug, Clone)]
struct Asked {
    name: Box<[u8]>,
    kind: u16,
    dnssec: bool,
    checking_disabled: bool,
}

impl Asked {
    fn query(&self, edns: bool) -> UpstreamQuery {
        UpstreamQuery::new(&self.name, self.kind, self.dnssec, self.checking_disabled, edns)
    }
}

impl Exchange {
    /// Asks the question's servers. `None` when no server answered in time or all refused without saying why.
    pub(crate) async fn ask(
        self: Arc<Self>,
        question: &Question,
        namespace: Option<Arc<Namespace>>,
    ) -> Option<UpstreamReply> {
        let asked = Arc::new(Asked {
            name: question.name.clone(),
            kind: question.kind,
            dnssec: question.dnssec,
            checking_disabled: question.checking_disabled,
        });
        let mut servers = question.upstreams.servers.clone();
        self.order(&mut servers);
        timeout(TOTAL, self.race(servers, asked, namespace)).await.ok().flatten()
    }

    /// Starts with the first server and adds one more each time the head start has passed; the first that settles it wins.
    async fn race(
        self: Arc<Self>,
        mut servers: Vec<Server>,
        asked: Arc<Asked>,
        namespace: Option<Arc<Namespace>>,
    ) -> Option<UpstreamReply> {
        let mut attempts = JoinSet::new();
        let mut started: Vec<(Server, Instant)> = Vec::new();
        let mut refusal = None;
        let mut next = 0;
        loop {
            // The first round goes through all servers; then those are asked again that have said nothing.
            let server = *servers.get(next % servers.len().max(1))?;
            let (exchange, asked, namespace) = (self.clone(), asked.clone(), namespace.clone());
            attempts.spawn(async move { exchange.attempt(server, &asked, namespace).await });
            started.push((server, Instant::now()));
            next += 1;
            let pause = if next < servers.len() { HEAD_START } else { REPEAT };
            let pause = sleep(pause);
            tokio::pin!(pause);
            loop {
                let ended = tokio::select! {
                    () = &mut pause => break,
                    Some(ended) = attempts.join_next() => ended,
                };
                match ended {
                    Ok(Attempt::Settled(winner, reply)) => {
                        self.set_back(winner, &started);
                        return Some(reply);
                    }
                    Ok(Attempt::Failed(server, reply)) => {
                        refusal = reply.or(refusal);
                        started.retain(|(other, _)| *other != server);
                        // Keep the place in the round: what comes after the removed server is next.
                        let before = servers.iter().position(|other| *other == server);
                        servers.retain(|other| *other != server);
                        if servers.is_empty() {
                            return refusal;
                        }
                        if before.is_some_and(|place| place < next) {
                            next -= 1;
                        }
                        if next < servers.len() {
                            break;
                        }
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// Servers that were slow lately come last.
    fn order(&self, servers: &mut [Server]) {
        let now = Instant::now();
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        slow.retain(|_, until| *until > now);
        servers.sort_by_key(|server| slow.contains_key(&server.address));
    }

    /// Remembers servers that had their head start over the winner and lost it.
    fn set_back(&self, winner: Server, started: &[(Server, Instant)]) {
        let now = Instant::now();
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        for (server, _) in started.iter().take_while(|(server, _)| *server != winner) {
            if slow.len() < MOST_SLOW {
                slow.insert(server.address, now + SET_BACK);
            }
        }
    }

    /// Asks one server once, over UDP and where needed over TCP.
    async fn attempt(&self, server: Server, asked: &Asked, namespace: Option<Arc<Namespace>>) -> Attempt {
        let namespace = namespace.filter(|_| server.inside);
        let mut reply = self.over_udp(server, asked, true, namespace.clone()).await;
        // FORMERR or NOTIMP: a server from before EDNS.
        if matches!(&reply, Ok(Some(reply)) if matches!(reply.code(), 1 | 4)) {
            reply = self.over_udp(server, asked, false, namespace.clone()).await;
        }
        let reply = match reply {
            Ok(Some(reply)) if !reply.truncated() => Some(reply),
            Ok(cut) => match over_tcp(server, &asked.query(true), namespace).await {
                Ok(whole) => Some(whole),
                // A cut answer is better than none: the client sees that it is cut. It is never kept.
                Err(error) => {
                    tracing::debug!(server = %server.address, %error, "no DNS answer over TCP");
                    cut
                }
            },
            Err(error) => {
                tracing::debug!(server = %server.address, %error, "no DNS answer over UDP");
                None
            }
        };
        match reply {
            Some(reply) if reply.is_final() => Attempt::Settled(server, reply),
            other => Attempt::Failed(server, other),
        }
    }

    /// One datagram out, and the answer to it. `None` when what came cannot be trusted or read, and TCP should decide.
    async fn over_udp(
        &self,
        server: Server,
        asked: &Asked,
        edns: bool,
        namespace: Option<Arc<Namespace>>,
    ) -> io::Result<Option<UpstreamReply>> {
        let query = asked.query(edns);
        let pooled = namespace.is_none();
        let idle = if pooled { self.take_idle(server.address) } else { None };
        let (socket, uses) = match idle {
            Some(idle) => (idle.socket, idle.uses),
            None => (udp_socket(server.address, namespace).await?, 0),
        };
        socket.send(&query.bytes).await?;
        let mut packet = vec![0; 4096];
        for _ in 0..MOST_FORGED {
            let length = socket.recv(&mut packet).await?;
            match UpstreamReply::read(&packet[..length], &query) {
                Ok(reply) => {
                    if pooled {
                        self.keep_idle(server.address, socket, uses + 1);
                    }
                    return Ok(Some(reply));
                }
                Err(NoReply::NotOurs) => {}
                Err(NoReply::OtherCase | NoReply::Malformed) => return Ok(None),
            }
        }
        tracing::warn!(server = %server.address, "many DNS answers to questions that were not asked; asking over TCP");
        Ok(None)
    }

    fn take_idle(&self, server: SocketAddr) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.get_mut(&server)?;
        idle.retain(|idle| idle.since.elapsed() < IDLE);
        idle.pop()
    }

    fn keep_idle(&self, server: SocketAddr, socket: UdpSocket, uses: u8) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Servers that nobody asks any more must not keep sockets.
        idle.retain(|_, sockets| {
            sockets.retain(|idle| idle.since.elapsed() < IDLE);
            !sockets.is_empty()
        });
        let sockets = idle.entry(server).or_default();
        if uses < MOST_USES && sockets.len() < MOST_IDLE {
            sockets.push(Idle { socket, uses, since: Instant::now() });
        }
    }
}

/// A socket of the server's family, made where the server is to be asked from.
async fn made(server: SocketAddr, kind: SockType, namespace: Option<Arc<Namespace>>) -> io::Result<OwnedFd> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let make =
        move || socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).map_err(io::Error::from);
    match namespace {
        None => make(),
        Some(namespace) => spawn_blocking(move || namespace.run(make)).await.map_err(io::Error::other)??,
    }
}

/// A socket that takes datagrams from the server only, on a port that the kernel chooses.
async fn udp_socket(server: SocketAddr, namespace: Option<Arc<Namespace>>) -> io::Result<UdpSocket> {
    let socket: StdUdpSocket = match namespace {
        None if server.is_ipv4() => StdUdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        None => StdUdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
        // Connecting binds it, to a port of the kernel's choice as well.
        Some(namespace) => made(server, SockType::Datagram, Some(namespace)).await?.into(),
    };
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    UdpSocket::from_std(socket)
}

/// One question over a connection of its own.
async fn over_tcp(
    server: Server,
    query: &UpstreamQuery,
    namespace: Option<Arc<Namespace>>,
) -> io::Result<UpstreamReply> {
    let stream: StdTcpStream = made(server.address, SockType::Stream, namespace).await?.into();
    let mut stream = TcpSocket::from_std_stream(stream).connect(server.address).await?;
    // A question has at most 300 bytes.
    let length = (query.bytes.len() as u16).to_be_bytes();
    stream.write_all(&[length.as_slice(), &query.bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    match UpstreamReply::read(&packet, query) {
        // Over a connection nobody forges; letter case proves nothing there.
        Err(NoReply::OtherCase) => UpstreamReply::read_any_case(&packet, query),
        other => other,
    }
    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("the answer is not usable: {error:?}")))
}
