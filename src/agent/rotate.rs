//! Rotation of keys, by the protocol of [`crate::mesh::rotate`]: what is written where, and when it counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::running::Running;
use crate::channel::{Allowance, Kind, Letter};
use crate::config::{Config, Peer, edit, quote};
use crate::control::api::{self, Problem, Rotated, RotatedPeer};
use crate::key::{PresharedKey, PrivateKey, PublicKey, SigningKey};
use crate::mesh::rotate::{Answer, Request, leads, settled, taken};
use crate::store::{self, Edit, Layout};

/// Between two looks at a rotation under way.
const LOOK: Duration = Duration::from_millis(100);
/// Between two proposals of one key to one peer.
const AGAIN: Duration = Duration::from_secs(5);
/// Whoever asked for it does not wait longer for a session under new keys: two lost handshakes and a bit.
const PATIENCE: Duration = Duration::from_secs(12);
/// For a handshake that is under way, and may have to be repeated once (REKEY_TIMEOUT).
const HANDSHAKE: Duration = Duration::from_secs(6);
/// What one peer may ask for: a rotation in so long, and so many at once.
const REQUEST: Duration = Duration::from_secs(2);
const REQUESTS: Duration = Duration::from_secs(12);

/// What is under way.
#[derive(Default)]
pub(super) struct Rotations {
    /// There is something new to look at.
    begun: Notify,
    /// By the peer's name: when it was asked last, and why it did not take what it was asked.
    tried: Mutex<HashMap<String, (Instant, Option<String>)>>,
    /// How often a peer has asked.
    asked: Mutex<HashMap<PublicKey, Allowance>>,
}

impl Rotations {
    fn tried(&self) -> MutexGuard<'_, HashMap<String, (Instant, Option<String>)>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admits(&self, peer: PublicKey) -> bool {
        let now = Instant::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, allowance| !allowance.is_full(now));
        asked.entry(peer).or_default().take(REQUEST, REQUESTS, now).is_ok()
    }
}

impl Running {
    /// Rotates what was asked for.
    pub(super) async fn rotate_keys(&self, request: &api::RotateRequest) -> Result<Rotated, Problem> {
        if request.own {
            return self.rotate_own(request.force).await;
        }
        let config = self.config();
        let chosen: Vec<&Peer> = match &request.peer {
            None => config.peers.iter().filter(|peer| !peer.client).collect(),
            Some(name) => vec![config.peer(name).ok_or_else(|| {
                failed(format!("peer {}: no such peer", quote(name)), Some("meshd peer list".to_owned()))
            })?],
        };
        let peers = join_all(chosen.iter().map(|peer| self.rotate_peer(peer))).await;
        Ok(Rotated { public_key: None, peers })
    }

    /// A new preshared key with this peer.
    async fn rotate_peer(&self, peer: &Peer) -> RotatedPeer {
        let rotated = async {
            self.find(peer).await?;
            if leads(&self.device.public_key(), &peer.public_key) {
                self.begin_rotation(&peer.name).await?;
            } else {
                match self.request(&peer.name, &Request::Begin).await {
                    Some(Answer::Taken) => {}
                    Some(Answer::Later(why) | Answer::Refused(why)) => return Err(format!("it says: {why}")),
                    None => return Err("its meshd is older than rotation".to_owned()),
                }
            }
            let deadline = Instant::now() + PATIENCE;
            loop {
                let config = self.config();
                let now = config.peer(&peer.name).ok_or("it was removed")?;
                if now.preshared_key != peer.preshared_key && now.next.preshared_key.is_none() {
                    return Ok(());
                }
                if Instant::now() >= deadline {
                    let why = self.rotations.tried().get(&peer.name).and_then(|(_, why)| why.clone());
                    let why = why.unwrap_or_else(|| "no session under the new key yet".to_owned());
                    return Err(format!("{why}; both keys count until it is there"));
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let why = rotated.await.err();
        if why.is_none() {
            tracing::info!(peer = peer.name, "a new preshared key");
        }
        RotatedPeer { name: peer.name.clone(), done: why.is_none(), why }
    }

    /// Why a peer cannot take part.
    fn unanswered(&self, peer: &Peer) -> String {
        if self.device.standing(&peer.public_key).is_some_and(|standing| standing.session) {
            "runs another WireGuard program than meshd, or one that is too old".to_owned()
        } else {
            "not reachable".to_owned()
        }
    }

    /// Writes down a next preshared key, unless there is one already.
    async fn begin_rotation(&self, name: &str) -> Result<(), String> {
        let fresh = PresharedKey::generate().map_err(|error| error.to_string())?;
        self.take(name, &Request::Begin, fresh).await.map_err(|answer| match answer {
            Answer::Taken => String::new(),
            Answer::Later(why) | Answer::Refused(why) => why,
        })
    }

    /// Takes what a peer asks for itself, or what this host's operator asks of it.
    async fn take(&self, name: &str, request: &Request, fresh: PresharedKey) -> Result<(), Answer> {
        let outcome = self.change_keys(name, |config, peer| taken(config, peer, request, fresh)).await;
        self.rotations.tried().remove(name);
        self.rotations.begun.notify_one();
        outcome.unwrap_or_else(|error| Err(Answer::Later(error)))
    }

    async fn request(&self, peer: &str, request: &Request) -> Option<Answer> {
        let answer = self.ask_named(peer, Kind::Rotate, &serde_json::to_vec(request).ok()?).await?;
        serde_json::from_slice(&answer).ok()
    }

    /// Asks a peer whose key may change meanwhile, for then the answer does not come from whom was asked.
    async fn ask_named(&self, name: &str, kind: Kind, body: &[u8]) -> Option<Vec<u8>> {
        loop {
            let key = self.config().peer(name)?.public_key;
            let changed = async {
                while self.config().peer(name).is_some_and(|peer| peer.public_key == key) {
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::select! {
                answer = self.ask(key, kind, body.to_vec()) => return answer,
                () = changed => {}
            }
        }
    }

    /// Sees that a peer is an agent, and that there is a session with it under the present keys.
    async fn find(&self, peer: &Peer) -> Result<(), String> {
        self.ask_named(&peer.name, Kind::Hello, &[]).await.ok_or_else(|| self.unanswered(peer))?;
        let deadline = Instant::now() + HANDSHAKE;
        while !self.stands(&peer.name) {
            if Instant::now() >= deadline {
                return Err("there is no session under this host's present key yet".to_owned());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn stands(&self, name: &str) -> bool {
        let standing = self.config().peer(name).and_then(|peer| self.device.standing(&peer.public_key));
        standing.is_some_and(|standing| standing.session)
    }

    /// The answer to a peer's request; none to what cannot be read, or comes too often.
    pub(super) async fn rotated(&self, letter: &Letter) -> Option<(u16, Vec<u8>)> {
        let request: Request = serde_json::from_slice(&letter.body).ok()?;
        // What stands counts before what is asked: see the protocol.
        let name = self.config().peers.iter().find(|peer| peer.public_key == letter.peer)?.name.clone();
        let answer = if !self.rotations.admits(letter.peer) {
            Answer::Later("too often".to_owned())
        } else if let Err(why) = self.settle(&name).await {
            Answer::Later(why)
        } else {
            let fresh = PresharedKey::generate().ok()?;
            self.take(&name, &request, fresh).await.err().unwrap_or(Answer::Taken)
        };
        Some((0, serde_json::to_vec(&answer).ok()?))
    }

    /// Carries on what is under way, until it is dropped.
    pub(super) async fn follow_rotations(&self) {
        loop {
            let config = self.config();
            let pending: Vec<&Peer> = config.peers.iter().filter(|peer| peer.next.is_pending()).collect();
            if pending.is_empty() {
                tokio::select! {
                    () = self.rotations.begun.notified() => {}
                    () = tokio::time::sleep(super::TEND) => {}
                }
                continue;
            }
            join_all(pending.iter().map(|peer| self.carry_on(peer))).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn carry_on(&self, peer: &Peer) {
        let Some(standing) = self.device.standing(&peer.public_key) else { return };
        if standing.public_key || standing.preshared_key {
            if let Err(why) = self.settle(&peer.name).await {
                tracing::warn!(
                    peer = peer.name,
                    why,
                    "new keys are in use, and cannot be written down; will try again"
                );
                tokio::time::sleep(AGAIN).await;
            }
            return;
        }
        let Some(key) = &peer.next.preshared_key else { return };
        let tried = self.rotations.tried().get(&peer.name).map(|(at, _)| *at);
        let due = tried.is_none_or(|at| at.elapsed() >= AGAIN);
        if !due || !standing.session || !leads(&self.device.public_key(), &peer.public_key) {
            return;
        }
        self.rotations.tried().insert(peer.name.clone(), (Instant::now(), None));
        let answer = self.request(&peer.name, &Request::PresharedKey(key.expose_base64())).await;
        let why = match answer {
            Some(Answer::Taken) => {
                self.device.renew(&peer.public_key);
                self.nudge();
                None
            }
            Some(Answer::Later(why) | Answer::Refused(why)) => Some(format!("it says: {why}")),
            None => Some("it did not answer".to_owned()),
        };
        self.rotations.tried().insert(peer.name.clone(), (Instant::now(), why));
    }

    /// Makes next keys under which a session stands the present ones.
    async fn settle(&self, name: &str) -> Result<(), String> {
        let stands = |peer: &Peer| {
            let standing = self.device.standing(&peer.public_key)?;
            settled(peer, standing.public_key, standing.preshared_key)
        };
        if self.config().peer(name).and_then(stands).is_none() {
            return Ok(());
        }
        let settle = |_: &Config, peer: &Peer| Ok::<_, ()>(stands(peer).unwrap_or_else(|| peer.clone()));
        self.change_keys(name, settle).await.map(drop)
    }

    /// Changes a peer's keys: in its file first, then in the tunnel. The file is read anew, and nothing else that its
    /// operator may be about to change takes effect.
    ///
    /// # Errors
    /// When the folder cannot be used. What `change` says comes back inside.
    async fn change_keys<E>(
        &self,
        name: &str,
        change: impl FnOnce(&Config, &Peer) -> Result<Peer, E>,
    ) -> Result<Result<(), E>, String> {
        let _lock = self.lock_folder().await?;
        let changing = self.changing.lock().await;
        let failed = |error: store::Error| error.errors().join("; ");
        let mut folder = Edit::new(&self.config_dir).map_err(failed)?;
        let (file, running) = (folder.config().map_err(failed)?, self.config());
        let (Some(old), Some(before)) = (file.peer(name), running.peer(name)) else {
            return Err("it is no longer a peer".to_owned());
        };
        if !same_keys(old, before) || file.private_key != running.private_key || changing.down {
            return Err("its keys were edited, and not reloaded yet".to_owned());
        }
        let new = match change(&file, old) {
            Ok(new) => new,
            Err(why) => return Ok(Err(why)),
        };
        if new != *old {
            let text =
                edit::keys(folder.peer(name).unwrap_or_default(), old, &new).map_err(|error| error.to_string())?;
            folder.set_peer(name, text).map_err(failed)?;
            let _written = folder.write().map_err(failed)?;
            self.use_keys(name, new);
        }
        Ok(Ok(()))
    }

    /// Has the tunnel, and all that looks at the configuration, use what is in the file.
    fn use_keys(&self, name: &str, new: Peer) {
        let mut config = Config::clone(&self.config());
        let Some(peer) = config.peers.iter_mut().find(|peer| peer.name == name) else { return };
        let old = peer.public_key;
        (peer.public_key, peer.inviter_key) = (new.public_key, new.inviter_key);
        (peer.preshared_key, peer.next) = (new.preshared_key.clone(), new.next.clone());
        let config = Arc::new(config);
        let (mut exits, now) = (self.exits(), Instant::now());
        exits.follow(Arc::clone(&config), now);
        self.device.set_keys(&old, (new.public_key, new.preshared_key, new.next), now);
        drop(exits);
        self.rekeyed(&old, new.public_key);
        self.shown().config = config;
    }

    /// A new key for this host.
    async fn rotate_own(&self, force: bool) -> Result<Rotated, Problem> {
        let cannot = |why: String| failed(format!("the key of this host: {why}"), None);
        let config = self.config();
        if let Some(name) = self.invited().await.filter(|_| !force) {
            let why = format!("{name} has a token that names the present key and would not work any more");
            let remedy = format!("after {name} has joined, meshd peer revoke-invite {name}, or with --force");
            return Err(failed(format!("the key of this host: {why}"), Some(remedy)));
        }
        // All of them are there before the first is told anything.
        // A device behind a relay has nothing to do with this host's key.
        let peers: Vec<&Peer> = config.peers.iter().filter(|peer| !peer.client || peer.via.is_none()).collect();
        let (there, mut peers) = part(&peers, join_all(peers.iter().map(|peer| self.find(peer))).await);
        if !peers.is_empty() && !force {
            let remedy =
                "again once they answer, or with --force, which cuts them off until the new key is written there";
            return Err(refused(&peers, remedy));
        }
        let next = self.next_key().await.map_err(cannot)?;
        let told = join_all(there.iter().map(|peer| self.announce(peer, &next))).await;
        let untold =
            there.iter().zip(told).filter_map(|(peer, told)| Some(not_done(peer, told.err()?))).collect::<Vec<_>>();
        if !untold.is_empty() {
            return Err(refused(&untold, "meshd peer rotate --self, which goes on with the same key"));
        }
        self.use_next_key(&next).await.map_err(cannot)?;
        tracing::info!(public_key = %next.public_key(), "a new key of this host");
        let deadline = Instant::now() + PATIENCE;
        while !there.iter().all(|peer| self.stands(&peer.name)) && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        peers.extend(there.into_iter().map(|peer| {
            let done = self.stands(&peer.name);
            let why = (!done).then(|| "has the new key, and no session under it yet".to_owned());
            RotatedPeer { name: peer.name.clone(), done, why }
        }));
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Rotated { public_key: Some(next.public_key()), peers })
    }

    /// The key that is to come: the one of a rotation that was begun, or a new one.
    async fn next_key(&self) -> Result<PrivateKey, String> {
        let _lock = self.lock_folder().await?;
        if let Some(key) = store::next_private_key(&self.config_dir).map_err(|error| error.to_string())? {
            return Ok(key);
        }
        let key = PrivateKey::generate().map_err(|error| error.to_string())?;
        let path = Layout(&self.config_dir).next_private_key();
        store::create(&path, &format!("{}\n", key.expose_base64()), 0o600).map_err(|error| error.to_string())?;
        Ok(key)
    }

    /// Tells a peer this host's next key.
    async fn announce(&self, peer: &Peer, next: &PrivateKey) -> Result<(), String> {
        // One that still has a session under the key before would have to choose between two next ones.
        if !self.stands(&peer.name) {
            return Err(self.unanswered(peer));
        }
        let inviter_key = SigningKey::of(next).verifying_key().to_string();
        let request = Request::PublicKey { public_key: next.public_key(), inviter_key };
        match self.request(&peer.name, &request).await {
            Some(Answer::Taken) => Ok(()),
            Some(Answer::Later(why) | Answer::Refused(why)) => Err(format!("it says: {why}")),
            None => Err(self.unanswered(peer)),
        }
    }

    /// From here on this host is who it is to be.
    async fn use_next_key(&self, next: &PrivateKey) -> Result<(), String> {
        let _lock = self.lock_folder().await?;
        let changing = self.changing.lock().await;
        let (file, planned) = (store::private_key(&self.config_dir), store::next_private_key(&self.config_dir));
        let is = |key: Result<Option<PrivateKey>, store::Error>, expected: &PrivateKey| {
            key.map(|key| key.as_ref() == Some(expected)).map_err(|error| error.to_string())
        };
        if !is(file, &self.config().private_key)? || !is(planned, next)? || changing.down {
            return Err("its files were changed meanwhile".to_owned());
        }
        store::rotate_private_key(&self.config_dir).map_err(|error| error.to_string())?;
        let mut config = Config::clone(&self.config());
        config.private_key = next.clone();
        self.device.rotate_private_key(next.clone(), Instant::now());
        self.shown().config = Arc::new(config);
        self.nudge();
        Ok(())
    }

    /// What the operator began and has not finished.
    pub(super) fn rotation_warnings(&self) -> Option<String> {
        let begun = Layout(&self.config_dir).next_private_key().exists();
        begun.then(|| {
            "a new key of this host was begun and is not in use; `meshd peer rotate --self` goes on".to_owned()
        })
    }

    fn nudge(&self) {
        if let Some(dataplane) = &*self.dataplane() {
            dataplane.nudge();
        }
    }
}

fn same_keys(a: &Peer, b: &Peer) -> bool {
    a.public_key == b.public_key && a.preshared_key == b.preshared_key && a.next == b.next
}

/// Those that were found, and the others.
fn part<'c>(peers: &[&'c Peer], found: Vec<Result<(), String>>) -> (Vec<&'c Peer>, Vec<RotatedPeer>) {
    let (mut there, mut others) = (Vec::new(), Vec::new());
    for (&peer, found) in peers.iter().zip(found) {
        match found {
            Ok(()) => there.push(peer),
            Err(why) => others.push(not_done(peer, why)),
        }
    }
    (there, others)
}

fn not_done(peer: &Peer, why: String) -> RotatedPeer {
    RotatedPeer { name: peer.name.clone(), done: false, why: Some(why) }
}

fn refused(peers: &[RotatedPeer], remedy: &str) -> Problem {
    let line = |peer: &RotatedPeer| format!("peer {}: {}", peer.name, peer.why.as_deref().unwrap_or_default());
    let errors = peers.iter().map(line).chain(["this host keeps its key".to_owned()]).collect();
    Problem { refused: true, errors, remedy: Some(remedy.to_owned()) }
}

fn failed(error: String, remedy: Option<String>) -> Problem {
    Problem { refused: false, errors: vec![error], remedy }
}
