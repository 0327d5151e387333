use super::*;
use crate::config::edit as text;
use crate::key::{PrivateKey, SigningKey};
use crate::mesh::Member;
use crate::store::{self, Layout, create};

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn member(name: &str, seed: u8, subnet: &str) -> Member {
    Member {
        name: name.into(),
        public_key: key(seed).public_key(),
        addresses: vec![[10, 88, 0, seed].into()],
        subnets: vec![subnet.parse().unwrap()],
        lans: Vec::new(),
        endpoint: None,
        client: false,
        allow: Vec::new(),
        inviter_key: None,
    }
}

fn signed(serial: u64, members: &[Member]) -> Signed {
    Signed::new(&SigningKey::of(&key(1)), key(1).public_key(), serial, members).unwrap()
}

/// home, key 2, which trusts vps, key 1.
fn folder(more: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout(dir.path());
    let host = format!("name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n{more}");
    create(&layout.host(), &host, 0o644).unwrap();
    create(&layout.private_key(), &key(2).expose_base64(), 0o600).unwrap();
    let mut vps = member("vps", 1, "10.89.1.0/24").peer().unwrap();
    vps.inviter_key = Some(SigningKey::of(&key(1)).verifying_key());
    store::create_dir(&layout.peers()).unwrap();
    create(&layout.peer("vps"), &text::peer(&vps), 0o600).unwrap();
    dir
}

fn follow_here(dir: &Path, members: &[Member]) -> Vec<String> {
    let mut edit = Edit::new(dir).unwrap();
    let said = follow(&mut edit, &[signed(1, members).roster()]).unwrap();
    let _ = edit.write().unwrap();
    said
}

fn subnets(dir: &Path) -> Vec<(String, String)> {
    let config = store::load(dir).unwrap();
    let shown = |peer: &Peer| (peer.name.clone(), peer.subnets.iter().map(ToString::to_string).collect());
    config.peers.iter().filter(|peer| peer.name != "vps").map(shown).collect()
}

fn pair(name: &str, subnet: &str) -> (String, String) {
    (name.into(), subnet.into())
}

#[test]
fn hosts_come_trade_their_networks_and_go() {
    let dir = folder("");
    let (a, b) = ("10.89.3.0/24", "10.89.4.0/24");
    assert_eq!(follow_here(dir.path(), &[member("a", 3, a), member("b", 4, b)]), [""; 0]);
    assert_eq!(subnets(dir.path()), [pair("a", a), pair("b", b)]);
    assert_eq!(follow_here(dir.path(), &[member("a", 3, b), member("b", 4, a)]), [""; 0]);
    assert_eq!(subnets(dir.path()), [pair("a", b), pair("b", a)]);
    assert_eq!(follow_here(dir.path(), &[member("b", 3, b)]), [""; 0], "one gone, the other renamed");
    assert_eq!(subnets(dir.path()), [pair("b", b)]);
    assert_eq!(follow_here(dir.path(), &[]), [""; 0]);
    assert_eq!(subnets(dir.path()), []);
}

#[test]
fn what_does_not_fit_is_left_and_does_not_stop_the_rest() {
    let dir = folder("[[bridge]]\nname = \"br0\"\nsubnets = [\"10.89.2.0/24\"]\n");
    let outside = Member { addresses: vec!["10.77.0.1".parse().unwrap()], ..member("outside", 6, "10.89.6.0/24") };
    let inside = Member { endpoint: Some("10.89.1.7:51820".into()), ..member("inside", 7, "10.89.7.0/24") };
    let said = follow_here(
        dir.path(),
        &[
            member("thief", 3, "10.89.2.0/25"),
            member("thief2", 4, "10.89.1.128/25"),
            member("mesh", 5, "10.88.0.0/25"),
            outside,
            inside,
            member("good", 8, "10.89.8.0/24"),
        ],
    );
    assert_eq!(subnets(dir.path()), [pair("good", "10.89.8.0/24")]);
    assert_eq!(said.len(), 5, "{said:?}");
    for (line, why) in said.iter().zip(["bridge", "vps", "the mesh itself", "outside the mesh network", "lies in"]) {
        assert!(line.contains(why), "{line}: {why}");
    }
}

#[test]
fn what_the_operator_names_keeps_its_file() {
    let named = "[[publish]]\nprotocol = \"tcp\"\nport = 443\nto = \"10.89.3.10:443\"\n[exit]\npeers = [\"lab\"]\n";
    let dir = folder("");
    let lab = [member("lab", 3, "10.89.3.0/24")];
    follow_here(dir.path(), &lab);
    let host = format!("{}{named}", std::fs::read_to_string(Layout(dir.path()).host()).unwrap());
    replace(&Layout(dir.path()).host(), &host, 0o644).unwrap();
    let said = follow_here(dir.path(), &[]);
    assert!(
        said[0].contains("vps has removed lab, which is cut off; its file stays") && said[0].contains("publish"),
        "{said:?}"
    );
    let config = store::load(dir.path()).unwrap();
    assert!(config.peer("lab").is_some() && config.host.exit.is_none(), "its egress is carried no more");
}

#[test]
fn rosters_are_kept_and_what_is_damaged_is_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(load(dir.path()), []);
    for serial in [1, 2] {
        keep(dir.path(), &signed(serial, &[])).unwrap();
    }
    assert_eq!(load(dir.path()), [signed(2, &[])]);
    let own = place(dir.path(), &key(1).public_key());
    fs::copy(&own, own.with_file_name("other.roster")).unwrap();
    assert_eq!(load(dir.path()).len(), 1, "under another's name");
    fs::write(&own, &fs::read(&own).unwrap()[1..]).unwrap();
    assert_eq!(load(dir.path()), []);
    keep(dir.path(), &signed(2, &[])).unwrap();
    forget(dir.path(), &key(1).public_key());
    assert_eq!(load(dir.path()), []);
}
