//! SIGKILL in the middle of `meshd up`, at one system call after the other: the next `meshd down` finds everything.

mod lab;

use std::process::Stdio;

use lab::host::{Host, describe};
use lab::snapshot::Snapshot;
use lab::traffic::seen_by;
use lab::{Lab, PROXY, VPS, WEB, secs, wait_for};

/// Runs `meshd up` under strace(1), which kills whoever makes the `n`th of these calls: the agent, or an nft(8) that it
/// started. True when the agent came up all the same, because it makes fewer.
fn up_until(host: &Host, calls: &str, n: u32) -> bool {
    let inject = format!("inject={calls}:signal=KILL:when={n}");
    let up = host.meshd_command(&["up"]);
    let mut strace = host.command("strace");
    for (key, value) in up.get_envs() {
        if let Some(value) = value {
            strace.env(key, value);
        }
    }
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject]);
    strace.arg(up.get_program()).args(up.get_args()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut strace = strace.spawn().expect("strace");
    wait_for("up or dead", secs(20), || {
        if strace.try_wait().expect("wait").is_some() {
            return Some(false);
        }
        host.try_meshd(&["status"]).status.success().then_some(true)
    })
}

fn recovers(calls: &str) {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.vps.up();
    let before = Snapshot::of(&lab.home);
    let mut crashes = 0;
    for n in [1, 2, 3, 4, 5, 6, 8, 11, 16, 23, 32, 45, 64, 91] {
        let through = up_until(&lab.home, calls, n);
        crashes += u32::from(!through);
        // Either way out of it is tried: taking it down at once, or starting on top of what is there.
        if n % 2 == 0 && !through {
            lab.home.up();
            assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS, "after {calls} number {n}");
        }
        // "Not running" is as good when it died before it did anything.
        let down = lab.home.try_meshd(&["down"]);
        assert!(matches!(down.status.code(), Some(0 | 3)), "{}", describe(&down));
        before.assert_same(&Snapshot::of(&lab.home), &format!("down after a crash at {calls} number {n}"));
        if through {
            break;
        }
    }
    assert!(crashes > 0, "the agent never calls {calls}");
    lab.home.up();
    assert!(lab.nextcloud.ping(PROXY));
}

#[test]
fn at_netlink_messages() {
    recovers("sendto,sendmsg");
}

#[test]
fn at_device_configuration() {
    recovers("ioctl");
}

#[test]
fn at_writing_the_journal() {
    recovers("fsync,fdatasync");
}

#[test]
fn at_replacing_files() {
    recovers("rename,renameat,renameat2");
}
