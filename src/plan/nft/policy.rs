//! What may pass between the tunnel and other interfaces.

use super::super::Family;
use super::exits::{Exits, exit_clients};
use super::text::{keyword, names};
use crate::config::Config;

/// Where an exit's clients may not go, which is the exit host's side: private, shared, link-local (cloud metadata),
/// loopback, multicast and reserved (RFC 6890).
const PRIVATE_V4: &str =
    "{ 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 224.0.0.0/3 }";
/// As [`PRIVATE_V4`], with the prefixes that embed addresses of its kind.
const PRIVATE_V6: &str = "{ ::/96, ::ffff:0:0/96, 64:ff9b:1::/48, fc00::/7, fe80::/10, fec0::/10, ff00::/8 }";

/// What peers may reach through this host. `dnat`: the host itself publishes it, for instance a container engine's port.
pub(super) fn from_tunnel(config: &Config, exits: &Exits) -> Vec<String> {
    let host = &config.host;
    let local = host.bridges.iter().map(|bridge| bridge.name.as_str()).chain([host.interface.as_str()]);
    let mut rules = vec![
        "ct state established,related accept".to_owned(),
        "ct status dnat accept".to_owned(),
        format!("oifname {} accept", names(local.collect())),
    ];
    for lan in &host.lans {
        let ip = keyword(Family::of(&lan.subnet));
        rules.push(format!("oifname \"{}\" {ip} daddr {} accept", lan.interface, lan.subnet.trunc()));
    }
    for (family, private) in [(Family::V4, PRIVATE_V4), (Family::V6, PRIVATE_V6)] {
        if let (Some(exit), Some(clients)) = (exits.of(family), exit_clients(config, family)) {
            let ip = keyword(family);
            rules.push(format!("oifname \"{exit}\" {ip} saddr {clients} {ip} daddr != {private} accept"));
        }
    }
    rules.push("counter drop".to_owned());
    rules
}

/// What may enter the mesh from the interfaces on which we switched forwarding on: answers, published ports, and LANs
/// that are routed to and fro.
pub(super) fn into_tunnel(config: &Config) -> Vec<String> {
    let mut rules = vec!["ct state established,related accept".to_owned(), "ct status dnat accept".to_owned()];
    for lan in config.host.lans.iter().filter(|lan| !lan.masquerade) {
        let ip = keyword(Family::of(&lan.subnet));
        rules.push(format!("iifname \"{}\" {ip} saddr {} accept", lan.interface, lan.subnet.trunc()));
    }
    rules.push("counter drop".to_owned());
    rules
}
