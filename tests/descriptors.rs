//! Restarts under a service manager that keeps descriptors: the interface and the port survive, and so does every connection.

mod lab;

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use lab::manager::Manager;
use lab::snapshot::Snapshot;
use lab::steady::Steady;
use lab::{Lab, NEXTCLOUD, PORT, PROXY, secs, wait_for};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};

const RESTARTS: u32 = 20;
/// Blocks a second of each stream.
const RATE: u32 = 200;

/// The number of an interface, which another one of that name does not have.
fn index(host: &lab::host::Host) -> String {
    host.run("cat /sys/class/net/mesh0/ifindex 2>/dev/null || ip -o link show mesh0 | cut -d: -f1").trim().to_owned()
}

fn port_of(host: &lab::host::Host) -> u64 {
    host.status()["listen_port"].as_u64().expect("a number")
}

#[test]
fn twenty_restarts_lose_no_connection_and_leave_nothing() {
    let lab = Lab::new();
    let before = [&lab.vps, &lab.home].map(|host| Snapshot::of(host));
    let mut managers = [Manager::of(&lab.vps), Manager::of(&lab.home)];
    managers.iter_mut().for_each(Manager::start);
    assert!(lab.nextcloud.ping(PROXY));
    let indices = [index(&lab.vps), index(&lab.home)];
    let streams = [
        Steady::tcp(&lab.nextcloud, &lab.proxy, PROXY, Some(RATE)),
        Steady::tcp(&lab.proxy, &lab.nextcloud, NEXTCLOUD, Some(RATE)),
        // Of the host itself, by an address of the interface.
        Steady::tcp(&lab.home, &lab.vps, "10.88.0.1", Some(RATE)),
        Steady::tcp(&lab.vps, &lab.home, "10.88.0.2", Some(RATE)),
    ];
    for round in 0..RESTARTS {
        let signal = if round % 4 < 2 { Signal::SIGTERM } else { Signal::SIGKILL };
        managers[round as usize % 2].restart(signal);
        std::thread::sleep(Duration::from_millis(700));
        assert!(streams.iter().all(Steady::runs), "round {round}");
    }
    assert_eq!([index(&lab.vps), index(&lab.home)], indices);
    let mut longest = Duration::ZERO;
    for stream in streams {
        let passed = stream.finish();
        println!("{}: {} blocks", passed.name, passed.received);
        assert_eq!(passed.received, passed.sent, "{}", passed.name);
        longest = passed.silences.iter().map(|silence| silence.length).fold(longest, Duration::max);
    }
    println!("{RESTARTS} restarts: the longest silence of a stream was {longest:?}, of those worth a word");
    assert!(longest < secs(3), "{longest:?}");

    for (manager, (host, before)) in managers.iter_mut().zip([&lab.vps, &lab.home].into_iter().zip(&before)) {
        manager.catch_up();
        assert_eq!(manager.names(), ["udp", "tun"], "one of each after all restarts");
        host.down();
        // Whoever still holds its descriptor: that of the manager is closed by and by.
        before.assert_same(&Snapshot::of(host), "down");
        assert!(manager.stopped().success());
        assert!(host.agent().is_none());
    }
}

#[test]
fn a_stopped_agent_takes_the_interface_along() {
    let lab = Lab::new();
    lab.vps.up();
    let mut manager = Manager::of(&lab.home);
    manager.start();
    assert!(lab.nextcloud.ping(PROXY));
    manager.end(Signal::SIGTERM);
    assert!(!index(&lab.home).is_empty(), "kept for the next");
    manager.kept.clear();
    assert!(lab.home.try_run("ip link show mesh0").stderr.starts_with(b"Device"), "gone with the last descriptor");
    assert!(!lab.nextcloud.ping(lab::WEB), "and its containers have no way out");
    manager.start();
    assert!(lab.nextcloud.ping(PROXY));
}

#[test]
fn what_is_not_what_it_claims_is_made_anew() {
    let lab = Lab::new();
    lab.vps.up();
    let mut manager = Manager::of(&lab.home);
    manager.start();
    let first = index(&lab.home);
    let socket = |port: u16| OwnedFd::from(lab.home.within(|| UdpSocket::bind(("::", port))).expect("bind"));
    let elsewhere = OwnedFd::from(lab.proxy.within(|| UdpSocket::bind(("::", PORT))).expect("bind"));
    let stream = OwnedFd::from(lab.home.within(|| TcpListener::bind("[::]:0")).expect("bind"));
    let v4 = OwnedFd::from(lab.home.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind"));
    let file = || OwnedFd::from(std::fs::File::open("/dev/null").expect("open"));
    for (name, fd, why) in [
        ("udp", socket(0), "not to port 51820"),
        ("udp", elsewhere, "another network namespace"),
        ("udp", stream, "no UDP socket"),
        ("udp", v4, "no UDP socket for both families"),
        ("udp", file(), "no UDP socket"),
        ("tun", file(), "Inappropriate ioctl"),
        ("rtp", file(), "not meshd's"),
    ] {
        manager.end(Signal::SIGTERM);
        if name != "rtp" {
            manager.kept.retain(|(other, _)| other != name);
        }
        manager.kept.push((name.to_owned(), fd));
        manager.start();
        manager.catch_up();
        assert!(lab.home.log().contains(why), "{why}\n{}", lab.home.log());
        assert_eq!(manager.kept.len(), 2, "{why}: {:?}", manager.names());
        assert!(lab.nextcloud.ping(PROXY), "{why}");
        assert_eq!(port_of(&lab.home), u64::from(PORT), "{why}");
    }
    assert_ne!(index(&lab.home), first, "the interface was made anew once");

    // A second descriptor of each, as if the agent had had two workers.
    for (name, why) in [("udp", "2 sockets, where 1 are wanted"), ("tun", "2 queues, where 1 are wanted")] {
        manager.end(Signal::SIGTERM);
        let again = manager.kept.iter().find(|(other, _)| other == name).expect("kept").1.try_clone().expect("dup");
        manager.kept.push((name.to_owned(), again));
        manager.start();
        manager.catch_up();
        assert!(lab.home.log().contains(why) && lab.nextcloud.ping(PROXY), "{name}");
        assert_eq!(manager.kept.len(), 2);
    }
}

#[test]
fn a_changed_configuration_gets_what_it_wants() {
    let lab = Lab::new();
    lab.vps.up();
    let mut manager = Manager::of(&lab.home);
    manager.start();
    lab.home.replace("meshd.toml", "name = \"home\"", "name = \"home\"\nworkers = 2");
    manager.restart(Signal::SIGTERM);
    assert!(lab.nextcloud.ping(PROXY));
    manager.catch_up();
    assert_eq!(manager.names(), ["udp", "udp", "tun", "tun"]);
    let two = index(&lab.home);
    manager.restart(Signal::SIGKILL);
    assert!(lab.nextcloud.ping(PROXY));
    assert_eq!(index(&lab.home), two);

    // Another port, by a reload and for the process after it.
    lab.home.replace("meshd.toml", "workers = 2", "workers = 2\nlisten_port = 51999");
    lab.home.meshd(&["reload"]);
    manager.catch_up();
    assert_eq!(manager.names(), ["tun", "tun", "udp", "udp"]);
    manager.restart(Signal::SIGTERM);
    assert_eq!((port_of(&lab.home), index(&lab.home)), (51999, two.clone()));
    assert!(lab.nextcloud.ping(PROXY));

    // While no agent runs.
    manager.end(Signal::SIGTERM);
    lab.home.replace("meshd.toml", "listen_port = 51999", "listen_port = 51998");
    manager.start();
    assert_eq!((port_of(&lab.home), index(&lab.home)), (51998, two));
    assert!(lab.nextcloud.ping(PROXY));
}

#[test]
fn an_interface_that_somebody_deletes_is_made_anew_and_kept() {
    let lab = Lab::new();
    lab.vps.up();
    let mut manager = Manager::of(&lab.home);
    manager.start();
    let first = index(&lab.home);
    lab.home.run("ip link del mesh0");
    wait_for("the interface is back", secs(15), || {
        lab.home.try_run("ip link show mesh0").status.success().then_some(())
    });
    wait_for("packets pass", secs(10), || lab.nextcloud.ping(PROXY).then_some(()));
    manager.catch_up();
    assert_eq!(manager.names(), ["udp", "tun"]);
    let second = index(&lab.home);
    assert_ne!(first, second);
    manager.restart(Signal::SIGKILL);
    assert!(lab.nextcloud.ping(PROXY));
    assert_eq!(index(&lab.home), second);
}

#[test]
fn the_watchdog_hears_of_an_agent_whose_workers_turn_and_of_no_other() {
    let lab = Lab::new();
    let mut manager = Manager::of(&lab.home);
    manager.watchdog = Some(secs(2));
    manager.start();
    let pings = |manager: &mut Manager, during: Duration| {
        manager.catch_up();
        let until = Instant::now() + during;
        let mut pings = 0;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            pings += u32::from(manager.receive(left).is_some_and(|message| message.contains("WATCHDOG=1")));
        }
        pings
    };
    std::thread::sleep(secs(1));
    let heard = pings(&mut manager, secs(3));
    assert!((4..=7).contains(&heard), "{heard} pings in 3 s, one due every 0.5 s");
    let worker = lab.home.thread("worker-0");
    ptrace::seize(worker, ptrace::Options::empty()).expect("PTRACE_SEIZE");
    ptrace::interrupt(worker).expect("PTRACE_INTERRUPT");
    waitpid(worker, Some(WaitPidFlag::__WALL)).expect("waitpid");
    std::thread::sleep(secs(1));
    assert_eq!(pings(&mut manager, secs(2)), 0, "a worker hangs");
    ptrace::detach(worker, None).expect("PTRACE_DETACH");
    std::thread::sleep(secs(1));
    assert!(pings(&mut manager, secs(2)) > 1, "it turns again");
}
