//! The few fields of an IP header that a tunnel needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{IPV4_HEADER, IPV6_HEADER, UDP, read_u16};

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
        let (header, len) = match packet.first()? >> 4 {
            4 if packet.len() >= IPV4_HEADER => (usize::from(packet[0] & 0x0f) * 4, usize::from(read_u16(packet, 2))),
            // A jumbogram (RFC 2675) has length zero here, and so no payload that could be forwarded.
            6 if packet.len() >= IPV6_HEADER => (IPV6_HEADER, IPV6_HEADER + usize::from(read_u16(packet, 4))),
            _ => return None,
        };
        if header < IPV4_HEADER || len < header || len > packet.len() {
            return None;
        }
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

/// Whether the packet is UDP, as far as its IP header says itself.
pub fn is_udp(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9) == Some(&UDP),
        Some(6) => packet.get(6) == Some(&UDP),
        _ => false,
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::{self, Sample};

    #[test]
    fn addresses_and_length() {
        let v4 = Sample::udp(vec![1, 2, 3]).build();
        let wanted = Ip { src: "10.89.1.1".parse().unwrap(), dst: "10.89.2.2".parse().unwrap(), len: 31 };
        assert_eq!((Ip::parse(&v4), is_udp(&v4)), (Some(wanted), true));
        let v6 = Sample { ipv6: true, ..Sample::udp(vec![1, 2, 3]) }.build();
        let wanted = Ip { src: "fd89::1".parse().unwrap(), dst: "fd89::102".parse().unwrap(), len: 51 };
        assert_eq!((Ip::parse(&v6), is_udp(&v6)), (Some(wanted), true));
    }

    #[test]
    fn malformed_headers() {
        let packet = Sample::udp(vec![1, 2, 3]).build();
        let with = |at: usize, value: u8| {
            let mut packet = packet.clone();
            packet[at] = value;
            Ip::parse(&packet)
        };
        assert_eq!(Ip::parse(&[]), None);
        assert_eq!(with(0, 0x44), None, "header shorter than any");
        assert_eq!(with(0, 0x4f), None, "header longer than the packet");
        assert_eq!(with(0, 0x75), None, "no such version");
        assert_eq!(with(3, 19), None, "length shorter than the header");
        assert_eq!(with(3, 32), None, "length beyond what there is");
    }

    proptest! {
        #[test]
        fn padding_and_truncation(sample in testing::sample(2000), padding in 0usize..16, cut in 0usize..2100) {
            let packet = sample.build();
            let mut padded = packet.clone();
            padded.resize(packet.len() + padding, 0);
            let ip = Ip::parse(&padded).unwrap();
            prop_assert_eq!(ip.len, packet.len());
            prop_assert_eq!((source(&padded), destination(&padded)), (Some(ip.src), Some(ip.dst)));
            prop_assert_eq!(Ip::parse(&packet[..cut.min(packet.len() - 1)]), None);
        }

        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let parsed = Ip::parse(&bytes);
            prop_assert!(parsed.is_none_or(|ip| ip.len <= bytes.len()));
            prop_assert!(parsed.is_none() || source(&bytes).is_some() && destination(&bytes).is_some());
        }
    }
}
