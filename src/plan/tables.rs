//! The numbers of the bridges' routing tables.
//!
//! A number must be the same at every start, so that what a crashed agent left is recognised, and differ between agents
//! that share a network namespace. It is 8,800,000 plus FNV-1a 64 of `INTERFACE/BRIDGE` modulo 100,000. When two bridges of
//! one configuration meet at a number, the one whose name sorts later takes the next free one. `INTERFACE/INTERFACE` is the
//! table for what goes from the tunnel into it: what exit clients send on to another exit, answers to what peers publish.

use std::collections::BTreeMap;

use crate::config::{Config, Egress};

const FIRST: u32 = 8_800_000;
const COUNT: u32 = 100_000;

/// The number of a bridge that meets no other.
pub fn number(interface: &str, bridge: &str) -> u32 {
    let hash = fnv1a(format!("{interface}/{bridge}").as_bytes());
    FIRST + u32::try_from(hash % u64::from(COUNT)).unwrap_or_default()
}

/// Whether a number may be that of an agent's table.
pub fn is_an_agents(table: u32) -> bool {
    (FIRST..FIRST + COUNT).contains(&table)
}

/// The tables of a configuration: number to bridge, or to the tunnel for what goes back or on into it.
pub fn of(config: &Config) -> BTreeMap<u32, String> {
    let interface = config.host.interface.as_str();
    let bridges = config.host.bridges.iter().filter(|bridge| bridge.egress != Egress::Direct);
    let names = bridges.map(|bridge| bridge.name.as_str());
    let tunnel = (config.chained().next().is_some() || config.answers_need_marks()).then_some(interface);
    assign(names.chain(tunnel).map(|name| (name, number(interface, name))))
}

fn assign<'a>(bridges: impl Iterator<Item = (&'a str, u32)>) -> BTreeMap<u32, String> {
    let by_name: BTreeMap<&str, u32> = bridges.collect();
    let mut tables = BTreeMap::new();
    for (bridge, mut number) in by_name {
        while tables.contains_key(&number) {
            number = FIRST + (number - FIRST + 1) % COUNT;
        }
        tables.insert(number, bridge.to_owned());
    }
    tables
}

/// FNV-1a, 64 bits (draft-eastlake-fnv): stable across Rust releases, which the standard hasher is not.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_agrees_with_the_draft() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn numbers_stay_in_range_and_differ_between_agents() {
        assert_ne!(number("mesh0", "br0"), number("mesh1", "br0"));
        for bridge in ["br0", "br1", "podman0"] {
            assert!((FIRST..FIRST + COUNT).contains(&number("mesh0", bridge)));
        }
    }

    #[test]
    fn bridges_that_meet_are_moved_apart_whatever_their_order() {
        let last = FIRST + COUNT - 1;
        let tables = assign([("b", last), ("a", last), ("c", FIRST)].into_iter());
        let expected = [(last, "a"), (FIRST, "b"), (FIRST + 1, "c")];
        assert_eq!(tables, expected.map(|(number, name)| (number, name.to_owned())).into());
    }
}
