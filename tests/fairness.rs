//! What is busy with one peer still serves the others: their streams, their single packets, their handshakes.

mod lab;

use std::thread;
use std::time::{Duration, Instant};

use lab::host::Host;
use lab::netns::Namespace;
use lab::traffic::{Ping, iperf};
use lab::{Lab, NEXTCLOUD, PROXY, secs};

const EAST: &str = "10.88.0.101";
const WEST: &str = "10.88.0.102";
const HUB: &str = "10.88.0.1";

/// The VPS with home and two equal hosts as peers, and a session with each.
fn three_peers() -> (Lab, Host, Host) {
    let lab = Lab::new();
    let (east, west) = (lab.add_host("east", 101), lab.add_host("west", 102));
    lab.start();
    for host in [&east, &west] {
        host.up();
        assert!(host.ping(HUB), "{} does not reach the VPS", host.name);
    }
    assert!(lab.home.ping(HUB));
    (lab, east, west)
}

fn megabits(from: &Namespace, to: &Namespace, address: &str, options: &str) -> f64 {
    iperf(from, to, address, options)["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e6
}

/// The smaller rate over the larger of two TCP streams at once, the median of three; a slow flow to a third peer beside
/// them loses nothing.
fn equal_streams(direction: &str) {
    let (lab, east, west) = three_peers();
    let options = format!("-t 2 {direction}");
    let mut ratios = [(); 3].map(|()| {
        let ping = Ping::start(&lab.vps, "10.88.0.2", "-c 100 -i 0.02 -W 2");
        let (east, west) = thread::scope(|scope| {
            let stream = |host, address| {
                let (vps, options) = (&lab.vps, &options);
                scope.spawn(move || megabits(vps, host, address, options))
            };
            let (east, west) = (stream(&east, EAST), stream(&west, WEST));
            (east.join().expect("iperf3"), west.join().expect("iperf3"))
        });
        let pinged = ping.finish();
        println!("{east:.0} and {west:.0} Mbit/s {direction}, {pinged:?}");
        assert_eq!(pinged.lost(), 0, "beside {east} and {west} Mbit/s {direction}: {pinged:?}");
        east.min(west) / east.max(west)
    });
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[1] > 1.0 / 3.0, "{ratios:?}");
}

#[test]
fn streams_to_two_peers_share() {
    equal_streams("");
}

#[test]
fn streams_from_two_peers_share() {
    equal_streams("-R");
}

/// A host that comes up while the VPS and home are busy with each other has a session within two seconds.
fn handshakes_beside(direction: &str) {
    let lab = Lab::new();
    let east = lab.add_host("east", 101);
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    thread::scope(|scope| {
        let load = scope.spawn(|| megabits(&lab.nextcloud, &lab.proxy, PROXY, &format!("-P 4 -t 8 {direction}")));
        // Until the streams have their full rate.
        thread::sleep(secs(1));
        let mut slowest = Duration::ZERO;
        for _ in 0..5 {
            east.up();
            let start = Instant::now();
            let answered = east.ping(HUB);
            let took = start.elapsed();
            assert!(answered && took < secs(2), "no session after {took:?}: {}", east.log());
            slowest = slowest.max(took);
            east.down();
            if load.is_finished() {
                break;
            }
        }
        let megabits = load.join().expect("iperf3");
        println!("first answer after {slowest:?} at the most, beside {megabits:.0} Mbit/s {direction}");
        assert!(megabits > 10.0, "{megabits} Mbit/s is no load");
    });
    assert!(lab.proxy.ping(NEXTCLOUD));
}

#[test]
fn handshakes_complete_while_the_vps_receives_at_full_rate() {
    handshakes_beside("");
}

#[test]
fn handshakes_complete_while_the_vps_sends_at_full_rate() {
    handshakes_beside("-R");
}
