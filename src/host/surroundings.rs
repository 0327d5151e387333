//! All interfaces of this host with what a capture needs to know of them, and their addresses.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

use super::Error;
use super::netlink::Netlink;
use crate::leaktest::Mac;

/// One reading.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// By number.
    pub interfaces: Vec<Interface>,
    /// Of which number.
    pub addresses: Vec<(u32, IpNet)>,
    /// Addresses of this host and of those that it has talked to on its links.
    pub neighbours: Vec<IpAddr>,
}

/// A network interface.
#[derive(Debug, Clone, Default)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Up, with a cable or what takes its place: packets leave by it.
    pub running: bool,
    /// Carries this host's talk with itself.
    pub loopback: bool,
    /// The bridge, bond or the like that it is a part of.
    pub controller: Option<u32>,
    /// Of an Ethernet interface.
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: u32,
    /// Of a bridge that runs the spanning tree protocol: seconds until a new port carries packets.
    pub forward_delay: Option<u32>,
}

impl Surroundings {
    /// Reads the network namespace of this thread. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub async fn read() -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        let messages: Result<Vec<LinkMessage>, _> = netlink.handle().link().get().execute().try_collect().await;
        let messages = messages.map_err(|error| Error::netlink("ip link show", error))?;
        let addresses = netlink.addresses().await?;
        let known: Result<Vec<NeighbourMessage>, _> = netlink.handle().neighbours().get().execute().try_collect().await;
        let known = known.map_err(|error| Error::netlink("ip neigh show", error))?;
        let own = addresses.iter().map(|address| address.net.addr());
        Ok(Self {
            interfaces: messages.iter().map(interface).collect(),
            neighbours: known.iter().flat_map(|message| &message.attributes).filter_map(neighbour).chain(own).collect(),
            addresses: addresses.into_iter().map(|address| (address.index, address.net)).collect(),
        })
    }

    /// By name.
    pub fn get(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// By number.
    pub fn by_index(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == index)
    }
}

fn neighbour(attribute: &NeighbourAttribute) -> Option<IpAddr> {
    match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let header = &message.header;
    let mut found = Interface {
        index: header.index,
        running: header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: header.flags.contains(LinkFlags::Loopback),
        ..Interface::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Controller(index) => found.controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::Address(bytes) if header.link_layer_type == LinkLayerType::Ether => {
                found.mac = bytes.as_slice().try_into().ok();
            }
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => found.forward_delay = infos.iter().find_map(forward_delay),
            _ => {}
        }
    }
    found
}

/// A new port listens, then learns, for as long each.
fn forward_delay(info: &LinkInfo) -> Option<u32> {
    let LinkInfo::Data(InfoData::Bridge(settings)) = info else { return None };
    let off = settings.iter().any(|setting| matches!(setting, InfoBridge::StpState(BridgeStpState::Disabled)));
    let delay = settings.iter().find_map(|setting| match setting {
        // In hundredths of a second.
        InfoBridge::ForwardDelay(delay) => Some(delay.div_ceil(50)),
        _ => None,
    });
    delay.filter(|_| !off)
}
