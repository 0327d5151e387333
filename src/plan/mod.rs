//! What this host's kernel should hold, and how that differs from what it holds. Pure.
//!
//! 1. [`desired`] turns a [`Config`] and [`HostFacts`] into a [`DesiredState`]: plain, ordered data.
//! 2. `host` reads an [`ActualState`]: the part of the kernel's state that is this agent's.
//! 3. [`diff()`] gives the [`Change`]s between them, in the order in which they are safe to apply.
//!
//! # How a packet finds its way
//!
//! Packets are selected by where they come from, never by a mark, so the agent's own UDP socket matches no rule and the
//! tunnel cannot loop. Each bridge whose egress is not `direct` has a table T of its own:
//!
//! ```text
//! 0      from all lookup local            the host's own addresses stay reachable
//! 87     from all fwmark M lookup R       answers to what a peer publishes (only where T would not lead to it)
//! 88     from all iif br0 lookup T        what its containers send
//! 89     from 10.89.2.0/24 lookup T       the reverse-path lookup of what they receive (strict rp_filter), host sockets
//! 89     from all to 10.89.2.0/24 lookup T     bound to the bridge's address; answers, should the bridge be gone
//! 32766  from all lookup main
//! ```
//!
//! T never falls through to main: it ends in an `unreachable` default, which stays when the tunnel's device goes. Beside
//! it stands a guard in nft that knows nothing of routes ([`nft`]). A bridge with egress `direct` has none of this: it
//! follows main, which also holds the routes to the peers' subnets for the host itself.
//!
//! Answers to published ports are the one exception: [`marks`].
//!
//! # What is ours
//!
//! Rules: priority 1 to 89, into a table of ours or with a mark of ours. Tables: [`tables::number`]; all routes in them. Main: routes of protocol
//! [`ROUTE_PROTOCOL`] on the tunnel's device. nft: the tables [`nft::guard_name`] and [`nft::filter_name`]. Sysctls: those
//! in the journal. In other firewalls: rules that bear the comment `meshd` and name the tunnel, and the zones of interfaces
//! in the journal. Agents with other interface names can therefore share a network namespace.

mod diff;
mod facts;
pub mod firewalls;
pub mod marks;
pub mod nft;
mod notices;
mod routes;
mod state;
mod sysctls;
pub mod tables;
#[cfg(test)]
mod tests;

pub use diff::{Change, diff};
pub use facts::{HostFacts, Link, MainRoute};
pub use state::{
    ActualState, DesiredState, Family, LinkSetting, NextHop, NftActual, NftTable, NftTables, Route, Rule, Selector,
    Sysctl, SysctlKey,
};

use crate::config::Config;

/// Marks our routes (`rtm_protocol`). Free in iproute2's `rt_protos`, and above 4, so that the kernel passes it through.
pub const ROUTE_PROTOCOL: u8 = 88;
/// Of the rules by mark, unless somebody's rule comes before it.
pub const PRIORITY_MARK: u32 = 87;
/// Of the `iif BRIDGE` rules, unless somebody's rule comes before it. Below 100, for other VPNs use 100 and more. A rule that is
/// added without a priority goes above the topmost one after `local` (`fib_default_rule_pref` in net/core/fib_rules.c), so
/// above ours: then ours move above it.
pub const PRIORITY_IIF: u32 = 88;
/// Of the `from SUBNET` and `to SUBNET` rules.
pub const PRIORITY_FROM: u32 = 89;
/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// Packets in the tunnel's queue: as on any link (`DEFAULT_TX_QUEUE_LEN`), where a TUN device starts with 500.
const TX_QUEUE_LEN: u32 = 1000;
/// Below this the kernel takes IPv6 off an interface (RFC 8200, section 5).
const IPV6_MIN_MTU: u16 = 1280;

/// What the kernel of a host with these facts should hold under this configuration, and what the operator should know.
pub fn desired(config: &Config, facts: &HostFacts) -> (DesiredState, Vec<String>) {
    let mut warnings = Vec::new();
    let host = &config.host;
    let mut state = DesiredState { interface: host.interface.clone(), ..DesiredState::default() };

    notices::interfaces(config, facts, &mut warnings);
    notices::allowed(config, &mut warnings);
    // gso_max_size stays as it is: what a container's interface built larger, the kernel would cut into single packets before
    // the tunnel reads it (gso_features_check in net/core/dev.c).
    state.link = [LinkSetting::Mtu(host.mtu.into()), LinkSetting::TxQueueLen(TX_QUEUE_LEN), LinkSetting::Up].into();
    let ipv6 = tunnel_carries_ipv6(config, facts, &mut warnings);
    state.addresses = host.addresses.iter().copied().filter(|addr| ipv6 || addr.addr().is_ipv4()).collect();

    state.tables = tables::of(config);
    state.routes = routes::routes(config, facts, &state.tables, ipv6, &mut warnings);
    state.rules = routes::rules(config, facts, &state.tables, &mut warnings);
    for family in &facts.without_main {
        let flag = if *family == Family::V6 { " -6" } else { "" };
        warnings.push(format!(
            "no rule leads to the main table, so this host has no routes; try: ip{flag} rule add pref 32766 lookup main"
        ));
    }
    let exits = nft::Exits::new(config, facts, &mut warnings);
    state.guard = nft::guard(config);
    state.filter = Some(nft::filter(config, facts, &exits));
    state.ports = nft::ports(&host.interface, &facts.ports);
    state.sysctls = sysctls::sysctls(config, facts, &exits, ipv6);
    state.exceptions = firewalls::exceptions(config, facts, &exits);
    state.zones = firewalls::zones(config, facts);
    let unread = facts.firewalls.unread.iter().map(|why| format!("other firewalls cannot be read: {why}"));
    let blocked = if facts.firewalls.settling { Vec::new() } else { firewalls::blocked(config, facts) };
    let blocked = blocked.into_iter().filter(|blocked| blocked.certain);
    warnings.extend(unread.chain(blocked.map(|blocked| blocked.to_string())));
    (state, warnings)
}

/// Whether IPv6 can run on the tunnel's interface; warns when it cannot and is asked to.
fn tunnel_carries_ipv6(config: &Config, facts: &HostFacts, warnings: &mut Vec<String>) -> bool {
    let host = &config.host;
    let wanted = host.addresses.iter().any(|addr| addr.addr().is_ipv6())
        || host.bridges.iter().flat_map(|bridge| &bridge.subnets).any(|net| net.addr().is_ipv6());
    let name = &host.interface;
    let obstacle = if !facts.ipv6 {
        "this kernel has no IPv6".to_owned()
    } else if host.mtu < IPV6_MIN_MTU {
        format!("mtu {} is below 1280, the least that IPv6 runs on", host.mtu)
    } else if facts.links.get(name).is_some_and(|link| !link.ipv6) {
        format!("net.ipv6.conf.{name}.disable_ipv6 is 1")
    } else {
        return true;
    };
    if wanted {
        warnings.push(format!("no IPv6 on {name}: {obstacle}"));
    }
    false
}
