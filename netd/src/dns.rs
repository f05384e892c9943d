//! The embedded DNS: at 127.0.0.11 inside every sandbox, answering for the sandbox's networks and asking upstream for the rest.
//!
//! Entry type: [`Dns`]. It has a few threads for UDP (each with its own epoll set; see `datagram`) and one thread with a
//! single-threaded tokio runtime for TCP clients and for asking upstream servers (`stream`, `forwarder`, `exchange`). Names are
//! data: the whole [`DnsTable`] is swapped at once and no listener ever restarts. Who asks is known by the socket a query comes
//! in on, so that overlapping subnets and source addresses mean nothing here.
//!
//! What must outlive the agent lies in the kernel: the rules inside each namespace that lead port 53 to a fixed high port
//! (`nat`). After a restart [`Dns::attach`] finds them and listens again.
//!
//! What is absent on purpose: SOA records in our own negative answers (nobody below us should keep them), zones, recursion,
//! DNSSEC validation, serving of stale data.

mod answer;
mod cache;
mod datagram;
mod exchange;
mod forwarder;
mod host;
mod listener;
mod nat;
mod query;
mod random;
mod reply;
pub mod resolv_conf;
mod serve;
mod stream;
mod table;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

pub use listener::AttachError;
pub use nat::NatError;
pub use table::{Dial, DnsTable, Lookup, NameError, NameRecord, NetworkRecords, RecordKind, SandboxDns, Wanted};

use crate::config::{NetworkId, SandboxId};
use datagram::{Datagrams, Serving};
use host::HostServers;
use listener::Sockets;
use resolv_conf::ResolvConf;
use serve::{Counters, Shared};

/// How the DNS is run.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The host's `resolv.conf`, followed when it changes.
    pub resolv_conf: PathBuf,
    /// Threads for UDP. Two serve over 100 000 queries a second, far beyond what containers ask.
    pub threads: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig { resolv_conf: "/etc/resolv.conf".into(), threads: 2 }
    }
}

/// Why the DNS did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread, or what it waits on, could not be made.
    #[error("start the DNS threads")]
    Threads(#[source] io::Error),
}

/// What has happened since the start, and how much is held now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnsStats {
    /// Messages from clients.
    pub queries: u64,
    /// Of these, answered from what a server upstream had said before.
    pub cached: u64,
    /// Of these, given to the forwarder.
    pub forwarded: u64,
    /// Of these, refused because their sandbox had too many waiting.
    pub refused: u64,
    /// Of the forwarded, answered SERVFAIL because no server answered in time or at all.
    pub failed: u64,
    /// Upstream answers held.
    pub cache_entries: usize,
}

/// A sandbox that is served.
#[derive(Debug)]
struct Attached {
    asker: Arc<listener::Asker>,
    serving: Serving,
    tcp: AbortHandle,
    /// Disconnected when the task that holds the TCP listener is gone.
    tcp_gone: std_mpsc::Receiver<()>,
}

/// The embedded DNS of one agent. All methods block shortly at most and may be called from any thread. Dropping it closes all
/// sockets and leaves the rules.
#[derive(Debug)]
pub struct Dns {
    shared: Arc<Shared>,
    attached: Mutex<HashMap<SandboxId, Attached>>,
    /// `None` only while being dropped.
    datagrams: Option<Datagrams>,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Starts the threads, in the caller's network namespace: that is the "host" from which upstream servers are asked.
    ///
    /// # Errors
    /// When threads cannot be made.
    pub fn start(config: DnsConfig) -> Result<Dns, StartError> {
        let (sender, queries) = mpsc::channel(forwarder::QUEUE);
        let shared = Arc::new(Shared {
            table: ArcSwap::default(),
            cache: cache::Cache::default(),
            host: HostServers::new(config.resolv_conf),
            forwarder: sender,
            counters: Counters::default(),
        });
        let runtime = Builder::new_current_thread().enable_all().build().map_err(StartError::Threads)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let for_forwarder = shared.clone();
        let thread = thread::Builder::new().name("dns-forward".into());
        let thread = thread
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = forwarder::run(queries, for_forwarder) => {}
                        _ = stopped => {}
                    }
                });
                // Sockets that are being made in some namespace are not worth waiting for.
                runtime.shutdown_background();
            })
            .map_err(StartError::Threads)?;
        let datagrams = Datagrams::start(config.threads, &shared).map_err(StartError::Threads)?;
        Ok(Dns {
            shared,
            attached: Mutex::default(),
            datagrams: Some(datagrams),
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Changes the table. Queries see all of the change or nothing. Several changes in one call cost one swap.
    ///
    /// `change` may run more than once, when two threads change at the same time.
    pub fn update(&self, change: impl Fn(&mut DnsTable)) {
        self.shared.table.rcu(|table| {
            let mut table = DnsTable::clone(table);
            change(&mut table);
            table
        });
    }

    /// Adds a network, or replaces its records whole.
    pub fn set_network(&self, network: NetworkId, records: NetworkRecords) {
        let records = Arc::new(records);
        self.update(|table| {
            table.networks.insert(network.clone(), records.clone());
        });
    }

    /// Forgets a network.
    pub fn remove_network(&self, network: &NetworkId) {
        self.update(|table| table.remove_network(network));
    }

    /// Adds a sandbox, or replaces what it sees.
    pub fn set_sandbox(&self, sandbox: SandboxId, dns: SandboxDns) {
        self.update(|table| table.set_sandbox(sandbox.clone(), dns.clone()));
    }

    /// Forgets a sandbox. Its sockets stay until [`detach`](Self::detach) and answer SERVFAIL.
    pub fn remove_sandbox(&self, sandbox: &SandboxId) {
        self.update(|table| table.remove_sandbox(sandbox));
    }

    /// The table at this moment.
    pub fn table(&self) -> Arc<DnsTable> {
        self.shared.table.load_full()
    }

    /// The host's `resolv.conf`, read now: what [`resolv_conf::embedded`] and [`resolv_conf::host`] start from.
    pub fn host_resolv_conf(&self) -> ResolvConf {
        self.shared.host.read()
    }

    /// Serves a sandbox: makes sockets and rules inside the namespace that the file `namespace` stands for. May be repeated, by
    /// the same agent or by its successor: what is there is kept. Sandboxes may be attached at the same time, but each by one
    /// caller.
    ///
    /// # Errors
    /// When the namespace cannot be entered, its port is taken, or the kernel refuses the rules. Nothing is being served then.
    pub fn attach(&self, sandbox: SandboxId, namespace: &Path) -> Result<(), AttachError> {
        let open = |path| crate::namespace::Namespace::open(path);
        let replaced = {
            let mut attached = self.attached();
            match attached.get(&sandbox) {
                Some(present) if open(namespace).is_ok_and(|n| n.is(&present.asker.namespace)) => return Ok(()),
                Some(_) => attached.remove(&sandbox),
                None => None,
            }
        };
        if let Some(old) = replaced {
            self.release(old);
        }
        // Not under the lock: many sandboxes that start together do not wait for each other here.
        let Sockets { asker, udp, tcp } = listener::open(&sandbox, namespace)?;
        let serving = self
            .datagrams()
            .add(udp, asker.clone())
            .map_err(|source| AttachError::Serve { sandbox: sandbox.clone(), source })?;
        let (alive, tcp_gone) = std_mpsc::channel();
        let task = stream::serve(tcp, asker.clone(), self.shared.clone());
        let tcp = self.runtime.spawn(async move {
            let _alive = alive;
            task.await;
        });
        self.attached().insert(sandbox, Attached { asker, serving, tcp: tcp.abort_handle(), tcp_gone });
        Ok(())
    }

    /// Stops serving a sandbox and closes its sockets, so that its namespace can go. The rules go with the namespace.
    pub fn detach(&self, sandbox: &SandboxId) {
        let old = self.attached().remove(sandbox);
        if let Some(old) = old {
            self.release(old);
        }
    }

    /// The sandboxes being served.
    pub fn serving(&self) -> Vec<SandboxId> {
        self.attached().keys().cloned().collect()
    }

    fn attached(&self) -> MutexGuard<'_, HashMap<SandboxId, Attached>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Figures for people.
    pub fn stats(&self) -> DnsStats {
        let Counters { queries, cached, forwarded, refused, failed } = &self.shared.counters;
        DnsStats {
            queries: queries.load(Ordering::Relaxed),
            cached: cached.load(Ordering::Relaxed),
            forwarded: forwarded.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            cache_entries: self.shared.cache.len(),
        }
    }

    fn datagrams(&self) -> &Datagrams {
        self.datagrams.as_ref().expect("the threads run until drop, which has the only mutable access")
    }

    fn release(&self, old: Attached) {
        self.datagrams().remove(old.serving);
        old.tcp.abort();
        // The runtime drops the task at its next turn. The port must be free when we return, but a stuck runtime must not
        // hold up the caller.
        let _ = old.tcp_gone.recv_timeout(Duration::from_secs(1));
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.datagrams = None;
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
