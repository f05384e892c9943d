//! Bridges, overlay, nftables, addresses and DNS of one host.

#![forbid(unsafe_code)]

pub mod address;
mod check;
pub mod config;
pub mod dns;
mod conntrack;
pub mod error;
mod foreign;
mod link;
mod name;
pub mod namespace;
pub mod netd;
mod netlink;
mod network;
mod nft;
pub mod port;
mod publish;
mod record;
mod relay;
mod sandbox;
pub mod sync;
mod sysctl;
mod watch;

pub use address::{Mac, Prefix};
pub use config::{
    DesiredNetworking, Endpoint, EndpointConfig, NetdConfig, NetworkConfig, NetworkId, PortRequest, Protocol,
    PublishedPort, Sandbox, SandboxConfig, SandboxId,
};
pub use error::{NetdError, NetdErrors};
pub use namespace::Namespace;
pub use netd::Netd;
pub use netlink::NetlinkError;
pub use nft::table::TableError;
pub use sync::{NetOp, SyncReport};
pub use sysctl::SysctlError;
