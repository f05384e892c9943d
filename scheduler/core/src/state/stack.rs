//! Stacks, their services and the specifications of these.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use orch_spec::assignment::{FileAssignment, NetworkName};
use orch_spec::model::ServiceSpec;
use serde::{Deserialize, Serialize};

use super::rollout::{Former, Rollout};
use super::seats::Seats;
use super::task::Task;

/// A specification in the state's table of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionId(pub u64);

/// A service's specification with everything resolved that the stack around it decides.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// The service as the file says it.
    pub spec: Arc<ServiceSpec>,
    /// Digest of what forces new containers.
    pub hash: String,
    /// Networks it uses: key → full name.
    pub networks: BTreeMap<String, NetworkName>,
    /// Named volumes it uses: key → full name.
    pub volumes: BTreeMap<String, String>,
    /// Its secrets and configs.
    pub files: Vec<FileAssignment>,
}

/// A stack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// Paths of the files it was applied from.
    pub files: Vec<String>,
    /// Services that have been brought up.
    pub services: BTreeMap<String, Service>,
    /// Its tasks by service; also for services that are not in `services` (one-offs).
    pub tasks: BTreeMap<String, Seats>,
    /// Tasks that are not yet told all of their goal, by service: only these can be concerned by what happens to others.
    #[serde(default)]
    pub restless: BTreeMap<String, Seats>,
    /// Service → services that depend on it, by present and by former specifications; some that do not any more may be among them.
    pub dependents: BTreeMap<String, BTreeSet<String>>,
    /// The same the other way round: service → services that it needs.
    #[serde(default)]
    pub needs: BTreeMap<String, BTreeSet<String>>,
    /// It is being taken down.
    pub removing: Option<Removing>,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    /// Index of the last entry that changed its services or files.
    pub changed: u64,
}

/// How a stack is taken down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removing {
    /// Volumes go too.
    pub volumes: bool,
}

/// A service of a stack.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its specification.
    pub revision: RevisionId,
    /// Replicas it shall have.
    pub replicas: u32,
    /// Image it was last planned with; empty = not known.
    pub image_id: String,
    /// The file has it no more.
    pub orphan: bool,
    /// Grows with every change that needs new containers. A task of an earlier generation is out of date.
    #[serde(default)]
    pub generation: u64,
    /// The rolling update that goes on, or how the last one ended.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// What it was before, the latest last.
    #[serde(default)]
    pub history: Vec<Former>,
    /// Ports that every node publishes for it. Empty on a host that is alone.
    #[serde(default)]
    pub mesh_ports: Vec<MeshPort>,
}

/// A port that every node publishes for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPort {
    /// Address of the host, `None` = all.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub published: u16,
    /// Port inside.
    pub target: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

impl Stack {
    /// Notes whether one of its tasks has been told all of its goal, or is gone.
    pub(crate) fn note_rest(&mut self, task: &Task, rests: bool) {
        let Some(seats) = self.restless.get_mut(&task.service) else {
            if !rests {
                self.restless.entry(task.service.clone()).or_default().insert(task);
            }
            return;
        };
        if !rests {
            seats.insert(task);
        } else if seats.remove(task) && seats.is_empty() {
            self.restless.remove(&task.service);
        }
    }
}

impl Service {
    /// Whether a specification is one that it can go back to.
    pub fn remembers(&self, revision: RevisionId) -> bool {
        let going_back = self.rollout.as_ref().and_then(|rollout| rollout.former.as_ref());
        self.history.iter().chain(going_back).any(|former| former.revision == revision)
    }

    /// Whether an update goes on.
    pub fn is_rolling(&self) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| rollout.state.is_active())
    }
}
