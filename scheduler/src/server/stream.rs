//! Newline-delimited streams: what changes in a stack, and what happens anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State as Inject};
use axum::http::Response;
use orch_api::control::{Event as EventView, NetworkView, StackChange, StackView, TaskView, VolumeView};
use orch_core::{Event, State};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::{Server, view};

/// Chunks waiting for a slow reader; then the stream skips to the state as it is, since only that counts.
const QUEUE: usize = 16;

fn line(value: &impl Serialize, out: &mut Vec<u8>) {
    // Plain data with text keys: it always serialises.
    if serde_json::to_writer(&mut *out, value).is_ok() {
        out.push(b'\n');
    }
}

fn stream(receiver: mpsc::Receiver<std::io::Result<Bytes>>) -> Response<Body> {
    let stream =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    Response::new(Body::from_stream(stream))
}

/// What one watcher has been told.
#[derive(Default)]
struct Told {
    head: Option<StackView>,
    tasks: BTreeMap<String, TaskView>,
    networks: BTreeMap<String, NetworkView>,
    volumes: BTreeMap<String, VolumeView>,
}

/// The lines from what was told to what is; `true` when the stack is gone.
fn changes(told: &mut Told, state: &State, name: &str) -> (Vec<StackChange>, bool) {
    let index = state.index;
    let Some(mut now) = view::stack(state, name) else { return (vec![StackChange::Removed { index }], true) };
    let tasks: BTreeMap<String, TaskView> =
        std::mem::take(&mut now.tasks).into_iter().map(|t| (t.id.clone(), t)).collect();
    let networks: BTreeMap<String, NetworkView> =
        std::mem::take(&mut now.networks).into_iter().map(|n| (n.name.clone(), n)).collect();
    let volumes: BTreeMap<String, VolumeView> =
        std::mem::take(&mut now.volumes).into_iter().map(|v| (v.name.clone(), v)).collect();
    // What is told of the stack itself: what it consists of, not how its tasks are.
    now.index = 0;
    now.status.clear();
    now.services.iter_mut().for_each(|s| (s.running, s.ready) = (0, 0));
    let mut lines = Vec::new();
    if told.head.as_ref() != Some(&now) {
        let mut whole = view::stack(state, name).unwrap_or_default();
        whole.index = index;
        lines.push(StackChange::Stack { stack: Box::new(whole) });
    } else {
        for (id, task) in &tasks {
            if told.tasks.get(id) != Some(task) {
                lines.push(StackChange::Task { index, task: Box::new(task.clone()) });
            }
        }
        for (id, task) in told.tasks.iter().filter(|(id, _)| !tasks.contains_key(*id)) {
            lines.push(StackChange::TaskRemoved { index, id: id.clone(), container_name: task.container_name.clone() });
        }
        for (name, network) in networks.iter().filter(|(name, n)| told.networks.get(*name) != Some(n)) {
            let _ = name;
            lines.push(StackChange::Network { index, network: network.clone() });
        }
        for name in told.networks.keys().filter(|name| !networks.contains_key(*name)) {
            lines.push(StackChange::NetworkRemoved { index, name: name.clone() });
        }
        for volume in volumes.values().filter(|v| told.volumes.get(&v.name) != Some(v)) {
            lines.push(StackChange::Volume { index, volume: volume.clone() });
        }
        for name in told.volumes.keys().filter(|name| !volumes.contains_key(*name)) {
            lines.push(StackChange::VolumeRemoved { index, name: name.clone() });
        }
    }
    *told = Told { head: Some(now), tasks, networks, volumes };
    (lines, false)
}

/// `GET /v1/stacks/{name}/watch`.
pub(super) async fn watch(Inject(server): Inject<Arc<Server>>, Path(name): Path<String>) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut applied = server.control.watch();
        let mut told = Told::default();
        loop {
            applied.mark_unchanged();
            let (lines, over) = server.control.read(|state| changes(&mut told, state, &name));
            let mut chunk = Vec::new();
            lines.iter().for_each(|l| line(l, &mut chunk));
            if !chunk.is_empty() && sender.send(Ok(chunk.into())).await.is_err() {
                return;
            }
            if over || changed(&mut applied, &sender).await.is_err() {
                return;
            }
        }
    });
    stream(receiver)
}

/// Waits for a change, or for the reader to go away.
async fn changed(applied: &mut watch::Receiver<u64>, sender: &mpsc::Sender<std::io::Result<Bytes>>) -> Result<(), ()> {
    tokio::select! {
        result = applied.changed() => result.map_err(drop),
        () = sender.closed() => Err(()),
    }
}

/// `?since_index=&follow=&stack=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EventQuery {
    since_index: Option<u64>,
    follow: bool,
    stack: Option<String>,
}

fn event(event: &Event) -> EventView {
    let mut attributes = event.attributes.clone();
    if !event.stack.is_empty() {
        attributes.entry("stack".to_owned()).or_insert_with(|| event.stack.clone());
    }
    EventView {
        time: event.time,
        index: event.index,
        kind: event.kind.clone(),
        action: event.action.clone(),
        id: event.id.clone(),
        name: event.name.clone(),
        attributes,
    }
}

/// `GET /v1/events`: without an index, what happens from now on; with one, everything after it.
pub(super) async fn events(Inject(server): Inject<Arc<Server>>, Query(query): Query<EventQuery>) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut applied = server.control.watch();
        let now = server.control.read(|state| state.index);
        let mut since = query.since_index.unwrap_or(if query.follow { now } else { 0 });
        loop {
            applied.mark_unchanged();
            let mut chunk = Vec::new();
            server.control.read(|state| {
                for found in state.events.since(since) {
                    since = found.index;
                    if query.stack.as_deref().is_none_or(|wanted| wanted == found.stack) {
                        line(&event(found), &mut chunk);
                    }
                }
            });
            if !chunk.is_empty() && sender.send(Ok(chunk.into())).await.is_err() {
                return;
            }
            if !query.follow || changed(&mut applied, &sender).await.is_err() {
                return;
            }
        }
    });
    stream(receiver)
}
