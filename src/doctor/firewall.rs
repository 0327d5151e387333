//! The host's whole packet filter, whoever wrote it, and whether it lets a given packet pass.
//!
//! [`nft`] and [`iptables`] read what the tools list into one [`Ruleset`]. [`Ruleset::verdict`] then walks the chains of
//! a hook by priority, as `nf_hook_slow` (net/netfilter/core.c) does: each base chain decides anew, and the first drop
//! is final. What cannot be told from a listing (sets by name, marks, limits, extensions) is unknown. A drop is
//! reported only when nothing unknown could have prevented it.

pub mod iptables;
pub mod nft;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// All chains of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// In no order.
    pub chains: Vec<Chain>,
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Which tool has it.
    pub tool: Tool,
    /// `ip`, `ip6` or `inet`, as nft(8) calls it.
    pub family: String,
    /// The table's name.
    pub table: String,
    /// Its own name.
    pub name: String,
    /// Where it is called from, and its priority there; `None` for one that only others jump to.
    pub hook: Option<(Hook, i32)>,
    /// Its policy.
    pub drops: bool,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Which program a chain is managed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Tool {
    Nft,
    Iptables,
    IptablesLegacy,
}

/// Where the kernel asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// As its tool lists it.
    pub text: String,
    /// All of them must hold.
    pub matches: Vec<Match>,
    /// What becomes of a packet then.
    pub action: Action,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Of what.
    pub field: Field,
    /// Whether it is to be none of the values.
    pub negated: bool,
    /// It is one of these.
    pub values: Vec<Value>,
}

/// What can be matched and told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Field {
    Iif,
    Oif,
    Saddr,
    Daddr,
    /// `ipv4` or `ipv6`.
    Family,
    Protocol,
    Sport,
    Dport,
    CtState,
    /// Anything else.
    Other,
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Value {
    /// A `*` at the end stands for anything.
    Word(String),
    Net(IpNet),
    Addresses(IpAddr, IpAddr),
    Ports(u16, u16),
    /// A set by name, an expression.
    Unknown,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "nft's names")]
pub enum Action {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
    /// `vmap`: by the value of a field.
    Map(Field, Vec<(Value, Action)>),
    /// Counts, marks, logs: goes on.
    Nothing,
    /// It may decide: a queue, a set of verdicts by name.
    Unknown,
}

/// A packet on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Which interface it came in by.
    pub iif: Option<String>,
    /// By which it leaves; not known before routing.
    pub oif: Option<String>,
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// `tcp`, `udp`, …
    pub protocol: &'static str,
    /// Of the source.
    pub sport: u16,
    /// Of the destination.
    pub dport: u16,
    /// Whether it answers one that has passed.
    pub reply: bool,
}

/// What drops a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The base chain that it died below.
    pub base: Base,
    /// The chain of the rule.
    pub chain: String,
    /// The rule; `None` when it was the policy.
    pub rule: Option<String>,
}

/// A base chain by name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in `Chain`")]
pub struct Base {
    pub tool: Tool,
    pub family: String,
    pub table: String,
    pub chain: String,
    /// Whether `DOCKER-USER` is there to hold exceptions.
    pub docker: bool,
    /// Whether ufw wrote it.
    pub ufw: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Dropped(Block),
    /// The chain ended without a verdict.
    Passed,
}

impl Ruleset {
    /// What drops `packet` at `hook`, if that is certain. `ours` names tables that are not asked.
    pub fn verdict(&self, hook: Hook, packet: &Packet, ours: &dyn Fn(&str) -> bool) -> Option<Block> {
        let at = |chain: &&Chain| chain.hook.is_some_and(|(own, _)| own == hook) && !ours(&chain.table);
        let mut bases: Vec<&Chain> = self.chains.iter().filter(at).filter(|chain| chain.sees(packet)).collect();
        bases.sort_by_key(|chain| chain.hook.map(|(_, priority)| priority));
        bases.into_iter().find_map(|base| {
            let mut walk = Walk { rules: self, base, packet, doubtful: false };
            let policy = Block { base: self.base(base), chain: base.name.clone(), rule: None };
            let outcome = match walk.chain(base, 0) {
                Outcome::Passed if base.drops => Outcome::Dropped(policy),
                other => other,
            };
            match outcome {
                Outcome::Dropped(block) if !walk.doubtful => Some(block),
                _ => None,
            }
        })
    }

    /// Destinations within `net` that some rule names. Docker drops by container address, so these are worth a try.
    pub fn destinations_in(&self, net: IpNet) -> Vec<IpAddr> {
        let matches = self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.matches);
        let values = matches.filter(|one| one.field == Field::Daddr).flat_map(|one| &one.values);
        let mut found: Vec<IpAddr> = values
            .filter_map(|value| match value {
                Value::Net(inner) if net.contains(inner) && net != *inner => Some(inner.addr()),
                _ => None,
            })
            .collect();
        found.sort();
        found.dedup();
        found.truncate(MAX_DESTINATIONS);
        found
    }

    fn base(&self, chain: &Chain) -> Base {
        let beside = |start: &str| {
            let same = |other: &&Chain| other.table == chain.table && other.family == chain.family;
            self.chains.iter().filter(same).any(|other| other.name.starts_with(start))
        };
        Base {
            tool: chain.tool,
            family: chain.family.clone(),
            table: chain.table.clone(),
            chain: chain.name.clone(),
            docker: beside("DOCKER-USER"),
            ufw: beside("ufw-") || beside("ufw6-"),
        }
    }

    fn named(&self, beside: &Chain, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| {
            chain.name == name
                && chain.table == beside.table
                && chain.family == beside.family
                && chain.tool == beside.tool
        })
    }
}

/// A host with thousands of containers need not be tried with each of them.
const MAX_DESTINATIONS: usize = 64;
/// nft refuses deeper jumps (NFT_JUMP_STACK_SIZE).
const MAX_DEPTH: usize = 16;

struct Walk<'r> {
    rules: &'r Ruleset,
    base: &'r Chain,
    packet: &'r Packet,
    /// Something that cannot be told may have let it pass.
    doubtful: bool,
}

impl Walk<'_> {
    fn chain(&mut self, chain: &Chain, depth: usize) -> Outcome {
        for rule in &chain.rules {
            let held = rule.matches.iter().map(|one| one.holds(self.packet));
            // Of several, the least certain decides, unless one certainly does not hold.
            let holds = held.min_by_key(|one| match one {
                Some(false) => 0,
                None => 1,
                Some(true) => 2,
            });
            let holds = holds.unwrap_or(Some(true));
            match holds {
                Some(false) => {}
                Some(true) => match self.act(&rule.action, chain, rule, depth) {
                    Some(outcome) => return outcome,
                    None if rule.action == Action::Return => return Outcome::Passed,
                    None => {}
                },
                // It might have been accepted here, or dropped for another reason.
                None => self.doubtful |= !matches!(rule.action, Action::Drop | Action::Nothing),
            }
        }
        Outcome::Passed
    }

    /// `None` goes on with the next rule.
    fn act(&mut self, action: &Action, chain: &Chain, rule: &Rule, depth: usize) -> Option<Outcome> {
        match action {
            Action::Accept => Some(Outcome::Accepted),
            Action::Drop => {
                let base = self.rules.base(self.base);
                Some(Outcome::Dropped(Block { base, chain: chain.name.clone(), rule: Some(rule.text.clone()) }))
            }
            Action::Jump(name) | Action::Goto(name) => {
                let target = self.rules.named(chain, name).filter(|_| depth < MAX_DEPTH);
                let Some(target) = target else {
                    self.doubtful = true;
                    return None;
                };
                match self.chain(target, depth + 1) {
                    Outcome::Passed if matches!(action, Action::Jump(_)) => None,
                    outcome => Some(outcome),
                }
            }
            Action::Map(field, entries) => {
                for (value, action) in entries {
                    match value.is(*field, self.packet) {
                        Some(true) => return self.act(action, chain, rule, depth),
                        Some(false) => {}
                        None => self.doubtful = true,
                    }
                }
                None
            }
            Action::Unknown => {
                self.doubtful = true;
                None
            }
            Action::Return | Action::Nothing => None,
        }
    }
}

impl Chain {
    fn sees(&self, packet: &Packet) -> bool {
        match self.family.as_str() {
            "ip" => packet.source.is_ipv4(),
            "ip6" => packet.source.is_ipv6(),
            "inet" => true,
            _ => false,
        }
    }
}

impl Match {
    /// `None` when it cannot be told.
    fn holds(&self, packet: &Packet) -> Option<bool> {
        let mut any = Some(false);
        for value in &self.values {
            match value.is(self.field, packet) {
                Some(true) => return Some(!self.negated),
                Some(false) => {}
                None => any = None,
            }
        }
        any.map(|any| any != self.negated)
    }
}

impl Value {
    fn is(&self, field: Field, packet: &Packet) -> Option<bool> {
        let addr = match field {
            Field::Saddr => Some(packet.source),
            Field::Daddr => Some(packet.destination),
            _ => None,
        };
        let word = |actual: &str, wanted: &str| match wanted.strip_suffix('*') {
            Some(start) => actual.starts_with(start),
            None => actual == wanted,
        };
        match (self, field) {
            (Self::Unknown, _) | (_, Field::Other) => None,
            (Self::Net(net), _) => addr.map(|addr| net.contains(&addr)),
            (Self::Addresses(first, last), _) => {
                addr.map(|addr| addr.is_ipv4() == first.is_ipv4() && (*first..=*last).contains(&addr))
            }
            (Self::Ports(first, last), Field::Sport) => Some((*first..=*last).contains(&packet.sport)),
            (Self::Ports(first, last), Field::Dport) => Some((*first..=*last).contains(&packet.dport)),
            (Self::Word(wanted), Field::Iif) => packet.iif.as_ref().map(|name| word(name, wanted)),
            (Self::Word(wanted), Field::Oif) => packet.oif.as_ref().map(|name| word(name, wanted)),
            (Self::Word(wanted), Field::Protocol) => Some(wanted == packet.protocol),
            (Self::Word(wanted), Field::Family) => {
                Some(wanted == if packet.source.is_ipv4() { "ipv4" } else { "ipv6" })
            }
            // Neither related to another connection, nor invalid.
            (Self::Word(wanted), Field::CtState) => Some(wanted == if packet.reply { "established" } else { "new" }),
            _ => None,
        }
    }
}

impl Block {
    /// Commands that let packets from one interface to another pass, for each of `ways` (from, to).
    pub fn remedy(&self, hook: Hook, ways: &[(Option<&str>, Option<&str>)], extra: &str) -> Vec<String> {
        let Base { tool, family, table, chain, docker, ufw } = &self.base;
        let one = |(from, to): &(Option<&str>, Option<&str>)| match tool {
            Tool::Nft => {
                let from = from.map(|from| format!(" iifname \"{from}\"")).unwrap_or_default();
                let to = to.map(|to| format!(" oifname \"{to}\"")).unwrap_or_default();
                format!("nft 'insert rule {family} {table} {chain}{from}{to}{extra} accept'")
            }
            Tool::Iptables | Tool::IptablesLegacy => {
                if let (true, Hook::Forward, Some(from), Some(to)) = (*ufw, hook, from, to) {
                    return format!("ufw route allow in on {from} out on {to}");
                }
                let program = match (tool, family.as_str()) {
                    (Tool::IptablesLegacy, "ip") => "iptables-legacy",
                    (Tool::IptablesLegacy, _) => "ip6tables-legacy",
                    (_, "ip") => "iptables",
                    _ => "ip6tables",
                };
                let chain = if *docker && hook == Hook::Forward { "DOCKER-USER" } else { chain };
                let table = if table == "filter" { String::new() } else { format!(" -t {table}") };
                let from = from.map(|from| format!(" -i {from}")).unwrap_or_default();
                let to = to.map(|to| format!(" -o {to}")).unwrap_or_default();
                let extra = extra.replace(" udp dport ", " -p udp --dport ").replace(" udp sport ", " -p udp --sport ");
                format!("{program}{table} -I {chain}{from}{to}{extra} -j ACCEPT")
            }
        };
        let mut commands: Vec<String> = ways.iter().map(one).collect();
        commands.dedup();
        commands
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base { tool, family, table, .. } = &self.base;
        let tool = match tool {
            Tool::Nft => "nft",
            Tool::Iptables => "iptables",
            Tool::IptablesLegacy => "iptables-legacy",
        };
        write!(f, "{tool} table {family} {table}, chain {}", self.chain)?;
        match &self.rule {
            Some(rule) => write!(f, ": {rule}"),
            None => f.write_str(": policy drop"),
        }
    }
}

#[cfg(test)]
mod tests;
