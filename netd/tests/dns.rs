//! The embedded DNS against real sockets in real namespaces.

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
