//! What attached containers may send: under their own addresses alone, and to whom on their bridge.
//!
//! A port speaks Ethernet with one address, and ARP, IPv4 and IPv6 with those of its container; nothing else passes, nor
//! what only a router or a DHCP server says. Neighbour advertisements are held to the addresses that they speak of
//! (RFC 4861, section 11.1: whoever may send any is whoever it likes).
//!
//! Containers of different users do not reach each other, on the bridge or by way of this host, unless one of them was
//! given the other to `reach`. Ports that are not of this agent's making are as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::NftTable;
use super::text::{Text, names};
use crate::attach::Port;

/// `dstnat` and earlier are bridge netfilter's and others' (NF_BR_PRI_NAT_DST_BRIDGED is -300).
const EARLY: &str = "-310";

/// The table of family `bridge`; `None` without containers. A port is elements of sets, not a chain of its own: a hundred
/// chains take nft(8) four times as long.
pub(super) fn ports(name: String, ports: &[Port]) -> Option<NftTable> {
    if ports.is_empty() {
        return None;
    }
    let mut table = Text::new("bridge", name);
    sets(&mut table, ports);
    table.chain("from", &FROM.map(str::to_owned));
    let users: BTreeSet<u32> = ports.iter().map(|port| port.uid).collect();
    for &uid in &users {
        let near: Vec<&Port> = ports.iter().filter(|port| reaches(ports, uid, port)).collect();
        table.chain(&format!("across-{uid}"), &[across(&near)]);
        table.chain(&format!("routed-{uid}"), &routed(&near));
    }
    let across = |port: &Port| format!("\"{}\" : goto across-{}", port.interface, port.uid);
    let forward = [format!("iifname vmap {}", map(ports.iter().map(across)))];
    table.base_chain("prerouting", "filter", "prerouting", EARLY, &["iifname @ports jump from".to_owned()]);
    table.base_chain("forward", "filter", "forward", "filter", &forward);
    table.base_chain("output", "filter", "output", "filter", &by_source(ports));
    Some(table.finish())
}

/// What each port may send, whose sets tell it from the others.
const FROM: [&str; 13] = [
    "iifname . ether saddr != @ethernet counter drop",
    "ether type arp iifname . arp saddr ether != @ethernet counter drop",
    // Before it has the address a container asks whether somebody else has it (RFC 5227).
    "arp saddr ip 0.0.0.0 iifname . arp daddr ip @ipv4 return",
    "iifname . arp saddr ip @ipv4 return",
    "ip protocol udp udp sport 67 counter drop",
    "iifname . ip saddr @ipv4 return",
    "icmpv6 type { nd-router-advert, nd-redirect } counter drop",
    "meta l4proto udp udp sport 547 counter drop",
    // The target, behind eight bytes of ICMPv6 (RFC 4861, section 4.4); nft 1.0.6 has no word for it. With the source ::
    // a container makes sure that nobody has its address (RFC 4862), and says what it listens to (RFC 3810).
    "icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets counter drop",
    "iifname . ip6 saddr @ipv6 return",
    "ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . @th,64,128 @targets return",
    "ip6 saddr :: icmpv6 type mld2-listener-report return",
    "counter drop",
];

fn sets(table: &mut Text, ports: &[Port]) {
    let each = |elements: &dyn Fn(&Port) -> Vec<String>| -> Vec<String> {
        let of = |port: &Port| elements(port).into_iter().map(|of| format!("\"{}\" . {of}", port.interface)).collect();
        ports.iter().flat_map(|port| -> Vec<String> { of(port) }).collect()
    };
    let words = |addrs: Vec<IpAddr>| addrs.iter().map(ToString::to_string).collect();
    let targets = |port: &Port| own(port, false).iter().map(|addr| format!("{:#034x}", bits(*addr))).collect();
    table.set("ports", "type ifname", &ports.iter().map(|port| format!("\"{}\"", port.interface)).collect::<Vec<_>>());
    table.set("ethernet", "type ifname . ether_addr", &each(&|port| vec![port.mac.to_string()]));
    table.set("ipv4", "type ifname . ipv4_addr", &each(&|port| words(own(port, true))));
    table.set("ipv6", "type ifname . ipv6_addr", &each(&|port| words(own(port, false))));
    table.set("targets", "typeof iifname . @th,64,128", &each(&targets));
    for (ip, kind) in [("ip", "ipv4_addr"), ("ip6", "ipv6_addr")] {
        let addrs = by_family(ports.iter().flat_map(|port| &port.addresses)).remove(ip).unwrap_or_default();
        table.set(&format!("{ip}-containers"), &format!("type {kind}"), &words(addrs));
    }
}

/// The addresses of a family, with the link-local one that comes by itself.
fn own(port: &Port, v4: bool) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = port.addresses.iter().copied().filter(|addr| addr.is_ipv4() == v4).collect();
    if !v4 && !own.is_empty() {
        own.push(port.mac.link_local().into());
    }
    own
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// Whether the containers of a user reach this one.
fn reaches(ports: &[Port], uid: u32, port: &Port) -> bool {
    port.uid == uid
        || port.reach.contains(&uid)
        || ports.iter().any(|own| own.uid == uid && own.reach.contains(&port.uid))
}

/// On the bridge, to ports that are not to be reached: whatever it is.
fn across(near: &[&Port]) -> String {
    let interfaces = near.iter().map(|port| port.interface.as_str()).collect();
    format!("oifname @ports oifname != {} counter drop", names(interfaces))
}

/// By way of this host, which routes what a container sends to its gateway's Ethernet address.
fn routed(near: &[&Port]) -> Vec<String> {
    let mut near = by_family(near.iter().flat_map(|port| &port.addresses));
    let rule = |ip: &str| {
        let but = near.remove(ip).map(|addrs| format!(" {ip} daddr != {}", list(&addrs))).unwrap_or_default();
        format!("{ip} daddr @{ip}-containers{but} counter drop")
    };
    ["ip", "ip6"].map(rule).into()
}

fn by_source(ports: &[Port]) -> Vec<String> {
    let mut maps: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for port in ports {
        for (ip, addrs) in by_family(&port.addresses) {
            let goto = |addr: &IpAddr| format!("{addr} : goto routed-{}", port.uid);
            maps.entry(ip).or_default().extend(addrs.iter().map(goto));
        }
    }
    maps.into_iter().map(|(ip, entries)| format!("{ip} saddr vmap {}", map(entries.into_iter()))).collect()
}

fn by_family<'a>(addrs: impl IntoIterator<Item = &'a IpAddr>) -> BTreeMap<&'static str, Vec<IpAddr>> {
    let mut families: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    for addr in addrs {
        families.entry(if addr.is_ipv4() { "ip" } else { "ip6" }).or_default().push(*addr);
    }
    families
}

fn list(addrs: &[IpAddr]) -> String {
    format!("{{ {} }}", addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn map(entries: impl Iterator<Item = String>) -> String {
    format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
}
