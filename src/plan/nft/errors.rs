//! Errors that this host would send past the tunnel about what came out of it.
//!
//! A packet for a container that is gone, or one with too few hops left, makes the kernel tell its sender so, by the route
//! to the sender and under the address towards it. When the packet came out of the tunnel, that shows the home address to
//! whoever sends a published port or an answer with a small TTL. The error quotes the packet, and so tells which ones to drop.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::Family;
use super::text::{inside, keyword, names, set};
use crate::config::Config;

/// For the output of this host: errors about packets for these networks go to bridges, into the tunnel or to `allow` networks.
pub(super) fn errors(config: &Config, nets: &[IpNet], allow: &[IpNet]) -> Vec<String> {
    let mut inside = inside(config);
    inside.insert("lo");
    let rule = |net: &IpNet| {
        let family = Family::of(net);
        let allowed = set(allow.iter().filter(|it| Family::of(it) == family && it.prefix_len() > 0));
        let allowed = allowed.map(|nets| format!("{} daddr != {nets} ", keyword(family))).unwrap_or_default();
        let error = match family {
            Family::V4 => "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
            Family::V6 => "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
        };
        format!("oifname != {} {allowed}{error} {} counter drop", names(inside.clone()), quoted_destination(net))
    };
    nets.iter().map(rule).collect()
}

/// The destination in the IP header that follows the eight bytes of an ICMP error's own (RFC 792, RFC 4443).
fn quoted_destination(net: &IpNet) -> String {
    match (net.network(), net.netmask()) {
        (IpAddr::V4(net), IpAddr::V4(mask)) => {
            format!("@th,192,32 and {:#x} == {:#x}", mask.to_bits(), net.to_bits())
        }
        (IpAddr::V6(net), IpAddr::V6(mask)) => {
            format!("@th,256,128 and {:#x} == {:#x}", mask.to_bits(), net.to_bits())
        }
        _ => String::new(),
    }
}
