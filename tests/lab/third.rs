//! A third host, lab, behind a NAT of its own. It and home know each other through the VPS.

use std::fmt::Write as _;

use super::host::Host;
use super::netns::Namespace;
use super::{Lab, Topology, secs, wait_for};
use meshd::key::PrivateKey;

/// The container on lab.
pub const RUNNER: &str = "10.89.3.10";
/// The same over IPv6.
pub const RUNNER6: &str = "fd89:3::10";

/// The picture with lab.
pub struct Third {
    /// The third host.
    pub lab: Host,
    /// Its container.
    pub runner: Namespace,
    /// Its router; nowhere when that is home's.
    pub dsl: Option<Namespace>,
    /// vps, home and the others.
    pub rest: Lab,
}

impl Third {
    /// Builds it and writes the files; starts nothing.
    pub fn new() -> Self {
        Self::with("third")
    }

    /// The same with lab on another network of home's router.
    pub fn neighbour() -> Self {
        Self::with("neighbour")
    }

    fn with(command: &str) -> Self {
        let rest = Lab::new();
        let (id, dir) = (rest.topology.id.as_str(), rest.dir.path());
        let status = Topology::script().args([command, id]).arg(dir).status().expect("bash");
        assert!(status.success(), "tests/lab/topology.sh {command} {id}: {status}");
        let namespace = |name| Namespace::open(&rest.topology.namespace(name));
        let lab = rest.vps.beside("lab", namespace("lab"), dir.join("lab"));
        let key = PrivateKey::generate().expect("a key");
        lab.join(&key, "\"10.88.0.4/24\", \"fd88::4/64\"");
        let mut file = lab.read("meshd.toml");
        let subnets = "subnets = [\"10.89.3.0/24\", \"fd89:3::/64\"]";
        let _ = write!(file, "\n[[bridge]]\nname = \"br0\"\n{subnets}\negress = \"vps\"\n");
        lab.write("meshd.toml", &file);
        let own =
            format!("public_key = \"{}\"\naddresses = [\"10.88.0.4\", \"fd88::4\"]\n{subnets}\n", key.public_key());
        rest.vps.write("peers/lab.toml", &own);
        rest.vps.replace("meshd.toml", "peers = [\"home\"", "peers = [\"lab\", \"home\"");
        rest.home.write("peers/lab.toml", &format!("{own}via = \"vps\"\n"));
        let home = rest.vps.read("peers/home.toml");
        lab.write("peers/home.toml", &format!("via = \"vps\"\n{home}"));
        Self { lab, runner: namespace("runner"), dsl: (command == "third").then(|| namespace("dsl")), rest }
    }

    /// Makes both routers choose another port for each destination, at random.
    pub fn make_symmetric(&self) {
        for router in self.dsl.iter().chain([&self.rest.isp]) {
            router.run(
                "printf 'flush chain ip nat post\\nadd rule ip nat post oifname \"wan\" masquerade fully-random\\n' \
                 | nft -f - && conntrack -F 2>/dev/null",
            );
        }
    }

    /// Starts all three agents.
    pub fn start(&self) {
        self.rest.start();
        self.lab.up();
    }

    /// How lab reaches home, as its status says.
    pub fn path_of_lab(&self) -> String {
        self.lab.peer("home")["path"].as_str().expect("a path").to_owned()
    }

    /// How home reaches lab.
    pub fn path_of_home(&self) -> String {
        self.rest.home.peer("lab")["path"].as_str().expect("a path").to_owned()
    }

    /// Waits until both say so.
    pub fn wait_for_path(&self, path: &str, limit: u64) {
        wait_for(format!("home and lab: {path}"), secs(limit), || {
            (self.path_of_lab() == path && self.path_of_home() == path).then_some(())
        });
    }

    /// Drops what home's router sends to lab's, what lab's sends to home's, or both, on the internet.
    pub fn cut(&self, to_lab: bool, to_home: bool) {
        let mut rules = String::from("table inet cut { chain forward { type filter hook forward priority -1; ");
        for (cut, from, to) in [(to_lab, super::ISP, DSL), (to_home, DSL, super::ISP)] {
            if cut {
                let _ = write!(rules, "ip saddr {from} ip daddr {to} counter drop; ");
            }
        }
        self.rest.internet.run(&format!("nft '{rules}}}; }}'"));
    }

    /// Takes [`Third::cut`] back.
    pub fn mend(&self) {
        self.rest.internet.run("nft delete table inet cut");
    }
}

/// What lab is to the internet.
const DSL: &str = "198.18.9.9";

impl Drop for Third {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lab.print_log();
        }
    }
}
