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
use super::text::{Text, chain_name, names};
use crate::attach::Port;

/// `dstnat` and earlier are bridge netfilter's and others' (NF_BR_PRI_NAT_DST_BRIDGED is -300).
const EARLY: &str = "-310";

/// The table of family `bridge`; `None` without containers.
pub(super) fn ports(name: String, ports: &[Port]) -> Option<NftTable> {
    if ports.is_empty() {
        return None;
    }
    let mut table = Text::new("bridge", name);
    for port in ports {
        table.chain(&of_port(port), &from(port));
    }
    let users: BTreeSet<u32> = ports.iter().map(|port| port.uid).collect();
    for &uid in &users {
        let (near, far): (Vec<&Port>, Vec<&Port>) = ports.iter().partition(|port| reaches(ports, uid, port));
        debug_assert!(!near.is_empty(), "one's own");
        table.chain(&format!("across-{uid}"), &across(&far));
        table.chain(&format!("routed-{uid}"), &routed(&far));
    }
    let jump = |port: &Port| format!("\"{}\" : jump {}", port.interface, of_port(port));
    let across = |port: &Port| format!("\"{}\" : goto across-{}", port.interface, port.uid);
    let prerouting = [format!("iifname vmap {}", map(ports.iter().map(jump)))];
    let forward = [format!("iifname vmap {}", map(ports.iter().map(across)))];
    table.base_chain("prerouting", "filter", "prerouting", EARLY, &prerouting);
    table.base_chain("forward", "filter", "forward", "filter", &forward);
    table.base_chain("output", "filter", "output", "filter", &by_source(ports));
    Some(table.finish())
}

fn of_port(port: &Port) -> String {
    chain_name("from", &port.interface)
}

/// Whether the containers of a user reach this one.
fn reaches(ports: &[Port], uid: u32, port: &Port) -> bool {
    port.uid == uid
        || port.reach.contains(&uid)
        || ports.iter().any(|own| own.uid == uid && own.reach.contains(&port.uid))
}

fn from(port: &Port) -> Vec<String> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = port.addresses.iter().partition(|addr| addr.is_ipv4());
    let mac = port.mac;
    let mut rules = vec![format!("ether saddr != {mac} counter drop")];
    if !v4.is_empty() {
        let own = list(&v4);
        // Before it has the address a container asks whether somebody else has it (RFC 5227).
        let probe = list(v4.iter().copied().chain([IpAddr::from([0; 4])]).collect::<Vec<_>>().as_slice());
        rules.push(format!("arp saddr ether {mac} arp saddr ip {probe} return"));
        rules.push("ip protocol udp udp sport 67 counter drop".to_owned());
        rules.push(format!("ip saddr {own} return"));
    }
    if !v6.is_empty() {
        let own: Vec<IpAddr> = v6.iter().copied().chain([mac.link_local().into()]).collect();
        rules.push("icmpv6 type { nd-router-advert, nd-redirect } counter drop".to_owned());
        rules.push("meta l4proto udp udp sport 547 counter drop".to_owned());
        // The target, behind eight bytes of ICMPv6 (RFC 4861, section 4.4); nft 1.0.6 has no word for it.
        let targets: Vec<String> = own.iter().map(|addr| format!("{:#034x}", bits(*addr))).collect();
        rules.push(format!("icmpv6 type nd-neighbor-advert @th,64,128 != {{ {} }} counter drop", targets.join(", ")));
        rules.push(format!("ip6 saddr {} return", list(&own)));
        // As long as it makes sure that nobody has its address (RFC 4862), and says what it listens to (RFC 3810).
        rules.push("ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld2-listener-report } return".to_owned());
    }
    rules.push("counter drop".to_owned());
    rules
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

/// On the bridge, to ports that are not to be reached: whatever it is.
fn across(far: &[&Port]) -> Vec<String> {
    let interfaces: BTreeSet<&str> = far.iter().map(|port| port.interface.as_str()).collect();
    if interfaces.is_empty() { Vec::new() } else { vec![format!("oifname {} counter drop", names(interfaces))] }
}

/// By way of this host, which routes what a container sends to its gateway's Ethernet address.
fn routed(far: &[&Port]) -> Vec<String> {
    by_family(far.iter().flat_map(|port| &port.addresses))
        .into_iter()
        .map(|(ip, addrs)| format!("{ip} daddr {} counter drop", list(&addrs)))
        .collect()
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
