use std::os::unix::fs::symlink;

use super::*;
use crate::config::Egress;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n";
const PEER: &str = "public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n";

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout(dir.path());
    create_dir(&layout.peers()).unwrap();
    create(&layout.host(), "name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n", 0o644).unwrap();
    create(&layout.private_key(), KEY, 0o600).unwrap();
    create(&layout.peer("vps"), PEER, 0o600).unwrap();
    dir
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    load(dir).unwrap().peers.iter().map(|peer| peer.name.clone()).collect()
}

#[test]
fn what_was_written_is_read() {
    let dir = folder();
    assert!(is_configured(dir.path()));
    let config = load(dir.path()).unwrap();
    assert_eq!((config.host.name.as_str(), config.host.bridges.len()), ("home", 0));
    assert_eq!(names(dir.path()), ["vps"]);
    replace(
        &Layout(dir.path()).host(),
        "name = \"home\"\naddresses = [\"10.88.0.2/24\"]\n[[bridge]]\nname = \"br0\"\nsubnets = []\negress = \"vps\"\n",
        0o644,
    )
    .unwrap();
    assert_eq!(load(dir.path()).unwrap().host.bridges[0].egress, Egress::Peers(vec!["vps".into()]));
    // Nothing hidden is left.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn leftovers_of_editors_are_no_peers() {
    let dir = folder();
    let peers = Layout(dir.path()).peers();
    for name in ["vps.toml~", ".vps.toml.swp", ".#vps.toml", ".hidden.toml", "#vps.toml#", "vps.toml.bak", "README"] {
        fs::write(peers.join(name), "not = [toml").unwrap();
    }
    assert_eq!(names(dir.path()), ["vps"]);
}

#[test]
fn a_folder_without_peers_is_whole() {
    let dir = folder();
    fs::remove_dir_all(Layout(dir.path()).peers()).unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_remedy() {
    let dir = folder();
    let key = Layout(dir.path()).private_key();
    for (mode, shown) in [(0o644, "0644"), (0o640, "0640"), (0o604, "0604"), (0o620, "0620")] {
        chmod(&key, mode);
        let error = load(dir.path()).unwrap_err();
        assert!(error.refused());
        assert_eq!(
            error.to_string(),
            format!("{}: mode {shown} lets others at a key; 0600 would be right", key.display())
        );
        assert_eq!(error.remedy().unwrap(), format!("chmod 600 {}", key.display()));
    }
    chmod(&key, 0o400);
    load(dir.path()).unwrap();
}

#[test]
fn a_key_of_another_kind_is_refused_and_never_waited_for() {
    let dir = folder();
    let key = Layout(dir.path()).private_key();
    let elsewhere = dir.path().join("elsewhere.key");
    fs::rename(&key, &elsewhere).unwrap();

    symlink(&elsewhere, &key).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(error.refused());
    assert_eq!(error.to_string(), format!("{}: a symbolic link; a key has to be a regular file", key.display()));
    fs::remove_file(&key).unwrap();

    nix::unistd::mkfifo(&key, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: not a regular file", key.display()));
    fs::remove_file(&key).unwrap();

    let error = load(dir.path()).unwrap_err();
    assert!(!error.refused());
    assert_eq!(error.to_string(), format!("{}: not there", key.display()));
    assert_eq!(error.remedy().unwrap(), format!("(umask 077; meshd genkey > {})", key.display()));
}

#[test]
fn what_every_user_may_write_is_refused() {
    let dir = folder();
    for path in [Layout(dir.path()).host(), Layout(dir.path()).peer("vps")] {
        chmod(&path, 0o664);
        load(dir.path()).unwrap();
        chmod(&path, 0o646);
        let error = load(dir.path()).unwrap_err();
        assert!(error.refused());
        assert_eq!(error.to_string(), format!("{}: every user may write it", path.display()));
        assert_eq!(error.remedy().unwrap(), format!("chmod o-w {}", path.display()));
        chmod(&path, 0o644);
    }
}

#[test]
fn a_key_of_another_user_is_refused() {
    let dir = folder();
    let path = Layout(dir.path()).private_key();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(error.refused());
    let shown = path.display();
    assert_eq!(error.to_string(), format!("{shown}: belongs to user 65534; expected root or user 0"));
    assert_eq!(error.remedy().unwrap(), format!("chown 0 {shown}"));
    // That of an agent with a user of its own, for root.
    std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
    load(dir.path()).unwrap();
}

#[test]
fn a_preshared_key_file_is_as_secret_as_the_private_key() {
    let dir = folder();
    let peer = Layout(dir.path()).peer("vps");
    replace(&peer, &format!("{PEER}preshared_key = \"{}\"\n", KEY.trim()), 0o644).unwrap();
    assert!(load(dir.path()).unwrap().peers[0].preshared_key.is_some(), "in a peer's file it earns a warning");

    // A relative path starts at the folder, and the peer's own file may then be read by others.
    replace(&peer, &format!("{PEER}preshared_key_file = \"vps.psk\"\n"), 0o644).unwrap();
    let psk = dir.path().join("vps.psk");
    fs::write(&psk, KEY).unwrap();
    chmod(&psk, 0o600);
    assert!(load(dir.path()).unwrap().peers[0].preshared_key.is_some());
    chmod(&psk, 0o640);
    let error = load(dir.path()).unwrap_err();
    assert!(error.refused());
    assert_eq!(
        error.to_string(),
        format!(
            "{}:2: preshared_key_file \"vps.psk\": {psk}: mode 0640 lets others at a key; 0600 would be right; chmod 600 {psk}",
            peer.display(),
            psk = psk.display()
        )
    );
    fs::remove_file(&psk).unwrap();
    assert_eq!(
        load(dir.path()).unwrap_err().to_string(),
        format!("{}:2: preshared_key_file \"vps.psk\": {}: not there", peer.display(), psk.display())
    );
}

#[test]
fn a_huge_file_is_not_read_whole() {
    let dir = folder();
    let host = Layout(dir.path()).host();
    // Sparse: a gigabyte of zeros that takes no room.
    OpenOptions::new().write(true).open(&host).unwrap().set_len(1 << 30).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("{}:1: larger than 1024 KiB, the most that is read", host.display()));
}

#[test]
fn creating_never_overwrites_and_modes_do_not_depend_on_what_was_there() {
    let dir = folder();
    let key = Layout(dir.path()).private_key();
    let error = create(&key, "other", 0o600).unwrap_err();
    assert!(error.refused() && matches!(error, Error::Exists(_)), "{error}");
    assert_eq!(fs::read_to_string(&key).unwrap(), KEY);
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn what_is_set_aside_can_be_put_back() {
    let dir = folder();
    let peer = Layout(dir.path()).peer("vps");
    let aside = set_aside(&peer).unwrap();
    assert!(names(dir.path()).is_empty());
    aside.restore().unwrap();
    assert_eq!(names(dir.path()), ["vps"]);
    set_aside(&peer).unwrap().delete().unwrap();
    assert_eq!(fs::read_dir(Layout(dir.path()).peers()).unwrap().count(), 0);
}

#[test]
fn a_full_or_missing_disk_leaves_what_was_there() {
    let dir = folder();
    let error = create(&dir.path().join("no/such/folder.toml"), "", 0o600).unwrap_err();
    assert!(matches!(error, Error::NotThere(_)), "{error}");
    // A name that is too long fails after the temporary one would have: the longer of the two is refused first.
    let long = dir.path().join("x".repeat(255));
    assert!(create(&long, "", 0o600).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn all_problems_of_all_files_come_as_lines() {
    let dir = folder();
    let (host, peer) = (Layout(dir.path()).host(), Layout(dir.path()).peer("vps"));
    replace(&host, "name = \"home\"\naddresses = [\"10.88.0.2/24\"]\nmtu = 1\n", 0o644).unwrap();
    replace(&peer, &format!("{PEER}sunbets = []\n"), 0o644).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(error.refused());
    assert_eq!(
        error.errors(),
        [
            format!("{}:3: mtu 1: expected 1280 to 9000; IPv6 needs 1280", host.display()),
            format!("{}:2: unknown key \"sunbets\"; did you mean subnets?", peer.display()),
        ]
    );
}
