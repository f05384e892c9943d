//! Addresses of services, inside the sandboxes that may use them. Each sandbox balances for itself: the address is rewritten
//! where the connection begins, so that whoever is behind it sees the caller's own address, nothing is asked of the network,
//! and a node that fails takes no balancer with it.
//!
//! ```text
//! table inet orch-services {
//!   set vips    { type ipv4_addr }                                # and the same for IPv6: vips6, slots6_1 and so on
//!   map slots1, slots2, slots3 …, slots840 { type ipv4_addr . slot : ipv4_addr }
//!   chain balance { type nat hook output priority -100
//!     dnat ip to ip daddr . numgen random mod 1   map @slots1
//!     …
//!     dnat ip to ip daddr . numgen random mod 840 map @slots840 }
//!   chain refuse { type filter hook output priority 0
//!     ip daddr @vips meta l4proto tcp reject with tcp reset       # nobody is behind it: it was not rewritten
//!     ip daddr @vips reject }
//!   chain source { type nat hook postrouting priority 100
//!     oifname != "lo" ct original ip daddr @vips masquerade }     # no change where the source fits the way out already
//! }
//! ```
//!
//! A service is in one of these maps. Only the first packet of a connection meets a rule, and the cost of a look-up does
//! not depend on how many services there are. A change is a change of elements. What a sandbox has is not remembered element
//! by element: it is what all of them have, less the services of networks that it is not on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use crate::cluster::{Backend, ClusterReport, Service};
use crate::config::{NetworkId, SandboxId};
use crate::error::NetdError;
use crate::namespace::Namespace;
use crate::netd::{Shared, lock};
use crate::netlink::{NetlinkError, NetlinkSocket};
use crate::nft::expression::{Meta, Reject};
use crate::nft::{Element, Family, Field, Hook, Rule, SetLayout, Transaction};
use crate::record::SandboxRecord;
use crate::slots;

const TABLE: &str = "orch-services";
/// So many services are told with nobody hearing of it: then it costs less than half as much.
const MANY: usize = 500;
const VIPS4: SetLayout = SetLayout { name: "vips", key: &[Field::Ipv4], value: &[], interval: false };
const VIPS6: SetLayout = SetLayout { name: "vips6", key: &[Field::Ipv6], value: &[], interval: false };

/// The set of addresses of a family.
fn vips(ipv4: bool) -> SetLayout {
    if ipv4 { VIPS4 } else { VIPS6 }
}

/// The map for a count of slots.
fn slot_map(ipv4: bool, count: u32) -> SetLayout {
    let name = match (ipv4, count) {
        (true, 1) => "slots1",
        (true, 2) => "slots2",
        (true, 3) => "slots3",
        (true, 4) => "slots4",
        (true, 6) => "slots6",
        (true, 12) => "slots12",
        (true, 60) => "slots60",
        (true, _) => "slots840",
        (false, 1) => "slots6_1",
        (false, 2) => "slots6_2",
        (false, 3) => "slots6_3",
        (false, 4) => "slots6_4",
        (false, 6) => "slots6_6",
        (false, 12) => "slots6_12",
        (false, 60) => "slots6_60",
        (false, _) => "slots6_840",
    };
    if ipv4 {
        SetLayout { name, key: &[Field::Ipv4, Field::Slot], value: &[Field::Ipv4], interval: false }
    } else {
        SetLayout { name, key: &[Field::Ipv6, Field::Slot], value: &[Field::Ipv6], interval: false }
    }
}

/// By address.
pub(crate) type Services = BTreeMap<IpAddr, Arc<Service>>;

/// Which sandboxes know which services.
#[derive(Debug, Default)]
pub(crate) struct Balancing {
    clients: BTreeMap<SandboxId, Client>,
    /// What all of them have, as far as their networks go.
    services: Arc<Services>,
}

/// A sandbox that knows services.
#[derive(Debug)]
struct Client {
    networks: BTreeSet<NetworkId>,
    /// Its table, once it knows any.
    table: Option<ServiceTable>,
    /// The table may lack something: it is to be written anew.
    doubtful: bool,
}

impl Client {
    fn knows(&self, service: &Service) -> bool {
        service.networks.iter().any(|network| self.networks.contains(network))
    }
}

/// The table in one sandbox. It has no owner: it stays when the agent ends.
#[derive(Debug)]
struct ServiceTable {
    /// Stays open: to close one after a deletion costs 15 ms.
    socket: NetlinkSocket,
}

impl ServiceTable {
    fn open(namespace: &Path) -> Result<ServiceTable, NetdError> {
        let open = || NetlinkSocket::open(libc::NETLINK_NETFILTER);
        let socket = Namespace::open(namespace).and_then(|namespace| namespace.run(open)).flatten();
        let socket =
            socket.map_err(NetdError::system(format!("open an nf_tables socket in {}", namespace.display())))?;
        Ok(ServiceTable { socket })
    }

    /// Writes the table whole, in place of whatever is there. Connections that are known go on.
    fn write<'a>(&mut self, services: impl Iterator<Item = &'a Service>) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new();
        transaction.table(Family::Inet, TABLE, 0);
        transaction.delete_table(Family::Inet, TABLE);
        transaction.table(Family::Inet, TABLE, 0);
        write_rules(&mut transaction);
        let mut content = Content::default();
        services.for_each(|service| content.add(service));
        content.write(&mut transaction, true);
        transaction.commit(&mut self.socket)
    }

    /// Replaces some services by others.
    fn change(&mut self, difference: &Difference) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new();
        difference.going.write(&mut transaction, false);
        difference.coming.write(&mut transaction, true);
        transaction.commit(&mut self.socket)
    }
}

/// What goes from a table and comes to it when some services are replaced by others.
#[derive(Debug)]
struct Difference {
    going: Content,
    coming: Content,
}

impl Difference {
    fn between(old: &[&Service], new: &[&Service]) -> Self {
        let (mut going, mut coming) = (Content::default(), Content::default());
        old.iter().for_each(|service| going.add(service));
        new.iter().for_each(|service| coming.add(service));
        Self { going: going.without(&coming), coming: coming.without(&going) }
    }
}

/// Differences that were worked out already, by the addresses of the services before and after: most sandboxes of a node know the same.
type Differences = BTreeMap<(Vec<IpAddr>, Vec<IpAddr>), Difference>;

/// Elements by map.
#[derive(Debug, Default)]
struct Content {
    /// By family: is it IPv4?
    vips: BTreeMap<bool, BTreeSet<Element>>,
    /// By family and count of slots.
    slots: BTreeMap<(bool, u32), BTreeSet<Element>>,
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// What of the one is not in the other.
fn difference<K: Ord + Copy>(
    one: &BTreeMap<K, BTreeSet<Element>>,
    other: &BTreeMap<K, BTreeSet<Element>>,
) -> BTreeMap<K, BTreeSet<Element>> {
    let nothing = BTreeSet::new();
    let rest = |(key, elements): (&K, &BTreeSet<Element>)| {
        (*key, elements.difference(other.get(key).unwrap_or(&nothing)).cloned().collect())
    };
    one.iter().map(rest).collect()
}

impl Content {
    fn add(&mut self, service: &Service) {
        let (vip, ipv4) = (octets(service.vip), service.vip.is_ipv4());
        self.vips.entry(ipv4).or_default().insert(Element { key: vip.clone(), last: None, value: None });
        // Sorted, so that the order in which they are told changes nothing.
        let mut backends: Vec<&Backend> = service.backends.iter().filter(|b| b.address.is_ipv4() == ipv4).collect();
        backends.sort();
        let weights: Vec<(IpAddr, u16)> = backends.iter().map(|backend| (backend.address, backend.weight)).collect();
        let dealt = slots::deal(&weights, &slots::FINE_COUNTS);
        let count = u32::try_from(dealt.len()).unwrap_or(0);
        for (slot, place) in (0u32..).zip(dealt) {
            let key = [&vip[..], &slot.to_ne_bytes()].concat();
            let value = Some(octets(backends[place].address));
            self.slots.entry((ipv4, count)).or_default().insert(Element { key, last: None, value });
        }
    }

    fn without(&self, other: &Content) -> Content {
        Content { vips: difference(&self.vips, &other.vips), slots: difference(&self.slots, &other.slots) }
    }

    fn write(&self, transaction: &mut Transaction, add: bool) {
        let addresses = self.vips.iter().map(|(ipv4, elements)| (vips(*ipv4), elements));
        let slots = self.slots.iter().map(|((ipv4, count), elements)| (slot_map(*ipv4, *count), elements));
        for (layout, elements) in addresses.chain(slots) {
            if add {
                transaction.add_elements(Family::Inet, TABLE, &layout, elements);
            } else {
                transaction.delete_elements(Family::Inet, TABLE, &layout, elements);
            }
        }
    }
}

fn write_rules(transaction: &mut Transaction) {
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    let families = [true, false];
    let slot_maps = families.iter().flat_map(|ipv4| slots::FINE_COUNTS.map(|count| slot_map(*ipv4, count)));
    for (id, layout) in (1..).zip([VIPS4, VIPS6].into_iter().chain(slot_maps)) {
        transaction.set(Family::Inet, TABLE, &layout, id);
    }
    let chains = [
        ("balance", Hook { kind: "nat", number: OUTPUT, priority: -100 }),
        ("refuse", Hook { kind: "filter", number: OUTPUT, priority: 0 }),
        ("source", Hook { kind: "nat", number: POSTROUTING, priority: 100 }),
    ];
    for (name, hook) in chains {
        transaction.chain(Family::Inet, TABLE, name, Some(hook));
    }
    families.into_iter().for_each(|ipv4| write_family(transaction, ipv4));
}

fn write_family(transaction: &mut Transaction, ipv4: bool) {
    let family = if ipv4 { Family::Ipv4 } else { Family::Ipv6 };
    let of_family = || Rule::new().family(family);
    // An IPv6 address takes four registers.
    let (to, after) = match ipv4 {
        true => (of_family().destination4(0), 1),
        false => (of_family().destination6(0), 4),
    };
    for count in slots::FINE_COUNTS {
        let rule = to.clone().random(count, after).map(slot_map(ipv4, count).name, 0, 0).dnat_address(family, 0);
        transaction.rule(Family::Inet, TABLE, "balance", &rule);
    }
    let unanswered = to.lookup(vips(ipv4).name, 0, false);
    let tcp = unanswered.clone().meta(Meta::Transport, 0).equal(0, &[libc::IPPROTO_TCP as u8]);
    transaction.rule(Family::Inet, TABLE, "refuse", &tcp.reject(Reject::TcpReset));
    transaction.rule(Family::Inet, TABLE, "refuse", &unanswered.reject(Reject::PortUnreachable));
    let mut loopback = [0; 16];
    loopback[..2].copy_from_slice(b"lo");
    let leaving = Rule::new().meta(Meta::OutputName, 0).unequal(0, &loopback).family(family);
    let led = leaving.original_destination(family, 0).lookup(vips(ipv4).name, 0, false);
    transaction.rule(Family::Inet, TABLE, "source", &led.masquerade());
}

/// Flows of a sandbox to a service whose backends changed: those that lead to none of them are forgotten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strays {
    pub(crate) vip: IpAddr,
    /// The sandbox still has to do with the service.
    pub(crate) is_known: bool,
}

impl Shared {
    /// Tells all sandboxes of services. When this returns, the tables are as they shall be; flows to who is gone are forgotten
    /// soon after.
    pub(crate) fn balance(&self, services: &[Service], report: &mut ClusterReport) {
        let mut balancing = lock(&self.balancing);
        let old = Arc::clone(&balancing.services);
        // What has not changed is the same value as before, so that it costs a look and no copy.
        let keep = |service: &Service| {
            let present = old.get(&service.vip).filter(|present| ***present == *service);
            (service.vip, present.map_or_else(|| Arc::new(service.clone()), Arc::clone))
        };
        let new: Arc<Services> = Arc::new(services.iter().map(keep).collect());
        // Before any sandbox is told: what leads to a new backend must not be taken for astray.
        self.straying.learn(&new);
        let gone = old.keys().filter(|vip| !new.contains_key(vip));
        let differs = |(vip, service): &(&IpAddr, &Arc<Service>)| {
            old.get(vip).is_none_or(|present| !Arc::ptr_eq(present, service))
        };
        let changed: Vec<&IpAddr> = gone.chain(new.iter().filter(differs).map(|(vip, _)| vip)).collect();
        balancing.services = Arc::clone(&new);
        let mut differences = Differences::new();
        let mut tell_everybody = || {
            for (id, client) in &mut balancing.clients {
                if changed.is_empty() && !client.doubtful {
                    continue;
                }
                let outcome = self.tell(id, client, &changed, &old, &new, &mut differences);
                client.doubtful = outcome.is_err();
                report.failed.extend(outcome.err());
            }
        };
        match changed.len() < MANY {
            true => tell_everybody(),
            false => self.hearing.without(tell_everybody),
        }
        for vip in changed {
            report.done.push(match new.get(vip) {
                Some(service) => format!("balance {vip} over {} containers", service.backends.len()),
                None => format!("balance {vip} no more"),
            });
        }
    }

    /// Tells one sandbox what changed.
    fn tell(
        &self,
        id: &SandboxId,
        client: &mut Client,
        changed: &[&IpAddr],
        old: &Services,
        new: &Services,
        differences: &mut Differences,
    ) -> Result<(), NetdError> {
        fn known<'a>(client: &Client, changed: &[&IpAddr], services: &'a Services) -> Vec<&'a Service> {
            let services = changed.iter().filter_map(|vip| services.get(vip)).map(|service| &**service);
            services.filter(|service| client.knows(service)).collect()
        }
        let (before, after) = (known(client, changed, old), known(client, changed, new));
        if before.is_empty() && after.is_empty() && !client.doubtful {
            return Ok(());
        }
        let namespace = self.run_dir.namespace(&id.0);
        let fail = NetdError::link(format!("tell sandbox {id} of services"));
        let is_new = client.table.is_none();
        let mut table = match client.table.take() {
            Some(table) => table,
            None => ServiceTable::open(&namespace)?,
        };
        let mut outcome = Err(());
        if !(is_new || client.doubtful) {
            let addresses = |services: &[&Service]| services.iter().map(|service| service.vip).collect();
            let difference = differences.entry((addresses(&before), addresses(&after)));
            let difference = difference.or_insert_with(|| Difference::between(&before, &after));
            outcome = table.change(difference).map_err(|error| {
                tracing::warn!(sandbox = %id, %error, "the table of services is not as we left it: writing it anew");
            });
        }
        let whole = match outcome {
            Ok(()) => Ok(()),
            Err(()) => table.write(new.values().map(|service| &**service).filter(|service| client.knows(service))),
        };
        client.table = Some(table);
        whole.map_err(fail)?;
        let lost = |service: &&&Service| {
            let stays = |backend: &Backend| {
                let now = new.get(&service.vip).filter(|service| client.knows(service));
                now.is_some_and(|now| now.backends.iter().any(|other| other.address == backend.address))
            };
            !service.backends.iter().all(stays)
        };
        let strays: Vec<Strays> = before
            .iter()
            .filter(lost)
            .map(|service| {
                let is_known = new.get(&service.vip).is_some_and(|service| client.knows(service));
                Strays { vip: service.vip, is_known }
            })
            .collect();
        self.straying.forget(namespace, strays);
        Ok(())
    }

    /// Tells a sandbox that has just come, or has other networks now, of the services of its networks.
    /// `doubtful`: an earlier agent may have told it of others.
    pub(crate) fn tell_sandbox(&self, record: &SandboxRecord, doubtful: bool) -> Result<(), NetdError> {
        let networks = record.endpoints.iter().map(|endpoint| endpoint.network.clone()).collect();
        let mut balancing = lock(&self.balancing);
        let services = Arc::clone(&balancing.services);
        let id = &record.config.id;
        let before = balancing.clients.remove(id).and_then(|client| client.table);
        let mut client = Client { networks, table: before, doubtful: false };
        let any = services.values().any(|service| client.knows(service));
        client.doubtful = doubtful || any || client.table.is_some();
        let mut tell = || self.tell(id, &mut client, &[], &services, &services, &mut Differences::new());
        let outcome = if services.len() < MANY { tell() } else { self.hearing.without(tell) };
        client.doubtful = outcome.is_err();
        balancing.clients.insert(id.clone(), client);
        outcome
    }

    /// Takes over sandboxes with what an earlier agent told them, of which only the newest wish is known: their tables are
    /// written anew, and what leads elsewhere is forgotten.
    pub(crate) fn tell_all(&self, services: &[Service]) {
        let known = Arc::new(services.iter().map(|service| (service.vip, Arc::new(service.clone()))).collect());
        self.straying.learn(&known);
        lock(&self.balancing).services = known;
        let records: Vec<SandboxRecord> =
            lock(&self.state).sandboxes.values().map(|sandbox| sandbox.record.clone()).collect();
        for record in records {
            if let Err(error) = self.tell_sandbox(&record, true) {
                tracing::warn!(%error, "a sandbox may know services that have changed");
            }
            let on = |service: &&Service| record.endpoints.iter().any(|e| service.networks.contains(&e.network));
            let all = services.iter().filter(on).map(|service| Strays { vip: service.vip, is_known: true }).collect();
            self.straying.forget(self.run_dir.namespace(&record.config.id.0), all);
        }
    }

    /// Takes over sandboxes on a node that was in no cluster: none of them has been told anything.
    pub(crate) fn introduce_all(&self) {
        let state = lock(&self.state);
        let mut balancing = lock(&self.balancing);
        for (id, sandbox) in &state.sandboxes {
            let networks = sandbox.record.endpoints.iter().map(|endpoint| endpoint.network.clone()).collect();
            balancing.clients.insert(id.clone(), Client { networks, table: None, doubtful: false });
        }
    }

    /// Lets go of sandboxes: what holds their namespaces is closed, which the kernel takes its time for.
    pub(crate) fn tell_no_more<'a>(&self, ids: impl Iterator<Item = &'a SandboxId>) {
        let mut balancing = lock(&self.balancing);
        let gone: Vec<Client> = ids.filter_map(|id| balancing.clients.remove(id)).collect();
        drop(balancing);
        self.straying.close(gone.into_iter().filter_map(|client| client.table).map(|table| table.socket).collect());
    }
}
