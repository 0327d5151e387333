//! One peer: boringtun's `Tunn` and what it leaves to its caller.
//!
//! That is: the endpoint, which follows authenticated packets; persistent keepalives, counted from the last
//! authenticated packet in either direction as the whitepaper has it (section 6.5); retrying for ever where a keepalive
//! is configured; when the last handshake completed; and the two byte counters of wg(8).

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use boringtun::noise::{Tunn, TunnResult};

use super::batch::{Inbox, Outbox, Path};
use super::express::Express;
use super::handshake::LONGEST;
use super::recall::Recall;
use super::relay::Relay;
use super::rotation::{Identity, Other, Own};
use super::{PeerSettings, PeerState, message};
use crate::channel::{Allowance, address};
use crate::express::{Agreement, Lanes};
use crate::key::PublicKey;

/// REKEY_TIMEOUT of the whitepaper: a handshake unanswered for longer has lost a message at least.
pub(super) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Peer {
    pub(super) key: PublicKey,
    /// What that is to become.
    pub(super) next_key: Option<PublicKey>,
    /// 23 bits, above the lowest 8 of every receiver index that this peer is told.
    pub(super) index: u32,
    /// Of its agent.
    pub(super) address: Ipv6Addr,
    /// Through whom its packets go.
    pub(super) relay: Arc<Relay>,
    /// Whether it may bring what strangers send to containers here.
    pub(super) deliver: bool,
    /// What workers need of it without a lock.
    pub(super) lanes: Arc<Lanes>,
    /// Where it is, likewise; [`Session`] moves it.
    pub(super) path: Arc<ArcSwapOption<Path>>,
    /// The tables before and after a change have it in common.
    pub(super) session: Arc<Mutex<Session>>,
}

/// All that changes, under one lock, which is taken once per batch.
pub(super) struct Session {
    pub(super) tunn: Tunn,
    /// What `tunn` is under.
    pub(super) identity: Identity,
    /// This host's key.
    pub(super) own: PublicKey,
    /// Those under other keys; hardly ever there are any.
    pub(super) others: Vec<Other>,
    /// The peer may not have heard that the keys have changed.
    pub(super) hint: bool,
    /// Packets that waited for a session under keys that are no more.
    pub(super) lost: usize,
    /// The peer's.
    pub(super) index: u32,
    pub(super) settings: PeerSettings,
    path: Option<Path>,
    /// For letters to this agent.
    pub(super) letters: Allowance,
    /// There was one.
    pub(super) agent: bool,
    rx_bytes: u64,
    tx_bytes: u64,
    latest_handshake: Option<SystemTime>,
    /// When the handshake now under way was begun.
    pub(super) initiating_since: Option<Instant>,
    /// Our index in the response that the initiator has not confirmed with a packet yet.
    pub(super) responded: Option<u32>,
    /// Packets that wait in `tunn` for a session.
    pub(super) queued: usize,
    last_traversal: Instant,
    /// When the last authenticated packet came.
    heard: Option<Instant>,
    shared_path: Arc<ArcSwapOption<Path>>,
    /// What was opened last was under other keys than the session's.
    pub(super) aside: bool,
    pub(super) express: Express,
    /// While the peer is called that had a session with the process before this one.
    pub(super) recall: Option<Recall>,
}

/// Packets that boringtun keeps for a session to come (its `MAX_QUEUE_DEPTH`); of more it says nothing.
const QUEUE: usize = 256;

/// Why a packet goes nowhere.
pub(super) enum Unsealed {
    /// There is no endpoint.
    Unreachable,
    /// As many as may be wait for a handshake already.
    Unanswered,
}

/// What became of one data message.
pub(super) enum Opened {
    /// An IP packet of this length stands at the start of the inbox's spare room.
    Packet(usize),
    /// A keepalive.
    Keepalive,
    /// A replay, a forgery, or no session.
    Refused,
}

impl Opened {
    pub(super) fn of(result: &TunnResult<'_>) -> Self {
        match result {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Self::Packet(packet.len())
            }
            TunnResult::Done => Self::Keepalive,
            _ => Self::Refused,
        }
    }
}

impl Peer {
    pub(super) fn new(own: &Own<'_>, settings: PeerSettings, index: u32, now: Instant) -> Self {
        let identity = own.with(&settings);
        let (lanes, path) = (Arc::<Lanes>::default(), Arc::<ArcSwapOption<Path>>::default());
        let agreement =
            Agreement::new(Arc::clone(&lanes), index, own.public_key, settings.public_key, settings.express);
        let mut session = Session {
            tunn: own.tunn(&identity, index),
            identity,
            own: own.public_key,
            others: Vec::new(),
            hint: false,
            lost: 0,
            index,
            path: None,
            settings,
            letters: Allowance::new(),
            agent: false,
            rx_bytes: 0,
            tx_bytes: 0,
            latest_handshake: None,
            initiating_since: None,
            responded: None,
            queued: 0,
            last_traversal: now,
            heard: None,
            shared_path: Arc::clone(&path),
            aside: false,
            express: Express::new(agreement, Arc::clone(&lanes)),
            recall: None,
        };
        if let Some(remote) = session.settings.endpoint {
            session.set_endpoint(remote);
        }
        let PeerSettings { public_key: key, next, deliver, .. } = &session.settings;
        let (key, next_key, deliver) = (*key, next.public_key, *deliver);
        Self {
            key,
            next_key,
            index,
            address: address::of(&key),
            relay: Arc::default(),
            deliver,
            lanes,
            path,
            session: Arc::new(Mutex::new(session)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    pub(super) fn settings(&self) -> &PeerSettings {
        &self.settings
    }

    /// Takes over what needs no new session. A new endpoint undoes roaming, an unchanged one does not.
    pub(super) fn adopt(&mut self, settings: PeerSettings, own: &Own<'_>) {
        if let Some(remote) = settings.endpoint.filter(|_| settings.endpoint != self.settings.endpoint) {
            self.set_endpoint(remote);
        }
        self.set_express(settings.express);
        self.settings = settings;
        self.follow_keys(own);
    }

    pub(super) fn set_endpoint(&mut self, remote: SocketAddr) {
        if self.path.map(|path| path.remote) != Some(remote) {
            self.move_to(Path { remote, local: None });
        }
    }

    #[inline]
    pub(super) fn move_to(&mut self, path: Path) {
        if self.path != Some(path) {
            self.moved_to(path);
        }
    }

    #[cold]
    #[inline(never)]
    fn moved_to(&mut self, path: Path) {
        self.path = Some(path);
        self.shared_path.store(Some(Arc::new(path)));
    }

    pub(super) fn path(&self) -> Option<Path> {
        self.path
    }

    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.path.map(|path| path.remote)
    }

    /// Bytes received and sent under WireGuard's own session, handshakes included.
    pub(super) fn own_counters(&self) -> (u64, u64) {
        (self.rx_bytes, self.tx_bytes)
    }

    pub(super) fn latest_handshake(&self) -> Option<SystemTime> {
        self.latest_handshake
    }

    pub(super) fn state(&self, now: Instant) -> PeerState {
        let unanswered = self.unanswered(now);
        match (self.has_session(), self.initiating_since) {
            (true, _) if unanswered < REKEY_TIMEOUT => PeerState::Up,
            (_, Some(_)) => PeerState::Connecting,
            _ => PeerState::Down,
        }
    }

    /// For how long the handshake under way has had no answer.
    pub(super) fn unanswered(&self, now: Instant) -> Duration {
        self.initiating_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub(super) fn heard(&self) -> Option<Instant> {
        self.heard
    }

    pub(super) fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Seals a packet of this agent's own that is to be answered at once, or without a session asks for one. False when
    /// it goes nowhere.
    pub(super) fn knock(&mut self, packet: &[u8], out: &mut Outbox, now: Instant) -> bool {
        if self.has_session() {
            return self.say(packet, out, now);
        }
        if self.waits_for_a_call() {
            return false;
        }
        if let Some(recall) = &mut self.recall {
            recall.wanted = true;
        }
        let Some(path) = self.path else { return false };
        let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(out.spare(), false) else {
            return false;
        };
        let sent = Sent::of(datagram);
        self.commit(&sent, path, out, now);
        true
    }

    /// Begins a handshake by one initiation on each of `paths`, also when another one is under way.
    pub(super) fn call(&mut self, paths: &[Path], out: &mut Outbox, now: Instant) -> bool {
        let Some((&first, rest)) = paths.split_first() else { return false };
        if !out.fits(LONGEST * rest.len()) {
            return false;
        }
        let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(out.spare(), true) else {
            return false;
        };
        let (sent, mut copy) = (Sent::of(datagram), [0; LONGEST]);
        copy[..sent.len].copy_from_slice(datagram);
        self.commit(&sent, first, out, now);
        for &path in rest {
            out.spare()[..sent.len].copy_from_slice(&copy[..sent.len]);
            self.commit(&sent, path, out, now);
        }
        true
    }

    /// Whether nothing but [`Session::call`] may begin a handshake.
    fn waits_for_a_call(&self) -> bool {
        self.settings.via.is_some() && !self.has_session()
    }

    /// Seals a packet of this agent's own. False when it goes nowhere.
    pub(super) fn say(&mut self, packet: &[u8], out: &mut Outbox, now: Instant) -> bool {
        !self.waits_for_a_call() && self.say_express(packet, out, now) || self.say_ordinary(packet, out, now)
    }

    /// The same under WireGuard's own session.
    #[inline(never)]
    pub(super) fn say_ordinary(&mut self, packet: &[u8], out: &mut Outbox, now: Instant) -> bool {
        !self.waits_for_a_call() && self.seal(packet, 0, out, now).is_ok()
    }

    /// Seals one packet, or queues it and begins a handshake.
    /// `traffic_class` is for the outer header.
    #[allow(clippy::inline_always, reason = "the loop is its only other caller; a call for each packet is not free")]
    #[inline(always)]
    pub(super) fn seal(
        &mut self,
        packet: &[u8],
        traffic_class: u8,
        out: &mut Outbox,
        now: Instant,
    ) -> Result<(), Unsealed> {
        let Some(path) = self.path.filter(|_| out.fits(packet.len())) else { return Err(Unsealed::Unreachable) };
        match self.tunn.encapsulate(packet, out.spare()) {
            TunnResult::WriteToNetwork(datagram) => {
                let mut sent = Sent::of(datagram);
                let sealed = sent.kind == message::DATA;
                if sealed {
                    sent.traffic_class = traffic_class;
                }
                self.commit(&sent, path, out, now);
                if sealed { Ok(()) } else { self.queue() }
            }
            _ => self.queue(),
        }
    }

    /// Counts in what boringtun has put into its queue, or has not.
    fn queue(&mut self) -> Result<(), Unsealed> {
        if self.queued >= QUEUE {
            return Err(Unsealed::Unanswered);
        }
        self.queued += 1;
        Ok(())
    }

    /// Opens one data message into `inbox`, without keeping the packet yet. Unless it is refused the peer is where it came
    /// from: [`Session::move_to`], which is for the caller, once for messages that come together.
    pub(super) fn open(&mut self, datagram: &[u8], inbox: &mut Inbox, now: Instant, wall: SystemTime) -> Opened {
        let opened = Opened::of(&self.tunn.decapsulate(None, datagram, inbox.spare()));
        if matches!(opened, Opened::Refused) {
            return self.open_other(datagram, inbox, now, wall);
        }
        self.aside = false;
        self.authenticated(datagram.len(), now);
        // A first packet under a new session confirms the response (whitepaper, section 5.4.6).
        if self.responded.is_some() && self.responded == message::receiver(datagram) {
            self.established(false, now, wall);
        }
        opened
    }

    /// Runs the timers: retransmission, rekey, keepalives, expiry. How many packets waited in vain for a handshake that is
    /// now given up comes back.
    pub(super) fn tick(&mut self, out: &mut Outbox, rekey_after: Duration, now: Instant) -> usize {
        if !self.others.is_empty() {
            self.tick_others(out, now);
        }
        let mut lost = std::mem::take(&mut self.lost);
        let mut sent = match self.tunn.update_timers(out.spare()) {
            TunnResult::WriteToNetwork(datagram) => Some(Sent::of(datagram)),
            TunnResult::Err(_) => {
                // Gave up after REKEY_ATTEMPT_TIME, or keys older than three times REJECT_AFTER_TIME.
                self.initiating_since = None;
                lost += std::mem::take(&mut self.queued);
                None
            }
            _ => None,
        };
        // Under a key that is no longer this host's nobody would answer.
        sent = sent.filter(|sent| sent.kind == message::DATA || !self.is_stale());
        if self.recall.is_some() {
            sent = self.call_again(sent, out, now);
        }
        if sent.is_none() && self.keepalive_due(now) {
            let result = if self.has_session() {
                self.tunn.encapsulate(&[], out.spare())
            } else {
                self.tunn.format_handshake_initiation(out.spare(), false)
            };
            if let TunnResult::WriteToNetwork(datagram) = result {
                sent = Some(Sent::of(datagram));
            }
        }
        if let (Some(sent), Some(path)) = (sent, self.path) {
            self.commit(&sent, path, out, now);
        }
        self.tick_express(out, rekey_after, now);
        lost
    }

    /// Whether a persistent keepalive is due; without a session it asks for one.
    fn keepalive_due(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.last_traversal);
        !self.waits_for_a_call()
            && self
                .settings
                .persistent_keepalive
                .is_some_and(|seconds| !self.has_session() || idle >= Duration::from_secs(seconds.into()))
    }

    pub(super) fn commit(&mut self, sent: &Sent, path: Path, out: &mut Outbox, now: Instant) {
        if sent.kind == message::HANDSHAKE_INITIATION {
            self.initiating_since.get_or_insert(now);
        }
        self.put(sent, path, out, now);
    }

    pub(super) fn put(&mut self, sent: &Sent, path: Path, out: &mut Outbox, now: Instant) {
        self.last_traversal = now;
        self.tx_bytes += sent.len as u64;
        self.express.answered |= sent.kind == message::DATA;
        out.commit(sent.len, self.index, path, sent.traffic_class);
    }

    /// Something moved under express keys since the last tick.
    pub(super) fn moved_beside(&mut self, received: bool, now: Instant) {
        self.last_traversal = now;
        if received {
            self.heard = Some(now);
        }
    }

    pub(super) fn authenticated(&mut self, len: usize, now: Instant) {
        self.rx_bytes += len as u64;
        self.last_traversal = now;
        self.heard = Some(now);
    }

    /// There is another session of WireGuard; `initiator` says whether this host asked for it.
    pub(super) fn established(&mut self, initiator: bool, now: Instant, wall: SystemTime) {
        self.latest_handshake = Some(wall);
        self.renew_express(initiator, now);
        self.initiating_since = None;
        self.responded = None;
    }
}

/// What is kept of a written datagram once the borrow of the outbox ends.
pub(super) struct Sent {
    len: usize,
    pub(super) kind: u8,
    pub(super) sender: Option<u32>,
    traffic_class: u8,
}

impl Sent {
    pub(super) fn of(datagram: &[u8]) -> Self {
        let kind = datagram[0];
        let traffic_class = message::traffic_class(kind);
        Self { len: datagram.len(), kind, sender: message::sender(datagram), traffic_class }
    }
}
