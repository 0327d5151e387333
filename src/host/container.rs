//! A throwaway container on a bridge: a network namespace without a name, a veth pair into it, and no process: its frames are
//! read and written here.
//!
//! The namespace lives as long as a descriptor of this process leads there, so whatever ends the process, a SIGKILL too,
//! takes the namespace, the pair and the port away with it. The host's end has an address above those of other ports: a
//! bridge without one of its own takes the lowest of its ports (`br_stp_recalculate_bridge_id` in net/bridge/br_stp_if.c),
//! and containers would lose theirs for a moment. Likewise its MTU is that of the bridge (`br_mtu_auto_adjust`).

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use tokio::io::unix::AsyncFd;

use super::Error;
use super::netlink::Netlink;
use super::packet_socket::PacketSocket;
use super::surroundings::Interface;
use crate::key::random_bytes;
use crate::leaktest::Mac;
use crate::plan::LinkSetting;

/// Its interface, within.
const INSIDE: &str = "eth0";
/// What the host's end is called, before eight hexadecimal digits of chance.
const PREFIX: &str = "meshd-";
/// Longer than any Ethernet frame that comes here matters.
const FRAME: usize = 2048;

/// A container without a process.
pub struct Container {
    socket: AsyncFd<PacketSocket>,
    buffer: Vec<u8>,
    namespace: Namespace,
    netlink: Netlink,
    mac: Mac,
    bridge: u32,
    port: u32,
    name: String,
}

/// A network namespace that exists as long as this does, and as sockets that were opened in it.
pub struct Namespace(File);

impl Namespace {
    /// An empty one.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn new() -> io::Result<Self> {
        let made = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // It shall say nothing by itself: no router solicitation, no multicast listener report.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            File::open("/proc/thread-self/ns/net")
        })?;
        Ok(Self(made))
    }

    /// Runs `f` on a thread in it. Sockets that it opens stay there, whoever uses them.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            f()
        })
    }
}

/// Namespaces are a thread's; this one's stays.
pub(super) fn on_a_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, f)?;
        thread.join().map_err(|_| io::Error::other("the thread in the namespace panicked"))?
    })
}

impl Container {
    /// Puts one on a bridge. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN, or when the kernel has no veth.
    pub async fn on(bridge: &Interface) -> Result<Self, Error> {
        let failed = |what: &'static str| move |source| Error::Netlink { what: what.to_owned(), source };
        let namespace = Namespace::new().map_err(failed("network namespace"))?;
        let netlink = Netlink::open()?;
        let random: [u8; 4] = random_bytes().map_err(failed("random numbers"))?;
        let name = format!("{PREFIX}{:08x}", u32::from_be_bytes(random));
        // Both are locally administered; the first is as high as one gets.
        let [mut outside, mut mac] = [[0xfe, 0xff, 0, 0, 0, 0], [0x02, 0x4d, 0, 0, 0, 0]];
        outside[2..].copy_from_slice(&random);
        mac[2..].copy_from_slice(&random);

        let mut inside = end(INSIDE, mac, bridge.mtu);
        inside.attributes.push(LinkAttribute::NetNsFd(namespace.0.as_raw_fd()));
        let mut message = end(&name, outside, bridge.mtu);
        message.attributes.push(LinkAttribute::Controller(bridge.index));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
        ]));
        let add = netlink.handle().link().add(message).execute().await;
        add.map_err(|error| Error::netlink(format!("ip link add {name} master {} type veth", bridge.name), error))?;
        // From here on the namespace's end takes the pair with it.
        let port = nix::net::if_::if_nametoindex(name.as_str()).map_err(|error| failed("veth")(error.into()))?;
        // A port needs no address of its own. Where IPv6 is off there is nothing to turn off.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        let up = netlink.set_link(port, LinkSetting::Up).await;
        up.map_err(|error| Error::netlink(format!("ip link set {name} up"), error))?;

        let runtime = tokio::runtime::Handle::current();
        let index = || nix::net::if_::if_nametoindex(INSIDE).map_err(io::Error::from);
        let (there, inside) = namespace
            .within(|| {
                let _entered = runtime.enter();
                Ok((Netlink::open().map_err(io::Error::other)?, index()?))
            })
            .map_err(failed("netlink socket"))?;
        let up = there.set_link(inside, LinkSetting::Up).await;
        up.map_err(|error| Error::netlink(format!("ip link set {INSIDE} up"), error))?;
        let socket = namespace.within(|| {
            let socket = PacketSocket::frames()?;
            socket.listen(inside)?;
            Ok(socket)
        });
        let socket = socket.and_then(PacketSocket::waiting).map_err(failed("packet socket"))?;
        Ok(Self { socket, buffer: vec![0; FRAME], namespace, netlink, mac, bridge: bridge.index, port, name })
    }

    /// Its own Ethernet address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The host's end of the pair.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Its namespace, for ordinary sockets and programs.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Sends an Ethernet frame.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(frame)
    }

    /// Waits for the next Ethernet frame that comes to it. May be dropped without losing one.
    ///
    /// # Errors
    /// When the interface is gone.
    pub async fn next(&mut self) -> io::Result<&[u8]> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().receive(&mut self.buffer)) {
                Ok(received) => return Ok(&self.buffer[..received?.len]),
                Err(_would_block) => {}
            }
        }
    }

    /// Takes it off the bridge at once, and makes the host forget who had these addresses. Dropping it takes it off too, but in
    /// the kernel's own time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(self, addresses: &[IpAddr]) -> Result<(), Error> {
        let removed = self.netlink.handle().link().del(self.port).execute().await;
        for &address in addresses {
            let mut message = NeighbourMessage::default();
            message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            message.header.ifindex = self.bridge;
            message.attributes.push(NeighbourAttribute::Destination(address.into()));
            // The host may have forgotten already.
            let _ = self.netlink.handle().neighbours().del(message).execute().await;
        }
        match removed.map_err(|error| Error::netlink(self.name, error)) {
            // Somebody took the bridge or the port away meanwhile.
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}

/// One end of a pair.
pub(super) fn end(name: &str, mac: Mac, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Address(mac.to_vec()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message
}
