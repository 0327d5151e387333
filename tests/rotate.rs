//! `meshd peer rotate` between real agents: under traffic, in the middle of crashes, and both at once.

#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "crash/strace.rs"]
mod strace;

mod lab;

use std::time::{Duration, Instant};

use lab::host::{Host, describe};
use lab::{Lab, NEXTCLOUD, PROXY, secs, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use strace::{Mode, Point};

/// 200 datagrams a second.
const MEGABITS: u64 = 2;

fn setting(host: &Host, file: &str, key: &str) -> Option<String> {
    let text = host.read(file);
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = \"")))?;
    Some(line.trim_end_matches('"').to_owned())
}

/// What is wrong with what the two hosts' files say of each other's keys.
fn disagreement(lab: &Lab) -> Option<String> {
    let (vps, home) = (&lab.vps, &lab.home);
    let (here, there) = (("peers/vps.toml", home), ("peers/home.toml", vps));
    let [ours, theirs] = [here, there].map(|(file, host)| setting(host, file, "preshared_key"));
    let known = [here, there].map(|(file, host)| setting(host, file, "public_key"));
    let own = [vps, home].map(|host| Some(host.public_key()));
    let left = [here, there].into_iter().find(|(file, host)| host.read(file).contains("next_"));
    match () {
        () if left.is_some() => Some("a rotation is under way".to_owned()),
        () if ours != theirs => Some("two preshared keys".to_owned()),
        () if known != own => Some(format!("{known:?} are to be {own:?}")),
        () => None,
    }
}

fn agreed(lab: &Lab) {
    wait_for("both hosts say the same", secs(10), || disagreement(lab).is_none().then_some(()));
}

fn psk(lab: &Lab) -> Option<String> {
    agreed(lab);
    setting(&lab.home, "peers/vps.toml", "preshared_key")
}

fn connected() -> Lab {
    let lab = Lab::up();
    assert!(lab.home.ping("10.88.0.1"));
    lab
}

/// Runs `work` while numbered datagrams and a TCP stream go both ways; every one of them arrives, in order.
fn under_traffic(lab: &Lab, time: Duration, work: impl FnOnce()) {
    std::thread::scope(|scope| {
        let (proxy, nextcloud) = (&lab.proxy, &lab.nextcloud);
        let ways = [(proxy, nextcloud, NEXTCLOUD), (nextcloud, proxy, PROXY)];
        let flows = ways
            .map(|(from, to, address)| scope.spawn(move || lab::sequence::flows(from, to, address, 1, MEGABITS, time)));
        let stream = scope.spawn(move || {
            let begun = Instant::now();
            while begun.elapsed() < time {
                lab::traffic::transfer(nextcloud, proxy, PROXY, 1);
            }
        });
        std::thread::sleep(secs(1));
        let begun = Instant::now();
        work();
        println!("rotated in {:?}", begun.elapsed());
        assert!(begun.elapsed() + secs(1) < time, "the traffic has ended before: {:?}", begun.elapsed());
        for flow in flows {
            let arrived = flow.join().expect("a flow")[0];
            println!("{arrived:?}");
            assert!(
                arrived.sent > 100 * time.as_secs() && arrived.received == arrived.sent && arrived.late == 0,
                "{arrived:?}"
            );
        }
        stream.join().expect("a stream");
    });
}

#[test]
fn preshared_keys_change_under_traffic_and_nothing_is_lost() {
    let lab = connected();
    let mut seen = vec![psk(&lab)];
    under_traffic(&lab, secs(12), || {
        for host in [&lab.home, &lab.vps, &lab.home] {
            let said = host.meshd(&["peer", "rotate"]);
            assert!(said.starts_with("peer ") && said.trim_end().ends_with("has a new preshared key"), "{said}");
            let new = psk(&lab);
            assert!(new.is_some() && !seen.contains(&new));
            seen.push(new);
        }
    });
    for host in [&lab.home, &lab.vps] {
        host.meshd(&["reload"]);
        assert_eq!(host.status()["warnings"], Value::Array(vec![]));
    }
    assert!(lab.home.ping("10.88.0.1"));
}

#[test]
fn hosts_change_their_keys_under_traffic_and_nothing_is_lost() {
    let lab = connected();
    let before = [&lab.vps, &lab.home].map(Host::public_key);
    // The phone is no agent, so the VPS does nothing unless it is told to.
    let refused = lab.vps.meshd_fails(4, &["peer", "rotate", "--self"]);
    assert!(refused.contains("peer phone: ") && refused.contains("try: ") && refused.contains("--force"), "{refused}");
    assert_eq!(lab.vps.public_key(), before[0]);
    assert!(!lab.vps.config("private.key.next").exists() && disagreement(&lab).is_none(), "nobody was told");
    under_traffic(&lab, secs(26), || {
        let said: Value = serde_json::from_str(&lab.home.meshd(&["peer", "rotate", "--self", "--json"])).expect("JSON");
        agreed(&lab);
        assert_eq!(
            (said["public_key"].as_str(), &said["peers"][0]["done"]),
            (Some(&*lab.home.public_key()), &true.into())
        );
        let said = lab.vps.meshd(&["peer", "rotate", "--self", "--force"]);
        assert!(said.contains(&lab.vps.public_key()) && said.contains("peer home knows"), "{said}");
        agreed(&lab);
        // The preshared key between hosts whose keys have changed.
        lab.home.meshd(&["peer", "rotate", "vps"]);
    });
    agreed(&lab);
    assert!(![&lab.vps, &lab.home].map(Host::public_key).iter().any(|key| before.contains(key)));
    for (host, peers) in [(&lab.home, 1), (&lab.vps, 2)] {
        assert_eq!(host.wg_show("latest-handshakes").len(), peers, "wg(8) sees each peer once");
        assert!(!host.config("private.key.next").exists());
        host.meshd(&["reload"]);
    }
    assert_eq!(lab.home.peer("vps")["public_key"], lab.vps.public_key());
    assert!(lab.home.ping("10.88.0.1"));
}

#[test]
fn both_sides_rotate_at_once() {
    let lab = connected();
    for round in 0..4 {
        let before = psk(&lab);
        let own: &[&str] = if round % 2 == 0 { &["peer", "rotate", "vps"] } else { &["peer", "rotate", "--self"] };
        let there: &[&str] =
            if round < 2 { &["peer", "rotate", "home"] } else { &["peer", "rotate", "--self", "--force"] };
        let outputs = std::thread::scope(|scope| {
            let (home, vps) = (&lab.home, &lab.vps);
            let all = [scope.spawn(move || home.try_meshd(own)), scope.spawn(move || vps.try_meshd(there))];
            all.map(|one| one.join().expect("a thread"))
        });
        for output in &outputs {
            println!("{round}: {}", describe(output));
        }
        wait_for("a session", secs(15), || lab.home.ping("10.88.0.1").then_some(()));
        // What came in the other's way was refused, and goes through when it is asked for again.
        for (host, args, output) in [(&lab.home, own, &outputs[0]), (&lab.vps, there, &outputs[1])] {
            if !output.status.success() {
                host.meshd(args);
            }
        }
        if round == 0 {
            assert!(outputs.iter().all(|output| output.status.success()), "two that begin at once begin the same");
            assert_ne!(psk(&lab), before);
        }
        agreed(&lab);
    }
}

/// Kills `victim` before each system call that makes something durable while home runs `meshd peer rotate ARGS`.
fn survives(victim: fn(&Lab) -> &Host, args: &[&str], calls: &[(&str, u32)]) {
    let lab = connected();
    let command: Vec<&str> = ["peer", "rotate"].iter().chain(args).copied().collect();
    for point in calls.iter().flat_map(|&(call, most)| (1..=most).map(move |n| Point::new(call, n))) {
        let host = victim(&lab);
        let mode = Mode::Kill(&point);
        let attached = strace::attach(host, &mode);
        let output = lab.home.try_meshd(&command);
        let deadline = Instant::now() + secs(3);
        while !attached.dead() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let killed = attached.dead();
        attached.let_go(&mode);
        if !killed {
            // There was no such call: what remains is to see that all went well.
            host.end(Signal::SIGKILL);
        }
        wait_for("the agent is gone", secs(5), || host.agent().is_none().then_some(()));
        let begun = Instant::now();
        host.up();
        wait_for(format!("a session after {point}"), secs(20), || lab.home.ping("10.88.0.1").then_some(()));
        println!(
            "{} {args:?} {point}: killed {killed}, {}, again after {:?}",
            host.name,
            output.status,
            begun.elapsed()
        );
        // A preshared key is agreed by itself; a host's own key when it is asked for again.
        if args.is_empty() {
            wait_for(format!("agreement after {point}"), secs(15), || disagreement(&lab).is_none().then_some(()));
        }
        let before = psk_of(&lab);
        lab.home.meshd(&command);
        agreed(&lab);
        assert!(!args.is_empty() || psk_of(&lab) != before, "{point}");
        assert!(lab.home.ping("10.88.0.1"), "{point}");
    }
}

fn psk_of(lab: &Lab) -> Option<String> {
    setting(&lab.home, "peers/vps.toml", "preshared_key")
}

#[test]
fn a_preshared_key_survives_a_crash_of_whoever_asks() {
    survives(|lab| &lab.home, &[], &[("fsync", 4), ("rename", 2)]);
}

#[test]
fn a_preshared_key_survives_a_crash_of_whoever_is_asked() {
    survives(|lab| &lab.vps, &[], &[("fsync", 4), ("rename", 2)]);
}

#[test]
fn a_host_key_survives_a_crash_of_its_host() {
    survives(|lab| &lab.home, &["--self"], &[("fsync", 3), ("linkat", 1), ("rename", 1)]);
}

#[test]
fn a_host_key_survives_a_crash_of_a_peer() {
    survives(|lab| &lab.vps, &["--self"], &[("fsync", 4), ("rename", 2)]);
}

#[test]
fn keys_are_in_their_files_and_nowhere_else() {
    let lab = Lab::new();
    for host in [&lab.vps, &lab.home] {
        let output = host.meshd_command(&["up", "--detach"]).env("MESHD_LOG", "trace").output().expect("meshd");
        assert!(output.status.success(), "{}", describe(&output));
    }
    assert!(lab.home.ping("10.88.0.1"));
    let mut secrets = Vec::new();
    let mut said = String::new();
    for args in [&["peer", "rotate"][..], &["peer", "rotate", "--self"]] {
        secrets.push(lab.home.read("private.key").trim().to_owned());
        said += &lab.home.meshd(args);
        secrets.push(psk(&lab).expect("a preshared key"));
    }
    secrets.push(lab.home.read("private.key").trim().to_owned());
    for host in [&lab.vps, &lab.home] {
        said += &host.log();
        said += &host.status().to_string();
        for file in ["run_file", "state_file"] {
            let folder = if file == "run_file" { host.run_file("") } else { host.state_file("") };
            for entry in std::fs::read_dir(folder).expect("a folder").flatten().filter(|entry| entry.path().is_file()) {
                said += &String::from_utf8_lossy(&std::fs::read(entry.path()).expect("a file"));
            }
        }
    }
    assert!(said.len() > 10_000, "the log is at TRACE");
    for secret in &secrets {
        // Also as the bytes of a letter, which is JSON, would be shown.
        let bytes = format!("{:?}", secret.as_bytes());
        assert!(!said.contains(secret.as_str()) && !said.contains(bytes.trim_matches(['[', ']'])), "{secret}");
    }
}

#[test]
fn who_cannot_take_part_is_told_why() {
    let lab = Lab::new();
    assert!(lab.home.meshd_fails(3, &["peer", "rotate"]).contains("try: meshd up"));
    lab.home.up();
    let silent = lab.home.meshd_fails(1, &["peer", "rotate", "vps"]);
    assert!(silent.contains("peer vps: not reachable") && silent.contains("try: "), "{silent}");
    let unknown = lab.home.meshd_fails(1, &["peer", "rotate", "nobody"]);
    assert!(unknown.contains("no such peer"), "{unknown}");
    assert!(!lab.home.read("peers/vps.toml").contains("next_"));
    lab::other::Other::WireguardGo.start(&lab.vps, &lab.home, "");
    let stranger = lab.home.meshd_fails(1, &["peer", "rotate", "vps"]);
    assert!(stranger.contains("another WireGuard program"), "{stranger}");
    assert!(!lab.home.read("peers/vps.toml").contains("next_"));
}
