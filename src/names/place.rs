//! Where this host answers.
//!
//! | address | by | whom | other names |
//! | --- | --- | --- | --- |
//! | its own on a bridge | the bridge | the bridge's containers | through the bridge's egress |
//! | the same | loopback | this host | the same |
//! | its own inside the mesh | the tunnel | peers that may reach this host's services | refused |
//! | the same | loopback | this host | refused |
//!
//! A socket is bound to the interface as well as to the address, so that nobody is heard who comes by another one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::way::{Way, ways};
use crate::config::Config;

/// Interfaces by name: number and addresses.
pub type Interfaces = BTreeMap<String, (u32, Vec<IpAddr>)>;

const LOOPBACK: &str = "lo";

/// An address on which queries are taken, by one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// The interface.
    pub device: String,
    /// Its number: another interface of the same name is another place.
    pub index: u32,
    /// Who may ask; empty for everybody who gets here.
    pub from: Vec<IpNet>,
    /// How other names are asked about; none refuses them.
    pub ways: Vec<Way>,
}

/// All of them, as far as the interfaces and their addresses are there.
pub fn places(config: &Config, interfaces: &Interfaces) -> Vec<Place> {
    let host = &config.host;
    if host.names.is_none() {
        return Vec::new();
    }
    let on = |device: &str, mine: &dyn Fn(&IpAddr) -> bool| {
        let addresses = interfaces.get(device).map(|(_, addresses)| addresses.as_slice()).unwrap_or_default();
        addresses.iter().copied().filter(mine).collect::<Vec<IpAddr>>()
    };
    let mesh = on(&host.interface, &|addr| host.addresses.iter().any(|net| net.addr() == *addr));
    let gateways: Vec<Vec<IpAddr>> = host
        .bridges
        .iter()
        .map(|bridge| on(&bridge.name, &|addr| bridge.subnets.iter().any(|net| net.contains(addr))))
        .collect();
    let own: Vec<IpAddr> = mesh.iter().chain(gateways.iter().flatten()).copied().collect();

    let mut places = Vec::new();
    let mut add = |address: IpAddr, device: &str, from: &[IpNet], ways: &[Way]| {
        if let Some(&(index, _)) = interfaces.get(device) {
            let (device, from, ways) = (device.to_owned(), from.to_vec(), ways.to_vec());
            places.push(Place { address, device, index, from, ways });
        }
    };
    for (bridge, gateways) in host.bridges.iter().zip(&gateways) {
        let ways = ways(config, bridge, gateways, &own);
        for &gateway in gateways {
            add(gateway, &bridge.name, &bridge.subnets, &ways);
            add(gateway, LOOPBACK, &[], &ways);
        }
    }
    for &address in &mesh {
        add(address, &host.interface, &[], &[]);
        add(address, LOOPBACK, &[], &[]);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;
    use crate::config::Names;

    fn interfaces(rows: &[(&str, &[&str])]) -> Interfaces {
        let addresses = |texts: &[&str]| texts.iter().map(|addr| addr.parse().unwrap()).collect();
        (1..).zip(rows).map(|(index, (name, texts))| ((*name).to_owned(), (index, addresses(texts)))).collect()
    }

    /// Each as `ADDRESS by DEVICE from NETWORKS via SERVERS`.
    fn shown(config: &Config, interfaces: &Interfaces) -> Vec<String> {
        let list = |items: Vec<String>| items.join(" ");
        places(config, interfaces)
            .into_iter()
            .map(|place| {
                let from = list(place.from.iter().map(ToString::to_string).collect());
                let servers = list(place.ways.iter().map(|way| way.server.ip().to_string()).collect());
                format!("{} by {} from {from} via {servers}", place.address, place.device)
            })
            .collect()
    }

    #[test]
    fn on_bridges_and_inside_the_mesh_and_nowhere_else() {
        let mut config = config();
        let all = interfaces(&[
            ("lo", &["127.0.0.1"]),
            ("eth0", &["192.168.1.20", "10.89.2.77"]),
            ("mesh0", &["10.88.0.2", "fe80::1"]),
            ("br0", &["10.89.2.1", "fd89:2::1", "172.16.0.1", "fe80::2"]),
        ]);
        assert_eq!(shown(&config, &all), [""; 0], "not asked for");
        config.host.names = Some(Names { upstream: vec!["9.9.9.9".parse().unwrap()], containers: Vec::new() });
        assert_eq!(
            shown(&config, &all),
            [
                "10.89.2.1 by br0 from 10.89.2.0/24 fd89:2::/64 via 9.9.9.9",
                "10.89.2.1 by lo from  via 9.9.9.9",
                "fd89:2::1 by br0 from 10.89.2.0/24 fd89:2::/64 via 9.9.9.9",
                "fd89:2::1 by lo from  via 9.9.9.9",
                "10.88.0.2 by mesh0 from  via ",
                "10.88.0.2 by lo from  via ",
            ]
        );
        let early = interfaces(&[("lo", &["127.0.0.1"]), ("br0", &[])]);
        assert_eq!(shown(&config, &early), [""; 0], "no tunnel yet, and a bridge without an address");
    }
}
