//! Published ports.

use ipnet::IpNet;

use super::super::Family;
use super::exits::Exits;
use super::text::keyword;
use crate::config::{Config, Protocol};

pub(super) fn published(config: &Config, exits: &Exits) -> Vec<String> {
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
