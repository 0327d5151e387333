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
    let log = fs::File::create(phone.run_file("wireguard-go.log")).expect("a log file");
    let mut program = phone.command("wireguard-go");
    program.args(["-f", "mesh0"]).stdout(log.try_clone().expect("dup")).stderr(log).stdin(Stdio::null());
    // Killed with the namespace, like everything in it.
    drop(program.spawn().expect("wireguard-go"));
    wait_for("wireguard-go answers wg(8)", secs(10), || phone.try_run("wg show mesh0").status.success().then_some(()));
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

/// Rewrites what the VPS has about it, all but the key.
pub fn rewrite(lab: &Lab, phone: &Host, rest: &str) {
    lab.vps.write("peers/phone.toml", &file(&phone.public_key(), rest));
}

fn file(key: &str, rest: &str) -> String {
    format!("public_key = \"{key}\"\naddresses = [\"{PHONE}\", \"{PHONE6}\"]\n{rest}\n")
}
