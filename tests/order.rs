//! Within a flow nothing overtakes: with one worker and with two, with one flow and with several at once.

mod lab;

use std::time::Duration;

use lab::netns::Namespace;
use lab::sequence::{Arrived, flows};
use lab::traffic::iperf;
use lab::{Lab, NEXTCLOUD, PROXY};

const TIME: Duration = Duration::from_millis(1500);

/// Both agents up with so many workers, and a session between them.
fn lab(workers: usize) -> Lab {
    let lab = Lab::new();
    for host in [&lab.vps, &lab.home] {
        host.write("meshd.toml", &format!("workers = {workers}\n{}", host.read("meshd.toml")));
    }
    let all: [&Namespace; 6] = [&lab.vps, &lab.home, &lab.internet, &lab.isp, &lab.proxy, &lab.nextcloud];
    all.into_iter().for_each(one_queue);
    lab.start();
    for host in [&lab.vps, &lab.home] {
        one_queue(host);
    }
    assert!(lab.nextcloud.ping(PROXY));
    lab
}

/// Has one processor's queue take all that comes in. A cable of the lab (veth) puts a packet into the queue of the processor that its
/// sender happens to be on (`netif_rx` in net/core/dev.c), so what is sent after a thread has moved may overtake there.
fn one_queue(namespace: &Namespace) {
    let script = "for queue in /sys/class/net/*/queues/rx-*/rps_cpus; do echo 1 >$queue; done";
    namespace.run(&format!("ip netns exec {} sh -c '{script}'", namespace.name()));
}

/// What TCP of this namespace saw overtake, by any of its ways to tell; not what it lost.
fn reordered(namespace: &Namespace) -> u64 {
    let text = namespace.run("cat /proc/net/netstat");
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("TcpExt:")).collect();
    let [names, values] = lines[..] else { panic!("{text}") };
    let counters = names.split_whitespace().zip(values.split_whitespace());
    counters
        .filter(|(name, _)| ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"].contains(name))
        .map(|(_, value)| value.parse::<u64>().expect("a count"))
        .sum()
}

fn udp_stays_in_order(workers: usize, count: usize) {
    let lab = lab(workers);
    for (from, to, address) in [(&lab.nextcloud, &lab.proxy, PROXY), (&lab.proxy, &lab.nextcloud, NEXTCLOUD)] {
        let arrived = flows(from, to, address, count, 200, TIME);
        println!("{workers} workers, {} to {address}: {arrived:?}", from.name());
        for Arrived { sent, received, late } in arrived {
            assert_eq!(late, 0, "of {received} to {address}");
            assert!(received * 10 > sent * 8, "{received} of {sent} to {address} arrived, too few to tell");
        }
    }
}

fn tcp_stays_in_order(workers: usize, options: &str) {
    let lab = lab(workers);
    for direction in ["", "-R"] {
        let before = [&lab.nextcloud, &lab.proxy].map(reordered);
        let end = iperf(&lab.nextcloud, &lab.proxy, PROXY, &format!("-t 2 {options} {direction}"));
        let after = [&lab.nextcloud, &lab.proxy].map(reordered);
        let megabits = end["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e6;
        println!(
            "{workers} workers, {options} {direction}: {megabits:.0} Mbit/s, {} sent again",
            end["sum_sent"]["retransmits"]
        );
        assert!(megabits > 10.0, "too little to tell: {end}");
        assert_eq!(before, after, "overtaken {direction}: {end}");
    }
}

#[test]
fn datagrams_of_one_flow() {
    udp_stays_in_order(1, 1);
}

#[test]
fn datagrams_of_several_flows_with_two_workers() {
    udp_stays_in_order(2, 4);
}

#[test]
fn a_tcp_stream() {
    tcp_stays_in_order(1, "-P 1");
}

#[test]
fn tcp_streams_with_two_workers() {
    tcp_stays_in_order(2, "-P 4");
}

/// What waited for the handshake leaves before what came later.
#[test]
fn datagrams_before_and_after_the_handshake() {
    for _ in 0..3 {
        let lab = Lab::up();
        let arrived = flows(&lab.nextcloud, &lab.proxy, PROXY, 1, 100, Duration::from_millis(300));
        println!("{arrived:?}");
        assert_eq!(arrived[0].late, 0, "{arrived:?}");
        assert!(arrived[0].received > 1000, "{arrived:?}");
    }
}
