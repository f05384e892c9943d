//! One netlink socket that sends many requests in one system call and tells afterwards which of them failed.
//!
//! The kernel answers a request that failed whether or not it asked for an answer, so only the last request of a batch
//! asks: a batch of a hundred costs one `sendmsg` and, when all went well, one `recvmsg`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::sys::{Socket, SocketAddr};

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 4;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub(crate) const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`: an error, or with code 0 an acknowledgement.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const DONE: u16 = 3;
/// Bytes of a message header.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words in an extended acknowledgement.
const ATTRIBUTE_MESSAGE: u16 = 1;
/// `NLM_F_ACK_TLVS`: attributes follow the error.
const ACK_TLVS: u16 = 0x200;
/// Send and receive buffers in bytes. The largest batch we know, 10 000 ports with all that belongs to them, is about 2 MB
/// on the wire; the kernel counts its own overhead too.
const BUFFER: usize = 32 << 20;
/// The kernel answers from inside `sendmsg`; an answer that is not there after this long never comes.
const ANSWER: Duration = Duration::from_secs(10);

/// Why one request failed, in the kernel's words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{errno}{}", detail(.message))]
pub struct NetlinkError {
    /// The error number.
    pub errno: Errno,
    /// The kernel's explanation, where it gave one.
    pub message: Option<String>,
    /// Place of the failed request in its batch.
    pub request: usize,
}

fn detail(message: &Option<String>) -> String {
    message.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

impl NetlinkError {
    pub(crate) fn from_io(error: &io::Error) -> NetlinkError {
        NetlinkError {
            errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            message: Some("no answer from the netlink socket".into()),
            request: 0,
        }
    }
}

/// Requests to send together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Where each request starts.
    starts: Vec<usize>,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch::default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Adds a request; `body` writes what follows the header.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&[0; HEADER]);
        body(&mut self.bytes);
        let length = self.bytes.len() - start;
        self.bytes[start..start + 4].copy_from_slice(&(length as u32).to_ne_bytes());
        self.bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[start + 6..start + 8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        pad(&mut self.bytes);
    }

    /// Adds a header flag to a request.
    pub(crate) fn add_flag(&mut self, request: usize, flag: u16) {
        let at = self.starts[request] + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | flag;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }

    fn number(&mut self, first: u32) {
        for (index, start) in self.starts.iter().enumerate() {
            let sequence = first.wrapping_add(index as u32);
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
    }
}

/// Fills up to the four bytes that netlink aligns everything to.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Appends an attribute.
pub(crate) fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    pad(bytes);
}

/// Appends a text attribute, with the NUL that the kernel wants.
pub(crate) fn text(bytes: &mut Vec<u8>, kind: u16, value: &str) {
    bytes.extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(0);
    pad(bytes);
}

/// Appends a number in network order, as all of netfilter wants it.
pub(crate) fn number(bytes: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(bytes, kind, &value.to_be_bytes());
}

/// Appends an attribute that holds attributes.
pub(crate) fn nest(bytes: &mut Vec<u8>, kind: u16, inside: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    inside(bytes);
    let length = (bytes.len() - start) as u16;
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    // NLA_F_NESTED: nf_tables does not insist on it, other subsystems do.
    bytes[start + 2..start + 4].copy_from_slice(&(kind | 0x8000).to_ne_bytes());
}

/// The attributes in `bytes`: type without flags, and value. Stops at the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A connected netlink socket of the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    socket: Arc<Socket>,
    port: u32,
    sequence: u32,
    answer: Vec<u8>,
}

/// A socket's place in a multicast group, which may be taken and left while somebody reads the socket.
#[derive(Debug)]
pub(crate) struct Membership {
    socket: Arc<Socket>,
    group: u32,
}

impl Membership {
    pub(crate) fn join(&self) -> io::Result<()> {
        self.socket.add_membership(self.group)
    }

    pub(crate) fn leave(&self) -> io::Result<()> {
        self.socket.drop_membership(self.group)
    }
}

/// One message from the kernel.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    /// Port of the socket whose request this is about.
    pub(crate) port: u32,
    pub(crate) body: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let length = word(0)? as usize;
        let message = Message {
            kind: half(4)?,
            flags: half(6)?,
            sequence: word(8)?,
            port: word(12)?,
            body: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

impl NetlinkSocket {
    /// Opens one of the given protocol (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
    pub(crate) fn open(protocol: i32) -> io::Result<NetlinkSocket> {
        let mut socket = Socket::new(protocol as isize)?;
        // Explanations cost nothing when nothing fails; the echo of our own request in each error is of no use.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        // Without CAP_NET_ADMIN in the first user namespace FORCE is refused; the ordinary limit then has to do.
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_err() {
            let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
        }
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        }
        let answer = TimeVal::new(ANSWER.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &answer).map_err(io::Error::from)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(NetlinkSocket { socket: Arc::new(socket), port, sequence: 1, answer: Vec::with_capacity(64 << 10) })
    }

    /// This socket's place in a multicast group, not taken yet.
    pub(crate) fn membership(&self, group: u32) -> Membership {
        Membership { socket: Arc::clone(&self.socket), group }
    }

    /// Sends all requests; the answer has the error of each one that failed. The kernel goes on after a failed one.
    pub(crate) fn send(&mut self, mut batch: Batch) -> Result<(), Vec<NetlinkError>> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.len() - 1;
        batch.add_flag(last, ACK);
        self.exchange(batch, last)
    }

    /// Sends a batch whose request `asking` already decides when the answer is complete.
    pub(crate) fn exchange(&mut self, mut batch: Batch, asking: usize) -> Result<(), Vec<NetlinkError>> {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(batch.len() as u32);
        batch.number(first);
        let io_error = |error: io::Error| vec![NetlinkError::from_io(&error)];
        self.socket.send(&batch.bytes, 0).map_err(io_error)?;
        let mut errors = Vec::new();
        loop {
            self.receive().map_err(io_error)?;
            for message in messages(&self.answer) {
                let request = message.sequence.wrapping_sub(first) as usize;
                // An answer to an earlier exchange that was given up.
                if message.kind != ERROR || request >= batch.len() {
                    continue;
                }
                let error = read_error(&message, request);
                let failed_as_a_whole = error.is_some() && request == 0 && asking > 0;
                errors.extend(error);
                if request == asking || failed_as_a_whole && self.is_drained() {
                    return if errors.is_empty() { Ok(()) } else { Err(errors) };
                }
            }
        }
    }

    /// Whether no further answer waits. The kernel has queued all answers to a batch before `sendmsg` returns.
    fn is_drained(&self) -> bool {
        let mut probe = Vec::with_capacity(1);
        self.socket.recv(&mut probe, libc::MSG_DONTWAIT | libc::MSG_PEEK).is_err()
    }

    /// Sends one request, for a dump or to be acknowledged, and hands every object's body that is answered, with its type, to `each`.
    pub(crate) fn dump(&mut self, mut request: Batch, mut each: impl FnMut(u16, &[u8])) -> Result<(), NetlinkError> {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        request.number(sequence);
        self.socket.send(&request.bytes, 0).map_err(|e| NetlinkError::from_io(&e))?;
        loop {
            self.receive().map_err(|e| NetlinkError::from_io(&e))?;
            for message in messages(&self.answer).filter(|m| m.sequence == sequence) {
                match message.kind {
                    DONE => return Ok(()),
                    ERROR => return read_error(&message, 0).map_or(Ok(()), Err),
                    kind => each(kind, message.body),
                }
            }
        }
    }

    /// The number by which the kernel tells this socket's requests from others'.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Waits for notices and hands them to `each`; `Ok(false)` when `stop` can be read or was closed instead. Lost notices
    /// count as one without type and body.
    pub(crate) fn listen(&mut self, stop: BorrowedFd<'_>, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let mut fds = [PollFd::new((*self.socket).as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
            Ok(_) if fds[1].any() == Some(true) => return Ok(false),
            Ok(_) => {}
        }
        match self.receive() {
            Ok(()) => messages(&self.answer).for_each(|message| each(&message)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                each(&Message { kind: 0, flags: 0, sequence: 0, port: 0, body: &[] });
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            self.answer.clear();
            match self.socket.recv(&mut self.answer, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn read_error(message: &Message<'_>, request: usize) -> Option<NetlinkError> {
    let code = i32::from_ne_bytes(message.body.get(..4)?.try_into().ok()?);
    if code == 0 {
        return None;
    }
    // With NETLINK_CAP_ACK the error is followed by the header of the request alone, then by attributes.
    let explained = message.flags & ACK_TLVS != 0;
    let tail = message.body.get(4 + HEADER..).filter(|_| explained).unwrap_or(&[]);
    let text = attributes(tail)
        .find(|(kind, _)| *kind == ATTRIBUTE_MESSAGE)
        .map(|(_, value)| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
    Some(NetlinkError { errno: Errno::from_raw(-code), message: text, request })
}
