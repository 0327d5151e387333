//! What [`desired`](super::desired) needs to know about the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Family;
use super::firewalls::Firewalls;
use crate::attach::Port;

/// One reading of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Its links by name.
    pub links: BTreeMap<String, Link>,
    /// Its main routing table, both families, without the agent's own routes.
    pub main: Vec<MainRoute>,
    /// Whether the kernel has IPv6 at all.
    pub ipv6: bool,
    /// Whether `net.ipv6.conf.X.force_forwarding` exists (Linux 6.17), which forwards on one interface alone.
    pub force_forwarding: bool,
    /// The lowest priority, 0 aside, of others' rules that come before or between those of an agent.
    pub rule_before: Option<u32>,
    /// Families in which no rule leads to the main table, as after `ip rule flush`.
    pub without_main: Vec<Family>,
    /// Bridges whose packets a rule leads into a table of some agent's, and that table.
    pub claimed: BTreeSet<(String, u32)>,
    /// The UDP port in use when the configuration leaves the choice to the kernel.
    pub listen_port: Option<u16>,
    /// What else filters its packets.
    pub firewalls: Firewalls,
    /// Attached containers.
    pub ports: Vec<Port>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Administratively up; the kernel takes no IPv4 route through one that is not.
    pub up: bool,
    /// Whether `disable_ipv6` is 0.
    pub ipv6: bool,
    /// `net.ipv6.conf.X.accept_ra`.
    pub accept_ra: Option<u8>,
    /// Holds an IPv6 address or route that a router advertisement gave it.
    pub autoconfigured: bool,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// `None` for a network on the link.
    pub gateway: Option<IpAddr>,
    /// `None` for `unreachable`, `blackhole` and the like.
    pub device: Option<String>,
    /// The lower one wins.
    pub metric: u32,
}

impl HostFacts {
    /// The route that main would use for all of `net`, unless a more specific one exists for a part of it.
    pub fn covering(&self, net: IpNet) -> Option<&MainRoute> {
        let routes = self.main.iter().filter(|route| route.destination.contains(&net));
        routes.min_by_key(|route| (u8::MAX - route.destination.prefix_len(), route.metric))
    }

    /// The device of the default route.
    pub fn default_device(&self, family: Family) -> Option<&str> {
        self.covering(family.everything()).and_then(|route| route.device.as_deref())
    }
}
