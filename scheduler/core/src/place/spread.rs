//! Dealing tasks out: the emptiest branch first, then the emptiest node.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::NodeId;

use super::obstacle;
use crate::state::Node;

/// A node that nothing keeps the tasks from.
pub(super) struct Candidate<'n> {
    pub(super) id: &'n NodeId,
    /// Tasks that it can take.
    pub(super) room: usize,
    /// Tasks of the service that it has.
    pub(super) present: usize,
    /// Tasks that it has.
    pub(super) tasks: usize,
    /// Decides between equals.
    pub(super) tie: u64,
    /// Its value of each thing to spread over.
    pub(super) domains: Vec<String>,
}

/// The node's values of what is spread over; one that it has not is a value as well, which Swarm has too.
pub(super) fn domains(spread: &[String], id: &NodeId, node: &Node) -> Vec<String> {
    spread.iter().map(|key| obstacle::property(key, id, node).unwrap_or_default()).collect()
}

/// The tree of branches and nodes.
pub(super) struct Deal<'n> {
    root: Branch<'n>,
}

/// Order of nodes within a branch: tasks of the service, all tasks, tie.
type Rank = (usize, usize, u64);

#[derive(Default)]
struct Branch<'n> {
    /// Tasks of the service in it.
    present: usize,
    /// Tasks that it can take.
    room: usize,
    children: BTreeMap<String, Branch<'n>>,
    nodes: BTreeSet<(Rank, &'n NodeId)>,
    /// Rank and room of each node.
    rooms: BTreeMap<&'n NodeId, (Rank, usize)>,
}

impl<'n> Deal<'n> {
    pub(super) fn new(candidates: Vec<Candidate<'n>>) -> Self {
        let mut root = Branch::default();
        for candidate in candidates.into_iter().filter(|candidate| candidate.room > 0) {
            root.enter(&candidate, &candidate.domains);
        }
        Self { root }
    }

    /// The node for the next task.
    pub(super) fn next(&mut self) -> Option<&'n NodeId> {
        self.root.next()
    }

    /// The same node once more.
    pub(super) fn take(&mut self, id: &'n NodeId) -> Option<&'n NodeId> {
        self.root.take(id)
    }
}

impl<'n> Branch<'n> {
    fn enter(&mut self, candidate: &Candidate<'n>, domains: &[String]) {
        self.present += candidate.present;
        self.room = self.room.saturating_add(candidate.room);
        match domains.split_first() {
            Some((domain, rest)) => self.children.entry(domain.clone()).or_default().enter(candidate, rest),
            None => {
                let rank = (candidate.present, candidate.tasks, candidate.tie);
                self.nodes.insert((rank, candidate.id));
                self.rooms.insert(candidate.id, (rank, candidate.room));
            }
        }
    }

    fn next(&mut self) -> Option<&'n NodeId> {
        if self.room == 0 {
            return None;
        }
        let found = if self.children.is_empty() {
            let (_, id) = self.nodes.first()?;
            let id = *id;
            self.charge(id);
            id
        } else {
            let open = self.children.values_mut().filter(|branch| branch.room > 0);
            open.min_by_key(|branch| branch.present)?.next()?
        };
        self.room -= 1;
        self.present += 1;
        Some(found)
    }

    fn take(&mut self, id: &'n NodeId) -> Option<&'n NodeId> {
        if self.room == 0 {
            return None;
        }
        let found = if self.children.is_empty() {
            if !self.rooms.contains_key(id) {
                return None;
            }
            self.charge(id);
            id
        } else {
            self.children.values_mut().find_map(|branch| branch.take(id))?
        };
        self.room -= 1;
        self.present += 1;
        Some(found)
    }

    /// One task more on a node of this branch, which has room.
    fn charge(&mut self, id: &'n NodeId) {
        let Some((rank, room)) = self.rooms.remove(id) else { return };
        self.nodes.remove(&(rank, id));
        if room > 1 {
            let (present, tasks, tie) = rank;
            let rank = (present + 1, tasks + 1, tie);
            self.nodes.insert((rank, id));
            self.rooms.insert(id, (rank, room - 1));
        }
    }
}
