//! Routes and rules: the tables of the egress bridges, and main for the host itself.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::state::default_metric;
use super::{
    Family, HostFacts, NextHop, PRIORITY_FROM, PRIORITY_IIF, PRIORITY_MARK, Route, Rule, Selector, TABLE_MAIN, marks,
};
use crate::config::{Bridge, Config, Egress, Peer};

/// What the kernel takes as the same route, and where it leads. The first entry of a key stays: on a conflict the tunnel
/// goes before `allow`.
type Table = BTreeMap<(u32, IpNet, u32), NextHop>;

/// All routes. `ipv6` says whether the tunnel carries it.
pub(super) fn routes(
    config: &Config,
    facts: &HostFacts,
    tables: &BTreeMap<u32, String>,
    ipv6: bool,
    warnings: &mut Vec<String>,
) -> BTreeSet<Route> {
    let mut routes = Table::new();
    main(config, facts, ipv6, &mut routes, warnings);
    for (&table, name) in tables {
        let bridge = config.host.bridges.iter().find(|bridge| bridge.name == *name);
        let everything = bridge.is_none_or(|bridge| matches!(bridge.egress, Egress::Peers(_)));
        complete(config, facts, everything, table, ipv6, &mut routes, warnings);
        if let Some(bridge) = bridge {
            // What comes for a container of a bridge that is gone must not go out by a default, nor back into the tunnel; and
            // an error to whoever sent it would leave by main.
            for net in bridge.subnets.iter().map(IpNet::trunc).filter(|net| facts.ipv6 || net.addr().is_ipv4()) {
                routes.insert((table, net, u32::MAX), NextHop::Blackhole);
            }
            for net in &bridge.allow {
                allow(config, facts, bridge, net.trunc(), table, &mut routes, warnings);
            }
        } else {
            for lan in config.host.lans.iter().filter(|lan| lan.subnet.addr().is_ipv4() || facts.ipv6) {
                copy(config, facts, lan.subnet.trunc(), table, &mut routes);
            }
        }
    }
    let route = |((table, destination, metric), next_hop)| Route { table, destination, metric, next_hop };
    routes.into_iter().map(route).collect()
}

/// The rules into the tables, and those of what is published. They name interfaces, so they need none to exist.
pub(super) fn rules(
    config: &Config,
    facts: &HostFacts,
    tables: &BTreeMap<u32, String>,
    warnings: &mut Vec<String>,
) -> BTreeSet<Rule> {
    let interface = &config.host.interface;
    let mut rules = BTreeSet::new();
    let usual = (PRIORITY_MARK, PRIORITY_IIF, PRIORITY_FROM);
    let (mark, iif, from) = match facts.rule_before {
        Some(other) if other >= 4 => (other - 3, other - 2, other - 1),
        Some(other) if !tables.is_empty() => {
            warnings.push(format!(
                "a rule of priority {other} leaves no room for ours before it; give it a higher number than {PRIORITY_FROM}"
            ));
            usual
        }
        _ => usual,
    };
    let marked = |family, of, table| Rule { priority: mark, family, selector: Selector::Mark(of), table };
    if config.publishes_beside_main() {
        rules.extend(families(facts).map(|family| marked(family, marks::back_by_main(interface), TABLE_MAIN)));
    }
    for (&table, name) in tables {
        let bridge = config.host.bridges.iter().find(|bridge| bridge.name == *name);
        let sources: BTreeSet<IpNet> = match bridge {
            Some(bridge) => bridge.subnets.iter().map(IpNet::trunc).collect(),
            None => config.chained().flat_map(Peer::networks).collect(),
        };
        if bridge.is_some() {
            let selector = Selector::Iif(name.clone());
            rules.extend(families(facts).map(|family| Rule {
                priority: iif,
                family,
                selector: selector.clone(),
                table,
            }));
        } else if config.answers_need_marks() {
            rules.extend(families(facts).map(|family| marked(family, marks::back_into_tunnel(interface), table)));
        }
        for net in sources.into_iter().filter(|net| facts.ipv6 || net.addr().is_ipv4()) {
            let to = bridge.map(|_| Selector::To(net));
            for selector in std::iter::once(Selector::From(net)).chain(to) {
                rules.insert(Rule { priority: from, family: Family::of(&net), selector, table });
            }
        }
    }
    rules
}

/// The networks that the tunnel's own addresses are in.
pub(super) fn mesh_networks(config: &Config) -> BTreeSet<IpNet> {
    config.host.addresses.iter().map(IpNet::trunc).collect()
}

/// What lies behind the peers, and those of their addresses that no mesh network covers. Never everything: that would
/// take the host's own traffic.
pub(super) fn remote_networks(config: &Config) -> BTreeSet<IpNet> {
    let mesh = mesh_networks(config);
    let addresses = config.peers.iter().flat_map(|peer| &peer.addresses).map(|&addr| IpNet::from(addr));
    let addresses = addresses.filter(|addr| !mesh.iter().any(|net| net.contains(addr)));
    let subnets = config.peers.iter().flat_map(|peer| &peer.subnets).map(IpNet::trunc);
    subnets.chain(addresses).filter(|net| net.prefix_len() > 0 && !mesh.contains(net)).collect()
}

fn families(facts: &HostFacts) -> impl Iterator<Item = Family> {
    [Family::V4, Family::V6].into_iter().filter(|&family| facts.ipv6 || family == Family::V4)
}

/// The host's own way to the peers. The mesh network itself is there with the tunnel's address.
fn main(config: &Config, facts: &HostFacts, ipv6: bool, routes: &mut Table, warnings: &mut Vec<String>) {
    let interface = &config.host.interface;
    for net in remote_networks(config).into_iter().filter(|net| ipv6 || net.addr().is_ipv4()) {
        // A network that this host is itself attached to stays reachable as it was, whatever a peer's file says.
        let attached = |device: &&String| *device != interface;
        let own = facts.main.iter().filter(|route| route.destination == net && route.gateway.is_none());
        if let Some(device) = own.filter_map(|route| route.device.as_ref()).find(attached) {
            warnings.push(format!(
                "{net} of a peer is also this host's own network on {device}: the host keeps using {device}"
            ));
            continue;
        }
        insert(routes, TABLE_MAIN, net, through(interface));
    }
}

/// A table that needs no main to fall through to: local bridges, the mesh and, if `everything` is to go there, a
/// default through the tunnel.
fn complete(
    config: &Config,
    facts: &HostFacts,
    everything: bool,
    table: u32,
    ipv6: bool,
    routes: &mut Table,
    warnings: &mut Vec<String>,
) {
    for family in families(facts) {
        routes.insert((table, family.everything(), u32::MAX), NextHop::Unreachable);
    }
    for local in &config.host.bridges {
        let Some(link) = facts.links.get(&local.name) else { continue };
        if !link.up {
            warn_once(warnings, format!("bridge {} is down: its routes are added when it is up", local.name));
            continue;
        }
        for net in &local.subnets {
            if net.addr().is_ipv4() || (facts.ipv6 && link.ipv6) {
                insert(routes, table, net.trunc(), through(&local.name));
            } else if facts.ipv6 {
                let name = &local.name;
                warn_once(warnings, format!("{net} is not routed: net.ipv6.conf.{name}.disable_ipv6 is 1"));
            }
        }
    }
    let tunnel = through(&config.host.interface);
    let mut networks = mesh_networks(config);
    networks.extend(remote_networks(config));
    if everything {
        networks.extend(families(facts).map(Family::everything));
    }
    for net in networks.into_iter().filter(|net| ipv6 || net.addr().is_ipv4()) {
        insert(routes, table, net, tunnel.clone());
    }
}

/// Copies from main what leads into an allowed network, so that the table needs no main to fall through to. What cannot
/// be resolved is left out, which leaves it to the tunnel or `unreachable`.
fn allow(
    config: &Config,
    facts: &HostFacts,
    bridge: &Bridge,
    net: IpNet,
    table: u32,
    routes: &mut Table,
    warnings: &mut Vec<String>,
) {
    let name = &bridge.name;
    if net.prefix_len() == 0 {
        warnings.push(format!("bridge {name}: allow = {net} is left out: it would undo egress = {}", bridge.egress));
        return;
    }
    if !copy(config, facts, net, table, routes) {
        warnings.push(format!("bridge {name}: no route leads to {net} of allow: it stays closed"));
    }
}

/// Copies from main what leads into a network. Whether there is anything.
fn copy(config: &Config, facts: &HostFacts, net: IpNet, table: u32, routes: &mut Table) -> bool {
    let usable =
        |device: &&String| **device != config.host.interface && (net.addr().is_ipv4() || ipv6_on(facts, device));
    let within = facts.main.iter().filter(|route| net.contains(&route.destination) && route.destination != net);
    let covering = facts.covering(net).map(|route| (net, route));
    let mut found = false;
    for (destination, route) in covering.into_iter().chain(within.map(|route| (route.destination, route))) {
        if let Some(device) = route.device.as_ref().filter(usable) {
            insert(routes, table, destination, NextHop::Device { device: device.clone(), gateway: route.gateway });
            found = true;
        }
    }
    found
}

fn ipv6_on(facts: &HostFacts, device: &str) -> bool {
    facts.ipv6 && facts.links.get(device).is_some_and(|link| link.ipv6)
}

fn through(device: &str) -> NextHop {
    NextHop::Device { device: device.to_owned(), gateway: None }
}

fn insert(routes: &mut Table, table: u32, destination: IpNet, next_hop: NextHop) {
    routes.entry((table, destination, default_metric(Family::of(&destination)))).or_insert(next_hop);
}

fn warn_once(warnings: &mut Vec<String>, warning: String) {
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}
