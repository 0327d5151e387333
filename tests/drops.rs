//! What goes nowhere is counted by cause and shown.

mod lab;

use std::net::UdpSocket;

use lab::host::Host;
use lab::netns::Namespace;
use lab::{Lab, NEXTCLOUD, PORT, PROXY, VPS, secs, wait_for};
use nix::sys::signal::Signal;

fn dropped(host: &Host, cause: &str) -> u64 {
    host.status()["drops"][cause].as_u64().unwrap_or_else(|| panic!("no {cause} in the status"))
}

/// Sends that many datagrams of 1200 bytes as fast as they go.
fn flood(from: &Namespace, to: &str, count: usize) {
    let socket = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
    for _ in 0..count {
        // What the sender's own kernel refuses is not the point.
        let _ = socket.send_to(&[7; 1200], (to, 9));
    }
}

#[test]
fn what_cannot_be_sent_is_counted_by_cause() {
    let lab = Lab::new();
    lab.vps.up();
    assert!(!lab.vps.ping("10.88.0.77"), "nobody's address");
    assert!(dropped(&lab.vps, "unroutable") > 0);
    assert!(!lab.vps.ping("10.88.0.2"), "home is behind a NAT and has not called yet");
    assert!(dropped(&lab.vps, "unreachable") > 0);
    lab.home.up();
    assert!(lab.nextcloud.ping(PROXY));
    assert_eq!(dropped(&lab.home, "unsent"), 0);
    lab.home
        .run("nft 'table inet wall { chain out { type filter hook output priority filter; udp sport 51820 drop; }; }'");
    assert!(!lab.nextcloud.ping(PROXY));
    assert!(dropped(&lab.home, "unsent") > 0);

    let page = lab.home.meshd(&["status"]);
    assert!(page.contains("refused by the UDP socket"), "{page}");
    let socket = lab.home.run_file("control.sock");
    let metrics = lab.home.run(&format!("curl -s --unix-socket {} http://localhost/metrics", socket.display()));
    let line = metrics.lines().find(|line| line.starts_with("meshd_dropped_packets_total{cause=\"unsent\"}"));
    assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
}

#[test]
fn what_may_not_come_in_is_counted_by_cause() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let socket = lab.internet.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
    socket.send_to(b"no WireGuard message", (VPS, PORT)).expect("send");
    wait_for("the VPS refuses it", secs(2), || (dropped(&lab.vps, "refused") == 1).then_some(()));

    lab.internet.run(
        "nft 'table inet way { chain forward { type filter hook forward priority filter; \
         udp dport 51820 ip ecn set ce; }; }'",
    );
    assert!(!lab.nextcloud.ping(PROXY), "ping cannot be told of congestion but by losing it");
    assert!(dropped(&lab.vps, "congested") > 0);
}

#[test]
fn what_the_kernel_drops_under_overload_is_counted() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    for cause in ["socket_overflow", "interface_overflow"] {
        assert_eq!((dropped(&lab.vps, cause), dropped(&lab.home, cause)), (0, 0));
    }
    lab.home.signal(Signal::SIGSTOP);
    flood(&lab.nextcloud, PROXY, 3_000);
    lab.home.signal(Signal::SIGCONT);
    assert!(dropped(&lab.home, "interface_overflow") > 0);

    lab.home.signal(Signal::SIGSTOP);
    for _ in 0..100 {
        flood(&lab.proxy, NEXTCLOUD, 100);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    lab.home.signal(Signal::SIGCONT);
    assert!(dropped(&lab.home, "socket_overflow") > 0);
}
