//! iptables-save(8): tables, chains and rules as iptables(8) writes them.

use ipnet::IpNet;

use crate::plan::Family;
use crate::plan::firewalls::{Chain, Condition, Hook, Maker, Rule, Stage, Verdict, What};

/// Modules whose options say all that they ask for, or that ask for nothing.
const PLAIN_MODULES: [&str; 6] = ["comment", "conntrack", "state", "tcp", "udp", "icmp"];

/// The chains of the tables that filter.
pub fn parse(text: &str, maker: Maker, family: Family) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if table == "nat" {
            // Nothing is dropped there.
        } else if let Some(declaration) = line.strip_prefix(':') {
            let mut words = declaration.split_whitespace();
            let (Some(name), Some(policy)) = (words.next(), words.next()) else { continue };
            let hook = stage(table, name).map(|stage| Hook { stage, drops: policy == "DROP" });
            let (table, name) = (table.to_owned(), name.to_owned());
            chains.push(Chain { maker, family: Some(family), table, name, hook, rules: Vec::new() });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            append(&mut chains, table, rule);
        }
    }
    chains
}

fn stage(table: &str, chain: &str) -> Option<Stage> {
    match (table, chain) {
        ("raw" | "mangle", "PREROUTING") => Some(Stage::Prerouting),
        ("mangle" | "filter" | "security", "FORWARD") => Some(Stage::Forward),
        _ => None,
    }
}

fn append(chains: &mut [Chain], table: &str, text: &str) {
    let mut words = split(text).into_iter();
    let Some(name) = words.next() else { return };
    let rule = rule(words, text, |target| chains.iter().any(|chain| chain.table == table && chain.name == target));
    if let Some(chain) = chains.iter_mut().find(|chain| chain.table == table && chain.name == name) {
        chain.rules.push(rule);
    }
}

fn rule(mut words: impl Iterator<Item = String>, text: &str, is_chain: impl Fn(&str) -> bool) -> Rule {
    let mut rule = Rule { conditions: Vec::new(), verdict: Verdict::Other, comment: None, text: format!("-A {text}") };
    let mut negated = false;
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        let what = match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-i" => What::Input(vec![value()]),
            "-o" => What::Output(vec![value()]),
            "-s" => networks(&value()).map_or(What::Unknown, What::Source),
            "-d" => networks(&value()).map_or(What::Unknown, What::Destination),
            "-p" => What::Protocol(vec![value()]),
            "--ctstate" | "--state" => What::State(value().split(',').map(str::to_owned).collect()),
            "--comment" => {
                rule.comment = Some(value());
                continue;
            }
            "-m" if PLAIN_MODULES.contains(&value().as_str()) => continue,
            // What follows belongs to the target.
            "-j" | "-g" => {
                rule.verdict = verdict(word == "-g", value(), is_chain);
                break;
            }
            option if option.starts_with('-') => What::Unknown,
            _ => continue,
        };
        rule.conditions.push(Condition { negated, what });
        negated = false;
    }
    rule
}

fn verdict(goto: bool, target: String, is_chain: impl Fn(&str) -> bool) -> Verdict {
    match target.as_str() {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        name if !is_chain(name) => Verdict::Other,
        _ if goto => Verdict::Goto(target),
        _ => Verdict::Jump(target),
    }
}

fn networks(text: &str) -> Option<Vec<IpNet>> {
    let network = |text: &str| text.parse().or_else(|_| text.parse().map(|addr: std::net::IpAddr| IpNet::from(addr)));
    text.split(',').map(|text| network(text).ok()).collect()
}

/// Words as the shell sees them: what has spaces is in double quotes, with backslashes before `"` and `\`.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(letters.next()),
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ruleset_of_docker() {
        let text = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.89.2.10/32 ! -i br0 -j DROP\nCOMMIT\n*nat\n\
                    :POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.89.2.0/24 ! -o br0 -j MASQUERADE\nCOMMIT\n*filter\n\
                    :FORWARD DROP [12:34]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
                    -A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                    -A FORWARD -m rpfilter --invert -j LOG --log-prefix \"a \\\"b\\\" \"\n\
                    -A DOCKER-USER -i mesh0 -m comment --comment \"not ours\" -j ACCEPT\nCOMMIT\n";
        let chains = parse(text, Maker::Iptables, Family::V4);
        let names: Vec<_> = chains.iter().map(|chain| (chain.table.as_str(), chain.name.as_str())).collect();
        assert_eq!(names, [("raw", "PREROUTING"), ("filter", "FORWARD"), ("filter", "DOCKER-USER")]);
        assert_eq!(chains[0].hook, Some(Hook { stage: Stage::Prerouting, drops: false }));
        assert_eq!(chains[1].hook, Some(Hook { stage: Stage::Forward, drops: true }));
        let raw = &chains[0].rules[0];
        assert_eq!(raw.conditions[0], Condition::of(What::Destination(vec!["10.89.2.10/32".parse().unwrap()])));
        assert_eq!(raw.conditions[1], Condition { negated: true, what: What::Input(vec!["br0".to_owned()]) });
        assert_eq!(
            (&raw.verdict, raw.text.as_str()),
            (&Verdict::Drop, "-A PREROUTING -d 10.89.2.10/32 ! -i br0 -j DROP")
        );
        let forward = &chains[1].rules;
        assert_eq!(forward[0].verdict, Verdict::Jump("DOCKER-USER".to_owned()));
        let states = ["RELATED", "ESTABLISHED"].map(str::to_owned).into();
        assert_eq!(forward[1].conditions[1], Condition::of(What::State(states)));
        assert!(forward[2].conditions.contains(&Condition::of(What::Unknown)));
        assert_eq!(forward[2].verdict, Verdict::Other);
        assert_eq!(chains[2].rules[0].comment.as_deref(), Some("not ours"));
    }
}
