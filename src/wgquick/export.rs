//! This host, or what another one needs to reach it, as wg-quick(8) has it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::client::reach;
use super::{Conf, Interface, Peer};
use crate::config::{self, Config, DEFAULT_MTU, EVERYTHING, Endpoint};

/// A host without an endpoint is behind NAT, whose mapping dies within minutes of silence; 25 s is what wg(8) advises.
const KEEPALIVE_BEHIND_NAT: u16 = 25;

/// This host with all its peers; without its private key unless that is wanted. The egress of bridges is left out:
/// wg-quick knows that of the whole host only.
pub fn export(config: &Config, with_private_key: bool) -> Conf {
    let host = &config.host;
    let peer = |peer: &config::Peer| Peer {
        name: Some(peer.name.clone()),
        public_key: peer.public_key,
        preshared_key: peer.preshared_key.clone(),
        allowed_ips: peer.networks().collect(),
        endpoint: peer.endpoint.clone(),
        persistent_keepalive: peer.persistent_keepalive,
    };
    Conf {
        interface: Interface {
            private_key: with_private_key.then(|| config.private_key.clone()),
            addresses: host.addresses.clone(),
            listen_port: Some(host.listen_port).filter(|&port| port > 0),
            mtu: mtu(config),
            ..Interface::default()
        },
        peers: config.peers.iter().map(peer).collect(),
    }
}

/// What `peer` would use to reach this host.
pub fn for_peer(config: &Config, peer: &config::Peer) -> Conf {
    let host = &config.host;
    let in_mesh = |addr: &IpAddr| {
        // A host has the mesh as its network, a device has itself.
        let net = host.addresses.iter().find(|net| !peer.client && net.contains(addr));
        net.and_then(|net| IpNet::new(*addr, net.prefix_len()).ok()).unwrap_or(IpNet::from(*addr))
    };
    let carried = host.exit.as_ref().is_some_and(|exit| exit.peers.contains(&peer.name));
    Conf {
        interface: Interface {
            addresses: peer.addresses.iter().map(in_mesh).collect(),
            listen_port: peer.endpoint.as_ref().map(Endpoint::port),
            mtu: mtu(config),
            ..Interface::default()
        },
        peers: vec![Peer {
            name: Some(host.name.clone()),
            preshared_key: peer.preshared_key.clone(),
            allowed_ips: match () {
                () if carried => EVERYTHING.to_vec(),
                () if peer.has_the_mesh() => own_networks(config),
                () => reach(config, peer),
            },
            endpoint: host.endpoint.clone(),
            persistent_keepalive: (peer.endpoint.is_none() && host.endpoint.is_some()).then_some(KEEPALIVE_BEHIND_NAT),
            ..Peer::new(config.private_key.public_key())
        }],
    }
}

fn mtu(config: &Config) -> Option<u16> {
    Some(config.host.mtu).filter(|&mtu| mtu != DEFAULT_MTU)
}

/// This host and what is behind it.
fn own_networks(config: &Config) -> Vec<IpNet> {
    let host = &config.host;
    let addresses = host.addresses.iter().map(|net| IpNet::from(net.addr()));
    let bridges = host.bridges.iter().flat_map(|bridge| bridge.subnets.iter().copied());
    addresses.chain(bridges).chain(host.lans.iter().map(|lan| lan.subnet)).collect()
}
