//! The vectors of `tests/vectors/express.json`, which another implementation has made.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::OVERHEAD;
use super::cipher::{Opener, Refused, Sealer};
use super::keys::{Contribution, Party, cipher, derive_bytes};
use super::message::{LONGEST, Message, Unreadable};
use crate::channel::{self, Kind, address};
use crate::key::{PrivateKey, PublicKey};

const DIRECTIONS: [&str; 2] = ["asker_to_answerer", "answerer_to_asker"];

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors/express.json")).unwrap()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} of {value}"))
}

fn bytes(value: &Value, name: &str) -> Vec<u8> {
    let digits = text(value, name).as_bytes();
    assert_eq!(digits.len() % 2, 0, "{name}");
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn array<const N: usize>(value: &Value, name: &str) -> [u8; N] {
    bytes(value, name).try_into().unwrap()
}

fn list<'v>(vectors: &'v Value, name: &str) -> &'v [Value] {
    let list = vectors[name].as_array().unwrap();
    assert!(!list.is_empty(), "{name}");
    list
}

struct Side {
    key: PublicKey,
    index: u32,
    contribution: Contribution,
}

impl Side {
    fn of(vectors: &Value, name: &str) -> Self {
        let side = &vectors[name];
        let key = PrivateKey::from_bytes(array(side, "private_key")).public_key();
        assert_eq!(key.as_bytes()[..], bytes(side, "public_key"), "{name}");
        assert_eq!(address::of(&key).to_string(), text(side, "agent_address"), "{name}");
        let index = side["index"].as_u64().unwrap().try_into().unwrap();
        Self { key, index, contribution: Contribution::from_bytes(array(side, "contribution")) }
    }

    fn both(vectors: &Value) -> [Self; 2] {
        ["asker", "answerer"].map(|name| Self::of(vectors, name))
    }

    fn party(&self) -> Party<'_> {
        Party { key: &self.key, index: self.index, contribution: &self.contribution }
    }
}

fn direction(case: &Value) -> usize {
    DIRECTIONS.iter().position(|name| *name == text(case, "direction")).unwrap()
}

/// What opens messages of this direction, for a minute from `now`.
fn opener(vectors: &Value, direction: usize, now: Instant) -> Opener {
    let key = cipher(&bytes(&vectors["derivation"], DIRECTIONS[direction]));
    let [asker, answerer] = Side::both(vectors);
    Opener::new(key, [answerer.index, asker.index][direction], now + Duration::from_secs(60))
}

#[test]
fn keys_are_derived_as_by_another_implementation() {
    let vectors = vectors();
    let [asker, answerer] = Side::both(&vectors);
    assert!(asker.key < answerer.key);
    let derived = derive_bytes(&asker.party(), &answerer.party());
    assert_eq!(derived[..], bytes(&vectors["derivation"], "okm"));
    let halves = DIRECTIONS.map(|direction| bytes(&vectors["derivation"], direction));
    assert_eq!(derived[..], halves.concat());
}

#[test]
fn bodies_are_read_and_written_as_by_another_implementation() {
    let vectors = vectors();
    let [asker, answerer] = Side::both(&vectors);
    for case in list(&vectors, "bodies") {
        let body = bytes(case, "body");
        let Ok(message) = Message::parse(&body) else { panic!("{case}") };
        let mut written = [0; LONGEST];
        let len = message.write(&mut written);
        assert_eq!(written[..len], body, "{case}");
        let (op, indices) = match message {
            Message::Ask { index, contribution } => {
                assert!(contribution == asker.contribution, "{case}");
                ("ask", [index, answerer.index])
            }
            Message::Agree { asked, index, contribution } => {
                assert!(contribution == answerer.contribution, "{case}");
                ("agree", [asked, index])
            }
            Message::Decline { asked, .. } => ("decline", [asked, answerer.index]),
            Message::Stop { index, .. } if index == asker.index => ("stop", [index, answerer.index]),
            Message::Stop { index, .. } => ("stop", [asker.index, index]),
            Message::Opened { index } => ("opened", [asker.index, index]),
        };
        assert_eq!((op, indices), (text(case, "op"), [asker.index, answerer.index]), "{case}");
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let vectors = vectors();
    for case in list(&vectors, "refused_bodies") {
        let why = match Message::parse(&bytes(case, "body")) {
            Ok(_) => panic!("{case}"),
            Err(Unreadable::Version { .. }) => "version",
            Err(Unreadable::Malformed) => "malformed",
        };
        assert_eq!(why, text(case, "why"), "{case}");
    }
}

#[test]
fn agents_send_the_packets_that_another_implementation_makes() {
    let vectors = vectors();
    let sides = Side::both(&vectors);
    let bodies = list(&vectors, "bodies");
    for (case, body) in list(&vectors, "packets").iter().zip(bodies) {
        let body = bytes(body, "body");
        let message = channel::Message { kind: Kind::Express, answer: false, id: 0, body: &body };
        let mut addresses = sides.each_ref().map(|side| address::of(&side.key));
        if text(case, "from") == "answerer" {
            addresses.reverse();
        }
        let [from, to] = addresses;
        let mut packet = vec![0; channel::OVERHEAD + body.len()];
        message.write_packet(from, to, &mut packet);
        assert_eq!(packet, bytes(case, "packet"), "{case}");
        assert_eq!(channel::Message::parse_packet(&packet, from, to), Some(message), "{case}");
    }
}

#[test]
fn messages_are_opened_once_and_while_the_keys_last() {
    let (vectors, now) = (vectors(), Instant::now());
    let openers = [0, 1].map(|direction| opener(&vectors, direction, now));
    for case in list(&vectors, "messages") {
        let (message, plain, opener) = (bytes(case, "message"), bytes(case, "plain"), &openers[direction(case)]);
        let mut room = vec![0xaa; message.len()];
        let late = now + Duration::from_secs(60);
        assert_eq!(opener.open(&message, &mut room, late), Err(Refused::Expired), "{case}");
        assert_eq!(opener.open(&message, &mut room, now), Ok(plain.len()), "{case}");
        assert_eq!(room[..plain.len()], plain, "{case}");
        assert_eq!(opener.open(&message, &mut room, now), Err(Refused::Replayed), "{case}");
    }
}

#[test]
fn messages_are_sealed_as_by_another_implementation() {
    let (vectors, now) = (vectors(), Instant::now());
    let [asker, answerer] = Side::both(&vectors);
    for (direction, index) in [answerer.index, asker.index].into_iter().enumerate() {
        let key = cipher(&bytes(&vectors["derivation"], DIRECTIONS[direction]));
        let sealer = Sealer::new(key, index, now + Duration::from_secs(60));
        let cases = list(&vectors, "messages").iter().filter(|case| self::direction(case) == direction);
        // To get to the great ones would take hours.
        let cases: Vec<_> = cases.filter(|case| case["counter"].as_u64() < Some(8)).collect();
        for counter in 0..8 {
            let case = cases.iter().find(|case| case["counter"] == counter);
            let plain = case.map_or(Vec::new(), |case| bytes(case, "plain"));
            let mut written = vec![0xaa; plain.len() + OVERHEAD];
            assert_eq!(sealer.seal(&plain, &mut written), Some(written.len()));
            if let Some(case) = case {
                assert_eq!(written, bytes(case, "message"), "{case}");
            }
        }
    }
}

#[test]
fn what_is_no_message_is_rejected_and_does_no_harm() {
    let (vectors, now) = (vectors(), Instant::now());
    for case in list(&vectors, "rejected") {
        let opener = opener(&vectors, direction(case), now);
        let message = bytes(case, "message");
        let why = match opener.open(&message, &mut vec![0; message.len()], now) {
            Err(Refused::Malformed) => "malformed",
            Err(Refused::Forged) => "forged",
            Err(Refused::Replayed) => "replayed",
            other => panic!("{other:?} {case}"),
        };
        assert_eq!(why, text(case, "why"), "{case}");
        let good = list(&vectors, "messages").iter().filter(|good| direction(good) == direction(case));
        for good in good {
            let message = bytes(good, "message");
            assert!(opener.open(&message, &mut vec![0; message.len()], now).is_ok(), "{good} after {case}");
        }
    }
}
