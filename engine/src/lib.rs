//! One host's containers, images, volumes and logs.
//!
//! Knows no service and no network plan: the agent lowers a task to a [`config::ContainerConfig`] and hands over a network namespace.
//! Synchronous throughout (no async runtime): callers move blocking calls to threads of theirs.

pub mod cgroup;
pub mod config;
pub mod container;
pub mod copy;
pub mod engine;
pub mod image;
pub mod logs;
/// What this process keeps of the memory that it no longer uses.
pub mod memory {
    pub use crate::sys_descriptor::{limit_arenas, release_free_memory};
}
pub mod runtime;
pub mod seccomp;
pub mod shim;
mod sys;
mod sys_descriptor;
pub mod volume;

/// An error with its causes on one line, as `message: cause: cause of that`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
