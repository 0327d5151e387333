//! Numbered datagrams, and the order in which they arrive.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::netns::Namespace;

/// What arrived of one flow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrived {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Those that arrived behind a later one.
    pub late: u64,
}

/// Bytes of a datagram.
const SIZE: usize = 1200;
/// The sender sends what is due, then sleeps so long.
const BEAT: Duration = Duration::from_millis(1);
/// After so long without a datagram none is under way.
const SILENCE: Duration = Duration::from_millis(700);

/// Sends that many flows of numbered datagrams side by side, of `megabits` a second together, for `time`.
pub fn flows(
    from: &Namespace,
    to: &Namespace,
    address: &str,
    count: usize,
    megabits: u64,
    time: Duration,
) -> Vec<Arrived> {
    let receivers: Vec<_> = (0..count)
        .map(|_| {
            let socket = to.within(|| UdpSocket::bind((address, 0))).expect("bind");
            setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).expect("SO_RCVBUFFORCE");
            let target = socket.local_addr().expect("an address");
            (target, std::thread::spawn(move || receive(&socket, time)))
        })
        .collect();
    let senders: Vec<_> = receivers
        .iter()
        .map(|(target, _)| {
            let socket = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
            from.within(|| socket.connect(target)).expect("connect");
            socket
        })
        .collect();
    let sent = send(&senders, megabits, time);
    let arrived = receivers.into_iter().map(|(_, thread)| thread.join().expect("a receiver"));
    arrived.map(|arrived| Arrived { sent, ..arrived }).collect()
}

/// Returns how many each was sent.
fn send(sockets: &[UdpSocket], megabits: u64, time: Duration) -> u64 {
    let per_second = megabits * 1_000_000 / 8 / SIZE as u64 / sockets.len() as u64;
    let (start, mut number) = (Instant::now(), 0);
    let mut datagram = [0; SIZE];
    while start.elapsed() < time {
        let due = start.elapsed().as_micros() as u64 * per_second / 1_000_000;
        // After a pause not everything at once: what overflows a queue tells nothing about order.
        for _ in 0..(due - number).min(64) {
            number += 1;
            datagram[..8].copy_from_slice(&number.to_be_bytes());
            for socket in sockets {
                // What the sender's own kernel refuses is lost, not late.
                let _ = socket.send(&datagram);
            }
        }
        std::thread::sleep(BEAT);
    }
    number
}

fn receive(socket: &UdpSocket, time: Duration) -> Arrived {
    let (mut arrived, mut last) = (Arrived::default(), 0);
    let mut datagram = [0; SIZE];
    socket.set_read_timeout(Some(time + SILENCE)).expect("timeout");
    while socket.recv(&mut datagram).is_ok() {
        let number = u64::from_be_bytes(datagram[..8].try_into().expect("eight bytes"));
        arrived.received += 1;
        arrived.late += u64::from(number < last);
        if last == 0 {
            socket.set_read_timeout(Some(SILENCE)).expect("timeout");
        }
        last = last.max(number);
    }
    arrived
}
