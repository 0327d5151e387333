//! Ports of the VPS that lead to containers anywhere in the mesh. Reverse-path filtering is strict everywhere in the lab.

mod lab;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use lab::capture::Capture;
use lab::netns::Namespace;
use lab::snapshot::Snapshot;
use lab::traffic::{Echo, MARKER, WebServer, seen_at};
use lab::{ISP, Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, secs, wait_for};

/// What the internet's end of the VPS's cable is called there.
const CLIENT: &str = "203.0.113.1";
/// The same over IPv6.
const CLIENT6: &str = "2001:db8:1::1";
/// Both families: the VPS's address, and the client's.
const FAMILIES: [(&str, &str); 2] = [(VPS, CLIENT), (VPS6, CLIENT6)];

fn publish(protocol: &str, port: &str, to: &str) -> String {
    format!("\n[[publish]]\nprotocol = \"{protocol}\"\nport = {port}\nto = \"{to}\"\n")
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port)
}

/// The client's address as the container sees it, by both protocols.
fn both_see(from: &Namespace, server: &str, port: u16, expected: &str, what: &str) {
    let tcp = seen_at(from, at(server, port));
    assert_eq!(tcp.unwrap_or_else(|error| panic!("{what}: tcp {server}: {error}")), expected, "{what}: tcp");
    let udp = Echo::ask(from, at(server, port));
    assert_eq!(udp.unwrap_or_else(|error| panic!("{what}: udp {server}: {error}")), expected, "{what}: udp");
}

/// Nextcloud's port 80 as port 443 of the VPS, and ranges, in both families and protocols.
fn published_nextcloud(lab: &Lab) {
    for to in [NEXTCLOUD.to_owned(), format!("[{NEXTCLOUD6}]")] {
        for protocol in ["tcp", "udp"] {
            lab.vps.append("meshd.toml", &publish(protocol, "443", &format!("{to}:80")));
            lab.vps.append("meshd.toml", &publish(protocol, "\"8000-8002\"", &format!("{to}:8000")));
            lab.vps.append("meshd.toml", &publish(protocol, "\"9000-9002\"", &format!("{to}:7000")));
        }
    }
}

/// Starts both agents; home has called.
fn start(lab: &Lab) {
    lab.start();
    wait_for("the tunnel", secs(5), || lab.nextcloud.ping(PROXY).then_some(()));
}

/// Every answer names the client. Returns when dropped.
fn servers(container: &Namespace, ports: &[u16]) -> Vec<(WebServer, Echo)> {
    ports.iter().map(|&port| (WebServer::start(container, port), Echo::start(container, port))).collect()
}

/// Home's container, whatever its egress.
fn egress(lab: &Lab, egress: &str) {
    let text = lab.home.read("meshd.toml");
    let line = text.lines().find(|line| line.starts_with("egress")).expect("an egress").to_owned();
    lab.home.replace("meshd.toml", &line, &format!("egress = \"{egress}\""));
    lab.home.meshd(&["reload"]);
}

/// Packets that expire on each hop of the way.
fn traceroute(from: &Namespace, server: &str, port: u16) {
    let server = at(server, port);
    from.within(|| {
        let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("bind");
        for hops in 1..6 {
            match server {
                SocketAddr::V4(_) => socket.set_ttl(hops).expect("ttl"),
                SocketAddr::V6(_) => nix::sys::socket::setsockopt(
                    &socket,
                    nix::sys::socket::sockopt::Ipv6Ttl,
                    &i32::try_from(hops).expect("few"),
                )
                .expect("hop limit"),
            }
            // An error may be the last packet's answer.
            let _ = socket.send_to(b"hop", server).or_else(|_| socket.send_to(b"hop", server));
        }
    });
}

#[test]
fn the_client_is_seen_and_answered_whatever_the_egress() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    published_nextcloud(&lab);
    start(&lab);
    let _servers = servers(&lab.nextcloud, &[80, 8000, 8002, 7000, 7001]);
    for name in ["vps", "none", "direct", "vps"] {
        let capture = Capture::start(&lab.home, "eth0", MARKER);
        egress(&lab, name);
        for (vps, client) in FAMILIES {
            for port in [443, 8000, 8002, 9000, 9001] {
                both_see(&lab.internet, vps, port, client, &format!("egress {name}, port {port}"));
            }
            traceroute(&lab.internet, vps, 443);
        }
        std::thread::sleep(Duration::from_millis(50));
        let seen = capture.finish();
        assert!(seen.leaks.is_empty() && seen.marked == 0, "egress {name}: beside the tunnel: {seen:?}");
        assert!(seen.tunnel_tx > 0, "egress {name}: {seen:?}");
    }
}

#[test]
fn a_dead_container_does_not_show_where_home_is() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    published_nextcloud(&lab);
    start(&lab);
    for (vps, client) in FAMILIES {
        let _servers = servers(&lab.nextcloud, &[80]);
        both_see(&lab.internet, vps, 443, client, "before");
    }
    lab.nextcloud.run("ip link set eth0 down");
    lab.home.run(
        "sysctl -qw net.ipv4.neigh.br0.retrans_time_ms=50 net.ipv6.neigh.br0.retrans_time_ms=50 && ip neigh flush dev br0",
    );
    for name in ["vps", "none", "direct"] {
        egress(&lab, name);
        let capture = Capture::start(&lab.home, "eth0", MARKER);
        for (vps, _) in FAMILIES {
            assert!(seen_at(&lab.internet, at(vps, 443)).is_err());
            assert!(Echo::ask(&lab.internet, at(vps, 443)).is_err());
        }
        wait_for("home gives the container up", secs(5), || {
            lab.home.run("ip neigh show dev br0").contains("FAILED").then_some(())
        });
        let seen = capture.finish();
        assert!(seen.leaks.is_empty(), "egress {name}: {seen:?}");
    }
}

#[test]
fn hairpin_through_the_public_address() {
    let lab = Lab::new();
    published_nextcloud(&lab);
    for to in [format!("{PROXY}:80"), format!("[{PROXY6}]:80")] {
        for protocol in ["tcp", "udp"] {
            lab.vps.append("meshd.toml", &publish(protocol, "81", &to));
        }
    }
    lab.vps.append("meshd.toml", &publish("tcp", "82", "10.88.0.2:82"));
    start(&lab);
    let _far = servers(&lab.nextcloud, &[80]);
    let _near = servers(&lab.proxy, &[80]);
    let see_near = |who: &Namespace, expected: [&str; 2], what: &str| {
        for ((vps, _), expected) in FAMILIES.into_iter().zip(expected) {
            both_see(who, vps, 81, expected, &format!("{what} to the exit's container"));
        }
    };
    let see = |who: &Namespace, v4: [&str; 2], v6: [&str; 2], what: &str| {
        for ((vps, _), expected) in FAMILIES.into_iter().zip([v4, v6]) {
            both_see(who, vps, 443, expected[0], &format!("{what} to home's container"));
        }
        see_near(who, [v4[1], v6[1]], what);
    };
    let blog = lab.add_container(&lab.vps, "blog", 1);
    let (blog4, blog6) = ("10.89.1.11", "fd89:1::11");
    let bridged = "net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables";
    if lab.vps.try_run(&format!("sysctl {bridged}")).status.success() {
        // As where Docker runs: the bridge itself translates, both ways, and the client is seen even here.
        lab.vps.run(&format!("sysctl -qw {}", bridged.replace(' ', "=1 ") + "=1"));
        see(&blog, [blog4, blog4], [blog6, blog6], "the exit's other container, bridge-nf");
        lab.vps.run(&format!("sysctl -qw {}", bridged.replace(' ', "=0 ") + "=0"));
    }
    see(&blog, [blog4, "10.89.1.1"], [blog6, "fd89:1::1"], "the exit's other container");
    see(&lab.proxy, [PROXY, "10.89.1.1"], [PROXY6, "fd89:1::1"], "the exit's container");
    see(&lab.vps, [VPS, VPS], [VPS6, VPS6], "the exit itself");
    see(&lab.nextcloud, ["10.88.0.1", NEXTCLOUD], ["fd88::1", NEXTCLOUD6], "home's container");
    // Not over IPv6, which no NAT translates: the answer is for home's own address, so home takes it.
    both_see(&lab.home, VPS, 443, ISP, "home itself to its container");
    see_near(&lab.home, [ISP, lab::HOME6], "home itself");

    // A peer's own address may be any WireGuard program's, so it is called by this host.
    let _own = servers(&lab.home, &[82]);
    assert_eq!(seen_at(&lab.internet, at(VPS, 82)).expect("a peer's own address"), "10.88.0.1");
    // What is this host's own inside the mesh stays its own.
    for own in ["10.88.0.1", "10.89.1.1", "127.0.0.1"] {
        assert!(seen_at(&lab.vps, at(own, 443)).is_err(), "{own}");
    }
    assert!(seen_at(&lab.nextcloud, at("10.88.0.1", 443)).is_err());
    // And what is published is no way past the rest.
    assert!(seen_at(&lab.internet, at(VPS, 8080)).is_err());
}

#[test]
fn a_container_of_the_publisher_answers_past_its_egress_and_begins_nothing() {
    let lab = Lab::new();
    lab.home.append("meshd.toml", "\n[exit]\npeers = [\"vps\"]");
    for to in [format!("{PROXY}:80"), format!("[{PROXY6}]:80")] {
        for protocol in ["tcp", "udp"] {
            lab.vps.append("meshd.toml", &publish(protocol, "81", &to));
        }
    }
    let bridge = "egress = \"none\"";
    lab.vps.replace("meshd.toml", "name = \"br0\"\n", &format!("name = \"br0\"\n{bridge}\n"));
    start(&lab);
    let servers = servers(&lab.proxy, &[80]);
    for name in ["none", "home"] {
        lab.vps.replace("meshd.toml", bridge, &format!("egress = \"{name}\""));
        lab.vps.meshd(&["reload"]);
        for (vps, client) in FAMILIES {
            both_see(&lab.internet, vps, 81, client, name);
        }
        for theft in ["true", "ip rule del pref 87", "ip -6 rule del pref 87"] {
            lab.vps.run(theft);
            let whole = || (lab.vps.meshd(&["plan"]) == "nothing to change\n").then_some(());
            wait_for(format!("after {theft}"), secs(1), whole);
        }
        assert_eq!(seen_at(&lab.proxy, at(WEB, 80)).ok(), (name == "home").then(|| ISP.to_owned()), "its own traffic");
        // From the published port while it is in use, to the client's other ports and to others.
        let capture = Capture::start(&lab.vps, "eth0", MARKER);
        for target in [at(CLIENT, 9), at(WEB, 9), at(CLIENT6, 9), at(VPS, 9)] {
            servers[0].1.speak(MARKER, target);
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(capture.finish().marked, 0, "{name}");
        lab.vps.replace("meshd.toml", &format!("egress = \"{name}\""), bridge);
    }
}

#[test]
fn answers_to_the_mesh_never_leave_in_the_clear() {
    let lab = Lab::new();
    for to in [format!("{PROXY}:80"), format!("[{PROXY6}]:80")] {
        lab.vps.append("meshd.toml", &publish("udp", "81", &to));
    }
    lab.vps.replace("meshd.toml", "name = \"br0\"\n", "name = \"br0\"\negress = \"none\"\n");
    start(&lab);
    let server = Echo::start(&lab.proxy, 80);
    let mut flows = Vec::new();
    for (vps, any, nextcloud) in [(VPS, "0.0.0.0:0", NEXTCLOUD), (VPS6, "[::]:0", NEXTCLOUD6)] {
        let socket = lab.nextcloud.within(|| UdpSocket::bind(any)).expect("bind");
        socket.set_read_timeout(Some(secs(2))).expect("timeout");
        socket.send_to(b"who am I", at(vps, 81)).expect("send");
        let mut buffer = [0; 64];
        let (len, from) = socket.recv_from(&mut buffer).expect("an answer");
        assert_eq!((&buffer[..len], from), (nextcloud.as_bytes(), at(vps, 81)));
        flows.push((socket.local_addr().expect("bound").port(), nextcloud, socket));
    }
    let capture = Capture::start(&lab.vps, "eth0", MARKER);
    // The tunnel and its routes go; conntrack still knows the flows, and main has a default.
    lab.vps.end(nix::sys::signal::Signal::SIGKILL);
    for (port, nextcloud, _) in &flows {
        (0..5).for_each(|_| server.speak(MARKER, at(nextcloud, *port)));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(capture.seen().marked, 0, "with both locks");
    lab.vps.run("nft delete table inet meshd_guard");
    for (port, nextcloud, _) in &flows {
        (0..5).for_each(|_| server.speak(MARKER, at(nextcloud, *port)));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(capture.finish().marked, 0, "by the routes alone");
}

#[test]
fn two_publishers_of_one_container() {
    let lab = Lab::new();
    let vps2 = lab.add_host("vps2", 102);
    let home_key = lab.home.public_key();
    vps2.write(
        "peers/home.toml",
        &format!("public_key = \"{home_key}\"\naddresses = [\"10.88.0.2\"]\nsubnets = [\"10.89.2.0/24\"]\n"),
    );
    lab.home.write(
        "peers/vps2.toml",
        &format!(
            "public_key = \"{}\"\nendpoint = \"198.18.102.2:51820\"\naddresses = [\"10.88.0.102\"]\npersistent_keepalive = 5\n",
            vps2.public_key()
        ),
    );
    for (host, port) in [(&lab.vps, 443), (&vps2, 443)] {
        for protocol in ["tcp", "udp"] {
            host.append("meshd.toml", &publish(protocol, &port.to_string(), &format!("{NEXTCLOUD}:80")));
        }
    }
    start(&lab);
    vps2.up();
    let _servers = servers(&lab.nextcloud, &[80]);
    wait_for("home calls vps2", secs(5), || (vps2.peer("home")["state"] == "up").then_some(()));
    for name in ["vps", "none", "vps2", "direct"] {
        egress(&lab, name);
        let capture = Capture::start(&lab.home, "eth0", MARKER);
        both_see(&lab.internet, VPS, 443, CLIENT, &format!("egress {name}, by vps"));
        both_see(&lab.internet, "198.18.102.2", 443, "198.18.102.1", &format!("egress {name}, by vps2"));
        let seen = capture.finish();
        assert!(seen.leaks.is_empty(), "egress {name}: {seen:?}");
    }
}

/// A connection that says a line and hears it again.
struct Talk(TcpStream);

impl Talk {
    fn start(from: &Namespace, to: &Namespace, port: u16, published: SocketAddr) -> Self {
        let listener = to.within(|| TcpListener::bind(("::", port))).expect("listen");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut buffer = [0; 5];
            while stream.read_exact(&mut buffer).and_then(|()| stream.write_all(&buffer)).is_ok() {}
        });
        let stream = from.within(|| TcpStream::connect_timeout(&published, secs(2))).expect("connect");
        stream.set_read_timeout(Some(secs(3))).expect("timeout");
        Self(stream)
    }

    fn goes_on(&mut self, what: &str) {
        let mut buffer = [0; 5];
        let said = self.0.write_all(b"still").and_then(|()| self.0.read_exact(&mut buffer));
        said.unwrap_or_else(|error: io::Error| panic!("{what}: {error}"));
    }
}

#[test]
fn ports_come_and_go_by_command_under_traffic() {
    let lab = Lab::new();
    start(&lab);
    assert_eq!(lab.vps.meshd(&["publish", "list"]), "no published ports; `meshd publish add --help` shows how\n");
    let said = lab.vps.meshd(&["publish", "add", "tcp/443", "10.89.2.10:4430"]);
    assert_eq!(said, "published tcp/443: leads to 10.89.2.10:4430 on home\nthe running agent has it\n");
    let mut talk = Talk::start(&lab.internet, &lab.nextcloud, 4430, at(VPS, 443));
    talk.goes_on("at first");

    let _servers = servers(&lab.nextcloud, &[80]);
    assert!(seen_at(&lab.internet, at(VPS, 80)).is_err());
    for line in ["tcp/80 10.89.2.10", "udp/80 10.89.2.10", "tcp/80 fd89:2::10", "udp/80 fd89:2::10"] {
        lab.vps.meshd(&[&["publish", "add"], &line.split(' ').collect::<Vec<_>>()[..]].concat());
        talk.goes_on(line);
    }
    assert_eq!(lab.vps.meshd(&["publish", "add", "tcp/80", "10.89.2.10"]), "tcp/80 leads to 10.89.2.10:80 already\n");
    for (vps, client) in FAMILIES {
        both_see(&lab.internet, vps, 80, client, "after publish add");
    }
    let list: serde_json::Value = serde_json::from_str(&lab.vps.meshd(&["publish", "list", "--json"])).expect("JSON");
    let expected = serde_json::json!(
        {"protocol": "tcp", "port": 443, "last_port": 443, "to": "10.89.2.10:4430", "host": "home"});
    assert_eq!((list.as_array().expect("a list").len(), &list[0]), (5, &expected));

    lab.vps.meshd(&["publish", "remove", "tcp/80"]);
    lab.vps.meshd(&["publish", "remove", "udp/80"]);
    talk.goes_on("after publish remove");
    for (vps, _) in FAMILIES {
        assert!(seen_at(&lab.internet, at(vps, 80)).is_err());
        assert!(Echo::ask(&lab.internet, at(vps, 80)).is_err());
    }
    lab.vps.meshd(&["publish", "remove", "tcp/443"]);
    let after = lab.vps.read("meshd.toml");
    assert_eq!(
        after.trim_end(),
        std::fs::read_to_string(lab::root().join("peers/vps/meshd.toml")).expect("the example").trim_end()
    );
}

#[test]
fn a_taken_port_is_refused_by_name_and_warned_of() {
    let lab = Lab::up();
    let socat = |port: u16| {
        let listen = format!("TCP-LISTEN:{port},fork,reuseaddr");
        let child = lab.vps.command("socat").args([&listen, "OPEN:/dev/null"]).stdout(Stdio::null()).spawn();
        let child = child.expect("socat");
        wait_for("socat listens", secs(5), || {
            lab.vps.run(&format!("ss -ltnH sport = :{port}")).contains(&format!(":{port}")).then_some(child.id())
        });
        child
    };
    let mut child = socat(443);
    let before = lab.vps.read("meshd.toml");
    let refused = lab.vps.meshd_fails(4, &["publish", "add", "tcp/440-450", "10.89.2.10"]);
    let pid = child.id();
    let expected =
        format!("publish tcp/440-450: socat (pid {pid}) listens on 0.0.0.0:443, and would no longer be reached");
    assert!(refused.contains(&expected), "{refused}");
    assert_eq!(lab.vps.read("meshd.toml"), before);
    child.kill().and_then(|()| child.wait()).expect("kill");

    lab.vps.meshd(&["publish", "add", "tcp/440-450", "10.89.2.10"]);
    let mut child = socat(444);
    let expected = format!("socat (pid {}) listens on 0.0.0.0:444", child.id());
    let warned = lab.vps.meshd(&["reload"]);
    assert_eq!(warned, "nothing changed\n");
    let warnings = lab.vps.status()["warnings"].to_string();
    assert!(warnings.contains(&expected), "{warnings}");
    child.kill().and_then(|()| child.wait()).expect("kill");
}

#[test]
fn down_leaves_nothing() {
    let lab = Lab::new();
    published_nextcloud(&lab);
    for to in [format!("{PROXY}:80"), format!("[{PROXY6}]:80")] {
        lab.vps.append("meshd.toml", &publish("tcp", "81", &to));
    }
    lab.vps.replace("meshd.toml", "name = \"br0\"\n", "name = \"br0\"\negress = \"none\"\n");
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"none\"");
    let hosts = [&lab.vps, &lab.home];
    let before = hosts.map(|host| Snapshot::of(host));
    for end in [None, Some(nix::sys::signal::Signal::SIGKILL)] {
        start(&lab);
        let _servers = servers(&lab.nextcloud, &[80]);
        both_see(&lab.internet, VPS, 443, CLIENT, "up");
        for (host, before) in hosts.iter().zip(&before) {
            if let Some(signal) = end {
                host.end(signal);
            }
            host.down();
            before.assert_same(&Snapshot::of(host), host.name);
        }
    }
}
