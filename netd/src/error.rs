//! What can go wrong in netd's operations.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::config::{NetworkId, SandboxId};
use crate::netlink::NetlinkError;
use crate::nft::table::TableError;
use crate::port::PortError;
use crate::sysctl::SysctlError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// There is no such network.
    #[error("there is no network {0} here")]
    UnknownNetwork(NetworkId),
    /// There is no such sandbox.
    #[error("there is no sandbox {0} here")]
    UnknownSandbox(SandboxId),
    /// The sandbox is there already, or another call is at work on it.
    #[error("sandbox {0} exists already")]
    Exists(SandboxId),
    /// What was asked for makes no sense.
    #[error("{what}: {why}")]
    Invalid {
        /// Of which object.
        what: String,
        /// What is wrong, and where it can be, what would be right.
        why: String,
    },
    /// The kernel refused a request on a link, address or route.
    #[error("cannot {action}: {source}")]
    Link {
        /// What was being done, on what.
        action: String,
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done, on what.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A setting was refused.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A port cannot be published.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The nftables table cannot be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A record of what exists cannot be kept.
    #[error("cannot keep the record {}: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

impl NetdError {
    pub(crate) fn link(action: impl Into<String>) -> impl FnOnce(NetlinkError) -> NetdError {
        let action = action.into();
        move |source| NetdError::Link { action, source }
    }

    pub(crate) fn first_link(action: impl Into<String>) -> impl FnOnce(Vec<NetlinkError>) -> NetdError {
        let action = action.into();
        // A batch that failed has at least one error; the first one is the cause, the others follow from it.
        move |mut errors| NetdError::Link { action, source: errors.swap_remove(0) }
    }

    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetdError {
        let action = action.into();
        move |source| NetdError::System { action, source }
    }

    pub(crate) fn invalid(what: impl fmt::Display, why: impl fmt::Display) -> NetdError {
        NetdError::Invalid { what: what.to_string(), why: why.to_string() }
    }
}

/// Everything that went wrong in an operation that goes on after a failure, such as taking down.
#[derive(Debug, Default)]
pub struct NetdErrors(pub Vec<NetdError>);

impl NetdErrors {
    pub(crate) fn into_result(self) -> Result<(), NetdErrors> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    pub(crate) fn keep<T, E: Into<NetdError>>(&mut self, outcome: Result<T, E>) -> Option<T> {
        outcome.map_err(|error| self.0.push(error.into())).ok()
    }
}

impl fmt::Display for NetdErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for NetdErrors {}
