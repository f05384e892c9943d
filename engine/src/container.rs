//! A container as the engine keeps it: its directory on disk, its state, and how a request and an image become its configuration.

pub(crate) mod directory;
pub mod merge;
pub mod state;

pub use merge::{ContainerRequest, merge};
pub use state::{ContainerState, Phase};
