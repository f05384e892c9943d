//! Links, addresses and routes over rtnetlink: requests built with the rtnetlink crates, sent many at a time.
//!
//! rtnetlink's own connection sends one datagram a request and wants an async runtime; a sandbox needs a dozen requests
//! whose answers nobody looks at unless one failed. So its builders are used, and [`crate::netlink`] sends.

pub(crate) mod wire;

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_core::{NetlinkSerializable, Parseable};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
    LinkMode, State,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use crate::address::{Mac, Prefix};
use crate::namespace::Namespace;
use crate::netlink::{Batch, CREATE, DUMP, EXCL, NetlinkError, NetlinkSocket};

use std::os::fd::AsRawFd;

/// A link as observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedLink {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Index of the bridge it belongs to.
    pub(crate) master: Option<u32>,
    pub(crate) mtu: u32,
}

/// A route as observed: main table only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedRoute {
    /// `None`: the default route.
    pub(crate) destination: Option<Prefix>,
    /// Index of the link it leads through.
    pub(crate) link: Option<u32>,
}

/// The host's end of a veth pair and the other end.
#[derive(Debug, Clone)]
pub(crate) struct VethPair<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) bridge: u32,
    pub(crate) namespace: &'a Namespace,
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    /// Does not talk to other isolated ports of the bridge.
    pub(crate) isolated: bool,
    /// What people see in `ip link`.
    pub(crate) alias: String,
}

/// Requests on links, collected.
#[derive(Debug, Default)]
pub(crate) struct LinkBatch {
    batch: Batch,
}

impl LinkBatch {
    pub(crate) fn new() -> LinkBatch {
        LinkBatch::default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.batch.len()
    }

    fn push(&mut self, message: &RouteNetlinkMessage, flags: u16) {
        self.batch.push(message.message_type(), flags, |bytes| {
            let start = bytes.len();
            bytes.resize(start + NetlinkSerializable::buffer_len(message), 0);
            message.serialize(&mut bytes[start..]);
        });
    }

    /// A bridge, up. Its MAC is given, or it would change with every port that comes and goes.
    pub(crate) fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) {
        let message = LinkMessageBuilder::<LinkBridge>::new(name).address(mac.0.to_vec()).mtu(mtu).up().build();
        self.push(&RouteNetlinkMessage::NewLink(message), CREATE | EXCL);
    }

    /// A veth pair whose other end is born inside the namespace: to move it there later costs 20 ms of waiting for RCU.
    /// The other end cannot be brought up from here (it is not linked yet): that is [`LinkBatch::up`] inside.
    pub(crate) fn add_veth(&mut self, pair: &VethPair<'_>) {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(pair.name)
            .address(pair.mac.0.to_vec())
            .mtu(pair.mtu)
            .setns_by_fd(pair.namespace.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(pair.host_name)
            .mtu(pair.mtu)
            .controller(pair.bridge)
            .up()
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.push(&RouteNetlinkMessage::NewLink(message), CREATE | EXCL);
        self.set_port(pair.host_name, pair.isolated, &pair.alias);
    }

    /// How a bridge port behaves. The kernel takes these only for a link that is there already.
    pub(crate) fn set_port(&mut self, name: &str, isolated: bool, alias: &str) {
        let port = vec![
            // A container that reaches itself through the host's port needs it when br_netfilter is on.
            InfoBridgePort::HairpinMode(true),
            InfoBridgePort::Isolated(isolated),
        ];
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .name(name)
            .alias(alias)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(port))
            .build();
        self.push(&RouteNetlinkMessage::NewLink(message), 0);
    }

    /// Stops a bridge port at once: unlike taking the link down or out of the bridge, this waits for nothing. A dormant link
    /// is not operational, so the bridge disables its port, and no late notice of the link's carrier enables it again (as
    /// it does a port that was merely told to be disabled).
    pub(crate) fn stop_port(&mut self, name: &str) {
        let message = LinkMessageBuilder::<LinkUnspec>::new()
            .name(name)
            .append_extra_attribute(LinkAttribute::OperState(State::Dormant))
            .append_extra_attribute(LinkAttribute::Mode(LinkMode::Dormant))
            .build();
        self.push(&RouteNetlinkMessage::SetLink(message), 0);
    }

    /// Describes a link to people.
    pub(crate) fn set_alias(&mut self, name: &str, alias: &str) {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).alias(alias).build();
        self.push(&RouteNetlinkMessage::SetLink(message), 0);
    }

    /// Sets a link up and its MTU.
    pub(crate) fn set_up(&mut self, index: u32, mtu: Option<u32>) {
        let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up();
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        self.push(&RouteNetlinkMessage::SetLink(message.build()), 0);
    }

    /// Makes a link a port of a bridge, and sets it up.
    pub(crate) fn set_controller(&mut self, name: &str, bridge: u32) {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).controller(bridge).up().build();
        self.push(&RouteNetlinkMessage::SetLink(message), 0);
    }

    /// Puts a link into a group, which can be deleted as one.
    pub(crate) fn set_group(&mut self, name: &str, group: u32) {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).link_group(group).build();
        self.push(&RouteNetlinkMessage::SetLink(message), 0);
    }

    /// Deletes all links of a group: the waiting for RCU is paid once.
    pub(crate) fn delete_group(&mut self, group: u32) {
        let message = LinkMessageBuilder::<LinkUnspec>::new().link_group(group).build();
        self.push(&RouteNetlinkMessage::DelLink(message), 0);
    }

    /// Deletes one link.
    pub(crate) fn delete(&mut self, name: &str) {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        self.push(&RouteNetlinkMessage::DelLink(message), 0);
    }

    /// Gives a link an address, usable at once: no other host can have it, so there is nothing to detect.
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, length: u8) {
        let message = match address {
            IpAddr::V4(v4) => {
                AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(v4, length).build()
            }
            IpAddr::V6(v6) => {
                let mut message =
                    AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(v6, length).build();
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
                message
            }
        };
        self.push(&RouteNetlinkMessage::NewAddress(message), CREATE | EXCL);
    }

    /// The default route. What takes it keeps to `mtu` bytes where there is one, and asks others to.
    pub(crate) fn add_default_route(&mut self, gateway: IpAddr, index: u32, mtu: Option<u32>) {
        let mut route = default_route(gateway, index);
        route.attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        self.push(&RouteNetlinkMessage::NewRoute(route), CREATE | EXCL);
    }

    /// Takes the default route away.
    pub(crate) fn delete_default_route(&mut self, gateway: IpAddr, index: u32) {
        self.push(&RouteNetlinkMessage::DelRoute(default_route(gateway, index)), 0);
    }
}

fn default_route(gateway: IpAddr, index: u32) -> RouteMessage {
    match gateway {
        IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(v4).output_interface(index).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(v6).output_interface(index).build(),
    }
}

/// An rtnetlink socket.
#[derive(Debug)]
pub(crate) struct LinkSocket {
    socket: NetlinkSocket,
}

impl LinkSocket {
    /// Opens one in the calling thread's namespace; it stays in that one wherever the thread goes.
    pub(crate) fn open() -> io::Result<LinkSocket> {
        Ok(LinkSocket { socket: NetlinkSocket::open(libc::NETLINK_ROUTE)? })
    }

    /// Sends all requests; every failed one is in the answer.
    pub(crate) fn send(&mut self, batch: LinkBatch) -> Result<(), Vec<NetlinkError>> {
        self.socket.send(batch.batch)
    }

    fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        flags: u16,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let mut batch = LinkBatch::new();
        batch.push(message, flags);
        self.socket.dump(batch.batch, each)
    }

    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<ObservedLink>, NetlinkError> {
        let mut links = Vec::new();
        self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), DUMP, |_, body| {
            links.extend(LinkMessage::parse(body).ok().map(observed_link));
        })?;
        Ok(links)
    }

    /// The link with this name; `None` when there is none.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<ObservedLink>, NetlinkError> {
        let mut link = None;
        let request = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        // Asking for an acknowledgement makes the answer end like a dump's.
        let outcome = self.dump(&RouteNetlinkMessage::GetLink(request), crate::netlink::ACK, |_, body| {
            link = LinkMessage::parse(body).ok().map(observed_link);
        });
        match outcome {
            Err(error) if error.errno == Errno::ENODEV => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(link),
        }
    }

    /// All addresses, each with the index of its link.
    pub(crate) fn addresses(&mut self) -> Result<Vec<(u32, Prefix)>, NetlinkError> {
        let mut addresses = Vec::new();
        self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), DUMP, |_, body| {
            let Ok(message) = AddressMessage::parse(body) else { return };
            let length = message.header.prefix_len;
            // A point-to-point link has its own address in LOCAL and the other's in ADDRESS.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            addresses.extend(local.or(any).map(|address| (message.header.index, Prefix::new(address, length))));
        })?;
        Ok(addresses)
    }

    /// All unicast routes of every table but the kernel's own `local`: VPN clients like tables of their own.
    pub(crate) fn routes(&mut self) -> Result<Vec<ObservedRoute>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            self.dump(&RouteNetlinkMessage::GetRoute(request), DUMP, |_, body| {
                let Ok(message) = RouteMessage::parse(body) else { return };
                if message.header.kind == RouteType::Unicast {
                    routes.push(observed_route(&message));
                }
            })?;
        }
        Ok(routes)
    }
}

fn observed_link(message: LinkMessage) -> ObservedLink {
    let mut link = ObservedLink {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        mtu: 0,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            _ => {}
        }
    }
    link
}

fn observed_route(message: &RouteMessage) -> ObservedRoute {
    let mut route = ObservedRoute { destination: None, link: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
                route.destination = Some(Prefix::new((*v4).into(), message.header.destination_prefix_length));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
                route.destination = Some(Prefix::new((*v6).into(), message.header.destination_prefix_length));
            }
            RouteAttribute::Oif(index) => route.link = Some(*index),
            _ => {}
        }
    }
    route
}
