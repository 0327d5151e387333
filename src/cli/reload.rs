//! `meshd reload`.

use super::{Dirs, Failure};

/// Arguments of `meshd reload`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  meshd reload")]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args, _dirs: &Dirs) -> Result<(), Failure> {
    Err(Failure::new(3, "agent: not running").try_this("meshd up"))
}
