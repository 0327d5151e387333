//! What other firewalls drop of what should pass, by name.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::rules::{Chain, Condition, Maker, Packet, Rule, Stage, What};
use super::{Exception, Firewalls, Position, ZONE, ZONE_CHAINS, walk};
use crate::config::Config;
use crate::plan::nft::Exits;
use crate::plan::{Family, HostFacts};

/// A rule or policy of another firewall that drops what meshd needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// What it would be: `br0` to `mesh0`, for instance.
    pub packet: Packet,
    /// `table ip filter, chain FORWARD`
    pub place: String,
    /// The rule as its program writes it, or `policy drop`.
    pub rule: String,
    /// False when a rule before it might have accepted the packet for reasons that cannot be told from here.
    pub certain: bool,
    /// The command that lets it pass.
    pub remedy: String,
}

/// All that is still dropped once our exceptions are in place.
pub fn blocked(config: &Config, facts: &HostFacts) -> Vec<Blocked> {
    let firewalls = &facts.firewalls;
    if firewalls.chains.is_empty() {
        return Vec::new();
    }
    let exits = Exits::new(config, facts, &mut Vec::new());
    let exceptions = super::exceptions(config, facts, &exits);
    let chains = with(firewalls, exceptions.iter(), super::zones(config, facts).iter());
    let mut found: Vec<Blocked> = Vec::new();
    for packet in packets(config, firewalls, &exits) {
        for drop in walk::drops(&chains, &packet) {
            let one = describe(&drop, packet.clone());
            let same =
                |other: &Blocked| (&other.place, &other.rule, &other.remedy) == (&one.place, &one.rule, &one.remedy);
            if !found.iter().any(same) {
                found.push(one);
            }
        }
    }
    found
}

/// The chains as they will be with our exceptions.
fn with<'a>(
    firewalls: &Firewalls,
    exceptions: impl Iterator<Item = (&'a Exception, &'a Position)>,
    zones: impl Iterator<Item = &'a String>,
) -> Vec<Chain> {
    let mut chains = firewalls.chains.clone();
    for (exception, position) in exceptions {
        let own = |chain: &&mut Chain| {
            (chain.maker, chain.family, &chain.table, &chain.name)
                == (exception.maker, Some(exception.family), &exception.table, &exception.chain)
        };
        if let Some(chain) = chains.iter_mut().find(own) {
            let index = position.map_or(chain.rules.len(), |number| number - 1);
            chain.rules.insert(index, exception.rule());
        }
    }
    for interface in zones {
        let rule = Rule::accepting(vec![Condition::of(What::Input(vec![interface.clone()]))]);
        for chain in chains.iter_mut().filter(|chain| ZONE_CHAINS.contains(&chain.name.as_str())) {
            chain.rules.insert(0, rule.clone());
        }
    }
    chains
}

/// One packet for each way that should be open: bridge to mesh, mesh to bridge, exit's client to the internet.
fn packets(config: &Config, firewalls: &Firewalls, exits: &Exits) -> Vec<Packet> {
    const PUBLIC: [&str; 2] = ["9.9.9.9", "2620:fe::fe"];
    let tunnel = &config.host.interface;
    let peer = |family| {
        let addresses = config.peers.iter().flat_map(|peer| &peer.addresses);
        addresses.copied().find(|&addr| Family::of(&IpNet::from(addr)) == family)
    };
    let packet = |input: &str, output: &str, source: IpAddr, destination: IpAddr| Packet {
        input: input.to_owned(),
        output: output.to_owned(),
        source,
        destination,
    };
    let mut packets = Vec::new();
    for bridge in &config.host.bridges {
        for subnet in bridge.subnets.iter().map(IpNet::trunc) {
            let (Some(peer), Some(container)) = (peer(Family::of(&subnet)), subnet.hosts().nth(1)) else { continue };
            packets.push(packet(&bridge.name, tunnel, container, peer));
            let containers = std::iter::once(container).chain(singled_out(firewalls, subnet));
            packets.extend(containers.map(|container| packet(tunnel, &bridge.name, peer, container)));
        }
    }
    let clients = config.host.exit.iter().flat_map(|exit| &exit.peers).filter_map(|name| config.peer(name));
    for client in clients.take(1) {
        for &source in &client.addresses {
            let family = Family::of(&IpNet::from(source));
            let public = PUBLIC[usize::from(family == Family::V6)].parse();
            if let (Some(exit), Ok(public)) = (exits.of(family), public) {
                packets.push(packet(tunnel, exit, source, public));
            }
        }
    }
    packets
}

/// Addresses of a network that some rule before routing names, as Docker's do for each container.
fn singled_out(firewalls: &Firewalls, subnet: IpNet) -> impl Iterator<Item = IpAddr> {
    let early = firewalls.chains.iter().filter(|chain| chain.hook.is_some_and(|hook| hook.stage == Stage::Prerouting));
    let conditions = early.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.conditions);
    let nets = conditions.filter_map(|one| if let What::Destination(nets) = &one.what { Some(nets) } else { None });
    nets.flatten().filter(move |net| subnet.contains(*net)).map(IpNet::addr)
}

fn describe(drop: &walk::Drop<'_>, packet: Packet) -> Blocked {
    let chain = drop.chain;
    let family = match chain.family {
        None => "inet",
        Some(Family::V4) => "ip",
        Some(Family::V6) => "ip6",
    };
    let policy = || "policy drop".to_owned();
    let rule = drop.rule.and_then(|number| chain.rules.get(number - 1)).map_or_else(policy, |rule| rule.text.clone());
    Blocked {
        place: format!("table {family} {}, chain {}", chain.table, chain.name),
        rule,
        certain: drop.certain,
        remedy: remedy(drop, family, &packet),
        packet,
    }
}

fn remedy(drop: &walk::Drop<'_>, family: &str, packet: &Packet) -> String {
    let Packet { input, output, destination, .. } = packet;
    let (table, base) = (&drop.base.table, &drop.base.name);
    let early = drop.base.hook.is_some_and(|hook| hook.stage == Stage::Prerouting);
    if table == "firewalld" || ZONE_CHAINS.contains(&drop.chain.name.as_str()) {
        return format!("firewall-cmd --zone={ZONE} --change-interface={input}");
    }
    if table == "docker-bridges" {
        let version = if packet.family() == Family::V4 { "ipv4" } else { "ipv6" };
        return format!(
            "create the Docker network with -o com.docker.network.bridge.gateway_mode_{version}=nat-unprotected"
        );
    }
    if drop.base.maker == Maker::Nft {
        let keyword = if packet.family() == Family::V4 { "ip" } else { "ip6" };
        let to = if early { format!("{keyword} daddr {destination}") } else { format!("oifname \"{output}\"") };
        return format!("nft insert rule {family} {table} {base} iifname \"{input}\" {to} accept");
    }
    let program = if packet.family() == Family::V4 { "iptables" } else { "ip6tables" };
    let legacy = if drop.base.maker == Maker::Legacy { "-legacy" } else { "" };
    let table = if table == "filter" { String::new() } else { format!(" -t {table}") };
    let to = if early { format!("-d {destination}") } else { format!("-o {output}") };
    format!("{program}{legacy}{table} -I {base} -i {input} {to} -j ACCEPT")
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { input, output, .. } = &self.packet;
        let drops = if self.certain { "drops" } else { "may drop" };
        write!(
            f,
            "{} {drops} what goes from {input} to {output} ({}); to let it pass: {}",
            self.place, self.rule, self.remedy
        )
    }
}
