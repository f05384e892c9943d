//! `scale`: other numbers of replicas, nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use super::replicas::{self, Cascade, Want, namespace_services};
use super::{Moment, Planned, task, up};
use crate::command::Scale;
use crate::error::{Missing, Refusal, SpecFault};
use crate::state::State;

pub(crate) fn plan(state: &State, request: &Scale, moment: Moment) -> Result<Planned, Refusal> {
    let Some(stack) = state.stacks.get(&request.stack) else {
        return Err(Missing::Stack(request.stack.clone()).into());
    };
    if stack.removing.is_some() {
        return Err(Refusal::Busy { stack: request.stack.clone() });
    }
    let mut draft = Draft::new(state, &request.stack, moment);
    draft.timeout = request.timeout;
    for service in request.services.keys() {
        if !stack.services.contains_key(service) {
            let (stack_name, has) = (request.stack.clone(), stack.services.keys().cloned().collect());
            return Err(Missing::Service { stack: stack_name, service: service.clone(), has }.into());
        }
    }
    if state.is_cluster() {
        let everywhere = |name: &&String| {
            let spec = stack.services.get(*name).map(|service| &state.revision(service.revision).spec);
            spec.is_some_and(|spec| spec.deploy.mode.is_global())
        };
        if let Some(name) = request.services.keys().find(everywhere) {
            let text = format!("service {name} runs once on every node (mode: global); it has no number of replicas");
            return Err(SpecFault::Options(text).into());
        }
    }
    let needs = |name: &str| -> BTreeSet<&str> {
        let spec = stack.services.get(name).map(|service| &state.revision(service.revision).spec);
        let needed = spec
            .into_iter()
            .flat_map(|spec| spec.depends_on.keys().map(String::as_str).chain(namespace_services(spec)));
        needed.filter(|needed| stack.services.contains_key(*needed)).collect()
    };
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut unseen: Vec<&str> = request.services.keys().map(String::as_str).collect();
    while let Some(name) = unseen.pop() {
        let needed = if request.no_deps { BTreeSet::new() } else { needs(name) };
        if !graph.contains_key(name) {
            unseen.extend(needed.iter().copied());
            graph.insert(name, needed);
        }
    }
    let order = up::order(&graph).map_err(|services| Refusal::from(crate::error::SpecFault::Cycle { services }))?;
    let mut cascade = Cascade::default();
    for name in order {
        let service = stack.services[&name].clone();
        let replicas = request.services.get(&name).copied().unwrap_or(service.replicas);
        let want = Want {
            service: &name,
            revision: service.revision,
            image_id: &service.image_id,
            replicas,
            force: false,
            keep: true,
            start: true,
            ungated: request.no_deps,
            renew_anonymous_volumes: false,
            awaited: true,
        };
        replicas::plan(&mut draft, &want, &mut cascade)?;
        if let Some(service) = draft.stack.services.get_mut(&name) {
            service.replicas = replicas;
        }
    }
    task::check_ports(&mut draft)?;
    Ok(draft.finish())
}
