//! Signatures of a host: Ed25519 (RFC 8032) under a key that follows from the host's WireGuard key, so that there is no
//! second secret to keep.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2s256, Digest as _};
use ed25519_dalek::Signer as _;
use zeroize::Zeroizing;

use super::{KeyError, PrivateKey, decode};

/// Bytes of a signature.
pub const SIGNATURE: usize = 64;

/// Signs in the name of one host. Wiped when dropped.
pub struct SigningKey(ed25519_dalek::SigningKey);

/// Tells whether a host has signed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl SigningKey {
    /// That of the host with this private key.
    pub fn of(key: &PrivateKey) -> Self {
        // A hash of its own domain: what it signs tells nothing about the key that agrees on secrets.
        let hash = Blake2s256::new().chain_update(b"meshd signing key v1").chain_update(key.expose_bytes());
        let seed = Zeroizing::new(<[u8; 32]>::from(hash.finalize()));
        Self(ed25519_dalek::SigningKey::from_bytes(&seed))
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }

    /// Signs `text`.
    pub fn sign(&self, text: &[u8]) -> [u8; SIGNATURE] {
        self.0.sign(text).to_bytes()
    }
}

impl VerifyingKey {
    /// A key from its bytes.
    ///
    /// # Errors
    /// When they are no point of the curve, or one of low order, under which anything can be signed.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Malformed)?;
        if key.is_weak() { Err(KeyError::LowOrder) } else { Ok(Self(key)) }
    }

    /// As bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Whether this host has signed `text`; strictly, so that a text has one signature and not several.
    pub fn verifies(&self, text: &[u8], signature: &[u8; SIGNATURE]) -> bool {
        self.0.verify_strict(text, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }
}

impl FromStr for VerifyingKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).and_then(|bytes| Self::from_bytes(&bytes))
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.as_bytes()))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_signs_is_told_from_others_and_what_from_anything_else() {
        let [vps, home] = [1, 2].map(|seed| SigningKey::of(&PrivateKey::from_bytes([seed; 32])));
        let signature = vps.sign(b"home joins");
        assert!(vps.verifying_key().verifies(b"home joins", &signature));
        assert!(!vps.verifying_key().verifies(b"home leaves", &signature));
        assert!(!home.verifying_key().verifies(b"home joins", &signature));
        let text = vps.verifying_key().to_string();
        assert_eq!(text.parse::<VerifyingKey>(), Ok(vps.verifying_key()));
    }

    #[test]
    fn a_key_of_low_order_is_refused() {
        let mut one = [0; 32];
        one[0] = 1;
        assert_eq!(VerifyingKey::from_bytes(&one), Err(KeyError::LowOrder));
    }
}
