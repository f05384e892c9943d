//! Images on their way to and from this node: see [`orch_api::image`] for the table.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::header::CONTENT_ENCODING;
use axum::http::{HeaderMap, HeaderValue, Response};
use orch_api::error::ErrorDetail;
use orch_api::image::{ImageOffer, NamedImage, Offered, ZSTD};
use orch_engine::image::{Digest, TransferError};
use serde::Deserialize;

use super::container::{body_reader, written_body};
use super::image::repeated;
use super::{Answer, Refusal, blocking, image_detail};
use crate::fetch::{listed, spoken, understood};
use crate::{Shared, chain};

/// Largest offer: a manifest and a configuration of 4 MiB each, and as much again for what JSON adds to their quotes.
pub(super) const OFFER: usize = 16 << 20;

impl From<TransferError> for Refusal {
    fn from(error: TransferError) -> Self {
        Self(match &error {
            TransferError::Store(image) => image_detail(image),
            TransferError::TooMuch => ErrorDetail::new("unavailable", chain(&error)),
            TransferError::Incomplete { .. } => ErrorDetail::new("conflict", chain(&error)),
            _ => ErrorDetail::new("invalid", chain(&error)),
        })
    }
}

fn digest(text: &str) -> Result<Digest, Refusal> {
    Digest::parse(text).map_err(|error| ErrorDetail::new("invalid", format!("{text}: {error}")).into())
}

/// `GET images/resolve?name=…&name=…`.
pub(super) async fn resolve(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
) -> Answer<BTreeMap<String, Option<NamedImage>>> {
    let names = repeated(query.as_deref(), "name");
    blocking(move || Ok(Json(crate::fetch::named(&shared, &names)))).await
}

/// `?name=&image=&offset=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TransferQuery {
    name: String,
    image: String,
    offset: u64,
}

/// `GET images/offer?name=`.
pub(super) async fn offer(State(shared): State<Arc<Shared>>, Query(query): Query<TransferQuery>) -> Answer<ImageOffer> {
    blocking(move || Ok(Json(spoken(shared.engine.images().offer(&query.name)?)))).await
}

/// `GET images/blobs/{digest}?image=&offset=`.
pub(super) async fn blob(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(query): Query<TransferQuery>,
) -> Result<Response<Body>, Refusal> {
    let digest = digest(&name)?;
    let turn = shared.traffic.gifts.clone().acquire_owned().await;
    let turn = turn.map_err(|error| ErrorDetail::new("unavailable", error.to_string()))?;
    let giving = blocking(move || Ok(shared.engine.images().give(&query.image, digest, query.offset)?)).await?;
    let (mut reader, compressed) = (giving.reader, giving.compressed);
    let mut response = Response::new(written_body(move |writer| {
        let _turn = turn;
        std::io::copy(&mut reader, writer).map(drop)
    }));
    if compressed {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(ZSTD));
    }
    Ok(response)
}

/// `POST images/offer`.
pub(super) async fn take_offer(State(shared): State<Arc<Shared>>, Json(offer): Json<ImageOffer>) -> Answer<Offered> {
    let offer = understood(offer).map_err(|text| Refusal(ErrorDetail::new("invalid", text)))?;
    blocking(move || {
        let images = shared.engine.images();
        let lacks = images.lacks(&offer)?;
        if lacks.is_empty() {
            let image = images.adopt(&offer)?;
            tracing::info!(image = %image.id, names = image.references.join(", "), "an image was sent here");
        }
        Ok(Json(Offered { missing: listed(&lacks) }))
    })
    .await
}

/// `PUT images/blobs/{digest}`.
pub(super) async fn take_blob(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<()> {
    let digest = digest(&name)?;
    let compressed = headers.get(CONTENT_ENCODING).is_some_and(|value| value == ZSTD);
    let reader = body_reader(body);
    blocking(move || {
        let images = shared.engine.images();
        let mut taking = images.take(digest, compressed)?;
        let broken =
            |error: std::io::Error| ErrorDetail::new("invalid", format!("blob {digest} did not come whole: {error}"));
        taking.read(reader, compressed).map_err(broken)?;
        images.taken(taking)?;
        Ok(Json(()))
    })
    .await
}
