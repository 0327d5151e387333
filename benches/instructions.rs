//! Instructions per packet, held to a budget: `cargo bench --bench instructions`, on x86-64 with valgrind installed.
//!
//! Counts repeat where times do not, so a change that makes a packet dearer fails here on any machine. Each case runs
//! once under callgrind. The cipher and libc's memcpy are counted apart: which code they use depends on the CPU.
//!
//! A number as argument shows that many of a case's dearest functions: `cargo bench --bench instructions -- seal 20`.

mod fixtures;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

use meshd::packet::checksum::Sum;
use meshd::packet::{Coalescer, Offload};

use fixtures::{Arrived, MSS, Pair, SEGMENTS, SuperPacket, routes};

/// Name, packets in it, and how many instructions of ours each may take. A tenth above what was counted: another
/// compiler needs some room. Whoever makes one cheaper lowers it.
const CASES: [(&str, usize, u64); 10] = [
    ("checksum", 1, 595),
    ("segment", SEGMENTS, 830),
    ("coalesce", SEGMENTS, 415),
    ("lookup", LOOKUPS, 645),
    ("seal", SEGMENTS, 1065),
    ("seal-small", SEGMENTS, 840),
    ("open", SEGMENTS, 670),
    ("express-seal", SEGMENTS, 1055),
    ("express-seal-small", SEGMENTS, 1045),
    ("express-open", SEGMENTS, 495),
];
const LOOKUPS: usize = 1024;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--run", case] => run(case),
        [] => return compare(),
        [case] => show(case, 12),
        [case, functions] => show(case, functions.parse().expect("a number of functions")),
        _ => panic!("no argument, or a case and a number"),
    }
    ExitCode::SUCCESS
}

/// What is counted: callgrind collects while this runs.
#[inline(never)]
fn measured(work: impl FnOnce()) {
    work();
}

/// One case, warm: buffers have grown, lazy symbols are bound, the CPU's features were asked for.
fn run(case: &str) {
    match case {
        "checksum" => {
            let bytes = vec![0xa5; MSS];
            measured(|| _ = black_box(Sum::default().bytes(black_box(&bytes)).complement()));
        }
        "segment" => {
            let mut packet = SuperPacket::new();
            packet.segment(|segment| _ = black_box(segment));
            measured(|| packet.segment(|segment| _ = black_box(segment)));
        }
        "coalesce" => {
            let mut arrived = Arrived::new();
            let mut coalescer = Coalescer::new(Offload { tcp: true, udp: true });
            let mut gather = |arrived: &mut Arrived| {
                arrived.packets.iter().for_each(|packet| coalescer.push(&arrived.arena, packet.clone()));
                coalescer.flush(&mut arrived.arena, |slices| _ = black_box(slices));
            };
            gather(&mut arrived);
            arrived.restore();
            measured(|| gather(&mut arrived));
        }
        "lookup" => {
            let (device, addresses) = routes(100_000);
            measured(|| addresses.iter().for_each(|address| _ = black_box(device.owner(*address))));
        }
        "seal" => seal(Pair::new()),
        "seal-small" => seal_small(Pair::new()),
        "open" => open(Pair::new()),
        "express-seal" => seal(Pair::express()),
        "express-seal-small" => seal_small(Pair::express()),
        "express-open" => open(Pair::express()),
        _ => panic!("no case {case:?}; there are {:?}", CASES.map(|(name, ..)| name)),
    }
}

fn seal(mut pair: Pair) {
    measured(|| pair.seal());
}

fn seal_small(mut pair: Pair) {
    measured(|| pair.seal_small());
}

fn open(mut pair: Pair) {
    pair.seal();
    measured(|| pair.open());
}

/// Every case beside its budget.
fn compare() -> ExitCode {
    if !cfg!(target_arch = "x86_64") {
        println!("the budgets are those of x86-64; nothing is counted here");
        return ExitCode::SUCCESS;
    }
    println!("instructions per packet\n{:18} {:>8} {:>8} {:>8} {:>8}", "", "budget", "ours", "cipher", "libc");
    let mut over = Vec::new();
    for (case, packets, budget) in CASES {
        let mut sums = BTreeMap::new();
        for (function, cost) in callgrind(case) {
            *sums.entry(kind(&function)).or_default() += cost;
        }
        let [ours, cipher, libc] = [Kind::Ours, Kind::Cipher, Kind::Libc]
            .map(|kind| sums.get(&kind).unwrap_or(&0u64).div_ceil(packets as u64));
        let verdict = if ours > budget { "  over budget" } else { "" };
        println!("{case:18} {budget:8} {ours:8} {cipher:8} {libc:8}{verdict}");
        over.extend((ours > budget).then_some(case));
    }
    let Some(first) = over.first() else { return ExitCode::SUCCESS };
    eprintln!("over budget: {}\ntry: cargo bench --bench instructions -- {first} 20", over.join(", "));
    eprintln!("and where it is worth it, raise the budget in {}", file!());
    ExitCode::FAILURE
}

fn show(case: &str, functions: usize) {
    let mut costs: Vec<_> = callgrind(case).into_iter().collect();
    costs.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
    for (function, cost) in costs.iter().take(functions) {
        println!("{cost:9}  {function}");
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// meshd, boringtun and the rest of Rust.
    Ours,
    /// ring; labels of its assembly may have names of their own.
    Cipher,
    /// memcpy, memset, memcmp.
    Libc,
}

fn kind(function: &str) -> Kind {
    if ["ring", "poly", "_aesni"].iter().any(|start| function.starts_with(start)) {
        Kind::Cipher
    } else if function.starts_with("__mem") {
        Kind::Libc
    } else {
        Kind::Ours
    }
}

/// The instructions of each function while `measured` runs, what it calls not included.
fn callgrind(case: &str) -> BTreeMap<String, u64> {
    let out = std::env::temp_dir().join(format!("meshd-instructions-{}-{case}", std::process::id()));
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-atstart=no", "--toggle-collect=*measured*"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().expect("this program"))
        .args(["--run", case])
        .stdin(Stdio::null())
        .status()
        .expect("valgrind; where it is missing: apt-get install valgrind");
    assert!(status.success(), "valgrind: {case}: {status}");
    let text = std::fs::read_to_string(&out).expect("callgrind's output");
    let _ = std::fs::remove_file(&out);
    let costs = self_costs(&text);
    assert!(costs.values().sum::<u64>() > 0, "{case}: callgrind counted nothing");
    costs
}

/// Reads callgrind's format (<https://valgrind.org/docs/manual/cl-format.html>): lines of costs belong to the function
/// named last, but for the one that follows `calls=`, which is the cost of what was called.
fn self_costs(text: &str) -> BTreeMap<String, u64> {
    let mut costs = BTreeMap::new();
    let (mut function, mut called) = ("", false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = name;
        } else if line.starts_with("calls=") {
            called = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit()) && !std::mem::take(&mut called) {
            let cost = line.split_once(' ').and_then(|(_, cost)| cost.parse::<u64>().ok());
            *costs.entry(function.to_owned()).or_default() += cost.unwrap_or(0);
        }
    }
    costs
}
