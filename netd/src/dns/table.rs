//! What the embedded DNS knows: names and addresses of each network, and what each sandbox may see of them.
//!
//! The whole table is one immutable value behind an [`ArcSwap`](arc_swap::ArcSwap). A change makes a new table that shares
//! every network it did not touch, so a query never waits for a change and sees either all of it or nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::address::Prefix;
use crate::config::{NetworkId, SandboxId};

/// Longest name in presentation form, without the final dot: 255 bytes on the wire (RFC 1035 §2.3.4).
const LONGEST_NAME: usize = 253;
/// Longest label (RFC 1035 §2.3.4).
const LONGEST_LABEL: usize = 63;
/// Seconds an answer may be kept. Short, because an address that went away must not be used 5 s later; not 0, because a
/// client that asks for the same name in a burst may as well ask once.
const TTL_ADDRESS: u32 = 1;
/// Seconds for an address that stands for a service and stays while the tasks behind it change.
const TTL_VIRTUAL: u32 = 30;

/// Why a name has its addresses. Decides how long an answer may be kept, and which answers are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// A container's own name.
    Container,
    /// The first digits of a container's id.
    ShortId,
    /// A service: the addresses of its tasks.
    Service,
    /// A service: one address that balances over its tasks.
    Virtual,
    /// An additional name on this network.
    Alias,
    /// `<service>.<stack>`, which stays unique on a network that several stacks share.
    Qualified,
    /// `<n>.<service>`: one replica.
    Replica,
    /// `tasks.<service>`: all tasks, also where the service has a virtual address. Answers are never cut silently, because
    /// who asks for this name wants every one.
    Tasks,
}

impl RecordKind {
    fn ttl(self) -> u32 {
        if self == RecordKind::Virtual { TTL_VIRTUAL } else { TTL_ADDRESS }
    }
}

/// The addresses of one name on one network. Without any it is a name that is declared and has nothing running: it exists,
/// so that nobody upstream is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRecord {
    /// That of the first registration.
    pub kind: RecordKind,
    /// Its IPv4 addresses.
    pub v4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub v6: Vec<Ipv6Addr>,
}

impl NameRecord {
    /// Seconds that a client may keep the answer.
    pub fn ttl(&self) -> u32 {
        self.kind.ttl()
    }
}

/// A text that cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` cannot be a DNS name: {reason}")]
pub struct NameError {
    /// The text.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Lower case, without the final dot; checked.
fn canonical(name: &str) -> Result<String, NameError> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let error = |reason| Err(NameError { name: name.to_owned(), reason });
    if bare.is_empty() {
        return error("it is empty");
    }
    if bare.len() > LONGEST_NAME {
        return error("it is longer than 253 bytes");
    }
    if bare.split('.').any(|label| label.is_empty() || label.len() > LONGEST_LABEL) {
        return error("each part between dots must have 1 to 63 bytes");
    }
    if !bare.bytes().all(|byte| byte.is_ascii_graphic()) {
        return error("it has bytes other than visible ASCII");
    }
    Ok(bare.to_ascii_lowercase())
}

/// A suffix under which a network's names are also found, as in `db.shop_default`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Suffix {
    name: Arc<str>,
    /// Whether no public domain is meant by it: an unknown name under it does not exist, and nobody upstream is asked.
    owned: bool,
}

/// One network's names. Cloning copies two maps of shared records: for a thousand names some tens of microseconds.
#[derive(Debug, Clone, Default)]
pub struct NetworkRecords {
    suffixes: Vec<Suffix>,
    subnets: Vec<Prefix>,
    internal: bool,
    names: HashMap<Arc<str>, Arc<NameRecord>>,
    reverse: HashMap<IpAddr, Arc<str>>,
}

impl NetworkRecords {
    /// An empty network named `name`. Names on it are also found under `.name`, and reverse names end in it.
    ///
    /// Unknown names under it are answered "no such name" without asking upstream if the suffix cannot be a public domain,
    /// that is if it has an underscore, as Compose's `<project>_<network>` has. A network named `dev` would otherwise hide the
    /// whole of `.dev` from its containers. [`own_suffix`](Self::own_suffix) overrides this.
    ///
    /// # Errors
    /// When `name` cannot be part of a DNS name.
    pub fn new(name: &str) -> Result<NetworkRecords, NameError> {
        let mut records = NetworkRecords::default();
        records.suffix(name)?;
        Ok(records)
    }

    /// A further suffix under which this network's names are found. Same rule for unknown names.
    ///
    /// # Errors
    /// When `name` cannot be part of a DNS name.
    pub fn suffix(&mut self, name: &str) -> Result<(), NameError> {
        let name: Arc<str> = canonical(name)?.into();
        let owned = name.contains('_');
        self.suffixes.push(Suffix { name, owned });
        Ok(())
    }

    /// A further suffix under which *only* this network's names exist, whatever it looks like.
    ///
    /// # Errors
    /// When `name` cannot be part of a DNS name.
    pub fn own_suffix(&mut self, name: &str) -> Result<(), NameError> {
        let name: Arc<str> = canonical(name)?.into();
        self.suffixes.retain(|suffix| suffix.name != name);
        self.suffixes.push(Suffix { name, owned: true });
        Ok(())
    }

    /// A subnet of the network: reverse names inside are answered here and never asked upstream.
    pub fn subnet(&mut self, subnet: Prefix) {
        self.subnets.push(subnet);
    }

    /// Whether the network has no way out. A sandbox with no other network is never forwarded for.
    pub fn set_internal(&mut self, internal: bool) {
        self.internal = internal;
    }

    /// Makes a name exist, without an address: a service that is declared and not running.
    ///
    /// # Errors
    /// When it cannot be a DNS name.
    pub fn declare(&mut self, name: &str, kind: RecordKind) -> Result<(), NameError> {
        self.record(name, kind)?;
        Ok(())
    }

    /// Adds an address to a name, which comes to exist if it did not. Adding the same twice is adding it once.
    ///
    /// # Errors
    /// When it cannot be a DNS name.
    pub fn add(&mut self, name: &str, kind: RecordKind, address: IpAddr) -> Result<(), NameError> {
        let record = self.record(name, kind)?;
        match address {
            IpAddr::V4(v4) if !record.v4.contains(&v4) => record.v4.push(v4),
            IpAddr::V6(v6) if !record.v6.contains(&v6) => record.v6.push(v6),
            _ => {}
        }
        Ok(())
    }

    fn record(&mut self, name: &str, kind: RecordKind) -> Result<&mut NameRecord, NameError> {
        let name: Arc<str> = canonical(name)?.into();
        let record =
            self.names.entry(name).or_insert_with(|| Arc::new(NameRecord { kind, v4: Vec::new(), v6: Vec::new() }));
        Ok(Arc::make_mut(record))
    }

    /// Makes a name not exist any more.
    pub fn remove(&mut self, name: &str) {
        if let Ok(name) = canonical(name) {
            self.names.remove(name.as_str());
        }
    }

    /// Takes an address from every name and from the reverse names; the names stay declared.
    pub fn remove_address(&mut self, address: IpAddr) {
        self.reverse.remove(&address);
        for record in self.names.values_mut() {
            let held = match address {
                IpAddr::V4(v4) => record.v4.contains(&v4),
                IpAddr::V6(v6) => record.v6.contains(&v6),
            };
            if held {
                let record = Arc::make_mut(record);
                record.v4.retain(|&v4| IpAddr::V4(v4) != address);
                record.v6.retain(|&v6| IpAddr::V6(v6) != address);
            }
        }
    }

    /// The one name that a reverse look-up of `address` gives; the network's name is appended to it.
    ///
    /// # Errors
    /// When it cannot be a DNS name.
    pub fn set_reverse(&mut self, address: IpAddr, name: &str) -> Result<(), NameError> {
        self.reverse.insert(address, canonical(name)?.into());
        Ok(())
    }

    /// What is known about a name (in lower case, without final dot).
    pub fn get(&self, name: &str) -> Option<&NameRecord> {
        self.names.get(name).map(Arc::as_ref)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// From where a sandbox's own upstream servers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dial {
    /// From inside the sandbox when the server is on one of its networks or its own loopback, else from the host.
    #[default]
    Auto,
    /// Always from the host.
    Host,
    /// Always from inside the sandbox, as for one whose traffic all goes through a tunnel of its own.
    Sandbox,
}

/// What one sandbox sees.
#[derive(Debug, Clone, Default)]
pub struct SandboxDns {
    /// Its networks, in the order in which they are searched.
    pub networks: Vec<NetworkId>,
    /// Names that mean another name, for this sandbox alone (`links: [db:database]` is `database` → `db`). Lower case.
    pub links: HashMap<String, String>,
    /// Servers to forward to (`dns:`). Empty: those of the host.
    pub upstreams: Vec<IpAddr>,
    /// From where they are asked.
    pub dial: Dial,
}

/// Everything, at one moment.
#[derive(Debug, Clone, Default)]
pub struct DnsTable {
    pub(super) networks: HashMap<NetworkId, Arc<NetworkRecords>>,
    pub(super) sandboxes: HashMap<SandboxId, Arc<SandboxDns>>,
}

/// What the table says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// It exists. The record has addresses of the wanted family if any network's has.
    Known(&'a NameRecord),
    /// It does not exist, and nobody else may say otherwise.
    Absent,
    /// Not ours: somebody upstream may know.
    Unknown,
}

/// Which addresses a look-up is for: among several networks that know a name, the first with such an address wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// `A`.
    V4,
    /// `AAAA`.
    V6,
    /// Anything else.
    Any,
}

impl Wanted {
    fn has(self, record: &NameRecord) -> bool {
        match self {
            Wanted::V4 => !record.v4.is_empty(),
            Wanted::V6 => !record.v6.is_empty(),
            Wanted::Any => true,
        }
    }
}

impl DnsTable {
    /// Adds a network, or replaces it whole.
    pub fn set_network(&mut self, network: NetworkId, records: NetworkRecords) {
        self.networks.insert(network, Arc::new(records));
    }

    /// The names of a network.
    pub fn network(&self, network: &NetworkId) -> Option<&NetworkRecords> {
        self.networks.get(network).map(Arc::as_ref)
    }

    /// Changes a network's records in place; false when there is no such network.
    pub fn edit_network(&mut self, network: &NetworkId, edit: impl FnOnce(&mut NetworkRecords)) -> bool {
        let Some(records) = self.networks.get_mut(network) else { return false };
        edit(Arc::make_mut(records));
        true
    }

    /// Forgets a network.
    pub fn remove_network(&mut self, network: &NetworkId) {
        self.networks.remove(network);
    }

    /// Adds a sandbox, or replaces what it sees.
    pub fn set_sandbox(&mut self, sandbox: SandboxId, mut dns: SandboxDns) {
        dns.links =
            dns.links.into_iter().map(|(from, to)| (from.to_ascii_lowercase(), to.to_ascii_lowercase())).collect();
        self.sandboxes.insert(sandbox, Arc::new(dns));
    }

    /// What a sandbox sees.
    pub fn sandbox(&self, sandbox: &SandboxId) -> Option<&SandboxDns> {
        self.sandboxes.get(sandbox).map(Arc::as_ref)
    }

    /// Forgets a sandbox; its queries are answered SERVFAIL from then on.
    pub fn remove_sandbox(&mut self, sandbox: &SandboxId) {
        self.sandboxes.remove(sandbox);
    }

    fn networks_of<'a>(&'a self, sandbox: &'a SandboxDns) -> impl Iterator<Item = &'a NetworkRecords> {
        sandbox.networks.iter().filter_map(|id| self.network(id))
    }

    /// Looks a name up for a sandbox. `name` is in lower case and has no final dot.
    ///
    /// `a.b.c` is first the name `a.b.c` on each network, then `a.b` on a network called `c`, then `a` on one called `b.c`.
    pub fn lookup<'a>(&'a self, sandbox: &'a SandboxDns, name: &str, wanted: Wanted) -> Lookup<'a> {
        let mut known = None;
        let mut owned = false;
        let link = sandbox.links.get(name).map(String::as_str);
        for name in link.into_iter().chain([name]) {
            for network in self.networks_of(sandbox) {
                if let Some(record) = network.get(name) {
                    if wanted.has(record) {
                        return Lookup::Known(record);
                    }
                    known.get_or_insert(record);
                }
            }
        }
        for (dot, _) in name.rmatch_indices('.') {
            let (head, tail) = (&name[..dot], &name[dot + 1..]);
            for network in self.networks_of(sandbox) {
                let Some(suffix) = network.suffixes.iter().find(|suffix| *suffix.name == *tail) else { continue };
                owned |= suffix.owned;
                let link = sandbox.links.get(head).and_then(|target| network.get(target));
                for record in link.into_iter().chain(network.get(head)) {
                    if wanted.has(record) {
                        return Lookup::Known(record);
                    }
                    known.get_or_insert(record);
                }
            }
        }
        match known {
            Some(record) => Lookup::Known(record),
            None if owned => Lookup::Absent,
            None => Lookup::Unknown,
        }
    }

    /// Whether a name is the suffix of one of the sandbox's networks, and so exists without having any record.
    pub fn is_suffix(&self, sandbox: &SandboxDns, name: &str) -> bool {
        self.networks_of(sandbox).any(|n| n.suffixes.iter().any(|suffix| suffix.owned && *suffix.name == *name))
    }

    /// The full name of an address, as this sandbox may know it.
    pub fn reverse(&self, sandbox: &SandboxDns, address: IpAddr) -> Option<String> {
        self.networks_of(sandbox).find_map(|network| {
            let name = network.reverse.get(&address)?;
            Some(match network.suffixes.first() {
                Some(suffix) => format!("{name}.{}", suffix.name),
                None => name.to_string(),
            })
        })
    }

    /// Whether an address is in a subnet of any network here, also of one that the asker is not on: nobody upstream can know
    /// it better, and should not learn who asks.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        self.networks.values().any(|network| network.subnets.iter().any(|subnet| subnet.contains(address)))
    }

    /// Whether a sandbox has networks, all of them without a way out.
    pub fn is_internal(&self, sandbox: &SandboxDns) -> bool {
        let mut networks = self.networks_of(sandbox).peekable();
        networks.peek().is_some() && networks.all(|network| network.internal)
    }

    /// The servers to forward to when they are not simply the host's: those that the sandbox names for itself, in its order.
    /// A sandbox without a way out keeps only those that are asked from inside it; with none left nothing is forwarded.
    pub(super) fn upstreams(&self, sandbox: &SandboxDns) -> Option<Vec<Server>> {
        let internal = self.is_internal(sandbox);
        if sandbox.upstreams.is_empty() {
            return internal.then(Vec::new);
        }
        let inside = |address: IpAddr| match sandbox.dial {
            Dial::Host => false,
            Dial::Sandbox => true,
            Dial::Auto => {
                address.is_loopback()
                    || self.networks_of(sandbox).any(|n| n.subnets.iter().any(|subnet| subnet.contains(address)))
            }
        };
        let servers =
            sandbox.upstreams.iter().map(|&ip| Server { address: SocketAddr::new(ip, 53), inside: inside(ip) });
        Some(servers.filter(|server| server.inside || !internal).collect())
    }
}

/// An upstream server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// Asked from inside the sandbox.
    pub(super) inside: bool,
}
