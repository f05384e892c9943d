//! Mounts, volumes, and the file objects: secrets and configs.

use super::value::{ByteSize, ContentBytes, DataMap};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One entry of a service's `volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountSpec {
    /// Where it comes from.
    pub source: MountSource,
    /// Absolute path in the container.
    pub target: String,
    /// Not writable.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A volume.
    Volume {
        /// Key in the stack's `volumes`; `None` = an anonymous volume.
        name: Option<String>,
        /// Do not fill an empty volume from the image.
        nocopy: bool,
        /// Folder inside the volume.
        subpath: Option<String>,
        /// Labels of an anonymous volume.
        labels: BTreeMap<String, String>,
    },
    /// A path of the node.
    Bind {
        /// Absolute path.
        path: String,
        /// Make a folder when the path is missing, else a missing path is an error.
        create_host_path: bool,
        /// `private`, `rprivate`, `shared`, `rshared`, `slave`, `rslave`.
        propagation: Option<String>,
        /// `enabled`, `disabled`, `writable`, `readonly`.
        recursive: Option<String>,
        /// `z` or `Z`.
        selinux: Option<String>,
    },
    /// Memory.
    Tmpfs {
        /// Size limit.
        size: Option<ByteSize>,
        /// Permission bits of its root.
        mode: Option<u32>,
    },
    /// The content of an image.
    Image {
        /// Image reference.
        image: String,
        /// Folder inside the image.
        subpath: Option<String>,
    },
    /// `cluster` and `npipe`, kept by name.
    Other {
        /// The type.
        kind: String,
        /// The source.
        source: String,
    },
}

impl Default for MountSource {
    fn default() -> Self {
        Self::Volume { name: None, nocopy: false, subpath: None, labels: BTreeMap::new() }
    }
}

/// One entry of the `tmpfs` key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TmpfsSpec {
    /// Absolute path in the container.
    pub target: String,
    /// Mount options as written (`size=64m`, `mode=1777`, `uid=…`, `noexec`, …).
    pub options: Vec<String>,
}

/// One entry of `volumes_from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumesFrom {
    /// Service name, or container name if `container`.
    pub source: String,
    /// The source is a container outside of the stack.
    pub container: bool,
    /// Mount all of it read-only.
    pub read_only: bool,
}

/// One volume of the stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeSpec {
    /// Its name outside of the stack: `<stack>_<key>` unless the file names it.
    pub name: String,
    /// Driver; `None` = local.
    pub driver: Option<String>,
    /// Options of the driver.
    pub driver_opts: BTreeMap<String, String>,
    /// Must exist already.
    pub external: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `x-*` keys.
    pub extensions: DataMap,
}

/// One secret or config of the stack, its content read by the client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileObjectSpec {
    /// Its name outside of the stack: `<stack>_<key>` unless the file names it.
    pub name: String,
    /// Must exist already; then there is no content.
    pub external: bool,
    /// The content; `None` when external, by a driver, or (while only looking at a file) not read.
    pub content: Option<ContentBytes>,
    /// Where the content came from.
    pub origin: FileObjectOrigin,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver of the content.
    pub driver: Option<String>,
    /// Options of the driver.
    pub driver_opts: BTreeMap<String, String>,
    /// Driver of templates in the content.
    pub template_driver: Option<String>,
    /// `x-*` keys.
    pub extensions: DataMap,
}

/// Where a secret's or config's content came from, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileObjectOrigin {
    /// It is external or comes from a driver.
    #[default]
    Elsewhere,
    /// A file of the client, absolute path.
    File(String),
    /// A variable of the client.
    Environment(String),
    /// The stack file itself.
    Inline,
}
