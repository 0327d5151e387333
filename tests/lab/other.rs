//! WireGuard programs that others wrote, in the place of meshd on a host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use super::host::Host;
use super::{PORT, root, secs, wait_for};

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// Debian's package.
    WireguardGo,
    /// boringtun-cli 0.7.1, which scripts/test installs.
    Boringtun,
    /// gotatun-cli 0.10.2, likewise.
    Gotatun,
}

impl Other {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::WireguardGo, Self::Boringtun, Self::Gotatun];

    /// Runs it on `host` with that host's own key, as the peer of `remote`: `mesh0` with the host's mesh addresses, and
    /// routes to the remote bridge. `extra` is added to the peer's section of the configuration.
    pub fn start(self, host: &Host, remote: &Host, extra: &str) {
        let (own, peer) = (Place::of(host.name), Place::of(remote.name));
        let mut program = match self {
            Self::WireguardGo => {
                let mut command = host.command("wireguard-go");
                command.args(["-f", "mesh0"]).env("LOG_LEVEL", "verbose");
                command
            }
            Self::Boringtun | Self::Gotatun => {
                let mut command =
                    host.command(installed(if self == Self::Gotatun { "gotatun" } else { "boringtun-cli" }));
                command.args(["-f", "--disable-drop-privileges", "mesh0"]);
                command
            }
        };
        let log = fs::File::create(host.run_file("meshd.log")).expect("a log file");
        program.stdout(log.try_clone().expect("dup")).stderr(log).stdin(Stdio::null());
        // Killed with the namespace, like everything in it.
        drop(program.spawn().unwrap_or_else(|e| panic!("{self:?}: {e}")));
        wait_for(format!("{self:?} answers wg(8)"), secs(10), || {
            host.try_run("wg show mesh0").status.success().then_some(())
        });
        let conf = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n[Peer]\nPublicKey = {}\nAllowedIPs = {}\n{extra}\n",
            host.read("private.key").trim(),
            remote.public_key(),
            peer.allowed_ips,
        );
        let path = host.config("other.conf");
        fs::write(&path, conf).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        host.run(&format!(
            "wg setconf mesh0 {} && ip address add {}/24 dev mesh0 && ip address add {}/64 dev mesh0 nodad && \
             ip link set mesh0 mtu 1420 up && ip route add {} dev mesh0 && ip route add {} dev mesh0",
            path.display(),
            own.address,
            own.address6,
            peer.subnet,
            peer.subnet6,
        ));
    }
}

/// Where a host is in the worked example.
struct Place {
    address: &'static str,
    address6: &'static str,
    subnet: &'static str,
    subnet6: &'static str,
    allowed_ips: &'static str,
}

impl Place {
    fn of(host: &str) -> Self {
        match host {
            "vps" => Self {
                address: "10.88.0.1",
                address6: "fd88::1",
                subnet: "10.89.1.0/24",
                subnet6: "fd89:1::/64",
                allowed_ips: "10.88.0.1/32, fd88::1/128, 10.89.1.0/24, fd89:1::/64",
            },
            "home" => Self {
                address: "10.88.0.2",
                address6: "fd88::2",
                subnet: "10.89.2.0/24",
                subnet6: "fd89:2::/64",
                allowed_ips: "10.88.0.2/32, fd88::2/128, 10.89.2.0/24, fd89:2::/64",
            },
            // One that `Lab::add_host` adds, as number 100.
            "stock" => Self {
                address: "10.88.0.100",
                address6: "fd88::100",
                subnet: "10.89.100.0/24",
                subnet6: "fd89:100::/64",
                allowed_ips: "10.88.0.100/32, fd88::100/128",
            },
            other => panic!("no host {other}"),
        }
    }
}

/// A program that `scripts/test` installs.
pub fn installed(program: &str) -> PathBuf {
    let folder = std::env::var_os("MESHD_INTEROP_BIN").map_or_else(|| root().join("target/interop/bin"), PathBuf::from);
    let path = folder.join(program);
    assert!(path.exists(), "{} is missing: run scripts/test", path.display());
    path
}
