//! `nft -j list ruleset` as a [`Ruleset`].

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{Action, Chain, Field, Hook, Match, Rule, Ruleset, Tool, Value};

/// Reads the listing in JSON; `text`, of `nft -a list ruleset`, gives the rules their words.
pub fn parse(json: &Json, text: &str) -> Ruleset {
    let words = words(text);
    let mut chains = Vec::new();
    let items = json.get("nftables").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    for item in items {
        if let Some(chain) = item.get("chain").and_then(chain) {
            chains.push(chain);
        }
    }
    for rule in items.iter().filter_map(|item| item.get("rule")) {
        let of = |key: &str| rule.get(key).and_then(Json::as_str).unwrap_or_default();
        let (family, table, name) = (of("family"), of("table"), of("chain"));
        let own = |chain: &&mut Chain| chain.family == family && chain.table == table && chain.name == name;
        let Some(chain) = chains.iter_mut().find(own) else { continue };
        let handle = rule.get("handle").and_then(Json::as_u64).unwrap_or_default();
        let key = (family.to_owned(), table.to_owned(), handle);
        let expressions = rule.get("expr").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let text = words.get(&key).cloned().unwrap_or_else(|| Json::from(expressions.to_vec()).to_string());
        chain.rules.extend(rules(expressions, &text));
    }
    Ruleset { chains }
}

fn chain(json: &Json) -> Option<Chain> {
    let of = |key: &str| json.get(key).and_then(Json::as_str);
    let hook = match of("hook") {
        Some("prerouting") => Some(Hook::Prerouting),
        Some("input") => Some(Hook::Input),
        Some("forward") => Some(Hook::Forward),
        Some("output") => Some(Hook::Output),
        Some("postrouting") => Some(Hook::Postrouting),
        _ => None,
    };
    let priority = json.get("prio").and_then(Json::as_i64).and_then(|number| i32::try_from(number).ok());
    Some(Chain {
        tool: Tool::Nft,
        family: of("family")?.to_owned(),
        table: of("table")?.to_owned(),
        name: of("name")?.to_owned(),
        hook: hook.map(|hook| (hook, priority.unwrap_or_default())),
        drops: of("policy") == Some("drop"),
        rules: Vec::new(),
    })
}

/// A rule of several verdicts, as `vmap` and then something else, becomes several.
fn rules(expressions: &[Json], text: &str) -> Vec<Rule> {
    let (mut matches, mut rules) = (Vec::new(), Vec::new());
    let rule = |matches: &[Match], action| Rule { text: text.to_owned(), matches: matches.to_vec(), action };
    for expression in expressions {
        let Some((kind, body)) = expression.as_object().and_then(|object| object.iter().next()) else { continue };
        match kind.as_str() {
            "match" => {
                matches.extend(body.get("left").and_then(implied));
                matches.push(condition(body));
            }
            "counter" | "log" | "notrack" | "mangle" | "meta" | "ct" | "set" | "flow" | "comment" => {}
            // Of iptables: a match or a target that nft does not know.
            "xt" if body.get("type").and_then(Json::as_str) == Some("match") => matches.push(unknown()),
            "limit" | "quota" | "connlimit" | "ct count" => matches.push(unknown()),
            _ => {
                matches.extend(body.get("key").and_then(implied));
                rules.push(rule(&matches, action(kind, body)));
            }
        }
    }
    rules
}

fn action(kind: &str, body: &Json) -> Action {
    let target = || body.get("target").and_then(Json::as_str).unwrap_or_default().to_owned();
    match kind {
        "accept" => Action::Accept,
        "drop" | "reject" => Action::Drop,
        "return" => Action::Return,
        "jump" => Action::Jump(target()),
        "goto" => Action::Goto(target()),
        "continue" | "masquerade" | "snat" | "dnat" | "redirect" => Action::Nothing,
        "vmap" => {
            let entries = body.get("data").and_then(|data| data.get("set")).and_then(Json::as_array);
            let Some(entries) = entries else { return Action::Unknown };
            let entry = |entry: &Json| {
                let (key, verdict) = (entry.get(0)?, entry.get(1)?);
                let (kind, body) = verdict.as_object()?.iter().next()?;
                Some((value(key), action(kind, body)))
            };
            Action::Map(body.get("key").map_or(Field::Other, field), entries.iter().filter_map(entry).collect())
        }
        _ => Action::Unknown,
    }
}

/// What a look into a header asks before: that the packet has one. The listing leaves it out.
fn implied(left: &Json) -> Option<Match> {
    let (field, word) = match left.get("payload")?.get("protocol")?.as_str()? {
        "ip" => (Field::Family, "ipv4"),
        "ip6" => (Field::Family, "ipv6"),
        protocol @ ("tcp" | "udp" | "icmp" | "icmpv6" | "sctp") => (Field::Protocol, protocol),
        _ => return None,
    };
    Some(Match { field, negated: false, values: vec![Value::Word(word.to_owned())] })
}

fn unknown() -> Match {
    Match { field: Field::Other, negated: false, values: vec![Value::Unknown] }
}

fn condition(body: &Json) -> Match {
    let (Some(op), Some(left), Some(right)) =
        (body.get("op").and_then(Json::as_str), body.get("left"), body.get("right"))
    else {
        return unknown();
    };
    let negated = match op {
        "==" | "in" => false,
        "!=" => true,
        _ => return unknown(),
    };
    Match { field: field(left), negated, values: values(right) }
}

fn field(left: &Json) -> Field {
    let key = |kind: &str, key: &str| left.get(kind).and_then(|body| body.get(key)).and_then(Json::as_str);
    match (key("meta", "key"), key("ct", "key"), key("payload", "protocol"), key("payload", "field")) {
        (Some("iifname" | "iif"), ..) => Field::Iif,
        (Some("oifname" | "oif"), ..) => Field::Oif,
        (Some("l4proto"), ..) | (.., Some("ip"), Some("protocol")) | (.., Some("ip6"), Some("nexthdr")) => {
            Field::Protocol
        }
        (Some("nfproto"), ..) => Field::Family,
        (_, Some("state"), ..) => Field::CtState,
        (.., Some("ip" | "ip6"), Some("saddr")) => Field::Saddr,
        (.., Some("ip" | "ip6"), Some("daddr")) => Field::Daddr,
        (.., Some("tcp" | "udp" | "th"), Some("sport")) => Field::Sport,
        (.., Some("tcp" | "udp" | "th"), Some("dport")) => Field::Dport,
        _ => Field::Other,
    }
}

fn values(right: &Json) -> Vec<Value> {
    let list = right.as_array().or_else(|| right.get("set").and_then(Json::as_array));
    list.map_or_else(|| vec![value(right)], |list| list.iter().map(value).collect())
}

fn value(json: &Json) -> Value {
    if let Some(port) = json.as_u64().and_then(|number| u16::try_from(number).ok()) {
        return Value::Ports(port, port);
    }
    if let Some(text) = json.as_str() {
        if text.starts_with('@') {
            return Value::Unknown;
        }
        return text
            .parse()
            .map_or_else(|_| Value::Word(text.to_owned()), |addr: std::net::IpAddr| Value::Net(addr.into()));
    }
    if let Some(inner) = json.get("elem").and_then(|elem| elem.get("val")) {
        return value(inner);
    }
    if let Some(prefix) = json.get("prefix") {
        let addr = prefix.get("addr").and_then(Json::as_str).and_then(|addr| addr.parse().ok());
        let len = prefix.get("len").and_then(Json::as_u64).and_then(|len| u8::try_from(len).ok());
        let net = addr.zip(len).and_then(|(addr, len)| ipnet::IpNet::new(addr, len).ok());
        return net.map_or(Value::Unknown, Value::Net);
    }
    match json.get("range").and_then(Json::as_array).map(|ends| (ends.first().map(value), ends.last().map(value))) {
        Some((Some(Value::Ports(first, _)), Some(Value::Ports(last, _)))) => Value::Ports(first, last),
        Some((Some(Value::Net(first)), Some(Value::Net(last)))) => Value::Addresses(first.addr(), last.addr()),
        _ => Value::Unknown,
    }
}

/// The text of each rule by family, table and handle.
fn words(text: &str) -> HashMap<(String, String, u64), String> {
    let mut words = HashMap::new();
    let (mut family, mut table) = (String::new(), String::new());
    for line in text.lines() {
        let Some((rule, handle)) = line.rsplit_once(" # handle ") else { continue };
        let Ok(handle) = handle.trim().parse() else { continue };
        let rule = rule.trim();
        if let Some(rest) = rule.strip_prefix("table ") {
            let mut names = rest.split(' ').map(str::to_owned);
            (family, table) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        } else if !rule.ends_with('{') {
            words.insert((family.clone(), table.clone(), handle), without_counters(rule));
        }
    }
    words
}

/// Numbers that change by themselves say nothing.
fn without_counters(rule: &str) -> String {
    let mut words = rule.split(' ').peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word == "counter" && words.peek() == Some(&"packets") {
            words.by_ref().take(4).for_each(drop);
        }
    }
    kept.join(" ")
}
