use super::*;
use crate::key::{PrivateKey, SigningKey};
use crate::mesh::Member;
use crate::store::Layout;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn member(name: &str, seed: u8) -> Member {
    Member {
        name: name.into(),
        public_key: key(seed).public_key(),
        addresses: vec![[10, 88, 0, seed].into()],
        subnets: Vec::new(),
        lans: Vec::new(),
        endpoint: None,
        client: false,
        allow: Vec::new(),
        inviter_key: None,
    }
}

/// home, key 2, with the peer vps, key 1, which has told of lab, key 3.
fn host() -> (tempfile::TempDir, Dirs) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let dirs = Dirs { config: path("etc"), run: path("run"), state: path("state") };
    let layout = Layout(&dirs.config);
    store::create_dir(&layout.peers()).unwrap();
    store::create(&layout.host(), "name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n", 0o644).unwrap();
    store::create(&layout.private_key(), &key(2).expose_base64(), 0o600).unwrap();
    store::create(&layout.peer("vps"), &edit::peer(&member("vps", 1).peer().unwrap()), 0o600).unwrap();
    store::create_dir(&dirs.state).unwrap();
    let members = [member("home", 2), member("lab", 3)];
    let signed = Signed::new(&SigningKey::of(&key(1)), key(1).public_key(), 1, &members).unwrap();
    news::keep(&dirs.state, &signed).unwrap();
    (folder, dirs)
}

fn args(revoke: bool, yes: bool) -> Args {
    Args { name: "vps".into(), revoke, yes }
}

fn names(dirs: &Dirs) -> Vec<String> {
    store::load(&dirs.config).unwrap().peers.into_iter().map(|peer| peer.name).collect()
}

#[test]
fn trust_brings_peers_and_its_end_removes_them() {
    let (_folder, dirs) = host();
    run(args(false, true), &dirs, |_| Ok(None)).unwrap();
    assert_eq!(names(&dirs), ["lab", "vps"]);
    let config = store::load(&dirs.config).unwrap();
    assert_eq!(config.peer("vps").unwrap().inviter_key, Some(SigningKey::of(&key(1)).verifying_key()));
    let refused = |name| may_be_removed(&config, name).unwrap_err();
    assert!(refused("lab").errors[0].contains("vps has introduced it"));
    assert!(refused("vps").remedy.is_some_and(|remedy| remedy.contains("--revoke")));
    run(args(false, true), &dirs, |_| panic!("nothing to reload")).unwrap();

    run(args(true, false), &dirs, |_| Ok(None)).unwrap();
    assert_eq!(names(&dirs), ["vps"]);
    assert!(may_be_removed(&store::load(&dirs.config).unwrap(), "vps").is_ok());
    run(args(true, false), &dirs, |_| panic!("nothing to reload")).unwrap();
}

#[test]
fn nothing_is_written_when_the_agent_refuses() {
    let (_folder, dirs) = host();
    let before = store::load(&dirs.config).unwrap();
    run(args(false, true), &dirs, |_| Err(Failure::new(4, "no"))).unwrap_err();
    assert_eq!(store::load(&dirs.config).unwrap(), before);
}

#[test]
fn who_has_said_nothing_cannot_be_trusted() {
    let (_folder, dirs) = host();
    news::forget(&dirs.state, &key(1).public_key());
    let failure = run(args(false, true), &dirs, |_| Ok(None)).unwrap_err();
    assert_eq!((failure.code, names(&dirs)), (1, vec!["vps".to_owned()]));
}
