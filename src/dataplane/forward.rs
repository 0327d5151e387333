//! The bodies of the threads.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::PollTimeout;

use super::{Shared, Udp};
use crate::packet::coalesce::Coalescer;
use crate::tunnel::{Inbox, Outbox};

/// The largest IP packet, and room for the padding behind it.
const BUFFER: usize = 65_535 + 16 + 1;
/// How often the timers run: boringtun's clock advances only then, and its shortest interval is 5 s.
const TICK: Duration = Duration::from_millis(250);
/// Reads of the socket before what they brought is written. What arrives is in the kernel already, and bounded by its
/// buffer; more would only let the other direction wait.
const READS: usize = 16;
/// Reads of the TUN queue in one turn: what goes nowhere fills no batch.
const PACKETS: usize = 512;
/// How often a worker looks for more, and lets others have the core in between, before it sleeps...
const LOOKS: u32 = 50;
/// ...if its last sleep was shorter than this. To sleep and be woken costs several microseconds on both sides; where packets
/// are further apart, nothing is spent on looking.
const DENSE: Duration = Duration::from_micros(100);

/// What is to be done after a direction had its turn.
enum Turn {
    /// Some more of the same.
    Moved,
    /// There is nothing to do.
    Idle,
    /// An error that is not expected: it must not make the loop spin.
    Failed,
    /// The interface is gone.
    Gone,
}

/// Carries both directions of one queue and one socket.
pub(super) fn worker(shared: &Shared, n: usize) {
    let mut worker = Worker::new(shared, n);
    let (mut looks, mut patience) = (0, 0);
    while shared.goes_on(n) {
        let sockets = shared.udp.load();
        let udp = &sockets[n];
        match (worker.outbound(udp), worker.inbound(udp)) {
            (Turn::Gone, _) => return,
            (Turn::Moved, _) | (_, Turn::Moved) => looks = 0,
            (Turn::Failed, _) | (_, Turn::Failed) => shared.wait(n, [None, None], tick()),
            (Turn::Idle, _) if looks < patience => {
                looks += 1;
                std::thread::yield_now();
            }
            (Turn::Idle, _) => {
                let asleep = Instant::now();
                shared.wait(n, [Some(shared.tun.fd(n)), Some(udp.as_fd())], PollTimeout::NONE);
                patience = if asleep.elapsed() < DENSE { LOOKS } else { 0 };
                looks = 0;
            }
        }
    }
}

/// The buffers of one worker.
struct Worker<'s> {
    shared: &'s Shared,
    /// Of the queue and the socket.
    n: usize,
    buffer: Vec<u8>,
    inbox: Inbox,
    outbox: Outbox,
    coalescer: Coalescer,
}

impl<'s> Worker<'s> {
    fn new(shared: &'s Shared, n: usize) -> Self {
        // A session's counters are given when packets are sealed, and its peer refuses one that comes a thousand later than
        // another. Where several workers seal for one peer, none may hold many back.
        let outbox = if shared.workers() > 1 { Outbox::of_runs(1) } else { Outbox::new() };
        let coalescer = Coalescer::new(shared.tun.offload());
        Self { shared, n, buffer: vec![0; BUFFER], inbox: Inbox::new(), outbox, coalescer }
    }

    /// From the TUN device to the wire: reads until there is nothing left or a batch is full, then sends.
    fn outbound(&mut self, udp: &Udp) -> Turn {
        let mut reads = 0;
        let last = loop {
            match self.shared.tun.read(self.n, &mut self.buffer[..65_535]) {
                Ok((header, len)) => {
                    self.shared.device.seal(header, &mut self.buffer, len, &mut self.outbox, Instant::now());
                    reads += 1;
                    if self.outbox.is_full() || reads == PACKETS {
                        break Turn::Moved;
                    }
                }
                // tun_do_read (drivers/net/tun.c) of a device that is no longer registered.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => break Turn::Gone,
                Err(error) => break nothing(&error),
            }
        };
        if self.outbox.is_empty() {
            return last;
        }
        self.outbox.flush(|run| udp.send(run));
        Turn::Moved
    }

    /// From the wire to the TUN device. Each read is one run of datagrams, already gathered by the kernel.
    fn inbound(&mut self, udp: &Udp) -> Turn {
        let Self { shared, inbox, outbox, .. } = self;
        let wall = SystemTime::now();
        let (mut reads, mut handshakes) = (0, false);
        let last = loop {
            match udp.recv(&mut self.buffer[..65_535]) {
                Ok(datagrams) => handshakes |= shared.device.open(datagrams, inbox, outbox, Instant::now(), wall),
                Err(error) => break nothing(&error),
            }
            reads += 1;
            if reads == READS || inbox.is_full() {
                break Turn::Moved;
            }
        };
        if reads == 0 {
            return last;
        }
        if handshakes {
            shared.wake_handshakes();
        }
        self.coalescer.set_offload(shared.tun.offload());
        for packet in &inbox.packets {
            self.coalescer.push(&inbox.arena, packet.clone());
        }
        self.coalescer.flush(&mut inbox.arena, |slices| shared.tun.write(self.n, slices));
        inbox.clear();
        outbox.flush(|run| udp.send(run));
        Turn::Moved
    }
}

fn nothing(error: &io::Error) -> Turn {
    match error.kind() {
        ErrorKind::WouldBlock => Turn::Idle,
        ErrorKind::Interrupted => Turn::Moved,
        _ => Turn::Failed,
    }
}

/// Answers handshakes, and runs the timers when they are due.
pub(super) fn handshakes(shared: &Shared) {
    let mut outbox = Outbox::new();
    let mut ticked: Option<Instant> = None;
    while shared.goes_on(shared.workers()) {
        let now = Instant::now();
        if ticked.is_none_or(|ticked| now - ticked >= TICK) {
            ticked = Some(now);
            shared.device.tick(&mut outbox, now, |outbox| send(shared, outbox));
            send(shared, &mut outbox);
        }
        if shared.device.answer(&mut outbox, now, SystemTime::now(), |outbox| send(shared, outbox)) {
            send(shared, &mut outbox);
        } else {
            shared.wait(shared.workers(), [None, None], tick());
            if shared.nudged.swap(false, Ordering::AcqRel) {
                ticked = None;
            }
        }
    }
}

pub(super) fn send(shared: &Shared, outbox: &mut Outbox) {
    if !outbox.is_empty() {
        let udp = shared.udp.load();
        outbox.flush(|run| udp[0].send(run));
    }
}

fn tick() -> PollTimeout {
    PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX)
}
