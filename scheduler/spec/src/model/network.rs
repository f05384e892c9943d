//! Networks, attachments and published ports.

use super::value::DataMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// One network of the stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSpec {
    /// Its name outside of the stack: `<stack>_<key>` unless the file names it.
    pub name: String,
    /// Driver; `None` = bridge on one host, overlay on a cluster.
    pub driver: Option<String>,
    /// Options of the driver.
    pub driver_opts: BTreeMap<String, String>,
    /// Address management.
    pub ipam: IpamSpec,
    /// Must exist already; orch never makes or removes it.
    pub external: bool,
    /// No way out.
    pub internal: bool,
    /// Containers outside of the stack may join.
    pub attachable: bool,
    /// Default true.
    pub enable_ipv4: Option<bool>,
    /// Default false.
    pub enable_ipv6: Option<bool>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `x-*` keys.
    pub extensions: DataMap,
}

/// Address management of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamSpec {
    /// Driver; only `default` is known.
    pub driver: Option<String>,
    /// Pools.
    pub config: Vec<IpamPool>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// One pool of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamPool {
    /// Subnet in CIDR notation.
    pub subnet: Option<String>,
    /// The part that containers get addresses from, in CIDR notation.
    pub ip_range: Option<String>,
    /// The bridge's address.
    pub gateway: Option<IpAddr>,
    /// Addresses never given away, by host name.
    pub aux_addresses: BTreeMap<String, IpAddr>,
}

/// A service's place in one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkAttachment {
    /// Further names, beside the service's own.
    pub aliases: Vec<String>,
    /// Fixed IPv4 address.
    pub ipv4_address: Option<IpAddr>,
    /// Fixed IPv6 address.
    pub ipv6_address: Option<IpAddr>,
    /// Link-local addresses.
    pub link_local_ips: Vec<IpAddr>,
    /// Fixed MAC address.
    pub mac_address: Option<String>,
    /// Interface name in the container.
    pub interface_name: Option<String>,
    /// Options of the driver for this endpoint.
    pub driver_opts: BTreeMap<String, String>,
    /// Order of attaching: highest first, then by name.
    pub priority: i32,
    /// The network with the highest is the default gateway.
    pub gw_priority: i32,
}

/// Which network namespace a service lives in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Its own, attached to `networks`.
    #[default]
    Stack,
    /// Its own with nothing but `lo`.
    None,
    /// The node's.
    Host,
    /// Its own, attached to the engine's default bridge only.
    Bridge,
    /// That of another service's task.
    Service(String),
    /// That of a container.
    Container(String),
    /// Its own, attached to the one network of this name outside of the stack.
    Network(String),
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// One published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortSpec {
    /// Address on the node; `None` = all.
    pub host_ip: Option<IpAddr>,
    /// Port or range on the node; `None` = any free one. From a range the first free one is taken.
    pub published: Option<PortRange>,
    /// Port in the container.
    pub target: u16,
    /// Transport.
    pub protocol: Protocol,
    /// Through the routing mesh or only on the node of the task.
    pub mode: PublishMode,
    /// Name for people.
    pub name: Option<String>,
    /// Application protocol, a hint.
    pub app_protocol: Option<String>,
}

/// Inclusive range of ports; one port when both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// First.
    pub start: u16,
    /// Last.
    pub end: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end { write!(out, "{}", self.start) } else { write!(out, "{}-{}", self.start, self.end) }
    }
}

/// How a port is published on a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node.
    #[default]
    Ingress,
    /// On the node of the task.
    Host,
}
