//! The guard: what an egress bridge's packets may do, whatever the routes say.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::super::routes::{mesh_networks, remote_networks};
use super::super::{Family, NftTable};
use super::text::{Text, by_family, chain_name, keyword, names};
use super::{errors, guard_name, publish};
use crate::config::{Bridge, Config, Egress, Exit, Lan, Peer};

/// The guard, from the configuration alone, so that it can stand before any interface does.
pub fn guard(config: &Config) -> Option<NftTable> {
    let guarded = || config.host.bridges.iter().filter(|bridge| bridge.egress != Egress::Direct);
    let chained: BTreeSet<IpNet> = config.chained().flat_map(Peer::networks).collect();
    if guarded().next().is_none() && chained.is_empty() {
        return None;
    }
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
        forward.push(format!("iifname \"{name}\" goto {}", chain_name("from", name)));
    }
    for bridge in guarded() {
        let chain = chain_name("from", &bridge.name);
        forward.extend(by_family(bridge.subnets.iter(), |ip, set| format!("{ip} saddr {set} goto {chain}")));
    }
    let interface = &config.host.interface;
    forward
        .extend(by_family(chained.iter(), |ip, set| format!("iifname \"{interface}\" {ip} saddr {set} goto onward")));
    for bridge in guarded() {
        // Answers to its containers, when the bridge is gone and main's default would take them.
        let name = &bridge.name;
        forward.extend(by_family(bridge.subnets.iter(), |ip, set| {
            format!("oifname != \"{name}\" {ip} daddr {set} counter drop")
        }));
    }
    let mut table = Text::new("inet", guard_name(&config.host.interface));
    table.base_chain("prerouting", "filter", "prerouting", "raw", &spoof);
    table.base_chain("forward", "filter", "forward", "filter - 10", &forward);
    let of_bridge = |bridge: &Bridge| errors::errors(config, &bridge.subnets, &bridge.allow);
    let mut errors: Vec<String> = guarded().flat_map(of_bridge).collect();
    errors.extend(errors::errors(config, &chained.iter().copied().collect::<Vec<_>>(), &[]));
    table.base_chain("output", "filter", "output", "filter - 10", &errors);
    for bridge in guarded() {
        table.chain(&chain_name("from", &bridge.name), &guarded_bridge(config, bridge));
    }
    if let Some(exit) = config.host.exit.as_ref().filter(|_| !chained.is_empty()) {
        table.chain("onward", &onward(config, exit));
    }
    Some(table.finish())
}

/// Where packets of exit clients may be forwarded that another exit is to carry: not to the internet from here, but in
/// answer to what this host publishes.
fn onward(config: &Config, exit: &Exit) -> Vec<String> {
    let interface = config.host.interface.as_str();
    let local = config.host.bridges.iter().map(|bridge| bridge.name.as_str()).chain([interface]);
    let mut rules = vec![format!("oifname {} accept", names(local.collect()))];
    let lan = |lan: &Lan| {
        let ip = keyword(Family::of(&lan.subnet));
        format!("oifname \"{}\" {ip} daddr {} accept", lan.interface, lan.subnet.trunc())
    };
    rules.extend(config.host.lans.iter().map(lan));
    rules.extend(publish::answers(config, &exit.egress));
    rules.push("counter drop".to_owned());
    rules
}

/// Whether this guard, of whatever configuration, speaks of what comes from a bridge.
pub fn holds(guard: &NftTable, bridge: &str) -> bool {
    guard.text.contains(&format!("iifname \"{bridge}\" "))
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
    rules.extend(publish::answers(config, &bridge.egress));
    let allow = bridge.allow.iter().filter(|net| net.prefix_len() > 0);
    rules.extend(by_family(allow, |ip, set| format!("oifname != \"{interface}\" {ip} daddr {set} accept")));
    rules.push("counter drop".to_owned());
    rules
}
