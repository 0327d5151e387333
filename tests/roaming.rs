//! Endpoints that move, and NAT routers that forget.

mod lab;

use lab::traffic::Ping;
use lab::{HOME6, Lab, NEXTCLOUD, PROXY, nat, secs, wait_for};
use nix::sys::signal::Signal;

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
    lab.home.run(&format!("wg set mesh0 peer {key} endpoint [{}]:51820", lab::VPS6));
    wait_for("the VPS follows to IPv6", secs(5), || endpoint(&lab).starts_with(&format!("[{HOME6}]:")).then_some(()));
    assert!(lab.proxy.ping(NEXTCLOUD), "the way back follows too");
    lab.home.run(&format!("wg set mesh0 peer {key} endpoint {}:51820", lab::VPS));
    wait_for("the VPS follows to IPv4", secs(5), || endpoint(&lab).starts_with("198.51.100.7:").then_some(()));
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
fn a_killed_vps_is_found_again() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    lab.vps.end(Signal::SIGKILL);
    assert!(!lab.nextcloud.ping(PROXY));
    lab.vps.up();
    // Home only learns that its session is gone from silence: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, 15 s.
    wait_for("home makes a new session", secs(30), || lab.nextcloud.ping(PROXY).then_some(()));
    assert!(lab.proxy.ping(NEXTCLOUD), "and the VPS knows the way back");
}
