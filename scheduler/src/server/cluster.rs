//! The cluster's own routes: see [`orch_api::cluster`] for the table.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State as Inject};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use orch_api::clock;
use orch_api::cluster::{
    Admission, AdmissionRequest, CertificateAnswer, CertificateRequest, ClientCertificate, ClientRequest, ClientView,
    ClusterView, InitRequest, JoinRequest, Joined, LeaveRequest, PeerView, Readmission, ReadmissionRequest,
    TokenRequest, TokenText, TokenView,
};
use orch_api::control::{AddressRequest, AddressResponse, IndexResponse};
use orch_api::error::{ErrorDetail, REMOVED, chain};
use orch_api::session::{HEARTBEAT, RAFT, SESSION};
use orch_api::tls::digest;
use orch_core::security::{Candidate, ClientGrant, Token};
use orch_core::{Command, MemberRole, Refusal, SecurityCommand, State};
use orch_spec::assignment::NodeId;
use orch_spec::role::Role;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;

use super::{Asked, Body, Refused, Reply};
use crate::identity::authority::{CLIENT_LIFE, Request as CertificateSigning};
use crate::identity::certificate::Subject;
use crate::identity::token::{JoinToken, secret_digest};
use crate::identity::{Membership, hex, pem};
use crate::peer::entry::{self, Host};
use crate::peer::forward::{Leader, managers, to_leader};
use crate::peer::guard::Admitted;
use crate::peer::heartbeat::{self, Pulse};
use crate::peer::link::Knowledge;
use crate::peer::renewal::{authority, millis};
use crate::peer::session::{self, switching, upgrade};
use crate::peer::{CallError, renewal, transport};

/// A token counts for a day unless asked otherwise: long enough to set up some hosts, short enough that one left in a chat is soon
/// worthless.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A token in a file of a cloud's images may live long, but not for ever by mistake.
const LONGEST: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How long leaving waits for containers to stop.
const EMPTY_TIME: Duration = Duration::from_secs(30);

/// What handlers of a manager need.
#[derive(Clone)]
pub struct Manager {
    /// The way to the leader, this manager's control plane and connections.
    pub leader: Leader,
    /// Its process.
    pub host: Host,
    /// Who was heard of.
    pub pulse: Pulse,
}

type Injected = Inject<Arc<Manager>>;

fn failed(doing: &str, error: &dyn std::error::Error) -> Refused {
    ErrorDetail::new("failed", format!("{doing}: {}", chain(error))).into()
}

/// Routes of a manager that any manager answers by itself.
pub fn own_routes(manager: Manager) -> Router {
    Router::new()
        .route("/v1/cluster", get(view))
        .route("/v1/cluster/init", post(init))
        .route("/v1/cluster/join", post(join))
        .route("/v1/cluster/leave", post(leave))
        .route("/v1/peer/certificate", post(certificate))
        .route("/v1/peer/departure", post(departure))
        .route("/v1/peer/readmission", post(readmission))
        .route("/v1/peer/session", post(open_session))
        .route("/v1/peer/proposal", post(proposal))
        .with_state(Arc::new(manager.clone()))
        .merge(urgent_routes(manager))
}

/// Those of them that must not wait for anything else that this host does.
pub fn urgent_routes(manager: Manager) -> Router {
    Router::new()
        .route("/v1/peer/heartbeat", post(open_heartbeat))
        .route("/v1/peer/raft", post(open_raft))
        .with_state(Arc::new(manager))
}

/// Routes of a manager that the leader answers.
pub fn leader_routes(manager: Manager) -> Router {
    let leader = manager.leader.clone();
    let router = Router::new()
        .route("/v1/cluster/tokens", get(tokens).post(make_token).delete(revoke_tokens))
        .route("/v1/cluster/clients", get(clients).post(make_client))
        .route("/v1/cluster/clients/{name}", delete(revoke_client))
        .route("/v1/peer/admission", post(admission))
        .route("/v1/peer/managers/{name}", delete(remove_manager))
        .route("/v1/peer/addresses/{name}", post(reserve).delete(release))
        .layer(DefaultBodyLimit::max(super::BODY))
        .with_state(Arc::new(manager));
    to_leader(router, leader)
}

async fn propose(manager: &Manager, command: SecurityCommand) -> Result<(), Refused> {
    manager.leader.control.propose(Command::Security(command)).await?;
    Ok(())
}

/// `GET /v1/cluster`.
async fn view(Inject(manager): Injected) -> Json<ClusterView> {
    let leadership = manager.leader.control.leadership().borrow().clone();
    let peers = &manager.leader.peers;
    let address = peers.membership().borrow().as_ref().map(|m| m.advertise.clone()).unwrap_or_default();
    Json(manager.leader.control.read(|state| {
        let members = state.security.members.iter().map(|(node, member)| PeerView {
            node: node.0.clone(),
            role: member.role.to_string(),
            address: member.address.clone(),
        });
        let voters = state.members.managers.values().filter(|member| member.role == MemberRole::Voter);
        ClusterView {
            id: state.cluster.clone(),
            open: state.security.is_open(),
            node: peers.node().0.clone(),
            role: Role::Manager.to_string(),
            address,
            leader: leadership.leader.map_or_else(String::new, |leader| leader.0),
            term: leadership.term,
            managers: managers(state),
            voters: voters.map(|member| member.node.0.clone()).collect(),
            members: members.collect(),
            authority: if state.security.is_open() { hex(&digest(&state.security.authority)) } else { String::new() },
            certificate_until: peers.certificate().map(|certificate| millis(certificate.not_after)),
            connected: true,
            removed: peers.is_removed(),
        }
    }))
}

/// `POST /v1/cluster/init`.
async fn init(Inject(manager): Injected, body: Body<InitRequest>) -> Reply<ClusterView> {
    let Json(request) = body?;
    entry::init(&manager.host, &manager.leader.control, &request).await?;
    Ok(view(Inject(manager)).await)
}

/// `POST /v1/cluster/join`.
async fn join(Inject(manager): Injected, body: Body<JoinRequest>) -> Reply<Joined> {
    let Json(request) = body?;
    let joined = entry::join(&manager.host, Some(&manager.leader.control), &request).await?;
    manager.host.restart.notify_one();
    Ok(Json(joined))
}

/// `POST /v1/cluster/leave`.
async fn leave(Inject(manager): Injected, body: Body<LeaveRequest>) -> Reply<()> {
    let Json(LeaveRequest { force }) = body?;
    let host = &manager.host;
    let node = host.peers.node().clone();
    if host.peers.membership().borrow().is_none() {
        return Err(ErrorDetail::new("conflict", "this host is alone: there is no cluster to leave").into());
    }
    let (others, only, hostname) = manager.leader.control.read(|state| {
        let others = state.security.members.keys().filter(|id| **id != node).count();
        let hostname = state.nodes.get(&node).map_or_else(|| node.0.clone(), |known| known.facts.hostname.clone());
        (others, state.only_copies(&node), hostname)
    });
    if !force && others > 0 && !only.is_empty() && !host.peers.is_removed() {
        return Err(Refusal::OnlyCopy { node: hostname, volumes: only }.into());
    }
    // One that was let in and never heard of the others since knows of them by the answer that let it in.
    let is_unheard = others == 0 && host.peers.membership().borrow().as_ref().is_some_and(Membership::has_others);
    // Who was removed has nobody to tell, and may hear of it only now.
    let farewell = async {
        tokio::select! {
            biased;
            () = host.peers.removed() => Ok(()),
            said = say_farewell(&manager, &node) => said,
        }
    };
    let left = match others {
        0 if is_unheard => depart(host, force).await,
        0 => Ok(()),
        _ => farewell.await,
    };
    match left {
        Err(detail) if !force && !detail.hint.is_empty() => return Err(detail.into()),
        Err(detail) if !force => return Err(detail.with_hint("`--force` leaves without telling anybody").into()),
        Err(detail) => tracing::warn!(error = %detail, "the others could not be told that this node leaves"),
        Ok(()) if others == 0 && !is_unheard && !force => {
            let text = "this is the last node of the cluster: what the cluster knows goes with it";
            return Err(ErrorDetail::new("conflict", text).with_hint("say --force if that is meant").into());
        }
        Ok(()) => {}
    }
    entry::mark_left(host)?;
    host.restart.notify_one();
    Ok(Json(()))
}

/// A manager first stops to be one, then leaves as any node does.
async fn say_farewell(manager: &Manager, node: &NodeId) -> Result<(), ErrorDetail> {
    let is_last = manager.leader.control.read(|state| state.security.managers().all(|(id, _)| id == node));
    if is_last {
        return Err(ErrorDetail::new("conflict", "this is the last manager: the others would be left without one"));
    }
    let until = tokio::time::Instant::now() + EMPTY_TIME;
    loop {
        let removed = match manager.leader.place() {
            crate::peer::forward::Place::Here => match manager.leader.control.remove_manager(node).await {
                Ok(()) => Ok(()),
                Err(error) => Err(Refused::from(error).into_detail()),
            },
            crate::peer::forward::Place::There(leader) => {
                let path = format!("/v1/peer/managers/{node}");
                manager.leader.peers.delete(&leader.address, &orch_api::tls::node_name(&leader.node), &path).await
            }
            crate::peer::forward::Place::Nowhere => Err(ErrorDetail::new("unavailable", "the cluster has no leader")),
        };
        match removed {
            Ok(()) => break,
            // A leader that shall go hands over first.
            Err(detail) if detail.code == "unavailable" && tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(detail) if detail.code == "not_found" => break,
            Err(detail) => return Err(detail),
        }
    }
    // Its own replica does not lead any more and knows who does.
    manager.leader.propose_elsewhere(Command::Security(SecurityCommand::Remove { node: node.clone() })).await
}

/// `DELETE /v1/peer/managers/{name}`.
async fn remove_manager(Inject(manager): Injected, Path(name): Path<String>) -> Reply<()> {
    manager.leader.control.remove_manager(&NodeId(name)).await?;
    Ok(Json(()))
}

/// `GET /v1/cluster/tokens`.
async fn tokens(Inject(manager): Injected) -> Json<Vec<TokenView>> {
    Json(manager.leader.control.read(|state| {
        let view = |(id, token): (&String, &Token)| TokenView {
            id: id.clone(),
            role: token.role,
            expires_at: token.expires_at,
            once: token.once,
            created_at: token.created_at,
        };
        state.security.tokens.iter().map(view).collect()
    }))
}

/// `POST /v1/cluster/tokens`.
async fn make_token(Inject(manager): Injected, body: Body<TokenRequest>) -> Reply<TokenText> {
    let Json(request) = body?;
    let life = match request.life {
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds).min(LONGEST)),
        None => Some(TOKEN_LIFE),
    };
    let now = clock::now();
    let (authority, managers) = manager.leader.control.read(|state| {
        let addresses = managers(state).into_iter().map(|manager| manager.address);
        (state.security.authority.clone(), addresses.collect())
    });
    let made = JoinToken::make(request.role, digest(&authority), life, now);
    let token = Token {
        role: request.role,
        digest: made.digest(),
        expires_at: made.expires_at,
        once: request.once,
        created_at: millis(now),
    };
    propose(&manager, SecurityCommand::AddToken { id: made.id.clone(), token, rotate: request.rotate }).await?;
    Ok(Json(TokenText { token: made.to_string(), managers, expires_at: made.expires_at }))
}

/// `?role=`.
#[derive(Debug, Deserialize)]
struct RoleQuery {
    role: Role,
}

/// `DELETE /v1/cluster/tokens`.
async fn revoke_tokens(Inject(manager): Injected, query: Asked<RoleQuery>) -> Reply<()> {
    let Query(RoleQuery { role }) = query?;
    propose(&manager, SecurityCommand::RevokeTokens { role }).await?;
    Ok(Json(()))
}

/// `GET /v1/cluster/clients`.
async fn clients(Inject(manager): Injected) -> Json<Vec<ClientView>> {
    Json(manager.leader.control.read(|state| {
        let view = |(name, client): (&String, &ClientGrant)| ClientView {
            name: name.clone(),
            role: client.role,
            expires_at: client.expires_at,
            created_at: client.created_at,
        };
        state.security.clients.iter().map(view).collect()
    }))
}

/// A name that fits into a certificate and a path.
fn is_plain(name: &str) -> bool {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    !name.is_empty() && name.len() <= 40 && name.chars().all(is_fit)
}

/// `POST /v1/cluster/clients`.
async fn make_client(Inject(manager): Injected, body: Body<ClientRequest>) -> Reply<ClientCertificate> {
    let Json(request) = body?;
    if !is_plain(&request.name) {
        let text = format!("the name `{}` does not fit into a certificate", request.name);
        let hint = "use at most 40 letters, digits, `-`, `_`, `.` and `@`";
        return Err(ErrorDetail::new("invalid", text).with_hint(hint).into());
    }
    if request.role.is_node() {
        let text = format!("a client cannot be a {}", request.role);
        return Err(ErrorDetail::new("invalid", text).with_hint("roles of clients are read, deploy and admin").into());
    }
    let control = &manager.leader.control;
    let (authority, _) = authority(control).map_err(|e| match e {
        renewal::RenewalError::Closed => Refused::from(orch_core::Refusal::from(orch_core::SecurityFault::Closed)),
        other => failed("issue a certificate", &other),
    })?;
    let mut random = [0; 4];
    // Two certificates for one person are two clients: one can be revoked without the other.
    SystemRandom::new().fill(&mut random).map_err(|_| ErrorDetail::new("failed", "no random numbers"))?;
    let name = format!("{}.{}", request.name, hex(&random));
    let life = request.life.map_or(CLIENT_LIFE, Duration::from_secs).min(LONGEST);
    let now = clock::now();
    let (cluster, managers) = control
        .read(|state| (state.cluster.clone(), managers(state).into_iter().map(|manager| manager.address).collect()));
    let subject = Subject { name: name.clone(), role: request.role, cluster };
    let (key, certificate) =
        authority.issue_with_key(&subject, now, life).map_err(|e| failed("issue a certificate", &e))?;
    let expires_at = millis(now + life);
    let client = ClientGrant { role: request.role, expires_at, created_at: millis(now) };
    propose(&manager, SecurityCommand::Grant { name: name.clone(), client }).await?;
    let ca = pem(authority.certificate());
    Ok(Json(ClientCertificate { name, ca, cert: pem(&certificate), key, expires_at, managers }))
}

/// `DELETE /v1/cluster/clients/{name}`.
async fn revoke_client(Inject(manager): Injected, Path(name): Path<String>) -> Reply<()> {
    propose(&manager, SecurityCommand::Revoke { name }).await?;
    Ok(Json(()))
}

/// First two numbers of a version: what must be alike for two nodes to understand each other.
fn generation(version: &str) -> Option<(&str, &str)> {
    let mut parts = version.split('.');
    Some((parts.next()?, parts.next()?))
}

/// `POST /v1/peer/admission`.
async fn admission(Inject(manager): Injected, body: Body<AdmissionRequest>) -> Reply<Admission> {
    let Json(request) = body?;
    let own = &manager.host.version;
    if generation(&request.version) != generation(own) {
        let text = format!("the node runs orch {}, the cluster runs {own}", request.version);
        let hint = "install the cluster's version on the node, or upgrade the cluster first";
        return Err(ErrorDetail::new("conflict", text).with_hint(hint).into());
    }
    let is_id =
        |id: &str| !id.is_empty() && id.len() <= 63 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if !is_id(&request.node) {
        return Err(ErrorDetail::new("invalid", format!("`{}` is no id of a node", request.node)).into());
    }
    entry::check_clock(request.now_ms, clock::now_ms())?;
    let address = entry::place(&request.address, "the node's address")?.to_string();
    let asked = BASE64.decode(&request.request).map_err(|e| failed("read the request for a certificate", &e))?;
    let asked = CertificateSigning::read(&asked).map_err(|e| failed("read the request for a certificate", &e))?;
    let node = NodeId(request.node);
    let candidate = Candidate { node: node.clone(), key: asked.key_digest(), address: address.clone() };
    let digest = secret_digest(&request.secret);
    if let Some(refused) = manager.leader.control.read(|state| taken(state, &request.token, &digest, &candidate)) {
        return Err(refused.into());
    }
    let join = SecurityCommand::Join { token: request.token, digest, candidate };
    propose(&manager, join).await?;
    let control = &manager.leader.control;
    let (cluster, role, managers) = control.read(|state| {
        let role = state.security.members.get(&node).map(|member| member.role);
        (state.cluster.clone(), role, managers(state))
    });
    let role = role.ok_or_else(|| ErrorDetail::new("unavailable", "the node was removed at once"))?;
    let manager_number = if role == Role::Manager { Some(number(&manager, &node, address).await?) } else { None };
    let subject = Subject { name: node.0.clone(), role, cluster: cluster.clone() };
    let (authority, life) = authority(control).map_err(|e| failed("issue a certificate", &e))?;
    let now = clock::now();
    let certificate = authority.issue(&subject, &asked, now, life).map_err(|e| failed("issue a certificate", &e))?;
    tracing::info!(%node, %role, "a node was let in");
    Ok(Json(Admission {
        cluster,
        role: role.to_string(),
        certificate: BASE64.encode(certificate),
        authority: BASE64.encode(authority.certificate()),
        managers,
        manager_number,
        now_ms: millis(now),
    }))
}

/// Why a manager cannot be let in although its token counts: another one has its address. Asked before the token is used.
fn taken(state: &State, token: &str, digest: &str, candidate: &Candidate) -> Option<ErrorDetail> {
    state.security.tokens.get(token).filter(|token| token.digest == digest && token.role == Role::Manager)?;
    let mut managers = state.members.managers.values();
    let has = managers.find(|other| other.address == candidate.address && other.node != candidate.node)?;
    let name = state.nodes.get(&has.node).map_or(has.node.as_str(), |node| node.facts.hostname.as_str());
    let text = format!("manager {name} ({}) has the address {} already", has.node, candidate.address);
    let hint =
        format!("if that is what this host was before it was set up anew: `orch node rm {name}` on a manager first");
    Some(ErrorDetail::new("conflict", text).with_hint(hint))
}

/// The number of a manager in the log, which it is given when it has none.
async fn number(manager: &Manager, node: &NodeId, address: String) -> Result<u64, Refused> {
    let control = &manager.leader.control;
    if let Some(known) = control.read(|state| state.members.id_of(node)) {
        return Ok(known);
    }
    Ok(control.add_manager(node.clone(), address).await?.id)
}

/// `POST /v1/peer/readmission`: the manager that asks has lost what it had promised. Its number goes, which takes a majority of those who
/// vote without it, and it gets another. Asked again, because the answer was lost, it gets the same: nobody has begun with that one yet.
/// Only the leader answers, and nobody passes it on: what is passed on comes in the name of the one who does.
async fn readmission(
    Inject(manager): Injected,
    Extension(admitted): Extension<Admitted>,
    body: Body<ReadmissionRequest>,
) -> Reply<Readmission> {
    let Json(ReadmissionRequest { former }) = body?;
    let node = NodeId(admitted.name);
    let control = &manager.leader.control;
    if !control.leadership().borrow().is_leader {
        return Err(ErrorDetail::new("unavailable", "this manager does not lead").into());
    }
    control.read_index().await?;
    let (cluster, address, present) = control.read(|state| {
        let member = state.security.members.get(&node).filter(|member| member.role == Role::Manager);
        (state.cluster.clone(), member.map(|member| member.address.clone()), state.members.id_of(&node))
    });
    let Some(address) = address else {
        return Err(ErrorDetail::new("conflict", format!("node {node} is no manager of this cluster")).into());
    };
    if present == Some(former) {
        control.remove_manager(&node).await?;
        tracing::warn!(%node, former, "a manager has lost its control log and takes part as another");
    }
    let manager_number = number(&manager, &node, address).await?;
    Ok(Json(Readmission { node: node.0, manager_number, cluster }))
}

/// `POST /v1/peer/certificate`: for the node that asks, and for the key that the cluster knows it by.
async fn certificate(
    Inject(manager): Injected,
    Extension(admitted): Extension<Admitted>,
    body: Body<CertificateRequest>,
) -> Reply<CertificateAnswer> {
    let Json(request) = body?;
    let asked = BASE64.decode(&request.request).map_err(|e| failed("read the request for a certificate", &e))?;
    let asked = CertificateSigning::read(&asked).map_err(|e| failed("read the request for a certificate", &e))?;
    if asked.key_digest() != admitted.key {
        let text = format!("node {} asks for a certificate for another key", admitted.name);
        return Err(ErrorDetail::new("forbidden", text).into());
    }
    let node = NodeId(admitted.name.clone());
    let control = &manager.leader.control;
    let found = control.read(|state| {
        let member = state.security.members.get(&node)?;
        Some((state.cluster.clone(), member.role, state.members.id_of(&node)))
    });
    let (cluster, role, number) =
        found.ok_or_else(|| ErrorDetail::new("forbidden", format!("node {node} is not a member")))?;
    let (authority, life) = authority(control).map_err(|e| failed("issue a certificate", &e))?;
    let subject = Subject { name: admitted.name, role, cluster };
    let issued = authority.issue(&subject, &asked, clock::now(), life);
    let issued = issued.map_err(|e| failed("issue a certificate", &e))?;
    let manager_number = number.filter(|_| role == Role::Manager);
    Ok(Json(CertificateAnswer { certificate: BASE64.encode(issued), role: role.to_string(), manager_number }))
}

/// `?force=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DepartureQuery {
    force: bool,
}

/// `POST /v1/peer/departure`: the node that says so leaves for good.
async fn departure(
    Inject(manager): Injected,
    Extension(admitted): Extension<Admitted>,
    query: Asked<DepartureQuery>,
) -> Reply<()> {
    let Query(DepartureQuery { force }) = query?;
    let node = NodeId(admitted.name);
    let (volumes, hostname) = manager.leader.control.read(|state| {
        let hostname = state.nodes.get(&node).map_or_else(|| node.0.clone(), |known| known.facts.hostname.clone());
        (state.only_copies(&node), hostname)
    });
    if !force && !volumes.is_empty() {
        return Err(Refusal::OnlyCopy { node: hostname, volumes }.into());
    }
    manager.leader.propose(Command::Security(SecurityCommand::Remove { node })).await?;
    Ok(Json(()))
}

/// `?number=&since=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SessionQuery {
    number: u64,
    since: u64,
}

/// `POST /v1/peer/session`.
async fn open_session(
    Inject(manager): Injected,
    Extension(admitted): Extension<Admitted>,
    query: Asked<SessionQuery>,
    mut request: Request,
) -> Result<Response, Refused> {
    let Query(SessionQuery { number, since }) = query?;
    let last = manager.leader.control.read(|state| session::heard(state, &NodeId(admitted.name.clone())).session);
    if number > 0 && number <= last {
        let mut detail = ErrorDetail::new("superseded", "this node has had a later session");
        detail.subjects = Box::new([last.to_string()]);
        return Err(detail.into());
    }
    let upgraded = upgrade(&mut request, SESSION)?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let connection = hyper_util::rt::TokioIo::new(upgraded);
            session::serve(manager.leader.clone(), admitted, number, since, connection).await;
        }
    });
    Ok(switching(SESSION).into_response())
}

/// `POST /v1/peer/heartbeat`.
async fn open_heartbeat(
    Inject(manager): Injected,
    Extension(admitted): Extension<Admitted>,
    mut request: Request,
) -> Result<Response, Refused> {
    let upgraded = upgrade(&mut request, HEARTBEAT)?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let connection = hyper_util::rt::TokioIo::new(upgraded);
            let (leader, pulse) = (manager.leader.clone(), manager.pulse.clone());
            heartbeat::answer(leader, pulse, NodeId(admitted.name), connection).await;
        }
    });
    Ok(switching(HEARTBEAT).into_response())
}

/// `POST /v1/peer/raft`.
async fn open_raft(
    Inject(manager): Injected,
    Extension(admitted): Extension<Admitted>,
    mut request: Request,
) -> Result<Response, Refused> {
    let upgraded = upgrade(&mut request, RAFT)?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let connection = hyper_util::rt::TokioIo::new(upgraded);
            let Leader { peers, control, .. } = manager.leader.clone();
            transport::receive(peers, control, NodeId(admitted.name), connection).await;
        }
    });
    Ok(switching(RAFT).into_response())
}

/// `POST /v1/peer/proposal`.
async fn proposal(Inject(manager): Injected, body: Body<Command>) -> Reply<IndexResponse> {
    let Json(command) = body?;
    let (index, _) = manager.leader.control.propose(command).await?;
    Ok(Json(IndexResponse { index }))
}

/// `POST /v1/peer/addresses/{name}`.
async fn reserve(
    Inject(manager): Injected,
    Extension(admitted): Extension<Admitted>,
    Path(name): Path<String>,
    body: Body<AddressRequest>,
) -> Reply<AddressResponse> {
    let Json(request) = body?;
    let node = Some(NodeId(admitted.name));
    Ok(Json(super::reserve_address(&manager.leader.control, name, node, request).await?))
}

/// `?holder=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HolderQuery {
    holder: String,
}

/// `DELETE /v1/peer/addresses/{name}`.
async fn release(Inject(manager): Injected, Path(name): Path<String>, query: Asked<HolderQuery>) -> Reply<()> {
    let Query(HolderQuery { holder }) = query?;
    super::release_address(&manager.leader.control, name, holder).await?;
    Ok(Json(()))
}

/// What handlers of a worker need.
#[derive(Clone)]
pub struct Worker {
    /// Its process.
    pub host: Host,
    /// What it has heard.
    pub knowledge: Knowledge,
}

/// Routes of a worker: about itself; everything else is answered by saying where the managers are.
pub fn worker_routes(worker: Worker) -> Router {
    let elsewhere = [
        "/v1/stacks",
        "/v1/tasks",
        "/v1/services",
        "/v1/networks",
        "/v1/volumes",
        "/v1/secrets",
        "/v1/configs",
        "/v1/nodes",
        "/v1/events",
    ];
    let mut router = Router::new()
        .route("/v1/cluster", get(view_of_worker))
        .route("/v1/cluster/init", post(refuse))
        .route("/v1/cluster/join", post(join_of_worker))
        .route("/v1/cluster/leave", post(leave_of_worker))
        .route("/v1/cluster/tokens", get(refuse).post(refuse).delete(refuse))
        .route("/v1/cluster/clients", get(refuse).post(refuse));
    for path in elsewhere {
        router = router.route(path, axum::routing::any(refuse));
        if path != "/v1/events" {
            router = router.route(&format!("{path}/{{*rest}}"), axum::routing::any(refuse));
        }
    }
    router.with_state(Arc::new(worker))
}

async fn refuse(Inject(worker): Inject<Arc<Worker>>) -> Refused {
    let managers = worker.host.peers.membership().borrow().as_ref().map(|m| m.managers.clone()).unwrap_or_default();
    let addresses: Vec<String> = managers.into_iter().map(|manager| manager.address).collect();
    let text = "this host is a worker of a cluster: only managers know its stacks";
    let hint = format!("say it on a manager ({}), or with --host ssh://MANAGER", addresses.join(", "));
    ErrorDetail::new("forbidden", text).with_hint(hint).into()
}

async fn view_of_worker(Inject(worker): Inject<Arc<Worker>>) -> Json<ClusterView> {
    let peers = &worker.host.peers;
    let Some(membership) = peers.membership().borrow().clone() else { return Json(ClusterView::default()) };
    let view = |manager: &crate::identity::ManagerAddress| PeerView {
        node: manager.node.0.clone(),
        role: Role::Manager.to_string(),
        address: manager.address.clone(),
    };
    let authority = peers.identity().credentials().ok().flatten().map(|own| hex(&digest(&own.authority)));
    let leader = worker.knowledge.leader.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    Json(ClusterView {
        id: membership.cluster,
        open: true,
        node: peers.node().0.clone(),
        role: membership.role.to_string(),
        address: membership.advertise,
        leader,
        term: 0,
        managers: membership.managers.iter().map(view).collect(),
        voters: Vec::new(),
        members: Vec::new(),
        authority: authority.unwrap_or_default(),
        certificate_until: peers.certificate().map(|certificate| millis(certificate.not_after)),
        connected: *worker.knowledge.connected.borrow(),
        removed: peers.is_removed(),
    })
}

async fn join_of_worker(Inject(worker): Inject<Arc<Worker>>, body: Body<JoinRequest>) -> Reply<Joined> {
    let Json(request) = body?;
    Ok(Json(entry::join(&worker.host, None, &request).await?))
}

async fn leave_of_worker(Inject(worker): Inject<Arc<Worker>>, body: Body<LeaveRequest>) -> Reply<()> {
    let Json(LeaveRequest { force }) = body?;
    match depart(&worker.host, force).await {
        Err(detail) if !force => return Err(detail.into()),
        _ => {}
    }
    entry::mark_left(&worker.host)?;
    worker.host.restart.notify_one();
    Ok(Json(()))
}

/// Tells any manager that this node leaves.
async fn depart(host: &Host, force: bool) -> Result<(), ErrorDetail> {
    let peers = &host.peers;
    let managers = peers.membership().borrow().as_ref().map(|m| m.managers.clone()).unwrap_or_default();
    let mut why = ErrorDetail::new("unavailable", "no manager could be told: none is known");
    for manager in managers.into_iter().filter(|manager| manager.node != *peers.node()) {
        let name = orch_api::tls::node_name(&manager.node.0);
        let path = format!("/v1/peer/departure?force={force}");
        match peers.post(&manager.address, &name, &path, Vec::new()).await {
            Ok(_) => return Ok(()),
            // It has gone already, and only does not know.
            Err(CallError::Refused(detail)) if detail.code == REMOVED => return Ok(()),
            Err(CallError::Refused(detail)) if detail.code == "in_use" => return Err(detail),
            Err(error) => {
                let text = format!("no manager could be told: {}: {}", manager.address, chain(&error));
                why = ErrorDetail::new("unavailable", text);
            }
        }
    }
    Err(why.with_hint("`--force` leaves all the same"))
}
