//! The guard: what an egress bridge's packets may do, whatever the routes say.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::super::routes::{mesh_networks, remote_networks};
use super::super::{Family, NftTable};
use super::guard_name;
use super::text::{Text, by_family, keyword, names};
use crate::config::{Bridge, Config, Egress};

/// The guard, from the configuration alone, so that it can stand before any interface does.
pub fn guard(config: &Config) -> Option<NftTable> {
    let guarded = || config.host.bridges.iter().filter(|bridge| bridge.egress != Egress::Direct);
    guarded().next()?;
    let mut spoof = Vec::new();
    let mut forward = Vec::new();
    for bridge in guarded() {
        let name = &bridge.name;
        for (family, always) in [(Family::V4, "0.0.0.0"), (Family::V6, "::, fe80::/10")] {
            // Unspecified and link-local sources: DHCP and neighbour discovery, which are never routed.
            let nets = bridge.subnets.iter().map(IpNet::trunc).filter(|net| Family::of(net) == family);
            let nets: String = nets.fold(String::new(), |text, net| text + ", " + &net.to_string());
            spoof.push(format!("iifname \"{name}\" {} saddr != {{ {always}{nets} }} counter drop", keyword(family)));
        }
        forward.push(format!("iifname \"{name}\" goto from-{name}"));
    }
    for bridge in guarded() {
        let name = &bridge.name;
        forward.extend(by_family(bridge.subnets.iter(), |ip, set| format!("{ip} saddr {set} goto from-{name}")));
    }
    for bridge in guarded() {
        // Answers to its containers, when the bridge is gone and main's default would take them.
        let name = &bridge.name;
        forward.extend(by_family(bridge.subnets.iter(), |ip, set| {
            format!("oifname != \"{name}\" {ip} daddr {set} counter drop")
        }));
    }
    let mut table = Text::new(guard_name(&config.host.interface));
    table.base_chain("prerouting", "filter", "prerouting", "raw", &spoof);
    table.base_chain("forward", "filter", "forward", "filter - 10", &forward);
    table.base_chain("output", "filter", "output", "filter - 10", &errors(config));
    for bridge in guarded() {
        table.chain(&format!("from-{}", bridge.name), &guarded_bridge(config, bridge));
    }
    Some(table.finish())
}

/// Whether this guard, of whatever configuration, speaks of what comes from a bridge.
pub fn holds(guard: &NftTable, bridge: &str) -> bool {
    guard.text.contains(&format!("iifname \"{bridge}\" "))
}

/// Errors about what came through the tunnel quote it, bear the address that it came in by, and follow main: while somebody
/// empties a bridge's table they would leave in plaintext.
fn errors(config: &Config) -> Vec<String> {
    let mut inside: BTreeSet<&str> = config.host.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
    inside.extend(["lo", config.host.interface.as_str()]);
    let (inside, mut rules) = (names(inside), Vec::new());
    for (family, kinds) in [
        (Family::V4, "icmp type { destination-unreachable, time-exceeded, parameter-problem }"),
        (Family::V6, "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"),
    ] {
        let own = config.host.addresses.iter().filter(|addr| Family::of(addr) == family);
        let own: Vec<String> = own.map(|addr| addr.addr().to_string()).collect();
        if !own.is_empty() {
            let (ip, own) = (keyword(family), own.join(", "));
            rules.push(format!("oifname != {inside} {ip} saddr {{ {own} }} {kinds} counter drop"));
        }
    }
    rules
}

/// Where packets of one egress bridge may be forwarded.
fn guarded_bridge(config: &Config, bridge: &Bridge) -> Vec<String> {
    let interface = &config.host.interface;
    let mut local: BTreeSet<&str> = config.host.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
    let mut rules = Vec::new();
    if bridge.egress == Egress::None {
        let mut mesh = mesh_networks(config);
        mesh.extend(remote_networks(config));
        rules.extend(by_family(mesh.iter(), |ip, set| format!("oifname \"{interface}\" {ip} daddr {set} accept")));
    } else {
        local.insert(interface);
    }
    rules.insert(0, format!("oifname {} accept", names(local)));
    let allow = bridge.allow.iter().filter(|net| net.prefix_len() > 0);
    rules.extend(by_family(allow, |ip, set| format!("oifname != \"{interface}\" {ip} daddr {set} accept")));
    rules.push("counter drop".to_owned());
    rules
}
