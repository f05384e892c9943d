//! Being connected with a container's output and input.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::link::LinkError;
use super::{Engine, EngineError, lock};
use crate::config::ContainerId;
use crate::container::Phase;
use crate::logs::Stream;
use crate::shim::frame::{FrameError, Outgoing, Reader};
use crate::shim::protocol::{Message, Notice, Reply, Request, VERSION};

/// Input is cut into frames of this size: the shim's own bound for a container that does not read.
const INPUT_STEP: usize = 32 << 10;

/// An attached session failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The connection to the shim.
    #[error("the connection to the container's output broke")]
    Broken(#[source] FrameError),
    /// The socket's options.
    #[error("prepare the connection to the container's output")]
    Socket(#[source] io::Error),
}

/// How to be connected.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttachOptions {
    /// Also with its stdin.
    pub stdin: bool,
    /// When this side is slow, hold the container back for some seconds before letting this side go: for a person at a terminal.
    pub patient: bool,
}

/// What comes from a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttachEvent {
    /// Output.
    Output(Stream, Vec<u8>),
    /// This side read too slowly and was let go. The log has everything.
    TooSlow,
    /// The container has ended; all its output came before.
    Ended,
}

/// The output of a container, from the moment of attaching, or from its start if it did not run yet.
#[derive(Debug)]
pub struct AttachSession {
    socket: Arc<UnixStream>,
    reader: Reader,
    input: AttachInput,
    over: bool,
}

/// The input of a container, and the means to end the session from another thread.
#[derive(Debug, Clone)]
pub struct AttachInput {
    socket: Arc<UnixStream>,
    sending: Arc<Mutex<()>>,
}

impl AttachSession {
    /// What comes next; waits, at most for `limit`. `None`: nothing in that time, or the session is over.
    ///
    /// # Errors
    /// When the shim is gone.
    pub fn receive(&mut self, limit: Option<Duration>) -> Result<Option<AttachEvent>, AttachError> {
        if self.over {
            return Ok(None);
        }
        // Zero would mean for ever.
        let limit = limit.map(|limit| limit.max(Duration::from_millis(1)));
        self.socket.set_read_timeout(limit).map_err(AttachError::Socket)?;
        loop {
            match self.reader.next::<Message>(VERSION).map_err(AttachError::Broken)? {
                Some((Message::Notice(Notice::Output { stream, data }), _)) => {
                    let stream = if stream == 2 { Stream::Stderr } else { Stream::Stdout };
                    return Ok(Some(AttachEvent::Output(stream, data)));
                }
                Some((Message::Notice(Notice::TooSlow), _)) => {
                    self.over = true;
                    return Ok(Some(AttachEvent::TooSlow));
                }
                Some((Message::Notice(Notice::AttachEnded), _)) => {
                    self.over = true;
                    return Ok(Some(AttachEvent::Ended));
                }
                Some(_) => {}
                None => {
                    if !self.reader.fill(self.socket.as_fd()).map_err(AttachError::Broken)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Has the last event come?
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The other direction.
    pub fn input(&self) -> AttachInput {
        self.input.clone()
    }

    /// Becomes readable when there is something to receive.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AttachInput {
    /// Writes to the container's stdin; waits while it is full.
    ///
    /// # Errors
    /// When the session is over.
    pub fn write(&self, bytes: &[u8]) -> Result<(), AttachError> {
        bytes.chunks(INPUT_STEP).try_for_each(|part| self.send(Request::Input(part.to_vec())))
    }

    /// There is no more input: a container that was made for that (`stdin_once`) sees the end of its stdin.
    ///
    /// # Errors
    /// When the session is over.
    pub fn end(&self) -> Result<(), AttachError> {
        self.send(Request::InputEnd)
    }

    /// Detaches: the receiving side sees the end.
    pub fn detach(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn send(&self, request: Request) -> Result<(), AttachError> {
        let _one_at_a_time = lock(&self.sending);
        let frame = Outgoing::new(VERSION, &Message::Request(0, request), Vec::new());
        frame.and_then(|mut frame| frame.send(self.socket.as_fd())).map(|_| ()).map_err(AttachError::Broken)
    }
}

impl Engine {
    /// Attaches to a container. One that does not run yet may be attached to, so that nothing of its output is missed.
    ///
    /// # Errors
    /// `Phase` when it is being removed; when the shim cannot be reached.
    pub fn attach(&self, id: &ContainerId, options: AttachOptions) -> Result<AttachSession, EngineError> {
        let container = self.inner.container(id)?;
        let phase = container.state().phase;
        let link = match phase {
            Phase::Running | Phase::Paused => container.running_link("attach to it")?,
            Phase::Created | Phase::Exited => self.inner.link(&container.config().group)?,
            Phase::Removing => {
                return Err(EngineError::Phase { name: container.name(), phase, wanted: "attach to it" });
            }
        };
        let socket = Arc::new(link.connect_again()?);
        let mut session = AttachSession {
            input: AttachInput { socket: Arc::clone(&socket), sending: Arc::default() },
            socket,
            reader: Reader::default(),
            over: false,
        };
        session.input.send(Request::Attach {
            container: id.0.clone(),
            stdin: options.stdin,
            patient: options.patient,
        })?;
        loop {
            match session.reader.next::<Message>(VERSION).map_err(AttachError::Broken)? {
                Some((Message::Reply(_, Reply::Done), _)) => return Ok(session),
                Some((Message::Reply(_, Reply::Refused { message }), _)) => {
                    return Err(LinkError::Refused(message).into());
                }
                Some(_) => {
                    return Err(LinkError::Refused("the shim gave an answer to another question".to_owned()).into());
                }
                None => {
                    session.reader.fill(session.socket.as_fd()).map_err(AttachError::Broken)?;
                }
            }
        }
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `Phase` when it does not run; `Conflict` when it has no terminal.
    pub fn resize(&self, id: &ContainerId, rows: u16, columns: u16) -> Result<(), EngineError> {
        let link = self.inner.container(id)?.running_link("set the size of its terminal")?;
        match link.call(Request::Resize { container: id.0.clone(), rows, columns }, Vec::new()) {
            Ok(_) => Ok(()),
            Err(LinkError::Refused(message)) => Err(EngineError::Conflict(message)),
            Err(e) => Err(e.into()),
        }
    }

    /// Closes a container's stdin.
    ///
    /// # Errors
    /// `Phase` when it does not run.
    pub fn close_stdin(&self, id: &ContainerId) -> Result<(), EngineError> {
        let link = self.inner.container(id)?.running_link("close its stdin")?;
        link.call(Request::CloseStdin { container: id.0.clone() }, Vec::new())?;
        Ok(())
    }
}
