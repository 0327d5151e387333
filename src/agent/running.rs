//! The agent while it runs: what it holds, and what it is asked over the control socket.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::fcntl::Flock;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

use super::answer::Benches;
use super::attach::Attachments;
use super::descriptors;
use super::direct::Directs;
use super::egress::Exits;
use super::endpoints::{self, Endpoints};
use super::enroll::Invitations;
use super::mail::Mail;
use super::names::Names;
use super::news::Rosters;
use super::path::Paths;
use super::rotate::Rotations;
use super::sessions::Sessions;
use crate::config::{Config, value};
use crate::control::{self, api};
use crate::dataplane::{Dataplane, Offloads};
use crate::express::Ability;
use crate::host::{self, News, Reconciler, Rivals};
use crate::key::{PrivateKey, PublicKey, SigningKey};
use crate::store;
use crate::tunnel::{Device, PeerSnapshot, Settings};

/// For a command that changes the configuration folder, and between two looks whether it has done.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// The parts of a running agent.
pub(super) struct Running {
    pub(super) config_dir: PathBuf,
    pub(super) device: Arc<Device>,
    pub(super) offloads: Offloads,
    /// Held through a whole reload, so that two never mix.
    pub(super) changing: AsyncMutex<Changing>,
    /// Apart from the rest, because a resolver may take its time.
    pub(super) endpoints: AsyncMutex<Endpoints>,
    /// Held while the tunnel is told of them.
    pub(super) exits: Mutex<Exits>,
    /// What needs no waiting for.
    pub(super) shown: Mutex<Shown>,
    /// Taken out when the agent goes down.
    pub(super) dataplane: Mutex<Option<Dataplane>>,
    /// To and from other agents.
    pub(super) mail: Mail,
    /// Measurements that others ask for.
    pub(super) benches: Benches,
    /// Over IPv6, to peers.
    pub(super) paths: Paths,
    /// To peers that are reached through another.
    pub(super) directs: Directs,
    /// Handed out.
    pub(super) invitations: Invitations,
    /// Of keys.
    pub(super) rotations: Rotations,
    /// What inviters say of the mesh.
    pub(super) rosters: Rosters,
    /// For the process after this one.
    pub(super) sessions: Sessions,
    /// Containers on the bridges.
    pub(super) attachments: Attachments,
    /// Of hosts and containers.
    pub(super) names: Names,
    /// Set to end the process.
    pub(super) ending: watch::Sender<bool>,
}

pub(super) struct Changing {
    pub(super) reconciler: Reconciler,
    pub(super) rivals: Rivals,
    /// `down` was asked for: nothing is to be programmed again.
    pub(super) down: bool,
}

pub(super) struct Shown {
    pub(super) config: Arc<Config>,
    pub(super) warnings: Vec<String>,
}

impl Running {
    pub(super) fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.shown().config)
    }

    /// The configuration folder for this agent alone. Never waited for by blocking: a command that has it may be waiting for
    /// this agent.
    pub(super) async fn lock_folder(&self) -> Result<Flock<File>, String> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match store::try_lock(&self.config_dir) {
                Ok(Some(lock)) => return Ok(lock),
                Err(error) => return Err(error.to_string()),
                Ok(None) if Instant::now() >= deadline => return Err("another meshd changes its files".to_owned()),
                Ok(None) => tokio::time::sleep(LOCK_LOOK).await,
            }
        }
    }

    pub(super) fn dataplane(&self) -> MutexGuard<'_, Option<Dataplane>> {
        self.dataplane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a peer is called: by its file, or else by the start of its key.
    pub(super) fn name_of(&self, key: &PublicKey) -> String {
        name_of(&self.config(), key)
    }

    /// Looks up the names of silent peers, until it is dropped. Apart from the kernel's news, for a resolver may take its time.
    pub(super) async fn follow_names(&self) {
        loop {
            tokio::time::sleep(super::TEND).await;
            self.endpoints.lock().await.refresh(&self.config(), &self.device).await;
        }
    }

    /// Puts back what others changed in the kernel; `news` says what is known of who did.
    pub(super) async fn tend(&self, mut news: News) {
        let mut changing = self.changing.lock().await;
        // Only now: a reload that held the lock has put a new configuration in place.
        let config = self.config();
        if changing.down {
            return;
        }
        if self.dataplane().as_ref().is_none_or(Dataplane::broken) {
            match self.rebuild(&changing.reconciler, &config.host).await {
                Ok(()) => tracing::warn!(interface = config.host.interface, "forwarding had ended; begun again"),
                Err(error) => tracing::error!(%error, "forwarding has ended and cannot begin again; will try"),
            }
        }
        let Changing { reconciler, rivals, .. } = &mut *changing;
        let (changes, warnings) = match reconciler.reconcile(&config).await {
            Ok(outcome) => (outcome.changes, outcome.warnings),
            Err(error) => {
                let warnings = vec![error.to_string()];
                let host::Error::Incomplete { applied, .. } = error else { return self.warn(warnings, Vec::new()) };
                (applied, warnings)
            }
        };
        self.names.look();
        news.retain(|actor| !reconciler.started(actor));
        let now = Instant::now();
        for line in rivals.note(&changes, &news, now) {
            tracing::warn!("{line}");
        }
        self.warn(warnings, rivals.warnings(now));
    }

    /// Applies a checked configuration: what can fail first, the tunnel last.
    async fn apply(&self, changing: &mut Changing, new: &Arc<Config>) -> Result<api::Reloaded, api::Problem> {
        let old = self.config();
        refuse_new_interface(&old, new)?;
        let port = control::Agent::listen_port(self);
        self.move_port(&old, new)?;
        changing.reconciler.set_listen_port(control::Agent::listen_port(self));
        changing.reconciler.set_ports(self.attachments.ports(new).await);
        let outcome = match changing.reconciler.reconcile(new).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // Back to what ran before; if that fails too, the first error is the one that tells why.
                let _ = changing.reconciler.reconcile(&old).await;
                let _ = control::Agent::set_listen_port(self, port);
                return Err(problem(&error));
            }
        };
        let mut peers = self.endpoints.lock().await.settings(new).await;
        self.rosters.retain(new, &mut peers);
        self.bid_farewell(new);
        self.device.set_mtu(new.host.mtu);
        self.device.set_copy_dscp(new.host.copy_dscp);
        {
            let (mut exits, now) = (self.exits(), Instant::now());
            exits.follow(Arc::clone(new), now);
            self.device.configure(&new.private_key, &Settings { peers, local: exits.local() }, now);
        }
        if let Some(dataplane) = &*self.dataplane() {
            dataplane.nudge();
        }
        let mut changes = config_changes(&old, new);
        if control::Agent::listen_port(self) != port {
            changes.push(format!("~ listen port: {}", control::Agent::listen_port(self)));
        }
        changes.extend(outcome.changes.iter().map(|change| {
            let sign = if change.action() == "add" { '+' } else { '-' };
            format!("{sign} {}", change.summary())
        }));
        *self.shown() = Shown { config: Arc::clone(new), warnings: outcome.warnings.clone() };
        self.rosters.configured();
        self.names.look();
        Ok(api::Reloaded { changes, warnings: outcome.warnings })
    }

    /// Applies what the configuration folder holds now.
    pub(super) async fn reload_files(&self) -> Result<api::Reloaded, api::Problem> {
        let mut changing = self.changing.lock().await;
        if changing.down {
            return Err(api::Problem { refused: false, errors: vec!["the agent ends".into()], remedy: None });
        }
        let config = Arc::new(store::load(&self.config_dir).map_err(|error| refused(&error))?);
        let reloaded = self.apply(&mut changing, &config).await?;
        for change in &reloaded.changes {
            tracing::info!(change, "reloaded");
        }
        Ok(reloaded)
    }

    /// Follows `listen_port`, also back from what wg(8) set. The kernel chooses a port once, not at every reload.
    fn move_port(&self, old: &Config, new: &Config) -> Result<(), api::Problem> {
        let port = new.host.listen_port;
        if port == 0 && old.host.listen_port == 0 {
            return Ok(());
        }
        control::Agent::set_listen_port(self, port).map_err(|error| api::Problem {
            refused: false,
            errors: vec![format!("UDP port {port}: {error}")],
            remedy: Some("choose a free listen_port".into()),
        })
    }

    fn drops(&self) -> api::Drops {
        let (drops, losses) =
            (&self.device.drops, self.dataplane().as_ref().map(Dataplane::losses).unwrap_or_default());
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        api::Drops {
            unroutable: of(&drops.unroutable),
            unreachable: of(&drops.unreachable),
            unanswered: of(&drops.unanswered),
            malformed: of(&drops.malformed),
            refused: of(&drops.refused),
            spoofed: of(&drops.spoofed),
            congested: of(&drops.congested),
            overloaded: of(&drops.overloaded),
            unsent: losses.unsent,
            unwritten: losses.unwritten,
            socket_overflow: losses.socket_overflow,
            interface_overflow: losses.interface_overflow,
        }
    }

    /// Shows what the last comparison with the kernel said, and logs it when it is news; `logged` was.
    fn warn(&self, mut warnings: Vec<String>, logged: Vec<String>) {
        let mut shown = self.shown();
        for warning in warnings.iter().filter(|warning| !shown.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        warnings.extend(logged);
        shown.warnings = warnings;
    }
}

impl control::Agent for Running {
    async fn status(&self) -> api::Status {
        let config = self.config();
        let mut bridges = Vec::with_capacity(config.host.bridges.len());
        let mut changing = self.changing.lock().await;
        for bridge in &config.host.bridges {
            let egress = self.exits().status(&bridge.egress, Instant::now());
            bridges.push(api::BridgeStatus {
                name: bridge.name.clone(),
                subnets: bridge.subnets.clone(),
                egress: egress.active,
                exits: egress.exits,
                egress_since: egress.since,
                egress_reason: egress.reason,
                guard: if changing.reconciler.guard_armed(&bridge.name).await {
                    api::Guard::Armed
                } else {
                    api::Guard::Off
                },
            });
        }
        drop(changing);
        let mut peers: Vec<_> =
            self.device.peers(Instant::now()).iter().map(|snapshot| peer_status(&config, snapshot)).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let mut warnings = self.shown().warnings.clone();
        warnings.extend(self.path_warnings());
        warnings.extend(self.invitation_warnings().await);
        warnings.extend(self.rotation_warnings());
        warnings.extend(self.news_warnings());
        warnings.extend(self.names.warnings());
        api::Status {
            name: config.host.name.clone(),
            interface: config.host.interface.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            public_key: self.device.public_key(),
            inviter_key: SigningKey::of(&config.private_key).verifying_key().to_string(),
            listen_port: control::Agent::listen_port(self),
            mtu: config.host.mtu,
            addresses: config.host.addresses.clone(),
            peers,
            bridges,
            drops: self.drops(),
            names: self.names.shown(),
            warnings,
        }
    }

    async fn reload(&self) -> Result<api::Reloaded, api::Problem> {
        let reloaded = self.reload_files().await;
        self.follow_invitations().await;
        reloaded
    }

    async fn plan(&self) -> Result<api::Plan, api::Problem> {
        let config = store::load(&self.config_dir).map_err(|error| refused(&error))?;
        let mut changing = self.changing.lock().await;
        let introductions = self.rosters.introductions(&config);
        let planned = changing.reconciler.plan(&config).await.map(planned);
        planned.map(|plan| api::Plan { introductions, ..plan }).map_err(|error| problem(&error))
    }

    async fn down(&self, keep_guard: bool) -> Result<(), api::Problem> {
        let mut changing = self.changing.lock().await;
        changing.down = true;
        // The interface goes first and takes its routes along; what is left of the tables says "unreachable" until
        // the guard, last of all, is taken away.
        let removed = self.remove_interface(&changing.reconciler).await;
        drop(self.dataplane().take());
        descriptors::forget_all();
        self.detach_all().await;
        changing.reconciler.set_ports(Vec::new());
        let result = changing.reconciler.teardown(keep_guard).await;
        self.ending.send_replace(true);
        result.map(drop).and(removed).map_err(|error| problem(&error))
    }

    async fn agents(&self) -> api::Agents {
        self.find_agents().await
    }

    async fn doctor(&self, request: api::DoctorRequest) -> api::Examined {
        self.examine_peers(&request).await
    }

    async fn decide(&self, decision: api::Decision) -> Result<(), api::Problem> {
        Running::decide(self, &decision).await
    }

    async fn rotate(&self, request: api::RotateRequest) -> Result<api::Rotated, api::Problem> {
        self.rotate_keys(&request).await
    }

    async fn bench(&self, request: api::BenchRequest, events: mpsc::Sender<api::BenchEvent>) {
        self.measure(&request, &events).await;
    }

    fn device(&self) -> Arc<Device> {
        Arc::clone(&self.device)
    }

    fn express(&self) -> Ability {
        endpoints::express(&self.config())
    }

    fn listen_port(&self) -> u16 {
        self.dataplane().as_ref().map_or(0, Dataplane::port)
    }

    fn set_listen_port(&self, port: u16) -> std::io::Result<()> {
        match &*self.dataplane() {
            Some(dataplane) if port != dataplane.port() => {
                dataplane.rebind(port)?;
                descriptors::keep_udp(&dataplane.sockets());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set_private_key(&self, key: PrivateKey) {
        self.device.set_private_key(key, Instant::now());
    }
}

/// A plan in the terms of `--json`.
pub(super) fn planned(outcome: host::Outcome) -> api::Plan {
    let changes = outcome
        .changes
        .iter()
        .map(|change| api::PlannedChange {
            action: change.action().into(),
            kind: change.kind().into(),
            command: change.to_string(),
        })
        .collect();
    api::Plan { changes, warnings: outcome.warnings, introductions: Vec::new() }
}

fn refused(error: &store::Error) -> api::Problem {
    api::Problem { refused: error.refused(), errors: error.errors(), remedy: error.remedy() }
}

fn problem(error: &host::Error) -> api::Problem {
    api::Problem { refused: false, errors: vec![error.to_string()], remedy: error.remedy().map(ToString::to_string) }
}

fn refuse_new_interface(old: &Config, new: &Config) -> Result<(), api::Problem> {
    let (old, new) = (&old.host.interface, &new.host.interface);
    if old == new {
        return Ok(());
    }
    Err(api::Problem {
        refused: true,
        errors: vec![format!("the interface cannot change from {old} to {new} while the agent runs")],
        remedy: Some("meshd down, then meshd up".into()),
    })
}

/// What differs beside the kernel's part, one line each.
fn config_changes(old: &Config, new: &Config) -> Vec<String> {
    let key = new.private_key.public_key();
    let rekeyed = (new.private_key != old.private_key).then(|| format!("~ private key: this host is now {key}"));
    let express =
        (new.host.express != old.host.express).then(|| format!("~ express: {}", value::express_word(new.host.express)));
    let gone =
        old.peers.iter().filter(|peer| new.peer(&peer.name).is_none()).map(|peer| format!("- peer {}", peer.name));
    let other = new.peers.iter().filter_map(|peer| match old.peer(&peer.name) {
        None => Some(format!("+ peer {}", peer.name)),
        Some(before) => (before != peer).then(|| format!("~ peer {}", peer.name)),
    });
    rekeyed.into_iter().chain(express).chain(gone).chain(other).collect()
}

fn name_of(config: &Config, key: &PublicKey) -> String {
    let peer = config.peers.iter().find(|peer| peer.public_key == *key);
    peer.map_or_else(|| key.to_string()[..8].to_owned(), |peer| peer.name.clone())
}

fn peer_status(config: &Config, snapshot: &PeerSnapshot) -> api::PeerStatus {
    let settings = &snapshot.settings;
    let peer = config.peers.iter().find(|peer| peer.public_key == settings.public_key);
    api::PeerStatus {
        name: name_of(config, &settings.public_key),
        public_key: settings.public_key,
        endpoint: settings.endpoint,
        addresses: peer.map(|peer| peer.addresses.clone()).unwrap_or_default(),
        subnets: peer.map(|peer| peer.subnets.clone()).unwrap_or_default(),
        allowed_ips: settings.allowed_ips.clone(),
        latest_handshake: snapshot
            .latest_handshake
            .and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())),
        rx_bytes: snapshot.rx_bytes,
        tx_bytes: snapshot.tx_bytes,
        state: snapshot.state,
        cipher: snapshot.cipher,
        express: snapshot.express,
        persistent_keepalive: settings.persistent_keepalive,
        path: snapshot
            .relayed
            .map_or_else(|| api::DIRECT.to_owned(), |relay| format!("via {}", name_of(config, &relay))),
    }
}
