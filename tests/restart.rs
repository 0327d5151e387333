//! Agents that are killed and started again at once, as systemd does, and what traffic notices of it.

mod lab;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lab::host::Host;
use lab::netns::Namespace;
use lab::traffic::{Ping, iperf};
use lab::{Lab, NEXTCLOUD, PROXY, nat, secs, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// For how long traffic is watched, and how often a ping is sent.
const WATCHED: Duration = Duration::from_secs(8);
const PING: Duration = Duration::from_millis(50);
/// What traffic may notice of a kill.
const STALL: Duration = Duration::from_secs(3);

/// What one kill cost.
#[derive(Debug)]
struct Stalls {
    /// Pings without an answer: from home's container, and from that of the VPS.
    pings: [Duration; 2],
    /// The longest silence of a stream from home's container, and of one from that of the VPS.
    streams: [Duration; 2],
}

/// Kills the agent of `host` under traffic and starts it again after `pause`.
fn kill(lab: &Lab, host: &Host, pause: Duration) -> Stalls {
    let options = format!("-c {} -i {} -W 2", WATCHED.as_millis() / PING.as_millis(), PING.as_secs_f64());
    let ends = [(&lab.nextcloud, &lab.proxy, PROXY), (&lab.proxy, &lab.nextcloud, NEXTCLOUD)];
    let pings = ends.map(|(from, _, to)| Ping::start(from, to, &options));
    let streams = ends.map(|(from, to, address)| stream(from, to, address));
    std::thread::sleep(secs(1));
    let killed = Instant::now();
    host.signal(Signal::SIGKILL);
    std::thread::sleep(pause);
    host.up();
    println!("{} is ready after {:?}", host.name, killed.elapsed());
    let lost = |ping: Ping| PING * u32::try_from(ping.finish().lost()).expect("a small number");
    Stalls {
        pings: pings.map(lost),
        streams: streams.map(|stream| stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
    }
}

/// Sends a little all the time; the longest time in which nothing arrived comes back.
fn stream(from: &Namespace, to: &Namespace, address: &str) -> std::thread::JoinHandle<Duration> {
    let address: IpAddr = address.parse().expect("an address");
    let listener = to.within(|| TcpListener::bind((address, 0))).expect("listen");
    let target: SocketAddr = listener.local_addr().expect("an address");
    let mut sender = from.within(|| TcpStream::connect_timeout(&target, secs(5))).expect("connect");
    sender.set_nodelay(true).expect("TCP_NODELAY");
    std::thread::spawn(move || {
        let begun = Instant::now();
        while begun.elapsed() < WATCHED {
            sender.write_all(&[0; 1000]).expect("the stream broke");
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    std::thread::spawn(move || {
        let (mut receiver, _) = listener.accept().expect("accept");
        receiver.set_read_timeout(Some(secs(60))).expect("timeout");
        let (mut buffer, mut heard, mut longest) = (vec![0; 1 << 16], Instant::now(), Duration::ZERO);
        while receiver.read(&mut buffer).expect("the stream stalled") > 0 {
            longest = longest.max(heard.elapsed());
            heard = Instant::now();
        }
        longest
    })
}

/// A lab whose agents have had the time to write down that they have a session.
fn settled() -> Lab {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    for host in [&lab.vps, &lab.home] {
        wait_for("the session is written down", secs(5), || (!sessions(host).is_empty()).then_some(()));
    }
    lab
}

/// Where the agent of this host heard its peers, as it wrote down.
fn sessions(host: &Host) -> Vec<String> {
    let text = std::fs::read(host.run_file("sessions.json")).unwrap_or_default();
    let file: Value = serde_json::from_slice(&text).unwrap_or_default();
    let peers = file["peers"].as_object().into_iter().flatten();
    peers.filter_map(|(_, session)| Some(session["remote"].as_str()?.to_owned())).collect()
}

fn assert_short(what: &str, stalls: &Stalls) {
    println!("{what}: {stalls:?}");
    let longest = stalls.pings.into_iter().chain(stalls.streams).max();
    assert!(longest < Some(STALL), "{what}: {stalls:?}");
}

#[test]
fn a_killed_agent_stalls_nothing_for_three_seconds() {
    let lab = settled();
    for (pause, when) in [(Duration::ZERO, "at once"), (Duration::from_millis(200), "as systemd does")] {
        assert_short(&format!("vps, {when}"), &kill(&lab, &lab.vps, pause));
        assert_short(&format!("home, {when}"), &kill(&lab, &lab.home, pause));
    }
}

#[test]
fn nor_beside_a_bulk_stream() {
    let lab = settled();
    for host in [&lab.vps, &lab.home] {
        let options = format!("-t {} -b 200M", WATCHED.as_secs());
        let report = std::thread::scope(|scope| {
            let bulk = scope.spawn(|| iperf(&lab.proxy, &lab.nextcloud, NEXTCLOUD, &options));
            assert_short(host.name, &kill(&lab, host, Duration::ZERO));
            bulk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let bytes = report["sum_received"]["bytes"].as_u64().expect("a number");
        println!("{} MB beside it", bytes >> 20);
        assert!(bytes > 100 << 20, "200 Mbit/s for seven of eight seconds would be 175 MB: {bytes}");
    }
}

#[test]
fn a_peer_that_has_roamed_is_called_where_it_is_now() {
    let lab = settled();
    nat::rebind(&lab.isp, "198.51.100.8:41000-41100");
    wait_for("the new endpoint is written down", secs(40), || {
        lab.nextcloud.ping(PROXY);
        sessions(&lab.vps).iter().any(|remote| remote.starts_with("198.51.100.8:41")).then_some(())
    });
    // Nothing leaves home on its own: no keepalive, no packet.
    lab.home.replace("peers/vps.toml", "persistent_keepalive = 25", "");
    lab.home.meshd(&["reload"]);
    for what in ["kill -9", "systemctl stop", "meshd down"] {
        match what {
            "kill -9" => lab.vps.end(Signal::SIGKILL),
            "systemctl stop" => lab.vps.end(Signal::SIGTERM),
            _ => lab.vps.down(),
        }
        lab.vps.up();
        let begun = Instant::now();
        assert!(lab.proxy.ping(NEXTCLOUD), "{what}: the VPS knows where home is");
        println!("{what}: reached after {:?}", begun.elapsed());
        let endpoint = lab.vps.peer("home")["endpoint"].to_string();
        assert!(endpoint.contains("198.51.100.8:41"), "{what}: {endpoint}");
    }
}

#[test]
fn a_changed_endpoint_counts_more_than_what_was_remembered() {
    let lab = settled();
    lab.home.end(Signal::SIGKILL);
    lab.home.replace("peers/vps.toml", "203.0.113.10:51820", "203.0.113.99:51820");
    lab.home.up();
    assert!(!lab.nextcloud.ping(PROXY), "nobody is there, as the file has it");
    assert_eq!(lab.home.peer("vps")["endpoint"], "203.0.113.99:51820");
}

#[test]
fn a_name_that_does_not_resolve_holds_no_restart_up() {
    let lab = Lab::new();
    let hosts = lab.path("hosts");
    std::fs::write(&hosts, format!("{} vps.example.net\n", lab::VPS)).expect("hosts");
    lab.home.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
    lab.home.replace("peers/vps.toml", "203.0.113.10:51820", "vps.example.net:51820");
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    wait_for("the session is written down", secs(5), || (!sessions(&lab.home).is_empty()).then_some(()));
    std::fs::write(&hosts, "").expect("hosts");
    assert_short("home, without a name server", &kill(&lab, &lab.home, Duration::ZERO));
}

#[test]
fn a_damaged_file_is_told_and_ignored() {
    let lab = settled();
    lab.vps.end(Signal::SIGKILL);
    std::fs::write(lab.vps.run_file("sessions.json"), "{\"version\": 1, \"peers\": {\"x").expect("write");
    lab.vps.up();
    let log = lab.vps.log();
    assert!(log.contains("sessions.json: damaged"), "{log}");
    wait_for("it is written anew", secs(30), || {
        lab.nextcloud.ping(PROXY);
        (!sessions(&lab.vps).is_empty()).then_some(())
    });
    let mode = lab.vps.run(&format!("stat -c %a {}", lab.vps.run_file("sessions.json").display()));
    assert_eq!(mode.trim(), "600");
}
