//! `meshd publish`: list, add, remove.

mod edit;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;

use clap::Subcommand;
use serde::Serialize;

use super::running::{Reload, outcome};
use super::show::columns;
use super::{Dirs, Failure, print, print_json, running};
use crate::config::{self, Config, Files, PortRange, Problem, Protocol, Publish, Service, list_of_names, quote, value};
use crate::host;
use crate::store::{self, Layout};

/// Arguments of `meshd publish`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd publish list
  meshd publish add tcp/443 10.89.2.10:443
  meshd publish remove tcp/443")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the published ports as configured
    List(List),
    /// Publish a port: write it to meshd.toml and have the running agent take it
    Add(Add),
    /// Publish a port no longer
    Remove(Remove),
}

/// Arguments of `meshd publish list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd publish list
  meshd publish list --json | jq -r '.[].to'")]
struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `meshd publish add`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The container sees the client's own address, and answers by way of this host
whatever the egress of its bridge. One command for each of IPv4 and IPv6.
Refused when a process of this host listens on the port already.

Examples:
  meshd publish add tcp/443 10.89.2.10:443
  meshd publish add tcp/443 '[fd89:2::10]:443'
  meshd publish add udp/53 10.89.2.10              the same port there
  meshd publish add tcp/8000-8010 10.89.2.10:9000  8001 leads to 9001 ...")]
struct Add {
    /// The port or ports of this host
    #[arg(value_name = "PROTOCOL/PORT[-LAST]")]
    ports: String,
    /// The container, and its port for the first of the ports
    #[arg(value_name = "ADDRESS[:PORT]")]
    to: String,
}

/// Arguments of `meshd publish remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Connections that are under way go on until they end.

Examples:
  meshd publish remove tcp/443
  meshd publish remove tcp/443 '[fd89:2::10]:443'  IPv6 only")]
struct Remove {
    /// The port or ports as they were added
    #[arg(value_name = "PROTOCOL/PORT[-LAST]")]
    ports: String,
    /// Only what leads to this container
    #[arg(value_name = "ADDRESS[:PORT]")]
    to: Option<String>,
}

/// One entry of `meshd publish list --json`; stable.
#[derive(Serialize)]
struct Shown<'a> {
    protocol: Protocol,
    port: u16,
    last_port: u16,
    to: SocketAddr,
    host: &'a str,
}

/// Runs the command.
pub fn run(args: Args, dirs: &Dirs) -> Result<(), Failure> {
    match args.command {
        Command::List(args) => list(args, dirs),
        Command::Add(args) => add(args, dirs, running::reload),
        Command::Remove(args) => remove(args, dirs, running::reload),
    }
}

fn list(args: List, dirs: &Dirs) -> Result<(), Failure> {
    let config = store::load(&dirs.config)?;
    let shown = config.host.publish.iter().map(|publish| {
        let Publish { protocol, ports, to } = *publish;
        Shown { protocol, port: ports.first, last_port: ports.last, to, host: host_of(&config, publish) }
    });
    if args.json {
        return print_json(&shown.collect::<Vec<_>>());
    }
    if config.host.publish.is_empty() {
        return print("no published ports; `meshd publish add --help` shows how\n");
    }
    let heading = ["PORT", "TO", "ON"].map(String::from);
    let row = |publish: &Publish| [publish.to_string(), publish.to.to_string(), host_of(&config, publish).to_owned()];
    print(&columns(&std::iter::once(heading).chain(config.host.publish.iter().map(row)).collect::<Vec<_>>()))
}

/// The host that the container is on.
fn host_of<'a>(config: &'a Config, publish: &Publish) -> &'a str {
    let holds = |peer: &&config::Peer| {
        let to = publish.to.ip();
        peer.addresses.contains(&to) || peer.subnets.iter().any(|net| net.contains(&to))
    };
    let peer = || config.peers.iter().find(holds);
    if config.bridge_of(publish).is_some() { &config.host.name } else { peer().map_or("-", |peer| peer.name.as_str()) }
}

fn add(args: Add, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let Service { protocol, ports } = service(&args.ports)?;
    let to =
        target(&args.to, ports).map_err(|why| Failure::new(4, format!("publish to {}: {why}", quote(&args.to))))?;
    let publish = Publish { protocol, ports, to };
    let _lock = store::lock(&dirs.config)?;
    let mut files = store::read(&dirs.config)?;
    let before = config::parse(&files).map_err(store::Error::Invalid)?;
    if before.host.publish.contains(&publish) {
        return print(&format!("{publish} leads to {to} already\n"));
    }
    let text = edit(&mut files, |text| edit::add(text, &publish))?;
    let config = config::parse(&files).map_err(|problems| said_without_lines(&problems, &files))?;
    if let Some(listener) = host::listener(&config, &publish) {
        let error = format!("publish {publish}: {listener}, and would no longer be reached from outside");
        return Err(Failure::new(4, error).try_this("stop it or have it listen elsewhere; or publish another port"));
    }
    replace(&text, dirs, reload, &format!("publish {publish}: not added")).and_then(|reloaded| {
        let on = host_of(&config, &publish);
        print(&format!("published {publish}: leads to {to} on {on}\n{reloaded}"))
    })
}

fn remove(args: Remove, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let Service { protocol, ports } = service(&args.ports)?;
    let to = args.to.map(|to| target(&to, ports).map_or(to, |to| to.to_string()));
    let _lock = store::lock(&dirs.config)?;
    let mut files = store::read(&dirs.config)?;
    let before = config::parse(&files);
    let mut removed = 0;
    let text = edit(&mut files, |text| {
        let (text, count) = edit::remove(text, ports, protocol, to.as_deref())?;
        removed = count;
        Ok(text)
    })?;
    let what = format!("{protocol}/{ports}{}", to.map(|to| format!(" to {to}")).unwrap_or_default());
    if removed == 0 {
        let others = before.map(|config| list_of_names(&config.host.publish)).unwrap_or_default();
        let others = if others.is_empty() { "nothing is".to_owned() } else { format!("these are: {others}") };
        return Err(Failure::new(1, format!("publish {what}: not published; {others}")).try_this("meshd publish list"));
    }
    // What is wrong with the files for another reason is none to keep a port open.
    if let (Err(_), Err(left)) = (&before, config::parse(&files)) {
        store::replace(&Layout(&dirs.config).host(), &text.new, text.mode)?;
        let rest = left.iter().map(|problem| format!("{problem}\n")).collect::<String>();
        return print(&format!("removed {what} from meshd.toml, which the agent cannot take yet:\n{rest}"));
    }
    let reloaded = replace(&text, dirs, reload, &format!("publish {what}: not removed"))?;
    print(&format!("removed {what}\n{reloaded}"))
}

/// `tcp/443`, `udp/8000-8010`.
fn service(text: &str) -> Result<Service, Failure> {
    config::service(text).map_err(|why| Failure::new(4, format!("publish: {why}")).try_this("meshd publish --help"))
}

fn target(text: &str, ports: PortRange) -> Result<SocketAddr, String> {
    text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, ports.first)).or_else(|_| value::target(text))
}

/// The text of `meshd.toml`, before and after.
struct Text {
    old: String,
    new: String,
    mode: u32,
}

fn edit(files: &mut Files, change: impl FnOnce(&str) -> Result<String, toml_edit::TomlError>) -> Result<Text, Failure> {
    let path = &files.host.path;
    let broken = |why: String| Failure::new(4, format!("{path}: {why}"));
    let old = String::from_utf8(files.host.text.clone()).map_err(|_| broken("not UTF-8 text".to_owned()))?;
    let new = change(&old).map_err(|error| broken(error.message().replace('\n', "; ")))?;
    let mode = fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777);
    files.host.text = new.clone().into_bytes();
    Ok(Text { old, new, mode })
}

/// Writes the new text; the old one again when the running agent refuses.
fn replace(text: &Text, dirs: &Dirs, reload: impl Reload, undone: &str) -> Result<String, Failure> {
    let path = Layout(&dirs.config).host();
    store::replace(&path, &text.new, text.mode)?;
    match reload(dirs) {
        Ok(reloaded) => Ok(outcome(reloaded.as_ref())),
        Err(mut failure) => {
            store::replace(&path, &text.old, text.mode)?;
            failure.errors.push(format!("{undone}, as the running agent refused"));
            Err(failure)
        }
    }
}

/// The new block's lines are not on disk; its words name what is wrong.
fn said_without_lines(problems: &[Problem], files: &Files) -> Failure {
    let shown = |problem: &Problem| {
        if problem.path == files.host.path { problem.message.clone() } else { problem.to_string() }
    };
    Failure { code: 4, errors: problems.iter().map(shown).collect(), remedy: None }
}

#[cfg(test)]
mod tests;
