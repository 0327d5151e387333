//! `meshd guard`: egress bridges are closed before there is an agent, with files that nobody can read, and after a reboot.

mod lab;

use std::fs;

use lab::capture::Capture;
use lab::snapshot::Snapshot;
use lab::traffic::{MARKER, Probes, seen_by};
use lab::{ISP, Lab, VPS, WEB, WEB6};
use nix::sys::signal::Signal;

/// A host whose containers leak as long as nobody guards them.
fn leaky() -> Lab {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("a leak before meshd"), ISP);
    lab
}

/// All rules with their handles: the same rules put there again have others.
fn handles(lab: &Lab) -> String {
    lab.home.run("nft -sa list table inet meshd_guard")
}

fn closed(lab: &Lab, what: &str) {
    for server in [WEB, WEB6] {
        assert!(seen_by(&lab.nextcloud, server).is_err(), "{what}: {server} was reached");
    }
}

/// What a reboot takes away of a network namespace: the process, nft, rules, tables, and the boot's identity.
fn reboot(lab: &Lab) {
    if lab.home.agent().is_some() {
        lab.home.end(Signal::SIGKILL);
    }
    lab.home.run(
        "nft flush ruleset; for f in -4 -6; do for p in 88 89; do while ip $f rule del pref $p 2>/dev/null; do :; done; done
         ip $f route flush proto 88 table all; done; ip -6 route flush proto 88 table all",
    );
    let id = lab.path("boot_id");
    fs::write(&id, format!("{:08x}-0000-4000-8000-000000000000\n", std::process::id())).expect("write");
    lab.home.run(&format!("mount --bind {} /proc/sys/kernel/random/boot_id", id.display()));
    lab.masquerade_at_home_like_podman();
}

#[test]
fn it_closes_bridges_before_the_agent_which_takes_it_over_without_a_gap() {
    let lab = leaky();
    lab.vps.up();
    let before = Snapshot::of(&lab.home);
    lab.home.run("ip link set br0 name br-later");
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "armed\n", "needs no bridge");
    lab.home.run("ip link set br-later name br0");
    let armed = handles(&lab);
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    closed(&lab, "armed");
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "armed already\n");
    assert_eq!(lab.home.meshd(&["guard", "status"]), "BRIDGE  EGRESS  GUARD\nbr0     vps     armed\n");

    lab.home.up();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "the running agent keeps the guard\n");
    let stderr = lab.home.meshd_fails(1, &["guard", "disarm"]);
    assert!(stderr.contains("an agent runs") && stderr.contains("try: meshd down"), "{stderr}");
    lab.home.meshd(&["down", "--keep-guard"]);
    closed(&lab, "--keep-guard");
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "armed already\n");
    lab.home.up();
    assert_eq!(handles(&lab), armed, "one and the same guard from first to last");
    lab.home.end(Signal::SIGKILL);
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "armed already\n");
    drop(probes);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "beside the tunnel: {seen:?}");

    lab.home.down();
    before.assert_same(&Snapshot::of(&lab.home), "down");
    lab.home.meshd(&["guard", "arm"]);
    assert_eq!(lab.home.meshd(&["guard", "disarm"]), "disarmed; egress bridges are open\n");
    assert_eq!(lab.home.meshd(&["guard", "disarm"]), "no guard stood\n");
    before.assert_same(&Snapshot::of(&lab.home), "disarm");
    assert!(!lab.home.state_file("journal.json").exists());
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("open again"), ISP);
}

#[test]
fn a_boot_with_broken_files_is_closed_as_last_configured() {
    let lab = leaky();
    lab.vps.up();
    let good = lab.home.read("meshd.toml");
    lab.home.write("meshd.toml", "name = ");
    let stderr = lab.home.meshd_fails(1, &["guard", "arm"]);
    assert!(stderr.contains("meshd.toml:1") && stderr.contains("not armed"), "{stderr}");

    lab.home.write("meshd.toml", &good);
    lab.home.up();
    // Taken down on purpose, edited, booted: the next boot is closed, as every boot with the unit is.
    lab.home.down();
    for broken in ["name = ", ""] {
        lab.home.write("meshd.toml", broken);
        reboot(&lab);
        assert_eq!(seen_by(&lab.nextcloud, WEB).expect("nothing closes it yet"), ISP);
        let stderr = lab.home.meshd_fails(4, &["guard", "arm"]);
        assert!(stderr.contains("meshd.toml") && stderr.contains("armed as last configured, from "), "{stderr}");
        assert!(stderr.contains("try: "), "{stderr}");
        closed(&lab, "armed as last configured");
        lab.home.meshd_fails(4, &["guard", "status"]);
        lab.home.meshd_fails(4, &["up"]);
        closed(&lab, "no agent without files");
    }
    fs::remove_file(lab.home.config("private.key")).expect("a key");
    let stderr = lab.home.meshd_fails(1, &["up"]);
    assert!(stderr.contains("private.key") || stderr.contains("meshd.toml"), "{stderr}");
    closed(&lab, "no key");

    // What was kept is damaged too: whatever is armed stays, and the rest is said.
    let kept = lab.home.state_file("guard.nft");
    let text = fs::read_to_string(&kept).expect("the kept guard");
    fs::write(&kept, text.replace("drop", "accept")).expect("write");
    let stderr = lab.home.meshd_fails(1, &["guard", "arm"]);
    assert!(stderr.contains("guard.nft: damaged"), "{stderr}");
    closed(&lab, "what stood goes on standing");
}

#[test]
fn a_boot_of_a_host_that_was_up_is_closed_and_the_agent_takes_over() {
    let lab = leaky();
    lab.vps.up();
    lab.home.up();
    reboot(&lab);
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "armed\n");
    let armed = handles(&lab);
    closed(&lab, "before the agent");
    lab.home.up();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    assert_eq!(handles(&lab), armed);
    assert_eq!(lab.home.meshd(&["plan"]), "nothing to change\n");
}

#[test]
fn status_tells_armed_from_off_and_altered() {
    let lab = leaky();
    let guard = |name: &str| {
        let output = lab.home.try_meshd(&["guard", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let bridges = status["bridges"].as_array().expect("bridges").clone();
        let of = |bridge: &serde_json::Value| (bridge["name"] == name).then(|| bridge["guard"].clone());
        (output.status.code().expect("an exit code"), bridges.iter().find_map(of).unwrap_or_default())
    };
    assert_eq!(guard("br0"), (1, "off".into()));
    lab.home.meshd(&["guard", "arm"]);
    assert_eq!(guard("br0"), (0, "armed".into()));
    lab.home.run("nft insert rule inet meshd_guard forward accept");
    assert_eq!(guard("br0"), (1, "altered".into()));
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("altered indeed"), ISP);
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "armed\n");
    closed(&lab, "armed again");

    // Other bridges since.
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"vps\"\nallow = [\"192.168.1.0/24\"]");
    let second = "\n[[bridge]]\nname = \"br1\"\nsubnets = [\"10.89.3.0/24\"]\negress = \"none\"\n";
    lab.home.write("meshd.toml", &(lab.home.read("meshd.toml") + second));
    assert_eq!((guard("br0"), guard("br1")), ((1, "altered".into()), (1, "off".into())));
    let stderr = lab.home.meshd_fails(1, &["guard", "status"]);
    assert!(stderr.contains("br0 is altered, br1 is off\ntry: meshd guard arm"), "{stderr}");
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "armed\n");
    assert_eq!((guard("br0"), guard("br1")), ((0, "armed".into()), (0, "armed".into())));
    assert!(lab.nextcloud.ping("192.168.1.1"), "`allow` is allowed");
    closed(&lab, "all else");

    // No bridge needs one any more: neither now nor at a later boot.
    let text = lab.home.read("meshd.toml");
    lab.home.write("meshd.toml", &text.replace("\"vps\"", "\"direct\"").replace("\"none\"", "\"direct\""));
    lab.home.replace("meshd.toml", "allow = [\"192.168.1.0/24\"]", "");
    assert_eq!(lab.home.meshd(&["guard", "arm"]), "no bridge has an egress to guard\n");
    assert_eq!(guard("br0"), (0, serde_json::Value::Null));
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("direct"), ISP);
    assert!(!lab.home.state_file("guard.nft").exists());
}

#[test]
fn a_start_that_fails_leaves_bridges_closed() {
    let lab = leaky();
    lab.home.run("mkdir -p /dev/net; mount --bind /dev/null /dev/net/tun");
    let stderr = lab.home.meshd_fails(1, &["up", "--detach"]);
    assert!(stderr.contains("interface mesh0") && stderr.contains("the guard stays armed"), "{stderr}");
    closed(&lab, "no tunnel, no way out");
    assert!(!lab.home.run("ip rule").contains("88:"), "nothing else is left");
    lab.home.run("umount /dev/net/tun");
    lab.home.down();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("open"), ISP);
}
