//! The configuration of one host: `meshd.toml`, `private.key` and `peers/NAME.toml`, checked.
//!
//! A [`Config`] can only be had through [`parse`], so whoever holds one need not check it again. The bytes of all files
//! go in, and either a whole configuration comes out or every problem there is, each with its file and line:
//!
//! 1. `reader` turns one file's TOML into values by the parsers of [`value`], and names unknown keys and wrong values.
//! 2. `file` knows the keys of the three kinds of file.
//! 3. `check` holds the files against each other, once each of them is sound by itself: before that, its errors would
//!    only repeat the first ones in other words.

mod allow;
pub mod assign;
mod check;
pub mod edit;
mod file;
pub(crate) mod problem;
mod reader;
#[cfg(test)]
mod tests;
pub mod value;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::key::{NextKeys, PresharedKey, PrivateKey, PublicKey, VerifyingKey};

pub use allow::{Allow, Place, Service, allow, service};
pub use file::{
    DEFAULT_DOMAIN, DEFAULT_INTERFACE, DEFAULT_LISTEN_PORT, DEFAULT_MTU, Files, Psk, SourceFile, parse, psk_of,
};
pub(crate) use problem::Problems;
pub use problem::{Problem, list_of_names, printable, quote};
pub use reader::MAX_FILE;

/// One host's whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What `meshd.toml` says.
    pub host: Host,
    /// From `private.key`.
    pub private_key: PrivateKey,
    /// From `peers/`, by name.
    pub peers: Vec<Peer>,
}

/// `meshd.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// This host's name in the mesh.
    pub name: String,
    /// The tunnel's interface.
    pub interface: String,
    /// This host's addresses inside the mesh, each with the prefix of the mesh network.
    pub addresses: Vec<IpNet>,
    /// The UDP port; 0 lets the kernel pick.
    pub listen_port: u16,
    /// How others reach this host, for invitations.
    pub endpoint: Option<Endpoint>,
    /// Of the tunnel, in bytes.
    pub mtu: u16,
    /// Threads that carry packets; by default as many as suit the machine.
    pub workers: Option<u16>,
    /// Whether the outer header takes the DSCP of the packet inside.
    pub copy_dscp: bool,
    /// Container bridges.
    pub bridges: Vec<Bridge>,
    /// Networks behind this host that peers may reach.
    pub lans: Vec<Lan>,
    /// Whose egress this host carries.
    pub exit: Option<Exit>,
    /// Ports handed to containers.
    pub publish: Vec<Publish>,
    /// What names of hosts and containers end in.
    pub domain: String,
    /// Whether data may go under express keys, where both sides can.
    pub express: bool,
    /// What is answered to those who ask for names; `None` answers nobody.
    pub names: Option<Names>,
}

/// The name server on this host's bridges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Name servers for all that is not of the mesh, the preferred one first; none refuses it.
    pub upstream: Vec<IpAddr>,
    /// Containers on this host's bridges that `meshd attach` has not put there.
    pub containers: Vec<NamedContainer>,
}

/// A container with an address that does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedContainer {
    /// One label.
    pub name: String,
    /// In subnets of this host's bridges.
    pub addresses: Vec<IpAddr>,
}

/// A container bridge of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The interface.
    pub name: String,
    /// Its container networks.
    pub subnets: Vec<IpNet>,
    /// Where its containers leave to the internet.
    pub egress: Egress,
    /// Networks that its containers may reach directly despite `egress`.
    pub allow: Vec<IpNet>,
    /// Who beside root may attach containers to it. Each name once.
    pub users: Vec<User>,
}

/// What a user of this host may do on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// As passwd(5) has it, or the number.
    pub name: String,
    /// How many containers of theirs may be on the bridge at a time.
    pub containers: u16,
    /// Which addresses these may have, in the families that this names; any in the others.
    pub addresses: Vec<IpNet>,
    /// Users whose containers theirs may reach on the bridge, and the other way round.
    pub reach: Vec<String>,
    /// Ports of this host that they may have lead to a container of theirs.
    pub publish: Vec<Service>,
}

/// Where a bridge's containers leave to the internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// As without meshd.
    Direct,
    /// Nowhere; the mesh stays reachable.
    None,
    /// Through the first of these peers that answers, and never otherwise. At least one, each once.
    Peers(Vec<String>),
}

/// A network behind this host that peers may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    /// The network.
    pub subnet: IpNet,
    /// The interface towards it.
    pub interface: String,
    /// Whether peers appear there under this host's own address.
    pub masquerade: bool,
}

/// Whose egress this host carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Names of peers.
    pub peers: Vec<String>,
    /// The interface towards the internet; `None` is that of the default route.
    pub interface: Option<String>,
    /// Through whom what they send goes on: a chain. Never [`Egress::None`].
    pub egress: Egress,
}

/// Ports of this host handed to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The ports on this host.
    pub ports: PortRange,
    /// The container's address, and its port for the first of `ports`; the others follow in order.
    pub to: SocketAddr,
}

/// One port or several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// At least 1.
    pub first: u16,
    /// At least `first`.
    pub last: u16,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// `peers/NAME.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The file's name without `.toml`.
    pub name: String,
    /// Its identity.
    pub public_key: PublicKey,
    /// From `preshared_key` or the file that `preshared_key_file` names.
    pub preshared_key: Option<PresharedKey>,
    /// Where to reach it at first; afterwards the tunnel follows its authenticated packets.
    pub endpoint: Option<Endpoint>,
    /// Its addresses inside the mesh.
    pub addresses: Vec<IpAddr>,
    /// Bridges and LANs behind it.
    pub subnets: Vec<IpNet>,
    /// Seconds between keepalives; `None` sends none.
    pub persistent_keepalive: Option<u16>,
    /// A device rather than a host of the same owner: it reaches what `allow` says and nothing else.
    pub client: bool,
    /// What it may reach at and through this host; `None` is the mesh for a host and nothing for a client.
    pub allow: Option<Vec<Allow>>,
    /// Those of `subnets` that are LANs, not bridges.
    pub lans: Vec<IpNet>,
    /// The peer through which it is reached while no direct path stands.
    pub via: Option<String>,
    /// The peer whose news brought it, and keep it in step.
    pub introduced_by: Option<String>,
    /// What its news of the mesh are signed with; only whose is here may introduce others.
    pub inviter_key: Option<VerifyingKey>,
    /// What a rotation under way brings.
    pub next: NextKeys,
    /// Whether data between it and this host may go under express keys, where both can.
    pub express: bool,
}

impl Peer {
    /// What its file says when it says no more than the key.
    pub fn new(name: impl Into<String>, public_key: PublicKey) -> Self {
        Self {
            name: name.into(),
            public_key,
            preshared_key: None,
            endpoint: None,
            addresses: Vec::new(),
            subnets: Vec::new(),
            persistent_keepalive: None,
            client: false,
            allow: None,
            lans: Vec::new(),
            via: None,
            introduced_by: None,
            inviter_key: None,
            next: NextKeys::default(),
            express: true,
        }
    }

    /// Whether it may reach all that this host forwards to.
    pub fn has_the_mesh(&self) -> bool {
        let all = Allow { to: Place::Mesh, service: None };
        self.allow.as_ref().map_or(!self.client, |items| items.contains(&all))
    }

    /// Whether it is a host of the same owner that no `allow` holds back: its own addresses reach this host's services, and
    /// it may bring what it published or relays.
    pub fn trusted(&self) -> bool {
        !self.client && self.has_the_mesh()
    }
}

/// `HOST:PORT` as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An address.
    Addr(SocketAddr),
    /// A DNS name, looked up when the tunnel starts and again when the peer goes silent.
    Name(String, u16),
}

impl Endpoint {
    /// Of UDP, at least 1.
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Name(_, port) => *port,
        }
    }
}

impl Publish {
    /// The container's last port, if there is one of that number.
    pub fn last_target(&self) -> Option<u16> {
        self.to.port().checked_add(self.ports.last - self.ports.first)
    }
}

impl PortRange {
    /// Whether one of them is `port`.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether they have a port in common.
    pub fn overlap(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl fmt::Display for PortRange {
    /// `443` or `8000-8010`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

impl fmt::Display for Publish {
    /// `tcp/443`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.ports)
    }
}

impl Config {
    /// A peer by name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// Whether something of this host, or of those whose exit it is, leaves through this peer.
    pub fn is_exit(&self, peer: &str) -> bool {
        let bridges = self.host.bridges.iter().map(|bridge| &bridge.egress);
        let mut egresses = bridges.chain(self.host.exit.as_ref().map(|exit| &exit.egress));
        egresses.any(|egress| egress.exits().iter().any(|exit| exit == peer))
    }

    /// The peers whose egress this host hands on to another exit; none when it carries it itself.
    pub fn chained(&self) -> impl Iterator<Item = &Peer> {
        let exit = self.host.exit.as_ref().filter(|exit| !exit.egress.exits().is_empty());
        exit.into_iter().flat_map(|exit| &exit.peers).filter_map(|name| self.peer(name))
    }

    /// Whether a peer may publish a port to a container whose bridge does not leave through the tunnel anyway.
    pub fn answers_need_marks(&self) -> bool {
        self.peers.iter().any(Peer::trusted)
            && self.host.bridges.iter().any(|bridge| !matches!(bridge.egress, Egress::Peers(_)))
    }

    /// Whether this host publishes a port to a container whose packets do not follow main here.
    pub fn publishes_beside_main(&self) -> bool {
        self.host.publish.iter().any(|publish| self.is_beside_main(publish))
    }

    /// Whether a published port's container is on an egress bridge of this host, or behind a peer whose egress this host
    /// hands on.
    pub fn is_beside_main(&self, publish: &Publish) -> bool {
        self.bridge_of(publish).is_some_and(|bridge| bridge.egress != Egress::Direct)
            || self.chained().flat_map(Peer::networks).any(|net| net.contains(&publish.to.ip()))
    }

    /// The local bridge on which a published port's container is.
    pub fn bridge_of(&self, publish: &Publish) -> Option<&Bridge> {
        let holds = |bridge: &&Bridge| bridge.subnets.iter().any(|net| net.contains(&publish.to.ip()));
        self.host.bridges.iter().find(holds)
    }

    /// What a peer may send from and is sent to: its addresses and subnets, and everything when it is an exit. Sorted, without repetition.
    pub fn allowed_ips(&self, peer: &Peer) -> Vec<IpNet> {
        let mut nets: Vec<IpNet> = peer.networks().collect();
        if self.is_exit(&peer.name) {
            nets.extend(EVERYTHING);
        }
        nets.sort();
        nets.dedup();
        nets
    }
}

impl Peer {
    /// All that is behind it, and itself.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.addresses.iter().map(|&addr| IpNet::from(addr)).chain(self.subnets.iter().map(IpNet::trunc))
    }
}

impl Egress {
    /// The peers, the preferred one first.
    pub fn exits(&self) -> &[String] {
        match self {
            Self::Peers(names) => names,
            Self::Direct | Self::None => &[],
        }
    }
}

/// `0.0.0.0/0` and `::/0`.
pub const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
];

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::None => f.write_str("none"),
            Self::Peers(names) => f.write_str(&names.join(", ")),
        }
    }
}
