//! `meshd peer list` and `meshd peer show`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::super::show::{all_of, columns, first_of};
use super::super::{Dirs, Failure, print, print_json};
use super::find;
use crate::config::{Config, Peer, value};
use crate::key::PublicKey;
use crate::store;

/// Arguments of `meshd peer list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Shows what is configured; `meshd status` shows how the peers fare.

Examples:
  meshd peer list
  meshd peer list --json | jq -r '.[].name'")]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `meshd peer show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshd peer show vps
  meshd peer show vps --json | jq -r .public_key")]
pub struct Show {
    /// The peer's name
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One peer of `meshd peer list --json`; stable, and named as in `meshd status --json`.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    public_key: PublicKey,
    endpoint: Option<String>,
    addresses: &'a [IpAddr],
    subnets: &'a [IpNet],
    allowed_ips: Vec<IpNet>,
    persistent_keepalive: Option<u16>,
    client: bool,
    /// As in the peer's file; `None` when nothing is written there.
    allow: Option<Vec<String>>,
    /// Whether there is one.
    preshared_key: bool,
    /// `auto` or `off`.
    express: &'static str,
    via: Option<&'a str>,
    introduced_by: Option<&'a str>,
    inviter_key: Option<String>,
}

impl<'a> Shown<'a> {
    fn new(config: &'a Config, peer: &'a Peer) -> Self {
        Self {
            name: &peer.name,
            public_key: peer.public_key,
            endpoint: peer.endpoint.as_ref().map(ToString::to_string),
            addresses: &peer.addresses,
            subnets: &peer.subnets,
            allowed_ips: config.allowed_ips(peer),
            persistent_keepalive: peer.persistent_keepalive,
            client: peer.client,
            allow: peer.allow.as_ref().map(|items| items.iter().map(ToString::to_string).collect()),
            preshared_key: peer.preshared_key.is_some(),
            express: value::express_word(peer.express),
            via: peer.via.as_deref(),
            introduced_by: peer.introduced_by.as_deref(),
            inviter_key: peer.inviter_key.map(|key| key.to_string()),
        }
    }
}

/// Runs `meshd peer list`.
pub fn list(args: List, dirs: &Dirs) -> Result<(), Failure> {
    let config = store::load(&dirs.config)?;
    if args.json {
        return print_json(&config.peers.iter().map(|peer| Shown::new(&config, peer)).collect::<Vec<_>>());
    }
    if config.peers.is_empty() {
        return print("no peers yet; `meshd peer add --help` shows how\n");
    }
    let heading = ["NAME", "KIND", "ADDRESS", "SUBNETS", "ENDPOINT"].map(String::from);
    let rows = config.peers.iter().map(|peer| {
        let endpoint = peer.endpoint.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let kind = if peer.client { "client" } else { "host" };
        [peer.name.clone(), kind.to_owned(), first_of(&peer.addresses), first_of(&peer.subnets), endpoint]
    });
    print(&columns(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()))
}

/// Runs `meshd peer show`.
pub fn show(args: Show, dirs: &Dirs) -> Result<(), Failure> {
    let config = store::load(&dirs.config)?;
    let peer = find(&config, &args.name)?;
    let shown = Shown::new(&config, peer);
    if args.json {
        return print_json(&shown);
    }
    let rows = [
        ["name", shown.name].map(String::from),
        ["public key".into(), shown.public_key.to_string()],
        ["preshared key", if shown.preshared_key { "yes" } else { "-" }].map(String::from),
        ["endpoint".into(), shown.endpoint.unwrap_or_else(|| "-".into())],
        ["addresses".into(), all_of(shown.addresses)],
        ["subnets".into(), all_of(shown.subnets)],
        ["allowed IPs".into(), all_of(&shown.allowed_ips)],
        ["client", if shown.client { "yes" } else { "no" }].map(String::from),
        ["may reach".into(), may_reach(peer)],
        ["keepalive".into(), shown.persistent_keepalive.map_or_else(|| "-".into(), |seconds| format!("{seconds} s"))],
        ["express", shown.express].map(String::from),
        ["reached via", shown.via.unwrap_or("-")].map(String::from),
        ["introduced by", shown.introduced_by.unwrap_or("-")].map(String::from),
        ["introduces", if shown.inviter_key.is_some() { "yes" } else { "no" }].map(String::from),
    ];
    print(&columns(&rows))
}

fn may_reach(peer: &Peer) -> String {
    match &peer.allow {
        None if peer.client => "nothing".into(),
        None => "mesh, and this host itself".into(),
        Some(items) if items.is_empty() => "nothing".into(),
        Some(items) => all_of(items),
    }
}
