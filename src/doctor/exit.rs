//! The exit's part of the way: what it finds at itself, and what becomes of packets beyond it.

use std::net::IpAddr;

use super::packets;
use super::ways::{self, Expected, expected};
use super::{Remedy, Seen, State, Step, away};
use crate::config::{Bridge, Config, Egress, Peer};
use crate::plan::Family;

/// Whether this host carries the egress of a peer.
pub fn carries(config: &Config, peer: &Peer) -> bool {
    config.host.exit.as_ref().is_some_and(|exit| exit.peers.contains(&peer.name))
}

/// Addresses that a peer's packets bear, one of each kind.
fn clients(peer: &Peer) -> impl Iterator<Item = IpAddr> + '_ {
    peer.addresses.iter().copied().chain(peer.subnets.iter().map(|&net| ways::container(net)))
}

/// The peers through whom this host passes on the egress that it carries: it is in the middle of a chain.
fn next(config: &Config) -> &[String] {
    config.host.exit.as_ref().map_or(&[], |exit| exit.egress.exits())
}

/// By which interface that egress leaves: back into the tunnel in the middle of a chain.
fn device<'s>(config: &'s Config, seen: &'s Seen, family: Family) -> Option<&'s String> {
    match config.host.exit.as_ref()?.egress {
        Egress::Peers(_) => Some(&config.host.interface),
        Egress::Direct | Egress::None => seen.exit_devices.get(&family),
    }
}

/// From a peer out to the internet, and back.
pub fn ways(config: &Config, seen: &Seen, peer: &Peer) -> Vec<Expected> {
    if !carries(config, peer) {
        return Vec::new();
    }
    let tunnel = &config.host.interface;
    let both = clients(peer).filter_map(|client| {
        let family = Family::of(&client.into());
        let device = device(config, seen, family)?;
        let there = away(&seen.internet, family);
        let out = expected(Some(tunnel), Some(client), there, device);
        Some([out, expected(Some(device), Some(there), client, tunnel)])
    });
    both.flatten().collect()
}

/// What this host finds at itself as an exit for these peers.
pub fn steps(config: &Config, seen: &Seen, peers: &[&Peer]) -> Vec<Step> {
    if peers.is_empty() || !seen.agent_lives() {
        return Vec::new();
    }
    let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let mut steps = Vec::new();
    let by = |family| device(config, seen, family);
    let Some(device) = by(Family::V4).or_else(|| by(Family::V6)) else {
        let remedy = Remedy::note("give this host a default route, or name the interface in [exit]");
        return vec![Step::fault("exit", None, "there is no default route to carry their egress by", remedy)];
    };
    let missing = seen.missing(&["sysctl", "nft", "route", "rule"]);
    if let Some(first) = missing.first() {
        let saw = format!("differs from the plan: {}", first.lines().next().unwrap_or_default());
        return vec![Step::fault("exit", None, saw, Remedy::run(missing).fixable())];
    }
    let all: Vec<Expected> = peers.iter().flat_map(|peer| ways(config, seen, peer)).collect();
    steps.extend(ways::detour(config, seen, &all).map(|detour| detour.fault("exit", None)));
    let tunnel = config.host.interface.as_str();
    let crossings: Vec<_> = peers
        .iter()
        .flat_map(|peer| clients(peer))
        .flat_map(|client| {
            let there = away(&seen.internet, Family::of(&client.into()));
            let own = by(Family::of(&client.into())).unwrap_or(device);
            packets::stream(tunnel, own, client, there).into_iter().chain(packets::query(tunnel, own, client, there))
        })
        .collect();
    for (_, block, remedy) in packets::blocks(seen, &crossings) {
        steps.push(Step::fault("firewall", None, format!("egress of {}: {block}", names.join(", ")), remedy));
    }
    let next = next(config);
    // In the middle of a chain nothing leaves by this host's own uplink.
    if let Some(reached) = &seen.reached
        && next.is_empty()
        && reached.is_empty()
        && !seen.internet.is_empty()
        && steps.is_empty()
    {
        let tried: Vec<String> = seen.internet.iter().map(ToString::to_string).collect();
        let saw = format!("the internet does not answer this host itself: tried {}", tried.join(", "));
        let remedy = Remedy::run([format!("ping -c 3 {}", tried[0])]);
        steps.push(Step::fault(
            "internet",
            None,
            saw,
            remedy.and("until that is answered, look at its provider and its firewall"),
        ));
    }
    if steps.is_empty() {
        let how =
            if next.is_empty() { format!("by {device}, masqueraded") } else { format!("on to {}", next.join(", ")) };
        steps.push(Step::ok("exit", None, format!("carries {} {how}", names.join(", "))));
    }
    steps
}

/// Beyond the tunnel, for a bridge whose egress is a peer: the exit, the internet and back, DNS.
pub fn beyond(config: &Config, seen: &Seen, bridge: &Bridge, before: &[Step]) -> Vec<Step> {
    let exits = bridge.egress.exits();
    let active = seen.examined.as_ref().and_then(|examined| examined.exits.get(&bridge.name));
    let Some(exit) = active.filter(|exit| exits.contains(exit)).or(exits.first()) else { return Vec::new() };
    let (name, own) = (bridge.name.as_str(), Some(exit.as_str()));
    let tunnel = config.host.interface.as_str();
    let matters = |step: &&Step| match step.about.as_deref() {
        None => step.step == "agent" || step.step == "nft",
        Some(about) => about == name || about == exit || about == tunnel,
    };
    // Neither a wrong clock nor another network that leads elsewhere keeps packets from the exit.
    let harmless = ["clock", "mtu", "route"];
    let in_the_way = before
        .iter()
        .filter(matters)
        .filter(|step| step.is_fault())
        .find(|step| !(step.about.as_deref() == own && harmless.contains(&step.step.as_str())));
    if let Some(step) = in_the_way {
        return vec![Step::skipped("exit", own, format!("first the {}", step.step))];
    }
    let exam = seen.examined.as_ref().and_then(|examined| examined.peers.get(exit));
    let mut steps = Vec::new();
    let facts = exam.and_then(|exam| exam.facts.as_ref());
    match facts {
        None => steps.push(Step::skipped("exit", own, "cannot be asked")),
        Some(facts) if !facts.exit => {
            let this = &config.host.name;
            let saw = format!("does not carry the egress of {this}");
            let note = format!("write peers = [\"{this}\"] below [exit] in its meshd.toml, then: meshd reload");
            return vec![Step::fault("exit", own, saw, Remedy::note(note).on(exit))];
        }
        Some(facts) => {
            for fault in facts.faults() {
                let remedy = fault.remedy.clone().unwrap_or_default().on(exit).from_afar();
                steps.push(Step::fault(&fault.step, own, fault.saw.clone(), remedy));
            }
            if steps.is_empty() {
                steps.push(Step::ok("exit", own, "carries the egress and reaches the internet"));
            }
        }
    }
    let faulty = steps.iter().any(|step| step.state == State::Fault);
    steps.extend(probed(seen, bridge, exit, faulty));
    steps
}

/// What a throwaway container on the bridge met.
fn probed(seen: &Seen, bridge: &Bridge, exit: &str, faulty: bool) -> Vec<Step> {
    let name = bridge.name.as_str();
    let own = Some(name);
    let probed = match seen.probed.get(name) {
        None => return Vec::new(),
        Some(Err(why)) => return vec![Step::skipped("return", own, format!("no probe: {why}"))],
        Some(Ok(probed)) => probed,
    };
    let list = |tried: &[(IpAddr, bool)], well: bool| {
        let some: Vec<String> =
            tried.iter().filter(|(_, answered)| *answered == well).map(|(addr, _)| addr.to_string()).collect();
        some.join(", ")
    };
    let mut steps = Vec::new();
    let (echoed, silent) = (list(&probed.echo, true), list(&probed.echo, false));
    if probed.echo.is_empty() {
        return vec![Step::skipped("return", own, "nothing to try")];
    }
    if echoed.is_empty() && faulty {
        return vec![Step::skipped("return", own, format!("no reply from {silent}, because of the above"))];
    }
    if echoed.is_empty() {
        let saw = format!("no reply from {silent} to a container here, by way of {exit}");
        let remedy = Remedy::run(["meshd doctor".to_owned()]).on(exit);
        return vec![Step::fault("return", own, saw, remedy.and("and see whether these addresses answer there"))];
    }
    steps.push(Step::ok("return", own, format!("{echoed} answers a container here, by way of {exit}")));
    if probed.dns.is_empty() {
        return steps;
    }
    let (answered, deaf) = (list(&probed.dns, true), list(&probed.dns, false));
    if answered.is_empty() && faulty {
        steps.push(Step::skipped("dns", own, format!("no answer from {deaf}, because of the above")));
    } else if answered.is_empty() {
        let saw = format!("echoes pass, but no name server answers a container here: tried {deaf}");
        let remedy = Remedy::run(["meshd doctor".to_owned()]).on(exit);
        steps.push(Step::fault("dns", own, saw, remedy.and("UDP port 53 is dropped there or beyond")));
    } else {
        steps.push(Step::ok("dns", own, format!("{answered} answers a container here")));
    }
    steps
}
