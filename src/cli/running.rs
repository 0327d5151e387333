//! What a command that changed files asks of the running agent.

use super::{Dirs, Failure};
use crate::control::api::Reloaded;

/// Has the running agent read its files again; `None` when none runs.
///
/// # Errors
/// When the agent refuses what it reads, or does not answer.
pub fn reload(_dirs: &Dirs) -> Result<Option<Reloaded>, Failure> {
    Ok(None)
}
