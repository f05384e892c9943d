//! Secrets and configs that people make; see [`orch_api::object`] for the table.

use std::sync::Arc;

use axum::extract::{Path, State as Inject};
use axum::routing::get;
use axum::{Json, Router};
use orch_api::object::{ObjectCreate, ObjectUpdate, ObjectView};
use orch_core::{ChangeObject, Command, FileObject, NewObject, ObjectKind, State};

use super::{Body, Injected, Refused, Reply, Server, not_found, propose};

/// The routes.
pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/secrets", get(secrets).post(create_secret))
        .route("/v1/secrets/{name}", get(secret).post(change_secret).delete(remove_secret))
        .route("/v1/configs", get(configs).post(create_config))
        .route("/v1/configs/{name}", get(config).post(change_config).delete(remove_config))
}

fn view(state: &State, kind: ObjectKind, object: &FileObject) -> ObjectView {
    let users = state.object_users(kind, &object.name);
    ObjectView {
        name: object.name.clone(),
        version: object.version,
        size: object.content.0.len() as u64,
        labels: object.labels.clone(),
        used_by: users.into_iter().map(|(stack, service)| format!("{stack}_{service}")).collect(),
        created_at: object.created_at,
        updated_at: object.updated_at,
        changed: 0,
        content: None,
    }
}

fn all(server: &Server, kind: ObjectKind) -> Json<Vec<ObjectView>> {
    Json(server.control.read(|state| state.objects(kind).values().map(|object| view(state, kind, object)).collect()))
}

fn one(server: &Server, kind: ObjectKind, name: &str) -> Reply<ObjectView> {
    let found = server.control.read(|state| {
        let object = state.objects(kind).get(name)?;
        let content = (kind == ObjectKind::Config).then(|| Arc::clone(&object.content));
        Some(ObjectView { content, ..view(state, kind, object) })
    });
    found.map(Json).ok_or_else(|| not_found(kind.as_str(), name))
}

async fn create(server: &Server, kind: ObjectKind, request: ObjectCreate) -> Reply<ObjectView> {
    let ObjectCreate { name, content, labels } = request;
    propose(server, Command::CreateObject(NewObject { kind, name: name.clone(), content, labels })).await?;
    one(server, kind, &name)
}

async fn change(server: &Server, kind: ObjectKind, name: String, request: ObjectUpdate) -> Reply<ObjectView> {
    let command = ChangeObject { kind, name: name.clone(), content: request.content };
    let version = |state: &State| state.objects(kind).get(&name).map_or(0, |object| object.version);
    let before = server.control.read(version);
    let (index, _) = propose(server, Command::ChangeObject(command)).await?;
    let changed = if server.control.read(version) == before { 0 } else { index };
    let Json(view) = one(server, kind, &name)?;
    Ok(Json(ObjectView { changed, ..view }))
}

async fn remove(server: &Server, kind: ObjectKind, name: String) -> Result<Json<()>, Refused> {
    propose(server, Command::RemoveObject { kind, name }).await?;
    Ok(Json(()))
}

/// `GET /v1/secrets`.
async fn secrets(Inject(server): Injected) -> Json<Vec<ObjectView>> {
    all(&server, ObjectKind::Secret)
}

/// `GET /v1/configs`.
async fn configs(Inject(server): Injected) -> Json<Vec<ObjectView>> {
    all(&server, ObjectKind::Config)
}

/// `GET /v1/secrets/{name}`.
async fn secret(Inject(server): Injected, Path(name): Path<String>) -> Reply<ObjectView> {
    one(&server, ObjectKind::Secret, &name)
}

/// `GET /v1/configs/{name}`.
async fn config(Inject(server): Injected, Path(name): Path<String>) -> Reply<ObjectView> {
    one(&server, ObjectKind::Config, &name)
}

/// `POST /v1/secrets`.
async fn create_secret(Inject(server): Injected, body: Body<ObjectCreate>) -> Reply<ObjectView> {
    create(&server, ObjectKind::Secret, body?.0).await
}

/// `POST /v1/configs`.
async fn create_config(Inject(server): Injected, body: Body<ObjectCreate>) -> Reply<ObjectView> {
    create(&server, ObjectKind::Config, body?.0).await
}

/// `POST /v1/secrets/{name}`.
async fn change_secret(
    Inject(server): Injected,
    Path(name): Path<String>,
    body: Body<ObjectUpdate>,
) -> Reply<ObjectView> {
    change(&server, ObjectKind::Secret, name, body?.0).await
}

/// `POST /v1/configs/{name}`.
async fn change_config(
    Inject(server): Injected,
    Path(name): Path<String>,
    body: Body<ObjectUpdate>,
) -> Reply<ObjectView> {
    change(&server, ObjectKind::Config, name, body?.0).await
}

/// `DELETE /v1/secrets/{name}`.
async fn remove_secret(Inject(server): Injected, Path(name): Path<String>) -> Reply<()> {
    remove(&server, ObjectKind::Secret, name).await
}

/// `DELETE /v1/configs/{name}`.
async fn remove_config(Inject(server): Injected, Path(name): Path<String>) -> Reply<()> {
    remove(&server, ObjectKind::Config, name).await
}
