//! Frames on a unix stream socket: a fixed header, a postcard body, and descriptors that travel with the first byte.
//!
//! Header, little endian: body length u32 · protocol version u16 · number of descriptors u16. Descriptors arrive with or before the
//! first byte of the frame they belong to, in order (unix(7)), so a reader keeps them in a queue and takes as many as the header says.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys_descriptor;

/// Bytes of the header.
const HEADER: usize = 8;
/// A start plan holds argv and env, which the kernel bounds at 6 MiB (3/4 of the stack limit's maximum), and a seccomp filter of at
/// most 32 KiB; 8 MiB holds any of them and still bounds what a peer can make us allocate.
pub const MAX_BODY: usize = 8 << 20;
/// One read takes at most this much: several small frames or a piece of a big one.
const READ_STEP: usize = 16 << 10;

/// A frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed, or the socket failed.
    #[error("shim socket")]
    Socket(#[source] io::Error),
    /// The peer is gone.
    #[error("the other side of the shim socket has closed")]
    Closed,
    /// A frame beyond the bounds, or one that does not decode.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// The peer speaks another version.
    #[error("the peer speaks version {theirs} of the shim protocol, this program version {ours}")]
    Version {
        /// What the peer's header says.
        theirs: u16,
        /// What this program speaks.
        ours: u16,
    },
}

/// One encoded frame and what is left to send of it.
#[derive(Debug)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Outgoing {
    /// Encodes a message.
    ///
    /// # Errors
    /// `Malformed` when it is beyond the bounds.
    pub fn new<T: Serialize>(version: u16, message: &T, descriptors: Vec<OwnedFd>) -> Result<Self, FrameError> {
        let bytes =
            postcard::to_extend(message, vec![0_u8; HEADER]).map_err(|e| FrameError::Malformed(e.to_string()))?;
        let body = bytes.len() - HEADER;
        if body > MAX_BODY || descriptors.len() > sys_descriptor::MAX_PASSED {
            return Err(FrameError::Malformed(format!(
                "{body} bytes and {} descriptors are too many",
                descriptors.len()
            )));
        }
        let mut frame = Self { bytes, sent: 0, descriptors };
        let body = u32::try_from(body).expect("MAX_BODY is below 4 GiB");
        let count = u16::try_from(frame.descriptors.len()).expect("MAX_PASSED is below 65536");
        frame.bytes[0..4].copy_from_slice(&body.to_le_bytes());
        frame.bytes[4..6].copy_from_slice(&version.to_le_bytes());
        frame.bytes[6..8].copy_from_slice(&count.to_le_bytes());
        Ok(frame)
    }

    /// Bytes still to send.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends as much as the socket takes. True when the frame is out; false when a non-blocking socket is full.
    ///
    /// # Errors
    /// `Closed` or `Socket`.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> Result<bool, FrameError> {
        while self.sent < self.bytes.len() {
            let raw: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&raw)];
            let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
            let iov = [io::IoSlice::new(&self.bytes[self.sent..])];
            match sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => {
                    self.sent += sent;
                    self.descriptors.clear();
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(false),
                Err(nix::errno::Errno::EPIPE | nix::errno::Errno::ECONNRESET) => return Err(FrameError::Closed),
                Err(errno) => return Err(FrameError::Socket(errno.into())),
            }
        }
        Ok(true)
    }
}

/// Puts frames together from what arrives.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Reader {
    /// Reads once from the socket. False when a non-blocking socket has nothing.
    ///
    /// # Errors
    /// `Closed` at the end of the stream, `Socket`.
    pub fn fill(&mut self, socket: impl AsFd) -> Result<bool, FrameError> {
        let before = self.buffer.len();
        self.buffer.resize(before + READ_STEP, 0);
        let result = sys_descriptor::receive(socket.as_fd(), &mut self.buffer[before..], &mut self.descriptors);
        self.buffer.truncate(before + result.as_ref().copied().unwrap_or(0));
        match result {
            Ok(0) => Err(FrameError::Closed),
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(FrameError::Closed),
            Err(e) => Err(FrameError::Socket(e)),
        }
    }

    /// Takes the next whole frame, if there is one.
    ///
    /// # Errors
    /// `Version`, `Malformed`.
    pub fn next<T: DeserializeOwned>(&mut self, version: u16) -> Result<Option<(T, Vec<OwnedFd>)>, FrameError> {
        let Some(header) = self.buffer.get(..HEADER) else { return Ok(None) };
        let body = u32::from_le_bytes(header[0..4].try_into().expect("four bytes")) as usize;
        let theirs = u16::from_le_bytes(header[4..6].try_into().expect("two bytes"));
        let count = usize::from(u16::from_le_bytes(header[6..8].try_into().expect("two bytes")));
        if theirs != version {
            return Err(FrameError::Version { theirs, ours: version });
        }
        if body > MAX_BODY || count > sys_descriptor::MAX_PASSED {
            return Err(FrameError::Malformed(format!("{body} bytes with {count} descriptors announced")));
        }
        if self.buffer.len() < HEADER + body {
            return Ok(None);
        }
        if self.descriptors.len() < count {
            return Err(FrameError::Malformed(format!(
                "{count} descriptors announced, {} came",
                self.descriptors.len()
            )));
        }
        let message = postcard::from_bytes(&self.buffer[HEADER..HEADER + body])
            .map_err(|e| FrameError::Malformed(e.to_string()))?;
        self.buffer.drain(..HEADER + body);
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * READ_STEP {
            self.buffer = Vec::new();
        }
        Ok(Some((message, self.descriptors.drain(..count).collect())))
    }
}
