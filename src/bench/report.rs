//! What a measurement found, and what it means. The field names are those of `meshd bench --json`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a side's CPUs did during a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// CPUs that the agent kept busy: 1.5 is one and a half.
    pub agent: f64,
    /// How much of the time the agent's busiest thread ran or waited for a CPU, from 0 to 1. At 1 it limits the tunnel
    /// however many CPUs there are.
    pub thread: f64,
    /// How busy all CPUs of the machine were, from 0 to 1.
    pub machine: f64,
}

/// Load that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// In the tunnel of its IP packets, beside it of UDP payload of the same sealed length.
    pub bits_per_second: u64,
    /// How many it is computed of.
    pub packets: u64,
    /// Part of what was sent, from 0 to 1.
    pub loss: f64,
}

/// Round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Echoes sent.
    pub sent: u32,
    /// Of these never came back.
    pub lost: u32,
    /// Microseconds.
    pub median_us: u32,
    /// Microseconds.
    pub p99_us: u32,
}

/// One run with load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What arrived; `None` when nearly nothing did.
    pub flow: Option<Flow>,
    /// Round trips beside the load.
    pub latency: Option<Latency>,
    /// Of the host that asked.
    pub cpu_here: Cpu,
    /// Of the peer.
    pub cpu_there: Cpu,
}

/// A run in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Both<T> {
    /// From the host that asked.
    pub to_peer: T,
    /// To the host that asked.
    pub from_peer: T,
}

/// Round trips without load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Through the tunnel.
    pub tunnel: Option<Latency>,
    /// Beside it.
    pub bare: Option<Latency>,
}

/// What limits the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// What lies between the two hosts.
    Path,
    /// The CPU of the host that asked.
    CpuHere,
    /// The CPU of the peer.
    CpuThere,
}

/// One peer of `meshd bench --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub peer: String,
    /// Where it was measured.
    pub endpoint: SocketAddr,
    /// Of each run with load.
    pub seconds: u32,
    /// Without load.
    pub idle: Idle,
    /// Through the tunnel.
    pub tunnel: Both<Measured>,
    /// Through the tunnel under WireGuard's own session, when `tunnel` is what express keys carried. Agents before those
    /// know nothing of it.
    #[serde(default)]
    pub ordinary: Option<Both<Measured>>,
    /// Plain UDP between the same two sockets.
    pub bare: Both<Measured>,
    /// What limits the tunnel.
    pub bottleneck: Both<Bottleneck>,
    /// The same in one line for people.
    pub verdict: String,
}

/// From here on the tunnel is as fast as the path: 1420 of 1452 bytes are what its packets carry, and the rest is what
/// two runs differ by.
const AS_FAST: f64 = 0.9;
/// From here on a thread does nothing else, when there is no bare path to compare with.
const SATURATED: f64 = 0.8;

impl Report {
    /// Compares the runs.
    pub fn new(
        peer: String,
        endpoint: SocketAddr,
        seconds: u32,
        idle: Idle,
        tunnel: Both<Measured>,
        ordinary: Option<Both<Measured>>,
        bare: Both<Measured>,
    ) -> Self {
        let bottleneck = Both {
            to_peer: bottleneck(&tunnel.to_peer, &bare.to_peer),
            from_peer: bottleneck(&tunnel.from_peer, &bare.from_peer),
        };
        let shares = Both {
            to_peer: share(&tunnel.to_peer, &bare.to_peer),
            from_peer: share(&tunnel.from_peer, &bare.from_peer),
        };
        let verdict = verdict(&peer, bottleneck, &shares);
        Self { peer, endpoint, seconds, idle, tunnel, ordinary, bare, bottleneck, verdict }
    }
}

/// How fast the tunnel is beside the bare path.
fn ratio(tunnel: &Measured, bare: &Measured) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "a ratio")]
    let rate = |measured: &Measured| measured.flow.map(|flow| flow.bits_per_second as f64);
    Some(rate(tunnel).unwrap_or_default() / rate(bare).filter(|&rate| rate > 0.0)?)
}

fn bottleneck(tunnel: &Measured, bare: &Measured) -> Bottleneck {
    let busy = |cpu: &Cpu| cpu.thread;
    let (here, there) = (busy(&tunnel.cpu_here), busy(&tunnel.cpu_there));
    let cpu_limits = match ratio(tunnel, bare) {
        Some(ratio) => ratio < AS_FAST && here.max(there) >= SATURATED / 2.0,
        None => here.max(there) >= SATURATED,
    };
    match cpu_limits {
        false => Bottleneck::Path,
        true if here >= there => Bottleneck::CpuHere,
        true => Bottleneck::CpuThere,
    }
}

fn limit(bottleneck: Bottleneck, peer: &str) -> String {
    match bottleneck {
        Bottleneck::Path => "the path".to_owned(),
        Bottleneck::CpuHere => "the CPU of this host".to_owned(),
        Bottleneck::CpuThere => format!("the CPU of {peer}"),
    }
}

/// How fast the tunnel is beside the bare path, in words.
fn share(tunnel: &Measured, bare: &Measured) -> String {
    match (tunnel.flow, ratio(tunnel, bare)) {
        (None, _) => "nothing arrived".to_owned(),
        (Some(_), Some(ratio)) => format!("{:.0}% of the bare rate", ratio * 100.0),
        (Some(_), None) => "no bare path to compare with".to_owned(),
    }
}

fn verdict(peer: &str, bottleneck: Both<Bottleneck>, shares: &Both<String>) -> String {
    let (to, from) = (limit(bottleneck.to_peer, peer), limit(bottleneck.from_peer, peer));
    if to == from {
        return format!("limited by {to}: {} to {peer}, {} from it", shares.to_peer, shares.from_peer);
    }
    format!("to {peer} limited by {to}: {}; from it by {from}: {}", shares.to_peer, shares.from_peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(mbits: u64, here: f64, there: f64) -> Measured {
        let cpu = |thread| Cpu { agent: 1.0, thread, machine: 1.0 };
        let flow = (mbits > 0).then_some(Flow { bits_per_second: mbits * 1_000_000, packets: 1, loss: 0.0 });
        Measured { flow, latency: None, cpu_here: cpu(here), cpu_there: cpu(there) }
    }

    #[test]
    fn the_bottleneck_is_the_path_unless_the_tunnel_is_slower_and_a_side_is_busy() {
        for (tunnel, bare, expected) in [
            (measured(48, 0.1, 0.2), measured(49, 0.1, 0.1), Bottleneck::Path),
            (measured(980, 1.0, 0.9), measured(1000, 0.5, 0.5), Bottleneck::Path),
            (measured(3000, 0.99, 0.7), measured(9000, 1.0, 1.0), Bottleneck::CpuHere),
            (measured(3000, 0.7, 0.95), measured(9000, 1.0, 1.0), Bottleneck::CpuThere),
            // Slower, and yet both sides idle: something on the way treats the tunnel worse.
            (measured(10, 0.1, 0.1), measured(100, 0.2, 0.2), Bottleneck::Path),
            // Bare datagrams do not get through.
            (measured(3000, 0.5, 0.95), measured(0, 0.0, 0.0), Bottleneck::CpuThere),
            (measured(50, 0.2, 0.3), measured(0, 0.0, 0.0), Bottleneck::Path),
        ] {
            assert_eq!(bottleneck(&tunnel, &bare), expected, "{tunnel:?} beside {bare:?}");
        }
    }

    #[test]
    fn the_verdict_is_one_line() {
        let report = |to_peer, from_peer| {
            let bare = Both { to_peer: measured(100, 0.0, 0.0), from_peer: measured(100, 0.0, 0.0) };
            let idle = Idle { tunnel: None, bare: None };
            let endpoint = ([192, 0, 2, 1], 51820).into();
            Report::new("vps".to_owned(), endpoint, 3, idle, Both { to_peer, from_peer }, None, bare).verdict
        };
        assert_eq!(
            report(measured(98, 0.1, 0.1), measured(97, 0.1, 0.1)),
            "limited by the path: 98% of the bare rate to vps, 97% of the bare rate from it"
        );
        assert_eq!(
            report(measured(98, 0.1, 0.1), measured(30, 0.5, 0.9)),
            "to vps limited by the path: 98% of the bare rate; from it by the CPU of vps: 30% of the bare rate"
        );
        assert_eq!(
            report(measured(0, 0.1, 0.1), measured(30, 0.9, 0.5)),
            "to vps limited by the path: nothing arrived; from it by the CPU of this host: 30% of the bare rate"
        );
    }
}
