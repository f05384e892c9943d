//! New tasks in the place of others: slots of a rolling update, and tasks that are to be somewhere else.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, NodeId, TaskId};
use orch_spec::model::{ServiceSpec, UpdateOrder};

use super::draft::Draft;
use super::replicas::namespace_services;
use super::task::{self, Blueprint, Succession};
use super::{Moment, Planned, up};
use crate::error::{Refusal, SpecFault};
use crate::state::{HandOver, State};

/// A task that is to be somewhere else.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub(crate) task: TaskId,
    /// Its node is lost.
    pub(crate) lost: bool,
    /// The new one runs before it goes.
    pub(crate) beside: bool,
    /// It goes then in any case.
    pub(crate) by: Option<u64>,
}

/// Whether a new task of the service can run while the former one of its slot does: they would want the same name, address or port.
pub(crate) fn can_overlap(state: &State, spec: &ServiceSpec) -> bool {
    let fixed = spec.networks.values().any(|attachment| attachment.ipv4_address.or(attachment.ipv6_address).is_some());
    let published = task::own_ports(state.is_cluster(), spec).iter().any(|port| port.host_ports != (0, 0));
    spec.container_name.is_none() && !fixed && !published
}

/// Whether another service of the stack lives in namespaces of this one: its tasks cannot be replaced one by one.
pub(crate) fn has_guests(draft: &Draft<'_>, service: &str) -> bool {
    draft.parents.contains(service)
        || draft.stack.services.values().any(|other| {
            let spec = &draft.revision(other.revision).spec;
            namespace_services(spec).any(|parent| parent == service)
        })
}

/// Whether the tasks of an update run before those that they replace go.
pub(crate) fn replaces_beside(state: &State, stack: &str, service: &str, order: UpdateOrder) -> bool {
    let record = state.stacks.get(stack).and_then(|stack| stack.services.get(service));
    let spec = record.map(|record| &state.revision(record.revision).spec);
    order == UpdateOrder::StartFirst && spec.is_some_and(|spec| can_overlap(state, spec))
}

/// New tasks for slots of a service that is being updated; says which slot got which.
pub(crate) fn plan_slots(
    state: &State,
    stack: &str,
    service: &str,
    slots: &[u32],
    order: UpdateOrder,
    moment: Moment,
) -> Result<(Planned, Vec<(u32, TaskId)>), Refusal> {
    let mut draft = Draft::new(state, stack, moment);
    let mut made = Vec::new();
    let Some(record) = draft.stack.services.get(service).cloned() else { return Ok((draft.finish(), made)) };
    let spec = draft.revision(record.revision).spec.clone();
    let succession = match order {
        UpdateOrder::StartFirst if can_overlap(state, &spec) => Succession::Beside,
        // A name fits one container only, also while the other one does not run.
        _ if spec.container_name.is_some() => Succession::After,
        _ => Succession::TakesOver,
    };
    for slot in slots {
        let former = draft.slot_tasks(service, *slot).rfind(|task| task.is_replica());
        let Some(former) = former.cloned() else { continue };
        draft.retire(&former.id);
        let retired = draft.task_mut(&former.id);
        retired.hand_over = match succession {
            Succession::After => None,
            Succession::TakesOver => Some(HandOver::Prepared),
            Succession::Beside => Some(HandOver::Ready),
        };
        let id = task::add(
            &mut draft,
            Blueprint {
                service,
                slot: *slot,
                one_off: false,
                revision: record.revision,
                image_id: &record.image_id,
                generation: record.generation,
                former: Some(former.id.clone()),
                succession,
                bound: former.bound.clone(),
                container_name: None,
                goal: former.goal,
                ungated: former.ungated,
                // Two that run at once must not write into one anonymous volume.
                renew_anonymous_volumes: succession == Succession::Beside,
            },
        )?;
        made.push((*slot, id));
    }
    task::check_ports(&mut draft)?;
    Ok((draft.finish(), made))
}

/// New tasks for those that are to be somewhere else, for nodes that lack one of a service, and an end for those that are too many.
pub(crate) fn plan_moves(
    state: &State,
    stack: &str,
    moves: &[Move],
    missing: &BTreeMap<String, Vec<NodeId>>,
    surplus: &[TaskId],
    moment: Moment,
) -> Result<Planned, Refusal> {
    let mut draft = Draft::new(state, stack, moment);
    for id in surplus {
        draft.retire(id);
    }
    for one in in_order(&draft, moves)? {
        let Some(former) = draft.task(&one.task).cloned() else { continue };
        draft.retire(&one.task);
        let retired = draft.task_mut(&one.task);
        retired.lost = one.lost;
        retired.hand_over = one.beside.then_some(HandOver::Ready);
        retired.hand_over_by = one.by;
        let blueprint = Blueprint {
            service: &former.service,
            slot: former.slot,
            one_off: false,
            revision: former.revision,
            image_id: &former.image_id,
            generation: former.generation,
            former: Some(former.id.clone()),
            succession: if one.beside { Succession::Beside } else { Succession::After },
            bound: None,
            container_name: None,
            goal: former.goal,
            ungated: former.ungated,
            renew_anonymous_volumes: former.renew_anonymous_volumes,
        };
        task::add(&mut draft, blueprint)?;
    }
    for (service, nodes) in missing {
        add_global(&mut draft, service, nodes)?;
    }
    Ok(draft.finish())
}

/// One task of a service for each of the nodes.
fn add_global(draft: &mut Draft<'_>, service: &str, nodes: &[NodeId]) -> Result<(), Refusal> {
    let Some(record) = draft.stack.services.get(service).cloned() else { return Ok(()) };
    for id in nodes {
        let Some(number) = draft.state.nodes.get(id).map(|node| node.number) else { continue };
        let blueprint = Blueprint {
            service,
            slot: u32::from(number),
            one_off: false,
            revision: record.revision,
            image_id: &record.image_id,
            generation: record.generation,
            former: None,
            succession: Succession::After,
            bound: Some(id.clone()),
            container_name: None,
            goal: DesiredTask::Running,
            ungated: false,
            renew_anonymous_volumes: false,
        };
        task::add(draft, blueprint)?;
    }
    let count = u32::try_from(draft.replicas_of(service).len()).unwrap_or(u32::MAX);
    if let Some(record) = draft.stack.services.get_mut(service) {
        record.replicas = count;
    }
    Ok(())
}

/// The moves, each after those of the services that its own needs.
fn in_order<'m>(draft: &Draft<'_>, moves: &'m [Move]) -> Result<Vec<&'m Move>, Refusal> {
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for task in moves.iter().filter_map(|one| draft.task(&one.task)) {
        let spec = &draft.revision(task.revision).spec;
        graph.entry(&task.service).or_default().extend(namespace_services(spec));
    }
    let order = up::order(&graph).map_err(|services| Refusal::from(SpecFault::Cycle { services }))?;
    let rank: BTreeMap<&str, usize> = order.iter().enumerate().map(|(rank, name)| (name.as_str(), rank)).collect();
    let mut sorted: Vec<(Option<usize>, u64, &Move)> = moves
        .iter()
        .filter_map(|one| {
            draft.task(&one.task).map(|task| (rank.get(task.service.as_str()).copied(), task.sequence, one))
        })
        .collect();
    sorted.sort_by_key(|(rank, sequence, _)| (*rank, *sequence));
    Ok(sorted.into_iter().map(|(_, _, one)| one).collect())
}
