//! Saying that a node lives, and on the leader, seeing which do.
//!
//! Heartbeats are sent and answered by a thread that is put before others and has next to nothing else to do
//! ([`urgency`](crate::urgency)), so that neither a full queue nor a slow disk nor a busy agent looks like a dead host. They go to every
//! manager, which keeps times by its own steady clock: whoever comes to lead knows already who lives, and since when the former leader has
//! been silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orch_api::session::{self, Beat, HEARTBEAT};
use orch_api::tls::{MANAGER_NAME, node_name};
use orch_core::State;
use orch_spec::assignment::NodeId;

use super::forward::{Leader, Place, place_in};
use super::{Lane, Peers, Upgraded};
use crate::identity::ManagerAddress;

/// How often a node says that it lives.
pub const PERIOD: Duration = Duration::from_millis(300);
/// How long connecting or an answer may take before it is tried anew.
const ANSWER_TIME: Duration = Duration::from_millis(1500);
/// Pause after a connection that did not come about, or broke.
const PAUSE: Duration = Duration::from_millis(100);
/// A node that has said nothing for so long is suspect: five beats lost in a row, and within the two seconds in which nobody may be sent
/// to a host that is gone.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1600);
/// So long, and it is down: beyond stalls of three seconds that loaded machines have, and early enough that its tasks run elsewhere
/// within five. Sooner when nothing of its host answers, later when something does ([`super::reach`]).
pub const DOWN_AFTER: Duration = Duration::from_millis(3800);

/// How well a node seems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// It was heard of just now.
    Ready,
    /// It has been silent for a moment.
    Suspect,
    /// It has been silent for long.
    Down,
}

/// When nodes were heard of, by this process's steady clock.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Mutex<BTreeMap<NodeId, Instant>>>);

impl Pulse {
    /// A node was heard of.
    pub fn heard(&self, node: &NodeId, at: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), at);
    }

    /// Whether a node was heard of since a moment.
    pub fn heard_since(&self, node: &NodeId, from: Instant) -> bool {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied();
        heard.is_some_and(|heard| heard >= from)
    }

    /// How long a node has been silent at a moment, since `from` at the most, and whether it was ever heard of.
    pub fn silence(&self, node: &NodeId, from: Instant, now: Instant) -> (bool, Duration) {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied();
        (heard.is_some(), now.saturating_duration_since(heard.map_or(from, |heard| heard.max(from))))
    }

    /// How well a node seems at a moment. `from` is the earliest moment that its silence counts from: when this manager began to lead, or
    /// woke from a stall of its own, in which it could hear nobody.
    pub fn seen(&self, node: &NodeId, from: Instant, now: Instant) -> Seen {
        let (_, silent) = self.silence(node, from, now);
        if silent >= DOWN_AFTER {
            Seen::Down
        } else if silent >= SUSPECT_AFTER {
            Seen::Suspect
        } else {
            Seen::Ready
        }
    }
}

/// Answers a node's heartbeats until it goes away.
pub async fn answer(leader: Leader, pulse: Pulse, node: NodeId, mut connection: Upgraded) {
    // Who was let in was a member a moment ago.
    let (mut is_member, mut place) = (true, Place::Nowhere);
    while let Ok(Some(beat)) = session::read::<Beat>(&mut connection).await {
        let leadership = leader.control.leadership().borrow().clone();
        // While the state is being changed, what it said at the last beat has to do: whoever changes it may be waiting for a processor.
        let look = |state: &State| (state.security.members.contains_key(&node), place_in(state, &leadership));
        if let Some(now) = leader.control.try_read(look) {
            (is_member, place) = now;
        }
        let (counted, other) = match &place {
            Place::Here => (true, None),
            Place::There(other) => (false, Some(other.clone())),
            Place::Nowhere => (false, None),
        };
        // One that was shut out is not alive to the cluster, whatever it says; nor does whoever cannot decide that count it.
        if is_member {
            pulse.heard(&node, Instant::now());
        } else if counted {
            return;
        }
        let answer = Beat { number: beat.number, counted, leader: other };
        if session::write(&mut connection, &answer).await.is_err() {
            return;
        }
    }
}

/// Says that this node lives, for ever: keeps a conversation with each manager that there is. Runs where nothing else makes it late
/// ([`urgency`](crate::urgency)).
pub async fn beat(peers: Peers) {
    let mut membership = peers.membership();
    let mut talks: BTreeMap<(NodeId, String), tokio::task::JoinHandle<()>> = BTreeMap::new();
    loop {
        let managers = membership.borrow_and_update().as_ref().map(|known| known.managers.clone()).unwrap_or_default();
        let others = managers.into_iter().filter(|manager| manager.node != *peers.node());
        let others: BTreeSet<(NodeId, String)> = others.map(|manager| (manager.node, manager.address)).collect();
        talks.retain(|manager, talk| {
            let stays = others.contains(manager);
            if !stays {
                talk.abort();
            }
            stays
        });
        for manager in others {
            let (node, address) = manager.clone();
            let talking = keep_talking(peers.clone(), ManagerAddress { node, address });
            talks.entry(manager).or_insert_with(|| tokio::spawn(talking));
        }
        if membership.changed().await.is_err() {
            return;
        }
    }
}

async fn keep_talking(peers: Peers, manager: ManagerAddress) {
    loop {
        // Why it has ended is the session's to say.
        let _ = talk(&peers, &manager).await;
        peers.pause(PAUSE).await;
    }
}

/// Beats at one manager as long as it answers.
async fn talk(peers: &Peers, manager: &ManagerAddress) -> Option<()> {
    let name = if manager.node.0.is_empty() { MANAGER_NAME.to_owned() } else { node_name(&manager.node.0) };
    let upgrading = peers.upgrade(Lane::Urgent, &manager.address, &name, "/v1/peer/heartbeat", HEARTBEAT);
    let mut connection = tokio::time::timeout(ANSWER_TIME, upgrading).await.ok()?.ok()?;
    let mut number = 0;
    loop {
        let began = Instant::now();
        number += 1;
        let exchange = async {
            session::write(&mut connection, &Beat { number, counted: false, leader: None }).await?;
            session::read::<Beat>(&mut connection).await
        };
        tokio::time::timeout(ANSWER_TIME, exchange).await.ok()?.ok()??;
        tokio::time::sleep(PERIOD.saturating_sub(began.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_suspect_and_then_down_by_its_silence_and_ready_at_its_next_word() {
        let pulse = Pulse::default();
        let node = NodeId::from("n");
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        pulse.heard(&node, start);
        assert_eq!(pulse.seen(&node, start, at(1500)), Seen::Ready);
        assert_eq!(pulse.seen(&node, start, at(1700)), Seen::Suspect);
        assert_eq!(pulse.seen(&node, start, at(4000)), Seen::Down);
        pulse.heard(&node, at(4000));
        assert_eq!(pulse.seen(&node, start, at(4100)), Seen::Ready);
    }

    #[test]
    fn silence_counts_only_since_this_manager_could_hear() {
        let pulse = Pulse::default();
        let (known, unknown) = (NodeId::from("k"), NodeId::from("u"));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        pulse.heard(&known, start);
        let woke = at(60_000);
        for node in [&known, &unknown] {
            assert_eq!(pulse.seen(node, woke, at(61_000)), Seen::Ready);
            assert_eq!(pulse.seen(node, woke, at(62_000)), Seen::Suspect);
        }
    }
}
