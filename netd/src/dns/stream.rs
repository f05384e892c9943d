//! TCP: rare (answers that UDP cut), so tasks on the forwarder's runtime are good enough.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::listener::Asker;
use super::query::Transport;
use super::random::Shuffle;
use super::serve::{ReplyTo, Shared};

/// A connection without a question for this long is closed (RFC 7766 §6.2.3 recommends a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// A client must take an answer, and finish a question it began, within this time.
const TRANSFER: Duration = Duration::from_secs(5);
/// Longest question; as for UDP.
const LARGEST: usize = 4096;
/// Pause when the process has no descriptors left, which accepting again at once would not mend.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Accepts and serves a sandbox's connections until the task is aborted, which closes them too.
pub(crate) async fn serve(listener: StdTcpListener, asker: Arc<Asker>, shared: Arc<Shared>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, sandbox = %asker.sandbox, "cannot serve DNS over TCP");
            return;
        }
    };
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                // Beyond the bound a connection is closed at once; the client sees that, and none waits unserved.
                let Some(slot) = asker.connect() else { continue };
                let (asker, shared) = (asker.clone(), shared.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    // Whatever ends a connection is the client's to notice.
                    let _ = converse(stream, &asker, &shared).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, sandbox = %asker.sandbox, "cannot accept a DNS connection");
                sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Answers one question after the other.
async fn converse(mut stream: TcpStream, asker: &Asker, shared: &Shared) -> io::Result<()> {
    let mut shuffle = Shuffle::new();
    let mut packet = vec![0; LARGEST];
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if length > LARGEST {
            return Ok(());
        }
        timeout(TRANSFER, stream.read_exact(&mut packet[..length])).await??;
        let (later, answer) = oneshot::channel();
        let now = shared.handle(asker, &packet[..length], Transport::Tcp, &mut shuffle, || ReplyTo::Tcp(later));
        let answer = match now {
            Some(answer) => answer,
            // The sender is gone when the message was one to be silent about; then there is no sense in going on.
            None => match answer.await {
                Ok(answer) => answer,
                Err(_) => return Ok(()),
            },
        };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&answer);
        timeout(TRANSFER, stream.write_all(&framed)).await??;
    }
}
