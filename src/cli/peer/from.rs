//! `meshd peer add NAME --from FILE`: a peer out of a file of wg-quick.

use std::path::Path;

use super::super::conf;
use super::super::{Dirs, Failure, print};
use super::add::{Args, KEEPALIVE_BEHIND_NAT, said_of_flags, unknown_yet};
use super::{Reload, outcome};
use crate::config::{self, Config, edit, quote, value};
use crate::key::{KeyError, PublicKey};
use crate::store::{self, Edit, Layout};
use crate::wgquick::{self, Taken};

/// Runs the command.
pub fn run(args: &Args, file: &Path, dirs: &Dirs, reload: impl Reload) -> Result<(), Failure> {
    let of_peer = |why: String| Failure::new(4, format!("peer {}: {why}", quote(&args.name)));
    let key = |text: &String| {
        text.parse::<PublicKey>().map_err(|error: KeyError| of_peer(format!("public_key {}: {error}", quote(text))))
    };
    let picked = args.public_key.as_ref().map(key).transpose()?;
    // Before the lock: who types it, or what it comes from, may take a while.
    let conf = conf::read(file)?;
    let _lock = store::lock(&dirs.config)?;
    let mut edit = Edit::new(&dirs.config)?;
    let config = edit.config()?;
    unknown_yet(&args.name, &config, dirs)?;
    let taken = wgquick::take(&config, &conf, &args.name, picked).map_err(of_peer)?;
    let peer = peer(args, &config, &taken)?;
    let path = Layout(&dirs.config).peer(&args.name);
    edit.set_peer(&args.name, edit::peer(&peer)).map_err(|error| said_of_flags(error, &args.name, dirs))?;
    let notes: String = taken.notes.iter().map(|note| format!("not taken: {}\n", config::printable(note))).collect();
    if args.dry_run {
        let hidden = peer.preshared_key.as_ref().map_or("", |_| "# and the preshared_key of that file\n");
        let text = edit::peer(&config::Peer { preshared_key: None, ..peer });
        return print(&format!("# {}\n{hidden}{text}{}", path.display(), notes));
    }
    let undo = edit.write()?;
    match reload(dirs) {
        Ok(reloaded) => {
            print(&format!("added peer {}: {}\n{}{notes}", args.name, path.display(), outcome(reloaded.as_ref())))
        }
        Err(mut failure) => {
            undo.undo()?;
            failure.errors.push(format!("peer {}: not added, as the running agent refused", args.name));
            Err(failure)
        }
    }
}

/// What the file says, and what the flags say beside it or instead of it.
fn peer(args: &Args, config: &Config, taken: &Taken) -> Result<config::Peer, Failure> {
    let of_peer = |what: &str, text: &str, why: String| {
        Failure::new(4, format!("peer {}: {what} {}: {why}", quote(&args.name), quote(text)))
    };
    let Some(public_key) = taken.public_key else {
        let error = format!("peer {}: the file is its own and has no PrivateKey", quote(&args.name));
        return Err(Failure::new(4, error).try_this("--public-key with what `meshd pubkey` prints there"));
    };
    let mut addresses = taken.addresses.clone();
    for text in &args.addresses {
        addresses.push(value::address(text).map_err(|why| of_peer("address", text, why))?);
    }
    let mut subnets = taken.subnets.clone();
    for text in &args.subnets {
        subnets.push(value::peer_subnet(text).map_err(|why| of_peer("subnet", text, why))?);
    }
    let endpoint = match &args.endpoint {
        Some(text) => Some(value::endpoint(text).map_err(|why| of_peer("endpoint", text, why))?),
        None => taken.endpoint.clone(),
    };
    let mut allow = Vec::new();
    for text in &args.allow {
        allow.push(config::allow(text).map_err(|why| of_peer("allow", text, why))?);
    }
    let behind_nat = config.host.endpoint.is_none() && endpoint.is_some();
    let keepalive = args.keepalive.or(taken.persistent_keepalive).or(behind_nat.then_some(KEEPALIVE_BEHIND_NAT));
    // Several entries of a file may say the same.
    addresses.sort();
    addresses.dedup();
    subnets.sort();
    subnets.dedup();
    Ok(config::Peer {
        preshared_key: taken.preshared_key.clone(),
        endpoint,
        addresses,
        subnets,
        persistent_keepalive: keepalive.filter(|&seconds| seconds > 0),
        client: args.client,
        allow: Some(allow).filter(|allow| !allow.is_empty()),
        ..config::Peer::new(&args.name, public_key)
    })
}
