//! The results: medians, spreads and ratios, as text, Markdown and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde_json::{Value, json};

use crate::Failure;
use crate::chart;
use crate::experiment::{Better, Experiment, Load, Row};
use crate::program::{Kind, Program};

/// What was measured.
pub struct Report {
    pub programs: Vec<Program>,
    pub rows: Vec<&'static Row>,
    /// By row and position of the program.
    values: BTreeMap<(&'static str, usize), Vec<f64>>,
    /// The position of the program, the experiment, and why.
    failures: Vec<(usize, &'static str, Failure)>,
    machine: Value,
    load: Value,
}

/// A program's values of one row.
pub struct Cell {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    rounds: usize,
    to_bare: Option<f64>,
    to_best_other: Option<f64>,
}

impl Cell {
    /// Half of the range, in percent of the median; `None` of a single round.
    fn spread(&self) -> Option<f64> {
        let spread = (self.most - self.least) / 2.0 / self.median * 100.0;
        (self.rounds > 1 && spread.is_finite()).then_some(spread)
    }
}

impl Report {
    /// An empty one, of this machine.
    pub fn new(programs: Vec<Program>, load: &Load) -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let processors = line("/proc/cpuinfo");
        let model =
            processors.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
        let congestion = load.congestion.clone().unwrap_or_else(|| line("/proc/sys/net/ipv4/tcp_congestion_control"));
        let now = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output();
        let machine = json!({
            "date": now.map(|now| String::from_utf8_lossy(&now.stdout).trim().to_owned()).unwrap_or_default(),
            "kernel": line("/proc/sys/kernel/osrelease"),
            "processor": model.unwrap_or("unknown processor"),
            "cores": available_parallelism().map_or(0, usize::from),
        });
        let load = json!({ "seconds": load.seconds, "rounds": load.rounds, "congestion": congestion });
        Self { programs, rows: Vec::new(), values: BTreeMap::new(), failures: Vec::new(), machine, load }
    }

    /// Another line of the table.
    pub fn add_row(&mut self, row: &'static Row) {
        self.rows.push(row);
    }

    /// The values of one round.
    pub fn add(&mut self, program: usize, experiment: &Experiment, values: &[Option<f64>]) {
        for (row, value) in experiment.rows.iter().zip(values) {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                self.values.entry((row.id, program)).or_default().push(value);
            }
        }
    }

    /// A round that failed.
    pub fn fail(&mut self, program: usize, experiment: &'static str, why: &str) {
        self.failures.push((program, experiment, why.to_owned()));
    }

    /// Whether anything was measured.
    pub fn has_values(&self) -> bool {
        !self.values.is_empty()
    }

    /// What stands in the table; `None` where nothing was measured.
    pub fn cell(&self, row: &Row, program: usize) -> Option<Cell> {
        let values = self.sorted(row, program)?;
        let (median, least, most) = (median(&values), values[0], values[values.len() - 1]);
        let all = 0..self.programs.len();
        let is_bare = |at: usize| self.programs[at].kind == Kind::Bare;
        let other = |at: usize| self.sorted(row, at).map(|values| self::median(&values));
        let bare = all.clone().find(|&at| is_bare(at)).and_then(other);
        let others = all.filter(|&at| at != program && !is_bare(at)).filter_map(other);
        let best = match row.better {
            Better::More => others.reduce(f64::max),
            Better::Less => others.reduce(f64::min),
            Better::Neither => None,
        };
        let ratio = |to: Option<f64>| to.filter(|&to| to > 0.0 && !is_bare(program)).map(|to| median / to);
        let to_bare = ratio(bare.filter(|_| row.better != Better::Neither));
        Some(Cell { median, least, most, rounds: values.len(), to_bare, to_best_other: ratio(best) })
    }

    /// The values of a program's rounds; at least one.
    fn sorted(&self, row: &Row, program: usize) -> Option<Vec<f64>> {
        let mut values = self.values.get(&(row.id, program))?.clone();
        values.sort_by(f64::total_cmp);
        Some(values)
    }

    /// The table as on a terminal, ratios under the values.
    pub fn text(&self) -> String {
        let mut lines =
            vec![[vec![String::new(); 2], self.programs.iter().map(|one| one.name.clone()).collect()].concat()];
        for row in &self.rows {
            let cells: Vec<_> = (0..self.programs.len()).map(|at| self.cell_text(row, at)).collect();
            let values = cells.iter().map(|(value, _)| value.clone());
            lines.push([row.title.to_owned(), row.unit.to_owned()].into_iter().chain(values).collect());
            if cells.iter().any(|(_, ratios)| !ratios.is_empty()) {
                lines.push([vec![String::new(); 2], cells.into_iter().map(|(_, ratios)| ratios).collect()].concat());
            }
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..lines[0].len()).map(width).collect();
        let mut text = format!("{}\n{}\n\n", self.heading(), LEGEND);
        for line in lines {
            let padded: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            let _ = writeln!(text, "{}", padded.join("  ").trim_end());
        }
        for note in self.notes() {
            let _ = write!(text, "\n{note}");
        }
        if self.failures.is_empty() { text } else { text + "\n" }
    }

    fn markdown(&self) -> String {
        let mut text = format!("{}\n{}\n\n|  |", self.heading(), LEGEND);
        for program in &self.programs {
            let _ = write!(text, " {} |", program.name);
        }
        let _ = writeln!(text, "\n| --- |{}", " --- |".repeat(self.programs.len()));
        for row in &self.rows {
            let _ = write!(text, "| {}, {} |", row.title.replace("  ", "· "), row.unit);
            for at in 0..self.programs.len() {
                let (value, ratios) = self.cell_text(row, at);
                let _ = write!(text, " {value}{}{ratios} |", if ratios.is_empty() { "" } else { "<br>" });
            }
            text.push('\n');
        }
        for note in self.notes() {
            let _ = write!(text, "\n- {note}");
        }
        text.trim_end().to_owned() + "\n"
    }

    /// For programs: medians and ratios are numbers, what could not be measured is null.
    pub fn json(&self) -> Value {
        let programs: Vec<_> =
            self.programs.iter().map(|one| json!({ "name": one.name, "version": one.version })).collect();
        let rows = self.rows.iter().map(|row| {
            let results = self.programs.iter().enumerate().map(|(at, program)| {
                let result = self.cell(row, at).map(|cell| {
                    json!({
                        "median": cell.median,
                        "least": cell.least,
                        "most": cell.most,
                        "to_bare": cell.to_bare,
                        "to_best_other": cell.to_best_other,
                        "values": self.values.get(&(row.id, at)),
                    })
                });
                (program.name.clone(), json!(result))
            });
            let results: serde_json::Map<_, _> = results.collect();
            json!({ "id": row.id, "title": row.title.trim(), "unit": row.unit, "results": results })
        });
        let rows = rows.collect::<Vec<_>>();
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|(at, experiment, why)| json!({ "program": self.programs[*at].name, "row": experiment, "why": why }))
            .collect();
        json!({ "machine": self.machine, "load": self.load, "programs": programs, "rows": rows, "failures": failures })
    }

    /// Writes all forms into a folder, which is made if need be.
    pub fn write(&self, folder: &Path) -> Result<(), Failure> {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        write(&folder.join("bench.json"), &format!("{:#}\n", self.json()))?;
        write(&folder.join("bench.md"), &self.markdown())?;
        for (name, svg) in self.charts() {
            let [from, to] = ["svg", "png"].map(|form| folder.join(format!("{name}.{form}")));
            write(&from, &svg)?;
            let status = Command::new("rsvg-convert").arg("--zoom=2").arg("--output").arg(to).arg(from).status();
            if !status.is_ok_and(|status| status.success()) {
                return Err(format!("rsvg-convert could not make {name}.png: apt install librsvg2-bin"));
            }
        }
        Ok(())
    }

    /// Replaces the table in `performance.md` and the charts beside it.
    pub fn publish(&self, docs: &Path) -> Result<(), Failure> {
        const MARKS: [&str; 2] = ["<!-- from here: scripts/bench --publish -->\n", "<!-- to here -->"];
        let page = docs.join("performance.md");
        let old = fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
        let parts = old.split_once(MARKS[0]).and_then(|(head, rest)| Some((head, rest.split_once(MARKS[1])?.1)));
        let (head, tail) = parts.ok_or_else(|| format!("{}: the marks around the table are gone", page.display()))?;
        let mut images = String::new();
        for (name, svg) in self.charts() {
            write(&docs.join("bench").join(format!("{name}.svg")), &svg)?;
            let _ = writeln!(images, "![{name}](bench/{name}.svg)\n");
        }
        write(&page, &format!("{head}{}\n{images}{}\n{}{tail}", MARKS[0], self.markdown(), MARKS[1]))
    }

    /// Names and text of the charts of which something was measured.
    fn charts(&self) -> impl Iterator<Item = (&'static str, String)> {
        chart::CHARTS.iter().filter_map(|(name, title, rows)| Some((*name, chart::svg(self, title, rows)?)))
    }

    fn heading(&self) -> String {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let [date, kernel, processor, cores] =
            ["date", "kernel", "processor", "cores"].map(|key| text(&self.machine[key]));
        let [seconds, rounds, congestion] = ["seconds", "rounds", "congestion"].map(|key| text(&self.load[key]));
        format!(
            "{date}: {processor}, {cores} cores for both ends and all load, Linux {kernel}, TCP with {congestion}.\n\
             Median of {rounds} rounds of {seconds} s, ± half of the range."
        )
    }

    /// The value and the ratios of a cell.
    fn cell_text(&self, row: &Row, program: usize) -> (String, String) {
        let Some(cell) = self.cell(row, program) else {
            let failed = self.failures.iter().any(|(at, ..)| *at == program);
            return (if failed { "failed" } else { "–" }.to_owned(), String::new());
        };
        let value = match cell.spread() {
            Some(spread) if row.better != Better::Neither => format!("{} ±{spread:.0}%", short(cell.median)),
            _ => short(cell.median),
        };
        let ratio = |ratio: Option<f64>| ratio.map_or("–".to_owned(), short);
        match (cell.to_bare, cell.to_best_other) {
            (None, None) => (value, String::new()),
            (bare, best) => (value, format!("({}, {})", ratio(bare), ratio(best))),
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<_> = self
            .failures
            .iter()
            .map(|(at, experiment, why)| format!("{} failed at {experiment}: {why}", self.programs[*at].name))
            .collect();
        notes.dedup();
        notes
    }
}

const LEGEND: &str = "In parentheses: the ratio to bare, and the ratio to the best of the other programs.";

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Of sorted values, of which there is at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// With about three digits.
pub fn short(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        0.1.. => 2,
        0.0 => 0,
        _ => 3,
    };
    format!("{value:.decimals$}")
}
