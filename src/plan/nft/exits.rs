//! The interfaces by which exit traffic leaves, whose traffic that is, and how it is masqueraded.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::{Family, HostFacts};
use super::text::{keyword, set};
use crate::config::{Config, Egress};

/// The interfaces by which exit traffic leaves and published ports are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exits {
    v4: Option<String>,
    v6: Option<String>,
}

impl Exits {
    /// From `[exit].interface` or the default routes; nothing when neither an exit nor a published port needs them.
    pub(in super::super) fn new(config: &Config, facts: &HostFacts, warnings: &mut Vec<String>) -> Self {
        let host = &config.host;
        let carries = host.exit.as_ref().is_some_and(|exit| exit.egress == Egress::Direct);
        if !carries && host.publish.is_empty() {
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

    /// Of one family.
    pub(in super::super) fn of(&self, family: Family) -> Option<&String> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// The interfaces outside of mesh and bridges by which something of ours comes in.
pub(in super::super) fn outside(config: &Config, facts: &HostFacts, exits: &Exits) -> BTreeSet<String> {
    let host = &config.host;
    let mut devices: BTreeSet<String> = exits.v4.iter().chain(&exits.v6).cloned().collect();
    devices.extend(host.lans.iter().map(|lan| lan.interface.clone()));
    let guarded = host.bridges.iter().filter(|bridge| bridge.egress != Egress::Direct);
    let allowed = guarded.flat_map(|bridge| &bridge.allow).filter(|net| net.prefix_len() > 0);
    devices.extend(allowed.filter_map(|net| facts.covering(*net)?.device.clone()));
    devices.retain(|device| *device != host.interface && !host.bridges.iter().any(|bridge| bridge.name == *device));
    devices
}

/// LANs first: what goes to one of them without masquerading must not be masqueraded for the exit's sake.
pub(super) fn masquerade(config: &Config, facts: &HostFacts, exits: &Exits) -> Vec<String> {
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

/// Where an exit's clients may not go, which is the exit host's side: private, shared, link-local (cloud metadata), loopback,
/// multicast and reserved (RFC 6890), the IPv6 prefixes that embed such addresses, and the networks that the exit host
/// itself is attached to, which at home is a LAN on a public prefix.
pub(super) fn private(facts: &HostFacts, family: Family, exit: &str) -> String {
    let attached = facts.main.iter().filter(|route| {
        // One on the link that is larger is half a default route, or a whole one, of a point-to-point device.
        route.gateway.is_none() && route.device.as_deref() == Some(exit) && route.destination.prefix_len() >= 8
    });
    let nets = PRIVATE.iter().chain(attached.map(|route| &route.destination));
    set(nets.filter(|net| Family::of(net) == family)).unwrap_or_default()
}

/// Whether an exit would carry a packet to this address, as far as the address alone tells.
pub fn is_public(addr: IpAddr) -> bool {
    !PRIVATE.iter().any(|net| net.contains(&addr))
}

const PRIVATE: [IpNet; 15] = [
    v4(0, 0, 8),
    v4(10, 0, 8),
    v4(100, 64, 10),
    v4(127, 0, 8),
    v4(169, 254, 16),
    v4(172, 16, 12),
    v4(192, 168, 16),
    v4(224, 0, 3),
    v6([0; 8], 96),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn v4(first: u8, second: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), prefix))
}

const fn v6(s: [u16; 8], prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), prefix))
}

/// The larger side of the unprivileged ports beside our own UDP port. A client that sends from that port could otherwise
/// take its place in conntrack and receive what is meant for the tunnel (port shadowing).
fn udp_ports(listen_port: Option<u16>) -> Option<String> {
    const FIRST: u16 = 1024;
    let port = listen_port?;
    if port < FIRST {
        return Some(format!("{FIRST}-{}", u16::MAX));
    }
    let (below, above) = (port - FIRST, u16::MAX - port);
    Some(if below >= above { format!("{FIRST}-{}", port - 1) } else { format!("{}-{}", port + 1, u16::MAX) })
}

/// The addresses and subnets of the peers whose egress this host carries itself.
pub(super) fn exit_clients(config: &Config, family: Family) -> Option<String> {
    let exit = config.host.exit.as_ref().filter(|exit| exit.egress == Egress::Direct)?;
    let peers: Vec<_> = exit.peers.iter().filter_map(|name| config.peer(name)).collect();
    let addresses = peers.iter().flat_map(|peer| &peer.addresses).map(|&addr| IpNet::from(addr));
    let nets: BTreeSet<IpNet> =
        addresses.chain(peers.iter().flat_map(|peer| peer.subnets.iter().map(IpNet::trunc))).collect();
    set(nets.iter().filter(|net| Family::of(net) == family))
}
