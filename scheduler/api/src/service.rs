//! Requests and answers about nodes, services and single tasks of a cluster; the routes are in [`crate::openapi`].
//!
//! A node is named by its id, the beginning of one that only one has, or its host name; a service by `<stack>_<service>`, or by its name
//! alone when only one stack has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orch_spec::model::ServiceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::{Event, ServiceView, TaskView};

/// What people set about a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeUpdate {
    /// `active`, `pause` or `drain`; `None` = as it is.
    pub availability: Option<String>,
    /// `manager` or `worker`; `None` = as it is.
    pub role: Option<String>,
    /// Labels to set.
    pub labels: BTreeMap<String, String>,
    /// Labels to take away.
    pub remove_labels: BTreeSet<String>,
}

/// A change of one service as it was applied. What is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServiceUpdate {
    /// Another image.
    pub image: Option<String>,
    /// Another number of replicas.
    pub replicas: Option<u32>,
    /// Variables to set.
    pub env: BTreeMap<String, String>,
    /// Variables to take away.
    pub remove_env: BTreeSet<String>,
    /// Constraints to add, as in the file.
    pub constraints: Vec<String>,
    /// Constraints to take away, as in the file.
    pub remove_constraints: Vec<String>,
    /// Slots at a time; 0 = all.
    pub update_parallelism: Option<u32>,
    /// Rest after each, as in the file: `10s`.
    pub update_delay: Option<String>,
    /// `stop-first` or `start-first`.
    pub update_order: Option<String>,
    /// `pause`, `continue` or `rollback`.
    pub update_failure_action: Option<String>,
    /// New containers although nothing changed.
    pub force: bool,
}

/// A service with everything about it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceDetail {
    /// The service.
    pub service: ServiceView,
    /// As it was applied.
    #[schemars(with = "crate::openapi::Model")]
    pub spec: Arc<ServiceSpec>,
    /// Versions that it can go back to.
    pub history: usize,
    /// Its virtual addresses by network.
    pub vips: BTreeMap<String, Vec<std::net::IpAddr>>,
    /// Its tasks.
    pub tasks: Vec<TaskView>,
}

/// A rolling update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpdateView {
    /// `updating`, `paused`, `completed`, `rollback_started`, `rollback_paused`, `rollback_completed`.
    pub state: String,
    /// Why it is so.
    pub message: String,
    /// Slots that were out of date when it began.
    pub total: u32,
    /// Slots that are done.
    pub done: u32,
    /// New tasks that failed.
    pub failed: usize,
    /// Somebody asked to go back.
    pub asked: bool,
    /// Index of the log entry that it began with.
    pub begun: u64,
    /// Milliseconds since the epoch.
    pub started_at: u64,
    /// Milliseconds since the epoch.
    pub finished_at: Option<u64>,
}

/// Why a task is where and as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskExplanation {
    /// The task.
    pub task: TaskView,
    /// What it comes to in a sentence.
    pub summary: String,
    /// Every node: whether a task like this would fit there now.
    pub nodes: Vec<NodeVerdict>,
    /// What has happened to it lately, oldest first.
    pub events: Vec<Event>,
}

/// Whether a node would take a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeVerdict {
    /// Its id.
    pub node: String,
    /// Its host name.
    pub hostname: String,
    /// It would.
    pub fits: bool,
    /// Why not: `constraint`, `resources`, `state`, `availability`, `platform`, `port`, `max_replicas_per_node`, `volume`; empty if it would.
    pub reason: String,
    /// The same as a sentence.
    pub text: String,
}
