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
pub mod runtime;
pub mod seccomp;
pub mod shim;
mod sys;
mod sys_descriptor;
pub mod volume;
