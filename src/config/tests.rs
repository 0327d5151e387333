//! Each error's exact text, and that nothing makes the parser panic.

mod names;
mod users;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const OWN: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const VPS: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const PHONE: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

const HOME: &str = r#"name = "home"
addresses = ["10.88.0.2/24", "fd88::2/64"]

[[bridge]]
name = "br0"
subnets = ["10.89.2.0/24", "fd89:2::/64"]
"#;

fn source(path: &str, text: impl AsRef<[u8]>) -> SourceFile {
    SourceFile { path: path.into(), text: text.as_ref().to_vec() }
}

fn files(host: &str, peers: &[(&str, String)]) -> Files {
    Files {
        host: source("meshd.toml", host),
        private_key: source("private.key", format!("{OWN}\n")),
        peers: peers.iter().map(|(name, text)| ((*name).into(), source(&format!("peers/{name}.toml"), text))).collect(),
        preshared_keys: BTreeMap::new(),
    }
}

fn peer(key: &str, rest: &str) -> String {
    format!("public_key = \"{key}\"\n{rest}")
}

fn errors(files: &Files) -> Vec<String> {
    parse(files).map_or_else(|problems| problems.iter().map(ToString::to_string).collect(), |_| Vec::new())
}

#[track_caller]
fn says(files: &Files, expected: &[&str]) {
    assert_eq!(errors(files), expected);
}

/// `meshd.toml` is the sound one and `rest` from line 7 on; the peers are a sound vps and phone.
#[track_caller]
fn host_says(rest: &str, expected: &[&str]) {
    let vps = peer(VPS, "addresses = [\"10.88.0.1\", \"fd88::1\"]\nsubnets = [\"10.89.1.0/24\"]\n");
    let phone = peer(PHONE, "addresses = [\"10.88.0.9\"]\n");
    says(&files(&format!("{HOME}{rest}"), &[("vps", vps), ("phone", phone)]), expected);
}

/// The host is the sound one; its peer is vps, with `rest` from line 2 on.
#[track_caller]
fn peer_says(rest: &str, expected: &[&str]) {
    says(&files(HOME, &[("vps", peer(VPS, rest))]), expected);
}

/// What a peer's file need not say.
fn nothing_more() -> Peer {
    Peer::new("", VPS.parse().unwrap())
}

#[test]
fn the_contract_of_the_design_is_read_whole() {
    let host = r#"
name = "home"
interface = "mesh1"
addresses = ["10.88.0.2/24", "fd88::2/64"]
listen_port = 51821
endpoint = "home.example.net:51820"
mtu = 1400
workers = 2
copy_dscp = true
express = "off"

[[bridge]]
name = "br0"
subnets = ["10.89.2.0/24", "fd89:2::/64"]
egress = "vps"
allow = ["192.168.1.0/24"]

[[lan]]
subnet = "192.168.1.0/24"
interface = "eth0"
masquerade = false

[exit]
peers = ["phone"]
interface = "eth0"

[[publish]]
protocol = "tcp"
port = 443
to = "10.89.2.10:443"
"#;
    let vps = peer(
        VPS,
        &format!(
            "preshared_key = \"{OWN}\"\nendpoint = \"203.0.113.10:51820\"\naddresses = [\"10.88.0.1\", \"fd88::1\"]\n\
             subnets = [\"10.89.1.0/24\", \"fd89:1::/64\"]\npersistent_keepalive = 25\n"
        ),
    );
    let phone = "persistent_keepalive = 0\naddresses = [\"10.88.0.9\"]\nclient = true\nallow = [\"10.89.2.0/24\", \"host tcp/22\"]\nexpress = \"off\"\n";
    let phone = peer(PHONE, phone);
    let config = parse(&files(host, &[("vps", vps), ("phone", phone)])).unwrap();
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let exit = Some(Exit { peers: vec!["phone".into()], interface: Some("eth0".into()), egress: Egress::Direct });
    assert_eq!(
        config,
        Config {
            host: Host {
                name: "home".into(),
                interface: "mesh1".into(),
                addresses: vec![net("10.88.0.2/24"), net("fd88::2/64")],
                listen_port: 51821,
                endpoint: Some(Endpoint::Name("home.example.net".into(), 51820)),
                mtu: 1400,
                workers: Some(2),
                copy_dscp: true,
                bridges: vec![Bridge {
                    name: "br0".into(),
                    subnets: vec![net("10.89.2.0/24"), net("fd89:2::/64")],
                    egress: Egress::Peers(vec!["vps".into()]),
                    allow: vec![net("192.168.1.0/24")],
                    users: Vec::new(),
                }],
                lans: vec![Lan { subnet: net("192.168.1.0/24"), interface: "eth0".into(), masquerade: false }],
                exit,
                publish: vec![Publish {
                    protocol: Protocol::Tcp,
                    ports: 443.into(),
                    to: "10.89.2.10:443".parse().unwrap()
                }],
                domain: "mesh".to_owned(),
                express: false,
                names: None,
            },
            private_key: OWN.parse().unwrap(),
            peers: vec![
                Peer {
                    name: "phone".into(),
                    public_key: PHONE.parse().unwrap(),
                    addresses: vec!["10.88.0.9".parse().unwrap()],
                    client: true,
                    allow: Some(vec![allow("10.89.2.0/24").unwrap(), allow("host tcp/22").unwrap()]),
                    express: false,
                    ..nothing_more()
                },
                Peer {
                    name: "vps".into(),
                    public_key: VPS.parse().unwrap(),
                    preshared_key: Some(OWN.parse().unwrap()),
                    endpoint: Some(Endpoint::Addr("203.0.113.10:51820".parse().unwrap())),
                    addresses: vec!["10.88.0.1".parse().unwrap(), "fd88::1".parse().unwrap()],
                    subnets: vec![net("10.89.1.0/24"), net("fd89:1::/64")],
                    persistent_keepalive: Some(25),
                    client: false,
                    allow: None,
                    ..nothing_more()
                },
            ],
        }
    );
    let allowed =
        |name: &str| config.allowed_ips(config.peer(name).unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(allowed("phone"), ["10.88.0.9/32"]);
    assert_eq!(allowed("vps"), ["0.0.0.0/0", "10.88.0.1/32", "10.89.1.0/24", "::/0", "fd88::1/128", "fd89:1::/64"]);
}

#[test]
fn what_is_left_out_has_its_default() {
    let host = parse(&files(HOME, &[])).unwrap().host;
    assert_eq!((host.interface.as_str(), host.listen_port, host.mtu, host.copy_dscp), ("mesh0", 51820, 1420, false));
    assert_eq!((&host.bridges[0].egress, host.bridges[0].allow.len()), (&Egress::Direct, 0));
    assert_eq!((host.endpoint, host.exit, host.lans.len(), host.publish.len()), (None, None, 0, 0));
    assert!(host.express);
}

#[test]
fn express_is_auto_or_off() {
    peer_says("express = \"on\"\n", &["peers/vps.toml:2: express \"on\": expected \"auto\" or \"off\""]);
    peer_says("express = \"auto\"\n", &[]);
    says(&files(&format!("express = false\n{HOME}"), &[]), &["meshd.toml:1: express: expected a string, found false"]);
}

#[test]
fn every_unknown_key_and_wrong_value_is_named_in_one_go() {
    let host = r#"nam = "home"
interface = "this-is-far-too-long"
addresses = ["10.88.0.2", 7]
listen_port = 70000
mtu = "1420"
colour = "red"

[[bridge]]
name = "br0"
subnet = ["10.89.2.0/24"]
egress = true

[[lan]]
subnet = "192.168.1.7/24"
masquerade = "yes"

[exit]
interface = "eth0"

[[publish]]
protocol = "sctp"
port = 0
to = "10.89.2.10"
"#;
    says(
        &files(host, &[]),
        &[
            "meshd.toml:1: missing name; write name = \"home\"",
            "meshd.toml:1: unknown key \"nam\"; did you mean name?",
            "meshd.toml:2: interface \"this-is-far-too-long\": 20 bytes long; the kernel allows 15",
            "meshd.toml:3: addresses \"10.88.0.2\": no prefix length; write 10.88.0.2/24 or whatever the mesh network has",
            "meshd.toml:3: addresses: expected a string, found the number 7",
            "meshd.toml:4: listen_port 70000: expected 0 to 65535; 0 picks one",
            "meshd.toml:5: mtu: expected a whole number, found the string \"1420\"",
            "meshd.toml:6: unknown key \"colour\"; known keys: name, interface, addresses, listen_port, endpoint, mtu, \
             workers, copy_dscp, domain, express, bridge, lan, exit, publish, names",
            "meshd.toml:8: bridge \"br0\": missing subnets; write subnets = [\"10.89.2.0/24\"]",
            "meshd.toml:10: bridge \"br0\": unknown key \"subnet\"; did you mean subnets?",
            "meshd.toml:11: bridge \"br0\": egress: expected a string or a list of strings, found true",
            "meshd.toml:13: lan: missing interface; write interface = \"eth0\"",
            "meshd.toml:14: lan: subnet \"192.168.1.7/24\": has host bits set; 192.168.1.0/24 would be right",
            "meshd.toml:15: lan: masquerade: expected true or false, found the string \"yes\"",
            "meshd.toml:17: exit: missing peers, those whose egress this host carries; write peers = [\"home\"]",
            "meshd.toml:21: publish: protocol \"sctp\": expected \"tcp\" or \"udp\"",
            "meshd.toml:22: publish: port 0: expected 1 to 65535",
            "meshd.toml:23: publish: to \"10.89.2.10\": no port; write 10.89.2.10:443",
        ],
    );
}

#[test]
fn mistakes_between_the_parts_of_a_host_are_found() {
    host_says(
        "egress = [\"vps\", \"vsp\"]\n",
        &["meshd.toml:7: bridge \"br0\": egress \"vsp\" names no peer; peers are: vps, phone"],
    );
    host_says("egress = [\"vps\", \n\"phone\"]\n[exit]\npeers = [\"vps\"]\negress = [\"phone\"]\n", &[]);
    for word in ["direct", "none"] {
        host_says(&format!("egress = [\"{word}\"]\n"), &[]);
        let message =
            format!("meshd.toml:7: bridge \"br0\": egress \"{word}\": stands alone or not at all, beside no peer");
        host_says(&format!("egress = [\"vps\", \"{word}\"]\n"), &[&message]);
    }
    host_says("egress = [\"vps\", \"vps\"]\n", &["meshd.toml:7: bridge \"br0\": egress \"vps\": written twice"]);
    host_says(
        "egress = []\n",
        &["meshd.toml:7: bridge \"br0\": egress: empty; write a peer's name, \"direct\" or \"none\""],
    );
    host_says(
        "[exit]\npeers = [\"phone\"]\negress = \"none\"\n",
        &["meshd.toml:9: exit: egress \"none\": would carry nothing; write a peer's name, or leave out [exit]"],
    );
    host_says(
        "[exit]\npeers = [\"phone\"]\negress = [\"vps\", \"phone\"]\n",
        &["meshd.toml:9: exit: egress \"phone\" is in peers: what it sends would go back to it"],
    );
    host_says(
        "egress = \"vsp\"\n",
        &["meshd.toml:7: bridge \"br0\": egress \"vsp\" names no peer; peers are: vps, phone"],
    );
    host_says(
        "egress = \"vps\"\n[exit]\npeers = [\"phone\", \n\"tablet\"]\n",
        &["meshd.toml:10: exit: peers \"tablet\" names no peer; peers are: vps, phone"],
    );
    host_says(
        "[[bridge]]\nname = \"br0\"\nsubnets = []\n[[bridge]]\nname = \"mesh0\"\nsubnets = []\n",
        &[
            "meshd.toml:8: bridge: name \"br0\" is that of another [[bridge]] already",
            "meshd.toml:11: bridge: name \"mesh0\" is that of the tunnel's interface already",
        ],
    );
    host_says(
        "[[lan]]\nsubnet = \"192.168.1.0/24\"\ninterface = \"mesh0\"\n[exit]\npeers = []\ninterface = \"mesh0\"\n",
        &[
            "meshd.toml:9: lan: interface \"mesh0\" is the tunnel's; write that of the LAN",
            "meshd.toml:12: exit: interface \"mesh0\" is the tunnel's; write that towards the internet",
        ],
    );
    host_says(
        "[[bridge]]\nname = \"br1\"\nsubnets = [\n \"10.89.3.0/24\",\n \"10.89.0.0/16\",\n]\n",
        &[
            // Between bridges the later one is told; with a peer, the peer's file is.
            "meshd.toml:11: bridge \"br1\": \"10.89.0.0/16\" overlaps 10.89.2.0/24 of bridge \"br0\"",
            "peers/vps.toml:3: subnets \"10.89.1.0/24\" overlaps 10.89.0.0/16 of bridge \"br1\"",
        ],
    );
    host_says(
        "[[lan]]\ninterface = \"eth0\"\nsubnet = \"10.88.0.128/25\"\n",
        &["meshd.toml:9: a lan: \"10.88.0.128/25\" overlaps 10.88.0.0/24 of the mesh itself"],
    );
    host_says(
        "[[lan]]\ninterface = \"eth0\"\nsubnet = \"fd6d:6573::/32\"\n",
        &["meshd.toml:9: a lan: \"fd6d:6573::/32\" overlaps fd6d:6573:6864::/64 of the agents themselves"],
    );
}

#[test]
fn an_interface_has_one_purpose() {
    host_says(
        "[[lan]]\nsubnet = \"192.168.1.0/24\"\ninterface = \"br0\"\n[exit]\npeers = []\ninterface = \"br0\"\n",
        &[
            "meshd.toml:9: lan: interface \"br0\" is a [[bridge]], whose subnets peers reach anyway; write that of the LAN",
            "meshd.toml:12: exit: interface \"br0\" is a [[bridge]]; write that towards the internet",
        ],
    );
}

#[test]
fn a_wrong_item_of_allow_is_named() {
    peer_says(
        "allow = [\n\"host tcp/22\", \"10.0.0.0/8\",\n\"10.88.0.2 tcp/443\",\n\"fd88::2\"]\n",
        &[
            "peers/vps.toml:4: allow \"10.88.0.2 tcp/443\" is this host's own address; write \"host tcp/443\"",
            "peers/vps.toml:5: allow \"fd88::2\" is this host's own address; write \"host\"",
        ],
    );
    peer_says(
        "client = \"yes\"\nallow = [\"0.0.0.0/0\"]\n",
        &[
            "peers/vps.toml:2: client: expected true or false, found the string \"yes\"",
            "peers/vps.toml:3: allow \"0.0.0.0/0\": is more than the mesh; write mesh for all of that; what has the internet \
             through this host is named in [exit] peers",
        ],
    );
}

#[test]
fn what_is_reached_directly_is_not_what_the_mesh_carries() {
    host_says("allow = [\"192.168.1.0/24\", \"10.89.2.0/24\"]\n", &[]);
    let overlaps = |net: &str, other: &str| {
        format!(
            "meshd.toml:8: bridge \"br0\": allow \"{net}\" overlaps {other}, which the tunnel carries; write a smaller network"
        )
    };
    host_says("allow = [\n\"10.89.1.128/25\"]\n", &[&overlaps("10.89.1.128/25", "10.89.1.0/24 of peer \"vps\"")]);
    host_says("allow = [\n\"fd00::/8\"]\n", &[&overlaps("fd00::/8", "fd88::/64 of the mesh itself")]);
}

#[test]
fn a_host_without_an_address_is_refused() {
    says(
        &files("name = \"home\"\n", &[]),
        &[
            "meshd.toml:1: missing addresses, those of this host inside the mesh; write addresses = [\"10.88.0.2/24\", \"fd88::2/64\"]",
        ],
    );
    says(
        &files("name = \"home\"\naddresses = []\n", &[]),
        &["meshd.toml:2: addresses: empty; write this host's inside the mesh, such as \"10.88.0.2/24\""],
    );
    says(
        &files("name = \"home\"\naddresses = [\"10.88.0.2/24\",\n\"10.88.0.2/16\"]\n", &[]),
        &["meshd.toml:3: addresses \"10.88.0.2/16\" is written twice"],
    );
    let bridge = "name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n[[bridge]]\nname = \"br0\"\nsubnets = [\"10.89.2.0/24\"]\negress = \"vps\"\n";
    says(&files(bridge, &[]), &["meshd.toml:6: bridge \"br0\": egress \"vps\" names no peer; there are no peers yet"]);
}

#[test]
fn a_relay_is_a_host_that_is_reached_directly_and_no_way_to_the_internet() {
    let relayed = |host: &str, vps: &str, via: &str| {
        let lab = peer(PHONE, &format!("addresses = [\"10.88.0.9\"]\nvia = \"{via}\"\n"));
        let vps = peer(VPS, &format!("addresses = [\"10.88.0.1\"]\n{vps}"));
        files(&format!("{HOME}{host}"), &[("vps", vps), ("lab", lab)])
    };
    says(&relayed("", "", "vps"), &[]);
    says(&relayed("", "", "vsp"), &["peers/lab.toml:3: via \"vsp\" names no peer; peers are: vps, lab"]);
    says(&relayed("", "", "lab"), &["peers/lab.toml:3: via \"lab\" is this peer itself"]);
    let held = "peers/lab.toml:3: via \"vps\" is a client or held back by allow; write a host that relays";
    says(&relayed("", "client = true\n", "vps"), &[held]);
    let exit = "meshd.toml:7: bridge \"br0\": egress \"lab\" is reached via another peer; write one that this host reaches directly";
    says(&relayed("egress = \"lab\"\n", "", "vps"), &[exit]);
    says(&relayed("egress = [\"vps\", \"lab\"]\n", "", "vps"), &[exit]);
}

#[test]
fn a_published_port_leads_to_one_container_in_the_mesh() {
    let publish = |protocol: &str, port: u16, to: &str| {
        format!("[[publish]]\nprotocol = \"{protocol}\"\nport = {port}\nto = \"{to}\"\n")
    };
    for to in ["10.89.2.10:443", "[fd89:2::10]:443", "10.89.1.10:443", "10.88.0.9:443"] {
        host_says(&publish("tcp", 443, to), &[]);
    }
    host_says(&publish("tcp", 51820, "10.89.2.10:443"), &[]);
    let both = [publish("tcp", 443, "10.89.2.10:443"), publish("tcp", 443, "[fd89:2::10]:443")].concat();
    host_says(&both, &[]);
    let range = |protocol: &str, ports: &str, to: &str| {
        publish(protocol, 1, to).replace("port = 1", &format!("port = \"{ports}\""))
    };
    let apart = [range("tcp", "8000-8010", "10.89.2.10:9000"), range("tcp", "8011-8020", "10.89.2.10:8011")].concat();
    host_says(&apart, &[]);
    host_says(
        &[range("tcp", "8000-8010", "10.89.2.10:9000"), publish("tcp", 8010, "10.89.2.11:80")].concat(),
        &[
            "meshd.toml:13: publish: tcp port 8010 leads to 10.89.2.10:9000 as part of 8000-8010 already; write another port",
        ],
    );
    host_says(
        &range("udp", "51000-52000", "10.89.2.10:51000"),
        &["meshd.toml:9: publish: udp port 51000-52000 holds 51820, listen_port, the tunnel's own; write another port"],
    );
    host_says(
        &range("tcp", "8000-8010", "10.89.2.10:65530"),
        &["meshd.toml:10: publish: to \"10.89.2.10:65530\" with 11 ports runs past 65535; write a lower port"],
    );
    host_says(
        &range("tcp", "8010-8000", "10.89.2.10:80"),
        &["meshd.toml:9: publish: port \"8010-8000\": runs backwards; write 8000-8010"],
    );
    host_says(
        &publish("udp", 51820, "10.89.2.10:443"),
        &["meshd.toml:9: publish: udp port 51820 is listen_port, the tunnel's own; write another port"],
    );
    let twice = [
        publish("tcp", 443, "10.89.2.10:443"),
        publish("udp", 443, "10.89.2.10:443"),
        publish("tcp", 443, "10.89.2.11:443"),
    ];
    host_says(
        &twice.concat(),
        &["meshd.toml:17: publish: tcp port 443 leads to 10.89.2.10:443 already; write another port"],
    );
    host_says(
        &publish("tcp", 443, "10.90.0.1:443"),
        &[
            "meshd.toml:10: publish: to \"10.90.0.1:443\" is in no subnet of a bridge or a peer; these are: 10.89.2.0/24, fd89:2::/64, 10.89.1.0/24",
        ],
    );
}

#[test]
fn a_hostile_peer_is_refused_before_anything_is_applied() {
    peer_says("addresses = [\"10.88.0.1\"]\nsubnets = [\"10.89.1.0/24\"]\nendpoint = \"203.0.113.10:51820\"\n", &[]);
    peer_says("subnets = [\"10.89.1.0/24\", \"10.89.1.128/25\"]\n", &[]);
    peer_says(
        "subnets = [\"0.0.0.0/0\",\n\"::/0\"]\n",
        &[
            "peers/vps.toml:2: subnets \"0.0.0.0/0\": would take all traffic; to leave through a peer write egress = \"NAME\" in a [[bridge]]",
            "peers/vps.toml:3: subnets \"::/0\": would take all traffic; to leave through a peer write egress = \"NAME\" in a [[bridge]]",
        ],
    );
    peer_says(
        "subnets = [\"127.0.0.0/8\"]\n",
        &[
            "peers/vps.toml:2: subnets \"127.0.0.0/8\": 127.0.0.0/8 is each host's own loopback; expected a network of hosts such as 10.89.2.0/24",
        ],
    );
    peer_says(
        "subnets = [\"10.89.2.128/25\", \"10.88.0.0/16\"]\n",
        &[
            "peers/vps.toml:2: subnets \"10.88.0.0/16\" overlaps 10.88.0.0/24 of the mesh itself",
            "peers/vps.toml:2: subnets \"10.89.2.128/25\" overlaps 10.89.2.0/24 of bridge \"br0\"",
        ],
    );
    peer_says(
        "addresses = [\"10.88.0.2\", \"10.88.1.1\"]\n",
        &[
            "peers/vps.toml:2: addresses \"10.88.0.2\" is that of this host already",
            "peers/vps.toml:2: addresses \"10.88.1.1\" is outside the mesh network; this host's is 10.88.0.0/24, fd88::/64",
        ],
    );
    peer_says(
        "subnets = [\"10.89.1.0/24\"]\nendpoint = \"10.89.1.10:51820\"\n",
        &[
            "peers/vps.toml:3: endpoint \"10.89.1.10:51820\" lies in 10.89.1.0/24 of peer \"vps\"; write an address outside the mesh",
        ],
    );
    peer_says(
        "endpoint = \"[::ffff:10.89.2.10]:51820\"\n",
        &[
            "peers/vps.toml:2: endpoint \"[::ffff:10.89.2.10]:51820\" lies in 10.89.2.0/24 of bridge \"br0\"; write an address outside the mesh",
        ],
    );
    peer_says(
        "endpoint = \"[fd88::1]:51820\"\n",
        &[
            "peers/vps.toml:2: endpoint \"[fd88::1]:51820\" lies in fd88::/64 of the mesh itself; write an address outside the mesh",
        ],
    );
    peer_says(
        "persistent_keepalive = 65536\n",
        &["peers/vps.toml:2: persistent_keepalive 65536: expected 0 to 65535 seconds; 0 is off"],
    );
    peer_says(
        "endpoint = \"\\u001b[2Jvps\"\n\"\\u001b[2J\" = 1\n",
        &[
            "peers/vps.toml:2: endpoint \"\\u{1b}[2Jvps\": expected HOST:PORT such as vps.example.net:51820",
            "peers/vps.toml:3: unknown key \"\\u{1b}[2J\"; known keys: public_key, preshared_key, preshared_key_file, endpoint, \
         addresses, subnets, persistent_keepalive, client, allow, lans, express, via, introduced_by, inviter_key, next_public_key, next_preshared_key, next_inviter_key, former_public_key",
        ],
    );
}

#[test]
fn a_key_is_one_host_and_sound() {
    let own = OWN.parse::<PrivateKey>().unwrap().public_key().to_string();
    let says_key = |key: &str, expected: &str| says(&files(HOME, &[("vps", peer(key, ""))]), &[expected]);
    says_key(
        &own,
        &format!(
            "peers/vps.toml:1: public_key {own} is this host's own; write the one that `meshd pubkey` prints there"
        ),
    );
    says_key(
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "peers/vps.toml:1: public_key \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\": a low-order key, which would agree on an all-zero secret with anyone",
    );
    says_key("abc", "peers/vps.toml:1: public_key \"abc\": not a key: expected 44 characters of base64");
    says(
        &files(HOME, &[("vps", "subnets = []\n".into())]),
        &["peers/vps.toml:1: missing public_key; write public_key = \"…\", as `meshd pubkey` prints"],
    );
    says(
        &files(HOME, &[("a", peer(VPS, "")), ("b", format!("\n{}", peer(VPS, "")))]),
        &[&format!("peers/b.toml:2: public_key {VPS} is that of peer \"a\" already")],
    );
    let mut bad = files(HOME, &[]);
    bad.private_key = source("private.key", "hunter2");
    says(&bad, &["private.key:1: not a key: expected 44 characters of base64"]);
}

#[test]
fn peers_do_not_take_from_each_other() {
    let a = peer(VPS, "addresses = [\"10.88.0.1\"]\nsubnets = [\"10.89.4.0/22\"]\n");
    let b = peer(PHONE, "addresses = [\"10.88.0.1\"]\nsubnets = [\n\"10.89.5.0/24\"]\n");
    says(
        &files(HOME, &[("a", a.clone()), ("b", b.clone())]),
        &[
            "peers/b.toml:2: addresses \"10.88.0.1\" is that of peer \"a\" already",
            "peers/b.toml:4: subnets \"10.89.5.0/24\" overlaps 10.89.4.0/22 of peer \"a\"",
        ],
    );
    // The later file is told, whatever its name.
    says(
        &files(HOME, &[("b", b), ("a", a)]),
        &[
            "peers/a.toml:2: addresses \"10.88.0.1\" is that of peer \"b\" already",
            "peers/a.toml:3: subnets \"10.89.4.0/22\" overlaps 10.89.5.0/24 of peer \"b\"",
        ],
    );
}

#[test]
fn names_of_peers_are_sound_file_names() {
    for name in ["..", "Vps", "a b", "\u{1b}[2J", "direct", "none", ""] {
        let said = errors(&files(HOME, &[(name, peer(VPS, ""))]));
        assert!(
            said.len() == 1 && said[0].contains(&format!("peer name {name:?}: ")) && !said[0].contains('\u{1b}'),
            "{said:?}"
        );
    }
}

#[test]
fn a_preshared_key_comes_from_one_place_and_is_never_shown() {
    let with = |text: &str, file: Result<&str, &str>| {
        let mut files = files(HOME, &[("vps", peer(VPS, text))]);
        let file = file.map(|text| source("/secret/psk", text)).map_err(str::to_owned);
        files.preshared_keys.insert("psk".into(), file);
        files
    };
    let psk = |files: &Files| parse(files).unwrap().peers[0].preshared_key.clone().map(|key| key.expose_base64());
    assert_eq!(psk(&with("preshared_key_file = \"psk\"\n", Ok(OWN))).as_deref(), Some(OWN));
    assert_eq!(psk(&with(&format!("preshared_key = \"{OWN}\"\n"), Ok(""))).as_deref(), Some(OWN));
    let not_a_key = "not a key: expected 44 characters of base64";
    says(
        &with("preshared_key_file = \"psk\"\n", Ok("hunter2")),
        &[&format!("peers/vps.toml:2: preshared_key_file \"psk\": holds what is {not_a_key}")],
    );
    says(
        &with("preshared_key_file = \"psk\"\n", Err("not found")),
        &["peers/vps.toml:2: preshared_key_file \"psk\": not found"],
    );
    says(&with("preshared_key = \"hunter2\"\n", Ok("")), &[&format!("peers/vps.toml:2: preshared_key: {not_a_key}")]);
    says(
        &with("preshared_key = [\"hunter2\"]\n", Ok("")),
        &["peers/vps.toml:2: preshared_key: expected a string, found a list"],
    );
    says(
        &with(&format!("preshared_key = \"{OWN}\"\npreshared_key_file = \"psk\"\n"), Ok(OWN)),
        &["peers/vps.toml:3: preshared_key_file: preshared_key is given too; keep one of them"],
    );
    let secret = source("peers/vps.toml", format!("preshared_key = \"{OWN}\" # and a mistake\n= 1"));
    assert_eq!(psk_of(&secret), Some(Psk::Inline));
    assert!(!format!("{secret:?}").contains(OWN));
    assert_eq!(psk_of(&source("", "preshared_key_file = \"/x\"")), Some(Psk::File("/x".into())));
    assert_eq!(psk_of(&source("", "public_key = \"/x\"")), None);
}

#[test]
fn files_that_are_no_toml_say_where() {
    says(
        &files("name = \"home\"\naddresses = [\n", &[("vps", "\n\n= x\n".into())]),
        &[
            "meshd.toml:2: unclosed array, expected `]`",
            "peers/vps.toml:3: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`",
        ],
    );
    says(&files("name = \"home\"\nname = \"other\"\n", &[]), &["meshd.toml:2: duplicate key"]);
    says(
        &files("bridge = 1\nexit = 1\npublish = [1]\n[lan]\nsubnet = \"\"", &[]),
        &[
            "meshd.toml:1: missing name; write name = \"home\"",
            "meshd.toml:1: missing addresses, those of this host inside the mesh; write addresses = [\"10.88.0.2/24\", \"fd88::2/64\"]",
            "meshd.toml:1: bridge: expected [[bridge]], with two brackets on each side, found the number 1",
            "meshd.toml:2: exit: expected one [exit], found the number 1",
            "meshd.toml:3: publish: expected [[publish]], found the number 1",
            "meshd.toml:4: lan: expected [[lan]], with two brackets on each side, found a table",
        ],
    );
    let mut binary = files(HOME, &[]);
    binary.host = source("meshd.toml", b"name = \"home\"\n\xff");
    says(&binary, &["meshd.toml:2: not UTF-8 text"]);
}

#[test]
fn size_is_bounded_and_so_are_the_errors() {
    says(&files(&"#".repeat(10 << 20), &[]), &["meshd.toml:1: larger than 1024 KiB, the most that is read"]);
    let many: String = (0..50_000).flat_map(|i| ["k".to_owned(), i.to_string(), " = 1\n".to_owned()]).collect();
    assert_eq!(errors(&files(&many, &[])).len(), 50);
    // Nesting that would overflow a recursive parser's stack.
    assert!(!errors(&files(&format!("name = {}", "[".repeat(500_000)), &[])).is_empty());
    assert!(!errors(&files(&format!("name = {}", "{a=".repeat(300_000)), &[])).is_empty());
}

#[test]
fn a_thousand_subnets_take_no_time_that_shows() {
    let subnets: Vec<String> =
        (0..30_000).map(|i| format!("\"100.{}.{}.{}/32\"", 64 + i / 8192, i / 256 % 32, i % 256)).collect();
    let config = parse(&files(HOME, &[("vps", peer(VPS, &format!("subnets = [{}]", subnets.join(","))))])).unwrap();
    assert_eq!(config.peers[0].subnets.len(), 30_000);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        host in proptest::collection::vec(any::<u8>(), 0..256),
        peer in proptest::collection::vec(any::<u8>(), 0..256),
        name in ".*",
    ) {
        let mut files = files("", &[]);
        files.host.text.clone_from(&host);
        files.private_key.text = peer.clone();
        files.peers.push((name, source("peer", peer)));
        prop_assert!(parse(&files).is_err());
        psk_of(&files.peers[0].1);
    }

    /// Closer to TOML: lines of a sound file, cut and shuffled, with arbitrary values put in.
    #[test]
    fn damaged_files_never_panic_and_say_a_line_that_exists(
        cut in 0..400usize,
        value in "[ -~\u{1b}\u{202e}é\n]{0,12}",
        order in proptest::collection::vec(0..12usize, 0..16),
    ) {
        let whole = format!("{HOME}egress = \"vps\"\nallow = [\"{value}\"]\n[exit]\npeers = [{value}]\nlisten_port = {value}\n[[publish]]\n");
        let lines: Vec<&str> = whole.lines().collect();
        let text: String = order.iter().filter_map(|&at| lines.get(at)).flat_map(|line| [line, "\n"]).collect();
        let text: String = text.chars().take(cut).collect();
        for text in [text, whole] {
            if let Err(problems) = parse(&files(&text, &[("vps", peer(VPS, &value))])) {
                for problem in problems {
                    let lines = if problem.path == "meshd.toml" { text.lines().count() } else { 2 + value.lines().count() };
                    prop_assert!((1..=lines + 1).contains(&problem.line), "{problem}");
                    prop_assert!(!problem.to_string().contains(['\u{1b}', '\u{202e}', '\n']), "{problem}");
                }
            }
        }
    }
}

#[test]
fn keys_to_come_are_nobody_elses_and_survive_an_edit() {
    let next = PrivateKey::from_bytes([9; 32]).public_key();
    let file = |key: &dyn std::fmt::Display| format!("public_key = \"{VPS}\"\nnext_public_key = \"{key}\"\n");
    let of = |text: &str| parse(&files(HOME, &[("phone", peer(PHONE, "")), ("vps", text.to_owned())]));
    let config = of(&format!("{}next_preshared_key = \"{OWN}\"\nexpress = \"off\"\n", file(&next))).unwrap();
    let peer = config.peer("vps").unwrap();
    assert_eq!(
        (peer.next.public_key, peer.next.preshared_key.as_ref().map(PresharedKey::expose_base64)),
        (Some(next), Some(OWN.to_owned()))
    );
    assert_eq!(of(&edit::peer(peer)).unwrap().peer("vps"), Some(peer));
    for key in [PHONE.to_owned(), config.private_key.public_key().to_string(), VPS.to_owned()] {
        assert!(of(&file(&key)).unwrap_err()[0].message.starts_with("next_public_key "), "{key}");
    }
}
