//! Which counters have come: the window of RFC 6479, for several threads and without a lock.
//!
//! ```text
//!   counter  … block number (of 32 counters) …  bit            words[block % WORDS]
//!                          │                     │             ┌──────────────┬──────────────┐
//!                          └─────────────────────┴───────────▶ │ block number │ 32 bits      │
//!                                                              └──────────────┴──────────────┘
//! ```
//!
//! A word says itself whose counters it holds. So nothing needs clearing when the window moves on: the first counter of a
//! newer block takes the word over, and one of an older block finds that it is too late. Each change is one
//! compare-and-swap of one word, so no counter is taken twice, whatever threads do.

#[cfg(feature = "loom")]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(feature = "loom"))]
use std::sync::atomic::{AtomicU64, Ordering};

use super::counter::LIMIT;

/// So that the number of a block, of a counter below [`LIMIT`], has room beside them.
const BITS: u64 = 32;

/// The counters of the last `WORDS / 2 * 32`. The other half of the words lets the window be exact at both its ends.
pub struct Window<const WORDS: usize = 512> {
    highest: AtomicU64,
    words: Box<[AtomicU64]>,
}

impl<const WORDS: usize> Window<WORDS> {
    /// How far behind the highest one a counter may be.
    pub const SIZE: u64 = WORDS as u64 / 2 * BITS;

    /// One in which no counter has come.
    pub fn new() -> Self {
        Self { highest: AtomicU64::new(0), words: (0..WORDS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether the counter may still be taken, for a look before the cipher's work is done.
    pub fn admits(&self, counter: u64) -> bool {
        self.is_recent(counter) && next(self.word(counter).load(Ordering::Relaxed), counter).is_some()
    }

    /// Takes the counter of an authenticated message. False when it has come before or is too old.
    pub fn take(&self, counter: u64) -> bool {
        // Relaxed: the counter itself is all that threads agree on here.
        let update = |word| next(word, counter);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let taken = self.is_recent(counter) && self.word(counter).fetch_update(set, fetch, update).is_ok();
        if taken && counter > self.highest.load(Ordering::Relaxed) {
            self.highest.fetch_max(counter, Ordering::Relaxed);
        }
        taken
    }

    fn is_recent(&self, counter: u64) -> bool {
        counter < LIMIT && counter + Self::SIZE > self.highest.load(Ordering::Relaxed)
    }

    fn word(&self, counter: u64) -> &AtomicU64 {
        &self.words[(counter / BITS) as usize % WORDS]
    }
}

impl<const WORDS: usize> Default for Window<WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

/// The word with the counter in it; none when that is there already, or newer ones are.
fn next(word: u64, counter: u64) -> Option<u64> {
    let (block, bit) = (counter / BITS, 1 << (counter % BITS));
    match (word >> BITS).cmp(&block) {
        std::cmp::Ordering::Less => Some(block << BITS | bit),
        std::cmp::Ordering::Equal => (word & bit == 0).then_some(word | bit),
        std::cmp::Ordering::Greater => None,
    }
}

#[cfg(not(feature = "loom"))]
#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_has_the_size_that_it_says() {
        let window = Window::<512>::new();
        assert_eq!(Window::<512>::SIZE, 8192);
        assert!(window.take(20_000));
        assert!(!window.admits(20_000 - 8192) && !window.take(20_000 - 8192), "one too old");
        assert!(window.admits(20_000 - 8191) && window.take(20_000 - 8191), "the oldest");
        assert!(!window.admits(20_000 - 8191) && !window.take(20_000 - 8191), "again");
    }

    #[test]
    fn a_counter_past_the_limit_is_never_taken() {
        let window = Window::<4>::new();
        assert!(!window.take(LIMIT) && !window.take(u64::MAX));
        assert!(window.take(LIMIT - 1) && !window.take(0));
    }

    proptest! {
        /// Against the plain rule: in the window, and not seen.
        #[test]
        fn takes_what_the_plain_rule_takes(steps in proptest::collection::vec((0u64..200, any::<bool>()), 1..400)) {
            let window = Window::<4>::new();
            let (mut seen, mut highest) = (HashSet::new(), 0u64);
            for (step, forward) in steps {
                let counter = if forward { highest + step } else { highest.saturating_sub(step) };
                let expected = counter + Window::<4>::SIZE > highest && !seen.contains(&counter);
                prop_assert_eq!(window.admits(counter), expected);
                prop_assert_eq!(window.take(counter), expected);
                seen.insert(counter);
                highest = highest.max(if expected { counter } else { 0 });
            }
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Two threads that take counters, in every order that the memory model allows.
    fn both(first: &'static [u64], second: &'static [u64], check: fn(&[bool], &[bool], &Window<2>)) {
        loom::model(move || {
            let window = Arc::new(Window::<2>::new());
            let other = Arc::clone(&window);
            let thread = thread::spawn(move || second.iter().map(|counter| other.take(*counter)).collect::<Vec<_>>());
            let taken: Vec<_> = first.iter().map(|counter| window.take(*counter)).collect();
            check(&taken, &thread.join().unwrap(), &window);
        });
    }

    #[test]
    fn loom_of_two_copies_one_is_taken() {
        both(&[7], &[7], |first, second, window| {
            assert!(first[0] ^ second[0]);
            assert!(!window.take(7));
        });
    }

    #[test]
    fn loom_neighbours_in_one_word_do_not_lose_each_other() {
        both(&[1, 3], &[2, 3], |first, second, window| {
            assert!(first[0] && second[0] && (first[1] ^ second[1]));
            assert!((1..4).all(|counter| !window.take(counter)));
        });
    }

    #[test]
    fn loom_a_word_that_is_taken_over_gives_nothing_back() {
        // 5 and 64 + 5 share a word.
        both(&[5, 5], &[69, 5], |first, second, window| {
            assert!(second[0], "the newest is always taken");
            assert!([first[0], first[1], second[1]].iter().filter(|taken| **taken).count() <= 1);
            assert!(!window.take(5) && !window.take(69));
        });
    }
}
