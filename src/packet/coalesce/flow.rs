//! What has to be known of a packet to tell whether it continues another.

use crate::packet::{IPV4_HEADER, IPV6_HEADER, TCP, UDP, UDP_CHECKSUM, read_u16, read_u32};

pub(super) const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
const URG: u8 = 0x20;
pub(super) const CWR: u8 = 0x80;

/// Source and destination; those of IPv4 in the first word.
pub(super) type Addresses = [u64; 4];

/// Whose order has to be kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flow {
    /// First, for they are the likeliest to differ.
    pub ports: u32,
    pub protocol: u8,
    pub ipv4: bool,
    pub addresses: Addresses,
}

/// A TCP or UDP packet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Segment {
    pub flow: Flow,
    /// The fields of the IP header that the kernel wants equal: TOS, TTL and DF, or traffic class, flow label and hop
    /// limit.
    pub network: u64,
    /// Identification; 0 over IPv6.
    pub id: u16,
    pub dont_fragment: bool,
    /// Bytes of all headers.
    pub header: usize,
    pub payload: usize,
    /// TCP; 0 for UDP.
    pub sequence: u32,
    /// TCP; 0 for UDP.
    pub acknowledgment: u32,
    /// TCP's data offset, flags and window, of which the flags that may differ are missing; 0 for UDP.
    pub word: u32,
    /// TCP's flags; 0 for UDP.
    pub flags: u8,
    /// Whether it may be one part of a super-packet. If not, it may not overtake its flow either.
    pub mergeable: bool,
}

/// What a packet is to the coalescer.
pub(super) enum Kind {
    /// Of no flow: written alone, overtaken by whom it may concern.
    Other,
    /// Of some flow between these addresses: a fragment, or behind headers that are not looked into.
    Between(Addresses),
    /// Of a known flow.
    Segment(Segment),
}

impl Kind {
    pub(super) fn of(packet: &[u8]) -> Self {
        let kind = match packet.first().map(|first| first >> 4) {
            Some(4) => packet.split_first_chunk().map(|(header, rest)| ipv4(header, rest)),
            Some(6) => packet.split_first_chunk().map(|(header, rest)| ipv6(header, rest)),
            _ => None,
        };
        kind.unwrap_or(Self::Other)
    }
}

/// `inet_gro_receive` (`net/ipv4/af_inet.c`) and `inet_gro_flush` (`include/net/gro.h`).
fn ipv4(header: &[u8; IPV4_HEADER], rest: &[u8]) -> Kind {
    let addresses = [word(header, 12), 0, 0, 0];
    let fragment = read_u16(header, 6);
    let whole = header[0] == 0x45 && usize::from(read_u16(header, 2)) == IPV4_HEADER + rest.len();
    if !whole || fragment & !0x4000 != 0 {
        return Kind::Between(addresses);
    }
    let mut segment = Segment {
        flow: Flow { ports: 0, protocol: header[9], ipv4: true, addresses },
        network: u64::from(header[1]) << 32 | u64::from(header[8]) << 16 | u64::from(fragment),
        id: read_u16(header, 4),
        dont_fragment: fragment != 0,
        header: IPV4_HEADER,
        ..Segment::default()
    };
    if segment.add_transport(rest) { Kind::Segment(segment) } else { Kind::Between(addresses) }
}

/// `ipv6_gro_receive` (`net/ipv6/ip6_offload.c`) and `ipv6_gro_flush` (`include/net/gro.h`). The kernel takes another
/// flow label for another flow; that it ends a super-packet of this one is the stricter reading.
fn ipv6(header: &[u8; IPV6_HEADER], rest: &[u8]) -> Kind {
    let addresses = [word(header, 8), word(header, 16), word(header, 24), word(header, 32)];
    if usize::from(read_u16(header, 4)) != rest.len() {
        return Kind::Between(addresses);
    }
    let mut segment = Segment {
        flow: Flow { ports: 0, protocol: header[6], ipv4: false, addresses },
        network: u64::from(read_u32(header, 0)) << 8 | u64::from(header[7]),
        header: IPV6_HEADER,
        ..Segment::default()
    };
    if segment.add_transport(rest) { Kind::Segment(segment) } else { Kind::Between(addresses) }
}

impl Segment {
    /// Adds what the transport header says. False when it is none of TCP or UDP; but behind IPv6 extension headers
    /// there may be either.
    fn add_transport(&mut self, transport: &[u8]) -> bool {
        match self.flow.protocol {
            TCP => transport.first_chunk().map(|header| self.add_tcp(header, transport.len())).is_some(),
            UDP => transport.first_chunk().map(|header| self.add_udp(*header, transport.len())).is_some(),
            _ => false,
        }
    }

    /// `tcp_gro_receive` (`net/ipv4/tcp_offload.c`), the part that looks at one packet.
    fn add_tcp(&mut self, header: &[u8; 20], len: usize) {
        self.flow.ports = read_u32(header, 0);
        let data_offset = usize::from(header[12] >> 4) * 4;
        if data_offset < header.len() || data_offset > len {
            return;
        }
        self.header += data_offset;
        self.payload = len - data_offset;
        self.sequence = read_u32(header, 4);
        self.acknowledgment = read_u32(header, 8);
        self.flags = header[13];
        self.word = read_u32(header, 12) & !(u32::from(FIN | PSH | CWR) << 16);
        self.mergeable = self.payload > 0 && self.flags & (SYN | RST | URG) == 0;
    }

    /// `udp_gro_receive_segment` (`net/ipv4/udp_offload.c`): no padding, a payload, and a checksum, since the
    /// segments of a super-packet will have one.
    fn add_udp(&mut self, header: [u8; 8], len: usize) {
        self.flow.ports = read_u32(&header, 0);
        self.header += header.len();
        self.payload = len - header.len();
        self.mergeable =
            usize::from(read_u16(&header, 4)) == len && self.payload > 0 && read_u16(&header, UDP_CHECKSUM) != 0;
    }
}

/// Eight bytes, for comparison only.
fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from(read_u32(bytes, offset)) << 32 | u64::from(read_u32(bytes, offset + 4))
}
