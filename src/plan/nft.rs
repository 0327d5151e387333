//! The two nft tables, as text that nft(8) reads and a person can.
//!
//! **The guard** is a second lock beside the routes and independent of them. What enters by an egress bridge, or bears an
//! address of one, may be forwarded only into the tunnel, to a bridge of this host or to an `allow` network.
//!
//! It drops and does not reject. The kind answer comes from the first lock, the `unreachable` route; a reject would send an
//! ICMP error from this host's own address to whatever source the packet names. For the same reason it drops what
//! a container sends under an address that is not of its bridge, before routing: otherwise a container could have the
//! host's ICMP errors and echo replies (TTL 1, `unreachable`, a ping to the host's LAN address) sent past the tunnel to
//! anybody, which gives the home address away.
//!
//! **The filter** holds what a working tunnel needs: fixed MSS values (`rt mtu` would ask the reverse route without its
//! source, and be wrong under policy routing), masquerading, published ports, and what may pass between the tunnel and
//! other interfaces, so that switching forwarding on does not make the host a router by accident.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::routes::{mesh_networks, remote_networks};
use super::{Family, HostFacts, NftTable};
use crate::config::{Bridge, Config, Egress, Protocol};

/// Where an exit's clients may not go, which is the exit host's side: private, shared, link-local (cloud metadata),
/// loopback, multicast and reserved (RFC 6890).
const PRIVATE_V4: &str =
    "{ 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 224.0.0.0/3 }";
/// As [`PRIVATE_V4`], with the prefixes that embed addresses of its kind.
const PRIVATE_V6: &str = "{ ::/96, ::ffff:0:0/96, 64:ff9b:1::/48, fc00::/7, fe80::/10, fec0::/10, ff00::/8 }";

/// The interfaces by which exit traffic leaves and published ports are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exits {
    v4: Option<String>,
    v6: Option<String>,
}

impl Exits {
    /// From `[exit].interface` or the default routes; nothing when neither an exit nor a published port needs them.
    pub(super) fn new(config: &Config, facts: &HostFacts, warnings: &mut Vec<String>) -> Self {
        let host = &config.host;
        if host.exit.is_none() && host.publish.is_empty() {
            return Self::default();
        }
        if let Some(interface) = host.exit.as_ref().and_then(|exit| exit.interface.clone()) {
            if !facts.links.contains_key(&interface) {
                warnings.push(format!("[exit] interface {interface} does not exist yet"));
            }
            return Self { v4: Some(interface.clone()), v6: Some(interface) };
        }
        let device = |family| facts.default_device(family).filter(|name| *name != host.interface).map(str::to_owned);
        let exits = Self { v4: device(Family::V4), v6: device(Family::V6) };
        if exits == Self::default() {
            warnings.push("no default route: [exit] and [[publish]] wait for one, or name [exit] interface".to_owned());
        }
        exits
    }

    fn of(&self, family: Family) -> Option<&String> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// The guard's name: `meshd_guard`, or `meshd_guard_IFACE` for an agent whose interface is not `mesh0`.
pub fn guard_name(interface: &str) -> String {
    name("meshd_guard", interface)
}

/// The filter's name: `meshd` or `meshd_IFACE`.
pub fn filter_name(interface: &str) -> String {
    name("meshd", interface)
}

fn name(base: &str, interface: &str) -> String {
    if interface == "mesh0" {
        return base.to_owned();
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("{base}_{}", interface.chars().map(plain).collect::<String>())
}

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
    let mut table = Text::new(guard_name(&config.host.interface));
    table.base_chain("prerouting", "filter", "prerouting", "raw", &spoof);
    table.base_chain("forward", "filter", "forward", "filter - 10", &forward);
    for bridge in guarded() {
        table.chain(&format!("from-{}", bridge.name), &guarded_bridge(config, bridge));
    }
    Some(table.finish())
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

/// The interfaces outside of mesh and bridges by which something of ours comes in.
pub(super) fn outside(config: &Config, facts: &HostFacts, exits: &Exits) -> BTreeSet<String> {
    let host = &config.host;
    let mut devices: BTreeSet<String> = exits.v4.iter().chain(&exits.v6).cloned().collect();
    devices.extend(host.lans.iter().map(|lan| lan.interface.clone()));
    let guarded = host.bridges.iter().filter(|bridge| bridge.egress != Egress::Direct);
    let allowed = guarded.flat_map(|bridge| &bridge.allow).filter(|net| net.prefix_len() > 0);
    devices.extend(allowed.filter_map(|net| facts.covering(*net)?.device.clone()));
    devices.retain(|device| *device != host.interface && !host.bridges.iter().any(|bridge| bridge.name == *device));
    devices
}

/// The filter.
pub(super) fn filter(config: &Config, facts: &HostFacts, exits: &Exits) -> NftTable {
    let host = &config.host;
    let interface = &host.interface;
    let mut forward = Vec::new();
    for direction in ["iifname", "oifname"] {
        // The IP and TCP headers without options (RFC 6691). The kernel never raises the value (nft_exthdr.c).
        for (family, headers) in [("ipv4", 40), ("ipv6", 60)] {
            let mss = host.mtu.saturating_sub(headers);
            let syn = format!("meta nfproto {family} tcp flags syn / syn,rst");
            forward.push(format!("{direction} \"{interface}\" {syn} tcp option maxseg size set {mss}"));
        }
    }
    forward.push(format!("iifname \"{interface}\" goto from-tunnel"));
    let outside = outside(config, facts, exits);
    if !outside.is_empty() {
        let devices = names(outside.iter().map(String::as_str).collect());
        forward.push(format!("iifname {devices} oifname \"{interface}\" goto into-tunnel"));
    }

    let mut table = Text::new(filter_name(interface));
    table.base_chain("prerouting", "nat", "prerouting", "dstnat", &published(config, exits));
    table.base_chain("forward", "filter", "forward", "filter", &forward);
    table.chain("from-tunnel", &from_tunnel(config, exits));
    if !outside.is_empty() {
        table.chain("into-tunnel", &into_tunnel(config));
    }
    table.base_chain("postrouting", "nat", "postrouting", "srcnat", &masquerade(config, facts, exits));
    table.finish()
}

/// What peers may reach through this host. `dnat`: the host itself publishes it, for instance a container engine's port.
fn from_tunnel(config: &Config, exits: &Exits) -> Vec<String> {
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
fn into_tunnel(config: &Config) -> Vec<String> {
    let mut rules = vec!["ct state established,related accept".to_owned(), "ct status dnat accept".to_owned()];
    for lan in config.host.lans.iter().filter(|lan| !lan.masquerade) {
        let ip = keyword(Family::of(&lan.subnet));
        rules.push(format!("iifname \"{}\" {ip} saddr {} accept", lan.interface, lan.subnet.trunc()));
    }
    rules.push("counter drop".to_owned());
    rules
}

fn published(config: &Config, exits: &Exits) -> Vec<String> {
    let rule = |publish: &crate::config::Publish| {
        let family = Family::of(&IpNet::from(publish.to.ip()));
        let exit = exits.of(family)?;
        let nfproto = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let protocol = if publish.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        let (port, ip, to) = (publish.port, keyword(family), publish.to);
        let local = format!("iifname \"{exit}\" meta nfproto {nfproto} fib daddr type local");
        Some(format!("{local} {protocol} dport {port} dnat {ip} to {to}"))
    };
    config.host.publish.iter().filter_map(rule).collect()
}

/// LANs first: what goes to one of them without masquerading must not be masqueraded for the exit's sake.
fn masquerade(config: &Config, facts: &HostFacts, exits: &Exits) -> Vec<String> {
    let host = &config.host;
    let interface = &host.interface;
    let ports = udp_ports(if host.listen_port == 0 { facts.listen_port } else { Some(host.listen_port) });
    let both = |matches: String| {
        let udp = ports.as_ref().map(|ports| format!("{matches} meta l4proto udp masquerade to :{ports}"));
        udp.into_iter().chain([format!("{matches} masquerade")])
    };
    let mut rules = Vec::new();
    for lan in &host.lans {
        let (ip, subnet) = (keyword(Family::of(&lan.subnet)), lan.subnet.trunc());
        let matches = format!("iifname \"{interface}\" oifname \"{}\" {ip} daddr {subnet}", lan.interface);
        if lan.masquerade {
            rules.extend(both(matches));
        } else {
            rules.push(format!("{matches} accept"));
        }
    }
    for family in [Family::V4, Family::V6] {
        if let (Some(exit), Some(clients)) = (exits.of(family), exit_clients(config, family)) {
            let ip = keyword(family);
            rules.extend(both(format!("iifname \"{interface}\" oifname \"{exit}\" {ip} saddr {clients}")));
        }
    }
    rules
}

/// The larger side of the unprivileged ports beside our own UDP port. A client that sends from that port could otherwise
/// take its place in conntrack and receive what is meant for the tunnel (port shadowing).
fn udp_ports(listen_port: Option<u16>) -> Option<String> {
    const FIRST: u16 = 1024;
    let port = listen_port.filter(|&port| port >= FIRST)?;
    let (below, above) = (port - FIRST, u16::MAX - port);
    Some(if below >= above { format!("{FIRST}-{}", port - 1) } else { format!("{}-{}", port + 1, u16::MAX) })
}

/// The addresses and subnets of the peers whose egress this host carries.
fn exit_clients(config: &Config, family: Family) -> Option<String> {
    let exit = config.host.exit.as_ref()?;
    let peers: Vec<_> = exit.peers.iter().filter_map(|name| config.peer(name)).collect();
    let addresses = peers.iter().flat_map(|peer| &peer.addresses).map(|&addr| IpNet::from(addr));
    let nets: BTreeSet<IpNet> =
        addresses.chain(peers.iter().flat_map(|peer| peer.subnets.iter().map(IpNet::trunc))).collect();
    set(nets.iter().filter(|net| Family::of(net) == family))
}

fn keyword(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

/// A rule for each family that has networks.
fn by_family<'a>(
    nets: impl Iterator<Item = &'a IpNet>,
    rule: impl Fn(&str, &str) -> String,
) -> impl Iterator<Item = String> {
    let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) = nets.partition(|net| Family::of(net) == Family::V4);
    let of = |family, nets: Vec<&IpNet>| set(nets.into_iter()).map(|set| rule(keyword(family), &set));
    [of(Family::V4, v4), of(Family::V6, v6)].into_iter().flatten()
}

/// An anonymous set. Networks inside others are left out, because nft refuses sets with overlaps.
fn set<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Option<String> {
    let all: BTreeSet<IpNet> = nets.map(IpNet::trunc).collect();
    let outer = all.iter().filter(|net| !all.iter().any(|other| other != *net && other.contains(*net)));
    let words: Vec<String> = outer.map(|net| plain(*net)).collect();
    (!words.is_empty()).then(|| format!("{{ {} }}", words.join(", ")))
}

/// A single address is written without its prefix length.
fn plain(net: IpNet) -> String {
    let host: IpAddr = net.addr();
    if net.prefix_len() == net.max_prefix_len() { host.to_string() } else { net.to_string() }
}

fn names(names: BTreeSet<&str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

/// Builds the text of a table.
struct Text {
    name: String,
    text: String,
}

impl Text {
    fn new(name: String) -> Self {
        let text = format!("table inet {name} {{\n");
        Self { name, text }
    }

    fn base_chain(&mut self, name: &str, kind: &str, hook: &str, priority: &str, rules: &[String]) {
        if !rules.is_empty() {
            let hook = format!("type {kind} hook {hook} priority {priority}; policy accept;");
            self.block(name, std::iter::once(&hook).chain(rules));
        }
    }

    fn chain(&mut self, name: &str, rules: &[String]) {
        self.block(name, rules.iter());
    }

    fn block<'a>(&mut self, name: &str, lines: impl Iterator<Item = &'a String>) {
        let lines: String = lines.fold(String::new(), |text, line| text + "\t\t" + line + "\n");
        // Writing to a String cannot fail.
        let _ = write!(self.text, "\tchain {name} {{\n{lines}\t}}\n");
    }

    fn finish(self) -> NftTable {
        NftTable { name: self.name, text: self.text + "}\n" }
    }
}
