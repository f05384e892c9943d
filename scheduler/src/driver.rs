//! The threads that drive a [`Replica`]: one for raft, one for the disk, one for the state.
//!
//! *raft* owns the replica. It waits for nothing but its inbox and its ticks, so that heartbeats leave in time whatever the disk and the state
//! machine do. *raft-log* owns the log: it does the writes in order, and all appends that are waiting with one fsync. *raft-apply* owns the
//! state: it applies, derives the nodes' assignments, and answers those who wait. A snapshot is encoded on a thread of its own. Every
//! queue between them holds what was admitted already; admission is bounded in [`Control`](crate::Control) and in the replica.
//!
//! A panic of the library means that this disk or this driver is wrong: the replica is quarantined, every caller hears that the control
//! plane is gone, nothing is written any more, and nobody is voted for.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use orch_api::error::chain;
use orch_core::Answer;
use orch_spec::assignment::{Assignment, NodeId};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use crate::applier::{self, ApplyTask};
use crate::control::{Bootstrap, Invitation, Leadership, ProposeError, Shared, Standing, StartError};
use crate::disk::Disk;
use crate::keeper;
use crate::log::LogError;
use crate::replica::machine::Applied;
use crate::replica::{ELECTION, Failure, Replica, Settings, Space, TICK_MS, Task, Work, Write};
use crate::start::{self, random};
use crate::stopwatch::Stopwatch;
use crate::transport::Transport;

/// Taken into one batch.
const BATCH: usize = 512;
/// The log is replaced by a snapshot when it is larger than this, and than four snapshots, bytes. All of it is in memory too.
const COMPACT_AT: u64 = 2 << 20;
/// Entries that stay in memory behind a snapshot: a follower that is a little late needs none then.
const TRAILING: u64 = 2000;
/// After a stall, so many ticks at most are made up for: more would only call an election that nobody needs.
const CATCH_UP: u32 = 2;
/// A shutdown waits so long for what was given before.
const LAST: Duration = Duration::from_secs(5);

pub(crate) type Reply = oneshot::Sender<Result<(u64, Answer), ProposeError>>;

/// What the raft thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Carry a command out.
    Propose {
        /// The command, encoded.
        data: Vec<u8>,
        /// Whether it must be on disk even where nobody else takes part.
        durable: bool,
        /// Who waits for it.
        reply: Reply,
        /// Its place in the queue.
        _permit: OwnedSemaphorePermit,
    },
    /// Add a manager.
    Add { node: NodeId, address: String, reply: oneshot::Sender<Result<Invitation, ProposeError>> },
    /// Remove one.
    Remove { node: NodeId, reply: Reply },
    /// Hand the leadership over.
    StepAside { reply: oneshot::Sender<Option<NodeId>> },
    /// Say when the state has everything that was acknowledged.
    Read { reply: oneshot::Sender<Result<u64, ProposeError>> },
    /// Tell a node what it shall run, from now on.
    Connect { node: NodeId, assignments: watch::Sender<Arc<Assignment>> },
    /// Another manager says something.
    Receive { from: NodeId, bytes: Bytes },
    /// The process of another manager is gone.
    Gone(NodeId),
    /// A write is done.
    Written { number: u64, space: Space },
    /// A write waits for space.
    Full { number: u64, why: String },
    /// The state has come so far.
    Applied(Applied),
    /// A snapshot was made.
    Built { index: u64, term: u64, members: orch_core::Members, bytes: Bytes },
    /// A snapshot was looked at.
    Checked { index: u64, members: Option<orch_core::Members> },
    /// One of the other threads cannot go on.
    Failed(StartError),
    /// End.
    Shutdown(oneshot::Sender<()>),
}

/// Messages of others that wait, bytes: what is more is dropped, and raft repeats it.
pub(crate) const INBOX: usize = 64 << 20;

/// What a driver starts with.
pub(crate) struct Start {
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) inbox: (Sender<Message>, Receiver<Message>),
    /// Bytes of messages of others that wait in the inbox.
    pub(crate) received: Arc<AtomicUsize>,
}

type Ready = oneshot::Sender<Result<Arc<Shared>, StartError>>;

/// Runs until told to end. `ready` hears how the start went.
pub(crate) fn run(start: Start, ready: Ready) {
    let mut ready = Some(ready);
    let opened = catch_unwind(AssertUnwindSafe(|| Driver::open(start)));
    let (mut driver, inbox) = match opened.unwrap_or_else(|panic| Err(StartError::Raft(panic_text(&*panic)))) {
        Ok(opened) => opened,
        Err(error) => {
            if let Some(ready) = ready.take() {
                let _ = ready.send(Err(error));
            }
            return;
        }
    };
    let shared = driver.shared.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| driver.serve(&inbox, &mut ready)));
    let error = match outcome {
        Ok(Ok(done)) => {
            // The log is closed when this is heard: whoever waited may take the directory away.
            driver.end();
            if let Some(done) = done {
                let _ = done.send(());
            }
            return;
        }
        Ok(Err(error)) => error,
        Err(panic) => StartError::Raft(panic_text(&*panic)),
    };
    let reason = match &error {
        StartError::Raft(text) => text.clone(),
        other => chain(other),
    };
    tracing::error!(reason, "the control plane takes no more changes: containers go on, the log is left as it is");
    // Said before those who wait are let go, so that they can pass it on.
    *shared.gone.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    let quarantined = Leadership { standing: Standing::Quarantined, ..Leadership::default() };
    shared.leadership.send_replace(quarantined);
    driver.end();
    if let Some(ready) = ready.take() {
        let _ = ready.send(Err(error));
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".to_owned());
    format!("the raft library found a contradiction: {text}")
}

struct Driver {
    replica: Replica,
    transport: Arc<dyn Transport>,
    shared: Arc<Shared>,
    writes: Option<Sender<Write>>,
    tasks: Option<Sender<ApplyTask>>,
    threads: Vec<JoinHandle<()>>,
    received: Arc<AtomicUsize>,
    /// Who waits for which proposal.
    waiting: HashMap<u64, Reply>,
    joining: HashMap<u64, (u64, oneshot::Sender<Result<Invitation, ProposeError>>)>,
    reading: HashMap<u64, oneshot::Sender<Result<u64, ProposeError>>>,
    next_number: u64,
    ending: Option<(Instant, oneshot::Sender<()>)>,
}

impl Driver {
    fn open(start: Start) -> Result<(Self, Receiver<Message>), StartError> {
        let Start { disk, bootstrap, node, address, transport, inbox: (events, inbox), received } = start;
        let election = (ELECTION, 2 * ELECTION);
        let settings =
            Settings { node, address, election, nonce: random(), compact_at: COMPACT_AT, trailing: TRAILING };
        let opened = start::open(disk, &bootstrap, settings)?;
        if opened.dropped > 0 {
            tracing::warn!(
                bytes = opened.dropped,
                "the torn end of the control log was dropped; nothing of it had been acknowledged"
            );
        }
        let shared = Arc::new(Shared {
            applied: watch::Sender::new(opened.state.index),
            state: RwLock::new(Arc::new(opened.state)),
            gone: Mutex::default(),
            leadership: watch::Sender::default(),
            time: Stopwatch::default(),
        });
        let (writes, jobs) = channel();
        let (tasks, todo) = channel();
        let (log_events, log) = (events.clone(), opened.log);
        let keeping = spawn("raft-log", move || keeper::run(log, &jobs, &log_events))?;
        let (state, term, apply_events) = (shared.clone(), opened.term, events);
        let applying = spawn("raft-apply", move || applier::run(state, term, &todo, &apply_events))?;
        let driver = Self {
            replica: opened.replica,
            transport,
            shared,
            writes: Some(writes),
            tasks: Some(tasks),
            threads: vec![keeping, applying],
            received,
            waiting: HashMap::new(),
            joining: HashMap::new(),
            reading: HashMap::new(),
            next_number: 0,
            ending: None,
        };
        Ok((driver, inbox))
    }

    /// Works until it is told to end, and says who waits for that.
    fn serve(
        &mut self,
        inbox: &Receiver<Message>,
        ready: &mut Option<Ready>,
    ) -> Result<Option<oneshot::Sender<()>>, StartError> {
        crate::urgency::urgent();
        let tick = Duration::from_millis(TICK_MS);
        let mut due = Instant::now() + tick;
        self.work();
        loop {
            self.announce(ready);
            let first = if self.replica.is_alone() && self.ending.is_none() {
                // There is nobody to tick for.
                due = Instant::now() + tick;
                inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                inbox.recv_timeout(due.saturating_duration_since(Instant::now()))
            };
            match first {
                Ok(first) => {
                    self.take(first)?;
                    for _ in 1..BATCH {
                        let Ok(next) = inbox.try_recv() else { break };
                        self.take(next)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
            let (ticks, next) = owed(due, Instant::now(), tick);
            due = next;
            (0..ticks).for_each(|_| self.replica.tick());
            self.work();
            if let Some(contradiction) = self.replica.contradiction() {
                return Err(contradiction.clone().into());
            }
            if let Some((until, _)) = &self.ending
                && (self.replica.is_idle() && self.waiting.is_empty() || *until <= Instant::now())
            {
                return Ok(self.ending.take().map(|(_, done)| done));
            }
        }
    }

    /// Says that the control plane can be used: at once when others take part, and when it leads when nobody does.
    fn announce(&self, ready: &mut Option<Ready>) {
        let usable = self.replica.has_others() || self.shared.leadership.borrow().is_leader;
        if let Some(ready) = ready.take_if(|_| usable) {
            let _ = ready.send(Ok(self.shared.clone()));
        }
    }

    fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn take(&mut self, message: Message) -> Result<(), StartError> {
        match message {
            Message::Propose { data, durable, reply, _permit } => {
                let number = self.next_number();
                self.waiting.insert(number, reply);
                self.replica.propose(number, data, durable);
            }
            Message::Add { node, address, reply } => {
                let number = self.next_number();
                let id = self.replica.add_member(number, node, address);
                self.joining.insert(number, (id, reply));
                let (relay, answer) = oneshot::channel();
                self.waiting.insert(number, relay);
                self.relay(number, answer);
            }
            Message::Remove { node, reply } => {
                let number = self.next_number();
                self.waiting.insert(number, reply);
                self.replica.remove_member(number, &node);
            }
            Message::StepAside { reply } => {
                let _ = reply.send(self.replica.step_aside());
            }
            Message::Read { reply } => {
                let number = self.next_number();
                self.reading.insert(number, reply);
                self.replica.read(number);
            }
            Message::Connect { node, assignments } => {
                let _ = self.tasks.as_ref().map(|to| to.send(ApplyTask::Connect { node, assignments }));
            }
            Message::Receive { from, bytes } => {
                self.received.fetch_sub(bytes.len(), Ordering::Relaxed);
                self.replica.receive(&from, bytes);
            }
            Message::Gone(node) => self.replica.process_is_gone(&node),
            Message::Written { number, space } => self.replica.written(number, space),
            Message::Full { number, why } => {
                tracing::warn!(why, "the control log waits for space");
                self.replica.full(number, why);
            }
            Message::Applied(applied) => self.replica.applied(applied),
            Message::Built { index, term, members, bytes } => {
                tracing::info!(index, bytes = bytes.len(), "snapshot taken");
                self.replica.built(index, term, &members, bytes);
            }
            Message::Checked { index, members } => self.replica.checked(index, members.as_ref()),
            Message::Failed(error) => return Err(error),
            Message::Shutdown(done) => {
                if let Some(successor) = self.replica.step_aside() {
                    tracing::info!(%successor, "leadership handed over before the end");
                }
                self.ending = Some((Instant::now() + LAST, done));
            }
        }
        Ok(())
    }

    /// Turns the answer to an addition into an invitation.
    fn relay(&mut self, number: u64, answer: oneshot::Receiver<Result<(u64, Answer), ProposeError>>) {
        let Some((id, reply)) = self.joining.remove(&number) else { return };
        let cluster = self.replica.identity().cluster.clone();
        let shared = self.shared.clone();
        // A thread that waits for one answer: managers are added a few times in a cluster's life.
        let waiting = spawn("raft-join", move || {
            let answer = answer.blocking_recv().unwrap_or_else(|_| Err(gone(&shared)));
            let _ = reply.send(answer.map(|_| Invitation { id, cluster }));
        });
        if let Err(error) = waiting {
            tracing::warn!(error = chain(&error), "nobody can be told that the manager was added");
        }
    }

    /// Carries out what the replica wants.
    fn work(&mut self) {
        let Work { messages, writes, tasks, failed, reads, leadership } = self.replica.work();
        for (to, message) in messages {
            self.transport.send(&to, message);
        }
        // A thread that is gone has said so in the inbox.
        for write in writes {
            let _ = self.writes.as_ref().map(|to| to.send(write));
        }
        for (number, failure) in failed {
            if let Some(reply) = self.waiting.remove(&number) {
                let _ = reply.send(Err(failure.into()));
            }
        }
        for task in tasks {
            let task = match task {
                Task::Apply(entries) => {
                    let replies = entries.iter().filter_map(|entry| entry.number);
                    let replies = replies.filter_map(|number| Some((number, self.waiting.remove(&number)?))).collect();
                    ApplyTask::Entries(entries, replies)
                }
                Task::Build => ApplyTask::Build,
                Task::Check(bytes) => ApplyTask::Check(bytes),
                Task::Restore(index) => ApplyTask::Restore(index),
            };
            let _ = self.tasks.as_ref().map(|to| to.send(task));
        }
        for (number, read) in reads {
            if let Some(reply) = self.reading.remove(&number) {
                let _ = reply.send(read.map_err(ProposeError::from));
            }
        }
        if let Some(leadership) = leadership {
            if leadership.leader.is_some() && leadership.leader != self.shared.leadership.borrow().leader {
                let leader = leadership.leader.as_ref().map_or("", |leader| leader.0.as_str());
                tracing::info!(leader, term = leadership.term, "the control plane has a leader");
            }
            self.shared.leadership.send_replace(leadership);
        }
    }

    /// Lets the other threads finish and waits for them.
    fn end(&mut self) {
        drop((self.writes.take(), self.tasks.take()));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How many ticks there are to make now, and when the next is due.
fn owed(due: Instant, now: Instant, tick: Duration) -> (u32, Instant) {
    let Some(late) = now.checked_duration_since(due) else { return (0, due) };
    let count = u32::try_from(late.as_nanos() / tick.as_nanos() + 1).unwrap_or(u32::MAX);
    if count <= CATCH_UP { (count, due + tick * count) } else { (CATCH_UP, now + tick) }
}

pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(StartError::Thread)
}

/// Why the control plane is gone.
pub(crate) fn gone(shared: &Shared) -> ProposeError {
    let reason = shared.gone.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ProposeError::Gone(reason.unwrap_or_else(|| "it has ended".to_owned()))
}

impl From<Failure> for ProposeError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotLeader(leader) => Self::NotLeader { leader },
            Failure::InTurn => Self::InTurn,
            Failure::Busy(why) => Self::Unavailable(why),
            // Nothing was done: whoever leads now may be asked.
            Failure::Lost => Self::NotLeader { leader: None },
            Failure::Unknown => Self::Unknown,
        }
    }
}

impl From<LogError> for Message {
    fn from(error: LogError) -> Self {
        Self::Failed(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_stall_two_ticks_are_made_up_for_and_no_more() {
        let (due, tick) = (Instant::now(), Duration::from_millis(50));
        let at = |milliseconds| due + Duration::from_millis(milliseconds);
        assert_eq!(owed(at(1), due, tick), (0, at(1)), "it is not due yet");
        assert_eq!(owed(due, at(3), tick), (1, at(50)), "a little late, and the next in its time");
        assert_eq!(owed(due, at(60), tick), (2, at(100)));
        assert_eq!(owed(due, at(60_000), tick), (2, at(60_050)), "an election is called by silence, not by a stall");
    }
}
