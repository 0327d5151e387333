//! Words, sets, rules and chains as nft(8) reads them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::tables::fnv1a;
use super::super::{Family, NftTable};
use crate::config::Config;

pub(super) fn keyword(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

/// A rule for each family that has networks.
pub(super) fn by_family<'a>(
    nets: impl Iterator<Item = &'a IpNet>,
    rule: impl Fn(&str, &str) -> String,
) -> impl Iterator<Item = String> {
    let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) = nets.partition(|net| Family::of(net) == Family::V4);
    let of = |family, nets: Vec<&IpNet>| set(nets.into_iter()).map(|set| rule(keyword(family), &set));
    [of(Family::V4, v4), of(Family::V6, v6)].into_iter().flatten()
}

/// An anonymous set.
pub(super) fn set<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Option<String> {
    let words: Vec<String> = outer(nets).into_iter().map(plain).collect();
    (!words.is_empty()).then(|| format!("{{ {} }}", words.join(", ")))
}

/// Without those inside others, because nft refuses sets with overlaps. Of networks that nest, the outer one sorts first.
pub(super) fn outer<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Vec<IpNet> {
    let all: BTreeSet<IpNet> = nets.map(IpNet::trunc).collect();
    let mut outer: Vec<IpNet> = Vec::with_capacity(all.len());
    for net in all {
        if !outer.last().is_some_and(|last| last.contains(&net)) {
            outer.push(net);
        }
    }
    outer
}

/// A single address is written without its prefix length.
pub(super) fn plain(net: IpNet) -> String {
    let host: IpAddr = net.addr();
    if net.prefix_len() == net.max_prefix_len() { host.to_string() } else { net.to_string() }
}

pub(super) fn names(names: BTreeSet<&str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

/// A chain for an interface, whose name may hold characters that nft takes in quotes only, as a chain's never is.
pub(super) fn chain_name(prefix: &str, interface: &str) -> String {
    if interface.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return format!("{prefix}-{interface}");
    }
    format!("{prefix}-{:016x}", fnv1a(interface.as_bytes()))
}

/// The tunnel and the local bridges.
pub(super) fn inside(config: &Config) -> BTreeSet<&str> {
    let bridges = config.host.bridges.iter().map(|bridge| bridge.name.as_str());
    bridges.chain([config.host.interface.as_str()]).collect()
}

/// Builds the text of a table.
pub(super) struct Text {
    family: &'static str,
    name: String,
    lines: String,
}

impl Text {
    pub(super) fn new(family: &'static str, name: String) -> Self {
        let lines = format!("table {family} {name} {{\n");
        Self { family, name, lines }
    }

    pub(super) fn base_chain(&mut self, name: &str, kind: &str, hook: &str, priority: &str, rules: &[String]) {
        if !rules.is_empty() {
            let hook = format!("type {kind} hook {hook} priority {priority}; policy accept;");
            self.block(name, std::iter::once(&hook).chain(rules));
        }
    }

    pub(super) fn chain(&mut self, name: &str, rules: &[String]) {
        self.block(name, rules.iter());
    }

    /// A named set of a type such as `type ifname`.
    pub(super) fn set(&mut self, name: &str, of: &str, elements: &[String]) {
        let elements =
            if elements.is_empty() { String::new() } else { format!("; elements = {{ {} }}", elements.join(", ")) };
        // Writing to a String cannot fail.
        let _ = writeln!(self.lines, "\tset {name} {{ {of}{elements}; }}");
    }

    fn block<'a>(&mut self, name: &str, lines: impl Iterator<Item = &'a String>) {
        let lines: String = lines.fold(String::new(), |text, line| text + "\t\t" + line + "\n");
        // Writing to a String cannot fail.
        let _ = write!(self.lines, "\tchain {name} {{\n{lines}\t}}\n");
    }

    pub(super) fn finish(self) -> NftTable {
        NftTable { family: self.family, name: self.name, text: self.lines + "}\n" }
    }
}
