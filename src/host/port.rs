//! Ports of a bridge that lead into containers, and whose containers these are.
//!
//! A pair of interfaces is made in one request, its other end in the container's namespace from the start: CAP_NET_ADMIN over
//! that namespace is enough (`rtnl_link_get_net_capable` in net/core/rtnetlink.c), which the agent has as long as its user
//! namespace is an ancestor. What is in the container is for whoever owns it to set up.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::Error;
use super::container::end;
use super::netlink::Netlink;
use super::surroundings::{Interface, Surroundings};
use crate::attach::{Mac, Port, is_port, outside};
use crate::config::Bridge;
use crate::plan::LinkSetting;

/// From linux/nsfs.h.
const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_PARENT: libc::c_ulong = 0xb702;
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;

/// How long a container on the same host may take to answer for its address: a hundred times what it does take.
const ANSWER: Duration = Duration::from_millis(10);

/// A descriptor of a network namespace.
#[derive(Debug)]
pub struct ContainerNamespace(OwnedFd);

impl ContainerNamespace {
    /// Takes a descriptor that somebody handed over.
    ///
    /// # Errors
    /// When it leads to anything but a network namespace.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        match ask(fd.as_fd(), NS_GET_NSTYPE) {
            Ok(libc::CLONE_NEWNET) => Ok(Self(fd)),
            _ => Err(io::Error::other("no network namespace")),
        }
    }

    /// Whether a user's own user namespace has it, so that there is nothing in it that they may not do. Root's is every one.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn belongs_to(&self, uid: u32) -> io::Result<bool> {
        if uid == 0 {
            return Ok(true);
        }
        let mut namespace = self.users()?;
        loop {
            // A namespace within theirs is theirs too: they have all capabilities over it (cap_capable in
            // security/commoncap.c). The initial one is root's.
            if owner(namespace.as_fd())? == uid {
                return Ok(true);
            }
            match child_fd(ask(namespace.as_fd(), NS_GET_PARENT)) {
                Ok(parent) => namespace = parent,
                // Beyond what this process can see.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// The user namespace that has it.
    ///
    /// # Errors
    /// When that is none of this process's.
    pub fn users(&self) -> io::Result<OwnedFd> {
        child_fd(ask(self.0.as_fd(), NS_GET_USERNS))
    }

    /// Whether it is the one that this process is in.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn is_here(&self) -> io::Result<bool> {
        let (own, other) = (std::fs::File::open("/proc/self/ns/net")?, nix::sys::stat::fstat(&self.0)?);
        Ok(nix::sys::stat::fstat(&own)?.st_ino == other.st_ino)
    }
}

impl AsFd for ContainerNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn ask(fd: BorrowedFd<'_>, what: libc::c_ulong) -> io::Result<RawFd> {
    // SAFETY: these requests take no argument and return a number or a new descriptor.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), what) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn child_fd(answer: io::Result<RawFd>) -> io::Result<OwnedFd> {
    // SAFETY: a descriptor that the kernel has just made, and that nothing else owns.
    answer.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn owner(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the request writes one uid_t to where the pointer leads.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut uid) } {
        0 => Ok(uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a port on this bridge whose other end, `inside`, is in the container, and has it carry packets: its rules are in
/// place. What was left of one of the same name goes. Must be called inside a tokio runtime.
///
/// # Errors
/// When the container has an interface of that name, or the kernel refuses.
pub async fn put(bridge: &Interface, port: &Port, container: &ContainerNamespace, inside: &str) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    delete(&netlink, &port.interface).await?;
    let mut there = end(inside, port.mac.0, bridge.mtu);
    there.attributes.push(LinkAttribute::NetNsFd(container.0.as_raw_fd()));
    let mut here = end(&port.interface, outside(port.mac).0, bridge.mtu);
    here.attributes.push(LinkAttribute::Controller(bridge.index));
    here.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(there))),
    ]));
    let what = || format!("ip link add {} master {} type veth peer name {inside}", port.interface, bridge.name);
    netlink.handle().link().add(here).execute().await.map_err(|error| Error::netlink(what(), error))?;
    let gone = || Error::Netlink { what: what(), source: io::ErrorKind::NotFound.into() };
    let number = index(&port.interface).ok_or_else(gone)?;
    // A port needs no address of its own. Where IPv6 is off there is nothing to turn off.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", port.interface), "1");
    let up = netlink.set_link(number, LinkSetting::Up).await;
    up.map_err(|error| Error::netlink(format!("ip link set {} up", port.interface), error))?;
    // Nobody answered a moment ago, so the host would not ask again before a second is over.
    for &address in &port.addresses {
        let known = netlink.handle().neighbours().add(bridge.index, address).link_layer_address(&port.mac.0);
        let _ = known.state(NeighbourState::Stale).replace().execute().await;
    }
    Ok(())
}

/// Takes a port away with its other end, and makes the host forget who had its addresses; one that is gone is no error. Must
/// be called inside a tokio runtime.
///
/// # Errors
/// When the kernel refuses.
pub async fn take(interface: &str, bridge: &str, addresses: &[IpAddr]) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    delete(&netlink, interface).await?;
    forget(&netlink, index(bridge).unwrap_or_default(), addresses).await;
    Ok(())
}

/// Takes away the ports that an agent made on these bridges, but for those that are known: others have no rules. Must be called
/// inside a tokio runtime.
///
/// # Errors
/// When the kernel does not tell or refuses.
pub async fn take_others(bridges: &[Bridge], known: &[Port]) -> Result<(), Error> {
    let around = Surroundings::read().await?;
    for Interface { name, controller, mac, .. } in &around.interfaces {
        let bridge = controller.and_then(|index| around.by_index(index)).map(|bridge| &bridge.name);
        let ours =
            bridges.iter().any(|ours| Some(&ours.name) == bridge) && mac.is_some_and(|mac| is_port(name, Mac(mac)));
        if ours && !known.iter().any(|port| port.interface == *name) {
            tracing::warn!("{name}: no container is known for this port; it goes");
            delete(&Netlink::open()?, name).await?;
        }
    }
    Ok(())
}

/// Which of these addresses somebody on the bridge has, who answers for them (RFC 5227, section 2.1.1; RFC 4861, section
/// 7.2). Must be called inside a tokio runtime.
///
/// # Errors
/// When the kernel does not tell.
pub async fn answering(bridge: &Interface, addresses: &[IpAddr]) -> Result<BTreeSet<IpAddr>, Error> {
    let netlink = Netlink::open()?;
    // Who had it may be gone.
    forget(&netlink, bridge.index, addresses).await;
    let asking: Vec<_> = addresses.iter().filter_map(|address| ask_for(*address).ok()).collect();
    tokio::time::sleep(ANSWER).await;
    drop(asking);
    let neighbours: Result<Vec<NeighbourMessage>, _> =
        netlink.handle().neighbours().get().execute().try_collect().await;
    let neighbours = neighbours.map_err(|error| Error::netlink("ip neigh show", error))?;
    let here = neighbours.iter().filter(|message| message.header.ifindex == bridge.index).filter(|message| {
        message.attributes.iter().any(|attribute| matches!(attribute, NeighbourAttribute::LinkLayerAddress(_)))
    });
    Ok(here.filter_map(of_neighbour).filter(|address| addresses.contains(address)).collect())
}

fn of_neighbour(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

/// Has the kernel look for a neighbour, by a datagram to the port where nobody listens.
fn ask_for(address: IpAddr) -> io::Result<UdpSocket> {
    const DISCARD: u16 = 9;
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.send_to(&[], (address, DISCARD))?;
    Ok(socket)
}

async fn forget(netlink: &Netlink, bridge: u32, addresses: &[IpAddr]) {
    for &address in addresses {
        let mut message = NeighbourMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = bridge;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        // The host may have forgotten already.
        let _ = netlink.handle().neighbours().del(message).execute().await;
    }
}

async fn delete(netlink: &Netlink, interface: &str) -> Result<(), Error> {
    let Some(index) = index(interface) else { return Ok(()) };
    let deleted = netlink.handle().link().del(index).execute().await;
    match deleted.map_err(|error| Error::netlink(format!("ip link del {interface}"), error)) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// The number of an interface; `None` when it is not there.
pub fn index(interface: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(interface).ok()
}
