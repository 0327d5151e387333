//! Who redeems an invitation: sessions of throwaway keys, apart from the peers'.
//!
//! 1. An initiation under a key that no peer has, and an invitation does, gets a session of its own for the address that it
//!    comes from: several may hold one token, and none of them ends another's.
//! 2. What a guest seals is looked up only after no peer has the receiver index. A request of [`Kind::Enroll`] goes into a
//!    bounded box for the control side; all else goes nowhere. A guest has no allowed IPs, and is never called.
//! 3. The control side answers into the very session that asked.
//!
//! A guest that says nothing for a minute is forgotten; of too many, the one that came first.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;

use super::batch::Outbox;
use super::peer::{Peer, Session};
use super::table::Table;
use super::{Device, PeerSettings, lock};
use crate::channel::{Kind, MAX_BODY, Message, OVERHEAD};
use crate::express::{Ability, Reason};
use crate::key::{NextKeys, PresharedKey, PublicKey};
use crate::packet::segment::PADDING;

/// Sessions in all, some ten kilobytes each. To take one needs a token, or a captured initiation for each.
const GUESTS: usize = 256;
/// Without an authenticated packet. A joiner that waits asks every few seconds.
const SILENCE: Duration = Duration::from_secs(60);
/// Letters that wait for the control side.
const BOX: usize = 64;
/// What a guest may send, as a peer may: 50 letters a second, 20 at once.
const LETTER: Duration = Duration::from_millis(20);
const LETTERS: Duration = Duration::from_millis(400);
/// Where an initiation has its mac1 (whitepaper, section 5.4.4), which no two honest ones share.
const MAC1: std::ops::Range<usize> = 116..132;

/// A session of a throwaway key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// The throwaway key, by which the invitation is found.
    pub key: PublicKey,
    index: u32,
}

/// What a guest asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestLetter {
    /// Whom to answer.
    pub from: Guest,
    /// As in [`Message`].
    pub id: u32,
    /// As in [`Message`].
    pub body: Vec<u8>,
}

/// All guests.
#[derive(Default)]
pub struct Guests {
    /// Whether anybody is invited: most of the time it is all that is looked at.
    open: AtomicBool,
    state: Mutex<State>,
    letters: Mutex<VecDeque<GuestLetter>>,
    reader: AtomicWaker,
}

#[derive(Default)]
struct State {
    invited: HashMap<PublicKey, PresharedKey>,
    /// By the index of the session.
    slots: HashMap<u32, Slot>,
}

struct Slot {
    remote: SocketAddr,
    mac1: Vec<u8>,
    since: Instant,
    peer: Arc<Peer>,
}

impl Guests {
    /// The next letter. For one reader.
    pub fn poll_letter(&self, context: &mut Context<'_>) -> Poll<GuestLetter> {
        self.reader.register(context.waker());
        lock(&self.letters).pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    /// Takes an initiation under `key` through `handshake`, which says whether it was worth an answer; `None` when nobody
    /// invited that key.
    pub(super) fn admit(
        &self,
        table: &Table,
        key: PublicKey,
        (initiation, remote): (&[u8], SocketAddr),
        now: Instant,
        handshake: impl FnOnce(&Peer) -> bool,
    ) -> Option<bool> {
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        let mac1 = initiation.get(MAC1).unwrap_or_default().to_vec();
        let known = {
            let state = lock(&self.state);
            let preshared_key = state.invited.get(&key)?;
            let same = |slot: &&Slot| slot.peer.key == key && slot.remote == remote;
            match state.slots.values().find(same) {
                // A copy of an older initiation its timestamp gives away.
                Some(slot) => Ok(Arc::clone(&slot.peer)),
                None if state.slots.values().any(|slot| slot.mac1 == mac1) => return Some(false),
                None => Err((preshared_key.clone(), state.slots.keys().copied().collect::<Vec<_>>())),
            }
        };
        let peer = known.unwrap_or_else(|(preshared_key, slots)| {
            let taken = table.peers.values().map(|peer| peer.index).chain(slots).collect();
            let settings = PeerSettings {
                public_key: key,
                preshared_key: Some(preshared_key),
                endpoint: None,
                persistent_keepalive: None,
                allowed_ips: Vec::new(),
                deliver: false,
                via: None,
                next: NextKeys::default(),
                express: Ability::Unable(Reason::Off),
            };
            Arc::new(Peer::new(&table.own(), settings, Table::free_index(&taken), now))
        });
        // It takes a while, and nobody has to wait for it: one thread answers handshakes.
        let taken = handshake(&peer);
        let mut state = lock(&self.state);
        if taken && state.invited.contains_key(&key) {
            let first = state.slots.iter().min_by_key(|(_, slot)| slot.since).map(|(&index, _)| index);
            if state.slots.len() >= GUESTS && !state.slots.contains_key(&peer.index) {
                first.and_then(|index| state.slots.remove(&index));
            }
            let since = state.slots.get(&peer.index).map_or(now, |slot| slot.since);
            state.slots.insert(peer.index, Slot { remote, mac1, since, peer });
        }
        Some(taken)
    }

    /// The guest that was told this receiver index.
    pub(super) fn receiver(&self, index: u32) -> Option<Arc<Peer>> {
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        lock(&self.state).slots.get(&(index >> 8)).map(|slot| Arc::clone(&slot.peer))
    }

    /// Takes a packet that a guest has sealed for the agent at `own`. False when it is nothing that a guest may send.
    pub(super) fn take(&self, packet: &[u8], own: Ipv6Addr, peer: &Peer, session: &mut Session, now: Instant) -> bool {
        let Some(message) = Message::parse_packet(packet, peer.address, own) else { return false };
        if message.kind != Kind::Enroll || message.answer || session.letters.take(LETTER, LETTERS, now).is_err() {
            return false;
        }
        let mut letters = lock(&self.letters);
        if letters.len() >= BOX {
            return false;
        }
        let from = Guest { key: peer.key, index: peer.index };
        letters.push_back(GuestLetter { from, id: message.id, body: message.body.to_vec() });
        true
    }

    /// Wakes the reader. Not while a session is locked: it may cost a system call.
    pub(super) fn announce(&self) {
        self.reader.wake();
    }

    /// Forgets those that are silent.
    pub(super) fn tick(&self, now: Instant) {
        if self.open.load(Ordering::Relaxed) {
            let heard = |slot: &Slot| slot.peer.lock().heard().unwrap_or(slot.since);
            let silent = |slot: &Slot| now.saturating_duration_since(heard(slot)) >= SILENCE;
            lock(&self.state).slots.retain(|_, slot| !silent(slot));
        }
    }

    /// Forgets all sessions, which were this host's old key's.
    pub(super) fn clear(&self) {
        lock(&self.state).slots.clear();
    }

    /// No peer may have one of these.
    pub(super) fn indices(&self) -> Vec<u32> {
        lock(&self.state).slots.keys().copied().collect()
    }

    fn invite(&self, invited: HashMap<PublicKey, PresharedKey>) {
        let mut state = lock(&self.state);
        state.slots.retain(|_, slot| invited.contains_key(&slot.peer.key));
        self.open.store(!invited.is_empty(), Ordering::Relaxed);
        state.invited = invited;
    }

    fn find(&self, guest: &Guest) -> Option<Arc<Peer>> {
        let state = lock(&self.state);
        state.slots.get(&guest.index).filter(|slot| slot.peer.key == guest.key).map(|slot| Arc::clone(&slot.peer))
    }
}

impl Device {
    /// Makes these throwaway keys, each with its preshared key, all that may knock without being peers.
    pub fn invite(&self, invited: impl IntoIterator<Item = (PublicKey, PresharedKey)>) {
        self.guests.invite(invited.into_iter().collect());
    }

    /// Seals an answer to a guest. False when it has gone.
    pub fn answer_guest(&self, guest: &Guest, id: u32, body: &[u8], out: &mut Outbox, now: Instant) -> bool {
        let Some(peer) = self.guests.find(guest).filter(|_| body.len() <= MAX_BODY) else { return false };
        let message = Message { kind: Kind::Enroll, answer: true, id, body };
        let mut packet = zeroize::Zeroizing::new(vec![0; OVERHEAD + body.len().next_multiple_of(PADDING) + PADDING]);
        let len = message.write_packet(self.table.load().address, peer.address, &mut packet);
        peer.lock().say(&packet[..len.next_multiple_of(PADDING)], out, now)
    }
}

#[cfg(test)]
mod tests;
