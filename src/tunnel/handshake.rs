//! Handshake messages between their arrival and their answer.
//!
//! They wait in a short queue for a thread that has the time: however many there are, data messages wait for none.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};

use super::batch::{Outbox, Path};
use super::gate::Verdict;
use super::knocks::KnockCause;
use super::peer::{Peer, Sent, Session};
use super::table::Table;
use super::{Device, lock, message};
use crate::key::PublicKey;

/// What one core answers in a quarter of a second.
const CAPACITY: usize = 1024;
/// When so many wait there is load, and for so long after: MAX_QUEUED_INCOMING_HANDSHAKES / 8, and the second, of the
/// kernel (drivers/net/wireguard/queueing.h and receive.c). That is an eighth of a second's work: a thread
/// that merely waited for a core has no load yet, and a cookie costs an honest peer five seconds.
const LOAD: usize = 512;
const LOAD_LASTS: Duration = Duration::from_secs(1);
/// Addresses that are remembered.
const KNOWN: usize = 1 << 14;
/// The longest, an initiation.
pub(super) const LONGEST: usize = 148;

/// Those that wait.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Queue>);

struct Queue {
    /// Oldest first.
    messages: VecDeque<Message>,
    loaded_until: Option<Instant>,
    /// Who was last heard from each address, by index.
    known: HashMap<SocketAddr, u32>,
}

/// The next to answer.
pub(super) struct Waiting {
    message: Message,
    /// Whether it takes a cookie.
    load: bool,
    /// Whose it was the last time.
    guess: Option<u32>,
}

/// One message.
struct Message {
    bytes: [u8; LONGEST],
    len: usize,
    path: Path,
}

impl Default for Queue {
    fn default() -> Self {
        Self { messages: VecDeque::with_capacity(CAPACITY), loaded_until: None, known: HashMap::new() }
    }
}

impl Handshakes {
    /// False when there is no room. The message has [`LONGEST`] bytes at most.
    pub(super) fn set_aside(&self, message: &[u8], path: Path) -> bool {
        let mut queue = lock(&self.0);
        let room = queue.messages.len() < CAPACITY;
        if room {
            let (len, mut bytes) = (message.len(), [0; LONGEST]);
            bytes[..len].copy_from_slice(message);
            queue.messages.push_back(Message { bytes, len, path });
        }
        room
    }

    pub(super) fn next(&self, now: Instant) -> Option<Waiting> {
        let mut queue = lock(&self.0);
        if queue.messages.len() >= LOAD {
            queue.loaded_until = Some(now + LOAD_LASTS);
        }
        let load = queue.loaded_until.is_some_and(|until| now < until);
        let message = queue.messages.pop_front()?;
        let guess = queue.known.get(&message.path.remote).copied();
        Some(Waiting { message, load, guess })
    }

    fn learn(&self, remote: SocketAddr, index: u32) {
        let known = &mut lock(&self.0).known;
        // Only who proved to be a peer gets here; but one that roams leaves addresses behind.
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert(remote, index);
    }
}

impl Waiting {
    /// Takes the message; the answer goes to `out`. What waited for the session is sent at once. False when it was not
    /// worth an answer.
    pub(super) fn answer(
        &self,
        device: &Device,
        table: &Table,
        out: &mut Outbox,
        now: Instant,
        wall: SystemTime,
        mut send: impl FnMut(&mut Outbox),
    ) -> bool {
        let Message { bytes, len, path } = &self.message;
        let (message, knocks) = (&bytes[..*len], &device.knocks);
        let kind = message::kind(message);
        if kind != Some(message::COOKIE_REPLY) {
            match table.gate.judge(message, path.remote.ip(), self.load, out.spare()) {
                Verdict::Admit => {}
                Verdict::Challenge(len) => {
                    // To whom is not known yet; no peer has this index.
                    out.commit(len, u32::MAX, *path, 0);
                    return true;
                }
                Verdict::Drop => {
                    if kind == Some(message::HANDSHAKE_INITIATION) && message.len() == LONGEST {
                        knocks.note(KnockCause::WrongKey, None, path.remote, now);
                    }
                    return false;
                }
            }
        }
        let mut take = |peer: &Peer, out: &mut Outbox| {
            let mut session = peer.lock();
            let taken = session.handshake(message, *path, out, now, wall);
            // Before anybody can seal what came later.
            while session.drain(out, now) {
                send(out);
            }
            taken
        };
        // What became of it, for those who wonder.
        let note = |peer: &Peer, taken: Result<(), Option<KnockCause>>| {
            match taken {
                Ok(()) if kind != Some(message::COOKIE_REPLY) => knocks.settle(&peer.key, path.remote),
                Err(Some(cause)) => knocks.note(cause, Some(peer.key), path.remote, now),
                _ => {}
            }
            taken.is_ok()
        };
        if kind != Some(message::HANDSHAKE_INITIATION) {
            let peer = message::receiver(message).and_then(|index| table.receiver(index));
            return peer.is_some_and(|peer| note(peer, take(peer, out)));
        }
        // Whose initiation it is costs a Diffie-Hellman, of five in all, to find out. Most come from where the last one
        // came from; boringtun refuses those of another peer before it changes anything.
        if let Some(peer) = self.guess.and_then(|index| table.peer(index))
            && take(peer, out).is_ok()
        {
            return note(peer, Ok(()));
        }
        let Some(key) = initiator(table, message) else { return false };
        let Some(peer) = table.holder(&key) else {
            let handshake = |guest: &Peer| take(guest, out).is_ok();
            if let Some(taken) = device.guests.admit(table, key, (message, path.remote), now, handshake) {
                return taken;
            }
            knocks.note(KnockCause::UnknownKey, Some(key), path.remote, now);
            return false;
        };
        let taken = note(peer, take(peer, out));
        if taken {
            device.handshakes.learn(path.remote, peer.index);
        }
        taken
    }
}

impl Session {
    /// Takes a handshake or cookie message whose macs were checked. The answer and what waited for a session go out.
    ///
    /// # Errors
    /// When it was not worth an answer; why, where that tells anything.
    pub(super) fn handshake(
        &mut self,
        datagram: &[u8],
        path: Path,
        out: &mut Outbox,
        now: Instant,
        wall: SystemTime,
    ) -> Result<(), Option<KnockCause>> {
        let taken = self.handshake_first(datagram, path, out, now, wall);
        let done = taken.is_ok() && message::kind(datagram) != Some(message::HANDSHAKE_INITIATION);
        // A copy of an old initiation is one for every preshared key.
        if done || self.others.is_empty() || matches!(taken, Err(Some(KnockCause::Replayed))) {
            return taken;
        }
        if self.handshake_others(datagram, path, out, now, wall) { Ok(()) } else { taken }
    }

    fn handshake_first(
        &mut self,
        datagram: &[u8],
        path: Path,
        out: &mut Outbox,
        now: Instant,
        wall: SystemTime,
    ) -> Result<(), Option<KnockCause>> {
        let sent = match self.tunn.decapsulate(None, datagram, out.spare()) {
            TunnResult::WriteToNetwork(answer) => Sent::of(answer),
            // A cookie proves nothing about who sent it: neither counted nor followed.
            TunnResult::Done => return Ok(()),
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => return Err(Some(KnockCause::Replayed)),
            TunnResult::Err(WireGuardError::InvalidAeadTag)
                if message::kind(datagram) == Some(message::HANDSHAKE_RESPONSE) =>
            {
                return Err(Some(KnockCause::Undecryptable));
            }
            _ => return Err(None),
        };
        self.move_to(path);
        self.authenticated(datagram.len(), now);
        if sent.kind == message::HANDSHAKE_RESPONSE {
            self.responded = sent.sender;
        } else {
            self.established(true, now, wall);
        }
        self.commit(&sent, path, out, now);
        Ok(())
    }

    /// Puts what waited for a session into `out`, once there is one. Whether that was anything.
    pub(super) fn drain(&mut self, out: &mut Outbox, now: Instant) -> bool {
        let Some(path) = self.path() else { return false };
        let before = out.len();
        while self.queued > 0 && self.has_session() && out.has_room() {
            match self.tunn.decapsulate(None, &[], out.spare()) {
                TunnResult::WriteToNetwork(datagram) => {
                    let sent = Sent::of(datagram);
                    self.commit(&sent, path, out, now);
                }
                _ => self.queued = 0,
            }
        }
        out.len() > before
    }
}

/// Who sent this initiation, by the static key that is sealed in it.
fn initiator(table: &Table, message: &[u8]) -> Option<PublicKey> {
    let Packet::HandshakeInit(initiation) = Tunn::parse_incoming_packet(message).ok()? else { return None };
    let (private_key, public_key) = (table.private_key.to_dalek(), table.public_key.to_dalek());
    let half = parse_handshake_anon(&private_key, &public_key, &initiation).ok()?;
    PublicKey::from_bytes(half.peer_static_public).ok()
}
