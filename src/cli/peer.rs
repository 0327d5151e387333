//! `meshd peer`: add, list, show, remove, trust.

mod add;
mod list;
mod remove;
mod trust;

use clap::Subcommand;

use super::running::{Reload, outcome};
use super::{Dirs, Failure, running};
use crate::config::{Config, Peer, list_of_names, quote};

/// Arguments of `meshd peer`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd peer list
  meshd peer add vps --public-key KEY --endpoint vps.example.net:51820 \\
      --address 10.88.0.1 --subnet 10.89.1.0/24
  meshd peer remove vps")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a peer's file and have the running agent take it
    Add(add::Args),
    /// Show all peers as configured
    List(list::List),
    /// Show one peer as configured
    Show(list::Show),
    /// Remove a peer's file and have the running agent forget it
    Remove(remove::Args),
    /// Let a peer introduce others, or no more
    Trust(trust::Args),
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    match args.command {
        Command::Add(args) => add::run(args, dirs, running::reload),
        Command::List(args) => list::list(args, dirs),
        Command::Show(args) => list::show(args, dirs),
        Command::Remove(args) => remove::run(args, dirs, running::reload),
        Command::Trust(args) => trust::run(args, dirs, running::reload),
    }
}

fn find<'a>(config: &'a Config, name: &str) -> Result<&'a Peer, Failure> {
    config.peer(name).ok_or_else(|| unknown(name, config.peers.iter().map(|peer| peer.name.as_str())))
}

fn unknown<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Failure {
    let mut names = names.peekable();
    let why = match names.peek() {
        None => "no such peer; there are none yet".to_owned(),
        Some(_) => format!("no such peer; peers are: {}", list_of_names(names)),
    };
    Failure::new(1, format!("peer {}: {why}", quote(name))).try_this("meshd peer list")
}

#[cfg(test)]
mod tests;
