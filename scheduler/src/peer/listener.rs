//! Takes connections of other hosts in.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::Service;

use super::Peers;
use super::guard::Caller;
use crate::identity::certificate::Certificate;

/// Connections at once. Nodes keep a handful each; more wait in the socket's queue.
const CONNECTIONS: usize = 4096;
/// Time for TLS and for a header: whoever takes longer holds a place that others need.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest header.
const HEADER: usize = 64 * 1024;

/// Serves connections until the task is dropped. The router sees in each request's extensions who calls ([`Caller`]).
pub async fn serve(listener: TcpListener, peers: Peers, router: Router) {
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
        let (peers, router) = (peers.clone(), router.clone());
        tokio::spawn(async move {
            connection(stream, &peers, router).await;
            drop(permit);
        });
    }
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
