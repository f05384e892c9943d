//! What a node and a manager say to each other over one upgraded connection, in frames of a length and JSON.
//!
//! The manager begins with [`Told::Complete`] and goes on with [`Told::Change`]s, numbered without a gap; a node that misses one ends
//! the connection, and its next begins complete again. The node says [`Said`], numbered by itself; the manager acknowledges by
//! [`Told::Taken`] what the log has, and the node repeats on its next connection what was not acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use orch_spec::assignment::{Assignment, NodeReport, TaskAssignment, TaskId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::cluster::PeerView;

/// `Upgrade` header of a node's session.
pub const SESSION: &str = "orch-session";
/// `Upgrade` header of heartbeats.
pub const HEARTBEAT: &str = "orch-heartbeat";
/// `Upgrade` header of messages between managers.
pub const RAFT: &str = "orch-raft";
/// Largest frame: an assignment of a node that is full, with all its secrets and configs.
pub const MAX_FRAME: usize = 64 << 20;

/// Manager to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Everything that the node shall run.
    Complete(Box<Assignment>),
    /// What is different from the assignment before.
    Change {
        /// Grows by one from 1 after the complete one.
        number: u64,
        /// The difference.
        change: Box<AssignmentChange>,
    },
    /// Reports up to this number are in the log.
    Taken(u64),
    /// Who manages, and who leads.
    Managers {
        /// All of them.
        managers: Vec<PeerView>,
        /// The leader's node; empty = none.
        leader: String,
        /// Names of nodes and clients that are never let in again.
        revoked: Vec<String>,
    },
    /// The node's role has changed: it asks for a new certificate.
    Role(String),
}

/// Node to manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Grows by one from 1 in each connection.
    pub number: u64,
    /// What.
    pub report: NodeReport,
}

/// Node to leader, again and again; and the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Grows by one.
    pub number: u64,
    /// In an answer: whether the one who answers leads, and counts the beat.
    #[serde(default)]
    pub counted: bool,
    /// In an answer: who leads, when it is another.
    #[serde(default)]
    pub leader: Option<PeerView>,
}

/// The difference of two assignments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssignmentChange {
    /// The new one with only those tasks that are new or different.
    pub assignment: Assignment,
    /// The parts of the new one that are as they were, and left out of `assignment`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub same: BTreeSet<Part>,
    /// All tasks of the new one in their order; those that are not in `assignment` stay as they were.
    pub order: Vec<TaskId>,
}

/// A part of an assignment that is left out when nothing in it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Networks.
    Networks,
    /// Volumes.
    Volumes,
    /// Names.
    Names,
    /// Services.
    Services,
    /// Mesh ports.
    MeshPorts,
}

/// A change that does not fit what it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the change keeps task {0}, which is not there")]
pub struct Gap(pub TaskId);

impl AssignmentChange {
    /// What turns one assignment into another.
    pub fn between(old: &Assignment, new: &Assignment) -> Self {
        let known: BTreeMap<&TaskId, &TaskAssignment> = old.tasks.iter().map(|task| (&task.id, task)).collect();
        let order = new.tasks.iter().map(|task| task.id.clone()).collect();
        let tasks = new.tasks.iter().filter(|task| known.get(&task.id) != Some(task)).cloned().collect();
        let mut assignment = Assignment { tasks, ..new.clone() };
        let mut same = BTreeSet::new();
        let mut leave_out = |part, is_same: bool| is_same && same.insert(part);
        if leave_out(Part::Networks, old.networks == new.networks) {
            assignment.networks.clear();
        }
        if leave_out(Part::Volumes, old.volumes == new.volumes) {
            assignment.volumes.clear();
        }
        if leave_out(Part::Names, old.names == new.names) {
            assignment.names.clear();
        }
        if leave_out(Part::Services, old.services == new.services) {
            assignment.services.clear();
        }
        if leave_out(Part::MeshPorts, old.mesh_ports == new.mesh_ports) {
            assignment.mesh_ports.clear();
        }
        Self { assignment, same, order }
    }

    /// The new assignment.
    ///
    /// # Errors
    /// [`Gap`] when `old` is not what the change was made from.
    pub fn apply(self, old: &Assignment) -> Result<Assignment, Gap> {
        let mut assignment = self.assignment;
        let mut changed: BTreeMap<TaskId, TaskAssignment> =
            std::mem::take(&mut assignment.tasks).into_iter().map(|task| (task.id.clone(), task)).collect();
        let known: BTreeMap<&TaskId, &TaskAssignment> = old.tasks.iter().map(|task| (&task.id, task)).collect();
        for id in self.order {
            let task = changed.remove(&id).or_else(|| known.get(&id).map(|task| (*task).clone()));
            assignment.tasks.push(task.ok_or(Gap(id))?);
        }
        for part in self.same {
            match part {
                Part::Networks => assignment.networks.clone_from(&old.networks),
                Part::Volumes => assignment.volumes.clone_from(&old.volumes),
                Part::Names => assignment.names.clone_from(&old.names),
                Part::Services => assignment.services.clone_from(&old.services),
                Part::MeshPorts => assignment.mesh_ports.clone_from(&old.mesh_ports),
            }
        }
        Ok(assignment)
    }
}

/// Writes a frame: a big-endian `u32` length and the bytes.
///
/// # Errors
/// The connection's.
pub async fn write_bytes(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(bytes);
    writer.write_all(&frame).await?;
    writer.flush().await
}

/// Reads a frame; `None` at the end of the connection.
///
/// # Errors
/// The connection's, and [`std::io::ErrorKind::InvalidData`] for a frame above the bound.
pub async fn read_bytes(reader: &mut (impl AsyncRead + Unpin), most: usize) -> std::io::Result<Option<Bytes>> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_be_bytes(length) as usize;
    if length > most {
        let text = format!("a frame of {length} bytes, where at most {most} are allowed");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
    }
    // In pieces, so that a length alone takes no memory.
    let mut bytes = Vec::new();
    reader.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(bytes.into()))
}

/// Writes a message.
///
/// # Errors
/// The connection's.
pub async fn write(writer: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> std::io::Result<()> {
    write_bytes(writer, &serde_json::to_vec(message)?).await
}

/// Reads a message; `None` at the end of the connection.
///
/// # Errors
/// The connection's, and [`std::io::ErrorKind::InvalidData`] for what is not understood.
pub async fn read<T: DeserializeOwned>(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<T>> {
    let Some(bytes) = read_bytes(reader, MAX_FRAME).await? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_spec::assignment::{NameAssignment, NetworkName};

    fn task(id: &str, generation: u64) -> TaskAssignment {
        let text = serde_json::json!({
            "id": id, "stack": "s", "service": "a", "slot": 1, "container_name": id,
            "spec": orch_spec::model::ServiceSpec::default(), "spec_hash": "", "image_id": "", "desired": "running",
            "restart_generation": generation, "stop_timeout": null, "stop_signal": null, "remove_volumes": false,
            "network": "none", "pid_of": null, "ipc_of": null, "volumes": {}, "files": [],
            "renew_anonymous_volumes": false, "one_off": false,
        });
        serde_json::from_value(text).expect("a task")
    }

    fn assignment(version: u64, tasks: &[(&str, u64)], names: &[&str]) -> Assignment {
        let name = |name: &&str| NameAssignment {
            network: NetworkName::from("n"),
            name: (*name).to_owned(),
            addresses: Vec::new(),
        };
        Assignment {
            version,
            tasks: tasks.iter().map(|(id, generation)| task(id, *generation)).collect(),
            names: names.iter().map(name).collect(),
            ..Assignment::default()
        }
    }

    #[test]
    fn a_change_gives_the_new_assignment_and_carries_only_what_is_different() {
        let old = assignment(1, &[("a", 1), ("b", 1), ("c", 1)], &["x"]);
        for new in [
            assignment(2, &[("d", 1), ("a", 1), ("b", 2), ("c", 1)], &["x"]),
            assignment(2, &[("c", 1)], &[]),
            assignment(2, &[], &["y"]),
            old.clone(),
        ] {
            let change = AssignmentChange::between(&old, &new);
            let text = serde_json::to_vec(&change).unwrap();
            let change: AssignmentChange = serde_json::from_slice(&text).unwrap();
            assert!(change.assignment.tasks.len() < 3, "unchanged tasks are not sent");
            assert_eq!(change.apply(&old).unwrap(), new);
        }
    }

    #[test]
    fn a_change_of_another_assignment_is_a_gap() {
        let change = AssignmentChange::between(&assignment(1, &[("a", 1)], &[]), &assignment(2, &[("a", 1)], &[]));
        assert_eq!(change.apply(&assignment(1, &[("b", 1)], &[])), Err(Gap("a".into())));
    }

    #[tokio::test]
    async fn a_frame_that_claims_to_be_huge_takes_no_memory() {
        let mut bytes: &[u8] = &[0xff, 0xff, 0xff, 0xff, 1, 2];
        assert!(read_bytes(&mut bytes, MAX_FRAME).await.is_err());
        let mut bytes: &[u8] = &[0, 0, 0, 9, 1, 2];
        assert!(read_bytes(&mut bytes, MAX_FRAME).await.is_err(), "cut short");
        let mut bytes: &[u8] = &[];
        assert_eq!(read_bytes(&mut bytes, MAX_FRAME).await.unwrap(), None);
    }
}
