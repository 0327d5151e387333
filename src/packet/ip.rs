//! The few fields of an IP header that a tunnel needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{IPV4_HEADER, IPV6_HEADER, read_u16};

/// What an IP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Bytes of the whole packet, header included, by the header: what follows them is padding.
    pub len: usize,
}

impl Ip {
    /// None when the header is malformed or speaks of more bytes than there are.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let len = match packet.first()? >> 4 {
            4 if packet.len() >= IPV4_HEADER => {
                let header = usize::from(packet[0] & 0x0f) * 4;
                let len = usize::from(read_u16(packet, 2));
                (header >= IPV4_HEADER && len >= header).then_some(len)?
            }
            // A jumbogram (RFC 2675) has length zero here, and so no payload that could be forwarded.
            6 if packet.len() >= IPV6_HEADER => IPV6_HEADER + usize::from(read_u16(packet, 4)),
            _ => return None,
        };
        (len <= packet.len()).then_some(())?;
        Some(Self { src: source(packet)?, dst: destination(packet)?, len })
    }
}

/// The destination address, for cryptokey routing; the rest of the header is not looked at.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 16, 24)
}

/// The source address; the rest of the header is not looked at.
pub fn source(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 12, 8)
}

fn address(packet: &[u8], at_v4: usize, at_v6: usize) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER => {
            let octets: [u8; 4] = packet[at_v4..at_v4 + 4].try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        6 if packet.len() >= IPV6_HEADER => {
            let octets: [u8; 16] = packet[at_v6..at_v6 + 16].try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}
