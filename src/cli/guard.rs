//! `meshd guard`: the guard apart from the agent.

use clap::Subcommand;

use super::page::{self, Cell, Colour, Column, Table};
use super::{Dirs, Failure, ask, print, print_json};
use crate::agent::guard::{self, Armed};
use crate::control::api;

/// Arguments of `meshd guard`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The guard is an nft table that lets what comes from an egress bridge leave by
the tunnel, a local bridge or an `allow` network only. The agent arms it and
keeps it. These commands are for when no agent runs: at boot before there is a
network, and after a crash.

Examples:
  meshd guard arm
  meshd guard status
  systemctl enable meshd-guard     arm it at every boot")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Close egress bridges, without an agent or an interface
    Arm(Arm),
    /// Open them again, when no agent runs
    Disarm(Disarm),
    /// Show for each egress bridge whether the guard holds it
    Status(Status),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs meshd.toml and nft(8), but no bridge, interface or network. When the
files cannot be read, the guard of the last configuration that could is armed,
and the exit code is 4 all the same.

Examples:
  meshd guard arm && podman start --all")]
struct Arm {}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
What an agent that was killed left of routes still closes egress bridges;
`meshd down` removes both.

Examples:
  meshd guard disarm")]
struct Disarm {}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
armed    as meshd.toml says
off      nothing holds this bridge
altered  somebody changed the guard, or it is that of other files

The exit code is 0 when every egress bridge is armed, else 1.

Examples:
  meshd guard status
  meshd guard status --json | jq -r '.bridges[].guard'")]
struct Status {
    /// Print JSON, whose fields are stable
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    match args.command {
        Command::Arm(_) => arm(dirs),
        Command::Disarm(_) => {
            print(if guard::disarm(dirs)? { "disarmed; egress bridges are open\n" } else { "no guard stood\n" })
        }
        Command::Status(Status { json }) => status(dirs, json),
    }
}

fn arm(dirs: &Dirs) -> Result<(), Failure> {
    let (said, warnings) = match guard::arm(dirs)? {
        Armed::Now(warnings) => ("armed\n", warnings),
        Armed::Already(warnings) => ("armed already\n", warnings),
        Armed::NotNeeded(warnings) => ("no bridge has an egress to guard\n", warnings),
        Armed::ByAgent => ("the running agent keeps the guard\n", Vec::new()),
    };
    ask::warn(&warnings);
    print(said)
}

fn status(dirs: &Dirs, json: bool) -> Result<(), Failure> {
    let status = guard::status(dirs)?;
    if json {
        print_json(&status)?;
    } else {
        print(&render(&status, page::coloured()))?;
    }
    verdict(&status)
}

fn verdict(status: &api::GuardStatus) -> Result<(), Failure> {
    let open = status.bridges.iter().filter(|bridge| bridge.guard != api::Guard::Armed);
    let open: Vec<_> = open.map(|bridge| format!("{} is {}", bridge.name, word(bridge.guard))).collect();
    if open.is_empty() {
        return Ok(());
    }
    Err(Failure::new(1, format!("guard status: {}", open.join(", "))).try_this("meshd guard arm, or meshd reload"))
}

fn word(guard: api::Guard) -> &'static str {
    match guard {
        api::Guard::Armed => "armed",
        api::Guard::Off => "off",
        api::Guard::Altered => "altered",
    }
}

fn render(status: &api::GuardStatus, colour: bool) -> String {
    if status.bridges.is_empty() {
        return "no bridge has an egress to guard\n".to_owned();
    }
    let column = |title, widest| Column { title, widest, right: false };
    let mut table = Table::new(&[column("BRIDGE", 15), column("EGRESS", 17), column("GUARD", usize::MAX)]);
    for bridge in &status.bridges {
        let shade = if bridge.guard == api::Guard::Armed { Colour::Green } else { Colour::Red };
        let guard = Cell::coloured(word(bridge.guard), shade);
        table.row(vec![Cell::new(&bridge.name), Cell::new(&bridge.egress), guard]);
    }
    table.render(colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_egress_bridge_has_a_line_and_one_that_is_open_is_a_failure() {
        let bridge = |name: &str, guard| api::GuardedBridge { name: name.to_owned(), egress: "vps".to_owned(), guard };
        let mut status = api::GuardStatus { interface: "mesh0".to_owned(), bridges: vec![] };
        assert_eq!(render(&status, false), "no bridge has an egress to guard\n");
        status.bridges = vec![bridge("br0", api::Guard::Armed)];
        assert!(verdict(&status).is_ok());
        status.bridges.extend([bridge("br1", api::Guard::Off), bridge("br2", api::Guard::Altered)]);
        assert_eq!(
            render(&status, false),
            "BRIDGE  EGRESS  GUARD\nbr0     vps     armed\nbr1     vps     off\nbr2     vps     altered\n"
        );
        let failure = verdict(&status).unwrap_err();
        assert_eq!((failure.code, failure.errors[0].as_str()), (1, "guard status: br1 is off, br2 is altered"));
    }
}
