//! What a link leaves to its card, set by the kernel's ethtool netlink (Documentation/networking/ethtool-netlink.rst).

use std::io;

use nix::errno::Errno;

use crate::netlink::{ACK, Batch, NetlinkError, NetlinkSocket, attribute, attributes, nest, text};

/// The card adds the checksums of what is inside a tunnel's packets. Some cannot, and send wrong ones (moby#41775, flannel#1279).
pub(crate) const INNER_CHECKSUMS: &str = "tx-checksum-ip-generic";

/// NETLINK_GENERIC, linux/netlink.h.
const GENERIC: i32 = 16;
/// linux/genetlink.h: the family that knows the others, and what it is asked.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// linux/ethtool_netlink.h.
const FEATURES_SET: u8 = 12;
const HEADER: u16 = 1;
const HEADER_NAME: u16 = 2;
const WANTED: u16 = 3;
const BITSET_BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// A way to set it.
#[derive(Debug)]
pub(crate) struct Offloads {
    socket: NetlinkSocket,
    family: u16,
}

impl Offloads {
    /// Opens in the network namespace of this thread.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let mut socket = NetlinkSocket::open(GENERIC).map_err(|e| NetlinkError::from_io(&e))?;
        let mut request = Batch::new();
        request.push(CONTROL, ACK, |body| {
            command(body, GET_FAMILY);
            text(body, FAMILY_NAME, "ethtool");
        });
        let mut family = None;
        socket.dump(request, |_, body| {
            // Behind a header like that of the request.
            let mut answer = attributes(body.get(4..).unwrap_or(&[]));
            let id = answer.find(|(kind, _)| *kind == FAMILY_ID).and_then(|(_, value)| value.try_into().ok());
            family = family.or(id.map(u16::from_ne_bytes));
        })?;
        let family = family.ok_or_else(|| NetlinkError::from_io(&io::Error::from(Errno::ENOENT)))?;
        Ok(Self { socket, family })
    }

    /// Turns a feature of a link on or off.
    pub(crate) fn set(&mut self, link: &str, feature: &str, on: bool) -> Result<(), NetlinkError> {
        let mut request = Batch::new();
        request.push(self.family, ACK, |body| {
            command(body, FEATURES_SET);
            nest(body, HEADER, |header| text(header, HEADER_NAME, link));
            nest(body, WANTED, |bitset| {
                nest(bitset, BITSET_BITS, |bits| {
                    nest(bits, BIT, |bit| {
                        text(bit, BIT_NAME, feature);
                        if on {
                            attribute(bit, BIT_VALUE, &[]);
                        }
                    });
                });
            });
        });
        self.socket.dump(request, |_, _| {})
    }
}

/// `struct genlmsghdr`.
fn command(body: &mut Vec<u8>, command: u8) {
    body.extend_from_slice(&[command, 1, 0, 0]);
}
