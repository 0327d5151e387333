//! Small questions to the network, from the namespace of the thread that asks: echo requests and queries for the name
//! servers of the root.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::key::random_bytes;

/// How often each question is sent; loss of one packet is no silence.
const TIMES: u32 = 2;

/// Which of these addresses answer an echo request, each waited for as long as `patience`, all at once.
///
/// # Errors
/// When this process may not ask: without CAP_NET_RAW.
pub fn echoes(addrs: &[IpAddr], patience: Duration) -> io::Result<Vec<(IpAddr, bool)>> {
    each(addrs, |addr| echo(addr, patience))
}

/// Which of these name servers answer.
///
/// # Errors
/// When there is no socket to ask by.
pub fn queries(addrs: &[IpAddr], patience: Duration) -> io::Result<Vec<(IpAddr, bool)>> {
    each(addrs, |addr| query(addr, patience))
}

/// What a datagram to a UDP port meets: an ICMP error, the kernel's refusal to send, or, as with WireGuard, nothing.
///
/// # Errors
/// `ConnectionRefused` when nobody listens; anything else is the kernel's refusal.
pub fn knock(addr: SocketAddr, patience: Duration) -> io::Result<()> {
    let any: IpAddr = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(addr)?;
    socket.set_read_timeout(Some(patience))?;
    // No WireGuard message has this length: it is ignored.
    socket.send(&[0])?;
    match socket.recv(&mut [0; 16]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok(()),
    }
}

fn each(addrs: &[IpAddr], ask: impl Fn(IpAddr) -> io::Result<bool> + Sync) -> io::Result<Vec<(IpAddr, bool)>> {
    std::thread::scope(|scope| {
        let ask = &ask;
        let threads: Vec<_> = addrs.iter().map(|&addr| (addr, scope.spawn(move || ask(addr)))).collect();
        let join = |(addr, thread): (IpAddr, std::thread::ScopedJoinHandle<'_, io::Result<bool>>)| {
            let answered = thread.join().map_err(|_| io::Error::other("the thread that asks panicked"))??;
            Ok((addr, answered))
        };
        threads.into_iter().map(join).collect()
    })
}

fn echo(addr: IpAddr, patience: Duration) -> io::Result<bool> {
    let (family, protocol) = match addr {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let id: [u8; 4] = random_bytes()?;
    let to = SockaddrStorage::from(SocketAddr::new(addr, 0));
    let (request, reply) = if addr.is_ipv4() { (8, 0) } else { (128, 129) };
    let mut message = [request, 0, 0, 0, id[0], id[1], id[2], id[3]];
    if addr.is_ipv4() {
        // The kernel sums those of IPv6.
        let sum: u32 = message.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let mut buffer = [0; 512];
    for _ in 0..TIMES {
        // No route, or a packet filter's drop (EPERM): that is as good as silence.
        if sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty()).is_err() {
            return Ok(false);
        }
        let until = Instant::now() + patience / TIMES;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let left = i64::try_from(left.as_micros()).unwrap_or(i64::MAX);
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(left.max(1)))?;
            let Ok(len) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { break };
            // A raw socket of IPv4 shows the IP header too.
            let start = if addr.is_ipv4() { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
            let answer = buffer[..len].get(start..start + 8);
            if answer.is_some_and(|answer| answer[0] == reply && answer[4..8] == id) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Any answer will do: that a server is there, and is heard.
fn query(addr: IpAddr, patience: Duration) -> io::Result<bool> {
    let any: IpAddr = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    if socket.connect((addr, 53)).is_err() {
        return Ok(false);
    }
    socket.set_read_timeout(Some(patience / TIMES))?;
    let [a, b]: [u8; 2] = random_bytes()?;
    // One question, recursion desired: the root's name servers (RFC 1035, section 4.1).
    let question = [a, b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let mut buffer = [0; 512];
    for _ in 0..TIMES {
        if socket.send(&question).is_err() {
            return Ok(false);
        }
        match socket.recv(&mut buffer) {
            Ok(len) if len >= 12 && buffer[..2] == [a, b] && buffer[2] & 0x80 != 0 => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}
