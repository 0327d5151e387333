//! Several exits: each bridge its own, one after the other, one behind the other.

mod lab;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use lab::capture::Capture;
use lab::netns::Namespace;
use lab::traffic::{MARKER, Probes, seen_by};
use lab::{Lab, VPS, VPS6, WEB, WEB6, secs, wait_for};
use nix::sys::signal::Signal;

/// The second exit to the internet.
const VPS2: &str = "198.18.102.2";
const VPS2_6: &str = "2001:db8:102::2";

/// By which addresses the web server sees a container, in both families; `None` where it does not.
fn seen(from: &Namespace) -> [Option<String>; 2] {
    [WEB, WEB6].map(|server| seen_by(from, server).ok())
}

fn both(v4: &str, v6: &str) -> [Option<String>; 2] {
    [v4, v6].map(|address| Some(address.to_owned()))
}

/// A connection from a container to the internet, over which something has passed each way.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(lab: &Lab, from: &Namespace) -> Self {
        let listener = lab.internet.within(|| TcpListener::bind((WEB, 0))).expect("listen");
        let to: SocketAddr = listener.local_addr().expect("an address");
        let client = from.within(|| TcpStream::connect_timeout(&to, secs(5))).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(secs(1))).expect("timeout");
        }
        let mut connection = Self { client, server };
        connection.pass().expect("a new connection");
        connection
    }

    /// One byte there and one back.
    fn pass(&mut self) -> std::io::Result<()> {
        let mut byte = [0];
        self.client.write_all(b"?")?;
        self.server.read_exact(&mut byte)?;
        self.server.write_all(b"!")?;
        self.client.read_exact(&mut byte)
    }

    /// The client learns that it is over, by a reset and not by waiting.
    fn ends(mut self) {
        let error = wait_for("the connection ends", secs(5), || {
            let written = self.client.write_all(b"?");
            written.and_then(|()| self.client.read_exact(&mut [0])).err().filter(|error| {
                // Nothing yet.
                ![ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind())
            })
        });
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error:?}");
    }
}

#[test]
fn two_bridges_leave_by_two_exits() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let vault = lab.add_bridge("br1", "vault", 3, "\"vps2\"");
    let vps2 = lab.add_exit("vps2", 102);
    // Before home calls it: an unanswered handshake is repeated after five seconds.
    vps2.up();
    lab.start();
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = [Probes::start(&lab.nextcloud), Probes::start(&vault)];
    for _ in 0..3 {
        assert_eq!(seen(&lab.nextcloud), both(VPS, VPS6));
        assert_eq!(seen(&vault), both(VPS2, VPS2_6));
    }
    assert!(vault.ping("10.89.2.10") && vault.ping(lab::PROXY), "the mesh and the other bridge");
    for exit in ["vps", "vps2"] {
        let allowed = lab.home.peer(exit)["allowed_ips"].to_string();
        assert!(allowed.contains("0.0.0.0/0") && allowed.contains("::/0"), "{exit}: {allowed}");
    }
    // What wg(8) does to one of the exits is nothing to the other.
    let key = vps2.public_key();
    lab.home.run(&format!("wg set mesh0 peer {key} persistent-keepalive 20"));
    assert_eq!((seen(&lab.nextcloud), seen(&vault)), (both(VPS, VPS6), both(VPS2, VPS2_6)));
    // One exit is gone: its bridge has no way out, the other has its own.
    vps2.end(Signal::SIGKILL);
    assert_eq!((seen(&lab.nextcloud), seen(&vault)), (both(VPS, VPS6), [None, None]));
    drop(probes);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "beside the tunnel: {seen:?}");
}

#[test]
fn another_exit_takes_over_and_gives_back() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let vps2 = lab.add_exit("vps2", 102);
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = [\"vps\", \"vps2\"]");
    // Before home calls it: an unanswered handshake is repeated after five seconds.
    vps2.up();
    lab.start();
    assert_eq!(seen(&lab.nextcloud), both(VPS, VPS6));
    let bridge = || lab.home.status()["bridges"][0].clone();
    wait_for("both answer", secs(10), || {
        bridge()["exits"].as_array()?.iter().all(|exit| exit["well"] == true).then_some(())
    });
    // Whether they have agents, which answer, is asked in the first seconds.
    std::thread::sleep(secs(3));
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    let connection = Connection::open(&lab, &lab.nextcloud);
    let handshake = lab.home.peer("vps2")["latest_handshake"].clone();

    lab.vps.end(Signal::SIGKILL);
    let died = Instant::now();
    let by = |address: &str| seen_by(&lab.nextcloud, WEB).ok().filter(|seen| seen == address);
    wait_for("the second takes over", secs(20), || by(VPS2));
    let took = died.elapsed();
    assert!(took < secs(13), "{took:?}");
    assert_eq!(seen(&lab.nextcloud), both(VPS2, VPS2_6));
    connection.ends();
    assert_eq!(lab.home.peer("vps2")["latest_handshake"], handshake, "its session is the one of before");
    let status = bridge();
    assert_eq!((&status["egress"], &status["guard"]), (&"vps2".into(), &"armed".into()), "{status}");
    assert!(status["egress_reason"].as_str().expect("a reason").starts_with("vps was silent for"), "{status}");
    assert!(lab.home.log().contains("egress through vps2 instead of vps"), "{}", lab.home.log());

    lab.vps.up();
    let returned = Instant::now();
    wait_for("the first has it again", secs(60), || by(VPS));
    let gave_back = returned.elapsed();
    assert_eq!(bridge()["egress"], "vps");
    assert!((secs(29)..secs(45)).contains(&gave_back), "{gave_back:?}");
    assert_eq!(seen(&lab.nextcloud), both(VPS, VPS6));
    eprintln!("taken over after {took:.1?}, given back {gave_back:.1?} after the return");
    drop(probes);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "beside the tunnel: {seen:?}");
}

/// home – vps – vps2: what home sends leaves by the last.
#[test]
fn a_chain_leaves_by_its_last_host_or_not_at_all() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let vps2 = lab.add_exit("vps2", 102);
    // vps2 knows home as what is behind vps, and carries that.
    let subnets = "\"10.89.1.0/24\", \"fd89:1::/64\"";
    vps2.replace("peers/vps.toml", subnets, &format!("{subnets}, \"10.89.2.0/24\", \"fd89:2::/64\""));
    vps2.replace("peers/vps.toml", "\"fd88::1\"", "\"fd88::1\", \"10.88.0.2\", \"fd88::2\"");
    vps2.replace("meshd.toml", "[\"home\"]", "[\"vps\"]");
    for host in [&vps2, &lab.home] {
        let other = if host.name == "home" { "vps2" } else { "home" };
        std::fs::remove_file(host.config(&format!("peers/{other}.toml"))).expect("remove");
    }
    let vps2_at_vps = format!("{}endpoint = \"{VPS2}:51820\"\n", lab.vps.read("peers/vps2.toml"));
    lab.vps.write("peers/vps2.toml", &vps2_at_vps);
    lab.vps.replace("meshd.toml", "[exit]\n", "[exit]\negress = \"vps2\"\n");
    vps2.up();
    lab.start();
    let (home, vps) = (Capture::start(&lab.home, "eth0", MARKER), Capture::start(&lab.vps, "eth0", MARKER));
    let probes = Probes::start(&lab.nextcloud);
    for _ in 0..3 {
        assert_eq!(seen(&lab.nextcloud), both(VPS2, VPS2_6));
    }
    assert!(lab.nextcloud.ping(lab::PROXY), "the middle host's own bridge");
    assert_eq!(seen(&lab.vps), both(VPS, VPS6), "the middle host itself");

    // Neither the last host nor the middle one is missed by a packet that leaves otherwise, with either layer.
    let closed = |what: &str| assert_eq!(seen(&lab.nextcloud), [None, None], "{what}");
    vps2.end(Signal::SIGKILL);
    closed("without the last host");
    let guard = lab.vps.run("nft list table inet meshd_guard");
    assert!(guard.contains("onward"), "{guard}");
    lab.vps.end(Signal::SIGKILL);
    closed("without the middle host");
    drop(probes);
    for (host, capture) in [("home", home), ("vps", vps)] {
        let seen = capture.finish();
        // The middle host's own requests are no leaks: they bear no marker, and its own address.
        let from_home = seen.leaks.keys().filter(|flow| flow.starts_with("10.8") || flow.starts_with("fd8"));
        assert_eq!((seen.marked, from_home.count()), (0, 0), "{host}: {seen:?}");
        assert!(host == "vps" || seen.leaks.is_empty(), "{host}: {seen:?}");
    }
}

#[test]
fn with_no_exit_left_nothing_leaves() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let vps2 = lab.add_exit("vps2", 102);
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = [\"vps\", \"vps2\"]");
    vps2.up();
    lab.start();
    assert_eq!(seen(&lab.nextcloud), both(VPS, VPS6));
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    lab.vps.end(Signal::SIGKILL);
    vps2.end(Signal::SIGKILL);
    assert_eq!(seen(&lab.nextcloud), [None, None]);
    // Longer than it takes to give them up.
    std::thread::sleep(secs(12));
    assert_eq!(seen(&lab.nextcloud), [None, None]);
    assert_eq!(lab.home.status()["bridges"][0]["egress"], "vps", "it stays as it was");
    lab.vps.up();
    wait_for("the first is back", secs(10), || seen_by(&lab.nextcloud, WEB).ok().filter(|seen| seen == VPS));
    drop(probes);
    let seen = capture.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "beside the tunnel: {seen:?}");
}

#[test]
fn egress_changes_by_reload_under_traffic() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    let vps2 = lab.add_exit("vps2", 102);
    // Before home calls it: an unanswered handshake is repeated after five seconds.
    vps2.up();
    lab.start();
    assert_eq!(seen(&lab.nextcloud), both(VPS, VPS6));
    let set = |from: &str, to: &str| {
        lab.home.replace("meshd.toml", &format!("egress = \"{from}\""), &format!("egress = \"{to}\""));
        lab.home.meshd(&["reload"]);
    };
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    let connection = Connection::open(&lab, &lab.nextcloud);
    set("vps", "vps2");
    assert_eq!(seen(&lab.nextcloud), both(VPS2, VPS2_6));
    connection.ends();
    let connection = Connection::open(&lab, &lab.nextcloud);
    set("vps2", "none");
    assert_eq!(seen(&lab.nextcloud), [None, None]);
    assert!(lab.nextcloud.ping(lab::PROXY), "the mesh is still there");
    drop((connection, probes));
    let closed = capture.finish();
    assert!(closed.leaks.is_empty() && closed.marked == 0, "beside the tunnel: {closed:?}");

    // Directly is what was asked for; it also shows that the oracle sees the probes.
    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    set("none", "direct");
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("directly"), lab::ISP);
    wait_for("the oracle sees them", secs(5), || (capture.seen().marked > 0).then_some(()));
    set("direct", "vps");
    drop(probes);
    drop(capture);

    let capture = Capture::start(&lab.home, "eth0", MARKER);
    let probes = Probes::start(&lab.nextcloud);
    assert_eq!(seen(&lab.nextcloud), both(VPS, VPS6));
    std::thread::sleep(secs(1));
    drop(probes);
    let closed = capture.finish();
    assert!(closed.leaks.is_empty() && closed.marked == 0, "beside the tunnel: {closed:?}");
}
