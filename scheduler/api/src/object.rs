//! Secrets and configs that people make: requests and views.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/secrets`, `GET /v1/configs` | | [`ObjectView`]s |
//! | `POST /v1/secrets`, `POST /v1/configs` | [`ObjectCreate`] | [`ObjectView`] |
//! | `GET /v1/secrets/{name}`, `GET /v1/configs/{name}` | | [`ObjectView`], a config's with its content |
//! | `POST /v1/secrets/{name}`, `POST /v1/configs/{name}` | [`ObjectUpdate`] | [`ObjectView`] |
//! | `DELETE /v1/secrets/{name}`, `DELETE /v1/configs/{name}` | | |

use std::collections::BTreeMap;
use std::sync::Arc;

use orch_spec::model::ContentBytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for a new one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectCreate {
    /// Its name.
    pub name: String,
    /// The bytes, as base64.
    #[schemars(with = "String")]
    pub content: Arc<ContentBytes>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Asks for other content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectUpdate {
    /// The bytes, as base64.
    #[schemars(with = "String")]
    pub content: Arc<ContentBytes>,
}

/// One of them. A secret's content is in no answer, nor is its digest: a short secret could be guessed from that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectView {
    /// Its name.
    pub name: String,
    /// Grows by one with every change, from 1.
    pub version: u64,
    /// Bytes.
    pub size: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Services that use it: `stack_service`.
    pub used_by: Vec<String>,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    /// See `created_at`; of the last change.
    pub updated_at: u64,
    /// Index of the entry that has just changed it, and since which its services follow; 0 when it was only looked at, or is what it was.
    #[serde(default)]
    pub changed: u64,
    /// A config's content, as base64, when one was asked for by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub content: Option<Arc<ContentBytes>>,
}
