//! Volumes of this node.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use orch_api::error::ErrorDetail;
use orch_api::node::VolumeView;
use orch_engine::volume::{VolumeError, VolumeInfo};

use super::{Answer, Refusal, blocking};
use crate::{Shared, chain, view};

impl From<VolumeError> for Refusal {
    fn from(error: VolumeError) -> Self {
        let code = match error {
            VolumeError::NotFound { .. } => "not_found",
            VolumeError::Exists { .. } => "conflict",
            VolumeError::Name { .. } => "invalid",
            _ => "failed",
        };
        Self(ErrorDetail::new(code, chain(&error)))
    }
}

fn show(shared: &Shared, volume: VolumeInfo) -> VolumeView {
    let used_by = shared.engine.volume_users(&volume.name).iter().map(|c| c.config.name.clone()).collect();
    VolumeView {
        used_by,
        driver: "local".to_owned(),
        mountpoint: volume.data.display().to_string(),
        created_at: view::time(Some(volume.created)),
        anonymous: volume.anonymous,
        labels: volume.labels,
        name: volume.name,
        options: Default::default(),
    }
}

/// `GET node/volumes`.
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer<Vec<VolumeView>> {
    blocking(move || Ok(Json(shared.engine.volumes().list()?.into_iter().map(|v| show(&shared, v)).collect()))).await
}

/// `GET node/volumes/{name}`.
pub(super) async fn inspect(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Answer<VolumeView> {
    blocking(move || Ok(Json(show(&shared, shared.engine.volumes().inspect(&name)?)))).await
}

/// `POST node/volumes`.
pub(super) async fn create(State(shared): State<Arc<Shared>>, Json(request): Json<VolumeView>) -> Answer<VolumeView> {
    blocking(move || {
        let made = match shared.engine.volumes().create(&request.name, request.labels) {
            // Made twice is made, as in Docker.
            Err(VolumeError::Exists { .. }) => shared.engine.volumes().inspect(&request.name)?,
            made => made?,
        };
        shared.lock().observed.volumes.insert(made.name.clone());
        shared.touch();
        Ok(Json(show(&shared, made)))
    })
    .await
}

/// `DELETE node/volumes/{name}`.
pub(super) async fn remove(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Answer<()> {
    blocking(move || {
        let wanted = shared.lock().assignment.volumes.iter().any(|v| v.name == name);
        if wanted {
            let detail = ErrorDetail::new("in_use", format!("volume {name} belongs to a stack that is up"));
            return Err(detail.with_hint("`orch down -v` removes a stack with its volumes").into());
        }
        shared.engine.remove_volume(&name)?;
        shared.lock().observed.volumes.remove(&name);
        Ok(Json(()))
    })
    .await
}
