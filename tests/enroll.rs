//! Invitations as the inviter meets them: honest joiners, many at once, and hostile ones.

mod lab;

use std::fs;
use std::process::{Output, Stdio};
use std::time::Duration;

use lab::Lab;
use lab::host::{Host, describe};
use lab::joiner::{Joiner, Outcome};
use lab::{secs, wait_for};
use meshd::enroll::exchange::{Offer, Refusal};
use meshd::enroll::token::Token;
use meshd::key::{PresharedKey, PrivateKey};
use serde_json::Value;

/// The VPS and nobody else in its mesh, up.
fn vps() -> Lab {
    let lab = Lab::new();
    lab.vps.replace("meshd.toml", "[exit]\npeers = [\"home\", \"phone\"]\ninterface = \"eth0\"\n", "");
    for peer in ["home", "phone"] {
        fs::remove_file(lab.vps.config(&format!("peers/{peer}.toml"))).expect("remove");
    }
    lab.vps.up();
    lab
}

fn invite(host: &Host, args: &[&str]) -> Token {
    let args = [&["peer", "add"], args].concat();
    host.meshd(&args).parse().expect("a token")
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn offer(outcome: Outcome) -> Box<Offer> {
    match outcome {
        Outcome::Offer(offer) => offer,
        other => panic!("no offer: {other:?}"),
    }
}

fn state_of(host: &Host, name: &str) -> String {
    let invites: Value = serde_json::from_str(&host.meshd(&["peer", "invites", "--json"])).expect("JSON");
    let found = invites.as_array().expect("a list").iter().find(|one| one["name"] == name);
    found.map_or_else(|| "none".into(), |one| one["state"].as_str().expect("a state").to_owned())
}

#[test]
fn a_token_lets_one_host_in() {
    let lab = vps();
    let token = invite(&lab.vps, &["home", "--subnet", "10.89.2.0/24", "--subnet", "fd89:2::/64", "--egress"]);
    assert_eq!(state_of(&lab.vps, "home"), "open");
    let mut joiner = Joiner::new(&lab.internet, &token);
    assert!(joiner.handshake());
    let first = offer(joiner.redeem(key(7).public_key(), secs(5)));
    assert_eq!(state_of(&lab.vps, "home"), "bound");
    assert_eq!(first.name, "home");
    assert_eq!(first.inviter.name, "vps");
    assert!(first.egress);
    assert_eq!(first.subnets.len(), 2);
    assert_eq!(first.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.88.0.2/24", "fd88::2/64"]);
    assert!(lab.vps.read("meshd.toml").contains("peers = [\"home\"]"));
    // A retry gets the same, another key nothing.
    assert_eq!(offer(joiner.redeem(key(7).public_key(), secs(5))), first);
    assert_eq!(joiner.redeem(key(8).public_key(), secs(5)), Outcome::Refused(Refusal::Used));
    // The real key.
    let preshared_key: PresharedKey = first.preshared_key.parse().expect("a key");
    let mut real = Joiner::with(&lab.internet, &key(7), token.inviter, preshared_key);
    assert!(real.handshake());
    wait_for("the invitation is used", secs(3), || (state_of(&lab.vps, "home") == "used").then_some(()));
}
