//! Rolling updates as they are remembered: every timer is an absolute time of the log, so that a new leader goes on where the old was.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::TaskId;
use orch_spec::model::{FailureAction, UpdateConfig, UpdateOrder};
use serde::{Deserialize, Serialize};

use super::stack::RevisionId;

/// How long a slot may take to be replaced before that counts as a failure, milliseconds: Nomad's and Kubernetes' ten minutes. Every
/// update ends because of it.
pub(crate) const PROGRESS_DEADLINE_MS: u64 = 600_000;
/// How long a new task is watched when the file does not say, milliseconds: Swarm's.
pub(crate) const MONITOR_MS: u64 = 5_000;
/// Former specifications that are remembered.
pub(crate) const HISTORY: usize = 10;

/// A specification that a service had before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// The specification.
    pub revision: RevisionId,
    /// The image that it was run with; empty = not known.
    pub image_id: String,
}

/// How far an update is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// It goes on.
    #[default]
    Updating,
    /// It failed and waits for a person; what has not been replaced runs on as it was.
    Paused,
    /// It is done.
    Completed,
    /// It failed, and the service goes back to what it was.
    RollingBack,
    /// Going back failed too, and waits for a person.
    RollbackPaused,
    /// The service is what it was before.
    RolledBack,
}

impl RolloutState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollingBack => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RolledBack => "rollback_completed",
        }
    }

    /// Whether something is still to be done without anybody's doing.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Updating | Self::RollingBack)
    }
}

/// What the file says of updates, with everything filled in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutRules {
    /// Slots at a time; 0 = all.
    pub parallelism: u32,
    /// Rest after each slot, milliseconds.
    pub delay: u64,
    /// How long a new task is watched, milliseconds.
    pub monitor: u64,
    /// What too many failures lead to.
    pub failure_action: FailureAction,
    /// Share of failures that is tolerated, millionths.
    pub max_failures: u64,
    /// Which goes first.
    pub order: UpdateOrder,
    /// How long a slot may take, milliseconds.
    pub deadline: u64,
}

impl RolloutRules {
    /// With everything that the file leaves out filled in.
    pub(crate) fn new(config: Option<&UpdateConfig>) -> Self {
        let config = config.copied().unwrap_or_default();
        let millis = |duration: Option<orch_spec::model::Duration>, default: u64| {
            duration.map_or(default, |duration| u64::try_from(duration.as_millis()).unwrap_or(0))
        };
        Self {
            parallelism: config.parallelism.unwrap_or(1),
            delay: millis(config.delay, 0),
            monitor: millis(config.monitor, MONITOR_MS),
            failure_action: config.failure_action.unwrap_or_default(),
            max_failures: u64::from(config.max_failure_ratio.0),
            order: config.order.unwrap_or_default(),
            deadline: PROGRESS_DEADLINE_MS,
        }
    }
}

/// A slot that is being replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// The new task.
    pub task: TaskId,
    /// When it must be ready at the latest.
    pub deadline: u64,
}

/// A rolling update of one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// How far it is.
    pub state: RolloutState,
    /// Why it is so, for people.
    pub message: String,
    /// Somebody asked to go back.
    #[serde(default)]
    pub asked: bool,
    /// Index of the entry that it began with.
    #[serde(default)]
    pub begun: u64,
    /// Milliseconds since the epoch.
    pub started_at: u64,
    /// Milliseconds since the epoch.
    pub finished_at: Option<u64>,
    /// How it goes.
    pub rules: RolloutRules,
    /// Slots that were out of date when it began.
    pub total: u32,
    /// Slots that are being replaced.
    pub lanes: BTreeMap<u32, Lane>,
    /// Slots that are done: replaced, or given up.
    pub done: u32,
    /// When places that rest after a slot are free again.
    pub resting: Vec<u64>,
    /// New tasks that became ready → until when they are watched.
    pub watched: BTreeMap<TaskId, u64>,
    /// New tasks that failed.
    pub failed: BTreeSet<TaskId>,
    /// What the service was when it began, for going back.
    pub former: Option<Former>,
}
