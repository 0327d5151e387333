//! By which peer the answers to what was delivered go back.
//!
//! A peer that publishes a port hands on what strangers send, under their own addresses. The answers must leave by that
//! peer again, whatever exit the container's other packets leave by. So [`Device::open`](super::Device::open) notes
//! each such exchange, and [`Device::seal`](super::Device::seal) asks here before it asks for the exit.
//!
//! The table has a fixed size and no locks, and forgets: every packet of the exchange that comes in repairs its entry.
//! A set holds two exchanges. One enters by the second place and has the first only once another of its packets has come, so
//! that a flood of first packets, as from forged addresses, pushes out none that are under way. Which exchanges meet in one
//! set is random, so that nobody can aim.
//!
//! An entry is one word: the upper 40 bits of the hash, which the lower ones of the set complete, and the peer's index.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::packet::tuple::{Mark, Tuple, first_fragment, is_syn};

/// 128 KiB, of which the kernel gives what is written to.
const SETS: usize = 1 << 13;
/// The bits of an entry that are the peer's index.
const PEER: u64 = (1 << 24) - 1;

/// Exchanges that others began, by the tuple of the answers.
pub(super) struct Flows {
    random: RandomState,
    sets: Box<[[AtomicU64; 2]]>,
    /// There is an entry: most hosts are delivered nothing, and need not look.
    used: AtomicBool,
}

impl Default for Flows {
    fn default() -> Self {
        let sets = (0..SETS).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect();
        Self { random: RandomState::new(), sets, used: AtomicBool::new(false) }
    }
}

impl Flows {
    /// The peer by which this packet goes back, if it answers what one delivered.
    pub(super) fn answered_by(&self, packet: &[u8]) -> Option<u32> {
        // Who asks for a connection answers nothing, though it be from a port whose last exchange is still remembered.
        if !self.used.load(Ordering::Relaxed) || is_syn(packet) {
            return None;
        }
        // An error is about what came in.
        let tuple = Tuple::of(packet).or_else(|| Tuple::reported(packet).map(Tuple::answer))?;
        let peer = self.find(&tuple)?;
        if let Some(id) = first_fragment(packet) {
            // The others of this packet have no ports.
            self.note(&Tuple { mark: Mark::Fragment(id), ..tuple }, peer);
        }
        Some(peer)
    }

    /// Answers to what came in under this tuple go back by this peer.
    pub(super) fn delivered(&self, tuple: Tuple, peer: u32) {
        // A later fragment tells no ports; the first one has said it.
        if matches!(tuple.mark, Mark::Ports(..)) {
            self.note(&tuple.answer(), peer);
        }
    }

    /// The same, but only where it was said otherwise before.
    pub(super) fn corrected(&self, tuple: Tuple, peer: u32) {
        if self.used.load(Ordering::Relaxed) && self.find(&tuple.answer()).is_some_and(|known| known != peer) {
            self.note(&tuple.answer(), peer);
        }
    }

    fn find(&self, tuple: &Tuple) -> Option<u32> {
        let (set, hash) = self.set(tuple);
        let entry = set.iter().map(|place| place.load(Ordering::Relaxed)).find(|entry| (entry ^ hash) & !PEER == 0)?;
        Some((entry & PEER) as u32)
    }

    fn note(&self, tuple: &Tuple, peer: u32) {
        let ([kept, new], hash) = self.set(tuple);
        let entry = hash & !PEER | u64::from(peer);
        let (first, second) = (kept.load(Ordering::Relaxed), new.load(Ordering::Relaxed));
        // Another thread may write between; each word is whole, and what is lost comes again.
        if (first ^ hash) & !PEER == 0 {
            if first != entry {
                kept.store(entry, Ordering::Relaxed);
            }
        } else {
            if (second ^ hash) & !PEER == 0 {
                new.store(first, Ordering::Relaxed);
                kept.store(entry, Ordering::Relaxed);
            } else {
                new.store(entry, Ordering::Relaxed);
            }
            if !self.used.load(Ordering::Relaxed) {
                self.used.store(true, Ordering::Relaxed);
            }
        }
    }

    fn set(&self, tuple: &Tuple) -> (&[AtomicU64; 2], u64) {
        let hash = self.random.hash_one(tuple);
        (&self.sets[hash as usize % SETS], hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::Sample;

    /// A packet of a stranger at this port, and the answer.
    fn exchange(port: u16) -> (Tuple, Vec<u8>) {
        let answer = Sample { source_port: 443, destination_port: port, ..Sample::udp(vec![1; 8]) }.build();
        (Tuple::of(&answer).unwrap().answer(), answer)
    }

    #[test]
    fn answers_go_back_by_who_delivered_last() {
        let flows = Flows::default();
        let ((one, to_one), (_, to_other)) = (exchange(1000), exchange(1001));
        assert_eq!(flows.answered_by(&to_one), None);
        flows.delivered(one, 7);
        assert_eq!((flows.answered_by(&to_one), flows.answered_by(&to_other)), (Some(7), None));
        flows.delivered(one, 8);
        assert_eq!(flows.answered_by(&to_one), Some(8));
    }

    #[test]
    fn a_correction_adds_nothing() {
        let flows = Flows::default();
        let ((one, to_one), (other, to_other)) = (exchange(1000), exchange(1001));
        flows.delivered(one, 7);
        flows.corrected(one, 9);
        flows.corrected(other, 9);
        assert_eq!((flows.answered_by(&to_one), flows.answered_by(&to_other)), (Some(9), None));
    }

    #[test]
    fn later_fragments_follow_the_first() {
        let flows = Flows::default();
        let fragment = |id, port, offset| {
            let sample = Sample { id, source_port: 443, destination_port: port, ..Sample::udp(vec![1; 8]) };
            Sample { more_fragments: offset == 0, fragment_offset: offset, ..sample }.build()
        };
        flows.delivered(exchange(1000).0, 7);
        assert_eq!(flows.answered_by(&fragment(1, 1000, 2)), None, "before the first");
        assert_eq!(flows.answered_by(&fragment(1, 1000, 0)), Some(7));
        assert_eq!(flows.answered_by(&fragment(1, 1000, 2)), Some(7));
        // What the container sends to the same host of its own accord leaves by its exit, in one piece or more.
        assert_eq!(flows.answered_by(&fragment(2, 1001, 0)), None);
        assert_eq!(flows.answered_by(&fragment(2, 1001, 2)), None);
        // An incoming one says nothing.
        flows.delivered(Tuple::of(&fragment(3, 1000, 2)).unwrap().answer(), 7);
        assert_eq!(flows.answered_by(&fragment(3, 1000, 2)), None);
    }

    #[test]
    fn a_flood_of_first_packets_pushes_out_nothing_that_is_under_way() {
        let flows = Flows::default();
        let under_way = |port: u16| exchange(port);
        // Few enough that hardly two of them meet.
        for port in 1..=64 {
            for _ in 0..2 {
                flows.delivered(under_way(port).0, 7);
            }
        }
        let tuple = under_way(1).0;
        for n in 0..200_000u32 {
            let stranger = Tuple { src: std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into(), ..tuple };
            flows.delivered(stranger, 8);
        }
        let left = (1..=64).filter(|&port| flows.answered_by(&under_way(port).1) == Some(7)).count();
        assert!(left >= 60, "{left} of 64 are left");
        // And the flood's last are known, the first forgotten, and come back with their next packet.
        let stranger = |n: u32| Tuple { src: std::net::Ipv4Addr::from_bits(0x0b00_0000 + n).into(), ..tuple };
        assert_eq!(flows.find(&stranger(199_999).answer()), Some(8));
        let forgotten = (0..1000).find(|&n| flows.find(&stranger(n).answer()).is_none()).expect("some are");
        flows.delivered(stranger(forgotten), 8);
        assert_eq!(flows.find(&stranger(forgotten).answer()), Some(8));
    }
}
