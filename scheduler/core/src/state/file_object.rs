//! Secrets and configs that people have made: stacks use them by `external: true`.

use std::collections::BTreeMap;
use std::sync::Arc;

use orch_spec::model::ContentBytes;
use serde::{Deserialize, Serialize};

use super::State;

/// Secret or config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// Never shown.
    Secret,
    /// Shown to whoever may look.
    Config,
}

impl ObjectKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }

    /// How many bytes one may have: Swarm's bounds. Every manager holds them in memory.
    pub fn limit(self) -> usize {
        match self {
            Self::Secret => 500 * 1024,
            Self::Config => 1000 * 1024,
        }
    }
}

/// One of them. It keeps its name for ever; a change makes the next version of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileObject {
    /// Its name.
    pub name: String,
    /// Grows by one with every change, from 1.
    pub version: u64,
    /// The bytes.
    pub content: Arc<ContentBytes>,
    /// sha256 of them, hexadecimal.
    pub digest: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    /// See `created_at`; of the last change.
    pub updated_at: u64,
}

impl State {
    /// All of a kind.
    pub fn objects(&self, kind: ObjectKind) -> &BTreeMap<String, FileObject> {
        match kind {
            ObjectKind::Secret => &self.secrets,
            ObjectKind::Config => &self.configs,
        }
    }

    pub(crate) fn objects_mut(&mut self, kind: ObjectKind) -> &mut BTreeMap<String, FileObject> {
        match kind {
            ObjectKind::Secret => &mut self.secrets,
            ObjectKind::Config => &mut self.configs,
        }
    }

    /// Stack and service of each that uses one as it was applied.
    pub fn object_users(&self, kind: ObjectKind, name: &str) -> Vec<(String, String)> {
        let services = self.stacks.values().flat_map(|stack| {
            stack.services.iter().map(move |(service, record)| (&stack.name, service, record.revision))
        });
        let users = services.filter(|(_, _, revision)| {
            let mut files = self.revisions.get(revision).into_iter().flat_map(|revision| &revision.files);
            files.any(|file| file.external && file.name == name && file.secret == (kind == ObjectKind::Secret))
        });
        users.map(|(stack, service, _)| (stack.clone(), service.clone())).collect()
    }
}
