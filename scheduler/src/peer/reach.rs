//! Whether the host of a silent node answers at all.
//!
//! The kernel of a host that is overloaded, or whose agent has just ended, still answers who wants to connect: it takes the connection, or
//! refuses it. A host without power, or without a link, does not. So a node of whose host nothing answers is given up soon, and one whose
//! host is there gets time to come to itself.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orch_spec::assignment::NodeId;
use tokio::net::TcpStream;

use super::heartbeat::{DOWN_AFTER, SUSPECT_AFTER, Seen};

/// A node that has been silent for so long is tried: three beats are missing.
const TRY_AFTER: Duration = Duration::from_millis(1000);
/// How long a try may take: the first packet and its answer, many times over.
const TRY_TIME: Duration = Duration::from_millis(400);
/// So many tries without an answer at least, …
const TRIES: u32 = 2;
/// … the first of them so long ago, …
const UNANSWERED_FOR: Duration = Duration::from_millis(900);
/// … and the node silent for so long: then it is down. A second after nobody is sent there any more.
const GONE_AFTER: Duration = Duration::from_millis(2600);
/// A node whose host answers is down after so long: a supervisor has started an agent that died again by then, and its containers run
/// meanwhile.
const HUNG_AFTER: Duration = Duration::from_secs(8);

/// What tries of one host have shown.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    /// When it last answered.
    answered: Option<Instant>,
    /// When the first try began since which there was no answer.
    unanswered_since: Option<Instant>,
    unanswered: u32,
    under_way: bool,
}

impl Tries {
    fn tried(&mut self, began: Instant, answered: bool) {
        self.under_way = false;
        if answered {
            *self = Self { answered: Some(Instant::now()), ..Self::default() };
        } else {
            tracing::debug!(unanswered = self.unanswered + 1, "the host of a silent node does not answer");
            self.unanswered_since.get_or_insert(began);
            self.unanswered += 1;
        }
    }

    /// How well its node is that has been silent for so long.
    fn judge(&self, silent: Duration, from: Instant, now: Instant) -> Seen {
        let unanswered_for = self.unanswered_since.map(|since| now.saturating_duration_since(since.max(from)));
        // Only one that has ever answered is missed: something on the way may let nobody connect to it.
        let is_gone = self.answered.is_some()
            && self.unanswered >= TRIES
            && unanswered_for.is_some_and(|time| time >= UNANSWERED_FOR);
        let answers = self.answered.is_some_and(|at| now.saturating_duration_since(at) < SUSPECT_AFTER);
        let patience = match (is_gone, answers) {
            (true, _) => GONE_AFTER,
            (false, true) => HUNG_AFTER,
            (false, false) => DOWN_AFTER,
        };
        if silent >= patience {
            Seen::Down
        } else if silent >= SUSPECT_AFTER {
            Seen::Suspect
        } else {
            Seen::Ready
        }
    }
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reach(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    addresses: BTreeMap<NodeId, SocketAddr>,
    tries: BTreeMap<NodeId, Tries>,
}

impl Reach {
    /// Where the nodes are.
    pub fn know(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is elsewhere now has to answer there first.
        let Inner { addresses: known, tries } = &mut *inner;
        tries.retain(|node, _| known.get(node) == addresses.get(node));
        *known = addresses;
    }

    /// How well a node is that has been silent for so long, counted from a moment at the earliest; has its host tried when that can tell more.
    /// Must be called within a tokio runtime.
    pub fn seen(&self, node: &NodeId, silent: Duration, from: Instant, now: Instant) -> Seen {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let address = inner.addresses.get(node).copied();
        let tries = inner.tries.entry(node.clone()).or_default();
        let is_silent = (TRY_AFTER..HUNG_AFTER).contains(&silent);
        let wanted = is_silent || tries.answered.is_none() && tries.unanswered == 0;
        if let Some(address) = address.filter(|_| wanted && !tries.under_way) {
            tries.under_way = true;
            let (all, node) = (self.0.clone(), node.clone());
            tokio::spawn(async move {
                let began = Instant::now();
                let answered = answers(address).await;
                let mut inner = all.lock().unwrap_or_else(PoisonError::into_inner);
                inner.tries.entry(node).or_default().tried(began, answered);
            });
        }
        tries.judge(silent, from, now)
    }
}

/// Whether something answers there, if only to refuse.
async fn answers(address: SocketAddr) -> bool {
    match tokio::time::timeout(TRY_TIME, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset),
        Err(_) => false,
    }
}

/// Whether the process that listened there is gone while its host is not: nothing else refuses.
pub async fn refuses(address: &str) -> bool {
    let connecting = tokio::time::timeout(TRY_TIME, TcpStream::connect(address)).await;
    matches!(connecting, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_which_nothing_answers_is_given_up_soon_and_one_that_answers_gets_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut tries = Tries::default();
        tries.tried(start, false);
        tries.tried(start, false);
        assert_eq!(tries.judge(ms(3000), start, at(3000)), Seen::Suspect, "it never answered anybody");
        assert_eq!(tries.judge(ms(3800), start, at(3800)), Seen::Down);
        tries.tried(start, true);
        tries.answered = Some(start);
        assert_eq!(tries.judge(ms(1500), start, at(1500)), Seen::Ready);
        tries.tried(at(1100), false);
        assert_eq!(tries.judge(ms(2700), start, at(2700)), Seen::Suspect, "one packet may be lost");
        tries.tried(at(1600), false);
        assert_eq!(tries.judge(ms(2500), start, at(2500)), Seen::Suspect);
        assert_eq!(tries.judge(ms(2700), start, at(2700)), Seen::Down);
        assert_eq!(tries.judge(ms(2700), at(2600), at(2700)), Seen::Suspect, "this manager has just woken");
        tries.tried(at(2700), true);
        tries.answered = Some(at(2700));
        assert_eq!(tries.judge(ms(4000), start, at(4000)), Seen::Suspect, "its host answers");
        tries.answered = Some(at(7900));
        assert_eq!(tries.judge(ms(8000), start, at(8000)), Seen::Down);
    }

    #[tokio::test]
    async fn who_refuses_answers_and_has_gone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(answers(address).await && !refuses(&address.to_string()).await);
        drop(listener);
        assert!(answers(address).await && refuses(&address.to_string()).await);
    }
}
