//! The order in which a replica works, step by step: nothing leaves before what it rests on is on disk.
//!
//! Each test stands for a mistake that users of the library have made (cluster.md §d.7); the simulation looks for those that need more than
//! two replicas and a crash.

use std::collections::VecDeque;

use bytes::Bytes;
use orch_core::{Command, NewVolume, State};
use orch_scheduler::log::Log;
use orch_scheduler::replica::machine;
use orch_scheduler::replica::wire::{self, Frame};
use orch_scheduler::replica::{
    ELECTION, Failure, Job, Replica, Settings, Task, Write, encode_command, encode_snapshot,
};
use orch_scheduler::{Bootstrap, Invitation, start};
use orch_spec::assignment::NodeId;
use raft::StateRole;
use raft::eraftpb::MessageType;

use crate::simulated_disk::SimulatedDisk;

/// A replica whose disk and state machine work only when they are told to.
struct Stage {
    replica: Replica,
    log: Log,
    state: State,
    writes: VecDeque<Write>,
    tasks: VecDeque<Task>,
    sent: Vec<Bytes>,
    failed: Vec<(u64, Failure)>,
}

impl Stage {
    fn new(id: u64, disk: &SimulatedDisk) -> Self {
        let settings = Settings {
            node: NodeId(format!("node-{id}")),
            address: String::new(),
            election: (
                ELECTION + usize::try_from(id).expect("small"),
                ELECTION + usize::try_from(id).expect("small") + 1,
            ),
            nonce: id,
            compact_at: 1 << 20,
            trailing: 10,
        };
        let bootstrap = Bootstrap::Join(Invitation { id, cluster: "stage".to_owned() });
        let opened = start::open(Box::new(disk.clone()), &bootstrap, settings).expect("it opens");
        let (replica, log, state) = (opened.replica, opened.log, opened.state);
        let (writes, tasks) = (VecDeque::new(), VecDeque::new());
        let mut stage = Self { replica, log, state, writes, tasks, sent: Vec::new(), failed: Vec::new() };
        stage.look();
        stage
    }

    fn look(&mut self) {
        let work = self.replica.work();
        self.writes.extend(work.writes);
        self.tasks.extend(work.tasks);
        self.sent.extend(work.messages.into_iter().map(|(_, bytes)| bytes));
        self.failed.extend(work.failed);
    }

    /// The disk does what it was given so far.
    fn write(&mut self) {
        for write in std::mem::take(&mut self.writes) {
            let space = write.job.run(&mut self.log).expect("a healthy disk");
            self.replica.written(write.number, space);
        }
        self.look();
    }

    /// The state machine does what it was given so far.
    fn apply(&mut self) {
        for task in std::mem::take(&mut self.tasks) {
            match task {
                Task::Apply(entries) => {
                    let batch = machine::apply(&mut self.state, entries).expect("our own entries");
                    self.replica.applied(batch.applied);
                }
                Task::Build => {
                    let (index, term) = (self.state.index, self.replica.applied_term());
                    let bytes = encode_snapshot(index, term, &self.state);
                    self.replica.built(index, term, &self.state.members, bytes.into());
                }
                Task::Check(_) | Task::Restore(_) => {}
            }
        }
        self.look();
    }

    fn settle(&mut self) {
        while !self.writes.is_empty() || !self.tasks.is_empty() {
            self.write();
            self.apply();
        }
    }

    /// Says something to it, in the name of another.
    fn hear(&mut self, from: u64, message: raft::eraftpb::Message) {
        let cluster = crc32c::crc32c(b"stage");
        let envelope = wire::Envelope { cluster, from, to: self.replica.identity().id };
        let bytes = wire::encode(envelope, &Frame::Messages(vec![message]));
        self.replica.receive(&NodeId(format!("node-{from}")), bytes.into());
        self.look();
    }

    /// The replicas 2 and 3 say that they have the log up to an index on disk.
    fn others_have(&mut self, index: u64) {
        let (own, term) = (self.replica.identity().id, self.replica.raft().term);
        for other in [2, 3] {
            let answer = message(MessageType::MsgAppendResponse, other, own, term);
            self.hear(other, raft::eraftpb::Message { index, ..answer });
        }
    }

    fn said(&mut self) -> Vec<MessageType> {
        let frames = std::mem::take(&mut self.sent);
        let messages = frames.into_iter().filter_map(|bytes| match wire::decode(bytes) {
            Ok((_, Frame::Messages(messages))) => Some(messages),
            _ => None,
        });
        messages.flatten().map(|message| message.get_msg_type()).collect()
    }

    fn propose(&mut self, number: u64) {
        let command = Command::CreateVolume(NewVolume { name: format!("volume-{number}"), ..NewVolume::default() });
        self.replica.propose(number, encode_command(1, number, None, command).expect("it serialises"), true);
    }
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> raft::eraftpb::Message {
    let mut message = raft::eraftpb::Message { from, to, term, ..raft::eraftpb::Message::default() };
    message.set_msg_type(kind);
    message
}

/// A replica alone that has a learner, 2, and has lost its leadership to nobody yet.
fn alone(disk: &SimulatedDisk) -> Stage {
    let mut stage = Stage::new(1, disk);
    stage.settle();
    assert_eq!(stage.replica.raft().state, StateRole::Leader, "nobody else can lead");
    stage
}

#[test]
fn who_votes_alone_says_nothing_in_a_term_that_is_not_on_disk() {
    let disk = SimulatedDisk::default();
    let mut stage = alone(&disk);
    stage.replica.add_member(1, NodeId("node-2".to_owned()), String::new());
    stage.look();
    stage.settle();
    assert_eq!(stage.replica.configuration(), (vec![1], vec![2]));
    let mut stage = Stage::new(1, &disk.copy());
    // Its disk stands still: the changes that it knows of are applied, and it leads.
    stage.apply();
    for _ in 0..3 {
        stage.replica.tick();
        stage.look();
    }
    assert_eq!(stage.replica.raft().state, StateRole::Leader, "nobody else can lead");
    assert_eq!(stage.said(), [], "its term could be another's after a crash");
    stage.write();
    assert!(stage.said().contains(&MessageType::MsgAppend));
}

#[test]
fn a_follower_acknowledges_entries_only_when_they_are_on_disk() {
    let mut stage = Stage::new(2, &SimulatedDisk::default());
    let mut append = message(MessageType::MsgAppend, 1, 2, 3);
    let entry = raft::eraftpb::Entry { term: 3, index: 1, ..raft::eraftpb::Entry::default() };
    append.set_entries(vec![entry].into());
    stage.hear(1, append);
    assert!(!stage.writes.is_empty());
    assert_eq!(stage.said(), [], "it has promised what is in memory only");
    stage.write();
    assert_eq!(stage.said(), [MessageType::MsgAppendResponse]);
}

#[test]
fn a_vote_is_given_only_when_it_is_on_disk() {
    let mut stage = Stage::new(2, &SimulatedDisk::default());
    stage.hear(1, message(MessageType::MsgRequestVote, 1, 2, 5));
    let is_synced = |write: &Write| matches!(write.job, Job::Append { sync: true, .. });
    assert!(stage.writes.iter().any(is_synced), "term and vote are synced");
    assert_eq!(stage.said(), [], "after a crash it could vote for another in the same term");
    stage.write();
    assert_eq!(stage.said(), [MessageType::MsgRequestVoteResponse]);
}

#[test]
fn a_change_of_the_configuration_is_applied_only_when_its_commit_is_on_disk() {
    let disk = SimulatedDisk::default();
    let mut stage = alone(&disk);
    stage.replica.add_member(1, "node-2".into(), String::new());
    stage.look();
    stage.write();
    // The entry is on disk and committed; that it is committed is being written now.
    assert!(stage.tasks.is_empty(), "it could come back with the old configuration and decide alone");
    assert!(!stage.writes.is_empty());
    stage.write();
    assert!(!stage.tasks.is_empty());
    stage.apply();
    assert_eq!(stage.replica.configuration(), (vec![1], vec![2]));
}

#[test]
fn a_second_change_of_the_configuration_is_refused_while_one_is_under_way() {
    let mut stage = alone(&SimulatedDisk::default());
    stage.replica.add_member(1, "node-2".into(), String::new());
    stage.replica.add_member(2, "node-3".into(), String::new());
    stage.look();
    assert!(matches!(stage.failed[..], [(2, Failure::InTurn)]), "{:?}", stage.failed);
    stage.settle();
    stage.replica.add_member(3, "node-3".into(), String::new());
    stage.settle();
    stage.look();
    stage.settle();
    assert_eq!(stage.replica.configuration(), (vec![1], vec![2, 3]));
}

#[test]
fn a_change_of_the_configuration_counts_once_after_a_restart() {
    let disk = SimulatedDisk::default();
    let mut stage = alone(&disk);
    stage.replica.add_member(1, "node-2".into(), String::new());
    stage.look();
    stage.settle();
    drop(stage);
    let mut stage = Stage::new(1, &disk);
    stage.settle();
    assert_eq!(stage.replica.configuration(), (vec![1], vec![2]));
    assert_eq!(stage.state.members.managers.len(), 2);
}

#[test]
fn a_leader_sends_at_once_and_counts_its_own_entry_when_it_is_on_disk() {
    let mut stage = alone(&SimulatedDisk::default());
    stage.propose(7);
    stage.look();
    assert!(stage.tasks.is_empty(), "it is the only voter, and has nothing on disk yet");
    stage.write();
    assert!(matches!(&stage.tasks[0], Task::Apply(entries) if entries[0].number == Some(7)));
}

#[test]
fn a_proposal_at_a_follower_is_refused_and_not_passed_on() {
    let mut stage = Stage::new(2, &SimulatedDisk::default());
    stage.hear(1, message(MessageType::MsgHeartbeat, 1, 2, 3));
    stage.write();
    stage.said();
    stage.propose(1);
    stage.look();
    assert_eq!(stage.failed, [(1, Failure::NotLeader(Some("node-1".into())))]);
    assert_eq!(stage.said(), [], "whoever tries again would have it done twice");
}

#[test]
fn a_replica_that_others_deposed_gives_nobody_the_answer_of_anothers_entry() {
    let mut stage = alone(&SimulatedDisk::default());
    stage.propose(1);
    stage.look();
    // Before it is on disk, a later term is heard of: the entry may be replaced now.
    stage.hear(9, message(MessageType::MsgHeartbeat, 9, 1, 50));
    assert_eq!(stage.replica.raft().state, StateRole::Follower);
    assert_eq!(stage.failed, [], "it may be carried out yet");
    for _ in 0..4 * ELECTION {
        stage.replica.tick();
        stage.look();
    }
    assert_eq!(stage.failed, [(1, Failure::Unknown)], "nobody waits for ever");
}

#[test]
fn what_was_meant_for_another_cluster_or_a_former_life_is_dropped() {
    let mut stage = Stage::new(2, &SimulatedDisk::default());
    let heartbeat = || Frame::Messages(vec![message(MessageType::MsgHeartbeat, 1, 2, 9)]);
    for (cluster, to) in [(1, 2), (crc32c::crc32c(b"stage"), 3)] {
        let bytes = wire::encode(wire::Envelope { cluster, from: 1, to }, &heartbeat());
        stage.replica.receive(&"node-1".into(), bytes.into());
        stage.look();
    }
    assert_eq!(stage.replica.raft().term, 0);
}

/// A leader with a learner, 2, that answers its heartbeats.
fn with_learner() -> Stage {
    let mut stage = alone(&SimulatedDisk::default());
    stage.replica.add_member(1, "node-2".into(), "node-2:1".to_owned());
    stage.look();
    stage.settle();
    assert_eq!(stage.replica.configuration(), (vec![1], vec![2]));
    stage.said();
    stage
}

#[test]
fn a_state_machine_that_stands_still_silences_no_heartbeat() {
    let mut stage = with_learner();
    stage.propose(2);
    stage.look();
    stage.write();
    assert!(!stage.tasks.is_empty(), "there is something to apply");
    for _ in 0..4 {
        stage.replica.tick();
        stage.look();
    }
    assert!(stage.said().contains(&MessageType::MsgHeartbeat), "the others would call an election");
}

#[test]
fn a_disk_that_stands_still_silences_no_heartbeat_and_no_answer_to_one() {
    let mut leader = with_learner();
    leader.propose(2);
    leader.look();
    assert!(!leader.writes.is_empty(), "there is something to write");
    leader.said();
    for _ in 0..4 {
        leader.replica.tick();
        leader.look();
    }
    assert!(leader.said().contains(&MessageType::MsgHeartbeat), "the others would call an election");

    let mut follower = Stage::new(2, &SimulatedDisk::default());
    follower.hear(1, message(MessageType::MsgHeartbeat, 1, 2, 3));
    follower.write();
    follower.said();
    let mut append = message(MessageType::MsgAppend, 1, 2, 3);
    append.set_entries(vec![raft::eraftpb::Entry { term: 3, index: 1, ..raft::eraftpb::Entry::default() }].into());
    follower.hear(1, append);
    assert!(!follower.writes.is_empty(), "there is something to write");
    follower.hear(1, message(MessageType::MsgHeartbeat, 1, 2, 3));
    assert_eq!(follower.said(), [MessageType::MsgHeartbeatResponse], "the leader would take it for gone");
}

/// A leader of three that vote, of which the others have on disk all that it has.
fn of_three() -> Stage {
    let mut stage = with_learner();
    stage.replica.add_member(2, "node-3".into(), "node-3:1".to_owned());
    for _ in 0..100 {
        stage.look();
        stage.settle();
        stage.others_have(stage.replica.raft().raft_log.last_index());
        stage.replica.tick();
        if stage.replica.configuration() == (vec![1, 2, 3], vec![]) {
            stage.settle();
            stage.said();
            return stage;
        }
    }
    panic!("they never come to vote: {:?}", stage.replica.configuration());
}

#[test]
fn a_leader_whose_disk_stands_still_hands_over_to_who_has_written_more_and_to_nobody_else() {
    let mut stage = of_three();
    let before = stage.replica.raft().raft_log.last_index();
    stage.propose(9);
    stage.look();
    assert!(!stage.writes.is_empty(), "there is something to write");
    let mut hands_over = |index: u64| {
        (0..60).any(|_| {
            stage.replica.tick();
            stage.others_have(index);
            stage.replica.raft().lead_transferee.is_some()
        })
    };
    assert!(!hands_over(before), "nobody writes faster: another leader would have the same to wait for");
    assert!(hands_over(before + 1), "another one could have answered by now");
}

#[test]
fn a_snapshot_that_nobody_fetches_keeps_its_receiver_waiting_for_a_time_only() {
    let mut stage = with_learner();
    // It has nothing.
    let term = stage.replica.raft().term;
    let index = stage.replica.raft().prs().get(2).expect("it learns").next_idx - 1;
    let lacks = message(MessageType::MsgAppendResponse, 2, 1, term);
    stage.hear(2, raft::eraftpb::Message { index, reject: true, ..lacks });
    let mut offers_in = |ticks: usize| {
        let mut offers = 0;
        for _ in 0..ticks {
            stage.replica.tick();
            let term = stage.replica.raft().term;
            stage.hear(2, message(MessageType::MsgHeartbeatResponse, 2, 1, term));
            stage.settle();
            offers += stage.said().into_iter().filter(|kind| *kind == MessageType::MsgSnapshot).count();
        }
        offers
    };
    assert_eq!(offers_in(40), 1, "what a new member needs is in a snapshot, which is offered once");
    assert!(offers_in(200) > 0, "nobody says what became of it, and it is offered again");
}
