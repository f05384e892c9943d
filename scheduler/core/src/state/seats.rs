//! The tasks of one service, in the order of their slots and ages.

use std::collections::BTreeSet;
use std::sync::Arc;

use orch_spec::assignment::TaskId;
use serde::{Deserialize, Serialize};

use super::Task;

/// Slot (0 = one-off), number among all tasks ever made, id.
type Seat = (u32, u64, TaskId);

/// Ids of the tasks of one service by slot and age, so that whoever asks for one slot does not look at all.
///
/// Cloning costs nothing until one of both changes: every plan begins with a copy of its stack.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Written>")]
pub struct Seats(Arc<BTreeSet<Seat>>);

/// A seat in a snapshot; earlier ones had ids alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seat(Seat),
    Id(TaskId),
}

impl From<Vec<Written>> for Seats {
    fn from(written: Vec<Written>) -> Self {
        let seat = |one| match one {
            Written::Seat(seat) => seat,
            Written::Id(id) => (0, 0, id),
        };
        Self(Arc::new(written.into_iter().map(seat).collect()))
    }
}

impl Seats {
    /// One-offs first, then by slot, the oldest of a slot first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &TaskId> {
        self.0.iter().map(|(_, _, id)| id)
    }

    /// Those of one slot, the oldest first.
    pub fn of_slot(&self, slot: u32) -> impl DoubleEndedIterator<Item = &TaskId> {
        // No sequence is 0, and none is as high as the other bound: tasks are counted from 1.
        let (first, beyond) = ((slot, 0, TaskId::default()), (slot, u64::MAX, TaskId::default()));
        self.0.range(first..beyond).map(|(_, _, id)| id)
    }

    /// Replicas by slot and age, then one-offs by age.
    pub fn in_order(&self) -> impl Iterator<Item = &TaskId> {
        let first = (1, 0, TaskId::default());
        self.0.range(first.clone()..).chain(self.0.range(..first)).map(|(_, _, id)| id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a task is among them.
    pub fn contains(&self, task: &Task) -> bool {
        self.0.contains(&seat(task))
    }

    pub(crate) fn insert(&mut self, task: &Task) {
        let seat = seat(task);
        if !self.0.contains(&seat) {
            Arc::make_mut(&mut self.0).insert(seat);
        }
    }

    /// Says whether it was among them.
    pub(crate) fn remove(&mut self, task: &Task) -> bool {
        let seat = seat(task);
        self.0.contains(&seat) && Arc::make_mut(&mut self.0).remove(&seat)
    }
}

fn seat(task: &Task) -> Seat {
    (task.slot, task.sequence, task.id.clone())
}
