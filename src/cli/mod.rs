//! The command line: one file a command; prints, never decides.

#![allow(clippy::needless_pass_by_value, reason = "clap hands each command its arguments for good")]
#![allow(clippy::format_push_string, clippy::format_collect, reason = "what is printed is a few lines")]

mod ask;
mod attach;
mod bench;
mod complete;
mod conf;
mod doctor;
mod down;
mod guard;
mod import;
mod init;
mod join;
mod keys;
mod leaktest;
mod man;
mod page;
mod peer;
mod plan;
mod publish;
mod reload;
mod running;
mod show;
mod status;
mod up;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::printable;
pub use crate::failure::Failure;
use crate::host;
pub use crate::store::Dirs;

/// Joins this host's container bridges with those of other hosts over WireGuard
#[derive(Debug, Parser)]
#[command(name = "meshd", version, max_term_width = 80, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    dirs: Dirs,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 refused; 5 nothing
could be proved (leaktest).

Examples:
  meshd init --bridge br0=10.89.2.0/24    write a first configuration
  meshd up --detach                       run the agent
  meshd peer add vps --public-key KEY --endpoint vps.example.net:51820 \\
      --address 10.88.0.1 --subnet 10.89.1.0/24
  meshd peer add phone --client --qr      a phone with the stock app
  meshd status                            peers, handshakes, traffic";

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a first configuration; overwrite nothing
    Init(init::Args),
    /// Join a mesh by a token of `meshd peer add` on another host
    Join(join::Args),
    /// Turn a setup of wg-quick into one of meshd; show it first
    Import(import::Args),
    /// Run the agent
    Up(up::Args),
    /// Stop the agent and remove all that it programmed
    Down(down::Args),
    /// Apply edited files; unchanged sessions lose no packet
    Reload(reload::Args),
    /// Show peers, handshakes, traffic, egress and guard
    Status(status::Args),
    /// Show what would change on this host; change nothing
    Plan(plan::Args),
    /// Close egress bridges before the agent runs
    Guard(guard::Args),
    /// Find what blocks traffic and say the exact remedy
    Doctor(doctor::Args),
    /// Prove that each egress bridge leaves only through its exit
    Leaktest(leaktest::Args),
    /// Measure throughput and latency to another agent
    Bench(bench::Args),
    /// Add, list, show and remove peers
    Peer(peer::Args),
    /// List, add and remove published ports
    Publish(publish::Args),
    /// Put a running container on a bridge
    Attach(attach::Args),
    /// Take a container off its bridge
    Detach(attach::DetachArgs),
    /// Print a new private key
    Genkey(keys::Genkey),
    /// Print the public key of the private key on standard input
    Pubkey(keys::Pubkey),
    /// Print a new preshared key
    Genpsk(keys::Genpsk),
    /// Print completions for a shell
    Completions(complete::Args),
    /// Print the manual page, or write one for each command
    Man(man::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    host::process::keep_secrets();
    let parsed = Cli::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let outcome = match parsed {
        Ok(cli) => run(cli),
        Err(error) => usage(&error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let dirs = &cli.dirs;
    match cli.command {
        Command::Init(args) => init::run(args, dirs),
        Command::Join(args) => join::run(args, dirs),
        Command::Import(args) => import::run(args, dirs),
        Command::Up(args) => up::run(args, dirs),
        Command::Down(args) => down::run(args, dirs),
        Command::Reload(args) => reload::run(args, dirs),
        Command::Status(args) => status::run(args, dirs),
        Command::Plan(args) => plan::run(args, dirs),
        Command::Guard(args) => guard::run(args, dirs),
        Command::Doctor(args) => doctor::run(args, dirs),
        Command::Leaktest(args) => leaktest::run(args, dirs),
        Command::Bench(args) => bench::run(args, dirs),
        Command::Peer(args) => peer::run(args, dirs),
        Command::Publish(args) => publish::run(args, dirs),
        Command::Attach(args) => attach::run(args, dirs),
        Command::Detach(args) => attach::detach(args, dirs),
        Command::Genkey(args) => keys::genkey(args),
        Command::Pubkey(args) => keys::pubkey(args),
        Command::Genpsk(args) => keys::genpsk(args),
        Command::Completions(args) => complete::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// The whole command, for completions and manual pages.
fn command() -> clap::Command {
    Cli::command()
}

/// Prints to standard output. That the reader has gone (`meshd peer list | head -1`) is not a failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(1, format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value of the stable JSON interface.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(1, format!("json: {error}")))?;
    print(&format!("{text}\n"))
}

fn report(failure: &Failure) {
    let mut text = String::new();
    for error in &failure.errors {
        text.push_str(&format!("meshd: {}\n", printable(error)));
    }
    if let Some(remedy) = &failure.remedy {
        text.push_str(&format!("try: {}\n", printable(remedy)));
    }
    // Nowhere is left to say that standard error is closed.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Help and version are printed; a mistake becomes one line and a remedy, as for every other error.
fn usage(error: &clap::Error) -> Result<(), Failure> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let text = error.render();
        // clap decides by the terminal and NO_COLOR whether to colour it.
        return match error.print() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => print(&text.to_string()),
            _ => Ok(()),
        };
    }
    let mut asked = asked();
    if matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand) {
        let _ = io::stderr().lock().write_all(asked.render_help().to_string().as_bytes());
        return Err(Failure { code: 2, errors: Vec::new(), remedy: None });
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let message = first.strip_prefix("error: ").unwrap_or(first).split_whitespace().collect::<Vec<_>>().join(" ");
    let name = asked.get_bin_name().unwrap_or("meshd").to_owned();
    let suggested = |kind| match error.get(kind)? {
        ContextValue::String(one) => Some(one.clone()),
        ContextValue::Strings(some) => some.first().cloned(),
        _ => None,
    };
    let remedy = match (suggested(ContextKind::SuggestedSubcommand), suggested(ContextKind::SuggestedArg)) {
        (Some(command), _) => format!("{name} {command}"),
        (None, Some(flag)) => format!("{flag}, or {name} --help"),
        (None, None) => format!("{name} --help"),
    };
    Err(Failure::new(2, format!("usage: {message}")).try_this(remedy))
}

/// The command that the arguments of this process lead to.
fn asked() -> clap::Command {
    let mut found = command();
    found.build();
    for word in std::env::args().skip(1) {
        if let Some(sub) = found.find_subcommand(&word) {
            found = sub.clone();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(command: &clap::Command, look: &mut impl FnMut(&clap::Command)) {
        look(command);
        command.get_subcommands().for_each(|sub| each(sub, look));
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn each_command_says_what_it_does_with_examples_that_fit_the_terminal() {
        each(&command(), &mut |command| {
            let (name, help) =
                (command.get_name(), command.get_after_help().map(ToString::to_string).unwrap_or_default());
            assert!(command.get_about().is_some() || name == "meshd", "{name}");
            assert!(help.contains("Examples:\n  "), "{name}");
            assert!(help.lines().all(|line| line.chars().count() <= 78), "{name}: {help}");
        });
    }
}
