//! Forgetting flows that the kernel would go on rewriting to a place that is gone.
//!
//! Rewriting is decided by a flow's first packet. UDP has no end: a client that keeps sending keeps its flow alive, and
//! with it the old decision. So flows are deleted when what they were decided by changes.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;

use crate::netd::lock;
use crate::netlink::{self, Batch, DUMP, NetlinkError, NetlinkSocket, attribute, nest};

/// `NFNL_SUBSYS_CTNETLINK << 8` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ZONE`, `CTA_FILTER`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Filter bits: source address; protocol number; destination port.
const BY_SOURCE: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_PORT: u32 = 1 << 5;
/// Up to this many conditions the kernel walks its table once for each; beyond, one walk hands over everything and we look.
const FILTERED_WALKS: usize = 4;
const UDP: u8 = 17;

/// One direction of a flow, as far as it matters here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Tuple {
    source: Option<IpAddr>,
    protocol: u8,
    port: u16,
}

/// What a deletion must repeat of a flow.
#[derive(Debug)]
struct Flow {
    family: u8,
    original: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// What shall be forgotten.
#[derive(Debug, Default)]
struct Pending {
    targets: BTreeSet<IpAddr>,
    udp_ports: BTreeSet<u16>,
    stop: bool,
}

/// The thread that forgets. Dropped, it finishes what it was asked for.
#[derive(Debug)]
pub(crate) struct Forgetting {
    pending: Arc<(Mutex<Pending>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Forgetting {
    /// Starts it, for the calling thread's namespace.
    pub(crate) fn start() -> io::Result<Forgetting> {
        let mut conntrack = Conntrack::open()?;
        let pending = Arc::new((Mutex::new(Pending::default()), Condvar::new()));
        let theirs = Arc::clone(&pending);
        let work = move || while forget_next(&mut conntrack, &theirs) {};
        let thread = std::thread::Builder::new().name("netd-forget".into()).spawn(work)?;
        Ok(Forgetting { pending, thread: Some(thread) })
    }

    /// Forgets all flows that were led to one of these addresses.
    pub(crate) fn targets(&self, targets: impl IntoIterator<Item = IpAddr>) {
        self.add(|pending| pending.targets.extend(targets));
    }

    /// Forgets UDP flows towards these ports of the host that were decided before the ports led anywhere.
    pub(crate) fn udp_ports(&self, ports: impl IntoIterator<Item = u16>) {
        self.add(|pending| pending.udp_ports.extend(ports));
    }

    fn add(&self, add: impl FnOnce(&mut Pending)) {
        let (pending, wake) = &*self.pending;
        add(&mut lock(pending));
        wake.notify_one();
    }
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        self.add(|pending| pending.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for something to forget and forgets it; false when there will be nothing more.
fn forget_next(conntrack: &mut Conntrack, (pending, wake): &(Mutex<Pending>, Condvar)) -> bool {
    let nothing = |pending: &mut Pending| pending.targets.is_empty() && pending.udp_ports.is_empty();
    let mut guard = wake
        .wait_while(lock(pending), |pending| nothing(pending) && !pending.stop)
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let (targets, ports) = (std::mem::take(&mut guard.targets), std::mem::take(&mut guard.udp_ports));
    let go_on = !guard.stop;
    drop(guard);
    let forgotten = conntrack.forget_targets(&targets).and_then(|n| Ok(n + conntrack.forget_udp_ports(&ports)?));
    match forgotten {
        Ok(0) => {}
        Ok(flows) => tracing::debug!(flows, "forgot flows that led to where nobody is"),
        Err(error) => tracing::warn!(%error, "cannot forget old flows: their clients must pause to be served again"),
    }
    go_on
}

/// The connection tracking table of the host.
#[derive(Debug)]
struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    /// Opens it in the calling thread's namespace.
    fn open() -> io::Result<Conntrack> {
        Ok(Conntrack { socket: NetlinkSocket::open(libc::NETLINK_NETFILTER)? })
    }

    /// Forgets all flows that were led to one of these addresses, and says how many.
    fn forget_targets(&mut self, targets: &BTreeSet<IpAddr>) -> Result<usize, NetlinkError> {
        let wanted = |_: &Tuple, reply: &Tuple| reply.source.is_some_and(|source| targets.contains(&source));
        let mut flows = Vec::new();
        if targets.len() <= FILTERED_WALKS {
            for target in targets {
                let (family, kind, bytes) = match target {
                    IpAddr::V4(v4) => (libc::AF_INET, 1, v4.octets().to_vec()),
                    IpAddr::V6(v6) => (libc::AF_INET6, 3, v6.octets().to_vec()),
                };
                let filter = |b: &mut Vec<u8>| {
                    nest(b, REPLY, |b| nest(b, 1, |b| attribute(b, kind, &bytes)));
                    filter(b, 0, BY_SOURCE);
                };
                flows.append(&mut self.find(family as u8, filter, wanted)?);
            }
        } else {
            flows = self.find(libc::AF_UNSPEC as u8, |_| {}, wanted)?;
        }
        self.delete(flows)
    }

    /// Forgets UDP flows towards these ports of the host that were decided before the ports led anywhere.
    fn forget_udp_ports(&mut self, ports: &BTreeSet<u16>) -> Result<usize, NetlinkError> {
        let wanted = |original: &Tuple, _: &Tuple| original.protocol == UDP && ports.contains(&original.port);
        let mut flows = Vec::new();
        if ports.len() <= FILTERED_WALKS {
            for port in ports {
                for family in [libc::AF_INET, libc::AF_INET6] {
                    let filter = |b: &mut Vec<u8>| {
                        nest(b, ORIGINAL, |b| {
                            nest(b, 2, |b| {
                                attribute(b, 1, &[UDP]);
                                attribute(b, 3, &port.to_be_bytes());
                            });
                        });
                        filter(b, BY_PROTOCOL | BY_PORT, 0);
                    };
                    flows.append(&mut self.find(family as u8, filter, wanted)?);
                }
            }
        } else {
            flows = self.find(libc::AF_UNSPEC as u8, |_| {}, wanted)?;
        }
        self.delete(flows)
    }

    fn find(
        &mut self,
        family: u8,
        body: impl Fn(&mut Vec<u8>),
        wanted: impl Fn(&Tuple, &Tuple) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        let mut request = Batch::new();
        request.push(GET, DUMP, |b| {
            b.extend_from_slice(&[family, 0, 0, 0]);
            body(b);
        });
        let mut flows = Vec::new();
        self.socket.dump(request, |_, message| {
            let (mut original, mut reply, mut bytes, mut zone) = (Tuple::default(), Tuple::default(), None, None);
            for (kind, value) in netlink::attributes(message.get(4..).unwrap_or(&[])) {
                match kind {
                    ORIGINAL => {
                        original = tuple(value);
                        bytes = Some(value.to_vec());
                    }
                    REPLY => reply = tuple(value),
                    ZONE => zone = Some(value.to_vec()),
                    _ => {}
                }
            }
            // The kernel's filter may be broader than asked for: an old one ignores what it does not know.
            if let Some(bytes) = bytes.filter(|_| wanted(&original, &reply)) {
                flows.push(Flow { family: message[0], original: bytes, zone });
            }
        })?;
        Ok(flows)
    }

    fn delete(&mut self, flows: Vec<Flow>) -> Result<usize, NetlinkError> {
        let mut batch = Batch::new();
        for flow in &flows {
            batch.push(DELETE, 0, |b| {
                b.extend_from_slice(&[flow.family, 0, 0, 0]);
                attribute(b, ORIGINAL | 0x8000, &flow.original);
                if let Some(zone) = &flow.zone {
                    attribute(b, ZONE, zone);
                }
            });
        }
        match self.socket.send(batch) {
            Ok(()) => Ok(flows.len()),
            Err(errors) => match errors.into_iter().find(|error| error.errno != Errno::ENOENT) {
                // A flow that ended by itself meanwhile.
                None => Ok(flows.len()),
                Some(error) => Err(error),
            },
        }
    }
}

fn filter(bytes: &mut Vec<u8>, original: u32, reply: u32) {
    nest(bytes, FILTER, |b| {
        attribute(b, 1, &original.to_ne_bytes());
        attribute(b, 2, &reply.to_ne_bytes());
    });
}

fn tuple(bytes: &[u8]) -> Tuple {
    let mut tuple = Tuple::default();
    for (kind, value) in netlink::attributes(bytes) {
        for (inner, value) in netlink::attributes(value) {
            match (kind, inner) {
                (1, 1) => tuple.source = <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
                (1, 3) => tuple.source = <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
                (2, 1) => tuple.protocol = value.first().copied().unwrap_or(0),
                (2, 3) => tuple.port = value.try_into().map_or(0, u16::from_be_bytes),
                _ => {}
            }
        }
    }
    tuple
}
