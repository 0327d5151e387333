//! The Debian package of `scripts/package`: lintian has nothing to say, and it goes into a system of its own and out again.

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lab::debian::{Debian, package, run};

/// All files but those of the package manager itself, and of a system that runs.
fn files(debian: &Debian) -> BTreeSet<String> {
    let listed = debian.run(
        "cd / && find . -xdev -not -path './run/*' -not -path './var/lib/dpkg/*' -not -path './var/log/*' \
         -not -path './proc/*' -not -type d",
    );
    // Backups of passwd and its like: users stay, for files may still be theirs.
    listed.lines().filter(|file| !file.ends_with('-')).map(str::to_owned).collect()
}

fn assert_nothing_beside(before: &BTreeSet<String>, debian: &Debian) {
    let left: Vec<_> = files(debian).difference(before).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn lintian_finds_nothing() {
    let path = package();
    let said = run("lintian", &["--allow-root", "--fail-on", "error,warning", path.to_str().expect("text")]);
    assert_eq!(said.trim(), "");
}

#[test]
fn it_goes_into_a_clean_system_and_out_again_and_so_does_the_script() {
    let debian = Debian::new("");
    with_the_package(&debian);
    without_it(&debian);
}

fn with_the_package(debian: &Debian) {
    let before = files(debian);
    debian.install();

    let user = debian.run("getent passwd meshd");
    assert!(user.contains(":/var/lib/meshd:/usr/sbin/nologin"), "{user}");
    let modes = debian.run("stat -c '%n %U:%G %a' /etc/meshd /etc/meshd/peers /var/lib/meshd /run/wireguard");
    let wanted = "/etc/meshd meshd:meshd 700\n/etc/meshd/peers meshd:meshd 700\n/var/lib/meshd meshd:meshd 700\n\
                  /run/wireguard meshd:meshd 755\n";
    assert_eq!(modes, wanted);
    let version = debian.run("meshd --version");
    assert_eq!(version.trim(), concat!("meshd ", env!("CARGO_PKG_VERSION")));
    for file in [
        "/usr/share/meshd/hooks.d/meshd.json",
        "/usr/share/man/man8/meshd.8.gz",
        "/usr/share/man/man8/meshd-guard.8.gz",
        "/usr/share/man/man8/meshd-peer-add.8.gz",
        "/usr/share/bash-completion/completions/meshd",
        "/usr/share/zsh/vendor-completions/_meshd",
        "/usr/share/fish/vendor_completions.d/meshd.fish",
    ] {
        assert!(debian.path(file).is_file(), "{file}");
    }
    let units = "/usr/lib/systemd/system/meshd.service /usr/lib/systemd/system/meshd-guard.service";
    assert_eq!(debian.run(&format!("systemd-analyze verify --man=no {units}")), "");
    debian.run(&format!("systemd-analyze security --offline=true --no-pager --threshold=20 {units}"));
    let enabled = debian.run("systemctl is-enabled meshd meshd-guard || true");
    assert_eq!(enabled, "disabled\ndisabled\n", "there is no configuration yet");

    // What an operator makes, and what an upgrade leaves alone.
    debian.run("meshd init --name home --bridge br0=10.89.2.0/24");
    let owners = debian.run("stat -c %U /etc/meshd/meshd.toml /etc/meshd/private.key");
    assert_eq!(owners, "meshd\nmeshd\n");
    let key = fs::read(debian.path("/etc/meshd/private.key")).expect("a key");
    debian.install();
    assert_eq!(fs::read(debian.path("/etc/meshd/private.key")).expect("a key"), key);
    debian.run("systemctl enable meshd meshd-guard && dpkg --remove meshd");
    assert!(debian.path("/etc/meshd/private.key").is_file());
    debian.run("dpkg --purge meshd");
    assert_nothing_beside(&before, debian);
}

fn without_it(debian: &Debian) {
    let before = files(debian);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install");
    let (script, root) = (script.to_str().expect("text"), debian.root().to_str().expect("text").to_owned());
    for _ in 0..2 {
        run(script, &["--root", &root]);
        assert_eq!(debian.run("meshd --version").trim(), concat!("meshd ", env!("CARGO_PKG_VERSION")));
        let verified = debian.run("systemd-analyze verify --man=no /etc/systemd/system/meshd*.service");
        assert_eq!(verified, "");
        assert_eq!(debian.run("stat -c %U:%a /etc/meshd"), "meshd:700\n");
    }
    debian.run("meshd init --name home");
    run(script, &["--root", &root, "--uninstall"]);
    assert!(debian.path("/etc/meshd/private.key").is_file() && !debian.path("/usr/local/bin/meshd").exists());
    run(script, &["--root", &root, "--purge"]);
    assert_nothing_beside(&before, debian);
}
