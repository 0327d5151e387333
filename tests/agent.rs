//! The agent as its operator meets it: status, wg(8), reload, refusals, down, its appetite and its discretion.

mod lab;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;
use std::time::Duration;

use lab::capture::Capture;
use lab::host::{Host, describe};
use lab::snapshot::Snapshot;
use lab::traffic::{Ping, seen_by, transfer};
use lab::{ISP, Lab, NEXTCLOUD, PROXY, VPS, WEB, secs, wait_equal, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn status_and_wg_agree_with_the_wire() {
    let lab = Lab::new();
    let capture = Capture::start(&lab.home, "eth0", b"");
    lab.start();
    // Paced, so that every packet on the wire also fits into a socket's buffer and is counted.
    assert_eq!(lab.nextcloud.ping_with(PROXY, "-c 200 -i 0.005 -s 1200").lost(), 0);
    assert_eq!(lab.proxy.ping_with(NEXTCLOUD, "-c 100 -i 0.005 -s 4000").lost(), 0);

    let key = lab.vps.public_key();
    // Keepalives may be under way, so the three are compared until they are still.
    wait_equal("status, wg show and the wire, each received and sent", || {
        let before = capture.seen();
        let (status, wg) = (lab.home.peer("vps"), lab.home.wg_show("transfer"));
        let wire = [before.tunnel_rx, before.tunnel_tx];
        let status = ["rx_bytes", "tx_bytes"].map(|field| status[field].as_u64().expect("a number"));
        let wg = [0, 1].map(|column| wg[&key][column].parse::<u64>().expect("a number"));
        ([status, wg], [wire, wire])
    });
    let seen = capture.finish();
    assert!(seen.tunnel_tx > 600_000 && seen.tunnel_rx > 600_000, "{seen:?}");
    assert!(seen.leaks.is_empty(), "{seen:?}");

    let status = lab.home.status();
    assert_eq!(status["name"], "home");
    assert_eq!(status["interface"], "mesh0");
    assert_eq!(status["public_key"], lab.home.public_key());
    assert_eq!(status["listen_port"], 51820);
    assert_eq!(status["addresses"], json!(["10.88.0.2/24", "fd88::2/64"]));
    let bridge = &status["bridges"][0];
    assert_eq!(bridge["name"], "br0");
    assert_eq!(bridge["egress"], "vps");
    assert_eq!(bridge["guard"], "armed");
    let peer = lab.home.peer("vps");
    assert_eq!(peer["state"], "up");
    assert_eq!(peer["endpoint"], "203.0.113.10:51820");
    assert_eq!(lab.home.wg_show("endpoints")[&key], ["203.0.113.10:51820"]);
    assert_eq!(lab.home.wg_show("persistent-keepalive")[&key], ["25"]);
    assert_eq!(lab.home.wg_show("latest-handshakes")[&key][0], peer["latest_handshake"].to_string());
    let now = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs();
    let handshake = peer["latest_handshake"].as_u64().expect("a time");
    assert!(handshake.abs_diff(now) < 60, "{handshake} is not near {now}");
    let mut allowed = lab.home.wg_show("allowed-ips").remove(&key).expect("the VPS");
    allowed.sort();
    let mut expected: Vec<_> =
        ["0.0.0.0/0", "::/0", "10.88.0.1/32", "10.89.1.0/24", "fd88::1/128", "fd89:1::/64"].map(str::to_owned).into();
    expected.sort();
    assert_eq!(allowed, expected);

    let vps = lab.vps.status();
    let phone = lab.vps.peer("phone");
    assert_eq!(vps["bridges"][0]["egress"], "direct");
    assert_eq!(phone["latest_handshake"], Value::Null);
    assert_ne!(phone["state"], "up");
    assert!(lab.vps.meshd(&["status"]).lines().all(|line| line.chars().count() <= 80), "a table for 80 columns");
}

#[test]
fn wg_show_reads_as_the_kernels() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let text = lab.home.run("wg show mesh0");
    for part in [
        "interface: mesh0",
        &format!("public key: {}", lab.home.public_key()),
        "private key: (hidden)",
        "listening port: 51820",
        &format!("peer: {}", lab.vps.public_key()),
        "endpoint: 203.0.113.10:51820",
        "latest handshake:",
        "transfer:",
        "persistent keepalive: every 25 seconds",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert_eq!(lab.home.run("wg show interfaces").trim(), "mesh0");
    let conf = lab.home.run("wg showconf mesh0");
    for part in ["[Interface]", "ListenPort = 51820", &lab.home.read("private.key"), "[Peer]", &lab.vps.public_key()] {
        assert!(conf.contains(part.trim()), "no {part:?} in\n{conf}");
    }
}

#[test]
fn wg_set_and_syncconf_change_peers_without_loss() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let conf = lab.path("saved.conf");
    lab.home.run(&format!("umask 077; wg showconf mesh0 >{}", conf.display()));
    let ping = Ping::start(&lab.nextcloud, PROXY, "-c 500 -i 0.004 -W 2");
    let laptop = lab.home.run("wg genkey | wg pubkey").trim().to_owned();
    lab.home.run(&format!(
        "wg set mesh0 peer {laptop} allowed-ips 10.88.0.9/32,fd88::9/128 endpoint 203.0.113.99:51820 persistent-keepalive 7"
    ));
    assert_eq!(lab.home.wg_show("allowed-ips")[&laptop], ["10.88.0.9/32", "fd88::9/128"]);
    assert_eq!(lab.home.wg_show("endpoints")[&laptop], ["203.0.113.99:51820"]);
    assert_eq!(lab.home.wg_show("persistent-keepalive")[&laptop], ["7"]);
    assert!(lab.home.wg_show("allowed-ips").contains_key(&lab.vps.public_key()), "the other peer stays");

    lab.home.run(&format!("wg syncconf mesh0 {}", conf.display()));
    assert!(!lab.home.wg_show("peers").contains_key(&laptop), "syncconf removes what its file has not");
    lab.home.run(&format!("wg set mesh0 peer {laptop} allowed-ips 10.88.0.9/32"));
    lab.home.run(&format!("wg set mesh0 peer {laptop} remove"));
    assert!(!lab.home.wg_show("peers").contains_key(&laptop));
    let pinged = ping.finish();
    assert_eq!(pinged.lost(), 0, "{pinged:?}");
}

#[test]
fn down_leaves_nothing() {
    let lab = Lab::new();
    let before = [Snapshot::of(&lab.vps), Snapshot::of(&lab.home)];
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    lab.home.down();
    lab.vps.down();
    assert!(lab.home.agent().is_none() && lab.vps.agent().is_none(), "down waits for the process");
    for (host, before) in [&lab.vps, &lab.home].into_iter().zip(&before) {
        before.assert_same(&Snapshot::of(host), host.name);
    }
    lab.home.meshd_fails(3, &["status"]);
}

#[test]
fn down_restores_what_others_had_set() {
    let lab = Lab::new();
    lab.masquerade_at_home_like_podman();
    // Values that meshd wants otherwise, or the same, and that must be there again in either case.
    lab.vps.run(
        "sysctl -qw net.ipv4.conf.br0.forwarding=1 net.ipv6.conf.eth0.accept_ra=1 net.ipv4.conf.eth0.rp_filter=2; \
         ip rule add pref 30000 from 198.18.0.0/15 lookup 1234; ip route add blackhole default table 1234; \
         nft 'table ip own { chain forward { type filter hook forward priority 10; ct state established accept; }; }'",
    );
    let before = [Snapshot::of(&lab.vps), Snapshot::of(&lab.home)];
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    lab.home.down();
    lab.vps.down();
    for (host, before) in [&lab.vps, &lab.home].into_iter().zip(&before) {
        before.assert_same(&Snapshot::of(host), host.name);
    }
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("as before"), ISP);
}

#[test]
fn down_after_kill_9_leaves_nothing() {
    let lab = Lab::new();
    let before = [Snapshot::of(&lab.vps), Snapshot::of(&lab.home)];
    lab.start();
    for host in [&lab.vps, &lab.home] {
        host.end(Signal::SIGKILL);
        // wg(8) leaves a dead program's socket too; meshd down takes its own.
        host.down();
    }
    for (host, before) in [&lab.vps, &lab.home].into_iter().zip(&before) {
        before.assert_same(&Snapshot::of(host), host.name);
    }
    lab.start();
    assert!(lab.nextcloud.ping(PROXY), "and it starts again");
}

#[test]
fn plan_changes_nothing_and_is_empty_when_all_is_applied() {
    let lab = Lab::up();
    let before = Snapshot::of(&lab.home);
    let plan: Value = serde_json::from_str(&lab.home.meshd(&["plan", "--json"])).expect("JSON");
    assert_eq!(plan["changes"], json!([]));
    lab.home.replace("meshd.toml", "egress = \"vps\"", "egress = \"none\"");
    let plan: Value = serde_json::from_str(&lab.home.meshd(&["plan", "--json"])).expect("JSON");
    assert_ne!(plan["changes"], json!([]));
    let text = lab.home.meshd(&["plan"]);
    assert!(text.contains("ip ") || text.contains("nft "), "as a person would type it: {text}");
    before.assert_same(&Snapshot::of(&lab.home), "plan changes nothing");
}

/// A peer file of a new key, as text.
fn laptop(host: &Host) -> String {
    let key = host.run("wg genkey | wg pubkey").trim().to_owned();
    format!("public_key = \"{key}\"\naddresses = [\"10.88.0.7\", \"fd88::7\"]\nsubnets = [\"10.89.7.0/24\"]\n")
}

#[test]
fn reload_loses_no_packet_of_an_unchanged_session() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let mut ping = Ping::start(&lab.nextcloud, PROXY, "-c 2500 -i 0.002 -W 2");
    let mut rounds = 0;
    while ping.runs() && rounds < 8 {
        lab.vps.write("peers/laptop.toml", &laptop(&lab.vps));
        lab.vps.meshd(&["reload"]);
        assert_eq!(lab.vps.peer("laptop")["subnets"], json!(["10.89.7.0/24"]));
        assert!(lab.vps.run("ip route").contains("10.89.7.0/24 dev mesh0"));
        fs::remove_file(lab.vps.config("peers/laptop.toml")).expect("remove");
        lab.vps.meshd(&["reload"]);
        let status = lab.vps.status();
        assert_eq!(status["peers"].as_array().map(Vec::len), Some(2), "{status}");
        assert!(!lab.vps.run("ip route").contains("10.89.7.0/24"));
        rounds += 1;
    }
    assert!(rounds > 1, "the reloads took longer than the flood");
    let pinged = ping.finish();
    assert_eq!(pinged.lost(), 0, "{pinged:?}");
}

#[test]
fn sighup_reloads_and_survives_a_bad_file() {
    let lab = Lab::up();
    let peers = || lab.vps.status()["peers"].as_array().map_or(0, Vec::len);
    lab.vps.write("peers/laptop.toml", &laptop(&lab.vps));
    lab.vps.signal(Signal::SIGHUP);
    wait_for("SIGHUP reloads", secs(5), || (peers() == 3).then_some(()));

    let line = lab.vps.append("peers/laptop.toml", "colour = \"red\"");
    fs::remove_file(lab.vps.config("peers/phone.toml")).expect("remove");
    lab.vps.signal(Signal::SIGHUP);
    let named = format!("laptop.toml:{line}");
    wait_for("the log names the line", secs(5), || lab.vps.log().contains(&named).then_some(()));
    assert_eq!(peers(), 3, "a refused reload applies nothing");
    assert!(lab.nextcloud.ping(PROXY));
}

/// The parts of the status that no packet changes.
fn settings(host: &Host) -> Value {
    let mut status = host.status();
    for peer in status["peers"].as_array_mut().expect("peers") {
        for volatile in ["latest_handshake", "rx_bytes", "tx_bytes", "state"] {
            peer.as_object_mut().expect("a peer").remove(volatile);
        }
    }
    status
}

#[test]
fn refused_reloads_name_the_line_and_change_nothing() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let (status, kernel) = (settings(&lab.vps), Snapshot::of(&lab.vps));
    let own_key = format!("public_key = \"{}\"", lab.vps.public_key());
    let home_key = format!("public_key = \"{}\"", lab.home.public_key());
    // The file, the text in it, what it becomes, the line that must be named, and a word of the reason.
    let faults: &[(&str, &str, &str, usize, &str)] = &[
        ("peers/home.toml", "subnets =", "subnet =", 4, "subnet"),
        ("peers/home.toml", "addresses = [", "addresses = = [", 3, ""),
        ("peers/home.toml", "10.89.2.0/24", "10.89.1.128/25", 4, "10.89.1"),
        ("peers/home.toml", &home_key, &own_key, 2, "key"),
        ("peers/home.toml", &home_key, "public_key = \"AAAA\"", 2, "key"),
        ("peers/phone.toml", "10.88.0.3", "10.99.0.3", 3, "10.99.0.3"),
        ("meshd.toml", "peers = [\"home\", \"phone\"]", "peers = [\"home\", \"fone\"]", 10, "fone"),
        ("meshd.toml", "name = \"vps\"", "nam = \"vps\"", 1, "nam"),
    ];
    for (file, from, to, line, why) in faults {
        let good = lab.vps.read(file);
        lab.vps.replace(file, from, to);
        let stderr = lab.vps.meshd_fails(4, &["reload"]);
        let name = file.rsplit('/').next().expect("a name");
        assert!(stderr.contains(&format!("{name}:{line}")), "{file} with {to:?}: no line {line} in {stderr}");
        assert!(stderr.contains(why), "{file} with {to:?}: no {why:?} in {stderr}");
        assert_eq!(settings(&lab.vps), status, "{file} with {to:?}");
        lab.vps.write(file, &good);
    }
    kernel.assert_same(&Snapshot::of(&lab.vps), "after refused reloads");
    assert!(lab.nextcloud.ping(PROXY));
    lab.vps.meshd(&["reload"]);
}

#[test]
fn an_invalid_configuration_does_not_start() {
    let lab = Lab::new();
    let before = Snapshot::of(&lab.home);
    let line = lab.home.append("meshd.toml", "colour = \"red\"");
    for args in [&["up"][..], &["up", "--detach"]] {
        let stderr = lab.home.meshd_fails(4, args);
        assert!(stderr.contains(&format!("meshd.toml:{line}")) && stderr.contains("colour"), "{stderr}");
    }
    assert!(lab.home.agent().is_none());
    before.assert_same(&Snapshot::of(&lab.home), "nothing is applied");
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let lab = Lab::new();
    let key = lab.home.config("private.key");
    for mode in [0o644, 0o640, 0o604] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("chmod");
        let stderr = lab.home.meshd_fails(4, &["up", "--detach"]);
        assert!(stderr.contains("private.key") && stderr.contains("chmod"), "{stderr}");
        assert!(!stderr.contains(lab.home.read("private.key").trim()), "the key itself must not be printed");
        assert!(lab.home.agent().is_none());
    }
    let elsewhere = lab.path("elsewhere.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::rename(&key, &elsewhere).expect("rename");
    symlink(&elsewhere, &key).expect("symlink");
    lab.home.meshd_fails(4, &["up", "--detach"]);
    fs::rename(&elsewhere, &key).expect("rename");
    lab.home.up();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    lab.home.meshd_fails(4, &["reload"]);
    assert_eq!(lab.home.status()["name"], "home", "the agent goes on with what it has");
}

#[test]
fn two_agents_do_not_share_a_host_by_accident() {
    let lab = Lab::up();
    let stderr = lab.home.meshd_fails(1, &["up", "--detach"]);
    assert!(stderr.contains("running"), "{stderr}");
    assert!(lab.nextcloud.ping(PROXY), "the first goes on");
}

#[test]
fn without_an_agent_commands_say_so() {
    let lab = Lab::new();
    for args in [&["status"][..], &["status", "--json"], &["reload"]] {
        let stderr = lab.home.meshd_fails(3, args);
        assert!(stderr.contains("try: "), "{stderr}");
    }
}

/// Nanoseconds that all threads of the agent have run.
fn runtime(host: &Host) -> Duration {
    let pid = host.agent().expect("a running agent");
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let nanos = tasks.flatten().map(|task| {
        let stat = fs::read_to_string(task.path().join("schedstat")).expect("schedstat");
        stat.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).expect("nanoseconds")
    });
    Duration::from_nanos(nanos.sum())
}

#[test]
fn an_idle_agent_uses_less_than_two_thousandths_of_a_core() {
    let lab = Lab::release();
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    let hosts = [&lab.vps, &lab.home];
    let (before, start) = (hosts.map(runtime), std::time::Instant::now());
    std::thread::sleep(secs(12));
    let elapsed = start.elapsed();
    for (host, before) in hosts.into_iter().zip(before) {
        let used = runtime(host).saturating_sub(before);
        assert!(used < elapsed / 500, "{} used {used:?} in {elapsed:?}", host.name);
    }
}

#[test]
fn a_busy_agent_stays_under_32_mib() {
    let lab = Lab::release();
    lab.start();
    transfer(&lab.nextcloud, &lab.proxy, PROXY, 100);
    transfer(&lab.proxy, &lab.nextcloud, NEXTCLOUD, 100);
    for host in [&lab.vps, &lab.home] {
        let pid = host.agent().expect("a running agent");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(kib < 32 << 10, "{}: {kib} KiB at its peak", host.name);
    }
}

#[test]
fn no_log_level_tells_a_secret() {
    const PSK: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
    let lab = Lab::new();
    lab.home.append("peers/vps.toml", &format!("preshared_key = \"{PSK}\""));
    lab.vps.append("peers/home.toml", &format!("preshared_key = \"{PSK}\""));
    let logs = [&lab.vps, &lab.home].map(|host| {
        let path = lab.path(host.name).join("trace.log");
        let file = fs::File::create(&path).expect("a log file");
        let mut up = host.meshd_command(&["up"]);
        up.env("MESHD_LOG", "trace").stdout(file.try_clone().expect("dup")).stderr(file);
        drop(up.spawn().expect("meshd"));
        path
    });
    let mut everything = Vec::new();
    for host in [&lab.vps, &lab.home] {
        wait_for("the agent answers", secs(10), || host.try_meshd(&["status"]).status.success().then_some(()));
    }
    transfer(&lab.nextcloud, &lab.proxy, PROXY, 1);
    for host in [&lab.vps, &lab.home] {
        host.run("wg showconf mesh0");
        everything.extend(host.try_meshd(&["status", "--json"]).stdout);
        everything.extend(host.try_meshd(&["status"]).stdout);
        everything.extend(host.try_meshd(&["plan", "--json"]).stdout);
        host.append("meshd.toml", "colour = \"red\"");
        everything.extend(host.try_meshd(&["reload"]).stderr);
        host.end(Signal::SIGTERM);
    }
    for log in logs {
        let log = fs::read(log).expect("the log");
        assert!(log.split(|&byte| byte == b'\n').count() > 20, "trace must say something");
        everything.extend(log);
    }
    let lower = everything.to_ascii_lowercase();
    let contains = |haystack: &[u8], needle: &[u8]| haystack.windows(needle.len()).any(|window| window == needle);
    for secret in [lab.vps.read("private.key"), lab.home.read("private.key"), PSK.to_owned()] {
        let secret = secret.trim();
        let raw = lab.home.run(&format!("echo {secret} | base64 -d | od -An -v -tx1")).replace([' ', '\n'], "");
        let bytes: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&raw[2 * i..2 * i + 2], 16).expect("hexadecimal")).collect();
        assert!(!contains(&everything, secret.as_bytes()), "a secret in base64");
        assert!(!contains(&everything, secret.trim_end_matches('=').as_bytes()), "a secret in base64");
        assert!(!contains(&lower, raw.as_bytes()), "a secret in hexadecimal");
        assert!(!contains(&everything, &bytes), "a secret as it is");
        assert!(
            !contains(&everything, format!("{bytes:?}").trim_matches(['[', ']']).as_bytes()),
            "a secret in decimal"
        );
    }
}

#[test]
fn the_control_socket_obeys_root_only() {
    let lab = Lab::up();
    // The lab's folder is closed to others; it must not be what protects the socket.
    for dir in [lab.path(""), lab.path("home"), lab.path("home/run")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    fs::set_permissions(lab.path("home/etc/private.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let meta = fs::metadata(lab.home.run_file("control.sock")).expect("a control socket");
    assert_eq!(meta.mode() & 0o777, 0o660);

    let binary = lab.path("meshd");
    fs::copy(env!("CARGO_BIN_EXE_meshd"), &binary).expect("a copy that others may run");
    let as_nobody = |gid: u32, args: &str| {
        lab.home.try_run(&format!(
            "MESHD_DIR={0}/etc MESHD_RUN_DIR={0}/run MESHD_STATE_DIR={0}/state \
             setpriv --reuid 65534 --regid {gid} --clear-groups {1} {args}",
            lab.path("home").display(),
            binary.display(),
        ))
    };
    for args in ["status", "reload", "down"] {
        let output = as_nobody(65534, args);
        assert_eq!(output.status.code(), Some(4), "a stranger's {args}: {}", describe(&output));
    }
    let output = as_nobody(meta.gid(), "status");
    assert!(output.status.success(), "the group may read: {}", describe(&output));
    for args in ["reload", "down"] {
        let output = as_nobody(meta.gid(), args);
        assert_eq!(output.status.code(), Some(4), "the group's {args}: {}", describe(&output));
    }
    assert!(lab.home.agent().is_some());
    assert!(lab.nextcloud.ping(PROXY));
    let uapi = lab.home.run("stat -c %a /run/wireguard/mesh0.sock");
    assert!(["600", "700", "660"].contains(&uapi.trim()), "wg's socket holds the private key: {uapi}");
}

#[test]
fn runs_in_the_foreground_until_interrupted() {
    let lab = Lab::new();
    let before = Snapshot::of(&lab.home);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut up = lab.home.meshd_command(&["up"]);
        let mut child = up.stderr(Stdio::null()).spawn().expect("meshd");
        wait_for("the agent answers", secs(10), || lab.home.try_meshd(&["status"]).status.success().then_some(()));
        lab.home.signal(signal);
        let status = child.wait().expect("wait");
        assert_eq!(status.code(), Some(0), "{signal} is an orderly end");
        assert!(!lab.home.run("ip link").contains("mesh0"), "the interface goes with the process");
    }
    lab.home.down();
    before.assert_same(&Snapshot::of(&lab.home), "down after an orderly end");
}

#[test]
fn a_bridge_may_come_later() {
    let lab = Lab::new();
    lab.home.run("ip link set br0 down && ip link set nextcloud nomaster && ip link delete br0");
    lab.start();
    assert!(lab.home.ping("10.88.0.1"));
    lab.home.run(
        "ip link add br0 type bridge mcast_snooping 0 && ip link set nextcloud master br0 && ip link set br0 up && \
         ip address add 10.89.2.1/24 dev br0 && ip address add fd89:2::1/64 dev br0 nodad",
    );
    wait_for("the bridge is bound", secs(5), || lab.nextcloud.ping(PROXY).then_some(()));
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
}

#[test]
fn a_deleted_interface_is_made_again() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    let handshake = lab.home.peer("vps")["latest_handshake"].clone();
    let pid = lab.home.agent();
    lab.home.run("ip link del mesh0");
    wait_for("the interface is back", secs(5), || lab.nextcloud.ping(PROXY).then_some(()));
    assert_eq!(lab.home.agent(), pid);
    assert_eq!(lab.home.peer("vps")["latest_handshake"], handshake, "the session stays");
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
}
