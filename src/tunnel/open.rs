//! What becomes of one data message: which session opens it, and whether the packet inside may come from there.

use std::net::IpAddr;
use std::sync::{Arc, MutexGuard};
use std::time::{Instant, SystemTime};

use super::batch::{Inbox, Outbox, Path};
use super::egress::Foreign;
use super::express::Arriving;
use super::peer::{Opened, Peer, Session};
use super::table::Table;
use super::{Device, count, message};
use crate::channel::address;
use crate::express::INDEX;
use crate::packet::{ecn, ip};

/// One call of [`Device::open`]: what is looked up once per run of one peer's messages, not once per message.
pub(super) struct Opener<'t> {
    judge: Judge<'t>,
    path: Path,
    now: Instant,
    wall: SystemTime,
    /// The peer of the previous data message under WireGuard's own session, still locked; known to be where these come from
    /// once one was opened.
    held: Option<(&'t Arc<Peer>, MutexGuard<'t, Session>, bool)>,
    /// The same of one under express keys, not locked.
    arriving: Option<Arriving<'t>>,
}

impl<'t> Opener<'t> {
    pub(super) fn new(
        (device, table): (&'t Device, &'t Table),
        (path, traffic_class): (Path, u8),
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        let judge = Judge { device, table, traffic_class, now, proven: None, foreign: Foreign::default() };
        Self { judge, path, now, wall, held: None, arriving: None }
    }

    /// Whether the message was any good.
    pub(super) fn data(&mut self, datagram: &[u8], inbox: &mut Inbox, out: &mut Outbox) -> bool {
        match message::receiver(datagram) {
            Some(index) if index & INDEX == 0 => self.under_wireguard(index, datagram, inbox, out),
            Some(index) => self.under_express(index, datagram, inbox, out),
            None => false,
        }
    }

    fn under_wireguard(&mut self, index: u32, datagram: &[u8], inbox: &mut Inbox, out: &mut Outbox) -> bool {
        if self.held.as_ref().is_none_or(|(peer, ..)| peer.index != index >> 8) {
            (self.held, self.arriving) = (None, None);
            self.judge.forget();
            let Some(peer) = self.judge.table.receiver(index) else { return self.guest(index, datagram, inbox) };
            self.held = Some((peer, peer.lock(), false));
        }
        let Some((peer, session, followed)) = &mut self.held else { return false };
        let opened = session.open(datagram, inbox, self.now, self.wall);
        if matches!(opened, Opened::Refused) {
            return false;
        }
        if !std::mem::replace(followed, true) {
            session.move_to(self.path);
        }
        match opened {
            Opened::Keepalive | Opened::Refused => {}
            Opened::Packet(len) => match self.judge.judge(peer, len, inbox) {
                Judged::ForAgent => self.judge.tell_agent((peer, session, false), len, inbox, out),
                Judged::Kept => session.express.data.received = true,
                Judged::Dropped => {}
            },
        }
        session.drain(out, self.now);
        true
    }

    fn under_express(&mut self, index: u32, datagram: &[u8], inbox: &mut Inbox, out: &mut Outbox) -> bool {
        if self.arriving.as_ref().is_none_or(|arriving| arriving.index != index) {
            // What is opened may take the lock.
            (self.held, self.arriving) = (None, None);
            self.judge.forget();
            let Some(peer) = self.judge.table.receiver(index) else { return false };
            self.arriving = Arriving::under(index, peer, self.path);
        }
        let Some(arriving) = &mut self.arriving else { return false };
        let Some(padded) = arriving.open(datagram, self.path, inbox, out, self.now) else { return false };
        if padded == 0 {
            return true;
        }
        let peer = arriving.peer;
        let Some(len) = ip::Ip::parse(&inbox.spare()[..padded]).map(|ip| ip.len) else { return false };
        if let Judged::ForAgent = self.judge.judge(peer, len, inbox) {
            self.judge.tell_agent((peer, &mut peer.lock(), true), len, inbox, out);
        }
        true
    }

    /// Opens a message that is no peer's. What a guest may send never gets beyond the agent.
    #[cold]
    #[inline(never)]
    fn guest(&self, index: u32, datagram: &[u8], inbox: &mut Inbox) -> bool {
        let guests = &self.judge.device.guests;
        let Some(peer) = guests.receiver(index) else { return false };
        let mut session = peer.lock();
        let opened = session.open(datagram, inbox, self.now, self.wall);
        if !matches!(opened, Opened::Refused) {
            session.move_to(self.path);
        }
        let taken = match opened {
            Opened::Refused => false,
            Opened::Keepalive => true,
            Opened::Packet(len) => {
                guests.take(&inbox.spare()[..len], self.judge.table.address, &peer, &mut session, self.now)
            }
        };
        drop(session);
        if taken {
            guests.announce();
        }
        taken
    }
}

/// What becomes of opened packets.
struct Judge<'t> {
    device: &'t Device,
    table: &'t Table,
    traffic_class: u8,
    now: Instant,
    /// The source address last found to be the peer's, or of one whose relay it is.
    proven: Option<IpAddr>,
    /// The same for addresses beyond the mesh.
    foreign: Foreign,
}

enum Judged {
    /// It is in the inbox.
    Kept,
    /// It is for this agent.
    ForAgent,
    /// It is counted.
    Dropped,
}

impl Judge<'_> {
    /// The next packet is of another peer.
    fn forget(&mut self) {
        self.proven = None;
        self.foreign = Foreign::default();
    }

    /// Judges the packet of this length at the start of the inbox's spare room, and keeps it if it may be.
    #[allow(clippy::inline_always, reason = "a call for each packet is not free")]
    #[inline(always)]
    fn judge(&mut self, peer: &Arc<Peer>, len: usize, inbox: &mut Inbox) -> Judged {
        let packet = &mut inbox.spare()[..len];
        if address::is_destination(packet) {
            return Judged::ForAgent;
        }
        if !ip::source(packet).is_some_and(|source| self.may_send(peer, source, packet)) {
            count(&self.device.drops.spoofed);
            return Judged::Dropped;
        }
        if !ecn::decapsulate(packet, self.traffic_class) {
            count(&self.device.drops.congested);
            return Judged::Dropped;
        }
        inbox.commit(len);
        Judged::Kept
    }

    #[allow(clippy::inline_always, reason = "a call for each packet is not free")]
    #[inline(always)]
    fn may_send(&mut self, peer: &Arc<Peer>, source: IpAddr, packet: &[u8]) -> bool {
        if self.proven == Some(source) {
            return true;
        }
        if self.foreign.source() != Some(source)
            && let Some(owner) = self.table.route(source)
        {
            let own = Arc::ptr_eq(owner, peer) || owner.relay.is(peer.index);
            self.proven = own.then_some(source);
            return own;
        }
        self.foreign.admits(self.table, &self.device.flows, peer, peer.deliver, packet, self.now)
    }

    /// Hands the agent a packet of this peer; whether it came under express keys is the last of `from`.
    fn tell_agent(&self, from: (&Peer, &mut Session, bool), len: usize, inbox: &mut Inbox, out: &mut Outbox) {
        let (agents, own) = (&self.device.agents, self.table.address);
        if !agents.tunnelled(&mut inbox.spare()[..len], own, from, out, self.now) {
            count(&self.device.drops.refused);
        }
    }
}
