//! The three threads.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::time::{Instant, SystemTime};

use super::Shared;
use crate::packet::coalesce::Coalescer;
use crate::tunnel::{Inbox, Outbox};

/// The largest IP packet, and room for the padding behind it.
const BUFFER: usize = 65_535 + 16 + 1;
/// How often the timers run: boringtun's clock advances only then, and its shortest interval is 5 s.
const TICK_MILLIS: i32 = 250;

const OUTBOUND: usize = 0;
const INBOUND: usize = 1;
const TIMERS: usize = 2;

/// From the TUN device to the wire. Reads until there is nothing left or a batch is full, then sends.
pub(super) fn outbound(shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    let mut outbox = Outbox::new();
    while !shared.stopping() {
        match shared.tun.read(&mut buffer[..65_535]) {
            Ok((header, len)) => {
                shared.device.seal(header, &mut buffer, len, &mut outbox, Instant::now());
                if outbox.is_full() {
                    send(shared, &mut outbox);
                }
            }
            Err(_) if !outbox.is_empty() => send(shared, &mut outbox),
            // tun_do_read (drivers/net/tun.c) of a device that is no longer registered.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return,
            Err(error) => pause(shared, OUTBOUND, error.kind(), Some(shared.tun.as_fd())),
        }
    }
}

/// From the wire to the TUN device. Each read is one run of datagrams, already gathered by the kernel.
pub(super) fn inbound(shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    let mut outbox = Outbox::new();
    let mut inbox = Inbox::new();
    let mut coalescer = Coalescer::new(shared.tun.offload());
    while !shared.stopping() {
        let udp = shared.udp.load();
        let datagrams = match udp.recv(&mut buffer[..65_535]) {
            Ok(datagrams) => datagrams,
            Err(error) => {
                pause(shared, INBOUND, error.kind(), Some(udp.as_fd()));
                continue;
            }
        };
        shared.device.open(datagrams, &mut inbox, &mut outbox, Instant::now(), SystemTime::now());
        coalescer.set_offload(shared.tun.offload());
        for packet in &inbox.packets {
            coalescer.push(&inbox.arena, packet.clone());
        }
        coalescer.flush(&mut inbox.arena, |slices| shared.tun.write(slices));
        inbox.clear();
        send(shared, &mut outbox);
    }
}

/// Handshakes and keepalives that are due.
pub(super) fn timers(shared: &Shared) {
    let mut outbox = Outbox::new();
    while !shared.stopping() {
        shared.device.tick(&mut outbox, Instant::now(), |outbox| send(shared, outbox));
        send(shared, &mut outbox);
        shared.wait(TIMERS, None, TICK_MILLIS);
    }
}

fn send(shared: &Shared, outbox: &mut Outbox) {
    if outbox.is_empty() {
        return;
    }
    let udp = shared.udp.load();
    for run in outbox.runs() {
        udp.send(&run);
    }
    outbox.clear();
}

/// Waits for what is missing. An error other than "nothing there" (the interface is down, say) must not spin.
fn pause(shared: &Shared, thread: usize, error: ErrorKind, fd: Option<std::os::fd::BorrowedFd<'_>>) {
    match error {
        ErrorKind::WouldBlock => shared.wait(thread, fd, -1),
        ErrorKind::Interrupted => {}
        _ => shared.wait(thread, None, TICK_MILLIS),
    }
}
