//! This host's kernel: read its facts, apply changes.
//!
//! A [`Reconciler`] brings the kernel to what [`plan`] wants, again and again, by one and the same way at start,
//! reload, after a crash and after somebody else's flush:
//!
//! 1. [`arm_guard`](Reconciler::arm_guard), before the tunnel's interface exists. It needs no journal and no route.
//! 2. [`reconcile`](Reconciler::reconcile) whenever something may differ; nothing is touched that is as it should be.
//! 3. [`teardown`](Reconciler::teardown), also of what a crashed agent left: the kernel's state, the journal and the
//!    interface's name suffice.
//!
//! Create it on the thread, and in the network namespace, where it is used, inside a tokio runtime with I/O enabled. The
//! tunnel's device itself is the dataplane's: it comes and goes with the process, unless a service manager keeps it.

mod capture;
mod container;
pub mod containers;
mod cpu;
mod error;
pub(crate) mod files;
mod firewalls;
mod guard;
pub mod inside;
mod interfaces;
mod journal;
mod kept;
mod listeners;
mod netlink;
mod news;
mod nft;
mod packet_socket;
mod path_mtu;
pub mod port;
mod ports;
pub mod process;
mod program;
pub mod resolv_conf;
mod rivals;
mod snapshot;
mod surroundings;
pub mod survey;
mod sysctl;
pub mod tries;
mod visitor;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use capture::Capture;
pub use container::{Container, Namespace};
pub use cpu::CpuUsage;
pub use error::{Error, Failure};
pub use guard::{GuardState, KeptGuard};
pub use interfaces::interfaces;
pub use listeners::{Listener, listener};
pub use news::{Actor, News};
pub use packet_socket::{PacketSocket, Received};
pub use path_mtu::too_big;
pub use program::{Programs, Refusal};
pub use rivals::Rivals;
pub use surroundings::{Interface, Surroundings};
pub use survey::set_sysctl;
pub use visitor::Visitor;
pub use watch::Watch;

use crate::attach::Port;
use crate::config::Config;
use crate::plan::firewalls::Firewalls;
use crate::plan::{
    self, ActualState, Change, DesiredState, HostFacts, NftActual, NftTable, NftTables, SysctlKey, TABLE_MAIN, desired,
    diff,
};
use journal::{Fingerprints, Journal, Original, Store};
use kept::Keeper;
use netlink::Netlink;
use nft::Nft;
use snapshot::Snapshot;

/// An address that leaves takes others and their routes with it (net/ipv4/devinet.c), so one pass may not suffice.
const PASSES: usize = 3;

/// What a reconciliation did, or a plan would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// In order.
    pub changes: Vec<Change>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// Keeps one agent's part of the kernel's state as configured.
pub struct Reconciler {
    interface: String,
    netlink: Netlink,
    state_dir: PathBuf,
    store: Store,
    keeper: Keeper,
    listen_port: Option<u16>,
    guarded: BTreeSet<String>,
    nft: Nft,
    seen: Option<NftSeen>,
    /// All was in place once: what is missing was taken away.
    settled: bool,
    others: firewalls::Reader,
    /// Other firewalls as they were read last.
    firewalls: Firewalls,
    /// Attached containers.
    ports: Vec<Port>,
}

/// The state of the nft tables at a generation of the ruleset.
#[derive(Debug, Clone)]
struct NftSeen {
    /// Unknown when the kernel would not say; then the tables are listed every time.
    generation: Option<u32>,
    tables: NftTables,
}

impl Reconciler {
    /// For the agent with this state folder and tunnel interface.
    pub fn new(state_dir: &Path, interface: &str) -> Result<Self, Error> {
        Ok(Self {
            interface: interface.to_owned(),
            netlink: Netlink::open()?,
            state_dir: state_dir.to_owned(),
            store: Store::new(state_dir, interface),
            keeper: Keeper::new(state_dir, interface),
            listen_port: None,
            guarded: BTreeSet::new(),
            nft: Nft::new("nft"),
            seen: None,
            settled: false,
            others: firewalls::Reader::default(),
            firewalls: Firewalls::default(),
            ports: Vec::new(),
        })
    }

    /// The interface of the agent that this state folder belongs to, when its journal says so.
    pub fn owner(state_dir: &Path) -> Option<String> {
        Store::owner(state_dir)
    }

    /// The UDP port in use, for a configuration that leaves it to the kernel.
    pub fn set_listen_port(&mut self, port: u16) {
        self.listen_port = Some(port);
    }

    /// Where nft(8) is, for a host whose `PATH` does not say.
    pub fn set_nft_program(&mut self, path: &Path) {
        self.nft = Nft::new(path);
    }

    /// What the plan needs to know about this host.
    pub async fn facts(&mut self) -> Result<HostFacts, Error> {
        let journal = self.store.peek()?;
        let snapshot = self.look(&journal).await?;
        Ok(self.facts_of(&snapshot))
    }

    /// What the kernel holds of ours, and the present values of the sysctls that are desired.
    pub async fn read(&mut self, desired: &DesiredState) -> Result<ActualState, Error> {
        let journal = self.store.peek()?;
        let snapshot = self.look(&journal).await?;
        self.actual(&snapshot, desired, &journal).await
    }

    /// What [`reconcile`](Self::reconcile) would do, once the tunnel's interface exists. Changes nothing.
    pub async fn plan(&mut self, config: &Config) -> Result<Outcome, Error> {
        let config = &*self.with_ports(config);
        let journal = self.store.peek()?;
        let snapshot = self.look(&journal).await?;
        let (desired, mut warnings) = desired(config, &self.facts_of(&snapshot));
        warnings.extend(listeners::warnings(config));
        let actual = self.actual(&snapshot, &desired, &journal).await?;
        Ok(Outcome { changes: diff(&desired, &actual), warnings })
    }

    /// Brings the kernel to what `config` wants. Without guard and filter nothing else is done; any other failure leaves the
    /// rest done and is reported.
    pub async fn reconcile(&mut self, config: &Config) -> Result<Outcome, Error> {
        let mut outcome = Outcome { changes: self.hold(config).await, ..Outcome::default() };
        if self.arm_guard(config).await? {
            outcome.changes.extend(plan::nft::guard(config).map(Change::ArmGuard));
        }
        let mut failed = Vec::new();
        for _ in 0..PASSES {
            let journal = self.store.load()?;
            let snapshot = self.look(&journal).await?;
            let (desired, warnings) = self.wanted(config, &snapshot);
            outcome.warnings = warnings;
            let actual = self.actual(&snapshot, &desired, &journal).await?;
            let changes = diff(&desired, &actual);
            if changes.is_empty() {
                failed.clear();
                self.forget_tables(&desired)?;
                break;
            }
            let applied;
            (applied, failed) = self.perform(&changes, &snapshot).await?;
            let stuck = applied.is_empty();
            outcome.changes.extend(applied);
            if stuck {
                break;
            }
        }
        // A tunnel that another firewall bars is better than none, and the guard stands.
        let (theirs, failed): (Vec<_>, Vec<_>) =
            failed.into_iter().partition(|failure| failure.error.is_of_another_firewall());
        outcome.warnings.extend(theirs.iter().map(ToString::to_string));
        self.settled |= failed.is_empty();
        if let Err(error) = self.keep_guard(config) {
            outcome.warnings.push(format!("{error}; a boot at which the configuration cannot be read has no guard"));
        }
        outcome.warnings.extend(listeners::warnings(&self.with_ports(config)));
        if failed.is_empty() { Ok(outcome) } else { Err(Error::Incomplete { applied: outcome.changes, failed }) }
    }

    /// Puts rules and tables back where all was in place once: it takes netlink a millisecond, and nft(8) many, so when both
    /// were flushed together egress bridges are closed again sooner. What fails here is tried again, and reported, later.
    async fn hold(&mut self, config: &Config) -> Vec<Change> {
        if !self.settled {
            return Vec::new();
        }
        let closes = |change: &Change| match change {
            Change::AddRoute(route) | Change::ReplaceRoute(route) => route.table != TABLE_MAIN,
            Change::AddRule(_) => true,
            _ => false,
        };
        let held = async {
            let journal = self.store.load()?;
            let snapshot = Snapshot::read(&self.netlink).await?;
            let (desired, _) = self.wanted(config, &snapshot);
            let unknown = NftTables::default();
            let actual = snapshot.actual(&self.netlink, &self.interface, &desired, &journal, unknown).await?;
            let mut changes = diff(&desired, &actual);
            changes.retain(closes);
            if changes.is_empty() { Ok((Vec::new(), Vec::new())) } else { self.perform(&changes, &snapshot).await }
        };
        let held: Result<_, Error> = held.await;
        held.map(|(applied, _)| applied).unwrap_or_default()
    }

    /// Takes an interface away, whoever has it open. That it is gone already is no error.
    pub async fn remove_interface(&self, name: &str) -> Result<(), Error> {
        let Ok(index) = nix::net::if_::if_nametoindex(name) else { return Ok(()) };
        let removed = self.netlink.remove_link(index).await;
        match removed.map_err(|error| Error::netlink(format!("remove interface {name}"), error)) {
            Err(error) if !error.errno().is_some_and(means_gone) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a process was started by this reconciler, which is not news.
    pub fn started(&self, actor: &Actor) -> bool {
        self.nft.programs().started(actor.pid)
    }

    /// Makes these changes. Goes on past failures, but not without an nft table, and reports them all.
    pub async fn apply(&mut self, changes: &[Change]) -> Result<Vec<Change>, Error> {
        let snapshot = Snapshot::read(&self.netlink).await?;
        let (applied, failed) = self.perform(changes, &snapshot).await?;
        if failed.is_empty() { Ok(applied) } else { Err(Error::Incomplete { applied, failed }) }
    }

    /// Puts the kernel back to what it was before the first change, but for the guard when it is to stay. Goes on past
    /// failures and reports them all; the journal stays until everything has succeeded.
    pub async fn teardown(&mut self, keep_guard: bool) -> Result<Vec<Change>, Error> {
        self.settled = false;
        let damaged = self.store.load().err();
        let nothing = DesiredState { interface: self.interface.clone(), ..DesiredState::default() };
        let (mut removed, mut failed) = (Vec::new(), Vec::new());
        for _ in 0..PASSES {
            let journal = self.store.load()?;
            let snapshot = self.look(&journal).await?;
            failed.clear();
            let mut nft_missing = false;
            let nft = match self.nft_tables(&journal).await {
                Ok(tables) => tables,
                // Never there, so nothing of ours is in it.
                Err(Error::NftMissing(_)) if journal.nft.is_empty() => {
                    nft_missing = true;
                    NftTables::default()
                }
                Err(error) => {
                    failed.push(Failure::new("nft", error));
                    NftTables::default()
                }
            };
            let mut actual = snapshot.actual(&self.netlink, &self.interface, &nothing, &journal, nft).await?;
            self.add_firewalls(&mut actual);
            // What is ours among it would stay, and be forgotten.
            if let Some(why) = self.firewalls.unread.clone().filter(|_| !nft_missing) {
                failed.push(Failure::new("read other firewalls", Error::Nft(why)));
            }
            // The device goes with its process, and its addresses with it.
            actual.addresses.clear();
            let mut changes = diff(&nothing, &actual);
            changes.retain(|change| !(keep_guard && matches!(change, Change::DisarmGuard { .. })));
            let (applied, failures) = self.perform(&changes, &snapshot).await?;
            failed.extend(failures);
            let done = applied.is_empty();
            removed.extend(applied);
            if done {
                break;
            }
        }
        failed.extend(damaged.map(|error| Failure::new("read the journal", error)));
        if !failed.is_empty() {
            return Err(Error::Incomplete { applied: removed, failed });
        }
        let guard = keep_guard.then(|| plan::nft::guard_name(&self.interface));
        let left = self.store.load()?.reduced_to(guard.as_deref());
        // Without room for the guard's fingerprint, the next start puts another in its place.
        if left.is_empty() || self.store.save(&left).is_err() {
            self.store.remove()?;
        }
        Ok(removed)
    }

    fn facts_of(&self, snapshot: &Snapshot) -> HostFacts {
        HostFacts {
            listen_port: self.listen_port,
            firewalls: self.firewalls.clone(),
            ports: self.ports.clone(),
            ..snapshot.facts()
        }
    }

    /// Reads the host: other firewalls, and what netlink tells.
    async fn look(&mut self, journal: &Journal) -> Result<Snapshot, Error> {
        self.firewalls = self.others.read(&self.nft, &self.interface, journal.placed.clone()).await;
        Snapshot::read(&self.netlink).await
    }

    fn add_firewalls(&self, actual: &mut ActualState) {
        actual.exceptions = self.firewalls.ours(&self.interface);
        actual.zones = self.firewalls.our_zones();
    }

    /// What is desired of what can be had now. Without the tunnel's interface, egress bridges are held closed: guard, rules, and
    /// tables that lead to local bridges, `allow` networks and `unreachable` only.
    fn wanted(&self, config: &Config, snapshot: &Snapshot) -> (DesiredState, Vec<String>) {
        let (mut desired, mut warnings) = desired(&self.with_ports(config), &self.facts_of(snapshot));
        if snapshot.links.get(&self.interface).is_none() {
            desired.withhold_tunnel();
            warnings.push(format!("interface {} does not exist: egress stays closed", self.interface));
        }
        (desired, warnings)
    }

    async fn actual(
        &mut self,
        snapshot: &Snapshot,
        desired: &DesiredState,
        journal: &Journal,
    ) -> Result<ActualState, Error> {
        let nft = self.nft_tables(journal).await?;
        let mut actual = snapshot.actual(&self.netlink, &self.interface, desired, journal, nft).await?;
        self.add_firewalls(&mut actual);
        Ok(actual)
    }

    /// The nft tables, listed again only when something in nft has changed.
    async fn nft_tables(&mut self, journal: &Journal) -> Result<NftTables, Error> {
        // Asked for before listing: a change in between is then seen the next time.
        let generation = nft::generation().ok();
        if let Some(seen) = self.seen.as_ref().filter(|seen| generation.is_some() && seen.generation == generation) {
            let tables = seen.tables.clone();
            self.list_ports(journal).await?;
            return Ok(tables);
        }
        let state = async |family, name: String| {
            let listing = if nft::missing(family, &name) { None } else { self.nft.listing(family, &name).await? };
            Ok::<_, Error>(match (listing, journal.nft.get(&name)) {
                (None, _) => NftActual::Absent,
                (Some(now), Some(left)) if left.listing == now => NftActual::Intact(left.text.clone()),
                (Some(_), _) => NftActual::Altered,
            })
        };
        let interface = &self.interface;
        let (guard, filter, ports) = tokio::try_join!(
            state("inet", plan::nft::guard_name(interface)),
            state("inet", plan::nft::filter_name(interface)),
            state("bridge", plan::nft::ports_name(interface)),
        )?;
        let tables = NftTables { guard, filter, ports };
        self.seen = Some(NftSeen { generation, tables: tables.clone() });
        Ok(tables)
    }

    /// Journals what these changes will overwrite, then makes them one by one.
    async fn perform(&mut self, changes: &[Change], snapshot: &Snapshot) -> Result<(Vec<Change>, Vec<Failure>), Error> {
        let known = self.store.load()?;
        let mut journal = known.clone();
        record(&mut journal, changes, snapshot, &self.interface)?;
        // What takes nothing new from the kernel, as a removal, needs no room on the disk.
        let takes = |change: &Change| matches!(change, Change::SetSysctl { .. } | Change::PlaceInZone { .. });
        if journal != known || (!self.store.is_written() && changes.iter().any(takes)) {
            self.store.save(&journal)?;
        }
        let (mut applied, mut failed) = (Vec::new(), Vec::new());
        for change in changes {
            match self.one(change, snapshot, &mut journal).await {
                Ok(()) => applied.push(change.clone()),
                Err(error) => {
                    failed.push(Failure::new(change, error));
                    // Without its filter a host that forwards is an open router.
                    if matches!(change, Change::ArmGuard(_) | Change::AddNft(_)) {
                        break;
                    }
                }
            }
        }
        // On a full disk a removal stays recorded, and is done once more at worst.
        let saved = self.store.save(&journal);
        if let (Err(error), true) = (saved, changes.iter().any(|change| change.action() == "add")) {
            failed.push(Failure::new("write the journal", error));
        }
        Ok((applied, failed))
    }

    async fn one(&mut self, change: &Change, snapshot: &Snapshot, journal: &mut Journal) -> Result<(), Error> {
        match change {
            Change::ArmGuard(table) | Change::AddNft(table) => {
                self.seen = None;
                journal.nft.insert(table.name.clone(), put(&self.nft, table).await?);
                return Ok(());
            }
            Change::DisarmGuard { name } | Change::RemoveNft { name, .. } => {
                let family = if let Change::RemoveNft { family, .. } = change { family } else { "inet" };
                self.seen = None;
                journal.nft.remove(name);
                return self.nft.remove(family, name).await;
            }
            Change::SetSysctl { key, value } => return sysctl::write(key, value),
            Change::TakeFromZone { interface } => {
                firewalls::apply(change, self.nft.programs(), &self.firewalls, &self.interface).await?;
                journal.placed.remove(interface);
                return Ok(());
            }
            Change::AddException { .. } | Change::RemoveException(_) | Change::PlaceInZone { .. } => {
                return firewalls::apply(change, self.nft.programs(), &self.firewalls, &self.interface).await;
            }
            Change::RestoreSysctl { key, value } => return restore(key, value, snapshot, journal),
            _ => {}
        }
        let links = &snapshot.links;
        let index = |name: &str| links.get(name).map_or(0, |link| link.index);
        let result = match change {
            Change::SetLink { interface, setting } => self.netlink.set_link(index(interface), *setting).await,
            Change::AddAddress { interface, address } => self.netlink.add_address(index(interface), *address).await,
            Change::RemoveAddress { interface, address } => {
                self.netlink.remove_address(index(interface), *address).await
            }
            Change::AddRoute(route) => self.netlink.add_route(route, links, route.table != TABLE_MAIN).await,
            Change::ReplaceRoute(route) => self.netlink.add_route(route, links, true).await,
            Change::RemoveRoute(route) => self.netlink.remove_route(route, links).await,
            Change::AddRule(rule) => self.netlink.add_rule(rule).await,
            Change::RemoveRule(rule) => self.netlink.remove_rule(rule).await,
            _ => Ok(()),
        };
        match result.map_err(|error| Error::netlink("netlink", error)) {
            // Gone already: with its device, with an address, or by another's hand.
            Err(error) if change.action() == "remove" && error.errno().is_some_and(means_gone) => Ok(()),
            other => other,
        }
    }

    /// Tables that a former configuration used are empty once nothing differs any more.
    fn forget_tables(&mut self, desired: &DesiredState) -> Result<(), Error> {
        let mut journal = self.store.load()?;
        journal.tables.retain(|table| desired.tables.contains_key(table));
        self.store.save(&journal)
    }
}

fn means_gone(errno: i32) -> bool {
    [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL].contains(&errno)
}

/// Replaces a table and takes its fingerprints.
async fn put(nft: &Nft, table: &NftTable) -> Result<Fingerprints, Error> {
    nft.replace(table).await?;
    let NftTable { family, name, .. } = table;
    let vanished = || Error::Nft(format!("table {family} {name} was removed as soon as it was added"));
    let listing = nft.listing(family, name).await?.ok_or_else(vanished)?;
    Ok(Fingerprints { text: table.fingerprint(), listing })
}

/// Enters tables and the present values of sysctls. What is recorded of an interface's present life stays as it is.
fn record(journal: &mut Journal, changes: &[Change], snapshot: &Snapshot, interface: &str) -> Result<(), Error> {
    for change in changes {
        match change {
            Change::AddRoute(route) if route.table != TABLE_MAIN => _ = journal.tables.insert(route.table),
            Change::AddRule(rule) if rule.table != TABLE_MAIN => _ = journal.tables.insert(rule.table),
            Change::PlaceInZone { interface } => _ = journal.placed.insert(interface.clone()),
            // The tunnel's own go with it.
            Change::SetSysctl { key, .. } if key.link != interface => {
                record_sysctl(journal, key, snapshot, None)?;
                for other in sysctl::overwritten_by(key).iter().filter(|other| other.link != interface) {
                    record_sysctl(journal, other, snapshot, Some(key.path()))?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn record_sysctl(
    journal: &mut Journal,
    key: &SysctlKey,
    snapshot: &Snapshot,
    with: Option<String>,
) -> Result<(), Error> {
    let index = snapshot.index(&key.link);
    if journal.sysctls.get(&key.path()).is_some_and(|original| original.index == index) {
        return Ok(());
    }
    if let Some(value) = sysctl::read(key)? {
        let all = sysctl::switch_of_all(key).map_or(Ok(None), |all| sysctl::read(&all))?;
        journal.sysctls.insert(key.path(), Original { value, index, with, all });
    }
    Ok(())
}

/// Puts a sysctl back, and after it those that writing it overwrote.
fn restore(key: &SysctlKey, value: &str, snapshot: &Snapshot, journal: &mut Journal) -> Result<(), Error> {
    sysctl::write(key, value)?;
    let path = key.path();
    let mut result = Ok(());
    journal.sysctls.retain(|other, original| {
        if original.with.as_ref() != Some(&path) {
            return *other != path;
        }
        let key = SysctlKey::from_path(other).filter(|key| snapshot.index(&key.link) == original.index);
        let written = key.map_or(Ok(()), |key| match sysctl::read(&key)? {
            Some(now) if now != original.value => sysctl::write(&key, &original.value),
            _ => Ok(()),
        });
        let failed = written.is_err();
        if failed {
            result = written;
        }
        failed
    });
    result
}
