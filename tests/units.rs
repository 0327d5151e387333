//! The systemd units: systemd itself finds no fault in them, and the guard comes when it must.

use std::fs;
use std::path::Path;
use std::process::Command;

const UNITS: [&str; 2] = ["meshd-guard.service", "meshd.service"];

fn source(unit: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(unit);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A unit's values of one key, over all its lines.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| *name == key);
    lines.flat_map(|(_, value)| value.split_whitespace()).collect()
}

#[test]
fn systemd_finds_no_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    for unit in UNITS {
        // It looks whether the program is there.
        let text = source(unit).replace("/usr/bin/meshd", env!("CARGO_BIN_EXE_meshd"));
        fs::write(folder.path().join(unit), text).expect("write");
    }
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(UNITS.map(|unit| folder.path().join(unit)))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
        .output()
        .expect("systemd-analyze: apt install systemd");
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    // What it says of other units of this machine is not about ours.
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("meshd")).collect();
    assert!(verify.status.success() && about_ours.is_empty(), "{said}");
}

#[test]
fn little_is_left_to_whoever_takes_the_agent_over() {
    for unit in UNITS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(unit);
        // Exposure in tenths: 2.0.
        let security = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", "--threshold=20"])
            .arg(&path)
            .output()
            .expect("systemd-analyze: apt install systemd");
        assert!(security.status.success(), "{unit}\n{}", String::from_utf8_lossy(&security.stdout));
        let text = source(unit);
        assert!(values(&text, "CapabilityBoundingSet").contains(&"CAP_NET_ADMIN"));
        assert_eq!(values(&text, "CapabilityBoundingSet"), values(&text, "AmbientCapabilities"), "{unit}");
        assert_eq!(values(&text, "User"), ["meshd"]);
    }
}

#[test]
fn a_restart_keeps_descriptors_and_what_the_next_process_reads() {
    let agent = source(UNITS[1]);
    let most: usize = values(&agent, "FileDescriptorStoreMax")[0].parse().expect("a number");
    assert!(most >= 2 * 64, "a queue and a socket for each of `workers`, at most 64");
    assert_eq!(values(&agent, "RuntimeDirectoryPreserve"), ["yes"]);
    assert_eq!(values(&agent, "Type"), ["notify"]);
    assert!(!values(&agent, "WatchdogSec").is_empty());
}

#[test]
fn the_guard_comes_before_the_network_and_after_what_flushes_rules() {
    let guard = source(UNITS[0]);
    for later in ["network-pre.target", "docker.service", "podman.service"] {
        assert!(values(&guard, "Before").contains(&later), "{later}");
    }
    for key in ["After", "PartOf", "ReloadPropagatedFrom"] {
        assert!(values(&guard, key).contains(&"nftables.service"), "{key}");
    }
    assert!(guard.contains("DefaultDependencies=no") && !guard.contains("ExecStop"));
    let agent = source(UNITS[1]);
    assert!(values(&agent, "After").contains(&UNITS[0]) && values(&agent, "Wants").contains(&UNITS[0]));
    // It is the exit code of `meshd down` that keeps it down.
    assert_eq!(values(&agent, "Restart"), ["on-failure"]);
}
