//! Two exits and a clock.

use std::collections::BTreeMap;

use super::*;
use crate::config::{Files, SourceFile};
use crate::express::{Ability, Reason};
use crate::key::{NextKeys, PrivateKey};
use crate::tunnel::{Cipher, PeerSettings, PeerState};

const SECOND: Duration = Duration::from_secs(1);

fn key(name: &str) -> PublicKey {
    PrivateKey::from_bytes([name.len() as u8 * 16 + name.as_bytes()[name.len() - 1] % 16; 32]).public_key()
}

fn config(bridges: &str) -> Arc<Config> {
    let file = |path: &str, text: String| SourceFile { path: path.to_owned(), text: text.into_bytes() };
    let peer = |name: &str, n: u8| {
        let text =
            format!("public_key = \"{}\"\naddresses = [\"10.88.0.{n}\"]\nsubnets = [\"10.90.{n}.0/24\"]\n", key(name));
        (name.to_owned(), file(name, text))
    };
    let host = format!("name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n{bridges}");
    let own = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [7; 32]);
    let files = Files {
        host: file("meshd.toml", host),
        private_key: file("private.key", own),
        peers: vec![peer("vps1", 11), peer("vps2", 12), peer("phone", 13)],
        preshared_keys: BTreeMap::new(),
    };
    Arc::new(crate::config::parse(&files).unwrap_or_else(|problems| panic!("{problems:?}")))
}

fn bridge(name: &str, n: u8, egress: &str) -> String {
    format!("[[bridge]]\nname = \"{name}\"\nsubnets = [\"10.89.{n}.0/24\"]\negress = {egress}\n")
}

/// Home with one bridge behind two exits, on a clock that the test moves.
struct Watch {
    exits: Exits,
    started: Instant,
    elapsed: Duration,
    heard: BTreeMap<&'static str, Duration>,
    agents: bool,
}

impl Watch {
    fn new() -> Self {
        let started = Instant::now();
        let exits = Exits::new(config(&bridge("br0", 2, "[\"vps1\", \"vps2\"]")), started);
        Self { exits, started, elapsed: Duration::ZERO, heard: BTreeMap::new(), agents: true }
    }

    fn now(&self) -> Instant {
        self.started + self.elapsed
    }

    fn peers(&self) -> Vec<PeerSnapshot> {
        let snapshot = |name: &str| PeerSnapshot {
            cipher: Cipher::default(),
            express: crate::express::Snapshot::default(),
            settings: PeerSettings {
                public_key: key(name),
                preshared_key: None,
                endpoint: None,
                persistent_keepalive: None,
                allowed_ips: Vec::new(),
                deliver: true,
                via: None,
                next: NextKeys::default(),
                express: Ability::Unable(Reason::Off),
            },
            latest_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            state: PeerState::Up,
            unanswered: Duration::ZERO,
            heard: self.heard.get(name).map(|&heard| self.started + heard),
            agent: self.agents && self.heard.contains_key(name),
            relayed: None,
        };
        ["vps1", "vps2", "phone"].map(snapshot).into()
    }

    /// Seconds pass in which these exits answer when they are asked; what is chosen meanwhile, and when.
    fn pass(&mut self, seconds: u64, answering: &[&'static str]) -> Vec<(u64, &'static str)> {
        let mut chosen = Vec::new();
        for _ in 0..seconds {
            self.elapsed += SECOND;
            let quiet = self.exits.look(&self.peers(), self.now());
            if !self.exits.choose(self.now()).is_empty() {
                chosen.push((self.elapsed.as_secs(), self.active()));
            }
            for name in answering.iter().filter(|name| quiet.contains(&key(name))) {
                self.heard.insert(name, self.elapsed);
            }
        }
        chosen
    }

    fn active(&self) -> &'static str {
        let first = self.exits.local().egress[0].exits[0];
        if first == key("vps1") { "vps1" } else { "vps2" }
    }
}

#[test]
fn a_quiet_healthy_pair_never_changes() {
    let mut watch = Watch::new();
    assert_eq!(watch.pass(3600, &["vps1", "vps2"]), []);
}

#[test]
fn the_second_takes_over_within_ten_seconds_and_gives_back_after_thirty() {
    let mut watch = Watch::new();
    watch.pass(60, &["vps1", "vps2"]);
    let changes = watch.pass(60, &["vps2"]);
    assert!(matches!(changes[..], [(68..=70, "vps2")]), "{changes:?}");
    let reason = watch.exits.status(&watch.exits.config.host.bridges[0].egress, watch.now());
    assert_eq!((reason.active.as_str(), reason.reason.as_deref()), ("vps2", Some("vps1 was silent for 10 s")));
    let well: Vec<_> = reason.exits.iter().map(|exit| (exit.name.as_str(), exit.well)).collect();
    assert_eq!(well, [("vps1", false), ("vps2", true)]);
    // It comes back at 120 s, and goes again: the thirty seconds begin anew.
    assert_eq!(watch.pass(20, &["vps1", "vps2"]), []);
    assert_eq!(watch.pass(20, &["vps2"]), []);
    let changes = watch.pass(60, &["vps1", "vps2"]);
    assert!(matches!(changes[..], [(190..=192, "vps1")]), "{changes:?}");
}

#[test]
fn what_does_not_answer_from_the_start_is_passed_over() {
    let mut watch = Watch::new();
    assert_eq!(watch.pass(60, &["vps2"]), [(10, "vps2")]);
}

#[test]
fn when_all_fall_silent_nothing_changes() {
    for first_to_go in 0..5 {
        let mut watch = Watch::new();
        watch.pass(60, &["vps1", "vps2"]);
        watch.pass(first_to_go, &["vps2"]);
        assert_eq!(watch.pass(600, &[]), [], "{first_to_go} s apart");
        // And whoever comes back first has it; the preferred one at once, if it is it.
        let mut other = Watch { heard: watch.heard.clone(), ..Watch::new() };
        other.pass(600, &[]);
        assert_eq!(watch.pass(60, &["vps1"]), []);
        assert_eq!(watch.active(), "vps1");
        assert_eq!(other.pass(60, &["vps2"]).len(), 1);
        assert_eq!(other.active(), "vps2");
    }
}

#[test]
fn other_programs_have_more_time() {
    let mut watch = Watch::new();
    watch.agents = false;
    watch.pass(60, &["vps1", "vps2"]);
    let changes = watch.pass(60, &["vps2"]);
    assert!(matches!(changes[..], [(88..=90, "vps2")]), "{changes:?}");
}

#[test]
fn another_list_begins_with_its_first_and_the_same_keeps_its_choice() {
    let mut watch = Watch::new();
    watch.pass(60, &["vps2"]);
    assert_eq!(watch.active(), "vps2");
    let bridges = |egress: &str| config(&(bridge("br0", 2, egress) + &bridge("br1", 3, "\"vps1\"")));
    watch.exits.follow(bridges("[\"vps1\", \"vps2\"]"), watch.now());
    assert_eq!(watch.active(), "vps2");
    watch.exits.follow(bridges("[\"vps2\", \"vps1\"]"), watch.now());
    assert_eq!(watch.active(), "vps2");
    watch.exits.follow(bridges("[\"vps1\", \"vps2\"]"), watch.now());
    assert_eq!(watch.active(), "vps1");
    watch.exits.follow(bridges("\"vps2\""), watch.now());
    assert!(watch.exits.watched.is_empty(), "one alone is not watched");
}

#[test]
fn each_network_has_its_exits() {
    let exit = "[exit]\npeers = [\"phone\"]\negress = \"vps2\"\n";
    let config = config(&(bridge("br0", 2, "\"none\"") + &bridge("br1", 3, "[\"vps2\", \"vps1\"]") + exit));
    let local = Exits::new(config, Instant::now()).local();
    let egress: Vec<_> = local.egress.iter().map(|egress| (egress.source.to_string(), egress.exits.clone())).collect();
    let (both, one) = (vec![key("vps2"), key("vps1")], vec![key("vps2")]);
    let expected = [
        ("0.0.0.0/0", both.clone()),
        ("::/0", both.clone()),
        ("10.89.2.0/24", Vec::new()),
        ("10.89.3.0/24", both),
        ("10.88.0.13/32", one.clone()),
        ("10.90.13.0/24", one),
    ];
    assert_eq!(egress, expected.map(|(source, exits)| (source.to_owned(), exits)));
    assert_eq!((local.bridges.len(), local.addresses), (2, vec!["10.88.0.2".parse::<std::net::IpAddr>().unwrap()]));
}
