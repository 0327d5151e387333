//! How much may be asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::channel::Allowance;

/// Of one source: 1000 queries a second, 1000 at once. A busy mail server asks a tenth of that.
const ONE: Duration = Duration::from_millis(1);
const BURST_OF_ONE: Duration = Duration::from_secs(1);
/// Of all together: 10,000 a second. What is more waits in the socket, and is dropped there by the kernel for less than it costs to
/// read it.
const ANY: Duration = Duration::from_micros(100);
const BURST_OF_ALL: Duration = Duration::from_millis(50);
/// Sources that are told apart.
const SOURCES: usize = 4096;

/// What has been asked of one socket lately.
#[derive(Debug, Default)]
pub struct Gate {
    all: Allowance,
    sources: HashMap<IpAddr, Allowance>,
}

impl Gate {
    /// To call before a query is read. An error says how long to leave it where it is.
    ///
    /// # Errors
    /// When too much is asked.
    pub fn ready(&mut self, now: Instant) -> Result<(), Duration> {
        self.all.take(ANY, BURST_OF_ALL, now)
    }

    /// Whether a query from here is answered.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, allowance| !allowance.is_full(now));
            if self.sources.len() >= SOURCES {
                // Somebody has many addresses. The bound on all holds, and nobody else is kept out.
                self.sources.clear();
            }
        }
        self.sources.entry(source).or_default().take(ONE, BURST_OF_ONE, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn a_flood_of_one_leaves_room_for_others() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        let [loud, quiet]: [IpAddr; 2] = ["10.89.2.10", "10.89.2.11"].map(|addr| addr.parse().unwrap());
        assert_eq!((0..5000).filter(|_| gate.admit(loud, now)).count(), 1000);
        assert!(gate.admit(quiet, now));
        assert!(gate.admit(loud, now + Duration::from_millis(1)));
        assert!(!gate.admit(loud, now + Duration::from_millis(1)));
    }

    #[test]
    fn all_together_wait() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        assert_eq!((0..5000).filter(|_| gate.ready(now).is_ok()).count(), 500);
        let wait = gate.ready(now).unwrap_err();
        assert!(gate.ready(now + wait).is_ok());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        for number in 0..20_000_u128 {
            assert!(gate.admit(Ipv6Addr::from_bits(number).into(), now));
        }
        assert!(gate.sources.len() <= SOURCES);
    }
}
