//! The HTTP client: one connection a request, over the agent's unix socket, mutual TLS, or a program such as ssh; made for short-lived
//! commands.
//!
//! Absent on purpose: a connection pool, retries and redirects. A command makes one to three requests, and whether to try again is its
//! decision.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderName, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::error::{ErrorBody, ErrorDetail};
use crate::stream::PROTOCOL;

/// Longest line of a newline-delimited stream that is accepted.
const MAX_LINE: usize = 16 << 20;

/// Header of an answer that comes from a state which may be behind: its index.
pub const STALE: &str = "orch-stale-index";

/// The last index that came with [`STALE`], and one more; 0 = none did.
static STALE_INDEX: AtomicU64 = AtomicU64::new(0);

/// The index of the state that an answer of this process's requests came from, when a manager has said that it may be behind the cluster's:
/// for a note to people beside what they asked for.
pub fn stale_index() -> Option<u64> {
    STALE_INDEX.load(Ordering::Relaxed).checked_sub(1)
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach the orch agent at {to}")]
    Connect {
        /// The socket or address.
        to: String,
        /// What connecting said.
        #[source]
        source: std::io::Error,
    },
    /// The agent refused or failed.
    #[error(transparent)]
    Refused(#[from] ErrorDetail),
    /// The connection broke, or what came is no HTTP.
    #[error("the connection to the orch agent broke while {doing}")]
    Broken {
        /// The request.
        doing: String,
        /// What the transport said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What came is not what this version understands.
    #[error("the agent's answer to {doing} is not understood; are agent and command of the same version?")]
    Answer {
        /// The request.
        doing: String,
        /// What decoding said.
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    /// Whether nobody answers any more, as while an agent is restarted: the same request may be answered later.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Broken { .. })
    }
}

/// The body of a request.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// An upgraded connection, framed by [`crate::stream`].
pub type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Where an agent is, and how it is reached.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A unix socket of this host.
    Unix(PathBuf),
    /// Another host, by mutual TLS.
    Tls {
        /// `address:port`.
        address: String,
        /// The name that its certificate must have.
        name: String,
        /// Own certificate, and whom to believe.
        config: Arc<rustls::ClientConfig>,
    },
    /// A program whose standard input and output are the connection (`ssh host orch system dial-stdio`).
    Program(Vec<String>),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tls { address, .. } => f.write_str(address),
            Self::Program(words) => f.write_str(&words.join(" ")),
        }
    }
}

/// How long connecting to another host, with all of TLS, may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Another try to connect begins so long after the last: more than the way there and back of most networks.
const NEXT_TRY: Duration = Duration::from_millis(250);
/// So many tries at once.
const TRIES: usize = 20;

/// Both directions of a connection.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl Endpoint {
    /// Connects.
    ///
    /// # Errors
    /// The system's, or what TLS has against it.
    pub async fn connect(&self) -> std::io::Result<Box<dyn Connection>> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tls { address, name, config } => {
                let connecting = connect_tls(address, name, config.clone());
                let elapsed = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not answer");
                Ok(Box::new(tokio::time::timeout(CONNECT_TIME, connecting).await.map_err(elapsed)??))
            }
            Self::Program(words) => {
                let (program, arguments) = words.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
                let mut child = tokio::process::Command::new(program)
                    .args(arguments)
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::piped())
                    .spawn()?;
                let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                };
                // It ends with its pipes; whoever waits for it is this task.
                tokio::spawn(async move { child.wait().await });
                Ok(Box::new(tokio::io::join(stdout, stdin)))
            }
        }
    }
}

/// Connects by TLS; whoever answers must have a certificate of this name.
///
/// # Errors
/// The system's, or what TLS has against it.
pub async fn connect_tls(
    address: &str,
    name: &str,
    config: Arc<rustls::ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = connect_tcp(address).await?;
    stream.set_nodelay(true)?;
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
    tokio_rustls::TlsConnector::from(config).connect(name, stream).await
}

/// Connects, trying anew beside the first try: a first packet that is lost is repeated by the kernel after one second, two, four, so that
/// a link that is back would be found long after it is.
async fn connect_tcp(address: &str) -> std::io::Result<TcpStream> {
    let mut tries = FuturesUnordered::new();
    loop {
        tries.push(TcpStream::connect(address));
        tokio::select! {
            Some(result) = tries.next() => return result,
            () = tokio::time::sleep(NEXT_TRY), if tries.len() < TRIES => {}
        }
    }
}

/// A client of one agent.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
}

impl Client {
    /// A client of the agent that listens at this unix socket.
    pub fn unix(socket: impl Into<PathBuf>) -> Self {
        Self::new(Endpoint::Unix(socket.into()))
    }

    /// A client of the agent there.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Where the agent is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `GET`, decoded.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.exchange(Method::GET, path, empty()).await
    }

    /// `POST` of a JSON body, decoded.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.exchange(Method::POST, path, json(path, body)?).await
    }

    /// `DELETE`, decoded.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.exchange(Method::DELETE, path, empty()).await
    }

    /// `POST` or `PUT` of a stream of bytes (a tar), decoded.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upload<T, S>(&self, method: Method, path: &str, content: S) -> Result<T, ClientError>
    where
        T: DeserializeOwned,
        S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    {
        self.upload_encoded(method, path, None, content).await
    }

    /// The same for bytes that are encoded for the way.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upload_encoded<T, S>(
        &self,
        method: Method,
        path: &str,
        encoding: Option<&'static str>,
        content: S,
    ) -> Result<T, ClientError>
    where
        T: DeserializeOwned,
        S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    {
        let body = BodyExt::boxed(StreamBody::new(content.map(|chunk| chunk.map(Frame::data))));
        let header = encoding.map(|encoding| (CONTENT_ENCODING, encoding));
        let response = self.send_with(method, path, body, header).await?;
        decoded(response, path).await
    }

    /// `GET` of a stream of bytes (a tar).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn download(&self, path: &str) -> Result<ByteStream, ClientError> {
        let response = self.send(Method::GET, path, empty(), None).await?;
        let encoding = response.headers().get(CONTENT_ENCODING).and_then(|value| value.to_str().ok());
        let encoding = encoding.map(str::to_owned);
        Ok(ByteStream { body: response.into_body(), doing: path.to_owned(), encoding })
    }

    /// `GET` of newline-delimited JSON.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lines<T: DeserializeOwned>(&self, path: &str) -> Result<Lines<T>, ClientError> {
        let bytes = self.download(path).await?;
        Ok(Lines { bytes, buffer: BytesMut::new(), ended: false, item: std::marker::PhantomData })
    }

    /// `POST` that upgrades the connection.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upgrade(&self, path: &str, body: &impl Serialize) -> Result<Upgraded, ClientError> {
        self.upgrade_to(path, PROTOCOL, body).await
    }

    /// `POST` that upgrades the connection to this protocol.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upgrade_to(
        &self,
        path: &str,
        protocol: &'static str,
        body: &impl Serialize,
    ) -> Result<Upgraded, ClientError> {
        let response = self.send(Method::POST, path, json(path, body)?, Some(protocol)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let detail = ErrorDetail::new("failed", format!("the agent did not upgrade the connection for {path}"));
            return Err(ClientError::Refused(detail));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| broken(path, e))?;
        Ok(TokioIo::new(upgraded))
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, ClientError> {
        decoded(self.send(method, path, body, None).await?, path).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
        upgrade: Option<&'static str>,
    ) -> Result<Response<Incoming>, ClientError> {
        let headers = upgrade.map(|protocol| [(CONNECTION, "Upgrade"), (UPGRADE, protocol)]);
        self.send_with(method, path, body, headers.into_iter().flatten()).await
    }

    async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Body,
        headers: impl IntoIterator<Item = (HeaderName, &'static str)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let connect = |source| ClientError::Connect { to: self.endpoint.to_string(), source };
        let stream = self.endpoint.connect().await.map_err(connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(path, e))?;
        tokio::spawn(connection.with_upgrades());
        let mut request =
            Request::builder().method(method).uri(path).header(HOST, "orch").header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|e| broken(path, e))?;
        let response = sender.send_request(request).await.map_err(|e| broken(path, e))?;
        let stale = response.headers().get(STALE).and_then(|index| index.to_str().ok()?.parse::<u64>().ok());
        if let Some(index) = stale {
            STALE_INDEX.store(index.saturating_add(1), Ordering::Relaxed);
        }
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = response.into_body().collect().await.map_err(|e| broken(path, e))?.to_bytes();
        let detail = serde_json::from_slice::<ErrorBody>(&bytes).map(|b| b.error).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&bytes);
            ErrorDetail::new("failed", format!("{path}: {status} {}", text.trim()))
        });
        Err(ClientError::Refused(detail))
    }
}

async fn decoded<T: DeserializeOwned>(response: Response<Incoming>, path: &str) -> Result<T, ClientError> {
    let bytes = response.into_body().collect().await.map_err(|e| broken(path, e))?.to_bytes();
    // An empty answer stands for "done": `()` and `Option` decode from null.
    let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
    serde_json::from_slice(text).map_err(|source| ClientError::Answer { doing: path.to_owned(), source })
}

/// Escapes one segment or value of a URL (RFC 3986: everything but the unreserved characters).
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}

fn json(path: &str, body: &impl Serialize) -> Result<Body, ClientError> {
    let bytes = serde_json::to_vec(body).map_err(|source| ClientError::Answer { doing: path.to_owned(), source })?;
    Ok(Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed())
}

fn broken(path: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Broken { doing: path.to_owned(), source: source.into() }
}

/// A streamed answer.
#[derive(Debug)]
pub struct ByteStream {
    body: Incoming,
    doing: String,
    encoding: Option<String>,
}

impl ByteStream {
    /// How the bytes are encoded for the way, if they are.
    pub fn encoding(&self) -> Option<&str> {
        self.encoding.as_deref()
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks before the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(e)) => return Err(broken(&self.doing, e)),
            }
        }
    }
}

/// Newline-delimited JSON as it comes.
#[derive(Debug)]
pub struct Lines<T> {
    bytes: ByteStream,
    buffer: BytesMut,
    ended: bool,
    item: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next object; `None` at the end.
    ///
    /// # Errors
    /// When the connection breaks, a line is no `T`, or a line is longer than 16 MiB.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(searched + at + 1);
                searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return self.decode(&line).map(Some);
            }
            searched = self.buffer.len();
            if self.ended || searched > MAX_LINE {
                let rest = std::mem::take(&mut self.buffer);
                return if rest.is_empty() { Ok(None) } else { self.decode(&rest).map(Some) };
            }
            match self.bytes.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => self.ended = true,
            }
        }
    }

    fn decode(&self, line: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(line).map_err(|source| ClientError::Answer { doing: self.bytes.doing.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_escaped_for_a_url() {
        assert_eq!(escape("a/b:c d"), "a%2Fb%3Ac%20d");
    }
}
