//! The lab itself, with other people's WireGuard: what the other tests rely on must be true without meshd.

mod lab;

use std::time::Instant;

use lab::capture::Capture;
use lab::other::Other;
use lab::traffic::{MARKER, Probes, iperf, seen_by, transfer};
use lab::{HOME6, ISP, Lab, NEXTCLOUD, PROXY, PROXY6, WEB, WEB6, nat, secs, wait_for};

#[test]
fn is_built_in_well_under_two_seconds() {
    let fastest = (0..3).map(|_| Instant::now()).map(|start| (Lab::new(), start.elapsed()).1).min();
    assert!(fastest < Some(secs(2)), "{fastest:?}");
}

#[test]
fn home_is_behind_nat() {
    let lab = Lab::new();
    assert_eq!(seen_by(&lab.home, WEB).expect("IPv4"), ISP);
    assert_eq!(seen_by(&lab.home, WEB6).expect("IPv6"), HOME6);
    assert!(!lab.vps.ping("192.168.1.20"), "the VPS must not reach behind the NAT");
    assert!(!lab.vps.ping(HOME6), "home's router must let nothing in");
    assert!(!lab.nextcloud.ping(PROXY), "the bridges must not be connected without a tunnel");
    assert!(!lab.nextcloud.ping(PROXY6), "the bridges must not be connected without a tunnel");
}

#[test]
fn the_oracle_sees_plaintext_and_lets_the_tunnel_pass() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("without a guard"), ISP);
    let probes = Probes::start(&lab.nextcloud);
    wait_for("the oracle sees every kind of probe", secs(5), || {
        let seen = capture.seen();
        let leaked = |what: &str| seen.leaks.keys().any(|leak| leak.contains(what));
        let all = ["protocol 1", "protocol 6", "protocol 58", "UDP", WEB, WEB6, "51820"].into_iter().all(leaked);
        (all && seen.marked > 0).then_some(())
    });
    drop(probes);
    capture.finish();

    Other::WireguardGo.start(&lab.vps, &lab.home, "");
    Other::WireguardGo.start(&lab.home, &lab.vps, "Endpoint = 203.0.113.10:51820");
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    assert!(lab.home.ping("10.88.0.1"));
    assert_eq!(transfer(&lab.home, &lab.vps, "10.88.0.1", 1).to_string(), "10.88.0.2");
    wait_for("both directions are counted", secs(5), || {
        let seen = capture.seen();
        (seen.tunnel_tx > 1 << 20 && seen.tunnel_rx > 1000).then_some(())
    });
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "the tunnel's own packets are no leaks: {seen:?}");
}

#[test]
fn the_internet_loses_as_told_and_the_router_forgets() {
    let lab = Lab::new();
    nat::forget_soon(&lab.isp);
    Other::WireguardGo.start(&lab.vps, &lab.home, "");
    Other::WireguardGo.start(&lab.home, &lab.vps, "Endpoint = 203.0.113.10:51820");
    assert!(lab.home.ping("10.88.0.1"));
    nat::lose(&lab.internet, 50);
    let pinged = lab.home.ping_with("10.88.0.1", "-c 100 -i 0.01 -W 1");
    assert!(pinged.received > 5 && pinged.lost() > 50, "a quarter of {pinged:?} should come back");
    assert!(nat::lost(&lab.internet) >= pinged.lost());
    lab.internet.run("nft delete table inet loss");

    assert!(lab.vps.ping("10.88.0.2"));
    wait_for("the router forgets home's mapping", secs(10), || (!nat::knows_udp(&lab.isp)).then_some(()));
    assert!(!lab.vps.ping("10.88.0.2"), "nothing can pass a NAT that forgot");
    nat::rebind(&lab.isp, "198.51.100.8:40000-40100");
    assert!(lab.home.ping("10.88.0.1"));
    let endpoints = lab.vps.wg_show("endpoints");
    let endpoint = &endpoints[&lab.home.public_key()][0];
    assert!(endpoint.starts_with("198.51.100.8:40"), "{endpoint}");
}

#[test]
fn iperf_reports() {
    let lab = Lab::new();
    let end = iperf(&lab.nextcloud, &lab.home, "10.89.2.1", "-u -b 10M -t 1");
    assert!(end["sum"]["packets"].as_u64() > Some(100), "{end}");
    assert_eq!(transfer(&lab.home, &lab.nextcloud, NEXTCLOUD, 1).to_string(), "10.89.2.1");
}
