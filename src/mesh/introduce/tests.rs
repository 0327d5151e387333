use super::*;
use crate::config::{Files, SourceFile, edit, parse};
use crate::key::{PrivateKey, SigningKey};
use crate::mesh::Member;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn member(name: &str, seed: u8) -> Member {
    Member {
        name: name.into(),
        public_key: key(seed).public_key(),
        addresses: vec![[10, 88, 0, seed].into()],
        subnets: vec![format!("10.89.{seed}.0/24").parse().unwrap()],
        lans: Vec::new(),
        endpoint: None,
        client: false,
        allow: Vec::new(),
        inviter_key: None,
    }
}

fn peer(name: &str, seed: u8) -> Peer {
    member(name, seed).peer().unwrap()
}

fn vps() -> Peer {
    Peer { inviter_key: Some(SigningKey::of(&key(1)).verifying_key()), ..peer("vps", 1) }
}

fn by_vps(name: &str, seed: u8) -> Peer {
    Peer { introduced_by: Some("vps".into()), via: Some("vps".into()), ..peer(name, seed) }
}

/// home, key 2, with these peers.
fn config(peers: &[Peer]) -> Config {
    let file = |path: &str, text: String| SourceFile { path: path.into(), text: text.into() };
    let peers = peers.iter().map(|peer| (peer.name.clone(), file(&peer.name, edit::peer(peer))));
    parse(&Files {
        host: file("meshd.toml", "name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n".into()),
        private_key: file("private.key", key(2).expose_base64()),
        peers: peers.collect(),
        preshared_keys: std::collections::BTreeMap::default(),
    })
    .unwrap()
}

fn roster(members: &[Member]) -> Roster {
    let (inviter, inviter_key) = (key(1).public_key(), SigningKey::of(&key(1)).verifying_key());
    Roster { inviter, inviter_key, serial: 1, members: members.to_vec(), unreadable: 0 }
}

fn follow(peers: &[Peer], members: &[Member]) -> Steps {
    let config = config(peers);
    let roster = roster(members);
    steps(&config, &roster, trusted(&config, &roster).expect("a trusted inviter"))
}

fn write(peer: Peer) -> Step {
    Step::Write(Box::new(peer))
}

#[test]
fn members_come_change_and_go() {
    let home = member("home", 2);
    assert_eq!(follow(&[vps()], &[home.clone(), member("lab", 3)]).steps, [write(by_vps("lab", 3))]);
    assert_eq!(follow(&[vps(), by_vps("lab", 3)], &[home.clone(), member("lab", 3)]), Steps::default());

    let moved = Member { subnets: vec!["10.90.0.0/16".parse().unwrap()], ..member("lab", 3) };
    let between = Peer {
        inviter_key: Some(SigningKey::of(&key(3)).verifying_key()),
        preshared_key: Some(crate::key::PresharedKey::from_bytes([7; 32])),
        persistent_keepalive: Some(25),
        ..by_vps("lab", 3)
    };
    let expected = Peer { subnets: moved.subnets.clone(), ..between.clone() };
    assert_eq!(follow(&[vps(), between.clone()], &[moved]).steps, [write(expected)], "what is between the two stays");

    assert_eq!(follow(&[vps(), between.clone()], &[home]).steps, [Step::Remove("lab".into())]);
    let renamed = Peer { name: "lab2".into(), ..between.clone() };
    assert_eq!(
        follow(&[vps(), between.clone()], &[member("lab2", 3)]).steps,
        [Step::Remove("lab".into()), write(renamed)]
    );
    let rekeyed = follow(&[vps(), between], &[member("lab", 4)]);
    assert_eq!(rekeyed.steps, [write(by_vps("lab", 4))], "another key is another host: nothing of the old one stays");
}

#[test]
fn a_key_that_is_being_rotated_is_no_other_host() {
    let next = NextKeys { public_key: Some(key(4).public_key()), ..NextKeys::default() };
    let lab = Peer {
        inviter_key: Some(SigningKey::of(&key(3)).verifying_key()),
        preshared_key: Some(crate::key::PresharedKey::from_bytes([7; 32])),
        next,
        ..by_vps("lab", 3)
    };
    let settled = crate::mesh::rotate::settled(&lab, true, false).expect("another key");
    // The inviter hears of it before this host does, or after it.
    for (peer, heard) in [(&lab, 3), (&lab, 4), (&settled, 3)] {
        let listed = Member { public_key: key(heard).public_key(), ..member("lab", 3) };
        assert_eq!(follow(&[vps(), peer.clone()], std::slice::from_ref(&listed)), Steps::default());
        let config = config(&[vps(), peer.clone()]);
        assert!(dismissed(&config, std::iter::once(&roster(&[listed]))).is_empty());
    }
    let listed = Member { public_key: key(4).public_key(), ..member("lab", 3) };
    let done = Peer { next: NextKeys::default(), ..settled.clone() };
    assert_eq!(follow(&[vps(), settled.clone()], &[listed]).steps, [write(done.clone())]);
    let back = follow(&[vps(), done], &[member("lab", 3)]).steps;
    assert_eq!(back, [write(by_vps("lab", 3))], "from then on the old key is another host");
}

#[test]
fn two_members_change_their_names() {
    let Steps { steps, skipped } = follow(&[vps(), by_vps("a", 3), by_vps("b", 4)], &[member("b", 3), member("a", 4)]);
    assert_eq!(steps[..2], [Step::Remove("a".into()), Step::Remove("b".into())]);
    assert_eq!((&steps[2..], skipped), (&[write(by_vps("b", 3)), write(by_vps("a", 4))][..], vec![]));
}

#[test]
fn what_is_not_the_inviters_is_not_touched() {
    for (peers, member, why) in [
        (vec![vps(), peer("lab", 3)], member("lab", 4), Some("is the name of another peer")),
        (vec![vps(), peer("lab", 3)], member("other", 3), Some("has its key, says otherwise")),
        (vec![vps(), peer("lab", 3)], member("lab", 3), None),
        (vec![vps()], member("home", 3), Some("this host's own name")),
        (vec![vps()], member("vps", 3), Some("is the name of another peer")),
        (vec![vps()], member("../lab", 3), Some("expected 1 to 63")),
        (vec![vps()], member("\u{1b}[2J", 3), Some("expected 1 to 63")),
        (vec![vps()], Member { subnets: vec!["0.0.0.0/0".parse().unwrap()], ..member("lab", 3) }, Some("all traffic")),
        (vec![vps()], Member { endpoint: Some("no port".into()), ..member("lab", 3) }, Some("HOST:PORT")),
    ] {
        let Steps { steps, skipped } = follow(&peers, std::slice::from_ref(&member));
        assert_eq!(steps, [], "{member:?}");
        match why {
            None => assert_eq!(skipped, [""; 0]),
            Some(why) => assert!(skipped.len() == 1 && skipped[0].contains(why), "{skipped:?}"),
        }
        assert!(skipped.iter().all(|line| !line.contains('\u{1b}')), "{skipped:?}");
    }
    let twice = follow(&[vps()], &[member("lab", 3), member("lab", 4), member("other", 3)]);
    assert_eq!((twice.steps.len(), twice.skipped.len()), (1, 2));
}

#[test]
fn an_inviter_gives_nothing_of_this_host_itself() {
    let client = Member { client: true, allow: vec!["host tcp/22".into(), "mesh".into()], ..member("phone", 9) };
    let steps = follow(&[vps()], &[client]).steps;
    let [Step::Write(peer)] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!(
        peer.allow.as_deref().map(|allow| allow.iter().map(ToString::to_string).collect()),
        Some(vec!["mesh".to_owned()])
    );
}

#[test]
fn a_member_is_reached_by_the_way_to_its_inviter() {
    let home2 = Peer { inviter_key: Some(SigningKey::of(&key(5)).verifying_key()), ..by_vps("home2", 5) };
    let config = config(&[vps(), home2.clone()]);
    let roster = Roster {
        inviter: key(5).public_key(),
        inviter_key: SigningKey::of(&key(5)).verifying_key(),
        ..roster(&[member("lab", 3)])
    };
    let steps = steps(&config, &roster, trusted(&config, &roster).expect("trusted"));
    let expected = Peer { introduced_by: Some("home2".into()), ..by_vps("lab", 3) };
    assert_eq!(steps.steps, [write(expected)]);
}

#[test]
fn only_the_key_in_the_file_introduces() {
    let other = Peer { inviter_key: Some(SigningKey::of(&key(9)).verifying_key()), ..peer("vps", 1) };
    for peers in [vec![peer("vps", 1)], vec![other], vec![Peer { name: "vps".into(), ..vps() }, by_vps("lab", 3)]] {
        let config = config(&peers);
        let expected = peers.len() == 2;
        assert_eq!(trusted(&config, &roster(&[])).is_some(), expected);
        assert_eq!(dismissed(&config, std::iter::once(&roster(&[]))).len(), usize::from(expected));
    }
}

#[test]
fn who_was_introduced_by_someone_dismissed_is_dismissed_too() {
    let lab = Peer { inviter_key: Some(SigningKey::of(&key(3)).verifying_key()), ..by_vps("lab", 3) };
    let far = Peer { introduced_by: Some("lab".into()), ..by_vps("far", 4) };
    let config = config(&[vps(), lab, far, by_vps("stays", 5)]);
    let gone = dismissed(&config, std::iter::once(&roster(&[member("stays", 5)])));
    assert_eq!(gone, HashSet::from([key(3).public_key(), key(4).public_key()]));
    assert_eq!(with_dependants(&config, "lab"), ["far", "lab"]);
    let all = with_dependants(&config, "vps");
    assert_eq!((all.len(), all.last().map(String::as_str)), (4, Some("vps")));
}

#[test]
fn an_introduction_is_shown_when_it_brings_somebody() {
    let roster = roster(&[member("home", 2), member("lab", 3)]);
    let shown = introductions(&config(&[peer("vps", 1)]), std::iter::once(&roster));
    assert_eq!(shown[0].describe(), "vps would introduce lab (10.88.0.3; 10.89.3.0/24)");
    assert_eq!(introductions(&config(&[vps()]), std::iter::once(&roster)), [], "trusted already");
    assert_eq!(introductions(&config(&[peer("vps", 1), peer("lab", 3)]), std::iter::once(&roster)), [], "nobody new");
    let client = Peer { client: true, ..peer("vps", 1) };
    assert_eq!(introductions(&config(&[client]), std::iter::once(&roster)), [], "a client introduces nobody");
}
