//! The TUN device: created by tun-rs, read and written with the virtio-net header by plain `readv` and `writev`.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::Offloads;
use crate::packet::coalesce::Offload;
use crate::packet::virtio::VnetHeader;

/// An open TUN interface. It exists as long as this does, or whoever else holds its descriptors.
pub struct Tun {
    /// One for each worker. The kernel reads a flow from the queue that its other direction was last written to
    /// (`tun_automq_select_queue`, drivers/net/tun.c), so both are one worker's.
    queues: Vec<File>,
    /// Whether packets carry a virtio header.
    vnet: bool,
    tcp: AtomicBool,
    udp: AtomicBool,
    /// Packets that could not be written.
    lost: AtomicU64,
}

impl Tun {
    /// Creates the interface with so many queues, down and without addresses, in this thread's network namespace. The
    /// kernel may lack any of `offloads`.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN or /dev/net/tun, or when the name is taken.
    pub fn create(name: &str, queues: usize, offloads: Offloads) -> io::Result<Self> {
        let build = |offload| {
            DeviceBuilder::new().name(name).enable(false).offload(offload).multi_queue(queues > 1).build_sync()
        };
        let (device, vnet) = match build(offloads.tso) {
            Ok(device) => (device, offloads.tso),
            Err(error) if offloads.tso && error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::info!(%error, "this kernel's TUN device has no offloads; packets go one by one");
                (build(false)?, false)
            }
            Err(error) => return Err(error),
        };
        no_link_local_address(name);
        let mut queues = (1..queues).map(|_| device.try_clone()).collect::<io::Result<Vec<_>>>()?;
        queues.push(device);
        // SAFETY: each descriptor is open, and tun-rs has just given it away.
        let owned = |queue: SyncDevice| unsafe { OwnedFd::from_raw_fd(queue.into_raw_fd()) };
        Self::over(queues.into_iter().map(owned).collect(), vnet, offloads)
    }

    /// Over the queues of one interface, all of them; with `vnet`, their packets carry a virtio header.
    pub(super) fn over(queues: Vec<OwnedFd>, vnet: bool, offloads: Offloads) -> io::Result<Self> {
        let queues: Vec<File> = queues.into_iter().map(File::from).collect();
        for queue in &queues {
            fcntl(queue, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        // Only now: each clone tells the kernel anew what to deliver.
        let udp = vnet && deliver_super_packets(&queues[0], offloads.uso)?;
        Ok(Self { queues, vnet, tcp: AtomicBool::new(vnet), udp: AtomicBool::new(udp), lost: AtomicU64::new(0) })
    }

    /// The interface's present name.
    ///
    /// # Errors
    /// `EBADFD` when the interface was deleted.
    pub fn name(&self) -> io::Result<String> {
        claims(&self.queues[0]).map(|(name, _)| name)
    }

    /// All queues, for a service manager to keep.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.queues.iter().map(AsFd::as_fd)
    }

    /// Which super-packets may be written.
    pub fn offload(&self) -> Offload {
        Offload { tcp: self.tcp.load(Ordering::Relaxed), udp: self.udp.load(Ordering::Relaxed) }
    }

    /// Reads one packet or super-packet of a queue into `buffer`, without blocking; its length comes back.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn read(&self, queue: usize, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)> {
        if !self.vnet {
            return Ok((VnetHeader::default(), (&self.queues[queue]).read(buffer)?));
        }
        let mut header = [0; VnetHeader::LEN];
        let len = (&self.queues[queue]).read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        Ok((VnetHeader::parse(&header), len.saturating_sub(VnetHeader::LEN)))
    }

    /// To wait for.
    pub fn fd(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue].as_fd()
    }

    /// Packets that could not be written.
    pub fn unwritten(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Packets that came while the device's queue was full.
    pub fn overflowed(&self) -> u64 {
        let text = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
        self.name().ok().and_then(|name| transmit_drops(&text, &name)).unwrap_or(0)
    }

    /// Writes one packet to a queue, whose first slice is its virtio header. A kernel that rejects a super-packet gets none again.
    pub fn write(&self, queue: usize, slices: &[IoSlice<'_>]) {
        let slices = if self.vnet { slices } else { &slices[1..] };
        let Err(error) = (&self.queues[queue]).write_vectored(slices) else { return };
        // Two slices are one packet, and each that was gathered adds one.
        let packets = slices.len() - usize::from(self.vnet);
        self.lost.fetch_add(packets as u64, Ordering::Relaxed);
        match error.raw_os_error() {
            // Kernels of mid-2024 reject GSO writes with EINVAL.
            Some(libc::EINVAL) if slices.len() > 2 && self.tcp.swap(false, Ordering::Relaxed) => {
                self.udp.store(false, Ordering::Relaxed);
                tracing::warn!("this kernel rejects super-packets on TUN; packets go one by one from here on");
            }
            // The interface is down, or the kernel's queue is full: as on any link, the packet is lost.
            _ => tracing::trace!(%error, "a packet could not be written to the TUN device"),
        }
    }
}

/// What the interface behind a descriptor is: its name, and flags of `TUNSETIFF` (`TUNGETIFF`).
///
/// # Errors
/// `ENOTTY` for what is no TUN or TAP device, `EBADFD` when the interface was deleted.
pub(super) fn claims(queue: &impl AsFd) -> io::Result<(String, libc::c_int)> {
    // include/uapi/linux/if_tun.h; it fills a whole `ifreq`.
    nix::ioctl_read_bad!(tun_get_iff, nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()), libc::ifreq);
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer refers to a live `ifreq`.
    unsafe { tun_get_iff(queue.as_fd().as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel ends the name with a zero and fills the flags.
    let (name, flags) = unsafe { (CStr::from_ptr(request.ifr_name.as_ptr()), request.ifr_ifru.ifru_flags) };
    Ok((name.to_string_lossy().into_owned(), libc::c_int::from(flags)))
}

/// Has the kernel deliver TCP super-packets by all queues, and UDP's if that is wanted; whether it does the latter.
fn deliver_super_packets(queue: &File, uso: bool) -> io::Result<bool> {
    // TUNSETOFFLOAD (include/uapi/linux/if_tun.h) has its argument by value.
    nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let set = |offloads: libc::c_uint| {
        // SAFETY: no pointers, and the descriptor is that of a TUN device.
        unsafe { tun_set_offload(queue.as_raw_fd(), offloads.cast_signed()) }
    };
    if uso {
        match set(tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6) {
            Ok(_) => return Ok(true),
            Err(_) => {
                tracing::info!("this kernel's TUN device has no USO (Linux 6.2 brought it); UDP goes packet by packet");
            }
        }
    }
    set(tcp)?;
    Ok(false)
}

/// Of `text`, which is /proc/net/dev, the packets that `name` could not transmit.
fn transmit_drops(text: &str, name: &str) -> Option<u64> {
    let numbers = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(11)?.parse().ok()
}

/// Without a link-local address the kernel solicits no routers through the tunnel, so an idle one stays idle; the kernel's
/// WireGuard device has none either. Where IPv6 is off there is nothing to turn off.
fn no_link_local_address(name: &str) {
    const NONE: &str = "1";
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), NONE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drops_of_one_interface() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
 mesh0: 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
";
        assert_eq!(transmit_drops(text, "mesh0"), Some(32));
        assert_eq!(transmit_drops(text, "lo"), Some(12));
        assert_eq!(transmit_drops(text, "mesh"), None);
    }
}
