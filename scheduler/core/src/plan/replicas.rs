//! The replicas of one service: which stay, which are made anew, which come and which go.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{DesiredTask, TaskId, TaskState};
use orch_spec::model::{NamespaceMode, NetworkMode, RestartCondition, ServiceSpec};

use super::draft::Draft;
use super::task::{self, Blueprint, Succession};
use super::{ResourceKind, Verb, diff, everywhere, misplaced, roll};
use crate::error::{Refusal, SpecFault};
use crate::gate;
use crate::state::{Former, HISTORY, Revision, RevisionId, Rollout, RolloutRules, RolloutState, Service, Task};

/// More replicas of one service are taken for a slip of the keyboard.
const MOST_REPLICAS: u64 = 10_000;

/// What a service shall be.
pub(crate) struct Want<'a> {
    pub(crate) service: &'a str,
    pub(crate) revision: RevisionId,
    pub(crate) image_id: &'a str,
    pub(crate) replicas: u32,
    /// Make containers anew although nothing changed.
    pub(crate) force: bool,
    /// Keep containers although something changed.
    pub(crate) keep: bool,
    pub(crate) start: bool,
    pub(crate) ungated: bool,
    pub(crate) renew_anonymous_volumes: bool,
    /// Another service waits for it to complete.
    pub(crate) awaited: bool,
}

/// Services whose containers this plan has replaced or restarted, for those that follow.
#[derive(Default)]
pub(crate) struct Cascade {
    pub(crate) recreated: BTreeSet<String>,
    pub(crate) restarted: BTreeSet<String>,
}

/// Plans one service; those that it depends on have been planned before.
pub(crate) fn plan(draft: &mut Draft<'_>, want: &Want<'_>, cascade: &mut Cascade) -> Result<(), Refusal> {
    check(draft, want)?;
    let revision = draft.revision(want.revision).clone();
    let mut present: Vec<(TaskId, Option<Reason>)> = Vec::new();
    let mut changes = Changes::new();
    for id in draft.replicas_of(want.service) {
        let reason = recreate_reason(draft, &id, want, &revision, cascade, &mut changes);
        present.push((id, reason));
    }
    let everywhere = draft.state.is_cluster() && revision.spec.deploy.mode.is_global();
    if everywhere {
        everywhere::remove_strays(draft, &revision.spec, &mut present);
    } else {
        scale_down(draft, want, &mut present);
    }
    let follows = follows_restart(&revision.spec, cascade);
    let mut rolled = Vec::new();
    let rolls = rolls(draft, want, &revision.spec);
    let goes_on = goes_on(draft, want);
    if !rolls && present.iter().any(|(_, reason)| reason.is_some()) {
        remember_former(draft, want);
    }
    for (id, reason) in &present {
        match reason {
            // The update that goes on will come to it.
            Some(reason) if !reason.at_once && goes_on && is_out_of_date(draft, id, want) => {}
            Some(reason) if !reason.at_once && rolls => rolled.push((id.clone(), reason.text.clone())),
            Some(reason) => {
                recreate(draft, want, id, &reason.text)?;
                cascade.recreated.insert(want.service.to_owned());
            }
            None if goes_on && is_out_of_date(draft, id, want) => {}
            None => keep(draft, want, id, follows.as_deref(), cascade),
        }
    }
    if !rolled.is_empty() {
        begin_rollout(draft, want, &present, &rolled);
    }
    let kept: Vec<TaskId> = present.iter().filter(|(_, reason)| reason.is_none()).map(|(id, _)| id.clone()).collect();
    misplaced::announce(draft, want, &kept);
    if everywhere { everywhere::add_missing(draft, want) } else { scale_up(draft, want, present.len()) }
}

/// Why a container must be made anew.
pub(crate) struct Reason {
    text: String,
    /// It cannot wait for its turn in a rolling update: what it hangs on goes.
    at_once: bool,
}

impl Reason {
    fn at_once(text: String) -> Option<Self> {
        Some(Self { text, at_once: true })
    }
}

/// Whether changes of a service are rolled over its tasks some at a time: always on a cluster, and where its file says how. Everything at
/// once, Compose's way, is for the rest, and for what cannot be told apart: tasks with guests in their namespaces.
fn rolls(draft: &Draft<'_>, want: &Want<'_>, spec: &ServiceSpec) -> bool {
    (draft.state.is_cluster() || spec.deploy.update_config.is_some())
        && want.start
        && !spec.deploy.mode.is_job()
        && !roll::has_guests(draft, want.service)
}

/// The service as it was before this plan.
fn before<'d>(draft: &'d Draft<'_>, service: &str) -> Option<&'d Service> {
    draft.state.stacks.get(&draft.stack.name).and_then(|stack| stack.services.get(service))
}

/// Whether an update to the very same goes on already.
fn goes_on(draft: &Draft<'_>, want: &Want<'_>) -> bool {
    before(draft, want.service).is_some_and(|service| {
        let same_image = want.image_id.is_empty() || service.image_id == want.image_id;
        service.is_rolling() && service.revision == want.revision && same_image && !want.force
    })
}

fn is_out_of_date(draft: &Draft<'_>, id: &TaskId, want: &Want<'_>) -> bool {
    let generation = draft.stack.services.get(want.service).map_or(0, |service| service.generation);
    draft.task(id).is_some_and(|task| task.generation < generation)
}

/// Remembers what the service was, so that it can be that again; gives what to go back to. An update that did not end well is nothing to
/// go back to: what was before it is.
fn remember_former(draft: &mut Draft<'_>, want: &Want<'_>) -> Option<Former> {
    let was = before(draft, want.service)?;
    let former = Former { revision: was.revision, image_id: was.image_id.clone() };
    let stands = was
        .rollout
        .as_ref()
        .is_none_or(|rollout| matches!(rollout.state, RolloutState::Completed | RolloutState::RolledBack));
    let record = draft.stack.services.get_mut(want.service)?;
    let differs = former.revision != record.revision || former.image_id != record.image_id;
    if stands && differs && record.history.last() != Some(&former) {
        record.history.push(former.clone());
        let surplus = record.history.len().saturating_sub(HISTORY);
        record.history.drain(..surplus);
    }
    if stands && differs { Some(former) } else { record.history.last().cloned() }
}

/// Begins to roll a change over the tasks that need it.
fn begin_rollout(
    draft: &mut Draft<'_>,
    want: &Want<'_>,
    present: &[(TaskId, Option<Reason>)],
    rolled: &[(TaskId, String)],
) {
    let former = remember_former(draft, want);
    let rules = RolloutRules::new(draft.revision(want.revision).spec.deploy.update_config.as_ref());
    let (started_at, begun) = (draft.moment.now_ms, draft.state.index);
    let Some(record) = draft.stack.services.get_mut(want.service) else { return };
    record.generation += 1;
    let generation = record.generation;
    let total = u32::try_from(rolled.len()).unwrap_or(u32::MAX);
    record.rollout = Some(Rollout { started_at, begun, rules, total, former, ..Rollout::default() });
    let in_turn: BTreeSet<&TaskId> = rolled.iter().map(|(id, _)| id).collect();
    for (id, _) in present.iter().filter(|(id, _)| !in_turn.contains(id)) {
        if draft.task(id).is_some_and(Task::is_replica) {
            draft.task_mut(id).generation = generation;
        }
    }
    for (id, reason) in rolled {
        let operation = draft.task_operation(Verb::Recreate, id, reason);
        order_task(draft, id, operation);
    }
}

fn check(draft: &Draft<'_>, want: &Want<'_>) -> Result<(), Refusal> {
    let (service, spec) = (want.service.to_owned(), &draft.revision(want.revision).spec);
    if u64::from(want.replicas) > MOST_REPLICAS {
        return Err(SpecFault::TooMany { service, wanted: want.replicas.into(), limit: MOST_REPLICAS }.into());
    }
    if want.replicas > 1 {
        let replicas = want.replicas;
        if let Some(name) = spec.container_name.clone() {
            return Err(SpecFault::NamedReplicas { service, name, replicas }.into());
        }
        for (key, attachment) in &spec.networks {
            if let Some(address) = attachment.ipv4_address.or(attachment.ipv6_address) {
                let network = draft.revision(want.revision).networks.get(key).cloned().unwrap_or_default();
                return Err(SpecFault::AddressedReplicas { service, network, address, replicas }.into());
            }
        }
    }
    Ok(())
}

/// What has changed since each specification that tasks were made from: many have the same.
type Changes = BTreeMap<RevisionId, Vec<String>>;

/// Why the task's container must be made anew, if it must.
fn recreate_reason(
    draft: &Draft<'_>,
    id: &TaskId,
    want: &Want<'_>,
    new: &Revision,
    cascade: &Cascade,
    changes: &mut Changes,
) -> Option<Reason> {
    let task = draft.task(id)?;
    // A namespace that goes away takes its guests with it, whatever was asked for.
    if let Some(parent) = task.namespace_parents().find(|parent| draft.task(parent).is_none_or(Task::is_retiring)) {
        let name = draft.task(parent).map_or("a container", |parent| parent.container_name.as_str());
        return Reason::at_once(format!("it shares a namespace of {name}, which is recreated"));
    }
    if let Some(parent) = namespace_services(&new.spec).find(|parent| cascade.recreated.contains(*parent)) {
        return Reason::at_once(format!("it shares a namespace of service {parent}, which is recreated"));
    }
    let replaced = |name: &&orch_spec::assignment::NetworkName| {
        draft.network(name).is_none_or(|network| network.displaces(&task.id))
    };
    if let Some(network) = task.networks().find(replaced) {
        return Reason::at_once(format!("network {network} is made anew"));
    }
    if want.keep {
        return None;
    }
    if want.force {
        return Some(Reason { text: "recreation was asked for".to_owned(), at_once: false });
    }
    let known = changes.entry(task.revision);
    let mut reasons = known.or_insert_with(|| diff::explain_changes(draft.revision(task.revision), new)).clone();
    if !task.image_id.is_empty() && !want.image_id.is_empty() && task.image_id != want.image_id {
        reasons.push(format!(
            "image {} changed ({} → {})",
            new.spec.image,
            short(&task.image_id),
            short(want.image_id)
        ));
    }
    // Which mounts it has of another was settled when its container was made.
    let lenders = new.spec.volumes_from.iter().filter(|from| !from.container);
    reasons.extend(
        lenders
            .filter(|from| cascade.recreated.contains(&from.source))
            .map(|from| format!("it takes over the mounts of service {}, which is recreated", from.source)),
    );
    let cluster = draft.state.is_cluster();
    if reasons.is_empty()
        && cluster
        && task.ports() != task::own_ports(cluster, &new.spec)
        && !task.endpoints().is_empty()
    {
        reasons.push("its ports are published on every node now".to_owned());
    }
    if reasons.is_empty() { None } else { Some(Reason { text: diff::join(&reasons), at_once: false }) }
}

/// Twelve digits are enough to tell two images apart.
fn short(image_id: &str) -> &str {
    let digits = image_id.strip_prefix("sha256:").unwrap_or(image_id);
    digits.get(..12).unwrap_or(digits)
}

/// Services whose namespaces the service joins.
pub(crate) fn namespace_services(spec: &ServiceSpec) -> impl Iterator<Item = &str> {
    let network = match &spec.network_mode {
        NetworkMode::Service(service) => Some(service.as_str()),
        _ => None,
    };
    let pid = match &spec.pid {
        NamespaceMode::Service(service) => Some(service.as_str()),
        _ => None,
    };
    let ipc = match &spec.ipc {
        NamespaceMode::Service(service) => Some(service.as_str()),
        _ => None,
    };
    network.into_iter().chain(pid).chain(ipc)
}

/// The service with whose restart or recreation this one goes along (`restart: true`).
pub(crate) fn follows_restart(spec: &ServiceSpec, cascade: &Cascade) -> Option<String> {
    spec.depends_on.iter().filter(|(_, dependency)| dependency.restart).find_map(|(service, _)| {
        if cascade.recreated.contains(service) {
            return Some(format!("service {service} is recreated"));
        }
        cascade.restarted.contains(service).then(|| format!("service {service} is restarted"))
    })
}

/// Takes the surplus out of `present`: first what is outdated, then the highest numbers.
fn scale_down(draft: &mut Draft<'_>, want: &Want<'_>, present: &mut Vec<(TaskId, Option<Reason>)>) {
    let surplus = present.len().saturating_sub(want.replicas as usize);
    if surplus == 0 {
        return;
    }
    let slot = |id: &TaskId| draft.task(id).map_or(0, |task| task.slot);
    let mut victims: Vec<(bool, u32, TaskId)> =
        present.iter().map(|(id, reason)| (reason.is_some(), slot(id), id.clone())).collect();
    victims.sort();
    let victims: Vec<TaskId> = victims.into_iter().rev().take(surplus).map(|(_, _, id)| id).collect();
    for id in &victims {
        draft.retire(id);
        draft.task_operation(Verb::Remove, id, format!("scaled down to {}", want.replicas));
    }
    let victims: BTreeSet<TaskId> = victims.into_iter().collect();
    present.retain(|(id, _)| !victims.contains(id));
}

fn recreate(draft: &mut Draft<'_>, want: &Want<'_>, former: &TaskId, reason: &str) -> Result<(), Refusal> {
    let (slot, bound) = draft.task(former).map_or((1, None), |task| (task.slot, task.bound.clone()));
    draft.retire(former);
    let blueprint = Blueprint { bound, ..blueprint(draft, want, slot, Some(former.clone())) };
    let id = task::add(draft, blueprint)?;
    let operation = draft.task_operation(Verb::Recreate, &id, reason);
    order_task(draft, &id, operation);
    Ok(())
}

pub(crate) fn blueprint<'a>(draft: &Draft<'_>, want: &Want<'a>, slot: u32, former: Option<TaskId>) -> Blueprint<'a> {
    Blueprint {
        service: want.service,
        slot,
        one_off: false,
        revision: want.revision,
        image_id: want.image_id,
        generation: draft.stack.services.get(want.service).map_or(0, |service| service.generation),
        former,
        succession: Succession::After,
        bound: None,
        container_name: None,
        goal: if want.start { DesiredTask::Running } else { DesiredTask::Created },
        ungated: want.ungated,
        renew_anonymous_volumes: want.renew_anonymous_volumes,
    }
}

/// A task whose container stays: it gets the newest specification, and a start where it needs one.
fn keep(draft: &mut Draft<'_>, want: &Want<'_>, id: &TaskId, follows: Option<&str>, cascade: &mut Cascade) {
    let Some(task) = draft.task(id) else { return };
    if !want.keep && task.revision != want.revision {
        draft.task_mut(id).revision = want.revision;
    }
    let Some(task) = draft.task(id) else { return };
    if want.start
        && let Some(cause) = start_cause(task, &draft.revision(task.revision).spec, want.awaited)
    {
        start(draft, id, want.ungated);
        let operation = draft.task_operation(Verb::Start, id, cause);
        order_task(draft, id, operation);
    } else if let Some(cause) = follows
        && task.goal == DesiredTask::Running
        && task.released
    {
        let operation = restart(draft, id, cause);
        order_task(draft, id, operation);
        cascade.restarted.insert(want.service.to_owned());
    }
}

/// Whether a task's container has run and ended, and nobody has asked for more.
pub(crate) fn has_ended(task: &Task) -> bool {
    let is_on_its_way = task.goal_generation > task.status.restart_generation || !task.released;
    task.goal == DesiredTask::Running && !is_on_its_way && task.status.state == TaskState::Exited
}

/// Why an existing container must be started, if it must; empty for one that has not been started yet.
pub(crate) fn start_cause(task: &Task, spec: &ServiceSpec, awaited: bool) -> Option<String> {
    match task.goal {
        DesiredTask::Created => return Some(String::new()),
        DesiredTask::Stopped => return Some("it was stopped".to_owned()),
        DesiredTask::Paused | DesiredTask::Removed => return None,
        DesiredTask::Running => {}
    }
    // A start that is on its way needs no other. One that waits for others is on its way, unless its node has failed at it already: that
    // tries nothing twice by itself.
    if task.goal_generation > task.status.restart_generation {
        return None;
    }
    match (task.status.state, task.status.exit_code) {
        (TaskState::Exited, Some(0)) if awaited || ends_by_itself(spec) => None,
        (TaskState::Exited, code) => {
            Some(code.map_or("it had ended".to_owned(), |code| format!("it had exited ({code})")))
        }
        (TaskState::Failed, _) => Some("it could not be started before".to_owned()),
        _ => None,
    }
}

/// Whether exit code 0 is this service's success: nothing would have started it again.
pub(crate) fn ends_by_itself(spec: &ServiceSpec) -> bool {
    let policy = spec.restart_policy();
    spec.deploy.mode.is_job() || policy.is_none_or(|policy| policy.condition != RestartCondition::Any)
}

/// Orders a start of a container that exists.
pub(crate) fn start(draft: &mut Draft<'_>, id: &TaskId, ungated: bool) {
    let task = draft.task_mut(id);
    if task.goal != DesiredTask::Running {
        task.released = false;
    }
    // The first start is generation 0; whatever has been tried before needs a new one to be tried again.
    if task.goal != DesiredTask::Created || task.status.state > TaskState::Created {
        task.goal_generation += 1;
    }
    task.goal = DesiredTask::Running;
    task.ungated = ungated;
    task.unordered = false;
    task.stop_timeout = None;
    task.stop_signal = None;
}

/// Orders one stop and start.
pub(crate) fn restart(draft: &mut Draft<'_>, id: &TaskId, cause: &str) -> super::OperationId {
    let timeout = draft.timeout;
    let task = draft.task_mut(id);
    task.goal_generation += 1;
    task.stop_timeout = timeout;
    task.stop_signal = None;
    draft.task_operation(Verb::Restart, id, cause)
}

/// New slots get the free numbers from 1.
fn scale_up(draft: &mut Draft<'_>, want: &Want<'_>, present: usize) -> Result<(), Refusal> {
    let missing = (want.replicas as usize).saturating_sub(present);
    if missing == 0 {
        return Ok(());
    }
    let used: BTreeSet<u32> =
        draft.replicas_of(want.service).iter().filter_map(|id| draft.task(id)).map(|task| task.slot).collect();
    let free: Vec<u32> = (1..).filter(|slot| !used.contains(slot)).take(missing).collect();
    for slot in free {
        let blueprint = blueprint(draft, want, slot, None);
        let id = task::add(draft, blueprint)?;
        let cause = if want.start { "" } else { "not started" };
        let operation = draft.task_operation(Verb::Create, &id, cause);
        order_task(draft, &id, operation);
    }
    Ok(())
}

/// A container comes after its networks and volumes, after what it depends on and after those that it replaces.
pub(crate) fn order_task(draft: &mut Draft<'_>, id: &TaskId, operation: super::OperationId) {
    let Some(task) = draft.task(id) else { return };
    let revision = draft.revision(task.revision);
    let networks = revision.networks.values().map(|name| (ResourceKind::Network, name.0.clone()));
    let volumes = revision.volumes.values().map(|name| (ResourceKind::Volume, name.clone()));
    let objects = networks.chain(volumes).filter_map(|key| draft.object_operations.get(&key).copied());
    let gates = revision.spec.depends_on.keys().map(String::as_str).filter(|_| !task.ungated);
    let services = gates.chain(namespace_services(&revision.spec));
    let services = services.filter_map(|service| draft.service_operations.get(service)).flatten().copied();
    let former = task.after.iter().filter_map(|former| draft.task_operations.get(former).copied());
    let before: Vec<_> = objects.chain(services).chain(former).collect();
    for first in before {
        draft.plan.order(first, operation);
    }
}

/// Going down is the reverse of coming up: what depends on a service goes before it.
pub(crate) fn order_downward(draft: &mut Draft<'_>, downs: &[(TaskId, super::OperationId)]) {
    let mut by_service: BTreeMap<String, Vec<super::OperationId>> = BTreeMap::new();
    for (id, operation) in downs {
        if let Some(task) = draft.task(id) {
            by_service.entry(task.service.clone()).or_default().push(*operation);
        }
    }
    for (id, operation) in downs {
        let Some(task) = draft.task(id) else { continue };
        let revision = draft.revision(task.revision).clone();
        let mut passed = BTreeSet::from([task.service.clone()]);
        let mut needed: Vec<String> = revision.spec.depends_on.keys().cloned().collect();
        while let Some(service) = needed.pop() {
            if !passed.insert(service.clone()) {
                continue;
            }
            match by_service.get(&service) {
                Some(laters) => laters.iter().for_each(|later| draft.plan.order(*operation, *later)),
                // The order passes through what has ended, as in the gate.
                None => {
                    let tasks = draft.tasks_of(&service);
                    let ended = tasks.iter().filter(|task| gate::passes_through(task));
                    needed.extend(ended.flat_map(|task| draft.revision(task.revision).spec.depends_on.keys()).cloned());
                }
            }
        }
    }
}

/// Plans a service that was not asked for: its tasks follow those that they hang on, and nothing else happens to them.
pub(crate) fn plan_followers(draft: &mut Draft<'_>, want: &Want<'_>, cascade: &mut Cascade) -> Result<(), Refusal> {
    let revision = draft.revision(want.revision).clone();
    let follows = follows_restart(&revision.spec, cascade);
    for id in draft.replicas_of(want.service) {
        let Some(task) = draft.task(&id) else { continue };
        let (goal, own) = (task.goal, task.revision);
        match recreate_reason(draft, &id, want, &revision, cascade, &mut Changes::new()) {
            Some(reason) => {
                // It comes back as it was: with its own specification, and running only if it ran.
                let start = goal != DesiredTask::Created && goal != DesiredTask::Stopped;
                let image_id = draft.task(&id).map(|task| task.image_id.clone()).unwrap_or_default();
                let own = Want { revision: own, image_id: &image_id, start, ..*want };
                recreate(draft, &own, &id, &reason.text)?;
                cascade.recreated.insert(want.service.to_owned());
            }
            None => keep(draft, want, &id, follows.as_deref(), cascade),
        }
    }
    Ok(())
}
