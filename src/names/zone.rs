//! What this host answers itself: the names of the mesh, and those of its addresses.
//!
//! ```text
//! mesh                        SOA, NS
//! home.mesh                   the host's addresses inside the mesh
//! nextcloud.home.mesh         the container's
//! 10.2.89.10.in-addr.arpa     nextcloud.home.mesh
//! ```
//!
//! Reverse names are answered for the networks of the mesh and of its bridges; all of them, so that none of these addresses is asked
//! about elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use ipnet::IpNet;

use super::{Attached, Heard, Named, label};
use crate::config::Config;

/// Seconds for which an answer may be kept: for as long a container that came back with another address is looked for at its old one.
const TTL: u32 = 5;
/// The same for "there is no such name": a container that is attached is found within a second.
const NEGATIVE_TTL: u32 = 1;
/// For secondary servers, of which there are none: seconds (RFC 1912, section 2.2).
const REFRESH: i32 = 3600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 86_400;

/// Names and addresses at one moment.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    /// This host, which answers.
    server: Name,
    serial: u32,
    /// Hosts and containers. A host without addresses has a name all the same, because its containers are below it.
    names: HashMap<LowerName, Vec<IpAddr>>,
    reverse: HashMap<IpAddr, Name>,
    networks: Vec<IpNet>,
}

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It is none of the mesh.
    Elsewhere,
    /// This.
    Records(Vec<Record>),
    /// Nothing of that type, or nothing at all. `soa` says for how long (RFC 2308, section 3).
    Nothing {
        /// Whether the name has something else, or names below it.
        exists: bool,
        /// Of the zone that the name would be in.
        soa: Box<Record>,
    },
}

impl Zone {
    /// The mesh as `config` knows it, with the containers of this host and what peers say of theirs. Names that cannot be are
    /// left out, as are addresses outside of the bridge or of the peer that is said to have them. `serial` grows.
    pub fn new(config: &Config, own: &[Attached], heard: &Heard, serial: u32) -> Self {
        let host = &config.host;
        let domain = name(&host.domain).unwrap_or_else(Name::root);
        let mut zone = Self {
            server: below(&host.name, &domain).unwrap_or_else(|| domain.clone()),
            serial,
            names: HashMap::new(),
            reverse: HashMap::new(),
            networks: networks(config),
            domain,
        };
        let (server, addresses) = (zone.server.clone(), host.addresses.iter().map(IpNet::addr).collect());
        zone.insert(&server, addresses);
        for container in own {
            let bridge = host.bridges.iter().find(|bridge| bridge.name == container.bridge);
            let subnets = bridge.map(|bridge| bridge.subnets.as_slice()).unwrap_or_default();
            zone.insert_below(&server, &container.name, &container.addresses, subnets);
        }
        for peer in &config.peers {
            let Some(host) = below(&peer.name, &zone.domain) else { continue };
            zone.insert(&host, peer.addresses.clone());
            for Named(name, addresses) in heard.of(&peer.public_key) {
                zone.insert_below(&host, name, addresses, &peer.subnets);
            }
        }
        zone
    }

    fn insert_below(&mut self, host: &Name, name: &str, addresses: &[IpAddr], subnets: &[IpNet]) {
        let inside = |addr: &&IpAddr| subnets.iter().any(|net| net.contains(*addr));
        let addresses: Vec<IpAddr> = addresses.iter().filter(inside).copied().collect();
        if let Some(name) = label(name).and_then(|label| below(&label, host))
            && !addresses.is_empty()
        {
            self.insert(&name, addresses);
        }
    }

    /// The first of a name or an address has it.
    fn insert(&mut self, name: &Name, addresses: Vec<IpAddr>) {
        let key = LowerName::new(name);
        if self.names.contains_key(&key) {
            return;
        }
        for addr in &addresses {
            self.reverse.entry(*addr).or_insert_with(|| name.clone());
        }
        self.names.insert(key, addresses);
    }

    /// All names, without a dot at their ends, in order, and what they stand for.
    pub fn listing(&self) -> impl Iterator<Item = (String, Vec<IpAddr>)> {
        let name = |name: &LowerName| name.to_ascii().trim_end_matches('.').to_owned();
        let sorted: BTreeMap<_, _> = self.names.iter().map(|(key, addresses)| (name(key), addresses.clone())).collect();
        sorted.into_iter()
    }

    /// What is known of a name, of this type.
    pub fn look_up(&self, asked: &Name, kind: RecordType) -> Found {
        if self.domain.zone_of(asked) { self.forward(asked, kind) } else { self.reverse(asked, kind) }
    }

    fn forward(&self, asked: &Name, kind: RecordType) -> Found {
        let apex = asked.num_labels() == self.domain.num_labels();
        let addresses = self.names.get(&LowerName::new(asked));
        let data: Vec<RData> = match kind {
            RecordType::SOA if apex => vec![self.soa()],
            RecordType::NS if apex => vec![RData::NS(NS(self.server.clone()))],
            _ => addresses.into_iter().flatten().filter_map(|addr| of_type(*addr, kind)).collect(),
        };
        self.found(asked, data, apex || addresses.is_some(), &self.domain)
    }

    fn reverse(&self, asked: &Name, kind: RecordType) -> Found {
        let Some((at, net)) = arpa(asked) else { return Found::Elsewhere };
        let Some(own) = self.networks.iter().find(|own| own.contains(&net)) else { return Found::Elsewhere };
        // The delegation of a network that ends within a label would be of the labels below it.
        let bits = if own.addr().is_ipv4() { 8 } else { 4 };
        let apex = at.trim_to(2 + usize::from(own.prefix_len().div_ceil(bits)));
        let whole = net.prefix_len() == net.max_prefix_len();
        let named = self.reverse.get(&net.addr()).filter(|_| whole && at == *asked);
        let data: Vec<RData> = match kind {
            RecordType::PTR | RecordType::ANY => named.map(|name| RData::PTR(PTR(name.clone()))).into_iter().collect(),
            RecordType::SOA if apex == *asked => vec![self.soa()],
            RecordType::NS if apex == *asked => vec![RData::NS(NS(self.server.clone()))],
            _ => Vec::new(),
        };
        // Of what is no whole address, it is not looked whether one of those below has a name.
        self.found(asked, data, named.is_some() || (at == *asked && !whole), &apex)
    }

    fn found(&self, asked: &Name, data: Vec<RData>, exists: bool, apex: &Name) -> Found {
        if data.is_empty() {
            let soa = Record::from_rdata(apex.clone(), NEGATIVE_TTL, self.soa());
            return Found::Nothing { exists, soa: Box::new(soa) };
        }
        Found::Records(data.into_iter().map(|data| Record::from_rdata(asked.clone(), TTL, data)).collect())
    }

    fn soa(&self) -> RData {
        // Nobody reads mail there, but the field wants a name (RFC 1035, section 3.3.13).
        let mailbox = below("hostmaster", &self.server).unwrap_or_else(Name::root);
        RData::SOA(SOA::new(self.server.clone(), mailbox, self.serial, REFRESH, RETRY, EXPIRE, NEGATIVE_TTL))
    }
}

/// The domains that a resolver of this host should send here, each without a dot at its end: the mesh's, and the reverse names of those
/// of its networks that end where a label does.
pub fn routing_domains(config: &Config) -> Vec<String> {
    let reverse = networks(config).into_iter().filter_map(|net| {
        let (mut labels, zone): (Vec<String>, _) = match net.addr() {
            IpAddr::V4(addr) if net.prefix_len() % 8 == 0 => {
                let octets = addr.octets().into_iter().take(usize::from(net.prefix_len() / 8));
                (octets.map(|octet| octet.to_string()).collect(), "in-addr.arpa")
            }
            IpAddr::V6(addr) if net.prefix_len() % 4 == 0 => {
                let nibble = |at: u8| format!("{:x}", (addr.to_bits() >> (124 - 4 * at)) & 15);
                ((0..net.prefix_len() / 4).map(nibble).collect(), "ip6.arpa")
            }
            _ => return None,
        };
        labels.reverse();
        labels.push(zone.to_owned());
        Some(labels.join("."))
    });
    std::iter::once(config.host.domain.clone()).chain(reverse).collect()
}

/// Those of the mesh and of all bridges, without what is a LAN.
fn networks(config: &Config) -> Vec<IpNet> {
    let mesh = config.host.addresses.iter();
    let bridges = config.host.bridges.iter().flat_map(|bridge| &bridge.subnets);
    let peers = config.peers.iter().flat_map(|peer| peer.subnets.iter().filter(|net| !peer.lans.contains(net)));
    let mut networks: Vec<IpNet> = mesh.chain(bridges).chain(peers).map(IpNet::trunc).collect();
    networks.sort();
    networks.dedup();
    networks
}

fn of_type(addr: IpAddr, kind: RecordType) -> Option<RData> {
    match (addr, kind) {
        (IpAddr::V4(addr), RecordType::A | RecordType::ANY) => Some(RData::A(A(addr))),
        (IpAddr::V6(addr), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(addr))),
        _ => None,
    }
}

/// The part of a name that stands for an address or a network, and which. A service that is looked for below it
/// (RFC 6763, section 11) is as much a matter of that network.
fn arpa(asked: &Name) -> Option<(Name, IpNet)> {
    let arpa = Name::from_ascii("arpa.").ok()?;
    if !arpa.zone_of(asked) {
        return None;
    }
    let mut at = asked.clone();
    while at.num_labels() >= 2 {
        if let Ok(net) = at.parse_arpa_name() {
            return Some((at, net));
        }
        at = at.base_name();
    }
    None
}

fn name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{text}.")).ok()
}

fn below(label: &str, parent: &Name) -> Option<Name> {
    // As bytes: a label as text would be taken for a name in any language.
    parent.prepend_label(label.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use RecordType as T;

    use super::super::heard::tests::heard;
    use super::super::tests::{attached, config};
    use super::*;

    fn zone() -> Zone {
        let own = [
            attached("nextcloud", &["10.89.2.10", "fd89:2::10"]),
            attached("My_Vault", &["10.89.2.11", "192.0.2.1"]),
            attached("nextcloud", &["10.89.2.12"]),
            attached("elsewhere", &["10.89.1.77"]),
        ];
        let said =
            [("proxy", &["10.89.1.10", "fd89:1::10"][..]), ("evil", &["10.89.2.10"][..]), ("a.b", &["10.89.1.11"][..])];
        let config = config();
        let heard = heard(&config, "vps", &said);
        Zone::new(&config, &own, &heard, 7)
    }

    /// The records as text, `nothing`, `no such name` or `elsewhere`, the last three with the zone.
    fn ask(zone: &Zone, asked: &str, kind: RecordType) -> Vec<String> {
        match zone.look_up(&Name::from_ascii(asked).unwrap(), kind) {
            Found::Elsewhere => vec!["elsewhere".to_owned()],
            Found::Records(records) => records.iter().map(|record| record.data.to_string()).collect(),
            Found::Nothing { exists, soa } => {
                vec![format!("{} in {}", if exists { "nothing" } else { "no such name" }, soa.name)]
            }
        }
    }

    #[track_caller]
    fn table(zone: &Zone, rows: &[(&str, RecordType, &[&str])]) {
        for (asked, kind, expected) in rows {
            assert_eq!(ask(zone, asked, *kind), *expected, "{asked} {kind}");
        }
    }

    #[test]
    fn names_of_hosts_and_containers() {
        table(
            &zone(),
            &[
                ("home.mesh.", T::A, &["10.88.0.2"]),
                ("home.mesh.", T::AAAA, &["fd88::2"]),
                ("vps.mesh.", T::A, &["10.88.0.1"]),
                ("VPS.Mesh.", T::ANY, &["10.88.0.1", "fd88::1"]),
                ("nextcloud.home.mesh.", T::A, &["10.89.2.10"]),
                ("nextcloud.home.mesh.", T::AAAA, &["fd89:2::10"]),
                ("NextCloud.HOME.mesh.", T::A, &["10.89.2.10"]),
                ("my-vault.home.mesh.", T::A, &["10.89.2.11"]),
                ("my-vault.home.mesh.", T::AAAA, &["nothing in mesh."]),
                ("proxy.vps.mesh.", T::A, &["10.89.1.10"]),
                ("a-b.vps.mesh.", T::A, &["10.89.1.11"]),
                ("home.mesh.", T::MX, &["nothing in mesh."]),
                ("mesh.", T::A, &["nothing in mesh."]),
                ("mesh.", T::NS, &["home.mesh."]),
                ("nextcloud.mesh.", T::A, &["no such name in mesh."]),
                ("x.nextcloud.home.mesh.", T::A, &["no such name in mesh."]),
                ("notmesh.", T::A, &["elsewhere"]),
                ("mesh.example.", T::A, &["elsewhere"]),
                (".", T::NS, &["elsewhere"]),
            ],
        );
        assert_eq!(ask(&zone(), "mesh.", T::SOA), ["home.mesh. hostmaster.home.mesh. 7 3600 600 86400 1"]);
    }

    /// Its own names and subnets are all that a peer can speak of.
    #[test]
    fn a_peer_cannot_take_what_is_not_its() {
        let zone = zone();
        assert_eq!(ask(&zone, "evil.vps.mesh.", RecordType::A), ["no such name in mesh."]);
        assert_eq!(ask(&zone, "elsewhere.home.mesh.", RecordType::A), ["no such name in mesh."]);
        assert_eq!(ask(&zone, "10.2.89.10.in-addr.arpa.", RecordType::PTR), ["nextcloud.home.mesh."]);
    }

    #[test]
    fn names_of_addresses() {
        let nibbles = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.9.8.d.f.ip6.arpa.";
        table(
            &zone(),
            &[
                ("10.2.89.10.in-addr.arpa.", T::PTR, &["nextcloud.home.mesh."]),
                ("10.1.89.10.IN-ADDR.ARPA.", T::PTR, &["proxy.vps.mesh."]),
                ("1.0.88.10.in-addr.arpa.", T::PTR, &["vps.mesh."]),
                (nibbles, T::PTR, &["nextcloud.home.mesh."]),
                ("10.2.89.10.in-addr.arpa.", T::A, &["nothing in 2.89.10.in-addr.arpa."]),
                ("99.2.89.10.in-addr.arpa.", T::PTR, &["no such name in 2.89.10.in-addr.arpa."]),
                ("2.89.10.in-addr.arpa.", T::PTR, &["nothing in 2.89.10.in-addr.arpa."]),
                ("2.89.10.in-addr.arpa.", T::NS, &["home.mesh."]),
                ("lb._dns-sd._udp.0.2.89.10.in-addr.arpa.", T::PTR, &["no such name in 2.89.10.in-addr.arpa."]),
                ("89.10.in-addr.arpa.", T::PTR, &["elsewhere"]),
                ("10.in-addr.arpa.", T::SOA, &["elsewhere"]),
                ("1.1.168.192.in-addr.arpa.", T::PTR, &["elsewhere"]),
                ("8.8.8.8.in-addr.arpa.", T::PTR, &["elsewhere"]),
                ("256.2.89.10.in-addr.arpa.", T::PTR, &["no such name in 2.89.10.in-addr.arpa."]),
                ("in-addr.arpa.", T::NS, &["elsewhere"]),
                ("arpa.", T::NS, &["elsewhere"]),
                ("home.arpa.", T::NS, &["elsewhere"]),
            ],
        );
    }

    #[test]
    fn networks_that_end_within_a_label_claim_no_more_than_their_own() {
        let mut config = config();
        config.host.bridges[0].subnets = vec!["10.89.16.0/20".parse().unwrap(), "fd89:2::/62".parse().unwrap()];
        let own = [attached("nextcloud", &["10.89.17.5"])];
        let zone = Zone::new(&config, &own, &Heard::default(), 1);
        table(
            &zone,
            &[
                ("5.17.89.10.in-addr.arpa.", T::PTR, &["nextcloud.home.mesh."]),
                ("6.17.89.10.in-addr.arpa.", T::PTR, &["no such name in 17.89.10.in-addr.arpa."]),
                ("89.10.in-addr.arpa.", T::PTR, &["elsewhere"]),
                ("5.32.89.10.in-addr.arpa.", T::PTR, &["elsewhere"]),
            ],
        );
        assert_eq!(
            routing_domains(&config),
            [
                "mesh",
                "0.88.10.in-addr.arpa",
                "1.89.10.in-addr.arpa",
                "0.0.0.0.0.0.0.0.0.0.0.0.8.8.d.f.ip6.arpa",
                "0.0.0.0.0.0.0.0.1.0.0.0.9.8.d.f.ip6.arpa",
            ]
        );
    }

    #[test]
    fn a_domain_of_several_labels() {
        let mut config = config();
        config.host.domain = "mesh.example.net".to_owned();
        let zone = Zone::new(&config, &[], &Heard::default(), 1);
        table(
            &zone,
            &[
                ("home.mesh.example.net.", T::A, &["10.88.0.2"]),
                ("example.net.", T::A, &["elsewhere"]),
                ("home.mesh.", T::A, &["elsewhere"]),
            ],
        );
    }
}
