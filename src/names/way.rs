//! How queries about other names leave: as what a container of the bridge sends, and not otherwise.
//!
//! A socket is bound to the bridge's own address, so that the rules `from SUBNET` take it into the bridge's table and the tunnel
//! finds the bridge's exit by it. It is bound to the tunnel's interface too: when somebody flushes the rules, or the interface goes,
//! the kernel has no way for it, and never another one.

use std::net::{IpAddr, SocketAddr};

use crate::config::{Bridge, Config, Egress};

/// Of name servers.
const PORT: u16 = 53;

/// One name server, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The server.
    pub server: SocketAddr,
    /// The address to ask from; `None` leaves it to the kernel.
    pub source: Option<IpAddr>,
    /// The only interface to ask by; `None` leaves it to the routes.
    pub device: Option<String>,
}

/// The name servers of the configuration that a bridge reaches, in their order. `gateways` are this host's addresses on that bridge,
/// `own` all that this agent answers on.
pub(super) fn ways(config: &Config, bridge: &Bridge, gateways: &[IpAddr], own: &[IpAddr]) -> Vec<Way> {
    let host = &config.host;
    let upstream = host.names.iter().flat_map(|names| &names.upstream);
    let way = |&server: &IpAddr| {
        // A query that comes back here would be asked again.
        if own.contains(&server) {
            return None;
        }
        let source = gateways.iter().copied().find(|gateway| gateway.is_ipv4() == server.is_ipv4());
        let (source, device) = match towards(config, bridge, server) {
            Towards::Freely => (None, None),
            Towards::By(device) => (Some(source?), Some(device.to_owned())),
            Towards::Nowhere => return None,
        };
        Some(Way { server: SocketAddr::new(server, PORT), source, device })
    };
    upstream.filter_map(way).collect()
}

enum Towards<'a> {
    Freely,
    By(&'a str),
    Nowhere,
}

fn towards<'a>(config: &'a Config, bridge: &Bridge, server: IpAddr) -> Towards<'a> {
    let host = &config.host;
    let local = host.bridges.iter().find(|bridge| bridge.subnets.iter().any(|net| net.contains(&server)));
    let mesh = host.addresses.iter().any(|net| net.contains(&server))
        || config.peers.iter().any(|peer| peer.networks().any(|net| net.contains(&server)));
    match (&bridge.egress, local) {
        (_, Some(local)) => Towards::By(&local.name),
        (Egress::Direct, None) => Towards::Freely,
        (Egress::Peers(_) | Egress::None, None) if bridge.allow.iter().any(|net| net.contains(&server)) => {
            Towards::Freely
        }
        (Egress::None, None) if !mesh => Towards::Nowhere,
        (Egress::Peers(_) | Egress::None, None) => Towards::By(&host.interface),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;
    use crate::config::Names;

    /// Each way of `br0` as `SERVER from SOURCE by DEVICE`.
    fn paths(egress: Egress, upstream: &[&str]) -> Vec<String> {
        let mut config = config();
        let upstream = upstream.iter().map(|addr| addr.parse().unwrap()).collect();
        config.host.names = Some(Names { upstream, containers: Vec::new() });
        let dmz = Bridge {
            name: "dmz".to_owned(),
            subnets: vec!["10.89.9.0/24".parse().unwrap()],
            egress: Egress::Direct,
            allow: Vec::new(),
            users: Vec::new(),
        };
        config.host.bridges[0].egress = egress;
        config.host.bridges[0].allow = vec!["192.168.1.0/24".parse().unwrap()];
        config.host.bridges.push(dmz);
        let gateways = ["10.89.2.1".parse().unwrap(), "fd89:2::1".parse().unwrap()];
        let own = [gateways[0], gateways[1], "10.88.0.2".parse().unwrap()];
        let ways = ways(&config, &config.host.bridges[0], &gateways, &own);
        let any = || "any".to_owned();
        ways.into_iter()
            .map(|way| {
                let source = way.source.map_or_else(any, |source| source.to_string());
                format!("{} from {source} by {}", way.server.ip(), way.device.unwrap_or_else(any))
            })
            .collect()
    }

    const SERVERS: [&str; 6] = ["9.9.9.9", "2620:fe::fe", "192.168.1.1", "10.89.1.53", "10.89.9.53", "10.88.0.1"];

    #[test]
    fn an_egress_bridge_asks_through_its_exit() {
        assert_eq!(
            paths(Egress::Peers(vec!["vps".to_owned()]), &SERVERS),
            [
                "9.9.9.9 from 10.89.2.1 by mesh0",
                "2620:fe::fe from fd89:2::1 by mesh0",
                "192.168.1.1 from any by any",
                "10.89.1.53 from 10.89.2.1 by mesh0",
                "10.89.9.53 from 10.89.2.1 by dmz",
                "10.88.0.1 from 10.89.2.1 by mesh0",
            ]
        );
    }

    #[test]
    fn a_bridge_without_egress_asks_the_mesh() {
        assert_eq!(
            paths(Egress::None, &SERVERS),
            [
                "192.168.1.1 from any by any",
                "10.89.1.53 from 10.89.2.1 by mesh0",
                "10.89.9.53 from 10.89.2.1 by dmz",
                "10.88.0.1 from 10.89.2.1 by mesh0",
            ]
        );
    }

    #[test]
    fn a_direct_bridge_asks_as_the_host() {
        let expected = ["9.9.9.9 from any by any", "10.89.1.53 from any by any", "10.89.9.53 from 10.89.2.1 by dmz"];
        assert_eq!(paths(Egress::Direct, &["9.9.9.9", "10.89.1.53", "10.89.9.53"]), expected);
    }

    #[test]
    fn nobody_asks_this_host_itself() {
        assert_eq!(paths(Egress::Direct, &["10.89.2.1", "fd89:2::1", "10.88.0.2"]), [""; 0]);
    }
}
