//! `[[publish]]` blocks in the text of `meshd.toml`; all else in it stays as it is, comments too.

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, TomlError, Value};

use crate::config::{PortRange, Protocol, Publish, value};

/// The text with one more block.
pub fn add(text: &str, publish: &Publish) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let ports = publish.ports;
    let port: Value = if ports.first == ports.last { i64::from(ports.first).into() } else { ports.to_string().into() };
    let entries: [(&str, Value); 3] =
        [("protocol", publish.protocol.to_string().into()), ("port", port), ("to", publish.to.to_string().into())];
    match document.entry("publish").or_insert(Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(blocks) => {
            blocks.push(Table::from_iter(entries));
        }
        Item::Value(Value::Array(list)) => list.push(InlineTable::from_iter(entries)),
        // The check that follows says what is wrong with it.
        _ => {}
    }
    Ok(document.to_string())
}

/// The text without the blocks of these ports, of those only that lead to `to` where that is given; and how many they were.
pub fn remove(
    text: &str,
    ports: PortRange,
    protocol: Protocol,
    to: Option<&str>,
) -> Result<(String, usize), TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let meant = |table: &dyn TableLike| {
        let text = |key| table.get(key).and_then(Item::as_str);
        let number = table.get("port").and_then(Item::as_integer).map(|number| number.to_string());
        let written = text("port").map(str::to_owned).or(number).and_then(|port| value::ports(&port).ok());
        written == Some(ports)
            && text("protocol") == Some(&protocol.to_string())
            && to.is_none_or(|to| text("to").is_some_and(|written| same_target(written, to)))
    };
    let removed = match document.get_mut("publish") {
        Some(Item::ArrayOfTables(blocks)) => {
            let mut removed = 0;
            let mut orphans = Vec::new();
            blocks.retain(|block| {
                let keep = !meant(block);
                if !keep {
                    removed += 1;
                    orphans.extend(block.position().zip(apart(block)));
                }
                keep
            });
            if blocks.is_empty() {
                document.remove("publish");
            }
            for (position, comment) in orphans {
                hand_on(&mut document, position, &comment);
            }
            removed
        }
        Some(Item::Value(Value::Array(list))) => retain(list, |table| !meant(table)),
        _ => 0,
    };
    Ok((document.to_string(), removed))
}

fn same_target(a: &str, b: &str) -> bool {
    a == b || value::target(a).is_ok_and(|a| value::target(b).is_ok_and(|b| a == b))
}

fn retain(list: &mut Array, keep: impl Fn(&dyn TableLike) -> bool) -> usize {
    let before = list.len();
    list.retain(|value| value.as_inline_table().is_none_or(|table| keep(table)));
    before - list.len()
}

/// Comments above a block with an empty line between: they are about more than this block.
fn apart(block: &Table) -> Option<String> {
    let above = block.decor().prefix()?.as_str()?;
    let end = above.rfind("\n\n")? + 1;
    above[..end].contains('#').then(|| above[..end].to_owned())
}

/// Puts comments above what follows their old place.
fn hand_on(document: &mut DocumentMut, position: isize, comment: &str) {
    let tables = document.iter_mut().flat_map(|(_, item)| match item {
        Item::Table(table) => vec![table],
        Item::ArrayOfTables(tables) => tables.iter_mut().collect(),
        _ => Vec::new(),
    });
    let next = tables.filter(|table| table.position() > Some(position)).min_by_key(|table| table.position());
    let Some(next) = next else {
        let trailing = document.trailing().as_str().unwrap_or_default().to_owned();
        document.set_trailing(format!("{comment}{trailing}"));
        return;
    };
    let prefix = next.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default().to_owned();
    next.decor_mut().set_prefix(format!("{comment}{prefix}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# vps, the one in Frankfurt
name = \"vps\" # ours

# What the world reaches.

# the proxy
[[publish]]
protocol = \"tcp\"   # https
port = 443
to = \"10.89.1.10:443\"

[[publish]]
protocol = \"tcp\"
port = 443
to = \"[fd89:1::10]:443\"

[exit]
peers = [\"home\"]
# the end
";

    fn block(ports: &str, protocol: Protocol, to: &str) -> Publish {
        Publish { protocol, ports: value::ports(ports).unwrap(), to: to.parse().unwrap() }
    }

    fn gone(text: &str, ports: &str, to: Option<&str>) -> (String, usize) {
        remove(text, value::ports(ports).unwrap(), Protocol::Tcp, to).unwrap()
    }

    #[test]
    fn what_is_added_and_removed_again_leaves_the_text_as_it_was() {
        for text in [TEXT, "name = \"home\"\n", "", "publish = [] # inline\n"] {
            let published = block("8000-8010", Protocol::Tcp, "10.89.2.10:9000");
            let added = add(text, &published).unwrap();
            assert!(added.contains("port = \"8000-8010\""), "{added}");
            let comments = text.lines().filter_map(|line| line.split_once('#'));
            assert!(comments.into_iter().all(|(_, comment)| added.contains(comment)), "{added}");
            let (after, count) = gone(&added, "8000-8010", Some("10.89.2.10:9000"));
            assert_eq!((after.trim_end(), count), (text.trim_end(), 1));
        }
    }

    #[test]
    fn only_what_is_meant_goes_and_comments_on_more_than_it_stay() {
        let (text, count) = gone(TEXT, "443", Some("10.89.1.10:443"));
        assert_eq!(count, 1);
        let expected = TEXT
            .replace("# the proxy\n", "")
            .replace("[[publish]]\nprotocol = \"tcp\"   # https\nport = 443\nto = \"10.89.1.10:443\"\n\n", "");
        assert_eq!(text, expected);
        let (text, count) = gone(TEXT, "443", None);
        assert_eq!(count, 2);
        assert!(
            text.contains("# What the world reaches.\n") && !text.contains("publish") && text.contains("# the end\n")
        );
        assert_eq!(gone(TEXT, "444", None), (TEXT.to_owned(), 0));
        assert_eq!(gone(TEXT, "443", Some("[fd89:1:0::10]:443")).1, 1);
    }
}
