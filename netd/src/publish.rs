//! Published ports: held by a socket, led to a sandbox by the table, and by the relay where the table cannot.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{EndpointConfig, NetworkId, PortRequest, Protocol, PublishedPort, SandboxConfig, SandboxId};
use crate::conntrack::Led;
use crate::error::NetdError;
use crate::netd::{NetworkState, Shared, State, lock};
use crate::nft::Element;
use crate::nft::ruleset::{self, Set};
use crate::nft::table::Change;
use crate::port::{self, Held, PortError, PortOwner, Reservation};
use crate::record::{self, SandboxRecord};
use crate::relay::Served;

use std::collections::BTreeMap;

/// What keeps a published port ours.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) port: PublishedPort,
    /// Sockets that only hold the number.
    _held: Vec<Held>,
    /// Sockets that the relay serves on.
    served: Vec<Served>,
}

/// Where a sandbox is reached: addresses on networks that have a way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl Reach {
    /// The endpoint with the highest gateway priority has the ports, for each family alone; internal networks have none.
    pub(crate) fn of(config: &SandboxConfig, networks: &BTreeMap<NetworkId, NetworkState>) -> Reach {
        let open = |endpoint: &&EndpointConfig| {
            networks.get(&endpoint.network).is_some_and(|network| !network.record.config.internal)
        };
        let best = |has: fn(&EndpointConfig) -> bool| {
            let candidates = config.endpoints.iter().filter(open).filter(|endpoint| has(endpoint));
            // Of equal ones the first: max_by_key would take the last.
            candidates.rev().max_by_key(|endpoint| endpoint.gateway_priority)
        };
        Reach {
            ipv4: best(|e| e.ipv4.is_some()).and_then(|e| e.ipv4),
            ipv6: best(|e| e.ipv6.is_some()).and_then(|e| e.ipv6),
        }
    }

    /// By one address of IPv4.
    pub(crate) fn of_ipv4(address: Ipv4Addr) -> Reach {
        Reach { ipv4: Some(address), ipv6: None }
    }

    /// Its addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6)).collect()
    }

    fn is_none(&self) -> bool {
        self.ipv4.is_none() && self.ipv6.is_none()
    }

    /// The address for what arrives with this family: the same family's if there is one.
    fn from(&self, ipv4: bool) -> Option<IpAddr> {
        let (four, six) = (self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6));
        if ipv4 { four.or(six) } else { six.or(four) }
    }
}

/// What the table has for a published port.
fn elements(port: &PublishedPort, reach: &Reach) -> Vec<(Set, Element)> {
    let host = port.host_ip.filter(|address| !address.is_unspecified());
    let wants = |ipv4: bool| port.host_ip.is_none_or(|address| address.is_ipv4() == ipv4);
    let targets = [reach.ipv4.map(IpAddr::V4), reach.ipv6.map(IpAddr::V6)];
    targets
        .into_iter()
        .flatten()
        .filter(|target| wants(target.is_ipv4()))
        .map(|target| ruleset::published(host, port.host_port, port.protocol, (target, port.target)))
        .collect()
}

/// The ways in by these ports.
pub(crate) fn ways(ports: &[PublishedPort], reach: &Reach) -> Vec<Led> {
    let targets = reach.addresses();
    let led = |port: &PublishedPort| {
        let (protocol, host_port) = (port.protocol.number(), port.host_port);
        targets.iter().map(move |target| Led { target: *target, protocol, host_port }).collect::<Vec<_>>()
    };
    ports.iter().flat_map(led).collect()
}

/// What the table has for all ports of a sandbox.
pub(crate) fn sandbox_elements(
    record: &SandboxRecord,
    networks: &BTreeMap<NetworkId, NetworkState>,
) -> Vec<(Set, Element)> {
    let reach = Reach::of(&record.config, networks);
    record.ports.iter().flat_map(|port| elements(port, &reach)).collect()
}

impl Shared {
    /// Takes all the ports asked for, or none. Ports of a sandbox that has no way in are left out.
    pub(crate) fn reserve(
        &self,
        id: &SandboxId,
        requests: &[PortRequest],
        reach: &Reach,
    ) -> Result<Vec<Holding>, NetdError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        if reach.is_none() {
            tracing::warn!(sandbox = %id, "its ports are not published: it is on internal networks only");
            return Ok(Vec::new());
        }
        let led4 = reach.ipv4.is_some();
        let reserved: Result<Vec<Reservation>, PortError> =
            self.in_host(|| requests.iter().map(|request| port::reserve(request, led4)).collect())?;
        let reserved = reserved.map_err(|error| self.name_sandbox(error))?;
        reserved.into_iter().map(|reservation| self.hold(reservation, reach)).collect()
    }

    /// Our own process as the owner of a port says nothing: the sandbox does.
    pub(crate) fn name_sandbox(&self, mut error: PortError) -> PortError {
        let (port, wanted, owner) = match &mut error {
            PortError::Taken { port, protocol, owner, .. } => (*port, *protocol, owner),
            PortError::AllTaken { first, protocol, owner, .. } => (*first, *protocol, owner),
            _ => return error,
        };
        let ours = matches!(owner, PortOwner::Process { pid, .. } if *pid == std::process::id());
        if ours {
            let state = lock(&self.state);
            let has = |ports: &[PublishedPort]| ports.iter().any(|p| p.host_port == port && p.protocol == wanted);
            if let Some((id, _)) = state.sandboxes.iter().find(|(_, sandbox)| has(&sandbox.record.ports)) {
                *owner = PortOwner::Sandbox(id.0.clone());
            }
        }
        error
    }

    /// Lets the relay serve on the sockets that are of use to it.
    pub(crate) fn hold(&self, reservation: Reservation, reach: &Reach) -> Result<Holding, NetdError> {
        let port = reservation.port;
        let mut holding = Holding { port, _held: Vec::new(), served: Vec::new() };
        for held in reservation.held {
            let local = match &held {
                Held::Tcp(listener) => listener.local_addr(),
                Held::Udp(socket) => socket.local_addr(),
                Held::Led(_) => {
                    holding._held.push(held);
                    continue;
                }
            };
            let local = local.map_err(NetdError::system("read a socket's address"))?;
            let Some(target) = reach.from(local.is_ipv4()) else { continue };
            let served = self.relay.serve(held, SocketAddr::new(target, port.target));
            holding.served.push(served.map_err(NetdError::system(format!("serve port {}", port.host_port)))?);
        }
        Ok(holding)
    }

    /// Takes the ports of a record again, after a restart. What somebody took meanwhile is said; the table still leads it.
    pub(crate) fn hold_again(&self, record: &SandboxRecord, reach: &Reach) -> Vec<Holding> {
        let mut holdings = Vec::new();
        for port in &record.ports {
            let request = PortRequest {
                host_ip: port.host_ip,
                host_ports: (port.host_port, port.host_port),
                target: port.target,
                protocol: port.protocol,
            };
            match self.reserve(&record.config.id, &[request], reach) {
                Ok(mut held) => holdings.append(&mut held),
                Err(error) => {
                    tracing::warn!(sandbox = %record.config.id, %error, "a published port cannot be held any more; it is served all the same");
                }
            }
        }
        holdings
    }

    /// UDP flows towards these ports that began before they led anywhere would never be led.
    pub(crate) fn forget_flows_to(&self, ports: &[PublishedPort]) {
        let udp: Vec<u16> =
            ports.iter().filter(|port| port.protocol == Protocol::Udp).map(|port| port.host_port).collect();
        if !udp.is_empty() {
            self.forgetting.udp_ports(udp);
        }
    }

    /// Flows to addresses that nobody has any more.
    pub(crate) fn forget_flows_of(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut addresses = addresses.into_iter().peekable();
        if addresses.peek().is_some() {
            self.forgetting.targets(addresses);
        }
    }

    pub(crate) fn publish(&self, id: &SandboxId, ports: &[PortRequest]) -> Result<Vec<PublishedPort>, NetdError> {
        let _busy = self.begin(id, false)?;
        let (mut record, networks) = self.sandbox_and_networks(id)?;
        let reach = Reach::of(&record.config, &networks);
        let holdings = self.reserve(id, ports, &reach)?;
        let published: Vec<PublishedPort> = holdings.iter().map(|holding| holding.port).collect();
        let add = published.iter().flat_map(|port| elements(port, &reach)).collect();
        record.ports.extend(&published);
        record.config.ports.extend(ports);
        record::write(&self.run_dir.sandbox(&id.0), &record)?;
        self.forgetting.wait_for(&ways(&published, &reach));
        lock(&self.table).apply(Change { remove: Vec::new(), add })?;
        self.forget_flows_to(&published);
        self.change_sandbox(id, |sandbox| {
            sandbox.record = record;
            sandbox.holdings.extend(holdings);
        });
        Ok(published)
    }

    pub(crate) fn unpublish(&self, id: &SandboxId, ports: &[PublishedPort]) -> Result<(), NetdError> {
        let _busy = self.begin(id, false)?;
        let (mut record, networks) = self.sandbox_and_networks(id)?;
        let reach = Reach::of(&record.config, &networks);
        let (going, staying): (Vec<_>, Vec<_>) = record.ports.iter().partition(|port| ports.contains(port));
        let remove = going.iter().flat_map(|port| elements(port, &reach)).collect();
        record.ports = staying;
        let was_asked = |request: &PortRequest, port: &PublishedPort| {
            let (first, last) = request.host_ports;
            request.host_ip == port.host_ip
                && request.target == port.target
                && request.protocol == port.protocol
                && (last == 0 || (first..=last).contains(&port.host_port))
        };
        for port in &going {
            if let Some(at) = record.config.ports.iter().position(|request| was_asked(request, port)) {
                record.config.ports.remove(at);
            }
        }
        lock(&self.table).apply(Change { remove, add: Vec::new() })?;
        record::write(&self.run_dir.sandbox(&id.0), &record)?;
        let mut closing = Vec::new();
        self.change_sandbox(id, |sandbox| {
            sandbox.record = record.clone();
            closing = take(&mut sandbox.holdings, |holding| going.contains(&holding.port));
        });
        close(closing);
        self.forgetting.led(ways(&going, &reach));
        Ok(())
    }
}

/// Takes out what fits.
fn take<T>(from: &mut Vec<T>, fits: impl Fn(&T) -> bool) -> Vec<T> {
    let (taken, left) = std::mem::take(from).into_iter().partition(fits);
    *from = left;
    taken
}

/// Gives ports back: all sockets are told before the first is waited for.
pub(crate) fn close(holdings: Vec<Holding>) {
    holdings.iter().flat_map(|holding| &holding.served).for_each(Served::stop);
    drop(holdings);
}

/// Everything that the table shall hold.
pub(crate) fn all_elements(state: &State) -> Vec<(Set, Element)> {
    let networks = state.networks.values().flat_map(|network| crate::network::elements(&network.record));
    let ports = state.sandboxes.values().flat_map(|sandbox| sandbox_elements(&sandbox.record, &state.networks));
    networks.chain(ports).collect()
}
