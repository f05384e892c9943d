//! What must be true, whatever happens. The names are those of the cluster's design, section e.2.
//!
//! | property | where |
//! |---|---|
//! | R1 one leader a term | [`Oracle::leads`] |
//! | R2 log matching | [`Oracle::compare_logs`] |
//! | R3 leader completeness | [`Oracle::leads`] |
//! | R4 term and vote never go back, restarts included | [`Oracle::sent`], [`Oracle::restarted`] |
//! | R5 the same state at the same index | [`Oracle::state`] |
//! | R6 nothing acknowledged is lost | [`Oracle::acknowledged`], [`Oracle::settle`] |
//! | R7 nothing is done twice | [`Oracle::committed`] |
//! | R8 the same configuration at the same index | in the state (R5), and asserted by the replica when it applies a change |
//! | R9 removed numbers neither lead nor come back | [`Oracle::members`], [`Oracle::settle`] |
//! | R10 nothing is promised before it is on disk | [`Oracle::sent`] with [`Oracle::restarted`] |
//! | R11 every crash is survived | the simulation itself: opening after one must succeed |
//! | R12 snapshot and entries give what all entries give | R5, as nodes that got a snapshot are compared with those that did not |
//! | R13 reads see what was acknowledged before | [`Oracle::read`] |
//! | R14 a healthy majority makes progress | the liveness mode |
//!
//! Properties of tasks, scheduling, updates and nodes (T, S, O, N) are those of `fleet.rs`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use orch_core::{Command, Members, State};
use orch_scheduler::replica::Replica;
use orch_scheduler::replica::machine::{Committed, Content};
use orch_scheduler::replica::wire::{self, Frame};
use orch_spec::assignment::{NodeId, NodeReport, TaskId, TaskStatus};
use raft::eraftpb::MessageType;

use crate::endpoints::Assigned;
use crate::world::Happened;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Term → number of its leader.
    pub(crate) leaders: BTreeMap<u64, u64>,
    /// Index → term and content.
    committed: BTreeMap<u64, (u64, Bytes)>,
    /// Content → index.
    contents: BTreeMap<Bytes, u64>,
    states: BTreeMap<u64, u32>,
    /// Commands that were said never to be carried out.
    refused: BTreeSet<Bytes>,
    /// The last index that was acknowledged to anybody.
    pub(crate) last_acknowledged: u64,
    acknowledged: BTreeMap<u64, Bytes>,
    numbers: BTreeMap<u64, NodeId>,
    pub(crate) latest: Members,
    latest_index: u64,
    /// Number and term → who got the vote.
    votes: BTreeMap<(u64, u64), u64>,
    terms: BTreeMap<u64, u64>,
    /// Number → the most up-to-date log that was promised: term and index of its last entry.
    promises: BTreeMap<u64, (u64, u64)>,
    /// The last index whose entry was looked at for what it does to tasks.
    looked: u64,
    /// What happened, for those who follow.
    pub(crate) happened: Happened,
    /// What nodes were told.
    pub(crate) assigned: Assigned,
    /// Everything that was ever true of a task, as its node has it.
    spoken: BTreeMap<TaskId, Vec<TaskStatus>>,
}

pub(crate) fn hash(state: &State) -> u32 {
    crc32c::crc32c(&serde_json::to_vec(state).expect("a state serialises"))
}

impl Oracle {
    /// A replica leads.
    pub(crate) fn leads(&mut self, replica: &Replica) {
        let raft = replica.raft();
        let (term, id) = (raft.term, replica.identity().id);
        if let Some(other) = self.leaders.insert(term, id) {
            assert_eq!(other, id, "R1: two leaders in term {term}");
            return;
        }
        if let Some((index, (committed, _))) = self.committed.last_key_value()
            && *index >= raft.raft_log.first_index().saturating_sub(1)
        {
            let has = raft.raft_log.term(*index).unwrap_or(0);
            assert_eq!(has, *committed, "R3: leader {id} of term {term} lacks the committed entry {index}");
        }
    }

    /// Entries are about to be applied.
    pub(crate) fn committed(&mut self, entries: &[Committed]) {
        for entry in entries {
            let content = match &entry.content {
                Content::Nothing => Bytes::new(),
                Content::Command(data) | Content::Members(data) => data.clone(),
            };
            match self.committed.get(&entry.index) {
                Some(known) => {
                    assert_eq!(*known, (entry.term, content), "two entries were committed at index {}", entry.index);
                }
                None => {
                    // Promotions and the like are proposed by replicas, again and again if need be.
                    if matches!(entry.content, Content::Command(_)) && !is_own(&content) {
                        let former = self.contents.insert(content.clone(), entry.index);
                        assert_eq!(
                            former, None,
                            "R7: one command was carried out twice, the second at {}",
                            entry.index
                        );
                        assert!(!self.refused.contains(&content), "a command was carried out that was refused");
                    }
                    self.committed.insert(entry.index, (entry.term, content));
                }
            }
        }
    }

    /// The state before an entry that is about to be applied, and its command, when nobody has applied it yet.
    pub(crate) fn looks_at(&mut self, state: &State, entry: &Committed) -> Option<(State, Command)> {
        let Content::Command(data) = &entry.content else { return None };
        if entry.index <= self.looked || !state.is_cluster() {
            return None;
        }
        self.looked = entry.index;
        let entry: orch_core::Entry = serde_json::from_slice(data).ok()?;
        Some((state.clone(), entry.command))
    }

    /// A node says something for the first time.
    pub(crate) fn said(&mut self, report: &NodeReport) {
        let NodeReport::Tasks(statuses) = report else { return };
        for status in statuses {
            let spoken = self.spoken.entry(status.task.clone()).or_default();
            if spoken.last() != Some(status) {
                spoken.push(status.clone());
            }
        }
    }

    /// A command was carried out for the first time: what it says of tasks is not older than what was known of them.
    pub(crate) fn heard(&self, before: &State, state: &State, command: &Command) {
        let Command::Report { node, turn, report: NodeReport::Tasks(statuses) } = command else { return };
        for status in statuses {
            let (Some(former), Some(spoken)) = (before.tasks.get(&status.task), self.spoken.get(&status.task)) else {
                continue;
            };
            let taken = state.tasks.get(&status.task).is_some_and(|task| task.status == *status);
            let place = |status: &TaskStatus| spoken.iter().rposition(|spoken| spoken == status);
            assert!(
                !taken || place(status) >= place(&former.status),
                "T8: {node} says in {turn:?} what {} was before",
                status.task
            );
        }
    }

    /// A state was reached.
    pub(crate) fn state(&mut self, state: &State) {
        let sum = hash(state);
        let known = *self.states.entry(state.index).or_insert(sum);
        assert_eq!(known, sum, "R5: two states at index {}", state.index);
        if state.index >= self.latest_index {
            self.latest_index = state.index;
            self.latest = state.members.clone();
        }
        self.members(&state.members);
    }

    fn members(&mut self, members: &Members) {
        let present = members.managers.iter().map(|(id, member)| (id, &member.node));
        for (id, node) in present.chain(&members.removed) {
            let known = self.numbers.entry(*id).or_insert_with(|| node.clone());
            assert_eq!(known, node, "R9: number {id} was given twice");
        }
    }

    pub(crate) fn acknowledged(&mut self, index: u64, data: &Bytes) {
        let entry = self.committed.get(&index).map(|(_, content)| content);
        assert_eq!(entry, Some(data), "the acknowledgement for index {index} is another command's");
        self.last_acknowledged = self.last_acknowledged.max(index);
        self.acknowledged.insert(index, data.clone());
    }

    /// A command was said never to be carried out.
    pub(crate) fn refused(&mut self, data: &Bytes) {
        assert!(!self.contents.contains_key(data), "a command was refused and carried out");
        self.refused.insert(data.clone());
    }

    pub(crate) fn read(&self, floor: u64, index: u64) {
        assert!(index >= floor, "R13: a read that began after {floor} was acknowledged sees only {index}");
    }

    /// A message leaves.
    pub(crate) fn sent(&mut self, replica: &Replica, bytes: &Bytes) {
        let Ok((_, Frame::Messages(messages))) = wire::decode(bytes.clone()) else { return };
        for message in messages {
            let (id, term) = (message.from, message.term);
            match message.get_msg_type() {
                MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse => continue,
                MessageType::MsgRequestVoteResponse if !message.reject => {
                    let candidate = *self.votes.entry((id, term)).or_insert(message.to);
                    assert_eq!(candidate, message.to, "R4: {id} votes for two in term {term}");
                }
                MessageType::MsgRequestVote => {
                    let candidate = *self.votes.entry((id, term)).or_insert(id);
                    assert_eq!(candidate, id, "R4: {id} votes for two in term {term}");
                }
                MessageType::MsgAppendResponse if !message.reject => {
                    if let Ok(last) = replica.raft().raft_log.term(message.index)
                        && last > 0
                    {
                        let promise = self.promises.entry(id).or_default();
                        *promise = (*promise).max((last, message.index));
                    }
                }
                _ => {}
            }
            let known = self.terms.entry(id).or_default();
            *known = (*known).max(term);
        }
    }

    /// A replica is back from a crash.
    pub(crate) fn restarted(&mut self, replica: &Replica) {
        let raft = replica.raft();
        let id = replica.identity().id;
        let term = self.terms.get(&id).copied().unwrap_or(0);
        assert!(raft.term >= term, "R4: {id} is back in term {} and was in {term}", raft.term);
        let last = (raft.raft_log.last_term(), raft.raft_log.last_index());
        let promise = self.promises.get(&id).copied().unwrap_or_default();
        assert!(last >= promise, "R10: {id} has promised {promise:?} and is back with {last:?} (term, index)");
        // The last member counts, not the configuration that it comes back with: that is the snapshot's, which one that was removed while it
        // was away may have from a time when it was alone, and the last one from a time when it was not.
        if self.latest.managers.keys().all(|member| *member == id) {
            // If it leads already, then with a first entry of its own that is not written yet.
            self.forget(last.1 - u64::from(raft.state == raft::StateRole::Leader));
        }
    }

    /// A replica alone does not sync what nobody waits for: a loss of power may take it, and then it has never been.
    fn forget(&mut self, last: u64) {
        for (_, (_, content)) in self.committed.split_off(&(last + 1)) {
            self.contents.remove(&content);
        }
        self.states.split_off(&(last + 1));
        self.latest_index = self.latest_index.min(last);
        self.looked = self.looked.min(last);
        self.happened.forget(last);
        self.assigned.forget(last);
        let lost = self.acknowledged.range(last + 1..).next();
        assert_eq!(lost, None, "R6: what was acknowledged is lost with the power");
        self.last_acknowledged = self.last_acknowledged.min(last);
    }

    /// Whether two logs agree wherever they have the same term at the same index.
    pub(crate) fn compare_logs(one: &Replica, other: &Replica) {
        let (a, b) = (&one.raft().raft_log, &other.raft().raft_log);
        let mut agree = false;
        let first = a.first_index().max(b.first_index());
        for index in (first..=a.last_index().min(b.last_index())).rev().take(64) {
            let (ours, theirs) = (a.term(index).unwrap_or(0), b.term(index).unwrap_or(0));
            assert!(!agree || ours == theirs, "R2: logs differ at {index} below an entry that they share");
            if ours != theirs || ours == 0 {
                continue;
            }
            agree = true;
            assert_eq!(content(a, index), content(b, index), "R2: one term, one index ({index}), two entries");
        }
    }

    /// Everything is well again and quiet: nothing is missing.
    pub(crate) fn settle(&self, state: &State, leader: u64) {
        for (index, data) in &self.acknowledged {
            let there = self.committed.get(index).map(|(_, content)| content);
            assert_eq!(there, Some(data), "R6: what was acknowledged at {index} is lost");
        }
        assert!(state.index >= self.last_acknowledged, "R6: the cluster has forgotten {}", self.last_acknowledged);
        assert!(!state.members.removed.contains_key(&leader), "R9: a removed replica leads");
    }
}

fn content<S: raft::Storage>(log: &raft::RaftLog<S>, index: u64) -> Option<(Bytes, Bytes)> {
    let found = log.slice(index, index + 1, None, raft::GetEntriesContext::empty(false)).ok()?;
    found.first().map(|entry| (entry.data.clone(), entry.context.clone()))
}

/// Whether replicas propose this themselves.
fn is_own(content: &Bytes) -> bool {
    content.starts_with(br#"{"now_ms":0,"nonce":0,"#)
}
