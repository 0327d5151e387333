//! Invitations on disk, `STATE/invitations/ID.json`, and what they change in the configuration folder.
//!
//! A record is made by the command line, which holds [`super::lock`]; after that the agent alone changes it while it runs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Edit, Error, Kind, create, create_dir, io_error, remove, replace, show, source};
use crate::clock::unix_now;
use crate::config::edit;
use crate::config::{Config, Problem};
use crate::enroll::invitation::{Invitation, State};
use crate::key::{PresharedKey, PublicKey};

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("invitations")
}

fn path(state_dir: &Path, id: &str) -> PathBuf {
    folder(state_dir).join(format!("{id}.json"))
}

/// Addresses that hosts get which have yet to join.
///
/// # Errors
/// As [`load`].
pub fn promised(state_dir: &Path) -> Result<Vec<IpAddr>, Error> {
    let now = unix_now();
    let pending = load(state_dir)?.into_iter().filter(|one| one.pending(now));
    Ok(pending.flat_map(|one| one.addresses).collect())
}

/// All records, by name. One that cannot be read is warned of and left out: it lets nobody in.
///
/// # Errors
/// When the folder cannot be read.
pub fn load(state_dir: &Path) -> Result<Vec<Invitation>, Error> {
    let folder = folder(state_dir);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(&folder, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io_error(&folder, error))?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if hidden || path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let parsed =
            source(&folder, &path, Kind::Secret).map(|source| serde_json::from_slice::<Invitation>(&source.text));
        match parsed {
            Ok(Ok(invitation)) if path.file_stem().is_some_and(|stem| *stem == *invitation.id) => {
                found.push(invitation);
            }
            // Not the parser's words, which may quote a key.
            Ok(_) => tracing::warn!("{}: no invitation of this version of meshd; ignored", show(&path)),
            // Deleted meanwhile.
            Err(Error::NotThere(_)) => {}
            Err(error) => tracing::warn!("{error}; ignored"),
        }
    }
    found.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(found)
}

/// Writes a new record.
///
/// # Errors
/// When there is one of its ID, or as the kernel gives.
pub fn add(state_dir: &Path, invitation: &Invitation) -> Result<(), Error> {
    create_dir(&folder(state_dir))?;
    create(&path(state_dir, &invitation.id), &text(invitation), 0o600)
}

/// Writes a record in the place of the old one; on disk when this returns.
///
/// # Errors
/// As the kernel gives; then the old one stands.
pub fn save(state_dir: &Path, invitation: &Invitation) -> Result<(), Error> {
    replace(&path(state_dir, &invitation.id), &text(invitation), 0o600)
}

/// Deletes a record.
///
/// # Errors
/// As the kernel gives.
pub fn forget(state_dir: &Path, invitation: &Invitation) -> Result<(), Error> {
    remove(&path(state_dir, &invitation.id))
}

fn text(invitation: &Invitation) -> String {
    // Numbers, texts and lists of them: nothing that could fail.
    serde_json::to_string_pretty(invitation).unwrap_or_default() + "\n"
}

/// Makes the joiner a peer in `edit`; the text of its file comes back. A peer that was made before stays as it is.
///
/// # Errors
/// What is wrong with the configuration then.
pub fn let_in(
    edit: &mut Edit<'_>,
    invitation: &Invitation,
    key: PublicKey,
    preshared_key: PresharedKey,
) -> Result<String, Error> {
    let name = &invitation.name;
    let text = if let Some(text) = edit.peer(name) {
        let peer = edit.config()?.peer(name).cloned();
        if peer.is_none_or(|peer| peer.public_key != key || peer.preshared_key.is_none()) {
            let path = format!("peers/{name}.toml");
            let message = "another peer has this name already".to_owned();
            return Err(Error::Invalid(vec![Problem { path, line: 1, message }]));
        }
        text.to_owned()
    } else {
        let text = edit::peer(&invitation.peer(key, Some(preshared_key)));
        edit.set_peer(name, text.clone())?;
        text
    };
    if invitation.egress {
        let host = edit::carry(edit.host(), name).map_err(|error| broken(&error))?;
        edit.set_host(host)?;
    }
    Ok(text)
}

/// Takes back in `edit` what [`let_in`] did, unless somebody has edited the peer's file since. Whether it did anything.
///
/// # Errors
/// What is wrong with the configuration then: it needs the peer, for one.
pub fn withdraw(edit: &mut Edit<'_>, invitation: &Invitation) -> Result<bool, Error> {
    let ours = edit.peer(&invitation.name).is_some_and(|text| invitation.wrote(text));
    if ours {
        let host = edit::carry_no_more(edit.host(), &invitation.name).map_err(|error| broken(&error))?;
        edit.set_host(host)?;
        edit.remove_peer(&invitation.name)?;
    }
    Ok(ours)
}

/// Whether a crash has left an invitation's peer without its egress.
pub fn half_done(config: &Config, invitation: &Invitation) -> bool {
    let State::Bound { key, .. } = &invitation.state else { return false };
    let carried = config.host.exit.as_ref().is_some_and(|exit| exit.peers.contains(&invitation.name));
    let peer = config.peer(&invitation.name).is_some_and(|peer| peer.public_key == *key);
    peer && invitation.egress && !carried
}

fn broken(error: &toml_edit::TomlError) -> Error {
    let message = error.message().replace('\n', "; ");
    Error::Invalid(vec![Problem { path: "meshd.toml".into(), line: 1, message }])
}
