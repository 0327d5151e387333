//! `meshd peer trust`: whose news may bring peers.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use super::super::{Dirs, Failure, page, print};
use super::{Reload, find, outcome};
use crate::config::{Config, edit};
use crate::mesh::introduce;
use crate::mesh::news::{Roster, Signed};
use crate::store::{self, Edit, news};

/// Arguments of `meshd peer trust`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A host that joined trusts the host that invited it. What others would
bring shows `meshd plan`. Compare the key that is shown with what the peer
itself says: meshd status --json | jq -r .inviter_key

Examples:
  meshd peer trust home            whom home has for peers, become ours
  meshd peer trust home --revoke   they go, and home introduces nobody")]
pub struct Args {
    /// The peer's name
    name: String,
    /// Take it back, and remove the peers that it introduced
    #[arg(long)]
    revoke: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    yes: bool,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    if args.revoke { revoke(&args.name, dirs, reload) } else { trust(&args, dirs, reload) }
}

/// Refuses to remove a peer that would come back, or that others depend on.
pub fn may_be_removed(config: &Config, name: &str) -> Result<(), Failure> {
    let Some(peer) = config.peer(name) else { return Ok(()) };
    if let (true, Some(by)) = (introduce::is_vouched_for(config, peer), &peer.introduced_by) {
        let why = format!("peer {name}: {by} has introduced it and would bring it again");
        return Err(Failure::new(4, why).try_this(format!("meshd peer remove {name}   on {by}, for all hosts")));
    }
    let brought = introduced_by(config, name);
    if brought.is_empty() {
        return Ok(());
    }
    let why = format!("peer {name}: has introduced {}", brought.join(", "));
    Err(Failure::new(4, why).try_this(format!("meshd peer trust {name} --revoke   which removes them")))
}

fn introduced_by(config: &Config, name: &str) -> Vec<String> {
    let mut names = introduce::with_dependants(config, name);
    names.pop();
    names.reverse();
    names
}

fn trust(args: &Args, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let name = &args.name;
    let config = store::load(&dirs.config)?;
    if find(&config, name)?.inviter_key.is_some() {
        return print(&format!("{name} is trusted already\n"));
    }
    let shown = pending(&config, name, dirs)?;
    let brought = introduce::introductions(&config, std::iter::once(&shown));
    let peers = brought.iter().flat_map(|one| &one.peers).map(|peer| format!("+ peer {}\n", peer.describe()));
    let list: String = peers.collect();
    let list = if list.is_empty() { "nobody new for now\n".to_owned() } else { list };
    print(&format!("{name} would introduce, signed with {}:\n{list}", shown.inviter_key))?;
    if !args.yes && !confirmed(name)? {
        return Err(Failure::new(1, format!("peer {name}: not trusted")));
    }

    let _lock = store::lock(&dirs.config)?;
    let mut edit = Edit::new(&dirs.config)?;
    let roster = pending(&edit.config()?, name, dirs)?;
    if roster.inviter_key != shown.inviter_key {
        return Err(Failure::new(1, format!("peer {name}: signs with another key now; look again")));
    }
    let text = edit::set(edit.peer(name).unwrap_or_default(), "inviter_key", roster.inviter_key.to_string());
    edit.set_peer(name, text.map_err(|error| Failure::new(4, edit::broken(name, &error)))?)?;
    let left_out = news::follow(&mut edit, &[&roster])?;
    for line in left_out {
        eprintln!("meshd: warning: {}", page::printable(&line));
    }
    let brought = introduced_by(&edit.config()?, name);
    apply(edit, dirs, reload, &format!("{name} may introduce peers; added: {}\n", listed(&brought)))
}

fn revoke(name: &str, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let _lock = store::lock(&dirs.config)?;
    let mut edit = Edit::new(&dirs.config)?;
    let config = edit.config()?;
    if find(&config, name)?.inviter_key.is_none() {
        return print(&format!("{name} introduces nobody here\n"));
    }
    let brought = introduced_by(&config, name);
    for peer in &brought {
        news::remove(&mut edit, peer).map_err(|error| Failure {
            remedy: Some(format!("take {peer} out of meshd.toml first")),
            ..Failure::from(error)
        })?;
    }
    let text = edit::unset(edit.peer(name).unwrap_or_default(), "inviter_key");
    edit.set_peer(name, text.map_err(|error| Failure::new(4, edit::broken(name, &error)))?)?;
    apply(edit, dirs, reload, &format!("{name} introduces nobody any more; removed: {}\n", listed(&brought)))
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn apply(edit: Edit<'_>, dirs: &Dirs, reload: impl Reload, done: &str) -> Result<(), Failure> {
    let undo = edit.write()?;
    match reload(dirs) {
        Ok(reloaded) => print(&format!("{done}{}", outcome(reloaded.as_ref()))),
        Err(failure) => {
            undo.undo()?;
            Err(failure)
        }
    }
}

/// What a peer that is no inviter here has signed last.
fn pending(config: &Config, name: &str, dirs: &Dirs) -> Result<Roster, Failure> {
    let peer = find(config, name)?;
    if !peer.trusted() {
        let why = format!("peer {name}: a client, or held back by allow, introduces nobody");
        return Err(Failure::new(4, why).try_this(format!("take client and allow out of peers/{name}.toml")));
    }
    let rosters = news::load(&dirs.state);
    let roster = rosters.iter().map(Signed::roster).find(|roster| roster.inviter == peer.public_key);
    roster.cloned().ok_or_else(|| {
        Failure::new(1, format!("peer {name}: its agent has told nothing of its peers yet"))
            .try_this("meshd status   whether it is up; meshd has to run there")
    })
}

fn confirmed(name: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        let why = format!("peer {name}: not trusted without being asked, and there is no terminal");
        return Err(Failure::new(2, why).try_this(format!("meshd peer trust {name} --yes")));
    }
    print("trust it? [y/N] ")?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer).and_then(|_| io::stdout().flush());
    read.map_err(|error| Failure::new(1, format!("standard input: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests;
