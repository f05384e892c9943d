//! The seam between the replicas of the control plane and the network.
//!
//! What crosses it are opaque messages, made and read by the replicas alone. A transport knows nodes, not raft's numbers: who sent a message
//! is what the transport has proved by its certificate, and the replica compares that with what the message says.

use bytes::Bytes;
use orch_spec::assignment::NodeId;

/// A message is never larger, bytes: what is larger is sent in parts.
pub const LARGEST_MESSAGE: usize = 4 << 20;

/// Carries messages between managers.
///
/// Never blocks: what cannot be queued is dropped, and raft repeats it. Order between two nodes is kept as well as that goes.
pub trait Transport: Send + Sync + 'static {
    /// Sends a message of at most [`LARGEST_MESSAGE`] bytes, or drops it.
    fn send(&self, to: &NodeId, message: Bytes);
}

/// The transport of a host alone: there is nobody to send to.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn send(&self, _: &NodeId, _: Bytes) {}
}
