//! One peer out of a wg-quick file: the host whose file it is, or one that the file names.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Conf, Peer};
use crate::config::{self, Config, Endpoint, value};
use crate::key::{PresharedKey, PublicKey};

/// What a file says about a peer.
#[derive(Debug, Default)]
pub struct Taken {
    /// `None` when the file is the peer's own and has no private key.
    pub public_key: Option<PublicKey>,
    /// That between the two.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is.
    pub endpoint: Option<Endpoint>,
    /// Inside this host's mesh networks.
    pub addresses: Vec<IpAddr>,
    /// Outside of them.
    pub subnets: Vec<IpNet>,
    /// Of this host's calls to it.
    pub persistent_keepalive: Option<u16>,
    /// What was not taken, and what to do instead.
    pub notes: Vec<String>,
}

/// Takes the peer `name` out of a file: the one whose file it is when it names this host, else the one of this key, else
/// the only one.
///
/// # Errors
/// Why none can be told.
pub fn take(config: &Config, conf: &Conf, name: &str, key: Option<PublicKey>) -> Result<Taken, String> {
    let own = config.private_key.public_key();
    if conf.interface.private_key.as_ref().is_some_and(|key| key.public_key() == own) {
        // Its peers are this host's own.
        return named(config, conf, name, key);
    }
    match conf.peers.iter().find(|peer| peer.public_key == own) {
        Some(section) => Ok(own_file(config, conf, section, key)),
        None => named(config, conf, name, key),
    }
}

/// The file is the peer's own, and `section` is what it has about this host.
fn own_file(config: &Config, conf: &Conf, section: &Peer, key: Option<PublicKey>) -> Taken {
    let interface = &conf.interface;
    let mut taken = Taken {
        public_key: interface.private_key.as_ref().map(crate::key::PrivateKey::public_key).or(key),
        preshared_key: section.preshared_key.clone(),
        ..Taken::default()
    };
    for addr in interface.addresses.iter().map(IpNet::addr) {
        if config.host.addresses.iter().any(|net| net.contains(&addr)) {
            taken.addresses.push(addr);
        } else {
            taken.notes.push(format!("address {addr} is outside this host's mesh networks"));
        }
    }
    match (&section.endpoint, &config.host.endpoint) {
        (Some(theirs), None) => {
            taken
                .notes
                .push(format!("it reaches this host at {theirs}; as endpoint in meshd.toml others learn it too"));
        }
        (Some(theirs), Some(ours)) if theirs != ours => {
            taken.notes.push(format!("it calls this host at {theirs}, and endpoint in meshd.toml is {ours}"));
        }
        _ => {}
    }
    taken
}

fn named(config: &Config, conf: &Conf, name: &str, key: Option<PublicKey>) -> Result<Taken, String> {
    let section = match (key, &conf.peers[..]) {
        (Some(key), peers) => {
            peers.iter().find(|peer| peer.public_key == key).ok_or_else(|| format!("no [Peer] has the key {key}"))?
        }
        (None, []) => return Err("no [Peer] in it".into()),
        (None, [only]) => only,
        (None, several) => {
            let keys: Vec<String> = several.iter().map(|peer| peer.public_key.to_string()).collect();
            return Err(format!(
                "{} peers in it and none is this host; pick one with --public-key: {}",
                keys.len(),
                config::list_of_names(keys)
            ));
        }
    };
    let mut taken = Taken {
        public_key: Some(section.public_key),
        preshared_key: section.preshared_key.clone(),
        endpoint: section.endpoint.clone(),
        persistent_keepalive: section.persistent_keepalive,
        ..Taken::default()
    };
    for net in &section.allowed_ips {
        sort_in(config, name, *net, &mut taken);
    }
    Ok(taken)
}

/// An allowed IP is a mesh address, a network behind the peer, or nothing that a peer has.
fn sort_in(config: &Config, name: &str, net: IpNet, taken: &mut Taken) {
    let mesh = config.host.addresses.iter().map(IpNet::trunc).find(|mesh| value::overlap(mesh, &net));
    if is_everything(&net) {
        let note = format!("{net} is no network of its own: write egress = \"{name}\" in a [[bridge]]");
        taken.notes.push(note);
    } else if let Some(mesh) = mesh {
        if net.prefix_len() == net.max_prefix_len() {
            taken.addresses.push(net.addr());
        } else {
            taken
                .notes
                .push(format!("{net} overlaps the mesh network {mesh}: say the peer's own address by --address"));
        }
    } else {
        taken.subnets.push(net);
    }
}

/// All, or one of the halves in which people write that.
pub(super) fn is_everything(net: &IpNet) -> bool {
    net.prefix_len() <= 1
}
