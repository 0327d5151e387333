//! Requests and answers between this agent and others, over packets that get lost.
//!
//! In any order: [`Exchange::ask`] begins a request, [`Exchange::receive`] takes every message that arrives,
//! [`Exchange::due`] says what is to be sent again or has failed; call it by [`Exchange::next_due`]. What these hand out
//! is sent by the caller. A request is answered by [`Exchange::answer`], at once or later.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use super::{Kind, MAX_BODY, Message};
use crate::key::PublicKey;

/// Between the tries of one request, and from the last to giving up. Together a little longer than WireGuard takes to
/// repeat a handshake (REKEY_TIMEOUT and its jitter: 5.33 s), which the first try may have to wait for.
const TRIES: [Duration; 8] = [
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
];
/// Requests under way; the next is refused.
const MAX_ASKED: usize = 256;
/// Answers kept for requests that are repeated, the oldest are forgotten first.
const MAX_ANSWERED: usize = 64;

/// A message and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Whose agent.
    pub peer: PublicKey,
    /// As in [`Message`].
    pub kind: Kind,
    /// As in [`Message`].
    pub answer: bool,
    /// As in [`Message`].
    pub id: u32,
    /// As in [`Message`].
    pub body: Vec<u8>,
    /// How long its packet is to be at least, in bytes; of one that came in, how long it was.
    pub size: u16,
}

impl Letter {
    /// As it is sent.
    pub fn message(&self) -> Message<'_> {
        Message { kind: self.kind, answer: self.answer, id: self.id, body: &self.body }
    }
}

/// What became due.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Send this again.
    Send(Letter),
    /// The request of this id had no answer and is forgotten.
    GaveUp(u32),
}

/// What an arrived message means.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// The answer to the request of this id, which is over.
    Answer(u32),
    /// A request, to be answered under its id.
    Request,
    /// A request that was answered before: send this.
    Again(Letter),
    /// An answer that nobody waits for.
    Stray,
}

/// All requests of this agent and the answers it gave.
#[derive(Debug)]
pub struct Exchange {
    next_id: u32,
    asked: HashMap<u32, Asked>,
    answered: VecDeque<Letter>,
}

#[derive(Debug)]
struct Asked {
    letter: Letter,
    tries: usize,
    due: Instant,
}

impl Exchange {
    /// Nothing asked yet. Ids begin anywhere, so that a restarted agent's first requests are not taken for repetitions.
    pub fn new() -> Self {
        let next_id = RandomState::new().hash_one(0) as u32;
        Self { next_id, asked: HashMap::new(), answered: VecDeque::new() }
    }

    /// Begins a request; the first copy to send comes back. `None` when too many are under way, or the body is longer
    /// than [`MAX_BODY`].
    pub fn ask(&mut self, peer: PublicKey, kind: Kind, body: Vec<u8>, now: Instant) -> Option<&Letter> {
        self.ask_in(0, peer, kind, body, now)
    }

    /// The same in a packet of `size` bytes at least.
    pub fn ask_in(&mut self, size: u16, peer: PublicKey, kind: Kind, body: Vec<u8>, now: Instant) -> Option<&Letter> {
        if self.asked.len() >= MAX_ASKED || body.len() > MAX_BODY {
            return None;
        }
        let id = self.id();
        let letter = Letter { peer, kind, answer: false, id, body, size };
        let asked = self.asked.entry(id).insert_entry(Asked { letter, tries: 0, due: now + TRIES[0] });
        Some(&asked.into_mut().letter)
    }

    /// An id for a message that is not a request of [`Exchange::ask`]: an answer to it is a stray.
    pub fn id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }

    /// Takes a message that came from `peer`.
    pub fn receive(&mut self, peer: &PublicKey, message: &Message<'_>) -> Received {
        if message.answer {
            let ours = |asked: &Asked| asked.letter.peer == *peer && asked.letter.kind == message.kind;
            if !self.asked.get(&message.id).is_some_and(ours) {
                return Received::Stray;
            }
            self.asked.remove(&message.id);
            return Received::Answer(message.id);
        }
        let same = |letter: &&Letter| letter.peer == *peer && letter.id == message.id && letter.kind == message.kind;
        match self.answered.iter().find(same) {
            Some(letter) => Received::Again(letter.clone()),
            None => Received::Request,
        }
    }

    /// Answers a request of `peer`; the letter to send comes back, and is kept for when the request is repeated.
    pub fn answer(&mut self, peer: PublicKey, kind: Kind, id: u32, body: Vec<u8>) -> &Letter {
        self.answer_in(0, peer, kind, id, body)
    }

    /// The same in a packet of `size` bytes at least.
    pub fn answer_in(&mut self, size: u16, peer: PublicKey, kind: Kind, id: u32, body: Vec<u8>) -> &Letter {
        if self.answered.len() >= MAX_ANSWERED {
            self.answered.pop_front();
        }
        self.answered.push_back(Letter { peer, kind, answer: true, id, body, size });
        &self.answered[self.answered.len() - 1]
    }

    /// What is to be done now.
    pub fn due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        self.asked.retain(|&id, asked| {
            if asked.due > now {
                return true;
            }
            asked.tries += 1;
            let Some(&wait) = TRIES.get(asked.tries) else {
                due.push(Due::GaveUp(id));
                return false;
            };
            asked.due = now + wait;
            due.push(Due::Send(asked.letter.clone()));
            true
        });
        due
    }

    /// When to call [`Exchange::due`] next.
    pub fn next_due(&self) -> Option<Instant> {
        self.asked.values().map(|asked| asked.due).min()
    }
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::PrivateKey;

    fn key(seed: u8) -> PublicKey {
        PrivateKey::from_bytes([seed; 32]).public_key()
    }

    fn message(letter: &Letter) -> Message<'_> {
        letter.message()
    }

    #[test]
    fn a_request_is_repeated_and_then_given_up() {
        let (mut exchange, start) = (Exchange::new(), Instant::now());
        let id = exchange.ask(key(1), Kind::Hello, vec![1], start).unwrap().id;
        let (mut sent, mut gave_up) = (1, None);
        while let Some(now) = exchange.next_due() {
            for due in exchange.due(now) {
                match due {
                    Due::Send(letter) => {
                        assert_eq!((letter.id, letter.body), (id, vec![1]));
                        sent += 1;
                    }
                    Due::GaveUp(given_up) => gave_up = Some((given_up, now - start)),
                }
            }
        }
        assert_eq!((sent, gave_up), (TRIES.len(), Some((id, TRIES.iter().sum()))));
    }

    #[test]
    fn an_answer_counts_once_and_from_whom_was_asked() {
        let (mut exchange, now) = (Exchange::new(), Instant::now());
        let id = exchange.ask(key(1), Kind::Hello, vec![], now).unwrap().id;
        let answer = Message { kind: Kind::Hello, answer: true, id, body: &[] };
        assert_eq!(exchange.receive(&key(2), &answer), Received::Stray, "another peer");
        assert_eq!(
            exchange.receive(&key(1), &Message { kind: Kind::Bench, ..answer }),
            Received::Stray,
            "another kind"
        );
        assert_eq!(exchange.receive(&key(1), &answer), Received::Answer(id));
        assert_eq!(exchange.receive(&key(1), &answer), Received::Stray, "a second time");
        assert_eq!(exchange.next_due(), None);
    }

    #[test]
    fn a_repeated_request_is_answered_as_before() {
        let mut exchange = Exchange::new();
        let request = Message { kind: Kind::Bench, answer: false, id: 5, body: &[] };
        assert_eq!(exchange.receive(&key(1), &request), Received::Request);
        let answer = exchange.answer(key(1), Kind::Bench, 5, vec![7]).clone();
        assert_eq!(exchange.receive(&key(1), &request), Received::Again(answer));
        assert_eq!(exchange.receive(&key(2), &request), Received::Request, "another peer's");
        assert_eq!(exchange.receive(&key(1), &Message { id: 6, ..request }), Received::Request, "another request");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut exchange, now) = (Exchange::new(), Instant::now());
        let begun = (0..1000).filter(|_| exchange.ask(key(1), Kind::Hello, vec![], now).is_some()).count();
        assert_eq!(begun, MAX_ASKED);
        for id in 0..1000 {
            exchange.answer(key(1), Kind::Hello, id, vec![]);
        }
        assert_eq!(exchange.answered.len(), MAX_ANSWERED);
    }

    proptest! {
        /// Two agents over a network that loses, repeats and reorders: each request reaches the other once, and is
        /// answered unless all its copies or answers were lost.
        #[test]
        fn requests_are_carried_out_once(dice in prop::collection::vec(0u8..100, 400)) {
            let (mut asker, mut answerer, mut now) = (Exchange::new(), Exchange::new(), Instant::now());
            let mut dice = dice.into_iter().cycle();
            let mut wire: Vec<Letter> = Vec::new();
            let mut carried_out = HashMap::new();
            let mut over = 0;
            for body in 0..10 {
                wire.push(asker.ask(key(2), Kind::Bench, vec![body], now).unwrap().clone());
            }
            while let Some(next) = asker.next_due() {
                while !wire.is_empty() {
                    let letter = wire.swap_remove(usize::from(dice.next().unwrap()) % wire.len());
                    if dice.next().unwrap() < 40 {
                        continue;
                    }
                    if dice.next().unwrap() < 20 {
                        wire.push(letter.clone());
                    }
                    if letter.answer {
                        if let Received::Answer(_) = asker.receive(&key(2), &message(&letter)) {
                            over += 1;
                        }
                        continue;
                    }
                    match answerer.receive(&key(1), &message(&letter)) {
                        Received::Request => {
                            *carried_out.entry(letter.body[0]).or_insert(0) += 1;
                            wire.push(answerer.answer(key(1), letter.kind, letter.id, vec![]).clone());
                        }
                        Received::Again(answer) => wire.push(answer),
                        other => panic!("{other:?}"),
                    }
                }
                now = now.max(next);
                for due in asker.due(now) {
                    match due {
                        Due::Send(letter) => wire.push(letter),
                        Due::GaveUp(_) => over += 1,
                    }
                }
            }
            prop_assert_eq!(over, 10);
            prop_assert!(carried_out.values().all(|&times| times == 1));
        }
    }
}
