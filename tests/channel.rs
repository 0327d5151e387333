//! Agents that talk to each other: `meshd bench` between real agents, and with others who are none.

mod lab;

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use lab::capture::Capture;
use lab::host::describe;
use lab::other::Other;
use lab::traffic::Ping;
use lab::{Lab, secs, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Bits a second of the lab's limited path.
const LIMIT: f64 = 50e6;

/// A lab whose agents have a session, behind a router of 50 Mbit/s each way.
fn limited() -> Lab {
    let lab = Lab::up();
    for interface in ["wan", "lan"] {
        lab.isp.run(&format!("tc qdisc add dev {interface} root tbf rate 50mbit burst 32kb latency 40ms"));
    }
    assert!(lab.home.ping("10.88.0.1"));
    lab
}

fn failed(output: &Output, code: i32, error: &str, remedy: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}", describe(output));
    assert!(output.stdout.is_empty(), "{}", describe(output));
    let mut lines = stderr.lines();
    assert_eq!(lines.next(), Some(format!("meshd: bench: {error}").as_str()), "{stderr}");
    let tried = lines.next().unwrap_or_default();
    assert!(tried.starts_with("try: ") && tried.contains(remedy), "{stderr}");
    assert_eq!(lines.next(), None, "{stderr}");
}

#[test]
fn a_limited_path_is_measured_and_named() {
    let lab = limited();
    let capture = Capture::start(&lab.nextcloud, "eth0", b"");
    let begin = Instant::now();
    let report: Value = serde_json::from_str(&lab.home.meshd(&["bench", "vps", "--json"])).expect("JSON");
    assert!(begin.elapsed() < secs(30), "{:?}", begin.elapsed());
    println!("{report:#}");
    assert_eq!((&report["peer"], &report["seconds"]), (&"vps".into(), &3.into()));
    assert_eq!(report["endpoint"], "203.0.113.10:51820");
    for route in ["tunnel", "ordinary", "bare"] {
        let path = if route == "bare" { "bare" } else { "tunnel" };
        let idle = report["idle"][path]["median_us"].as_f64().expect("an idle latency");
        for direction in ["to_peer", "from_peer"] {
            let run = &report[route][direction];
            let rate = run["flow"]["bits_per_second"].as_f64().expect("a rate") / LIMIT;
            assert!((0.7..1.05).contains(&rate), "{route} {direction}: {rate} of the path's rate");
            let loss = run["flow"]["loss"].as_f64().expect("a loss");
            assert!(loss < 0.1, "{route} {direction}: {loss} lost");
            let loaded = run["latency"]["median_us"].as_f64().expect("a latency under load");
            assert!(loaded > idle, "{route} {direction}: {loaded} µs under load, {idle} µs idle");
            for side in ["cpu_here", "cpu_there"] {
                assert!(run[side]["agent"].as_f64().is_some_and(|cpu| cpu > 0.0), "{route} {direction} {side}");
            }
            assert_eq!(report["bottleneck"][direction], "path");
        }
    }
    let verdict = report["verdict"].as_str().expect("a verdict");
    assert!(verdict.starts_with("limited by the path: ") && !verdict.contains('\n'), "{verdict}");
    let logged = lab.vps.log();
    assert_eq!(logged.lines().filter(|line| line.contains("a peer measures")).count(), 7, "{logged}");
    // Nothing of it goes where containers are.
    assert_eq!(capture.finish().leaks, std::collections::BTreeMap::default());
}

#[test]
fn all_agents_are_measured_and_people_get_a_page() {
    let lab = Lab::up();
    // The phone of the VPS is no agent and was never heard of.
    let page = lab.vps.meshd(&["bench", "--seconds", "1"]);
    println!("{page}");
    assert!(page.starts_with("home at 198.51.100.7:"), "{page}");
    assert!(page.contains("\naes, sending ") && page.contains("\nchacha, receiving "), "{page}");
    assert!(page.contains("limited ") && page.lines().all(|line| line.chars().count() <= 80), "{page}");
    let reports: Value = serde_json::from_str(&lab.vps.meshd(&["bench", "--seconds", "1", "--json"])).expect("JSON");
    assert_eq!(reports.as_array().expect("a list").len(), 1);
    assert!(reports[0]["tunnel"]["to_peer"]["flow"]["bits_per_second"].as_f64().expect("a rate") > 10e6);
}

#[test]
fn other_traffic_survives_a_measurement() {
    let lab = limited();
    let ping = Ping::start(&lab.nextcloud, lab::PROXY, "-c 60 -i 0.1 -W 2");
    lab.home.meshd(&["bench", "vps", "--seconds", "1"]);
    let pinged = ping.finish();
    assert!(pinged.lost() <= 6, "{pinged:?}");
}

#[test]
fn who_cannot_answer_is_told_from_who_is_not_there() {
    let lab = Lab::new();
    failed(&lab.home.try_meshd(&["bench", "vps"]), 3, "the agent is not running", "meshd up");
    lab.home.up();
    let unknown = lab.home.try_meshd(&["bench", "nobody"]);
    failed(&unknown, 1, "peer \"nobody\": no such peer; peers are: vps", "meshd peer list");
    let silent = lab.home.try_meshd(&["bench", "vps"]);
    failed(&silent, 1, "peer vps: no session: its handshake is not answered", "its UDP port is open");
    let none = lab.home.try_meshd(&["bench"]);
    failed(&none, 1, "no peer is a meshd agent that can be reached: vps", "meshd bench PEER");
    lab.vps.up();
    let phone = lab.vps.try_meshd(&["bench", "phone"]);
    let never = "peer phone: its endpoint is not known, and it was never heard of";
    failed(&phone, 1, never, "write an endpoint into its file");
    let usage = lab.home.meshd_fails(2, &["bench", "vps", "--seconds", "11"]);
    assert!(usage.contains("--seconds"), "{usage}");
}

fn stock(other: Other) {
    let lab = Lab::new();
    other.start(&lab.vps, &lab.home, "");
    lab.home.up();
    assert!(lab.home.ping("10.88.0.1"));
    let output = lab.home.try_meshd(&["bench", "vps"]);
    let remedy = "a stock WireGuard peer cannot answer; measure with iperf3 instead";
    failed(&output, 1, "peer vps: no meshd agent answers", remedy);
    assert!(lab.home.ping("10.88.0.1"), "the tunnel goes on");
}

#[test]
fn wireguard_go_is_no_agent() {
    stock(Other::WireguardGo);
}

#[test]
fn boringtun_is_no_agent() {
    stock(Other::Boringtun);
}

/// What the VPS has sent, in bytes of UDP payload.
fn sent(lab: &Lab) -> u64 {
    lab.vps.peer("home")["tx_bytes"].as_u64().expect("a number")
}

#[test]
fn it_ends_on_both_sides_when_it_is_interrupted() {
    let lab = limited();
    let bench = lab.home.meshd_command(&["bench", "vps", "--seconds", "10"]);
    let mut bench = { bench }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshd");
    // The second run with load is the one in which the VPS sends.
    let before = sent(&lab);
    wait_for("the VPS sends", secs(20), || (sent(&lab) > before + 1_000_000).then_some(()));
    let busy = lab.vps.try_meshd(&["bench", "home"]);
    failed(&busy, 1, "this host takes part in another measurement", "in a minute");
    kill(Pid::from_raw(bench.id().cast_signed()), Signal::SIGINT).expect("kill");
    bench.wait().expect("wait");
    wait_for("the VPS falls silent", secs(2), || {
        let before = sent(&lab);
        std::thread::sleep(Duration::from_millis(300));
        (sent(&lab) < before + 10_000).then_some(())
    });
    // Both sides are free again at once.
    wait_for("the VPS may measure", secs(5), || {
        lab.vps.try_meshd(&["bench", "home", "--seconds", "1"]).status.success().then_some(())
    });
}

#[test]
fn an_agent_that_goes_away_is_missed() {
    let lab = limited();
    let bench = lab.home.meshd_command(&["bench", "vps"]);
    let bench = { bench }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshd");
    wait_for("a run has begun", secs(10), || lab.vps.log().contains("to here by the tunnel").then_some(()));
    lab.vps.end(Signal::SIGKILL);
    let output = bench.wait_with_output().expect("meshd");
    failed(&output, 1, "peer vps: its agent went away while it was measured", "meshd status");
    lab.home.down();
}

#[test]
fn load_ends_in_time_when_the_asker_is_killed() {
    let lab = limited();
    let bench = lab.home.meshd_command(&["bench", "vps"]);
    let mut bench = { bench }.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("meshd");
    let before = sent(&lab);
    wait_for("the VPS sends", secs(20), || (sent(&lab) > before + 1_000_000).then_some(()));
    lab.home.end(Signal::SIGKILL);
    bench.wait().expect("wait");
    wait_for("the VPS falls silent", secs(4), || {
        let before = sent(&lab);
        std::thread::sleep(Duration::from_millis(300));
        (sent(&lab) == before).then_some(())
    });
}

#[test]
fn it_ends_with_its_agent() {
    let lab = limited();
    let bench = lab.home.meshd_command(&["bench", "vps"]);
    let bench = { bench }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("meshd");
    wait_for("a run has begun", secs(10), || lab.vps.log().contains("to here by the tunnel").then_some(()));
    let begin = Instant::now();
    lab.home.down();
    assert!(begin.elapsed() < secs(4), "{:?}", begin.elapsed());
    let output = bench.wait_with_output().expect("meshd");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.as_ref()), (Some(1), "meshd: bench: the agent ends\n"));
}
