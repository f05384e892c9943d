//! The thread that owns the state: applies what is committed, tells the nodes, answers those who wait.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use orch_core::{Assignments, State};
use orch_spec::assignment::{Assignment, NodeId};
use tokio::sync::watch;

use crate::control::{ProposeError, Shared, StartError};
use crate::driver::{Message, Reply, panic_text, spawn};
use crate::replica::machine::{self, Applied, Batch, Committed};
use crate::replica::{Unreadable, decode_snapshot, encode_snapshot};

/// What there is to do.
#[derive(Debug)]
pub(crate) enum ApplyTask {
    /// Apply these; those who wait for some of them.
    Entries(Vec<Committed>, HashMap<u64, Reply>),
    /// Make a snapshot.
    Build,
    /// See whether a snapshot can be read.
    Check(Bytes),
    /// Take its state.
    Restore(u64),
    /// Tell a node what it shall run, from now on.
    Connect {
        /// The node.
        node: NodeId,
        /// Where to.
        assignments: watch::Sender<Arc<Assignment>>,
    },
}

/// Runs until nobody has anything to do any more.
pub(crate) fn run(shared: Arc<Shared>, term: u64, tasks: &Receiver<ApplyTask>, events: &Sender<Message>) {
    let assignments = {
        let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
        shared.time.see(state.time);
        Assignments::new(&state)
    };
    let mut applier = Applier { shared, assignments, nodes: HashMap::new(), checked: None, term };
    let done = catch_unwind(AssertUnwindSafe(|| {
        while let Ok(task) = tasks.recv() {
            applier.take(task, events)?;
        }
        Ok::<_, Unreadable>(())
    }));
    let failed = match done {
        Ok(Ok(())) => return,
        Ok(Err(error)) => StartError::Entry(error.to_string()),
        Err(panic) => StartError::Raft(panic_text(&*panic)),
    };
    let _ = events.send(Message::Failed(failed));
}

struct Applier {
    shared: Arc<Shared>,
    assignments: Assignments,
    nodes: HashMap<NodeId, watch::Sender<Arc<Assignment>>>,
    /// A snapshot that was looked at: its index, term and state.
    checked: Option<(u64, u64, State)>,
    /// Of the last entry.
    term: u64,
}

impl Applier {
    fn take(&mut self, task: ApplyTask, events: &Sender<Message>) -> Result<(), Unreadable> {
        match task {
            ApplyTask::Entries(entries, replies) => {
                let applied = self.apply(entries, replies)?;
                let _ = events.send(Message::Applied(applied));
            }
            ApplyTask::Build => self.build(events.clone()),
            ApplyTask::Check(bytes) => {
                let (index, members) = match decode_snapshot(&bytes) {
                    Ok((index, term, state)) => {
                        let members = state.members.clone();
                        self.checked = Some((index, term, state));
                        (index, Some(members))
                    }
                    Err(error) => {
                        tracing::error!(%error, "a snapshot of another manager cannot be read");
                        (0, None)
                    }
                };
                let _ = events.send(Message::Checked { index, members });
            }
            ApplyTask::Restore(index) => {
                let (found, term, state) = self.checked.take().expect("a snapshot is looked at before it is installed");
                assert_eq!(found, index, "the snapshot that is installed is the one that was looked at");
                let applied = Applied { index, term, members: Some(state.members.clone()), ..Applied::default() };
                self.assignments = Assignments::new(&state);
                self.shared.time.see(state.time);
                self.term = term;
                *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
                self.publish();
                self.shared.applied.send_replace(index);
                let _ = events.send(Message::Applied(applied));
            }
            ApplyTask::Connect { node, assignments } => {
                self.nodes.insert(node.clone(), assignments);
                self.publish_to(&node);
            }
        }
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Committed>, mut replies: HashMap<u64, Reply>) -> Result<Applied, Unreadable> {
        let batch = {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            // Copied only while a snapshot is being made of it.
            let state = Arc::make_mut(&mut *state);
            let batch = machine::apply(state, entries)?;
            self.shared.time.see(state.time);
            if !batch.changes.is_empty() {
                self.assignments.refresh(state, &batch.changes);
            }
            batch
        };
        let Batch { applied, answers, changes } = batch;
        if !changes.is_empty() {
            self.publish();
        }
        self.term = applied.term;
        self.shared.applied.send_replace(applied.index);
        for (number, result) in answers {
            if let Some(reply) = replies.remove(&number) {
                let _ = reply.send(result.map_err(ProposeError::from));
            }
        }
        Ok(applied)
    }

    /// Makes a snapshot aside: this thread only notes which state it is.
    fn build(&mut self, events: Sender<Message>) {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner).clone();
        let term = self.term;
        let building = spawn("raft-snapshot", move || {
            let bytes = encode_snapshot(state.index, term, &state).into();
            let _ = events.send(Message::Built { index: state.index, term, members: state.members.clone(), bytes });
        });
        if let Err(error) = building {
            tracing::warn!(%error, "no snapshot could be made");
        }
    }

    fn publish(&mut self) {
        let nodes: Vec<NodeId> = self.nodes.keys().cloned().collect();
        nodes.iter().for_each(|node| self.publish_to(node));
    }

    fn publish_to(&mut self, node: &NodeId) {
        let Some(sender) = self.nodes.get(node) else { return };
        let mut assignment = {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            // A node that has never said what it is has nothing to run.
            if !state.nodes.contains_key(node) {
                return;
            }
            self.assignments.of(&state, node)
        };
        // Most reports of a node change nothing for it: it is not woken for them.
        sender.send_if_modified(|told| {
            let version = std::mem::replace(&mut assignment.version, told.version);
            let same = told.version > 0 && **told == assignment;
            if !same {
                assignment.version = version;
                *told = Arc::new(assignment);
            }
            !same
        });
    }
}
