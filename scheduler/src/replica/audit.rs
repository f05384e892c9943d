//! Whether the replicas have the same state: each sums its own at fixed indexes, the leader compares, and who differs takes part no more.
//!
//! Raft makes the logs the same; that the same entries give the same state is what the state machine promises. Where that was broken, by a
//! mistake of ours or by a memory that does not keep what it was given, a replica would answer otherwise than the others, and decide
//! otherwise when it leads. Nothing here is needed for safety, so nothing is repeated: a sum that gets lost is followed by the next.

use std::collections::BTreeMap;

use orch_core::SUMMED;
use orch_spec::assignment::NodeId;

use super::{Frame, Job, Replica, Unwritten, wire};

/// Sums are kept of so many indexes: a follower that is further behind is not compared before it has caught up.
const KEPT: usize = 64;

/// The state of this replica is not that of the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "at entry {index} the state of this manager sums up to {own:08x} and that of the others to {others:08x}: it votes and serves no more, since what it says may be wrong. Look after this host's memory and disk, then start its agent again: it will take part as a new manager with the others' state, and keep the former files beside (*.aside)"
)]
pub struct Contradiction {
    /// The index.
    pub index: u64,
    /// The sum here.
    pub own: u32,
    /// The sum there.
    pub others: u32,
}

/// Sums by index, and on the leader by whom.
#[derive(Debug, Default)]
pub(super) struct Audit {
    own: BTreeMap<u64, u32>,
    heard: BTreeMap<u64, BTreeMap<u64, u32>>,
}

/// Keeps the latest.
fn bound<T>(sums: &mut BTreeMap<u64, T>) {
    while sums.len() > KEPT {
        sums.pop_first();
    }
}

fn version() -> u32 {
    crc32c::crc32c(env!("CARGO_PKG_VERSION").as_bytes())
}

/// Which sum is right: that of more than half of those who vote. When all have spoken and there is none, the leader's: what it said is what
/// everybody was told.
fn truth(voters: &[u64], leader: u64, sums: &BTreeMap<u64, u32>) -> Option<u32> {
    let said: Vec<u32> = voters.iter().filter_map(|voter| sums.get(voter).copied()).collect();
    let most = said.iter().find(|sum| said.iter().filter(|other| other == sum).count() > voters.len() / 2);
    most.copied().or_else(|| sums.get(&leader).copied().filter(|_| said.len() == voters.len()))
}

impl Replica {
    /// Why this replica has stopped, when that is so: see [`Contradiction`].
    pub fn contradiction(&self) -> Option<&Contradiction> {
        self.contradiction.as_ref()
    }

    /// The state was summed.
    pub(super) fn summed(&mut self, sums: &[(u64, u32)]) {
        for &(index, sum) in sums {
            // Of before a snapshot was installed: that state is not there any more.
            if index <= self.configured || self.removed {
                continue;
            }
            self.audit.own.insert(index, sum);
            bound(&mut self.audit.own);
            let leader = self.raw.raft.leader_id;
            if self.is_leader() {
                self.compare(index);
            } else if leader != 0 {
                self.send_frame(leader, &Frame::Sum(wire::Sum { version: version(), index, sum }));
            }
        }
    }

    /// A replica says what its state sums up to.
    pub(super) fn take_sum(&mut self, from: u64, said: wire::Sum) {
        let wire::Sum { version: theirs, index, sum } = said;
        if !self.is_leader() || theirs != version() || !index.is_multiple_of(SUMMED) {
            return;
        }
        self.audit.heard.entry(index).or_default().insert(from, sum);
        bound(&mut self.audit.heard);
        self.compare(index);
    }

    /// The leader compares what it knows of an index.
    fn compare(&mut self, index: u64) {
        let (id, Some(own)) = (self.identity.id, self.audit.own.get(&index).copied()) else { return };
        let mut sums = self.audit.heard.get(&index).cloned().unwrap_or_default();
        sums.insert(id, own);
        let Some(truth) = truth(&self.members.voters(), id, &sums) else { return };
        for (other, _) in sums.into_iter().filter(|(other, sum)| *other != id && *sum != truth) {
            let node = self.members.managers.get(&other).map(|member| &member.node);
            let node = node.map_or("", |node: &NodeId| node.0.as_str());
            tracing::error!(manager = node, index, "the state of a manager is not that of the others");
            self.send_frame(other, &Frame::Differs(wire::Sum { version: version(), index, sum: truth }));
        }
        if own != truth {
            self.condemn(Contradiction { index, own, others: truth });
        }
    }

    /// The leader says that this replica differs, which is looked at: it may mean a former life, or a state that is not there any more.
    pub(super) fn take_verdict(&mut self, from: u64, said: wire::Sum) {
        let wire::Sum { version: theirs, index, sum } = said;
        if from != self.raw.raft.leader_id || theirs != version() {
            return;
        }
        if let Some(own) = self.audit.own.get(&index).copied().filter(|own| *own != sum) {
            self.condemn(Contradiction { index, own, others: sum });
        }
    }

    /// This replica votes, leads and serves no more, and its log is never gone on with.
    fn condemn(&mut self, contradiction: Contradiction) {
        let why = contradiction.to_string();
        self.contradiction = Some(contradiction);
        self.retire();
        self.push_write(Job::Condemn(why), Unwritten::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_those_who_vote_are_right_and_without_them_nobody_is_wrong() {
        let sums = |said: &[(u64, u32)]| said.iter().copied().collect::<BTreeMap<_, _>>();
        let all = [1, 2, 3];
        assert_eq!(truth(&all, 1, &sums(&[(1, 7)])), None, "the others have not said anything yet");
        assert_eq!(truth(&all, 1, &sums(&[(1, 7), (2, 8)])), None, "one of two is wrong, and a third will tell");
        assert_eq!(truth(&all, 1, &sums(&[(1, 7), (2, 8), (3, 8)])), Some(8), "the leader is wrong");
        assert_eq!(truth(&all, 1, &sums(&[(1, 7), (2, 7)])), Some(7));
        assert_eq!(
            truth(&all, 1, &sums(&[(1, 7), (2, 8), (3, 9)])),
            Some(7),
            "all have spoken: what the leader has counts"
        );
        assert_eq!(truth(&all, 1, &sums(&[(1, 7), (4, 8), (5, 8)])), None, "who learns has no say");
        assert_eq!(truth(&[1], 1, &sums(&[(1, 7), (2, 8)])), Some(7), "one votes, one learns");
        assert_eq!(truth(&[1, 2], 1, &sums(&[(1, 7), (2, 8)])), Some(7), "of two nobody knows, so the leader counts");
    }
}
