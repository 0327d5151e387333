//! How a peer's session comes to be an express one, and ceases to be.
//!
//! | state | what happens | what follows |
//! | --- | --- | --- |
//! | any | a handshake completes | **Ordinary**; data leaves under the new session of WireGuard at once |
//! | Ordinary | a tick, enough data has flowed, this host is the asker and able | Ask; **Asking** |
//! | Asking | a tick, no answer yet | Ask again, ever later; after the last one **Refused** (unanswered) |
//! | Asking | Agree to what was asked | keys; **Proving** |
//! | Asking | Decline | **Refused** |
//! | any | Ask, this host is the answerer and able | keys; Agree; **Proving**. The same Ask again: the same Agree, while **Proving**. An earlier one: nothing |
//! | any | Ask, otherwise | Decline |
//! | Proving | each tick, and at once | an empty message under the keys; after 40 of them **Refused** (unanswered) |
//! | any | an empty message opens | Opened |
//! | Proving | Opened for the index that is sent to | data leaves under the keys; **Express** |
//! | Proving, Express | Stop for the index that is sent to | **Refused**; data leaves under WireGuard's session |
//! | any | a message under an index that is unknown and not asked for, or 32 in a row that do not open; and none that opens since the tick before | Stop, once a second at most |
//! | any | 2 s after a Stop for doubt, said or heard, and ever later; the asker | **Ordinary** |
//! | any | the host or the peer is no longer to | **Ordinary**; Stop as long as messages come |
//! | Express | for 16 s nothing tells that what leaves under the keys arrives | **Refused** (unanswered) |
//! | Express | 2^39 bytes are sealed | **Ordinary** |
//! | any | 180 s after the handshake, or its session is gone | **Ordinary**; keys are dropped |
//!
//! So each direction is proven by itself. Keys for receiving stay until they expire, whatever the state: what is under way is
//! opened. All that is said here goes
//! under WireGuard's own session. The asker is the one with the lower public key, so that two never ask at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cipher::{Opener, Sealer};
use super::keys::{Contribution, Party, derive};
use super::lanes::Lanes;
use super::message::{Message, Unreadable};
use super::{Ability, INDEX, REJECT_AFTER_TIME, Reason, Snapshot, Standing};
use crate::key::PublicKey;

/// From one Ask to the second, and twice that to the third. More than a round trip around the earth.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Of an agent, and of one that may be none.
const TRIES: u32 = 6;
const TRIES_OF_A_STRANGER: u32 = 2;
/// Empty messages under new keys: ten seconds of them.
const PROOFS: u32 = 40;
/// Between a doubt and the next Ask, at first; it doubles so often.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: u32 = 4;
/// Between two Stops.
const STOP_INTERVAL: Duration = Duration::from_secs(1);

/// One peer's; for one thread at a time.
pub struct Agreement {
    lanes: Arc<Lanes>,
    /// The upper 24 bits of the indices under which the peer is received.
    base: u32,
    /// The lower 8 bits of the next one.
    number: u8,
    own: PublicKey,
    peer: PublicKey,
    ability: Ability,
    state: State,
    expires: Option<Instant>,
    /// For the next message that needs one, so that no random numbers are asked for where packets wait.
    spare: Option<Contribution>,
    /// Under which index the peer asked when it was answered last, and when.
    answered: Option<(u32, Instant)>,
    /// How often keys came into use.
    sessions: u64,
    stopped: Option<Instant>,
    /// The asker asks anew then, and has had to so often under this session of WireGuard.
    anew: Option<Instant>,
    doubts: u32,
}

enum State {
    Ordinary,
    Asking { index: u32, contribution: Contribution, tries: u32, next: Instant },
    Proving { sealer: Arc<Sealer>, proofs: u32, answered: Option<Answered> },
    Express { sealer: Arc<Sealer> },
    Refused { standing: Standing },
}

/// An Ask may come again, and is answered again as it was.
struct Answered {
    asked_with: Contribution,
    index: u32,
    contribution: Contribution,
}

/// An empty message is to be sealed with this.
pub struct Proof(pub Arc<Sealer>);

impl Agreement {
    /// With a peer that is received under indices of `index`, 23 bits.
    pub fn new(lanes: Arc<Lanes>, index: u32, own: PublicKey, peer: PublicKey, ability: Ability) -> Self {
        Self {
            lanes,
            base: INDEX | index << 8,
            number: 0,
            own,
            peer,
            ability,
            state: State::Ordinary,
            expires: None,
            spare: None,
            answered: None,
            sessions: 0,
            stopped: None,
            anew: None,
            doubts: 0,
        }
    }

    /// Whether it has no contribution for what comes next; then [`Agreement::supply`] it.
    pub fn is_short(&self) -> bool {
        self.spare.is_none() && self.ability == Ability::Able
    }

    /// See [`Agreement::is_short`].
    pub fn supply(&mut self, contribution: Contribution) {
        self.spare = Some(contribution);
    }

    /// What is known of it now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { standing: self.standing(), counts: self.lanes.counts(), sessions: self.sessions }
    }

    fn standing(&self) -> Standing {
        match (&self.state, self.ability) {
            (_, Ability::Unable(reason)) => Standing::Here(reason),
            (State::Ordinary, _) => Standing::Idle,
            (State::Asking { .. }, _) => Standing::Asking,
            (State::Proving { .. }, _) => Standing::Proving,
            (State::Express { .. }, _) => Standing::On,
            (State::Refused { standing }, _) => *standing,
        }
    }

    /// Follows what is configured. True when a handshake is wanted, as the other side is the one to ask after it.
    pub fn set_ability(&mut self, ability: Ability) -> bool {
        if ability == self.ability {
            return false;
        }
        self.ability = ability;
        self.fall_back(State::Ordinary);
        ability == Ability::Able && !self.is_asker()
    }

    /// A handshake has completed between these keys, whose session is so old.
    pub fn established(&mut self, own: PublicKey, peer: PublicKey, age: Duration, now: Instant) {
        (self.own, self.peer) = (own, peer);
        self.expires = Some(now + REJECT_AFTER_TIME.saturating_sub(age));
        (self.anew, self.doubts) = (None, 0);
        self.fall_back(State::Ordinary);
    }

    /// The session of WireGuard is gone, and with it what was agreed in it.
    pub fn ended(&mut self) {
        if self.expires.take().is_some() {
            self.fall_back(State::Ordinary);
            self.lanes.clear();
        }
    }

    /// Nothing that leaves under the keys arrives, it seems.
    pub fn unheard(&mut self) {
        if matches!(self.state, State::Express { .. }) {
            self.fall_back(State::Refused { standing: Standing::Unanswered });
        }
    }

    /// Runs at least four times a second. `flowed` says whether enough data has since the handshake, `agent` whether the peer's
    /// agent ever wrote, `received` whether anything has come under express keys since the last tick. What is to be said
    /// comes back, and what is to be proven.
    pub fn tick(
        &mut self,
        (flowed, agent): (bool, bool),
        received: bool,
        now: Instant,
    ) -> (Option<Message>, Option<Proof>) {
        self.lanes.expire(now);
        // Worn out before a handshake came.
        if matches!(&self.state, State::Express { sealer } if !sealer.is_fresh(now)) {
            self.fall_back(State::Ordinary);
        }
        if self.expires.is_some_and(|expires| now >= expires) {
            self.ended();
        }
        if self.anew.is_some_and(|anew| now >= anew) {
            self.anew = None;
            self.fall_back(State::Ordinary);
        }
        if let Some(stop) = self.stop(received, now) {
            return (Some(stop), None);
        }
        let ask = if flowed && self.expires.is_some() && self.is_asker() { self.ask(agent, now) } else { None };
        (ask, self.prove())
    }

    fn stop(&mut self, received: bool, now: Instant) -> Option<Message> {
        let stray = self.lanes.take_stray();
        if self.stopped.is_some_and(|stopped| now.saturating_duration_since(stopped) < STOP_INTERVAL) {
            return None;
        }
        // What the keys open is opened all the same, until nothing comes any more.
        let (index, reason) = match self.ability {
            Ability::Unable(reason) => (received.then_some(self.base | u32::from(self.number))?, reason),
            Ability::Able => (stray.filter(|&index| self.is_in_doubt(index, received))?, Reason::Doubt),
        };
        if reason == Reason::Doubt {
            self.doubt(now);
        }
        self.stopped = Some(now);
        Some(Message::Stop { index, reason })
    }

    /// What was agreed is no good: other keys may be, after a pause that grows, for somebody may want them to be agreed on
    /// for ever.
    fn doubt(&mut self, now: Instant) {
        if self.is_asker() && self.anew.is_none() {
            self.anew = Some(now + FIRST_PAUSE * (1 << self.doubts));
            self.doubts = (self.doubts + 1).min(LONGEST_PAUSE);
        }
    }

    /// Whether what came under this index and did not open speaks against what was agreed. Beside what does it is forged.
    fn is_in_doubt(&self, index: u32, received: bool) -> bool {
        if received {
            return false;
        }
        match self.lanes.opener(index) {
            Some(opener) => opener.as_ref().is_some_and(|opener| opener.is_doubtful()),
            // An empty message may overtake the Agree.
            None => !matches!(&self.state, State::Asking { index: asked, .. } if *asked == index),
        }
    }

    fn prove(&mut self) -> Option<Proof> {
        let State::Proving { sealer, proofs, .. } = &mut self.state else { return None };
        *proofs += 1;
        let proof = Proof(Arc::clone(sealer));
        if *proofs > PROOFS {
            self.state = State::Refused { standing: Standing::Unanswered };
            return None;
        }
        Some(proof)
    }

    /// Takes a message of the peer's. The answer comes back, and what is to be proven.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn take(&mut self, body: &[u8], now: Instant) -> Result<(Option<Message>, Option<Proof>), Unreadable> {
        Ok(match Message::parse(body) {
            Ok(Message::Ask { index, contribution }) => (self.answer(index, contribution, now), self.prove()),
            Ok(Message::Agree { asked, index, contribution }) => {
                self.agreed(asked, index, &contribution);
                (None, self.prove())
            }
            Ok(Message::Opened { index }) => {
                if let State::Proving { sealer, .. } = &self.state
                    && sealer.index() == index
                {
                    let sealer = Arc::clone(sealer);
                    self.lanes.send_under(Some(Arc::clone(&sealer)));
                    self.sessions += 1;
                    self.state = State::Express { sealer };
                }
                (None, None)
            }
            Ok(Message::Decline { asked, reason }) => {
                let expected = match &self.state {
                    State::Asking { index, .. } => *index == asked,
                    State::Ordinary => asked == 0,
                    _ => false,
                };
                if expected {
                    self.state = State::Refused { standing: Standing::There(reason) };
                }
                (None, None)
            }
            Ok(Message::Stop { index, reason }) => {
                let sealer = match &self.state {
                    State::Proving { sealer, .. } | State::Express { sealer } => Some(sealer),
                    _ => None,
                };
                if sealer.is_some_and(|sealer| sealer.index() == index) {
                    self.fall_back(State::Refused { standing: Standing::There(reason) });
                    if reason == Reason::Doubt {
                        self.doubt(now);
                    }
                }
                (None, None)
            }
            Err(Unreadable::Version { asked }) => (Some(Message::Decline { asked, reason: Reason::Version }), None),
            Err(Unreadable::Malformed) => return Err(Unreadable::Malformed),
        })
    }

    fn is_asker(&self) -> bool {
        self.own < self.peer
    }

    fn fall_back(&mut self, state: State) {
        self.lanes.send_under(None);
        self.state = state;
    }

    fn ask(&mut self, agent: bool, now: Instant) -> Option<Message> {
        if let Ability::Unable(reason) = self.ability {
            // Once, to an agent, so that its operator can see why.
            let news = agent && matches!(self.state, State::Ordinary);
            self.state = State::Refused { standing: Standing::Here(reason) };
            return news.then_some(Message::Decline { asked: 0, reason });
        }
        if matches!(self.state, State::Ordinary) {
            let contribution = self.spare.take()?;
            self.state = State::Asking { index: self.next_index(), contribution, tries: 0, next: now };
        }
        let State::Asking { index, contribution, tries, next } = &mut self.state else { return None };
        if now < *next {
            return None;
        }
        if *tries == if agent { TRIES } else { TRIES_OF_A_STRANGER } {
            self.state = State::Refused { standing: Standing::Unanswered };
            return None;
        }
        *next = now + FIRST_WAIT * (1 << *tries);
        *tries += 1;
        Some(Message::Ask { index: *index, contribution: contribution.clone() })
    }

    fn answer(&mut self, theirs: u32, their_contribution: Contribution, now: Instant) -> Option<Message> {
        if let Ability::Unable(reason) = self.ability {
            return Some(Message::Decline { asked: theirs, reason });
        }
        if self.is_asker() {
            return None;
        }
        // The answer may have been lost.
        match &self.state {
            State::Proving { sealer, answered: Some(answered), .. }
                if sealer.index() == theirs && answered.asked_with == their_contribution =>
            {
                let (index, contribution) = (answered.index, answered.contribution.clone());
                return Some(Message::Agree { asked: theirs, index, contribution });
            }
            // Two sets of keys under one index could be taken for each other.
            _ if self.is_late(theirs, now) => return None,
            _ => {}
        }
        let (expires, contribution) = (self.expires?, self.spare.take()?);
        self.answered = Some((theirs, now));
        let index = self.next_index();
        let asker = Party { key: &self.peer, index: theirs, contribution: &their_contribution };
        let answerer = Party { key: &self.own, index, contribution: &contribution };
        let keys = derive(&asker, &answerer);
        self.lanes.receive_under(Opener::new(keys.to_answerer, index, expires));
        let sealer = Arc::new(Sealer::new(keys.to_asker, theirs, expires));
        let answer = Message::Agree { asked: theirs, index, contribution: contribution.clone() };
        let before = Answered { asked_with: their_contribution, index, contribution };
        self.fall_back(State::Proving { sealer, proofs: 0, answered: Some(before) });
        Some(answer)
    }

    /// Whether this Ask is the one that was answered last or one before it: the number in an index grows. After 180 s no
    /// session opens such a one any more, and the number may have come round.
    fn is_late(&self, theirs: u32, now: Instant) -> bool {
        let answered = self.answered.filter(|(_, at)| now.saturating_duration_since(*at) < REJECT_AFTER_TIME);
        answered.is_some_and(|(last, _)| last >> 8 == theirs >> 8 && (last as u8).wrapping_sub(theirs as u8) < 128)
    }

    fn agreed(&mut self, mine: u32, theirs: u32, contribution: &Contribution) {
        let State::Asking { index, contribution: own_contribution, .. } = &self.state else { return };
        let Some(expires) = self.expires.filter(|_| *index == mine) else { return };
        let asker = Party { key: &self.own, index: mine, contribution: own_contribution };
        let answerer = Party { key: &self.peer, index: theirs, contribution };
        let keys = derive(&asker, &answerer);
        self.lanes.receive_under(Opener::new(keys.to_asker, mine, expires));
        let sealer = Arc::new(Sealer::new(keys.to_answerer, theirs, expires));
        self.state = State::Proving { sealer, proofs: 0, answered: None };
    }

    fn next_index(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.base | u32::from(self.number)
    }
}

#[cfg(not(feature = "loom"))]
#[cfg(test)]
mod tests;
