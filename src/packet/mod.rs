//! IP packets as bytes: views, tuples, checksums, congestion marks, segmentation, coalescing and the virtio-net header. Pure.
//!
//! The way of a super-packet through here, out of the host: the TUN device delivers a [`VnetHeader`] and up to 64 KiB
//! of one flow, [`segment`](segment::segment) hands on its MTU-sized packets one by one, in place. Into the host:
//! decrypted packets are pushed into a [`Coalescer`], which gathers those of one flow into one write of a
//! super-packet. Neither allocates once warm, and neither trusts what it reads.

pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod ip;
pub mod segment;
pub mod tuple;
pub mod virtio;

#[cfg(test)]
pub(crate) mod testing;

pub use coalesce::{Coalescer, Offload};
pub use ip::{Ip, destination, source};
pub use segment::{SegmentError, segment};
pub use virtio::VnetHeader;

/// What fits the 16-bit length field of IPv4; nothing longer is handled.
pub const MAX_PACKET: usize = 65_535;

/// IP protocol number of TCP.
const TCP: u8 = 6;
/// IP protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// Where the checksum lies in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Where the checksum lies in a UDP header.
const UDP_CHECKSUM: usize = 6;
const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;

/// The big-endian 16 bits at `offset`; the caller has checked the length.
#[inline]
fn read_u16(bytes: &[u8], offset: usize) -> u16 {
    let mut value = [0; 2];
    value.copy_from_slice(&bytes[offset..offset + 2]);
    u16::from_be_bytes(value)
}

/// The big-endian 32 bits at `offset`; the caller has checked the length.
#[inline]
fn read_u32(bytes: &[u8], offset: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_be_bytes(value)
}

/// Writes 16 bits, big-endian.
#[inline]
fn write_u16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// Recomputes the IPv4 header checksum of `header`, which is the IPv4 header and no more.
fn refresh_ipv4_checksum(header: &mut [u8]) {
    write_u16(header, 10, 0);
    let checksum = checksum::Sum::default().bytes(header).complement();
    header[10..12].copy_from_slice(&checksum);
}
