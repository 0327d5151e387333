//! The three kinds of key of WireGuard, as base64 text and as bytes, and the one that signs news of the mesh.
//!
//! Secrets are wiped when dropped and never appear in `Debug`, so that no log at any level can hold one.

use std::fmt;
use std::str::FromStr;

mod sign;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub use sign::{SIGNATURE, SigningKey, VerifyingKey};

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes of base64.
    #[error("not a key: expected 44 characters of base64")]
    Malformed,
    /// A point of small order: every shared secret with it is zero (RFC 7748, section 6.1).
    #[error("a low-order key, which would agree on an all-zero secret with anyone")]
    LowOrder,
}

/// A Curve25519 private key, clamped when used.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

/// A Curve25519 public key that is not of low order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

/// A key that both peers mix into the handshake (Noise's `psk2`).
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

/// Keys that take the place of a peer's present ones as soon as a session under them stands. Both count until then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NextKeys {
    /// Its identity.
    pub public_key: Option<PublicKey>,
    /// Mixed into handshakes.
    pub preshared_key: Option<PresharedKey>,
    /// What its news are signed with, once `public_key` is its identity.
    pub inviter_key: Option<VerifyingKey>,
    /// The identity before the present one, until the peer's inviter has heard of the change.
    pub former: Option<PublicKey>,
}

impl NextKeys {
    /// Whether one of them has yet to take its place.
    pub fn is_pending(&self) -> bool {
        self.public_key.is_some() || self.preshared_key.is_some()
    }
}

impl PrivateKey {
    /// A new key from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel has none to give.
    pub fn generate() -> std::io::Result<Self> {
        let mut bytes = random_bytes()?;
        // Clamped on disk as wg(8) does, so that other tools print the same text for it.
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Ok(Self(bytes))
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.to_dalek()).to_bytes())
    }

    /// As boringtun takes it.
    pub fn to_dalek(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(self.0)
    }

    /// The secret as text, for the key's own file and for `genkey`; nothing else may print it.
    pub fn expose_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The secret as bytes.
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PublicKey {
    /// A key from its bytes.
    ///
    /// # Errors
    /// When the point is of low order.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        // A clamped scalar is a multiple of the cofactor 8, so exactly the low-order points give the all-zero result.
        let shared = x25519_dalek::StaticSecret::from([0x40; 32]).diffie_hellman(&bytes.into());
        if shared.was_contributory() { Ok(Self(bytes)) } else { Err(KeyError::LowOrder) }
    }

    /// The bytes on the wire.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// As boringtun takes it.
    pub fn to_dalek(&self) -> x25519_dalek::PublicKey {
        x25519_dalek::PublicKey::from(self.0)
    }
}

impl PresharedKey {
    /// A new key from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel has none to give.
    pub fn generate() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }

    /// The secret as text, for a peer's file and for `genpsk`; nothing else may print it.
    pub fn expose_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The secret as bytes.
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// The kernel's random numbers.
///
/// # Errors
/// When the kernel has none to give.
pub fn random_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    let mut bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError::Malformed)?;
    let key = bytes.as_slice().try_into().map_err(|_| KeyError::Malformed);
    bytes.zeroize();
    key
}

impl FromStr for PrivateKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).and_then(Self::from_bytes)
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(redacted)")
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_is_that_of_rfc_7748() {
        // RFC 7748, section 6.1: Alice's pair.
        let private: Vec<u8> = (0..32)
            .map(|i| {
                u8::from_str_radix(
                    "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a".get(2 * i..2 * i + 2).unwrap(),
                    16,
                )
                .unwrap()
            })
            .collect();
        let key = PrivateKey::from_bytes(private.try_into().unwrap());
        assert_eq!(key.public_key().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn low_order_points_are_refused() {
        // The points of order 1, 2, 4 and 8, as in the appendix of RFC 7748's discussion and libsodium's blacklist.
        let one = {
            let mut b = [0; 32];
            b[0] = 1;
            b
        };
        let p_minus_1 = {
            let mut b = [0xff; 32];
            b[0] = 0xec;
            b[31] = 0x7f;
            b
        };
        let order_8: [u8; 32] = [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
            0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ];
        for point in [[0; 32], one, p_minus_1, order_8] {
            assert_eq!(PublicKey::from_bytes(point), Err(KeyError::LowOrder));
        }
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for text in [
            "",
            "abc",
            "AAAA",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmoAAA==",
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Malformed), "{text}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug() {
        let key = PrivateKey::generate().unwrap();
        let psk = PresharedKey::generate().unwrap();
        let shown = format!("{key:?} {psk:?}");
        assert!(!shown.contains(&key.expose_base64()) && !shown.contains(&psk.expose_base64()));
        assert_eq!(shown, "PrivateKey(redacted) PresharedKey(redacted)");
    }

    #[test]
    fn keys_survive_text() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(key.expose_base64().parse::<PrivateKey>().unwrap(), key);
        let public = key.public_key();
        assert_eq!(public.to_string().parse::<PublicKey>().unwrap(), public);
    }
}
