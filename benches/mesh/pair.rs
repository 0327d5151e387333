//! Two hosts on one cable, in network namespaces that `tests/lab/topology.sh` builds, with one program on both.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use meshd::key::{PrivateKey, PublicKey};
use nix::sched::{CloneFlags, setns};

use crate::program::{Kind, Program};
use crate::{Failure, root};

/// The tunnel's name on both hosts.
pub const INTERFACE: &str = "mesh0";
/// Its UDP port on both hosts.
pub const PORT: u16 = 51820;
/// In which the kernel counts processor time for userspace, on every architecture: USER_HZ.
const TICKS_A_SECOND: f64 = 100.0;

/// What the cable and the tunnel are like.
#[derive(Debug, PartialEq, Eq)]
pub struct Setup {
    /// The cable's MTU.
    pub cable: u32,
    /// The tunnel's MTU; below 1280 the tunnel carries no IPv6.
    pub tunnel: u32,
    /// Whether the tunnel's own datagrams are IPv6.
    pub outer6: bool,
    /// How many peers the VPS has besides home, each with [`ALLOWED_IPS`] allowed IPs.
    pub strangers: u16,
}

/// Allowed IPs of each stranger.
const ALLOWED_IPS: u16 = 10;

/// A peer as one host sees it.
pub struct Peer {
    pub name: String,
    pub key: PublicKey,
    pub endpoint: Option<String>,
    pub allowed_ips: Vec<String>,
    /// How many of them, at the front, are its own addresses and not networks behind it.
    pub own: usize,
}

/// One end of the cable.
pub struct Host {
    pub name: &'static str,
    pub dir: PathBuf,
    holder: String,
    agent: Option<Child>,
}

impl Host {
    /// A program that will run here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder, "-n", "-m", "--", program]).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, for at most 20 seconds; returns its standard output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Failure> {
        finish(self.command("timeout").args(["20", program]).args(arguments))
    }

    /// Where the program logs to.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// This host's key of the worked example.
    pub fn private_key(&self) -> Result<PrivateKey, Failure> {
        let path = root().join("peers").join(self.name).join("private.key");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        text.trim().parse().map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The address on the cable.
    pub fn outer(&self, six: bool) -> String {
        format!("{}{}", if six { "2001:db8:3::" } else { "192.0.2." }, self.number())
    }

    /// The address in the tunnel.
    pub fn inner(&self, six: bool) -> String {
        format!("{}{}", if six { "fd88::" } else { "10.88.0." }, self.number())
    }

    /// The addresses in the tunnel, with the length of their network.
    pub fn addresses(&self, setup: &Setup) -> Vec<String> {
        let mut addresses = vec![format!("{}/16", self.inner(false))];
        if setup.tunnel >= 1280 {
            addresses.push(format!("{}/64", self.inner(true)));
        }
        addresses
    }

    /// The other host, and on the VPS the strangers.
    pub fn peers(&self, setup: &Setup) -> Result<Vec<Peer>, Failure> {
        let name = if self.name == "vps" { "home" } else { "vps" };
        let other = Self { name, dir: PathBuf::new(), holder: String::new(), agent: None };
        let mut allowed_ips = vec![format!("{}/32", other.inner(false))];
        if setup.tunnel >= 1280 {
            allowed_ips.push(format!("{}/128", other.inner(true)));
        }
        let address = other.outer(setup.outer6);
        let address = if setup.outer6 { format!("[{address}]") } else { address };
        let mut peers = vec![Peer {
            name: name.to_owned(),
            key: other.private_key()?.public_key(),
            endpoint: Some(format!("{address}:{PORT}")),
            own: allowed_ips.len(),
            allowed_ips,
        }];
        if self.name == "vps" {
            peers.extend((0..setup.strangers).map(stranger));
        }
        Ok(peers)
    }

    /// Processor time that the program used so far, in seconds; `None` without one.
    pub fn cpu(&self) -> Result<Option<f64>, Failure> {
        let Some(agent) = &self.agent else { return Ok(None) };
        let stat = read(&format!("/proc/{}/stat", agent.id()))?;
        // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15, the state after the name is 3.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).ok_or("no processor time");
        Ok(Some((ticks(11)? + ticks(12)?) / TICKS_A_SECOND))
    }

    /// Resident memory of the program in MiB; `None` without one.
    pub fn memory(&self) -> Result<Option<f64>, Failure> {
        let Some(agent) = &self.agent else { return Ok(None) };
        let status = read(&format!("/proc/{}/status", agent.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no resident memory")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().map_err(|e| format!("VmRSS: {e}"))?;
        Ok(Some(kib / 1024.0))
    }

    /// What the program counted for its peers in wg(8), received and sent, in bytes.
    pub fn transfer(&self) -> Result<[f64; 2], Failure> {
        let text = self.run("wg", &["show", INTERFACE, "transfer"])?;
        let column = |at| text.lines().filter_map(|line| line.split_whitespace().nth(at)?.parse::<f64>().ok()).sum();
        Ok([column(1), column(2)])
    }

    /// Runs `f` on a thread in this host's network; sockets that it opens stay there.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
        let path = format!("/proc/{}/ns/net", self.holder);
        let net = File::open(&path).map_err(|e| format!("{path}: {e}"))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&net, CloneFlags::CLONE_NEWNET).map_err(|e| format!("setns: {e}"))?;
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn number(&self) -> u8 {
        if self.name == "vps" { 1 } else { 2 }
    }

    /// The last line that the program logged, without colours.
    fn last_words(&self) -> Option<String> {
        let log = fs::read(self.log()).ok()?;
        let log = String::from_utf8_lossy(&log).into_owned();
        let line = log.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(format!("{} logged last: {}", self.name, line.trim().replace('\u{1b}', "")))
    }
}

/// A peer that exists in the configuration only, until [`crate::strangers`] speaks for it.
fn stranger(number: u16) -> Peer {
    let [high, low] = number.to_be_bytes();
    let mut allowed_ips = vec![format!("{}/32", stranger_address(number))];
    allowed_ips.extend((1..ALLOWED_IPS).map(|network| format!("10.{}.{low}.{}/28", 100 + high, network * 16)));
    let key = stranger_key(number).public_key();
    Peer { name: format!("stranger{number}"), key, endpoint: None, allowed_ips, own: 1 }
}

/// A stranger's address in the tunnel.
pub fn stranger_address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 88, high + 1, low)
}

/// A stranger's key.
pub fn stranger_key(number: u16) -> PrivateKey {
    let mut secret = [7; 32];
    // Not at the ends, where X25519 clears bits.
    secret[8..10].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_bytes(secret)
}

/// The two hosts; dropping it ends what runs there and deletes them.
pub struct Pair {
    pub vps: Host,
    pub home: Host,
    /// Whether there is no tunnel, so that traffic goes to the cable's addresses.
    bare: bool,
    _namespaces: Namespaces,
    _dir: tempfile::TempDir,
}

impl Pair {
    /// Builds the hosts, starts the program on both and waits for the first answer through the tunnel.
    pub fn start(program: &Program, setup: &Setup) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("meshd-bench-").tempdir().map_err(|e| e.to_string())?;
        let namespaces = Namespaces::build(dir.path())?;
        let host = |name| {
            let dir = dir.path().join(name);
            let holder = read(&dir.join("holder").to_string_lossy())?.trim().to_owned();
            Ok::<_, Failure>(Host { name, dir, holder, agent: None })
        };
        let bare = program.kind == Kind::Bare;
        let (vps, home) = (host("vps")?, host("home")?);
        let mut pair = Self { vps, home, bare, _namespaces: namespaces, _dir: dir };
        for host in [&mut pair.vps, &mut pair.home] {
            host.run("ip", &["link", "set", "eth0", "mtu", &setup.cable.to_string()])?;
        }
        let started = pair.start_agents(program, setup);
        started.map_err(|failure| pair.explain(failure))?;
        Ok(pair)
    }

    fn start_agents(&mut self, program: &Program, setup: &Setup) -> Result<(), Failure> {
        for host in [&mut self.vps, &mut self.home] {
            host.agent = program.start(host, setup)?;
        }
        for six in [false, true].into_iter().take(1 + usize::from(setup.tunnel >= 1280)) {
            let target = self.target(six);
            self.home
                .run("ping", &["-c", "1", "-W", "5", "-q", &target])
                .map_err(|_| format!("{target} does not answer"))?;
        }
        // Agents agree on express keys once some data has flowed, and within a second.
        self.home.run("ping", &["-c", "100", "-i", "0.01", "-s", "1000", "-q", &self.target(false)])?;
        Ok(())
    }

    /// Where home sends its traffic.
    pub fn target(&self, six: bool) -> String {
        if self.bare { self.vps.outer(six) } else { self.vps.inner(six) }
    }

    /// Adds what the program logged to a failure.
    pub fn explain(&self, failure: Failure) -> Failure {
        let words = [&self.vps, &self.home].into_iter().filter_map(Host::last_words);
        std::iter::once(failure).chain(words).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for host in [&mut self.vps, &mut self.home] {
            if let Some(agent) = &mut host.agent {
                let _ = agent.kill();
                let _ = agent.wait();
            }
        }
    }
}

struct Namespaces {
    id: String,
}

impl Namespaces {
    fn build(dir: &Path) -> Result<Self, Failure> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-b{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        finish(Self::script().args(["pair", &id]).arg(dir))?;
        Ok(Self { id })
    }

    fn script() -> Command {
        Command::new(root().join("tests/lab/topology.sh"))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _ = finish(Self::script().args(["down", &self.id]));
    }
}

/// Runs a command to its end; returns its standard output, or what it complained about.
fn finish(command: &mut Command) -> Result<String, Failure> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}: {}", arguments.join(" "), output.status, complaint.trim()))
}

fn read(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))
}
