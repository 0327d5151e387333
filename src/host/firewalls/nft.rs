//! `nft -j list ruleset`: what of it decides about forwarded packets.

use ipnet::IpNet;
use serde_json::Value;

use crate::plan::Family;
use crate::plan::firewalls::{Chain, Condition, Hook, Maker, Rule, Stage, Verdict, What};

/// The chains of the families ip, ip6 and inet, but for NAT and the tables named in `own`. `None` when this is no listing.
pub fn parse(listing: &str, own: &[String]) -> Option<Vec<Chain>> {
    let listing: Value = serde_json::from_str(listing).ok()?;
    let objects = listing["nftables"].as_array()?;
    let foreign = |value: &&Value| value["table"].as_str().is_some_and(|table| !own.iter().any(|name| name == table));
    let mut chains: Vec<Chain> =
        objects.iter().filter_map(|object| object.get("chain")).filter(foreign).filter_map(chain).collect();
    for value in objects.iter().filter_map(|object| object.get("rule")) {
        let Some(family) = family(value) else { continue };
        let within = |chain: &&mut Chain| {
            chain.family == family && value["table"] == *chain.table && value["chain"] == *chain.name
        };
        if let Some(chain) = chains.iter_mut().find(within) {
            chain.rules.extend(rules(value));
        }
    }
    Some(chains)
}

fn chain(value: &Value) -> Option<Chain> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let stage = match (text("type"), text("hook")) {
        ("filter" | "route", "prerouting") => Some(Stage::Prerouting),
        ("filter" | "route", "forward") => Some(Stage::Forward),
        ("", "") => None,
        _ => return None,
    };
    let hook = stage.map(|stage| Hook { stage, drops: text("policy") == "drop" });
    let (table, name) = (text("table").to_owned(), text("name").to_owned());
    Some(Chain { maker: Maker::Nft, family: family(value)?, table, name, hook, rules: Vec::new() })
}

/// The outer `None` is a family of no interest, the inner one is inet.
#[allow(clippy::option_option, reason = "the inner one is the model's")]
fn family(value: &Value) -> Option<Option<Family>> {
    match value["family"].as_str()? {
        "ip" => Some(Some(Family::V4)),
        "ip6" => Some(Some(Family::V6)),
        "inet" => Some(None),
        _ => None,
    }
}

/// One rule; several when it has a verdict map, one for each entry.
fn rules(value: &Value) -> Vec<Rule> {
    let mut conditions = Vec::new();
    let mut verdict = Verdict::Other;
    let mut mapped = Vec::new();
    for expression in value["expr"].as_array().into_iter().flatten() {
        let Some((kind, body)) = expression.as_object().and_then(|object| object.iter().next()) else { continue };
        match kind.as_str() {
            "match" => conditions.push(condition(&body["left"], &body["right"], body["op"] == "!=")),
            "xt" if body["type"] == "match" && body["name"] == "comment" => {}
            "xt" if body["type"] == "target" && body["name"] != "REJECT" => {}
            "xt" if body["type"] == "target" => verdict = Verdict::Drop,
            "xt" | "limit" | "quota" | "connlimit" => conditions.push(Condition::of(What::Unknown)),
            "vmap" => mapped = entries(body),
            _ => verdict = of_word(kind, body).unwrap_or(verdict),
        }
    }
    let comment = value["comment"].as_str().map(str::to_owned);
    let text = format!("rule with handle {}", value["handle"]);
    if mapped.is_empty() {
        return vec![Rule { conditions, verdict, comment, text }];
    }
    let one = |(condition, verdict)| {
        let conditions = conditions.iter().cloned().chain([condition]).collect();
        Rule { conditions, verdict, comment: comment.clone(), text: text.clone() }
    };
    mapped.into_iter().map(one).collect()
}

fn of_word(word: &str, body: &Value) -> Option<Verdict> {
    let target = || body["target"].as_str().unwrap_or_default().to_owned();
    Some(match word {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(target()),
        "goto" => Verdict::Goto(target()),
        _ => return None,
    })
}

/// Of an anonymous verdict map; of a named one nothing is known.
fn entries(map: &Value) -> Vec<(Condition, Verdict)> {
    let Some(set) = map["data"]["set"].as_array() else {
        return vec![(Condition::of(What::Unknown), Verdict::Accept)];
    };
    let entry = |entry: &Value| {
        let (word, body) = entry[1].as_object()?.iter().next()?;
        Some((condition(&map["key"], &entry[0], false), of_word(word, body)?))
    };
    set.iter().filter_map(entry).collect()
}

fn condition(left: &Value, right: &Value, negated: bool) -> Condition {
    let what = match (left["meta"]["key"].as_str(), left["payload"]["field"].as_str(), left["ct"]["key"].as_str()) {
        (Some("iifname" | "iif"), ..) => words(right).map(What::Input),
        (Some("oifname" | "oif"), ..) => words(right).map(What::Output),
        (Some("l4proto"), ..) => words(right).map(What::Protocol),
        (Some("nfproto"), ..) => match right.as_str() {
            Some("ipv4") => Some(What::Family(Family::V4)),
            Some("ipv6") => Some(What::Family(Family::V6)),
            _ => None,
        },
        (_, Some("saddr"), _) => networks(right).map(What::Source),
        (_, Some("daddr"), _) => networks(right).map(What::Destination),
        (.., Some("state")) => words(right).map(What::State),
        // The packet in question is a first one, and nobody has changed its addresses.
        (.., Some("status")) => Some(What::State(Vec::new())),
        _ => None,
    };
    Condition { negated, what: what.unwrap_or(What::Unknown) }
}

/// A value, or those of an anonymous set.
fn values(right: &Value) -> Vec<&Value> {
    let list = right["set"].as_array().or_else(|| right.as_array());
    list.map_or_else(|| vec![right], |list| list.iter().collect())
}

fn words(right: &Value) -> Option<Vec<String>> {
    let word = |value: &Value| Some(value.as_str().filter(|word| !word.starts_with('@'))?.to_owned());
    values(right).into_iter().map(word).collect()
}

/// Ranges, concatenations and named sets are not known here.
fn networks(right: &Value) -> Option<Vec<IpNet>> {
    let network = |value: &Value| {
        let prefix = &value["prefix"];
        match (prefix["addr"].as_str(), prefix["len"].as_u64()) {
            (Some(addr), Some(length)) => IpNet::new(addr.parse().ok()?, u8::try_from(length).ok()?).ok(),
            _ => Some(IpNet::from(value.as_str()?.parse::<std::net::IpAddr>().ok()?)),
        }
    };
    values(right).into_iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "firewalld", "handle": 1}},
        {"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "handle": 1, "type": "filter",
            "hook": "forward", "prio": 10, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "firewalld", "name": "zones", "handle": 2}},
        {"chain": {"family": "inet", "table": "firewalld", "name": "nat", "handle": 3, "type": "nat", "hook": "postrouting",
            "prio": 100, "policy": "accept"}},
        {"chain": {"family": "inet", "table": "meshd", "name": "forward", "handle": 1, "type": "filter", "hook": "forward",
            "prio": 0, "policy": "accept"}},
        {"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "handle": 4, "expr": [
            {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]}},
        {"rule": {"family": "inet", "table": "firewalld", "chain": "filter_FORWARD", "handle": 5, "comment": "why", "expr": [
            {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [
                ["lo", {"accept": null}], ["mesh0", {"goto": {"target": "zones"}}]]}}}]}},
        {"rule": {"family": "inet", "table": "firewalld", "chain": "zones", "handle": 6, "expr": [
            {"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                "right": {"set": [{"prefix": {"addr": "10.89.2.0", "len": 24}}, "192.0.2.1"]}}},
            {"counter": {"packets": 0, "bytes": 0}}, {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]}},
        {"rule": {"family": "inet", "table": "firewalld", "chain": "zones", "handle": 7, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@known"}},
            {"xt": {"type": "match", "name": "comment"}}, {"xt": {"type": "target", "name": "LOG"}}, {"accept": null}]}}]}"#;

    #[test]
    fn a_listing_of_nft() {
        let chains = parse(LISTING, &["meshd".to_owned()]).unwrap();
        let names: Vec<_> = chains.iter().map(|chain| chain.name.as_str()).collect();
        assert_eq!(names, ["filter_FORWARD", "zones"], "neither NAT nor what is ours");
        assert_eq!(chains[0].hook, Some(Hook { stage: Stage::Forward, drops: true }));
        assert_eq!((chains[0].family, chains[1].hook), (None, None));
        let [established, lo, mesh0] = chains[0].rules.as_slice() else { panic!("{:?}", chains[0].rules) };
        let states = ["established", "related"].map(str::to_owned).into();
        assert_eq!(established.conditions, [Condition::of(What::State(states))]);
        assert_eq!((&lo.verdict, &mesh0.verdict), (&Verdict::Accept, &Verdict::Goto("zones".to_owned())));
        assert_eq!(mesh0.conditions, [Condition::of(What::Input(vec!["mesh0".to_owned()]))]);
        assert_eq!((mesh0.comment.as_deref(), mesh0.text.as_str()), (Some("why"), "rule with handle 5"));
        let [reject, known] = chains[1].rules.as_slice() else { panic!("{:?}", chains[1].rules) };
        let nets = ["10.89.2.0/24", "192.0.2.1/32"].map(|net| net.parse().unwrap()).into();
        assert_eq!(reject.conditions, [Condition { negated: true, what: What::Destination(nets) }]);
        assert_eq!(reject.verdict, Verdict::Drop);
        assert_eq!((&known.conditions[..], &known.verdict), (&[Condition::of(What::Unknown)][..], &Verdict::Accept));
        assert_eq!(parse("Error: syntax error", &[]), None);
    }
}
