//! Real packets: a host between a container, the far side of its tunnel and the internet, each a namespace. A veth stands in
//! for the tunnel: what the host sends into `mesh0` arrives at `far`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::host::{Test, home, sh, try_sh, vps};

/// A namespace held by a process, which ends with it.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "ip link set lo up; echo ready; exec sleep infinity"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// A veth pair: `name` here with these addresses, `eth0` there with those.
    fn connect(&self, name: &str, here: &[&str], there: &[&str]) {
        sh(&format!("ip link add {name} type veth peer name eth0 netns {}", self.0.id()));
        sh(&format!("ip link set {name} up"));
        self.sh("ip link set eth0 up");
        for address in here {
            sh(&format!("ip address add {address} dev {name} {}", nodad(address)));
        }
        for address in there {
            self.sh(&format!("ip address add {address} dev eth0 {}", nodad(address)));
        }
    }

    fn try_sh(&self, command: &str) -> Result<String, String> {
        try_sh(&format!("nsenter -t {} -n sh -ec '{command}'", self.0.id()))
    }

    fn sh(&self, command: &str) -> String {
        self.try_sh(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Whether an answer comes, as soon as links and neighbours are ready.
    fn reaches(&self, to: &str) -> bool {
        self.try_sh(&format!("ping -n -c 1 -w 5 {to}")).is_ok()
    }

    /// Whether no answer comes, though the way was ready.
    fn misses(&self, to: &str) -> bool {
        self.try_sh(&format!("ping -n -c 1 -W 1 {to}")).is_err()
    }

    /// Counts the IP packets that arrive, neighbour discovery and group management aside.
    fn count_arrivals(&self) {
        self.sh("nft add table inet oracle");
        self.sh("nft \"add chain inet oracle seen { type filter hook prerouting priority raw; }\"");
        let local = "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report }";
        self.sh(&format!("nft \"add rule inet oracle seen {local} accept\""));
        self.sh("nft add rule inet oracle seen counter");
    }

    fn arrivals(&self) -> u64 {
        let listing = self.sh("nft list chain inet oracle seen");
        let (_, rest) = listing.split_once("counter packets ").unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

/// The home server: container on `br0`, the mesh and the internet behind `mesh0`, its LAN with a router on `eth0`.
struct Home {
    container: Namespace,
    far: Namespace,
    lan: Namespace,
}

impl Home {
    fn new(rp_filter: u8) -> Self {
        sh("ip link del eth0; ip link del br0; ip link del mesh0");
        sh(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter} net.ipv4.conf.default.rp_filter={rp_filter}"));
        let (container, far, lan) = (Namespace::new(), Namespace::new(), Namespace::new());
        crate::host::add_bridge();
        container.connect("ct0", &[], &["10.89.2.10/24", "fd89:2::10/64"]);
        sh("ip link set ct0 master br0");
        container.sh("ip route add default via 10.89.2.1; ip -6 route add default via fd89:2::1");

        let elsewhere =
            ["10.88.0.1/24", "10.89.1.10/32", "192.0.2.80/32", "fd88::1/64", "fd89:1::10/128", "2001:db8:80::80/128"];
        far.connect("mesh0", &[], &elsewhere);
        far.sh("ip route add 10.89.2.0/24 via 10.88.0.2; ip -6 route add fd89:2::/64 via fd88::2");

        let router = ["192.168.1.1/24", "2001:db8:168::1/64", "192.0.2.99/32"];
        lan.connect("eth0", &["192.168.1.20/24", "2001:db8:168::20/64"], &router);
        lan.sh("ip route add 10.89.2.0/24 via 192.168.1.20; ip route add 198.51.100.0/24 via 192.168.1.20");
        sh("ip route add default via 192.168.1.1; ip -6 route add default via 2001:db8:168::1");
        Self { container, far, lan }
    }
}

#[test]
fn containers_reach_mesh_exit_and_lan_under_strict_rp_filter() {
    Test::run(async |test: Test| {
        let net = Home::new(1);
        test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        assert_eq!(sh("sysctl -n net.ipv4.conf.mesh0.rp_filter net.ipv4.conf.br0.rp_filter"), "1\n1\n");
        for to in ["10.88.0.1", "10.89.1.10", "192.0.2.80", "fd88::1", "fd89:1::10", "2001:db8:80::80"] {
            assert!(net.container.reaches(to), "container to {to}");
        }
        assert!(net.container.reaches("192.168.1.1"), "container to the allowed LAN");
        assert!(net.container.reaches("10.89.2.1") && net.container.reaches("192.168.1.20"), "container to its host");
        assert!(net.far.reaches("10.89.2.10") && net.far.reaches("fd89:2::10"), "peer to container");
        assert!(try_sh("ping -n -c 1 -w 5 10.89.1.10").is_ok(), "host to a peer's container");
        assert!(try_sh("ping -n -c 1 -w 5 192.0.2.99").is_ok(), "host to the internet by its own way");
        assert!(net.container.misses("192.0.2.99"), "the router's side is not the container's way");
    });
}

#[test]
fn nothing_leaves_beside_a_lost_tunnel_even_without_rules() {
    Test::run(async |test: Test| {
        let net = Home::new(0);
        let mut reconciler = test.reconciler("mesh0");
        reconciler.reconcile(&home()).await.unwrap();
        assert!(net.container.reaches("192.0.2.80"));
        net.lan.count_arrivals();

        sh("ip link del mesh0"); // as when the process is killed
        let refused = net.container.try_sh("ping -n -c 1 -W 1 192.0.2.99 2>&1 || true").unwrap();
        assert!(refused.contains("Unreachable"), "the container is told at once: {refused}");
        assert!(net.container.misses("2001:db8:168::1"));
        assert_eq!(net.lan.arrivals(), 0);

        sh("ip rule del pref 88; ip rule del pref 89; ip -6 rule del pref 88; ip -6 rule del pref 89");
        assert!(net.container.misses("192.0.2.99") && net.container.misses("2001:db8:168::1"));
        assert_eq!(net.lan.arrivals(), 0, "the guard alone holds");

        sh("nft delete table inet meshd_guard");
        assert!(net.container.reaches("192.0.2.99"), "the oracle must see what leaves without rules and guard");
        assert!(net.lan.arrivals() > 0);
    });
}

#[test]
fn a_container_cannot_have_the_host_answer_a_stranger() {
    Test::run(async |test: Test| {
        let net = Home::new(0);
        test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        net.lan.count_arrivals();
        net.container.sh("ip address add 198.51.100.9/32 dev eth0");
        let spoofed = || {
            assert!(net.container.misses("-I 198.51.100.9 192.168.1.20"), "echo reply of the host");
            assert!(net.container.misses("-I 198.51.100.9 -t 1 192.0.2.80"), "time exceeded of the host");
        };
        spoofed();
        assert_eq!(net.lan.arrivals(), 0);
        sh("nft delete table inet meshd_guard");
        spoofed();
        assert!(net.lan.arrivals() > 0, "the oracle must see the answers without the guard");
    });
}

/// The VPS: `far` is home's container and a stranger in the mesh, `wan` the internet.
struct Vps {
    far: Namespace,
    wan: Namespace,
}

impl Vps {
    fn new() -> Self {
        sh("ip link del eth0; ip link del mesh0");
        sh("ip address flush dev br0; ip address add 10.89.1.1/24 dev br0");
        sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
        let (far, wan) = (Namespace::new(), Namespace::new());
        let there = ["10.88.0.2/24", "10.88.0.9/24", "10.89.2.10/32", "fd88::2/64", "fd89:2::10/128"];
        far.connect("mesh0", &[], &there);
        far.sh("ip route add default via 10.88.0.1; ip -6 route add default via fd88::1");
        let internet = [
            "203.0.113.1/24",
            "198.51.100.7/32",
            "192.168.77.1/32",
            "169.254.169.254/32",
            "2001:db8:1::1/64",
            "2001:db8:2::7/128",
            "fd77::1/128",
        ];
        wan.connect("eth0", &["203.0.113.10/24", "2001:db8:1::10/64"], &internet);
        sh("ip route add default via 203.0.113.1; ip -6 route add default via 2001:db8:1::1");
        Self { far, wan }
    }
}

#[test]
fn an_exit_serves_its_peers_and_nobody_else() {
    Test::run(async |test: Test| {
        let net = Vps::new();
        test.reconciler("mesh0").reconcile(&vps()).await.unwrap();
        // The internet has no route back to the mesh: an answer proves the masquerading.
        assert!(net.far.reaches("-I 10.89.2.10 198.51.100.7") && net.far.reaches("-I fd89:2::10 2001:db8:2::7"));
        assert!(net.far.reaches("-I 10.88.0.2 198.51.100.7"), "the peer's own address");
        assert!(net.far.misses("-I 10.88.0.9 198.51.100.7"), "not a peer of the exit");
        for private in ["192.168.77.1", "169.254.169.254"] {
            assert!(try_sh(&format!("ping -n -c 1 -w 5 {private}")).is_ok(), "the host reaches {private}");
            assert!(net.far.misses(&format!("-I 10.89.2.10 {private}")), "an exit client reaches {private}");
        }
        assert!(net.far.misses("-I fd89:2::10 fd77::1"));

        net.wan.sh("ip route add 10.89.2.0/24 via 203.0.113.10");
        assert!(net.wan.misses("10.89.2.10"), "a neighbour on the WAN routes itself into the mesh");
    });
}

#[test]
fn a_published_port_keeps_the_clients_address_and_clamps_mss() {
    Test::run(async |test: Test| {
        let net = Vps::new();
        test.reconciler("mesh0").reconcile(&vps()).await.unwrap();
        net.far.sh("nft add table inet oracle");
        net.far.sh("nft \"add chain inet oracle syn { type filter hook input priority 0; }\"");
        net.far.sh("nft \"add rule inet oracle syn tcp flags syn tcp option maxseg size 1380 counter\"");
        let listener = "exec socat TCP-LISTEN:443,reuseaddr,fork SYSTEM:\"echo \\$SOCAT_PEERADDR\"";
        let far = net.far.0.id().to_string();
        let mut server = Command::new("nsenter").args(["-t", &far, "-n", "sh", "-c", listener]).spawn().unwrap();
        let seen = net.wan.try_sh("socat -u TCP:203.0.113.10:443,retry=50,interval=0.1 -");
        let _ = server.kill();
        let _ = server.wait();
        assert_eq!(seen.unwrap(), "203.0.113.1\n");
        assert!(!net.far.sh("nft list chain inet oracle syn").contains("packets 0 "), "the SYN's MSS was not 1380");
    });
}
