//! Changes to the text of `meshd.toml` and `peers/NAME.toml`; all else in them stays as it is, comments too.

mod bridge;

use toml_edit::{Array, DocumentMut, Item, Table, TomlError, Value};

use super::{Peer, quote, value};
use crate::key::PresharedKey;
pub use bridge::{add_bridge, default_egress, is_written, set_addresses, widen_bridge};

/// A peer's whole file. Its preshared key is written into it, so the file is a secret.
pub fn peer(peer: &Peer) -> String {
    let mut document = DocumentMut::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            document[key] = Item::Value(value);
        }
    };
    set("public_key", Some(peer.public_key.to_string().into()));
    set("preshared_key", peer.preshared_key.as_ref().map(|key| key.expose_base64().into()));
    set("endpoint", peer.endpoint.as_ref().map(|endpoint| endpoint.to_string().into()));
    set("addresses", list(&peer.addresses));
    set("subnets", list(&peer.subnets));
    set("lans", list(&peer.lans));
    set("persistent_keepalive", peer.persistent_keepalive.map(|seconds| i64::from(seconds).into()));
    set("client", peer.client.then(|| true.into()));
    set("allow", peer.allow.as_ref().map(|allow| strings(allow)));
    set("express", (!peer.express).then(|| value::express_word(false).into()));
    set("via", peer.via.as_deref().map(Value::from));
    set("introduced_by", peer.introduced_by.as_deref().map(Value::from));
    set("inviter_key", peer.inviter_key.map(|key| key.to_string().into()));
    set("next_public_key", peer.next.public_key.map(|key| key.to_string().into()));
    set("next_preshared_key", peer.next.preshared_key.as_ref().map(|key| key.expose_base64().into()));
    set("next_inviter_key", peer.next.inviter_key.map(|key| key.to_string().into()));
    set("former_public_key", peer.next.former.map(|key| key.to_string().into()));
    document.to_string()
}

/// The text with `key` set to `value` at its top, in its old place when it has one.
pub fn set(text: &str, key: &str, value: impl Into<Value>) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    put(document.as_table_mut(), key, value.into());
    Ok(document.to_string())
}

/// The text without this key at its top.
pub fn unset(text: &str, key: &str) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    document.remove(key);
    Ok(document.to_string())
}

/// The text of a peer's file with the keys of `new` in the place of those of `old`.
pub fn keys(text: &str, old: &Peer, new: &Peer) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let mut follow = |key: &str, value: Option<String>| match value {
        Some(value) => put(document.as_table_mut(), key, value.into()),
        None => drop(document.remove(key)),
    };
    follow("public_key", Some(new.public_key.to_string()));
    if new.preshared_key != old.preshared_key {
        follow("preshared_key_file", None);
        follow("preshared_key", new.preshared_key.as_ref().map(PresharedKey::expose_base64));
    }
    follow("inviter_key", new.inviter_key.map(|key| key.to_string()));
    follow("next_public_key", new.next.public_key.map(|key| key.to_string()));
    follow("next_preshared_key", new.next.preshared_key.as_ref().map(PresharedKey::expose_base64));
    follow("next_inviter_key", new.next.inviter_key.map(|key| key.to_string()));
    follow("former_public_key", new.next.former.map(|key| key.to_string()));
    Ok(document.to_string())
}

/// The text of `meshd.toml` with this peer in `[exit] peers`.
pub fn carry(text: &str, name: &str) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let exit = document.entry("exit").or_insert_with(|| Item::Table(Table::new()));
    let peers = exit.as_table_like_mut().map(|exit| exit.entry("peers").or_insert_with(|| Array::new().into()));
    // What else it may be, the check that follows says.
    if let Some(peers) = peers.and_then(Item::as_array_mut)
        && !peers.iter().any(|peer| peer.as_str() == Some(name))
    {
        peers.push(name);
    }
    Ok(document.to_string())
}

/// The text of `meshd.toml` without this peer in `[exit] peers`; without `[exit]` when it was the last.
pub fn carry_no_more(text: &str, name: &str) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let exit = document.get_mut("exit").and_then(Item::as_table_like_mut);
    if let Some(peers) = exit.and_then(|exit| exit.get_mut("peers")).and_then(Item::as_array_mut) {
        peers.retain(|peer| peer.as_str() != Some(name));
        if peers.is_empty() {
            document.remove("exit");
        }
    }
    Ok(document.to_string())
}

/// Replaces a value and keeps what is written around it.
fn put(table: &mut Table, key: &str, mut value: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

fn list<T: ToString>(items: &[T]) -> Option<Value> {
    (!items.is_empty()).then(|| strings(items))
}

fn strings<T: ToString>(items: &[T]) -> Value {
    items.iter().map(ToString::to_string).collect::<Array>().into()
}

/// Why an edit failed, in one line: the file is no TOML.
pub fn broken(path: &str, error: &TomlError) -> String {
    format!("{}: {}", quote(path), error.message().replace('\n', "; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
name = \"vps\" # in Frankfurt

# Carries what home sends.
[exit]
peers = [\"home\"] # not the phone
interface = \"eth0\"
";

    #[test]
    fn an_exit_gains_and_loses_peers_and_comments_stay() {
        let with = carry(HOST, "lab").unwrap();
        assert_eq!(with, HOST.replace("[\"home\"]", "[\"home\", \"lab\"]"));
        assert_eq!(carry(&with, "lab").unwrap(), with, "once is enough");
        assert_eq!(carry_no_more(&with, "lab").unwrap(), HOST);
        assert_eq!(carry_no_more(HOST, "phone").unwrap(), HOST);
        assert!(!carry_no_more(HOST, "home").unwrap().contains("[exit]"), "an exit of nobody is refused");
        assert!(carry("name = \"vps\"\n", "home").unwrap().contains("[exit]\npeers = [\"home\"]"));
    }

    #[test]
    fn a_value_changes_in_its_place() {
        assert_eq!(set(HOST, "name", "hub").unwrap(), HOST.replace("\"vps\"", "\"hub\""));
        let with = set(HOST, "mtu", 1400).unwrap();
        assert!(with.find("mtu = 1400").unwrap() < with.find("[exit]").unwrap(), "{with}");
        assert_eq!(unset(&with, "mtu").unwrap(), HOST);
    }
}
