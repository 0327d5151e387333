//! Text for people: tables that fit 80 columns, units, colours, and nothing that could steer a terminal.

pub use crate::config::printable;
use std::io::{self, IsTerminal as _, Write as _};

/// What every terminal has.
pub const WIDTH: usize = 80;

/// A colour of a cell or a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// All is well; added.
    Green,
    /// On its way; needs an eye.
    Yellow,
    /// Down; removed.
    Red,
}

/// Whether to colour the standard output: on a terminal, unless the person said no (<https://no-color.org>).
pub fn coloured() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb") && io::stdout().is_terminal()
}

/// `text`, in colour if `on`.
pub fn paint(text: &str, colour: Colour, on: bool) -> String {
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Writes to the standard output at once. False when nobody reads it any more, as after `| head`.
pub fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// `text` broken between words, so that no line but that of an overlong word passes [`WIDTH`]. Lines after the first
/// begin with `indent` spaces; the first is taken to begin at that column already.
pub fn wrap(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = indent;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let width = word.chars().count();
        if column > indent && column + 1 + width > WIDTH {
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += width;
    }
    lines
}

/// Bytes with a binary unit and three digits: `1.21 GiB`.
pub fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        // What would be rounded to 1024 is one of the next unit.
        if value < 1023.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

/// How long ago a moment was, both in Unix seconds.
pub fn ago(then: Option<u64>, now: u64) -> String {
    let Some(then) = then else { return "never".to_owned() };
    match now.saturating_sub(then) {
        0 => "now".to_owned(),
        seconds @ ..60 => format!("{seconds} s ago"),
        seconds @ ..3600 => format!("{} min ago", seconds / 60),
        seconds @ ..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// A column of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// In capitals.
    pub title: &'static str,
    /// A cell beyond this is shown whole, and its row goes on below it.
    pub widest: usize,
    /// Numbers are.
    pub right: bool,
}

/// A cell of a [`Table`].
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// What is not harmful of `text`.
    pub fn new(text: &str) -> Self {
        Self { text: printable(text), colour: None }
    }

    /// The same in a colour.
    pub fn coloured(text: &str, colour: Colour) -> Self {
        Self { colour: Some(colour), ..Self::new(text) }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Rows under titles. The last column is broken between words at [`WIDTH`].
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

const GAP: usize = 2;

impl Table {
    /// One without rows.
    pub fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// All of it as lines.
    pub fn render(&self, colour: bool) -> String {
        let titles = self.columns.iter().map(|column| Cell::new(column.title)).collect::<Vec<_>>();
        let rows = std::iter::once(&titles).chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|index| {
                let fitting = rows.clone().map(|row| row[index].width()).filter(|&w| w <= self.columns[index].widest);
                fitting.max().unwrap_or(0)
            })
            .collect();
        rows.map(|row| self.line(row, &widths, colour) + "\n").collect()
    }

    fn line(&self, row: &[Cell], widths: &[usize], colour: bool) -> String {
        let mut line = String::new();
        let mut start = 0;
        let mut column = 0;
        let last = row.len() - 1;
        for (index, cell) in row.iter().enumerate() {
            let width = cell.width();
            let spare = widths[index].saturating_sub(width);
            let at = start + if self.columns[index].right { spare } else { 0 };
            if column > 0 && column + GAP > at {
                line.push('\n');
                column = 0;
            }
            line.push_str(&" ".repeat(at - column));
            let text = if index == last { wrap(&cell.text, at) } else { cell.text.clone() };
            line.push_str(&cell.colour.map_or_else(|| text.clone(), |shade| paint(&text, shade, colour)));
            column = at + width;
            start += widths[index] + GAP;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 * 1024, "10.0 KiB"),
            (999 * 1024, "999 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (1_300_000_000, "1.21 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        for (then, text) in [
            (None, "never"),
            (Some(1_000_000), "now"),
            // The other clock is ahead.
            (Some(1_000_005), "now"),
            (Some(999_988), "12 s ago"),
            (Some(1_000_000 - 3599), "59 min ago"),
            (Some(1_000_000 - 3600), "1 h ago"),
            (Some(1_000_000 - 172_800), "2 d ago"),
        ] {
            assert_eq!(ago(then, 1_000_000), text);
        }
    }

    #[test]
    fn words_are_kept_whole() {
        let text = wrap(&"word ".repeat(40), 10);
        assert!(text.lines().enumerate().all(|(index, line)| line.len() + if index == 0 { 10 } else { 0 } <= WIDTH));
        assert!(text.lines().skip(1).all(|line| line.starts_with("          word")), "{text}");
        assert_eq!(text.split_whitespace().count(), 40);
        let long = "x".repeat(200);
        assert_eq!(wrap(&format!("a {long} b"), 2), format!("a\n  {long}\n  b"));
    }

    #[test]
    fn a_cell_too_wide_is_shown_whole_and_the_row_goes_on_below() {
        let column = |title, right| Column { title, widest: 5, right };
        let mut table = Table::new(&[column("A", false), column("B", true), column("C", false)]);
        table.row(vec![Cell::new("a"), Cell::new("1"), Cell::new("c")]);
        table.row(vec![Cell::new("overlong"), Cell::new("22"), Cell::new("c d")]);
        assert_eq!(table.render(false), "A   B  C\na   1  c\noverlong\n   22  c d\n");
    }
}
