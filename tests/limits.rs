//! The limits of docs/deployment.md: an agent in a control group of 64 MiB, at full load.

mod lab;

use lab::cgroup::Cgroup;
use lab::traffic::iperf;
use lab::{Lab, NEXTCLOUD, PROXY, secs, wait_for};

const LIMIT: u64 = 64 << 20;

#[test]
fn sixty_four_mebibytes_suffice_at_full_load() {
    let lab = Lab::release();
    let group = Cgroup::new(LIMIT, None);
    lab.vps.up();
    group.up(&lab.home);
    assert!(lab.nextcloud.ping(PROXY));
    let agent = lab.home.agent();
    for (what, options) in [
        ("16 streams to home", "-t 6 -P 16"),
        ("16 streams from home", "-t 6 -P 16 -R"),
        ("UDP, small", "-t 4 -u -b 0 -l 64"),
        ("UDP, whole", "-t 4 -u -b 0 -l 1300"),
    ] {
        let report = iperf(&lab.proxy, &lab.nextcloud, NEXTCLOUD, options);
        let sum = report["sum_received"].as_object().or(report["sum"].as_object()).expect("a sum");
        let rate = sum["bits_per_second"].as_f64().expect("a number") / 1e9;
        println!("{what}: {rate:.2} Gbit/s, at most {} MiB so far", group.peak());
        // nft(8) and what it reads are in the same group.
        lab.home.meshd(&["reload"]);
        assert_eq!(group.killed(), 0, "{what}");
    }
    assert_eq!(lab.home.agent(), agent, "the same process");
    assert!(lab.nextcloud.ping(PROXY));
    lab.home.down();
}

#[test]
fn a_fifth_of_a_processor_slows_the_tunnel_and_ends_nothing() {
    let lab = Lab::release();
    let group = Cgroup::new(LIMIT, Some(20));
    lab.vps.up();
    group.up(&lab.home);
    assert!(lab.nextcloud.ping(PROXY));
    let agent = lab.home.agent();
    let report = iperf(&lab.proxy, &lab.nextcloud, NEXTCLOUD, "-t 6 -P 4");
    let rate = report["sum_received"]["bits_per_second"].as_f64().expect("a number") / 1e6;
    println!("{rate:.0} Mbit/s; throttled {} times", group.throttled());
    assert!(group.throttled() > 10 && rate > 10.0, "{rate} Mbit/s, throttled {}", group.throttled());
    wait_for("packets pass", secs(5), || lab.nextcloud.ping(PROXY).then_some(()));
    assert_eq!((lab.home.agent(), group.killed()), (agent, 0));
    lab.home.down();
}
