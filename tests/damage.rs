//! State files that are damaged, not files at all, or on a disk that takes nothing: meshd fails closed, says what to do,
//! keeps what it found, and has the old state or the new one.

mod lab;

use lab::host::describe;
use lab::snapshot::Snapshot;
use lab::traffic::seen_by;
use lab::{ISP, Lab, PROXY, VPS, WEB};
use nix::sys::signal::Signal;

/// A home whose containers leak as long as nobody guards them, with an agent that was killed.
fn crashed() -> (Lab, Snapshot) {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("a leak before meshd"), ISP);
    lab.vps.up();
    let before = Snapshot::of(&lab.home);
    lab.home.up();
    lab.home.end(Signal::SIGKILL);
    (lab, before)
}

fn state(lab: &Lab, line: &str) -> String {
    lab.home.run(&format!("cd {}; {line}", lab.home.state_file("").display()))
}

/// Both locks, in the kernel.
fn assert_closed(lab: &Lab, what: &str) {
    assert!(lab.home.run("nft list ruleset").contains("table inet meshd_guard"), "{what}: no guard");
    assert!(seen_by(&lab.nextcloud, WEB).is_err(), "{what}: open");
}

/// `meshd up`, which must fail soon and well.
fn up_fails(lab: &Lab, what: &str, why: &str) {
    let meshd = lab.home.meshd_command(&["up"]);
    let mut timeout = lab.home.command("timeout");
    timeout.envs(meshd.get_envs().filter_map(|(name, value)| Some((name, value?)))).arg("10");
    let output = timeout.arg(meshd.get_program()).arg("up").output().expect("timeout");
    let said = describe(&output);
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    assert!(said.contains(why) && said.contains("\ntry: "), "{what}: {said}");
    assert_closed(lab, what);
}

#[test]
fn a_journal_that_is_none_is_named_and_kept_and_the_next_start_goes_on() {
    let (lab, before) = crashed();
    for (what, make, why) in [
        ("a FIFO", "mkfifo J", "not a regular file"),
        ("a folder", "mkdir J", "not a regular file"),
        ("a device", "mknod J c 1 5", "not a regular file"),
        ("a link", "ln -s /proc/kmsg J", "a symbolic link"),
        ("endless", "truncate -s 1T J", "larger than"),
        ("another's", "cp good J; chown 1234 J", "belongs to user 1234"),
        ("open to all", "cp good J; chmod 666 J", "lets others write"),
        ("empty", ": >J", "damaged"),
        ("binary", "head -c 4096 /dev/urandom >J", "damaged"),
        ("of tomorrow", "sed 's/\"version\": 1/\"version\": 2/' good >J", "damaged"),
    ] {
        state(&lab, &format!("mv journal.json good; {}", make.replace('J', "journal.json")));
        up_fails(&lab, what, why);
        let kept = state(&lab, "ls -A; mv good journal.json");
        assert!(kept.contains("journal.json.damaged-1\n") && !kept.contains("journal.json\n"), "{what}: {kept}");
        state(&lab, "rm -r journal.json.damaged-1");
    }
    // The true one is still good for all that it was good for.
    lab.home.up();
    assert_eq!(lab.home.meshd(&["plan"]), "nothing to change\n");
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    lab.home.down();
    before.assert_same(&Snapshot::of(&lab.home), "down");
}

#[test]
fn a_journal_cut_or_flipped_anywhere_is_refused_and_the_next_start_goes_on() {
    let (lab, _) = crashed();
    let size: usize = state(&lab, "wc -c <journal.json").trim().parse().expect("a number");
    assert!(size > 300, "{size}");
    for number in 0..8 {
        // Each eighth somewhere else; the last newline may be missing.
        let at = (size - 2) * number / 7;
        let damage = if number % 2 == 0 {
            format!("truncate -s {at} journal.json")
        } else {
            format!("printf '\\377' | dd of=journal.json bs=1 seek={at} conv=notrunc status=none")
        };
        state(&lab, &format!("cp journal.json good; {damage}"));
        up_fails(&lab, &damage, "damaged");
        let kept = state(&lab, "ls -A; rm journal.json.damaged-1");
        assert!(kept.contains("journal.json.damaged-1\n"), "{damage}: {kept}");
        // Two ways on: without what the journal said, or with it, put back by hand.
        if number % 4 == 0 {
            lab.home.up();
            assert_eq!(lab.home.meshd(&["plan"]), "nothing to change\n");
            lab.home.end(Signal::SIGKILL);
        }
        state(&lab, "mv good journal.json");
    }
    assert_eq!(lab.home.try_meshd(&["down"]).status.code(), Some(0));
}

#[test]
fn down_removes_what_it_can_though_the_journal_is_damaged() {
    let (lab, _) = crashed();
    let rules = lab.home.run("ip rule");
    state(&lab, "echo {} >journal.json");
    let stderr = lab.home.meshd_fails(1, &["down"]);
    assert!(stderr.contains("damaged") && stderr.contains("kept as") && stderr.contains("try: "), "{stderr}");
    assert_ne!(lab.home.run("ip rule"), rules);
    assert!(!lab.home.run("nft list ruleset").contains("meshd"), "guard and filter are gone");
    lab.home.meshd_fails(3, &["down"]);
    // Forwarding is what it cannot put back, and said so.
    for sysctl in ["ipv4/conf/br0/forwarding", "ipv6/conf/br0/force_forwarding"] {
        lab.home.run(&format!("echo 0 >/proc/sys/net/{sysctl}"));
    }
    lab.home.up();
    lab.home.down();
}

/// Puts the state folder on a disk of its own, of 64 KiB.
fn small_disk(lab: &Lab) {
    let folder = lab.home.state_file("");
    lab.home.run(&format!("mount -t tmpfs -o size=64k,mode=0755 tmpfs {}", folder.display()));
}

const FILL: &str = "dd if=/dev/zero of=fill bs=4096 2>/dev/null || true";

#[test]
fn a_full_disk_leaves_the_old_state_or_the_new() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.vps.up();
    let before = Snapshot::of(&lab.home);
    small_disk(&lab);
    state(&lab, FILL);
    up_fails(&lab, "up", "No space left on device");
    assert_eq!(state(&lab, "ls -A"), "fill\n", "no part of a file");
    assert!(!lab.home.run("ip rule").contains("88:"), "nothing that the journal does not know of");
    state(&lab, "rm fill");
    lab.home.up();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);

    // A reload that has to remember more than there is room for changes nothing.
    state(&lab, FILL);
    let (journal, files) = (state(&lab, "cat journal.json guard.nft"), state(&lab, "ls -A"));
    // Each table by itself: what was replaced, and replaced again, is listed last.
    let look = "ip rule; ip route show table all; nft -s list table inet meshd; nft -s list table inet meshd_guard";
    let programmed = lab.home.run(look);
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"vps\"\nallow = [\"192.168.1.0/24\"]");
    let stderr = lab.home.meshd_fails(1, &["reload"]);
    assert!(stderr.contains("No space left on device") && stderr.contains("\ntry: "), "{stderr}");
    assert_eq!(state(&lab, "cat journal.json guard.nft"), journal);
    assert_eq!(state(&lab, "ls -A"), files);
    assert_eq!(lab.home.run(look), programmed);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    state(&lab, "rm fill");
    lab.home.meshd(&["reload"]);
    assert!(lab.nextcloud.ping("192.168.1.1"), "the new configuration");

    // What is killed on a full disk is taken over, and what goes down needs no room.
    state(&lab, FILL);
    lab.home.end(Signal::SIGKILL);
    lab.home.up();
    assert!(lab.nextcloud.ping(PROXY));
    lab.home.end(Signal::SIGKILL);
    lab.home.down();
    before.assert_same(&Snapshot::of(&lab.home), "down on a full disk");
}

#[test]
fn a_disk_that_turns_read_only_keeps_bridges_closed() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.vps.up();
    let before = Snapshot::of(&lab.home);
    small_disk(&lab);
    let remount = |how: &str| {
        let folder = lab.home.state_file("");
        lab.home.run(&format!("mount -o remount,{how} {}", folder.display()));
    };
    remount("ro");
    up_fails(&lab, "up", "Read-only file system");
    assert!(!lab.home.run("ip rule").contains("88:"));
    let armed = lab.home.try_meshd(&["guard", "arm"]);
    assert!(armed.status.success() && describe(&armed).contains("warning: kept guard"), "{}", describe(&armed));
    remount("rw");
    lab.home.up();
    remount("ro");
    let stderr = {
        lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"vps\"\nallow = [\"192.168.1.0/24\"]");
        lab.home.meshd_fails(1, &["reload"])
    };
    assert!(stderr.contains("Read-only file system") && stderr.contains("\ntry: "), "{stderr}");
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the old configuration"), VPS);
    // All is taken away but the journal, which says so.
    let stderr = lab.home.meshd_fails(1, &["down"]);
    assert!(stderr.contains("journal.json: Read-only file system"), "{stderr}");
    before.assert_same(&Snapshot::of(&lab.home), "down on a read-only disk");
    remount("rw");
    lab.home.down();
    before.assert_same(&Snapshot::of(&lab.home), "down again");
    assert_eq!(state(&lab, "ls -A"), "guard.nft\nnews\n");
}
