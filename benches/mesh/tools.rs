//! iperf3 and ping between the hosts of a pair.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::Failure;
use crate::experiment::Load;
use crate::pair::Pair;

/// A running iperf3 between home and the VPS.
pub struct Iperf {
    client: Option<Child>,
    server: Child,
}

impl Iperf {
    /// Starts a server on the VPS and a client at home. Every call that runs beside others needs a port of its own.
    pub fn start(pair: &Pair, six: bool, port: u16, load: &Load, flags: &str) -> Result<Self, Failure> {
        let port = port.to_string();
        // Nothing of it may outlive a tunnel that swallowed the end of the test: iperf3 would wait for minutes.
        let limit = (load.seconds + 8).to_string();
        let server = ["--preserve-status", &limit, "iperf3", "-s", "-1", "-p", &port, "--forceflush"];
        let mut server = pair
            .vps
            .command("timeout")
            .args(server)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("iperf3: {e}"))?;
        let said = BufReader::new(server.stdout.take().ok_or("iperf3: no output")?).lines();
        let listens = said.map_while(Result::ok).any(|line| line.contains("listening"));
        let mut iperf = Self { client: None, server };
        if !listens {
            return Err("iperf3 does not listen".to_owned());
        }
        let seconds = load.seconds.to_string();
        let target = pair.target(six);
        let mut client = pair.home.command("timeout");
        client.args([&limit, "iperf3", "-J", "--connect-timeout", "3000", "-t", &seconds, "-p", &port, "-c", &target]);
        client.args(flags.split_whitespace());
        if let Some(congestion) = load.congestion.as_ref().filter(|_| !flags.contains("-u")) {
            client.args(["-C", congestion]);
        }
        client.stdout(Stdio::piped()).stderr(Stdio::null());
        iperf.client = Some(client.spawn().map_err(|e| format!("iperf3: {e}"))?);
        Ok(iperf)
    }

    /// Waits for the end; returns the `end` of its report.
    pub fn finish(mut self) -> Result<Value, Failure> {
        let client = self.client.take().ok_or("iperf3: no client")?;
        let output = client.wait_with_output().map_err(|e| format!("iperf3: {e}"))?;
        let mut report: Value = serde_json::from_slice(&output.stdout).map_err(|_| "iperf3 did not end".to_owned())?;
        match report["error"].as_str() {
            Some(error) => Err(format!("iperf3: {error}")),
            None => Ok(report["end"].take()),
        }
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        for child in self.client.iter_mut().chain([&mut self.server]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One iperf3 to its end.
pub fn iperf(pair: &Pair, six: bool, load: &Load, flags: &str) -> Result<Value, Failure> {
    Iperf::start(pair, six, 5201, load, flags)?.finish()
}

/// A number of an iperf3 report, by its JSON pointer.
pub fn number(report: &Value, pointer: &str) -> Result<f64, Failure> {
    report.pointer(pointer).and_then(Value::as_f64).ok_or_else(|| format!("iperf3 reports no {pointer}"))
}

/// Median and 99th percentile of this many round trips, at most 3,000, in microseconds. One that was lost counts as a second.
pub fn ping(pair: &Pair, count: u32, interval: &str) -> Result<[f64; 2], Failure> {
    let (target, count) = (pair.target(false), count.min(3000));
    // ping(8) fails when nothing at all is answered.
    let said = pair.home.run("ping", &["-n", "-i", interval, "-c", &count.to_string(), "-W", "1", &target])?;
    let times = said.split("time=").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let mut times: Vec<_> = times.map(|milliseconds| milliseconds * 1000.0).collect();
    times.resize(count as usize, 1e6);
    times.sort_by(f64::total_cmp);
    Ok([50, 99].map(|percent| times[(times.len() * percent / 100).min(times.len() - 1)]))
}
