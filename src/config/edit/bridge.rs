//! The `[[bridge]]` tables of `meshd.toml`.

use ipnet::IpNet;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, TomlError, Value};

use super::{list, strings};

/// The text with one more bridge at its end, under a comment of one line.
pub fn add_bridge(text: &str, name: &str, subnets: &[IpNet], comment: &str) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let trailing = document.trailing().as_str().unwrap_or_default().to_owned();
    match document.entry("bridge").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(bridges) => {
            let mut bridge = Table::new();
            bridge.insert("name", Item::Value(name.into()));
            bridge.insert("subnets", Item::Value(strings(subnets)));
            // At the very end, behind what stands there as comments.
            bridge.decor_mut().set_prefix(format!("{trailing}\n# {comment}\n"));
            bridge.set_position(Some(isize::MAX));
            bridges.push(bridge);
            document.set_trailing("");
        }
        Item::Value(Value::Array(bridges)) => {
            let fields = [("name", Value::from(name)), ("subnets", strings(subnets))];
            bridges.push(fields.into_iter().collect::<InlineTable>());
        }
        // What else it may be, the check that follows says.
        _ => {}
    }
    Ok(document.to_string())
}

/// The text with these subnets in the bridge of this name, beside those that it has.
pub fn widen_bridge(text: &str, name: &str, subnets: &[IpNet]) -> Result<String, TomlError> {
    edit(text, |bridge| {
        if bridge.get("name").and_then(Item::as_str) != Some(name) {
            return;
        }
        if let Some(written) = bridge.get_mut("subnets").and_then(Item::as_array_mut) {
            written.extend(subnets.iter().map(ToString::to_string));
        } else if let Some(subnets) = list(subnets) {
            bridge.insert("subnets", Item::Value(subnets));
        }
    })
}

/// The text with this egress in each bridge that has none written.
pub fn default_egress(text: &str, egress: &str) -> Result<String, TomlError> {
    edit(text, |bridge| {
        if !bridge.contains_key("egress") {
            bridge.insert("egress", Item::Value(egress.into()));
        }
    })
}

fn edit(text: &str, mut change: impl FnMut(&mut dyn TableLike)) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    match document.get_mut("bridge") {
        Some(Item::ArrayOfTables(bridges)) => bridges.iter_mut().for_each(|bridge| change(bridge)),
        Some(Item::Value(Value::Array(bridges))) => {
            bridges.iter_mut().filter_map(Value::as_inline_table_mut).for_each(|bridge| change(bridge));
        }
        _ => {}
    }
    Ok(document.to_string())
}

/// Whether the text has this key at its top.
pub fn is_written(text: &str, key: &str) -> bool {
    text.parse::<DocumentMut>().is_ok_and(|document| document.contains_key(key))
}

/// The text with these addresses, in their old place when there are any.
pub fn set_addresses(text: &str, addresses: &[IpNet]) -> Result<String, TomlError> {
    super::set(text, "addresses", addresses.iter().map(ToString::to_string).collect::<Array>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
# Home.
name = \"home\"
addresses = [\"10.87.1.2/16\"] # made up

# The containers.
[[bridge]]
name = \"br0\" # podman's
subnets = [\"10.89.2.0/24\"] # and no more
# egress = \"direct\"

[[bridge]]
name = \"br1\"
subnets = [
    \"10.89.3.0/24\",
]
egress = \"none\"

# The end.
";

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn a_bridge_is_added_behind_the_others_and_comments_stay() {
        let with = add_bridge(HOST, "br2", &nets(&["10.89.4.0/24", "fd89:4::/64"]), "From vps.").unwrap();
        let added =
            "\n# The end.\n\n# From vps.\n[[bridge]]\nname = \"br2\"\nsubnets = [\"10.89.4.0/24\", \"fd89:4::/64\"]\n";
        assert_eq!(with, HOST.replace("\n# The end.\n", added));
        let exit = "name = \"home\"\n\n[[bridge]]\nname = \"br0\"\n\n[exit]\npeers = []\n# endpoint\n";
        let with = add_bridge(exit, "br1", &nets(&["10.89.4.0/24"]), "From vps.").unwrap();
        let added = "\n# From vps.\n[[bridge]]\nname = \"br1\"\nsubnets = [\"10.89.4.0/24\"]\n";
        assert_eq!(with, format!("{exit}{added}"));
        let inline = "bridge = [{ name = \"br0\", subnets = [\"10.89.2.0/24\"] }]\n";
        let with = add_bridge(inline, "br1", &nets(&["10.89.4.0/24"]), "From vps.").unwrap();
        assert!(with.contains("}, { name = \"br1\", subnets = [\"10.89.4.0/24\"] }]"), "{with}");
    }

    #[test]
    fn a_bridge_gets_subnets_and_only_the_one_without_an_egress_gets_one() {
        let with = widen_bridge(HOST, "br0", &nets(&["fd89:2::/64"])).unwrap();
        assert_eq!(with, HOST.replace("[\"10.89.2.0/24\"]", "[\"10.89.2.0/24\", \"fd89:2::/64\"]"));
        assert_eq!(widen_bridge(HOST, "br9", &nets(&["fd89:2::/64"])).unwrap(), HOST);
        let with = default_egress(HOST, "vps").unwrap();
        let line = "subnets = [\"10.89.2.0/24\"] # and no more\n";
        assert_eq!(with, HOST.replace(line, &format!("{line}egress = \"vps\"\n")));
        assert_eq!(default_egress(&with, "other").unwrap(), with);
    }

    #[test]
    fn addresses_change_in_their_place() {
        let with = set_addresses(HOST, &nets(&["10.88.0.2/24", "fd88::2/64"])).unwrap();
        assert_eq!(with, HOST.replace("[\"10.87.1.2/16\"]", "[\"10.88.0.2/24\", \"fd88::2/64\"]"));
        assert!(is_written(HOST, "addresses") && !is_written(HOST, "mtu"));
    }
}
