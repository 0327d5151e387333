//! Endpoints that move, and NAT routers that forget.

mod lab;

use lab::traffic::Ping;
use lab::{HOME6, Lab, NEXTCLOUD, PROXY, nat, secs, wait_for};

/// The VPS's endpoint of home, as its own status says.
fn endpoint(lab: &Lab) -> String {
    lab.vps.peer("home")["endpoint"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn follows_the_nat_to_another_port_and_address() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let ping = Ping::start(&lab.nextcloud, PROXY, "-c 150 -i 0.02 -W 2");
    nat::rebind(&lab.isp, "198.51.100.7:40000-40100");
    wait_for("the VPS follows to another port", secs(5), || {
        endpoint(&lab).starts_with("198.51.100.7:40").then_some(())
    });
    nat::rebind(&lab.isp, "198.51.100.8:41000-41100");
    wait_for("the VPS follows to another address", secs(5), || {
        endpoint(&lab).starts_with("198.51.100.8:41").then_some(())
    });
    let pinged = ping.finish();
    assert!(pinged.lost() <= 2, "at most one packet each time: {pinged:?}");
    assert!(lab.proxy.ping(NEXTCLOUD), "the way back follows too");
}

#[test]
fn follows_from_ipv4_to_ipv6_and_back() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let key = lab.vps.public_key();
    let ping = Ping::start(&lab.nextcloud, PROXY, "-c 150 -i 0.02 -W 2");
    // An answer that is under way as the endpoint is set moves it back, as in every WireGuard: set it until it holds.
    let move_to = |to: &str| lab.home.run(&format!("wg set mesh0 peer {key} endpoint {to}:51820"));
    wait_for("the VPS follows to IPv6", secs(5), || {
        move_to(&format!("[{}]", lab::VPS6));
        endpoint(&lab).starts_with(&format!("[{HOME6}]:")).then_some(())
    });
    assert!(lab.proxy.ping(NEXTCLOUD), "the way back follows too");
    wait_for("the VPS follows to IPv4", secs(5), || {
        move_to(lab::VPS);
        endpoint(&lab).starts_with("198.51.100.7:").then_some(())
    });
    let pinged = ping.finish();
    assert!(pinged.lost() <= 2, "at most one packet each time: {pinged:?}");
}

#[test]
fn keepalives_hold_a_nat_open_that_forgets_after_two_seconds() {
    let lab = Lab::new();
    nat::forget_soon(&lab.isp);
    lab.home.replace("peers/vps.toml", "persistent_keepalive = 25", "");
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    wait_for("the router forgets home", secs(15), || (!nat::knows_udp(&lab.isp)).then_some(()));
    assert!(!lab.proxy.ping(NEXTCLOUD), "nothing can pass a NAT that forgot");

    lab.home.append("peers/vps.toml", "persistent_keepalive = 1");
    lab.home.meshd(&["reload"]);
    wait_for("a keepalive opens the NAT", secs(5), || nat::knows_udp(&lab.isp).then_some(()));
    let until = std::time::Instant::now() + secs(6);
    while std::time::Instant::now() < until {
        assert!(nat::knows_udp(&lab.isp), "the mapping was lost");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(lab.proxy.ping(NEXTCLOUD), "the VPS reaches home after silence");
}

#[test]
fn a_name_is_looked_up_again_when_its_peer_is_silent() {
    let lab = Lab::new();
    let hosts = lab.path("hosts");
    let point = |address: &str| std::fs::write(&hosts, format!("{address} vps.example.net\n")).expect("hosts");
    point("203.0.113.99");
    lab.home.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
    lab.home.replace("peers/vps.toml", "203.0.113.10:51820", "vps.example.net:51820");
    lab.start();
    assert_eq!(lab.home.peer("vps")["endpoint"], "203.0.113.99:51820");
    assert!(!lab.nextcloud.ping(PROXY), "nobody is at the old address");
    point(lab::VPS);
    wait_for("home finds the VPS at its new address", secs(60), || lab.nextcloud.ping(PROXY).then_some(()));
    assert_eq!(lab.home.peer("vps")["endpoint"], format!("{}:51820", lab::VPS));
}

#[test]
fn a_name_that_does_not_resolve_at_the_start_does_not_stop_it() {
    let lab = Lab::new();
    let hosts = lab.path("hosts");
    std::fs::write(&hosts, "").expect("hosts");
    lab.home.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
    lab.home.replace("peers/vps.toml", "203.0.113.10:51820", "vps.example.net:51820");
    lab.start();
    assert!(lab.home.peer("vps")["endpoint"].is_null());
    assert!(lab.home.run("nft list ruleset").contains("meshd_guard"), "closed while it waits");
    std::fs::write(&hosts, format!("{} vps.example.net\n", lab::VPS)).expect("hosts");
    wait_for("home finds the VPS", secs(30), || lab.nextcloud.ping(PROXY).then_some(()));
}
