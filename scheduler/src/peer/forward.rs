//! Passing on to the leader what only it can answer: whoever asks a manager gets an answer, whichever manager it is.
//!
//! A request is passed on as a whole, by the manager's own certificate: the guard here has seen that the caller may ask. While there is no
//! leader a change waits a moment for one, and what is read comes from this manager's state, labelled with its index.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Inject};
use axum::http::{HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use orch_api::cluster::PeerView;
use orch_api::error::ErrorDetail;
use orch_api::tls::node_name;
use orch_core::{Command, State};
use orch_spec::assignment::NodeId;

use super::{CallError, Peers};
use crate::control::{Control, ProposeError};
use crate::server::Refused;

/// Says that a manager has passed a request on: it goes no further.
const FORWARDED: &str = "orch-forwarded";
/// Says that an answer comes from a state that may be behind, and which.
pub const STALE: &str = "orch-stale-index";
/// How long a request waits for a leader: an election takes about a second.
const ELECTION: Duration = Duration::from_secs(8);
/// How often to look for one.
const LOOK: Duration = Duration::from_millis(50);
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

impl Leader {
    /// Where the leader is.
    pub fn place(&self) -> Place {
        let leadership = self.control.leadership().borrow().clone();
        if leadership.is_leader {
            return Place::Here;
        }
        self.control.read(|state| match &leadership.leader {
            Some(leader) => {
                let found = managers(state).into_iter().find(|manager| manager.node == leader.0);
                found.map_or(Place::Nowhere, Place::There)
            }
            // A host alone leads itself, and needs no election.
            None if state.members.managers.len() <= 1 && !state.security.is_open() => Place::Here,
            None => Place::Nowhere,
        })
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
                    match self.peers.post(&leader.address, &name, "/v1/peer/proposal", body).await {
                        Ok(_) => return Ok(()),
                        Err(CallError::Refused(detail)) if detail.code != "unavailable" => return Err(detail),
                        Err(CallError::Refused(detail)) => last = detail,
                        Err(error) => last = unreachable(&leader, &error),
                    }
                }
                Place::Nowhere => {}
            }
            if Instant::now() > until {
                return Err(last);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn unreachable(leader: &PeerView, error: &CallError) -> ErrorDetail {
    let text =
        format!("the leader {} at {} cannot be reached: {}", leader.node, leader.address, crate::driver::chain(error));
    ErrorDetail::new("unavailable", text)
}

/// Puts the way to the leader before routes that only the leader can answer.
pub fn to_leader(router: Router, leader: Leader) -> Router {
    router.route_layer(from_fn_with_state(leader, pass))
}

async fn pass(Inject(leader): Inject<Leader>, request: Request, next: Next) -> Response {
    if leader.place() == Place::Here {
        return next.run(request).await;
    }
    let unavailable = |text: &str| {
        let hint = "containers run on; try again when most of the managers reach each other: `orch cluster info`";
        Refused::from(ErrorDetail::new("unavailable", text).with_hint(hint)).into_response()
    };
    if request.headers().contains_key(FORWARDED) {
        return unavailable("the leader has changed while the request was under way");
    }
    let until = Instant::now() + ELECTION;
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, BODY).await {
        Ok(body) => body,
        Err(e) => {
            let text = format!("the request could not be read: {e}");
            return Refused::from(ErrorDetail::new("too_large", text)).into_response();
        }
    };
    let rebuilt = |parts: axum::http::request::Parts| Request::from_parts(parts, Body::from(body.clone()));
    loop {
        match leader.place() {
            Place::Here => return next.run(rebuilt(parts)).await,
            Place::There(place) => match leader.peers.connect(&place.address, &node_name(&place.node)).await {
                Ok(stream) => {
                    return relay(stream, &parts, body.clone()).await.unwrap_or_else(|error| {
                        let text = format!("the connection to the leader {} broke: {error}", place.node);
                        unavailable(&(text + "; whether the change was carried out is not known"))
                    });
                }
                // It may have died just now; nothing was sent, so there is time to look for the next one.
                Err(error) if Instant::now() > until => {
                    return Refused::from(unreachable(&place, &error.into())).into_response();
                }
                Err(_) => {}
            },
            Place::Nowhere if parts.method == Method::GET => {
                let index = leader.control.read(|state| state.index);
                let mut response = next.run(rebuilt(parts)).await;
                response.headers_mut().insert(STALE, HeaderValue::from(index));
                return response;
            }
            Place::Nowhere if Instant::now() > until => {
                return unavailable("the cluster has no leader: too few of its managers reach each other");
            }
            Place::Nowhere => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn relay(
    stream: impl orch_api::client::Connection + 'static,
    parts: &axum::http::request::Parts,
    body: Bytes,
) -> Result<Response, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = hyper::Request::new(Full::new(body));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("orch"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(FORWARDED, HeaderValue::from_static("1"));
    let response = sender.send_request(request).await?;
    Ok(response.map(Body::new))
}
