//! One host: a disk, and sometimes a replica on it. What the driver's threads do, one step at a time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use orch_core::{Assignments, State};
use orch_scheduler::replica::machine::{self, Applied, Batch};
use orch_scheduler::replica::{Job, Replica, Settings, Task, Write, decode_snapshot, encode_snapshot};
use orch_scheduler::start;
use orch_scheduler::{Bootstrap, Invitation, StartError};
use orch_spec::assignment::NodeId;

use crate::oracle::Oracle;
use crate::simulated_disk::SimulatedDisk;
use crate::world::Desk;

/// States are compared at every so manieth index.
const COMPARED: u64 = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: NodeId,
    pub(crate) disk: SimulatedDisk,
    /// As whom it was invited last.
    pub(crate) invitation: Option<Invitation>,
    /// Grows with every start, so that what was meant for a former life is not taken by this.
    pub(crate) life: u64,
    pub(crate) up: Option<Up>,
    /// Its disk does not give what it was given.
    pub(crate) damaged: bool,
    /// Its clock: a tick takes so many microseconds.
    pub(crate) tick: u64,
    /// Its disk: a write takes up to so many microseconds.
    pub(crate) slowness: u64,
}

/// A running replica.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) replica: Replica,
    log: orch_scheduler::log::Log,
    pub(crate) state: State,
    pub(crate) assignments: Assignments,
    /// Its state was changed behind its back: it is no measure for others.
    pub(crate) twisted: bool,
    /// What it knows of nodes.
    pub(crate) desk: Desk,
    term: u64,
    checked: Option<(u64, u64, State)>,
    pub(crate) writes: VecDeque<Write>,
    pub(crate) tasks: VecDeque<Task>,
    pub(crate) writing: bool,
    pub(crate) working: bool,
    pub(crate) next_number: u64,
    /// Number → the command that was proposed under it.
    pub(crate) proposed: BTreeMap<u64, Bytes>,
    /// Number → what was acknowledged before the read began.
    pub(crate) reads: BTreeMap<u64, u64>,
    /// Number → who is to be added.
    pub(crate) adding: BTreeMap<u64, (u64, NodeId)>,
    pub(crate) removing: BTreeMap<u64, NodeId>,
}

/// What came of a step of the state machine.
pub(crate) enum Done {
    /// These were carried out, or refused by the state.
    Applied(Batch),
    /// A snapshot was made; it is reported later.
    Built {
        index: u64,
        term: u64,
        bytes: Bytes,
    },
    Checked,
    Restored,
}

impl Node {
    /// The replica, when it is still the one of that life.
    pub(crate) fn living(&mut self, life: u64) -> Option<&mut Up> {
        self.up.as_mut().filter(|_| self.life == life)
    }

    /// Starts the replica.
    pub(crate) fn start(&mut self, settings: Settings, oracle: &mut Oracle) -> Result<(), StartError> {
        let invitation = self.invitation.clone().expect("only those who were invited are started");
        let opened = start::open(Box::new(self.disk.clone()), &Bootstrap::Join(invitation), settings)?;
        self.life += 1;
        oracle.restarted(&opened.replica);
        self.up = Some(Up {
            replica: opened.replica,
            log: opened.log,
            assignments: Assignments::new(&opened.state),
            twisted: false,
            desk: Desk::default(),
            state: opened.state,
            term: opened.term,
            checked: None,
            writes: VecDeque::new(),
            tasks: VecDeque::new(),
            writing: false,
            working: false,
            next_number: 0,
            proposed: BTreeMap::new(),
            reads: BTreeMap::new(),
            adding: BTreeMap::new(),
            removing: BTreeMap::new(),
        });
        Ok(())
    }
}

impl Up {
    /// Does the next write, with all appends that wait behind it: as the driver's thread does.
    pub(crate) fn write(&mut self, together: usize) -> Result<(), orch_scheduler::log::LogError> {
        let Some(mut write) = self.writes.pop_front() else { return Ok(()) };
        for _ in 0..together {
            let Some(next) = self.writes.pop_front() else { break };
            if let Err(next) = write.merge(next) {
                self.writes.push_front(next);
                break;
            }
        }
        match write.job.run(&mut self.log) {
            Ok(space) => self.replica.written(write.number, space),
            Err(error @ orch_scheduler::log::LogError::Full { .. }) if !self.log.is_poisoned() => {
                self.replica.full(write.number, error.to_string());
                if !write.is_wish() {
                    self.writes.push_front(write);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether its next write replaces the log.
    pub(crate) fn replaces(&self) -> bool {
        self.writes.front().is_some_and(|write| matches!(write.job, Job::Replace { .. }))
    }

    /// The next step of the state machine.
    pub(crate) fn apply(&mut self, oracle: &mut Oracle) -> Option<Done> {
        Some(match self.tasks.pop_front()? {
            Task::Apply(entries) => {
                oracle.committed(&entries);
                let mut all = Batch::default();
                for entry in entries {
                    let looked = if self.twisted { None } else { oracle.looks_at(&self.state, &entry) };
                    let batch = machine::apply(&mut self.state, vec![entry]).expect("entries are of this version");
                    if let Some((before, command)) = looked {
                        crate::tasks::check(&before, &self.state, &command);
                        oracle.heard(&before, &self.state, &command);
                    }
                    if !self.twisted {
                        oracle.happened.applied(&self.state);
                    }
                    // At the same indexes everywhere, so that there is something to compare.
                    if !self.twisted && (self.state.index.is_multiple_of(COMPARED) || batch.applied.members.is_some()) {
                        oracle.state(&self.state);
                    }
                    all.answers.extend(batch.answers);
                    all.changes.merge(batch.changes);
                    all.applied.index = batch.applied.index;
                    all.applied.term = batch.applied.term;
                    all.applied.changes.extend(batch.applied.changes);
                    all.applied.members = batch.applied.members.or(all.applied.members);
                    all.applied.sums.extend(batch.applied.sums);
                }
                self.assignments.refresh(&self.state, &all.changes);
                self.term = all.applied.term;
                self.replica.applied(all.applied.clone());
                Done::Applied(all)
            }
            Task::Build => Done::Built {
                index: self.state.index,
                term: self.term,
                bytes: encode_snapshot(self.state.index, self.term, &self.state).into(),
            },
            Task::Check(bytes) => {
                let (index, term, state) = decode_snapshot(&bytes).expect("snapshots are of this version");
                let members = state.members.clone();
                self.checked = Some((index, term, state));
                self.replica.checked(index, Some(&members));
                Done::Checked
            }
            Task::Restore(index) => {
                let (found, term, state) = self.checked.take().expect("it was looked at before");
                assert_eq!(found, index, "the snapshot that is installed is the one that was looked at");
                self.assignments = Assignments::new(&state);
                self.state = state;
                self.term = term;
                oracle.state(&self.state);
                let members = Some(self.state.members.clone());
                self.replica.applied(Applied { index, term, members, ..Applied::default() });
                Done::Restored
            }
        })
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}
