//! How fast meshd is beside gotatun in the same run, by `scripts/bench`. Runs alone: see `.config/nextest.toml`.

mod lab;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

#[test]
fn one_stream_is_at_least_twice_gotatun() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = one_stream_beside("gotatun", folder.path());
    for id in ["tcp", "tcp-reverse"] {
        let [gotatun, meshd] = ["gotatun", "meshd"].map(|program| median(&report, id, program));
        assert!(meshd >= 2.0 * gotatun, "{id}: meshd {meshd}, gotatun {gotatun} Gbit/s");
    }
    for file in ["bench.json", "bench.md", "throughput.svg", "throughput.png", "cost.svg", "cost.png"] {
        assert!(folder.path().join(file).exists(), "{file} is missing");
    }
}

#[test]
fn express_sessions_are_faster_and_cheaper() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = one_stream_beside("ordinary", folder.path());
    let median = |id: &str, program: &str| median(&report, id, program);
    // docs/performance.md has what they are on a quiet machine; here others may be at work.
    for id in ["tcp", "tcp-reverse"] {
        let faster = median(id, "meshd") / median(id, "ordinary");
        assert!(faster >= 1.15, "{id}: {faster} times as fast");
        for side in ["sender", "receiver"] {
            let id = format!("{id}-cpu-{side}");
            let dearer = median(&id, "meshd") / median(&id, "ordinary");
            assert!(dearer <= 0.85, "{id}: {dearer} of the processor time");
        }
    }
}

/// What `scripts/bench` says of one TCP stream each way, with meshd and another program by turns.
fn one_stream_beside(program: &str, folder: &Path) -> Value {
    let output = bench()
        .args(["--json", "--seconds", "2", "--rounds", "3", "--rows", "tcp,tcp-reverse", program, "meshd", "--output"])
        .arg(folder)
        .env("MESHD_RELEASE_BIN", lab::release_binary())
        .stderr(Stdio::inherit())
        .output()
        .expect("scripts/bench");
    assert!(output.status.success(), "scripts/bench: {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("{report:#}");
    report
}

fn median(report: &Value, id: &str, program: &str) -> f64 {
    let row = report["rows"].as_array().expect("rows").iter().find(|row| row["id"] == id).expect("the row");
    row["results"][program]["median"].as_f64().expect("a number")
}

#[test]
fn bench_explains_itself() {
    let output = bench().arg("--help").output().expect("scripts/bench");
    assert!(output.status.success(), "{}", lab::host::describe(&output));
    let help = String::from_utf8_lossy(&output.stdout);
    for word in ["scripts/bench", "--quick", "--rows", "NAME=PATH", "wireguard-go", "target/bench"] {
        assert!(help.contains(word), "no {word} in: {help}");
    }
}

#[test]
fn bench_refuses_what_it_does_not_know() {
    let refuse = |arguments: &[&str], why: &str| {
        let output: Output = bench().args(arguments).output().expect("scripts/bench");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains(why), "{arguments:?}: {error}");
    };
    refuse(&["--rows", "tcp5"], "expected one of tcp, ");
    refuse(&["strongswan"], "expected bare, wireguard-go, gotatun, boringtun, ordinary, meshd or NAME=PATH");
    refuse(&["mine=/no/such/file"], "/no/such/file: No such file");
    refuse(&["--program", "mine=x /bin/true"], "x: expected VARIABLE=VALUE");
    refuse(&["--quick", "--seconds", "9"], "cannot be used with");
    refuse(&["meshd", "--meshd", "meshd=/bin/true"], "two programs are called \"meshd\"");
    refuse(&["--rounds", "0"], "0 is not in 1..=1000");
}

fn bench() -> Command {
    Command::new(lab::root().join("scripts/bench"))
}
