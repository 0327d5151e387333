//! Charts in SVG: a panel for each row of the table, a bar for each program.

use std::fmt::Write as _;

use crate::program::Kind;
use crate::report::{Report, short};

/// File name, title, and the rows that it shows.
pub const CHARTS: &[(&str, &str, &[&str])] = &[
    (
        "throughput",
        "Throughput: longer is better",
        &[
            "tcp",
            "tcp-reverse",
            "both",
            "tcp4",
            "tcp4-reverse",
            "mix",
            "udp1200",
            "udp64",
            "inner6",
            "outer6",
            "jumbo",
            "small",
            "fragmented",
            "scale",
            "scale-reverse",
        ],
    ),
    (
        "cost",
        "Processor time, latency and memory: shorter is better",
        &[
            "tcp-cpu-sender",
            "tcp-cpu-receiver",
            "memory",
            "tcp-reverse-cpu-sender",
            "tcp-reverse-cpu-receiver",
            "scale-memory",
            "ping",
            "ping-p99",
            "ping-loaded",
            "ping-loaded-p99",
        ],
    ),
];

const COLUMNS: u32 = 3;
const PANEL: u32 = 330;
const BAR: u32 = 22;
/// Left of the bars, for the names of the programs.
const NAMES: u32 = 100;
/// Right of the longest bar, for its value.
const VALUE: u32 = 56;

/// A chart; `None` when nothing of it was measured.
pub fn svg(report: &Report, title: &str, rows: &[&str]) -> Option<String> {
    let measured = |id: &&&str| (0..report.programs.len()).any(|at| value(report, id, at).is_some());
    let rows: Vec<_> = rows.iter().filter(measured).collect();
    if rows.is_empty() {
        return None;
    }
    let height = BAR * report.programs.len() as u32 + 56;
    let (width, total) = (PANEL * COLUMNS + 20, height * (rows.len() as u32).div_ceil(COLUMNS) + 50);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{total}\" viewBox=\"0 0 {width} {total}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"12\" fill=\"#24292f\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"30\" font-size=\"17\" font-weight=\"bold\">{title}</text>\n"
    );
    for (at, id) in (0..).zip(rows) {
        let (x, y) = (20 + at % COLUMNS * PANEL, 50 + at / COLUMNS * height);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, report, id);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn panel(svg: &mut String, report: &Report, id: &str) {
    let Some(row) = report.rows.iter().find(|row| row.id == id) else { return };
    let title =
        if row.title.starts_with(' ') { format!("{}, {}", parent(id), row.title.trim()) } else { row.title.to_owned() };
    let _ = writeln!(svg, "<text y=\"18\" font-weight=\"bold\">{}, {}</text>", escape(&title), row.unit);
    let programs = 0..report.programs.len();
    let longest = programs.clone().filter_map(|at| report.cell(row, at)).map(|cell| cell.most).fold(0.0, f64::max);
    let scale = f64::from(PANEL - NAMES - VALUE - 20) / longest;
    for at in programs {
        let (y, program) = (28 + at as u32 * BAR, &report.programs[at]);
        let (middle, names) = (y + 13, NAMES - 8);
        let _ =
            writeln!(svg, "<text x=\"{names}\" y=\"{middle}\" text-anchor=\"end\">{}</text>", escape(&program.name));
        let Some(cell) = report.cell(row, at) else {
            let _ = writeln!(svg, "<text x=\"{NAMES}\" y=\"{middle}\" fill=\"#8c959f\">–</text>");
            continue;
        };
        let end = |value: f64| f64::from(NAMES) + value * scale;
        let _ = writeln!(
            svg,
            "<rect x=\"{NAMES}\" y=\"{y}\" width=\"{:.1}\" height=\"17\" rx=\"2\" fill=\"{}\"/>",
            (cell.median * scale).max(1.0),
            colour(report, at)
        );
        // The range of the rounds.
        let _ = writeln!(
            svg,
            "<path d=\"M{:.1} {line}H{:.1}\" stroke=\"#24292f\" stroke-opacity=\"0.55\" stroke-width=\"1.5\"/>",
            end(cell.least),
            end(cell.most),
            line = f64::from(y) + 8.5
        );
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{middle}\">{}</text>", end(cell.most) + 6.0, short(cell.median));
    }
}

fn value(report: &Report, id: &str, at: usize) -> Option<f64> {
    let row = report.rows.iter().find(|row| row.id == id)?;
    report.cell(row, at).map(|cell| cell.median)
}

/// Which measurement an indented row belongs to.
fn parent(id: &str) -> &'static str {
    if id.starts_with("tcp-reverse") { "reverse" } else { "forward" }
}

/// The same for a program in every chart and run; builds that are given on the command line take turns.
fn colour(report: &Report, at: usize) -> &'static str {
    const MORE: [&str; 5] = ["#2da44e", "#bf3989", "#0d9488", "#7d4e00", "#6e7781"];
    let program = &report.programs[at];
    match (program.name.as_str(), program.kind) {
        (_, Kind::Bare) => "#c8ced5",
        ("wireguard-go", _) => "#e0923f",
        ("gotatun", _) => "#8b6cc4",
        ("boringtun", _) => "#c9605b",
        ("meshd", _) => "#1f6fd6",
        _ => MORE[at % MORE.len()],
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
