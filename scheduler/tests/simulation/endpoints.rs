//! What nodes are told of who can be reached.
//!
//! | property | where |
//! |---|---|
//! | I3 what a node has is what follows from the state at its version, whichever manager told it and by whatever changes | [`Assigned`] |
//! | I6 names lead to those that are well, or when none is, to those that run | [`names_are_right`] |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orch_core::{Serving, State};
use orch_spec::assignment::{Assignment, NodeId};

/// What each node was told at each version; what it has left behind is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Assigned(BTreeMap<NodeId, BTreeMap<u64, Assignment>>);

impl Assigned {
    /// A manager tells a node.
    pub(crate) fn tells(&mut self, node: &NodeId, assignment: &Assignment) {
        let known = self.0.entry(node.clone()).or_default();
        let first = known.entry(assignment.version).or_insert_with(|| assignment.clone());
        assert_eq!(first, assignment, "I3: {node} is told two things at one version");
    }

    /// A node has put together what it was told.
    pub(crate) fn has(&mut self, node: &NodeId, assignment: &Assignment) {
        let known = self.0.entry(node.clone()).or_default();
        assert_eq!(known.get(&assignment.version), Some(assignment), "I3: {node} has what follows from no state");
        *known = known.split_off(&assignment.version);
    }

    /// What came after this index has never been.
    pub(crate) fn forget(&mut self, last: u64) {
        self.0.values_mut().for_each(|known| drop(known.split_off(&(last + 1))));
    }
}

/// I6.
pub(crate) fn names_are_right(state: &State, assignment: &Assignment) {
    if !state.is_cluster() {
        return;
    }
    let mut standing: BTreeMap<(&str, IpAddr), Serving> = BTreeMap::new();
    for task in state.tasks.values() {
        for endpoint in task.endpoints() {
            for address in [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)].into_iter().flatten() {
                // A task and the one that it takes over from have one address: the better one of them answers there.
                let best = standing.entry((endpoint.network.as_str(), address)).or_default();
                *best = task.serving.max(*best);
            }
        }
    }
    let vips = state.networks.values().flat_map(|network| network.vips.values());
    let vips: BTreeSet<IpAddr> =
        vips.flat_map(|vip| [vip.ipv4.map(IpAddr::V4), vip.ipv6.map(IpAddr::V6)]).flatten().collect();
    for name in &assignment.names {
        let tasks = name.addresses.iter().filter(|address| !vips.contains(*address));
        let standings: Vec<Serving> = tasks
            .map(|address| standing.get(&(name.network.as_str(), *address)).copied().unwrap_or_default())
            .collect();
        let (worst, best) = (standings.iter().min(), standings.iter().max());
        assert!(worst.is_none_or(|worst| *worst > Serving::Leaving), "I6: {name:?} leads to nobody: {standings:?}");
        let mixed = best == Some(&Serving::Ready) && worst != best;
        assert!(!mixed, "I6: {name:?} leads to those that are well and to others: {standings:?}");
    }
}
