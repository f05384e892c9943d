//! Taking containers of no stack onto networks, and off them. Those of stacks are the control plane's.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use orch_api::control::NetworkConnect;
use orch_spec::assignment::TaskId;
use serde_json::Value;

use super::{Answer, find};
use crate::{Shared, local};

/// `POST containers/{id}/networks`.
pub(super) async fn connect(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Json(request): Json<NetworkConnect>,
) -> Answer<Value> {
    let container = find(&shared, &id)?;
    local::connect(&shared, &TaskId::from(container.0), request).await?;
    Ok(Json(Value::Null))
}

/// `DELETE containers/{id}/networks/{name}`.
pub(super) async fn disconnect(
    State(shared): State<Arc<Shared>>,
    Path((id, network)): Path<(String, String)>,
) -> Answer<Value> {
    let container = find(&shared, &id)?;
    local::disconnect(&shared, &TaskId::from(container.0), &network).await?;
    Ok(Json(Value::Null))
}
