//! Express sessions on their way through the device: what a worker seals and opens without the session's lock, and what is
//! done under it with each tick, handshake and message of the peer's agent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::Guard;
use boringtun::noise::TunnResult;
use zeroize::Zeroizing;

use super::batch::{Inbox, Outbox, Path};
use super::peer::{Peer, Sent, Session};
use super::timers::{Due, Moved, Timers, Ways};
use crate::channel::{Kind, Message, OVERHEAD, address};
use crate::express::{
    self, Ability, Agreement, Counts, LONGEST, Lanes, Opener, Proof, REJECT_AFTER_TIME, Refused, Sealer,
};
use crate::packet::segment::PADDING;

/// Bytes under one session of WireGuard from which on an agreement is worth its three messages: so few a device that sleeps
/// most of the time does not send.
const WORTH: u64 = 1 << 14;

/// What a session keeps of its peer's express sessions.
pub(super) struct Express {
    pub(super) agreement: Agreement,
    lanes: Arc<Lanes>,
    timers: Timers,
    /// Data that left and came under WireGuard's own session since the last tick.
    pub(super) data: Ways,
    /// Anything but a handshake left under it since then.
    pub(super) answered: bool,
    /// Bytes received and sent under it until the last tick.
    own: (u64, u64),
    /// What went under express keys until then.
    counts: Counts,
    /// The sum of `own` as the session of WireGuard began.
    begun_at: u64,
    /// The peer is to be asked for a handshake, so that it may begin an agreement.
    wants_handshake: bool,
}

impl Express {
    pub(super) fn new(agreement: Agreement, lanes: Arc<Lanes>) -> Self {
        Self {
            agreement,
            lanes,
            timers: Timers::default(),
            data: Ways::default(),
            answered: false,
            own: (0, 0),
            counts: Counts::default(),
            begun_at: 0,
            wants_handshake: false,
        }
    }
}

/// Packets of one batch that leave under a peer's express keys.
pub(super) struct Departing<'p> {
    peer: &'p Peer,
    sealer: Guard<Option<Arc<Sealer>>>,
    path: Path,
    packets: u64,
    bytes: u64,
}

impl<'p> Departing<'p> {
    /// None when data for the peer leaves under WireGuard's own session.
    pub(super) fn to(peer: &'p Peer, now: Instant) -> Option<Self> {
        let sealer = peer.lanes.sealer(now)?;
        let path = **peer.path.load().as_ref()?;
        Some(Self { peer, sealer, path, packets: 0, bytes: 0 })
    }

    /// Seals one packet. False when there is no room, or no counter left.
    pub(super) fn seal(&mut self, packet: &[u8], traffic_class: u8, out: &mut Outbox) -> bool {
        if !out.fits(packet.len()) {
            return false;
        }
        let Some(sealed) = self.sealer.as_ref().and_then(|sealer| sealer.seal(packet, out.spare())) else {
            return false;
        };
        out.commit(sealed, self.peer.index, self.path, traffic_class);
        self.packets += 1;
        self.bytes += sealed as u64;
        true
    }
}

impl Drop for Departing<'_> {
    fn drop(&mut self) {
        if let Some(sealer) = self.sealer.as_ref() {
            self.peer.lanes.sent(sealer, self.packets, self.bytes);
        }
    }
}

/// Messages in a row that came under one express index.
pub(super) struct Arriving<'p> {
    pub(super) peer: &'p Arc<Peer>,
    pub(super) index: u32,
    opener: Guard<Option<Arc<Opener>>>,
    packets: u64,
    bytes: u64,
}

impl<'p> Arriving<'p> {
    /// None when nothing is opened under this index.
    pub(super) fn under(index: u32, peer: &'p Arc<Peer>, path: Path) -> Option<Self> {
        let Some(opener) = peer.lanes.opener(index) else {
            // From elsewhere it says nothing about the peer.
            if peer.path.load().as_ref().is_some_and(|known| known.remote == path.remote) {
                peer.lanes.note_stray(index);
            }
            return None;
        };
        Some(Self { peer, index, opener, packets: 0, bytes: 0 })
    }

    /// Opens one message into `inbox`, without keeping the packet yet. The length of its padded plain text.
    pub(super) fn open(
        &mut self,
        datagram: &[u8],
        path: Path,
        inbox: &mut Inbox,
        out: &mut Outbox,
        now: Instant,
    ) -> Option<usize> {
        let opener = self.opener.as_ref()?;
        let len = match opener.open(datagram, inbox.spare(), now) {
            Ok(len) => len,
            Err(Refused::Forged) if opener.is_doubtful() => {
                self.peer.lanes.note_stray(self.index);
                return None;
            }
            Err(_) => return None,
        };
        self.packets += 1;
        self.bytes += datagram.len() as u64;
        let known = self.packets > 1 || self.peer.path.load().as_ref().is_some_and(|known| **known == path);
        if len == 0 || !known {
            self.peer.lock().opened_express((self.index, len == 0), path, out, now);
        }
        Some(len)
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.peer.lanes.received(self.packets, self.bytes);
    }
}

impl Session {
    /// Follows what is configured.
    pub(super) fn set_express(&mut self, ability: Ability) {
        self.express.wants_handshake |= self.express.agreement.set_ability(ability) && self.has_session();
    }

    /// Begins anew under another session of WireGuard.
    pub(super) fn renew_express(&mut self, initiator: bool, now: Instant) {
        let (own, peer) = self.parties();
        let age = self.tunn.time_since_last_handshake().unwrap_or(REJECT_AFTER_TIME);
        self.express.agreement.established(own, peer, age, now);
        self.express.timers.established(initiator);
        self.express.data = Ways::default();
        self.express.wants_handshake = false;
        let (received, sent) = self.own_counters();
        self.express.begun_at = received + sent;
    }

    /// Seals a packet of this agent's own under express keys. False when there are none.
    pub(super) fn say_express(&mut self, packet: &[u8], out: &mut Outbox, now: Instant) -> bool {
        let lanes = Arc::clone(&self.express.lanes);
        let sealer = lanes.sealer(now);
        sealer.as_ref().and_then(|sealer| sealer.as_ref()).is_some_and(|sealer| self.put_express(sealer, packet, out))
    }

    /// The peer's agent says something about express sessions. False when nobody could make sense of it.
    pub(super) fn take_express(&mut self, body: &[u8], out: &mut Outbox, now: Instant) -> bool {
        // The keys are to be those of the session, whoever else this may be of.
        let Some((answer, proof)) = (!self.aside).then(|| self.express.agreement.take(body, now).ok()).flatten() else {
            return false;
        };
        self.say_of_express(answer, proof, out, now);
        true
    }

    /// A message came under express keys that is empty, or from elsewhere than before.
    fn opened_express(&mut self, (index, empty): (u32, bool), path: Path, out: &mut Outbox, now: Instant) {
        self.move_to(path);
        if empty {
            self.say_of_express(Some(express::Message::Opened { index }), None, out, now);
        }
    }

    /// Runs what [`super::timers`] and the agreement have to do.
    pub(super) fn tick_express(&mut self, out: &mut Outbox, rekey_after: Duration, now: Instant) {
        if !self.has_session() {
            self.express.agreement.ended();
        }
        let moved = self.moved(now);
        let worn = self.express.wants_handshake || self.express.lanes.is_worn();
        let due = self.express.timers.tick(moved, (self.tunn.time_since_last_handshake(), worn), rekey_after, now);
        if due == Some(Due::Fallback) {
            self.express.agreement.unheard();
        }
        let (received, sent) = self.express.own;
        let worth = self.express.timers.flowed() && received + sent - self.express.begun_at >= WORTH;
        let (said, proof) = self.express.agreement.tick((worth, self.agent), moved.opened, now);
        self.say_of_express(said, proof, out, now);
        let Some(path) = self.path().filter(|_| out.fits(0)) else { return };
        let result = match due {
            // Under a key that is no longer this host's nobody would answer.
            Some(Due::Handshake) if !self.is_stale() => self.tunn.format_handshake_initiation(out.spare(), false),
            Some(Due::Keepalive) => self.tunn.encapsulate(&[], out.spare()),
            _ => return,
        };
        if let TunnResult::WriteToNetwork(datagram) = result {
            let sent = Sent::of(datagram);
            self.commit(&sent, path, out, now);
        }
    }

    fn moved(&mut self, now: Instant) -> Moved {
        let (own, counts) = (self.own_counters(), self.express.lanes.counts());
        let own_before = std::mem::replace(&mut self.express.own, own);
        let under_keys = counts.since(std::mem::replace(&mut self.express.counts, counts));
        let data = std::mem::take(&mut self.express.data);
        // An initiation answers nothing: it is sent again and again where none arrives.
        let own = Ways { sent: std::mem::take(&mut self.express.answered), received: own.0 != own_before.0 };
        if under_keys != Counts::default() {
            self.moved_beside(under_keys.rx_packets > 0, now);
        }
        // Empty ones are no data: nobody answers them.
        let data_in = |packets, bytes| bytes > packets * express::OVERHEAD as u64;
        let express = Ways {
            sent: data_in(under_keys.tx_packets, under_keys.tx_bytes),
            received: data_in(under_keys.rx_packets, under_keys.rx_bytes),
        };
        let data = Ways { sent: data.sent || express.sent, received: data.received || express.received };
        Moved { own, data, express, opened: under_keys.rx_packets > 0 }
    }

    fn say_of_express(
        &mut self,
        message: Option<express::Message>,
        proof: Option<Proof>,
        out: &mut Outbox,
        now: Instant,
    ) {
        if let Some(message) = message.filter(|_| self.has_session()) {
            let mut body = Zeroizing::new([0; LONGEST]);
            let len = message.write(&mut body);
            let message = Message { kind: Kind::Express, answer: false, id: 0, body: &body[..len] };
            let mut packet = Zeroizing::new([0; (OVERHEAD + LONGEST).next_multiple_of(PADDING)]);
            let (own, peer) = (address::of(&self.own), address::of(&self.settings().public_key));
            let len = message.write_packet(own, peer, &mut *packet);
            // Under WireGuard's session whatever there is: it is what the keys rest on. Lost, it is said again.
            let _ = self.seal(&packet[..len.next_multiple_of(PADDING)], 0, out, now);
        }
        if let Some(Proof(sealer)) = proof {
            self.put_express(&sealer, &[], out);
        }
    }

    fn put_express(&mut self, sealer: &Sealer, packet: &[u8], out: &mut Outbox) -> bool {
        let Some(path) = self.path().filter(|_| out.fits(packet.len())) else { return false };
        let Some(len) = sealer.seal(packet, out.spare()) else { return false };
        out.commit(len, self.index, path, 0);
        self.express.lanes.sent(sealer, 1, len as u64);
        true
    }
}
