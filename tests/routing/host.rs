//! A host in a network namespace of its own, and the configurations of the worked example.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::IpNet;
use meshd::config::{Bridge, Config, Egress, Exit, Host, Peer, Protocol, Publish};
use meshd::host::Reconciler;
use meshd::key::PrivateKey;

/// One host: `eth0` with a default route, `br0`, and a stand-in for the tunnel's device. Links without a carrier and
/// addresses without DAD, so that little in its state changes by itself.
pub struct Test {
    folder: tempfile::TempDir,
}

impl Test {
    /// Runs `body` in a new thread in a new namespace. Both end with it.
    pub fn run<F: AsyncFnOnce(Test) + Send>(body: F) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let test = Test { folder: tempfile::tempdir().unwrap() };
                add_links();
                runtime.block_on(body(test));
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// An agent's reconciler, as after a start of the process.
    pub fn reconciler(&self, interface: &str) -> Reconciler {
        let folder = if interface == "mesh0" { self.state_dir() } else { self.folder.path().join(interface) };
        Reconciler::new(&folder, interface).unwrap()
    }

    /// That of the agent on `mesh0`.
    pub fn state_dir(&self) -> PathBuf {
        let folder = self.folder.path().join("mesh0");
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}

/// All that `meshd down` promises to put back.
pub fn state() -> String {
    let mut state = String::new();
    for command in [
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip link",
        "ip -br address",
        "nft -s list ruleset",
    ] {
        write!(state, "# {command}\n{}", without_carrier(&sh(command))).unwrap();
    }
    for family in ["ipv4", "ipv6"] {
        sysctls(&Path::new("/proc/sys/net").join(family).join("conf"), &mut state);
    }
    state
}

/// Fails with the lines that differ.
pub fn assert_state(expected: &str) {
    assert_same(expected, "");
    assert_eq!(state(), expected, "only the order of lines differs");
}

/// As `assert_state`, in any order: what was taken away and came back is listed last.
pub fn assert_same(expected: &str, after: &str) {
    let now = state();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    if sorted(&now) == sorted(expected) {
        return;
    }
    let only =
        |a: &str, b: &str| a.lines().filter(|line| !b.lines().any(|l| l == *line)).collect::<Vec<_>>().join("\n");
    panic!("{after}\nnew:\n{}\nmissing:\n{}", only(&now, expected), only(expected, &now));
}

/// What the kernel notes about a link's carrier some time after the link came up, by itself.
fn without_carrier(text: &str) -> String {
    let mut text = text.replace(" linkdown", "").replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
    for state in ["UNKNOWN", "DOWN", "UP", "LOWERLAYERDOWN"] {
        text = text.replace(&format!(" state {state}"), "").replace(&format!(" {state} "), " ");
    }
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

fn sysctls(folder: &Path, state: &mut String) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sysctls(&path, state);
        } else if let Ok(value) = fs::read_to_string(&path) {
            writeln!(state, "{} = {}", path.display(), value.trim()).unwrap();
        }
    }
}

fn add_links() {
    sh("ip link set lo up");
    sh("ip tuntap add dev eth0 mode tap");
    sh("ip link set eth0 addrgenmode none; ip link set eth0 up");
    sh("ip address add 192.168.1.20/24 dev eth0");
    sh("ip -6 address add 2001:db8:168::20/64 dev eth0 nodad");
    sh("ip route add default via 192.168.1.1");
    sh("ip -6 route add default via 2001:db8:168::1");
    add_bridge();
    sh("ip tuntap add dev mesh0 mode tun");
}

/// `br0`
pub fn add_bridge() {
    sh("ip link add br0 type bridge");
    sh("ip link set br0 addrgenmode none; ip link set br0 up");
    sh("ip address add 10.89.2.1/24 dev br0");
    sh("ip -6 address add fd89:2::1/64 dev br0 nodad");
}

/// A command's output; its failure is the test's.
pub fn sh(command: &str) -> String {
    try_sh(command).unwrap_or_else(|error| panic!("{command}: {error}"))
}

/// A command's output, or what it wrote to its standard error.
pub fn try_sh(command: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn peer(name: &str, addresses: &[&str], subnets: &[&str]) -> Peer {
    Peer {
        addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
        subnets: nets(subnets),
        ..Peer::new(name, PrivateKey::generate().unwrap().public_key())
    }
}

fn config(name: &str, addresses: &[&str], bridge: Bridge, peers: Vec<Peer>) -> Config {
    let host = Host {
        name: name.to_owned(),
        interface: "mesh0".to_owned(),
        addresses: nets(addresses),
        listen_port: 51820,
        endpoint: None,
        mtu: 1420,
        workers: None,
        copy_dscp: false,
        bridges: vec![bridge],
        lans: Vec::new(),
        exit: None,
        publish: Vec::new(),
        domain: "mesh".to_owned(),
        express: true,
        names: None,
    };
    Config { host, private_key: PrivateKey::generate().unwrap(), peers }
}

/// The home server: `br0` leaves through the VPS, its LAN stays reachable.
pub fn home() -> Config {
    let br0 = Bridge {
        name: "br0".to_owned(),
        subnets: nets(&["10.89.2.0/24", "fd89:2::/64"]),
        egress: Egress::Peers(vec!["vps".to_owned()]),
        allow: nets(&["192.168.1.0/24"]),
        users: Vec::new(),
    };
    let vps = peer("vps", &["10.88.0.1", "fd88::1"], &["10.89.1.0/24", "fd89:1::/64"]);
    config("home", &["10.88.0.2/24", "fd88::2/64"], br0, vec![vps])
}

/// The VPS: an exit with a published port.
pub fn vps() -> Config {
    let br0 = Bridge {
        name: "br0".to_owned(),
        subnets: nets(&["10.89.1.0/24", "fd89:1::/64"]),
        egress: Egress::Direct,
        allow: Vec::new(),
        users: Vec::new(),
    };
    let peers = vec![
        peer("home", &["10.88.0.2", "fd88::2"], &["10.89.2.0/24", "fd89:2::/64"]),
        peer("phone", &["10.88.0.3", "fd88::3"], &[]),
    ];
    let mut config = config("vps", &["10.88.0.1/24", "fd88::1/64"], br0, peers);
    config.host.exit =
        Some(Exit { peers: vec!["home".to_owned(), "phone".to_owned()], interface: None, egress: Egress::Direct });
    let to = "10.89.2.10:443".parse().unwrap();
    config.host.publish = vec![Publish { protocol: Protocol::Tcp, ports: 443.into(), to }];
    config
}
