//! Which exchange between two hosts a packet is part of, as connection tracking asks.

use std::net::IpAddr;

use super::{IPV4_HEADER, IPV6_HEADER, TCP, UDP, ip, read_u16, read_u32};

/// What the packets of one exchange in one direction have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number; of a fragmented packet that of its payload.
    pub protocol: u8,
    /// What tells the exchange from others between the two.
    pub mark: Mark,
}

/// What tells an exchange from others between the same two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// Source and destination port; of an echo its identifier, twice; zeros where the protocol has neither.
    Ports(u16, u16),
    /// Of a fragment that is not the first, which alone has the ports: the identification that it shares with it.
    Fragment(u32),
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
/// Before what an ICMP error quotes (RFC 792, RFC 4443).
const ICMP_HEADER: usize = 8;
/// Extension headers that are walked; more is nothing that a host would send.
const MAX_EXTENSIONS: usize = 8;

impl Tuple {
    /// That of a packet; `None` for an ICMP error, which is part of no exchange of its own, and where it cannot be told.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let Parts { src, dst, protocol, fragment, payload } = Parts::of(packet)?;
        let mark = match fragment {
            Some(Fragment { id, first: false, .. }) => Mark::Fragment(id),
            _ => mark(protocol, payload)?,
        };
        Some(Self { src, dst, protocol, mark })
    }

    /// That of the packet that an ICMP error is about.
    pub fn reported(packet: &[u8]) -> Option<Self> {
        let Parts { protocol, fragment: None, payload, .. } = Parts::of(packet)? else { return None };
        let error = match (protocol, payload.first()?) {
            // Unreachable, time exceeded, parameter problem.
            (ICMP, kind) => [3, 11, 12].contains(kind),
            (ICMPV6, kind) => *kind < 128,
            _ => false,
        };
        Self::of(payload.get(ICMP_HEADER..).filter(|_| error)?)
    }

    /// That of the packets in the other direction.
    #[must_use]
    pub fn answer(self) -> Self {
        let mark = match self.mark {
            Mark::Ports(src, dst) => Mark::Ports(dst, src),
            fragment @ Mark::Fragment(_) => fragment,
        };
        Self { src: self.dst, dst: self.src, mark, ..self }
    }
}

/// The identification of a packet that is the first of several fragments.
pub fn first_fragment(packet: &[u8]) -> Option<u32> {
    Parts::of(packet)?.fragment.filter(|fragment| fragment.first && fragment.more).map(|fragment| fragment.id)
}

/// Whether the packet asks for a new TCP connection.
pub fn is_syn(packet: &[u8]) -> bool {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let flags =
        Parts::of(packet).filter(|parts| parts.protocol == TCP).and_then(|parts| parts.payload.get(13).copied());
    flags.is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

fn mark(protocol: u8, payload: &[u8]) -> Option<Mark> {
    match protocol {
        TCP | UDP | DCCP | SCTP | UDP_LITE if payload.len() >= 4 => {
            Some(Mark::Ports(read_u16(payload, 0), read_u16(payload, 2)))
        }
        TCP | UDP | DCCP | SCTP | UDP_LITE => None,
        ICMP | ICMPV6 => {
            // Echo request and reply.
            let echo = matches!((protocol, payload.first()?), (ICMP, 0 | 8) | (ICMPV6, 128 | 129));
            let id = (echo && payload.len() >= 6).then(|| read_u16(payload, 4))?;
            Some(Mark::Ports(id, id))
        }
        _ => Some(Mark::Ports(0, 0)),
    }
}

/// A packet behind its IP headers.
struct Parts<'a> {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    fragment: Option<Fragment>,
    /// As much of it as there is: an ICMP error quotes the start only.
    payload: &'a [u8],
}

struct Fragment {
    id: u32,
    first: bool,
    more: bool,
}

impl<'a> Parts<'a> {
    fn of(packet: &'a [u8]) -> Option<Self> {
        let (src, dst) = (ip::source(packet)?, ip::destination(packet)?);
        let (protocol, fragment, at) = if src.is_ipv4() { v4(packet) } else { v6(packet)? };
        Some(Self { src, dst, protocol, fragment, payload: packet.get(at..)? })
    }
}

/// The caller has checked that there is a whole header.
fn v4(packet: &[u8]) -> (u8, Option<Fragment>, usize) {
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;
    let word = read_u16(packet, 6);
    let fragment = (word & (MORE | OFFSET) != 0).then(|| Fragment {
        id: read_u16(packet, 4).into(),
        first: word & OFFSET == 0,
        more: word & MORE != 0,
    });
    (packet[9], fragment, (usize::from(packet[0] & 0x0f) * 4).max(IPV4_HEADER))
}

/// The caller has checked that there is a whole header; extensions are walked as RFC 8200, section 4, has them.
fn v6(packet: &[u8]) -> Option<(u8, Option<Fragment>, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;
    let (mut next, mut at, mut fragment) = (packet[6], IPV6_HEADER, None);
    for _ in 0..MAX_EXTENSIONS {
        let len = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => 8 + 8 * usize::from(*packet.get(at + 1)?),
            FRAGMENT => {
                let header = packet.get(at..at + 8)?;
                let word = read_u16(header, 2);
                let found = Fragment { id: read_u32(header, 4), first: word >> 3 == 0, more: word & 1 != 0 };
                if !found.first {
                    return Some((header[0], Some(found), at + 8));
                }
                fragment = Some(found);
                8
            }
            _ => return Some((next, fragment, at)),
        };
        next = *packet.get(at)?;
        at += len;
    }
    None
}

#[cfg(test)]
mod tests {
    use etherparse::{IpFragOffset, IpNumber, Ipv6FragmentHeader, PacketBuilder};
    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::{self, Sample};

    const A4: [u8; 4] = [198, 51, 100, 1];
    const B4: [u8; 4] = [10, 89, 2, 10];

    fn v6_addr(last: u8) -> [u8; 16] {
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0x20, 0x01]);
        octets[15] = last;
        octets
    }

    fn echo(ipv6: bool, id: u16) -> Vec<u8> {
        let mut packet = Vec::new();
        if ipv6 {
            PacketBuilder::ipv6(v6_addr(1), v6_addr(2), 64)
                .icmpv6_echo_request(id, 1)
                .write(&mut packet, b"x")
                .unwrap();
        } else {
            PacketBuilder::ipv4(A4, B4, 64).icmpv4_echo_request(id, 1).write(&mut packet, b"x").unwrap();
        }
        packet
    }

    /// "Port unreachable" from where `about` was sent to.
    fn error(about: &[u8]) -> Vec<u8> {
        let (src, dst) = (ip::destination(about).unwrap(), ip::source(about).unwrap());
        let mut packet = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut packet = vec![0x45, 0, 0, 56, 0, 0, 0, 0, 64, ICMP, 0, 0];
                packet.extend(src.octets().into_iter().chain(dst.octets()).chain([3, 3]));
                packet
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 56, ICMPV6, 64];
                packet.extend(src.octets().into_iter().chain(dst.octets()).chain([1, 4]));
                packet
            }
            _ => panic!("one family"),
        };
        packet.extend([0; 6]);
        packet.extend(&about[..about.len().min(48)]);
        packet
    }

    #[test]
    fn ports_and_answers() {
        for ipv6 in [false, true] {
            let packet = Sample { ipv6, source_port: 7, destination_port: 443, ..Sample::udp(vec![1]) }.build();
            let tuple = Tuple::of(&packet).unwrap();
            assert_eq!((tuple.protocol, tuple.mark), (UDP, Mark::Ports(7, 443)));
            assert_eq!((tuple.src, tuple.dst), (ip::source(&packet).unwrap(), ip::destination(&packet).unwrap()));
            let answer = tuple.answer();
            assert_eq!((answer.src, answer.dst, answer.mark), (tuple.dst, tuple.src, Mark::Ports(443, 7)));
            let behind_options =
                Sample { extension: 8, ipv6, source_port: 7, destination_port: 443, ..Sample::udp(vec![1]) };
            assert_eq!(Tuple::of(&behind_options.build()).unwrap().mark, Mark::Ports(7, 443));
        }
    }

    #[test]
    fn an_echo_and_its_reply_belong_together() {
        for ipv6 in [false, true] {
            let request = echo(ipv6, 99);
            let mut reply = request.clone();
            let (kind, addresses) = if ipv6 { (40, 8..40) } else { (20, 12..20) };
            reply[kind] = if ipv6 { 129 } else { 0 };
            let half = addresses.len() / 2;
            reply[addresses].rotate_left(half);
            assert_eq!(Tuple::of(&request).unwrap().answer(), Tuple::of(&reply).unwrap());
            assert_ne!(Tuple::of(&request), Tuple::of(&echo(ipv6, 98)));
        }
    }

    #[test]
    fn an_error_is_about_another_packet() {
        for ipv6 in [false, true] {
            let packet = Sample { ipv6, source_port: 7, destination_port: 443, ..Sample::udp(vec![1]) }.build();
            let error = error(&packet);
            assert_eq!((Tuple::of(&error), Tuple::reported(&error)), (None, Tuple::of(&packet)));
            assert_eq!(Tuple::reported(&packet), None);
            assert_eq!(Tuple::reported(&echo(ipv6, 1)), None);
        }
    }

    #[test]
    fn fragments_share_an_identification() {
        let sample =
            Sample { id: 77, more_fragments: true, source_port: 7, destination_port: 443, ..Sample::udp(vec![1; 8]) };
        let (first, later) = (sample.build(), Sample { fragment_offset: 2, more_fragments: false, ..sample }.build());
        assert_eq!(Tuple::of(&first).unwrap().mark, Mark::Ports(7, 443));
        assert_eq!((first_fragment(&first), first_fragment(&later)), (Some(77), None));
        let tuple = Tuple::of(&later).unwrap();
        assert_eq!((tuple.protocol, tuple.mark, tuple.answer().mark), (UDP, Mark::Fragment(77), Mark::Fragment(77)));

        let v6 = |offset, more| {
            let header =
                Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::try_new(offset).unwrap(), more, 0xdead_beef);
            let mut packet = vec![0x60, 0, 0, 0, 0, 24, 44, 64];
            packet.extend(v6_addr(1).into_iter().chain(v6_addr(2)).chain(header.to_bytes()).chain([0, 7, 1, 0xbb]));
            packet.resize(64, 0);
            packet
        };
        assert_eq!(Tuple::of(&v6(0, true)).unwrap().mark, Mark::Ports(7, 443));
        assert_eq!(first_fragment(&v6(0, true)), Some(0xdead_beef));
        assert_eq!(Tuple::of(&v6(2, false)).unwrap().mark, Mark::Fragment(0xdead_beef));
        // An atomic fragment (RFC 6946) has no others.
        assert_eq!(first_fragment(&v6(0, false)), None);
    }

    #[test]
    fn only_the_first_packet_of_a_connection_is_a_syn() {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(A4, B4, 64).tcp(7, 443, 1, 100).syn().write(&mut packet, &[]).unwrap();
        assert!(is_syn(&packet));
        packet[33] |= 0x10;
        assert!(!is_syn(&packet), "SYN and ACK are an answer");
        assert!(!is_syn(&Sample::udp(vec![2; 40]).build()));
    }

    proptest! {
        #[test]
        fn tuples_say_what_the_builder_was_told(sample in testing::sample(200)) {
            let protocol = if sample.tcp.is_some() { TCP } else { UDP };
            let tuple = Tuple::of(&sample.build()).unwrap();
            prop_assert_eq!((tuple.protocol, tuple.mark), (protocol, Mark::Ports(sample.source_port, sample.destination_port)));
            prop_assert_eq!(tuple.answer().answer(), tuple);
        }

        #[test]
        fn garbage_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), version in prop::sample::select(vec![4u8, 6]), next in prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 58, 60])) {
            if bytes.len() > 9 {
                bytes[0] = version << 4 | 5;
                bytes[if version == 4 { 9 } else { 6 }] = next;
            }
            let _ = (Tuple::of(&bytes), Tuple::reported(&bytes), first_fragment(&bytes), is_syn(&bytes));
        }
    }
}
