//! `meshd doctor` against one broken thing after the other: it names that very thing, and what it says to do cures it.

mod lab;

use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::process::Output;
use std::thread::JoinHandle;

use lab::host::{Host, describe};
use lab::{Lab, NEXTCLOUD, WEB, WEB6, secs, wait_for};
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::Value;

/// What `meshd doctor --json` says, and that its exit code says the same.
fn doctor(host: &Host, more: &[&str]) -> Value {
    let args = [&["doctor", "--json", "--internet", WEB, "--internet", WEB6][..], more].concat();
    let output: Output = host.try_meshd(&args);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", describe(&output)));
    let healthy = report["healthy"].as_bool().expect("healthy");
    assert_eq!(output.status.code(), Some(i32::from(!healthy)), "{}", describe(&output));
    assert!(output.stderr.is_empty(), "{}", describe(&output));
    report
}

fn faults(report: &Value) -> Vec<Value> {
    let steps = report["steps"].as_array().expect("steps");
    steps.iter().filter(|step| step["state"] == "fault").cloned().collect()
}

#[track_caller]
fn healthy(host: &Host, more: &[&str]) {
    let report = doctor(host, more);
    assert_eq!(faults(&report), [] as [Value; 0], "{}: {report:#}", host.name);
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Those that knocked in vain, whether or not that is a fault.
fn knocks(host: &Host) -> Vec<Value> {
    let report = doctor(host, &[]);
    report["steps"].as_array().expect("steps").iter().filter(|step| step["step"] == "key").cloned().collect()
}

/// The fault of this step whose words contain `saw`.
#[track_caller]
fn find(host: &Host, more: &[&str], step: &str, saw: &str) -> Value {
    let report = doctor(host, more);
    let found = faults(&report);
    let fault = found.iter().find(|fault| fault["step"] == step && text(&fault["saw"]).contains(saw));
    fault.unwrap_or_else(|| panic!("{}: no {step} with {saw:?} in {report:#}", host.name)).clone()
}

fn commands(fault: &Value) -> Vec<&str> {
    fault["remedy"]["commands"].as_array().expect("commands").iter().map(text).collect()
}

/// Runs what a fault says is to be done, where it says so.
fn cure(lab: &Lab, here: &Host, fault: &Value) {
    let host = match fault["remedy"]["host"].as_str() {
        None => here,
        Some("vps") => &lab.vps,
        Some("home") => &lab.home,
        Some(other) => panic!("{other}"),
    };
    assert!(!commands(fault).is_empty(), "{fault:#}");
    for command in commands(fault) {
        match command.strip_prefix("meshd ") {
            Some(words) => drop(host.meshd(&words.split(' ').collect::<Vec<_>>())),
            None => drop(host.run(command)),
        }
    }
}

/// Breaks something; exactly one thing is found; what is said cures it.
#[track_caller]
fn found_and_cured(lab: &Lab, here: &Host, more: &[&str], step: &str, saw: &str) {
    let fault = find(here, more, step, saw);
    for fault in faults(&doctor(here, more)) {
        assert!(
            fault["step"] == step || text(&fault["saw"]).contains(saw),
            "{}: only {step} is broken, but: {fault:#}",
            here.name
        );
    }
    cure(lab, here, &fault);
    for other in faults(&doctor(here, more)) {
        cure(lab, here, &other);
    }
    healthy(here, more);
}

/// Both agents, and a session between them.
fn joined() -> Lab {
    let lab = Lab::up();
    wait_for("a session", secs(10), || lab.nextcloud.ping(lab::PROXY).then_some(()));
    lab
}

/// Answers each query with itself, marked as an answer.
struct NameServer {
    socket: UdpSocket,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    fn start(lab: &Lab) -> Self {
        // To the one address, so that answers come from it.
        let socket = lab.internet.within(|| UdpSocket::bind((WEB, 53))).expect("bind");
        let answering = socket.try_clone().expect("dup");
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((len, from)) = answering.recv_from(&mut buffer) {
                if len < 12 {
                    return;
                }
                buffer[2] |= 0x80;
                let _ = answering.send_to(&buffer[..len], from);
            }
        });
        Self { socket, thread: Some(thread) }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // Wakes recvfrom(2), with nothing or an error.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[test]
fn a_healthy_lab_gives_no_finding() {
    let lab = joined();
    let _names = NameServer::start(&lab);
    let report = doctor(&lab.home, &["--dns", WEB]);
    assert_eq!(report["healthy"], true, "{report:#}");
    let steps: Vec<&str> = report["steps"].as_array().expect("steps").iter().map(|step| text(&step["step"])).collect();
    for step in ["bridge", "rule", "table", "guard", "tunnel", "handshake", "clock", "mtu", "exit", "return", "dns"] {
        assert!(steps.contains(&step), "{step} in {steps:?}");
    }
    let left = report["steps"].as_array().expect("steps").iter().filter(|step| step["state"] == "skipped").count();
    assert_eq!(left, 0, "{report:#}");
    healthy(&lab.vps, &[]);
    for target in ["br0", "vps", NEXTCLOUD] {
        healthy(&lab.home, &[target]);
    }
    let links = lab.home.run("ip -o link show");
    assert!(!links.contains(": meshd-"), "the throwaway container is gone: {links}");
    let page = lab.home.meshd(&["doctor", "--internet", WEB]);
    assert!(page.starts_with("✓ config") && page.ends_with("\nhealthy\n") && !page.contains('\x1b'), "{page}");
    let usage = lab.home.meshd_fails(2, &["doctor", "nowhere"]);
    assert!(usage.contains("there are: br0, vps"), "{usage}");
}

#[test]
fn packet_filters_are_named_and_passed() {
    let lab = joined();
    let policy = "nft 'table inet other { chain fw { type filter hook forward priority filter; policy drop; }; }'";
    lab.home.run(policy);
    found_and_cured(&lab, &lab.home, &[], "firewall", "nft table inet other, chain fw: policy drop");
    lab.vps.run(policy);
    found_and_cured(&lab, &lab.home, &[], "firewall", "egress of home: nft table inet other, chain fw: policy drop");
    found_and_cured(&lab, &lab.vps, &[], "firewall", "nft table inet other, chain fw: policy drop");
    for host in [&lab.home, &lab.vps] {
        host.run("nft delete table inet other");
    }
    lab.home.run(
        "nft 'table ip six { chain r { type filter hook prerouting priority raw; \
         iifname != \"br0\" ip daddr 10.89.2.10 counter drop; }; }'",
    );
    found_and_cured(&lab, &lab.home, &[], "firewall", "chain r: iifname != \"br0\" ip daddr 10.89.2.10 counter drop");
    // In `raw` the agent itself makes an exception.
    lab.vps.run("iptables -t mangle -A PREROUTING -d 10.89.1.10/32 -j DROP");
    found_and_cured(&lab, &lab.vps, &[], "firewall", "-A PREROUTING -d 10.89.1.10/32 -j DROP");
}

#[test]
fn routes_and_rules_of_others_are_named_and_removed() {
    let lab = joined();
    lab.home.run("ip route add 10.89.1.0/25 via 192.168.1.1");
    let fault = find(&lab.home, &[], "route", "10.89.1.0/25 via 192.168.1.1 dev eth0 in table main");
    assert_eq!(commands(&fault), ["ip route del 10.89.1.0/25 via 192.168.1.1 dev eth0"]);
    found_and_cured(&lab, &lab.home, &[], "route", "10.89.1.0/25");
    // Another VPN takes everything but what the agent's own rules take first.
    lab.home.run("ip route add default via 192.168.1.1 table 52; ip rule add pref 70 from all lookup 52");
    found_and_cured(&lab, &lab.home, &[], "route", "rule pref 70 from all lookup 52");
    // Callers come in by eth0, but the way back is said to be another.
    lab.vps.run(
        "ip link add wan2 type veth peer name wan3; ip link set wan2 up; ip link set wan3 up; \
         ip route add 192.0.2.80 dev wan2",
    );
    let fault = find(&lab.vps, &[], "rp_filter", "net.ipv4.conf.eth0.rp_filter is strict");
    assert_eq!(commands(&fault), ["sysctl -w net.ipv4.conf.eth0.rp_filter=2"]);
    cure(&lab, &lab.vps, &fault);
    found_and_cured(&lab, &lab.vps, &[], "exit", "route 192.0.2.80/32 dev wan2 in table main");
}

#[test]
fn wrong_keys_are_told_by_who_can_tell() {
    let lab = Lab::new();
    let (vps, home) = (lab.vps.public_key(), lab.home.public_key());
    let stranger = "K98Ddtsu0WB10Na5loB/GkKRwe6d05rBmZcm3LJ8cjI=";
    // The VPS does not know home's key.
    lab.vps.write("peers/phone.toml", &lab.vps.read("peers/phone.toml").replace("10.88.0.3", "10.88.0.4"));
    std::fs::remove_file(lab.vps.config("peers/phone.toml")).expect("rm");
    lab.vps.replace("meshd.toml", "peers = [\"home\", \"phone\"]", "peers = [\"home\"]");
    lab.vps.replace("peers/home.toml", &home, stranger);
    lab.start();
    let fault = wait_for("home knocks", secs(10), || knocks(&lab.vps).first().cloned());
    assert!(text(&fault["saw"]).contains("knocks, and is no peer"), "{fault:#}");
    assert_eq!(fault["state"], "skipped", "anybody can knock: {fault:#}");
    assert!(text(&fault["saw"]).contains(&format!("a host with public key {home} at 198.51.100.7:")), "{fault:#}");
    assert_eq!(commands(&fault), [format!("meshd peer add NAME --public-key {home}")]);
    let fault = find(&lab.home, &[], "handshake", "no answer from 203.0.113.10:51820");
    assert_eq!((text(&fault["remedy"]["host"]), commands(&fault)), ("vps", vec!["meshd doctor"]));
    lab.vps.replace("peers/home.toml", stranger, &home);
    lab.vps.meshd(&["reload"]);
    wait_for("a session", secs(10), || lab.nextcloud.ping(lab::PROXY).then_some(()));
    healthy(&lab.vps, &[]);
    healthy(&lab.home, &[]);
    // Home takes the VPS for another.
    lab.home.replace("peers/vps.toml", &vps, stranger);
    lab.home.meshd(&["reload"]);
    let fault = wait_for("home knocks again", secs(10), || knocks(&lab.vps).first().cloned());
    assert_eq!(fault["state"], "skipped", "its session still stands: {fault:#}");
    let fault =
        wait_for("home is missed", secs(40), || knocks(&lab.vps).into_iter().find(|step| step["state"] == "fault"));
    assert!(text(&fault["saw"]).contains("198.51.100.7"), "{fault:#}");
    assert!(text(&fault["saw"]).contains("knocks with a wrong public key of this host"), "{fault:#}");
    assert!(text(&fault["remedy"]["note"]).contains(&format!("public_key = \"{vps}\"")), "{fault:#}");
    lab.home.replace("peers/vps.toml", stranger, &vps);
    // Only home has a preshared key.
    lab.home.append("peers/vps.toml", "preshared_key = \"/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=\"");
    lab.home.meshd(&["reload"]);
    wait_for("an answer that does not open", secs(10), || {
        let found = faults(&doctor(&lab.home, &[]));
        found.iter().any(|fault| text(&fault["saw"]).contains("the preshared keys differ")).then_some(())
    });
    let file = lab.home.read("peers/vps.toml");
    let kept: Vec<&str> = file.lines().filter(|line| !line.starts_with("preshared_key")).collect();
    lab.home.write("peers/vps.toml", &format!("{}\n", kept.join("\n")));
    lab.home.meshd(&["reload"]);
    wait_for("a session", secs(10), || lab.nextcloud.ping(lab::PROXY).then_some(()));
    healthy(&lab.vps, &[]);
    healthy(&lab.home, &[]);
}

#[test]
fn a_silent_path_is_told_from_a_port_where_nobody_listens() {
    let lab = Lab::new();
    lab.home.up();
    let fault = find(&lab.home, &[], "handshake", "nobody listens on UDP port 51820 of 203.0.113.10");
    assert_eq!(faults(&doctor(&lab.home, &[])).len(), 1);
    assert_eq!(commands(&fault), ["meshd up --detach"]);
    let drop_udp = |hook: &str| {
        format!(
            "nft 'table inet silent {{ chain c {{ type filter hook {hook} priority filter; udp dport 51820 drop; }}; }}'"
        )
    };
    lab.isp.run(&drop_udp("forward"));
    lab.vps.up();
    find(&lab.home, &[], "handshake", "no answer from 203.0.113.10:51820: UDP is blocked on the way");
    healthy(&lab.vps, &[]);
    lab.isp.run("nft delete table inet silent");
    wait_for("a session", secs(10), || lab.nextcloud.ping(lab::PROXY).then_some(()));
    healthy(&lab.home, &[]);
    for (host, hook) in [(&lab.home, "output"), (&lab.vps, "input")] {
        host.run(&drop_udp(hook));
        found_and_cured(&lab, host, &[], "firewall", "the tunnel's own packets: nft table inet silent, chain c");
    }
}

#[test]
fn size_clock_names_and_exit_are_asked_of_the_other_agent() {
    let lab = Lab::new();
    lab.vps.replace("meshd.toml", "peers = [\"home\", \"phone\"]", "peers = [\"phone\"]");
    lab.start();
    wait_for("a session", secs(10), || lab.home.ping("10.88.0.1").then_some(()));
    let fault = find(&lab.home, &[], "exit", "does not carry the egress of home");
    assert!(text(&fault["remedy"]["note"]).contains("peers = [\"home\"]"), "{fault:#}");
    lab.vps.replace("meshd.toml", "peers = [\"phone\"]", "peers = [\"home\"]");
    lab.vps.meshd(&["reload"]);
    healthy(&lab.home, &[]);
    // Names.
    let names = NameServer::start(&lab);
    healthy(&lab.home, &["--dns", WEB]);
    let drop_names =
        "nft 'table inet deaf { chain c { type filter hook forward priority filter; udp dport 53 drop; }; }'";
    lab.vps.run(drop_names);
    found_and_cured(&lab, &lab.home, &["--dns", WEB], "firewall", "chain c: udp dport 53 drop");
    drop(names);
    find(&lab.home, &["--dns", WEB], "dns", "no name server answers a container here: tried 192.0.2.80");
    // The internet beyond the exit.
    lab.internet.run("nft 'table inet mute { chain c { type filter hook input priority filter; meta l4proto icmp drop; icmpv6 type echo-request drop; }; }'");
    find(&lab.vps, &["--internet", "10.55.0.1"], "internet", "does not answer this host itself")
        .as_object()
        .expect("a fault");
    lab.internet.run("nft delete table inet mute");
    // Size.
    lab.isp.run("nft 'table inet narrow { chain c { type filter hook forward priority -10; meta length > 1380 udp dport 51820 drop; }; }'");
    let fault = find(&lab.home, &[], "mtu", "packets of 1420 bytes vanish, of 1320 pass");
    cure(&lab, &lab.home, &fault);
    healthy(&lab.home, &[]);
    // Clock.
    lab.vps.down();
    let mut ahead = lab.vps.meshd_command(&["up", "--detach"]);
    assert!(ahead.env("MESHD_TEST_CLOCK_OFFSET", "7200").status().expect("meshd").success());
    wait_for("a session", secs(20), || lab.home.ping("10.88.0.1").then_some(()));
    let fault = find(&lab.home, &[], "clock", "s ahead of this host's");
    assert_eq!(commands(&fault), ["timedatectl set-ntp true"]);
}

#[test]
fn this_hosts_own_part_is_looked_at_with_the_agent_hung_or_gone() {
    let lab = joined();
    // A container with another gateway.
    lab.nextcloud.run("ip route replace default via 10.89.2.77");
    found_and_cured(
        &lab,
        &lab.home,
        &[NEXTCLOUD],
        "container",
        "its default route is 10.89.2.77, not 10.89.2.1 of br0",
    );
    lab.home.run("ip link set br0 down");
    found_and_cured(&lab, &lab.home, &[], "bridge", "is down");
    lab.home.run("ip -6 address add fd89:2::1/64 dev br0 nodad 2>/dev/null; ip address del 10.89.2.1/24 dev br0");
    found_and_cured(&lab, &lab.home, &[], "bridge", "no address in 10.89.2.0/24");
    // Nobody is there to put forwarding back.
    lab.home.signal(Signal::SIGSTOP);
    lab.home.run("echo 0 >/proc/sys/net/ipv4/conf/br0/forwarding");
    let fault = find(&lab.home, &[], "forwarding", "net.ipv4.conf.br0.forwarding=1");
    assert_eq!(commands(&fault), ["sysctl -w net.ipv4.conf.br0.forwarding=1"]);
    let fixed = doctor(&lab.home, &["--fix"]);
    assert_eq!(fixed["fixed"], serde_json::json!(["sysctl -w net.ipv4.conf.br0.forwarding=1"]), "{fixed:#}");
    assert_eq!(lab.home.run("cat /proc/sys/net/ipv4/conf/br0/forwarding").trim(), "1");
    found_and_cured(&lab, &lab.home, &[], "agent", "is stopped by a signal");
    // Nobody at all, but the guard.
    lab.home.end(Signal::SIGKILL);
    let report = doctor(&lab.home, &[]);
    let found = faults(&report);
    assert_eq!((found.len(), text(&found[0]["saw"])), (1, "not running: try meshd up"), "{report:#}");
    let guard = report["steps"].as_array().expect("steps").iter().find(|step| step["step"] == "guard").expect("guard");
    assert_eq!(guard["state"], "ok", "{report:#}");
    let page = lab.home.try_meshd(&["doctor", "--internet", WEB]);
    assert!(String::from_utf8_lossy(&page.stdout).contains("✗ agent"), "{}", describe(&page));
    lab.home.run("nft delete table inet meshd_guard");
    find(&lab.home, &[], "guard", "not armed");
    lab.home.append("meshd.toml", "nonsense = 1");
    let report = doctor(&lab.home, &[]);
    assert!(text(&faults(&report)[0]["saw"]).contains("nonsense"), "{report:#}");
}
