//! Services with a task on every node of a cluster.

use std::collections::BTreeSet;

use orch_spec::assignment::{NodeId, TaskId};
use orch_spec::model::ServiceSpec;

use super::Verb;
use super::draft::Draft;
use super::replicas::{self, Reason, Want, order_task};
use super::task::{self, Blueprint};
use crate::error::Refusal;
use crate::place;
use crate::state::{Availability, Task};

/// The node that a task is on, or is meant for.
fn home(task: &Task) -> Option<&NodeId> {
    task.node.as_ref().or(task.bound.as_ref())
}

/// Takes tasks out of `present` that are where none should be.
pub(super) fn remove_strays(draft: &mut Draft<'_>, spec: &ServiceSpec, present: &mut Vec<(TaskId, Option<Reason>)>) {
    let mut covered: BTreeSet<NodeId> = BTreeSet::new();
    let mut strays = BTreeSet::new();
    for (id, _) in present.iter() {
        let home = draft.task(id).and_then(home).and_then(|home| draft.state.nodes.get_key_value(home));
        let meant = home.filter(|(home, node)| {
            node.availability != Availability::Drain && place::meets(spec, home, node) && !covered.contains(*home)
        });
        match meant {
            Some((home, _)) => drop(covered.insert(home.clone())),
            None => drop(strays.insert(id.clone())),
        }
    }
    present.retain(|(id, _)| !strays.contains(id));
    for id in strays {
        draft.retire(&id);
        draft.task_operation(Verb::Remove, &id, "it is not meant for its node");
    }
}

/// Adds a task for every node that lacks one.
pub(super) fn add_missing(draft: &mut Draft<'_>, want: &Want<'_>) -> Result<(), Refusal> {
    let spec = draft.revision(want.revision).spec.clone();
    let covered: BTreeSet<NodeId> =
        draft.replicas_of(want.service).iter().filter_map(|id| draft.task(id).and_then(home)).cloned().collect();
    let lacking: Vec<(NodeId, u16)> = place::hosts(draft.state, &spec)
        .into_iter()
        .filter(|id| !covered.contains(*id))
        .filter_map(|id| Some((id.clone(), draft.state.nodes.get(id)?.number)))
        .collect();
    for (node, number) in lacking {
        let plain = replicas::blueprint(draft, want, u32::from(number), None);
        let id = task::add(draft, Blueprint { bound: Some(node), ..plain })?;
        let cause = if want.start { "" } else { "not started" };
        let operation = draft.task_operation(Verb::Create, &id, cause);
        order_task(draft, &id, operation);
    }
    let count = u32::try_from(draft.replicas_of(want.service).len()).unwrap_or(u32::MAX);
    if let Some(record) = draft.stack.services.get_mut(want.service) {
        record.replicas = count;
    }
    Ok(())
}
