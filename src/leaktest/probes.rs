//! What a container might send astray: where to, and in which shapes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::packet::{EXPERIMENT, Way};
use super::report::NAME_SERVER;
use super::{Leg, Run, address_in};
use crate::config::{Bridge, Config, Peer};
use crate::plan::HostFacts;

/// Networks of the main table that are tried, of each family; others by chance in the next run.
const MAX_NETWORKS: usize = 16;

/// Somewhere a packet of a container may not go but through the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// What it stands for.
    pub what: String,
    /// How much is tried.
    pub effort: Effort,
    /// Nobody but a probe has a reason to ask for its hardware address.
    pub unused: bool,
    /// Another such address in the same network, for a container to lie with.
    pub alias: Option<IpAddr>,
}

/// What is sent to a [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Everything there is.
    Full,
    /// ICMP, UDP, TCP and DNS.
    Some,
    /// A UDP datagram.
    Datagram,
    /// A question to a name server.
    Dns,
    /// An echo request, whose answer is waited for.
    Echo,
    /// What may be answered: echo, TCP to 80 and 443, DNS.
    Answer,
}

/// One packet, or the fragments of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The leg that it leaves from, counted from 0.
    pub leg: usize,
    /// Protocol and port, as `tcp 443`.
    pub shape: String,
    /// What its destination stands for.
    pub what: String,
    /// Whether an answer proves something.
    pub answer: bool,
    pub(super) way: Way,
    /// A destination port that nobody else uses with this destination.
    pub(super) port: Option<(u8, u16)>,
    /// The port that answers to a TCP probe come to.
    pub(super) reply: Option<u16>,
    /// An address that nobody else has a reason to ask for.
    pub(super) unused: Option<IpAddr>,
    /// IP packets.
    pub packets: Vec<Vec<u8>>,
}

impl Probe {
    /// Where it goes to.
    pub fn destination(&self) -> IpAddr {
        self.way.destination
    }
}

/// Where packets of a leg might go. `known` are addresses that this host has to do with already, `endpoints` the outer addresses of the exits, `to` what the operator wants to be
/// answered through the tunnel.
pub fn targets(
    config: &Config,
    facts: &HostFacts,
    run: &Run,
    leg: &Leg,
    known: &[IpAddr],
    endpoints: &[IpAddr],
    to: &[IpAddr],
) -> Vec<Target> {
    let target = |address: IpAddr, what: &str, effort| Target {
        address,
        what: what.to_owned(),
        effort,
        unused: false,
        alias: None,
    };
    let mut targets: Vec<Target> =
        places(leg.address).into_iter().map(|(address, what, effort)| target(address, what, effort)).collect();
    let ours = |address: &&IpAddr| address.is_ipv4() == leg.address.is_ipv4();
    targets
        .extend(endpoints.iter().filter(ours).map(|&address| target(address, "the exit's own address", Effort::Some)));

    let bridges: Vec<&str> = config.host.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
    let beside = |device: &&String| **device != config.host.interface && !bridges.contains(&device.as_str());
    let main = facts.main.iter().filter(|route| route.destination.addr().is_ipv4() == leg.address.is_ipv4());
    let main: Vec<_> = main.filter_map(|route| Some((route, route.device.as_ref().filter(beside)?))).collect();
    for (route, device) in &main {
        if let Some(router) = route.gateway.filter(|router| targets.iter().all(|target| target.address != *router)) {
            // A link-local one is a router on any link, the bridge included.
            targets.push(target(router, &format!("the router on {device}"), Effort::Some));
        }
    }
    let networks: Vec<_> = main.iter().filter(|(route, _)| route.destination.prefix_len() > 0).collect();
    let first = (run.random(1) as usize).checked_rem(networks.len()).unwrap_or(0);
    for (at, (route, device)) in networks.iter().cycle().skip(first).take(networks.len().min(MAX_NETWORKS)).enumerate()
    {
        let net = route.destination;
        // A neighbour that the host knows, it may ask for again.
        let strangers = (0..16).filter_map(|n| address_in(net, run.random(0x2000 + 16 * at as u64 + n), false));
        let mut strangers = strangers.filter(|address| !known.contains(address));
        let mut stranger = || strangers.find(|address| targets.iter().all(|target| target.address != *address));
        let Some(address) = stranger().or(Some(net.addr()).filter(|_| net.prefix_len() == net.max_prefix_len())) else {
            continue;
        };
        let unused = route.gateway.is_none() && net.prefix_len() + 2 <= net.max_prefix_len();
        let alias = stranger().filter(|alias| unused && *alias != address);
        targets.push(Target { unused, alias, ..target(address, &format!("{net} on {device}"), Effort::Some) });
    }
    let allowed = |address: IpAddr| at_home(config, leg, address);
    targets.retain(|target| !allowed(target.address));

    // Asked for on the bridge itself: what the host's own name server makes of it is the question.
    targets.push(target(leg.gateway, NAME_SERVER, Effort::Dns));
    let exits = exits(config, &leg.bridge).into_iter().flat_map(|peer| &peer.addresses).filter(ours);
    targets.extend(exits.map(|&address| target(address, "the exit", Effort::Echo)));
    targets.extend(to.iter().filter(ours).map(|&address| target(address, "--to", Effort::Answer)));
    targets
}

/// Addresses that stand for whole kinds of them. None is anybody's whom a packet might disturb.
fn places(family: IpAddr) -> Vec<(IpAddr, &'static str, Effort)> {
    const INTERNET: &str = "the internet";
    const PRIVATE: &str = "a private network";
    const METADATA: &str = "the metadata service";
    const MULTICAST: &str = "a multicast group";
    let v4 = |a, b, c, d| IpAddr::from(Ipv4Addr::new(a, b, c, d));
    let v6 = |text: [u16; 8]| IpAddr::from(Ipv6Addr::from(text));
    if family.is_ipv4() {
        return vec![
            // TEST-NET-1 and -2 (RFC 5737); private networks lie in both halves of the address space, which pushed routes
            // to 0.0.0.0/1 and 128.0.0.0/1 tell apart.
            (v4(192, 0, 2, 1), INTERNET, Effort::Full),
            (v4(198, 51, 100, 1), INTERNET, Effort::Some),
            (v4(10, 255, 255, 254), PRIVATE, Effort::Some),
            (v4(172, 31, 255, 254), PRIVATE, Effort::Some),
            (v4(192, 168, 255, 254), PRIVATE, Effort::Some),
            (v4(100, 127, 255, 254), "the carrier's network", Effort::Some),
            (v4(169, 254, 169, 254), METADATA, Effort::Some),
            (v4(239, 255, 255, 88), MULTICAST, Effort::Datagram),
        ];
    }
    vec![
        // RFC 3849, RFC 9637, RFC 4193; the metadata service of one large cloud.
        (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]), INTERNET, Effort::Full),
        (v6([0x3fff, 0, 0, 0, 0, 0, 0, 1]), INTERNET, Effort::Some),
        (v6([0xfdff, 0xffff, 0xffff, 0, 0, 0, 0, 1]), PRIVATE, Effort::Some),
        (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), METADATA, Effort::Some),
        (v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe]), "a link-local address", Effort::Some),
        (v6([0xff0e, 0, 0, 0, 0, 0, 0, 0x8888]), MULTICAST, Effort::Datagram),
    ]
}

/// Whether the leg may go there without the tunnel, or goes through it as a peer's neighbour.
fn at_home(config: &Config, leg: &Leg, address: IpAddr) -> bool {
    let host = &config.host;
    let allowed = bridge(config, &leg.bridge).into_iter().flat_map(|bridge| &bridge.allow);
    let local = host.bridges.iter().flat_map(|bridge| &bridge.subnets);
    let remote = config.peers.iter().flat_map(|peer| &peer.subnets);
    let mut nets = allowed.chain(local).chain(remote).chain(&host.addresses);
    leg.subnet.contains(&address) || nets.any(|net: &IpNet| net.contains(&address))
}

fn bridge<'a>(config: &'a Config, name: &str) -> Option<&'a Bridge> {
    config.host.bridges.iter().find(|bridge| bridge.name == name)
}

/// The peers that a bridge may leave through.
fn exits<'a>(config: &'a Config, name: &str) -> Vec<&'a Peer> {
    let exits = bridge(config, name).map(|bridge| bridge.egress.exits()).unwrap_or_default();
    exits.iter().filter_map(|name| config.peer(name)).collect()
}

/// All probes of one leg, numbered from `first`.
pub fn probes(run: &Run, leg: usize, from: &Leg, targets: &[Target], first: usize) -> Vec<Probe> {
    let mut writer = Writer { run, leg, source: from.address, first, probes: Vec::new() };
    for target in targets {
        writer.aim(target);
        if target.effort == Effort::Full {
            writer.spoof(target, targets);
        }
    }
    writer.probes
}

struct Writer<'a> {
    run: &'a Run,
    leg: usize,
    source: IpAddr,
    first: usize,
    probes: Vec<Probe>,
}

impl Writer<'_> {
    fn aim(&mut self, target: &Target) {
        match target.effort {
            Effort::Full => {
                self.each_protocol(target);
                for port in [80, 443, 853, 53] {
                    self.tcp(target, Some(port));
                }
                for port in [123, 443, 3478] {
                    self.udp(target, Some(port));
                }
                self.add(target, "udp in fragments", |way, port, marker| {
                    way.fragments(port, (port, port), marker).into()
                });
                self.add(target, "protocol 253", |way, _, marker| vec![way.packet(EXPERIMENT, marker)]);
            }
            Effort::Some => self.each_protocol(target),
            Effort::Datagram => self.udp(target, None),
            Effort::Dns => self.dns(target),
            Effort::Echo => self.echo(target),
            Effort::Answer => {
                self.echo(target);
                for port in [80, 443] {
                    self.tcp(target, Some(port));
                }
                self.dns(target);
            }
        }
    }

    fn each_protocol(&mut self, target: &Target) {
        self.echo(target);
        self.udp(target, None);
        self.tcp(target, None);
        self.dns(target);
    }

    fn echo(&mut self, target: &Target) {
        self.add(target, "icmp", |way, id, marker| vec![way.echo(id, marker)]);
    }

    fn dns(&mut self, target: &Target) {
        self.add(target, "dns", |way, port, marker| vec![way.dns(port, port, marker)]);
    }

    fn udp(&mut self, target: &Target, to: Option<u16>) {
        let shape = to.map_or("udp".to_owned(), |port| format!("udp {port}"));
        let probe = self.add(target, &shape, |way, port, marker| vec![way.udp((port, to.unwrap_or(port)), marker)]);
        probe.port = probe.reply.filter(|_| to.is_none()).map(|port| (super::packet::UDP, port));
    }

    fn tcp(&mut self, target: &Target, to: Option<u16>) {
        let shape = to.map_or("tcp".to_owned(), |port| format!("tcp {port}"));
        let sequence = self.run.random(0x3000 + self.probes.len() as u64) as u32;
        let probe =
            self.add(target, &shape, |way, port, marker| vec![way.syn((port, to.unwrap_or(port)), sequence, marker)]);
        probe.port = probe.reply.filter(|_| to.is_none()).map(|port| (super::packet::TCP, port));
    }

    /// Under an address of the internet, and of each network that this host is attached to.
    fn spoof(&mut self, target: &Target, targets: &[Target]) {
        let stranger = places(self.source).get(1).map(|place| place.0);
        let neighbours = targets.iter().filter_map(|target| target.alias);
        let own = self.source;
        for source in stranger.into_iter().chain(neighbours) {
            self.source = source;
            let shape = format!("udp as {source}");
            let probe = self.add(target, &shape, |way, port, marker| vec![way.udp((port, port), marker)]);
            probe.unused = Some(source).filter(|source| Some(*source) != stranger);
        }
        self.source = own;
    }

    fn add(
        &mut self,
        target: &Target,
        shape: &str,
        packets: impl FnOnce(Way, u16, &[u8]) -> Vec<Vec<u8>>,
    ) -> &mut Probe {
        let number = (self.first + self.probes.len()) as u16;
        let way = Way { source: self.source, destination: target.address };
        let port = self.run.port(number);
        self.probes.push(Probe {
            leg: self.leg,
            shape: shape.to_owned(),
            what: target.what.clone(),
            answer: matches!(target.effort, Effort::Echo | Effort::Answer),
            way,
            port: None,
            reply: Some(port),
            unused: Some(target.address).filter(|_| target.unused),
            packets: packets(way, port, &self.run.marker(number)),
        });
        let last = self.probes.len() - 1;
        &mut self.probes[last]
    }
}
