//! How a peer's session comes to be an express one, and ceases to be.
//!
//! | state | what happens | what follows |
//! | --- | --- | --- |
//! | any | a handshake completes | **Ordinary**; data leaves under the new session of WireGuard at once |
//! | Ordinary | a tick, enough data has flowed, this host is the asker and able | Ask; **Asking** |
//! | Asking | a tick, no answer yet | Ask again, ever later; after the last one **Refused** (unanswered) |
//! | Asking | Agree to what was asked | keys; an empty message under them; **Proving** |
//! | Asking | Decline | **Refused** |
//! | any | Ask, this host is the answerer and able | keys; Agree; **Proving** |
//! | any | Ask, otherwise | Decline |
//! | Proving | a tick, the asker | an empty message again; after 40 of them **Refused** (unanswered) |
//! | Proving | a message opens under the keys | data leaves under them; **Express**. The answerer returns an empty message for each |
//! | Express | a message opens under the keys | – |
//! | Proving, Express | Stop for the index that is sent to | **Refused**; data leaves under WireGuard's session |
//! | any | a message under an index that is unknown, or 32 in a row that do not open | Stop, once a second at most |
//! | any | the host or the peer is no longer to | **Ordinary**; Stop as long as messages come |
//! | any | 180 s after the handshake | **Ordinary**; keys are dropped |
//!
//! Keys for receiving stay until they expire, whatever the state: what is under way is opened. All that is said here goes
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
    /// How often keys came into use.
    sessions: u64,
    stopped: Option<Instant>,
}

enum State {
    Ordinary,
    Asking { index: u32, contribution: Contribution, tries: u32, next: Instant },
    Proving { sealer: Arc<Sealer>, receives: u32, role: Role },
    Express { sealer: Arc<Sealer> },
    Refused { standing: Standing },
}

enum Role {
    /// So many empty messages were sent.
    Asker { proofs: u32 },
    /// The Ask may come again, and is answered again with this.
    Answerer { asked_with: Contribution, contribution: Contribution },
}

/// An empty message is to be sealed with this.
pub struct Proof(pub Arc<Sealer>);

impl Agreement {
    /// With a peer that is received under indices of `index`, 23 bits.
    pub fn new(lanes: Arc<Lanes>, index: u32, own: PublicKey, peer: PublicKey, ability: Ability) -> Self {
        let base = INDEX | index << 8;
        let (state, number) = (State::Ordinary, 0);
        Self { lanes, base, number, own, peer, ability, state, expires: None, spare: None, sessions: 0, stopped: None }
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
        self.fall_back(State::Ordinary);
    }

    /// The session of WireGuard is gone.
    pub fn ended(&mut self) {
        self.expires = None;
        self.fall_back(State::Ordinary);
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
        if self.expires.is_some_and(|expires| now >= expires) {
            self.ended();
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
        let (index, reason) = match self.ability {
            // What the keys open is opened until nothing comes any more.
            Ability::Unable(reason) => (received.then_some(self.base | u32::from(self.number))?, reason),
            Ability::Able => {
                self.lanes.forget(stray?);
                (stray?, Reason::Doubt)
            }
        };
        self.stopped = Some(now);
        Some(Message::Stop { index, reason })
    }

    fn prove(&mut self) -> Option<Proof> {
        let State::Proving { sealer, role: Role::Asker { proofs }, .. } = &mut self.state else { return None };
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
    pub fn take(&mut self, body: &[u8]) -> Result<(Option<Message>, Option<Proof>), Unreadable> {
        Ok(match Message::parse(body) {
            Ok(Message::Ask { index, contribution }) => (self.answer(index, contribution), None),
            Ok(Message::Agree { asked, index, contribution }) => (None, self.agreed(asked, index, &contribution)),
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
                }
                (None, None)
            }
            Err(Unreadable::Version { asked }) => (Some(Message::Decline { asked, reason: Reason::Version }), None),
            Err(Unreadable::Malformed) => return Err(Unreadable::Malformed),
        })
    }

    /// A message was opened under this index, the first under its keys or an empty one. What is to be sealed in return.
    pub fn opened(&mut self, index: u32, empty: bool) -> Option<Proof> {
        if let State::Proving { sealer, receives, .. } = &self.state
            && *receives == index
        {
            let sealer = Arc::clone(sealer);
            self.lanes.send_under(Some(Arc::clone(&sealer)));
            self.sessions += 1;
            self.state = State::Express { sealer };
        }
        match &self.state {
            State::Express { sealer } if empty && !self.is_asker() => Some(Proof(Arc::clone(sealer))),
            _ => None,
        }
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

    fn answer(&mut self, theirs: u32, their_contribution: Contribution) -> Option<Message> {
        if let Ability::Unable(reason) = self.ability {
            return Some(Message::Decline { asked: theirs, reason });
        }
        if self.is_asker() {
            return None;
        }
        // The answer may have been lost.
        match &self.state {
            State::Proving { sealer, receives, role: Role::Answerer { asked_with: before, contribution } }
                if sealer.index() == theirs && *before == their_contribution =>
            {
                return Some(Message::Agree { asked: theirs, index: *receives, contribution: contribution.clone() });
            }
            State::Express { sealer } if sealer.index() == theirs => return None,
            _ => {}
        }
        let (expires, contribution) = (self.expires?, self.spare.take()?);
        let index = self.next_index();
        let asker = Party { key: &self.peer, index: theirs, contribution: &their_contribution };
        let answerer = Party { key: &self.own, index, contribution: &contribution };
        let keys = derive(&asker, &answerer);
        self.lanes.receive_under(Opener::new(keys.to_answerer, index, expires));
        let sealer = Arc::new(Sealer::new(keys.to_asker, theirs, expires));
        let answer = Message::Agree { asked: theirs, index, contribution: contribution.clone() };
        self.state = State::Proving {
            sealer,
            receives: index,
            role: Role::Answerer { asked_with: their_contribution, contribution },
        };
        Some(answer)
    }

    fn agreed(&mut self, mine: u32, theirs: u32, contribution: &Contribution) -> Option<Proof> {
        let State::Asking { index: own, contribution: own_contribution, .. } = &self.state else { return None };
        let expires = self.expires.filter(|_| *own == mine)?;
        let asker = Party { key: &self.own, index: mine, contribution: own_contribution };
        let answerer = Party { key: &self.peer, index: theirs, contribution };
        let keys = derive(&asker, &answerer);
        self.lanes.receive_under(Opener::new(keys.to_asker, mine, expires));
        let sealer = Arc::new(Sealer::new(keys.to_answerer, theirs, expires));
        self.state = State::Proving { sealer: Arc::clone(&sealer), receives: mine, role: Role::Asker { proofs: 1 } };
        Some(Proof(sealer))
    }

    fn next_index(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.base | u32::from(self.number)
    }
}
