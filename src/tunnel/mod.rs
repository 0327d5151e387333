//! The WireGuard device over boringtun, without I/O: peers, index table, cryptokey routing, timers.
//!
//! The caller owns the socket, the TUN device and the clock. In any order and from any thread:
//!
//! 1. [`Device::seal`] takes what one read of the TUN device delivered, finds the peer with the most specific allowed IP
//!    for its destination, or else the exit of its source (`egress`), cuts a super-packet into segments and seals them into
//!    an [`Outbox`].
//! 2. [`Device::open`] takes what one read of the UDP socket delivered. Data messages are looked up by receiver index,
//!    opened into an [`Inbox`], and kept when the most specific allowed IP for their source belongs to the peer that
//!    sealed them, or is nobody's and the peer may bring such (`egress`). Handshake messages are set aside, as many as
//!    their source may send.
//! 3. [`Device::answer`] takes one of those: past the gate (mac1, cookie) it computes the answer into the outbox.
//! 4. [`Device::tick`], at least four times a second, runs every peer's timers.
//!
//! Whatever is in the outbox is then sent, and whatever is in the inbox is written to the TUN device.
//!
//! Peers stand in a table that is replaced whole when the configuration changes, so a batch sees one state throughout;
//! what moves within a peer is under that peer's own lock, taken once per batch.

mod agents;
mod batch;
mod egress;
mod express;
mod flows;
mod gate;
mod guests;
mod handshake;
mod knocks;
mod message;
mod open;
mod peer;
mod recall;
mod relay;
mod rotation;
mod snapshot;
mod table;
mod timers;
#[cfg(all(test, feature = "virtual-time"))]
mod virtual_time;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use boringtun::noise::rate_limiter::RateLimiter;
use ipnet::IpNet;

pub use agents::Agents;
pub use batch::{Datagrams, Inbox, Outbox, Path, Run};
pub use egress::{Egress, Local};
pub use guests::{Guest, GuestLetter, Guests};
pub use knocks::{Knock, KnockCause};
pub use rotation::Standing;
pub use snapshot::{Cipher, PeerSnapshot, PeerState};

use crate::express::{Ability, Contribution};
use crate::key::{NextKeys, PresharedKey, PrivateKey, PublicKey};
use crate::packet::segment::segment;
use crate::packet::virtio::VnetHeader;
use crate::packet::{ecn, ip};
use egress::Beyond;
use express::Departing;
use flows::Flows;
use gate::Gate;
use handshake::Handshakes;
use knocks::Knocks;
use open::Opener;
use peer::{Peer, Session, Unsealed};
use rotation::Rekey;
use table::Table;

/// What is configured, whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// All peers.
    pub peers: Vec<PeerSettings>,
    /// What does not hang on one peer.
    pub local: Local,
}

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
    /// What it may send from and is sent to. 0.0.0.0/0 and ::/0 of an exit are shown and not looked at: what it gets
    /// [`Egress`] says.
    pub allowed_ips: Vec<IpNet>,
    /// Whether it may bring what strangers send to containers here, under their addresses.
    pub deliver: bool,
    /// The peer through which it is reached while no direct path is held good, see [`Device::set_direct`].
    pub via: Option<PublicKey>,
    /// Keys that take the place of the present ones (`rotation`).
    pub next: NextKeys,
    /// Whether data may go under express keys.
    pub express: Ability,
}

/// Packets that went nowhere, by reason. The kernel's WireGuard shows the same as interface errors.
#[derive(Debug, Default)]
pub struct Drops {
    /// From the TUN device: no allowed IP contains the destination, and the source has no exit.
    pub unroutable: AtomicU64,
    /// From the TUN device: the peer has no endpoint.
    pub unreachable: AtomicU64,
    /// From the TUN device: the peer answered no handshake, or as many packets as may wait for one did.
    pub unanswered: AtomicU64,
    /// From either side: not an IP packet, or a super-packet that cannot be cut.
    pub malformed: AtomicU64,
    /// From the wire: replayed, forged, under a session that is gone, or for this agent and not expected by it.
    pub refused: AtomicU64,
    /// From the wire: authentic, but the source address is not the sender's to use.
    pub spoofed: AtomicU64,
    /// From the wire: authentic, but marked as having met congestion, while the packet inside cannot bear a mark (RFC
    /// 6040, section 4.2).
    pub congested: AtomicU64,
    /// From the wire: handshake messages that came faster than they could be answered.
    pub overloaded: AtomicU64,
}

/// One WireGuard interface: a private key and its peers.
pub struct Device {
    table: ArcSwap<Table>,
    /// Held while a new table is made, so that no change is lost.
    changing: Mutex<()>,
    /// Of the tunnel, in bytes: padding never exceeds it.
    mtu: AtomicU16,
    /// What the outer header takes of the inner traffic class.
    copied: AtomicU8,
    rekey_after: Duration,
    handshakes: Handshakes,
    flows: Flows,
    knocks: Knocks,
    /// Why packets were dropped.
    pub drops: Drops,
    /// What agents say to this one.
    pub agents: Agents,
    /// Who redeems an invitation.
    pub guests: Guests,
}

impl Device {
    /// A device without peers, for a tunnel of `mtu` bytes.
    pub fn new(private_key: PrivateKey, mtu: u16, now: Instant) -> Self {
        let table = empty_table(private_key, now);
        Self {
            table: ArcSwap::from_pointee(table),
            changing: Mutex::new(()),
            mtu: mtu.into(),
            copied: ecn::MASK.into(),
            rekey_after: timers::REKEY_AFTER_TIME,
            handshakes: Handshakes::default(),
            flows: Flows::default(),
            knocks: Knocks::default(),
            drops: Drops::default(),
            agents: Agents::default(),
            guests: Guests::default(),
        }
    }

    /// Has sessions renewed this long after their handshake instead of REKEY_AFTER_TIME, for tests.
    #[must_use]
    pub fn rekeying_after(self, rekey_after: Duration) -> Self {
        Self { rekey_after, ..self }
    }

    /// Seals what one read of the TUN device delivered: `buffer[..len]` behind its virtio `header`. `buffer` has 16
    /// bytes to spare after `len`, `out` has room for a super-packet.
    pub fn seal(&self, header: VnetHeader, buffer: &mut [u8], len: usize, out: &mut Outbox, now: Instant) {
        let table = self.table.load();
        let Some(dst) = ip::destination(&buffer[..len]) else { return count(&self.drops.malformed) };
        let peer = match table.route(dst) {
            Some(peer) => table.carrier(peer),
            None => table.route_beyond(&buffer[..len], &self.flows).filter(|peer| !peer.relay.carries()),
        };
        let Some(peer) = peer else { return count(&self.drops.unroutable) };
        let mtu = self.mtu.load(Ordering::Relaxed).into();
        let class = ecn::traffic_class(&buffer[..len]) & self.copied.load(Ordering::Relaxed);
        let cut = if let Some(mut departing) = Departing::to(peer, now) {
            segment(header, buffer, len, mtu, |packet| {
                if !departing.seal(packet, class, out) {
                    self.seal_under_wireguard(&mut peer.lock(), packet, class, out, now);
                }
            })
        } else {
            let mut session = peer.lock();
            session.express.data.sent = true;
            segment(header, buffer, len, mtu, |packet| self.seal_under_wireguard(&mut session, packet, class, out, now))
        };
        if cut.is_err() {
            count(&self.drops.malformed);
        }
    }

    #[allow(clippy::inline_always, reason = "a call for each packet is not free")]
    #[inline(always)]
    fn seal_under_wireguard(&self, session: &mut Session, packet: &[u8], class: u8, out: &mut Outbox, now: Instant) {
        match session.seal(packet, class, out, now) {
            Ok(()) => {}
            Err(Unsealed::Unreachable) => count(&self.drops.unreachable),
            Err(Unsealed::Unanswered) => count(&self.drops.unanswered),
        }
    }

    /// Opens what one read of the UDP socket delivered; `inbox` has room for it. Handshake messages are set aside: true
    /// when there are any for [`Device::answer`]. `wall` stamps completed handshakes.
    pub fn open(
        &self,
        datagrams: Datagrams<'_>,
        inbox: &mut Inbox,
        out: &mut Outbox,
        now: Instant,
        wall: SystemTime,
    ) -> bool {
        let table = self.table.load();
        let Datagrams { path, traffic_class, .. } = datagrams;
        let mut opener = Opener::new((self, &table), (path, traffic_class), now, wall);
        let mut set_aside = false;
        for datagram in datagrams.iter() {
            let taken = match message::kind(datagram) {
                Some(message::DATA) => opener.data(datagram, inbox, out),
                Some(message::HANDSHAKE_INITIATION | message::HANDSHAKE_RESPONSE | message::COOKIE_REPLY)
                    if datagram.len() <= handshake::LONGEST =>
                {
                    let admitted = table.gate.admits(path.remote.ip(), now);
                    if admitted && !self.handshakes.set_aside(datagram, path) {
                        count(&self.drops.overloaded);
                    }
                    set_aside |= admitted;
                    admitted
                }
                Some(message::PROBE) => self.agents.bare(datagram, path, out, now),
                _ => false,
            };
            if !taken {
                count(&self.drops.refused);
            }
        }
        drop(opener);
        self.agents.announce();
        set_aside
    }

    /// Takes one of the handshake messages that were set aside; false when there is none. `out` is empty. A Diffie-Hellman
    /// takes as long as sealing fifty packets, so this has a thread of its own. `send`, which must empty `out` and not
    /// block, is called where packets that waited for a session are not to be overtaken.
    pub fn answer(&self, out: &mut Outbox, now: Instant, wall: SystemTime, send: impl FnMut(&mut Outbox)) -> bool {
        let Some(waiting) = self.handshakes.next(now) else { return false };
        if !waiting.answer(self, &self.table.load(), out, now, wall, send) {
            count(&self.drops.refused);
        }
        true
    }

    /// Runs the timers of all peers. `send` is called when `out` fills up, and must empty it.
    pub fn tick(&self, out: &mut Outbox, now: Instant, mut send: impl FnMut(&mut Outbox)) {
        self.guests.tick(now);
        let table = self.table.load();
        for peer in table.peers.values() {
            let mut session = peer.lock();
            let lost = session.tick(out, self.rekey_after, now);
            let short = session.express.agreement.is_short();
            drop(session);
            self.drops.unanswered.fetch_add(lost as u64, Ordering::Relaxed);
            // Not under the lock: random numbers take a system call.
            if short && let Ok(contribution) = Contribution::generate() {
                peer.lock().express.agreement.supply(contribution);
            }
            if out.is_full() {
                send(out);
            }
        }
    }

    /// Makes `settings` all there is. Sessions of peers whose keys did not change stay, and under another private key until
    /// there are new ones; an endpoint that did not change does not undo roaming.
    pub fn configure(&self, private_key: &PrivateKey, settings: &Settings, now: Instant) {
        self.change(now, |table, current| {
            current.clone_from(settings);
            (*private_key != table.private_key).then(|| Rekey::Gently(private_key.clone()))
        });
    }

    /// Changes by whom packets leave, and nothing else, as when one exit takes the place of another.
    pub fn set_egress(&self, egress: &[Egress], now: Instant) {
        self.change(now, |_, settings| {
            settings.local.egress = egress.to_vec();
            None
        });
    }

    /// Adds one peer or changes it, as `configure` does. Takes from the others the allowed IPs that it names, as
    /// wg(8) does.
    pub fn set_peer(&self, peer: PeerSettings, now: Instant) {
        let (key, endpoint) = (peer.public_key, peer.endpoint);
        self.change(now, |_, settings| {
            let peers = &mut settings.peers;
            for other in peers.iter_mut() {
                other.allowed_ips.retain(|net| !peer.allowed_ips.contains(net));
            }
            peers.retain(|other| other.public_key != peer.public_key);
            peers.push(peer);
            None
        });
        // Said anew: it counts, also when it was said before and the peer has roamed since.
        if let Some(remote) = endpoint {
            self.set_endpoint(&key, remote);
        }
    }

    /// Moves a peer to another address, as when its name resolves anew.
    pub fn set_endpoint(&self, key: &PublicKey, remote: SocketAddr) {
        if let Some(peer) = self.table.load().peers.get(key) {
            peer.lock().set_endpoint(remote);
        }
    }

    /// Forgets a peer and its session at once. False when there was none.
    pub fn remove_peer(&self, key: &PublicKey, now: Instant) -> bool {
        let mut found = false;
        self.change(now, |_, settings| {
            let before = settings.peers.len();
            settings.peers.retain(|peer| peer.public_key != *key);
            found = settings.peers.len() < before;
            None
        });
        found
    }

    /// Follows a change of the tunnel's MTU.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Whether outer headers take the inner DSCP too, which tells who sees them what is inside. The ECN field they take
    /// always.
    pub fn set_copy_dscp(&self, copy: bool) {
        self.copied.store(if copy { u8::MAX } else { ecn::MASK }, Ordering::Relaxed);
    }

    /// The device's identity.
    pub fn public_key(&self) -> PublicKey {
        self.table.load().public_key
    }

    /// For `wg showconf` only.
    pub fn private_key(&self) -> PrivateKey {
        self.table.load().private_key.clone()
    }

    /// Handshakes that came to nothing lately, the latest first.
    pub fn knocks(&self, now: Instant) -> Vec<Knock> {
        self.knocks.list(now)
    }

    /// Whose allowed IPs contain `addr` most specifically.
    pub fn owner(&self, addr: IpAddr) -> Option<PublicKey> {
        let table = self.table.load();
        table.route(addr).or_else(|| table.beyond.default(addr)).map(|peer| peer.key)
    }

    /// Makes a new table of what `edit` leaves of the settings, with a new private key when it returns one.
    fn change(&self, now: Instant, edit: impl FnOnce(&Table, &mut Settings) -> Option<Rekey>) {
        let _changing = lock(&self.changing);
        let old = self.table.load_full();
        let peers = old.peers.values().map(|peer| peer.lock().settings().clone()).collect();
        let mut settings = Settings { peers, local: old.beyond.local.clone() };
        let new_key = edit(&old, &mut settings);
        let rekeyed = new_key.is_some();
        let keep_sessions = !matches!(new_key, Some(Rekey::AtOnce(_)));
        let base = match new_key {
            Some(Rekey::Gently(key) | Rekey::AtOnce(key)) => empty_table(key, now),
            None => old.without_peers(),
        };
        let Settings { peers, local } = settings;
        let is_exit = |key: &PublicKey| local.egress.iter().any(|egress| egress.exits.contains(key));
        let mut taken: HashSet<u32> = old.peers.values().map(|peer| peer.index).collect();
        taken.extend(self.guests.indices());
        let peers: Vec<_> = peers
            .into_iter()
            .map(|mut settings| {
                if is_exit(&settings.public_key) {
                    settings.allowed_ips.retain(|net| net.prefix_len() > 0);
                }
                let allowed_ips = settings.allowed_ips.clone();
                let kept = old.holder(&settings.public_key);
                let kept = kept.filter(|peer| keep_sessions && peer.lock().goes_on(&settings));
                let fresh = || {
                    let index = Table::free_index(&taken);
                    taken.insert(index);
                    Peer::new(&base.own(), settings.clone(), index, now)
                };
                let peer = kept.map_or_else(fresh, |peer| peer.under(&settings));
                peer.lock().adopt(settings, &base.own());
                (Arc::new(peer), allowed_ips)
            })
            .collect();
        let peer = |key: &PublicKey| peers.iter().find(|(peer, _)| peer.key == *key).map(|(peer, _)| Arc::clone(peer));
        let beyond = Beyond::new(local, peer, &old.beyond, now);
        let table = Table::new(base.private_key, base.gate, base.unlimited, peers, beyond);
        table.connect();
        self.table.store(Arc::new(table));
        if rekeyed {
            self.guests.clear();
        }
    }
}

fn empty_table(private_key: PrivateKey, now: Instant) -> Table {
    let public_key = private_key.public_key();
    let gate = Arc::new(Gate::new(&public_key, now));
    let unlimited = Arc::new(RateLimiter::new(&public_key.to_dalek(), u64::MAX));
    Table::new(private_key, gate, unlimited, Vec::new(), Beyond::empty())
}

fn count(drops: &AtomicU64) {
    drops.fetch_add(1, Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
