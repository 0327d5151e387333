//! The forwarding loop: the TUN device, the UDP port, and the workers between them.
//!
//! Each worker is one thread with one queue of the TUN device and one socket of the port, and carries both directions. Out:
//! it reads super-packets until there is none or a batch is full, [`Device::seal`] cuts and seals them into the outbox,
//! one `sendmsg` sends up to 64 datagrams of it. In: it reads runs of datagrams, [`Device::open`] opens them into the
//! inbox, the coalescer gathers them into as few writes to the TUN device as it may. A worker runs a batch to completion
//! with buffers of its own; it never allocates, sends over a channel, or holds a lock across a system call. The kernel
//! keeps each peer on one socket and each flow on one queue, so order holds.
//!
//! Beside them one thread answers handshakes and runs the timers, four times a second. A Diffie-Hellman takes as long as
//! sealing fifty packets, so it is no worker's business.

mod forward;
mod inherited;
mod load;
mod offloads;
mod tun;
mod udp;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::bench::Run;
use crate::tunnel::Device;
pub use inherited::{Unfit, interface_of};
pub use offloads::Offloads;
pub use tun::Tun;
pub use udp::Udp;

/// The running loop. Dropping it ends the threads, and removes the interface unless a service manager holds it, too.
pub struct Dataplane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Of a measurement that sends.
    load: Option<(Arc<Run>, JoinHandle<()>)>,
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

/// How many workers there are to be: what is asked for, or half as many as there are cores, for those that send and
/// receive what is carried need as much. On two cores a second worker cost a tenth.
pub fn workers(wanted: Option<u16>) -> usize {
    const MOST: usize = 8;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    wanted.map_or((cores / 2).clamp(1, MOST), usize::from)
}

/// Those of a port, one for each worker.
pub type Sockets = Vec<Udp>;

/// How often a thread has come round.
#[derive(Default)]
#[repr(align(64))]
struct Turns(AtomicU64);

/// What the threads share.
struct Shared {
    device: Arc<Device>,
    tun: Tun,
    /// One for each worker, all on one port.
    udp: ArcSwap<Sockets>,
    stopping: AtomicBool,
    /// Whether the timers are to run at once.
    nudged: AtomicBool,
    /// One for each worker, and the last for the handshakes: wakes it when the sockets were changed or the loop is to end.
    wake: Vec<EventFd>,
    /// Of each, in the same order.
    turns: Vec<Turns>,
}

impl Dataplane {
    /// Starts forwarding between `tun` and `udp`, with a worker for each queue and socket.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub fn start(device: Arc<Device>, tun: Tun, udp: Arc<Sockets>) -> io::Result<Self> {
        let workers = udp.len();
        let eventfd = |_| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = (0..=workers).map(eventfd).collect::<Result<_, _>>()?;
        let udp = ArcSwap::new(udp);
        let (stopping, nudged) = (AtomicBool::new(false), AtomicBool::new(false));
        let turns = (0..=workers).map(|_| Turns::default()).collect();
        let mut dataplane = Self {
            shared: Arc::new(Shared { device, tun, udp, stopping, nudged, wake, turns }),
            threads: Vec::new(),
            load: None,
        };
        for n in 0..workers {
            dataplane.spawn(format!("worker-{n}"), move |shared| forward::worker(shared, n))?;
        }
        dataplane.spawn("handshakes".into(), forward::handshakes)?;
        Ok(dataplane)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce(&Shared) + Send + 'static) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name).spawn(move || body(&shared))?);
        Ok(())
    }

    /// The UDP port in use.
    pub fn port(&self) -> u16 {
        self.shared.udp.load()[0].port()
    }

    /// The sockets of that port.
    pub fn sockets(&self) -> Arc<Sockets> {
        self.shared.udp.load_full()
    }

    /// The interface's present name; `None` once it was deleted.
    pub fn interface(&self) -> Option<String> {
        self.shared.tun.name().ok()
    }

    /// How often each thread has come round so far. Wakes all, so that those that wait will have come round once more.
    pub fn roll_call(&self) -> Vec<u64> {
        let turns = self.shared.turns.iter().map(|turns| turns.0.load(Ordering::Relaxed)).collect();
        self.shared.wake_all();
        turns
    }

    /// Moves to another UDP port; sessions stay.
    ///
    /// # Errors
    /// When the port is taken; the old one stays in use then.
    pub fn rebind(&self, port: u16) -> io::Result<()> {
        let old = self.shared.udp.load();
        self.shared.udp.store(Arc::new(Udp::bind(port, old.len(), old[0].offloads())?));
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
            unsent: udp.iter().map(Udp::unsent).sum(),
            unwritten: tun.unwritten(),
            socket_overflow: udp.iter().map(Udp::overflowed).sum(),
            interface_overflow: tun.overflowed(),
        }
    }

    /// Runs the timers now, so that a peer that was just configured is called without delay.
    pub fn nudge(&self) {
        self.shared.nudged.store(true, Ordering::Release);
        self.shared.wake_handshakes();
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake_all();
        self.stop_load();
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

    /// Whether a thread is to come round once more.
    fn goes_on(&self, thread: usize) -> bool {
        self.turns[thread].0.fetch_add(1, Ordering::Relaxed);
        !self.stopping()
    }

    /// Wakes the thread that answers handshakes.
    fn wake_handshakes(&self) {
        let _ = self.wake[self.workers()].write(1);
    }

    fn workers(&self) -> usize {
        self.wake.len() - 1
    }

    /// Blocks until one of `fds` is readable, the thread is woken, or the timeout is over.
    fn wait(&self, thread: usize, fds: [Option<BorrowedFd<'_>>; 2], timeout: PollTimeout) {
        let wake = self.wake[thread].as_fd();
        let [first, second] = fds.map(|fd| PollFd::new(fd.unwrap_or(wake), PollFlags::POLLIN));
        let mut fds = [PollFd::new(wake, PollFlags::POLLIN), first, second];
        if poll(&mut fds, timeout).is_ok() && fds[0].any() == Some(true) {
            let _ = self.wake[thread].read();
        }
    }
}
