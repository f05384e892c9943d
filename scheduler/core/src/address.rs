//! Addresses of one subnet: who holds which, and which is next.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The addresses of one subnet.
///
/// Invariants: no address has two holders; `gateway` and `reserved` addresses are given only to who asks for them by value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The subnet.
    pub subnet: IpNet,
    /// The part of it that addresses are taken from.
    pub range: IpNet,
    /// The bridge's address.
    pub gateway: IpAddr,
    /// Address → holder.
    pub held: BTreeMap<IpAddr, String>,
    /// Address → what declares it (`web/app`, an auxiliary address's name); not given to anyone else.
    pub reserved: BTreeMap<IpAddr, String>,
    /// Where the next search begins. It goes round, so that an address rests as long as possible before somebody else gets it:
    /// a client that still remembers it meets nobody rather than the wrong one.
    pub cursor: Option<IpAddr>,
}

impl Pool {
    /// A pool where nothing is held.
    pub fn new(subnet: IpNet, range: Option<IpNet>, gateway: IpAddr) -> Self {
        let (held, reserved) = (BTreeMap::new(), BTreeMap::new());
        Self { subnet, range: range.unwrap_or(subnet), gateway, held, reserved, cursor: None }
    }

    /// The first address that a container can have; the conventional gateway.
    pub fn first_of(subnet: IpNet) -> IpAddr {
        of_number(number(subnet.network()) + 1, subnet)
    }

    /// Whether an address can be a container's at all: inside, and neither the network's nor its broadcast address.
    pub fn is_usable(&self, address: IpAddr) -> bool {
        let broadcast =
            matches!(self.subnet, IpNet::V4(net) if net.prefix_len() < 31) && address == self.subnet.broadcast();
        self.subnet.contains(&address) && address != self.subnet.network() && !broadcast && address != self.gateway
    }

    /// The next free address for `holder`, or `None` when all are taken.
    pub fn take_next(&mut self, holder: &str) -> Option<IpAddr> {
        let (first, last) = (number(self.range.network()), number(self.range.broadcast()));
        let start = self.cursor.map_or(first, number).clamp(first, last);
        // No more steps than there are addresses in use are needed to find a free one.
        let span = last - first + 1;
        let used = self.held.len() + self.reserved.len() + 3;
        let steps = span.min(used as u128 + 1);
        let found =
            (0..steps).map(|step| of_number(first + (start - first + step) % span, self.subnet)).find(|address| {
                self.is_usable(*address) && !self.held.contains_key(address) && !self.reserved.contains_key(address)
            })?;
        self.cursor = Some(of_number(first + (number(found) - first + 1) % span, self.subnet));
        self.held.insert(found, holder.to_owned());
        Some(found)
    }

    /// A certain address for `holder`; `Err` names who has it.
    ///
    /// # Errors
    /// The present holder.
    pub fn take(&mut self, address: IpAddr, holder: &str) -> Result<(), String> {
        match self.held.get(&address) {
            Some(present) if present != holder => Err(present.clone()),
            _ => {
                self.held.insert(address, holder.to_owned());
                Ok(())
            }
        }
    }

    /// Lets go of an address if it is this holder's.
    pub fn release(&mut self, address: IpAddr, holder: &str) {
        if self.held.get(&address).is_some_and(|present| present == holder) {
            self.held.remove(&address);
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn of_number(number: u128, family: IpNet) -> IpAddr {
    match family {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        let subnet: IpNet = "10.0.0.0/29".parse().unwrap();
        Pool::new(subnet, None, Pool::first_of(subnet))
    }

    #[test]
    fn gives_every_address_but_those_of_the_network_the_broadcast_and_the_gateway() {
        let mut pool = pool();
        let given: Vec<String> = std::iter::from_fn(|| pool.take_next("x")).map(|a| a.to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    }

    #[test]
    fn gives_a_freed_address_again_only_after_all_others() {
        let mut pool = pool();
        let first = pool.take_next("a").unwrap();
        pool.release(first, "a");
        let later: Vec<IpAddr> = (0..5).map(|_| pool.take_next("b").unwrap()).collect();
        assert_eq!(later[4], first);
        assert!(pool.take_next("c").is_none());
    }

    #[test]
    fn lets_only_the_holder_let_go() {
        let mut pool = pool();
        let first = pool.take_next("a").unwrap();
        pool.release(first, "b");
        assert_eq!(pool.take(first, "b"), Err("a".to_owned()));
    }

    #[test]
    fn keeps_reserved_addresses_for_those_who_ask_for_them() {
        let mut pool = pool();
        pool.reserved.insert("10.0.0.2".parse().unwrap(), "web/db".to_owned());
        assert_eq!(pool.take_next("a").unwrap().to_string(), "10.0.0.3");
        assert_eq!(pool.take("10.0.0.2".parse().unwrap(), "db"), Ok(()));
    }
}
