//! What allowed IPs do not say: which peer carries what goes to the internet, and who may bring what comes from there.
//!
//! Allowed IPs tell by destination, so only one peer could have 0.0.0.0/0. An egress tells by source: each bridge has its
//! exit. Where no allowed IP but 0.0.0.0/0 or ::/0 contains the other end of a packet, that end is *foreign*, and:
//!
//! - **Out**, the packet answers what a peer delivered and goes back by that peer (`flows`), or it leaves by the first exit
//!   of the egress with the most specific source, or, where there is none, by the peer that has 0.0.0.0/0 or ::/0 of itself,
//!   as wg(8) may set it.
//! - **In**, it is accepted from an exit of its destination's egress, from the peer that has 0.0.0.0/0 or ::/0, and from a
//!   peer that may deliver, when it is from a public address to one of this host's bridges: that is what the peer
//!   publishes. Never when its source is this host's own, an agent's, or one that no packet on a wire may have.
//!
//! A packet that comes by another peer than the one by which its destination's packets leave is noted in `flows`. So what an
//! exit carried before another one took its place stays with it until it ends, if the exit still answers. An exit that is no
//! longer one of the egress at all is denied that for a while: it would go on with what was begun through it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use prefix_trie::joint::{JointPrefixMap, JointPrefixSet};

use super::flows::Flows;
use super::peer::Peer;
use super::table::Table;
use crate::channel::address;
use crate::key::PublicKey;
use crate::packet::ip;
use crate::packet::tuple::{self, Tuple};

/// For how long answers to what a former exit carried may come: what is on the way, and what TCP sends again at first.
const AFTERMATH: Duration = Duration::from_secs(10);

/// Through which peers packets of one network leave for where no allowed IP leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// The network that they come from.
    pub source: IpNet,
    /// The first carries what leaves; answers are taken from each. Nothing leaves when none of them is a peer.
    pub exits: Vec<PublicKey>,
}

/// What [`Settings`](super::Settings) say beside the peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// Of several that contain a source, the most specific counts.
    pub egress: Vec<Egress>,
    /// Networks of this host's bridges: peers that may deliver do it here.
    pub bridges: Vec<IpNet>,
    /// This host's own addresses, from which no packet comes in.
    pub addresses: Vec<IpAddr>,
}

/// [`Local`], to be asked for every packet that goes beyond the mesh.
pub(super) struct Beyond {
    pub(super) local: Local,
    exits: JointPrefixMap<IpNet, Exits>,
    bridges: JointPrefixSet<IpNet>,
    /// Who has 0.0.0.0/0 and ::/0.
    default_v4: Option<Arc<Peer>>,
    default_v6: Option<Arc<Peer>>,
}

/// The exits of one network.
#[derive(Default)]
struct Exits {
    /// The first is the active one.
    peers: Vec<Arc<Peer>>,
    /// Those that were among them until shortly before this moment.
    former: Vec<(PublicKey, Instant)>,
}

/// What a peer may do with a foreign packet, and what follows for the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is spoofed.
    Refused,
    /// Answers leave by this peer anyway.
    Usual,
    /// Answers leave by this peer and would not otherwise.
    Noted,
    /// From a former exit: only what is begun now is its to go on with.
    Late,
}

impl Beyond {
    /// Of these settings and the peers with these keys.
    pub(super) fn new(local: Local, peer: impl Fn(&PublicKey) -> Option<Arc<Peer>>, old: &Self, now: Instant) -> Self {
        let mut exits = JointPrefixMap::new();
        for Egress { source, exits: keys } in &local.egress {
            let before = old.exits.get(&source.trunc());
            let gone = before.into_iter().flat_map(|exits| exits.peers.iter().map(|peer| (peer.key, now + AFTERMATH)));
            let former = before.into_iter().flat_map(|exits| exits.former.iter().copied()).chain(gone);
            // Without exits the routes let nothing go on: what a former one brings now is what it publishes.
            let denied = |(key, until): &(PublicKey, Instant)| !keys.is_empty() && *until > now && !keys.contains(key);
            let former = former.filter(denied).collect();
            exits.insert(source.trunc(), Exits { peers: keys.iter().filter_map(&peer).collect(), former });
        }
        let bridges = local.bridges.iter().map(IpNet::trunc).collect();
        Self { local, exits, bridges, ..Self::empty() }
    }

    pub(super) fn empty() -> Self {
        Self {
            local: Local::default(),
            exits: JointPrefixMap::new(),
            bridges: JointPrefixSet::new(),
            default_v4: None,
            default_v6: None,
        }
    }

    /// Gives a peer 0.0.0.0/0 or ::/0. Not to an exit: it has its share by source.
    pub(super) fn set_default(&mut self, net: &IpNet, peer: &Arc<Peer>) {
        if !self.is_exit(&peer.key) {
            let default = if net.addr().is_ipv4() { &mut self.default_v4 } else { &mut self.default_v6 };
            *default = Some(Arc::clone(peer));
        }
    }

    /// Whether a network leaves through this peer, or would if others failed.
    pub(super) fn is_exit(&self, key: &PublicKey) -> bool {
        self.local.egress.iter().any(|egress| egress.exits.contains(key))
    }

    /// Who has 0.0.0.0/0, or ::/0 where `addr` is of IPv6.
    pub(super) fn default(&self, addr: IpAddr) -> Option<&Arc<Peer>> {
        if addr.is_ipv4() { self.default_v4.as_ref() } else { self.default_v6.as_ref() }
    }

    /// By whom packets of this source leave.
    fn egress(&self, src: IpAddr) -> Option<&Arc<Peer>> {
        match self.exits.get_lpm(&src.into()) {
            Some((_, exits)) => exits.peers.first(),
            None => self.default(src),
        }
    }

    fn way(&self, peer: &Peer, deliver: bool, src: IpAddr, dst: IpAddr, now: Instant) -> Way {
        let own = self.local.addresses.contains(&src) || self.bridges.get_lpm(&src.into()).is_some();
        if own || !may_travel(src) {
            return Way::Refused;
        }
        let exits = self.exits.get_lpm(&dst.into()).map(|(_, exits)| exits);
        if self.egress(dst).is_some_and(|usual| usual.key == peer.key) {
            return Way::Usual;
        }
        if exits.is_some_and(|exits| exits.peers.iter().any(|exit| exit.key == peer.key)) {
            return Way::Noted;
        }
        if !deliver || !is_public(src) || self.bridges.get_lpm(&dst.into()).is_none() {
            return Way::Refused;
        }
        let former = |(key, until): &(PublicKey, Instant)| *key == peer.key && now < *until;
        if exits.is_some_and(|exits| exits.former.iter().any(former)) { Way::Late } else { Way::Noted }
    }
}

impl Table {
    /// The peer for a packet to where no allowed IP leads.
    #[inline(never)]
    pub(super) fn route_beyond(&self, packet: &[u8], flows: &Flows) -> Option<&Arc<Peer>> {
        if address::contains(ip::destination(packet)?) {
            return None;
        }
        if let Some(peer) = flows.answered_by(packet).and_then(|index| self.peer(index)) {
            return Some(peer);
        }
        self.beyond.egress(ip::source(packet)?)
    }
}

/// What was found last about the foreign packets of one peer, for the next is likely of the same exchange.
#[derive(Default)]
pub(super) struct Foreign {
    /// Source, destination, and what that peer may do between them.
    last: Option<(IpAddr, IpAddr, Way)>,
    noted: Option<Tuple>,
}

impl Foreign {
    /// The source that was found to be foreign last.
    pub(super) fn source(&self) -> Option<IpAddr> {
        self.last.map(|(src, ..)| src)
    }

    /// Whether `peer` may bring this packet, whose source no allowed IP contains. Notes where its answers go.
    #[inline(never)]
    pub(super) fn admits(
        &mut self,
        table: &Table,
        flows: &Flows,
        peer: &Peer,
        deliver: bool,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let (Some(src), Some(dst)) = (ip::source(packet), ip::destination(packet)) else { return false };
        let way = match self.last {
            Some((last_src, last_dst, way)) if (last_src, last_dst) == (src, dst) => way,
            _ => table.beyond.way(peer, deliver, src, dst, now),
        };
        self.last = Some((src, dst, way));
        if way == Way::Refused {
            return false;
        }
        let tuple = Tuple::of(packet);
        if tuple.is_some() && tuple == self.noted {
            return true;
        }
        self.noted = tuple;
        match (way, tuple) {
            // Also of the usual exit: what it publishes stays with it when another one takes its place.
            (Way::Usual | Way::Late, Some(tuple)) if tuple::is_syn(packet) => flows.delivered(tuple, peer.index),
            (Way::Usual, Some(tuple)) => flows.corrected(tuple, peer.index),
            (Way::Noted, Some(tuple)) => flows.delivered(tuple, peer.index),
            _ => {}
        }
        true
    }
}

/// Whether a packet on a wire may have this source at all.
fn may_travel(src: IpAddr) -> bool {
    let nowhere = src.is_unspecified() || src.is_loopback() || src.is_multicast() || address::contains(src);
    let link_local = match src {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !nowhere && !link_local
}

/// Whether this may be a stranger on the internet: not private, shared, link-local or reserved (RFC 6890), as the filter has it
/// for exit clients. Networks for documentation are no exception.
fn is_public(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            a != 0 && a < 224 && !shared && !v4.is_private() && !v4.is_loopback() && !v4.is_link_local()
        }
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            let embedded = segments[..6] == [0; 6] || segments[..6] == [0, 0, 0, 0, 0, 0xffff];
            let local_nat64 = segments[..3] == [0x64, 0xff9b, 1];
            let site_local = segments[0] & 0xffc0 == 0xfec0;
            let local = v6.is_unique_local() || v6.is_unicast_link_local() || site_local || v6.is_multicast();
            !embedded && !local_nat64 && !local
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for addr in ["198.51.100.7", "100.63.0.1", "100.128.0.1", "172.32.0.1", "2001:db8::1", "64:ff9b::1"] {
            assert!(public(addr), "{addr}");
        }
        for addr in [
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b:1::1",
            "fc00::1",
            "fd89::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(addr), "{addr}");
        }
    }
}
