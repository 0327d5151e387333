//! Who may reach what by way of the tunnel, as each peer's `allow` says.
//!
//! A packet of a peer is judged by its source, which cryptokey routing has made sure of:
//!
//! | source | forwarded to | this host's services |
//! | --- | --- | --- |
//! | a trusted host's own address | bridges, LANs, other peers | all |
//! | what is behind a trusted host, or relayed by one | bridges, LANs, other peers | `host` items of its `allow` |
//! | a client, or a host with an `allow` that lacks `mesh` | its `allow` | `host` items of its `allow` |
//! | one of `[exit] peers` | also the exit, but for this host's own networks | – |
//!
//! Packets of a flow that the other side began are judged each anew, so what is taken out of `allow` ends at once, also for
//! flows that stand; their answers are known by conntrack. What a container engine of this host publishes (`ct status dnat`)
//! is one of the host's services.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::{Family, HostFacts};
use super::exits::{Exits, exit_clients, private};
use super::text::{Text, by_family, keyword, names, outer, plain};
use crate::config::value::overlap;
use crate::config::{Allow, Config, Peer, Place, PortRange, Service};

/// In the direction of whoever began a flow nothing is taken for granted; errors about a flow belong to it.
const ANSWERS: [&str; 2] = ["ct direction reply ct state established accept", "ct state related accept"];
/// What a peer may reach whom no `allow` holds back.
const THE_MESH: Allow = Allow { to: Place::Mesh, service: None };

/// Adds the chains that judge what comes from the tunnel: `from-tunnel` what is forwarded, `to-host` what is for this host.
pub(super) fn from_tunnel(table: &mut Text, config: &Config, facts: &HostFacts, exits: &Exits) {
    let limited: Vec<&Peer> = config.peers.iter().filter(|peer| !peer.has_the_mesh()).collect();
    for peer in &limited {
        table.chain(&format!("peer-{}", peer.name), &limited_peer(config, peer));
    }
    let mut rules = ANSWERS.map(str::to_owned).to_vec();
    for family in [Family::V4, Family::V6] {
        if let (Some(exit), Some(clients)) = (exits.of(family), exit_clients(config, family)) {
            let (ip, private) = (keyword(family), private(facts, family, exit));
            rules.push(format!("oifname \"{exit}\" {ip} saddr {clients} {ip} daddr != {private} accept"));
        }
    }
    rules.extend(published(config));
    rules.extend([Family::V4, Family::V6].into_iter().filter_map(|family| dispatch(&limited, family)));
    for peer in config.peers.iter().filter(|peer| peer.has_the_mesh()) {
        rules.extend(services(peer).flat_map(|service| from(&networks(peer), &engine(service))));
    }
    rules.extend(from(&trusted_addresses(config), " ct status dnat"));
    // What bears the address of no peer was published or is relayed by one, so it may do what some host may.
    if config.peers.is_empty() || config.peers.iter().any(Peer::trusted) {
        rules.extend(forwarded(config, &THE_MESH));
    } else {
        let hosts = config.peers.iter().filter(|peer| !peer.client);
        rules.extend(hosts.flat_map(|peer| peer.allow.iter().flatten()).flat_map(|item| forwarded(config, item)));
    }
    rules.push("counter drop".to_owned());
    table.chain("from-tunnel", &rules);

    let mut rules = ANSWERS.map(str::to_owned).to_vec();
    rules.push("meta l4proto { icmp, ipv6-icmp } accept".to_owned());
    rules.extend(from(&trusted_addresses(config), ""));
    for peer in &config.peers {
        rules.extend(services(peer).flat_map(|service| from(&networks(peer), &ports(service))));
    }
    rules.push("counter drop".to_owned());
    table.chain("to-host", &rules);
}

/// What may enter the mesh from the interfaces on which we switched forwarding on: answers, published ports, and LANs
/// that are routed to and fro.
pub(super) fn into_tunnel(config: &Config) -> Vec<String> {
    let mut rules = ANSWERS.map(str::to_owned).to_vec();
    rules.push("ct status dnat accept".to_owned());
    for lan in config.host.lans.iter().filter(|lan| !lan.masquerade) {
        let ip = keyword(Family::of(&lan.subnet));
        rules.push(format!("iifname \"{}\" {ip} saddr {} accept", lan.interface, lan.subnet.trunc()));
    }
    rules.push("counter drop".to_owned());
    rules
}

/// One look-up of the source for all peers that are held to their `allow`.
fn dispatch(limited: &[&Peer], family: Family) -> Option<String> {
    let of_peer = |peer: &&Peer| {
        let nets = networks(peer);
        let nets = outer(nets.iter().filter(|net| Family::of(net) == family));
        nets.into_iter().map(|net| format!("{} : goto peer-{}", plain(net), peer.name)).collect::<Vec<_>>()
    };
    let elements: Vec<String> = limited.iter().flat_map(of_peer).collect();
    (!elements.is_empty()).then(|| format!("{} saddr vmap {{ {} }}", keyword(family), elements.join(", ")))
}

fn limited_peer(config: &Config, peer: &Peer) -> Vec<String> {
    let mut rules: Vec<String> = peer.allow.iter().flatten().flat_map(|item| forwarded(config, item)).collect();
    rules.extend(services(peer).map(|service| format!("{} accept", engine(service).trim_start())));
    rules.push("counter drop".to_owned());
    rules
}

/// What an item gives of what this host forwards to, and by which interface. `host` gives nothing of it.
fn forwarded(config: &Config, item: &Allow) -> Vec<String> {
    let host = &config.host;
    let net = match item.to {
        Place::Host => return Vec::new(),
        Place::Mesh => None,
        Place::Net(net) => Some(net),
    };
    let ports = ports(item.service);
    let to = |net: &IpNet| format!(" {} daddr {}", keyword(Family::of(net)), plain(net.trunc()));
    let devices = host.bridges.iter().map(|bridge| bridge.name.as_str()).chain([host.interface.as_str()]);
    let own =
        format!("oifname {}{}{ports} accept", names(devices.collect()), net.as_ref().map_or_else(String::new, to));
    let lans = host.lans.iter().filter_map(|lan| {
        let part = match net {
            None => lan.subnet,
            // Of two networks that overlap one is in the other.
            Some(net) => {
                [net, lan.subnet].into_iter().max_by_key(IpNet::prefix_len).filter(|_| overlap(&net, &lan.subnet))?
            }
        };
        Some(format!("oifname \"{}\"{}{ports} accept", lan.interface, to(&part)))
    });
    std::iter::once(own).chain(lans).collect()
}

/// Published ports are open to the whole internet, so to the mesh too.
fn published(config: &Config) -> impl Iterator<Item = String> {
    config.host.publish.iter().map(|publish| {
        let (to, ip) = (publish.to, keyword(Family::of(&publish.to.ip().into())));
        let ports = PortRange { first: to.port(), last: publish.last_target().unwrap_or(to.port()) };
        format!("ct status dnat {ip} daddr {} {} dport {ports} accept", to.ip(), publish.protocol)
    })
}

/// The services of this host that a peer's `allow` gives.
fn services(peer: &Peer) -> impl Iterator<Item = Option<Service>> {
    peer.allow.iter().flatten().filter(|item| item.to == Place::Host).map(|item| item.service)
}

/// Matches a service, if not every one; begins with a space.
fn ports(service: Option<Service>) -> String {
    service.map_or_else(String::new, |service| format!(" {} dport {}", service.protocol, service.ports))
}

/// Matches a service that a container engine of this host publishes, under the port that the peer asked for.
fn engine(service: Option<Service>) -> String {
    let port = |service: Service| format!(" meta l4proto {} ct original proto-dst {}", service.protocol, service.ports);
    format!(" ct status dnat{}", service.map_or_else(String::new, port))
}

/// Accepts what comes from these networks and matches.
fn from(nets: &[IpNet], matches: &str) -> Vec<String> {
    by_family(nets.iter(), |ip, set| format!("{ip} saddr {set}{matches} accept")).collect()
}

fn networks(peer: &Peer) -> Vec<IpNet> {
    peer.addresses.iter().map(|&addr: &IpAddr| IpNet::from(addr)).chain(peer.subnets.iter().copied()).collect()
}

fn trusted_addresses(config: &Config) -> Vec<IpNet> {
    let trusted = config.peers.iter().filter(|peer| peer.trusted());
    trusted.flat_map(|peer| &peer.addresses).map(|&addr| IpNet::from(addr)).collect()
}
