//! `meshd bench`: throughput, loss and latency to other agents, through the tunnel and beside it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use super::page::{self, Cell, Column, Table};
use super::{Dirs, Failure, ask, print_json};
use crate::bench::{Cpu, Latency, MAX_SECONDS, Measured, Report};
use crate::control::api::{BenchProgress, BenchRequest};
use crate::control::client::{Client, ClientError};

/// Measure throughput, loss and latency to another agent, and what limits them.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Both agents send to each other through the tunnel, then beside it: bare UDP
between the same two sockets. Where data goes under AES-256-GCM, the tunnel is
measured under ChaCha20-Poly1305 too. Nothing needs to be installed, no port
opened.
It fills the path meanwhile; Ctrl-C ends it on both sides. Only meshd can
answer: for other WireGuard peers use iperf3.

Examples:
  meshd bench vps                one peer, in about twenty seconds
  meshd bench                    all peers that are agents, one by one
  meshd bench vps --seconds 1    quicker and less exact
  meshd bench vps --json | jq .tunnel.to_peer.flow.bits_per_second")]
pub struct Args {
    /// The peer's name; all agents without it
    peer: Option<String>,
    /// How long each of the four to six runs takes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SECONDS)))]
    seconds: u32,
    /// Print JSON, whose fields are stable
    #[arg(long)]
    json: bool,
}

/// Runs `meshd bench`.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let mut client = ask::connect("bench", dirs)?;
    let Some(peer) = args.peer else { return all(client, args.seconds, args.json, dirs) };
    let report = one(&mut client, peer, args.seconds).map_err(|error| ask::failure("bench", error))?;
    if args.json { print_json(&report) } else { show(&report) }
}

/// A peer that fails does not keep the others from being measured.
fn all(mut client: Client, seconds: u32, json: bool, dirs: &Dirs) -> Result<(), Failure> {
    let found = client.agents().map_err(|error| ask::failure("bench", error))?;
    if found.agents.is_empty() {
        let why = if found.others.is_empty() {
            "bench: there are no peers yet".to_owned()
        } else {
            format!("bench: no peer is a meshd agent that can be reached: {}", found.others.join(", "))
        };
        return Err(Failure::new(1, why).try_this("meshd bench PEER, which says why for one of them"));
    }
    let (mut reports, mut failed) = (Vec::new(), None);
    for peer in found.agents {
        let report = Client::connect(&dirs.run).and_then(|mut client| one(&mut client, peer, seconds));
        match report.map_err(|error| ask::failure("bench", error)) {
            Ok(report) if json => reports.push(report),
            Ok(report) => show(&report)?,
            Err(failure) => {
                if let Some(earlier) = failed.replace(failure) {
                    super::report(&earlier);
                }
            }
        }
    }
    if json {
        print_json(&reports)?;
    }
    failed.map_or(Ok(()), Err)
}

fn one(client: &mut Client, peer: String, seconds: u32) -> Result<Report, ClientError> {
    let terminal = io::stderr().is_terminal();
    let request = BenchRequest { peer, seconds };
    let report = client.bench(&request, |progress| {
        if terminal {
            // A terminal that is gone is no reason to stop.
            let _ = write!(io::stderr().lock(), "\r{}\x1b[K", bar(progress));
        }
    });
    if terminal {
        let _ = write!(io::stderr().lock(), "\r\x1b[K");
    }
    report
}

fn show(report: &Report) -> Result<(), Failure> {
    page::print(&render(report)).map(drop).map_err(|error| ask::output_failure("bench", &error))
}

/// One line of less than 80 columns.
fn bar(progress: &BenchProgress) -> String {
    const WIDTH: usize = 24;
    #[allow(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "between 0 and 1, to be shown")]
    let done = (progress.done.clamp(0.0, 1.0) * WIDTH as f64) as usize;
    let rate = progress.bits_per_second.map(|rate| format!("  {}", bits(rate))).unwrap_or_default();
    let what: String = page::printable(&progress.what).chars().take(36).collect();
    format!("[{}{}] {what}{rate}", "#".repeat(done), "-".repeat(WIDTH - done))
}

fn render(report: &Report) -> String {
    let peer = page::printable(&report.peer);
    let mut text = format!("{peer} at {}, {} s each way\n\n", report.endpoint, report.seconds);
    let column = |title, right| Column { title, widest: 20, right };
    let mut table = Table::new(&[
        column("", false),
        column("THROUGHPUT", true),
        column("LOSS", true),
        column("LATENCY", true),
        column("P99", true),
        column("CPU HERE", true),
        column("CPU THERE", true),
    ]);
    for (what, latency) in [("tunnel, idle", report.idle.tunnel), ("bare, idle", report.idle.bare)] {
        table.row(row(what, ["-".to_owned(), "-".to_owned()], latency, None));
    }
    let tunnel = if report.ordinary.is_some() { "aes" } else { "tunnel" };
    let routes = [(tunnel, Some(&report.tunnel)), ("chacha", report.ordinary.as_ref()), ("bare", Some(&report.bare))];
    let routes = routes.map(|(route, both)| Some((route, both?)));
    let sending = routes.iter().flatten().map(|(route, both)| (format!("{route}, sending"), both.to_peer));
    let receiving = routes.iter().flatten().map(|(route, both)| (format!("{route}, receiving"), both.from_peer));
    for (what, measured) in sending.chain(receiving) {
        let Measured { flow, latency, cpu_here, cpu_there } = measured;
        let [rate, loss] = flow.map_or(["nothing".to_owned(), "-".to_owned()], |flow| {
            [bits(flow.bits_per_second), format!("{:.1}%", flow.loss * 100.0)]
        });
        table.row(row(&what, [rate, loss], latency, Some([cpu_here, cpu_there])));
    }
    text.push_str(&table.render(false));
    let _ = writeln!(text, "\n{}", page::wrap(&page::printable(&report.verdict), 0));
    if report.ordinary.is_some() {
        let _ = writeln!(text, "{}", page::wrap(CIPHERS, 0));
    }
    text
}

/// What two rows differ by.
const CIPHERS: &str =
    "aes: the tunnel as it is used, under AES-256-GCM; chacha: the same under WireGuard's own ChaCha20-Poly1305";

fn row(what: &str, flow: [String; 2], latency: Option<Latency>, cpus: Option<[Cpu; 2]>) -> Vec<Cell> {
    let [median, p99] = latency.map_or(["-", "-"].map(str::to_owned), |latency| {
        [latency.median_us, latency.p99_us].map(|micros| format!("{:.2} ms", f64::from(micros) / 1000.0))
    });
    let cpus = cpus.map_or(["-", "-"].map(str::to_owned), |cpus| cpus.map(|cpu| format!("{:.0}%", cpu.agent * 100.0)));
    let cells = [what.to_owned()].into_iter().chain(flow).chain([median, p99]).chain(cpus);
    cells.map(|cell| Cell::new(&cell)).collect()
}

/// Bits a second with a decimal unit and three digits: `1.43 Gbit/s`.
fn bits(rate: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = rate as f64 / 1000.0;
    let mut unit = "kbit/s";
    for next in ["Mbit/s", "Gbit/s"] {
        // What would be rounded to 1000 is one of the next unit.
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Both, Flow, Idle};

    fn report() -> Report {
        let measured = |mbits: u64, loss, here| Measured {
            flow: Some(Flow { bits_per_second: mbits * 1_000_000, packets: 1000, loss }),
            latency: Some(Latency { sent: 300, lost: 1, median_us: 12_340, p99_us: 45_678 }),
            cpu_here: Cpu { agent: here, thread: 0.5, machine: 0.9 },
            cpu_there: Cpu { agent: 1.25, thread: 0.9, machine: 0.9 },
        };
        let latency = |median_us| Some(Latency { sent: 100, lost: 0, median_us, p99_us: 2 * median_us });
        Report::new(
            "vps".to_owned(),
            "203.0.113.10:51820".parse().unwrap(),
            3,
            Idle { tunnel: latency(310), bare: latency(250) },
            Both { to_peer: measured(48, 0.001, 0.1), from_peer: measured(930, 0.0, 0.7) },
            None,
            Both { to_peer: measured(49, 0.002, 0.1), from_peer: Measured { flow: None, ..measured(1, 0.0, 0.0) } },
        )
    }

    #[test]
    fn the_page() {
        assert_eq!(
            render(&report()),
            "\
vps at 203.0.113.10:51820, 3 s each way

                    THROUGHPUT  LOSS   LATENCY       P99  CPU HERE  CPU THERE
tunnel, idle                 -     -   0.31 ms   0.62 ms         -          -
bare, idle                   -     -   0.25 ms   0.50 ms         -          -
tunnel, sending    48.0 Mbit/s  0.1%  12.34 ms  45.68 ms       10%       125%
bare, sending      49.0 Mbit/s  0.2%  12.34 ms  45.68 ms       10%       125%
tunnel, receiving   930 Mbit/s  0.0%  12.34 ms  45.68 ms       70%       125%
bare, receiving        nothing     -  12.34 ms  45.68 ms        0%       125%

to vps limited by the path: 98% of the bare rate; from it by the CPU of vps: no
bare path to compare with
"
        );
        assert!(render(&report()).lines().all(|line| line.chars().count() <= page::WIDTH));
    }

    #[test]
    fn the_page_of_a_peer_under_express_keys() {
        let report = report();
        let page = render(&Report { ordinary: Some(report.tunnel), ..report });
        let rows: Vec<_> = page.lines().filter_map(|line| line.split_once(", ")).map(|(route, _)| route).collect();
        assert_eq!(rows[3..9], ["aes", "chacha", "bare", "aes", "chacha", "bare"], "{page}");
        assert!(page.contains("AES-256-GCM") && page.lines().all(|line| line.chars().count() <= page::WIDTH), "{page}");
    }

    #[test]
    fn the_bar_fits_a_line_and_harms_no_terminal() {
        let progress =
            |what: &str, done| BenchProgress { what: what.to_owned(), done, bits_per_second: Some(1_430_000_000) };
        assert_eq!(bar(&progress("tunnel to vps", 0.5)), "[############------------] tunnel to vps  1.43 Gbit/s");
        for done in [-1.0, 0.0, 1.0, 7.0, f64::NAN] {
            let bar = bar(&progress(&"\x1b[2J".repeat(60), done));
            assert!(bar.chars().count() < page::WIDTH && !bar.contains('\x1b'), "{bar}");
        }
    }

    #[test]
    fn rates_have_three_digits() {
        for (rate, text) in [
            (0, "0.00 kbit/s"),
            (64_000, "64.0 kbit/s"),
            (999_600, "1.00 Mbit/s"),
            (48_000_000, "48.0 Mbit/s"),
            (1_430_000_000, "1.43 Gbit/s"),
            (123_000_000_000, "123 Gbit/s"),
        ] {
            assert_eq!(bits(rate), text);
        }
    }
}
