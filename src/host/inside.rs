//! The container's end of a port, set up from within by whoever owns the container.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::route::RouteMessage;
use serde::{Deserialize, Serialize};

use super::Error;
use super::netlink::Netlink;
use super::port::{ContainerNamespace, index};
use super::resolv_conf::Resolver;
use super::sysctl;
use crate::plan::{Family, LinkSetting, SysctlKey};

/// How long the kernel's worker may take; it is no error if it takes longer.
const SOON: Duration = Duration::from_secs(1);

/// What there is to set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// The interface.
    pub interface: String,
    /// Its addresses, each with the prefix of the bridge's subnet.
    pub addresses: Vec<IpNet>,
    /// The bridge's own addresses, by which everything else is reached: at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Where this host answers for names.
    pub resolver: Option<Resolver>,
}

/// Enters a container's network namespace for good. This process must have one thread only.
///
/// # Errors
/// When it belongs to somebody else.
pub fn enter(namespace: &ContainerNamespace) -> io::Result<()> {
    match setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET) {
        // Who owns the user namespace has all capabilities once inside, and before that none.
        Err(nix::errno::Errno::EPERM) => {
            setns(namespace.users()?, CloneFlags::CLONE_NEWUSER)?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        other => other?,
    }
    Ok(())
}

/// Gives the interface of this namespace its addresses and routes. Must be called inside a tokio runtime.
///
/// # Errors
/// What the kernel refused.
pub async fn set_up(inside: &Inside) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    let name = &inside.interface;
    let gone = || Error::Netlink { what: format!("interface {name}"), source: io::ErrorKind::NotFound.into() };
    let (interface, loopback) = (index(name).ok_or_else(gone)?, index("lo").ok_or_else(gone)?);
    for (index, what) in [(loopback, "lo"), (interface, name)] {
        let up = netlink.set_link(index, LinkSetting::Up).await;
        up.map_err(|error| Error::netlink(format!("ip link set {what} up"), error))?;
    }
    // Where there is no network, Docker turns IPv6 off for interfaces to come.
    let off = SysctlKey::new(Family::V6, name, "disable_ipv6");
    if inside.addresses.iter().any(|net| net.addr().is_ipv6()) && sysctl::read(&off)?.as_deref() == Some("1") {
        sysctl::write(&off, "0")?;
    }
    for &net in &inside.addresses {
        let added = netlink.add_address(interface, net).await;
        added.map_err(|error| Error::netlink(format!("ip address add {net} dev {name}"), error))?;
    }
    for &gateway in &inside.gateways {
        let added = netlink.handle().route().add(default_route(gateway, interface)).replace().execute().await;
        added.map_err(|error| Error::netlink(format!("ip route replace default via {gateway}"), error))?;
    }
    runs(&netlink, interface).await
}

/// Waits until packets go through: until the kernel's worker (net/core/link_watch.c) has seen that both ends are up, they are
/// dropped where they begin, and whoever asked for an Ethernet address asks again a second later. It sees both in one go; but
/// who asks for one link alone has that one looked at at once, so all are asked for.
async fn runs(netlink: &Netlink, interface: u32) -> Result<(), Error> {
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        let links: Result<Vec<LinkMessage>, _> = netlink.handle().link().get().execute().try_collect().await;
        let links = links.map_err(|error| Error::netlink("ip link show", error))?;
        let up = LinkAttribute::OperState(State::Up);
        if links.iter().any(|link| link.header.index == interface && link.attributes.contains(&up)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn default_route(gateway: IpAddr, interface: u32) -> RouteMessage {
    match gateway {
        IpAddr::V4(gateway) => {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(gateway).output_interface(interface).build()
        }
        IpAddr::V6(gateway) => {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(gateway).output_interface(interface).build()
        }
    }
}
