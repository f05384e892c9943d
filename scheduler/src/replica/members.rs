//! Who takes part: changes of the configuration, one at a time, and the handing over of leadership.

use std::collections::BTreeMap;

use orch_core::Command;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
use raft::{ProgressState, StateRole};

use super::{
    ELECTION, Failure, Frame, HANDOVER, Member, MemberChange, Members, NodeId, Proposal, Replica, STALLED, record,
};

/// A learner has caught up when it lacks fewer entries.
const CAUGHT_UP: u64 = 100;
/// Between two tries to tell one's address, ticks.
const ADDRESS: u64 = 4 * ELECTION as u64;
/// By so many ticks each voter calls an election later than the one before it, when the leader's process is gone: time for two messages and
/// a write.
const TURN: usize = 2;
/// How long those who stay may take to say that they are there, when a manager shall go, ticks: ten heartbeats.
const SURE: u64 = 2 * ELECTION as u64;
/// The number of proposals that nobody waits for.
const NOBODY: u64 = 0;

/// A manager that shall go.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// The request.
    number: u64,
    /// Its number.
    id: u64,
    /// When that was asked for, tick.
    since: u64,
}

/// The going of managers, as the leader sees it.
#[derive(Debug, Default)]
pub(super) struct Departure {
    asked: Option<Asked>,
    /// When each of the others was heard of last, tick.
    spoke: BTreeMap<u64, u64>,
}

/// What a change of the members is to raft; `None` when it is nothing.
pub(super) fn configuration_change(change: &MemberChange) -> Option<ConfChangeV2> {
    let (id, kind) = match change {
        MemberChange::Found { .. } | MemberChange::Address { .. } => return None,
        MemberChange::Add { id, .. } => (*id, ConfChangeType::AddLearnerNode),
        MemberChange::Promote { id } => (*id, ConfChangeType::AddNode),
        MemberChange::Remove { id } => (*id, ConfChangeType::RemoveNode),
    };
    let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
    single.set_change_type(kind);
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single].into());
    Some(change)
}

impl Replica {
    /// Adds a manager, which learns at first. The answer says its number.
    pub fn add_member(&mut self, number: u64, node: NodeId, address: String) -> u64 {
        let id = self.members.next_id();
        self.change_members(number, MemberChange::Add { id, node, address });
        id
    }

    /// Removes a manager. A leader does not remove itself: it hands its leadership over and says to whom, so that it can be asked there.
    pub fn remove_member(&mut self, number: u64, node: &NodeId) {
        if !self.is_leader() {
            let leader = self.leader();
            return self.fail(number, Failure::NotLeader(leader));
        }
        let Some(id) = self.members.id_of(node) else {
            // The state says who is unknown.
            return self.change_members(number, MemberChange::Remove { id: u64::MAX });
        };
        let others = self.members.voters().len() > 1;
        if id == self.identity.id && others {
            let Some(successor) = self.hand_over() else {
                let why = "no other manager is up to date, so that this one must go on leading";
                return self.fail(number, Failure::Busy(why.to_owned()));
            };
            return self.fail(number, Failure::NotLeader(Some(successor)));
        }
        if self.departure.asked.is_some() {
            return self.fail(number, Failure::InTurn);
        }
        self.departure.asked = Some(Asked { number, id, since: self.ticks });
        self.depart();
    }

    /// Removes the manager that shall go as soon as those who stay have said something since that was asked for: raft itself takes one that
    /// died just now for one that is there, and without it nobody could decide anything any more, not even that the manager comes back.
    pub(super) fn depart(&mut self) {
        let Some(Asked { number, id, since }) = self.departure.asked else { return };
        if !self.is_leader() {
            self.departure.asked = None;
            let leader = self.leader();
            return self.fail(number, Failure::NotLeader(leader));
        }
        if self.survives_without(id, since) {
            self.departure.asked = None;
            self.change_members(number, MemberChange::Remove { id });
        } else if self.ticks > since + SURE {
            self.departure.asked = None;
            let node = self.node_of(id).map_or_else(|| id.to_string(), |node| node.0);
            let why = format!("without {node} too few of the managers that vote are there to decide anything");
            self.fail(number, Failure::Busy(why));
        }
    }

    /// Another replica has said something.
    pub(super) fn note_speaker(&mut self, id: u64) {
        if self.is_leader() {
            self.departure.spoke.insert(id, self.ticks);
        }
    }

    /// Hands the leadership to another voter, if one is up to date.
    pub fn step_aside(&mut self) -> Option<NodeId> {
        if self.removed || !self.is_leader() { None } else { self.hand_over() }
    }

    /// The process of another manager is gone, and will say nothing any more. If it led, it is not waited for: this replica forgets it, so that
    /// it may vote for another, and calls an election itself, one after the other so that votes are not split. An election that nobody
    /// needed costs nothing but itself: who still hears a leader gives no (preliminary) vote.
    pub fn process_is_gone(&mut self, node: &NodeId) {
        let leader = self.raw.raft.leader_id;
        let leads = self.members.managers.get(&leader).is_some_and(|member| member.node == *node);
        if self.removed || !leads || leader == self.identity.id || self.raw.raft.state != StateRole::Follower {
            return;
        }
        let others = self.members.voters().into_iter().filter(|voter| *voter != leader);
        let before = others.filter(|voter| *voter < self.identity.id).count();
        let raft = &mut self.raw.raft;
        let term = raft.term;
        raft.become_follower(term, raft::INVALID_ID);
        raft.election_elapsed = raft.randomized_election_timeout().saturating_sub(1 + TURN * before);
    }

    pub(super) fn change_members(&mut self, number: u64, change: MemberChange) {
        let configures = configuration_change(&change).is_some();
        // Raft makes an empty entry of a second change without a word.
        if configures && self.raw.raft.pending_conf_index > self.raw.raft.raft_log.applied {
            return self.fail(number, Failure::InTurn);
        }
        let command = Command::Member(change.clone());
        match record::encode_command(0, 0, None, command) {
            Ok(data) => self.admit(Proposal { number, data, durable: true, change: Some(change) }),
            Err(error) => self.fail(number, Failure::Busy(error.to_string())),
        }
    }

    /// Whether those voters that were heard of after this tick could decide without this one.
    fn survives_without(&self, id: u64, since: u64) -> bool {
        let voters = self.members.voters();
        if !voters.contains(&id) {
            return true;
        }
        let left: Vec<u64> = voters.into_iter().filter(|voter| *voter != id).collect();
        let spoke = |voter: &u64| self.departure.spoke.get(voter).is_some_and(|tick| *tick > since);
        let there = left.iter().filter(|voter| **voter == self.identity.id || spoke(voter));
        // Nobody is left where the only voter shall go, which the state refuses.
        left.is_empty() || there.count() > left.len() / 2
    }

    /// The voter that has most of the log, if it has what it takes to lead at once.
    fn successor(&self) -> Option<u64> {
        let tracker = self.raw.raft.prs();
        let voters = tracker.iter().filter(|(id, progress)| {
            **id != self.identity.id
                && tracker.conf().voters().contains(**id)
                && progress.recent_active
                && progress.state == ProgressState::Replicate
        });
        voters.max_by_key(|(id, progress)| (progress.matched, **id)).map(|(id, _)| *id)
    }

    fn hand_over(&mut self) -> Option<NodeId> {
        let successor = self.successor()?;
        self.handover = Some(self.ticks);
        self.raw.transfer_leader(successor);
        self.node_of(successor)
    }

    fn has_just_handed_over(&self) -> bool {
        self.handover.is_some_and(|tried| tried + HANDOVER > self.ticks)
    }

    /// A leader that cannot write cannot answer anybody, though its heartbeats keep it in office. Where nobody else writes faster either,
    /// as on hosts that are all overloaded, it stays: a change of leader would only add to what waits.
    pub(super) fn hand_over_when_stalled(&mut self) {
        let waits = self.unwritten.front().is_some_and(|write| write.since + STALLED <= self.ticks);
        let stalled = self.full.is_some() || waits && self.is_overtaken();
        if stalled && !self.has_just_handed_over() && self.hand_over().is_some() {
            tracing::warn!("the disk of the control log does not keep up: another manager is asked to lead");
        }
    }

    /// Whether whoever would lead next has on disk what this leader has not.
    fn is_overtaken(&self) -> bool {
        let successor = self.successor().and_then(|id| self.raw.raft.prs().get(id));
        successor.is_some_and(|progress| progress.matched > self.raw.raft.raft_log.persisted)
    }

    /// A leader that has no room for what it is asked lets another one lead, who may have: changes are for that one then.
    pub(super) fn hand_over_for_space(&mut self) -> Option<NodeId> {
        if !self.is_leader() {
            return None;
        }
        match self.raw.raft.lead_transferee {
            Some(under_way) => self.node_of(under_way),
            // Where it went round among all and came back, nobody has room.
            None if self.has_just_handed_over() => None,
            None => self.hand_over(),
        }
    }

    /// The first of all says who it is.
    pub(super) fn found(&mut self) {
        if self.is_leader() && self.members.managers.is_empty() && !self.founding {
            self.founding = true;
            let (node, address) = (self.settings.node.clone(), self.settings.address.clone());
            self.change_members(NOBODY, MemberChange::Found { node, address });
        }
    }

    /// Makes voters of learners that have caught up, as long as the number of voters becomes odd by it: an even one outlives no more losses
    /// than the odd one below, and needs one more to decide anything.
    pub(super) fn promote(&mut self) {
        let (voters, learners) = (self.members.voters(), self.members.learners());
        if learners.is_empty() || self.raw.raft.pending_conf_index > self.raw.raft.raft_log.applied {
            return;
        }
        let committed = self.raw.raft.raft_log.committed;
        let ready: Vec<u64> = learners
            .into_iter()
            .filter(|id| {
                self.raw.raft.prs().get(*id).is_some_and(|progress| {
                    progress.recent_active
                        && progress.state == ProgressState::Replicate
                        && progress.matched + CAUGHT_UP > committed
                })
            })
            .collect();
        let enough = if voters.len() % 2 == 0 { 1 } else { 2 };
        if ready.len() >= enough && self.raw.raft.lead_transferee.is_none() {
            self.change_members(NOBODY, MemberChange::Promote { id: ready[0] });
        }
    }

    /// The members are others now.
    pub(super) fn take_members(&mut self, members: Members) {
        self.members = members;
        if self.members.removed.contains_key(&self.identity.id) {
            return self.retire();
        }
        self.departure.spoke.retain(|id, _| self.members.managers.contains_key(id));
        self.heard.retain(|id, _| !self.members.managers.contains_key(id));
        let mut expected = (self.members.voters(), self.members.learners());
        expected.0.sort_unstable();
        expected.1.sort_unstable();
        assert_eq!(self.configuration(), expected, "raft's configuration is the state's");
    }

    /// This replica was removed: it takes part in nothing any more.
    pub(super) fn retire(&mut self) {
        self.removed = true;
        let mut lost = Vec::new();
        self.proposals.deposed(0);
        self.proposals.expire(u64::MAX, &mut lost);
        self.out.failed.extend(lost);
        if let Some(asked) = self.departure.asked.take() {
            self.fail(asked.number, Failure::NotLeader(None));
        }
        let parked = std::mem::take(&mut self.proposals.parked);
        self.out.failed.extend(parked.into_iter().map(|proposal| (proposal.number, Failure::NotLeader(None))));
    }

    /// Says where this replica is, when the members say something else.
    pub(super) fn tell_address(&mut self) {
        if self.settings.address.is_empty() || !self.ticks.is_multiple_of(ADDRESS) {
            return;
        }
        let Some(Member { address, .. }) = self.members.managers.get(&self.identity.id) else { return };
        if *address == self.settings.address {
            return;
        }
        let (node, address) = (self.settings.node.clone(), self.settings.address.clone());
        match self.raw.raft.state {
            StateRole::Leader => self.change_members(NOBODY, MemberChange::Address { node, address }),
            // A leader that still sends to the former address is not heard of: whoever it is, it is among them.
            _ => {
                let others = self.members.managers.keys().copied().filter(|id| *id != self.identity.id);
                for other in others.collect::<Vec<_>>() {
                    self.send_frame(other, &Frame::Address(address.clone()));
                }
            }
        }
    }

    /// A manager says where it is.
    pub(super) fn take_address(&mut self, from: u64, address: String) {
        let Some(member) = self.members.managers.get(&from) else { return };
        if self.is_leader() && member.address != address {
            let node = member.node.clone();
            self.change_members(NOBODY, MemberChange::Address { node, address });
        }
    }
}
