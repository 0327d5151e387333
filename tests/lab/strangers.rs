//! A thousand peers of the VPS that exist as keys and addresses only, and the handshakes that they begin.

use std::fs;
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use meshd::key::{PrivateKey, PublicKey};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};

use super::{Lab, PORT, VPS};

/// How many there are, each with an address of its own.
pub const COUNT: u16 = 1000;
/// Of each.
pub const ALLOWED_IPS: u16 = 10;
/// A handshake initiation (whitepaper, section 5.4.2).
pub type Initiation = [u8; 148];

/// What became of a flood.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flooded {
    /// Initiations sent.
    pub sent: u64,
    /// Handshake responses that came back.
    pub answered: u64,
    /// Cookies that came back instead.
    pub cookies: u64,
    /// What sending took.
    pub time: Duration,
}

/// Makes them peers of the VPS, which is not up yet, and lets the internet be all of their addresses.
pub fn place(lab: &Lab) {
    for number in 0..COUNT {
        let [high, low] = number.to_be_bytes();
        let nets: Vec<_> = (1..ALLOWED_IPS).map(|net| format!("\"10.{}.{low}.{}/28\"", 100 + high, net * 16)).collect();
        let text = format!(
            "public_key = \"{}\"\naddresses = [\"10.88.{}.{low}\"]\nsubnets = [{}]\n",
            key(number).public_key(),
            high + 1,
            nets.join(", ")
        );
        fs::write(lab.vps.config(&format!("peers/stranger{number}.toml")), text).expect("write");
    }
    lab.internet.run("ip route add local 10.200.0.0/16 dev lo");
}

/// Handshake initiations, `rounds` of each stranger, in the order in which they are to be sent.
pub fn initiations(to: &PublicKey, rounds: usize) -> Vec<Initiation> {
    let tunn = |number| Tunn::new(key(number).to_dalek(), to.to_dalek(), None, None, u32::from(number), None);
    let mut strangers: Vec<_> = (0..COUNT).map(tunn).collect();
    let mut all = Vec::with_capacity(rounds * strangers.len());
    for _ in 0..rounds {
        for tunn in &mut strangers {
            let mut message = [0; 148];
            let TunnResult::WriteToNetwork(_) = tunn.format_handshake_initiation(&mut message, true) else {
                panic!("no initiation")
            };
            all.push(message);
        }
    }
    all
}

/// Sends them at this rate, each from its stranger's address, and counts what comes back.
pub fn flood(lab: &Lab, initiations: &[Initiation], per_second: u64) -> Flooded {
    let socket = lab.internet.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
    setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).expect("SO_RCVBUFFORCE");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    let target = SockaddrIn::from(SocketAddrV4::new(VPS.parse().expect("an address"), PORT));
    let over = Arc::new(AtomicBool::new(false));
    let receiver = std::thread::spawn({
        let (socket, over) = (socket.try_clone().expect("dup"), Arc::clone(&over));
        move || receive(&socket, &over)
    });
    let (start, mut sent) = (Instant::now(), 0);
    while sent < initiations.len() {
        let due = (start.elapsed().as_micros() as u64 * per_second / 1_000_000) as usize;
        for message in &initiations[sent..due.clamp(sent, initiations.len())] {
            let [high, low] = ((sent % usize::from(COUNT)) as u16).to_be_bytes();
            let source = u32::from(Ipv4Addr::new(10, 200, high, low)).to_be();
            let from = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: source },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&from)];
            sendmsg(socket.as_raw_fd(), &[IoSlice::new(message)], &control, MsgFlags::empty(), Some(&target))
                .expect("sendmsg");
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = start.elapsed();
    over.store(true, Ordering::Release);
    let (answered, cookies) = receiver.join().expect("the receiver");
    Flooded { sent: sent as u64, answered, cookies, time }
}

/// Responses and cookies, until none comes any more.
fn receive(socket: &UdpSocket, over: &AtomicBool) -> (u64, u64) {
    let (mut answered, mut cookies, mut message) = (0, 0, [0; 256]);
    loop {
        match socket.recv(&mut message) {
            Ok(_) => {
                answered += u64::from(message[0] == 2);
                cookies += u64::from(message[0] == 3);
            }
            Err(_) if over.load(Ordering::Acquire) => return (answered, cookies),
            Err(_) => {}
        }
    }
}

fn key(number: u16) -> PrivateKey {
    let mut bytes = [0x40; 32];
    bytes[1..3].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_bytes(bytes)
}
