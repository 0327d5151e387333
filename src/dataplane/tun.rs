//! The TUN device: created by tun-rs, read and written with the virtio-net header by plain `readv` and `writev`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tun_rs::{DeviceBuilder, SyncDevice};

use super::Offloads;
use crate::packet::coalesce::Offload;
use crate::packet::virtio::VnetHeader;

/// An open TUN interface. It exists as long as this does.
pub struct Tun {
    /// One for each worker. The kernel reads a flow from the queue that its other direction was last written to
    /// (`tun_automq_select_queue`, drivers/net/tun.c), so both are one worker's.
    queues: Vec<SyncDevice>,
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
        let udp = vnet && device.udp_gso() && offloads.uso;
        if vnet && offloads.uso && !udp {
            tracing::info!("this kernel's TUN device has no USO (Linux 6.2 brought it); UDP goes packet by packet");
        }
        let mut queues = (1..queues).map(|_| device.try_clone()).collect::<io::Result<Vec<_>>>()?;
        queues.push(device);
        for queue in &queues {
            queue.set_nonblocking(true)?;
        }
        // Only now: `try_clone` tells the kernel what to deliver anew.
        if vnet && !offloads.uso {
            without_uso(&queues[0])?;
        }
        Ok(Self { queues, vnet, tcp: AtomicBool::new(vnet), udp: AtomicBool::new(udp), lost: AtomicU64::new(0) })
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
            return Ok((VnetHeader::default(), self.queues[queue].recv(buffer)?));
        }
        let mut header = [0; VnetHeader::LEN];
        let len = self.queues[queue].recv_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        Ok((VnetHeader::parse(&header), len.saturating_sub(VnetHeader::LEN)))
    }

    /// To wait for.
    pub fn fd(&self, queue: usize) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the queue, which lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.queues[queue].as_raw_fd()) }
    }

    /// Packets that could not be written.
    pub fn unwritten(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Packets that came while the device's queue was full.
    pub fn overflowed(&self) -> u64 {
        let text = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
        self.queues[0].name().ok().and_then(|name| transmit_drops(&text, &name)).unwrap_or(0)
    }

    /// Writes one packet to a queue, whose first slice is its virtio header. A kernel that rejects a super-packet gets none again.
    pub fn write(&self, queue: usize, slices: &[IoSlice<'_>]) {
        let slices = if self.vnet { slices } else { &slices[1..] };
        let Err(error) = self.queues[queue].send_vectored(slices) else { return };
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

/// Takes UDP super-packets back from what tun-rs has told the kernel to deliver, for all queues.
fn without_uso(device: &SyncDevice) -> io::Result<()> {
    // TUNSETOFFLOAD (include/uapi/linux/if_tun.h) has its argument by value.
    nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    let left = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: no pointers, and the descriptor is that of a TUN device.
    unsafe { tun_set_offload(device.as_raw_fd(), left.cast_signed()) }?;
    Ok(())
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
