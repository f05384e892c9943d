//! The standard streams of an exec: pipes are polled by the runtime, a terminal is read on a thread of its own, since the kernel gives no
//! safe way to poll both alike.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use orch_api::stream::{Frame, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Read at once.
const CHUNK: usize = 32 * 1024;

/// Passes what comes from a pipe on, to its end.
pub(super) fn forward_pipe(from: OwnedFd, kind: Kind, to: mpsc::Sender<Frame>) -> io::Result<JoinHandle<()>> {
    let mut from = pipe::Receiver::from_owned_fd(from)?;
    Ok(tokio::spawn(async move {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if to.send(Frame::new(kind, buffer.freeze())).await.is_err() {
                        return;
                    }
                }
            }
        }
    }))
}

/// Passes what comes from a terminal on, to its end, which a terminal tells by an error.
pub(super) fn forward_terminal(from: OwnedFd, to: mpsc::Sender<Frame>) -> JoinHandle<()> {
    tokio::task::spawn_blocking(move || {
        let mut from = File::from(from);
        let mut buffer = vec![0u8; CHUNK];
        while let Ok(count) = from.read(&mut buffer) {
            let frame = Frame::new(Kind::Stdout, Bytes::copy_from_slice(&buffer[..count]));
            if count == 0 || to.blocking_send(frame).is_err() {
                return;
            }
        }
    })
}

/// Where input goes.
pub(super) enum Input {
    /// Nowhere (any more).
    Closed,
    /// A pipe.
    Pipe(pipe::Sender),
    /// A terminal.
    Terminal(Arc<File>),
}

impl Input {
    /// A pipe's write end.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn pipe(to: OwnedFd) -> io::Result<Self> {
        Ok(Self::Pipe(pipe::Sender::from_owned_fd(to)?))
    }

    /// Writes; an input that nobody reads any more is closed.
    pub(super) async fn write(&mut self, bytes: Bytes) {
        let written = match self {
            Self::Closed => return,
            Self::Pipe(to) => to.write_all(&bytes).await.is_ok(),
            Self::Terminal(to) => {
                let to = to.clone();
                let write = move || (&*to).write_all(&bytes).is_ok();
                tokio::task::spawn_blocking(write).await.unwrap_or(false)
            }
        };
        if !written {
            *self = Self::Closed;
        }
    }

    /// There is no more. A terminal has no end of its own: the person types it.
    pub(super) fn end(&mut self) {
        if matches!(self, Self::Pipe(_)) {
            *self = Self::Closed;
        }
    }
}
