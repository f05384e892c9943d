//! nf_tables spoken directly: tables, chains, sets, elements and rules as netlink requests.
//!
//! A round trip over a socket that stays open costs 4 µs where starting `nft` costs milliseconds, and a host need not have
//! `nft` at all. Only what this crate's own rules need is here. [`table`] keeps one table and its content; [`ruleset`] says
//! what that table is.

pub(crate) mod expression;
pub(crate) mod ruleset;
pub(crate) mod table;

use crate::netlink::{self, ACK, Batch, CREATE, NetlinkError, NetlinkSocket, attribute, nest, number, text};
pub(crate) use expression::Rule;

/// `NFNL_SUBSYS_NFTABLES` in the upper byte of a message type.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;

/// Request types, `NFT_MSG_*`.
mod message {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const DELETE_RULE: u16 = 8;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const NEW_SET_ELEMENT: u16 = 12;
    pub(super) const DELETE_SET_ELEMENT: u16 = 14;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const GET_GENERATION: u16 = 16;
}

/// The address family of a table, `NFPROTO_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Both IP families in one table.
    Inet = 1,
    /// IPv4.
    Ipv4 = 2,
    /// IPv6.
    Ipv6 = 10,
}

/// `NFT_TABLE_F_OWNER`: nobody but the socket that made the table may change it.
pub(crate) const TABLE_OWNER: u32 = 2;
/// `NFT_TABLE_F_PERSIST`: an owned table outlives its owner (kernel 6.9).
pub(crate) const TABLE_PERSIST: u32 = 4;

/// Flags of a set, `NFT_SET_*`.
pub(crate) mod set_flag {
    pub(crate) const INTERVAL: u32 = 4;
    pub(crate) const MAP: u32 = 8;
    pub(crate) const CONCAT: u32 = 0x80;
}

/// Where a base chain hooks in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// `NF_INET_*`: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub(crate) number: u32,
    /// Lower comes first.
    pub(crate) priority: i32,
}

/// One field of a set's key or data, for the kernel (length) and for `nft list` (type, byte order).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// `ipv4_addr`.
    Ipv4,
    /// `ipv6_addr`.
    Ipv6,
    /// `inet_proto`, padded to four bytes.
    Protocol,
    /// `inet_service`, padded to four bytes.
    Service,
    /// `ifname`, sixteen bytes.
    Interface,
    /// `ether_addr`, six bytes.
    Ether,
    /// A number drawn by chance, or a mark, in the machine's order; `nft list` shows it as a mark.
    Slot,
}

impl Field {
    fn length(self) -> u32 {
        match self {
            Field::Ipv4 | Field::Protocol | Field::Service | Field::Slot => 4,
            Field::Ether => 6,
            Field::Ipv6 | Field::Interface => 16,
        }
    }

    /// The number `nft` gives the type; the kernel only stores it.
    fn datatype(self) -> u32 {
        match self {
            Field::Ipv4 => 7,
            Field::Ipv6 => 8,
            Field::Protocol => 12,
            Field::Service => 13,
            Field::Ether => 9,
            Field::Slot => 19,
            Field::Interface => 41,
        }
    }
}

/// `nft`'s number for fields put together: six bits each.
fn datatype(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| all << 6 | field.datatype())
}

fn length(fields: &[Field]) -> u32 {
    // Only beside others it is padded.
    if fields == [Field::Service] {
        return 2;
    }
    fields.iter().map(|field| field.length()).sum()
}

/// What a set looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetLayout {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Field],
    /// Empty for a set, the value's fields for a map.
    pub(crate) value: &'static [Field],
    /// Elements are ranges of keys.
    pub(crate) interval: bool,
}

impl SetLayout {
    fn flags(&self) -> u32 {
        let mut flags = 0;
        if !self.value.is_empty() {
            flags |= set_flag::MAP;
        }
        if self.interval {
            flags |= set_flag::INTERVAL;
            // Ranges in each of several fields need the kernel's concatenation sets (5.6).
            if self.key.len() > 1 {
                flags |= set_flag::CONCAT;
            }
        }
        flags
    }
}

/// One element of a set: bytes as the kernel compares them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    /// The key, or the first one of a range.
    pub(crate) key: Vec<u8>,
    /// The last key of a range, itself included.
    pub(crate) last: Option<Vec<u8>>,
    /// What a map gives.
    pub(crate) value: Option<Vec<u8>>,
}

/// Requests that take effect all at once or not at all.
#[derive(Debug)]
pub(crate) struct Transaction {
    batch: Batch,
}

impl Transaction {
    pub(crate) fn new() -> Transaction {
        let mut batch = Batch::new();
        batch.push(BATCH_BEGIN, 0, |bytes| bytes.extend_from_slice(&[0, 0, 0, 10]));
        Transaction { batch }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.len() == 1
    }

    fn push(&mut self, kind: u16, flags: u16, family: Family, body: impl FnOnce(&mut Vec<u8>)) {
        self.batch.push(SUBSYSTEM | kind, flags, |bytes| {
            bytes.extend_from_slice(&[family as u8, 0, 0, 0]);
            body(bytes);
        });
    }

    /// Makes a table, or takes an orphaned one over.
    pub(crate) fn table(&mut self, family: Family, name: &str, flags: u32) {
        self.push(message::NEW_TABLE, CREATE, family, |b| {
            text(b, 1, name);
            number(b, 2, flags);
        });
    }

    pub(crate) fn delete_table(&mut self, family: Family, name: &str) {
        self.push(message::DELETE_TABLE, 0, family, |b| text(b, 1, name));
    }

    pub(crate) fn chain(&mut self, family: Family, table: &str, name: &str, hook: Option<Hook>) {
        self.push(message::NEW_CHAIN, CREATE, family, |b| {
            text(b, 1, table);
            text(b, 3, name);
            if let Some(hook) = hook {
                nest(b, 4, |b| {
                    number(b, 1, hook.number);
                    attribute(b, 2, &hook.priority.to_be_bytes());
                });
                // NF_ACCEPT: what we say nothing about is none of our business.
                number(b, 5, 1);
                text(b, 7, hook.kind);
            }
        });
    }

    pub(crate) fn set(&mut self, family: Family, table: &str, layout: &SetLayout, id: u32) {
        self.push(message::NEW_SET, CREATE, family, |b| {
            text(b, 1, table);
            text(b, 2, layout.name);
            number(b, 3, layout.flags());
            number(b, 4, datatype(layout.key));
            number(b, 5, length(layout.key));
            if !layout.value.is_empty() {
                number(b, 6, datatype(layout.value));
                number(b, 7, length(layout.value));
            }
            if layout.interval && layout.key.len() > 1 {
                nest(b, 9, |b| {
                    nest(b, 2, |b| {
                        for field in layout.key {
                            nest(b, LIST_ELEMENT, |b| number(b, 1, field.length()));
                        }
                    });
                });
            }
            number(b, 10, id);
            // NFTNL_UDATA_SET_KEYBYTEORDER: `nft list` prints interface names only when told that they are in host order.
            let order: u32 = if layout.key == [Field::Interface] { 1 } else { 2 };
            let mut userdata = vec![0, 4];
            userdata.extend_from_slice(&order.to_ne_bytes());
            attribute(b, 13, &userdata);
        });
    }

    /// Appends a rule to a chain. With `NLM_F_APPEND` absent it would come first: see [`Transaction::rule_first`].
    pub(crate) fn rule(&mut self, family: Family, table: &str, chain: &str, rule: &Rule) {
        self.push(message::NEW_RULE, CREATE | netlink::APPEND, family, |b| rule_body(b, table, chain, rule));
    }

    /// Puts a rule before all others of a chain.
    pub(crate) fn rule_first(&mut self, family: Family, table: &str, chain: &str, rule: &Rule) {
        self.push(message::NEW_RULE, CREATE, family, |b| rule_body(b, table, chain, rule));
    }

    pub(crate) fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        self.push(message::DELETE_RULE, 0, family, |b| {
            text(b, 1, table);
            text(b, 2, chain);
            attribute(b, 3, &handle.to_be_bytes());
        });
    }

    pub(crate) fn add_elements<'a>(
        &mut self,
        family: Family,
        table: &str,
        layout: &SetLayout,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.elements(message::NEW_SET_ELEMENT, CREATE, family, table, layout, elements);
    }

    pub(crate) fn delete_elements<'a>(
        &mut self,
        family: Family,
        table: &str,
        layout: &SetLayout,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.elements(message::DELETE_SET_ELEMENT, 0, family, table, layout, elements);
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        table: &str,
        layout: &SetLayout,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        /// The list of elements is one attribute, whose length is sixteen bits; the widest element takes less than 128 bytes.
        const PER_MESSAGE: usize = 400;
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.push(kind, flags, family, |b| {
                text(b, 1, table);
                text(b, 2, layout.name);
                nest(b, 3, |b| {
                    for element in elements.by_ref().take(PER_MESSAGE) {
                        element_body(b, layout, element);
                    }
                });
            });
        }
    }

    /// Carries the transaction out.
    ///
    /// # Errors
    /// The first request that the kernel refused; then nothing has changed.
    pub(crate) fn commit(mut self, socket: &mut NetlinkSocket) -> Result<(), NetlinkError> {
        if self.is_empty() {
            return Ok(());
        }
        let last = self.batch.len() - 1;
        self.batch.push(BATCH_END, 0, |bytes| bytes.extend_from_slice(&[0, 0, 0, 10]));
        self.batch.add_flag(last, ACK);
        socket.exchange(self.batch, last).map_err(|mut errors| errors.swap_remove(0))
    }
}

fn rule_body(bytes: &mut Vec<u8>, table: &str, chain: &str, rule: &Rule) {
    text(bytes, 1, table);
    text(bytes, 2, chain);
    nest(bytes, 4, |b| b.extend_from_slice(rule.expressions()));
    if let Some(comment) = rule.comment_text() {
        // NFTNL_UDATA_RULE_COMMENT: type 0, length, text with its NUL.
        let mut userdata = vec![0, comment.len() as u8 + 1];
        userdata.extend_from_slice(comment.as_bytes());
        userdata.push(0);
        attribute(bytes, 7, &userdata);
    }
}

fn element_body(bytes: &mut Vec<u8>, layout: &SetLayout, element: &Element) {
    let value = |b: &mut Vec<u8>, kind: u16, value: &[u8]| nest(b, kind, |b| attribute(b, 1, value));
    let concat = layout.key.len() > 1;
    nest(bytes, LIST_ELEMENT, |b| {
        value(b, 1, &element.key);
        if let Some(data) = &element.value {
            value(b, 2, data);
        }
        if let Some(last) = element.last.as_ref().filter(|_| concat) {
            value(b, 10, last);
        }
    });
    // A range over one field is two elements, the second one being where it is over. At the very end it is never over.
    if let Some(after) = element.last.as_ref().filter(|_| !concat).and_then(|last| successor(last)) {
        nest(bytes, LIST_ELEMENT, |b| {
            value(b, 1, &after);
            // NFT_SET_ELEM_INTERVAL_END.
            number(b, 3, 1);
        });
    }
}

/// The big-endian number after this one.
fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut next = bytes.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

/// A chain as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedChain {
    pub(crate) table: String,
    pub(crate) name: String,
    /// Hook number of a base chain.
    pub(crate) hook: Option<u32>,
    /// 0 = drop, 1 = accept; base chains only.
    pub(crate) policy: Option<u32>,
}

/// A rule as the kernel describes it: enough to find our own again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedRule {
    pub(crate) table: String,
    pub(crate) chain: String,
    pub(crate) handle: u64,
    pub(crate) comment: Option<String>,
}

fn string(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn get(kind: u16, family: Family, body: impl FnOnce(&mut Vec<u8>)) -> Batch {
    let mut batch = Batch::new();
    batch.push(SUBSYSTEM | kind, netlink::DUMP, |b| {
        b.extend_from_slice(&[family as u8, 0, 0, 0]);
        body(b);
    });
    batch
}

/// How often nf_tables was changed in the socket's network namespace, by whomever.
pub(crate) fn generation(socket: &mut NetlinkSocket) -> Result<Option<u32>, NetlinkError> {
    let mut request = Batch::new();
    request.push(SUBSYSTEM | message::GET_GENERATION, netlink::ACK, |b| b.extend_from_slice(&[0; 4]));
    let mut generation = None;
    socket.dump(request, |_, body| {
        let mut attributes = netlink::attributes(body.get(4..).unwrap_or(&[]));
        generation = attributes.find(|(kind, _)| *kind == 1).and_then(|(_, value)| be32(value));
    })?;
    Ok(generation)
}

/// All chains of a family.
pub(crate) fn chains(socket: &mut NetlinkSocket, family: Family) -> Result<Vec<ObservedChain>, NetlinkError> {
    let mut found = Vec::new();
    socket.dump(get(message::GET_CHAIN, family, |_| {}), |_, body| {
        let mut chain = ObservedChain { table: String::new(), name: String::new(), hook: None, policy: None };
        for (kind, value) in netlink::attributes(body.get(4..).unwrap_or(&[])) {
            match kind {
                1 => chain.table = string(value),
                3 => chain.name = string(value),
                4 => chain.hook = netlink::attributes(value).find(|(kind, _)| *kind == 1).and_then(|(_, v)| be32(v)),
                5 => chain.policy = be32(value),
                _ => {}
            }
        }
        found.push(chain);
    })?;
    Ok(found)
}

/// All rules of one chain, in order.
pub(crate) fn rules(
    socket: &mut NetlinkSocket,
    family: Family,
    table: &str,
    chain: &str,
) -> Result<Vec<ObservedRule>, NetlinkError> {
    let mut found = Vec::new();
    let request = get(message::GET_RULE, family, |b| {
        text(b, 1, table);
        text(b, 2, chain);
    });
    socket.dump(request, |_, body| {
        let mut rule = ObservedRule { table: String::new(), chain: String::new(), handle: 0, comment: None };
        for (kind, value) in netlink::attributes(body.get(4..).unwrap_or(&[])) {
            match kind {
                1 => rule.table = string(value),
                2 => rule.chain = string(value),
                3 => rule.handle = value.try_into().map_or(0, u64::from_be_bytes),
                7 if value.len() > 2 && value[0] == 0 => rule.comment = Some(string(&value[2..])),
                _ => {}
            }
        }
        found.push(rule);
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_one_after_its_last_key_and_never_at_the_top() {
        assert_eq!(successor(&[10, 0, 0, 255]), Some(vec![10, 0, 1, 0]));
        assert_eq!(successor(&[255, 255]), None);
    }

    #[test]
    fn concatenated_types_take_six_bits_each() {
        assert_eq!(datatype(&[Field::Ipv4, Field::Protocol, Field::Service]), 7 << 12 | 12 << 6 | 13);
    }
}
