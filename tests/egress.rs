//! Home's containers leave as the VPS, or not at all.

mod lab;

use lab::capture::Capture;
use lab::snapshot::Snapshot;
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

#[test]
fn what_others_flush_comes_back_within_a_second() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    // Singly: the other layer holds meanwhile, so nothing leaks at all.
    for theft in [
        "nft delete table inet meshd_guard",
        "nft delete table inet meshd",
        "nft flush ruleset",
        "ip rule del pref 88",
        "ip -6 rule del pref 88",
        "ip rule del pref 89",
        "ip route del 10.89.1.0/24 dev mesh0",
        "ip -6 route del fd89:1::/64 dev mesh0",
        "ip link set mesh0 down",
    ] {
        lab.home.run(theft);
        wait_for(theft, secs(1), || (lab.home.meshd(&["plan"]) == "nothing to change\n").then_some(()));
    }
    drop(probes);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "beside the tunnel: {seen:?}");
}

#[test]
fn a_second_agent_of_the_same_interface_touches_nothing() {
    let lab = Lab::up();
    let before = Snapshot::of(&lab.home);
    let other = lab.path("other");
    let folders = other.to_str().expect("a path");
    lab.home.run(&format!("mkdir -p {folders} && cp -a {} {folders}/etc", lab.home.config("").display()));
    lab.home.run(&format!("sed -i '/^listen_port/d; 1i listen_port = 51999' {folders}/etc/meshd.toml"));
    for command in ["up --detach", "down"] {
        let args: Vec<String> =
            format!("--dir {folders}/etc --run-dir {folders}/run --state-dir {folders}/state {command}")
                .split(' ')
                .map(str::to_owned)
                .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let stderr = lab.home.meshd_fails(1, &args);
        assert!(stderr.contains("mesh0 exists"), "{stderr}");
        before.assert_same(&Snapshot::of(&lab.home), command);
    }
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
}
