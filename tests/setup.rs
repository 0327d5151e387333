//! From nothing to traffic by commands alone, as the README tells it.

mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lab::host::Host;
use lab::traffic::seen_by;
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, WEB6, secs, wait_for};

/// A lab whose hosts have no configuration.
fn bare() -> Lab {
    let lab = Lab::new();
    for host in [&lab.vps, &lab.home] {
        fs::remove_dir_all(host.config("")).expect("remove the worked example");
    }
    lab
}

fn init(host: &Host, number: u8, more: &[&str]) -> String {
    let (v4, v6) = (format!("10.88.0.{number}/24"), format!("fd88::{number}/64"));
    let fixed = ["init", "--name", host.name, "--address", &v4, "--address", &v6, "--bridge", "br0"];
    host.meshd(&[&fixed, more].concat());
    fs::read(host.config("private.key")).expect("a private key");
    host.public_key()
}

#[test]
fn two_hosts_become_a_mesh() {
    let lab = bare();
    let vps = init(&lab.vps, 1, &["--endpoint", "203.0.113.10:51820"]);
    let home = init(&lab.home, 2, &[]);
    lab.start();
    let add = |host: &Host, name, key: &str, number: u8, more: &[&str]| {
        let addresses = [format!("10.88.0.{number}"), format!("fd88::{number}")];
        let subnets = [format!("10.89.{number}.0/24"), format!("fd89:{number}::/64")];
        let fixed = ["peer", "add", name, "--public-key", key, "--address", &addresses[0], "--address", &addresses[1]];
        host.meshd(&[&fixed[..], &["--subnet", &subnets[0], "--subnet", &subnets[1]], more].concat());
    };
    add(&lab.vps, "home", &home, 2, &[]);
    add(&lab.home, "vps", &vps, 1, &["--endpoint", "203.0.113.10:51820"]);
    for to in [PROXY, PROXY6] {
        assert!(lab.nextcloud.ping(to), "{to}");
    }
    for to in [NEXTCLOUD, NEXTCLOUD6] {
        assert!(lab.proxy.ping(to), "{to}");
    }

    // The egress is what the files are edited for.
    let text = lab.vps.read("meshd.toml");
    lab.vps.write("meshd.toml", &format!("{text}\n[exit]\npeers = [\"home\"]\n"));
    lab.vps.meshd(&["reload"]);
    let text = lab.home.read("meshd.toml");
    assert!(text.contains("# egress = \"direct\""), "{text}");
    lab.home.write("meshd.toml", &text.replacen("# egress = \"direct\"", "egress = \"vps\"", 1));
    lab.home.meshd(&["reload"]);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    assert_eq!(seen_by(&lab.nextcloud, WEB6).expect("the exit"), VPS6);
}

#[test]
fn up_writes_a_first_configuration_and_says_what_is_next() {
    let lab = bare();
    let said = lab.home.meshd(&["up", "--detach"]);
    for part in ["br0", "meshd peer add", lab.home.public_key().as_str()] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let mode = fs::metadata(lab.home.config("private.key")).expect("a private key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(lab.home.status()["listen_port"], 51820);
    assert_eq!(lab.home.status()["bridges"], serde_json::json!([]), "a bridge is suggested, not taken");

    let written = [lab.home.read("meshd.toml"), lab.home.read("private.key")];
    lab.home.down();
    lab.home.up();
    assert_eq!(
        [lab.home.read("meshd.toml"), lab.home.read("private.key")],
        written,
        "a second start overwrites nothing"
    );
}

#[test]
fn peers_come_and_go_at_once() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let key = lab.vps.run("wg genkey | wg pubkey").trim().to_owned();
    lab.vps.meshd(&["peer", "add", "laptop", "--public-key", &key, "--address", "10.88.0.7"]);
    assert_eq!(lab.vps.wg_show("allowed-ips")[&key], ["10.88.0.7/32"]);
    assert!(lab.vps.meshd(&["peer", "list"]).contains("laptop"));
    assert!(lab.vps.meshd(&["peer", "show", "laptop"]).contains(&key));

    for (name, address) in [("other", "10.88.0.2"), ("../escape", "10.88.0.8"), ("laptop", "10.88.0.9")] {
        let another = lab.vps.run("wg genkey | wg pubkey").trim().to_owned();
        let output = lab.vps.try_meshd(&["peer", "add", name, "--public-key", &another, "--address", address]);
        assert!(!output.status.success(), "{name} with {address} must be refused");
        assert!(!lab.vps.wg_show("peers").contains_key(&another));
    }
    lab.vps.meshd(&["peer", "remove", "laptop"]);
    assert!(!lab.vps.wg_show("peers").contains_key(&key));
    assert!(lab.nextcloud.ping(PROXY));
}

#[test]
fn a_removed_peer_is_cut_off_and_comes_back() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let home = lab.vps.read("peers/home.toml");
    lab.vps.replace("meshd.toml", "peers = [\"home\", \"phone\"]", "peers = [\"phone\"]");
    fs::remove_file(lab.vps.config("peers/home.toml")).expect("remove");
    lab.vps.meshd(&["reload"]);
    assert!(!lab.nextcloud.ping(PROXY), "a removed peer gets nothing through");
    lab.vps.write("peers/home.toml", &home);
    lab.vps.meshd(&["reload"]);
    // Home only learns that its session is gone from silence: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, 15 s.
    wait_for("home makes a new session", secs(30), || lab.nextcloud.ping(PROXY).then_some(()));
}
