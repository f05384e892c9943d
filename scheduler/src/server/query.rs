//! Looking.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State as Handed};
use orch_api::control::{NodeView, StackSummary, StackView, TaskView};
use orch_core::{Missing, Refusal, Task};
use orch_spec::assignment::TaskId;
use serde::Deserialize;

use super::fault::Fault;
use super::{Context, view};

pub(crate) async fn stacks(Handed(context): Handed<Context>) -> Json<Vec<StackSummary>> {
    Json(context.control.read(|state| state.stacks.values().map(|stack| view::summary(state, stack)).collect()))
}

pub(crate) async fn stack(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
) -> Result<Json<StackView>, Fault> {
    let found = context.control.read(|state| state.stacks.get(&name).map(|stack| view::stack(state, stack)));
    found.map(Json).ok_or_else(|| Refusal::from(Missing::Stack(name)).into())
}

/// Which tasks.
#[derive(Debug, Deserialize)]
pub(crate) struct TaskQuery {
    stack: Option<String>,
    service: Option<String>,
}

pub(crate) async fn tasks(
    Handed(context): Handed<Context>,
    query: Result<Query<TaskQuery>, QueryRejection>,
) -> Result<Json<Vec<TaskView>>, Fault> {
    let Query(query) = query?;
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    Ok(Json(context.control.read(|state| {
        let all =
            state.tasks.values().filter(|task| fits(&query.stack, &task.stack) && fits(&query.service, &task.service));
        let mut found: Vec<&Task> = all.collect();
        found.sort_by(|a, b| (&a.stack, a.order()).cmp(&(&b.stack, b.order())));
        found.into_iter().map(|task| view::task(state, task)).collect()
    })))
}

pub(crate) async fn task(Handed(context): Handed<Context>, Path(id): Path<String>) -> Result<Json<TaskView>, Fault> {
    let id = TaskId(id);
    let found = context.control.read(|state| state.tasks.get(&id).map(|task| view::task(state, task)));
    found.map(Json).ok_or_else(|| Refusal::from(Missing::Task(id.0)).into())
}

pub(crate) async fn nodes(Handed(context): Handed<Context>) -> Json<Vec<NodeView>> {
    let control = &context.control;
    let here = control.node();
    Json(control.read(|state| {
        let nodes = state.nodes.iter();
        nodes.map(|(id, node)| view::node(state, id, node, control.is_connected(id), id == here)).collect()
    }))
}
