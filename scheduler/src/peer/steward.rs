//! What whoever leads does about nodes beside answering: it sees which of them live, and brings into line what the records say of one that
//! has left or was removed.
//!
//! All of it is level-triggered: a new leader looks at the state and goes on where the former one stopped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use orch_api::error::chain;
use orch_core::{Command, NodeState, SecurityCommand, State};
use orch_spec::assignment::NodeId;
use orch_spec::role::Role;
use tokio::sync::watch;

use super::forward::{Leader, managers};
use super::heartbeat::{Pulse, SUSPECT_AFTER, Seen};
use super::reach::Reach;
use crate::control::{Control, ProposeError};
use crate::identity::{ManagerAddress, Membership};
use crate::steward::{Sight, run as look_after};

/// How long changes gather before records are compared: who leaves is told at once, this is for what was interrupted.
const GATHER: Duration = Duration::from_millis(150);
/// How long to rest while they do not agree.
const AGAIN: Duration = Duration::from_millis(300);

/// How long a node may be a manager without a place in the log: as long as it takes to join, to be demoted or to leave.
const HALF: Duration = Duration::from_secs(5);

/// How often this manager makes sure that it is awake, and from which gap on it was not and could hear nobody.
const AWAKE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1000));

/// Looks after the cluster for ever, whenever this manager leads.
pub async fn run(leader: Leader, pulse: Pulse) {
    let own = leader.peers.node().clone();
    let (reach, awake) = (Reach::default(), stay_awake(leader.control.clone()));
    let seen = {
        let reach = reach.clone();
        move |node: &NodeId, from: Instant| {
            if *node == own {
                return Sight { state: NodeState::Ready, heard: true };
            }
            // Nodes speak to every manager. One that was silent before this one led is suspect at once, and down no sooner than it could be
            // tried.
            let led = from.checked_sub(SUSPECT_AFTER).unwrap_or(from);
            let from = led.max(*awake.borrow());
            let now = Instant::now();
            let (_, silent) = pulse.silence(node, from, now);
            let state = match reach.seen(node, silent, from, now) {
                Seen::Ready => NodeState::Ready,
                Seen::Suspect => NodeState::Suspect,
                Seen::Down => NodeState::Down,
            };
            Sight { state, heard: pulse.heard_since(node, from) }
        }
    };
    tokio::spawn(look_after(leader.control.clone(), seen));
    let mut halves = Halves::default();
    let (mut applied, mut leadership) = (leader.control.watch(), leader.control.leadership());
    let mut membership = leader.peers.membership();
    loop {
        applied.mark_unchanged();
        membership.mark_unchanged();
        let mut agree = remember_managers(&leader);
        if leadership.borrow_and_update().is_leader {
            reach.know(leader.control.read(addresses));
            let mut todo = leader.control.read(steps);
            todo.extend(halves.overdue(leader.control.read(unseated), Instant::now()).into_iter().map(Step::Demote));
            agree &= todo.is_empty() && halves.0.is_empty();
            for step in todo {
                match take(&leader, &step).await {
                    Ok(()) => tracing::info!(?step, "the records of a node agree again"),
                    Err(error) => tracing::info!(?step, error = chain(&error), "the records of a node disagree"),
                }
            }
        }
        // All that is compared is in the state, in the membership, and in who leads.
        let goes_on = tokio::select! {
            () = tokio::time::sleep(AGAIN), if !agree => true,
            changed = leadership.changed() => changed.is_ok(),
            changed = changed_and_gathered(&mut applied, &mut membership) => changed,
        };
        if !goes_on {
            return;
        }
    }
}

/// Waits for a change of the state or of the membership, and a moment for those that come with it; says no when there will be none.
async fn changed_and_gathered(
    applied: &mut watch::Receiver<u64>,
    membership: &mut watch::Receiver<Option<Membership>>,
) -> bool {
    let changed = tokio::select! {
        changed = applied.changed() => changed.is_ok(),
        changed = membership.changed() => changed.is_ok(),
    };
    tokio::time::sleep(GATHER).await;
    changed
}

/// Since when this process has been awake without a gap. As long as there is no other node to be heard of, that is now.
fn stay_awake(control: Control) -> watch::Receiver<Instant> {
    let (since, awake) = watch::channel(Instant::now());
    tokio::spawn(async move {
        let (period, gap) = AWAKE;
        let mut applied = control.watch();
        let mut last = Instant::now();
        while !since.is_closed() {
            applied.mark_unchanged();
            if control.read(|state| state.nodes.len() < 2) {
                if applied.changed().await.is_err() {
                    return;
                }
                last = Instant::now();
                since.send_replace(last);
                continue;
            }
            tokio::time::sleep(period).await;
            let now = Instant::now();
            if now.saturating_duration_since(last) > gap {
                since.send_replace(now);
            }
            last = now;
        }
    });
    awake
}

/// Where the nodes take connections.
fn addresses(state: &State) -> BTreeMap<NodeId, SocketAddr> {
    let members = state.security.members.iter();
    members.filter_map(|(node, member)| Some((node.clone(), member.address.parse().ok()?))).collect()
}

/// A manager that is removed from the log hears nothing any more: it must know the others by then. Says whether it does.
fn remember_managers(leader: &Leader) -> bool {
    let Some(mut membership) = leader.peers.membership().borrow().clone() else { return true };
    let known = leader.control.read(managers);
    if known.is_empty() {
        return true;
    }
    let known = known.into_iter().map(|peer| ManagerAddress { node: peer.node.into(), address: peer.address });
    membership.managers = known.collect();
    let kept = leader.peers.set_membership(membership);
    if let Err(error) = &kept {
        tracing::warn!(error = chain(error), "the managers could not be remembered");
    }
    kept.is_ok()
}

/// Nodes that are managers and have no place in the log, with since when this leader sees them so.
#[derive(Debug, Default)]
struct Halves(BTreeMap<NodeId, Instant>);

impl Halves {
    /// Those of them that have been so for too long.
    fn overdue(&mut self, present: Vec<NodeId>, now: Instant) -> Vec<NodeId> {
        self.0.retain(|node, _| present.contains(node));
        for node in present {
            self.0.entry(node).or_insert(now);
        }
        self.0
            .iter()
            .filter(|(_, since)| now.saturating_duration_since(**since) >= HALF)
            .map(|(node, _)| node.clone())
            .collect()
    }
}

/// Managers without a place in the log: a command that takes the role away was interrupted after its first half. Who does not answer may be on
/// its way back to its place, and is left alone.
fn unseated(state: &State) -> Vec<NodeId> {
    let is_unseated = |node: &&NodeId| {
        state.members.id_of(node).is_none()
            && state.nodes.get(*node).is_some_and(|known| known.state == NodeState::Ready)
    };
    state.security.managers().map(|(node, _)| node).filter(is_unseated).cloned().collect()
}

/// What is to be done so that the records of a node agree.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// It was removed from the log of managers too late, or not at all.
    Unseat(NodeId),
    /// People have removed it: its certificate must not count any more.
    ShutOut(NodeId),
    /// It has left: what ran there is made elsewhere.
    Forget(NodeId),
    /// It says that it is reached elsewhere now.
    Move(NodeId, String),
    /// It was to be a worker, and is one only half.
    Demote(NodeId),
}

fn steps(state: &State) -> Vec<Step> {
    if !state.security.is_open() {
        return Vec::new();
    }
    let is_member = |node: &NodeId| state.security.members.contains_key(node);
    let managers = state.members.managers.values().map(|member| &member.node).filter(|node| !is_member(node));
    let removed = state.security.members.keys().filter(|node| state.removed_nodes.contains(*node));
    let left = state.nodes.keys().filter(|node| !is_member(node));
    let moved = state.security.members.iter().filter_map(|(node, member)| {
        let (told, known) = (state.nodes.get(node)?.facts.address?, member.address.parse::<SocketAddr>().ok()?);
        let address = SocketAddr::new(told, known.port());
        (told != known.ip()).then(|| Step::Move(node.clone(), address.to_string()))
    });
    managers
        .map(|node| Step::Unseat(node.clone()))
        .chain(removed.map(|node| Step::ShutOut(node.clone())))
        .chain(left.map(|node| Step::Forget(node.clone())))
        .chain(moved)
        .collect()
}

async fn take(leader: &Leader, step: &Step) -> Result<(), ProposeError> {
    let control = &leader.control;
    match step {
        Step::Unseat(node) => control.remove_manager(node).await,
        Step::ShutOut(node) => {
            let shut_out = SecurityCommand::Remove { node: node.clone() };
            control.propose(Command::Security(shut_out)).await.map(drop)
        }
        Step::Move(node, address) => {
            let (node, address) = (node.clone(), address.clone());
            control.propose(Command::Security(SecurityCommand::Move { node, address })).await.map(drop)
        }
        Step::Demote(node) => {
            let demote = SecurityCommand::SetRole { node: node.clone(), role: Role::Worker };
            control.propose(Command::Security(demote)).await.map(drop)
        }
        Step::Forget(node) => control.propose(Command::RemoveNode { node: node.clone(), force: true }).await.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_core::security::{Hidden, Member};

    fn member() -> Member {
        Member { role: Role::Worker, key: String::new(), address: String::new(), joined_at: 0 }
    }

    #[test]
    fn records_that_agree_need_nothing_and_a_host_alone_has_none() {
        let mut state = State::new("c");
        state.nodes.insert("a".into(), orch_core::Node::default());
        assert_eq!(steps(&state), [], "alone");
        state.security.authority = vec![1];
        state.security.authority_key = Hidden(vec![1]);
        state.security.members.insert("a".into(), member());
        assert_eq!(steps(&state), []);
    }

    #[test]
    fn whoever_says_another_address_is_written_down_with_it() {
        let mut state = State::new("c");
        state.security.authority = vec![1];
        let mut node = orch_core::Node::default();
        state.nodes.insert("a".into(), node.clone());
        state.security.members.insert("a".into(), Member { address: "192.0.2.1:7".to_owned(), ..member() });
        assert_eq!(steps(&state), [], "it has said nothing yet");
        node.facts.address = Some([192, 0, 2, 1].into());
        state.nodes.insert("a".into(), node.clone());
        assert_eq!(steps(&state), []);
        node.facts.address = Some([192, 0, 2, 9].into());
        state.nodes.insert("a".into(), node);
        assert_eq!(steps(&state), [Step::Move("a".into(), "192.0.2.9:7".to_owned())]);
    }

    #[test]
    fn a_manager_without_a_place_in_the_log_becomes_a_worker_when_it_answers_and_stays_so() {
        let mut state = State::new("c");
        state.security.authority = vec![1];
        state.security.authority_key = Hidden(vec![1]);
        state.security.members.insert("a".into(), Member { role: Role::Manager, ..member() });
        state.nodes.insert("a".into(), orch_core::Node { state: NodeState::Suspect, ..orch_core::Node::default() });
        assert!(unseated(&state).is_empty(), "it may have lost its log and be about to ask for another place");
        state.nodes.insert("a".into(), orch_core::Node { state: NodeState::Ready, ..orch_core::Node::default() });
        assert_eq!(unseated(&state), ["a".into()]);
        let (mut halves, now) = (Halves::default(), Instant::now());
        assert!(halves.overdue(unseated(&state), now).is_empty(), "it may be joining");
        assert!(halves.overdue(Vec::new(), now + HALF).is_empty(), "it has a place");
        assert!(halves.overdue(unseated(&state), now + HALF).is_empty(), "it has lost it just now");
        assert_eq!(halves.overdue(unseated(&state), now + 2 * HALF), ["a".into()]);
    }

    #[test]
    fn whoever_left_is_forgotten_and_whoever_was_removed_is_shut_out() {
        let mut state = State::new("c");
        state.security.authority = vec![1];
        state.nodes.insert("left".into(), orch_core::Node::default());
        state.security.members.insert("removed".into(), member());
        state.removed_nodes.insert("removed".into());
        assert_eq!(steps(&state), [Step::ShutOut("removed".into()), Step::Forget("left".into())]);
    }
}
