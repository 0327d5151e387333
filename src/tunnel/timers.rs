//! The whitepaper's timers (section 6) where packets leave and come under two kinds of session.
//!
//! boringtun keeps them for its own packets, and knows of no others. What it does not see is kept here, looked at with each
//! tick: whether anything moved since the one before, and under which kind.
//!
//! | | **owes** an answer since | **waits** for one since | **unheard** since |
//! | --- | --- | --- | --- |
//! | a packet left under WireGuard's own session | – | – | |
//! | one came under it | | – | – |
//! | data left under express keys | | now, if not set | now, if not set |
//! | data came under express keys | now, if not set | – | |
//! | a handshake completes | – | – | – |
//! | for 5 s | an empty packet under WireGuard's session; – | | |
//! | for 15 s | | a handshake; – | |
//! | for 16 s | | | data leaves under WireGuard's session; – |
//!
//! So whoever sends is answered within five seconds, whichever way data flows, and that is both sessions' passive keepalive
//! (after KEEPALIVE_TIMEOUT at the latest, says the whitepaper) and the sign of life that boringtun goes by. Who is not
//! answered within KEEPALIVE_TIMEOUT + REKEY_TIMEOUT begins a handshake. And whose express messages do not arrive, although
//! all else does, hears of none under WireGuard's session. The rest is as in the whitepaper: who began the last
//! handshake begins the next one when data left 120 s after it or later, or came 165 s after it; and either does when a key has sealed as
//! much as it should. Retries are boringtun's own.

use std::time::{Duration, Instant};

/// REKEY_AFTER_TIME.
pub(super) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// KEEPALIVE_TIMEOUT + REKEY_TIMEOUT.
const DEAD: Duration = Duration::from_secs(15);
/// REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT.
const REKEY_ON_RECEIVING: Duration = Duration::from_secs(165);
/// Half of KEEPALIVE_TIMEOUT: one answer may get lost before anybody takes the other for dead.
const ANSWER: Duration = Duration::from_secs(5);
/// Three answers, and longer than [`DEAD`].
const UNHEARD: Duration = Duration::from_secs(16);

/// One peer's.
#[derive(Debug, Default)]
pub(super) struct Timers {
    owes: Option<Instant>,
    waits: Option<Instant>,
    unheard: Option<Instant>,
    initiator: bool,
    /// Data has moved since the last handshake.
    flowed: bool,
}

/// What moved since the last tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Anything, under WireGuard's own session.
    pub(super) own: Ways,
    /// Packets of others than the agents, under either.
    pub(super) data: Ways,
    /// All but empty messages, under express keys.
    pub(super) express: Ways,
    /// Any message came under express keys.
    pub(super) opened: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ways {
    pub(super) sent: bool,
    pub(super) received: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Handshake,
    Keepalive,
    /// Data is to leave under WireGuard's own session.
    Fallback,
}

impl Timers {
    /// A handshake has completed; this host began it, or the peer did.
    pub(super) fn established(&mut self, initiator: bool) {
        *self = Self { initiator, ..Self::default() };
    }

    /// Whether data has moved since the last handshake.
    pub(super) fn flowed(&self) -> bool {
        self.flowed
    }

    /// What is due, with a session of this age; `worn` when its keys have done enough.
    pub(super) fn tick(
        &mut self,
        moved: Moved,
        (age, worn): (Option<Duration>, bool),
        rekey_after: Duration,
        now: Instant,
    ) -> Option<Due> {
        self.flowed |= moved.data.sent || moved.data.received;
        // In an order that errs towards an answer too many.
        if moved.own.sent {
            self.owes = None;
        }
        if moved.express.received {
            self.owes.get_or_insert(now);
        }
        if moved.own.received || moved.express.received {
            self.waits = None;
        }
        if moved.own.received {
            self.unheard = None;
        }
        if moved.express.sent {
            self.waits.get_or_insert(now);
            self.unheard.get_or_insert(now);
        }
        let over =
            |since: Option<Instant>, time| since.is_some_and(|since| now.saturating_duration_since(since) >= time);
        let age = age?;
        let Ways { sent, received } = moved.data;
        let old =
            self.initiator && (sent && age >= rekey_after || received && age >= REKEY_ON_RECEIVING.max(rekey_after));
        if over(self.waits, DEAD) {
            self.waits = None;
            return Some(Due::Handshake);
        }
        if old || worn {
            return Some(Due::Handshake);
        }
        if over(self.unheard, UNHEARD) {
            self.unheard = None;
            return Some(Due::Fallback);
        }
        if over(self.owes, ANSWER) {
            self.owes = None;
            return Some(Due::Keepalive);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Ways = Ways { sent: true, received: false };
    const RECEIVED: Ways = Ways { sent: false, received: true };
    const TICK: Duration = Duration::from_millis(250);
    const FRESH: (Option<Duration>, bool) = (Some(Duration::ZERO), false);

    /// When what is due, with `moved` at each tick for which `at` says so.
    fn run(timers: &mut Timers, moved: Moved, at: impl Fn(u32) -> bool, ticks: u32) -> Vec<(u32, Due)> {
        let start = Instant::now();
        let step = |tick| {
            let moved = if at(tick) { moved } else { Moved::default() };
            timers.tick(moved, FRESH, REKEY_AFTER_TIME, start + TICK * tick).map(|due| (tick, due))
        };
        (0..ticks).filter_map(step).collect()
    }

    #[test]
    fn what_comes_is_answered_after_five_seconds_and_again() {
        let moved = Moved { express: RECEIVED, ..Moved::default() };
        let due = run(&mut Timers::default(), moved, |_| true, 50);
        assert_eq!(due, [(20, Due::Keepalive), (41, Due::Keepalive)]);
        assert_eq!(run(&mut Timers::default(), moved, |tick| tick == 3, 100), [(23, Due::Keepalive)]);
    }

    #[test]
    fn who_answers_under_wireguard_owes_nothing() {
        let moved = Moved { express: RECEIVED, ..Moved::default() };
        let mut timers = Timers::default();
        let now = Instant::now();
        timers.tick(moved, FRESH, REKEY_AFTER_TIME, now);
        timers.tick(Moved { own: SENT, ..Moved::default() }, FRESH, REKEY_AFTER_TIME, now + TICK);
        assert_eq!(timers.tick(Moved::default(), FRESH, REKEY_AFTER_TIME, now + ANSWER * 2), None);
    }

    #[test]
    fn who_is_not_answered_begins_a_handshake() {
        let moved = Moved { express: SENT, ..Moved::default() };
        assert_eq!(run(&mut Timers::default(), moved, |_| true, 62), [(60, Due::Handshake)]);
        let due = run(&mut Timers::default(), moved, |tick| tick == 0, 200);
        assert_eq!(due, [(60, Due::Handshake), (64, Due::Fallback)]);
        for answer in
            [Moved { own: RECEIVED, ..moved }, Moved { express: Ways { sent: true, received: true }, ..moved }]
        {
            let due = run(&mut Timers::default(), answer, |tick| tick % 50 == 0, 200);
            assert!(!due.iter().any(|(_, due)| *due == Due::Handshake), "{due:?}");
        }
    }

    #[test]
    fn whose_messages_alone_do_not_arrive_falls_back() {
        let both = Ways { sent: true, received: true };
        let moved = Moved { express: both, ..Moved::default() };
        let due = run(&mut Timers::default(), moved, |_| true, 66);
        assert_eq!(due.last(), Some(&(64, Due::Fallback)), "{due:?}");
        let heard = Moved { own: RECEIVED, express: both, ..Moved::default() };
        let due = run(&mut Timers::default(), heard, |_| true, 200);
        assert!(!due.iter().any(|(_, due)| *due == Due::Fallback), "{due:?}");
    }

    #[test]
    fn whoever_began_the_last_handshake_begins_the_next() {
        let now = Instant::now();
        let age = |seconds| (Some(Duration::from_secs(seconds)), false);
        let sent = Moved { data: SENT, ..Moved::default() };
        let received = Moved { data: RECEIVED, ..Moved::default() };
        for (initiator, moved, seconds, due) in [
            (true, sent, 119, None),
            (true, sent, 120, Some(Due::Handshake)),
            (true, received, 164, None),
            (true, received, 165, Some(Due::Handshake)),
            (true, Moved::default(), 179, None),
            (false, sent, 179, None),
            (false, received, 179, None),
        ] {
            let mut timers = Timers::default();
            timers.established(initiator);
            assert_eq!(timers.tick(moved, age(seconds), REKEY_AFTER_TIME, now), due, "{initiator} {moved:?} {seconds}");
        }
        let mut timers = Timers::default();
        timers.established(false);
        assert_eq!(timers.tick(sent, (Some(TICK), true), REKEY_AFTER_TIME, now), Some(Due::Handshake), "worn");
    }
}
