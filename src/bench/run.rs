//! One run, as both sides see it while it lasts. Shared between the threads that open packets, the one that sends load
//! and the control side, and so made of atomics.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Direction, Flow, Latency, PROBE_LEN, Probe, Route, RunId, Terms};
use crate::key::PublicKey;

/// Data packets, and time, between two acknowledgements: about what TCP's receiver does behind GRO.
const ACK_PACKETS: u64 = 64;
const ACK_INTERVAL: Duration = Duration::from_millis(2);
/// Echoes of one run and route; one every 10 ms for the longest run.
const MAX_ECHOES: usize = 1024;
/// How long after its end a run still answers.
const GRACE: Duration = Duration::from_secs(3);

/// A run under way.
#[derive(Debug)]
pub struct Run {
    /// As agreed.
    pub terms: Terms,
    /// With whom.
    pub peer: PublicKey,
    /// Where the peer is: bare probes from elsewhere are not its.
    pub remote: SocketAddr,
    /// Whether load is ours to send.
    pub sends: bool,
    begin: Instant,
    stopped: AtomicBool,
    /// Of the proofs.
    salt: RandomState,
    meter: Meter,
    acks: Mutex<Acks>,
    /// By route.
    echoes: [Echoes; 3],
    answered: AtomicU32,
}

/// What became of a probe.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Not of this run.
    Refused,
    /// Counted.
    Kept,
    /// Send this back the same way.
    Reply([u8; PROBE_LEN]),
}

/// What has arrived of the other side's load.
#[derive(Debug, Default)]
struct Meter {
    packets: AtomicU64,
    bytes: AtomicU64,
    acked_packets: AtomicU64,
    acked_micros: AtomicU32,
}

/// What the other side says has arrived of our load.
#[derive(Debug, Default)]
struct Acks {
    latest: Option<Acked>,
    /// The first after the window has grown, where counting begins.
    settled: Option<Acked>,
}

/// An acknowledgement that proved itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) sequence: u64,
    pub(super) packets: u64,
    bytes: u64,
    /// The receiver's time.
    micros: u32,
    pub(super) round_trip: Duration,
}

#[derive(Debug)]
struct Echoes {
    /// When each was sent, in microseconds of the run.
    sent: Box<[AtomicU32]>,
    /// Microseconds that each took; 0 until it is back.
    took: Box<[AtomicU32]>,
    next: AtomicU32,
}

impl Run {
    /// A run that begins now. `sends` says whether the load is ours.
    pub fn new(terms: Terms, peer: PublicKey, remote: SocketAddr, asker: bool, now: Instant) -> Self {
        let sends = terms.direction == if asker { Direction::ToAnswerer } else { Direction::ToAsker };
        Self {
            terms,
            peer,
            remote,
            sends,
            begin: now,
            stopped: AtomicBool::new(false),
            salt: RandomState::new(),
            meter: Meter::default(),
            acks: Mutex::default(),
            echoes: [Echoes::new(), Echoes::new(), Echoes::new()],
            answered: AtomicU32::new(0),
        }
    }

    /// Its name.
    pub fn id(&self) -> RunId {
        self.terms.id
    }

    /// When its load ends at the latest.
    pub fn end(&self) -> Instant {
        self.begin + Duration::from_millis(self.terms.millis.into())
    }

    /// Ends it before its time.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Whether it is over.
    pub fn over(&self, now: Instant) -> bool {
        self.stopped.load(Relaxed) || now >= self.end()
    }

    /// By which route a probe came that was sealed by WireGuard's own session.
    pub fn sealed_route(&self) -> Route {
        if self.terms.route == Route::Ordinary { Route::Ordinary } else { Route::Tunnel }
    }

    /// Takes a probe of `size` bytes that came by `route`. Neither allocates nor blocks.
    pub fn take(&self, route: Route, probe: &[u8], size: usize, now: Instant) -> Taken {
        // Who asked may have gone without a word.
        let Some(probe) = Probe::parse(probe, self.id()).filter(|_| now < self.end() + GRACE) else {
            return Taken::Refused;
        };
        let loaded = self.terms.direction != Direction::Idle && self.terms.route == route;
        match probe {
            Probe::Data { .. } if loaded && !self.sends => self.data(probe, size, now),
            Probe::Ack { .. } if loaded && self.sends => self.ack(probe, now),
            Probe::Echo { sequence } if self.answered.fetch_add(1, Relaxed) < 2 * MAX_ECHOES as u32 => {
                Taken::Reply(Probe::Echoed { sequence }.bytes(self.id()))
            }
            Probe::Echoed { sequence } => self.echoes[route as usize].back(sequence, self.micros(now)),
            _ => Taken::Refused,
        }
    }

    fn data(&self, data: Probe, size: usize, now: Instant) -> Taken {
        let Probe::Data { sequence, proof, stamp, urgent } = data else { return Taken::Refused };
        let meter = &self.meter;
        let packets = meter.packets.fetch_add(1, Relaxed) + 1;
        let bytes = meter.bytes.fetch_add(size as u64, Relaxed) + size as u64;
        let micros = self.micros(now);
        let since = Duration::from_micros(micros.saturating_sub(meter.acked_micros.load(Relaxed)).into());
        if !urgent && packets.saturating_sub(meter.acked_packets.load(Relaxed)) < ACK_PACKETS && since < ACK_INTERVAL {
            return Taken::Kept;
        }
        meter.acked_packets.store(packets, Relaxed);
        meter.acked_micros.store(micros, Relaxed);
        Taken::Reply(Probe::Ack { sequence, proof, stamp, micros, packets, bytes }.bytes(self.id()))
    }

    fn ack(&self, ack: Probe, now: Instant) -> Taken {
        let Probe::Ack { sequence, proof, stamp, micros, packets, bytes } = ack else { return Taken::Refused };
        let mut acks = self.acks();
        let old = acks.latest.is_some_and(|latest| sequence <= latest.sequence || packets <= latest.packets);
        if proof != self.proof(sequence) || packets > sequence + 1 {
            return Taken::Refused;
        }
        if old || self.over(now) {
            return Taken::Kept;
        }
        let round_trip = Duration::from_micros(self.micros(now).saturating_sub(stamp).into());
        let acked = Acked { sequence, packets, bytes, micros, round_trip };
        acks.latest = Some(acked);
        // A quarter of the run is left for the window to find its size.
        if now >= self.begin + Duration::from_millis(self.terms.millis.into()) / 4 {
            acks.settled.get_or_insert(acked);
        }
        Taken::Kept
    }

    /// A data packet, to be padded.
    pub fn load(&self, sequence: u64, urgent: bool, now: Instant) -> [u8; PROBE_LEN] {
        let (proof, stamp) = (self.proof(sequence), self.micros(now));
        Probe::Data { sequence, proof, stamp, urgent }.bytes(self.id())
    }

    /// The next echo on a route; `None` when there were enough.
    pub fn echo(&self, route: Route, now: Instant) -> Option<[u8; PROBE_LEN]> {
        let sequence = self.echoes[route as usize].send(self.micros(now))?;
        Some(Probe::Echo { sequence }.bytes(self.id()))
    }

    /// How long echoes took on a route; `None` when none came back.
    pub fn latency(&self, route: Route) -> Option<Latency> {
        self.echoes[route as usize].latency()
    }

    /// What arrived of our load; `None` when too little did.
    pub fn sent_flow(&self) -> Option<Flow> {
        let acks = self.acks();
        let (from, to) = (acks.settled?, acks.latest?);
        let micros = to.micros.saturating_sub(from.micros);
        let (packets, sent) = (to.packets - from.packets, to.sequence - from.sequence);
        (micros > 0 && packets > 0).then(|| Flow {
            bits_per_second: (to.bytes.saturating_sub(from.bytes)).saturating_mul(8_000_000) / u64::from(micros),
            packets,
            // In ten thousandths, which is more than a few thousand packets can tell.
            #[allow(clippy::cast_precision_loss, reason = "a fraction to be shown")]
            loss: (1e4 * (1.0 - packets.min(sent) as f64 / sent.max(1) as f64)).round() / 1e4,
        })
    }

    /// Bytes of load that have arrived so far, as far as this side knows.
    pub fn progress(&self) -> u64 {
        if self.sends { self.acks().latest.map_or(0, |acked| acked.bytes) } else { self.meter.bytes.load(Relaxed) }
    }

    pub(super) fn latest(&self) -> Option<Acked> {
        self.acks().latest
    }

    fn acks(&self) -> MutexGuard<'_, Acks> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn proof(&self, sequence: u64) -> u64 {
        self.salt.hash_one(sequence)
    }

    fn micros(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.begin).as_micros() as u32
    }
}

impl Echoes {
    fn new() -> Self {
        let words = || (0..MAX_ECHOES).map(|_| AtomicU32::new(0)).collect();
        Self { sent: words(), took: words(), next: AtomicU32::new(0) }
    }

    fn send(&self, micros: u32) -> Option<u64> {
        let sequence = self.next.load(Relaxed);
        self.sent.get(sequence as usize)?.store(micros, Relaxed);
        self.next.store(sequence + 1, Relaxed);
        Some(sequence.into())
    }

    fn back(&self, sequence: u64, micros: u32) -> Taken {
        let Some(at) = usize::try_from(sequence).ok().filter(|_| sequence < self.next.load(Relaxed).into()) else {
            return Taken::Refused;
        };
        let took = micros.saturating_sub(self.sent[at].load(Relaxed)).max(1);
        // Of a repeated one the first counts.
        let _ = self.took[at].compare_exchange(0, took, Relaxed, Relaxed);
        Taken::Kept
    }

    fn latency(&self) -> Option<Latency> {
        let sent = self.next.load(Relaxed) as usize;
        let mut took: Vec<u32> = self.took[..sent].iter().map(|took| took.load(Relaxed)).filter(|&t| t > 0).collect();
        took.sort_unstable();
        let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len() - 1)).copied();
        (!took.is_empty()).then(|| Latency {
            sent: sent as u32,
            lost: (sent - took.len()) as u32,
            median_us: at(50).unwrap_or_default(),
            p99_us: at(99).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;

    fn pair(direction: Direction, now: Instant) -> (Run, Run) {
        let terms = Terms { id: RunId([1; 16]), route: Route::Tunnel, direction, millis: 1000 };
        let run = |asker| {
            Run::new(terms, PrivateKey::from_bytes([2; 32]).public_key(), ([192, 0, 2, 1], 1).into(), asker, now)
        };
        (run(true), run(false))
    }

    fn at(millis: u64, start: Instant) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn counts_what_arrives_between_settling_and_the_end() {
        let start = Instant::now();
        let (asker, answerer) = pair(Direction::ToAnswerer, start);
        assert!(asker.sends && !answerer.sends);
        // 1000 bytes each millisecond; of every ten one is lost.
        for millis in 0..1500 {
            let now = at(millis, start);
            let data = asker.load(millis, true, now);
            if millis % 10 == 0 {
                continue;
            }
            match answerer.take(Route::Tunnel, &data, 1000, now) {
                Taken::Reply(ack) => assert_eq!(asker.take(Route::Tunnel, &ack, 64, now), Taken::Kept),
                other => panic!("{other:?}"),
            }
        }
        let flow = asker.sent_flow().unwrap();
        assert!((flow.loss - 0.1).abs() < 0.01, "{flow:?}");
        assert!((7_000_000..7_400_000).contains(&flow.bits_per_second), "{flow:?}");
        assert!((660..680).contains(&flow.packets), "{flow:?}");
        assert_eq!(answerer.sent_flow(), None);
        assert!(asker.over(at(1000, start)) && !asker.over(at(999, start)));
    }

    #[test]
    fn acknowledgements_are_few_unless_asked_for() {
        let start = Instant::now();
        let (asker, answerer) = pair(Direction::ToAnswerer, start);
        let now = at(10, start);
        let replies = |from: u64, count: u64, urgent, now| {
            (from..from + count)
                .filter(|&n| answerer.take(Route::Tunnel, &asker.load(n, urgent, now), 100, now) != Taken::Kept)
                .count()
        };
        assert_eq!(replies(0, 1, false, now), 1, "the first, for time has passed");
        assert_eq!(replies(1, 2 * ACK_PACKETS, false, now), 2);
        assert_eq!(replies(200, 1, true, now), 1);
        assert_eq!(replies(201, 1, false, now), 0);
        assert_eq!(replies(202, 1, false, now + ACK_INTERVAL), 1);
    }

    #[test]
    fn an_acknowledgement_without_the_packet_proves_nothing() {
        let start = Instant::now();
        let (asker, _) = pair(Direction::ToAnswerer, start);
        let honest = asker.load(5, true, start);
        let Some(Probe::Data { proof, stamp, .. }) = Probe::parse(&honest, asker.id()) else { panic!() };
        let ack = |sequence, proof, packets| {
            let ack = Probe::Ack { sequence, proof, stamp, micros: 1, packets, bytes: 1 };
            asker.take(Route::Tunnel, &ack.bytes(asker.id()), 64, start)
        };
        assert_eq!(ack(6, proof, 1), Taken::Refused, "another packet's proof");
        assert_eq!(ack(5, 0, 1), Taken::Refused, "no proof");
        assert_eq!(ack(5, proof, 7), Taken::Refused, "more than was sent");
        assert_eq!(asker.latest(), None);
        assert_eq!(ack(5, proof, 6), Taken::Kept);
        assert!(asker.latest().is_some());
    }

    #[test]
    fn probes_of_another_route_or_direction_are_refused() {
        let start = Instant::now();
        let (asker, answerer) = pair(Direction::ToAnswerer, start);
        let data = asker.load(0, true, start);
        assert_eq!(answerer.take(Route::Bare, &data, 100, start), Taken::Refused);
        assert_eq!(asker.take(Route::Tunnel, &data, 100, start), Taken::Refused, "it sends itself");
        let (idle, _) = pair(Direction::Idle, start);
        assert_eq!(idle.take(Route::Tunnel, &data, 100, start), Taken::Refused);
    }

    #[test]
    fn echoes_are_timed_once_and_bounded() {
        let start = Instant::now();
        let (asker, answerer) = pair(Direction::Idle, start);
        assert_eq!(asker.latency(Route::Bare), None);
        for n in 0..100 {
            let now = at(10 * n, start);
            let echo = asker.echo(Route::Bare, now).unwrap();
            if n == 50 {
                continue;
            }
            let Taken::Reply(back) = answerer.take(Route::Bare, &echo, 64, now) else { panic!() };
            let took = if n == 99 { 9 } else { 2 };
            assert_eq!(asker.take(Route::Bare, &back, 64, at(10 * n + took, start)), Taken::Kept);
            assert_eq!(asker.take(Route::Bare, &back, 64, at(10 * n + 500, start)), Taken::Kept, "a copy");
        }
        let latency = asker.latency(Route::Bare).unwrap();
        assert_eq!(latency, Latency { sent: 100, lost: 1, median_us: 2000, p99_us: 9000 });
        assert_eq!(asker.latency(Route::Tunnel), None);
        let never_sent = Probe::Echoed { sequence: 100 }.bytes(asker.id());
        assert_eq!(asker.take(Route::Bare, &never_sent, 64, start), Taken::Refused);
        while asker.echo(Route::Bare, start).is_some() {}
        let echo = Probe::Echo { sequence: 0 }.bytes(answerer.id());
        let replies = (0..5000).filter(|_| answerer.take(Route::Bare, &echo, 64, start) != Taken::Refused).count();
        assert_eq!(replies, 2 * MAX_ECHOES - 99);
    }
}
