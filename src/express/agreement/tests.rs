//! Two agreements against each other, whose words and messages the test delivers, keeps, loses and repeats.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::{LONGEST, OVERHEAD};
use super::*;
use crate::key::PrivateKey;

const TICK: Duration = Duration::from_millis(250);
const ASKER: usize = 0;
const ANSWERER: usize = 1;
const OFF: Ability = Ability::Unable(Reason::Off);
const IDLE: (bool, bool) = (false, true);
const BUSY: (bool, bool) = (true, true);

/// What is under way to a side.
#[derive(Clone, PartialEq, Eq)]
enum Item {
    /// Under the session of WireGuard of this number.
    Said(u32, Vec<u8>),
    Sealed(Vec<u8>),
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Said(session, body) => {
                write!(f, "{}#{session}", ["Ask", "Agree", "Decline", "Stop", "Opened"][body[1] as usize - 1])
            }
            Self::Sealed(message) => write!(f, "sealed {}", message.len() - OVERHEAD),
        }
    }
}

struct Side {
    agreement: Agreement,
    lanes: Arc<Lanes>,
    key: PublicKey,
    /// The last session of WireGuard that it knows of.
    session: u32,
    /// Messages opened since its last tick, and their number.
    received: bool,
    opened: usize,
}

/// An asker and an answerer.
struct Pair {
    sides: [Side; 2],
    now: Instant,
    /// When the last handshake was, and its number.
    handshake: (Instant, u32),
    /// To each side.
    way: [VecDeque<Item>; 2],
    /// All that was ever said, by whom.
    said: Vec<(usize, u8)>,
    random: u8,
}

impl Pair {
    /// Whose session has just begun.
    fn new() -> Self {
        Self::able([Ability::Able; 2])
    }

    fn able(abilities: [Ability; 2]) -> Self {
        let mut keys = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]).public_key());
        keys.sort();
        let side = |own: usize| {
            let lanes = Arc::<Lanes>::default();
            let (key, peer) = (keys[own], keys[1 - own]);
            let agreement = Agreement::new(Arc::clone(&lanes), 0x1000 + own as u32, key, peer, abilities[own]);
            Side { agreement, lanes, key, session: 0, received: false, opened: 0 }
        };
        let now = Instant::now();
        let (way, said) = ([VecDeque::new(), VecDeque::new()], Vec::new());
        let mut pair = Self { sides: [side(0), side(1)], now, handshake: (now, 0), way, said, random: 0 };
        pair.supply();
        pair.shake_hands();
        pair
    }

    /// As the device does after each tick.
    fn supply(&mut self) {
        for side in &mut self.sides {
            if side.agreement.is_short() {
                self.random = self.random.wrapping_add(1);
                side.agreement.supply(Contribution::from_bytes([self.random; 32]));
            }
        }
    }

    fn shake_hands(&mut self) {
        self.handshake = (self.now, self.handshake.1 + 1);
        (0..2).for_each(|side| self.establish(side));
    }

    fn establish(&mut self, at: usize) {
        let peer = self.sides[1 - at].key;
        let (since, session) = self.handshake;
        let side = &mut self.sides[at];
        if side.session != session {
            side.session = session;
            side.agreement.established(side.key, peer, self.now - since, self.now);
        }
    }

    fn put(&mut self, from: usize, (message, proof): (Option<Message>, Option<Proof>)) {
        if let Some(message) = message {
            let mut body = [0; LONGEST];
            let len = message.write(&mut body);
            self.said.push((from, body[1]));
            self.way[1 - from].push_back(Item::Said(self.sides[from].session, body[..len].to_vec()));
        }
        if let Some(Proof(sealer)) = proof {
            self.seal(from, &sealer, &[]);
        }
    }

    fn seal(&mut self, from: usize, sealer: &Sealer, packet: &[u8]) {
        let mut message = vec![0; packet.len() + OVERHEAD];
        sealer.seal(packet, &mut message).unwrap();
        self.way[1 - from].push_back(Item::Sealed(message));
    }

    /// Seals data as workers do. False when it leaves under WireGuard's session.
    fn send(&mut self, from: usize) -> bool {
        let lanes = Arc::clone(&self.sides[from].lanes);
        let sealer = lanes.sealer(self.now);
        let sealer = sealer.as_ref().and_then(|sealer| sealer.as_ref());
        if let Some(sealer) = sealer {
            self.seal(from, sealer, b"data");
        }
        sealer.is_some()
    }

    fn tick(&mut self, at: usize, what: (bool, bool)) {
        let side = &mut self.sides[at];
        let received = std::mem::take(&mut side.received);
        let out = side.agreement.tick(what, received, self.now);
        self.put(at, out);
        self.supply();
    }

    /// Hands one item over; whether it was of use.
    fn take(&mut self, at: usize, item: &Item) -> bool {
        match item {
            Item::Said(session, body) => {
                if *session == self.handshake.1 {
                    self.establish(at);
                }
                let taken = self.sides[at].agreement.take(body, self.now);
                assert!(taken.is_ok());
                self.put(at, taken.unwrap_or_default());
                true
            }
            Item::Sealed(message) => self.open(at, message),
        }
    }

    fn open(&mut self, at: usize, message: &[u8]) -> bool {
        let side = &mut self.sides[at];
        let index = u32::from_le_bytes(*message[4..].first_chunk().unwrap());
        let lanes = Arc::clone(&side.lanes);
        let Some(opener) = lanes.opener(index) else {
            side.lanes.note_stray(index);
            return false;
        };
        let opener = opener.as_ref().unwrap();
        let Ok(len) = opener.open(message, &mut vec![0; message.len()], self.now) else {
            if opener.is_doubtful() {
                side.lanes.note_stray(index);
            }
            return false;
        };
        (side.received, side.opened) = (true, side.opened + 1);
        if len == 0 {
            self.put(at, (Some(Message::Opened { index }), None));
        }
        true
    }

    /// Delivers all that is under way and what follows from it.
    fn deliver(&mut self) {
        while let Some(at) = (0..2).find(|&at| !self.way[at].is_empty()) {
            let item = self.way[at].pop_front().unwrap();
            self.take(at, &item);
        }
    }

    fn lose(&mut self) {
        self.way.iter_mut().for_each(VecDeque::clear);
    }

    /// Time passes with data, and nothing is lost.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            (0..2).for_each(|at| self.tick(at, BUSY));
            self.deliver();
        }
    }

    fn standings(&self) -> [Standing; 2] {
        [0, 1].map(|at| self.sides[at].agreement.snapshot().standing)
    }

    /// Whether what each side seals now the other one opens; none where it leaves under WireGuard's session.
    fn arrives(&mut self) -> [Option<bool>; 2] {
        [0, 1].map(|from| {
            let before = self.way[1 - from].len();
            self.send(from).then(|| {
                let item = self.way[1 - from].remove(before).unwrap();
                let Item::Sealed(message) = item else { unreachable!() };
                self.open(1 - from, &message)
            })
        })
    }

    fn said(&self, by: usize, op: u8) -> usize {
        self.said.iter().filter(|said| **said == (by, op)).count()
    }
}

const ASK: u8 = 1;
const AGREE: u8 = 2;
const DECLINE: u8 = 3;
const STOP: u8 = 4;

/// Both under express keys.
fn fast() -> Pair {
    let mut pair = Pair::new();
    pair.run(SECOND);
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
    pair
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn one_ask_one_agree_and_both_are_on() {
    let pair = fast();
    assert_eq!([pair.said(ASKER, ASK), pair.said(ANSWERER, AGREE)], [1, 1]);
    assert_eq!([pair.said(ANSWERER, ASK), pair.said(ASKER, AGREE)], [0, 0], "the lower key asks");
    assert_eq!([0, 1].map(|at| pair.sides[at].agreement.snapshot().sessions), [1, 1]);
}

#[test]
fn row_by_row() {
    let mut pair = Pair::new();
    // Ordinary, and not enough has flowed, or it is not the asker.
    pair.tick(ASKER, IDLE);
    pair.tick(ANSWERER, BUSY);
    assert_eq!(pair.standings(), [Standing::Idle; 2]);
    assert!(pair.way.iter().all(VecDeque::is_empty));
    // Ordinary to Asking.
    pair.tick(ASKER, BUSY);
    assert_eq!(pair.standings(), [Standing::Asking, Standing::Idle]);
    // Any state to Proving: Ask.
    let ask = pair.way[ANSWERER].pop_front().unwrap();
    pair.take(ANSWERER, &ask);
    assert_eq!(pair.standings(), [Standing::Asking, Standing::Proving]);
    assert_eq!(pair.arrives(), [None, None]);
    // Asking to Proving: Agree.
    let agree = pair.way[ASKER].pop_front().unwrap();
    pair.take(ASKER, &agree);
    assert_eq!(pair.standings(), [Standing::Proving; 2]);
    assert_eq!(pair.arrives(), [None, None], "nothing is proven");
    // Proving to Express, one direction after the other.
    let proof = pair.way[ANSWERER].pop_front().unwrap();
    assert!(pair.take(ANSWERER, &proof));
    assert_eq!(pair.standings(), [Standing::Proving; 2]);
    let opened = pair.way[ASKER].pop_back().unwrap();
    pair.take(ASKER, &opened);
    assert_eq!(pair.standings(), [Standing::On, Standing::Proving]);
    assert_eq!(pair.arrives(), [Some(true), None]);
    pair.deliver();
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
    // Any state to Ordinary: a handshake. What is under way is opened.
    assert!(pair.send(ASKER) && pair.send(ANSWERER));
    pair.shake_hands();
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::Idle; 2], [None; 2]));
    let under_way = pair.way.clone();
    assert!((0..2).all(|at| pair.take(at, &under_way[at][0])));
    pair.lose();
    // And from there to new keys.
    pair.run(SECOND);
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
    // Any state to Ordinary: 180 s, or the session's end.
    pair.now += REJECT_AFTER_TIME;
    assert_eq!(pair.arrives(), [None; 2], "not even before the tick");
    (0..2).for_each(|at| pair.tick(at, BUSY));
    assert_eq!(pair.standings(), [Standing::Idle; 2]);
    assert!(pair.way.iter().all(VecDeque::is_empty), "without a session none asks");
    pair.shake_hands();
    pair.run(SECOND);
    pair.sides[ASKER].agreement.ended();
    assert_eq!((pair.standings()[ASKER], pair.arrives()), (Standing::Idle, [None, Some(false)]));
}

#[test]
fn who_is_not_answered_asks_six_times_or_a_stranger_twice() {
    for (agent, times) in [(true, 6), (false, 2)] {
        let mut pair = Pair::new();
        for _ in 0..4 * 100 {
            pair.now += TICK;
            pair.tick(ASKER, (true, agent));
            pair.lose();
        }
        assert_eq!((pair.said(ASKER, ASK), pair.standings()[ASKER]), (times, Standing::Unanswered));
        // Another handshake, another try.
        pair.shake_hands();
        pair.run(SECOND);
        assert_eq!(pair.standings(), [Standing::On; 2]);
    }
}

#[test]
fn every_message_may_get_lost_once_or_twice() {
    // All that goes one way in the first so many ticks is lost.
    for (lost, at) in (1..5).flat_map(|lost| [(lost, ASKER), (lost, ANSWERER)]) {
        let mut pair = Pair::new();
        for tick in 0..16 {
            pair.now += TICK;
            (0..2).for_each(|side| pair.tick(side, BUSY));
            if tick < lost {
                pair.way[at].clear();
            }
            pair.deliver();
        }
        assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]), "{lost} to {at}");
    }
}

#[test]
fn the_same_ask_gets_the_same_answer() {
    let mut pair = Pair::new();
    pair.tick(ASKER, BUSY);
    let ask = pair.way[ANSWERER].pop_front().unwrap();
    let answers: Vec<_> = (0..5)
        .map(|_| {
            pair.take(ANSWERER, &ask);
            pair.supply();
            pair.way[ASKER].drain(..).find(|item| matches!(item, Item::Said(..))).unwrap()
        })
        .collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    for answer in &answers {
        assert!(pair.take(ASKER, answer));
    }
    pair.run(SECOND);
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
    // And when all is agreed, none.
    pair.take(ANSWERER, &ask);
    pair.shake_hands();
    pair.take(ANSWERER, &ask);
    assert!(pair.way[ASKER].is_empty());
    pair.run(SECOND);
    assert_eq!(pair.arrives(), [Some(true); 2]);
}

#[test]
fn however_many_asks_were_lost_the_next_one_is_not_late() {
    let mut pair = Pair::new();
    pair.run(SECOND);
    assert_eq!(pair.standings(), [Standing::On; 2]);
    for _ in 0..200 {
        pair.now += SECOND;
        pair.shake_hands();
        pair.tick(ASKER, BUSY);
        pair.lose();
    }
    pair.shake_hands();
    pair.run(SECOND);
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
}

#[test]
fn a_late_ask_makes_no_keys() {
    let mut pair = Pair::new();
    pair.tick(ASKER, BUSY);
    let ask = pair.way[ANSWERER][0].clone();
    pair.run(SECOND);
    let late = [ask, Item::Said(1, vec![1, 5, 0, 0, 1, 0, 0x10, 0x80])];
    pair.shake_hands();
    pair.tick(ASKER, BUSY);
    let next = pair.way[ANSWERER].pop_front().unwrap();
    pair.take(ANSWERER, &next);
    pair.lose();
    // What was said of the former keys is not believed of others under the same index.
    for item in &late {
        pair.take(ANSWERER, item);
    }
    assert_eq!((pair.arrives(), pair.said(ANSWERER, AGREE)), ([None; 2], 2));
    pair.run(10 * SECOND);
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
}

#[test]
fn an_empty_message_may_overtake_what_it_is_agreed_by() {
    let mut pair = Pair::new();
    pair.tick(ASKER, BUSY);
    let ask = pair.way[ANSWERER].pop_front().unwrap();
    pair.take(ANSWERER, &ask);
    let agree = pair.way[ASKER].pop_front().unwrap();
    assert!(matches!(pair.way[ASKER][0], Item::Sealed(_)));
    pair.deliver();
    pair.now += TICK;
    pair.tick(ASKER, BUSY);
    pair.take(ASKER, &agree);
    pair.run(SECOND);
    assert_eq!((pair.said(ASKER, STOP), pair.standings()), (0, [Standing::On; 2]));
}

#[test]
fn an_answer_to_something_else_is_none() {
    let mut pair = Pair::new();
    pair.tick(ASKER, BUSY);
    let ask = pair.way[ANSWERER].pop_front().unwrap();
    pair.take(ANSWERER, &ask);
    let agree = pair.way[ASKER].pop_front().unwrap();
    pair.lose();
    // The asker has asked again since, in another session of WireGuard.
    pair.shake_hands();
    pair.tick(ASKER, BUSY);
    pair.take(ASKER, &agree);
    assert_eq!(pair.standings()[ASKER], Standing::Asking);
    pair.run(SECOND);
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
    // An old Agree, Decline or Stop changes nothing.
    pair.take(ASKER, &agree);
    for message in [
        Message::Decline { asked: 0, reason: Reason::Off },
        Message::Decline { asked: INDEX | 0x1000 << 8 | 1, reason: Reason::Off },
        Message::Stop { index: INDEX | 0x1001 << 8 | 1, reason: Reason::Doubt },
        Message::Opened { index: INDEX | 0x1001 << 8 | 1 },
    ] {
        let mut body = [0; LONGEST];
        let len = message.write(&mut body);
        pair.take(ASKER, &Item::Said(2, body[..len].to_vec()));
    }
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
}

#[test]
fn who_will_not_says_so() {
    for (side, reason) in [(ASKER, Reason::Off), (ANSWERER, Reason::NoHardware)] {
        let mut abilities = [Ability::Able; 2];
        abilities[side] = Ability::Unable(reason);
        let mut pair = Pair::able(abilities);
        pair.run(20 * SECOND);
        let mut standings = [Standing::There(reason); 2];
        standings[side] = Standing::Here(reason);
        assert_eq!((pair.standings(), pair.arrives()), (standings, [None; 2]));
        assert_eq!((pair.said(side, DECLINE), pair.said.len()), (1, if side == ASKER { 1 } else { 2 }));
        // Not to what may be no agent.
        let mut pair = Pair::able([OFF, Ability::Able]);
        pair.tick(ASKER, (true, false));
        assert!(pair.said.is_empty());
    }
}

#[test]
fn another_version_is_declined() {
    let mut pair = Pair::new();
    pair.take(ANSWERER, &Item::Said(1, [&[2, 1, 0, 0, 1, 2, 3, 0x80][..], &[9; 70]].concat()));
    assert_eq!(pair.way[ASKER], [Item::Said(1, vec![1, 3, Reason::Version as u8, 0, 1, 2, 3, 0x80])]);
    pair.tick(ASKER, BUSY);
    let Item::Said(_, ask) = pair.way[ANSWERER].pop_front().unwrap() else { unreachable!() };
    pair.way[ASKER].clear();
    pair.take(ASKER, &Item::Said(1, vec![1, 3, Reason::Version as u8, 0, ask[4], ask[5], ask[6], ask[7]]));
    assert_eq!(pair.standings()[ASKER], Standing::There(Reason::Version));
}

#[test]
fn switched_off_the_other_is_told_until_it_has_heard() {
    for side in 0..2 {
        let mut pair = fast();
        pair.said.clear();
        assert!(!pair.sides[side].agreement.set_ability(OFF));
        assert_eq!(pair.arrives(), if side == ASKER { [None, Some(true)] } else { [Some(true), None] });
        // Three seconds in which what it says is lost, and what the other sends is opened.
        for _ in 0..12 {
            pair.now += TICK;
            assert!(pair.send(1 - side));
            pair.deliver();
            pair.tick(side, BUSY);
            pair.lose();
        }
        assert_eq!(pair.said(side, STOP), 3);
        assert!(pair.send(1 - side));
        pair.run(SECOND);
        assert_eq!((pair.standings()[1 - side], pair.arrives()), (Standing::There(Reason::Off), [None; 2]));
        let said = pair.said.len();
        pair.run(100 * SECOND);
        assert_eq!((pair.said.len(), pair.said(side, DECLINE)), (said, usize::from(side == ASKER)));
        // On again: the asker asks, and the answerer has to ask for a handshake.
        assert_eq!(pair.sides[side].agreement.set_ability(Ability::Able), side == ANSWERER);
        assert!(!pair.sides[side].agreement.set_ability(Ability::Able), "once");
        pair.supply();
        if side == ANSWERER {
            pair.shake_hands();
        }
        pair.run(SECOND);
        assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
    }
}

#[test]
fn an_unknown_index_or_failed_tags_end_it() {
    for forged in [false, true] {
        let mut pair = fast();
        if forged {
            for _ in 0..32 {
                pair.send(ANSWERER);
                let Item::Sealed(mut message) = pair.way[ASKER].pop_back().unwrap() else { unreachable!() };
                message[18] ^= 1;
                assert!(!pair.open(ASKER, &message));
            }
        } else {
            pair.sides[ASKER].lanes.clear();
            assert_eq!(pair.arrives(), [None, Some(false)]);
        }
        pair.sides[ASKER].received = false;
        pair.run(SECOND);
        assert_eq!(pair.said(ASKER, STOP), 1);
        assert_eq!(pair.standings()[ANSWERER], Standing::There(Reason::Doubt));
        assert_eq!(pair.arrives()[ANSWERER], None);
    }
}

#[test]
fn forgeries_beside_what_opens_are_not_believed() {
    let mut pair = fast();
    for _ in 0..400 {
        pair.now += TICK;
        assert!(pair.send(ANSWERER));
        let item = pair.way[ASKER].pop_back().unwrap();
        let Item::Sealed(message) = &item else { unreachable!() };
        assert!(pair.take(ASKER, &item));
        for bit in 0..40 {
            let mut altered = message.clone();
            (altered[8 + bit / 8], altered[30]) = (altered[8 + bit / 8].wrapping_add(1), altered[30] ^ 1);
            assert!(!pair.open(ASKER, &altered));
        }
        (0..2).for_each(|at| pair.tick(at, BUSY));
        pair.deliver();
    }
    assert_eq!((pair.said(ASKER, STOP), pair.standings()), (0, [Standing::On; 2]));
}

#[test]
fn a_stop_a_second_at_most() {
    let mut pair = fast();
    for n in 0..400u32 {
        pair.now += TICK;
        pair.sides[ASKER].lanes.note_stray(INDEX | 0x1000 << 8 | (n & 0xff));
        pair.tick(ASKER, BUSY);
    }
    assert_eq!(pair.said(ASKER, STOP), 100);
}

#[test]
fn empty_messages_that_nobody_confirms_end_after_ten_seconds() {
    let mut pair = Pair::new();
    let mut sealed = 0;
    for _ in 0..400 {
        pair.now += TICK;
        (0..2).for_each(|at| pair.tick(at, BUSY));
        // What is said arrives, what is sealed does not.
        while let Some(at) = (0..2).find(|&at| !pair.way[at].is_empty()) {
            match pair.way[at].pop_front().unwrap() {
                Item::Sealed(_) => sealed += 1,
                said @ Item::Said(..) => {
                    pair.take(at, &said);
                }
            }
        }
    }
    assert_eq!((sealed, pair.said.len()), (2 * PROOFS as usize, 2));
    assert_eq!((pair.standings(), pair.arrives()), ([Standing::Unanswered; 2], [None; 2]));
}

#[test]
fn the_keys_of_the_hosts_are_in_the_keys() {
    // Whoever knows both contributions, and has other keys than the two believe, derives others.
    let mut pair = Pair::new();
    let elsewhere = PrivateKey::from_bytes([9; 32]).public_key();
    let peer = pair.sides[ASKER].key.min(elsewhere);
    let own = pair.sides[ANSWERER].key.max(elsewhere);
    pair.sides[ANSWERER].agreement.established(own, peer, Duration::ZERO, pair.now);
    pair.run(SECOND);
    assert_ne!(pair.standings(), [Standing::On; 2]);
    assert_eq!(pair.arrives(), [None; 2]);
}

/// What may happen.
#[derive(Debug, Clone)]
enum Event {
    Tick(usize, bool),
    Pass(u32),
    Handshake(usize),
    Establish(usize),
    Able(usize, bool),
    /// The item of that place goes to a side, and stays under way when it is repeated.
    Deliver(usize, usize, bool),
    Lose(usize, usize),
    Send(usize),
}

fn events() -> impl Strategy<Value = Event> {
    let side = 0..2usize;
    prop_oneof![
        6 => (side.clone(), any::<bool>()).prop_map(|(at, busy)| Event::Tick(at, busy)),
        1 => (0..20_000u32).prop_map(Event::Pass),
        1 => side.clone().prop_map(Event::Handshake),
        1 => side.clone().prop_map(Event::Establish),
        1 => (side.clone(), any::<bool>()).prop_map(|(at, able)| Event::Able(at, able)),
        12 => (side.clone(), 0..3usize, any::<bool>()).prop_map(|(at, place, again)| Event::Deliver(at, place, again)),
        1 => (side.clone(), 0..3usize).prop_map(|(at, place)| Event::Lose(at, place)),
        2 => side.prop_map(Event::Send),
    ]
}

impl Pair {
    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Tick(at, busy) => {
                self.now += TICK / 2;
                self.tick(at, (busy, true));
            }
            Event::Pass(millis) => self.now += Duration::from_millis(millis.into()),
            Event::Handshake(first) => {
                self.handshake = (self.now, self.handshake.1 + 1);
                self.establish(first);
            }
            Event::Establish(at) => self.establish(at),
            Event::Able(at, able) => {
                // The handshake that this may ask for is among the events.
                self.sides[at].agreement.set_ability(if able { Ability::Able } else { OFF });
            }
            Event::Deliver(at, place, again) => {
                let Some(item) = self.way[at].get(place).cloned() else { return };
                // Repeated by the network: under WireGuard's session that is not believed.
                let repeated = again && matches!(item, Item::Sealed(_));
                let before = self.sides[at].opened;
                self.take(at, &item);
                if repeated {
                    let once = self.sides[at].opened;
                    self.take(at, &item);
                    assert_eq!(self.sides[at].opened, once, "opened twice, {before} before");
                }
                self.way[at].retain({
                    let mut n = 0;
                    move |_| {
                        n += 1;
                        n != place + 1
                    }
                });
            }
            Event::Lose(at, place) => drop(self.way[at].remove(place)),
            Event::Send(from) => {
                self.send(from);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever is lost, late or repeated: what one seals the other one opens, and in the end both are on.
    #[test]
    fn nobody_seals_what_the_other_cannot_open(events in proptest::collection::vec(events(), 1..300)) {
        let mut pair = Pair::new();
        for event in &events {
            pair.happen(event);
            // Without disturbing what is under way.
            for (from, arrives) in pair.arrives().into_iter().enumerate() {
                prop_assert!(arrives != Some(false), "{} seals what does not open after {:?}", from, event);
            }
        }
        pair.deliver();
        for at in 0..2 {
            pair.sides[at].agreement.set_ability(Ability::Able);
        }
        pair.supply();
        pair.now += 2 * SECOND;
        pair.shake_hands();
        pair.run(20 * SECOND);
        prop_assert_eq!((pair.standings(), pair.arrives()), ([Standing::On; 2], [Some(true); 2]));
        prop_assert!(pair.said.len() < 8 * events.len() + 100);
    }
}
