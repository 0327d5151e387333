//! The plan of the worked example as text, and what the plan must never do.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::*;
use crate::attach::{Mac, Port};
use crate::config::{Allow, Bridge, Config, Egress, Exit, Host, Lan, Peer, PortRange, Protocol, Publish};
use crate::key::PrivateKey;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn allow(list: &[&str]) -> Vec<Allow> {
    list.iter().map(|item| crate::config::allow(item).unwrap()).collect()
}

fn peer(name: &str, addresses: &[&str], subnets: &[&str]) -> Peer {
    Peer {
        addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
        subnets: nets(subnets),
        ..Peer::new(name, PrivateKey::generate().unwrap().public_key())
    }
}

fn bridge(subnets: &[&str], egress: Egress, allow: &[&str]) -> Bridge {
    Bridge { name: "br0".to_owned(), subnets: nets(subnets), egress, allow: nets(allow), users: Vec::new() }
}

fn config(name: &str, addresses: &[&str], bridges: Vec<Bridge>, peers: Vec<Peer>) -> Config {
    let host = Host {
        name: name.to_owned(),
        interface: "mesh0".to_owned(),
        addresses: nets(addresses),
        listen_port: 51820,
        endpoint: None,
        mtu: 1420,
        workers: None,
        copy_dscp: false,
        bridges,
        lans: Vec::new(),
        exit: None,
        publish: Vec::new(),
        domain: "mesh".to_owned(),
        express: true,
        names: None,
    };
    Config { host, private_key: PrivateKey::generate().unwrap(), peers }
}

pub(super) fn home() -> Config {
    let vps = Egress::Peers(vec!["vps".to_owned()]);
    let br0 = bridge(&["10.89.2.0/24", "fd89:2::/64"], vps, &["192.168.1.0/24"]);
    let peers = vec![peer("vps", &["10.88.0.1", "fd88::1"], &["10.89.1.0/24", "fd89:1::/64"])];
    config("home", &["10.88.0.2/24", "fd88::2/64"], vec![br0], peers)
}

pub(super) fn vps() -> Config {
    let br0 = bridge(&["10.89.1.0/24", "fd89:1::/64"], Egress::Direct, &[]);
    let home = peer("home", &["10.88.0.2", "fd88::2"], &["10.89.2.0/24", "fd89:2::/64"]);
    let mut phone = peer("phone", &["10.88.0.3", "fd88::3"], &[]);
    phone.client = true;
    phone.allow = Some(allow(&["10.89.1.0/24", "fd89:1::/64", "10.89.2.10 tcp/443", "fd89:2::10 tcp/443"]));
    let mut config = config("vps", &["10.88.0.1/24", "fd88::1/64"], vec![br0], vec![home, phone]);
    config.host.exit =
        Some(Exit { peers: vec!["home".to_owned(), "phone".to_owned()], interface: None, egress: Egress::Direct });
    let to = "10.89.2.10:443".parse().unwrap();
    config.host.publish = vec![Publish { protocol: Protocol::Tcp, ports: 443.into(), to }];
    config
}

/// The same in the middle of a chain: what home and the phone send leaves by yet another exit.
fn middle() -> Config {
    let mut config = vps();
    config.peers.push(peer("vps2", &["10.88.0.4", "fd88::4"], &[]));
    config.host.exit.as_mut().unwrap().egress = Egress::Peers(vec!["vps2".to_owned()]);
    config
}

fn route(destination: &str, gateway: Option<&str>, device: &str) -> MainRoute {
    let gateway = gateway.map(|addr| addr.parse::<IpAddr>().unwrap());
    MainRoute { destination: destination.parse().unwrap(), gateway, device: Some(device.to_owned()), metric: 0 }
}

fn facts(lan: &[&str], gateways: [&str; 2]) -> HostFacts {
    let link = |index| Link { index, up: true, ipv6: true, ..Link::default() };
    let links = [("lo", link(1)), ("eth0", link(2)), ("br0", link(3)), ("mesh0", link(4))];
    let mut main: Vec<MainRoute> = lan.iter().map(|net| route(net, None, "eth0")).collect();
    main.push(route("0.0.0.0/0", Some(gateways[0]), "eth0"));
    main.push(route("::/0", Some(gateways[1]), "eth0"));
    let links = links.map(|(name, link)| (name.to_owned(), link)).into();
    HostFacts { links, main, ipv6: true, force_forwarding: true, ..HostFacts::default() }
}

pub(super) fn home_facts() -> HostFacts {
    facts(&["192.168.1.0/24"], ["192.168.1.1", "fe80::1"])
}

pub(super) fn vps_facts() -> HostFacts {
    facts(&["203.0.113.0/24", "2001:db8:1::/64"], ["203.0.113.1", "2001:db8:1::1"])
}

/// The changes on a host that has nothing yet. `UPDATE_GOLDEN=1` writes the file anew.
fn check(name: &str, config: &Config, facts: &HostFacts) {
    let (state, warnings) = desired(config, facts);
    assert_eq!(warnings, Vec::<String>::new());
    let changes = diff(&state, &ActualState::default());
    let lines: Vec<String> = changes.iter().map(Change::to_string).collect();
    let text = lines.join("\n") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{} differs", path.display());
}

#[test]
fn the_home_server_of_the_example() {
    check("home.txt", &home(), &home_facts());
}

/// `docs/ARCHITECTURE.md` shows it.
#[test]
fn the_documentation_shows_the_plan_as_it_is() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    assert!(read("docs/ARCHITECTURE.md").contains(&read("src/plan/golden/home.txt")));
}

#[test]
fn the_vps_of_the_example() {
    check("vps.txt", &vps(), &vps_facts());
}

/// Two users' containers, of whom the first is given the second's to reach.
#[test]
fn the_vps_with_attached_containers() {
    let port = |number: u8, uid: u32, addresses: &[&str], reach: &[u32]| Port {
        name: format!("c{number}"),
        bridge: "br0".to_owned(),
        interface: format!("c-c{number}"),
        mac: Mac([2, 0, 0, 0, 0, number]),
        addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
        uid,
        reach: reach.to_vec(),
        publish: Vec::new(),
    };
    let ports = vec![
        port(1, 1001, &["10.89.1.10", "fd89:1::10"], &[1002]),
        port(2, 1002, &["10.89.1.11", "fd89:1::11"], &[]),
        port(3, 1003, &["10.89.1.12"], &[]),
    ];
    check("containers.txt", &vps(), &HostFacts { ports, ..vps_facts() });
}

#[test]
fn the_middle_of_a_chain_lets_nothing_out_by_itself() {
    check("middle.txt", &middle(), &vps_facts());
}

#[test]
fn a_bridge_without_egress_reaches_the_mesh_only() {
    let mut config = home();
    config.host.bridges[0].egress = Egress::None;
    check("home-none.txt", &config, &home_facts());
}

#[test]
fn a_host_with_a_lan_and_no_forced_forwarding() {
    let mut config = home();
    let lan =
        |subnet: &str, masquerade| Lan { subnet: subnet.parse().unwrap(), interface: "eth0".to_owned(), masquerade };
    config.host.lans = vec![lan("192.168.1.0/24", true), lan("192.168.7.0/24", false)];
    let mut facts = home_facts();
    facts.force_forwarding = false;
    facts.links.get_mut("eth0").unwrap().accept_ra = Some(1);
    facts.links.get_mut("eth0").unwrap().autoconfigured = true;
    check("home-lan.txt", &config, &facts);
}

/// Everything that publishing can ask for: ranges, both families, a bridge of its own that leaves elsewhere, a peer's address.
fn publisher() -> Config {
    let mut config = vps();
    let br1 = bridge(&["10.89.9.0/24", "fd89:9::/64"], Egress::Peers(vec!["home".to_owned()]), &[]);
    config.host.bridges.push(Bridge { name: "br1".to_owned(), ..br1 });
    let publish = |protocol, first, last, to: &str| Publish {
        protocol,
        ports: PortRange { first, last },
        to: to.parse().unwrap(),
    };
    config.host.publish = vec![
        publish(Protocol::Tcp, 443, 443, "10.89.2.10:443"),
        publish(Protocol::Tcp, 443, 443, "[fd89:2::10]:8443"),
        publish(Protocol::Udp, 8000, 8010, "10.89.1.10:8000"),
        publish(Protocol::Udp, 9000, 9002, "[fd89:9::10]:53"),
        publish(Protocol::Tcp, 22, 22, "10.88.0.2:22"),
    ];
    config
}

#[test]
fn a_publisher() {
    let mut facts = vps_facts();
    facts.links.insert("br1".to_owned(), Link { index: 5, up: true, ipv6: true, ..Link::default() });
    check("publisher.txt", &publisher(), &facts);
}

#[test]
fn the_tunnels_port_is_never_published() {
    let mut config = publisher();
    config.host.listen_port = 0;
    let text = |running| {
        let facts = HostFacts { listen_port: Some(running), ..vps_facts() };
        desired(&config, &facts).0.filter.unwrap().text
    };
    assert!(text(8005).contains("udp dport 8005 return"));
    assert!(!text(40000).contains("udp dport 40000"));
}

/// The state that results when all changes are made.
fn reached(desired: &DesiredState) -> ActualState {
    let intact = |table: &Option<NftTable>| {
        table.as_ref().map_or(NftActual::Absent, |table| NftActual::Intact(table.fingerprint()))
    };
    let sysctl = |value: &String| Sysctl { value: value.clone(), original: Some("0".to_owned()) };
    ActualState {
        link: desired.link.clone(),
        addresses: desired.addresses.clone(),
        routes: desired.routes.clone(),
        rules: desired.rules.clone(),
        nft: NftTables {
            guard: intact(&desired.guard),
            filter: intact(&desired.filter),
            ports: intact(&desired.ports),
        },
        exceptions: desired.exceptions.keys().map(|exception| (exception.clone(), true)).collect(),
        zones: desired.zones.clone(),
        sysctls: desired.sysctls.iter().map(|(key, value)| (key.clone(), sysctl(value))).collect(),
    }
}

#[test]
fn nothing_differs_from_itself() {
    for (config, facts) in [(home(), home_facts()), (vps(), vps_facts())] {
        let (state, _) = desired(&config, &facts);
        assert_eq!(diff(&state, &reached(&state)), []);
    }
}

#[test]
fn the_guard_is_first_up_and_last_down_and_rules_follow_their_tables() {
    let (state, _) = desired(&home(), &home_facts());
    let up = diff(&state, &ActualState::default());
    assert_eq!(up[0].kind(), "guard");
    let first = |kind| up.iter().position(|change| change.kind() == kind).unwrap();
    let last = |kind| up.iter().rposition(|change| change.kind() == kind).unwrap();
    assert!(last("route") < first("rule"));
    assert!(last("nft") < first("sysctl"));
    let first_route = up[first("route")].to_string();
    assert!(first_route.contains("unreachable default"), "{first_route}");

    let nothing = DesiredState { interface: "mesh0".to_owned(), ..DesiredState::default() };
    let down = diff(&nothing, &reached(&state));
    assert!(down.iter().all(|change| change.action() == "remove"));
    assert_eq!(down.last().unwrap().to_string(), "nft delete table inet meshd_guard");
}

#[test]
fn additions_precede_removals() {
    let (before, _) = desired(&home(), &home_facts());
    let mut config = home();
    config.host.bridges[0].subnets = nets(&["10.89.3.0/24"]);
    config.host.addresses = nets(&["10.88.0.9/24"]);
    let (after, _) = desired(&config, &home_facts());
    let changes = diff(&after, &reached(&before));
    let removal = changes.iter().position(|change| change.action() == "remove").unwrap();
    assert!(removal > 0);
    assert!(changes[removal..].iter().all(|change| change.action() == "remove"));
}

#[test]
fn a_changed_gateway_replaces_the_route_at_once() {
    let mut config = home();
    config.host.bridges[0].allow = nets(&["192.168.7.0/24"]);
    let (before, _) = desired(&config, &home_facts());
    let (after, _) = desired(&config, &facts(&["192.168.1.0/24"], ["192.168.1.254", "fe80::1"]));
    let commands: Vec<String> = diff(&after, &reached(&before)).iter().map(Change::to_string).collect();
    let table = tables::number("mesh0", "br0");
    assert_eq!(
        commands,
        [format!("ip route replace 192.168.7.0/24 via 192.168.1.254 dev eth0 onlink table {table} proto 88")]
    );
}

#[test]
fn main_never_gets_a_default_route() {
    let mut config = home();
    config.peers[0].subnets.extend(nets(&["0.0.0.0/0", "::/0"]));
    let (state, _) = desired(&config, &home_facts());
    let mut main = state.routes.iter().filter(|route| route.table == TABLE_MAIN);
    assert!(main.all(|route| route.destination.prefix_len() > 0));
}

#[test]
fn a_network_of_the_host_stays_its_own() {
    let mut config = home();
    config.peers[0].subnets.extend(nets(&["192.168.1.0/24"]));
    let (state, warnings) = desired(&config, &home_facts());
    let lan: IpNet = "192.168.1.0/24".parse().unwrap();
    assert!(!state.routes.iter().any(|route| route.table == TABLE_MAIN && route.destination == lan));
    assert_eq!(
        warnings,
        ["192.168.1.0/24 of a peer is also this host's own network on eth0: the host keeps using eth0"]
    );
}

#[test]
fn allow_takes_what_is_more_specific_and_never_everything() {
    let mut config = home();
    config.host.bridges[0].allow = nets(&["192.168.0.0/16", "0.0.0.0/0", "fd00:9::/64"]);
    let mut facts = home_facts();
    facts.main.retain(|route| route.destination.prefix_len() > 0 || route.destination.addr().is_ipv4());
    let (state, warnings) = desired(&config, &facts);
    let table = tables::number("mesh0", "br0");
    let beside: Vec<String> = state
        .routes
        .iter()
        .filter(|route| route.table == table && route.next_hop.device().is_some_and(|device| device == "eth0"))
        .map(|route| route.command("add"))
        .collect();
    assert_eq!(
        beside,
        [
            format!("ip route add 192.168.0.0/16 via 192.168.1.1 dev eth0 onlink table {table} proto 88"),
            format!("ip route add 192.168.1.0/24 dev eth0 table {table} proto 88"),
        ]
    );
    assert_eq!(
        warnings,
        [
            "bridge br0: allow = 0.0.0.0/0 is left out: it would undo egress = vps",
            "bridge br0: no route leads to fd00:9::/64 of allow: it stays closed",
        ]
    );
    assert!(!state.guard.unwrap().text.contains("0.0.0.0/0"));
}

#[test]
fn the_tunnel_goes_before_allow() {
    let mut config = home();
    config.host.bridges[0].allow = nets(&["10.89.1.0/24"]);
    let mut facts = home_facts();
    facts.main.push(route("10.89.1.0/24", None, "eth0"));
    let (state, _) = desired(&config, &facts);
    let table = tables::number("mesh0", "br0");
    let subnet: IpNet = "10.89.1.0/24".parse().unwrap();
    let found = state.routes.iter().find(|route| route.table == table && route.destination == subnet).unwrap();
    assert_eq!(found.next_hop.device().unwrap(), "mesh0");
}

#[test]
fn an_absent_bridge_is_named_and_still_guarded() {
    let mut facts = home_facts();
    facts.links.remove("br0");
    let (state, warnings) = desired(&home(), &facts);
    assert_eq!(warnings, ["bridge br0 does not exist yet: its routes are added when it does"]);
    assert!(state.guard.is_some());
    assert!(!state.routes.iter().any(|route| route.next_hop.device().is_some_and(|device| device == "br0")));
    assert!(!state.sysctls.keys().any(|key| key.link == "br0"));
    assert_eq!(state.rules, desired(&home(), &home_facts()).0.rules);
}

#[test]
fn without_ipv6_the_rest_works() {
    let facts = HostFacts { ipv6: false, ..home_facts() };
    let (state, warnings) = desired(&home(), &facts);
    assert_eq!(warnings, ["no IPv6 on mesh0: this kernel has no IPv6"]);
    assert!(state.routes.iter().all(|route| route.destination.addr().is_ipv4()));
    assert!(state.rules.iter().all(|rule| rule.family == Family::V4));
    assert!(state.sysctls.keys().all(|key| key.family == Family::V4));
    assert!(state.addresses.iter().all(|addr| addr.addr().is_ipv4()));
}

#[test]
fn ipv6_switched_off_on_the_tunnel_leaves_its_default_unreachable() {
    let mut facts = home_facts();
    facts.links.get_mut("mesh0").unwrap().ipv6 = false;
    let (state, warnings) = desired(&home(), &facts);
    assert_eq!(warnings, ["no IPv6 on mesh0: net.ipv6.conf.mesh0.disable_ipv6 is 1"]);
    let default = state.routes.iter().filter(|route| route.destination == Family::V6.everything());
    assert!(default.map(|route| &route.next_hop).eq([&NextHop::Unreachable]));
}

#[test]
fn withholding_the_tunnel_keeps_egress_closed() {
    let (mut state, _) = desired(&home(), &home_facts());
    let (guard, rules) = (state.guard.clone(), state.rules.clone());
    state.withhold_tunnel();
    assert_eq!((&state.guard, &state.rules), (&guard, &rules));
    assert!(!state.routes.iter().any(|route| route.next_hop.device().is_some_and(|device| device == "mesh0")));
    let unreachable = state.routes.iter().filter(|route| route.next_hop == NextHop::Unreachable);
    assert_eq!(unreachable.count(), 2);
    assert!(state.addresses.is_empty() && state.link.is_empty());
}

#[test]
fn a_direct_bridge_has_no_table_rule_or_guard_but_for_what_peers_publish() {
    let (state, _) = desired(&vps(), &vps_facts());
    assert!(state.guard.is_none());
    assert!(state.rules.iter().all(|rule| matches!(rule.selector, Selector::Mark(_))));
    let mut config = vps();
    config.peers.clear();
    config.host.exit = None;
    config.host.publish.clear();
    let (state, _) = desired(&config, &vps_facts());
    assert!(state.tables.is_empty() && state.rules.is_empty() && state.guard.is_none());
    assert!(state.routes.iter().all(|route| route.table == TABLE_MAIN));
}

#[test]
fn the_port_range_leaves_the_tunnels_own_port_out() {
    let text = |port, running| {
        let mut config = vps();
        config.host.listen_port = port;
        desired(&config, &HostFacts { listen_port: running, ..vps_facts() }).0.filter.unwrap().text
    };
    assert!(text(51820, None).contains("udp masquerade to :1024-51819"));
    assert!(text(2000, None).contains("udp masquerade to :2001-65535"));
    assert!(text(0, Some(40000)).contains("udp masquerade to :1024-39999"));
    assert!(!text(0, None).contains("masquerade to"));
    // A client's own low port would be kept otherwise.
    assert!(text(443, None).contains("udp masquerade to :1024-65535"));
}

#[test]
fn what_does_not_fit_the_host_is_named() {
    let warned = |config: &Config, change: &dyn Fn(&mut HostFacts)| {
        let mut facts = home_facts();
        change(&mut facts);
        desired(config, &facts).1
    };
    let mut config = home();
    let claim = |table| move |facts: &mut HostFacts| _ = facts.claimed.insert(("br0".to_owned(), table));
    assert_eq!(warned(&config, &claim(tables::number("mesh0", "br0"))), [""; 0]);
    assert_eq!(
        warned(&config, &claim(tables::number("mesh1", "br0"))),
        [
            "bridge br0 is another agent's too: what both of them let pass passes, and nothing else; one of them has to let go"
        ]
    );
    let over_bridge = |facts: &mut HostFacts| facts.main.last_mut().unwrap().device = Some("br0".to_owned());
    assert_eq!(
        warned(&config, &over_bridge),
        [
            "bridge br0 is also this host's own way out (IPv6 default route): all that comes in by it is taken for a container's"
        ]
    );
    config.host.lans =
        vec![Lan { subnet: nets(&["192.168.9.0/24"])[0], interface: "eth1".to_owned(), masquerade: true }];
    assert_eq!(
        warned(&config, &|_| ()),
        ["[[lan]] interface eth1 does not exist yet: 192.168.9.0/24 is shared when it does"]
    );
}

#[test]
fn who_is_limited_goes_by_allow_and_who_is_trusted_by_default() {
    let filter = |change: &dyn Fn(&mut Config)| {
        let mut config = vps();
        config.host.exit = None;
        config.host.publish.clear();
        change(&mut config);
        desired(&config, &vps_facts()).0.filter.unwrap().text
    };
    let all = "\t\toifname { \"br0\", \"mesh0\" } accept\n";
    assert!(filter(&|_| ()).contains(all));
    // Of no trusted peer, nobody relays more than what the only host may reach.
    let text = filter(&|config| config.peers[0].allow = Some(allow(&["10.89.1.10 tcp/80-81"])));
    let item = "\t\toifname { \"br0\", \"mesh0\" } ip daddr 10.89.1.10 tcp dport 80-81 accept\n";
    assert_eq!((text.contains(all), text.matches(item).count()), (false, 2), "{text}");
    assert!(
        text.contains("ip saddr vmap { 10.88.0.2 : goto peer-home, 10.89.2.0/24 : goto peer-home, 10.88.0.3"),
        "{text}"
    );
    assert!(!text.contains("ip saddr { 10.88.0.2 } accept"), "{text}");
    // `mesh` beside a service: as by default, and the service for its containers too.
    let text = filter(&|config| config.peers[0].allow = Some(allow(&["mesh", "host tcp/53"])));
    assert!(text.contains(all) && text.contains("ip saddr { 10.88.0.2 } accept"), "{text}");
    assert!(text.contains("ip saddr { 10.88.0.2, 10.89.2.0/24 } tcp dport 53 accept"), "{text}");
    // A client's `mesh` gives it no service of this host.
    let text = filter(&|config| config.peers[1].allow = Some(allow(&["mesh"])));
    assert!(!text.contains("peer-phone") && !text.contains("10.88.0.3"), "{text}");
    // A larger network opens its part of a LAN and no more.
    let text = filter(&|config| {
        let subnet = nets(&["192.168.1.0/24"])[0];
        config.host.lans = vec![Lan { subnet, interface: "eth1".to_owned(), masquerade: true }];
        config.peers[1].allow = Some(allow(&["192.168.0.0/16 tcp/80", "192.168.1.9 udp/1"]));
    });
    for part in ["192.168.1.0/24 tcp dport 80", "192.168.1.9 udp dport 1"] {
        assert!(text.contains(&format!("\t\toifname \"eth1\" ip daddr {part} accept\n")), "{text}");
    }
}

#[test]
fn sysctls_are_put_back_all_first_and_accept_ra_last() {
    let key = |link: &str, name: &str| SysctlKey::new(Family::V6, link, name);
    let sysctl = |original: &str| Sysctl { value: "1".to_owned(), original: Some(original.to_owned()) };
    let keys = [key("a0", "forwarding"), key("all", "forwarding"), key("a0", "accept_ra")];
    let actual = ActualState { sysctls: keys.map(|key| (key, sysctl("0"))).into(), ..ActualState::default() };
    let commands: Vec<String> = diff(&DesiredState::default(), &actual).iter().map(Change::to_string).collect();
    assert_eq!(
        commands,
        [
            "sysctl -w net.ipv6.conf.all.forwarding=0",
            "sysctl -w net.ipv6.conf.a0.forwarding=0",
            "sysctl -w net.ipv6.conf.a0.accept_ra=0"
        ]
    );
}

#[test]
fn sysctl_paths_survive_dots_in_interface_names() {
    let key = SysctlKey::new(Family::V4, "eth0.5", "forwarding");
    assert_eq!(key.to_string(), "net.ipv4.conf.eth0/5.forwarding");
    assert_eq!(SysctlKey::from_path(&key.path()), Some(key));
    for bad in
        ["ipv4/ip_forward", "ipv4/conf/../ip_forward", "ipv4/conf/eth0/forwarding/x", "ipv4/conf//forwarding", ""]
    {
        assert_eq!(SysctlKey::from_path(bad), None, "{bad}");
    }
}

#[test]
fn table_names_keep_agents_apart() {
    assert_eq!(nft::guard_name("mesh0"), "meshd_guard");
    assert_eq!(nft::filter_name("mesh0"), "meshd");
    assert_eq!(nft::guard_name("wg-a.1"), "meshd_guard_wg_a_1");
    assert_eq!(nft::filter_name("mesh1"), "meshd_mesh1");
}
