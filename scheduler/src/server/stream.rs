//! Newline-delimited streams: what changes in a stack, and what happens anywhere.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State as Inject};
use axum::http::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::tail::{EventTail, StackTail};
use super::{Asked, Refused, Server};

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

/// `GET /v1/stacks/{name}/watch`.
pub(super) async fn watch(Inject(server): Inject<Arc<Server>>, Path(name): Path<String>) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut applied = server.control.watch();
        let mut tail = StackTail::default();
        loop {
            applied.mark_unchanged();
            let (lines, over) = server.control.read(|state| tail.next(state, &name));
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
        let mut tail = match query.since_index {
            // Who asks for what there is gets that; who follows, or goes on from an index, wants all.
            None if !query.follow => EventTail::of_what_is_kept(),
            since => EventTail::after(since.unwrap_or(now)),
        };
        loop {
            applied.mark_unchanged();
            let mut chunk = Vec::new();
            let told = server.control.read(|state| tail.next(state, query.stack.as_deref()));
            told.iter().for_each(|event| line(event, &mut chunk));
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
