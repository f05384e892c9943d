//! All tasks by their ids.

use std::collections::{BTreeMap, btree_map};
use std::ops::{Index, RangeBounds};

use orch_spec::assignment::TaskId;
use serde::{Deserialize, Serialize};

use super::Task;

/// Tasks by id. Each is kept apart from the map, so that who looks for one passes ids only, and who puts one in moves no others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tasks(BTreeMap<TaskId, Box<Task>>);

impl Tasks {
    /// The task with this id.
    pub fn get(&self, id: &TaskId) -> Option<&Task> {
        self.0.get(id).map(|task| &**task)
    }

    /// The task with this id, to be changed.
    pub fn get_mut(&mut self, id: &TaskId) -> Option<&mut Task> {
        self.0.get_mut(id).map(|task| &mut **task)
    }

    /// The task with this id; when there is none, the one that is made now.
    pub(crate) fn get_or_insert_with(&mut self, id: &TaskId, make: impl FnOnce() -> Task) -> &mut Task {
        self.0.entry(id.clone()).or_insert_with(|| Box::new(make()))
    }

    /// Whether there is a task with this id.
    pub fn contains_key(&self, id: &TaskId) -> bool {
        self.0.contains_key(id)
    }

    /// Puts a task in; gives the one that had this id.
    pub fn insert(&mut self, id: TaskId, task: Task) -> Option<Task> {
        self.0.insert(id, Box::new(task)).map(|former| *former)
    }

    /// Takes a task out.
    pub fn remove(&mut self, id: &TaskId) -> Option<Task> {
        self.0.remove(id).map(|task| *task)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ids, in their order.
    pub fn keys(&self) -> btree_map::Keys<'_, TaskId, Box<Task>> {
        self.0.keys()
    }

    /// Tasks in the order of their ids.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Task> + ExactSizeIterator + Clone {
        self.0.values().map(|task| &**task)
    }

    /// Tasks in the order of their ids, to be changed.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Task> {
        self.0.values_mut().map(|task| &mut **task)
    }

    /// Ids and tasks, in the order of the ids.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&TaskId, &Task)> + ExactSizeIterator + Clone {
        self.0.iter().map(|(id, task)| (id, &**task))
    }

    /// Those of a range of ids.
    pub(crate) fn range(&self, range: impl RangeBounds<TaskId>) -> impl Iterator<Item = (&TaskId, &Task)> {
        self.0.range(range).map(|(id, task)| (id, &**task))
    }
}

impl Index<&TaskId> for Tasks {
    type Output = Task;

    fn index(&self, id: &TaskId) -> &Task {
        &self.0[id]
    }
}

impl IntoIterator for Tasks {
    type Item = (TaskId, Task);
    type IntoIter = std::iter::Map<btree_map::IntoIter<TaskId, Box<Task>>, fn((TaskId, Box<Task>)) -> (TaskId, Task)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().map(|(id, task)| (id, *task))
    }
}
