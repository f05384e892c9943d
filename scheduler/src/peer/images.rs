//! Who has an image, and the way to its blobs: a manager asks nodes directly, a worker asks a manager.
//!
//! Who has what is in no state: it changes without anybody saying so, and asking costs less than being told. Nodes whose containers run an
//! image have it for sure, so they are asked first.
//!
//! A worker may have the images of its own tasks and no others, and only managers know which these are; so they pass on to it what other
//! nodes give. Workers serve managers only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State as Inject};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use futures_util::future::join_all;
use orch_api::client::{Client, escape};
use orch_api::error::{ErrorDetail, chain};
use orch_api::image::{Holder, Holders, NamedImage};
use orch_api::tls::node_name;
use orch_core::{NodeState, State};
use orch_spec::assignment::NodeId;
use orch_spec::role::Role;
use serde::Deserialize;

use super::forward::Leader;
use super::guard::Admitted;
use super::relay::relay;
use crate::server::{Refused, Reply};

/// How long a node may take to say whether it has an image.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Nodes asked at once: in a large cluster the first few that have it are enough.
const ASKED_AT_ONCE: usize = 16;
/// Holders that are enough to go on with.
const ENOUGH: usize = 3;

/// A node as it is reached.
#[derive(Debug, Clone)]
struct Way {
    holder: Holder,
    address: String,
    ready: bool,
}

impl Way {
    fn client(&self, leader: &Leader) -> Option<Client> {
        leader.peers.endpoint(&self.address, &node_name(&self.holder.node.0)).map(Client::new)
    }
}

fn way(state: &State, node: &NodeId) -> Option<Way> {
    let address = state.security.members.get(node)?.address.clone();
    let known = state.nodes.get(node);
    let hostname = known.map(|known| known.facts.hostname.clone()).filter(|name| !name.is_empty());
    let ready = known.is_some_and(|known| known.state == NodeState::Ready);
    Some(Way {
        holder: Holder { hostname: hostname.unwrap_or_else(|| node.0.clone()), node: node.clone() },
        address,
        ready,
    })
}

/// Everybody but one: those that run the image first, and each asker in another order, so that not all ask the same.
fn candidates(state: &State, image: &str, asker: &NodeId) -> Vec<Way> {
    let runs = |node: &NodeId| {
        let tasks = state.nodes.get(node).map(|known| known.tasks.iter());
        tasks.into_iter().flatten().filter_map(|id| state.tasks.get(id)).any(|task| task.status.image_id == image)
    };
    let others = state.security.members.keys().filter(|node| *node != asker);
    let mut ways: Vec<(bool, bool, u32, Way)> = others
        .filter_map(|node| way(state, node))
        .map(|way| {
            let turn = crc32c::crc32c(format!("{asker} {}", way.holder.node).as_bytes());
            (!way.ready, !runs(&way.holder.node), turn, way)
        })
        .collect();
    ways.sort_by_key(|(unready, idle, turn, _)| (*unready, *idle, *turn));
    ways.into_iter().map(|(.., way)| way).collect()
}

/// What references name on these nodes; `None` for one that does not answer.
async fn ask(
    leader: &Leader,
    ways: &[Way],
    references: &[String],
) -> Vec<Option<BTreeMap<String, Option<NamedImage>>>> {
    let names: Vec<String> = references.iter().map(|name| format!("name={}", escape(name))).collect();
    let path = format!("/v1/images/resolve?{}", names.join("&"));
    let asking = ways.iter().map(|way| {
        let (client, path) = (way.client(leader), path.clone());
        async move {
            let answer = async { client?.get(&path).await.ok() };
            tokio::time::timeout(ANSWER_TIME, answer).await.ok().flatten()
        }
    });
    join_all(asking).await
}

/// What references name on the other nodes that are ready: the image that got the name last, wherever that was.
pub async fn resolve(leader: &Leader, references: &[String]) -> BTreeMap<String, NamedImage> {
    let own = leader.peers.node().clone();
    let ways: Vec<Way> = leader.control.read(|state| {
        let others = state.security.members.keys().filter(|node| **node != own);
        others.filter_map(|node| way(state, node)).filter(|way| way.ready).collect()
    });
    let mut found: BTreeMap<String, NamedImage> = BTreeMap::new();
    for (reference, named) in ask(leader, &ways, references).await.into_iter().flatten().flatten() {
        let Some(named) = named else { continue };
        if found.get(&reference).is_none_or(|known| known.since < named.since) {
            found.insert(reference, named);
        }
    }
    found
}

/// Who else than the asker has an image.
pub async fn holders(leader: &Leader, image: &str, asker: &NodeId) -> Holders {
    let ways = leader.control.read(|state| candidates(state, image, asker));
    let mut holders = Holders { alone: ways.is_empty(), ..Holders::default() };
    let reference = [image.to_owned()];
    for some in ways.chunks(ASKED_AT_ONCE) {
        for (way, answer) in some.iter().zip(ask(leader, some, &reference).await) {
            match answer.map(|mut named| named.remove(image).flatten()) {
                Some(Some(_)) => holders.have.push(way.holder.clone()),
                Some(None) => {}
                None => holders.silent.push(way.holder.hostname.clone()),
            }
        }
        if holders.have.len() >= ENOUGH {
            break;
        }
    }
    holders
}

/// A client of the node that gives.
///
/// # Errors
/// When it is no member any more.
pub fn giver(leader: &Leader, node: &NodeId) -> Result<Client, ErrorDetail> {
    let way = leader.control.read(|state| way(state, node));
    let client = way.and_then(|way| way.client(leader));
    client.ok_or_else(|| ErrorDetail::new("not_found", format!("no such node: {node}")))
}

/// Path of an offer on the node that gives it.
pub fn offer_path(image: &str) -> String {
    format!("/v1/images/offer?name={}", escape(image))
}

/// Path of a blob on the node that gives it.
pub fn blob_path(image: &str, digest: &str, offset: u64) -> String {
    format!("/v1/images/blobs/{}?image={}&offset={offset}", escape(digest), escape(image))
}

/// Routes by which workers get images.
pub fn routes(leader: Leader) -> Router {
    Router::new()
        .route("/v1/peer/images/{id}", get(who))
        .route("/v1/peer/images/{id}/offer", get(offer))
        .route("/v1/peer/images/{id}/blobs/{digest}", get(blob))
        .with_state(Arc::new(leader))
}

type Injected = Inject<Arc<Leader>>;

/// Whether somebody may have an image: a worker only for a task that was given to it.
fn may_have(state: &State, admitted: &Admitted, image: &str) -> bool {
    let node = NodeId(admitted.name.clone());
    let tasks = state.nodes.get(&node).map(|known| known.tasks.iter()).into_iter().flatten();
    let mut tasks = tasks.filter_map(|id| state.tasks.get(id));
    admitted.role == Role::Manager || tasks.any(|task| task.image_id == image && task.told.is_some())
}

fn admit(leader: &Leader, admitted: Option<Extension<Admitted>>, image: &str) -> Result<NodeId, Refused> {
    let Some(Extension(admitted)) = admitted else {
        return Err(ErrorDetail::new("unauthenticated", "this is for nodes of a cluster").into());
    };
    if leader.control.read(|state| may_have(state, &admitted, image)) {
        return Ok(NodeId(admitted.name));
    }
    Err(ErrorDetail::new("forbidden", format!("no task of this node needs image {image}")).into())
}

/// `GET /v1/peer/images/{id}`.
async fn who(
    Inject(leader): Injected,
    admitted: Option<Extension<Admitted>>,
    Path(image): Path<String>,
) -> Reply<Holders> {
    let asker = admit(&leader, admitted, &image)?;
    Ok(Json(holders(&leader, &image, &asker).await))
}

/// `?node=&offset=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GiverQuery {
    node: String,
    offset: u64,
}

/// `GET /v1/peer/images/{id}/offer?node=`.
async fn offer(
    Inject(leader): Injected,
    admitted: Option<Extension<Admitted>>,
    Path(image): Path<String>,
    Query(query): Query<GiverQuery>,
) -> Result<Response, Refused> {
    admit(&leader, admitted, &image)?;
    pass(&leader, &NodeId(query.node), &offer_path(&image)).await
}

/// `GET /v1/peer/images/{id}/blobs/{digest}?node=&offset=`.
async fn blob(
    Inject(leader): Injected,
    admitted: Option<Extension<Admitted>>,
    Path((image, digest)): Path<(String, String)>,
    Query(query): Query<GiverQuery>,
) -> Result<Response, Refused> {
    admit(&leader, admitted, &image)?;
    pass(&leader, &NodeId(query.node), &blob_path(&image, &digest, query.offset)).await
}

/// Asks the giver, and passes on what it says as it comes.
async fn pass(leader: &Leader, node: &NodeId, path: &str) -> Result<Response, Refused> {
    let found = leader.control.read(|state| way(state, node));
    let way = found.ok_or_else(|| ErrorDetail::new("not_found", format!("no such node: {node}")))?;
    let unreachable = |error: &dyn std::error::Error| {
        let text = format!("node {} cannot be reached: {}", way.holder.hostname, chain(error));
        Refused::from(ErrorDetail::new("unavailable", text))
    };
    let name = node_name(&node.0);
    let connecting = tokio::time::timeout(ANSWER_TIME, leader.peers.connect(&way.address, &name)).await;
    let silent = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer");
    let stream = connecting.map_err(silent).and_then(|connected| connected).map_err(|error| unreachable(&error))?;
    let mut request = Request::new(Body::empty());
    let invalid = |error: axum::http::uri::InvalidUri| ErrorDetail::new("invalid", error.to_string());
    *request.uri_mut() = path.parse::<Uri>().map_err(invalid)?;
    relay(stream, request).await.map_err(|error| unreachable(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_core::Task;
    use orch_spec::assignment::DesiredTask;

    #[test]
    fn a_worker_may_have_the_images_of_its_own_tasks_and_a_manager_all() {
        let mut state = State::new("c");
        let mut task = Task { id: "t".into(), image_id: "sha256:a".to_owned(), ..Task::default() };
        (task.node, task.told) = (Some("n".into()), Some(DesiredTask::Running));
        state.nodes.entry("n".into()).or_default().tasks.insert("t".into());
        state.nodes.entry("m".into()).or_default();
        state.tasks.insert(task.id.clone(), task);
        let who = |name: &str, role: Role| Admitted { name: name.to_owned(), role, key: String::new() };
        assert!(may_have(&state, &who("n", Role::Worker), "sha256:a"));
        assert!(!may_have(&state, &who("n", Role::Worker), "sha256:b"));
        assert!(!may_have(&state, &who("m", Role::Worker), "sha256:a"), "another node's task");
        assert!(!may_have(&state, &who("unknown", Role::Worker), "sha256:a"));
        assert!(may_have(&state, &who("m", Role::Manager), "sha256:b"));
    }

    #[test]
    fn a_path_says_what_was_meant_whatever_the_name() {
        assert_eq!(offer_path("a/b:1&x=%"), "/v1/images/offer?name=a%2Fb%3A1%26x%3D%25");
    }
}
