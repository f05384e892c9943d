//! A checksum of the state at fixed indexes of the log, by which replicas see that they have the same.
//!
//! A large state is summed in parts, a part each time: what that takes stays the same however many tasks there are, nothing is copied, and
//! after as many sums as there are parts everything was compared. Which part it is follows from the index and the state alone.

use std::collections::BTreeMap;
use std::ops::Bound;

use orch_spec::assignment::TaskId;
use serde::Serialize;

use crate::identity::id_prefix;
use crate::state::{Event, State};

/// The state is summed at every so manieth index.
pub const SUMMED: u64 = 128;
/// A part has about so many tasks.
const TASKS: usize = 256;
/// Parts, at most.
const PARTS: usize = 1 << 15;
/// Pieces of what is bounded but larger than a small state: what happened lately. Each has its turn, as parts have theirs.
const PIECES: u64 = 32;

/// A sum that grows.
struct Sum {
    sum: u32,
    buffer: Vec<u8>,
    /// Which part, of how many.
    part: usize,
    parts: usize,
    /// Single things that were met so far: each belongs to one part.
    met: usize,
}

impl Sum {
    fn add(&mut self, value: &impl Serialize) {
        self.buffer.clear();
        serde_json::to_writer(&mut self.buffer, value).expect("types with text keys and finite numbers serialise");
        self.sum = crc32c::crc32c_append(self.sum, &self.buffer);
    }

    /// Those of many that are in this part.
    fn many<K: Serialize, V: Serialize>(&mut self, all: &BTreeMap<K, V>) {
        for item in all.iter().skip(self.part).step_by(self.parts) {
            self.add(&item);
        }
    }

    /// The ids in this part of what there are as many of as tasks: by their beginnings, so that nobody steps over all the others.
    fn ids(&self) -> (Bound<TaskId>, Bound<TaskId>) {
        let step = PARTS / self.parts;
        let at = |part: usize| TaskId::from(id_prefix(part * step));
        let from = if self.part == 0 { Bound::Unbounded } else { Bound::Included(at(self.part)) };
        let to = if self.part + 1 == self.parts { Bound::Unbounded } else { Bound::Excluded(at(self.part + 1)) };
        (from, to)
    }

    /// A whole, when it is in this part.
    fn whole(&mut self, value: &impl Serialize) {
        if self.met % self.parts == self.part {
            self.add(value);
        }
        self.met += 1;
    }
}

impl State {
    /// The sum of a part of the state; `None` but at every [`SUMMED`]th index, and where there is nobody to compare it with.
    pub fn sum(&self) -> Option<u32> {
        if self.members.managers.len() < 2 || !self.index.is_multiple_of(SUMMED) {
            return None;
        }
        // Named one by one, so that nothing is forgotten that comes later.
        let Self {
            index,
            cluster,
            task_sequence,
            revision_sequence,
            stacks,
            revisions,
            tasks,
            names,
            successors,
            networks,
            volumes,
            secrets,
            configs,
            nodes,
            members,
            security,
            removed_nodes,
            cluster_settings,
            platforms,
            unplaced,
            withdrawing,
            vni_cursor,
            mesh_changed,
            time,
            timers,
            requests,
            events,
        } = self;
        let things = tasks.len() + networks.len() + volumes.len() + nodes.len();
        let parts = (things / TASKS).max(1).next_power_of_two().min(PARTS);
        let part = usize::try_from(index / SUMMED % parts as u64).expect("fewer parts than tasks");
        let mut sum = Sum { sum: 0, buffer: Vec::new(), part, parts, met: 0 };
        sum.add(&(index, cluster, task_sequence, revision_sequence, vni_cursor, mesh_changed, time));
        sum.add(&(members, cluster_settings, tasks.len(), names.len(), successors.len()));
        sum.many(stacks);
        sum.many(revisions);
        for item in tasks.range(sum.ids()) {
            sum.add(&(item, names.get(&item.1.container_name)));
        }
        for item in successors.range(sum.ids()) {
            sum.add(&item);
        }
        sum.many(networks);
        sum.many(volumes);
        sum.many(secrets);
        sum.many(configs);
        sum.many(nodes);
        sum.many(platforms);
        sum.whole(security);
        sum.whole(removed_nodes);
        sum.whole(unplaced);
        sum.whole(withdrawing);
        sum.whole(timers);
        let piece = index / SUMMED % PIECES;
        sum.add(&(requests.len(), events.len()));
        sum.add(&requests.piece(piece, PIECES));
        // What has happened since the last sum is in this one, what was before has its turn.
        let summed = |event: &&Event| event.index + SUMMED > *index || event.index / SUMMED % PIECES == piece;
        events.since(0).filter(summed).for_each(|event| sum.add(event));
        Some(sum.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{Member, MemberRole};
    use crate::state::Task;

    /// A state of two managers with so many tasks.
    fn of(tasks: u32) -> State {
        let mut state = State::new("c");
        for id in 1..=2 {
            let member =
                Member { node: format!("n{id}").as_str().into(), address: String::new(), role: MemberRole::Voter };
            state.members.managers.insert(id, member);
        }
        for number in 0..tasks {
            let id = crate::identity::task_id("c", 1, number.into());
            state.tasks.insert(id.clone(), Task { id, ..Task::default() });
        }
        state
    }

    #[test]
    fn whatever_differs_is_in_the_sum_before_long() {
        let (one, mut other) = (of(5_000), of(5_000));
        other.tasks.values_mut().nth(3_333).expect("there are more").slot = 9;
        let differ = |one: &State, other: &State| {
            let at = |state: &State, index| State { index, ..state.clone() }.sum().expect("it is summed there");
            (1..=32).filter(|turn| at(one, turn * SUMMED) != at(other, turn * SUMMED)).count()
        };
        assert_eq!(differ(&one, &one.clone()), 0);
        assert_eq!(differ(&one, &other), 1, "there are 32 parts, and each has its turn");
        let other = State { removed_nodes: ["gone".into()].into(), ..one.clone() };
        assert_eq!(differ(&one, &other), 1);
        let mut other = one.clone();
        other.events.push(Event { index: 5, ..Event::default() });
        assert_eq!(differ(&one, &other), 32, "one that is more is seen at once");
        let mut same_count = one.clone();
        same_count.events.push(Event { index: 5, id: "t".to_owned(), ..Event::default() });
        assert_eq!(differ(&same_count, &other), 2, "one that is another, when it is new and when it has its turn");
        let asked = |number| {
            let mut state = one.clone();
            state.requests.note(number, 0, &crate::command::Answer::default());
            state
        };
        assert_eq!(differ(&asked(7), &one), 32);
        assert!((1..=2).contains(&differ(&asked(7), &asked(u64::MAX))));
        let other = State { time: 1, ..one.clone() };
        assert_eq!(differ(&one, &other), 32);
    }

    #[test]
    fn nothing_is_summed_in_between_nor_for_one_alone() {
        let mut state = State { index: SUMMED, ..of(0) };
        assert!(state.sum().is_some());
        state.index += 1;
        assert_eq!(state.sum(), None);
        state.index = 2 * SUMMED;
        state.members.managers.remove(&2);
        assert_eq!(state.sum(), None);
    }
}
