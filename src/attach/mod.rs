//! Containers on the bridges of this host: who may put one where, and under which addresses. Pure.
//!
//! A container has a name, which is its own on this host, and with it a [`Lease`]: a bridge and an address in each of the
//! bridge's subnets. A lease outlives the container, so that the same name has the same addresses after a restart, of the
//! container as of the host; when the subnet runs full, the one that has been vacant longest goes.

mod opening;
mod port;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{Bridge, Config, User, assign, value};
use crate::plan::tables::fnv1a;
pub use opening::Opening;
pub use port::{Mac, Port, interface, is_port, outside};
pub use refusal::Refusal;

/// Vacant leases that a user may leave behind for each container that they may attach: enough for a handful of services that
/// come and go, and little enough that nobody fills a subnet by it.
const VACANT: usize = 4;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's number.
    pub uid: u32,
    /// As passwd(5) has it.
    pub name: Option<String>,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// What the container is called.
    pub name: String,
    /// Which bridge; the only one that the caller may use when this is empty.
    pub bridge: Option<String>,
    /// At most one in each subnet; the others are chosen.
    pub addresses: Vec<IpAddr>,
    /// Ports of this host that are to lead to it.
    pub publish: Vec<Opening>,
}

/// What a name has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The bridge.
    pub bridge: String,
    /// Whose container it is.
    pub uid: u32,
    /// One in each of the bridge's subnets that had one to give.
    pub addresses: Vec<IpAddr>,
    /// Ports of this host that lead to its container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Opening>,
    /// Since when, in Unix seconds, no container has it.
    pub vacant: Option<u64>,
}

/// All leases of this host, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Leases(BTreeMap<String, Lease>);

impl Caller {
    /// Whether a `[bridge.users]` table is about them.
    fn is(&self, user: &User) -> bool {
        self.name.as_ref() == Some(&user.name) || user.name.parse() == Ok(self.uid)
    }

    fn grant<'c>(&self, bridge: &'c Bridge) -> Option<&'c User> {
        bridge.users.iter().find(|user| self.is(user))
    }

    fn may_use(&self, bridge: &Bridge) -> bool {
        self.uid == 0 || self.grant(bridge).is_some()
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

impl Leases {
    /// Each name with what it has.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Lease)> {
        self.0.iter()
    }

    /// What a name has.
    pub fn get(&self, name: &str) -> Option<&Lease> {
        self.0.get(name)
    }

    /// Gives a container its lease, the one it had if it can still have it. `others` are addresses on the bridge that are not
    /// this agent's to give: its own, and those of containers that somebody else put there.
    ///
    /// # Errors
    /// Why it may not be; nothing has changed then.
    pub fn attach(
        &mut self,
        config: &Config,
        (caller, request): (&Caller, &Request),
        others: &BTreeSet<IpAddr>,
    ) -> Result<&Lease, Refusal> {
        let name = &request.name;
        value::name(name).map_err(|why| Refusal::Name(name.clone(), why))?;
        if let Some(held) = self.0.get(name) {
            if held.uid != caller.uid && caller.uid != 0 {
                return Err(Refusal::NameOfAnother(name.clone()));
            }
            if held.vacant.is_none() {
                return Err(Refusal::Attached(name.clone(), held.bridge.clone()));
            }
        }
        let bridge = self.bridge_for(config, caller, request)?;
        let grant = caller.grant(bridge);
        if let Some(grant) = grant.filter(|_| caller.uid != 0) {
            let theirs: Vec<&String> = self.attached(caller.uid, &bridge.name).collect();
            if theirs.len() >= grant.containers.into() {
                let names = theirs.into_iter().cloned().collect();
                return Err(Refusal::TooMany {
                    caller: caller.clone(),
                    bridge: bridge.name.clone(),
                    most: grant.containers,
                    names,
                });
            }
        }
        self.may_open(config, (caller, grant), name, &request.publish)?;
        let granted: &[IpNet] = grant.filter(|_| caller.uid != 0).map_or(&[], |grant| &grant.addresses);
        let mut next = self.clone();
        let addresses = next.addresses(bridge, granted, request, others)?;
        let publish = request.publish.clone();
        let lease = Lease { bridge: bridge.name.clone(), uid: caller.uid, addresses, publish, vacant: None };
        next.0.insert(name.clone(), lease);
        *self = next;
        Ok(&self.0[name])
    }

    /// A container is gone: its name keeps the lease for a while.
    pub fn vacate(&mut self, config: &Config, name: &str, now: u64) {
        let Some(lease) = self.0.get_mut(name) else { return };
        lease.vacant = Some(now);
        lease.publish.clear();
        let (uid, bridge) = (lease.uid, lease.bridge.clone());
        let containers: usize = config
            .host
            .bridges
            .iter()
            .filter(|one| one.name == bridge)
            .flat_map(|one| &one.users)
            .map(|user| user.containers.into())
            .max()
            .unwrap_or(1);
        let mut vacant: Vec<(u64, String)> = self
            .0
            .iter()
            .filter(|(_, lease)| lease.uid == uid && lease.bridge == bridge)
            .filter_map(|(name, lease)| Some((lease.vacant?, name.clone())))
            .collect();
        vacant.sort();
        for (_, name) in vacant.iter().rev().skip(VACANT * containers.max(1)) {
            self.0.remove(name);
        }
    }

    /// Gives a lease back for good.
    ///
    /// # Errors
    /// When it is not the caller's.
    pub fn release(&mut self, caller: &Caller, name: &str) -> Result<Lease, Refusal> {
        match self.0.get(name) {
            None => Err(Refusal::Unknown(name.to_owned())),
            Some(lease) if lease.uid != caller.uid && caller.uid != 0 => Err(Refusal::NameOfAnother(name.to_owned())),
            Some(_) => self.0.remove(name).ok_or_else(|| Refusal::Unknown(name.to_owned())),
        }
    }

    /// Drops what the configuration has no place for any more: bridges and subnets that are gone. What is attached there
    /// stays, as the container lives with it.
    pub fn retain(&mut self, config: &Config) {
        let fits = |lease: &Lease| {
            let bridge = config.host.bridges.iter().find(|bridge| bridge.name == lease.bridge);
            bridge.is_some_and(|bridge| lease.addresses.iter().all(|addr| subnet_of(bridge, *addr).is_some()))
        };
        self.0.retain(|_, lease| lease.vacant.is_none() || fits(lease));
    }

    fn attached(&self, uid: u32, bridge: &str) -> impl Iterator<Item = &String> {
        let here = move |lease: &Lease| lease.vacant.is_none() && lease.uid == uid && lease.bridge == bridge;
        self.0.iter().filter(move |(_, lease)| here(lease)).map(|(name, _)| name)
    }

    fn bridge_for<'c>(&self, config: &'c Config, caller: &Caller, request: &Request) -> Result<&'c Bridge, Refusal> {
        let bridges = &config.host.bridges;
        let named = request.bridge.as_ref().or_else(|| Some(&self.0.get(&request.name)?.bridge));
        let named = named.filter(|name| request.bridge.is_some() || bridges.iter().any(|bridge| bridge.name == **name));
        let usable = || bridges.iter().filter(|bridge| caller.may_use(bridge));
        if let Some(name) = named {
            let bridge = bridges.iter().find(|bridge| bridge.name == *name);
            let all = || bridges.iter().map(|bridge| bridge.name.clone()).collect();
            let bridge = bridge.ok_or_else(|| Refusal::NoBridge(name.clone(), all()))?;
            return if caller.may_use(bridge) {
                Ok(bridge)
            } else {
                Err(Refusal::NotGranted(caller.clone(), Some(bridge.name.clone())))
            };
        }
        let mut usable_ones = usable();
        match (usable_ones.next(), usable_ones.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(Refusal::WhichBridge(usable().map(|bridge| bridge.name.clone()).collect())),
            (None, _) if caller.uid == 0 => Err(Refusal::NoBridgeAtAll),
            (None, _) => Err(Refusal::NotGranted(caller.clone(), None)),
        }
    }

    /// One for each subnet: what was asked for, what the name had, or what is free. Takes it from whoever has it vacant when
    /// nothing else is free.
    fn addresses(
        &mut self,
        bridge: &Bridge,
        granted: &[IpNet],
        request: &Request,
        others: &BTreeSet<IpAddr>,
    ) -> Result<Vec<IpAddr>, Refusal> {
        for &addr in &request.addresses {
            self.may_have(bridge, granted, &request.name, addr, others)?;
        }
        let before = self.0.get(&request.name).map(|lease| lease.addresses.clone()).unwrap_or_default();
        let mut found: Vec<IpAddr> = Vec::new();
        // The same number in each family where that can be.
        let mut number = u128::from(fnv1a(request.name.as_bytes()));
        for subnet in &bridge.subnets {
            let asked = request.addresses.iter().chain(&before).copied().filter(|addr| subnet.contains(addr));
            let mut sound = asked.filter(|addr| self.may_have(bridge, granted, &request.name, *addr, others).is_ok());
            let addr = match sound.next() {
                Some(addr) => addr,
                None => self.free(subnet, granted, number, others)?,
            };
            // What was vacant there is its no more.
            self.0.retain(|name, lease| {
                *name == request.name || lease.vacant.is_none() || !lease.addresses.contains(&addr)
            });
            number = assign::number(addr, subnet);
            found.push(addr);
        }
        Ok(found)
    }

    /// Whether a name may have this very address.
    fn may_have(
        &self,
        bridge: &Bridge,
        granted: &[IpNet],
        name: &str,
        addr: IpAddr,
        others: &BTreeSet<IpAddr>,
    ) -> Result<(), Refusal> {
        let subnet = subnet_of(bridge, addr)
            .ok_or_else(|| Refusal::Outside(addr, bridge.name.clone(), bridge.subnets.clone()))?;
        let host = IpNet::new_assert(addr, subnet.prefix_len());
        value::host_address(&host.to_string()).map_err(|why| Refusal::NoHosts(addr, why))?;
        if !is_granted(granted, addr) {
            return Err(Refusal::NotTheirs(addr, granted.to_vec()));
        }
        let holder = self
            .0
            .iter()
            .find(|(other, lease)| *other != name && lease.vacant.is_none() && lease.addresses.contains(&addr));
        match holder {
            Some((other, _)) => Err(Refusal::Taken(addr, Some(other.clone()))),
            None if others.contains(&addr) => Err(Refusal::Taken(addr, None)),
            None => Ok(()),
        }
    }

    /// A free address of a subnet, the one with this number if it can be had.
    fn free(
        &self,
        subnet: &IpNet,
        granted: &[IpNet],
        number: u128,
        others: &BTreeSet<IpAddr>,
    ) -> Result<IpAddr, Refusal> {
        let within: Vec<IpNet> = granted.iter().filter(|net| subnet.contains(*net)).copied().collect();
        let family = |net: &&IpNet| net.addr().is_ipv4() == subnet.addr().is_ipv4();
        let nets = if granted.iter().any(|net| family(&net)) { within } else { vec![*subnet] };
        let held: BTreeSet<IpAddr> = self.0.values().flat_map(|lease| lease.addresses.iter().copied()).collect();
        let first = nets.iter().find_map(|net| {
            let from = assign::number(net.network(), subnet);
            let count = 1_u128 << (net.max_prefix_len() - net.prefix_len()).min(127);
            let start = number.checked_sub(from).unwrap_or(number) % count;
            assign::free_from(net, start, |addr| {
                let host = IpNet::new_assert(*addr, subnet.prefix_len());
                !held.contains(addr) && !others.contains(addr) && value::host_address(&host.to_string()).is_ok()
            })
        });
        let oldest = || {
            let vacant = self.0.values().filter_map(|lease| Some((lease.vacant?, lease)));
            let theirs = vacant.flat_map(|(since, lease)| lease.addresses.iter().map(move |addr| (since, *addr)));
            let usable = theirs.filter(|(_, addr)| nets.iter().any(|net| net.contains(addr)) && !others.contains(addr));
            usable.min().map(|(_, addr)| addr)
        };
        first.or_else(oldest).ok_or_else(|| Refusal::Full(*subnet, granted.to_vec()))
    }
}

fn subnet_of(bridge: &Bridge, addr: IpAddr) -> Option<&IpNet> {
    bridge.subnets.iter().find(|subnet| subnet.contains(&addr))
}

/// A grant that names networks of a family is about all of that family.
fn is_granted(granted: &[IpNet], addr: IpAddr) -> bool {
    let mut family = granted.iter().filter(|net| net.addr().is_ipv4() == addr.is_ipv4()).peekable();
    family.peek().is_none() || family.any(|net| net.contains(&addr))
}
