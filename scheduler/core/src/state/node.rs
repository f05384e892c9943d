//! Nodes: what they say of themselves, what people say of them, and how well they are.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{NodeFacts, NodeId, TaskId};
use serde::{Deserialize, Serialize};

use super::State;

/// How long a departure counts against a node, milliseconds.
const FLAP_WINDOW_MS: u64 = 60_000;
/// Departures within the window that are forgiven: a restarted agent, one link that was cut.
const FLAPS_FORGIVEN: usize = 2;
/// First time that a node which keeps leaving must be well before it counts as ready; doubled with each further departure, milliseconds.
const PENALTY_FIRST_MS: u64 = 5_000;
/// Longest such time, milliseconds.
const PENALTY_LAST_MS: u64 = 60_000;

/// When a node said something: later is greater. Zeros where that does not matter: on a host alone, whose agent has one way to its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Turn {
    /// The number of its session; a node gives each a greater one.
    pub session: u64,
    /// Grows by one with every report of the session.
    pub number: u64,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// What it says of itself.
    pub facts: NodeFacts,
    /// Whether it takes tasks.
    pub availability: Availability,
    /// Labels that people gave it.
    pub labels: BTreeMap<String, String>,
    /// What it is for.
    pub role: NodeRole,
    /// From 1; never another node's while it is in the cluster. The slot of its tasks of global services.
    pub number: u16,
    /// How well it is, damped: what counts.
    pub state: NodeState,
    /// How well it is as the leader sees it at the moment.
    pub observed: NodeState,
    /// When `state` became what it is, milliseconds since the epoch.
    pub since: u64,
    /// When it left lately.
    pub departures: Vec<u64>,
    /// It is well but left too often: it counts as ready from then on.
    pub ready_at: Option<u64>,
    /// The endpoints version that it has said to have.
    pub applied: u64,
    /// When it said what was taken in last: nothing older is.
    pub heard: Turn,
    /// To which nodes packets of its containers do not get through as they should, and why.
    pub underlay: BTreeMap<NodeId, String>,
    /// Services whose tasks keep failing on it (`stack/service`), and until when that counts, by the log's time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub faulty: BTreeMap<String, u64>,
    /// Tasks that are placed on it and not gone.
    pub tasks: BTreeSet<TaskId>,
    /// What these may take of it.
    pub usage: Usage,
    /// Milliseconds since the epoch.
    pub joined_at: u64,
    /// Index of the last entry that changed it.
    pub changed: u64,
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It does.
    #[default]
    Active,
    /// No new ones.
    Pause,
    /// None; those that it has go elsewhere.
    Drain,
}

impl Availability {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// What a node is for, beside running tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// It has the log, or shall have it.
    Manager,
    /// It has not.
    #[default]
    Worker,
}

impl NodeRole {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        }
    }
}

/// How well a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It answers.
    #[default]
    Ready,
    /// It has not answered for a moment: no new connections and no new tasks go there, what it has stays its own.
    Suspect,
    /// It has not answered for so long that its tasks are replaced.
    Down,
}

impl NodeState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// Amounts of what a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Processor time, billionths of a processor.
    pub cpus: u64,
    /// Memory, bytes.
    pub memory: u64,
    /// Processes.
    pub pids: u64,
    /// Countable resources by kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub generic: BTreeMap<String, u64>,
}

impl Usage {
    /// Takes `other` in.
    pub(crate) fn add(&mut self, other: &Self) {
        self.cpus = self.cpus.saturating_add(other.cpus);
        self.memory = self.memory.saturating_add(other.memory);
        self.pids = self.pids.saturating_add(other.pids);
        for (kind, amount) in &other.generic {
            let sum = self.generic.entry(kind.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Lets go of `other`, which was taken in before.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.cpus = self.cpus.saturating_sub(other.cpus);
        self.memory = self.memory.saturating_sub(other.memory);
        self.pids = self.pids.saturating_sub(other.pids);
        for (kind, amount) in &other.generic {
            if let Some(sum) = self.generic.get_mut(kind) {
                *sum = sum.saturating_sub(*amount);
                if *sum == 0 {
                    self.generic.remove(kind);
                }
            }
        }
    }

    /// The lesser of each amount.
    pub(crate) fn least(&self, other: &Self) -> Self {
        let generic = self.generic.iter().filter_map(|(kind, amount)| {
            let least = *amount.min(other.generic.get(kind)?);
            (least > 0).then(|| (kind.clone(), least))
        });
        Self {
            cpus: self.cpus.min(other.cpus),
            memory: self.memory.min(other.memory),
            pids: self.pids.min(other.pids),
            generic: generic.collect(),
        }
    }
}

impl Node {
    /// What it has. An amount of 0 is not known, but for countable resources, of which a node has what it says.
    pub fn capacity(&self) -> Usage {
        let generic = &self.facts.generic_resources;
        Usage {
            cpus: u64::from(self.facts.cpus) * 1_000_000_000,
            memory: self.facts.memory,
            pids: self.facts.pids,
            generic: generic.iter().map(|(kind, count)| (kind.clone(), u64::try_from(*count).unwrap_or(0))).collect(),
        }
    }

    /// Whether new tasks may go there.
    pub fn takes_tasks(&self) -> bool {
        self.state == NodeState::Ready && self.availability == Availability::Active
    }

    /// Takes in what the leader sees. Says whether `state` is another one now, and sets `ready_at` when it will be later.
    pub(crate) fn observe(&mut self, observed: NodeState, now: u64) -> bool {
        let former = self.state;
        let left = self.observed == NodeState::Ready && observed != NodeState::Ready;
        self.observed = observed;
        self.departures.retain(|at| at.saturating_add(FLAP_WINDOW_MS) > now);
        if left {
            self.departures.push(now);
        }
        match observed {
            NodeState::Ready if former != NodeState::Ready => {
                if self.ready_at.is_none() {
                    self.ready_at = Some(now.saturating_add(self.penalty()));
                }
                if self.ready_at.is_some_and(|at| at <= now) {
                    self.enter(NodeState::Ready, now);
                }
            }
            NodeState::Ready => {}
            NodeState::Suspect | NodeState::Down => {
                self.ready_at = None;
                // One that is down is not better off for having been heard of once.
                if observed > former {
                    self.enter(observed, now);
                }
            }
        }
        self.state != former
    }

    fn enter(&mut self, state: NodeState, now: u64) {
        self.state = state;
        self.since = now;
        if state == NodeState::Ready {
            self.ready_at = None;
        }
    }

    /// How long it must be well before it counts as ready.
    fn penalty(&self) -> u64 {
        match self.departures.len().checked_sub(FLAPS_FORGIVEN + 1) {
            None => 0,
            Some(more) => (PENALTY_FIRST_MS << more.min(8)).min(PENALTY_LAST_MS),
        }
    }
}

impl State {
    /// Whether the host has become one of several; before, everything goes as on one host.
    pub fn is_cluster(&self) -> bool {
        self.cluster_settings.is_some()
    }

    /// The state of a node; one that is not known is down.
    pub(crate) fn node_state(&self, node: &NodeId) -> NodeState {
        self.nodes.get(node).map_or(NodeState::Down, |node| node.state)
    }

    /// The smallest number that no node has.
    pub(crate) fn free_number(&self) -> u16 {
        let taken: BTreeSet<u16> = self.nodes.values().map(|node| node.number).collect();
        (1..u16::MAX).find(|number| !taken.contains(number)).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_left_once_is_back_at_once() {
        let mut node = Node::default();
        assert!(node.observe(NodeState::Suspect, 1_000));
        assert!(node.observe(NodeState::Ready, 2_000));
        assert_eq!((node.state, node.since), (NodeState::Ready, 2_000));
    }

    #[test]
    fn a_node_that_keeps_leaving_must_be_well_for_longer_and_longer() {
        let mut node = Node::default();
        for round in 0..2 {
            node.observe(NodeState::Suspect, round * 4_000);
            assert!(node.observe(NodeState::Ready, round * 4_000 + 1_000), "the first ones are forgiven");
        }
        assert!(node.observe(NodeState::Suspect, 8_000));
        assert!(!node.observe(NodeState::Ready, 9_000));
        assert_eq!((node.state, node.ready_at), (NodeState::Suspect, Some(14_000)));
        assert!(!node.observe(NodeState::Ready, 13_999));
        assert!(node.observe(NodeState::Ready, 14_000));
        node.observe(NodeState::Suspect, 15_000);
        node.observe(NodeState::Ready, 16_000);
        assert_eq!(node.ready_at, Some(26_000));
        // Left alone for the window, it starts anew.
        assert!(node.observe(NodeState::Ready, 26_000));
        node.observe(NodeState::Suspect, 200_000);
        assert!(node.observe(NodeState::Ready, 201_000));
    }

    #[test]
    fn one_that_is_down_becomes_ready_and_never_suspect() {
        let mut node = Node::default();
        node.observe(NodeState::Down, 1_000);
        assert!(!node.observe(NodeState::Suspect, 2_000));
        assert_eq!(node.state, NodeState::Down);
        assert!(node.observe(NodeState::Ready, 3_000));
    }
}
