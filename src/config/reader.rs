//! Reads one TOML file into values, remembering the line of each.
//!
//! serde's derive stops at the first error of a file. This walks the parsed table itself, so that one run names every
//! unknown key and every wrong value. A key that is never asked for is unknown; the keys that were asked for are the known ones.

use std::collections::HashMap;
use std::ops::Range;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problems, nearest, printable, quote};

/// The largest file that is read. The largest sound one, with thousands of subnets, is far below.
pub const MAX_FILE: usize = 1 << 20;

/// The line of each value of a file, by its path: `bridge[0].subnets[1]`.
#[derive(Debug, Default)]
pub(super) struct Lines(HashMap<String, usize>);

impl Lines {
    /// The line of a value, or of the nearest thing around it that has one.
    pub(super) fn of(&self, key: &str) -> usize {
        let mut key = key;
        loop {
            if let Some(&line) = self.0.get(key) {
                return line;
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return 1,
            }
        }
    }
}

/// One file while it is read.
pub(super) struct Reader<'a> {
    path: &'a str,
    text: &'a str,
    starts: Vec<usize>,
    pub(super) lines: Lines,
    pub(super) problems: &'a mut Problems,
}

/// A table of the file: its own path in it, and the words that an error begins with.
pub(super) struct Section<'t> {
    table: &'t DeTable<'t>,
    key: String,
    line: usize,
    /// `bridge "br0": `, or nothing at the top.
    pub(super) context: String,
    asked: Vec<&'static str>,
}

/// A file's bytes as text, if they are one of bounded size.
pub(super) fn text<'a>(path: &str, bytes: &'a [u8], problems: &mut Problems) -> Option<&'a str> {
    if bytes.len() > MAX_FILE {
        problems.add(path, 1, format!("larger than {} KiB, the most that is read", MAX_FILE >> 10));
        return None;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let line = line_at(bytes, error.valid_up_to());
            problems.add(path, line, "not UTF-8 text".into());
            None
        }
    }
}

/// Parses one file; its syntax errors go to `problems`.
pub(super) fn table<'a>(path: &str, text: &'a str, problems: &mut Problems) -> Option<Spanned<DeTable<'a>>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    // A first mistake often drags others after it on the same line.
    let mut last = 0;
    for error in &errors {
        let line = line_at(text.as_bytes(), error.span().map_or(0, |span| span.start));
        if line != last {
            problems.add(path, line, printable(&error.message().replace('\n', "; ")));
        }
        last = line;
    }
    errors.is_empty().then_some(table)
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a str, text: &'a str, problems: &'a mut Problems) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { path, text, starts, lines: Lines::default(), problems }
    }

    pub(super) fn problem(&mut self, line: usize, message: String) {
        self.problems.add(self.path, line, message);
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.starts.partition_point(|&start| start <= span.start).max(1)
    }

    /// A value under its key, with its line remembered.
    fn value<'t>(
        &mut self,
        section: &mut Section<'t>,
        name: &'static str,
    ) -> Option<(String, &'t Spanned<DeValue<'t>>)> {
        section.asked.push(name);
        let (key, value) = section.table.get_key_value(name)?;
        let path = join(&section.key, name);
        // The key's line: that of a table under `[[bridge]]` would be its header's, that of a value the same.
        let line = self.line(&key.span());
        self.lines.0.insert(path.clone(), line);
        Some((path, value))
    }

    /// A string that `parse` accepts, or `None` after a problem or when the key is not there. What `parse` returns as an
    /// error is the rest of the line after `KEY VALUE: `, or after `KEY: ` when the value is a secret.
    pub(super) fn string<T>(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (path, value) = self.value(section, name)?;
        self.scalar(&section.context, &path, name, value, "a string", &parse)
    }

    /// As [`Reader::string`]; missing is a problem. `example` completes `write NAME = `.
    pub(super) fn required<T>(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
        example: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !section.table.contains_key(name) {
            section.asked.push(name);
            let message = format!("{}missing {name}; write {name} = {example}", section.context);
            self.problem(section.line, message);
            return None;
        }
        self.string(section, name, parse)
    }

    /// A list of strings that `parse` accepts; `None` when the key is not there.
    pub(super) fn strings<T>(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let (path, value) = self.value(section, name)?;
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(&section.context, &path, name, value, "a list of strings");
            return Some(Vec::new());
        };
        Some(self.items(section, &path, name, items, &parse))
    }

    /// A string or a list of them, each of which `parse` accepts; `None` when the key is not there.
    pub(super) fn string_or_strings<T>(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let (path, value) = self.value(section, name)?;
        if let DeValue::Array(items) = value.get_ref() {
            return Some(self.items(section, &path, name, items, &parse));
        }
        let expected = "a string or a list of strings";
        Some(self.scalar(&section.context, &path, name, value, expected, &parse).into_iter().collect())
    }

    fn items<T>(
        &mut self,
        section: &Section<'_>,
        path: &str,
        name: &'static str,
        items: &[Spanned<DeValue<'_>>],
        parse: &impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let item_path = format!("{path}[{index}]");
            let line = self.line(&item.span());
            self.lines.0.insert(item_path.clone(), line);
            values.extend(self.scalar(&section.context, &item_path, name, item, "a string", parse));
        }
        values
    }

    /// A whole number within bounds.
    pub(super) fn integer(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
        range: std::ops::RangeInclusive<u16>,
        why: &str,
    ) -> Option<u16> {
        let (path, value) = self.value(section, name)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(&section.context, &path, name, value, "a whole number");
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            let written = self.raw(value);
            let message = format!("{}{name} {written}: expected {low} to {high}{why}", section.context);
            self.problem(self.lines.of(&path), message);
        }
        number
    }

    /// A whole number or a string, either of which `parse` gets as text.
    pub(super) fn number_or_string<T>(
        &mut self,
        section: &mut Section<'_>,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (path, value) = self.value(section, name)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.scalar(&section.context, &path, name, value, "a whole number or a string", &parse);
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix());
        match parse(&number.map(|number| number.to_string()).unwrap_or_default()) {
            Ok(parsed) => Some(parsed),
            Err(why) => {
                let message = format!("{}{name} {}: {why}", section.context, self.raw(value));
                self.problem(self.lines.of(&path), message);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, section: &mut Section<'_>, name: &'static str) -> Option<bool> {
        let (path, value) = self.value(section, name)?;
        if let DeValue::Boolean(boolean) = value.get_ref() {
            return Some(*boolean);
        }
        self.wrong_type(&section.context, &path, name, value, "true or false");
        None
    }

    /// The table `[NAME]`.
    pub(super) fn section<'t>(&mut self, section: &mut Section<'t>, name: &'static str) -> Option<Section<'t>> {
        let (path, value) = self.value(section, name)?;
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(&section.context, &path, name, value, &format!("one [{name}]"));
            return None;
        };
        let line = self.lines.of(&path);
        Some(Section { table, key: path, line, context: format!("{name}: "), asked: Vec::new() })
    }

    /// The tables under `[NAME]`, each with its key. `of` says what the keys are.
    pub(super) fn named_sections<'t>(
        &mut self,
        section: &mut Section<'t>,
        name: &'static str,
        of: &str,
    ) -> Vec<(String, Section<'t>)> {
        let context = section.context.clone();
        let Some(around) = self.section(section, name) else { return Vec::new() };
        let mut sections = Vec::new();
        for (key, value) in around.table {
            let named = key.get_ref().to_string();
            let (path, line) = (join(&around.key, &named), self.line(&key.span()));
            self.lines.0.insert(path.clone(), line);
            if let DeValue::Table(table) = value.get_ref() {
                let context = format!("{context}{of} {}: ", quote(&named));
                sections.push((named, Section { table, key: path, line, context, asked: Vec::new() }));
            } else {
                self.wrong_type(&context, &path, &named, value, "a table");
            }
        }
        sections
    }

    /// The tables `[[NAME]]`.
    pub(super) fn sections<'t>(&mut self, section: &mut Section<'t>, name: &'static str) -> Vec<Section<'t>> {
        let Some((path, value)) = self.value(section, name) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(
                &section.context,
                &path,
                name,
                value,
                &format!("[[{name}]], with two brackets on each side"),
            );
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let key = format!("{path}[{index}]");
            let line = self.line(&item.span());
            self.lines.0.insert(key.clone(), line);
            if let DeValue::Table(table) = item.get_ref() {
                sections.push(Section { table, key, line, context: format!("{name}: "), asked: Vec::new() });
            } else {
                self.wrong_type(&section.context, &key, name, item, &format!("[[{name}]]"));
            }
        }
        sections
    }

    /// Names the keys that nobody asked for.
    pub(super) fn finish(&mut self, section: &Section<'_>) {
        for key in section.table.keys() {
            let name = key.get_ref().as_ref();
            if section.asked.contains(&name) {
                continue;
            }
            let hint = match nearest(name, &section.asked) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("known keys: {}", section.asked.join(", ")),
            };
            let line = self.line(&key.span());
            self.problem(line, format!("{}unknown key {}; {hint}", section.context, quote(name)));
        }
    }

    fn scalar<T>(
        &mut self,
        context: &str,
        path: &str,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
        parse: &impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(context, path, name, value, expected);
            return None;
        };
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(why) if SECRETS.contains(&name) => {
                self.problem(self.lines.of(path), format!("{context}{name}: {why}"));
                None
            }
            Err(why) => {
                self.problem(self.lines.of(path), format!("{context}{name} {}: {why}", quote(text)));
                None
            }
        }
    }

    fn wrong_type(&mut self, context: &str, path: &str, name: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        // Only plain values are shown, and never where a secret belongs.
        let found = match value.get_ref() {
            DeValue::String(_) if SECRETS.contains(&name) => "a string".to_owned(),
            DeValue::String(text) => format!("the string {}", quote(text)),
            DeValue::Boolean(boolean) => boolean.to_string(),
            DeValue::Integer(_) | DeValue::Float(_) => format!("the number {}", self.raw(value)),
            DeValue::Datetime(_) => "a date".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        self.problem(self.lines.of(path), format!("{context}{name}: expected {expected}, found {found}"));
    }

    fn raw(&self, value: &Spanned<DeValue<'_>>) -> String {
        printable(&self.text[value.span()].chars().take(24).collect::<String>())
    }
}

/// Keys whose values are never shown.
const SECRETS: [&str; 1] = ["preshared_key"];

impl<'t> Section<'t> {
    /// The whole file.
    pub(super) fn top(table: &'t Spanned<DeTable<'t>>) -> Self {
        Self { table: table.get_ref(), key: String::new(), line: 1, context: String::new(), asked: Vec::new() }
    }

    /// Where the section starts.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The path of one of its values.
    pub(super) fn key_of(&self, name: &str) -> String {
        join(&self.key, name)
    }

    pub(super) fn is_empty_list(&self, name: &str) -> bool {
        self.table.get(name).is_some_and(|value| matches!(value.get_ref(), DeValue::Array(items) if items.is_empty()))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }
}

/// Without an index of lines, for the few errors that come before there is one.
fn line_at(bytes: &[u8], offset: usize) -> usize {
    bytes[..offset.min(bytes.len())].split(|&byte| byte == b'\n').count()
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}
