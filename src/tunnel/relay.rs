//! Peers that are reached through another one: their relay.
//!
//! A packet for such a peer is sealed for its relay, or for the peer itself while a direct path is held good; who holds it
//! so is [`Device::set_direct`]'s caller. What comes from its addresses is taken from either at all times, so that a change
//! of the path loses nothing that is under way. The peer's own session carries its agent's letters, and begins by
//! [`Device::call`] alone: no packet waits for it, and no packet, letter or keepalive asks for a handshake.
//!
//! Only what goes to the peer's own allowed IPs goes by its relay. To where no allowed IP leads it would leave there by the
//! relay's own exit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::Device;
use super::batch::{Outbox, Path};
use super::peer::Peer;
use super::table::Table;
use crate::key::PublicKey;

/// No index: those have 23 bits.
const NONE: u32 = u32::MAX;
/// The same, of a relay that is no peer.
const MISSING: u32 = u32::MAX - 1;

/// A peer's relay. Relaxed throughout: whichever way a packet takes during a change is a good one.
pub(super) struct Relay {
    /// Its index, or [`NONE`].
    by: AtomicU32,
    /// The same while packets take it, and [`NONE`] while they go straight to the peer.
    carrier: AtomicU32,
}

impl Default for Relay {
    /// None.
    fn default() -> Self {
        Self { by: AtomicU32::new(NONE), carrier: AtomicU32::new(NONE) }
    }
}

impl Relay {
    /// Follows a change of the peers: `by` is an index, [`MISSING`] or [`NONE`]. A direct path stays, if there was a relay
    /// before.
    fn set(&self, by: u32) {
        let before = self.by.swap(by, Ordering::Relaxed);
        if by == NONE || before == NONE || self.carries() {
            self.carrier.store(by, Ordering::Relaxed);
        }
    }

    /// Whether packets take the relay.
    pub(super) fn carries(&self) -> bool {
        self.carrier.load(Ordering::Relaxed) != NONE
    }

    /// Whether the peer of this index is the relay.
    pub(super) fn is(&self, index: u32) -> bool {
        self.by.load(Ordering::Relaxed) == index
    }
}

impl Table {
    /// By whom packets for `peer` leave now. None when its relay is no peer.
    #[inline]
    pub(super) fn carrier<'t>(&'t self, peer: &'t Arc<Peer>) -> Option<&'t Arc<Peer>> {
        match peer.relay.carrier.load(Ordering::Relaxed) {
            NONE => Some(peer),
            index => self.peer(index),
        }
    }

    /// Makes the peers' relays what their settings say.
    pub(super) fn connect(&self) {
        for peer in self.peers.values() {
            let via = peer.lock().settings().via;
            peer.relay.set(via.map_or(NONE, |key| self.peers.get(&key).map_or(MISSING, |relay| relay.index)));
        }
    }
}

impl Device {
    /// Sends packets for a peer with a relay straight to it from here on, or through the relay. Nothing for other peers.
    pub fn set_direct(&self, key: &PublicKey, direct: bool) {
        if let Some(peer) = self.table.load().peers.get(key) {
            let carrier = if direct { NONE } else { peer.relay.by.load(Ordering::Relaxed) };
            peer.relay.carrier.store(carrier, Ordering::Relaxed);
        }
    }

    /// Begins a handshake with a peer, whatever stands, by one initiation to each of `remotes`. Where it is reached follows
    /// from where an answer comes from. False when there is no such peer or no room.
    pub fn call(&self, key: &PublicKey, remotes: &[SocketAddr], out: &mut Outbox, now: Instant) -> bool {
        let paths: Vec<Path> = remotes.iter().map(|&remote| Path { remote, local: None }).collect();
        self.table.load().peers.get(key).is_some_and(|peer| peer.lock().call(&paths, out, now))
    }
}

#[cfg(test)]
mod tests;
