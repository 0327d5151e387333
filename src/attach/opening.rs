//! Ports of this host that lead to an attached container, which its owner may open where they were given them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Caller, Lease, Leases, Refusal};
use crate::config::{Config, PortRange, Protocol, Publish, Service, User, service};

/// For one container; each is a rule or two.
const MAX_OPENINGS: usize = 64;

/// `tcp/443`, or `tcp/443:8443` where the container listens on another port; of a range, on that one for the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Opening {
    /// On this host.
    pub service: Service,
    /// The container's port for the first.
    pub to: u16,
}

impl FromStr for Opening {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, to) = text.split_once(':').map_or((text, None), |(ports, to)| (ports, Some(to)));
        let service = service(ports)?;
        let PortRange { first, last } = service.ports;
        let to = to.map_or(Ok(first), |to| to.parse().map_err(|_| format!("port {to:?}: expected 1 to 65535")))?;
        if to == 0 || to.checked_add(last - first).is_none() {
            return Err(format!("port {to}: expected 1 to {}", u16::MAX - (last - first)));
        }
        Ok(Self { service, to })
    }
}

impl TryFrom<String> for Opening {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Opening> for String {
    fn from(opening: Opening) -> Self {
        opening.to_string()
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, to } = self;
        write!(f, "{service}")?;
        if *to == service.ports.first { Ok(()) } else { write!(f, ":{to}") }
    }
}

impl Opening {
    /// As if `meshd.toml` said so of this container.
    pub fn to(self, addr: IpAddr) -> Publish {
        let Service { protocol, ports } = self.service;
        Publish { protocol, ports, to: SocketAddr::new(addr, self.to) }
    }

    fn is_granted(self, user: &User) -> bool {
        user.publish.iter().any(|granted| holds(*granted, self.service))
    }
}

fn holds(granted: Service, asked: Service) -> bool {
    granted.protocol == asked.protocol
        && granted.ports.first <= asked.ports.first
        && asked.ports.last <= granted.ports.last
}

fn overlap(one: Service, other: Service) -> bool {
    one.protocol == other.protocol && one.ports.overlap(other.ports)
}

/// Who in `meshd.toml` has some of these ports already; its word goes first.
fn configured(config: &Config, service: Service) -> Option<String> {
    let tunnel = Service { protocol: Protocol::Udp, ports: config.host.listen_port.into() };
    if config.host.listen_port != 0 && overlap(tunnel, service) {
        return Some("the tunnel itself".to_owned());
    }
    let mut published = config.host.publish.iter();
    let clash = published.find(|it| overlap(Service { protocol: it.protocol, ports: it.ports }, service))?;
    Some(clash.to.to_string())
}

impl Leases {
    /// Whether a container may open these ports.
    pub(super) fn may_open(
        &self,
        config: &Config,
        (caller, grant): (&Caller, Option<&User>),
        name: &str,
        openings: &[Opening],
    ) -> Result<(), Refusal> {
        if openings.len() > MAX_OPENINGS {
            return Err(Refusal::TooManyPorts(openings.len(), MAX_OPENINGS));
        }
        for (index, opening) in openings.iter().enumerate() {
            let service = opening.service;
            let granted = |grant: &User| opening.is_granted(grant);
            if caller.uid != 0 && !grant.is_some_and(granted) {
                let granted = grant.map(|grant| grant.publish.clone()).unwrap_or_default();
                return Err(Refusal::NotOpened(caller.clone(), service, granted));
            }
            let others = self.iter().filter(|(other, lease)| *other != name && lease.vacant.is_none());
            let mut theirs = others.flat_map(|(other, lease)| lease.publish.iter().map(move |it| (other, it.service)));
            let holder = configured(config, service)
                .or_else(|| theirs.find(|(_, it)| overlap(*it, service)).map(|(other, _)| format!("container {other}")))
                .or_else(|| {
                    openings[..index].iter().any(|it| overlap(it.service, service)).then(|| "this one".to_owned())
                });
            if let Some(holder) = holder {
                return Err(Refusal::PortTaken(service, holder));
            }
        }
        Ok(())
    }
}

/// What of a lease's openings the configuration still has room for.
pub(super) fn published(config: &Config, lease: &Lease, grants: &[&User]) -> Vec<Publish> {
    let granted = |it: &&Opening| lease.uid == 0 || grants.iter().any(|user| it.is_granted(user));
    let open = lease.publish.iter().filter(granted).filter(|it| configured(config, it.service).is_none());
    open.flat_map(|it| lease.addresses.iter().map(|addr| it.to(*addr))).collect()
}
