//! Replicas, placement, resources, updates and restarts.

use super::value::{ByteSize, DataMap, Duration, NanoCpus, Ratio};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `deploy` section; `None` and empty = not said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeploySpec {
    /// How many tasks and where.
    pub mode: DeployMode,
    /// Number of tasks. Use [`super::ServiceSpec::replicas`].
    pub replicas: Option<u32>,
    /// How the service is found; `None` = `vip` on a cluster, `dnsrr` on one host.
    pub endpoint_mode: Option<EndpointMode>,
    /// Labels of the service, not of its containers.
    pub labels: BTreeMap<String, String>,
    /// Where tasks may go.
    pub placement: PlacementSpec,
    /// Limits and reservations. Use [`super::ServiceSpec::resources`].
    pub resources: DeployResources,
    /// Wins over `restart`.
    pub restart_policy: Option<DeployRestartPolicy>,
    /// How an update rolls.
    pub update_config: Option<UpdateConfig>,
    /// How a rollback rolls.
    pub rollback_config: Option<UpdateConfig>,
    /// `x-*` keys.
    pub extensions: DataMap,
}

/// How many tasks and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeployMode {
    /// A number of tasks.
    #[default]
    Replicated,
    /// One task on every node that fits.
    Global,
    /// A number of tasks that run to their end.
    ReplicatedJob,
    /// One task on every node, run to its end.
    GlobalJob,
}

impl DeployMode {
    /// Whether the tasks are expected to end.
    pub const fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob | Self::GlobalJob)
    }

    /// Whether there is one task per node.
    pub const fn is_global(self) -> bool {
        matches!(self, Self::Global | Self::GlobalJob)
    }
}

/// How a service's name resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// One virtual address.
    Vip,
    /// The addresses of all tasks.
    Dnsrr,
}

/// Where tasks may go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlacementSpec {
    /// All must hold.
    pub constraints: Vec<Constraint>,
    /// Label paths to spread over, most important first, e.g. `node.labels.zone`.
    pub spread: Vec<String>,
    /// 0 = no limit.
    pub max_replicas_per_node: u32,
}

/// What a node must be: `node.labels.disk == ssd`, `node.role != manager`, `node.labels.zone in (a, b)`, `node.labels.gpu exists`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// `node.id`, `node.hostname`, `node.role`, `node.platform.os`, `node.platform.arch`, `node.labels.X`, `engine.labels.X`, …
    pub key: String,
    /// How the node's value and these are compared.
    pub operator: ConstraintOperator,
    /// One for `==` and `!=`, some for `in` and `notin`, none for `exists` and `!exists`.
    pub values: Vec<String>,
}

/// See [`Constraint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConstraintOperator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `in`
    In,
    /// `notin`
    NotIn,
    /// `exists`
    Exists,
    /// `!exists`
    Missing,
}

impl std::str::FromStr for Constraint {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let made = |key: &str, operator, values: Vec<&str>| {
            let values: Vec<String> = values.into_iter().map(|value| value.trim().to_owned()).collect();
            let (key, blank) = (key.trim().to_owned(), values.iter().any(String::is_empty));
            let valid = !key.is_empty() && !key.contains(char::is_whitespace) && !blank;
            if valid { Ok(Self { key, operator, values }) } else { Err(()) }
        };
        // A single `=` is no operator, but leaves no doubt about what is meant.
        if let Some((key, value)) = text.split_once("!=") {
            return made(key, ConstraintOperator::NotEqual, vec![value]);
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return made(key, ConstraintOperator::Equal, vec![value]);
        }
        let (key, rest) = text.trim().split_once(char::is_whitespace).ok_or(())?;
        let (word, list) = match rest.trim().split_once('(') {
            Some((word, list)) => (word.trim(), Some(list.trim().strip_suffix(')').ok_or(())?)),
            None => (rest.trim(), None),
        };
        match (word, list) {
            ("in", Some(list)) => made(key, ConstraintOperator::In, list.split(',').collect()),
            ("notin", Some(list)) => made(key, ConstraintOperator::NotIn, list.split(',').collect()),
            ("exists", None) => made(key, ConstraintOperator::Exists, Vec::new()),
            ("!exists", None) => made(key, ConstraintOperator::Missing, Vec::new()),
            _ => Err(()),
        }
    }
}

impl std::fmt::Display for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = self.values.join(", ");
        match self.operator {
            ConstraintOperator::Equal => write!(f, "{} == {values}", self.key),
            ConstraintOperator::NotEqual => write!(f, "{} != {values}", self.key),
            ConstraintOperator::In => write!(f, "{} in ({values})", self.key),
            ConstraintOperator::NotIn => write!(f, "{} notin ({values})", self.key),
            ConstraintOperator::Exists => write!(f, "{} exists", self.key),
            ConstraintOperator::Missing => write!(f, "{} !exists", self.key),
        }
    }
}

/// The `deploy.resources` section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeployResources {
    /// Hard limits.
    pub limits: ResourceLimits,
    /// Guaranteed amounts, what placement counts with.
    pub reservations: ResourceReservations,
}

/// Hard limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimits {
    /// Processor time.
    pub cpus: Option<NanoCpus>,
    /// Memory.
    pub memory: Option<ByteSize>,
    /// Processes.
    pub pids: Option<i64>,
}

/// Guaranteed amounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceReservations {
    /// Processor time.
    pub cpus: Option<NanoCpus>,
    /// Memory.
    pub memory: Option<ByteSize>,
    /// Countable resources that users define, by kind.
    pub generic_resources: BTreeMap<String, i64>,
    /// Devices.
    pub devices: Vec<DeviceRequest>,
}

/// A wish for devices by what they can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRequest {
    /// What they must be able to do, e.g. `gpu`.
    pub capabilities: Vec<String>,
    /// How many; -1 = all. `None` when ids are given.
    pub count: Option<i64>,
    /// Exactly these.
    pub device_ids: Vec<String>,
    /// Driver, e.g. `nvidia`.
    pub driver: Option<String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// The `restart` key: what happens when a task ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// Always a new one.
    Always,
    /// A new one unless it ended with 0.
    OnFailure {
        /// `None` = without end.
        max_attempts: Option<u32>,
    },
    /// Always, unless a person stopped it.
    UnlessStopped,
}

/// The `deploy.restart_policy` section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeployRestartPolicy {
    /// When; `None` = any.
    pub condition: Option<RestartCondition>,
    /// Wait before a new start.
    pub delay: Option<Duration>,
    /// `None` or 0 = without end.
    pub max_attempts: Option<u32>,
    /// How long it must have lived for the start to count as a success.
    pub window: Option<Duration>,
}

/// When a task is replaced after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// Never.
    None,
    /// When it failed.
    OnFailure,
    /// In any case.
    #[default]
    Any,
}

/// How an update or rollback rolls over the tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Tasks at a time; 0 = all; `None` = 1.
    pub parallelism: Option<u32>,
    /// Wait between two groups.
    pub delay: Option<Duration>,
    /// What a failure leads to; `None` = pause.
    pub failure_action: Option<FailureAction>,
    /// How long a new task is watched for failure.
    pub monitor: Option<Duration>,
    /// Share of failures that is tolerated.
    pub max_failure_ratio: Ratio,
    /// Stop the old one first or start the new one first; `None` = stop-first.
    pub order: Option<UpdateOrder>,
}

/// What a failed update leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// Go on.
    Continue,
    /// Wait for a person.
    #[default]
    Pause,
    /// Go back to the previous spec.
    Rollback,
}

/// Order of replacing a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The old one stops first.
    #[default]
    StopFirst,
    /// The new one starts first.
    StartFirst,
}

/// Block input/output limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioConfig {
    /// 10..1000.
    pub weight: Option<u16>,
    /// Weights by device path.
    pub weight_device: BTreeMap<String, u16>,
    /// Bytes per second by device path.
    pub device_read_bps: BTreeMap<String, u64>,
    /// Bytes per second by device path.
    pub device_write_bps: BTreeMap<String, u64>,
    /// Operations per second by device path.
    pub device_read_iops: BTreeMap<String, u64>,
    /// Operations per second by device path.
    pub device_write_iops: BTreeMap<String, u64>,
}
