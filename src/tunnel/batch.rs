//! The two buffers between the device and the loop: sealed datagrams on their way out, opened packets on their way in.
//!
//! Both are allocated once and reused; neither grows on the forwarding path.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

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
}

#[derive(Debug, Clone, Copy)]
struct Sealed {
    len: usize,
    path: Path,
    traffic_class: u8,
}

/// Consecutive datagrams that one `sendmsg` with `UDP_SEGMENT` can carry.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where to.
    pub path: Path,
    /// TOS or traffic class of the outer header.
    pub traffic_class: u8,
    /// The datagrams, back to back.
    pub bytes: &'a [u8],
    /// The length of each but the last, which may be shorter.
    pub segment: usize,
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
    /// Past this a batch gains nothing and only adds latency.
    const BATCH: usize = 60_000;

    /// An empty one.
    pub fn new() -> Self {
        Self { arena: vec![0; Self::CAPACITY].into(), used: 0, sealed: Vec::with_capacity(4096) }
    }

    /// Whether it is time to send: a full batch, or no room for another super-packet.
    pub fn is_full(&self) -> bool {
        self.used >= Self::BATCH || self.sealed.len() >= MAX_SEGMENTS
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

    /// Keeps the first `len` bytes of what was [`Outbox::spare`] as one datagram.
    pub(super) fn commit(&mut self, len: usize, path: Path, traffic_class: u8) {
        self.used += len;
        self.sealed.push(Sealed { len, path, traffic_class });
    }

    /// The datagrams, gathered into as few runs as `UDP_SEGMENT` allows: one destination, one traffic class, one length;
    /// the last may be shorter.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let mut next = 0;
        let mut start = 0;
        std::iter::from_fn(move || {
            let first = *self.sealed.get(next)?;
            let mut end = start;
            let begin = next;
            while let Some(sealed) = self.sealed.get(next) {
                let fits = sealed.path == first.path
                    && sealed.traffic_class == first.traffic_class
                    && sealed.len <= first.len
                    && next - begin < MAX_SEGMENTS
                    && end - start + sealed.len <= MAX_UDP_PAYLOAD.max(first.len);
                if !fits {
                    break;
                }
                end += sealed.len;
                next += 1;
                if sealed.len < first.len {
                    break;
                }
            }
            let (path, traffic_class) = (first.path, first.traffic_class);
            let run = Run { path, traffic_class, bytes: &self.arena[start..end], segment: first.len };
            start = end;
            Some(run)
        })
    }

    /// Forgets all datagrams.
    pub fn clear(&mut self) {
        self.used = 0;
        self.sealed.clear();
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
    /// Where each packet lies in the arena, cut to its IP length.
    pub packets: Vec<Range<usize>>,
}

impl Inbox {
    /// Room for all that one `recvmsg` can deliver (a UDP length is 16 bits).
    const CAPACITY: usize = 1 << 16;

    /// An empty one.
    pub fn new() -> Self {
        Self { arena: vec![0; Self::CAPACITY].into(), used: 0, packets: Vec::with_capacity(2048) }
    }

    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    pub(super) fn commit(&mut self, len: usize) {
        self.packets.push(self.used..self.used + len);
        self.used += len;
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.used = 0;
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

    fn runs(lens: &[(usize, u16)]) -> Vec<(u16, usize, usize)> {
        let mut outbox = Outbox::new();
        for &(len, port) in lens {
            outbox.commit(len, path(port), 0);
        }
        outbox.runs().map(|run| (run.path.remote.port(), run.bytes.len(), run.segment)).collect()
    }

    #[test]
    fn equal_lengths_to_one_peer_are_one_run_and_a_shorter_one_ends_it() {
        assert_eq!(runs(&[(100, 1), (100, 1), (60, 1), (100, 1)]), [(1, 260, 100), (1, 100, 100)]);
    }

    #[test]
    fn a_longer_datagram_or_another_peer_starts_a_run() {
        assert_eq!(runs(&[(60, 1), (100, 1)]), [(1, 60, 60), (1, 100, 100)]);
        assert_eq!(runs(&[(60, 1), (60, 2), (60, 1)]), [(1, 60, 60), (2, 60, 60), (1, 60, 60)]);
    }

    #[test]
    fn another_traffic_class_starts_a_run() {
        let mut outbox = Outbox::new();
        for traffic_class in [2, 2, 3, 2] {
            outbox.commit(100, path(1), traffic_class);
        }
        let runs: Vec<_> = outbox.runs().map(|run| (run.traffic_class, run.bytes.len())).collect();
        assert_eq!(runs, [(2, 200), (3, 100), (2, 100)]);
    }

    #[test]
    fn runs_stay_within_what_one_send_takes() {
        assert_eq!(runs(&[(100, 1); 65]), [(1, 6400, 100), (1, 100, 100)]);
        assert_eq!(runs(&[(1452, 1); 46]), [(1, 45 * 1452, 1452), (1, 1452, 1452)]);
    }
}
