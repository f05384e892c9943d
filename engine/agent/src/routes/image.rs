//! Images.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, RawQuery, State};
use axum::http::Response;
use orch_api::error::ErrorDetail;
use orch_api::node::ImageView;
use orch_engine::image::{Image, ImageError, ImportOptions, Platform};
use serde::Deserialize;

use super::container::{body_reader, written_body};
use super::{Answer, Refusal, blocking, image_detail};
use crate::Shared;

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        Self(image_detail(&error))
    }
}

fn view(shared: &Shared, image: &Image) -> ImageView {
    let id = image.id.to_string();
    let containers = shared.engine.list().iter().filter(|c| c.config.image_id == id).count();
    ImageView {
        id,
        references: image.references.clone(),
        size: image.size,
        created: image.created.clone().unwrap_or_default(),
        containers: u32::try_from(containers).unwrap_or(u32::MAX),
    }
}

/// `GET images`.
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer<Vec<ImageView>> {
    blocking(move || {
        let images = shared.engine.images().list()?;
        Ok(Json(images.iter().map(|image| view(&shared, image)).collect()))
    })
    .await
}

/// `?name=&target=&force=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ImageQuery {
    name: String,
    target: String,
    force: bool,
}

/// `GET image`.
pub(super) async fn inspect(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<ImageQuery>,
) -> Answer<serde_json::Value> {
    blocking(move || Ok(Json(shared.engine.images().inspect(&query.name)?))).await
}

/// `DELETE image`.
pub(super) async fn remove(State(shared): State<Arc<Shared>>, Query(query): Query<ImageQuery>) -> Answer<Vec<String>> {
    blocking(move || {
        let removed = shared.engine.remove_image(&query.name, query.force).map_err(|e| {
            let mut detail = super::detail(&e);
            if detail.code == "in_use" {
                detail.message = format!("{} ({})", detail.message, users(&shared, &query.name).join(", "));
            }
            detail
        })?;
        let mut lines: Vec<String> = removed.untagged.iter().map(|name| format!("untagged: {name}")).collect();
        lines.extend(removed.deleted.map(|id| format!("deleted: {id}")));
        Ok(Json(lines))
    })
    .await
}

/// Containers made from an image.
fn users(shared: &Shared, name: &str) -> Vec<String> {
    let Ok(image) = shared.engine.images().find(name) else { return Vec::new() };
    let id = image.id.to_string();
    let containers = shared.engine.list().into_iter().filter(|c| c.config.image_id == id);
    containers.map(|c| format!("container {}", c.config.name)).collect()
}

/// `POST image/tag`.
pub(super) async fn tag(State(shared): State<Arc<Shared>>, Query(query): Query<ImageQuery>) -> Answer<()> {
    blocking(move || Ok(Json(shared.engine.images().tag(&query.name, &query.target)?))).await
}

/// `GET image/history`.
pub(super) async fn history(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<ImageQuery>,
) -> Answer<serde_json::Value> {
    blocking(move || {
        let history = shared.engine.images().history(&query.name)?;
        // Newest first, as people read it.
        let newest: Vec<_> = history.into_iter().rev().collect();
        Ok(Json(serde_json::to_value(newest).unwrap_or_default()))
    })
    .await
}

/// Repeated keys of a query, which serde's form of it cannot hold.
pub(super) fn repeated(query: Option<&str>, key: &str) -> Vec<String> {
    let decode = |text: &str| {
        let bytes = text.replace('+', " ").into_bytes();
        let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
        while at < bytes.len() {
            let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
            match hex.filter(|_| bytes[at] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok()) {
                Some(byte) => {
                    out.push(byte);
                    at += 3;
                }
                None => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(k, _)| *k == key).map(|(_, v)| decode(v)).collect()
}

/// `POST images/import`.
pub(super) async fn import(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Answer<ImageView> {
    let query = query.as_deref();
    let first = |key: &str| repeated(query, key).into_iter().next().filter(|text| !text.is_empty());
    let platform = first("platform").map(|text| {
        let wrong = || ErrorDetail::new("invalid", format!("platform {text:?} is not like linux/arm64"));
        Platform::parse(&text).ok_or_else(wrong)
    });
    let options = ImportOptions {
        platform: platform.transpose()?,
        reference: first("reference"),
        changes: repeated(query, "change"),
        message: first("message"),
        ..ImportOptions::default()
    };
    let reader = body_reader(body);
    blocking(move || {
        let image = shared.engine.images().import(reader, &options)?;
        Ok(Json(view(&shared, &image)))
    })
    .await
}

/// `POST images/load`.
pub(super) async fn load(State(shared): State<Arc<Shared>>, body: Body) -> Answer<Vec<ImageView>> {
    let reader = body_reader(body);
    blocking(move || {
        let images = shared.engine.images();
        let loaded = images.load(reader)?;
        let views = loaded.iter().filter_map(|l| {
            let image = images.find(&l.id.to_string()).ok()?;
            Some(ImageView { references: l.references.clone(), ..view(&shared, &image) })
        });
        Ok(Json(views.collect()))
    })
    .await
}

/// `GET images/save?name=…&name=…`.
pub(super) async fn save(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, Refusal> {
    let names = repeated(query.as_deref(), "name");
    if names.is_empty() {
        return Err(ErrorDetail::new("invalid", "no image named").into());
    }
    for name in &names {
        shared.engine.images().find(name)?;
    }
    let body = written_body(move |writer| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        shared.engine.images().save(&names, writer)
    });
    Ok(Response::new(body))
}
