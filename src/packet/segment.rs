//! Splits what one read of the TUN device delivered into packets that fit the MTU, in place.
//!
//! ```text
//! |header|payload 1|payload 2|payload 3|       as read; payload 1 is handed on with the header where it is
//!           |header|payload 2|payload 3|       the header is stamped over the consumed end of payload 1
//!                     |header|payload 3|       and of payload 2
//! ```
//!
//! So each segment is contiguous although no payload moves. The rules are those of the kernel's own segmentation:
//! `tcp_gso_segment` (`net/ipv4/tcp_offload.c`), `__udp_gso_segment` (`net/ipv4/udp_offload.c`) and `inet_gso_segment`
//! (`net/ipv4/af_inet.c`).

use super::checksum::Sum;
use super::virtio::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader};
use super::{
    IPV4_HEADER, IPV6_HEADER, MAX_PACKET, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, read_u16, read_u32,
    refresh_ipv4_checksum, write_u16,
};

/// Plaintext is padded to multiples of this (`WireGuard` whitepaper, 5.4.6), and so a buffer needs as many spare
/// bytes after the packet.
pub const PADDING: usize = 16;

/// The longest IP header with extensions and transport header that a super-packet may have; a segment routing header
/// of 16 segments fits.
const MAX_HEADER: usize = 512;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Why what the device delivered cannot be sent on. The packet is lost, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Nothing but a virtio header.
    #[error("the device delivered an empty packet")]
    Empty,
    /// The IP length fields cannot say so.
    #[error("a packet of {0} bytes, longer than the {MAX_PACKET} that IP allows")]
    TooLong(usize),
    /// The caller's buffer has no spare bytes for padding.
    #[error("a buffer of {buffer} bytes for a packet of {len}: {PADDING} more than the packet are needed")]
    NoRoom {
        /// Bytes of the buffer.
        buffer: usize,
        /// Bytes of the packet.
        len: usize,
    },
    /// A kind of super-packet that the device was not told to deliver.
    #[error("unknown kind of super-packet {0:#04x}")]
    UnknownKind(u8),
    /// A super-packet has to say how long its segments are.
    #[error("a super-packet with segment size 0")]
    NoSegmentSize,
    /// A super-packet's checksum is never complete (virtio 1.2, 5.1.6.2).
    #[error("a super-packet without NEEDS_CSUM")]
    NoChecksum,
    /// The checksum, or the transport header around it, lies outside of the packet.
    #[error("checksum at {start}+{offset} in a packet of {len} bytes")]
    Checksum {
        /// `csum_start`.
        start: usize,
        /// `csum_offset`.
        offset: usize,
        /// Bytes of the packet.
        len: usize,
    },
    /// The packet is not of the protocol that the virtio header names.
    #[error("the packet is not of the kind {0:#04x} that its virtio header names")]
    Mismatch(u8),
    /// The transport header is malformed, or the headers are longer than the packet or than any real ones.
    #[error("headers of {header} bytes in a super-packet of {len}")]
    Header {
        /// Bytes of all headers, by the transport header.
        header: usize,
        /// Bytes of the packet.
        len: usize,
    },
}

/// Hands the packets that `buffer[..len]` consists of to `each`, in order and ready to be sealed.
///
/// `header` is the virtio header that was read before the packet. A super-packet is split; any other packet is handed
/// on once, its checksum completed when the virtio header asks for it. Each is followed by zeros up to the next
/// multiple of 16, but not beyond `mtu` (0: no limit), as plaintext is padded before it is sealed; hence `buffer` has
/// at least [`PADDING`] bytes after `len`, which are as before when this returns. What precedes them is not: headers
/// have been written over payload.
pub fn segment(
    header: VnetHeader,
    buffer: &mut [u8],
    len: usize,
    mtu: usize,
    mut each: impl FnMut(&[u8]),
) -> Result<(), SegmentError> {
    if len == 0 {
        return Err(SegmentError::Empty);
    }
    if len > MAX_PACKET {
        return Err(SegmentError::TooLong(len));
    }
    if buffer.len() < len + PADDING {
        return Err(SegmentError::NoRoom { buffer: buffer.len(), len });
    }
    if header.gso_type & !GSO_ECN == GSO_NONE {
        if header.flags & NEEDS_CSUM != 0 {
            complete_checksum(header, &mut buffer[..len])?;
        }
        hand_on(buffer, 0, len, mtu, &mut each);
        return Ok(());
    }

    let template = Template::new(header, &buffer[..len])?;
    let mss = usize::from(header.gso_size);
    let mut payload = template.len;
    let mut index = 0;
    loop {
        let end = (payload + mss).min(len);
        let start = payload - template.len;
        template.stamp(&mut buffer[start..end], index, payload - template.len, end == len);
        hand_on(buffer, start, end, mtu, &mut each);
        if end == len {
            return Ok(());
        }
        payload = end;
        index = index.wrapping_add(1);
    }
}

/// The headers of a super-packet, from which those of its segments are made.
struct Template {
    /// As read, with the checksum of the transport header set to zero.
    header: [u8; MAX_HEADER],
    /// Bytes of `header` in use.
    len: usize,
    /// Where in them the transport header begins.
    transport: usize,
    ipv4: bool,
    tcp: bool,
    /// The pseudo-header but for the length.
    pseudo: Sum,
}

impl Template {
    fn new(vnet: VnetHeader, packet: &[u8]) -> Result<Self, SegmentError> {
        let len = packet.len();
        let kind = vnet.gso_type & !GSO_ECN;
        let (tcp, checksum, shortest) = match kind {
            GSO_TCPV4 | GSO_TCPV6 => (true, TCP_CHECKSUM, 20),
            GSO_UDP_L4 => (false, UDP_CHECKSUM, 8),
            _ => return Err(SegmentError::UnknownKind(vnet.gso_type)),
        };
        if vnet.gso_size == 0 {
            return Err(SegmentError::NoSegmentSize);
        }
        if vnet.flags & NEEDS_CSUM == 0 {
            return Err(SegmentError::NoChecksum);
        }
        let (transport, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
        if offset != checksum || transport + shortest > len {
            return Err(SegmentError::Checksum { start: transport, offset, len });
        }
        let ipv4 = packet[0] >> 4 == 4;
        let fits = match kind {
            GSO_TCPV4 => ipv4,
            GSO_TCPV6 => packet[0] >> 4 == 6,
            _ => true,
        };
        if !fits || !precedes(packet, transport, if tcp { TCP } else { UDP }) {
            return Err(SegmentError::Mismatch(vnet.gso_type));
        }
        // `hdr_len` is only a hint: of forwarded packets it is the length of what the kernel happens to have in one
        // piece.
        let data_offset = if tcp { usize::from(packet[transport + 12] >> 4) * 4 } else { shortest };
        let end = transport + data_offset;
        if data_offset < shortest || end > len || end > MAX_HEADER {
            return Err(SegmentError::Header { header: end, len });
        }

        // What is in the field is the kernel's sum over the pseudo-header with the length of the whole. The addresses
        // of the IP header would not do: with a routing header the last of its addresses counts (RFC 8200, 8.1).
        let partial = read_u16(packet, transport + checksum);
        let pseudo = Sum::default().value(partial).without((len - transport) as u16);
        let mut header = [0; MAX_HEADER];
        header[..end].copy_from_slice(&packet[..end]);
        write_u16(&mut header, transport + checksum, 0);
        Ok(Self { header, len: end, transport, ipv4, tcp, pseudo })
    }

    /// Writes the headers of the segment that `segment` is to become, whose payload is in place.
    ///
    /// `offset` counts the payload bytes before this segment's.
    fn stamp(&self, segment: &mut [u8], index: u16, offset: usize, last: bool) {
        segment[..self.len].copy_from_slice(&self.header[..self.len]);
        let len = segment.len();
        if self.ipv4 {
            write_u16(segment, 2, len as u16);
            write_u16(segment, 4, read_u16(segment, 4).wrapping_add(index));
            refresh_ipv4_checksum(&mut segment[..self.transport]);
        } else {
            write_u16(segment, 4, (len - IPV6_HEADER) as u16);
        }

        let transport = &mut segment[self.transport..];
        let length = transport.len() as u16;
        let checksum = if self.tcp {
            let sequence = read_u32(transport, 4).wrapping_add(offset as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            if index != 0 {
                transport[13] &= !CWR;
            }
            if !last {
                transport[13] &= !(FIN | PSH);
            }
            TCP_CHECKSUM
        } else {
            write_u16(transport, 4, length);
            UDP_CHECKSUM
        };
        let sum = self.pseudo.value(length).bytes(transport);
        let sum = if self.tcp { sum.complement() } else { sum.complement_nonzero() };
        transport[checksum..checksum + 2].copy_from_slice(&sum);
    }
}

/// Whether a whole IP header ends at `transport` and is followed, as far as it says itself, by `protocol`.
fn precedes(packet: &[u8], transport: usize, protocol: u8) -> bool {
    match packet[0] >> 4 {
        4 => {
            // Nor a fragment, all but the upper two bits being zero: it would have no transport header of its own.
            transport >= IPV4_HEADER
                && usize::from(packet[0] & 0x0f) * 4 == transport
                && packet[9] == protocol
                && read_u16(packet, 6) << 2 == 0
        }
        // After extension headers, which are not walked, the kernel's word for it has to do.
        6 => transport > IPV6_HEADER || (transport == IPV6_HEADER && packet[6] == protocol),
        _ => false,
    }
}

/// As `skb_checksum_help` (`net/core/dev.c`) does.
fn complete_checksum(header: VnetHeader, packet: &mut [u8]) -> Result<(), SegmentError> {
    let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
    let at = start + offset;
    if at + 2 > packet.len() {
        return Err(SegmentError::Checksum { start, offset, len: packet.len() });
    }
    let checksum = Sum::default().bytes(&packet[start..]).complement_nonzero();
    packet[at..at + 2].copy_from_slice(&checksum);
    Ok(())
}

/// Hands `buffer[start..end]` on with padding, for the time of the call, over what follows.
fn hand_on(buffer: &mut [u8], start: usize, end: usize, mtu: usize, each: &mut impl FnMut(&[u8])) {
    let padding = padding(end - start, mtu);
    // All 16 bytes, whatever the padding: of a constant length the compiler makes one load and one store.
    let mut saved = [0; PADDING];
    saved.copy_from_slice(&buffer[end..end + PADDING]);
    buffer[end..end + padding].fill(0);
    each(&buffer[start..end + padding]);
    buffer[end..end + PADDING].copy_from_slice(&saved);
}

/// As `calculate_skb_padding` (`drivers/net/wireguard/send.c`) does.
pub fn padding(len: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return len.next_multiple_of(PADDING) - len;
    }
    let last_unit = if len > mtu { len % mtu } else { len };
    last_unit.next_multiple_of(PADDING).min(mtu) - last_unit
}

#[cfg(test)]
mod tests;
