//! Takes connections of other hosts in, and has those that must not wait served apart from all others.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use super::Peers;
use super::guard::Caller;
use crate::identity::certificate::Certificate;

/// Connections at once. Nodes keep a handful each; more wait in the socket's queue.
const CONNECTIONS: usize = 4096;
/// Time for TLS and for a header: whoever takes longer holds a place that others need.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a connection that must not wait calls itself in its first message (ALPN). It is known before anything is read, so that the
/// connection can still be given to whichever thread.
pub(super) const URGENT: &[u8] = b"orch-urgent";
/// As much as is looked at of that message, bytes: several times one of ours.
const HELLO: usize = 2048;
/// Largest header.
const HEADER: usize = 64 * 1024;

/// Where connections go.
#[derive(Debug, Clone)]
pub struct Ways {
    /// All routes.
    pub ordinary: Router,
    /// The runtime that serves them.
    pub runtime: Handle,
    /// Routes of what must not wait: served where the listener itself is ([`urgency`](crate::urgency)).
    pub urgent: Router,
}

/// Serves connections until the task is dropped. The routers see in each request's extensions who calls ([`Caller`]).
pub async fn serve(listener: TcpListener, peers: Peers, ways: Ways) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: wait for some to come back instead of spinning.
                tracing::warn!(%error, "a connection of another host could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        tokio::spawn(receive(stream, peers.clone(), ways.clone(), permit));
    }
}

/// Has a connection served where it belongs.
async fn receive(stream: TcpStream, peers: Peers, ways: Ways, permit: OwnedSemaphorePermit) {
    let mut hello = [0; HELLO];
    let Ok(Ok(length)) = tokio::time::timeout(PATIENCE, stream.peek(&mut hello)).await else { return };
    if is_urgent(&hello[..length]) {
        connection(stream, &peers, ways.urgent).await;
        return drop(permit);
    }
    let Ok(stream) = stream.into_std() else { return };
    ways.runtime.spawn(async move {
        match TcpStream::from_std(stream) {
            Ok(stream) => connection(stream, &peers, ways.ordinary).await,
            Err(error) => tracing::warn!(%error, "a connection of another host could not be taken in"),
        }
        drop(permit);
    });
}

/// Whether a connection that begins so asks not to be kept waiting. Who says it in pieces waits.
fn is_urgent(mut hello: &[u8]) -> bool {
    let mut acceptor = Acceptor::default();
    if acceptor.read_tls(&mut hello).is_err() {
        return false;
    }
    // What is no TLS is refused, with a word, where the connection is served.
    let Ok(Some(accepted)) = acceptor.accept() else { return false };
    accepted.client_hello().alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == URGENT))
}

async fn connection(stream: TcpStream, peers: &Peers, router: Router) {
    let from = stream.peer_addr().ok();
    let _ = stream.set_nodelay(true);
    let Some(config) = peers.server_config() else { return };
    let accepting = tokio_rustls::TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(PATIENCE, accepting).await {
        Ok(Ok(stream)) => stream,
        // Whoever only asks whether this host is there, or connects twice to be sure, goes again without a word.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return,
        Ok(Err(error)) => {
            tracing::info!(?from, %error, "a connection of another host was refused");
            return;
        }
        Err(_) => return,
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let caller = match shown.map(|certificate| Certificate::read(certificate)) {
        None => Caller::Nobody,
        Some(Ok(certificate)) => Caller::Certified(Arc::new(certificate)),
        Some(Err(error)) => {
            tracing::info!(?from, %error, "a connection of another host was refused");
            return;
        }
    };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(caller.clone());
        router.clone().call(request)
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().max_buf_size(HEADER).header_read_timeout(PATIENCE).timer(hyper_util::rt::TokioTimer::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(?from, %error, "a connection of another host ended");
    }
}
