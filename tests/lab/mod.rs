//! The worked example's picture in network namespaces, with the real binary; `topology.sh` builds it.
//!
//! Every test has a [`Lab`] of its own, so tests run side by side. Dropping it kills what runs in it and deletes it.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod capture;
pub mod cgroup;
pub mod container;
pub mod debian;
pub mod dns;
pub mod docker;
pub mod dump;
pub mod express;
pub mod firewalls;
pub mod host;
pub mod inviter;
pub mod join;
pub mod joiner;
pub mod manager;
pub mod nat;
pub mod netns;
pub mod other;
pub mod phone;
pub mod podman;
pub mod resolved;
pub mod sequence;
pub mod services;
pub mod snapshot;
pub mod steady;
pub mod strangers;
pub mod third;
pub mod traffic;
pub mod wire;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use host::Host;
use meshd::key::PrivateKey;
use netns::Namespace;
use traffic::WebServer;

/// The tunnel's UDP port on both hosts.
pub const PORT: u16 = 51820;
/// The internet's web server, which answers the client's address.
pub const WEB: &str = "192.0.2.80";
/// The same over IPv6.
pub const WEB6: &str = "2001:db8:80::80";
/// What the VPS is to the internet.
pub const VPS: &str = "203.0.113.10";
/// The same over IPv6.
pub const VPS6: &str = "2001:db8:1::10";
/// What home is to the internet: its router's address.
pub const ISP: &str = "198.51.100.7";
/// Home's own address over IPv6, which is routed.
pub const HOME6: &str = "2001:db8:168::20";
/// The container on the VPS.
pub const PROXY: &str = "10.89.1.10";
/// The same over IPv6.
pub const PROXY6: &str = "fd89:1::10";
/// The container at home.
pub const NEXTCLOUD: &str = "10.89.2.10";
/// The same over IPv6.
pub const NEXTCLOUD6: &str = "fd89:2::10";

/// vps, home behind its ISP's NAT, an internet, a container on each bridge.
pub struct Lab {
    /// The host on a public address.
    pub vps: Host,
    /// The host behind NAT.
    pub home: Host,
    /// The container on the VPS.
    pub proxy: Namespace,
    /// The container at home.
    pub nextcloud: Namespace,
    /// Home's router.
    pub isp: Namespace,
    /// Everything else, with the web server.
    pub internet: Namespace,
    _web: WebServer,
    // Dropped last, in this order: the namespaces, then the files.
    topology: Topology,
    dir: tempfile::TempDir,
}

impl Lab {
    /// Builds the picture and places the files of `peers/`; starts nothing.
    pub fn new() -> Self {
        Self::with_binary(Path::new(env!("CARGO_BIN_EXE_meshd")))
    }

    /// The same with the optimised binary, for tests that measure it.
    pub fn release() -> Self {
        Self::with_binary(&release_binary())
    }

    fn with_binary(binary: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("meshd-lab-").tempdir().expect("a folder for the lab");
        let topology = Topology::up(dir.path());
        let namespace = |name| Namespace::open(&topology.namespace(name));
        let host = |name| Host::new(name, namespace(name), dir.path().join(name), binary);
        let (vps, home) = (host("vps"), host("home"));
        vps.place(&["home", "phone"]);
        home.place(&["vps"]);
        let internet = namespace("internet");
        Self {
            vps,
            home,
            proxy: namespace("proxy"),
            nextcloud: namespace("nextcloud"),
            isp: namespace("isp"),
            _web: WebServer::start(&internet, 80),
            internet,
            topology,
            dir,
        }
    }

    /// The lab with the agents of both hosts up.
    pub fn up() -> Self {
        let lab = Self::new();
        lab.start();
        lab
    }

    /// Starts both agents.
    pub fn start(&self) {
        self.vps.up();
        self.home.up();
    }

    /// One more host on the internet, as a peer of the VPS that knows its endpoint: 10.88.0.`number`, from 100 on. Not
    /// started.
    pub fn add_host(&self, name: &'static str, number: u8) -> Host {
        let id = &self.topology.id;
        let arguments = [id.as_str(), &self.dir.path().to_string_lossy(), name, &number.to_string()].map(str::to_owned);
        let status = Topology::script().arg("host").args(arguments).status().expect("bash");
        assert!(status.success(), "tests/lab/topology.sh host {id} {name}: {status}");
        let host = self.vps.beside(name, Namespace::open(&self.topology.namespace(name)), self.dir.path().join(name));
        let key = PrivateKey::generate().expect("a key");
        host.join(&key, &format!("\"10.88.0.{number}/24\", \"fd88::{number}/64\""));
        self.vps.write(
            &format!("peers/{name}.toml"),
            &format!("public_key = \"{}\"\naddresses = [\"10.88.0.{number}\"]\n", key.public_key()),
        );
        host
    }

    /// One more container, at 10.89.`number`.10 and fd89:`number`::10 on a bridge of its own, `br` and the number.
    pub fn attach_bridge(&self, host: &Host, name: &str, number: u8) -> Namespace {
        self.bridge(host, &format!("br{number}"), name, number)
    }

    fn bridge(&self, host: &Host, bridge: &str, container: &str, number: u8) -> Namespace {
        let (id, number) = (self.topology.id.as_str(), number.to_string());
        let status =
            Topology::script().args(["bridge", id, host.name, bridge, container, &number]).status().expect("bash");
        assert!(status.success(), "tests/lab/topology.sh bridge {id} {bridge}: {status}");
        Namespace::open(&self.topology.namespace(container))
    }

    /// One more bridge at home, as home's agent is to know it too, with this container on it: 10.89.`number`.10.
    pub fn add_bridge(&self, bridge: &str, container: &str, number: u8, egress: &str) -> Namespace {
        let namespace = self.bridge(&self.home, bridge, container, number);
        let subnets = format!("\"10.89.{number}.0/24\", \"fd89:{number}::/64\"");
        let file = self.home.read("meshd.toml");
        self.home.write(
            "meshd.toml",
            &format!("{file}\n[[bridge]]\nname = \"{bridge}\"\nsubnets = [{subnets}]\negress = {egress}\n"),
        );
        self.vps.replace("peers/home.toml", "subnets = [", &format!("subnets = [{subnets}, "));
        namespace
    }

    /// One more exit for home on the internet, 198.18.`number`.2 and 2001:db8:`number`::2, from 100 on. Not started.
    pub fn add_exit(&self, name: &'static str, number: u8) -> Host {
        let exit = self.add_host(name, number);
        let host = exit.read("meshd.toml");
        exit.write("meshd.toml", &format!("{host}\n[exit]\npeers = [\"home\"]\n"));
        exit.write("peers/home.toml", &self.vps.read("peers/home.toml"));
        self.home.write(
            &format!("peers/{name}.toml"),
            &format!(
                "public_key = \"{}\"\nendpoint = \"198.18.{number}.2:{PORT}\"\n\
                 addresses = [\"10.88.0.{number}\", \"fd88::{number}\"]\npersistent_keepalive = 25\n",
                exit.public_key()
            ),
        );
        exit
    }

    /// One more container on a host's bridge: 10.89.`subnet`.11 and fd89:`subnet`::11.
    pub fn add_container(&self, host: &Host, name: &str, subnet: u8) -> Namespace {
        let (path, owner) = (self.topology.namespace(name), host.name());
        let full = path.file_name().expect("a name").to_string_lossy();
        // In the mount namespace of the test, unlike what the host runs.
        for line in [
            format!("netns add {full}"),
            format!("link add {name} netns {owner} type veth peer name eth0 netns {full}"),
            format!("-n {owner} link set {name} master br0 up"),
        ] {
            let status = Command::new("ip").args(line.split(' ')).status().expect("ip");
            assert!(status.success(), "ip {line}: {status}");
        }
        let container = Namespace::open(&path);
        container.run(&format!(
            "ip link set lo up && ip link set eth0 up && ip address add 10.89.{subnet}.11/24 dev eth0 && \
             ip address add fd89:{subnet}::11/64 dev eth0 nodad && ip route add default via 10.89.{subnet}.1 && \
             ip route add default via fd89:{subnet}::1"
        ));
        wait_for(format!("{owner} reaches {name}"), secs(5), || host.ping(&format!("fd89:{subnet}::11")).then_some(()));
        container
    }

    /// A place for a test's own files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lets home forward and masquerade its containers as Podman does: without a guard, a leak waiting to happen.
    pub fn masquerade_at_home_like_podman(&self) {
        self.home.run(
            "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; \
             nft 'table inet podman { chain post { type nat hook postrouting priority srcnat; \
             iifname br0 oifname eth0 masquerade; }; }'",
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in [&self.vps, &self.home] {
                host.print_log();
            }
        }
    }
}

/// The optimised binary that `scripts/test` builds.
pub fn release_binary() -> PathBuf {
    let path = std::env::var_os("MESHD_RELEASE_BIN").map_or_else(|| root().join("target/release/meshd"), PathBuf::from);
    assert!(path.exists(), "{} is missing: run scripts/test", path.display());
    path
}

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Asks until the answer is `Some`, for at most `limit`; panics with `what` when it never is.
pub fn wait_for<T>(what: impl AsRef<str>, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {}", what.as_ref());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks until both sides are equal, for at most five seconds; panics with the last two otherwise.
pub fn wait_equal<T: PartialEq + Debug>(what: &str, mut sides: impl FnMut() -> (T, T)) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let (left, right) = sides();
        if left == right {
            return;
        }
        assert!(Instant::now() < deadline, "{what}\n left: {left:?}\nright: {right:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Seconds, shortly.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Topology {
    id: String,
}

impl Topology {
    fn up(dir: &Path) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "the lab needs network namespaces: run scripts/test as root");
        let id = format!("{}-t{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let status = Self::script().arg("up").arg(&id).arg(dir).status().expect("bash");
        assert!(status.success(), "tests/lab/topology.sh up {id}: {status}");
        Self { id }
    }

    fn namespace(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/run/netns/meshd-{}-{name}", self.id))
    }

    fn script() -> Command {
        Command::new(root().join("tests/lab/topology.sh"))
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if let Err(error) = Self::script().arg("down").arg(&self.id).status() {
            eprintln!("tests/lab/topology.sh down {}: {error}", self.id);
        }
    }
}
