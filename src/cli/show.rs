//! What several commands print.

use crate::config::Config;

/// The command that makes this host known to another, broken to fit 80 columns.
pub fn add_command(config: &Config) -> String {
    let host = &config.host;
    let mut words =
        vec![format!("meshd peer add {}", host.name), format!("--public-key {}", config.private_key.public_key())];
    words.extend(host.endpoint.iter().map(|endpoint| format!("--endpoint {endpoint}")));
    words.extend(host.addresses.iter().map(|net| format!("--address {}", net.addr())));
    let subnets = host.bridges.iter().flat_map(|bridge| &bridge.subnets).chain(host.lans.iter().map(|lan| &lan.subnet));
    words.extend(subnets.map(|net| format!("--subnet {net}")));
    broken(&words)
}

/// Words of a command on lines of at most 80 columns, each indented, with a backslash where it goes on.
fn broken(words: &[String]) -> String {
    const WIDTH: usize = 78;
    let mut lines = vec![String::from(" ")];
    for word in words {
        let line = lines.last().map_or(0, String::len);
        // The first line is never empty of words.
        if line > 6 && line + 1 + word.len() > WIDTH {
            lines.push(String::from("     "));
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join(" \\\n") + "\n"
}

/// A string as TOML writes it.
pub fn toml_string(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A list of strings as TOML writes it.
pub fn toml_list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| toml_string(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// Rows under a heading, each column as wide as it needs.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The first of several values, and how many more there are.
pub fn first_of<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "-".into(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{} +{}", first.to_string(), rest.len()),
    }
}

/// All of several values.
pub fn all_of<T: ToString>(items: &[T]) -> String {
    if items.is_empty() { "-".into() } else { items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_fits_the_terminal_and_stays_one_command() {
        let words: Vec<String> = ["meshd peer add home", "--public-key xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="]
            .into_iter()
            .map(String::from)
            .chain((0..5).map(|i| format!("--subnet 10.89.{i}.0/24")))
            .collect();
        let text = broken(&words);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        let joined = text.replace("\\\n", " ");
        assert_eq!(joined.split_whitespace().collect::<Vec<_>>().join(" "), words.join(" "));
    }

    #[test]
    fn strings_are_quoted_as_toml_reads_them() {
        for text in ["br0", "a\"b\\c", "\u{1b}[2J\n", "'"] {
            let table: toml::Table =
                format!("key = {}\nlist = {}", toml_string(text), toml_list(&[text])).parse().unwrap();
            assert_eq!(table["key"].as_str(), Some(text));
            assert_eq!(table["list"][0].as_str(), Some(text));
        }
    }
}
