//! Errors as clients see them.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use orch_api::error::{ErrorBody, ErrorDetail};
use orch_core::{Hint, Refusal};

use crate::control::ProposeError;

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) ErrorDetail);

impl Fault {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self(ErrorDetail::new(code, message))
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.with_hint(hint))
    }

    pub(crate) fn details(mut self, details: Vec<String>) -> Self {
        self.0.details = details;
        self
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let fault = Self::new(refusal.code(), refusal.to_string());
        match refusal.hint() {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }
}

impl From<ProposeError> for Fault {
    fn from(error: ProposeError) -> Self {
        let message = error.to_string();
        match error {
            ProposeError::Refused(refusal) => refusal.into(),
            ProposeError::Busy => Self::new("unavailable", message).hint("try again"),
            ProposeError::DiskFull { .. } => Self::new("unavailable", message)
                .hint("free some space: containers run on, and changes are taken again as soon as there is some"),
            ProposeError::Quarantined { .. } => Self::new("unavailable", message)
                .hint("containers run on; see the agent's log, then start the agent again"),
            ProposeError::TooLarge { .. } => Self::new("too_large", message),
            ProposeError::Encode { .. } => Self::new("invalid", message),
            ProposeError::Stopped => {
                Self::new("unavailable", message).hint("look whether the change is there when it is back")
            }
        }
    }
}

impl From<JsonRejection> for Fault {
    fn from(rejection: JsonRejection) -> Self {
        let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "invalid" };
        Self::new(code, format!("the request is not understood: {}", rejection.body_text()))
            .hint("are command and agent of the same version?")
    }
}

impl From<QueryRejection> for Fault {
    fn from(rejection: QueryRejection) -> Self {
        Self::new("invalid", format!("the query is not understood: {}", rejection.body_text()))
    }
}
