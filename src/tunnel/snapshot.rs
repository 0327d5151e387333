//! What is known of the peers at one moment.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::peer::{Peer, Session};
use super::{Device, PeerSettings};
use crate::config::EVERYTHING;
use crate::express::{self, Standing};
use crate::key::PublicKey;

/// What is known about a peer at one moment.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// As configured; `endpoint` is the current one.
    pub settings: PeerSettings,
    /// When the last handshake completed.
    pub latest_handshake: Option<SystemTime>,
    /// Bytes of authenticated UDP payload received, as wg(8) counts.
    pub rx_bytes: u64,
    /// Bytes of UDP payload sent, as wg(8) counts.
    pub tx_bytes: u64,
    /// Whether a session stands: with the peer itself, or with the relay that carries its packets.
    pub state: PeerState,
    /// The relay, while packets for the peer take it.
    pub relayed: Option<PublicKey>,
    /// For how long its handshake has had no answer; zero when none is under way.
    pub unanswered: Duration,
    /// When the last authenticated packet came.
    pub heard: Option<Instant>,
    /// What data to it leaves under: with the relay's session, while there is one.
    pub cipher: Cipher,
    /// Its express sessions; their bytes are in the two sums above, too.
    pub express: express::Snapshot,
    /// Whether its agent has ever written to this one.
    pub agent: bool,
}

/// How a peer fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// A session stands.
    Up,
    /// A handshake is under way.
    Connecting,
    /// Neither.
    Down,
}

/// What data leaves under.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Cipher {
    /// In WireGuard's own session.
    #[default]
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    /// In an express session.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

impl Cipher {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::ChaCha20Poly1305, Self::Aes256Gcm];
}

impl fmt::Display for Cipher {
    /// As in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}

impl Device {
    /// All peers, in the order of their public keys.
    pub fn peers(&self, now: Instant) -> Vec<PeerSnapshot> {
        let table = self.table.load();
        let snapshot = |peer: &Arc<Peer>| {
            let mut snapshot = snapshot(&peer.lock(), now);
            snapshot.relayed = snapshot.settings.via.filter(|_| peer.relay.carries());
            if table.beyond.is_exit(&peer.key) {
                snapshot.settings.allowed_ips.extend(EVERYTHING);
                snapshot.settings.allowed_ips.sort();
            }
            snapshot
        };
        let mut peers: Vec<_> = table.peers.values().map(snapshot).collect();
        share_states(&mut peers);
        peers
    }
}

fn snapshot(session: &Session, now: Instant) -> PeerSnapshot {
    let (own, express) = (session.own_counters(), session.express.agreement.snapshot());
    PeerSnapshot {
        settings: PeerSettings { endpoint: session.endpoint(), ..session.settings().clone() },
        latest_handshake: session.latest_handshake(),
        // Of one look at the counters, so that what is left of a sum without express sessions never shrinks.
        rx_bytes: own.0 + express.counts.rx_bytes,
        tx_bytes: own.1 + express.counts.tx_bytes,
        state: session.state(now),
        relayed: None,
        unanswered: session.unanswered(now),
        heard: session.heard(),
        cipher: if express.standing == Standing::On { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 },
        express,
        agent: session.agent,
    }
}

/// Gives those that are reached through their relay the relay's state and cipher: theirs tell of the direct path alone.
fn share_states(peers: &mut [PeerSnapshot]) {
    for at in 0..peers.len() {
        if let Some(via) = peers[at].relayed {
            let relay = peers.iter().find(|peer| peer.settings.public_key == via);
            (peers[at].state, peers[at].cipher) =
                relay.map_or((PeerState::Down, Cipher::default()), |relay| (relay.state, relay.cipher));
        }
    }
}
