//! Who reaches what by way of the tunnel, and whom nobody can pass for.

mod lab;

use lab::phone::{self, PHONE};
use lab::services::{Flow, Service};
use lab::traffic::seen_by;
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PORT, PROXY, PROXY6, VPS, VPS6, WEB, WEB6};

/// Everything that is the VPS itself: in the mesh, on its bridge, to the internet.
const AT_VPS: [&str; 6] = ["10.88.0.1", "fd88::1", "10.89.1.1", "fd89:1::1", VPS, VPS6];

#[test]
fn a_client_reaches_what_it_is_given_and_the_internet() {
    let lab = Lab::new();
    let phone = phone::start_all(
        &lab,
        "client = true\nallow = [\"10.89.1.0/24\", \"fd89:1::/64\", \"10.89.2.10 tcp/443\", \"fd89:2::10 tcp/443\", \
         \"host tcp/2022\"]",
    );
    assert_eq!(seen_by(&phone, WEB).expect("the exit"), VPS);
    assert_eq!(seen_by(&phone, WEB6).expect("the exit"), VPS6);

    let at_proxy = Service::start(&lab.proxy, 9000);
    at_proxy.expect(&phone, true, &[PROXY, PROXY6]);
    assert!(phone.ping(PROXY) && phone.ping(PROXY6));

    let (https, http) = (Service::start(&lab.nextcloud, 443), Service::start(&lab.nextcloud, 80));
    http.expect(&lab.proxy, true, &[NEXTCLOUD, NEXTCLOUD6]);
    for address in [NEXTCLOUD, NEXTCLOUD6] {
        assert!(https.tcp(&phone, address), "{address} tcp/443 is given");
        assert!(!https.udp(&phone, address), "{address} udp/443 is not");
        assert!(!phone.ping(address), "nor is ping");
    }
    http.expect(&phone, false, &[NEXTCLOUD, NEXTCLOUD6]);

    let (ssh, other) = (Service::start(&lab.vps, 2022), Service::start(&lab.vps, 2023));
    // All but the endpoint itself, which the phone reaches beside the tunnel.
    let inside = AT_VPS.iter().copied().filter(|address| *address != VPS).collect::<Vec<_>>();
    for address in &inside {
        assert!(ssh.tcp(&phone, address), "{address} tcp/2022 is given");
        assert!(!ssh.udp(&phone, address), "{address} udp/2022 is not");
    }
    other.expect(&phone, false, &inside);
    assert!(phone.ping("10.88.0.1") && phone.ping("fd88::1"), "the VPS answers a ping");
    let at_home = Service::start(&lab.home, 2022);
    at_home.expect(&lab.vps, true, &["10.88.0.2", "fd88::2"]);
    at_home.expect(&phone, false, &["10.88.0.2", "fd88::2"]);
    // The other way about is the hosts' own business.
    let at_phone = Service::start(&phone, 9001);
    at_phone.expect(&lab.proxy, true, &[PHONE, phone::PHONE6]);
    at_phone.expect(&lab.nextcloud, true, &[PHONE, phone::PHONE6]);
}

#[test]
fn a_client_without_allow_reaches_nothing_and_a_host_everything() {
    let lab = Lab::new();
    let phone = phone::start_all(&lab, "client = true");
    assert_eq!(seen_by(&phone, WEB).expect("the exit"), VPS);
    let services = [Service::start(&lab.proxy, 9000), Service::start(&lab.nextcloud, 9000)];
    services[0].expect(&phone, false, &[PROXY, PROXY6]);
    services[1].expect(&phone, false, &[NEXTCLOUD, NEXTCLOUD6]);
    phone::rewrite(&lab, &phone, "");
    lab.vps.meshd(&["reload"]);
    services[0].expect(&phone, true, &[PROXY, PROXY6]);
    services[1].expect(&phone, true, &[NEXTCLOUD, NEXTCLOUD6]);
}

#[test]
fn what_is_withdrawn_ends_at_once_and_all_else_goes_on() {
    let lab = Lab::new();
    let allow = |items: &str| format!("client = true\nallow = [{items}]");
    let phone = phone::start_all(&lab, &allow("\"10.89.1.0/24\", \"fd89:2::/64\", \"host\""));
    let _services = [&lab.proxy, &lab.nextcloud, &*lab.vps].map(|server| Service::start(server, 9000));
    let open = |address: &str| Flow::open(&phone, address, 9000).unwrap_or_else(|error| panic!("{address}: {error}"));
    let (mut proxy, mut nextcloud, mut vps) = (open(PROXY), open(NEXTCLOUD6), open("10.88.0.1"));
    let mut home = Flow::open(&lab.nextcloud, PROXY6, 9000).expect("home's containers");

    phone::rewrite(&lab, &phone, &allow("\"10.89.1.0/24\""));
    lab.vps.meshd(&["reload"]);
    assert!(!nextcloud.alive() && !vps.alive(), "withdrawn, and goes on");
    assert!(proxy.alive() && home.alive(), "not withdrawn, and ends");
    // Once more given, it goes on: TCP has sent again what was lost.
    phone::rewrite(&lab, &phone, &allow("\"10.89.1.0/24\", \"fd89:2::/64\", \"host\""));
    lab.vps.meshd(&["reload"]);
    lab::wait_for("the flows go on", lab::secs(5), || (nextcloud.alive() && vps.alive()).then_some(()));
    assert!(proxy.alive() && home.alive());
}

#[test]
fn the_hosts_trust_each_other_and_not_each_others_containers() {
    let lab = Lab::up();
    let (at_vps, at_home) = (Service::start(&lab.vps, 9000), Service::start(&lab.home, 9000));
    let own = ["10.88.0.2", "fd88::2", "10.89.2.1", "fd89:2::1"];
    at_vps.expect(&lab.home, true, &AT_VPS[..4]);
    at_home.expect(&lab.vps, true, &own);
    at_vps.expect(&lab.nextcloud, false, &AT_VPS);
    at_home.expect(&lab.proxy, false, &own);
    assert!(lab.nextcloud.ping("10.88.0.1") && lab.proxy.ping("fd88::2"), "a host answers a ping");

    lab.vps.append("peers/home.toml", "allow = [\"mesh\", \"host tcp/9000\"]");
    lab.vps.meshd(&["reload"]);
    for address in AT_VPS {
        assert!(at_vps.tcp(&lab.nextcloud, address), "{address} tcp/9000 is given");
        assert!(!at_vps.udp(&lab.nextcloud, address), "{address} udp/9000 is not");
    }
    at_vps.expect(&lab.home, true, &AT_VPS[..4]);
    Service::start(&lab.proxy, 9001).expect(&lab.nextcloud, true, &[PROXY, PROXY6]);

    // A host that is held to a list is held to it whole.
    lab.vps.replace("peers/home.toml", "\"mesh\", \"host tcp/9000\"", "\"10.89.1.10 tcp/9001\"");
    lab.vps.meshd(&["reload"]);
    at_vps.expect(&lab.home, false, &AT_VPS[..4]);
    let at_proxy = Service::start(&lab.proxy, 9001);
    assert!(at_proxy.tcp(&lab.nextcloud, PROXY) && at_proxy.tcp(&lab.home, PROXY), "given");
    assert!(!at_proxy.udp(&lab.nextcloud, PROXY), "not given");
    at_proxy.expect(&lab.nextcloud, false, &[PROXY6]);
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit is another matter"), VPS);
}

#[test]
fn the_exit_opens_neither_its_own_networks_nor_what_its_engine_publishes() {
    let lab = Lab::up();
    // As a container engine does it, to a place that is no bridge of meshd's.
    lab.vps.run(
        "nft 'table inet engine { chain pre { type nat hook prerouting priority dstnat; \
         fib daddr type local meta nfproto ipv4 tcp dport 8080 dnat ip to 10.55.0.1:9000; }; }'",
    );
    let outside = Service::start(&lab.internet, 9000);
    outside.expect(&lab.nextcloud, true, &[WEB, WEB6]);
    // The VPS's own link, its provider's network, a cloud's metadata.
    let own = ["203.0.113.1", "2001:db8:1::1", "10.55.0.1", "169.254.169.254"];
    outside.expect(&lab.vps, true, &own);
    outside.expect(&lab.nextcloud, false, &own);
    for address in ["10.88.0.1", VPS, "10.89.1.1"] {
        let through = |from: &lab::netns::Namespace| Flow::open(from, address, 8080).is_ok();
        assert!(!through(&lab.nextcloud), "a container reaches what the engine publishes at {address}");
        assert!(address == VPS || through(&lab.home), "a host does not reach what the engine publishes at {address}");
    }
    lab.vps.append("peers/home.toml", "allow = [\"mesh\", \"host tcp/8080\"]");
    lab.vps.meshd(&["reload"]);
    assert!(Flow::open(&lab.nextcloud, "10.88.0.1", 8080).is_ok(), "given");
}

/// A client sends from the tunnel's own port through the exit, to where a peer will call from: if that flow took the port on
/// the exit, the peer's handshakes would go to the client.
#[test]
fn a_client_cannot_take_the_tunnels_port() {
    let lab = Lab::new();
    let laptop = lab.add_host("laptop", 101);
    lab.start();
    assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
    let shadow = || {
        let victim = Service::start(&laptop, PORT);
        let source = format!("0.0.0.0:{PORT}");
        victim.udp_from(&lab.nextcloud, &source, "198.18.101.2").expect("the client's datagrams arrive")
    };
    let seen = shadow();
    assert!(seen.ip().to_string() == VPS && seen.port() != PORT, "{seen}");
    laptop.up();
    assert!(laptop.ping("10.88.0.1"), "the peer cannot reach the tunnel");
    laptop.down();

    // The attack is one: with a masquerade that keeps ports, the peer's calls go to the client.
    lab.vps.run(
        "nft 'table inet other { chain post { type nat hook postrouting priority srcnat - 1; \
         iifname mesh0 oifname eth0 masquerade; }; }'; conntrack -F 2>/dev/null",
    );
    let seen = shadow();
    assert_eq!(seen.to_string(), format!("{VPS}:{PORT}"));
    laptop.up();
    assert!(!laptop.ping("10.88.0.1"), "the attack does not work");
}

#[test]
fn nobody_speaks_as_another() {
    let lab = Lab::up();
    let (at_vps, at_nextcloud) = (Service::start(&lab.vps, 9000), Service::start(&lab.nextcloud, 9000));
    let sends = |from: &lab::netns::Namespace, to: &Service, source: &str, target: &str| {
        from.run(&format!("ip address add {source}/128 dev lo nodad 2>/dev/null || true"));
        to.udp_from(from, &format!("[{source}]:0"), target).is_some()
    };
    // A container of a direct bridge, as a peer and as a peer's container. IPv6, as the lab's rp_filter holds IPv4.
    assert!(at_vps.udp(&lab.proxy, "fd88::1"), "a container reaches its own host");
    assert!(sends(&lab.proxy, &at_vps, "fd77::1", "fd88::1"), "as without meshd");
    for source in ["fd88::2", "fd89:2::10"] {
        assert!(!sends(&lab.proxy, &at_vps, source, "fd88::1"), "a container speaks as {source}");
    }
    // An exit may bring any source, but not home's own.
    let tunnel = |source: &str| sends(&lab.vps, &at_nextcloud, source, NEXTCLOUD6);
    assert!(tunnel("2001:db8:99::1"), "the exit brings what comes from the internet");
    for source in ["fd89:2::77", "fd88::2", lab::HOME6] {
        assert!(!tunnel(source), "the exit speaks as {source}");
    }
}
