//! Exit codes, all in one place, and the errors that carry them.

use std::fmt;
use std::process::ExitCode;

/// What the process says when it ends. `orch --help` shows the same list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Wrong usage or a wrong stack file.
    Usage,
    /// `plan` found changes.
    Changes,
    /// A deadline passed.
    Deadline,
    /// What a container, or Docker's rules for it, say.
    Code(i32),
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Changes => 10,
            Self::Deadline => 124,
            // wait(2): only the low eight bits of an exit status exist.
            Self::Code(code) => u8::try_from(code & 0xff).unwrap_or(1),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error with an exit code of its own and a hint. Any other error ends with [`Exit::Failed`].
#[derive(Debug)]
pub(crate) struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// One sentence; empty when everything has been said already.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// Further lines.
    pub details: Vec<String>,
}

impl Failure {
    /// A failure with this code and message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: String::new(), details: Vec::new() }
    }

    /// Wrong usage.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A failure that has been explained on stderr already.
    pub(crate) fn said(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// The same with a hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same with further lines.
    pub(crate) fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
