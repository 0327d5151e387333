//! How fast one TCP stream is, beside gotatun in the same run. Runs alone: see `.config/nextest.toml`.

mod lab;

use std::process::{Command, Stdio};

use serde_json::Value;

#[test]
fn one_stream_is_at_least_twice_gotatun() {
    let output = Command::new(lab::root().join("scripts/bench"))
        .args(["--json", "--seconds", "2", "--rounds", "3", "gotatun", "meshd"])
        .env("MESHD_RELEASE_BIN", lab::release_binary())
        .stderr(Stdio::inherit())
        .output()
        .expect("scripts/bench");
    assert!(output.status.success(), "scripts/bench: {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("{report:#}");
    for direction in ["forward", "reverse"] {
        let [gotatun, meshd] = [0, 1].map(|row: usize| report[row][direction].as_f64().expect("Gbit/s"));
        assert!(meshd >= 2.0 * gotatun, "{direction}: meshd {meshd}, gotatun {gotatun} Gbit/s");
    }
}
