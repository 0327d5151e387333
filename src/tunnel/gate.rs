//! What stands before the expensive part of a handshake: a limit per source under load, mac1, and cookies.
//!
//! Above a number of handshake messages a second each source is held to a share, as the kernel's ratelimiter does
//! (drivers/net/wireguard/ratelimiter.c), whatever it sends. What is left goes to boringtun's `RateLimiter`, which checks
//! mac1, and asks for a cookie while more messages wait than are answered (whitepaper, section 5.3); so nobody gets far
//! under a borrowed address, and a thousand peers that return at once are answered all.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;

use crate::channel::Allowance;
use crate::key::PublicKey;

/// Handshake messages a second up to which no source is held to its share.
const CALM_PER_SECOND: u64 = 200;
/// Of one source: PACKETS_PER_SECOND and PACKETS_BURSTABLE of the kernel's ratelimiter.c.
const PER_SOURCE_INTERVAL: Duration = Duration::from_millis(50);
const PER_SOURCE_BURST: u32 = 5;
/// Buckets; sources that fall on the same one share it, which bounds memory whatever is sent. To fill all of them takes
/// 330,000 messages a second.
const BUCKETS: usize = 1 << 14;

/// Decides which handshake messages are worth a Diffie-Hellman.
pub(super) struct Gate {
    /// Asks for no cookie.
    calm: RateLimiter,
    /// Asks always.
    loaded: RateLimiter,
    sources: Mutex<Sources>,
}

struct Sources {
    hasher: RandomState,
    second: Instant,
    seen: u64,
    buckets: Vec<Allowance>,
}

/// What becomes of a handshake message.
pub(super) enum Verdict {
    /// Go on with it.
    Admit,
    /// Send this cookie reply (of so many bytes) instead.
    Challenge(usize),
    /// Drop it.
    Drop,
}

impl Gate {
    pub(super) fn new(key: &PublicKey, now: Instant) -> Self {
        let sources =
            Sources { hasher: RandomState::new(), second: now, seen: 0, buckets: vec![Allowance::new(); BUCKETS] };
        let limiter = |limit| RateLimiter::new(&key.to_dalek(), limit);
        Self { calm: limiter(u64::MAX), loaded: limiter(0), sources: Mutex::new(sources) }
    }

    /// Whether this source may send a handshake message now. To be asked first of all: it is a hundred times cheaper than
    /// a cookie, which costs a seal and a system call.
    pub(super) fn admits(&self, from: IpAddr, now: Instant) -> bool {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).admit(from, now)
    }

    /// Judges one handshake message; a cookie reply is written to `reply`. Under `load` it needs a cookie.
    pub(super) fn judge(&self, message: &[u8], from: IpAddr, load: bool, reply: &mut [u8]) -> Verdict {
        let limiter = if load { &self.loaded } else { &self.calm };
        match limiter.verify_packet(Some(from), message, reply) {
            Ok(_) => Verdict::Admit,
            Err(TunnResult::WriteToNetwork(cookie)) => Verdict::Challenge(cookie.len()),
            _ => Verdict::Drop,
        }
    }
}

impl Sources {
    fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.seen = 0;
        }
        self.seen += 1;
        if self.seen <= CALM_PER_SECOND {
            return true;
        }
        let bucket = self.hasher.hash_one(source(from)) as usize % BUCKETS;
        self.buckets[bucket].take(PER_SOURCE_INTERVAL, PER_SOURCE_INTERVAL * PER_SOURCE_BURST, now).is_ok()
    }
}

/// What one subscriber has to itself: an IPv4 address or an IPv6 /64.
fn source(addr: IpAddr) -> u64 {
    match addr {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_is_held_to_its_share_only_under_load() {
        let now = Instant::now();
        let mut sources =
            Sources { hasher: RandomState::new(), second: now, seen: 0, buckets: vec![Allowance::new(); BUCKETS] };
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        let calm = (0..CALM_PER_SECOND).filter(|_| sources.admit(from(1), now)).count();
        assert_eq!(calm as u64, CALM_PER_SECOND);
        let under_load = (0..100).filter(|_| sources.admit(from(1), now)).count();
        assert_eq!(under_load, PER_SOURCE_BURST as usize);
        let later = now + PER_SOURCE_INTERVAL;
        assert!(sources.admit(from(1), later) && !sources.admit(from(1), later));
    }

    #[test]
    fn ipv6_sources_of_one_64_share_a_bucket() {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(source(addr("2001:db8::1")), source(addr("2001:db8::ffff:1")));
        assert_ne!(source(addr("2001:db8::1")), source(addr("2001:db8:0:1::1")));
    }
}
