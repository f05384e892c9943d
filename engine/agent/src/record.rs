//! What outlives the agent beside the engine's own files: one small record a task, and one file for each container of no stack.
//!
//! Written aside and renamed, so that a reader sees the old or the new one. Not fsynced: after a power failure no container runs, and
//! what these files know (how often one was restarted, whether somebody stopped it) then matters no more; a container of no stack is
//! the exception, and its file is fsynced.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use orch_spec::assignment::{TaskAssignment, TaskId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize as SerializeDerive};

use crate::task::TaskRecord;

/// A container that belongs to no stack: its own little assignment.
#[derive(Debug, Clone, PartialEq, SerializeDerive, Deserialize)]
pub struct LocalTask {
    /// What it shall be; its id is the container's.
    pub task: TaskAssignment,
    /// Remove it once it has exited for good.
    pub auto_remove: bool,
    /// Networks on which it holds an address.
    pub reserved: Vec<String>,
}

/// Could not read or write a record.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}")]
pub struct RecordError {
    /// `write`, `read`, `remove`.
    pub doing: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// The records of one agent.
#[derive(Debug)]
pub struct Records {
    tasks: PathBuf,
    locals: PathBuf,
}

impl Records {
    /// Opens (makes) the two directories below `data_dir`.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(data_dir: &Path) -> Result<Self, RecordError> {
        let records = Self { tasks: data_dir.join("tasks"), locals: data_dir.join("local") };
        for path in [&records.tasks, &records.locals] {
            std::fs::create_dir_all(path).map_err(|source| RecordError {
                doing: "make",
                path: path.clone(),
                source,
            })?;
        }
        Ok(records)
    }

    /// Reads all; what cannot be understood is left out and named.
    pub fn read(&self) -> (BTreeMap<TaskId, TaskRecord>, BTreeMap<TaskId, LocalTask>, Vec<PathBuf>) {
        let mut bad = Vec::new();
        let tasks = read_all(&self.tasks, &mut bad);
        let locals = read_all(&self.locals, &mut bad);
        (tasks, locals, bad)
    }

    /// Writes a task's record.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_task(&self, id: &TaskId, record: &TaskRecord) -> Result<(), RecordError> {
        write(&self.tasks, id, record, false)
    }

    /// Writes a container of no stack. It is on disk when this returns, unless it is removed with its exit anyway.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_local(&self, local: &LocalTask) -> Result<(), RecordError> {
        write(&self.locals, &local.task.id, local, !local.auto_remove)
    }

    /// Forgets a task's record.
    pub fn remove_task(&self, id: &TaskId) {
        remove(&self.tasks, id);
    }

    /// Forgets a container of no stack. Where files come and go fast this can take tens of milliseconds.
    pub fn remove_local(&self, id: &TaskId) {
        remove(&self.locals, id);
    }
}

fn remove(dir: &Path, id: &TaskId) {
    // Not there is as good as removed, and a file that stays is found useless at the next start.
    let _ = std::fs::remove_file(path(dir, id));
}

fn path(dir: &Path, id: &TaskId) -> PathBuf {
    dir.join(format!("{id}.json"))
}

fn read_all<T: DeserializeOwned>(dir: &Path, bad: &mut Vec<PathBuf>) -> BTreeMap<TaskId, T> {
    let mut all = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return all };
    for entry in entries.flatten() {
        let path = entry.path();
        let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json")) else {
            // A temporary file of a write that never ended.
            let _ = std::fs::remove_file(&path);
            continue;
        };
        match std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(value) => {
                all.insert(TaskId::from(id), value);
            }
            None => bad.push(path),
        }
    }
    all
}

fn write(dir: &Path, id: &TaskId, value: &impl Serialize, sync: bool) -> Result<(), RecordError> {
    let target = path(dir, id);
    let part = dir.join(format!("{id}.part"));
    let written = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        if sync {
            file.sync_all()?;
        }
        std::fs::rename(&part, &target)?;
        if sync {
            std::fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    written().map_err(|source| RecordError { doing: "write", path: target.clone(), source })
}
