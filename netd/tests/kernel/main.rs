//! netd against the real kernel. Every test is a host of its own: a network and mount namespace in which the test's thread
//! lives, with a neighbour on a LAN in another one. Nothing touches the machine's own network.

// The stage that the tests stand on is no test function itself, and still part of the tests.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod cluster;
mod firewall;
mod isolation;
mod leftovers;
mod lifecycle;
mod mesh;
mod overlay;
mod ports;
mod restart;
mod scale;
mod service;
mod world;
