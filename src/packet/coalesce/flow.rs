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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    /// First, for they are the likeliest to differ.
    pub ports: u32,
    pub protocol: u8,
    pub ipv4: bool,
    pub addresses: Addresses,
}

/// A TCP or UDP packet.
#[derive(Debug, Clone, Copy)]
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
        match packet.first().map(|first| first >> 4) {
            Some(4) if packet.len() >= IPV4_HEADER => ipv4(packet),
            Some(6) if packet.len() >= IPV6_HEADER => ipv6(packet),
            _ => Self::Other,
        }
    }
}

/// `inet_gro_receive` (`net/ipv4/af_inet.c`) and `inet_gro_flush` (`include/net/gro.h`).
fn ipv4(packet: &[u8]) -> Kind {
    let addresses = [word(packet, 12), 0, 0, 0];
    let fragment = read_u16(packet, 6);
    let whole = packet[0] == 0x45 && usize::from(read_u16(packet, 2)) == packet.len() && fragment & !0x4000 == 0;
    if !whole {
        return Kind::Between(addresses);
    }
    let network = u64::from(packet[1]) << 32 | u64::from(packet[8]) << 16 | u64::from(fragment);
    transport(packet, IPV4_HEADER, packet[9], addresses, network, read_u16(packet, 4), fragment != 0)
}

/// `ipv6_gro_receive` (`net/ipv6/ip6_offload.c`) and `ipv6_gro_flush` (`include/net/gro.h`). The kernel takes another
/// flow label for another flow; that it ends a super-packet of this one is the stricter reading.
fn ipv6(packet: &[u8]) -> Kind {
    let addresses = [word(packet, 8), word(packet, 16), word(packet, 24), word(packet, 32)];
    if IPV6_HEADER + usize::from(read_u16(packet, 4)) != packet.len() {
        return Kind::Between(addresses);
    }
    let network = u64::from(read_u32(packet, 0)) << 8 | u64::from(packet[7]);
    transport(packet, IPV6_HEADER, packet[6], addresses, network, 0, false)
}

fn transport(
    packet: &[u8],
    ip_header: usize,
    protocol: u8,
    addresses: Addresses,
    network: u64,
    id: u16,
    dont_fragment: bool,
) -> Kind {
    let transport = &packet[ip_header..];
    let shortest = match protocol {
        TCP => 20,
        UDP => 8,
        // Whatever it is: behind IPv6 extension headers there may be TCP.
        _ => return Kind::Between(addresses),
    };
    if transport.len() < shortest {
        return Kind::Between(addresses);
    }
    let flow = Flow { ports: read_u32(transport, 0), protocol, ipv4: ip_header == IPV4_HEADER, addresses };
    let mut segment = Segment {
        flow,
        network,
        id,
        dont_fragment,
        header: ip_header + shortest,
        payload: transport.len() - shortest,
        sequence: 0,
        acknowledgment: 0,
        word: 0,
        flags: 0,
        mergeable: false,
    };
    if protocol == TCP {
        tcp(&mut segment, ip_header, transport);
    } else {
        // `udp_gro_receive_segment` (net/ipv4/udp_offload.c): no padding, a payload, and a checksum, since segments
        // will have one.
        segment.mergeable = usize::from(read_u16(transport, 4)) == transport.len()
            && segment.payload > 0
            && read_u16(transport, UDP_CHECKSUM) != 0;
    }
    Kind::Segment(segment)
}

/// `tcp_gro_receive` (`net/ipv4/tcp_offload.c`), the part that looks at one packet.
fn tcp(segment: &mut Segment, ip_header: usize, transport: &[u8]) {
    let data_offset = usize::from(transport[12] >> 4) * 4;
    if data_offset < 20 || data_offset > transport.len() {
        return;
    }
    segment.header = ip_header + data_offset;
    segment.payload = transport.len() - data_offset;
    segment.sequence = read_u32(transport, 4);
    segment.acknowledgment = read_u32(transport, 8);
    segment.flags = transport[13];
    segment.word = read_u32(transport, 12) & !(u32::from(FIN | PSH | CWR) << 16);
    segment.mergeable = segment.payload > 0 && segment.flags & (SYN | RST | URG) == 0;
}

/// Eight bytes, for comparison only.
fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from(read_u32(bytes, offset)) << 32 | u64::from(read_u32(bytes, offset + 4))
}
