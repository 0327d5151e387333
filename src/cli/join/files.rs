//! What a join writes, in an order in which a crash leaves something that the next one goes on from: the key before the
//! inviter hears of it; name and addresses; peers; bridges with their egress, which names a peer. The running agent gets
//! all of it at once, and what it refuses is undone.

use std::fs;
use std::path::PathBuf;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::super::running::Reload;
use super::super::{Dirs, Failure, init};
use super::refused;
use crate::agent::join::Redeemed;
use crate::config::{Bridge, Peer, edit, quote};
use crate::control::api::Reloaded;
use crate::enroll::accept::{self, Accepted};
use crate::enroll::exchange::Offer;
use crate::enroll::token::Token;
use crate::key::{PresharedKey, PrivateKey};
use crate::store::{self, Edit, Layout};

/// What came of it.
pub struct Joined {
    /// This host's name in the mesh.
    pub name: String,
    /// This host's addresses inside it.
    pub addresses: Vec<IpNet>,
    /// This host's bridges.
    pub bridges: Vec<Bridge>,
    /// The inviter's.
    pub inviter: Peer,
    /// How many it introduced.
    pub members: usize,
    /// The files that were written.
    pub written: Vec<PathBuf>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// What the running agent says; `None` when none runs.
    pub reloaded: Option<Reloaded>,
}

/// This host's private key: what is there, or what has to be made.
pub struct OwnKey<'d> {
    dirs: &'d Dirs,
    key: Option<PrivateKey>,
    /// What is to be deleted when it was made for nothing, the last first.
    made: Vec<PathBuf>,
}

impl<'d> OwnKey<'d> {
    /// Not looked for yet.
    pub fn new(dirs: &'d Dirs) -> Self {
        Self { dirs, key: None, made: Vec::new() }
    }

    /// The key, which is on disk: whoever joins again has the same.
    pub fn have(&mut self) -> Result<PrivateKey, Failure> {
        if let Some(key) = &self.key {
            return Ok(key.clone());
        }
        let dir = &self.dirs.config;
        let key = match store::private_key(dir)? {
            Some(key) => key,
            None => self.make()?,
        };
        Ok(self.key.insert(key).clone())
    }

    fn make(&mut self) -> Result<PrivateKey, Failure> {
        let key = PrivateKey::generate().map_err(|error| Failure::new(1, format!("join: random numbers: {error}")))?;
        let layout = Layout(&self.dirs.config);
        for dir in [self.dirs.config.clone(), layout.peers()] {
            if !dir.is_dir() {
                store::create_dir(&dir)?;
                self.made.push(dir);
            }
        }
        let text = Zeroizing::new(format!("{}\n", *Zeroizing::new(key.expose_base64())));
        match store::create(&layout.private_key(), &text, 0o600) {
            Ok(()) => self.made.push(layout.private_key()),
            // Another join was faster, and has told the inviter.
            Err(store::Error::Exists(path)) => {
                return store::private_key(&self.dirs.config)?.ok_or_else(|| store::Error::NotThere(path).into());
            }
            Err(error) => return Err(error.into()),
        }
        Ok(key)
    }

    /// Deletes what was made, as far as nobody else has put something there.
    pub fn forget(self) {
        for path in self.made.iter().rev() {
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// Checks the offer against what is here, writes the files and has the running agent take them.
pub fn write(
    token: &Token,
    redeemed: &Redeemed,
    key: &PrivateKey,
    dirs: &Dirs,
    reload: impl Reload,
) -> Result<Joined, Failure> {
    let _lock = store::lock(&dirs.config)?;
    // Once more, as it may have changed while the inviter was asked.
    super::token::check(token, dirs)?;
    let offer = &redeemed.offer;
    let mut edit = if store::is_configured(&dirs.config) {
        Edit::new(&dirs.config)?
    } else {
        let text = init::for_joiner(&offer.name, &offer.addresses, &key.public_key())?;
        Edit::first(&dirs.config, text).map_err(|error| of_the_offer(error, offer))?
    };
    let before = edit.config()?;
    if before.private_key.public_key() != key.public_key() {
        return Err(Failure::new(1, "join: private.key has changed meanwhile").try_this("the same again"));
    }
    let known = before.peers.iter().find(|peer| peer.public_key == token.inviter);
    let Accepted { inviter, members, mut notes } =
        accept::peers(token, offer, &redeemed.endpoint, known).map_err(refused)?;
    clash(&before, &inviter)?;

    let identity = accept::identity(edit.host(), &before, offer).map_err(refused)?;
    edit.set_host(identity.text).map_err(|error| of_the_offer(error, offer))?;
    notes.extend(identity.notes);
    edit.set_peer(&inviter.name, edit::peer(&inviter)).map_err(|error| of_the_offer(error, offer))?;
    let introduced = introduce(&mut edit, &members, &mut notes);
    let networks = accept::networks(edit.host(), &edit.config()?, offer, &init::bridges_of_this_host());
    let networks = networks.map_err(refused)?;
    edit.set_host(networks.text).map_err(|error| of_the_offer(error, offer))?;
    notes.extend(networks.notes);

    let after = edit.config()?;
    notes.extend(accept::other_egress(&after, offer));
    let written = edit.changed();
    let undo = edit.write()?;
    let reloaded = match reload(dirs) {
        Ok(reloaded) => reloaded,
        Err(mut failure) => {
            undo.undo()?;
            failure.errors.push("join: nothing written, as the running agent refused".into());
            return Err(failure);
        }
    };
    Ok(Joined {
        name: after.host.name,
        addresses: after.host.addresses,
        bridges: after.host.bridges,
        inviter,
        members: introduced,
        written,
        notes,
        reloaded,
    })
}

/// A file of this name is another host's.
fn clash(before: &crate::config::Config, inviter: &Peer) -> Result<(), Failure> {
    let Some(peer) = before.peer(&inviter.name).filter(|peer| peer.public_key != inviter.public_key) else {
        return Ok(());
    };
    let why = format!("join: the inviter is called {}, and peer {} here is another host", inviter.name, peer.name);
    Err(Failure::new(4, why).try_this(format!("meshd peer remove {}, or give it another name", peer.name)))
}

/// Those behind the inviter, each for itself: one that does not fit is no reason against the others. How many there are
/// comes back.
fn introduce(edit: &mut Edit<'_>, members: &[Peer], notes: &mut Vec<String>) -> usize {
    let mut introduced = 0;
    for member in members {
        let name = &member.name;
        let Ok(config) = edit.config() else { return introduced };
        match config.peers.iter().find(|peer| peer.public_key == member.public_key) {
            // An operator has written it down, or news keep it in step: the file has more than an offer says.
            Some(_) => continue,
            None if config.peer(name).is_some() => {
                notes.push(format!("left out {name}: peer {name} here is another host"));
                continue;
            }
            _ => {}
        }
        match edit.set_peer(name, edit::peer(member)) {
            Ok(()) => introduced += 1,
            Err(error) => {
                let why = error.errors().into_iter().next().unwrap_or_default();
                notes.push(format!("left out {name}: {why}"));
            }
        }
    }
    introduced
}

/// What the offer would make wrong.
fn of_the_offer(error: store::Error, offer: &Offer) -> Failure {
    let mut failure = Failure::from(error);
    failure.errors.insert(0, format!("join: what {} offers does not fit this host", quote(&offer.inviter.name)));
    failure.remedy = Some("correct what is named here or there; then the same again".into());
    failure
}

impl Joined {
    /// Of the session with the inviter.
    pub fn preshared_key(&self) -> Option<PresharedKey> {
        self.inviter.preshared_key.clone()
    }
}
