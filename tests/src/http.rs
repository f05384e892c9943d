//! A small HTTP client: what a user's browser would see.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket;

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

/// Connects from a port of one's choice, also when it is in use towards somebody else.
///
/// # Errors
/// When no connection comes about in time, or the port cannot be had.
pub fn connect_from(port: u16, address: SocketAddr) -> Result<TcpStream, String> {
    let failed = |error: nix::Error| format!("connect to {address} from port {port}: {error}");
    let flags = socket::SockFlag::SOCK_CLOEXEC;
    let own = socket::socket(socket::AddressFamily::Inet, socket::SockType::Stream, flags, None).map_err(failed)?;
    let stream = TcpStream::from(own);
    socket::setsockopt(&stream, socket::sockopt::ReuseAddr, &true).map_err(failed)?;
    let patience = nix::sys::time::TimeVal::new(TIMEOUT.as_secs().try_into().unwrap_or(5), 0);
    socket::setsockopt(&stream, socket::sockopt::SendTimeout, &patience).map_err(failed)?;
    socket::setsockopt(&stream, socket::sockopt::ReceiveTimeout, &patience).map_err(failed)?;
    socket::bind(stream.as_raw_fd(), &socket::SockaddrIn::new(0, 0, 0, 0, port)).map_err(failed)?;
    let SocketAddr::V4(to) = address else { return Err(format!("{address} is not IPv4")) };
    socket::connect(stream.as_raw_fd(), &socket::SockaddrIn::from(to)).map_err(failed)?;
    Ok(stream)
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

/// What a server has answered, whatever it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The lines before the body.
    pub head: String,
    /// The body.
    pub body: String,
}

/// A request to a server at a unix socket, with a JSON body unless that is empty and with more lines of header (`name: value`).
///
/// # Errors
/// When there is no answer, or not all of it, before `patience` is over: nobody can say whether the request was carried out.
pub fn call_at_socket(
    socket: &Path,
    [method, path]: [&str; 2],
    header: &[String],
    body: &str,
    patience: Duration,
) -> Result<Answer, String> {
    let address = socket.display();
    let io = |e: std::io::Error| format!("talk to {address}: {e}");
    let stream = UnixStream::connect(socket).map_err(|e| format!("connect to {address}: {e}"))?;
    stream.set_read_timeout(Some(patience)).map_err(io)?;
    stream.set_write_timeout(Some(patience)).map_err(io)?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: orch\r\nConnection: close\r\n");
    for line in header {
        request.push_str(line);
        request.push_str("\r\n");
    }
    if !body.is_empty() {
        request.push_str("Content-Type: application/json\r\n");
    }
    let length = body.len();
    (&stream).write_all(format!("{request}Content-Length: {length}\r\n\r\n{body}").as_bytes()).map_err(io)?;
    let mut reader = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).map_err(io)? > 2 {
        head.push_str(&line.to_ascii_lowercase());
        line.clear();
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| format!("no HTTP from {address}: {head:?}"))?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = Vec::new();
    // A body that says its length is whole, or no answer.
    match length {
        Some(length) => {
            body.resize(length, 0);
            reader.read_exact(&mut body).map_err(io)?;
        }
        None => drop(reader.read_to_end(&mut body).map_err(io)?),
    }
    Ok(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
}

/// The lines of a stream at a unix socket, as they come: ends with the server, or when nothing has come for `patience`.
///
/// # Errors
/// When no stream is given; says what instead.
pub fn lines_at_socket(
    socket: &Path,
    path: &str,
    patience: Duration,
) -> Result<impl Iterator<Item = String> + use<>, String> {
    let address = socket.display().to_string();
    let io = |e: std::io::Error| format!("talk to {address}: {e}");
    let stream = UnixStream::connect(socket).map_err(|e| format!("connect to {address}: {e}"))?;
    stream.set_read_timeout(Some(patience)).map_err(io)?;
    // Of this version nothing comes in chunks.
    (&stream).write_all(format!("GET {path} HTTP/1.0\r\nHost: orch\r\n\r\n").as_bytes()).map_err(io)?;
    let mut reader = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).map_err(io)? > 2 {
        head.push_str(&line);
        line.clear();
    }
    if head.split(' ').nth(1) != Some("200") {
        return Err(format!("{address} says {head}"));
    }
    // What was cut off in the middle is no line.
    let whole = |mut line: String| (line.pop() == Some('\n')).then_some(line);
    let next = move || {
        let mut line = String::new();
        let read = reader.read_line(&mut line).ok()?;
        if read == 0 { None } else { whole(line) }
    };
    Ok(std::iter::from_fn(next))
}

/// Asks for a page on a connection, which ends with it.
///
/// # Errors
/// See [`get`].
pub fn ask(stream: &mut (impl Read + Write), address: &str, path: &str) -> Result<String, String> {
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
