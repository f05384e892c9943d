//! What the process is made of: on a host that is alone and on a manager, control plane and node; on a worker, a node alone.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use orch_agent::{Agent, AgentConfig};
use orch_api::control::NodeLink;
use orch_api::plane::ControlPlane;
use orch_scheduler::identity::{Identity, Membership};
use orch_scheduler::peer::entry::{self, Host};
use orch_scheduler::peer::forward::{Leader, to_leader};
use orch_scheduler::peer::guard::{Admission, ManagersOnly, Members, guarded};
use orch_scheduler::peer::heartbeat::{self, Pulse};
use orch_scheduler::peer::link::{self, Knowledge};
use orch_scheduler::peer::listener::{self, Ways};
use orch_scheduler::peer::relay::to_node;
use orch_scheduler::peer::transport::TlsTransport;
use orch_scheduler::peer::{Peers, images, renewal, steward, whereabouts};
use orch_scheduler::server::cluster::{Manager, Worker, leader_routes, own_routes, urgent_routes, worker_routes};
use orch_scheduler::{Bootstrap, Control, ControlConfig, urgency};
use orch_spec::assignment::{Assignment, NodeId};
use orch_spec::role::Role;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};

use super::plane::{Images, Plane};
use crate::args;

/// How long to wait before an address that cannot be had is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(1);
/// How long what ran for a cluster may take to end when the node leaves it.
const EMPTY_TIME: Duration = Duration::from_secs(30);

/// Everything that runs, put together.
pub(super) struct Composition {
    /// What the unix socket answers.
    pub(super) router: Router,
    pub(super) agent: Agent,
    /// `None` on a worker.
    pub(super) control: Option<Control>,
    /// Wakes when the process shall start again as something else.
    pub(super) restart: Arc<Notify>,
    pub(super) peers: Peers,
    /// Tells the agent to run nothing any more.
    evict: watch::Sender<bool>,
}

impl Composition {
    /// Puts together what the node's membership makes of it.
    pub(super) async fn start(args: &args::Agent, node: NodeId) -> Result<Self> {
        let peers = Peers::open(node, Identity::at(args.data_dir.join("identity")))?;
        let (listeners, sockets) = mpsc::channel(1);
        let host = Host {
            peers: peers.clone(),
            data_dir: args.data_dir.clone(),
            // Read when it is said: so that the tests can make another version of the binary.
            version: std::hint::black_box(env!("CARGO_PKG_VERSION")).to_owned(),
            listeners,
            restart: Arc::default(),
        };
        let membership = peers.membership().borrow().clone();
        match membership {
            Some(membership) if membership.role == Role::Worker => worker(args, host, sockets, membership).await,
            membership => manager(args, host, sockets, membership).await,
        }
    }

    /// Ends everything that ran for a cluster that the node has left.
    pub(super) async fn evict(&self) {
        self.evict.send_replace(true);
        let emptied = async {
            while !self.agent.is_idle() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(EMPTY_TIME, emptied).await.is_err() {
            tracing::warn!("some containers of the cluster that was left did not end in time");
        }
    }
}

async fn manager(
    args: &args::Agent,
    host: Host,
    sockets: mpsc::Receiver<TcpListener>,
    membership: Option<Membership>,
) -> Result<Composition> {
    let peers = host.peers.clone();
    let urgent = urgency::runtime().context("start the thread of what must not wait")?;
    let transport = TlsTransport::new(peers.clone(), Handle::current(), urgent.clone());
    let config = || ControlConfig {
        data_dir: args.data_dir.join("control"),
        node: peers.node().clone(),
        address: membership.as_ref().map(|membership| membership.advertise.clone()).unwrap_or_default(),
        transport: transport.clone(),
        bootstrap: match (entry::invitation(&args.data_dir), &membership) {
            (Some(invitation), _) => Bootstrap::Join(invitation),
            (None, Some(membership)) => Bootstrap::Never(membership.cluster.clone()),
            (None, None) => Bootstrap::Alone,
        },
    };
    let control = match Control::start(config()).await {
        Err(error) if error.is_loss() && membership.as_ref().is_some_and(Membership::has_others) => {
            tracing::error!(error = orch_api::error::chain(&error), "the other managers are asked for what is lost");
            entry::readmit(&host).await.map_err(|refused| {
                let why = format!("{}; the other managers do not help: {refused}", orch_api::error::chain(&error));
                anyhow::anyhow!(why).context("open the control plane's state")
            })?;
            Control::start(config()).await
        }
        started => started,
    };
    let control = control.context("open the control plane's state")?;
    transport.attach(control.clone());
    let leader = Leader { control: control.clone(), peers: peers.clone() };
    let (link, evict) = evictable(link::local(leader.clone()));
    let plane = Plane { peers: peers.clone(), leader: Some(leader.clone()) };
    let agent = start_agent(args, &peers, link, Arc::new(plane)).await?;
    let finder = Arc::new(Images::new(agent.clone(), leader.clone()));
    let pulse = Pulse::default();
    tokio::spawn(steward::run(leader.clone(), pulse.clone()));
    let own = Manager { leader: leader.clone(), host: host.clone(), pulse };
    let router = to_leader(orch_scheduler::server::routes(control.clone(), finder), leader.clone())
        .merge(own_routes(own.clone()))
        .merge(leader_routes(own.clone()))
        .merge(images::routes(leader.clone()))
        .merge(to_node(agent.routes(), leader));
    let admission: Arc<dyn Admission> = Arc::new(Members { control: control.clone(), peers: peers.clone() });
    let ways = Ways {
        ordinary: guarded(router.clone(), admission.clone()),
        runtime: Handle::current(),
        urgent: guarded(urgent_routes(own), admission),
    };
    urgent.spawn(serve_others(sockets, peers.clone(), ways, membership));
    urgent.spawn(heartbeat::beat(peers.clone()));
    keep_certificate(&host, Some(control.clone()), Arc::default());
    tokio::spawn(whereabouts::keep(host.clone()));
    Ok(Composition { router, agent, control: Some(control), restart: host.restart.clone(), peers, evict })
}

async fn worker(
    args: &args::Agent,
    host: Host,
    sockets: mpsc::Receiver<TcpListener>,
    membership: Membership,
) -> Result<Composition> {
    let peers = host.peers.clone();
    // Its own cluster of one is over. Kept once, for whoever wants to look.
    set_aside(&args.data_dir)?;
    let knowledge = Knowledge::default();
    let (link, evict) = evictable(link::remote(peers.clone(), knowledge.clone()));
    let plane = Plane { peers: peers.clone(), leader: None };
    let agent = start_agent(args, &peers, link, Arc::new(plane)).await?;
    let router = worker_routes(Worker { host: host.clone(), knowledge: knowledge.clone() }).merge(agent.routes());
    let admission: Arc<dyn Admission> =
        Arc::new(ManagersOnly { cluster: membership.cluster.clone(), revoked: knowledge.revoked.clone() });
    let urgent = urgency::runtime().context("start the thread of what must not wait")?;
    // Nobody sends heartbeats to a worker.
    let ways = Ways { ordinary: guarded(router.clone(), admission), runtime: Handle::current(), urgent: Router::new() };
    urgent.spawn(serve_others(sockets, peers.clone(), ways, Some(membership)));
    urgent.spawn(heartbeat::beat(peers.clone()));
    keep_certificate(&host, None, knowledge.role_changed.clone());
    tokio::spawn(whereabouts::keep(host.clone()));
    Ok(Composition { router, agent, control: None, restart: host.restart.clone(), peers, evict })
}

fn set_aside(data_dir: &Path) -> Result<()> {
    let (control, aside) = (data_dir.join("control"), data_dir.join("control.alone"));
    if control.exists() {
        let _ = std::fs::remove_dir_all(&aside);
        std::fs::rename(&control, &aside).with_context(|| format!("set {} aside", control.display()))?;
    }
    Ok(())
}

async fn start_agent(args: &args::Agent, peers: &Peers, link: NodeLink, plane: Arc<dyn ControlPlane>) -> Result<Agent> {
    let config = AgentConfig {
        data_dir: args.data_dir.clone(),
        run_dir: args.run_dir.clone(),
        instance: args.instance.clone(),
        node: peers.node().clone(),
        address: link::advertised(peers),
        shim_command: vec!["/proc/self/exe".into(), "shim".into()],
    };
    let handle = tokio::runtime::Handle::current();
    let started = tokio::task::spawn_blocking(move || {
        let _entered = handle.enter();
        Agent::start(config, link, plane)
    });
    Ok(started.await.context("start the node")??)
}

/// A link whose node can be told to run nothing any more.
fn evictable(link: NodeLink) -> (NodeLink, watch::Sender<bool>) {
    let (evict, mut evicted) = watch::channel(false);
    let NodeLink { assignments: mut from, reports } = link;
    let (to, assignments) = watch::channel(from.borrow().clone());
    tokio::spawn(async move {
        loop {
            let assignment = from.borrow_and_update().clone();
            let gone = *evicted.borrow_and_update();
            let version = assignment.version;
            if gone {
                let cluster = assignment.cluster.clone();
                to.send_replace(Arc::new(Assignment { version: version + 1, cluster, ..Assignment::default() }));
            } else if version > 0 {
                to.send_replace(assignment);
            }
            tokio::select! {
                changed = from.changed(), if !gone => if changed.is_err() { return },
                changed = evicted.changed() => if changed.is_err() { return },
            }
        }
    });
    (NodeLink { assignments, reports }, evict)
}

/// Takes connections of other hosts in: at the address of the membership, and at whatever `cluster init` binds later.
async fn serve_others(
    mut sockets: mpsc::Receiver<TcpListener>,
    peers: Peers,
    ways: Ways,
    membership: Option<Membership>,
) {
    let address = membership.and_then(|membership| membership.listen.parse::<SocketAddr>().ok());
    let socket = match address {
        Some(address) => Some(bind(address).await),
        // It was bound by another runtime.
        None => sockets.recv().await.and_then(|socket| TcpListener::from_std(socket.into_std().ok()?).ok()),
    };
    let Some(socket) = socket else { return };
    tracing::info!(address = ?socket.local_addr().ok(), "other hosts can connect");
    listener::serve(socket, peers, ways).await;
}

/// Tries until it works: an address may come up after us.
async fn bind(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(socket) => return socket,
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%address, %error, "others cannot connect yet: the address cannot be had");
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
}

/// Keeps the certificate young, and starts the process again when the node's role, or its manager's number, has become another.
fn keep_certificate(host: &Host, control: Option<Control>, role_changed: Arc<Notify>) {
    let host = host.clone();
    let number = entry::number(&host.data_dir);
    tokio::spawn(async move {
        let become_other = renewal::keep(host.peers.clone(), control, number, role_changed).await;
        let Some(mut membership) = host.peers.membership().borrow().clone() else { return };
        let Ok(role) = become_other.role.parse() else { return };
        let kept = entry::keep_invitation(&host, become_other.manager_number, &membership.cluster);
        membership.role = role;
        match kept.map_err(anyhow::Error::from).and_then(|()| Ok(host.peers.set_membership(membership)?)) {
            Ok(()) => {
                tracing::info!(%role, "this node's role has changed: starting again");
                host.restart.notify_one();
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the node's new role could not be taken up"),
        }
    });
}
