//! What routers write into the outer header: congestion marks (RFC 6040) and traffic classes.

mod lab;

use lab::netns::Namespace;
use lab::traffic::transfer;
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS6};

/// Adds `rule` to all that the internet forwards.
fn on_the_way(lab: &Lab, rule: &str) {
    lab.internet.run(&format!(
        "nft 'table inet way {{ chain forward {{ type filter hook forward priority filter; {rule}; }}; }}'"
    ));
}

/// Packets that the rules of [`on_the_way`] counted.
fn counted(lab: &Lab) -> u64 {
    let rules = lab.internet.run("nft list table inet way");
    let words: Vec<_> = rules.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[0] == "packets").filter_map(|pair| pair[1].parse::<u64>().ok()).sum()
}

/// A counter of nstat(8) since the namespace exists.
fn nstat(namespace: &Namespace, counter: &str) -> u64 {
    let text = namespace.run(&format!("nstat -asz {counter}"));
    let value = text.lines().find_map(|line| line.strip_prefix(counter)?.split_whitespace().next());
    value.unwrap_or_else(|| panic!("no {counter} in {text}")).parse().expect("a number")
}

/// TCP that understands marks sends both ways; routers mark instead of dropping, in the outer family given.
fn marks_arrive(lab: &Lab, outer: &str) {
    for container in [&lab.proxy, &lab.nextcloud] {
        container.run("sysctl -qw net.ipv4.tcp_ecn=1");
    }
    let inner =
        [("IpExtInCEPkts", "IpExtInECT0Pkts", PROXY, NEXTCLOUD), ("Ip6InCEPkts", "Ip6InECT0Pkts", PROXY6, NEXTCLOUD6)];
    let both = |marked: bool| {
        for (ce, ect, proxy, nextcloud) in inner {
            for (from, to, address) in [(&lab.nextcloud, &lab.proxy, proxy), (&lab.proxy, &lab.nextcloud, nextcloud)] {
                let before = nstat(to, ce);
                transfer(from, to, address, 2);
                let what = format!("{ce} of {}, outer {outer}", to.name());
                assert_eq!(nstat(to, ce) > before, marked, "{what}");
                assert!(nstat(to, ect) > 0, "{what}: {ect}");
            }
        }
    };
    both(false);
    on_the_way(lab, &format!("udp dport 1-65535 {outer} ecn ect0 {outer} ecn set ce counter"));
    both(true);
    assert!(counted(lab) > 0);
}

#[test]
fn congestion_marks_cross_the_tunnel_over_ipv4() {
    let lab = Lab::up();
    assert!(lab.nextcloud.ping(PROXY));
    marks_arrive(&lab, "ip");
}

#[test]
fn congestion_marks_cross_the_tunnel_over_ipv6() {
    let lab = Lab::new();
    lab.home.replace("peers/vps.toml", "203.0.113.10:51820", &format!("[{VPS6}]:51820"));
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    marks_arrive(&lab, "ip6");
}

#[test]
fn the_inner_class_of_traffic_shows_outside_only_when_asked() {
    let lab = Lab::new();
    on_the_way(&lab, "ip dscp af41 counter");
    lab.start();
    assert!(lab.nextcloud.ping(PROXY));
    assert!(counted(&lab) >= 2, "handshakes are marked as the kernel's are");

    lab.internet.run("nft delete table inet way");
    on_the_way(&lab, "ip dscp ef counter");
    let ef = |to| assert_eq!(lab.nextcloud.ping_with(to, "-c 3 -i 0.1 -W 2 -Q 0xb8").received, 3);
    [PROXY, PROXY6].into_iter().for_each(ef);
    assert_eq!(counted(&lab), 0);

    let text = lab.home.read("meshd.toml");
    lab.home.write("meshd.toml", &format!("copy_dscp = true\n{text}"));
    lab.home.meshd(&["reload"]);
    [PROXY, PROXY6].into_iter().for_each(ef);
    assert_eq!(counted(&lab), 6, "home copies it, the VPS was not asked to");
}
