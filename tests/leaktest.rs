//! `meshd leaktest` finds what leaks, proves that nothing does, says when it proves nothing, and leaves nothing behind.

mod lab;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Stdio;
use std::time::Duration;

use lab::host::describe;
use lab::snapshot::Snapshot;
use lab::{Lab, WEB, WEB6, secs, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// One round of probes is enough here.
const QUICK: &[&str] = &["leaktest", "--seconds", "1", "--json"];

/// Runs it at home: the exit code and what it printed.
fn leaktest(lab: &Lab, more: &[&str]) -> (i32, Value) {
    let output = lab.home.try_meshd(&[QUICK, more].concat());
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", describe(&output)));
    (output.status.code().expect("an exit code"), report)
}

/// The report's part about one family.
fn family(report: &Value, v6: bool) -> &Value {
    let legs = report["bridges"].as_array().expect("bridges");
    let of = |leg: &&Value| leg["subnet"].as_str().is_some_and(|subnet| subnet.contains(':') == v6);
    legs.iter().find(of).unwrap_or_else(|| panic!("no leg in {report:#}"))
}

/// What leaked of one family, as `probe to target`.
fn leaks(report: &Value, v6: bool) -> BTreeSet<String> {
    let leaks = family(report, v6)["leaks"].as_array().expect("leaks");
    let text = |leak: &Value, key: &str| leak[key].as_str().unwrap_or("-").to_owned();
    leaks.iter().map(|leak| format!("{} to {}", text(leak, "probe"), text(leak, "target"))).collect()
}

/// Takes away what holds home's containers; the agent must be dead.
fn open(lab: &Lab) {
    lab.home.run("nft delete table inet meshd_guard");
    for family in ["-4", "-6"] {
        // All but the kernel's own three.
        lab.home.run(&format!(
            "ip {family} rule | sed 's/:.*//' | grep -vxE '0|32766|32767' | \
             while read pref; do ip {family} rule del pref $pref; done"
        ));
    }
}

/// The ports of its containers, by name.
fn ports(lab: &Lab) -> String {
    lab.home.run("ip -o link | cut -d: -f2 | grep meshd- || true")
}

/// Nothing of any run is left on the host.
fn assert_gone(lab: &Lab, before: &Snapshot, what: &str) {
    wait_for(format!("{what}: the port is gone"), secs(5), || ports(lab).is_empty().then_some(()));
    before.assert_same(&Snapshot::of(&lab.home), what);
}

#[test]
fn a_healthy_host_is_closed_and_its_exit_answers() {
    let lab = Lab::up();
    lab.masquerade_at_home_like_podman();
    assert!(lab.nextcloud.ping(WEB), "the exit");
    let before = Snapshot::of(&lab.home);
    let (code, report) = leaktest(&lab, &["--to", WEB, "--to", WEB6]);
    assert_eq!((code, &report["verdict"]), (0, &Value::from("closed")), "{report:#}");
    assert_gone(&lab, &before, "after a run");
    for (v6, exit, web) in [(false, "10.88.0.1", WEB), (true, "fd88::1", WEB6)] {
        let leg = family(&report, v6);
        assert!(leg["tunnel"].as_u64() > Some(20), "{leg:#}");
        let address = leg["address"].as_str().expect("an address");
        assert!(!lab.home.run("ip neigh").contains(address), "the host remembers {address}");
        let answered: Vec<&str> =
            leg["answers"].as_array().expect("answers").iter().filter_map(|answer| answer["from"].as_str()).collect();
        assert!(answered.contains(&exit) && answered.contains(&web), "{leg:#}");
    }
    let eth0 = &report["captures"][0];
    assert_eq!((&eth0["interface"], &eth0["seen"]), (&"eth0".into(), &4.into()), "{report:#}");
    assert!(eth0["frames"].as_u64() < Some(40), "the tunnel's own packets are left out: {report:#}");

    let text = lab.home.meshd(&["leaktest", "--seconds", "1"]);
    assert!(text.lines().all(|line| line.starts_with("ok ") || line.starts_with("      ")), "{text}");
    assert!(text.contains("eth0 watched: 4 of 4") && text.contains("IPv6 fd89:2::/64"), "{text}");
}

#[test]
fn a_dead_agent_leaves_it_closed_and_each_layer_suffices() {
    let lab = Lab::up();
    lab.masquerade_at_home_like_podman();
    lab.home.end(Signal::SIGKILL);
    let output = lab.home.try_meshd(&["leaktest", "--seconds", "1"]);
    let text = describe(&output);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(output.status.success() && words.contains("no agent runs: closed is right"), "{text}");
    lab.home.run("nft delete table inet meshd_guard");
    let (_, report) = leaktest(&lab, &[]);
    assert_eq!(report["agent"], false, "{report:#}");
    for v6 in [false, true] {
        // The kernel tells whoever a container claims to be that its packet was unreachable, before it looks whether the
        // claim can be true: only the guard keeps that in.
        let leaks: Vec<_> = leaks(&report, v6).into_iter().filter(|leak| !leak.starts_with("udp as ")).collect();
        assert!(leaks.is_empty(), "{report:#}");
    }
}

#[test]
fn without_its_guards_every_protocol_leaks_and_is_found() {
    let lab = Lab::up();
    lab.masquerade_at_home_like_podman();
    lab.home.end(Signal::SIGKILL);
    open(&lab);
    let before = Snapshot::of(&lab.home);
    let (code, report) = leaktest(&lab, &[]);
    assert_eq!((code, &report["verdict"]), (1, &Value::from("leak")), "{report:#}");
    assert_gone(&lab, &before, "after a leak");
    for v6 in [false, true] {
        let leaks = leaks(&report, v6);
        for probe in ["icmp", "udp", "tcp", "dns", "tcp 443", "udp 443", "udp in fragments", "protocol 253"] {
            assert!(leaks.contains(&format!("{probe} to the internet")), "{probe} is missing in {leaks:#?}");
        }
        let mut targets = vec!["a private network", "the router on eth0", "the metadata service", "the internet"];
        if !v6 {
            targets.push("the exit's own address");
        }
        for target in targets {
            assert!(leaks.contains(&format!("icmp to {target}")), "{target} is missing in {leaks:#?}");
        }
        let lan = if v6 { "2001:db8:168::/64 on eth0" } else { "192.168.1.0/24 on eth0" };
        let by = |leak: &&Value| leak["target"] == lan && leak["recognised_by"] == "neighbour";
        let found = family(&report, v6)["leaks"].as_array().expect("leaks").iter().find(by);
        assert!(found.is_some(), "nobody has the address, but it is asked for: {report:#}");
    }
    let output = lab.home.try_meshd(&["leaktest", "--seconds", "1"]);
    let text = describe(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("LEAK  br0 IPv4 10.89.2.0/24") && text.contains("by eth0: ICMP 192.168.1.20 > "), "{text}");
}

#[test]
fn a_network_in_allow_is_no_leak() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    lab.home.replace("meshd.toml", "egress = \"vps\"", "allow = [\"192.168.1.0/24\"]\negress = \"vps\"");
    lab.start();
    let (code, report) = leaktest(&lab, &[]);
    assert_eq!(code, 0, "{report:#}");
}

#[test]
fn a_name_server_of_the_host_that_asks_for_its_containers_is_found() {
    let lab = Lab::up();
    let server = lab.home.within(|| UdpSocket::bind("10.89.2.1:53")).expect("bind");
    let upstream = lab.home.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
    let stop = server.try_clone().expect("dup");
    let forwarder = std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok(len) = server.recv(&mut query) {
            if len == 0 {
                return;
            }
            let _ = upstream.send_to(&query[..len], "192.168.1.1:53");
        }
    });
    let (code, report) = leaktest(&lab, &[]);
    lab.home.within(|| stop.send_to(&[], stop.local_addr().expect("an address"))).expect("send");
    forwarder.join().expect("the forwarder");
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(leaks(&report, false), BTreeSet::from(["dns to the host's name server".to_owned()]));
    assert_eq!(leaks(&report, true), BTreeSet::new());
}

#[test]
fn a_blind_capture_proves_nothing() {
    let lab = Lab::up();
    lab.home.run(
        "nft 'table netdev blind { chain out { type filter hook egress device eth0 priority 0; udp dport 9 drop; }; }'",
    );
    let (code, report) = leaktest(&lab, &[]);
    assert_eq!((code, &report["verdict"]), (5, &Value::from("inconclusive")), "{report:#}");
    assert_eq!(report["captures"][0]["seen"], 0, "{report:#}");
    lab.home.run("nft delete table netdev blind");
    lab.home.run("ip link set eth0 down");
    let (code, report) = leaktest(&lab, &[]);
    assert_eq!((code, report["captures"].as_array().map(Vec::len)), (5, Some(0)), "{report:#}");
    let output = lab.home.try_meshd(&["leaktest", "--seconds", "1"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing is proved"), "{}", describe(&output));
}

#[test]
fn what_there_is_to_test() {
    let lab = Lab::new();
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"direct\"");
    for arguments in [&["leaktest"][..], &["leaktest", "br0"]] {
        assert!(lab.home.meshd(arguments).starts_with("nothing to test"));
    }
    assert_eq!(leaktest(&lab, &[]).1["verdict"], "nothing");
    let stderr = lab.home.meshd_fails(2, &["leaktest", "br7"]);
    assert!(stderr.contains("no bridge \"br7\" in meshd.toml; bridges are: br0"), "{stderr}");
    lab.home.meshd_fails(2, &["leaktest", "--to", "example.net"]);

    lab.home.replace("meshd.toml", "egress = \"direct\"", "egress = \"none\"");
    lab.home.replace("meshd.toml", "name = \"br0\"", "name = \"br7\"");
    let (code, report) = leaktest(&lab, &[]);
    assert_eq!(code, 5, "{report:#}");
    assert!(report["bridges"][0]["problem"].as_str().expect("why").contains("does not exist"), "{report:#}");
}

#[test]
fn nobodys_address_is_taken() {
    let lab = Lab::new();
    let more = "subnets = [\"10.89.7.0/29\", \"10.89.8.0/30\", \"fd89:7::/126\", ";
    lab.home.replace("meshd.toml", "subnets = [", more);
    lab.start();
    // Room for one more in each.
    lab.home.run("ip address add 10.89.7.1/29 dev br0 && ip address add fd89:7::1/126 dev br0 nodad");
    lab.nextcloud.run("for n in 2 3 4 5; do ip address add 10.89.7.$n/29 dev eth0; done");
    lab.nextcloud.run("ip address add fd89:7::2/126 dev eth0 nodad");
    // And for none.
    lab.home.run("ip address add 10.89.8.1/30 dev br0");
    lab.nextcloud.run("ip address add 10.89.8.2/30 dev eth0");
    let (code, report) = leaktest(&lab, &[]);
    let leg = |subnet: &str| {
        let legs = report["bridges"].as_array().expect("bridges").iter();
        legs.clone().find(|leg| leg["subnet"] == subnet).unwrap_or_else(|| panic!("no {subnet} in {report:#}"))
    };
    assert_eq!(leg("10.89.7.0/29")["address"], "10.89.7.6");
    assert_eq!(leg("fd89:7::/126")["address"], "fd89:7::3");
    assert_eq!(leg("10.89.8.0/30")["problem"], "no free address in 10.89.8.0/30");
    assert_eq!(code, 5, "{report:#}");
}

#[test]
fn however_it_ends_nothing_is_left() {
    let lab = Lab::up();
    let before = Snapshot::of(&lab.home);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut child = lab
            .home
            .meshd_command(&["leaktest", "--seconds", "60"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("meshd");
        wait_for("a port on the bridge", secs(5), || (!ports(&lab).is_empty()).then_some(()));
        std::thread::sleep(Duration::from_millis(700));
        let mac = lab.home.run("ip -o link show br0");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("kill");
        child.wait().expect("wait");
        assert_gone(&lab, &before, signal.as_str());
        assert_eq!(mac, lab.home.run("ip -o link show br0"), "the bridge keeps its address and MTU");
    }
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    let lab = Lab::up();
    lab.masquerade_at_home_like_podman();
    let both: Vec<_> = (0..2)
        .map(|_| lab.home.meshd_command(QUICK).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshd"))
        .collect();
    for one in both {
        let output = one.wait_with_output().expect("wait");
        assert!(output.status.success(), "{}", describe(&output));
    }
}

#[test]
fn it_needs_privileges_and_says_so() {
    let lab = Lab::new();
    let mut command = lab.home.command("setpriv");
    let meshd = lab.home.meshd_command(&["leaktest"]);
    for (key, value) in meshd.get_envs() {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    command.args(["--bounding-set=-net_raw,-sys_admin", "--inh-caps=-all"]);
    let output = command.arg(meshd.get_program()).args(meshd.get_args()).output().expect("setpriv");
    let text = describe(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("needs CAP_NET_RAW, CAP_SYS_ADMIN") && text.contains("try: sudo meshd leaktest"), "{text}");
}
