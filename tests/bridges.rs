//! What `egress` and `allow` of a bridge mean: `direct`, `none` and the networks beside the tunnel.

mod lab;

use lab::capture::Capture;
use lab::netns::Namespace;
use lab::services::Service;
use lab::traffic::{MARKER, seen_by};
use lab::{HOME6, ISP, Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, WEB6};

const OTHER: &str = "10.89.3.10";
const OTHER6: &str = "fd89:3::10";

/// A second bridge at home with a container on it, which the VPS knows of.
fn second_bridge(lab: &Lab, egress: &str) -> Namespace {
    let other = lab.attach_bridge(&lab.home, "other", 3);
    lab.home.append(
        "meshd.toml",
        &format!("[[bridge]]\nname = \"br3\"\nsubnets = [\"10.89.3.0/24\", \"fd89:3::/64\"]\negress = \"{egress}\""),
    );
    lab.vps.replace("peers/home.toml", "\"fd89:2::/64\"", "\"fd89:2::/64\", \"10.89.3.0/24\", \"fd89:3::/64\"");
    lab.masquerade_at_home_like_podman();
    lab.home.run("nft add rule inet podman post iifname br3 oifname eth0 masquerade");
    other
}

#[test]
fn two_bridges_of_a_host_leave_each_by_its_own_way_and_reach_each_other() {
    let lab = Lab::new();
    let other = second_bridge(&lab, "direct");
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("through the VPS"), VPS);
    assert_eq!(seen_by(&lab.nextcloud, WEB6).expect("through the VPS"), VPS6);
    assert_eq!(seen_by(&other, WEB).expect("directly"), ISP);
    assert_eq!(seen_by(&other, WEB6).expect("directly"), HOME6);
    assert!(other.ping("192.168.1.1") && !lab.nextcloud.ping("192.168.1.1"), "home's LAN");

    Service::start(&other, 9000).expect(&lab.nextcloud, true, &[OTHER, OTHER6]);
    Service::start(&lab.nextcloud, 9000).expect(&other, true, &[NEXTCLOUD, NEXTCLOUD6]);
    Service::start(&lab.proxy, 9000).expect(&other, true, &[PROXY, PROXY6]);
    Service::start(&other, 9001).expect(&lab.proxy, true, &[OTHER, OTHER6]);
    // Under its own name only.
    let at_nextcloud = Service::start(&lab.nextcloud, 9001);
    other.run("ip address add fd89:1::10/128 dev lo nodad");
    assert!(at_nextcloud.udp_from(&other, "[fd89:1::10]:0", NEXTCLOUD6).is_none(), "it speaks as the proxy");
}

#[test]
fn egress_none_beside_an_egress_bridge() {
    let lab = Lab::new();
    let other = second_bridge(&lab, "none");
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("through the VPS"), VPS);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    assert!(seen_by(&other, WEB).is_err() && seen_by(&other, WEB6).is_err(), "none");
    assert!(!other.ping("192.168.1.1"), "none");
    Service::start(&lab.proxy, 9000).expect(&other, true, &[PROXY, PROXY6]);
    Service::start(&lab.nextcloud, 9000).expect(&other, true, &[NEXTCLOUD, NEXTCLOUD6]);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "beside the tunnel: {seen:?}");
}

#[test]
fn a_change_of_egress_takes_effect_at_once() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.start();
    let becomes = |from: &str, to: &str| {
        lab.home.replace("meshd.toml", &format!("egress = \"{from}\""), &format!("egress = \"{to}\""));
        lab.home.meshd(&["reload"]);
        [WEB, WEB6].map(|server| seen_by(&lab.nextcloud, server).ok())
    };
    let addresses = |list: [&str; 2]| list.map(|address| Some(address.to_owned()));
    assert_eq!(becomes("vps", "direct"), addresses([ISP, HOME6]));
    assert_eq!(becomes("direct", "none"), [None, None]);
    assert_eq!(becomes("none", "vps"), addresses([VPS, VPS6]));
    assert!(lab.nextcloud.ping(PROXY));
}

#[test]
fn allow_opens_what_is_behind_a_gateway_and_ipv6() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    // Beyond home's router: a network that home's main table knows by a gateway, and one that it does not.
    lab.isp.run("ip address add 10.66.0.1/24 dev lo && ip address add 10.67.0.1/24 dev lo");
    lab.isp.run("ip address add fd66::1/64 dev lo nodad && ip address add fd68::1/64 dev lan nodad");
    lab.home.run("ip route add 10.66.0.0/24 via 192.168.1.1 && ip route add fd66::/64 via 2001:db8:168::1");
    lab.home.run("ip address add fd68::20/64 dev eth0 nodad");
    lab.start();
    let device = Service::start(&lab.isp, 9000);
    // The router's public address is there for the whole internet, through the exit too.
    let places = ["10.66.0.1", "fd66::1", "192.168.1.1", "fd68::1"];
    device.expect(&lab.home, true, &places);
    device.expect(&lab.nextcloud, false, &places);
    let allow = |networks: &str| {
        let text = lab.home.read("meshd.toml");
        let lines = text.lines().filter(|line| !line.starts_with("allow"));
        let lines = lines
            .map(|line| if line.starts_with("egress") { format!("allow = [{networks}]\n{line}") } else { line.into() });
        lab.home.write("meshd.toml", &(lines.collect::<Vec<_>>().join("\n") + "\n"));
        lab.home.meshd(&["reload"]);
    };
    allow("\"10.66.0.0/24\", \"fd66::/64\"");
    device.expect(&lab.nextcloud, true, &["10.66.0.1", "fd66::1"]);
    device.expect(&lab.nextcloud, false, &["192.168.1.1", "fd68::1", "10.67.0.1"]);
    allow("\"192.168.1.1/32\", \"fd68::/64\"");
    device.expect(&lab.nextcloud, true, &["192.168.1.1", "fd68::1"]);
    device.expect(&lab.nextcloud, false, &["10.66.0.1", "fd66::1"]);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("through the VPS"), VPS);
    allow("");
    device.expect(&lab.nextcloud, false, &places);
}

#[test]
fn two_agents_on_one_bridge_are_told() {
    let lab = Lab::up();
    let folders = lab.path("second");
    let folder = folders.to_str().expect("a path");
    lab.home.run(&format!("mkdir -p {folder} && cp -a {} {folder}/etc", lab.home.config("").display()));
    lab.home.run(&format!("sed -i '1i interface = \"mesh1\"\\nlisten_port = 0' {folder}/etc/meshd.toml"));
    let line = format!("--dir {folder}/etc --run-dir {folder}/run --state-dir {folder}/state plan --json");
    let second = lab.home.meshd(&line.split(' ').collect::<Vec<_>>());
    assert!(second.contains("bridge br0 is another agent's too"), "{second}");
    assert_eq!(lab.home.status()["warnings"].to_string(), "[]");
}
