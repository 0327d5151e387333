//! Packet sockets (packet(7)): frames as they cross an interface, read and written without waiting.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

use tokio::io::unix::AsyncFd;

use crate::leaktest::Mac;

/// A packet socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// A frame that was read.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// The interface's number.
    pub index: u32,
    /// Its Ethernet type.
    pub ethertype: u16,
}

impl PacketSocket {
    /// One that reads and writes frames whole.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn frames() -> io::Result<Self> {
        Self::open(libc::SOCK_RAW)
    }

    /// One that reads and writes what follows the link's own header.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn packets() -> io::Result<Self> {
        Self::open(libc::SOCK_DGRAM)
    }

    fn open(kind: libc::c_int) -> io::Result<Self> {
        // Protocol 0 hears nothing, so what comes before the filter is in place is not queued.
        // SAFETY: no pointers; the descriptor is owned by nobody else.
        unsafe {
            match libc::socket(libc::AF_PACKET, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self(OwnedFd::from_raw_fd(fd))),
            }
        }
    }

    /// To be waited for. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the runtime has no I/O.
    pub fn waiting(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the socket keeps one descriptor open for as long as it lives, and `AsyncFd` owns it from here on.
        Ok(unsafe { AsyncFd::register(self)? })
    }

    /// Lets only frames through that this program (classic BPF) accepts, cut to the length that it returns.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn filter(&self, program: &mut [libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            filter: program.as_mut_ptr(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// How many bytes may wait to be read, beyond what users may have.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn buffer(&self, bytes: libc::c_int) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
    }

    /// Listens on an interface, or on all for 0. What is sent goes out there.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn listen(&self, index: u32) -> io::Result<()> {
        let address = address(index, libc::ETH_P_ALL as u16, None);
        // SAFETY: the pointer and the length are those of `address`.
        let bound = unsafe { libc::bind(self.as_raw_fd(), (&raw const address).cast(), length::<libc::sockaddr_ll>()) };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut from = address(0, 0, None);
        let mut size = length::<libc::sockaddr_ll>();
        // SAFETY: both pointers and lengths are those of live buffers.
        let len = unsafe {
            let from = (&raw mut from).cast();
            libc::recvfrom(self.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0, from, &raw mut size)
        };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        let ethertype = u16::from_be(from.sll_protocol);
        Ok(Received { len, index: from.sll_ifindex.cast_unsigned(), ethertype })
    }

    /// Writes a whole frame to the interface that it listens on.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of `frame`.
        let sent = unsafe { libc::send(self.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Writes a packet to an interface, with a header of its link to this hardware address, where it has such headers.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn send_by(&self, index: u32, to: Option<Mac>, ethertype: u16, packet: &[u8]) -> io::Result<()> {
        let to = address(index, ethertype, to);
        // SAFETY: both pointers and lengths are those of live values.
        let sent = unsafe {
            let (to, length) = ((&raw const to).cast(), length::<libc::sockaddr_ll>());
            libc::sendto(self.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, to, length)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Frames that found the buffer full, since this was asked last.
    ///
    /// # Errors
    /// None that is known.
    pub fn missed(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut size = length::<libc::tpacket_stats>();
        // SAFETY: the pointer and the length are those of `statistics`.
        let got = unsafe {
            let (level, name) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
            libc::getsockopt(self.as_raw_fd(), level, name, (&raw mut statistics).cast(), &raw mut size)
        };
        if got == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()) }
    }

    fn set<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of `value`, which is what these options take; a filter's own
        // pointer is that of a live slice, which the kernel copies.
        let set = unsafe { libc::setsockopt(self.as_raw_fd(), level, name, (&raw const *value).cast(), length::<T>()) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn length<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn address(index: u32, ethertype: u16, mac: Option<Mac>) -> libc::sockaddr_ll {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&mac.unwrap_or_default());
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: if mac.is_some() { 6 } else { 0 },
        sll_addr: address,
    }
}
