//! Timers: absolute times of the log at which something is looked at again, though nothing has happened.

use orch_spec::assignment::{NodeId, TaskId};
use serde::{Deserialize, Serialize};

use super::State;

/// What is looked at again. Level-triggered: what is found then decides, not the timer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timer {
    /// A task that waits for something with a bound.
    Task(TaskId),
    /// A rolling update.
    Rollout {
        /// The stack.
        stack: String,
        /// The service.
        service: String,
    },
    /// A node that left too often.
    Node(NodeId),
}

impl State {
    /// When a [`Command::Tick`](crate::Command::Tick) is due, milliseconds since the epoch. Whoever leads proposes one as soon as its
    /// clock is there; earlier or more often does no harm.
    pub fn next_timer(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(crate) fn set_timer(&mut self, at: u64, timer: Timer) {
        self.timers.insert((at, timer));
    }

    /// Takes out what is due.
    pub(crate) fn due_timers(&mut self) -> Vec<Timer> {
        let mut due = Vec::new();
        while self.timers.first().is_some_and(|(at, _)| *at <= self.time) {
            due.extend(self.timers.pop_first().map(|(_, timer)| timer));
        }
        due
    }
}
