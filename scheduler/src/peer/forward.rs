//! Passing on to the leader what only it can answer: whoever asks a manager gets an answer, whichever manager it is.
//!
//! A change is passed on as a whole, by the manager's own certificate: the guard here has seen that the caller may ask. It is asked for again,
//! under the number that it had ([`request`](crate::request)), until a leader has answered: neither a leader that dies with the answer nor
//! one that hands over is the caller's business. What is read comes from this manager's state, as soon as that has everything that was
//! acknowledged anywhere; while too few managers reach each other, as it is, labelled with its index.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Inject};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use orch_api::client::STALE;
use orch_api::cluster::PeerView;
use orch_api::error::{ErrorBody, ErrorDetail, LEADER_CHANGED};
use orch_api::tls::node_name;
use orch_core::{Command, State};
use orch_spec::assignment::NodeId;

use super::guard::Admitted;
use super::{CallError, Peers};
use crate::control::{Control, Leadership, ProposeError};
use crate::request::{self, Number};
use crate::server::{NO_LEADER, Refused};

/// Says that a manager has passed a request on: it goes no further.
const FORWARDED: &str = "orch-forwarded";
/// The number of a request, as managers tell each other.
const NUMBER: &str = "orch-request-number";
/// By which a caller may call its request, so that it can ask again, any manager, when it has had no answer: what is done is done once.
/// A minute later, or after thousands of other requests, it is forgotten.
pub const REQUEST: &str = "orch-request";
/// How long a request waits for a leader: an election takes about a second.
const ELECTION: Duration = Duration::from_secs(8);
/// How long a request may be asked for again in all: well below the time for which it is remembered.
const GIVE_UP: Duration = Duration::from_secs(40);
/// A leader that worked on a request for longer and then was none any more: the time for the next one begins anew.
const LONG: Duration = Duration::from_secs(1);
/// How long a leader is waited for whom this manager does not hear as one any more and hears no other: it may be working on the very request
/// that has taken this manager out of the log.
const UNHEARD: Duration = Duration::from_secs(4);
/// How long connecting to the leader may take.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// How long a command that may be repeated may take.
const PROPOSE_TIME: Duration = Duration::from_secs(4);
/// How often to look for a leader, and to ask again.
const LOOK: Duration = Duration::from_millis(50);
/// How long a read waits for a leader, which says how far the log is: an election takes about a second.
const LEADERLESS: Duration = Duration::from_secs(2);
/// Largest body that is passed on: the API's bound, and as much for what JSON adds.
const BODY: usize = 16 << 20;

/// Where the leader is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// This manager leads.
    Here,
    /// Another one does.
    There(PeerView),
    /// None does, as far as this one knows.
    Nowhere,
}

/// The way to the leader. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leader {
    /// This manager.
    pub control: Control,
    /// Its connections.
    pub peers: Peers,
}

/// All managers with their addresses.
pub fn managers(state: &State) -> Vec<PeerView> {
    let view = |(id, member): (&NodeId, &orch_core::security::Member)| PeerView {
        node: id.0.clone(),
        role: member.role.to_string(),
        address: member.address.clone(),
    };
    state.security.managers().map(view).collect()
}

/// Where the leader is, by a state.
pub(super) fn place_in(state: &State, leadership: &Leadership) -> Place {
    match &leadership.leader {
        _ if leadership.is_leader => Place::Here,
        Some(leader) => {
            let found = managers(state).into_iter().find(|manager| manager.node == leader.0);
            found.map_or(Place::Nowhere, Place::There)
        }
        // A host alone leads itself, and needs no election.
        None if state.members.managers.len() <= 1 && !state.security.is_open() => Place::Here,
        None => Place::Nowhere,
    }
}

impl Leader {
    /// Where the leader is.
    pub fn place(&self) -> Place {
        let leadership = self.control.leadership().borrow().clone();
        self.control.read(|state| place_in(state, &leadership))
    }

    /// Proposes a command wherever the leader is, until it is taken or refused. For commands that may be repeated.
    ///
    /// # Errors
    /// What the state machine has against it, or `unavailable`.
    pub async fn propose(&self, command: Command) -> Result<(), ErrorDetail> {
        self.propose_at(command, |place| place).await
    }

    /// The same by another manager: this one does not lead, or must not.
    ///
    /// # Errors
    /// See [`Leader::propose`].
    pub async fn propose_elsewhere(&self, command: Command) -> Result<(), ErrorDetail> {
        // A removed replica may never hear who leads now: any other manager passes it on.
        let node = self.peers.node().clone();
        let mut others = self.control.read(managers);
        others.retain(|manager| manager.node != node.0);
        let mut turn = 0;
        self.propose_at(command, |_| {
            turn += 1;
            others.get(turn % others.len().max(1)).cloned().map_or(Place::Nowhere, Place::There)
        })
        .await
    }

    async fn propose_at(&self, command: Command, mut choose: impl FnMut(Place) -> Place) -> Result<(), ErrorDetail> {
        let until = Instant::now() + ELECTION;
        let mut last = ErrorDetail::new("unavailable", "the cluster has no leader now");
        loop {
            match choose(self.place()) {
                Place::Here => match self.control.propose(command.clone()).await {
                    Ok(_) => return Ok(()),
                    Err(error @ (ProposeError::NotLeader { .. } | ProposeError::Unknown)) => {
                        last = Refused::from(error).into_detail();
                    }
                    Err(error) => return Err(Refused::from(error).into_detail()),
                },
                Place::There(leader) => {
                    let body = serde_json::to_vec(&command)
                        .map_err(|e| ErrorDetail::new("failed", format!("the command cannot be sent: {e}")))?;
                    let name = node_name(&leader.node);
                    let posting = self.peers.post(&leader.address, &name, "/v1/peer/proposal", body);
                    match tokio::time::timeout(PROPOSE_TIME, posting).await {
                        Ok(Ok(_)) => return Ok(()),
                        Ok(Err(CallError::Refused(detail))) if !is_transient(&detail) => return Err(detail),
                        Ok(Err(CallError::Refused(detail))) => last = detail,
                        Ok(Err(error)) => last = unreachable(&leader, &error),
                        Err(_) => last = unreachable(&leader, &too_late().into()),
                    }
                }
                Place::Nowhere => {}
            }
            if Instant::now() > until {
                return Err(given_up(last));
            }
            self.look().await;
        }
    }
}

fn unreachable(leader: &PeerView, error: &CallError) -> ErrorDetail {
    let text = format!(
        "the leader {} at {} cannot be reached: {}",
        leader.node,
        leader.address,
        orch_api::error::chain(error)
    );
    changed(text)
}

fn too_late() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer")
}

/// What may be asked of another leader.
fn changed(text: impl Into<String>) -> ErrorDetail {
    ErrorDetail::new(LEADER_CHANGED, text).with_hint(NO_LEADER)
}

fn is_transient(detail: &ErrorDetail) -> bool {
    matches!(detail.code.as_str(), "unavailable" | LEADER_CHANGED)
}

/// What a caller hears in the end.
fn given_up(detail: ErrorDetail) -> ErrorDetail {
    if detail.code == LEADER_CHANGED { ErrorDetail { code: "unavailable".to_owned(), ..detail } } else { detail }
}

/// Puts the way to the leader before routes that only the leader can answer.
pub fn to_leader(router: Router, leader: Leader) -> Router {
    router.route_layer(from_fn_with_state(leader, pass))
}

async fn pass(Inject(leader): Inject<Leader>, request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return leader.read(request, next).await;
    }
    let forwarded = request.headers().contains_key(FORWARDED);
    let number = number(&request);
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, BODY).await {
        Ok(body) => body,
        Err(e) => {
            let text = format!("the request could not be read: {e}");
            return Refused::from(ErrorDetail::new("too_large", text)).into_response();
        }
    };
    let change = Change { number, parts, body, next };
    if forwarded {
        return match leader.place() {
            Place::Here => change.carry_out().await.unwrap_or_else(|again| Refused::from(again).into_response()),
            // Whoever has sent it asks the next one.
            _ => Refused::from(changed("the leader has changed while the request was under way")).into_response(),
        };
    }
    leader.carry_out(&change).await
}

/// What the request is known by: its caller's word, what the manager says that has passed it on, or anything new.
fn number(request: &Request) -> Number {
    let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    let forwarded = header(NUMBER).filter(|_| request.headers().contains_key(FORWARDED));
    let told = forwarded.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let named = || {
        let caller = request.extensions().get::<Admitted>().map_or("", |caller| caller.name.as_str());
        header(REQUEST).map(|word| Number::named(caller, word))
    };
    told.or_else(named).unwrap_or_else(Number::new)
}

/// A change that may be asked for more than once.
struct Change {
    number: Number,
    parts: Parts,
    body: Bytes,
    next: Next,
}

impl Change {
    /// Here. The error is what another leader may be asked. What has begun goes on to its end also when whoever asked is gone: several
    /// commands may follow each other, and half of them is no state that anybody wants.
    async fn carry_out(&self) -> Result<Response, ErrorDetail> {
        let request = Request::from_parts(self.parts.clone(), Body::from(self.body.clone()));
        let carrying_out = tokio::spawn(request::within(self.number, self.next.clone().run(request)));
        match carrying_out.await {
            Ok(response) => judged(response).await,
            Err(_) => {
                Ok(Refused::from(ErrorDetail::new("failed", "the request broke off inside the agent")).into_response())
            }
        }
    }

    /// By that leader, as long as it is the one.
    async fn pass_on(&self, leader: &Leader, to: &PeerView) -> Result<Response, ErrorDetail> {
        let mut leadership = leader.control.leadership();
        let deposed = async {
            loop {
                let gone =
                    leadership.wait_for(|now| now.leader.as_ref().is_none_or(|leader| leader.0 != to.node)).await;
                if gone.is_ok_and(|now| now.leader.is_some()) {
                    return;
                }
                let known = leadership.wait_for(|now| now.leader.is_some());
                if tokio::time::timeout(UNHEARD, known).await.is_err() {
                    return;
                }
            }
        };
        let asking = async {
            let name = node_name(&to.node);
            let connecting = leader.peers.connect(&to.address, &name);
            let stream = tokio::time::timeout(CONNECT_TIME, connecting).await.unwrap_or_else(|_| Err(too_late()));
            let stream = stream.map_err(|error| unreachable(to, &error.into()))?;
            match self.relay(stream).await {
                Ok(response) => judged(response).await,
                Err(error) => Err(changed(format!("the connection to the leader {} broke: {error}", to.node))),
            }
        };
        tokio::select! {
            answer = asking => answer,
            // One that is cut off or stands still never answers.
            () = deposed => {
                Err(changed(format!("manager {} led the cluster and does not any more", to.node)))
            }
        }
    }

    async fn relay(&self, stream: impl orch_api::client::Connection + 'static) -> Result<Response, axum::Error> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(axum::Error::new)?;
        tokio::spawn(connection);
        let mut request = hyper::Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("orch"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(FORWARDED, HeaderValue::from_static("1"));
        if let Ok(number) = HeaderValue::from_str(&self.number.to_string()) {
            headers.insert(NUMBER, number);
        }
        let (parts, body) = sender.send_request(request).await.map_err(axum::Error::new)?.into_parts();
        // All of it: half an answer is none.
        let body = to_bytes(Body::new(body), BODY).await?;
        Ok(Response::from_parts(parts, Body::from(body)))
    }
}

/// Tells an answer from what only says that another one must be asked.
async fn judged(response: Response) -> Result<Response, ErrorDetail> {
    if response.status() != StatusCode::SERVICE_UNAVAILABLE {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, BODY).await.unwrap_or_default();
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { error }) if error.code == LEADER_CHANGED => Err(error),
        _ => Ok(Response::from_parts(parts, Body::from(body))),
    }
}

impl Leader {
    /// Waits a moment, or until the leadership changes.
    async fn look(&self) {
        let mut leadership = self.control.leadership();
        let _ = tokio::time::timeout(LOOK, leadership.changed()).await;
    }

    /// Has a change carried out once by whoever leads, and answers.
    async fn carry_out(&self, change: &Change) -> Response {
        let begin = Instant::now();
        let mut until = begin + ELECTION;
        let nobody = "the cluster has no leader: too few of its managers reach each other";
        let mut asked_somebody = false;
        let mut last = changed(nobody);
        loop {
            let asked = Instant::now();
            let answer = match self.place() {
                Place::Here => Some(change.carry_out().await),
                Place::There(place) => Some(change.pass_on(self, &place).await),
                Place::Nowhere => None,
            };
            match answer {
                Some(Ok(response)) => return response,
                Some(Err(again)) => (last, asked_somebody) = (again, true),
                None if asked_somebody => last = changed(format!("{nobody}; the change may have been made or not")),
                None => {}
            }
            let now = Instant::now();
            if now.duration_since(asked) > LONG {
                until = (now + ELECTION).min(begin + GIVE_UP);
            }
            if now > until {
                return Refused::from(given_up(last)).into_response();
            }
            self.look().await;
        }
    }

    /// Reads this manager's state when it is up to date; as it is, and saying so, when no leader says how far the log is.
    async fn read(&self, request: Request, next: Next) -> Response {
        let mut leadership = self.control.leadership();
        let leaderless = async {
            loop {
                let _ = leadership.wait_for(|now| now.leader.is_none()).await;
                let elected = leadership.wait_for(|now| now.leader.is_some());
                if tokio::time::timeout(LEADERLESS, elected).await.is_err() {
                    return false;
                }
            }
        };
        let current = async {
            // It is given up when a leader changes, and asked again.
            while self.control.read_index().await.is_err() {
                self.look().await;
            }
            true
        };
        let patience = tokio::time::sleep(ELECTION);
        let is_current = !self.control.is_gone()
            && tokio::select! {
                is_current = current => is_current,
                is_current = leaderless => is_current,
                () = patience => false,
            };
        let index = self.control.read(|state| state.index);
        let mut response = next.run(request).await;
        if !is_current {
            response.headers_mut().insert(STALE, HeaderValue::from(index));
        }
        response
    }
}
