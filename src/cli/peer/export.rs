//! `meshd peer export`: this host, or another's way to it, as wg-quick has it.

use std::path::PathBuf;

use super::super::conf::{self, Written};
use super::super::{Dirs, Failure, print};
use super::find;
use crate::store;
use crate::wgquick;

/// Arguments of `meshd peer export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The egress of bridges is left out of this host's file: wg-quick knows that of
a whole host only. Preshared keys are in both files.

Examples:
  meshd peer export > mesh0.conf
  meshd peer export --private-key --out /etc/wireguard/mesh0.conf
  meshd peer export home                what home would use to reach this host")]
pub struct Args {
    /// The peer whose file it is [default: this host]
    name: Option<String>,
    /// With this host's private key in it
    #[arg(long, conflicts_with = "name")]
    private_key: bool,
    /// Write it into a new file, mode 0600
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let config = store::load(&dirs.config)?;
    let file = match &args.name {
        Some(name) => wgquick::for_peer(&config, find(&config, name)?),
        None => wgquick::export(&config, args.private_key),
    };
    let text = file.expose_text();
    let exits = config.peers.iter().filter(|peer| args.name.is_none() && config.is_exit(&peer.name));
    let left_out: String =
        exits.map(|peer| format!("left out: the egress of bridges through {}\n", peer.name)).collect();
    conf::say(&left_out);
    let Some(path) = &args.out else { return print(&text) };
    let mut written = Written::default();
    written.add(path, text.as_bytes())?;
    written.keep();
    Ok(())
}
