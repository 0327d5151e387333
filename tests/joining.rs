//! Two commands join a host: `meshd peer add` on the one, `meshd join` on the other, and what comes in between.

mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lab::host::describe;
use lab::join::{bare, files, init, invite, join, joined, joining};
use lab::traffic::seen_by;
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, WEB6, secs, wait_for};
use meshd::enroll::token::Token;
use meshd::key::random_bytes;
use nix::sys::signal::Signal;

/// Both bridges reach each other, and home's leaves by the VPS.
fn everything_works(lab: &Lab) {
    for to in [PROXY, PROXY6] {
        assert!(lab.nextcloud.ping(to), "{to}");
    }
    for to in [NEXTCLOUD, NEXTCLOUD6] {
        assert!(lab.proxy.ping(to), "{to}");
    }
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    assert_eq!(seen_by(&lab.nextcloud, WEB6).expect("the exit"), VPS6);
}

/// A lab whose VPS is ready to invite.
fn ready() -> Lab {
    let lab = bare();
    init(&lab.vps);
    lab.vps.up();
    lab
}

fn on_time(what: &str, since: Instant) {
    println!("{what}: bridges and egress work {:?} after the join began", since.elapsed());
    assert!(since.elapsed() < secs(3), "{what}: {:?}", since.elapsed());
}

#[test]
fn one_token_joins_two_hosts_before_and_after_up() {
    for running in [false, true] {
        let lab = ready();
        init(&lab.home);
        if running {
            lab.home.up();
        }
        let token = invite(&lab.vps, &["--egress"]);
        let begun = Instant::now();
        let said = joined(&lab.home, &token);
        println!("{said}");
        assert!(!said.contains("warning"), "{said}");
        if running {
            assert!(said.contains("traffic flows"), "{said}");
        } else {
            assert!(said.contains("next: meshd up --detach"), "{said}");
            lab.home.up();
        }
        everything_works(&lab);
        on_time(if running { "a running agent" } else { "no agent" }, begun);
        wait_for("the real key's handshake ends it", secs(5), || {
            lab.vps.meshd(&["peer", "invites"]).contains("used").then_some(())
        });
        let before = files(&lab.home.config(""));
        let again = join(&lab.home, &token);
        assert_eq!(files(&lab.home.config("")), before, "{}", describe(&again));
        everything_works(&lab);
    }
}

#[test]
fn a_host_with_nothing_joins_by_a_file_and_another_host_does_not() {
    let lab = ready();
    let token = invite(&lab.vps, &["--egress"]);
    let file = lab.path("token");
    fs::write(&file, format!("{token}\n")).expect("write");
    lab.home.meshd(&["join", "--file", &file.to_string_lossy()]);
    lab.home.up();
    everything_works(&lab);
    // The key of another host: the same folders, emptied.
    lab.home.down();
    fs::remove_dir_all(lab.home.config("")).expect("remove");
    let output = join(&lab.home, &token);
    assert_eq!(output.status.code(), Some(4), "{}", describe(&output));
    assert!(describe(&output).contains("used already, by another host"), "{}", describe(&output));
    assert!(!lab.home.config("").exists(), "not even a key");
}

#[test]
fn approval_is_waited_for_while_the_inviter_restarts() {
    let lab = ready();
    let token = invite(&lab.vps, &["--approve"]);
    let child = joining(&lab.home, &token);
    wait_for("it waits", secs(10), || lab.vps.meshd(&["peer", "invites"]).contains("waiting").then_some(()));
    lab.vps.end(Signal::SIGKILL);
    lab.vps.up();
    let waiting = lab.vps.meshd(&["peer", "invites"]);
    lab.vps.meshd(&["peer", "approve", "home", "--yes"]);
    let output = child.wait_with_output().expect("its end");
    let said = describe(&output);
    assert!(output.status.success(), "{said}");
    let shown = said.lines().find_map(|line| line.strip_prefix("fingerprint ")).expect("a fingerprint");
    let shown = shown.split(',').next().expect("a word");
    assert!(waiting.contains(shown), "{shown} in {waiting}");
    lab.home.up();
    assert!(lab.nextcloud.ping(PROXY));
}

#[test]
fn a_killed_join_is_repeated_and_ends_whole() {
    let lab = ready();
    let mut killed = 0;
    for round in 0..12 {
        let _ = fs::remove_dir_all(lab.home.config(""));
        let token = invite(&lab.vps, &[]);
        let mut child = joining(&lab.home, &token);
        let [random] = random_bytes::<1>().expect("random numbers");
        std::thread::sleep(Duration::from_millis(u64::from(random)));
        child.kill().expect("kill");
        killed += usize::from(child.wait().expect("its end").signal().is_some());
        let said = joined(&lab.home, &token);
        assert!(lab.home.meshd(&["peer", "list"]).contains("vps"), "round {round}: {said}");
        assert!(lab.home.read("meshd.toml").contains("[[bridge]]\nname = \"br0\""), "round {round}");
        if round < 11 {
            lab.vps.meshd(&["peer", "remove", "home"]);
        }
    }
    println!("{killed} of 12 were killed on the way");
    lab.home.up();
    assert!(lab.nextcloud.ping(PROXY));
}

#[test]
fn a_host_with_peers_keeps_its_address_or_is_told_how() {
    let lab = ready();
    let token = invite(&lab.vps, &["--address", "10.88.0.7", "--address", "fd88::7"]);
    joined(&lab.home, &token);
    assert!(lab.home.read("meshd.toml").contains("addresses = [\"10.88.0.7/24\", \"fd88::7/64\"]"));
    lab.vps.meshd(&["peer", "remove", "home"]);
    let token = invite(&lab.vps, &["--address", "10.88.0.8", "--address", "fd88::8"]);
    let before = files(&lab.home.config(""));
    let output = join(&lab.home, &token);
    let said = describe(&output);
    assert_eq!((output.status.code(), files(&lab.home.config(""))), (Some(4), before), "{said}");
    assert!(said.contains("meshd peer add home --address 10.88.0.7 --address fd88::7"), "{said}");
}

/// A program `ssh` that runs the command on this host of the lab, and notes what it was called with.
fn stand_in(lab: &Lab, host: &lab::host::Host) -> String {
    let bin = lab.path("bin");
    fs::create_dir_all(&bin).expect("a folder");
    let meshd = host.meshd_command(&[]);
    let env: String = meshd
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={} ", name.to_str()?, value?.to_str()?)))
        .collect();
    let program = meshd.get_program().to_string_lossy().into_owned();
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>{args}\n[ \"$2\" = root@other ] || exit 255\nshift 2\n\
         exec ip netns exec {name} env {env} sh -c \"$(echo \"$*\" | sed 's|^meshd|{program}|')\"\n",
        args = lab.path("ssh.args").display(),
        name = host.name(),
    );
    fs::write(bin.join("ssh"), script).expect("write");
    fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).expect("chmod");
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn both_ends_join_over_ssh() {
    // The one with an endpoint invites, whichever of them the command is given on.
    for vps_asks in [true, false] {
        let lab = ready();
        init(&lab.home);
        let (here, there) = if vps_asks { (&lab.vps, &lab.home) } else { (&lab.home, &lab.vps) };
        let path = stand_in(&lab, there);
        let subnets = ["--subnet", "10.89.2.0/24", "--subnet", "fd89:2::/64"];
        let add: &[&str] = if vps_asks { &["peer", "add", "home"] } else { &["peer", "add"] };
        let arguments = [add, &["--ssh", "root@other", "--egress"], if vps_asks { &subnets } else { &[] }].concat();
        let output = here.meshd_command(&arguments).env("PATH", &path).output().expect("meshd");
        assert!(output.status.success(), "{}", describe(&output));
        let arguments = fs::read_to_string(lab.path("ssh.args")).expect("ssh was called");
        println!("{arguments}{}", describe(&output));
        assert!(!arguments.contains("meshd-"), "no token: {arguments}");
        lab.home.up();
        everything_works(&lab);

        let mut command = here.meshd_command(&["peer", "add", "third", "--ssh", "root@nobody"]);
        let output = command.env("PATH", &path).output().expect("meshd");
        assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
        assert!(describe(&output).contains("root@nobody: ssh could not connect"), "{}", describe(&output));
    }
}

#[test]
fn no_secret_is_on_a_command_line_in_a_log_in_state_or_in_a_core() {
    let lab = bare();
    init(&lab.vps);
    init(&lab.home);
    let up = |host: &lab::host::Host| {
        let mut command = host.meshd_command(&["up", "--detach"]);
        let status = command.env("MESHD_LOG", "trace").status().expect("meshd");
        assert!(status.success());
    };
    up(&lab.vps);
    up(&lab.home);
    let token = invite(&lab.vps, &["--egress"]);
    let mut child = joining(&lab.home, &token);
    let mut seen = String::new();
    while child.try_wait().expect("a child").is_none() {
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let read = |file| fs::read(process.path().join(file)).unwrap_or_default();
            if String::from_utf8_lossy(&read("comm")).trim() == "meshd" {
                seen.push_str(&String::from_utf8_lossy(&[read("cmdline"), read("environ")].concat()));
            }
        }
    }
    let said = describe(&child.wait_with_output().expect("its end"));
    assert!(said.contains("traffic flows"), "{said}");
    assert!(seen.contains("join\0-"), "the join was seen: {seen}");
    everything_works(&lab);

    let parsed: Token = token.parse().expect("a token");
    let psk = lab.home.read("peers/vps.toml");
    let psk = psk.lines().find_map(|line| line.strip_prefix("preshared_key = \"")).expect("a preshared key");
    let psk = psk.trim_end_matches('"').to_owned();
    assert!(lab.vps.read("peers/home.toml").contains(&psk), "both have it");
    let secret = STANDARD.encode(*parsed.secret);
    let keys = [&lab.vps, &lab.home].map(|host| host.read("private.key").trim().to_owned());
    let secrets = [token.as_str(), &token[10..60], &secret, &psk, &keys[0], &keys[1]];
    let mut places = vec![("command lines", seen.into_bytes()), ("what join said", said.into_bytes())];
    for host in [&lab.vps, &lab.home] {
        assert!(host.log().contains("TRACE"), "{} logs all", host.name);
        places.push(("status", host.meshd(&["status", "--json"]).into_bytes()));
        places.push(("peer show", host.meshd(&["peer", "list", "--json"]).into_bytes()));
        for file in ["meshd.log", ""] {
            let dir = if file.is_empty() { host.state_file("") } else { host.run_file("") };
            places.extend(files(&dir).into_values().map(|bytes| ("state and log", bytes)));
        }
    }
    for (what, bytes) in &places {
        let text = String::from_utf8_lossy(bytes);
        for (number, secret) in secrets.iter().enumerate() {
            assert!(!text.contains(secret), "{what} holds secret {number}");
        }
    }

    // A crash writes no core, though it may.
    lab.home.down();
    let program = lab.home.meshd_command(&[]).get_program().to_owned();
    let mut shell = lab.home.meshd_command(&["up"]);
    let environment: Vec<_> =
        shell.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    shell = lab.home.command("sh");
    shell.args(["-c", "ulimit -c unlimited; exec \"$0\" up"]).arg(program).stdout(Stdio::null()).stderr(Stdio::null());
    for (name, value) in environment {
        shell.env(name, value.unwrap_or_default());
    }
    let mut child = shell.current_dir(lab.path("")).spawn().expect("meshd");
    wait_for("the agent runs", secs(10), || lab.home.try_meshd(&["status"]).status.success().then_some(()));
    Command::new("kill").args(["-ABRT", &child.id().to_string()]).status().expect("kill");
    let status = child.wait().expect("its end");
    assert_eq!((status.signal(), status.core_dumped()), (Some(libc::SIGABRT), false));
}
