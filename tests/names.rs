//! Names: containers find each other across hosts, and what else they ask about leaves as they do.

mod lab;

use std::fmt::Write as _;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{A, AAAA, PTR};
use lab::capture::Capture;
use lab::dns::{ANSWER, NameServer, ask, ask_tcp, ask_within, look_up, query};
use lab::third::Third;
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, VPS, VPS6, WEB, WEB6, secs, wait_for};
use nix::sys::signal::Signal;

/// Home's gateway, and that of the VPS.
const HOME_DNS: &str = "10.89.2.1";
const VPS_DNS: &str = "10.89.1.1";
/// Part of each name that is asked for: it is on no wire in the clear but a container's.
const MARK: &[u8] = b"leakmark";

/// The lab with names on both hosts and a session between them; other names are asked of the internet.
fn named() -> Lab {
    let lab = Lab::new();
    let container = |name: &str, addresses: &str| {
        format!(
            "\n[names]\nupstream = [\"{WEB}\"]\n\n[[names.container]]\nname = \"{name}\"\naddresses = [{addresses}]"
        )
    };
    lab.home.append("meshd.toml", &container("nextcloud", "\"10.89.2.10\", \"fd89:2::10\""));
    lab.vps.append("meshd.toml", &container("proxy", "\"10.89.1.10\", \"fd89:1::10\""));
    lab.start();
    wait_for("a session", secs(10), || lab.nextcloud.ping(PROXY).then_some(()));
    wait_for("the VPS hears of home's", secs(5), || {
        (!look_up(&lab.proxy, VPS_DNS, "nextcloud.home.mesh.", A).is_empty()).then_some(())
    });
    lab
}

#[test]
fn hosts_and_containers_are_found_from_everywhere() {
    let lab = named();
    for (from, server) in [
        (&lab.proxy, VPS_DNS),
        (&lab.proxy, "fd89:1::1"),
        (&lab.nextcloud, HOME_DNS),
        (&lab.nextcloud, "fd89:2::1"),
        (&lab.home, "10.88.0.2"),
        (&lab.home, HOME_DNS),
        // A trusted host, at the other's mesh address.
        (&lab.home, "10.88.0.1"),
    ] {
        for (name, kind, expected) in [
            ("nextcloud.home.mesh.", A, NEXTCLOUD),
            ("nextcloud.home.mesh.", AAAA, NEXTCLOUD6),
            ("proxy.vps.mesh.", A, PROXY),
            ("vps.mesh.", A, "10.88.0.1"),
            ("home.mesh.", AAAA, "fd88::2"),
            ("10.2.89.10.in-addr.arpa.", PTR, "nextcloud.home.mesh."),
            ("1.0.88.10.in-addr.arpa.", PTR, "vps.mesh."),
        ] {
            assert_eq!(look_up(from, server, name, kind), [expected], "{name} {kind} of {server} from {}", from.name());
        }
        let missing = ask(from, server, "nobody.home.mesh.", A).expect("an answer");
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    }
    let answer = ask_tcp(&lab.proxy, VPS_DNS, "nextcloud.home.mesh.", A).expect("TCP");
    assert_eq!(answer.answers[0].data.to_string(), NEXTCLOUD);
}

/// A hundred on one bridge, one after the other told by a reload, are found on the other host within a second.
#[test]
fn new_containers_are_found_within_a_second() {
    let lab = named();
    let base = lab.home.read("meshd.toml");
    let mut text = base.clone();
    for number in 11..111 {
        let _ = write!(text, "\n[[names.container]]\nname = \"c{number}\"\naddresses = [\"10.89.2.{number}\"]\n");
    }
    lab.home.write("meshd.toml", &text);
    lab.home.meshd(&["reload"]);
    let begin = Instant::now();
    for number in [110, 11, 60] {
        let (name, expected) = (format!("c{number}.home.mesh."), format!("10.89.2.{number}"));
        wait_for(&name, secs(5), || (look_up(&lab.proxy, VPS_DNS, &name, A) == [expected.as_str()]).then_some(()));
    }
    let found = begin.elapsed();
    lab.home.write("meshd.toml", &base);
    lab.home.meshd(&["reload"]);
    let begin = Instant::now();
    wait_for("they are gone", secs(5), || look_up(&lab.proxy, VPS_DNS, "c60.home.mesh.", A).is_empty().then_some(()));
    println!("100 names found after {found:?}, gone after {:?}", begin.elapsed());
    assert!(found < secs(1) && begin.elapsed() < secs(1), "{found:?}");
    // An agent that begins anew, on either side, makes no difference.
    for host in [&lab.vps, &lab.home] {
        wait_for("it knows whom to call", secs(5), || host.run_file("sessions.json").exists().then_some(()));
        host.end(Signal::SIGKILL);
        host.up();
        wait_for("the name is back", secs(15), || {
            let answer = ask_within(secs(1), &lab.proxy, VPS_DNS, "nextcloud.home.mesh.", A)?;
            (!answer.answers.is_empty()).then_some(())
        });
    }
}

#[test]
fn other_names_leave_through_the_exit_or_not_at_all() {
    let lab = named();
    lab.masquerade_at_home_like_podman();
    let server = NameServer::start(&lab.internet, WEB);
    let capture = Capture::start(&lab.home, "eth0", MARK);
    assert_eq!(look_up(&lab.nextcloud, HOME_DNS, "a.leakmark.example.", A), [ANSWER]);
    assert_eq!(server.askers("a.leakmark.example."), [VPS.parse::<IpAddr>().expect("an address")]);
    // What does not fit is asked again over TCP.
    let cut = ask(&lab.nextcloud, HOME_DNS, "big.leakmark.example.", A).expect("an answer");
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = ask_tcp(&lab.nextcloud, HOME_DNS, "big.leakmark.example.", A).expect("TCP");
    assert_eq!(whole.answers.len(), 200);
    // The VPS's own bridge is direct.
    assert_eq!(look_up(&lab.proxy, VPS_DNS, "b.leakmark.example.", A), [ANSWER]);

    // Whoever takes rules and guard away, what is under way stays in.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                let name = format!("{number}.leakmark.example.");
                let _ = ask_within(Duration::from_millis(20), &lab.nextcloud, HOME_DNS, &name, A);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        for _ in 0..20 {
            lab.home.try_run(
                "ip rule del pref 89; ip rule del pref 89; ip rule del pref 88; nft delete table inet meshd_guard",
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Without the exit there is no answer.
    lab.vps.end(Signal::SIGKILL);
    let failed = ask(&lab.nextcloud, HOME_DNS, "c.leakmark.example.", A).expect("an answer");
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    // Nor without the tunnel.
    lab.home.end(Signal::SIGKILL);
    assert!(ask_within(secs(1), &lab.nextcloud, HOME_DNS, "d.leakmark.example.", A).is_none());
    let seen = capture.finish();
    assert!(seen.leaks.is_empty() && seen.marked == 0, "beside the tunnel: {seen:?}");
}

#[test]
fn names_over_ipv6_and_of_a_second_server() {
    let lab = named();
    lab.home.replace(
        "meshd.toml",
        &format!("upstream = [\"{WEB}\"]"),
        &format!("upstream = [\"192.0.2.99\", \"{WEB6}\"]"),
    );
    lab.home.meshd(&["reload"]);
    let server = NameServer::start(&lab.internet, WEB6);
    assert_eq!(look_up(&lab.nextcloud, HOME_DNS, "a.example.", A), [ANSWER]);
    assert_eq!(server.askers("a.example."), [VPS6.parse::<IpAddr>().expect("an address")]);
    let begin = Instant::now();
    assert_eq!(look_up(&lab.nextcloud, HOME_DNS, "b.example.", A), [ANSWER]);
    assert!(begin.elapsed() < secs(1), "the server that answered comes first: {:?}", begin.elapsed());
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"none\"");
    lab.home.meshd(&["reload"]);
    let refused = ask(&lab.nextcloud, HOME_DNS, "c.example.", A).expect("an answer");
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(look_up(&lab.nextcloud, HOME_DNS, "vps.mesh.", A), ["10.88.0.1"]);
}

#[test]
fn nobody_else_is_answered() {
    let lab = named();
    lab.isp.run("ip route add 10.89.2.0/24 via 192.168.1.20; ip route add 10.88.0.2 via 192.168.1.20");
    for server in [HOME_DNS, "10.88.0.2", "192.168.1.20"] {
        assert!(ask_within(secs(1), &lab.isp, server, "home.mesh.", A).is_none(), "{server} from the LAN");
        assert!(ask_tcp(&lab.isp, server, "home.mesh.", A).is_err(), "{server} from the LAN over TCP");
    }
    // A container has its own gateway, and no other host's.
    assert!(ask_within(secs(1), &lab.nextcloud, VPS_DNS, "home.mesh.", A).is_none());
    let refused = ask(&lab.home, "10.88.0.1", "www.example.", A).expect("an answer");
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused, "no open resolver for the mesh");
}

#[test]
fn a_bridge_that_comes_later_is_served() {
    let lab = named();
    let bridge = "\n[[bridge]]\nname = \"br3\"\nsubnets = [\"10.89.3.0/24\", \"fd89:3::/64\"]\negress = \"vps\"";
    lab.home.append("meshd.toml", bridge);
    lab.vps.replace("peers/home.toml", "subnets = [", "subnets = [\"10.89.3.0/24\", \"fd89:3::/64\", ");
    lab.home.meshd(&["reload"]);
    lab.vps.meshd(&["reload"]);
    for _ in 0..2 {
        let late = lab.attach_bridge(&lab.home, "late", 3);
        for server in ["10.89.3.1", "fd89:3::1"] {
            wait_for(format!("{server} answers"), secs(5), || {
                ask_within(Duration::from_millis(200), &late, server, "vps.mesh.", A).map(drop)
            });
        }
        drop(late);
        lab.home.run("ip link delete br3");
        lab.home.run("ip link delete late");
        std::process::Command::new("ip")
            .args(["netns", "delete", &lab.home.name().replace("-home", "-late")])
            .status()
            .expect("ip");
    }
    assert_eq!(lab.home.status()["warnings"].as_array().expect("warnings").len(), 1, "that br3 is missing");
}

#[test]
fn floods_loops_and_garbage_are_survived() {
    let lab = named();
    let resident = lab.home.resident();
    // A name server that asks this one what it is asked by it.
    lab.home.replace("meshd.toml", &format!("upstream = [\"{WEB}\"]"), &format!("upstream = [\"{NEXTCLOUD}\"]"));
    lab.home.meshd(&["reload"]);
    let looping = lab.nextcloud.within(|| UdpSocket::bind((NEXTCLOUD, 53))).expect("bind");
    looping.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let asked = std::thread::scope(|scope| {
        let client = scope.spawn(|| ask(&lab.nextcloud, HOME_DNS, "loop.example.", A));
        let (mut asked, mut buffer) = (0, [0; 512]);
        while !client.is_finished() {
            if let Ok((len, _)) = looping.recv_from(&mut buffer) {
                // That there is no answer is told to both who have asked, and is no query.
                asked += usize::from(buffer[2] & 0x80 == 0);
                looping.send_to(&buffer[..len], (HOME_DNS, 53)).expect("send");
            }
        }
        assert_eq!(client.join().expect("a client").expect("an answer").metadata.response_code, ResponseCode::ServFail);
        asked
    });
    assert!(asked <= 3, "one query became {asked}");

    let quiet = lab.add_container(&lab.home, "quiet", 2);
    let stop = AtomicBool::new(false);
    let (sent, answered) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&lab, &stop));
        let answered =
            (0..20).filter(|_| ask_within(Duration::from_millis(100), &quiet, HOME_DNS, "vps.mesh.", A).is_some());
        let answered = answered.count();
        stop.store(true, Ordering::Relaxed);
        (flood.join().expect("a flood"), answered)
    });
    let connect = || TcpStream::connect_timeout(&(HOME_DNS.parse::<IpAddr>().expect("an address"), 53).into(), secs(1));
    let idle: Vec<_> = (0..100).filter_map(|_| lab.nextcloud.within(connect).ok()).collect();
    let begin = Instant::now();
    assert_eq!(look_up(&quiet, HOME_DNS, "vps.mesh.", A), ["10.88.0.1"]);
    assert!(ask_tcp(&quiet, HOME_DNS, "vps.mesh.", A).is_ok(), "connections of one leave room");
    drop(idle);
    println!(
        "{sent} datagrams, meanwhile {answered} of 20 of another answered; {resident} MiB, then {} MiB; afterwards {:?}",
        lab.home.resident(),
        begin.elapsed()
    );
    assert!(lab.home.resident() < resident + 16, "{resident} MiB, then {} MiB", lab.home.resident());
    assert!(lab.nextcloud.ping(PROXY), "the tunnel goes on");
}

/// Sends datagrams from home's container to its name server until it is told to stop; how many.
fn flood(lab: &Lab, stop: &AtomicBool) -> usize {
    let socket = lab.nextcloud.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
    let sound = query("nextcloud.home.mesh.", A).to_vec().expect("a query");
    let mut sent = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let mut bytes = sound.clone();
        // Each byte in turn is wrong; one in three is about a name that nobody answers for, and one is much too long.
        let at = sent % bytes.len();
        match sent % 3 {
            0 => bytes[at] = (sent / 7) as u8,
            1 => bytes[13 + sent % 4] = b'a' + (sent % 26) as u8,
            _ => bytes.resize(12 + sent % 1400, 0xff),
        }
        let _ = socket.send_to(&bytes, (HOME_DNS, 53));
        sent += 1;
    }
    sent
}

/// Two hosts that reach each other only by way of a third: it passes on what each says.
#[test]
fn names_of_a_host_that_another_relays() {
    let third = Third::new();
    third.cut(true, true);
    let container = |name: &str, address: &str| {
        format!("\n[names]\n\n[[names.container]]\nname = \"{name}\"\naddresses = [\"{address}\"]")
    };
    let (home, lab) = (&third.rest.home, &third.lab);
    home.append("meshd.toml", &container("nextcloud", NEXTCLOUD));
    lab.append("meshd.toml", &container("runner", "10.89.3.10"));
    third.start();
    wait_for("both are reached by way of the VPS", secs(10), || {
        (third.path_of_lab() == "via vps" && third.path_of_home() == "via vps").then_some(())
    });
    let at_home = |name: &str| look_up(&third.rest.nextcloud, HOME_DNS, name, A);
    let at_lab = |name: &str| look_up(&third.runner, "10.89.3.1", name, A);
    wait_for("home knows lab's", secs(5), || (at_home("runner.lab.mesh.") == ["10.89.3.10"]).then_some(()));
    wait_for("lab knows home's", secs(5), || (at_lab("nextcloud.home.mesh.") == [NEXTCLOUD]).then_some(()));

    // What changes is passed on, also when the one between has begun anew; nothing of it is the VPS's own.
    let change = |name: &str| {
        let text = home.read("meshd.toml");
        let at = text.rfind("name = ").expect("a container");
        home.write("meshd.toml", &format!("{}name = \"{name}\"\naddresses = [\"{NEXTCLOUD}\"]\n", &text[..at]));
        home.meshd(&["reload"]);
    };
    change("cloud");
    wait_for("the new name", secs(2), || (at_lab("cloud.home.mesh.") == [NEXTCLOUD]).then_some(()));
    assert!(at_lab("nextcloud.home.mesh.").is_empty() && at_lab("cloud.vps.mesh.").is_empty());
    third.rest.vps.end(Signal::SIGKILL);
    third.rest.vps.up();
    change("again");
    wait_for("the newest name", secs(20), || (at_lab("again.home.mesh.") == [NEXTCLOUD]).then_some(()));

    // A host that is reached directly says it itself.
    third.mend();
    third.wait_for_path("direct", 70);
    change("last");
    wait_for("the last name", secs(2), || (at_lab("last.home.mesh.") == [NEXTCLOUD]).then_some(()));
}
