//! How a host joins: invitation tokens and the exchange that redeems one. Pure: no I/O, and the time is an argument.
//!
//! ```text
//! inviter                                              joiner
//! meshd peer add home … ── one Token, by hand ───────► meshd join -
//!   keeps an Invitation                                derives the throwaway key and its preshared key
//!   (public half and preshared key, both derived)
//!         ◄── WireGuard handshake of the throwaway key, on the port that is open anyway ──
//!         ◄── Redeem: my real public key ──
//!   is bound to that key; writes peers/home.toml
//!         ── Offer: name, addresses, subnets, fresh preshared key, the other hosts ──►
//!                                                      writes peers/vps.toml and what meshd.toml is missing
//!         ◄── handshake of the real key ──
//!   is used up
//! ```
//!
//! What is new here is only what is said inside: authentication, secrecy and protection from floods are WireGuard's. An
//! initiation under a key that no invitation has costs the inviter what any stranger's does, and leaves no trace.

pub mod accept;
pub mod exchange;
pub mod invitation;
pub mod token;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use blake2::{Blake2s256, Digest as _};
use zeroize::Zeroizing;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// 256 random bits from which both sides derive what the exchange needs. Wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// The throwaway key of an invitation: the joiner's identity until the inviter knows the real one.
pub fn throwaway_key(secret: &Secret, inviter: &PublicKey) -> PrivateKey {
    PrivateKey::from_bytes(derive(b"meshd invitation: throwaway key v1", secret, inviter))
}

/// The preshared key of the throwaway key's session.
pub fn preshared_key(secret: &Secret, inviter: &PublicKey) -> PresharedKey {
    PresharedKey::from_bytes(derive(b"meshd invitation: preshared key v1", secret, inviter))
}

/// What both operators see of the two hosts' keys, in the manner of `K7QM-3XPA-9D2T`: 60 bits. Who wants to stand in between
/// would need a key of its own with the same.
pub fn fingerprint(inviter: &PublicKey, joiner: &PublicKey) -> String {
    // Crockford's: none of I, L, O, U, which are mistaken for others.
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let hash = Blake2s256::new()
        .chain_update(b"meshd fingerprint v1")
        .chain_update(inviter.as_bytes())
        .chain_update(joiner.as_bytes())
        .finalize();
    let bits = hash[..8].iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
    let digit = |at: u32| char::from(DIGITS[(bits >> (59 - 5 * at) & 31) as usize]);
    (0..3).map(|group| (0..4).map(|at| digit(4 * group + at)).collect::<String>()).collect::<Vec<_>>().join("-")
}

/// A hash of its own for each purpose, over uniformly random input (as HKDF's extract-and-expand would be of no more use).
fn derive(label: &[u8], secret: &Secret, inviter: &PublicKey) -> [u8; 32] {
    Blake2s256::new()
        .chain_update(label)
        .chain_update(secret.as_slice())
        .chain_update(inviter.as_bytes())
        .finalize()
        .into()
}

fn to_text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn from_text(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_derived_differs_by_purpose_secret_and_inviter() {
        let inviters = [1, 2].map(|seed| PrivateKey::from_bytes([seed; 32]).public_key());
        let secrets = [3, 4].map(|seed| Secret::new([seed; 32]));
        let mut seen = std::collections::HashSet::new();
        for secret in &secrets {
            for inviter in &inviters {
                assert!(seen.insert(*throwaway_key(secret, inviter).expose_bytes()));
                assert!(seen.insert(*preshared_key(secret, inviter).expose_bytes()));
            }
        }
    }

    #[test]
    fn both_sides_see_one_fingerprint_and_another_key_another() {
        let [a, b, c] = [1, 2, 3].map(|seed| PrivateKey::from_bytes([seed; 32]).public_key());
        let shown = fingerprint(&a, &b);
        assert_eq!(shown, fingerprint(&a, &b));
        assert_ne!(shown, fingerprint(&a, &c));
        assert_ne!(shown, fingerprint(&b, &a), "who invites whom");
        assert!(shown.len() == 14 && shown.split('-').all(|group| group.len() == 4), "{shown}");
    }
}
