//! The supervisor.

use crate::cli::{Dirs, Failure};

/// How `meshd up` was asked to run.
#[derive(Debug, Clone, Copy)]
pub struct UpOptions {
    /// Return once traffic can flow and run on in the background.
    pub detach: bool,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run(_dirs: &Dirs, _options: UpOptions) -> Result<(), Failure> {
    Err(Failure::new(1, "up: not built"))
}
