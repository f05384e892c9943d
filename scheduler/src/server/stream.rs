//! Newline-delimited streams: what changes in a stack, and what happens anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State as Inject};
use axum::http::Response;
use orch_api::control::{Event as EventView, StackChange};
use orch_core::{Event, State};
use orch_spec::assignment::{NetworkName, TaskId};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::{Asked, Refused, Server, view};

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

/// What one watcher has been told: names only, since every record of the state says itself when it changed last.
#[derive(Default)]
struct Told {
    /// Index of the state that it was told of.
    index: Option<u64>,
    /// Task → its container's name.
    tasks: BTreeMap<TaskId, String>,
    networks: BTreeSet<String>,
    volumes: BTreeSet<String>,
}

/// The lines from what was told to what is; `true` when the stack is gone. Costs a look at each record, and a view only of what changed.
fn changes(told: &mut Told, state: &State, name: &str) -> (Vec<StackChange>, bool) {
    let index = state.index;
    let mut lines = Vec::new();
    let Some(stack) = state.stacks.get(name) else {
        let former = std::mem::take(told);
        gone(state, former, &Told::default(), &mut lines);
        lines.push(StackChange::Removed { index });
        return (lines, true);
    };
    let (networks, volumes) = view::objects(state, name);
    let now = Told {
        index: Some(index),
        tasks: state.stack_tasks(name).map(|task| (task.id.clone(), task.container_name.clone())).collect(),
        networks: networks.iter().map(|network| network.name.0.clone()).collect(),
        volumes: volumes.iter().map(|volume| volume.name.clone()).collect(),
    };
    let former = std::mem::replace(told, now);
    match former.index {
        Some(since) if stack.changed <= since => {
            let tasks = state.stack_tasks(name).filter(|task| task.changed > since);
            lines.extend(tasks.map(|task| StackChange::Task { index, task: Box::new(view::task(state, task)) }));
            let networks = networks.iter().filter(|network| network.changed > since);
            lines
                .extend(networks.map(|network| StackChange::Network { index, network: view::network(state, network) }));
            let volumes = volumes.iter().filter(|volume| volume.changed > since);
            lines.extend(volumes.map(|volume| StackChange::Volume { index, volume: view::volume(state, volume) }));
        }
        // Its services or files are others: everything anew, which also says what is there no more.
        _ => lines.extend(view::stack(state, name).map(|stack| StackChange::Stack { stack: Box::new(stack) })),
    }
    gone(state, former, told, &mut lines);
    (lines, false)
}

/// What was told and does not belong to the stack any more.
fn gone(state: &State, former: Told, now: &Told, lines: &mut Vec<StackChange>) {
    let index = state.index;
    for (id, container_name) in former.tasks.into_iter().filter(|(id, _)| !now.tasks.contains_key(id)) {
        lines.push(StackChange::TaskRemoved { index, id: id.0, container_name });
    }
    for name in former.networks.into_iter().filter(|name| !now.networks.contains(name)) {
        let kept = state.networks.contains_key(&NetworkName(name.clone()));
        lines.push(StackChange::NetworkRemoved { index, name, kept });
    }
    for name in former.volumes.into_iter().filter(|name| !now.volumes.contains(name)) {
        let kept = state.volumes.contains_key(&name);
        lines.push(StackChange::VolumeRemoved { index, name, kept });
    }
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

pub(super) fn event(event: &Event) -> EventView {
    let mut attributes: BTreeMap<String, String> =
        event.attributes.iter().map(|(key, value)| (key.clone().into_owned(), value.clone())).collect();
    if !event.stack.is_empty() {
        attributes.insert("stack".to_owned(), event.stack.clone());
    }
    EventView {
        time: event.time,
        index: event.index,
        kind: event.kind.clone().into_owned(),
        action: event.action.clone().into_owned(),
        id: event.id.clone(),
        name: event.name.clone(),
        attributes,
    }
}

/// What stands for events after `since` that are no longer known: a stream that leaves something out says so.
fn lost(state: &State, since: u64) -> Option<EventView> {
    let oldest = state.events.since(0).next().filter(|_| state.events.has_gap_since(since))?;
    let why = format!("what happened between {since} and {} may be missing: so much has happened since", oldest.index);
    Some(EventView {
        time: oldest.time,
        // Who goes on from here is told the rest.
        index: since,
        kind: "events".to_owned(),
        action: "lost".to_owned(),
        id: String::new(),
        name: String::new(),
        attributes: BTreeMap::from([("why".to_owned(), why)]),
    })
}

/// `GET /v1/events`: without an index, what happens from now on; with one, everything after it.
pub(super) async fn events(
    Inject(server): Inject<Arc<Server>>,
    query: Asked<EventQuery>,
) -> Result<Response<Body>, Refused> {
    let Query(query) = query?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut applied = server.control.watch();
        let now = server.control.read(|state| state.index);
        let mut since = query.since_index.unwrap_or(if query.follow { now } else { 0 });
        // Who asks for what there is gets that; who follows, or goes on from an index, wants all.
        let is_complete = query.follow || query.since_index.is_some();
        loop {
            applied.mark_unchanged();
            let mut chunk = Vec::new();
            server.control.read(|state| {
                if let Some(lost) = is_complete.then(|| lost(state, since)).flatten() {
                    line(&lost, &mut chunk);
                }
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
    Ok(stream(receiver))
}

#[cfg(test)]
mod tests {
    use orch_core::{Command, Entry, UpdateNode};
    use orch_spec::assignment::{NodeFacts, NodeReport};

    use super::*;

    #[test]
    fn a_stream_that_cannot_tell_all_says_so() {
        let mut state = State::default();
        let apply = |state: &mut State, command| {
            let (index, now_ms) = (state.index + 1, 1_000_000 + state.index);
            let entry = Entry { time_ms: None, now_ms, nonce: 1, request: None, command };
            assert!(state.apply(index, &entry).result.is_ok());
        };
        let facts = NodeFacts { id: "n".into(), ..NodeFacts::default() };
        let report = NodeReport::Facts(facts);
        apply(&mut state, Command::Report { node: "n".into(), turn: orch_core::Turn::default(), report });
        let kept = |state: &State| state.events.since(0).count();
        let relabel = |number: usize| {
            let labels = BTreeMap::from([("x".to_owned(), number.to_string())]);
            Command::UpdateNode(UpdateNode { node: "n".into(), labels, ..UpdateNode::default() })
        };
        let mut before = 0;
        while kept(&state) > before {
            assert!(lost(&state, 1).is_none(), "everything is there");
            before = kept(&state);
            apply(&mut state, relabel(before));
        }
        apply(&mut state, relabel(0));
        let told = lost(&state, 1).expect("the first is gone");
        assert_eq!((told.action.as_str(), told.index), ("lost", 1));
        assert!(told.attributes["why"].starts_with("what happened between 1 and "), "{told:?}");
        assert!(lost(&state, state.index - 1).is_none(), "the last ones are there");
    }
}
