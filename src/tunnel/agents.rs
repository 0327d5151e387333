//! The way of agents' messages through the device: never to or from the TUN device.
//!
//! What arrives for an agent is either a letter, which waits in a bounded box until the control side takes it, or a probe
//! of the measurement under way, which is counted and answered on the spot: no queue, no allocation, no thread woken.

use std::collections::VecDeque;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::task::AtomicWaker;
use zeroize::Zeroize as _;

use super::batch::{Outbox, Path};
use super::peer::{Peer, Session};
use super::{Device, message};
use crate::bench::{PROBE_LEN, Route, Run, Taken};
use crate::channel::{HEADER, Kind, Letter, MAX_BODY, Message, OVERHEAD};
use crate::key::PublicKey;
use crate::packet::segment::PADDING;

/// Letters that wait for the control side.
const BOX: usize = 64;
/// What a peer may send: 50 letters a second, 20 at once.
const LETTER: Duration = Duration::from_millis(20);
const LETTERS: Duration = Duration::from_millis(400);
/// Before the message of a bare probe: the type and, as in all messages of WireGuard, three reserved bytes.
const BARE_HEADER: usize = 4;
/// What a sealed packet is longer than its plain text: WireGuard's header and tag.
const SEAL: usize = 32;
/// No peer's index: it would have 23 bits.
const NO_PEER: u32 = u32::MAX;
/// Jumbo frames and no more, for it lies on the stack.
const MAX_LOAD: usize = 9216;

/// What agents say to this one.
pub struct Agents {
    letters: Mutex<VecDeque<Slot>>,
    /// There are letters that nobody was woken for.
    news: AtomicBool,
    reader: AtomicWaker,
    /// The measurement under way.
    run: ArcSwapOption<Run>,
}

/// A letter in the box, of a fixed size, so that putting it there allocates nothing.
struct Slot {
    peer: PublicKey,
    kind: Kind,
    answer: bool,
    id: u32,
    /// Its packet's length.
    size: u16,
    len: usize,
    body: [u8; MAX_BODY],
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            letters: Mutex::new(VecDeque::with_capacity(BOX)),
            news: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            run: ArcSwapOption::empty(),
        }
    }
}

impl Agents {
    /// Begins a run, or ends the one under way.
    pub fn set_run(&self, run: Option<Arc<Run>>) {
        if let Some(old) = self.run.swap(run) {
            old.stop();
        }
    }

    /// Ends this run, if it is still the one under way.
    pub fn end_run(&self, run: &Arc<Run>) {
        self.run.compare_and_swap(&Some(Arc::clone(run)), None);
        run.stop();
    }

    /// The next letter. For one reader.
    pub fn poll_letter(&self, context: &mut Context<'_>) -> Poll<Letter> {
        self.reader.register(context.waker());
        let slot = self.letters.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        slot.map_or(Poll::Pending, |Slot { peer, kind, answer, id, size, len, body }| {
            Poll::Ready(Letter { peer, kind, answer, id, body: body[..len].to_vec(), size })
        })
    }

    /// Wakes the reader. Not while a session is locked: it may cost a system call.
    pub(super) fn announce(&self) {
        if self.news.load(Ordering::Relaxed) && self.news.swap(false, Ordering::AcqRel) {
            self.reader.wake();
        }
    }

    /// Takes a packet that `peer` has sealed for the agent at `own`. False when it is no message of that peer's agent,
    /// or more than a peer may send; `express` when it came under express keys. Apart from the loop that opens packets, which is for the others.
    #[inline(never)]
    pub(super) fn tunnelled(
        &self,
        packet: &mut [u8],
        own: Ipv6Addr,
        (peer, session, express): (&Peer, &mut Session, bool),
        out: &mut Outbox,
        now: Instant,
    ) -> bool {
        let Some(message) = Message::parse_packet(packet, peer.address, own) else { return false };
        if message.kind != Kind::Probe {
            session.agent = true;
            if message.kind == Kind::Express {
                let wanted = !express && session.letters.take(LETTER, LETTERS, now).is_ok();
                let taken = wanted && session.take_express(message.body, out, now);
                packet.zeroize();
                return taken;
            }
            // Only who is no peer yet asks to become one.
            let wanted = message.kind != Kind::Enroll || message.answer;
            return wanted
                && session.letters.take(LETTER, LETTERS, now).is_ok()
                && self.deliver(peer.key, &message, packet.len());
        }
        let run = self.run.load();
        let Some(run) = run.as_ref().filter(|run| run.peer == peer.key) else { return false };
        session.express.data.received = true;
        // What comes under express keys is not what an ordinary run measures.
        let route = if express { Route::Tunnel } else { run.sealed_route() };
        match run.take(route, message.body, packet.len(), now) {
            Taken::Refused => false,
            Taken::Kept => true,
            Taken::Reply(probe) => {
                let mut packet = [0; (OVERHEAD + PROBE_LEN).next_multiple_of(PADDING)];
                probe_message(&probe).write_packet(own, peer.address, &mut packet);
                session.say_by(route, &packet, out, now)
            }
        }
    }

    /// Takes a bare probe. False when it is none of the run under way, or not from where its peer is.
    pub(super) fn bare(&self, datagram: &[u8], path: Path, out: &mut Outbox, now: Instant) -> bool {
        let run = self.run.load();
        let Some(run) = run.as_ref().filter(|run| run.remote == path.remote) else { return false };
        let message = datagram.get(BARE_HEADER..).and_then(Message::parse);
        let Some(message) = message.filter(|message| message.kind == Kind::Probe) else { return false };
        match run.take(Route::Bare, message.body, datagram.len(), now) {
            Taken::Refused => false,
            Taken::Kept => true,
            Taken::Reply(probe) => put_bare(&probe, path, out),
        }
    }

    fn deliver(&self, peer: PublicKey, message: &Message<'_>, packet: usize) -> bool {
        let len = message.body.len();
        if len > MAX_BODY {
            return false;
        }
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        if letters.len() >= BOX {
            return false;
        }
        let Message { kind, answer, id, .. } = *message;
        let mut body = [0; MAX_BODY];
        body[..len].copy_from_slice(message.body);
        let size = u16::try_from(packet).unwrap_or(u16::MAX);
        letters.push_back(Slot { peer, kind, answer, id, size, len, body });
        self.news.store(true, Ordering::Release);
        true
    }
}

impl Device {
    /// Seals a message to a peer's agent. False when the peer is not known or has no endpoint.
    pub fn say(&self, peer: &PublicKey, message: &Message<'_>, out: &mut Outbox, now: Instant) -> bool {
        self.send(peer, message, |session, packet| session.say(packet, out, now))
    }

    /// The same for a message that is of use now or never: without a session it is dropped, and a session asked for.
    pub fn knock(&self, peer: &PublicKey, message: &Message<'_>, out: &mut Outbox, now: Instant) -> bool {
        self.send(peer, message, |session, packet| session.knock(packet, out, now))
    }

    fn send(&self, peer: &PublicKey, message: &Message<'_>, seal: impl FnOnce(&mut Session, &[u8]) -> bool) -> bool {
        let table = self.table.load();
        let Some(peer) = table.peers.get(peer).filter(|_| message.body.len() <= MAX_BODY) else { return false };
        let mut packet = [0; OVERHEAD + MAX_BODY];
        let len = message.write_packet(table.address, peer.address, &mut packet);
        seal(&mut peer.lock(), &packet[..len.next_multiple_of(PADDING)])
    }

    /// Seals a letter; one with a size of its own in a packet as long as that, but no longer than the tunnel's.
    pub fn post(&self, letter: &Letter, out: &mut Outbox, now: Instant) -> bool {
        let message = letter.message();
        if letter.size == 0 {
            return self.say(&letter.peer, &message, out, now);
        }
        let table = self.table.load();
        let Some(peer) = table.peers.get(&letter.peer).filter(|_| message.body.len() <= MAX_BODY) else { return false };
        let size = letter.size.min(self.mtu.load(Ordering::Relaxed));
        let mut packet = [0; MAX_LOAD];
        let len = message.write_packet_of(usize::from(size).min(MAX_LOAD), table.address, peer.address, &mut packet);
        peer.lock().say(&packet[..len], out, now)
    }

    /// Where a peer is reached now; nowhere while its relay stands in for it.
    pub fn path(&self, peer: &PublicKey) -> Option<Path> {
        self.table.load().peers.get(peer).filter(|peer| !peer.relay.carries())?.lock().path()
    }

    /// Puts probes of a run into `out`, small as they are. False when it could not.
    pub fn probe(&self, run: &Run, route: Route, probe: &[u8; PROBE_LEN], out: &mut Outbox, now: Instant) -> bool {
        match route {
            Route::Bare => {
                let path = self.path(&run.peer).filter(|path| path.remote == run.remote);
                path.is_some_and(|path| put_bare(probe, path, out))
            }
            sealed => {
                let say = |session: &mut Session, packet: &[u8]| session.say_by(sealed, packet, out, now);
                self.send(&run.peer, &probe_message(probe), say)
            }
        }
    }

    /// Puts load of a run into `out`, each packet as long as the longest of the tunnel and starting with one of
    /// `probes`. False when there is nowhere to send it.
    pub fn load(
        &self,
        run: &Run,
        probes: impl Iterator<Item = [u8; PROBE_LEN]>,
        out: &mut Outbox,
        now: Instant,
    ) -> bool {
        let table = self.table.load();
        let Some(peer) = table.peers.get(&run.peer) else { return false };
        let mtu = usize::from(self.mtu.load(Ordering::Relaxed)).clamp(OVERHEAD + PROBE_LEN, MAX_LOAD);
        let (mut body, mut packet) = ([0; MAX_LOAD + SEAL], [0; MAX_LOAD]);
        let mut session = peer.lock();
        session.express.data.sent |= run.terms.route != Route::Bare;
        let Some(path) = session.path().filter(|path| path.remote == run.remote) else { return false };
        for probe in probes {
            body[..PROBE_LEN].copy_from_slice(&probe);
            let sent = match run.terms.route {
                // As long as the sealed packets are.
                Route::Bare => put_bare(&body[..mtu + SEAL - BARE_HEADER - HEADER], path, out),
                sealed => {
                    let message = probe_message(&body[..mtu - OVERHEAD]);
                    let len = message.write_packet(table.address, peer.address, &mut packet);
                    session.say_by(sealed, &packet[..len], out, now)
                }
            };
            if !sent {
                return false;
            }
        }
        true
    }
}

impl Session {
    /// Seals a packet of a run.
    fn say_by(&mut self, route: Route, packet: &[u8], out: &mut Outbox, now: Instant) -> bool {
        match route {
            Route::Ordinary => self.say_ordinary(packet, out, now),
            _ => self.say(packet, out, now),
        }
    }
}

fn probe_message(body: &[u8]) -> Message<'_> {
    Message { kind: Kind::Probe, answer: false, id: 0, body }
}

/// Puts a bare probe into `out`. False when there is no room.
fn put_bare(body: &[u8], path: Path, out: &mut Outbox) -> bool {
    let len = BARE_HEADER + HEADER + body.len();
    let fits = out.fits(len);
    if fits {
        let datagram = &mut out.spare()[..len];
        datagram[..BARE_HEADER].copy_from_slice(&[message::PROBE, 0, 0, 0]);
        probe_message(body).write(&mut datagram[BARE_HEADER..]);
        // Bare probes have an order of their own.
        out.commit(len, NO_PEER, path, 0);
    }
    fits
}

#[cfg(test)]
mod tests;
