//! A bound on a rate, as a bucket that fills up again.

use std::time::{Duration, Instant};

/// What is left to spend, kept as the time at which all of it will be back.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    full_at: Option<Instant>,
}

impl Allowance {
    /// A full one.
    pub const fn new() -> Self {
        Self { full_at: None }
    }

    /// Takes `cost`, counted in the time that it needs to come back, out of a bucket that holds `depth`. An error says
    /// how long to wait; nothing was taken then.
    ///
    /// # Errors
    /// When too little is left.
    pub fn take(&mut self, cost: Duration, depth: Duration, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.unwrap_or(now).max(now) + cost;
        match (full_at - now).checked_sub(depth) {
            None | Some(Duration::ZERO) => {
                self.full_at = Some(full_at);
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }

    /// Whether it is full, so that forgetting it changes nothing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}

impl Default for Allowance {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate() {
        let (cost, depth, now) = (Duration::from_millis(20), Duration::from_millis(100), Instant::now());
        let mut allowance = Allowance::new();
        assert_eq!((0..10).filter(|_| allowance.take(cost, depth, now).is_ok()).count(), 5);
        assert_eq!(allowance.take(cost, depth, now), Err(cost));
        assert!(allowance.take(cost, depth, now + cost).is_ok());
        assert!(allowance.take(cost, depth, now + cost).is_err());
        assert!(!allowance.is_full(now + depth) && allowance.is_full(now + depth + cost));
    }
}
