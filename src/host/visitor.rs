//! A throwaway container on a bridge, with addresses of its own: a network namespace without a name, and a veth pair.
//!
//! The namespace lives as long as a descriptor of this process leads there, so whatever ends the process takes the pair
//! away too. The host's end has a high hardware address: a bridge without one of its own takes the lowest of its ports
//! (`br_stp_recalculate_bridge_id` in net/bridge/br_stp_if.c), and containers would lose theirs for a moment.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};

use super::Error;
use super::container::{end, on_a_thread};
use super::netlink::Netlink;
use super::tries;
use crate::key::random_bytes;
use crate::plan::{Family, LinkSetting, NextHop, Route, TABLE_MAIN};

const INSIDE: &str = "eth0";
/// What the host's end is called, before eight hexadecimal digits of chance.
const PREFIX: &str = "meshd-";
/// For an answer of a neighbour: on the same machine it takes no time.
const NEIGHBOUR: Duration = Duration::from_millis(200);

/// The container.
pub struct Visitor {
    namespace: File,
    netlink: Netlink,
    port: u32,
    /// Its gateways.
    pub gateways: Vec<IpAddr>,
}

impl Visitor {
    /// Puts one on a bridge, with an unused address beside each of `gateways`, the bridge's own addresses.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN and CAP_SYS_ADMIN, when the kernel has no veth, or when no address is free.
    pub async fn on(bridge: &str, gateways: &[IpNet]) -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        let links = netlink.links().await?;
        let missing = || Error::Netlink { what: bridge.to_owned(), source: io::ErrorKind::NotFound.into() };
        let link = links.get(bridge).ok_or_else(missing)?;
        let mtu = link.settings.iter().find_map(|setting| match setting {
            LinkSetting::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let mut addresses = Vec::new();
        for gateway in gateways {
            let free = free_address(&netlink, *gateway).await?;
            addresses.extend(free.map(|addr| (addr, *gateway)));
        }
        let failed = |what: &'static str| move |source| Error::Netlink { what: what.to_owned(), source };
        let namespace = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // Its addresses were looked for already.
            for name in ["all", "default"] {
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
            }
            File::open("/proc/thread-self/ns/net")
        });
        let namespace = namespace.map_err(failed("network namespace"))?;
        let port = pair(&netlink, &namespace, link.index, mtu.unwrap_or(1500)).await?;
        let visitor = Self { namespace, netlink, port, gateways: addresses.iter().map(|(_, gw)| gw.addr()).collect() };
        visitor.within(|| furnish(&addresses)).map_err(failed("container"))?;
        Ok(visitor)
    }

    /// Runs `f` on a thread in it.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
            f()
        })
    }

    /// Takes it away at once; dropping it does so in the kernel's own time.
    pub async fn leave(self) {
        // Somebody may have taken the bridge or the port away meanwhile.
        let _ = self.netlink.handle().link().del(self.port).execute().await;
    }
}

/// The hardware address of whoever on this host's links has this address, by ARP or neighbour discovery.
pub async fn neighbour(netlink: &Netlink, addr: IpAddr) -> Result<Option<Vec<u8>>, Error> {
    // Whether the echo itself is answered says nothing: it makes the kernel ask who has the address.
    let _ = tokio::task::spawn_blocking(move || tries::echoes(&[addr], NEIGHBOUR)).await;
    let mut neighbours = netlink.handle().neighbours().get().execute();
    loop {
        let next = neighbours.try_next().await.map_err(|error| Error::netlink("ip neighbour show", error))?;
        let Some(message) = next else { return Ok(None) };
        let this = message.attributes.iter().any(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => IpAddr::V4(*v4) == addr,
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => IpAddr::V6(*v6) == addr,
            _ => false,
        });
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
            _ => None,
        });
        if this && mac.is_some() {
            return Ok(mac);
        }
    }
}

/// An address of the bridge's network that nobody answers for.
async fn free_address(netlink: &Netlink, gateway: IpNet) -> Result<Option<IpAddr>, Error> {
    const TRIES: u32 = 4;
    for n in 0..TRIES {
        let [chance] = random_bytes::<1>().map_err(|source| Error::Netlink { what: "random".to_owned(), source })?;
        let below_end = 1 + (u32::from(chance) % 8) + 8 * n;
        let addr: IpAddr = match gateway {
            IpNet::V4(v4) => IpAddr::V4(v4.broadcast().to_bits().wrapping_sub(below_end).into()),
            IpNet::V6(v6) => IpAddr::V6((v6.broadcast().to_bits().wrapping_sub(u128::from(below_end))).into()),
        };
        if gateway.contains(&addr) && addr != gateway.addr() && neighbour(netlink, addr).await?.is_none() {
            return Ok(Some(addr));
        }
    }
    Ok(None)
}

/// A veth pair between the bridge and the namespace; the number of the host's end comes back.
async fn pair(netlink: &Netlink, namespace: &File, bridge: u32, mtu: u32) -> Result<u32, Error> {
    let failed = |what: &'static str| move |source| Error::Netlink { what: what.to_owned(), source };
    let [e, f, g, h] = random_bytes().map_err(failed("random numbers"))?;
    let name = format!("{PREFIX}{:08x}", u32::from_be_bytes(random_bytes().map_err(failed("random numbers"))?));
    // Both are locally administered; the host's is as high as one gets.
    let mut inside = end(INSIDE, [0x02, 0x4d, e, f, g, h], mtu);
    inside.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let mut message = end(&name, [0xfe, 0xff, e, f, g, h], mtu);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Controller(bridge));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
    ]));
    let add = netlink.handle().link().add(message).execute().await;
    add.map_err(|error| Error::netlink(format!("ip link add {name} type veth"), error))?;
    nix::net::if_::if_nametoindex(name.as_str()).map_err(|error| failed("veth")(error.into()))
}

/// Addresses and default routes, on a thread inside.
fn furnish(addresses: &[(IpAddr, IpNet)]) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let other = |error: Error| io::Error::other(error.to_string());
    let refused = |error: rtnetlink::Error| io::Error::other(error.to_string());
    runtime.block_on(async {
        let netlink = Netlink::open().map_err(other)?;
        let links = netlink.links().await.map_err(other)?;
        let index = links.get(INSIDE).ok_or(io::ErrorKind::NotFound)?.index;
        netlink.set_link(index, LinkSetting::Up).await.map_err(refused)?;
        for (addr, gateway) in addresses {
            let net = IpNet::new(*addr, gateway.prefix_len()).map_err(io::Error::other)?;
            netlink.add_address(index, net).await.map_err(refused)?;
            let next_hop = NextHop::Device { device: INSIDE.to_owned(), gateway: Some(gateway.addr()) };
            let destination = Family::of(gateway).everything();
            let route = Route { table: TABLE_MAIN, destination, metric: 0, next_hop };
            netlink.add_route(&route, &links, false).await.map_err(refused)?;
        }
        Ok(())
    })
}
