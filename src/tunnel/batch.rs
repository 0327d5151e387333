//! The two buffers between the device and the loop: sealed datagrams on their way out, opened packets on their way in.
//!
//! Both are allocated once and reused; neither grows on the forwarding path.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::packet::ip;

/// Where a peer is, and from which of our addresses it is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The peer's UDP address.
    pub remote: SocketAddr,
    /// The address that its last authenticated packet came to. A host with several addresses must answer from that
    /// one, or the peer's NAT drops the answer.
    pub local: Option<IpAddr>,
}

/// Sealed datagrams in the order of sealing, back to back in one arena.
pub struct Outbox {
    arena: Box<[u8]>,
    used: usize,
    sealed: Vec<Sealed>,
    /// Whether datagrams of more than one peer stand in `sealed`.
    mixed: bool,
    /// How many full runs make a batch.
    runs: usize,
}

#[derive(Debug, Clone, Copy)]
struct Sealed {
    start: usize,
    len: usize,
    /// The peer's index.
    peer: u32,
    path: Path,
    traffic_class: u8,
}

/// Datagrams that one `sendmsg` with `UDP_SEGMENT` can carry: of one peer, in the order of sealing.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where to.
    pub path: Path,
    /// TOS or traffic class of the outer header.
    pub traffic_class: u8,
    /// The datagrams; those of one slice are back to back.
    pub slices: &'a [IoSlice<'a>],
    /// The length of each but the last of all, which may be shorter.
    pub segment: usize,
}

impl Run<'_> {
    /// One after the other.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.slices.iter().flat_map(|slice| slice.chunks(self.segment.max(1)))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slices.iter().map(|slice| slice.len().div_ceil(self.segment.max(1))).sum()
    }
}

/// `UDP_MAX_SEGMENTS` of the kernels that brought UDP_SEGMENT (include/linux/udp.h; later ones allow 128).
const MAX_SEGMENTS: usize = 64;
/// A handshake initiation, which boringtun may write instead of a short packet.
const LONGEST_MESSAGE: usize = 148;
/// The largest UDP payload over IPv4 (RFC 768, RFC 791).
const MAX_UDP_PAYLOAD: usize = 65_507;

impl Outbox {
    /// Bytes of the arena. One super-packet of the smallest segments (48 bytes, `TCP_MIN_MSS`) needs a quarter.
    pub const CAPACITY: usize = 1 << 20;
    /// What is free after a flush that [`Outbox::is_full`] asked for: enough for any one super-packet.
    const RESERVE: usize = 1 << 19;

    /// An empty one, for batches of four runs: more gain nothing and only add latency. A super-packet of the kernel's is a
    /// little more than one run, so that of each alone two segments would be left over and cost a send of their own.
    pub fn new() -> Self {
        Self::of_runs(4)
    }

    /// An empty one, for batches of so many runs, 1 to 7 as the arena has room for.
    pub fn of_runs(runs: usize) -> Self {
        let (arena, sealed) = (vec![0; Self::CAPACITY].into(), Vec::with_capacity(4096));
        Self { arena, used: 0, sealed, mixed: false, runs }
    }

    /// Whether it is time to send: a full batch, or no room for another super-packet.
    pub fn is_full(&self) -> bool {
        self.used >= self.runs * MAX_UDP_PAYLOAD || self.sealed.len() >= self.runs * MAX_SEGMENTS
    }

    /// Whether any one super-packet still fits.
    pub fn has_room(&self) -> bool {
        self.used + Self::RESERVE <= Self::CAPACITY
    }

    /// Whether a packet of this length can be sealed, or a handshake message be written in its place.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.used + len + LONGEST_MESSAGE <= Self::CAPACITY
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.sealed.is_empty()
    }

    /// The number of datagrams.
    pub fn len(&self) -> usize {
        self.sealed.len()
    }

    /// The free part of the arena, to seal into.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Keeps the first `len` bytes of what was [`Outbox::spare`] as one datagram to the peer of this index.
    pub(super) fn commit(&mut self, len: usize, peer: u32, path: Path, traffic_class: u8) {
        self.mixed |= self.sealed.last().is_some_and(|last| last.peer != peer);
        self.sealed.push(Sealed { start: self.used, len, peer, path, traffic_class });
        self.used += len;
    }

    /// Hands out the datagrams in as few runs as `UDP_SEGMENT` allows, and is empty again. The order of one peer's
    /// datagrams is kept, that between peers is not: their packets come interleaved, and would make a run each.
    pub fn flush(&mut self, mut send: impl FnMut(&Run<'_>)) {
        if self.mixed {
            self.sealed.sort_unstable_by_key(|sealed| (sealed.peer, sealed.start));
        }
        let mut rest = &self.sealed[..];
        while let Some(first) = rest.first() {
            let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS];
            let (mut count, mut piece, mut bytes, mut len) = (0, first.start..first.start, 0, 0);
            for sealed in rest {
                if !sealed.continues(first)
                    || len == MAX_SEGMENTS
                    || bytes + sealed.len > MAX_UDP_PAYLOAD.max(first.len)
                {
                    break;
                }
                if sealed.start != piece.end {
                    slices[count] = IoSlice::new(&self.arena[piece]);
                    count += 1;
                    piece = sealed.start..sealed.start;
                }
                piece.end += sealed.len;
                bytes += sealed.len;
                len += 1;
                if sealed.len < first.len {
                    break;
                }
            }
            slices[count] = IoSlice::new(&self.arena[piece]);
            let (path, traffic_class, segment) = (first.path, first.traffic_class, first.len);
            send(&Run { path, traffic_class, slices: &slices[..=count], segment });
            rest = &rest[len..];
        }
        self.clear();
    }

    /// Forgets all datagrams.
    pub fn clear(&mut self) {
        self.used = 0;
        self.sealed.clear();
        self.mixed = false;
    }
}

impl Sealed {
    /// Whether this may be another segment of a run that begins with `first`.
    fn continues(&self, first: &Self) -> bool {
        self.peer == first.peer
            && self.path == first.path
            && self.traffic_class == first.traffic_class
            && self.len <= first.len
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Datagrams of one sender, as one `recvmsg` with `UDP_GRO` delivers them.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams<'a> {
    /// The datagrams, back to back.
    pub bytes: &'a [u8],
    /// The length of each but the last, which may be shorter.
    pub segment: usize,
    /// Where they came from, and to.
    pub path: Path,
    /// TOS or traffic class of their outer headers.
    pub traffic_class: u8,
}

impl<'a> Datagrams<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.segment.max(1))
    }
}

/// Opened IP packets in the order of opening, in one arena.
pub struct Inbox {
    /// The packets' bytes.
    pub arena: Box<[u8]>,
    used: usize,
    /// How many of the packets are UDP.
    udp: usize,
    /// Where each packet lies in the arena, cut to its IP length.
    pub packets: Vec<Range<usize>>,
}

impl Inbox {
    /// What one `recvmsg` can deliver at most: a UDP length is 16 bits.
    const RESERVE: usize = 1 << 16;
    /// Bytes of the arena. What several reads deliver is gathered into fewer, larger writes.
    const CAPACITY: usize = 4 * Self::RESERVE;
    /// UDP packets past which no more is gathered. The socket that they go to holds 212,992 bytes by default
    /// (`net.core.rmem_default`), by the kernel's count no more than 92 packets of 1200 bytes, and loses what comes before
    /// its reader has had a turn.
    const BURST: usize = 32;

    /// An empty one.
    pub fn new() -> Self {
        Self { arena: vec![0; Self::CAPACITY].into(), used: 0, udp: 0, packets: Vec::with_capacity(2048) }
    }

    /// Whether it is time to write: no room for all that one `recvmsg` can deliver, or enough for a UDP socket.
    pub fn is_full(&self) -> bool {
        self.used + Self::RESERVE > Self::CAPACITY || self.udp >= Self::BURST
    }

    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    pub(super) fn commit(&mut self, len: usize) {
        self.udp += usize::from(ip::is_udp(&self.arena[self.used..self.used + len]));
        self.packets.push(self.used..self.used + len);
        self.used += len;
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.used = 0;
        self.udp = 0;
        self.packets.clear();
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(port: u16) -> Path {
        Path { remote: ([192, 0, 2, 1], port).into(), local: None }
    }

    /// Port, bytes and segment of each run of datagrams with these lengths and ports, one peer for each port.
    fn runs(lens: &[(usize, u16)]) -> Vec<(u16, usize, usize)> {
        let mut outbox = Outbox::new();
        for &(len, port) in lens {
            outbox.commit(len, port.into(), path(port), 0);
        }
        let mut runs = Vec::new();
        outbox.flush(|run| {
            runs.push((run.path.remote.port(), run.datagrams().map(<[u8]>::len).sum(), run.segment));
        });
        assert!(outbox.is_empty());
        runs
    }

    #[test]
    fn equal_lengths_to_one_peer_are_one_run_and_a_shorter_one_ends_it() {
        assert_eq!(runs(&[(100, 1), (100, 1), (60, 1), (100, 1)]), [(1, 260, 100), (1, 100, 100)]);
    }

    #[test]
    fn a_longer_datagram_starts_a_run() {
        assert_eq!(runs(&[(60, 1), (100, 1)]), [(1, 60, 60), (1, 100, 100)]);
    }

    #[test]
    fn interleaved_peers_have_a_run_each_in_which_their_order_is_kept() {
        assert_eq!(runs(&[(60, 1), (60, 2), (60, 1), (50, 2)]), [(1, 120, 60), (2, 110, 60)]);
        let mut outbox = Outbox::new();
        for n in 0..100u8 {
            outbox.spare()[..4].fill(n);
            outbox.commit(4, u32::from(n % 3), path(n.into()), 0);
        }
        let mut seen = [None; 3];
        outbox.flush(|run| {
            for datagram in run.datagrams() {
                assert_eq!((datagram.len(), u16::from(datagram[0])), (4, run.path.remote.port()));
                let last = seen[usize::from(datagram[0] % 3)].replace(datagram[0]);
                assert!(last.is_none_or(|last| last < datagram[0]));
            }
        });
        assert_eq!(seen, [Some(99), Some(97), Some(98)]);
    }

    #[test]
    fn another_traffic_class_or_address_starts_a_run() {
        let mut outbox = Outbox::new();
        for (traffic_class, port) in [(2, 1), (2, 1), (3, 1), (2, 1), (2, 7)] {
            outbox.commit(100, 1, path(port), traffic_class);
        }
        let mut runs = Vec::new();
        outbox.flush(|run| runs.push((run.traffic_class, run.count())));
        assert_eq!(runs, [(2, 2), (3, 1), (2, 1), (2, 1)]);
    }

    #[test]
    fn runs_stay_within_what_one_send_takes() {
        assert_eq!(runs(&[(100, 1); 65]), [(1, 6400, 100), (1, 100, 100)]);
        assert_eq!(runs(&[(1452, 1); 46]), [(1, 45 * 1452, 1452), (1, 1452, 1452)]);
    }
}
