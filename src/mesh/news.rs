//! What an inviter says of its mesh: the roster of its own peers, signed, and how agents pass rosters on.
//!
//! A roster is the whole list and not what changed in it, so who holds the newest one needs none of those before, and who
//! is not in it any more was removed. It is passed on as a document of two lines, whoever holds it:
//!
//! ```text
//! base64 of the Ed25519 signature over "meshd roster v1", a zero byte and the next line
//! {"inviter": "…", "inviter_key": "…", "serial": 1795289215, "members": […]}
//! ```
//!
//! Agents tell each other which rosters they hold ([`Request::Digests`]) and fetch newer ones part by part. A document
//! says by which key it is signed; whether that key may introduce anybody, the peers' files say
//! ([`super::introduce::trusted`]).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Member;
use crate::channel::MAX_BODY;
use crate::key::{PublicKey, SIGNATURE, SigningKey, VerifyingKey};

/// Of one roster.
pub const MAX_MEMBERS: usize = 500;
/// Of one document, in bytes.
pub const MAX_DOCUMENT: usize = 256 << 10;
/// Whose rosters a host holds and tells of.
pub const MAX_INVITERS: usize = 512;
/// Digests in one letter: each is 70 bytes of JSON at most.
pub const PAGE: usize = 16;
/// What of a document fits one letter behind [`PART_HEADER`].
const PIECE: usize = MAX_BODY - PART_HEADER;
/// How many parts there are.
const PART_HEADER: usize = 2;
const DOMAIN: &[u8] = b"meshd roster v1\0";
/// What every reader of JSON takes for a whole number (RFC 8259, section 6); seconds take long to get there.
const MAX_SERIAL: u64 = 1 << 53;

/// An inviter's own peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// Whose peers they are.
    pub inviter: PublicKey,
    /// It is signed with this.
    pub inviter_key: VerifyingKey,
    /// Of two rosters the one with the higher number is the newer.
    pub serial: u64,
    /// All of them that this version can read.
    pub members: Vec<Member>,
    /// How many it cannot read.
    pub unreadable: usize,
}

/// The second line.
#[derive(Serialize, Deserialize)]
struct Text {
    inviter: PublicKey,
    inviter_key: String,
    serial: u64,
    members: Vec<Value>,
}

/// A roster with the signature of the key that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    roster: Roster,
    document: String,
}

/// Why a document is no roster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// By [`MAX_DOCUMENT`] or [`MAX_MEMBERS`].
    #[error("too long for a roster")]
    TooLong,
    /// Not of that form.
    #[error("not a roster")]
    Malformed,
    /// Not signed by the key that it names.
    #[error("a roster with a wrong signature")]
    Forged,
}

impl Signed {
    /// Signs the list of `members`.
    ///
    /// # Errors
    /// When they are too many.
    pub fn new(key: &SigningKey, inviter: PublicKey, serial: u64, members: &[Member]) -> Result<Self, Invalid> {
        let values = members.iter().map(serde_json::to_value).collect::<Result<_, _>>();
        let text = Text {
            inviter,
            inviter_key: key.verifying_key().to_string(),
            serial,
            members: values.map_err(|_| Invalid::Malformed)?,
        };
        let text = serde_json::to_string(&text).map_err(|_| Invalid::Malformed)?;
        let document = format!("{}\n{text}", STANDARD.encode(key.sign(&signed_bytes(&text))));
        Self::parse(document.as_bytes())
    }

    /// Reads a document and holds its signature against the key that it names.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(document: &[u8]) -> Result<Self, Invalid> {
        if document.len() > MAX_DOCUMENT {
            return Err(Invalid::TooLong);
        }
        let document = std::str::from_utf8(document).map_err(|_| Invalid::Malformed)?;
        let (signature, text) = document.split_once('\n').ok_or(Invalid::Malformed)?;
        let signature = STANDARD.decode(signature).map_err(|_| Invalid::Malformed)?;
        let signature: &[u8; SIGNATURE] = signature.as_slice().try_into().map_err(|_| Invalid::Malformed)?;
        let Text { inviter, inviter_key, serial, members } =
            serde_json::from_str(text).map_err(|_| Invalid::Malformed)?;
        let inviter_key: VerifyingKey = inviter_key.parse().map_err(|_| Invalid::Malformed)?;
        if !inviter_key.verifies(&signed_bytes(text), signature) {
            return Err(Invalid::Forged);
        }
        if serial >= MAX_SERIAL {
            return Err(Invalid::Malformed);
        }
        let listed = members.len();
        if listed > MAX_MEMBERS {
            return Err(Invalid::TooLong);
        }
        let members: Vec<Member> = members.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect();
        let unreadable = listed - members.len();
        let roster = Roster { inviter, inviter_key, serial, members, unreadable };
        Ok(Self { roster, document: document.to_owned() })
    }

    /// What it says.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// As it is passed on and kept.
    pub fn document(&self) -> &str {
        &self.document
    }

    /// Which one it is.
    pub fn digest(&self) -> Digest {
        Digest(self.roster.inviter, self.roster.serial)
    }

    /// The answer to a [`Request::Part`]; empty when there is no such part.
    pub fn part(&self, number: u16) -> Vec<u8> {
        let parts = self.document.as_bytes().chunks(PIECE);
        let count = parts.len() as u16;
        let piece = parts.into_iter().nth(number.into());
        piece.map_or_else(Vec::new, |piece| [&count.to_be_bytes(), piece].concat())
    }
}

fn signed_bytes(text: &str) -> Vec<u8> {
    [DOMAIN, text.as_bytes()].concat()
}

/// The serial of the roster after `last`. It grows when the clock was put back, and also when the state was lost, unless
/// the clock was put back besides; then the others still hold a newer one, and [`Request::Digests`] says so.
pub fn next_serial(last: Option<u64>, unix_seconds: u64) -> u64 {
    unix_seconds.max(last.map_or(0, |last| last + 1)).min(MAX_SERIAL - 1)
}

/// Which roster of which inviter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(pub PublicKey, pub u64);

/// What one agent asks another, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// "I hold these; and you?" Answered by a [`Page`] from the same place.
    Digests {
        /// Where in both lists.
        from: usize,
        /// [`PAGE`] at most.
        mine: Vec<Digest>,
    },
    /// A part of a document. The answer is the number of parts as two bytes and the piece, or nothing.
    Part {
        /// Which document.
        of: Digest,
        /// From 0.
        number: u16,
    },
    /// "You are no peer of mine any more." Told once, over the session that ends with it.
    Removed,
}

/// The answer to [`Request::Digests`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// How many there are.
    pub total: usize,
    /// [`PAGE`] at most.
    pub digests: Vec<Digest>,
}

/// A piece of a document and how many there are; `None` for anything else than the answer to [`Request::Part`].
pub fn read_part(answer: &[u8]) -> Option<(u16, &[u8])> {
    let (count, piece) = answer.split_first_chunk::<PART_HEADER>()?;
    let count = u16::from_be_bytes(*count);
    (usize::from(count) <= MAX_DOCUMENT.div_ceil(PIECE) && !piece.is_empty()).then_some((count, piece))
}

/// This page of `digests`.
pub fn page(digests: &[Digest], from: usize) -> Vec<Digest> {
    digests.iter().skip(from).take(PAGE).copied().collect()
}

#[cfg(test)]
mod tests;
