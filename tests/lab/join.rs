//! Joining by commands alone, from nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Output, Stdio};

use super::Lab;
use super::host::{Host, describe};

/// A lab whose hosts have no configuration.
pub fn bare() -> Lab {
    let lab = Lab::new();
    for host in [&lab.vps, &lab.home] {
        fs::remove_dir_all(host.config("")).expect("remove the worked example");
    }
    lab
}

/// `meshd join -` with this on standard input.
pub fn join(host: &Host, token: &str) -> Output {
    joining(host, token).wait_with_output().expect("its end")
}

/// The same, on its way.
pub fn joining(host: &Host, token: &str) -> Child {
    let mut command = host.meshd_command(&["join", "-"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("meshd");
    // One that refuses its arguments may be gone already.
    let _ = child.stdin.take().expect("a pipe").write_all(token.as_bytes());
    child
}

/// A join that succeeds; what it said.
pub fn joined(host: &Host, token: &str) -> String {
    let output = join(host, token);
    assert!(output.status.success(), "{}", describe(&output));
    describe(&output)
}

/// Every folder and regular file below a folder, with its bytes.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            found.insert(path.display().to_string(), Vec::new());
            found.extend(files(&path));
        } else if path.is_file() {
            found.insert(path.display().to_string(), fs::read(&path).expect("a file"));
        }
    }
    found
}

/// `meshd init` on a host of the lab with its bridge: on the VPS with the mesh's first addresses and its endpoint.
pub fn init(host: &Host) {
    let more: &[&str] = match host.name {
        "vps" => &["--address", "10.88.0.1/24", "--address", "fd88::1/64", "--endpoint", "203.0.113.10:51820"],
        _ => &[],
    };
    host.meshd(&[&["init", "--name", host.name, "--bridge", "br0"], more].concat());
}

/// The token that `meshd peer add home` prints, for home's bridge.
pub fn invite(host: &Host, more: &[&str]) -> String {
    let fixed = ["peer", "add", "home", "--subnet", "10.89.2.0/24", "--subnet", "fd89:2::/64"];
    let said = host.meshd(&[&fixed, more].concat());
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim().to_owned()
}
