//! Handshakes that came to nothing lately, for whoever wonders why: a few of each cause, whatever is sent.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::lock;
use crate::key::PublicKey;

/// Of one cause. The oldest makes room.
const EACH: usize = 8;
/// What is older explains nothing any more: a handshake is tried again every five seconds.
const LASTS: Duration = Duration::from_secs(120);

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnockCause {
    /// An initiation for another public key than this host's: mac1 is not ours.
    WrongKey,
    /// An initiation under a static key that no peer has.
    UnknownKey,
    /// An initiation of a peer, with a timestamp that is not above its last one.
    Replayed,
    /// A response of a peer that does not open: the preshared keys differ.
    Undecryptable,
}

/// A handshake that came to nothing, as often as it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knock {
    /// Why.
    pub cause: KnockCause,
    /// Whose, where it is known.
    pub key: Option<PublicKey>,
    /// From where.
    pub from: SocketAddr,
    /// Seconds since the last one.
    pub age: u64,
    /// How many there were.
    pub times: u32,
}

/// Those that are remembered.
#[derive(Debug, Default)]
pub(super) struct Knocks(Mutex<Vec<(Instant, Knock)>>);

impl Knocks {
    pub(super) fn note(&self, cause: KnockCause, key: Option<PublicKey>, from: SocketAddr, now: Instant) {
        let mut knocks = lock(&self.0);
        let same = |knock: &Knock| knock.cause == cause && knock.key == key && knock.from.ip() == from.ip();
        let times = match knocks.iter().position(|(_, knock)| same(knock)) {
            Some(index) => knocks.remove(index).1.times.saturating_add(1),
            None => 1,
        };
        if knocks.iter().filter(|(_, knock)| knock.cause == cause).count() >= EACH
            && let Some(oldest) = knocks.iter().position(|(_, knock)| knock.cause == cause)
        {
            knocks.remove(oldest);
        }
        knocks.push((now, Knock { cause, key, from, age: 0, times }));
    }

    /// A handshake of this peer from there has succeeded: what was wrong is no more.
    pub(super) fn settle(&self, key: &PublicKey, from: SocketAddr) {
        let mut knocks = lock(&self.0);
        if !knocks.is_empty() {
            knocks.retain(|(_, knock)| knock.key != Some(*key) && knock.from.ip() != from.ip());
        }
    }

    /// The latest first.
    pub(super) fn list(&self, now: Instant) -> Vec<Knock> {
        let knocks = lock(&self.0);
        let aged = knocks.iter().rev().map(|(at, knock)| (now.saturating_duration_since(*at), knock));
        let recent = aged.filter(|(age, _)| *age < LASTS);
        recent.map(|(age, knock)| Knock { age: age.as_secs(), ..knock.clone() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    fn from(host: u8, port: u16) -> SocketAddr {
        ([192, 0, 2, host], port).into()
    }

    #[test]
    fn the_same_knock_is_counted_and_memory_is_bounded_for_each_cause() {
        let (knocks, now) = (Knocks::default(), Instant::now());
        let key = PrivateKey::from_bytes([7; 32]).public_key();
        knocks.note(KnockCause::UnknownKey, Some(key), from(1, 1), now);
        for host in 0..100 {
            knocks.note(KnockCause::WrongKey, None, from(host, 1), now);
            knocks.note(KnockCause::WrongKey, None, from(host, 2), now);
        }
        let list = knocks.list(now);
        assert_eq!(list.len(), EACH + 1);
        assert_eq!((list[0].from, list[0].times), (from(99, 2), 2));
        assert_eq!(list[EACH].cause, KnockCause::UnknownKey, "a flood of one cause hides no other");
        assert!(knocks.list(now + LASTS).is_empty());
    }

    #[test]
    fn a_success_settles_what_was_wrong() {
        let (knocks, now) = (Knocks::default(), Instant::now());
        let [a, b] = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]).public_key());
        knocks.note(KnockCause::WrongKey, None, from(1, 1), now);
        knocks.note(KnockCause::Replayed, Some(a), from(2, 1), now);
        knocks.note(KnockCause::UnknownKey, Some(b), from(3, 1), now);
        knocks.settle(&a, from(1, 9));
        let left: Vec<_> = knocks.list(now).iter().map(|knock| knock.cause).collect();
        assert_eq!(left, [KnockCause::UnknownKey]);
    }
}
