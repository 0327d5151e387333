//! IP packets, built byte by byte: what leaves a container may be anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::checksum::Sum;

/// Of an Ethernet frame with ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
/// The fragment header (RFC 8200, 4.5).
const FRAGMENT: u8 = 44;
/// For experiments (RFC 3692): no firewall knows it.
pub(super) const EXPERIMENT: u8 = 253;

const HOP_LIMIT: u8 = 64;
/// The discard service (RFC 863).
const DISCARD: u16 = 9;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// Where a packet comes from and goes to; both of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub source: IpAddr,
    pub destination: IpAddr,
}

/// The Ethernet type of an IP packet.
pub fn ethertype(packet: &[u8]) -> u16 {
    if packet.first().is_some_and(|first| first >> 4 == 6) { IPV6 } else { IPV4 }
}

impl Way {
    /// An IP packet of this protocol.
    pub fn packet(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.headed(protocol, HOP_LIMIT, 0, payload)
    }

    /// An echo request.
    pub fn echo(self, id: u16, payload: &[u8]) -> Vec<u8> {
        let (protocol, kind) = if self.source.is_ipv4() { (ICMP, 8) } else { (ICMPV6, 128) };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(id.to_be_bytes());
        message.extend([0, 1]);
        message.extend(payload);
        self.packet(protocol, &self.summed(message, protocol, 2))
    }

    /// A UDP datagram.
    pub fn udp(self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        self.packet(UDP, &self.datagram(ports, payload))
    }

    /// A UDP datagram in two fragments, the marker in the second only. The first holds the header and 40 bytes.
    pub fn fragments(self, id: u16, ports: (u16, u16), marker: &[u8]) -> [Vec<u8>; 2] {
        const FIRST: usize = 48;
        let payload = [&[0; FIRST - 8][..], marker].concat();
        let datagram = self.datagram(ports, &payload);
        let (first, second) = datagram.split_at(FIRST);
        let more: u16 = 1;
        let offset = (FIRST / 8) as u16;
        match self.source {
            IpAddr::V4(_) => {
                let mut packets = [first, second].map(|part| self.packet(UDP, part));
                // RFC 791: flags and offset share 16 bits; the don't-fragment flag goes.
                for (packet, word) in packets.iter_mut().zip([more << 13, offset]) {
                    packet[4..6].copy_from_slice(&id.to_be_bytes());
                    packet[6..8].copy_from_slice(&word.to_be_bytes());
                    sum_ipv4(packet);
                }
                packets
            }
            IpAddr::V6(_) => [(first, more), (second, offset << 3)].map(|(part, word)| {
                let mut payload = vec![UDP, 0];
                payload.extend(word.to_be_bytes());
                payload.extend(u32::from(id).to_be_bytes());
                payload.extend(part);
                self.packet(FRAGMENT, &payload)
            }),
        }
    }

    /// A SYN that carries data (RFC 9293, 3.4 allows it), so that the marker is in the first packet already.
    pub fn syn(self, ports: (u16, u16), sequence: u32, payload: &[u8]) -> Vec<u8> {
        self.packet(TCP, &self.tcp(ports, sequence, SYN, payload))
    }

    /// A question for an address, recursion desired, whose name begins with `label`. Below `example`, which resolvers treat
    /// like any other name, and which the root denies (RFC 6761, 6.5).
    pub fn dns(self, port: u16, id: u16, label: &[u8]) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in [label, b"meshd", b"example"] {
            message.push(label.len() as u8);
            message.extend(label);
        }
        // The root; type A; class IN.
        message.extend([0, 0, 1, 0, 1]);
        self.udp((port, 53), &message)
    }

    fn datagram(self, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(8 + payload.len());
        datagram.extend(ports.0.to_be_bytes());
        datagram.extend(ports.1.to_be_bytes());
        datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        self.summed(datagram, UDP, 6)
    }

    fn tcp(self, ports: (u16, u16), sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::with_capacity(20 + payload.len());
        segment.extend(ports.0.to_be_bytes());
        segment.extend(ports.1.to_be_bytes());
        segment.extend(sequence.to_be_bytes());
        // No acknowledgement; five words of header; a window of 64 KiB; the sum; no urgent data.
        segment.extend([0, 0, 0, 0, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(payload);
        self.summed(segment, TCP, 16)
    }

    /// Writes the checksum of a message at `at`, where it is zero yet.
    pub fn summed(self, mut message: Vec<u8>, protocol: u8, at: usize) -> Vec<u8> {
        // ICMP for IPv4 is summed without the pseudo-header (RFC 792), for IPv6 with it (RFC 4443, 2.3).
        let start = if protocol == ICMP {
            Sum::default()
        } else {
            Sum::default().pseudo_header(&self.octets(), protocol, message.len() as u16)
        };
        let sum = start.bytes(&message).complement_nonzero();
        message[at..at + 2].copy_from_slice(&sum);
        message
    }

    fn octets(self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (source, destination) => [source, destination].map(as_v6).map(|address| address.octets()).concat(),
        }
    }

    pub fn headed(self, protocol: u8, hop_limit: u8, id: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::with_capacity(40 + payload.len());
        if self.source.is_ipv4() {
            packet.extend([0x45, 0]);
            packet.extend(((20 + payload.len()) as u16).to_be_bytes());
            packet.extend(id.to_be_bytes());
            packet.extend([0x40, 0, hop_limit, protocol, 0, 0]);
        } else {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, hop_limit]);
        }
        packet.extend(self.octets());
        if self.source.is_ipv4() {
            sum_ipv4(&mut packet);
        }
        packet.extend(payload);
        packet
    }
}

fn sum_ipv4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = Sum::default().bytes(&packet[..20]).complement();
    packet[10..12].copy_from_slice(&sum);
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// What the host sends to see whether it would be seen. The unspecified source is a martian to whoever might get it back.
pub(super) fn control(ipv6: bool, marker: &[u8]) -> Vec<u8> {
    let way = if ipv6 {
        Way { source: Ipv6Addr::UNSPECIFIED.into(), destination: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into() }
    } else {
        Way { source: Ipv4Addr::UNSPECIFIED.into(), destination: Ipv4Addr::new(192, 0, 2, 1).into() }
    };
    way.headed(UDP, 1, 0, &way.datagram((DISCARD, DISCARD), marker))
}

/// The transport of an IP packet: its protocol, the addresses, and its bytes from the transport header on. Of a fragment only
/// when it is the first.
pub(super) fn transport(packet: &[u8]) -> Option<(u8, Way, &[u8])> {
    let (source, destination) = (crate::packet::source(packet)?, crate::packet::destination(packet)?);
    let way = Way { source, destination };
    if source.is_ipv4() {
        let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
        let header = usize::from(packet[0] & 15) * 4;
        return Some((packet[9], way, if fragment { &[] } else { packet.get(header..).unwrap_or_default() }));
    }
    match (packet[6], packet.get(40..).unwrap_or_default()) {
        (FRAGMENT, [next, _, high, low, _, _, _, _, rest @ ..]) => {
            let first = u16::from_be_bytes([*high, *low]) >> 3 == 0;
            Some((*next, way, if first { rest } else { &[] }))
        }
        (next, rest) => Some((next, way, rest)),
    }
}

/// Source and destination port.
pub(super) fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let word = |at: usize| Some(u16::from_be_bytes([*transport.get(at)?, *transport.get(at + 1)?]));
    Some((word(0)?, word(2)?))
}

/// The reset that ends what a SYN of ours began: the answer to a SYN-ACK, none to anything else.
pub fn reset(packet: &[u8]) -> Option<Vec<u8>> {
    let (protocol, way, segment) = transport(packet)?;
    let (source, destination) = ports(segment).filter(|_| protocol == TCP)?;
    let acknowledged = segment.get(8..12)?;
    let answers = segment.get(13).is_some_and(|flags| flags & (SYN | RST) == SYN);
    let back = Way { source: way.destination, destination: way.source };
    let sequence = u32::from_be_bytes(acknowledged.try_into().ok()?);
    answers.then(|| back.packet(TCP, &back.tcp((destination, source), sequence, RST, &[])))
}
