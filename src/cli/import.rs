//! `meshd import FILE`: a setup of wg-quick becomes one of meshd.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::conf;
use super::init::name_of_this_host;
use super::{Dirs, Failure, print};
use crate::config::{self, Files, SourceFile, edit, printable, quote, value};
use crate::store::{self, Layout};
use crate::wgquick::{self, Imported, Wanted};

/// Arguments of `meshd import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Shows the files that it would write, and what it does not take over with what
meshd does instead; then it asks. Peers are named by the comments above or in
their [Peer], where these are sound names. Nothing is overwritten, and the
file of wg-quick stays as it is.

Examples:
  meshd import /etc/wireguard/wg0.conf
  meshd import /etc/wireguard/wg0.conf --name home \\
      --bridge br0=10.89.2.0/24,fd89:2::/64 --yes")]
pub struct Args {
    /// What wg-quick uses, or `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// This host's name in the mesh [default: the hostname]
    #[arg(long)]
    name: Option<String>,
    /// A container bridge; it leaves to the internet through the peer that has 0.0.0.0/0 or ::/0
    #[arg(long = "bridge", value_name = "NAME=CIDR,…")]
    bridges: Vec<String>,
    /// Write the files without a question
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    let conf = conf::read(&args.file)?;
    let name = args.name.clone().unwrap_or_else(name_of_this_host);
    let bridges = args.bridges.iter().map(|text| bridge(text)).collect::<Result<Vec<_>, _>>()?;
    let failed = |why: String| Failure::new(4, format!("{}: {why}", printable(&args.file.to_string_lossy())));
    let imported = wgquick::import(&conf, &Wanted { name: &name, bridges: &bridges }).map_err(failed)?;
    let plan = Plan::new(&imported, dirs);
    plan.check()?;
    print(&plan.shown(&imported.notes))?;
    let go = args.yes || conf::ask("Write these files?").is_some_and(|yes| yes);
    if !go {
        return print("\nnothing is written; with --yes it would be\n");
    }
    plan.write(dirs)?;
    print(&next_steps(&args.file))
}

/// `br0=10.89.2.0/24,fd89:2::/64`.
fn bridge(text: &str) -> Result<(String, Vec<String>), Failure> {
    let Some((name, subnets)) = text.split_once('=') else {
        let error = format!("import: bridge {}: expected NAME=CIDR", quote(text));
        return Err(Failure::new(4, error).try_this("--bridge br0=10.89.2.0/24"));
    };
    value::interface(name).map_err(|why| Failure::new(4, format!("import: bridge {}: {why}", quote(name))))?;
    Ok((name.to_owned(), subnets.split(',').map(|subnet| subnet.trim().to_owned()).collect()))
}

/// The files in the order of writing; `meshd.toml` is last, as it is what makes the folder a configuration.
struct Plan {
    files: Vec<New>,
}

struct New {
    path: PathBuf,
    text: Zeroizing<String>,
    /// What is shown of it.
    shown: String,
    mode: u32,
}

impl Plan {
    fn new(imported: &Imported, dirs: &Dirs) -> Self {
        let layout = Layout(&dirs.config);
        let peer = |peer: &config::Peer| {
            let secret = peer.preshared_key.as_ref().map(|_| "preshared_key = \"(secret)\"\n").unwrap_or_default();
            let rest = edit::peer(&config::Peer { preshared_key: None, ..peer.clone() });
            New {
                path: layout.peer(&peer.name),
                text: edit::peer(peer).into(),
                shown: format!("{rest}{secret}"),
                mode: 0o600,
            }
        };
        let key = Zeroizing::new(imported.private_key.expose_base64());
        let mut files: Vec<New> = imported.peers.iter().map(peer).collect();
        let private_key = Zeroizing::new(format!("{}\n", *key));
        files.push(New { path: layout.private_key(), text: private_key, shown: "(secret)\n".into(), mode: 0o600 });
        let host = imported.host.clone();
        files.push(New { path: layout.host(), text: host.clone().into(), shown: host, mode: 0o644 });
        Self { files }
    }

    /// Nothing is there yet, and the whole is a sound configuration.
    fn check(&self) -> Result<(), Failure> {
        for New { path, .. } in &self.files {
            if path.symlink_metadata().is_ok() {
                let error =
                    format!("{}: exists already; import overwrites nothing", printable(&path.to_string_lossy()));
                return Err(Failure::new(4, error).try_this("meshd peer add NAME --from FILE, or another --dir"));
            }
        }
        let source = |new: &New| SourceFile { path: name_of(&new.path), text: new.text.as_bytes().to_vec() };
        let [peers @ .., private_key, host] = &self.files[..] else { return Ok(()) };
        let stem = |new: &New| new.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let files = Files {
            host: source(host),
            private_key: source(private_key),
            peers: peers.iter().map(|new| (stem(new), source(new))).collect(),
            preshared_keys: std::collections::BTreeMap::new(),
        };
        // Its lines are not on disk.
        config::parse(&files).map(|_| ()).map_err(|problems| Failure {
            code: 4,
            errors: problems.iter().map(|problem| format!("import: {}: {}", problem.path, problem.message)).collect(),
            remedy: None,
        })
    }

    /// As diff(1) has new files, in the order in which a person reads them.
    fn shown(&self, notes: &[String]) -> String {
        let mut text = String::new();
        for new in self.files.iter().rev() {
            text.push_str(&format!("--- /dev/null\n+++ {}\n", printable(&new.path.to_string_lossy())));
            text.extend(new.shown.lines().map(|line| format!("+{line}\n")));
            text.push('\n');
        }
        if !notes.is_empty() {
            text.push_str("Not taken over:\n\n");
            text.extend(notes.iter().map(|note| format!("  {}\n", printable(note))));
        }
        text
    }

    /// All of them or none.
    fn write(&self, dirs: &Dirs) -> Result<(), Failure> {
        store::create_dir(&dirs.config)?;
        store::create_dir(&Layout(&dirs.config).peers())?;
        let _lock = store::lock(&dirs.config)?;
        for (at, new) in self.files.iter().enumerate() {
            if let Err(error) = store::create(&new.path, &new.text, new.mode) {
                for done in &self.files[..at] {
                    // The first error is the one that tells why.
                    let _ = store::remove(&done.path);
                }
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// `peers/vps.toml`, `meshd.toml`.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.extension().is_some() && path.parent().is_some_and(|parent| parent.ends_with("peers")) {
        format!("peers/{name}")
    } else {
        name.into_owned()
    }
}

fn next_steps(file: &Path) -> String {
    let interface = file.file_stem().map(|name| name.to_string_lossy().into_owned());
    let stop = interface
        .filter(|name| value::interface(name).is_ok())
        .map_or(String::new(), |name| format!("  wg-quick down {name}\n  systemctl disable wg-quick@{name}\n"));
    format!("\nwritten. Next:\n\n{stop}  meshd plan\n  meshd up --detach\n")
}
