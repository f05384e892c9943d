//! Raft's messages to other managers, each over two connections: what is large (parts of snapshots, long runs of entries) must not hold
//! up what is small and urgent (heartbeats, votes). The small ones are sent and received by a thread that is put before others
//! ([`urgency`](crate::urgency)): a leader must not lose its office because compilers have the processors.
//!
//! Nothing here waits: a queue that is full drops, and what waits for a connection that does not come about is dropped as well. Raft
//! repeats what matters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use orch_api::session::{self, RAFT};
use orch_api::tls::node_name;
use orch_spec::assignment::NodeId;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::{CallError, Lane, Peers};
use crate::control::Control;
use crate::transport::{LARGEST_MESSAGE, Transport};

/// Small messages to one manager that wait.
const SMALL_QUEUE: usize = 512;
/// Large ones: a few are 16 MiB.
const LARGE_QUEUE: usize = 16;
/// What is larger is large, bytes: it takes longer than a heartbeat may wait.
const LARGE: usize = 64 << 10;
/// Pause after a connection that did not come about.
const PAUSE: Duration = Duration::from_millis(100);
/// How long connecting may take.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// How long one message may take: then the connection is given up.
const SEND_TIME: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Lanes {
    small: mpsc::Sender<Bytes>,
    large: mpsc::Sender<Bytes>,
}

/// See the module.
#[derive(Debug)]
pub struct TlsTransport {
    peers: Peers,
    ordinary: Handle,
    urgent: Handle,
    /// Where managers are, once the control plane is up; before, only what the membership says.
    control: OnceLock<Control>,
    lanes: Mutex<HashMap<NodeId, Lanes>>,
}

impl TlsTransport {
    /// A transport that sends what is large by tasks of the one runtime, and what must not wait by those of the other.
    pub fn new(peers: Peers, ordinary: Handle, urgent: Handle) -> Arc<Self> {
        Arc::new(Self { peers, ordinary, urgent, control: OnceLock::new(), lanes: Mutex::default() })
    }

    /// Lets it look up addresses in the replicated state.
    pub fn attach(&self, control: Control) {
        // A second control plane in one process there is not.
        let _ = self.control.set(control);
    }
}

/// Where a manager listens, by the newest that is known.
fn address(peers: &Peers, control: Option<&Control>, node: &NodeId) -> Option<String> {
    // Where the state is being changed just now, what was remembered of it will do.
    let of_state = control.and_then(|control| {
        control.try_read(|state| {
            let member = state.members.managers.values().find(|member| member.node == *node);
            let member = member.map(|member| member.address.clone()).filter(|address| !address.is_empty());
            member.or_else(|| state.security.members.get(node).map(|member| member.address.clone()))
        })?
    });
    of_state.or_else(|| {
        let membership = peers.membership();
        let known = membership.borrow();
        let manager = known.as_ref()?.managers.iter().find(|manager| manager.node == *node)?;
        Some(manager.address.clone())
    })
}

impl Transport for TlsTransport {
    fn send(&self, to: &NodeId, message: Bytes) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = lanes.entry(to.clone()).or_insert_with(|| {
            let queue = |bound, lane| {
                let (sender, queue) = mpsc::channel(bound);
                let (peers, control, to) = (self.peers.clone(), self.control.get().cloned(), to.clone());
                let runtime = if lane == Lane::Urgent { &self.urgent } else { &self.ordinary };
                runtime.spawn(carry(peers, control, to, queue, lane));
                sender
            };
            Lanes { small: queue(SMALL_QUEUE, Lane::Urgent), large: queue(LARGE_QUEUE, Lane::Ordinary) }
        });
        let lane = if message.len() > LARGE { &lanes.large } else { &lanes.small };
        // Full: raft says it again.
        let _ = lane.try_send(message);
    }
}

async fn carry(peers: Peers, control: Option<Control>, to: NodeId, mut queue: mpsc::Receiver<Bytes>, lane: Lane) {
    let mut reachable = true;
    while let Some(first) = queue.recv().await {
        let Some(address) = address(&peers, control.as_ref(), &to) else {
            drain(&mut queue);
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let name = node_name(&to.0);
        let upgrading = peers.upgrade(lane, &address, &name, "/v1/peer/raft", RAFT);
        let connection = match tokio::time::timeout(CONNECT_TIME, upgrading).await {
            Ok(Ok(connection)) => connection,
            failed => {
                if matches!(&failed, Ok(Err(CallError::Refused(why))) if why.code == "forbidden") {
                    peers.doubt();
                }
                if std::mem::replace(&mut reachable, false) {
                    let error = match failed {
                        Ok(Err(error)) => orch_api::error::chain(&error),
                        _ => "it does not answer".to_owned(),
                    };
                    tracing::info!(manager = %to, address, error, "a manager cannot be reached");
                }
                // What has waited so long is no news any more.
                drain(&mut queue);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if !std::mem::replace(&mut reachable, true) {
            tracing::info!(manager = %to, address, "a manager can be reached again");
        }
        let mut next = Some(first);
        let mut connection = connection;
        while let Some(message) = next {
            let sending = session::write_bytes(&mut connection, &message);
            if !matches!(tokio::time::timeout(SEND_TIME, sending).await, Ok(Ok(()))) {
                break;
            }
            next = queue.recv().await;
        }
    }
}

fn drain(queue: &mut mpsc::Receiver<Bytes>) {
    while queue.try_recv().is_ok() {}
}

/// Takes in what another manager sends, until it goes away. `from` is what its certificate says.
pub async fn receive(peers: Peers, control: Control, from: NodeId, mut connection: super::Upgraded) {
    loop {
        match session::read_bytes(&mut connection, LARGEST_MESSAGE).await {
            Ok(Some(message)) => control.receive(&from, message),
            Ok(None) => break,
            Err(error) => {
                tracing::info!(manager = %from, %error, "a manager's messages ended");
                break;
            }
        }
    }
    // A connection may end for many reasons. Only a host that is there, and where nobody listens any more, is proof of a process that is gone.
    if control.leadership().borrow().leader.as_ref() == Some(&from)
        && let Some(address) = address(&peers, Some(&control), &from)
        && super::reach::refuses(&address).await
    {
        tracing::info!(manager = %from, "the process of the leader is gone: no need to wait for it");
        control.leader_is_gone(from);
    }
}
