//! Rosters on disk, in `STATE/news/`, and the peers' files that follow from them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Edit, Error, create_dir, replace};
use crate::config::{Peer, edit};
use crate::key::PublicKey;
use crate::mesh::introduce::{self, Step};
use crate::mesh::news::{MAX_DOCUMENT, MAX_INVITERS, Roster, Signed};

/// How often what one inviter says may follow from what another one said.
const PASSES: usize = 4;

/// All rosters that are kept. What is none of ours, cut or altered is as if it were not there: it is fetched again.
pub fn load(state: &Path) -> Vec<Signed> {
    let entries = fs::read_dir(folder(state)).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let path = entry.path();
        let mut document = Vec::new();
        let file = entry.file_type().ok()?.is_file().then(|| File::open(&path).ok())??;
        file.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut document).ok()?;
        let signed = Signed::parse(&document).ok();
        signed.filter(|signed| path == place(state, &signed.roster().inviter))
    };
    entries.filter_map(read).take(MAX_INVITERS).collect()
}

/// Keeps a roster in the place of its inviter's last one.
///
/// # Errors
/// As the kernel gives; then the last one stands.
pub fn keep(state: &Path, signed: &Signed) -> Result<(), Error> {
    create_dir(&folder(state))?;
    replace(&place(state, &signed.roster().inviter), signed.document(), 0o600)
}

/// Keeps none of this inviter.
pub fn forget(state: &Path, inviter: &PublicKey) {
    // One that stays is not believed, as nobody here has its key.
    let _ = fs::remove_file(place(state, inviter));
}

fn folder(state: &Path) -> PathBuf {
    state.join("news")
}

fn place(state: &Path, inviter: &PublicKey) -> PathBuf {
    let hex = inviter.as_bytes().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    folder(state).join(format!("{hex}.roster"))
}

/// Brings the peers' files in step with the rosters of trusted inviters. What does not fit the configuration is left as it
/// is and told, one line each; all else is done.
///
/// # Errors
/// When the files are wrong before anything was changed.
pub fn follow(edit: &mut Edit<'_>, rosters: &[&Roster]) -> Result<Vec<String>, Error> {
    for last in (0..PASSES).rev() {
        let (mut said, mut done) = (Vec::new(), false);
        for roster in rosters {
            // What was done for the roster before may matter to this one.
            let config = edit.config()?;
            let Some(inviter) = introduce::trusted(&config, roster) else { continue };
            let found = introduce::steps(&config, roster, inviter);
            said.extend(found.skipped);
            let mut writes = Vec::new();
            for step in found.steps {
                match step {
                    Step::Write(peer) => writes.push(*peer),
                    Step::Remove(name) => match remove(edit, &name) {
                        Ok(()) => done = true,
                        Err(error) => said.push(stays(&inviter.name, &name, &error)),
                    },
                }
            }
            let all = writes.len();
            let failed = write_all(edit, writes);
            done |= failed.len() < all;
            said.extend(
                failed.iter().map(|(peer, error)| format!("{}: {}: {}", inviter.name, peer.name, first(error))),
            );
        }
        if !done || last == 0 {
            return Ok(said);
        }
    }
    Ok(Vec::new())
}

fn stays(inviter: &str, name: &str, error: &Error) -> String {
    format!("{inviter} has removed {name}, which is cut off; its file stays, for without it: {}", first(error))
}

fn first(error: &Error) -> String {
    error.errors().into_iter().next().unwrap_or_default()
}

/// Takes a peer away, out of `[exit] peers` too, and whoever hangs on it.
///
/// # Errors
/// When the configuration would be wrong; what could go first is gone.
pub fn remove(edit: &mut Edit<'_>, name: &str) -> Result<(), Error> {
    let config = edit.config()?;
    for name in introduce::with_dependants(&config, name) {
        if config.host.exit.as_ref().is_some_and(|exit| exit.peers.contains(&name))
            && let Ok(text) = edit::carry_no_more(edit.host(), &name)
        {
            edit.set_host(text)?;
        }
        edit.remove_peer(&name)?;
    }
    Ok(())
}

/// Writes these peers, and gives back those that do not fit and why. One may need what another one gives up, so there is
/// a second try, and a third in which those that wait have given up what they have.
fn write_all(edit: &mut Edit<'_>, peers: Vec<Peer>) -> Vec<(Peer, Error)> {
    let mut waiting = peers;
    for round in 0..3 {
        let mut failed = Vec::new();
        let mut before = Vec::new();
        if round == 2 {
            for peer in &waiting {
                let Some(text) = edit.peer(&peer.name).map(str::to_owned) else { continue };
                let bare = Peer { addresses: Vec::new(), subnets: Vec::new(), lans: Vec::new(), ..peer.clone() };
                if edit.set_peer(&peer.name, edit::peer(&bare)).is_ok() {
                    before.push((peer.name.clone(), text));
                }
            }
        }
        for peer in waiting {
            if let Err(error) = edit.set_peer(&peer.name, edit::peer(&peer)) {
                failed.push((peer, error));
            }
        }
        let names: BTreeSet<&str> = failed.iter().map(|(peer, _)| peer.name.as_str()).collect();
        for (name, text) in before.into_iter().filter(|(name, _)| names.contains(name.as_str())) {
            // Where another one has taken its place meanwhile, it stays bare.
            let _ = edit.set_peer(&name, text);
        }
        if failed.is_empty() || round == 2 {
            return failed;
        }
        waiting = failed.into_iter().map(|(peer, _)| peer).collect();
    }
    Vec::new()
}

#[cfg(test)]
mod tests;
