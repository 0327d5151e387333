//! The UDP socket: one for both families, with `UDP_SEGMENT` on the way out and `UDP_GRO` on the way in.
//!
//! Control messages and `sendmsg` are written against libc, because the safe wrappers allocate for each call.

use std::io::{self, IoSlice};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Offloads;
use crate::tunnel::{Datagrams, Path, Run};

/// Bytes of socket buffer, each way: what arrives while a batch is sealed or opened.
const SOCKET_BUFFER: libc::c_int = 4 << 20;
/// Room for `in6_pktinfo` and two integers, each with its header.
const CONTROL: usize = 96;

/// A bound UDP socket.
pub struct Udp {
    fd: OwnedFd,
    /// IPv6 with IPv4 mapped into it; else IPv4 alone, where the kernel has no IPv6.
    dual: bool,
    port: u16,
    offloads: Offloads,
    /// Whether `UDP_SEGMENT` works here.
    gso: AtomicBool,
    /// Datagrams that could not be sent.
    lost: AtomicU64,
}

/// `cmsghdr` wants its own alignment.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

impl Udp {
    /// Binds `port` on all addresses of both families, for so many workers; 0 lets the kernel pick. The kernel hands all
    /// that comes from one address and port to the same one of the sockets. It may lack any of `offloads`.
    ///
    /// # Errors
    /// When the port is taken, above all.
    pub fn bind(port: u16, workers: usize, offloads: Offloads) -> io::Result<Vec<Self>> {
        let unspecified = |dual| if dual { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        let open = |dual, port, shared| Self::open(dual, SocketAddr::from((unspecified(dual), port)), shared, offloads);
        // The first one alone, so that a port that somebody has is an error whoever that is.
        let first = match open(true, port, false) {
            // IPv6 is compiled out or disabled on this host.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                open(false, port, false)?
            }
            other => other?,
        };
        let mut sockets = vec![first];
        if workers > 1 {
            sockets[0].set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        for _ in 1..workers {
            sockets.push(open(sockets[0].dual, sockets[0].port, true)?);
        }
        check_segmentation(&sockets);
        Ok(sockets)
    }

    /// `shared`: beside another socket on the same port.
    fn open(dual: bool, addr: SocketAddr, shared: bool, offloads: Offloads) -> io::Result<Self> {
        let family = if dual { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: no pointers; the result is checked.
        let fd = check(unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: `fd` is open and owned by nobody else.
        let mut udp = Self::over(unsafe { OwnedFd::from_raw_fd(fd) }, dual, offloads)?;
        if dual {
            udp.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
        }
        if shared {
            udp.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        let (storage, len) = udp.sockaddr(addr);
        // SAFETY: `storage` holds a socket address of `len` bytes.
        check(unsafe { libc::bind(udp.fd.as_raw_fd(), (&raw const storage).cast(), len) })?;
        udp.port = local_addr(&udp.fd)?.port();
        Ok(udp)
    }

    /// Over a socket, which need not be bound yet.
    pub(super) fn over(fd: OwnedFd, dual: bool, offloads: Offloads) -> io::Result<Self> {
        let (gso, lost) = (AtomicBool::new(offloads.udp_gso), AtomicU64::new(0));
        let udp = Self { fd, dual, port: 0, offloads, gso, lost };
        // The outer packet may be fragmented on the way, as the kernel's WireGuard allows: a path that drops ICMP and
        // has a smaller MTU would swallow every full packet otherwise.
        udp.set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
        udp.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        if dual {
            udp.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            udp.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            udp.set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
        } else {
            udp.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        }
        for (forced, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
            // Past the sysctl's limit only with CAP_NET_ADMIN.
            udp.set(libc::SOL_SOCKET, forced, SOCKET_BUFFER)
                .or_else(|_| udp.set(libc::SOL_SOCKET, plain, SOCKET_BUFFER))?;
        }
        if let Err(error) = udp.set(libc::SOL_UDP, libc::UDP_GRO, offloads.udp_gro.into()) {
            tracing::info!(%error, "no UDP_GRO; datagrams arrive one by one");
        }
        Ok(udp)
    }

    /// Over a socket that was bound by [`Self::bind`], in a process before this one.
    pub(super) fn bound(fd: OwnedFd, port: u16, offloads: Offloads) -> io::Result<Self> {
        Ok(Self { port, ..Self::over(fd, true, offloads)? })
    }

    /// The port in use.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Those that it was told to use.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Receives what one peer sent in a row into `buffer`, without blocking.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing.
    pub fn recv<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Datagrams<'b>> {
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (mut from, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { mem::zeroed() };
        let mut control = Control([0; CONTROL]);
        let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as libc::socklen_t;
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = CONTROL;
        // SAFETY: every pointer in `message` refers to a live local of the stated length.
        let len = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        let remote = parse_sockaddr(&from).ok_or(io::ErrorKind::InvalidData)?;
        let (mut segment, mut local, mut traffic_class) = (len, None, 0);
        // SAFETY: the kernel filled `control` and set `msg_controllen`; the CMSG macros stay within it.
        unsafe {
            let mut cmsg = libc::CMSG_FIRSTHDR(&raw const message);
            while !cmsg.is_null() {
                let data = libc::CMSG_DATA(cmsg);
                match ((*cmsg).cmsg_level, (*cmsg).cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) => {
                        segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).unwrap_or(len);
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        local = Some(IpAddr::from(info.ipi6_addr.s6_addr).to_canonical());
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        local = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                    }
                    // One byte in IPv4, an integer in IPv6.
                    (libc::IPPROTO_IP, libc::IP_TOS) => traffic_class = data.read(),
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                        traffic_class = data.cast::<libc::c_int>().read_unaligned().to_le_bytes()[0];
                    }
                    _ => {}
                }
                cmsg = libc::CMSG_NXTHDR(&raw const message, cmsg);
            }
        }
        Ok(Datagrams { bytes: &buffer[..len], segment, path: Path { remote, local }, traffic_class })
    }

    /// Sends a run, at once where `UDP_SEGMENT` works. What cannot be sent is lost, as on any link: to wait for room in a full
    /// buffer would let the other direction wait too.
    pub fn send(&self, run: &Run<'_>) {
        let single = matches!(run.slices, [slice] if slice.len() <= run.segment);
        if !single && self.gso.load(Ordering::Relaxed) {
            let Err(error) = self.send_from(run, run.slices, Some(run.segment as u16)) else { return };
            match error.raw_os_error() {
                // The device cannot checksum what it would have to cut (udp_send_skb, net/ipv4/udp.c).
                Some(libc::EIO) => self.give_up_gso("the outgoing device cannot checksum"),
                // A datagram is longer than the path's MTU: only whole ones can be fragmented.
                Some(libc::EINVAL | libc::EMSGSIZE) => {}
                _ => return self.lost(run.count(), &error),
            }
        }
        for datagram in run.datagrams() {
            if let Err(error) = self.send_from(run, &[IoSlice::new(datagram)], None) {
                self.lost(1, &error);
            }
        }
    }

    /// One `sendmsg`, from the address that the peer knows unless that is gone.
    fn send_from(&self, run: &Run<'_>, slices: &[IoSlice<'_>], segment: Option<u16>) -> io::Result<()> {
        let (path, class) = (run.path, run.traffic_class);
        let result = self.sendmsg(path, class, slices, segment);
        match &result {
            Err(error)
                if path.local.is_some()
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EINVAL | libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EHOSTUNREACH)
                    ) =>
            {
                self.sendmsg(Path { local: None, ..path }, class, slices, segment)
            }
            _ => result,
        }
    }

    fn sendmsg(&self, path: Path, traffic_class: u8, slices: &[IoSlice<'_>], segment: Option<u16>) -> io::Result<()> {
        if !self.dual && path.remote.is_ipv6() {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        let (mut to, to_len) = self.sockaddr(path.remote);
        let mut control = Control([0; CONTROL]);
        // SAFETY: all-zero is a valid value of this plain C structure.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut to).cast();
        message.msg_namelen = to_len;
        // `IoSlice` has the layout of `iovec`, as its documentation promises; sendmsg only reads.
        message.msg_iov = slices.as_ptr().cast_mut().cast();
        message.msg_iovlen = slices.len();
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = CONTROL;
        let mut used = 0;
        // SAFETY: CONTROL has room for all messages (checked by a test), and `control` outlives the call.
        unsafe {
            let mut cmsg = libc::CMSG_FIRSTHDR(&raw const message);
            if let Some(segment) = segment {
                used += put(cmsg, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
                cmsg = libc::CMSG_NXTHDR(&raw const message, cmsg);
            }
            if traffic_class != 0 {
                // The headers that go out are of the remote's family, whatever the socket's.
                let (level, kind) = match path.remote {
                    SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                    SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
                };
                used += put(cmsg, level, kind, libc::c_int::from(traffic_class));
                cmsg = libc::CMSG_NXTHDR(&raw const message, cmsg);
            }
            match path.local {
                Some(local) if self.dual => {
                    let ipi6_addr = libc::in6_addr { s6_addr: mapped(local).octets() };
                    let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
                    used += put(cmsg, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                }
                Some(IpAddr::V4(local)) => {
                    let ipi_spec_dst = libc::in_addr { s_addr: u32::from(local).to_be() };
                    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
                    used += put(cmsg, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                }
                _ => {}
            }
        }
        message.msg_controllen = used;
        if used == 0 {
            message.msg_control = std::ptr::null_mut();
        }
        // SAFETY: every pointer in `message` refers to a live local or to `slices`.
        let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Datagrams that could not be sent.
    pub fn unsent(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Datagrams that came while the socket's buffer was full.
    pub fn overflowed(&self) -> u64 {
        /// `SK_MEMINFO_DROPS` and `SK_MEMINFO_VARS` (include/uapi/linux/sock_diag.h).
        const DROPS: usize = 8;
        let mut values = [0u32; DROPS + 1];
        let mut len = size_of_val(&values) as libc::socklen_t;
        let (fd, to) = (self.fd.as_raw_fd(), (&raw mut values).cast());
        // SAFETY: both pointers refer to live locals; the kernel writes no more than `len`.
        let result = check(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, to, &raw mut len) });
        result.map_or(0, |_| values[DROPS].into())
    }

    fn lost(&self, datagrams: usize, error: &io::Error) {
        self.lost.fetch_add(datagrams as u64, Ordering::Relaxed);
        tracing::trace!(%error, datagrams, "datagrams could not be sent");
    }

    fn give_up_gso(&self, why: &str) {
        if self.gso.swap(false, Ordering::Relaxed) {
            tracing::warn!("no UDP segmentation offload: {why}; datagrams are sent one by one");
        }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the pointer refers to a live integer of the stated length.
        check(unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const value).cast(), len) }).map(drop)
    }

    /// `addr` as the socket's own family has it.
    fn sockaddr(&self, addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
        // SAFETY: all-zero is a valid value of this plain C structure.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let len = match addr {
            SocketAddr::V4(v4) if !self.dual => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: `sockaddr_storage` is large enough and aligned for every socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(sin) };
                size_of_val(&sin)
            }
            _ => {
                let scope = if let SocketAddr::V6(v6) = addr { v6.scope_id() } else { 0 };
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: mapped(addr.ip()).octets() },
                    sin6_scope_id: scope,
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(sin6) };
                size_of_val(&sin6)
            }
        };
        (storage, len as libc::socklen_t)
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Writes one control message; its padded length comes back.
///
/// # Safety
/// `cmsg` points into a control buffer with room for a `T` behind its header.
unsafe fn put<T>(cmsg: *mut libc::cmsghdr, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    let len = size_of::<T>() as libc::c_uint;
    // SAFETY: the caller vouches for the room.
    unsafe {
        (*cmsg).cmsg_level = level;
        (*cmsg).cmsg_type = kind;
        (*cmsg).cmsg_len = libc::CMSG_LEN(len) as usize;
        libc::CMSG_DATA(cmsg).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(len) as usize
    }
}

fn mapped(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn parse_sockaddr(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which structure it is, and the storage is large enough for it.
            let sin = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(sin.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(sin.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let sin6 = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let (ip, port) = (Ipv6Addr::from(sin6.sin6_addr.s6_addr), u16::from_be(sin6.sin6_port));
            Some(match ip.to_ipv4_mapped() {
                Some(v4) => SocketAddrV4::new(v4, port).into(),
                None => SocketAddrV6::new(ip, port, 0, sin6.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

/// Where a socket is bound to.
pub(super) fn local_addr(socket: &OwnedFd) -> io::Result<SocketAddr> {
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut addr: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = size_of_val(&addr) as libc::socklen_t;
    // SAFETY: both pointers refer to live locals; the kernel writes no more than `len`.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut addr).cast(), &raw mut len) })?;
    parse_sockaddr(&addr).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The value of an integer option of a socket.
pub(super) fn option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: both pointers refer to live locals; the kernel writes no more than `len`.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) })?;
    Ok(value)
}

/// Goes without segmentation offload where a self-check finds it wanting.
pub(super) fn check_segmentation(sockets: &[Udp]) {
    if sockets.iter().any(|socket| socket.offloads.udp_gso) && !segmentation_works() {
        for socket in sockets {
            socket.give_up_gso("a self-check over loopback failed");
        }
    }
}

/// Whether segments leave as they should, tried over loopback: Linux 7.0 to 7.1.4 corrupt them when all are equal, and
/// no version number tells which kernels carry the fix. Where loopback is down nothing can be said, and errors at run
/// time decide.
fn segmentation_works() -> bool {
    let check = || -> io::Result<bool> {
        let offloads = Offloads { udp_gro: false, ..Offloads::default() };
        let sender = Udp::open(false, (Ipv4Addr::LOCALHOST, 0).into(), false, offloads)?;
        let receiver = Udp::open(false, (Ipv4Addr::LOCALHOST, 0).into(), false, offloads)?;
        let bytes: Vec<u8> = (0u8..=255).cycle().take(3 * 400).collect();
        let path = Path { remote: (Ipv4Addr::LOCALHOST, receiver.port()).into(), local: None };
        sender.sendmsg(path, 0, &[IoSlice::new(&bytes)], Some(400))?;
        let mut buffer = [0; 2048];
        for expected in bytes.chunks(400) {
            // Loopback delivers within sendmsg, so nothing to read means nothing was sent.
            if receiver.recv(&mut buffer)?.bytes != expected {
                return Ok(false);
            }
        }
        Ok(true)
    };
    check().unwrap_or(true)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests;
