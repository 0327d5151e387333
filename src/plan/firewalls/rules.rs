//! Other firewalls' rules, as far as can be told whether they let a packet pass.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::plan::Family;

/// Which program made a chain, and is to be used to change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Maker {
    /// nft(8), or a program that speaks to the kernel as it does.
    Nft,
    /// iptables(8) over nf_tables.
    Iptables,
    /// iptables(8) over the older x_tables.
    Legacy,
}

/// A chain of another firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Who made it.
    pub maker: Maker,
    /// `None` when it takes both.
    pub family: Option<Family>,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where the kernel enters it; `None` when only other chains lead into it.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Where a base chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Which packets come by.
    pub stage: Stage,
    /// Whether its policy is to drop.
    pub drops: bool,
}

/// The hooks that a forwarded packet passes and a filter may drop it at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Stage {
    Prerouting,
    Forward,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must be met.
    pub conditions: Vec<Condition>,
    /// What then happens.
    pub verdict: Verdict,
    /// Its comment.
    pub comment: Option<String>,
    /// As its program writes it, where that is known.
    pub text: String,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether the opposite is asked for.
    pub negated: bool,
    /// What is asked for.
    pub what: What,
}

/// What a condition looks at. One of the values must fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The interface it came in by; a trailing `*` or `+` stands for anything.
    Input(Vec<String>),
    /// The interface it leaves by.
    Output(Vec<String>),
    /// Its source address.
    Source(Vec<IpNet>),
    /// Its destination address.
    Destination(Vec<IpNet>),
    /// The state of its connection, such as `new`.
    State(Vec<String>),
    /// Its transport protocol, such as `tcp`.
    Protocol(Vec<String>),
    /// Its IP version.
    Family(Family),
    /// Anything else.
    Unknown,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Lets it pass this base chain.
    Accept,
    /// Drops or rejects it.
    Drop,
    /// Back to the chain before.
    Return,
    /// Into another chain, and back.
    Jump(String),
    /// Into another chain, and not back.
    Goto(String),
    /// None that ends anything: counts, logs, marks.
    Other,
}

/// The first packet of a TCP connection that this host forwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes in.
    pub input: String,
    /// Where it leaves.
    pub output: String,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
}

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fits {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It depends on what is not known here.
    Perhaps,
}

impl Packet {
    /// Its IP version.
    pub fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl Chain {
    /// Whether chain and other are of one table.
    pub fn beside(&self, other: &Self) -> bool {
        (self.maker, self.family, &self.table) == (other.maker, other.family, &other.table)
    }

    /// Whether packets of this family come by.
    pub fn takes(&self, family: Family) -> bool {
        self.family.is_none_or(|own| own == family)
    }
}

impl Rule {
    /// Accepts what meets these conditions.
    pub fn accepting(conditions: Vec<Condition>) -> Self {
        Self { conditions, verdict: Verdict::Accept, comment: None, text: String::new() }
    }

    /// Whether it takes this packet.
    pub fn fits(&self, packet: &Packet) -> Fits {
        let mut all = Fits::Yes;
        for condition in &self.conditions {
            match condition.fits(packet) {
                Fits::No => return Fits::No,
                Fits::Perhaps => all = Fits::Perhaps,
                Fits::Yes => {}
            }
        }
        all
    }
}

impl Condition {
    /// One that is not negated.
    pub fn of(what: What) -> Self {
        Self { negated: false, what }
    }

    fn fits(&self, packet: &Packet) -> Fits {
        let word = |words: &[String], word: &str| words.iter().any(|other| other.eq_ignore_ascii_case(word));
        let fits = match &self.what {
            What::Input(names) => names.iter().any(|name| named(name, &packet.input)),
            What::Output(names) => names.iter().any(|name| named(name, &packet.output)),
            What::Source(nets) => nets.iter().any(|net| net.contains(&packet.source)),
            What::Destination(nets) => nets.iter().any(|net| net.contains(&packet.destination)),
            What::State(states) => word(states, "new"),
            What::Protocol(protocols) => word(protocols, "tcp") || word(protocols, "6"),
            What::Family(family) => *family == packet.family(),
            What::Unknown => return Fits::Perhaps,
        };
        if fits == self.negated { Fits::No } else { Fits::Yes }
    }
}

/// Whether a pattern stands for this interface.
fn named(pattern: &str, interface: &str) -> bool {
    match pattern.strip_suffix(['*', '+']) {
        Some(start) => interface.starts_with(start),
        None => pattern == interface,
    }
}
