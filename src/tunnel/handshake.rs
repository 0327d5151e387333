//! Handshake messages between their arrival and their answer.
//!
//! They wait in a short queue for a thread that has the time: however many there are, data messages wait for none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};

use super::batch::{Outbox, Path};
use super::gate::Verdict;
use super::peer::Peer;
use super::table::Table;
use super::{lock, message};
use crate::key::PublicKey;

/// What one core answers in a quarter of a second.
const CAPACITY: usize = 1024;
/// When so many wait there is load, and for so long after: MAX_QUEUED_INCOMING_HANDSHAKES / 8, and the second, of the
/// kernel (drivers/net/wireguard/receive.c).
const LOAD: usize = CAPACITY / 8;
const LOAD_LASTS: Duration = Duration::from_secs(1);
/// The longest, an initiation.
const LONGEST: usize = 148;

/// Those that wait.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Queue>);

struct Queue {
    /// Oldest first.
    messages: VecDeque<Message>,
    loaded_until: Option<Instant>,
}

/// The next to answer.
pub(super) struct Waiting {
    message: Message,
    /// Whether it takes a cookie.
    load: bool,
}

/// One message.
struct Message {
    bytes: [u8; LONGEST],
    len: usize,
    path: Path,
}

impl Default for Queue {
    fn default() -> Self {
        Self { messages: VecDeque::with_capacity(CAPACITY), loaded_until: None }
    }
}

impl Handshakes {
    /// False when there is no room. What is longer than any handshake message is cut, and refused later.
    pub(super) fn set_aside(&self, message: &[u8], path: Path) -> bool {
        let mut queue = lock(&self.0);
        let room = queue.messages.len() < CAPACITY;
        if room {
            let len = message.len().min(LONGEST);
            let mut bytes = [0; LONGEST];
            bytes[..len].copy_from_slice(&message[..len]);
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
        queue.messages.pop_front().map(|message| Waiting { message, load })
    }
}

/// Takes one message; answers and what waited for the session go to `out`. False when it was not worth one.
pub(super) fn answer(table: &Table, waiting: &Waiting, out: &mut Outbox, now: Instant, wall: SystemTime) -> bool {
    let Waiting { message: Message { bytes, len, path }, load } = waiting;
    let (message, path) = (&bytes[..*len], *path);
    let peer = if message::kind(message) == Some(message::COOKIE_REPLY) {
        message::receiver(message).and_then(|index| table.receiver(index))
    } else {
        match table.gate.judge(message, path.remote.ip(), *load, out.spare()) {
            Verdict::Admit => sender(table, message),
            Verdict::Challenge(len) => {
                // To whom is not known yet; no peer has this index.
                out.commit(len, u32::MAX, path, 0);
                return true;
            }
            Verdict::Drop => None,
        }
    };
    let Some(peer) = peer else { return false };
    let mut session = peer.lock();
    let taken = session.handshake(message, path, out, now, wall);
    session.drain(out, now);
    taken
}

/// Whose handshake message this is: an initiation carries the sealed static key, a response our index.
fn sender<'t>(table: &'t Table, message: &[u8]) -> Option<&'t Arc<Peer>> {
    match Tunn::parse_incoming_packet(message).ok()? {
        Packet::HandshakeInit(initiation) => {
            let (private_key, public_key) = (table.private_key.to_dalek(), table.public_key.to_dalek());
            let half = parse_handshake_anon(&private_key, &public_key, &initiation).ok()?;
            table.peers.get(&PublicKey::from_bytes(half.peer_static_public).ok()?)
        }
        Packet::HandshakeResponse(response) => table.receiver(response.receiver_idx),
        _ => None,
    }
}
