//! `meshd peer add NAME --public-key …`.

use std::path::{Path, PathBuf, absolute};

use super::super::show::{add_command, toml_list, toml_string};
use super::super::{Dirs, Failure, print};
use super::{Reload, outcome};
use crate::config::{self, Config, SourceFile, quote, value};
use crate::store::{self, Layout};

/// A host without an endpoint is behind NAT, whose mapping dies within minutes of silence; 25 s is what wg(8) advises.
const KEEPALIVE_BEHIND_NAT: u16 = 25;

/// Arguments of `meshd peer add`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Checks the whole configuration with the new peer in it before the file is
written. When this host has no endpoint of its own and the peer has one, a
keepalive of 25 seconds keeps the way back open; --keepalive 0 does without.

Examples:
  meshd peer add vps --public-key KEY --endpoint vps.example.net:51820 \\
      --address 10.88.0.1 --address fd88::1 --subnet 10.89.1.0/24
  meshd peer add phone --public-key KEY --address 10.88.0.9 \\
      --client --allow 10.89.1.0/24 --allow '10.89.2.10 tcp/443'
  meshd peer add vps --public-key KEY --subnet 10.89.1.0/24 --dry-run")]
pub struct Args {
    /// The peer's name
    name: String,
    /// What `meshd pubkey` prints there
    #[arg(long, value_name = "KEY")]
    public_key: String,
    /// Where to reach it; leave it out when it is behind NAT
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// Its address inside the mesh; repeat for IPv6
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// A bridge or LAN behind it; repeat for more
    #[arg(long = "subnet", value_name = "CIDR")]
    subnets: Vec<String>,
    /// A device such as a phone: it reaches only what --allow gives it
    #[arg(long)]
    client: bool,
    /// What it may reach at and through this host, and nothing else; repeat for more: a network, an address, `mesh` or
    /// `host`, and after a space the ports when not all, such as '10.89.2.10 tcp/443'
    #[arg(long = "allow", value_name = "WHAT")]
    allow: Vec<String>,
    /// A file with the preshared key, which stays where it is
    #[arg(long, value_name = "FILE")]
    preshared_key_file: Option<PathBuf>,
    /// Seconds between keepalives; 0 is off
    #[arg(long, value_name = "SECONDS")]
    keepalive: Option<u16>,
    /// Check, print the file, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    // Before it becomes part of a path.
    value::name(&args.name).map_err(|why| Failure::new(4, format!("peer name {}: {why}", quote(&args.name))))?;
    let _lock = store::lock(&dirs.config)?;
    let before = store::load(&dirs.config)?;
    let path = Layout(&dirs.config).peer(&args.name);
    if before.peer(&args.name).is_some() || path.symlink_metadata().is_ok() {
        let error = format!("peer {}: {} exists already", quote(&args.name), path.display());
        let remedy = format!("edit the file and `meshd reload`, or meshd peer remove {}", args.name);
        return Err(Failure::new(4, error).try_this(remedy));
    }

    let text = peer_toml(&args, &before, &dirs.config)?;
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

fn peer_toml(args: &Args, config: &Config, dir: &Path) -> Result<String, Failure> {
    let preshared_key_file = args.preshared_key_file.as_ref().map(|path| from_folder(path, dir)).transpose()?;
    let behind_nat = config.host.endpoint.is_none() && args.endpoint.is_some();
    let keepalive = args.keepalive.or(behind_nat.then_some(KEEPALIVE_BEHIND_NAT));
    let lines = [
        Some(format!("public_key = {}", toml_string(&args.public_key))),
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
    let new = SourceFile { path: Layout(&dirs.config).peer(name).display().to_string(), text: text.into() };
    let path = new.path.clone();
    let files = store::read_with(&dirs.config, (name.to_owned(), new))?;
    config::parse(&files).map(|_| ()).map_err(|problems| Failure {
        code: 4,
        errors: problems
            .iter()
            .map(|problem| {
                // Its lines are not on disk; the words name the flag.
                let from_flags = problem.path == path;
                if from_flags { format!("peer {}: {}", quote(name), problem.message) } else { problem.to_string() }
            })
            .collect(),
        remedy: None,
    })
}
