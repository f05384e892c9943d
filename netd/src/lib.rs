//! Bridges, overlay, nftables, addresses and DNS of one host.

pub mod address;
pub mod config;
mod link;
mod name;
pub mod namespace;
mod netlink;
mod nft;
mod sysctl;
