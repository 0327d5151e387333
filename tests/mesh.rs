//! Bridge to bridge through the tunnel.

mod lab;

use lab::traffic::{iperf, transfer};
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, nat};

#[test]
fn containers_reach_each_other_at_once() {
    let lab = Lab::up();
    // The first packet waits for the handshake and is not lost. Home speaks first: the VPS cannot find it behind its NAT.
    assert!(lab.nextcloud.ping(PROXY));
    assert!(lab.nextcloud.ping(PROXY6));
    assert!(lab.proxy.ping(NEXTCLOUD));
    assert!(lab.proxy.ping(NEXTCLOUD6));
}

#[test]
fn hosts_reach_each_other_and_the_remote_bridge() {
    let lab = Lab::up();
    for to in ["10.88.0.1", "fd88::1", PROXY, PROXY6, "10.89.1.1", "fd89:1::1"] {
        assert!(lab.home.ping(to), "home does not reach {to}");
    }
    for to in ["10.88.0.2", "fd88::2", NEXTCLOUD, NEXTCLOUD6, "10.89.2.1", "fd89:2::1"] {
        assert!(lab.vps.ping(to), "the VPS does not reach {to}");
    }
}

#[test]
fn big_pings_arrive_whole() {
    let lab = Lab::up();
    for (from, to) in [(&lab.nextcloud, [PROXY, PROXY6]), (&lab.proxy, [NEXTCLOUD, NEXTCLOUD6])] {
        for to in to {
            // Over IPv6 the first may be what path MTU discovery learns from.
            from.ping_with(to, "-c 1 -W 1 -s 4000");
            let pinged = from.ping_with(to, "-c 10 -i 0.02 -W 2 -s 4000");
            assert_eq!(pinged.lost(), 0, "{} to {to}: {pinged:?}", from.name());
        }
    }
}

#[test]
fn tcp_arrives_unchanged_under_the_containers_own_address() {
    let lab = Lab::up();
    for (client, server) in [(NEXTCLOUD, PROXY), (NEXTCLOUD6, PROXY6)] {
        let seen = transfer(&lab.nextcloud, &lab.proxy, server, 20);
        assert_eq!(seen.to_string(), client, "the way to the VPS must not be NATed");
        let seen = transfer(&lab.proxy, &lab.nextcloud, client, 20);
        assert_eq!(seen.to_string(), server, "the way home must not be NATed");
    }
}

/// 1300 bytes in IPv4 and UDP, padded and sealed.
const SEALED: u64 = 1328 + 32;

#[test]
fn udp_at_100_mbit_survives_one_percent_loss() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    for direction in ["", "-R"] {
        // A receiver that has no turn for 20 ms on a busy machine loses what its socket does not hold, with or without a
        // tunnel: one of three runs is to be good.
        let runs: Vec<_> =
            std::iter::repeat_with(|| lossy_run(&lab, direction)).take(3).take_while(Result::is_err).collect();
        assert!(runs.len() < 3, "{runs:?}");
    }
    assert!(lab.proxy.ping(NEXTCLOUD));
}

/// 100 Mbit/s of UDP for 3 s while the internet loses one datagram of a hundred. An error says what else was lost.
fn lossy_run(lab: &Lab, direction: &str) -> Result<(), String> {
    nat::lose(&lab.internet, 1);
    let end = iperf(&lab.nextcloud, &lab.proxy, PROXY, &format!("-u -b 100M -l 1300 -t 3 {direction}"));
    assert!(nat::lost(&lab.internet) > 0, "the internet must lose something for this to mean anything");
    let lost_outside = nat::lost_bytes(&lab.internet) / SEALED;
    lab.internet.run("nft delete table inet loss");
    // iperf3 begins with one datagram each way and does not send them again.
    let megabits = end["sum"]["bits_per_second"].as_f64().ok_or("iperf3's own first datagram was lost")? / 1e6;
    let [lost, packets] = ["lost_packets", "packets"].map(|key| end["sum"][key].as_u64().expect("a number"));
    // Whole batches are lost outside, so how much of the time that is varies; what is lost beyond it is ours.
    let ours = lost.saturating_sub(lost_outside);
    let good = ours * 100 < packets * 3 && megabits > 95.0;
    if good { Ok(()) } else { Err(format!("{lost} lost, {lost_outside} of them outside {direction}: {end}")) }
}

#[test]
fn tcp_survives_one_percent_loss() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    nat::lose(&lab.internet, 1);
    transfer(&lab.nextcloud, &lab.proxy, PROXY, 10);
    transfer(&lab.proxy, &lab.nextcloud, NEXTCLOUD6, 10);
    assert!(nat::lost(&lab.internet) > 0);
}
