//! Who may ask for what, and which addresses are told and called.

use std::collections::BTreeMap;

use super::*;
use crate::config::{Files, SourceFile};
use crate::key::PrivateKey;

fn key(n: u8) -> PublicKey {
    PrivateKey::from_bytes([n; 32]).public_key()
}

/// Of the host 10.88.0.7, with these lines in the files of its peers, from 10.88.0.1 on.
fn config(peers: &[(&str, &str)]) -> Config {
    let file = |path: &str, text: String| SourceFile { path: path.to_owned(), text: text.into_bytes() };
    let peers = peers.iter().zip(1..).map(|((name, rest), n)| {
        let own = format!("public_key = \"{}\"\naddresses = [\"10.88.0.{n}\"]\n{rest}\n", key(n));
        ((*name).to_owned(), file(name, own))
    });
    let host = "name = \"own\"\naddresses = [\"10.88.0.7/24\", \"fd88::7/64\"]\n\
                [[bridge]]\nname = \"br0\"\nsubnets = [\"10.89.7.0/24\"]\n";
    let private_key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [7; 32]);
    let files = Files {
        host: file("meshd.toml", host.to_owned()),
        private_key: file("private.key", private_key),
        peers: peers.collect(),
        preshared_keys: BTreeMap::new(),
    };
    crate::config::parse(&files).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn a_call_is_followed_from_the_own_relay_of_a_host() {
    let config =
        config(&[("vps", ""), ("other", ""), ("home", "via = \"vps\""), ("phone", "client = true\nvia = \"vps\"")]);
    assert!(relays(&config, &key(1), &key(3)));
    assert!(!relays(&config, &key(2), &key(3)), "another host");
    assert!(!relays(&config, &key(3), &key(3)), "the host itself");
    assert!(!relays(&config, &key(1), &key(2)), "one that has no relay");
    assert!(!relays(&config, &key(1), &key(4)), "a client");
    assert!(!relays(&config, &key(1), &key(9)), "one that is no peer");
}

#[test]
fn meetings_are_of_hosts_that_have_the_mesh() {
    let config = config(&[
        ("home", ""),
        ("held", "allow = [\"10.89.7.0/24\"]"),
        ("phone", "client = true\nallow = [\"mesh\"]"),
        ("lab", "via = \"home\""),
    ]);
    let met: Vec<u8> = (1..=9).filter(|&n| may_meet(&config, &key(n))).collect();
    assert_eq!(met, [1]);
}

#[test]
fn a_local_address_is_told_to_a_neighbour_only() {
    let addr = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let [home, lab, other] = ["198.51.100.7:51820", "198.51.100.7:1024", "198.51.100.8:51820"].map(addr);
    let lan = addr("192.168.1.20:51820");
    assert_eq!(seen_at(home, Some(lan), lab), [lan, home]);
    assert_eq!(seen_at(home, Some(lan), other), [home], "behind another router");
    for not_private in ["203.0.113.10:51820", "[fe80::1]:51820", "192.168.1.20:0", "127.0.0.1:51820"] {
        assert_eq!(seen_at(home, Some(addr(not_private)), lab), [home], "{not_private}");
    }
    assert_eq!(seen_at(home, None, lab), [home]);
}

#[test]
fn nobody_is_called_within_the_mesh_or_nowhere() {
    let config = config(&[("vps", "subnets = [\"10.89.1.0/24\"]")]);
    let out = |text: &str| outside(&config, &text.parse().unwrap());
    for good in ["198.51.100.7:51820", "192.168.1.20:1024", "[2001:db8::1]:51820"] {
        assert!(out(good), "{good}");
    }
    for bad in [
        "198.51.100.7:0",
        "10.88.0.1:51820",
        "[fd88::1]:51820",
        "10.89.7.10:51820",
        "10.89.1.10:51820",
        "[::ffff:10.89.1.10]:51820",
        "127.0.0.1:51820",
        "169.254.169.254:51820",
        "224.0.0.1:51820",
        "255.255.255.255:51820",
        "0.0.0.0:51820",
        "[::1]:51820",
        "[fe80::1]:51820",
    ] {
        assert!(!out(bad), "{bad}");
    }
}

#[test]
fn each_has_an_allowance_of_its_own() {
    let of = Mutex::default();
    let calls = |n: u8| (0..20).filter(|_| spend(&of, &key(n), CALL, CALLS).is_some()).count();
    assert_eq!((calls(1), calls(1), calls(2)), (4, 0, 4));
}
