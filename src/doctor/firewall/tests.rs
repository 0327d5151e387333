//! Listings as the tools print them, and packets that pass or do not.

use super::*;

fn packet(iif: &str, oif: &str, from: &str, to: &str) -> Packet {
    Packet {
        iif: Some(iif.to_owned()),
        oif: Some(oif.to_owned()),
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: "tcp",
        sport: 40_000,
        dport: 443,
        reply: false,
    }
}

fn out() -> Packet {
    packet("br0", "mesh0", "10.89.2.10", "192.0.2.80")
}

fn back() -> Packet {
    Packet { reply: true, sport: 443, dport: 40_000, ..packet("mesh0", "br0", "192.0.2.80", "10.89.2.10") }
}

fn verdict(ruleset: &Ruleset, hook: Hook, packet: &Packet) -> Option<String> {
    ruleset.verdict(hook, packet, &|table| table == "meshd").map(|block| block.to_string())
}

/// A table with one chain at `forward` and these rules.
fn forward(policy: &str, expressions: &[&str]) -> Ruleset {
    let chain = format!(
        r#"{{"chain": {{"family": "inet", "table": "f", "name": "fw", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "{policy}"}}}}"#
    );
    let rules = expressions.iter().enumerate().map(|(n, expr)| {
        format!(
            r#"{{"rule": {{"family": "inet", "table": "f", "chain": "fw", "handle": {}, "expr": [{expr}]}}}}"#,
            n + 2
        )
    });
    let items: Vec<String> = std::iter::once(chain).chain(rules).collect();
    let json = serde_json::from_str(&format!(r#"{{"nftables": [{}]}}"#, items.join(","))).unwrap();
    nft::parse(
        &json,
        "table inet f { # handle 1\n\tchain fw { # handle 1\n\t\tthe second counter packets 7 bytes 9 drop # handle 2\n",
    )
}

const ESTABLISHED: &str = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}"#;
const UNKNOWN: &str =
    r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "@trusted"}}, {"accept": null}"#;

#[test]
fn a_policy_drops_what_no_rule_accepts() {
    let strict = forward("drop", &[]);
    assert_eq!(verdict(&strict, Hook::Forward, &out()).unwrap(), "nft table inet f, chain fw: policy drop");
    assert_eq!(verdict(&strict, Hook::Input, &out()), None, "another hook");
    let usual = forward("drop", &[ESTABLISHED]);
    assert!(verdict(&usual, Hook::Forward, &out()).is_some());
    assert_eq!(verdict(&usual, Hook::Forward, &back()), None);
    assert_eq!(verdict(&forward("accept", &[]), Hook::Forward, &out()), None);
}

#[test]
fn what_cannot_be_told_is_no_finding() {
    assert_eq!(verdict(&forward("drop", &[UNKNOWN]), Hook::Forward, &out()), None);
    let unknown_drop = UNKNOWN.replace("accept", "drop");
    assert_eq!(verdict(&forward("accept", &[&unknown_drop]), Hook::Forward, &out()), None);
    assert!(verdict(&forward("drop", &[&unknown_drop]), Hook::Forward, &out()).is_some(), "dropped either way");
}

#[test]
fn a_rule_matches_by_interface_network_port_set_and_wildcard() {
    let rule = |right: &str, key: &str| {
        format!(
            r#"{{"match": {{"op": "==", "left": {{"meta": {{"key": "{key}"}}}}, "right": {right}}}}}, {{"drop": null}}"#
        )
    };
    for (right, key, drops) in [
        (r#""br0""#, "iifname", true),
        (r#""br*""#, "iifname", true),
        (r#""docker*""#, "iifname", false),
        (r#"{"set": ["eth0", "mesh0"]}"#, "oifname", true),
        (r#"{"set": ["eth0"]}"#, "oifname", false),
        (r#""tcp""#, "l4proto", true),
        (r#""udp""#, "l4proto", false),
        (r#""ipv6""#, "nfproto", false),
    ] {
        let ruleset = forward("accept", &[&rule(right, key)]);
        let found = verdict(&ruleset, Hook::Forward, &out());
        assert_eq!(found.is_some(), drops, "{key} {right}");
        if let Some(found) = found {
            assert_eq!(
                found, "nft table inet f, chain fw: the second counter drop",
                "its words, without numbers that move"
            );
        }
    }
    let payload = |field: &str, right: &str| {
        let protocol = if field == "dport" { "tcp" } else { "ip" };
        format!(
            r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}, "right": {right}}}}}, {{"drop": null}}"#
        )
    };
    for (field, right, drops) in [
        ("daddr", r#"{"prefix": {"addr": "192.0.2.0", "len": 24}}"#, true),
        ("daddr", r#"{"prefix": {"addr": "198.51.100.0", "len": 24}}"#, false),
        ("saddr", r#"{"range": ["10.89.2.1", "10.89.2.99"]}"#, true),
        ("dport", r#"{"set": [80, 443]}"#, true),
        ("dport", r#"{"range": [1, 442]}"#, false),
    ] {
        let found = verdict(&forward("accept", &[&payload(field, right)]), Hook::Forward, &out());
        assert_eq!(found.is_some(), drops, "{field} {right}");
    }
}

#[test]
fn a_rule_about_a_header_is_none_about_packets_without_it() {
    let rule = |protocol: &str, field: &str, right: &str| {
        let left = format!(r#"{{"payload": {{"protocol": "{protocol}", "field": "{field}"}}}}"#);
        format!(r#"{{"match": {{"op": "!=", "left": {left}, "right": {right}}}}}, {{"drop": null}}"#)
    };
    for (rule, drops) in [
        (rule("ip6", "saddr", r#""fd89:2::1""#), false),
        (rule("ip", "saddr", r#""10.89.2.99""#), true),
        (rule("udp", "dport", "53"), false),
        (rule("tcp", "dport", "53"), true),
    ] {
        assert_eq!(verdict(&forward("accept", &[&rule]), Hook::Forward, &out()).is_some(), drops, "{rule}");
    }
}

#[test]
fn a_map_of_verdicts_is_followed() {
    let vmap = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": null}], ["new", {"drop": null}]]}}}"#;
    let ruleset = forward("accept", &[vmap]);
    assert!(verdict(&ruleset, Hook::Forward, &out()).is_some());
    assert_eq!(verdict(&ruleset, Hook::Forward, &back()), None);
}

const DOCKER: &str = "\
# Generated by iptables-save v1.8.9 (nf_tables)
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 10.89.2.10/32 ! -i br0 -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -i docker0 -m comment --comment \"from the default \\\"bridge\\\"\" -j ACCEPT
COMMIT
";

#[test]
fn docker_drops_forwarded_packets_and_raw_ones() {
    let ruleset = iptables::parse(DOCKER, "ip", Tool::Iptables);
    let block = ruleset.verdict(Hook::Forward, &out(), &|_| false).unwrap();
    assert_eq!(block.to_string(), "iptables table ip filter, chain FORWARD: policy drop");
    assert_eq!(
        block.remedy(Hook::Forward, &[(Some("br0"), Some("mesh0"))], ""),
        ["iptables -I DOCKER-USER -i br0 -o mesh0 -j ACCEPT"]
    );
    let raw = ruleset.verdict(Hook::Prerouting, &back(), &|_| false).unwrap();
    assert_eq!(
        raw.to_string(),
        "iptables table ip raw, chain PREROUTING: -A PREROUTING -d 10.89.2.10/32 ! -i br0 -j DROP"
    );
    assert_eq!(
        raw.remedy(Hook::Prerouting, &[(Some("mesh0"), None)], ""),
        ["iptables -t raw -I PREROUTING -i mesh0 -j ACCEPT"]
    );
    assert_eq!(ruleset.verdict(Hook::Prerouting, &out(), &|_| false), None, "only what comes from elsewhere");
    let net = "10.89.2.0/24".parse().unwrap();
    assert_eq!(ruleset.destinations_in(net), ["10.89.2.10".parse::<IpAddr>().unwrap()]);
    let v6 = packet("br0", "mesh0", "fd89:2::10", "2001:db8::80");
    assert_eq!(ruleset.verdict(Hook::Forward, &v6, &|_| false), None, "another family's table");
    let fixed = DOCKER
        .replace(":DOCKER-FORWARD - [0:0]\n", ":DOCKER-FORWARD - [0:0]\n-A DOCKER-USER -i br0 -o mesh0 -j ACCEPT\n");
    assert_eq!(iptables::parse(&fixed, "ip", Tool::Iptables).verdict(Hook::Forward, &out(), &|_| false), None);
}

#[test]
fn ufw_is_named_and_gets_its_own_words() {
    let listing = "*filter\n:FORWARD DROP [0:0]\n:ufw-before-forward - [0:0]\n-A FORWARD -j ufw-before-forward\n\
                   -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";
    let ruleset = iptables::parse(listing, "ip", Tool::IptablesLegacy);
    assert_eq!(ruleset.verdict(Hook::Forward, &back(), &|_| false), None);
    let block = ruleset.verdict(Hook::Forward, &out(), &|_| false).unwrap();
    assert_eq!(block.to_string(), "iptables-legacy table ip filter, chain FORWARD: policy drop");
    let ways = [(Some("br0"), Some("mesh0"))];
    assert_eq!(block.remedy(Hook::Forward, &ways, ""), ["ufw route allow in on br0 out on mesh0"]);
}

#[test]
fn unknown_matches_and_targets_of_iptables_are_doubts() {
    for doubt in
        ["-m set --match-set good src -j ACCEPT", "-m mark --mark 0x1/0x1 -j ACCEPT", "-j NFQUEUE --queue-num 0"]
    {
        let listing = format!("*filter\n:FORWARD DROP [0:0]\n-A FORWARD {doubt}\nCOMMIT\n");
        let ruleset = iptables::parse(&listing, "ip", Tool::Iptables);
        assert_eq!(ruleset.verdict(Hook::Forward, &out(), &|_| false), None, "{doubt}");
    }
    for sure in ["-o eth0 -m mark --mark 0x1 -j ACCEPT", "-j MARK --set-xmark 0x1/0x1", "-j TCPMSS --clamp-mss-to-pmtu"]
    {
        let listing = format!("*filter\n:FORWARD DROP [0:0]\n-A FORWARD {sure}\nCOMMIT\n");
        let ruleset = iptables::parse(&listing, "ip", Tool::Iptables);
        assert!(ruleset.verdict(Hook::Forward, &out(), &|_| false).is_some(), "{sure}");
    }
}
