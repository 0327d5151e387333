//! How much load may be under way.
//!
//! Load is clocked by acknowledgements, as TCP's is: what is sent is what has arrived and a little more. So it fills any
//! path without being told its rate, and what it loses is no more than what the last step of growth was too much.
//! It differs from TCP in what makes it back off:
//!
//! - More than 0.2% of a round trip's packets lost while a queue stands, or 2% without one. A path that loses at random
//!   is measured at its full rate, and its loss is shown.
//! - A queue of more than 100 ms. TCP would fill deeper ones; that there is one is shown, and other traffic can live
//!   beside it.
//! - Silence: then it begins anew with ten packets, less and less often. More never leave unless something arrives.

// Packets of a few seconds are far fewer than 2^52, and a window is at least two.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "rates and shares of what is counted, never negative"
)]

use std::time::{Duration, Instant};

use super::Run;

/// Packets, as in RFC 6928.
const FIRST: f64 = 10.0;
const LEAST: f64 = 2.0;
/// 46 MB: 3.7 Gbit/s over 100 ms.
const MOST: f64 = 32_768.0;
/// What a packet that arrives adds to the window once the path is full: a thirty-second each round trip.
const GROWTH: f64 = 1.0 / 32.0;
const LOSS_LIMIT: f64 = 0.02;
/// Packets that a short round trip may lose by chance.
const FEW: f64 = 3.0;
/// While packets wait.
const QUEUE_LOSS_LIMIT: f64 = 0.002;
/// What is no more than the noise of two hosts' schedulers.
const NO_QUEUE: Duration = Duration::from_millis(2);
const QUEUE_LIMIT: Duration = Duration::from_millis(100);
const FIRST_PATIENCE: Duration = Duration::from_millis(500);
const LEAST_PATIENCE: Duration = Duration::from_millis(100);

/// The sender's side of one run.
#[derive(Debug)]
pub struct Window {
    size: f64,
    /// The path is not full yet: each packet that arrives adds one.
    growing: bool,
    /// Of the next packet.
    next: u64,
    /// Packets before this one have arrived or never will.
    settled: u64,
    arrived: u64,
    round: Round,
    round_trip: Option<Duration>,
    least_round_trip: Duration,
    /// When something arrived last.
    heard: Instant,
    silences: u32,
}

/// From the sending of a packet to its acknowledgement.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    until: u64,
    settled: u64,
    arrived: u64,
    /// The packets of this round left under the window before: they say nothing about this one.
    stale: bool,
}

impl Window {
    /// Of a run that begins now.
    pub fn new(now: Instant) -> Self {
        Self {
            size: FIRST,
            growing: true,
            next: 0,
            settled: 0,
            arrived: 0,
            round: Round::default(),
            round_trip: None,
            least_round_trip: Duration::MAX,
            heard: now,
            silences: 0,
        }
    }

    /// Takes in what was acknowledged, and says how many packets may leave now.
    pub fn allowance(&mut self, run: &Run, now: Instant) -> u64 {
        if let Some(acked) = run.latest().filter(|acked| acked.sequence >= self.settled) {
            self.acknowledged(acked.sequence, acked.packets, acked.round_trip, now);
        }
        self.free(now)
    }

    /// Takes the number of the packet that leaves.
    pub fn leave(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// How long to wait when nothing may leave: short beside a round trip, long beside a wakeup.
    pub fn pause(&self) -> Duration {
        let round_trip = self.round_trip.unwrap_or(LEAST_PATIENCE);
        (round_trip / 8).clamp(Duration::from_micros(100), Duration::from_millis(2))
    }

    fn acknowledged(&mut self, sequence: u64, packets: u64, round_trip: Duration, now: Instant) {
        let new = packets.saturating_sub(self.arrived);
        // Half a window must be under way, or it is not what limits the load.
        let used = (self.next - self.settled) as f64 >= self.size / 2.0;
        (self.settled, self.arrived) = (sequence + 1, packets.max(self.arrived));
        (self.heard, self.silences) = (now, 0);
        self.round_trip = Some(round_trip);
        self.least_round_trip = self.least_round_trip.min(round_trip);
        if used && !self.round.stale {
            self.size += new as f64 * if self.growing { 1.0 } else { GROWTH };
        }
        if self.settled > self.round.until {
            self.judge(round_trip);
        }
        self.size = self.size.clamp(LEAST, MOST);
    }

    /// Once each round trip: whether the path has more to give.
    fn judge(&mut self, round_trip: Duration) {
        let (sent, arrived) = (self.settled - self.round.settled, self.arrived - self.round.arrived);
        let lost = sent.saturating_sub(arrived) as f64;
        let queue = round_trip.saturating_sub(self.least_round_trip);
        let queued = queue > NO_QUEUE.max(self.least_round_trip / 4);
        let limit = if queued { QUEUE_LOSS_LIMIT * sent as f64 } else { LOSS_LIMIT * sent as f64 + FEW };
        let overflows = lost > limit;
        let full = !self.round.stale && (overflows || queue > QUEUE_LIMIT);
        if full {
            // Half of the queue is enough to keep the path full.
            let wanted = self.least_round_trip + queue.min(QUEUE_LIMIT) / 2;
            self.size = match (self.growing, queued) {
                (true, _) if overflows => arrived as f64 * 0.9,
                (_, true) => self.size * wanted.div_duration_f64(round_trip).clamp(0.5, 0.95),
                (_, false) => self.size * 0.85,
            };
        }
        self.growing &= !full;
        self.round = Round { until: self.next, settled: self.settled, arrived: self.arrived, stale: full };
    }

    fn free(&mut self, now: Instant) -> u64 {
        let under_way = self.next - self.settled;
        let patience = self.round_trip.map_or(FIRST_PATIENCE, |round_trip| (round_trip * 4).max(LEAST_PATIENCE));
        if under_way > 0 && now.saturating_duration_since(self.heard) >= patience * 2u32.pow(self.silences.min(6)) {
            (self.heard, self.silences) = (now, self.silences + 1);
            (self.settled, self.size, self.growing) = (self.next, FIRST, true);
            self.round = Round { until: self.next, settled: self.next, arrived: self.arrived, stale: false };
            return FIRST as u64;
        }
        (self.size as u64).saturating_sub(under_way)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A path with a rate, a delay and a queue, on virtual time.
    struct Path {
        /// Packets a second.
        rate: f64,
        delay: Duration,
        /// Packets.
        queue: usize,
        /// Of a hundred thousand.
        random_loss: u64,
    }

    struct Outcome {
        /// Of the path's rate, in the last three quarters.
        used: f64,
        lost: f64,
        /// The longest that a packet waited, in the last three quarters.
        waited: Duration,
    }

    impl Path {
        fn run(&self, seconds: u64) -> Outcome {
            let start = Instant::now();
            let mut window = Window::new(start);
            let step = Duration::from_micros(50);
            // When each packet leaves the queue, its number, and when it was sent.
            let mut queue: VecDeque<(Duration, u64, Duration)> = VecDeque::new();
            let mut acks: VecDeque<(Duration, u64, u64, Duration)> = VecDeque::new();
            let (mut now, mut arrived, mut acked) = (Duration::ZERO, 0, 0);
            let (mut counted, mut sent, mut waited) = (0, 0, Duration::ZERO);
            let mut random = 88_172_645_463_325_252_u64;
            let service = Duration::from_secs_f64(1.0 / self.rate);
            let (end, settled) = (Duration::from_secs(seconds), Duration::from_secs(seconds) / 4);
            while now < end {
                while queue.front().is_some_and(|&(leaves, ..)| leaves <= now) {
                    let (leaves, number, was_sent) = queue.pop_front().unwrap();
                    arrived += 1;
                    if now > settled {
                        counted += 1;
                        waited = waited.max(leaves.saturating_sub(was_sent));
                    }
                    // Every 32nd, and when nothing follows.
                    if arrived - acked >= 32 || queue.is_empty() {
                        acked = arrived;
                        acks.push_back((leaves + self.delay, number, arrived, was_sent));
                    }
                }
                while acks.front().is_some_and(|&(at, ..)| at <= now) {
                    let (at, number, packets, was_sent) = acks.pop_front().unwrap();
                    if number >= window.settled {
                        window.acknowledged(number, packets, at.saturating_sub(was_sent), start + now);
                    }
                }
                for _ in 0..window.free(start + now).min(45) {
                    let number = window.leave();
                    sent += u64::from(now > settled);
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    if queue.len() < self.queue && random % 100_000 >= self.random_loss {
                        let free = queue.back().map_or(now, |&(leaves, ..)| leaves.max(now));
                        queue.push_back((free + service, number, now));
                    }
                }
                now += step;
            }
            let used = f64::from(counted) / (self.rate * end.saturating_sub(settled).as_secs_f64());
            Outcome { used, lost: 1.0 - f64::from(counted) / sent as f64, waited }
        }
    }

    #[test]
    fn paths_are_filled_without_massive_loss_or_delay() {
        let ms = Duration::from_millis;
        for (what, path, least, most_lost) in [
            ("a slow uplink", Path { rate: 200.0, delay: ms(20), queue: 50, random_loss: 0 }, 0.93, 0.1),
            ("50 Mbit/s", Path { rate: 4300.0, delay: ms(1), queue: 200, random_loss: 0 }, 0.95, 0.03),
            ("1 Gbit/s over 10 ms", Path { rate: 86_000.0, delay: ms(10), queue: 1000, random_loss: 0 }, 0.95, 0.03),
            ("a shallow queue", Path { rate: 8600.0, delay: ms(20), queue: 50, random_loss: 0 }, 0.8, 0.05),
            ("random loss", Path { rate: 8600.0, delay: ms(10), queue: 200, random_loss: 1000 }, 0.9, 0.06),
            ("a queue without end", Path { rate: 4300.0, delay: ms(10), queue: 1 << 20, random_loss: 0 }, 0.95, 0.03),
        ] {
            let Outcome { used, lost, waited } = path.run(3);
            println!("{what}: {used:.3} of the rate, {lost:.4} lost, waited {waited:?}");
            assert!((least..1.05).contains(&used), "{what}: {used} of the rate");
            assert!(lost < most_lost, "{what}: {lost} lost");
            assert!(waited < ms(300), "{what}: a packet waited {waited:?}");
        }
    }

    #[test]
    fn nothing_but_first_windows_leaves_when_nothing_arrives() {
        let start = Instant::now();
        let mut window = Window::new(start);
        let mut sent = 0;
        for millis in 0..10_000 {
            for _ in 0..window.free(start + Duration::from_millis(millis)) {
                window.leave();
                sent += 1;
            }
        }
        assert!((10..=60).contains(&sent), "{sent}");
    }
}
