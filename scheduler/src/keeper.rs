//! The thread that owns the log: writes in order, and all appends that wait with one fsync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use orch_api::error::chain;

use crate::control::StartError;
use crate::driver::{Message, panic_text};
use crate::log::{Log, LogError};
use crate::replica::Write;

/// Appends that are done together, at most.
const TOGETHER: usize = 256;
/// A write that found the disk full is tried again after so long.
const AGAIN: Duration = Duration::from_millis(250);

/// Runs until nobody has anything to write any more, and closes the log.
pub(crate) fn run(mut log: Log, jobs: &Receiver<Write>, events: &Sender<Message>) {
    // As the thread of raft, which would give its leadership up while this one waits for a processor.
    crate::urgency::urgent();
    let done = catch_unwind(AssertUnwindSafe(|| keep(&mut log, jobs, events)));
    let failed = match done {
        Ok(Ok(())) => {
            if let Err(error) = log.append(std::iter::empty(), true) {
                tracing::warn!(
                    error = chain(&error),
                    "the end of the control log may be lost with the power; nodes repeat what was in it"
                );
            }
            return;
        }
        Ok(Err(error)) => error.into(),
        Err(panic) => StartError::Raft(panic_text(&*panic)),
    };
    let _ = events.send(Message::Failed(failed));
}

fn keep(log: &mut Log, jobs: &Receiver<Write>, events: &Sender<Message>) -> Result<(), LogError> {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(write) => write,
            None => match jobs.recv() {
                Ok(write) => write,
                Err(_) => return Ok(()),
            },
        };
        let mut write = first;
        // What came while the disk was busy goes in one append.
        for _ in 1..TOGETHER {
            let Ok(other) = jobs.try_recv() else { break };
            if let Err(other) = write.merge(other) {
                next = Some(other);
                break;
            }
        }
        let space = loop {
            match write.job.run(log) {
                Ok(space) => break Some(space),
                Err(error @ LogError::Full { .. }) if !log.is_poisoned() => {
                    let told = events.send(Message::Full { number: write.number, why: error.to_string() });
                    if told.is_err() || write.is_wish() {
                        break None;
                    }
                    std::thread::sleep(AGAIN);
                }
                Err(error) => return Err(error),
            }
        };
        if let Some(space) = space {
            let _ = events.send(Message::Written { number: write.number, space });
        }
    }
}
