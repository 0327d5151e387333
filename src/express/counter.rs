//! Nonces that are unique by construction: whoever takes a number is the only one that has it.

#[cfg(feature = "loom")]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(feature = "loom"))]
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers from here on are not handed out: far more than there are packets in the bytes that one key may seal, and few
/// enough for the window of the receiver.
pub(super) const LIMIT: u64 = 1 << 36;

/// Hands out each number once, from 0.
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// None when there are no more. Past the limit it would take centuries of asking to come back to 0.
    pub(super) fn next(&self) -> Option<u64> {
        // Relaxed: an addition is never torn, and nothing else hangs on the number.
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        (number < LIMIT).then_some(number)
    }
}

#[cfg(all(test, feature = "loom"))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[test]
    fn loom_no_number_is_handed_out_twice() {
        loom::model(|| {
            let counter = Arc::new(Counter::new());
            let take = |counter: &Counter| [counter.next(), counter.next()];
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let counter = Arc::clone(&counter);
                    thread::spawn(move || take(&counter))
                })
                .collect();
            let mut numbers: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).flatten().collect();
            numbers.sort_unstable();
            assert_eq!(numbers, [0, 1, 2, 3]);
        });
    }
}

#[cfg(not(feature = "loom"))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_handed_out_past_the_limit() {
        let counter = Counter(AtomicU64::new(LIMIT - 1));
        assert_eq!((counter.next(), counter.next(), counter.next()), (Some(LIMIT - 1), None, None));
    }
}
