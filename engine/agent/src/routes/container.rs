//! Containers: listing, making, changing.

use std::io::Write;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::Response;
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use orch_api::error::ErrorDetail;
use orch_api::node::{AttachRequest, ContainerRequest, ContainerView, Created, StopRequest};
use orch_api::stream::{Frame, Kind, write_frame};
use orch_engine::config::ContainerId;
use orch_engine::container::merge::parse_signal;
use orch_engine::copy::CopyIn;
use orch_spec::assignment::{DesiredTask, TaskId, TaskState};
use serde::Deserialize;

use super::session::{attach as attach_session, pump_attach, switching, upgrade};
use super::{Answer, Refusal, blocking, find};
use crate::task::{ContainerState, status};
use crate::{Shared, local, now_ms, view};

/// `?all=true`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    all: bool,
}

/// `GET containers`.
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<ListQuery>,
) -> Json<Vec<ContainerView>> {
    let mut views = view::all(&shared);
    let alive = |s: TaskState| {
        matches!(s, TaskState::Running | TaskState::Paused | TaskState::Restarting | TaskState::Stopping)
    };
    views.retain(|v| query.all || alive(v.state));
    views.sort_by(|a, b| b.created_at.cmp(&a.created_at));
    Json(views)
}

/// `GET containers/{id}`.
pub(super) async fn show(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<ContainerView> {
    let container = find(&shared, &id)?;
    let info = shared.engine.inspect(&container)?;
    Ok(Json(view::one(&shared, &info)))
}

/// `GET containers/{id}/inspect`: the view, and the whole configuration. Secrets are not in it: the engine never stores them.
pub(super) async fn inspect(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<serde_json::Value> {
    let container = find(&shared, &id)?;
    let info = shared.engine.inspect(&container)?;
    let mut value = serde_json::to_value(view::one(&shared, &info)).unwrap_or_default();
    value["config"] = serde_json::to_value(&*info.config).unwrap_or_default();
    let restart = {
        let state = shared.lock();
        let task =
            info.config.labels.get(crate::lower::label::TASK).and_then(|id| state.task(&TaskId::from(id.as_str())));
        task.map(|t| serde_json::to_value(t.spec.restart_policy()).unwrap_or_default())
    };
    value["restart_policy"] = restart.unwrap_or_default();
    value["start_times"] = start_times(&shared, &info).unwrap_or_default();
    Ok(Json(value))
}

/// Where the time of the last start went, in ns; null where another agent started it.
fn start_times(shared: &Shared, info: &orch_engine::engine::ContainerInfo) -> Option<serde_json::Value> {
    let times = shared.engine.start_times(&info.config.id).ok()??;
    let task = TaskId::from(info.config.labels.get(crate::lower::label::TASK)?.clone());
    let network = shared.lock().observed.tasks.get(&task)?.network_time;
    Some(serde_json::json!({
        "network": network,
        "prepare": times.prepare,
        // Starting the shim where there was none, and what it does for others first.
        "queue": times.ask.saturating_sub(times.shim.whole),
        "cgroup": times.shim.cgroup,
        "compile": times.shim.compile,
        "clone": times.shim.clone,
        "child": times.shim.child,
        "total": network + times.prepare + times.ask,
    }))
}

/// `POST containers`.
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<ContainerRequest>,
) -> Answer<Created> {
    let desired = if request.start { DesiredTask::Running } else { DesiredTask::Created };
    let start = request.start;
    let made = local::create(&shared, request, desired).await?;
    let reached = |state: TaskState| match state {
        TaskState::Created => !start,
        TaskState::Running | TaskState::Exited | TaskState::Restarting | TaskState::Paused => true,
        _ => false,
    };
    settle(&shared, &TaskId::from(made.id.as_str()), reached).await?;
    Ok(Json(made))
}

/// Waits until a container of no stack is in a state; one that failed is removed again and its failure told.
async fn settle(shared: &Arc<Shared>, id: &TaskId, reached: impl Fn(TaskState) -> bool) -> Result<(), Refusal> {
    let mut version = shared.version.subscribe();
    loop {
        {
            let mut state = shared.lock();
            if let Some(error) = state.errors.remove(id) {
                if let Some(local) = state.locals.get_mut(id) {
                    local.task.desired = DesiredTask::Removed;
                }
                drop(state);
                shared.touch();
                return Err(ErrorDetail::new("failed", error.message).with_exit_code(error.code).into());
            }
            let Some(local) = state.locals.get(id) else { return Ok(()) };
            let now = status(&local.task, state.observed.tasks.get(id), now_ms());
            if reached(now.state) || local.task.desired == DesiredTask::Removed {
                return Ok(());
            }
        }
        if version.changed().await.is_err() {
            return Err(ErrorDetail::new("unavailable", "the agent is going away").into());
        }
    }
}

/// `POST containers/run`: make, attach, start and follow to the end, in one round trip.
pub(super) async fn run(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response<Body>, Refusal> {
    let (request, on) = upgrade::<ContainerRequest>(request).await?;
    let (stdin, size) = (request.attach_stdin, request.size);
    let made = local::create(&shared, request, DesiredTask::Created).await?;
    let id = TaskId::from(made.id.as_str());
    settle(&shared, &id, |state| state == TaskState::Created).await?;
    let container = ContainerId(made.id.clone());
    let (inner, of) = (shared.clone(), container.clone());
    let session = blocking(move || attach_session(&inner, &of, stdin)).await?;
    local::change(&shared, &id, |task| task.desired = DesiredTask::Running)?;
    let started =
        |state| matches!(state, TaskState::Running | TaskState::Exited | TaskState::Restarting | TaskState::Removed);
    settle(&shared, &id, started).await?;
    tokio::spawn(async move {
        let Ok(upgraded) = on.await else { return };
        let mut connection = TokioIo::new(upgraded);
        let hello = serde_json::to_vec(&made).unwrap_or_default();
        if write_frame(&mut connection, &Frame::new(Kind::Started, hello)).await.is_err() {
            return;
        }
        if let Some((rows, columns)) = size {
            let (engine, of) = (shared.engine.clone(), container.clone());
            let _ = tokio::task::spawn_blocking(move || engine.resize(&of, rows, columns)).await;
        }
        pump_attach(shared, connection, container, session, true).await;
    });
    Ok(switching())
}

/// `POST containers/{id}/attach`.
pub(super) async fn attach(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (request, on) = upgrade::<AttachRequest>(request).await?;
    let container = find(&shared, &id)?;
    let (inner, of) = (shared.clone(), container.clone());
    let session = blocking(move || {
        let session = attach_session(&inner, &of, request.stdin)?;
        if let Some((rows, columns)) = request.size {
            let _ = inner.engine.resize(&of, rows, columns);
        }
        Ok(session)
    })
    .await?;
    if request.start {
        local::change(&shared, &TaskId::from(container.0.as_str()), |task| task.desired = DesiredTask::Running)?;
    }
    tokio::spawn(async move {
        if let Ok(upgraded) = on.await {
            pump_attach(shared, TokioIo::new(upgraded), container, session, true).await;
        }
    });
    Ok(switching())
}

/// The exit code of a container that has ended or is about to be seen so.
pub(super) async fn exit_code(shared: &Arc<Shared>, container: &ContainerId) -> i32 {
    let mut version = shared.version.subscribe();
    loop {
        {
            let state = shared.lock();
            let seen = state.observed.tasks.values().filter_map(|t| t.container.as_ref()).find(|c| c.id == *container);
            match seen {
                Some(c) if c.state == ContainerState::Exited => return c.exit_code.unwrap_or(0),
                Some(_) => {}
                None => return state.end_of(container).unwrap_or(0),
            }
            if let Some(code) = state.end_of(container).filter(|_| seen.is_none()) {
                return code;
            }
        }
        if version.changed().await.is_err() {
            return 1;
        }
    }
}

/// `POST containers/{id}/wait`.
pub(super) async fn wait(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<i32> {
    let container = find(&shared, &id)?;
    Ok(Json(exit_code(&shared, &container).await))
}

/// Changes the desired state of a container of no stack and waits until it is so.
async fn change(
    shared: Arc<Shared>,
    id: String,
    to: impl FnOnce(&mut orch_spec::assignment::TaskAssignment),
    reached: impl Fn(TaskState) -> bool,
) -> Answer<serde_json::Value> {
    let container = find(&shared, &id)?;
    let task = TaskId::from(container.0);
    local::change(&shared, &task, to)?;
    settle(&shared, &task, reached).await?;
    Ok(Json(serde_json::Value::Null))
}

fn over(state: TaskState) -> bool {
    matches!(state, TaskState::Exited | TaskState::Created | TaskState::Removed)
}

/// `POST containers/{id}/start`: nothing for one that runs.
pub(super) async fn start(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<serde_json::Value> {
    let container = find(&shared, &id)?;
    if shared.lock().runs(&container) {
        return Ok(Json(serde_json::Value::Null));
    }
    run_again(&shared, container, StopRequest::default()).await
}

/// `POST containers/{id}/restart`.
pub(super) async fn restart(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Json(request): Json<StopRequest>,
) -> Answer<serde_json::Value> {
    let container = find(&shared, &id)?;
    run_again(&shared, container, request).await
}

/// Asks for one more run, with a stop before it where it runs, and waits until it has begun or failed.
async fn run_again(shared: &Arc<Shared>, container: ContainerId, request: StopRequest) -> Answer<serde_json::Value> {
    let stop_signal = signal(&request)?;
    let task = TaskId::from(container.0);
    let mut wanted = 0;
    local::change(shared, &task, |task| {
        task.desired = DesiredTask::Running;
        task.restart_generation += 1;
        task.stop_timeout = request.timeout;
        task.stop_signal = stop_signal;
        wanted = task.restart_generation;
    })?;
    let mut version = shared.version.subscribe();
    loop {
        {
            let state = shared.lock();
            let seen = state.observed.tasks.get(&task);
            if seen.is_none_or(|t| t.record.restart_generation >= wanted && t.activity.is_none()) {
                let error = seen.and_then(|t| t.record.error.clone());
                return match error {
                    None => Ok(Json(serde_json::Value::Null)),
                    Some(e) => Err(ErrorDetail::new("failed", e.message).with_exit_code(e.code).into()),
                };
            }
        }
        if version.changed().await.is_err() {
            return Err(ErrorDetail::new("unavailable", "the agent is going away").into());
        }
    }
}

/// The signal of a request, checked.
fn signal(request: &StopRequest) -> Result<Option<String>, Refusal> {
    match &request.signal {
        Some(text) if parse_signal(text).is_none() => {
            Err(ErrorDetail::new("invalid", format!("`{text}` is not a signal; write for example SIGTERM, TERM or 15"))
                .into())
        }
        signal => Ok(signal.clone()),
    }
}

/// `POST containers/{id}/stop`.
pub(super) async fn stop(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Json(request): Json<StopRequest>,
) -> Answer<serde_json::Value> {
    let signal = signal(&request)?;
    let to = move |task: &mut orch_spec::assignment::TaskAssignment| {
        task.desired = DesiredTask::Stopped;
        task.stop_timeout = request.timeout;
        task.stop_signal = signal;
    };
    change(shared, id, to, over).await
}

/// `POST containers/{id}/kill`: SIGKILL is an end that was asked for; any other signal is only delivered, to containers of stacks too.
pub(super) async fn kill(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Json(request): Json<StopRequest>,
) -> Answer<serde_json::Value> {
    signal(&request)?;
    let number = request.signal.as_deref().and_then(parse_signal).unwrap_or(nix::libc::SIGKILL);
    let container = find(&shared, &id)?;
    if number != nix::libc::SIGKILL {
        blocking(move || Ok(shared.engine.kill(&container, number)?)).await?;
        return Ok(Json(serde_json::Value::Null));
    }
    if !shared.lock().runs(&container) {
        return Err(ErrorDetail::new("conflict", format!("container {id} does not run")).into());
    }
    let to = |task: &mut orch_spec::assignment::TaskAssignment| {
        task.desired = DesiredTask::Stopped;
        task.stop_timeout = Some(0);
        task.stop_signal = Some("KILL".to_owned());
    };
    change(shared, id, to, over).await
}

/// `POST containers/{id}/pause`.
pub(super) async fn pause(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<serde_json::Value> {
    let container = find(&shared, &id)?;
    if !shared.lock().runs(&container) {
        return Err(ErrorDetail::new("conflict", format!("container {id} does not run")).into());
    }
    change(shared, id, |task| task.desired = DesiredTask::Paused, |s| s == TaskState::Paused || over(s)).await
}

/// `POST containers/{id}/unpause`.
pub(super) async fn unpause(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<serde_json::Value> {
    change(shared, id, |task| task.desired = DesiredTask::Running, |s| s == TaskState::Running || over(s)).await
}

/// `?force=&volumes=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RemoveQuery {
    force: bool,
    volumes: bool,
}

/// `DELETE containers/{id}`.
pub(super) async fn remove(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Answer<()> {
    let container = find(&shared, &id)?;
    if shared.lock().runs(&container) && !query.force {
        return Err(ErrorDetail::new("conflict", format!("container {id} runs"))
            .with_hint("stop it first, or use -f")
            .into());
    }
    let task = TaskId::from(container.0.as_str());
    local::change(&shared, &task, |task| {
        task.desired = DesiredTask::Removed;
        task.stop_timeout = Some(0);
        task.stop_signal = Some("KILL".to_owned());
        task.remove_volumes = query.volumes;
    })?;
    let mut version = shared.version.subscribe();
    while shared.lock().observed.tasks.get(&task).is_some_and(|t| t.container.is_some()) {
        if version.changed().await.is_err() {
            break;
        }
    }
    Ok(Json(()))
}

/// `?path=&owners=&follow=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ArchiveQuery {
    path: String,
    owners: bool,
    follow: bool,
}

/// Chunks between a thread that packs and the connection.
const CHUNKS: usize = 16;

/// A writer whose chunks become a body.
struct ChunkWriter(tokio::sync::mpsc::Sender<std::io::Result<Bytes>>);

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A body that a thread writes; its failure breaks the body off, so that the client sees that it is not complete.
pub(super) fn written_body<E: std::error::Error>(
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let failure = {
            let mut writer = std::io::BufWriter::with_capacity(64 * 1024, ChunkWriter(sender.clone()));
            let result = write(&mut writer).map_err(|e| std::io::Error::other(crate::chain(&e)));
            result.and_then(|()| writer.flush()).err()
        };
        if let Some(e) = failure {
            tracing::warn!(error = %e, "a stream broke off");
            let _ = sender.blocking_send(Err(e));
        }
    });
    let stream =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    Body::from_stream(stream)
}

/// A request's body as a reader for a thread.
pub(super) fn body_reader(body: Body) -> impl std::io::Read + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(CHUNKS);
    let mut stream = body.into_data_stream();
    tokio::spawn(async move {
        while let Some(chunk) = stream.next().await {
            if sender.send(chunk.map_err(std::io::Error::other)).await.is_err() {
                return;
            }
        }
    });
    reader(receiver)
}

/// Pieces that come over a channel as a reader for a thread.
pub(crate) fn reader(
    receiver: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>,
) -> impl std::io::Read + Send + 'static {
    BodyReader { receiver, current: Bytes::new() }
}

struct BodyReader {
    receiver: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>,
    current: Bytes,
}

impl std::io::Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// `GET containers/{id}/archive`. A path that is not there is an error with a status, not a stream that breaks off.
pub(super) async fn archive_out(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response<Body>, Refusal> {
    let container = find(&shared, &id)?;
    let mut archive = blocking(move || Ok(shared.engine.copy_out(&container, &query.path, query.follow)?)).await?;
    let body = written_body(move |writer| std::io::copy(&mut archive, writer).map(drop));
    Ok(Response::new(body))
}

/// `GET containers/{id}/archive/directory?path=`: whether a path is a directory that exists, so that a client can name what it sends.
pub(super) async fn is_directory(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<ArchiveQuery>,
) -> Answer<bool> {
    let container = find(&shared, &id)?;
    blocking(move || {
        let stat = shared.engine.stat_path(&container, &query.path, true);
        Ok(Json(stat.is_ok_and(|s| s.mode & nix::libc::S_IFMT == nix::libc::S_IFDIR)))
    })
    .await
}

/// `PUT containers/{id}/archive`: unpacks into the directory `path`.
pub(super) async fn archive_in(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<ArchiveQuery>,
    body: Body,
) -> Answer<()> {
    let container = find(&shared, &id)?;
    let reader = body_reader(body);
    let options = CopyIn { keep_owner: query.owners, ..CopyIn::default() };
    blocking(move || Ok(shared.engine.copy_in(&container, &query.path, reader, &options)?)).await?;
    Ok(Json(()))
}
