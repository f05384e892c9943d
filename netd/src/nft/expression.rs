//! The expressions that rules consist of, one method for each, in the order in which the kernel runs them.
//!
//! Registers are the kernel's sixteen four-byte ones, counted from 0 here. A sixteen-byte value (interface name, IPv6
//! address) takes four in a row.

use crate::netlink::{attribute, nest, number, text};

/// `NFT_REG32_00`: the wire's number of register 0.
const FIRST_REGISTER: u32 = 8;
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;

/// What `meta` loads, `NFT_META_*`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meta {
    /// The packet's mark, which routing rules look at.
    Mark = 3,
    /// Name of the interface the packet came from.
    InputName = 6,
    /// Name of the interface it leaves through.
    OutputName = 7,
    /// Netfilter family of the packet, one byte.
    Family = 15,
    /// Transport protocol, one byte.
    Transport = 16,
}

/// What `ct` loads, `NFT_CT_*`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Conntrack {
    /// Bits of the packet's relation to its flow.
    State = 0,
    /// 0: the way the flow began; 1: back.
    Direction = 1,
    /// Bits of the flow's life (`IPS_*`).
    Status = 2,
    /// The flow's mark.
    Mark = 3,
    /// Where flows with the same ends are told apart.
    Zone = 17,
    /// IPv4 destination of a direction.
    Destination4 = 20,
    /// IPv6 destination of a direction.
    Destination6 = 22,
}

/// Bits of [`Conntrack::State`].
pub(crate) mod state {
    pub(crate) const INVALID: u32 = 1;
    pub(crate) const ESTABLISHED: u32 = 2;
    pub(crate) const RELATED: u32 = 4;
    pub(crate) const NEW: u32 = 8;
}

/// `IPS_DST_NAT`: the flow's destination was rewritten.
pub(crate) const STATUS_DNAT: u32 = 1 << 5;

/// Which address of the packet a `fib` look-up is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fib {
    Source = 1,
    Destination = 2,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reject {
    /// TCP: as if nobody listened.
    TcpReset,
    /// Anything else: as if nobody listened, in the words of the packet's IP family.
    PortUnreachable,
}

/// What becomes of the packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict<'a> {
    Drop,
    Accept,
    Return,
    /// To another chain, and back.
    Jump(&'a str),
    /// To another chain, not back.
    Goto(&'a str),
}

/// A rule under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    bytes: Vec<u8>,
    comment: Option<String>,
}

impl Rule {
    pub(crate) fn new() -> Rule {
        Rule::default()
    }

    pub(crate) fn expressions(&self) -> &[u8] {
        &self.bytes
    }

    /// A text that people see in `nft list`.
    pub(crate) fn comment(mut self, comment: &str) -> Rule {
        self.comment = Some(comment.to_owned());
        self
    }

    pub(crate) fn comment_text(&self) -> Option<&str> {
        self.comment.as_deref()
    }

    fn expression(mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) -> Rule {
        nest(&mut self.bytes, 1, |b| {
            text(b, 1, name);
            nest(b, 2, data);
        });
        self
    }

    pub(crate) fn meta(self, key: Meta, register: u32) -> Rule {
        self.expression("meta", |b| {
            number(b, 1, register + FIRST_REGISTER);
            number(b, 2, key as u32);
        })
    }

    fn ct(self, key: Conntrack, register: u32) -> Rule {
        self.expression("ct", |b| {
            number(b, 1, register + FIRST_REGISTER);
            number(b, 2, key as u32);
        })
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Rule {
        self.expression("payload", |b| {
            number(b, 1, register + FIRST_REGISTER);
            number(b, 2, base);
            number(b, 3, offset);
            number(b, 4, length);
        })
    }

    /// The IPv4 source address.
    pub(crate) fn source4(self, register: u32) -> Rule {
        self.payload(1, 12, 4, register)
    }

    /// The IPv4 destination address.
    pub(crate) fn destination4(self, register: u32) -> Rule {
        self.payload(1, 16, 4, register)
    }

    /// The IPv6 source address.
    pub(crate) fn source6(self, register: u32) -> Rule {
        self.payload(1, 8, 16, register)
    }

    /// The IPv6 destination address.
    pub(crate) fn destination6(self, register: u32) -> Rule {
        self.payload(1, 24, 16, register)
    }

    /// The transport's destination port.
    pub(crate) fn destination_port(self, register: u32) -> Rule {
        self.payload(2, 2, 2, register)
    }

    /// The transport's source port.
    pub(crate) fn source_port(self, register: u32) -> Rule {
        self.payload(2, 0, 2, register)
    }

    /// The sender's MAC.
    pub(crate) fn ether_source(self, register: u32) -> Rule {
        self.payload(0, 6, 6, register)
    }

    /// Goes on when the packet is an answer.
    pub(crate) fn when_reply(self) -> Rule {
        self.ct(Conntrack::Direction, 0).equal(0, &[1])
    }

    /// Loads these bits of the flow's mark; goes on when any is set.
    pub(crate) fn flow_mark(self, bits: u32) -> Rule {
        self.ct(Conntrack::Mark, 0).mask(0, &bits.to_ne_bytes()).unequal(0, &[0; 4])
    }

    /// Gives the flow the mark in register 0.
    pub(crate) fn set_flow_mark(self) -> Rule {
        self.expression("ct", |b| {
            number(b, 2, Conntrack::Mark as u32);
            number(b, 4, FIRST_REGISTER);
        })
    }

    /// Has the packet's flow begin in the zone of register 0, where it meets no flow of another zone; its answers come in the zone of all.
    /// Only before connection tracking has seen the packet.
    pub(crate) fn set_zone_of_origin(self) -> Rule {
        self.expression("ct", |b| {
            number(b, 2, Conntrack::Zone as u32);
            // IP_CT_DIR_ORIGINAL.
            attribute(b, 3, &[0]);
            number(b, 4, FIRST_REGISTER);
        })
    }

    /// Gives the packet the mark in register 0.
    pub(crate) fn set_mark(self) -> Rule {
        self.expression("meta", |b| {
            number(b, 2, Meta::Mark as u32);
            number(b, 3, FIRST_REGISTER);
        })
    }

    /// Gives the flow the source address in this register, at its own port where that is free.
    pub(crate) fn snat_address(self, family: super::Family, address: u32) -> Rule {
        self.expression("nat", |b| {
            number(b, 1, 0);
            number(b, 2, family as u32);
            number(b, 3, address + FIRST_REGISTER);
        })
    }

    /// Puts a value into a register.
    pub(crate) fn load(self, register: u32, value: &[u8]) -> Rule {
        self.expression("immediate", |b| {
            number(b, 1, register + FIRST_REGISTER);
            nest(b, 2, |b| attribute(b, 1, value));
        })
    }

    fn compare(self, operation: u32, register: u32, value: &[u8]) -> Rule {
        self.expression("cmp", |b| {
            number(b, 1, register + FIRST_REGISTER);
            number(b, 2, operation);
            nest(b, 3, |b| attribute(b, 1, value));
        })
    }

    pub(crate) fn equal(self, register: u32, value: &[u8]) -> Rule {
        self.compare(0, register, value)
    }

    pub(crate) fn unequal(self, register: u32, value: &[u8]) -> Rule {
        self.compare(1, register, value)
    }

    fn mask(self, register: u32, mask: &[u8]) -> Rule {
        self.expression("bitwise", |b| {
            number(b, 1, register + FIRST_REGISTER);
            number(b, 2, register + FIRST_REGISTER);
            number(b, 3, mask.len() as u32);
            nest(b, 4, |b| attribute(b, 1, mask));
            nest(b, 5, |b| attribute(b, 1, &vec![0; mask.len()]));
        })
    }

    /// Goes on when the first byte of the four in a register is this one.
    pub(crate) fn first_byte(self, register: u32, byte: u8) -> Rule {
        self.mask(register, &[0xff, 0, 0, 0]).equal(register, &[byte, 0, 0, 0])
    }

    /// Goes on when the flow has one of these [`state`] bits.
    pub(crate) fn state(self, bits: u32) -> Rule {
        self.ct(Conntrack::State, 0).mask(0, &bits.to_ne_bytes()).unequal(0, &[0; 4])
    }

    /// Goes on when the flow's destination was rewritten.
    pub(crate) fn when_dnat(self) -> Rule {
        self.ct(Conntrack::Status, 0).mask(0, &STATUS_DNAT.to_ne_bytes()).unequal(0, &[0; 4])
    }

    /// Goes on when the packet is of this IP family (`NFPROTO_*`).
    pub(crate) fn family(self, family: super::Family) -> Rule {
        self.meta(Meta::Family, 0).equal(0, &[family as u8])
    }

    /// Goes on when the registers from `register` on are (`inverted`: are not) in the set.
    pub(crate) fn lookup(self, set: &str, register: u32, inverted: bool) -> Rule {
        self.expression("lookup", |b| {
            text(b, 1, set);
            number(b, 2, register + FIRST_REGISTER);
            if inverted {
                number(b, 5, 1);
            }
        })
    }

    /// Replaces the registers from `register` on by what the map gives; ends the rule when it gives nothing.
    pub(crate) fn map(self, map: &str, register: u32, result: u32) -> Rule {
        self.expression("lookup", |b| {
            text(b, 1, map);
            number(b, 2, register + FIRST_REGISTER);
            number(b, 3, result + FIRST_REGISTER);
        })
    }

    /// Goes on when the address is one of this host's own (`RTN_LOCAL`).
    pub(crate) fn when_local(self, which: Fib) -> Rule {
        self.expression("fib", |b| {
            number(b, 1, FIRST_REGISTER);
            // NFT_FIB_RESULT_ADDRTYPE.
            number(b, 2, 3);
            number(b, 3, which as u32);
        })
        .equal(0, &2u32.to_ne_bytes())
    }

    /// Sends the flow to the address and port in these registers.
    pub(crate) fn dnat(self, family: super::Family, address: u32, port: u32) -> Rule {
        self.expression("nat", |b| {
            number(b, 1, 1);
            number(b, 2, family as u32);
            number(b, 3, address + FIRST_REGISTER);
            number(b, 5, port + FIRST_REGISTER);
        })
    }

    /// Sends the flow to the address in this register, at the port that it is for.
    pub(crate) fn dnat_address(self, family: super::Family, address: u32) -> Rule {
        self.expression("nat", |b| {
            number(b, 1, 1);
            number(b, 2, family as u32);
            number(b, 3, address + FIRST_REGISTER);
        })
    }

    /// Draws a number below `count`, for each packet anew. (The kernel can count instead, but all that pass one rule share
    /// the counter, so that two services in turn could each get the same container for ever.)
    pub(crate) fn random(self, count: u32, register: u32) -> Rule {
        self.expression("numgen", |b| {
            number(b, 1, register + FIRST_REGISTER);
            number(b, 2, count);
            // NFT_NG_RANDOM.
            number(b, 3, 1);
            number(b, 4, 0);
        })
    }

    /// The address that the flow was first meant for.
    pub(crate) fn original_destination(self, family: super::Family, register: u32) -> Rule {
        let key = if family == super::Family::Ipv6 { Conntrack::Destination6 } else { Conntrack::Destination4 };
        self.expression("ct", |b| {
            number(b, 1, register + FIRST_REGISTER);
            number(b, 2, key as u32);
            // IP_CT_DIR_ORIGINAL.
            attribute(b, 3, &[0]);
        })
    }

    /// Refuses the packet, and tells its sender.
    pub(crate) fn reject(self, how: Reject) -> Rule {
        self.expression("reject", |b| match how {
            Reject::TcpReset => number(b, 1, 1),
            Reject::PortUnreachable => {
                // NFT_REJECT_ICMPX_UNREACH with NFT_REJECT_ICMPX_PORT_UNREACH.
                number(b, 1, 2);
                attribute(b, 2, &[1]);
            }
        })
    }

    /// Gives the flow the source address and port in these registers.
    pub(crate) fn snat(self, family: super::Family, address: u32, port: u32) -> Rule {
        self.expression("nat", |b| {
            number(b, 1, 0);
            number(b, 2, family as u32);
            number(b, 3, address + FIRST_REGISTER);
            number(b, 5, port + FIRST_REGISTER);
        })
    }

    /// Gives the flow the address of the interface it leaves through.
    pub(crate) fn masquerade(self) -> Rule {
        self.expression("masq", |_| {})
    }

    /// A match of the old xtables, by name, revision and its binary description.
    pub(crate) fn xt_match(self, name: &str, revision: u32, info: &[u8]) -> Rule {
        self.expression("match", |b| {
            text(b, 1, name);
            number(b, 2, revision);
            attribute(b, 3, info);
        })
    }

    /// Keeps the packet out of connection tracking.
    pub(crate) fn notrack(self) -> Rule {
        self.expression("notrack", |_| {})
    }

    pub(crate) fn counter(self) -> Rule {
        self.expression("counter", |_| {})
    }

    pub(crate) fn verdict(self, verdict: Verdict<'_>) -> Rule {
        let (code, chain): (i32, Option<&str>) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
        };
        self.expression("immediate", |b| {
            number(b, 1, VERDICT_REGISTER);
            nest(b, 2, |b| {
                nest(b, 2, |b| {
                    attribute(b, 1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        text(b, 2, chain);
                    }
                });
            });
        })
    }
}
