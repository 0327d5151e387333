//! The two nft tables, as text that nft(8) reads and a person can.
//!
//! **The guard** is a second lock beside the routes and independent of them. What enters by an egress bridge, or bears an
//! address of one, may be forwarded only into the tunnel, to a bridge of this host or to an `allow` network.
//!
//! It drops and does not reject. The kind answer comes from the first lock, the `unreachable` route; a reject would send an
//! ICMP error from this host's own address to whatever source the packet names. For the same reason it drops what
//! a container sends under an address that is not of its bridge, before routing: otherwise a container could have the
//! host's ICMP errors and echo replies (TTL 1, `unreachable`, a ping to the host's LAN address) sent past the tunnel to
//! anybody, which gives the home address away. Nor may this host send errors of its own about what came out of the tunnel.
//!
//! The one way out beside tunnel, bridges and `allow` networks is for answers: to clients that reached the container by a
//! port which this host publishes. Conntrack tells them from all else, so a container cannot begin anything that way.
//!
//! **The filter** holds what a working tunnel needs: fixed MSS values (`rt mtu` would ask the reverse route without its
//! source, and be wrong under policy routing), masquerading, published ports, who may not speak as whom (`sources`), and
//! what may pass between the tunnel and other interfaces or this host itself (`policy`), so that switching forwarding on
//! does not make the host a router by accident.

mod errors;
mod exits;
mod guard;
mod policy;
mod ports;
mod publish;
mod sources;
mod text;

pub use exits::{Exits, is_public};
pub use guard::{guard, holds};

pub(super) use exits::outside;

use super::{HostFacts, NftTable};
use crate::attach::Port;
use crate::config::Config;
use text::{Text, inside, names};

/// The guard's name: `meshd_guard`, or `meshd_guard_IFACE` for an agent whose interface is not `mesh0`.
pub fn guard_name(interface: &str) -> String {
    name("meshd_guard", interface)
}

/// The filter's name: `meshd` or `meshd_IFACE`.
pub fn filter_name(interface: &str) -> String {
    name("meshd", interface)
}

/// The name of the ports' table: `meshd_ports` or `meshd_ports_IFACE`.
pub fn ports_name(interface: &str) -> String {
    name("meshd_ports", interface)
}

/// What attached containers may send; `None` without any.
pub fn ports(interface: &str, ports: &[Port]) -> Option<NftTable> {
    ports::ports(ports_name(interface), ports)
}

fn name(base: &str, interface: &str) -> String {
    if interface == "mesh0" {
        return base.to_owned();
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    format!("{base}_{}", interface.chars().map(plain).collect::<String>())
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
    forward.push(format!("iifname != {} oifname \"{interface}\" goto into-tunnel", names(inside(config))));

    let mut table = Text::new("inet", filter_name(interface));
    table.base_chain("sources", "filter", "prerouting", "raw", &sources::spoofed(config));
    table.base_chain("input", "filter", "input", "filter", &[format!("iifname \"{interface}\" goto to-host")]);
    table.base_chain("back", "filter", "prerouting", "mangle", &publish::back(config));
    table.base_chain("back-from-host", "route", "output", "mangle", &publish::back_from_host(config));
    let published = publish::published(config, facts, exits);
    table.base_chain("prerouting", "nat", "prerouting", "dstnat", &published.prerouting);
    table.base_chain("output", "nat", "output", "-100", &published.output);
    if !published.ports.is_empty() {
        table.chain("published", &published.ports);
    }
    table.base_chain("forward", "filter", "forward", "filter", &forward);
    policy::from_tunnel(&mut table, config, facts, exits);
    table.chain("into-tunnel", &policy::into_tunnel(config));
    table.base_chain("keep-source", "nat", "postrouting", "srcnat - 1", &sources::kept(config));
    let masquerade = [published.masquerade, exits::masquerade(config, facts, exits)].concat();
    table.base_chain("postrouting", "nat", "postrouting", "srcnat", &masquerade);
    table.finish()
}
