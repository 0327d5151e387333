//! The supervisor.

use crate::cli::{Dirs, Failure};
use crate::control::api;

/// What `meshd up` would change on this host.
pub fn plan_offline(dirs: &Dirs) -> Result<api::Plan, Failure> {
    Err(unavailable(dirs))
}

/// Removes what a killed agent left. False when there was nothing.
pub fn down_offline(dirs: &Dirs, _keep_guard: bool) -> Result<bool, Failure> {
    Err(unavailable(dirs))
}

fn unavailable(dirs: &Dirs) -> Failure {
    Failure { code: 1, errors: vec![format!("{}: not without an agent yet", dirs.config.display())], remedy: None }
}
