//! A device of its own: what it may reach, its file here and the one for its app.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Conf, Interface, Peer};
use crate::config::{
    self, Allow, Config, DEFAULT_MTU, EVERYTHING, Place, PortRange, Protocol, Service, list_of_names, quote,
};
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// The port of a name server.
const DNS: u16 = 53;

/// A device that is to be a peer.
pub struct Client<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whose its key is.
    pub identity: Identity,
    /// For this peering alone.
    pub preshared_key: PresharedKey,
    /// In the mesh.
    pub addresses: Vec<IpAddr>,
    /// Hosts whose LANs it may reach.
    pub lans: &'a [String],
    /// What it may reach instead of every bridge, when said.
    pub allow: Option<Vec<Allow>>,
    /// Its name servers.
    pub dns: &'a [IpAddr],
    /// Whether all that it sends goes through this host.
    pub full_tunnel: bool,
    /// Seconds; `None` is off.
    pub keepalive: Option<u16>,
}

/// Who made the key of a device.
pub enum Identity {
    /// This host, which forgets it.
    Made(PrivateKey),
    /// The device.
    Known(PublicKey),
}

/// What this host keeps about the device, and what the device is given.
///
/// # Errors
/// `what: why` and, where there is one, a remedy.
pub fn client(config: &Config, client: Client<'_>) -> Result<(config::Peer, Conf), (String, Option<String>)> {
    let Some(endpoint) = config.host.endpoint.clone() else {
        let why = "this host has no endpoint, so a device cannot find it".to_owned();
        return Err((why, Some("endpoint = \"HOST:PORT\" at the top of meshd.toml".into())));
    };
    let mut allow = client.allow.unwrap_or_else(|| bridges(config).map(all_of).collect());
    for name in client.lans {
        let lans = lans_of(config, name).map_err(|why| (format!("--lan {}: {why}", quote(name)), None))?;
        allow.extend(lans.into_iter().map(all_of));
    }
    // A name server that it may not ask would leave it without names.
    for &server in client.dns {
        allow.extend(name_server(config, server, &allow));
    }
    let public_key = match &client.identity {
        Identity::Made(key) => key.public_key(),
        Identity::Known(key) => *key,
    };
    let peer = config::Peer {
        preshared_key: Some(client.preshared_key.clone()),
        addresses: client.addresses.clone(),
        client: true,
        allow: Some(allow),
        ..config::Peer::new(client.name, public_key)
    };
    let conf = Conf {
        interface: Interface {
            private_key: match client.identity {
                Identity::Made(key) => Some(key),
                Identity::Known(_) => None,
            },
            addresses: client.addresses.iter().copied().map(IpNet::from).collect(),
            dns: client.dns.to_vec(),
            search: (!client.dns.is_empty()).then(|| config.host.domain.clone()).into_iter().collect(),
            mtu: Some(config.host.mtu).filter(|&mtu| mtu != DEFAULT_MTU),
            ..Interface::default()
        },
        peers: vec![Peer {
            name: Some(config.host.name.clone()),
            preshared_key: Some(client.preshared_key),
            allowed_ips: if client.full_tunnel { EVERYTHING.to_vec() } else { reach(config, &peer) },
            endpoint: Some(endpoint),
            persistent_keepalive: client.keepalive,
            ..Peer::new(config.private_key.public_key())
        }],
    };
    Ok((peer, conf))
}

/// Where a client's packets have a use: this host's own addresses, which answer a ping, and what it may reach.
pub(super) fn reach(config: &Config, client: &config::Peer) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = config.host.addresses.iter().map(|net| IpNet::from(net.addr())).collect();
    for item in client.allow.iter().flatten() {
        match item.to {
            Place::Host => {}
            Place::Net(net) => nets.push(net),
            Place::Mesh => {
                nets.extend(config.host.addresses.iter().map(IpNet::trunc));
                nets.extend(config.host.bridges.iter().flat_map(|bridge| &bridge.subnets));
                nets.extend(config.host.lans.iter().map(|lan| lan.subnet));
                nets.extend(config.peers.iter().flat_map(|peer| &peer.subnets));
            }
        }
    }
    let mut outermost: Vec<IpNet> = Vec::new();
    nets.sort_by_key(|net| (net.network(), net.prefix_len()));
    for net in nets {
        // In this order what holds it is the last one, if any does.
        if !outermost.last().is_some_and(|outer| outer.contains(&net)) {
            outermost.push(net);
        }
    }
    outermost
}

/// The container bridges of all hosts that this one knows.
fn bridges(config: &Config) -> impl Iterator<Item = IpNet> {
    let own = config.host.bridges.iter().flat_map(|bridge| bridge.subnets.iter().copied());
    let hosts = config.peers.iter().filter(|peer| !peer.client);
    let others = hosts.flat_map(|peer| {
        let is_lan = |net: &IpNet| peer.lans.iter().any(|lan| config::value::overlap(lan, net));
        peer.subnets.iter().copied().filter(move |net| !is_lan(net))
    });
    own.chain(others)
}

/// The LANs behind a host.
fn lans_of(config: &Config, name: &str) -> Result<Vec<IpNet>, String> {
    let own = config.host.name == name;
    let (lans, remedy) = match config.peer(name) {
        _ if own => (config.host.lans.iter().map(|lan| lan.subnet).collect(), "a [[lan]] in meshd.toml".to_owned()),
        Some(peer) => (peer.lans.clone(), format!("lans = [\"192.168.1.0/24\"] in peers/{name}.toml")),
        None => {
            let hosts = config.peers.iter().filter(|peer| !peer.lans.is_empty()).map(|peer| &peer.name);
            let own = (!config.host.lans.is_empty()).then_some(&config.host.name);
            let hosts: Vec<&String> = own.into_iter().chain(hosts).collect();
            let known = if hosts.is_empty() { "none is known".into() } else { list_of_names(hosts) };
            return Err(format!("no such host; hosts with a LAN: {known}"));
        }
    };
    if lans.is_empty() { Err(format!("has no LAN here; that would be {remedy}")) } else { Ok(lans) }
}

/// What opens a name server inside the mesh, where `allow` does not already.
fn name_server(config: &Config, server: IpAddr, allow: &[Allow]) -> Vec<Allow> {
    let host = &config.host;
    // A container engine's own name server is at a bridge's first address, which is this host's.
    let first = |net: &IpNet| net.hosts().next() == Some(server);
    let ours = host.addresses.iter().any(|net| net.addr() == server)
        || host.bridges.iter().flat_map(|bridge| &bridge.subnets).any(first);
    let own = host.addresses.iter().map(IpNet::trunc);
    let lans = host.lans.iter().map(|lan| lan.subnet);
    let bridges = host.bridges.iter().flat_map(|bridge| bridge.subnets.iter().copied());
    let peers = config.peers.iter().flat_map(config::Peer::networks);
    let inside = own.chain(lans).chain(bridges).chain(peers).any(|net| net.contains(&server));
    let open = |item: &Allow| match item.to {
        Place::Net(net) => item.service.is_none() && net.contains(&server),
        Place::Mesh => item.service.is_none(),
        Place::Host => false,
    };
    if !inside || (!ours && allow.iter().any(open)) {
        return Vec::new();
    }
    let to = if ours { Place::Host } else { Place::Net(IpNet::from(server)) };
    let ports = PortRange::from(DNS);
    [Protocol::Udp, Protocol::Tcp]
        .map(|protocol| Allow { to, service: Some(Service { protocol, ports }) })
        .into_iter()
        .filter(|item| !allow.contains(item))
        .collect()
}

fn all_of(net: IpNet) -> Allow {
    Allow { to: Place::Net(net), service: None }
}
