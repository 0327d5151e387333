//! Express sessions: data between two agents under AES-256-GCM, agreed inside a session of WireGuard. Pure: no I/O, and
//! `now` is an argument. The specification is `docs/express.md`.
//!
//! ```text
//!   tunnel: a handshake completes, 16 KiB flow
//!        │                                     asker (the lower public key)        answerer
//!        ▼                                              │  Ask: index, 32 random bytes   │
//!   agreement ── messages over the agent channel ──▶    │ ─────────────────────────────▶ │  keys
//!        │                                         keys │ ◀───────────────────────────── │
//!        ▼                                              │ Agree: indices, 32 random bytes│
//!     lanes ── what workers see, without a lock         │ ═════ empty, under the keys ══▶│
//!        ├─ sealer: key, counter                        │ ◀════════════════════════════  │
//!        └─ openers: key, window             sends data │ ◀────────── Opened ──────────▶ │ sends data
//! ```
//!
//! Nobody sends data under the new keys before the other has said that it opened something under them. Whatever is doubtful means that data
//! goes under WireGuard's own session again, which stands all the while.

mod agreement;
mod cipher;
mod counter;
mod keys;
mod lanes;
mod message;
#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod vectors;
mod window;
mod wiped;
mod words;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use agreement::{Agreement, Proof};
pub use cipher::{Opener, Refused, Sealer};
pub use keys::Contribution;
pub use lanes::{Counts, Lanes};
pub use message::{LONGEST, Message, Unreadable};

/// Set in the receiver index of every express message, and in none of WireGuard's.
pub const INDEX: u32 = 1 << 31;
/// What a sealed message is longer than its plain text: header and tag.
pub const OVERHEAD: usize = 32;
/// REJECT_AFTER_TIME of the whitepaper, for the session of WireGuard and what was agreed in it alike.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Whether this host can and wants to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// It does.
    Able,
    /// It does not, and says why.
    Unable(Reason),
}

impl Ability {
    /// What the CPU allows: without instructions for AES and for carry-less multiplication, AES-GCM is several times slower
    /// than ChaCha20-Poly1305, and hard to make so that its time tells nothing about the key.
    pub fn of_this_cpu() -> Self {
        #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
        let able = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let able = std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
        let able = false;
        if able { Self::Able } else { Self::Unable(Reason::NoHardware) }
    }
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Reason {
    /// `express = "off"`.
    #[serde(rename = "configured")]
    Off = 1,
    /// The CPU has no instructions for AES.
    NoHardware = 2,
    /// The agents speak different versions.
    Version = 3,
    /// Messages came under an unknown index, or did not open.
    Doubt = 4,
}

impl Reason {
    fn of(number: u8) -> Option<Self> {
        [Self::Off, Self::NoHardware, Self::Version, Self::Doubt].into_iter().find(|reason| *reason as u8 == number)
    }
}

/// What is known of one peer's at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Whether data to it goes under express keys, and why not.
    #[serde(flatten)]
    pub standing: Standing,
    /// What has gone under express keys.
    #[serde(flatten)]
    pub counts: Counts,
    /// How often data to it has come to leave under new ones.
    pub sessions: u64,
}

/// Where a peer stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum Standing {
    /// Data to it goes under AES-256-GCM.
    On,
    /// Too little data has flowed since the last handshake, or there was none.
    #[default]
    Idle,
    /// Asked, or about to be.
    Asking,
    /// There are keys, and nothing has come under them yet.
    Proving,
    /// Asked as often as is of use, or sent under the keys, without an answer: no agent, one that knows nothing of express
    /// sessions, or something on the way that lets none through.
    Unanswered,
    /// This host does not.
    #[serde(rename = "off_here")]
    Here(Reason),
    /// The peer does not.
    #[serde(rename = "off_there")]
    There(Reason),
}
