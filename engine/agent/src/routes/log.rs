//! Logs as newline-delimited JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::Response;
use orch_api::error::ErrorDetail;
use orch_api::node::{FollowEnd, LogLine, LogQuery};
use orch_engine::config::ContainerId;
use orch_engine::container::Phase;
use orch_engine::logs::entry::{format_time, parse_time};
use orch_engine::logs::reader::{LogQuery as EngineQuery, LogReader, Next};

use orch_engine::engine::EngineError;
use orch_spec::assignment::{TaskAssignment, TaskState};

use super::{Refusal, blocking, find};
use crate::task::status;
use crate::{Shared, now_ms};

/// Lines gathered into one chunk at most: large enough that a long log is sent quickly.
const CHUNK: usize = 64 * 1024;
/// How often a follower looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(500);

/// `GET containers/{id}/logs`.
pub(super) async fn logs(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response<Body>, Refusal> {
    let container = find(&shared, &id)?;
    let time = |text: &Option<String>| {
        text.as_deref()
            .map(|t| {
                parse_time(t)
                    .ok_or_else(|| Refusal(ErrorDetail::new("invalid", format!("`{t}` is not a time (RFC 3339)"))))
            })
            .transpose()
    };
    let until = query.until_end;
    let query = EngineQuery {
        tail: query.tail,
        since: time(&query.since)?,
        until: time(&query.until)?,
        follow: query.follow,
        stream: None,
    };
    let reader = blocking(move || {
        let directory = shared.engine.log_directory(&container)?;
        let ended = move || ended(&shared, &container, until);
        Ok(LogReader::open(&directory, query, ended).map_err(EngineError::from)?)
    })
    .await?;
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(4);
    tokio::task::spawn_blocking(move || send(reader, &sender));
    let stream =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    Ok(Response::new(Body::from_stream(stream)))
}

/// Whether a follower has nothing more to wait for.
fn ended(shared: &Shared, container: &ContainerId, until: FollowEnd) -> bool {
    let Ok(info) = shared.engine.inspect(container) else { return true };
    let exited = match info.state.phase {
        Phase::Removing => return true,
        phase => phase == Phase::Exited,
    };
    match until {
        FollowEnd::Exit => exited,
        FollowEnd::Removal => false,
        FollowEnd::End => {
            let state = shared.lock();
            let task = state.task_of(container).and_then(|id| state.task(id));
            let over = |task: &TaskAssignment| {
                let now = status(task, state.observed.tasks.get(&task.id), now_ms()).state;
                matches!(now, TaskState::Exited | TaskState::Failed | TaskState::Removed)
            };
            task.map_or(exited, over)
        }
    }
}

fn send(mut reader: LogReader, to: &tokio::sync::mpsc::Sender<std::io::Result<Bytes>>) {
    let mut chunk = Vec::new();
    loop {
        // What is there is sent as soon as nothing more is there at once.
        let wait = if chunk.is_empty() { LOOK } else { Duration::ZERO };
        let next = reader.next_within(wait);
        let (line, end) = match next {
            Ok(Next::Line(line)) => (Some(line), false),
            Ok(Next::Idle) => (None, false),
            Ok(Next::End) => (None, true),
            Err(e) => {
                let _ = to.blocking_send(Err(std::io::Error::other(crate::chain(&e))));
                return;
            }
        };
        let more = line.is_some();
        if let Some(line) = line {
            let line = LogLine { time: format_time(line.time), stream: line.stream.name().to_owned(), log: line.text };
            if serde_json::to_writer(&mut chunk, &line).is_ok() {
                chunk.push(b'\n');
            }
        }
        if !chunk.is_empty()
            && (!more || chunk.len() >= CHUNK)
            && to.blocking_send(Ok(std::mem::take(&mut chunk).into())).is_err()
        {
            return;
        }
        if end || to.is_closed() {
            return;
        }
    }
}
