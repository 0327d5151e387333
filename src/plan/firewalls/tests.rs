//! Docker's, ufw's and firewalld's rules as their programs made them, and what is to be done about each.

use super::*;
use crate::plan::tests::{home, home_facts, vps, vps_facts};
use crate::plan::{ActualState, Change, DesiredState, HostFacts, desired, diff};

fn chain(table: &str, name: &str, hook: impl Into<Option<Hook>>, rules: Vec<Rule>) -> Chain {
    let (table, name) = (table.to_owned(), name.to_owned());
    Chain { maker: Maker::Iptables, family: Some(Family::V4), table, name, hook: hook.into(), rules }
}

fn forward(drops: bool) -> Hook {
    Hook { stage: Stage::Forward, drops }
}

fn rule(conditions: &[Condition], verdict: Verdict) -> Rule {
    Rule { conditions: conditions.to_vec(), verdict, comment: None, text: "-A …".to_owned() }
}

fn jump(to: &str) -> Rule {
    rule(&[], Verdict::Jump(to.to_owned()))
}

fn input(name: &str) -> Condition {
    Condition::of(What::Input(vec![name.to_owned()]))
}

fn output(name: &str) -> Condition {
    Condition::of(What::Output(vec![name.to_owned()]))
}

fn not(condition: Condition) -> Condition {
    Condition { negated: true, ..condition }
}

fn to(net: &str) -> Condition {
    Condition::of(What::Destination(vec![net.parse().unwrap()]))
}

/// What Docker 20.10 makes of a network on `br0`.
fn docker() -> Vec<Chain> {
    let established = Condition::of(What::State(["RELATED", "ESTABLISHED"].map(str::to_owned).into()));
    let rules = vec![
        jump("DOCKER-USER"),
        rule(&[output("br0"), established], Verdict::Accept),
        rule(&[input("br0"), not(output("br0"))], Verdict::Accept),
    ];
    vec![
        chain("filter", "FORWARD", forward(true), rules),
        chain("filter", "DOCKER-USER", None, vec![rule(&[], Verdict::Return)]),
    ]
}

fn with(facts: HostFacts, chains: Vec<Chain>) -> HostFacts {
    HostFacts { firewalls: Firewalls { chains, ..Firewalls::default() }, ..facts }
}

/// The changes that concern other firewalls.
fn changes(config: &Config, facts: &HostFacts) -> Vec<String> {
    let (state, _) = desired(config, facts);
    let actual = ActualState {
        exceptions: facts.firewalls.ours("mesh0"),
        zones: facts.firewalls.our_zones(),
        ..ActualState::default()
    };
    let changes = diff(&state, &actual);
    changes.iter().filter(|change| change.kind() == "firewall").map(Change::to_string).collect()
}

#[test]
fn docker_gets_exceptions_before_its_return() {
    let expected = [
        "iptables -w -I DOCKER-USER 1 -i br0 -o mesh0 -m comment --comment meshd -j ACCEPT",
        "iptables -w -I DOCKER-USER 1 -i eth0 -o mesh0 -m comment --comment meshd -j ACCEPT",
        "iptables -w -I DOCKER-USER 1 -i mesh0 -m comment --comment meshd -j ACCEPT",
    ];
    let facts = with(vps_facts(), docker());
    let mut found = changes(&vps(), &facts);
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(desired(&vps(), &facts).1, Vec::<String>::new(), "all that Docker drops is excepted");
}

#[test]
fn an_administrators_drop_in_docker_user_is_obeyed_and_named() {
    let mut chains = docker();
    chains[1].rules.insert(0, rule(&[input("mesh0"), output("eth0")], Verdict::Drop));
    let facts = with(vps_facts(), chains);
    assert!(changes(&vps(), &facts).iter().all(|change| change.contains("-I DOCKER-USER 2 ")), "behind it");
    assert_eq!(
        desired(&vps(), &facts).1,
        ["table ip filter, chain DOCKER-USER drops what goes from mesh0 to eth0 (-A …); to let it pass: \
          iptables -I FORWARD -i mesh0 -o eth0 -j ACCEPT"]
    );
}

#[test]
fn what_is_there_and_works_is_left_alone() {
    let (mut facts, config) = (with(vps_facts(), docker()), vps());
    for (exception, position) in exceptions(&config, &facts, &Exits::new(&config, &facts, &mut Vec::new())) {
        let ours = Rule { comment: Some(COMMENT.to_owned()), ..exception.rule() };
        facts.firewalls.chains[1].rules.insert(position.unwrap() - 1, ours);
    }
    assert_eq!(changes(&config, &facts), Vec::<String>::new());
    let (state, _) = desired(&config, &facts);
    assert_eq!(
        diff(
            &DesiredState::default(),
            &ActualState { exceptions: facts.firewalls.ours("mesh0"), ..ActualState::default() }
        )
        .len(),
        state.exceptions.len()
    );
    // Of another agent, and without our comment.
    facts.firewalls.chains[1].rules.iter_mut().for_each(|rule| rule.comment = None);
    assert!(facts.firewalls.ours("mesh0").is_empty());
    // Behind the RETURN they are never asked.
    let (mut facts, exception) = (with(vps_facts(), docker()), state.exceptions.keys().next().unwrap());
    facts.firewalls.chains[1].rules.push(Rule { comment: Some(COMMENT.to_owned()), ..exception.rule() });
    assert_eq!(facts.firewalls.ours("mesh0").get(exception), Some(&false));
    assert_eq!(changes(&config, &facts).len(), 3);
}

#[test]
fn dockers_raw_drops_are_preceded() {
    let drop = rule(&[to("10.89.2.10/32"), not(input("br0"))], Verdict::Drop);
    let hook = Some(Hook { stage: Stage::Prerouting, drops: false });
    let others = rule(&[to("10.0.0.1/32")], Verdict::Drop);
    let facts = with(home_facts(), vec![chain("raw", "PREROUTING", hook, vec![others, drop.clone()])]);
    assert_eq!(
        changes(&home(), &facts),
        ["iptables -w -t raw -I PREROUTING 2 -i mesh0 -d 10.89.2.0/24 -m comment --comment meshd -j ACCEPT"]
    );
    assert_eq!(desired(&home(), &facts).1, Vec::<String>::new());

    // Made by hand, with one condition more: theirs to decide.
    let mut own = drop;
    own.conditions.push(Condition::of(What::Protocol(vec!["tcp".to_owned()])));
    let facts = with(home_facts(), vec![chain("raw", "PREROUTING", hook, vec![own])]);
    assert_eq!(changes(&home(), &facts), Vec::<String>::new());
    assert_eq!(
        desired(&home(), &facts).1,
        ["table ip raw, chain PREROUTING drops what goes from mesh0 to br0 (-A …); to let it pass: \
          iptables -t raw -I PREROUTING -i mesh0 -d 10.89.2.10 -j ACCEPT"]
    );
}

#[test]
fn ufw_gets_exceptions_at_the_end_of_its_users_rules() {
    let chains = vec![
        chain("filter", "FORWARD", forward(true), vec![jump("ufw-before-forward")]),
        chain("filter", "ufw-before-forward", None, vec![jump("ufw-user-forward")]),
        chain("filter", "ufw-user-forward", None, Vec::new()),
    ];
    let facts = with(home_facts(), chains);
    let found = changes(&home(), &facts);
    assert!(
        found.contains(&"iptables -w -A ufw-user-forward -i mesh0 -m comment --comment meshd -j ACCEPT".to_owned())
    );
    assert_eq!(desired(&home(), &facts).1, Vec::<String>::new());
}

#[test]
fn a_ruleset_of_its_own_is_named_and_left_alone() {
    let facts = with(home_facts(), vec![chain("filter", "FORWARD", forward(true), Vec::new())]);
    assert_eq!(changes(&home(), &facts), Vec::<String>::new());
    let advice = |from: &str, to: &str| {
        format!(
            "table ip filter, chain FORWARD drops what goes from {from} to {to} (policy drop); to let it pass: \
             iptables -I FORWARD -i {from} -o {to} -j ACCEPT"
        )
    };
    assert_eq!(desired(&home(), &facts).1, [advice("br0", "mesh0"), advice("mesh0", "br0")]);
    // A rule that may accept it for reasons that are not known is not called a drop.
    let unknown = rule(&[Condition::of(What::Unknown)], Verdict::Accept);
    let facts = with(home_facts(), vec![chain("filter", "FORWARD", forward(true), vec![unknown])]);
    assert_eq!(desired(&home(), &facts).1, Vec::<String>::new());
    assert!(blocked(&home(), &facts).iter().all(|blocked| !blocked.certain));
    assert_eq!(blocked(&home(), &facts).len(), 2);
}

fn firewalld(rules: Vec<Rule>) -> Vec<Chain> {
    let mut rules = rules;
    rules.push(rule(&[], Verdict::Goto("filter_FWD_public".to_owned())));
    let reject = || rule(&[], Verdict::Drop);
    let inet =
        |name: &str, hook, rules| Chain { maker: Maker::Nft, family: None, ..chain("firewalld", name, hook, rules) };
    vec![
        inet("filter_FORWARD", Some(forward(false)), vec![jump("filter_FORWARD_ZONES"), reject()]),
        inet("filter_FORWARD_ZONES", None, rules),
        inet("filter_FWD_public", None, vec![reject()]),
        inet("filter_FWD_trusted", None, vec![rule(&[], Verdict::Accept)]),
    ]
}

#[test]
fn firewalld_gets_tunnel_and_bridges_in_a_zone() {
    let facts = with(home_facts(), firewalld(Vec::new()));
    assert_eq!(
        changes(&home(), &facts),
        ["firewall-cmd --zone=trusted --add-interface=br0", "firewall-cmd --zone=trusted --add-interface=mesh0"]
    );
    assert_eq!(desired(&home(), &facts).1, Vec::<String>::new());
}

#[test]
fn what_somebody_put_into_a_zone_stays_there() {
    let member = |name: &str, zone: &str| rule(&[input(name)], Verdict::Goto(format!("filter_FWD_{zone}")));
    let facts = with(home_facts(), firewalld(vec![member("mesh0", "trusted"), member("br0", "public")]));
    assert_eq!(changes(&home(), &facts), Vec::<String>::new());
    assert_eq!(
        desired(&home(), &facts).1,
        ["table inet firewalld, chain filter_FWD_public drops what goes from br0 to mesh0 (-A …); to let it pass: \
          firewall-cmd --zone=trusted --change-interface=br0"]
    );
    // By its addresses, as Podman does it.
    let source = Condition::of(What::Source(home().host.bridges[0].subnets.clone()));
    let podman = rule(&[source], Verdict::Goto("filter_FWD_trusted".to_owned()));
    let facts = with(home_facts(), firewalld(vec![podman]));
    assert_eq!(changes(&home(), &facts), ["firewall-cmd --zone=trusted --add-interface=mesh0"]);
}

#[test]
fn only_our_own_places_are_taken_back() {
    let member = |name: &str| rule(&[input(name)], Verdict::Goto("filter_FWD_trusted".to_owned()));
    let mut facts = with(home_facts(), firewalld(vec![member("mesh0"), member("br0")]));
    facts.firewalls.placed.insert("mesh0".to_owned());
    assert_eq!(changes(&home(), &facts), Vec::<String>::new());
    let actual = ActualState { zones: facts.firewalls.our_zones(), ..ActualState::default() };
    let down: Vec<String> = diff(&DesiredState::default(), &actual).iter().map(Change::to_string).collect();
    assert_eq!(down, ["firewall-cmd --zone=trusted --remove-interface=mesh0"]);
}
