//! A small HTTP client: what a user's browser would see.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a page may take: longer than any server here needs, shorter than a test's patience.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Fetches `path` from `address`.
///
/// # Errors
/// When no connection comes about, or the answer is not a page with status 200; says which.
pub fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(|e| format!("connect to {address}: {e}"))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|e| format!("talk to {address}: {e}"))?;
    ask(&mut stream, &address.to_string(), path)
}

/// The same at a unix socket.
///
/// # Errors
/// See [`get`].
pub fn get_at_socket(socket: &Path, path: &str) -> Result<String, String> {
    let address = socket.display().to_string();
    let mut stream = UnixStream::connect(socket).map_err(|e| format!("connect to {address}: {e}"))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|e| format!("talk to {address}: {e}"))?;
    ask(&mut stream, &address, path)
}

fn ask(stream: &mut (impl Read + Write), address: &str, path: &str) -> Result<String, String> {
    let io = |e: std::io::Error| format!("talk to {address}: {e}");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: orch\r\n\r\n").map_err(io)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(io)?;
    let answer = String::from_utf8_lossy(&bytes).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(format!("no HTTP from {address}: {answer:?}"));
    };
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(format!("{address} says {status}: {body}"))
    }
}
