//! Where the kernel sends packets, and where it should.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Question, Remedy, Seen, Step, Target, Way, exit};
use crate::config::{Bridge, Config, Egress, Endpoint, Peer};
use crate::plan::{Family, TABLE_MAIN, tables};

/// A public address of a family: one of those to be tried, or one that only routes are asked about.
pub fn away(internet: &[IpAddr], family: Family) -> IpAddr {
    let own = internet.iter().copied().find(|&addr| Family::of(&addr.into()) == family);
    own.unwrap_or(match family {
        Family::V4 => Ipv4Addr::new(1, 1, 1, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111).into(),
    })
}

/// An address of a network that hardly anybody has: near its end.
pub fn container(net: IpNet) -> IpAddr {
    match net {
        IpNet::V4(v4) if v4.prefix_len() < 30 => Ipv4Addr::from_bits(v4.broadcast().to_bits() - 1).into(),
        IpNet::V6(v6) if v6.prefix_len() < 126 => Ipv6Addr::from_bits(v6.broadcast().to_bits() - 1).into(),
        other => other.addr(),
    }
}

/// What the kernel is to be asked, before [`Seen`] is complete: `seen` holds addresses, foreign routes and what names
/// resolved to.
pub fn questions(config: &Config, seen: &Seen, target: &Target) -> Vec<Question> {
    let mut questions: Vec<Question> = Vec::new();
    for bridge in config.host.bridges.iter().filter(|bridge| target.bridge(&bridge.name)) {
        questions.extend(bridge_ways(config, seen, target, bridge).into_iter().map(|way| way.question));
    }
    for peer in config.peers.iter().filter(|peer| target.peer(config, &peer.name)) {
        questions.extend(peer_ways(config, seen, peer).into_iter().map(|way| way.question));
        questions.extend(endpoints(seen, peer).into_iter().map(|to| Question { iif: None, from: None, to }));
    }
    for peer in &config.peers {
        if *target == Target::Everything || *target == Target::Exit(peer.name.clone()) {
            questions.extend(exit::ways(config, seen, peer).into_iter().map(|way| way.question));
        }
    }
    if *target == Target::Everything {
        questions.extend(callers(config, seen));
    }
    questions.dedup();
    questions
}

/// How a stranger's packet comes to where others reach this host.
pub fn callers(config: &Config, seen: &Seen) -> Option<Question> {
    let Some(Endpoint::Addr(endpoint)) = &config.host.endpoint else { return None };
    let to = endpoint.ip();
    let (device, _) = seen.addresses.iter().find(|(_, net)| net.addr() == to)?;
    Some(Question { iif: Some(device.clone()), from: Some(away(&seen.internet, Family::of(&to.into()))), to })
}

/// A question with the right answer.
pub struct Expected {
    pub question: Question,
    /// Out of which interface it should go.
    pub device: String,
}

/// Containers that stand for a bridge: one of each subnet, or the one that is asked for.
pub fn containers(target: &Target, bridge: &Bridge) -> Vec<IpAddr> {
    match target.container(&bridge.name) {
        Some(addr) => vec![addr],
        None => bridge.subnets.iter().map(|&net| container(net)).collect(),
    }
}

/// Out to the internet and back.
pub fn bridge_ways(config: &Config, seen: &Seen, target: &Target, bridge: &Bridge) -> Vec<Expected> {
    if !matches!(bridge.egress, Egress::Peers(_)) {
        return Vec::new();
    }
    let tunnel = &config.host.interface;
    let both = containers(target, bridge).into_iter().flat_map(|container| {
        let there = away(&seen.internet, Family::of(&container.into()));
        [
            expected(Some(&bridge.name), Some(container), there, tunnel),
            expected(Some(tunnel), Some(there), container, &bridge.name),
        ]
    });
    both.collect()
}

/// To what lies behind a peer, from the host and from each bridge.
pub fn peer_ways(config: &Config, seen: &Seen, peer: &Peer) -> Vec<Expected> {
    let tunnel = &config.host.interface;
    let nets = peer.subnets.iter().map(IpNet::trunc).chain(peer.addresses.iter().map(|&addr| addr.into()));
    let to = nets.flat_map(|net| {
        // A route for a part of it would be missed by asking for one address.
        let parts = seen.foreign.iter().filter(move |other| net.contains(*other) && net != **other);
        parts.map(|part| container(*part)).chain([container(net)]).collect::<Vec<_>>()
    });
    let mut ways = Vec::new();
    for to in to {
        ways.push(expected(None, None, to, tunnel));
        for bridge in config.host.bridges.iter().filter(|bridge| stands(seen, bridge)) {
            let family = |net: &&IpNet| Family::of(net) == Family::of(&to.into());
            let from = bridge.subnets.iter().find(family).map(|&net| container(net));
            ways.extend(from.map(|from| expected(Some(&bridge.name), Some(from), to, tunnel)));
        }
    }
    ways
}

/// Whether packets can come from a bridge at all; its own steps say why not.
fn stands(seen: &Seen, bridge: &Bridge) -> bool {
    let has = |net: &IpNet| seen.addresses.iter().any(|(link, own)| *link == bridge.name && net.contains(&own.addr()));
    seen.links.get(&bridge.name).is_some_and(|link| link.up) && bridge.subnets.iter().all(has)
}

/// The addresses where a peer is called.
pub fn endpoints(seen: &Seen, peer: &Peer) -> Vec<IpAddr> {
    match &peer.endpoint {
        Some(Endpoint::Addr(addr)) => vec![addr.ip()],
        Some(Endpoint::Name(..)) => seen.resolved.get(&peer.name).cloned().unwrap_or_default(),
        None => Vec::new(),
    }
}

pub fn expected(iif: Option<&str>, from: Option<IpAddr>, to: IpAddr, device: &str) -> Expected {
    Expected { question: Question { iif: iif.map(str::to_owned), from, to }, device: device.to_owned() }
}

/// What is wrong with a way, and what is to be done.
pub enum Detour {
    /// The route, or the rule that leads to it, is somebody else's.
    Route(String, Remedy),
    /// Reverse-path filtering drops it at this interface.
    RpFilter(String, Remedy),
    /// There is no way.
    Unreachable(String, Remedy),
}

impl Detour {
    /// As a fault; a route's is named `step`.
    pub fn fault(self, step: &str, about: Option<&str>) -> Step {
        match self {
            Self::Route(saw, remedy) | Self::Unreachable(saw, remedy) => Step::fault(step, about, saw, remedy),
            Self::RpFilter(saw, remedy) => Step::fault("rp_filter", about, saw, remedy),
        }
    }
}

/// Looks at each way; the first that leads elsewhere comes back. What leads elsewhere is also why reverse-path filtering
/// drops, so it goes before that.
pub fn detour(config: &Config, seen: &Seen, ways: &[Expected]) -> Option<Detour> {
    let detours = ways.iter().filter_map(|way| match seen.answer(&way.question)? {
        Ok(found) if found.device.as_ref() == Some(&way.device) => None,
        Ok(found) => Some(elsewhere(config, seen, way, found)),
        Err(errno) => Some(failed(seen, &way.question, *errno)),
    });
    detours.min_by_key(|detour| !matches!(detour, Detour::Route(..)))
}

fn elsewhere(config: &Config, seen: &Seen, way: &Expected, found: &Way) -> Detour {
    let to = way.question.to;
    let device = found.device.as_deref().unwrap_or("nowhere");
    let own = tables::of(config);
    let family = Family::of(&to.into());
    // Whose rule led there.
    let into = |rule: &&super::RuleSeen| {
        let asks = rule.iif.is_none() || rule.iif == way.question.iif;
        rule.family == family && rule.table == found.table && asks
    };
    let rule = seen.rules.iter().find(into).filter(|_| found.table != TABLE_MAIN && !own.contains_key(&found.table));
    if let Some(rule) = rule {
        let flag = if family == Family::V6 { " -6" } else { "" };
        let saw = format!("rule {} sends {to} out of {device}, not {}", rule.words, way.device);
        let remedy = Remedy::run([format!("ip{flag} rule del {}", rule.words)]);
        return Detour::Route(saw, remedy.and("or have the other VPN leave these networks alone"));
    }
    let destination = route_words(found.destination);
    let via = found.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let table = if found.table == TABLE_MAIN { "main".to_owned() } else { found.table.to_string() };
    let saw =
        format!("route {destination}{via} dev {device} in table {table} takes {to}, which belongs to {}", way.device);
    if found.attached {
        let note = format!("{destination} is in use on {device} here: give one of the two networks another subnet");
        return Detour::Route(saw, Remedy::note(note));
    }
    let flag = if family == Family::V6 { " -6" } else { "" };
    let table = if found.table == TABLE_MAIN { String::new() } else { format!(" table {table}") };
    Detour::Route(saw, Remedy::run([format!("ip{flag} route del {destination}{via} dev {device}{table}")]))
}

/// What the kernel's refusal to route means.
pub fn failed(seen: &Seen, question: &Question, errno: i32) -> Detour {
    let Question { iif, from, to } = question;
    let strict = iif.as_ref().filter(|iif| seen.rp_filter.get(*iif) == Some(&1));
    // EXDEV until Linux 6.13, EINVAL since (inet_rtm_getroute in net/ipv4/route.c). IPv6 has no such filter.
    if let (Some(iif), Some(from @ IpAddr::V4(_)), libc::EXDEV | libc::EINVAL) = (strict, from, errno) {
        let saw = format!(
            "net.ipv4.conf.{iif}.rp_filter is strict: packets from {from} by {iif} are dropped, for the way back is another"
        );
        // The kernel takes the larger of this and `all`.
        return Detour::RpFilter(saw, Remedy::run([format!("sysctl -w net.ipv4.conf.{iif}.rp_filter=2")]));
    }
    let why = std::io::Error::from_raw_os_error(errno);
    let by = iif.as_ref().map(|iif| format!(" for packets from {iif}")).unwrap_or_default();
    let saw = format!("no route to {to}{by}: {why}");
    Detour::Unreachable(saw, Remedy::note("look with: ip rule; ip route show table all"))
}

fn route_words(net: IpNet) -> String {
    if net.prefix_len() == 0 { "default".to_owned() } else { net.to_string() }
}
