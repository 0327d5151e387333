//! Direct paths to peers that are reached through another: asks for meetings, arranges those of others, checks.
//!
//! What is to be done when is [`mesh::direct`](crate::mesh::direct)'s matter. Here is who may ask for what:
//!
//! - **A meeting** is arranged between two peers that no `allow` holds back and that have sessions. Each is told where this
//!   host hears the other from, which its session proves. Where it says that it is on its own network it is told too, when both
//!   are behind one public address and the address is a private one: a router need not lead packets back that it sent out.
//! - **A call** is followed when it comes from the peer's own relay, and not to an address inside of the mesh.
//! - Both have an allowance for each peer.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;

use super::running::Running;
use crate::channel::{Allowance, Kind, Letter, Message};
use crate::config::{Config, Peer};
use crate::control::Agent as _;
use crate::key::PublicKey;
use crate::mesh::direct::{Act, Answer, Check, Direct, MAX_ADDRESSES, Request};
use crate::tunnel::{Path, PeerState};

/// How often peers and relays are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The relay waits so long for the peer that it calls.
const PATIENCE: Duration = Duration::from_secs(3);
/// What a peer may have arranged: four meetings a second, and one with each of many at once, as after its start.
const MEETING: Duration = Duration::from_millis(250);
/// What a relay may say of one peer: a call in two seconds, four at once.
const CALL: Duration = Duration::from_secs(2);
const BURST: u32 = 60;
const CALLS: u32 = 4;

/// What this agent knows of direct paths.
pub(super) struct Directs {
    /// See [`Check::run`].
    run: u32,
    ways: Mutex<HashMap<PublicKey, Direct>>,
    /// As they were last: whether the relay's session stands, and the path to it.
    relays: Mutex<HashMap<PublicKey, (bool, Option<Path>)>>,
    meetings: Mutex<HashMap<PublicKey, Allowance>>,
    calls: Mutex<HashMap<PublicKey, Allowance>>,
    /// Something is due earlier than before.
    changed: Notify,
}

impl Default for Directs {
    fn default() -> Self {
        Self {
            run: RandomState::new().hash_one(0) as u32,
            ways: Mutex::default(),
            relays: Mutex::default(),
            meetings: Mutex::default(),
            calls: Mutex::default(),
            changed: Notify::new(),
        }
    }
}

impl Directs {
    fn ways(&self) -> MutexGuard<'_, HashMap<PublicKey, Direct>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Looks for direct paths and watches over them, until it is dropped.
    pub(super) async fn find_direct_paths(&self) {
        let mut looked: Option<Instant> = None;
        let mut meetings = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            if looked.is_none_or(|looked| now >= looked + LOOK) {
                looked = Some(now);
                self.look_at_relays(now);
            }
            let (due, next) = {
                let mut ways = self.directs.ways();
                let due: Vec<_> = ways.iter_mut().map(|(peer, way)| (*peer, way.due(now))).collect();
                (due, ways.values().map(Direct::next_due).min())
            };
            for (peer, acts) in due {
                if acts.contains(&Act::Meet) {
                    meetings.push(self.meet(peer));
                }
                self.carry_out(&peer, acts);
            }
            let look = now + LOOK;
            tokio::select! {
                () = tokio::time::sleep_until(next.map_or(look, |next| next.min(look)).into()) => {}
                () = self.directs.changed.notified() => {}
                Some(()) = meetings.next() => {}
            }
        }
    }

    /// Follows the configuration, and notices what makes another meeting worthwhile.
    fn look_at_relays(&self, now: Instant) {
        let config = self.config();
        let mut ways = self.directs.ways();
        let reached =
            |key: &PublicKey| config.peers.iter().any(|peer| peer.public_key == *key && relay(&config, peer).is_some());
        ways.retain(|key, _| reached(key));
        let mut relays = self.directs.relays.lock().unwrap_or_else(PoisonError::into_inner);
        if ways.is_empty() && !config.peers.iter().any(|peer| relay(&config, peer).is_some()) {
            return relays.clear();
        }
        let snapshots = self.device.peers(now);
        let snapshot = |key: &PublicKey| snapshots.iter().find(|snapshot| snapshot.settings.public_key == *key);
        let mut news = Vec::new();
        for peer in &config.peers {
            let Some(relay) = relay(&config, peer) else { continue };
            let key = relay.public_key;
            if !news.iter().any(|(known, _)| *known == key) {
                let up = snapshot(&key).is_some_and(|snapshot| snapshot.state == PeerState::Up);
                let seen = (up, self.device.path(&key));
                let before = relays.insert(key, seen);
                news.push((key, up && before.is_some_and(|before| before != seen)));
            }
            let way = ways.entry(peer.public_key).or_insert_with(|| Direct::new(self.directs.run, now));
            if way.is_direct() && snapshot(&peer.public_key).is_none_or(|snapshot| snapshot.relayed.is_some()) {
                way.restart(now);
            }
            // Nobody watches over a direct path that the tunnel takes from before, as after an edit of the peer's key.
            if !way.is_direct() && snapshot(&peer.public_key).is_some_and(|snapshot| snapshot.relayed.is_none()) {
                self.device.set_direct(&peer.public_key, false);
            }
            if news.contains(&(key, true)) {
                way.retry(now);
            }
        }
    }

    /// Asks the relay of `peer` for a meeting, and says how it went.
    async fn meet(&self, peer: PublicKey) {
        let told = self.ask_for_meeting(&peer).await.unwrap_or_default();
        let at = self.addresses(&peer, told);
        self.advance(&peer, |way, now| way.call(at, now));
    }

    async fn ask_for_meeting(&self, peer: &PublicKey) -> Option<Vec<SocketAddr>> {
        let config = self.config();
        let relay = relay(&config, find(&config, peer)?)?.public_key;
        let request = Request::Meet { peer: *peer, local: self.own_address(&relay) };
        let answer = self.ask(relay, Kind::Direct, serde_json::to_vec(&request).ok()?).await?;
        match serde_json::from_slice(&answer).ok()? {
            Answer::Met { at } => Some(at),
            Answer::Coming { .. } | Answer::Refused => None,
        }
    }

    /// Takes a message about direct paths; the answer to it, if it has one.
    pub(super) async fn directed(&self, letter: &Letter) -> Option<Vec<u8>> {
        let answer = match serde_json::from_slice(&letter.body).ok()? {
            Request::Meet { peer, local } => {
                self.arrange(&letter.peer, &peer, local).await.map_or(Answer::Refused, |at| Answer::Met { at })
            }
            Request::Call { peer, at } => self.called(&letter.peer, &peer, at).unwrap_or(Answer::Refused),
            Request::Check(_) => return None,
        };
        serde_json::to_vec(&answer).ok()
    }

    /// Takes a check, if it is one: at once, for paths depend on it.
    pub(super) fn take_check(&self, letter: &Letter) -> bool {
        let Ok(Request::Check(check)) = serde_json::from_slice(&letter.body) else { return false };
        self.checked(&letter.peer, &check);
        true
    }

    /// A peer has another key: what is known of the way to it stays.
    pub(super) fn rekeyed(&self, old: &PublicKey, new: PublicKey) {
        let mut ways = self.directs.ways();
        if let Some(way) = ways.remove(old) {
            ways.insert(new, way);
        }
    }

    /// As a relay: calls `peer` for `asker`; where to find it comes back.
    async fn arrange(&self, asker: &PublicKey, peer: &PublicKey, local: Option<SocketAddr>) -> Option<Vec<SocketAddr>> {
        let config = self.config();
        if asker == peer || !may_meet(&config, asker) || !may_meet(&config, peer) {
            return None;
        }
        spend(&self.directs.meetings, asker, MEETING, BURST)?;
        let up = |key: &PublicKey| {
            let snapshots = self.device.peers(Instant::now());
            snapshots.iter().any(|snapshot| snapshot.settings.public_key == *key && snapshot.state == PeerState::Up)
        };
        if !up(peer) {
            return None;
        }
        let (from, to) = (self.device.path(asker)?.remote, self.device.path(peer)?.remote);
        let call = Request::Call { peer: *asker, at: seen_at(from, local, to) };
        let ask = self.ask(*peer, Kind::Direct, serde_json::to_vec(&call).ok()?);
        let answer = tokio::time::timeout(PATIENCE, ask).await.ok()??;
        let Answer::Coming { local } = serde_json::from_slice(&answer).ok()? else { return None };
        Some(seen_at(to, local, from))
    }

    /// As one that is called: begins to call back.
    fn called(&self, relay_key: &PublicKey, peer: &PublicKey, at: Vec<SocketAddr>) -> Option<Answer> {
        let config = self.config();
        if !relays(&config, relay_key, peer) {
            return None;
        }
        spend(&self.directs.calls, peer, CALL, CALLS)?;
        let at = self.addresses(peer, at);
        self.advance(peer, |way, now| way.call(at, now));
        Some(Answer::Coming { local: self.own_address(relay_key) })
    }

    /// A check came. Who has no relay here is always reached directly, and told no more than that it was heard.
    fn checked(&self, peer: &PublicKey, check: &Check) {
        if self.directs.ways().contains_key(peer) {
            self.advance(peer, |way, now| way.heard(check, now));
        } else if check.heard.is_none_or(|(_, n)| n != check.n) {
            // Not to an answer like this one: then two that have no relay for each other would answer for ever.
            let heard = Some((check.run, check.n));
            self.carry_out(peer, vec![Act::Check(Check { run: self.directs.run, n: check.n, heard })]);
        }
    }

    fn advance(&self, peer: &PublicKey, step: impl FnOnce(&mut Direct, Instant) -> Vec<Act>) {
        let acts = self.directs.ways().get_mut(peer).map(|way| step(way, Instant::now()));
        self.carry_out(peer, acts.unwrap_or_default());
        self.directs.changed.notify_one();
    }

    /// All but [`Act::Meet`], which takes its time.
    fn carry_out(&self, peer: &PublicKey, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Meet => {}
                Act::Call(at) => self.send(|outbox, now| self.device.call(peer, &at, outbox, now)),
                Act::Check(check) => {
                    let Ok(body) = serde_json::to_vec(&Request::Check(check)) else { continue };
                    let message = Message { kind: Kind::Direct, answer: false, id: self.mail.id(), body: &body };
                    self.send(|outbox, now| self.device.say(peer, &message, outbox, now));
                }
                Act::Use(direct) => {
                    self.device.set_direct(peer, direct);
                    let (config, name) = (self.config(), self.name_of(peer));
                    let via = find(&config, peer).and_then(|peer| peer.via.clone()).unwrap_or_default();
                    if let Some(path) = self.device.path(peer).filter(|_| direct) {
                        tracing::info!(peer = name, endpoint = %path.remote, "reached directly");
                    } else {
                        tracing::info!(peer = name, via, "no direct path any more");
                    }
                }
            }
        }
    }

    /// Where to call a peer: where it was said to be, and where its file says.
    fn addresses(&self, peer: &PublicKey, told: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let config = self.config();
        let written = find(&config, peer).and_then(|peer| peer.endpoint.as_ref()).and_then(|_| {
            let peers = self.device.peers(Instant::now());
            peers.iter().find(|snapshot| snapshot.settings.public_key == *peer)?.settings.endpoint
        });
        let mut at: Vec<_> = told.into_iter().filter(|addr| outside(&config, addr)).take(MAX_ADDRESSES - 1).collect();
        at.extend(written.filter(|addr| outside(&config, addr) && !at.contains(addr)));
        at
    }

    /// This host's address on its own network, by which it reaches the relay.
    fn own_address(&self, relay: &PublicKey) -> Option<SocketAddr> {
        let local = self.device.path(relay)?.local.map(|ip| ip.to_canonical())?;
        is_private(local).then(|| SocketAddr::new(local, self.listen_port()))
    }
}

fn find<'c>(config: &'c Config, key: &PublicKey) -> Option<&'c Peer> {
    config.peers.iter().find(|peer| peer.public_key == *key)
}

/// Through whom a host is reached; nothing for a client, which has no agent.
fn relay<'c>(config: &'c Config, peer: &Peer) -> Option<&'c Peer> {
    config.peer(peer.via.as_ref().filter(|_| !peer.client)?)
}

/// Whether `key` is the relay of `peer`.
fn relays(config: &Config, key: &PublicKey, peer: &PublicKey) -> bool {
    find(config, peer).and_then(|peer| relay(config, peer)).is_some_and(|relay| relay.public_key == *key)
}

/// Whether this host arranges meetings of this peer with others: a host that has all of the mesh, and that it hears itself.
fn may_meet(config: &Config, key: &PublicKey) -> bool {
    find(config, key).is_some_and(|peer| peer.trusted() && peer.via.is_none())
}

/// What a relay says of a peer that it hears from `remote` to one that it hears from `other`.
fn seen_at(remote: SocketAddr, local: Option<SocketAddr>, other: SocketAddr) -> Vec<SocketAddr> {
    let neighbours = remote.ip().to_canonical() == other.ip().to_canonical();
    let local = local.filter(|addr| neighbours && addr.port() != 0 && is_private(addr.ip()));
    local.into_iter().chain([remote]).collect()
}

/// Of RFC 1918 or RFC 4193.
fn is_private(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Whether a peer can be called there: not within the mesh, nor on this host itself.
fn outside(config: &Config, addr: &SocketAddr) -> bool {
    let ip = addr.ip().to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let host = &config.host;
    let bridges = host.bridges.iter().flat_map(|bridge| &bridge.subnets);
    let peers = config.peers.iter().flat_map(Peer::networks);
    let mut inside = host.addresses.iter().map(ipnet::IpNet::trunc).chain(bridges.copied()).chain(peers);
    let nowhere = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local || addr.port() == 0;
    !nowhere && !inside.any(|net| net.contains(&ip))
}

/// Takes one out of a peer's allowance, which holds `depth`.
fn spend(of: &Mutex<HashMap<PublicKey, Allowance>>, peer: &PublicKey, cost: Duration, depth: u32) -> Option<()> {
    let (mut of, now) = (of.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
    of.retain(|_, allowance| !allowance.is_full(now));
    of.entry(*peer).or_default().take(cost, cost * depth, now).ok()
}

#[cfg(test)]
mod tests;
