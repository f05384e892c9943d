//! What waits for the disk, done while the shim's loop goes on.
//!
//! Threads do it, and end when nothing is left: many ends at once share the disk's own groups, and an idle shim is one thread again.
//! Not io_submit(2): giving its context back waits for a grace period of the kernel, 10 to 30 ms in which the loop answers nobody,
//! and the host has few contexts. A container forked meanwhile is not concerned: it runs without the allocator or any lock
//! (`crate::sys::child`).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::engine::lock;

/// So many files are written at once. A journal takes those that come together in one go.
const THREADS: usize = 8;
/// Stack of a thread: it calls fsync(2) and pushes to a list.
const STACK: usize = 64 << 10;

/// What is to be done with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// To write what is needed to read the file's content again.
    Data,
    /// To write the whole file.
    All,
    /// To close it, and no more: the last descriptor of a mount namespace takes along what is mounted there, and the end of an overlay waits
    /// until the whole file system below is written (`ovl_sync_fs`).
    Close,
}

/// Descriptors that are waited for.
#[derive(Debug)]
pub(super) struct Syncs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    event: EventFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Sync>,
    finished: Vec<(u64, io::Result<()>)>,
    threads: usize,
}

#[derive(Debug)]
struct Sync {
    number: u64,
    file: OwnedFd,
    work: Work,
}

impl Syncs {
    /// # Errors
    /// Those of eventfd(2).
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { event, state: Mutex::default() }) })
    }

    /// Can be read when [`Self::finished`] has something to say.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Begins.
    ///
    /// # Errors
    /// No thread is to be had; then nothing but the closing was done, here.
    pub(super) fn begin(&self, file: OwnedFd, work: Work, number: u64) -> io::Result<()> {
        let mut state = lock(&self.shared.state);
        state.waiting.push_back(Sync { number, file, work });
        if state.threads == THREADS {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("orch-sync".to_owned()).stack_size(STACK);
        match thread.spawn(move || shared.work()) {
            Ok(_) => state.threads += 1,
            Err(e) if state.threads == 0 => {
                state.waiting.pop_back();
                return Err(e);
            }
            // Those that run come to it.
            Err(_) => {}
        }
        Ok(())
    }

    /// What has ended, by number.
    pub(super) fn finished(&self) -> Vec<(u64, io::Result<()>)> {
        // Read before the list, so that none that comes meanwhile is missed; empty when another look was faster.
        let _ = self.shared.event.read();
        std::mem::take(&mut lock(&self.shared.state).finished)
    }
}

impl Shared {
    /// A thread's life: until nothing waits.
    fn work(&self) {
        loop {
            let Some(sync) = self.next() else { return };
            let result = match sync.work {
                Work::Data => nix::unistd::fdatasync(&sync.file),
                Work::All => nix::unistd::fsync(&sync.file),
                Work::Close => Ok(()),
            };
            drop(sync.file);
            lock(&self.state).finished.push((sync.number, result.map_err(Into::into)));
            // Only a counter at its limit refuses, and then it can be read.
            let _ = self.event.write(1);
        }
    }

    fn next(&self) -> Option<Sync> {
        let mut state = lock(&self.state);
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.threads -= 1;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn every_file_is_written_once_also_when_there_are_more_than_threads_and_what_cannot_be_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let syncs = Syncs::new().unwrap();
        let count = 5 * THREADS as u64;
        for number in 0..count {
            let file = std::fs::File::create(directory.path().join(number.to_string())).unwrap();
            syncs.begin(file.into(), [Work::Data, Work::All, Work::Close][number as usize % 3], number).unwrap();
        }
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        syncs.begin(pipe, Work::All, count).unwrap();
        let mut seen = BTreeSet::new();
        while seen.len() <= usize::try_from(count).unwrap() {
            poll(&mut [PollFd::new(syncs.event(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            for (number, outcome) in syncs.finished() {
                assert!(seen.insert(number), "{number} is told twice");
                assert_eq!(outcome.is_err(), number == count, "{number}: {outcome:?}");
            }
        }
    }
}
