//! `meshd peer remove`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::super::{Dirs, Failure, print};
use super::{Reload, invites, outcome, trust, unknown};
use crate::config::{self, Files, edit};
use crate::store::{self, Layout};

/// Arguments of `meshd peer remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Takes it out of [exit] too, and revokes its invitation. Refused while
meshd.toml names the peer as an egress or as the place of a published port.

Examples:
  meshd peer remove phone")]
pub struct Args {
    /// The peer's name
    name: String,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let lock = store::lock(&dirs.config)?;
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
    let host = Host::without(&args.name, &mut files, dirs);
    let mut broken = config::parse(&files).err().unwrap_or_default();
    broken.retain(|problem| !before.contains(problem));
    if !broken.is_empty() {
        return Err(Failure {
            code: 4,
            errors: broken.iter().map(ToString::to_string).collect(),
            remedy: Some(format!("take {} out of meshd.toml first", args.name)),
        });
    }

    // In this order: an [exit] of a peer that is gone would be refused after a crash between the two.
    host.write()?;
    let aside = store::set_aside(&Layout(&dirs.config).peer(&args.name)).inspect_err(|_| host.put_back())?;
    match reload(dirs) {
        Ok(reloaded) => {
            aside.delete()?;
            // The agent takes it itself.
            drop(lock);
            invites::revoke_pending(&args.name, dirs)?;
            print(&format!("removed peer {}\n{}", args.name, outcome(reloaded.as_ref())))
        }
        Err(mut failure) => {
            aside.restore()?;
            host.put_back();
            failure.errors.push(format!("peer {}: not removed, as the running agent refused", args.name));
            Err(failure)
        }
    }
}

/// `meshd.toml` as it was and as it is to be.
struct Host {
    path: PathBuf,
    mode: u32,
    old: String,
    /// `None` when it stays.
    new: Option<String>,
}

impl Host {
    /// Without this peer in `[exit]`, in `files` too.
    fn without(name: &str, files: &mut Files, dirs: &Dirs) -> Self {
        let path = Layout(&dirs.config).host();
        let mode = path.metadata().map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777);
        let old = String::from_utf8_lossy(&files.host.text).into_owned();
        // What is no TOML names nobody; the check says so.
        let new = edit::carry_no_more(&old, name).ok().filter(|new| *new != old);
        if let Some(new) = &new {
            files.host.text = new.clone().into();
        }
        Self { path, mode, old, new }
    }

    fn write(&self) -> Result<(), store::Error> {
        self.new.as_ref().map_or(Ok(()), |new| store::replace(&self.path, new, self.mode))
    }

    /// Whatever went wrong first is what is told.
    fn put_back(&self) {
        if self.new.is_some() {
            let _ = store::replace(&self.path, &self.old, self.mode);
        }
    }
}
