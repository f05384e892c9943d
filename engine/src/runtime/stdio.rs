//! A process's standard streams.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;

/// What a process gets as descriptors 0, 1 and 2.
#[derive(Debug)]
pub enum Stdio {
    /// Three descriptors; `None` is the container's own /dev/null.
    Streams {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
    /// A new terminal of the container's devpts; its master comes back in [`Launched`](super::Launched).
    Terminal {
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
}

/// The launcher's ends of [`Stdio::pipes`].
#[derive(Debug)]
pub struct PipeEnds {
    /// Write end of standard input, when there is one.
    pub stdin: Option<OwnedFd>,
    /// Read end of standard output.
    pub stdout: OwnedFd,
    /// Read end of standard error.
    pub stderr: OwnedFd,
}

impl Stdio {
    /// Pipes for output, and for input when `stdin`; all closed on exec.
    ///
    /// # Errors
    /// Those of pipe2(2): out of descriptors.
    pub fn pipes(stdin: bool) -> io::Result<(Self, PipeEnds)> {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
        let input = if stdin { Some(pipe()?) } else { None };
        let (stdout, stdout_write) = pipe()?;
        let (stderr, stderr_write) = pipe()?;
        let (stdin_read, stdin) = input.map_or((None, None), |(read, write)| (Some(read), Some(write)));
        let streams = Self::Streams { stdin: stdin_read, stdout: Some(stdout_write), stderr: Some(stderr_write) };
        Ok((streams, PipeEnds { stdin, stdout, stderr }))
    }

    /// A terminal of this size (never 0 × 0, which programs divide by).
    #[must_use]
    pub fn terminal(rows: u16, columns: u16) -> Self {
        if rows == 0 || columns == 0 {
            Self::Terminal { rows: 24, columns: 80 }
        } else {
            Self::Terminal { rows, columns }
        }
    }

    /// The container's /dev/null three times.
    #[must_use]
    pub fn null() -> Self {
        Self::Streams { stdin: None, stdout: None, stderr: None }
    }
}
