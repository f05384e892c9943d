//! One interactive connection to a process in a container: standard streams, window size, signals, detaching.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::Result;
use orch_api::client::Upgraded;
use orch_api::error::ErrorDetail;
use orch_api::node::Created;
use orch_api::stream::{Frame, Kind, read_frame, write_frame};
use tokio::io::{AsyncReadExt, WriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};
use crate::printer;
use crate::terminal::{self, DetachKeys, RawMode};

/// How a session behaves.
pub(super) struct SessionOptions<'a> {
    /// Forward standard input.
    pub stdin: bool,
    /// It has a terminal: raw mode, window size.
    pub tty: bool,
    /// Pass SIGINT, SIGTERM and the like on.
    pub signals: bool,
    /// Keys that detach; empty = none.
    pub detach_keys: &'a str,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process ended with this code.
    Exited(i32),
    /// The person detached.
    Detached,
}

impl Ended {
    /// As the exit of the command.
    pub(super) fn exit(self) -> Exit {
        match self {
            Self::Exited(code) => Exit::Code(code),
            Self::Detached => Exit::Done,
        }
    }
}

/// Rows and columns of the terminal, when standard output is one.
pub(super) fn window() -> Option<(u16, u16)> {
    std::io::stdout().is_terminal().then(|| terminal::size(std::io::stdout().as_fd())).flatten()
}

/// Runs a session to its end.
///
/// # Errors
/// When the connection breaks, or the node says that it could not run the process.
pub(super) async fn run(connection: Upgraded, options: &SessionOptions<'_>) -> Result<Ended> {
    run_started(connection, options, |_| Ok(())).await
}

/// The same of a container that is made for it, which is told of when it has been started. What cannot be done then is only said.
///
/// # Errors
/// As [`run`].
pub(super) async fn run_started(
    connection: Upgraded,
    options: &SessionOptions<'_>,
    started: impl FnOnce(&Created) -> Result<()>,
) -> Result<Ended> {
    let mut started = Some(started);
    let mut keys = DetachKeys::parse(if options.tty { options.detach_keys } else { "" })?;
    let (mut reader, mut writer) = tokio::io::split(connection);
    let raw = (options.tty && options.stdin).then(RawMode::enter).flatten();
    let mut window_change = signal(SignalKind::window_change())?;
    let mut passed = passed_signals(options.signals && raw.is_none())?;
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0u8; 32 * 1024];
    let mut input_open = options.stdin;
    let ended = loop {
        tokio::select! {
            frame = read_frame(&mut reader) => {
                let Some(frame) = frame? else {
                    break Err(Failure::new(Exit::Failed, "the agent ended the connection").into());
                };
                match frame.kind {
                    Kind::Stdout => printer::bytes(&frame.payload),
                    Kind::Stderr => printer::error_bytes(&frame.payload),
                    Kind::Notice => printer::say(&String::from_utf8_lossy(&frame.payload)),
                    Kind::Exit => break Ok(Ended::Exited(frame.number().unwrap_or(1))),
                    Kind::Error => break Err(refused(&frame)),
                    Kind::Started => {
                        if let (Some(tell), Ok(made)) = (started.take(), serde_json::from_slice(&frame.payload))
                            && let Err(error) = tell(&made)
                        {
                            printer::say(&format!("warning: {error:#}"));
                        }
                    }
                    _ => {}
                }
            }
            count = stdin.read(&mut buffer), if input_open => {
                let count = count.unwrap_or(0);
                if count == 0 {
                    input_open = false;
                    // A node that has closed its side has ended the session: what it said last is still to be read.
                    let _ = write_frame(&mut writer, &Frame::new(Kind::StdinEof, Vec::new())).await;
                    continue;
                }
                let (pass, detach) = keys.filter(&buffer[..count]);
                if detach {
                    break Ok(Ended::Detached);
                }
                if !pass.is_empty() && write_frame(&mut writer, &Frame::new(Kind::Stdin, pass)).await.is_err() {
                    input_open = false;
                }
            }
            _ = window_change.recv() => resize(&mut writer, options.tty).await,
            number = next_signal(&mut passed) => {
                let _ = write_frame(&mut writer, &Frame::signal(number)).await;
            }
        }
    };
    drop(raw);
    ended
}

async fn resize(writer: &mut WriteHalf<Upgraded>, tty: bool) {
    if let Some((rows, columns)) = window().filter(|_| tty) {
        let _ = write_frame(writer, &Frame::resize(rows, columns)).await;
    }
}

fn refused(frame: &Frame) -> anyhow::Error {
    let detail = serde_json::from_slice::<ErrorDetail>(&frame.payload)
        .unwrap_or_else(|_| ErrorDetail::new("failed", String::from_utf8_lossy(&frame.payload)));
    orch_api::client::ClientError::Refused(detail).into()
}

fn passed_signals(pass: bool) -> Result<Vec<(i32, Signal)>> {
    if !pass {
        return Ok(Vec::new());
    }
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    kinds.into_iter().map(|kind| Ok((kind.as_raw_value(), signal(kind)?))).collect()
}

/// The next signal to pass on; never, when none is.
async fn next_signal(signals: &mut [(i32, Signal)]) -> i32 {
    std::future::poll_fn(|context| {
        for (number, signal) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*number);
            }
        }
        std::task::Poll::Pending
    })
    .await
}
