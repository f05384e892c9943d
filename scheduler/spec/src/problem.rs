//! What is wrong with a stack file, in a form that any renderer can show.

use crate::code::Code;
use crate::span::Span;
use std::collections::BTreeSet;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// There is no spec.
    Error,
    /// There is a spec, but a person should look.
    Warning,
}

/// A marked range with what is to be said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What, shown behind the carets. May be empty.
    pub text: String,
}

/// One problem. The first label is the place where it is; further ones show what it conflicts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Which kind, stable across releases.
    pub code: Code,
    /// One sentence without a full stop.
    pub message: String,
    /// Places, the first one is where to look.
    pub labels: Vec<Label>,
    /// Facts that help to understand.
    pub notes: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Problem {
    /// An error.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { severity: Severity::Error, code, message, labels: Vec::new(), notes: Vec::new(), hint: None }
    }

    /// A warning.
    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// The same with one more place.
    #[must_use]
    pub fn at(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    /// The same with one more fact.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The same with what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// More problems than this help nobody; what comes after is only counted.
pub const MAX_PROBLEMS: usize = 200;

/// Where the stages of a load put the problems they find.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) problems: Vec<Problem>,
    unset_variables: BTreeSet<String>,
}

impl Report {
    pub(crate) fn add(&mut self, problem: Problem) {
        // The same service reached over two includes would say everything twice.
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// True for the first time that this variable is found to be unset.
    pub(crate) fn first_unset(&mut self, name: &str) -> bool {
        self.unset_variables.insert(name.to_owned())
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }
}
