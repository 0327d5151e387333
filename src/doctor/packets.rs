//! Packets that have to pass the packet filter, and what drops them.

use std::net::IpAddr;

use super::firewall::{Block, Hook, Packet};
use super::{Remedy, Seen, Target, away, ways};
use crate::config::{Bridge, Config, Egress};
use crate::plan::Family;

/// One packet at one hook.
pub struct Crossing {
    pub hook: Hook,
    pub packet: Packet,
}

/// A connection between two addresses: to port 443, and back.
pub fn stream(iif: &str, oif: &str, source: IpAddr, destination: IpAddr) -> [Crossing; 3] {
    let packet = |oif: Option<&str>| Packet {
        iif: Some(iif.to_owned()),
        oif: oif.map(str::to_owned),
        source,
        destination,
        protocol: "tcp",
        sport: 40_000,
        dport: 443,
        reply: false,
    };
    let back = Packet {
        iif: Some(oif.to_owned()),
        oif: Some(iif.to_owned()),
        source: destination,
        destination: source,
        sport: 443,
        dport: 40_000,
        reply: true,
        ..packet(None)
    };
    [
        Crossing { hook: Hook::Prerouting, packet: packet(None) },
        Crossing { hook: Hook::Forward, packet: packet(Some(oif)) },
        Crossing { hook: Hook::Forward, packet: back },
    ]
}

/// The same for a question to a name server.
pub fn query(iif: &str, oif: &str, source: IpAddr, destination: IpAddr) -> [Crossing; 3] {
    stream(iif, oif, source, destination).map(|mut crossing| {
        let packet = &mut crossing.packet;
        packet.protocol = "udp";
        if packet.reply {
            packet.sport = 53;
        } else {
            packet.dport = 53;
        }
        crossing
    })
}

/// What a bridge's packets have to pass: out by the tunnel, and in from other hosts' bridges.
pub fn of_bridge(config: &Config, seen: &Seen, target: &Target, bridge: &Bridge) -> Vec<Crossing> {
    let (name, tunnel) = (bridge.name.as_str(), config.host.interface.as_str());
    let mut crossings = Vec::new();
    for container in ways::containers(target, bridge) {
        let family = Family::of(&container.into());
        let there = away(&seen.internet, family);
        if matches!(bridge.egress, Egress::Peers(_)) {
            crossings.extend(stream(name, tunnel, container, there));
            crossings.extend(query(name, tunnel, container, there));
            // As it comes in, it already bears the container's address.
            let mut reply = stream(tunnel, name, there, container).map(|crossing| crossing.packet)[0].clone();
            reply.reply = true;
            crossings.push(Crossing { hook: Hook::Prerouting, packet: reply });
        }
        let subnets = config.peers.iter().flat_map(|peer| &peer.subnets).filter(|net| Family::of(net) == family);
        let Some(remote) = subnets.map(|&net| ways::container(net)).next() else { continue };
        let named = bridge.subnets.iter().flat_map(|&net| seen.ruleset.destinations_in(net));
        let named = named.filter(|addr| Family::of(&(*addr).into()) == family && target.container(name).is_none());
        for to in named.chain([container]) {
            crossings.extend(stream(tunnel, name, remote, to));
        }
    }
    crossings
}

/// What drops any of these, once for each base chain, with all that is to be let through there.
pub fn blocks(seen: &Seen, crossings: &[Crossing]) -> Vec<(Hook, Block, Remedy)> {
    // Another agent's too: it is named by itself.
    let ours = |table: &str| table == "meshd" || table.starts_with("meshd_");
    let mut found: Vec<(Hook, Block, Vec<&Packet>)> = Vec::new();
    for Crossing { hook, packet } in crossings {
        let Some(block) = seen.ruleset.verdict(*hook, packet, &ours) else { continue };
        match found.iter_mut().find(|(_, known, _)| known.base == block.base) {
            Some((.., packets)) => packets.push(packet),
            None => found.push((*hook, block, vec![packet])),
        }
    }
    let remedy = |(hook, block, packets): (Hook, Block, Vec<&Packet>)| {
        // A rule for one port is answered with one for that port.
        let udp = packets.iter().all(|packet| packet.protocol == "udp");
        let mut commands = Vec::new();
        for packet in packets {
            let extra = match (udp, packet.reply) {
                (false, _) => String::new(),
                (true, false) => format!(" udp dport {}", packet.dport),
                (true, true) => format!(" udp sport {}", packet.sport),
            };
            let way = (packet.iif.as_deref(), packet.oif.as_deref());
            for command in block.remedy(hook, &[way], &extra) {
                if !commands.contains(&command) {
                    commands.push(command);
                }
            }
        }
        let remedy = Remedy::run(commands);
        (hook, block, remedy)
    };
    found.into_iter().map(remedy).collect()
}
