//! The engine on the real kernel: containers of busybox, run by real shims.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

#[path = "engine/adoption.rs"]
mod adoption;
#[path = "engine/attaching.rs"]
mod attaching;
#[path = "engine/copying.rs"]
mod copying;
#[path = "engine/executing.rs"]
mod executing;
#[path = "engine/lifecycle.rs"]
mod lifecycle;
#[path = "engine/logging.rs"]
mod logging;
#[path = "engine/support.rs"]
mod support;
#[path = "engine/user_namespaces.rs"]
mod user_namespaces;
#[path = "engine/volumes.rs"]
mod volumes;
