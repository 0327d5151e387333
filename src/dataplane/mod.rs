//! The forwarding loop: the TUN device, the UDP socket and three plain threads between them.
//!
//! The way of a packet out: `outbound` reads a super-packet from the TUN device, [`Device::seal`] cuts and seals it into
//! the outbox, one `sendmsg` sends the outbox. In: `inbound` reads a run of datagrams, [`Device::open`] opens them into
//! the inbox, the coalescer gathers them into as few writes to the TUN device as it may. `timers` runs what is due four
//! times a second. Each thread runs a batch to completion with buffers of its own; none allocates, sends over a
//! channel, or holds a lock across a system call.

mod forward;
mod tun;
mod udp;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::tunnel::Device;
pub use tun::Tun;
pub use udp::Udp;

/// The running loop. Dropping it ends the threads and removes the interface.
pub struct Dataplane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Packets that went nowhere between the loop and the kernel, since the interface and the socket were opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Losses {
    /// Datagrams that the kernel did not send.
    pub unsent: u64,
    /// Packets that the interface did not take.
    pub unwritten: u64,
    /// Datagrams that came while the socket's buffer was full.
    pub socket_overflow: u64,
    /// Packets that came while the interface's queue was full.
    pub interface_overflow: u64,
}

/// What the threads share.
struct Shared {
    device: Arc<Device>,
    tun: Tun,
    udp: ArcSwap<Udp>,
    stopping: AtomicBool,
    /// One for each thread: wakes it when the socket was changed or the loop is to end.
    wake: [EventFd; 3],
}

impl Dataplane {
    /// Starts forwarding between `tun` and `udp`.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub fn start(device: Arc<Device>, tun: Tun, udp: Udp) -> io::Result<Self> {
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let shared = Arc::new(Shared {
            device,
            tun,
            udp: ArcSwap::from_pointee(udp),
            stopping: AtomicBool::new(false),
            wake: [eventfd()?, eventfd()?, eventfd()?],
        });
        let mut dataplane = Self { shared, threads: Vec::new() };
        dataplane.spawn("outbound", forward::outbound)?;
        dataplane.spawn("inbound", forward::inbound)?;
        dataplane.spawn("timers", forward::timers)?;
        Ok(dataplane)
    }

    fn spawn(&mut self, name: &str, body: fn(&Shared)) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(move || body(&shared))?);
        Ok(())
    }

    /// The UDP port in use.
    pub fn port(&self) -> u16 {
        self.shared.udp.load().port()
    }

    /// Moves to another UDP port; sessions stay.
    ///
    /// # Errors
    /// When the port is taken; the old one stays in use then.
    pub fn rebind(&self, port: u16) -> io::Result<()> {
        self.shared.udp.store(Arc::new(Udp::bind(port)?));
        self.shared.wake_all();
        Ok(())
    }

    /// Whether a thread has ended by itself, as when somebody deletes the interface: then another `Dataplane` is needed.
    pub fn broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// What was lost to the kernel so far.
    pub fn losses(&self) -> Losses {
        let (tun, udp) = (&self.shared.tun, self.shared.udp.load());
        Losses {
            unsent: udp.unsent(),
            unwritten: tun.unwritten(),
            socket_overflow: udp.overflowed(),
            interface_overflow: tun.overflowed(),
        }
    }

    /// Runs the timers now, so that a peer that was just configured is called without delay.
    pub fn nudge(&self) {
        self.shared.wake_all();
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a forwarding thread had ended by a panic");
            }
        }
    }
}

impl Shared {
    fn wake_all(&self) {
        for wake in &self.wake {
            // Fails only when the counter is at its maximum: then the thread is woken anyway.
            let _ = wake.write(1);
        }
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Blocks until `fd` is readable, the thread is woken, or `timeout` milliseconds are over (-1 for never).
    fn wait(&self, thread: usize, fd: Option<BorrowedFd<'_>>, timeout: i32) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let wake = &self.wake[thread];
        let mut fds =
            [PollFd::new(wake.as_fd(), PollFlags::POLLIN), PollFd::new(fd.unwrap_or(wake.as_fd()), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::NONE);
        if poll(&mut fds, timeout).is_ok() && fds[0].any() == Some(true) {
            let _ = wake.read();
        }
    }
}
