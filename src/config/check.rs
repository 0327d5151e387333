//! Holds the files against each other: names that must exist, networks that must not overlap, keys and ports that must
//! not be claimed twice.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::file::{FileLines, Files};
use super::problem::{Problem, Problems, list_of_names, quote};
use super::value::overlap;
use super::{Config, Egress, Endpoint, Peer, Place, Protocol, Publish};
use crate::channel::address;

/// Everything that is wrong between the files.
pub(super) fn check(config: &Config, files: &Files, lines: &FileLines) -> Result<(), Vec<Problem>> {
    let mut check = Check { config, files, lines, problems: Problems::default() };
    check.interfaces();
    check.peer_names();
    check.keys();
    check.mesh_addresses();
    check.networks();
    check.allowed();
    check.users();
    check.permitted();
    check.endpoints();
    check.published();
    check.relays();
    check.names();
    check.problems.into_result()
}

struct Check<'a> {
    config: &'a Config,
    files: &'a Files,
    lines: &'a FileLines,
    problems: Problems,
}

/// A network, whose it is and where that is written.
struct Claim<'a> {
    net: IpNet,
    owner: Owner<'a>,
    key: String,
}

/// Who has a network.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner<'a> {
    /// What the agents' messages to each other need.
    Agents,
    Mesh,
    Bridge(usize, &'a str),
    Lan(usize),
    Peer(usize, &'a Peer),
}

impl Check<'_> {
    fn host_problem(&mut self, key: &str, message: String) {
        let path = &self.files.host.path;
        let line = self.lines.get(path).map_or(1, |lines| lines.of(key));
        self.problems.add(path, line, message);
    }

    fn peer_problem(&mut self, peer: &Peer, key: &str, message: String) {
        let Some((_, source)) = self.files.peers.iter().find(|(name, _)| *name == peer.name) else { return };
        let line = self.lines.get(&source.path).map_or(1, |lines| lines.of(key));
        self.problems.add(&source.path, line, message);
    }

    /// One interface has one purpose.
    fn interfaces(&mut self) {
        let host = &self.config.host;
        let is_bridge = |name: &String| host.bridges.iter().any(|bridge| bridge.name == *name);
        let mut seen = HashMap::from([(&host.interface, "the tunnel's interface")]);
        for (index, bridge) in host.bridges.iter().enumerate() {
            if let Some(other) = seen.insert(&bridge.name, "another [[bridge]]") {
                let message = format!("bridge: name {} is that of {other} already", quote(&bridge.name));
                self.host_problem(&format!("bridge[{index}].name"), message);
            }
        }
        for (index, lan) in host.lans.iter().enumerate() {
            if lan.interface == host.interface {
                let message =
                    format!("lan: interface {} is the tunnel's; write that of the LAN", quote(&lan.interface));
                self.host_problem(&format!("lan[{index}].interface"), message);
            } else if is_bridge(&lan.interface) {
                let message = format!(
                    "lan: interface {} is a [[bridge]], whose subnets peers reach anyway; write that of the LAN",
                    quote(&lan.interface)
                );
                self.host_problem(&format!("lan[{index}].interface"), message);
            }
        }
        if let Some(name) = host.exit.as_ref().and_then(|exit| exit.interface.as_ref()) {
            let what = match () {
                () if *name == host.interface => "the tunnel's",
                () if is_bridge(name) => "a [[bridge]]",
                () => return,
            };
            let message = format!("exit: interface {} is {what}; write that towards the internet", quote(name));
            self.host_problem("exit.interface", message);
        }
    }

    /// What names a peer names one that exists.
    fn peer_names(&mut self) {
        let (host, config) = (&self.config.host, self.config);
        let peers = if config.peers.is_empty() {
            "there are no peers yet".to_owned()
        } else {
            format!("peers are: {}", list_of_names(config.peers.iter().map(|peer| &peer.name)))
        };
        for (index, bridge) in host.bridges.iter().enumerate() {
            let context = format!("bridge {}", quote(&bridge.name));
            self.egress(&context, &format!("bridge[{index}].egress"), &bridge.egress, &peers);
        }
        if let Some(exit) = &host.exit {
            self.egress("exit", "exit.egress", &exit.egress, &peers);
            if let Some(name) = exit.egress.exits().iter().find(|name| exit.peers.contains(name)) {
                let message = format!("exit: egress {} is in peers: what it sends would go back to it", quote(name));
                self.host_problem("exit.egress", message);
            }
        }
        for (index, name) in host.exit.iter().flat_map(|exit| &exit.peers).enumerate() {
            if config.peer(name).is_none() {
                self.host_problem(
                    &format!("exit.peers[{index}]"),
                    format!("exit: peers {} names no peer; {peers}", quote(name)),
                );
            }
        }
    }

    fn egress(&mut self, context: &str, key: &str, egress: &Egress, peers: &str) {
        for (index, name) in egress.exits().iter().enumerate() {
            let why = match self.config.peer(name) {
                None => format!("names no peer; {peers}"),
                // What goes to the internet would leave by the relay's own exit.
                Some(peer) if peer.via.is_some() => {
                    "is reached via another peer; write one that this host reaches directly".to_owned()
                }
                Some(_) => continue,
            };
            self.host_problem(&format!("{key}[{index}]"), format!("{context}: egress {} {why}", quote(name)));
        }
    }

    /// Who is reached through another is so through one that is not, and what is a LAN of a peer is behind it.
    fn relays(&mut self) {
        let config = self.config;
        let names = list_of_names(config.peers.iter().map(|peer| &peer.name));
        for peer in &config.peers {
            for (key, name) in [("via", &peer.via), ("introduced_by", &peer.introduced_by)] {
                let Some(name) = name else { continue };
                let why = match config.peer(name) {
                    None => format!("names no peer; peers are: {names}"),
                    Some(other) if other.name == peer.name => "is this peer itself".to_owned(),
                    Some(other) if key == "via" && other.via.is_some() => {
                        "is itself reached through another; write one that this host reaches directly".to_owned()
                    }
                    Some(other) if key == "via" && !other.trusted() => {
                        "is a client or held back by allow; write a host that relays".to_owned()
                    }
                    Some(_) => continue,
                };
                self.peer_problem(peer, key, format!("{key} {} {why}", quote(name)));
            }
            for (index, lan) in peer.lans.iter().enumerate() {
                if !peer.subnets.contains(lan) {
                    let message = format!("lans {} is not among subnets; write it there too", quote(&lan.to_string()));
                    self.peer_problem(peer, &format!("lans[{index}]"), message);
                }
            }
        }
    }

    /// One key is one host.
    fn keys(&mut self) {
        let own = self.config.private_key.public_key();
        let mut seen = HashMap::new();
        for peer in &self.config.peers {
            let keys = [("public_key", Some(peer.public_key)), ("next_public_key", peer.next.public_key)];
            for (name, key) in keys.into_iter().filter_map(|(name, key)| Some((name, key?))) {
                if key == own {
                    let message =
                        format!("{name} {own} is this host's own; write the one that `meshd pubkey` prints there");
                    self.peer_problem(peer, name, message);
                } else if let Some(other) = seen.insert(key, &peer.name) {
                    let message = format!("{name} {key} is that of peer {} already", quote(other));
                    self.peer_problem(peer, name, message);
                }
            }
        }
    }

    /// Addresses inside the mesh: each one once, and in a network of this host's own addresses.
    fn mesh_addresses(&mut self) {
        let config = self.config;
        let mut seen: HashMap<IpAddr, String> = HashMap::new();
        for (index, net) in config.host.addresses.iter().enumerate() {
            if seen.insert(net.addr(), "this host".into()).is_some() {
                self.host_problem(
                    &format!("addresses[{index}]"),
                    format!("addresses {} is written twice", quote(&net.to_string())),
                );
            }
        }
        if config.host.addresses.is_empty() {
            self.host_problem(
                "addresses",
                "addresses: empty; write this host's inside the mesh, such as \"10.88.0.2/24\"".into(),
            );
        }
        let networks = list_of_names(config.host.addresses.iter().map(IpNet::trunc));
        for peer in &config.peers {
            for (index, addr) in peer.addresses.iter().enumerate() {
                let (key, shown) = (format!("addresses[{index}]"), quote(&addr.to_string()));
                if let Some(other) = seen.insert(*addr, format!("peer {}", quote(&peer.name))) {
                    self.peer_problem(peer, &key, format!("addresses {shown} is that of {other} already"));
                } else if !config.host.addresses.iter().any(|net| net.contains(addr)) {
                    let message = format!("addresses {shown} is outside the mesh network; this host's is {networks}");
                    self.peer_problem(peer, &key, message);
                }
            }
        }
    }

    /// Every network is in one place. CIDR networks either nest or are disjoint, so in the order of their first address
    /// and prefix a network overlaps one before it exactly when the last one that nothing held does.
    fn networks(&mut self) {
        let mut claims = claims(self.config);
        claims.sort_by_key(|claim| (claim.net.network(), claim.net.prefix_len()));
        let mut outer: Option<&Claim<'_>> = None;
        for claim in &claims {
            match outer {
                Some(outer) if outer.net.contains(&claim.net) => {
                    // Networks of one owner may nest: they lead to the same place.
                    if outer.owner != claim.owner {
                        self.clash(outer, claim);
                    }
                }
                _ => outer = Some(claim),
            }
        }
    }

    /// What a bridge reaches directly is never what the mesh carries: with the tunnel gone, the mesh's packets would leave
    /// by the direct way, in the clear.
    fn allowed(&mut self) {
        let config = self.config;
        let claims = claims(config);
        let carried = |claim: &&Claim<'_>| matches!(claim.owner, Owner::Mesh | Owner::Peer(..));
        for (at, bridge) in config.host.bridges.iter().enumerate() {
            for (index, net) in bridge.allow.iter().enumerate() {
                if let Some(claim) = claims.iter().filter(carried).find(|claim| overlap(&claim.net, net)) {
                    let message = format!(
                        "bridge {}: allow {} overlaps {} of {}, which the tunnel carries; write a smaller network",
                        quote(&bridge.name),
                        quote(&net.to_string()),
                        claim.net,
                        claim.owner
                    );
                    self.host_problem(&format!("bridge[{at}].allow[{index}]"), message);
                }
            }
        }
    }

    /// Users are given addresses of the bridge alone, and reach others of the same bridge.
    fn users(&mut self) {
        let config = self.config;
        for (at, bridge) in config.host.bridges.iter().enumerate() {
            for user in &bridge.users {
                let (key, context) = (
                    format!("bridge[{at}].users.{}", user.name),
                    format!("bridge {}: user {}", quote(&bridge.name), quote(&user.name)),
                );
                for (index, net) in user.addresses.iter().enumerate() {
                    if !bridge.subnets.iter().any(|subnet| subnet.contains(net)) {
                        let shown = quote(&net.to_string());
                        let message = format!("{context}: addresses {shown} is in no subnet of the bridge");
                        self.host_problem(&format!("{key}.addresses[{index}]"), message);
                    }
                }
                for (index, name) in user.reach.iter().enumerate() {
                    if name == &user.name || !bridge.users.iter().any(|other| other.name == *name) {
                        let names = list_of_names(
                            bridge.users.iter().map(|user| user.name.as_str()).filter(|name| *name != user.name),
                        );
                        let message = format!(
                            "{context}: reach {}: no other user of this bridge; those are: {names}",
                            quote(name)
                        );
                        self.host_problem(&format!("{key}.reach[{index}]"), message);
                    }
                }
            }
        }
    }

    /// This host's services are not given by one of its addresses, which would leave the others closed.
    fn permitted(&mut self) {
        let config = self.config;
        for peer in &config.peers {
            for (index, item) in peer.allow.iter().flatten().enumerate() {
                let own = |addr: &IpNet| item.to == Place::Net(IpNet::from(addr.addr()));
                if config.host.addresses.iter().any(own) {
                    let service = item.service.map_or_else(String::new, |service| format!(" {service}"));
                    let shown = quote(&item.to_string());
                    let message = format!("allow {shown} is this host's own address; write \"host{service}\"");
                    self.peer_problem(peer, &format!("allow[{index}]"), message);
                }
            }
        }
    }

    /// Says it where it is most likely to be corrected: in the peer's file rather than in the host's, and of two peers
    /// in the later file, which is the one that `meshd peer add` would write.
    fn clash(&mut self, a: &Claim<'_>, b: &Claim<'_>) {
        let (wrong, kept) = if rank(a) > rank(b) { (a, b) } else { (b, a) };
        let (net, other) = (quote(&wrong.net.to_string()), kept.net);
        match wrong.owner {
            Owner::Peer(_, peer) => {
                self.peer_problem(peer, &wrong.key, format!("subnets {net} overlaps {other} of {}", kept.owner));
            }
            owner => self.host_problem(&wrong.key, format!("{owner}: {net} overlaps {other} of {}", kept.owner)),
        }
    }

    /// The tunnel's own packets cannot go through the tunnel.
    fn endpoints(&mut self) {
        let config = self.config;
        let claims = claims(config);
        let inside = |endpoint: &Option<Endpoint>| {
            let Some(Endpoint::Addr(addr)) = endpoint else { return None };
            let holds = |claim: &&Claim<'_>| {
                // A LAN is reached without the tunnel.
                !matches!(claim.owner, Owner::Lan(_)) && claim.net.contains(&addr.ip().to_canonical())
            };
            let claim = claims.iter().find(holds)?;
            let shown = quote(&addr.to_string());
            Some(format!(
                "endpoint {shown} lies in {} of {}; write an address outside the mesh",
                claim.net.trunc(),
                claim.owner
            ))
        };
        if let Some(message) = inside(&config.host.endpoint) {
            self.host_problem("endpoint", message);
        }
        for peer in &config.peers {
            if let Some(message) = inside(&peer.endpoint) {
                self.peer_problem(peer, "endpoint", message);
            }
        }
    }

    /// Each name is one container's, on a bridge of this host.
    fn names(&mut self) {
        let host = &self.config.host;
        let Some(names) = &host.names else { return };
        for (index, server) in names.upstream.iter().enumerate() {
            if host.addresses.iter().any(|net| net.addr() == *server) {
                let message = format!("names: upstream {} is this host itself", quote(&server.to_string()));
                self.host_problem(&format!("names.upstream[{index}]"), message);
            }
        }
        let subnets = || host.bridges.iter().flat_map(|bridge| &bridge.subnets);
        for (at, container) in names.containers.iter().enumerate() {
            let (key, name) = (format!("names.container[{at}]"), quote(&container.name));
            if names.containers[..at].iter().any(|other| other.name == container.name) {
                self.host_problem(&format!("{key}.name"), format!("container {name} is named twice"));
            }
            for (index, addr) in container.addresses.iter().enumerate() {
                if !subnets().any(|net| net.contains(addr)) {
                    let known = match subnets().next() {
                        None => "there is none".to_owned(),
                        Some(_) => format!("these are: {}", list_of_names(subnets())),
                    };
                    let addr = quote(&addr.to_string());
                    let message =
                        format!("container {name}: addresses {addr} is in no subnet of a [[bridge]]; {known}");
                    self.host_problem(&format!("{key}.addresses[{index}]"), message);
                }
            }
        }
    }

    /// A port leads to one container that the mesh can reach.
    fn published(&mut self) {
        let config = self.config;
        for (index, publish) in config.host.publish.iter().enumerate() {
            let Publish { protocol, ports, to } = *publish;
            let key = |name: &str| format!("publish[{index}].{name}");
            let clashes = |other: &&Publish| {
                other.protocol == protocol && other.ports.overlap(ports) && other.to.is_ipv4() == to.is_ipv4()
            };
            if let Some(other) = config.host.publish[..index].iter().find(clashes) {
                let which = if other.ports == ports { String::new() } else { format!(" as part of {}", other.ports) };
                let message = format!(
                    "publish: {protocol} port {ports} leads to {}{which} already; write another port",
                    other.to
                );
                self.host_problem(&key("port"), message);
            }
            if protocol == Protocol::Udp && ports.contains(config.host.listen_port) {
                let own = config.host.listen_port;
                let what = if ports == own.into() { "is".to_owned() } else { format!("holds {own},") };
                let message =
                    format!("publish: udp port {ports} {what} listen_port, the tunnel's own; write another port");
                self.host_problem(&key("port"), message);
            }
            let to = quote(&to.to_string());
            if publish.last_target().is_none() {
                let count = ports.last - ports.first + 1;
                let message = format!("publish: to {to} with {count} ports runs past 65535; write a lower port");
                self.host_problem(&key("to"), message);
            }
            let bridges = config.host.bridges.iter().flat_map(|bridge| &bridge.subnets);
            let peers = config.peers.iter().flat_map(|peer| &peer.subnets);
            let addresses = config.peers.iter().flat_map(|peer| &peer.addresses);
            let mut networks = bridges.chain(peers);
            if !networks.clone().any(|net| net.contains(&publish.to.ip()))
                && !addresses.clone().any(|addr| *addr == publish.to.ip())
            {
                let known = match networks.next() {
                    None => "there are none yet".to_owned(),
                    Some(first) => format!("these are: {}", list_of_names(std::iter::once(first).chain(networks))),
                };
                let message = format!("publish: to {to} is in no subnet of a bridge or a peer; {known}");
                self.host_problem(&key("to"), message);
            }
        }
    }
}

/// All networks of which no two may overlap.
fn claims(config: &Config) -> Vec<Claim<'_>> {
    let host = &config.host;
    let mesh = host.addresses.iter().enumerate().map(|(index, net)| Claim {
        net: net.trunc(),
        owner: Owner::Mesh,
        key: format!("addresses[{index}]"),
    });
    let bridges = host.bridges.iter().enumerate().flat_map(|(at, bridge)| {
        bridge.subnets.iter().enumerate().map(move |(index, &net)| Claim {
            net,
            owner: Owner::Bridge(at, &bridge.name),
            key: format!("bridge[{at}].subnets[{index}]"),
        })
    });
    let lans = host.lans.iter().enumerate().map(|(at, lan)| Claim {
        net: lan.subnet,
        owner: Owner::Lan(at),
        key: format!("lan[{at}].subnet"),
    });
    let peers = config.peers.iter().enumerate().flat_map(|(at, peer)| {
        peer.subnets.iter().enumerate().map(move |(index, &net)| Claim {
            net,
            owner: Owner::Peer(at, peer),
            key: format!("subnets[{index}]"),
        })
    });
    let agents = Claim { net: address::NETWORK, owner: Owner::Agents, key: String::new() };
    std::iter::once(agents).chain(mesh).chain(bridges).chain(lans).chain(peers).collect()
}

/// The higher one of two that clash is told so.
fn rank(claim: &Claim<'_>) -> (u8, usize) {
    match claim.owner {
        Owner::Agents => (0, 0),
        Owner::Mesh => (1, 0),
        Owner::Bridge(at, _) => (2, at),
        Owner::Lan(at) => (3, at),
        Owner::Peer(at, _) => (4, at),
    }
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agents => f.write_str("the agents themselves"),
            Self::Mesh => f.write_str("the mesh itself"),
            Self::Bridge(_, name) => write!(f, "bridge {}", quote(name)),
            Self::Lan(_) => f.write_str("a lan"),
            Self::Peer(_, peer) => write!(f, "peer {}", quote(&peer.name)),
        }
    }
}
