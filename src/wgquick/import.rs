//! A setup of wg-quick as one of meshd: the files, and what is not taken over.

use std::net::IpAddr;

use ipnet::IpNet;

use super::take::is_everything;
use super::{Conf, Hook, Peer, When};
use crate::config::{self, DEFAULT_INTERFACE, DEFAULT_MTU, quote, value};
use crate::key::PrivateKey;

/// What the file does not say.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// This host's name in the mesh.
    pub name: &'a str,
    /// Container bridges and their networks, as the command line has them.
    pub bridges: &'a [(String, Vec<String>)],
}

/// The files of a configuration folder.
#[derive(Debug)]
pub struct Imported {
    /// `meshd.toml`; whether it is sound is for [`config::parse`] to say.
    pub host: String,
    /// `private.key`.
    pub private_key: PrivateKey,
    /// `peers/NAME.toml`, each with a preshared key in it when it has one.
    pub peers: Vec<config::Peer>,
    /// What is not taken over, and what meshd does instead.
    pub notes: Vec<String>,
}

/// Says the whole file in meshd's words.
///
/// # Errors
/// When it lacks what a host cannot do without.
pub fn import(conf: &Conf, wanted: &Wanted<'_>) -> Result<Imported, String> {
    let interface = &conf.interface;
    let private_key = interface.private_key.clone().ok_or("no PrivateKey in [Interface]; write the host's")?;
    if interface.addresses.is_empty() {
        return Err("no Address in [Interface]; write this host's, such as Address = 10.88.0.2/24".into());
    }
    let addresses: Vec<IpNet> = interface.addresses.iter().map(|net| own_address(*net, &conf.peers)).collect();
    let names = names(&conf.peers);
    let peers: Vec<config::Peer> =
        conf.peers.iter().zip(&names).map(|(peer, name)| converted(peer, name, &addresses)).collect();
    let egress: Vec<&str> =
        conf.peers.iter().zip(&names).filter(|(peer, _)| leads_out(peer)).map(|(_, name)| name.as_str()).collect();
    let host = meshd_toml(conf, wanted, &addresses, &egress, &names);
    Ok(Imported { host, private_key, peers, notes: notes(conf, wanted, &egress) })
}

/// This host's address with the mesh network's prefix: that of the file, unless a peer has a part of that network, as on
/// the spokes of a star. Then the address stands alone, and the network is behind the peer.
fn own_address(own: IpNet, peers: &[Peer]) -> IpNet {
    let nets = peers.iter().flat_map(|peer| &peer.allowed_ips);
    let taken = nets.filter(|net| !is_everything(net) && net.prefix_len() < net.max_prefix_len());
    if taken.into_iter().any(|net| value::overlap(net, &own.trunc())) { IpNet::from(own.addr()) } else { own }
}

fn converted(peer: &Peer, name: &str, own: &[IpNet]) -> config::Peer {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut subnets: Vec<IpNet> = Vec::new();
    for net in peer.allowed_ips.iter().filter(|net| !is_everything(net)) {
        let alone = net.prefix_len() == net.max_prefix_len();
        match own.iter().find(|own| own.contains(&net.addr())) {
            Some(_) if alone => addresses.push(net.addr()),
            _ => subnets.extend(
                own.iter()
                    .fold(vec![*net], |nets, own| nets.into_iter().flat_map(|net| without(net, own.addr())).collect()),
            ),
        }
    }
    // Several entries may say the same.
    addresses.sort();
    addresses.dedup();
    subnets.sort();
    subnets.dedup();
    config::Peer {
        preshared_key: peer.preshared_key.clone(),
        endpoint: peer.endpoint.clone(),
        addresses,
        subnets,
        persistent_keepalive: peer.persistent_keepalive,
        ..config::Peer::new(name, peer.public_key)
    }
}

/// A network but for one address in it: the other half, again and again.
fn without(net: IpNet, addr: IpAddr) -> Vec<IpNet> {
    if !net.contains(&addr) {
        return vec![net];
    }
    let Ok(halves) = net.subnets(net.prefix_len() + 1) else { return Vec::new() };
    halves.flat_map(|half| without(half, addr)).collect()
}

fn leads_out(peer: &Peer) -> bool {
    peer.allowed_ips.iter().any(is_everything)
}

/// From the comments where they are sound, else `peer1` and so on; each once.
fn names(peers: &[Peer]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (at, peer) in peers.iter().enumerate() {
        let said = peer.name.clone().filter(|name| !names.contains(name));
        let counted = (at + 1..).map(|number| format!("peer{number}"));
        let mut free =
            counted.filter(|name| !names.contains(name) && peers.iter().all(|peer| peer.name.as_ref() != Some(name)));
        names.extend(said.or_else(|| free.next()));
    }
    names
}

fn meshd_toml(conf: &Conf, wanted: &Wanted<'_>, addresses: &[IpNet], egress: &[&str], names: &[String]) -> String {
    let interface = &conf.interface;
    let mut blocks = vec![format!(
        "# meshd on this host, from a file of wg-quick. `meshd plan` shows what an edit\n\
         # would change, `meshd reload` applies it. The peers are in peers/.\n\n\
         name = {}\n\
         addresses = {}\n\
         interface = {}\n\
         listen_port = {} # 0 picks one\n\
         mtu = {}\n\n\
         # How others reach this host; leave it out behind NAT.\n\
         # endpoint = \"vps.example.net:51820\"\n",
        string(wanted.name),
        list(addresses),
        string(DEFAULT_INTERFACE),
        interface.listen_port.unwrap_or(0),
        interface.mtu.unwrap_or(DEFAULT_MTU),
    )];
    blocks.extend(wanted.bridges.iter().map(|(name, subnets)| {
        let egress = egress.first().unwrap_or(&"direct");
        let (name, subnets, egress) = (string(name), list(subnets), string(egress));
        format!("\n[[bridge]]\nname = {name}\nsubnets = {subnets}\negress = {egress}\n")
    }));
    if let Some(hook) = interface.hooks.iter().find(|hook| masquerades(hook)) {
        let peers = list(names);
        blocks.push(format!(
            "\n# Without the # these peers reach the internet through this host.\n# [exit]\n# peers = {peers}\n"
        ));
        blocks.extend(way_out(&hook.command).map(|device| format!("# interface = {}\n", string(&device))));
    }
    blocks.concat()
}

fn notes(conf: &Conf, wanted: &Wanted<'_>, egress: &[&str]) -> Vec<String> {
    let interface = &conf.interface;
    let mut notes = Vec::new();
    for name in egress {
        notes.push(if wanted.bridges.is_empty() {
            format!("AllowedIPs of everything at {name}: write egress = \"{name}\" in a [[bridge]]; this host's own traffic stays outside")
        } else {
            format!("AllowedIPs of everything at {name}: an egress of the bridges only; this host's own traffic stays outside")
        });
    }
    for hook in &interface.hooks {
        let shown = format!("{} = {}", hook.when.key(), quote(&hook.command));
        notes.push(match () {
            () if masquerades(hook) => format!("{shown}: not run; [exit] in meshd.toml does it, once its # is gone"),
            () if hook.command.contains("ip_forward") || hook.command.contains("forwarding") => {
                format!("{shown}: not run; meshd enables forwarding where it needs it")
            }
            () if matches!(hook.when, When::PreDown | When::PostDown) => format!("{shown}: not run"),
            () => format!("{shown}: not run; meshd makes its routes and rules itself, see `meshd plan`"),
        });
    }
    if !interface.dns.is_empty() || !interface.search.is_empty() {
        notes.push("DNS: this host's name servers stay as they are".into());
    }
    if let Some(table) = &interface.table {
        notes.push(format!("Table = {}: meshd has routing tables of its own", quote(table)));
    }
    if interface.fwmark.is_some() {
        notes.push("FwMark: meshd needs no mark to keep its own packets out of the tunnel".into());
    }
    if interface.save_config {
        notes.push("SaveConfig: meshd never rewrites its files; `meshd peer add` and your editor do".into());
    }
    if conf.peers.iter().any(|peer| peer.endpoint.is_none()) {
        notes.push(
            "every peer is a host that may reach all; a phone is one with client = true and allow = [...] in its file"
                .into(),
        );
    }
    notes
}

fn masquerades(hook: &Hook) -> bool {
    let up = matches!(hook.when, When::PreUp | When::PostUp);
    up && hook.command.to_ascii_lowercase().contains("masquerade")
}

/// The interface that a masquerade is for: `-o eth0` of iptables, `oifname eth0` of nft.
fn way_out(command: &str) -> Option<String> {
    let words: Vec<&str> =
        command.split(|c: char| c.is_whitespace() || c == ';').filter(|word| !word.is_empty()).collect();
    let named = words.windows(2).filter(|pair| ["-o", "--out-interface", "oifname", "oif"].contains(&pair[0]));
    named.filter_map(|pair| value::interface(pair[1].trim_matches(['"', '\''])).ok()).next_back()
}

fn string(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn list<T: ToString>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(|item| string(&item.to_string())).collect::<Vec<_>>().join(", "))
}
