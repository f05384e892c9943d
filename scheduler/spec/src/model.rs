//! The typed model: what a stack file means once everything in it is merged, interpolated and resolved.
//!
//! A [`StackSpec`] is self-contained. It travels from the CLI over the API into the replicated log, so the client has
//! read env files, label files, secret and config files and variables before, and bind paths are absolute. Every type
//! serialises in formats that describe themselves (JSON) and in such that do not (postcard): no untagged enumerations,
//! no skipped fields. In JSON a missing field takes its default, so an older client can talk to a newer server.

mod deploy;
mod derived;
mod digest;
mod mount;
mod network;
mod service;
mod value;

pub use deploy::{
    BlkioConfig, Constraint, ConstraintOperator, DeployMode, DeployResources, DeployRestartPolicy, DeploySpec,
    DeviceRequest, EndpointMode, FailureAction, PlacementSpec, ResourceLimits, ResourceReservations, RestartCondition,
    RestartPolicy, UpdateConfig, UpdateOrder,
};
pub use derived::{DEFAULT_STOP_TIMEOUT, EffectiveRestart, Resources};
pub use digest::ServiceDigest;
pub use mount::{FileObjectOrigin, FileObjectSpec, MountSource, MountSpec, TmpfsSpec, VolumeSpec, VolumesFrom};
pub use network::{
    IpamPool, IpamSpec, NetworkAttachment, NetworkMode, NetworkSpec, PortRange, PortSpec, Protocol, PublishMode,
};
pub use service::{
    Dependency, DependencyCondition, DeviceSpec, ExposeSpec, GrantSpec, HealthTest, Healthcheck, HookSpec, LinkSpec,
    LoggingSpec, NamespaceMode, PullPolicy, SeccompProfile, SecurityOptions, ServiceSpec, Ulimit,
};
pub use value::{ByteSize, ContentBytes, Data, DataMap, Duration, NanoCpus, Ratio, ValueError};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A whole stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StackSpec {
    /// Project name: lower-case letters, digits, `-`, `_`; begins with a letter or digit.
    pub name: String,
    /// Services that are on, by name.
    pub services: BTreeMap<String, ServiceSpec>,
    /// Networks by the key the services use.
    pub networks: BTreeMap<String, NetworkSpec>,
    /// Volumes by the key the services use.
    pub volumes: BTreeMap<String, VolumeSpec>,
    /// Secrets by the key the services use.
    pub secrets: BTreeMap<String, FileObjectSpec>,
    /// Configs by the key the services use.
    pub configs: BTreeMap<String, FileObjectSpec>,
    /// AI models by key, as data.
    pub models: DataMap,
    /// Services that the file has but no active profile turns on; `down` and `ps` may want to know them.
    pub inactive_services: Vec<String>,
    /// Top-level `x-*` keys.
    pub extensions: DataMap,
}
