//! How two agents agree on new keys over the session that stands, so that both change or none does.
//!
//! A peer's file holds its present keys and, while a rotation is under way, the next ones. Both count ([`crate::tunnel`]);
//! whoever sees a session under the next keys makes them the present ones, each side by itself. So all that is to be kept is:
//! **the two hosts have a combination in common, at every moment and whichever of them crashes.**
//!
//! A preshared key, old P and new N, of which the *leader*, whose public key is the smaller, is the only author:
//!
//! | step | leader's file | follower's file | in common | crash here |
//! | --- | --- | --- | --- | --- |
//! | the leader writes N | P, next N | P | P | the leader proposes N again |
//! | the follower takes N and writes it | P, next N | P, next N | P, N | the same, and N is there already |
//! | the leader calls; a session under N stands; either commits | N | P, next N | N | the other commits when it is called under N |
//! | the other commits | N | N | N | |
//!
//! The leader never has two next keys at a time, so N is replaced only by whom it reaches under N. A follower that wants a
//! rotation asks the leader to begin ([`Request::Begin`]); two that begin at once begin the same one.
//!
//! A host's own key, old K and new L, of which that host is the only author. Its next key is a file (`private.key.next`):
//!
//! | step | the host | a peer's file about it | in common | crash here |
//! | --- | --- | --- | --- | --- |
//! | it writes L as its next key | K, next L | K | K | the next try goes on with the same L |
//! | each peer takes L and writes it | K, next L | K, next L | K | the same |
//! | once all have: its next key takes the place of its key, by a rename | L | K, next L | L | it is one or the other |
//! | it calls; a session under L stands; the peer commits | L | L | L | the peer commits when it is called under L |
//!
//! Before the rename a peer that crashes finds the host under K, afterwards under L, because it calls under both. A peer is
//! asked only over a session under the host's present key, so it never has to choose between two next ones that are both real.
//!
//! A peer says these things about itself only, and nothing is taken but from its own session.

use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use crate::config::{Config, Peer};
use crate::key::{NextKeys, PresharedKey, PublicKey, VerifyingKey};

/// What one agent asks of another.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Of the leader: begin with a new preshared key.
    Begin,
    /// Of the follower: this is to be our preshared key. As base64.
    PresharedKey(String),
    /// This is to be my key.
    PublicKey {
        /// Instead of the one that the session is under.
        public_key: PublicKey,
        /// What news are signed with then; as base64.
        inviter_key: String,
    },
}

/// What the other says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is written down.
    Taken,
    /// Not now, for this reason.
    Later(String),
    /// Never, for this reason.
    Refused(String),
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Self::PresharedKey(key) = self {
            key.zeroize();
        }
    }
}

/// Whether the first of the two is the author of their preshared keys.
pub fn leads(own: &PublicKey, peer: &PublicKey) -> bool {
    own < peer
}

/// The peer with the keys that a session stands under made its present ones; `None` where that changes nothing.
pub fn settled(peer: &Peer, public_key: bool, preshared_key: bool) -> Option<Peer> {
    let mut settled = peer.clone();
    let next = &mut settled.next;
    if public_key && let Some(key) = next.public_key.take() {
        next.former = settled.introduced_by.is_some().then_some(settled.public_key);
        settled.public_key = key;
        let inviter_key = next.inviter_key.take();
        settled.inviter_key = settled.inviter_key.and(inviter_key.or(settled.inviter_key));
    }
    if preshared_key && let Some(key) = next.preshared_key.take() {
        settled.preshared_key = Some(key);
    }
    (settled != *peer).then_some(settled)
}

/// The peer as it is after a request of its own. `fresh` is for a preshared key that begins here.
///
/// # Errors
/// Why not.
pub fn taken(config: &Config, peer: &Peer, request: &Request, fresh: PresharedKey) -> Result<Peer, Answer> {
    let own = config.private_key.public_key();
    let leads = leads(&own, &peer.public_key);
    let mut taken = peer.clone();
    let NextKeys { public_key: next_key, preshared_key: next_psk, inviter_key: next_inviter, .. } = &mut taken.next;
    match request {
        Request::Begin | Request::PresharedKey(_) if next_key.is_some() => {
            return Err(Answer::Later("a new key of that host is under way".to_owned()));
        }
        Request::Begin if !leads => return Err(Answer::Later("the other host is to begin".to_owned())),
        Request::Begin => *next_psk = Some(next_psk.take().unwrap_or(fresh)),
        Request::PresharedKey(_) if leads => return Err(Answer::Later("this host is to begin".to_owned())),
        Request::PresharedKey(text) => {
            let key: PresharedKey = text.parse().map_err(refused)?;
            // Settled already, and the answer was lost.
            *next_psk = (peer.preshared_key.as_ref() != Some(&key)).then_some(key);
        }
        Request::PublicKey { public_key, inviter_key } => {
            let inviter_key: VerifyingKey = inviter_key.parse().map_err(refused)?;
            let others = config.peers.iter().filter(|other| other.name != peer.name);
            let taken = others.flat_map(|other| [Some(other.public_key), other.next.public_key]).flatten();
            if *public_key == own || taken.into_iter().any(|key| key == *public_key) {
                return Err(Answer::Refused("that key is another host's".to_owned()));
            }
            let new = *public_key != peer.public_key;
            *next_key = new.then_some(*public_key);
            *next_inviter = (new && peer.inviter_key.is_some()).then_some(inviter_key);
        }
    }
    Ok(taken)
}

fn refused(error: crate::key::KeyError) -> Answer {
    Answer::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Files, SourceFile, parse};
    use crate::key::{PrivateKey, SigningKey};

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_bytes([seed; 32])
    }

    /// The host of this key with peers `other` and `third`.
    fn config(own: &PrivateKey, other: PublicKey) -> Config {
        let source = |path: &str, text: String| SourceFile { path: path.into(), text: text.into() };
        let peer = |name: &str, key: PublicKey| (name.to_owned(), source(name, format!("public_key = \"{key}\"\n")));
        parse(&Files {
            host: source("meshd.toml", "name = \"own\"\naddresses = [\"10.88.0.1/24\"]\n".into()),
            private_key: source("private.key", own.expose_base64()),
            peers: vec![peer("other", other), peer("third", key(9).public_key())],
            preshared_keys: std::collections::BTreeMap::new(),
        })
        .unwrap()
    }

    /// Leader and follower, each with the other as a peer.
    fn pair() -> [(Config, Peer); 2] {
        let mut keys = [key(1), key(2)];
        keys.sort_by_key(PrivateKey::public_key);
        let of = |own: usize| {
            let config = config(&keys[own], keys[1 - own].public_key());
            let peer = config.peer("other").unwrap().clone();
            (config, peer)
        };
        [of(0), of(1)]
    }

    fn fresh(seed: u8) -> PresharedKey {
        PresharedKey::from_bytes([seed; 32])
    }

    #[test]
    fn the_leader_alone_begins_and_goes_on_with_what_it_began() {
        let [(leader, peer), (follower, other)] = pair();
        let begun = taken(&leader, &peer, &Request::Begin, fresh(1)).unwrap();
        assert_eq!(begun.next.preshared_key, Some(fresh(1)));
        assert_eq!(taken(&leader, &begun, &Request::Begin, fresh(2)).unwrap(), begun);
        assert!(matches!(taken(&follower, &other, &Request::Begin, fresh(2)), Err(Answer::Later(_))));
        let proposal = Request::PresharedKey(fresh(1).expose_base64());
        assert!(matches!(taken(&leader, &begun, &proposal, fresh(3)), Err(Answer::Later(_))));
        let told = taken(&follower, &other, &proposal, fresh(3)).unwrap();
        assert_eq!(told.next.preshared_key, Some(fresh(1)));
        let done = settled(&told, false, true).unwrap();
        assert_eq!((&done.preshared_key, &done.next), (&Some(fresh(1)), &NextKeys::default()));
        assert_eq!(taken(&follower, &done, &proposal, fresh(3)).unwrap(), done, "once more changes nothing");
        assert!(taken(&follower, &other, &Request::PresharedKey("no".into()), fresh(3)).is_err());
    }

    #[test]
    fn a_key_is_taken_unless_it_is_anothers() {
        let [(config, peer), _] = pair();
        let announced = |key: PublicKey| Request::PublicKey {
            public_key: key,
            inviter_key: SigningKey::of(&PrivateKey::from_bytes([7; 32])).verifying_key().to_string(),
        };
        for other in [config.private_key.public_key(), key(9).public_key()] {
            assert!(matches!(taken(&config, &peer, &announced(other), fresh(1)), Err(Answer::Refused(_))));
        }
        let told = taken(&config, &peer, &announced(key(3).public_key()), fresh(1)).unwrap();
        assert_eq!((told.next.public_key, told.next.inviter_key), (Some(key(3).public_key()), None));
        assert!(matches!(taken(&config, &told, &Request::Begin, fresh(1)), Err(Answer::Later(_))));
        let done = settled(&told, true, false).unwrap();
        assert_eq!((done.public_key, &done.next), (key(3).public_key(), &NextKeys::default()));
        assert_eq!(settled(&done, true, true), None);
    }

    #[test]
    fn who_introduces_others_goes_on_to() {
        let [(config, mut peer), _] = pair();
        let [old, new] = [6, 7].map(|seed| SigningKey::of(&key(seed)).verifying_key());
        peer.inviter_key = Some(old);
        let request = Request::PublicKey { public_key: key(3).public_key(), inviter_key: new.to_string() };
        let told = taken(&config, &peer, &request, fresh(1)).unwrap();
        assert_eq!((told.inviter_key, told.next.inviter_key), (Some(old), Some(new)));
        assert_eq!(settled(&told, true, false).unwrap().inviter_key, Some(new));
    }
}
