//! A node: wires the engine and netd together, runs the reconcile loop, reports status.
//!
//! Observe → plan → execute → report. [`plan`] decides, purely; [`execute`] carries one operation out on a thread of its own and decides
//! nothing; [`status`](task::status) says how a task stands. Events of the engine, answers of probes and new assignments only change the
//! memory ([`state`]) and mark it dirty; the loop then plans again, and a slow sweep does so though nothing happened.
//!
//! Tasks spawned: the loop, the reporter, one forwarder for assignments, one that follows what is said of other nodes and one that tries the
//! ways to them, one thread for the engine's events, one probe a container with
//! a health check. Absent on purpose: which task runs where, and in which order, is the control plane's.
#![forbid(unsafe_code)]

mod cluster;
mod execute;
mod fetch;
pub mod health;
mod local;
pub mod lower;
mod names;
pub mod plan;
mod probe;
mod reconcile;
pub mod record;
mod removal;
pub mod routes;
pub mod state;
pub mod task;
mod underlay;
mod view;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orch_api::control::NodeLink;
pub(crate) use orch_api::error::chain;
use orch_api::image::NamedImage;
use orch_api::plane::ControlPlane;
use orch_engine::engine::{Engine, EngineConfig, EngineError};
use orch_netd::dns::{Dns, DnsConfig};
use orch_netd::{Netd, NetdConfig};
use orch_spec::assignment::{NodeFacts, NodeId};
use tokio::sync::{Notify, watch};

use crate::record::{RecordError, Records};
use crate::state::State;

/// The group of containers that belong to no stack: its shim stays while the agent does, since the next container comes soon.
pub const LOCAL_GROUP: &str = "containers";

/// How to run an agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// State that survives a reboot.
    pub data_dir: PathBuf,
    /// Sockets and namespaces.
    pub run_dir: PathBuf,
    /// Distinguishes several agents on one kernel; empty for the only one.
    pub instance: String,
    /// The node's identity.
    pub node: NodeId,
    /// Where other nodes reach this one's containers; `None` on a host that is alone.
    pub address: Option<IpAddr>,
    /// What the engine starts as its shim.
    pub shim_command: Vec<std::ffi::OsString>,
}

/// The agent could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The engine.
    #[error("open the engine")]
    Engine(#[source] Box<EngineError>),
    /// The networks.
    #[error("take over the networks")]
    Netd(#[source] Box<orch_netd::NetdError>),
    /// The name server.
    #[error("start the embedded name server")]
    Dns(#[source] orch_netd::dns::StartError),
    /// Its own records.
    #[error("read what the last agent left")]
    Records(#[from] RecordError),
}

/// A running agent. Dropping it stops nothing: containers, networks and shims stay.
#[derive(Clone)]
pub struct Agent {
    shared: Arc<Shared>,
}

/// What all parts of the agent share.
pub struct Shared {
    config: AgentConfig,
    engine: Engine,
    netd: Arc<Netd>,
    dns: Arc<Dns>,
    control: Arc<dyn ControlPlane>,
    records: Records,
    removals: removal::Removals,
    state: Mutex<State>,
    /// Held while a container is looked at and the memory told: of two looks the later one must have the last word.
    looking: Mutex<()>,
    /// Digest of what the name server was last told about each network.
    name_digests: Mutex<std::collections::BTreeMap<orch_spec::assignment::NetworkName, u64>>,
    /// What netd was last told about other nodes.
    applying: cluster::Applying,
    /// How tunnels to other nodes fare.
    underlays: Mutex<underlay::Underlays>,
    /// Images on their way to and from other hosts.
    traffic: fetch::Traffic,
    /// Something changed: plan again.
    dirty: Notify,
    /// Grows with every change, for those who wait for one.
    version: watch::Sender<u64>,
}

impl Shared {
    /// Locks the memory. A panic while it was held is a bug that has ended one request; what it guards is plain data, so the others go on.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the turn to look at containers.
    fn look(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the memory as changed.
    fn touch(&self) {
        self.version.send_modify(|v| *v += 1);
        self.dirty.notify_one();
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    orch_api::clock::now_ms()
}

impl Agent {
    /// Opens engine and networks, takes over what runs, and starts the loop. Blocks for as long as taking over takes.
    ///
    /// # Errors
    /// When another agent has the data directory, or the host lacks what is needed.
    pub fn start(config: AgentConfig, link: NodeLink, control: Arc<dyn ControlPlane>) -> Result<Self, AgentError> {
        let engine = Engine::open(EngineConfig {
            data_dir: config.data_dir.join("engine"),
            run_dir: config.run_dir.join("engine"),
            instance: config.instance.clone(),
            shim_command: config.shim_command.clone(),
            resident_groups: vec![LOCAL_GROUP.to_owned()],
        })
        .map_err(|e| AgentError::Engine(Box::new(e)))?;
        let instance = if config.instance.is_empty() { "orch".to_owned() } else { config.instance.clone() };
        let netd = Netd::open(NetdConfig { instance, run_dir: config.run_dir.join("netd") })
            .map_err(|e| AgentError::Netd(Box::new(e)))?;
        let netd = Arc::new(netd);
        let dns = Arc::new(Dns::start(DnsConfig::default()).map_err(AgentError::Dns)?);
        let records = Records::open(&config.data_dir.join("agent"))?;
        let underlays = underlay::Underlays::new(netd.cluster().underlay);
        let state = reconcile::adopt(&engine, &netd, &records);
        let shared = Arc::new(Shared {
            config,
            engine,
            netd,
            dns,
            control,
            records,
            removals: removal::Removals::default(),
            state: Mutex::new(state),
            looking: Mutex::default(),
            name_digests: Mutex::default(),
            applying: cluster::Applying::default(),
            underlays: Mutex::new(underlays),
            traffic: fetch::Traffic::default(),
            dirty: Notify::new(),
            version: watch::Sender::new(0),
        });
        names::attach_all(&shared);
        reconcile::spawn(&shared, link);
        Ok(Self { shared })
    }

    /// The node's part of the API.
    pub fn routes(&self) -> axum::Router {
        routes::routes(self.shared.clone())
    }

    /// What references name here, and since when.
    pub fn named_images(&self, references: &[String]) -> std::collections::BTreeMap<String, Option<NamedImage>> {
        fetch::named(&self.shared, references)
    }

    /// What this node says of itself now.
    pub fn facts(&self) -> NodeFacts {
        facts(&self.shared.config, &self.shared.netd)
    }

    /// Whether nothing is here, nothing is wanted and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.shared.lock().is_idle()
    }

    /// Gives back what only stays for the next container: shims without one, the default network, the rules.
    pub fn release(&self) {
        if !self.is_idle() {
            return;
        }
        self.shared.engine.retire();
        if let Err(e) = self.shared.netd.teardown() {
            tracing::warn!(error = chain(&e), "networks were not given back");
        }
    }
}

/// What this node says of itself.
pub fn facts(config: &AgentConfig, netd: &Netd) -> NodeFacts {
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let uname = nix::sys::utsname::uname();
    NodeFacts {
        id: config.node.clone(),
        hostname: uname.map(|u| u.nodename().to_string_lossy().into_owned()).unwrap_or_default(),
        routes: netd.host_routes().unwrap_or_default().iter().map(ToString::to_string).collect(),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
        memory: memory.unwrap_or(0) * 1024,
        platform: platform(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: config.address,
        mtu: config.address.and_then(|address| netd.underlay_mtu(address).ok()).unwrap_or(0),
        ..NodeFacts::default()
    }
}

/// `linux/amd64` and the like.
pub(crate) fn platform() -> String {
    let host = orch_engine::image::Platform::host();
    format!("{}/{}", host.os, host.architecture)
}
