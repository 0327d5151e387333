//! Keys that change under a session, with no packet lost: what is new is made before what is old is broken.
//!
//! ```text
//!   identity: this host's key, the peer's key, the preshared key        next keys (settings), or another key of this host
//!   ┌──────────────┐                                                          │
//!   │ the session  │ sends and receives                                       ▼
//!   └──────┬───────┘          has a session of its own, and the    ┌──────────────────────┐
//!          ▼                  keys are newer: takes its place      │ candidate: receives, │
//!   ┌──────────────┐  ◄──────────────────────────────────────────  │ shakes hands         │
//!   │ former:      │                                               └──────────────────────┘
//!   │ receives     │ ── nothing came under it for 20 s ──▶ gone
//!   └──────────────┘
//! ```
//!
//! A peer with next keys has a [`Tunn`] for each combination of old and new, all under its one index: a message that one
//! does not open is tried with the next.
//!
//! - **Who begins.** A candidate asks for a session when the control side says so ([`Device::renew`]), when this host's own
//!   key is another than that of the session, and whenever the session itself has no answer: then each of them calls, and
//!   whoever has at least one combination in common with the peer has a session after one round trip.
//! - **Which preshared key** an initiation is made with it does not tell. So it is answered under each, and the initiator
//!   takes the answer that opens. A response that nobody takes leaves a session in boringtun's ring of eight that is never
//!   used; that is why candidates do not call for as long as there is a session and nobody asked them to.
//! - **When it changes.** The initiator sends under the new keys from the response on, which proves that the peer has
//!   them; the responder from the first packet that proves that the initiator has them. What is still under way under the old
//!   ones is received. Packets under them that come later say that the peer has not heard yet, and are answered by a
//!   keepalive under the new ones.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::batch::{Inbox, Outbox, Path};
use super::peer::{Opened, Peer, REKEY_TIMEOUT, Sent, Session};
use super::{Device, PeerSettings, message};
use crate::channel::address;
use crate::key::{NextKeys, PresharedKey, PrivateKey, PublicKey};

/// For so long after the last packet under former keys another one may come.
const LINGER: Duration = Duration::from_secs(20);

/// A peer that is there has answered by then (KEEPALIVE_TIMEOUT of the whitepaper).
const SILENCE: Duration = Duration::from_secs(10);

/// What a session is agreed under.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Identity {
    own: PublicKey,
    peer: PublicKey,
    preshared_key: Option<PresharedKey>,
}

/// This host's half of it.
pub(super) struct Own<'t> {
    pub(super) private_key: &'t PrivateKey,
    pub(super) public_key: PublicKey,
    /// See [`super::table::Table`].
    pub(super) limiter: &'t Arc<RateLimiter>,
}

/// A session beside the one that sends.
pub(super) struct Other {
    tunn: Tunn,
    identity: Identity,
    role: Role,
}

enum Role {
    /// Takes the place of the one that sends, once it stands. `called` for although that one stands.
    Candidate { called: bool },
    /// Receives what is still under way. Something did at that moment.
    Former(Instant),
}

/// Which of a peer's keys its session is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// There is a session, and under this host's present key.
    pub session: bool,
    /// The peer's next public key has taken the place of its present one.
    pub public_key: bool,
    /// The same of the preshared key.
    pub preshared_key: bool,
}

impl Own<'_> {
    pub(super) fn tunn(&self, identity: &Identity, index: u32) -> Tunn {
        let psk = identity.preshared_key.as_ref().map(|psk| *psk.expose_bytes());
        // Persistent keepalives are ours, so that a change of the interval need not end the session.
        let limiter = Some(Arc::clone(self.limiter));
        Tunn::new(self.private_key.to_dalek(), identity.peer.to_dalek(), psk, None, index, limiter)
    }

    pub(super) fn with(&self, settings: &PeerSettings) -> Identity {
        let PeerSettings { public_key, preshared_key, .. } = settings;
        Identity { own: self.public_key, peer: *public_key, preshared_key: preshared_key.clone() }
    }
}

impl Peer {
    /// The same peer under other settings, in a table of its own.
    pub(super) fn under(&self, settings: &PeerSettings) -> Self {
        let key = settings.public_key;
        Self {
            key,
            next_key: settings.next.public_key,
            index: self.index,
            address: address::of(&key),
            relay: Arc::clone(&self.relay),
            deliver: settings.deliver,
            lanes: Arc::clone(&self.lanes),
            path: Arc::clone(&self.path),
            session: Arc::clone(&self.session),
        }
    }
}

impl Session {
    /// Whether the session may go on under these settings: the keys that it is under are in them.
    pub(super) fn goes_on(&self, settings: &PeerSettings) -> bool {
        let Identity { peer, preshared_key, .. } = &self.identity;
        combinations(settings).contains(&(*peer, preshared_key))
    }

    /// Makes a candidate of each combination of keys that is not in use, and drops those that are no more.
    pub(super) fn follow_keys(&mut self, own: &Own<'_>) {
        self.own = own.public_key;
        let wanted: Vec<Identity> = combinations(&self.settings)
            .into_iter()
            .map(|(peer, key)| Identity { own: own.public_key, peer, preshared_key: key.clone() })
            .collect();
        self.others.retain(|other| matches!(other.role, Role::Former(_)) || wanted.contains(&other.identity));
        for identity in wanted {
            if identity != self.identity && !self.others.iter().any(|other| other.identity == identity) {
                let tunn = own.tunn(&identity, self.index);
                self.others.push(Other { tunn, identity, role: Role::Candidate { called: false } });
            }
        }
    }

    /// Whose keys the session is under: this host's and the peer's.
    pub(super) fn parties(&self) -> (PublicKey, PublicKey) {
        (self.identity.own, self.identity.peer)
    }

    /// Whether the session is under a key that is no longer this host's: it carries what there is, and shakes no hands.
    pub(super) fn is_stale(&self) -> bool {
        self.identity.own != self.own
    }

    /// The newer, the higher.
    fn rank(&self, identity: &Identity) -> u8 {
        let NextKeys { public_key, preshared_key, .. } = &self.settings.next;
        let newer = |next: bool, weight| if next { weight } else { 0 };
        newer(identity.own == self.own, 4)
            + newer(*public_key == Some(identity.peer), 2)
            + newer(preshared_key.is_some() && *preshared_key == identity.preshared_key, 1)
    }

    /// Opens a data message that the session does not.
    #[cold]
    pub(super) fn open_other(&mut self, datagram: &[u8], inbox: &mut Inbox, now: Instant, wall: SystemTime) -> Opened {
        for at in 0..self.others.len() {
            let other = &mut self.others[at];
            let opened = Opened::of(&other.tunn.decapsulate(None, datagram, inbox.spare()));
            if matches!(opened, Opened::Refused) {
                continue;
            }
            if let Role::Former(heard) = &mut other.role {
                *heard = now;
            }
            self.authenticated(datagram.len(), now);
            self.aside = !self.take_turn(at, false, now, wall);
            self.hint |= self.aside;
            return opened;
        }
        Opened::Refused
    }

    /// Hands a handshake message to the candidates: an initiation to all, for it may be of any of them. Whether one of
    /// them took it.
    #[cold]
    pub(super) fn handshake_others(
        &mut self,
        datagram: &[u8],
        path: Path,
        out: &mut Outbox,
        now: Instant,
        wall: SystemTime,
    ) -> bool {
        let mut taken = false;
        let mut at = 0;
        while at < self.others.len() {
            let Other { tunn, role: Role::Candidate { .. }, .. } = &mut self.others[at] else {
                at += 1;
                continue;
            };
            if let TunnResult::WriteToNetwork(answer) = tunn.decapsulate(None, datagram, out.spare()) {
                let sent = Sent::of(answer);
                self.move_to(path);
                self.authenticated(datagram.len(), now);
                self.put(&sent, path, out, now);
                taken = true;
                if sent.kind == message::DATA {
                    self.take_turn(at, true, now, wall);
                    return true;
                }
            }
            at += 1;
        }
        taken
    }

    /// One of the others has a session. A candidate sends from now on, when its keys are newer or there is none that sends;
    /// whether it does.
    fn take_turn(&mut self, at: usize, initiator: bool, now: Instant, wall: SystemTime) -> bool {
        let Other { identity, role, .. } = &self.others[at];
        let newer = self.rank(identity) > self.rank(&self.identity);
        let turn = matches!(role, Role::Candidate { .. }) && (newer || !self.has_session());
        if turn {
            self.promote(at, now);
            self.established(initiator, now, wall);
        }
        turn
    }

    fn promote(&mut self, at: usize, now: Instant) {
        let Other { tunn, identity, role } = &mut self.others[at];
        std::mem::swap(&mut self.tunn, tunn);
        std::mem::swap(&mut self.identity, identity);
        *role = Role::Former(now);
        // boringtun gives back none that wait for a session, and it will have none.
        self.lost += std::mem::take(&mut self.queued);
        self.responded = None;
        self.initiating_since = None;
    }

    /// Runs the timers of the others.
    pub(super) fn tick_others(&mut self, out: &mut Outbox, now: Instant) {
        let gone =
            |other: &Other| matches!(other.role, Role::Former(heard) if now.saturating_duration_since(heard) >= LINGER);
        self.others.retain(|other| !gone(other));
        if self.is_stale() && !self.has_session() {
            let newest = |other: &Other| matches!(other.role, Role::Candidate { .. });
            if let Some(at) = self.others.iter().position(newest) {
                self.promote(at, now);
                self.others.remove(at);
            }
        }
        let Some(path) = self.path() else { return };
        // Not at each rekey: then the peer is there, and answers under the keys of the session.
        let silent = self.heard().is_none_or(|heard| now.saturating_duration_since(heard) >= SILENCE);
        let lost = self.initiating_since.is_some() && (silent || !self.has_session());
        let calling = self.is_stale() || lost || self.unanswered(now) >= REKEY_TIMEOUT;
        let mut others = std::mem::take(&mut self.others);
        for Other { tunn, role, .. } in &mut others {
            let mut result = tunn.update_timers(out.spare());
            // Former ones only expire, and so do sessions that are of no use.
            let Role::Candidate { called } = role else { continue };
            if !calling && !*called {
                continue;
            }
            if !matches!(result, TunnResult::WriteToNetwork(_)) {
                result = tunn.format_handshake_initiation(out.spare(), false);
            }
            if let TunnResult::WriteToNetwork(datagram) = result {
                let sent = Sent::of(datagram);
                self.put(&sent, path, out, now);
            }
        }
        self.others = others;
        if std::mem::take(&mut self.hint)
            && self.has_session()
            && let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(&[], out.spare())
        {
            let sent = Sent::of(datagram);
            self.put(&sent, path, out, now);
        }
    }

    fn renew(&mut self) {
        for other in &mut self.others {
            if let Role::Candidate { called } = &mut other.role {
                *called = true;
            }
        }
    }

    fn standing(&self) -> Standing {
        let NextKeys { public_key, preshared_key, .. } = &self.settings.next;
        let session = self.has_session() && !self.is_stale();
        Standing {
            session,
            public_key: session && *public_key == Some(self.identity.peer),
            preshared_key: session && preshared_key.is_some() && *preshared_key == self.identity.preshared_key,
        }
    }
}

/// Another private key of this host, and what becomes of the sessions under the one before.
pub(super) enum Rekey {
    /// Each goes on until there is a new one.
    Gently(PrivateKey),
    /// They end.
    AtOnce(PrivateKey),
}

impl Device {
    /// Changes the device's identity; all sessions end, as wg(8) has it.
    pub fn set_private_key(&self, private_key: PrivateKey, now: Instant) {
        self.change(now, |_, _| Some(Rekey::AtOnce(private_key)));
    }

    /// Changes the device's identity; each session goes on until there is one under the new key.
    pub fn rotate_private_key(&self, private_key: PrivateKey, now: Instant) {
        self.change(now, |_, _| Some(Rekey::Gently(private_key)));
    }

    /// Gives a peer other keys, present and next; it stays the same one where the session's are among them. False when
    /// there is no such peer.
    pub fn set_keys(&self, peer: &PublicKey, keys: (PublicKey, Option<PresharedKey>, NextKeys), now: Instant) -> bool {
        let mut found = false;
        self.change(now, |_, settings| {
            let (public_key, preshared_key, next) = keys;
            if let Some(settings) = settings.peers.iter_mut().find(|settings| settings.public_key == *peer) {
                found = true;
                (settings.public_key, settings.preshared_key, settings.next) = (public_key, preshared_key, next);
            }
            for via in settings.peers.iter_mut().filter_map(|settings| settings.via.as_mut()) {
                if via == peer {
                    *via = public_key;
                }
            }
            for exit in settings.local.egress.iter_mut().flat_map(|egress| &mut egress.exits) {
                if exit == peer {
                    *exit = public_key;
                }
            }
            None
        });
        found
    }

    /// Asks the peer for a session under its next keys: it has them.
    pub fn renew(&self, peer: &PublicKey) {
        if let Some(peer) = self.table.load().peers.get(peer) {
            peer.lock().renew();
        }
    }

    /// Under which keys the session with a peer is.
    pub fn standing(&self, peer: &PublicKey) -> Option<Standing> {
        Some(self.table.load().peers.get(peer)?.lock().standing())
    }
}

/// Public and preshared keys under which the peer may be met.
fn combinations(settings: &PeerSettings) -> Vec<(PublicKey, &Option<PresharedKey>)> {
    let PeerSettings { public_key, preshared_key, next, .. } = settings;
    let public_keys = [Some(*public_key), next.public_key];
    let preshared_keys = [Some(preshared_key), next.preshared_key.is_some().then_some(&next.preshared_key)];
    let with = |public_key| preshared_keys.into_iter().flatten().map(move |preshared_key| (public_key, preshared_key));
    public_keys.into_iter().flatten().flat_map(with).collect()
}
