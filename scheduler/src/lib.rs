//! The control plane: raft driver, log store, dispatcher, API server.
//!
//! [`Control`] is the handle on one manager. Behind it one thread, the replica, owns the raft library, the log store and the state:
//! it takes proposals from a bounded queue, makes them durable in batches, applies them through [`orch_core`], and publishes the applied
//! index and every node's assignment. [`server::routes`] is the API on top of it.
//!
//! Deliberately absent: what a command means (that is `orch-core`), sockets (the binary's), and anything that touches containers.
#![forbid(unsafe_code)]

mod control;
mod link;
mod replica;
pub mod server;
mod slog_bridge;
pub mod store;

pub use control::{Applied, Control, ControlConfig, ProposeError, StartError};
