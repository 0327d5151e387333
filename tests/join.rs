//! `meshd join`: good tokens and bad ones, honest inviters and hostile ones.

mod lab;

use std::net::IpAddr;

use lab::host::{Host, describe};
use lab::inviter::Inviter;
use lab::join::{bare, files, init, join, joined};
use lab::{Lab, PORT, VPS};
use meshd::enroll::exchange::{Answer, Offer, Redeem, Refusal};
use meshd::enroll::token::Token;
use meshd::key::{PresharedKey, PrivateKey, SigningKey};
use meshd::mesh::Member;
use zeroize::Zeroizing;

/// The join is refused with exit code 4, these words and a remedy or none, and changes no file.
fn refused(host: &Host, token: &str, words: &str) -> String {
    let before = files(&host.config(""));
    let output = join(host, token);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{words}: {}", describe(&output));
    assert!(stderr.contains(words), "no {words:?} in {stderr}");
    assert!(!stderr.contains('\u{1b}'), "{stderr}");
    assert_eq!(files(&host.config("")), before, "{words}: something was written");
    stderr
}

fn key() -> PrivateKey {
    PrivateKey::generate().expect("random numbers")
}

fn offer(inviter: &PrivateKey) -> Offer {
    let net = |text: &str| text.parse().expect("a network");
    Offer {
        name: "home".into(),
        addresses: vec![net("10.88.0.2/24"), net("fd88::2/64")],
        subnets: vec![net("10.89.2.0/24"), net("fd89:2::/64")],
        lans: Vec::new(),
        egress: false,
        mtu: 1420,
        domain: "mesh".into(),
        inviter: member("vps", 1, inviter),
        inviter_key: SigningKey::of(inviter).verifying_key().to_string(),
        preshared_key: Zeroizing::new(PresharedKey::generate().expect("random numbers").expose_base64()),
        members: Vec::new(),
    }
}

fn member(name: &str, number: u8, key: &PrivateKey) -> Member {
    Member {
        name: name.into(),
        public_key: key.public_key(),
        addresses: vec![IpAddr::from([10, 88, 0, number])],
        subnets: vec![format!("10.89.{number}.0/24").parse().expect("a network")],
        lans: Vec::new(),
        endpoint: None,
        client: false,
        allow: Vec::new(),
        inviter_key: None,
    }
}

/// An inviter on the VPS that gives this offer to whoever asks.
fn offering(lab: &Lab, key: &PrivateKey, offer: Offer) -> Inviter {
    answering(lab, key, move |redeem| Some(Answer::part(&offer, redeem.part)?.write()))
}

fn answering(lab: &Lab, key: &PrivateKey, say: impl FnMut(Redeem) -> Option<Vec<u8>> + Send + 'static) -> Inviter {
    Inviter::start(&lab.vps, key.clone(), VPS, PORT, say)
}

#[test]
fn bad_tokens_are_told_apart_and_leave_no_trace() {
    let lab = bare();
    let inviter = answering(&lab, &key(), |_| None);
    let token = inviter.token();
    let text = token.expose_text();
    let altered = format!("{}{}{}", &text[..60], if &text[60..61] == "A" { "B" } else { "A" }, &text[61..]);
    let expired = Token { expires: 1_790_000_000, ..token.clone() }.expose_text();
    let check = |host: &Host| {
        refused(host, "hello", "join: the token: not a token: expected one line that begins with meshd-");
        refused(host, "", "not a token");
        refused(host, &text[..text.len() - 9], "truncated: ");
        refused(host, &altered, "altered");
        refused(host, &expired, "the token has expired: it was valid until 2026-09-21 14:13:20 UTC, and this host's");
        refused(host, &"meshd-".repeat(100_000), "join: the token: ");
    };
    check(&lab.home);
    assert!(!lab.home.config("").exists(), "not even a folder");
    init(&lab.home);
    check(&lab.home);

    let own = Token { inviter: lab.home.public_key().parse().expect("a key"), ..token.clone() };
    refused(&lab.home, &own.expose_text(), "this host's own invitation");
    let peer = key().public_key().to_string();
    lab.home.meshd(&["peer", "add", "other", "--public-key", &peer]);
    let said = refused(&lab.home, &text, "the token is for another mesh: its network is 10.88.0.0/24, fd88::/64");
    assert!(said.contains("this host's is 10.87.0.0/16, fd87::/64"), "{said}");

    let said = lab.home.meshd_fails(2, &["join", &text]);
    assert!(said.contains("try: ") && !said.contains(&text[8..20]), "{said}");
}

#[test]
fn what_an_inviter_refuses_leaves_no_trace() {
    let lab = bare();
    for (refusal, words) in [
        (Refusal::Used, "it was used already, by another host"),
        (Refusal::Expired, "it has expired"),
        (Refusal::Revoked, "it was revoked"),
        (Refusal::Key("\u{1b}[31m".into()), "this host's key cannot join"),
    ] {
        let inviter = answering(&lab, &key(), move |_| Some(Answer::Refused(refusal.clone()).write()));
        refused(&lab.home, &inviter.token().expose_text(), words);
        assert!(!lab.home.config("private.key").exists());
    }
}

#[test]
fn who_does_not_answer_is_named_and_nothing_is_written() {
    let lab = bare();
    let token = answering(&lab, &key(), |_| None).token().expose_text();
    let output = join(&lab.home, &token);
    let said = describe(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("asking 203.0.113.10:51820 …"), "{said}");
    assert!(said.contains("join: 203.0.113.10:51820: nothing listens on this UDP port"), "{said}");
    assert!(!lab.home.config("").exists());
}

#[test]
fn an_offer_makes_a_configuration_where_there_is_none() {
    let lab = bare();
    let (key, lab_key) = (key(), self::key());
    let mut offer = offer(&key);
    offer.egress = true;
    offer.members = (3..60).map(|n| member(&format!("host{n}"), n, &self::key())).collect();
    offer.members.push(member("lab", 60, &lab_key));
    let inviter = offering(&lab, &key, offer);
    let said = joined(&lab.home, &inviter.token().expose_text());
    println!("{said}");
    let text = lab.home.read("meshd.toml");
    assert!(
        text.contains("name = \"home\"\n") && text.contains("addresses = [\"10.88.0.2/24\", \"fd88::2/64\"]"),
        "{text}"
    );
    assert!(
        text.ends_with("[[bridge]]\nname = \"br0\"\nsubnets = [\"10.89.2.0/24\", \"fd89:2::/64\"]\negress = \"vps\"\n"),
        "{text}"
    );
    let peer = lab.home.read("peers/lab.toml");
    assert!(peer.contains("via = \"vps\"") && peer.contains("introduced_by = \"vps\""), "{peer}");
    assert!(said.contains("58 more through vps") && said.contains("next: meshd up --detach"), "{said}");
    assert!(said.contains("no handshake with vps yet"), "this inviter knows no real key: {said}");
    let before = files(&lab.home.config(""));
    joined(&lab.home, &inviter.token().expose_text());
    assert_eq!(files(&lab.home.config("")), before, "a second join with the same token changes nothing");
}

/// Makes an offer one that nobody must take.
type Spoil = Box<dyn Fn(&mut Offer)>;

#[test]
fn hostile_offers_change_no_file() {
    let lab = bare();
    init(&lab.home);
    lab.home.append("meshd.toml", "[[lan]]\nsubnet = \"192.168.1.0/24\"\ninterface = \"eth0\"");
    let own: meshd::key::PublicKey = lab.home.public_key().parse().expect("a key");
    let lan = || "192.168.1.0/24".parse().expect("a network");
    let cases: Vec<(&str, Spoil)> = vec![
        ("192.168.1.0/24, which the token does not offer", Box::new(|_| {})),
        ("name", Box::new(|offer| offer.name = "../../x".into())),
        ("name", Box::new(|offer| offer.inviter.name = "\u{1b}[2J".into())),
        ("overlaps", Box::new(|offer| offer.inviter.subnets = vec!["192.168.0.0/16".parse().expect("a network")])),
        ("overlaps", Box::new(|offer| offer.inviter.subnets = vec!["10.89.2.128/25".parse().expect("a network")])),
        ("overlaps", Box::new(|offer| offer.inviter.subnets = vec!["fd6d:6573:6864::/48".parse().expect("a network")])),
        ("outside the mesh", Box::new(|offer| offer.inviter.addresses = vec![IpAddr::from([10, 90, 0, 1])])),
        (
            "is that of this host already",
            Box::new(|offer| offer.inviter.addresses = vec![IpAddr::from([10, 88, 0, 2])]),
        ),
        ("another host than the token", Box::new(move |offer| offer.inviter.public_key = own)),
        ("mtu", Box::new(|offer| offer.mtu = 100)),
        ("all traffic", Box::new(|offer| offer.subnets.push("0.0.0.0/0".parse().expect("a network")))),
    ];
    for (number, (words, spoil)) in cases.iter().enumerate() {
        let key = key();
        let mut offer = offer(&key);
        if number > 0 {
            offer.subnets.push(lan());
        }
        spoil(&mut offer);
        let inviter = offering(&lab, &key, offer);
        refused(&lab.home, &inviter.token().expose_text(), words);
    }
    let low_order = |text: String, key: &PrivateKey| {
        text.replace(&key.public_key().to_string(), "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
    };
    let key = key();
    let good = Answer::part(&offer(&key), 0).expect("a part").write();
    // The hash of the whole stands in bytes 3 to 11, so any change is noticed; so is what is no JSON.
    let changed = low_order(String::from_utf8_lossy(&good[11..]).into_owned(), &key);
    let mut body = good[..11].to_vec();
    body.extend(changed.bytes());
    for body in [body, good[..good.len() - 1].to_vec(), vec![9], Vec::new(), b"\x00{".to_vec()] {
        let inviter = answering(&lab, &key, move |_| Some(body.clone()));
        refused(&lab.home, &inviter.token().expose_text(), "the inviter's answer cannot be read");
    }
}
