//! A thousand peers: all may call at once, and none costs much while it is quiet.

mod lab;

use std::thread;

use lab::strangers::{self, COUNT};
use lab::traffic::iperf;
use lab::{Lab, NEXTCLOUD, PROXY, secs};

/// Both agents up, the VPS with a thousand strangers, and a session between the two.
fn many_peers(lab: Lab) -> Lab {
    // The strangers' addresses are beyond the example's /24.
    for host in [&lab.vps, &lab.home] {
        let text = host.read("meshd.toml");
        host.write("meshd.toml", &text.replacen("/24\"", "/16\"", 1));
    }
    strangers::place(&lab);
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    lab
}

/// Of meshd as users get it: a debug build is larger.
fn resident_beside_traffic(lab: &Lab) -> u64 {
    iperf(&lab.nextcloud, &lab.proxy, PROXY, "-t 1 -P 4");
    iperf(&lab.nextcloud, &lab.proxy, PROXY, "-t 1 -P 4 -R");
    lab.vps.resident()
}

#[test]
fn a_thousand_call_at_once_beside_a_steady_flow() {
    let lab = many_peers(Lab::release());
    let key = lab.vps.public_key().parse().expect("a key");
    let initiations = strangers::initiations(&key, 12);
    let before = lab.vps.thread_time("handshakes");
    let (flooded, flow) = thread::scope(|scope| {
        let flow = scope.spawn(|| iperf(&lab.nextcloud, &lab.proxy, PROXY, "-u -b 100M -l 1200 -t 4"));
        thread::sleep(secs(1));
        (strangers::flood(&lab, &initiations, 4_000), flow.join().expect("iperf3"))
    });
    let spent = lab.vps.thread_time("handshakes") - before;
    let lost = flow["sum"]["lost_percent"].as_f64().expect("a percentage");
    let rate = flooded.answered as f64 / flooded.time.as_secs_f64();
    println!("{flooded:?}, {rate:.0} answered a second, {spent:?} of processor time; the flow lost {lost:.2}%");
    println!("{}", lab.vps.status()["drops"]);
    assert!(lost < 10.0, "{lost}% lost beside {flooded:?}");
    // A shared machine with the debug binary; see docs/performance.md for what one core does.
    assert!(rate > 1_000.0, "{flooded:?}");
    // Who was answered did so at an address of its own.
    assert!(lab.proxy.ping(NEXTCLOUD));
}

#[test]
fn memory_with_a_thousand_peers() {
    let lab = many_peers(Lab::release());
    let key = lab.vps.public_key().parse().expect("a key");
    strangers::flood(&lab, &strangers::initiations(&key, 1), 1_000);
    let resident = resident_beside_traffic(&lab);
    println!("{resident} MiB with {COUNT} peers");
    assert!(resident < 64, "{resident} MiB");
}

#[test]
fn memory_with_one_busy_peer() {
    let lab = Lab::release();
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    let resident = resident_beside_traffic(&lab);
    println!("{resident} MiB with a busy peer");
    assert!(resident < 24, "{resident} MiB");
}
