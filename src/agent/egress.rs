//! By which exit each network leaves, and which of several takes over.
//!
//! `egress = ["vps1", "vps2"]` means: through the first that is well. An exit is well while it is heard of, that is, while
//! authenticated packets come from it. A link without traffic says nothing either way, so a peer that is one of several exits
//! is asked for a sign of life each second once it has been silent for two.
//!
//! ```text
//!                          silent for 10 s, and another one that is heard of now
//!   an exit of the list  ────────────────────────────────────────────────────────▶  the first such
//!                          an earlier one has been well for 30 s
//!   an exit of the list  ────────────────────────────────────────────────────────▶  the earlier one
//! ```
//!
//! - **Ten seconds** are eight questions without an answer: on a path that loses a fifth each way, three of ten thousand
//!   silences would be a false alarm. Other WireGuard programs answer no agent, but whatever they are sent with a keepalive
//!   after ten seconds, or a handshake, which begins after fifteen and is repeated every five. They have thirty.
//! - **Thirty seconds** of health before it goes back, so that a line that comes and goes interrupts nobody each time.
//! - **Who takes over** was heard of within the last five seconds. When all fall silent at once it is this host that is
//!   cut off, and no change would help. Then, and whenever none is well, all stays as it is: nothing leaves directly.
//!
//! Sessions, routes and the guard do not change with the exit, only the tunnel's table of egress.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::running::Running;
use crate::channel::{Kind, Message};
use crate::config::{self, Config};
use crate::control::api;
use crate::key::PublicKey;
use crate::tunnel::{Egress, Local, PeerSnapshot};

/// Between two looks at the exits.
const LOOK: Duration = Duration::from_secs(1);
/// After so long without a packet an exit is asked for one.
const QUIET: Duration = Duration::from_secs(2);
/// Who takes over has been heard of within this time.
const LIVELY: Duration = Duration::from_secs(5);
/// After so long an exit counts as gone: one with an agent, which answers, and any other.
const SILENT: Duration = Duration::from_secs(10);
const SILENT_STRANGER: Duration = Duration::from_secs(30);
/// So often a peer is asked whether it has an agent.
const ASK: u8 = 3;
/// For so long an earlier exit is well before it is used again.
const STEADY: Duration = Duration::from_secs(30);

/// Which of several exits is used.
pub(super) struct Exits {
    config: Arc<Config>,
    /// By the names of the list.
    chosen: HashMap<Vec<String>, Chosen>,
    /// Every peer in one of those lists.
    watched: HashMap<PublicKey, Watched>,
}

struct Chosen {
    /// Its place in the list.
    active: usize,
    since: SystemTime,
    reason: Option<String>,
}

struct Watched {
    /// When it was heard of, or the watch began.
    heard: Instant,
    /// Whether it has been heard of at all.
    ever: bool,
    agent: bool,
    /// How often it was asked whether it is one.
    asked: u8,
    well_since: Option<Instant>,
}

/// What `status` says of one egress.
pub(super) struct Status {
    pub(super) active: String,
    pub(super) exits: Vec<api::ExitStatus>,
    pub(super) since: Option<u64>,
    pub(super) reason: Option<String>,
}

impl Watched {
    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard)
    }

    fn is_well(&self, now: Instant) -> bool {
        self.silence(now) < if self.agent || !self.ever { SILENT } else { SILENT_STRANGER }
    }
}

impl Exits {
    /// Nothing is known of any yet, so the first of each list is used.
    pub(super) fn new(config: Arc<Config>, now: Instant) -> Self {
        let (chosen, watched) = (HashMap::new(), HashMap::new());
        let mut exits = Self { config: Arc::clone(&config), chosen, watched };
        exits.follow(config, now);
        exits
    }

    /// Takes over another configuration. Lists that stand in it as before keep their exit.
    pub(super) fn follow(&mut self, config: Arc<Config>, now: Instant) {
        let host = &config.host;
        let egresses =
            host.bridges.iter().map(|bridge| &bridge.egress).chain(host.exit.as_ref().map(|exit| &exit.egress));
        let lists: Vec<_> = egresses.map(config::Egress::exits).filter(|exits| exits.len() > 1).collect();
        self.chosen.retain(|list, _| lists.contains(&list.as_slice()));
        for list in &lists {
            let first = || Chosen { active: 0, since: SystemTime::now(), reason: None };
            self.chosen.entry(list.to_vec()).or_insert_with(first);
        }
        let keys: Vec<_> =
            lists.iter().copied().flatten().filter_map(|name| Some(config.peer(name)?.public_key)).collect();
        self.watched.retain(|key, _| keys.contains(key));
        for key in keys {
            let unheard = Watched { heard: now, ever: false, agent: false, asked: 0, well_since: None };
            self.watched.entry(key).or_insert(unheard);
        }
        self.config = config;
    }

    /// What the tunnel is to know. What is of no bridge, such as the host itself, its LANs or another peer, reaches through
    /// the first bridge's exit whom this host does not know and that exit does, a phone for instance.
    pub(super) fn local(&self) -> Local {
        let host = &self.config.host;
        let mut egress = Vec::new();
        if let Some(first) = host.bridges.iter().find(|bridge| !bridge.egress.exits().is_empty()) {
            let exits = self.in_order(&first.egress);
            egress.extend(config::EVERYTHING.map(|source| Egress { source, exits: exits.clone() }));
        }
        for bridge in &host.bridges {
            let exits = self.in_order(&bridge.egress);
            egress.extend(bridge.subnets.iter().map(|&source| Egress { source, exits: exits.clone() }));
        }
        if let Some(exit) = &host.exit {
            let exits = self.in_order(&exit.egress);
            let networks = self.config.chained().flat_map(config::Peer::networks);
            egress.extend(networks.map(|source| Egress { source, exits: exits.clone() }));
        }
        let bridges = host.bridges.iter().flat_map(|bridge| bridge.subnets.clone()).collect();
        Local { egress, bridges, addresses: host.addresses.iter().map(ipnet::IpNet::addr).collect() }
    }

    /// The keys of the exits, the active one first.
    fn in_order(&self, egress: &config::Egress) -> Vec<PublicKey> {
        let names = egress.exits();
        let active = self.active(names);
        let order = std::iter::once(active).chain((0..names.len()).filter(|&index| index != active));
        order.filter_map(|index| Some(self.config.peer(names.get(index)?)?.public_key)).collect()
    }

    fn active(&self, names: &[String]) -> usize {
        self.chosen.get(names).map_or(0, |chosen| chosen.active)
    }

    pub(super) fn status(&self, egress: &config::Egress, now: Instant) -> Status {
        let names = egress.exits();
        let Some(chosen) = self.chosen.get(names) else {
            return Status { active: egress.to_string(), exits: Vec::new(), since: None, reason: None };
        };
        let watched = |name: &str| self.watched.get(&self.config.peer(name)?.public_key);
        let exit = |name: &String| {
            let well = watched(name).is_some_and(|watched| watched.ever && watched.is_well(now));
            api::ExitStatus { name: name.clone(), well }
        };
        Status {
            active: names[chosen.active].clone(),
            exits: names.iter().map(exit).collect(),
            since: chosen.since.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs()),
            reason: chosen.reason.clone(),
        }
    }

    /// Takes in what is known of the peers; who is to be asked for a sign of life comes back.
    fn look(&mut self, peers: &[PeerSnapshot], now: Instant) -> Vec<PublicKey> {
        for peer in peers {
            let Some(watched) = self.watched.get_mut(&peer.settings.public_key) else { continue };
            if let Some(heard) = peer.heard {
                // A peer that was made anew was heard of before.
                watched.heard = heard.max(watched.heard);
                watched.ever = true;
            }
            watched.agent = peer.agent;
        }
        for watched in self.watched.values_mut() {
            let well = watched.ever && watched.is_well(now);
            watched.well_since = well.then(|| watched.well_since.unwrap_or(now));
        }
        let mut quiet = Vec::new();
        for (key, watched) in &mut self.watched {
            // How long its silence may be depends on whether it has an agent, so that is asked at once.
            let unknown = !watched.agent && watched.asked < ASK;
            if watched.silence(now) >= QUIET || !watched.ever || unknown {
                watched.asked += u8::from(unknown && watched.ever);
                quiet.push(*key);
            }
        }
        quiet
    }

    /// Chooses anew where there is a reason; what changed, one line each.
    fn choose(&mut self, now: Instant) -> Vec<String> {
        let (config, watched) = (&self.config, &self.watched);
        let mut changes = Vec::new();
        for (names, chosen) in &mut self.chosen {
            let of = |index: usize| watched.get(&config.peer(&names[index])?.public_key);
            let is_well = |index: &usize| of(*index).is_some_and(|exit| exit.is_well(now));
            let lively = |index: &usize| of(*index).is_some_and(|exit| exit.ever && exit.silence(now) < LIVELY);
            let steady =
                |index: &usize| of(*index).and_then(|exit| exit.well_since).is_some_and(|since| now - since >= STEADY);
            let old = chosen.active;
            let (new, reason) = if is_well(&old) {
                let earlier = (0..old).find(steady);
                (earlier, format!("{} has been well for {} s", names[earlier.unwrap_or(old)], STEADY.as_secs()))
            } else {
                let silence = of(old).map_or(Duration::ZERO, |exit| exit.silence(now));
                ((0..names.len()).find(lively), format!("{} was silent for {} s", names[old], silence.as_secs()))
            };
            if let Some(new) = new {
                changes.push(format!("{} instead of {}: {reason}", names[new], names[old]));
                *chosen = Chosen { active: new, since: SystemTime::now(), reason: Some(reason) };
            }
        }
        changes
    }
}

impl Running {
    pub(super) fn exits(&self) -> MutexGuard<'_, Exits> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the exits of which there are several, until it is dropped.
    pub(super) async fn watch_exits(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.look_at_exits();
        }
    }

    fn look_at_exits(&self) {
        let mut exits = self.exits();
        if exits.watched.is_empty() {
            return;
        }
        let now = Instant::now();
        let quiet = exits.look(&self.device.peers(now), now);
        let changes = exits.choose(now);
        if !changes.is_empty() {
            self.device.set_egress(&exits.local().egress, now);
        }
        drop(exits);
        for change in changes {
            tracing::warn!("egress through {change}");
        }
        for peer in quiet {
            let message = Message { kind: Kind::Hello, answer: false, id: self.mail.id(), body: &[] };
            self.send(|outbox, now| self.device.knock(&peer, &message, outbox, now));
        }
    }
}

#[cfg(test)]
mod tests;
