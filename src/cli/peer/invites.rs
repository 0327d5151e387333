//! `meshd peer invites`, `revoke-invite` and `approve`: what becomes of invitations.

use std::io::IsTerminal as _;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::super::conf::ask;
use super::super::show::{all_of, columns};
use super::super::{Dirs, Failure, ask as agent, print, print_json};
use crate::clock::unix_now;
use crate::config::quote;
use crate::control::api::Decision;
use crate::control::client::{Client, ClientError};
use crate::enroll::fingerprint;
use crate::enroll::invitation::{Invitation, State};
use crate::key::PublicKey;
use crate::store::{self, Edit, invitations};

/// Arguments of `meshd peer invites`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Those that are over are shown for an hour beyond their expiry.

Examples:
  meshd peer invites
  meshd peer invites --json | jq -r '.[] | select(.state == \"open\").name'")]
pub struct Invites {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `meshd peer revoke-invite`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A host that was let in and has not been heard of yet is a peer no more. One
that has joined stays: meshd peer remove cuts it off.

Examples:
  meshd peer revoke-invite home")]
pub struct Revoke {
    /// The name that was invited, or the invitation's ID
    #[arg(value_name = "NAME|ID")]
    which: String,
}

/// Arguments of `meshd peer approve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Both hosts show the same fingerprint when nobody stands in between. To deny it
revokes the invitation.

Examples:
  meshd peer approve home
  meshd peer approve home --fingerprint K7QM-3XPA-9D2T")]
pub struct Approve {
    /// The name that was invited, or the invitation's ID
    #[arg(value_name = "NAME|ID")]
    which: String,
    /// What the other host shows; nobody else is let in
    #[arg(long, value_name = "FINGERPRINT", conflicts_with = "yes")]
    fingerprint: Option<String>,
    /// Whoever it is
    #[arg(long)]
    yes: bool,
}

/// One of `meshd peer invites --json`; stable.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    name: &'a str,
    /// `open`, `waiting`, `bound`, `used`, `revoked` or `expired`.
    state: &'static str,
    /// Unix seconds.
    expires: u64,
    addresses: &'a [IpAddr],
    subnets: &'a [IpNet],
    lans: &'a [IpNet],
    egress: bool,
    approve: bool,
    /// Who has redeemed it.
    public_key: Option<&'a PublicKey>,
    fingerprint: Option<String>,
}

/// Runs `meshd peer invites`.
pub fn list(args: Invites, dirs: &Dirs) -> Result<(), Failure> {
    let (found, now) = (invitations::load(&dirs.state)?, unix_now());
    let own = own_key(dirs)?;
    let shown = found.iter().filter(|one| !one.forgotten(now)).map(|one| Shown {
        id: &one.id,
        name: &one.name,
        state: one.state.word(one.lapsed(now)),
        expires: one.expires,
        addresses: &one.addresses,
        subnets: &one.subnets,
        lans: &one.lans,
        egress: one.egress,
        approve: one.approve,
        public_key: one.joiner(),
        fingerprint: one.joiner().map(|joiner| fingerprint(&own, joiner)),
    });
    let shown: Vec<_> = shown.collect();
    if args.json {
        return print_json(&shown);
    }
    if shown.is_empty() {
        return print("no invitations; `meshd peer add NAME --subnet CIDR` makes one\n");
    }
    let heading = ["NAME", "ID", "STATE", "EXPIRES", "FINGERPRINT", "SUBNETS"].map(String::from);
    let rows = shown.iter().map(|one| {
        let left = one.expires.saturating_sub(now);
        let expires = if left == 0 { "-".to_owned() } else { format!("in {}", rough(left)) };
        let fingerprint = one.fingerprint.clone().unwrap_or_else(|| "-".into());
        [one.name.to_owned(), one.id.to_owned(), one.state.to_owned(), expires, fingerprint, all_of(one.subnets)]
    });
    print(&columns(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))
}

/// Runs `meshd peer revoke-invite`.
pub fn revoke(args: Revoke, dirs: &Dirs) -> Result<(), Failure> {
    let invitation = find(&args.which, dirs)?;
    if let State::Used { .. } = invitation.state {
        let failure = Failure::new(1, format!("invitation {}: was used", quote(&args.which)));
        return Err(failure.try_this(format!("meshd peer remove {}", invitation.name)));
    }
    end(&invitation, dirs)?;
    print(&format!("the invitation of {} is revoked\n", invitation.name))
}

/// Runs `meshd peer approve`.
pub fn approve(args: Approve, dirs: &Dirs) -> Result<(), Failure> {
    let invitation = find(&args.which, dirs)?;
    let name = &invitation.name;
    let State::Waiting { key } = invitation.state else {
        let why = format!("nobody waits: it is {}", invitation.state.word(invitation.lapsed(unix_now())));
        return Err(Failure::new(1, format!("invitation {}: {why}", quote(&args.which))).try_this("meshd peer invites"));
    };
    let shown = fingerprint(&own_key(dirs)?, &key);
    match &args.fingerprint {
        Some(expected) if !same(expected, &shown) => {
            let why = format!("peer {name}: whoever waits has the fingerprint {shown}; nobody was let in");
            return Err(Failure::new(4, why).try_this(format!("meshd peer revoke-invite {name}")));
        }
        Some(_) => {}
        None if args.yes => {}
        None if std::io::stdin().is_terminal() => {
            let asked = ask(&format!("{name} shows the fingerprint {shown}; let it in?"));
            if asked != Some(true) {
                end(&invitation, dirs)?;
                return Err(Failure::new(1, format!("peer {name}: denied; the invitation is revoked")));
            }
        }
        None => {
            let failure = Failure::new(4, format!("peer {name}: {shown} waits, and there is no terminal to ask at"));
            return Err(failure.try_this(format!("meshd peer approve {name} --fingerprint {shown}")));
        }
    }
    let decision = Decision { id: invitation.id.clone(), approve: Some(key) };
    let decided = Client::connect(&dirs.run).and_then(|mut client| client.decide(&decision));
    decided.map_err(|error| agent::failure("peer approve", error))?;
    print(&format!("{name} is let in\n"))
}

/// Lets nobody in by this name any more, as when the peer is removed.
pub(super) fn revoke_pending(name: &str, dirs: &Dirs) -> Result<(), Failure> {
    let now = unix_now();
    let found = invitations::load(&dirs.state)?;
    found.iter().filter(|one| one.name == name && one.pending(now)).try_for_each(|one| end(one, dirs))
}

/// Has the running agent end it; where none runs, ends it here.
fn end(invitation: &Invitation, dirs: &Dirs) -> Result<(), Failure> {
    let decision = Decision { id: invitation.id.clone(), approve: None };
    match Client::connect(&dirs.run).and_then(|mut client| client.decide(&decision)) {
        Err(ClientError::NotRunning) => {}
        other => return other.map_err(|error| agent::failure("peer revoke-invite", error)),
    }
    let _lock = store::lock(&dirs.config)?;
    let mut ended = invitation.clone();
    if let State::Bound { .. } = invitation.state {
        let mut edit = Edit::new(&dirs.config)?;
        invitations::withdraw(&mut edit, invitation)?;
        let _ = edit.write()?;
    }
    ended.end(true);
    Ok(invitations::save(&dirs.state, &ended)?)
}

/// One that may yet be redeemed, else the last of that name.
fn find(which: &str, dirs: &Dirs) -> Result<Invitation, Failure> {
    let (found, now) = (invitations::load(&dirs.state)?, unix_now());
    let named = found.into_iter().filter(|one| one.name == which || one.id == which);
    let newest = named.max_by_key(|one| (one.pending(now), one.expires));
    newest.ok_or_else(|| {
        Failure::new(1, format!("invitation {}: there is none", quote(which))).try_this("meshd peer invites")
    })
}

fn own_key(dirs: &Dirs) -> Result<PublicKey, Failure> {
    let key = store::private_key(&dirs.config)?;
    let none = || Failure::new(1, "this host has no key").try_this("meshd init");
    key.map(|key| key.public_key()).ok_or_else(none)
}

/// As people write it down: letters of either case, with or without dashes.
fn same(written: &str, fingerprint: &str) -> bool {
    let plain = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_uppercase();
    plain(written) == plain(fingerprint)
}

fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
