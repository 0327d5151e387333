//! Links, addresses, routes and rules by rtnetlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::{Stream, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};
use rtnetlink::{IpVersion, LinkMessageBuilder, LinkUnspec};
use tokio::task::JoinHandle;

use super::Error;
use crate::plan::{Family, LinkSetting, MainRoute, NextHop, ROUTE_PROTOCOL, Route, Rule, Selector, TABLE_MAIN, marks};

/// A connection to the kernel's routing state in the network namespace of the thread that opened it.
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

/// The links of a moment.
#[derive(Debug, Default)]
pub struct Links {
    by_name: BTreeMap<String, LinkState>,
    by_index: BTreeMap<u32, String>,
}

/// What is read of a link.
#[derive(Debug, Clone, Default)]
pub struct LinkState {
    /// Its number.
    pub index: u32,
    /// Administratively.
    pub up: bool,
    /// It is a bridge's port, or part of a bond.
    pub enslaved: bool,
    /// What can be set.
    pub settings: BTreeSet<LinkSetting>,
}

/// What is read of an address.
#[derive(Debug, Clone)]
pub struct Address {
    /// Of which link.
    pub index: u32,
    /// With its prefix.
    pub net: IpNet,
    /// Has no lifetime.
    pub permanent: bool,
}

/// A route of main that is not ours.
#[derive(Debug)]
pub struct OtherRoute {
    /// The route.
    pub route: MainRoute,
    /// A router advertisement made it.
    pub from_ra: bool,
}

impl Netlink {
    /// Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let failed = |source| Error::Netlink { what: "netlink socket".to_owned(), source };
        // Strict checking makes the kernel filter dumps by table.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check().map_err(failed)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// For requests that no plan makes.
    pub fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// All links.
    pub async fn links(&self) -> Result<Links, Error> {
        let messages = collect("ip link show", self.handle.link().get().execute()).await?;
        let mut links = Links::default();
        for message in messages {
            if let Some((name, state)) = parse_link(&message) {
                links.by_index.insert(state.index, name.clone());
                links.by_name.insert(name, state);
            }
        }
        Ok(links)
    }

    /// All addresses.
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let messages = collect("ip address show", self.handle.address().get().execute()).await?;
        Ok(messages.iter().filter_map(parse_address).collect())
    }

    /// The routes of one table. A table that does not exist is empty.
    pub async fn table(&self, table: u32, family: Family) -> Result<Vec<RouteMessage>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(family);
        message.attributes.push(RouteAttribute::Table(table));
        match collect(&format!("ip route show table {table}"), self.handle.route().get(message).execute()).await {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
            other => other,
        }
    }

    /// The rules of a family.
    pub async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, Error> {
        let version = if family == Family::V4 { IpVersion::V4 } else { IpVersion::V6 };
        collect("ip rule show", self.handle.rule().get(version).execute()).await
    }

    /// `ip link set`
    pub async fn set_link(&self, index: u32, setting: LinkSetting) -> Result<(), rtnetlink::Error> {
        let builder = LinkMessageBuilder::<LinkUnspec>::new().index(index);
        let message = match setting {
            LinkSetting::Mtu(mtu) => builder.mtu(mtu),
            LinkSetting::TxQueueLen(packets) => builder.txqueuelen(packets),
            LinkSetting::Up => builder.up(),
        };
        self.handle.link().set(message.build()).execute().await
    }

    /// `ip link del`
    pub async fn remove_link(&self, index: u32) -> Result<(), rtnetlink::Error> {
        self.handle.link().del(index).execute().await
    }

    /// `ip address add`
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<(), rtnetlink::Error> {
        let mut request = self.handle.address().add(index, net.addr(), net.prefix_len()).replace();
        if net.addr().is_ipv6() {
            // Nobody else can be on the link, and a tentative address could not be used at once.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await
    }

    /// `ip address del`
    pub async fn remove_address(&self, index: u32, net: IpNet) -> Result<(), rtnetlink::Error> {
        let mut message = AddressMessage::default();
        message.header.family = address_family(Family::of(&net));
        message.header.prefix_len = net.prefix_len();
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(net.addr()));
        self.handle.address().del(message).execute().await
    }

    /// `ip route add` or, when it may take the place of another, `replace`
    pub async fn add_route(&self, route: &Route, links: &Links, replace: bool) -> Result<(), rtnetlink::Error> {
        let message = route_message(route, links)?;
        let request = self.handle.route().add(message);
        if replace { request.replace().execute().await } else { request.execute().await }
    }

    /// `ip route del`
    pub async fn remove_route(&self, route: &Route, links: &Links) -> Result<(), rtnetlink::Error> {
        let mut message = route_message(route, links)?;
        if route.next_hop == NextHop::Foreign {
            // Whatever it is: `RTN_UNSPEC`, `RTPROT_UNSPEC` and `RT_SCOPE_NOWHERE` match all (fib_table_delete).
            message.header.kind = RouteType::Unspec;
            message.header.protocol = RouteProtocol::Unspec;
            message.header.scope = RouteScope::NoWhere;
        }
        self.handle.route().del(message).execute().await
    }

    /// `ip rule add`
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), rtnetlink::Error> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule);
        request.execute().await
    }

    /// `ip rule del` with the full tuple, so that no other's rule can match.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), rtnetlink::Error> {
        self.handle.rule().del(rule_message(rule)).execute().await
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// By name.
    pub fn get(&self, name: &str) -> Option<&LinkState> {
        self.by_name.get(name)
    }

    /// The name of an index.
    pub fn name(&self, index: u32) -> Option<&String> {
        self.by_index.get(&index)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &LinkState)> {
        self.by_name.iter()
    }
}

async fn collect<T>(what: &str, stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, Error> {
    stream.try_collect().await.map_err(|error| Error::netlink(what, error))
}

fn address_family(family: Family) -> AddressFamily {
    if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn parse_link(message: &LinkMessage) -> Option<(String, LinkState)> {
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut state = LinkState { index: message.header.index, up, enslaved: false, settings: BTreeSet::new() };
    let mut name = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Controller(_) => state.enslaved = true,
            LinkAttribute::Mtu(mtu) => _ = state.settings.insert(LinkSetting::Mtu(*mtu)),
            LinkAttribute::TxQueueLen(packets) => _ = state.settings.insert(LinkSetting::TxQueueLen(*packets)),
            _ => {}
        }
    }
    if up {
        state.settings.insert(LinkSetting::Up);
    }
    Some((name?, state))
}

fn parse_address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut permanent = message.header.flags.contains(AddressHeaderFlags::Permanent);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => peer = Some(*addr),
            AddressAttribute::Flags(flags) => permanent = flags.contains(AddressFlags::Permanent),
            _ => {}
        }
    }
    let net = IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?;
    Some(Address { index: message.header.index, net, permanent })
}

/// The parts of a route that we know how to compare.
struct Parts {
    table: u32,
    destination: IpNet,
    metric: u32,
    device: Option<u32>,
    gateway: Option<IpAddr>,
    /// Has nothing beside these parts that changes where packets go.
    plain: bool,
    /// Leads through a gateway of the other family or an encapsulation, which a copy would lack.
    encapsulated: bool,
}

fn parts(message: &RouteMessage) -> Option<Parts> {
    let header = &message.header;
    let unspecified: IpNet = match header.address_family {
        AddressFamily::Inet => Family::V4.everything(),
        AddressFamily::Inet6 => Family::V6.everything(),
        _ => return None,
    };
    let mut parts = Parts {
        table: header.table.into(),
        destination: unspecified,
        metric: 0,
        device: None,
        gateway: None,
        plain: header.tos == 0 && header.source_prefix_length == 0,
        encapsulated: false,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => parts.table = *table,
            RouteAttribute::Priority(metric) => parts.metric = *metric,
            RouteAttribute::Oif(index) => parts.device = Some(*index),
            RouteAttribute::Destination(addr) => {
                parts.destination = IpNet::new(ip(addr)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(addr) => parts.gateway = ip(addr),
            RouteAttribute::MultiPath(hops) => {
                parts.plain = false;
                // Good enough to follow main by; no route of ours has several.
                parts.device = hops.first().map(|hop| hop.interface_index);
                parts.gateway = hops.first().and_then(|hop| {
                    hop.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(addr) => ip(addr),
                        _ => None,
                    })
                });
            }
            RouteAttribute::Via(_) | RouteAttribute::Encap(_) => (parts.plain, parts.encapsulated) = (false, true),
            RouteAttribute::Source(_) => parts.plain = false,
            _ => {}
        }
    }
    Some(parts)
}

/// An IP address, if it is one.
pub fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some(IpAddr::V4(*addr)),
        RouteAddress::Inet6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

/// A route of a table that is ours.
pub fn own_route(message: &RouteMessage, links: &Links) -> Option<Route> {
    let parts = parts(message)?;
    let device = || parts.device.and_then(|index| links.name(index)).cloned();
    let next_hop = match message.header.kind {
        RouteType::Unreachable if is_ours(message) && parts.plain => NextHop::Unreachable,
        RouteType::BlackHole if is_ours(message) && parts.plain => NextHop::Blackhole,
        RouteType::Unicast if is_ours(message) && parts.plain => match device() {
            Some(device) => NextHop::Device { device, gateway: parts.gateway },
            None => NextHop::Foreign,
        },
        _ => NextHop::Foreign,
    };
    Some(Route { table: parts.table, destination: parts.destination, metric: parts.metric, next_hop })
}

/// A route of main that we made on `interface`.
pub fn own_main_route(message: &RouteMessage, links: &Links, interface: &str) -> Option<Route> {
    let route = own_route(message, links)?;
    (is_ours(message) && route.next_hop.device().is_some_and(|device| device == interface)).then_some(route)
}

/// A route of main that others made.
pub fn other_route(message: &RouteMessage, links: &Links) -> Option<OtherRoute> {
    if is_ours(message) || message.header.tos != 0 {
        return None;
    }
    let parts = parts(message)?;
    let usable = message.header.kind == RouteType::Unicast && !parts.encapsulated;
    let device = parts.device.filter(|_| usable).and_then(|index| links.name(index)).cloned();
    let route = MainRoute { destination: parts.destination, gateway: parts.gateway, device, metric: parts.metric };
    Some(OtherRoute { route, from_ra: message.header.protocol == RouteProtocol::Ra })
}

fn route_message(route: &Route, links: &Links) -> Result<RouteMessage, rtnetlink::Error> {
    let family = Family::of(&route.destination);
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.destination_prefix_length = route.destination.prefix_len();
    // Numbers above 255 do not fit the header; `RTA_TABLE` goes before it.
    message.header.table = if route.table == TABLE_MAIN { RouteHeader::RT_TABLE_MAIN } else { 0 };
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
    attributes.push(RouteAttribute::Priority(route.metric));
    match &route.next_hop {
        NextHop::Device { device, gateway } => {
            let missing = || rtnetlink::Error::NamespaceError(format!("no interface {device}"));
            attributes.push(RouteAttribute::Oif(links.get(device).ok_or_else(missing)?.index));
            match gateway {
                // Onlink: the table need not say how to reach the gateway, main does.
                Some(gateway) => {
                    attributes.push(RouteAttribute::Gateway((*gateway).into()));
                    message.header.flags |= RouteFlags::Onlink;
                }
                None if family == Family::V4 => message.header.scope = RouteScope::Link,
                None => {}
            }
        }
        NextHop::Unreachable => message.header.kind = RouteType::Unreachable,
        NextHop::Blackhole => message.header.kind = RouteType::BlackHole,
        NextHop::Foreign => {}
    }
    Ok(message)
}

/// The priority of a rule, and the table that it leads to; `None` for any other action.
pub fn rule_outline(message: &RuleMessage) -> (u32, Option<u32>) {
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    (priority, (message.header.action == RuleAction::ToTable).then_some(table))
}

/// A rule that has our form.
pub fn parse_rule(message: &RuleMessage) -> Option<Rule> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let RuleHeader { action, tos, dst_len, flags, .. } = &message.header;
    if *action != RuleAction::ToTable || *tos != 0 || flags.contains(RuleFlags::Invert) {
        return None;
    }
    let (mut iif, mut from, mut to, mut mark, mut bits) = (None, None, None, None, None);
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Iifname(name) => iif = Some(name.clone()),
            RuleAttribute::Source(addr) => from = IpNet::new(*addr, message.header.src_len).ok(),
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => bits = Some(*value),
            RuleAttribute::Destination(addr) => to = IpNet::new(*addr, *dst_len).ok(),
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(RouteProtocol::Kernel)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            // Something that no rule of ours has.
            _ => return None,
        }
    }
    let selector = match (iif, from, to, mark, bits) {
        (Some(name), None, None, None, None) => Selector::Iif(name),
        (None, Some(net), None, None, None) => Selector::From(net),
        (None, None, Some(net), None, None) => Selector::To(net),
        (None, None, None, Some(mark), Some(marks::MASK)) => Selector::Mark(mark),
        _ => return None,
    };
    Some(Rule { priority, family, selector, table })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    // systemd-networkd removes the rules of others, but not the kernel's (systemd#19106).
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
    match &rule.selector {
        Selector::Iif(name) => message.attributes.push(RuleAttribute::Iifname(name.clone())),
        Selector::From(net) => {
            message.header.src_len = net.prefix_len();
            message.attributes.push(RuleAttribute::Source(net.addr()));
        }
        Selector::Mark(mark) => {
            message.attributes.push(RuleAttribute::FwMark(*mark));
            message.attributes.push(RuleAttribute::FwMask(marks::MASK));
        }
        Selector::To(net) => {
            message.header.dst_len = net.prefix_len();
            message.attributes.push(RuleAttribute::Destination(net.addr()));
        }
    }
    message
}
