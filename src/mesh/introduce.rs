//! What follows from rosters for this host's peers: who is new, changed or gone. It decides nothing about whether a
//! change fits the configuration; that is for [`crate::config::parse`], which sees each one before it is written.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::news::Roster;
use crate::config::{Config, Peer, Place, quote};
use crate::key::{NextKeys, PublicKey};

/// A change of one peer's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It is gone, or is called otherwise now.
    Remove(String),
    /// Its file is to say this.
    Write(Box<Peer>),
}

/// What following one roster takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// In this order: removals, changes, additions.
    pub steps: Vec<Step>,
    /// Members that are left out, and why, one line each.
    pub skipped: Vec<String>,
}

/// What a peer that is no inviter here would bring if it were one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// The peer's name.
    pub inviter: String,
    /// What it signs with, in base64.
    pub inviter_key: String,
    /// Whom it would bring.
    pub peers: Vec<Introduced>,
}

/// One of [`Introduction`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in Member")]
pub struct Introduced {
    pub name: String,
    pub public_key: PublicKey,
    pub addresses: Vec<IpAddr>,
    pub subnets: Vec<IpNet>,
    pub client: bool,
}

/// The peer here that has signed this roster and whose word counts.
pub fn trusted<'c>(config: &'c Config, roster: &Roster) -> Option<&'c Peer> {
    config.peers.iter().find(|peer| peer.public_key == roster.inviter && peer.inviter_key == Some(roster.inviter_key))
}

/// Whether this is a key of the peer: of a host whose key changes, the inviter may hear before this host or after it.
fn is(peer: &Peer, key: &PublicKey) -> bool {
    [Some(peer.public_key), peer.next.public_key, peer.next.former].contains(&Some(*key))
}

fn lists(roster: &Roster, peer: &Peer) -> bool {
    roster.members.iter().any(|member| is(peer, &member.public_key))
}

/// What following a roster of `inviter` takes.
pub fn steps(config: &Config, roster: &Roster, inviter: &Peer) -> Steps {
    let mut all = Steps::default();
    let own = config.private_key.public_key();
    let ours = |peer: &&Peer| peer.introduced_by.as_ref() == Some(&inviter.name);
    let (mut changed, mut new) = (Vec::new(), Vec::new());
    let (mut renamed, mut seen) = (HashSet::new(), HashSet::new());
    if roster.unreadable > 0 {
        all.skipped.push(format!("{} lists {} peers that cannot be read", inviter.name, roster.unreadable));
    }
    for member in &roster.members {
        if member.public_key == own || member.public_key == inviter.public_key {
            continue;
        }
        let mut skip = |why: &str| all.skipped.push(format!("{}: {}: {why}", inviter.name, quote(&member.name)));
        let mut peer = match member.peer() {
            Ok(peer) => peer,
            Err(why) => {
                skip(&why);
                continue;
            }
        };
        let known = config.peers.iter().find(|known| is(known, &member.public_key));
        if let Some(known) = known.filter(|known| !ours(known)) {
            if known.name != peer.name || known.addresses != peer.addresses || known.subnets != peer.subnets {
                skip(&format!("peers/{}.toml has its key, says otherwise, and is not changed", known.name));
            }
            continue;
        }
        let holder = config.peer(&peer.name);
        if peer.name == config.host.name {
            skip("is this host's own name");
            continue;
        }
        if holder.is_some_and(|holder| !ours(&holder)) {
            skip("is the name of another peer here");
            continue;
        }
        if !seen.insert(peer.name.clone()) | !seen.insert(peer.public_key.to_string()) {
            skip("is listed twice");
            continue;
        }
        peer.introduced_by = Some(inviter.name.clone());
        peer.via = inviter.via.clone().or_else(|| Some(inviter.name.clone()));
        // The services of this host itself are not an inviter's to give.
        if let Some(allow) = &mut peer.allow {
            allow.retain(|item| item.to != Place::Host);
        }
        match known {
            None if holder.is_some() => changed.push(peer),
            None => new.push(peer),
            Some(known) => {
                // All else in the file is between the two hosts: their keys, whether it may introduce others.
                let heard = known.public_key == member.public_key;
                let Peer { name, endpoint, addresses, subnets, client, allow, lans, via, introduced_by, .. } = peer;
                let known = known.clone();
                let former = known.next.former.filter(|_| !heard);
                let peer = Peer {
                    name,
                    next: NextKeys { former, ..known.next.clone() },
                    endpoint,
                    addresses,
                    subnets,
                    client,
                    allow,
                    lans,
                    via,
                    introduced_by,
                    ..known.clone()
                };
                if known.name != peer.name {
                    renamed.insert(known.name.clone());
                    new.push(peer);
                } else if known != peer {
                    changed.push(peer);
                }
            }
        }
    }
    let gone = config.peers.iter().filter(ours).filter(|peer| {
        let taken_over = changed.iter().any(|new| new.name == peer.name);
        renamed.contains(&peer.name) || (!lists(roster, peer) && !taken_over)
    });
    all.steps = gone.map(|peer| Step::Remove(peer.name.clone())).collect();
    all.steps.extend(changed.into_iter().chain(new).map(|peer| Step::Write(Box::new(peer))));
    all
}

/// Who has no session any more, whatever the files still say: peers that their inviter removed, and whom those had
/// introduced.
pub fn dismissed<'r>(config: &Config, rosters: impl Iterator<Item = &'r Roster>) -> HashSet<PublicKey> {
    let mut keys = HashSet::new();
    for roster in rosters {
        let Some(inviter) = trusted(config, roster) else { continue };
        let gone = config.peers.iter().filter(|peer| peer.introduced_by.as_ref() == Some(&inviter.name));
        keys.extend(gone.filter(|peer| !lists(roster, peer)).map(|peer| peer.public_key));
    }
    let by = |peer: &Peer| peer.introduced_by.as_ref().and_then(|name| config.peer(name)).map(|by| by.public_key);
    loop {
        let more = config.peers.iter().filter(|peer| by(peer).is_some_and(|by| keys.contains(&by)));
        let more: Vec<PublicKey> = more.map(|peer| peer.public_key).filter(|key| !keys.contains(key)).collect();
        if more.is_empty() {
            return keys;
        }
        keys.extend(more);
    }
}

/// Whom peers that are no inviters here would bring. Those who would bring nobody new are left out.
pub fn introductions<'r>(config: &Config, rosters: impl Iterator<Item = &'r Roster>) -> Vec<Introduction> {
    let pending = rosters.filter_map(|roster| {
        let inviter = config.peers.iter().find(|peer| peer.public_key == roster.inviter)?;
        if inviter.inviter_key.is_some() || !inviter.trusted() {
            return None;
        }
        let peers: Vec<_> = steps(config, roster, inviter).steps.into_iter().filter_map(introduced).collect();
        let inviter_key = roster.inviter_key.to_string();
        (!peers.is_empty()).then(|| Introduction { inviter: inviter.name.clone(), inviter_key, peers })
    });
    pending.collect()
}

fn introduced(step: Step) -> Option<Introduced> {
    let Step::Write(peer) = step else { return None };
    let Peer { name, public_key, addresses, subnets, client, .. } = *peer;
    Some(Introduced { name, public_key, addresses, subnets, client })
}

/// This peer and whoever hangs on it, those first who have to go first.
pub fn with_dependants(config: &Config, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let mut at = 0;
    while let Some(name) = names.get(at).cloned() {
        let hangs = |peer: &&Peer| {
            peer.introduced_by.as_ref() == Some(&name)
                || (peer.introduced_by.is_some() && peer.via.as_ref() == Some(&name))
        };
        let more = config.peers.iter().filter(hangs).map(|peer| peer.name.clone());
        let more: Vec<_> = more.filter(|name| !names.contains(name)).collect();
        names.extend(more);
        at += 1;
    }
    names.reverse();
    names
}

impl Introduced {
    /// `lab2 (10.88.0.5; 10.89.5.0/24)`.
    pub fn describe(&self) -> String {
        let list = |items: Vec<String>| items.join(", ");
        let addresses = list(self.addresses.iter().map(ToString::to_string).collect());
        let subnets = list(self.subnets.iter().map(ToString::to_string).collect());
        let gap = if subnets.is_empty() { "" } else { "; " };
        format!("{}{} ({addresses}{gap}{subnets})", self.name, if self.client { ", a client" } else { "" })
    }
}

impl Introduction {
    /// `home would introduce lab2 (10.88.0.5; 10.89.5.0/24)`.
    pub fn describe(&self) -> String {
        let peers: Vec<_> = self.peers.iter().map(Introduced::describe).collect();
        format!("{} would introduce {}", self.inviter, peers.join(", "))
    }
}

/// Whether a peer is here because an inviter vouches for it, so that only that one can remove it.
pub fn is_vouched_for(config: &Config, peer: &Peer) -> bool {
    let by = peer.introduced_by.as_ref().and_then(|name| config.peer(name));
    by.is_some_and(|by| by.inviter_key.is_some())
}

#[cfg(test)]
mod tests;
