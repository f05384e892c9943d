//! The API of the control plane: JSON under `/v1`, streams as lines of JSON. The types are in `orch_api::control`.
//!
//! A handler reads the state or proposes one command; it decides nothing that the state machine could decide. What it adds is what the
//! state machine must not do: asking the node for image ids, waiting.

mod change;
mod fault;
mod object;
mod query;
mod stream;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use orch_api::control::{AddressRequest, AddressResponse, ImageResolver};
use orch_api::error::ErrorDetail;

use crate::control::Control;

/// Largest body of a request. A stack of 1000 services takes about 2 MiB.
const BODY: usize = 8 << 20;

/// What every handler has.
#[derive(Clone)]
pub(crate) struct Context {
    control: Control,
    images: Arc<dyn ImageResolver>,
}

/// The routes, to be merged with those of the node.
pub fn routes(control: Control, images: Arc<dyn ImageResolver>) -> Router {
    Router::new()
        .route("/v1/stacks", get(query::stacks))
        .route("/v1/stacks/{name}", get(query::stack))
        .route("/v1/stacks/{name}/watch", get(stream::watch))
        .route("/v1/stacks/{name}/plan", post(change::plan))
        .route("/v1/stacks/{name}/apply", post(change::apply))
        .route("/v1/stacks/{name}/down", post(change::down))
        .route("/v1/stacks/{name}/act", post(change::act))
        .route("/v1/stacks/{name}/scale", post(change::scale))
        .route("/v1/stacks/{name}/run", post(change::run))
        .route("/v1/tasks", get(query::tasks))
        .route("/v1/tasks/{id}", get(query::task))
        .route("/v1/tasks/{id}/desired", post(change::desired))
        .route("/v1/events", get(stream::events))
        .route("/v1/networks", get(object::networks).post(object::create_network))
        .route("/v1/networks/{name}", get(object::network).delete(object::remove_network))
        .route("/v1/networks/{name}/addresses", post(object::reserve).delete(object::release))
        .route("/v1/volumes", get(object::volumes).post(object::create_volume))
        .route("/v1/volumes/{name}", get(object::volume).delete(object::remove_volume))
        .route("/v1/nodes", get(query::nodes))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(Context { control, images })
}

/// An address for a container that belongs to no stack. The network `bridge` is made when it is not there yet.
///
/// # Errors
/// No such network, no address left, or the address that is asked for is taken.
pub async fn reserve_address(
    control: &Control,
    network: String,
    request: AddressRequest,
) -> Result<AddressResponse, ErrorDetail> {
    object::reserve_address(control, network, request).await.map_err(|fault| fault.0)
}

/// Lets go of every address that the holder has on the network.
///
/// # Errors
/// No such network.
pub async fn release_address(control: &Control, network: String, holder: String) -> Result<(), ErrorDetail> {
    object::release_address(control, network, holder).await.map(drop).map_err(|fault| fault.0)
}
