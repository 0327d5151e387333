//! The plan and its reconciliation against a real kernel. Each test has network namespaces of its own, without names: they
//! go with the thread and the children that hold them. Needs root.
#![allow(clippy::unwrap_used, reason = "clippy knows only functions marked as tests")]

#[path = "routing/host.rs"]
mod host;
#[path = "routing/traffic.rs"]
mod traffic;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use host::{Test, assert_same, assert_state, home, sh, state, vps};
use meshd::config::{Bridge, Config, Egress, Lan};
use meshd::host::Error;
use meshd::plan::{Change, desired, diff, tables};

fn lines(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| change.to_string().lines().next().unwrap().to_owned()).collect()
}

fn table() -> u32 {
    tables::number("mesh0", "br0")
}

#[test]
fn a_first_reconciliation_makes_what_was_planned_and_a_second_nothing() {
    Test::run(async |test: Test| {
        let mut reconciler = test.reconciler("mesh0");
        let planned = reconciler.plan(&home()).await.unwrap();
        let outcome = reconciler.reconcile(&home()).await.unwrap();
        assert_eq!(lines(&outcome.changes), lines(&planned.changes));
        assert!(outcome.warnings.is_empty(), "{:?}", outcome.warnings);

        assert_eq!(reconciler.reconcile(&home()).await.unwrap().changes, []);
        assert!(reconciler.plan(&home()).await.unwrap().changes.is_empty());
        assert!(reconciler.guard_armed("br0").await);
        assert!(!reconciler.guard_armed("br1").await);

        let t = table();
        let expected = "default dev mesh0 proto 88 scope link \n\
             unreachable default proto 88 metric 4294967295 \n\
             10.88.0.0/24 dev mesh0 proto 88 scope link \n\
             10.89.1.0/24 dev mesh0 proto 88 scope link \n\
             10.89.2.0/24 dev br0 proto 88 scope link \n\
             blackhole 10.89.2.0/24 proto 88 metric 4294967295 \n\
             192.168.1.0/24 dev eth0 proto 88 scope link \n";
        assert_eq!(sh(&format!("ip route show table {t}")).replace("linkdown ", ""), expected);
        let rules = sh("ip -details rule");
        assert!(rules.contains(&format!("88:\tfrom all iif br0 lookup {t} proto kernel")), "{rules}");
        assert!(rules.contains(&format!("89:\tfrom 10.89.2.0/24 lookup {t} proto kernel")), "{rules}");
        let link = sh("ip address show dev mesh0");
        assert!(link.contains("mtu 1420") && link.contains("10.88.0.2/24") && link.contains("fd88::2/64"), "{link}");
        let looked_up = sh("ip route get 192.0.2.80 from 10.89.2.10 iif br0");
        assert!(looked_up.contains("dev mesh0"), "{looked_up}");
        let own = sh("ip route get 192.0.2.80");
        assert!(own.contains("dev eth0"), "{own}");
    });
}

#[test]
fn a_new_agent_takes_over_what_a_crashed_one_left_without_touching_it() {
    Test::run(async |test: Test| {
        test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        let ruleset = sh("nft -a list ruleset");
        let outcome = test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        assert_eq!(outcome.changes, []);
        assert_eq!(sh("nft -a list ruleset"), ruleset, "the guard was replaced though nothing had changed");
    });
}

/// The guard that a later boot may need is for files that cannot be read then; the journal is gone.
fn assert_nothing_but_the_kept_guard(test: &Test) {
    let files = fs::read_dir(test.state_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(files.filter(|name| name != "guard.nft").count(), 0);
}

#[test]
fn teardown_leaves_nothing() {
    for config in [home(), vps()] {
        Test::run(async |test: Test| {
            sh("ip link del mesh0");
            let before = state();
            sh("ip tuntap add dev mesh0 mode tun");
            let mut reconciler = test.reconciler("mesh0");
            reconciler.reconcile(&config).await.unwrap();
            assert_ne!(state(), before);
            reconciler.teardown(false).await.unwrap();
            sh("ip link del mesh0");
            assert_state(&before);
            assert_nothing_but_the_kept_guard(&test);
        });
    }
}

#[test]
fn teardown_after_a_crash_needs_only_the_journal() {
    Test::run(async |test: Test| {
        sh("ip link del mesh0");
        let before = state();
        sh("ip tuntap add dev mesh0 mode tun");
        test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        sh("ip link del mesh0"); // as when the process dies

        let t = table();
        let left = sh(&format!("ip route show table {t}"));
        assert!(left.contains("unreachable default") && !left.contains("mesh0"), "{left}");
        test.reconciler("mesh0").teardown(false).await.unwrap();
        assert_state(&before);
    });
}

#[test]
fn teardown_without_a_journal_still_finds_rules_routes_and_nft() {
    Test::run(async |test: Test| {
        let before = ["ip rule", "ip -6 rule", "ip route show table all", "nft list ruleset"].map(sh);
        sh("ip link set mesh0 up");
        sh("ip link set mesh0 down");
        test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        fs::remove_file(test.state_dir().join("journal.json")).unwrap();
        sh("ip link del mesh0");
        test.reconciler("mesh0").teardown(false).await.unwrap();
        assert_eq!(["ip rule", "ip -6 rule", "ip route show table all", "nft list ruleset"].map(sh), before);
    });
}

#[test]
fn keeping_the_guard_keeps_the_guard_alone() {
    Test::run(async |test: Test| {
        let mut reconciler = test.reconciler("mesh0");
        reconciler.reconcile(&home()).await.unwrap();
        reconciler.teardown(true).await.unwrap();
        assert_eq!(sh("nft list tables"), "table inet meshd_guard\n");
        assert!(!sh("ip rule").contains("88:"));
        reconciler.teardown(false).await.unwrap();
        assert_eq!(sh("nft list tables"), "");
    });
}

#[test]
fn whatever_single_thing_is_taken_away_comes_back() {
    Test::run(async |test: Test| {
        let mut reconciler = test.reconciler("mesh0");
        reconciler.reconcile(&home()).await.unwrap();
        let good = state();
        let t = table();
        let mut thefts: Vec<String> = Vec::new();
        for flag in ["-4", "-6"] {
            for route in sh(&format!("ip {flag} route show table {t}")).lines() {
                let route = route.replace(" linkdown", "").replace(" pref medium", "").replace(" dev lo", "");
                thefts.push(format!("ip {flag} route del {route} table {t}"));
            }
            thefts.push(format!("ip {flag} route flush table {t}"));
            thefts.push(format!("ip {flag} rule del pref 88"));
            thefts.push(format!("ip {flag} rule del pref 89"));
        }
        thefts.extend(
            [
                "ip route del 10.89.1.0/24",
                "ip -6 route del fd89:1::/64",
                "ip address del 10.88.0.2/24 dev mesh0",
                "ip address del fd88::2/64 dev mesh0",
                "ip link set mesh0 mtu 1500",
                "ip link set mesh0 txqueuelen 5",
                "ip link set mesh0 down",
                "nft delete table inet meshd_guard",
                "nft delete table inet meshd",
                "nft flush ruleset",
                "nft flush chain inet meshd_guard from-br0",
                "nft insert rule inet meshd_guard forward accept",
                "sysctl -qw net.ipv4.conf.br0.forwarding=0",
                "sysctl -qw net.ipv6.conf.mesh0.force_forwarding=0",
                // Somebody else's additions to what is ours.
                &format!("ip route add 192.0.2.0/24 dev eth0 table {t}"),
                &format!("ip route add default via 192.168.1.1 dev eth0 onlink metric 1 table {t}"),
                &format!("ip route prepend default dev eth0 scope link table {t}"),
                &format!("ip route append default dev eth0 scope link proto 88 table {t}"),
                &format!("ip route append 10.89.1.0/24 dev eth0 scope link table {t}"),
                &format!("ip -6 route append default dev eth0 metric 1024 table {t}"),
                &format!("ip -6 route append default dev eth0 metric 1024 proto 88 table {t}"),
                &format!("ip -6 route add blackhole 2001:db8:9::/64 table {t}"),
                "ip address add 10.88.0.77/24 dev mesh0",
            ]
            .map(str::to_owned),
        );
        assert!(thefts.len() > 30, "{thefts:?}");
        for theft in thefts {
            sh(&theft);
            assert_ne!(state(), good, "{theft} did nothing");
            assert!(!reconciler.plan(&home()).await.unwrap().changes.is_empty(), "{theft} went unnoticed");
            let outcome = reconciler.reconcile(&home()).await;
            let outcome = outcome.unwrap_or_else(|error| panic!("{theft}: {error}"));
            assert!(!outcome.changes.is_empty());
            assert_same(&good, &theft);
            assert!(reconciler.plan(&home()).await.unwrap().changes.is_empty(), "{theft}: still drifted");
        }
        // A busy counter is no change.
        sh("nft list ruleset");
        assert_eq!(reconciler.reconcile(&home()).await.unwrap().changes, []);
    });
}

#[test]
fn a_changed_configuration_leaves_nothing_of_the_former() {
    Test::run(async |test: Test| {
        let mut reconciler = test.reconciler("mesh0");
        let mut fresh = home();
        fresh.host.addresses = vec!["10.88.0.9/24".parse().unwrap(), "fd88::9/64".parse().unwrap()];
        fresh.host.bridges[0].egress = Egress::Direct;
        fresh.host.bridges[0].allow.clear();
        fresh.peers[0].subnets = vec!["10.89.7.0/24".parse().unwrap()];

        reconciler.reconcile(&fresh).await.unwrap();
        let expected = state();
        reconciler.reconcile(&home()).await.unwrap();
        assert_ne!(state(), expected);
        reconciler.reconcile(&fresh).await.unwrap();
        assert_state(&expected);
        let journal = fs::read_to_string(test.state_dir().join("journal.json")).unwrap();
        assert!(!journal.contains(&table().to_string()) && !journal.contains("eth0"), "{journal}");
    });
}

#[test]
fn two_agents_share_a_namespace() {
    Test::run(async |test: Test| {
        let mut first = test.reconciler("mesh0");
        first.reconcile(&home()).await.unwrap();
        let alone = state();

        sh("ip link add br1 type bridge");
        sh("ip link set br1 addrgenmode none; ip link set br1 up");
        sh("ip tuntap add dev mesh-1.a mode tun");
        let between = state();
        let second_config = other_mesh();
        let mut second = test.reconciler("mesh-1.a");
        second.reconcile(&second_config).await.unwrap();
        assert!(sh("nft list tables").contains("meshd_guard_mesh_1_a"));
        assert_eq!(first.reconcile(&home()).await.unwrap().changes, []);
        assert_eq!(second.reconcile(&second_config).await.unwrap().changes, []);

        second.teardown(false).await.unwrap();
        sh("ip link del mesh-1.a");
        sh("ip tuntap add dev mesh-1.a mode tun");
        let strip = |state: &str| state.replace(|c: char| c.is_ascii_digit(), "");
        assert_eq!(strip(&state()), strip(&between), "the second agent left something or took from the first");
        sh("ip link del mesh-1.a; ip link del br1");
        assert_state(&alone);
        assert_eq!(first.reconcile(&home()).await.unwrap().changes, []);
    });
}

fn other_mesh() -> Config {
    let mut config = home();
    "mesh-1.a".clone_into(&mut config.host.interface);
    config.host.addresses = vec!["10.98.0.2/24".parse().unwrap(), "fd98::2/64".parse().unwrap()];
    let subnets = vec!["10.99.2.0/24".parse().unwrap(), "fd99:2::/64".parse().unwrap()];
    let egress = Egress::Peers(vec!["vps".to_owned()]);
    config.host.bridges =
        vec![Bridge { name: "br1".to_owned(), subnets, egress, allow: Vec::new(), users: Vec::new() }];
    config.peers[0].addresses = vec!["10.98.0.1".parse().unwrap()];
    config.peers[0].subnets = vec!["10.99.1.0/24".parse().unwrap()];
    config
}

#[test]
fn ipv6_switched_off_leaves_ipv4_working() {
    Test::run(async |test: Test| {
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        sh("ip link del mesh0; ip tuntap add dev mesh0 mode tun");
        let mut reconciler = test.reconciler("mesh0");
        let outcome = reconciler.reconcile(&home()).await.unwrap();
        assert_eq!(outcome.warnings[0], "no IPv6 on mesh0: net.ipv6.conf.mesh0.disable_ipv6 is 1");
        assert!(sh("ip route get 192.0.2.80 from 10.89.2.10 iif br0").contains("dev mesh0"));
        let t = table();
        let routes = sh(&format!("ip -6 route show table {t}"));
        assert!(routes.lines().all(|route| !route.contains("mesh0")), "{routes}");
        assert_eq!(reconciler.reconcile(&home()).await.unwrap().changes, []);
        reconciler.teardown(false).await.unwrap();
        assert!(!sh("ip -6 rule").contains("88:"));
    });
}

#[test]
fn a_bridge_that_comes_late_or_comes_again_is_bound() {
    Test::run(async |test: Test| {
        sh("ip link del br0");
        let mut reconciler = test.reconciler("mesh0");
        let outcome = reconciler.reconcile(&home()).await.unwrap();
        assert_eq!(outcome.warnings, ["bridge br0 does not exist yet: its routes are added when it does"]);
        assert!(reconciler.guard_armed("br0").await);
        let t = table();
        for _ in 0..3 {
            host::add_bridge();
            assert!(!reconciler.plan(&home()).await.unwrap().changes.is_empty());
            let outcome = reconciler.reconcile(&home()).await.unwrap();
            assert!(outcome.warnings.is_empty());
            assert!(sh(&format!("ip route show table {t}")).contains("10.89.2.0/24 dev br0"));
            assert_eq!(sh("sysctl -n net.ipv4.conf.br0.forwarding"), "1\n");
            assert_eq!(reconciler.reconcile(&home()).await.unwrap().changes, []);
            reconciler.teardown(true).await.unwrap();
            assert_eq!(sh("sysctl -n net.ipv4.conf.br0.forwarding"), "0\n");
            reconciler.reconcile(&home()).await.unwrap();
            sh("ip link del br0");
        }
        // The journal speaks of a bridge's former life: its value must not go to the new one.
        host::add_bridge();
        sh("sysctl -qw net.ipv4.conf.br0.forwarding=1");
        reconciler.reconcile(&home()).await.unwrap();
        reconciler.teardown(false).await.unwrap();
        assert_eq!(sh("sysctl -n net.ipv4.conf.br0.forwarding"), "1\n");
    });
}

#[test]
fn without_forced_forwarding_every_overwritten_sysctl_is_put_back() {
    Test::run(async |test: Test| {
        // The kernel itself takes 0 or 1 for an interface apart from the others.
        sh("ip tuntap add dev lan1 mode tap; ip link set lan1 addrgenmode none; ip link set lan1 up");
        sh("sysctl -qw net.ipv6.conf.lan1.forwarding=1 net.ipv6.conf.eth0.accept_ra=1");
        sh("ip -6 address add 2001:db8:168::77/64 dev eth0 nodad valid_lft 3600 preferred_lft 3600");
        sh("ip link del mesh0");
        let before = state();
        sh("ip tuntap add dev mesh0 mode tun");

        let mut reconciler = test.reconciler("mesh0");
        let mut facts = reconciler.facts().await.unwrap();
        facts.force_forwarding = false;
        let (state, _) = desired(&home(), &facts);
        let actual = reconciler.read(&state).await.unwrap();
        reconciler.apply(&diff(&state, &actual)).await.unwrap();
        let values = "net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.forwarding net.ipv6.conf.eth0.accept_ra";
        assert_eq!(sh(&format!("sysctl -n {values}")), "1\n1\n2\n");
        let actual = reconciler.read(&state).await.unwrap();
        assert_eq!(diff(&state, &actual), []);

        drop(reconciler);
        sh("ip link del mesh0");
        test.reconciler("mesh0").teardown(false).await.unwrap();
        assert_state(&before);
    });
}

#[test]
fn a_damaged_journal_is_named_and_kept_while_the_guard_is_armed() {
    Test::run(async |test: Test| {
        test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        let path = test.state_dir().join("journal.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        sh("nft flush ruleset; ip rule del pref 88");

        let mut reconciler = test.reconciler("mesh0");
        assert!(reconciler.plan(&home()).await.is_err() && path.exists(), "a plan changes nothing");
        let error = reconciler.reconcile(&home()).await.unwrap_err();
        let Error::JournalDamaged { backup, .. } = &error else { panic!("{error}") };
        assert_eq!(fs::read_to_string(backup).unwrap(), text[..text.len() / 2]);
        assert!(error.remedy().is_some());
        assert_eq!(sh("nft list tables"), "table inet meshd_guard\n", "armed, and nothing else done");
        assert!(!sh("ip rule").contains("88:"));
        reconciler.reconcile(&home()).await.unwrap();
        reconciler.teardown(false).await.unwrap();
    });
}

#[test]
fn without_nft_nothing_is_programmed_and_the_remedy_is_named() {
    Test::run(async |test: Test| {
        let before = state();
        let mut reconciler = test.reconciler("mesh0");
        reconciler.set_nft_program(&test.state_dir().join("nft"));
        let error = reconciler.reconcile(&home()).await.unwrap_err();
        assert!(matches!(error, Error::Guard(_)), "{error}");
        assert_eq!(error.remedy(), Some("apt install nftables"));
        assert_state(&before);
    });
}

/// A program to be run in nft's place.
fn script(test: &Test, lines: &str) -> PathBuf {
    let program = test.state_dir().join("nft");
    fs::write(&program, lines).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn a_failing_nft_says_why_and_nothing_is_programmed() {
    Test::run(async |test: Test| {
        let before = state();
        let fails = "#!/bin/sh\necho 'Error: Could not process rule: Operation not supported' >&2\nexit 1\n";
        let program = script(&test, fails);
        let mut reconciler = test.reconciler("mesh0");
        reconciler.set_nft_program(&program);
        let error = reconciler.reconcile(&home()).await.unwrap_err();
        assert_eq!(error.to_string(), "guard not armed: nft: Error: Could not process rule: Operation not supported");
        assert_state(&before);
    });
}

/// Refuses the filter and passes on all else.
const REFUSES_THE_FILTER: &str = r#"#!/bin/sh
if [ "$1" = -f ]; then
    script=$(cat)
    case "$script" in *"table inet meshd {"*) echo "Error: refused" >&2; exit 1 ;; esac
    printf '%s\n' "$script" | nft -f -
else
    exec nft "$@"
fi
"#;

#[test]
fn without_its_filter_the_host_does_not_begin_to_forward() {
    Test::run(async |test: Test| {
        let program = script(&test, REFUSES_THE_FILTER);
        let mut reconciler = test.reconciler("mesh0");
        reconciler.set_nft_program(&program);
        let error = reconciler.reconcile(&vps()).await.unwrap_err();
        assert!(matches!(&error, Error::Incomplete { applied, .. } if applied.is_empty()), "{error}");
        assert_eq!(sh("sysctl -n net.ipv4.conf.eth0.forwarding net.ipv6.conf.eth0.force_forwarding"), "0\n0\n");
        reconciler.reconcile(&home()).await.unwrap_err();
        assert_eq!(sh("nft list tables"), "table inet meshd_guard\n");
        assert!(!sh("ip rule").contains("88:"));
    });
}

#[test]
fn a_teardown_without_a_working_nft_removes_the_rest_and_says_so() {
    Test::run(async |test: Test| {
        test.reconciler("mesh0").reconcile(&home()).await.unwrap();
        let mut reconciler = test.reconciler("mesh0");
        reconciler.set_nft_program(Path::new("/bin/false"));
        let error = reconciler.teardown(false).await.unwrap_err();
        assert!(matches!(&error, Error::Incomplete { failed, .. } if failed.len() == 1), "{error}");
        assert!(!sh("ip rule").contains("88:"));
        assert_eq!(sh("sysctl -n net.ipv4.conf.br0.forwarding"), "0\n");
        reconciler.set_nft_program(Path::new("nft"));
        reconciler.teardown(false).await.unwrap();
        assert_eq!(sh("nft list tables"), "");
        assert_nothing_but_the_kept_guard(&test);
    });
}

#[test]
fn a_journal_that_cannot_be_written_stops_all_but_the_guard() {
    Test::run(async |test: Test| {
        let forwarding = sh("sysctl -n net.ipv4.conf.br0.forwarding");
        fs::create_dir(test.state_dir().join("journal.json.new")).unwrap();
        let mut reconciler = test.reconciler("mesh0");
        let error = reconciler.reconcile(&home()).await.unwrap_err();
        assert!(matches!(error, Error::Journal { .. }), "{error}");
        assert_eq!(sh("nft list tables"), "table inet meshd_guard\n");
        assert_eq!(sh("sysctl -n net.ipv4.conf.br0.forwarding"), forwarding);
        assert!(!sh("ip rule").contains("88:"));
    });
}

#[test]
fn a_foreign_route_in_main_is_left_alone_and_the_rest_is_done() {
    Test::run(async |test: Test| {
        sh("ip route add 10.89.1.0/24 via 192.168.1.1");
        let mut reconciler = test.reconciler("mesh0");
        let error = reconciler.reconcile(&home()).await.unwrap_err();
        let Error::Incomplete { failed, .. } = &error else { panic!("{error}") };
        assert_eq!(failed.len(), 1, "{error}");
        assert_eq!(failed[0].step, "ip route add 10.89.1.0/24 dev mesh0 proto 88");
        assert!(sh("ip route").contains("10.89.1.0/24 via 192.168.1.1 dev eth0"));
        assert!(
            sh("ip route get 10.89.1.10 from 10.89.2.10 iif br0").contains("dev mesh0"),
            "containers do not use main"
        );
    });
}

#[test]
fn a_guard_before_the_interface_and_a_withheld_tunnel_hold_egress_closed() {
    Test::run(async |test: Test| {
        sh("ip link del mesh0; ip link del br0");
        let mut reconciler = test.reconciler("mesh0");
        assert!(reconciler.arm_guard(&home()).await.unwrap());
        assert!(!reconciler.arm_guard(&home()).await.unwrap());
        assert_eq!(sh("nft list tables"), "table inet meshd_guard\n");

        host::add_bridge();
        reconciler.reconcile(&home()).await.unwrap();
        let refused = host::try_sh("ip route get 192.0.2.80 from 10.89.2.10 iif br0").unwrap_err();
        assert!(refused.contains("No route to host"), "{refused}");
        let outcome = reconciler.reconcile(&home()).await.unwrap();
        assert_eq!(outcome.changes, []);
        assert_eq!(outcome.warnings, ["interface mesh0 does not exist: egress stays closed"]);
    });
}

#[test]
fn our_rules_stay_before_those_that_others_add_without_a_priority() {
    Test::run(async |test: Test| {
        let mut reconciler = test.reconciler("mesh0");
        reconciler.reconcile(&home()).await.unwrap();
        let good = state();
        // wg-quick(8) with a default route.
        for flag in ["-4", "-6"] {
            sh(&format!("ip {flag} rule add not fwmark 51820 table 51820"));
            sh(&format!("ip {flag} rule add table main suppress_prefixlength 0"));
        }
        sh("ip route add default dev eth0 table 51820");
        let looked_up = || sh("ip route get 192.0.2.80 from 10.89.2.10 iif br0");
        assert!(looked_up().contains("dev eth0"), "the kernel puts them first: {}", looked_up());
        let changes = reconciler.reconcile(&home()).await.unwrap().changes;
        assert!(looked_up().contains("dev mesh0"), "{}", looked_up());
        let first_removal = changes.iter().position(|change| change.action() == "remove").unwrap();
        assert!(changes[..first_removal].iter().all(|change| change.action() == "add"), "added before removed");
        assert_eq!(reconciler.reconcile(&home()).await.unwrap().changes, []);
        let own = sh("ip route get 192.0.2.80");
        assert!(own.contains("table 51820"), "the host's own traffic is the other's: {own}");
        for flag in ["-4", "-6"] {
            sh(&format!("ip {flag} rule del table 51820"));
            sh(&format!("ip {flag} rule del table main suppress_prefixlength 0"));
        }
        sh("ip route flush table 51820");
        reconciler.reconcile(&home()).await.unwrap();
        assert_same(&good, "after the other has gone");
    });
}

#[test]
fn a_flush_of_all_rules_is_undone_and_the_missing_main_table_named() {
    Test::run(async |test: Test| {
        let mut reconciler = test.reconciler("mesh0");
        reconciler.reconcile(&home()).await.unwrap();
        sh("ip rule flush");
        assert_eq!(sh("ip rule"), "0:\tfrom all lookup local\n", "what a flush leaves");
        let outcome = reconciler.reconcile(&home()).await.unwrap();
        assert!(sh("ip route get 192.0.2.80 from 10.89.2.10 iif br0").contains("dev mesh0"));
        let named =
            "no rule leads to the main table, so this host has no routes; try: ip rule add pref 32766 lookup main";
        assert_eq!(outcome.warnings, [named]);
    });
}

#[test]
fn answers_to_containers_of_a_bridge_that_is_gone_go_nowhere() {
    Test::run(async |test: Test| {
        let mut reconciler = test.reconciler("mesh0");
        reconciler.reconcile(&home()).await.unwrap();
        sh("ip link del br0");
        reconciler.reconcile(&home()).await.unwrap();
        for to in ["10.89.2.10 from 192.0.2.80", "fd89:2::10 from 2001:db8:80::80"] {
            let refused = host::try_sh(&format!("ip route get {to} iif mesh0")).unwrap_err();
            assert!(refused.contains("Invalid argument"), "a black hole: {refused}");
        }
    });
}

#[test]
fn the_whole_of_the_filter_is_accepted_by_nft() {
    Test::run(async |test: Test| {
        let mut config = vps();
        let lan = |subnet: &str, masquerade| Lan {
            subnet: subnet.parse().unwrap(),
            interface: "eth0".to_owned(),
            masquerade,
        };
        config.host.lans = vec![lan("192.168.1.0/24", true), lan("fd07::/64", false)];
        config.host.publish[0].protocol = meshd::config::Protocol::Udp;
        config.host.publish.push(meshd::config::Publish {
            protocol: meshd::config::Protocol::Tcp,
            ports: 8443.into(),
            to: "[fd89:2::10]:443".parse().unwrap(),
        });
        config.host.publish.push(meshd::config::Publish {
            protocol: meshd::config::Protocol::Udp,
            ports: meshd::config::PortRange { first: 9000, last: 9002 },
            to: "[fd89:2::10]:53".parse().unwrap(),
        });
        let mut guarded = home().host.bridges[0].clone();
        guarded.name = "br-2.x".to_owned();
        guarded.egress = Egress::None;
        config.host.bridges.push(guarded);
        let mut reconciler = test.reconciler("mesh0");
        reconciler.reconcile(&config).await.unwrap();
        assert_eq!(reconciler.reconcile(&config).await.unwrap().changes, []);
        let ruleset = sh("nft list ruleset");
        for part in ["dnat ip6 to [fd89:2::10]:443", "masquerade to :1024-51819", "chain from-br-2.x"] {
            assert!(ruleset.contains(part), "{part} is not in {ruleset}");
        }
    });
}
