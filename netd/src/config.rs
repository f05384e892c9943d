//! What callers ask of netd and what it tells them: networks, sandboxes, endpoints, ports. Plain values; deciding who gets
//! which address, and what a service is, happens elsewhere.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::address::{Mac, Prefix};

/// Where an instance of netd lives.
#[derive(Debug, Clone)]
pub struct NetdConfig {
    /// Name of the agent's instance. Every kernel object's name comes from it, so that two agents can share a kernel. The
    /// instance `orch` is the default one and owns the table `orch`; any other owns `orch-<instance>`.
    pub instance: String,
    /// Directory for namespace files and records, on a file system that a reboot empties (`/run/orch/netd`).
    pub run_dir: PathBuf,
}

/// Name of a network, chosen by the caller, unique in the instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(pub String);

/// Name of a sandbox, chosen by the caller, unique in the instance. It becomes a file name: letters, digits, `-`, `_`, `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(pub String);

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NetworkId {
    fn from(text: &str) -> Self {
        NetworkId(text.to_owned())
    }
}

impl From<&str> for SandboxId {
    fn from(text: &str) -> Self {
        SandboxId(text.to_owned())
    }
}

/// One network: a bridge on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Its name.
    pub id: NetworkId,
    /// IPv4 subnet. `None`: the network has no IPv4.
    pub subnet4: Option<Prefix>,
    /// The bridge's own address in `subnet4`. `None` with a subnet: the host has no address there (and no way out).
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6 subnet. `None`: the network has no IPv6.
    pub subnet6: Option<Prefix>,
    /// The bridge's own address in `subnet6`.
    pub gateway6: Option<Ipv6Addr>,
    /// No way out and none in: no default route, nothing forwarded, ports not published.
    pub internal: bool,
    /// Containers on it reach each other (Docker's `enable_icc`).
    pub icc: bool,
    /// What leaves through the host carries the host's address. `false`: the network is routed as it is.
    pub masquerade: bool,
    /// Link MTU in bytes; 0 = 1500, of which what leaves the network keeps to the MTU of the host's default route.
    pub mtu: u32,
    /// Name of the bridge (Docker's `com.docker.network.bridge.name`). `None`: derived from instance and id.
    pub bridge_name: Option<String>,
}

impl NetworkConfig {
    /// A plain IPv4 network: way out through the host, containers see each other.
    pub fn new(id: &str, subnet4: Prefix, gateway4: Ipv4Addr) -> NetworkConfig {
        NetworkConfig {
            id: id.into(),
            subnet4: Some(subnet4),
            gateway4: Some(gateway4),
            subnet6: None,
            gateway6: None,
            internal: false,
            icc: true,
            masquerade: true,
            mtu: 0,
            bridge_name: None,
        }
    }
}

/// One network namespace with its endpoints and published ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Its name.
    pub id: SandboxId,
    /// Its interfaces. An endpoint without interface name is called `ethN`, N being its place in this list.
    pub endpoints: Vec<EndpointConfig>,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortRequest>,
    /// Settings below `/proc/sys/net` of the namespace, as sysctl names (`net.core.somaxconn`), in order.
    pub sysctls: Vec<(String, String)>,
}

/// One interface in a sandbox, on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointConfig {
    /// The network; it must exist.
    pub network: NetworkId,
    /// Address in the network's IPv4 subnet.
    pub ipv4: Option<Ipv4Addr>,
    /// Address in the network's IPv6 subnet.
    pub ipv6: Option<Ipv6Addr>,
    /// MAC address. `None`: derived from the address.
    pub mac: Option<Mac>,
    /// Name inside. `None`: the first free `ethN`.
    pub interface: Option<String>,
    /// The endpoint with the highest one gives the default route, for each family alone; ties go to the first in order.
    pub gateway_priority: i32,
}

impl EndpointConfig {
    /// An endpoint with an IPv4 address and everything else by default.
    pub fn new(network: &str, ipv4: Ipv4Addr) -> EndpointConfig {
        EndpointConfig {
            network: network.into(),
            ipv4: Some(ipv4),
            ipv6: None,
            mac: None,
            interface: None,
            gateway_priority: 0,
        }
    }
}

/// A transport protocol that can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP. Reserved by no socket (the host need not have the protocol); served by rules only.
    Sctp,
}

impl Protocol {
    /// The number in the IP header (`IPPROTO_*`).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// A port of the host that shall lead to a port of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRequest {
    /// Address of the host. `None`: every address, of both families.
    pub host_ip: Option<IpAddr>,
    /// First and last port of the host to choose from; the first free one is taken. `(0, 0)` = any free one.
    pub host_ports: (u16, u16),
    /// Port inside.
    pub target: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl PortRequest {
    /// A TCP port on every address of the host.
    pub fn tcp(host: u16, target: u16) -> PortRequest {
        PortRequest { host_ip: None, host_ports: (host, host), target, protocol: Protocol::Tcp }
    }

    /// A UDP port on every address of the host.
    pub fn udp(host: u16, target: u16) -> PortRequest {
        PortRequest { protocol: Protocol::Udp, ..PortRequest::tcp(host, target) }
    }

    /// The same on one address of the host only.
    pub fn on(self, host_ip: IpAddr) -> PortRequest {
        PortRequest { host_ip: Some(host_ip), ..self }
    }
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Address of the host. `None`: every address, of both families.
    pub host_ip: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port inside.
    pub target: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A sandbox as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// What was asked for.
    pub config: SandboxConfig,
    /// File to open or bind for joining its network namespace; it outlives the agent.
    pub netns: PathBuf,
    /// Its interfaces, in the order of `config.endpoints`.
    pub endpoints: Vec<Endpoint>,
    /// Its ports with the chosen host ports, in the order of `config.ports`.
    pub ports: Vec<PublishedPort>,
}

/// One interface of a sandbox as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network.
    pub network: NetworkId,
    /// Name inside the sandbox.
    pub interface: String,
    /// Name of the host's end.
    pub host_interface: String,
    /// MAC address inside.
    pub mac: Mac,
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

/// All that shall exist on this host, for [`crate::Netd::sync`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredNetworking {
    /// The networks.
    pub networks: Vec<NetworkConfig>,
    /// The sandboxes.
    pub sandboxes: Vec<SandboxConfig>,
}
