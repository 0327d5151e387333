//! What leaves this host, by every interface but those that are left out.

use std::io;

use tokio::io::unix::AsyncFd;

use super::packet_socket::{PacketSocket, Received};

/// A frame is looked at so far: all headers that a router may put around a probe, and the probe.
const SNAP: u32 = 2048;
/// For a burst while this process waits for a processor.
const BUFFER: libc::c_int = 32 << 20;

/// A running capture.
pub struct Capture {
    socket: AsyncFd<PacketSocket>,
    buffer: Vec<u8>,
}

impl Capture {
    /// Begins to keep what leaves by any interface, also one that appears later, but not by those of the numbers `without`;
    /// nor the WireGuard messages with data from `port`, of which there may be very many, and which no probe looks like.
    ///
    /// # Errors
    /// Without CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn everywhere(without: &[u32], port: u16) -> io::Result<Self> {
        Self::start(0, &mut outgoing(without, port))
    }

    /// Begins to keep what leaves by one interface.
    ///
    /// # Errors
    /// Without CAP_NET_RAW and CAP_NET_ADMIN, or when there is no such interface.
    pub fn on(index: u32) -> io::Result<Self> {
        Self::start(index, &mut outgoing(&[], 0))
    }

    fn start(index: u32, filter: &mut [libc::sock_filter]) -> io::Result<Self> {
        let socket = PacketSocket::packets()?;
        socket.filter(filter)?;
        socket.buffer(BUFFER)?;
        socket.listen(index)?;
        Ok(Self { socket: socket.waiting()?, buffer: vec![0; SNAP as usize] })
    }

    /// Waits for the next packet, without the header of its link. May be dropped without losing one.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&mut self) -> io::Result<(Received, &[u8])> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().receive(&mut self.buffer)) {
                Ok(Ok(received)) => return Ok((received, &self.buffer[..received.len])),
                // An interface that goes away says so once on a socket that listens to it.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// The next packet, when one is there already.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn queued(&mut self) -> io::Result<Option<(Received, &[u8])>> {
        match self.socket.get_ref().receive(&mut self.buffer) {
            Ok(received) => Ok(Some((received, &self.buffer[..received.len]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Frames that it was too slow for, since this was asked last.
    ///
    /// # Errors
    /// None that is known.
    pub fn missed(&self) -> io::Result<u32> {
        self.socket.get_ref().missed()
    }
}

/// Classic BPF (Documentation/networking/filter.rst). Offsets begin at the network header.
fn outgoing(without: &[u32], port: u16) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_ABS;
    const FRAGMENT_OFFSET: u32 = 0x1fff;
    const DATA: u32 = 0x0400_0000;
    let ancillary = |what: libc::c_int| (libc::SKF_AD_OFF + what).cast_unsigned();
    let take = statement(libc::BPF_RET | libc::BPF_K, SNAP);
    let leave = statement(libc::BPF_RET | libc::BPF_K, 0);
    let unless_equal = |value: u32, skip: u8| jump(libc::BPF_JEQ, value, 0, skip);

    let mut program = vec![
        statement(LOAD | libc::BPF_H, ancillary(libc::SKF_AD_PKTTYPE)),
        jump(libc::BPF_JEQ, libc::PACKET_OUTGOING.into(), 1, 0),
        leave,
        statement(LOAD | libc::BPF_W, ancillary(libc::SKF_AD_IFINDEX)),
    ];
    for &index in without {
        program.extend([unless_equal(index, 1), leave]);
    }
    program.extend([
        statement(LOAD | libc::BPF_H, ancillary(libc::SKF_AD_PROTOCOL)),
        unless_equal(libc::ETH_P_IP.cast_unsigned(), 10),
        statement(LOAD | libc::BPF_B, 9),
        unless_equal(libc::IPPROTO_UDP.cast_unsigned(), 16),
        statement(LOAD | libc::BPF_H, 6),
        jump(libc::BPF_JSET, FRAGMENT_OFFSET, 14, 0),
        statement(libc::BPF_LDX | libc::BPF_MSH | libc::BPF_B, 0),
        statement(libc::BPF_LD | libc::BPF_IND | libc::BPF_H, 0),
        unless_equal(port.into(), 11),
        statement(libc::BPF_LD | libc::BPF_IND | libc::BPF_W, 8),
        unless_equal(DATA, 9),
        leave,
        // Here when it is not IPv4.
        unless_equal(libc::ETH_P_IPV6.cast_unsigned(), 7),
        statement(LOAD | libc::BPF_B, 6),
        unless_equal(libc::IPPROTO_UDP.cast_unsigned(), 5),
        statement(LOAD | libc::BPF_H, 40),
        unless_equal(port.into(), 3),
        statement(LOAD | libc::BPF_W, 48),
        unless_equal(DATA, 1),
        leave,
        take,
    ]);
    program
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt, jf, k }
}
