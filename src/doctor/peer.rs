//! The way to one peer: routes, endpoint, the UDP packets' own way, handshake, its agent, clock, packet size.

use std::net::{IpAddr, SocketAddr};

use super::exam::{Facts, PeerExam, Size};
use super::firewall::{Hook, Packet};
use super::packets::{self, Crossing};
use super::ways::{self, Detour};
use super::{Question, Remedy, Seen, State, Step, Udp, express};
use crate::config::{Config, Endpoint, Peer};
use crate::tunnel::{Knock, KnockCause, PeerState};

/// Clocks that differ by more, in milliseconds, are worth a word: certificates and one-time passwords bear less.
const SKEW: i64 = 60_000;
/// The least MTU that a configuration takes (RFC 8200, section 5).
const IPV6_MIN_MTU: u16 = 1280;

/// Walks the way to one peer.
pub fn steps(config: &Config, seen: &Seen, peer: &Peer) -> Vec<Step> {
    let own = Some(peer.name.as_str());
    let exam = seen.examined.as_ref().and_then(|examined| examined.peers.get(&peer.name));
    let relay = exam.and_then(|exam| exam.relay.as_deref());
    let mut steps: Vec<Step> = relay.is_none().then(|| endpoint(config, seen, peer)).into_iter().collect();
    if !seen.agent_lives() {
        return steps;
    }
    match ways::detour(config, seen, &ways::peer_ways(config, seen, peer)) {
        // Before the plan is carried out, no look-up can agree.
        _ if !seen.missing(&["rule", "route", "link", "sysctl", "address"]).is_empty() => {}
        None => steps.push(Step::ok("route", own, "its networks lead into the tunnel")),
        Some(detour) => steps.push(detour.fault("route", own)),
    }
    if let (Some(relay), Some(exam)) = (relay, exam) {
        steps.push(relayed(peer, relay, exam));
        return steps;
    }
    for (_, block, remedy) in packets::blocks(seen, &outer(config, seen, peer)) {
        steps.push(Step::fault("firewall", own, format!("the tunnel's own packets: {block}"), remedy));
    }
    let Some(exam) = exam else {
        steps.push(Step::skipped("handshake", own, "only the agent knows"));
        return steps;
    };
    if steps.iter().any(|step| step.is_fault() && step.step != "route") && exam.facts.is_none() {
        steps.push(Step::skipped("handshake", own, "because of the above"));
        return steps;
    }
    steps.push(handshake(config, seen, peer, exam));
    if exam.state != PeerState::Up {
        return steps;
    }
    match (&exam.facts, exam.agent) {
        (Some(Facts { version, .. }), _) => {
            steps.push(Step::ok("tunnel", own, format!("its agent answers through it, meshd {version}")));
            steps.extend(exam.clock_ahead.map(|ahead| clock(&peer.name, ahead)));
            steps.extend(exam.size.map(|size| packet_size(seen, &peer.name, size)));
        }
        (None, true) => steps.push(Step::ok("tunnel", own, "its agent answers, but is too old to be asked more")),
        (None, false) => {
            steps.push(Step::skipped("tunnel", own, "no meshd agent answers, so it cannot be asked"));
            return steps;
        }
    }
    steps.extend(exam.express.map(|standing| express::step(config, peer, standing)));
    steps
}

/// What is wrong with the relay is said of that.
fn relayed(peer: &Peer, relay: &str, exam: &PeerExam) -> Step {
    let own = Some(peer.name.as_str());
    if exam.state == PeerState::Up {
        return Step::ok("relay", own, format!("reached via {relay}; no direct path has been found"));
    }
    Step::skipped("relay", own, format!("reached via {relay}, which is not reached itself"))
}

fn endpoint(config: &Config, seen: &Seen, peer: &Peer) -> Step {
    let own = Some(peer.name.as_str());
    let addrs = ways::endpoints(seen, peer);
    match &peer.endpoint {
        None => return Step::skipped("endpoint", own, "none is written: it has to call"),
        Some(Endpoint::Name(name, _)) if addrs.is_empty() => {
            let remedy = Remedy::run([format!("getent ahosts {name}")])
                .and("until that prints an address, this host's DNS fails: look at /etc/resolv.conf");
            return Step::fault("dns", own, format!("its endpoint {name} does not resolve"), remedy);
        }
        _ => {}
    }
    let interface = &config.host.interface;
    for &to in &addrs {
        match seen.answer(&Question { iif: None, from: None, to }) {
            Some(Ok(way)) if way.device.as_ref() == Some(interface) => {
                let saw = format!("its endpoint {to} is routed into the tunnel that leads there");
                let remedy = Remedy::run([format!("ip route del {} dev {interface}", way.destination)]);
                return Step::fault("endpoint", own, saw, remedy);
            }
            Some(Ok(_)) | None => return Step::ok("endpoint", own, endpoint_words(peer, to)),
            Some(Err(_)) => {}
        }
    }
    let Some(to) = addrs.first() else { return Step::skipped("endpoint", own, "not known") };
    let remedy = Remedy::note("this host has no way there: look with: ip route");
    Step::fault("endpoint", own, format!("no route to its endpoint {to}"), remedy)
}

fn endpoint_words(peer: &Peer, to: IpAddr) -> String {
    match &peer.endpoint {
        Some(Endpoint::Name(name, port)) => format!("{name} is {}", SocketAddr::new(to, *port)),
        Some(Endpoint::Addr(addr)) => addr.to_string(),
        None => to.to_string(),
    }
}

/// The tunnel's UDP packets on this host: out and back where this host calls, in where others do.
fn outer(config: &Config, seen: &Seen, peer: &Peer) -> Vec<Crossing> {
    let mut crossings = Vec::new();
    let port = config.host.listen_port;
    let remote = ways::endpoints(seen, peer).first().copied().zip(port_of(peer));
    let packet = |iif: Option<&str>, oif: Option<&str>, source, destination, sport, dport, reply| Packet {
        iif: iif.map(str::to_owned),
        oif: oif.map(str::to_owned),
        source,
        destination,
        protocol: "udp",
        sport,
        dport,
        reply,
    };
    if let Some((remote, remote_port)) = remote
        && let Some(Ok(way)) = seen.answer(&Question { iif: None, from: None, to: remote })
        && let Some(device) = way.device.as_deref()
        && let Some(own) = own_address(seen, device, remote)
    {
        let out = packet(None, Some(device), own, remote, port, remote_port, false);
        let back = packet(Some(device), None, remote, own, remote_port, port, true);
        crossings.push(Crossing { hook: Hook::Output, packet: out });
        crossings.push(Crossing { hook: Hook::Input, packet: back });
    }
    // Whoever writes down how others reach this host expects them.
    if peer.endpoint.is_none()
        && let Some(Endpoint::Addr(endpoint)) = &config.host.endpoint
        && let Some((device, net)) = seen.addresses.iter().find(|(_, net)| net.addr() == endpoint.ip())
    {
        let from = ways::away(&seen.internet, crate::plan::Family::of(net));
        let call = packet(Some(device), None, from, endpoint.ip(), 51_820, port, false);
        crossings.push(Crossing { hook: Hook::Prerouting, packet: call.clone() });
        crossings.push(Crossing { hook: Hook::Input, packet: call });
    }
    crossings
}

fn port_of(peer: &Peer) -> Option<u16> {
    peer.endpoint.as_ref().map(|endpoint| match endpoint {
        Endpoint::Addr(addr) => addr.port(),
        Endpoint::Name(_, port) => *port,
    })
}

fn own_address(seen: &Seen, device: &str, like: IpAddr) -> Option<IpAddr> {
    let own = seen.addresses.iter().filter(|(link, _)| link == device).map(|(_, net)| net.addr());
    own.into_iter().find(|addr| addr.is_ipv4() == like.is_ipv4())
}

fn handshake(config: &Config, seen: &Seen, peer: &Peer, exam: &PeerExam) -> Step {
    let (name, own) = (peer.name.as_str(), Some(peer.name.as_str()));
    let this = config.host.name.as_str();
    if exam.state == PeerState::Up {
        let age = exam.handshake_age.map(|age| format!(", handshake {age} s ago")).unwrap_or_default();
        return Step::ok("handshake", own, format!("a session stands{age}"));
    }
    let knocks = seen.examined.iter().flat_map(|examined| &examined.knocks);
    let knock = knocks.filter(|knock| knock.key == Some(peer.public_key)).min_by_key(|knock| knock.age);
    match knock.map(|knock| knock.cause) {
        Some(KnockCause::Replayed) => {
            let saw = "its handshakes are older than its last one: its clock went back";
            let remedy = Remedy::run(["timedatectl set-ntp true".to_owned()]).on(name);
            return Step::fault("clock", own, saw, remedy.and("then start its agent again: meshd down; meshd up -d"));
        }
        Some(KnockCause::Undecryptable) => {
            let saw = "it answers, but its answers do not open: the preshared keys differ";
            let note = format!(
                "write the same preshared_key into peers/{name}.toml here and peers/{this}.toml there, then: meshd reload"
            );
            return Step::fault("handshake", own, saw, Remedy::note(note));
        }
        _ => {}
    }
    let Some(endpoint) = exam.endpoint else {
        let saw = "never heard of, and no endpoint is written: it has to call";
        return Step::skipped("handshake", own, saw);
    };
    if peer.endpoint.is_none() {
        let saw = exam.handshake_age.map_or_else(|| "silent".to_owned(), |age| format!("silent since {age} s"));
        return Step::skipped("handshake", own, format!("{saw}: it has to call"));
    }
    match seen.udp.get(&endpoint) {
        Some(Udp::Refused) => {
            let saw =
                format!("nobody listens on UDP port {} of {}: ICMP port unreachable", endpoint.port(), endpoint.ip());
            let remedy = Remedy::run(["meshd up --detach".to_owned()]).on(name);
            Step::fault("handshake", own, saw, remedy.and("or correct the port of its endpoint here"))
        }
        Some(Udp::Unsent) => {
            let saw = format!("the kernel does not send to {endpoint}");
            Step::fault("handshake", own, saw, Remedy::note("look with: ip route; nft list ruleset"))
        }
        Some(Udp::Silent) | None => {
            let key = config.private_key.public_key();
            let saw = format!("no answer from {endpoint}: UDP is blocked on the way, or a key is wrong on either side");
            let note = format!(
                "it must know this host as public_key = \"{key}\"; peers/{name}.toml here must have what `meshd pubkey` \
                 prints of its private.key; UDP port {} must be open there",
                endpoint.port()
            );
            let remedy = Remedy::run(["meshd doctor".to_owned()]).on(name).and(note);
            Step::fault("handshake", own, saw, remedy)
        }
    }
}

fn clock(name: &str, ahead: i64) -> Step {
    let words = if ahead < 0 { "behind" } else { "ahead of" };
    let seconds = ahead.unsigned_abs() / 1000;
    if ahead.abs() < SKEW {
        return Step::ok("clock", Some(name), format!("{seconds} s {words} this host's"));
    }
    let saw = format!("its clock is {seconds} s {words} this host's");
    let remedy = Remedy::run(["timedatectl set-ntp true".to_owned()]);
    Step::fault("clock", Some(name), saw, remedy.and("on whichever of the two is wrong"))
}

fn packet_size(seen: &Seen, name: &str, size: Size) -> Step {
    let Size { full, passed } = size;
    match passed {
        Some(passed) if passed >= full => Step::ok("mtu", Some(name), format!("packets of {full} bytes pass")),
        None => Step::skipped("mtu", Some(name), "too much is lost to tell"),
        Some(passed) if passed < IPV6_MIN_MTU => {
            let saw = format!("packets of {full} bytes vanish, of {passed} pass: a black hole on the path");
            let least = format!("no mtu helps: IPv6 needs {IPV6_MIN_MTU}; the path must carry it");
            Step::fault("mtu", Some(name), saw, Remedy::note(least))
        }
        Some(passed) => {
            let saw = format!("packets of {full} bytes vanish, of {passed} pass: a black hole on the path");
            let file = format!("{}/meshd.toml", seen.config_dir);
            let edit = format!("sed -i -e '/^mtu *=/d' -e '1i mtu = {passed}' {file}");
            let remedy = Remedy::run([edit, "meshd reload".to_owned()]);
            Step::fault("mtu", Some(name), saw, remedy.and(format!("mtu = {passed} in meshd.toml, there too")))
        }
    }
}

/// Handshakes of those that are no peers, or take this host for another; and whether calls come in at all.
pub fn strangers(config: &Config, seen: &Seen) -> Vec<Step> {
    let refused = ways::callers(config, seen).and_then(|question| match seen.answer(&question)? {
        Ok(_) => None,
        Err(errno) => Some(ways::failed(seen, &question, *errno)),
    });
    let refused = refused.filter(|detour| matches!(detour, Detour::RpFilter(..)));
    let knocks = seen.examined.iter().flat_map(|examined| &examined.knocks);
    let refused = refused.map(|detour| detour.fault("endpoint", None));
    refused.into_iter().chain(knocks.filter_map(|knock| stranger(config, seen, knock))).collect()
}

/// Anybody can knock, from any address: it is a fault only when it explains why a peer is not up.
fn stranger(config: &Config, seen: &Seen, knock: &Knock) -> Option<Step> {
    let Knock { from, .. } = knock;
    let (saw, remedy) = match knock.cause {
        KnockCause::UnknownKey => {
            let key = knock.key.filter(|key| config.peers.iter().all(|peer| peer.public_key != *key))?;
            let saw = format!("a host with public key {key} at {from} knocks, and is no peer");
            let remedy = Remedy::run([format!("meshd peer add NAME --public-key {key}")]);
            let note =
                "if it is yours; or, if it is a peer with a new key, write that into its file; then: meshd reload";
            (saw, remedy.and(note))
        }
        // Once may be anybody's garbage; who means this host tries again.
        KnockCause::WrongKey if knock.times > 1 => {
            let key = config.private_key.public_key();
            let saw = format!("{from} knocks with a wrong public key of this host");
            let note =
                format!("write public_key = \"{key}\" into its peers/{}.toml, then: meshd reload", config.host.name);
            (saw, Remedy::note(note))
        }
        KnockCause::WrongKey | KnockCause::Replayed | KnockCause::Undecryptable => return None,
    };
    let missed = config.peers.iter().any(|peer| {
        let exam = seen.examined.as_ref().and_then(|examined| examined.peers.get(&peer.name));
        let last = exam.and_then(|exam| exam.endpoint).map(|endpoint| endpoint.ip());
        let known = last.into_iter().chain(ways::endpoints(seen, peer)).any(|addr| addr == from.ip());
        known && exam.is_none_or(|exam| exam.state != PeerState::Up)
    });
    let fault = Step::fault("key", None, saw, remedy);
    Some(if missed { fault } else { Step { state: State::Skipped, ..fault } })
}
