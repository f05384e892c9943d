//! Forgetting flows that the kernel would go on rewriting to a place that is gone.
//!
//! Rewriting is decided by a flow's first packet. UDP has no end: a client that keeps sending keeps its flow alive, and
//! with it the old decision. So flows are deleted when what they were decided by changes.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;

use crate::netd::lock;
use crate::netlink::{self, Batch, DUMP, NetlinkError, NetlinkSocket, attribute, nest};
use crate::nft::expression::STATUS_DNAT;
use crate::sysctl;

/// `NFNL_SUBSYS_CTNETLINK << 8` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_STATUS`, `CTA_ZONE`, `CTA_FILTER`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Filter bits: source address; destination address; protocol number; destination port.
const BY_SOURCE: u32 = 1;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_PORT: u32 = 1 << 5;
/// Up to this many conditions the kernel walks its table once for each; beyond, one walk hands over everything and we look.
const FILTERED_WALKS: usize = 4;
const UDP: u8 = 17;

/// One direction of a flow, as far as it matters here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    source_port: u16,
    port: u16,
}

/// A flow as listed.
#[derive(Debug)]
pub(crate) struct Flow {
    original: Tuple,
    reply: Tuple,
    /// Its destination was rewritten.
    is_led: bool,
    /// What a deletion must repeat of it: how its answers come, and not how it began, for who has begun anew from the same port since then
    /// may be led elsewhere, and shall not be forgotten. The kernel would drop the answer to its first packet for that.
    family: u8,
    identity: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Flow {
    /// Where its destination was rewritten to.
    pub(crate) fn leads(&self) -> Option<IpAddr> {
        self.reply.source.filter(|_| self.is_led)
    }

    /// What it was meant for before that.
    pub(crate) fn first_destination(&self) -> Option<IpAddr> {
        self.original.destination
    }

    /// Both ends as its caller sees them, when it is of this protocol.
    pub(crate) fn connection(&self, protocol: u8) -> Option<(SocketAddr, SocketAddr)> {
        let Tuple { source: Some(from), destination: Some(to), source_port, port, .. } = self.original else {
            return None;
        };
        let ends = (SocketAddr::new(from, source_port), SocketAddr::new(to, port));
        (self.original.protocol == protocol).then_some(ends)
    }
}

/// A port of the host that led to a port of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Led {
    /// Where to.
    pub(crate) target: IpAddr,
    /// Number of the protocol.
    pub(crate) protocol: u8,
    /// Port of the host.
    pub(crate) host_port: u16,
}

/// Which flows shall be forgotten.
#[derive(Debug, Default, Clone)]
struct Wanted {
    /// All that were led to these addresses, which nobody has any more.
    targets: BTreeSet<IpAddr>,
    /// Those that came by these ports.
    led: BTreeSet<Led>,
    /// UDP flows to these ports of the host that are led nowhere.
    udp_ports: BTreeSet<u16>,
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.led.is_empty() && self.udp_ports.is_empty()
    }

    /// Whether new flows by this way could be meant too.
    fn touches(&self, way: &Led) -> bool {
        self.targets.contains(&way.target) || self.led.contains(way)
    }

    fn has(&self, flow: &Flow) -> bool {
        if flow.is_led {
            let target = flow.reply.source;
            let led = |target| Led { target, protocol: flow.original.protocol, host_port: flow.original.port };
            target.is_some_and(|target| self.targets.contains(&target) || self.led.contains(&led(target)))
        } else {
            flow.original.protocol == UDP && self.udp_ports.contains(&flow.original.port)
        }
    }
}

/// What the thread has to do.
#[derive(Debug, Default)]
struct Work {
    /// Asked for, not begun.
    asked: Wanted,
    /// Being done.
    begun: Wanted,
    stop: bool,
}

/// The thread that forgets. Dropped, it finishes what it was asked for.
#[derive(Debug)]
pub(crate) struct Forgetting {
    work: Arc<(Mutex<Work>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Forgetting {
    /// Starts it, for the calling thread's namespace.
    pub(crate) fn start() -> io::Result<Forgetting> {
        let mut conntrack = Conntrack::open()?;
        let work = Arc::new((Mutex::new(Work::default()), Condvar::new()));
        let theirs = Arc::clone(&work);
        let run = move || while forget_next(&mut conntrack, &theirs) {};
        let thread = std::thread::Builder::new().name("netd-forget".into()).spawn(run)?;
        Ok(Forgetting { work, thread: Some(thread) })
    }

    /// Forgets all flows that were led to these addresses, which nobody has any more.
    pub(crate) fn targets(&self, targets: impl IntoIterator<Item = IpAddr>) {
        self.add(|work| work.asked.targets.extend(targets));
    }

    /// Forgets flows that came by these ports.
    pub(crate) fn led(&self, led: impl IntoIterator<Item = Led>) {
        self.add(|work| work.asked.led.extend(led));
    }

    /// Forgets UDP flows towards these ports of the host that were decided before the ports led anywhere.
    pub(crate) fn udp_ports(&self, ports: impl IntoIterator<Item = u16>) {
        self.add(|work| work.asked.udp_ports.extend(ports));
    }

    /// Waits until nothing that is asked for could be a new flow by one of these ways.
    pub(crate) fn wait_for(&self, ways: &[Led]) {
        let (work, wake) = &*self.work;
        let touched = |work: &mut Work| ways.iter().any(|way| work.asked.touches(way) || work.begun.touches(way));
        drop(wake.wait_while(lock(work), touched).unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    fn add(&self, add: impl FnOnce(&mut Work)) {
        let (work, wake) = &*self.work;
        let mut work = lock(work);
        add(&mut work);
        if work.stop || !work.asked.is_empty() {
            wake.notify_all();
        }
    }
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        self.add(|work| work.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for something to forget and forgets it; false when there will be nothing more.
fn forget_next(conntrack: &mut Conntrack, (work, wake): &(Mutex<Work>, Condvar)) -> bool {
    let mut guard = wake
        .wait_while(lock(work), |work| work.asked.is_empty() && !work.stop)
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let wanted = std::mem::take(&mut guard.asked);
    guard.begun = wanted.clone();
    let go_on = !guard.stop;
    drop(guard);
    // The count is the namespace's alone, unlike the table.
    if !wanted.is_empty() && sysctl::read("net.netfilter.nf_conntrack_count").as_deref() != Some("0") {
        match conntrack.forget(&wanted) {
            Ok(0) => {}
            Ok(flows) => tracing::debug!(flows, "forgot flows that led to where nobody is"),
            Err(error) => {
                tracing::warn!(%error, "cannot forget old flows: their clients must pause to be served again")
            }
        }
    }
    lock(work).begun = Wanted::default();
    wake.notify_all();
    go_on
}

/// The connection tracking table of a namespace.
#[derive(Debug)]
pub(crate) struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    /// Opens it in the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Conntrack> {
        Ok(Conntrack { socket: NetlinkSocket::open(libc::NETLINK_NETFILTER)? })
    }

    /// Forgets what is wanted, and says how many flows there were.
    fn forget(&mut self, wanted: &Wanted) -> Result<usize, NetlinkError> {
        let targets: BTreeSet<IpAddr> =
            wanted.targets.iter().copied().chain(wanted.led.iter().map(|led| led.target)).collect();
        let mut flows = Vec::new();
        if targets.len() + 2 * wanted.udp_ports.len() > FILTERED_WALKS {
            flows = self.find(libc::AF_UNSPEC, |_| {}, wanted)?;
            return self.delete(flows);
        }
        for target in &targets {
            let IpAddr::V4(v4) = target else {
                // The kernel's filter for IPv6 addresses leaves out the very flows that match (seen on 6.18).
                flows.append(&mut self.find(libc::AF_INET6, |_| {}, wanted)?);
                continue;
            };
            let by_target = |b: &mut Vec<u8>| {
                nest(b, REPLY, |b| nest(b, 1, |b| attribute(b, 1, &v4.octets())));
                filter(b, 0, BY_SOURCE);
            };
            flows.append(&mut self.find(libc::AF_INET, by_target, wanted)?);
        }
        for (port, family) in wanted.udp_ports.iter().flat_map(|port| [(port, libc::AF_INET), (port, libc::AF_INET6)]) {
            let by_port = |b: &mut Vec<u8>| {
                nest(b, ORIGINAL, |b| {
                    nest(b, 2, |b| {
                        attribute(b, 1, &[UDP]);
                        attribute(b, 3, &port.to_be_bytes());
                    });
                });
                filter(b, BY_PROTOCOL | BY_PORT, 0);
            };
            flows.append(&mut self.find(family, by_port, wanted)?);
        }
        self.delete(flows)
    }

    /// Flows that were first meant for one of these addresses.
    pub(crate) fn towards(&mut self, destinations: &BTreeSet<IpAddr>) -> Result<Vec<Flow>, NetlinkError> {
        let wanted = |flow: &Flow| flow.first_destination().is_some_and(|first| destinations.contains(&first));
        if destinations.len() > FILTERED_WALKS {
            return self.list(libc::AF_UNSPEC, |_| {}, wanted);
        }
        let mut flows = Vec::new();
        for destination in destinations {
            let wanted = |flow: &Flow| flow.first_destination() == Some(*destination);
            let IpAddr::V4(v4) = destination else {
                flows.append(&mut self.list(libc::AF_INET6, |_| {}, wanted)?);
                continue;
            };
            let by_destination = |b: &mut Vec<u8>| {
                nest(b, ORIGINAL, |b| nest(b, 1, |b| attribute(b, 2, &v4.octets())));
                filter(b, BY_DESTINATION, 0);
            };
            flows.append(&mut self.list(libc::AF_INET, by_destination, wanted)?);
        }
        Ok(flows)
    }

    fn find(&mut self, family: i32, body: impl Fn(&mut Vec<u8>), wanted: &Wanted) -> Result<Vec<Flow>, NetlinkError> {
        self.list(family, body, |flow| wanted.has(flow))
    }

    fn list(
        &mut self,
        family: i32,
        body: impl Fn(&mut Vec<u8>),
        wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        let mut request = Batch::new();
        request.push(GET, DUMP, |b| {
            b.extend_from_slice(&[family as u8, 0, 0, 0]);
            body(b);
        });
        let mut flows = Vec::new();
        // The kernel's filter may be broader than asked for: an old one ignores what it does not know.
        self.socket.dump(request, |_, message| flows.extend(listed(message).filter(&wanted)))?;
        Ok(flows)
    }

    pub(crate) fn delete(&mut self, flows: Vec<Flow>) -> Result<usize, NetlinkError> {
        let mut batch = Batch::new();
        for flow in &flows {
            batch.push(DELETE, 0, |b| {
                b.extend_from_slice(&[flow.family, 0, 0, 0]);
                attribute(b, REPLY | 0x8000, &flow.identity);
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

fn listed(message: &[u8]) -> Option<Flow> {
    let mut flow = Flow {
        original: Tuple::default(),
        reply: Tuple::default(),
        is_led: false,
        family: *message.first()?,
        identity: Vec::new(),
        zone: None,
    };
    for (kind, value) in netlink::attributes(message.get(4..)?) {
        match kind {
            ORIGINAL => flow.original = tuple(value),
            REPLY => {
                flow.reply = tuple(value);
                flow.identity = value.to_vec();
            }
            STATUS => flow.is_led = u32::from_be_bytes(value.try_into().ok()?) & STATUS_DNAT != 0,
            ZONE => flow.zone = Some(value.to_vec()),
            _ => {}
        }
    }
    Some(flow)
}

fn tuple(bytes: &[u8]) -> Tuple {
    let mut tuple = Tuple::default();
    for (kind, value) in netlink::attributes(bytes) {
        for (inner, value) in netlink::attributes(value) {
            match (kind, inner) {
                (1, 1) => tuple.source = <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
                (1, 2) => tuple.destination = <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
                (1, 3) => tuple.source = <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
                (1, 4) => tuple.destination = <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
                (2, 1) => tuple.protocol = value.first().copied().unwrap_or(0),
                (2, 2) => tuple.source_port = value.try_into().map_or(0, u16::from_be_bytes),
                (2, 3) => tuple.port = value.try_into().map_or(0, u16::from_be_bytes),
                _ => {}
            }
        }
    }
    tuple
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn run(program: &str, arguments: &str) {
        let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Has 127.0.0.9 lead elsewhere, and sends a datagram there from one port.
    fn lead(socket: &UdpSocket, target: &str) {
        run("nft", "flush chain ip t out");
        run("nft", &format!("add rule ip t out ip daddr 127.0.0.9 dnat to {target}"));
        socket.send_to(b"x", ("127.0.0.9", 9)).unwrap();
    }

    #[test]
    fn a_flow_that_began_anew_from_the_same_port_and_is_led_elsewhere_is_not_forgotten() {
        if !nix::unistd::geteuid().is_root() {
            return println!("skipped: needs root");
        }
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", "link set lo up");
            run("nft", "add table ip t");
            run("nft", "add chain ip t out { type nat hook output priority -100; }");
            let socket = UdpSocket::bind("127.0.0.1:4000").unwrap();
            let mut conntrack = Conntrack::open().unwrap();
            let vip: BTreeSet<IpAddr> = ["127.0.0.9".parse().unwrap()].into();
            let leads = |conntrack: &mut Conntrack| -> Vec<String> {
                let flows = conntrack.towards(&vip).unwrap();
                flows.iter().filter_map(Flow::leads).map(|target| target.to_string()).collect()
            };
            lead(&socket, "127.0.0.2");
            let (first, again) = (conntrack.towards(&vip).unwrap(), conntrack.towards(&vip).unwrap());
            assert_eq!(leads(&mut conntrack), ["127.0.0.2"]);
            // Beyond a few addresses all flows are looked through at once, and those to others are left out.
            let others: BTreeSet<IpAddr> = (20..28).map(|last| IpAddr::from([127, 0, 0, last])).collect();
            assert_eq!(conntrack.towards(&others).unwrap().len(), 0);
            assert_eq!(conntrack.towards(&others.union(&vip).copied().collect()).unwrap().len(), 1);
            assert_eq!(conntrack.delete(first).unwrap(), 1);
            assert_eq!(leads(&mut conntrack), [""; 0]);
            lead(&socket, "127.0.0.3");
            // What was listed before is deleted now.
            conntrack.delete(again).unwrap();
            assert_eq!(leads(&mut conntrack), ["127.0.0.3"]);
        };
        std::thread::spawn(inside).join().unwrap();
    }
}
