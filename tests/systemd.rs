//! The package on a host that systemd has booted.

mod lab;

use std::fs;

use lab::debian::{Booted, Debian};
use lab::steady::Steady;
use lab::{Lab, NEXTCLOUD, PROXY, secs, wait_for};

const BOB: u32 = 1234;
/// Blocks a second of each stream.
const RATE: u32 = 200;

fn property(machine: &Booted, name: &str) -> String {
    machine.run(&format!("systemctl show meshd --property={name} --value")).trim().to_owned()
}

#[test]
fn systemd_runs_it_and_a_restart_loses_nothing() {
    let lab = Lab::new();
    lab.vps.up();
    let debian = Debian::new(",systemd-sysv,dbus");
    debian.install();
    lab.home.append("meshd.toml", &format!("\n[bridge.users.{BOB}]"));
    for file in ["meshd.toml", "private.key", "peers/vps.toml"] {
        fs::copy(lab.home.config(file), debian.path("/etc/meshd").join(file)).expect(file);
    }
    // Half a minute without this.
    let drop_in = debian.path("/etc/systemd/system/meshd.service.d");
    fs::create_dir_all(&drop_in).expect("a folder");
    fs::write(drop_in.join("test.conf"), "[Service]\nWatchdogSec=2\n").expect("write");
    let machine = debian.boot(&lab.home);
    let through = || lab.nextcloud.ping(PROXY);
    machine.run("systemctl enable --now meshd-guard meshd");
    wait_for("the tunnel", secs(10), || through().then_some(()));
    assert_eq!(property(&machine, "User"), "meshd");
    assert_eq!(property(&machine, "NFileDescriptorStore"), "2");

    // A container of a user's, in its way.
    let bob = format!("setpriv --reuid {BOB} --regid {BOB} --clear-groups");
    let attached = machine.run(&format!(
        "{bob} unshare --user --map-root-user --net sh -c 'echo $$; exec sleep 300' >/run/pid 2>&1 &
         until [ -s /run/pid ]; do sleep 0.05; done; {bob} meshd attach $(cat /run/pid) --name bobs 2>&1"
    ));
    let container = attached.split_whitespace().nth(2).unwrap_or_default().to_owned();
    assert!(attached.starts_with("bobs has 10.89.2."), "{attached}");
    wait_for("its container answers", secs(5), || lab.proxy.ping(&container).then_some(()));

    let streams = [(&lab.nextcloud, &lab.proxy, PROXY), (&lab.proxy, &lab.nextcloud, NEXTCLOUD)]
        .map(|(from, to, address)| Steady::tcp(from, to, address, Some(RATE)));
    std::thread::sleep(secs(1));
    let before = property(&machine, "MainPID");
    machine.run("systemctl restart meshd");
    std::thread::sleep(secs(1));
    for stream in streams {
        assert!(stream.runs(), "a connection is lost");
        let passed = stream.finish();
        assert!(passed.received > 0 && passed.received == passed.sent, "{}", passed.name);
    }
    assert_ne!(property(&machine, "MainPID"), before);
    assert!(machine.run("meshd attach --list").contains("bobs") && lab.proxy.ping(&container));

    // What a fault ends begins again by itself, with what is kept: a crash, and an agent that hangs.
    for (signal, restarts) in [("KILL", "1"), ("STOP", "2")] {
        machine.run(&format!("systemctl kill --kill-who=main --signal={signal} meshd"));
        wait_for(format!("a restart after SIG{signal}"), secs(15), || {
            let active = machine.try_run("systemctl is-active meshd").status.success();
            (active && property(&machine, "NRestarts") == restarts).then_some(())
        });
        wait_for("the tunnel again", secs(10), || through().then_some(()));
        assert!(lab.proxy.ping(&container));
    }
    let journal = machine.run("journalctl --no-pager --unit meshd");
    assert_eq!(journal.matches("taken over from the process before this one").count(), 3, "{journal}");

    // Stopped, it leaves the egress closed.
    machine.run("systemctl stop meshd");
    assert!(!through() && machine.run("nft list tables").contains("meshd_guard"));
    machine.run("systemctl start meshd");
    wait_for("the tunnel at last", secs(10), || through().then_some(()));
    machine.run("systemctl stop meshd && meshd down");
    assert!(!lab.home.run("nft list tables; ip -br link").contains("mesh"));
}
