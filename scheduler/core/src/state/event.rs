//! What happened lately, bounded.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Events kept. An `up` of 200 services makes about 600; a reader that fell further behind than this starts from the oldest.
const KEPT: usize = 4096;

/// Something that happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the epoch, by the proposer's clock.
    pub time: u64,
    /// The log entry it came with.
    pub index: u64,
    /// `stack`, `container`, `network`, `volume`, `node`.
    pub kind: Cow<'static, str>,
    /// `create`, `start`, `die` …
    pub action: Cow<'static, str>,
    /// Id of what it happened to.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The stack it belongs to; empty for what belongs to none.
    pub stack: String,
    /// Everything else. A list, since thousands of events are kept and a map takes half a kilobyte for its first key.
    pub attributes: Vec<(Cow<'static, str>, String)>,
}

/// The last events, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventRing(VecDeque<Event>);

impl EventRing {
    pub(crate) fn push(&mut self, event: Event) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Events after this log index, oldest first.
    pub fn since(&self, index: u64) -> impl Iterator<Item = &Event> {
        let first = self.0.partition_point(|event| event.index <= index);
        self.0.range(first..)
    }

    /// Whether events after this log index may have been dropped from the ring.
    pub fn has_gap_since(&self, index: u64) -> bool {
        self.0.len() == KEPT && self.0.front().is_some_and(|oldest| oldest.index > index + 1)
    }
}
