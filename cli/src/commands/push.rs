//! Images that another host lacks and this machine has: sent before the command that needs them is given again.
//!
//! Only blobs that are missing there travel, as they lie here; each is checked when it has come. One that has come whole stays there for a
//! while, so a broken connection costs the blob that was on its way and no more.

use anyhow::Result;
use bytes::Bytes;
use futures_util::Stream;
use hyper::Method;
use orch_api::client::{Client, ClientError};
use orch_api::error::ErrorDetail;
use orch_api::image::{self, BlobStream, ImageName, ImageOffer, MissingBlob, Offered, ZSTD};

use super::{escape, size};
use crate::settings::Settings;
use crate::{connect, printer};

/// How often a broken connection is made again for one image without a further blob having come over.
const TRIES: u32 = 3;

/// Does something on another host; when that lacks images that this machine has, they are sent and it is done again.
///
/// # Errors
/// What the act says.
pub(super) async fn with_images<T>(
    settings: &Settings,
    client: &Client,
    act: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T> {
    match act().await {
        Err(ClientError::Refused(detail)) if detail.code == "image_missing" && settings.remote.is_some() => {
            let Some(offers) = offers(settings, &detail).await else {
                return Err(ClientError::Refused(elsewhere(detail)).into());
            };
            for (local, offer) in offers {
                push(&local, client, offer).await?;
            }
            Ok(act().await?)
        }
        answer => Ok(answer?),
    }
}

/// The error about images that are neither there nor here.
fn elsewhere(detail: ErrorDetail) -> ErrorDetail {
    let hint = "neither the cluster nor this machine has it; `orch image load` and `orch image import` bring more, here or there";
    detail.with_hint(hint)
}

/// What this machine offers of what is missing; `None` unless it has all of it.
async fn offers(settings: &Settings, missing: &ErrorDetail) -> Option<Vec<(Client, ImageOffer)>> {
    let local = connect::connect_local(settings)?;
    let mut offers = Vec::new();
    for reference in &missing.subjects {
        let offer: ImageOffer = local.get(&format!("/v1/images/offer?name={}", escape(reference))).await.ok()?;
        // Only the name that was asked for: others may mean other images there. An image that was asked for by its id gets none.
        let named = offer.names.iter().any(|_| !reference.contains('@') && !offer.id.contains(reference.as_str()));
        let names = named.then(|| ImageName { name: reference.clone(), since: 0 });
        offers.push((local.clone(), ImageOffer { names: names.into_iter().collect(), ..offer }));
    }
    Some(offers).filter(|offers| !offers.is_empty())
}

async fn push(local: &Client, remote: &Client, offer: ImageOffer) -> Result<()> {
    let name = offer.names.first().map_or_else(|| offer.id.clone(), |name| name.name.clone());
    let mut tries = 0;
    let mut told = false;
    loop {
        let Offered { missing } = remote.post("/v1/images/offer", &offer).await?;
        if !std::mem::replace(&mut told, true) {
            let bytes = missing.iter().map(|blob| blob.size).sum();
            let layers = if missing.len() == 1 { "layer" } else { "layers" };
            printer::say(&format!("pushing image {name}: {} {layers}, {}", missing.len(), size(bytes)));
        }
        // Offered again when nothing was missing any more, it is there.
        if missing.is_empty() {
            printer::say(&format!("pushed image {name}"));
            return Ok(());
        }
        for (place, blob) in missing.iter().enumerate() {
            match send(local, remote, &offer.id, blob).await {
                Ok(()) => {
                    tries = 0;
                    let digest: String = blob.digest.chars().take("sha256:".len() + 12).collect();
                    let count = missing.len();
                    printer::say(&format!("pushed layer {} of {count}, {digest}: {}", place + 1, size(blob.size)));
                }
                Err(error @ (ClientError::Broken { .. } | ClientError::Connect { .. })) if tries < TRIES => {
                    tries += 1;
                    printer::say(&format!("warning: {error}: trying again"));
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn send(local: &Client, remote: &Client, id: &str, blob: &MissingBlob) -> Result<(), ClientError> {
    let digest = escape(&blob.digest);
    let BlobStream { compressed, bytes } =
        image::blob(local, &format!("/v1/images/blobs/{digest}?image={}&offset=0", escape(id))).await?;
    let encoding = compressed.then_some(ZSTD);
    remote.upload_encoded(Method::PUT, &format!("/v1/images/blobs/{digest}"), encoding, pieces(bytes)).await
}

/// An answer as the body of a request.
fn pieces(bytes: orch_api::client::ByteStream) -> impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static {
    futures_util::stream::try_unfold(bytes, |mut bytes| async move {
        let piece = bytes.next().await.map_err(std::io::Error::other)?;
        Ok(piece.map(|piece| (piece, bytes)))
    })
}
