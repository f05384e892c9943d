//! The harness that scenarios are written with, and the rules of the house that a machine can check.
//!
//! A scenario is one test function with one intent, told in the words of a user: [`host::Host`] is a machine of its own (network,
//! mounts and processes; made in milliseconds, gone with the test), on which it runs `orch` and looks at what became of it. Waiting
//! is [`wait::eventually`], never a sleep. At the end [`host::Host::leaves_no_trace`] compares the machine with what it was before.
//!
//! The binary is `$ORCH`, else the one in cargo's target folder; images come from `$ORCH_IMAGES`, made by `tests/images/build`.
//! Kernel objects are made for real, so everything but the tidy checks needs root; without it tests fail and say so.
#![forbid(unsafe_code)]

pub mod agent;
pub mod caller;
pub mod cluster;
pub mod fault;
pub mod history;
pub mod host;
pub mod http;
pub mod image;
pub mod machine;
pub mod nameserver;
pub mod output;
pub mod plaintext;
pub mod power;
pub mod process;
pub mod segment;
pub mod terminal;
pub mod tidy;
pub mod traces;
pub mod wait;
