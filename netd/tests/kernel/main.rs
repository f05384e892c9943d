//! netd against the real kernel. Every test is a host of its own: a network and mount namespace in which the test's thread
//! lives, with a neighbour on a LAN in another one. Nothing touches the machine's own network.

mod firewall;
mod isolation;
mod leftovers;
mod lifecycle;
mod ports;
mod restart;
mod scale;
mod world;
