//! Descriptors of a process before this one: taken over when they are what they are said to be.
//!
//! A service manager hands on whatever it was given, and meanwhile the configuration may have changed, or somebody may have
//! deleted the interface or moved it elsewhere. So each descriptor is asked what it is, and none is used unless all are right:
//! of several queues, or sockets on one port, each that nobody reads would swallow its share of the packets.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getpeername};

use super::udp::{check_segmentation, local_addr, option};
use super::{Offloads, Tun, Udp, tun};

/// What tells one kind of TUN device from another; that there is no packet information the kernel does not tell.
const KIND: libc::c_int = libc::IFF_TUN | libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | DETACHED;
/// `IFF_DETACH_QUEUE`: a queue that gets no packets.
const DETACHED: libc::c_int = 0x0400;
/// `TUNGETDEVNETNS` (include/uapi/linux/if_tun.h) and `SIOCGSKNS` (include/uapi/linux/sockios.h): the network namespace.
const OF_DEVICE: libc::Ioctl = 0x54e3;
const OF_SOCKET: libc::Ioctl = 0x894c;

/// What is wrong with an inherited descriptor.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The kernel does not say what it would say of the right one.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is another one.
    #[error("{0}")]
    Other(String),
}

impl From<Errno> for Unfit {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl Tun {
    /// The interface `name` with exactly so many queues, from its descriptors.
    ///
    /// # Errors
    /// When they are anything else. Their interface may be in use then: see [`interface_of`].
    pub fn inherit(fds: &[OwnedFd], name: &str, queues: usize, offloads: Offloads) -> Result<Self, Unfit> {
        let vnet = if offloads.tso { libc::IFF_VNET_HDR } else { 0 };
        let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let wanted = libc::IFF_TUN | vnet | multi;
        count("queues", fds, queues)?;
        for fd in fds {
            let (found, flags) = tun::claims(fd)?;
            if found != name {
                return Err(Unfit::Other(format!("it is interface {found}, not {name}")));
            }
            if flags & KIND != wanted {
                return Err(Unfit::Other(format!("its flags are {:#06x}; {wanted:#06x} is wanted", flags & KIND)));
            }
            is_here(fd, OF_DEVICE)?;
        }
        Ok(Self::over(duplicate(fds)?, offloads.tso, offloads)?)
    }
}

impl Udp {
    /// The sockets of a port, exactly so many, for both families; port 0 stands for the one that they have.
    ///
    /// # Errors
    /// When they are anything else. A socket for IPv4 alone is: this host may have IPv6 by now.
    pub fn inherit(fds: &[OwnedFd], port: u16, workers: usize, offloads: Offloads) -> Result<Vec<Self>, Unfit> {
        count("sockets", fds, workers)?;
        fds.iter().try_for_each(is_of_both_families)?;
        let bound = local_addr(&fds[0])?.port();
        for fd in fds {
            let local = local_addr(fd)?;
            let wanted = if port == 0 { bound } else { port };
            if !local.ip().is_unspecified() || local.port() != wanted || wanted == 0 {
                return Err(Unfit::Other(format!("it is bound to {local}, not to port {wanted} of all addresses")));
            }
            if let Ok(peer) = getpeername::<SockaddrStorage>(fd.as_raw_fd()) {
                return Err(Unfit::Other(format!("it is connected to {peer}")));
            }
            if workers > 1 && option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT)? == 0 {
                return Err(Unfit::Other("its port is not shared".to_owned()));
            }
            is_here(fd, OF_SOCKET)?;
        }
        let sockets = duplicate(fds)?.into_iter().map(|fd| Self::bound(fd, bound, offloads));
        let sockets = sockets.collect::<io::Result<Vec<_>>>()?;
        check_segmentation(&sockets);
        Ok(sockets)
    }
}

/// The interface that a descriptor holds in this network namespace.
pub fn interface_of(fd: &OwnedFd) -> Option<String> {
    let (name, _) = tun::claims(fd).ok()?;
    is_here(fd, OF_DEVICE).ok().map(|()| name)
}

fn count(what: &str, fds: &[OwnedFd], wanted: usize) -> Result<(), Unfit> {
    if fds.len() == wanted && wanted > 0 {
        return Ok(());
    }
    Err(Unfit::Other(format!("{} {what}, where {wanted} are wanted", fds.len())))
}

fn is_of_both_families(socket: &OwnedFd) -> Result<(), Unfit> {
    let is = |level, name, value| option(socket, level, name).is_ok_and(|found| found == value);
    let udp = is(libc::SOL_SOCKET, libc::SO_TYPE, libc::SOCK_DGRAM)
        && is(libc::SOL_SOCKET, libc::SO_PROTOCOL, libc::IPPROTO_UDP);
    if udp && is(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0) {
        return Ok(());
    }
    Err(Unfit::Other("it is no UDP socket for both families".to_owned()))
}

/// Whether the kernel answers `request` with the network namespace of this thread.
fn is_here(fd: &impl AsFd, request: libc::Ioctl) -> Result<(), Unfit> {
    // SAFETY: the request takes no argument; the result is checked.
    let namespace = Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request) })?;
    // SAFETY: a result that is no error is a new descriptor that nothing else owns.
    let namespace = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(namespace) });
    let (theirs, ours) = (namespace.metadata()?, std::fs::metadata("/proc/thread-self/ns/net")?);
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Ok(());
    }
    Err(Unfit::Other("it is in another network namespace".to_owned()))
}

fn duplicate(fds: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    fds.iter().map(OwnedFd::try_clone).collect()
}
