//! The guard apart from all else: before the agent and its interface, and after them.

use std::path::{Path, PathBuf};

use super::{Error, Reconciler, kept, put};
use crate::config::{Bridge, Config, Egress};
use crate::plan::{self, NftActual, NftTable};
pub use kept::KeptGuard;

/// How the guard holds a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardState {
    /// As configured.
    Armed,
    /// Not at all.
    Off,
    /// Not as configured: somebody changed it, or it is that of another configuration.
    Altered,
}

impl Reconciler {
    /// Arms the nft guard alone. True when it was not armed as configured before. A damaged journal is reported, but the guard
    /// is armed all the same.
    pub async fn arm_guard(&mut self, config: &Config) -> Result<bool, Error> {
        let guarded = config.host.bridges.iter().filter(|bridge| bridge.egress != Egress::Direct);
        self.guarded = guarded.map(|bridge| bridge.name.clone()).collect();
        match plan::nft::guard(&self.with_ports(config)) {
            Some(guard) => self.put_guard(guard).await,
            None => self.store.load().map(|_| false),
        }
    }

    /// As [`arm_guard`](Self::arm_guard), with what was kept of an earlier configuration.
    pub async fn arm_kept_guard(&mut self, kept: KeptGuard) -> Result<bool, Error> {
        self.put_guard(kept.table).await
    }

    async fn put_guard(&mut self, guard: NftTable) -> Result<bool, Error> {
        let journal = self.store.load();
        let known = journal.as_ref().ok().cloned().unwrap_or_default();
        let unguarded = |error| Error::Guard(Box::new(error));
        let actual = self.nft_tables(&known).await.map_err(unguarded)?.guard;
        if actual == NftActual::Intact(guard.fingerprint()) {
            return journal.map(|_| false);
        }
        self.seen = None;
        let fingerprints = put(&self.nft, &guard).await.map_err(unguarded)?;
        let mut journal = journal?;
        journal.nft.insert(guard.name, fingerprints);
        // The guard stands, whatever the disk says; what follows will want to write too, and fail.
        if let Err(error) = self.store.save(&journal) {
            tracing::debug!(%error, "the guard's fingerprint is not on disk");
        }
        Ok(true)
    }

    /// Keeps the configured guard on disk for a boot at which the configuration cannot be read.
    pub fn keep_guard(&mut self, config: &Config) -> Result<(), Error> {
        self.keeper.keep(plan::nft::guard(config).as_ref())
    }

    /// What [`keep_guard`](Self::keep_guard) kept last; `None` when it was no guard, or never called.
    pub fn kept_guard(state_dir: &Path) -> Result<Option<KeptGuard>, Error> {
        kept::read(state_dir)
    }

    /// Where it is kept.
    pub fn kept_guard_path(state_dir: &Path) -> PathBuf {
        kept::path(state_dir)
    }

    /// Removes the guard alone. False when none stood. Only for when no agent runs, which would arm it again.
    pub async fn disarm_guard(&mut self) -> Result<bool, Error> {
        let mut journal = self.store.load()?;
        let name = plan::nft::guard_name(&self.interface);
        let stood = self.nft_tables(&journal).await?.guard != NftActual::Absent;
        if stood {
            self.seen = None;
            self.nft.remove("inet", &name).await?;
        }
        journal.nft.remove(&name);
        let saved = if journal.is_empty() { self.store.remove() } else { self.store.save(&journal) };
        saved.map(|()| stood)
    }

    /// Whether any guard stands, be it of a process that is gone or of another configuration.
    pub async fn guard_stands(&mut self) -> Result<bool, Error> {
        let journal = self.store.peek().unwrap_or_default();
        Ok(self.nft_tables(&journal).await?.guard != NftActual::Absent)
    }

    /// Whether the guard holds this bridge at this moment, as it was last configured.
    pub async fn guard_armed(&mut self, bridge: &str) -> bool {
        let journal = self.store.peek().unwrap_or_default();
        self.guarded.contains(bridge)
            && self.nft_tables(&journal).await.is_ok_and(|seen| matches!(seen.guard, NftActual::Intact(_)))
    }

    /// How the guard holds each egress bridge of this configuration.
    pub async fn guard_states<'a>(&mut self, config: &'a Config) -> Result<Vec<(&'a Bridge, GuardState)>, Error> {
        let journal = self.store.peek().unwrap_or_default();
        let actual = self.nft_tables(&journal).await?.guard;
        let configured = plan::nft::guard(config).map(|guard| guard.fingerprint());
        let kept = kept::read(&self.state_dir).ok().flatten().map(|kept| kept.table);
        let state = |bridge: &Bridge| match &actual {
            NftActual::Absent => GuardState::Off,
            NftActual::Altered => GuardState::Altered,
            NftActual::Intact(text) if configured.as_ref() == Some(text) => GuardState::Armed,
            NftActual::Intact(text) => {
                let other = kept.as_ref().filter(|kept| kept.fingerprint() == *text);
                let holds = other.is_none_or(|guard| plan::nft::holds(guard, &bridge.name));
                if holds { GuardState::Altered } else { GuardState::Off }
            }
        };
        let guarded = config.host.bridges.iter().filter(|bridge| bridge.egress != Egress::Direct);
        Ok(guarded.map(|bridge| (bridge, state(bridge))).collect())
    }
}
