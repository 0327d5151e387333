//! What hosts know of each other beyond the peers that an operator wrote down. Pure: no I/O, and `now` is an argument.

pub mod direct;
pub mod introduce;
pub mod news;
pub mod rotate;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Endpoint, Peer, allow, value};
use crate::key::PublicKey;

/// A host or a client as another host introduces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// In the mesh.
    pub name: String,
    /// Its identity.
    pub public_key: PublicKey,
    /// Inside the mesh.
    pub addresses: Vec<IpAddr>,
    /// Bridges and LANs behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<IpNet>,
    /// Those of them that are LANs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lans: Vec<IpNet>,
    /// `HOST:PORT`, where it has one that others can use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// A device that reaches what `allow` says and nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub client: bool,
    /// As in `peers/NAME.toml`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// In an offer: what its own news are signed with, as the inviter trusts them. In news nobody vouches for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inviter_key: Option<String>,
}

/// Whom this host introduces: its own peers, hosts that it trusts and clients. Those that it knows from others, the others
/// introduce.
pub fn members(config: &Config) -> Vec<Member> {
    let own = |peer: &&Peer| peer.introduced_by.is_none() && (peer.client || peer.trusted());
    config.peers.iter().filter(own).map(Member::of).collect()
}

/// What a new host is told: the members, but not itself, and whose news it may believe.
pub fn offered(config: &Config, to: &PublicKey) -> Vec<Member> {
    let key = |member: &Member| config.peer(&member.name)?.inviter_key.map(|key| key.to_string());
    let others = members(config).into_iter().filter(|member| member.public_key != *to);
    others.map(|member| Member { inviter_key: key(&member), ..member }).collect()
}

impl Member {
    /// This host itself.
    pub fn this_host(config: &Config) -> Self {
        let host = &config.host;
        let lans: Vec<IpNet> = host.lans.iter().map(|lan| lan.subnet).collect();
        let bridges = host.bridges.iter().flat_map(|bridge| bridge.subnets.iter().map(IpNet::trunc));
        Self {
            name: host.name.clone(),
            public_key: config.private_key.public_key(),
            addresses: host.addresses.iter().map(IpNet::addr).collect(),
            subnets: bridges.chain(lans.iter().copied()).collect(),
            lans,
            endpoint: host.endpoint.as_ref().map(Endpoint::to_string),
            client: false,
            allow: Vec::new(),
            inviter_key: None,
        }
    }

    /// A peer of this host.
    pub fn of(peer: &Peer) -> Self {
        let allow = if peer.client { peer.allow.as_deref().unwrap_or_default() } else { &[] };
        Self {
            name: peer.name.clone(),
            public_key: peer.public_key,
            addresses: peer.addresses.clone(),
            subnets: peer.subnets.clone(),
            lans: peer.lans.clone(),
            endpoint: peer.endpoint.as_ref().map(Endpoint::to_string),
            client: peer.client,
            allow: allow.iter().map(ToString::to_string).collect(),
            inviter_key: None,
        }
    }

    /// As a peer of this host that knows it from nobody else yet: no preshared key, no relay.
    ///
    /// # Errors
    /// What is wrong with it, by the rules of `peers/NAME.toml` for single values. Whether it fits what this host knows
    /// already, [`crate::config::parse`] says.
    pub fn peer(&self) -> Result<Peer, String> {
        value::name(&self.name).map_err(|why| format!("name {}: {why}", crate::config::quote(&self.name)))?;
        let checked = |text: String, check: fn(&str) -> Result<IpNet, String>| {
            check(&text).map_err(|why| format!("{} {text}: {why}", self.name))
        };
        let subnets =
            self.subnets.iter().map(|net| checked(net.to_string(), value::peer_subnet)).collect::<Result<_, _>>()?;
        let endpoint = self.endpoint.as_deref().map(value::endpoint).transpose();
        let allowed = self.allow.iter().map(|item| allow(item)).collect::<Result<Vec<_>, _>>();
        Ok(Peer {
            endpoint: endpoint.map_err(|why| format!("endpoint of {}: {why}", self.name))?,
            addresses: self.addresses.clone(),
            subnets,
            client: self.client,
            allow: self
                .client
                .then_some(allowed)
                .transpose()
                .map_err(|why| format!("allow of {}: {why}", self.name))?,
            lans: self.lans.clone(),
            ..Peer::new(&self.name, self.public_key)
        })
    }
}
