//! A phone on the internet: wireguard-go with the configuration of the stock app, all its traffic through the VPS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::host::Host;
use super::{Lab, PORT, VPS, secs, wait_for};

/// Its address in the mesh, as in `peers/phone.toml`.
pub const PHONE: &str = "10.88.0.3";
/// The same over IPv6.
pub const PHONE6: &str = "fd88::3";

/// Starts the lab's agents, with `rest` in the VPS's file about the phone, and then the phone.
pub fn start_all(lab: &Lab, rest: &str) -> Host {
    let phone = lab.add_host("phone", 103);
    let key = phone.public_key();
    lab.vps.write("peers/phone.toml", &file(&key, rest));
    lab.start();
    wireguard_go(&phone);
    let path = phone.config("stock.conf");
    let conf = format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = {VPS}:{PORT}\nAllowedIPs = 0.0.0.0/0, ::/0\n\
         PersistentKeepalive = 25\n",
        phone.read("private.key").trim(),
        lab.vps.public_key(),
    );
    fs::write(&path, conf).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    phone.run(&format!(
        "wg setconf mesh0 {} && ip address add {PHONE}/32 dev mesh0 && ip address add {PHONE6}/128 dev mesh0 nodad && \
         ip link set mesh0 mtu 1420 up && ip route add {VPS} via 198.18.103.1 && ip route replace default dev mesh0 && \
         ip -6 route replace default dev mesh0",
        path.display(),
    ));
    phone
}

/// Starts wireguard-go on this host, with an interface that has no configuration yet.
pub fn wireguard_go(host: &Host) {
    let log = fs::File::create(host.run_file("wireguard-go.log")).expect("a log file");
    let mut program = host.command("wireguard-go");
    program.args(["-f", "mesh0"]).stdout(log.try_clone().expect("dup")).stderr(log).stdin(Stdio::null());
    // Killed with the namespace, like everything in it.
    drop(program.spawn().expect("wireguard-go"));
    wait_for("wireguard-go answers wg(8)", secs(10), || host.try_run("wg show mesh0").status.success().then_some(()));
}

/// Gives it a file as wg-quick has it, which is what `wg-quick up` does but for routes of everything.
pub fn apply(host: &Host, conf: &str) {
    let path = host.config("mesh0.conf");
    fs::write(&path, conf).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    let path = path.display();
    host.run(&format!(
        "wg-quick strip {path} >{path}.wg && wg setconf mesh0 {path}.wg && ip link set mesh0 mtu 1420 up"
    ));
    let values = |key: &str| {
        let lines = conf.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        lines.flat_map(|line| line.split(", ").map(str::to_owned)).collect::<Vec<_>>()
    };
    for address in values("Address") {
        let flags = if address.contains(':') { "nodad" } else { "" };
        host.run(&format!("ip address add {address} dev mesh0 {flags}"));
    }
    for net in values("AllowedIPs").iter().filter(|net| !net.ends_with("/0")) {
        host.run(&format!("ip route replace {net} dev mesh0"));
    }
}

/// All that a host on the internet, 198.18.`number`.2, sends goes into the tunnel to the VPS.
pub fn everything(host: &Host, number: u8) {
    host.run(&format!(
        "ip route add {VPS} via 198.18.{number}.1 && ip route replace default dev mesh0 && \
         ip -6 route replace default dev mesh0",
    ));
}

/// Rewrites what the VPS has about it, all but the key.
pub fn rewrite(lab: &Lab, phone: &Host, rest: &str) {
    lab.vps.write("peers/phone.toml", &file(&phone.public_key(), rest));
}

fn file(key: &str, rest: &str) -> String {
    format!("public_key = \"{key}\"\naddresses = [\"{PHONE}\", \"{PHONE6}\"]\n{rest}\n")
}
