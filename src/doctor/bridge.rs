//! The part of the way on this host: container, bridge, forwarding, rule, table, guard, filter, tunnel.

use std::net::IpAddr;

use super::ways;
use super::{Remedy, Seen, State, Step, Target, packets};
use crate::config::{Bridge, Config, Egress};
use crate::plan::{nft, tables};

/// Walks one bridge's part.
pub fn steps(config: &Config, seen: &Seen, target: &Target, bridge: &Bridge) -> Vec<Step> {
    let name = bridge.name.as_str();
    let own = Some(name);
    let mut steps: Vec<Step> = container(seen, target, bridge).into_iter().collect();
    let link = link(seen, bridge);
    let stands = !link.is_fault();
    steps.push(link);
    if !stands || !seen.agent_lives() {
        return steps;
    }
    let planned = |step: &str, kinds: &[&str], well: String| planned(config, seen, bridge, step, kinds, well);
    steps.push(planned("forwarding", &["sysctl"], "switched on".to_owned()));
    if bridge.egress != Egress::Direct {
        steps.push(rule(config, seen, bridge));
        steps.push(planned("table", &["route"], format!("leads to {}, ends in unreachable", bridge.egress)));
        steps.push(planned("guard", &["guard"], "armed".to_owned()));
    }
    steps.extend(other_agent(config, seen, bridge));
    let ways = ways::bridge_ways(config, seen, target, bridge);
    if !ways.is_empty() && steps.iter().all(|step| step.state == State::Ok) {
        let well = || Step::ok("route", own, "the kernel's look-ups agree");
        steps.push(ways::detour(config, seen, &ways).map_or_else(well, |detour| detour.fault("route", own)));
    }
    let blocks = packets::blocks(seen, &packets::of_bridge(config, seen, target, bridge));
    if blocks.is_empty() {
        steps.push(Step::ok("firewall", own, "no foreign rule drops its packets"));
    }
    for (_, block, remedy) in blocks {
        steps.push(Step::fault("firewall", own, format!("{block}"), remedy));
    }
    steps
}

/// The container that was asked for.
fn container(seen: &Seen, target: &Target, bridge: &Bridge) -> Option<Step> {
    let addr = target.container(&bridge.name)?;
    let container = seen.container.clone().unwrap_or_default();
    let about = addr.to_string();
    let about = Some(about.as_str());
    let gateways: Vec<IpAddr> = gateways(seen, bridge).filter(|own| own.is_ipv4() == addr.is_ipv4()).collect();
    if let (Some(enter), Some(gateway)) = (&container.enter, container.gateway)
        && !gateway.is_some_and(|gateway| gateways.contains(&gateway) || is_link_local(gateway))
    {
        let wanted = gateways.first().map_or_else(|| "GATEWAY".to_owned(), ToString::to_string);
        let flag = if addr.is_ipv6() { " -6" } else { "" };
        let via =
            gateway.map_or_else(|| "it has no default route".to_owned(), |via| format!("its default route is {via}"));
        let saw = format!("{via}, not {wanted} of {}", bridge.name);
        let command = format!("{enter} ip{flag} route replace default via {wanted}");
        return Some(Step::fault("container", about, saw, Remedy::run([command])));
    }
    if !container.answers {
        let saw = format!("does not answer on {}", bridge.name);
        let note =
            format!("start it, or attach it to {}; then look at: ip neigh show dev {}", bridge.name, bridge.name);
        return Some(Step::fault("container", about, saw, Remedy::note(note)));
    }
    Some(Step::ok("container", about, format!("answers on {}", bridge.name)))
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// The host's own addresses on the bridge that are in its subnets.
fn gateways<'s>(seen: &'s Seen, bridge: &'s Bridge) -> impl Iterator<Item = IpAddr> + 's {
    let own = seen.addresses.iter().filter(|(link, _)| *link == bridge.name).map(|(_, net)| net.addr());
    own.filter(|addr| bridge.subnets.iter().any(|net| net.contains(addr)))
}

fn link(seen: &Seen, bridge: &Bridge) -> Step {
    let (name, own) = (bridge.name.as_str(), Some(bridge.name.as_str()));
    let Some(link) = seen.links.get(name) else {
        let note = "start the container network that makes it, or add it to systemd-networkd";
        let remedy = Remedy::run([format!("ip link add {name} type bridge"), format!("ip link set {name} up")]);
        return Step::fault("bridge", own, "there is no such interface", remedy.and(note));
    };
    if !link.up {
        return Step::fault("bridge", own, "is down", Remedy::run([format!("ip link set {name} up")]));
    }
    let without = bridge.subnets.iter().find(|net| !gateways(seen, bridge).any(|addr| net.contains(&addr)));
    if let Some(net) = without {
        // The first of IPv6 is every router's (RFC 4291, section 2.6.1).
        let first = net.hosts().find(|addr| *addr != net.network()).unwrap_or(net.addr());
        let flag = if first.is_ipv6() { " -6" } else { "" };
        let command = format!("ip{flag} address add {first}/{} dev {name}", net.prefix_len());
        let saw = format!("has no address in {net}, so its containers have no gateway");
        let remedy = Remedy::run([command]).and("with the gateway that its containers use");
        return Step::fault("bridge", own, saw, remedy);
    }
    let all: Vec<String> = gateways(seen, bridge).map(|addr| addr.to_string()).collect();
    Step::ok("bridge", own, format!("up, gateway {}", all.join(" and ")))
}

/// A stage that the plan describes.
fn planned(config: &Config, seen: &Seen, bridge: &Bridge, step: &str, kinds: &[&str], well: String) -> Step {
    let own = Some(bridge.name.as_str());
    if seen.differences.is_none() {
        return Step::skipped(step, own, "cannot be compared with the plan");
    }
    let mut missing = seen.missing(kinds);
    // What is another bridge's is shown there; what is nobody's, with the first.
    let first = config.host.bridges.first() == Some(bridge);
    let tables = tables::of(config);
    let number = tables.iter().find(|(_, name)| **name == bridge.name).map(|(number, _)| number.to_string());
    let names = |command: &str, bridge: &Bridge| command.contains(&bridge.name);
    missing.retain(|command| {
        let ours = names(command, bridge) || number.as_ref().is_some_and(|number| command.contains(number));
        ours || (first && !config.host.bridges.iter().any(|other| other != bridge && names(command, other)))
    });
    if missing.is_empty() {
        return Step::ok(step, own, well);
    }
    let first = missing[0].lines().next().unwrap_or_default().to_owned();
    let more = if missing.len() > 1 { format!(" and {} more", missing.len() - 1) } else { String::new() };
    let saw = format!("differs from the plan: {first}{more}");
    Step::fault(step, own, saw, Remedy::run(missing).fixable())
}

fn rule(config: &Config, seen: &Seen, bridge: &Bridge) -> Step {
    let name = bridge.name.as_str();
    let table = tables::of(config).into_iter().find(|(_, own)| own == name).map(|(table, _)| table);
    let well = table.map_or_else(String::new, |table| format!("iif {name} looks up table {table}"));
    planned(config, seen, bridge, "rule", &["rule"], well)
}

/// Another agent that has the same bridge: both would program it.
fn other_agent(config: &Config, seen: &Seen, bridge: &Bridge) -> Option<Step> {
    let name = bridge.name.as_str();
    let own = tables::of(config);
    let interface = &config.host.interface;
    let stranger = seen.rules.iter().find(|rule| {
        tables::is_an_agents(rule.table) && rule.iif.as_deref() == Some(name) && !own.contains_key(&rule.table)
    });
    let guards = |chain: &&super::firewall::Chain| {
        let foreign = chain.table.starts_with("meshd_guard") && chain.table != nft::guard_name(interface);
        foreign && chain.name == format!("from-{name}")
    };
    let guard = seen.ruleset.chains.iter().find(guards);
    let saw = match (guard, stranger) {
        (Some(chain), _) => format!("another agent has this bridge too: table inet {}", chain.table),
        (None, Some(rule)) => format!("another agent has this bridge too: rule {}", rule.words),
        (None, None) => return None,
    };
    let note = format!("take {name} out of one of the two meshd.toml; each bridge belongs to one agent");
    Some(Step::fault("agent", Some(name), saw, Remedy::note(note)))
}

/// The tunnel's interface, and what else the plan has.
pub fn tunnel(config: &Config, seen: &Seen) -> Vec<Step> {
    let interface = config.host.interface.as_str();
    let own = Some(interface);
    if !seen.agent_lives() {
        return vec![Step::skipped("tunnel", own, "there is none without the agent")];
    }
    let Some(link) = seen.links.get(interface).filter(|link| link.up) else {
        let missing = seen.missing(&["link", "address"]);
        let remedy = if missing.is_empty() { Remedy::run(["meshd reload".to_owned()]) } else { Remedy::run(missing) };
        let saw = if seen.links.contains_key(interface) { "is down" } else { "there is no such interface" };
        return vec![Step::fault("tunnel", own, saw, remedy.fixable())];
    };
    let mut steps = Vec::new();
    let bridged = config.host.bridges.iter().any(|bridge| seen.links.contains_key(&bridge.name));
    let mut kinds = vec!["link", "address", "nft"];
    if !bridged {
        // With a bridge its steps have said so.
        kinds.extend(["rule", "route", "guard", "sysctl"]);
    }
    let missing = seen.missing(&kinds);
    if missing.is_empty() {
        steps.push(Step::ok("tunnel", own, format!("up, MTU {}", link.mtu)));
    } else {
        let saw = format!("differs from the plan: {}", missing[0].lines().next().unwrap_or_default());
        steps.push(Step::fault("tunnel", own, saw, Remedy::run(missing).fixable()));
    }
    steps
}
