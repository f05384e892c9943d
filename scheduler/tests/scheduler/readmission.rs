//! Managers that talk by real connections, each by its own certificate: one that may not go on under its number gets another.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orch_api::cluster::{InitRequest, JoinRequest, ReadmissionRequest};
use orch_api::tls::{digest, node_name};
use orch_core::security::Token;
use orch_core::{Command, SecurityCommand};
use orch_scheduler::identity::Identity;
use orch_scheduler::identity::token::JoinToken;
use orch_scheduler::identity::{ManagerAddress, Membership};
use orch_scheduler::peer::Peers;
use orch_scheduler::peer::entry::{self, Host};
use orch_scheduler::peer::forward::Leader;
use orch_scheduler::peer::guard::{Members, guarded};
use orch_scheduler::peer::heartbeat::Pulse;
use orch_scheduler::peer::listener::{self, Ways};
use orch_scheduler::peer::transport::TlsTransport;
use orch_scheduler::server::cluster::{Manager, leader_routes, own_routes, urgent_routes};
use orch_scheduler::{Bootstrap, Control, ControlConfig, StartError};
use orch_spec::role::Role;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

/// What a manager is whether it runs or not.
struct Place {
    host: Host,
    sockets: mpsc::Receiver<TcpListener>,
    address: String,
    _dir: tempfile::TempDir,
}

/// One that runs, with a runtime of its own: with it all its connections end, as they do with a process.
struct Running {
    control: Control,
    runtime: Runtime,
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("the system has threads")
}

impl Place {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let peers = Peers::open(name.into(), Identity::at(dir.path().join("identity"))).expect("nothing is there yet");
        let (listeners, sockets) = mpsc::channel(1);
        let (data_dir, version) = (dir.path().to_owned(), "0.1.0".to_owned());
        let host = Host { peers, data_dir, version, listeners, restart: Arc::default() };
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().expect("it is bound").to_string();
        Self { host, sockets, address, _dir: dir }
    }

    async fn control(&self, runtime: &Runtime) -> Result<Control, StartError> {
        let transport = TlsTransport::new(self.host.peers.clone(), runtime.handle().clone(), runtime.handle().clone());
        let control = Control::start(ControlConfig {
            data_dir: self.host.data_dir.join("control"),
            node: self.host.peers.node().clone(),
            address: self.address.clone(),
            transport: transport.clone(),
            bootstrap: entry::invitation(&self.host.data_dir).map_or(Bootstrap::Alone, Bootstrap::Join),
        })
        .await?;
        transport.attach(control.clone());
        Ok(control)
    }

    fn listen(&self, runtime: Runtime, control: Control, socket: TcpListener) -> Running {
        let peers = self.host.peers.clone();
        let leader = Leader { control: control.clone(), peers: peers.clone() };
        let manager = Manager { leader, host: self.host.clone(), pulse: Pulse::default() };
        let urgent = urgent_routes(manager.clone());
        let router = own_routes(manager.clone()).merge(leader_routes(manager));
        let members = Arc::new(Members { control: control.clone(), peers: peers.clone() });
        let ordinary = guarded(router, members.clone());
        let ways = Ways { ordinary, runtime: runtime.handle().clone(), urgent: guarded(urgent, members) };
        runtime.spawn(listener::serve(socket, peers, ways));
        Running { control, runtime }
    }

    async fn start(&self) -> Running {
        let socket = TcpListener::bind(&self.address).await.expect("its address is free");
        let runtime = runtime();
        let control = self.control(&runtime).await.expect("it starts");
        self.listen(runtime, control, socket)
    }

    /// Opens a cluster.
    async fn init(&mut self) -> Running {
        let runtime = runtime();
        let control = self.control(&runtime).await.expect("it starts");
        let (advertise, listen) = (self.address.clone(), self.address.clone());
        let request = InitRequest { advertise, listen, certificate_life: 0 };
        entry::init(&self.host, &control, &request).await.expect("it opens");
        let socket = self.sockets.recv().await.expect("init has bound it");
        self.listen(runtime, control, socket)
    }

    /// Joins as a manager, at whichever manager.
    async fn join(&self, at: &Self, token: &str) -> Running {
        let (advertise, listen) = (self.address.clone(), self.address.clone());
        let request = JoinRequest { token: token.to_owned(), manager: at.address.clone(), advertise, listen };
        entry::join(&self.host, None, &request).await.expect("it is let in");
        // As the process that starts then does.
        self.host.peers.reload().expect("it has a certificate");
        self.start().await
    }

    /// The managers that it asks, in this order.
    fn knows(&self, others: &[&Self]) {
        let known = |place: &&Self| {
            let (node, address) = (place.host.peers.node().clone(), place.address.clone());
            ManagerAddress { node, address }
        };
        let membership = self.host.peers.membership().borrow().clone().expect("it is a member");
        let membership = Membership { managers: others.iter().map(known).collect(), ..membership };
        self.host.peers.set_membership(membership).expect("it is kept");
    }
}

impl Running {
    async fn token(&self) -> String {
        let authority = digest(&self.control.read(|state| state.security.authority.clone()));
        let token = JoinToken::make(Role::Manager, authority, None, SystemTime::now());
        let record = Token { role: Role::Manager, digest: token.digest(), expires_at: 0, once: false, created_at: 0 };
        let add = SecurityCommand::AddToken { id: token.id.clone(), token: record, rotate: false };
        self.control.propose(Command::Security(add)).await.expect("it is taken");
        token.to_string()
    }

    async fn all_vote(&self, count: usize) {
        let wish = |state: &orch_core::State| state.members.voters().len() == count;
        let there = self.control.wait_until(PATIENCE, wish).await;
        assert!(there, "{:?}", self.control.read(|state| state.members.clone()));
    }

    fn number(&self, of: &Place) -> Option<u64> {
        self.control.read(|state| state.members.id_of(of.host.peers.node()))
    }

    async fn stop(self) {
        self.control.shutdown().await;
        self.runtime.shutdown_background();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_differs_is_readmitted_by_the_leader_and_by_nobody_else() {
    let (mut first, second, third) = (Place::new("m1"), Place::new("m2"), Place::new("m3"));
    let leader = first.init().await;
    let token = leader.token().await;
    let follower = second.join(&first, &token).await;
    // Joining is passed on by whoever is asked; what follows must not be.
    let former = third.join(&second, &token).await;
    for running in [&leader, &follower, &former] {
        running.all_vote(3).await;
    }
    let (its, followers) = (leader.number(&third).expect("it votes"), leader.number(&second).expect("it votes"));
    former.stop().await;
    // It was told that its state is not that of the others.
    std::fs::write(third.host.data_dir.join("control/condemned"), "it differs").expect("the disk takes it");
    let aside = runtime();
    let refused = third.control(&aside).await.expect_err("it may not go on");
    aside.shutdown_background();
    assert!(refused.is_loss(), "{refused}");

    let body = serde_json::to_vec(&ReadmissionRequest { former: its }).expect("a request serialises");
    let name = node_name(&second.host.peers.node().0);
    let asked = third.host.peers.post(&second.address, &name, "/v1/peer/readmission", body).await;
    let refused = asked.expect_err("a follower gives no numbers").to_string();
    assert!(refused.contains("this manager does not lead"), "{refused}");
    assert_eq!((leader.number(&third), leader.number(&second)), (Some(its), Some(followers)), "nothing was done");

    // It asks the follower first.
    third.knows(&[&second, &first]);
    entry::readmit(&third.host).await.expect("the leader gives it another number");
    let invited = entry::invitation(&third.host.data_dir).expect("it is kept").id;
    assert!(invited > its, "{invited} after {its}");
    assert_eq!((leader.number(&third), leader.number(&second)), (Some(invited), Some(followers)));
    let back = third.start().await;
    assert!(third.host.data_dir.join("control/condemned.aside").exists(), "what is left is kept");
    for running in [&leader, &follower, &back] {
        running.all_vote(3).await;
    }
    for running in [back, follower, leader] {
        running.stop().await;
    }
}
