//! The direct path to a peer that is reached through another, its relay: found, checked, used, given up.
//!
//! 1. One side asks the relay for a *meeting* ([`Request::Meet`]). The relay tells each where it hears the other from, at
//!    nearly the same moment: it *calls* the other side ([`Request::Call`]), and answers the one that asked.
//! 2. Both send handshake initiations to there at once and again. The first ones open the own NAT, for a packet that went
//!    out lets the answers in; then one of them arrives.
//! 3. Both *check* the path ([`Check`]). As in BFD (RFC 5880), each says what it heard last of the other. A check of ours that
//!    is known to have been heard went there, and the news of it came back: that proves both directions, to both sides.
//! 4. From the first such proof on packets go straight to the peer. The checks go on each second. When the latest proof is
//!    of a check that was sent too long ago, packets go by the relay again at once, and there is another meeting later.
//!
//! ```text
//!            it is time, or something changed            told where
//!  Waiting ───────────────────────────────────▶ Asking ─────────────▶ Opening
//!     ▲ ▲ ▲                                       │ no answer         │   │ a check of ours was heard
//!     │ │ └───────────────────────────────────────┘                   │   ▼
//!     │ └─────────────────────────────────────────────────────────────┘  Direct
//!     └───────────────── no proof for SILENCE ◀───────────────────────────┘
//! ```
//!
//! A call leads to Opening from anywhere, a check of the other side from Waiting and Asking: it has found a way. Once the
//! other side is heard, no more initiations are sent. A check that was
//! sent by another [`Check::run`], or a call, says that the other side knows of no direct path (it was restarted, or gave up),
//! so it takes Direct back to Opening.
//!
//! [`Direct`] is one peer's. Feed it what arrives, call [`Direct::due`] by [`Direct::next_due`], and carry out what comes
//! back, in order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::key::PublicKey;

/// When initiations are sent, counted from the beginning of Opening.
const CALLS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
];
/// For so long Opening waits for a proof.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between checks while there is no proof yet.
const OPENING_CHECK: Duration = Duration::from_millis(250);
/// Between checks of a path that is used.
const CHECK: Duration = Duration::from_secs(1);
/// A path is given up when the last check that is known to have been heard was sent so long ago: three checks after it
/// were lost.
pub const SILENCE: Duration = Duration::from_millis(3500);
/// Checks whose time of sending is known. Of those that are older nothing is worth knowing.
const REMEMBERED: usize = 16;
/// For the relay's answer, which waits for the other side's.
const ASKING: Duration = Duration::from_secs(8);
/// Before the next meeting after one that led to nothing, doubled each time, and at most.
const RETRY: Duration = Duration::from_secs(5);
const LATEST_RETRY: Duration = Duration::from_secs(60);
/// A path that held so long starts the count anew.
const STEADY: Duration = Duration::from_secs(30);
/// Two meetings are never closer than this, whatever changes.
const RESPITE: Duration = Duration::from_secs(1);
/// A call that comes so soon after the path was found belongs to a meeting that it made needless.
const CROSSED: Duration = Duration::from_secs(2);
/// Addresses that are tried for one peer.
pub const MAX_ADDRESSES: usize = 4;

/// What one agent asks another about direct paths, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// To the relay: arrange a meeting with this peer. Answered by [`Answer`].
    Meet {
        /// Whom.
        peer: PublicKey,
        /// The asker's address on its own network, for a peer on the same one.
        local: Option<SocketAddr>,
    },
    /// From the relay: this peer calls from there, call it. Answered by [`Answer`].
    Call {
        /// Who.
        peer: PublicKey,
        /// Where the relay hears it from, and perhaps where it is on its own network.
        at: Vec<SocketAddr>,
    },
    /// To the peer over the direct path. Not answered.
    Check(Check),
}

/// What is answered to [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// By the relay: the peer calls, call it there.
    Met {
        /// As in [`Request::Call`].
        at: Vec<SocketAddr>,
    },
    /// By the peer: it is about to call.
    Coming {
        /// As in [`Request::Meet`].
        local: Option<SocketAddr>,
    },
    /// By either: no.
    Refused,
}

/// A sign of life, and what the sender has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A number that the sender drew when it started.
    pub run: u32,
    /// One more each time.
    pub n: u32,
    /// The latest `run` and `n` of the other side that it heard.
    pub heard: Option<(u32, u32)>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Ask the relay for a meeting; say how it went by [`Direct::call`] or [`Direct::refused`].
    Meet,
    /// Send a handshake initiation to each of these.
    Call(Vec<SocketAddr>),
    /// Send this to the peer itself.
    Check(Check),
    /// Send packets straight to the peer from here on, or by the relay.
    Use(bool),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The next meeting is at this time.
    Waiting(Instant),
    /// The relay was asked at this time.
    Asking(Instant),
    Opening {
        began: Instant,
        at: Vec<SocketAddr>,
        /// The next of [`CALLS`].
        call: usize,
    },
    /// Since when.
    Direct(Instant),
}

/// The way to one peer.
#[derive(Debug)]
pub struct Direct {
    /// Drawn for this agent's process.
    run: u32,
    state: State,
    /// Meetings in a row that led to nothing lasting.
    failed: u32,
    last_meeting: Option<Instant>,
    /// Something changed during the meeting under way.
    again: bool,
    n: u32,
    /// The latest checks and when they were sent.
    sent: VecDeque<(u32, Instant)>,
    next_check: Instant,
    /// The other side's latest run and number.
    heard: Option<(u32, u32)>,
    /// When the latest check that is known to have been heard was sent.
    proof: Option<Instant>,
}

impl Direct {
    /// Nothing known; the first meeting is due at once. `run` is random.
    pub const fn new(run: u32, now: Instant) -> Self {
        Self {
            run,
            state: State::Waiting(now),
            failed: 0,
            last_meeting: None,
            again: false,
            n: 0,
            sent: VecDeque::new(),
            next_check: now,
            heard: None,
            proof: None,
        }
    }

    /// When [`Direct::due`] has something to say.
    pub fn next_due(&self) -> Instant {
        match &self.state {
            State::Waiting(until) => *until,
            State::Asking(since) => *since + ASKING,
            State::Opening { began, at, call } => {
                let end = *began + PATIENCE;
                let call = CALLS
                    .get(*call)
                    .filter(|_| !at.is_empty() && self.heard.is_none())
                    .map_or(end, |after| *began + *after);
                call.min(self.next_check).min(end)
            }
            State::Direct(since) => self.next_check.min(self.proof.unwrap_or(*since) + SILENCE),
        }
    }

    /// What is due.
    pub fn due(&mut self, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        match &mut self.state {
            State::Waiting(until) if now >= *until => {
                self.last_meeting = Some(now);
                self.state = State::Asking(now);
                acts.push(Act::Meet);
            }
            State::Asking(since) if now >= *since + ASKING => self.wait(now),
            State::Opening { began, .. } if now >= *began + PATIENCE => self.wait(now),
            State::Opening { began, at, call } => {
                let initiates = !at.is_empty() && self.heard.is_none();
                if initiates && CALLS.get(*call).is_some_and(|after| now >= *began + *after) {
                    *call += 1;
                    acts.push(Act::Call(at.clone()));
                }
                self.check_if_due(OPENING_CHECK, now, &mut acts);
            }
            State::Direct(since) if now >= self.proof.unwrap_or(*since) + SILENCE => {
                acts.push(Act::Use(false));
                self.wait(now);
            }
            State::Direct(_) => self.check_if_due(CHECK, now, &mut acts),
            State::Waiting(_) | State::Asking(_) => {}
        }
        acts
    }

    /// The other side calls, or is about to: it is at one of these addresses. Without any, the direct path was not found.
    pub fn call(&mut self, at: Vec<SocketAddr>, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        match &self.state {
            _ if at.is_empty() => self.refused(now),
            State::Direct(since) if now < *since + CROSSED => {}
            // Both asked: there is one meeting, and it goes on.
            State::Opening { began, at: before, .. } if *before == at && now < *began + RESPITE => {}
            _ => {
                if matches!(self.state, State::Direct(_)) {
                    acts.push(Act::Use(false));
                }
                self.open(at, now);
                acts.extend(self.due(now));
            }
        }
        acts
    }

    /// The relay arranges no meeting.
    pub fn refused(&mut self, now: Instant) {
        if matches!(self.state, State::Asking(_)) {
            self.wait(now);
        }
    }

    /// Something changed that makes another meeting worthwhile now: the relay is back, or this host is somewhere else.
    pub fn retry(&mut self, now: Instant) {
        self.failed = 0;
        match &mut self.state {
            State::Waiting(until) => *until = self.last_meeting.map_or(now, |last| now.max(last + RESPITE)),
            State::Asking(_) | State::Opening { .. } => self.again = true,
            State::Direct(_) => {}
        }
    }

    /// The session is another one: what was found is lost.
    pub fn restart(&mut self, now: Instant) {
        if matches!(self.state, State::Direct(_)) {
            self.wait(now);
            self.retry(now);
        }
    }

    /// Takes a check that came under the peer's own session.
    pub fn heard(&mut self, check: &Check, now: Instant) -> Vec<Act> {
        let mut acts = Vec::new();
        let before = self.heard;
        let same_run = before.is_some_and(|(run, _)| run == check.run);
        if before.is_none_or(|(run, n)| run != check.run || n < check.n) {
            self.heard = Some((check.run, check.n));
        }
        match &self.state {
            State::Waiting(_) | State::Asking(_) => {
                self.open(Vec::new(), now);
                self.heard = Some((check.run, check.n));
            }
            // It has begun anew since, so it uses no path that it has no proof of.
            State::Direct(_) if !same_run => {
                acts.push(Act::Use(false));
                self.open(Vec::new(), now);
                self.heard = Some((check.run, check.n));
            }
            _ => {}
        }
        let sent = |n| self.sent.iter().find(|(sent, _)| *sent == n).map(|(_, at)| *at);
        let proof = check.heard.filter(|(run, _)| *run == self.run).and_then(|(_, n)| sent(n));
        self.proof = self.proof.max(proof);
        let fresh = self.proof.is_some_and(|proof| now < proof + SILENCE);
        let found = fresh && matches!(self.state, State::Opening { .. });
        if found {
            self.state = State::Direct(now);
            self.again = false;
            acts.push(Act::Use(true));
        }
        // What the other side waits for: that it is heard, and that its word of us was.
        if found || !same_run {
            self.next_check = now;
            self.check_if_due(if found { CHECK } else { OPENING_CHECK }, now, &mut acts);
        }
        acts
    }

    /// Whether packets go straight to the peer.
    pub const fn is_direct(&self) -> bool {
        matches!(self.state, State::Direct(_))
    }

    fn open(&mut self, mut at: Vec<SocketAddr>, now: Instant) {
        at.truncate(MAX_ADDRESSES);
        self.state = State::Opening { began: now, at, call: 0 };
        (self.next_check, self.heard, self.proof) = (now, None, None);
        // Proofs are of checks of this opening.
        self.sent.clear();
    }

    fn wait(&mut self, now: Instant) {
        if let State::Direct(since) = self.state
            && now >= since + STEADY
        {
            self.failed = 0;
        }
        let wait = (RETRY * 2u32.pow(self.failed.min(8))).min(LATEST_RETRY);
        self.failed += 1;
        self.state = State::Waiting(now + wait);
        if std::mem::take(&mut self.again) {
            self.retry(now);
        }
    }

    fn check_if_due(&mut self, interval: Duration, now: Instant, acts: &mut Vec<Act>) {
        if now < self.next_check {
            return;
        }
        self.n = self.n.wrapping_add(1);
        if self.sent.len() >= REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((self.n, now));
        self.next_check = now + interval;
        acts.push(Act::Check(Check { run: self.run, n: self.n, heard: self.heard }));
    }
}

#[cfg(test)]
mod tests;
