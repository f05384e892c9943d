//! Streams: a stack as it changes, and events.

use std::collections::{BTreeMap, VecDeque};

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State as Handed};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use orch_api::control::{Event, StackChange};
use orch_core::State;
use orch_spec::assignment::{NetworkName, TaskId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::fault::Fault;
use super::{Context, view};
use crate::control::Control;

/// A body of lines of JSON, made as they are read: a client that reads slowly gets fewer and larger steps, and nothing piles up.
fn lines<S, F>(start: S, next: F) -> Response
where
    S: Source<F> + Send + 'static,
    F: Send + 'static,
{
    let stream = futures_util::stream::unfold((start, next), |(mut source, next)| async move {
        let bytes = source.next_lines(&next).await?;
        Some((Ok::<Bytes, std::convert::Infallible>(bytes), (source, next)))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// Something that gives lines until it ends.
trait Source<F> {
    fn next_lines(&mut self, what: &F) -> impl Future<Output = Option<Bytes>> + Send;
}

fn push_line(bytes: &mut Vec<u8>, value: &impl Serialize) {
    // These types have text keys and finite numbers only, so that encoding them cannot fail.
    if serde_json::to_writer(&mut *bytes, value).is_ok() {
        bytes.push(b'\n');
    }
}

pub(crate) async fn watch(Handed(context): Handed<Context>, Path(name): Path<String>) -> Response {
    let applied = context.control.watch();
    lines(Watching { control: context.control, applied, seen: Seen::default(), has_ended: false }, name)
}

/// What a client knows of the stack.
#[derive(Default)]
struct Seen {
    index: Option<u64>,
    tasks: BTreeMap<TaskId, String>,
    networks: Vec<NetworkName>,
    volumes: Vec<String>,
}

struct Watching {
    control: Control,
    applied: watch::Receiver<u64>,
    seen: Seen,
    has_ended: bool,
}

impl Source<String> for Watching {
    async fn next_lines(&mut self, name: &String) -> Option<Bytes> {
        while !self.has_ended {
            self.applied.borrow_and_update();
            let mut bytes = Vec::new();
            for change in self.control.read(|state| changes(state, name, &mut self.seen)) {
                self.has_ended |= matches!(change, StackChange::Removed { .. });
                push_line(&mut bytes, &change);
            }
            if !bytes.is_empty() {
                return Some(bytes.into());
            }
            self.applied.changed().await.ok()?;
        }
        None
    }
}

/// What is new since the client looked last.
fn changes(state: &State, name: &str, seen: &mut Seen) -> Vec<StackChange> {
    let index = state.index;
    let mut found = Vec::new();
    let Some(stack) = state.stacks.get(name) else {
        gone(index, std::mem::take(seen), &mut found);
        found.push(StackChange::Removed { index });
        return found;
    };
    let (networks, volumes) = view::objects(state, name);
    let since = seen.index.replace(index);
    let is_whole = since.is_none_or(|since| stack.changed > since);
    if is_whole {
        found.push(StackChange::Stack { stack: Box::new(view::stack(state, stack)) });
    }
    let since = if is_whole { u64::MAX } else { since.unwrap_or(0) };
    let former = std::mem::take(&mut seen.tasks);
    for task in state.stack_tasks(name) {
        if task.changed > since {
            found.push(StackChange::Task { index, task: Box::new(view::task(state, task)) });
        }
        seen.tasks.insert(task.id.clone(), task.container_name.clone());
    }
    for (id, container_name) in former.into_iter().filter(|(id, _)| !seen.tasks.contains_key(id)) {
        found.push(StackChange::TaskRemoved { index, id: id.0, container_name });
    }
    for network in networks.iter().filter(|network| network.changed > since) {
        found.push(StackChange::Network { index, network: view::network(state, network) });
    }
    for volume in volumes.iter().filter(|volume| volume.changed > since) {
        found.push(StackChange::Volume { index, volume: view::volume(state, volume) });
    }
    let names: Vec<NetworkName> = networks.into_iter().map(|network| network.name.clone()).collect();
    for gone in std::mem::replace(&mut seen.networks, names).into_iter().filter(|name| !seen.networks.contains(name)) {
        found.push(StackChange::NetworkRemoved { index, name: gone.0 });
    }
    let names: Vec<String> = volumes.into_iter().map(|volume| volume.name.clone()).collect();
    for name in std::mem::replace(&mut seen.volumes, names).into_iter().filter(|name| !seen.volumes.contains(name)) {
        found.push(StackChange::VolumeRemoved { index, name });
    }
    found
}

/// Everything that went with the stack.
fn gone(index: u64, seen: Seen, found: &mut Vec<StackChange>) {
    let tasks = seen.tasks.into_iter();
    found.extend(tasks.map(|(id, container_name)| StackChange::TaskRemoved { index, id: id.0, container_name }));
    found.extend(seen.networks.into_iter().map(|name| StackChange::NetworkRemoved { index, name: name.0 }));
}

/// Which events.
#[derive(Debug, Deserialize)]
pub(crate) struct EventQuery {
    /// Those after this log index; without it only what comes, or, without `follow`, all that are kept.
    since_index: Option<u64>,
    /// Go on when the present ones are sent.
    #[serde(default)]
    follow: bool,
    /// Of this stack only.
    stack: Option<String>,
}

pub(crate) async fn events(
    Handed(context): Handed<Context>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Response, Fault> {
    let Query(query) = query?;
    let applied = context.control.watch();
    let from =
        query.since_index.unwrap_or_else(|| if query.follow { context.control.read(|state| state.index) } else { 0 });
    Ok(lines(Following { control: context.control, applied, from, waiting: VecDeque::new(), is_first: true }, query))
}

struct Following {
    control: Control,
    applied: watch::Receiver<u64>,
    from: u64,
    waiting: VecDeque<Event>,
    is_first: bool,
}

impl Source<EventQuery> for Following {
    async fn next_lines(&mut self, query: &EventQuery) -> Option<Bytes> {
        loop {
            if !self.is_first && !query.follow {
                return None;
            }
            self.is_first = false;
            self.applied.borrow_and_update();
            let from = self.from;
            let (index, found) = self.control.read(|state| (state.index, collect(state, from, query)));
            self.from = index;
            self.waiting.extend(found);
            if !self.waiting.is_empty() {
                let mut bytes = Vec::new();
                for event in self.waiting.drain(..) {
                    push_line(&mut bytes, &event);
                }
                return Some(bytes.into());
            }
            if !query.follow {
                return None;
            }
            self.applied.changed().await.ok()?;
        }
    }
}

fn collect(state: &State, from: u64, query: &EventQuery) -> Vec<Event> {
    let fits = |event: &&orch_core::Event| query.stack.as_deref().is_none_or(|stack| event.stack == stack);
    let events = state.events.since(from).filter(fits);
    events
        .map(|event| Event {
            time: event.time,
            index: event.index,
            kind: event.kind.clone(),
            action: event.action.clone(),
            id: event.id.clone(),
            name: event.name.clone(),
            attributes: event.attributes.clone(),
        })
        .collect()
}
