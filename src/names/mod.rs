//! Names of hosts and containers, and what is asked about all others. Pure: no I/O, and `now` is an argument.
//!
//! 1. [`Heard`] holds what other agents say of their own containers, [`Told`] what this one says of its.
//! 2. [`Zone`] is made of these and the configuration: `HOST.DOMAIN` and `CONTAINER.HOST.DOMAIN`, and the names of the addresses.
//! 3. [`read`] turns the bytes of a query into those of the answer, or into a [`Forward`] that is to go upstream.
//! 4. [`places`] says where this host answers, and how what it forwards leaves from there ([`Way`]): as what a container of the same
//!    bridge sends. [`Flights`] bounds what is under way, [`Gate`] how much is asked at all.
//!
//! A peer is believed about names under its own and addresses of its own subnets; whatever else it says is not there.

mod flights;
mod gate;
mod heard;
mod label;
mod place;
mod way;
mod wire;
mod zone;

use std::net::IpAddr;

pub use flights::{Begun, Flights};
pub use gate::Gate;
pub use heard::{Answer, Heard, Request, Told};
pub use label::label;
pub use place::{Interfaces, Place, places};
pub use way::Way;
pub use wire::{Forward, MAX_QUERY, Transport, Verdict, read};
pub use zone::{Found, Zone, routing_domains};

/// A container on a bridge of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// As its owner calls it.
    pub name: String,
    /// The bridge.
    pub bridge: String,
    /// In the bridge's subnets.
    pub addresses: Vec<IpAddr>,
}

/// A name without its host's, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Named(
    /// One label.
    pub String,
    /// Both families.
    pub Vec<IpAddr>,
);

#[cfg(test)]
mod tests {
    use super::Attached;
    use crate::config::{Config, Files, SourceFile};
    use crate::key::PrivateKey;

    /// Home of the worked example, which leaves through vps.
    pub(super) fn config() -> Config {
        let source = |path: &str, text: String| SourceFile { path: path.to_owned(), text: text.into_bytes() };
        let host = "name = \"home\"\naddresses = [\"10.88.0.2/24\", \"fd88::2/64\"]\n[[bridge]]\nname = \"br0\"\n\
                    subnets = [\"10.89.2.0/24\", \"fd89:2::/64\"]\negress = \"vps\"\n";
        let key = PrivateKey::from_bytes([1; 32]).public_key();
        let vps = format!(
            "public_key = \"{key}\"\naddresses = [\"10.88.0.1\", \"fd88::1\"]\nsubnets = [\"10.89.1.0/24\", \"fd89:1::/64\"]\n"
        );
        let private = PrivateKey::from_bytes([2; 32]).expose_base64();
        crate::config::parse(&Files {
            host: source("meshd.toml", host.to_owned()),
            private_key: source("private.key", private),
            peers: vec![("vps".to_owned(), source("peers/vps.toml", vps))],
            preshared_keys: std::collections::BTreeMap::new(),
        })
        .unwrap()
    }

    pub(super) fn attached(name: &str, addresses: &[&str]) -> Attached {
        let addresses = addresses.iter().map(|addr| addr.parse().unwrap()).collect();
        Attached { name: name.to_owned(), bridge: "br0".to_owned(), addresses }
    }
}
