//! Home and the VPS of the worked example: well, and with one thing wrong after the other.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::exam::{Examined, Facts, PeerExam, Size};
use super::firewall::{Tool, iptables};
use super::*;
use crate::express::Standing;
use crate::plan::{Family, PRIORITY_IIF, tables};
use crate::store;
use crate::tunnel::{Knock, KnockCause, PeerState};

fn config(name: &str, peers: &[&str]) -> Config {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("peers")).unwrap();
    for file in ["meshd.toml", "private.key"] {
        fs::copy(example.join(name).join(file), dir.path().join(file)).unwrap();
    }
    fs::set_permissions(dir.path().join("private.key"), fs::Permissions::from_mode(0o600)).unwrap();
    for peer in peers {
        fs::copy(example.join(format!("{peer}.toml")), dir.path().join(format!("peers/{peer}.toml"))).unwrap();
    }
    store::load(dir.path()).unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// All that is seen where all is well. Questions get the right answers.
fn seen(config: &Config, own: &[(&str, &str)]) -> Seen {
    let own = own.iter().map(|(link, net)| ((*link).to_owned(), net.parse().unwrap()));
    let link = |name: &str| (name.to_owned(), LinkSeen { up: true, mtu: 1420 });
    let table = tables::of(config).keys().next().copied();
    let rule = table.map(|table| RuleSeen {
        priority: PRIORITY_IIF,
        family: Family::V4,
        iif: Some("br0".to_owned()),
        table,
        words: format!("pref 88 from all iif br0 lookup {table}"),
    });
    let exits =
        config.host.exit.iter().flat_map(|_| [Family::V4, Family::V6]).map(|family| (family, "eth0".to_owned()));
    let mut seen = Seen {
        config_dir: "/etc/meshd".to_owned(),
        agent: Agent::Running { version: "0.1.0".to_owned() },
        tun_device: true,
        guard_stands: Some(true),
        links: ["br0", "mesh0", "eth0"].map(link).into(),
        addresses: own.collect(),
        differences: Some(Vec::new()),
        exit_devices: exits.collect(),
        rules: rule.into_iter().collect(),
        rp_filter: [("eth0".to_owned(), 1), ("mesh0".to_owned(), 1)].into(),
        internet: vec![addr("192.0.2.80"), addr("2001:db8:80::80")],
        reached: config.host.exit.as_ref().map(|_| vec![addr("192.0.2.80")]),
        ..Seen::default()
    };
    answer(config, &mut seen);
    seen
}

/// Answers all questions as a host does where nothing is wrong.
fn answer(config: &Config, seen: &mut Seen) {
    let behind = |device: &str, to: IpAddr| match device {
        "mesh0" => config
            .peers
            .iter()
            .any(|peer| peer.addresses.contains(&to) || peer.subnets.iter().any(|net| net.contains(&to))),
        _ => config.host.bridges.iter().any(|bridge| bridge.subnets.iter().any(|net| net.contains(&to))),
    };
    for question in questions(config, seen, &Target::Everything) {
        let Question { iif, to, .. } = &question;
        let device = if behind("br0", *to) {
            "br0"
        } else if behind("mesh0", *to) || iif.as_deref() == Some("br0") {
            "mesh0"
        } else {
            "eth0"
        };
        let way = way(device, "0.0.0.0/0", 254);
        seen.lookups.push((question, Ok(way)));
    }
}

fn way(device: &str, destination: &str, table: u32) -> Way {
    Way {
        device: Some(device.to_owned()),
        gateway: None,
        destination: destination.parse().unwrap(),
        table,
        attached: false,
    }
}

/// What the kernel says instead to what `which` picks.
fn lookup(seen: &mut Seen, which: impl Fn(&Question) -> bool, answer: &Answer) {
    let mut found = false;
    for (_, old) in seen.lookups.iter_mut().filter(|(question, _)| which(question)) {
        (*old, found) = (answer.clone(), true);
    }
    assert!(found, "nobody asked");
}

fn exam(config: &Config, name: &str, state: PeerState) -> PeerExam {
    let facts = Facts {
        version: "0.1.0".to_owned(),
        clock: 0,
        endpoint: None,
        exit: config.host.exit.is_none(),
        faults: Vec::new(),
    };
    let up = state == PeerState::Up;
    PeerExam {
        public_key: config.peer(name).unwrap().public_key,
        relay: None,
        endpoint: Some("203.0.113.10:51820".parse().unwrap()),
        state,
        handshake_age: up.then_some(7),
        agent: up,
        facts: up.then_some(facts),
        clock_ahead: up.then_some(12),
        size: up.then_some(Size { full: 1420, passed: Some(1420) }),
        express: up.then_some(Standing::On),
    }
}

pub(super) fn home() -> (Config, Seen) {
    let config = config("home", &["vps"]);
    let own =
        [("br0", "10.89.2.1/24"), ("br0", "fd89:2::1/64"), ("eth0", "192.168.1.20/24"), ("mesh0", "10.88.0.2/24")];
    let mut seen = seen(&config, &own);
    let peers = [("vps".to_owned(), exam(&config, "vps", PeerState::Up))].into();
    seen.examined = Some(Examined { peers, ..Examined::default() });
    seen.udp.insert("203.0.113.10:51820".parse().unwrap(), Udp::Silent);
    let probed = Probed {
        gateway: vec![(addr("10.89.2.1"), true)],
        echo: vec![(addr("192.0.2.80"), true)],
        dns: vec![(addr("192.0.2.80"), true)],
    };
    seen.probed.insert("br0".to_owned(), Ok(probed));
    (config, seen)
}

fn vps() -> (Config, Seen) {
    let config = config("vps", &["home", "phone"]);
    let own =
        [("br0", "10.89.1.1/24"), ("br0", "fd89:1::1/64"), ("eth0", "203.0.113.10/24"), ("mesh0", "10.88.0.1/24")];
    let mut seen = seen(&config, &own);
    let mut home = exam(&config, "home", PeerState::Up);
    home.endpoint = Some("198.51.100.7:51820".parse().unwrap());
    let phone = PeerExam { endpoint: None, ..exam(&config, "phone", PeerState::Down) };
    let peers = [("home".to_owned(), home), ("phone".to_owned(), phone)].into();
    seen.examined = Some(Examined { peers, ..Examined::default() });
    (config, seen)
}

fn faults(config: &Config, seen: &Seen, target: &Target) -> Vec<Step> {
    diagnose(config, seen, target).into_iter().filter(Step::is_fault).collect()
}

#[test]
fn where_all_is_well_nothing_is_found() {
    for (config, seen) in [home(), vps()] {
        let steps = diagnose(&config, &seen, &Target::Everything);
        assert!(!steps.iter().any(Step::is_fault), "{steps:#?}");
    }
    let (config, seen) = home();
    let steps: Vec<_> = diagnose(&config, &seen, &Target::Everything).into_iter().map(|step| step.step).collect();
    let way = [
        "config",
        "agent",
        "bridge",
        "forwarding",
        "rule",
        "table",
        "guard",
        "route",
        "firewall",
        "tunnel",
        "endpoint",
        "route",
        "handshake",
        "tunnel",
        "clock",
        "mtu",
        "express",
        "exit",
        "return",
        "dns",
    ];
    assert_eq!(steps, way, "in the order of a packet's way");
}

#[test]
fn a_relayed_peer_is_no_fault() {
    let (config, mut seen) = vps();
    for (state, shown) in [(PeerState::Up, State::Ok), (PeerState::Down, State::Skipped)] {
        let home = peer(&mut seen, "home");
        (home.state, home.relay, home.facts, home.endpoint) = (state, Some("relay".to_owned()), None, None);
        let steps = diagnose(&config, &seen, &Target::Peer("home".to_owned()));
        let last = steps.last().unwrap();
        assert_eq!((last.step.as_str(), last.state), ("relay", shown), "{steps:#?}");
        assert!(last.saw.contains("via relay") && !steps.iter().any(Step::is_fault), "{steps:#?}");
    }
}

/// What is wrong, and the one fault that is to be found: step, about whom, words of what was seen, words of the remedy.
type Case = (&'static str, fn(&mut Config, &mut Seen), [&'static str; 4]);

fn peer<'s>(seen: &'s mut Seen, name: &str) -> &'s mut PeerExam {
    seen.examined.as_mut().unwrap().peers.get_mut(name).unwrap()
}

fn down(seen: &mut Seen, name: &str) {
    let exam = peer(seen, name);
    (exam.state, exam.agent, exam.facts, exam.clock_ahead, exam.size) =
        (PeerState::Connecting, false, None, None, None);
}

fn knock(seen: &mut Seen, cause: KnockCause, key: Option<crate::key::PublicKey>) {
    let from = "198.51.100.7:4000".parse().unwrap();
    seen.examined.as_mut().unwrap().knocks.push(Knock { cause, key, from, age: 3, times: 2 });
}

fn drops(listing: &str, seen: &mut Seen) {
    seen.ruleset = iptables::parse(listing, "ip", Tool::Iptables);
}

const AT_HOME: &[Case] = &[
    ("no bridge", |_, seen| _ = seen.links.remove("br0"), ["bridge", "br0", "no such interface", "ip link add br0"]),
    (
        "a bridge that is down",
        |_, seen| seen.links.get_mut("br0").unwrap().up = false,
        ["bridge", "br0", "is down", "ip link set br0 up"],
    ),
    (
        "no gateway",
        |_, seen| seen.addresses.retain(|(_, net)| net.to_string() != "10.89.2.1/24"),
        ["bridge", "br0", "no address in 10.89.2.0/24", "ip address add 10.89.2.1/24 dev br0"],
    ),
    (
        "no forwarding",
        |_, seen| {
            let command = "sysctl -w net.ipv4.conf.br0.forwarding=1".to_owned();
            seen.differences = Some(vec![("sysctl".to_owned(), command)]);
            lookup(seen, |question| question.iif.as_deref() == Some("br0"), &Err(libc::EHOSTUNREACH));
        },
        ["forwarding", "br0", "differs from the plan", "sysctl -w net.ipv4.conf.br0.forwarding=1"],
    ),
    (
        "no rule",
        |_, seen| {
            let command = "ip rule add pref 88 iif br0 lookup 8891683 protocol kernel".to_owned();
            seen.differences = Some(vec![("rule".to_owned(), command)]);
        },
        ["rule", "br0", "differs from the plan", "ip rule add pref 88 iif br0"],
    ),
    (
        "no guard",
        |_, seen| seen.differences = Some(vec![("guard".to_owned(), "nft -f - …".to_owned())]),
        ["guard", "br0", "differs from the plan", "nft -f"],
    ),
    (
        "another VPN's rule",
        |_, seen| {
            let words = "pref 50 from all lookup 52".to_owned();
            seen.rules.push(RuleSeen { priority: 50, family: Family::V4, iif: None, table: 52, words });
            let other = way("tailscale0", "0.0.0.0/0", 52);
            let to = addr("192.0.2.80");
            lookup(seen, |question| question.to == to && question.iif.as_deref() == Some("br0"), &Ok(other));
        },
        [
            "route",
            "br0",
            "rule pref 50 from all lookup 52 sends 192.0.2.80 out of tailscale0",
            "ip rule del pref 50 from all lookup 52",
        ],
    ),
    (
        "strict rp_filter",
        |_, seen| {
            lookup(seen, |question| question.to == addr("10.89.2.254") && question.from.is_some(), &Err(libc::EXDEV));
        },
        ["rp_filter", "br0", "net.ipv4.conf.mesh0.rp_filter is strict", "sysctl -w net.ipv4.conf.mesh0.rp_filter=2"],
    ),
    (
        "a more specific route",
        |config, seen| {
            seen.foreign = vec!["10.89.1.0/25".parse().unwrap()];
            seen.lookups.clear();
            answer(config, seen);
            let mut other = way("eth0", "10.89.1.0/25", 254);
            other.gateway = Some(addr("192.168.1.1"));
            lookup(seen, |question| question.iif.is_none() && question.to == addr("10.89.1.126"), &Ok(other));
        },
        ["route", "vps", "10.89.1.0/25", "ip route del 10.89.1.0/25 via 192.168.1.1 dev eth0"],
    ),
    (
        "FORWARD DROP",
        |_, seen| drops("*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\nCOMMIT\n", seen),
        [
            "firewall",
            "br0",
            "iptables table ip filter, chain FORWARD: policy drop",
            "iptables -I DOCKER-USER -i br0 -o mesh0",
        ],
    ),
    (
        "a raw drop",
        |_, seen| {
            drops("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.89.2.10/32 ! -i br0 -j DROP\nCOMMIT\n", seen);
        },
        [
            "firewall",
            "br0",
            "chain PREROUTING: -A PREROUTING -d 10.89.2.10/32",
            "iptables -t raw -I PREROUTING -i mesh0",
        ],
    ),
    (
        "outgoing UDP dropped here",
        |_, seen| {
            drops("*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p udp -m udp --dport 51820 -j DROP\nCOMMIT\n", seen);
            down(seen, "vps");
        },
        ["firewall", "vps", "--dport 51820 -j DROP", "iptables -I OUTPUT -o eth0 -p udp --dport 51820 -j ACCEPT"],
    ),
    (
        "another agent's bridge",
        |_, seen| {
            let words = "pref 87 from all iif br0 lookup 8812345".to_owned();
            let iif = Some("br0".to_owned());
            seen.rules.push(RuleSeen { priority: 87, family: Family::V4, iif, table: 8_812_345, words });
        },
        ["agent", "br0", "another agent has this bridge", "one of the two meshd.toml"],
    ),
    (
        "no interface",
        |_, seen| {
            seen.links.remove("mesh0");
            down(seen, "vps");
            peer(seen, "vps").state = PeerState::Down;
            seen.examined = None;
        },
        ["tunnel", "mesh0", "no such interface", "meshd reload"],
    ),
    (
        "no way to the endpoint",
        |_, seen| {
            lookup(seen, |question| question.to == addr("203.0.113.10"), &Err(libc::ENETUNREACH));
            down(seen, "vps");
        },
        ["endpoint", "vps", "no route to its endpoint 203.0.113.10", "ip route"],
    ),
    (
        "UDP blocked",
        |_, seen| down(seen, "vps"),
        ["handshake", "vps", "no answer from 203.0.113.10:51820: UDP is blocked", "meshd doctor"],
    ),
    (
        "nobody listens",
        |_, seen| {
            down(seen, "vps");
            seen.udp.insert("203.0.113.10:51820".parse().unwrap(), Udp::Refused);
        },
        ["handshake", "vps", "nobody listens on UDP port 51820", "meshd up --detach"],
    ),
    (
        "another preshared key",
        |config, seen| {
            down(seen, "vps");
            knock(seen, KnockCause::Undecryptable, Some(config.peers[0].public_key));
        },
        ["handshake", "vps", "the preshared keys differ", "the same preshared_key into peers/vps.toml"],
    ),
    (
        "a black hole",
        |_, seen| peer(seen, "vps").size = Some(Size { full: 1420, passed: Some(1300) }),
        ["mtu", "vps", "packets of 1420 bytes vanish, of 1300 pass", "1i mtu = 1300"],
    ),
    (
        "a path too narrow for IPv6",
        |_, seen| peer(seen, "vps").size = Some(Size { full: 1420, passed: Some(1240) }),
        ["mtu", "vps", "packets of 1420 bytes vanish, of 1240 pass", "no mtu helps: IPv6 needs 1280"],
    ),
    (
        "a wrong clock",
        |_, seen| peer(seen, "vps").clock_ahead = Some(-7_200_000),
        ["clock", "vps", "7200 s behind", "timedatectl set-ntp true"],
    ),
    (
        "no exit",
        |_, seen| peer(seen, "vps").facts.as_mut().unwrap().exit = false,
        ["exit", "vps", "does not carry the egress of home", "peers = [\"home\"]"],
    ),
    (
        "a fault of the exit",
        |_, seen| {
            let fault = Step::fault("firewall", None, "policy drop", Remedy::run(["nft this".to_owned()]).fixable());
            peer(seen, "vps").facts.as_mut().unwrap().faults.push(fault);
            let Ok(probed) = seen.probed.get_mut("br0").unwrap() else { unreachable!() };
            (probed.echo[0].1, probed.dns[0].1) = (false, false);
        },
        ["firewall", "vps", "policy drop", "nft this"],
    ),
    (
        "silence from beyond",
        |_, seen| {
            let Ok(probed) = seen.probed.get_mut("br0").unwrap() else { unreachable!() };
            (probed.echo[0].1, probed.dns[0].1) = (false, false);
        },
        ["return", "br0", "no reply from 192.0.2.80", "meshd doctor"],
    ),
    (
        "deaf name servers",
        |_, seen| {
            let Ok(probed) = seen.probed.get_mut("br0").unwrap() else { unreachable!() };
            probed.dns[0].1 = false;
        },
        ["dns", "br0", "no name server answers", "meshd doctor"],
    ),
    (
        "an agent that is stopped",
        |_, seen| {
            seen.agent = Agent::NotAnswering { pid: Some(42), stopped: true };
            seen.examined = None;
        },
        ["agent", "", "(pid 42) is stopped", "kill -CONT 42"],
    ),
    (
        "an endpoint without an address",
        |config, seen| {
            let name = crate::config::Endpoint::Name("vps.example.net".to_owned(), 51820);
            config.peers[0].endpoint = Some(name);
            down(seen, "vps");
        },
        ["dns", "vps", "vps.example.net does not resolve", "getent ahosts vps.example.net"],
    ),
];

const AT_VPS: &[Case] = &[
    (
        "a stranger",
        |_, seen| {
            peer(seen, "home").state = PeerState::Connecting;
            let key = crate::key::PrivateKey::from_bytes([9; 32]).public_key();
            knock(seen, KnockCause::UnknownKey, Some(key));
        },
        ["key", "", "at 198.51.100.7:4000 knocks, and is no peer", "meshd peer add NAME --public-key "],
    ),
    (
        "a wrong key of this host",
        |_, seen| {
            peer(seen, "home").state = PeerState::Connecting;
            knock(seen, KnockCause::WrongKey, None);
        },
        ["key", "", "knocks with a wrong public key of this host", "usus0MN1xbId8qL1VL1WDgLhmCH3TQv+1eAKrjt/qVg="],
    ),
    (
        "a clock that went back",
        |config, seen| {
            down(seen, "home");
            knock(seen, KnockCause::Replayed, config.peer("home").map(|peer| peer.public_key));
        },
        ["clock", "home", "its clock went back", "timedatectl set-ntp true"],
    ),
    (
        "egress dropped",
        |_, seen| {
            let listing = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i mesh0 -o eth0 -j DROP\nCOMMIT\n";
            drops(listing, seen);
        },
        [
            "firewall",
            "",
            "egress of home, phone: iptables table ip filter, chain FORWARD",
            "iptables -I FORWARD -i mesh0 -o eth0",
        ],
    ),
    (
        "incoming UDP dropped",
        |_, seen| {
            drops("*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n", seen);
            down(seen, "home");
            let peers = &mut seen.examined.as_mut().unwrap().peers;
            peers.retain(|name, _| name == "home");
        },
        ["firewall", "home", "chain INPUT: policy drop", "iptables -I INPUT -i eth0 -p udp --dport 51820 -j ACCEPT"],
    ),
    (
        "no internet",
        |_, seen| seen.reached = Some(Vec::new()),
        ["internet", "", "the internet does not answer this host itself", "ping -c 3 192.0.2.80"],
    ),
    (
        "asymmetric uplinks",
        |_, seen| lookup(seen, |question| question.to == addr("203.0.113.10"), &Err(libc::EINVAL)),
        ["rp_filter", "", "net.ipv4.conf.eth0.rp_filter is strict", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"],
    ),
    (
        "an exit's asymmetric uplinks",
        |_, seen| {
            let back =
                |question: &Question| question.iif.as_deref() == Some("eth0") && question.to != addr("203.0.113.10");
            lookup(seen, back, &Err(libc::EXDEV));
        },
        ["rp_filter", "", "packets from 192.0.2.80 by eth0 are dropped", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"],
    ),
];

#[test]
fn each_fault_is_found_alone_with_its_remedy() {
    for (host, cases) in [(home as fn() -> (Config, Seen), AT_HOME), (vps, AT_VPS)] {
        for (what, break_it, [step, about, saw, remedy]) in cases {
            let (mut config, mut seen) = host();
            break_it(&mut config, &mut seen);
            let found = faults(&config, &seen, &Target::Everything);
            let [fault] = &found[..] else { panic!("{what}: {found:#?}") };
            assert_eq!((fault.step.as_str(), fault.about.as_deref().unwrap_or_default()), (*step, *about), "{what}");
            assert!(fault.saw.contains(saw), "{what}: {fault:#?}");
            let cure = fault.remedy.as_ref().unwrap();
            let words = format!("{} {}", cure.commands.join("\n"), cure.note.as_deref().unwrap_or_default());
            assert!(words.contains(remedy), "{what}: {fault:#?}");
        }
    }
}

#[test]
fn without_an_agent_it_says_so_first_and_looks_at_what_there_is() {
    let (config, mut seen) = home();
    (seen.agent, seen.examined, seen.differences) = (Agent::NotRunning, None, None);
    seen.links.remove("mesh0");
    seen.probed.clear();
    let steps = diagnose(&config, &seen, &Target::Everything);
    let found: Vec<_> = steps.iter().filter(|step| step.is_fault()).collect();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].step.as_str(), found[0].saw.as_str()), ("agent", "not running: try meshd up"));
    assert!(steps.iter().any(|step| step.step == "guard" && step.state == State::Ok), "{steps:#?}");
    (seen.guard_stands, seen.tun_device, seen.port_taken) = (Some(false), false, Some("in use".to_owned()));
    seen.nft_fails = Some("nft: cannot be run".to_owned());
    let found: Vec<_> = faults(&config, &seen, &Target::Everything).into_iter().map(|step| step.step).collect();
    assert_eq!(found, ["agent", "nft", "tun", "port", "guard"]);
}

#[test]
fn a_container_is_told_its_route() {
    let (config, mut seen) = home();
    let target = Target::find(&config, "10.89.2.10").unwrap();
    let enter = Some("nsenter -t 7 -n".to_owned());
    seen.container = Some(ContainerSeen { answers: true, enter, gateway: Some(Some(addr("10.89.2.254"))) });
    let found = faults(&config, &seen, &target);
    let commands = &found[0].remedy.as_ref().unwrap().commands;
    assert_eq!(commands, &["nsenter -t 7 -n ip route replace default via 10.89.2.1"], "{found:#?}");
    seen.container.as_mut().unwrap().gateway = Some(Some(addr("10.89.2.1")));
    assert!(!faults(&config, &seen, &target).iter().any(|step| step.step == "container"));
    seen.container = Some(ContainerSeen::default());
    assert!(faults(&config, &seen, &target)[0].saw.contains("does not answer"));
    assert!(Target::find(&config, "192.0.2.1").is_err() && Target::find(&config, "nobody").is_err());
    assert_eq!(Target::find(&config, "vps"), Ok(Target::Peer("vps".to_owned())));
}

#[test]
fn what_an_exit_says_fits_a_message_and_is_no_more_than_faults() {
    let fault = |n: usize| Step::fault("firewall", None, format!("{n} {}", "x".repeat(300)), Remedy::default());
    let facts = Facts {
        version: "0.1.0".to_owned(),
        clock: 1,
        endpoint: None,
        exit: true,
        faults: (0..9).map(fault).chain([Step::ok("exit", None, "")]).collect(),
    };
    let body = exam::Answer::Facts(facts).encode().unwrap();
    assert!(body.len() <= crate::channel::MAX_BODY);
    let exam::Answer::Facts(facts) = serde_json::from_slice(&body).unwrap() else { panic!() };
    assert!(facts.faults().count() >= 2 && facts.faults[0].saw.starts_with('0'));
}

#[test]
fn a_stranger_who_keeps_no_peer_away_is_no_fault() {
    let (config, mut seen) = vps();
    knock(&mut seen, KnockCause::WrongKey, None);
    let said = |seen: &Seen| {
        let steps = diagnose(&config, seen, &Target::Everything);
        steps.into_iter().find(|step| step.step == "key").map(|step| step.state)
    };
    assert_eq!(said(&seen), Some(State::Skipped), "home is up");
    peer(&mut seen, "home").state = PeerState::Connecting;
    assert_eq!(said(&seen), Some(State::Fault));
    seen.examined.as_mut().unwrap().knocks[0].from = "192.0.2.66:51820".parse().unwrap();
    assert_eq!(said(&seen), Some(State::Skipped), "nobody's address");
}

#[test]
fn in_the_middle_of_a_chain_egress_goes_back_into_the_tunnel() {
    let (mut config, mut seen) = vps();
    config.host.exit.as_mut().unwrap().egress = Egress::Peers(vec!["phone".to_owned()]);
    (seen.reached, seen.lookups) = (Some(Vec::new()), Vec::new());
    answer(&config, &mut seen);
    let away = seen.internet.clone();
    lookup(
        &mut seen,
        |asked| asked.iif.as_deref() == Some("mesh0") && away.contains(&asked.to),
        &Ok(way("mesh0", "0.0.0.0/0", 8_812_345)),
    );
    let steps = diagnose(&config, &seen, &Target::Everything);
    assert!(!steps.iter().any(Step::is_fault), "{steps:#?}");
    assert!(steps.iter().any(|step| step.saw == "carries home, phone on to phone"), "{steps:#?}");
    let past = Ok(way("eth0", "0.0.0.0/0", 254));
    lookup(&mut seen, |asked| asked.iif.as_deref() == Some("mesh0") && away.contains(&asked.to), &past);
    assert!(faults(&config, &seen, &Target::Everything).iter().any(|step| step.step == "exit"));
}

#[test]
fn what_an_exit_says_cannot_pass_for_a_command_of_this_host() {
    let (config, mut seen) = home();
    let forged = Remedy::run(["nft this\n    try: rm -r /".to_owned(), "nft that".to_owned()]).fixable();
    let fault = Step::fault("firewall", None, "policy drop", forged);
    peer(&mut seen, "vps").facts.as_mut().unwrap().faults.push(fault);
    let found = faults(&config, &seen, &Target::Everything);
    let remedy = found[0].remedy.as_ref().unwrap();
    assert_eq!((remedy.host.as_deref(), remedy.fixable), (Some("vps"), false));
    assert_eq!(remedy.commands, ["meshd doctor --fix", "nft that"]);
}
