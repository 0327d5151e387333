//! `meshd peer rotate`.

use super::super::{Dirs, Failure, ask, page, print, print_json};
use crate::control::api::{RotateRequest, Rotated, RotatedPeer};

/// Arguments of `meshd peer rotate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Both agents agree on the new key over the session that stands, write it down,
and change to it without losing a packet. Whichever of them crashes meanwhile,
they find each other again; the same command once more finishes it.

A peer that runs another WireGuard program cannot take part: write a new
preshared_key on both sides (meshd genpsk), then meshd reload.

Examples:
  meshd peer rotate vps       a new preshared key with one peer
  meshd peer rotate           with every peer that is a host
  meshd peer rotate --self    a new key pair of this host, told to all peers")]
pub struct Args {
    /// The peer's name; all hosts without it
    name: Option<String>,
    /// Give this host a new key pair instead
    #[arg(long = "self", conflicts_with = "name")]
    own: bool,
    /// With --self: also when some peers cannot be told, and are cut off
    #[arg(long, requires = "own")]
    force: bool,
    /// Print JSON, whose fields are stable
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let mut client = ask::connect("rotate", dirs)?;
    let request = RotateRequest { peer: args.name, own: args.own, force: args.force };
    let rotated = client.rotate(&request).map_err(|error| ask::failure("rotate", error))?;
    if args.json {
        print_json(&rotated)?;
    } else {
        print(&shown(&rotated))?;
    }
    outcome(&rotated, args.force)
}

fn shown(rotated: &Rotated) -> String {
    let own = rotated.public_key.map(|key| format!("this host is now {key}\n"));
    let what = if own.is_some() { "knows this host's new key" } else { "has a new preshared key" };
    let done = rotated.peers.iter().filter(|peer| peer.done);
    let lines = done.map(|peer| format!("peer {} {what}\n", page::printable(&peer.name)));
    own.into_iter().chain(lines).collect()
}

/// Peers with which it did not work are errors, but those that were to be cut off.
fn outcome(rotated: &Rotated, force: bool) -> Result<(), Failure> {
    let line = |peer: &RotatedPeer| {
        let why = peer.why.as_deref().unwrap_or_default();
        format!("rotate: peer {}: {}", page::printable(&peer.name), page::printable(why))
    };
    let errors: Vec<String> = rotated.peers.iter().filter(|peer| !peer.done).map(line).collect();
    if let (true, Some(key)) = (force, rotated.public_key) {
        for error in &errors {
            eprintln!("meshd: warning: {error}; write public_key = \"{key}\" there");
        }
        return Ok(());
    }
    if errors.is_empty() {
        return Ok(());
    }
    let remedy = "the same command once they answer; with another WireGuard program, a new preshared_key on both sides";
    Err(Failure { code: 1, errors, remedy: Some(remedy.to_owned()) })
}
