//! Ends what leads to a container that is behind its service no more, in the sandboxes that connected to it.
//!
//! Which container a connection goes to is decided by its first packet. When that one is gone for good, a datagram that
//! follows shall go to another, and a connection shall break at once instead of waiting for who does not answer. So the flow
//! is forgotten, and the caller's socket is told (`ECONNABORTED`), where the kernel can do that.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use nix::errno::Errno;

use crate::conntrack::{Conntrack, Flow};
use crate::namespace::Namespace;
use crate::netd::lock;
use crate::netlink::{Batch, NetlinkError, NetlinkSocket};
use crate::service::{Services, Strays};
use crate::sysctl;

/// `SOCK_DESTROY`, on a socket of `NETLINK_SOCK_DIAG`.
const DESTROY: u16 = 21;
const TCP: u8 = 6;

/// What the thread is asked for.
enum Work {
    /// Forget, in the namespace that a file stands for, what leads to nobody of these services any more.
    Forget(PathBuf, Vec<Strays>),
    /// Close sockets, which may wait for the kernel.
    Close(Vec<NetlinkSocket>),
}

/// The thread. Dropped, it finishes what it was asked for.
#[derive(Debug)]
pub(crate) struct Straying {
    /// The services as they shall be now: what is asked for is done a little later, when there may be other backends again.
    latest: Arc<Mutex<Arc<Services>>>,
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Straying {
    pub(crate) fn start() -> io::Result<Straying> {
        let (sender, receiver) = mpsc::channel();
        let latest: Arc<Mutex<Arc<Services>>> = Arc::default();
        let known = Arc::clone(&latest);
        let run = move || {
            for work in receiver {
                match work {
                    Work::Close(sockets) => drop(sockets),
                    Work::Forget(namespace, strays) => match forget(&namespace, &strays, &known) {
                        Ok(0) => {}
                        Ok(flows) => {
                            tracing::debug!(flows, namespace = %namespace.display(), "ended what led to containers that are gone")
                        }
                        // With the sandbox its flows are gone; for a moment its file stands for nothing.
                        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                        }
                        Err(error) => {
                            tracing::warn!(%error, namespace = %namespace.display(), "cannot end what leads to containers that are gone: it will time out");
                        }
                    },
                }
            }
        };
        let thread = std::thread::Builder::new().name("netd-straying".into()).spawn(run)?;
        Ok(Straying { latest, work: Some(sender), thread: Some(thread) })
    }

    /// Takes in the services as they shall be, before anybody is led by them.
    pub(crate) fn learn(&self, services: &Arc<Services>) {
        *lock(&self.latest) = Arc::clone(services);
    }

    pub(crate) fn forget(&self, namespace: PathBuf, strays: Vec<Strays>) {
        if !strays.is_empty() {
            self.ask(Work::Forget(namespace, strays));
        }
    }

    pub(crate) fn close(&self, sockets: Vec<NetlinkSocket>) {
        if !sockets.is_empty() {
            self.ask(Work::Close(sockets));
        }
    }

    fn ask(&self, work: Work) {
        if let Some(sender) = &self.work {
            // The thread lives until the sender is dropped.
            let _ = sender.send(work);
        }
    }
}

impl Drop for Straying {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Forgets, and says how many flows there were.
fn forget(namespace: &Path, strays: &[Strays], latest: &Mutex<Arc<Services>>) -> io::Result<usize> {
    let namespace = Namespace::open(namespace)?;
    namespace.run(|| {
        // The count is the namespace's alone, unlike the table, which the kernel walks whole.
        if sysctl::read("net.netfilter.nf_conntrack_count").as_deref() == Some("0") {
            return Ok(0);
        }
        let mut conntrack = Conntrack::open()?;
        let failed = |error: NetlinkError| io::Error::from(error.errno);
        let strays: BTreeMap<IpAddr, bool> = strays.iter().map(|stray| (stray.vip, stray.is_known)).collect();
        let mut flows = conntrack.towards(&strays.keys().copied().collect()).map_err(failed)?;
        // Looked up after the flows: whoever was led by then is known here.
        let services = Arc::clone(&lock(latest));
        let is_behind = |vip: IpAddr, target: IpAddr| {
            let service = services.get(&vip).filter(|_| strays.get(&vip) == Some(&true));
            service.is_some_and(|service| service.backends.iter().any(|backend| backend.address == target))
        };
        flows.retain(|flow| {
            let led = flow.first_destination().zip(flow.leads());
            led.is_some_and(|(vip, target)| !is_behind(vip, target))
        });
        // While the kernel still knows where it leads, so that the other side may hear of it too.
        if let Err(error) = abort(&flows) {
            tracing::debug!(%error, "callers' sockets cannot be told");
        }
        conntrack.delete(flows).map_err(failed)
    })?
}

/// Breaks the TCP connections at their callers.
fn abort(flows: &[Flow]) -> io::Result<()> {
    let mut batch = Batch::new();
    for (from, to) in flows.iter().filter_map(|flow| flow.connection(TCP)) {
        batch.push(DESTROY, 0, |b| request(b, from, to));
    }
    if batch.is_empty() {
        return Ok(());
    }
    let mut socket = NetlinkSocket::open(libc::NETLINK_SOCK_DIAG)?;
    match socket.send(batch) {
        Ok(()) => Ok(()),
        Err(errors) => match errors.into_iter().find(|error| error.errno != Errno::ENOENT) {
            // Closed meanwhile, or a flow that no socket of this sandbox has any more.
            None => Ok(()),
            Some(error) => Err(error.errno.into()),
        },
    }
}

/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states; ports, addresses of 16 bytes, interface, cookie
/// (all ones: any).
fn request(bytes: &mut Vec<u8>, from: SocketAddr, to: SocketAddr) {
    let wide = |address: IpAddr| match address {
        IpAddr::V4(v4) => [&v4.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let family = if from.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    bytes.extend_from_slice(&[family as u8, TCP, 0, 0]);
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(&from.port().to_be_bytes());
    bytes.extend_from_slice(&to.port().to_be_bytes());
    bytes.extend_from_slice(&wide(from.ip()));
    bytes.extend_from_slice(&wide(to.ip()));
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&[0xff; 8]);
}
