//! What the workers see of a peer's express session, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwapOption, Guard};

use super::cipher::{Opener, Sealer};

/// Sessions of a peer that receive: the present one, the next, and two former ones.
const SLOTS: usize = 4;

/// One peer's.
#[derive(Default)]
pub struct Lanes {
    /// Whether there is a sealer: cheaper to ask for than the sealer itself, where packets have none.
    sends: AtomicBool,
    /// Under which data leaves; none: under WireGuard's own session.
    sealer: ArcSwapOption<Sealer>,
    /// By the lowest bits of their indices.
    openers: [ArcSwapOption<Opener>; SLOTS],
    /// Under which something came that is not opened; 0: none.
    stray: AtomicU32,
    sent: Count,
    received: Count,
}

#[derive(Default)]
struct Count {
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// Messages and their bytes, keepalives and headers included, since there is the peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Messages sealed.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Messages opened.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
}

impl Counts {
    /// What has come since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            tx_packets: self.tx_packets - before.tx_packets,
            tx_bytes: self.tx_bytes - before.tx_bytes,
            rx_packets: self.rx_packets - before.rx_packets,
            rx_bytes: self.rx_bytes - before.rx_bytes,
        }
    }
}

impl Lanes {
    /// What seals for the peer now.
    pub fn sealer(&self, now: Instant) -> Option<Guard<Option<Arc<Sealer>>>> {
        if !self.sends.load(Ordering::Relaxed) {
            return None;
        }
        let sealer = self.sealer.load();
        sealer.as_ref().is_some_and(|sealer| sealer.is_fresh(now)).then_some(sealer)
    }

    /// What opens under this index.
    pub fn opener(&self, index: u32) -> Option<Guard<Option<Arc<Opener>>>> {
        let opener = self.slot(index).load();
        opener.as_ref().is_some_and(|opener| opener.index() == index).then_some(opener)
    }

    /// Counts in a batch that was sealed.
    pub fn sent(&self, sealer: &Sealer, packets: u64, bytes: u64) {
        sealer.wear(bytes);
        self.sent.add(packets, bytes);
    }

    /// Counts in a batch that was opened.
    pub fn received(&self, packets: u64, bytes: u64) {
        self.received.add(packets, bytes);
    }

    /// Whether other keys are wanted for sending.
    pub fn is_worn(&self) -> bool {
        self.sealer.load().as_ref().is_some_and(|sealer| sealer.is_worn())
    }

    /// Something came under an index that is not, or no longer, of use. The first one counts until somebody looks.
    pub fn note_stray(&self, index: u32) {
        let _ = self.stray.compare_exchange(0, index, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// So far.
    pub fn counts(&self) -> Counts {
        let ((tx_packets, tx_bytes), (rx_packets, rx_bytes)) = (self.sent.get(), self.received.get());
        Counts { tx_packets, tx_bytes, rx_packets, rx_bytes }
    }

    pub(super) fn take_stray(&self) -> Option<u32> {
        let none = self.stray.load(Ordering::Relaxed) == 0;
        if none { None } else { Some(self.stray.swap(0, Ordering::Relaxed)) }
    }

    pub(super) fn send_under(&self, sealer: Option<Arc<Sealer>>) {
        self.sends.store(sealer.is_some(), Ordering::Relaxed);
        self.sealer.store(sealer);
    }

    pub(super) fn receive_under(&self, opener: Opener) {
        self.slot(opener.index()).store(Some(Arc::new(opener)));
    }

    /// Drops all keys.
    pub(super) fn clear(&self) {
        self.sealer.store(None);
        self.openers.iter().for_each(|slot| slot.store(None));
    }

    /// Drops keys that have expired.
    pub(super) fn expire(&self, now: Instant) {
        for slot in &self.openers {
            if slot.load().as_ref().is_some_and(|opener| !opener.is_fresh(now)) {
                slot.store(None);
            }
        }
        if self.sealer.load().as_ref().is_some_and(|sealer| !sealer.is_fresh(now)) {
            self.send_under(None);
        }
    }

    fn slot(&self, index: u32) -> &ArcSwapOption<Opener> {
        &self.openers[index as usize % SLOTS]
    }
}

impl Count {
    fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (self.packets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

#[cfg(not(feature = "loom"))]
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::keys::cipher;
    use super::super::{INDEX, OVERHEAD};
    use super::*;

    fn opener(index: u32, expires: Instant) -> Opener {
        Opener::new(cipher(&[7; 32]), index, expires)
    }

    fn sealer(index: u32, expires: Instant) -> Arc<Sealer> {
        Arc::new(Sealer::new(cipher(&[7; 32]), index, expires))
    }

    #[test]
    fn the_last_four_indices_open_until_they_expire() {
        let (lanes, now) = (Lanes::default(), Instant::now());
        let later = |index: u32| now + Duration::from_secs(u64::from(index & 0xff));
        for index in (INDEX | 1)..=(INDEX | 6) {
            lanes.receive_under(opener(index, later(index)));
        }
        let open = |lanes: &Lanes| -> Vec<_> {
            (0..=8).filter(|index| lanes.opener(INDEX | index).is_some()).collect::<Vec<u32>>()
        };
        assert_eq!(open(&lanes), [3, 4, 5, 6]);
        lanes.expire(now + Duration::from_secs(4));
        assert_eq!(open(&lanes), [5, 6]);
        lanes.clear();
        assert!(open(&lanes).is_empty());
    }

    #[test]
    fn a_sealer_that_has_expired_or_worn_out_is_none() {
        let (lanes, now) = (Lanes::default(), Instant::now());
        assert!(lanes.sealer(now).is_none() && !lanes.is_worn());
        let end = now + Duration::from_secs(9);
        lanes.send_under(Some(sealer(INDEX, end)));
        assert!(lanes.sealer(now).is_some() && lanes.sealer(end).is_none());
        let held = lanes.sealer(now).unwrap();
        lanes.sent(held.as_ref().unwrap(), 1, 1 << 38);
        assert!(lanes.is_worn() && lanes.sealer(now).is_some());
        lanes.sent(held.as_ref().unwrap(), 1, 1 << 38);
        assert!(lanes.sealer(now).is_none());
        // Who holds it may finish its batch.
        lanes.expire(now);
        assert!(held.as_ref().unwrap().seal(&[], &mut [0; OVERHEAD]).is_some());
        assert_eq!(lanes.counts(), Counts { tx_packets: 2, tx_bytes: 1 << 39, ..Counts::default() });
    }

    #[test]
    fn one_stray_is_told_of_once() {
        let lanes = Lanes::default();
        assert_eq!(lanes.take_stray(), None);
        lanes.note_stray(INDEX | 1);
        lanes.note_stray(INDEX | 2);
        assert_eq!((lanes.take_stray(), lanes.take_stray()), (Some(INDEX | 1), None));
        lanes.note_stray(INDEX | 2);
        assert_eq!(lanes.take_stray(), Some(INDEX | 2));
    }
}
