//! `meshd peer remove`.

use super::super::{Dirs, Failure, print};
use super::{Reload, outcome, trust, unknown};
use crate::config;
use crate::store::{self, Layout};

/// Arguments of `meshd peer remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Refused while meshd.toml names the peer as an egress, in [exit] or as the
place of a published port.

Examples:
  meshd peer remove phone")]
pub struct Args {
    /// The peer's name
    name: String,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let _lock = store::lock(&dirs.config)?;
    let mut files = store::read(&dirs.config)?;
    if !files.peers.iter().any(|(name, _)| *name == args.name) {
        return Err(unknown(&args.name, files.peers.iter().map(|(name, _)| name.as_str())));
    }
    if let Ok(config) = config::parse(&files) {
        trust::may_be_removed(&config, &args.name)?;
    }
    // Only what the removal itself would break is a reason against it: a folder that is wrong already may need it.
    let before = config::parse(&files).err().unwrap_or_default();
    files.peers.retain(|(name, _)| *name != args.name);
    let mut broken = config::parse(&files).err().unwrap_or_default();
    broken.retain(|problem| !before.contains(problem));
    if !broken.is_empty() {
        return Err(Failure {
            code: 4,
            errors: broken.iter().map(ToString::to_string).collect(),
            remedy: Some(format!("take {} out of meshd.toml first", args.name)),
        });
    }

    let aside = store::set_aside(&Layout(&dirs.config).peer(&args.name))?;
    match reload(dirs) {
        Ok(reloaded) => {
            aside.delete()?;
            print(&format!("removed peer {}\n{}", args.name, outcome(reloaded.as_ref())))
        }
        Err(mut failure) => {
            aside.restore()?;
            failure.errors.push(format!("peer {}: not removed, as the running agent refused", args.name));
            Err(failure)
        }
    }
}
