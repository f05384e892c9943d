//! Changing stacks and tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State as Handed};
use orch_api::control::{
    ActRequest, Action, ApplyOptions, ApplyRequest, ApplyResponse, DesiredRequest, DownRequest, IndexResponse,
    RunRequest, RunResponse, ScaleRequest,
};
use orch_core::plan::{self, Moment};
use orch_core::{Act, ApplyStack, Command, Down, RunOneOff, Scale, SetTaskDesired, State, UpOptions};
use orch_spec::assignment::TaskId;
use orch_spec::model::StackSpec;

use super::fault::Fault;
use super::{Context, view};
use crate::control::{Applied, Control};

/// How long a change waits for the first node to say what it is: its routes decide which addresses are free.
const NODE_WAIT: Duration = Duration::from_secs(5);
/// How long a change waits for a stack of the same name that is being taken down: the grace of most containers and a bit more.
const DOWN_WAIT: Duration = Duration::from_secs(30);

type Body<T> = Result<Json<T>, JsonRejection>;

pub(crate) async fn plan(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
    body: Body<ApplyRequest>,
) -> Result<Json<ApplyResponse>, Fault> {
    let command = prepare(&context, &name, body?.0).await?;
    let (index, planned) = context.control.read(|state| (state.index, plan::up(state, &command, Moment::default())));
    let answer = planned?;
    Ok(Json(ApplyResponse { index, plan: view::plan(&answer.plan), warnings: answer.warnings }))
}

pub(crate) async fn apply(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
    body: Body<ApplyRequest>,
) -> Result<Json<ApplyResponse>, Fault> {
    let command = prepare(&context, &name, body?.0).await?;
    let applied = context.control.propose(Command::ApplyStack(command)).await?;
    Ok(Json(response(applied)))
}

pub(crate) async fn down(
    Handed(context): Handed<Context>,
    Path(stack): Path<String>,
    body: Body<DownRequest>,
) -> Result<Json<ApplyResponse>, Fault> {
    let DownRequest { volumes, services, timeout, remove_orphans } = body?.0;
    let down = Down { stack, volumes, services, timeout, remove_orphans };
    Ok(Json(response(context.control.propose(Command::RemoveStack(down)).await?)))
}

pub(crate) async fn act(
    Handed(context): Handed<Context>,
    Path(stack): Path<String>,
    body: Body<ActRequest>,
) -> Result<Json<ApplyResponse>, Fault> {
    let request = body?.0;
    let act = Act {
        stack,
        services: request.services,
        tasks: request.tasks.into_iter().map(TaskId).collect(),
        action: match request.action {
            Action::Start => orch_core::Action::Start,
            Action::Stop => orch_core::Action::Stop,
            Action::Restart => orch_core::Action::Restart,
            Action::Pause => orch_core::Action::Pause,
            Action::Unpause => orch_core::Action::Unpause,
            Action::Kill => orch_core::Action::Kill,
            Action::Remove => orch_core::Action::Remove,
        },
        timeout: request.timeout,
        signal: request.signal,
        no_deps: request.no_deps,
        remove_volumes: request.remove_volumes,
        stop: request.stop,
    };
    Ok(Json(response(context.control.propose(Command::Act(act)).await?)))
}

pub(crate) async fn scale(
    Handed(context): Handed<Context>,
    Path(stack): Path<String>,
    body: Body<ScaleRequest>,
) -> Result<Json<ApplyResponse>, Fault> {
    let ScaleRequest { services, no_deps, timeout } = body?.0;
    let scale = Scale { stack, services, no_deps, timeout };
    Ok(Json(response(context.control.propose(Command::Scale(scale)).await?)))
}

pub(crate) async fn run(
    Handed(context): Handed<Context>,
    Path(stack): Path<String>,
    body: Body<RunRequest>,
) -> Result<Json<RunResponse>, Fault> {
    let request = body?.0;
    wait_for_node(&context.control).await;
    wait_for_down(&context.control, &stack).await;
    let mut needed = BTreeSet::from([request.spec.image.clone()]);
    if let Some(spec) = &request.stack {
        let services = std::slice::from_ref(&request.service);
        let selected = context.control.read(|state| plan::selected_services(state, spec, services, request.no_deps))?;
        needed.extend(images_of(spec, selected.iter().filter(|service| **service != request.service)));
    }
    let images = resolve(&context, needed).await?;
    let command = RunOneOff {
        spec: request.stack,
        stack,
        files: request.files,
        service: request.service,
        one_off: request.spec,
        container_name: request.container_name,
        start: request.start,
        no_deps: request.no_deps,
        use_aliases: request.use_aliases,
        remove_orphans: request.remove_orphans,
        images,
    };
    let Applied { index, answer } = context.control.propose(Command::RunOneOff(command)).await?;
    let task = answer.task.unwrap_or_default();
    let name = |state: &State| state.tasks.get(&task).map(|task| task.container_name.clone());
    let container_name = context.control.read(name).unwrap_or_default();
    Ok(Json(RunResponse {
        index,
        task: task.0,
        container_name,
        plan: view::plan(&answer.plan),
        warnings: answer.warnings,
    }))
}

pub(crate) async fn desired(
    Handed(context): Handed<Context>,
    Path(id): Path<String>,
    body: Body<DesiredRequest>,
) -> Result<Json<IndexResponse>, Fault> {
    let DesiredRequest { desired, timeout, signal, remove_volumes } = body?.0;
    let command = SetTaskDesired { task: TaskId(id), desired, timeout, signal, remove_volumes };
    let applied = context.control.propose(Command::SetTaskDesired(command)).await?;
    Ok(Json(IndexResponse { index: applied.index }))
}

fn response(applied: Applied) -> ApplyResponse {
    ApplyResponse { index: applied.index, plan: view::plan(&applied.answer.plan), warnings: applied.answer.warnings }
}

/// The command of an apply request, with image ids in place of tags.
async fn prepare(context: &Context, name: &str, request: ApplyRequest) -> Result<ApplyStack, Fault> {
    if request.spec.name != name {
        return Err(Fault::new(
            "invalid",
            format!("the request is for stack {name}, but its file says {}", request.spec.name),
        ));
    }
    wait_for_node(&context.control).await;
    wait_for_down(&context.control, name).await;
    let ApplyRequest { spec, files, options } = request;
    let selected =
        context.control.read(|state| plan::selected_services(state, &spec, &options.services, options.no_deps))?;
    let needs_image = selected.iter().filter(|service| options.scale.get(*service) != Some(&0));
    let images = resolve(context, images_of(&spec, needs_image)).await?;
    Ok(ApplyStack { spec, files, options: up_options(options), images })
}

fn images_of<'s>(spec: &StackSpec, services: impl Iterator<Item = &'s String>) -> BTreeSet<String> {
    let specs = services.filter_map(|service| spec.services.get(service));
    specs.map(|service| service.image.clone()).filter(|image| !image.is_empty()).collect()
}

/// The ids of all images, or one error that names every one that is missing.
async fn resolve(context: &Context, references: BTreeSet<String>) -> Result<BTreeMap<String, String>, Fault> {
    let references: Vec<String> = references.into_iter().collect();
    if references.is_empty() {
        return Ok(BTreeMap::new());
    }
    let resolved = context.images.resolve(&references).await;
    let missing: Vec<String> =
        references.iter().filter(|reference| !matches!(resolved.get(*reference), Some(Some(_)))).cloned().collect();
    if missing.is_empty() {
        return Ok(resolved.into_iter().filter_map(|(reference, id)| Some((reference, id?))).collect());
    }
    let message = match missing.as_slice() {
        [one] => format!("image {one} is not on this host"),
        many => format!("{} images are not on this host: {}", many.len(), many.join(", ")),
    };
    let hint = "`orch image load -i FILE` loads one that was saved, `orch image import FILE NAME` makes one of a root file system";
    Err(Fault::new("image_missing", message).hint(hint).details(missing))
}

fn up_options(options: ApplyOptions) -> UpOptions {
    UpOptions {
        services: options.services,
        no_deps: options.no_deps,
        force_recreate: options.force_recreate,
        no_recreate: options.no_recreate,
        always_recreate_deps: options.always_recreate_deps,
        renew_anonymous_volumes: options.renew_anonymous_volumes,
        remove_orphans: options.remove_orphans,
        no_start: options.no_start,
        scale: options.scale,
        timeout: options.timeout,
    }
}

/// An agent that has just started has a control plane before it has said what it is.
async fn wait_for_node(control: &Control) {
    control.wait_until(NODE_WAIT, |state| !state.nodes.is_empty()).await;
}

/// A `down` that goes on, though the command that asked for it may be gone, is waited for instead of refused.
async fn wait_for_down(control: &Control, stack: &str) {
    let done = |state: &State| state.stacks.get(stack).is_none_or(|stack| stack.removing.is_none());
    control.wait_until(DOWN_WAIT, done).await;
}
