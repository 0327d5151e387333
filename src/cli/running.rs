//! What a command that changed files asks of the running agent.

use super::{Dirs, Failure, ask};
use crate::control::api::Reloaded;
use crate::control::client::{Client, ClientError};

/// Has the running agent read its files again; `None` when none runs.
///
/// # Errors
/// When the agent refuses what it reads, or does not answer.
pub fn reload(dirs: &Dirs) -> Result<Option<Reloaded>, Failure> {
    match Client::connect(&dirs.run).and_then(|mut client| client.reload()) {
        Ok(reloaded) => Ok(Some(reloaded)),
        Err(ClientError::NotRunning) => Ok(None),
        Err(error) => Err(ask::failure("reload", error)),
    }
}

/// A way to have the running agent read its files; `None` when none runs.
pub trait Reload: FnOnce(&Dirs) -> Result<Option<Reloaded>, Failure> {}
impl<F: FnOnce(&Dirs) -> Result<Option<Reloaded>, Failure>> Reload for F {}

/// What the agent did with it, for the last line.
pub fn outcome(reloaded: Option<&Reloaded>) -> String {
    match reloaded {
        None => "the agent is not running; `meshd up` starts it\n".into(),
        Some(reloaded) => {
            let warnings: String = reloaded.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            format!("the running agent has it\n{warnings}")
        }
    }
}
