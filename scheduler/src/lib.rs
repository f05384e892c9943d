//! The control plane: the durable log, the raft driver, and the API over both.
//!
//! One thread ([`driver`]) owns the raft node, the replicated [`State`](orch_core::State) and the [`log`]; everybody else has a
//! [`Control`], which proposes commands and reads the state. [`server`] is the HTTP side of it. Absent on purpose: deciding. What a
//! command does is `orch-core`'s business.
#![forbid(unsafe_code)]

pub mod control;
pub mod disk;
mod driver;
pub mod identity;
mod link;
pub mod log;
pub mod seal;
pub mod server;
pub mod replica;
mod slog_bridge;
pub mod start;
pub mod transport;

pub use control::{Bootstrap, Control, ControlConfig, Invitation, Leadership, ProposeError, Standing, StartError};
