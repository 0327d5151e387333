//! Published ports: those of this host, and the way back of the answers to those of others.
//!
//! What comes in by the exit's interface, from a bridge of ours, from a peer or from this host itself, and is addressed to
//! one of this host's addresses outside of mesh and bridges, gets the container as its destination and keeps its source. Then:
//!
//! - The container is behind a peer: that host takes the packet out of its tunnel, from an address that is nobody's in
//!   the mesh, and must answer into the tunnel. Where the bridge's own table does not lead there, [`back`] marks the flow.
//! - The container is on a bridge of this host that leaves elsewhere: the answer must go where the client is, so the
//!   rule itself marks the flow for main.
//! - Client and container are behind the same interface (hairpin): the container would answer past this host, so it sees
//!   this host's address instead.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::routes::{mesh_networks, remote_networks};
use super::super::{Family, HostFacts, marks};
use super::exits::Exits;
use super::text::{by_family, inside, keyword, names, set};
use crate::config::{Config, Egress, Protocol, Publish};

/// `127.0.0.0/8` and `::1`.
const LOOPBACK: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

/// The rules of one host.
pub(super) struct Published {
    /// What comes in.
    pub(super) prerouting: Vec<String>,
    /// What this host itself sends.
    pub(super) output: Vec<String>,
    /// Where both go on.
    pub(super) ports: Vec<String>,
    /// Whose source cannot be kept.
    pub(super) masquerade: Vec<String>,
}

pub(super) fn published(config: &Config, facts: &HostFacts, exits: &Exits) -> Published {
    let host = &config.host;
    if host.publish.is_empty() {
        return Published { prerouting: vec![], output: vec![], ports: vec![], masquerade: vec![] };
    }
    let mut devices = inside(config);
    devices.extend([Family::V4, Family::V6].into_iter().filter_map(|family| exits.of(family)).map(String::as_str));
    let mut ports = own_addresses(config);
    let tunnel = if host.listen_port == 0 { facts.listen_port } else { None };
    let shadows = |port: &u16| host.publish.iter().any(|it| it.protocol == Protocol::Udp && it.ports.contains(*port));
    ports.extend(tunnel.filter(shadows).map(|port| format!("udp dport {port} return")));
    ports.extend(host.publish.iter().flat_map(|publish| rules(config, publish)));
    Published {
        prerouting: vec![format!("iifname {} fib daddr type local goto published", names(devices))],
        output: vec!["fib daddr type local goto published".to_owned()],
        ports,
        masquerade: hairpin(config),
    }
}

/// What is this host's own in any case: loopback, the mesh, and the bridges' gateways, where its own services listen.
fn own_addresses(config: &Config) -> Vec<String> {
    let mut nets = mesh_networks(config);
    nets.extend(LOOPBACK);
    nets.extend(config.host.bridges.iter().flat_map(|bridge| &bridge.subnets).map(IpNet::trunc));
    by_family(nets.iter(), |ip, set| format!("{ip} daddr {set} return")).collect()
}

fn rules(config: &Config, publish: &Publish) -> Vec<String> {
    let Publish { protocol, ports, to } = *publish;
    let family = Family::of(&IpNet::from(to.ip()));
    let (nfproto, ip) = (if family == Family::V4 { "ipv4" } else { "ipv6" }, keyword(family));
    let matches = format!("meta nfproto {nfproto} {protocol} dport {ports}");
    // Whom the tables lead to is answered by them: they hold when the tunnel is gone, and main does not.
    let marked = config.is_beside_main(publish).then(|| {
        let mark = marks::back_by_main(&config.host.interface);
        format!("iifname != {} {matches} {} {}", names(inside(config)), set_mark("ct", mark), set_mark("meta", mark))
    });
    let target = if to.port() != ports.first && ports.first != ports.last {
        // nft has no way to say "shifted by so many".
        let pairs: Vec<String> =
            (ports.first..=ports.last).zip(to.port()..).map(|(a, b)| format!("{a} : {b}")).collect();
        format!("{} : {protocol} dport map {{ {} }}", to.ip(), pairs.join(", "))
    } else if ports.first == ports.last {
        to.to_string()
    } else {
        to.ip().to_string()
    };
    marked.into_iter().chain([format!("{matches} dnat {ip} to {target}")]).collect()
}

/// A peer's own address need not be a host that answers strangers into the tunnel: it may be a phone.
fn hairpin(config: &Config) -> Vec<String> {
    let interface = &config.host.interface;
    let local: BTreeSet<&str> =
        config.host.publish.iter().filter_map(|it| config.bridge_of(it)).map(|bridge| bridge.name.as_str()).collect();
    let remote = config.host.publish.iter().any(|publish| config.bridge_of(publish).is_none());
    let same = local.into_iter().chain(remote.then_some(interface.as_str()));
    let mut rules: Vec<String> =
        same.map(|name| format!("iifname \"{name}\" oifname \"{name}\" ct status dnat masquerade")).collect();
    let addresses: BTreeSet<_> = config.peers.iter().flat_map(|peer| &peer.addresses).collect();
    let subnets = || config.peers.iter().flat_map(|peer| &peer.subnets);
    let targets = config.host.publish.iter().map(|publish| publish.to.ip()).filter(|to| addresses.contains(to));
    let targets: BTreeSet<IpNet> =
        targets.filter(|to| !subnets().any(|net| net.contains(to))).map(IpNet::from).collect();
    rules.extend(by_family(targets.iter(), |ip, set| {
        format!("oifname \"{interface}\" {ip} daddr {set} ct status dnat masquerade")
    }));
    rules
}

/// Before routing: flows that must be answered into the tunnel although their bridge does not leave there, and the
/// marks of all that is published. The marks also take the packets past strict reverse-path filtering
/// (`src_valid_mark`, `fib_validate_source` in net/ipv4/fib_frontend.c).
pub(super) fn back(config: &Config) -> Vec<String> {
    let interface = &config.host.interface;
    let (tunnel, main) = (marks::back_into_tunnel(interface), marks::back_by_main(interface));
    let mut rules = Vec::new();
    if config.answers_need_marks() {
        let mut mesh = mesh_networks(config);
        mesh.extend(remote_networks(config));
        for (matches, hops) in strangers(config, &mesh) {
            // Else the host would tell the client "time exceeded", under the address of the interface towards it.
            rules.push(format!("{matches} {hops} < 2 counter drop"));
            rules.push(format!("{matches} ct state new {}", set_mark("ct", tunnel)));
        }
        rules.push(format!("{} {}", has_mark(tunnel), set_mark("meta", tunnel)));
    }
    if config.publishes_beside_main() {
        rules.push(format!("{} {}", has_mark(main), set_mark("meta", main)));
    }
    rules
}

/// What this host itself answers: from a bridge's address, or that a container is unreachable.
pub(super) fn back_from_host(config: &Config) -> Vec<String> {
    let mark = marks::back_into_tunnel(&config.host.interface);
    let rule = || format!("ct direction reply {} {}", has_mark(mark), set_mark("meta", mark));
    config.answers_need_marks().then(rule).into_iter().collect()
}

/// Matches for what comes out of the tunnel from outside of the mesh for bridges that do not leave by it, with the name
/// of the field that counts hops.
fn strangers(config: &Config, mesh: &BTreeSet<IpNet>) -> Vec<(String, &'static str)> {
    let bridges = config.host.bridges.iter().filter(|bridge| !matches!(bridge.egress, Egress::Peers(_)));
    let subnets: Vec<IpNet> = bridges.flat_map(|bridge| &bridge.subnets).copied().collect();
    let interface = &config.host.interface;
    let of = |family| {
        let to = set(subnets.iter().filter(|net| Family::of(net) == family))?;
        let from = set(mesh.iter().filter(|net| Family::of(net) == family));
        let (ip, hops) = if family == Family::V4 { ("ip", "ip ttl") } else { ("ip6", "ip6 hoplimit") };
        let from = from.map(|from| format!(" {ip} saddr != {from}")).unwrap_or_default();
        Some((format!("iifname \"{interface}\" {ip} daddr {to}{from}"), hops))
    };
    [Family::V4, Family::V6].into_iter().filter_map(of).collect()
}

/// For the guard: the answers of one bridge that may leave otherwise than all else. Never to the mesh or to a bridge: they are
/// reached through those, or not at all.
pub(super) fn answers(config: &Config, egress: &Egress) -> Vec<String> {
    let interface = &config.host.interface;
    let answer = "ct direction reply";
    let mut rules = Vec::new();
    if !matches!(egress, Egress::Peers(_)) && config.answers_need_marks() {
        rules.push(format!("oifname \"{interface}\" {answer} {} accept", has_mark(marks::back_into_tunnel(interface))));
    }
    if config.publishes_beside_main() {
        let published = format!("{answer} ct status dnat {}", has_mark(marks::back_by_main(interface)));
        let mut reached = mesh_networks(config);
        reached.extend(remote_networks(config));
        reached.extend(config.host.bridges.iter().flat_map(|bridge| &bridge.subnets).map(IpNet::trunc));
        for family in [Family::V4, Family::V6] {
            let reached = set(reached.iter().filter(|net| Family::of(net) == family));
            let to = match (family, reached) {
                (_, Some(set)) => format!("{} daddr != {set}", keyword(family)),
                (Family::V4, None) => "meta nfproto ipv4".to_owned(),
                (Family::V6, None) => "meta nfproto ipv6".to_owned(),
            };
            rules.push(format!("oifname != \"{interface}\" {to} {published} accept"));
        }
    }
    rules
}

fn has_mark(mark: u32) -> String {
    format!("ct mark and {:#010x} == {mark:#010x}", marks::MASK)
}

fn set_mark(of: &str, mark: u32) -> String {
    format!("{of} mark set {of} mark and {:#010x} or {mark:#010x}", !marks::MASK)
}
