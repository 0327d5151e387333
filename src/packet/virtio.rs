//! The virtio-net header that a TUN device with `IFF_VNET_HDR` puts before each packet
//! (`include/uapi/linux/virtio_net.h`).
//!
//! TUN uses the legacy form: native byte order, 10 bytes.

/// The checksum at `csum_start + csum_offset` holds the pseudo-header's sum only; the reader completes it.
pub const NEEDS_CSUM: u8 = 1;
/// One packet as it goes on the wire.
pub const GSO_NONE: u8 = 0;
/// A TCP super-packet over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// A TCP super-packet over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// Several UDP datagrams of one size, over either family.
pub const GSO_UDP_L4: u8 = 5;
/// A flag beside the TCP types: the super-packet's CWR belongs to its first segment only.
pub const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`] or nothing.
    pub flags: u8,
    /// One of the `GSO_` constants.
    pub gso_type: u8,
    /// Length of the headers; a hint only.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the sum begins, which is where the transport header does.
    pub csum_start: u16,
    /// Where the checksum lies, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes before each packet.
    pub const LEN: usize = 10;

    /// Reads what the device delivered.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        }
    }

    /// As the device wants it.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_the_kernel() {
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes[..2], [1, 0x84]);
        assert_eq!(u16::from_ne_bytes([bytes[4], bytes[5]]), 0x0304);
        assert_eq!(u16::from_ne_bytes([bytes[8], bytes[9]]), 0x0708);
        assert_eq!(VnetHeader::parse(&bytes), header);
    }
}
