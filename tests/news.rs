//! News of the mesh among three agents: vps, which invited home and lab, and whom those two know from it alone.

mod lab;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::host::Host;
use lab::{Lab, secs, wait_for};
use meshd::config::value;
use meshd::key::{PrivateKey, PublicKey, SigningKey};
use meshd::mesh::Member;
use meshd::mesh::news::Signed;
use nix::sys::signal::Signal;
use serde_json::Value;

/// lab's place on the internet and in the mesh.
const NUMBER: u8 = 100;

struct Three {
    lab: Host,
    rest: Lab,
}

impl Three {
    /// vps knows home and lab; these know vps, and trust its news. Nothing is started.
    fn new() -> Self {
        let rest = Lab::new();
        let lab = rest.add_host("lab", NUMBER);
        let key = lab.public_key();
        lab.append("meshd.toml", "[[bridge]]\nname = \"br0\"\nsubnets = [\"10.89.5.0/24\"]");
        lab.run("ip link add br0 type bridge && ip address add 10.89.5.1/24 dev br0 && ip link set br0 up");
        let file = format!(
            "public_key = \"{key}\"\naddresses = [\"10.88.0.{NUMBER}\", \"fd88::{NUMBER}\"]\n\
             subnets = [\"10.89.5.0/24\"]\nendpoint = \"198.18.{NUMBER}.2:{}\"\n",
            lab::PORT
        );
        rest.vps.write("peers/lab.toml", &file);
        let three = Self { lab, rest };
        for host in [&three.lab, &three.rest.home] {
            three.trust_vps(host);
        }
        three
    }

    fn up() -> Self {
        let three = Self::new();
        three.rest.vps.up();
        three.lab.up();
        three.rest.home.up();
        three.wait_until_known();
        three
    }

    fn trust_vps(&self, host: &Host) {
        let key = SigningKey::of(&private_key(&self.rest.vps)).verifying_key();
        host.append("peers/vps.toml", &format!("inviter_key = \"{key}\""));
    }

    fn home(&self) -> &Host {
        &self.rest.home
    }

    fn vps(&self) -> &Host {
        &self.rest.vps
    }

    fn wait_until_known(&self) {
        for (host, other) in [(self.home(), "lab"), (&self.lab, "home")] {
            wait_for(format!("{} knows {other}", host.name), secs(10), || knows(host, other).then_some(()));
        }
        wait_for("home reaches lab", secs(10), || self.home().ping("10.89.5.1").then_some(()));
    }

    /// Where a host keeps vps's roster.
    fn roster_of_vps(&self, host: &Host) -> PathBuf {
        host.state_file(&format!("news/{}.roster", hex(&private_key(self.vps()).public_key())))
    }

    fn held(&self, host: &Host) -> Option<Signed> {
        Signed::parse(&std::fs::read(self.roster_of_vps(host)).ok()?).ok()
    }

    /// Signs in the name of vps.
    fn sign(&self, serial: u64, members: &[Member]) -> Signed {
        let key = private_key(self.vps());
        Signed::new(&SigningKey::of(&key), key.public_key(), serial, members).expect("a roster")
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("── lab logged ──\n{}", self.lab.log());
        }
    }
}

fn private_key(host: &Host) -> PrivateKey {
    host.read("private.key").parse().expect("a private key")
}

fn hex(key: &PublicKey) -> String {
    key.as_bytes().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn has_file(host: &Host, peer: &str) -> bool {
    host.config(&format!("peers/{peer}.toml")).exists()
}

fn knows(host: &Host, peer: &str) -> bool {
    let status = host.status();
    status["peers"].as_array().expect("peers").iter().any(|known| known["name"] == peer)
}

fn warnings(host: &Host) -> String {
    host.status()["warnings"].to_string()
}

/// For how long pings from home to lab's bridge go on being answered.
fn until_silent(from: &Host, begin: Instant) -> Duration {
    wait_for("lab is cut off", secs(10), || {
        let output = from.try_run("ping -c 1 -W 0.3 10.89.5.1");
        (!output.status.success()).then(|| begin.elapsed())
    })
}

fn stranger(name: &str, seed: u8, subnet: &str) -> Member {
    Member {
        name: name.into(),
        public_key: PrivateKey::from_bytes([seed; 32]).public_key(),
        addresses: vec![format!("10.88.0.{seed}").parse().expect("an address")],
        subnets: vec![subnet.parse().expect("a network")],
        lans: Vec::new(),
        endpoint: None,
        client: false,
        allow: Vec::new(),
        inviter_key: None,
    }
}

#[test]
fn hosts_learn_of_each_other_from_their_inviter() {
    let three = Three::up();
    let file = three.home().read("peers/lab.toml");
    assert!(file.contains("introduced_by = \"vps\"") && file.contains("via = \"vps\""), "{file}");
    assert!(three.lab.ping(lab::NEXTCLOUD), "both ways");
    // The phone too, which is vps's client.
    assert!(three.lab.read("peers/phone.toml").contains("client = true"));
    assert_eq!(warnings(three.home()), "[]");

    // A change arrives, and the session that it does not concern loses nothing.
    let ping = lab::traffic::Ping::start(three.home(), "10.89.1.1", "-c 40 -i 0.05 -W 2");
    three.vps().replace("peers/lab.toml", "\"10.89.5.0/24\"", "\"10.89.5.0/24\", \"10.89.6.0/24\"");
    let begin = Instant::now();
    three.vps().meshd(&["reload"]);
    wait_for("home hears of lab's second network", secs(5), || {
        three.home().peer("lab")["subnets"].to_string().contains("10.89.6.0/24").then_some(())
    });
    println!("a change arrived after {:?}", begin.elapsed());
    let pinged = ping.finish();
    assert_eq!(pinged.lost(), 0, "{pinged:?}");
    assert!(three.lab.ping(lab::NEXTCLOUD));
}

#[test]
fn who_is_removed_is_cut_off_everywhere_at_once() {
    let three = Three::up();
    assert!(three.lab.ping(lab::NEXTCLOUD) && three.lab.ping("10.89.1.1"));
    let refused = three.home().meshd_fails(4, &["peer", "remove", "lab"]);
    assert!(refused.contains("vps has introduced it") && refused.contains("meshd peer remove lab"), "{refused}");

    let begin = Instant::now();
    three.vps().meshd(&["peer", "remove", "lab"]);
    let done = begin.elapsed();
    let silent = until_silent(three.home(), begin);
    println!("peer remove took {done:?}; home was cut off after {silent:?}");
    assert!(silent < done + secs(1), "{silent:?}");
    wait_for("home forgets lab", secs(2), || {
        (!knows(three.home(), "lab") && !has_file(three.home(), "lab")).then_some(())
    });
    assert!(!three.lab.ping("10.89.1.1") && !three.lab.ping(lab::NEXTCLOUD));
    wait_for("lab knows", secs(2), || warnings(&three.lab).contains("vps has removed this host").then_some(()));

    // Back in by the same file.
    three.vps().write(
        "peers/lab.toml",
        &format!(
            "public_key = \"{}\"\naddresses = [\"10.88.0.{NUMBER}\"]\nsubnets = [\"10.89.5.0/24\"]\n\
             endpoint = \"198.18.{NUMBER}.2:{}\"\n",
            three.lab.public_key(),
            lab::PORT
        ),
    );
    three.vps().meshd(&["reload"]);
    three.wait_until_known();
}

#[test]
fn who_was_down_meanwhile_learns_at_once() {
    let three = Three::up();
    three.home().down();
    three.vps().meshd(&["peer", "remove", "lab"]);
    assert!(has_file(three.home(), "lab"));
    let begin = Instant::now();
    three.home().up();
    // lab goes on calling: what it knows of home is what it knew.
    wait_for("home forgets lab", secs(5), || (!has_file(three.home(), "lab")).then_some(()));
    println!("learnt {:?} after meshd up", begin.elapsed());
    wait_for("the agent too", secs(2), || (!knows(three.home(), "lab")).then_some(()));
    assert!(!three.lab.ping(lab::NEXTCLOUD) && !three.home().ping("10.89.5.1"));
}

#[test]
fn a_peer_that_is_still_named_is_cut_off_though_its_file_stays() {
    let three = Three::up();
    let named = "\n[[publish]]\nprotocol = \"tcp\"\nport = 8443\nto = \"10.89.5.10:8443\"\n";
    three.home().append("meshd.toml", named);
    three.home().meshd(&["reload"]);
    three.vps().meshd(&["peer", "remove", "lab"]);
    wait_for("a warning", secs(5), || {
        warnings(three.home()).contains("which is cut off; its file stays").then_some(())
    });
    assert!(has_file(three.home(), "lab") && !knows(three.home(), "lab"));
    assert!(!three.home().ping("10.89.5.1"));
    // The same after a restart, from what is on disk.
    three.home().end(Signal::SIGKILL);
    three.home().up();
    assert!(!knows(three.home(), "lab"));
    // In again, and out again.
    let key = three.lab.public_key();
    three.vps().meshd(&["peer", "add", "lab", "--public-key", &key, "--address", "10.88.0.100"]);
    wait_for("lab is back", secs(5), || knows(three.home(), "lab").then_some(()));
    three.vps().meshd(&["peer", "remove", "lab"]);
    wait_for("and gone", secs(5), || (!knows(three.home(), "lab")).then_some(()));
    three.home().replace("meshd.toml", named, "");
    three.home().meshd(&["reload"]);
    wait_for("the file goes", secs(5), || (!has_file(three.home(), "lab")).then_some(()));
}

#[test]
fn an_older_or_a_forged_roster_is_not_taken() {
    let three = Three::up();
    let old = three.held(three.home()).expect("a roster");
    three.vps().meshd(&["peer", "remove", "lab"]);
    wait_for("home forgets lab", secs(5), || (!has_file(three.home(), "lab")).then_some(()));
    let new = three.held(three.home()).expect("a roster");
    assert!(new.roster().serial > old.roster().serial);

    // vps itself went back to an old state: it hears from home how far it was.
    three.vps().end(Signal::SIGKILL);
    std::fs::write(three.roster_of_vps(three.vps()), old.document()).expect("write");
    three.vps().up();
    wait_for("vps goes on from there", secs(10), || {
        let held = three.held(three.vps())?;
        (held.roster().serial > old.roster().serial).then_some(())
    });
    assert!(!has_file(three.home(), "lab"));

    // One that another key has signed, in home's own state: as if it were none.
    three.home().end(Signal::SIGKILL);
    let thief = PrivateKey::generate().expect("a key");
    let members = [stranger("thief", 77, "10.89.77.0/24")];
    let forged = Signed::new(&SigningKey::of(&thief), private_key(three.vps()).public_key(), 1 << 40, &members);
    std::fs::write(three.roster_of_vps(three.home()), forged.expect("a roster").document()).expect("write");
    three.home().up();
    wait_for("the true one replaces it", secs(10), || {
        (three.held(three.home())?.roster().serial < 1 << 40).then_some(())
    });
    assert!(!has_file(three.home(), "thief"));
}

#[test]
fn nothing_hostile_is_applied_and_nothing_stops_the_rest() {
    let three = Three::new();
    // What vps would sign if it were hostile. A higher number than it will give by itself.
    let serial = 1 << 41;
    let own = private_key(three.home()).public_key();
    let mut members = vec![
        stranger("../../evil", 20, "10.89.20.0/24"),
        stranger("esc\u{1b}[2Jape", 21, "10.89.21.0/24"),
        stranger("all", 22, "0.0.0.0/0"),
        stranger("bridge", 23, "10.89.2.0/25"),
        stranger("ofvps", 24, "10.89.1.128/25"),
        stranger("home", 25, "10.89.25.0/24"),
        Member { endpoint: Some("10.89.1.1:51820".into()), ..stranger("inside", 26, "10.89.26.0/24") },
        Member { addresses: vec!["10.88.0.2".parse().expect("an address")], ..stranger("me", 27, "10.89.27.0/24") },
        Member { public_key: own, ..stranger("mykey", 28, "10.89.28.0/24") },
        stranger("good", 29, "10.89.29.0/24"),
    ];
    members.push(members[9].clone());
    std::fs::create_dir_all(three.home().state_file("news")).expect("a folder");
    std::fs::write(three.roster_of_vps(three.home()), three.sign(serial, &members).document()).expect("write");
    three.home().up();
    wait_for("the good one", secs(5), || has_file(three.home(), "good").then_some(()));
    let said = warnings(three.home());
    let files = std::fs::read_dir(three.home().config("peers")).expect("a folder").count();
    assert_eq!(files, 2, "{said}");
    for name in ["evil", "ape", "all", "bridge", "ofvps", "\\\"home\\\"", "inside", "me", "listed twice"] {
        assert!(said.contains(name), "{name} in {said}");
    }
    assert!(value::name("good").is_ok() && !said.contains("\\u001b"), "{said}");

    // 10 MB in its place are as if there were none.
    three.home().end(Signal::SIGKILL);
    std::fs::write(three.roster_of_vps(three.home()), vec![b'x'; 10 << 20]).expect("write");
    three.home().up();
    assert!(has_file(three.home(), "good"), "nobody says anything of it");
}

#[test]
fn a_crash_while_it_is_applied_leaves_sound_files_and_is_made_good() {
    let three = Three::up();
    for round in 0..6u64 {
        let (verb, there) = if round % 2 == 0 { ("remove", false) } else { ("add", true) };
        if there {
            let key = three.lab.public_key();
            let endpoint = format!("198.18.{NUMBER}.2:{}", lab::PORT);
            let address = format!("10.88.0.{NUMBER}");
            let add = ["peer", "add", "lab", "--public-key", &key, "--endpoint", &endpoint, "--address", &address];
            three.vps().meshd(&[&add[..], &["--subnet", "10.89.5.0/24"]].concat());
        } else {
            three.vps().meshd(&["peer", "remove", "lab"]);
        }
        std::thread::sleep(Duration::from_millis(round * 15));
        three.home().end(Signal::SIGKILL);
        three.home().meshd(&["peer", "list"]);
        three.home().up();
        wait_for(format!("{verb} is made good"), secs(10), || (has_file(three.home(), "lab") == there).then_some(()));
        wait_for("by the agent too", secs(5), || (knows(three.home(), "lab") == there).then_some(()));
    }
}

#[test]
fn a_new_inviter_is_shown_and_waits_for_the_operators_word() {
    let three = Three::up();
    // home has a peer of its own, of whom the others hear.
    let key = PrivateKey::from_bytes([50; 32]).public_key().to_string();
    three.home().meshd(&[
        "peer",
        "add",
        "lab2",
        "--public-key",
        &key,
        "--address",
        "10.88.0.5",
        "--subnet",
        "10.89.50.0/24",
    ]);
    let line = "home would introduce lab2 (10.88.0.5; 10.89.50.0/24)";
    for host in [three.vps(), &three.lab] {
        wait_for(format!("{} is told", host.name), secs(5), || warnings(host).contains(line).then_some(()));
        assert!(host.meshd(&["plan"]).contains(&format!("? {line}; accept with: meshd peer trust home")));
        let plan: Value = serde_json::from_str(&host.meshd(&["plan", "--json"])).expect("JSON");
        assert_eq!(plan["introductions"][0]["peers"][0]["name"], "lab2");
        assert!(!has_file(host, "lab2"));
    }
    assert_eq!(warnings(three.home()), "[]", "who brings nobody new is not shown");

    let asked = three.vps().meshd_fails(2, &["peer", "trust", "home"]);
    assert!(asked.contains("--yes"), "{asked}");
    let trusted = three.vps().meshd(&["peer", "trust", "home", "--yes"]);
    let inviter_key = three.home().status()["inviter_key"].as_str().expect("a key").to_owned();
    assert!(trusted.contains(&inviter_key) && trusted.contains("+ peer lab2"), "{trusted}");
    assert!(knows(three.vps(), "lab2"));
    // What it brings follows what it says.
    three.home().meshd(&["peer", "remove", "lab2"]);
    wait_for("vps forgets lab2", secs(5), || {
        (!has_file(three.vps(), "lab2") && !knows(three.vps(), "lab2")).then_some(())
    });
    three.home().meshd(&["peer", "add", "lab2", "--public-key", &key, "--address", "10.88.0.5"]);
    wait_for("vps knows lab2", secs(5), || knows(three.vps(), "lab2").then_some(()));
    three.vps().meshd(&["peer", "trust", "home", "--revoke"]);
    assert!(!has_file(three.vps(), "lab2") && !knows(three.vps(), "lab2"));
    // lab trusts home as well, whom it knows from vps.
    three.lab.meshd(&["peer", "trust", "home", "--yes"]);
    assert!(three.lab.read("peers/lab2.toml").contains("via = \"vps\""));
    three.vps().replace("meshd.toml", "peers = [\"home\", \"phone\"]", "peers = [\"phone\"]");
    three.vps().meshd(&["peer", "remove", "home"]);
    wait_for("and both go with it", secs(5), || {
        (!has_file(&three.lab, "home") && !has_file(&three.lab, "lab2")).then_some(())
    });
}

#[test]
fn news_are_heard_from_others_too() {
    let three = Three::new();
    three.vps().up();
    three.lab.up();
    three.home().up();
    three.wait_until_known();
    wait_for("home and lab talk directly", secs(10), || (three.home().peer("lab")["path"] == "direct").then_some(()));
    // vps and home do not hear each other; lab hears both.
    let drop = "table inet cut { chain forward { type filter hook forward priority -1; \
                ip saddr { 203.0.113.10, 198.51.100.7 } ip daddr { 203.0.113.10, 198.51.100.7 } drop; }; }";
    three.rest.internet.run(&format!("nft '{drop}'"));
    let key = PrivateKey::from_bytes([50; 32]).public_key().to_string();
    three.vps().meshd(&["peer", "add", "far", "--public-key", &key, "--address", "10.88.0.5"]);
    wait_for("home hears it from lab", secs(10), || knows(three.home(), "far").then_some(()));
}
