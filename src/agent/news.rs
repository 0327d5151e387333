//! News of the mesh: the roster of this host's own peers, and those of the inviters that it trusts.
//!
//! 1. A change of the configuration makes another roster of this host, which is on disk before anybody is told.
//! 2. Peers that are agents and trusted hosts are told which rosters this one holds: at once when one has changed, when
//!    their session comes up, and every five minutes. What they hold newer is fetched. So a host hears of a change also from
//!    others than the inviter.
//! 3. A roster that a trusted inviter has signed is kept, and who is not in it any more has no session from then on,
//!    whatever comes of the next step. An older one is not taken.
//! 4. The peers' files are brought in step with it (`introduced`), and applied as by a reload.
//!
//! What a peer signs that may not introduce anybody is kept too, but only as it says itself: `meshd plan` shows it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;

use super::running::Running;
use crate::channel::{Kind, Letter};
use crate::clock::unix_now;
use crate::config::Config;
use crate::key::{PublicKey, SigningKey};
use crate::mesh::introduce::{self, Introduction};
use crate::mesh::news::{Digest, MAX_INVITERS, PAGE, Page, Request, Roster, Signed, next_serial, page, read_part};
use crate::mesh::{self};
use crate::store::news as disk;
use crate::tunnel::{PeerSettings, PeerState};

/// How often is looked whose session came up.
const LOOK: Duration = Duration::from_millis(500);
/// Between two exchanges of digests when nothing has changed: a session that nobody else uses has ended by then
/// (REJECT_AFTER_TIME of the whitepaper is 180 seconds), and is not kept up by them.
const AGAIN: Duration = Duration::from_secs(300);
/// Peers that are told at a time.
const TALKS: usize = 16;
/// Parts of a document that are asked for at a time: a peer has 20 letters at once.
const PARTS: usize = 8;

/// The rosters that this host holds.
pub(super) struct Rosters {
    state: PathBuf,
    held: Mutex<Held>,
    /// There is something to tell or to ask.
    talk: Notify,
    /// The files may have to follow.
    pub(super) follow: Notify,
}

#[derive(Default)]
struct Held {
    by: BTreeMap<PublicKey, Signed>,
    /// Counts the changes that others are to hear of.
    version: u64,
    /// What peers said they hold and this host may want.
    offered: HashMap<PublicKey, Vec<Digest>>,
    /// Those whom the tunnel does without though the files name them.
    cut: HashSet<PublicKey>,
    /// Peers that have removed this host.
    left: HashSet<PublicKey>,
    /// What could not be followed, and why.
    warnings: Vec<String>,
}

/// How far a peer's agent is.
#[derive(Default)]
struct Told {
    version: Option<u64>,
    at: Option<Instant>,
    up: bool,
    busy: bool,
    /// It is no agent.
    deaf: bool,
}

impl Rosters {
    /// Those on disk.
    pub(super) fn load(state: &Path) -> Self {
        let by = disk::load(state).into_iter().map(|signed| (signed.roster().inviter, signed)).collect();
        let held = Mutex::new(Held { by, ..Held::default() });
        Self { state: state.to_owned(), held, talk: Notify::new(), follow: Notify::new() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Roster> {
        self.held().by.values().map(|signed| signed.roster().clone()).collect()
    }

    /// Leaves out those whom their inviter has removed, though a file still names them.
    pub(super) fn retain(&self, config: &Config, peers: &mut Vec<PeerSettings>) {
        let gone = self.dismissed(config);
        peers.retain(|peer| !gone.contains(&peer.public_key));
        self.held().cut = gone;
    }

    /// Whether the tunnel does without somebody who is in again.
    pub(super) fn misses_somebody(&self, config: &Config) -> bool {
        let gone = self.dismissed(config);
        let held = self.held();
        config.peers.iter().any(|peer| held.cut.contains(&peer.public_key) && !gone.contains(&peer.public_key))
    }

    fn dismissed(&self, config: &Config) -> HashSet<PublicKey> {
        introduce::dismissed(config, self.held().by.values().map(Signed::roster))
    }

    pub(super) fn introductions(&self, config: &Config) -> Vec<Introduction> {
        let mut pending = introduce::introductions(config, self.held().by.values().map(Signed::roster));
        // A device alone is no reason to ask: who set up both hosts by hand knows it.
        pending.retain(|introduction| introduction.peers.iter().any(|peer| !peer.client));
        pending
    }

    pub(super) fn set_warnings(&self, warnings: Vec<String>) {
        let mut held = self.held();
        for warning in warnings.iter().filter(|warning| !held.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        held.warnings = warnings;
    }

    /// To call when the configuration has changed.
    pub(super) fn configured(&self) {
        self.talk.notify_one();
        self.follow.notify_one();
    }

    /// Makes this host's own roster anew if its peers have changed, or its last one is not as high as `above`.
    fn renew(&self, config: &Config, above: Option<u64>) {
        let own = config.private_key.public_key();
        let members = mesh::members(config);
        let mut held = self.held();
        let last = held.by.get(&own).map(Signed::roster);
        let high = last.map(|last| last.serial).max(above);
        if last.is_some_and(|last| last.members == members && Some(last.serial) == high) {
            return;
        }
        let now = unix_now();
        match Signed::new(&SigningKey::of(&config.private_key), own, next_serial(high, now), &members) {
            Ok(signed) => {
                self.keep(&signed);
                held.by.insert(own, signed);
                held.version += 1;
            }
            Err(error) => tracing::error!(%error, "other hosts cannot be told of this one's peers"),
        }
    }

    /// On disk before anything is made of it. A full disk must not keep anybody from being removed.
    fn keep(&self, signed: &Signed) {
        if let Err(error) = disk::keep(&self.state, signed) {
            tracing::error!(%error, "a roster cannot be kept");
        }
    }

    /// Forgets the rosters of those who are no peers any more.
    fn prune(&self, config: &Config) {
        let own = config.private_key.public_key();
        let is_peer = |key: &PublicKey| *key == own || config.peers.iter().any(|peer| peer.public_key == *key);
        self.held().by.retain(|key, _| {
            let keeps = is_peer(key);
            if !keeps {
                disk::forget(&self.state, key);
            }
            keeps
        });
    }

    /// What others are told of: this host's own roster and those of inviters that it trusts.
    fn digests(&self, config: &Config) -> (u64, Vec<Digest>) {
        let held = self.held();
        let mine = held.by.values().filter(|signed| is_passed_on(config, signed.roster()));
        (held.version, mine.map(Signed::digest).take(MAX_INVITERS).collect())
    }

    /// Whether a peer's roster may be of use here.
    fn wants(&self, config: &Config, from: &PublicKey, Digest(inviter, serial): Digest) -> bool {
        let own = inviter == config.private_key.public_key();
        let held = self.held();
        let signed = held.by.get(&inviter);
        let Some(peer) = config.peers.iter().find(|peer| peer.public_key == inviter) else {
            return own && signed.is_none_or(|signed| signed.roster().serial < serial);
        };
        let valued = match peer.inviter_key {
            Some(_) => true,
            None => peer.trusted() && inviter == *from,
        };
        // One that was signed by another key than the trusted one counts for nothing.
        let current = signed.filter(|signed| peer.inviter_key.is_none_or(|key| key == signed.roster().inviter_key));
        valued && current.is_none_or(|signed| signed.roster().serial < serial)
    }

    /// Takes a roster that `from` has passed on; false when it is of no use.
    fn accept(&self, config: &Config, from: &PublicKey, signed: Signed) -> bool {
        let roster = signed.roster();
        if !self.wants(config, from, signed.digest()) {
            return false;
        }
        if roster.inviter == config.private_key.public_key() {
            // This host's own, from before it lost its state.
            if roster.inviter_key == SigningKey::of(&config.private_key).verifying_key() {
                self.renew(config, Some(roster.serial));
            }
            return false;
        }
        let peer = config.peers.iter().find(|peer| peer.public_key == roster.inviter);
        if peer.is_none_or(|peer| peer.inviter_key.is_some_and(|key| key != roster.inviter_key)) {
            tracing::warn!(inviter = %roster.inviter, "a roster that its inviter has not signed is not taken");
            return false;
        }
        self.keep(&signed);
        let mut held = self.held();
        held.version += 1;
        held.by.insert(roster.inviter, signed);
        true
    }
}

fn is_passed_on(config: &Config, roster: &Roster) -> bool {
    roster.inviter == config.private_key.public_key() || introduce::trusted(config, roster).is_some()
}

impl Running {
    /// Tells other agents, and asks them, until it is dropped.
    pub(super) async fn exchange_news(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut peers: HashMap<PublicKey, Told> = HashMap::new();
        let mut talks = FuturesUnordered::new();
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = self.rosters.talk.notified() => {}
                Some((peer, version)) = talks.next() => {
                    let version: Option<u64> = version;
                    let told = peers.entry(peer).or_default();
                    told.busy = false;
                    told.version = version.or(told.version);
                    told.deaf = version.is_none() && !self.is_agent(&peer);
                }
            }
            let config = self.config();
            self.rosters.renew(&config, None);
            self.rosters.prune(&config);
            let due = self.due(&config, &mut peers, TALKS - talks.len());
            talks.extend(due.into_iter().map(|peer| self.talk(peer)));
        }
    }

    fn is_agent(&self, key: &PublicKey) -> bool {
        self.device.peers(Instant::now()).iter().any(|peer| peer.settings.public_key == *key && peer.agent)
    }

    /// Whom to talk to now; at most `free`.
    fn due(&self, config: &Config, peers: &mut HashMap<PublicKey, Told>, free: usize) -> Vec<PublicKey> {
        let now = Instant::now();
        let snapshots = self.device.peers(now);
        peers.retain(|key, _| snapshots.iter().any(|peer| peer.settings.public_key == *key));
        let (version, offers) = {
            let held = self.rosters.held();
            (held.version, held.offered.keys().copied().collect::<Vec<_>>())
        };
        let invited = config.peers.iter().any(|peer| peer.inviter_key.is_some());
        let mut due = Vec::new();
        for snapshot in &snapshots {
            let key = snapshot.settings.public_key;
            if !config.peers.iter().any(|peer| peer.public_key == key && peer.trusted()) {
                continue;
            }
            let told = peers.entry(key).or_default();
            let up = snapshot.state == PeerState::Up;
            let came_up = up && !std::mem::replace(&mut told.up, up);
            told.deaf &= !came_up && !snapshot.agent;
            told.at = told.at.filter(|_| !came_up);
            // At the start also those without a session: who was removed meanwhile may call before they do.
            let first = invited && told.at.is_none() && snapshot.settings.endpoint.is_some();
            let news = told.version.is_some_and(|told| told < version) || offers.contains(&key);
            let long_ago = told.at.is_none_or(|at| now - at >= AGAIN);
            let wanted = first || (up && !told.deaf && (news || long_ago));
            if wanted && !told.busy && due.len() < free {
                (told.at, told.busy) = (Some(now), true);
                due.push(key);
            }
        }
        due
    }

    /// Exchanges digests with a peer's agent and fetches what it holds newer. Which version it was told comes back.
    async fn talk(&self, peer: PublicKey) -> (PublicKey, Option<u64>) {
        let (version, mine) = self.rosters.digests(&self.config());
        let mut theirs = Vec::new();
        let mut from = 0;
        loop {
            let request = Request::Digests { from, mine: page(&mine, from) };
            let Some(answer) = self.ask_news(peer, &request).await else { return (peer, None) };
            let Ok(Page { total, digests }) = serde_json::from_slice(&answer) else { return (peer, None) };
            theirs.extend(digests.into_iter().take(PAGE));
            from += PAGE;
            if from >= mine.len().max(total.min(MAX_INVITERS)) {
                break;
            }
        }
        {
            let mut held = self.rosters.held();
            held.left.remove(&peer);
            theirs.extend(held.offered.remove(&peer).unwrap_or_default());
        }
        for digest in theirs {
            if self.rosters.wants(&self.config(), &peer, digest) {
                self.fetch(peer, digest).await;
            }
        }
        (peer, Some(version))
    }

    async fn ask_news(&self, peer: PublicKey, request: &Request) -> Option<Vec<u8>> {
        self.ask(peer, Kind::News, serde_json::to_vec(request).ok()?).await
    }

    async fn fetch(&self, peer: PublicKey, of: Digest) {
        let part = async |number| self.ask_news(peer, &Request::Part { of, number }).await;
        let first = part(0).await;
        let Some((count, piece)) = first.as_deref().and_then(read_part) else { return };
        let mut document = piece.to_vec();
        let numbers: Vec<u16> = (1..count).collect();
        for some in numbers.chunks(PARTS) {
            for answer in join_all(some.iter().map(|&number| part(number))).await {
                let Some((_, piece)) = answer.as_deref().and_then(read_part) else { return };
                document.extend_from_slice(piece);
            }
        }
        match Signed::parse(&document) {
            Ok(signed) => self.take_roster(&peer, signed),
            Err(error) => tracing::warn!(peer = self.name_of(&peer), %error, "what a peer passed on is not taken"),
        }
    }

    /// Ends the sessions of those who are not in it any more before anything else is done about it.
    fn take_roster(&self, from: &PublicKey, signed: Signed) {
        let (config, inviter) = (self.config(), signed.roster().inviter);
        if !self.rosters.accept(&config, from, signed) {
            return;
        }
        for key in self.rosters.dismissed(&config) {
            self.rosters.held().cut.insert(key);
            if self.device.remove_peer(&key, Instant::now()) {
                tracing::info!(peer = self.name_of(&key), inviter = self.name_of(&inviter), "removed by its inviter");
            }
        }
        self.rosters.configured();
    }

    /// The answer to a peer's question. None to what cannot be read, and to peers that are no trusted hosts.
    pub(super) fn take_news(&self, letter: &Letter) -> Option<Vec<u8>> {
        let config = self.config();
        let peer = config.peers.iter().find(|peer| peer.public_key == letter.peer)?;
        if !peer.trusted() {
            return None;
        }
        match serde_json::from_slice(&letter.body).ok()? {
            Request::Digests { from, mine } => {
                let (_, held) = self.rosters.digests(&config);
                let wanted = mine.into_iter().take(PAGE);
                let wanted: Vec<_> = wanted.filter(|of| self.rosters.wants(&config, &letter.peer, *of)).collect();
                if !wanted.is_empty() {
                    let mut rosters = self.rosters.held();
                    let offered = rosters.offered.entry(letter.peer).or_default();
                    offered.retain(|of| !wanted.iter().any(|new| new.0 == of.0));
                    offered.extend(wanted);
                    drop(rosters);
                    self.rosters.talk.notify_one();
                }
                serde_json::to_vec(&Page { total: held.len(), digests: page(&held, from) }).ok()
            }
            Request::Part { of, number } => {
                let held = self.rosters.held();
                let signed = held.by.get(&of.0).filter(|signed| signed.digest() == of);
                let signed = signed.filter(|signed| is_passed_on(&config, signed.roster()));
                Some(signed.map_or_else(Vec::new, |signed| signed.part(number)))
            }
            Request::Removed => {
                self.rosters.held().left.insert(letter.peer);
                None
            }
        }
    }

    /// Tells those who are peers no more, over the session that is about to end.
    pub(super) fn bid_farewell(&self, new: &Config) {
        let Ok(body) = serde_json::to_vec(&Request::Removed) else { return };
        let old = self.config();
        let gone = |key: &PublicKey| !new.peers.iter().any(|peer| peer.public_key == *key);
        for peer in old.peers.iter().filter(|peer| !peer.client && gone(&peer.public_key)) {
            let letter = Letter {
                peer: peer.public_key,
                kind: Kind::News,
                answer: false,
                id: self.mail.id(),
                body: body.clone(),
                size: 0,
            };
            self.post(&letter);
        }
    }

    /// For `status`.
    pub(super) fn news_warnings(&self) -> Vec<String> {
        let config = self.config();
        let pending = self.rosters.introductions(&config);
        let held = self.rosters.held();
        let left = config.peers.iter().filter(|peer| held.left.contains(&peer.public_key));
        let left = left.map(|peer| format!("{} has removed this host from its peers", peer.name));
        let pending = pending.iter().map(|pending| {
            format!("{}; look with: meshd plan; accept with: meshd peer trust {}", pending.describe(), pending.inviter)
        });
        held.warnings.iter().cloned().chain(left).chain(pending).collect()
    }
}
