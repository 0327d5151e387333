//! By which exit each network leaves.

use crate::config::{self, Config};
use crate::key::PublicKey;
use crate::tunnel::{Egress, Local};

/// What the configuration says of this host, for the tunnel. What the host itself sends into the tunnel leaves with its
/// first bridge that has an exit.
pub(super) fn local(config: &Config) -> Local {
    let host = &config.host;
    let mut egress = Vec::new();
    for bridge in &host.bridges {
        let exits = exits(config, &bridge.egress);
        if egress.is_empty() && !exits.is_empty() {
            let own = host.addresses.iter().map(|net| net.addr().into());
            egress.extend(own.map(|source| Egress { source, exits: exits.clone() }));
        }
        if !exits.is_empty() {
            egress.extend(bridge.subnets.iter().map(|&source| Egress { source, exits: exits.clone() }));
        }
    }
    Local {
        egress,
        bridges: host.bridges.iter().flat_map(|bridge| bridge.subnets.clone()).collect(),
        addresses: host.addresses.iter().map(ipnet::IpNet::addr).collect(),
    }
}

fn exits(config: &Config, egress: &config::Egress) -> Vec<PublicKey> {
    let config::Egress::Peer(name) = egress else { return Vec::new() };
    config.peer(name).map(|peer| peer.public_key).into_iter().collect()
}
