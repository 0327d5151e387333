//! The state of one host as plain data, desired and actual, written as a person would type it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::firewalls::{Exception, Position};
use super::{ROUTE_PROTOCOL, TABLE_MAIN, marks, tables};
use crate::config::EVERYTHING;

/// What the kernel should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// The tunnel's.
    pub interface: String,
    /// Settings of the tunnel's link.
    pub link: BTreeSet<LinkSetting>,
    /// Addresses of the tunnel's link.
    pub addresses: BTreeSet<IpNet>,
    /// In our tables and, through the tunnel, in main.
    pub routes: BTreeSet<Route>,
    /// Into our tables, and by our marks into main.
    pub rules: BTreeSet<Rule>,
    /// `None` when no bridge needs one.
    pub guard: Option<NftTable>,
    /// Masquerading, publishing, MSS and what the tunnel may reach.
    pub filter: Option<NftTable>,
    /// What attached containers may send; `None` without any.
    pub ports: Option<NftTable>,
    /// Values by key.
    pub sysctls: BTreeMap<SysctlKey, String>,
    /// In other firewalls' chains, and where.
    pub exceptions: BTreeMap<Exception, Position>,
    /// Interfaces in firewalld's zone [`firewalls::ZONE`](super::firewalls::ZONE).
    pub zones: BTreeSet<String>,
    /// Table numbers to the bridges that they serve; the one for answers to publishing peers has the tunnel's name.
    pub tables: BTreeMap<u32, String>,
}

/// What the kernel holds of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActualState {
    /// The settings of the tunnel's link as they are; empty without one.
    pub link: BTreeSet<LinkSetting>,
    /// Of the tunnel's link, link-local ones aside.
    pub addresses: BTreeSet<IpNet>,
    /// All of our tables; of main what carries our protocol number on the tunnel's device.
    pub routes: BTreeSet<Route>,
    /// Those into our tables at our priorities, and those by our marks.
    pub rules: BTreeSet<Rule>,
    /// The tables of nft.
    pub nft: NftTables,
    /// Those that are desired or in the journal.
    pub sysctls: BTreeMap<SysctlKey, Sysctl>,
    /// Ours in other firewalls' chains, and whether they stand where they work.
    pub exceptions: BTreeMap<Exception, bool>,
    /// Interfaces that we put into firewalld's zone.
    pub zones: BTreeSet<String>,
}

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Family {
    V4,
    V6,
}

/// One setting of a link. Their order is that in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkSetting {
    /// In bytes.
    Mtu(u32),
    /// In packets.
    TxQueueLen(u32),
    /// Administratively up.
    Up,
}

/// A unicast or `unreachable` route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table's number.
    pub table: u32,
    /// Where it leads.
    pub destination: IpNet,
    /// The lower one wins.
    pub metric: u32,
    /// How.
    pub next_hop: NextHop,
}

/// Where a route sends a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// Out of an interface.
    Device {
        /// Its name.
        device: String,
        /// `None` for a network on the link.
        gateway: Option<IpAddr>,
    },
    /// Back to the sender.
    Unreachable,
    /// Nowhere, in silence.
    Blackhole,
    /// A route in a table of ours that somebody else made; never desired.
    Foreign,
}

/// A policy rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The lower one is asked first.
    pub priority: u32,
    /// Of the packets.
    pub family: Family,
    /// Which packets.
    pub selector: Selector,
    /// Where they are looked up.
    pub table: u32,
}

/// Which packets a rule takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// Those that came in by this interface.
    Iif(String),
    /// Those from this network.
    From(IpNet),
    /// Those to this network.
    To(IpNet),
    /// Those with this mark in the bits of [`marks::MASK`].
    Mark(u32),
}

/// An nft table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftTable {
    /// `inet` or `bridge`.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// `table FAMILY NAME { … }`, as nft(8) reads it.
    pub text: String,
}

/// What is known of the nft tables in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftTables {
    /// What keeps egress bridges closed.
    pub guard: NftActual,
    /// What a working tunnel needs.
    pub filter: NftActual,
    /// What attached containers may send.
    pub ports: NftActual,
}

/// What is known of an nft table in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NftActual {
    /// There is none.
    #[default]
    Absent,
    /// It is as we left it; the [`NftTable::fingerprint`] of what we put there.
    Intact(String),
    /// Somebody else changed it, or it is not known who made it.
    Altered,
}

/// A sysctl of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysctlKey {
    /// `net.ipv4` or `net.ipv6`.
    pub family: Family,
    /// The interface, `all` or `default`.
    pub link: String,
    /// The last part, such as `forwarding`.
    pub name: String,
}

/// A sysctl's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// The present one.
    pub value: String,
    /// The one before ours, when the journal says that we set it.
    pub original: Option<String>,
}

impl DesiredState {
    /// Leaves out all that needs the tunnel's interface. What stays holds every egress bridge closed.
    pub fn withhold_tunnel(&mut self) {
        self.link.clear();
        self.addresses.clear();
        let Self { routes, sysctls, interface, .. } = self;
        routes.retain(|route| route.next_hop.device() != Some(interface));
        sysctls.retain(|key, _| key.link != *interface);
    }
}

impl Family {
    /// Of an address or network.
    pub fn of(net: &IpNet) -> Self {
        if net.addr().is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub fn everything(self) -> IpNet {
        EVERYTHING[usize::from(self == Self::V6)]
    }

    /// What ip(8) wants before its first word.
    fn flag(self) -> &'static str {
        if self == Self::V6 { " -6" } else { "" }
    }
}

impl NextHop {
    /// The interface, where there is one.
    pub fn device(&self) -> Option<&String> {
        match self {
            Self::Device { device, .. } => Some(device),
            Self::Unreachable | Self::Blackhole | Self::Foreign => None,
        }
    }
}

impl Route {
    /// What the kernel takes as the same route: a second one with this key replaces the first.
    pub fn key(&self) -> (u32, IpNet, u32) {
        (self.table, self.destination, self.metric)
    }

    /// `ip [-6] route VERB …`
    pub(super) fn command(&self, verb: &str) -> String {
        let family = Family::of(&self.destination);
        let mut words = vec![format!("ip{} route {verb}", family.flag())];
        match self.next_hop {
            NextHop::Unreachable => words.push("unreachable".to_owned()),
            NextHop::Blackhole => words.push("blackhole".to_owned()),
            _ => {}
        }
        let everything = self.destination.prefix_len() == 0;
        words.push(if everything { "default".to_owned() } else { self.destination.to_string() });
        if let NextHop::Device { device, gateway } = &self.next_hop {
            match gateway {
                Some(gateway) => words.push(format!("via {gateway} dev {device} onlink")),
                None => words.push(format!("dev {device}")),
            }
        }
        if self.table != TABLE_MAIN {
            words.push(format!("table {}", self.table));
        }
        if self.metric != default_metric(family) {
            words.push(format!("metric {}", self.metric));
        }
        if self.next_hop != NextHop::Foreign {
            words.push(format!("proto {ROUTE_PROTOCOL}"));
        }
        words.join(" ")
    }
}

/// What the kernel makes of a metric of 0 (`IP6_RT_PRIO_USER` in `linux/ipv6_route.h`).
pub(super) fn default_metric(family: Family) -> u32 {
    if family == Family::V6 { 1024 } else { 0 }
}

impl Rule {
    /// `ip [-6] rule VERB …`
    pub(super) fn command(&self, verb: &str) -> String {
        let selector = match &self.selector {
            Selector::Iif(device) => format!("iif {device}"),
            Selector::From(net) => format!("from {net}"),
            Selector::To(net) => format!("to {net}"),
            Selector::Mark(mark) => format!("fwmark {mark:#x}/{:#x}", marks::MASK),
        };
        let (flag, priority) = (self.family.flag(), self.priority);
        let table = if self.table == TABLE_MAIN { "main".to_owned() } else { self.table.to_string() };
        format!("ip{flag} rule {verb} pref {priority} {selector} lookup {table} protocol kernel")
    }
}

impl NftTable {
    /// Identifies the text.
    pub fn fingerprint(&self) -> String {
        format!("{:016x}", tables::fnv1a(self.text.as_bytes()))
    }
}

impl SysctlKey {
    /// A key of one interface.
    pub fn new(family: Family, link: &str, name: &str) -> Self {
        Self { family, link: link.to_owned(), name: name.to_owned() }
    }

    /// Below `/proc/sys/net`; also how the journal writes it.
    pub fn path(&self) -> String {
        let family = if self.family == Family::V4 { "ipv4" } else { "ipv6" };
        format!("{family}/conf/{}/{}", self.link, self.name)
    }

    /// The reverse of [`path`](Self::path).
    pub fn from_path(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let family = match (parts.next()?, parts.next()?) {
            ("ipv4", "conf") => Family::V4,
            ("ipv6", "conf") => Family::V6,
            _ => return None,
        };
        let (link, name) = (parts.next()?, parts.next()?);
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        (parts.next().is_none() && plain(link) && plain(name)).then(|| Self::new(family, link, name))
    }
}

impl fmt::Display for SysctlKey {
    /// As sysctl(8) reads it: a dot inside an interface's name is written as a slash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 { "ipv4" } else { "ipv6" };
        write!(f, "net.{family}.conf.{}.{}", self.link.replace('.', "/"), self.name)
    }
}

impl fmt::Display for LinkSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mtu(mtu) => write!(f, "mtu {mtu}"),
            Self::TxQueueLen(packets) => write!(f, "txqueuelen {packets}"),
            Self::Up => f.write_str("up"),
        }
    }
}
