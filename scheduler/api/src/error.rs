//! The body of every refused request, and the error that a client makes of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `{"error": {…}}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// Code of what another manager may carry out, or has: between managers only, which then ask that one.
pub const LEADER_CHANGED: &str = "leader_changed";

/// Code of a manager's answer to a node that was removed from the cluster: for good, and known for certain.
pub const REMOVED: &str = "removed";

/// What was wrong, why, and what to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, JsonSchema)]
#[error("{message}")]
pub struct ErrorDetail {
    /// A stable word for programs: `not_found`, `conflict`, `invalid`, `unavailable`, `failed`, `image_missing`, …
    pub code: String,
    /// One sentence for people: what was wrong and where.
    pub message: String,
    /// What to do about it, when known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Docker's exit code for it (125, 126, 127), when the request was to run something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Further lines, one a problem.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// What it is about, for programs: of `image_missing`, the references.
    #[serde(default, skip_serializing_if = "<[String]>::is_empty")]
    pub subjects: Box<[String]>,
}

impl ErrorDetail {
    /// An error of this code and message.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), ..Self::default() }
    }

    /// The same with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same with Docker's exit code.
    pub fn with_exit_code(mut self, code: i32) -> Self {
        self.exit_code = Some(code);
        self
    }

    /// The HTTP status that belongs to the code.
    pub fn status(&self) -> u16 {
        match self.code.as_str() {
            "not_found" | "image_missing" => 404,
            "conflict" | "in_use" | "superseded" => 409,
            "invalid" => 400,
            "unauthenticated" => 401,
            "forbidden" | REMOVED => 403,
            "too_large" => 413,
            "unavailable" | LEADER_CHANGED => 503,
            "timeout" => 504,
            _ => 500,
        }
    }
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent wrapper repeats its source.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
