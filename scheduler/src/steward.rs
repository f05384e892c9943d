//! What whoever leads does by itself: it says when a timer of the state is due, and how well it sees the nodes.
//!
//! Every manager runs this and only the leader says anything. Saying it twice, or a little late, does no harm: the state machine looks at
//! what is, and time is the log's.

use std::time::{Duration, Instant};

use orch_core::{Command, NodeState, State};
use orch_spec::assignment::NodeId;

use crate::control::{Control, ProposeError};

/// How often nodes are looked at. A node that is lost is to be suspect within two seconds.
const LOOK: Duration = Duration::from_millis(200);
/// How long to rest when a timer is due and nobody takes the change: the disk is full, or the leader is another one by now.
const AGAIN: Duration = Duration::from_millis(200);

/// A pause between two looks that is longer than this was a stall of our own, in which we could hear nobody.
const STALL: Duration = Duration::from_millis(1000);

/// How well a node is seen, and whether it was heard of since the moment from which its silence counts: before, nothing good is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// How well it is.
    pub state: NodeState,
    /// Whether it was heard of.
    pub heard: bool,
}

/// What is to be said now, at this time of the log: that a timer is due, and which nodes are seen otherwise than the state has it.
pub fn due(state: &State, time: u64, seen: impl Fn(&NodeId) -> Sight) -> Vec<Command> {
    let mut commands = Vec::new();
    if state.next_timer().is_some_and(|at| at <= time) {
        commands.push(Command::Tick);
    }
    if state.is_cluster() {
        let changed = state.nodes.iter().map(|(id, node)| (id, node, seen(id)));
        // A new leader has not heard of a node that is down, and does not think better of it for that.
        let changed =
            changed.filter(|(_, node, seen)| node.observed != seen.state && (seen.heard || seen.state > node.observed));
        commands.extend(changed.map(|(id, _, seen)| Command::ObserveNode { node: id.clone(), state: seen.state }));
    }
    commands
}

/// Runs until the control plane is gone. `seen` says how well a node is seen from here now, and gets the moment from which its silence
/// counts at the earliest: when we began to lead, or woke from a stall. On a host that is alone it is not asked.
pub async fn run(control: Control, seen: impl Fn(&NodeId, Instant) -> Sight + Send) {
    let mut applied = control.watch();
    let mut leadership = control.leadership();
    let (mut from, mut looked) = (Instant::now(), None::<Instant>);
    loop {
        applied.mark_unchanged();
        if !leadership.borrow_and_update().is_leader {
            looked = None;
            if leadership.changed().await.is_err() {
                return;
            }
            continue;
        }
        let began = Instant::now();
        if looked.is_none_or(|looked| began.saturating_duration_since(looked) > STALL) {
            from = began;
        }
        looked = Some(began);
        let now = control.log_time();
        let (commands, next) = control.read(|state| {
            let commands = due(state, now, |node| seen(node, from));
            let timer = state.next_timer().map(|at| Duration::from_millis(at.saturating_sub(now)));
            // Of a node that falls silent nobody is told; as long as there is no other one, there is nothing to see.
            let has_others = state.is_cluster() && state.nodes.len() > 1;
            (commands, if has_others { Some(timer.map_or(LOOK, |timer| timer.min(LOOK))) } else { timer })
        });
        let mut rest = next;
        for command in commands {
            match control.propose(command).await {
                Ok(_) | Err(ProposeError::Refused(_)) => rest = Some(Duration::ZERO),
                Err(ProposeError::Gone(_)) => return,
                Err(_) => rest = Some(AGAIN),
            }
        }
        let sleep = async {
            match rest {
                Some(rest) => tokio::time::sleep(rest).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            // Something new may be due sooner.
            changed = applied.changed(), if rest.is_none_or(|rest| rest > LOOK) => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}
