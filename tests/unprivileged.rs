//! The agent as the packaged unit runs it: a user of its own with three capabilities, beside root's commands.

mod lab;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Output;

use lab::container::{Container, as_user as by};
use lab::host::{Host, describe};
use lab::snapshot::Snapshot;
use lab::traffic::seen_by;
use lab::{Lab, NEXTCLOUD, PROXY, VPS, WEB, root};
use nix::sys::signal::Signal;

/// Any but root's.
const USER: u32 = 4711;

/// As User=, AmbientCapabilities= and CapabilityBoundingSet= of meshd.service.
fn as_user(host: &Host, args: &[&str]) -> Output {
    let unit = fs::read_to_string(root().join("deploy/systemd/meshd.service")).expect("the unit");
    let bounds = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("capabilities");
    let capabilities = format!(",{}", bounds.to_lowercase().replace("cap_", "+").replace(' ', ","));
    let script = format!(
        "exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs --bounding-set -all{capabilities} \
         --inh-caps -all{capabilities} --ambient-caps -all{capabilities} -- \"$0\" \"$@\""
    );
    host.meshd_through(&script, args).output().expect("setpriv")
}

fn up(host: &Host) {
    let output = as_user(host, &["up", "--detach"]);
    assert!(output.status.success(), "{}", describe(&output));
}

/// A lab whose folders belong to the user, as the package has it.
fn lab() -> Lab {
    let lab = Lab::new();
    fs::set_permissions(lab.path(""), fs::Permissions::from_mode(0o711)).expect("chmod");
    for host in [&lab.vps, &lab.home] {
        let folders = ["etc", "run", "state"].map(|folder| host.config("..").join(folder).display().to_string());
        host.run(&format!("chown -R {USER}:{USER} {} /run/wireguard", folders.join(" ")));
    }
    lab
}

fn owner(host: &Host, file: &str) -> (u32, u32) {
    let metadata = fs::metadata(host.config(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    (metadata.uid(), metadata.gid())
}

#[test]
fn it_does_all_that_root_does_and_leaves_nothing() {
    let lab = lab();
    lab.masquerade_at_home_like_podman();
    // As Docker has it.
    lab.home.run("iptables -P FORWARD DROP && iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER");
    let before = Snapshot::of(&lab.home);
    up(&lab.vps);
    up(&lab.home);
    assert!(lab.nextcloud.ping(PROXY) && lab.proxy.ping(NEXTCLOUD));
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("egress"), VPS);
    assert_eq!(lab.home.wg_show("peers").len(), 1);
    let agent = lab.home.agent().expect("an agent");
    let status = fs::read_to_string(format!("/proc/{agent}/status")).expect("a process");
    assert!(status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");
    assert!(!lab.home.log().contains("WARN"), "{}", lab.home.log());

    // Root's commands beside it.
    lab.home.meshd(&["status"]);
    lab.home.meshd(&["doctor", "--internet", WEB]);
    lab.home.meshd(&["reload"]);
    lab.home.meshd(&["down"]);
    before.assert_same(&Snapshot::of(&lab.home), "down");
}

/// Two users without rights, of whom one has the right to enter no namespace but the other's.
#[test]
fn it_attaches_the_containers_of_others() {
    const OWNER: u32 = 64_004;
    let lab = lab();
    let home = &lab.home;
    fs::set_permissions(home.config("..").as_path(), fs::Permissions::from_mode(0o711)).expect("chmod");
    let binary = lab.path("meshd");
    fs::copy(env!("CARGO_BIN_EXE_meshd"), &binary).expect("the binary");
    home.append("meshd.toml", &format!("\n[bridge.users.{OWNER}]\npublish = [\"tcp/443\"]"));
    up(home);
    let container = Container::start(home, OWNER);
    let attach = ["attach", &container.pid(), "--name", "cloud", "--publish", "tcp/443"];
    let output = by(home, OWNER, &binary).args(attach).env("MESHD_RUN_DIR", home.run_file("")).output().expect("meshd");
    assert!(output.status.success(), "{}", describe(&output));
    assert!(container.ping("10.89.2.1") && container.ping("fd89:2::1"));
    assert!(!home.log().contains("WARN"), "{}", home.log());
    home.meshd(&["detach", "cloud"]);
    assert!(!container.run("ip -br link").contains("eth0"));
}

#[test]
fn what_root_writes_is_the_agents_to_read() {
    let lab = lab();
    up(&lab.vps);
    let key = lab.vps.run("wg genkey | wg pubkey");
    lab.vps.meshd(&["peer", "add", "laptop", "--public-key", key.trim(), "--address", "10.88.0.9"]);
    lab.vps.meshd(&["peer", "add", "office", "--subnet", "10.89.9.0/24", "--egress"]);
    lab.vps.meshd(&["reload"]);
    assert_eq!(owner(&lab.vps, "peers/laptop.toml"), (USER, USER));
    let invitations = lab.vps.run(&format!("stat -c %u {}/invitations/*", lab.vps.state_file("").display()));
    assert_eq!(invitations.trim(), USER.to_string());
    assert!(lab.vps.meshd(&["peer", "invites"]).contains("office"));

    // What root itself places is not, and the message says what to do.
    let path = lab.vps.config("peers/scp.toml");
    fs::write(&path, "public_key = \"\"\n").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    let said = lab.vps.meshd_fails(4, &["reload"]);
    assert!(said.contains("Permission denied") && said.contains("chown --reference="), "{said}");
}

#[test]
fn root_takes_away_what_a_killed_agent_left() {
    let lab = lab();
    let before = Snapshot::of(&lab.home);
    up(&lab.vps);
    up(&lab.home);
    assert!(lab.nextcloud.ping(PROXY));
    lab.home.end(Signal::SIGKILL);
    lab.home.down();
    before.assert_same(&Snapshot::of(&lab.home), "down without an agent");
    // The guard alone, by either of them.
    let armed = as_user(&lab.home, &["guard", "arm"]);
    assert!(armed.status.success(), "{}", describe(&armed));
    lab.home.meshd(&["guard", "disarm"]);
    lab.home.meshd(&["guard", "arm"]);
    up(&lab.home);
    lab.home.down();
    before.assert_same(&Snapshot::of(&lab.home), "down after the guard");
}
