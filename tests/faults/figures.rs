//! What a campaign found, as a file of lines and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::field::Result;

/// One line for each injection, kept on disk, so that a campaign that was ended goes on where it was.
pub struct Figures {
    path: PathBuf,
    file: File,
}

impl Figures {
    /// Goes on with what the file holds.
    pub fn open(path: &Path) -> Self {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let file = OpenOptions::new().create(true).append(true).open(path).expect("the figures");
        Self { path: path.to_owned(), file }
    }

    /// How many injections it holds.
    pub fn count(&self) -> usize {
        self.read().lines().count()
    }

    /// Adds one.
    pub fn add(&mut self, name: &str, result: &Result) {
        let Result { plan, flow, leaks } = result;
        writeln!(self.file, "{name}\t{}\t{}\t{leaks}", plan.as_millis(), flow.as_millis()).expect("write");
    }

    fn read(&self) -> String {
        std::fs::read_to_string(&self.path).expect("the figures")
    }

    /// By fault: milliseconds until the plan was in order and until traffic flowed, and leaked frames.
    pub fn by_fault(&self) -> BTreeMap<String, Summary> {
        let mut faults = BTreeMap::<String, Summary>::new();
        for line in self.read().lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, plan, flow, leaks] = fields[..] else { panic!("{line}") };
            let number = |text: &str| text.parse::<u64>().expect("a number");
            let summary = faults.entry(name.to_owned()).or_default();
            summary.plan.push(number(plan));
            summary.flow.push(number(flow));
            summary.leaks += number(leaks);
        }
        for summary in faults.values_mut() {
            summary.plan.sort_unstable();
            summary.flow.sort_unstable();
        }
        faults
    }

    /// For docs/reliability.md.
    pub fn table(&self, order: impl Iterator<Item = &'static str>) -> String {
        let faults = self.by_fault();
        let mut table =
            "| fault | count | leaked frames | plan: median, p95, max (ms) | traffic: median, p95, max (ms) |\n\
                         | --- | --- | --- | --- | --- |\n"
                .to_owned();
        let mut total = Summary::default();
        for name in order {
            let Some(summary) = faults.get(name) else { continue };
            total.plan.extend(&summary.plan);
            total.flow.extend(&summary.flow);
            total.leaks += summary.leaks;
            summary.row(name, &mut table);
        }
        total.plan.sort_unstable();
        total.flow.sort_unstable();
        total.row("all", &mut table);
        table
    }
}

/// Of one fault; times sorted.
#[derive(Default)]
pub struct Summary {
    plan: Vec<u64>,
    flow: Vec<u64>,
    /// Frames.
    pub leaks: u64,
}

impl Summary {
    /// 95 of 100 recovered within this time, plan and traffic.
    pub fn p95(&self) -> Duration {
        Duration::from_millis(percentile(&self.plan, 95).max(percentile(&self.flow, 95)))
    }

    fn row(&self, name: &str, table: &mut String) {
        let of =
            |times: &[u64]| format!("{}, {}, {}", percentile(times, 50), percentile(times, 95), percentile(times, 100));
        let (count, leaks) = (self.plan.len(), self.leaks);
        writeln!(table, "| {name} | {count} | {leaks} | {} | {} |", of(&self.plan), of(&self.flow)).expect("a string");
    }
}

/// The smallest that no more than this share lies above (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}
