//! The TUN device: created by tun-rs, read and written with the virtio-net header by plain `readv` and `writev`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use tun_rs::{DeviceBuilder, SyncDevice};

use crate::packet::coalesce::Offload;
use crate::packet::virtio::VnetHeader;

/// An open TUN interface with one queue. It exists as long as this does.
pub struct Tun {
    device: SyncDevice,
    /// Whether packets carry a virtio header.
    vnet: bool,
    tcp: AtomicBool,
    udp: AtomicBool,
}

impl Tun {
    /// Creates the interface, down and without addresses, in this thread's network namespace.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN or /dev/net/tun, or when the name is taken.
    pub fn create(name: &str) -> io::Result<Self> {
        let build = |offload| DeviceBuilder::new().name(name).enable(false).offload(offload).build_sync();
        let (device, vnet) = match build(true) {
            Ok(device) => (device, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::info!(%error, "this kernel's TUN device has no offloads; packets go one by one");
                (build(false)?, false)
            }
            Err(error) => return Err(error),
        };
        device.set_nonblocking(true)?;
        no_link_local_address(name);
        let udp = vnet && device.udp_gso();
        if vnet && !udp {
            tracing::info!("this kernel's TUN device has no USO (Linux 6.2 brought it); UDP goes packet by packet");
        }
        Ok(Self { device, vnet, tcp: AtomicBool::new(vnet), udp: AtomicBool::new(udp) })
    }

    /// Which super-packets may be written.
    pub fn offload(&self) -> Offload {
        Offload { tcp: self.tcp.load(Ordering::Relaxed), udp: self.udp.load(Ordering::Relaxed) }
    }

    /// Reads one packet or super-packet into `buffer`, without blocking; its length comes back.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<(VnetHeader, usize)> {
        if !self.vnet {
            return Ok((VnetHeader::default(), self.device.recv(buffer)?));
        }
        let mut header = [0; VnetHeader::LEN];
        let len = self.device.recv_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        Ok((VnetHeader::parse(&header), len.saturating_sub(VnetHeader::LEN)))
    }

    /// Writes one packet, whose first slice is its virtio header. A kernel that rejects a super-packet gets none again.
    pub fn write(&self, slices: &[IoSlice<'_>]) {
        let slices = if self.vnet { slices } else { &slices[1..] };
        let Err(error) = self.device.send_vectored(slices) else { return };
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

/// Without a link-local address the kernel solicits no routers through the tunnel, so an idle one stays idle; the kernel's
/// WireGuard device has none either. Where IPv6 is off there is nothing to turn off.
fn no_link_local_address(name: &str) {
    const NONE: &str = "1";
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), NONE);
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `device`, which lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }
}
