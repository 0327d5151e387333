//! From two contributions to one key for each direction: HKDF-SHA256 (RFC 5869).

use std::io;

use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

use super::wiped::Wiped;
use crate::key::{PublicKey, random_bytes};

/// Keys of another version are others.
const LABEL: &[u8] = b"meshd express 1";
const KEY: usize = 32;

/// What one side brings to the keys: 32 random bytes, used once.
#[derive(Clone, PartialEq, Eq)]
pub struct Contribution(Zeroizing<[u8; KEY]>);

impl Contribution {
    /// From the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel has none to give.
    pub fn generate() -> io::Result<Self> {
        random_bytes().map(Self::from_bytes)
    }

    /// What the other side brings.
    pub fn from_bytes(bytes: [u8; KEY]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// For the message that takes it to the other side.
    pub fn expose_bytes(&self) -> &[u8; KEY] {
        &self.0
    }
}

/// One side of an agreement.
pub(super) struct Party<'a> {
    pub(super) key: &'a PublicKey,
    /// Under which it receives.
    pub(super) index: u32,
    pub(super) contribution: &'a Contribution,
}

/// One key for each direction.
pub(super) struct Keys {
    pub(super) to_answerer: Wiped<LessSafeKey>,
    pub(super) to_asker: Wiped<LessSafeKey>,
}

struct Both;

impl KeyType for Both {
    fn len(&self) -> usize {
        2 * KEY
    }
}

/// The bytes of both keys, that towards the answerer first.
pub(super) fn derive_bytes(asker: &Party<'_>, answerer: &Party<'_>) -> Zeroizing<[u8; 2 * KEY]> {
    let mut secret = Zeroizing::new([0; 2 * KEY]);
    secret[..KEY].copy_from_slice(asker.contribution.expose_bytes());
    secret[KEY..].copy_from_slice(answerer.contribution.expose_bytes());
    let prk = Wiped::new(Salt::new(HKDF_SHA256, LABEL).extract(&*secret));
    let (asker_index, answerer_index) = (asker.index.to_le_bytes(), answerer.index.to_le_bytes());
    let info = [asker.key.as_bytes(), answerer.key.as_bytes(), &asker_index[..], &answerer_index[..]];
    let mut bytes = Zeroizing::new([0; 2 * KEY]);
    let filled = prk.expand(&info, Both).and_then(|okm| okm.fill(&mut *bytes));
    // Fails only when asked for more than 255 hashes' worth (RFC 5869, section 2.3).
    if filled.is_err() {
        unreachable!("HKDF-SHA256 gives 64 bytes");
    }
    bytes
}

pub(super) fn derive(asker: &Party<'_>, answerer: &Party<'_>) -> Keys {
    let bytes = derive_bytes(asker, answerer);
    Keys { to_answerer: cipher(&bytes[..KEY]), to_asker: cipher(&bytes[KEY..]) }
}

/// A key of 32 bytes, expanded.
pub(super) fn cipher(key: &[u8]) -> Wiped<LessSafeKey> {
    match UnboundKey::new(&AES_256_GCM, key) {
        Ok(key) => Wiped::new(LessSafeKey::new(key)),
        Err(_) => unreachable!("AES-256 takes 32 bytes"),
    }
}
