//! The embedded DNS against real sockets in real namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "helpers of tests may panic, and say why a test was skipped"
)]

#[path = "dns/clients.rs"]
mod clients;
#[path = "dns/forwarding.rs"]
mod forwarding;
#[path = "dns/life.rs"]
mod life;
#[path = "dns/names.rs"]
mod names;
#[path = "dns/protocol.rs"]
mod protocol;
#[path = "dns/upstream.rs"]
mod upstream;
#[path = "dns/world.rs"]
mod world;
