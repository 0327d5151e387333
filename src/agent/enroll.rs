//! The inviter's side of joining: answers who redeems an invitation, and sees that each lets in one host or none.
//!
//! The order in which a joiner becomes a peer, so that a crash leaves none or a whole one, and the same joiner's next try
//! ends the same: its key is recorded; its file, and `[exit] peers`, are written; the tunnel takes it; the offer is sent.
//!
//! Whoever changes an invitation holds `list`. Who also changes the configuration folder locks that first: the command line
//! holds that lock while it waits for a reload, which takes `list`.

use std::collections::HashSet;
use std::fs::File;
use std::future::poll_fn;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use zeroize::Zeroizing;

use super::running::Running;
use crate::clock::unix_now;
use crate::control::api;
use crate::enroll::exchange::{Answer, Redeem, Refusal};
use crate::enroll::fingerprint;
use crate::enroll::invitation::{Invitation, Redeemed, State};
use crate::key::{PresharedKey, PublicKey};
use crate::store::{self, invitations};
use crate::tunnel::GuestLetter;

/// How often a joiner is looked for that was let in.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked whether an invitation's time is over.
const TEND: Duration = Duration::from_secs(5);
/// Of invitations that ended, so that joiners are told why.
const MAX_ENDED: usize = 100;

/// All that this host has handed out.
pub(super) struct Invitations {
    state_dir: PathBuf,
    list: AsyncMutex<Vec<Invitation>>,
    changed: Notify,
}

impl Invitations {
    pub(super) fn new(state_dir: PathBuf) -> Self {
        Self { state_dir, list: AsyncMutex::default(), changed: Notify::new() }
    }

    /// Keeps what a change has made of an invitation, on disk when this returns.
    fn save(&self, invitation: &Invitation) -> Result<(), store::Error> {
        invitations::save(&self.state_dir, invitation).inspect_err(|error| tracing::error!("{error}"))
    }
}

impl Running {
    /// Answers guests, until it is dropped.
    pub(super) async fn serve_guests(&self) {
        loop {
            let letter = poll_fn(|context| self.device.guests.poll_letter(context)).await;
            let Some(answer) = self.redeemed(&letter).await else { continue };
            let body = Zeroizing::new(answer.write());
            self.send(|outbox, now| self.device.answer_guest(&letter.from, letter.id, &body, outbox, now));
        }
    }

    /// Follows invitations that are made, confirmed and over, until it is dropped.
    pub(super) async fn tend_invitations(&self) {
        self.follow_invitations().await;
        self.complete_joins().await;
        loop {
            let bound = self.invitations.list.lock().await.iter().any(|one| matches!(one.state, State::Bound { .. }));
            let _ = tokio::time::timeout(if bound { LOOK } else { TEND }, self.invitations.changed.notified()).await;
            self.confirm_joins().await;
            self.end_invitations().await;
        }
    }

    /// Reads the records again, as the command line may have made one.
    pub(super) async fn follow_invitations(&self) {
        let mut list = self.invitations.list.lock().await;
        match invitations::load(&self.invitations.state_dir) {
            Ok(found) => *list = found,
            Err(error) => tracing::error!("{error}"),
        }
        self.invite(&list);
        self.invitations.changed.notify_one();
    }

    /// Has the tunnel know whose throwaway keys may knock.
    fn invite(&self, list: &[Invitation]) {
        self.device.invite(list.iter().map(|one| (one.key, one.preshared_key().clone())));
    }

    /// The answer to a guest; none when it is to ask again.
    async fn redeemed(&self, letter: &GuestLetter) -> Option<Answer> {
        let Some(redeem) = Redeem::parse(&letter.body) else {
            let why = format!("what it was asked is not for meshd {}", env!("CARGO_PKG_VERSION"));
            return Some(Answer::Refused(Refusal::Failed(why)));
        };
        if let Some(answer) = self.redeemed_from_memory(letter, &redeem).await {
            return Some(answer);
        }
        let folder = self.lock_folder().await.ok()?;
        let mut list = self.invitations.list.lock().await;
        let invitation = list.iter_mut().find(|one| one.key == letter.from.key)?;
        // It may have been revoked meanwhile.
        let result = match invitation.redeem(&redeem.key, unix_now()) {
            // Its peer was removed.
            Redeemed::Bound if matches!(invitation.state, State::Used { .. }) => Err(Refusal::Revoked),
            Redeemed::Bind | Redeemed::Bound => self.let_in(&folder, invitation, redeem.key).await,
            other => return self.answer_by(other, invitation, &redeem),
        };
        self.invitations.changed.notify_one();
        match result {
            Ok(()) => self.answer_by(Redeemed::Bound, invitation, &redeem),
            Err(refusal) => Some(Answer::Refused(refusal)),
        }
    }

    /// The answer where nothing in the configuration is to change for it.
    async fn redeemed_from_memory(&self, letter: &GuestLetter, redeem: &Redeem) -> Option<Answer> {
        let mut list = self.invitations.list.lock().await;
        if let Some(why) = self.unsuitable(&list, letter, &redeem.key) {
            return Some(Answer::Refused(Refusal::Key(why)));
        }
        let invitation = list.iter_mut().find(|one| one.key == letter.from.key)?;
        let before = invitation.state.clone();
        let redeemed = invitation.redeem(&redeem.key, unix_now());
        if redeemed == (Redeemed::Waiting { new: true }) {
            if self.invitations.save(invitation).is_err() {
                invitation.state = before;
                return Some(Answer::Refused(Refusal::Failed("its disk".into())));
            }
            let fingerprint = fingerprint(&self.device.public_key(), &redeem.key);
            tracing::warn!(peer = invitation.name, fingerprint, "waits to be let in: meshd peer approve");
        }
        self.answer_by(redeemed, invitation, redeem)
    }

    /// The answer, where it is clear; of an offer the part that was asked for.
    fn answer_by(&self, redeemed: Redeemed, invitation: &Invitation, redeem: &Redeem) -> Option<Answer> {
        match redeemed {
            Redeemed::Refused(refusal) => Some(Answer::Refused(refusal)),
            Redeemed::Waiting { .. } => Some(Answer::Waiting),
            Redeemed::Bind => None,
            Redeemed::Bound => {
                let none = || Answer::Refused(Refusal::Failed("there is no such part of its offer".into()));
                Some(Answer::part(&invitation.offer(&self.config())?, redeem.part).unwrap_or_else(none))
            }
        }
    }

    /// Why this key cannot be a new peer's.
    fn unsuitable(&self, list: &[Invitation], letter: &GuestLetter, key: &PublicKey) -> Option<String> {
        let name = list.iter().find(|one| one.key == letter.from.key).map(|one| one.name.as_str());
        let config = self.config();
        let other = config.peers.iter().find(|peer| peer.public_key == *key && Some(peer.name.as_str()) != name);
        match () {
            () if *key == self.device.public_key() => Some("it is the inviter's own".into()),
            () if other.is_some() => other.map(|peer| format!("the inviter knows it as {} already", peer.name)),
            () if list.iter().any(|one| one.key == *key) => Some("it is that of an invitation".into()),
            () => None,
        }
    }

    /// Makes the joiner a peer of this host, on disk and in the tunnel; once more does no harm.
    async fn let_in(&self, _folder: &Flock<File>, invitation: &mut Invitation, key: PublicKey) -> Result<(), Refusal> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            tracing::error!("{} could not be let in: {what}{error}", invitation.name);
            Refusal::Failed(format!("{what}{error}"))
        };
        let preshared_key = PresharedKey::generate().map_err(|error| failed("random numbers: ", &error))?;
        let mut edit = store::Edit::new(&self.config_dir).map_err(|error| failed("", &error))?;
        edit.config().map_err(|error| failed("its configuration is wrong: ", &error))?;
        let text =
            invitations::let_in(&mut edit, invitation, key, preshared_key).map_err(|error| failed("", &error))?;
        let text = Zeroizing::new(text);
        let before = invitation.clone();
        invitation.bind(key, &text);
        let undone = |invitation: &mut Invitation, what: &str, error: String| {
            *invitation = before.clone();
            // Should that fail too, the same joiner may try again, and nobody else.
            let _ = self.invitations.save(invitation);
            tracing::error!("{} could not be let in: {what}{error}", invitation.name);
            Refusal::Failed(format!("{what}{error}"))
        };
        self.invitations.save(invitation).map_err(|error| undone(invitation, "", error.to_string()))?;
        let undo = edit.write().map_err(|error| undone(invitation, "", error.to_string()))?;
        if let Err(problem) = self.reload_files().await {
            if let Err(error) = undo.undo() {
                tracing::error!("{error}");
            }
            return Err(undone(invitation, "", problem.errors.join("; ")));
        }
        let fingerprint = fingerprint(&self.device.public_key(), &key);
        tracing::info!(peer = invitation.name, fingerprint, "let in by an invitation");
        Ok(())
    }

    /// After a crash: what was begun for a joiner is brought to its end.
    async fn complete_joins(&self) {
        let half = |list: &[Invitation], config: &_| list.iter().any(|one| invitations::half_done(config, one));
        if !half(&self.invitations.list.lock().await, &self.config()) {
            return;
        }
        let Ok(folder) = self.lock_folder().await else { return };
        let config = self.config();
        for invitation in &mut *self.invitations.list.lock().await {
            if let (true, Some(&key)) = (invitations::half_done(&config, invitation), invitation.joiner()) {
                // It has logged what was wrong.
                let _ = self.let_in(&folder, invitation, key).await;
            }
        }
    }

    /// Notes who was heard under its own key.
    async fn confirm_joins(&self) {
        let mut list = self.invitations.list.lock().await;
        if !list.iter().any(|one| matches!(one.state, State::Bound { .. })) {
            return;
        }
        let peers = self.device.peers(Instant::now());
        let heard: HashSet<PublicKey> =
            peers.iter().filter(|peer| peer.latest_handshake.is_some()).map(|peer| peer.settings.public_key).collect();
        for invitation in &mut *list {
            if invitation.joiner().is_some_and(|key| heard.contains(key)) && invitation.confirm() {
                tracing::info!(peer = invitation.name, "has joined");
                // If it is lost, the joiner's next handshake says so again.
                let _ = self.invitations.save(invitation);
            }
        }
    }

    /// Ends invitations whose time is over, and forgets those that nobody asks for any more.
    async fn end_invitations(&self) {
        let now = unix_now();
        let bound = |one: &Invitation| one.lapsed(now) && matches!(one.state, State::Bound { .. });
        let withdrawn = self.invitations.list.lock().await.iter().any(bound);
        let folder = if withdrawn { self.lock_folder().await.ok() } else { None };
        let mut list = self.invitations.list.lock().await;
        for invitation in &mut *list {
            if !invitation.lapsed(now) || (bound(invitation) && folder.is_none()) {
                continue;
            }
            tracing::info!(peer = invitation.name, "an invitation has expired");
            if let Err(error) = self.end(folder.as_ref(), invitation, false).await {
                tracing::error!("{}, who never came, stays a peer: {error}", invitation.name);
            }
        }
        let ended = list.iter().filter(|one| !one.pending(now)).count();
        let mut surplus = ended.saturating_sub(MAX_ENDED);
        let before = list.len();
        list.sort_by_key(|one| one.expires);
        list.retain(|one| {
            let over = surplus > 0 && !one.pending(now);
            surplus -= usize::from(over);
            !(over || one.forgotten(now)) || invitations::forget(&self.invitations.state_dir, one).is_err()
        });
        if list.len() < before {
            self.invite(&list);
        }
    }

    /// Lets nobody in by this invitation any more, and takes out again who never came.
    async fn end(
        &self,
        folder: Option<&Flock<File>>,
        invitation: &mut Invitation,
        revoked: bool,
    ) -> Result<(), String> {
        if let (Some(folder), State::Bound { .. }) = (folder, &invitation.state) {
            self.withdraw(folder, invitation).await?;
        }
        let before = invitation.clone();
        if invitation.end(revoked)
            && let Err(error) = self.invitations.save(invitation)
        {
            // What the disk still holds, the next start would go by.
            *invitation = before;
            return Err(error.to_string());
        }
        Ok(())
    }

    /// Who has a token that may yet be redeemed.
    pub(super) async fn invited(&self) -> Option<String> {
        let (list, now) = (self.invitations.list.lock().await, unix_now());
        list.iter().find(|one| one.pending(now)).map(|one| one.name.clone())
    }

    async fn withdraw(&self, _folder: &Flock<File>, invitation: &Invitation) -> Result<(), String> {
        let mut edit = store::Edit::new(&self.config_dir).map_err(|error| error.to_string())?;
        if !invitations::withdraw(&mut edit, invitation).map_err(|error| error.to_string())? {
            return Ok(());
        }
        let undo = edit.write().map_err(|error| error.to_string())?;
        if let Err(problem) = self.reload_files().await {
            undo.undo().map_err(|error| error.to_string())?;
            return Err(problem.errors.join("; "));
        }
        tracing::info!(peer = invitation.name, "was never heard of and is no peer any more");
        Ok(())
    }

    /// Does what the operator decides about an invitation.
    pub(super) async fn decide(&self, decision: &api::Decision) -> Result<(), api::Problem> {
        let refuse = |why: &str| api::Problem {
            refused: true,
            errors: vec![format!("invitation {}: {why}", decision.id)],
            remedy: Some("meshd peer invites".into()),
        };
        let folder = self.lock_folder().await.map_err(|why| refuse(&why))?;
        let mut list = self.invitations.list.lock().await;
        let invitation = list.iter_mut().find(|one| one.id == decision.id);
        let invitation = invitation.ok_or_else(|| refuse("there is none"))?;
        match decision.approve {
            None if matches!(invitation.state, State::Used { .. }) => {
                return Err(refuse("was used; remove the peer instead"));
            }
            None => {
                let joiner = invitation.joiner().copied();
                self.end(Some(&folder), invitation, true).await.map_err(|why| refuse(&why))?;
                if self.config().peers.iter().any(|peer| Some(peer.public_key) == joiner) {
                    return Err(refuse("is over, but its peer's file was edited and stays; remove the peer"));
                }
            }
            Some(key) => {
                let waits = matches!(invitation.state, State::Waiting { key: waiting } if waiting == key);
                if !waits || invitation.lapsed(unix_now()) {
                    return Err(refuse("nobody with this fingerprint waits any more"));
                }
                let refused = |refusal: Refusal| refuse(&refusal.to_string());
                self.let_in(&folder, invitation, key).await.map_err(refused)?;
            }
        }
        self.invitations.changed.notify_one();
        Ok(())
    }

    /// What waits for the operator, one line each.
    pub(super) async fn invitation_warnings(&self) -> Vec<String> {
        let own = self.device.public_key();
        let line = |one: &Invitation| match &one.state {
            State::Waiting { key } => {
                let (name, fingerprint) = (&one.name, fingerprint(&own, key));
                Some(format!("{name} ({fingerprint}) waits to be let in: meshd peer approve {name}"))
            }
            _ => None,
        };
        self.invitations.list.lock().await.iter().filter_map(line).collect()
    }
}
