//! One direction of an express session: sealing on one side, opening on the other, both from any thread.
//!
//! ```text
//!  0   1          4                8                               16
//!  +---+----------+----------------+-------------------------------+--------------------+-----------+
//!  | 4 | 0  0  0  | receiver index | counter                       | ciphertext         | tag (16)  |
//!  +---+----------+----------------+-------------------------------+--------------------+-----------+
//!  └──────────────── associated data ──────────────────────────────┘
//! ```
//!
//! As WireGuard's transport data (whitepaper, section 5.4.6), all numbers little-endian. The nonce is four zero bytes and the
//! counter.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use ring::aead::{Aad, LessSafeKey, Nonce};

use super::counter::Counter;
use super::window::Window;
use super::wiped::Wiped;
use super::{INDEX, OVERHEAD};

const HEADER: usize = 16;
const TAG: usize = 16;
/// Bytes under one key after which another is wanted, and after which this one is used no more. AES-GCM's advantage for who
/// tells its output from random bits grows with the square of the blocks: 2^35 of them leave 2^-59.
const REKEY_AFTER_BYTES: u64 = 1 << 38;
const REJECT_AFTER_BYTES: u64 = 1 << 39;
/// Messages that did not open, with none between them that did, after which the keys are taken for wrong.
const FAILURES: u32 = 32;

/// Seals for one receiver.
pub struct Sealer {
    key: Wiped<LessSafeKey>,
    index: u32,
    expires: Instant,
    counter: Counter,
    bytes: AtomicU64,
}

impl Sealer {
    pub(super) fn new(key: Wiped<LessSafeKey>, index: u32, expires: Instant) -> Self {
        Self { key, index, expires, counter: Counter::new(), bytes: AtomicU64::new(0) }
    }

    /// The receiver's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it may seal now.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now < self.expires && self.bytes.load(Ordering::Relaxed) < REJECT_AFTER_BYTES
    }

    /// Whether so much has been sealed that other keys are wanted.
    pub fn is_worn(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= REKEY_AFTER_BYTES
    }

    /// Counts in what was sealed; once for a batch.
    pub fn wear(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Writes `packet` as one message to the start of `to`, which has 32 bytes more than the packet. Its length comes
    /// back; none when there are no counters left.
    pub fn seal(&self, packet: &[u8], to: &mut [u8]) -> Option<usize> {
        let counter = self.counter.next()?;
        let (header, rest) = to.split_first_chunk_mut::<HEADER>()?;
        *header = write_header(self.index, counter);
        let (body, rest) = rest.split_at_mut(packet.len());
        body.copy_from_slice(packet);
        let tag = self.key.seal_in_place_separate_tag(nonce(counter), Aad::from(&*header), body).ok()?;
        rest[..TAG].copy_from_slice(tag.as_ref());
        Some(packet.len() + OVERHEAD)
    }
}

/// Opens what one sender seals.
pub struct Opener {
    key: Wiped<LessSafeKey>,
    index: u32,
    expires: Instant,
    window: Window,
    /// Messages in a row that did not open.
    failures: AtomicU32,
}

/// Why a message was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too short, or not for this index.
    Malformed,
    /// The keys are too old.
    Expired,
    /// Its counter has come before, or is too old.
    Replayed,
    /// It does not authenticate.
    Forged,
}

impl Opener {
    pub(super) fn new(key: Wiped<LessSafeKey>, index: u32, expires: Instant) -> Self {
        Self { key, index, expires, window: Window::new(), failures: AtomicU32::new(0) }
    }

    /// Its own.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it may open now.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now < self.expires
    }

    /// Whether so many messages in a row did not open that the keys must be wrong.
    pub fn is_doubtful(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
    }

    /// Opens one message into the start of `to`, which is as long as the message. The length of the plain text comes back,
    /// padding included; 0 for a keepalive.
    ///
    /// # Errors
    /// Why it was not opened. `to` may have been written to.
    pub fn open(&self, message: &[u8], to: &mut [u8], now: Instant) -> Result<usize, Refused> {
        let Some((header, sealed)) = message.split_first_chunk::<HEADER>() else { return Err(Refused::Malformed) };
        let Some((index, counter)) = read_header(header) else { return Err(Refused::Malformed) };
        if index != self.index || sealed.len() < TAG {
            return Err(Refused::Malformed);
        }
        if !self.is_fresh(now) {
            return Err(Refused::Expired);
        }
        if !self.window.admits(counter) {
            return Err(Refused::Replayed);
        }
        let body = &mut to[..sealed.len()];
        body.copy_from_slice(sealed);
        if self.key.open_in_place(nonce(counter), Aad::from(header), body).is_err() {
            // Saturating: more say nothing more.
            let more = |failures: u32| failures.checked_add(1);
            let _ = self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            return Err(Refused::Forged);
        }
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if !self.window.take(counter) {
            return Err(Refused::Replayed);
        }
        Ok(sealed.len() - TAG)
    }
}

fn write_header(index: u32, counter: u64) -> [u8; HEADER] {
    let mut header = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_le_bytes());
    header[8..].copy_from_slice(&counter.to_le_bytes());
    header
}

fn read_header(header: &[u8; HEADER]) -> Option<(u32, u64)> {
    let &[4, 0, 0, 0, i0, i1, i2, i3, ref counter @ ..] = header else { return None };
    let index = u32::from_le_bytes([i0, i1, i2, i3]);
    (index & INDEX != 0).then(|| (index, u64::from_le_bytes(*counter)))
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    // Written in the pieces in which ring reads it: a load of what two stores have written waits for both.
    nonce[..8].copy_from_slice(&(counter << 32).to_le_bytes());
    nonce[8..].copy_from_slice(&((counter >> 32) as u32).to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(not(feature = "loom"))]
#[cfg(test)]
mod tests;
