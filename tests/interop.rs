//! meshd beside WireGuard programs that others wrote, in both roles.

mod lab;

use std::time::{Duration, Instant};

use lab::host::Host;
use lab::other::{Other, installed};
use lab::traffic::{Ping, transfer};
use lab::{Lab, nat, secs, wait_for};

const PSK: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
const AT_VPS: &str = "10.88.0.1";
const AT_HOME: &str = "10.88.0.2";

/// Who runs the other program. Home initiates: it is behind NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// meshd on the VPS.
    Responder,
    /// meshd at home.
    Initiator,
}

impl Role {
    const BOTH: [Self; 2] = [Self::Responder, Self::Initiator];

    fn meshd(self, lab: &Lab) -> &Host {
        if self == Self::Responder { &lab.vps } else { &lab.home }
    }
}

/// meshd in its role, the other program in the other.
fn start(other: Other, role: Role, psk: &str, keepalive: u16) -> Lab {
    let lab = Lab::new();
    nat::forget_soon(&lab.isp);
    let shared = if psk.is_empty() { String::new() } else { format!("PresharedKey = {psk}\n") };
    let (meshd, remote) = (role.meshd(&lab), if role == Role::Responder { "home" } else { "vps" });
    if !psk.is_empty() {
        meshd.append(&format!("peers/{remote}.toml"), &format!("preshared_key = \"{psk}\""));
    }
    match role {
        Role::Responder => {
            meshd.up();
            let to = format!("Endpoint = 203.0.113.10:51820\nPersistentKeepalive = {keepalive}\n{shared}");
            other.start(&lab.home, &lab.vps, &to);
        }
        Role::Initiator => {
            other.start(&lab.vps, &lab.home, &shared);
            let line = format!("persistent_keepalive = {keepalive}");
            meshd.replace("peers/vps.toml", "persistent_keepalive = 25", &line);
            meshd.up();
        }
    }
    lab
}

fn both_ways_with_a_preshared_key(other: Other, role: Role) {
    let lab = start(other, role, PSK, 1);
    // Others may drop what waits for a handshake; that meshd does not is tested in mesh.rs.
    for (from, to) in [(&lab.home, AT_VPS), (&lab.home, "fd88::1"), (&lab.vps, AT_HOME), (&lab.vps, "fd88::2")] {
        let pinged = from.ping_with(to, "-c 5 -i 0.1 -W 2");
        assert!(pinged.lost() <= 1, "{} to {to}: {pinged:?}", from.name);
    }
    assert_eq!(lab.home.ping_with(AT_VPS, "-c 5 -i 0.02 -W 2 -s 4000").lost(), 0);
    assert_eq!(transfer(&lab.home, &lab.vps, AT_VPS, 5).to_string(), AT_HOME);
    assert_eq!(transfer(&lab.vps, &lab.home, AT_HOME, 5).to_string(), AT_VPS);
    assert_eq!(transfer(&lab.home, &lab.vps, "fd88::1", 1).to_string(), "fd88::2");

    let ping = Ping::start(&lab.home, AT_VPS, "-c 100 -i 0.02 -W 2");
    nat::rebind(&lab.isp, "198.51.100.8:40000-40100");
    let pinged = ping.finish();
    assert!(pinged.lost() <= 1, "roaming: {pinged:?}");
    let endpoints = lab.vps.wg_show("endpoints");
    let endpoint = &endpoints[&lab.home.public_key()][0];
    assert!(endpoint.starts_with("198.51.100.8:40"), "{endpoint}");

    let until = Instant::now() + secs(6);
    while Instant::now() < until {
        assert!(nat::knows_udp(&lab.isp), "the keepalives did not hold the NAT open");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(lab.vps.ping(AT_HOME), "through a NAT with a timeout of two seconds");
}

fn refuses_another_preshared_key(other: Other, role: Role) {
    let lab = start(other, role, PSK, 1);
    let wrong = "AAAAhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
    let (host, peer) = match role {
        Role::Responder => (&lab.vps, "home"),
        Role::Initiator => (&lab.home, "vps"),
    };
    assert!(lab.home.ping(AT_VPS));
    host.down();
    host.replace(&format!("peers/{peer}.toml"), PSK, wrong);
    host.up();
    assert!(!lab.home.ping(AT_VPS), "another preshared key must not work");
}

macro_rules! interop {
    ($($name:ident: $check:ident($other:ident, $role:ident);)*) => {
        $(#[test]
        fn $name() {
            $check(Other::$other, Role::$role);
        })*
    };
}

interop! {
    wireguard_go_as_initiator: both_ways_with_a_preshared_key(WireguardGo, Responder);
    wireguard_go_as_responder: both_ways_with_a_preshared_key(WireguardGo, Initiator);
    boringtun_as_initiator: both_ways_with_a_preshared_key(Boringtun, Responder);
    boringtun_as_responder: both_ways_with_a_preshared_key(Boringtun, Initiator);
    gotatun_as_initiator: both_ways_with_a_preshared_key(Gotatun, Responder);
    gotatun_as_responder: both_ways_with_a_preshared_key(Gotatun, Initiator);
    wrong_preshared_key_as_responder: refuses_another_preshared_key(WireguardGo, Responder);
    wrong_preshared_key_as_initiator: refuses_another_preshared_key(WireguardGo, Initiator);
}

/// One pair of hosts pinging each other for 155 s: past `REKEY_AFTER_TIME` (120 s), with handshakes counted by wg(8).
fn outlives(other: Other, role: Role) -> Result<(), String> {
    let lab = start(other, role, PSK, 1);
    let what = format!("{other:?}, meshd as {role:?}");
    if !lab.home.ping(AT_VPS) {
        return Err(format!("{what}: no traffic at all"));
    }
    let meshd = role.meshd(&lab);
    let handshake = || {
        let row = meshd.wg_show("latest-handshakes").into_values().find(|row| row[0] != "0");
        row.map(|row| row[0].parse::<u64>().expect("a time"))
    };
    let first = handshake().ok_or_else(|| format!("{what}: wg(8) shows no handshake"))?;
    let out = Ping::start(&lab.home, AT_VPS, "-c 775 -i 0.2 -W 2");
    let back = Ping::start(&lab.vps, AT_HOME, "-c 775 -i 0.2 -W 2");
    let (out, back) = (out.finish(), back.finish());
    let last = handshake().unwrap_or(first);
    if out.lost() > 1 || back.lost() > 1 || last < first + 110 {
        return Err(format!("{what}: {out:?} there, {back:?} back, handshakes at {first} and {last}"));
    }
    Ok(())
}

#[test]
fn a_session_outlives_rekeys() {
    // All at once, so that six times 155 s cost 155 s.
    let runs: Vec<_> = Other::ALL
        .into_iter()
        .flat_map(|other| Role::BOTH.map(|role| std::thread::spawn(move || outlives(other, role))))
        .collect();
    let results: Vec<_> = runs.into_iter().map(|run| run.join().unwrap_or(Err("panicked, see above".into()))).collect();
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn others_work_with_each_other() {
    // The lab's own proof: what fails with meshd does not fail because of the lab.
    for program in ["boringtun-cli", "gotatun"] {
        installed(program);
    }
    for (at_vps, at_home) in [(Other::WireguardGo, Other::Boringtun), (Other::Gotatun, Other::WireguardGo)] {
        let lab = Lab::new();
        nat::forget_soon(&lab.isp);
        at_vps.start(&lab.vps, &lab.home, &format!("PresharedKey = {PSK}"));
        let to = format!("Endpoint = 203.0.113.10:51820\nPersistentKeepalive = 1\nPresharedKey = {PSK}");
        at_home.start(&lab.home, &lab.vps, &to);
        assert!(lab.home.ping(AT_VPS));
        let ping = Ping::start(&lab.home, AT_VPS, "-c 50 -i 0.02 -W 2");
        nat::rebind(&lab.isp, "198.51.100.8:40000-40100");
        assert!(ping.finish().lost() <= 1);
        wait_for("the endpoint is followed", secs(5), || {
            let endpoints = lab.vps.wg_show("endpoints");
            endpoints[&lab.home.public_key()][0].starts_with("198.51.100.8:40").then_some(())
        });
    }
}
