//! Taking sandboxes out of the kernel, all that are waiting in one go: the kernel waits for a grace period with its network lock held
//! whenever it takes links down, once for a message however many links it names.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use orch_netd::{Netd, SandboxId};

use crate::chain;

/// Who comes while a removal is under way waits for the next one, which takes all who wait.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    rounds: Mutex<Rounds>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    /// For the round that has not begun.
    waiting: Vec<SandboxId>,
    /// Rounds that have begun.
    begun: u64,
    /// Rounds that are over; at most one less than have begun.
    over: u64,
}

impl Removals {
    /// Removes a sandbox; what does not exist is fine, what fails is logged. Blocks until it is done.
    pub(crate) fn remove(&self, netd: &Netd, id: SandboxId) {
        let mut rounds = self.lock();
        rounds.waiting.push(id);
        let mine = rounds.begun + 1;
        while rounds.over < mine {
            if rounds.over < rounds.begun {
                rounds = self.over.wait(rounds).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let round = std::mem::take(&mut rounds.waiting);
            rounds.begun += 1;
            drop(rounds);
            if let Err(e) = netd.remove_sandboxes(&round) {
                tracing::warn!(error = chain(&e), "network namespaces could not be removed");
            }
            rounds = self.lock();
            rounds.over += 1;
            self.over.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
