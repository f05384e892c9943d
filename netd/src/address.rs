//! Address prefixes and MAC addresses as this crate speaks of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network in CIDR form, of either family. Host bits may be set: `10.0.0.1/24` names the address *and* its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// An address in it.
    pub address: IpAddr,
    /// Number of leading bits that name the network; at most 32 or 128.
    pub length: u8,
}

/// Why a text is no [`Prefix`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not an address prefix such as 10.1.2.0/24 or fd00:1::/64")]
pub struct ParsePrefixError {
    text: String,
}

impl Prefix {
    /// A prefix; the length is cut to what the family has.
    pub fn new(address: IpAddr, length: u8) -> Prefix {
        let widest = if address.is_ipv4() { 32 } else { 128 };
        Prefix { address, length: length.min(widest) }
    }

    /// The lowest address: all host bits clear.
    pub fn first(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !self.host_mask4())),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !self.host_mask6())),
        }
    }

    /// The highest address: all host bits set.
    pub fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | self.host_mask4())),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | self.host_mask6())),
        }
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && self.first() <= address && address <= self.last()
    }

    /// Whether the two have an address in common. Prefixes of different families never do.
    pub fn overlaps(&self, other: &Prefix) -> bool {
        self.contains(other.first()) || other.contains(self.first())
    }

    /// The same network with its host bits clear.
    pub fn network(&self) -> Prefix {
        Prefix { address: self.first(), length: self.length }
    }

    fn host_mask4(&self) -> u32 {
        u32::MAX.checked_shr(u32::from(self.length)).unwrap_or(0)
    }

    fn host_mask6(&self) -> u128 {
        u128::MAX.checked_shr(u32::from(self.length)).unwrap_or(0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParsePrefixError { text: text.to_owned() };
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        if length > if address.is_ipv4() { 32 } else { 128 } {
            return Err(wrong());
        }
        Ok(Prefix { address, length })
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

/// Why a text is no [`Mac`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a unicast MAC address such as 02:42:0a:00:00:02")]
pub struct ParseMacError {
    text: String,
}

impl Mac {
    /// The MAC that belongs to an address: locally administered, `02:42` and the last four bytes of it. A container that
    /// comes back with its old address is then found under its old MAC by every neighbour's ARP cache.
    pub fn from_address(address: IpAddr) -> Mac {
        let tail = match address {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => {
                let bytes = v6.octets();
                [bytes[12], bytes[13], bytes[14], bytes[15]]
            }
        };
        Mac([0x02, 0x42, tail[0], tail[1], tail[2], tail[3]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next().ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
        }
        // A multicast or an all-zero address is refused by the kernel on a link: say so here, where the text is known.
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(wrong());
        }
        Ok(Mac(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_knows_its_ends_and_what_it_overlaps() {
        let net = prefix("10.1.2.7/23");
        assert_eq!((net.first().to_string(), net.last().to_string()), ("10.1.2.0".into(), "10.1.3.255".into()));
        assert!(net.overlaps(&prefix("10.0.0.0/8")));
        assert!(prefix("0.0.0.0/0").overlaps(&net));
        assert!(!net.overlaps(&prefix("10.1.4.0/24")));
        assert!(!net.overlaps(&prefix("::/0")));
        assert_eq!(prefix("fd00::1/127").last().to_string(), "fd00::1");
        assert_eq!(prefix("1.2.3.4/32").last().to_string(), "1.2.3.4");
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/24", "fe80::/129", "1.2.3.4/-1", "a/8"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_mac_follows_from_the_address_and_reads_back() {
        let mac = Mac::from_address("10.1.2.3".parse().unwrap());
        assert_eq!(mac.to_string(), "02:42:0a:01:02:03");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert!("01:00:5e:00:00:01".parse::<Mac>().is_err());
        assert!("02:42:0a:01:02".parse::<Mac>().is_err());
    }
}
