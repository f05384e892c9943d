//! Nodes talk to each other: connections by mutual TLS, and what goes over them.
//!
//! [`Peers`] is a node's own end: its certificate, and connections to others. [`listener`] takes connections in, [`guard`] decides who may
//! call what. Over these, [`session`] and [`link`] are the two ends of a node's conversation with a manager, [`heartbeat`] says that a
//! node lives, [`reach`] whether a silent one's host is there, [`steward`] is what the leader makes of that, [`transport`] carries raft's messages, [`forward`] passes on to the leader what only it can answer, and
//! [`relay`] to its node what is about a container there. [`images`] leads nodes to images that others have. [`renewal`] keeps the
//! certificate young, [`whereabouts`] the address true.

pub mod entry;
pub mod forward;
pub mod guard;
pub mod heartbeat;
pub mod images;
pub mod link;
pub mod listener;
pub mod reach;
pub mod relay;
pub mod renewal;
pub mod session;
pub mod steward;
pub mod transport;
pub mod whereabouts;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use orch_api::client::{Endpoint, connect_tls};
use orch_api::error::{ErrorBody, REMOVED};
use orch_api::tls::{self, Credentials, TlsError, Trust};
use orch_spec::assignment::NodeId;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_rustls::client::TlsStream;

use crate::identity::certificate::{Certificate, Unreadable};
use crate::identity::{Identity, IdentityError, Membership};

/// A conversation in which nobody speaks is probed so often, seconds: the least that there is.
const PROBE_SECONDS: u32 = 1;
/// What nobody has acknowledged for so long, milliseconds, ends it: beyond the stalls of a loaded network, and before its host is given up.
const LOST_MS: u32 = 3000;

/// How often a node that was removed asks whether that is so.
const REMOVED_PAUSE: Duration = Duration::from_secs(60);
/// How long connecting may take: a host that is gone refuses nothing, and the kernel would try for two minutes.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// By which thread the other end serves a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// By those of everything else.
    Ordinary,
    /// By the one that must not wait ([`urgency`](crate::urgency)): what is said there must be little.
    Urgent,
}

/// An upgraded connection to another node.
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// A node's own end cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// What is kept of it.
    #[error("read this node's identity")]
    Identity(#[from] IdentityError),
    /// TLS.
    #[error("use this node's certificate")]
    Tls(#[from] TlsError),
    /// TLS, as a server.
    #[error("use this node's certificate")]
    Server(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The certificate.
    #[error("read this node's certificate")]
    Certificate(#[from] Unreadable),
}

/// What the present certificate makes possible.
#[derive(Debug)]
struct Present {
    client: Arc<ClientConfig>,
    /// The same, for what must not wait.
    urgent: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    certificate: Certificate,
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    identity: Identity,
    present: Mutex<Option<Arc<Present>>>,
    membership: watch::Sender<Option<Membership>>,
    /// The managers have said that this node was removed.
    removed: watch::Sender<bool>,
    /// Another manager did not take this node for one.
    doubted: Notify,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peers(Arc<Inner>);

impl Peers {
    /// With what is kept in the identity's folder: nothing yet for a host that is alone.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn open(node: NodeId, identity: Identity) -> Result<Self, PeerError> {
        let membership = identity.membership()?;
        let inner = Inner {
            node,
            identity,
            present: Mutex::default(),
            membership: watch::Sender::new(membership),
            removed: watch::Sender::new(false),
            doubted: Notify::new(),
        };
        let peers = Self(Arc::new(inner));
        peers.reload()?;
        Ok(peers)
    }

    /// Takes up the certificate that is kept now. Connections that stand go on with the former one.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn reload(&self) -> Result<(), PeerError> {
        let Some(credentials) = self.0.identity.credentials()? else { return Ok(()) };
        let trust = Trust::Authority(credentials.authority.clone());
        let client = tls::client_config(trust, Some(&credentials))?;
        let mut urgent = client.clone();
        Arc::make_mut(&mut urgent).alpn_protocols = vec![listener::URGENT.to_vec()];
        let present = Present {
            client,
            urgent,
            server: server_config(&credentials)?,
            certificate: Certificate::read(credentials.chain.first().map_or(&[], |first| first.as_ref()))?,
        };
        *self.0.present.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(present));
        Ok(())
    }

    fn present(&self) -> Option<Arc<Present>> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node.
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// What is kept of who it is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Its certificate; `None` for a host that is alone.
    pub fn certificate(&self) -> Option<Certificate> {
        self.present().map(|present| present.certificate.clone())
    }

    /// How it takes connections in; `None` for a host that is alone.
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.present().map(|present| present.server.clone())
    }

    /// Which cluster it is a member of, now and whenever that changes.
    pub fn membership(&self) -> watch::Receiver<Option<Membership>> {
        self.0.membership.subscribe()
    }

    /// Remembers a membership, if it is another one.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn set_membership(&self, membership: Membership) -> Result<(), IdentityError> {
        if self.0.membership.borrow().as_ref() == Some(&membership) {
            return Ok(());
        }
        self.0.identity.keep_membership(&membership)?;
        self.0.membership.send_replace(Some(membership));
        Ok(())
    }

    /// Whether a manager has said that this node was removed from the cluster.
    pub fn is_removed(&self) -> bool {
        *self.0.removed.borrow()
    }

    /// Waits until a manager has said that this node was removed from the cluster.
    pub(crate) async fn removed(&self) {
        // The sender lives as long as this.
        let _ = self.0.removed.subscribe().wait_for(|removed| *removed).await;
    }

    /// Another manager has refused what only a manager may do.
    pub(crate) fn doubt(&self) {
        self.0.doubted.notify_one();
    }

    /// Waits until another manager has refused what only a manager may do.
    pub(crate) async fn doubted(&self) {
        self.0.doubted.notified().await;
    }

    /// Waits before something is asked of the managers again: what is usual, and long once they have said that this node was removed. Its
    /// number is never used again, so asking is for a mistake of theirs only.
    pub(crate) async fn pause(&self, usual: Duration) {
        let time = if self.is_removed() { REMOVED_PAUSE } else { usual };
        let mut removed = self.0.removed.subscribe();
        removed.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            // Whoever has asked meanwhile is let in after all.
            _ = removed.wait_for(|removed| !removed), if self.is_removed() => {}
        }
    }

    /// Learns from an answer whether this node is a member, which is told once.
    fn noted<T>(&self, answer: Result<T, CallError>) -> Result<T, CallError> {
        let removed = match &answer {
            Ok(_) => false,
            Err(CallError::Refused(detail)) if detail.code == REMOVED => true,
            Err(_) => return answer,
        };
        match (self.0.removed.send_replace(removed), removed) {
            (false, true) => tracing::warn!(
                "this node was removed from its cluster: what it runs goes on without anybody's care, until `orch cluster leave` here \
                 ends it and makes this host one that can join again"
            ),
            (true, false) => tracing::warn!("this node is a member of its cluster again"),
            _ => {}
        }
        answer
    }

    /// Where a client finds whoever has a certificate of this name; `None` for a host that is alone.
    pub fn endpoint(&self, address: &str, name: &str) -> Option<Endpoint> {
        let config = self.present()?.client.clone();
        Some(Endpoint::Tls { address: address.to_owned(), name: name.to_owned(), config })
    }

    /// Connects to whoever has a certificate of this name.
    ///
    /// # Errors
    /// The system's, what TLS has against it, or [`io::ErrorKind::NotConnected`] for a host that is alone.
    pub async fn connect(&self, address: &str, name: &str) -> io::Result<TlsStream<TcpStream>> {
        self.connect_in(Lane::Ordinary, address, name).await
    }

    async fn connect_in(&self, lane: Lane, address: &str, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let present = self.present().ok_or(io::ErrorKind::NotConnected)?;
        let config = match lane {
            Lane::Ordinary => present.client.clone(),
            Lane::Urgent => present.urgent.clone(),
        };
        let too_late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
        tokio::time::timeout(CONNECT_TIME, connect_tls(address, name, config)).await.unwrap_or_else(too_late)
    }

    /// Sends one request over a connection of its own.
    ///
    /// # Errors
    /// The connection's, and what the other side has refused with.
    pub async fn post(&self, address: &str, name: &str, path: &str, body: Vec<u8>) -> Result<Bytes, CallError> {
        let stream = self.connect(address, name).await?;
        self.noted(post(stream, path, body).await)
    }

    /// `DELETE`, over a connection of its own.
    ///
    /// # Errors
    /// What the other side has refused with, or `unavailable`.
    pub async fn delete(&self, address: &str, name: &str, path: &str) -> Result<(), orch_api::error::ErrorDetail> {
        let sending = async {
            let stream = self.connect(address, name).await?;
            send(stream, Method::DELETE, path, Vec::new()).await
        };
        match sending.await {
            Ok(_) => Ok(()),
            Err(CallError::Refused(detail)) => Err(detail),
            Err(error) => {
                let text = format!("{address}: {}", orch_api::error::chain(&error));
                Err(orch_api::error::ErrorDetail::new("unavailable", text))
            }
        }
    }

    /// Connects and upgrades the connection to a protocol.
    ///
    /// # Errors
    /// The connection's, and what the other side has refused with.
    pub async fn upgrade(
        &self,
        lane: Lane,
        address: &str,
        name: &str,
        path: &str,
        protocol: &'static str,
    ) -> Result<Upgraded, CallError> {
        let stream = self.connect_in(lane, address, name).await?;
        self.noted(upgrade(stream, path, protocol).await)
    }
}

async fn upgrade(stream: TlsStream<TcpStream>, path: &str, protocol: &'static str) -> Result<Upgraded, CallError> {
    notice_its_end(stream.get_ref().0)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::builder().method(Method::POST).uri(path).header(HOST, "orch");
    let request = request.header(CONNECTION, "Upgrade").header(UPGRADE, protocol).body(Full::new(Bytes::new()));
    let response = sender.send_request(request.map_err(io::Error::other)?).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(response).await);
    }
    Ok(TokioIo::new(hyper::upgrade::on(response).await?))
}

/// Has the kernel end a connection over which nothing comes through: left to itself, it would repeat what was lost later and later, and say
/// nothing of a host that is gone for a quarter of an hour. For conversations that are always read; a reader who pauses is no lost host.
fn notice_its_end(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &PROBE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &PROBE_SECONDS)?;
    // tcp(7): with it, it is this time that decides and not the number of probes.
    setsockopt(stream, sockopt::TcpUserTimeout, &LOST_MS)?;
    Ok(())
}

/// A call of another node has failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It has refused.
    #[error(transparent)]
    Refused(#[from] orch_api::error::ErrorDetail),
    /// The connection.
    #[error("connect")]
    Connect(#[from] io::Error),
    /// HTTP.
    #[error("the connection broke")]
    Http(#[from] hyper::Error),
}

async fn refused(response: hyper::Response<hyper::body::Incoming>) -> CallError {
    let status = response.status();
    let bytes = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return error.into(),
    };
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => body.error.into(),
        Err(_) => io::Error::other(format!("{status} {}", String::from_utf8_lossy(&bytes).trim())).into(),
    }
}

/// Sends one request over this connection.
///
/// # Errors
/// The connection's, and what the other side has refused with.
pub async fn post(stream: TlsStream<TcpStream>, path: &str, body: Vec<u8>) -> Result<Bytes, CallError> {
    send(stream, Method::POST, path, body).await
}

async fn send(stream: TlsStream<TcpStream>, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, CallError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(HOST, "orch");
    let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body)));
    let response = sender.send_request(request.map_err(io::Error::other)?).await?;
    if !response.status().is_success() {
        return Err(refused(response).await);
    }
    Ok(response.into_body().collect().await?.to_bytes())
}

fn server_config(own: &Credentials) -> Result<Arc<ServerConfig>, PeerError> {
    let wrong = |e: Box<dyn std::error::Error + Send + Sync>| PeerError::Server(e);
    let mut roots = RootCertStore::empty();
    roots.add(own.authority.clone()).map_err(|e| wrong(e.into()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
        // A new node has no certificate yet. What may be called without one is the guard's business.
        .allow_unauthenticated()
        .build()
        .map_err(|e| wrong(e.into()))?;
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong(e.into()))?
        .with_client_cert_verifier(Arc::new(guard::WheneverValid(verifier)))
        .with_single_cert(own.chain.clone(), own.key.clone_key())
        .map_err(|e| wrong(e.into()))?;
    Ok(Arc::new(config))
}
