//! One message, and the IPv6/UDP packet around it.
//!
//! ```text
//!  0        1        2                 4                                 8
//!  +--------+--------+-----------------+---------------------------------+--------
//!  | version|  kind  | length of body  | id: an answer has its request's | body …
//!  +--------+--------+-----------------+---------------------------------+--------
//! ```
//!
//! All numbers are big-endian. The highest bit of the kind is set in answers.

use std::net::Ipv6Addr;

use crate::packet::checksum::Sum;
use crate::packet::{IPV6_HEADER, UDP};

use super::address;

/// Bytes before the body.
pub const HEADER: usize = 8;
/// What a packet has beside a message's body: headers of IPv6, UDP and the message.
pub const OVERHEAD: usize = IPV6_HEADER + UDP_HEADER + HEADER;
/// Of a letter: every tunnel carries packets of 1280 bytes (RFC 8200, section 5).
pub const MAX_BODY: usize = 1280 - OVERHEAD;

const VERSION: u8 = 1;
const ANSWER: u8 = 0x80;
const UDP_HEADER: usize = 8;
/// Both ports. Nothing listens there: it is for those who look at packets.
const PORT: u16 = 0x6d64;
/// A program that forwards what it does not know gets rid of it here.
const HOP_LIMIT: u8 = 1;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Who is there: see [`crate::bench::Hello`].
    Hello = 1,
    /// Agrees on a measurement: see [`crate::bench::Request`].
    Bench = 2,
    /// Part of a measurement: see [`crate::bench::Probe`]. Neither requested nor answered.
    Probe = 3,
    /// Asks how the other side is: see [`crate::doctor::exam::Request`].
    Doctor = 4,
    /// Redeems an invitation: see [`crate::enroll`]. The only kind that a throwaway key may send.
    Enroll = 5,
    /// What an inviter says of its mesh: see [`crate::mesh`].
    News = 6,
    /// Finds a direct path to a peer that is reached through another: see [`crate::mesh`].
    Direct = 7,
    /// Agrees on new keys: see [`crate::mesh::rotate`].
    Rotate = 8,
    /// Agrees on keys for data: see [`crate::express`]. Taken by the tunnel itself, and neither repeated nor answered here.
    Express = 9,
    /// Names of containers: see [`crate::names::Request`].
    Names = 10,
}

impl Kind {
    /// Whether a request of this kind is answered from more than memory.
    pub fn takes_a_while(self) -> bool {
        matches!(self, Self::Direct | Self::Doctor | Self::News | Self::Rotate)
    }

    fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Bench,
            3 => Self::Probe,
            4 => Self::Doctor,
            5 => Self::Enroll,
            6 => Self::News,
            7 => Self::Direct,
            8 => Self::Rotate,
            9 => Self::Express,
            10 => Self::Names,
            _ => return None,
        })
    }
}

/// What one agent says to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is about.
    pub kind: Kind,
    /// Whether it answers a request.
    pub answer: bool,
    /// That of the request.
    pub id: u32,
    /// By kind.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads one message; `None` for anything else, another version or an unknown kind.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[version, kind, high, low, id @ ..], rest) = bytes.split_first_chunk::<HEADER>()?;
        let body = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
        let of = Kind::of(kind & !ANSWER)?;
        (version == VERSION).then_some(Self { kind: of, answer: kind & ANSWER != 0, id: u32::from_be_bytes(id), body })
    }

    /// Writes the message at the start of `to`, which has room for it; its length comes back.
    pub fn write(&self, to: &mut [u8]) -> usize {
        let len = HEADER + self.body.len();
        to[0] = VERSION;
        to[1] = self.kind as u8 | if self.answer { ANSWER } else { 0 };
        to[2..4].copy_from_slice(&(self.body.len() as u16).to_be_bytes());
        to[4..8].copy_from_slice(&self.id.to_be_bytes());
        to[HEADER..len].copy_from_slice(self.body);
        len
    }

    /// Writes the message as a packet at the start of `to`, which has room for it; its length comes back.
    pub fn write_packet(&self, from: Ipv6Addr, to_addr: Ipv6Addr, to: &mut [u8]) -> usize {
        self.write_packet_of(0, from, to_addr, to)
    }

    /// The same as a packet of `size` bytes at least, zeros behind the message, which readers do not look at.
    pub fn write_packet_of(&self, size: usize, from: Ipv6Addr, to_addr: Ipv6Addr, to: &mut [u8]) -> usize {
        let written = UDP_HEADER + self.write(&mut to[IPV6_HEADER + UDP_HEADER..]);
        let udp_len = written.max(size.saturating_sub(IPV6_HEADER));
        to[IPV6_HEADER + written..IPV6_HEADER + udp_len].fill(0);
        let len = IPV6_HEADER + udp_len;
        let udp_len = udp_len as u16;
        let (ip, udp) = to[..len].split_at_mut(IPV6_HEADER);
        ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
        ip[6..8].copy_from_slice(&[UDP, HOP_LIMIT]);
        ip[8..24].copy_from_slice(&from.octets());
        ip[24..40].copy_from_slice(&to_addr.octets());
        udp[..2].copy_from_slice(&PORT.to_be_bytes());
        udp[2..4].copy_from_slice(&PORT.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
        udp[6..8].fill(0);
        let checksum = Sum::default().pseudo_header(&ip[8..40], UDP, udp_len).bytes(udp).complement_nonzero();
        udp[6..8].copy_from_slice(&checksum);
        len
    }

    /// Reads a packet that the peer with the address `from` has sealed for us at `to`. The checksum is not looked at:
    /// the seal says more.
    pub fn parse_packet(packet: &'a [u8], from: Ipv6Addr, to: Ipv6Addr) -> Option<Self> {
        let (ip, udp) = packet.split_at_checked(IPV6_HEADER)?;
        let for_us = address::is_destination(packet) && ip[24..40] == to.octets();
        let from_them = ip[8..24] == from.octets();
        let ports = [PORT.to_be_bytes(), PORT.to_be_bytes()];
        if !for_us || !from_them || ip[6] != UDP || udp.get(..4)? != ports.as_flattened() {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
        Self::parse(udp.get(UDP_HEADER..len)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6573, 0x6864, 0, 1, 2, 3, 4);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6573, 0x6864, 0, 5, 6, 7, 8);

    fn packed(message: &Message<'_>) -> Vec<u8> {
        let mut packet = vec![0xaa; OVERHEAD + message.body.len()];
        assert_eq!(message.write_packet(A, B, &mut packet), packet.len());
        packet
    }

    #[test]
    fn others_read_the_packet_as_ipv6_and_udp() {
        let packet = packed(&Message { kind: Kind::Hello, answer: false, id: 7, body: b"{}" });
        let sliced = etherparse::SlicedPacket::from_ip(&packet).unwrap();
        let Some(etherparse::NetSlice::Ipv6(ip)) = &sliced.net else { panic!("{sliced:?}") };
        assert_eq!((ip.header().source_addr(), ip.header().destination_addr()), (A, B));
        let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else { panic!("{sliced:?}") };
        let header = udp.to_header();
        let checksum = header.calc_checksum_ipv6_raw(A.octets(), B.octets(), udp.payload()).unwrap();
        assert_eq!((header.checksum, udp.payload()), (checksum, &[1, 1, 0, 2, 0, 0, 0, 7, b'{', b'}'][..]));
    }

    #[test]
    fn what_is_not_from_the_peer_to_us_is_refused() {
        let packet = packed(&Message { kind: Kind::Bench, answer: true, id: 1, body: &[] });
        assert!(Message::parse_packet(&packet, A, B).is_some());
        assert!(Message::parse_packet(&packet, B, B).is_none(), "another's source");
        assert!(Message::parse_packet(&packet, A, A).is_none(), "another's destination");
        for (at, value) in [(6, 6), (40, 1), (43, 1), (48, 2), (49, 99)] {
            let mut packet = packet.clone();
            packet[at] = value;
            assert!(Message::parse_packet(&packet, A, B).is_none(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn messages_survive_the_packet(
            kind in prop::sample::select(vec![Kind::Hello, Kind::Bench, Kind::Probe, Kind::Doctor, Kind::Enroll, Kind::Rotate]),
            answer: bool,
            id: u32,
            body in prop::collection::vec(any::<u8>(), 0..=MAX_BODY),
            padding in 0usize..16,
        ) {
            let message = Message { kind, answer, id, body: &body };
            let mut packet = packed(&message);
            prop_assert!(packet.len() <= 1280);
            for cut in [0, 39, 47, OVERHEAD - 1, packet.len() - 1] {
                prop_assert_eq!(Message::parse_packet(&packet[..cut.min(packet.len() - 1)], A, B), None);
            }
            packet.resize(packet.len() + padding, 0);
            prop_assert_eq!(Message::parse_packet(&packet, A, B), Some(message));
        }

        #[test]
        fn garbage_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), address: bool) {
            let _ = Message::parse(&bytes);
            if address && bytes.len() >= 48 {
                bytes[0] = 0x60;
                bytes[6] = UDP;
                bytes[8..24].copy_from_slice(&A.octets());
                bytes[24..40].copy_from_slice(&B.octets());
                bytes[40..44].copy_from_slice(&[0x6d, 0x64, 0x6d, 0x64]);
            }
            let _ = Message::parse_packet(&bytes, A, B);
        }
    }
}
