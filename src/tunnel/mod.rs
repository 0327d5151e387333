//! The WireGuard device over boringtun, without I/O: peers, index table, cryptokey routing, timers.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// What is configured about a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSettings {
    /// Its identity.
    pub public_key: PublicKey,
    /// Mixed into handshakes.
    pub preshared_key: Option<PresharedKey>,
    /// Where to reach it until an authenticated packet comes from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Seconds.
    pub persistent_keepalive: Option<u16>,
    /// What it may send from and is sent to.
    pub allowed_ips: Vec<IpNet>,
}

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
    /// Whether a session stands.
    pub state: PeerState,
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

/// One WireGuard interface: a private key and its peers.
pub struct Device {}

impl Device {
    /// A device without peers.
    pub fn new(_private_key: PrivateKey, _now: Instant) -> Self {
        todo!()
    }

    /// Makes `peers` the whole set. Sessions of peers whose keys did not change stay; an endpoint that did not change
    /// in `peers` does not undo roaming.
    pub fn configure(&self, _private_key: &PrivateKey, _peers: &[PeerSettings], _now: Instant) {
        todo!()
    }

    /// Adds one peer or changes it, as `configure` does. Takes from the others the allowed IPs that it names, as
    /// wg(8) does.
    pub fn set_peer(&self, _settings: PeerSettings, _now: Instant) {
        todo!()
    }

    /// Forgets a peer and its session at once. False when there was none.
    pub fn remove_peer(&self, _key: &PublicKey) -> bool {
        todo!()
    }

    /// The device's identity.
    pub fn public_key(&self) -> PublicKey {
        todo!()
    }

    /// For `wg showconf` only.
    pub fn private_key(&self) -> PrivateKey {
        todo!()
    }

    /// All peers, in the order of their public keys.
    pub fn peers(&self, _now: Instant) -> Vec<PeerSnapshot> {
        todo!()
    }
}
