//! The programs that are compared, and how each is started on a host.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::pair::{Host, INTERFACE, PORT, Setup};
use crate::{Failure, root};

/// How a program is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No tunnel: the cable itself.
    Bare,
    /// `PATH -f INTERFACE`, then wg(8) and ip(8), as wg-quick does.
    WgQuick,
    /// `meshd up` on files.
    Meshd,
}

/// One of the compared programs.
#[derive(Debug, Clone)]
pub struct Program {
    pub name: String,
    pub kind: Kind,
    path: PathBuf,
    environment: Vec<(String, String)>,
    /// Of meshd: more lines of meshd.toml.
    settings: &'static str,
    /// The first line of `--version`.
    pub version: String,
}

impl Program {
    /// The names that need no path.
    pub const DEFAULT: [&str; 6] = ["bare", "wireguard-go", "gotatun", "boringtun", "ordinary", "meshd"];

    /// Reads `NAME` or `NAME=[VARIABLE=VALUE …] PATH`.
    pub fn parse(word: &str) -> Result<Self, Failure> {
        let installed = |variable: &str, default: &str| {
            std::env::var_os(variable).map_or_else(|| root().join(default), PathBuf::from)
        };
        let interop = |file| installed("MESHD_INTEROP_BIN", "target/interop/bin").join(file);
        let (kind, path) = match word {
            "bare" => (Kind::Bare, PathBuf::new()),
            "wireguard-go" => (Kind::WgQuick, PathBuf::from("wireguard-go")),
            "gotatun" => (Kind::WgQuick, interop("gotatun")),
            "boringtun" => (Kind::WgQuick, interop("boringtun-cli")),
            "meshd" | "ordinary" => (Kind::Meshd, installed("MESHD_RELEASE_BIN", "target/release/meshd")),
            _ => return Self::other(word),
        };
        let settings = if word == "ordinary" { "express = \"off\"\n" } else { "" };
        Ok(Self { name: word.to_owned(), kind, path, environment: Vec::new(), settings, version: String::new() })
    }

    /// The same, of a program that is known to be meshd.
    pub fn parse_meshd(word: &str) -> Result<Self, Failure> {
        Ok(Self { kind: Kind::Meshd, ..Self::other(word)? })
    }

    fn other(word: &str) -> Result<Self, Failure> {
        let known = Self::DEFAULT.join(", ");
        let (name, command) = word.split_once('=').ok_or_else(|| format!("expected {known} or NAME=PATH"))?;
        let mut words: Vec<_> = command.split_whitespace().collect();
        let path = words.pop().filter(|_| !name.is_empty()).ok_or("expected NAME=PATH")?;
        let path = fs::canonicalize(path).map_err(|e| format!("{path}: {e}"))?;
        let environment = words.into_iter().map(|word| {
            let (variable, value) = word.split_once('=').ok_or_else(|| format!("{word}: expected VARIABLE=VALUE"))?;
            Ok((variable.to_owned(), value.to_owned()))
        });
        let environment = environment.collect::<Result<_, Failure>>()?;
        let (kind, settings) = (Kind::WgQuick, "");
        Ok(Self { name: name.to_owned(), kind, path, environment, settings, version: String::new() })
    }

    /// Asks the program for its version, which also tells a meshd from others.
    pub fn identified(mut self) -> Self {
        if self.kind != Kind::Bare {
            let output = Command::new("timeout").arg("2").arg(&self.path).arg("--version").output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            text.lines().next().unwrap_or_default().trim().clone_into(&mut self.version);
            if self.version.starts_with("meshd ") {
                self.kind = Kind::Meshd;
            }
        }
        self
    }

    /// Starts it on a host and waits until wg(8) is answered; `None` for [`Kind::Bare`].
    pub fn start(&self, host: &Host, setup: &Setup) -> Result<Option<Child>, Failure> {
        let mut command = host.command(&self.path.to_string_lossy());
        match self.kind {
            Kind::Bare => return Ok(None),
            Kind::Meshd => {
                write_meshd(host, setup, self.settings)?;
                let folders = [("MESHD_DIR", "etc"), ("MESHD_RUN_DIR", "run"), ("MESHD_STATE_DIR", "state")];
                command.arg("up").envs(folders.map(|(variable, folder)| (variable, host.dir.join(folder))));
                command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
            }
            // boringtun and gotatun would drop privileges to a user whom a container does not have.
            Kind::WgQuick => _ = command.args(["-f", INTERFACE]).env("WG_SUDO", "true"),
        }
        command.envs(self.environment.iter().map(|(variable, value)| (variable, value)));
        let log = File::create(host.log()).map_err(|e| format!("{}: {e}", host.log().display()))?;
        command.stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", self.path.display()))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while host.run("wg", &["show", INTERFACE]).is_err() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("it ended: {status}"));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                return Err("it does not answer wg(8)".to_owned());
            }
            sleep(Duration::from_millis(20));
        }
        if self.kind == Kind::WgQuick {
            set_up(host, setup)?;
        }
        Ok(Some(child))
    }
}

/// The files of meshd for this host; `settings` are lines of meshd.toml.
fn write_meshd(host: &Host, setup: &Setup, settings: &str) -> Result<(), Failure> {
    let etc = host.dir.join("etc");
    let write = |file: &str, text: &str| {
        let path = etc.join(file);
        let write = || {
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?
                .write_all(text.as_bytes())
        };
        write().map_err(|e| format!("{}: {e}", path.display()))
    };
    let list = |list: &[String]| list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ");
    write("private.key", &host.private_key()?.expose_base64())?;
    let addresses = list(&host.addresses(setup));
    let host_settings = format!("name = \"{}\"\naddresses = [{addresses}]\nmtu = {}\n", host.name, setup.tunnel);
    write("meshd.toml", &(host_settings + settings))?;
    for peer in host.peers(setup)? {
        let (addresses, subnets) = peer.allowed_ips.split_at(peer.own);
        let addresses = list(addresses).replace("/32", "").replace("/128", "");
        let endpoint = peer.endpoint.map(|endpoint| format!("endpoint = \"{endpoint}\"\n")).unwrap_or_default();
        let text = format!(
            "public_key = \"{}\"\naddresses = [{addresses}]\nsubnets = [{}]\n{endpoint}",
            peer.key,
            list(subnets)
        );
        write(&format!("peers/{}.toml", peer.name), &text)?;
    }
    Ok(())
}

/// What wg-quick does once the program runs.
fn set_up(host: &Host, setup: &Setup) -> Result<(), Failure> {
    let key = host.private_key()?.expose_base64();
    let interface = format!("[Interface]\nPrivateKey = {key}\nListenPort = {PORT}\n");
    let peers = host.peers(setup)?.into_iter().map(|peer| {
        let endpoint = peer.endpoint.map(|endpoint| format!("Endpoint = {endpoint}\n")).unwrap_or_default();
        format!("[Peer]\nPublicKey = {}\nAllowedIPs = {}\n{endpoint}", peer.key, peer.allowed_ips.join(", "))
    });
    let text: String = std::iter::once(interface).chain(peers).collect();
    let path = host.dir.join("wg.conf");
    let write = || {
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
    };
    write().map_err(|e| format!("{}: {e}", path.display()))?;
    host.run("wg", &["setconf", INTERFACE, &path.to_string_lossy()])?;
    for address in host.addresses(setup) {
        let optimistic: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        host.run("ip", &[&["address", "add", &address, "dev", INTERFACE], optimistic].concat())?;
    }
    host.run("ip", &["link", "set", INTERFACE, "mtu", &setup.tunnel.to_string(), "up"]).map(drop)
}
