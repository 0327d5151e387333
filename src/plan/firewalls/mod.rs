//! Living beside other firewalls: Docker's, ufw's, firewalld's, and what an administrator wrote by hand.
//!
//! An accept in our nft table undoes no drop in another's: a packet must be accepted by every base chain that it passes.
//! So where another firewall has a place for others' exceptions, ours are put there (`exceptions`, `zones`):
//!
//! - **Docker**: `DOCKER-USER`, which is asked before anything that Docker drops; and for its drops in `raw PREROUTING`
//!   (since Docker 28), which come before any other chain, an accept right above them.
//! - **ufw**: `ufw-user-forward`, where `ufw route allow` puts its rules, but in the kernel only: nothing stays on disk.
//! - **firewalld**: the zone `trusted`, at run time only. What others placed in a zone stays there.
//!
//! They let pass what meshd's own guard and filter decide about, and nothing else: what comes from the tunnel, and what
//! goes into it from the interfaces that the configuration names. They stand behind the rules of the chain that somebody
//! else wrote, so an administrator's drop there is obeyed.
//!
//! A hand-written ruleset has no such place, and its order means something to whoever wrote it. It is left alone, and what it
//! drops is named, with the command that lets it pass ([`blocked()`]). So is what other firewalls drop despite all this.

mod blocked;
mod rules;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

pub use blocked::{Blocked, blocked};
pub use rules::{Chain, Condition, Hook, Maker, Packet, Rule, Stage, Verdict, What};

use super::nft::{Exits, outside};
use super::{Family, HostFacts};
use crate::config::Config;

/// The zone that lets forwarded packets pass. Podman and Docker use it, or one like it, for their networks.
pub const ZONE: &str = "trusted";
/// How our rules in others' chains are known.
pub const COMMENT: &str = "meshd";

/// Where others have exceptions put, in the table `filter`.
const FORWARD_EXCEPTIONS: [&str; 3] = ["DOCKER-USER", "ufw-user-forward", "ufw6-user-forward"];
/// Where firewalld tells the zones of forwarded packets apart: over nft and over iptables, and before firewalld 1.0.
const ZONE_CHAINS: [&str; 4] = ["filter_FORWARD_ZONES", "FORWARD_ZONES", "filter_FORWARD_IN_ZONES", "FORWARD_IN_ZONES"];
/// What stands before the zone's name in the chains that those lead into.
const ZONE_PREFIXES: [&str; 4] = ["filter_FWD_", "FWD_", "filter_FWDI_", "FWDI_"];

/// The other firewalls of a host, as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewalls {
    /// All their chains that filter forwarded packets, our exceptions in them included.
    pub chains: Vec<Chain>,
    /// The interfaces that we put into [`ZONE`].
    pub placed: BTreeSet<String>,
    /// Why this is not all, when something could not be read.
    pub unread: Option<String>,
    /// Others change their rules at this moment: what they drop now may pass in another.
    pub settling: bool,
}

/// A rule of ours in a chain of another firewall. It accepts what fits all that is given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// Of the chain.
    pub maker: Maker,
    /// Of the chain.
    pub family: Family,
    /// The chain's table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Where packets come in.
    pub input: Option<String>,
    /// Where they leave.
    pub output: Option<String>,
    /// Where they lead.
    pub destination: Option<IpNet>,
}

/// Before which rule of its chain, from 1, an exception belongs; `None` is the end.
pub type Position = Option<usize>;

impl Firewalls {
    /// Whether firewalld runs here.
    pub fn has_zones(&self) -> bool {
        self.zone_chains().next().is_some()
    }

    /// The zone that an interface is in by its name.
    pub fn zone(&self, interface: &str) -> Option<&str> {
        let named = |what: &What| matches!(what, What::Input(names) if names.iter().any(|name| name == interface));
        self.zone_rules().find(|(rule, _)| rule.conditions.iter().any(|one| named(&one.what))).map(|(_, zone)| zone)
    }

    /// Whether a network is in a zone by its addresses, as Podman's are.
    fn has_zone(&self, subnet: IpNet) -> bool {
        let holds = |what: &What| matches!(what, What::Source(nets) if nets.iter().any(|net| net.contains(&subnet)));
        self.zone_rules().any(|(rule, _)| rule.conditions.iter().any(|one| holds(&one.what)))
    }

    fn zone_chains(&self) -> impl Iterator<Item = &Chain> {
        self.chains.iter().filter(|chain| ZONE_CHAINS.contains(&chain.name.as_str()))
    }

    fn zone_rules(&self) -> impl Iterator<Item = (&Rule, &str)> {
        self.zone_chains().flat_map(|chain| &chain.rules).filter_map(|rule| {
            let (Verdict::Goto(target) | Verdict::Jump(target)) = &rule.verdict else { return None };
            Some((rule, ZONE_PREFIXES.iter().find_map(|prefix| target.strip_prefix(prefix))?))
        })
    }

    /// The exceptions of ours that are there, and whether each is asked before what it is an exception to.
    pub fn ours(&self, interface: &str) -> BTreeMap<Exception, bool> {
        let mut found = BTreeMap::new();
        for chain in &self.chains {
            for (index, rule) in chain.rules.iter().enumerate() {
                let Some(exception) = Exception::read(chain, rule, interface) else { continue };
                let works = exception.position(chain, interface).is_none_or(|before| index + 1 < before);
                *found.entry(exception).or_insert(false) |= works;
            }
        }
        found
    }

    /// All chains without the exceptions of ours in them.
    pub fn theirs(&self, interface: &str) -> Vec<Chain> {
        let mut chains = self.chains.clone();
        for (chain, full) in chains.iter_mut().zip(&self.chains) {
            chain.rules.retain(|rule| Exception::read(full, rule, interface).is_none());
        }
        chains
    }

    /// The interfaces that are in [`ZONE`] by our doing.
    pub fn our_zones(&self) -> BTreeSet<String> {
        self.placed.iter().filter(|interface| self.zone(interface) == Some(ZONE)).cloned().collect()
    }
}

/// The exceptions that this configuration needs of the firewalls that are there, and where each belongs.
pub(super) fn exceptions(config: &Config, facts: &HostFacts, exits: &Exits) -> BTreeMap<Exception, Position> {
    let interface = &config.host.interface;
    let mut sources: BTreeSet<String> = config.host.bridges.iter().map(|bridge| bridge.name.clone()).collect();
    sources.extend(outside(config, facts, exits));
    let mut wanted = BTreeMap::new();
    for chain in facts.firewalls.chains.iter().filter(|chain| chain.maker != Maker::Nft) {
        let Some(family) = chain.family else { continue };
        let blank = Exception {
            maker: chain.maker,
            family,
            table: chain.table.clone(),
            chain: chain.name.clone(),
            input: None,
            output: None,
            destination: None,
        };
        let mut want = |exception: Exception| {
            let position = exception.position(chain, interface);
            wanted.insert(exception, position);
        };
        if chain.table == "filter" && FORWARD_EXCEPTIONS.contains(&chain.name.as_str()) {
            want(Exception { input: Some(interface.clone()), ..blank.clone() });
            for source in &sources {
                want(Exception { input: Some(source.clone()), output: Some(interface.clone()), ..blank.clone() });
            }
        } else if (chain.table.as_str(), chain.name.as_str()) == ("raw", "PREROUTING") {
            for subnet in config.host.bridges.iter().flat_map(|bridge| &bridge.subnets).map(IpNet::trunc) {
                let exception =
                    Exception { input: Some(interface.clone()), destination: Some(subnet), ..blank.clone() };
                if Family::of(&subnet) == family && exception.position(chain, interface).is_some() {
                    want(exception);
                }
            }
        }
    }
    wanted
}

/// The interfaces to put into [`ZONE`]: the tunnel's and the bridges', unless somebody else has put them into a zone.
pub(super) fn zones(config: &Config, facts: &HostFacts) -> BTreeSet<String> {
    let firewalls = &facts.firewalls;
    if !firewalls.has_zones() {
        return BTreeSet::new();
    }
    let placed = |subnet: &IpNet| firewalls.has_zone(subnet.trunc());
    let bridges = config.host.bridges.iter().filter(|bridge| !bridge.subnets.iter().all(placed));
    let interfaces = bridges.map(|bridge| &bridge.name).chain([&config.host.interface]);
    let free = |interface: &&String| match firewalls.zone(interface) {
        None => true,
        Some(zone) => zone == ZONE && firewalls.placed.contains(*interface),
    };
    interfaces.filter(free).cloned().collect()
}

impl Exception {
    /// What it accepts.
    pub fn rule(&self) -> Rule {
        let input = self.input.iter().map(|name| What::Input(vec![name.clone()]));
        let output = self.output.iter().map(|name| What::Output(vec![name.clone()]));
        let destination = self.destination.iter().map(|net| What::Destination(vec![*net]));
        Rule::accepting(input.chain(output).chain(destination).map(Condition::of).collect())
    }

    /// The reverse of [`rule`](Self::rule), of a rule that bears our comment and names our interface.
    fn read(chain: &Chain, rule: &Rule, interface: &str) -> Option<Self> {
        if rule.comment.as_deref() != Some(COMMENT) || rule.verdict != Verdict::Accept || chain.maker == Maker::Nft {
            return None;
        }
        let mut exception = Self {
            maker: chain.maker,
            family: chain.family?,
            table: chain.table.clone(),
            chain: chain.name.clone(),
            input: None,
            output: None,
            destination: None,
        };
        for condition in rule.conditions.iter().filter(|condition| !condition.negated) {
            match &condition.what {
                What::Input(names) => exception.input = names.first().cloned(),
                What::Output(names) => exception.output = names.first().cloned(),
                What::Destination(nets) => exception.destination = nets.first().copied(),
                _ => {}
            }
        }
        let own = |name: &Option<String>| name.as_deref() == Some(interface);
        (own(&exception.input) || own(&exception.output)).then_some(exception)
    }

    /// Where it belongs in its chain: behind what others wrote, but before an unconditional `RETURN`; in `raw`, before the
    /// first drop of what goes to its destination and comes in by another interface than the bridge.
    fn position(&self, chain: &Chain, interface: &str) -> Position {
        let stands_before = |rule: &Rule| match self.destination {
            None => rule.conditions.is_empty() && rule.verdict == Verdict::Return,
            Some(subnet) => {
                rule.verdict == Verdict::Drop
                    && rule.conditions.iter().all(|one| match &one.what {
                        What::Input(names) => one.negated && !names.iter().any(|name| name == interface),
                        What::Destination(nets) => !one.negated && nets.iter().all(|net| subnet.contains(net)),
                        _ => false,
                    })
                    && rule.conditions.iter().any(|one| matches!(one.what, What::Destination(_)))
            }
        };
        chain.rules.iter().position(stands_before).map(|index| index + 1)
    }

    /// The program for it, as a person would type it.
    pub fn program(&self) -> String {
        let name = if self.family == Family::V6 { "ip6tables" } else { "iptables" };
        if self.maker == Maker::Legacy { format!("{name}-legacy") } else { name.to_owned() }
    }

    /// The arguments that add it there.
    pub fn added_at(&self, position: Position) -> Vec<String> {
        let mut words = vec![if position.is_some() { "-I" } else { "-A" }.to_owned(), self.chain.clone()];
        words.extend(position.map(|number| number.to_string()));
        self.arguments(words)
    }

    /// The arguments that remove the first one like it.
    pub fn removed(&self) -> Vec<String> {
        self.arguments(vec!["-D".to_owned(), self.chain.clone()])
    }

    fn arguments(&self, verb: Vec<String>) -> Vec<String> {
        let mut words = vec!["-w".to_owned()];
        let option = |words: &mut Vec<String>, flag: &str, value: Option<String>| {
            words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        option(&mut words, "-t", (self.table != "filter").then(|| self.table.clone()));
        words.extend(verb);
        option(&mut words, "-i", self.input.clone());
        option(&mut words, "-o", self.output.clone());
        option(&mut words, "-d", self.destination.map(|net| net.to_string()));
        words.extend(["-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"].map(str::to_owned));
        words
    }
}

impl fmt::Display for Exception {
    /// What it is, without where it stands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program(), self.added_at(None).join(" "))
    }
}

/// The arguments of firewall-cmd(1) that put an interface into [`ZONE`], or take it out.
pub fn zone_arguments(verb: &str, interface: &str) -> [String; 2] {
    [format!("--zone={ZONE}"), format!("--{verb}-interface={interface}")]
}
