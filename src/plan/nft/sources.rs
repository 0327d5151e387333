//! Who may not speak as whom.
//!
//! Cryptokey routing holds each peer to its own addresses, but a peer that is an exit here may bring any source, and IPv6
//! has no reverse-path filter. What an egress bridge sends is the guard's matter; one with egress `direct` is as without
//! meshd, except that it cannot speak as a part of the mesh.

use ipnet::IpNet;

use super::super::routes::{mesh_networks, remote_networks};
use super::text::{by_family, inside, names};
use crate::config::{Config, Egress};

/// Binds what local bridges send into the tunnel to its own source. Docker and Podman masquerade a network's packets wherever
/// they go; a binding that exists already keeps them from it (`nf_nat_inet_fn` in net/netfilter/nf_nat_core.c).
pub(super) fn kept(config: &Config) -> Vec<String> {
    let interface = &config.host.interface;
    let subnets = config.host.bridges.iter().flat_map(|bridge| &bridge.subnets);
    by_family(subnets, |ip, set| format!("oifname \"{interface}\" {ip} saddr {set} snat {ip} to {ip} saddr")).collect()
}

/// Before routing and conntrack.
pub(super) fn spoofed(config: &Config) -> Vec<String> {
    let host = &config.host;
    let interface = &host.interface;
    let drops = |device: &str, nets: &[IpNet]| {
        let rule = |ip: &str, set: &str| format!("iifname {device} {ip} saddr {set} counter drop");
        by_family(nets.iter(), rule).collect::<Vec<_>>()
    };
    let subnets: Vec<IpNet> = host.bridges.iter().flat_map(|bridge| bridge.subnets.iter().copied()).collect();
    // A LAN of global addresses reaches a published port by its own, so it may come back through the tunnel.
    let lans = host.lans.iter().map(|lan| lan.subnet).filter(is_private);

    let mut rules = vec![format!("iifname \"{interface}\" fib saddr type local counter drop")];
    rules.extend(drops(&format!("\"{interface}\""), &subnets.iter().copied().chain(lans).collect::<Vec<_>>()));
    let mesh = mesh_networks(config);
    let remote = remote_networks(config);
    for bridge in host.bridges.iter().filter(|bridge| bridge.egress == Egress::Direct) {
        let others = subnets.iter().filter(|net| !bridge.subnets.contains(net));
        let foreign: Vec<IpNet> = mesh.iter().chain(&remote).chain(others).copied().collect();
        rules.extend(drops(&format!("\"{}\"", bridge.name), &foreign));
    }
    let mut devices = inside(config);
    devices.insert("lo");
    let nets: Vec<IpNet> = mesh.into_iter().chain(subnets).collect();
    rules.extend(drops(&format!("!= {}", names(devices)), &nets));
    rules
}

/// Nobody's on the internet (RFC 1918, RFC 6598, RFC 4193).
fn is_private(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => {
            let shared = net.addr().octets()[0] == 100 && net.addr().octets()[1] & 0xc0 == 64;
            net.addr().is_private() || shared
        }
        IpNet::V6(net) => net.addr().is_unique_local(),
    }
}
