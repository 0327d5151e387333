//! The guard without an agent: for the time before the network is there, and for when the agent does not start.

use std::path::Path;

use super::{failure, refuse_foreign_interface, require_privilege, runtime, take_run_dir};
use crate::config::Config;
use crate::control::{LockError, api};
use crate::failure::Failure;
use crate::host::{GuardState, Reconciler};
use crate::plan;
use crate::store::{self, Dirs};

/// What `arm` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Armed {
    /// It armed the guard. What is worth a warning.
    Now(Vec<String>),
    /// It stood as configured.
    Already(Vec<String>),
    /// No bridge needs one, and none stands.
    NotNeeded(Vec<String>),
    /// An agent runs, and keeps it.
    ByAgent,
}

/// Arms the guard as configured. When the configuration cannot be read, the one that was kept of the last good
/// configuration is armed, and that is a failure all the same: it may not know of a bridge that the files name now.
///
/// # Errors
/// When the configuration is refused, or the guard does not stand, or its journal is damaged.
pub fn arm(dirs: &Dirs) -> Result<Armed, Failure> {
    require_privilege("guard arm")?;
    let _lock = match take_run_dir(&dirs.run) {
        Err(LockError::AlreadyRunning { .. }) => return by_agent(dirs),
        // Without the run directory no agent runs either, and the guard is worth more than order among commands.
        other => other.ok(),
    };
    runtime()?.block_on(async {
        match store::load(&dirs.config) {
            Ok(config) => arm_configured(&dirs.state, &config).await,
            Err(error) => Err(arm_kept(&dirs.state, error.into()).await),
        }
    })
}

async fn arm_configured(state_dir: &Path, config: &Config) -> Result<Armed, Failure> {
    let failed = |error| failure("guard arm", &error);
    let mut reconciler = Reconciler::new(state_dir, &config.host.interface).map_err(failed)?;
    let new = match reconciler.arm_guard(config).await {
        Ok(new) => new,
        Err(error) => {
            let mut failure = failed(error);
            if reconciler.guard_stands().await.unwrap_or_default() {
                failure.errors.push("guard arm: the guard is armed all the same".into());
            }
            return Err(failure);
        }
    };
    let kept = reconciler.keep_guard(config).map_err(|error| error.to_string());
    let warnings = kept.err().into_iter().collect();
    if plan::nft::guard(config).is_none() {
        // One of an earlier configuration would close bridges that are to be open now.
        reconciler.disarm_guard().await.map_err(failed)?;
        return Ok(Armed::NotNeeded(warnings));
    }
    Ok(if new { Armed::Now(warnings) } else { Armed::Already(warnings) })
}

/// The failure to read the configuration, with what became of the guard.
async fn arm_kept(state_dir: &Path, mut failure: Failure) -> Failure {
    let path = Reconciler::kept_guard_path(state_dir);
    let (armed, said) = match Reconciler::kept_guard(state_dir) {
        Ok(Some(kept)) => {
            let armed = match Reconciler::new(state_dir, &kept.interface) {
                Ok(mut reconciler) => reconciler.arm_kept_guard(kept).await,
                Err(error) => Err(error),
            };
            match armed {
                Ok(_) => (true, format!("armed as last configured, from {}", path.display())),
                Err(error) => (false, format!("as last configured: {error}")),
            }
        }
        Ok(None) => (false, format!("not armed: {} holds none of an earlier configuration", state_dir.display())),
        Err(error) => (false, format!("not armed: {error}")),
    };
    failure.errors.push(format!("guard arm: {said}"));
    if !armed {
        failure.code = 1;
    }
    failure.remedy = failure.remedy.or_else(|| Some("correct the files, then: meshd guard arm".into()));
    failure
}

fn by_agent(dirs: &Dirs) -> Result<Armed, Failure> {
    let interface = interface(dirs);
    let failed = |error| failure("guard arm", &error);
    let stands = runtime()?.block_on(async {
        let mut reconciler = Reconciler::new(&dirs.state, &interface).map_err(failed)?;
        reconciler.guard_stands().await.map_err(failed)
    })?;
    // No need of one, or the agent arms it in this moment.
    if stands || store::load(&dirs.config).is_ok_and(|config| crate::plan::nft::guard(&config).is_none()) {
        return Ok(Armed::ByAgent);
    }
    Err(Failure::new(1, "guard arm: the agent runs, but no guard stands").try_this("meshd status"))
}

/// Removes the guard. False when none stood.
///
/// # Errors
/// When an agent runs, or the guard cannot be removed.
pub fn disarm(dirs: &Dirs) -> Result<bool, Failure> {
    require_privilege("guard disarm")?;
    let _lock = take_run_dir(&dirs.run).map_err(|error| match error {
        LockError::AlreadyRunning { .. } => Failure::new(1, "guard disarm: an agent runs, and would arm it again")
            .try_this("meshd down; or egress = \"direct\" in meshd.toml, then meshd reload"),
        LockError::Io { .. } => Failure::new(1, format!("guard disarm: {error}")),
    })?;
    let interface = interface(dirs);
    refuse_foreign_interface("guard disarm", &interface)?;
    let failed = |error| failure("guard disarm", &error);
    runtime()?.block_on(async {
        Reconciler::new(&dirs.state, &interface).map_err(failed)?.disarm_guard().await.map_err(failed)
    })
}

/// The guard of each egress bridge, by the kernel and not by the agent.
///
/// # Errors
/// When the configuration is refused or the kernel cannot be asked.
pub fn status(dirs: &Dirs) -> Result<api::GuardStatus, Failure> {
    require_privilege("guard status")?;
    let config = store::load(&dirs.config)?;
    let interface = config.host.interface.clone();
    let failed = |error| failure("guard status", &error);
    runtime()?.block_on(async {
        let mut reconciler = Reconciler::new(&dirs.state, &interface).map_err(failed)?;
        let states = reconciler.guard_states(&config).await.map_err(failed)?;
        let bridge = |(bridge, state): &(&crate::config::Bridge, GuardState)| api::GuardedBridge {
            name: bridge.name.clone(),
            egress: bridge.egress.to_string(),
            guard: match state {
                GuardState::Armed => api::Guard::Armed,
                GuardState::Off => api::Guard::Off,
                GuardState::Altered => api::Guard::Altered,
            },
        };
        Ok(api::GuardStatus { interface, bridges: states.iter().map(bridge).collect() })
    })
}

/// Whose guard it is: what stands on disk knows better than files that may have changed since.
fn interface(dirs: &Dirs) -> String {
    let kept = || Some(Reconciler::kept_guard(&dirs.state).ok()??.interface);
    let configured = || store::load(&dirs.config).map_or_else(|_| "mesh0".into(), |config| config.host.interface);
    Reconciler::owner(&dirs.state).or_else(kept).unwrap_or_else(configured)
}
