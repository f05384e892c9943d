//! `up`: make a stack what its file says.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::NetworkName;
use orch_spec::model::{DependencyCondition, NetworkMode, ServiceSpec, StackSpec};

use super::draft::Draft;
use super::replicas::{self, Cascade, Want, namespace_services};
use super::{Moment, Planned, Verb, objects, publish, revision, task};
use crate::command::{ApplyStack, UpOptions, UpdateService};
use crate::error::{Missing, Refusal, SpecFault};
use crate::file_object::{filled, refreshed};
use crate::state::{Revision, RevisionId, State};

/// More containers of one stack than this would not fit the largest network either.
const MOST_TASKS: u64 = 50_000;

pub(crate) fn plan(state: &State, request: &ApplyStack, moment: Moment) -> Result<Planned, Refusal> {
    let spec = filled(state, &request.spec);
    let mut draft = begin(state, &spec, &request.files, moment)?;
    draft.timeout = request.options.timeout;
    check_options(&spec, &request.options)?;
    let selection = select(&mut draft, &spec, &request.options.services, request.options.no_deps)?;
    bring_up(&mut draft, &spec, &request.images, &request.options, &selection)?;
    orphans(&mut draft, &spec, request.options.remove_orphans);
    task::check_ports(&mut draft)?;
    Ok(draft.finish())
}

/// A draft for a stack that is in a file.
pub(crate) fn begin<'s>(
    state: &'s State,
    spec: &StackSpec,
    files: &[String],
    moment: Moment,
) -> Result<Draft<'s>, Refusal> {
    if !is_stack_name(&spec.name) {
        return Err(SpecFault::Name { kind: "stack", name: spec.name.clone() }.into());
    }
    if let Some(name) = spec.services.keys().find(|name| !objects::is_name(name)) {
        return Err(SpecFault::Name { kind: "service", name: name.clone() }.into());
    }
    let mut draft = Draft::new(state, &spec.name, moment);
    if draft.stack.removing.is_some() {
        return Err(Refusal::Busy { stack: spec.name.clone() });
    }
    if !files.is_empty() {
        if !draft.stack.files.is_empty() && draft.stack.files != files {
            let (name, former) = (draft.stack.name.clone(), draft.stack.files.join(", "));
            draft.warn(format!("stack {name} came from {former} so far; is another stack of the same name meant?"));
        }
        draft.stack.files = files.to_vec();
    }
    Ok(draft)
}

/// Lower-case letters, digits, `-`, `_`; begins with a letter or digit (Compose specification, "name").
fn is_stack_name(name: &str) -> bool {
    let inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '-' | '_');
    objects::is_name(name) && name.chars().all(inner)
}

fn check_options(spec: &StackSpec, options: &UpOptions) -> Result<(), Refusal> {
    if options.no_recreate && (options.force_recreate || options.always_recreate_deps) {
        let text = "no_recreate excludes force_recreate and always_recreate_deps";
        return Err(SpecFault::Options(text.to_owned()).into());
    }
    for service in options.scale.keys() {
        known(spec, service)?;
    }
    let total: u64 = spec.services.iter().map(|(name, spec)| u64::from(replica_count(options, name, spec))).sum();
    if total > MOST_TASKS {
        let service = "all of the stack's together".to_owned();
        return Err(SpecFault::TooMany { service, wanted: total, limit: MOST_TASKS }.into());
    }
    Ok(())
}

fn known(spec: &StackSpec, service: &str) -> Result<(), Refusal> {
    if spec.services.contains_key(service) {
        return Ok(());
    }
    let (stack, service, has) = (spec.name.clone(), service.to_owned(), spec.services.keys().cloned().collect());
    Err(Missing::Service { stack, service, has }.into())
}

fn replica_count(options: &UpOptions, name: &str, spec: &ServiceSpec) -> u32 {
    match options.scale.get(name) {
        Some(replicas) => *replicas,
        // One task a node; with one node that is one.
        None if spec.deploy.mode.is_global() => 1,
        None => spec.replicas(),
    }
}

/// Services a plan is about.
pub(crate) struct Selection {
    /// Those asked for.
    pub(crate) chosen: BTreeSet<String>,
    /// Those and what they depend on.
    pub(crate) all: BTreeSet<String>,
}

/// The chosen services (all when none is named) and what they depend on.
pub(crate) fn select(
    draft: &mut Draft<'_>,
    spec: &StackSpec,
    services: &[String],
    no_deps: bool,
) -> Result<Selection, Refusal> {
    for service in services {
        known(spec, service)?;
    }
    let chosen: BTreeSet<String> =
        if services.is_empty() { spec.services.keys().cloned().collect() } else { services.iter().cloned().collect() };
    let mut all = chosen.clone();
    let mut unseen: Vec<String> = chosen.iter().cloned().collect();
    while let Some(service) = unseen.pop() {
        let found = &spec.services[&service];
        for (needed, required) in needs(found) {
            let key = needed.to_owned();
            match spec.services.get(needed) {
                Some(_) if no_deps => {}
                Some(_) => {
                    if all.insert(key.clone()) {
                        unseen.push(key);
                    }
                }
                None if !required => {
                    draft.warn(format!("service {service} would like service {needed}, which the stack does not have"));
                }
                None => return Err(SpecFault::Undefined { service, kind: "service", key }.into()),
            }
        }
    }
    Ok(Selection { chosen, all })
}

/// Services that a service needs, and whether it must have them.
fn needs(spec: &ServiceSpec) -> impl Iterator<Item = (&str, bool)> {
    let depends = spec.depends_on.iter().map(|(service, dependency)| (service.as_str(), dependency.required));
    depends.chain(namespace_services(spec).map(|service| (service, true)))
}

/// Plans networks, volumes and containers of the selected services, in the order of dependencies.
pub(crate) fn bring_up(
    draft: &mut Draft<'_>,
    spec: &StackSpec,
    images: &BTreeMap<String, String>,
    options: &UpOptions,
    selection: &Selection,
) -> Result<(), Refusal> {
    let order = dependency_order(draft, spec, &selection.all)?;
    let endpoints = count_endpoints(spec, options);
    draft.parents = spec.services.values().flat_map(namespace_services).map(str::to_owned).collect();
    let awaited = awaited(spec);
    // Networks and volumes first: that one is made anew concerns every service on it, wherever it comes in the order.
    let mut resolved: BTreeMap<&str, Revision> = BTreeMap::new();
    for name in order.iter().filter(|name| selection.all.contains(*name)) {
        let Some(service) = spec.services.get(name) else { continue };
        if service.provider.is_some() {
            draft.warn(format!("service {name} is managed by a provider, which orch does not run; it is left out"));
            continue;
        }
        if service.image.is_empty() {
            return Err(SpecFault::Options(format!("service {name} has neither image nor build")).into());
        }
        check_placement(draft, name, service)?;
        let revision = revision::resolve(spec, name, service)?;
        objects::ensure_networks(draft, spec, &revision, &endpoints)?;
        objects::ensure_volumes(draft, spec, &revision)?;
        resolved.insert(name, revision);
    }
    let mut cascade = Cascade::default();
    for name in &order {
        let (Some(service), Some(revision)) = (spec.services.get(name), resolved.remove(name.as_str())) else {
            follow(draft, name, &mut cascade)?;
            continue;
        };
        let is_chosen = selection.chosen.contains(name);
        let image_id = images.get(&service.image).cloned().unwrap_or_default();
        let entered = enter(draft, name, revision, replica_count(options, name, service), &image_id);
        let revision = draft.revision(entered).clone();
        publish::ensure(draft, name, &revision)?;
        let want = Want {
            service: name,
            revision: entered,
            image_id: &image_id,
            replicas: replica_count(options, name, service),
            force: if is_chosen { options.force_recreate } else { options.always_recreate_deps },
            keep: options.no_recreate,
            start: !options.no_start,
            ungated: options.no_deps,
            renew_anonymous_volumes: options.renew_anonymous_volumes,
            awaited: awaited.contains(name.as_str()),
        };
        replicas::plan(draft, &want, &mut cascade)?;
    }
    Ok(())
}

/// Enters the service's new record; says which specification it has now.
fn enter(draft: &mut Draft<'_>, name: &str, resolved: Revision, replicas: u32, image_id: &str) -> RevisionId {
    let present = draft.stack.services.get(name);
    let present_image = present.map(|service| service.image_id.clone()).unwrap_or_default();
    let revision = draft.intern(resolved, present.map(|service| service.revision));
    let image_id = if image_id.is_empty() { present_image } else { image_id.to_owned() };
    let record = draft.stack.services.entry(name.to_owned()).or_default();
    // What else it has (its history, its ports) stays.
    (record.revision, record.replicas, record.image_id, record.orphan) = (revision, replicas, image_id, false);
    revision
}

/// One service of a stack as it was applied, changed.
pub(crate) fn plan_service(state: &State, request: &UpdateService, moment: Moment) -> Result<Planned, Refusal> {
    let Some(stack) = state.stacks.get(&request.stack) else {
        return Err(Missing::Stack(request.stack.clone()).into());
    };
    if stack.removing.is_some() {
        return Err(Refusal::Busy { stack: request.stack.clone() });
    }
    let name = request.service.as_str();
    let Some(present) = stack.services.get(name) else {
        let (stack, has) = (request.stack.clone(), stack.services.keys().cloned().collect());
        return Err(Missing::Service { stack, service: request.service.clone(), has }.into());
    };
    let mut draft = Draft::new(state, &request.stack, moment);
    let applied = state.revision(present.revision);
    let replicas = request.replicas.unwrap_or(present.replicas);
    let revision = revision::changed(applied, &request.spec);
    check_placement(&draft, name, &revision.spec)?;
    let image_id = if request.image_id.is_empty() && request.spec.image == applied.spec.image {
        present.image_id.clone()
    } else {
        request.image_id.clone()
    };
    replan(&mut draft, name, revision, replicas, &image_id, request.force)?;
    Ok(draft.finish())
}

/// One service of a stack as it was applied, with what its secrets and configs are now.
pub(crate) fn plan_files(state: &State, stack: &str, name: &str, moment: Moment) -> Result<Planned, Refusal> {
    let Some(record) = state.stacks.get(stack) else { return Err(Missing::Stack(stack.to_owned()).into()) };
    if record.removing.is_some() {
        return Err(Refusal::Busy { stack: stack.to_owned() });
    }
    let Some(present) = record.services.get(name) else {
        let (stack, has) = (stack.to_owned(), record.services.keys().cloned().collect());
        return Err(Missing::Service { stack, service: name.to_owned(), has }.into());
    };
    let mut draft = Draft::new(state, stack, moment);
    let revision = refreshed(state, state.revision(present.revision));
    replan(&mut draft, name, revision, present.replicas, &present.image_id, false)?;
    Ok(draft.finish())
}

/// Makes a service's tasks what its new specification says.
fn replan(
    draft: &mut Draft<'_>,
    name: &str,
    revision: Revision,
    replicas: u32,
    image_id: &str,
    force: bool,
) -> Result<(), Refusal> {
    let revision = enter(draft, name, revision, replicas, image_id);
    let resolved = draft.revision(revision).clone();
    publish::ensure(draft, name, &resolved)?;
    let want = Want {
        service: name,
        revision,
        image_id,
        replicas,
        force,
        keep: false,
        start: true,
        ungated: false,
        renew_anonymous_volumes: false,
        awaited: false,
    };
    replicas::plan(draft, &want, &mut Cascade::default())?;
    task::check_ports(draft)
}

/// On a cluster the file's wishes for placement must be about something that nodes have.
fn check_placement(draft: &Draft<'_>, service: &str, spec: &ServiceSpec) -> Result<(), Refusal> {
    if draft.state.is_cluster() { crate::place::check_constraints(service, spec) } else { Ok(()) }
}

/// A service that was not asked for, but may have to follow one that was: guests of a namespace, `restart: true`.
fn follow(draft: &mut Draft<'_>, name: &str, cascade: &mut Cascade) -> Result<(), Refusal> {
    let Some(service) = draft.stack.services.get(name).cloned() else { return Ok(()) };
    let spec = draft.revision(service.revision).spec.clone();
    let guest = namespace_services(&spec).any(|parent| cascade.recreated.contains(parent));
    let on_replaced = draft.replicas_of(name).iter().filter_map(|id| draft.task(id)).any(|task| {
        task.networks().filter_map(|network| draft.network(network)).any(|network| network.displaces(&task.id))
    });
    if !guest && !on_replaced && replicas::follows_restart(&spec, cascade).is_none() {
        return Ok(());
    }
    let replicas = u32::try_from(draft.replicas_of(name).len()).unwrap_or(u32::MAX);
    let want = Want {
        service: name,
        revision: service.revision,
        image_id: &service.image_id,
        replicas,
        force: false,
        keep: true,
        start: false,
        ungated: false,
        renew_anonymous_volumes: false,
        awaited: false,
    };
    replicas::plan_followers(draft, &want, cascade)
}

/// Services that another one waits for to complete.
pub(crate) fn awaited(spec: &StackSpec) -> BTreeSet<&str> {
    let dependencies = spec.services.values().flat_map(|service| &service.depends_on);
    let completed =
        dependencies.filter(|(_, dependency)| dependency.condition == DependencyCondition::CompletedSuccessfully);
    completed.map(|(service, _)| service.as_str()).collect()
}

/// How many containers each network is going to have.
fn count_endpoints(spec: &StackSpec, options: &UpOptions) -> BTreeMap<NetworkName, usize> {
    let mut counts: BTreeMap<NetworkName, usize> = BTreeMap::new();
    for (name, service) in &spec.services {
        if service.network_mode != NetworkMode::Stack {
            continue;
        }
        let default = revision::DEFAULT_NETWORK.to_owned();
        let keys: Vec<&String> =
            if service.networks.is_empty() { vec![&default] } else { service.networks.keys().collect() };
        for network in keys.into_iter().filter_map(|key| revision::network_spec(spec, key)) {
            *counts.entry(NetworkName(network.name)).or_default() += replica_count(options, name, service) as usize;
        }
    }
    counts
}

/// The selected services by their file and the stack's others as they are, each after those that it depends on.
fn dependency_order(draft: &Draft<'_>, spec: &StackSpec, selected: &BTreeSet<String>) -> Result<Vec<String>, Refusal> {
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, service) in &draft.stack.services {
        let present = &draft.revision(service.revision).spec;
        graph.insert(name, needs(present).map(|(needed, _)| needed).collect());
    }
    for name in selected {
        graph.insert(name, needs(&spec.services[name]).map(|(needed, _)| needed).collect());
    }
    order(&graph).map_err(|services| SpecFault::Cycle { services }.into())
}

/// The names, each after those that it needs and otherwise in alphabetical order; or a circle.
pub(crate) fn order(graph: &BTreeMap<&str, BTreeSet<&str>>) -> Result<Vec<String>, Vec<String>> {
    let mut missing: BTreeMap<&str, usize> = BTreeMap::new();
    let mut dependents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, needed) in graph {
        let needed: Vec<&&str> = needed.iter().filter(|needed| graph.contains_key(**needed)).collect();
        missing.insert(name, needed.len());
        for other in needed {
            dependents.entry(other).or_default().push(name);
        }
    }
    let mut ready: BTreeSet<&str> = missing.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    let mut ordered = Vec::with_capacity(graph.len());
    while let Some(name) = ready.pop_first() {
        ordered.push(name.to_owned());
        missing.remove(name);
        for dependent in dependents.get(name).into_iter().flatten() {
            if let Some(count) = missing.get_mut(dependent) {
                *count -= 1;
                if *count == 0 {
                    ready.insert(dependent);
                }
            }
        }
    }
    match missing.keys().next() {
        None => Ok(ordered),
        Some(start) => Err(circle(graph, &missing, start)),
    }
}

/// Every name in `left` needs another in `left`: walking from need to need must come back.
fn circle(graph: &BTreeMap<&str, BTreeSet<&str>>, left: &BTreeMap<&str, usize>, start: &str) -> Vec<String> {
    let mut path: Vec<String> = Vec::new();
    let mut at = start.to_owned();
    while !path.contains(&at) {
        path.push(at.clone());
        let next = graph.get(at.as_str()).into_iter().flatten().find(|needed| left.contains_key(**needed));
        at = next.map_or_else(|| start.to_owned(), |next| (*next).to_owned());
    }
    let first = path.iter().position(|name| *name == at).unwrap_or(0);
    path.drain(..first);
    path.push(at);
    path
}

/// Services that the file does not have any more: shown, and removed when that is asked for.
pub(crate) fn orphans(draft: &mut Draft<'_>, spec: &StackSpec, remove: bool) {
    let gone = |name: &&String| !spec.services.contains_key(*name) && !spec.inactive_services.contains(*name);
    let names: Vec<String> = draft.stack.services.keys().filter(gone).cloned().collect();
    let mut left = Vec::new();
    let mut downs = Vec::new();
    for name in names {
        let replicas = draft.replicas_of(&name);
        for id in &replicas {
            if remove {
                draft.retire(id);
                downs.push((
                    id.clone(),
                    draft.task_operation(Verb::Remove, id, "its service is not in the file any more"),
                ));
            } else if let Some(task) = draft.task(id) {
                left.push(task.container_name.clone());
            }
        }
        if replicas.is_empty() || remove {
            draft.stack.services.remove(&name);
        } else if let Some(service) = draft.stack.services.get_mut(&name) {
            service.orphan = true;
        }
    }
    replicas::order_downward(draft, &downs);
    if !left.is_empty() {
        let list = left.join(", ");
        draft.warn(format!(
            "containers of services that are not in the file any more: {list}; --remove-orphans removes them"
        ));
    }
    let present: Vec<&String> = spec.services.keys().collect();
    for name in present {
        if let Some(service) = draft.stack.services.get_mut(name) {
            service.orphan = false;
        }
    }
}
