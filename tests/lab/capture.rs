//! The leak oracle: every frame that crosses an interface, sorted into neighbour discovery, the tunnel's own UDP and leaks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::PORT;
use super::netns::Namespace;

/// For reading what is queued when it ends.
const DRAIN: Duration = Duration::from_secs(1);

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// ARP, NDP, MLD, IGMP, DHCP, and the kernel's refusals of tunnel packets that nobody listens for any more.
    pub neighbour: u64,
    /// Bytes of UDP payload that the tunnel sent from here, padding and headers of WireGuard included.
    pub tunnel_tx: u64,
    /// The same, received.
    pub tunnel_rx: u64,
    /// Everything else, by description.
    pub leaks: BTreeMap<String, u64>,
    /// Frames of any kind in which the marker could be read.
    pub marked: u64,
    /// Frames that the oracle was too slow for; a capture with any is worthless.
    pub missed: u32,
}

/// A running capture.
pub struct Capture {
    socket: OwnedFd,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts on an interface; counts frames that hold `marker` in the clear.
    pub fn start(namespace: &Namespace, interface: &str, marker: &'static [u8]) -> Self {
        let socket = namespace.within(|| packet_socket(interface)).expect("a packet socket");
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let fd = socket.as_raw_fd();
        let thread = std::thread::spawn({
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            move || watch(fd, marker, &stop, &seen)
        });
        Self { socket, stop, seen, thread: Some(thread) }
    }

    /// A copy of the counts.
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("the capture thread panicked").clone()
    }

    /// Reads what is queued, ends and returns the counts.
    pub fn finish(mut self) -> Seen {
        self.stop.store(true, Ordering::Release);
        self.thread.take().expect("finished once").join().expect("the capture thread panicked");
        let mut seen = self.seen();
        seen.missed = missed(&self.socket);
        assert_eq!(seen.missed, 0, "the capture missed frames, so it proves nothing");
        seen
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(socket: i32, marker: &[u8], stop: &AtomicBool, seen: &Mutex<Seen>) {
    let mut frame = vec![0; 1 << 17];
    let mut end = None;
    loop {
        // Read before the socket, so that what came before the stop is still counted.
        let stopping = stop.load(Ordering::Acquire);
        let Some((len, outgoing)) = receive(socket, &mut frame) else {
            if stopping {
                return;
            }
            continue;
        };
        // Where traffic never pauses, what is queued now must do.
        if stopping && *end.get_or_insert_with(|| Instant::now() + DRAIN) < Instant::now() {
            return;
        }
        let frame = &frame[..len];
        let in_the_clear = !marker.is_empty() && frame.windows(marker.len()).any(|window| window == marker);
        let mut seen = seen.lock().expect("no panic under this lock");
        seen.marked += u64::from(in_the_clear);
        match classify(frame) {
            Class::Neighbour => seen.neighbour += 1,
            Class::Tunnel(bytes) if outgoing => seen.tunnel_tx += bytes,
            Class::Tunnel(bytes) => seen.tunnel_rx += bytes,
            Class::Leak(what) => *seen.leaks.entry(what).or_default() += 1,
        }
    }
}

enum Class {
    Neighbour,
    Tunnel(u64),
    Leak(String),
}

fn classify(frame: &[u8]) -> Class {
    let leak = |what: String| Class::Leak(what);
    if frame.len() < 14 {
        return leak(format!("{} bytes", frame.len()));
    }
    let packet = &frame[14..];
    match (frame[12], frame[13]) {
        (0x08, 0x06) => Class::Neighbour,
        (0x08, 0x00) if packet.len() >= 20 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
            let address = |at: usize| Ipv4Addr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
            let flow = format!("{} > {}", address(12), address(16));
            match packet[9] {
                2 => Class::Neighbour,
                17 if !fragment => udp(packet.get(header..).unwrap_or_default(), [67, 68], &flow),
                1 if refuses_the_tunnel(packet.get(header..).unwrap_or_default()) => Class::Neighbour,
                protocol => leak(format!("{flow} protocol {protocol}")),
            }
        }
        (0x86, 0xdd) if packet.len() >= 40 => {
            let address =
                |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes"));
            let flow = format!("{} > {}", address(8), address(24));
            // MLD carries a hop-by-hop header of eight bytes with the router alert.
            let (next, at) = if packet[6] == 0 && packet.len() >= 48 { (packet[40], 48) } else { (packet[6], 40) };
            let payload = &packet[at..];
            match (next, payload.first()) {
                (58, Some(130..=137 | 143)) => Class::Neighbour,
                (58, _) if refuses_the_tunnel6(payload) => Class::Neighbour,
                (17, _) => udp(payload, [546, 547], &flow),
                _ => leak(format!("{flow} protocol {next}")),
            }
        }
        (high, low) => leak(format!("ethertype {high:02x}{low:02x}")),
    }
}

/// "Port unreachable", quoting a packet of the tunnel: sent by a host whose agent is dead.
fn refuses_the_tunnel(icmp: &[u8]) -> bool {
    let quoted = match icmp {
        [3, 3, _, _, _, _, _, _, ip @ ..] if ip.len() >= 20 && ip[9] == 17 => ip.get(usize::from(ip[0] & 0xf) * 4..),
        _ => None,
    };
    quoted.is_some_and(|datagram| matches!(udp(datagram, [0, 0], ""), Class::Tunnel(_)))
}

/// The same over IPv6.
fn refuses_the_tunnel6(icmp: &[u8]) -> bool {
    let quoted = match icmp {
        [1, 4, _, _, _, _, _, _, ip @ ..] if ip.len() >= 40 && ip[6] == 17 => ip.get(40..),
        _ => None,
    };
    quoted.is_some_and(|datagram| matches!(udp(datagram, [0, 0], ""), Class::Tunnel(_)))
}

/// The tunnel's: a port of the tunnel and a message type of WireGuard, so that a container's own datagram to the exit's
/// port counts as a leak.
fn udp(datagram: &[u8], dhcp: [u16; 2], flow: &str) -> Class {
    let Some(header) = datagram.get(..8) else { return Class::Leak(format!("{flow} UDP, short")) };
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (source, destination) = (word(0), word(2));
    if dhcp.contains(&source) && dhcp.contains(&destination) {
        return Class::Neighbour;
    }
    let wireguard = matches!(datagram.get(8..12), Some([1..=4, 0, 0, 0]));
    if wireguard && (source == PORT || destination == PORT) {
        return Class::Tunnel(u64::from(word(4)).saturating_sub(8));
    }
    Class::Leak(format!("{flow} UDP {source} > {destination}"))
}

fn packet_socket(interface: &str) -> std::io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: a plain system call; the descriptor is owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let buffer: libc::c_int = 256 << 20;
    let timeout = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &buffer)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    // SAFETY: sockaddr_ll is plain data, valid as zeros.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).expect("a small index");
    // SAFETY: the pointer and the length are those of `address`.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if bound == 0 { Ok(socket) } else { Err(std::io::Error::last_os_error()) }
}

fn set_option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> std::io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), size_of::<T>() as libc::socklen_t)
    };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// One frame and whether this side sent it; `None` when none comes for a moment.
fn receive(socket: i32, frame: &mut [u8]) -> Option<(usize, bool)> {
    // SAFETY: sockaddr_ll is plain data, valid as zeros.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: both pointers and lengths are those of live buffers.
    let len = unsafe {
        libc::recvfrom(socket, frame.as_mut_ptr().cast(), frame.len(), 0, (&raw mut from).cast(), &raw mut size)
    };
    Some((usize::try_from(len).ok()?, from.sll_pkttype == libc::PACKET_OUTGOING))
}

fn missed(socket: &OwnedFd) -> u32 {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut size = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `statistics`.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut size,
        )
    };
    assert_eq!(got, 0, "PACKET_STATISTICS: {}", std::io::Error::last_os_error());
    statistics.tp_drops
}
