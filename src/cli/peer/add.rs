//! `meshd peer add NAME`: each way has its file; here are the arguments, and the way by hand, `--public-key`.

use std::path::{Path, PathBuf, absolute};

use clap::builder::ArgPredicate;

use super::super::show::{add_command, toml_list, toml_string};
use super::super::{Dirs, Failure, print};
use super::{Reload, client, from, invite, outcome, ssh};
use crate::config::{self, Config, SourceFile, quote, value};
use crate::store::{self, Layout};

/// A host without an endpoint is behind NAT, whose mapping dies within minutes of silence; 25 s is what wg(8) advises.
pub(super) const KEEPALIVE_BEHIND_NAT: u16 = 25;

/// Arguments of `meshd peer add`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Alone it invites: it prints a token, one line, with which one host joins by
`meshd join -`. The host gets a free address, a preshared key, all the hosts
that this one knows, and may have the --subnet and --lan networks and no
others. Nothing of the token is kept here; meshd peer invites shows what is
open, meshd peer revoke-invite takes it back.

--ssh does both ends: it runs `meshd join` on the new host and hands it the
token. When this host has no endpoint, that host invites and this one joins,
with its own bridges; --egress is then the way out of this host.

--client makes a device's keys and prints the configuration for its app, the
stock WireGuard one: as text, as a file, as a picture for its camera. It is
shown once; the private key is kept nowhere. The device reaches the container
bridges of all hosts, the LANs that --lan names, with --full-tunnel the
internet as this host, and nothing else; --allow gives it another list.

--public-key with --allow, or without --client, writes what the flags say.
When this host has no endpoint of its own and the peer has one, a keepalive of
25 seconds keeps the way back open; --keepalive 0 does without.

The whole configuration is checked with the new peer in it before anything is
written; when the running agent refuses it, everything is as it was.

Examples:
  meshd peer add home --subnet 10.89.2.0/24 --subnet fd89:2::/64 --egress
  meshd peer add home --ssh root@home.example.net --subnet 10.89.2.0/24
  meshd peer add --ssh root@vps.example.net --egress
  meshd peer add lab --lan 192.168.7.0/24 --expires 1h --approve
  meshd peer add phone --client --full-tunnel --qr
  meshd peer add laptop --client --lan home --out laptop.conf
  meshd peer add laptop --client --public-key KEY > laptop.conf
  meshd peer add vps --public-key KEY --endpoint vps.example.net:51820 \\
      --address 10.88.0.1 --address fd88::1 --subnet 10.89.1.0/24
  meshd peer add phone --public-key KEY --address 10.88.0.9 \\
      --client --allow 10.89.1.0/24 --allow '10.89.2.10 tcp/443'
  meshd peer add home --from home.conf
  meshd peer add vps --public-key KEY --subnet 10.89.1.0/24 --dry-run")]
pub struct Args {
    /// The peer's name; not needed with --ssh where the other host invites
    #[arg(
        required = false,
        required_unless_present = "ssh",
        default_value_if("ssh", ArgPredicate::IsPresent, ""),
        hide_default_value = true
    )]
    pub(super) name: String,
    /// What `meshd pubkey` prints there
    #[arg(long, value_name = "KEY")]
    pub(super) public_key: Option<String>,
    /// Where to reach it; leave it out when it is behind NAT
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) endpoint: Option<String>,
    /// Its address inside the mesh; repeat for IPv6 [default with --client: free ones]
    #[arg(long = "address", value_name = "ADDRESS")]
    pub(super) addresses: Vec<String>,
    /// A bridge or LAN behind it; repeat for more
    #[arg(long = "subnet", value_name = "CIDR")]
    pub(super) subnets: Vec<String>,
    /// A device such as a phone, which reaches only what it is given
    #[arg(long)]
    pub(super) client: bool,
    /// What it may reach at and through this host, and nothing else; repeat for more: a network, an address, `mesh` or
    /// `host`, and after a space the ports when not all, such as '10.89.2.10 tcp/443'
    #[arg(long = "allow", value_name = "WHAT")]
    pub(super) allow: Vec<String>,
    /// A file with the preshared key, which stays where it is
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub(super) preshared_key_file: Option<PathBuf>,
    /// Seconds between keepalives; 0 is off
    #[arg(long, value_name = "SECONDS")]
    pub(super) keepalive: Option<u16>,
    /// Check, print the file, and write nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) device: client::Flags,
    /// Take the peer out of a file of wg-quick, `-` for standard input: the one whose file it is, or with --public-key one
    /// that it names
    #[arg(long, value_name = "FILE", conflicts_with_all = client::FLAGS)]
    pub(super) from: Option<PathBuf>,
    #[command(flatten)]
    pub(super) invite: invite::Flags,
    /// Invite it, and run `meshd join` there over ssh; when this host has no endpoint, the other way round: invite this
    /// host there, and join here
    #[arg(long, value_name = "[USER@]HOST", conflicts_with_all = ["public_key", "client", "from"])]
    pub(super) ssh: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs, reload: impl Reload + Copy) -> Result<(), Failure> {
    if let (Some(target), true) = (&args.ssh, args.name.is_empty()) {
        return ssh::run(&args, target, dirs, reload);
    }
    // Before it becomes part of a path.
    value::name(&args.name).map_err(|why| Failure::new(4, format!("peer name {}: {why}", quote(&args.name))))?;
    if let Some(target) = &args.ssh {
        return ssh::run(&args, target, dirs, reload);
    }
    if let Some(file) = args.from.clone() {
        return from::run(&args, &file, dirs, reload);
    }
    if args.public_key.is_none() && !args.client {
        return invite::run(&args, dirs, reload);
    }
    if !args.client && !args.device.lans.is_empty() {
        let failure = Failure::new(2, "usage: --lan does not go with --public-key: write --subnet");
        return Err(failure.try_this("meshd peer add --help"));
    }
    match args.public_key.clone() {
        Some(key) if !args.client || (!args.allow.is_empty() && !args.device.any()) => {
            by_key(&args, &key, dirs, reload)
        }
        _ => client::run(&args, dirs, reload),
    }
}

/// The name is free.
pub(super) fn unknown_yet(name: &str, config: &Config, dirs: &Dirs) -> Result<(), Failure> {
    let path = Layout(&dirs.config).peer(name);
    if config.peer(name).is_none() && path.symlink_metadata().is_err() {
        return Ok(());
    }
    let error = format!("peer {}: {} exists already", quote(name), path.display());
    let remedy = format!("edit the file and `meshd reload`, or meshd peer remove {name}");
    Err(Failure::new(4, error).try_this(remedy))
}

/// What the check says about a file that is not on disk yet: its words name the flag, and its lines nothing.
pub(super) fn said_of_flags(error: store::Error, name: &str, dirs: &Dirs) -> Failure {
    let path = config::printable(&Layout(&dirs.config).peer(name).to_string_lossy());
    let store::Error::Invalid(problems) = error else { return error.into() };
    let said = |problem: &config::Problem| {
        let from_flags = problem.path == path;
        if from_flags { format!("peer {}: {}", quote(name), problem.message) } else { problem.to_string() }
    };
    Failure { code: 4, errors: problems.iter().map(said).collect(), remedy: None }
}

fn by_key(args: &Args, key: &str, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let _lock = store::lock(&dirs.config)?;
    let before = store::load(&dirs.config)?;
    unknown_yet(&args.name, &before, dirs)?;
    let path = Layout(&dirs.config).peer(&args.name);

    let text = peer_toml(args, key, &before, &dirs.config)?;
    check(&args.name, &text, dirs)?;
    if args.dry_run {
        return print(&format!("# {}\n{text}", path.display()));
    }

    store::create_dir(&Layout(&dirs.config).peers())?;
    store::create(&path, &text, 0o600)?;
    match reload(dirs) {
        Ok(reloaded) => {
            let mut said = format!("added peer {}: {}\n", args.name, path.display());
            said.push_str(&outcome(reloaded.as_ref()));
            if args.endpoint.is_none() {
                said.push_str(&format!("without --endpoint, {} has to reach this host first\n", args.name));
            }
            said.push_str(&format!("\nOn {}, unless this host is known there:\n\n{}", args.name, add_command(&before)));
            print(&said)
        }
        Err(mut failure) => {
            store::set_aside(&path)?.delete()?;
            failure.errors.push(format!("peer {}: not added, as the running agent refused", args.name));
            Err(failure)
        }
    }
}

fn peer_toml(args: &Args, key: &str, config: &Config, dir: &Path) -> Result<String, Failure> {
    let preshared_key_file = args.preshared_key_file.as_ref().map(|path| from_folder(path, dir)).transpose()?;
    let behind_nat = config.host.endpoint.is_none() && args.endpoint.is_some();
    let keepalive = args.keepalive.or(behind_nat.then_some(KEEPALIVE_BEHIND_NAT));
    let lines = [
        Some(format!("public_key = {}", toml_string(key))),
        preshared_key_file.map(|path| format!("preshared_key_file = {}", toml_string(&path))),
        args.endpoint.as_ref().map(|endpoint| format!("endpoint = {}", toml_string(endpoint))),
        (!args.addresses.is_empty()).then(|| format!("addresses = {}", toml_list(&args.addresses))),
        (!args.subnets.is_empty()).then(|| format!("subnets = {}", toml_list(&args.subnets))),
        keepalive.map(|seconds| format!("persistent_keepalive = {seconds}")),
        args.client.then(|| "client = true".to_owned()),
        (!args.allow.is_empty()).then(|| format!("allow = {}", toml_list(&args.allow))),
    ];
    Ok(lines.into_iter().flatten().map(|line| line + "\n").collect())
}

/// A path as the shell has it, as the peer's file has it: from the configuration folder when it is inside, else from the root.
fn from_folder(path: &Path, dir: &Path) -> Result<String, Failure> {
    let failed = |error| Failure::new(1, format!("{}: {error}", path.display()));
    let (path, dir) = (absolute(path).map_err(failed)?, absolute(dir).map_err(failed)?);
    let shown = path.strip_prefix(&dir).unwrap_or(&path);
    shown.to_str().map(str::to_owned).ok_or_else(|| Failure::new(4, format!("{}: not UTF-8", path.display())))
}

/// The configuration as it would be.
fn check(name: &str, text: &str, dirs: &Dirs) -> Result<(), Failure> {
    let path = config::printable(&Layout(&dirs.config).peer(name).to_string_lossy());
    let new = SourceFile { path, text: text.into() };
    let files = store::read_with(&dirs.config, (name.to_owned(), new))?;
    let checked = config::parse(&files).map(|_| ());
    checked.map_err(|problems| said_of_flags(store::Error::Invalid(problems), name, dirs))
}
