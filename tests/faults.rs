//! Faults under traffic: nothing leaves home beside the tunnel, and all is well again soon. `scripts/faults` injects them a
//! thousand times; the figures are in docs/reliability.md.

#[path = "faults/field.rs"]
mod field;
#[path = "faults/figures.rs"]
mod figures;
mod lab;
#[path = "faults/table.rs"]
mod table;

use std::time::{Duration, Instant};

use field::{Field, narrow_path};
use figures::Figures;
use lab::traffic::{Ping, iperf, transfer};
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, WEB6, root, secs, wait_for};
use table::{FAULTS, Fault};

/// Each fault of a part of the table, one after the other in one lab.
fn survive(faults: impl Iterator<Item = &'static Fault>) {
    let field = Field::new(Lab::new());
    for fault in faults {
        let result = field.suffer(fault).unwrap_or_else(|error| panic!("{}: {error}", fault.name));
        eprintln!("{}: {result:?}", fault.name);
        assert_eq!(result.leaks, 0, "{}: {}", fault.name, field.leaked());
    }
    assert_eq!(field.finish(), 0);
}

#[test]
fn every_theft_is_undone_and_leaks_nothing() {
    survive(FAULTS.iter().filter(|fault| fault.limit <= secs(1)));
}

#[test]
fn every_other_fault_is_survived_and_leaks_nothing() {
    survive(FAULTS.iter().filter(|fault| fault.limit > secs(1)));
}

#[test]
fn who_keeps_deleting_is_named_and_logged_once() {
    let lab = Lab::up();
    let warnings = || lab.home.status()["warnings"].to_string();
    for _ in 0..8 {
        lab.home.run("nft flush ruleset");
        lab.home.run("ip rule del pref 88; sleep 0.02");
        wait_for("all is back", secs(2), || (lab.home.meshd(&["plan"]) == "nothing to change\n").then_some(()));
    }
    let shown = warnings();
    assert!(shown.contains("the nft guard had to be put back") && shown.contains("nft (pid "), "{shown}");
    assert!(shown.contains("rules had to be put back"), "{shown}");
    let log = lab.home.log();
    assert_eq!(log.matches("the nft guard had to be put back").count(), 1, "{log}");
    assert!(log.matches("brought back: nft table inet meshd_guard").count() < 3, "{log}");
}

#[test]
fn a_flood_of_events_does_not_keep_the_agent_busy() {
    let lab = Lab::up();
    let before = lab.home.thread_time("meshd");
    let start = Instant::now();
    lab.home.run(
        "for i in $(seq 3000); do echo \"route add 198.19.$((i / 250)).$((i % 250))/32 dev eth0\"; \
         echo \"route del 198.19.$((i / 250)).$((i % 250))/32 dev eth0\"; done >$0.batch; \
         end=$(($(date +%s) + 5)); while [ $(date +%s) -lt $end ]; do ip -batch $0.batch; done"
            .replace("$0", &lab.path("flood").display().to_string())
            .as_str(),
    );
    let (busy, time) = (lab.home.thread_time("meshd").saturating_sub(before), start.elapsed());
    eprintln!("{busy:?} of {time:?}");
    assert!(busy * 2 < time, "{busy:?} of {time:?}");
    lab.home.run("nft delete table inet meshd_guard");
    wait_for("the guard is back", secs(1), || {
        lab.home.try_run("nft list table inet meshd_guard").status.success().then_some(())
    });
}

#[test]
fn ten_megabytes_pass_a_path_that_drops_big_packets_in_silence() {
    let lab = Lab::up();
    narrow_path(&lab, true);
    for (there, here) in [(PROXY, NEXTCLOUD), (PROXY6, NEXTCLOUD6)] {
        transfer(&lab.proxy, &lab.nextcloud, here, 10);
        transfer(&lab.nextcloud, &lab.proxy, there, 10);
    }
    for server in [WEB, WEB6] {
        transfer(&lab.nextcloud, &lab.internet, server, 10);
    }
}

/// A lab whose tunnel runs over such a path in IPv6, where no router makes fragments. Not started.
fn over_ipv6() -> Lab {
    let lab = Lab::new();
    lab.home.replace("peers/vps.toml", &format!("{VPS}:"), &format!("[{VPS6}]:"));
    narrow_path(&lab, true);
    lab
}

#[test]
fn ten_megabytes_pass_an_ipv6_path_that_drops_big_packets_in_silence() {
    let lab = over_ipv6();
    lab.start();
    // The first one begins before the agents know.
    for (there, here) in [(PROXY, NEXTCLOUD), (PROXY6, NEXTCLOUD6)] {
        let begun = Instant::now();
        transfer(&lab.proxy, &lab.nextcloud, here, 10);
        transfer(&lab.nextcloud, &lab.proxy, there, 10);
        eprintln!("there and back in {:?}", begun.elapsed());
        assert!(begun.elapsed() < secs(30), "{:?}", begun.elapsed());
    }
    for server in [WEB, WEB6] {
        transfer(&lab.nextcloud, &lab.internet, server, 10);
        iperf(&lab.nextcloud, &lab.internet, server, "-n 10M -R");
    }
}

/// The control: what the agents tell their kernels does not arrive at first.
#[test]
fn an_ipv6_path_that_drops_big_packets_is_noticed_and_stays_so_until_the_kernel_hears_of_it() {
    let lab = over_ipv6();
    let hosts = [&lab.home, &lab.vps];
    for host in hosts {
        host.run(
            "nft 'table inet deaf { chain in { type filter hook input priority filter; \
             iif lo icmpv6 type packet-too-big drop; }; }'",
        );
    }
    lab.start();
    let begun = Instant::now();
    for host in hosts {
        wait_for("the path is known to be small", secs(10), || {
            host.status()["warnings"].to_string().contains("swallows packets above 1280 bytes").then_some(())
        });
    }
    eprintln!("noticed after {:?}", begun.elapsed());
    let passes =
        |bytes| Ping::start(&lab.nextcloud, PROXY, &format!("-c 2 -i 0.2 -W 1 -s {bytes}")).finish().lost() == 0;
    assert!(passes(1000) && !passes(1300), "the path is not what it is to be");
    for host in hosts {
        host.run("nft delete table inet deaf");
    }
    wait_for("full packets pass", secs(5), || passes(1300).then_some(()));
    assert!(lab.home.run(&format!("ip -6 route get {VPS6}")).contains("mtu 1280"));
    assert_eq!(lab.home.log().matches("swallows packets").count(), 1, "{}", lab.home.log());
}

/// Both layers in one moment: nothing is left that could hold, so what counts is how soon they are back.
#[test]
fn both_layers_flushed_together_are_back_within_milliseconds() {
    let lab = if std::env::var_os("MESHD_FAULTS_RELEASE").is_some() { Lab::release() } else { Lab::new() };
    let field = Field::new(lab);
    let mut open = Vec::new();
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(1100));
        let leaks = field.leaks();
        field.home(
            "nft -f - <<END\nflush ruleset\nEND\n\
             printf 'rule del pref 88\\nrule del pref 89\\n' | ip -batch -; printf 'rule del pref 88\\nrule del pref 89\\n' | ip -6 -batch -",
        );
        let theft = Instant::now();
        wait_for(format!("round {round}"), secs(1), || field.in_order().then_some(()));
        open.push((theft.elapsed().as_millis(), field.leaks() - leaks));
    }
    eprintln!("milliseconds until all was back, leaked frames: {open:?}");
    let leaked: u64 = open.iter().map(|(_, leaks)| leaks).sum();
    eprintln!("{leaked} frames in 20 rounds");
}

/// `scripts/faults` runs this.
#[test]
#[ignore = "a quarter of an hour: scripts/faults"]
fn campaign() {
    let number = |name: &str, or: u64| std::env::var(name).ok().map_or(or, |text| text.parse().expect(name));
    let (seed, count, minutes) =
        (number("MESHD_FAULTS_SEED", 1), number("MESHD_FAULTS_COUNT", 1000), number("MESHD_FAULTS_MINUTES", 30));
    let path = root().join(format!("target/faults/{seed}.tsv"));
    let mut figures = Figures::open(&path);
    let done = figures.count();
    let deadline = Instant::now() + secs(60 * minutes);
    let field = Field::new(Lab::release());
    for (n, fault) in order(seed).take(count as usize).enumerate().skip(done) {
        if Instant::now() > deadline {
            eprintln!("the time is over; the same command goes on at {n}");
            break;
        }
        let result = field.suffer(fault).unwrap_or_else(|error| panic!("{n}: {}: {error}", fault.name));
        let leak = if result.leaks == 0 { String::new() } else { format!("  LEAK {}", field.leaked()) };
        eprintln!("{n}\t{:5} ms {:5} ms  {}{leak}", result.plan.as_millis(), result.flow.as_millis(), fault.name);
        figures.add(fault.name, &result);
    }
    assert_eq!(field.finish(), 0, "frames beside the tunnel");
    println!("{}", figures.table(FAULTS.iter().map(|fault| fault.name)));
    for (name, summary) in figures.by_fault() {
        let fault = FAULTS.iter().find(|fault| fault.name == name).expect("a fault of the table");
        assert!(summary.p95() <= fault.limit, "{name}: {:?}", summary.p95());
        assert_eq!(summary.leaks, 0, "{name}");
    }
}

/// The faults in an order that the seed gives (splitmix64), each as often as its weight says.
fn order(seed: u64) -> impl Iterator<Item = &'static Fault> {
    let total: u32 = FAULTS.iter().map(|fault| fault.weight).sum();
    let mut state = seed;
    std::iter::from_fn(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mut at = ((z ^ (z >> 31)) % u64::from(total)) as u32;
        FAULTS.iter().find(|fault| {
            let here = at < fault.weight;
            at = at.wrapping_sub(if here { 0 } else { fault.weight });
            here
        })
    })
}
