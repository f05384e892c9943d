//! What a node of a cluster shall have beyond its own networks: tunnels to the other nodes, addresses of services, ports that
//! every node publishes. The caller hands it in whole, with a version; [`crate::Netd::apply_cluster`] makes the kernel match
//! it and returns when it does, so that the version can be acknowledged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::address::Mac;
use crate::config::{NetworkId, Protocol};
use crate::error::NetdError;
use crate::port::PortError;

/// The UDP port that tunnels use unless the cluster says otherwise. Not 4789 and not 8472: both are filtered by some
/// virtualisers, and taken where Swarm or flannel runs.
pub const DEFAULT_TUNNEL_PORT: u16 = 14_789;

/// All that one node shall know of its cluster. The default means: it is in none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredCluster {
    /// Grows with every change; handed back in the report.
    pub version: u64,
    /// Where this node is reached by the others. `None`: no tunnels.
    pub underlay: Option<Underlay>,
    /// Addresses of the other nodes. Whatever comes to the tunnels' port from anybody else is dropped.
    pub peers: Vec<IpAddr>,
    /// Networks that span nodes. One whose network is not on this node costs nothing until it is.
    pub overlays: Vec<Overlay>,
    /// Addresses that balance over containers.
    pub services: Vec<Service>,
    /// Ports that every node publishes.
    pub mesh: Option<Mesh>,
}

/// The network under the tunnels, as this node is on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// This node's address.
    pub address: IpAddr,
    /// UDP port of the tunnels, the same on every node.
    pub port: u16,
    /// Checksums inside of tunnels are computed here and not by the card, which was seen to compute wrong ones
    /// ([`UnderlayVerdict::Checksums`](crate::UnderlayVerdict)). It costs most of the throughput.
    #[serde(default)]
    pub own_checksums: bool,
}

/// A network that spans nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The network.
    pub network: NetworkId,
    /// Its number on the wire, 24 bits, one for the whole cluster.
    pub vni: u32,
    /// Smallest MTU of the links under the tunnels of all nodes that have the network; 0 = not known, then this node's own counts.
    pub underlay_mtu: u32,
    /// Its containers on other nodes.
    pub remote: Vec<RemoteEndpoint>,
}

/// A container's interface on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemoteEndpoint {
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC. `None`: the one that follows from the address, as on the node that has it.
    pub mac: Option<Mac>,
    /// Address of that node.
    pub node: IpAddr,
}

impl RemoteEndpoint {
    /// One with an IPv4 address.
    pub fn new(ipv4: Ipv4Addr, node: IpAddr) -> RemoteEndpoint {
        RemoteEndpoint { ipv4: Some(ipv4), ipv6: None, mac: None, node }
    }

    /// Its addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// The MAC that frames to it carry.
    pub(crate) fn mac(&self) -> Option<Mac> {
        self.mac.or_else(|| self.addresses().next().map(Mac::from_address))
    }
}

/// An address that stands for a service: whoever connects to it, on any port, gets one of the containers behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The address. It belongs to no container; best is one in the network's subnet, to which every sandbox has a way, also
    /// one that has no way out.
    pub vip: IpAddr,
    /// Sandboxes on any of these networks know it.
    pub networks: Vec<NetworkId>,
    /// The containers, by addresses of the same family; others are left out. With none a connection is refused at once.
    pub backends: Vec<Backend>,
}

/// A container behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its share of new connections beside the others'. 0: it gets none, and keeps those that it has (it is about to stop).
    /// One that is not in the list at all is gone: what its clients send it is refused.
    pub weight: u16,
}

/// Ports that every node publishes, wherever the containers are, and the wire that takes their packets there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Number of that wire, of the same kind as an overlay's and different from all of them.
    pub vni: u32,
    /// The ports.
    pub ports: Vec<MeshPort>,
}

/// A port that every node publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Address of the host; `None`: every one. A node that does not have it does not publish the port.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub port: u16,
    /// The containers. With none a connection is refused at once.
    pub backends: Vec<MeshBackend>,
}

/// A container behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MeshBackend {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its port.
    pub target: u16,
    /// As [`Backend::weight`].
    pub weight: u16,
    /// The node that it is on; `None`: this one.
    pub node: Option<IpAddr>,
}

/// What a [`crate::Netd::apply_cluster`] did.
#[derive(Debug, Default)]
pub struct ClusterReport {
    /// The version that was asked for.
    pub version: u64,
    /// What was carried out, a line each, in order.
    pub done: Vec<String>,
    /// Ports that are not led here, since somebody else has them. They are tried again with the next call.
    pub refused: Vec<PortError>,
    /// What failed. The version is in effect only when nothing did.
    pub failed: Vec<NetdError>,
}

impl ClusterReport {
    /// Whether the kernel has all of the version.
    pub fn is_applied(&self) -> bool {
        self.failed.is_empty()
    }
}
