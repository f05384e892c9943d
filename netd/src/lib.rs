//! Bridges, overlay, nftables, addresses and DNS of one host.
//!
//! [`Netd`] is the entry: networks (a bridge each), sandboxes (a network namespace with endpoints) and published ports. It
//! knows no container and no service: who gets which address is decided elsewhere.
//!
//! What must outlive the agent lies in the kernel: links under names that follow from instance and id, namespaces bound to
//! files, one nftables table that is owned by our socket and stays when the socket closes. Beside it there are small
//! records in the run directory, of what was asked for. [`Netd::open`] takes all of it over; [`Netd::sync`] observes, plans
//! and executes until what is equals what shall be.
//!
//! Threads: callers' own, for the short time of a call; one that a new namespace is made on, for each sandbox; one that
//! hears what other programs do to nf_tables; one that forgets old flows, and one that does so inside sandboxes; one for the
//! relay, once a port needs it. No async runtime is needed outside.
//!
//! What a node of several shall know of the others is one value with a version, [`DesiredCluster`]:
//! [`Netd::apply_cluster`] returns when the kernel has it. Tunnels (`wiring`, `overlay`), services (`service`, `slots`) and
//! ports of every node (`mesh`) follow from it; a node that is alone has none of them.
//!
//! Absent on purpose: no command is started (`ip`, `nft`, `iptables` need not be there), no packet of a published port is
//! copied through user space but for `[::1]` and a family the sandbox lacks, nothing is written to `bridge-nf-call-*`.

#![forbid(unsafe_code)]

pub mod address;
mod check;
pub mod cluster;
pub mod config;
mod conntrack;
pub mod dns;
pub mod error;
mod foreign;
mod hash;
mod link;
mod mesh;
mod name;
pub mod namespace;
pub mod netd;
mod netlink;
mod network;
mod nft;
mod offload;
mod overlay;
pub mod port;
pub mod probe;
mod publish;
mod record;
mod relay;
mod sandbox;
mod service;
mod slots;
mod straying;
pub mod sync;
mod sysctl;
mod watch;
mod wiring;

pub use address::{Mac, Prefix};
pub use cluster::{
    Backend, ClusterReport, DesiredCluster, Mesh, MeshBackend, MeshPort, Overlay, RemoteEndpoint, Service, Underlay,
};
pub use config::{
    DesiredNetworking, Endpoint, EndpointConfig, NetdConfig, NetworkConfig, NetworkId, PortRequest, Protocol,
    PublishedPort, Sandbox, SandboxConfig, SandboxId,
};
pub use error::{NetdError, NetdErrors};
pub use name::BRIDGE_PREFIX;
pub use namespace::Namespace;
pub use netd::Netd;
pub use netlink::NetlinkError;
pub use nft::table::TableError;
pub use probe::UnderlayVerdict;
pub use sync::{NetOp, SyncReport};
pub use sysctl::SysctlError;
