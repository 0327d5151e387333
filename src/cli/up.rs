//! `meshd up`.

use super::{Dirs, Failure, init, print};
use crate::{agent, store};

/// Arguments of `meshd up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Runs in the foreground until Ctrl-C or `meshd down`, and tells systemd when it
is ready. On a host without a configuration it writes one first, as
`meshd init` does, and says what to do next. MESHD_LOG=debug makes it say more
while it runs.

Examples:
  meshd up             in the foreground, for systemd or to watch it
  meshd up --detach    return once traffic can flow
  meshd --dir ./b --run-dir ./b/run --state-dir ./b/state up   a second agent")]
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
    if let Some(said) = first(dirs)? {
        print(&said)?;
    }
    agent::run(dirs, agent::UpOptions { detach: args.detach, ready_on_stdout: args.ready_on_stdout })
}

/// Makes a configuration where there is none; the text says what to do next.
fn first(dirs: &Dirs) -> Result<Option<String>, Failure> {
    if store::is_configured(&dirs.config) {
        return Ok(None);
    }
    init::first(init::Args::default(), dirs).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_configuration_gets_one_that_is_then_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let dirs = Dirs { config: path("etc"), run: path("run"), state: path("state") };
        let said = first(&dirs).unwrap().unwrap();
        let key = store::load(&dirs.config).unwrap().private_key.public_key();
        assert!(said.contains(&key.to_string()) && said.contains("meshd peer add "), "{said}");
        assert_eq!(first(&dirs).unwrap(), None);
        assert_eq!(store::load(&dirs.config).unwrap().private_key.public_key(), key);
    }
}
