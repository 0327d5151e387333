//! What is measured, and how.

use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::Failure;
use crate::pair::{Pair, Setup};
use crate::strangers;
use crate::tools::{Iperf, iperf, number, ping};

/// How long and how often, and with what.
pub struct Load {
    pub seconds: u32,
    pub rounds: u32,
    pub congestion: Option<String>,
}

/// A line of the table.
#[derive(Debug)]
pub struct Row {
    pub id: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub better: Better,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
    /// Shown without ratios: it explains other rows.
    Neither,
}

/// A value for each row of an experiment; `None` where a row means nothing without a tunnel.
pub type Values = Result<Vec<Option<f64>>, Failure>;

/// When it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// In every round.
    Main,
    /// In half of the rounds: it guards against a shortcut for what is measured in every round.
    Guard,
    /// When it is asked for.
    Asked,
}

impl Experiment {
    /// How often it is measured.
    pub fn rounds(&self, load: &Load) -> u32 {
        if self.part == Part::Guard { load.rounds.div_ceil(2) } else { load.rounds }
    }
}

/// One way of measuring; it fills one or more rows.
#[derive(Debug)]
pub struct Experiment {
    pub id: &'static str,
    /// One of [`SETUPS`].
    pub setup: &'static Setup,
    pub part: Part,
    pub rows: &'static [Row],
    pub run: fn(&Pair, &Load) -> Values,
}

static STANDARD: Setup = Setup { cable: 1500, tunnel: 1420, outer6: false, strangers: 0 };
static OUTER6: Setup = Setup { outer6: true, ..STANDARD };
static JUMBO: Setup = Setup { cable: 9000, tunnel: 8920, ..STANDARD };
// The smallest MTU of a tunnel that carries IPv6: over a path that just holds it, and over one where the tunnel's own
// datagrams have to be fragmented.
static SMALL: Setup = Setup { cable: 1340, tunnel: 1280, ..STANDARD };
static FRAGMENTED: Setup = Setup { cable: 1280, tunnel: 1280, ..STANDARD };
static SCALE: Setup = Setup { strangers: 999, ..STANDARD };

/// In the order in which they are built.
pub static SETUPS: &[&Setup] = &[&STANDARD, &OUTER6, &JUMBO, &SMALL, &FRAGMENTED, &SCALE];

const fn row(id: &'static str, title: &'static str, unit: &'static str, better: Better) -> Row {
    Row { id, title, unit, better }
}

const fn experiment(
    id: &'static str,
    setup: &'static Setup,
    rows: &'static [Row],
    run: fn(&Pair, &Load) -> Values,
) -> Experiment {
    Experiment { id, setup, part: Part::Main, rows, run }
}

/// One TCP stream forward in a setting of its own.
const fn guard(setup: &'static Setup, row: &'static [Row; 1], run: fn(&Pair, &Load) -> Values) -> Experiment {
    Experiment { part: Part::Guard, ..experiment(row[0].id, setup, row, run) }
}

use Better::{Less, More, Neither};

/// In the order of the table.
pub static EXPERIMENTS: &[Experiment] = &[
    experiment(
        "tcp",
        &STANDARD,
        &[
            row("tcp", "1 TCP stream, forward", "Gbit/s", More),
            row("tcp-cpu-sender", "  agent's CPU, sending side", "s/GB", Less),
            row("tcp-cpu-receiver", "  agent's CPU, receiving side", "s/GB", Less),
        ],
        |pair, load| tcp_with_cpu(pair, load, ""),
    ),
    experiment(
        "tcp-reverse",
        &STANDARD,
        &[
            row("tcp-reverse", "1 TCP stream, reverse", "Gbit/s", More),
            row("tcp-reverse-cpu-sender", "  agent's CPU, sending side", "s/GB", Less),
            row("tcp-reverse-cpu-receiver", "  agent's CPU, receiving side", "s/GB", Less),
        ],
        |pair, load| tcp_with_cpu(pair, load, "-R"),
    ),
    experiment("tcp4", &STANDARD, &[row("tcp4", "4 TCP streams, forward", "Gbit/s", More)], |pair, load| {
        tcp(pair, false, load, "-P 4")
    }),
    experiment(
        "tcp4-reverse",
        &STANDARD,
        &[row("tcp4-reverse", "4 TCP streams, reverse", "Gbit/s", More)],
        |pair, load| tcp(pair, false, load, "-P 4 -R"),
    ),
    experiment(
        "both",
        &STANDARD,
        &[
            row("both", "both directions at once, sum", "Gbit/s", More),
            row("both-forward", "  of it forward", "Gbit/s", Neither),
            row("both-reverse", "  of it reverse", "Gbit/s", Neither),
        ],
        both,
    ),
    experiment(
        "udp1200",
        &STANDARD,
        &[
            row("udp1200", "UDP, 1200 bytes, received", "Mbit/s", More),
            row("udp1200-packets", "  packets", "kpps", Neither),
            row("udp1200-loss", "  lost of what was sent", "%", Neither),
        ],
        |pair, load| udp(pair, load, 1200),
    ),
    experiment(
        "udp64",
        &STANDARD,
        &[
            row("udp64", "UDP, 64 bytes, received", "Mbit/s", More),
            row("udp64-packets", "  packets", "kpps", Neither),
            row("udp64-loss", "  lost of what was sent", "%", Neither),
        ],
        |pair, load| udp(pair, load, 64),
    ),
    Experiment {
        part: Part::Guard,
        ..experiment(
            "mix",
            &STANDARD,
            &[
                row("mix", "mix: 2 TCP forward, 1 reverse, 1 UDP", "Gbit/s", More),
                row("mix-loss", "  lost of 100 Mbit/s UDP", "%", Neither),
            ],
            mix,
        )
    },
    guard(&STANDARD, &[row("inner6", "1 TCP stream, IPv6 inside", "Gbit/s", More)], |pair, load| {
        tcp(pair, true, load, "")
    }),
    guard(&OUTER6, &[row("outer6", "1 TCP stream, IPv6 outside", "Gbit/s", More)], forward),
    guard(&JUMBO, &[row("jumbo", "1 TCP stream, MTU 8920", "Gbit/s", More)], forward),
    guard(&SMALL, &[row("small", "1 TCP stream, MTU 1280", "Gbit/s", More)], forward),
    guard(&FRAGMENTED, &[row("fragmented", "1 TCP stream, the same, path MTU 1280", "Gbit/s", More)], forward),
    experiment(
        "ping",
        &STANDARD,
        &[row("ping", "ping, idle, median", "µs", Less), row("ping-p99", "ping, idle, p99", "µs", Less)],
        |pair, load| Ok(ping(pair, 250 + 250 * load.seconds, "0.002")?.map(Some).to_vec()),
    ),
    experiment(
        "ping-loaded",
        &STANDARD,
        &[
            row("ping-loaded", "ping beside a TCP stream, median", "ms", Less),
            row("ping-loaded-p99", "ping beside a TCP stream, p99", "ms", Less),
        ],
        ping_loaded,
    ),
    experiment("memory", &STANDARD, &[row("memory", "resident memory after the traffic", "MiB", Less)], |pair, _| {
        memory(pair)
    }),
    Experiment {
        part: Part::Asked,
        ..experiment(
            "scale",
            &SCALE,
            &[
                row("scale", "1,000 peers: 1 TCP stream, forward", "Gbit/s", More),
                row("scale-reverse", "1,000 peers: 1 TCP stream, reverse", "Gbit/s", More),
                row("scale-memory", "1,000 peers: resident memory", "MiB", Less),
            ],
            |pair, load| Ok([tcp(pair, false, load, "")?, tcp(pair, false, load, "-R")?, memory(pair)?].concat()),
        )
    },
    Experiment {
        part: Part::Asked,
        ..experiment(
            "spread",
            &SCALE,
            &[
                row("spread-in-1", "1,000 peers: UDP from one of them", "Mbit/s", More),
                row("spread-in", "1,000 peers: UDP from 100 of them", "Mbit/s", More),
                row("spread-out-1", "1,000 peers: UDP to one of them", "Mbit/s", More),
                row("spread-out", "1,000 peers: UDP to 100 of them", "Mbit/s", More),
            ],
            strangers::spread,
        )
    },
];

/// An experiment by its name.
pub fn find(id: &str) -> Result<&'static Experiment, Failure> {
    let names = || EXPERIMENTS.iter().map(|one| one.id).collect::<Vec<_>>().join(", ");
    EXPERIMENTS.iter().find(|one| one.id == id).ok_or_else(|| format!("expected one of {}", names()))
}

/// What arrived, in Gbit/s.
fn gigabits(report: &Value, sum: &str) -> Result<f64, Failure> {
    Ok(number(report, &format!("/{sum}/bits_per_second"))? / 1e9)
}

fn forward(pair: &Pair, load: &Load) -> Values {
    tcp(pair, false, load, "")
}

fn tcp(pair: &Pair, six: bool, load: &Load, flags: &str) -> Values {
    Ok(vec![Some(gigabits(&iperf(pair, six, load, flags)?, "sum_received")?)])
}

fn tcp_with_cpu(pair: &Pair, load: &Load, flags: &str) -> Values {
    let (sender, receiver) = if flags == "-R" { (&pair.vps, &pair.home) } else { (&pair.home, &pair.vps) };
    let before = [sender.cpu()?, receiver.cpu()?];
    let report = iperf(pair, false, load, flags)?;
    let after = [sender.cpu()?, receiver.cpu()?];
    let gigabytes = number(&report, "/sum_received/bytes")? / 1e9;
    let cpu = |side: usize| Some((after[side]? - before[side]?) / gigabytes);
    Ok(vec![Some(gigabits(&report, "sum_received")?), cpu(0), cpu(1)])
}

fn both(pair: &Pair, load: &Load) -> Values {
    let report = iperf(pair, false, load, "--bidir")?;
    let (forward, reverse) = (gigabits(&report, "sum_received")?, gigabits(&report, "sum_received_bidir_reverse")?);
    Ok([forward + reverse, forward, reverse].map(Some).to_vec())
}

fn udp(pair: &Pair, load: &Load, bytes: u32) -> Values {
    let report = iperf(pair, false, load, &format!("-u -b 0 -l {bytes}"))?;
    let bits = number(&report, "/sum_received/bits_per_second")?;
    let packets = bits / 8.0 / f64::from(bytes);
    Ok([bits / 1e6, packets / 1e3, number(&report, "/sum_received/lost_percent")?].map(Some).to_vec())
}

fn mix(pair: &Pair, load: &Load) -> Values {
    let flows = [(5201, "-P 2"), (5202, "-R"), (5203, "-u -b 100M -l 1200")];
    // All are started before the first is waited for.
    let running: Vec<_> = flows.iter().map(|(port, flags)| Iperf::start(pair, false, *port, load, flags)).collect();
    let ended = running.into_iter().map(|iperf| iperf?.finish()).collect::<Result<Vec<_>, _>>()?;
    let rates = ended.iter().map(|report| gigabits(report, "sum_received")).collect::<Result<Vec<_>, _>>()?;
    Ok(vec![Some(rates.iter().sum()), Some(number(&ended[2], "/sum_received/lost_percent")?)])
}

fn ping_loaded(pair: &Pair, load: &Load) -> Values {
    let longer = Load { seconds: load.seconds + 1, rounds: 1, congestion: load.congestion.clone() };
    let stream = Iperf::start(pair, false, 5201, &longer, "")?;
    sleep(Duration::from_millis(400));
    let times = ping(pair, 200 * load.seconds, "0.005")?;
    stream.finish()?;
    Ok(times.map(|microseconds| Some(microseconds / 1000.0)).to_vec())
}

/// Of the side that needs more.
fn memory(pair: &Pair) -> Values {
    let sides = [pair.vps.memory()?, pair.home.memory()?];
    Ok(vec![sides.into_iter().flatten().reduce(f64::max)])
}
