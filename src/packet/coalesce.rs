//! Gathers decrypted packets into super-packets for the TUN device, as the kernel's GRO would after receiving them.
//!
//! [`push`](Coalescer::push) finds the group of the packet's flow that is still open and adds the packet to it when
//! the rules of `tcp_gro_receive` or `udp_gro_receive_segment` (`net/ipv4/{tcp,udp}_offload.c`) allow, else it closes
//! that group and begins another. [`flush`](Coalescer::flush) writes the groups in the order of their first packets,
//! so that no packet overtakes another of its flow. Flows may be interleaved.
//!
//! Nothing is copied and no payload is summed: a group's first header is patched where it lies, the other payloads
//! are gathered by the write, and the virtio header tells the kernel that the checksum is partial. A transport
//! checksum that was already wrong when the sender sealed the packet may thereby be put right, as in the kernel,
//! whose own tunnel marks every packet that it opened as `CHECKSUM_UNNECESSARY` (`drivers/net/wireguard/receive.c`).

mod flow;

use std::io::IoSlice;
use std::ops::Range;

use self::flow::{Addresses, CWR, FIN, Kind, PSH, Segment};
use super::checksum::Sum;
use super::virtio::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VnetHeader};
use super::{IPV4_HEADER, IPV6_HEADER, MAX_PACKET, TCP, TCP_CHECKSUM, UDP_CHECKSUM, refresh_ipv4_checksum, write_u16};

/// Segments of one write. For UDP the kernel stops at 64 too (`UDP_GRO_CNT_MAX`). TCP has no limit of its own, but
/// segments of the smallest MTU of IPv6 reach 64 KiB with 54: more would only help flows of tiny segments, at the
/// price of longer arrays.
pub const MAX_SEGMENTS: usize = 64;

/// The virtio header, the first packet and the payloads of the others; far from the kernel's `UIO_MAXIOV` of 1024.
const MAX_SLICES: usize = MAX_SEGMENTS + 1;

/// Flows followed at a time, as many as in one bucket of the kernel (`MAX_GRO_SKBS`). Of more the one begun first is
/// closed.
const MAX_OPEN: usize = 8;

/// What the TUN device takes as super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// TCP segments are gathered.
    pub tcp: bool,
    /// UDP datagrams are gathered (Linux 6.2 and later).
    pub udp: bool,
}

/// See the module's documentation. Push the packets of one batch, then flush, with the same arena.
#[derive(Debug, Default)]
pub struct Coalescer {
    offload: Offload,
    /// What is to be written, in lists by group: for the first packet of a group all of it, for the others the payload.
    pieces: Vec<Piece>,
    groups: Vec<Group>,
    /// Indices of groups that may still grow, oldest first, at most one of each flow.
    open: Vec<usize>,
}

#[derive(Debug)]
struct Piece {
    range: Range<usize>,
    /// The group's next piece.
    next: Option<usize>,
}

/// What becomes one write.
#[derive(Debug)]
struct Group {
    first_piece: usize,
    last_piece: usize,
    vnet: [u8; VnetHeader::LEN],
    /// None for a packet that nothing can join.
    growth: Option<Growth>,
}

/// How far a group has grown.
#[derive(Debug)]
struct Growth {
    first: Segment,
    count: usize,
    /// Bytes of the super-packet.
    len: usize,
    /// The sequence number that continues it.
    next_sequence: u32,
    /// PSH and FIN of its last segment.
    last_flags: u8,
    /// Whether all have one identification, which the first two decide.
    fixed_id: bool,
}

impl Coalescer {
    /// Without offloads every packet is written alone.
    pub fn new(offload: Offload) -> Self {
        Self { offload, open: Vec::with_capacity(MAX_OPEN), ..Self::default() }
    }

    /// For packets pushed from now on.
    pub fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
        self.open.clear();
    }

    /// Adds `arena[range]`, which is one whole IP packet without padding. What is empty or outside of the arena is
    /// ignored.
    pub fn push(&mut self, arena: &[u8], range: Range<usize>) {
        let Some(packet) = arena.get(range.clone()).filter(|packet| !packet.is_empty()) else { return };
        if self.offload == Offload::default() {
            self.begin(range, None);
            return;
        }
        match Kind::of(packet) {
            Kind::Other => self.begin(range, None),
            Kind::Between(addresses) => {
                self.close_between(&addresses);
                self.begin(range, None);
            }
            Kind::Segment(segment) => self.push_segment(arena, range, segment),
        }
    }

    /// Calls `write` with the slices of each write in turn, and is empty again. The first slice is the virtio header.
    /// Headers in `arena` are patched, so that its packets are no longer as they were pushed.
    pub fn flush(&mut self, arena: &mut [u8], mut write: impl FnMut(&[IoSlice<'_>])) {
        for group in &mut self.groups {
            let Some(growth) = group.growth.as_ref().filter(|growth| growth.count > 1) else { continue };
            if let Some(packet) = arena.get_mut(self.pieces[group.first_piece].range.clone()) {
                group.vnet = growth.patch(packet).to_bytes();
            }
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        for group in &self.groups {
            slices[0] = IoSlice::new(&group.vnet);
            let mut count = 1;
            let mut next = Some(group.first_piece);
            while let Some(piece) = next.map(|index| &self.pieces[index]) {
                slices[count] = IoSlice::new(arena.get(piece.range.clone()).unwrap_or_default());
                count += 1;
                next = piece.next;
            }
            write(&slices[..count]);
        }
        self.pieces.clear();
        self.groups.clear();
        self.open.clear();
    }

    /// Whether a flush would write nothing.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn push_segment(&mut self, arena: &[u8], range: Range<usize>, segment: Segment) {
        let wanted = if segment.flow.protocol == TCP { self.offload.tcp } else { self.offload.udp };
        if !wanted {
            self.begin(range, None);
            return;
        }
        let position = self.open.iter().position(|&group| self.groups[group].is_of(&segment));
        if let Some(position) = position {
            let index = self.open[position];
            let group = &mut self.groups[index];
            let first = self.pieces[group.first_piece].range.start;
            if let Some(growth) = group.growth.as_mut().filter(|growth| growth.admits(arena, first, &range, &segment)) {
                if growth.add(&segment) {
                    self.open.remove(position);
                }
                let last = std::mem::replace(&mut group.last_piece, self.pieces.len());
                self.pieces[last].next = Some(self.pieces.len());
                self.pieces.push(Piece { range: range.start + segment.header..range.end, next: None });
                return;
            }
            self.open.remove(position);
        }
        // `tcp_gro_receive`, out_check_final: nothing follows these.
        let open = segment.mergeable && segment.flags & (FIN | PSH) == 0;
        self.begin(range, open.then_some(segment));
    }

    /// Begins a group, which is open when it comes with the segment.
    fn begin(&mut self, range: Range<usize>, first: Option<Segment>) {
        if first.is_some() {
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(self.groups.len());
        }
        let piece = self.pieces.len();
        let growth = first.map(|first| Growth::new(first, range.len()));
        self.groups.push(Group { first_piece: piece, last_piece: piece, vnet: [0; VnetHeader::LEN], growth });
        self.pieces.push(Piece { range, next: None });
    }

    fn close_between(&mut self, addresses: &Addresses) {
        let groups = &self.groups;
        self.open.retain(|&group| {
            groups[group].growth.as_ref().is_none_or(|growth| growth.first.flow.addresses != *addresses)
        });
    }
}

impl Group {
    fn is_of(&self, segment: &Segment) -> bool {
        self.growth.as_ref().is_some_and(|growth| growth.first.flow == segment.flow)
    }
}

impl Growth {
    fn new(first: Segment, len: usize) -> Self {
        let next_sequence = first.sequence.wrapping_add(first.payload as u32);
        Self { count: 1, len, next_sequence, last_flags: 0, fixed_id: false, first }
    }

    /// Whether `next`, which is of this flow, continues it. `start` is where the first packet begins in the arena.
    fn admits(&self, arena: &[u8], start: usize, range: &Range<usize>, next: &Segment) -> bool {
        let first = &self.first;
        next.mergeable
            && next.network == first.network
            && next.payload <= first.payload
            && self.len + next.payload <= MAX_PACKET
            && self.admits_id(next)
            && (first.flow.protocol != TCP
                || (next.flags & CWR == 0
                    && next.sequence == self.next_sequence
                    && next.acknowledgment == first.acknowledgment
                    && next.word == first.word
                    && options(arena, start, first) == options(arena, range.start, first)))
    }

    /// `inet_gro_flush`: identifications count up, or all are the same and none may be fragmented (RFC 6864). The
    /// virtio header cannot say which; should the kernel split such a super-packet again, the identifications will
    /// count up.
    fn admits_id(&self, next: &Segment) -> bool {
        if !self.first.flow.ipv4 {
            return true;
        }
        let distance = usize::from(next.id.wrapping_sub(self.first.id));
        let fixed = if self.count == 1 { next.dont_fragment && distance == 0 } else { self.fixed_id };
        distance == if fixed { 0 } else { self.count }
    }

    /// Counts `next` in; true when nothing can follow it.
    fn add(&mut self, next: &Segment) -> bool {
        if self.count == 1 {
            self.fixed_id = next.id == self.first.id;
        }
        self.count += 1;
        self.len += next.payload;
        self.next_sequence = self.next_sequence.wrapping_add(next.payload as u32);
        self.last_flags = next.flags & (FIN | PSH);
        next.payload < self.first.payload || self.last_flags != 0 || self.count == MAX_SEGMENTS
    }

    /// Makes the first packet's header that of the super-packet, and the virtio header for it: `tcp4_gro_complete`,
    /// `udp_gro_complete`, `inet_gro_complete` and the same for IPv6.
    fn patch(&self, packet: &mut [u8]) -> VnetHeader {
        let first = &self.first;
        let (transport, addresses) = if first.flow.ipv4 {
            write_u16(packet, 2, self.len as u16);
            refresh_ipv4_checksum(&mut packet[..IPV4_HEADER]);
            (IPV4_HEADER, 12..20)
        } else {
            write_u16(packet, 4, (self.len - IPV6_HEADER) as u16);
            (IPV6_HEADER, 8..40)
        };
        let length = (self.len - transport) as u16;
        let partial = Sum::default().pseudo_header(&packet[addresses], first.flow.protocol, length).partial();
        let (gso_type, csum_offset) = if first.flow.protocol == TCP {
            packet[transport + 13] |= self.last_flags;
            let ecn = if first.flags & CWR == 0 { 0 } else { GSO_ECN };
            (ecn | if first.flow.ipv4 { GSO_TCPV4 } else { GSO_TCPV6 }, TCP_CHECKSUM)
        } else {
            write_u16(packet, transport + 4, length);
            (GSO_UDP_L4, UDP_CHECKSUM)
        };
        packet[transport + csum_offset..transport + csum_offset + 2].copy_from_slice(&partial);
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type,
            hdr_len: first.header as u16,
            gso_size: first.payload as u16,
            csum_start: transport as u16,
            csum_offset: csum_offset as u16,
        }
    }
}

/// The TCP options of a packet with the headers of `segment`.
fn options<'a>(arena: &'a [u8], start: usize, segment: &Segment) -> &'a [u8] {
    let fixed = if segment.flow.ipv4 { IPV4_HEADER } else { IPV6_HEADER } + 20;
    arena.get(start + fixed..start + segment.header).unwrap_or_default()
}

#[cfg(test)]
mod tests;
