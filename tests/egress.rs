//! Home's containers leave as the VPS, or not at all.

mod lab;

use lab::capture::Capture;
use lab::traffic::{MARKER, Probes, seen_by, transfer};
use lab::{HOME6, ISP, Lab, PROXY, VPS, VPS6, WEB, WEB6, secs, wait_for};
use nix::sys::signal::Signal;

#[test]
fn home_containers_are_seen_as_the_vps() {
    let lab = Lab::up();
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("IPv4"), VPS);
    assert_eq!(seen_by(&lab.nextcloud, WEB6).expect("IPv6"), VPS6);
    assert!(lab.nextcloud.ping(WEB));
    assert!(lab.nextcloud.ping(WEB6));
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "beside the tunnel: {seen:?}");
    assert!(seen.tunnel_tx > 0 && seen.tunnel_rx > 0, "{seen:?}");
}

#[test]
fn a_download_through_the_exit_arrives_unchanged() {
    let lab = Lab::up();
    for server in [WEB, WEB6] {
        let client = transfer(&lab.nextcloud, &lab.internet, server, 10).to_string();
        assert!([VPS, VPS6].contains(&client.as_str()), "{client}");
    }
}

#[test]
fn the_hosts_own_traffic_is_untouched() {
    let lab = Lab::up();
    assert_eq!(seen_by(&lab.home, WEB).expect("IPv4"), ISP);
    assert_eq!(seen_by(&lab.home, WEB6).expect("IPv6"), HOME6);
    assert_eq!(seen_by(&lab.vps, WEB).expect("IPv4"), VPS);
    assert_eq!(seen_by(&lab.vps, WEB6).expect("IPv6"), VPS6);
    assert!(lab.home.ping("192.168.1.1"), "home reaches its own router");
}

#[test]
fn the_exit_opens_no_private_network() {
    let lab = Lab::up();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit works"), VPS);
    for private in ["169.254.169.254", "10.55.0.1"] {
        assert!(lab.vps.ping(private), "the lab has {private} behind the VPS");
        assert!(!lab.nextcloud.ping(private), "exit clients must not reach {private}");
    }
}

#[test]
fn home_containers_reach_nothing_at_home() {
    let lab = Lab::up();
    lab.masquerade_at_home_like_podman();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit works"), VPS);
    assert!(!lab.nextcloud.ping("192.168.1.1"), "no `allow`, no home network");
    lab.home.replace("meshd.toml", "egress = \"vps\"", "allow = [\"192.168.1.0/24\"]\negress = \"vps\"");
    lab.home.meshd(&["reload"]);
    assert!(lab.nextcloud.ping("192.168.1.1"), "`allow` opens the home network");
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit works"), VPS);
}

#[test]
fn kill_9_under_traffic_leaks_nothing() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let oracle = Capture::start(&lab.home, "eth0", MARKER);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("a leak before meshd"), ISP);
    let probes = Probes::start(&lab.nextcloud);
    wait_for("the oracle sees plaintext", secs(5), || (oracle.seen().marked > 0).then_some(()));
    drop(probes);
    assert!(!oracle.finish().leaks.is_empty());

    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    for round in 0..5 {
        let before = capture.seen().tunnel_tx;
        wait_for("probes pass the tunnel", secs(5), || (capture.seen().tunnel_tx > before + 10_000).then_some(()));
        lab.home.end(Signal::SIGKILL);
        assert!(seen_by(&lab.nextcloud, WEB).is_err(), "round {round}: no agent, no internet");
        assert!(seen_by(&lab.nextcloud, WEB6).is_err(), "round {round}: no agent, no internet");
        assert!(lab.nextcloud.ping("10.89.2.1"), "round {round}: the local bridge still works");
        lab.home.up();
        assert_eq!(seen_by(&lab.nextcloud, WEB).expect("after the restart"), VPS, "round {round}");
        assert_eq!(seen_by(&lab.nextcloud, WEB6).expect("after the restart"), lab::VPS6, "round {round}");
        assert!(lab.nextcloud.ping(PROXY), "round {round}: the remote bridge after the restart");
    }
    drop(probes);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "beside the tunnel: {seen:?}");
}

/// What a dead or stopped agent must leave behind.
fn assert_closed(lab: &Lab) {
    for family in ["-4", "-6"] {
        let routes = lab.home.run(&format!("ip {family} route show table all"));
        assert!(routes.contains("unreachable default"), "{routes}");
    }
    let guard = lab.home.run("nft list table inet meshd_guard");
    assert!(guard.contains("drop"), "{guard}");
}

#[test]
fn each_of_the_two_guards_holds_alone() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    lab.home.end(Signal::SIGKILL);
    assert_closed(&lab);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let tries = |what: &str| {
        let probes = Probes::start(&lab.nextcloud);
        assert!(seen_by(&lab.nextcloud, WEB).is_err(), "{what}");
        assert!(seen_by(&lab.nextcloud, WEB6).is_err(), "{what}");
        drop(probes);
        let seen = capture.seen();
        assert!(seen.leaks.is_empty() && seen.marked == 0, "{what}: {seen:?}");
    };
    tries("both guards");
    let guard = lab.home.run("nft list table inet meshd_guard");
    lab.home.run("nft delete table inet meshd_guard");
    tries("the unreachable routes alone");
    std::fs::write(lab.path("guard.nft"), guard).expect("write");
    lab.home.run(&format!("nft -f {}", lab.path("guard.nft").display()));
    for family in ["-4", "-6"] {
        // All but the kernel's own three.
        lab.home.run(&format!(
            "ip {family} rule | sed 's/:.*//' | grep -vxE '0|32766|32767' | \
             while read pref; do ip {family} rule del pref $pref; done"
        ));
    }
    tries("the nft guard alone");
    // The probes themselves are no alibi: without any guard they get out.
    lab.home.run("nft delete table inet meshd_guard");
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("a leak"), ISP);
}

#[test]
fn a_plain_stop_fails_closed_and_down_opens() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    lab.home.end(Signal::SIGTERM);
    assert_closed(&lab);
    assert!(seen_by(&lab.nextcloud, WEB).is_err());
    assert!(seen_by(&lab.nextcloud, WEB6).is_err());
    lab.home.up();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("after the restart"), VPS);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "{seen:?}");

    lab.home.meshd(&["down", "--keep-guard"]);
    assert!(seen_by(&lab.nextcloud, WEB).is_err(), "--keep-guard keeps it");
    lab.home.up();
    lab.home.down();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("as without meshd"), ISP);
}

#[test]
fn egress_none_reaches_the_mesh_only() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"none\"");
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    assert!(seen_by(&lab.nextcloud, WEB).is_err());
    assert!(seen_by(&lab.nextcloud, WEB6).is_err());
    let seen = capture.finish();
    assert!(seen.leaks.is_empty(), "{seen:?}");
}
