//! `meshd up`.

use super::{Dirs, Failure, init, print};
use crate::{agent, store};

/// Arguments of `meshd up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Runs in the foreground until Ctrl-C or `meshd down`, and tells systemd when it is
ready. On a host without a configuration it writes one first, as `meshd init`
does, and says what to do next.

Examples:
  meshd up               in the foreground, for systemd or to watch it
  meshd up --detach      return once traffic can flow
  meshd --dir ./a --run-dir ./a/run --state-dir ./a/state up    a second agent")]
pub struct Args {
    /// Return once traffic can flow, and run on in the background
    #[arg(short, long)]
    detach: bool,
    /// Set for the process that --detach starts
    #[arg(long, hide = true)]
    ready_on_stdout: bool,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    if !store::is_configured(&dirs.config) {
        print(&init::first(init::Args::default(), dirs)?)?;
    }
    agent::run(dirs, agent::UpOptions { detach: args.detach, ready_on_stdout: args.ready_on_stdout })
}
