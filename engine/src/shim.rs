//! The shim.
pub mod frame;
pub mod protocol;
