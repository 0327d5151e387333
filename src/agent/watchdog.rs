//! Tells the service manager that packets are carried, as long as they are (sd_watchdog_enabled(3)).
//!
//! What hangs need not be this thread. So each thread of the forwarding loop counts its rounds, those that wait for packets are
//! woken to count one, and the manager is told only when all have. It kills and restarts an agent that says nothing for long.

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

use super::running::Running;
use crate::dataplane::Dataplane;

/// Looks within the time that the manager waits: one may be late, or fall on the moment when the loop is made anew.
const LOOKS: u32 = 4;

impl Running {
    /// Until it is dropped; for nothing without a manager that watches.
    pub(super) async fn feed_watchdog(&self) {
        let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
        let mut look = tokio::time::interval(limit / LOOKS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = Vec::new();
        loop {
            look.tick().await;
            let now = self.dataplane().as_ref().map(Dataplane::roll_call).unwrap_or_default();
            if all_turn(&before, &now) {
                // A manager that is gone watches no more.
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            } else if !before.is_empty() {
                tracing::warn!("a forwarding thread does not come round: {before:?} rounds, now {now:?}");
            }
            before = now;
        }
    }
}

/// Whether each thread has come round between two roll calls of one loop.
fn all_turn(before: &[u64], now: &[u64]) -> bool {
    !now.is_empty() && before.len() == now.len() && before.iter().zip(now).all(|(before, now)| before != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_hangs_is_enough() {
        for (before, now, turn) in [
            (&[][..], &[][..], false),
            (&[], &[1, 1], false),
            (&[1, 1], &[2, 7], true),
            (&[1, 1], &[2, 1], false),
            (&[1, 1], &[2, 7, 1], false),
            (&[7, 7], &[1, 1], true),
            (&[7, 7], &[], false),
        ] {
            assert_eq!(all_turn(before, now), turn, "{before:?} {now:?}");
        }
    }
}
