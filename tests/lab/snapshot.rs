//! Everything that meshd may change on a host, as text, to be compared byte for byte.

use std::collections::BTreeMap;

use super::netns::Namespace;

const COMMANDS: &[&str] = &[
    "ip -4 rule",
    "ip -6 rule",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip address",
    // The timers of bridges tick.
    "ip -d link | sed -E 's/[a-z_]+_timer +[0-9.]+ ?//g'",
    // Without counters.
    "nft -s list ruleset",
    "grep -rs '' /proc/sys/net/ipv4 | sort",
    "grep -rs '' /proc/sys/net/ipv6 | sort",
    "ls -l /run/wireguard",
];

/// A host's rules, routes, addresses, links, nft ruleset and sysctls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<&'static str, String>);

impl Snapshot {
    /// As they are now.
    pub fn of(host: &Namespace) -> Self {
        Self(COMMANDS.iter().map(|command| (*command, host.run(command))).collect())
    }

    /// Panics with the lines that differ.
    pub fn assert_same(&self, now: &Self, what: &str) {
        let mut report = Vec::new();
        for (command, before) in &self.0 {
            let after = &now.0[command];
            if before != after {
                let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line));
                let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
                report.push((*command).to_owned());
                report.extend(gone.map(|line| format!("  - {line}")));
                report.extend(new.map(|line| format!("  + {line}")));
                report.push("  (lines alike may stand in another order)".to_owned());
            }
        }
        assert!(report.is_empty(), "{what}:\n{}", report.join("\n"));
    }
}
