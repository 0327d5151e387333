//! Handshake messages between their arrival and their answer.
//!
//! They wait in a short queue for a thread that has the time: however many there are, data messages wait for none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};

use super::batch::{Outbox, Path};
use super::gate::Verdict;
use super::peer::Peer;
use super::table::Table;
use super::{lock, message};
use crate::key::PublicKey;

/// What a tenth of a second brings at 4,000 a second, which is what one core answers.
const CAPACITY: usize = 400;
/// The longest, an initiation.
const LONGEST: usize = 148;

/// Those that wait, oldest first.
pub(super) struct Handshakes(Mutex<VecDeque<Waiting>>);

/// One message.
pub(super) struct Waiting {
    bytes: [u8; LONGEST],
    len: usize,
    path: Path,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self(Mutex::new(VecDeque::with_capacity(CAPACITY)))
    }
}

impl Handshakes {
    /// False when there is no room. What is longer than any handshake message is cut, and refused later.
    pub(super) fn set_aside(&self, message: &[u8], path: Path) -> bool {
        let mut queue = lock(&self.0);
        let room = queue.len() < CAPACITY;
        if room {
            let len = message.len().min(LONGEST);
            let mut bytes = [0; LONGEST];
            bytes[..len].copy_from_slice(&message[..len]);
            queue.push_back(Waiting { bytes, len, path });
        }
        room
    }

    pub(super) fn next(&self) -> Option<Waiting> {
        lock(&self.0).pop_front()
    }
}

/// Takes one message; answers and what waited for the session go to `out`. False when it was not worth one.
pub(super) fn answer(table: &Table, waiting: &Waiting, out: &mut Outbox, now: Instant, wall: SystemTime) -> bool {
    let (message, path) = (&waiting.bytes[..waiting.len], waiting.path);
    let peer = if message::kind(message) == Some(message::COOKIE_REPLY) {
        message::receiver(message).and_then(|index| table.receiver(index))
    } else {
        match table.gate.judge(message, path.remote.ip(), out.spare()) {
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
