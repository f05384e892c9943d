//! One connection to the shim: the agent's own, or one for each attached session.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::frame::{FrameError, Outgoing, Reader};
use super::protocol::{Message, Notice, Reply, VERSION};

/// Output waiting for an attached client beyond this makes it too slow. With the socket's own buffer (208 KiB by default) some 460 KiB:
/// a page of a terminal is 10 KiB.
const OUTPUT_LIMIT: usize = 256 << 10;
/// Replies and notices waiting for an agent beyond this make it dead: it reconnects and is told what runs.
const AGENT_LIMIT: usize = 4 << 20;

/// What a connection is attached to.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) container: String,
    pub(super) stdin: bool,
    pub(super) patient: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    socket: UnixStream,
    reader: Reader,
    queue: VecDeque<Outgoing>,
    queued: usize,
    /// Wants [`Notice`]s about all containers.
    pub(super) subscribed: bool,
    pub(super) attachment: Option<Attachment>,
    /// To be closed once the queue is empty.
    pub(super) closing: bool,
    /// Its input is not read while the container's stdin is full.
    pub(super) held: bool,
}

impl Client {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            reader: Reader::default(),
            queue: VecDeque::new(),
            queued: 0,
            subscribed: false,
            attachment: None,
            closing: false,
            held: false,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes in what has come; false when there was nothing.
    pub(super) fn fill(&mut self) -> Result<bool, FrameError> {
        self.reader.fill(&self.socket)
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Result<Option<(Message, Vec<OwnedFd>)>, FrameError> {
        self.reader.next(VERSION)
    }

    pub(super) fn reply(&mut self, number: u64, reply: Reply, descriptors: Vec<OwnedFd>) {
        self.push(&Message::Reply(number, reply), descriptors);
    }

    pub(super) fn notify(&mut self, notice: Notice) {
        self.push(&Message::Notice(notice), Vec::new());
    }

    /// Output of the attached container. A client whose queue is full is let go: the last it hears is why.
    pub(super) fn output(&mut self, stream: u8, data: &[u8]) {
        if self.closing {
            return;
        }
        if self.queued > OUTPUT_LIMIT {
            self.notify(Notice::TooSlow);
            self.closing = true;
            return;
        }
        self.notify(Notice::Output { stream, data: data.to_vec() });
    }

    /// A patient client that has fallen behind: its container should wait a little.
    pub(super) fn is_behind(&self) -> bool {
        self.queued > OUTPUT_LIMIT / 2 && !self.closing && self.attachment.as_ref().is_some_and(|a| a.patient)
    }

    fn push(&mut self, message: &Message, descriptors: Vec<OwnedFd>) {
        match Outgoing::new(VERSION, message, descriptors) {
            Ok(frame) if self.queued < AGENT_LIMIT => {
                self.queued += frame.remaining();
                self.queue.push_back(frame);
            }
            // Too far behind, or a message we should never have made.
            _ => self.closing = true,
        }
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) -> Result<(), FrameError> {
        while let Some(frame) = self.queue.front_mut() {
            let before = frame.remaining();
            let done = frame.send(self.socket.as_fd())?;
            self.queued -= before - frame.remaining();
            if !done {
                return Ok(());
            }
            self.queue.pop_front();
        }
        if self.queue.capacity() > 64 {
            self.queue = VecDeque::new();
        }
        Ok(())
    }

    pub(super) fn has_output(&self) -> bool {
        !self.queue.is_empty()
    }
}
