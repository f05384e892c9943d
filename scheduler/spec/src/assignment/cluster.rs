//! What a node is told beside its tasks once it is one of several: where the others are, how to reach containers on them, and how
//! connections are spread over a service's tasks. All of it is empty on a host that is alone.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{NetworkName, NodeId};
use crate::model::EndpointMode;

/// The part of a network that reaches over to other nodes: a VXLAN with static forwarding and neighbour entries. Nothing is learnt and
/// nothing is flooded: what is not listed here does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayAssignment {
    /// The VXLAN's number (24 bits), the network's alone.
    pub vni: u32,
    /// UDP port of all VXLANs of the cluster.
    pub udp_port: u16,
    /// This node's own address between nodes; `None` while it has said none: then there is nothing to reach over with.
    pub underlay: Option<IpAddr>,
    /// Smallest MTU between the nodes of the network as they report it, in bytes, before the overhead of the tunnel; 0 = not known.
    pub underlay_mtu: u32,
    /// The other nodes with this network: frames from anybody else are dropped. In the order of their ids.
    pub peers: Vec<OverlayPeer>,
    /// Containers on other nodes, in the order of their addresses. Those of a node that is suspect or down are listed as well: only load
    /// balancing leaves them out, so that a node that comes back is reachable at once.
    pub endpoints: Vec<RemoteEndpoint>,
}

/// Another node of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OverlayPeer {
    /// The node.
    pub node: NodeId,
    /// Its address between nodes.
    pub underlay: IpAddr,
}

/// A container on another node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemoteEndpoint {
    /// Its address on the network. A container with addresses of both families is listed twice, with one MAC.
    pub ip: IpAddr,
    /// Its MAC: the one the file asks for, else `02:42` and the last four bytes of its IPv4 address (of its IPv6 address when that is the
    /// only one), which is how every node makes it.
    pub mac: String,
    /// The node it is on; its address is in [`OverlayAssignment::peers`].
    pub node: NodeId,
}

/// One service on one network: the address that stands for it, and what stands behind that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAssignment {
    /// The network.
    pub network: NetworkName,
    /// The stack.
    pub stack: String,
    /// The service.
    pub service: String,
    /// `vip`: its names in DNS give `vips`, and connections to these are spread over the ready backends. `dnsrr`: its names give the
    /// addresses of the ready backends, and `vips` is empty.
    pub endpoint_mode: EndpointMode,
    /// Its virtual addresses, at most one a family. They lie in the network's subnet and belong to no container.
    pub vips: Vec<IpAddr>,
    /// Its running tasks in the order of their slots. None ready = connections are refused at once.
    pub backends: Vec<Backend>,
}

/// One task as a load balancer sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// The node it is on.
    pub node: NodeId,
    /// New connections may go there: it runs, is not unhealthy, its node is not suspect, and nobody is about to stop it. A backend that
    /// is not ready keeps the connections that it has.
    pub ready: bool,
}

/// A port that every node publishes for a service (`mode: ingress`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPortAssignment {
    /// The stack.
    pub stack: String,
    /// The service.
    pub service: String,
    /// Address of the host, `None` = all.
    pub host_ip: Option<IpAddr>,
    /// Port of the host, the same on every node.
    pub published: u16,
    /// Port inside.
    pub target: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Running tasks by the address of their first network, in the order of their slots, on this node and on others. One on another
    /// node is reached over the mesh, and this node need not have its network.
    pub backends: Vec<Backend>,
}

/// How published ports reach tasks on other nodes with the client's address kept: one VXLAN between all nodes on which addresses of
/// containers are routed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshAssignment {
    /// The VXLAN's number.
    pub vni: u32,
    /// UDP port of all VXLANs of the cluster.
    pub udp_port: u16,
    /// This node's place in it; `None` while it has said no address.
    pub own: Option<MeshPeer>,
    /// All other nodes, in the order of their ids.
    pub peers: Vec<MeshPeer>,
}

/// A node's place in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MeshPeer {
    /// The node.
    pub node: NodeId,
    /// Its address between nodes.
    pub underlay: IpAddr,
    /// Its number from 1, never another node's while it is in the cluster: for firewall marks and routing tables.
    pub number: u16,
    /// Its address on the mesh.
    pub address: Ipv4Addr,
}
