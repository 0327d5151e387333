//! Names: what this host answers, and how it and the other agents keep each other's containers known.
//!
//! 1. Whatever may change what is answered, or where, is noticed by [`Running::serve_names`]: a container that was attached, a reload,
//!    what a peer has said, an interface or an address that came or went.
//! 2. [`Running::tell_names`] tells the peers what this host's containers are called when that has changed or they ask. It asks for
//!    theirs with each new handshake: either side may have begun anew.
//! 3. [`Running::tell_resolved`] lets this host's own programs in on it.
//!
//! A peer that is reached through a relay is told when a direct path stands.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use futures_util::future::{join_all, pending};
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};

use super::resolved::Resolved;
use super::running::Running;
use crate::channel::{Kind, Letter};
use crate::clock::unix_now;
use crate::config::Config;
use crate::control::api;
use crate::host;
use crate::key::PublicKey;
use crate::names::{Answer, Attached, Heard, Named, Request, Told, Zone, label, places};
use crate::resolver::{Refused, Resolver};
use crate::tunnel::PeerSnapshot;

/// How often is looked whether there was a handshake.
const LOOK: Duration = Duration::from_millis(500);
/// Until a peer that did not answer is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Peers that are told at a time.
const TALKS: usize = 16;
/// Parts of a list under way to one peer: it takes 20 letters at once.
const PARTS: usize = 8;
/// For each letter, before the next talk with that peer: it takes 50 a second, and others are sent too. Containers that come
/// one after another are told of together.
const PACE: Duration = Duration::from_millis(30);

/// What is known of names.
pub(super) struct Names {
    attached: watch::Receiver<Arc<[Attached]>>,
    heard: Mutex<Heard>,
    told: Mutex<Told>,
    /// Something that is answered may have changed, or where.
    look: watch::Sender<()>,
    /// There is something to tell.
    talk: Notify,
    /// Who has asked.
    behind: Mutex<HashSet<PublicKey>>,
    /// Who reaches whom by way of this host, and the serial of the other's list that it holds.
    passed: Mutex<HashMap<PublicKey, HashMap<PublicKey, u64>>>,
    shown: Mutex<Option<api::NamesStatus>>,
    warnings: Mutex<Vec<String>>,
    /// What systemd-resolved was not told, and why.
    untold: Mutex<Option<String>>,
}

/// How far a peer's agent is.
#[derive(Default)]
struct Peer {
    /// The serial that it holds.
    told: Option<u64>,
    /// When the handshake was with which it was last spoken to.
    handshake: Option<SystemTime>,
    /// Whose names it was asked for, beside its own.
    relays: Vec<PublicKey>,
    /// It has not answered, and is tried again.
    again: Option<Instant>,
    busy: bool,
    /// It is no agent.
    deaf: bool,
}

/// A peer to talk to.
struct Due {
    peer: PublicKey,
    /// The serial that it holds.
    told: Option<u64>,
    /// Who is reached by way of it.
    relays: Vec<PublicKey>,
}

/// What came of a talk with a peer.
struct Talked {
    peer: PublicKey,
    /// The serial that it holds now; `None` when it has not answered.
    told: Option<u64>,
}

/// Of what a zone was made.
#[derive(PartialEq)]
struct Sources {
    config: *const Config,
    told: u64,
    heard: Vec<(PublicKey, u64)>,
}

impl Names {
    /// `attached` are the containers that this agent has put on bridges.
    pub(super) fn new(attached: watch::Receiver<Arc<[Attached]>>) -> Self {
        Self {
            attached,
            heard: Mutex::default(),
            told: Mutex::default(),
            look: watch::channel(()).0,
            talk: Notify::new(),
            behind: Mutex::default(),
            passed: Mutex::default(),
            shown: Mutex::default(),
            warnings: Mutex::default(),
            untold: Mutex::default(),
        }
    }

    /// To call when the configuration or the kernel may have changed.
    pub(super) fn look(&self) {
        self.look.send_replace(());
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        lock(&self.heard)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }

    /// For `status`.
    pub(super) fn shown(&self) -> Option<api::NamesStatus> {
        lock(&self.shown).clone()
    }

    /// Whose lists are newer here than with a peer that has asked for them.
    fn to_pass(&self, peer: &PublicKey) -> Vec<PublicKey> {
        let (passed, heard) = (lock(&self.passed), self.heard());
        let newer = |(host, held): (&PublicKey, &u64)| (heard.serial(host) > *held).then_some(*host);
        passed.get(peer).into_iter().flatten().filter_map(newer).collect()
    }

    /// For `status`.
    pub(super) fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).iter().cloned().chain(lock(&self.untold).clone()).collect()
    }

    fn set_warnings(&self, new: Vec<String>) {
        let mut warnings = lock(&self.warnings);
        for warning in new.iter().filter(|warning| !warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        *warnings = new;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// Answers those who ask for names, until it is dropped.
    pub(super) async fn serve_names(&self) {
        let (mut attached, mut look) = (self.names.attached.clone(), self.names.look.subscribe());
        let mut resolver = Resolver::default();
        let (mut made, mut known, mut serial) = (None, Vec::new(), u32::try_from(unix_now()).unwrap_or_default());
        loop {
            let config = self.config();
            let own = containers(&config, &attached.borrow_and_update());
            let used = config.host.names.is_some() || !own.is_empty() || self.names.told().serial() > 0;
            if used && self.names.told().set(said(&own), now()) {
                self.names.talk.notify_one();
            }
            let sources = self.sources(&config);
            if made.as_ref().is_none_or(|(_, of)| *of != sources) {
                serial = serial.wrapping_add(1);
                let zone = Zone::new(&config, &own, &self.names.heard(), serial);
                known = zone.listing().map(|(name, addresses)| api::KnownName { name, addresses }).collect();
                resolver.set_zone(zone);
                // Held, so that another configuration cannot be at the same place in memory.
                made = Some((Arc::clone(&config), sources));
            }
            self.names.set_warnings(follow_places(&config, &mut resolver));
            *lock(&self.names.shown) = config.host.names.is_some().then(|| api::NamesStatus {
                domain: config.host.domain.clone(),
                listen: resolver
                    .places()
                    .map(|(address, interface)| api::NamesListener { address, interface })
                    .collect(),
                known: known.clone(),
            });
            tokio::select! {
                () = changed(&mut look) => {}
                () = changed(&mut attached) => {}
            }
        }
    }

    /// Tells systemd-resolved, until it is dropped. Apart from the rest, for it may take its time.
    pub(super) async fn tell_resolved(&self) {
        let (mut look, mut resolved) = (self.names.look.subscribe(), Resolved::default());
        loop {
            let untold = resolved.follow(&self.config()).await.err().map(|why| {
                format!(
                    "systemd-resolved is not told of the mesh's names, so programs of this host do not find them: {why}"
                )
            });
            if let Some(warning) = untold.as_ref().filter(|_| *lock(&self.names.untold) != untold) {
                tracing::warn!("{warning}");
            }
            *lock(&self.names.untold) = untold;
            changed(&mut look).await;
        }
    }

    fn sources(&self, config: &Arc<Config>) -> Sources {
        let heard = self.names.heard();
        let of = |peer: &crate::config::Peer| (peer.public_key, heard.serial(&peer.public_key));
        Sources {
            config: Arc::as_ptr(config),
            told: self.names.told().serial(),
            heard: config.peers.iter().map(of).collect(),
        }
    }

    /// Tells peers, and asks them, until it is dropped.
    pub(super) async fn tell_names(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut peers: HashMap<PublicKey, Peer> = HashMap::new();
        let mut talks = FuturesUnordered::new();
        loop {
            tokio::select! {
                _ = look.tick(), if self.names.told().serial() > 0 || !lock(&self.names.passed).is_empty() => {}
                () = self.names.talk.notified() => {}
                Some(Talked { peer, told }) = talks.next() => {
                    let known = peers.entry(peer).or_default();
                    known.busy = false;
                    known.told = told.or(known.told);
                    known.deaf = told.is_none();
                    known.again = told.is_none().then(|| Instant::now() + AGAIN);
                }
            }
            let config = self.config();
            let is_peer = |key: &PublicKey| config.peers.iter().any(|peer| peer.public_key == *key);
            self.names.heard().retain(is_peer);
            lock(&self.names.passed).retain(|key, hosts| {
                hosts.retain(|host, _| is_peer(host));
                is_peer(key)
            });
            let due = self.due_for_names(&config, &mut peers, TALKS - talks.len());
            talks.extend(due.into_iter().map(|due| self.talk_of_names(due)));
        }
    }

    /// Whom to talk to now, and the serial that each holds; at most `free`.
    fn due_for_names(&self, config: &Config, peers: &mut HashMap<PublicKey, Peer>, free: usize) -> Vec<Due> {
        let (serial, now) = (self.names.told().serial(), Instant::now());
        let snapshots = self.device.peers(now);
        peers.retain(|key, _| snapshots.iter().any(|peer| peer.settings.public_key == *key));
        let mut behind = lock(&self.names.behind);
        let mut due = Vec::new();
        for snapshot in snapshots.iter().filter(|snapshot| has_session(snapshot)) {
            let key = snapshot.settings.public_key;
            let passes = !self.names.to_pass(&key).is_empty();
            if serial == 0 && !passes {
                continue;
            }
            if !config.peers.iter().any(|peer| peer.public_key == key && peer.trusted()) {
                continue;
            }
            let peer = peers.entry(key).or_default();
            peer.deaf &= !snapshot.agent;
            if peer.deaf || peer.busy || due.len() >= free {
                continue;
            }
            if behind.remove(&key) {
                peer.told = None;
                peer.again = Some(now);
            }
            let fresh = peer.handshake != snapshot.latest_handshake;
            let changed = peer.told.is_some_and(|told| told != serial) || passes;
            let relays: Vec<_> = snapshots.iter().filter(|other| other.relayed == Some(key)).collect();
            let relays: Vec<_> = relays.iter().map(|other| other.settings.public_key).collect();
            let more = relays.iter().any(|host| !peer.relays.contains(host));
            if fresh || changed || more || peer.again.is_some_and(|again| again <= now) {
                (peer.handshake, peer.again, peer.busy) = (snapshot.latest_handshake, None, true);
                peer.relays.clone_from(&relays);
                due.push(Due { peer: key, told: peer.told, relays });
            }
        }
        due
    }

    /// Tells a peer this host's names, unless it holds them, and those of hosts that it reaches by way of this one; asks for its
    /// own, and for those of hosts that are reached by way of it. No faster than it takes letters.
    async fn talk_of_names(&self, Due { peer, told, relays }: Due) -> Talked {
        let silent = Talked { peer, told: None };
        let mut over = tokio::time::Instant::now();
        let (serial, parts) = {
            let ours = self.names.told();
            (ours.serial(), ours.parts())
        };
        let mut holds = told;
        if serial > 0 && told != Some(serial) {
            let Some(held) = self.tell_parts(peer, &parts, &mut over).await else { return silent };
            holds = holds.max(Some(held));
        }
        // It may remember another life of this agent, whose clock was ahead.
        if holds.is_some_and(|held| self.names.told().exceed(held)) {
            self.names.talk.notify_one();
        }
        for host in self.names.to_pass(&peer) {
            let parts = self.names.heard().parts(&host);
            let Some(held) = self.tell_parts(peer, &parts, &mut over).await else { return silent };
            if let Some(passed) = lock(&self.names.passed).get_mut(&peer).and_then(|hosts| hosts.get_mut(&host)) {
                // If it does not take this one, it takes the next.
                *passed = held.max(serial_of(&parts));
            }
        }
        for of in std::iter::once(None).chain(relays.into_iter().map(Some)) {
            let held = self.names.heard().serial(&of.unwrap_or(peer));
            // Who has something newer tells it by itself.
            if self.ask_names(peer, &Request::Ask { held, of }).await.is_none() {
                return silent;
            }
            over += PACE;
        }
        tokio::time::sleep_until(over).await;
        Talked { peer, told: holds }
    }

    /// The serial that the peer holds then; `None` when it does not answer.
    async fn tell_parts(&self, peer: PublicKey, parts: &[Request], over: &mut tokio::time::Instant) -> Option<u64> {
        let mut holds = 0;
        for some in parts.chunks(PARTS) {
            for answer in join_all(some.iter().map(|part| self.ask_names(peer, part))).await {
                holds = holds.max(answer?.serial);
            }
            *over += PACE * some.len() as u32;
            tokio::time::sleep_until(*over).await;
        }
        Some(holds)
    }

    async fn ask_names(&self, peer: PublicKey, request: &Request) -> Option<Answer> {
        let answer = self.ask(peer, Kind::Names, serde_json::to_vec(request).ok()?).await?;
        serde_json::from_slice(&answer).ok()
    }

    /// The answer to a peer's agent. None to what cannot be read, and to clients.
    pub(super) fn take_names(&self, letter: &Letter) -> Option<Vec<u8>> {
        let config = self.config();
        let peer = config.peers.iter().find(|peer| peer.public_key == letter.peer)?;
        if peer.client {
            return None;
        }
        let serial = match serde_json::from_slice(&letter.body).ok()? {
            Request::Ask { held, of: None } => {
                let serial = self.names.told().serial();
                // To others nothing is told, but that there is nobody is no reason to ask again and again.
                if held != serial && peer.trusted() {
                    lock(&self.names.behind).insert(letter.peer);
                    self.names.talk.notify_one();
                }
                serial
            }
            Request::Ask { held, of: Some(of) } => {
                let trusted = |key| config.peers.iter().any(|peer| peer.public_key == key && peer.trusted());
                if trusted(letter.peer) && trusted(of) {
                    lock(&self.names.passed).entry(letter.peer).or_default().insert(of, held);
                    self.names.talk.notify_one();
                }
                self.names.heard().serial(&of)
            }
            Request::Tell { serial, part, parts, names, of } => {
                let host = of.unwrap_or(letter.peer);
                // What a host says itself counts more than what another says of it.
                let by_way_of_it =
                    |other: &PeerSnapshot| other.settings.public_key == host && other.relayed == Some(letter.peer);
                let believed = of.is_none() || self.device.peers(Instant::now()).iter().any(by_way_of_it);
                let mut heard = self.names.heard();
                if believed && heard.take(host, serial, part, parts, names) {
                    self.names.look();
                    self.names.talk.notify_one();
                }
                heard.serial(&host)
            }
        };
        serde_json::to_vec(&Answer { serial }).ok()
    }
}

/// Serves where the interfaces are; what kept it from that.
fn follow_places(config: &Config, resolver: &mut Resolver) -> Vec<String> {
    if config.host.names.is_none() {
        resolver.follow(Vec::new());
        return Vec::new();
    }
    let interfaces = match host::interfaces() {
        Ok(interfaces) => interfaces,
        Err(error) => return vec![format!("names are not answered on new interfaces: {error}")],
    };
    let refused = resolver.follow(places(config, &interfaces));
    refused.iter().filter_map(refusal).collect()
}

/// Until there is something else; for ever when nobody is left who could say so.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// Those of the files, and those that were attached.
fn containers(config: &Config, attached: &[Attached]) -> Vec<Attached> {
    let host = &config.host;
    let written = host.names.iter().flat_map(|names| &names.containers).flat_map(|container| {
        host.bridges.iter().filter_map(|bridge| {
            let on = |addr: &&std::net::IpAddr| bridge.subnets.iter().any(|net| net.contains(*addr));
            let addresses: Vec<_> = container.addresses.iter().filter(on).copied().collect();
            let (name, bridge) = (container.name.clone(), bridge.name.clone());
            (!addresses.is_empty()).then_some(Attached { name, bridge, addresses })
        })
    });
    written.chain(attached.iter().cloned()).collect()
}

/// As others are told of them.
fn said(own: &[Attached]) -> Vec<Named> {
    own.iter().filter_map(|container| Some(Named(label(&container.name)?, container.addresses.clone()))).collect()
}

fn serial_of(parts: &[Request]) -> u64 {
    parts.iter().map(|part| if let Request::Tell { serial, .. } = part { *serial } else { 0 }).max().unwrap_or(0)
}

/// Whether a letter goes to the peer itself, over a session that stands.
fn has_session(peer: &PeerSnapshot) -> bool {
    peer.relayed.is_none() && peer.latest_handshake.is_some() && peer.state == crate::tunnel::PeerState::Up
}

/// What is said where an address cannot be served. Nothing of one that is about to be usable (RFC 4862, section 5.4) or has just gone.
fn refusal(refused: &Refused) -> Option<String> {
    let Refused { place, error } = refused;
    let (address, device) = (place.address, &place.device);
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL | libc::ENODEV) => None,
        Some(libc::EADDRINUSE) => Some(format!(
            "names are not answered at {address} by {device}: another program has its port 53; find it with: ss -lunp sport = 53"
        )),
        Some(libc::EACCES) => {
            Some(format!("names are not answered at {address} by {device}: not permitted: needs CAP_NET_BIND_SERVICE"))
        }
        _ => Some(format!("names are not answered at {address} by {device}: {error}")),
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}
