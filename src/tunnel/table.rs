//! The peers of one moment, by key, by index, by allowed IP and by egress. Never changed: a change makes a new table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::egress::Beyond;
use super::gate::Gate;
use super::peer::Peer;
use super::rotation::Own;
use crate::channel::address;
use crate::express;
use crate::key::{PrivateKey, PublicKey};

/// What the forwarding loop reads.
pub(super) struct Table {
    pub(super) private_key: PrivateKey,
    pub(super) public_key: PublicKey,
    /// Of this agent.
    pub(super) address: Ipv6Addr,
    pub(super) gate: Arc<Gate>,
    /// Handed to every `Tunn`, which would count messages a second time: it checks mac1 and never asks for a cookie.
    pub(super) unlimited: Arc<RateLimiter>,
    pub(super) peers: BTreeMap<PublicKey, Arc<Peer>>,
    /// What the allowed IPs of [`Table::route`] do not cover.
    pub(super) beyond: Beyond,
    by_index: HashMap<u32, Arc<Peer>>,
    routes: JointPrefixMap<IpNet, Arc<Peer>>,
}

impl Table {
    /// A table of `peers`, each with its allowed IPs; of a network that two name, the later one has it. `beyond` gets
    /// 0.0.0.0/0 and ::/0.
    pub(super) fn new(
        private_key: PrivateKey,
        gate: Arc<Gate>,
        unlimited: Arc<RateLimiter>,
        peers: Vec<(Arc<Peer>, Vec<IpNet>)>,
        mut beyond: Beyond,
    ) -> Self {
        let public_key = private_key.public_key();
        let (mut by_key, mut by_index, mut routes) = (BTreeMap::new(), HashMap::new(), JointPrefixMap::new());
        for (peer, allowed_ips) in peers {
            for net in allowed_ips {
                if net.prefix_len() == 0 {
                    beyond.set_default(&net, &peer);
                } else {
                    routes.insert(net.trunc(), Arc::clone(&peer));
                }
            }
            by_index.insert(peer.index, Arc::clone(&peer));
            by_key.insert(peer.key, peer);
        }
        let address = address::of(&public_key);
        Self { private_key, public_key, address, gate, unlimited, peers: by_key, beyond, by_index, routes }
    }

    /// This host's half of a session's keys.
    pub(super) fn own(&self) -> Own<'_> {
        Own { private_key: &self.private_key, public_key: self.public_key, limiter: &self.unlimited }
    }

    /// The same device with no peers.
    pub(super) fn without_peers(&self) -> Self {
        let (gate, unlimited) = (Arc::clone(&self.gate), Arc::clone(&self.unlimited));
        Self::new(self.private_key.clone(), gate, unlimited, Vec::new(), Beyond::empty())
    }

    /// The peer with the most specific allowed IP that contains `addr`, but for 0.0.0.0/0 and ::/0. The addresses of agents
    /// are nobody's.
    pub(super) fn route(&self, addr: IpAddr) -> Option<&Arc<Peer>> {
        if address::contains(addr) {
            return None;
        }
        self.routes.get_lpm(&addr.into()).map(|(_, peer)| peer)
    }

    /// The peer with this key, at present or next.
    pub(super) fn holder(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.peers.get(key).or_else(|| self.peers.values().find(|peer| peer.next_key == Some(*key)))
    }

    /// The peer that was told this receiver index, by a handshake or for an express session. boringtun keeps its sessions in the lowest 8 bits.
    pub(super) fn receiver(&self, index: u32) -> Option<&Arc<Peer>> {
        self.peer((index & !express::INDEX) >> 8)
    }

    /// The peer of this index.
    pub(super) fn peer(&self, index: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&index)
    }

    /// An index of 23 bits that is not in `taken`, so that the highest bit on the wire is free for [`express::INDEX`]. Random, so that it tells nothing about how many peers there are.
    pub(super) fn free_index(taken: &HashSet<u32>) -> u32 {
        let random = RandomState::new();
        (0..u32::MAX).map(|n| random.hash_one(n) as u32 >> 9).find(|index| !taken.contains(index)).unwrap_or_default()
    }
}
