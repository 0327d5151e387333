//! Servers on a port, and whether a namespace reaches them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use super::netns::Namespace;
use super::secs;

/// A TCP server that returns what it is sent, and a UDP one that notes what it hears and from whom, on one port of all
/// addresses of a namespace.
pub struct Service {
    port: u16,
    tcp: Arc<TcpListener>,
    udp: Arc<UdpSocket>,
    heard: Arc<Mutex<Vec<(u64, SocketAddr)>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    /// Starts both.
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let tcp = Arc::new(namespace.within(|| TcpListener::bind(("::", port))).expect("listen"));
        let udp = Arc::new(namespace.within(|| UdpSocket::bind(("::", port))).expect("bind"));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let accept = std::thread::spawn({
            let tcp = Arc::clone(&tcp);
            move || {
                while let Ok((client, _)) = tcp.accept() {
                    std::thread::spawn(move || echo(client));
                }
            }
        });
        let hear = std::thread::spawn({
            let (udp, heard) = (Arc::clone(&udp), Arc::clone(&heard));
            move || {
                let mut token = [0; 8];
                // An empty datagram is the end.
                while let Ok((8, from)) = udp.recv_from(&mut token) {
                    heard.lock().expect("a lock").push((u64::from_ne_bytes(token), from));
                }
            }
        });
        Self { port, tcp, udp, heard, threads: vec![accept, hear] }
    }

    /// Whether a TCP connection to it at this address is answered within a second.
    pub fn tcp(&self, from: &Namespace, address: &str) -> bool {
        Flow::open(from, address, self.port).is_ok()
    }

    /// Whether one of three datagrams to it at this address arrives.
    pub fn udp(&self, from: &Namespace, address: &str) -> bool {
        let any = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        self.udp_from(from, any, address).is_some()
    }

    /// As [`Self::udp`], from a local address and port; returns the sender as seen here.
    pub fn udp_from(&self, from: &Namespace, source: &str, address: &str) -> Option<SocketAddr> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let token = NEXT.fetch_add(1, Ordering::Relaxed);
        let target = SocketAddr::new(address.parse().expect("an address"), self.port);
        let socket = from.within(|| UdpSocket::bind(source)).unwrap_or_else(|error| panic!("{source}: {error}"));
        for _ in 0..3 {
            // Nobody there, or no route: then nothing arrives.
            let _ = socket.send_to(&token.to_ne_bytes(), target);
            let deadline = Instant::now() + Duration::from_millis(250);
            while Instant::now() < deadline {
                let heard = self.heard.lock().expect("a lock");
                if let Some((_, sender)) = heard.iter().find(|(heard, _)| *heard == token) {
                    return Some(SocketAddr::new(sender.ip().to_canonical(), sender.port()));
                }
                drop(heard);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        None
    }

    /// Asserts that TCP and UDP from a namespace arrive at each of these addresses, or that neither does.
    #[track_caller]
    pub fn expect(&self, from: &Namespace, reached: bool, addresses: &[&str]) {
        let wrong: Vec<_> = std::thread::scope(|scope| {
            let tries = addresses.iter().flat_map(|&address| {
                [
                    (address, "tcp", scope.spawn(move || self.tcp(from, address))),
                    (address, "udp", scope.spawn(move || self.udp(from, address))),
                ]
            });
            let tries: Vec<_> = tries.collect();
            let done = tries.into_iter().map(|(address, what, thread)| (address, what, thread.join().expect("a try")));
            done.filter(|(.., arrived)| *arrived != reached).collect()
        });
        let verb = if reached { "must reach" } else { "must not reach" };
        assert!(wrong.is_empty(), "{} {verb} port {}: {wrong:?}", from.name(), self.port);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Wakes accept(2), which then fails.
        let _ = shutdown(self.tcp.as_raw_fd(), Shutdown::Both);
        let _ = self.udp.send_to(&[], ("::1", self.port));
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn echo(mut client: TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(secs(60)))?;
    let mut buffer = [0; 64];
    loop {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            len => client.write_all(&buffer[..len])?,
        }
    }
}

/// A connection to a [`Service`] that stays.
pub struct Flow(TcpStream);

impl Flow {
    /// Connects; an error when there is no echo within a second.
    pub fn open(from: &Namespace, address: &str, port: u16) -> io::Result<Self> {
        let target = SocketAddr::new(address.parse::<IpAddr>().expect("an address"), port);
        let stream = from.within(|| TcpStream::connect_timeout(&target, secs(1)))?;
        stream.set_read_timeout(Some(secs(1)))?;
        setsockopt(&stream, sockopt::TcpUserTimeout, &5_000)?;
        let mut flow = Self(stream);
        if flow.alive() { Ok(flow) } else { Err(io::ErrorKind::TimedOut.into()) }
    }

    /// Whether a byte comes back within a second.
    pub fn alive(&mut self) -> bool {
        let mut byte = [0];
        self.0.write_all(b"?").and_then(|()| self.0.read_exact(&mut byte)).is_ok()
    }
}
