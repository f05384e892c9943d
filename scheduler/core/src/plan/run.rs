//! `run`: a one-off task, and what it depends on.

use std::collections::BTreeSet;
use std::sync::Arc;

use orch_spec::assignment::DesiredTask;
use orch_spec::model::StackSpec;

use super::draft::Draft;
use super::replicas::order_task;
use super::task::{self, Blueprint, Succession};
use super::up::{self, Selection};
use super::{Moment, Planned, Verb, objects, revision};
use crate::command::{RunOneOff, UpOptions};
use crate::error::{Clash, Missing, Refusal, SpecFault};
use crate::file_object::filled;
use crate::identity;
use crate::state::State;

/// Digits in a made-up container name: enough that two runs of one service do not meet.
const NAME_DIGITS: usize = 12;

pub(crate) fn plan(state: &State, request: &RunOneOff, moment: Moment) -> Result<Planned, Refusal> {
    let spec = match &request.spec {
        Some(spec) => filled(state, spec),
        None => Arc::new(applied(state, request)?),
    };
    if spec.name != request.stack {
        let text = format!("the file's stack is {}, not {}", spec.name, request.stack);
        return Err(SpecFault::Options(text).into());
    }
    let mut draft = up::begin(state, &spec, &request.files, moment)?;
    let selection = up::select(&mut draft, &spec, std::slice::from_ref(&request.service), request.no_deps)?;
    let needed: BTreeSet<String> = selection.all.into_iter().filter(|name| *name != request.service).collect();
    if request.spec.is_some() {
        let selection = Selection { chosen: needed.clone(), all: needed };
        // What runs already stays as it is: a one-off is no reason to replace a database.
        let options = UpOptions { no_recreate: true, ..UpOptions::default() };
        up::bring_up(&mut draft, &spec, &request.images, &options, &selection)?;
        up::orphans(&mut draft, &spec, request.remove_orphans);
    }
    let id = add(&mut draft, &spec, request)?;
    task::check_ports(&mut draft)?;
    let mut planned = draft.finish();
    planned.answer.task = Some(id);
    Ok(planned)
}

/// The stack as it was applied, as far as its record goes.
fn applied(state: &State, request: &RunOneOff) -> Result<StackSpec, Refusal> {
    let Some(stack) = state.stacks.get(&request.stack) else {
        return Err(Missing::Stack(request.stack.clone()).into());
    };
    let services =
        stack.services.iter().map(|(name, service)| (name.clone(), (*state.revision(service.revision).spec).clone()));
    Ok(StackSpec { name: request.stack.clone(), services: services.collect(), ..StackSpec::default() })
}

fn add(draft: &mut Draft<'_>, spec: &StackSpec, request: &RunOneOff) -> Result<orch_spec::assignment::TaskId, Refusal> {
    let resolved = match (&request.spec, draft.stack.services.get(&request.service)) {
        // Names and files were resolved when the service was applied.
        (None, Some(service)) => {
            let applied = draft.revision(service.revision);
            crate::state::Revision { spec: Arc::clone(&request.one_off), ..(**applied).clone() }
        }
        _ => {
            let resolved = revision::resolve(spec, &request.service, &request.one_off)?;
            objects::ensure_networks(draft, spec, &resolved, &std::collections::BTreeMap::new())?;
            objects::ensure_volumes(draft, spec, &resolved)?;
            resolved
        }
    };
    if let Some(name) = &request.container_name
        && draft.task_named(name).is_some()
    {
        return Err(Clash::Exists { kind: "container", name: name.clone() }.into());
    }
    let image_id = request.images.get(&request.one_off.image).cloned().unwrap_or_default();
    let digits = identity::task_id(&draft.state.cluster, draft.moment.nonce, u64::MAX);
    let made_up =
        || format!("{}-{}-run-{}", spec.name, request.service, digits.as_str().get(..NAME_DIGITS).unwrap_or_default());
    let container_name = Some(request.container_name.clone().unwrap_or_else(made_up));
    let revision = draft.intern(resolved, None);
    let blueprint = Blueprint {
        service: &request.service,
        slot: 0,
        one_off: true,
        revision,
        image_id: &image_id,
        generation: 0,
        former: None,
        succession: Succession::After,
        bound: None,
        container_name,
        goal: if request.start { DesiredTask::Running } else { DesiredTask::Created },
        ungated: request.no_deps,
        renew_anonymous_volumes: false,
    };
    let id = task::add(draft, blueprint)?;
    draft.task_mut(&id).use_aliases = request.use_aliases;
    let operation = draft.task_operation(Verb::Create, &id, "one-off");
    order_task(draft, &id, operation);
    Ok(id)
}
