//! Forwarding, switched on for single interfaces.
//!
//! IPv4 asks the interface that a packet came in by (`IN_DEV_FORWARD` in net/ipv4/route.c), so an interface is listed here when
//! something that we route enters by it. IPv6 asks `all` and, since Linux 6.17, the incoming interface's
//! `force_forwarding`, which changes nothing else about the interface: it goes on taking router advertisements.

use std::collections::{BTreeMap, BTreeSet};

use super::nft::{Exits, outside};
use super::{Family, HostFacts, SysctlKey};
use crate::config::Config;

/// The values that this configuration needs. `ipv6` says whether the tunnel carries it.
pub(super) fn sysctls(config: &Config, facts: &HostFacts, exits: &Exits, ipv6: bool) -> BTreeMap<SysctlKey, String> {
    let host = &config.host;
    let mut devices: BTreeSet<&str> = host.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
    devices.insert(&host.interface);
    let outside = outside(config, facts, exits);
    devices.extend(outside.iter().map(String::as_str));
    devices.retain(|device| facts.links.contains_key(*device));

    let one = |family, device: &str, name| (SysctlKey::new(family, device, name), "1".to_owned());
    let mut sysctls: BTreeMap<_, _> = devices.iter().map(|device| one(Family::V4, device, "forwarding")).collect();
    let tunnel = |family, name| (SysctlKey::new(family, &host.interface, name), "0".to_owned());
    if facts.links.contains_key(&host.interface) {
        // No peer, not even the exit, may give this host routes.
        sysctls.extend([tunnel(Family::V4, "accept_redirects")]);
    }
    sysctls.extend(valid_marks(config, facts, exits));
    devices.retain(|device| facts.ipv6 && facts.links.get(*device).is_some_and(|link| link.ipv6));
    if devices.contains(host.interface.as_str()) {
        sysctls.extend([tunnel(Family::V6, "accept_redirects"), tunnel(Family::V6, "accept_ra")]);
    }
    if !ipv6 || !uses_ipv6(config) {
        return sysctls;
    }
    if facts.force_forwarding {
        sysctls.extend(devices.iter().map(|device| one(Family::V6, device, "force_forwarding")));
        return sysctls;
    }
    sysctls.extend([one(Family::V6, "all", "forwarding")]);
    for (name, link) in facts.links.iter().filter(|(name, _)| **name != host.interface) {
        // 2 takes advertisements despite forwarding. Who has it keeps it: once the router's address has expired, nothing
        // shows any more that the interface depends on it.
        if link.accept_ra == Some(2) || (link.accept_ra == Some(1) && link.autoconfigured) {
            sysctls.insert(SysctlKey::new(Family::V6, name, "accept_ra"), "2".to_owned());
        }
    }
    sysctls
}

/// Strict reverse-path filtering asks for the way back by mark on these interfaces alone: what a peer publishes comes out of
/// the tunnel, what this host publishes to an egress bridge comes in by the exit.
fn valid_marks(config: &Config, facts: &HostFacts, exits: &Exits) -> BTreeMap<SysctlKey, String> {
    let tunnel = config.answers_need_marks().then_some(&config.host.interface);
    let exit = exits.of(Family::V4).filter(|_| config.publishes_beside_main());
    let devices = tunnel.into_iter().chain(exit).filter(|device| facts.links.contains_key(*device));
    devices.map(|device| (SysctlKey::new(Family::V4, device, "src_valid_mark"), "1".to_owned())).collect()
}

fn uses_ipv6(config: &Config) -> bool {
    let subnets = config.host.bridges.iter().flat_map(|bridge| &bridge.subnets);
    subnets.chain(&config.host.addresses).any(|net| net.addr().is_ipv6())
}
