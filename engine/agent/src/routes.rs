//! The node's part of the API; see [`orch_api::node`] for the table. Handlers are thin: what blocks runs on a thread.

mod container;
mod image;
mod log;
mod network;
mod session;
mod standard;
mod system;
mod transfer;
mod volume;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use orch_api::error::{ErrorBody, ErrorDetail};
use orch_engine::config::ContainerId;
use orch_engine::engine::{EngineError, PartError};
use orch_engine::image::ImageError;

use crate::{Shared, chain};

/// A refused request.
pub struct Refusal(pub ErrorDetail);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

impl From<ErrorDetail> for Refusal {
    fn from(detail: ErrorDetail) -> Self {
        Self(detail)
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        Self(detail(&error))
    }
}

/// An engine's error as the API says it.
pub fn detail(error: &EngineError) -> ErrorDetail {
    let text = chain(error);
    match error {
        EngineError::NotFound { kind: "container", .. } => {
            ErrorDetail::new("not_found", text).with_hint("`orch container ls -a` lists the containers that exist")
        }
        EngineError::NotFound { .. } => ErrorDetail::new("not_found", text),
        EngineError::Conflict(_) | EngineError::Phase { .. } => ErrorDetail::new("conflict", text),
        EngineError::Invalid(_) => ErrorDetail::new("invalid", text),
        EngineError::NotStarted { code, .. } => ErrorDetail::new("failed", text).with_exit_code(*code),
        EngineError::Part(PartError::Image(image)) => image_detail(image),
        EngineError::Part(PartError::Volume(orch_engine::volume::VolumeError::NotFound { .. })) => {
            ErrorDetail::new("not_found", text)
        }
        _ => ErrorDetail::new("failed", text),
    }
}

/// An image store's error as the API says it.
pub fn image_detail(error: &ImageError) -> ErrorDetail {
    let text = chain(error);
    match error {
        ImageError::NotFound { .. } => ErrorDetail::new("not_found", text)
            .with_hint("`orch image ls` shows what there is; `orch image load` and `orch image import` bring more"),
        ImageError::InUse { .. } => {
            ErrorDetail::new("in_use", text).with_hint("remove its containers first, or use -f")
        }
        _ => ErrorDetail::new("failed", text),
    }
}

pub(crate) use container::reader;

type Answer<T> = Result<Json<T>, Refusal>;

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(ErrorDetail::new("failed", format!("the request ended unexpectedly: {e}")).into()),
    }
}

/// Finds a container by id, prefix or name.
fn find(shared: &Shared, reference: &str) -> Result<ContainerId, Refusal> {
    Ok(shared.engine.find(reference)?)
}

/// All routes.
pub fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/openapi.json", get(system::description))
        .route("/v1/info", get(system::info))
        .route("/v1/df", get(system::disk_use))
        .route("/v1/prune", post(system::prune))
        .route("/v1/containers", get(container::list).post(container::create))
        .route("/v1/containers/run", post(container::run))
        .route("/v1/containers/{id}", get(container::show).delete(container::remove))
        .route("/v1/containers/{id}/inspect", get(container::inspect))
        .route("/v1/containers/{id}/networks", post(network::connect))
        .route("/v1/containers/{id}/networks/{name}", delete(network::disconnect))
        .route("/v1/containers/{id}/start", post(container::start))
        .route("/v1/containers/{id}/stop", post(container::stop))
        .route("/v1/containers/{id}/restart", post(container::restart))
        .route("/v1/containers/{id}/kill", post(container::kill))
        .route("/v1/containers/{id}/pause", post(container::pause))
        .route("/v1/containers/{id}/unpause", post(container::unpause))
        .route("/v1/containers/{id}/wait", post(container::wait))
        .route("/v1/containers/{id}/attach", post(container::attach))
        .route("/v1/containers/{id}/exec", post(session::exec))
        .route("/v1/containers/{id}/logs", get(log::logs))
        .route("/v1/containers/{id}/stats", get(system::stats))
        .route("/v1/containers/{id}/top", get(system::top))
        .route("/v1/containers/{id}/archive", get(container::archive_out).put(container::archive_in))
        .route("/v1/containers/{id}/archive/directory", get(container::is_directory))
        .route("/v1/images", get(image::list))
        .route("/v1/image", get(image::inspect).delete(image::remove))
        .route("/v1/image/tag", post(image::tag))
        .route("/v1/image/history", get(image::history))
        .route("/v1/images/resolve", get(transfer::resolve))
        .route(
            "/v1/images/offer",
            get(transfer::offer).post(transfer::take_offer).layer(DefaultBodyLimit::max(transfer::OFFER)),
        )
        .route("/v1/images/blobs/{digest}", get(transfer::blob).put(transfer::take_blob))
        .route("/v1/images/import", post(image::import))
        .route("/v1/images/load", post(image::load))
        .route("/v1/images/save", get(image::save))
        .route("/v1/node/volumes", get(volume::list).post(volume::create))
        .route("/v1/node/volumes/{name}", get(volume::inspect).delete(volume::remove))
        // Archives are streamed and bounded by the store; everything else is small.
        .layer(DefaultBodyLimit::disable())
        .with_state(shared)
}
