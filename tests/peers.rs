//! A thousand peers: all may call at once, and none costs much while it is quiet.

mod lab;

use std::thread;
use std::time::Duration;

use lab::strangers::{self, COUNT, Flooded, Initiation};
use lab::traffic::iperf;
use lab::{Lab, NEXTCLOUD, PROXY, secs};

/// After the last of too many (`LOAD_LASTS` of src/tunnel/handshake.rs, and its queue).
const LOAD_LASTS: Duration = Duration::from_millis(1500);

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

/// Initiations to the VPS, `rounds` of each stranger.
fn initiations(lab: &Lab, rounds: usize) -> Vec<Initiation> {
    strangers::initiations(&lab.vps.public_key().parse().expect("a key"), rounds)
}

/// Of meshd as users get it: a debug build is larger.
fn resident_beside_traffic(lab: &Lab) -> u64 {
    iperf(&lab.nextcloud, &lab.proxy, PROXY, "-t 1 -P 4");
    iperf(&lab.nextcloud, &lab.proxy, PROXY, "-t 1 -P 4 -R");
    lab.vps.resident()
}

/// Floods the VPS with initiations beside a flow of 100 Mbit/s that must keep its rate.
fn flood_beside_a_flow(lab: &Lab, initiations: &[Initiation], per_second: u64) -> Flooded {
    let before = lab.vps.thread_time("handshakes");
    let (flooded, flow) = thread::scope(|scope| {
        let flow = scope.spawn(|| iperf(&lab.nextcloud, &lab.proxy, PROXY, "-u -b 100M -l 1200 -t 5"));
        thread::sleep(secs(1));
        (strangers::flood(lab, initiations, per_second), flow.join().expect("iperf3"))
    });
    let spent = lab.vps.thread_time("handshakes").saturating_sub(before);
    let lost = flow["sum"]["lost_percent"].as_f64().expect("a percentage");
    println!("{flooded:?}, {spent:?} of processor time; the flow lost {lost:.2}%");
    assert!(lost < 10.0, "{lost}% lost beside {flooded:?}");
    assert!(lab.proxy.ping(NEXTCLOUD));
    flooded
}

#[test]
fn a_thousand_that_call_within_a_second_are_all_answered() {
    let lab = many_peers(Lab::release());
    let initiations = initiations(&lab, 1);
    let Flooded { sent, answered, .. } = flood_beside_a_flow(&lab, &initiations, 1_000);
    assert!(answered * 10 >= sent * 9, "{answered} of {sent}");
}

/// More than this machine may have the time for: who is not answered gets a cookie, and nobody silence. How many get which
/// depends on the machine; once it is over, nobody needs a cookie any more.
#[test]
fn four_thousand_initiations_a_second_are_answered_or_asked_for_a_cookie() {
    let lab = many_peers(Lab::release());
    let initiations = initiations(&lab, 13);
    let (many, later) = initiations.split_at(12 * usize::from(COUNT));
    let Flooded { sent, answered, cookies, .. } = flood_beside_a_flow(&lab, many, 4_000);
    assert!((answered + cookies) * 10 >= sent * 9, "{answered} answered and {cookies} asked, of {sent}");
    thread::sleep(LOAD_LASTS);
    let Flooded { sent, answered, .. } = strangers::flood(&lab, later, 500);
    assert!(answered * 10 >= sent * 9, "{answered} of {sent} afterwards");
}

#[test]
fn memory_with_a_thousand_peers() {
    let lab = many_peers(Lab::release());
    strangers::flood(&lab, &initiations(&lab, 1), 1_000);
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
