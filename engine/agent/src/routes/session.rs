//! Upgraded connections: `exec`, and the pumps that `attach` and `run` share with it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderValue, Response, StatusCode};
use hyper_util::rt::TokioIo;
use orch_api::error::ErrorDetail;
use orch_api::node::ExecRequest;
use orch_api::stream::{Frame, Kind, PROTOCOL, read_frame, write_frame};
use orch_engine::config::{ContainerId, ProcessConfig};
use orch_engine::engine::{AttachEvent, AttachOptions, AttachSession, ExecOptions, ExecSession};
use orch_engine::logs::Stream;
use orch_spec::assignment::TaskId;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::standard::{Input, forward_pipe, forward_terminal};
use super::{Refusal, blocking, detail, find};
use crate::Shared;
use crate::task::TaskError;

/// Frames waiting to be sent to one client: a client that stands still holds its process up, not the agent's memory.
const QUEUE: usize = 64;

/// The upgraded connection.
pub(super) type Connection = TokioIo<hyper::upgrade::Upgraded>;

/// Takes a request apart into its JSON body and the promise of its upgraded connection.
///
/// # Errors
/// When it asks for no upgrade, or its body is not understood.
pub(super) async fn upgrade<T: DeserializeOwned>(
    mut request: Request,
) -> Result<(T, hyper::upgrade::OnUpgrade), Refusal> {
    let asked = request.headers().get(UPGRADE).is_some_and(|value| value == PROTOCOL);
    if !asked {
        return Err(ErrorDetail::new("invalid", format!("this route needs `Upgrade: {PROTOCOL}`")).into());
    }
    let on = hyper::upgrade::on(&mut request);
    let Json(body) = Json::<T>::from_request(request, &())
        .await
        .map_err(|e| ErrorDetail::new("invalid", format!("the request is not understood: {}", e.body_text())))?;
    Ok((body, on))
}

/// `101 Switching Protocols`.
pub(super) fn switching() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

/// `exec`.
pub(super) async fn exec(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (request, on) = upgrade::<ExecRequest>(request).await?;
    let container = find(&shared, &id)?;
    if request.command.is_empty() {
        return Err(ErrorDetail::new("invalid", "no command to run").into());
    }
    let detach = request.detach;
    let session = blocking(move || {
        let process = ProcessConfig {
            args: request.command,
            env: request.env,
            cwd: request.workdir,
            user: request.user,
            tty: request.tty,
            stdin_open: request.stdin,
            ..ProcessConfig::default()
        };
        let options =
            ExecOptions { process, privileged: request.privileged, detach: request.detach, size: request.size };
        let mut session = shared.engine.exec(&container, &options).map_err(|e| {
            let detail = detail(&e);
            if detail.exit_code.is_some() { detail } else { detail.with_exit_code(125) }
        })?;
        // A client that goes away takes its command with it, as a closed terminal does.
        session.kill_on_drop = !detach;
        Ok(session)
    })
    .await?;
    tokio::spawn(async move {
        let Ok(upgraded) = on.await else { return };
        let mut connection = TokioIo::new(upgraded);
        if detach {
            let _ = write_frame(&mut connection, &Frame::exit(0)).await;
            return;
        }
        pump_exec(connection, session).await;
    });
    Ok(switching())
}

async fn pump_exec(connection: Connection, mut session: ExecSession) {
    let (reader, writer) = tokio::io::split(connection);
    let (sender, frames) = mpsc::channel(QUEUE);
    let writing = tokio::spawn(write_all(writer, frames));
    let mut readers = Vec::new();
    let mut input = session.stdin.take().and_then(|fd| Input::pipe(fd).ok()).unwrap_or(Input::Closed);
    // The session keeps the terminal itself: it is what a change of size goes to.
    if let Some(terminal) = &session.terminal {
        if let Ok(copy) = terminal.try_clone() {
            input = Input::Terminal(Arc::new(copy.into()));
        }
        readers.extend(terminal.try_clone().ok().map(|copy| forward_terminal(copy, sender.clone())));
    }
    for (fd, kind) in [(session.stdout.take(), Kind::Stdout), (session.stderr.take(), Kind::Stderr)] {
        readers.extend(fd.and_then(|fd| forward_pipe(fd, kind, sender.clone()).ok()));
    }
    let session = Arc::new(session);
    let waiting = {
        let session = session.clone();
        tokio::task::spawn_blocking(move || session.wait(None))
    };
    let incoming = tokio::spawn(exec_input(reader, input, session.clone()));
    let code = waiting.await.ok().flatten().unwrap_or(1);
    // All output of the command itself comes before its code; what it left in the background may hold the pipe for ever.
    for reader in readers {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), reader).await;
    }
    let _ = sender.send(Frame::exit(code)).await;
    drop(sender);
    let _ = writing.await;
    incoming.abort();
}

async fn exec_input(mut reader: ReadHalf<Connection>, mut input: Input, session: Arc<ExecSession>) {
    loop {
        match read_frame(&mut reader).await {
            Ok(Some(frame)) => match frame.kind {
                Kind::Stdin => input.write(frame.payload).await,
                Kind::StdinEof => input.end(),
                Kind::Resize => {
                    if let Some((rows, columns)) = frame.size() {
                        let _ = session.resize(rows, columns);
                    }
                }
                Kind::Signal => {
                    if let Some(number) = frame.number() {
                        let _ = session.signal(number, false);
                    }
                }
                _ => {}
            },
            Ok(None) | Err(_) => {
                let _ = session.signal(nix::libc::SIGKILL, true);
                return;
            }
        }
    }
}

/// Sends frames until there are no more, or nobody takes them.
pub(super) async fn write_all(mut writer: WriteHalf<Connection>, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if write_frame(&mut writer, &frame).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// Attaches to a container.
///
/// # Errors
/// What the engine says.
pub(super) fn attach(shared: &Shared, container: &ContainerId, stdin: bool) -> Result<AttachSession, Refusal> {
    Ok(shared.engine.attach(container, AttachOptions { stdin, patient: true })?)
}

/// Pumps an attached container until it ends or the client goes.
pub(super) async fn pump_attach(
    shared: Arc<Shared>,
    connection: Connection,
    container: ContainerId,
    session: AttachSession,
    signals: bool,
) {
    let (mut reader, writer) = tokio::io::split(connection);
    let (sender, frames) = mpsc::channel(QUEUE);
    let writing = tokio::spawn(write_all(writer, frames));
    let input = session.input();
    let detaching = input.clone();
    let engine = shared.engine.clone();
    let (of, to) = (container.clone(), shared.clone());
    let incoming = tokio::spawn(async move {
        loop {
            let frame = read_frame(&mut reader).await;
            let (engine, of, input) = (engine.clone(), of.clone(), input.clone());
            match frame {
                Ok(Some(frame)) => {
                    // Writing to a container that does not read blocks: not on a thread of the runtime.
                    let done = tokio::task::spawn_blocking(move || match frame.kind {
                        Kind::Stdin => input.write(&frame.payload).is_ok(),
                        Kind::StdinEof => input.end().is_ok(),
                        Kind::Resize => {
                            if let Some((rows, columns)) = frame.size() {
                                let _ = engine.resize(&of, rows, columns);
                            }
                            true
                        }
                        Kind::Signal => {
                            if let Some(number) = frame.number().filter(|_| signals) {
                                let _ = engine.kill(&of, number);
                            }
                            true
                        }
                        _ => true,
                    });
                    if !matches!(done.await, Ok(true)) {
                        // The input is closed; resizes and signals may still come.
                        continue;
                    }
                }
                Ok(None) | Err(_) => {
                    detaching.detach();
                    return;
                }
            }
        }
    });
    let outgoing = sender.clone();
    let ending = session.input();
    let mut receiving = tokio::task::spawn_blocking(move || receive(session, &outgoing));
    tokio::select! {
        received = &mut receiving => {
            if matches!(received, Ok(true)) {
                let code = super::container::exit_code(&to, &container).await;
                removed(&to, &container).await;
                let _ = sender.send(Frame::exit(code)).await;
            }
        }
        // Attached before its start, and the start failed: it will never end, since it never ran.
        error = failed_start(&to, &container) => {
            let detail = ErrorDetail::new("failed", error.message).with_exit_code(error.code);
            let _ = sender.send(Frame::new(Kind::Error, serde_json::to_vec(&detail).unwrap_or_default())).await;
            ending.detach();
            let _ = receiving.await;
        }
    }
    drop(sender);
    let _ = writing.await;
    incoming.abort();
}

/// Waits until a container that was run with `--rm` is gone: its name, ports and volumes are free for whoever runs the next one. Not
/// longer than a removal can take that goes well.
async fn removed(shared: &Arc<Shared>, container: &ContainerId) {
    let task = TaskId::from(container.0.as_str());
    let mut version = shared.version.subscribe();
    let removed = async {
        while shared.lock().locals.get(&task).is_some_and(|local| local.auto_remove) {
            if version.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(10), removed).await;
}

/// Waits until the start of a container has failed; for ever, when it does not.
async fn failed_start(shared: &Arc<Shared>, container: &ContainerId) -> TaskError {
    let mut version = shared.version.subscribe();
    loop {
        {
            let state = shared.lock();
            let seen = state.observed.tasks.values().find(|t| t.container.as_ref().is_some_and(|c| c.id == *container));
            let failed = seen.filter(|t| t.activity.is_none()).and_then(|t| t.record.error.clone());
            if let Some(error) = failed {
                return error;
            }
        }
        if version.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Passes output on until the container ends (true) or the client goes (false).
fn receive(mut session: AttachSession, to: &mpsc::Sender<Frame>) -> bool {
    loop {
        let frame = match session.receive(None) {
            Ok(Some(AttachEvent::Output(stream, bytes))) => {
                let kind = if stream == Stream::Stderr { Kind::Stderr } else { Kind::Stdout };
                Frame::new(kind, bytes)
            }
            Ok(Some(AttachEvent::TooSlow)) => {
                let text = "output was left out because it was not read in time; `orch logs` has all of it";
                let _ = to.blocking_send(Frame::new(Kind::Notice, text.as_bytes().to_vec()));
                return true;
            }
            Ok(Some(AttachEvent::Ended)) => return true,
            Ok(None) if session.is_over() => return false,
            Ok(None) => continue,
            // The shim is gone, and with it the container.
            Err(_) => return true,
        };
        if to.blocking_send(frame).is_err() {
            return false;
        }
    }
}
