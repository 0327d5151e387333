//! The Ansible role with the example beside it, run for real on the two hosts of the picture.

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use lab::host::{Host, describe};
use lab::services::{Flow, Service};
use lab::traffic::seen_by;
use lab::{Lab, NEXTCLOUD, NEXTCLOUD6, PROXY, PROXY6, VPS, VPS6, WEB, WEB6, root, secs, wait_for};

/// What the role writes is a host's own, in memory: programs, packages, users. The lab's folders are where meshd looks.
const OWN_DISK: &str = r#"
    set -eu
    mkdir "$1/disk" && mount -t tmpfs tmpfs "$1/disk"
    for path in etc usr var/cache var/lib var/log; do
        mkdir -p "$1/disk/new/$path" "$1/disk/work/$path"
        mount -t overlay -o "lowerdir=/$path,upperdir=$1/disk/new/$path,workdir=$1/disk/work/$path" overlay "/$path"
    done
    mount -t tmpfs tmpfs /run
    mkdir -p /run/wireguard /run/meshd /etc/meshd /var/lib/meshd
    chmod 700 "$1/etc" "$1/state"
    mount --bind "$1/etc" /etc/meshd
    mount --bind "$1/run" /run/meshd
    mount --bind "$1/state" /var/lib/meshd"#;

/// One more bridge for home, with whose bridges the example ends.
const MORE: &str = r#"        - name: br7
          subnets: [10.89.7.0/24, "fd89:7::/64"]
          egress: vps
"#;

/// The lab with bare hosts, and what Ansible knows of them.
struct Site {
    lab: Lab,
    inventory: String,
}

impl Site {
    /// `given` is what the two hosts are told of where meshd comes from.
    fn new(given: [&str; 2]) -> Self {
        let lab = Lab::new();
        let mut hosts = Vec::new();
        for (host, given) in [&lab.vps, &lab.home].into_iter().zip(given) {
            for old in [host.config("meshd.toml"), host.config("private.key"), host.config("peers")] {
                let _ = fs::remove_file(&old).or_else(|_| fs::remove_dir_all(&old));
            }
            let folder = lab.path(host.name);
            let mounted = host.command("sh").args(["-c", OWN_DISK, "sh"]).arg(&folder).output().expect("sh");
            assert!(mounted.status.success(), "{}", describe(&mounted));
            let holder = fs::read_to_string(folder.join("holder")).expect("the holder's process ID");
            let enter = folder.join("enter");
            let script = format!("#!/bin/sh\nexec nsenter -t {} -n -m -- /bin/sh \"$@\"\n", holder.trim());
            fs::write(&enter, script).expect("write");
            fs::set_permissions(&enter, fs::Permissions::from_mode(0o755)).expect("chmod");
            let (name, enter) = (host.name, enter.display());
            hosts.push(format!("    {name}: {{ansible_shell_executable: {enter}{given}}}\n"));
        }
        let tmp = lab.path("remote");
        let text = format!(
            "meshd:\n  hosts:\n{}  vars:\n    ansible_connection: local\n    ansible_user: root\n    \
             ansible_python_interpreter: /usr/bin/python3\n    ansible_remote_tmp: {}\n    meshd_service: none\n",
            hosts.concat(),
            tmp.display()
        );
        fs::write(lab.path("lab.yml"), text).expect("write");
        fs::write(lab.path("ansible.cfg"), "[defaults]\n").expect("write");
        let inventory = fs::read_to_string(root().join("deploy/ansible/inventory.yml")).expect("the example");
        Self { lab, inventory }
    }

    /// Hosts that have meshd.
    fn installed() -> Self {
        let site = Self::new(["", ""]);
        for host in site.hosts() {
            host.run(&format!("ln -s {} /usr/local/bin/meshd", env!("CARGO_BIN_EXE_meshd")));
        }
        site
    }

    /// The same after a first run.
    fn up() -> Self {
        let site = Self::installed();
        site.play(&[]);
        wait_for("a session", secs(10), || site.lab.nextcloud.ping(PROXY).then_some(()));
        site
    }

    fn hosts(&self) -> [&Host; 2] {
        [&self.lab.vps, &self.lab.home]
    }

    fn try_play(&self, arguments: &[&str]) -> Output {
        let inventory = self.lab.path("inventory.yml");
        fs::write(&inventory, &self.inventory).expect("write");
        Command::new("ansible-playbook")
            .arg("-i")
            .arg(inventory)
            .arg("-i")
            .arg(self.lab.path("lab.yml"))
            .args(arguments)
            .arg(root().join("deploy/ansible/site.yml"))
            .current_dir(self.lab.path(""))
            .env("ANSIBLE_CONFIG", self.lab.path("ansible.cfg"))
            .env("ANSIBLE_HOME", self.lab.path("ansible"))
            .env("ANSIBLE_LOCAL_TEMP", self.lab.path("local"))
            .env("ANSIBLE_PIPELINING", "1")
            .env("ANSIBLE_NOCOLOR", "1")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("ansible-playbook is missing: run scripts/test")
    }

    /// Runs the example's playbook, which must succeed; returns what it said.
    fn play(&self, arguments: &[&str]) -> String {
        let output = self.try_play(arguments);
        assert!(output.status.success(), "{}", describe(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same, which must fail and say this; nothing that meshd reads may have changed.
    fn refused(&self, why: &str) {
        let texts = || self.files().into_iter().map(|(path, (text, mode, _))| (path, text, mode)).collect::<Vec<_>>();
        let before = texts();
        let output = self.try_play(&[]);
        assert!(!output.status.success() && describe(&output).contains(why), "no {why:?}: {}", describe(&output));
        assert_eq!(texts(), before, "{why}");
    }

    /// Each file of both configurations with its text, its mode and which file it is; but for private keys.
    fn files(&self) -> BTreeMap<PathBuf, (String, u32, u64)> {
        let mut files = BTreeMap::new();
        for folder in self.hosts().map(|host| [host.config(""), host.config("peers")]).concat() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let (path, of) = (entry.path(), entry.metadata().expect("metadata"));
                // A hidden one is being written.
                let hidden = entry.file_name().to_string_lossy().starts_with('.');
                if of.is_file() && !hidden && !path.ends_with("private.key") {
                    let text = fs::read_to_string(&path).expect("text");
                    let inode = std::os::unix::fs::MetadataExt::ino(&of);
                    files.insert(path, (text, of.permissions().mode() & 0o7777, inode));
                }
            }
        }
        files
    }

    /// Everything that was written on a host's disk.
    fn written(host: &Host, site: &Self) -> String {
        let folder = site.lab.path(host.name);
        let folder = folder.display();
        // Python keeps what it has compiled.
        host.run(&format!(
            "find {folder}/disk/new {folder}/etc {folder}/state -not -name '*.pyc' -not -name __pycache__"
        ))
    }

    fn assert_traffic(&self) {
        let lab = &self.lab;
        wait_for("a session", secs(10), || lab.nextcloud.ping(PROXY).then_some(()));
        assert!(lab.nextcloud.ping(PROXY6));
        assert!(lab.proxy.ping(NEXTCLOUD) && lab.proxy.ping(NEXTCLOUD6));
        assert_eq!(seen_by(&lab.nextcloud, WEB).expect("the exit"), VPS);
        assert_eq!(seen_by(&lab.nextcloud, WEB6).expect("the exit"), VPS6);
    }
}

/// How many tasks changed something on a host.
fn changed(said: &str, host: &str) -> u32 {
    let recap = said.split("PLAY RECAP").nth(1).expect("a recap");
    let line = recap.lines().find(|line| line.starts_with(host)).unwrap_or_else(|| panic!("no {host} in {recap}"));
    let word = line.split_whitespace().find_map(|word| word.strip_prefix("changed=")).expect("changed");
    word.parse().expect("a number")
}

#[test]
fn a_mesh_comes_up_and_a_second_run_changes_nothing() {
    let deb = std::env::var("MESHD_DEB").expect("MESHD_DEB: run scripts/test, or scripts/package");
    let (deb, binary) = (format!(", meshd_deb: {deb}"), format!(", meshd_binary: {}", env!("CARGO_BIN_EXE_meshd")));
    let site = Site::new([&deb, &binary]);
    site.play(&["--syntax-check"]);

    let bare = site.hosts().map(|host| Site::written(host, &site));
    let said = site.play(&["--check", "--diff"]);
    assert_eq!(site.hosts().map(|host| Site::written(host, &site)), bare, "{said}");
    assert!(said.contains("+egress = \"vps\"") && said.contains("+peers = [\"home\"]"), "{said}");
    assert!(site.hosts().iter().all(|host| host.agent().is_none()), "{said}");

    let said = site.play(&["--diff", "-vvv"]);
    site.assert_traffic();
    for host in site.hosts() {
        let key = host.read("private.key");
        assert!(!said.contains(key.trim()), "a private key of {} is shown", host.name);
        let peer = if host.name == "vps" { "peers/home.toml" } else { "peers/vps.toml" };
        for (file, mode) in [("private.key", 0o600), (peer, 0o600), ("meshd.toml", 0o644)] {
            let is = fs::metadata(host.config(file)).expect(file).permissions().mode();
            assert_eq!(is & 0o7777, mode, "{file}");
        }
    }
    assert_ne!(site.lab.vps.read("private.key"), site.lab.home.read("private.key"));

    let before = (site.files(), site.hosts().map(Host::agent));
    let said = site.play(&["--diff"]);
    assert_eq!((changed(&said, "vps"), changed(&said, "home")), (0, 0), "{said}");
    assert_eq!((site.files(), site.hosts().map(Host::agent)), before);
}

#[test]
fn a_change_reaches_what_it_must_and_connections_stay() {
    let mut site = Site::up();
    let service = Service::start(&site.lab.nextcloud, 7000);
    let mut flow = Flow::open(&site.lab.proxy, NEXTCLOUD, 7000).expect("a connection");
    let agents = site.hosts().map(Host::agent);
    let vault = site.lab.attach_bridge(&site.lab.home, "vault", 7);
    assert!(seen_by(&vault, WEB).is_err(), "nobody routes it yet");

    site.inventory += MORE;
    let before = site.files();
    let said = site.play(&["--check", "--diff"]);
    assert!(said.contains("+name = \"br7\""), "{said}");
    assert_eq!(site.files(), before, "{said}");

    let said = site.play(&[]);
    assert_eq!((changed(&said, "vps"), changed(&said, "home")), (1, 1), "{said}");
    let after = site.files();
    let differ: Vec<_> = after.keys().filter(|path| after[*path] != before[*path]).cloned().collect();
    assert_eq!(differ, [site.lab.path("home/etc/meshd.toml"), site.lab.path("vps/etc/peers/home.toml")]);
    assert!(flow.alive(), "a connection through the tunnel");
    assert_eq!(site.hosts().map(Host::agent), agents);
    wait_for("the new bridge is served", secs(5), || vault.ping(PROXY).then_some(()));
    assert_eq!(seen_by(&vault, WEB).expect("the exit"), VPS);
    assert_eq!(seen_by(&vault, WEB6).expect("the exit"), VPS6);
    drop((flow, service));

    // Keys that meshd has agreed on are not the inventory's to take back.
    site.lab.home.meshd(&["peer", "rotate", "vps"]);
    let agreed = wait_for("both have agreed", secs(10), || {
        let files = site.files();
        (!files.values().any(|(text, ..)| text.contains("next_"))).then_some(files)
    });
    let said = site.play(&[]);
    assert_eq!((changed(&said, "vps"), changed(&said, "home")), (0, 0), "{said}");
    assert_eq!(site.files(), agreed);

    // Those that it gives are shown nowhere.
    let secret = site.lab.home.meshd(&["genpsk"]);
    let secret = secret.trim();
    let keys = |host: &str, peer: &str| format!("    {host}: {{meshd_preshared_keys: {{{peer}: {secret}}}}}\n");
    let given = format!("meshd:\n  hosts:\n{}{}", keys("vps", "home"), keys("home", "vps"));
    let path = site.lab.path("keys.yml");
    fs::write(&path, given).expect("write");
    let said = site.play(&["--diff", "-vvv", "-i", path.to_str().expect("a path")]);
    assert!(!said.contains(secret), "a preshared key is shown: {said}");
    assert!(said.contains("+preshared_key = (secret "), "{said}");
    for host in site.hosts() {
        let [shown] = &host.wg_show("preshared-keys").into_values().collect::<Vec<_>>()[..] else { panic!("one peer") };
        assert_eq!(shown, &[secret.to_owned()]);
    }
    site.assert_traffic();
}

#[test]
fn wrong_input_is_refused_and_who_leaves_is_removed() {
    let mut site = Site::installed();
    let right = site.inventory.clone();
    let wrong = |from: &str, to: &str| {
        assert!(right.contains(from), "the example has no {from:?}");
        right.replace(from, to)
    };
    site.inventory = wrong("egress: vps", "egress: vsp");
    site.refused("egress \\\"vsp\\\" names no peer");
    assert!(site.files().is_empty());
    site.inventory = wrong("    home:\n", "    home:\n      meshd_name: vps\n");
    site.refused("two hosts have the same meshd_name");
    site.inventory = right.clone();
    site.play(&[]);
    site.assert_traffic();
    site.inventory = wrong("10.89.2.0/24", "10.89.1.0/24");
    site.refused("overlaps");
    site.inventory = wrong("meshd_endpoint: ", "meshd_settings: {mtu: 100}\n      meshd_endpoint: ");
    site.refused("mtu 100: expected 1280 to 9000");
    site.inventory = wrong("meshd_addresses: [10.88.0.2/24, \"fd88::2/64\"]", "");
    site.refused("missing required arguments: meshd_addresses");
    // The files are right; it is the running agent that refuses.
    site.inventory = wrong("meshd_endpoint: ", "meshd_settings: {interface: mesh1}\n      meshd_endpoint: ");
    site.refused("the files are as they were");
    site.assert_traffic();

    // A peer of the operator's own stays.
    fs::copy(root().join("peers/phone.toml"), site.lab.vps.config("peers/phone.toml")).expect("a peer file");
    site.lab.vps.meshd(&["reload"]);
    let gone = site.lab.home.public_key();
    site.inventory = right.split("    home:\n").next().expect("the VPS").to_owned();
    let reached = fs::read_to_string(site.lab.path("lab.yml")).expect("text");
    let reached: Vec<_> = reached.lines().filter(|line| !line.starts_with("    home:")).collect();
    fs::write(site.lab.path("lab.yml"), reached.join("\n")).expect("write");
    site.play(&[]);
    assert!(!site.lab.vps.config("peers/home.toml").exists());
    assert!(site.lab.vps.config("peers/phone.toml").exists());
    let peers = site.lab.vps.wg_show("peers");
    assert!(peers.len() == 1 && !peers.contains_key(&gone), "{peers:?}");
    assert!(!site.lab.nextcloud.ping(PROXY), "a removed host gets nothing through");
}
