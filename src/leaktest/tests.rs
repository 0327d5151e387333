use std::collections::BTreeMap;
use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipnet::IpNet;
use proptest::prelude::*;

use super::packet::Way;
use super::*;
use crate::config::{Config, Files, SourceFile, parse};
use crate::packet::checksum::Sum;
use crate::plan::{HostFacts, MainRoute};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn run() -> Run {
    Run::new([7; 18])
}

fn legs() -> [Leg; 2] {
    [("10.89.2.200", "10.89.2.1/24"), ("fd89:2::200", "fd89:2::1/64")].map(|(address, subnet)| Leg {
        bridge: "br0".to_owned(),
        address: ip(address),
        gateway: net(subnet).addr(),
        subnet: net(subnet),
    })
}

/// Home of the worked example, with one more line in its bridge.
fn home(line: &str) -> Config {
    let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.as_bytes().to_vec() };
    let host = format!("{}{line}\n", include_str!("../../peers/home/meshd.toml"));
    let files = Files {
        host: file("meshd.toml", &host),
        private_key: file("private.key", include_str!("../../peers/home/private.key")),
        peers: vec![("vps".to_owned(), file("peers/vps.toml", include_str!("../../peers/vps.toml")))],
        preshared_keys: BTreeMap::default(),
    };
    parse(&files).unwrap()
}

/// Behind a router, with one network that it was told of and a tunnel of somebody else's.
fn facts() -> HostFacts {
    let route = |destination: &str, gateway: Option<&str>, device: &str| MainRoute {
        destination: net(destination),
        gateway: gateway.map(ip),
        device: Some(device.to_owned()),
        metric: 0,
    };
    HostFacts {
        main: vec![
            route("0.0.0.0/0", Some("192.168.1.1"), "eth0"),
            route("192.168.1.0/24", None, "eth0"),
            route("10.200.0.0/16", None, "tailscale0"),
            route("10.88.0.0/24", None, "mesh0"),
            route("10.89.2.0/24", None, "br0"),
            route("::/0", Some("2001:db8:168::1"), "eth0"),
            route("2001:db8:168::/64", None, "eth0"),
        ],
        ..HostFacts::default()
    }
}

fn everything(config: &Config) -> Vec<Probe> {
    let mut all = Vec::new();
    for (number, leg) in legs().iter().enumerate() {
        let endpoints = [ip("203.0.113.10"), ip("2001:db8:1::10")];
        let targets = targets(config, &facts(), &run(), leg, &[], &endpoints, &[ip("192.0.2.80")]);
        all.extend(probes(&run(), number, leg, &targets, all.len()));
    }
    all
}

/// The same packet as another host's masquerading would send it.
fn masqueraded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let at = if packet[0] >> 4 == 4 { 12 } else { 8 };
    packet[at] ^= 0x55;
    packet
}

#[test]
fn every_packet_is_sound_and_bears_its_marker() {
    let all = everything(&home(""));
    let recogniser = Recogniser::new(run(), &legs(), &all);
    for (number, probe) in (0u16..).zip(&all) {
        let marked = probe.packets.iter().filter(|packet| run().find(packet) == Some(Marked::Probe(number))).count();
        assert_eq!(marked, 1, "{probe:?}");
        for packet in &probe.packets {
            let sliced = SlicedPacket::from_ip(packet).unwrap_or_else(|error| panic!("{probe:?}: {error}"));
            let (source, destination) = match sliced.net.as_ref().unwrap() {
                NetSlice::Ipv4(v4) => {
                    assert_eq!(v4.header().header_checksum(), v4.header().to_header().calc_header_checksum());
                    (IpAddr::from(v4.header().source_addr()), IpAddr::from(v4.header().destination_addr()))
                }
                NetSlice::Ipv6(v6) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
                NetSlice::Arp(_) => panic!("{probe:?}"),
            };
            assert_eq!((source, destination), (probe.way.source, probe.way.destination));
            let sum = match sliced.transport {
                // The sum over a whole segment, its own included, is all ones.
                Some(TransportSlice::Udp(_) | TransportSlice::Tcp(_) | TransportSlice::Icmpv6(_)) => {
                    let (protocol, way, rest) = super::packet::transport(packet).unwrap();
                    let octets = if way.source.is_ipv4() { &packet[12..20] } else { &packet[8..40] };
                    Sum::default().pseudo_header(octets, protocol, rest.len() as u16).bytes(rest).complement()
                }
                _ => [0, 0],
            };
            assert_eq!(sum, [0, 0], "{probe:?}");
            let seen = recogniser.look(ethertype(packet), packet).unwrap();
            assert!(matches!(seen, Seen::Probe { leg, .. } if leg == probe.leg), "{probe:?}: {seen:?}");
        }
    }
}

#[test]
fn every_protocol_is_tried_in_both_families() {
    let all = everything(&home(""));
    for leg in [0, 1] {
        let shapes: Vec<&str> = all.iter().filter(|probe| probe.leg == leg).map(|probe| probe.shape.as_str()).collect();
        for shape in ["icmp", "udp", "tcp", "dns", "tcp 443", "udp 443", "udp in fragments", "protocol 253"] {
            assert!(shapes.contains(&shape), "{leg}: {shape}");
        }
        assert!(shapes.iter().any(|shape| shape.starts_with("udp as ")), "{leg}");
    }
    let sent_to = |address: &str| all.iter().any(|probe| probe.destination() == ip(address));
    for address in ["192.0.2.1", "169.254.169.254", "192.168.1.1", "203.0.113.10", "10.88.0.1", "192.0.2.80", "fd88::1"]
    {
        assert!(sent_to(address), "{address}");
    }
    for (network, device) in [("192.168.1.0/24", "eth0"), ("10.200.0.0/16", "tailscale0")] {
        let what = format!("{network} on {device}");
        assert!(all.iter().any(|probe| probe.what == what && net(network).contains(&probe.destination())), "{what}");
    }
}

#[test]
fn nothing_is_sent_to_where_the_bridge_may_go_directly() {
    let all = everything(&home("allow = [\"192.168.0.0/16\", \"203.0.113.10/32\"]"));
    let answered = |probe: &&Probe| !probe.answer && probe.what != "the host's name server";
    for probe in all.iter().filter(answered) {
        for allowed in ["192.168.0.0/16", "203.0.113.10/32", "10.89.0.0/16", "10.88.0.0/24", "fd89:2::/64"] {
            assert!(!net(allowed).contains(&probe.destination()), "{probe:?}");
        }
    }
}

#[test]
fn a_probe_is_known_again_in_every_disguise() {
    let all = everything(&home(""));
    let recogniser = Recogniser::new(run(), &legs(), &all);
    let number = |shape: &str, what: &str| {
        let found = all.iter().position(|probe| probe.shape == shape && probe.what == what);
        found.unwrap_or_else(|| panic!("no {shape} to {what}"))
    };
    let look = |packet: &[u8]| recogniser.look(ethertype(packet), packet);
    let by = |number: usize, by| Some(Seen::Probe { leg: all[number].leg, number: Some(number as u16), by });

    let udp = number("udp", "the internet");
    assert_eq!(look(&masqueraded(&all[udp].packets[0])), by(udp, "marker"));
    // A resolver asks somebody else, in letters of its own.
    let dns = number("dns", "the host's name server");
    let way = Way { source: ip("192.168.1.20"), destination: ip("192.168.1.1") };
    let label = run().marker(dns as u16).to_ascii_uppercase();
    assert_eq!(look(&way.dns(4711, 1, &label)), by(dns, "marker"));
    // A proxy makes a connection of its own.
    let tcp = number("tcp", "the internet");
    let way = Way { source: ip("192.168.1.20"), ..all[tcp].way };
    let (_, port) = all[tcp].port.unwrap();
    assert_eq!(look(&way.syn((4711, port), 1, &[])), by(tcp, "destination"));
    assert_eq!(look(&way.syn((4711, port ^ 1), 1, &[])), None);
    assert_eq!(look(&way.syn((4711, 443), 1, &[])), None, "others may go there");
    // A second fragment, say, without the marker.
    let own = Way { source: legs()[1].address, destination: ip("2001:db8:9::9") };
    assert_eq!(look(&own.packet(6, &[])), Some(Seen::Probe { leg: 1, number: None, by: "source" }));

    // Whoever asks for a neighbour that nobody but a probe wants.
    let lan = number("icmp", "192.168.1.0/24 on eth0");
    let asks = |target: IpAddr| {
        let question = Neighbour { answer: false, target, sender: ip("192.168.1.20"), mac: [2; 6] };
        recogniser.look(ETHERTYPE_ARP, &question.frame(None)[14..])
    };
    assert!(matches!(asks(all[lan].destination()), Some(Seen::Probe { leg: 0, by: "neighbour", .. })));
    assert_eq!(asks(ip("192.168.1.1")), None, "the host itself looks for its router");

    let other = Recogniser::new(Run::new([8; 18]), &[], &[]);
    assert!(all.iter().flat_map(|probe| &probe.packets).all(|packet| other.look(ethertype(packet), packet).is_none()));
}

#[test]
fn controls_are_known_again() {
    let recogniser = Recogniser::new(run(), &legs(), &[]);
    for interface in [0, 1, 700] {
        for (after, ipv6) in [(false, false), (false, true), (true, false), (true, true)] {
            let control = Control { interface, after, ipv6 };
            let packet = run().control(control);
            assert!(SlicedPacket::from_ip(&packet).is_ok());
            assert_eq!(recogniser.look(ethertype(&packet), &packet), Some(Seen::Control(control)));
        }
    }
}

#[test]
fn answers_count_only_where_they_prove_something() {
    let all = everything(&home(""));
    let recogniser = Recogniser::new(run(), &legs(), &all);
    let back = |probe: &Probe| Way { source: probe.way.destination, destination: probe.way.source };
    for (number, probe) in (0u16..).zip(&all) {
        let marker = run().marker(number);
        let port = probe.reply.unwrap();
        let answer = match probe.shape.as_str() {
            "icmp" => {
                let mut echoed = probe.packets[0].clone();
                let at = if probe.way.source.is_ipv4() { 20 } else { 40 };
                echoed[at] = if probe.way.source.is_ipv4() { 0 } else { 129 };
                echoed
            }
            "tcp 443" => back(probe).syn((443, port), 1, &[]),
            "dns" => back(probe).udp((53, port), &marker),
            _ => continue,
        };
        assert_eq!(recogniser.answered(&answer), probe.answer.then_some(number), "{probe:?}");
        assert_eq!(
            recogniser.answered(&probe.packets[0]).filter(|_| probe.shape == "icmp"),
            None,
            "no answer to itself"
        );
    }
}

#[test]
fn a_connection_is_ended_that_somebody_took() {
    let way = Way { source: ip("192.0.2.80"), destination: ip("10.89.2.200") };
    let mut taken = way.syn((443, 20_000), 99, &[]);
    assert!(super::reset(&taken).is_some());
    taken[20 + 8..20 + 12].copy_from_slice(&5000u32.to_be_bytes());
    let reset = super::reset(&taken).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ip(&reset).unwrap().transport else { panic!("no TCP") };
    assert!(tcp.rst() && !tcp.syn());
    assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.sequence_number()), (20_000, 443, 5000));
    assert_eq!(super::reset(&reset), None, "never a reset for a reset");
}

#[test]
fn questions_and_answers_between_neighbours() {
    let mac = [2, 0x4d, 1, 2, 3, 4];
    for (target, sender, nobody) in [("10.89.2.1", "10.89.2.200", "0.0.0.0"), ("fd89:2::1", "fd89:2::200", "::")] {
        for sender in [sender, nobody] {
            let question = Neighbour { answer: false, target: ip(target), sender: ip(sender), mac };
            let frame = question.frame(None);
            assert_eq!(Neighbour::parse(&frame), Some(question));
            assert!(frame[0] & 1 == 1, "to more than one");
            assert!(SlicedPacket::from_ethernet(&frame).is_ok());
        }
        let answer = Neighbour { answer: true, target: ip(target), sender: ip(target), mac };
        let frame = answer.frame(Some(([6; 6], ip(sender))));
        assert_eq!((Neighbour::parse(&frame), &frame[..6]), (Some(answer), &[6; 6][..]));
    }
    assert_eq!(multicast(ip("239.255.255.88")), Some([1, 0, 0x5e, 0x7f, 255, 88]));
    assert_eq!(multicast(ip("ff02::fb")), Some([0x33, 0x33, 0, 0, 0, 0xfb]));
    assert_eq!(multicast(ip("192.0.2.1")), None);
}

#[test]
fn verdicts() {
    let leak = Leak {
        interface: "eth0".to_owned(),
        time: 0,
        count: 1,
        probe: None,
        target: None,
        destination: None,
        packet: String::new(),
        recognised_by: "source".to_owned(),
    };
    let leg = |probes, problem: Option<&str>, leaks: &[&Leak]| LegReport {
        name: "br0".to_owned(),
        egress: "vps".to_owned(),
        subnet: None,
        address: None,
        verdict: Verdict::Inconclusive,
        problem: problem.map(str::to_owned),
        probes,
        tunnel: 0,
        answers: Vec::new(),
        leaks: leaks.iter().map(|leak| (*leak).clone()).collect(),
    };
    let capture = |controls, seen| CaptureReport { interface: "eth0".to_owned(), controls, seen, frames: 9 };
    let judge = |captures: Vec<CaptureReport>, missed, bridges: Vec<LegReport>| {
        let report = Report {
            verdict: Verdict::Nothing,
            tag: String::new(),
            agent: true,
            interface: "mesh0".to_owned(),
            seconds: 3,
            captures,
            missed,
            bridges,
            warnings: Vec::new(),
        };
        report.judged().verdict
    };
    let good = || vec![capture(4, 4), capture(0, 0)];
    assert_eq!(judge(good(), 0, vec![leg(9, None, &[])]), Verdict::Closed);
    assert_eq!(judge(vec![], 0, vec![]), Verdict::Nothing);
    for (captures, missed, leg) in [
        (vec![capture(4, 4), capture(4, 3)], 0, leg(9, None, &[])),
        (vec![capture(0, 0)], 0, leg(9, None, &[])),
        (vec![], 0, leg(9, None, &[])),
        (good(), 1, leg(9, None, &[])),
        (good(), 0, leg(0, None, &[])),
        (good(), 0, leg(0, Some("it does not exist"), &[])),
    ] {
        assert_eq!(judge(captures, missed, vec![leg]), Verdict::Inconclusive);
    }
    // A leak is one, however bad the capture.
    assert_eq!(judge(vec![capture(4, 0)], 7, vec![leg(9, None, &[]), leg(9, None, &[&leak])]), Verdict::Leak);

    let mut counted = leg(9, None, &[]);
    for _ in 0..3 {
        counted.add(leak.clone());
    }
    counted.add(Leak { interface: "eth1".to_owned(), ..leak });
    assert_eq!(counted.leaks.iter().map(|leak| leak.count).collect::<Vec<_>>(), [3, 1]);
}

proptest! {
    #[test]
    fn candidates_are_hosts_of_the_network(random: [u8; 18], prefix in 8u8..=32, attempt in 0u32..40) {
        let net = IpNet::new(ip("10.89.2.1"), prefix).unwrap();
        let found = Run::new(random).candidate(net, attempt);
        prop_assert_eq!(found.is_some(), prefix <= 30);
        let IpNet::V4(v4) = net else { unreachable!() };
        prop_assert!(found.is_none_or(|found| net.contains(&found) && found != v4.network() && found != v4.broadcast()));

        let net = IpNet::new(ip("fd89:2::1"), prefix * 4).unwrap();
        let found = Run::new(random).candidate(net, attempt);
        prop_assert!(prefix > 31 || found.is_some_and(|found| net.contains(&found) && found != net.network()));
    }

    #[test]
    fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0..4u8) {
        let all = everything(&home(""));
        let recogniser = Recogniser::new(run(), &legs(), &all);
        let ethertype = [ETHERTYPE_ARP, 0x0800, 0x86dd, 0x88cc][usize::from(kind)];
        let _ = recogniser.look(ethertype, &bytes);
        let _ = recogniser.answered(&bytes);
        let _ = describe(ethertype, &bytes);
        let _ = Neighbour::parse(&bytes);
        let _ = super::reset(&bytes);
    }
}
