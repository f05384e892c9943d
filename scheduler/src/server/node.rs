//! Nodes; see [`orch_api::service`] for the table.

use axum::Json;
use axum::extract::{Path, Query, State as Inject};
use orch_api::control::{IndexResponse, NodeView};
use orch_api::error::ErrorDetail;
use orch_api::service::NodeUpdate;
use orch_core::security::SecurityCommand;
use orch_core::{Availability, Command, NodeState, Refusal, State, UpdateNode};
use orch_spec::assignment::NodeId;
use orch_spec::role::Role;
use serde::Deserialize;

use super::{Asked, Body, Injected, Refused, Reply, Server, not_found, propose, view};

/// The node that people name: by id, the beginning of one that only one has, or host name.
fn find(state: &State, name: &str) -> Result<NodeId, Refused> {
    let exact = state.nodes.keys().find(|id| id.0 == name);
    let mut hosts = state.nodes.iter().filter(|(_, node)| node.facts.hostname == name).map(|(id, _)| id);
    let host = hosts.next();
    if exact.is_none() && hosts.next().is_some() {
        let message = format!("several nodes have the host name {name}");
        return Err(ErrorDetail::new("conflict", message).with_hint("use the id from `orch node ls`").into());
    }
    let mut begun = state.nodes.keys().filter(|id| !name.is_empty() && id.0.starts_with(name));
    let begun = begun.next().filter(|_| begun.next().is_none());
    exact.or(host).or(begun).cloned().ok_or_else(|| not_found("node", name))
}

fn view_of(state: &State, id: &NodeId) -> Option<NodeView> {
    state.nodes.get(id).map(|node| view::node(state, id, node))
}

/// `GET /v1/nodes/{id}`.
pub(super) async fn node(Inject(server): Injected, Path(name): Path<String>) -> Reply<NodeView> {
    let view = server.control.read(|state| {
        let id = find(state, &name)?;
        view_of(state, &id).ok_or_else(|| not_found("node", &name))
    })?;
    Ok(Json(view::led(view, &server.control)))
}

/// `POST /v1/nodes/{id}`.
pub(super) async fn update(
    Inject(server): Injected,
    Path(name): Path<String>,
    body: Body<NodeUpdate>,
) -> Reply<NodeView> {
    let Json(request) = body?;
    let id = server.control.read(|state| find(state, &name))?;
    let availability = match request.availability.as_deref() {
        None => None,
        Some("active") => Some(Availability::Active),
        Some("pause") => Some(Availability::Pause),
        Some("drain") => Some(Availability::Drain),
        Some(word) => {
            let message = format!("`{word}` is no availability; there are active, pause and drain");
            return Err(ErrorDetail::new("invalid", message).into());
        }
    };
    let role = match request.role.as_deref() {
        None => None,
        Some("manager") => Some(Role::Manager),
        Some("worker") => Some(Role::Worker),
        Some(word) => {
            let message = format!("`{word}` is no role of a node; there are manager and worker");
            return Err(ErrorDetail::new("invalid", message).into());
        }
    };
    let update =
        UpdateNode { node: id.clone(), availability, labels: request.labels, remove_labels: request.remove_labels };
    if update != (UpdateNode { node: id.clone(), ..UpdateNode::default() }) {
        propose(&server, Command::UpdateNode(update)).await?;
    }
    if let Some(role) = role {
        set_role(&server, &id, role).await?;
    }
    node(Inject(server), Path(id.0)).await
}

/// Makes a node a manager, or one that is a worker: a worker never votes, so it leaves the log before it loses the role, and has its
/// number in the log before it gets it. A leader hands over first, and the next one must be asked again.
async fn set_role(server: &Server, id: &NodeId, role: Role) -> Result<(), Refused> {
    let (number, member, last) = server.control.read(|state| {
        let last = state.security.managers().count() == 1;
        (state.members.id_of(id), state.security.members.get(id).cloned(), last)
    });
    let Some(member) = member else {
        let hint = "`orch cluster init` makes this host a cluster";
        return Err(ErrorDetail::new("invalid", "this host is alone and manages itself").with_hint(hint).into());
    };
    // A manager without a place in the log is one only half.
    if member.role == role && (role == Role::Worker || number.is_some()) {
        return Ok(());
    }
    match role {
        Role::Manager if number.is_none() => {
            server.control.add_manager(id.clone(), member.address).await?;
        }
        Role::Worker if number.is_some() && !last => server.control.remove_manager(id).await?,
        _ => {}
    }
    propose(server, Command::Security(SecurityCommand::SetRole { node: id.clone(), role })).await?;
    Ok(())
}

/// `?force=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RemoveQuery {
    force: bool,
}

/// `DELETE /v1/nodes/{id}`.
pub(super) async fn remove(
    Inject(server): Injected,
    Path(name): Path<String>,
    query: Asked<RemoveQuery>,
) -> Reply<IndexResponse> {
    let Query(query) = query?;
    let (node, votes, stays, refusal) = server.control.read(|state| {
        let node = find(state, &name)?;
        let record = state.nodes.get(&node);
        let answers = record.is_some_and(|record| record.state == NodeState::Ready) && !query.force;
        let last = state.security.managers().count() <= 1;
        let volumes = if query.force { Vec::new() } else { state.only_copies(&node) };
        let hostname = record.map(|record| record.facts.hostname.clone()).unwrap_or_default();
        let only = (!answers && !volumes.is_empty()).then_some(Refusal::OnlyCopy { node: hostname, volumes });
        let votes = state.members.managers.len() > 1 && state.members.id_of(&node).is_some();
        Ok::<_, Refused>((node, votes, answers || last, only))
    })?;
    // By hand only: whoever reads a former log must come to what was decided then.
    if let Some(refusal) = refusal {
        return Err(refusal.into());
    }
    if votes && !stays {
        server.control.remove_manager(&node).await?;
    }
    let (index, _) = propose(&server, Command::RemoveNode { node, force: query.force }).await?;
    Ok(Json(IndexResponse { index }))
}
