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
        let text = source(unit).replace("/usr/local/bin/meshd", env!("CARGO_BIN_EXE_meshd"));
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
