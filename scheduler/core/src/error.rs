//! Why a command is refused. A refused command has changed nothing.

use std::net::IpAddr;

use orch_spec::assignment::NetworkName;

use crate::member::MemberRefusal;
use crate::security::SecurityFault;

/// What to do about an error, and its stable word for programs.
pub trait Hint {
    /// The word: `not_found`, `conflict`, `invalid`, `in_use`, `unavailable`, `superseded`.
    fn code(&self) -> &'static str;
    /// What the user can do, when that is known.
    fn hint(&self) -> Option<String>;
}

/// A command that cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request contradicts itself.
    #[error(transparent)]
    Spec(#[from] SpecFault),
    /// It names something that is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// It wants what somebody else has.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// The managers cannot be changed so.
    #[error(transparent)]
    Member(#[from] MemberRefusal),
    /// Somebody is not let in.
    #[error(transparent)]
    Security(#[from] SecurityFault),
    /// The stack is being taken down.
    #[error("stack {stack} is being taken down")]
    Busy {
        /// The stack.
        stack: String,
    },
    /// A node that has data which is nowhere else, and in use.
    #[error("node {node} has what is nowhere else: volume {}", list(volumes))]
    OnlyCopy {
        /// The node's host name.
        node: String,
        /// The volumes.
        volumes: Vec<String>,
    },
    /// A node that answers is not removed.
    #[error("node {node} still answers")]
    Alive {
        /// The node's host name.
        node: String,
    },
    /// A node has said something newer since.
    #[error("node {node} has said something newer since")]
    Superseded {
        /// The node.
        node: String,
        /// The number of the session in which it did.
        session: u64,
    },
    /// Something that is used cannot be removed.
    #[error("{kind} {name} is in use by {}", list(users))]
    InUse {
        /// `network` or `volume`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Containers or stacks that use it.
        users: Vec<String>,
    },
}

/// A request that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecFault {
    /// A name that cannot be one.
    #[error("{kind} name `{name}` is not valid")]
    Name {
        /// What is named.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A key that nothing defines.
    #[error("service {service} refers to {kind} {key}, which the stack does not define")]
    Undefined {
        /// The service that refers to it.
        service: String,
        /// `network`, `volume`, `secret`, `config`, `service`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// Services that wait for each other.
    #[error("services depend on each other in a circle: {}", services.join(" -> "))]
    Cycle {
        /// The circle; the first is repeated at its end.
        services: Vec<String>,
    },
    /// More replicas than one service or the cluster may have.
    #[error("service {service} wants {wanted} replicas; at most {limit} are possible")]
    TooMany {
        /// The service.
        service: String,
        /// How many.
        wanted: u64,
        /// The bound.
        limit: u64,
    },
    /// One name for several containers.
    #[error("service {service} has container_name {name} and {replicas} replicas; a name fits one container only")]
    NamedReplicas {
        /// The service.
        service: String,
        /// The name.
        name: String,
        /// The replicas.
        replicas: u32,
    },
    /// One address for several containers.
    #[error(
        "service {service} has the address {address} on network {network} and {replicas} replicas; an address fits one container only"
    )]
    AddressedReplicas {
        /// The service.
        service: String,
        /// The network.
        network: NetworkName,
        /// The address.
        address: IpAddr,
        /// The replicas.
        replicas: u32,
    },
    /// A secret or config whose content nobody has.
    #[error("service {service} uses {kind} {key}, whose content is not here ({why})")]
    NoContent {
        /// The service.
        service: String,
        /// `secret` or `config`.
        kind: &'static str,
        /// The key.
        key: String,
        /// Why there is none.
        why: &'static str,
    },
    /// Addresses that do not fit together.
    #[error("network {network}: {problem}")]
    Network {
        /// The network.
        network: NetworkName,
        /// What is wrong with it.
        problem: String,
    },
    /// A constraint or preference on what no node has.
    #[error("service {service} is to be placed by `{key}`, which no node can have")]
    Property {
        /// The service.
        service: String,
        /// What it asks for.
        key: String,
    },
    /// Options that exclude each other.
    #[error("{0}")]
    Options(String),
    /// Something that no node can carry out.
    #[error("{of} has {what}, which orch does not carry out")]
    Unsupported {
        /// The service, the volume.
        of: String,
        /// What.
        what: String,
        /// What there is instead.
        hint: &'static str,
    },
}

/// Something that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No such stack.
    #[error("no such stack: {0}")]
    Stack(String),
    /// No such service in the stack.
    #[error("no such service: {service} (stack {stack} has {})", list(has))]
    Service {
        /// The stack.
        stack: String,
        /// The service.
        service: String,
        /// Those that it has.
        has: Vec<String>,
    },
    /// No such task.
    #[error("no such task: {0}")]
    Task(String),
    /// No such network.
    #[error("no such network: {0}")]
    Network(String),
    /// No such volume.
    #[error("no such volume: {0}")]
    Volume(String),
    /// No such node.
    #[error("no such node: {0}")]
    Node(String),
    /// Nothing to go back to.
    #[error("service {service} of stack {stack} has no earlier version to go back to")]
    Version {
        /// The stack.
        stack: String,
        /// The service.
        service: String,
    },
    /// A secret or config.
    #[error("no such {kind}: {name}")]
    Object {
        /// `secret` or `config`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// An external network, volume, secret or config that must be made first.
    #[error("external {kind} {name} (key {key} of stack {stack}) does not exist")]
    External {
        /// `network` or `volume`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key in the file.
        key: String,
        /// The stack.
        stack: String,
    },
    /// A container whose namespace is to be shared.
    #[error("service {service} shares the {namespace} namespace of {with}, which has no container")]
    Namespace {
        /// The service.
        service: String,
        /// `network`, `pid`, `ipc`.
        namespace: &'static str,
        /// The service or container that is not there.
        with: String,
    },
}

/// Two that want the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    /// A port of one host, twice.
    #[error("port {port}/{protocol} is wanted by {wants} but published by {has}")]
    Port {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: String,
        /// The container that wants it.
        wants: String,
        /// The container that has it.
        has: String,
    },
    /// A range with fewer ports than containers.
    #[error("the ports {first}-{last}/{protocol} are too few: no port is left for {wants}")]
    PortRange {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
        /// The protocol.
        protocol: String,
        /// The container that gets none.
        wants: String,
    },
    /// A container name, twice.
    #[error("container name {name} is wanted by {wants} but taken by {has}")]
    ContainerName {
        /// The name.
        name: String,
        /// The service that wants it.
        wants: String,
        /// The service that has it.
        has: String,
    },
    /// An address, twice.
    #[error("address {address} on network {network} is wanted by {wants} but held by {has}")]
    Address {
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkName,
        /// Who wants it.
        wants: String,
        /// Who has it.
        has: String,
    },
    /// No address left.
    #[error("network {network} ({subnet}) has no address left for {wants}")]
    Exhausted {
        /// The network.
        network: NetworkName,
        /// Its subnet.
        subnet: String,
        /// Who wants one.
        wants: String,
    },
    /// A subnet that is in use.
    #[error("the subnet {subnet} of network {network} overlaps with {other}")]
    Subnet {
        /// The network.
        network: NetworkName,
        /// Its subnet.
        subnet: String,
        /// `network x (10.0.0.0/24)` or `the host's route 10.0.0.0/8`.
        other: String,
    },
    /// No subnet left.
    #[error(
        "no subnet is left for network {network}: every one of {pools} overlaps with another network or with a route of the host"
    )]
    NoSubnet {
        /// The network.
        network: NetworkName,
        /// The pools that were tried.
        pools: String,
    },
    /// A network or volume of the same name that is not this stack's.
    #[error("{kind} {name} exists already and belongs to {owner}, not to stack {stack}")]
    Owner {
        /// `network` or `volume`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// `stack x` or `nobody (it was made by hand)`.
        owner: String,
        /// The stack that wants it.
        stack: String,
    },
    /// A network that others use too and that would have to be made anew.
    #[error("network {name} has changed ({change}) but is also used by {}", list(users))]
    NetworkShared {
        /// Its name.
        name: String,
        /// What has changed.
        change: String,
        /// Who else uses it.
        users: Vec<String>,
    },
    /// A volume with data in it whose definition has changed.
    #[error("volume {name} exists with another definition ({change})")]
    VolumeChanged {
        /// Its name.
        name: String,
        /// What has changed.
        change: String,
    },
    /// Something of this name exists.
    #[error("{kind} {name} exists already")]
    Exists {
        /// `network`, `volume` or `container`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

impl Hint for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Spec(_) => "invalid",
            Self::Missing(_) => "not_found",
            Self::Clash(_) => "conflict",
            Self::Security(fault) => fault.code(),
            Self::Busy { .. } => "unavailable",
            Self::Superseded { .. } => "superseded",
            Self::Member(MemberRefusal::Unknown(_)) => "not_found",
            Self::Member(_) => "conflict",
            Self::InUse { .. } | Self::Alive { .. } | Self::OnlyCopy { .. } => "in_use",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Spec(fault) => fault.hint(),
            Self::Missing(missing) => missing.hint(),
            Self::Clash(clash) => clash.hint(),
            Self::Security(fault) => fault.hint(),
            Self::Busy { stack } => {
                Some(format!("wait until `orch ls` does not show {stack} any more, then try again"))
            }
            Self::Superseded { .. } => None,
            Self::Alive { node } => {
                Some(format!("`orch cluster leave` on {node}, or drain and stop it first; --force removes it as it is"))
            }
            Self::OnlyCopy { .. } => {
                Some("what uses it waits for its node; with --force it begins elsewhere with an empty one".to_owned())
            }
            Self::InUse { kind, .. } => Some(format!("remove what uses the {kind} first")),
            Self::Member(MemberRefusal::Last { .. }) => Some(
                "add another manager and wait until it votes, or take the cluster down with its last node".to_owned(),
            ),
            Self::Member(_) => None,
        }
    }
}

impl SpecFault {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name { kind: "stack", .. } => {
                "use lower-case letters, digits, `-` and `_`, at most 200; begin with a letter or digit".to_owned()
            }
            Self::Name { .. } => {
                "use letters, digits, `.`, `-` and `_`, at most 200 with the stack's name; begin with a letter or digit"
                    .to_owned()
            }
            Self::Cycle { .. } => "remove one of these depends_on entries, links or shared namespaces".to_owned(),
            Self::NamedReplicas { .. } => "remove container_name, or scale to 1".to_owned(),
            Self::AddressedReplicas { .. } => "remove the address, or scale to 1".to_owned(),
            Self::NoContent { kind, .. } => format!("give the {kind} a `file`, `environment` or `content`"),
            Self::Undefined { kind, key, .. } => {
                format!("add `{key}` to the stack's {kind}s, or correct the reference")
            }
            Self::Property { key, .. } => {
                let all = "there are node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, \
                           node.labels.NAME and engine.labels.NAME";
                crate::place::meant(key).map_or_else(|| all.to_owned(), |meant| format!("{meant} {all}"))
            }
            Self::Unsupported { hint, .. } => (*hint).to_owned(),
            Self::TooMany { .. } | Self::Network { .. } | Self::Options(_) => return None,
        })
    }
}

impl Missing {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Object { kind, .. } => format!("`orch {kind} ls` lists the {kind}s that exist"),
            Self::External { kind: kind @ ("secret" | "config"), name, .. } => {
                format!("`orch {kind} create {name} FILE` makes it; without `external: true` the stack makes its own")
            }
            Self::External { kind, name, .. } => {
                format!("`orch {kind} create {name}` makes it; without `external: true` the stack makes its own")
            }
            Self::Stack(_) => "`orch ls` lists the stacks that exist".to_owned(),
            Self::Network(_) => "`orch network ls` lists the networks that exist".to_owned(),
            Self::Volume(_) => "`orch volume ls` lists the volumes that exist".to_owned(),
            Self::Namespace { with, .. } => format!("bring up {with} first"),
            Self::Task(_) => "`orch ps -a` lists the containers that exist".to_owned(),
            Self::Node(_) => "`orch node ls` lists the nodes".to_owned(),
            Self::Service { .. } | Self::Version { .. } => return None,
        })
    }
}

impl Clash {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Port { .. } => "publish another port, or a range such as `8080-8089:80`".to_owned(),
            Self::PortRange { .. } => "widen the range, or leave the host's port out to take any free one".to_owned(),
            Self::Exhausted { .. } => {
                "give the network a larger subnet (`ipam: config: - subnet: 10.20.0.0/16`)".to_owned()
            }
            Self::Subnet { .. } => "choose another subnet, or leave it out so that a free one is taken".to_owned(),
            Self::NoSubnet { .. } => "give the network a free subnet (`ipam: config: - subnet: …`)".to_owned(),
            Self::Owner { kind, .. } => {
                format!("say `external: true` to use the existing {kind}, or give this one another `name`")
            }
            Self::NetworkShared { .. } => "stop these first, or give the network another `name`".to_owned(),
            Self::VolumeChanged { name, .. } => {
                format!(
                    "its data would be lost: `orch volume rm {name}` removes it, or give the new one another `name`"
                )
            }
            Self::ContainerName { .. } | Self::Address { .. } | Self::Exists { .. } => return None,
        })
    }
}

/// At most this many names in one message.
const LISTED: usize = 8;

fn list(names: &[String]) -> String {
    match names.len() {
        0 => "nothing".to_owned(),
        count if count > LISTED => format!("{} and {} more", names[..LISTED].join(", "), count - LISTED),
        _ => names.join(", "),
    }
}
