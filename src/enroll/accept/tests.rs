//! Offers good and hostile, against hosts of all sorts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use zeroize::Zeroizing;

use super::*;
use crate::config::{Files, SourceFile, parse};
use crate::key::{PrivateKey, SigningKey};

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn nets(nets: &[&str]) -> Vec<IpNet> {
    nets.iter().map(|net| net.parse().unwrap()).collect()
}

fn token() -> Token {
    Token {
        inviter: key(1).public_key(),
        secret: Zeroizing::new([7; 32]),
        expires: 1_800_000_000,
        networks: nets(&["10.88.0.0/24", "fd88::/64"]),
        endpoints: vec![value::endpoint("vps.example.net:51820").unwrap()],
    }
}

fn member(name: &str, seed: u8) -> Member {
    Member {
        name: name.into(),
        public_key: key(seed).public_key(),
        addresses: vec![IpAddr::from([10, 88, 0, seed])],
        subnets: nets(&[&format!("10.89.{seed}.0/24")]),
        lans: Vec::new(),
        endpoint: None,
        client: false,
        allow: Vec::new(),
        inviter_key: None,
    }
}

fn offer() -> Offer {
    Offer {
        name: "home".into(),
        addresses: nets(&["10.88.0.2/24", "fd88::2/64"]),
        subnets: nets(&["10.89.2.0/24", "fd89:2::/64"]),
        lans: Vec::new(),
        egress: true,
        mtu: 1400,
        domain: "example.net".into(),
        inviter: member("vps", 1),
        inviter_key: SigningKey::of(&key(1)).verifying_key().to_string(),
        preshared_key: Zeroizing::new(PresharedKey::from_bytes([3; 32]).expose_base64()),
        members: vec![member("lab", 5)],
    }
}

/// A configuration of this host, with the peer `vps` when there is one.
fn config(text: &str, peer: bool) -> Config {
    let file = |path: &str, text: String| SourceFile { path: path.into(), text: text.into() };
    let vps = format!("public_key = \"{}\"\naddresses = [\"10.88.0.1\"]\n", key(1).public_key());
    parse(&Files {
        host: file("meshd.toml", text.into()),
        private_key: file("private.key", key(2).expose_base64()),
        peers: peer.then(|| ("vps".to_owned(), file("peers/vps.toml", vps))).into_iter().collect(),
        preshared_keys: BTreeMap::new(),
    })
    .unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
}

const FRESH: &str = "\
name = \"host\" # for now

addresses = [\"10.87.1.2/16\", \"fd87::1/64\"] # made up
mtu = 1420
";

#[test]
fn a_token_is_checked_before_any_packet() {
    let (token, now, own) = (token(), 1_700_000_000, key(2).public_key());
    assert_eq!(check(&token, None, None, now), Ok(()));
    assert_eq!(check(&token, Some(&own), Some(&config(FRESH, false)), now), Ok(()), "no peers: it may move");
    let why = |own: Option<PublicKey>, config: Option<&Config>, now| {
        let unfit = check(&token, own.as_ref(), config, now).unwrap_err();
        assert!(unfit.remedy.is_some());
        unfit.why
    };
    assert_eq!(why(Some(key(1).public_key()), None, now), "the token is this host's own invitation");
    assert_eq!(
        why(None, None, 1_800_000_060),
        "the token has expired: it was valid until 2027-01-15 08:00:00 UTC, and this host's clock says 2027-01-15 \
         08:01:00 UTC"
    );
    let other = config("name = \"home\"\naddresses = [\"10.90.0.2/24\", \"10.88.0.2/16\"]\n", true);
    assert_eq!(check(&token, Some(&own), Some(&other), now), Ok(()), "one network in common");
    let text = "name = \"home\"\naddresses = [\"10.90.0.2/24\"]\n";
    let mut other = config(text, false);
    other.peers = config("name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n", true).peers;
    assert_eq!(
        why(Some(own), Some(&other), now),
        "the token is for another mesh: its network is 10.88.0.0/24, fd88::/64, this host's is 10.90.0.0/24"
    );
}

#[test]
fn times_are_those_of_the_calendar() {
    for (seconds, shown) in [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_399, "2000-02-28 23:59:59 UTC"),
        (951_782_400, "2000-02-29 00:00:00 UTC"),
        (1_798_761_599, "2026-12-31 23:59:59 UTC"),
        (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        (u64::MAX, "9999-12-31 23:59:59 UTC"),
    ] {
        assert_eq!(Utc(seconds).to_string(), shown);
    }
}

#[test]
fn a_fresh_host_takes_name_and_addresses_and_keeps_its_comments() {
    let Text { text, notes } = identity(FRESH, &config(FRESH, false), &offer()).unwrap();
    assert_eq!(
        text,
        "name = \"home\" # for now\n\naddresses = [\"10.88.0.2/24\", \"fd88::2/64\"] # made up\nmtu = 1400\n\
         domain = \"example.net\"\n"
    );
    assert_eq!(notes, Vec::<String>::new());
    let chosen = FRESH.replace("1420", "1380");
    let Text { text, notes } = identity(&chosen, &config(&chosen, false), &offer()).unwrap();
    assert!(text.contains("mtu = 1380\n"), "{text}");
    assert_eq!(notes, ["mtu stays 1380; that of vps is 1400"]);
}

#[test]
fn a_host_with_peers_stays_what_it_is() {
    let own = "name = \"home\"\naddresses = [\"fd88::2/64\", \"10.88.0.2/24\"]\nmtu = 1420\n";
    let Text { text, notes } = identity(own, &config(own, true), &offer()).unwrap();
    assert_eq!(text, format!("{own}domain = \"example.net\"\n"));
    assert_eq!(notes, ["mtu stays 1420; that of vps is 1400"]);
    let other = own.replace("10.88.0.2", "10.88.0.9");
    let unfit = identity(&other, &config(&other, true), &offer()).unwrap_err();
    assert_eq!(
        unfit.why,
        "this host is 10.88.0.9, fd88::2 to the peers that it has, and the token makes it 10.88.0.2, fd88::2"
    );
    let remedy = unfit.remedy.unwrap();
    assert!(remedy.contains("meshd peer add home --address 10.88.0.9 --address fd88::2 --egress"), "{remedy}");
}

fn networked(text: &str, found: &[Found]) -> Result<Text, Unfit> {
    networks(text, &config(text, true), &offer(), found)
}

const HOME: &str = "name = \"home\"\naddresses = [\"10.88.0.2/24\"] # offered\n";

#[test]
fn what_is_missing_of_bridges_is_added() {
    let found = |name: &str, subnets: &[&str]| Found { name: name.into(), subnets: nets(subnets) };
    let bridge = |name: &str| {
        format!(
            "\n# As vps offered it to this host.\n[[bridge]]\nname = \"{name}\"\n\
             subnets = [\"10.89.2.0/24\", \"fd89:2::/64\"]\negress = \"vps\"\n"
        )
    };
    let (same, other) = (&["fd89:2::/64", "10.89.2.0/24"][..], &["10.89.9.0/24"][..]);
    for (found, name, note) in [
        (vec![found("br0", other), found("podman1", same)], "podman1", None),
        (vec![found("br0", same), found("podman1", same)], "br0", None),
        (vec![found("br0", other)], "br0", Some("br0 has 10.89.9.0/24 now; see that its containers fit")),
        (vec![], "br0", Some("there is no br0 yet; make it, or write another name into [[bridge]]")),
    ] {
        let Text { text, notes } = networked(HOME, &found).unwrap();
        assert_eq!(text, format!("{HOME}{}", bridge(name)));
        assert_eq!(notes.first().map(String::as_str), note);
        assert_eq!(networked(&text, &found), Ok(Text { text: text.clone(), notes: Vec::new() }), "once is enough");
    }
    let one = format!("{HOME}\n[[bridge]]\nname = \"cbr\" # mine\nsubnets = [\"10.89.2.0/25\"]\negress = \"none\"\n");
    let Text { text, .. } = networked(&one, &[]).unwrap();
    assert_eq!(text, one.replace("[\"10.89.2.0/25\"]", "[\"10.89.2.0/25\", \"fd89:2::/64\"]"));
    let said = other_egress(&config(&text, true), &offer());
    assert_eq!(said, ["bridge cbr: its egress stays none, though vps would carry it"]);
    let two = format!("{one}\n[[bridge]]\nname = \"br1\"\nsubnets = [\"10.89.2.128/25\"]\n");
    let Text { text, notes } = networked(&two, &[]).unwrap();
    assert_eq!(text, format!("{two}egress = \"vps\"\n"));
    assert_eq!(notes, ["fd89:2::/64 is offered and on no [[bridge]] of meshd.toml yet"]);
}

#[test]
fn nothing_here_claims_more_than_was_offered() {
    let lan = format!("{HOME}\n[[lan]]\nsubnet = \"192.168.1.0/24\"\ninterface = \"eth0\"\n");
    let unfit = networked(&lan, &[]).unwrap_err();
    assert_eq!(
        unfit.why,
        "a [[lan]] has 192.168.1.0/24, which the token does not offer: its subnets are 10.89.2.0/24, fd89:2::/64"
    );
    let wide = format!("{HOME}\n[[bridge]]\nname = \"br0\"\nsubnets = [\"10.89.2.0/23\", \"fd89:2::/64\"]\n");
    let unfit = networked(&wide, &[]);
    assert!(unfit.is_err(), "{unfit:?}");
    let remedy = unfit.unwrap_err().remedy.unwrap();
    assert!(remedy.contains("meshd peer add home --subnet 10.89.2.0/23 --subnet fd89:2::/64 --egress"), "{remedy}");
}

#[test]
fn a_lan_is_shared_only_by_its_own_host() {
    let mut offer = offer();
    (offer.subnets, offer.lans) = (nets(&["192.168.7.0/24"]), nets(&["192.168.7.0/24"]));
    let Text { text, notes } = networks(HOME, &config(HOME, true), &offer, &[]).unwrap();
    assert_eq!(
        (text.as_str(), notes),
        (HOME, vec!["to share 192.168.7.0/24 write a [[lan]] into meshd.toml".to_owned()])
    );
    let lan = format!("{HOME}\n[[lan]]\nsubnet = \"192.168.7.0/24\"\ninterface = \"eth0\"\n");
    let Text { text, notes } = networks(&lan, &config(&lan, true), &offer, &[]).unwrap();
    assert_eq!((text, notes), (lan, Vec::new()));
}

fn accepted(offer: &Offer) -> Result<Accepted, Unfit> {
    let token = token();
    peers(&token, offer, &token.endpoints[0], None)
}

#[test]
fn peers_are_as_offered_and_those_behind_the_inviter_are_reached_through_it() {
    let Accepted { inviter, members, notes } = accepted(&offer()).unwrap();
    assert_eq!((inviter.name.as_str(), inviter.persistent_keepalive, inviter.via), ("vps", Some(25), None));
    assert_eq!(inviter.endpoint.unwrap().to_string(), "vps.example.net:51820");
    assert!(inviter.preshared_key.is_some() && inviter.inviter_key.is_some());
    assert_eq!((members.len(), notes.len()), (1, 0));
    let lab = &members[0];
    assert_eq!((lab.via.as_deref(), lab.introduced_by.as_deref()), (Some("vps"), Some("vps")));
    assert!(lab.preshared_key.is_none() && lab.allow.is_none());
}

#[test]
fn hostile_offers_are_refused_and_hostile_members_left_out() {
    type Spoil = fn(&mut Offer);
    let cases: &[(&str, Spoil)] = &[
        ("name", |offer| offer.name = "../home".into()),
        ("name", |offer| offer.name = "\u{1b}[2J".into()),
        ("another host", |offer| offer.inviter.public_key = key(9).public_key()),
        ("no host", |offer| offer.inviter.client = true),
        ("no host", |offer| offer.inviter.addresses.clear()),
        ("name", |offer| offer.inviter.name = "a/../../x".into()),
        ("no address", |offer| offer.addresses.clear()),
        ("outside", |offer| offer.addresses = nets(&["10.91.0.2/24"])),
        ("loopback", |offer| offer.addresses = nets(&["127.0.0.1/8"])),
        ("subnet", |offer| offer.subnets = nets(&["0.0.0.0/0"])),
        ("loopback", |offer| offer.subnets = nets(&["127.0.0.0/8"])),
        ("all traffic", |offer| offer.inviter.subnets = nets(&["::/0"])),
        ("domain", |offer| offer.domain = "a b".into()),
        ("preshared key", |offer| offer.preshared_key = Zeroizing::new("short".into())),
        ("key of its news", |offer| offer.inviter_key = "AAAA".into()),
        ("endpoint", |offer| offer.inviter.endpoint = Some("\u{1b}:1".into())),
    ];
    for (word, spoil) in cases {
        let mut offer = offer();
        spoil(&mut offer);
        let why = accepted(&offer).unwrap_err().why;
        assert!(why.contains(word) && !why.contains('\u{1b}'), "{word}: {why}");
    }
    let mut offer = offer();
    offer.members.extend([
        Member { name: "../lab".into(), ..member("x", 6) },
        Member { name: "home".into(), ..member("x", 7) },
        Member { name: "vps".into(), ..member("x", 8) },
        Member { subnets: nets(&["0.0.0.0/0"]), ..member("all", 9) },
        Member { client: true, allow: vec!["everything".into()], ..member("phone", 10) },
    ]);
    let Accepted { members, notes, .. } = accepted(&offer).unwrap();
    assert_eq!(members.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["lab"]);
    assert_eq!(notes.len(), 5, "{notes:?}");
}
