//! Who is let in, by real connections: every route against every kind of certificate, and every kind of token.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::{MethodFilter, on};
use orch_api::access::{self, Access};
use orch_api::client::{Client, ClientError, Endpoint};
use orch_api::cluster::{InitRequest, JoinRequest, TokenRequest, TokenText};
use orch_api::session::{self, Beat, HEARTBEAT};
use orch_api::tls::{Credentials, MANAGER_NAME, Trust, client_config, node_name};
use orch_core::security::{Candidate, ClientGrant};
use orch_core::{Command, SecurityCommand};
use orch_scheduler::Control;
use orch_scheduler::identity::Identity;
use orch_scheduler::identity::authority::{Authority, Request};
use orch_scheduler::identity::certificate::Subject;
use orch_scheduler::peer::entry::{self, Host};
use orch_scheduler::peer::forward::Leader;
use orch_scheduler::peer::guard::{Members, guarded};
use orch_scheduler::peer::heartbeat::Pulse;
use orch_scheduler::peer::listener::{self, Ways};
use orch_scheduler::peer::renewal::{authority, renew_there};
use orch_scheduler::peer::{Lane, Peers};
use orch_scheduler::server::cluster::{Manager, leader_routes, own_routes, urgent_routes};
use orch_spec::role::Role;
use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::simulated_disk::SimulatedDisk;

/// A manager that listens at a port of this host.
struct Cluster {
    control: Control,
    host: Host,
    address: String,
    _dir: tempfile::TempDir,
}

fn host(name: &str, version: &str) -> (Host, tokio::sync::mpsc::Receiver<tokio::net::TcpListener>, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let peers = Peers::open(name.into(), Identity::at(dir.path().join("identity"))).expect("nothing is there yet");
    let (listeners, sockets) = tokio::sync::mpsc::channel(1);
    let host = Host {
        peers,
        data_dir: dir.path().to_owned(),
        version: version.to_owned(),
        listeners,
        restart: Arc::default(),
    };
    (host, sockets, dir)
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").to_string()
}

impl Cluster {
    /// Opened, with its own routes or with a route for each rule that does nothing.
    async fn open(real: bool) -> Self {
        Self::open_in(real, Handle::current()).await
    }

    /// The same, with all that can wait served by another runtime.
    async fn open_in(real: bool, runtime: Handle) -> Self {
        let control = Control::start_on(Box::new(SimulatedDisk::default())).await.expect("it starts");
        let (host, mut sockets, dir) = host("node", "0.1.0");
        let address = free_address();
        let request = InitRequest { advertise: address.clone(), listen: address.clone(), certificate_life: 0 };
        entry::init(&host, &control, &request).await.expect("it opens");
        let leader = Leader { control: control.clone(), peers: host.peers.clone() };
        let manager = Manager { leader, host: host.clone(), pulse: Pulse::default() };
        let urgent = urgent_routes(manager.clone());
        let router = if real { own_routes(manager.clone()).merge(leader_routes(manager)) } else { silent_routes() };
        let members = Arc::new(Members { control: control.clone(), peers: host.peers.clone() });
        let ways = Ways { ordinary: guarded(router, members.clone()), runtime, urgent: guarded(urgent, members) };
        let socket = sockets.recv().await.expect("init has bound it");
        tokio::spawn(listener::serve(socket, host.peers.clone(), ways));
        Self { control, host, address, _dir: dir }
    }

    async fn secure(&self, command: SecurityCommand) {
        self.control.propose(Command::Security(command)).await.expect("it is taken");
    }

    /// A certificate of this cluster's authority, with a record of its holder.
    async fn credentials(&self, name: &str, role: Role, issued: SystemTime, life: Duration) -> Credentials {
        let (authority, _) = authority(&self.control).expect("the cluster is open");
        let own = credentials(&authority, &self.control.read(|s| s.cluster.clone()), name, role, issued, life);
        let key = orch_scheduler::identity::certificate::Certificate::read(&own.chain[0]).expect("it is one").key;
        if role.is_node() {
            let token =
                orch_core::security::Token { role, digest: "d".to_owned(), expires_at: 0, once: true, created_at: 0 };
            self.secure(SecurityCommand::AddToken { id: name.to_owned(), token, rotate: false }).await;
            let candidate = Candidate { node: name.into(), key, address: "127.0.0.1:1".to_owned() };
            let join = SecurityCommand::Join { token: name.to_owned(), digest: "d".to_owned(), candidate };
            self.secure(join).await;
        } else {
            let client = ClientGrant { role, expires_at: u64::MAX, created_at: 0 };
            self.secure(SecurityCommand::Grant { name: name.to_owned(), client }).await;
        }
        own
    }

    fn client(&self, own: Option<&Credentials>) -> Client {
        let trust = Trust::Authority(CertificateDer::from(self.control.read(|state| state.security.authority.clone())));
        let config = client_config(trust, own).expect("good certificates");
        Client::new(Endpoint::Tls { address: self.address.clone(), name: MANAGER_NAME.to_owned(), config })
    }

    async fn token(&self, request: TokenRequest) -> String {
        let admin = self.credentials("admin", Role::Admin, SystemTime::now(), DAY).await;
        self.client(Some(&admin)).post::<TokenText>("/v1/cluster/tokens", &request).await.expect("a token").token
    }

    async fn join(&self, name: &str, version: &str, token: &str) -> Result<(Host, tempfile::TempDir), String> {
        let (host, _sockets, dir) = host(name, version);
        let address = free_address();
        let request = JoinRequest {
            token: token.to_owned(),
            manager: self.address.clone(),
            advertise: address.clone(),
            listen: address,
        };
        match entry::join(&host, None, &request).await {
            Ok(_) => Ok((host, dir)),
            Err(detail) => Err(format!("{}: {}", detail.code, detail.message)),
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn credentials(
    authority: &Authority,
    cluster: &str,
    name: &str,
    role: Role,
    issued: SystemTime,
    life: Duration,
) -> Credentials {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let identity = Identity::at(dir.path());
    let request = Request::read(&identity.request().expect("a key")).expect("a request");
    let subject = Subject { name: name.to_owned(), role, cluster: cluster.to_owned() };
    let certificate = authority.issue(&subject, &request, issued, life).expect("it signs");
    identity.keep_certificate(&certificate, authority.certificate()).expect("it is kept");
    identity.credentials().expect("it is read").expect("it is there")
}

/// A route for each rule, which answers nothing.
fn silent_routes() -> Router {
    access::RULES.iter().fold(Router::new(), |router, rule| {
        let filter = MethodFilter::try_from(rule.method.parse::<axum::http::Method>().expect("a method"));
        router.route(rule.path, on(filter.expect("a known method"), || async {}))
    })
}

/// Calls a route; `Ok` = its handler was reached.
async fn call(client: &Client, rule: &access::Rule) -> Result<(), String> {
    let path = rule.path.replace("{name}", "x").replace("{id}", "x");
    let result = match rule.method {
        "GET" => client.get::<Option<()>>(&path).await,
        "POST" => client.post::<Option<()>>(&path, &()).await,
        "DELETE" => client.delete::<Option<()>>(&path).await,
        _ => client.upload(hyper::Method::PUT, &path, futures_util::stream::empty()).await,
    };
    match result {
        Ok(_) => Ok(()),
        Err(ClientError::Refused(detail)) => Err(detail.code),
        Err(_) => Err("no connection".to_owned()),
    }
}

/// Whether a caller may call a route of this access.
type May = Box<dyn Fn(Access) -> bool>;

#[tokio::test]
async fn every_route_lets_in_whom_it_says_and_nobody_else() {
    let cluster = Cluster::open(false).await;
    let now = SystemTime::now();
    let long_ago = now - 30 * DAY;
    let mut callers: Vec<(&str, Client, May)> = Vec::new();
    callers.push(("nobody", cluster.client(None), Box::new(|rule| rule == Access::Everybody)));
    for role in Role::ALL {
        let own = cluster.credentials(role.as_str(), role, now, DAY).await;
        callers.push((role.as_str(), cluster.client(Some(&own)), Box::new(move |rule| rule.allows(role))));
    }
    let expired = cluster.credentials("late", Role::Worker, long_ago, DAY).await;
    callers.push(("an expired worker", cluster.client(Some(&expired)), Box::new(|rule| rule == Access::Renewal)));
    let expired = cluster.credentials("late-admin", Role::Admin, long_ago, DAY).await;
    callers.push(("an expired admin", cluster.client(Some(&expired)), Box::new(|_| false)));
    let removed = cluster.credentials("removed", Role::Manager, now, DAY).await;
    cluster.secure(SecurityCommand::Remove { node: "removed".into() }).await;
    callers.push(("a removed manager", cluster.client(Some(&removed)), Box::new(|_| false)));
    let revoked = cluster.credentials("revoked", Role::Admin, now, DAY).await;
    cluster.secure(SecurityCommand::Revoke { name: "revoked".to_owned() }).await;
    callers.push(("a revoked admin", cluster.client(Some(&revoked)), Box::new(|_| false)));
    let demoted = cluster.credentials("demoted", Role::Manager, now, DAY).await;
    cluster.secure(SecurityCommand::SetRole { node: "demoted".into(), role: Role::Worker }).await;
    callers.push(("a demoted manager", cluster.client(Some(&demoted)), Box::new(|rule| rule.allows(Role::Worker))));
    let (own_authority, _) = authority(&cluster.control).expect("it is open");
    let id = cluster.control.read(|state| state.cluster.clone());
    // Signed by the right authority, but nobody has let it in; and a name that another key has.
    let unknown = credentials(&own_authority, &id, "unknown", Role::Manager, now, DAY);
    callers.push(("an unknown manager", cluster.client(Some(&unknown)), Box::new(|_| false)));
    let stolen = credentials(&own_authority, &id, "worker", Role::Worker, now, DAY);
    callers.push(("a worker's name with another key", cluster.client(Some(&stolen)), Box::new(|_| false)));
    let elsewhere = credentials(&own_authority, "other", "worker", Role::Worker, now, DAY);
    callers.push(("another cluster's worker", cluster.client(Some(&elsewhere)), Box::new(|_| false)));
    let foreign = Authority::make(&id, now).expect("another authority");
    let foreign = credentials(&foreign, &id, "node", Role::Manager, now, DAY);
    callers.push(("another authority's manager", cluster.client(Some(&foreign)), Box::new(|_| false)));

    for (who, client, may) in &callers {
        for rule in access::RULES {
            let reached = call(client, rule).await;
            let expected = may(rule.access);
            assert_eq!(reached.is_ok(), expected, "{who}: {} {}: {reached:?}", rule.method, rule.path);
            let codes = ["unauthenticated", "forbidden", "removed", "no connection"];
            assert!(expected || codes.contains(&reached.unwrap_err().as_str()), "{who}: {}", rule.path);
        }
    }
}

#[tokio::test]
async fn tokens_that_do_not_count_are_refused_with_the_reason() {
    let cluster = Cluster::open(true).await;
    let request = TokenRequest { role: Role::Worker, rotate: false, life: None, once: false };
    let good = cluster.token(request.clone()).await;
    let refused = |result: Result<(Host, tempfile::TempDir), String>| result.expect_err("it is refused");

    let error = refused(cluster.join("a", "0.1.0", "SWMTKN-1-x").await);
    assert!(error.starts_with("invalid") && error.contains("does not begin with ORCH-"), "{error}");
    let mut wrong = good.clone();
    let last = wrong.pop().expect("it has digits");
    wrong.push(if last == '0' { '1' } else { '0' });
    let error = refused(cluster.join("a", "0.1.0", &wrong).await);
    assert!(error.starts_with("forbidden") && error.contains("does not count"), "{error}");
    let other = Cluster::open(true).await;
    let foreign = other.token(request.clone()).await;
    let error = refused(cluster.join("a", "0.1.0", &foreign).await);
    assert!(error.contains("does not belong to the cluster that this token is for"), "{error}");
    let error = refused(cluster.join("a", "0.2.0", &good).await);
    assert!(error.contains("the node runs orch 0.2.0, the cluster runs 0.1.0"), "{error}");

    let once = cluster.token(TokenRequest { once: true, ..request.clone() }).await;
    cluster.join("b", "0.1.0", &once).await.expect("the first is let in");
    let error = refused(cluster.join("c", "0.1.0", &once).await);
    assert!(error.contains("has been used up"), "replayed: {error}");

    let new = cluster.token(TokenRequest { rotate: true, ..request.clone() }).await;
    let error = refused(cluster.join("d", "0.1.0", &good).await);
    assert!(error.contains("was rotated"), "{error}");
    cluster.join("d", "0.1.0", &new).await.expect("the new one counts");
    let error = refused(cluster.join("d", "0.1.0", &new).await);
    assert!(error.contains("with another key"), "somebody else by the same id: {error}");

    let short = cluster.token(TokenRequest { life: Some(1), ..request }).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        // Until it has expired it lets in; afterwards it says so.
        for number in 0.. {
            match cluster.join(&format!("e{number}"), "0.1.0", &short).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => {
                    assert!(error.contains("it has expired"), "{error}");
                    return;
                }
            }
        }
    })
    .await
    .expect("a token of a second expires");
}

#[tokio::test]
async fn a_node_that_joined_gets_its_next_certificate_by_its_key_though_the_first_has_expired() {
    let cluster = Cluster::open(true).await;
    let token = cluster.token(TokenRequest { role: Role::Worker, rotate: false, life: None, once: true }).await;
    let (host, _dir) = cluster.join("w", "0.1.0", &token).await.expect("it is let in");
    let identity = host.peers.identity();
    let (authority, _) = authority(&cluster.control).expect("it is open");
    // As if it had been switched off for a month.
    let subject = Subject {
        name: "w".to_owned(),
        role: Role::Worker,
        cluster: cluster.control.read(|state| state.cluster.clone()),
    };
    let request = Request::read(&identity.request().expect("its key")).expect("a request");
    let old = authority.issue(&subject, &request, SystemTime::now() - 30 * DAY, DAY).expect("it signs");
    identity.keep_certificate(&old, authority.certificate()).expect("it is kept");
    host.peers.reload().expect("it is read");
    let refused = host.peers.post(&cluster.address, &node_name("node"), "/v1/peer/departure", Vec::new()).await;
    assert!(refused.expect_err("it has expired").to_string().contains("expired"));

    let answer = renew_there(&host.peers).await.expect("its key is known");
    assert_eq!(answer.role, "worker");
    let fresh = host.peers.certificate().expect("it has one");
    assert!(fresh.not_after > SystemTime::now() + DAY);

    // Shut out, it gets no further one.
    cluster.secure(SecurityCommand::Remove { node: "w".into() }).await;
    let error = renew_there(&host.peers).await.expect_err("it was shut out");
    assert!(format!("{error:?}").contains("removed"), "{error:?}");
    drop(cluster.host);
}

#[tokio::test]
async fn a_heartbeat_is_answered_while_everything_else_waits_for_a_processor() {
    // A runtime that does its work until it is told to stand still, and again from when it is told to go on.
    let (ready, runtime) = oneshot::channel();
    let ((stand, standing), (go, going), (end, ended)) =
        (oneshot::channel(), std::sync::mpsc::channel(), oneshot::channel());
    let busy = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        ready.send(runtime.handle().clone()).expect("somebody waits for it");
        runtime.block_on(standing).expect("it is told to stand still");
        going.recv().expect("it is told to go on");
        runtime.block_on(ended).expect("it is told to end");
    });
    let cluster = Cluster::open_in(true, runtime.await.expect("it runs")).await;
    let token = cluster.token(TokenRequest { role: Role::Worker, rotate: false, life: None, once: true }).await;
    let (host, _dir) = cluster.join("w", "0.1.0", &token).await.expect("it is let in");
    host.peers.reload().expect("its certificate can be read");
    stand.send(()).expect("it still goes");

    let asking = tokio::spawn({
        let (peers, address) = (host.peers.clone(), cluster.address.clone());
        async move { peers.post(&address, &node_name("node"), "/v1/peer/departure", Vec::new()).await }
    });
    let name = node_name("node");
    let upgrading = host.peers.upgrade(Lane::Urgent, &cluster.address, &name, "/v1/peer/heartbeat", HEARTBEAT);
    let mut connection = upgrading.await.expect("it is let in");
    for number in 1..=3 {
        session::write(&mut connection, &Beat { number, counted: false, leader: None }).await.expect("it is taken");
        let answer = session::read::<Beat>(&mut connection).await.expect("it is read").expect("it is answered");
        assert_eq!((answer.number, answer.counted), (number, true));
    }
    assert!(!asking.is_finished(), "what can wait was answered by a runtime that stands still");
    go.send(()).expect("it stands still");
    asking.await.expect("it ends").expect("it is answered in the end");
    end.send(()).expect("it goes");
    busy.join().expect("it has ended");
}
