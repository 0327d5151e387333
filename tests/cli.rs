//! The command line as a person meets it: the real binary, no agent, no root.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// A host's folders, in a place of their own.
struct Host {
    folder: tempfile::TempDir,
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Host {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// One that has been through `meshd init` as home of the worked example.
    fn home() -> Self {
        let host = Self::new();
        let line = "init --name home --address 10.88.0.2/24 --address fd88::2/64 --bridge br0=10.89.2.0/24,fd89:2::/64";
        host.ok(line);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("etc").join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshd"));
        command.args(line.split_whitespace());
        for (name, folder) in [("MESHD_DIR", "etc"), ("MESHD_RUN_DIR", "run"), ("MESHD_STATE_DIR", "state")] {
            command.env(name, self.folder.path().join(folder));
        }
        command.env_remove("COLUMNS");
        command
    }

    fn run(&self, line: &str) -> Said {
        said(self.command(line).stdin(Stdio::null()).output().unwrap())
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let said = self.run(line);
        assert_eq!((said.code, said.err.as_str()), (0, ""), "meshd {line}");
        said.out
    }

    /// Fails with this code and exactly these lines, in which `ETC` is the configuration folder.
    #[track_caller]
    fn fails(&self, line: &str, code: i32, expected: &[&str]) {
        let said = self.run(line);
        let etc = self.folder.path().join("etc").display().to_string();
        let lines: Vec<String> = said.err.lines().map(|line| line.replace(&etc, "ETC")).collect();
        assert_eq!(lines, expected, "meshd {line}");
        assert_eq!((said.code, said.out.as_str()), (code, ""), "meshd {line}");
    }

    fn append(&self, name: &str, text: &str) {
        let mut file = fs::OpenOptions::new().append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }
}

fn said(output: std::process::Output) -> Said {
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn init_writes_a_sound_configuration_and_overwrites_nothing() {
    let host = Host::new();
    let out = host.ok("init");
    assert!(out.contains("  meshd peer add ") && out.contains("meshd up --detach"), "{out}");
    assert!(out.lines().all(|line| line.len() <= 80), "{out}");
    assert_eq!(["", "peers", "private.key", "meshd.toml"].map(|name| host.mode(name)), [0o700, 0o700, 0o600, 0o644]);
    host.ok("peer list");

    let before = fs::read(host.path("private.key")).unwrap();
    let refusal = "try: meshd up, or init with another --dir";
    host.fails("init", 4, &["meshd: ETC/meshd.toml: exists already; init overwrites nothing", refusal]);
    // As after a crash in the middle: the key that is there is kept, and its permissions count.
    fs::remove_file(host.path("meshd.toml")).unwrap();
    fs::set_permissions(host.path("private.key"), fs::Permissions::from_mode(0o640)).unwrap();
    host.fails(
        "init",
        4,
        &[
            "meshd: ETC/private.key: mode 0640 lets others at a key; 0600 would be right",
            "try: chmod 600 ETC/private.key",
        ],
    );
    fs::set_permissions(host.path("private.key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(host.ok("init").starts_with("wrote meshd.toml for the private.key in "));
    assert_eq!(fs::read(host.path("private.key")).unwrap(), before);
}

#[test]
fn two_hosts_that_were_just_initialised_can_name_each_other() {
    let (home, vps) = (Host::new(), Host::new());
    // What each prints is the command for the other.
    let command = |out: &str| {
        let start = out.find("meshd peer add").unwrap();
        let lines: Vec<&str> = out[start..].lines().collect();
        let end = lines.iter().position(|line| !line.ends_with('\\')).unwrap();
        lines[..=end].join(" ").replace(" \\", " ").trim_start_matches("meshd ").to_owned()
    };
    let at_vps = command(&home.ok("init --name home --bridge br0=10.89.2.0/24,fd89:2::/64"));
    let at_home = command(&vps.ok("init --name vps --endpoint vps.example.net:51820 --bridge br0=10.89.1.0/24"));
    home.ok(&at_home);
    vps.ok(&at_vps);
    // Home is behind NAT, so it keeps the way back open; the VPS need not.
    let keepalive = |host: &Host, peer: &str| {
        let shown: serde_json::Value = serde_json::from_str(&host.ok(&format!("peer show {peer} --json"))).unwrap();
        shown["persistent_keepalive"].clone()
    };
    assert_eq!((keepalive(&home, "vps"), keepalive(&vps, "home")), (25.into(), serde_json::Value::Null));
}

#[test]
fn init_says_what_is_wrong_with_its_arguments_and_writes_nothing() {
    let host = Host::new();
    let help = "try: meshd init --help";
    host.fails(
        "init --name Home --bridge br0=10.89.2.7/24 --endpoint vps",
        4,
        &[
            "meshd: init: name \"Home\": expected 1 to 63 of a-z, 0-9 and -, with no - at either end",
            "meshd: init: endpoint \"vps\": no port; write vps:51820",
            "meshd: init: bridge \"br0\": subnets \"10.89.2.7/24\": has host bits set; 10.89.2.0/24 would be right",
            help,
        ],
    );
    host.fails(
        "init --name home --bridge no-such-bridge",
        4,
        &[
            "meshd: init: bridge \"no-such-bridge\": this host has none with networks",
            "try: --bridge no-such-bridge=10.89.2.0/24",
        ],
    );
    assert!(!host.path("").exists());
}

#[test]
fn mistakes_in_files_are_named_by_file_and_line() {
    let host = Host::home();
    fs::write(host.path("peers/vps.toml"), format!("public_key = \"{KEY}\"\nsubnet = []\nendpoint = \"x\"\n")).unwrap();
    let lines = fs::read_to_string(host.path("meshd.toml")).unwrap().lines().count();
    host.append("meshd.toml", "colour = \"\\u001b[31m\"\nallow = 7\n");
    host.fails(
        "peer list",
        4,
        &[
            &format!(
                "meshd: ETC/meshd.toml:{}: bridge \"br0\": unknown key \"colour\"; known keys: name, subnets, egress, allow, users",
                lines + 1
            ),
            &format!(
                "meshd: ETC/meshd.toml:{}: bridge \"br0\": allow: expected a list of strings, found the number 7",
                lines + 2
            ),
            "meshd: ETC/peers/vps.toml:2: unknown key \"subnet\"; did you mean subnets?",
            "meshd: ETC/peers/vps.toml:3: endpoint \"x\": no port; write x:51820",
        ],
    );
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let host = Host::home();
    fs::set_permissions(host.path("private.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let expected = [
        "meshd: ETC/private.key: mode 0644 lets others at a key; 0600 would be right",
        "try: chmod 600 ETC/private.key",
    ];
    host.fails("peer list", 4, &expected);
    host.fails(&format!("peer add vps --public-key {KEY}"), 4, &expected);
}

#[test]
fn a_host_without_a_configuration_is_told_how_to_make_one() {
    for line in ["peer list", "peer remove vps", "peer add vps --public-key x"] {
        Host::new().fails(line, 1, &["meshd: ETC/meshd.toml: not there", "try: meshd init"]);
    }
}

#[test]
fn a_peer_is_added_listed_shown_and_removed() {
    let host = Host::home();
    assert_eq!(host.ok("peer list"), "no peers yet; `meshd peer add --help` shows how\n");
    assert_eq!(host.ok("peer list --json"), "[]\n");
    let add = format!(
        "peer add vps --public-key {KEY} --endpoint 203.0.113.10:51820 --address 10.88.0.1 --address fd88::1 \
         --subnet 10.89.1.0/24 --subnet fd89:1::/64"
    );

    let dry = host.ok(&format!("{add} --dry-run"));
    assert!(!host.path("peers/vps.toml").exists());
    let out = host.ok(&add);
    assert!(out.contains("the agent is not running; `meshd up` starts it\n"), "{out}");
    let text = fs::read_to_string(host.path("peers/vps.toml")).unwrap();
    assert_eq!(
        text,
        format!(
            "public_key = \"{KEY}\"\nendpoint = \"203.0.113.10:51820\"\naddresses = [\"10.88.0.1\", \"fd88::1\"]\n\
             subnets = [\"10.89.1.0/24\", \"fd89:1::/64\"]\npersistent_keepalive = 25\n"
        )
    );
    assert_eq!(dry, format!("# {}\n{text}", host.path("peers/vps.toml").display()));
    assert_eq!(host.mode("peers/vps.toml"), 0o600);

    assert_eq!(
        host.ok("peer list"),
        "NAME  KIND  ADDRESS       SUBNETS          ENDPOINT\n\
         vps   host  10.88.0.1 +1  10.89.1.0/24 +1  203.0.113.10:51820\n"
    );
    let expected = serde_json::json!({
        "name": "vps",
        "public_key": KEY,
        "endpoint": "203.0.113.10:51820",
        "addresses": ["10.88.0.1", "fd88::1"],
        "subnets": ["10.89.1.0/24", "fd89:1::/64"],
        "allowed_ips": ["10.88.0.1/32", "10.89.1.0/24", "fd88::1/128", "fd89:1::/64"],
        "persistent_keepalive": 25,
        "client": false,
        "allow": null,
        "preshared_key": false,
        "express": "auto",
        "via": null,
        "introduced_by": null,
        "inviter_key": null,
    });
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(&host.ok(line)).unwrap();
    assert_eq!(json("peer show vps --json"), expected);
    assert_eq!(json("peer list --json"), serde_json::json!([expected]));
    let shown = host.ok("peer show vps");
    assert!(shown.contains(&format!("public key     {KEY}\n")) && shown.contains("preshared key  -\n"), "{shown}");

    let add = "peer add phone --public-key TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0= --address 10.88.0.9 --client";
    let allow = ["--allow", "10.89.1.0/24", "--allow", "host tcp/22"];
    let added = said(host.command(add).args(allow).output().unwrap());
    assert_eq!(added.code, 0, "{}", added.err);
    let text = fs::read_to_string(host.path("peers/phone.toml")).unwrap();
    assert!(text.ends_with("client = true\nallow = [\"10.89.1.0/24\", \"host tcp/22\"]\n"), "{text}");
    let shown = host.ok("peer show phone");
    assert!(shown.contains("may reach      10.89.1.0/24, host tcp/22\n"), "{shown}");
    host.ok("peer remove phone");

    assert_eq!(host.ok("peer remove vps"), "removed peer vps\nthe agent is not running; `meshd up` starts it\n");
    assert_eq!(fs::read_dir(host.path("peers")).unwrap().count(), 0);
    let unknown = ["meshd: peer \"vps\": no such peer; there are none yet", "try: meshd peer list"];
    host.fails("peer remove vps", 1, &unknown);
    host.fails("peer show vps", 1, &unknown);
}

#[test]
fn a_peer_that_does_not_fit_is_refused_before_anything_is_written() {
    let host = Host::home();
    host.ok(&format!("peer add vps --public-key {KEY} --address 10.88.0.1 --subnet 10.89.1.0/24"));
    host.fails(
        &format!("peer add evil --public-key {KEY} --address 10.88.0.1 --subnet 10.89.1.128/25 --subnet 10.89.2.0/24"),
        4,
        &[
            &format!("meshd: peer \"evil\": public_key {KEY} is that of peer \"vps\" already"),
            "meshd: peer \"evil\": addresses \"10.88.0.1\" is that of peer \"vps\" already",
            "meshd: peer \"evil\": subnets \"10.89.1.128/25\" overlaps 10.89.1.0/24 of peer \"vps\"",
            "meshd: peer \"evil\": subnets \"10.89.2.0/24\" overlaps 10.89.2.0/24 of bridge \"br0\"",
        ],
    );
    host.fails(
        &format!("peer add vps --public-key {KEY}"),
        4,
        &[
            "meshd: peer \"vps\": ETC/peers/vps.toml exists already",
            "try: edit the file and `meshd reload`, or meshd peer remove vps",
        ],
    );
    host.fails(
        &format!("peer add ../evil --public-key {KEY}"),
        4,
        &["meshd: peer name \"../evil\": expected 1 to 63 of a-z, 0-9 and -, with no - at either end"],
    );
    host.fails(
        "peer add evil --public-key abc",
        4,
        &["meshd: peer \"evil\": public_key \"abc\": not a key: expected 44 characters of base64"],
    );
    assert_eq!(fs::read_dir(host.path("peers")).unwrap().count(), 1);
}

#[test]
fn a_peer_that_carries_egress_is_not_removed() {
    let host = Host::home();
    host.ok(&format!("peer add vps --public-key {KEY} --subnet 10.89.1.0/24"));
    let text =
        fs::read_to_string(host.path("meshd.toml")).unwrap().replace("# egress = \"direct\"", "egress = \"vps\"");
    let line = 1 + text.lines().position(|line| line == "egress = \"vps\"").unwrap();
    fs::write(host.path("meshd.toml"), text).unwrap();
    host.fails(
        "peer remove vps",
        4,
        &[
            &format!(
                "meshd: ETC/meshd.toml:{line}: bridge \"br0\": egress \"vps\" names no peer; there are no peers yet"
            ),
            "try: take vps out of meshd.toml first",
        ],
    );
    assert!(host.path("peers/vps.toml").exists());
}

#[test]
fn keys_go_through_pipes_as_with_wg() {
    let host = Host::new();
    let pubkey = |text: &str| {
        let mut child =
            host.command("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        said(child.wait_with_output().unwrap())
    };
    // RFC 7748, section 6.1: Alice's pair.
    let alice = pubkey("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n");
    assert_eq!((alice.code, alice.out.as_str()), (0, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n"));
    let made = host.ok("genkey");
    assert_eq!((made.len(), pubkey(&made).code), (45, 0));
    assert_ne!(made, host.ok("genkey"));
    assert_eq!(host.ok("genpsk").len(), 45);
    let wrong = pubkey("hunter2");
    assert_eq!((wrong.code, wrong.out.as_str()), (1, ""));
    assert_eq!(
        wrong.err,
        "meshd: pubkey: standard input: not a key: expected 44 characters of base64\ntry: meshd genkey | meshd pubkey\n"
    );
}

#[test]
fn a_key_written_where_everyone_may_read_it_is_warned_about() {
    let host = Host::new();
    let warned = |mode: u32| {
        let path = host.folder.path().join("key");
        let file = fs::File::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let output = host.command("genkey").stdout(file).output().unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 45);
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(warned(0o600), "");
    assert_eq!(
        warned(0o644),
        "meshd: warning: writing to a file that everyone may read\ntry: umask 077, before the command\n"
    );
}

#[test]
fn usage_errors_are_one_line_and_a_remedy() {
    let host = Host::new();
    host.fails("peer ad", 2, &["meshd: usage: unrecognized subcommand 'ad'", "try: meshd peer add"]);
    host.fails(
        "init --nam x",
        2,
        &["meshd: usage: unexpected argument '--nam' found", "try: --name, or meshd init --help"],
    );
    host.fails("frobnicate", 2, &["meshd: usage: unrecognized subcommand 'frobnicate'", "try: meshd --help"]);
    host.fails(
        "peer add",
        2,
        &["meshd: usage: the following required arguments were not provided: <NAME>", "try: meshd peer add --help"],
    );
    for line in ["", "peer"] {
        let said = host.run(line);
        assert_eq!((said.code, said.out.as_str()), (2, ""));
        assert!(said.err.contains("Usage: meshd") && said.err.contains("Examples:"), "{}", said.err);
    }
}

#[test]
fn help_has_examples_and_names_only_what_exists() {
    let host = Host::new();
    assert_eq!(host.ok("--version"), format!("meshd {}\n", env!("CARGO_PKG_VERSION")));
    let help = host.ok("--help");
    for command in [
        "init",
        "up",
        "down",
        "reload",
        "status",
        "plan",
        "leaktest",
        "doctor",
        "bench",
        "guard",
        "peer",
        "publish",
        "attach",
        "detach",
        "genkey",
        "pubkey",
        "genpsk",
        "completions",
        "man",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
    for line in [
        "init",
        "up",
        "down",
        "reload",
        "status",
        "plan",
        "leaktest",
        "doctor",
        "bench",
        "guard",
        "guard arm",
        "guard disarm",
        "guard status",
        "peer",
        "peer add",
        "peer export",
        "peer list",
        "peer show",
        "peer remove",
        "peer rotate",
        "publish",
        "publish list",
        "publish add",
        "publish remove",
        "attach",
        "detach",
        "genkey",
        "import",
        "man",
    ] {
        let help = host.ok(&format!("{line} --help"));
        assert!(help.contains("Examples:\n  ") && help.contains("--dir <PATH>"), "{line}: {help}");
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{line}: {help}");
    }
}

#[test]
fn completions_and_manual_pages_are_whole() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(host.ok(&format!("completions {shell}")).contains("genkey"), "{shell}");
    }
    let main = host.ok("man");
    let sections = ["NAME", "SYNOPSIS", "OPTIONS", "SUBCOMMANDS", "EXAMPLES", "FILES", "ENVIRONMENT"];
    assert!(sections.iter().all(|heading| main.contains(&format!(".SH {heading}\n"))), "{main}");
    let folder = host.folder.path().join("man");
    host.ok(&format!("man --out {}", folder.display()));
    let mut pages: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort_by_key(|page| page.replace(".8", ""));
    let commands = "attach bench completions detach doctor down genkey genpsk guard guard-arm guard-disarm guard-status import init join leaktest man peer peer-add peer-approve peer-export peer-invites peer-list peer-remove peer-revoke-invite peer-rotate peer-show peer-trust plan pubkey publish publish-add publish-list publish-remove reload status up";
    let expected: Vec<String> =
        std::iter::once("meshd.8".into()).chain(commands.split(' ').map(|name| format!("meshd-{name}.8"))).collect();
    assert_eq!(pages, expected);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let host = Host::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = host.command("completions bash").stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn a_bridge_of_the_host_is_suggested_and_taken_by_name() {
    let host = Host::new();
    // In network and mount namespaces of its own, which go with the process: sysfs shows the namespace it was mounted in.
    let script = "mount -t sysfs sysfs /sys && ip link add brtest0 type bridge && ip link set brtest0 up && \
                  ip addr add 10.99.7.1/24 dev brtest0 && ip addr add fd99:7::1/64 dev brtest0 nodad && \
                  \"$0\" init --name home && rm -r \"$MESHD_DIR\" && \"$0\" init --name home --bridge brtest0";
    let line = host.command("");
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--mount", "sh", "-ec", script]);
    command.arg(line.get_program()).envs(line.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = said(command.output().unwrap());
    assert_eq!(said.code, 0, "{}", said.err);
    let (suggested, taken) = said.out.split_at(said.out.rfind("wrote meshd.toml").unwrap());
    assert!(suggested.contains("not part of the mesh yet:\n\n  brtest0  10.99.7.0/24, fd99:7::/64\n"), "{suggested}");
    assert!(taken.contains("  bridge      brtest0  10.99.7.0/24, fd99:7::/64\n"), "{taken}");
    assert!(taken.contains("--subnet 10.99.7.0/24"), "{taken}");
}

#[test]
fn a_preshared_key_file_is_named_as_the_shell_names_it() {
    let host = Host::home();
    for (folder, name) in [(host.path(""), "vps.psk"), (host.folder.path().to_owned(), "other.psk")] {
        let path = folder.join(name);
        fs::write(&path, host.ok("genpsk")).unwrap();
        let line = format!("peer add vps --public-key {KEY} --preshared-key-file {name}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = said(host.command(&line).current_dir(&folder).output().unwrap());
        assert_eq!(refused.code, 4);
        assert!(refused.err.contains("mode 0644 lets others at a key"), "{}", refused.err);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let added = said(host.command(&line).current_dir(&folder).output().unwrap());
        assert_eq!((added.code, added.err.as_str()), (0, ""));
        // Inside the folder the path is relative, so that the folder can be moved.
        let written = if name == "vps.psk" { name.to_owned() } else { path.display().to_string() };
        let text = fs::read_to_string(host.path("peers/vps.toml")).unwrap();
        assert!(text.contains(&format!("preshared_key_file = \"{written}\"\n")), "{text}");
        assert!(host.ok("peer show vps").contains("preshared key  yes\n"));
        host.ok("peer remove vps");
    }
}
