//! How agents tell each other the names of their containers.
//!
//! A host says all names of its own, in as many parts as it takes, under a serial that grows; the parts of a newer one replace
//! those of the older one together. It tells them when they change, and when somebody asks who has just come up. The answer is the
//! serial that is held then: a host whose clock went back goes on from there.
//!
//! Who reaches a host by way of another asks that one, which passes on what it has heard, under the same serial.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Named;
use crate::channel::MAX_BODY;
use crate::key::PublicKey;

/// Names of one host.
const MAX_NAMES: usize = 1024;
/// Addresses of one name.
const MAX_ADDRESSES: usize = 8;
/// Parts of one list.
const MAX_PARTS: u16 = 256;
/// What a part has beside its names, with the largest numbers: `{"tell":{"serial":…,"part":…,"parts":…,"names":[],"of":"…"}}`.
const AROUND: usize = 152;
/// No clock will tell this many milliseconds in this millennium: it is a lie, and there would be nothing above it.
const MAX_SERIAL: u64 = 1 << 53;

/// What an agent says to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A part of its own names, or of another's.
    Tell {
        /// Of the list.
        serial: u64,
        /// From 0 on.
        part: u16,
        /// At least 1.
        parts: u16,
        /// Each once.
        names: Vec<Named>,
        /// Whose they are, if they are another's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<PublicKey>,
    },
    /// Whether there is a newer list than this one.
    Ask {
        /// Its serial.
        held: u64,
        /// Whose it is, if it is another's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<PublicKey>,
    },
}

/// The answer to either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// To [`Request::Tell`], of the newest whole list that is held; to [`Request::Ask`], of the list there.
    pub serial: u64,
}

/// What others say.
#[derive(Debug, Default)]
pub struct Heard {
    by: HashMap<PublicKey, Said>,
}

#[derive(Debug, Default)]
struct Said {
    serial: u64,
    names: Vec<Named>,
    coming: Option<Coming>,
}

/// A list that is not whole yet.
#[derive(Debug)]
struct Coming {
    serial: u64,
    parts: Vec<Option<Vec<Named>>>,
}

impl Heard {
    /// The same for others, in requests each of which fits a letter.
    pub fn parts(&self, host: &PublicKey) -> Vec<Request> {
        parts(self.of(host), self.serial(host), Some(*host))
    }

    /// What a host has said of its containers.
    pub fn of(&self, host: &PublicKey) -> &[Named] {
        self.by.get(host).map(|said| said.names.as_slice()).unwrap_or_default()
    }

    /// The serial of that; 0 when there is none.
    pub fn serial(&self, host: &PublicKey) -> u64 {
        self.by.get(host).map_or(0, |said| said.serial)
    }

    /// Forgets the hosts that are no peers any more.
    pub fn retain(&mut self, keep: impl Fn(&PublicKey) -> bool) {
        self.by.retain(|host, _| keep(host));
    }

    /// Takes a part. True when a list became whole by it.
    pub fn take(&mut self, host: PublicKey, serial: u64, part: u16, parts: u16, mut names: Vec<Named>) -> bool {
        let said = self.by.entry(host).or_default();
        if part >= parts || parts > MAX_PARTS || serial <= said.serial || serial >= MAX_SERIAL {
            return false;
        }
        for Named(_, addresses) in &mut names {
            addresses.truncate(MAX_ADDRESSES);
        }
        let fresh = Coming { serial, parts: vec![None; parts.into()] };
        let coming = said.coming.get_or_insert(fresh);
        if serial < coming.serial {
            return false;
        }
        if serial > coming.serial || coming.parts.len() != usize::from(parts) {
            *coming = Coming { serial, parts: vec![None; parts.into()] };
        }
        coming.parts[usize::from(part)] = Some(names);
        if coming.parts.iter().any(Option::is_none) {
            return false;
        }
        let whole = said.coming.take().map(|coming| coming.parts).unwrap_or_default();
        said.names = whole.into_iter().flatten().flatten().take(MAX_NAMES).collect();
        said.serial = serial;
        true
    }
}

/// What this host says.
#[derive(Debug, Default)]
pub struct Told {
    serial: u64,
    names: Vec<Named>,
}

impl Told {
    /// The serial of what is said now.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Says these names from now on, in the order given, as many as may be. True when they are others than before. `now` is in
    /// milliseconds since 1970, so that a host that lost its state says something newer.
    pub fn set(&mut self, mut names: Vec<Named>, now: u64) -> bool {
        names.truncate(MAX_NAMES);
        for Named(_, addresses) in &mut names {
            addresses.truncate(MAX_ADDRESSES);
        }
        if self.serial > 0 && self.names == names {
            return false;
        }
        self.names = names;
        self.serial = now.max(self.serial + 1);
        true
    }

    /// Somebody holds a list of this host under this serial. True when the own one had to be put above it.
    pub fn exceed(&mut self, held: u64) -> bool {
        let exceeded = held > self.serial && held < MAX_SERIAL - 1;
        if exceeded {
            self.serial = held + 1;
        }
        exceeded
    }

    /// The list as requests, each of which fits a letter.
    pub fn parts(&self) -> Vec<Request> {
        parts(&self.names, self.serial, None)
    }
}

fn parts(names: &[Named], serial: u64, of: Option<PublicKey>) -> Vec<Request> {
    let mut parts: Vec<Vec<Named>> = vec![Vec::new()];
    let mut room = MAX_BODY - AROUND;
    for named in names {
        let size = 1 + serde_json::to_vec(named).map_or(MAX_BODY, |json| json.len());
        if size > room {
            parts.push(Vec::new());
            room = MAX_BODY - AROUND;
        }
        room = room.saturating_sub(size);
        if let Some(last) = parts.last_mut() {
            last.push(named.clone());
        }
    }
    let count = u16::try_from(parts.len()).unwrap_or(MAX_PARTS).min(MAX_PARTS);
    (0..count).zip(parts).map(|(part, names)| Request::Tell { serial, part, parts: count, names, of }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::key::PrivateKey;

    fn key(seed: u8) -> PublicKey {
        PrivateKey::from_bytes([seed; 32]).public_key()
    }

    fn named(name: &str, addresses: &[&str]) -> Named {
        Named(name.to_owned(), addresses.iter().map(|addr| addr.parse().unwrap()).collect())
    }

    /// What a peer of a configuration has said.
    pub(in super::super) fn heard(config: &Config, peer: &str, said: &[(&str, &[&str])]) -> Heard {
        let mut heard = Heard::default();
        let names = said.iter().map(|(name, addresses)| named(name, addresses)).collect();
        assert!(heard.take(config.peer(peer).unwrap().public_key, 1, 0, 1, names));
        heard
    }

    fn tell(heard: &mut Heard, host: PublicKey, request: &Request) -> bool {
        let Request::Tell { serial, part, parts, names, .. } = request.clone() else { panic!("{request:?}") };
        heard.take(host, serial, part, parts, names)
    }

    #[test]
    fn a_newer_list_replaces_the_older_one_at_once() {
        let mut heard = Heard::default();
        assert!(heard.take(key(1), 5, 0, 1, vec![named("a", &["10.89.1.1"])]));
        assert!(!heard.take(key(1), 6, 0, 2, vec![named("b", &["10.89.1.2"])]));
        assert_eq!(heard.of(&key(1)), [named("a", &["10.89.1.1"])], "half of a list");
        assert!(heard.take(key(1), 6, 1, 2, vec![named("c", &["10.89.1.3"])]));
        assert_eq!((heard.of(&key(1)).len(), heard.serial(&key(1))), (2, 6));
        assert!(!heard.take(key(1), 6, 0, 1, vec![]), "what is held");
        assert!(!heard.take(key(1), 5, 0, 1, vec![]), "an older one");
        assert!(heard.of(&key(2)).is_empty(), "another host");
        assert!(heard.take(key(1), 7, 0, 1, vec![]), "nothing is left");
        assert!(heard.of(&key(1)).is_empty());
        heard.retain(|_| false);
        assert_eq!(heard.serial(&key(1)), 0);
    }

    #[test]
    fn hostile_parts_are_not_taken() {
        let mut heard = Heard::default();
        assert!(!heard.take(key(1), 1, 0, 0, vec![]));
        assert!(!heard.take(key(1), 1, 3, 3, vec![]));
        assert!(!heard.take(key(1), 1, 0, MAX_PARTS + 1, vec![]));
        assert!(!heard.take(key(1), MAX_SERIAL, 0, 1, vec![]), "there would be nothing above it");
        for part in 0..MAX_PARTS {
            let names = (0..20).map(|n| named(&format!("c{part}-{n}"), &["10.89.1.1"; 20])).collect();
            heard.take(key(1), 2, part, MAX_PARTS, names);
        }
        assert_eq!(heard.of(&key(1)).len(), MAX_NAMES);
        assert!(heard.of(&key(1)).iter().all(|Named(_, addresses)| addresses.len() == MAX_ADDRESSES));
    }

    #[test]
    fn serials_grow_whatever_the_clock_says() {
        let mut told = Told::default();
        assert!(told.set(vec![], 1000), "that there are none is said once");
        assert!(!told.set(vec![], 2000));
        assert!(told.set(vec![named("a", &[])], 500));
        assert_eq!(told.serial(), 1001);
        assert!(told.exceed(9000) && !told.exceed(9000));
        assert_eq!(told.serial(), 9001);
        assert!(!told.exceed(u64::MAX));
    }

    proptest! {
        #[test]
        fn what_is_told_is_heard(
            names in prop::collection::vec(("[a-z]{1,63}", prop::collection::vec(any::<std::net::IpAddr>(), 0..12)), 0..300),
            first: usize,
        ) {
            let mut told = Told::default();
            told.set(names.into_iter().map(|(name, addresses)| Named(name, addresses)).collect(), 1);
            let mut parts = told.parts();
            for part in &parts {
                prop_assert!(serde_json::to_vec(part).unwrap().len() <= MAX_BODY);
            }
            let count = parts.len();
            parts.rotate_left(first % count);
            let mut heard = Heard::default();
            let whole = parts.iter().filter(|part| tell(&mut heard, key(1), part)).count();
            prop_assert_eq!(whole, 1);
            prop_assert_eq!(heard.of(&key(1)), &told.names[..]);
            // And by way of another.
            let mut further = Heard::default();
            for part in heard.parts(&key(1)) {
                prop_assert!(serde_json::to_vec(&part).unwrap().len() <= MAX_BODY);
                let Request::Tell { of: Some(of), .. } = &part else { panic!("{part:?}") };
                tell(&mut further, *of, &part);
            }
            prop_assert_eq!(further.of(&key(1)), &told.names[..]);
            prop_assert_eq!(further.serial(&key(1)), 1);
        }
    }
}
