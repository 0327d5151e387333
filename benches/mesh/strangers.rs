//! Traffic between the VPS and many of its peers: home's side of a hundred tunnels, in this process.
//!
//! A hundred agents would need the processor themselves; this is one thread that seals, or that sends plain datagrams to
//! the strangers' addresses and leaves what the VPS makes of them unread. Each stranger has a port of its own, as peers
//! have addresses of their own, and its datagrams come in runs, as those of a busy flow do. What counts is what the VPS's
//! program says to wg(8) that it carried.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use meshd::packet::checksum::Sum;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use crate::Failure;
use crate::experiment::{Load, Values};
use crate::pair::{PORT, Pair, stranger_address, stranger_key};

/// Strangers among whom the traffic is spread.
const MANY: u16 = 100;
/// Datagrams of one stranger before it is the next one's turn.
const RUN: usize = 16;
/// Payload of a datagram in the tunnel, and what WireGuard and padding make of it.
const PAYLOAD: usize = 1200;
const PACKET: usize = 20 + 8 + PAYLOAD;
const SEALED: usize = PACKET.next_multiple_of(16) + 32;
/// Where the VPS receives in the tunnel, and the strangers.
const SINK: u16 = 9;

/// In from one and from a hundred strangers, then out to one and to a hundred, in Mbit/s.
pub fn spread(pair: &Pair, load: &Load) -> Values {
    if pair.vps.cpu()?.is_none() {
        return Ok(vec![None; 4]);
    }
    // The strangers fall silent while the VPS sends: no longer than until it would call them again.
    let time = Duration::from_secs(u64::from(load.seconds.min(8)));
    let address: Ipv4Addr = pair.vps.inner(false).parse().map_err(|e| format!("{e}"))?;
    // Nobody reads it, which costs nothing; without it the kernel would refuse each datagram.
    let _sink = pair.vps.within(|| socket((address, SINK)))?;
    let measure = |count: u16, direction: usize| {
        let mut strangers = pair
            .home
            .within(|| (0..count).map(|number| Stranger::greet(pair, number)).collect::<Result<Vec<_>, _>>())?;
        let (before, began) = (pair.vps.transfer()?, Instant::now());
        if direction == 0 {
            seal(&mut strangers, address, time)?;
        } else {
            pair.vps.within(|| send(count, time))?;
        }
        let elapsed = began.elapsed().as_secs_f64();
        // What was sent meanwhile may still wait to be carried.
        sleep(Duration::from_millis(100));
        Ok::<_, Failure>(Some((pair.vps.transfer()?[direction] - before[direction]) * 8.0 / 1e6 / elapsed))
    };
    [(1, 0), (MANY, 0), (1, 1), (MANY, 1)].into_iter().map(|(count, direction)| measure(count, direction)).collect()
}

/// One peer of the VPS with a session.
struct Stranger {
    tunnel: Tunn,
    socket: UdpSocket,
    address: Ipv4Addr,
}

impl Stranger {
    /// Shakes hands with the VPS; runs in home's network.
    fn greet(pair: &Pair, number: u16) -> Result<Self, Failure> {
        let (key, vps) = (stranger_key(number).to_dalek(), pair.vps.private_key()?.public_key().to_dalek());
        let mut tunnel = Tunn::new(key, vps, None, None, u32::from(number), None);
        let error = |e: std::io::Error| format!("stranger {number}: {e}");
        let socket = socket((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(1))).map_err(error)?;
        let to: SocketAddr = format!("{}:{PORT}", pair.vps.outer(false)).parse().map_err(|e| format!("{e}"))?;
        socket.connect(to).map_err(error)?;
        let (mut out, mut answer) = (vec![0; 2048], vec![0; 2048]);
        // A cookie may be asked for, and a first message may be lost.
        for _ in 0..5 {
            if let TunnResult::WriteToNetwork(message) = tunnel.format_handshake_initiation(&mut out, true) {
                socket.send(message).map_err(error)?;
            }
            let Ok(len) = socket.recv(&mut answer) else { continue };
            // The answer to the answer is the keepalive that confirms the session.
            if let TunnResult::WriteToNetwork(message) = tunnel.decapsulate(None, &answer[..len], &mut out) {
                socket.send(message).map_err(error)?;
                return Ok(Self { tunnel, socket, address: stranger_address(number) });
            }
        }
        Err(format!("the VPS does not answer stranger {number}"))
    }
}

/// Sends to the VPS as the strangers, in turn, as fast as it goes.
fn seal(strangers: &mut [Stranger], to: Ipv4Addr, time: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + time;
    let packets: Vec<_> = strangers.iter().map(|stranger| packet(stranger.address, to)).collect();
    let mut arena = vec![0; RUN * SEALED + 256];
    while Instant::now() < deadline {
        for (stranger, packet) in strangers.iter_mut().zip(&packets) {
            for at in 0..RUN {
                let TunnResult::WriteToNetwork(_) = stranger.tunnel.encapsulate(packet, &mut arena[at * SEALED..])
                else {
                    return Err("a stranger has no session".to_owned());
                };
            }
            send_run(&stranger.socket, &arena[..RUN * SEALED], SEALED, None)?;
        }
    }
    Ok(())
}

/// Sends plain datagrams to the strangers, in turn, as fast as it goes; runs in the VPS's network.
fn send(count: u16, time: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + time;
    let socket = socket((Ipv4Addr::UNSPECIFIED, 0))?;
    let payload = vec![0; RUN * PAYLOAD];
    while Instant::now() < deadline {
        for number in 0..count {
            let to = std::net::SocketAddrV4::new(stranger_address(number), SINK);
            send_run(&socket, &payload, PAYLOAD, Some(&to.into()))?;
        }
    }
    Ok(())
}

/// One system call for a run of equal datagrams.
fn send_run(socket: &UdpSocket, run: &[u8], size: usize, to: Option<&SockaddrIn>) -> Result<(), Failure> {
    let segments = [ControlMessage::UdpGsoSegments(&(size as u16))];
    match sendmsg(socket.as_raw_fd(), &[IoSlice::new(run)], &segments, MsgFlags::empty(), to) {
        Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::ECONNREFUSED) => Ok(()),
        Err(error) => Err(format!("a run of datagrams: {error}")),
    }
}

/// IPv4 and UDP, without a UDP checksum, padded as WireGuard asks.
fn packet(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0; PACKET.next_multiple_of(16)];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17]);
    packet[2..4].copy_from_slice(&(PACKET as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..22].copy_from_slice(&SINK.to_be_bytes());
    packet[22..24].copy_from_slice(&SINK.to_be_bytes());
    packet[24..26].copy_from_slice(&((8 + PAYLOAD) as u16).to_be_bytes());
    let sum = Sum::default().bytes(&packet[..20]).complement();
    packet[10..12].copy_from_slice(&sum);
    packet
}

fn socket(address: (Ipv4Addr, u16)) -> Result<UdpSocket, Failure> {
    UdpSocket::bind(address).map_err(|e| format!("a UDP socket: {e}"))
}
