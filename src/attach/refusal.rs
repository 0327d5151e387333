//! Why a container may not be attached, in the words that its user reads.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Caller;
use crate::config::Service;
use crate::config::problem::{list_of_names, quote};

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is none, and what one is.
    #[error("name {name}: {1}", name = quote(.0))]
    Name(String, String),
    /// Of a container of another user.
    #[error("{name}: another user's container has this name", name = quote(.0))]
    NameOfAnother(String),
    /// It is there, on that bridge.
    #[error("{name}: a container of this name is attached to {1}", name = quote(.0))]
    Attached(String, String),
    /// No container has this name.
    #[error("{name}: no container of this name is attached", name = quote(.0))]
    Unknown(String),
    /// Not in `meshd.toml`, which has those.
    #[error("bridge {name}: not in meshd.toml, where there are: {others}", name = quote(.0), others = list_of_names(.1))]
    NoBridge(String, Vec<String>),
    /// `meshd.toml` has none.
    #[error("meshd.toml has no [[bridge]]")]
    NoBridgeAtAll,
    /// More than one would do.
    #[error("which bridge? there are: {names}", names = list_of_names(.0))]
    WhichBridge(Vec<String>),
    /// `[bridge.users]` does not name them, there or anywhere.
    #[error("{0} may attach no container to {place}", place = .1.as_ref().map_or_else(|| "any bridge".to_owned(), |name| format!("bridge {name}")))]
    NotGranted(Caller, Option<String>),
    /// They have as many as they may.
    #[error("{caller} may have {most} attached to bridge {bridge}, and has: {theirs}", theirs = list_of_names(names))]
    TooMany {
        /// Who.
        caller: Caller,
        /// Where.
        bridge: String,
        /// How many.
        most: u16,
        /// Those that are there.
        names: Vec<String>,
    },
    /// In no subnet of the bridge.
    #[error("address {0}: not in bridge {name}, which has {subnets}", name = .1, subnets = list_of_names(.2))]
    Outside(IpAddr, String, Vec<IpNet>),
    /// No address of a host, and why.
    #[error("address {0}: {1}")]
    NoHosts(IpAddr, String),
    /// Not in what `[bridge.users]` gives the user.
    #[error("address {0}: not among those that you may use: {granted}", granted = list_of_names(.1))]
    NotTheirs(IpAddr, Vec<IpNet>),
    /// A container has it, one of this agent's or not.
    #[error("address {0}: {holder}", holder = .1.as_ref().map_or_else(|| "somebody on the bridge has it".to_owned(), |name| format!("container {name} has it")))]
    Taken(IpAddr, Option<String>),
    /// Not in what `[bridge.users]` gives the user.
    #[error("port {1}: {0} may publish {granted}", granted = if .2.is_empty() { "none".to_owned() } else { list_of_names(.2) })]
    NotOpened(Caller, Service, Vec<Service>),
    /// More than a container may have.
    #[error("{0} ports for one container; at most {1}, each of which may be a range")]
    TooManyPorts(usize, usize),
    /// It leads elsewhere.
    #[error("port {0}: leads to {1} already")]
    PortTaken(Service, String),
    /// A process of this host waits on it.
    #[error("port {0}: {1}")]
    PortInUse(Service, String),
    /// No address is left, of the subnet or of those in it that were granted.
    #[error("no address is free in {nets}", nets = if .1.is_empty() { .0.to_string() } else { list_of_names(.1) })]
    Full(IpNet, Vec<IpNet>),
}

impl Refusal {
    /// What can be done about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NameOfAnother(_) | Self::Name(..) => Some("another name: --name NAME".to_owned()),
            Self::Attached(name, _) => Some(format!("meshd detach {name}")),
            Self::Unknown(_) => Some("meshd attach --list".to_owned()),
            Self::NoBridgeAtAll => Some("add a [[bridge]] to meshd.toml, then: meshd reload".to_owned()),
            Self::WhichBridge(bridges) => bridges.first().map(|first| format!("--bridge {first}")),
            Self::NotGranted(caller, bridge) => {
                let at =
                    bridge.as_ref().map_or_else(|| "the [[bridge]]".to_owned(), |name| format!("[[bridge]] {name}"));
                Some(format!("root adds below {at} in meshd.toml: {}, then: meshd reload", table_of(caller)))
            }
            Self::TooMany { names, .. } => {
                names.first().map(|first| format!("meshd detach {first}; or root grants more: containers = N"))
            }
            Self::Taken(..) | Self::Outside(..) | Self::NotTheirs(..) | Self::NoHosts(..) => {
                Some("leave out --address, and one is chosen".to_owned())
            }
            Self::NotOpened(caller, service, _) => {
                let line = format!("publish = [\"{service}\"]");
                Some(format!("root adds below {} in meshd.toml: {line}, then: meshd reload", table_of(caller)))
            }
            Self::PortTaken(service, _) | Self::PortInUse(service, _) => {
                Some(format!("another port of this host: --publish {}/PORT:{}", service.protocol, service.ports.first))
            }
            Self::Full(..) | Self::NoBridge(..) | Self::TooManyPorts(..) => None,
        }
    }
}

fn table_of(caller: &Caller) -> String {
    format!("[bridge.users.{}]", caller.name.clone().unwrap_or_else(|| caller.uid.to_string()))
}
