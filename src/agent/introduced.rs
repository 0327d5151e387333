//! Keeps the files of introduced peers in step with the rosters of their inviters.

use std::sync::Arc;
use std::time::Duration;

use super::running::Running;
use crate::config::Config;
use crate::control::Agent as _;
use crate::mesh::introduce;
use crate::mesh::news::Roster;
use crate::store::news::follow;
use crate::store::{self, Edit, Undo};

/// Between tries to have the folder, while a command changes it.
const LOCKED: Duration = Duration::from_millis(50);
/// After a failure, such as files that somebody is editing.
const AGAIN: Duration = Duration::from_secs(5);

impl Running {
    /// Follows the rosters when they or the configuration have changed, until it is dropped.
    pub(super) async fn follow_news(&self) {
        loop {
            let done = self.follow_rosters().await;
            let failed = done.is_err();
            self.rosters.set_warnings(done.unwrap_or_else(|why| why));
            tokio::select! {
                () = self.rosters.follow.notified() => {}
                () = tokio::time::sleep(AGAIN), if failed => {}
            }
        }
    }

    /// What does not fit comes back; an error is why nothing could be done.
    async fn follow_rosters(&self) -> Result<Vec<String>, Vec<String>> {
        let (config, rosters) = (self.config(), Arc::new(self.rosters.all()));
        if self.rosters.misses_somebody(&config) {
            self.reload().await.map_err(|problem| problem.errors)?;
        }
        if let Some(skipped) = nothing_to_do(&config, &rosters) {
            return Ok(skipped);
        }
        let cannot = |why: Vec<String>| {
            why.into_iter().map(|why| format!("the news of other hosts cannot be followed: {why}")).collect::<Vec<_>>()
        };
        let refused = |error: store::Error| cannot(error.errors());
        // Held throughout, so that no command sees files that the agent is about to take back.
        let _lock = loop {
            match store::try_lock(&self.config_dir).map_err(refused)? {
                Some(lock) => break lock,
                None => tokio::time::sleep(LOCKED).await,
            }
        };
        let dir = self.config_dir.clone();
        let written = tokio::task::spawn_blocking(move || write(&dir, &rosters)).await;
        let (said, undo) = written.map_err(|error| cannot(vec![error.to_string()]))?.map_err(refused)?;
        let Some(undo) = undo else { return Ok(said) };
        if let Err(problem) = self.reload().await {
            // Who was removed stays cut off: see `Rosters::retain`.
            if let Err(error) = undo.undo() {
                tracing::error!(%error, "peers' files cannot be put back");
            }
            return Err(cannot(problem.errors));
        }
        Ok(said)
    }
}

/// Whether the files need no look at all; then what is left out comes back.
fn nothing_to_do(config: &Config, rosters: &[Roster]) -> Option<Vec<String>> {
    let mut skipped = Vec::new();
    for roster in rosters {
        let Some(inviter) = introduce::trusted(config, roster) else { continue };
        let found = introduce::steps(config, roster, inviter);
        if !found.steps.is_empty() {
            return None;
        }
        skipped.extend(found.skipped);
    }
    Some(skipped)
}

fn write(dir: &std::path::Path, rosters: &[Roster]) -> Result<(Vec<String>, Option<Undo>), store::Error> {
    let mut edit = Edit::new(dir)?;
    let before = edit.config()?;
    let said = follow(&mut edit, &rosters.iter().collect::<Vec<_>>())?;
    let undo = (edit.config()? != before).then(|| edit.write()).transpose()?;
    Ok((said, undo))
}
