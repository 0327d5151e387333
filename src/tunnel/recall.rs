//! Peers that had a session with the process before this one.
//!
//! They do not know that it is gone: they go on sealing for it, and notice by silence alone, after 15 s
//! (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT of the whitepaper, section 6). So this side calls them, where they were heard last and
//! where their settings say. Where an answer comes from is where they are.
//!
//! A lost initiation must not cost REKEY_TIMEOUT, so there are three in a row. Then a peer that sleeps, a phone for instance,
//! is left alone: boringtun would go on for 90 s. Unless something waits for it, or it has a persistent keepalive.

use std::time::{Duration, Instant};

use super::Device;
use super::batch::{Outbox, Path};
use super::peer::{Sent, Session};
use crate::key::PublicKey;

/// When initiations are sent, counted from the start.
const CALLS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_millis(1500)];

/// The calls to one peer.
#[derive(Clone, Copy)]
pub(super) struct Recall {
    /// Where it was heard last.
    path: Path,
    began: Instant,
    /// How many there were.
    calls: usize,
    /// The control side has a message for it.
    pub(super) wanted: bool,
}

impl Device {
    /// Takes over what the process before this one knew of a peer: it was heard from `path`. That is where it is until it
    /// is heard again, if its settings do not say where. With `call`, as when there may still be a session on its side, the
    /// next ticks ask it for one. Nothing for a peer with a relay, which waits for [`Device::call`], and for one with a session.
    pub fn recall(&self, key: &PublicKey, path: Path, call: bool, now: Instant) {
        if let Some(peer) = self.table.load().peers.get(key) {
            peer.lock().take_up(path, call, now);
        }
    }
}

impl Session {
    fn take_up(&mut self, path: Path, call: bool, now: Instant) {
        if self.settings.via.is_some() || self.has_session() {
            return;
        }
        if self.endpoint().is_none() {
            self.move_to(path);
        }
        self.recall = call.then_some(Recall { path, began: now, calls: 0, wanted: false });
    }

    /// Calls the peer where a call is due. `timers` is what boringtun's timers have to send, and what is left of that
    /// comes back.
    #[cold]
    pub(super) fn call_again(&mut self, timers: Option<Sent>, out: &mut Outbox, now: Instant) -> Option<Sent> {
        let Some(mut recall) = self.recall else { return timers };
        if self.has_session() || self.tunn.is_expired() || self.is_stale() {
            self.recall = None;
            return timers;
        }
        let waited_for = recall.wanted || self.queued > 0 || self.settings.persistent_keepalive.is_some();
        match CALLS.get(recall.calls) {
            Some(after) if now < recall.began + *after => timers,
            None if !waited_for => {
                self.initiating_since = None;
                None
            }
            call => {
                recall.calls += 1;
                // The last one is boringtun's to repeat.
                self.recall = call.map(|_| recall);
                let written = self.path().filter(|path| path.remote != recall.path.remote);
                let paths: Vec<Path> = std::iter::once(recall.path).chain(written).collect();
                self.call(&paths, out, now);
                None
            }
        }
    }
}
