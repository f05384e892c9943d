//! Images on their way between hosts.
//!
//! The routes are in [`crate::openapi`], but those by which a node asks a manager: `GET /v1/peer/images/{id}` ([`Holders`]), and
//! `…/offer?node=` and `…/blobs/{digest}?node=&offset=`, which the manager passes on to that node.

use orch_spec::assignment::NodeId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::client::{ByteStream, Client, ClientError};

/// The encoding of bytes that are compressed for the way.
pub const ZSTD: &str = "zstd";

/// A name of an image, and since when it has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageName {
    /// As the user wrote it, with tag.
    pub name: String,
    /// Milliseconds since the epoch; of two images that claim one name, the later one has it. 0 = now.
    pub since: u64,
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageOffer {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Its manifest, byte by byte.
    pub manifest: String,
    /// Its configuration, byte by byte.
    pub config: String,
    /// Its names.
    #[serde(default)]
    pub names: Vec<ImageName>,
}

/// A blob that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissingBlob {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// Answer to an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Offered {
    /// What must be sent before the offer is made again; empty = the image is there.
    pub missing: Vec<MissingBlob>,
}

/// What a reference names on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedImage {
    /// `sha256:…`.
    pub id: String,
    /// See [`ImageName::since`].
    pub since: u64,
    /// What it was made for: `linux/arm64`; empty when it does not say.
    #[serde(default)]
    pub platform: String,
}

/// A node that has an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// Its host name.
    pub hostname: String,
}

/// Who has an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holders {
    /// Nodes that have it: some, not all.
    pub have: Vec<Holder>,
    /// Host names of nodes that may have it, but do not answer.
    pub silent: Vec<String>,
    /// The node that asks is the only one there is.
    #[serde(default)]
    pub alone: bool,
}

/// Bytes of a blob as they come.
#[derive(Debug)]
pub struct BlobStream {
    /// They are compressed with zstd for the way.
    pub compressed: bool,
    /// They.
    pub bytes: ByteStream,
}

/// Asks for a blob.
///
/// # Errors
/// See [`ClientError`].
pub async fn blob(client: &Client, path: &str) -> Result<BlobStream, ClientError> {
    let bytes = client.download(path).await?;
    Ok(BlobStream { compressed: bytes.encoding() == Some(ZSTD), bytes })
}
