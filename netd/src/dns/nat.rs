//! The rules inside a sandbox's namespace that lead port 53 of 127.0.0.11 to the port on which netd listens.
//!
//! ```text
//! table ip orch-dns {
//!   chain output { type nat hook output priority -100
//!     ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:35353
//!     ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:35353 }
//!   chain postrouting { type nat hook postrouting priority 100
//!     ip saddr 127.0.0.11 udp sport 35353 snat to 127.0.0.11:53
//!     ip saddr 127.0.0.11 tcp sport 35353 snat to 127.0.0.11:53 }
//! }
//! ```
//!
//! Listening on 53 itself would take that port from a container that is a DNS server. Connection tracking turns the answers
//! back; the second chain does so for one whose flow was forgotten meanwhile. The table has no owner: it must stay when the
//! agent ends, and the next agent finds it complete.

use std::io;

use nix::libc::{IPPROTO_TCP, IPPROTO_UDP, NETLINK_NETFILTER};

use super::listener::{ADDRESS, PORT};
use crate::netlink::{NetlinkError, NetlinkSocket};
use crate::nft::expression::Meta;
use crate::nft::{self, Family, Hook, Rule, Transaction};

const TABLE: &str = "orch-dns";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";
/// `NF_INET_LOCAL_OUT` and the priority of destination NAT.
const OUTPUT_HOOK: Hook = Hook { kind: "nat", number: 3, priority: -100 };
/// `NF_INET_POST_ROUTING` and the priority of source NAT.
const POSTROUTING_HOOK: Hook = Hook { kind: "nat", number: 4, priority: 100 };
/// The port that clients ask.
const DNS: u16 = 53;

/// Why the rules could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// No netlink socket.
    #[error("open a netfilter socket")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("write the table {TABLE}")]
    Write(#[source] NetlinkError),
}

/// Makes the rules in the calling thread's namespace, unless they are there.
pub(crate) fn install() -> Result<(), NatError> {
    let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).map_err(NatError::Socket)?;
    let observed = [OUTPUT, POSTROUTING].map(|chain| nft::rules(&mut socket, Family::Ipv4, TABLE, chain));
    let found = observed.iter().map(|rules| rules.as_ref().map_or(0, Vec::len));
    // An asked-for chain that does not exist gives an empty list or ENOENT, depending on the kernel: both mean nothing.
    let found: Vec<usize> = found.collect();
    if found == [2, 2] {
        return Ok(());
    }
    let mut transaction = Transaction::new();
    // Deleting asks for existence, so the table is first made sure of. Only half-made or foreign content gets here twice.
    transaction.table(Family::Ipv4, TABLE, 0);
    if found != [0, 0] {
        transaction.delete_table(Family::Ipv4, TABLE);
        transaction.table(Family::Ipv4, TABLE, 0);
    }
    transaction.chain(Family::Ipv4, TABLE, OUTPUT, Some(OUTPUT_HOOK));
    transaction.chain(Family::Ipv4, TABLE, POSTROUTING, Some(POSTROUTING_HOOK));
    for protocol in [IPPROTO_UDP, IPPROTO_TCP] {
        // IP protocol numbers are one byte.
        let transport = Rule::new().meta(Meta::Transport, 0).equal(0, &[protocol as u8]);
        let inwards = transport
            .clone()
            .destination4(0)
            .equal(0, &ADDRESS.octets())
            .destination_port(0)
            .equal(0, &DNS.to_be_bytes())
            .load(0, &ADDRESS.octets())
            .load(1, &PORT.to_be_bytes())
            .dnat(Family::Ipv4, 0, 1);
        let outwards = transport
            .source4(0)
            .equal(0, &ADDRESS.octets())
            .source_port(0)
            .equal(0, &PORT.to_be_bytes())
            .load(0, &ADDRESS.octets())
            .load(1, &DNS.to_be_bytes())
            .snat(Family::Ipv4, 0, 1);
        transaction.rule(Family::Ipv4, TABLE, OUTPUT, &inwards);
        transaction.rule(Family::Ipv4, TABLE, POSTROUTING, &outwards);
    }
    transaction.commit(&mut socket).map_err(NatError::Write)
}
