//! Traffic between namespaces, and what arrived of it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use serde_json::Value;

use super::netns::Namespace;
use super::{WEB, WEB6, secs, wait_for};

/// Answers each HTTP request with the client's address.
pub struct WebServer {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl WebServer {
    /// Listens on all addresses of both families.
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let listener = Arc::new(namespace.within(|| TcpListener::bind(("::", port))).expect("bind the web server"));
        let thread = std::thread::spawn({
            let listener = Arc::clone(&listener);
            move || {
                while let Ok((client, address)) = listener.accept() {
                    std::thread::spawn(move || answer(client, address.ip().to_canonical()));
                }
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        // Wakes accept(2), which then fails.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(client: TcpStream, address: IpAddr) -> io::Result<()> {
    client.set_read_timeout(Some(secs(5)))?;
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = address.to_string();
    let length = body.len();
    write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// The address under which a web server sees this namespace; an error when it cannot be reached within a second.
pub fn seen_by(from: &Namespace, server: &str) -> io::Result<String> {
    seen_at(from, SocketAddr::new(server.parse().expect("an address"), 80))
}

/// The same for a server on any port.
pub fn seen_at(from: &Namespace, server: SocketAddr) -> io::Result<String> {
    let mut stream = from.within(|| TcpStream::connect_timeout(&server, secs(1)))?;
    stream.set_read_timeout(Some(secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let body = response.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::other(response))
}

/// Answers each datagram with the client's address.
pub struct Echo {
    socket: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on all addresses of both families.
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let socket = Arc::new(namespace.within(|| UdpSocket::bind(("::", port))).expect("bind the UDP server"));
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (socket, stop) = (Arc::clone(&socket), Arc::clone(&stop));
            move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(client.ip().to_canonical().to_string().as_bytes(), client);
                    }
                }
            }
        });
        Self { socket, stop, thread: Some(thread) }
    }

    /// The address under which such a server sees this namespace; an error when none answers within a second.
    pub fn ask(from: &Namespace, server: SocketAddr) -> io::Result<String> {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.within(|| UdpSocket::bind(any))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(secs(1)))?;
        socket.send(b"who am I")?;
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    /// Sends from the server's own port what nobody asked for.
    pub fn speak(&self, payload: &[u8], to: SocketAddr) {
        let to = match to {
            SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            v6 @ SocketAddr::V6(_) => v6,
        };
        // Refusals are the point: nothing depends on the result.
        let _ = self.socket.send_to(payload, to);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What ping(8) counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinged {
    /// Echo requests.
    pub sent: u64,
    /// Answers.
    pub received: u64,
}

impl Pinged {
    /// Requests without an answer.
    pub fn lost(self) -> u64 {
        self.sent - self.received
    }
}

/// A running ping(8).
pub struct Ping {
    child: Child,
    what: String,
}

impl Ping {
    /// Starts one; a count (`-c`) in the options lets [`Self::finish`] end.
    pub fn start(from: &Namespace, to: &str, options: &str) -> Self {
        let child = from
            .command("ping")
            .arg("-nq")
            .args(options.split_whitespace())
            .arg(to)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ping");
        Self { child, what: format!("{}$ ping {options} {to}", from.name()) }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for its end.
    pub fn finish(self) -> Pinged {
        let output = self.child.wait_with_output().expect("ping");
        let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let count = |before: &str| {
            let words = text.split(before).next()?;
            words.rsplit([' ', '\n', ',']).find_map(|word| word.parse().ok())
        };
        // "200 packets transmitted, 199 received, …"; nothing at all when the kernel refuses to send the first.
        let (Some(sent), Some(received)) = (count(" packets transmitted"), count(" received")) else {
            panic!("{}: {text}{error}", self.what)
        };
        Pinged { sent, received }
    }
}

/// Sends `megabytes` over TCP and checks every byte on the other side; returns the client's address as the server saw it.
pub fn transfer(from: &Namespace, to: &Namespace, address: &str, megabytes: usize) -> IpAddr {
    let address: IpAddr = address.parse().expect("an address");
    let listener = to.within(|| TcpListener::bind((address, 0))).expect("listen");
    let target = listener.local_addr().expect("an address");
    let receiver = std::thread::spawn(move || {
        let (mut stream, client) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(secs(10))).expect("timeout");
        let mut expected = Pattern::default();
        let mut buffer = vec![0; 1 << 16];
        let mut received = 0;
        loop {
            let len = stream.read(&mut buffer).expect("the stream stalled");
            if len == 0 {
                break;
            }
            let wrong = buffer[..len].iter().position(|&byte| byte != expected.byte());
            assert_eq!(wrong.map(|at| received + at), None, "the first wrong byte");
            received += len;
        }
        stream.write_all(b"done").expect("answer");
        (client.ip(), received)
    });
    let mut stream = from.within(|| TcpStream::connect_timeout(&target, secs(5))).expect("connect");
    stream.set_read_timeout(Some(secs(60))).expect("timeout");
    stream.set_write_timeout(Some(secs(10))).expect("timeout");
    let mut pattern = Pattern::default();
    let mut chunk = vec![0; 1 << 16];
    for _ in 0..megabytes * 16 {
        chunk.fill_with(|| pattern.byte());
        stream.write_all(&chunk).expect("the stream stalled");
    }
    stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut done = Vec::new();
    stream.read_to_end(&mut done).expect("the answer");
    let (client, arrived) = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(done, b"done");
    assert_eq!(arrived, megabytes << 20);
    client
}

/// Bytes that do not repeat within a packet's length (xorshift).
struct Pattern {
    state: u64,
    left: u8,
}

impl Default for Pattern {
    fn default() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, left: 0 }
    }
}

impl Pattern {
    fn byte(&mut self) -> u8 {
        if self.left == 0 {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.left = 8;
        }
        self.left -= 1;
        (self.state >> (8 * u32::from(self.left))) as u8
    }
}

/// iperf3(1) from one namespace to a server in another; returns the `end` of its report.
pub fn iperf(from: &Namespace, to: &Namespace, address: &str, options: &str) -> Value {
    let mut server =
        to.command("iperf3").args(["-s", "-1", "-B", address]).stdout(Stdio::null()).spawn().expect("iperf3");
    wait_for("the iperf3 server listens", secs(5), || to.run("ss -ltnH sport = :5201").contains(":5201").then_some(()));
    let output = from
        .command("iperf3")
        .args(["-J", "--connect-timeout", "3000", "-c", address])
        .args(options.split_whitespace())
        .output()
        .expect("iperf3");
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let _ = server.kill();
    }
    server.wait().expect("wait");
    assert!(output.status.success(), "iperf3 {options}: {text}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    report["end"].clone()
}

/// What [`Probes`] put into every datagram.
pub const MARKER: &[u8] = b"meshd-leak-probe-meshd-leak-probe";

/// A container that keeps trying to reach the internet in every way: marked UDP, TCP and ping, in both families.
pub struct Probes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pings: Vec<Child>,
}

impl Probes {
    /// Starts them, as fast as they find a leak that lasts milliseconds.
    pub fn start(from: &Namespace) -> Self {
        Self::every(from, Duration::from_millis(2))
    }

    /// Starts them with this pause between datagrams; other probes are rarer.
    pub fn every(from: &Namespace, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let socket = from.within(|| UdpSocket::bind("[::]:0")).expect("bind");
        let udp = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let targets =
                    [format!("[::ffff:{WEB}]:9"), format!("[{WEB6}]:9"), format!("[::ffff:{}]:51820", super::VPS)];
                while !stop.load(Ordering::Relaxed) {
                    for target in &targets {
                        // Refusals are the point: nothing depends on the result.
                        let _ = socket.send_to(MARKER, target);
                    }
                    std::thread::sleep(pause);
                }
            }
        });
        let mut threads = vec![udp];
        for server in [WEB, WEB6] {
            let address = SocketAddr::new(server.parse().expect("an address"), 80);
            let stop = Arc::clone(&stop);
            // The thread itself moves into the namespace: one setns(2), many connects.
            threads.push(from.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = TcpStream::connect_timeout(&address, Duration::from_millis(50));
                    std::thread::sleep(pause * 5 / 2);
                }
            }));
        }
        let pings = [WEB, WEB6].map(|server| {
            from.command("ping")
                .args(["-nq", "-i", &(5 * pause).as_secs_f64().to_string(), server])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("ping")
        });
        Self { stop, threads, pings: pings.into() }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for ping in &mut self.pings {
            let _ = ping.kill();
            let _ = ping.wait();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
