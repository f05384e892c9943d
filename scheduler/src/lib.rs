//! The control plane: the durable log, the raft driver, and the API over both.
//!
//! A [`replica`] is raft and everything around it that must be right at every crash, without input and output; [`driver`]'s threads carry out
//! what it wants, over the durable [`log`]. Everybody else has a [`Control`], which proposes commands and reads the
//! [`State`](orch_core::State). [`server`] is the HTTP side of it. Absent on purpose: deciding. What a
//! command does is `orch-core`'s business.
#![forbid(unsafe_code)]

mod applier;
pub mod control;
pub mod disk;
mod driver;
pub mod identity;
mod keeper;
mod link;
pub mod log;
pub mod peer;
pub mod replica;
mod request;
pub mod seal;
pub mod server;
mod slog_bridge;
pub mod start;
pub mod steward;
mod stopwatch;
pub mod transport;
pub mod urgency;

pub use control::{Bootstrap, Control, ControlConfig, Invitation, Leadership, ProposeError, Standing, StartError};
