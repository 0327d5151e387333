//! Userspace WireGuard programs beside each other, between two network namespaces of this machine: `scripts/bench`.
//!
//! Programs alternate within each round of each measurement, so that what else happens on the machine hits all of them.
//! Numbers of one run may be compared with each other; those of two runs may not.

mod chart;
mod experiment;
mod pair;
mod program;
mod report;
mod strangers;
mod tools;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser, error::ErrorKind};

use experiment::{EXPERIMENTS, Experiment, Load, Part, SETUPS};
use pair::{Pair, Setup};
use program::Program;
use report::Report;

/// What went wrong, for a person to read.
type Failure = String;

#[derive(Parser)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[command(
    name = "scripts/bench",
    bin_name = "scripts/bench",
    about = "Compares userspace WireGuard programs between two network namespaces of this machine",
    after_help = "\
A PROGRAM is bare (no tunnel), wireguard-go, gotatun, boringtun, meshd, ordinary
(meshd without express sessions), or NAME=PATH. PATH is another build of meshd, or any program that runs as `PATH -f INTERFACE` and
then answers wg(8). VARIABLE=VALUE words may stand before it.

  scripts/bench --quick                               all six, in four minutes
  scripts/bench --program mine=./my-wireguard         a seventh beside them
  scripts/bench --rows tcp,udp64 bare old=./a new=./b 'debug=RUST_LOG=debug ./b'
  scripts/bench --rows scale                          1,000 peers; not a default row"
)]
struct Options {
    /// What to compare, instead of all six
    #[arg(value_name = "PROGRAM", value_parser = Program::parse)]
    only: Vec<Program>,
    /// Another program beside the default ones
    #[arg(long = "program", value_name = "NAME=PATH", value_parser = Program::parse)]
    others: Vec<Program>,
    /// The same, known to be a meshd; needed only where `PATH --version` does not say so
    #[arg(long = "meshd", value_name = "NAME=PATH", value_parser = Program::parse_meshd)]
    builds: Vec<Program>,
    /// Two rounds of one second
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
    /// How long each measurement takes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// How often it is repeated; what only guards against shortcuts, half as often
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only these measurements, of: tcp, tcp-reverse, tcp4, tcp4-reverse, both, udp1200, udp64, mix, inner6, outer6,
    /// jumbo, small, fragmented, ping, ping-loaded, memory, and beside the default: scale, spread
    #[arg(long, value_name = "ROW", value_delimiter = ',', value_parser = experiment::find)]
    rows: Vec<&'static Experiment>,
    /// TCP congestion control of the measured streams, instead of the kernel's default
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// Print the JSON report instead of the table
    #[arg(long)]
    json: bool,
    /// Where the reports and charts go
    #[arg(long, value_name = "DIR", default_value_os_t = root().join("target/bench"))]
    output: PathBuf,
    /// Only check the arguments
    #[arg(long, hide = true)]
    check: bool,
    /// Put table and charts into docs/performance.md
    #[arg(long)]
    publish: bool,
}

impl Options {
    fn load(&self) -> Load {
        let (seconds, rounds) = if self.quick { (1, 2) } else { (self.seconds, self.rounds) };
        Load { seconds, rounds, congestion: self.congestion.clone() }
    }

    /// In the order of the table; names are unique.
    fn programs(&self) -> Vec<Program> {
        let mut programs = self.only.clone();
        if programs.is_empty() {
            programs.extend(Program::DEFAULT.map(|name| Program::parse(name).expect("a default")));
        }
        programs.extend(self.others.iter().chain(&self.builds).cloned());
        for (at, program) in programs.iter().enumerate() {
            if programs[..at].iter().any(|other| other.name == program.name) {
                let message = format!("two programs are called \"{}\"", program.name);
                Self::command().error(ErrorKind::ValueValidation, message).exit();
            }
        }
        programs
    }

    fn experiments(&self) -> Vec<&'static Experiment> {
        if self.rows.is_empty() {
            EXPERIMENTS.iter().filter(|one| one.part != Part::Asked).collect()
        } else {
            self.rows.clone()
        }
    }
}

fn main() -> ExitCode {
    // `cargo bench` runs every benchmark, and this one is not meant: it needs root, other programs and a while.
    if std::env::args().any(|argument| argument == "--bench") {
        println!("the benchmark of the whole tunnel is scripts/bench");
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    let programs = options.programs();
    if options.check {
        return ExitCode::SUCCESS;
    }
    match run(&options, programs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("scripts/bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, programs: Vec<Program>) -> Result<(), Failure> {
    let (load, experiments) = (options.load(), options.experiments());
    let mut report = Report::new(programs.into_iter().map(Program::identified).collect(), &load);
    for row in experiments.iter().flat_map(|experiment| experiment.rows) {
        report.add_row(row);
    }
    let rounds: u32 = experiments.iter().map(|experiment| experiment.rounds(&load)).sum();
    let mut progress = Progress::new(rounds as usize * report.programs.len());
    for setup in SETUPS {
        let here: Vec<_> = experiments.iter().copied().filter(|experiment| experiment.setup == *setup).collect();
        if !here.is_empty() {
            measure(setup, &here, &load, &mut report, &mut progress);
        }
    }
    drop(progress);
    report.write(&options.output)?;
    if options.publish {
        report.publish(&root().join("docs"))?;
    }
    if options.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
        eprintln!("\nbench.json, bench.md and the charts are in {}", options.output.display());
    }
    if report.has_values() { Ok(()) } else { Err("nothing could be measured".to_owned()) }
}

/// Starts every program in a pair of its own, runs the experiments in turn and takes all down.
fn measure(setup: &Setup, experiments: &[&Experiment], load: &Load, report: &mut Report, progress: &mut Progress) {
    let mut pairs = BTreeMap::new();
    for (at, program) in report.programs.clone().iter().enumerate() {
        progress.say(&format!("starting {}", program.name));
        match Pair::start(program, setup) {
            Ok(pair) => _ = pairs.insert(at, pair),
            Err(failure) => report.fail(at, experiments[0].id, &failure),
        }
    }
    for experiment in experiments {
        for _ in 0..experiment.rounds(load) {
            for (&at, pair) in &pairs {
                progress.step(&format!("{}: {}", experiment.id, report.programs[at].name));
                // Once more when it failed, for the first datagram of a test may be lost.
                match (experiment.run)(pair, load).or_else(|_| (experiment.run)(pair, load)) {
                    Ok(values) => report.add(at, experiment, &values),
                    Err(failure) => report.fail(at, experiment.id, &pair.explain(failure)),
                }
            }
        }
    }
}

/// A line on the terminal that says what goes on.
struct Progress {
    done: usize,
    total: usize,
    shown: bool,
    began: Instant,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { done: 0, total, shown: std::io::stderr().is_terminal(), began: Instant::now() }
    }

    fn step(&mut self, what: &str) {
        self.done += 1;
        self.say(what);
    }

    fn say(&self, what: &str) {
        if self.shown {
            let seconds = self.began.elapsed().as_secs();
            eprint!("\r\x1b[K{}:{:02} {}/{} {what}", seconds / 60, seconds % 60, self.done, self.total);
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// The repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
