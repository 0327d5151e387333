//! What the operator should know about what the configuration names.

use super::routes::{mesh_networks, remote_networks};
use super::{Family, HostFacts, tables};
use crate::config::value::overlap;
use crate::config::{Config, Place};

/// Networks in `allow` that nothing leads to: mistyped, or of a peer that was removed.
pub(super) fn allowed(config: &Config, warnings: &mut Vec<String>) {
    let mut there = mesh_networks(config);
    there.extend(remote_networks(config));
    there.extend(config.host.bridges.iter().flat_map(|bridge| &bridge.subnets));
    there.extend(config.host.lans.iter().map(|lan| lan.subnet));
    for peer in &config.peers {
        for item in peer.allow.iter().flatten() {
            let Place::Net(net) = item.to else { continue };
            if !there.iter().any(|other| overlap(other, &net)) {
                warnings.push(format!("peer {}: allow {item} leads nowhere through this host", peer.name));
            }
        }
    }
}

/// Adds a warning for each interface that is not there, or is not what it is taken for.
pub(super) fn interfaces(config: &Config, facts: &HostFacts, warnings: &mut Vec<String>) {
    let host = &config.host;
    for bridge in &host.bridges {
        let name = &bridge.name;
        if !facts.links.contains_key(name) {
            warnings.push(format!("bridge {name} does not exist yet: its routes are added when it does"));
        }
        for (family, which) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            if facts.default_device(family) == Some(name.as_str()) {
                warnings.push(format!(
                    "bridge {name} is also this host's own way out ({which} default route): all that comes in by it is \
                     taken for a container's"
                ));
            }
        }
        // Our own may still be there after a change of `egress`.
        let mut own = tables::of(config);
        own.insert(tables::number(&host.interface, name), name.clone());
        if facts.claimed.iter().any(|(bridge, table)| bridge == name && !own.contains_key(table)) {
            warnings.push(format!(
                "bridge {name} is another agent's too: what both of them let pass passes, and nothing else; one of them \
                 has to let go"
            ));
        }
    }
    for lan in host.lans.iter().filter(|lan| !facts.links.contains_key(&lan.interface)) {
        let (name, subnet) = (&lan.interface, lan.subnet);
        warnings.push(format!("[[lan]] interface {name} does not exist yet: {subnet} is shared when it does"));
    }
}
