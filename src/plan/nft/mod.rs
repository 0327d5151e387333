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

mod exits;
mod guard;
mod policy;
mod publish;
mod source;
mod text;

pub use exits::Exits;
pub use guard::{guard, holds};

pub(super) use exits::outside;

use super::{HostFacts, NftTable};
use crate::config::Config;
use text::{Text, names};

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
    table.base_chain("prerouting", "nat", "prerouting", "dstnat", &publish::published(config, exits));
    table.base_chain("forward", "filter", "forward", "filter", &forward);
    table.chain("from-tunnel", &policy::from_tunnel(config, exits));
    if !outside.is_empty() {
        table.chain("into-tunnel", &policy::into_tunnel(config));
    }
    table.base_chain("keep-source", "nat", "postrouting", "srcnat - 1", &source::kept(config));
    table.base_chain("postrouting", "nat", "postrouting", "srcnat", &exits::masquerade(config, facts, exits));
    table.finish()
}
