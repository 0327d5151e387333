//! `meshd peer`: add, list, show, remove, export, and invitations.

mod add;
mod client;
mod export;
mod from;
mod invite;
mod invites;
mod list;
mod remove;
mod ssh;

use clap::Subcommand;

use super::running::{Reload, outcome};
use super::{Dirs, Failure, running};
use crate::config::{Config, Peer, list_of_names, quote};

/// Arguments of `meshd peer`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd peer list
  meshd peer add home --subnet 10.89.2.0/24 --egress
  meshd peer add vps --public-key KEY --endpoint vps.example.net:51820 \\
      --address 10.88.0.1 --subnet 10.89.1.0/24
  meshd peer add phone --client --qr
  meshd peer remove vps")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Invite a host, or add a device or a host whose key is known
    Add(Box<add::Args>),
    /// Show all peers as configured
    List(list::List),
    /// Show one peer as configured
    Show(list::Show),
    /// Print this host, or a peer's way to it, as wg-quick has it
    Export(export::Args),
    /// Show invitations and who redeemed them
    Invites(invites::Invites),
    /// Take an invitation back
    RevokeInvite(invites::Revoke),
    /// Let in who redeemed an invitation made with --approve
    Approve(invites::Approve),
    /// Remove a peer's file and have the running agent forget it
    Remove(remove::Args),
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    match args.command {
        Command::Add(args) => add::run(*args, dirs, running::reload),
        Command::List(args) => list::list(args, dirs),
        Command::Show(args) => list::show(args, dirs),
        Command::Export(args) => export::run(args, dirs),
        Command::Invites(args) => invites::list(args, dirs),
        Command::RevokeInvite(args) => invites::revoke(args, dirs),
        Command::Approve(args) => invites::approve(args, dirs),
        Command::Remove(args) => remove::run(args, dirs, running::reload),
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
