//! What is said to redeem an invitation, as bodies of [`Kind::Enroll`](crate::channel::Kind::Enroll) messages.
//!
//! The joiner asks [`Redeem`] until it has all of the [`Offer`]; the inviter answers each by itself, so that lost and repeated
//! messages do no harm. An answer is one byte of kind and then:
//!
//! | | |
//! | --- | --- |
//! | 0 refused | [`Refusal`] as JSON |
//! | 1 waiting | nothing: the inviter's operator has to confirm |
//! | 2 part | 1 number of this part, 1 number of parts, 8 hash of the whole offer, and a piece of its JSON |

use std::net::IpAddr;

use blake2::{Blake2s256, Digest as _};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::channel::MAX_BODY;
use crate::key::PublicKey;
use crate::mesh::Member;

/// What the joiner asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeem {
    /// The joiner's real public key, which the invitation is bound to.
    pub key: PublicKey,
    /// Which part of the offer; the first is 0.
    pub part: u8,
    /// The joiner's version of meshd.
    pub version: String,
}

/// Why an invitation is not for this joiner, or no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another key has redeemed it.
    #[error("it was used already, by another host")]
    Used,
    /// It is too late by the inviter's clock.
    #[error("it has expired")]
    Expired,
    /// The inviter's operator took it back, or denied the fingerprint.
    #[error("it was revoked")]
    Revoked,
    /// The joiner's key cannot be that of a new peer.
    #[error("this host's key cannot join: {0}")]
    Key(String),
    /// The inviter could not do its part.
    #[error("the inviter could not take this host in: {0}")]
    Failed(String),
}

/// What the inviter gives.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// What the joiner is called.
    pub name: String,
    /// The joiner's addresses, each with the prefix of the mesh.
    pub addresses: Vec<IpNet>,
    /// What the joiner's bridges and LANs may have, and nothing else.
    pub subnets: Vec<IpNet>,
    /// Those of them that are LANs.
    #[serde(default)]
    pub lans: Vec<IpNet>,
    /// Whether the inviter carries the egress of the joiner's bridges.
    pub egress: bool,
    /// Of the tunnel.
    pub mtu: u16,
    /// What names in the mesh end in.
    pub domain: String,
    /// The inviter. Its endpoints are those of the token.
    pub inviter: Member,
    /// What the inviter's news are signed with, in base64.
    pub inviter_key: String,
    /// Of the session between the two, fresh, in base64.
    pub preshared_key: Zeroizing<String>,
    /// Hosts and clients that are reached through the inviter.
    pub members: Vec<Member>,
}

/// An answer of the inviter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// No.
    Refused(Refusal),
    /// Not yet.
    Waiting,
    /// A piece of an offer.
    Part(Part),
}

/// A piece of an offer.
#[derive(Clone, PartialEq, Eq)]
pub struct Part {
    number: u8,
    count: u8,
    hash: [u8; HASH],
    piece: Zeroizing<Vec<u8>>,
}

const HASH: usize = 8;
const PART_HEADER: usize = 3 + HASH;
const PIECE: usize = MAX_BODY - PART_HEADER;
/// Of parts: enough for some hundred hosts.
pub const MAX_PARTS: usize = 64;

impl Redeem {
    /// As a body.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a body; `None` when it is none.
    pub fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

impl Answer {
    /// This part of an offer; `None` when it has no such part, or is too long.
    pub fn part(offer: &Offer, number: u8) -> Option<Self> {
        let text = Zeroizing::new(serde_json::to_vec(offer).ok()?);
        let count = u8::try_from(text.len().div_ceil(PIECE)).ok().filter(|&count| usize::from(count) <= MAX_PARTS)?;
        let piece = text.chunks(PIECE).nth(number.into())?;
        Some(Self::Part(Part { number, count, hash: hash(&text), piece: Zeroizing::new(piece.to_vec()) }))
    }

    /// As a body.
    pub fn write(&self) -> Vec<u8> {
        match self {
            Self::Refused(refusal) => {
                let mut body = vec![0];
                // A reason that does not fit is cut, not lost.
                let mut text = serde_json::to_vec(refusal).unwrap_or_default();
                if text.len() >= MAX_BODY {
                    text = serde_json::to_vec(&Refusal::Failed("see its log".into())).unwrap_or_default();
                }
                body.append(&mut text);
                body
            }
            Self::Waiting => vec![1],
            Self::Part(part) => {
                let mut body = vec![2, part.number, part.count];
                body.extend(part.hash);
                body.extend(part.piece.as_slice());
                body
            }
        }
    }

    /// Reads a body; `None` when it is none.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (&kind, rest) = body.split_first()?;
        match kind {
            0 => serde_json::from_slice(rest).ok().map(Self::Refused),
            1 => rest.is_empty().then_some(Self::Waiting),
            2 => {
                let (&[number, count], rest) = rest.split_first_chunk()?;
                let (&hash, piece) = rest.split_first_chunk()?;
                let sound = number < count && usize::from(count) <= MAX_PARTS && piece.len() <= PIECE;
                sound.then(|| Self::Part(Part { number, count, hash, piece: Zeroizing::new(piece.to_vec()) }))
            }
            _ => None,
        }
    }
}

/// Puts the parts of an offer together.
#[derive(Default)]
pub struct Assembly {
    hash: [u8; HASH],
    count: u8,
    text: Zeroizing<Vec<u8>>,
    next: u8,
}

/// What a part has made of an [`Assembly`].
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// This part is missing next.
    Ask(u8),
    /// The offer is whole.
    Whole(Box<Offer>),
    /// The offer is whole and makes no sense; why.
    Broken(String),
}

impl Assembly {
    /// Takes a part; one of another offer starts anew, as when the inviter has changed its mind.
    pub fn take(&mut self, part: &Part) -> Progress {
        if part.number == 0 || (part.hash, part.count) != (self.hash, self.count) {
            let text = Zeroizing::new(Vec::with_capacity(usize::from(part.count) * PIECE));
            *self = Self { hash: part.hash, count: part.count, text, next: 0 };
        }
        if part.number == self.next {
            self.text.extend_from_slice(&part.piece);
            self.next += 1;
        }
        if self.next < self.count {
            return Progress::Ask(self.next);
        }
        let text = std::mem::take(self).text;
        if hash(&text) != part.hash {
            return Progress::Broken("its parts do not fit together".into());
        }
        match serde_json::from_slice(&text) {
            Ok(offer) => Progress::Whole(Box::new(offer)),
            // Its words may quote what stands there, secrets among it.
            Err(error) => Progress::Broken(format!("not as expected at byte {}", error.column())),
        }
    }
}

fn hash(text: &[u8]) -> [u8; HASH] {
    let mut short = [0; HASH];
    short.copy_from_slice(&Blake2s256::digest(text)[..HASH]);
    short
}

/// What the addresses of an offer have to be within: its own networks.
pub fn within(networks: &[IpNet], addr: IpAddr) -> bool {
    networks.iter().any(|net| net.contains(&addr))
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Offer(for {}, by {}; redacted)", self.name, self.inviter.name)
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Part({} of {}; redacted)", self.number, self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::PrivateKey;

    fn member(n: u8) -> Member {
        Member {
            name: format!("host{n}"),
            public_key: PrivateKey::from_bytes([n + 1; 32]).public_key(),
            addresses: vec![IpAddr::from([10, 88, 0, n])],
            subnets: vec![format!("10.89.{n}.0/24").parse().unwrap()],
            lans: Vec::new(),
            endpoint: None,
            client: false,
            allow: Vec::new(),
            inviter_key: None,
        }
    }

    fn offer(hosts: u8) -> Offer {
        Offer {
            name: "home".into(),
            addresses: vec!["10.88.0.2/24".parse().unwrap()],
            subnets: vec!["10.89.2.0/24".parse().unwrap()],
            lans: Vec::new(),
            egress: true,
            mtu: 1420,
            domain: "mesh".into(),
            inviter: member(1),
            inviter_key: String::new(),
            preshared_key: Zeroizing::new("secret".into()),
            members: (3..3 + hosts).map(member).collect(),
        }
    }

    fn part(offer: &Offer, number: u8) -> Part {
        let body = Answer::part(offer, number).unwrap().write();
        assert!(body.len() <= MAX_BODY);
        match Answer::parse(&body) {
            Some(Answer::Part(part)) => part,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_offer_of_any_size_arrives_in_parts() {
        for hosts in [0, 1, 50, 200] {
            let (offer, mut assembly, mut asked) = (offer(hosts), Assembly::default(), 0);
            let whole = loop {
                match assembly.take(&part(&offer, asked)) {
                    Progress::Ask(next) => asked = next,
                    Progress::Whole(offer) => break offer,
                    Progress::Broken(why) => panic!("{why}"),
                }
            };
            assert_eq!(*whole, offer, "{hosts} hosts in {} parts", asked + 1);
        }
    }

    #[test]
    fn repeated_and_old_parts_do_no_harm_and_a_changed_offer_starts_anew() {
        let (old, new) = (offer(50), Offer { mtu: 1380, ..offer(50) });
        let mut assembly = Assembly::default();
        assert_eq!(assembly.take(&part(&old, 0)), Progress::Ask(1));
        assert_eq!(assembly.take(&part(&old, 1)), Progress::Ask(2));
        assert_eq!(assembly.take(&part(&old, 1)), Progress::Ask(2));
        assert_eq!(assembly.take(&part(&new, 2)), Progress::Ask(0));
    }

    #[test]
    fn no_reason_is_too_long_to_be_given() {
        let body = Answer::Refused(Refusal::Failed("x".repeat(5000))).write();
        assert!(body.len() <= MAX_BODY);
        assert!(matches!(Answer::parse(&body), Some(Answer::Refused(Refusal::Failed(_)))));
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Redeem::parse(&bytes);
            if let Some(Answer::Part(part)) = Answer::parse(&bytes) {
                let _ = Assembly::default().take(&part);
            }
        }
    }
}
