//! Invitations as the inviter meets them: honest joiners, many at once, and hostile ones.

mod lab;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use lab::host::{Host, describe};
use lab::joiner::{Joiner, Outcome};
use lab::{Lab, secs, wait_for};
use meshd::channel::Kind;
use meshd::enroll::exchange::{Answer, Offer, Redeem, Refusal};
use meshd::enroll::fingerprint;
use meshd::enroll::token::Token;
use meshd::key::{PresharedKey, PrivateKey};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The VPS and nobody else in its mesh, up.
fn vps() -> Lab {
    let lab = Lab::new();
    lab.vps.replace("meshd.toml", "[exit]\npeers = [\"home\", \"phone\"]\ninterface = \"eth0\"\n", "");
    for peer in ["home", "phone"] {
        fs::remove_file(lab.vps.config(&format!("peers/{peer}.toml"))).expect("remove");
    }
    lab.vps.up();
    lab
}

fn invite(host: &Host, args: &[&str]) -> Token {
    let args = [&["peer", "add"], args].concat();
    host.meshd(&args).parse().expect("a token")
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn offer(outcome: Outcome) -> Box<Offer> {
    match outcome {
        Outcome::Offer(offer) => offer,
        other => panic!("no offer: {other:?}"),
    }
}

fn state_of(host: &Host, name: &str) -> String {
    let invites: Value = serde_json::from_str(&host.meshd(&["peer", "invites", "--json"])).expect("JSON");
    let found = invites.as_array().expect("a list").iter().find(|one| one["name"] == name);
    found.map_or_else(|| "none".into(), |one| one["state"].as_str().expect("a state").to_owned())
}

#[test]
fn a_token_lets_one_host_in() {
    let lab = vps();
    let token = invite(&lab.vps, &["home", "--subnet", "10.89.2.0/24", "--subnet", "fd89:2::/64", "--egress"]);
    assert_eq!(state_of(&lab.vps, "home"), "open");
    let mut joiner = Joiner::new(&lab.internet, &token);
    assert!(joiner.handshake());
    let first = offer(joiner.redeem(key(7).public_key(), secs(5)));
    assert_eq!(state_of(&lab.vps, "home"), "bound");
    assert_eq!(first.name, "home");
    assert_eq!(first.inviter.name, "vps");
    assert!(first.egress);
    assert_eq!(first.subnets.len(), 2);
    assert_eq!(first.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.88.0.2/24", "fd88::2/64"]);
    assert!(lab.vps.read("meshd.toml").contains("peers = [\"home\"]"));
    // A retry gets the same, another key nothing.
    assert_eq!(offer(joiner.redeem(key(7).public_key(), secs(5))), first);
    assert_eq!(joiner.redeem(key(8).public_key(), secs(5)), Outcome::Refused(Refusal::Used));
    // The real key.
    let preshared_key: PresharedKey = first.preshared_key.parse().expect("a key");
    let mut real = Joiner::with(&lab.internet, &key(7), token.inviter, &preshared_key);
    assert!(real.handshake());
    wait_for("the invitation is used", secs(3), || (state_of(&lab.vps, "home") == "used").then_some(()));
}

fn patient(joiner: &mut Joiner, key: &PrivateKey) -> Outcome {
    joiner.redeem(key.public_key(), secs(10))
}

fn called(lab: &Lab, token: &Token) -> Joiner {
    let mut joiner = Joiner::new(&lab.internet, token);
    assert!(joiner.handshake(), "the inviter answers");
    joiner
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// The whole folder of invitations, as text.
fn records(host: &Host) -> Vec<(PathBuf, String)> {
    let Ok(entries) = fs::read_dir(host.state_file("invitations")) else { return Vec::new() };
    let text = |path: &PathBuf| fs::read_to_string(path).expect("a record");
    entries.flatten().map(|entry| entry.path()).map(|path| (path.clone(), text(&path))).collect()
}

/// Lets the time of all invitations be over since long.
fn age(host: &Host) {
    for (path, text) in records(host) {
        let mut record: Value = serde_json::from_str(&text).expect("JSON");
        record["expires"] = (record["expires"].as_u64().expect("a time") - 2000).into();
        fs::write(path, record.to_string()).expect("write");
    }
    host.meshd(&["reload"]);
}

/// How many rounds; 100 for the whole.
fn rounds() -> usize {
    std::env::var("MESHD_ROUNDS").map_or(3, |text| text.parse().expect("a number"))
}

#[test]
fn of_a_hundred_at_once_one_gets_in() {
    const JOINERS: u8 = 100;
    let lab = vps();
    for round in 0..rounds() {
        let token = invite(&lab.vps, &["home", "--subnet", "10.89.2.0/24", "--egress"]);
        let threads: Vec<_> = (0..JOINERS)
            .map(|seed| {
                let mut joiner = Joiner::new(&lab.internet, &token);
                std::thread::spawn(move || {
                    // Of so many from one address the gate lets some wait.
                    assert!((0..5).any(|_| joiner.handshake()), "joiner {seed}: no handshake");
                    (seed, joiner.redeem(key(seed + 1).public_key(), secs(20)))
                })
            })
            .collect();
        let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("a joiner")).collect();
        let winners: Vec<_> = outcomes
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Offer(_)))
            .map(|(seed, _)| *seed)
            .collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?} were let in");
        for (seed, outcome) in outcomes {
            let expected = winners[0] == seed || outcome == Outcome::Refused(Refusal::Used);
            assert!(expected, "round {round}, joiner {seed}: {outcome:?}");
        }
        let peers = lab.vps.status()["peers"].as_array().expect("peers").clone();
        assert_eq!(peers.len(), 1, "round {round}");
        assert_eq!(peers[0]["public_key"], key(winners[0] + 1).public_key().to_string());
        lab.vps.meshd(&["peer", "remove", "home"]);
    }
}

#[test]
fn who_is_late_or_not_wanted_is_told_why() {
    let lab = vps();
    // Expired, by the inviter's clock.
    let token = invite(&lab.vps, &["late", "--expires", "1s"]);
    let mut joiner = called(&lab, &token);
    wait_for("the end of a second", secs(4), || (state_of(&lab.vps, "late") == "expired").then_some(()));
    assert_eq!(refused(patient(&mut joiner, &key(1))), Refusal::Expired);
    // Revoked, by name and by ID; then the name is free.
    let token = invite(&lab.vps, &["revoked"]);
    lab.vps.meshd(&["peer", "revoke-invite", "revoked"]);
    assert_eq!(refused(patient(&mut called(&lab, &token), &key(1))), Refusal::Revoked);
    invite(&lab.vps, &["revoked"]);
    assert!(lab.vps.meshd_fails(4, &["peer", "add", "revoked"]).contains("is invited already"));
    let invites: Value = serde_json::from_str(&lab.vps.meshd(&["peer", "invites", "--json"])).expect("JSON");
    let open = invites.as_array().expect("a list").iter().find(|one| one["state"] == "open").expect("an open one");
    lab.vps.meshd(&["peer", "revoke-invite", open["id"].as_str().expect("an ID")]);
    assert!(lab.vps.meshd_fails(1, &["peer", "revoke-invite", "nobody"]).contains("there is none"));
    // Keys that cannot be a new peer's; the token is still good.
    let token = invite(&lab.vps, &["home"]);
    let mut joiner = called(&lab, &token);
    let own: meshd::key::PublicKey = lab.vps.public_key().parse().expect("a key");
    let throwaway = meshd::enroll::throwaway_key(&token.secret, &token.inviter).public_key();
    for key in [own, throwaway] {
        assert!(matches!(refused(joiner.redeem(key, secs(5))), Refusal::Key(_)));
    }
    for body in [
        &b"{}"[..],
        b"",
        b"\0\0\0",
        &[b'['; 1000],
        // Of low order.
        br#"{"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","part":0,"version":""}"#,
    ] {
        let answer = joiner.ask(Kind::Enroll, body, secs(5)).expect("an answer");
        assert!(matches!(Answer::parse(&answer), Some(Answer::Refused(Refusal::Failed(_)))), "{body:?}");
    }
    let body = br#"{"key":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","part":200,"version":""}"#;
    let answer = joiner.ask(Kind::Enroll, body, secs(5)).expect("an answer");
    assert!(matches!(Answer::parse(&answer), Some(Answer::Refused(Refusal::Failed(_)))));
    // It was bound to that key by then.
    assert_eq!(refused(patient(&mut joiner, &key(1))), Refusal::Used);
    // A removed peer's invitation lets nobody in again.
    lab.vps.meshd(&["peer", "remove", "home"]);
    assert_eq!(
        refused(joiner.redeem("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".parse().expect("a key"), secs(5))),
        Refusal::Revoked
    );
    assert!(!lab.vps.config("peers/home.toml").exists());
}

#[test]
fn strangers_and_copies_get_no_answer() {
    let lab = vps();
    let token = invite(&lab.vps, &["home", "--subnet", "10.89.2.0/24"]);
    let other = Token { secret: Token::new_secret().expect("random"), ..token.clone() };
    let mut stranger = Joiner::new(&lab.internet, &other);
    let initiation = stranger.initiation();
    stranger.send_raw(&initiation);
    let throwaway = meshd::enroll::throwaway_key(&token.secret, &token.inviter);
    let mut wrong = Joiner::with(&lab.internet, &throwaway, token.inviter, &PresharedKey::from_bytes([9; 32]));
    assert!(!wrong.handshake(), "a handshake with another preshared key");
    // The same initiation once more, from where it came and from elsewhere.
    let mut joiner = Joiner::new(&lab.internet, &token);
    let initiation = joiner.initiation();
    joiner.send_raw(&initiation);
    assert!(joiner.answered(secs(2)), "the inviter answers");
    let mut elsewhere = Joiner::new(&lab.internet, &token);
    for replayer in [&mut joiner, &mut elsewhere, &mut stranger] {
        replayer.send_raw(&initiation);
        assert!(!replayer.answered(Duration::from_millis(300)), "an answer to a copy, or to a stranger");
    }
    offer(patient(&mut joiner, &key(1)));
}

#[test]
fn a_guest_reaches_nothing_but_the_invitation() {
    let lab = vps();
    let token = invite(&lab.vps, &["home", "--subnet", "10.89.2.0/24"]);
    let mut joiner = called(&lab, &token);
    let container = lab.proxy.within(|| UdpSocket::bind((lab::PROXY, 9))).expect("bind");
    container.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let packet = |from: [u8; 4]| {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4(from, [10, 89, 1, 10], 64).udp(1, 9);
        builder.write(&mut packet, b"hello").expect("a packet");
        packet
    };
    let (own, bridge) = (packet([10, 88, 0, 2]), packet([10, 89, 2, 10]));
    for _ in 0..10 {
        joiner.send(&own);
        joiner.send(&bridge);
    }
    let mut buffer = [0; 64];
    assert!(container.recv(&mut buffer).is_err(), "a guest's packet reached a container");
    for kind in [Kind::Hello, Kind::Bench, Kind::Probe, Kind::Doctor, Kind::News, Kind::Direct, Kind::Rotate] {
        joiner.post(kind, false, b"{}");
        joiner.post(kind, true, b"{}");
    }
    joiner.post(Kind::Enroll, true, b"{}");
    assert_eq!(joiner.ask(Kind::Hello, b"", Duration::from_millis(300)), None);
    let offer = offer(patient(&mut joiner, &key(1)));
    // Not even now.
    joiner.send(&own);
    joiner.send(&bridge);
    assert!(container.recv(&mut buffer).is_err(), "a guest's packet reached a container");
    // The real key does, which shows that the container would have heard; and it has nothing to redeem.
    let preshared_key = offer.preshared_key.parse().expect("a key");
    let mut real = Joiner::with(&lab.internet, &key(1), token.inviter, &preshared_key);
    assert!(real.handshake());
    real.send(&own);
    assert!(container.recv(&mut buffer).is_ok(), "a peer's packet");
    assert!(real.ask(Kind::Hello, b"", secs(3)).is_some());
    let body = Redeem { key: key(1).public_key(), part: 0, version: String::new() }.write();
    assert_eq!(real.ask(Kind::Enroll, &body, Duration::from_millis(600)), None);
}

#[test]
fn the_operator_confirms_or_denies() {
    let lab = vps();
    let token = invite(&lab.vps, &["home", "--subnet", "10.89.2.0/24", "--approve"]);
    let mut joiner = called(&lab, &token);
    assert!(lab.vps.meshd_fails(1, &["peer", "approve", "home", "--yes"]).contains("nobody waits"));
    assert_eq!(patient(&mut joiner, &key(1)), Outcome::Waiting);
    assert_eq!(refused(patient(&mut joiner, &key(2))), Refusal::Used);
    assert!(!lab.vps.config("peers/home.toml").exists());
    let fingerprint = fingerprint(&token.inviter, &key(1).public_key());
    assert!(lab.vps.status()["warnings"].to_string().contains(&fingerprint));
    assert!(lab.vps.meshd_fails(4, &["peer", "approve", "home"]).contains(&fingerprint));
    lab.vps.meshd_fails(4, &["peer", "approve", "home", "--fingerprint", "0000-0000-0000"]);
    // It survives the agent.
    lab.vps.end(Signal::SIGKILL);
    lab.vps.up();
    let mut joiner = called(&lab, &token);
    assert_eq!(patient(&mut joiner, &key(1)), Outcome::Waiting);
    lab.vps.meshd(&["peer", "approve", "home", "--fingerprint", &fingerprint.to_lowercase()]);
    offer(patient(&mut joiner, &key(1)));

    let token = invite(&lab.vps, &["lab", "--approve"]);
    let mut joiner = called(&lab, &token);
    assert_eq!(patient(&mut joiner, &key(3)), Outcome::Waiting);
    lab.vps.meshd(&["peer", "revoke-invite", "lab"]);
    assert_eq!(refused(patient(&mut joiner, &key(3))), Refusal::Revoked);
}

#[test]
fn who_never_comes_is_withdrawn_unless_edited() {
    let lab = vps();
    for (name, subnet, seed, edited) in [("home", "10.89.2.0/24", 1, false), ("lab", "10.89.3.0/24", 2, true)] {
        let token = invite(&lab.vps, &[name, "--subnet", subnet, "--egress"]);
        offer(patient(&mut called(&lab, &token), &key(seed)));
        let file = format!("peers/{name}.toml");
        if edited {
            lab.vps.append(&file, "persistent_keepalive = 20");
        }
        age(&lab.vps);
        wait_for("the invitation has expired", secs(15), || (state_of(&lab.vps, name) == "expired").then_some(()));
        assert_eq!(lab.vps.config(&file).exists(), edited);
        assert_eq!(lab.vps.read("meshd.toml").contains(&format!("\"{name}\"]")), edited);
    }
    // What removes the last one of an exit, removes the exit.
    lab.vps.meshd(&["peer", "remove", "lab"]);
    assert!(!lab.vps.read("meshd.toml").contains("[exit]"));
}

#[test]
fn what_cannot_be_is_not_promised() {
    let lab = Lab::new();
    lab.vps.up();
    let add = |args: &[&str]| lab.vps.meshd_fails(4, &[&["peer", "add"], args].concat());
    assert!(
        lab.vps
            .meshd(&["peer", "add", "lab", "--subnet", "10.89.7.0/24", "--address", "10.88.0.7"])
            .starts_with("meshd-")
    );
    for (args, why) in [
        (&["../evil"][..], "peer name"),
        (&["a\u{1b}[2Jb"], "peer name"),
        (&["direct"], "peer name"),
        (&["home"], "exists already"),
        (&["vps", "--subnet", "10.89.1.0/25"], "overlaps"),
        (&["new", "--subnet", "0.0.0.0/0"], "would take all traffic"),
        (&["new", "--subnet", "::/0"], "would take all traffic"),
        (&["new", "--subnet", "10.89.2.128/25"], "overlaps"),
        (&["new", "--subnet", "10.89.7.0/25"], "overlaps"),
        (&["new", "--lan", "10.88.0.0/16"], "overlaps"),
        (&["new", "--subnet", "10.89.8.1/"], "--subnet"),
        (&["new", "--address", "10.88.0.7"], "already"),
        (&["new", "--address", "10.88.0.1"], "already"),
        (&["new", "--address", "10.1.0.1"], "outside the mesh"),
        (&["new", "--reach", "10.88.0.1:51820"], "--reach"),
        (&["new", "--reach", "vps.example.net"], "--reach"),
    ] {
        let said = add(args);
        assert!(said.contains(why), "{args:?}: {said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    for args in [&["new", "--endpoint", "a:1"][..], &["new", "--expires", "0s"], &["new", "--allow", "mesh"]] {
        lab.vps.meshd_fails(2, &[&["peer", "add"], args].concat());
    }
    assert_eq!(records(&lab.vps).len(), 1);
    // Two at a time do not both get what only one can.
    let both = ["one", "two"].map(|name| {
        let mut command = lab.vps.meshd_command(&["peer", "add", name, "--subnet", "10.89.9.0/24"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshd")
    });
    let codes = both.map(|child| child.wait_with_output().expect("meshd").status.code());
    assert!(codes.contains(&Some(0)) && codes.contains(&Some(4)), "{codes:?}");
    // Without an endpoint nobody could come; without an agent it is said.
    lab.vps.replace("meshd.toml", "endpoint = \"203.0.113.10:51820\"\n", "");
    assert!(add(&["new"]).contains("--reach"));
    lab.vps.down();
    let output = lab.vps.try_meshd(&["peer", "add", "new", "--reach", "203.0.113.10:51820"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the agent is not running"), "{}", describe(&output));
    lab.vps.meshd(&["peer", "revoke-invite", "new"]);
    assert_eq!(state_of(&lab.vps, "new"), "revoked");
}

#[test]
fn a_crash_at_any_moment_leaves_no_peer_or_a_whole_one() {
    let lab = vps();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..16u64 {
        let token = invite(&lab.vps, &["home", "--subnet", "10.89.2.0/24", "--egress"]);
        let mut joiner = called(&lab, &token);
        let body = Redeem { key: key(1).public_key(), part: 0, version: String::new() }.write();
        joiner.post(Kind::Enroll, false, &body);
        std::thread::sleep(Duration::from_millis(round * 5));
        lab.vps.end(Signal::SIGKILL);
        seen.insert(
            state_of(&lab.vps, "home") + if lab.vps.config("peers/home.toml").exists() { ", a peer" } else { "" },
        );
        lab.vps.up();
        wait_for("no peer or a whole one", secs(5), || {
            let peer = lab.vps.config("peers/home.toml").exists();
            (peer == lab.vps.read("meshd.toml").contains("peers = [\"home\"]")).then_some(())
        });
        let mut joiner = called(&lab, &token);
        let again = offer(patient(&mut joiner, &key(1)));
        assert_eq!(refused(patient(&mut joiner, &key(2))), Refusal::Used);
        assert!(lab.vps.read("peers/home.toml").contains(again.preshared_key.as_str()));
        assert!(lab.vps.read("meshd.toml").contains("peers = [\"home\"]"));
        lab.vps.meshd(&["peer", "remove", "home"]);
        assert!(!lab.vps.read("meshd.toml").contains("[exit]"));
    }
    eprintln!("killed while: {seen:?}");
    assert!(seen.len() > 1, "always at the same moment: {seen:?}");
}

#[test]
fn secrets_are_nowhere() {
    let lab = vps();
    lab.vps.down();
    let output = lab.vps.meshd_command(&["up", "--detach"]).env("MESHD_LOG", "trace").output().expect("meshd");
    assert!(output.status.success(), "{}", describe(&output));
    let text = lab.vps.meshd(&["peer", "add", "home", "--subnet", "10.89.2.0/24", "--approve"]);
    let token: Token = text.parse().expect("a token");
    let mut joiner = called(&lab, &token);
    assert_eq!(patient(&mut joiner, &key(1)), Outcome::Waiting);
    lab.vps.meshd(&["peer", "approve", "home", "--yes"]);
    let offer = offer(patient(&mut joiner, &key(1)));
    let shown = [
        lab.vps.meshd(&["peer", "invites"]),
        lab.vps.meshd(&["peer", "invites", "--json"]),
        lab.vps.meshd(&["status"]),
        lab.vps.status().to_string(),
        lab.vps.meshd(&["plan", "--json"]),
        lab.vps.log(),
    ]
    .concat();
    assert!(lab.vps.log().contains("TRACE") || lab.vps.log().contains("DEBUG"), "it logs all");
    let agent = lab.vps.agent().expect("an agent");
    let proc = |file: &str| fs::read(format!("/proc/{agent}/{file}")).expect("proc");
    let process = [proc("cmdline"), proc("environ"), proc("limits")].concat();
    let process = String::from_utf8_lossy(&process);
    assert!(process.lines().any(|line| line.starts_with("Max core file size        0 ")), "{process}");
    let state: String = records(&lab.vps).into_iter().map(|(_, text)| text).collect();
    let throwaway = meshd::enroll::throwaway_key(&token.secret, &token.inviter);
    let derived = meshd::enroll::preshared_key(&token.secret, &token.inviter).expose_base64();
    let own = lab.vps.read("private.key");
    let secret = base64(token.secret.as_slice());
    for (what, hidden) in [
        ("the token", text.trim()),
        ("the secret", &secret),
        ("the throwaway key", &throwaway.expose_base64()),
        ("the joiner's preshared key", &offer.preshared_key),
        ("the host's key", own.trim()),
    ] {
        for (place, text) in
            [("what is shown and logged", &shown[..]), ("the process", &process), ("the state", &state)]
        {
            assert!(!text.contains(hidden), "{what} is in {place}");
        }
    }
    assert!(!shown.contains(&derived) && !process.contains(&derived));
    for (path, _) in records(&lab.vps) {
        assert_eq!(fs::metadata(&path).expect("a record").permissions().mode() & 0o777, 0o600);
    }
    let folder = fs::metadata(lab.vps.state_file("invitations")).expect("a folder");
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);
}

/// As keys are written.
fn base64(bytes: &[u8]) -> String {
    let bytes: [u8; 32] = bytes.try_into().expect("32 bytes");
    PrivateKey::from_bytes(bytes).expose_base64()
}
