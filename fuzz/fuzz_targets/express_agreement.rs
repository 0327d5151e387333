//! Two hosts agree on keys while the network loses, repeats and reorders, programs start anew and settings change: what one
//! seals the other opens. And with words that no honest host says: no panic, and no more answers than questions.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use meshd::express::{
    Ability, Agreement, Contribution, LONGEST, Lanes, Message, OVERHEAD, Proof, REJECT_AFTER_TIME, Reason, Sealer,
    Standing,
};
use meshd::key::{PrivateKey, PublicKey};

/// What is under way.
#[derive(Clone)]
enum Item {
    /// Under the session of this number.
    Said(u32, Vec<u8>),
    Sealed(Vec<u8>),
}

struct Side {
    agreement: Agreement,
    lanes: Arc<Lanes>,
    key: PublicKey,
    session: u32,
    received: bool,
}

thread_local! {
    static KEYS: [PublicKey; 2] = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]).public_key());
}

struct Pair {
    sides: [Side; 2],
    now: Instant,
    /// When each handshake was: the number of a session is that of the handshakes so far.
    begun: Vec<Instant>,
    /// To each side.
    way: [Vec<Item>; 2],
    said: usize,
    random: u64,
}

impl Pair {
    fn new() -> Self {
        let keys = KEYS.with(|keys| *keys);
        let side = |at: usize| {
            let lanes = Arc::<Lanes>::default();
            let (key, peer) = (keys[at], keys[1 - at]);
            let agreement = Agreement::new(Arc::clone(&lanes), 7 + at as u32, key, peer, Ability::Able);
            Side { agreement, lanes, key, session: 0, received: false }
        };
        let now = Instant::now();
        let way = [Vec::new(), Vec::new()];
        let mut pair = Self { sides: [side(0), side(1)], now, begun: Vec::new(), way, said: 0, random: 0 };
        pair.supply();
        pair.shake_hands();
        pair
    }

    fn supply(&mut self) {
        for side in &mut self.sides {
            if side.agreement.is_short() {
                self.random += 1;
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&self.random.to_le_bytes());
                side.agreement.supply(Contribution::from_bytes(bytes));
            }
        }
    }

    fn shake_hands(&mut self) {
        self.begun.push(self.now);
        (0..2).for_each(|at| self.establish(at));
    }

    fn session(&self) -> u32 {
        self.begun.len() as u32
    }

    fn age(&self, session: u32) -> Duration {
        self.now - self.begun[session as usize - 1]
    }

    fn establish(&mut self, at: usize) {
        let (own, peer, session) = (self.sides[at].key, self.sides[1 - at].key, self.session());
        let age = self.age(session);
        let side = &mut self.sides[at];
        if side.session != session {
            side.session = session;
            side.agreement.established(own, peer, age, self.now);
        }
    }

    fn put(&mut self, from: usize, (message, proof): (Option<Message>, Option<Proof>)) {
        if let Some(message) = message {
            let mut body = [0; LONGEST];
            let len = message.write(&mut body);
            self.said += 1;
            self.way[1 - from].push(Item::Said(self.sides[from].session, body[..len].to_vec()));
        }
        if let Some(Proof(sealer)) = proof {
            let message = seal(&sealer, &[]);
            self.way[1 - from].push(Item::Sealed(message));
        }
    }

    fn tick(&mut self, at: usize, what: (bool, bool)) {
        let side = &mut self.sides[at];
        let received = std::mem::take(&mut side.received);
        let out = side.agreement.tick(what, received, self.now);
        self.put(at, out);
        self.supply();
    }

    fn take(&mut self, at: usize, item: &Item) {
        match item {
            // Nobody opens what was sealed under a session of WireGuard that has expired.
            Item::Said(session, _) if self.age(*session) >= REJECT_AFTER_TIME => {}
            Item::Said(session, body) => {
                if *session == self.session() {
                    self.establish(at);
                }
                if let Ok(out) = self.sides[at].agreement.take(body, self.now) {
                    self.put(at, out);
                }
            }
            Item::Sealed(message) => {
                self.open(at, message);
            }
        }
    }

    fn open(&mut self, at: usize, message: &[u8]) -> bool {
        let side = &mut self.sides[at];
        let Some(index) = message.get(4..8).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())) else {
            return false;
        };
        let lanes = Arc::clone(&side.lanes);
        let opener = lanes.opener(index);
        let Some(opener) = opener.as_ref().and_then(|opener| opener.as_ref()) else {
            lanes.note_stray(index);
            return false;
        };
        match opener.open(message, &mut vec![0; message.len()], self.now) {
            Ok(len) => {
                side.received = true;
                if len == 0 {
                    self.put(at, (Some(Message::Opened { index }), None));
                }
                true
            }
            Err(_) => {
                if opener.is_doubtful() {
                    lanes.note_stray(index);
                }
                false
            }
        }
    }

    /// A message of data, if there are keys to seal it.
    fn data(&self, from: usize) -> Option<Vec<u8>> {
        let sealer = self.sides[from].lanes.sealer(self.now)?;
        sealer.as_ref().map(|sealer| seal(sealer, b"data"))
    }

    fn run(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now += Duration::from_millis(250);
            (0..2).for_each(|at| self.tick(at, (true, true)));
            while let Some(at) = (0..2).find(|&at| !self.way[at].is_empty()) {
                let item = self.way[at].remove(0);
                self.take(at, &item);
            }
        }
    }

    fn happen(&mut self, op: u8, at: usize, argument: u8) {
        let place = usize::from(argument) % self.way[at].len().max(1);
        match op % 10 {
            0 | 1 => {
                self.now += Duration::from_millis(125);
                self.tick(at, (argument & 1 != 0, argument & 2 != 0));
            }
            2 => self.now += Duration::from_millis(u64::from(argument) * 200),
            3 => {
                self.begun.push(self.now);
                self.establish(at);
            }
            4 => self.establish(at),
            5 => {
                let reasons = [Reason::Off, Reason::NoHardware];
                let able = if argument < 192 { Ability::Able } else { Ability::Unable(reasons[at]) };
                self.sides[at].agreement.set_ability(able);
            }
            6 if !self.way[at].is_empty() => drop(self.way[at].remove(place)),
            7 => {
                // WireGuard's own session would not let it through twice.
                if let Some(item @ Item::Sealed(_)) = self.way[at].get(place).cloned() {
                    self.take(at, &item);
                }
            }
            _ if !self.way[at].is_empty() => {
                let item = self.way[at].remove(place);
                self.take(at, &item);
            }
            _ => {}
        }
    }
}

fn seal(sealer: &Sealer, packet: &[u8]) -> Vec<u8> {
    let mut message = vec![0; packet.len() + OVERHEAD];
    assert_eq!(sealer.seal(packet, &mut message), Some(message.len()));
    message
}

fn honest(bytes: &[u8]) {
    let mut pair = Pair::new();
    for event in bytes.chunks_exact(2) {
        pair.happen(event[0] >> 1, usize::from(event[0] & 1), event[1]);
        for from in 0..2 {
            if let Some(message) = pair.data(from) {
                assert!(pair.open(1 - from, &message), "what one side seals the other does not open");
                assert!(!pair.open(1 - from, &message), "opened twice");
            }
        }
    }
    for side in &mut pair.sides {
        side.agreement.set_ability(Ability::Able);
    }
    pair.supply();
    pair.way = [Vec::new(), Vec::new()];
    // Until no Ask before counts, however many there were.
    pair.now += REJECT_AFTER_TIME;
    pair.shake_hands();
    let all_on = |pair: &Pair| pair.sides.iter().all(|side| side.agreement.snapshot().standing == Standing::On);
    (0..80).find(|_| {
        pair.run(1);
        all_on(&pair)
    });
    assert!(all_on(&pair), "no keys although nothing is lost any more");
}

fn hostile(bytes: &[u8]) {
    let mut pair = Pair::new();
    let mut rest = bytes;
    while let [op, argument, more @ ..] = rest {
        rest = more;
        let (before, at) = (pair.said, usize::from(op & 1));
        match op >> 1 {
            op @ 0..=19 => pair.happen(op, at, *argument),
            op => {
                let (body, more) = rest.split_at(rest.len().min(usize::from(argument % 80)));
                rest = more;
                let item =
                    if op & 1 == 0 { Item::Said(pair.session(), body.to_vec()) } else { Item::Sealed(body.to_vec()) };
                pair.take(at, &item);
            }
        }
        assert!(pair.said <= before + 2, "more answers than questions");
    }
    // Nobody is held up for good.
    pair.way = [Vec::new(), Vec::new()];
    pair.run(4);
}

fuzz_target!(|bytes: &[u8]| {
    match bytes {
        [mode, rest @ ..] if mode & 1 == 0 => honest(rest),
        [_, rest @ ..] => hostile(rest),
        [] => {}
    }
});
