use super::*;
use crate::config::{Files, SourceFile, parse};

const HOST: &str = r#"
name = "home"
addresses = ["10.88.0.2/24"]

[[bridge]]
name = "br0"
subnets = ["10.89.2.0/24", "fd89:2::/64"]

[bridge.users.svc-cloud]
containers = 2
addresses = ["10.89.2.16/29"]

[bridge.users.svc-vault]
publish = ["tcp/443", "udp/5000-5009"]

[[bridge]]
name = "br1"
subnets = ["10.89.3.0/29"]

[bridge.users.1003]
containers = 100

[[publish]]
protocol = "tcp"
port = 80
to = "10.89.2.10:80"
"#;

fn config_of(host: &str) -> Config {
    let file = |path: &str, text: &str| SourceFile { path: path.into(), text: text.into() };
    parse(&Files {
        host: file("meshd.toml", host),
        private_key: file("private.key", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="),
        peers: Vec::new(),
        preshared_keys: BTreeMap::new(),
    })
    .unwrap()
}

fn caller(uid: u32, name: &str) -> Caller {
    Caller { uid, name: Some(name.to_owned()) }
}

fn root() -> Caller {
    caller(0, "root")
}

fn cloud() -> Caller {
    caller(1001, "svc-cloud")
}

fn vault() -> Caller {
    caller(1002, "svc-vault")
}

fn request(name: &str, bridge: Option<&str>, addresses: &[&str]) -> Request {
    let addresses = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
    Request { name: name.to_owned(), bridge: bridge.map(str::to_owned), addresses, publish: Vec::new() }
}

/// What is on the bridges beside the leases: their own addresses, and a container of somebody else.
fn others() -> BTreeSet<IpAddr> {
    ["10.89.2.1", "fd89:2::1", "10.89.3.1", "10.89.2.17"].iter().map(|addr| addr.parse().unwrap()).collect()
}

struct Host {
    config: Config,
    leases: Leases,
}

impl Host {
    fn new() -> Self {
        Self { config: config_of(HOST), leases: Leases::default() }
    }

    fn attach(&mut self, caller: &Caller, request: &Request) -> Result<Vec<String>, String> {
        let before = self.leases.clone();
        let result = self.leases.attach(&self.config, (caller, request), &others()).cloned();
        if result.is_err() {
            assert_eq!(self.leases, before, "a refusal changes nothing");
        }
        result
            .map(|lease| lease.addresses.iter().map(ToString::to_string).collect())
            .map_err(|refusal| refusal.to_string())
    }

    fn attach_named(&mut self, caller: &Caller, name: &str) -> Result<Vec<String>, String> {
        self.attach(caller, &request(name, None, &[]))
    }
}

#[test]
fn who_was_granted_a_bridge_gets_what_was_granted() {
    let mut host = Host::new();
    let addresses = host.attach_named(&cloud(), "nextcloud").unwrap();
    let v4: std::net::Ipv4Addr = addresses[0].parse().unwrap();
    assert!("10.89.2.16/29".parse::<ipnet::Ipv4Net>().unwrap().contains(&v4), "{v4}");
    assert_eq!(addresses[1], format!("fd89:2::{:x}", v4.octets()[3]), "the same number");
    assert_eq!(host.leases.get("nextcloud").unwrap().bridge, "br0");
    // A number in the place of a name, and no restriction of addresses.
    let addresses = host.attach_named(&caller(1003, "svc-other"), "other").unwrap();
    assert!(addresses[0].starts_with("10.89.3."), "{addresses:?}");
}

#[test]
fn a_name_has_its_addresses_again() {
    let mut host = Host::new();
    let first = host.attach_named(&cloud(), "nextcloud").unwrap();
    host.leases.vacate(&host.config, "nextcloud", 10);
    assert_eq!(host.attach_named(&cloud(), "nextcloud").unwrap(), first);
    // Also on a host that has forgotten it: the name says which to look at first.
    assert_eq!(Host::new().attach_named(&cloud(), "nextcloud").unwrap(), first);
    // Asked for another, it has that.
    host.leases.vacate(&host.config, "nextcloud", 10);
    let other = request("nextcloud", None, &["10.89.2.20", "fd89:2::abcd"]);
    assert_eq!(host.attach(&cloud(), &other).unwrap(), ["10.89.2.20", "fd89:2::abcd"]);
}

#[test]
fn everything_else_is_refused_with_a_reason() {
    let mut host = Host::new();
    host.attach(&vault(), &request("vault", None, &["10.89.2.77"])).unwrap();
    host.attach(&cloud(), &request("one", None, &["10.89.2.18"])).unwrap();
    for (caller, request, why) in [
        (cloud(), request("Next cloud", None, &[]), "name \"Next cloud\": expected 1 to 63 of a-z, 0-9 and -"),
        (cloud(), request("vault", None, &[]), "another user's container has this name"),
        (cloud(), request("one", None, &[]), "a container of this name is attached to br0"),
        (root(), request("one", None, &[]), "a container of this name is attached to br0"),
        (cloud(), request("two", Some("br1"), &[]), "svc-cloud may attach no container to bridge br1"),
        (cloud(), request("two", Some("br7"), &[]), "bridge \"br7\": not in meshd.toml, where there are: br0, br1"),
        (caller(7, "lp"), request("two", None, &[]), "lp may attach no container to any bridge"),
        (Caller { uid: 7, name: None }, request("two", None, &[]), "uid 7 may attach no container to any bridge"),
        (vault(), request("two", None, &[]), "svc-vault may have 1 attached to bridge br0, and has: vault"),
        (root(), request("two", None, &[]), "which bridge? there are: br0, br1"),
        (cloud(), request("two", None, &["10.89.2.18"]), "address 10.89.2.18: container one has it"),
        (cloud(), request("two", None, &["10.89.2.17"]), "address 10.89.2.17: somebody on the bridge has it"),
        (cloud(), request("two", None, &["10.89.2.77"]), "not among those that you may use: 10.89.2.16/29"),
        (root(), request("two", Some("br0"), &["10.89.2.0"]), "address 10.89.2.0: "),
        (root(), request("two", Some("br0"), &["10.89.2.255"]), "address 10.89.2.255: "),
        (root(), request("two", Some("br0"), &["10.89.7.1"]), "not in bridge br0, which has 10.89.2.0/24, fd89:2::/64"),
    ] {
        let refused = host.attach(&caller, &request).unwrap_err();
        assert!(refused.contains(why), "{caller} {request:?}: {refused}");
    }
}

#[test]
fn a_subnet_is_used_to_the_last_address_and_the_longest_vacant_goes_first() {
    let mut host = Host::new();
    let other = caller(1003, "svc-other");
    // 10.89.3.0/29 less network, broadcast and the bridge's own.
    let mut given = BTreeSet::new();
    for n in 0..5 {
        assert!(given.insert(host.attach_named(&other, &format!("c{n}")).unwrap()), "given twice");
    }
    assert_eq!(host.attach_named(&other, "c5").unwrap_err(), "no address is free in 10.89.3.0/29");
    host.leases.vacate(&host.config, "c3", 20);
    host.leases.vacate(&host.config, "c1", 10);
    let of_c1 = host.leases.get("c1").unwrap().addresses[0].to_string();
    assert_eq!(host.attach_named(&other, "c5").unwrap(), [of_c1]);
    assert!(host.leases.get("c1").is_none() && host.leases.get("c3").is_some());
    // What is vacant may be asked for by another, too.
    let of_c3 = host.leases.get("c3").unwrap().addresses[0].to_string();
    assert_eq!(host.attach(&other, &request("c6", None, &[&of_c3])).unwrap(), [of_c3]);
    assert!(host.leases.get("c3").is_none());
}

#[test]
fn granted_addresses_run_out_by_themselves() {
    let mut host = Host::new();
    let full: BTreeSet<IpAddr> = (16..24).map(|n| IpAddr::from([10, 89, 2, n])).chain(others()).collect();
    let refusal = host.leases.attach(&host.config, (&cloud(), &request("one", None, &[])), &full).unwrap_err();
    assert_eq!(refusal.to_string(), "no address is free in 10.89.2.16/29");
}

#[test]
fn nobody_hoards_leases() {
    let mut host = Host::new();
    for n in 0..50 {
        let name = format!("c{n}");
        host.attach_named(&cloud(), &name).unwrap();
        host.leases.vacate(&host.config, &name, n);
    }
    let left: Vec<&String> = host.leases.iter().map(|(name, _)| name).collect();
    assert!(left.len() <= VACANT * 2 && left.contains(&&"c49".to_owned()), "{left:?}");
}

#[test]
fn only_its_user_and_root_release_a_name() {
    let mut host = Host::new();
    host.attach_named(&cloud(), "one").unwrap();
    assert!(host.leases.release(&vault(), "one").is_err());
    assert!(host.leases.release(&cloud(), "two").unwrap_err().to_string().contains("no container of this name"));
    assert_eq!(host.leases.release(&cloud(), "one").unwrap().bridge, "br0");
    host.attach_named(&cloud(), "one").unwrap();
    host.leases.release(&root(), "one").unwrap();
    assert_eq!(host.leases, Leases::default());
}

#[test]
fn what_has_no_place_any_more_is_dropped_unless_it_lives() {
    let mut host = Host::new();
    host.attach_named(&cloud(), "one").unwrap();
    host.attach_named(&cloud(), "two").unwrap();
    host.leases.vacate(&host.config, "two", 1);
    let before = host.leases.clone();
    host.leases.retain(&host.config);
    assert_eq!(host.leases, before);
    host.config = config_of(&HOST.replace("10.89.2.", "10.89.9."));
    host.leases.retain(&host.config);
    assert!(host.leases.get("one").is_some() && host.leases.get("two").is_none());
}

#[test]
fn leases_are_read_as_they_were_written() {
    let mut host = Host::new();
    host.attach_named(&cloud(), "one").unwrap();
    host.leases.vacate(&host.config, "one", 7);
    let text = serde_json::to_string(&host.leases).unwrap();
    assert_eq!(serde_json::from_str::<Leases>(&text).unwrap(), host.leases);
}

#[test]
fn openings_are_written_as_they_are_shown() {
    for (text, shown) in [
        ("tcp/443", Ok("tcp/443")),
        ("tcp/443:8443", Ok("tcp/443:8443")),
        ("tcp/443:443", Ok("tcp/443")),
        ("udp/5000-5009:65526", Ok("udp/5000-5009:65526")),
        ("udp/5000-5009:65527", Err("port 65527: expected 1 to 65526")),
        ("tcp/443:0", Err("port 0: expected 1 to 65535")),
        ("tcp/443:https", Err("port \"https\": expected 1 to 65535")),
        ("443", Err("\"443\" are no ports; expected such as tcp/443 or udp/60000-61000")),
    ] {
        let read = text.parse::<Opening>().map(|opening| opening.to_string());
        assert_eq!(read.as_deref().map_err(String::as_str), shown, "{text}");
    }
}

#[test]
fn ports_are_opened_by_whom_they_were_given_to() {
    let mut host = Host::new();
    let open = |name: &str, ports: &[&str]| {
        let publish = ports.iter().map(|text| text.parse().unwrap()).collect();
        Request { publish, ..request(name, Some("br0"), &[]) }
    };
    for (caller, ports, why) in [
        (cloud(), &["tcp/443"][..], "port tcp/443: svc-cloud may publish none"),
        (vault(), &["tcp/444"], "port tcp/444: svc-vault may publish tcp/443, udp/5000-5009"),
        (vault(), &["udp/5005-5010"], "port udp/5005-5010: svc-vault may publish"),
        (vault(), &["tcp/443", "tcp/443:8443"], "port tcp/443: leads to this one already"),
        (root(), &["tcp/80"], "port tcp/80: leads to 10.89.2.10:80 already"),
        (root(), &["udp/51820"], "port udp/51820: leads to the tunnel itself already"),
    ] {
        let refused = host.attach(&caller, &open("web", ports)).unwrap_err();
        assert!(refused.starts_with(why), "{refused}");
    }
    let many: Vec<String> = (0..65).map(|n| format!("tcp/{}", 1000 + n)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(
        host.attach(&root(), &open("web", &many)).unwrap_err().starts_with("65 ports for one container; at most 64")
    );
    let vaults = host.attach(&vault(), &open("vault", &["tcp/443:8443", "udp/5003-5004"])).unwrap();
    let refused = host.attach(&root(), &open("web", &["udp/5004"])).unwrap_err();
    assert_eq!(refused, "port udp/5004: leads to container vault already");
    let published = |host: &Host, config: &Config| {
        let ports = host.leases.ports(config, |name| (name == "svc-vault").then_some(1002));
        ports.iter().flat_map(|port| &port.publish).map(|it| format!("{it} {}", it.to)).collect::<Vec<_>>()
    };
    let [v4, v6] = [&vaults[0], &vaults[1]];
    assert_eq!(
        published(&host, &host.config),
        [
            format!("tcp/443 {v4}:8443"),
            format!("tcp/443 [{v6}]:8443"),
            format!("udp/5003-5004 {v4}:5003"),
            format!("udp/5003-5004 [{v6}]:5003"),
        ]
    );
    // What meshd.toml takes back, or has another use for, is theirs no more.
    for (from, to) in [("\"udp/5000-5009\"", "\"udp/5000\""), ("tcp\"\nport = 80", "udp\"\nport = 5004")] {
        assert_eq!(published(&host, &config_of(&HOST.replace(from, to))).len(), 2, "{to}");
    }
    host.leases.vacate(&host.config, "vault", 7);
    assert!(published(&host, &host.config).is_empty());
    host.attach(&root(), &open("web", &["udp/5004"])).unwrap();
}
