//! Files of wg-quick on the command line: the real binary, no agent, no root.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const PHONE: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const SECRET: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

/// A host's folders, in a place of their own.
struct Host(tempfile::TempDir);

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Host {
    /// vps of the worked example, by `meshd init`, with home as a peer.
    fn vps() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.ok("init --name vps --endpoint 203.0.113.10:51820 --address 10.88.0.1/24 --address fd88::1/64 \
                 --bridge br0=10.89.1.0/24,fd89:1::/64");
        host.ok(&format!(
            "peer add home --public-key {KEY} --address 10.88.0.2 --address fd88::2 --subnet 10.89.2.0/24 \
             --subnet 192.168.1.0/24"
        ));
        let home = host.read("peers/home.toml");
        fs::write(host.path("peers/home.toml"), format!("{home}lans = [\"192.168.1.0/24\"]\n")).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("etc").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A file of the test's own, in the folder where the commands run.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn run_with(&self, line: &str, input: &str) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshd"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        for (name, folder) in [("MESHD_DIR", "etc"), ("MESHD_RUN_DIR", "run"), ("MESHD_STATE_DIR", "state")] {
            command.env(name, self.0.path().join(folder));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may have read enough.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn run(&self, line: &str) -> Said {
        self.run_with(line, "")
    }

    #[track_caller]
    fn ok(&self, line: &str) -> Said {
        let said = self.run(line);
        assert_eq!(said.code, 0, "meshd {line}: {}", said.err);
        said
    }

    /// Fails with this code and these words, and changes no file.
    #[track_caller]
    fn refuses(&self, line: &str, code: i32, words: &str) {
        let before = self.files();
        let said = self.run(line);
        assert!(said.code == code && said.err.contains(words), "meshd {line}: {} {}", said.code, said.err);
        assert!(!said.err.chars().any(|c| c.is_control() && c != '\n'), "{:?}", said.err);
        assert_eq!(said.out, "", "meshd {line}");
        assert_eq!(self.files(), before, "meshd {line}");
    }

    /// Every file with its text.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut folders = vec![self.0.path().to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push((path.clone(), fs::read(path).unwrap())) }
            }
        }
        files.sort();
        files
    }
}

fn value<'a>(conf: &'a str, key: &str) -> &'a str {
    let mut values = conf.lines().filter_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    values.next().unwrap_or_else(|| panic!("no {key} in {conf}")).trim()
}

/// What a camera reads in half blocks.
fn decoded(text: &str) -> String {
    let lines: Vec<Vec<char>> = text
        .lines()
        .map(|line| line.strip_prefix("\u{1b}[38;5;16;48;5;231m").unwrap().strip_suffix("\u{1b}[0m").unwrap())
        .map(|line| line.chars().collect())
        .collect();
    assert!(lines.iter().all(|line| line.len() == lines[0].len() && line.len() <= 80), "{text}");
    let side = lines[0].len();
    let mut picture = rqrr::PreparedImage::prepare_from_greyscale(side * 3, side * 3, |x, y| {
        let (half, block) = (y / 3 % 2, lines[y / 6][x / 3]);
        if block == '█' || block == ['▀', '▄'][half] { 0 } else { 255 }
    });
    picture.detect_grids()[0].decode().unwrap().1
}

#[test]
fn a_client_is_a_file_and_a_few_words() {
    let host = Host::vps();
    let said = host.ok("peer add phone --client --dns 10.89.1.53,1.1.1.1");
    let conf = &said.out;
    assert!(conf.starts_with("[Interface]\nPrivateKey = ") && conf.ends_with("PersistentKeepalive = 25\n"), "{conf}");
    assert_eq!(value(conf, "Address"), "10.88.0.3/32, fd88::3/128");
    assert_eq!(value(conf, "DNS"), "10.89.1.53, 1.1.1.1, mesh");
    assert_eq!(value(conf, "Endpoint"), "203.0.113.10:51820");
    let allowed = "10.88.0.1/32, 10.89.1.0/24, 10.89.2.0/24, fd88::1/128, fd89:1::/64";
    assert_eq!(value(conf, "AllowedIPs"), allowed);
    assert!(said.err.contains("added client phone: 10.88.0.3, fd88::3\n"), "{}", said.err);

    let file = host.read("peers/phone.toml");
    assert!(file.contains("client = true\nallow = [\"10.89.1.0/24\", \"fd89:1::/64\", \"10.89.2.0/24\"]\n"), "{file}");
    assert_eq!(value(&file, "preshared_key").trim_matches('"'), value(conf, "PresharedKey"));
    assert_eq!(fs::metadata(host.path("peers/phone.toml")).unwrap().permissions().mode() & 0o7777, 0o600);
    let private = value(conf, "PrivateKey");
    assert_eq!(host.run_with("pubkey", private).out.trim(), value(&file, "public_key").trim_matches('"'));
    let holds = |(_, text): &(PathBuf, Vec<u8>)| String::from_utf8_lossy(text).contains(private);
    assert!(!host.files().iter().any(holds), "the private key is on disk");
    host.refuses("peer add phone --client", 4, "exists already");
}

#[test]
fn a_picture_says_what_the_file_says() {
    let host = Host::vps();
    let said =
        host.ok("peer add phone --client --full-tunnel --lan home --dns 10.88.0.1 --qr --out a.conf --png a.png");
    let folder = host.0.path();
    let conf = fs::read_to_string(folder.join("a.conf")).unwrap();
    let compact = conf.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let compact: String = compact.map(|line| line.replacen(" = ", "=", 1).replace(", ", ",") + "\n").collect();
    assert_eq!(decoded(&said.out), compact);
    for name in ["a.conf", "a.png"] {
        assert_eq!(fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o7777, 0o600, "{name}");
    }
    assert_eq!(value(&conf, "AllowedIPs"), "0.0.0.0/0, ::/0");
    assert!(host.read("meshd.toml").ends_with("[exit]\npeers = [\"phone\"]\n"));
    let file = host.read("peers/phone.toml");
    assert!(file.contains("\"192.168.1.0/24\", \"host udp/53\", \"host tcp/53\"]"), "{file}");
    host.refuses("peer add tablet --client --out a.conf", 4, "a.conf: exists already");
    host.refuses("peer add tablet --client --full-tunnel --out b.conf --png a.png", 4, "a.png: exists already");
}

#[test]
fn a_device_may_have_made_its_own_key() {
    let host = Host::vps();
    let said = host.ok(&format!("peer add phone --client --public-key {PHONE} --address 10.88.0.9 --keepalive 0"));
    assert!(said.out.contains("[Interface]\n# PrivateKey = <the private key goes here>\nAddress = 10.88.0.9/32\n"));
    assert!(!said.out.contains("Keepalive") && host.read("peers/phone.toml").contains(PHONE));
    // By hand, with all that there is to say.
    host.ok("peer remove phone");
    let said =
        host.ok(&format!("peer add phone --client --public-key {PHONE} --address 10.88.0.9 --allow 10.89.1.0/24"));
    assert!(said.out.starts_with("added peer phone"), "{}", said.out);
}

#[test]
fn what_a_client_cannot_have_is_refused() {
    let host = Host::vps();
    for (rest, code, words) in [
        ("--lan hom", 4, "--lan \"hom\": no such host; hosts with a LAN: home"),
        ("--lan vps", 4, "has no LAN here; that would be a [[lan]] in meshd.toml"),
        ("--address 10.99.0.1", 4, "outside the mesh network"),
        ("--address 10.88.0.2", 4, "is that of peer \"home\" already"),
        ("--public-key AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 4, "low-order"),
        (&format!("--public-key {KEY}"), 4, "is that of peer \"home\" already"),
        ("--dns resolver", 2, "invalid value 'resolver'"),
        ("--endpoint 1.2.3.4:5", 2, "--endpoint does not go with --client"),
        ("--subnet 10.99.0.0/24", 2, "--subnet does not go with --client"),
        ("--from x.conf --qr", 2, "cannot be used with"),
        ("--out no/such/folder", 1, "No such file"),
    ] {
        host.refuses(&format!("peer add phone --client {rest}"), code, words);
    }
    host.refuses("peer add ../x --client", 4, "peer name \"../x\"");
    host.refuses(&format!("peer add x --qr --public-key {PHONE}"), 2, "--client");
    let text = host.read("meshd.toml").replace("endpoint = ", "# endpoint = ");
    fs::write(host.path("meshd.toml"), text).unwrap();
    host.refuses("peer add phone --client", 4, "this host has no endpoint");
    // Every address of the mesh network is taken.
    let text = host.read("meshd.toml").replace("# endpoint = ", "endpoint = ").replace("10.88.0.1/24", "10.88.0.1/30");
    fs::write(host.path("meshd.toml"), text).unwrap();
    host.refuses("peer add phone --client", 4, "the mesh network 10.88.0.0/30 has no free address");
}

#[test]
fn a_file_that_nobody_got_leaves_no_peer() {
    let host = Host::vps();
    let before = host.files();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshd"));
    command.args(["peer", "add", "phone", "--client", "--full-tunnel"]);
    for (name, folder) in [("MESHD_DIR", "etc"), ("MESHD_RUN_DIR", "run"), ("MESHD_STATE_DIR", "state")] {
        command.env(name, host.0.path().join(folder));
    }
    let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("standard output: No space left"), "{said}");
    assert_eq!(host.files(), before);
}

#[test]
fn a_peer_comes_out_of_its_own_file_or_out_of_one_that_names_it() {
    let host = Host::vps();
    let public = host.ok("peer export").out;
    let own = value(&host.ok("peer export home").out, "PublicKey").to_owned();
    assert!(public.contains("# home\n") && public.contains("# PrivateKey = <"), "{public}");
    host.write(
        "own.conf",
        &format!(
            "[Interface]\nPrivateKey = {SECRET}\nAddress = 10.88.0.7/24, 10.99.0.7/24\n[Peer]\nPublicKey = {KEY}\n\
             AllowedIPs = 10.88.0.2/32\n[Peer]\nPublicKey = {own}\nPresharedKey = {SECRET}\nAllowedIPs = 0.0.0.0/0\n\
             Endpoint = vps.example.net:51820\n"
        ),
    );
    let said = host.ok("peer add lab --from own.conf --subnet 10.89.7.0/24");
    let file = host.read("peers/lab.toml");
    let key = host.run_with("pubkey", SECRET).out;
    assert_eq!(
        file,
        format!(
            "public_key = \"{}\"\npreshared_key = \"{SECRET}\"\naddresses = [\"10.88.0.7\"]\nsubnets = [\"10.89.7.0/24\"]\n",
            key.trim()
        )
    );
    assert!(said.out.contains("address 10.99.0.7 is outside") && !said.out.contains(SECRET), "{}", said.out);
    assert!(said.out.contains("it calls this host at vps.example.net:51820, and endpoint in meshd.toml is"));

    let third = format!(
        "[Peer]\n# new\nPublicKey = {PHONE}\nEndpoint = [2001:db8::7]:51820\nPersistentKeepalive = 20\n\
         AllowedIPs = 10.88.0.8, 10.89.8.0/24, 10.88.0.0/24, ::/0\n"
    );
    let said = host.run_with("peer add new --from -", &third);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(
        host.read("peers/new.toml"),
        format!(
            "public_key = \"{PHONE}\"\nendpoint = \"[2001:db8::7]:51820\"\naddresses = [\"10.88.0.8\"]\n\
             subnets = [\"10.89.8.0/24\"]\npersistent_keepalive = 20\n"
        )
    );
    assert!(said.out.contains("write egress = \"new\" in a [[bridge]]"), "{}", said.out);
    assert!(said.out.contains("10.88.0.0/24 overlaps the mesh network"), "{}", said.out);
}

#[test]
fn hostile_files_are_refused_with_nothing_written() {
    let host = Host::vps();
    let own = value(&host.ok("peer export home").out, "PublicKey").to_owned();
    let peer = |rest: &str| format!("[Peer]\nPublicKey = {PHONE}\n{rest}\n");
    for (text, words) in [
        (format!("[Peer]\nPublicKey = {own}\n"), "has no PrivateKey"),
        (
            format!("[Interface]\nPrivateKey = {SECRET}\n[Peer]\nPublicKey = {KEY}\n"),
            "is that of peer \"home\" already",
        ),
        ("[Peer]\nPublicKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n".into(), "low-order"),
        (peer("Endpoint = 10.89.1.5:51820"), "lies in 10.89.1.0/24 of bridge \"br0\""),
        (peer("Endpoint = 10.88.0.9:51820"), "lies in 10.88.0.0/24 of the mesh itself"),
        (peer("AllowedIPs = 10.89.2.128/25"), "overlaps 10.89.2.0/24 of peer \"home\""),
        (peer("AllowedIPs = 10.89.0.0/16"), "overlaps 10.89.1.0/24 of bridge \"br0\""),
        (peer("AllowedIPs = 10.88.0.1/32"), "is that of this host already"),
        (peer("AllowedIPs = 127.0.0.0/8"), "is each host's own loopback"),
        (peer("AllowedIPs = fe80::/10"), "is link-local"),
        (peer("\u{1b}[2JColour = \u{1b}[31mred"), "unknown key \"\\u{1b}[2JColour\""),
        (peer("Endpoint = \u{1b}]0;x\u{7}:1"), "Endpoint \"\\u{1b}]0;x\\u{7}:1\""),
        (format!("{}{}", peer(""), peer("").replace(PHONE, KEY)), "pick one with --public-key"),
        (String::new(), "no [Peer] in it"),
        ("#".repeat(10 << 20), "larger than 1024 KiB"),
    ] {
        host.write("hostile.conf", &text);
        host.refuses("peer add x --from hostile.conf", 4, words);
    }
    host.write("sound.conf", &peer(""));
    host.refuses("peer add ../x --from sound.conf", 4, "peer name \"../x\"");
    host.refuses("peer add x --from no.conf", 1, "no.conf: No such file");
    host.refuses(&format!("peer add x --from sound.conf --public-key {KEY}"), 4, "no [Peer] has the key");
}

#[test]
fn an_export_is_a_file_for_the_other_side() {
    let host = Host::vps();
    let text = host.ok("peer export home").out;
    assert_eq!(value(&text, "Address"), "10.88.0.2/24, fd88::2/64");
    assert_eq!(value(&text, "AllowedIPs"), "10.88.0.1/32, fd88::1/128, 10.89.1.0/24, fd89:1::/64");
    host.ok("peer export --private-key --out vps.conf");
    let path = host.0.path().join("vps.conf");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let exported = fs::read_to_string(&path).unwrap();
    assert_eq!(value(&exported, "PrivateKey"), host.read("private.key").trim());
    host.refuses("peer export --out vps.conf", 4, "exists already");
    host.refuses("peer export phone", 1, "no such peer");

    // There and back again.
    let other = Host(tempfile::tempdir().unwrap());
    other.write("vps.conf", &exported);
    let look = other.ok("import vps.conf --name vps --bridge br0=10.89.1.0/24,fd89:1::/64");
    assert!(!other.path("").exists() && look.out.contains("with --yes"), "{}", look.out);
    assert!(
        look.out.contains("+++ ")
            && look.out.contains("+name = \"vps\"\n")
            && !look.out.contains(host.read("private.key").trim())
    );
    other.ok("import vps.conf --name vps --bridge br0=10.89.1.0/24,fd89:1::/64 --yes");
    assert_eq!(other.read("private.key"), host.read("private.key"));
    let peer = |host: &Host| host.read("peers/home.toml").replace("lans = [\"192.168.1.0/24\"]\n", "");
    assert_eq!(peer(&other), peer(&host));
    assert_eq!(other.ok("peer list").out, host.ok("peer list").out);
    other.refuses("import vps.conf --name vps --yes", 4, "exists already; import overwrites nothing");
}

#[test]
fn an_import_says_what_it_leaves_and_names_peers_soundly() {
    let host = Host(tempfile::tempdir().unwrap());
    host.write(
        "wg0.conf",
        &format!(
            "[Interface]\nPrivateKey = {SECRET}\nAddress = 10.88.0.5/32\nListenPort = 51999\nDNS = 10.88.0.1, \u{1b}[2J\nTable = off\n\
             FwMark = 7\nSaveConfig = true\nPostUp = iptables -A FORWARD -i wg0 -j ACCEPT; iptables -t nat -A POSTROUTING -o eth7 -j MASQUERADE\n\
             PostDown = iptables -t nat -F\n# ../../etc/shadow\n[Peer]\nPublicKey = {KEY}\nPresharedKey = {SECRET}\n\
             AllowedIPs = 10.88.0.0/24, 0.0.0.0/0\nEndpoint = vps.example.net:51820\n"
        ),
    );
    let said = host.ok("import wg0.conf --name home --bridge br0=10.89.2.0/24 --yes");
    for words in [
        "peers/peer1.toml\n",
        "AllowedIPs of everything at peer1: an egress of the bridges only",
        ": not run; [exit] in meshd.toml does it, once its # is gone\n",
        "PostDown = \"iptables -t nat -F\": not run\n",
        "DNS: this host's name servers stay as they are",
        "Table = \"off\"",
        "FwMark: ",
        "SaveConfig: ",
        "wg-quick down wg0\n",
    ] {
        assert!(said.out.contains(words), "{words}: {}", said.out);
    }
    assert!(!said.out.contains(SECRET) && !said.out.contains('\u{1b}'), "{}", said.out);
    let host_file = host.read("meshd.toml");
    for line in
        ["addresses = [\"10.88.0.5/32\"]", "egress = \"peer1\"", "# peers = [\"peer1\"]", "# interface = \"eth7\""]
    {
        assert!(host_file.contains(line), "{line}: {host_file}");
    }
    // The whole network of the star, but for this host.
    let peer = host.read("peers/peer1.toml");
    assert!(peer.contains("\"10.88.0.0/30\", \"10.88.0.4/32\", \"10.88.0.6/31\", \"10.88.0.8/29\""), "{peer}");
    assert_eq!(fs::metadata(host.path("private.key")).unwrap().permissions().mode() & 0o7777, 0o600);

    let other = Host(tempfile::tempdir().unwrap());
    for (text, words) in [
        ("[Interface]\nAddress = 10.88.0.5/32\n".to_owned(), "no PrivateKey"),
        (format!("[Interface]\nPrivateKey = {SECRET}\n"), "no Address"),
        (format!("[Interface]\nPrivateKey = {SECRET}\nAddress = 127.0.0.1/8\n"), "own loopback"),
        (
            format!(
                "[Interface]\nPrivateKey = {SECRET}\nAddress = 10.88.0.5/24\n[Peer]\nPublicKey = {}\n",
                host.run_with("pubkey", SECRET).out
            ),
            "is this host's own",
        ),
    ] {
        other.write("wg0.conf", &text);
        other.refuses("import wg0.conf --name home --yes", 4, words);
    }
    assert!(!other.path("").exists());
}
