//! What is wrong with the files, one line each, and how untrusted text is shown in it.

use std::fmt;

/// More are not collected: a hostile file must not turn into megabytes of errors.
const MOST: usize = 50;

/// One thing wrong, at one line of one file: `PATH:LINE: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub path: String,
    /// Counted from 1.
    pub line: usize,
    /// The offending value, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", printable(&self.path), self.line, self.message)
    }
}

/// Collects problems while parsing goes on, up to a bound.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, path: &str, line: usize, message: String) {
        if self.0.len() < MOST {
            self.0.push(Problem { path: path.to_owned(), line, message });
        }
    }

    /// Nothing, or all problems in the order of files and lines.
    pub(crate) fn into_result(mut self) -> Result<(), Vec<Problem>> {
        self.0.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// A value from a file, in double quotes, shortened, and without anything that a terminal would act on: escape
/// sequences and bidirectional overrides come out as `\u{1b}`.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 64;
    if text.chars().count() > LONGEST {
        let start: String = text.chars().take(LONGEST).collect();
        format!("{start:?}…")
    } else {
        format!("{text:?}")
    }
}

/// A text without quotes, such as a path, with what is not printable escaped.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            // `escape_debug` knows what is printable, but would also escape quotes and backslashes.
            let keep = matches!(c, '"' | '\'' | '\\');
            keep.then_some(c).into_iter().chain((!keep).then(|| c.escape_debug()).into_iter().flatten())
        })
        .collect()
}

/// `a, b, c`, quoted only where a name needs it, and not endlessly.
pub fn list_of_names<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    const MOST_SHOWN: usize = 12;
    let all: Vec<String> = items.into_iter().map(|item| printable(&item.to_string())).collect();
    let shown = all.iter().take(MOST_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > MOST_SHOWN { format!("{shown} and {} more", all.len() - MOST_SHOWN) } else { shown }
}

/// The one of `known` that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // Long words are never a slip of the pen, and the distance costs the product of the lengths.
    if word.len() > 40 {
        return None;
    }
    known
        .iter()
        .map(|&candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|&(likeness, _)| likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_raw() {
        assert_eq!(quote("\u{1b}[31mred"), r#""\u{1b}[31mred""#);
        assert_eq!(quote("a\u{202e}b\n"), r#""a\u{202e}b\n""#);
        assert_eq!(printable("/etc/\u{1b}]0;x\u{7}\"'\\é"), "/etc/\\u{1b}]0;x\\u{7}\"'\\é");
        assert_eq!(quote(&"x".repeat(100)), format!("\"{}\"…", "x".repeat(64)));
    }

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        let known = ["name", "interface", "addresses", "listen_port", "bridge"];
        assert_eq!(nearest("adresses", &known), Some("addresses"));
        assert_eq!(nearest("bridges", &known), Some("bridge"));
        assert_eq!(nearest("listen-port", &known), Some("listen_port"));
        assert_eq!(nearest("zzz", &known), None);
    }
}
