//! The documents of the OCI image specification, as far as orch reads and writes them, with Docker's additions.
//!
//! Documents that came from outside are stored byte by byte; these types are views of them. Fields are lenient where real
//! images are (`null` for an empty list), strict where a file name or a size is derived from them (digests, sizes).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// Media types that orch writes.
pub(crate) mod media {
    pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub(crate) const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub(crate) const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The execution defaults of an image: the `config` object of its configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `port/protocol` → nothing.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `KEY=value`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Arguments that a command of the user replaces its `cmd`, not this.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Default command or arguments of the entry point.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Health check (Docker's addition to the specification).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Paths that get an anonymous volume.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// Working directory.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the process to stop, by name or number.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Shell of the shell form (Docker's addition).
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Triggers for builds on top (Docker's addition).
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
}

/// `{}`: Go's empty struct, the value type of the sets in an image configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A health check. Durations are nanoseconds, 0 = the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", args…]` or `["CMD-SHELL", line]`; empty inherits.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: u64,
    /// For one check.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: u64,
    /// Failures within it do not count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: u64,
    /// Between two checks within the start period.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: u64,
    /// Consecutive failures that make it unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// Go's name of it: `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, …; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", ""),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// Parses `os/architecture[/variant]` or an architecture alone.
    pub fn parse(text: &str) -> Option<Self> {
        let good = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.')
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| good(part)) {
            return None;
        }
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, ""),
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => return None,
        };
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            other => other,
        };
        Some(Self { os: os.into(), architecture: architecture.into(), variant: variant.into() })
    }

    /// Whether an image for `self` is what `wanted` asks for. `arm64` and `arm64/v8`, `amd64` and `amd64/v1` are the same.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        let variant = |platform: &Platform| match (platform.architecture.as_str(), platform.variant.as_str()) {
            ("arm64", "v8") | ("amd64", "v1") => String::new(),
            (_, variant) => variant.to_owned(),
        };
        self.os == wanted.os && self.architecture == wanted.architecture && variant(self) == variant(wanted)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// The configuration blob of an image; its digest is the image's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) author: Option<String>,
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) config: ImageConfig,
    pub(crate) rootfs: RootFs,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) history: Vec<History>,
}

/// The layers of an image by the digests of their uncompressed tars, lowest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) diff_ids: Vec<Digest>,
}

/// Points at a blob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// One image: its configuration and its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Several images, or an OCI layout's list of contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

/// One image of docker-archive's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ArchivedImage {
    pub(crate) config: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) repo_tags: Vec<String>,
    pub(crate) layers: Vec<String>,
}
