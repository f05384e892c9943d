//! What follows from a spec: replicas, effective resources, the effective restart policy.

use super::deploy::{BlkioConfig, DeviceRequest, RestartCondition, RestartPolicy};
use super::service::ServiceSpec;
use super::value::{ByteSize, Duration, NanoCpus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Compose's default time between the polite stop and the kill.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The resources of one task: the service's own keys and `deploy.resources`, merged (the loader has made sure that where
/// both are set they agree).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Processor time limit.
    pub cpus: Option<NanoCpus>,
    /// Relative weight.
    pub cpu_shares: Option<u64>,
    /// CFS quota in microseconds, when given instead of `cpus`.
    pub cpu_quota: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// Processors it may run on.
    pub cpuset: Option<String>,
    /// Memory limit.
    pub memory: Option<ByteSize>,
    /// Memory plus swap; -1 = unlimited; `None` = twice the memory.
    pub memory_swap: Option<ByteSize>,
    /// cgroup v1 only.
    pub memory_swappiness: Option<u8>,
    /// Process limit; `None` = the engine's default.
    pub pids: Option<i64>,
    /// Guaranteed processor time; what placement counts with.
    pub reserved_cpus: Option<NanoCpus>,
    /// Guaranteed memory; what placement counts with.
    pub reserved_memory: Option<ByteSize>,
    /// Countable resources, by kind.
    pub generic: BTreeMap<String, i64>,
    /// Devices by capability (`deploy` reservations and `gpus`).
    pub devices: Vec<DeviceRequest>,
    /// Block input/output.
    pub blkio: Option<BlkioConfig>,
}

/// What happens when a task ends, after `deploy.restart_policy` and `restart` are brought together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveRestart {
    /// When a new task is started.
    pub condition: RestartCondition,
    /// Wait before it; `None` = the scheduler's back-off.
    pub delay: Option<Duration>,
    /// `None` = without end.
    pub max_attempts: Option<u32>,
    /// Time alive that makes a start a success.
    pub window: Option<Duration>,
    /// A task that a person stopped stays stopped, also after the agent's restart.
    pub unless_stopped: bool,
}

impl ServiceSpec {
    /// Number of tasks: `scale`, else `deploy.replicas`, else 1. Meaningless for the global modes.
    pub fn replicas(&self) -> u32 {
        self.scale.or(self.deploy.replicas).unwrap_or(1)
    }

    /// The top-level resource keys and `deploy.resources` as one.
    pub fn resources(&self) -> Resources {
        let (limits, reservations) = (&self.deploy.resources.limits, &self.deploy.resources.reservations);
        let unset_zero = |size: Option<ByteSize>| size.filter(|size| size.0 != 0);
        let cpus = self.cpus.or(limits.cpus).filter(|cpus| cpus.0 != 0);
        Resources {
            // `cpus` is a quota of the usual period: beside it these two have no effect, of which the loader warns.
            cpu_quota: self.cpu_quota.filter(|_| cpus.is_none()),
            cpu_period: self.cpu_period.filter(|_| cpus.is_none()),
            cpus,
            cpu_shares: self.cpu_shares,
            cpuset: self.cpuset.clone(),
            memory: unset_zero(self.mem_limit.or(limits.memory)),
            memory_swap: unset_zero(self.memswap_limit),
            memory_swappiness: self.mem_swappiness,
            pids: self.pids_limit.or(limits.pids).filter(|pids| *pids != 0),
            reserved_cpus: reservations.cpus,
            reserved_memory: unset_zero(self.mem_reservation.or(reservations.memory)),
            generic: reservations.generic_resources.clone(),
            devices: reservations.devices.iter().chain(&self.gpus).cloned().collect(),
            blkio: self.blkio_config.clone(),
        }
    }

    /// The restart policy that holds: `deploy.restart_policy` before `restart`. `None` when the file says neither, so that
    /// the scheduler applies its own default for the mode.
    pub fn restart_policy(&self) -> Option<EffectiveRestart> {
        if let Some(policy) = self.deploy.restart_policy {
            return Some(EffectiveRestart {
                condition: policy.condition.unwrap_or_default(),
                delay: policy.delay,
                max_attempts: policy.max_attempts.filter(|attempts| *attempts > 0),
                window: policy.window,
                unless_stopped: false,
            });
        }
        let of = |condition, max_attempts, unless_stopped| EffectiveRestart {
            condition,
            delay: None,
            max_attempts,
            window: None,
            unless_stopped,
        };
        Some(match self.restart? {
            RestartPolicy::No => of(RestartCondition::None, None, false),
            RestartPolicy::Always => of(RestartCondition::Any, None, false),
            RestartPolicy::OnFailure { max_attempts } => {
                of(RestartCondition::OnFailure, max_attempts.filter(|attempts| *attempts > 0), false)
            }
            RestartPolicy::UnlessStopped => of(RestartCondition::Any, None, true),
        })
    }

    /// Time between the polite stop and the kill.
    pub fn stop_timeout(&self) -> Duration {
        self.stop_grace_period.unwrap_or(DEFAULT_STOP_TIMEOUT)
    }
}
