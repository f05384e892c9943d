//! One query, from its bytes to an answer or to a request to the forwarder: what UDP and TCP have in common.

use std::net::{SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use tokio::sync::{mpsc, oneshot};

use super::answer::{self, Verdict};
use super::cache::{Cache, Question, Upstreams};
use super::host::HostServers;
use super::listener::{Asker, Slot};
use super::query::{ClientQuery, Reject, Transport, wire_name};
use super::random::Shuffle;
use super::table::DnsTable;
use crate::namespace::Namespace;

/// What the threads have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: ArcSwap<DnsTable>,
    pub(crate) cache: Cache,
    pub(crate) host: HostServers,
    pub(crate) forwarder: mpsc::Sender<Forward>,
    pub(crate) counters: Counters,
}

/// How often what happened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) queries: AtomicU64,
    pub(crate) cached: AtomicU64,
    pub(crate) forwarded: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A query for the forwarder.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) question: Question,
    pub(crate) query: ClientQuery,
    /// Where servers on the asker's own networks are asked from.
    pub(crate) namespace: Option<Arc<Namespace>>,
    /// Counts against the asker's bound for as long as the query waits.
    pub(crate) _slot: Slot,
    pub(crate) reply: ReplyTo,
}

/// Where an answer goes.
#[derive(Debug)]
pub(crate) enum ReplyTo {
    /// To this address through this socket, if the sandbox still has it.
    Udp(Weak<UdpSocket>, SocketAddrV4),
    /// To a connection's task.
    Tcp(oneshot::Sender<Vec<u8>>),
}

impl ReplyTo {
    pub(crate) fn send(self, answer: Vec<u8>) {
        match self {
            ReplyTo::Udp(socket, peer) => {
                if let Some(socket) = socket.upgrade() {
                    // A full socket buffer loses a datagram, as any network may; the client asks again.
                    let _ = socket.send_to(&answer, peer);
                }
            }
            ReplyTo::Tcp(waiting) => {
                let _ = waiting.send(answer);
            }
        }
    }
}

impl Shared {
    /// Handles one message. `None`: there is nothing to send now; the forwarder may answer later through what `reply` makes.
    pub(crate) fn handle(
        &self,
        asker: &Asker,
        packet: &[u8],
        transport: Transport,
        shuffle: &mut Shuffle,
        reply: impl FnOnce() -> ReplyTo,
    ) -> Option<Vec<u8>> {
        Counters::count(&self.counters.queries);
        let query = match ClientQuery::read(packet, transport) {
            Ok(query) => query,
            Err(Reject::Drop) => return None,
            Err(Reject::Answer(answer)) => return Some(answer),
        };
        let upstreams = {
            let table = self.table.load();
            // Without its record we do not know what the sandbox may see, nor whether it may ask outside.
            let Some(sandbox) = table.sandbox(&asker.sandbox) else {
                return Some(query.failure(ResponseCode::ServFail));
            };
            match answer::answer(&table, sandbox, &query, shuffle) {
                Verdict::Answer(answer) => return Some(answer),
                Verdict::Forward => match table.upstreams(sandbox) {
                    None => self.host.upstreams(),
                    Some(servers) => {
                        let inside = servers.iter().any(|server| server.inside);
                        Arc::new(Upstreams { servers, sandbox: inside.then(|| asker.sandbox.clone()) })
                    }
                },
            }
        };
        self.forward(asker, query, upstreams, reply)
    }

    fn forward(
        &self,
        asker: &Asker,
        query: ClientQuery,
        upstreams: Arc<Upstreams>,
        reply: impl FnOnce() -> ReplyTo,
    ) -> Option<Vec<u8>> {
        let question = Question {
            name: wire_name(&query.question.name).to_ascii_lowercase().into(),
            kind: query.question.query_type.into(),
            dnssec: query.dnssec,
            checking_disabled: query.metadata.checking_disabled,
            upstreams,
        };
        let now = Instant::now();
        if let Some(cached) = self.cache.get(&question, now) {
            Counters::count(&self.counters.cached);
            return Some(cached.render(&query, now));
        }
        let Some(slot) = asker.forward() else {
            Counters::count(&self.counters.refused);
            return Some(query.failure(ResponseCode::Refused));
        };
        let namespace = question.upstreams.sandbox.is_some().then(|| asker.namespace.clone());
        let forward = Forward { question, query, namespace, _slot: slot, reply: reply() };
        match self.forwarder.try_send(forward) {
            Ok(()) => Counters::count(&self.counters.forwarded),
            // Too much at once, or shutting down. Through `reply`, which UDP and TCP clients are both listening on.
            Err(mpsc::error::TrySendError::Full(forward) | mpsc::error::TrySendError::Closed(forward)) => {
                Counters::count(&self.counters.failed);
                let answer = forward.query.failure(ResponseCode::ServFail);
                forward.reply.send(answer);
            }
        }
        None
    }
}
