//! Containers are known in the mesh by their own addresses.

use super::text::by_family;
use crate::config::Config;

/// Binds what local bridges send into the tunnel to its own source. Docker and Podman masquerade a network's packets wherever
/// they go; a binding that exists already keeps them from it (`nf_nat_inet_fn` in net/netfilter/nf_nat_core.c).
pub(super) fn kept(config: &Config) -> Vec<String> {
    let interface = &config.host.interface;
    let subnets = config.host.bridges.iter().flat_map(|bridge| &bridge.subnets);
    by_family(subnets, |ip, set| format!("oifname \"{interface}\" {ip} saddr {set} snat {ip} to {ip} saddr")).collect()
}
