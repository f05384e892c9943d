//! Passing on to its node what is said about a container that runs on another one: `exec`, `logs`, `cp` and `attach` work on a manager for
//! every task of the cluster, wherever it is.
//!
//! A request is passed on as it comes, bodies and upgraded connections with it, by the manager's own certificate: the guard here has seen
//! that the caller may ask.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Inject};
use axum::http::header::{CONNECTION, HOST, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use orch_api::error::{ErrorDetail, chain};
use orch_api::tls::node_name;
use orch_core::State;
use orch_spec::assignment::NodeId;

use super::forward::Leader;
use crate::server::Refused;

/// What begins the paths of routes about one container.
const PREFIX: &str = "/v1/containers/";

/// Puts the way to other nodes before a node's own routes.
pub fn to_node(router: Router, leader: Leader) -> Router {
    router.route_layer(from_fn_with_state(leader, pass))
}

/// The node of a task whose container, name or id people have said; `None` = it is none of the cluster's.
fn node_of(state: &State, said: &str) -> Option<NodeId> {
    let mut tasks = state.tasks.values();
    let found = tasks.find(|task| {
        let container = &task.status.container;
        // Ids are cut to twelve digits for people.
        let begins = said.len() >= 12 && container.starts_with(said);
        task.container_name == said || task.id.as_str() == said || begins
    });
    found.and_then(|task| task.node.clone())
}

async fn pass(Inject(leader): Inject<Leader>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let said = path.strip_prefix(PREFIX).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let found = leader.control.read(|state| {
        let node = node_of(state, said).filter(|node| node != leader.peers.node())?;
        let address = state.security.members.get(&node)?.address.clone();
        let name = state.nodes.get(&node).map(|node| node.facts.hostname.clone()).unwrap_or_default();
        Some((node, address, name))
    });
    let Some((node, address, name)) = found else { return next.run(request).await };
    let unreachable = |error: &dyn std::error::Error| {
        let text = format!("node {name} ({node}), where this container is, cannot be reached: {}", chain(error));
        Refused::from(ErrorDetail::new("unavailable", text).with_hint("`orch node ls` says how it stands"))
            .into_response()
    };
    let stream = match leader.peers.connect(&address, &node_name(&node.0)).await {
        Ok(stream) => stream,
        Err(error) => return unreachable(&error),
    };
    relay(stream, request).await.unwrap_or_else(|error| unreachable(&error))
}

pub(super) async fn relay(
    stream: impl orch_api::client::Connection + 'static,
    mut request: Request,
) -> Result<Response, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let upgrade = request.headers().get(UPGRADE).cloned();
    let caller = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut onward = hyper::Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = parts.uri;
    // Of the headers, what the connection's are do not travel on.
    for (name, value) in parts.headers.iter().filter(|(name, _)| *name != HOST && *name != CONNECTION) {
        onward.headers_mut().append(name.clone(), value.clone());
    }
    onward.headers_mut().insert(HOST, HeaderValue::from_static("orch"));
    if upgrade.is_some() {
        onward.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let mut response = sender.send_request(onward).await?;
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(caller)) = (response.status(), caller) {
        let node = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(caller), Ok(node)) = (caller.await, node.await) {
                // Either end may go away at any time, which ends the other.
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(node)).await;
            }
        });
    }
    Ok(response.map(Body::new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_core::Task;

    #[test]
    fn a_task_is_found_by_its_name_its_id_and_the_beginning_of_its_container() {
        let mut state = State::new("c");
        let mut task = Task { id: "t1".into(), container_name: "web-a-1".to_owned(), ..Task::default() };
        task.node = Some("n2".into());
        task.status.container = "0123456789abcdef".to_owned();
        state.tasks.insert(task.id.clone(), task);
        for said in ["t1", "web-a-1", "0123456789abcdef", "0123456789ab"] {
            assert_eq!(node_of(&state, said), Some("n2".into()), "{said}");
        }
        for said in ["", "0123", "web-a", "web-a-2"] {
            assert_eq!(node_of(&state, said), None, "{said}");
        }
    }
}
