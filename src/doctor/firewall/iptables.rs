//! `iptables-save` and `iptables-legacy-save` as chains.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Chain, Field, Hook, Match, Rule, Ruleset, Tool, Value};

/// Reads one listing. `family` is `ip` or `ip6`.
pub fn parse(text: &str, family: &str, tool: Tool) -> Ruleset {
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(rest) = line.strip_prefix(':') {
            let mut words = rest.split(' ');
            let name = words.next().unwrap_or_default();
            chains.push(Chain {
                tool,
                family: family.to_owned(),
                table: table.to_owned(),
                name: name.to_owned(),
                hook: hook(table, name),
                drops: words.next() == Some("DROP"),
                rules: Vec::new(),
            });
        } else if let Some(rest) = line.strip_prefix("-A ") {
            let name = rest.split(' ').next().unwrap_or_default();
            if let Some(chain) = chains.iter_mut().rfind(|chain| chain.table == table && chain.name == name) {
                chain.rules.push(rule(line));
            }
        }
    }
    Ruleset { chains }
}

/// As the kernel registers them (include/uapi/linux/netfilter_ipv4.h).
fn hook(table: &str, chain: &str) -> Option<(Hook, i32)> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let priority = match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" => -100,
        "security" => 50,
        _ => 0,
    };
    Some((hook, priority))
}

fn rule(line: &str) -> Rule {
    let words = words(line);
    let (mut matches, mut action) = (Vec::new(), Action::Nothing);
    let mut negated = false;
    let mut words = words.iter().map(String::as_str).skip(2).peekable();
    while let Some(word) = words.next() {
        let field = match word {
            "!" => {
                negated = true;
                continue;
            }
            "-i" => Field::Iif,
            "-o" => Field::Oif,
            "-s" => Field::Saddr,
            "-d" => Field::Daddr,
            "-p" => Field::Protocol,
            "--sport" | "--sports" => Field::Sport,
            "--dport" | "--dports" => Field::Dport,
            "--ctstate" | "--state" => Field::CtState,
            "-m" => {
                // What a match's own options say is enough for those below; of others nothing is known.
                let known = ["tcp", "udp", "comment", "conntrack", "state", "multiport", "addrtype"];
                if words.next().is_none_or(|name| !known.contains(&name)) {
                    matches.push(unknown());
                }
                continue;
            }
            "--comment" => {
                words.next();
                continue;
            }
            // A forwarded packet is for no local address.
            "--dst-type" => {
                let local = words.next() == Some("LOCAL") && !line.starts_with("-A INPUT ");
                let value = if local { Value::Word("never".to_owned()) } else { Value::Unknown };
                matches.push(Match { field: Field::Protocol, negated, values: vec![value] });
                negated = false;
                continue;
            }
            "-j" => {
                action = target(words.next().unwrap_or_default(), Action::Jump);
                continue;
            }
            "-g" => {
                action = target(words.next().unwrap_or_default(), Action::Goto);
                continue;
            }
            // An option of the target.
            _ if action != Action::Nothing => continue,
            _ => {
                if words.peek().is_some_and(|next| !next.starts_with('-') && *next != "!") {
                    words.next();
                }
                matches.push(unknown());
                negated = false;
                continue;
            }
        };
        let values = words.next().unwrap_or_default().split(',').map(|text| value(field, text)).collect();
        matches.push(Match { field, negated, values });
        negated = false;
    }
    Rule { text: line.to_owned(), matches, action }
}

fn unknown() -> Match {
    Match { field: Field::Other, negated: false, values: vec![Value::Unknown] }
}

fn target(name: &str, chain: impl Fn(String) -> Action) -> Action {
    match name {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        "MARK" | "CONNMARK" | "LOG" | "NFLOG" | "TCPMSS" | "CT" | "NOTRACK" | "MASQUERADE" | "SNAT" | "DNAT" => {
            Action::Nothing
        }
        "NFQUEUE" | "TPROXY" | "SYNPROXY" => Action::Unknown,
        other => chain(other.to_owned()),
    }
}

fn value(field: Field, text: &str) -> Value {
    match field {
        Field::Iif | Field::Oif => {
            Value::Word(text.strip_suffix('+').map_or(text.to_owned(), |start| format!("{start}*")))
        }
        Field::Saddr | Field::Daddr => {
            let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            net.map_or(Value::Unknown, Value::Net)
        }
        Field::Protocol => Value::Word(text.to_owned()),
        Field::CtState => Value::Word(text.to_ascii_lowercase()),
        Field::Sport | Field::Dport => {
            let (first, last) = text.split_once(':').unwrap_or((text, text));
            let port = |text: &str| text.parse::<u16>().ok();
            port(first).zip(port(last)).map_or(Value::Unknown, |(first, last)| Value::Ports(first, last))
        }
        Field::Family | Field::Other => Value::Unknown,
    }
}

/// Words as iptables-save quotes them.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}
