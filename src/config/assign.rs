//! Mesh addresses for whoever comes next.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Config, value};

/// Every address of this network is somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mesh network {0} has no free address")]
pub struct Full(pub IpNet);

/// One address in each of this host's mesh networks that is neither its own, nor a peer's, nor in `taken` (what pending
/// invitations have promised); in the order of `addresses` in `meshd.toml`.
///
/// The search begins behind this host's own address, so that two hosts of a mesh that assign at the same time rarely
/// give out the same one, and gives the same number in each network where it can: 10.88.0.3 and fd88::3.
///
/// # Errors
/// Names the first network that is full.
pub fn free_addresses(config: &Config, taken: &[IpAddr]) -> Result<Vec<IpAddr>, Full> {
    let own = config.host.addresses.iter().map(IpNet::addr);
    let peers = config.peers.iter().flat_map(|peer| peer.addresses.iter().copied());
    let used: HashSet<IpAddr> = own.chain(peers).chain(taken.iter().copied()).collect();
    let mut seen: Vec<IpNet> = Vec::new();
    let mut found: Vec<IpAddr> = Vec::new();
    let mut next = None;
    for net in &config.host.addresses {
        if seen.contains(&net.trunc()) {
            continue;
        }
        seen.push(net.trunc());
        let from = *next.get_or_insert(number(net.addr(), net) + 1);
        let addr = free_from(net, from, |addr| !used.contains(addr)).ok_or_else(|| Full(net.trunc()))?;
        next = Some(number(addr, net));
        found.push(addr);
    }
    Ok(found)
}

/// The first address of a network that a host may have and that is `free`, from this number on and around.
pub fn free_from(net: &IpNet, from: u128, free: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    numbered(net, from).find(|addr| is_pleasant(*addr, net) && free(addr))
}

/// All addresses of a network, from this number on and around.
fn numbered(net: &IpNet, from: u128) -> impl Iterator<Item = IpAddr> {
    // `meshd.toml` allows no prefix below 8, so the count fits.
    let count = 1_u128 << (net.max_prefix_len() - net.prefix_len());
    let first = net.network();
    (0..count).map(move |step| match (first, (from + step) % count) {
        (IpAddr::V4(first), number) => IpAddr::V4((first.to_bits() + number as u32).into()),
        (IpAddr::V6(first), number) => IpAddr::V6((first.to_bits() + number).into()),
    })
}

/// Which of its network's addresses this is, counted from 0.
pub fn number(addr: IpAddr, net: &IpNet) -> u128 {
    match (addr, net.network()) {
        (IpAddr::V4(addr), IpAddr::V4(first)) => u128::from(addr.to_bits() - first.to_bits()),
        (IpAddr::V6(addr), IpAddr::V6(first)) => addr.to_bits() - first.to_bits(),
        // Both are of the same `IpNet`.
        _ => 0,
    }
}

/// Whether a host may have it. One in a larger network that ends in 0 or 255 is valid, and looks wrong to people and to
/// old firewalls.
fn is_pleasant(addr: IpAddr, net: &IpNet) -> bool {
    let looks_wrong = |addr: IpAddr| matches!(addr, IpAddr::V4(addr) if [0, 255].contains(&addr.octets()[3]));
    let sound = value::host_address(&IpNet::new_assert(addr, net.prefix_len()).to_string()).is_ok();
    sound && !(net.prefix_len() < 24 && looks_wrong(addr))
}

#[cfg(test)]
mod tests {
    use super::super::{Files, SourceFile, parse};
    use super::*;

    /// A host of these addresses, with one peer of those.
    fn config(own: &str, peer: &str) -> Config {
        let file = |path: &str, text: String| SourceFile { path: path.into(), text: text.into() };
        let peer = format!("public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\naddresses = [{peer}]\n");
        parse(&Files {
            host: file("meshd.toml", format!("name = \"home\"\naddresses = [{own}]\n")),
            private_key: file("private.key", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=".into()),
            peers: vec![("vps".into(), file("peers/vps.toml", peer))],
            preshared_keys: std::collections::BTreeMap::new(),
        })
        .unwrap()
    }

    #[test]
    fn what_is_free_is_behind_the_own_address_and_the_same_number_in_each_family() {
        for (own, peer, taken, free) in [
            (r#""10.88.0.2/24", "fd88::2/64""#, r#""10.88.0.1", "fd88::1""#, &[][..], &["10.88.0.3", "fd88::3"][..]),
            (r#""10.88.0.2/24", "fd88::2/64""#, r#""10.88.0.3""#, &["fd88::4"], &["10.88.0.4", "fd88::5"]),
            (r#""fd88::ff/64", "10.88.0.254/24""#, "", &["fd88::100"], &["fd88::101", "10.88.0.1"]),
            // Where two hosts made theirs from their keys, each gives out what is next to it.
            (r#""10.87.113.254/16", "fd87::71fe/64""#, "", &[], &["10.87.114.1", "fd87::7201"]),
            // RFC 3021: both addresses of a /31.
            (r#""10.88.0.1/31""#, "", &[], &["10.88.0.0"]),
            // One for each network, whatever addresses this host has in it.
            (r#""10.88.0.1/24", "10.88.0.9/24""#, "", &[], &["10.88.0.2"]),
        ] {
            let taken: Vec<IpAddr> = taken.iter().map(|text| text.parse().unwrap()).collect();
            let found = free_addresses(&config(own, peer), &taken).unwrap();
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), free, "{own}");
        }
    }

    #[test]
    fn every_address_is_given_out_once_before_the_network_is_full() {
        let config = config(r#""10.88.0.3/29", "fd88::3/125""#, r#""10.88.0.5""#);
        let mut taken = Vec::new();
        let full = loop {
            match free_addresses(&config, &taken) {
                Ok(found) => {
                    assert!(found.iter().all(|addr| !taken.contains(addr)));
                    taken.extend(found);
                }
                Err(full) => break full,
            }
        };
        assert_eq!(full.to_string(), "the mesh network 10.88.0.0/29 has no free address");
        let v4 = taken.iter().filter(|addr| addr.is_ipv4()).count();
        assert_eq!((v4, taken.len()), (4, 8), "1, 2, 4 and 6 of the former: {taken:?}");
    }
}
