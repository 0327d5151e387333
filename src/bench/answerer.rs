//! Which runs an agent takes part in.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{MAX_SECONDS, Terms};
use crate::channel::Allowance;
use crate::key::PublicKey;

/// For how long a measurement keeps others out after a run that nobody ended …
const PATIENCE: Duration = Duration::from_secs(3);
/// … and between two of its runs.
const PAUSE: Duration = Duration::from_secs(1);
/// A peer's runs take a fifth of all time at most …
const SHARE: u32 = 5;
/// … and no more than two minutes at once.
const AT_ONCE: Duration = Duration::from_secs(120);
/// What a shorter run counts as, since each begins with a few packets to wherever its peer seems to be.
const SHORTEST_CHARGE: Duration = Duration::from_secs(1);

/// Why a run is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another measurement is under way.
    Busy,
    /// This peer has measured too much.
    TooOften {
        /// When it may again.
        wait_seconds: u64,
    },
    /// Longer or shorter than runs are.
    Length,
    /// The agent cannot, as while it ends.
    Unable,
}

/// Admits one measurement at a time, and each peer for a bounded time.
#[derive(Debug, Default)]
pub struct Answerer {
    /// Whose turn it is, `None` for our own, and until when.
    turn: Option<(Option<PublicKey>, Instant)>,
    spent: HashMap<PublicKey, Allowance>,
}

impl Answerer {
    /// Whether `peer` may run this now; if so it is the only one until a moment after the run.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&mut self, peer: PublicKey, terms: &Terms, now: Instant) -> Result<(), Refusal> {
        let length = Duration::from_millis(terms.millis.into());
        if !(Duration::from_millis(100)..=Duration::from_secs(MAX_SECONDS.into())).contains(&length) {
            return Err(Refusal::Length);
        }
        self.free_for(Some(peer), now)?;
        self.spent.retain(|_, spent| !spent.is_full(now));
        let spent = self.spent.entry(peer).or_default();
        spent
            .take(length.max(SHORTEST_CHARGE) * SHARE, AT_ONCE * SHARE, now)
            .map_err(|wait| Refusal::TooOften { wait_seconds: wait.as_secs() + 1 })?;
        self.turn = Some((Some(peer), now + length + PATIENCE));
        Ok(())
    }

    /// A run of `peer` is over, perhaps before its time; the next of the same measurement may follow.
    pub fn finished(&mut self, peer: PublicKey, now: Instant) {
        if let Some((whose, until)) = &mut self.turn
            && *whose == Some(peer)
        {
            *until = now + PAUSE;
        }
    }

    /// Takes the turn for a measurement of our own, for `length`.
    ///
    /// # Errors
    /// When it is somebody else's.
    pub fn reserve(&mut self, length: Duration, now: Instant) -> Result<(), Refusal> {
        if self.turn.is_some_and(|(_, until)| now < until) {
            return Err(Refusal::Busy);
        }
        self.turn = Some((None, now + length));
        Ok(())
    }

    /// Ends the turn of a measurement of our own.
    pub fn release(&mut self) {
        self.turn.take_if(|(whose, _)| whose.is_none());
    }

    fn free_for(&self, whose: Option<PublicKey>, now: Instant) -> Result<(), Refusal> {
        let taken = self.turn.is_some_and(|(other, until)| now < until && other != whose);
        if taken { Err(Refusal::Busy) } else { Ok(()) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("is busy with another measurement"),
            Self::TooOften { wait_seconds } => {
                write!(f, "was measured for as long as it allows; again in {wait_seconds} s")
            }
            Self::Length => write!(f, "takes part for {MAX_SECONDS} s at most"),
            Self::Unable => f.write_str("cannot take part at this moment; its log says why"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Direction, Route, RunId};
    use super::*;
    use crate::key::PrivateKey;

    fn key(seed: u8) -> PublicKey {
        PrivateKey::from_bytes([seed; 32]).public_key()
    }

    fn terms(seconds: u32) -> Terms {
        let direction = Direction::ToAsker;
        Terms { id: RunId([0; 16]), route: Route::Tunnel, direction, millis: seconds * 1000 }
    }

    #[test]
    fn one_measurement_at_a_time() {
        let (mut answerer, now) = (Answerer::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(answerer.admit(key(1), &terms(3), now), Ok(()));
        assert_eq!(answerer.admit(key(1), &terms(3), now + 4 * second), Ok(()), "the next run of the same");
        assert_eq!(answerer.admit(key(2), &terms(3), now + 9 * second), Err(Refusal::Busy));
        assert_eq!(answerer.reserve(second, now + 9 * second), Err(Refusal::Busy));
        assert_eq!(answerer.reserve(second, now + 10 * second), Ok(()));
        assert_eq!(answerer.admit(key(1), &terms(3), now + 10 * second), Err(Refusal::Busy), "our own");
        answerer.release();
        assert_eq!(answerer.admit(key(2), &terms(3), now + 10 * second), Ok(()));
        answerer.release();
        assert_eq!(answerer.admit(key(1), &terms(3), now + 10 * second), Err(Refusal::Busy), "not ours to release");
        answerer.finished(key(1), now + 10 * second);
        assert_eq!(answerer.admit(key(1), &terms(3), now + 11 * second), Err(Refusal::Busy), "not its to finish");
        answerer.finished(key(2), now + 11 * second);
        assert_eq!(answerer.admit(key(1), &terms(3), now + 12 * second), Ok(()));
    }

    #[test]
    fn a_peer_has_two_minutes_and_then_a_fifth_of_the_time() {
        let (mut answerer, mut now) = (Answerer::default(), Instant::now());
        assert_eq!((0..100).filter(|_| answerer.admit(key(1), &terms(10), now).is_ok()).count(), 12);
        assert_eq!(answerer.admit(key(1), &terms(10), now), Err(Refusal::TooOften { wait_seconds: 51 }));
        now += Duration::from_secs(20);
        assert_eq!(answerer.admit(key(2), &terms(10), now), Ok(()), "another peer has its own");
        now += Duration::from_secs(31);
        assert_eq!(answerer.admit(key(1), &terms(10), now), Ok(()));
        assert!(answerer.admit(key(1), &terms(10), now).is_err());
    }

    #[test]
    fn runs_have_a_length() {
        let (mut answerer, now) = (Answerer::default(), Instant::now());
        for millis in [0, 99, 10_001, u32::MAX] {
            assert_eq!(answerer.admit(key(1), &Terms { millis, ..terms(1) }, now), Err(Refusal::Length));
        }
    }
}
