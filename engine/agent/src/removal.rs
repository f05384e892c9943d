//! Taking sandboxes out of the kernel, all that are waiting in one go: the kernel waits for a grace period with its network lock held
//! whenever it takes links down, once for a message however many links it names.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orch_netd::{Netd, SandboxId};
use tokio::sync::Notify;

use crate::{Shared, chain};

/// After so long links of removed sandboxes have gone by themselves, unless something holds their namespaces.
const GONE_AFTER: Duration = Duration::from_secs(1);
/// So long at most is waited for a second without a removal.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// Who comes while a removal is under way waits for the next one, which takes all who wait.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    rounds: Mutex<Rounds>,
    over: Condvar,
    /// Sandboxes were removed.
    removed: Notify,
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
            self.removed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees, for ever, that the links of removed sandboxes go. They go with their namespaces, which something may hold for minutes: a connection
/// whose last packet nobody acknowledges any more is enough.
pub(crate) async fn see_off(shared: Arc<Shared>) {
    loop {
        shared.removals.removed.notified().await;
        let rest =
            async { while tokio::time::timeout(GONE_AFTER, shared.removals.removed.notified()).await.is_ok() {} };
        // Where removals never end, some that are just going are deleted with the others.
        let _ = tokio::time::timeout(LONGEST_REST, rest).await;
        let netd = shared.netd.clone();
        match tokio::task::spawn_blocking(move || netd.delete_lingering()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!(error = chain(&e), "links of removed containers cannot be looked after"),
            Err(e) => tracing::error!(error = %e, "links of removed containers were not looked after"),
        }
    }
}
