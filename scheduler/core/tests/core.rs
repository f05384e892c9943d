//! The state machine from outside: scripts of commands with the text they must give, and random commands with what must always hold.

#[path = "core/availability.rs"]
mod availability;
#[path = "core/cluster.rs"]
mod cluster;
#[path = "core/faulty.rs"]
mod faulty;
#[path = "core/fleet.rs"]
mod fleet;
#[path = "core/oracle.rs"]
mod oracle;
#[path = "core/properties.rs"]
mod properties;
#[path = "core/scripts.rs"]
mod scripts;
#[path = "core/turbulence.rs"]
mod turbulence;
#[path = "core/updates.rs"]
mod updates;
#[path = "core/world.rs"]
mod world;
